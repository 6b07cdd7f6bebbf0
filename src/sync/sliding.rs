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

use matrix_sdk::{HttpError, RefreshTokenError};
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

use super::state::{SyncState, Unsupported};
use crate::{
    request::{describe, is_refresh_refused},
    wire,
};

/// How many events a page may have: what the server clamps to.
pub(super) const PAGE: usize = 100;

/// How many pages in a row may have nothing that we did not know while we catch up: after a start
/// over there can be many. With each page having a token of its own nothing else would tell that a
/// server gives the same ones again and again.
pub(super) const KNOWN_PAGES: u32 = 100;

/// How long the server holds a request while there is nothing new.
const LONG_POLL: Duration = Duration::from_secs(30);

/// How long a request may take beyond what the server holds it.
const SLACK: Duration = Duration::from_secs(15);

/// The wait after the first failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two tries, on average: with jitter it is 30 s at most.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// A server that loses our position again within this time is not asked again at once.
const LOST_AGAIN: Duration = Duration::from_secs(60);

/// The longest that a server can tell us to wait: one that means more is asked once too often.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);

/// An answer that took this long was held back by the server, as it should be.
const HELD: Duration = Duration::from_secs(1);

/// How often in a row a server may deny what it has had before we believe it. During a rolling
/// restart a worker that does not know an endpoint yet answers in place of one that does.
const DENIALS: u32 = 6;

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

    /// Whether it shows that the server has the extension. While nothing is sticky, one that has it
    /// answers as one that does not know it.
    pub(super) fn has_extension(&self) -> bool {
        self.len() > 0 || self.next_batch.is_some()
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
    /// How many answers in a row came at once and brought nothing new.
    empty_answers: u32,
    /// How many pages in a row had nothing that the maps did not know.
    known_pages: u32,
    /// Whether anything was answered since the server last lacked what we need, and how often in a
    /// row it has denied that it has it.
    was_answered: bool,
    denials: u32,
    /// When the server last did not know our position, and how often in a row it lost one soon.
    lost_at: Option<SystemTime>,
    lost_again: u32,
    /// Whether the last request failed. Then the next one is not held by the server, so that it
    /// shows at once when all is well again.
    recovering: bool,
}

/// How long to wait before the next try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wait {
    /// At least so long, ...
    pub(super) least: Duration,
    /// ... and after that so long on average: to be jittered.
    pub(super) about: Duration,
}

impl Wait {
    fn about(about: Duration) -> Self {
        Self { least: Duration::ZERO, about }
    }
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
            known_pages: 0,
            was_answered: false,
            denials: 0,
            lost_at: None,
            lost_again: 0,
            recovering: false,
        }
    }

    /// The next request to send.
    pub(super) fn poll_request(&self) -> Request {
        let mut request = Request::for_all(&self.name, self.pos.clone(), self.since.clone());
        // Until it has caught up it is not held either: after a full page there may be nothing
        // more, and then the server would hold the request that tells so.
        if self.recovering || !self.caught_up {
            request.0.timeout = Some(Duration::ZERO);
        }
        request
    }

    /// Whether the next request asks for all that is live, from its first page on.
    pub(super) fn is_fresh(&self) -> bool {
        self.pos.is_none() && self.since.is_none()
    }

    /// Takes an answer, and how long it took. Returns the state to show, and how long to wait before
    /// the next request: not at all, unless the server answers at once again and again without
    /// having anything new to say.
    pub(super) fn handle_response(
        &mut self,
        response: &Response,
        took: Duration,
    ) -> (SyncState, Duration) {
        // The same page again is nothing new, however full it is.
        let most = if self.caught_up { 3 } else { KNOWN_PAGES };
        let is_new = response.len() > 0
            && self.known_pages < most
            && response.next_batch.is_some()
            && response.next_batch != self.since;
        self.pos = Some(response.pos.clone());
        // Absent when there was nothing new: the old one goes on counting.
        if response.next_batch.is_some() {
            self.since.clone_from(&response.next_batch);
        }
        self.handle_success();
        self.caught_up |= !response.is_full();
        let state = if self.caught_up { SyncState::Live } else { SyncState::CatchingUp };

        if is_new || took >= HELD {
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

    /// Takes how many events of a page were not known before.
    pub(super) fn handle_kept(&mut self, of: usize, kept: usize) {
        match (of, kept) {
            (0, _) => {}
            (_, 0) => self.known_pages = self.known_pages.saturating_add(1),
            _ => self.known_pages = 0,
        }
    }

    /// Something was answered: the waits start over.
    pub(super) fn handle_success(&mut self) {
        self.was_answered = true;
        self.denials = 0;
        self.failures = 0;
        self.offline_since = None;
        self.recovering = false;
    }

    /// Forgets where it stood: the next requests bring all that is live once more.
    pub(super) fn start_over(&mut self) {
        self.pos = None;
        self.since = None;
        self.caught_up = false;
    }

    /// Takes a failure. Returns the state to show, if it changes, and how long to wait before the
    /// next try; who is logged out waits for another token instead.
    pub(super) fn handle_failure(
        &mut self,
        now: SystemTime,
        failure: Failure,
    ) -> (Option<SyncState>, Wait) {
        self.recovering = true;
        match failure {
            // The server does not know where we stood, or never let us stand there.
            Failure::UnknownPos if !self.is_fresh() => {
                self.start_over();
                (Some(SyncState::CatchingUp), self.lost(now))
            }
            Failure::LoggedOut => (Some(SyncState::LoggedOut), Wait::default()),
            // Once that is no outage.
            Failure::TokenChanged if self.failures == 0 => (None, self.backoff()),
            Failure::TokenChanged => self.offline(now, "each access token is refused".into()),
            Failure::Unsupported(what) if self.was_answered && self.denials < DENIALS => {
                self.denials += 1;
                self.offline(now, what.to_string())
            }
            Failure::Unsupported(what) => {
                self.was_answered = false;
                self.denials = 0;
                self.start_over();
                (Some(SyncState::Unsupported(what)), Wait::about(UNSUPPORTED_WAIT))
            }
            Failure::RateLimited { .. } => {
                let backoff = self.backoff();
                let Some(least) = failure.retry_after(now) else { return (None, backoff) };
                (None, Wait { least, about: (least / 4).max(FIRST_WAIT) })
            }
            Failure::UnknownPos => self.offline(now, "the server refuses every position".into()),
            Failure::TimedOut => self.offline(now, "the server did not answer in time".into()),
            Failure::Transient(error) => self.offline(now, error),
        }
    }

    fn offline(&mut self, now: SystemTime, error: String) -> (Option<SyncState>, Wait) {
        let since = *self.offline_since.get_or_insert(now);
        (Some(SyncState::Offline { since, error }), self.backoff())
    }

    fn backoff(&mut self) -> Wait {
        let wait = doubled(FIRST_WAIT, self.failures);
        self.failures = self.failures.saturating_add(1);
        Wait::about(wait)
    }

    /// Once it is asked again at once. A server that loses each position soon after it gave it
    /// would be asked for everything again and again.
    fn lost(&mut self, now: SystemTime) -> Wait {
        let since_last = self.lost_at.replace(now).map(|last| now.duration_since(last));
        match since_last {
            Some(Ok(time)) if time < LOST_AGAIN => {
                let wait = doubled(FIRST_WAIT, self.lost_again);
                self.lost_again = self.lost_again.saturating_add(1);
                Wait::about(wait)
            }
            _ => {
                self.lost_again = 0;
                Wait::default()
            }
        }
    }
}

/// A wait, doubled so many times, up to the longest.
pub(super) fn doubled(wait: Duration, times: u32) -> Duration {
    wait.saturating_mul(1 << times.min(16)).min(LONGEST_WAIT)
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server does not know our `pos` or `since`.
    UnknownPos,
    /// The access token is not valid, or not any more.
    LoggedOut,
    /// The access token was not valid, and was refreshed while the request was on its way: the new
    /// one may be.
    TokenChanged,
    /// The server lacks what we need.
    Unsupported(Unsupported),
    /// Too many requests.
    RateLimited { retry_after: Option<RetryAfter> },
    /// The server has not answered in time.
    TimedOut,
    /// Anything else; it may go better next time. In words, without the request.
    Transient(String),
}

impl Failure {
    /// How long the server wants to be left alone, if it said so.
    pub(super) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let Self::RateLimited { retry_after } = self else { return None };
        let wait = match retry_after.as_ref()? {
            RetryAfter::Delay(wait) => *wait,
            RetryAfter::DateTime(at) => at.duration_since(now).unwrap_or_default(),
        };
        Some(wait.min(LONGEST_RETRY_AFTER))
    }

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
        if let HttpError::RefreshToken(error) = &error {
            return Self::of_refresh(error);
        }
        if matches!(&error, HttpError::Reqwest(error) if error.is_timeout()) {
            return Self::TimedOut;
        }
        let Some(api_error) = error.as_client_api_error() else {
            return Self::Transient(describe(&error));
        };
        match api_error.error_kind() {
            Some(ErrorKind::UnknownPos) => Self::UnknownPos,
            // A token `since` that the server cannot read.
            Some(ErrorKind::BadJson | ErrorKind::InvalidParam) => Self::UnknownPos,
            Some(ErrorKind::UnknownToken(_) | ErrorKind::MissingToken) => Self::LoggedOut,
            Some(ErrorKind::Unrecognized) => Self::Unsupported(Unsupported::SlidingSync),
            Some(ErrorKind::LimitExceeded(limit)) => {
                Self::RateLimited { retry_after: limit.retry_after }
            }
            _ => Self::Transient(describe(&error)),
        }
    }
}

impl Failure {
    /// The access token had to be refreshed, and was not.
    fn of_refresh(error: &RefreshTokenError) -> Self {
        if is_refresh_refused(error) {
            Self::LoggedOut
        } else {
            Self::Transient("could not refresh the access token".into())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::time::UNIX_EPOCH;

    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{event, secs};

    const LONG: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + secs(seconds)
    }

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn page(pos: &str, next_batch: Option<&str>, events: usize) -> Response {
        let events = (0..events).map(|i| event(&format!("$e{i}")).raw()).collect();
        let room_id = OwnedRoomId::try_from("!room:hs").unwrap();
        Response {
            pos: pos.to_owned(),
            next_batch: next_batch.map(ToOwned::to_owned),
            rooms: vec![(room_id, events)],
        }
    }

    fn connection() -> Connection {
        Connection::new("sticky-1".to_owned())
    }

    /// One that has had an answer.
    fn live() -> Connection {
        let mut connection = connection();
        let (state, _) = connection.handle_response(&page("p1", Some("b1"), 1), Duration::ZERO);
        assert_eq!(state, SyncState::Live);
        connection
    }

    fn transient() -> Failure {
        Failure::Transient("gone".into())
    }

    /// The body of a request, and its query.
    fn sent(request: Request) -> (Value, String) {
        use std::borrow::Cow;

        use ruma::api::{
            MatrixVersion, OutgoingRequestExt as _, SupportedVersions, auth_scheme::SendAccessToken,
        };

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

    #[test]
    fn the_position_is_carried_and_an_absent_next_batch_keeps_the_old_one() {
        let mut connection = connection();
        assert!(connection.is_fresh());
        connection.handle_response(&page("p1", Some("b1"), 1), Duration::ZERO);
        assert!(!connection.is_fresh());
        connection.handle_response(&page("p2", None, 0), LONG);
        let (body, query) = sent(connection.poll_request());
        let extension = &body["extensions"]["org.matrix.msc4354.sticky_events"];
        assert_eq!(*extension, json!({ "enabled": true, "limit": 100, "since": "b1" }));
        assert!(query.contains("pos=p2"), "{query}");
        assert_eq!(body["conn_id"], "sticky-1");
    }

    #[test]
    fn the_server_holds_no_request_until_a_page_came_that_was_not_full() {
        let mut connection = Connection::new("c".to_owned());
        assert_eq!(connection.poll_request().0.timeout, Some(Duration::ZERO));
        connection.handle_response(&page("1", Some("s1"), PAGE), Duration::ZERO);
        assert_eq!(connection.poll_request().0.timeout, Some(Duration::ZERO));
        connection.handle_response(&page("2", None, 0), Duration::ZERO);
        assert_eq!(connection.poll_request().0.timeout, Some(LONG_POLL));
    }

    #[test]
    fn it_is_live_from_the_first_page_that_is_not_full_until_it_starts_over() {
        let mut connection = connection();
        let state = |c: &mut Connection, response| c.handle_response(&response, Duration::ZERO).0;
        assert_eq!(state(&mut connection, page("p1", Some("b1"), 100)), SyncState::CatchingUp);
        assert_eq!(state(&mut connection, page("p2", Some("b2"), 99)), SyncState::Live);
        assert_eq!(state(&mut connection, page("p3", Some("b3"), 100)), SyncState::Live);
        connection.start_over();
        assert!(connection.is_fresh());
        assert_eq!(state(&mut connection, page("p4", Some("b4"), 100)), SyncState::CatchingUp);
    }

    #[test]
    fn an_answer_at_once_with_nothing_new_is_waited_after_from_the_third_on() {
        let nothing = page("p2", None, 0);
        let the_same = page("p2", Some("b1"), 100);
        let no_batch = page("p2", None, 5);
        for answer in [nothing, the_same, no_batch] {
            let mut connection = live();
            let mut waits = Vec::new();
            for _ in 0..5 {
                waits.push(connection.handle_response(&answer, millis(5)).1);
            }
            let expected = [0, 0, 250, 500, 1_000].map(millis);
            assert_eq!(waits, expected);

            let (_, wait) = connection.handle_response(&answer, HELD);
            assert_eq!(wait, Duration::ZERO, "it was held, as it should be");
            let (_, wait) = connection.handle_response(&answer, millis(5));
            assert_eq!(wait, Duration::ZERO, "it starts over");
        }
    }

    /// As of a server, or a proxy, with two answers that it gives in turn.
    #[test]
    fn known_pages_with_other_tokens_are_waited_after() {
        for (len, at_once) in [(1, 3), (PAGE, KNOWN_PAGES)] {
            let mut connection = connection();
            let mut answer = |number: u32| {
                let page = page("p", Some(&format!("b{}", number % 2)), len);
                let (_, wait) = connection.handle_response(&page, millis(5));
                connection.handle_kept(len, if number == 0 { len } else { 0 });
                wait
            };
            let waits: Vec<_> = (0..at_once + 20).map(&mut answer).collect();
            let (first, rest) = waits.split_at(at_once as usize + 1);
            assert!(first.iter().all(Duration::is_zero), "{first:?}");
            assert!(rest.iter().sum::<Duration>() > secs(100), "{rest:?}");
            connection.handle_kept(len, 1);
            let (_, wait) = connection.handle_response(&page("p", Some("b2"), len), millis(5));
            assert_eq!(wait, Duration::ZERO);
        }
    }

    #[test]
    fn pages_with_something_new_are_never_waited_after() {
        let mut connection = connection();
        for number in 0..100 {
            let page = page("p", Some(&format!("b{number}")), 1);
            assert_eq!(connection.handle_response(&page, Duration::ZERO).1, Duration::ZERO);
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_longest_and_starts_over_after_an_answer() {
        let mut connection = live();
        let mut expected = FIRST_WAIT;
        for _ in 0..100 {
            let (_, wait) = connection.handle_failure(at(0), transient());
            assert_eq!(wait, Wait { least: Duration::ZERO, about: expected });
            expected = (expected * 2).min(LONGEST_WAIT);
        }
        connection.handle_response(&page("p2", Some("b2"), 0), Duration::ZERO);
        let (_, wait) = connection.handle_failure(at(0), transient());
        assert_eq!(wait.about, FIRST_WAIT);
    }

    #[test]
    fn offline_keeps_the_time_of_the_first_failure() {
        let mut connection = live();
        for now in [7, 8, 100, 3] {
            let (state, _) = connection.handle_failure(at(now), transient());
            assert_eq!(state, Some(SyncState::Offline { since: at(7), error: "gone".into() }));
        }
        assert!(!connection.is_fresh(), "nothing was lost");
        connection.handle_response(&page("p2", None, 0), Duration::ZERO);
        let (state, _) = connection.handle_failure(at(200), transient());
        assert_eq!(state, Some(SyncState::Offline { since: at(200), error: "gone".into() }));
    }

    #[test]
    fn after_a_failure_the_next_answer_is_wanted_at_once() {
        let mut connection = live();
        assert_eq!(connection.poll_request().timeout(), LONG_POLL + SLACK);
        connection.handle_failure(at(0), transient());
        assert_eq!(connection.poll_request().timeout(), SLACK);
        let (_, query) = sent(connection.poll_request());
        assert!(query.contains("timeout=0"), "{query}");
        connection.handle_response(&page("p2", None, 0), Duration::ZERO);
        assert_eq!(connection.poll_request().timeout(), LONG_POLL + SLACK);
    }

    #[test]
    fn a_lost_position_starts_over_at_once_but_not_again_within_a_minute() {
        let mut connection = live();
        let lose = |now, connection: &mut Connection| {
            let (state, wait) = connection.handle_failure(at(now), Failure::UnknownPos);
            assert_eq!(state, Some(SyncState::CatchingUp));
            assert!(connection.is_fresh());
            connection.handle_response(&page("p", Some("b"), 1), Duration::ZERO);
            wait.about
        };
        assert_eq!(lose(0, &mut connection), Duration::ZERO);
        assert_eq!(lose(1, &mut connection), millis(250));
        assert_eq!(lose(2, &mut connection), millis(500));
        assert_eq!(lose(61, &mut connection), millis(1_000));
        assert_eq!(lose(121, &mut connection), Duration::ZERO, "that was a minute");
        assert_eq!(lose(100, &mut connection), Duration::ZERO, "a clock that was set back");
    }

    #[test]
    fn a_fresh_start_that_is_refused_is_offline() {
        let mut connection = live();
        connection.handle_failure(at(0), Failure::UnknownPos);
        let (state, wait) = connection.handle_failure(at(1), Failure::UnknownPos);
        assert!(matches!(state, Some(SyncState::Offline { since, .. }) if since == at(1)));
        assert_eq!(wait.about, FIRST_WAIT);
    }

    #[test]
    fn retry_after_is_the_least_wait_whatever_form_it_has() {
        let mut connection = live();
        let mut wait = |retry_after| {
            let limited = Failure::RateLimited { retry_after: Some(retry_after) };
            let (state, wait) = connection.handle_failure(at(100), limited);
            assert_eq!(state, None);
            assert!(wait.about >= FIRST_WAIT);
            wait.least
        };
        assert_eq!(wait(RetryAfter::Delay(secs(20))), secs(20));
        assert_eq!(wait(RetryAfter::DateTime(at(107))), secs(7));
        assert_eq!(wait(RetryAfter::DateTime(at(90))), Duration::ZERO, "it is over");
        assert_eq!(wait(RetryAfter::Delay(Duration::MAX)), LONGEST_RETRY_AFTER);
    }

    #[test]
    fn a_server_that_was_live_is_not_believed_at_once() {
        let lacks = || Failure::Unsupported(Unsupported::StickyEvents);
        for lacks_both in [false, true] {
            let mut connection = live();
            let mut waited = Duration::ZERO;
            for denial in 0..DENIALS {
                // From `/versions`, and from the endpoint.
                let failure = match lacks_both && denial % 2 == 1 {
                    true => Failure::Unsupported(Unsupported::SlidingSync),
                    false => lacks(),
                };
                let (state, wait) = connection.handle_failure(at(0), failure);
                assert!(matches!(state, Some(SyncState::Offline { .. })), "{state:?}");
                assert!(!connection.is_fresh(), "nothing was lost");
                waited += wait.about;
            }
            assert!((secs(10)..=secs(60)).contains(&waited), "{waited:?}");
            let (state, wait) = connection.handle_failure(at(0), lacks());
            assert_eq!(state, Some(SyncState::Unsupported(Unsupported::StickyEvents)));
            assert_eq!(wait.about, UNSUPPORTED_WAIT);
            // It is known to lack it now.
            let (state, _) = connection.handle_failure(at(0), lacks());
            assert_eq!(state, Some(SyncState::Unsupported(Unsupported::StickyEvents)));
        }
        let mut connection = live();
        for _ in 0..2 * DENIALS {
            let (state, _) = connection.handle_failure(at(0), lacks());
            assert!(matches!(state, Some(SyncState::Offline { .. })), "{state:?}");
            connection.handle_success();
        }
    }

    #[test]
    fn a_server_that_lacks_something_is_asked_for_all_when_it_has_it() {
        let mut connection = connection();
        let unsupported = Failure::Unsupported(Unsupported::StickyEvents);
        let (state, wait) = connection.handle_failure(at(0), unsupported);
        assert_eq!(state, Some(SyncState::Unsupported(Unsupported::StickyEvents)));
        assert_eq!(wait.about, UNSUPPORTED_WAIT);
        assert!(connection.is_fresh());
    }

    #[test]
    fn a_token_that_changed_is_no_outage_unless_the_next_one_is_refused_too() {
        let mut connection = live();
        let (state, wait) = connection.handle_failure(at(0), Failure::TokenChanged);
        assert_eq!((state, wait.about), (None, FIRST_WAIT));
        let (state, wait) = connection.handle_failure(at(1), Failure::TokenChanged);
        assert!(matches!(state, Some(SyncState::Offline { .. })));
        assert_eq!(wait.about, FIRST_WAIT * 2);
        let (state, _) = connection.handle_failure(at(2), Failure::LoggedOut);
        assert_eq!(state, Some(SyncState::LoggedOut));
        assert!(!connection.is_fresh(), "with another token it goes on where it stood");
    }

    #[test]
    fn a_request_for_single_rooms_names_them_and_is_not_held() {
        let rooms = ["!a:hs", "!b:hs"].map(|room| OwnedRoomId::try_from(room).unwrap());
        let request = Request::for_rooms("one-shot", &BTreeSet::from(rooms), None, None);
        assert_eq!(request.timeout(), SLACK);
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
    fn a_response_without_a_position_is_none() {
        let read = |body: &str| {
            let http = http::Response::new(body.as_bytes());
            Response::try_from_http_response_inner(http)
        };
        assert!(read("{}").is_err());
        assert!(read(r#"{"pos":5}"#).is_err());
        let response = read(r#"{"pos":"p","extensions":5}"#).unwrap();
        assert_eq!(
            (response.pos.as_str(), response.next_batch, response.rooms.len()),
            ("p", None, 0)
        );
    }
}
