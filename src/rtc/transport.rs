//! Transports: how a member's media can be had, as its membership says.
//!
//! Plain values, which are read from JSON and written to it. Never: media.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::slot::without_type;
use crate::wire::names;

/// A transport, as a membership or a homeserver names it ([MSC4143], "Membership" and "Discovery of
/// transport infrastructure"): an object with a `type` and more fields. Unknown fields are kept as they came.
///
/// [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
#[derive(Clone, PartialEq)]
pub struct RtcTransport {
    transport_type: String,
    /// Without `type`.
    fields: Map<String, Value>,
}

/// The types of LiveKit transports: today's ([MSC4195]), and that of an earlier version.
///
/// [MSC4195]: https://github.com/matrix-org/matrix-spec-proposals/pull/4195
const LIVEKIT: [&str; 2] = ["livekit", "m.livekit"];

/// A transport over a LiveKit SFU ([MSC4195]).
///
/// [MSC4195]: https://github.com/matrix-org/matrix-spec-proposals/pull/4195
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveKit<'a> {
    /// The URL of the service that gives tokens for the SFU. In newer versions of the proposal the member's
    /// homeserver gives them, and this is `None`.
    pub service_url: Option<&'a str>,
    /// The room on the SFU, if an older client names it.
    pub alias: Option<&'a str>,
}

impl RtcTransport {
    /// Creates a transport of any type, with its other fields. A `type` among them is left out.
    ///
    /// # Errors
    ///
    /// The fields are not a JSON object, or cannot be written as one.
    pub fn new(
        transport_type: impl Into<String>,
        fields: &impl Serialize,
    ) -> serde_json::Result<Self> {
        Ok(Self { transport_type: transport_type.into(), fields: without_type(fields)? })
    }

    /// Creates a LiveKit transport with the URL of the service that gives tokens.
    pub fn livekit(service_url: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("livekit_service_url".to_owned(), Value::String(service_url.into()));
        Self { transport_type: LIVEKIT[0].to_owned(), fields }
    }

    /// Reads a transport from JSON. `None` if that is not an object with a string as its `type`.
    pub fn from_json(value: Value) -> Option<Self> {
        let Value::Object(mut fields) = value else { return None };
        let Some(Value::String(transport_type)) = fields.remove("type") else { return None };
        Some(Self { transport_type, fields })
    }

    /// Returns the type, e.g. `livekit`.
    pub fn transport_type(&self) -> &str {
        &self.transport_type
    }

    /// Returns all other fields, without `type`.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Returns what it says as a LiveKit transport, if it is one.
    pub fn as_livekit(&self) -> Option<LiveKit<'_>> {
        let text = |name: &str| self.fields.get(name).and_then(Value::as_str);
        names::LIVEKIT.contains(&&*self.transport_type).then(|| LiveKit {
            service_url: text("livekit_service_url"),
            alias: text("livekit_alias"),
        })
    }

    /// Returns the transport as JSON, for a membership.
    pub fn to_json(&self) -> Value {
        let mut object = self.fields.clone();
        object.insert("type".to_owned(), Value::String(self.transport_type.clone()));
        Value::Object(object)
    }
}

impl fmt::Debug for RtcTransport {
    /// Without its fields: they may be large, and hold what gives access.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RtcTransport").field(&self.transport_type).finish()
    }
}

/// The transports of a membership.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transports {
    /// Where the member's media can be had.
    pub published: Vec<RtcTransport>,
    /// The types that the member can receive from.
    pub can_subscribe: Vec<String>,
}

impl Transports {
    /// Creates transports of a member who publishes there, and can receive from the same types.
    pub fn publishing(published: impl IntoIterator<Item = RtcTransport>) -> Self {
        let published: Vec<_> = published.into_iter().collect();
        let mut can_subscribe: Vec<_> =
            published.iter().map(|it| it.transport_type.clone()).collect();
        can_subscribe.sort_unstable();
        can_subscribe.dedup();
        Self { published, can_subscribe }
    }

    /// As JSON, for a membership.
    pub(super) fn to_json(&self) -> Value {
        let published = self.published.iter().map(RtcTransport::to_json).collect();
        let can_subscribe = self.can_subscribe.iter().cloned().map(Value::String).collect();
        let fields = [("published", Value::Array(published)), ("can_subscribe", can_subscribe)];
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

impl<T: IntoIterator<Item = RtcTransport>> From<T> for Transports {
    fn from(published: T) -> Self {
        Self::publishing(published)
    }
}
