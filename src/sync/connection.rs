//! Connection: where our source stands, and what its answers and failures mean.
//!
//! In: what an answer says, failures, each with the moment. Out: the next request, how long to wait
//! before it, and the state to show. Never: a clock, I/O, randomness. The v3 source uses the waits and
//! the states of it too.

use std::time::{Duration, SystemTime};

use super::{
    error::ConnectionError,
    sliding::{Page, Request},
    state::SyncState,
};

/// How many pages in a row may bring only known events while we catch up. After a start over there can
/// be many. Each page has a token of its own, so nothing else shows that a server gives the same pages
/// again and again.
pub(super) const MAX_KNOWN_PAGES: u32 = 100;

/// The wait after the first failure, on average. It doubles with each further failure.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The longest wait between two attempts, on average. With jitter it is 30 s.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(20);

/// If the server loses our position twice within this time, the next request waits.
const LOST_POSITION_INTERVAL: Duration = Duration::from_secs(60);

/// The server held a request back, as it should, if the answer took this long.
const MIN_HELD: Duration = Duration::from_secs(1);

/// How often in a row a server may deny a feature that it has had, before we believe it. During a
/// rolling restart, a worker that does not know an endpoint yet answers in place of one that does.
const MAX_DENIALS: u32 = 6;

/// When to ask a server again that lacks something we need.
const UNSUPPORTED_INTERVAL: Duration = Duration::from_secs(600);

/// Where our connection stands, and for each source how its requests fare.
#[derive(Debug)]
pub(super) struct Connection {
    name: String,
    pos: Option<String>,
    since: Option<String>,
    /// Whether a page came that was not full, since the connection last started over.
    caught_up: bool,
    failures: u32,
    offline_since: Option<SystemTime>,
    /// How many answers in a row came at once and brought nothing new.
    empty_answers: u32,
    /// How many pages in a row had nothing that the maps did not know.
    known_pages: u32,
    /// Whether anything was answered since the server last lacked something we need, and how often in
    /// a row it has denied a feature since.
    was_answered: bool,
    denials: u32,
    /// When the server last lost our position, and how often in a row it lost one soon.
    lost_at: Option<SystemTime>,
    lost_again: u32,
    /// Whether the last request failed. The server then does not hold the next one, so that recovery
    /// shows at once.
    recovering: bool,
}

/// How long to wait before the next attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wait {
    /// The shortest wait.
    pub(super) least: Duration,
    /// What is waited after that, on average. It gets jitter.
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

    /// Returns the next request to send.
    pub(super) fn poll_request(&self) -> Request {
        let request = Request::for_all(&self.name, self.pos.clone(), self.since.clone());
        // Until it has caught up the server does not hold it either: after a full page there may be
        // nothing more, and then the server would hold the request that tells so.
        if self.recovering || !self.caught_up { request.without_hold() } else { request }
    }

    /// Whether the next request asks for all that is live, from its first page on.
    pub(super) fn is_fresh(&self) -> bool {
        self.pos.is_none() && self.since.is_none()
    }

    /// Takes an answer, and how long it took. Returns the state to show, and how long to wait before
    /// the next request. There is no wait, unless the server answers at once again and again without
    /// anything new.
    pub(super) fn handle_page(&mut self, page: &Page, took: Duration) -> (SyncState, Duration) {
        // The same page again is nothing new, however full it is.
        let max_known = if self.caught_up { 3 } else { MAX_KNOWN_PAGES };
        let is_new = page.len > 0
            && self.known_pages < max_known
            && page.next_batch.is_some()
            && page.next_batch != self.since;
        self.pos = Some(page.pos.clone());
        // Absent when there was nothing new: the old one goes on counting.
        if page.next_batch.is_some() {
            self.since.clone_from(&page.next_batch);
        }
        // After an outage more may have come than a page has.
        if self.recovering && page.is_full() {
            self.caught_up = false;
        }
        self.handle_success();
        self.caught_up |= !page.is_full();
        let state = if self.caught_up { SyncState::Live } else { SyncState::CatchingUp };

        if is_new || took >= MIN_HELD {
            self.empty_answers = 0;
            return (state, Duration::ZERO);
        }
        self.empty_answers = self.empty_answers.saturating_add(1);
        // The first answer of a connection always comes at once, and the second may.
        let wait = match self.empty_answers.checked_sub(3) {
            None => Duration::ZERO,
            Some(more) => doubled(FIRST_RETRY_INTERVAL, more),
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

    /// Takes that something was answered: the waits start over.
    pub(super) fn handle_success(&mut self) {
        self.was_answered = true;
        self.denials = 0;
        self.failures = 0;
        self.offline_since = None;
        self.recovering = false;
    }

    /// Forgets where the connection stood. The next requests bring all that is live once more.
    pub(super) fn start_over(&mut self) {
        self.pos = None;
        self.since = None;
        self.caught_up = false;
    }

    /// Takes a failure. Returns the state to show, if it changes, and how long to wait before the next
    /// attempt. After [`SyncState::LoggedOut`] wait for another token instead.
    pub(super) fn handle_failure(
        &mut self,
        now: SystemTime,
        error: ConnectionError,
    ) -> (Option<SyncState>, Wait) {
        self.recovering = true;
        match error {
            // The server does not know where we stood, or never let us stand there.
            ConnectionError::UnknownPos if !self.is_fresh() => {
                self.start_over();
                (Some(SyncState::CatchingUp), self.lost(now))
            }
            ConnectionError::LoggedOut => (Some(SyncState::LoggedOut), Wait::default()),
            // A single one is not an outage.
            ConnectionError::TokenChanged if self.failures == 0 => (None, self.backoff()),
            ConnectionError::TokenChanged => {
                self.offline(now, "each access token is refused".into())
            }
            ConnectionError::Unsupported(what)
                if self.was_answered && self.denials < MAX_DENIALS =>
            {
                self.denials += 1;
                self.offline(now, what.to_string())
            }
            ConnectionError::Unsupported(what) => {
                self.was_answered = false;
                self.denials = 0;
                self.start_over();
                (Some(SyncState::Unsupported(what)), Wait::about(UNSUPPORTED_INTERVAL))
            }
            ConnectionError::RateLimited { .. } => {
                let backoff = self.backoff();
                // A server that says 0, or a time that is over, has not said how long.
                let least = error.retry_after(now).filter(|least| *least >= FIRST_RETRY_INTERVAL);
                let Some(least) = least else { return (None, backoff) };
                (None, Wait { least, about: (least / 4).max(FIRST_RETRY_INTERVAL) })
            }
            ConnectionError::UnknownPos => {
                self.offline(now, "the server refuses every position".into())
            }
            ConnectionError::TimedOut => {
                self.offline(now, "the server did not answer in time".into())
            }
            ConnectionError::Transient(error) => self.offline(now, error),
        }
    }

    fn offline(&mut self, now: SystemTime, error: String) -> (Option<SyncState>, Wait) {
        let since = *self.offline_since.get_or_insert(now);
        (Some(SyncState::Offline { since, error }), self.backoff())
    }

    fn backoff(&mut self) -> Wait {
        let wait = doubled(FIRST_RETRY_INTERVAL, self.failures);
        self.failures = self.failures.saturating_add(1);
        Wait::about(wait)
    }

    /// Returns how long to wait after the server has lost our position. The first time there is no
    /// wait. A server that loses each position soon would be asked for everything again and again.
    fn lost(&mut self, now: SystemTime) -> Wait {
        let since_last = self.lost_at.replace(now).map(|last| now.duration_since(last));
        match since_last {
            Some(Ok(time)) if time < LOST_POSITION_INTERVAL => {
                let wait = doubled(FIRST_RETRY_INTERVAL, self.lost_again);
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

/// Returns a wait, doubled `times` times, up to 20 s.
pub(super) fn doubled(wait: Duration, times: u32) -> Duration {
    wait.saturating_mul(1 << times.min(16)).min(MAX_RETRY_INTERVAL)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::time::UNIX_EPOCH;

    use ruma::api::error::RetryAfter;
    use serde_json::json;

    use super::*;
    use crate::{
        sync::{
            error::MAX_SOURCE_RETRY_AFTER,
            sliding::{LONG_POLL_TIMEOUT, MAX_PAGE_EVENTS, testing::sent},
            state::Unsupported,
        },
        testing::secs,
    };

    const LONG: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + secs(seconds)
    }

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn page(pos: &str, next_batch: Option<&str>, len: usize) -> Page {
        Page { pos: pos.to_owned(), next_batch: next_batch.map(ToOwned::to_owned), len }
    }

    fn connection() -> Connection {
        Connection::new("sticky-1".to_owned())
    }

    /// One that has had an answer.
    fn live() -> Connection {
        let mut connection = connection();
        let (state, _) = connection.handle_page(&page("p1", Some("b1"), 1), Duration::ZERO);
        assert_eq!(state, SyncState::Live);
        connection
    }

    fn transient() -> ConnectionError {
        ConnectionError::Transient("gone".into())
    }

    #[test]
    fn an_absent_next_batch_keeps_the_old_one() {
        let mut connection = connection();
        assert!(connection.is_fresh());
        connection.handle_page(&page("p1", Some("b1"), 1), Duration::ZERO);
        assert!(!connection.is_fresh());
        connection.handle_page(&page("p2", None, 0), LONG);
        let (body, query) = sent(connection.poll_request());
        let extension = &body["extensions"]["org.matrix.msc4354.sticky_events"];
        assert_eq!(*extension, json!({ "enabled": true, "limit": 100, "since": "b1" }));
        assert!(query.contains("pos=p2"), "{query}");
        assert_eq!(body["conn_id"], "sticky-1");
    }

    #[test]
    fn no_request_is_held_while_catching_up() {
        let mut connection = Connection::new("c".to_owned());
        assert_eq!(connection.poll_request().hold(), Duration::ZERO);
        connection.handle_page(&page("1", Some("s1"), MAX_PAGE_EVENTS), Duration::ZERO);
        assert_eq!(connection.poll_request().hold(), Duration::ZERO);
        connection.handle_page(&page("2", None, 0), Duration::ZERO);
        assert_eq!(connection.poll_request().hold(), LONG_POLL_TIMEOUT);
    }

    #[test]
    fn a_page_with_room_left_is_live() {
        let mut connection = connection();
        let state = |c: &mut Connection, response| c.handle_page(&response, Duration::ZERO).0;
        assert_eq!(state(&mut connection, page("p1", Some("b1"), 100)), SyncState::CatchingUp);
        assert_eq!(state(&mut connection, page("p2", Some("b2"), 99)), SyncState::Live);
        assert_eq!(state(&mut connection, page("p3", Some("b3"), 100)), SyncState::Live);
        connection.start_over();
        assert!(connection.is_fresh());
        assert_eq!(state(&mut connection, page("p4", Some("b4"), 100)), SyncState::CatchingUp);
    }

    #[test]
    fn three_empty_answers_at_once_bring_a_wait() {
        let nothing = page("p2", None, 0);
        let the_same = page("p2", Some("b1"), 100);
        let no_batch = page("p2", None, 5);
        for answer in [nothing, the_same, no_batch] {
            let mut connection = live();
            let mut waits = Vec::new();
            for _ in 0..5 {
                waits.push(connection.handle_page(&answer, millis(5)).1);
            }
            let expected = [0, 0, 250, 500, 1_000].map(millis);
            assert_eq!(waits, expected);

            let (_, wait) = connection.handle_page(&answer, MIN_HELD);
            assert_eq!(wait, Duration::ZERO, "it was held, as it should be");
            let (_, wait) = connection.handle_page(&answer, millis(5));
            assert_eq!(wait, Duration::ZERO, "it starts over");
        }
    }

    /// As of a server, or a proxy, with two answers that it gives in turn.
    #[test]
    fn known_pages_bring_a_wait() {
        for (len, at_once) in [(1, 3), (MAX_PAGE_EVENTS, MAX_KNOWN_PAGES)] {
            let mut connection = connection();
            let mut answer = |number: u32| {
                let page = page("p", Some(&format!("b{}", number % 2)), len);
                let (_, wait) = connection.handle_page(&page, millis(5));
                connection.handle_kept(len, if number == 0 { len } else { 0 });
                wait
            };
            let waits: Vec<_> = (0..at_once + 20).map(&mut answer).collect();
            let (first, rest) = waits.split_at(at_once as usize + 1);
            assert!(first.iter().all(Duration::is_zero), "{first:?}");
            assert!(rest.iter().sum::<Duration>() > secs(100), "{rest:?}");
            connection.handle_kept(len, 1);
            let (_, wait) = connection.handle_page(&page("p", Some("b2"), len), millis(5));
            assert_eq!(wait, Duration::ZERO);
        }
    }

    #[test]
    fn new_events_never_bring_a_wait() {
        let mut connection = connection();
        for number in 0..100 {
            let page = page("p", Some(&format!("b{number}")), 1);
            assert_eq!(connection.handle_page(&page, Duration::ZERO).1, Duration::ZERO);
        }
    }

    #[test]
    fn the_wait_doubles_until_an_answer() {
        let mut connection = live();
        let mut expected = FIRST_RETRY_INTERVAL;
        for _ in 0..100 {
            let (_, wait) = connection.handle_failure(at(0), transient());
            assert_eq!(wait, Wait { least: Duration::ZERO, about: expected });
            expected = (expected * 2).min(MAX_RETRY_INTERVAL);
        }
        connection.handle_page(&page("p2", Some("b2"), 0), Duration::ZERO);
        let (_, wait) = connection.handle_failure(at(0), transient());
        assert_eq!(wait.about, FIRST_RETRY_INTERVAL);
    }

    #[test]
    fn offline_keeps_the_time_of_the_first_failure() {
        let mut connection = live();
        for now in [7, 8, 100, 3] {
            let (state, _) = connection.handle_failure(at(now), transient());
            assert_eq!(state, Some(SyncState::Offline { since: at(7), error: "gone".into() }));
        }
        assert!(!connection.is_fresh(), "nothing was lost");
        connection.handle_page(&page("p2", None, 0), Duration::ZERO);
        let (state, _) = connection.handle_failure(at(200), transient());
        assert_eq!(state, Some(SyncState::Offline { since: at(200), error: "gone".into() }));
    }

    #[test]
    fn after_a_failure_no_request_is_held() {
        let mut connection = live();
        assert_eq!(connection.poll_request().hold(), LONG_POLL_TIMEOUT);
        connection.handle_failure(at(0), transient());
        assert_eq!(connection.poll_request().hold(), Duration::ZERO);
        let (_, query) = sent(connection.poll_request());
        assert!(query.contains("timeout=0"), "{query}");
        connection.handle_page(&page("p2", None, 0), Duration::ZERO);
        assert_eq!(connection.poll_request().hold(), LONG_POLL_TIMEOUT);
    }

    #[test]
    fn after_an_outage_full_pages_catch_up() {
        let mut connection = live();
        connection.handle_failure(at(0), transient());
        let (state, _) = connection.handle_page(&page("p2", Some("b2"), 100), Duration::ZERO);
        assert_eq!(state, SyncState::CatchingUp);
        let (state, _) = connection.handle_page(&page("p3", Some("b3"), 7), Duration::ZERO);
        assert_eq!(state, SyncState::Live);
    }

    /// A server that always says 0 would be asked four times a second.
    #[test]
    fn a_retry_after_of_zero_is_ignored() {
        let mut connection = live();
        let mut wait = || {
            let limited = ConnectionError::RateLimited {
                retry_after: Some(RetryAfter::Delay(Duration::ZERO)),
            };
            connection.handle_failure(at(100), limited).1.about
        };
        assert_eq!([wait(), wait(), wait()], [250, 500, 1_000].map(millis));
    }

    #[test]
    fn a_position_lost_twice_brings_a_wait() {
        let mut connection = live();
        let lose = |now, connection: &mut Connection| {
            let (state, wait) = connection.handle_failure(at(now), ConnectionError::UnknownPos);
            assert_eq!(state, Some(SyncState::CatchingUp));
            assert!(connection.is_fresh());
            connection.handle_page(&page("p", Some("b"), 1), Duration::ZERO);
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
        connection.handle_failure(at(0), ConnectionError::UnknownPos);
        let (state, wait) = connection.handle_failure(at(1), ConnectionError::UnknownPos);
        assert!(matches!(state, Some(SyncState::Offline { since, .. }) if since == at(1)));
        assert_eq!(wait.about, FIRST_RETRY_INTERVAL);
    }

    #[test]
    fn retry_after_is_the_least_wait() {
        let mut connection = live();
        let mut wait = |retry_after| {
            let limited = ConnectionError::RateLimited { retry_after: Some(retry_after) };
            let (state, wait) = connection.handle_failure(at(100), limited);
            assert_eq!(state, None);
            assert!(wait.about >= FIRST_RETRY_INTERVAL);
            wait.least
        };
        assert_eq!(wait(RetryAfter::Delay(secs(20))), secs(20));
        assert_eq!(wait(RetryAfter::DateTime(at(107))), secs(7));
        assert_eq!(wait(RetryAfter::DateTime(at(90))), Duration::ZERO, "it is over");
        assert_eq!(wait(RetryAfter::Delay(Duration::MAX)), MAX_SOURCE_RETRY_AFTER);
    }

    #[test]
    fn a_server_may_deny_six_times() {
        let lacks = || ConnectionError::Unsupported(Unsupported::StickyEvents);
        for lacks_both in [false, true] {
            let mut connection = live();
            let mut waited = Duration::ZERO;
            for denial in 0..MAX_DENIALS {
                // From `/versions`, and from the endpoint.
                let failure = match lacks_both && denial % 2 == 1 {
                    true => ConnectionError::Unsupported(Unsupported::SlidingSync),
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
            assert_eq!(wait.about, UNSUPPORTED_INTERVAL);
            // It is known to lack it now.
            let (state, _) = connection.handle_failure(at(0), lacks());
            assert_eq!(state, Some(SyncState::Unsupported(Unsupported::StickyEvents)));
        }
        let mut connection = live();
        for _ in 0..2 * MAX_DENIALS {
            let (state, _) = connection.handle_failure(at(0), lacks());
            assert!(matches!(state, Some(SyncState::Offline { .. })), "{state:?}");
            connection.handle_success();
        }
    }

    #[test]
    fn a_server_that_lacks_something_waits_ten_minutes() {
        let mut connection = connection();
        let unsupported = ConnectionError::Unsupported(Unsupported::StickyEvents);
        let (state, wait) = connection.handle_failure(at(0), unsupported);
        assert_eq!(state, Some(SyncState::Unsupported(Unsupported::StickyEvents)));
        assert_eq!(wait.about, UNSUPPORTED_INTERVAL);
        assert!(connection.is_fresh());
    }

    #[test]
    fn one_changed_token_is_not_an_outage() {
        let mut connection = live();
        let (state, wait) = connection.handle_failure(at(0), ConnectionError::TokenChanged);
        assert_eq!((state, wait.about), (None, FIRST_RETRY_INTERVAL));
        let (state, wait) = connection.handle_failure(at(1), ConnectionError::TokenChanged);
        assert!(matches!(state, Some(SyncState::Offline { .. })));
        assert_eq!(wait.about, FIRST_RETRY_INTERVAL * 2);
        let (state, _) = connection.handle_failure(at(2), ConnectionError::LoggedOut);
        assert_eq!(state, Some(SyncState::LoggedOut));
        assert!(!connection.is_fresh(), "with another token it goes on where it stood");
    }
}
