//! The reference model: every delivery in a list, and the value of each key computed from scratch
//! whenever it is asked for. A [`Run`] takes the maps and views through steps and compares.
//!
//! In: events as their senders wrote them ([`Spec`]), and what happens ([`Step`]). Out: a panic if the
//! maps differ from the model. `tests/model.rs` draws the steps with proptest, `fuzz/` from
//! bytes, `tests/corpus.rs` from the fuzzer's corpus.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use eyeball_im::Vector;
use futures_util::Stream;
use matrix_sdk_sticky::{
    event::{Encryption, RemovalReason},
    map::{Limits, MAX_OTHERS_PER_KEY, ReceivedVia},
    time::{Clock, Moment},
    view::{
        Arrival, Changes, Delivery, DiffStream, Entry, EntryChange, EphemeralMaps, Snapshot,
        Subscription,
    },
};
use ruma::{EventId, RoomId, UserId, room_id};
use serde_json::{Value, json, value::RawValue};

const START_MS: u64 = 1_700_000_000_000;
pub(crate) const MINUTE: u64 = 60_000;
pub(crate) const HOUR: u64 = 60 * MINUTE;
/// The number of specs; an event is an index into them.
pub(crate) const EVENTS: usize = 12;

fn room() -> &'static RoomId {
    room_id!("!room:hs")
}

// What happens.

/// An event as its sender wrote it. Its index in the list is its id.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) sender: u8,
    pub(crate) event_type: u8,
    pub(crate) key: Option<u8>,
    pub(crate) removal: bool,
    pub(crate) encrypted: bool,
    /// In minutes after the start.
    pub(crate) sent: i64,
    /// `None` is an invalid one.
    pub(crate) duration_ms: Option<u64>,
}

/// The remaining time, as a server gives it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ttl {
    Absent,
    Odd,
    Ms(u64),
}

#[derive(Clone, Debug)]
pub(crate) enum Arrive {
    Event { event: usize, via: ReceivedVia, ttl: Ttl, decrypted: bool },
    Redaction { event: usize, told_by: ToldBy },
}

/// How the news of a redaction comes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ToldBy {
    MainLoop,
    RedactionEvent,
    RedactedCopy,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// One response, received a little before it is handed over.
    Response {
        arrivals: Vec<Arrive>,
        lag_ms: u64,
    },
    Ignore(BTreeSet<u8>),
    Leave,
    Pass(u64),
    Timer,
    PollLazy,
    PollList,
    /// Compares with maps that get the same in another order, and with maps that start now.
    Others(u64),
}

// The wire.

fn id(event: usize) -> String {
    // The order of the ids must differ from the order of the list.
    format!("${}", (event * 5) % EVENTS)
}

fn sender(sender: u8) -> String {
    format!("@{}:hs", ["alice", "bob"][usize::from(sender)])
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

impl Spec {
    fn sent_ms(&self) -> u64 {
        START_MS.checked_add_signed(self.sent * 60_000).unwrap()
    }

    fn event_type(&self) -> String {
        format!("com.example.{}", self.event_type)
    }

    fn key(&self) -> Option<String> {
        // The empty string is a key, too.
        self.key.map(|key| ["", "k"][usize::from(key)].to_owned())
    }

    fn clear(&self) -> Value {
        let mut content = json!({});
        if !self.removal {
            content["body"] = json!("text");
        }
        if let Some(key) = self.key() {
            content["msc4354_sticky_key"] = json!(key);
        }
        json!({ "type": self.event_type(), "content": content })
    }

    fn outer(&self, event: usize, ttl: Ttl) -> Value {
        let duration = self.duration_ms.map_or(json!(-1), |ms| json!(ms));
        let mut outer = json!({
            "event_id": id(event),
            "sender": sender(self.sender),
            "origin_server_ts": self.sent_ms(),
            "msc4354_sticky": { "duration_ms": duration },
            "unsigned": {},
        });
        match ttl {
            Ttl::Absent => {}
            Ttl::Odd => outer["unsigned"]["msc4354_sticky_duration_ttl_ms"] = json!(-1),
            Ttl::Ms(ms) => outer["unsigned"]["msc4354_sticky_duration_ttl_ms"] = json!(ms),
        }
        if self.encrypted {
            outer["type"] = json!("m.room.encrypted");
            outer["content"] = json!({ "session_id": "s" });
        } else {
            outer["type"] = json!(self.event_type());
            outer["content"] = self.clear()["content"].clone();
        }
        outer
    }
}

fn arrival(specs: &[Spec], arrive: &Arrive) -> (ReceivedVia, Arrival) {
    match *arrive {
        Arrive::Event { event, via, ttl, decrypted } => {
            let spec = &specs[event];
            let outer = raw(&spec.outer(event, ttl));
            let arrival = if spec.encrypted && decrypted {
                Arrival::Decrypted {
                    outer,
                    clear: raw(&spec.clear()),
                    encryption: Encryption::Plaintext,
                }
            } else {
                Arrival::Event(outer)
            };
            (via, arrival)
        }
        Arrive::Redaction { event, told_by } => {
            let arrival = match told_by {
                ToldBy::MainLoop => Arrival::Redaction(EventId::parse(id(event)).unwrap()),
                ToldBy::RedactionEvent => Arrival::Event(raw(&json!({
                    "event_id": "$redaction",
                    "type": "m.room.redaction",
                    "content": { "redacts": id(event) },
                }))),
                ToldBy::RedactedCopy => Arrival::Event(raw(&json!({
                    "event_id": id(event),
                    "content": {},
                    "unsigned": { "redacted_because": {} },
                }))),
            };
            (ReceivedVia::Section, arrival)
        }
    }
}

// The model.

/// What arrived, and when it was received, in milliseconds after the start.
#[derive(Clone, Debug)]
struct Received {
    at: u64,
    arrive: Arrive,
}

/// The order of an entry. Why a `bool`? `None` before `Some` would put unkeyed entries first.
type Order = (String, String, bool, String);

#[derive(Debug)]
struct Model {
    specs: Vec<Spec>,
    /// All that arrived since the room was last left.
    received: Vec<Received>,
    ignored: BTreeSet<u8>,
    now: u64,
}

impl Model {
    /// When an event ends: the earliest end that any delivery gave. `None` if it is not known, or
    /// not sticky.
    fn end(&self, wanted: usize) -> Option<u64> {
        let spec = &self.specs[wanted];
        let duration_ms = spec.duration_ms?.min(HOUR);
        self.received
            .iter()
            .filter_map(|received| match received.arrive {
                Arrive::Event { event, via, ttl, .. } if event == wanted => Some(
                    received.at
                        + match (ttl, via) {
                            (Ttl::Ms(ms), _) => ms.min(HOUR),
                            (_, ReceivedVia::Section) => {
                                let wall = START_MS + received.at;
                                (wall.min(spec.sent_ms()) + duration_ms).saturating_sub(wall)
                            }
                            _ => 0,
                        },
                ),
                _ => None,
            })
            .min()
    }

    fn redacted_at(&self, wanted: usize) -> Option<u64> {
        self.received
            .iter()
            .filter(|received| {
                matches!(received.arrive, Arrive::Redaction { event, .. } if event == wanted)
            })
            .map(|received| received.at)
            .min()
    }

    fn is_readable(&self, wanted: usize) -> bool {
        !self.specs[wanted].encrypted
            || self.received.iter().any(|received| {
                matches!(
                    received.arrive,
                    Arrive::Event { event, decrypted: true, .. } if event == wanted
                )
            })
    }

    /// The events that are known and sticky now.
    fn live(&self) -> Vec<usize> {
        (0..self.specs.len())
            .filter(|event| self.redacted_at(*event).is_none())
            .filter(|event| self.end(*event).is_some_and(|end| end > self.now))
            .collect()
    }

    /// The entries: their order, event, and the time left.
    fn entries(&self) -> Vec<(Order, String, u64)> {
        let mut keys: BTreeMap<Order, Vec<usize>> = BTreeMap::new();
        for event in self.live() {
            if self.is_readable(event) {
                keys.entry(self.order(event)).or_default().push(event);
            }
        }
        keys.into_iter()
            .filter_map(|(order, events)| {
                let rank = |event: &usize| {
                    let spec = &self.specs[*event];
                    let end = spec.sent_ms().saturating_add(spec.duration_ms.unwrap());
                    (end, id(*event))
                };
                let value = events.into_iter().max_by_key(rank).unwrap();
                let spec = &self.specs[value];
                let hidden = spec.removal || self.ignored.contains(&spec.sender);
                (!hidden).then(|| (order, id(value), self.end(value).unwrap() - self.now))
            })
            .collect()
    }

    fn order(&self, event: usize) -> Order {
        let spec = &self.specs[event];
        let (unkeyed, name) = match spec.key() {
            Some(key) => (false, key),
            None => (true, id(event)),
        };
        (spec.event_type(), sender(spec.sender), unkeyed, name)
    }

    /// Whether the map may have forgotten that this event ended, or was redacted: an hour is the
    /// bound of law 6, and no server delivers an event as sticky that long after its end.
    fn is_past_remembering(&self, event: usize) -> bool {
        let over = self.redacted_at(event).into_iter().chain(self.end(event));
        over.min().is_some_and(|over| over + HOUR <= self.now)
    }
}

// The maps under test.

#[derive(Clone, Debug)]
struct ManualClock(Arc<Mutex<u64>>);

fn moment(ms: u64) -> Moment {
    Moment::new(Duration::from_millis(ms), Duration::from_millis(START_MS + ms))
}

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        moment(*self.0.lock().unwrap())
    }
}

struct Maps {
    maps: EphemeralMaps,
    clock: ManualClock,
}

impl Maps {
    fn at(now: u64) -> Self {
        Self::keeping(Limits::default().max_events_per_sender, now)
    }

    fn keeping(per_sender: usize, now: u64) -> Self {
        let clock = ManualClock(Arc::new(Mutex::new(now)));
        let limits = Limits::default().with_max_events_per_sender(per_sender);
        Self { maps: EphemeralMaps::new(clock.clone(), limits), clock }
    }

    fn set(&self, now: u64) {
        *self.clock.0.lock().unwrap() = now;
    }

    /// One response, each of its arrivals with its own moment of receipt.
    fn handle(&self, specs: &[Spec], response: &[Received]) {
        self.maps.handle(response.iter().map(|Received { at, arrive }| {
            let (via, arrival) = arrival(specs, arrive);
            Delivery {
                room_id: room().to_owned(),
                received: moment(*at),
                via,
                arrivals: vec![arrival],
            }
        }));
    }

    fn ignore(&self, ignored: &BTreeSet<u8>) {
        let ignored: HashSet<_> =
            ignored.iter().map(|user| UserId::parse(sender(*user)).unwrap()).collect();
        self.maps.handle_ignored(ignored);
    }

    fn entries(&self) -> Vec<(Order, String, u64)> {
        entries(&self.maps.view().snapshot())
    }
}

fn entries(snapshot: &Snapshot) -> Vec<(Order, String, u64)> {
    snapshot
        .iter()
        .map(|entry| {
            let left = entry.expires_in(snapshot.taken_at()).as_millis();
            (order(&entry), entry.event_id().to_string(), u64::try_from(left).unwrap())
        })
        .collect()
}

fn order(entry: &Entry) -> Order {
    let (unkeyed, name) = match entry.sticky_key() {
        Some(key) => (false, key.to_owned()),
        None => (true, entry.event_id().to_string()),
    };
    (entry.event_type().to_owned(), entry.sender().to_string(), unkeyed, name)
}

fn shown(entries: &[(Order, String, u64)]) -> Vec<(Order, String)> {
    entries.iter().map(|(order, id, _)| (order.clone(), id.clone())).collect()
}

// Subscribers.

/// Applies each change as it stands, and checks it strictly.
struct Follower {
    known: BTreeMap<Order, String>,
    changes: Changes,
}

impl Follower {
    fn new(Subscription { snapshot, changes, .. }: Subscription) -> Self {
        let known =
            snapshot.iter().map(|entry| (order(&entry), entry.event_id().to_string())).collect();
        Self { known, changes }
    }

    fn follow(&mut self, expected: &[(Order, String)]) {
        let knew_all = self.known.iter().map(|(order, id)| (order.clone(), id.clone())).collect();
        let nothing_changed = expected.to_vec() == Vec::from_iter::<Vec<_>>(knew_all);
        let change = self.changes.next_now();
        assert_eq!(change.is_none(), nothing_changed, "told if and only if something changed");
        let Some(change) = change else { return };

        let orders: Vec<_> = change.entries.iter().map(|change| order(change.entry())).collect();
        assert!(orders.is_sorted_by(|a, b| a < b), "in order, each once: {orders:?}");
        for change in change.entries {
            match change {
                EntryChange::Added(entry) => {
                    let before = self.known.insert(order(&entry), entry.event_id().to_string());
                    assert_eq!(before, None);
                }
                EntryChange::Updated { entry, previous } => {
                    let before = self.known.insert(order(&entry), entry.event_id().to_string());
                    assert_eq!(before, Some(previous.event_id().to_string()));
                    assert_ne!(entry.event_id(), previous.event_id());
                }
                EntryChange::Removed { entry, .. } => {
                    let before = self.known.remove(&order(&entry));
                    assert_eq!(before, Some(entry.event_id().to_string()));
                }
                other => panic!("a kind of change that nobody knows: {other:?}"),
            }
        }
        let known: Vec<_> =
            self.known.iter().map(|(order, id)| (order.clone(), id.clone())).collect();
        assert_eq!(known, expected);
    }
}

/// The reason that each removal of a change gave.
fn reasons(changes: &mut Changes) -> BTreeMap<String, RemovalReason> {
    let change = changes.next_now();
    let entries = change.map(|change| change.entries).unwrap_or_default();
    entries
        .into_iter()
        .filter_map(|change| match change {
            EntryChange::Removed { entry, reason } => Some((entry.event_id().to_string(), reason)),
            _ => None,
        })
        .collect()
}

/// A user interface's list.
struct List {
    entries: Vector<Entry>,
    diffs: DiffStream,
}

impl List {
    fn follow(&mut self, expected: &[(Order, String)]) {
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(diffs) = Pin::new(&mut self.diffs).poll_next(&mut context) {
            let diffs = diffs.expect("the stream never ends");
            assert!(!diffs.is_empty());
            for diff in diffs {
                diff.apply(&mut self.entries);
            }
        }
        let entries: Vec<_> =
            self.entries.iter().map(|entry| (order(entry), entry.event_id().to_string())).collect();
        assert_eq!(entries, expected);
    }
}

// The run.

/// How many keys of a sender a small map keeps.
const FEW: usize = 2;

pub(crate) struct Run {
    model: Model,
    maps: Maps,
    eager: Follower,
    lazy: Follower,
    list: List,
    /// A subscriber of which only the reasons are checked, at each step.
    why: Changes,
    /// Maps that get the same, and keep [`FEW`] keys of each sender.
    small: Maps,
}

impl Run {
    fn new(specs: Vec<Spec>) -> Self {
        let maps = Maps::at(0);
        let view = maps.maps.view();
        let list = view.subscribe_list();
        Self {
            eager: Follower::new(view.subscribe()),
            lazy: Follower::new(view.subscribe()),
            list: List { entries: list.entries, diffs: list.diffs },
            why: view.subscribe().changes,
            small: Maps::keeping(FEW, 0),
            model: Model { specs, received: Vec::new(), ignored: BTreeSet::new(), now: 0 },
            maps,
        }
    }

    /// Takes all steps, and compares everything at the end.
    pub(crate) fn play(specs: Vec<Spec>, steps: &[Step], seed: u64) {
        let mut run = Self::new(specs);
        for step in steps {
            run.step(step);
        }
        run.step(&Step::PollLazy);
        run.step(&Step::PollList);
        run.step(&Step::Others(seed));
    }

    fn step(&mut self, step: &Step) {
        let left = matches!(step, Step::Leave);
        match step {
            Step::Response { arrivals, lag_ms } => self.response(arrivals, *lag_ms),
            Step::Ignore(ignored) => {
                self.model.ignored.clone_from(ignored);
                self.maps.ignore(ignored);
                self.small.ignore(ignored);
            }
            Step::Leave => {
                self.model.received.clear();
                self.maps.maps.handle_left(room());
                self.small.maps.handle_left(room());
            }
            Step::Pass(ms) => {
                self.model.now += ms;
                self.maps.set(self.model.now);
                self.small.set(self.model.now);
            }
            Step::Timer => self.maps.maps.advance(),
            Step::PollLazy => self.lazy.follow(&shown(&self.model.entries())),
            Step::PollList => self.list.follow(&shown(&self.model.entries())),
            Step::Others(seed) => self.others(*seed),
        }
        let expected = self.model.entries();
        assert_eq!(self.maps.entries(), expected);
        self.eager.follow(&shown(&expected));
        self.reasons(left);
        self.bounds();
    }

    fn response(&mut self, arrivals: &[Arrive], lag_ms: u64) {
        let count = self.model.specs.len();
        let response: Vec<_> = arrivals
            .iter()
            .cloned()
            .map(|mut arrive| {
                let (Arrive::Event { event, .. } | Arrive::Redaction { event, .. }) = &mut arrive;
                *event %= count;
                Received { at: self.model.now.saturating_sub(lag_ms), arrive }
            })
            .filter(|received| match received.arrive {
                Arrive::Event { event, .. } => !self.model.is_past_remembering(event),
                Arrive::Redaction { .. } => true,
            })
            .collect();
        self.maps.handle(&self.model.specs, &response);
        self.small.handle(&self.model.specs, &response);
        self.model.received.extend(response);
    }

    /// The small maps keep no more than their quota, and nothing that must not be there.
    fn bounds(&self) {
        let mut senders: BTreeMap<String, usize> = BTreeMap::new();
        for ((_, sender, ..), id_, _) in self.small.entries() {
            let event = (0..self.model.specs.len()).find(|event| id(*event) == id_).unwrap();
            let spec = &self.model.specs[event];
            assert!(!spec.removal && !self.model.ignored.contains(&spec.sender));
            assert!(self.model.is_readable(event) && self.model.redacted_at(event).is_none());
            *senders.entry(sender).or_default() += 1;
        }
        assert!(senders.values().all(|entries| *entries <= FEW), "{senders:?}");
        assert!(self.small.maps.stats(room()).events <= 2 * FEW * (1 + MAX_OTHERS_PER_KEY));
    }

    /// Each entry that left has a true reason.
    fn reasons(&mut self, left: bool) {
        for (gone, reason) in reasons(&mut self.why) {
            let event = (0..self.model.specs.len()).find(|event| id(*event) == gone).unwrap();
            let over = self.model.end(event).is_some_and(|end| end <= self.model.now);
            let is_true = match reason {
                RemovalReason::Expired => over,
                RemovalReason::Redacted => self.model.redacted_at(event).is_some(),
                RemovalReason::Ignored => {
                    self.model.ignored.contains(&self.model.specs[event].sender)
                }
                RemovalReason::RoomLeft => left,
                RemovalReason::Removed => {
                    !over
                        && self.model.live().iter().any(|other| {
                            self.model.specs[*other].removal
                                && self.model.order(*other) == self.model.order(event)
                        })
                }
                _ => false,
            };
            assert!(is_true, "{gone} left: {reason:?}");
        }
    }

    fn others(&self, seed: u64) {
        let expected = self.model.entries();
        let shuffled = self.in_another_order(seed);
        assert_eq!(shuffled.entries(), expected, "the order made a difference");
        let late = self.late_joiner(seed);
        assert_eq!(late.entries(), expected, "a late joiner sees something else");

        // It stays so.
        let mut later = Model {
            specs: self.model.specs.clone(),
            received: self.model.received.clone(),
            ignored: self.model.ignored.clone(),
            now: self.model.now,
        };
        for pass in [1, MINUTE, 9 * MINUTE, 30 * MINUTE, HOUR] {
            later.now += pass;
            let expected = later.entries();
            for maps in [&shuffled, &late] {
                maps.set(later.now);
                assert_eq!(maps.entries(), expected);
            }
        }
    }

    /// Maps that get the same, each event with the moment at which it was received, but in another
    /// order and some of it twice. Within an hour any order will do, because the maps remember what
    /// ended for an hour; otherwise the order changes within each moment only.
    fn in_another_order(&self, seed: u64) -> Maps {
        let received = &self.model.received;
        let maps = Maps::at(0);
        maps.ignore(&self.model.ignored);
        let (Some(first), Some(last)) = (
            received.iter().map(|received| received.at).min(),
            received.iter().map(|received| received.at).max(),
        ) else {
            maps.set(self.model.now);
            return maps;
        };
        let mut groups: Vec<Vec<Received>> = Vec::new();
        if last - first < HOUR {
            groups.push(received.clone());
        } else {
            let mut received = received.clone();
            received.sort_by_key(|received| received.at);
            for one in received {
                match groups.last_mut() {
                    Some(group) if group[0].at == one.at => group.push(one),
                    _ => groups.push(vec![one]),
                }
            }
        }
        for (n, mut group) in groups.into_iter().enumerate() {
            let repeated: Vec<_> = group.iter().step_by(2).cloned().collect();
            group.extend(repeated);
            shuffle(&mut group, seed ^ n as u64);
            maps.set(group.iter().map(|received| received.at).max().unwrap());
            // As one response, or as one each.
            if seed.is_multiple_of(2) {
                maps.handle(&self.model.specs, &group);
            } else {
                group.chunks(1).for_each(|one| maps.handle(&self.model.specs, one));
            }
        }
        maps.set(self.model.now);
        maps
    }

    /// Maps that start now, and get all live events with the time that the server says is left.
    fn late_joiner(&self, seed: u64) -> Maps {
        let maps = Maps::at(self.model.now);
        let mut live: Vec<_> = self
            .model
            .live()
            .into_iter()
            .map(|event| {
                let ttl = Ttl::Ms(self.model.end(event).unwrap() - self.model.now);
                let via = if seed.is_multiple_of(3) {
                    ReceivedVia::Timeline
                } else {
                    ReceivedVia::Section
                };
                let decrypted = self.model.is_readable(event);
                let arrive = Arrive::Event { event, via, ttl, decrypted };
                Received { at: self.model.now, arrive }
            })
            .collect();
        shuffle(&mut live, seed);
        maps.handle(&self.model.specs, &live);
        maps.ignore(&self.model.ignored);
        maps
    }
}

/// Any order will do, if it is the same for the same seed.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed | 1;
    for last in (1..items.len()).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, (state >> 33) as usize % (last + 1));
    }
}
