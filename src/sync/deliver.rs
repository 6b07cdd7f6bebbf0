//! Deliver: events on their way from an answer to the maps.
//!
//! In: the events of an answer, room keys, the devices that the SDK knows. Out: deliveries to the maps,
//! with what is encrypted decrypted where the key is there. Never: a decision on which event counts.

use ruma::{OwnedRoomId, RoomId};
use serde_json::value::RawValue;

#[cfg(feature = "e2e-encryption")]
use super::decrypt;
use super::{source::RoomEvents, worker::Worker};
use crate::{
    map::ReceivedVia,
    time::Moment,
    view::{Arrival, Delivery},
};

/// The events that wait for the key of a session of a room, or for any key of it.
pub(super) type KeyOf = (OwnedRoomId, Option<String>);

impl Worker {
    /// Hands a sticky section to the maps. Returns how many events were not known before.
    pub(super) async fn deliver(&self, received: Moment, rooms: RoomEvents) -> usize {
        self.deliver_by(received, ReceivedVia::Section, rooms).await
    }

    /// Hands events to the maps, which came on this path. Returns how many were not known before.
    pub(super) async fn deliver_by(
        &self,
        received: Moment,
        via: ReceivedVia,
        rooms: RoomEvents,
    ) -> usize {
        let RoomEvents(mut rooms) = rooms;
        let mut unknown = Vec::new();
        // The answer was on its way while we left, or it names a room that we are only invited to:
        // Synapse tells of those as well. What is sticky there is fetched when we join.
        rooms.retain(|(room_id, _)| {
            let is_ours = self.is_ours(room_id);
            if is_ours.is_none() {
                unknown.push(room_id.clone());
            }
            is_ours != Some(false)
        });
        let events = rooms
            .iter()
            .flat_map(|(room_id, events)| events.iter().map(move |event| (&**room_id, &**event)));
        let mut needs_decryption = self.maps.needs_decryption(events).into_iter();
        let mut deliveries = Vec::with_capacity(rooms.len());
        for (room_id, events) in rooms {
            let mut arrivals = Vec::with_capacity(events.len());
            for event in events {
                let decrypted = match needs_decryption.next() {
                    Some(true) => self.decrypt(&room_id, &event).await,
                    _ => None,
                };
                arrivals.push(decrypted.unwrap_or(Arrival::Event(event)));
            }
            deliveries.push(Delivery { room_id, received, via, arrivals });
        }
        // We may have left a room while its events were decrypted. Events that come after its entries
        // have left would stay: nothing more is said of a room that we are not in.
        deliveries.retain(|delivery| self.is_ours(&delivery.room_id) != Some(false));
        if !unknown.is_empty() {
            self.maps.hide(unknown);
        }
        self.maps.take(deliveries.into())
    }

    /// Tries again to decrypt what waits: for these keys, or for any if `None`.
    pub(super) async fn retry(&self, keys: Option<Vec<KeyOf>>) {
        let keys = keys.unwrap_or_else(|| {
            self.maps.rooms().into_iter().map(|room_id| (room_id, None)).collect()
        });
        let mut deliveries = Vec::new();
        for (room_id, session_id) in keys {
            let mut arrivals = Vec::new();
            for event in self.maps.pending_decryption(&room_id, session_id.as_deref()) {
                arrivals.extend(self.decrypt(&room_id, event.raw()).await);
            }
            // An event ends by the moment of its receipt, which is kept with the event that waits.
            let received = self.maps.now();
            deliveries.push(Delivery { room_id, received, via: ReceivedVia::Section, arrivals });
        }
        self.maps.handle(deliveries);
    }

    #[cfg(feature = "e2e-encryption")]
    async fn decrypt(&self, room_id: &RoomId, event: &RawValue) -> Option<Arrival> {
        let room = self.client.get_room(room_id)?;
        let decrypt::Decrypted { clear, encryption } = decrypt::decrypt(&room, event).await?;
        Some(Arrival::Decrypted { outer: event.to_owned(), clear, encryption })
    }

    /// Reads nothing: without encryption an encrypted event waits until it ends.
    #[cfg(not(feature = "e2e-encryption"))]
    async fn decrypt(&self, _: &RoomId, _: &RawValue) -> Option<Arrival> {
        None
    }

    /// Asks the SDK once more who encrypted what is not proven. The sender's device may be known by
    /// now. An event that the client's settings keep from us while the device is not trusted may be
    /// readable.
    ///
    /// Why not listen to the SDK's stream of devices? A holder of that stream holds the machine that it
    /// came from. Then no stream of room keys of that machine ever ends, and its end is what tells
    /// us (and the SDK itself) that there is a new machine.
    #[cfg(feature = "e2e-encryption")]
    pub(super) async fn prove(&self) {
        let mut deliveries = Vec::new();
        for (room_id, events) in self.maps.unproven() {
            let Some(room) = self.client.get_room(&room_id) else { continue };
            let mut arrivals = Vec::new();
            for (event, session_id) in events {
                if let Some(info) = room.get_encryption_info(&session_id, event.sender()).await {
                    let encryption = decrypt::encryption(&info);
                    let event_id = event.event_id().to_owned();
                    arrivals.push(Arrival::Encryption { event_id, encryption });
                }
            }
            let received = self.maps.now();
            deliveries.push(Delivery { room_id, received, via: ReceivedVia::Section, arrivals });
        }
        self.maps.handle(deliveries);
        if decrypt::needs_trust(&self.client) {
            self.retry(None).await;
        }
    }

    #[cfg(not(feature = "e2e-encryption"))]
    pub(super) async fn prove(&self) {}

    /// Returns how many events are worth another look by [`prove`](Self::prove).
    #[cfg(feature = "e2e-encryption")]
    pub(super) fn unproven(&self) -> usize {
        let mut unproven = self.maps.unproven_len();
        if decrypt::needs_trust(&self.client) {
            let rooms = self.maps.rooms();
            unproven += rooms
                .iter()
                .map(|room_id| self.maps.stats(room_id).pending_decryption)
                .sum::<usize>();
        }
        unproven
    }

    #[cfg(not(feature = "e2e-encryption"))]
    pub(super) fn unproven(&self) -> usize {
        0
    }
}
