//! The sticky sections of whole responses: the extension of sliding sync, and v3 `/sync`.
//!
//! In: a response's body. Out: the events of each room. Each event is a slice of the body that nobody
//! has looked into yet. A malformed room or event costs nothing else.

use std::{borrow::Cow, fmt};

use ruma::{OwnedRoomId, RoomId};
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, SeqAccess};
use serde_json::value::RawValue;

use super::{
    fields::Either,
    lenient::{Lenient, Name, Take, Text},
    names,
};

/// The events of each room, in the order of the response.
pub type RoomEvents<'a> = Vec<(OwnedRoomId, Vec<&'a RawValue>)>;

/// What a response of sliding sync has for this crate (MSC4480).
#[derive(Default)]
#[non_exhaustive]
pub struct SlidingResponse<'a> {
    /// The position of the connection. Every valid response has one.
    pub pos: Option<Cow<'a, str>>,
    /// The position in the stream of sticky events. It is absent if there was nothing new.
    pub next_batch: Option<Cow<'a, str>>,
    /// The sticky events.
    pub rooms: RoomEvents<'a>,
}

/// What a response of v3 `/sync` has for this crate ([MSC4354], "Sync API changes").
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
#[derive(Default)]
#[non_exhaustive]
pub struct V3Response<'a> {
    /// The token of the response.
    pub next_batch: Option<Cow<'a, str>>,
    /// The sticky section of each joined room.
    pub sections: RoomEvents<'a>,
    /// The timeline of each joined room. A sticky event stands there or in the section.
    pub timelines: RoomEvents<'a>,
}

// Neither Debug shows the events, because the text of one may carry a delay id.

impl fmt::Debug for SlidingResponse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlidingResponse")
            .field("rooms", &self.rooms.len())
            .field("events", &count(&self.rooms))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for V3Response<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("V3Response")
            .field("sections", &count(&self.sections))
            .field("timelines", &count(&self.timelines))
            .finish_non_exhaustive()
    }
}

fn count(rooms: &RoomEvents<'_>) -> usize {
    rooms.iter().map(|(_, events)| events.len()).sum()
}

/// Reads a response of sliding sync.
///
/// # Errors
///
/// Returns serde's error if the body is not a JSON object. The server, or a proxy before it, sent
/// something else: treat it as a failed request.
pub fn read_sliding(body: &[u8]) -> Result<SlidingResponse<'_>, serde_json::Error> {
    read_object(body, InSliding)
}

/// Reads a response of v3 `/sync`.
///
/// # Errors
///
/// Returns serde's error if the body is not a JSON object. The server, or a proxy before it, sent
/// something else: treat it as a failed request.
pub fn read_v3(body: &[u8]) -> Result<V3Response<'_>, serde_json::Error> {
    read_object(body, InV3)
}

fn read_object<'a, T: Take<'a>>(body: &'a [u8], take: T) -> Result<T::Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = deserializer.deserialize_map(Lenient(take))?;
    deserializer.end()?;
    Ok(value)
}

struct InSliding;

impl<'de> Take<'de> for InSliding {
    type Value = SlidingResponse<'de>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pos = None;
        let mut extension = Extension::default();
        while let Some(name) = map.next_key_seed(Name(&["pos", "extensions"]))? {
            match name {
                Some(0) => pos = map.next_value_seed(Lenient(Text))?,
                Some(_) => extension = map.next_value_seed(Lenient(InExtensions))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(SlidingResponse { pos, next_batch: extension.next_batch, rooms: extension.rooms })
    }
}

#[derive(Default)]
struct Extension<'a> {
    next_batch: Option<Cow<'a, str>>,
    rooms: RoomEvents<'a>,
}

struct InExtensions;

impl<'de> Take<'de> for InExtensions {
    type Value = Extension<'de>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut extension = Either::default();
        while let Some(name) = map.next_key_seed(Name(&names::EXTENSION))? {
            match name {
                Some(0) => extension.stable = Some(map.next_value_seed(Lenient(InExtension))?),
                Some(_) => {
                    extension.unstable = Some(Some(map.next_value_seed(Lenient(InExtension))?));
                }
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(extension.value().unwrap_or_default())
    }
}

struct InExtension;

impl<'de> Take<'de> for InExtension {
    type Value = Extension<'de>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut extension = Extension::default();
        while let Some(name) = map.next_key_seed(Name(&["next_batch", "rooms"]))? {
            match name {
                Some(0) => extension.next_batch = map.next_value_seed(Lenient(Text))?,
                Some(_) => extension.rooms = map.next_value_seed(Lenient(InRooms(InEvents)))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(extension)
    }
}

struct InV3;

impl<'de> Take<'de> for InV3 {
    type Value = V3Response<'de>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut response = V3Response::default();
        let mut joined = Vec::new();
        while let Some(name) = map.next_key_seed(Name(&["next_batch", "rooms"]))? {
            match name {
                Some(0) => response.next_batch = map.next_value_seed(Lenient(Text))?,
                Some(_) => joined = map.next_value_seed(Lenient(InJoin))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        for (room_id, JoinedRoom { sticky, timeline }) in joined {
            let section = sticky.value().unwrap_or_default();
            if !section.is_empty() {
                response.sections.push((room_id.clone(), section));
            }
            if !timeline.is_empty() {
                response.timelines.push((room_id, timeline));
            }
        }
        Ok(response)
    }
}

struct InJoin;

impl<'de> Take<'de> for InJoin {
    type Value = Vec<(OwnedRoomId, JoinedRoom<'de>)>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut joined = Vec::new();
        while let Some(name) = map.next_key_seed(Name(&["join"]))? {
            match name {
                Some(_) => joined = map.next_value_seed(Lenient(InRooms(InJoinedRoom)))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(joined)
    }
}

#[derive(Default)]
struct JoinedRoom<'a> {
    sticky: Either<Vec<&'a RawValue>>,
    timeline: Vec<&'a RawValue>,
}

#[derive(Clone, Copy)]
struct InJoinedRoom;

impl<'de> Take<'de> for InJoinedRoom {
    type Value = JoinedRoom<'de>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        const NAMES: &[&str] = &[names::SECTION[0], names::SECTION[1], "timeline"];
        let mut room = JoinedRoom::default();
        while let Some(name) = map.next_key_seed(Name(NAMES))? {
            match name {
                Some(0) => room.sticky.stable = Some(map.next_value_seed(Lenient(InEvents))?),
                Some(1) => {
                    room.sticky.unstable = Some(Some(map.next_value_seed(Lenient(InEvents))?));
                }
                Some(_) => room.timeline = map.next_value_seed(Lenient(InEvents))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(room)
    }
}

/// Takes an object that is keyed by room. It passes over a key that is not a room id, with its value.
#[derive(Clone, Copy)]
struct InRooms<T>(T);

impl<'de, T: Take<'de> + Copy> Take<'de> for InRooms<T> {
    type Value = Vec<(OwnedRoomId, T::Value)>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut rooms = Vec::new();
        while let Some(room_id) = map.next_key_seed(Lenient(Text))? {
            let value = map.next_value_seed(Lenient(self.0))?;
            if let Some(Ok(room_id)) = room_id.map(|room_id| RoomId::parse(room_id.as_ref())) {
                rooms.push((room_id, value));
            }
        }
        Ok(rooms)
    }
}

/// Takes the list of `events` of an object.
#[derive(Clone, Copy)]
struct InEvents;

impl<'de> Take<'de> for InEvents {
    type Value = Vec<&'de RawValue>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut events = Vec::new();
        while let Some(name) = map.next_key_seed(Name(&["events"]))? {
            match name {
                Some(_) => events = map.next_value_seed(Lenient(Items))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(events)
    }
}

struct Items;

impl<'de> Take<'de> for Items {
    type Value = Vec<&'de RawValue>;

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(items)
    }
}
