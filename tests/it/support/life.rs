//! A heartbeat's life in simulated time, against a homeserver that follows a script.
//!
//! Without a script the homeserver does what Synapse does: it remembers transaction ids and what is
//! scheduled, fires it when it falls due, and shows our own events on the sticky connection. A
//! script replaces the answer to one kind of request: [`Life::answers`] for the next requests,
//! [`Life::always_answers`] for all that follow.
//!
//! Time passes only while a test waits, in [`Life::during`] and what is made of it: the clock jumps
//! to the next thing that is due once no request is on its way.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use eyeball::Subscriber;
use futures_util::FutureExt as _;
use matrix_sdk_sticky::{
    RoomSticky, Timer as _,
    heartbeat::{Heartbeat, HeartbeatState, StartHeartbeat, StartHeartbeatError},
    time::{Clock as _, Deadline, Moment},
};
use serde_json::{Map, Value, json};

use super::{Ask, ME, ROOM, World, body, homeserver::round_trip, log};

/// The type of the member's events.
const TYPE: &str = "com.example.t";

/// The member's key.
pub(crate) const KEY: &str = "k";

/// The default delay of [`Life::start`].
pub(crate) const DELAY: Duration = Duration::from_secs(15);

/// How long a long poll is held.
const HELD: Duration = Duration::from_secs(25);

/// What no life comes near: more is a hot loop.
const MOST_REQUESTS: usize = 5_000;

/// The most time that passes while a test waits for one thing.
const LONGEST: Duration = Duration::from_secs(2 * 3_600);

/// What a heartbeat asks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Schedules a leave.
    Arm,
    Restart,
    Fire,
    Cancel,
    /// Asks for all that is scheduled.
    List,
    /// Sends an event with a `status` that is not one of [`LEAVES`]; or an encrypted one.
    Join,
    /// Sends an event without a `status`, or with one of [`LEAVES`].
    Leave,
}

/// The statuses of a leave.
const LEAVES: [&str; 2] = ["gone", "bye"];

/// How the server answers one request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// It does what was asked, and says so.
    Done,
    /// It does nothing, and answers with this status and code.
    Refuse(u16, &'static str),
    /// It does nothing, and wants to be left alone for so long.
    Limit(Duration),
    /// It does nothing, and answers so.
    Json(u16, Value),
    /// A proxy answers with a page of HTML, and the server hears nothing.
    Page(u16),
    /// The connection is cut before the server hears anything.
    Cut,
    /// The server does what was asked, and the connection is cut before its answer.
    Lost,
    /// As the other, at once, and the answer comes so much later.
    Late(Duration, Box<Reply>),
}

impl Reply {
    /// The same, answered so much later.
    pub(crate) fn late(self, by: Duration) -> Self {
        Self::Late(by, Box::new(self))
    }
}

/// A request that the server has seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    /// The transaction id of what is armed or sent, the delay id of what is managed.
    pub(crate) id: String,
    /// The type of the event that is armed or sent.
    pub(crate) event_type: String,
    /// For how many milliseconds it is sticky.
    pub(crate) sticky_ms: Option<u64>,
    /// The content of the event.
    pub(crate) content: Value,
    delay: Duration,
    /// When it came, counted from the start of the life.
    pub(crate) at: Duration,
}

/// A delayed event that the server keeps.
#[derive(Clone, Debug)]
pub(crate) struct Scheduled {
    pub(crate) delay_id: String,
    pub(crate) armed: Seen,
    due: Deadline,
}

/// A world, the heartbeat in it, and the script that the server follows.
pub(crate) struct Life {
    pub(crate) world: World,
    pub(crate) room: RoomSticky,
    /// The requests, the oldest first.
    pub(crate) seen: Vec<Seen>,
    /// The states of the heartbeat, in words, each that follows another.
    pub(crate) states: Vec<&'static str>,
    /// What the server has scheduled.
    pub(crate) scheduled: Vec<Scheduled>,
    /// The delay ids of what has fired when it was due.
    pub(crate) fired: Vec<String>,
    handle: Option<Arc<Heartbeat>>,
    state: Option<Subscriber<HeartbeatState>>,
    began: Moment,
    next: HashMap<Kind, VecDeque<Reply>>,
    always: HashMap<Kind, Reply>,
    /// The answers by transaction id.
    transactions: HashMap<String, Value>,
    is_cut: bool,
    /// Whether the dedicated endpoint keeps events sticky, where it is the only one.
    dedicated: Option<bool>,
    /// All events that were sent, the newest first.
    history: VecDeque<Value>,
    /// The answers that come later.
    late: Vec<(Deadline, Ask, Answer)>,
    poll: Option<(Deadline, Ask)>,
    unshown: Vec<Value>,
    /// What is shown together with the next event.
    with_the_next: Vec<Value>,
    number: u64,
}

/// Status and body; `None` cuts the connection.
type Answer = Option<(u16, String)>;

impl Life {
    /// In a room that is not encrypted, on a server that has delayed events.
    pub(crate) async fn new() -> Self {
        let (world, poll) = World::live(Vec::new()).await;
        let room = world.is_in(ROOM).await;
        Self::of(world, room, poll)
    }

    /// In a world that is live, with the long poll that it holds.
    pub(crate) fn of(world: World, room: RoomSticky, poll: Ask) -> Self {
        world.server.has(&[
            "org.matrix.msc4354",
            "org.matrix.simplified_msc3575",
            "org.matrix.msc4140",
        ]);
        let began = world.clock.now();
        Self {
            world,
            room,
            seen: Vec::new(),
            states: Vec::new(),
            scheduled: Vec::new(),
            fired: Vec::new(),
            handle: None,
            state: None,
            began,
            next: HashMap::new(),
            always: HashMap::new(),
            transactions: HashMap::new(),
            is_cut: false,
            dedicated: None,
            history: VecDeque::new(),
            late: Vec::new(),
            poll: Some((began.deadline(HELD), poll)),
            unshown: Vec::new(),
            with_the_next: Vec::new(),
            number: 0,
        }
    }

    /// The next requests of this kind are answered so, in this order.
    pub(crate) fn answers(&mut self, kind: Kind, replies: impl IntoIterator<Item = Reply>) {
        self.next.entry(kind).or_default().extend(replies);
    }

    /// The requests of this kind are answered so once the others are used up.
    pub(crate) fn always_answers(&mut self, kind: Kind, reply: Reply) {
        self.always.insert(kind, reply);
    }

    /// Cuts all connections and each new one; `false` mends them.
    pub(crate) fn cut(&mut self, is_cut: bool) {
        self.is_cut = is_cut;
        if is_cut {
            self.poll = None;
            self.late.clear();
        }
    }

    /// The server takes delayed events by the dedicated endpoint alone, which keeps events sticky or
    /// not.
    pub(crate) fn has_only_the_dedicated_endpoint(&mut self, keeps_sticky: bool) {
        self.dedicated = Some(keeps_sticky);
    }

    /// The server restarts: it has forgotten its transaction ids, and kept what is scheduled.
    pub(crate) fn forget_transactions(&mut self) {
        self.transactions.clear();
    }

    /// Starts a heartbeat under [`KEY`], with what `more` adds. The one before is dropped.
    pub(crate) async fn start(&mut self, more: impl FnOnce(StartHeartbeat) -> StartHeartbeat) {
        self.try_start(KEY, more).await.unwrap();
    }

    /// As [`start`](Self::start), under another key, where it may fail.
    pub(crate) async fn try_start(
        &mut self,
        key: &str,
        more: impl FnOnce(StartHeartbeat) -> StartHeartbeat,
    ) -> Result<(), StartHeartbeatError> {
        self.crash();
        let start =
            self.room.heartbeat(key).with_raw_content(TYPE, status("here")).with_delay(DELAY);
        let handle = self.during("it to start", more(start).start()).await?;
        self.state = Some(handle.subscribe_state());
        self.handle = Some(Arc::new(handle));
        self.note_state();
        Ok(())
    }

    /// The heartbeat that runs.
    pub(crate) fn heartbeat(&self) -> Arc<Heartbeat> {
        self.handle.clone().expect("it was started")
    }

    /// Drops the heartbeat: no request goes out any more.
    pub(crate) fn crash(&mut self) {
        self.state = None;
        self.handle = None;
    }

    /// Leaves, and says how it ended.
    pub(crate) async fn leave(&mut self) -> HeartbeatState {
        let heartbeat = self.heartbeat();
        self.during("it to leave", async { heartbeat.leave().await }).await
    }

    /// Waits for a state.
    pub(crate) async fn until(&mut self, wanted: HeartbeatState) {
        self.until_state(&format!("{wanted:?}"), |state| state == wanted).await;
    }

    pub(crate) async fn until_state(&mut self, what: &str, is: impl Fn(HeartbeatState) -> bool) {
        let mut states = self.heartbeat().subscribe_state();
        let reached = async {
            while !is(states.get()) {
                states.next().await.expect("the state goes on");
            }
        };
        self.during(what, reached).await;
    }

    /// Waits until the server has seen so many requests of this kind.
    pub(crate) async fn until_seen(&mut self, kind: Kind, count: usize) {
        let began = self.world.clock.now();
        while self.count(kind) < count {
            let next = next_request(&mut self.world).await;
            self.go_on(&format!("{count} times {kind:?}"), began, next).await;
        }
    }

    /// Lets so much time pass.
    pub(crate) async fn pass(&mut self, time: Duration) {
        let clock = self.world.clock.clone();
        let until = clock.now().deadline(time);
        self.during("the time to pass", clock.sleep_until(until)).await;
    }

    /// The kinds of the requests, the oldest first.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.seen.iter().map(|seen| seen.kind).collect()
    }

    /// The requests of one kind, the oldest first.
    pub(crate) fn seen_of(&self, kind: Kind) -> Vec<&Seen> {
        self.seen.iter().filter(|seen| seen.kind == kind).collect()
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.seen_of(kind).len()
    }

    /// Lets the world go on until `future` is done.
    pub(crate) async fn during<T>(&mut self, what: &str, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let began = self.world.clock.now();
        loop {
            let next = tokio::select! {
                biased;
                value = &mut future => {
                    self.note_state();
                    return value;
                }
                next = next_request(&mut self.world) => next,
            };
            self.go_on(what, began, next).await;
        }
    }

    /// Answers a request; or, where none is on its way, lets time pass until something is due.
    async fn go_on(&mut self, what: &str, began: Moment, next: Option<Ask>) {
        match next {
            Some(ask) => self.handle(ask).await,
            None => self.advance().await,
        }
        self.note_state();
        let passed = self.world.clock.now().since(began);
        assert!(passed <= LONGEST, "{what}: not within {passed:?}; {}", self.words());
        assert!(self.seen.len() <= MOST_REQUESTS, "{what}: a hot loop; {}", self.words());
    }

    fn note_state(&mut self) {
        let Some(state) = &self.state else { return };
        let word = state.get().as_str();
        if self.states.last() != Some(&word) {
            self.states.push(word);
        }
    }

    fn words(&self) -> String {
        let last = self.seen.len().saturating_sub(20);
        format!(
            "states: {:?}; the last requests: {:#?}\n{}",
            self.states,
            &self.seen[last..],
            log()
        )
    }

    async fn handle(&mut self, ask: Ask) {
        if self.is_cut {
            return;
        }
        if ask.is_of_a_source() {
            return self.handle_poll(ask).await;
        }
        let Some(seen) = self.read(&ask) else {
            // A form that today's Synapse does not know.
            return ask.refuse(404, "M_UNRECOGNIZED").await;
        };
        let reply = match self.next.get_mut(&seen.kind).and_then(VecDeque::pop_front) {
            Some(reply) => reply,
            None => self.always.get(&seen.kind).cloned().unwrap_or(Reply::Done),
        };
        let (by, reply) = match reply {
            Reply::Late(by, reply) => (Some(by), *reply),
            reply => (None, reply),
        };
        let answer = self.answer(&seen, reply);
        self.seen.push(seen);
        match by {
            Some(by) => self.late.push((self.world.clock.now().deadline(by), ask, answer)),
            None => deliver(ask, answer).await,
        }
        self.show().await;
    }

    fn read(&self, ask: &Ask) -> Option<Seen> {
        let number = |name: &str| ask.param(name).and_then(|number| number.parse().ok());
        let parts: Vec<_> = ask.path.split('/').collect();
        let mut seen = Seen {
            kind: Kind::List,
            id: String::new(),
            event_type: String::new(),
            sticky_ms: number("org.matrix.msc4354.sticky_duration_ms"),
            content: ask.body.clone(),
            delay: Duration::ZERO,
            at: self.world.clock.now().since(self.began),
        };
        match (&*ask.method, &parts[..]) {
            ("PUT", [.., "send", event_type, transaction_id]) => {
                (seen.event_type, seen.id) =
                    ((*event_type).to_owned(), (*transaction_id).to_owned());
                let status = ask.body["status"].as_str();
                seen.kind = match number("org.matrix.msc4140.delay") {
                    Some(_) if self.dedicated.is_some() => return None,
                    Some(delay) => {
                        seen.delay = Duration::from_millis(delay);
                        Kind::Arm
                    }
                    None if *event_type == "m.room.encrypted" => Kind::Join,
                    None if status.is_none_or(|status| LEAVES.contains(&status)) => Kind::Leave,
                    None => Kind::Join,
                };
            }
            ("PUT", [.., "delayed_event", event_type, transaction_id]) => {
                seen.kind = Kind::Arm;
                (seen.event_type, seen.id) =
                    ((*event_type).to_owned(), (*transaction_id).to_owned());
                seen.content = ask.body["content"].clone();
                seen.delay = Duration::from_millis(ask.body["delay_ms"].as_u64().unwrap());
                if !self.dedicated? {
                    seen.sticky_ms = None;
                }
            }
            ("POST", [.., "delayed_events", delay_id, action]) => {
                seen.id = (*delay_id).to_owned();
                seen.kind = match *action {
                    "restart" => Kind::Restart,
                    "send" => Kind::Fire,
                    "cancel" => Kind::Cancel,
                    _ => return None,
                };
            }
            ("GET", [.., "delayed_events"]) => {}
            _ => return None,
        }
        Some(seen)
    }

    /// What the server answers, and does.
    fn answer(&mut self, seen: &Seen, reply: Reply) -> Answer {
        let (status, body) = match reply {
            Reply::Done => self.perform(seen),
            Reply::Lost => {
                self.perform(seen);
                return None;
            }
            Reply::Cut => return None,
            Reply::Page(status) => return Some((status, "<html>a page</html>".to_owned())),
            Reply::Refuse(status, errcode) => {
                (status, json!({ "errcode": errcode, "error": "as the test wants it" }))
            }
            Reply::Limit(wait) => {
                let wait = u64::try_from(wait.as_millis()).unwrap();
                (429, json!({ "errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": wait }))
            }
            Reply::Json(status, body) => (status, body),
            Reply::Late(..) => panic!("late twice"),
        };
        Some((status, body.to_string()))
    }

    fn perform(&mut self, seen: &Seen) -> (u16, Value) {
        let now = self.world.clock.now();
        let at = self.scheduled.iter().position(|scheduled| scheduled.delay_id == seen.id);
        match (seen.kind, at) {
            (Kind::List, _) => (200, json!({ "delayed_events": self.list() })),
            (Kind::Arm | Kind::Join | Kind::Leave, _) => {
                if let Some(answer) = self.transactions.get(&seen.id) {
                    return (200, answer.clone());
                }
                let answer = if seen.kind == Kind::Arm {
                    let delay_id = format!("syd_{}", self.number());
                    self.scheduled.push(Scheduled {
                        delay_id: delay_id.clone(),
                        armed: seen.clone(),
                        due: now.deadline(seen.delay),
                    });
                    json!({ "delay_id": delay_id })
                } else {
                    json!({ "event_id": self.send(seen, "transaction_id", &seen.id) })
                };
                self.transactions.insert(seen.id.clone(), answer.clone());
                (200, answer)
            }
            (_, None) => (404, json!({ "errcode": "M_NOT_FOUND", "error": "no such event" })),
            (Kind::Restart, Some(at)) => {
                let scheduled = &mut self.scheduled[at];
                scheduled.due = now.deadline(scheduled.armed.delay);
                (200, json!({}))
            }
            (Kind::Fire, Some(at)) => {
                let Scheduled { delay_id, armed, .. } = self.scheduled.remove(at);
                self.send(&armed, "org.matrix.msc4140.delay_id", &delay_id);
                (200, json!({}))
            }
            (Kind::Cancel, Some(at)) => {
                self.scheduled.remove(at);
                (200, json!({}))
            }
        }
    }

    fn list(&self) -> Vec<Value> {
        let listed = |scheduled: &Scheduled| {
            let Scheduled { delay_id, armed, .. } = scheduled;
            let delay = u64::try_from(armed.delay.as_millis()).unwrap();
            json!({
                "delay_id": delay_id, "room_id": ROOM, "type": armed.event_type,
                "content": armed.content, "delay": delay, "running_since": 1,
            })
        };
        self.scheduled.iter().map(listed).collect()
    }

    /// Everybody sees it from now on. Its event id.
    fn send(&mut self, sent: &Seen, why: &str, id: &str) -> String {
        let event_id = format!("$sent-{:06}", self.number());
        let mut event = json!({
            "event_id": event_id,
            "sender": ME,
            "type": sent.event_type,
            "origin_server_ts": self.world.clock.now().unix_ms(),
            "content": sent.content,
            "unsigned": { why: id },
        });
        if let Some(sticky_ms) = sent.sticky_ms {
            event["msc4354_sticky"] = json!({ "duration_ms": sticky_ms });
            event["unsigned"]["msc4354_sticky_duration_ttl_ms"] = json!(sticky_ms);
            self.unshown.append(&mut self.with_the_next);
            self.unshown.push(event.clone());
        }
        self.history.push_front(event);
        event_id
    }

    /// Somebody redacts the newest event. The redaction is shown together with the next event.
    pub(crate) fn redact_the_newest(&mut self) {
        let redacted = self.history.front().expect("something was sent")["event_id"].clone();
        let event_id = format!("$redaction-{:06}", self.number());
        self.with_the_next.push(json!({
            "event_id": event_id,
            "sender": ME,
            "type": "m.room.redaction",
            "origin_server_ts": self.world.clock.now().unix_ms(),
            "redacts": redacted,
            "content": { "redacts": redacted },
            "msc4354_sticky": { "duration_ms": 600_000 },
            "unsigned": { "msc4354_sticky_duration_ttl_ms": 600_000 },
        }));
    }

    /// Shows what is new, where a poll waits for it.
    async fn show(&mut self) {
        if self.unshown.is_empty() || self.is_cut {
            return;
        }
        if let Some((_, poll)) = self.poll.take() {
            let number = self.number();
            let events = std::mem::take(&mut self.unshown);
            poll.page(&format!("pos-{number}"), &format!("batch-{number}"), ROOM, events).await;
        }
    }

    async fn handle_poll(&mut self, ask: Ask) {
        if ask.path.ends_with("/messages") {
            let page = json!({ "start": "s", "end": "e", "chunk": self.history });
            return ask.answer(200, page.to_string()).await;
        }
        let is_of_all = ask.body.get("lists").is_some_and(|lists| lists != &json!({}));
        if !is_of_all {
            let pos = format!("pos-{}", self.number());
            return ask.answer(200, body(&pos, None, json!({})).to_string()).await;
        }
        let held = if ask.param("timeout") == Some("0") { Duration::ZERO } else { HELD };
        self.poll = Some((self.world.clock.now().deadline(held), ask));
        self.show().await;
        self.end_poll().await;
    }

    /// Answers the poll that has been held for long enough.
    async fn end_poll(&mut self) {
        let now = self.world.clock.now();
        if let Some((_, poll)) = self.poll.take_if(|(until, _)| until.is_over(now)) {
            let pos = format!("pos-{}", self.number());
            poll.nothing(&pos).await;
        }
    }

    async fn advance(&mut self) {
        let now = self.world.clock.now();
        let sleep = self.world.clock.next_sleep().now_or_never();
        let late = self.late.iter().map(|(until, ..)| *until);
        let polled = self.poll.iter().map(|(until, _)| *until);
        let due = self.scheduled.iter().map(|scheduled| scheduled.due);
        let due = late.chain(polled).chain(due).map(|until| until.left(now));
        let wait = due.chain(sleep).min().unwrap_or_else(|| panic!("all wait: {}", self.words()));
        self.world.clock.advance(wait);

        let now = self.world.clock.now();
        while let Some(at) = self.scheduled.iter().position(|it| it.due.is_over(now)) {
            let Scheduled { delay_id, armed, .. } = self.scheduled.remove(at);
            self.send(&armed, "org.matrix.msc4140.delay_id", &delay_id);
            self.fired.push(delay_id);
        }
        while let Some(at) = self.late.iter().position(|(until, ..)| until.is_over(now)) {
            let (_, ask, answer) = self.late.remove(at);
            deliver(ask, answer).await;
        }
        self.show().await;
        self.end_poll().await;
    }

    fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }
}

async fn deliver(ask: Ask, answer: Answer) {
    if let Some((status, body)) = answer {
        ask.answer(status, body).await;
    }
}

/// The next request; `None` once it is clear that none is on its way.
async fn next_request(world: &mut World) -> Option<Ask> {
    let quiet = quiet(world.server.address(), world.server.counter());
    tokio::select! {
        biased;
        ask = world.server.request() => Some(ask),
        () = quiet => None,
    }
}

/// Waits until no request has come for some turns of the runtime.
async fn quiet(server: std::net::SocketAddr, requests: impl Fn() -> usize) {
    let mut before = None;
    while before != Some(requests()) {
        before = Some(requests());
        for _ in 0..5 {
            round_trip(server).await;
        }
    }
}

/// A content with this status.
fn status(status: &str) -> Map<String, Value> {
    Map::from_iter([("status".to_owned(), status.into())])
}
