//! Event: one sticky event, its key, and its rank among the events of that key.
//!
//! In: metadata from `wire`, the text it was read from, and when the event ends. Out: a
//! [`StickyEvent`], shared and never copied. No clock, no state beyond the one event; past here
//! nobody compares timestamps by hand.

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
/// `Debug` shows its metadata and never its text: the sender's own copy of a fired delayed event
/// carries the delay id in `unsigned`, and whoever has that can end the heartbeat.
pub struct StickyEvent {
    text: Box<RawValue>,
    sender: SharedSender,
    event_type: SharedType,
    event_id: Part,
    sticky_key: Part,
    beside: Option<Box<Beside>>,
    origin_server_ts_ms: u64,
    duration_ms: u64,
    /// The map's hash of its id.
    id_hash: u64,
    /// The number of its cell in the map.
    cell: u32,
    /// The earliest end that any delivery of the event gave. An atomic, so that a delivery that
    /// moves it by a few milliseconds, as most repeats do, neither copies the event nor is a
    /// change to anybody.
    ends: AtomicU64,
    /// Redacted: it is not sticky, and is only kept so that a late copy of it does not count.
    redacted: AtomicBool,
    kind: Kind,
    /// Whether the session was not the sender's own.
    foreign_session: bool,
    encryption: Option<Arc<EncryptionDetails>>,
}

/// What the event is to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It can be the value of its key.
    Value,
    /// While it is the value of its key, the key is absent.
    Removal,
    /// It is encrypted, and its room key has not come yet, or what was inside is malformed: nobody
    /// knows its key.
    Unreadable,
}

impl StickyEvent {
    /// The event's id.
    pub fn event_id(&self) -> &EventId {
        // Valid since `wire` read it; a constant stands in rather than a panic.
        <&EventId>::try_from(self.event_id_str()).unwrap_or_else(|_| event_id!("$invalid"))
    }

    pub(crate) fn event_id_str(&self) -> &str {
        self.event_id.get(self.text.get(), self.beside.as_deref().map(|beside| &*beside.event_id))
    }

    /// The user who sent it.
    pub fn sender(&self) -> &UserId {
        &self.sender
    }

    /// Its type, decrypted if it was encrypted.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The sticky key of its content, if it has one. An event without one is an entry of its own,
    /// under its event id.
    pub fn sticky_key(&self) -> Option<&str> {
        if self.sticky_key.is_none() {
            return None;
        }
        let beside = self.beside.as_deref().map(|beside| &*beside.sticky_key);
        Some(self.sticky_key.get(self.text.get(), beside))
    }

    /// Its key in the room's map; `None` without a sticky key.
    pub fn key(&self) -> Option<StickyKey> {
        let sticky_key = self.sticky_key()?;
        Some(StickyKey::new(self.sender(), &*self.event_type, sticky_key))
    }

    /// `origin_server_ts`, in milliseconds since the Unix epoch. The sender's server says it, and
    /// can lie.
    pub fn origin_server_ts_ms(&self) -> u64 {
        self.origin_server_ts_ms
    }

    /// For how long the sender wanted it to be sticky, unclamped: it may say more than 1 h, and is
    /// over after 1 h all the same.
    pub fn sticky_duration(&self) -> Duration {
        Duration::from_millis(self.duration_ms)
    }

    /// The time it has left, at most 1 h, zero once it is over.
    pub fn expires_in(&self, now: Moment) -> Duration {
        self.ends().left(now)
    }

    /// How it was protected on its way.
    pub fn encryption(&self) -> Encryption {
        match &self.encryption {
            None => Encryption::Plaintext,
            Some(details) if self.foreign_session => Encryption::ForeignSession(details.clone()),
            Some(details) => Encryption::Encrypted(details.clone()),
        }
    }

    /// Whether its sender encrypted it. See [`Encryption`].
    pub fn is_encrypted(&self) -> bool {
        self.encryption.is_some() && !self.foreign_session
    }

    /// Its whole JSON as received, decrypted if it was encrypted. It may carry secrets of ours in
    /// `unsigned`: do not log it.
    pub fn raw(&self) -> &RawValue {
        &self.text
    }

    /// Its content, read as `C`.
    ///
    /// # Errors
    ///
    /// What serde says when the content is not a `C`: anybody in the room can send anything.
    pub fn content<C: DeserializeOwned>(&self) -> Result<C, serde_json::Error> {
        serde_json::from_str(self.content_raw()?.get())
    }

    /// Its content as JSON text, pointing into the event's.
    ///
    /// # Errors
    ///
    /// None that a received event has: its content is an object.
    pub fn content_raw(&self) -> Result<&RawValue, serde_json::Error> {
        wire::content(self.text.get())
    }

    /// The same event, of which more is known now: who encrypted it.
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

    /// Brings the end forward, never back: the earliest that any delivery gave counts. Only the map
    /// calls this, under its owner's lock.
    pub(crate) fn set_ends(&self, ends: Deadline) {
        self.ends.fetch_min(ends.to_bits(), Relaxed);
    }

    pub(crate) fn is_redacted(&self) -> bool {
        self.redacted.load(Relaxed)
    }

    /// Only the map calls this, under its owner's lock.
    pub(crate) fn redact(&self) {
        self.redacted.store(true, Relaxed);
    }

    pub(crate) fn shared_sender(&self) -> &SharedSender {
        &self.sender
    }

    pub(crate) fn shared_type(&self) -> &SharedType {
        &self.event_type
    }

    /// The map's hash of its id.
    pub(crate) fn id_hash(&self) -> u64 {
        self.id_hash
    }

    /// The number of its cell in the map, for as long as it is known there.
    pub(crate) fn cell(&self) -> u32 {
        self.cell
    }
}

/// Two events are equal if they have the same event id.
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
