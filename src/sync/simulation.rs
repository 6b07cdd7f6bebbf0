//! A model server, a network that loses, delays and refuses, and a sync machine on it, in simulated
//! time. The laws are checked at every step.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use proptest::prelude::*;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, api::error::RetryAfter};

use super::{
    error::ConnectionError,
    machine::{FetchBy, Fetched, OurRooms, Step, SyncMachine},
    main_loop::{News, Shown},
    sliding::{self, MAX_PAGE_EVENTS, Page},
    source::{Ask, Features},
    state::{SyncSource, SyncState},
    v3::Question,
};
use crate::{
    testing::{ALICE, secs, start},
    time::{Deadline, Moment},
};

/// How long an answer is on its way, in milliseconds.
const LATENCY: u64 = 50;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

/// How many rooms there are.
const ROOMS: u8 = 4;

fn room_id(room: u8) -> OwnedRoomId {
    OwnedRoomId::try_from(format!("!{room}:hs")).unwrap()
}

/// What the network and the server make of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fine,
    /// Connections are refused, and those that are open break.
    Down,
    /// Requests get no answer in time.
    Silent,
    /// The server wants fewer requests, and says how long to wait, in seconds.
    Limited(u8),
    /// The access token is refused.
    Refused,
    /// The server denies that it has what the sources need.
    Lacks,
    /// The server, or something before it, answers long polls at once.
    Hasty,
}

#[derive(Clone, Debug)]
enum Happening {
    Weather(Weather),
    /// So many events are sent in a room.
    Events(u8, u8),
    Join(u8),
    Leave(u8),
    /// The main loop's timeline has a gap in a room.
    Gap(u8),
    /// The server forgets each position.
    LosePositions,
    /// We missed updates of the main loop.
    MissNews,
    /// A user is ignored, or is not ignored any more.
    Ignore(bool),
    /// The application's main loop stops or goes on.
    MainLoop(bool),
}

/// A request that is on its way.
#[derive(Debug)]
struct Flight<T> {
    what: T,
    asked: u64,
    ends: u64,
    is_silent: bool,
}

/// A server, with the sticky events of its rooms. Each event has a place in the stream.
#[derive(Debug, Default)]
struct Server {
    now: u64,
    stream: u64,
    /// The room of each event, and when it ends.
    events: BTreeMap<u64, (u8, u64)>,
    ours: BTreeSet<u8>,
    /// Counts how often the server forgot all positions.
    epoch: u64,
    has_no_extension: bool,
}

impl Server {
    /// Returns the live events of our rooms after this place, in their order.
    fn after(&self, since: u64, is_in: impl Fn(u8) -> bool) -> Vec<(u64, u8)> {
        let live = self.events.range(since + 1..).filter(|(_, (_, ends))| *ends > self.now);
        let of_rooms = live.map(|(event, (room, _))| (*event, *room));
        of_rooms.filter(|(_, room)| self.ours.contains(room) && is_in(*room)).collect()
    }
}

/// What the client knows: the rooms of its main loop, the server's list, and the maps.
#[derive(Debug, Default)]
struct Known {
    joined: BTreeSet<u8>,
    left: BTreeSet<u8>,
    listed: BTreeSet<u8>,
    events: BTreeMap<u64, u8>,
    /// The rooms of the events.
    rooms: BTreeSet<u8>,
}

impl Known {
    fn is_ours(&self, room: u8) -> Option<bool> {
        if self.joined.contains(&room) {
            Some(true)
        } else if self.left.contains(&room) {
            Some(false)
        } else {
            self.listed.contains(&room).then_some(true)
        }
    }

    fn deliver(&mut self, events: &[(u64, u8)]) -> usize {
        let events = events.iter().filter(|(_, room)| self.is_ours(*room) != Some(false));
        let new: Vec<_> = events.copied().filter(|(id, _)| !self.events.contains_key(id)).collect();
        let kept = new.len();
        self.rooms.extend(new.iter().map(|(_, room)| *room));
        self.events.extend(new);
        kept
    }

    fn retain(&mut self, mut is_kept: impl FnMut(u64, u8) -> bool) {
        self.events.retain(|event, room| is_kept(*event, *room));
        self.rooms = self.events.values().copied().collect();
    }

    fn hidden(&self) -> Vec<OwnedRoomId> {
        let rooms = self.rooms.iter().copied();
        rooms.filter(|room| self.is_ours(*room).is_none()).map(room_id).collect()
    }
}

impl OurRooms for Known {
    fn joined(&self) -> Vec<OwnedRoomId> {
        self.joined.iter().copied().map(room_id).collect()
    }

    fn is_not_ours(&self, room_id: &RoomId) -> bool {
        self.is_ours(room_of(room_id)) == Some(false)
    }
}

fn room_of(room_id: &RoomId) -> u8 {
    room_id.as_str()[1..2].parse().unwrap()
}

/// A machine, and the world around it.
struct World {
    now: u64,
    server: Server,
    known: Known,
    weather: Weather,
    machine: SyncMachine,
    shown: SyncState,
    source: Option<Flight<Ask>>,
    fetch: Option<Flight<(BTreeSet<OwnedRoomId>, FetchBy)>>,
    list: Option<Flight<()>>,
    awaits_token: bool,
    /// Where the main loop stands in the stream, and when it has its next answer.
    main_loop: u64,
    /// How many of its answers had something in them: each has a token of its own.
    answers: u64,
    main_loop_runs: bool,
    next_update: u64,
    is_ignoring: bool,
    /// Rooms that are to be fetched once more.
    owed: BTreeSet<u8>,
    /// How many events the last answer of the source left out, though it was to have them.
    left_out: usize,
    /// Since when each request of the source has failed.
    failing_since: Option<u64>,
    requests: VecDeque<u64>,
    happenings: VecDeque<u64>,
    follows: bool,
}

impl World {
    fn new(wanted: SyncSource, has_no_extension: bool, seed: u64) -> Self {
        let ours = [0, 1].into();
        Self {
            now: 0,
            server: Server { ours, has_no_extension, ..Server::default() },
            known: Known::default(),
            weather: Weather::Fine,
            machine: SyncMachine::new(
                start(),
                wanted,
                SyncState::Connecting,
                "sticky".to_owned(),
                seed,
            ),
            shown: SyncState::Connecting,
            source: None,
            fetch: None,
            list: None,
            awaits_token: false,
            main_loop: 0,
            answers: 0,
            main_loop_runs: true,
            next_update: 0,
            is_ignoring: false,
            owed: BTreeSet::new(),
            left_out: 0,
            failing_since: None,
            requests: VecDeque::new(),
            happenings: VecDeque::new(),
            follows: false,
        }
    }

    fn moment(&self) -> Moment {
        start().advanced(Duration::from_millis(self.now))
    }

    fn is_due(&self, deadline: Deadline) -> u64 {
        self.now + u64::try_from(deadline.left(self.moment()).as_millis()).unwrap()
    }

    /// Lets so much time pass, in milliseconds.
    fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        self.poll();
        loop {
            let next = [
                self.source.as_ref().map(|flight| flight.ends),
                self.fetch.as_ref().map(|flight| flight.ends),
                self.list.as_ref().map(|flight| flight.ends),
                Some(self.next_update),
                self.machine.next_deadline().map(|deadline| self.is_due(deadline)),
            ];
            let next = next.into_iter().flatten().min().unwrap();
            if next > end {
                break;
            }
            self.now = next.max(self.now);
            self.server.now = self.now;
            self.step();
            self.poll();
        }
        self.now = end;
        self.server.now = end;
    }

    /// Lets happen what is due now.
    fn step(&mut self) {
        let now = self.now;
        if let Some(flight) = self.source.take_if(|flight| flight.ends <= now) {
            self.end_source(flight);
        } else if let Some(flight) = self.fetch.take_if(|flight| flight.ends <= now) {
            self.end_fetch(flight);
        } else if let Some(flight) = self.list.take_if(|flight| flight.ends <= now) {
            if self.failure(flight.is_silent).is_none() {
                self.known.listed = self.server.ours.clone();
            }
            self.machine.handle_listed();
        } else if self.next_update <= now {
            self.next_update = now + 2 * SECOND;
            let ended = self.server.events.extract_if(.., |_, (_, ends)| *ends <= now);
            let ended: BTreeSet<_> = ended.map(|(event, _)| event).collect();
            if !ended.is_empty() {
                self.known.retain(|event, _| !ended.contains(&event));
            }
            self.update();
        }
        if self.awaits_token && self.weather != Weather::Refused {
            self.awaits_token = false;
            self.machine.handle_other_token();
        }
    }

    /// Performs the machine's steps, and checks the laws.
    fn poll(&mut self) {
        self.machine.handle_maps(self.moment(), self.known.hidden(), 0);
        let mut steps = 0;
        while let Some(step) = self.machine.poll_step(self.moment()) {
            steps += 1;
            assert!(steps < 20, "a machine that never rests: {step:?}");
            match step {
                Step::Show(state) => {
                    self.check_shown(&state);
                    self.shown = state;
                }
                Step::Ask(ask) => self.ask(ask),
                Step::AwaitToken => {
                    self.source = None;
                    self.awaits_token = true;
                }
                Step::Fetch { rooms, by } => {
                    assert!(self.fetch.is_none(), "one fetch at a time");
                    assert!(!rooms.is_empty());
                    self.fetch = Some(self.flight((rooms, by), Duration::ZERO, secs(15)));
                }
                Step::ListRooms => {
                    self.list = Some(self.flight((), Duration::ZERO, secs(15)));
                }
                Step::Prove => panic!("nothing is encrypted"),
            }
        }
        let failing = self.failing_since.map_or(0, |since| self.now - since);
        let is_said = matches!(
            self.shown,
            SyncState::Offline { .. } | SyncState::LoggedOut | SyncState::Unsupported(_)
        );
        assert!(failing < MINUTE || is_said, "an outage of {failing} ms is {:?}", self.shown);
        let due = self.machine.next_deadline();
        assert!(due.is_none_or(|due| !due.is_over(self.moment())), "a deadline is left over");
    }

    /// Live is said only after an answer that left nothing out.
    fn check_shown(&self, state: &SyncState) {
        if *state == SyncState::Live && !self.follows {
            assert_eq!(self.left_out, 0, "live, though a page was to follow");
            assert_eq!(self.failing_since, None, "live, though nothing is answered");
        }
    }

    fn ask(&mut self, ask: Ask) {
        self.awaits_token = false;
        let (hold, timeout) = match &ask {
            Ask::Versions => (Duration::ZERO, secs(15)),
            Ask::Sliding(request) => (request.hold(), request.timeout()),
            Ask::V3 { patience, .. } => (Duration::ZERO, *patience),
        };
        let hold = if self.has_news(&ask) || self.weather == Weather::Hasty {
            Duration::ZERO
        } else {
            hold
        };
        self.source = Some(self.flight(ask, hold, timeout));
    }

    /// Counts a request, and sends it on its way.
    fn flight<T>(&mut self, what: T, hold: Duration, timeout: Duration) -> Flight<T> {
        self.requests.push_back(self.now);
        while self.requests.front().is_some_and(|at| at + MINUTE < self.now) {
            self.requests.pop_front();
        }
        while self.happenings.front().is_some_and(|at| at + 2 * MINUTE < self.now) {
            self.happenings.pop_front();
        }
        let allowed = 75 + 12 * self.happenings.len();
        assert!(self.requests.len() <= allowed, "a hot loop: {} requests", self.requests.len());
        let is_silent = self.weather == Weather::Silent;
        let takes = if is_silent { timeout } else { hold };
        let ends = self.now + LATENCY + u64::try_from(takes.as_millis()).unwrap();
        Flight { what, asked: self.now, ends, is_silent }
    }

    fn has_news(&self, ask: &Ask) -> bool {
        matches!(ask, Ask::Sliding(request) if !self.page(request).1.is_empty())
    }

    /// Something new ends a long poll.
    fn wake(&mut self) {
        if let Some(flight) = &self.source
            && !flight.is_silent
            && self.has_news(&flight.what)
        {
            let ends = flight.ends.min(self.now + LATENCY);
            self.source.as_mut().unwrap().ends = ends;
        }
    }

    /// Returns why a request that ends now fails, if it does.
    fn failure(&self, is_silent: bool) -> Option<ConnectionError> {
        Some(match self.weather {
            _ if is_silent => ConnectionError::TimedOut,
            Weather::Down => ConnectionError::Transient("down".to_owned()),
            Weather::Limited(seconds) => ConnectionError::RateLimited {
                retry_after: Some(RetryAfter::Delay(secs(seconds.into()))),
            },
            Weather::Refused => ConnectionError::LoggedOut,
            Weather::Fine | Weather::Silent | Weather::Lacks | Weather::Hasty => return None,
        })
    }

    fn end_source(&mut self, flight: Flight<Ask>) {
        if let Some(error) = self.failure(flight.is_silent) {
            let is_outage =
                matches!(error, ConnectionError::TimedOut | ConnectionError::Transient(_));
            self.failing_since = is_outage.then(|| self.failing_since.unwrap_or(self.now));
            self.machine.handle_failure(self.moment(), error);
            return;
        }
        self.failing_since = None;
        match flight.what {
            Ask::Versions => {
                let has = self.weather != Weather::Lacks;
                let features = Features { sticky_events: has, sliding_sync: has };
                let (now, token) = (self.moment(), self.token());
                let source = self.machine.handle_versions(now, features, Some(token));
                if let Some(source) = source {
                    self.follows = source == SyncSource::V3;
                }
            }
            Ask::Sliding(request) => {
                let (epoch, events) = self.page(&request);
                if request.pos().is_some_and(|pos| pos != epoch) {
                    return self.machine.handle_failure(self.moment(), ConnectionError::UnknownPos);
                }
                let page = &events[..events.len().min(MAX_PAGE_EVENTS)];
                self.left_out = events.len() - page.len();
                let next_batch = page.last().map(|(event, _)| event.to_string());
                let answer = Page { pos: epoch, next_batch, len: page.len() };
                let kept = self.known.deliver(page);
                let took = Duration::from_millis(self.now - flight.asked);
                self.machine.handle_page(self.moment(), &answer, took, kept);
            }
            Ask::V3 { question, .. } => {
                let since = match &question {
                    Question::All => 0,
                    Question::After(token) => token.split_once('-').unwrap().1.parse().unwrap(),
                };
                let mut events = self.server.after(since, |_| true);
                events.truncate(MAX_PAGE_EVENTS);
                self.known.deliver(&events);
                let rooms: BTreeSet<_> = events.iter().map(|(_, room)| *room).collect();
                let rooms = rooms.into_iter().map(room_id).collect();
                let (now, len) = (self.moment(), events.len());
                self.machine.handle_followed(now, &question, len, rooms, &self.known);
            }
        }
    }

    /// Returns the server's position, and all events that the request has still to get.
    fn page(&self, request: &sliding::Request) -> (String, Vec<(u64, u8)>) {
        let since = request.since().map_or(0, |since| since.parse().unwrap());
        let has_extension = !self.server.has_no_extension;
        let events = self.server.after(since, |_| has_extension);
        (self.server.epoch.to_string(), events)
    }

    fn end_fetch(&mut self, flight: Flight<(BTreeSet<OwnedRoomId>, FetchBy)>) {
        let (rooms, by) = flight.what;
        let mut fetched = Fetched::default();
        if let Some(error) = self.failure(flight.is_silent) {
            fetched.failed = Some((rooms, error));
        } else {
            let is_wanted = |room| rooms.contains(&room_id(room));
            if by != FetchBy::Sliding || !self.server.has_no_extension {
                let events = self.server.after(0, is_wanted);
                fetched.has_extension = by == FetchBy::Sliding && !events.is_empty();
                self.known.deliver(&events);
            }
            self.owed.retain(|room| !is_wanted(*room));
            fetched.complete = rooms.into_iter().collect();
        }
        self.machine.handle_fetched(self.moment(), fetched, &self.known);
    }

    /// Gives the main loop an answer.
    fn update(&mut self) {
        if !self.main_loop_runs || !matches!(self.weather, Weather::Fine | Weather::Hasty) {
            return;
        }
        let mut news = News::default();
        let ours = self.server.ours.clone();
        for room in 0..ROOMS {
            let was = self.known.is_ours(room) == Some(true) && self.known.joined.contains(&room);
            match (was, ours.contains(&room)) {
                (false, true) => {
                    self.known.joined.insert(room);
                    self.known.left.remove(&room);
                    news.new.push(room_id(room));
                    news.just_joined.push(room_id(room));
                    self.owed.insert(room);
                }
                (true, false) => {
                    self.known.joined.remove(&room);
                    self.known.listed.remove(&room);
                    self.known.left.insert(room);
                    self.known.retain(|_, of| of != room);
                    self.owed.remove(&room);
                    news.left.push(room_id(room));
                }
                _ => {}
            }
        }
        let sender = OwnedUserId::try_from(ALICE).unwrap();
        let mut page = self.server.after(self.main_loop, |_| true);
        // The main loop's own answers have a page at most, and its token stands at the page's end.
        let is_full = page.len() >= MAX_PAGE_EVENTS;
        page.truncate(MAX_PAGE_EVENTS);
        let last = page.last().map(|(event, _)| *event);
        let shown: BTreeSet<_> = page.into_iter().map(|(_, room)| room_id(room)).collect();
        news.sticky =
            shown.into_iter().map(|room_id| Shown { room_id, sender: sender.clone() }).collect();
        let has_news = !news.sticky.is_empty() || !news.new.is_empty();
        self.main_loop = last.filter(|_| is_full).unwrap_or(self.server.stream);
        self.machine.handle_news(self.moment(), news);
        self.main_token(has_news);
    }

    /// Returns the main loop's token.
    fn token(&self) -> String {
        format!("{}-{}", self.answers, self.main_loop)
    }

    fn main_token(&mut self, has_news: bool) {
        self.answers += u64::from(has_news);
        if self.machine.is_following() {
            self.machine.handle_main_token(self.moment(), Some(self.token()), has_news);
        }
    }

    fn happen(&mut self, happening: Happening) {
        self.happenings.push_back(self.now);
        match happening {
            Happening::Weather(weather) => {
                self.weather = weather;
                if let (Weather::Down, Some(flight)) = (weather, &mut self.source) {
                    flight.ends = self.now;
                }
            }
            Happening::Events(room, count) => {
                for _ in 0..=count {
                    self.server.stream += 1;
                    let ends = self.now + 60 * MINUTE;
                    self.server.events.insert(self.server.stream, (room, ends));
                }
                self.wake();
            }
            // Not before the main loop has said that we left: a leave and a join in one answer of it
            // look as if nothing had happened.
            Happening::Join(room) => {
                if !self.known.joined.contains(&room) {
                    self.server.ours.insert(room);
                }
            }
            Happening::Leave(room) => {
                self.server.ours.remove(&room);
            }
            Happening::Gap(room) => {
                let has_events = self.known.rooms.contains(&room);
                if self.known.joined.contains(&room) && has_events {
                    self.owed.insert(room);
                    let news = News { gaps: vec![room_id(room)], ..News::default() };
                    self.machine.handle_news(self.moment(), news);
                    self.main_token(true);
                }
            }
            Happening::LosePositions => {
                self.server.epoch += 1;
                // A long poll on a lost position ends.
                if let Some(flight) = &mut self.source
                    && !flight.is_silent
                {
                    flight.ends = flight.ends.min(self.now + LATENCY);
                }
            }
            Happening::MissNews => self.machine.handle_missed_news(),
            Happening::Ignore(ignores) => {
                self.is_ignoring = ignores;
                let users = ignores.then(|| OwnedUserId::try_from("@mallory:hs").unwrap());
                self.machine.handle_ignored(users.into_iter().collect());
            }
            Happening::MainLoop(runs) => self.main_loop_runs = runs,
        }
        self.poll();
    }

    /// It is live, and all that is to be known is known. Only a v3 source may name rooms in which
    /// events are missing, and for no longer than an hour.
    fn check_whole(&mut self) {
        let mut named = BTreeSet::new();
        if let (SyncState::Incomplete { rooms }, true) = (self.shown.clone(), self.follows) {
            named = rooms.iter().map(|room_id| room_of(room_id)).collect();
            self.pass(61 * MINUTE);
        }
        assert_eq!(self.shown, SyncState::Live);
        let all = self.server.after(0, |room| !named.contains(&room));
        let missing: Vec<_> =
            all.iter().filter(|(event, _)| !self.known.events.contains_key(event)).collect();
        assert!(missing.is_empty(), "missing: {missing:?}");
        assert!(self.owed.is_empty(), "never fetched again: {:?}", self.owed);
        // A room that we left before the main loop said that we were in it stays hidden, until its
        // events are over.
        let mut hidden = self.known.hidden();
        hidden.retain(|room_id| self.server.ours.contains(&room_of(room_id)));
        assert_eq!(hidden, [""; 0]);
    }
}

fn weather() -> impl Strategy<Value = Weather> {
    prop_oneof![
        4 => Just(Weather::Fine),
        2 => Just(Weather::Down),
        2 => Just(Weather::Silent),
        1 => (0..=30_u8).prop_map(Weather::Limited),
        1 => Just(Weather::Refused),
        1 => Just(Weather::Lacks),
        1 => Just(Weather::Hasty),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    let room = 0..ROOMS;
    prop_oneof![
        4 => weather().prop_map(Happening::Weather),
        4 => (room.clone(), prop_oneof![0..3_u8, 90..=255_u8])
            .prop_map(|(room, count)| Happening::Events(room, count)),
        2 => room.clone().prop_map(Happening::Join),
        1 => room.clone().prop_map(Happening::Leave),
        2 => room.prop_map(Happening::Gap),
        1 => Just(Happening::LosePositions),
        1 => Just(Happening::MissNews),
        1 => any::<bool>().prop_map(Happening::Ignore),
        1 => any::<bool>().prop_map(Happening::MainLoop),
    ]
}

/// What happens, and how long after the one before, in milliseconds.
fn happenings() -> impl Strategy<Value = Vec<(u64, Happening)>> {
    let pause = prop_oneof![
        3 => 0..200_u64,
        3 => 200..5 * SECOND,
        2 => 5 * SECOND..2 * MINUTE,
        1 => 2 * MINUTE..20 * MINUTE,
    ];
    proptest::collection::vec((pause, happening()), 0..40)
}

fn source() -> impl Strategy<Value = SyncSource> {
    prop_oneof![
        2 => Just(SyncSource::Sliding),
        2 => Just(SyncSource::V3),
        1 => Just(SyncSource::Auto),
    ]
}

/// The calm after which each wait that the server may have asked for is over: 10 min with jitter.
const CALM: u64 = 16 * MINUTE;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200),
        ..ProptestConfig::default()
    })]

    /// The laws are checked at every step. At the end the network and the server are fine.
    #[test]
    fn after_any_storm_it_is_live_and_whole(
        wanted in source(),
        happenings in happenings(),
        seed: u64,
    ) {
        let mut world = World::new(wanted, false, seed);
        let may_deny =
            happenings.iter().any(|(_, it)| matches!(it, Happening::Weather(Weather::Lacks)));
        for (pause, happening) in happenings {
            world.pass(pause);
            world.happen(happening);
        }
        world.happen(Happening::MainLoop(true));
        world.happen(Happening::Weather(Weather::Fine));
        // A v3 question that got no answer may take 4 min until it is given up.
        world.pass(if may_deny { CALM } else { 6 * MINUTE });
        world.check_whole();
    }

    /// Without the extension sliding sync brings nothing; v3 does, if the application lets it.
    #[test]
    fn without_the_extension_v3_brings_all(
        happenings in happenings(),
        seed: u64,
    ) {
        let mut world = World::new(SyncSource::Auto, true, seed);
        for (pause, happening) in happenings {
            world.pass(pause);
            world.happen(happening);
        }
        world.happen(Happening::MainLoop(true));
        world.happen(Happening::Weather(Weather::Fine));
        world.pass(CALM);
        world.happen(Happening::Join(0));
        world.happen(Happening::Events(0, 0));
        world.pass(CALM);
        prop_assert!(world.follows);
        world.check_whole();
    }
}

/// A room is being fetched when the server has the feature again, and nothing comes after. The end of
/// the fetch has to say that all is well.
#[test]
fn a_fetch_ends_unsupported_over_v3() {
    let mut world = World::new(SyncSource::V3, false, 0);
    for happening in [
        Happening::Events(1, 0),
        Happening::Weather(Weather::Limited(0)),
        Happening::Events(0, 0),
        Happening::Weather(Weather::Lacks),
        Happening::Leave(0),
    ] {
        world.happen(happening);
    }
    world.pass(50);
    assert!(matches!(world.shown, SyncState::Unsupported(_)), "{:?}", world.shown);
    world.happen(Happening::Weather(Weather::Fine));
    world.pass(CALM);
    world.check_whole();
}

/// The rate limit refuses the question that leads from sliding sync to v3. It is asked again.
#[test]
fn a_limited_switch_to_v3_is_repeated() {
    let mut world = World::new(SyncSource::Auto, true, 0);
    for (pause, happening) in [
        (0, Happening::Events(0, 0)),
        (4_538, Happening::Events(0, 0)),
        (3_293, Happening::Weather(Weather::Limited(0))),
        (4_219, Happening::Weather(Weather::Fine)),
        (0, Happening::MainLoop(true)),
        (CALM, Happening::Join(0)),
        (0, Happening::Events(0, 0)),
    ] {
        world.pass(pause);
        world.happen(happening);
    }
    world.pass(CALM);
    assert!(world.follows);
    world.check_whole();
}

/// A gap may hide a redaction: its room is fetched once more, within seconds.
#[test]
fn a_gap_has_its_room_fetched() {
    let mut world = World::new(SyncSource::Sliding, false, 0);
    world.happen(Happening::Events(0, 0));
    world.pass(MINUTE);
    assert_eq!(world.shown, SyncState::Live);
    world.happen(Happening::Gap(0));
    assert_eq!(world.owed, [0].into());
    world.pass(4 * SECOND);
    assert_eq!(world.owed, [].into());
}

/// While nothing happens, our own requests are as rare as the speed table says.
#[test]
fn an_idle_hour_takes_144_requests() {
    for (wanted, most) in [(SyncSource::Sliding, 144), (SyncSource::V3, 0)] {
        let mut world = World::new(wanted, false, 1);
        world.happen(Happening::Events(0, 3));
        world.pass(MINUTE);
        assert_eq!(world.shown, SyncState::Live);
        let mut requests = 0;
        for _ in 0..60 {
            world.requests.clear();
            world.pass(MINUTE);
            requests += world.requests.len();
        }
        assert!(requests <= most, "{wanted}: {requests} requests");
    }
}
