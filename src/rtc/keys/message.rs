//! Messages: a key on its way between two devices, in either dialect.
//!
//! In: the type and the content of a to-device message that was decrypted. Out: what it says, or the field that is
//! missing or malformed; and our own messages. Never: who sent it.

use std::fmt;

use ruma::{
    OwnedRoomId, RoomId,
    serde::{Base64, base64::Standard},
};
use serde::Serialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{MediaKey, Participant};
use crate::{rtc::dialect::Dialect, wire::names};

/// How long a key of an Element Call client may be, in bytes: matrix-js-sdk 43 makes 16. More than 256 bits are no
/// better, and a hash uses at most 64 bytes as they stand.
const ELEMENT_CALL_LENGTH: std::ops::RangeInclusive<usize> = 16..=64;

/// The one format of MSC4143: unpadded base64.
const FORMAT: u64 = 0;

/// What a key message says. It proves nothing by itself.
#[derive(Clone)]
#[non_exhaustive]
pub struct KeyMessage {
    /// The room of the session.
    pub room_id: OwnedRoomId,
    /// The member whose key it is. `None` from older Element Call clients, which do not say.
    pub member_id: Option<String>,
    /// The device that the message claims to be from, in Element Call's form.
    pub claimed_device: Option<String>,
    /// The index of the key.
    pub index: u8,
    /// The key.
    pub key: MediaKey,
    /// When it was sent, in milliseconds since the Unix epoch on the sender's clock, in Element Call's form.
    pub sent_ms: Option<u64>,
}

impl fmt::Debug for KeyMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyMessage")
            .field("room_id", &self.room_id)
            .field("member_id", &self.member_id)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl KeyMessage {
    /// Reads the content of a to-device message, in the dialect of its type.
    ///
    /// # Errors
    ///
    /// The name of the field that is missing or malformed. Reject the message.
    pub fn read(dialect: Dialect, content: Map<String, Value>) -> Result<Self, &'static str> {
        match dialect {
            Dialect::Msc4143 => read_msc4143(content),
            Dialect::ElementCall => read_element_call(content),
        }
    }

    /// Returns the dialect of a type of to-device messages. `None` for a type without keys.
    pub fn dialect_of(event_type: &str) -> Option<Dialect> {
        match event_type {
            names::ELEMENT_CALL_KEYS => Some(Dialect::ElementCall),
            other if names::RTC_KEY.contains(&other) => Some(Dialect::Msc4143),
            _ => None,
        }
    }
}

fn read_msc4143(mut content: Map<String, Value>) -> Result<KeyMessage, &'static str> {
    let key = take_key(content.get_mut("media_key"), "media_key.key")?;
    if content.get("format").and_then(Value::as_u64) != Some(FORMAT) {
        return Err("format");
    }
    let key = decode(&key, |length| length == MediaKey::LENGTH).ok_or("media_key.key")?;
    Ok(KeyMessage {
        room_id: room_id(&content)?,
        member_id: Some(text(content.get("member_id")).ok_or("member_id")?),
        claimed_device: None,
        index: index(content.get("media_key")).ok_or("media_key.index")?,
        key,
        sent_ms: None,
    })
}

fn read_element_call(mut content: Map<String, Value>) -> Result<KeyMessage, &'static str> {
    let key = take_key(content.get_mut("keys"), "keys.key")?;
    let key = decode(&key, |length| ELEMENT_CALL_LENGTH.contains(&length)).ok_or("keys.key")?;
    let member = content.get("member").and_then(Value::as_object).ok_or("member")?;
    let member_id = match member.get("id") {
        None => None,
        id => Some(text(id).ok_or("member.id")?),
    };
    let claimed = text(member.get("claimed_device_id")).ok_or("member.claimed_device_id")?;
    Ok(KeyMessage {
        room_id: room_id(&content)?,
        member_id,
        claimed_device: Some(claimed),
        index: index(content.get("keys")).ok_or("keys.index")?,
        key,
        sent_ms: content.get("sent_ts").and_then(Value::as_u64),
    })
}

/// Takes the text of the key out of the content, so that it can be overwritten.
fn take_key(
    object: Option<&mut Value>,
    field: &'static str,
) -> Result<Zeroizing<String>, &'static str> {
    let key = object.and_then(Value::as_object_mut).and_then(|object| object.get_mut("key"));
    match key.map(Value::take) {
        Some(Value::String(key)) => Ok(Zeroizing::new(key)),
        _ => Err(field),
    }
}

/// Decodes a key, padded or not. Element Call pads, and the padding changes nothing in the key.
fn decode(text: &str, is_length: impl FnOnce(usize) -> bool) -> Option<MediaKey> {
    let bytes = Base64::<Standard>::parse(text).ok()?.into_inner();
    let bytes = Zeroizing::new(bytes);
    is_length(bytes.len()).then(|| MediaKey::new(bytes))
}

fn room_id(content: &Map<String, Value>) -> Result<OwnedRoomId, &'static str> {
    let room_id = content.get("room_id").and_then(Value::as_str);
    room_id.and_then(|room_id| RoomId::parse(room_id).ok()).ok_or("room_id")
}

fn index(object: Option<&Value>) -> Option<u8> {
    object?.get("index")?.as_u64()?.try_into().ok()
}

fn text(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).map(str::to_owned)
}

#[derive(Serialize)]
struct WrittenKey<'a> {
    index: u8,
    key: &'a str,
}

#[derive(Serialize)]
struct WrittenMsc4143<'a> {
    room_id: &'a RoomId,
    member_id: &'a str,
    media_key: WrittenKey<'a>,
    format: u64,
}

#[derive(Serialize)]
struct WrittenElementCall<'a> {
    keys: WrittenKey<'a>,
    room_id: &'a RoomId,
    member: WrittenMember<'a>,
    session: WrittenSession,
    sent_ts: u64,
}

#[derive(Serialize)]
struct WrittenMember<'a> {
    id: &'a str,
    claimed_device_id: &'a str,
}

/// The same for all sessions: nobody looks at it.
#[derive(Serialize)]
struct WrittenSession {
    application: &'static str,
    call_id: &'static str,
    scope: &'static str,
}

/// Writes a key of ours as a to-device message: its type, and its content as JSON.
#[cfg_attr(not(feature = "media-keys"), allow(dead_code, reason = "the driver sends"))]
pub(super) fn write(
    dialect: Dialect,
    room_id: &RoomId,
    own: &Participant,
    (index, key): (u8, &MediaKey),
    now_ms: u64,
) -> serde_json::Result<(&'static str, Zeroizing<String>)> {
    let mut base64 = Zeroizing::new(Base64::<Standard, _>::new(key.as_bytes()).encode());
    let (event_type, content) = match dialect {
        Dialect::Msc4143 => {
            let content = serde_json::to_string(&WrittenMsc4143 {
                room_id,
                member_id: &own.member_id,
                media_key: WrittenKey { index, key: &base64 },
                format: FORMAT,
            });
            (names::RTC_KEY[1], content)
        }
        Dialect::ElementCall => {
            // As Element Call does.
            while base64.len() % 4 != 0 {
                base64.push('=');
            }
            let session = WrittenSession { application: "m.call", call_id: "", scope: "m.room" };
            let member =
                WrittenMember { id: &own.member_id, claimed_device_id: own.device_id.as_str() };
            let keys = WrittenKey { index, key: &base64 };
            let content = WrittenElementCall { keys, room_id, member, session, sent_ts: now_ms };
            (names::ELEMENT_CALL_KEYS, serde_json::to_string(&content))
        }
    };
    Ok((event_type, Zeroizing::new(content?)))
}
