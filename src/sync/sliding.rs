//! Sliding sync: a connection of our own, which asks for nothing but sticky events.
//!
//! In: responses and failures. Out: the next request, how long to wait before it, and the state to
//! show. [`Connection`] is pure; [`Request`] is ruma's request with a response that reads only what
//! is ours.
//!
//! Why a connection of our own? matrix-sdk drops the extension, and has no hook to ask for it. One
//! of our own works on any client, whatever its main loop is, and disturbs none: it acknowledges no
//! to-device message, and the server keeps no state for it.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use matrix_sdk::HttpError;
use ruma::{
    OwnedRoomId,
    api::{
        IncomingResponse, Metadata, OutgoingRequest,
        client::sync::sync_events::v5,
        error::{DeserializationError, ErrorKind, IntoHttpError, RetryAfter},
        path_builder::PathBuilder,
    },
    events::StateEventType,
    exports::http,
    presence::PresenceState,
    uint,
};
use serde_json::value::RawValue;

use super::{SyncState, Unsupported};
use crate::wire;

/// How many events a page may have: what the server clamps to.
pub(super) const PAGE: usize = 100;

/// How long the server holds a request while there is nothing new.
const LONG_POLL: Duration = Duration::from_secs(30);

/// How long a request may take beyond what the server holds it.
const SLACK: Duration = Duration::from_secs(15);

/// The wait after the first failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two tries, on average: with jitter it is 30 s at most.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// An answer that took this long was held back by the server, as it should be.
const HELD: Duration = Duration::from_secs(1);

/// How long a server that lacks what we need is left alone before it is asked again.
const UNSUPPORTED_WAIT: Duration = Duration::from_secs(600);

/// ruma's request, answered by a [`Response`].
#[derive(Clone, Debug)]
pub(super) struct Request(v5::Request);

impl Request {
    /// The next request of a connection to the rooms that we are in.
    fn for_all(name: &str, pos: Option<String>, since: Option<String>) -> Self {
        let mut list = v5::request::List::default();
        // With no range the server delivers the events of all joined rooms and sends no `rooms`
        // back. `required_state` must not be empty: ruma leaves an empty one out, and the server
        // answers 400.
        list.room_details.required_state = vec![(StateEventType::RoomCreate, String::new())];
        let mut request = Self::new(name, pos, since);
        request.0.lists.insert("all".to_owned(), list);
        request
    }

    /// The next request of a connection to just these rooms.
    pub(super) fn for_rooms(
        name: &str,
        rooms: &BTreeSet<OwnedRoomId>,
        pos: Option<String>,
        since: Option<String>,
    ) -> Self {
        let mut subscription = v5::request::RoomSubscription::default();
        subscription.required_state = vec![(StateEventType::RoomCreate, String::new())];
        let mut request = Self::new(name, pos, since);
        request.0.timeout = Some(Duration::ZERO);
        request.0.room_subscriptions =
            rooms.iter().map(|room_id| (room_id.clone(), subscription.clone())).collect();
        request
    }

    fn new(name: &str, pos: Option<String>, since: Option<String>) -> Self {
        let mut request = v5::Request::new();
        request.conn_id = Some(name.to_owned());
        request.timeout = Some(LONG_POLL);
        // Looking for sticky events does not make anybody online.
        request.set_presence = PresenceState::Offline;
        request.pos = pos;
        request.extensions.sticky_events.enabled = Some(true);
        request.extensions.sticky_events.limit = Some(uint!(100));
        request.extensions.sticky_events.since = since;
        Self(request)
    }

    /// How long the whole request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.0.timeout.unwrap_or_default() + SLACK
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

/// What is ours of a response. ruma's own would fail as a whole on one room id that is none, and
/// does not know the stable name of the extension.
pub(super) struct Response {
    pub(super) pos: String,
    pub(super) next_batch: Option<String>,
    pub(super) rooms: Vec<(OwnedRoomId, Vec<Box<RawValue>>)>,
}

impl Response {
    /// How many events it has, of all rooms.
    pub(super) fn len(&self) -> usize {
        self.rooms.iter().map(|(_, events)| events.len()).sum()
    }

    /// Whether there may be more to come.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= PAGE
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
        Ok(Self {
            pos: pos.into_owned(),
            next_batch: response.next_batch.map(Into::into),
            rooms: response.rooms.into_iter().map(|(room_id, e)| (room_id, own(e))).collect(),
        })
    }
}

/// Where our connection stands.
#[derive(Debug)]
pub(super) struct Connection {
    name: String,
    pos: Option<String>,
    since: Option<String>,
    /// Whether a page came that was not full, since it last started over.
    caught_up: bool,
    failures: u32,
    offline_since: Option<SystemTime>,
    /// How many answers in a row came at once and brought nothing.
    empty_answers: u32,
}

impl Connection {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            pos: None,
            since: None,
            caught_up: false,
            failures: 0,
            offline_since: None,
            empty_answers: 0,
        }
    }

    /// The next request to send.
    pub(super) fn poll_request(&self) -> Request {
        Request::for_all(&self.name, self.pos.clone(), self.since.clone())
    }

    /// Whether the next request asks for all that is live, from its first page on.
    pub(super) fn is_fresh(&self) -> bool {
        self.pos.is_none() && self.since.is_none()
    }

    /// Takes an answer, and how long it took. Returns the state to show, and how long to wait before
    /// the next request: not at all, unless the server answers at once again and again without
    /// having anything to say.
    pub(super) fn handle_response(
        &mut self,
        response: &Response,
        took: Duration,
    ) -> (SyncState, Duration) {
        self.pos = Some(response.pos.clone());
        // Absent when there was nothing new: the old one goes on counting.
        if response.next_batch.is_some() {
            self.since.clone_from(&response.next_batch);
        }
        self.handle_success();
        self.caught_up |= !response.is_full();
        let state = if self.caught_up { SyncState::Live } else { SyncState::CatchingUp };

        if response.len() > 0 || took >= HELD {
            self.empty_answers = 0;
            return (state, Duration::ZERO);
        }
        self.empty_answers = self.empty_answers.saturating_add(1);
        // The first answer of a connection always comes at once, and after it one may.
        let wait = match self.empty_answers.checked_sub(3) {
            None => Duration::ZERO,
            Some(more) => doubled(FIRST_WAIT, more),
        };
        (state, wait)
    }

    /// Something was answered: the waits start over.
    pub(super) fn handle_success(&mut self) {
        self.failures = 0;
        self.offline_since = None;
    }

    /// Forgets where it stood: the next requests bring all that is live once more.
    pub(super) fn start_over(&mut self) {
        self.pos = None;
        self.since = None;
        self.caught_up = false;
    }

    /// Takes a failure. Returns the state to show, if it changes, and how long to wait on average
    /// before the next try.
    pub(super) fn handle_failure(
        &mut self,
        now: SystemTime,
        failure: Failure,
    ) -> (Option<SyncState>, Duration) {
        match failure {
            // The server does not know where we stood, or never let us stand there.
            Failure::UnknownPos if !self.is_fresh() => {
                self.start_over();
                (Some(SyncState::CatchingUp), Duration::ZERO)
            }
            Failure::LoggedOut => (Some(SyncState::LoggedOut), UNSUPPORTED_WAIT),
            Failure::Unsupported(what) => {
                self.start_over();
                (Some(SyncState::Unsupported(what)), UNSUPPORTED_WAIT)
            }
            Failure::RateLimited { retry_after } => {
                let backoff = self.backoff();
                (None, retry_after.map_or(backoff, |wait| wait.max(FIRST_WAIT)))
            }
            Failure::UnknownPos => self.offline(now, "the server refuses every position".into()),
            Failure::Transient(error) => self.offline(now, error),
        }
    }

    fn offline(&mut self, now: SystemTime, error: String) -> (Option<SyncState>, Duration) {
        let since = *self.offline_since.get_or_insert(now);
        (Some(SyncState::Offline { since, error }), self.backoff())
    }

    fn backoff(&mut self) -> Duration {
        let wait = doubled(FIRST_WAIT, self.failures);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// A wait, doubled so many times, up to the longest.
fn doubled(wait: Duration, times: u32) -> Duration {
    wait.saturating_mul(1 << times.min(16)).min(LONGEST_WAIT)
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server does not know our `pos` or `since`.
    UnknownPos,
    /// The access token is not valid, or not any more.
    LoggedOut,
    /// The server lacks what we need.
    Unsupported(Unsupported),
    /// Too many requests.
    RateLimited { retry_after: Option<Duration> },
    /// Anything else; it may go better next time. In words, without the request.
    Transient(String),
}

impl Failure {
    /// A failure of `/versions`, which every homeserver has: one that does not know it is none, or
    /// not one that is up.
    pub(super) fn of_versions(error: HttpError) -> Self {
        match Self::from(error) {
            Self::Unsupported(_) | Self::UnknownPos => {
                Self::Transient("the server does not answer `/versions` like a homeserver".into())
            }
            failure => failure,
        }
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        if let HttpError::RefreshToken(_) = error {
            return Self::LoggedOut;
        }
        let Some(api_error) = error.as_client_api_error() else {
            return Self::Transient(error.to_string());
        };
        match api_error.error_kind() {
            Some(ErrorKind::UnknownPos) => Self::UnknownPos,
            // A token `since` that the server cannot read.
            Some(ErrorKind::BadJson | ErrorKind::InvalidParam) => Self::UnknownPos,
            Some(ErrorKind::UnknownToken(_) | ErrorKind::MissingToken) => Self::LoggedOut,
            Some(ErrorKind::Unrecognized) => Self::Unsupported(Unsupported::SlidingSync),
            Some(ErrorKind::LimitExceeded(limit)) => {
                let retry_after = match limit.retry_after {
                    Some(RetryAfter::Delay(wait)) => Some(wait),
                    _ => None,
                };
                Self::RateLimited { retry_after }
            }
            _ => Self::Transient(error.to_string()),
        }
    }
}
