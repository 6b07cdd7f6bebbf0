//! Sliding sync: requests that ask for nothing but sticky events, and what they bring.
//!
//! In: where a connection stands; the body of an answer. Out: ruma's request, and a [`Response`] that
//! reads only the sticky events of it. Never: a decision about when to ask.
//!
//! Why a connection of our own? matrix-sdk drops the extension, and has no hook to ask for it. A
//! connection of our own works on any client, whatever its main loop is, and disturbs no main loop: it
//! acknowledges no to-device message, and the server keeps no state for it.

use std::{collections::BTreeSet, time::Duration};

use ruma::{
    OwnedRoomId,
    api::{
        IncomingResponse, Metadata, OutgoingRequest,
        client::sync::sync_events::v5,
        error::{DeserializationError, IntoHttpError},
        path_builder::PathBuilder,
    },
    events::StateEventType,
    exports::http,
    presence::PresenceState,
    uint,
};
use serde_json::value::RawValue;

use super::source::RoomEvents;
use crate::wire;

/// The largest number of events in a page: the server clamps to it.
pub(super) const MAX_PAGE_EVENTS: usize = 100;

/// How long the server holds a request while there is nothing new.
pub(super) const LONG_POLL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a request may take beyond the time for which the server holds it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// ruma's request, answered by a [`Response`].
#[derive(Clone, Debug)]
pub(super) struct Request(v5::Request);

impl Request {
    /// Asks for the sticky events of all rooms that we are in.
    pub(super) fn for_all(name: &str, pos: Option<String>, since: Option<String>) -> Self {
        let mut list = v5::request::List::default();
        // Without a range the server delivers the events of all joined rooms and sends no `rooms`
        // back. `required_state` must not be empty: ruma leaves an empty one out, and the server
        // then answers 400.
        list.room_details.required_state = vec![(StateEventType::RoomCreate, String::new())];
        let mut request = Self::new(name, pos, since);
        request.0.lists.insert("all".to_owned(), list);
        request
    }

    /// Asks for the sticky events of these rooms only. The server does not hold the request.
    pub(super) fn for_rooms(
        name: &str,
        rooms: &BTreeSet<OwnedRoomId>,
        pos: Option<String>,
        since: Option<String>,
    ) -> Self {
        let mut subscription = v5::request::RoomSubscription::default();
        subscription.required_state = vec![(StateEventType::RoomCreate, String::new())];
        let mut request = Self::new(name, pos, since).without_hold();
        request.0.room_subscriptions =
            rooms.iter().map(|room_id| (room_id.clone(), subscription.clone())).collect();
        request
    }

    fn new(name: &str, pos: Option<String>, since: Option<String>) -> Self {
        let mut request = v5::Request::new();
        request.conn_id = Some(name.to_owned());
        request.timeout = Some(LONG_POLL_TIMEOUT);
        // Looking for sticky events makes nobody appear online.
        request.set_presence = PresenceState::Offline;
        request.pos = pos;
        request.extensions.sticky_events.enabled = Some(true);
        request.extensions.sticky_events.limit = Some(uint!(100));
        request.extensions.sticky_events.since = since;
        Self(request)
    }

    /// Has the server answer at once, even if there is nothing new.
    pub(super) fn without_hold(mut self) -> Self {
        self.0.timeout = Some(Duration::ZERO);
        self
    }

    /// Returns how long the server may hold the request.
    pub(super) fn hold(&self) -> Duration {
        self.0.timeout.unwrap_or_default()
    }

    /// Returns how long the whole request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.hold() + ANSWER_TIMEOUT
    }

    /// Returns the token of the last page that the request knows.
    #[cfg(test)]
    pub(super) fn since(&self) -> Option<&str> {
        self.0.extensions.sticky_events.since.as_deref()
    }

    /// Returns the position on the connection.
    #[cfg(test)]
    pub(super) fn pos(&self) -> Option<&str> {
        self.0.pos.as_deref()
    }
}

impl Metadata for Request {
    const METHOD: http::Method = v5::Request::METHOD;
    const RATE_LIMITED: bool = v5::Request::RATE_LIMITED;
    type Authentication = <v5::Request as Metadata>::Authentication;
    type PathBuilder = <v5::Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = v5::Request::PATH_BUILDER;
}

impl OutgoingRequest for Request {
    type Body = <v5::Request as OutgoingRequest>::Body;
    type EndpointError = <v5::Request as OutgoingRequest>::EndpointError;
    type IncomingResponse = Response;

    fn try_into_http_request_inner(
        self,
        base_url: &str,
        path_builder_input: <Self::PathBuilder as PathBuilder>::Input<'_>,
    ) -> Result<http::Request<Self::Body>, IntoHttpError> {
        self.0.try_into_http_request_inner(base_url, path_builder_input)
    }
}

/// The sticky events of an answer, and where they leave the connection. ruma's own response would
/// fail as a whole on one malformed room id, and does not know the stable name of the extension.
pub(super) struct Response {
    pub(super) page: Page,
    pub(super) rooms: RoomEvents,
}

/// What an answer says besides its events.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) pos: String,
    /// The token of this page; `None` if there was nothing new.
    pub(super) next_batch: Option<String>,
    /// How many events the answer has, of all rooms.
    pub(super) len: usize,
}

impl Page {
    /// Whether the answer shows that the server has the extension. While nothing is sticky, a server
    /// that has it answers like one that does not know it.
    pub(super) fn has_extension(&self) -> bool {
        self.len > 0 || self.next_batch.is_some()
    }

    /// Whether there may be more to come.
    pub(super) fn is_full(&self) -> bool {
        self.len >= MAX_PAGE_EVENTS
    }
}

impl IncomingResponse for Response {
    type EndpointError = <v5::Request as OutgoingRequest>::EndpointError;

    fn try_from_http_response_inner(
        response: http::Response<&[u8]>,
    ) -> Result<Self, DeserializationError> {
        use serde::de::Error as _;

        let response = wire::read_sliding(response.body())?;
        let pos = response.pos.ok_or_else(|| serde_json::Error::missing_field("pos"))?;
        let own = |events: Vec<&RawValue>| events.into_iter().map(ToOwned::to_owned).collect();
        let rooms = response.rooms.into_iter().map(|(room_id, e)| (room_id, own(e))).collect();
        let rooms = RoomEvents(rooms);
        let next_batch = response.next_batch.map(Into::into);
        Ok(Self { page: Page { pos: pos.into_owned(), next_batch, len: rooms.len() }, rooms })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod testing {
    use std::{borrow::Cow, collections::BTreeSet};

    use ruma::api::{
        MatrixVersion, OutgoingRequestExt as _, SupportedVersions, auth_scheme::SendAccessToken,
    };
    use serde_json::Value;

    use super::Request;

    /// Returns the body of a request, and its query.
    pub(in crate::sync) fn sent(request: Request) -> (Value, String) {
        let versions = SupportedVersions {
            versions: [MatrixVersion::V1_14].into(),
            features: BTreeSet::new(),
        };
        let http = request
            .try_into_http_request::<Vec<u8>>(
                "https://hs",
                SendAccessToken::IfRequired("token"),
                Cow::Owned(versions),
            )
            .unwrap();
        let query = http.uri().query().unwrap_or_default().to_owned();
        (serde_json::from_slice(http.body()).unwrap(), query)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::{testing::sent, *};

    #[test]
    fn a_request_for_single_rooms_is_not_held() {
        let rooms = ["!a:hs", "!b:hs"].map(|room| OwnedRoomId::try_from(room).unwrap());
        let request = Request::for_rooms("one-shot", &BTreeSet::from(rooms), None, None);
        assert_eq!(request.timeout(), ANSWER_TIMEOUT);
        let (body, query) = sent(request);
        assert!(query.contains("timeout=0") && query.contains("set_presence=offline"), "{query}");
        let subscription =
            json!({ "timeline_limit": 0, "required_state": [["m.room.create", ""]] });
        assert_eq!(
            body,
            json!({
                "conn_id": "one-shot",
                "room_subscriptions": { "!a:hs": subscription, "!b:hs": subscription },
                "extensions": {
                    "org.matrix.msc4354.sticky_events": { "enabled": true, "limit": 100 },
                },
            })
        );
    }

    #[test]
    fn a_response_needs_a_position() {
        let read = |body: &str| {
            let http = http::Response::new(body.as_bytes());
            Response::try_from_http_response_inner(http)
        };
        assert!(read("{}").is_err());
        assert!(read(r#"{"pos":5}"#).is_err());
        let Response { page, rooms } = read(r#"{"pos":"p","extensions":5}"#).unwrap();
        assert_eq!((page.pos.as_str(), page.next_batch, page.len), ("p", None, 0));
        assert!(rooms.0.is_empty());
    }
}
