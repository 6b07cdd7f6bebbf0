//! Wire: an event's raw JSON, read into metadata in one borrowed pass.
//!
//! In: the JSON text of one event, as a server sent it or as decryption gave it back; or the body of a
//! whole response. Out: a [`Wire`], which is what the ephemeral map needs to know of the event and
//! still points into the text; or the events of each room. Never: a clock, state, a log. No other
//! module checks a duration or an identifier again, and none spells a name: see [`names`].
//!
//! If you drive your own sync, you need [`read_sliding`] or [`read_v3`], and [`names`] for your
//! requests. [`EphemeralMaps`](crate::EphemeralMaps) reads the events by itself. [`read`] and
//! [`read_decrypted`], with the types that they return, are public for the fuzz targets.
//!
//! Why not simply ruma's typed events? They silently read a duration over 1 h as *not sticky*, while
//! the server delivers such events, and [MSC4354] ranks by the value as it stands. And one odd value
//! in a field that does not matter to us would cost the whole event.
//!
//! [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354

mod careful;
mod fields;
mod lenient;
pub mod names;
mod quick;
mod response;

use std::{borrow::Cow, fmt};

use ruma::{EventId, UserId};
use serde_json::{Map, Value, value::RawValue};

use self::fields::Event;
pub use self::response::{RoomEvents, SlidingResponse, V3Response, read_sliding, read_v3};

/// Gives a content its key, in both spellings. A peer that knows only one of them reads that one.
#[cfg_attr(not(feature = "client"), allow(dead_code, reason = "the shell sends"))]
pub(crate) fn insert_sticky_key(content: &mut Map<String, Value>, sticky_key: &str) {
    for name in names::STICKY_KEY {
        content.insert(name.to_owned(), sticky_key.into());
    }
}

/// The longest event text that this crate reads, in bytes: 1 MiB.
///
/// An event of a room is at most 64 KiB ("Size limits" of the specification), or six times that if
/// each byte is written as an escape. What a server bundles with the event comes on top.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// What an event's JSON says.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wire<'a> {
    /// A sticky event. It may be over: `wire` has no clock to tell.
    Sticky(RawSticky<'a>),
    /// An event that has been redacted, and so is not sticky any more ([MSC4354], "Redaction").
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    Redacted {
        /// The event that has lost its content.
        event_id: Cow<'a, EventId>,
    },
    /// An event that is not sticky.
    NotSticky {
        /// The event that this one redacts, if this is an `m.room.redaction`.
        redacts: Option<Cow<'a, EventId>>,
    },
}

/// A sticky event's metadata, pointing into its text.
#[derive(Debug, PartialEq, Eq)]
pub struct RawSticky<'a> {
    /// The `event_id`.
    pub event_id: Cow<'a, EventId>,
    /// The `sender`.
    pub sender: Cow<'a, UserId>,
    /// The `type` of the text that was read: `m.room.encrypted` until the event is decrypted.
    pub event_type: Cow<'a, str>,
    /// `origin_server_ts`, in milliseconds since the Unix epoch. The sender's server sets it, and can
    /// lie.
    pub origin_server_ts_ms: u64,
    /// `duration_ms` of the sticky object. It is not clamped, and may be more than 1 h.
    pub duration_ms: u64,
    /// The server's remaining time in milliseconds, if it gave a valid one. It is not clamped.
    pub remaining_ms: Option<u64>,
    /// What the content says to the map.
    pub content: RawContent<'a>,
    /// The event that this one redacts, if it is an `m.room.redaction` that is itself sticky.
    pub redacts: Option<Cow<'a, EventId>>,
}

/// What an event's content says to the map.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawContent<'a> {
    /// Content in the clear.
    Clear {
        /// The sticky key: a string, `""` included. A value of another kind is not a key.
        sticky_key: Option<Cow<'a, str>>,
        /// Whether the content is a key and nothing else ([MSC4354], "Implementing an ephemeral map").
        ///
        /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
        removal: bool,
    },
    /// An encrypted event: its type and its key are inside.
    Encrypted {
        /// The Megolm session that the event is encrypted with, if it names one.
        session_id: Option<Cow<'a, str>>,
    },
}

/// An event was malformed and was dropped.
///
/// Nothing else was lost: log this, and go on with the rest of the response. It shows no text of the
/// event, which may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The event id, if it could be read.
    pub event_id: Option<String>,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The text is longer than [`MAX_EVENT_BYTES`].
    TooLong {
        /// The length of the text in bytes.
        bytes: usize,
    },
    /// The text is not a JSON object, or a string in it is not Unicode. This says where and not what,
    /// because the text may hold secrets.
    Json {
        /// The line that the parser stopped at.
        line: usize,
        /// The column that the parser stopped at.
        column: usize,
    },
    /// This field, which every event must have, is missing or invalid.
    Field(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.event_id {
            Some(event_id) => write!(f, "malformed event {event_id:?}: ")?,
            None => write!(f, "malformed event without an id: ")?,
        }
        match &self.fault {
            Fault::TooLong { bytes } => {
                write!(f, "{bytes} bytes, more than the {MAX_EVENT_BYTES} that are read")
            }
            Fault::Json { line, column } => {
                write!(f, "not a readable JSON object at line {line}, column {column}")
            }
            Fault::Field(name) => write!(f, "its `{name}` is missing or invalid"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Reads one event.
///
/// # Errors
///
/// Returns [`Malformed`] if the text is not a JSON object, or if the event is sticky and lacks what a
/// sticky event must have. A JSON object that is not a sticky event is never malformed.
pub fn read(event: &RawValue) -> Result<Wire<'_>, Malformed> {
    let mut event = parse(event)?;

    let event_id = event.event_id.and_then(valid_event_id);
    let redacts = if event.event_type.as_deref() == Some(names::REDACTION) {
        // The top-level field comes first. In room versions before 11, the one in the content is only
        // what the sender wrote there, and may name somebody else's event.
        event.redacts.or(event.content.redacts.take()).and_then(valid_event_id)
    } else {
        None
    };

    if event.unsigned.redacted {
        return Ok(match event_id {
            Some(event_id) => Wire::Redacted { event_id },
            None => Wire::NotSticky { redacts: None },
        });
    }
    let Some(duration_ms) = event.sticky.value() else {
        return Ok(Wire::NotSticky { redacts });
    };

    let missing = |name| Malformed {
        event_id: event_id.as_ref().map(ToString::to_string),
        fault: Fault::Field(name),
    };
    let sender = event.sender.and_then(valid_user_id).ok_or_else(|| missing("sender"))?;
    let event_type = event.event_type.ok_or_else(|| missing("type"))?;
    let origin_server_ts_ms = event.origin_server_ts.ok_or_else(|| missing("origin_server_ts"))?;
    if !event.content.is_object {
        return Err(missing("content"));
    }
    let Some(event_id) = event_id else {
        return Err(missing("event_id"));
    };

    let content = if event_type == names::ENCRYPTED {
        RawContent::Encrypted { session_id: event.content.session_id }
    } else {
        event.content.into_clear()
    };
    Ok(Wire::Sticky(RawSticky {
        event_id,
        sender,
        event_type,
        origin_server_ts_ms,
        duration_ms,
        remaining_ms: event.unsigned.remaining.value(),
        content,
        redacts,
    }))
}

/// Returns the id and the sender of an encrypted sticky event; `None` for any other event.
pub(crate) fn encrypted_event(event: &RawValue) -> Option<(Cow<'_, EventId>, Cow<'_, UserId>)> {
    // A search of the text comes first, so that an event in the clear is read only once, by the map.
    if !event.get().contains(names::ENCRYPTED) {
        return None;
    }
    match read(event).ok()? {
        Wire::Sticky(RawSticky {
            event_id, sender, content: RawContent::Encrypted { .. }, ..
        }) => Some((event_id, sender)),
        _ => None,
    }
}

/// What decryption gave back: the type and the content. All else counts as it stands on the outer
/// event, because the sticky object and the timestamps are outside the encryption.
#[derive(Debug, PartialEq, Eq)]
pub struct RawClear<'a> {
    /// The `type` of the decrypted event.
    pub event_type: Cow<'a, str>,
    /// What its content says to the map.
    pub content: RawContent<'a>,
}

/// Reads a decrypted event.
///
/// # Errors
///
/// Returns [`Malformed`] if the text is not a JSON object, or has no type or no content.
pub fn read_decrypted(event: &RawValue) -> Result<RawClear<'_>, Malformed> {
    let event = parse(event)?;
    let missing = |name| Malformed {
        event_id: event.event_id.as_deref().map(str::to_owned),
        fault: Fault::Field(name),
    };
    let event_type = event.event_type.ok_or_else(|| missing("type"))?;
    if !event.content.is_object {
        return Err(missing("content"));
    }
    Ok(RawClear { event_type, content: event.content.into_clear() })
}

fn parse(event: &RawValue) -> Result<Event<'_>, Malformed> {
    let text = event.get();
    if text.len() > MAX_EVENT_BYTES {
        let fault = Fault::TooLong { bytes: text.len() };
        return Err(Malformed { event_id: id_of(text), fault });
    }
    // The quick reading has a result for nearly every event.
    let mut read = Event::default();
    if quick::read(event, &mut read).is_some() {
        return Ok(read);
    }
    careful::read(text).map_err(|error| {
        let fault = Fault::Json { line: error.line(), column: error.column() };
        Malformed { event_id: id_of(text), fault }
    })
}

/// Returns the id of an event that could not be read otherwise, for the log.
fn id_of(text: &str) -> Option<String> {
    let event_id = careful::text(text, &["event_id"])?;
    valid_event_id(event_id).map(|event_id| event_id.to_string())
}

/// Returns what a malformed event names as its sender, whatever that is.
pub(crate) fn sender_of(event: &RawValue) -> Option<Cow<'_, str>> {
    careful::text(event.get(), &["sender"])
}

/// Returns the content of an event, as text.
pub(crate) fn content(text: &str) -> Result<&RawValue, serde_json::Error> {
    careful::content(text)
}

/// The longest identifier, in bytes ("Appendices", "Identifier grammar" of the specification). Ruma, as
/// matrix-sdk builds it, takes any length.
const MAX_ID_BYTES: usize = 255;

fn valid_event_id(text: Cow<'_, str>) -> Option<Cow<'_, EventId>> {
    match text {
        text if text.len() > MAX_ID_BYTES => None,
        Cow::Borrowed(text) => <&EventId>::try_from(text).ok().map(Cow::Borrowed),
        Cow::Owned(text) => EventId::parse(text).ok().map(Cow::Owned),
    }
}

fn valid_user_id(text: Cow<'_, str>) -> Option<Cow<'_, UserId>> {
    match text {
        text if text.len() > MAX_ID_BYTES => None,
        Cow::Borrowed(text) => <&UserId>::try_from(text).ok().map(Cow::Borrowed),
        Cow::Owned(text) => UserId::parse(text).ok().map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests;
