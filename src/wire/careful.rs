//! The careful reading of an event, with serde_json: it has the last word.
//!
//! In: an event's text. Out: its [`Event`], or why it is no readable JSON object. See `quick` for the
//! reading that comes first.

use std::{borrow::Cow, fmt};

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    fields::{Content, Event, Unsigned},
    lenient::{AnyName, Lenient, Natural, Take, Text, pass_over},
    names,
};

pub(super) fn read(text: &str) -> Result<Event<'_>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let event = deserializer.deserialize_map(EventVisitor)?;
    deserializer.end()?;
    Ok(event)
}

/// Reads one string of an event that could not be read otherwise.
pub(super) fn text<'a>(event: &'a str, name: &'static [&'static str]) -> Option<Cow<'a, str>> {
    let mut deserializer = serde_json::Deserializer::from_str(event);
    deserializer.deserialize_map(Lenient(OnlyText(name))).ok()?
}

/// Returns the content of an event, as text. If there is more than one, the last one counts, as with
/// every name here.
pub(super) fn content(text: &str) -> Result<&RawValue, serde_json::Error> {
    serde_json::Deserializer::from_str(text)
        .deserialize_map(Lenient(OnlyContent))?
        .ok_or_else(|| serde::de::Error::missing_field("content"))
}

struct EventVisitor;

impl<'de> Visitor<'de> for EventVisitor {
    type Value = Event<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        const NAMES: &[&str] = &[
            "event_id",
            "sender",
            "type",
            "origin_server_ts",
            "redacts",
            names::STICKY[0],
            names::STICKY[1],
            "content",
            "unsigned",
        ];
        let mut event = Event::default();
        // A key that is there twice: the last one counts, as in every other Matrix client.
        while let Some(name) = map.next_key_seed(AnyName(NAMES))? {
            match name {
                Some(0) => event.event_id = map.next_value_seed(Lenient(Text))?,
                Some(1) => event.sender = map.next_value_seed(Lenient(Text))?,
                Some(2) => event.event_type = map.next_value_seed(Lenient(Text))?,
                Some(3) => event.origin_server_ts = map.next_value_seed(Natural)?,
                Some(4) => event.redacts = map.next_value_seed(Lenient(Text))?,
                Some(5) => event.sticky.stable = map.next_value_seed(Lenient(InSticky))?,
                Some(6) => event.sticky.unstable = Some(map.next_value_seed(Lenient(InSticky))?),
                Some(7) => event.content = map.next_value_seed(Lenient(InContent))?,
                Some(8) => event.unsigned = map.next_value_seed(Lenient(InUnsigned))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(event)
    }
}

/// Takes the string that an event has under this name.
struct OnlyText(&'static [&'static str]);

impl<'de> Take<'de> for OnlyText {
    type Value = Option<Cow<'de, str>>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut text = None;
        while let Some(name) = map.next_key_seed(AnyName(self.0))? {
            match name {
                Some(_) => text = map.next_value_seed(Lenient(Text))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(text)
    }
}

/// Takes the content of an event.
struct OnlyContent;

impl<'de> Take<'de> for OnlyContent {
    type Value = Option<&'de RawValue>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut content = None;
        while let Some(name) = map.next_key_seed(AnyName(&["content"]))? {
            match name {
                Some(_) => content = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(content)
    }
}

/// Takes the `duration_ms` of the sticky object.
struct InSticky;

impl<'de> Take<'de> for InSticky {
    type Value = Option<u64>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut duration_ms = None;
        while let Some(name) = map.next_key_seed(AnyName(&["duration_ms"]))? {
            match name {
                Some(_) => duration_ms = map.next_value_seed(Natural)?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(duration_ms)
    }
}

struct InContent;

impl<'de> Take<'de> for InContent {
    type Value = Content<'de>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        const NAMES: &[&str] =
            &[names::STICKY_KEY[0], names::STICKY_KEY[1], "session_id", "redacts"];
        let mut content = Content { is_object: true, ..Content::default() };
        while let Some(name) = map.next_key_seed(AnyName(NAMES))? {
            match name {
                Some(0) => content.sticky_key.stable = map.next_value_seed(Lenient(Text))?,
                Some(1) => content.sticky_key.unstable = Some(map.next_value_seed(Lenient(Text))?),
                other => {
                    content.has_more = true;
                    match other {
                        Some(2) => content.session_id = map.next_value_seed(Lenient(Text))?,
                        Some(3) => content.redacts = map.next_value_seed(Lenient(Text))?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
            }
        }
        Ok(content)
    }
}

struct InUnsigned;

impl<'de> Take<'de> for InUnsigned {
    type Value = Unsigned;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        const NAMES: &[&str] = &[names::REMAINING[0], names::REMAINING[1], "redacted_because"];
        let mut unsigned = Unsigned::default();
        while let Some(name) = map.next_key_seed(AnyName(NAMES))? {
            match name {
                Some(0) => unsigned.remaining.stable = map.next_value_seed(Natural)?,
                Some(1) => {
                    unsigned.remaining.unstable = Some(map.next_value_seed(Natural)?);
                }
                Some(_) => unsigned.redacted = map.next_value_seed(Lenient(IsObject))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(unsigned)
    }
}

/// Takes whether the value is an object.
struct IsObject;

impl<'de> Take<'de> for IsObject {
    type Value = bool;

    fn object<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        pass_over(map)?;
        Ok(true)
    }
}
