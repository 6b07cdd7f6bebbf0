//! How JSON is read that may be anything: an odd value in an optional field costs nobody the event.
//!
//! In: serde's events. Out: what a [`Take`] makes of them, and its default for all else.

use std::{borrow::Cow, fmt};

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

/// Reads which of some known names an object's key is. The key is never copied. An escaped spelling of
/// a name is that name.
pub(super) struct Name(pub(super) &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| *name == key))
    }

    fn visit_bytes<E>(self, key: &[u8]) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| name.as_bytes() == key))
    }
}

/// Reads a [`Name`] in an object that somebody in the room wrote.
pub(super) struct AnyName(pub(super) &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for AnyName {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        // Bytes: a key that is no Unicode (half a surrogate pair) is not one of ours.
        deserializer.deserialize_bytes(Name(self.0))
    }
}

/// What is made of a JSON value. A value of a kind that an implementation does not name becomes the
/// default.
pub(super) trait Take<'de>: Sized {
    type Value: Default;

    fn text(self, _: Cow<'de, str>) -> Self::Value {
        Self::Value::default()
    }

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::Value::default())
    }

    fn object<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        pass_over(map)?;
        Ok(Self::Value::default())
    }
}

/// Passes over the members of an object. Why not as entries of [`IgnoredAny`]? Their keys must be
/// Unicode.
pub(super) fn pass_over<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_key_seed(AnyName(&[]))?.is_some() {
        map.next_value::<IgnoredAny>()?;
    }
    Ok(())
}

/// A seed that takes any JSON value and hands the kinds that count to a [`Take`].
pub(super) struct Lenient<T>(pub(super) T);

impl<'de, T: Take<'de>> DeserializeSeed<'de> for Lenient<T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Take<'de>> Visitor<'de> for Lenient<T> {
    type Value = T::Value;

    /// Only an object is ever required; elsewhere any value will do.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(T::Value::default())
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(T::Value::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(T::Value::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(T::Value::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(T::Value::default())
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(self.0.text(Cow::Borrowed(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        self.0.array(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.0.object(map)
    }
}

pub(super) struct Text;

impl<'de> Take<'de> for Text {
    type Value = Option<Cow<'de, str>>;

    fn text(self, text: Cow<'de, str>) -> Self::Value {
        Some(text)
    }
}

/// Reads a natural number, which saturates. Any other number counts as missing: `-1`, and also `1000.0`,
/// because canonical JSON has no floats.
pub(super) struct Natural;

impl<'de> DeserializeSeed<'de> for Natural {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(None);
        }
        Ok(Some(text.parse().unwrap_or(u64::MAX)))
    }
}
