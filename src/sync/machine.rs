//! Machine: what the sync does next.
//!
//! In: what `/versions` says, pages, failures, the main loop's news, the end of fetches, each with the
//! moment (`handle_..`). Out: one [`Step`] after the other (`poll_step`), and when to poll again.
//! Never: a clock, I/O, an event's text. Which event counts is the map's to say.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use tracing::warn;

use super::{
    connection::Connection,
    error::ConnectionError,
    fetches::Fetches,
    listing::Listing,
    main_loop::{News, Shown},
    proofs::Proofs,
    sliding::{MAX_PAGE_EVENTS, Page},
    source::{Ask, Features},
    state::{SyncSource, SyncState, Unsupported},
    v3::{Follower, Question},
};
use crate::time::{Deadline, MAX_STICKY_DURATION, Moment};

/// How long a main loop may have answers without a new token before the state says that it has none.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(5);

/// When to fetch the room of a sticky event that the main loop has shown, while our source has brought
/// none; and when to conclude, if the fetch brings none either, that the source never will. Together
/// the 10 s of the laws of the view.
const EXTENSION_TIMEOUT: Duration = Duration::from_secs(5);

/// What to do next. The worker performs a step to its end or starts it, and polls again.
#[derive(Debug)]
pub(super) enum Step {
    /// Show this state.
    Show(SyncState),
    /// Start this request, in place of the one of the source that is under way. Its end is
    /// [`SyncMachine::handle_versions`], [`handle_page`](SyncMachine::handle_page),
    /// [`handle_followed`](SyncMachine::handle_followed) or
    /// [`handle_failure`](SyncMachine::handle_failure).
    Ask(Ask),
    /// Wait until the client has another access token than the one that was refused; then
    /// [`SyncMachine::handle_other_token`].
    AwaitToken,
    /// Start to fetch the sticky events of these rooms; then [`SyncMachine::handle_fetched`].
    Fetch { rooms: BTreeSet<OwnedRoomId>, by: FetchBy },
    /// Start to ask for the rooms that we are in, in place of the question that is under way; then
    /// [`SyncMachine::handle_listed`].
    ListRooms,
    /// Ask the SDK again who encrypted what is not proven.
    Prove,
}

/// How single rooms are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FetchBy {
    Sliding,
    /// By requests with this number: see [`Follower`].
    V3 {
        number: u64,
    },
}

/// What became of fetching the sticky events of single rooms.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// Whether sliding sync was seen to have the extension for sticky events.
    pub(super) has_extension: bool,
    /// Rooms whose events have all come.
    pub(super) complete: Vec<OwnedRoomId>,
    /// Rooms in which events may be missing.
    pub(super) incomplete: Vec<OwnedRoomId>,
    /// The rooms that are still to be fetched, and why they could not be.
    pub(super) failed: Option<(BTreeSet<OwnedRoomId>, ConnectionError)>,
}

/// What the client knows of our rooms. The machine looks it up while it decides.
pub(super) trait OurRooms {
    /// Returns the rooms that we are in, as far as the main loop says.
    fn joined(&self) -> Vec<OwnedRoomId>;

    /// Whether somebody has said that we are not in this room.
    fn is_not_ours(&self, room_id: &RoomId) -> bool;
}

/// What the source is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// Nothing. A follower is where the main loop is, or there is no main loop to follow.
    Resting,
    /// It is to ask for the features of the server.
    AsksVersions,
    /// It is to ask for events.
    AsksEvents,
    /// A request is under way.
    Asking,
    /// It waits before it asks again.
    Waiting(Deadline),
    /// Its access token was refused.
    Refused,
    /// It waits for another access token.
    AwaitsToken,
}

/// Whether the server's sliding sync brings sticky events at all.
#[derive(Debug)]
enum Extension {
    /// Sliding sync has brought none, and the main loop has shown none.
    Unproven,
    /// The main loop has shown one, in these rooms.
    Awaited {
        rooms: Vec<OwnedRoomId>,
        /// Whether the rooms were fetched by themselves.
        is_fetched: bool,
        /// When to look again.
        due: Deadline,
    },
    Present,
    Absent,
}

/// What the sync does next: a pure machine.
///
/// After each `handle_..`, call [`handle_maps`](Self::handle_maps), and then
/// [`poll_step`](Self::poll_step) until it returns `None`. Call `poll_step` again when
/// [`next_deadline`](Self::next_deadline) has come.
#[derive(Debug)]
pub(super) struct SyncMachine {
    wanted_source: SyncSource,
    rng: fastrand::Rng,
    activity: Activity,
    connection: Connection,
    connected_at: Moment,
    /// Where we stand behind the main loop, if the source is v3.
    follower: Option<Follower>,
    /// Since when the main loop has had answers without storing a new token.
    tokenless_since: Option<Moment>,
    /// Whether the server has what the source needs, since it was last away.
    supported: bool,
    extension: Extension,
    ignored: HashSet<OwnedUserId>,
    fetches: Fetches,
    /// Rooms in which events may be missing, and until when.
    incomplete: BTreeMap<OwnedRoomId, Deadline>,
    /// When the first of the incomplete rooms is complete.
    completes: Option<Deadline>,
    /// Rooms in which the main loop has shown something sticky, if the source is v3.
    hinted: BTreeSet<OwnedRoomId>,
    listing: Listing,
    proofs: Proofs,
    state: SyncState,
    /// What to show when the list of our rooms has come.
    held_state: Option<SyncState>,
    /// What the worker was last told to show.
    shown: SyncState,
}

impl SyncMachine {
    /// Starts with the question for the features of the server. `state` is what is shown now.
    pub(super) fn new(
        now: Moment,
        wanted_source: SyncSource,
        state: SyncState,
        name: String,
        seed: u64,
    ) -> Self {
        Self {
            wanted_source,
            rng: fastrand::Rng::with_seed(seed),
            activity: Activity::AsksVersions,
            connection: Connection::new(name),
            connected_at: now,
            follower: None,
            tokenless_since: None,
            supported: false,
            extension: Extension::Unproven,
            ignored: HashSet::new(),
            fetches: Fetches::default(),
            incomplete: BTreeMap::new(),
            completes: None,
            hinted: BTreeSet::new(),
            listing: Listing::default(),
            proofs: Proofs::default(),
            shown: state.clone(),
            state,
            held_state: None,
        }
    }

    /// Returns for how long our own connection has been there.
    pub(super) fn connected_for(&self, now: Moment) -> Duration {
        now.since(self.connected_at)
    }

    /// Whether the source follows the main loop. If so, the machine wants the main loop's tokens.
    pub(super) fn is_following(&self) -> bool {
        self.follower.is_some()
    }

    /// Takes what `/versions` says, and the token that the main loop has stored last. Returns the source
    /// that is used from now on; `None` if the server lacks what it needs.
    pub(super) fn handle_versions(
        &mut self,
        now: Moment,
        features: Features,
        main_token: Option<String>,
    ) -> Option<SyncSource> {
        if self.activity != Activity::Asking {
            return None;
        }
        let source = match self.choose_source(features) {
            Ok(source) => source,
            Err(lacks) => {
                self.fail(now, ConnectionError::Unsupported(lacks));
                return None;
            }
        };
        self.supported = true;
        if source == SyncSource::V3 {
            let follower = self.follower.get_or_insert_default();
            if let Some(token) = main_token {
                follower.handle_token(token);
            }
        } else {
            self.follower = None;
            self.incomplete.clear();
        }
        self.ask();
        if self.activity == Activity::Resting {
            // Nothing is to be asked, so no answer will say that all is well again.
            self.connection.handle_success();
            self.show_followed(now);
        }
        self.gather(now, Duration::ZERO);
        Some(source)
    }

    fn choose_source(&self, features: Features) -> Result<SyncSource, Unsupported> {
        if !features.sticky_events {
            return Err(Unsupported::StickyEvents);
        }
        match self.wanted_source {
            SyncSource::V3 => Ok(SyncSource::V3),
            SyncSource::Auto if matches!(self.extension, Extension::Absent) => Ok(SyncSource::V3),
            SyncSource::Auto | SyncSource::Sliding if features.sliding_sync => {
                Ok(SyncSource::Sliding)
            }
            SyncSource::Auto => Ok(SyncSource::V3),
            SyncSource::Sliding => Err(Unsupported::SlidingSync),
        }
    }

    /// Takes a page of our own connection, received now: how long it took, and how many of its events
    /// the maps did not know.
    pub(super) fn handle_page(&mut self, now: Moment, page: &Page, took: Duration, kept: usize) {
        if self.activity != Activity::Asking {
            return;
        }
        if self.connection.is_fresh() {
            self.connected_at = now;
        }
        if page.has_extension() {
            self.extension = Extension::Present;
        }
        let (state, wait) = self.connection.handle_page(page, took);
        self.connection.handle_kept(page.len, kept);
        if wait.is_zero() {
            self.ask();
        } else {
            self.wait(now, Duration::ZERO, wait);
        }
        self.show_known(state);
    }

    /// Takes the answer to a question of the follower's, received now: how many events it had, and of
    /// which rooms.
    pub(super) fn handle_followed(
        &mut self,
        now: Moment,
        question: &Question,
        len: usize,
        in_page: Vec<OwnedRoomId>,
        rooms: &dyn OurRooms,
    ) {
        if self.activity != Activity::Asking {
            return;
        }
        self.connection.handle_success();
        let is_all = *question == Question::All;
        if is_all {
            self.connected_at = now;
        }
        let is_part = is_all && len >= MAX_PAGE_EVENTS;
        if let Some(follower) = &mut self.follower {
            follower.handle_answer(question);
        }
        if is_all && !is_part {
            self.incomplete.clear();
            self.hinted.clear();
        }
        self.ask();
        if !is_part {
            self.show_followed(now);
            return;
        }
        self.show_known(SyncState::CatchingUp);
        if self.follower.as_ref().is_some_and(|follower| follower.token().is_some()) {
            self.search_rest(now, in_page, rooms);
        }
        // Otherwise all is asked for once more with the main loop's first token. Until then nobody
        // knows which rooms we are in, and which of them have something.
    }

    /// A page of all rooms together was full. The rest has to be asked for room by room, and only in
    /// rooms for which there is a reason: one hostile member can fill a page, and an account can have
    /// thousands of rooms.
    fn search_rest(&mut self, now: Moment, in_page: Vec<OwnedRoomId>, rooms: &dyn OurRooms) {
        self.fetches.want(in_page);
        self.fetches.want(std::mem::take(&mut self.hinted));
        self.fetches.retain(|room_id| !rooms.is_not_ours(room_id));
        let until = now.deadline(MAX_STICKY_DURATION);
        let others = rooms.joined().into_iter().filter(|room_id| !self.fetches.wants(room_id));
        self.incomplete = others.map(|room_id| (room_id, until)).collect();
        self.fetches.hurry(now);
    }

    /// Takes the failure of a request of the source.
    pub(super) fn handle_failure(&mut self, now: Moment, error: ConnectionError) {
        if self.activity == Activity::Asking {
            self.fail(now, error);
        }
    }

    /// Shows what a failure means, and waits before the next request.
    fn fail(&mut self, now: Moment, error: ConnectionError) {
        let error = match (&mut self.follower, error) {
            (Some(_), ConnectionError::Unsupported(Unsupported::SlidingSync)) => {
                ConnectionError::Transient("the server does not know v3 `/sync`".to_owned())
            }
            (Some(follower), ConnectionError::UnknownPos) => {
                // Asked with again, the token would be refused again.
                follower.start_over();
                ConnectionError::UnknownPos
            }
            (Some(follower), ConnectionError::TimedOut) => {
                follower.handle_timeout();
                ConnectionError::TimedOut
            }
            (_, error) => error,
        };
        let (state, wait) = self.connection.handle_failure(wall(now), error);
        if state == Some(SyncState::LoggedOut) {
            self.activity = Activity::Refused;
        } else {
            self.wait(now, wait.least, wait.about);
        }
        if let Some(state) = state {
            self.supported &= state == SyncState::CatchingUp;
            self.held_state = None;
            self.state = state;
        }
    }

    /// Takes that the client has another access token than the one that was refused.
    pub(super) fn handle_other_token(&mut self) {
        if matches!(self.activity, Activity::Refused | Activity::AwaitsToken) {
            self.ask_again();
        }
    }

    /// Takes that the SDK has refreshed the session's tokens.
    pub(super) fn handle_refresh(&mut self) {
        if self.state == SyncState::LoggedOut {
            self.activity = Activity::AsksVersions;
        }
    }

    /// Takes what became of fetching single rooms.
    pub(super) fn handle_fetched(&mut self, now: Moment, fetched: Fetched, rooms: &dyn OurRooms) {
        let Fetched { has_extension, complete, incomplete, failed } = fetched;
        self.fetches.handle_end();
        if has_extension {
            self.extension = Extension::Present;
        }
        for room_id in &complete {
            self.incomplete.remove(room_id);
        }
        let until = now.deadline(MAX_STICKY_DURATION);
        self.incomplete.extend(incomplete.into_iter().map(|room_id| (room_id, until)));
        // A follower has no long poll that would notice how the server is.
        let tells_state = self.follower.is_some() && self.supported;
        let Some((left, error)) = failed else {
            self.fetches.handle_success();
            let has_no_main_loop = matches!(
                self.state,
                SyncState::Unsupported(Unsupported::V3MainLoop | Unsupported::StickyExtension)
            );
            if tells_state && !has_no_main_loop {
                self.connection.handle_success();
                self.show_followed(now);
            }
            self.gather(now, Duration::ZERO);
            return;
        };
        // We may have left one meanwhile.
        self.fetches.handle_failure(left.into_iter().filter(|room_id| !rooms.is_not_ours(room_id)));
        let least = error.retry_after(wall(now)).unwrap_or_default();
        if tells_state {
            self.fail(now, error);
        }
        self.gather(now, least);
    }

    /// Takes news of the main loop. Gaps count only in rooms of which the maps have an event: leave the
    /// others out.
    pub(super) fn handle_news(&mut self, now: Moment, news: News) {
        for room_id in &news.left {
            self.fetches.forget(room_id);
        }
        self.forget_incomplete(now, |room_id| news.left.contains(room_id));
        self.expect(now, &news.sticky);
        if self.wanted_source == SyncSource::V3 || self.follower.is_some() {
            self.hinted.extend(news.sticky.into_iter().map(|shown| shown.room_id));
        }
        self.fetches.want(news.gaps);
        if !news.just_joined.is_empty() {
            self.fetches.want(news.just_joined);
            self.fetches.hurry(now);
        }
        self.gather(now, Duration::ZERO);
    }

    /// Takes the token that the main loop has stored, after it had an answer: what it has moved on from
    /// can be asked with. `has_news` says whether the answer had a room in it.
    pub(super) fn handle_main_token(&mut self, now: Moment, token: Option<String>, has_news: bool) {
        let Some(follower) = &mut self.follower else { return };
        if token.is_some() && token.as_deref() != follower.token() {
            self.tokenless_since = None;
        } else if has_news {
            // A moment's grace: this may be the answer whose token we have seen already.
            let since = *self.tokenless_since.get_or_insert(now);
            if token.is_none() || now.since(since) > TOKEN_TIMEOUT {
                self.activity = Activity::Resting;
                self.state = SyncState::Unsupported(match self.extension {
                    // Sliding sync would have been the source.
                    Extension::Absent => Unsupported::StickyExtension,
                    _ => Unsupported::V3MainLoop,
                });
                return;
            }
        }
        if let Some(token) = token {
            follower.handle_token(token);
        }
        if self.activity == Activity::Resting && self.supported {
            self.ask();
        }
    }

    /// Takes that updates of the main loop were missed. All that is live is asked for once more.
    pub(super) fn handle_missed_news(&mut self) {
        self.start_over();
    }

    /// Takes the whole list of ignored users. What the server kept from us of a user who is not ignored
    /// any more is asked for.
    pub(super) fn handle_ignored(&mut self, ignored: HashSet<OwnedUserId>) {
        let is_back = self.ignored.iter().any(|user| !ignored.contains(user));
        self.ignored = ignored;
        if is_back {
            self.start_over();
        }
    }

    /// Takes that the question for our rooms has ended, with an answer or without.
    pub(super) fn handle_listed(&mut self) {
        self.listing.handle_answer();
    }

    /// Takes what the maps have now: the rooms that they hide, and how many events are not proven.
    ///
    /// A state that an answer brought is held back while rooms are hidden: what it says is there has to
    /// be visible first. It waits for the list of our rooms, and no longer.
    pub(super) fn handle_maps(&mut self, now: Moment, hidden: Vec<OwnedRoomId>, unproven: usize) {
        self.listing.handle_hidden(now, hidden, self.supported);
        self.proofs.handle_unproven(now, unproven);
    }

    /// Returns what to do next; `None` if nothing is to be done before
    /// [`next_deadline`](Self::next_deadline) or the next `handle_..`.
    pub(super) fn poll_step(&mut self, now: Moment) -> Option<Step> {
        self.advance(now);
        if !self.listing.holds_states()
            && let Some(state) = self.held_state.take()
        {
            self.state = state;
        }
        if self.shown != self.state {
            self.shown = self.state.clone();
            return Some(Step::Show(self.shown.clone()));
        }
        match self.activity {
            Activity::AsksVersions => {
                self.activity = Activity::Asking;
                return Some(Step::Ask(Ask::Versions));
            }
            Activity::AsksEvents => {
                if let Some(ask) = self.next_ask() {
                    self.activity = Activity::Asking;
                    return Some(Step::Ask(ask));
                }
                self.activity = Activity::Resting;
            }
            Activity::Refused => {
                self.activity = Activity::AwaitsToken;
                return Some(Step::AwaitToken);
            }
            Activity::Resting | Activity::Asking | Activity::Waiting(_) | Activity::AwaitsToken => {
            }
        }
        if let Some(rooms) = self.fetches.poll(now, self.supported) {
            let by = match &mut self.follower {
                None => FetchBy::Sliding,
                Some(follower) => FetchBy::V3 { number: follower.next_number() },
            };
            return Some(Step::Fetch { rooms, by });
        }
        if self.listing.poll(now) {
            return Some(Step::ListRooms);
        }
        self.proofs.poll(now).then_some(Step::Prove)
    }

    /// Returns when to poll again, if nothing is handled before.
    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        let source = match self.activity {
            Activity::Waiting(due) => Some(due),
            _ => None,
        };
        let extension = match self.extension {
            Extension::Awaited { due, .. } => Some(due),
            _ => None,
        };
        [
            source,
            extension,
            self.completes,
            self.fetches.next_deadline(),
            self.listing.next_deadline(),
            self.proofs.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what was due by now.
    fn advance(&mut self, now: Moment) {
        if matches!(self.activity, Activity::Waiting(due) if due.is_over(now)) {
            self.ask_again();
        }
        if self.completes.is_some_and(|due| due.is_over(now)) {
            self.completes = None;
            self.forget_incomplete(now, |_| false);
        }
        self.look_at_extension(now);
    }

    /// Asks again after a wait. The server may be another version by now, unless it was well.
    fn ask_again(&mut self) {
        if self.supported && !self.is_to_switch() {
            self.ask();
        } else {
            self.activity = Activity::AsksVersions;
        }
    }

    /// Whether v3 is to take over, as sliding sync brings no sticky events. A request for `/versions` that
    /// failed is then repeated.
    fn is_to_switch(&self) -> bool {
        self.wanted_source == SyncSource::Auto
            && matches!(self.extension, Extension::Absent)
            && self.follower.is_none()
    }

    /// Has the source ask for events next; a follower that is where the main loop is has no question.
    fn ask(&mut self) {
        let has_question =
            self.follower.as_ref().is_none_or(|follower| follower.poll_question().is_some());
        self.activity = if has_question { Activity::AsksEvents } else { Activity::Resting };
    }

    fn next_ask(&mut self) -> Option<Ask> {
        let Some(follower) = &mut self.follower else {
            return Some(Ask::Sliding(Box::new(self.connection.poll_request())));
        };
        let question = follower.poll_question()?;
        let request = Box::new(follower.request(&question));
        Some(Ask::V3 { question, request, patience: follower.patience() })
    }

    fn wait(&mut self, now: Moment, least: Duration, about: Duration) {
        let wait = least.saturating_add(self.jittered(about));
        self.activity = Activity::Waiting(now.deadline(wait));
    }

    /// Returns a wait between half of `middle` and one and a half times it, so that many clients that
    /// lost the same server do not come back at the same instant.
    fn jittered(&mut self, middle: Duration) -> Duration {
        middle.mul_f64(0.5 + self.rng.f64())
    }

    fn gather(&mut self, now: Moment, least: Duration) {
        let rng = &mut self.rng;
        self.fetches.gather(now, least, |middle| middle.mul_f64(0.5 + rng.f64()));
    }

    /// Asks for all that is live once more.
    fn start_over(&mut self) {
        self.connection.start_over();
        if let Some(follower) = &mut self.follower {
            follower.start_over();
        }
        if self.supported {
            self.ask();
        }
    }

    /// The main loop has shown sticky events. If sliding sync has never brought any, it has to bring one
    /// soon, or it has no extension for them: nothing else tells the two apart.
    fn expect(&mut self, now: Moment, shown: &[Shown]) {
        if !matches!(self.extension, Extension::Unproven)
            || self.follower.is_some()
            || self.state != SyncState::Live
        {
            return;
        }
        let awaited = shown.iter().filter(|shown| !self.ignored.contains(&shown.sender));
        let rooms: Vec<_> = awaited.map(|shown| shown.room_id.clone()).collect();
        if !rooms.is_empty() {
            let due = now.deadline(EXTENSION_TIMEOUT);
            self.extension = Extension::Awaited { rooms, is_fetched: false, due };
        }
    }

    /// Looks whether sliding sync has brought what the main loop has shown a while ago.
    fn look_at_extension(&mut self, now: Moment) {
        let Extension::Awaited { rooms, is_fetched, due } = &mut self.extension else { return };
        if !due.is_over(now) {
            return;
        }
        // While the server is away, nothing can be concluded from what does not come.
        if self.state != SyncState::Live || *is_fetched && self.fetches.is_unsettled() {
            self.extension = Extension::Unproven;
        } else if !*is_fetched {
            *is_fetched = true;
            *due = now.deadline(EXTENSION_TIMEOUT);
            self.fetches.want(std::mem::take(rooms));
            self.fetches.hurry(now);
        } else {
            self.extension = Extension::Absent;
            if self.wanted_source == SyncSource::Auto {
                warn!("{}; trying v3", Unsupported::StickyExtension);
                self.activity = Activity::AsksVersions;
            } else {
                // It goes on asking: another version of the server may have it.
                self.state = SyncState::Unsupported(Unsupported::StickyExtension);
            }
        }
    }

    /// Shows how current a follower is that was answered, unless more is to come.
    fn show_followed(&mut self, now: Moment) {
        let has_all = self.follower.as_ref().is_some_and(Follower::has_all);
        if !has_all || !self.fetches.is_done() {
            return;
        }
        self.incomplete.retain(|_, until| !until.is_over(now));
        // While nothing happens, nothing else would say that the hour is over.
        self.completes = self.incomplete.values().min().copied();
        let rooms: Vec<_> = self.incomplete.keys().cloned().collect();
        let state =
            if rooms.is_empty() { SyncState::Live } else { SyncState::Incomplete { rooms } };
        self.show_known(state);
    }

    /// Takes that nothing is missing any more in these rooms, nor in those whose hour is over.
    fn forget_incomplete(&mut self, now: Moment, these: impl Fn(&OwnedRoomId) -> bool) {
        self.incomplete.retain(|room_id, _| !these(room_id));
        if matches!(self.state, SyncState::Incomplete { .. }) {
            self.show_followed(now);
        }
    }

    /// Shows a state as soon as no hidden room holds it back.
    fn show_known(&mut self, state: SyncState) {
        self.held_state = Some(match self.extension {
            Extension::Absent if self.follower.is_none() => {
                SyncState::Unsupported(Unsupported::StickyExtension)
            }
            _ => state,
        });
    }
}

/// The moment on this machine's wall clock.
fn wall(now: Moment) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(now.unix_ms())
}
