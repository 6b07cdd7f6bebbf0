//! Sync: the sources of sticky events, and the one task that listens to them.
//!
//! In: responses of our own connection, the application's main loop, the ignore list, room keys,
//! and the timer. Out: deliveries to the maps, and the [`SyncState`]. Which event counts is never
//! decided here.

#[cfg(feature = "e2e-encryption")]
mod decrypt;
mod main_loop;
mod sliding;
pub(crate) mod state;
mod v3;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    future::{pending, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use eyeball::SharedObservable;
use futures_core::Stream;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{Either, select},
};
use matrix_sdk::{
    Client, HttpError, RoomState, SessionChange, store::StateStoreDataKey, sync::RoomUpdates,
};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::{
        discovery::get_supported_versions, membership::joined_rooms, message::get_message_events,
    },
    events::ignored_user_list::IgnoredUserListEventContent,
    exports::http::StatusCode,
    serde::Raw,
    uint,
};
use serde_json::value::RawValue;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, warn};

use self::{
    main_loop::{MainLoop, News, Shown},
    sliding::{Connection, Failure, Request, Response},
    state::{SyncSource, SyncState, Unsupported},
    v3::{Follower, Question},
};
use crate::{
    driver::{BoxFuture, Timer, jittered, optional, random_name},
    map::ReceivedVia,
    request::{REQUEST_TIMEOUT, describe, one_try},
    time::{Deadline, MAX_STICKY_DURATION, Moment},
    view::{Arrival, Delivery, EphemeralMaps},
    wire::names,
};

/// How long to wait before the next of several rooms is asked for over v3.
const PAUSE: Duration = Duration::from_millis(100);

/// How many pages of 100 events of a room's history are searched at most.
const HISTORY_PAGES: usize = 30;

/// How long a main loop may have answers without a new token before we say that it has none.
const GRACE: Duration = Duration::from_secs(5);

/// When to ask again for the list of our rooms, while something came of a room of which nobody has
/// said that we are in it; it doubles up to the longest.
const LIST_AGAIN: Duration = Duration::from_secs(60);

const LONGEST_LIST: Duration = Duration::from_secs(600);

/// When to ask for the room of a sticky event that the main loop has shown, while our source has
/// brought none; and when to conclude, if that brings none either, that it never will. Together the
/// 10 s of the laws of the view.
const MISSING: Duration = Duration::from_secs(5);

/// When to ask the SDK again who encrypted an event whose sender's device was not known; it doubles
/// up to the longest.
#[cfg_attr(not(feature = "e2e-encryption"), allow(dead_code, reason = "nothing is decrypted"))]
const PROVE_AFTER: Duration = Duration::from_secs(1);

#[cfg_attr(not(feature = "e2e-encryption"), allow(dead_code, reason = "nothing is decrypted"))]
const LONGEST_PROOF: Duration = Duration::from_secs(120);

/// How often a client that is not logged in yet is looked at.
const LOGIN_CHECK: Duration = Duration::from_millis(200);

/// How often a client whose token was refused is looked at.
const TOKEN_CHECK: Duration = Duration::from_secs(2);

/// Gaps in the main loop's timelines are gathered this long before their rooms are asked for: a
/// busy room can have one in every response.
const GATHER: Duration = Duration::from_secs(2);

/// What the task works on. It holds no handle of the application's, so that dropping the last one
/// ends it.
pub(crate) struct Worker {
    pub(crate) client: Client,
    pub(crate) maps: EphemeralMaps,
    pub(crate) timer: Arc<dyn Timer>,
    pub(crate) state: SharedObservable<SyncState>,
    /// What the application wants.
    pub(crate) wanted_source: SyncSource,
    /// What it is, once the server has been asked.
    pub(crate) source: SharedObservable<SyncSource>,
    /// The rooms that we are in by the server's own list, as it was when it was last asked for.
    pub(crate) listed: Mutex<HashSet<OwnedRoomId>>,
}

/// What the task waits for, besides the timer.
enum Event {
    /// The server has what we need from this source.
    Supported(SyncSource),
    /// A question of the follower's was answered.
    Followed(Question, v3::Response),
    /// An answer of our connection, and how long it took.
    Answer(Response, Duration),
    /// A request of our connection failed.
    Failed(Failure),
    /// The wait before the next request is over.
    Again,
    /// The sticky events of single rooms were fetched, or could not be.
    Fetched(Fetched),
    /// It is time to fetch those of the rooms that were gathered.
    Gathered,
    /// What was missing of a room is over.
    Completed,
    /// The main loop had a response.
    Rooms(Result<RoomUpdates, RecvError>),
    /// The whole list of ignored users.
    Ignored(Vec<String>),
    Session(Result<SessionChange, RecvError>),
    /// Room keys came; `None`: some were missed.
    Keys(Option<Vec<Waiting>>),
    /// It is time to ask again who encrypted what is not proven yet.
    #[cfg_attr(not(feature = "e2e-encryption"), allow(dead_code, reason = "nothing is decrypted"))]
    Prove,
    /// The main loop has shown a sticky event a while ago.
    Overdue,
    /// The server's list of the rooms that we are in, if it gave one.
    Listed(Option<Vec<OwnedRoomId>>),
}

/// What came of fetching the sticky events of single rooms.
#[derive(Default)]
struct Fetched {
    /// Whether sliding sync was seen to have the extension for sticky events.
    has_extension: bool,
    /// Rooms of which all has come.
    complete: Vec<OwnedRoomId>,
    /// Rooms of which something may be missing.
    incomplete: Vec<OwnedRoomId>,
    /// The rooms that are still to be fetched, and why they could not be.
    failed: Option<(BTreeSet<OwnedRoomId>, Failure)>,
}

/// The events that wait for the key of a session of a room, or for any key of it.
type Waiting = (OwnedRoomId, Option<String>);

type KeyStream = Pin<Box<dyn Stream<Item = Option<Vec<Waiting>>> + Send>>;

/// What one turn of the task works with.
struct Turn<'a> {
    connection: Connection,
    connected_at: Moment,
    /// Where the source is v3: where we stand behind the main loop.
    follower: Option<Follower>,
    /// Since when the main loop has had answers without storing a new token.
    tokenless_since: Option<Moment>,
    /// Rooms of which something may be missing, and until when.
    incomplete: BTreeMap<OwnedRoomId, Deadline>,
    /// Rooms in which the main loop has shown something sticky, where the source is v3.
    hinted: BTreeSet<OwnedRoomId>,
    /// Whether the server has what we need, since it was last away.
    supported: bool,
    main_loop: MainLoop,
    ignored: HashSet<OwnedUserId>,
    /// Rooms whose sticky events are to be fetched.
    wanted: BTreeSet<OwnedRoomId>,
    /// How often in a row that failed.
    failed_fetches: u32,
    /// What our connection is doing: asking or waiting. A follower may have nothing to do.
    next: Option<BoxFuture<'a, Event>>,
    fetch: Option<BoxFuture<'a, Event>>,
    gather: Option<BoxFuture<'a, Event>>,
    /// When the first of the incomplete rooms is complete.
    completes: Option<BoxFuture<'a, Event>>,
    /// The question for the rooms that we are in, and which unknown ones made us ask.
    list: Option<BoxFuture<'a, Event>>,
    asked_about: HashSet<OwnedRoomId>,
    /// Whether that question waits for longer than something new of an unknown room would.
    asks_late: bool,
    /// How often in a row some were still unknown after it.
    asked_in_vain: u32,
    /// What to show when that is answered.
    held_state: Option<SyncState>,
    /// Whether sliding sync has the extension for sticky events.
    extension: Extension,
    /// Where the main loop has shown sticky events that it should have brought.
    awaited_in: Vec<OwnedRoomId>,
    /// When to ask again who encrypted what, how often in a row that was not known of all, and of how
    /// many it was not.
    prove: Option<BoxFuture<'a, Event>>,
    proved_in_vain: u32,
    #[cfg_attr(not(feature = "e2e-encryption"), allow(dead_code, reason = "nothing is decrypted"))]
    unproven: usize,
    /// When the next look at that is due.
    overdue: Option<BoxFuture<'a, Event>>,
}

/// Whether the server's sliding sync brings sticky events at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// It has brought none, and the main loop has shown none.
    Unproven,
    /// The main loop has shown one; whether its room was asked for by itself.
    Awaited {
        is_fetched: bool,
    },
    Present,
    Absent,
}

/// A page of sticky events that was asked for of a single room, over v3.
struct Page {
    /// There may be more.
    is_full: bool,
    /// All of it is of that room, or there is no more.
    is_filtered: bool,
}

impl Fetched {
    fn failed(rooms: BTreeSet<OwnedRoomId>, failure: Failure) -> Self {
        Self { failed: Some((rooms, failure)), ..Self::default() }
    }
}

impl Worker {
    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        // One task for both: whichever has something to do is polled.
        futures_util::future::join(self.expire(), self.sync()).await;
    }

    /// Tells what ends when it ends.
    async fn expire(&self) {
        let mut known = None;
        loop {
            let changed = poll_fn(|cx| self.maps.poll_next_deadline(cx, known));
            known = match known {
                None => changed.await,
                Some(deadline) => {
                    let sleep = self.timer.sleep_until(deadline);
                    match select(pin!(changed), sleep).await {
                        Either::Left((next, _)) => next,
                        Either::Right(_) => {
                            self.maps.advance();
                            self.maps.next_deadline()
                        }
                    }
                }
            };
        }
    }

    async fn sync(&self) {
        let own_id = self.login().await;
        // Subscribed before anything is asked for, so that nothing falls between.
        let mut rooms = self.client.subscribe_to_all_room_updates();
        let mut session = self.client.subscribe_to_session_changes();
        let mut ignored = self.client.subscribe_to_ignore_user_list_changes();
        let mut keys: Option<KeyStream> = None;
        let mut machine = None;
        let mut turn = Turn {
            connection: Connection::new(random_name()),
            connected_at: self.maps.now(),
            follower: None,
            tokenless_since: None,
            incomplete: BTreeMap::new(),
            hinted: BTreeSet::new(),
            supported: false,
            main_loop: MainLoop::new(own_id, self.joined_rooms()),
            ignored: self.ignored_users().await,
            wanted: BTreeSet::new(),
            failed_fetches: 0,
            next: Some(self.ask_support(Extension::Unproven)),
            fetch: None,
            gather: None,
            completes: None,
            list: None,
            asked_about: HashSet::new(),
            asks_late: false,
            asked_in_vain: 0,
            held_state: None,
            extension: Extension::Unproven,
            awaited_in: Vec::new(),
            overdue: None,
            prove: None,
            proved_in_vain: 0,
            unproven: 0,
        };
        self.maps.handle_ignored(turn.ignored.clone());

        loop {
            if keys.is_none() {
                machine = self.machine().await;
                keys = self.key_stream().await;
                if keys.is_some() {
                    self.retry(None).await;
                    self.prove().await;
                }
            }
            let event = tokio::select! {
                event = optional(&mut turn.next) => event,
                event = optional(&mut turn.fetch) => event,
                event = optional(&mut turn.gather) => event,
                event = optional(&mut turn.completes) => event,
                event = optional(&mut turn.list) => event,
                event = optional(&mut turn.overdue) => event,
                event = optional(&mut turn.prove) => event,
                update = rooms.recv() => Event::Rooms(update),
                Some(users) = ignored.next() => Event::Ignored(users),
                change = session.recv() => Event::Session(change),
                news = next_keys(&mut keys) => match news {
                    Some(sessions) => Event::Keys(sessions),
                    // The stream ends when matrix-sdk makes its machine anew, as another process
                    // wrote the store. The next turn listens again, and looks at all that waits.
                    None => {
                        keys = None;
                        continue;
                    }
                },
            };
            let is_update = matches!(event, Event::Rooms(_));
            self.handle(&mut turn, event).await;
            self.look_at_hidden(&mut turn);
            self.schedule_proof(&mut turn);
            // Whoever has a stream of devices keeps the old machine, and so our old stream does not
            // end. The main loop gives its keys to the new one.
            if is_update && self.machine().await != machine {
                keys = None;
            }
        }
    }

    async fn handle<'a>(&'a self, turn: &mut Turn<'a>, event: Event) {
        match event {
            Event::Supported(source) => {
                turn.supported = true;
                self.source.set_if_not_eq(source);
                if source == SyncSource::V3 {
                    let follower = turn.follower.get_or_insert_default();
                    if let Some(token) = self.main_token().await {
                        follower.handle_token(token);
                    }
                } else {
                    turn.follower = None;
                    turn.incomplete.clear();
                }
                turn.next = self.ask(turn);
                if turn.follower.is_some() && turn.next.is_none() {
                    // Nothing is to be asked, so no answer will say that all is well again.
                    turn.connection.handle_success();
                    self.show_followed(turn);
                }
                self.gather_wanted(turn, Duration::ZERO);
            }
            Event::Answer(response, took) => {
                let received = self.maps.now();
                if turn.connection.is_fresh() {
                    turn.connected_at = received;
                }
                if response.has_extension() {
                    turn.extension = Extension::Present;
                    turn.overdue = None;
                }
                let (state, wait) = turn.connection.handle_response(&response, took);
                // The next request is on its way while this answer is worked on.
                turn.next =
                    if wait.is_zero() { self.ask(turn) } else { Some(self.wait(jittered(wait))) };
                let len = response.len();
                let kept = self.deliver(received, response.rooms).await;
                turn.connection.handle_kept(len, kept);
                self.show_known(turn, state);
            }
            Event::Followed(question, response) => {
                turn.connection.handle_success();
                let received = self.maps.now();
                if question == Question::All {
                    turn.connected_at = received;
                }
                let is_part = question == Question::All && response.len() >= sliding::PAGE;
                if let Some(follower) = &mut turn.follower {
                    follower.handle_answer(&question);
                }
                if question == Question::All && !is_part {
                    turn.incomplete.clear();
                    turn.hinted.clear();
                }
                let in_page: Vec<_> = match is_part {
                    true => response.rooms.iter().map(|(room_id, _)| room_id.clone()).collect(),
                    false => Vec::new(),
                };
                turn.next = self.ask(turn);
                self.deliver(received, response.rooms).await;
                let is_behind = turn.follower.as_ref().is_some_and(|it| it.token().is_some());
                if is_part && !is_behind {
                    // With the main loop's first token all is asked for once more; until then nobody
                    // knows which rooms we are in, and which of them have something.
                    self.show_known(turn, SyncState::CatchingUp);
                } else if is_part {
                    // A page of all rooms together: the rest has to be asked for room by room. Only
                    // of the rooms of which there is a reason to think so: one hostile member can
                    // fill a page, and an account can have thousands of rooms.
                    self.show_known(turn, SyncState::CatchingUp);
                    let until = self.maps.now().deadline(MAX_STICKY_DURATION);
                    let joined = self.joined_rooms();
                    turn.wanted.extend(in_page.into_iter().chain(std::mem::take(&mut turn.hinted)));
                    turn.wanted.retain(|room_id| !self.is_not_ours(room_id));
                    let others = joined.into_iter().filter(|it| !turn.wanted.contains(it));
                    turn.incomplete = others.map(|room_id| (room_id, until)).collect();
                    turn.gather = Some(Box::pin(async { Event::Gathered }));
                } else {
                    self.show_followed(turn);
                }
            }
            Event::Failed(failure) => {
                debug!(?failure, "the sticky connection failed");
                self.handle_failure(turn, failure);
            }
            Event::Again if turn.supported => turn.next = self.ask(turn),
            // It may be another version of the server by now.
            Event::Again => turn.next = Some(self.ask_support(turn.extension)),
            Event::Fetched(Fetched { has_extension, complete, incomplete, failed }) => {
                turn.fetch = None;
                if has_extension {
                    turn.extension = Extension::Present;
                    turn.overdue = None;
                }
                for room_id in &complete {
                    turn.incomplete.remove(room_id);
                }
                let until = self.maps.now().deadline(MAX_STICKY_DURATION);
                turn.incomplete.extend(incomplete.into_iter().map(|room_id| (room_id, until)));
                let mut least = Duration::ZERO;
                match failed {
                    None => {
                        turn.failed_fetches = 0;
                        // While the server is away, or there is no main loop to follow, that says
                        // nothing.
                        let is_well = !matches!(self.state.get(), SyncState::Unsupported(_));
                        if turn.follower.is_some() && turn.supported && is_well {
                            turn.connection.handle_success();
                            self.show_followed(turn);
                        }
                    }
                    Some((rooms, failure)) => {
                        debug!(?failure, "could not fetch the sticky events of single rooms");
                        turn.failed_fetches = turn.failed_fetches.saturating_add(1);
                        // We may have left one meanwhile.
                        let rooms = rooms.into_iter().filter(|room_id| !self.is_not_ours(room_id));
                        turn.wanted.extend(rooms);
                        least = failure.retry_after(self.wall()).unwrap_or_default();
                        if turn.follower.is_some() && turn.supported {
                            // A follower has no long poll that would notice.
                            self.handle_failure(turn, failure);
                        }
                    }
                }
                self.gather_wanted(turn, least);
            }
            Event::Completed => {
                turn.completes = None;
                self.forget_incomplete(turn, |_| false);
            }
            Event::Gathered => {
                turn.gather = None;
                // While the server is away they wait until it is back.
                if turn.supported && turn.fetch.is_none() && !turn.wanted.is_empty() {
                    let wanted = std::mem::take(&mut turn.wanted);
                    turn.fetch = Some(match &mut turn.follower {
                        None => self.fetch(wanted),
                        Some(follower) => self.fetch_v3(wanted, follower.next_number()),
                    });
                }
            }
            Event::Rooms(Ok(updates)) => self.handle_rooms(turn, &updates).await,
            Event::Rooms(Err(RecvError::Lagged(missed))) => {
                debug!(missed, "missed updates of the main loop: starting over");
                turn.main_loop.start_over(self.joined_rooms());
                for room_id in self.maps.rooms().iter().filter(|room_id| self.is_not_ours(room_id))
                {
                    self.maps.handle_left(room_id);
                }
                self.start_over(turn);
                self.retry(None).await;
            }
            Event::Ignored(users) => {
                let users: HashSet<_> =
                    users.into_iter().filter_map(|user| UserId::parse(user).ok()).collect();
                let back = turn.ignored.iter().any(|user| !users.contains(user));
                self.maps.handle_ignored(users.clone());
                turn.ignored = users;
                if back {
                    // What they sent meanwhile was kept from us by the server.
                    self.start_over(turn);
                }
            }
            Event::Session(Ok(SessionChange::TokensRefreshed)) => {
                if self.state.get() == SyncState::LoggedOut {
                    turn.next = Some(self.ask_support(turn.extension));
                }
            }
            Event::Keys(waiting) => self.retry(waiting).await,
            Event::Prove => {
                turn.prove = None;
                turn.proved_in_vain = turn.proved_in_vain.saturating_add(1);
                self.prove().await;
            }
            Event::Listed(rooms) => self.handle_listed(turn, rooms),
            Event::Overdue => self.handle_overdue(turn),
            // An unknown token is noticed by our own next request. The senders live as long as the
            // client, which we hold.
            Event::Session(_) | Event::Rooms(Err(RecvError::Closed)) => {}
        }
    }

    async fn handle_rooms<'a>(&'a self, turn: &mut Turn<'a>, updates: &RoomUpdates) {
        let now = self.maps.now();
        let News { redactions, left, new, just_joined, gaps, sticky } =
            turn.main_loop.handle_update(updates, now.since(turn.connected_at));

        self.maps.handle(redactions.into_iter().map(|(room_id, event_id)| Delivery {
            room_id,
            received: now,
            via: ReceivedVia::Timeline,
            arrivals: vec![Arrival::Redaction(event_id)],
        }));
        for room_id in &left {
            self.maps.handle_left(room_id);
            turn.wanted.remove(room_id);
        }
        self.forget_incomplete(turn, |room_id| left.contains(room_id));
        if !new.is_empty() {
            // Until now the room's keys could not be asked for.
            self.retry(Some(new.into_iter().map(|room_id| (room_id, None)).collect())).await;
        }
        self.expect(turn, &sticky);
        if self.wanted_source == SyncSource::V3 || turn.follower.is_some() {
            turn.hinted.extend(sticky.into_iter().map(|shown| shown.room_id));
        }
        let gaps = gaps.into_iter().filter(|room_id| self.maps.stats(room_id).events > 0);
        turn.wanted.extend(gaps);
        if !just_joined.is_empty() {
            turn.wanted.extend(just_joined);
            turn.gather = Some(Box::pin(async { Event::Gathered }));
        }
        self.gather_wanted(turn, Duration::ZERO);
        if turn.follower.is_some() {
            self.follow(turn, now, !updates.joined.is_empty()).await;
        }
    }

    /// The main loop has shown sticky events. If sliding sync has never brought any, it has to bring
    /// one soon, or has no extension for them: nothing else tells the two apart.
    fn expect<'a>(&'a self, turn: &mut Turn<'a>, shown: &[Shown]) {
        let is_awaited = |shown: &&Shown| !turn.ignored.contains(&shown.sender);
        if turn.extension != Extension::Unproven
            || turn.follower.is_some()
            || self.state.get() != SyncState::Live
            || !shown.iter().any(|shown| is_awaited(&shown))
        {
            return;
        }
        turn.extension = Extension::Awaited { is_fetched: false };
        turn.awaited_in.extend(shown.iter().filter(is_awaited).map(|shown| shown.room_id.clone()));
        turn.overdue = Some(self.overdue());
    }

    fn overdue(&self) -> BoxFuture<'_, Event> {
        let sleep = self.timer.sleep_until(self.maps.now().deadline(MISSING));
        Box::pin(sleep.map(|()| Event::Overdue))
    }

    fn handle_overdue<'a>(&'a self, turn: &mut Turn<'a>) {
        turn.overdue = None;
        let rooms = std::mem::take(&mut turn.awaited_in);
        match turn.extension {
            // While the server is away, nothing can be told from what does not come.
            Extension::Awaited { .. } if self.state.get() != SyncState::Live => {
                turn.extension = Extension::Unproven;
            }
            Extension::Awaited { is_fetched: false } => {
                turn.extension = Extension::Awaited { is_fetched: true };
                turn.wanted.extend(rooms);
                turn.gather = Some(Box::pin(async { Event::Gathered }));
                turn.overdue = Some(self.overdue());
            }
            Extension::Awaited { .. } if turn.fetch.is_some() || turn.failed_fetches > 0 => {
                turn.extension = Extension::Unproven;
            }
            Extension::Awaited { .. } => {
                turn.extension = Extension::Absent;
                if self.wanted_source == SyncSource::Auto {
                    warn!("{}; trying v3", Unsupported::StickyExtension);
                    turn.next = Some(self.ask_support(turn.extension));
                } else {
                    // It goes on asking: another version of the server may have it.
                    self.show(SyncState::Unsupported(Unsupported::StickyExtension));
                }
            }
            _ => {}
        }
    }

    /// The main loop had an answer: what it has moved on from can be asked with.
    async fn follow<'a>(&'a self, turn: &mut Turn<'a>, now: Moment, has_news: bool) {
        let token = self.main_token().await;
        let Some(follower) = &mut turn.follower else { return };
        if token.is_some() && token.as_deref() != follower.token() {
            turn.tokenless_since = None;
        } else if has_news {
            // A moment's grace: we may be reading of an answer whose token we have seen already.
            let since = *turn.tokenless_since.get_or_insert(now);
            if token.is_none() || now.since(since) > GRACE {
                turn.next = None;
                self.show(SyncState::Unsupported(match turn.extension {
                    // Sliding sync would have been the source.
                    Extension::Absent => Unsupported::StickyExtension,
                    _ => Unsupported::V3MainLoop,
                }));
                return;
            }
        }
        if let Some(token) = token {
            follower.handle_token(token);
        }
        if turn.next.is_none() && turn.supported {
            turn.next = self.ask(turn);
        }
    }

    /// A request of our source failed: shows what that means, and waits before the next one.
    fn handle_failure<'a>(&'a self, turn: &mut Turn<'a>, failure: Failure) {
        let failure = match (&mut turn.follower, failure) {
            (Some(_), Failure::Unsupported(Unsupported::SlidingSync)) => {
                Failure::Transient("the server does not know v3 `/sync`".to_owned())
            }
            (Some(follower), Failure::UnknownPos) => {
                // Asked with again, the token would be refused again.
                follower.start_over();
                Failure::UnknownPos
            }
            (Some(follower), Failure::TimedOut) => {
                follower.handle_timeout();
                Failure::TimedOut
            }
            (_, failure) => failure,
        };
        let (state, wait) = turn.connection.handle_failure(self.wall(), failure);
        turn.next = Some(match state {
            Some(SyncState::LoggedOut) => self.other_token(),
            _ => self.wait(wait.least.saturating_add(jittered(wait.about))),
        });
        if let Some(state) = state {
            turn.supported &= state == SyncState::CatchingUp;
            turn.held_state = None;
            self.show(state);
        }
    }

    /// Shows how current a follower is that was answered, unless more is to come.
    fn show_followed<'a>(&'a self, turn: &mut Turn<'a>) {
        let has_all = turn.follower.as_ref().is_some_and(Follower::has_all);
        if !has_all || turn.fetch.is_some() || !turn.wanted.is_empty() {
            return;
        }
        let now = self.maps.now();
        turn.incomplete.retain(|_, until| !until.is_over(now));
        // While nothing happens, nothing else would tell that the hour is over.
        turn.completes = turn.incomplete.values().min().map(|until| {
            let sleep = self.timer.sleep_until(*until);
            Box::pin(sleep.map(|()| Event::Completed)) as BoxFuture<'_, Event>
        });
        let rooms: Vec<_> = turn.incomplete.keys().cloned().collect();
        let state =
            if rooms.is_empty() { SyncState::Live } else { SyncState::Incomplete { rooms } };
        self.show_known(turn, state);
    }

    /// Of these rooms nothing is missing any more, nor of those whose hour is over.
    fn forget_incomplete<'a>(&'a self, turn: &mut Turn<'a>, these: impl Fn(&OwnedRoomId) -> bool) {
        turn.incomplete.retain(|room_id, _| !these(room_id));
        if matches!(self.state.get(), SyncState::Incomplete { .. }) {
            self.show_followed(turn);
        }
    }

    /// The token that the application's main loop has stored last.
    async fn main_token(&self) -> Option<String> {
        let token = self.client.state_store().get_kv_data(StateStoreDataKey::SyncToken).await;
        match token {
            Ok(token) => token?.into_sync_token(),
            Err(error) => {
                debug!(%error, "could not read the main loop's token");
                None
            }
        }
    }

    /// Waits for more rooms to fetch, where some are wanted and nothing is under way: at least so
    /// long.
    fn gather_wanted<'a>(&'a self, turn: &mut Turn<'a>, least: Duration) {
        if !turn.wanted.is_empty() && turn.fetch.is_none() && turn.gather.is_none() {
            let wait = sliding::doubled(GATHER, turn.failed_fetches);
            let until = self.maps.now().deadline(least.saturating_add(jittered(wait)));
            let sleep = self.timer.sleep_until(until);
            turn.gather = Some(Box::pin(sleep.map(|()| Event::Gathered)));
        }
    }

    /// Asks for all that is live once more.
    fn start_over<'a>(&'a self, turn: &mut Turn<'a>) {
        turn.connection.start_over();
        if let Some(follower) = &mut turn.follower {
            follower.start_over();
        }
        if turn.supported {
            turn.next = self.ask(turn);
        }
    }

    /// Waits until the client has a session, and says whose it is.
    async fn login(&self) -> OwnedUserId {
        loop {
            if let Some(session) = self.client.session_meta() {
                return session.user_id.clone();
            }
            // matrix-sdk tells nobody when a session is there.
            self.timer.sleep_until(self.maps.now().deadline(LOGIN_CHECK)).await;
        }
    }

    fn joined_rooms(&self) -> Vec<OwnedRoomId> {
        self.client.joined_rooms().iter().map(|room| room.room_id().to_owned()).collect()
    }

    /// Whether we are in a room, by the word of the main loop, and where it does not know the room,
    /// of the server's list; `None` if nobody has said so yet.
    fn is_ours(&self, room_id: &RoomId) -> Option<bool> {
        match self.client.get_room(room_id) {
            Some(room) => Some(room.state() == RoomState::Joined),
            None => self.listed().contains(room_id).then_some(true),
        }
    }

    fn is_not_ours(&self, room_id: &RoomId) -> bool {
        self.is_ours(room_id) == Some(false)
    }

    fn listed(&self) -> MutexGuard<'_, HashSet<OwnedRoomId>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what has been hidden of rooms that turn out to be ours. Of those of which nobody has
    /// said it yet, the server is asked. They may be rooms that we joined elsewhere a moment ago, or
    /// that we are only invited to: Synapse tells of both.
    fn look_at_hidden<'a>(&'a self, turn: &mut Turn<'a>) {
        let mut hidden = self.maps.hidden();
        hidden.retain(|room_id| match self.is_ours(room_id) {
            Some(true) => {
                self.maps.reveal(room_id);
                false
            }
            Some(false) => {
                self.maps.handle_left(room_id);
                false
            }
            None => true,
        });
        turn.asked_about.retain(|room_id| hidden.contains(room_id));
        if hidden.is_empty() {
            turn.asked_in_vain = 0;
            turn.list = None;
            self.show_held(turn);
            return;
        }
        let is_asked = hidden.iter().all(|room_id| turn.asked_about.contains(room_id));
        if !turn.supported || turn.list.is_some() && (is_asked || !turn.asks_late) {
            return;
        }
        let wait = match turn.asked_in_vain {
            0 => Duration::ZERO,
            times if is_asked => LIST_AGAIN.saturating_mul(1 << times.min(4)).min(LONGEST_LIST),
            _ => GATHER,
        };
        turn.asks_late = is_asked;
        turn.asked_about.extend(hidden);
        turn.list = Some(self.ask_list(wait));
    }

    /// Asks the server for the rooms that we are in, after a while.
    fn ask_list(&self, wait: Duration) -> BoxFuture<'_, Event> {
        let until = self.maps.now().deadline(wait);
        Box::pin(async move {
            self.timer.sleep_until(until).await;
            let request = joined_rooms::v3::Request::new();
            match self.client.send(request).with_request_config(one_try(REQUEST_TIMEOUT)).await {
                Ok(response) => Event::Listed(Some(response.joined_rooms)),
                Err(error) => {
                    debug!(error = describe(&error), "the server does not list our rooms");
                    Event::Listed(None)
                }
            }
        })
    }

    fn handle_listed(&self, turn: &mut Turn<'_>, rooms: Option<Vec<OwnedRoomId>>) {
        turn.list = None;
        if let Some(rooms) = rooms {
            *self.listed() = rooms.into_iter().collect();
        }
        turn.asked_in_vain = turn.asked_in_vain.saturating_add(1);
        for room_id in self.maps.hidden() {
            if self.is_ours(&room_id) == Some(true) {
                self.maps.reveal(&room_id);
            }
        }
        self.show_held(turn);
    }

    /// Shows a state, once it is known of all rooms whether we are in them: what it says is there is
    /// to be seen.
    fn show_known<'a>(&'a self, turn: &mut Turn<'a>, state: SyncState) {
        let state = match turn.extension {
            Extension::Absent if turn.follower.is_none() => {
                SyncState::Unsupported(Unsupported::StickyExtension)
            }
            _ => state,
        };
        self.look_at_hidden(turn);
        if turn.list.is_some() && turn.asked_in_vain == 0 {
            turn.held_state = Some(state);
        } else {
            turn.held_state = None;
            self.show(state);
        }
    }

    fn show_held(&self, turn: &mut Turn<'_>) {
        if let Some(state) = turn.held_state.take() {
            self.show(state);
        }
    }

    async fn ignored_users(&self) -> HashSet<OwnedUserId> {
        let content = self.client.account().account_data::<IgnoredUserListEventContent>().await;
        match content.map(|content| content.map(|content| content.deserialize())) {
            Ok(Some(Ok(content))) => content.ignored_users.into_keys().collect(),
            Ok(None) => HashSet::new(),
            // The server keeps their events from us in any case.
            Ok(Some(Err(error))) => unreadable_ignore_list(&error),
            Err(error) => unreadable_ignore_list(&error),
        }
    }

    /// Asks the server whether it has what we need. Never a cached answer: one from before an
    /// update of the server would say no for days.
    fn ask_support(&self, extension: Extension) -> BoxFuture<'_, Event> {
        let request = self
            .client
            .send(get_supported_versions::Request::new())
            .with_request_config(one_try(REQUEST_TIMEOUT));
        Box::pin(async move {
            let token = self.client.access_token();
            let features = match request.await {
                Ok(response) => response.unstable_features,
                Err(error) => return self.failed(token, Failure::of_versions(error)),
            };
            let has = |feature| features.get(feature).copied().unwrap_or_default();
            if !has(names::FEATURE) {
                return Event::Failed(Failure::Unsupported(Unsupported::StickyEvents));
            }
            match self.wanted_source {
                SyncSource::V3 => Event::Supported(SyncSource::V3),
                SyncSource::Auto if extension == Extension::Absent => {
                    Event::Supported(SyncSource::V3)
                }
                _ if has(names::SLIDING_SYNC) => Event::Supported(SyncSource::Sliding),
                SyncSource::Auto => Event::Supported(SyncSource::V3),
                SyncSource::Sliding => {
                    Event::Failed(Failure::Unsupported(Unsupported::SlidingSync))
                }
            }
        })
    }

    /// The next request of our source; none where a follower is where the main loop is.
    fn ask<'a>(&'a self, turn: &mut Turn<'a>) -> Option<BoxFuture<'a, Event>> {
        let Some(follower) = &mut turn.follower else {
            let request = turn.connection.poll_request();
            let asked = self.maps.now();
            let timeout = request.timeout();
            return Some(Box::pin(async move {
                let token = self.client.access_token();
                match self.client.send(request).with_request_config(one_try(timeout)).await {
                    Ok(response) => Event::Answer(response, self.maps.now().since(asked)),
                    Err(error) => self.failed(token, error.into()),
                }
            }));
        };
        let question = follower.poll_question()?;
        let request = follower.request(&question);
        let patience = follower.patience();
        Some(Box::pin(async move {
            let token = self.client.access_token();
            match self.client.send(request).with_request_config(one_try(patience)).await {
                Ok(response) => Event::Followed(question, response),
                Err(error) => self.failed(token, error.into()),
            }
        }))
    }

    /// A request that was sent with this token failed.
    fn failed(&self, token: Option<String>, failure: Failure) -> Event {
        Event::Failed(self.with_token(token, failure))
    }

    /// What a failure means of a request that was sent with this token.
    fn with_token(&self, token: Option<String>, failure: Failure) -> Failure {
        match failure {
            Failure::LoggedOut if self.client.access_token() != token => Failure::TokenChanged,
            failure => failure,
        }
    }

    fn wait(&self, duration: Duration) -> BoxFuture<'_, Event> {
        let sleep = self.timer.sleep_until(self.maps.now().deadline(duration));
        Box::pin(sleep.map(|()| Event::Again))
    }

    /// Waits until the client has another access token than the one that was refused. Until then
    /// nothing is asked.
    fn other_token(&self) -> BoxFuture<'_, Event> {
        let refused = self.client.access_token();
        Box::pin(async move {
            // A refresh is told as a change of the session; a session that is reloaded is not.
            while self.client.access_token() == refused {
                self.timer.sleep_until(self.maps.now().deadline(TOKEN_CHECK)).await;
            }
            Event::Again
        })
    }

    /// Fetches and delivers the sticky events of these rooms, on a connection just for that: all
    /// that are live, whatever the main one has seen.
    fn fetch(&self, rooms: BTreeSet<OwnedRoomId>) -> BoxFuture<'_, Event> {
        Box::pin(async move {
            let name = random_name();
            let (mut pos, mut since) = (None, None);
            let mut fetched = Fetched::default();
            let mut known_pages = 0;
            loop {
                let request = Request::for_rooms(&name, &rooms, pos, since.clone());
                let timeout = request.timeout();
                let page =
                    match self.client.send(request).with_request_config(one_try(timeout)).await {
                        Ok(page) => page,
                        Err(error) => return Event::Fetched(Fetched::failed(rooms, error.into())),
                    };
                let is_next = page.next_batch.is_some() && page.next_batch != since;
                let mut more = page.is_full() && is_next;
                pos = Some(page.pos.clone());
                since.clone_from(&page.next_batch);
                fetched.has_extension |= page.has_extension();
                let kept = self.deliver(self.maps.now(), page.rooms).await;
                known_pages = if kept == 0 { known_pages + 1 } else { 0 };
                // A server that goes in a circle would be asked for ever.
                more &= known_pages < sliding::KNOWN_PAGES;
                if !more {
                    return Event::Fetched(fetched);
                }
            }
        })
    }

    /// Fetches and delivers the sticky events of these rooms over v3, each by a request without a
    /// token; and of a room that has more than a page, from its history.
    fn fetch_v3(&self, mut rooms: BTreeSet<OwnedRoomId>, number: u64) -> BoxFuture<'_, Event> {
        Box::pin(async move {
            let mut fetched = Fetched::default();
            let (mut is_first, mut is_filtered) = (true, true);
            while let Some(room_id) = rooms.pop_first() {
                if !std::mem::take(&mut is_first) {
                    self.timer.sleep_until(self.maps.now().deadline(PAUSE)).await;
                }
                let token = self.client.access_token();
                let page = match is_filtered {
                    true => self.fetch_room_v3(&room_id, number).await,
                    false => Ok(Page { is_full: true, is_filtered: false }),
                };
                let has_all = match page {
                    // A server that does not look at the room, as Synapse. Once its page of all rooms
                    // is full, each further one would be the same.
                    Ok(page) => {
                        is_filtered &= page.is_filtered;
                        if page.is_full { self.search_history(&room_id).await } else { Ok(true) }
                    }
                    Err(failure) => Err(failure),
                };
                match has_all {
                    Ok(true) => fetched.complete.push(room_id),
                    Ok(false) => fetched.incomplete.push(room_id),
                    Err(failure) => {
                        rooms.insert(room_id);
                        fetched.failed = Some((rooms, self.with_token(token, failure)));
                        break;
                    }
                }
            }
            Event::Fetched(fetched)
        })
    }

    async fn fetch_room_v3(&self, room_id: &RoomId, number: u64) -> Result<Page, Failure> {
        let request = v3::Request::for_all(Some(room_id.to_owned()), number);
        let page = self.client.send(request).with_request_config(one_try(REQUEST_TIMEOUT)).await?;
        let is_full = page.len() >= sliding::PAGE;
        let is_filtered = !is_full || page.rooms.iter().all(|(of, _)| of == room_id);
        self.deliver(self.maps.now(), page.rooms).await;
        Ok(Page { is_full, is_filtered })
    }

    /// Delivers what is sticky in the last hour of a room's history. Whether that was all of it.
    async fn search_history(&self, room_id: &RoomId) -> Result<bool, Failure> {
        let mut from = None;
        for _ in 0..HISTORY_PAGES {
            let mut request = get_message_events::v3::Request::backward(room_id.to_owned());
            request.from = from;
            request.limit = uint!(100);
            let page =
                self.client.send(request).with_request_config(one_try(REQUEST_TIMEOUT)).await;
            let page = match page {
                Ok(page) => page,
                // A history that we may not read is as one that is too long.
                Err(error) if is_forbidden(&error) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let received = self.maps.now();
            let events: Vec<_> = page.chunk.into_iter().map(Raw::into_json).collect();
            // The page is in the server's order. What a single event says of its age is its sender's
            // word, and ends nothing.
            let is_over =
                !events.is_empty() && events.iter().all(|event| is_older_than_sticky(event.get()));
            self.deliver_by(received, ReceivedVia::Timeline, vec![(room_id.to_owned(), events)])
                .await;
            from = page.end;
            if is_over || from.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Hands a sticky section to the maps.
    async fn deliver(
        &self,
        received: Moment,
        rooms: Vec<(OwnedRoomId, Vec<Box<RawValue>>)>,
    ) -> usize {
        self.deliver_by(received, ReceivedVia::Section, rooms).await
    }

    /// Hands events to the maps, with what is encrypted decrypted where the key is there. How many
    /// were not known before.
    async fn deliver_by(
        &self,
        received: Moment,
        via: ReceivedVia,
        mut rooms: Vec<(OwnedRoomId, Vec<Box<RawValue>>)>,
    ) -> usize {
        let mut unknown = Vec::new();
        // An answer that was on its way while we left, or a room that we are only invited to: Synapse
        // tells of those as well. What is sticky there is fetched when we join.
        rooms.retain(|(room_id, _)| {
            let is_ours = self.is_ours(room_id);
            if is_ours.is_none() {
                unknown.push(room_id.clone());
            }
            is_ours != Some(false)
        });
        let events = rooms
            .iter()
            .flat_map(|(room_id, events)| events.iter().map(move |event| (&**room_id, &**event)));
        let mut needs_decryption = self.maps.needs_decryption(events).into_iter();
        let mut deliveries = Vec::with_capacity(rooms.len());
        for (room_id, events) in rooms {
            let mut arrivals = Vec::with_capacity(events.len());
            for event in events {
                let decrypted = match needs_decryption.next() {
                    Some(true) => self.decrypt(&room_id, &event).await,
                    _ => None,
                };
                arrivals.push(decrypted.unwrap_or(Arrival::Event(event)));
            }
            deliveries.push(Delivery { room_id, received, via, arrivals });
        }
        // We may have left a room while its events were decrypted. What comes after its entries have
        // left would stay: nothing more is said of a room that we are not in.
        deliveries.retain(|delivery| !self.is_not_ours(&delivery.room_id));
        if !unknown.is_empty() {
            self.maps.hide(unknown);
        }
        self.maps.take(deliveries.into())
    }

    /// Tries again to decrypt what waits: for these keys, or for any.
    async fn retry(&self, waiting: Option<Vec<Waiting>>) {
        let waiting = waiting.unwrap_or_else(|| {
            self.maps.rooms().into_iter().map(|room_id| (room_id, None)).collect()
        });
        let mut deliveries = Vec::new();
        for (room_id, session_id) in waiting {
            let mut arrivals = Vec::new();
            for event in self.maps.pending_decryption(&room_id, session_id.as_deref()) {
                arrivals.extend(self.decrypt(&room_id, event.raw()).await);
            }
            // From the moment of receipt on; that is kept with the event that waits.
            let received = self.maps.now();
            deliveries.push(Delivery { room_id, received, via: ReceivedVia::Section, arrivals });
        }
        self.maps.handle(deliveries);
    }

    #[cfg(feature = "e2e-encryption")]
    async fn decrypt(&self, room_id: &RoomId, event: &RawValue) -> Option<Arrival> {
        let room = self.client.get_room(room_id)?;
        let decrypt::Decrypted { clear, encryption } = decrypt::decrypt(&room, event).await?;
        Some(Arrival::Decrypted { outer: event.to_owned(), clear, encryption })
    }

    /// Without encryption nothing encrypted can be read: it waits until it ends.
    #[cfg(not(feature = "e2e-encryption"))]
    async fn decrypt(&self, _: &RoomId, _: &RawValue) -> Option<Arrival> {
        None
    }

    /// Asks the SDK once more who encrypted what is not proven. The sender's device may be known by
    /// now; and what the client's settings keep from us while the device is not trusted may be
    /// readable.
    ///
    /// Why not listen to the SDK's stream of devices? Whoever holds that holds the machine that it
    /// came from. Then no stream of room keys of that machine ever ends, which is what tells us (and
    /// the SDK itself) that there is a new one.
    #[cfg(feature = "e2e-encryption")]
    async fn prove(&self) {
        let mut deliveries = Vec::new();
        for (room_id, events) in self.maps.unproven() {
            let Some(room) = self.client.get_room(&room_id) else { continue };
            let mut arrivals = Vec::new();
            for (event, session_id) in events {
                if let Some(info) = room.get_encryption_info(&session_id, event.sender()).await {
                    let encryption = decrypt::encryption(&info);
                    let event_id = event.event_id().to_owned();
                    arrivals.push(Arrival::Encryption { event_id, encryption });
                }
            }
            let received = self.maps.now();
            deliveries.push(Delivery { room_id, received, via: ReceivedVia::Section, arrivals });
        }
        self.maps.handle(deliveries);
        if decrypt::needs_trust(&self.client) {
            self.retry(None).await;
        }
    }

    #[cfg(not(feature = "e2e-encryption"))]
    async fn prove(&self) {}

    /// Has it be asked again while something is not proven: soon after something new is not, and then
    /// less and less often.
    #[cfg(feature = "e2e-encryption")]
    fn schedule_proof<'a>(&'a self, turn: &mut Turn<'a>) {
        let mut unproven = self.maps.unproven_len();
        if decrypt::needs_trust(&self.client) {
            let rooms = self.maps.rooms();
            unproven += rooms
                .iter()
                .map(|room_id| self.maps.stats(room_id).pending_decryption)
                .sum::<usize>();
        }
        let is_more = unproven > turn.unproven;
        turn.unproven = unproven;
        if unproven == 0 {
            turn.prove = None;
        } else if is_more || turn.prove.is_none() {
            if is_more {
                turn.proved_in_vain = 0;
            }
            let wait = PROVE_AFTER.saturating_mul(1 << turn.proved_in_vain.min(16));
            let until = self.maps.now().deadline(wait.min(LONGEST_PROOF));
            turn.prove = Some(Box::pin(self.timer.sleep_until(until).map(|()| Event::Prove)));
        }
    }

    #[cfg(not(feature = "e2e-encryption"))]
    fn schedule_proof(&self, _: &mut Turn<'_>) {}

    /// Which machine decrypts, where that can be told.
    #[cfg(feature = "e2e-encryption")]
    async fn machine(&self) -> Option<usize> {
        crate::encrypt::Encryptor::of(&self.client)?.machine_number().await
    }

    #[cfg(not(feature = "e2e-encryption"))]
    async fn machine(&self) -> Option<usize> {
        None
    }

    #[cfg(feature = "e2e-encryption")]
    async fn key_stream(&self) -> Option<KeyStream> {
        let keys = self.client.encryption().room_keys_received_stream().await?;
        Some(Box::pin(keys.map(|keys| {
            let keys = keys.ok()?;
            Some(keys.into_iter().map(|key| (key.room_id, Some(key.session_id))).collect())
        })))
    }

    #[cfg(not(feature = "e2e-encryption"))]
    async fn key_stream(&self) -> Option<KeyStream> {
        None
    }

    fn show(&self, state: SyncState) {
        if let SyncState::Unsupported(what) = &state {
            // Said once for each time that it comes to be so, like all that follows.
            if self.state.get() != state {
                warn!("{what}");
            }
        }
        self.state.set_if_not_eq(state);
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.maps.now().unix_ms())
    }
}

/// Whether an event of a room's history is so old that none before it is sticky any more.
fn is_older_than_sticky(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Aged {
        unsigned: Unsigned,
    }
    #[derive(serde::Deserialize)]
    struct Unsigned {
        age: u64,
    }
    serde_json::from_str::<Aged>(text)
        .is_ok_and(|event| Duration::from_millis(event.unsigned.age) > MAX_STICKY_DURATION)
}

fn is_forbidden(error: &HttpError) -> bool {
    let status = error.as_client_api_error().map(|error| error.status_code);
    status == Some(StatusCode::FORBIDDEN)
}

/// Returns what the stream of keys gives next. Without a stream it never returns.
async fn next_keys(keys: &mut Option<KeyStream>) -> Option<Option<Vec<Waiting>>> {
    match keys {
        Some(keys) => keys.next().await,
        None => pending().await,
    }
}

fn unreadable_ignore_list(error: &dyn fmt::Display) -> HashSet<OwnedUserId> {
    debug!(%error, "could not read the list of ignored users");
    HashSet::new()
}
