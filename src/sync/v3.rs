//! v3 `/sync`: a follower of the application's main loop.
//!
//! In: the tokens that the main loop has stored, one after the other, and answers. Out: the next
//! request. Never: a token of our own, a clock, I/O. [`Follower`] is pure; [`Request`] is ruma's request
//! with a response that reads only the sticky events.
//!
//! Why not simply a second loop? A request with a `since` acknowledges the to-device messages before
//! it, and the server deletes them. A loop of our own would lose room keys for the main loop. So we ask
//! only with tokens that the main loop has moved on from, which it has acknowledged itself.

use std::{collections::VecDeque, time::Duration};

use ruma::{
    OwnedRoomId,
    api::{
        IncomingResponse, Metadata, OutgoingRequest,
        client::{
            filter::{Filter, FilterDefinition, RoomEventFilter},
            sync::sync_events::v3,
        },
        error::{DeserializationError, IntoHttpError},
        path_builder::PathBuilder,
    },
    exports::http,
    presence::PresenceState,
};
use serde_json::value::RawValue;

use super::source::RoomEvents;
use crate::{request::REQUEST_TIMEOUT, wire};

/// How many tokens of the main loop may wait to be asked with. If there are more, the server has been
/// away for long, and all that is live is asked for once more.
const MAX_TOKENS: usize = 64;

/// How long the server may take to answer at most, after it was too slow.
const MAX_PATIENCE: Duration = Duration::from_secs(240);

/// How many timeouts, in milliseconds, tell our requests apart. The server answers the same request from
/// a cache for two minutes, and the timeout is the part that means nothing to us.
const DISTINCT_TIMEOUTS: u64 = 50;

/// ruma's request, answered by a [`Response`].
#[derive(Clone, Debug)]
pub(super) struct Request(v3::Request);

impl Request {
    /// Asks for all that is live in this room, or in all rooms. The request has no token, and so
    /// acknowledges nothing. The answer has at most a page.
    pub(super) fn for_all(room_id: Option<OwnedRoomId>, number: u64) -> Self {
        Self::new(None, room_id, number)
    }

    fn new(since: Option<String>, room_id: Option<OwnedRoomId>, number: u64) -> Self {
        let mut filter = FilterDefinition::default();
        filter.presence = Filter::ignore_all();
        filter.account_data = Filter::ignore_all();
        filter.room.account_data = RoomEventFilter::ignore_all();
        filter.room.ephemeral = RoomEventFilter::ignore_all();
        filter.room.state = RoomEventFilter::ignore_all();
        // The server filters the timeline before it takes the timeline's events out of the sticky
        // section. With an empty timeline, every sticky event is in the section.
        filter.room.timeline.not_types = vec!["*".to_owned()];
        filter.room.rooms = room_id.map(|room_id| vec![room_id]);

        let mut request = v3::Request::new();
        request.filter = Some(v3::Filter::FilterDefinition(filter));
        request.since = since;
        request.set_presence = PresenceState::Offline;
        request.timeout = Some(Duration::from_millis(number % DISTINCT_TIMEOUTS));
        Self(request)
    }
}

impl Metadata for Request {
    const METHOD: http::Method = v3::Request::METHOD;
    const RATE_LIMITED: bool = v3::Request::RATE_LIMITED;
    type Authentication = <v3::Request as Metadata>::Authentication;
    type PathBuilder = <v3::Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = v3::Request::PATH_BUILDER;
}

impl OutgoingRequest for Request {
    type Body = <v3::Request as OutgoingRequest>::Body;
    type EndpointError = <v3::Request as OutgoingRequest>::EndpointError;
    type IncomingResponse = Response;

    fn try_into_http_request_inner(
        self,
        base_url: &str,
        path_builder_input: <Self::PathBuilder as PathBuilder>::Input<'_>,
    ) -> Result<http::Request<Self::Body>, IntoHttpError> {
        self.0.try_into_http_request_inner(base_url, path_builder_input)
    }
}

/// The sticky events of an answer. Its token is left out: it may not be used.
pub(super) struct Response {
    pub(super) rooms: RoomEvents,
}

impl IncomingResponse for Response {
    type EndpointError = <v3::Request as OutgoingRequest>::EndpointError;

    fn try_from_http_response_inner(
        response: http::Response<&[u8]>,
    ) -> Result<Self, DeserializationError> {
        let response = wire::read_v3(response.body())?;
        let own = |events: Vec<&RawValue>| events.into_iter().map(ToOwned::to_owned).collect();
        let rooms = response.sections.into_iter().map(|(room_id, e)| (room_id, own(e))).collect();
        Ok(Self { rooms: RoomEvents(rooms) })
    }
}

/// What is asked next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// All that is live.
    All,
    /// What came after this token, which the main loop has moved on from.
    After(String),
}

/// Where we stand behind the main loop.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The main loop's token, as far as we know.
    token: Option<String>,
    /// Tokens that it has moved on from, and that have not been asked with yet. The oldest is first.
    passed: VecDeque<String>,
    /// Whether all that is live has come since it last had to be asked for.
    has_all: bool,
    /// Whether all has to be asked for again after the question that is on its way. The server may
    /// have answered that one before something made another necessary.
    outdated: bool,
    number: u64,
    /// How often in a row the server has not answered in time.
    timeouts: u32,
}

impl Follower {
    /// Takes the token that the main loop has stored.
    ///
    /// Why not just ask with the oldest token? An answer has at most a page, and what comes after that
    /// page is after the next token.
    pub(super) fn handle_token(&mut self, token: String) {
        if self.token.as_ref() == Some(&token) {
            return;
        }
        match self.token.replace(token) {
            Some(passed) => self.passed.push_back(passed),
            // The answer to our first question may lack events that came before this token.
            None => self.start_over(),
        }
        if self.passed.len() > MAX_TOKENS {
            self.start_over();
        }
    }

    /// Returns the main loop's token, as far as we know.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Asks for all that is live once more.
    pub(super) fn start_over(&mut self) {
        self.passed.clear();
        self.has_all = false;
        self.outdated = true;
    }

    /// Whether all that is live has come, except for what came after the tokens that are still to be
    /// asked with.
    pub(super) fn has_all(&self) -> bool {
        self.has_all
    }

    /// Returns what to ask next; `None` while we are where the main loop is.
    pub(super) fn poll_question(&self) -> Option<Question> {
        if !self.has_all {
            return Some(Question::All);
        }
        self.passed.front().cloned().map(Question::After)
    }

    /// Returns how long the server may take to answer. After an answer that took too long, it gets more
    /// time: collecting what is live in thousands of rooms takes long.
    pub(super) fn patience(&self) -> Duration {
        REQUEST_TIMEOUT.saturating_mul(1 << self.timeouts.min(8)).min(MAX_PATIENCE)
    }

    /// Takes that the server has not answered in time.
    pub(super) fn handle_timeout(&mut self) {
        self.timeouts = self.timeouts.saturating_add(1);
    }

    /// Returns the request for a question. No two requests are the same, unless the server was too slow
    /// to answer the one before: then its cache may have the answer by now.
    pub(super) fn request(&mut self, question: &Question) -> Request {
        let since = match question {
            Question::All => {
                self.outdated = false;
                None
            }
            Question::After(token) => Some(token.clone()),
        };
        let number = if self.timeouts > 0 { self.number } else { self.next_number() };
        Request::new(since, None, number)
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// Takes that a question was answered.
    pub(super) fn handle_answer(&mut self, question: &Question) {
        self.timeouts = 0;
        match question {
            Question::All => self.has_all = !self.outdated,
            Question::After(token) => {
                if self.passed.front() == Some(token) {
                    self.passed.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask_for_all(follower: &mut Follower) {
        follower.request(&Question::All);
        follower.handle_answer(&Question::All);
    }

    #[test]
    fn only_passed_tokens_are_asked_with() {
        let mut follower = Follower::default();
        follower.handle_token("T0".into());
        assert_eq!(follower.poll_question(), Some(Question::All));
        ask_for_all(&mut follower);
        assert_eq!(follower.poll_question(), None, "T0 is where the main loop still is");

        follower.handle_token("T1".into());
        follower.handle_token("T1".into());
        follower.handle_token("T2".into());
        let after = |token: &str| Question::After(token.to_owned());
        assert_eq!(follower.poll_question(), Some(after("T0")));
        follower.handle_answer(&after("T0"));
        assert_eq!(follower.poll_question(), Some(after("T1")));
        follower.handle_answer(&after("T1"));
        assert_eq!(follower.poll_question(), None);
    }

    #[test]
    fn a_late_first_token_asks_for_all_again() {
        let mut follower = Follower::default();
        ask_for_all(&mut follower);
        assert_eq!(follower.poll_question(), None);
        follower.handle_token("T0".into());
        assert_eq!(follower.poll_question(), Some(Question::All));
    }

    #[test]
    fn a_first_token_meanwhile_asks_for_all_again() {
        let mut follower = Follower::default();
        follower.request(&Question::All);
        follower.handle_token("T0".into());
        follower.handle_answer(&Question::All);
        assert!(!follower.has_all());
        assert_eq!(follower.poll_question(), Some(Question::All));
        ask_for_all(&mut follower);
        assert!(follower.has_all());
        assert_eq!(follower.poll_question(), None);
    }

    #[test]
    fn too_many_tokens_ask_for_all_instead() {
        let mut follower = Follower::default();
        follower.handle_token("T".into());
        ask_for_all(&mut follower);
        for number in 0..=MAX_TOKENS {
            follower.handle_token(format!("T{number}"));
        }
        assert_eq!(follower.poll_question(), Some(Question::All));
        ask_for_all(&mut follower);
        assert_eq!(follower.poll_question(), None);
    }

    #[test]
    fn a_slow_server_has_more_time() {
        let mut follower = Follower::default();
        let first = follower.request(&Question::All);
        let mut patience = vec![follower.patience().as_secs()];
        for _ in 0..6 {
            follower.handle_timeout();
            assert_eq!(follower.request(&Question::All).0.timeout, first.0.timeout);
            patience.push(follower.patience().as_secs());
        }
        assert_eq!(patience, [15, 30, 60, 120, 240, 240, 240]);
        follower.handle_answer(&Question::All);
        assert_eq!(follower.patience(), REQUEST_TIMEOUT);
        assert_ne!(follower.request(&Question::All).0.timeout, first.0.timeout);
    }

    #[test]
    fn no_two_requests_share_a_cache_entry() {
        let mut follower = Follower::default();
        let first = follower.request(&Question::All);
        let second = follower.request(&Question::All);
        assert_ne!(first.0.timeout, second.0.timeout);
    }
}
