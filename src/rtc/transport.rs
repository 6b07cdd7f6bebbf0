//! Transports: how a member's media can be had, as far as the membership says it. No media here.

use std::fmt;

use serde_json::{Map, Value};

use crate::wire::names;

/// A transport, as a membership or a homeserver names it ([MSC4143], "Membership" and "Discovery of
/// transport infrastructure"): an object with a `type`, and whatever else belongs to that. What is
/// not known is kept as it came.
///
/// [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
#[derive(Clone, PartialEq)]
pub struct RtcTransport {
    transport_type: String,
    /// Without `type`.
    fields: Map<String, Value>,
}

/// The types that [`RtcTransport::livekit`] knows: today's ([MSC4195]), and that of an earlier version.
///
/// [MSC4195]: https://github.com/matrix-org/matrix-spec-proposals/pull/4195
const LIVEKIT: [&str; 2] = ["livekit", "m.livekit"];

/// A transport over a LiveKit SFU ([MSC4195]).
///
/// [MSC4195]: https://github.com/matrix-org/matrix-spec-proposals/pull/4195
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveKit<'a> {
    /// The service that gives tokens for the SFU. Newer versions of the proposal have none: there
    /// the member's homeserver is asked.
    pub service_url: Option<&'a str>,
    /// The room on the SFU, where an older client says it.
    pub alias: Option<&'a str>,
}

impl RtcTransport {
    /// A transport of any type, with what belongs to it. A `type` among the fields is not taken.
    pub fn new(transport_type: impl Into<String>, mut fields: Map<String, Value>) -> Self {
        fields.remove("type");
        Self { transport_type: transport_type.into(), fields }
    }

    /// A LiveKit transport, `livekit`, with the service that gives tokens.
    pub fn livekit(service_url: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("livekit_service_url".to_owned(), Value::String(service_url.into()));
        Self::new(names::LIVEKIT[0], fields)
    }

    /// Reads one from JSON; `None` where it is no object, or its `type` no string.
    pub fn from_json(value: Value) -> Option<Self> {
        let Value::Object(mut fields) = value else { return None };
        let Some(Value::String(transport_type)) = fields.remove("type") else { return None };
        Some(Self { transport_type, fields })
    }

    /// Its type, e.g. `livekit`.
    pub fn transport_type(&self) -> &str {
        &self.transport_type
    }

    /// What belongs to it, without the `type`.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// As LiveKit's, if it is that.
    pub fn as_livekit(&self) -> Option<LiveKit<'_>> {
        let text = |name: &str| self.fields.get(name).and_then(Value::as_str);
        names::LIVEKIT.contains(&&*self.transport_type).then(|| LiveKit {
            service_url: text("livekit_service_url"),
            alias: text("livekit_alias"),
        })
    }

    /// As JSON, for a membership.
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
    /// Where the media can be had. It can receive from the same types, unless
    /// [`can_subscribe`](Self::can_subscribe) is set to others.
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
