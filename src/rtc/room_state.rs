//! The room's state, as far as sessions depend on it: slots, memberships from before sticky events, which senders
//! of memberships are in the room, and whether it is encrypted.
//!
//! In: the client's store, requests to the server, and what the main loop brings. Out: state events as text, for
//! the roster. Never: deciding who counts.
//!
//! Why a request, and not the store alone? Only a v3 main loop brings the whole state. A main loop over sliding
//! sync, such as `SyncService`, asks for the types that it knows, and slots are not among these. With lazily
//! loaded members the store does not have users who have said nothing. Both main loops bring each *change* of
//! state, as an event of the timeline. So the state comes once from the server, and then from the main loop. It
//! comes from the server again if the main loop has left a gap.

use std::time::Duration;

use matrix_sdk::{
    HttpError, Room, RoomState as OurMembership,
    sync::{JoinedRoomUpdate, RoomUpdate, State},
};
use ruma::{
    EventId, OwnedEventId, OwnedUserId, UserId,
    api::client::{room::get_room_event, sync::sync_events::v5},
    events::StateEventType,
    presence::PresenceState,
};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tracing::debug;

use super::{roster::Roster, stay::Undecided};
use crate::{cleartext::Cleartext, driver::random_name, request::one_try, wire::names};

/// How long to wait for the server's answer to one request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How many earlier events of a user are asked for, to find out whether they were out of the room. Each change of
/// name is one.
const MAX_DECIDING_EVENTS: usize = 4;

/// What the main loop brought.
#[derive(Default)]
pub(super) struct MainLoopUpdate {
    /// State events, in their order.
    pub(super) events: Vec<String>,
    /// The events that have been redacted. If one was state, the main loop does not say what is left of it.
    pub(super) redacted: Vec<OwnedEventId>,
    /// The main loop left events out: the server has to be asked.
    pub(super) is_gap: bool,
    /// Whether we are out of the room.
    pub(super) has_left: bool,
}

impl MainLoopUpdate {
    fn gap() -> Self {
        Self { is_gap: true, ..Self::default() }
    }

    fn is_none(&self) -> bool {
        self.events.is_empty() && self.redacted.is_empty() && !self.is_gap && !self.has_left
    }
}

/// What the server has answered.
pub(super) enum Fetched {
    /// State events.
    Events {
        texts: Vec<String>,
        /// Whether these are all events on which sessions depend.
        is_whole: bool,
    },
    /// The answer is in the client's store by now.
    IsInStore,
}

/// The server did not answer.
pub(super) struct NoAnswer;

/// Where the state comes from.
pub(super) struct Source {
    room: Room,
    updates: Receiver<RoomUpdate>,
}

impl Source {
    pub(super) fn new(room: Room) -> Self {
        // From here on no update is missed.
        let updates = room.subscribe_to_updates();
        Self { room, updates }
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// Whether the room is encrypted. `None` while nobody can tell.
    pub(super) async fn is_encrypted(&self) -> Option<bool> {
        let state = match self.room.latest_encryption_state().await {
            Ok(state) => state,
            Err(error) => {
                debug!(%error, "whether the room is encrypted is not known yet");
                self.room.encryption_state()
            }
        };
        (!state.is_unknown()).then(|| state.is_encrypted())
    }

    /// Has the SDK learn that the room is encrypted, if it believes that it is not. The SDK asks the server only
    /// while it does not know, and every send goes by its word.
    #[cfg(feature = "e2e-encryption")]
    pub(super) async fn tell_sdk_of_encryption(&self) {
        use matrix_sdk_base::{EncryptionState, RoomInfo, RoomInfoNotableUpdateReasons};

        if !matches!(self.room.encryption_state(), EncryptionState::NotEncrypted) {
            return;
        }
        let forget = |mut info: RoomInfo| {
            info.mark_encryption_state_missing();
            (info, RoomInfoNotableUpdateReasons::empty())
        };
        let forgotten = self.room.update_and_save_room_info(forget).await;
        match (forgotten, self.room.latest_encryption_state().await) {
            (Ok(()), Ok(_)) => {}
            (Err(error), _) => {
                tracing::warn!(%error, "the SDK does not know that the room is encrypted")
            }
            // The SDK asks again before it sends.
            (Ok(()), Err(error)) => debug!(%error, "the SDK has not learnt of encryption yet"),
        }
    }

    /// The state events that the client's store has.
    pub(super) async fn stored(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for event_type in types() {
            match self.room.get_state_events(event_type).await {
                Ok(events) => {
                    let events = events.iter().filter_map(Cleartext::of_store);
                    texts.extend(events.map(|event| event.text().to_owned()));
                }
                Err(error) => debug!(%error, "the client's store does not tell the state"),
            }
        }
        texts
    }

    /// A user's membership in the room, as the client's store has it.
    pub(super) async fn stored_member(&self, user_id: &UserId) -> Option<String> {
        let event = self.room.get_state_event(StateEventType::RoomMember, user_id.as_str()).await;
        Some(Cleartext::of_store(&event.ok()??)?.text().to_owned())
    }

    /// Asks the server for the memberships of these users in the room and, if wanted, for the whole state.
    pub(super) fn fetch(
        &self,
        users: Vec<OwnedUserId>,
        whole: bool,
    ) -> impl Future<Output = Option<Fetched>> + Send + use<> {
        let room = self.room.clone();
        async move {
            let fetched = match fetch_sliding(&room, &users, whole).await {
                // The server has no sliding sync. So the main loop is of v3, and the store has the state. It may
                // not have who is in the room.
                Err(error) if is_unsupported(&error) => fetch_members(&room).await,
                fetched => fetched
                    .map(|texts| Fetched::Events { texts, is_whole: whole })
                    .map_err(Into::into),
            };
            match fetched {
                Ok(fetched) => Some(fetched),
                Err(error) => {
                    debug!(%error, "the server does not tell the room's state");
                    None
                }
            }
        }
    }

    /// Asks the server for what decides whether a user was out of the room, event by event.
    pub(super) fn decide(
        &self,
        user_id: OwnedUserId,
        mut undecided: Undecided,
    ) -> impl Future<Output = Result<Option<u64>, NoAnswer>> + Send + use<> {
        let room = self.room.clone();
        async move {
            for _ in 0..MAX_DECIDING_EVENTS {
                let before = fetch_event(&room, &undecided.before).await?;
                // If the server does not show the event to us, nobody knows.
                let told = before.and_then(|text| Roster::told_of(&user_id, &text));
                match told.map(|told| undecided.decide(&told)) {
                    Some(Ok(out_until_ms)) => return Ok(out_until_ms),
                    Some(Err(earlier)) => undecided = earlier,
                    None => break,
                }
            }
            Ok(None)
        }
    }

    /// Waits for what the main loop brings next.
    pub(super) async fn next(&mut self) -> MainLoopUpdate {
        loop {
            match self.updates.recv().await {
                Ok(RoomUpdate::Joined { updates, .. }) => {
                    let told = MainLoopUpdate {
                        events: of_update(&updates),
                        redacted: redacted(&updates).collect(),
                        is_gap: updates.timeline.limited,
                        has_left: false,
                    };
                    if !told.is_none() {
                        return told;
                    }
                }
                Ok(RoomUpdate::Left { .. }) => {
                    return MainLoopUpdate { has_left: true, ..MainLoopUpdate::default() };
                }
                Ok(_) => {}
                // One of the missed updates may say that we have left, and no other one will.
                Err(RecvError::Lagged(_)) => {
                    return MainLoopUpdate { has_left: !self.are_we_in(), ..MainLoopUpdate::gap() };
                }
                // The client is gone, and so is the caller.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    /// Whether we are in the room.
    pub(super) fn are_we_in(&self) -> bool {
        self.room.state() == OurMembership::Joined
    }
}

fn types() -> impl Iterator<Item = StateEventType> {
    names::RTC_SLOT.into_iter().chain([names::CALL_MEMBER]).map(StateEventType::from)
}

async fn fetch_sliding(
    room: &Room,
    users: &[OwnedUserId],
    whole: bool,
) -> Result<Vec<String>, HttpError> {
    let mut subscription = v5::request::RoomSubscription::default();
    subscription.required_state = types()
        .filter(|_| whole)
        .map(|event_type| (event_type, "*".to_owned()))
        .chain([(StateEventType::RoomEncryption, String::new())])
        .chain(users.iter().map(|user_id| (StateEventType::RoomMember, user_id.to_string())))
        .collect();
    let mut request = v5::Request::new();
    // A connection that is used once.
    request.conn_id = Some(random_name());
    request.timeout = Some(Duration::ZERO);
    request.set_presence = PresenceState::Offline;
    request.room_subscriptions.insert(room.room_id().to_owned(), subscription);
    let config = one_try(ANSWER_TIMEOUT);
    let answer = room.client().send(request).with_request_config(config).await?;
    let state = answer.rooms.get(room.room_id()).map(|room| &*room.required_state);
    let state = state.unwrap_or_default().iter().map(Cleartext::of_state);
    Ok(state.map(|event| event.text().to_owned()).collect())
}

async fn fetch_event(room: &Room, event_id: &EventId) -> Result<Option<String>, NoAnswer> {
    let request = get_room_event::v3::Request::new(room.room_id().to_owned(), event_id.to_owned());
    let config = one_try(ANSWER_TIMEOUT);
    match room.client().send(request).with_request_config(config).await {
        Ok(answer) => Ok(Some(answer.event.json().get().to_owned())),
        Err(error) => match error.as_client_api_error().map(|error| error.status_code.as_u16()) {
            Some(403 | 404) => Ok(None),
            _ => Err(NoAnswer),
        },
    }
}

/// Has the client learn who is in the room. The store has it then.
async fn fetch_members(room: &Room) -> Result<Fetched, matrix_sdk::Error> {
    room.sync_members().await?;
    Ok(Fetched::IsInStore)
}

fn is_unsupported(error: &HttpError) -> bool {
    error.as_client_api_error().is_some_and(|error| matches!(error.status_code.as_u16(), 404 | 405))
}

/// The state events that a roster may need, in the order in which they count.
fn of_update(update: &JoinedRoomUpdate) -> Vec<String> {
    let (before, after) = match &update.state {
        State::Before(state) => (&**state, &[][..]),
        State::After(state) => (&[][..], &**state),
    };
    let before = before.iter().map(Cleartext::of_state);
    let after = after.iter().map(Cleartext::of_state);
    let timeline = update.timeline.events.iter().filter_map(Cleartext::of_timeline);
    let events = before.chain(timeline).chain(after).filter(|event| is_wanted(*event));
    events.map(|event| event.text().to_owned()).collect()
}

fn redacted(update: &JoinedRoomUpdate) -> impl Iterator<Item = OwnedEventId> {
    update.timeline.events.iter().filter_map(Cleartext::of_timeline).filter_map(Cleartext::redacts)
}

/// Whether a roster may need the event. Messages come by here in hundreds, so nothing is parsed.
fn is_wanted(event: Cleartext<'_>) -> bool {
    let text = event.text();
    text.contains("\"state_key\"")
        && (is_of_a_session(text)
            || [names::ROOM_MEMBER, names::ROOM_ENCRYPTION].iter().any(|name| text.contains(name)))
}

/// Whether an event may be a slot, or a membership from before sticky events.
pub(super) fn is_of_a_session(text: &str) -> bool {
    names::RTC_SLOT.into_iter().chain([names::CALL_MEMBER]).any(|name| text.contains(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cleartext::testing::{clear, redaction, sealed, state, update};

    /// Anybody can seal these. In the clear the server would have to allow them.
    #[test]
    fn nothing_sealed_is_state() {
        let slot = json!({ "status": "closed" });
        let forged = [
            state("m.room.member", "@alice:hs", json!({ "membership": "leave" })),
            state("m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" })),
            state(names::RTC_SLOT[0], "m.call#ROOM", slot.clone()),
            state(names::RTC_SLOT[1], "m.call#ROOM", slot),
            state(names::CALL_MEMBER, "_@alice:hs_DEVICE", json!({ "application": "m.call" })),
        ];
        assert_eq!(of_update(&update(forged.iter().map(clear))).len(), forged.len());
        assert_eq!(of_update(&update(forged.iter().map(sealed))), [""; 0]);
    }

    #[test]
    fn nothing_sealed_redacts_state() {
        let event = redaction(&json!({ "redacts": "$slot" }));
        assert_eq!(redacted(&update([clear(&event)])).count(), 1);
        assert_eq!(redacted(&update([sealed(&event)])).count(), 0);
    }
}
