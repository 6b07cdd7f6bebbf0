//! Event: one sticky event, its key, and its rank among the events of that key.
//!
//! In: metadata from `wire`, the text it was read from, and when the event ends. Out: a
//! [`StickyEvent`], shared and never copied. No clock, no state beyond the one event; past here
//! nobody compares timestamps by hand.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ruma::{EventId, OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId, event_id};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{
    time::{Deadline, Moment},
    wire::{self, RawContent, RawSticky},
};

/// The key of an entry in a room's ephemeral map ([MSC4354], "Implementing an ephemeral map"). The
/// room is implied by the map.
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StickyKey {
    /// The sender of the event.
    pub sender: OwnedUserId,
    /// The type of the event, decrypted, e.g. `m.rtc.member`.
    pub event_type: String,
    /// The `sticky_key` of its content. `""` is a key as good as any.
    pub sticky_key: String,
}

impl StickyKey {
    /// A key from its parts.
    pub fn new(
        sender: impl Into<OwnedUserId>,
        event_type: impl Into<String>,
        sticky_key: impl Into<String>,
    ) -> Self {
        Self { sender: sender.into(), event_type: event_type.into(), sticky_key: sticky_key.into() }
    }
}

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

/// An identifier, whose text all share who know of it.
#[derive(Clone)]
pub(crate) struct Shared<T>(Arc<Counted<T>>);

struct Counted<T> {
    id: T,
    /// An atomic, so that it can be counted where the identifier is and need not be looked up.
    uses: AtomicU32,
}

/// A sender, shared by all their events in a room.
pub(crate) type SharedSender = Shared<OwnedUserId>;

/// A type, shared by all events of it in a room.
pub(crate) type SharedType = Shared<Box<str>>;

/// A room, shared by all that is kept of it.
pub(crate) type SharedRoom = Shared<OwnedRoomId>;

impl<T> From<T> for Shared<T> {
    fn from(id: T) -> Self {
        Self(Arc::new(Counted { id, uses: AtomicU32::new(0) }))
    }
}

impl<T> Shared<T> {
    /// Whether the two share one text.
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// How often the map uses it, as it counts. Only the map counts, under its owner's lock.
    pub(crate) fn uses(&self) -> u32 {
        self.0.uses.load(Relaxed)
    }

    /// The map uses it once more.
    pub(crate) fn add_use(&self) {
        self.0.uses.fetch_add(1, Relaxed);
    }

    /// The map uses it once less. Whether that was the last use.
    pub(crate) fn end_use(&self) -> bool {
        self.0.uses.fetch_sub(1, Relaxed) == 1
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.id.fmt(f)
    }
}

impl<T: Deref> Deref for Shared<T> {
    type Target = T::Target;

    fn deref(&self) -> &T::Target {
        &self.0.id
    }
}

impl<T: Ord> Ord for Shared<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.is_same(other) { Ordering::Equal } else { self.0.id.cmp(&other.0.id) }
    }
}

impl<T: Ord> PartialOrd for Shared<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0.id == other.0.id
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl Borrow<UserId> for SharedSender {
    fn borrow(&self) -> &UserId {
        self
    }
}

impl Borrow<str> for SharedType {
    fn borrow(&self) -> &str {
        self
    }
}

impl Borrow<RoomId> for SharedRoom {
    fn borrow(&self) -> &RoomId {
        self
    }
}

impl<T: Deref<Target: Hash>> Hash for Shared<T> {
    /// As the borrowed identifier, which it is looked up by.
    fn hash<H: Hasher>(&self, state: &mut H) {
        T::Target::hash(self, state);
    }
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

/// Where a string stands in the event's text; of no length where it is empty or the JSON spells it
/// with escapes, and stands [`Beside`] the text.
#[derive(Clone, Copy)]
struct Part {
    start: u32,
    len: u32,
}

/// Strings that the event's text spells with escapes, or that are empty.
struct Beside {
    event_id: Box<str>,
    sticky_key: Box<str>,
}

impl Part {
    const BESIDE: Self = Self { start: 0, len: 0 };

    /// There is none: no text has a place so far out and nothing in it.
    const NONE: Self = Self { start: u32::MAX, len: 0 };

    fn is_none(self) -> bool {
        self.start == Self::NONE.start && self.len == Self::NONE.len
    }

    fn is_beside(self) -> bool {
        self.len == 0 && !self.is_none()
    }

    fn of(part: &str, text: &str) -> Self {
        // Where the part is a slice of the text, the difference of their addresses is its place.
        let start = (part.as_ptr() as usize).wrapping_sub(text.as_ptr() as usize);
        if text.get(start..).is_some_and(|rest| rest.starts_with(part))
            && let (Ok(start), Ok(len)) = (u32::try_from(start), u32::try_from(part.len()))
        {
            return Self { start, len };
        }
        Self::BESIDE
    }

    fn get<'a>(self, text: &'a str, beside: Option<&'a str>) -> &'a str {
        if self.len == 0 {
            return beside.unwrap_or_default();
        }
        let start = self.start as usize;
        text.get(start..start + self.len as usize).unwrap_or_default()
    }
}

/// How an event was protected on its way, as the SDK knows it.
///
/// Only the type and the content were inside. The sticky object and the timestamps are outside the
/// encryption: a server can lie about both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// Sent in the clear. In an encrypted room it still competes in the map: everybody's map would
    /// differ otherwise. What it may mean there is the reader's to decide.
    #[default]
    Plaintext,
    /// Encrypted by a device of the sender.
    Encrypted(Arc<EncryptionDetails>),
    /// Encrypted with a session that is not the sender's own: somebody passes another's words off
    /// as theirs, or the SDK could not tell. Counts as not encrypted.
    ForeignSession(Arc<EncryptionDetails>),
}

impl Encryption {
    /// Whether the event was encrypted by its sender.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// Whether it is not known whose session it was, and may come to be.
    pub(crate) fn is_unproven(&self) -> bool {
        match self {
            Self::ForeignSession(details) => details.verification == Verification::Unproven,
            _ => false,
        }
    }

    /// What it is worth on an event of this sender.
    pub(crate) fn of_sender(self, sender: &UserId) -> Self {
        match self {
            Self::Encrypted(details) if details.owner != sender => Self::ForeignSession(details),
            other => other,
        }
    }

    fn into_details(self) -> Option<Arc<EncryptionDetails>> {
        match self {
            Self::Plaintext => None,
            Self::Encrypted(details) | Self::ForeignSession(details) => Some(details),
        }
    }
}

/// Who encrypted an event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncryptionDetails {
    /// The owner of the session.
    pub owner: OwnedUserId,
    /// The owner's device, where the SDK knows it. Not to be trusted unless `verification` is
    /// [`Verification::Verified`].
    pub device: Option<OwnedDeviceId>,
    /// How far the device is known to be its owner's, at the time of decryption.
    pub verification: Verification,
}

impl EncryptionDetails {
    /// Details from their parts.
    pub fn new(
        owner: OwnedUserId,
        device: Option<OwnedDeviceId>,
        verification: Verification,
    ) -> Self {
        Self { owner, device, verification }
    }
}

/// How far a device is known to be its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verification {
    /// The device is cross-signed by a user whom we have verified.
    Verified,
    /// The device is cross-signed by its owner, whom we have not verified.
    UnverifiedIdentity,
    /// The owner was verified once, and has another identity now.
    VerificationViolation,
    /// The device is not cross-signed by its owner.
    UnsignedDevice,
    /// The device is unknown, deleted, or the session came from a source that proves nothing.
    Unproven,
}

/// Why an entry left the map, or a view of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemovalReason {
    /// Its time was over.
    Expired,
    /// Its sender removed it: an event with nothing but the key outranks it.
    Removed,
    /// It was redacted.
    Redacted,
    /// Its sender is ignored, from that moment on.
    Ignored,
    /// We are not in the room any more.
    RoomLeft,
}

impl RemovalReason {
    /// The reason in one word, as the examples print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Removed => "removed",
            Self::Redacted => "redacted",
            Self::Ignored => "ignored",
            Self::RoomLeft => "left",
        }
    }
}

/// Where an event stands among the sticky events of its key: the highest is the value.
///
/// [MSC4354] ("Implementing an ephemeral map") compares `origin_server_ts + duration_ms`, then the
/// event id. The duration counts as it stands, unclamped; the sum saturates.
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank<'a> {
    intended_end_ms: u64,
    event_id: &'a str,
}

/// The order of an event in the map and in every list of its entries. Entries are ordered by it:
/// by type, then by sender, then keyed before unkeyed, then by sticky key or event id, each as
/// bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryOrder<'a> {
    pub(crate) event_type: &'a str,
    pub(crate) sender: &'a str,
    pub(crate) name: EntryName<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum EntryName<'a> {
    Keyed(&'a str),
    Unkeyed(&'a str),
}

impl EntryOrder<'_> {
    /// An order that no event has: every event has a sender.
    pub(crate) const NOWHERE: Self =
        Self { event_type: "", sender: "", name: EntryName::Unkeyed("") };
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

    /// Its rank among the events of its key.
    pub(crate) fn rank(&self) -> Rank<'_> {
        Rank {
            intended_end_ms: self.origin_server_ts_ms.saturating_add(self.duration_ms),
            event_id: self.event_id_str(),
        }
    }

    pub(crate) fn order(&self) -> EntryOrder<'_> {
        EntryOrder {
            event_type: &self.event_type,
            sender: self.sender.as_str(),
            name: match self.sticky_key() {
                Some(key) => EntryName::Keyed(key),
                None => EntryName::Unkeyed(self.event_id_str()),
            },
        }
    }

    /// Compares the orders, without looking at strings that both events share.
    pub(crate) fn cmp_order(&self, other: &Self) -> Ordering {
        if !self.event_type.is_same(&other.event_type) {
            let order = self.event_type.cmp(&other.event_type);
            if order.is_ne() {
                return order;
            }
        }
        if !self.sender.is_same(&other.sender) {
            let order = self.sender.as_str().cmp(other.sender.as_str());
            if order.is_ne() {
                return order;
            }
        }
        self.order().name.cmp(&other.order().name)
    }
}

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

/// What the map gives an event.
pub(crate) struct Given {
    pub(crate) sender: SharedSender,
    pub(crate) event_type: SharedType,
    pub(crate) id_hash: u64,
    pub(crate) cell: u32,
}

/// An event that still misses its text. The metadata borrows from the text until this is made, so
/// the text can only be handed over afterwards; that way it is never copied.
pub(crate) struct Unkept {
    sender: SharedSender,
    event_type: SharedType,
    event_id: Part,
    sticky_key: Part,
    beside: Option<Box<Beside>>,
    origin_server_ts_ms: u64,
    duration_ms: u64,
    id_hash: u64,
    cell: u32,
    ends: Deadline,
    kind: Kind,
    encryption: Encryption,
}

impl Unkept {
    /// An event from its metadata and the text that the metadata points into.
    pub(crate) fn read(
        raw: &RawSticky<'_>,
        text: &str,
        given: Given,
        ends: Deadline,
        encryption: Encryption,
    ) -> Self {
        let (kind, key) = match &raw.content {
            RawContent::Clear { sticky_key, removal } => {
                let kind = if *removal { Kind::Removal } else { Kind::Value };
                (kind, sticky_key.as_deref())
            }
            RawContent::Encrypted { .. } => (Kind::Unreadable, None),
        };
        let event_id = Part::of(raw.event_id.as_str(), text);
        let sticky_key = key.map_or(Part::NONE, |key| Part::of(key, text));
        let is_beside = event_id.is_beside() || sticky_key.is_beside();
        let beside = is_beside.then(|| {
            let event_id = raw.event_id.as_str().into();
            Box::new(Beside { event_id, sticky_key: key.unwrap_or_default().into() })
        });
        let Given { sender, event_type, id_hash, cell } = given;
        Self {
            sender,
            event_type,
            id_hash,
            cell,
            event_id,
            sticky_key,
            beside,
            origin_server_ts_ms: raw.origin_server_ts_ms,
            duration_ms: raw.duration_ms,
            ends,
            kind,
            encryption,
        }
    }

    /// Keeps `text`, which must be the one that the metadata was read from.
    pub(crate) fn keep(self, text: Box<RawValue>) -> Arc<StickyEvent> {
        Arc::new(StickyEvent {
            text,
            sender: self.sender,
            event_type: self.event_type,
            event_id: self.event_id,
            sticky_key: self.sticky_key,
            beside: self.beside,
            origin_server_ts_ms: self.origin_server_ts_ms,
            duration_ms: self.duration_ms,
            id_hash: self.id_hash,
            cell: self.cell,
            ends: AtomicU64::new(self.ends.to_bits()),
            redacted: AtomicBool::new(false),
            kind: self.kind,
            foreign_session: matches!(self.encryption, Encryption::ForeignSession(_)),
            encryption: self.encryption.into_details(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::{
        map::{EphemeralMap, Limits, ReceivedVia},
        testing::{ALICE, START_MS, debug, event, raw, secs, start},
    };

    fn kept(text: Box<RawValue>) -> Arc<StickyEvent> {
        let mut map = EphemeralMap::new(Limits::default());
        map.handle_event(start(), ReceivedVia::Section, text).unwrap();
        map.entries(start())[0].clone()
    }

    #[test]
    fn an_entry_says_what_was_sent() {
        let sent = event("$a").sent(5).lasting(7_200_000).ttl(30_000);
        let entry = kept(sent.raw());
        assert_eq!((entry.event_id().as_str(), entry.sender().as_str()), ("$a", ALICE));
        assert_eq!(entry.origin_server_ts_ms(), START_MS + 5_000);
        assert_eq!(entry.sticky_duration(), secs(7_200), "as it stands");
        assert_eq!(entry.expires_in(start().advanced(secs(10))), secs(20));
        assert_eq!(entry.expires_in(start().advanced(secs(40))), Duration::ZERO);
        assert_eq!(entry.raw().get(), sent.text());
        let key = StickyKey::new(entry.sender(), "com.example.t", "k");
        assert_eq!(entry.key(), Some(key));
        assert_eq!(kept(event("$a").unkeyed().raw()).key(), None);
    }

    #[test]
    fn debug_shows_the_metadata_of_an_event() {
        let shown = debug(&kept(event("$a").raw()));
        for part in ["$a", ALICE, "com.example.t", r#"Some("k")"#, "60000", "Value", "Plaintext"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }

    #[test]
    fn only_what_is_empty_or_spelled_with_escapes_stands_beside_the_text() {
        let plain = event("$a").text();
        let escaped_id = plain.replace(r#":"$a""#, r#":"\u0024a""#);
        let escaped_key = plain.replace(r#":"k""#, r#":"\u006b""#);
        let both = escaped_id.replace(r#":"k""#, r#":"\u006b""#);
        for (text, key, beside) in [
            (plain, "k", false),
            (escaped_id, "k", true),
            (escaped_key, "k", true),
            (both, "k", true),
            (event("$a").key("").text(), "", true),
        ] {
            let entry = kept(raw(&*text));
            let read = (entry.event_id_str(), entry.sticky_key(), entry.beside.is_some());
            assert_eq!(read, ("$a", Some(key), beside), "{text}");
        }
        assert!(kept(event("$a").unkeyed().raw()).beside.is_none());
    }

    #[test]
    fn a_shared_text_compares_as_the_text_whether_it_is_the_same_or_a_copy() {
        let text = |text: &str| SharedType::from(Box::<str>::from(text));
        let (one, copy, other) = (text("a"), text("a"), text("b"));
        assert!(one == one.clone() && one == copy && one != other);
        for (left, right, order) in [
            (&one, &one, Ordering::Equal),
            (&one, &copy, Ordering::Equal),
            (&one, &other, Ordering::Less),
            (&other, &one, Ordering::Greater),
        ] {
            assert_eq!((left.cmp(right), left.partial_cmp(right)), (order, Some(order)));
        }
    }

    #[test]
    fn an_event_has_one_place_however_its_text_is_shared() {
        // From two maps, so that nothing is shared.
        let (one, other) = (kept(event("$a").raw()), kept(event("$b").raw()));
        assert_eq!(one.cmp_order(&other), Ordering::Equal);
        for (lower, higher) in [
            (event("$a").of_type("a").by("@b:hs").key("b"), event("$a").of_type("b").by("@a:hs")),
            (event("$a").by("@a:hs").key("b"), event("$a").by("@b:hs").key("a")),
            (event("$a").key("a"), event("$a").key("b")),
            (event("$a").key("z"), event("$a").unkeyed()),
            (event("$a").unkeyed(), event("$b").unkeyed()),
        ] {
            let (lower, higher) = (kept(lower.raw()), kept(higher.raw()));
            assert_eq!(lower.cmp_order(&higher), Ordering::Less);
            assert_eq!(higher.cmp_order(&lower), Ordering::Greater);
        }
    }
}
