//! Event: one sticky event, its key, and its rank among the events of that key.
//!
//! In: metadata from `wire`, the text that it was read from, and when the event ends. Out: a
//! [`StickyEvent`], which is shared and never copied. Never: a clock, or state beyond the one event.

mod encryption;
mod key;
mod order;
mod part;
mod removal;
mod shared;
mod unkept;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ruma::{EventId, UserId, event_id};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use self::part::{Beside, Part};
pub use self::{
    encryption::{Encryption, EncryptionDetails, Verification},
    key::StickyKey,
    removal::RemovalReason,
};
pub(crate) use self::{
    order::{EntryName, EntryOrder},
    shared::{SharedRoom, SharedSender, SharedType},
    unkept::{Given, Unkept},
};
use crate::{
    time::{Deadline, Moment},
    wire,
};

/// A sticky event.
///
/// `Debug` shows the metadata and never the text. The sender's own copy of a fired delayed event
/// carries the delay id in `unsigned`. With that id, anybody can end the heartbeat.
///
/// Two events are equal if they have the same event id.
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::{StickyEvent, time::Moment};
///
/// #[derive(serde::Deserialize)]
/// struct Presence {
///     status: String,
/// }
///
/// fn print(event: &StickyEvent, now: Moment) {
///     match event.content::<Presence>() {
///         Ok(presence) => println!("{} is {}", event.sender(), presence.status),
///         Err(error) => println!("{} sent something else: {error}", event.sender()),
///     }
///     println!("for another {:?}", event.expires_in(now));
/// }
/// ```
pub struct StickyEvent {
    text: Box<RawValue>,
    sender: SharedSender,
    event_type: SharedType,
    event_id: Part,
    sticky_key: Part,
    beside: Option<Box<Beside>>,
    origin_server_ts_ms: u64,
    duration_ms: u64,
    /// The map's hash of the event id.
    id_hash: u64,
    /// The number of the event's cell in the map.
    cell: u32,
    /// The earliest end that any delivery of the event gave. It is an atomic, because most repeats
    /// move it by a few milliseconds: that neither copies the event nor notifies anybody.
    ends: AtomicU64,
    /// Whether the event is redacted. A redacted event is not sticky. The map keeps it only so that a
    /// late copy of it does not count.
    redacted: AtomicBool,
    kind: Kind,
    /// Whether the session was not the sender's own.
    foreign_session: bool,
    encryption: Option<Arc<EncryptionDetails>>,
}

/// What an event means to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The event can be the value of its key.
    Value,
    /// While the event is the value of its key, the key is absent.
    Removal,
    /// The event is encrypted, and its room key has not come yet or its inside is malformed. Its
    /// sticky key is unknown.
    Unreadable,
}

impl StickyEvent {
    /// Returns the event id.
    pub fn event_id(&self) -> &EventId {
        // The id is valid, because `wire` has checked it. A constant stands in rather than a panic.
        <&EventId>::try_from(self.event_id_str()).unwrap_or_else(|_| event_id!("$invalid"))
    }

    pub(crate) fn event_id_str(&self) -> &str {
        self.event_id.get(self.text.get(), self.beside.as_deref().map(|beside| &*beside.event_id))
    }

    /// Returns the user who sent the event.
    pub fn sender(&self) -> &UserId {
        &self.sender
    }

    /// Returns the type, decrypted if the event was encrypted.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the sticky key of the content, if it has one. An event without a key is an entry of its
    /// own, under its event id.
    pub fn sticky_key(&self) -> Option<&str> {
        if self.sticky_key.is_absent() {
            return None;
        }
        let beside = self.beside.as_deref().map(|beside| &*beside.sticky_key);
        Some(self.sticky_key.get(self.text.get(), beside))
    }

    /// Returns the key in the room's map; `None` if the event has no sticky key.
    pub fn key(&self) -> Option<StickyKey> {
        let sticky_key = self.sticky_key()?;
        Some(StickyKey::new(self.sender(), &*self.event_type, sticky_key))
    }

    /// Returns `origin_server_ts`, in milliseconds since the Unix epoch. The sender's server sets it,
    /// and can lie.
    pub fn origin_server_ts_ms(&self) -> u64 {
        self.origin_server_ts_ms
    }

    /// Returns how long the sender wants the event to be sticky. The value is not clamped: it may be
    /// more than 1 h, and the event is over after 1 h all the same.
    pub fn sticky_duration(&self) -> Duration {
        Duration::from_millis(self.duration_ms)
    }

    /// Returns the time that the event has left, from 1 h down to zero once it is over.
    pub fn expires_in(&self, now: Moment) -> Duration {
        self.ends().left(now)
    }

    /// Returns how the event was protected on its way.
    pub fn encryption(&self) -> Encryption {
        match &self.encryption {
            None => Encryption::Plaintext,
            Some(details) if self.foreign_session => Encryption::ForeignSession(details.clone()),
            Some(details) => Encryption::Encrypted(details.clone()),
        }
    }

    /// Returns whether the sender encrypted the event. See [`Encryption`].
    pub fn is_encrypted(&self) -> bool {
        self.encryption.is_some() && !self.foreign_session
    }

    /// Returns the whole JSON as received, decrypted if the event was encrypted.
    ///
    /// It may carry secrets of ours in `unsigned`: do not log it.
    pub fn raw(&self) -> &RawValue {
        &self.text
    }

    /// Reads the content as `C`.
    ///
    /// # Errors
    ///
    /// Returns serde's error if the content is not a `C`. Anybody in the room can send anything, so
    /// treat such an entry as one with an unknown content.
    pub fn content<C: DeserializeOwned>(&self) -> Result<C, serde_json::Error> {
        serde_json::from_str(self.content_raw()?.get())
    }

    /// Returns the content as JSON text, which points into the event's text.
    ///
    /// # Errors
    ///
    /// Returns serde's error if the text has no content. That does not happen with an event from a
    /// view: the map takes no event without a content.
    pub fn content_raw(&self) -> Result<&RawValue, serde_json::Error> {
        wire::content(self.text.get())
    }

    /// Returns a copy of the event with other news about who encrypted it.
    pub(crate) fn with_encryption(&self, encryption: Encryption) -> Arc<Self> {
        let beside = self.beside.as_deref().map(|beside| Beside {
            event_id: beside.event_id.clone(),
            sticky_key: beside.sticky_key.clone(),
        });
        Arc::new(Self {
            text: self.text.clone(),
            sender: self.sender.clone(),
            event_type: self.event_type.clone(),
            event_id: self.event_id,
            sticky_key: self.sticky_key,
            beside: beside.map(Box::new),
            origin_server_ts_ms: self.origin_server_ts_ms,
            duration_ms: self.duration_ms,
            id_hash: self.id_hash,
            cell: self.cell,
            ends: AtomicU64::new(self.ends().to_bits()),
            redacted: AtomicBool::new(self.is_redacted()),
            kind: self.kind,
            foreign_session: matches!(encryption, Encryption::ForeignSession(_)),
            encryption: encryption.into_details(),
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn ends(&self) -> Deadline {
        Deadline::from_bits(self.ends.load(Relaxed))
    }

    /// Brings the end forward, and never back: the earliest end that any delivery gave counts. Only the
    /// map calls this, under its owner's lock.
    pub(crate) fn set_ends(&self, ends: Deadline) {
        self.ends.fetch_min(ends.to_bits(), Relaxed);
    }

    pub(crate) fn is_redacted(&self) -> bool {
        self.redacted.load(Relaxed)
    }

    /// Marks the event as redacted. Only the map calls this, under its owner's lock.
    pub(crate) fn redact(&self) {
        self.redacted.store(true, Relaxed);
    }

    pub(crate) fn shared_sender(&self) -> &SharedSender {
        &self.sender
    }

    pub(crate) fn shared_type(&self) -> &SharedType {
        &self.event_type
    }

    /// Returns the map's hash of the event id.
    pub(crate) fn id_hash(&self) -> u64 {
        self.id_hash
    }

    /// Returns the number of the event's cell in the map, for as long as the map knows the event.
    pub(crate) fn cell(&self) -> u32 {
        self.cell
    }
}

impl PartialEq for StickyEvent {
    fn eq(&self, other: &Self) -> bool {
        self.event_id() == other.event_id()
    }
}

impl Eq for StickyEvent {}

impl fmt::Debug for StickyEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StickyEvent")
            .field("event_id", &self.event_id_str())
            .field("sender", &self.sender)
            .field("event_type", &self.event_type)
            .field("sticky_key", &self.sticky_key())
            .field("origin_server_ts_ms", &self.origin_server_ts_ms)
            .field("duration_ms", &self.duration_ms)
            .field("ends", &self.ends())
            .field("kind", &self.kind)
            .field("encryption", &self.encryption())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
