//! A heartbeat that beats: the machine, and what performs its actions.
//!
//! In: contents, the owner's wishes, the answers of the server, our own events as they come back,
//! news of the room's keys. Out: requests, and the state to show. It decides nothing that the machine
//! could.

use std::{
    collections::HashMap,
    fmt,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use eyeball::{SharedObservable, Subscriber};
use futures_core::Stream;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use matrix_sdk::{
    Client, Room, StoreError,
    sync::{RoomUpdate, State as RoomState},
};
use ruma::{OwnedEventId, RoomId};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tracing::{debug, warn};

use super::{
    Failure, Heartbeat, LeaseId, Outcome, Pace, PaceError, SendId, State, Step,
    outcome::outcome,
    reach::Reach,
    store::{Armed, Ours, Place, Store},
    turns::{HeartbeatId, Turns},
};
#[cfg(feature = "e2e-encryption")]
use crate::encrypt::{Encryptor, Told, listening};
use crate::{
    delayed::{DelayId, DelayedError, DelayedEvents, PreparedEvent, ReadyEvent, ScheduledEvent},
    driver::{BoxFuture, Task, Timer, before, optional, random_seed},
    event::{RemovalReason, StickyEvent},
    ext::RoomSticky,
    readers::{News, Readers},
    send::{Outgoing, as_object},
    sync::Cleartext,
    time::{Deadline, Moment},
    view::{Change, Entry, EntryChange, StickyContent, Subscription},
    wire::insert_sticky_key,
};

const NOT_IN_ROOM: &str =
    "we are not in the room any more: we left, or somebody removed or banned us";
const REDACTED: &str = "the join was redacted";

/// How long a logout may take beyond the longest delay. What earlier processes have armed and is not
/// fired by then fires by itself.
const RETIRING: Duration = Duration::from_secs(20);

/// How often the store is told that this process beats.
const OWN_AGAIN: Duration = Duration::from_secs(20);

/// A heartbeat to be started; made by [`RoomSticky::heartbeat`].
#[must_use = "it is started by `start`"]
pub struct StartHeartbeat {
    sticky: RoomSticky,
    room: Room,
    sticky_key: String,
    event_type: Option<String>,
    content: Result<Map<String, Value>, serde_json::Error>,
    leave_content: Result<Map<String, Value>, serde_json::Error>,
    delay: Duration,
    sticky_for: Option<Duration>,
    rejoin: bool,
    last_words: Option<Map<String, Value>>,
    outranked_until: Option<Deadline>,
}

/// Why a heartbeat was not started. Nothing was sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartHeartbeatError {
    /// No content was given, so that its type is not known either.
    NoContent,
    /// A content is no JSON object.
    Content(serde_json::Error),
    /// The delay or the stickiness is out of range.
    Pace(PaceError),
    /// This key has a heartbeat already, in this process: leave with that first, or update it.
    InUse,
    /// Another client has heartbeats on the same store, in another process or in this one: two would
    /// retire each other's. End that one's, or give this one a store of its own.
    OtherProcess,
    /// The client's store failed. Nothing that could not be found again may be armed.
    Store(StoreError),
}

impl fmt::Display for StartHeartbeatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoContent => f.write_str("a heartbeat needs a content: give it one"),
            Self::Content(error) => write!(f, "the content is no JSON object: {error}"),
            Self::Pace(error) => error.fmt(f),
            Self::InUse => f.write_str(
                "this key has a heartbeat already: leave with that one first, or update it",
            ),
            Self::OtherProcess => f.write_str(
                "another client has heartbeats on the same store: end them, or use another store",
            ),
            Self::Store(error) => write!(f, "the client's store failed: {error}"),
        }
    }
}

impl std::error::Error for StartHeartbeatError {}

impl StartHeartbeat {
    pub(crate) fn new(sticky: RoomSticky, room: Room, sticky_key: String) -> Self {
        Self {
            sticky,
            room,
            sticky_key,
            event_type: None,
            content: Ok(Map::new()),
            leave_content: Ok(Map::new()),
            delay: Pace::default().delay(),
            sticky_for: None,
            rejoin: true,
            last_words: None,
            outranked_until: None,
        }
    }

    /// What everybody sees while the member is there.
    pub fn content<C: StickyContent + Serialize>(mut self, content: &C) -> Self {
        self.event_type = Some(C::TYPE.to_owned());
        self.content = as_object(content);
        self
    }

    /// As [`content`](Self::content), for a type that is only known at run time.
    pub fn raw_content(mut self, event_type: &str, content: Map<String, Value>) -> Self {
        self.event_type = Some(event_type.to_owned());
        self.content = Ok(content);
        self
    }

    /// What everybody sees after it has left: an event of the same type and key. Nothing unless told:
    /// then the entry is removed.
    pub fn leave_content(mut self, content: &impl Serialize) -> Self {
        self.leave_content = as_object(content);
        self
    }

    /// How long after a crash everybody sees it gone, 15 s unless told; see [`Pace::with_delay`].
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// For how long the events are sticky. Defaults to 10 minutes; see [`Pace::with_sticky`].
    pub fn sticky(mut self, sticky: Duration) -> Self {
        self.sticky_for = Some(sticky);
        self
    }

    /// Whether it joins again by itself after the armed leave has fired, as after an outage; it does
    /// unless told.
    ///
    /// Not where each join is to have a key of its own, as in MatrixRTC (MSC4143): then the heartbeat ends
    /// with [`Failure::LeaveFired`], and another one is to be started. While it is cut off it still says
    /// [`State::ProbablyLeft`], as nobody knows before the server can be asked. Where somebody has removed
    /// the member, or the join ran out, it ends with [`Failure::Removed`]. After
    /// [`resume`](HeartbeatHandle::resume) it does join again, where it has left to be in the background:
    /// that is not by itself.
    pub fn rejoin(mut self, rejoin: bool) -> Self {
        self.rejoin = rejoin;
        self
    }

    /// What it leaves with where it is told to leave and not with which content: the armed leave's, unless
    /// told. See [`HeartbeatHandle::leave_with`].
    pub(crate) fn last_words(mut self, content: Map<String, Value>) -> Self {
        self.last_words = Some(content);
        self
    }

    /// Until when an event that an earlier heartbeat of ours sent under this key outranks one that is
    /// sticky for a shorter time: [`HeartbeatHandle::outranked_until`].
    pub(crate) fn outranked_until(mut self, until: Option<Deadline>) -> Self {
        self.outranked_until = until;
        self
    }

    /// Starts: it joins as soon as the server lets it.
    ///
    /// What an earlier process of the same store has left armed is retired before that: of this key
    /// by handing over to the new one, of all other keys by leaving.
    ///
    /// # Errors
    ///
    /// [`StartHeartbeatError`].
    pub async fn start(self) -> Result<HeartbeatHandle, StartHeartbeatError> {
        let Self {
            sticky,
            room,
            sticky_key,
            event_type,
            content,
            leave_content,
            delay,
            sticky_for,
            rejoin,
            last_words,
            outranked_until,
        } = self;
        let pace = Pace::default().with_delay(delay);
        let pace = pace
            .and_then(|pace| sticky_for.map_or(Ok(pace), |sticky| pace.with_sticky(sticky)))
            .map_err(StartHeartbeatError::Pace)?;
        let event_type = event_type.ok_or(StartHeartbeatError::NoContent)?;
        let mut content = content.map_err(StartHeartbeatError::Content)?;
        let mut leave_content = leave_content.map_err(StartHeartbeatError::Content)?;
        for content in [&mut content, &mut leave_content] {
            insert_sticky_key(content, &sticky_key);
        }
        let place = Place { room_id: room.room_id().to_owned(), event_type, sticky_key };
        let beating = sticky.client().beating().clone();
        let (wishes, wished) = mpsc::unbounded_channel();
        let live = beating.live(&place, &wishes, pace.delay()).ok_or(StartHeartbeatError::InUse)?;

        let timer = sticky.timer().clone();
        let store = Store::new(room.client(), beating.ours.clone());
        if !store.own(timer.now()).await.map_err(StartHeartbeatError::Store)? {
            return Err(StartHeartbeatError::OtherProcess);
        }
        let armed = store.armed().await.map_err(StartHeartbeatError::Store)?;
        let (own, others): (Vec<_>, Vec<_>) =
            armed.into_iter().partition(|armed| armed.place == place);
        let others = others.into_iter().filter(|armed| !beating.is_live(&armed.place)).collect();

        let mut machine = Heartbeat::new(pace, random_seed()).rejoin(rejoin);
        machine.handle_outranked(outranked_until);
        let mut kept = Kept { content, leave_content, last_words, ..Kept::default() };
        for armed in own {
            let is_over = armed.is_over(timer.now());
            let leave = armed.leave;
            let sticky = leave.sticky().unwrap_or_default();
            let lease = machine.handle_found(timer.now(), sticky, leave.delay());
            let lease_of_then =
                Lease { is_unsure: true, is_stored: true, is_over, ..Lease::new(leave) };
            kept.leases.insert(lease, lease_of_then);
        }
        let state = SharedObservable::new(machine.state(timer.now()));
        let context = Arc::new(Context {
            events: sticky.client().delayed_events(),
            sticky,
            room,
            store,
            timer,
            place,
            sticky_for: machine.sticky(),
            delay: pace.delay(),
            kept: Mutex::new(kept),
        });
        let live = Arc::new(Mutex::new(Some(live)));
        let id = context.sticky.client().beating().next.fetch_add(1, Relaxed);
        let (state_of_it, live_of_it) = (state.clone(), live.clone());
        let context_of_it = context.clone();
        let run = Run { context: context_of_it, id, machine, state: state_of_it, live: live_of_it };
        let task = Task::spawn(run.run(wished, others));
        Ok(HeartbeatHandle { context, state, wishes, live, _task: task })
    }
}

impl fmt::Debug for StartHeartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartHeartbeat")
            .field("event_type", &self.event_type)
            .field("sticky_key", &self.sticky_key)
            .field("delay", &self.delay)
            .field("sticky_for", &self.sticky_for)
            .field("rejoin", &self.rejoin)
            .finish_non_exhaustive()
    }
}

/// A member that is there for as long as this is. Made by [`StartHeartbeat::start`].
///
/// Dropping it without [`leave`](Self::leave) is what a crash is: the armed leave fires within the
/// delay.
pub struct HeartbeatHandle {
    context: Arc<Context>,
    state: SharedObservable<State>,
    wishes: mpsc::UnboundedSender<Wish>,
    live: Arc<Mutex<Option<Live>>>,
    _task: Option<Task>,
}

impl Drop for HeartbeatHandle {
    fn drop(&mut self) {
        // At once, and not when the task has ended: the key may be wanted again.
        lock(&self.live).take();
    }
}

impl HeartbeatHandle {
    /// How the member stands.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// How the member stands, and each change of that.
    pub fn subscribe_state(&self) -> Subscriber<State> {
        self.state.subscribe()
    }

    /// The pulse: until when the leave that is armed does not fire, as far as is known. Each beat moves it
    /// on; once it is over, everybody may see the member gone. `None` where none is armed, as when
    /// [`State::Degraded`], or somebody else restarts it.
    pub fn armed_until(&self) -> Option<Deadline> {
        self.context.kept().armed_until
    }

    /// Until when what it has sent outranks an event of the same key that is sticky for a shorter time.
    pub(crate) fn outranked_until(&self) -> Option<Deadline> {
        self.context.kept().outranked_until
    }

    /// What went wrong last, in words; for [`State::Failed`] and [`State::ProbablyLeft`].
    pub fn last_error(&self) -> Option<String> {
        self.context.kept().last_error.clone()
    }

    /// What everybody sees from now on.
    ///
    /// # Errors
    ///
    /// When the content is no JSON object: nothing changes.
    pub fn update<C: StickyContent + Serialize>(
        &self,
        content: &C,
    ) -> Result<(), serde_json::Error> {
        self.update_raw(as_object(content)?);
        Ok(())
    }

    /// As [`update`](Self::update), for a type that is only known at run time.
    pub fn update_raw(&self, content: Map<String, Value>) {
        self.wish(Wish::Update(content));
    }

    /// Leaves. Returns when the server has the leave, or [`State::Failed`] is reached; until then it
    /// is tried again and again. Giving up waiting is safe: the armed leave fires all the same.
    pub async fn leave(&self) -> State {
        self.wish(Wish::Leave);
        until_left(&self.state).await
    }

    /// As [`leave`](Self::leave), with another content than the armed leave has: such as a reason, where
    /// the armed one says that the connection was lost. It is an event of the same type and key.
    ///
    /// It is sent first, and what is armed is cancelled after it; or fired, where the server refuses it.
    /// Should what is armed fire meanwhile, that is a leave besides another. Nothing is sent where nobody
    /// has seen the member, or where it has left already, as in the background.
    pub async fn leave_with(&self, content: Map<String, Value>) -> State {
        self.wish(Wish::LeaveWith(content));
        until_left(&self.state).await
    }

    /// The application goes into the background. The member leaves; or, with `keep`, stays for as
    /// long as the armed leave holds, which [`State::Suspended`] tells, and no request goes out.
    pub fn suspend(&self, keep: bool) {
        self.wish(Wish::Suspend { keep });
    }

    /// The application is back: what became of the armed leave is asked first.
    pub fn resume(&self) {
        self.wish(Wish::Resume);
    }

    /// Hands the armed leave to somebody who restarts it from now on and fires it when the member is
    /// gone, such as an SFU's authorization service (MSC4195). `None` while none is armed.
    ///
    /// Choose a delay that is as long as they ask for. It is restarted by us only when the join is
    /// refreshed. Where another leave takes over from it, as when somebody joins an encrypted room, that
    /// one is restarted by us until it is delegated in its turn.
    pub fn delegate(&self) -> Option<DelayId> {
        let (lease, delay_id) = {
            let kept = self.context.kept();
            let held = kept.held?;
            (held, kept.leases.get(&held)?.delay_id.clone()?)
        };
        self.wish(Wish::Delegate(lease));
        Some(delay_id)
    }

    /// Takes the armed leave back from whom it was delegated to, as when they fail.
    pub fn take_back(&self) {
        self.wish(Wish::TakeBack);
    }

    fn wish(&self, wish: Wish) {
        // Nobody listens any more where all is over.
        let _ = self.wishes.send(wish);
    }
}

/// The state after which nothing follows, once it is reached.
pub(crate) async fn until_left(state: &SharedObservable<State>) -> State {
    let mut states = state.subscribe();
    loop {
        match states.get() {
            state @ (State::Left | State::Failed(_)) => return state,
            state => {
                if states.next().await.is_none() {
                    return state;
                }
            }
        }
    }
}

impl fmt::Debug for HeartbeatHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeartbeatHandle")
            .field("place", &self.context.place)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// What the owner wants.
enum Wish {
    Update(Map<String, Value>),
    Leave,
    LeaveWith(Map<String, Value>),
    Suspend { keep: bool },
    Resume,
    Delegate(LeaseId),
    TakeBack,
}

/// The heartbeats of a client.
#[derive(Clone, Default)]
pub(crate) struct Beating {
    turns: Arc<Mutex<Turns>>,
    /// The number of the next heartbeat.
    next: Arc<AtomicU64>,
    live: Arc<Mutex<HashMap<Place, Owner>>>,
    ours: Arc<Ours>,
    /// What the live ones have armed, as far as is known.
    delay_ids: Arc<Mutex<HashMap<DelayId, Place>>>,
}

/// Whom to tell what the owner wants, and how long after a crash the member is seen.
type Owner = (mpsc::UnboundedSender<Wish>, Duration);

/// The one live owner of a key, for as long as this is.
struct Live {
    beating: Beating,
    place: Place,
}

impl Beating {
    fn live(
        &self,
        place: &Place,
        wishes: &mpsc::UnboundedSender<Wish>,
        delay: Duration,
    ) -> Option<Live> {
        let mut live = lock(&self.live);
        if live.contains_key(place) {
            return None;
        }
        live.insert(place.clone(), (wishes.clone(), delay));
        Some(Live { beating: self.clone(), place: place.clone() })
    }

    fn is_live(&self, place: &Place) -> bool {
        lock(&self.live).contains_key(place)
    }

    /// Whether a heartbeat of this client has this key.
    pub(crate) fn has(&self, room_id: &RoomId, event_type: &str, sticky_key: &str) -> bool {
        let (event_type, sticky_key) = (event_type.to_owned(), sticky_key.to_owned());
        self.is_live(&Place { room_id: room_id.to_owned(), event_type, sticky_key })
    }

    /// Fires what earlier processes have left armed: their members are not there any more, and nobody else
    /// would say so before the leaves fire by themselves. Not before the longest time that a request of
    /// theirs may still be under way: a join that arrives after its leave would outlive it.
    async fn retire(
        &self,
        timer: &dyn Timer,
        store: &Store,
        events: &DelayedEvents,
        armed: Vec<Armed>,
    ) {
        let Some(longest) = armed.iter().map(|armed| armed.leave.delay()).max() else { return };
        timer.sleep_until(timer.now().deadline(Pace::default().timeout(longest))).await;
        let mut all = match listed(events, self).await {
            Ok(all) => all,
            Err(error) => return debug!(%error, "the server does not tell what is scheduled"),
        };
        for armed in armed {
            let is_over = armed.is_over(timer.now());
            let Armed { leave, place, .. } = armed;
            if self.is_live(&place) {
                // It has started meanwhile, and hands over by itself.
                continue;
            }
            let retired = async {
                let delay_id = scheduled_as(events, &leave, is_over, &mut all).await?;
                events.send(&delay_id).await
            };
            match retired.await {
                // Refused: we may not send there any more, and the server has not either.
                Ok(())
                | Err(
                    DelayedError::Gone
                    | DelayedError::AlreadySent
                    | DelayedError::AlreadyCancelled
                    | DelayedError::Refused { .. },
                ) => {
                    if let Err(error) = store.remove(leave.transaction_id()).await {
                        warn!(%error, "a leave that is over could not be removed from the store");
                    }
                }
                // The next start tries again; and it fires by itself.
                Err(error) => debug!(%error, "an earlier process's leave could not be fired"),
            }
        }
    }

    fn is_idle(&self) -> bool {
        lock(&self.live).is_empty()
    }

    /// All leave, and what earlier processes have left armed is fired. Returns when the server has it,
    /// or does not answer: within the longest delay and 20 s.
    pub(crate) async fn leave_all(
        &self,
        timer: &dyn Timer,
        client: &Client,
        events: &DelayedEvents,
    ) {
        let wishes: Vec<_> = lock(&self.live).values().cloned().collect();
        let delay = wishes.iter().map(|(_, delay)| *delay).max().unwrap_or_default();
        let deadline = timer.now().deadline(delay + RETIRING);
        for (wish, _) in &wishes {
            let _ = wish.send(Wish::Leave);
        }
        for (wish, _) in wishes {
            wish.closed().await;
        }
        // After that, as what the live ones have armed is in the store until they have left.
        before(timer, deadline, self.retire_all(timer, client, events)).await;
    }

    /// Fires what earlier processes have left armed, if the store is ours.
    async fn retire_all(&self, timer: &dyn Timer, client: &Client, events: &DelayedEvents) {
        let store = Store::new(client.clone(), self.ours.clone());
        match store.own(timer.now()).await {
            // What another client has armed is not ours to fire.
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => warn!(%error, "the store does not take that heartbeats are retired"),
        }
        match store.armed().await {
            Ok(armed) => self.retire(timer, &store, events, armed).await,
            Err(error) => warn!(%error, "the client's store does not tell what is armed"),
        }
        store.disown(|| self.is_idle()).await;
    }
}

impl fmt::Debug for Beating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beating").field("live", &lock(&self.live).len()).finish_non_exhaustive()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        {
            let mut live = lock(&self.beating.live);
            live.remove(&self.place);
            if live.is_empty() {
                self.beating.ours.release();
            }
        }
        // What it had armed is for the next heartbeat to find.
        lock(&self.beating.delay_ids).retain(|_, place| *place != self.place);
    }
}

/// What the actions are performed with.
struct Context {
    sticky: RoomSticky,
    room: Room,
    events: DelayedEvents,
    store: Store,
    timer: Arc<dyn Timer>,
    place: Place,
    /// For how long the leave is sticky.
    sticky_for: Duration,
    delay: Duration,
    kept: Mutex<Kept>,
}

/// What stands behind the machine's numbers.
#[derive(Default)]
struct Kept {
    content: Map<String, Value>,
    leave_content: Map<String, Value>,
    last_words: Option<Map<String, Value>>,
    leases: HashMap<LeaseId, Lease>,
    held: Option<LeaseId>,
    armed_until: Option<Deadline>,
    outranked_until: Option<Deadline>,
    /// Who is in the room, as far as is known; see [`Context::readers`].
    readers: Readers,
    reach: Reach,
    /// The event that is sent next, or was sent last.
    sending: Option<(SendId, ReadyEvent)>,
    /// The last join that was answered.
    joined: Option<OwnedEventId>,
    last_error: Option<String>,
}

struct Lease {
    leave: PreparedEvent,
    delay_id: Option<DelayId>,
    /// Whether it may be armed already: by an earlier process, or by a try that was not answered.
    is_unsure: bool,
    /// Whether the next process can find it in the store.
    is_stored: bool,
    /// Whether it has fired, or never was armed, unless the server lists it: an earlier process's.
    is_over: bool,
}

impl Lease {
    fn new(leave: PreparedEvent) -> Self {
        Self { leave, delay_id: None, is_unsure: false, is_stored: false, is_over: false }
    }
}

/// An event that is ready to go out, and who can read it.
enum Ready {
    Leave(LeaseId, PreparedEvent, Readers),
    Event(SendId, ReadyEvent, Readers),
}

/// What the task waits for.
enum Event {
    Done(Step, Outcome),
    /// The event of a step is ready to go out, or could not be made so.
    Prepared(Step, Result<Ready, Outcome>),
    Due,
    Wish(Option<Wish>),
    /// Something of ours has changed.
    Change(Change),
    /// Somebody's devices, or who is in the room.
    News(News),
    /// Who can read the room now.
    Readers(Option<Readers>),
    /// Who holds the room key, after another try to reach those who could not be.
    Offered(Option<Readers>),
    /// What other keys had armed is retired.
    Retired,
}

struct Run {
    context: Arc<Context>,
    id: HeartbeatId,
    machine: Heartbeat,
    state: SharedObservable<State>,
    live: Arc<Mutex<Option<Live>>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        // However it ends, nobody waits behind it any more.
        lock(&self.context.sticky.client().beating().turns).forget(self.id);
    }
}

impl Run {
    async fn run(mut self, mut wished: mpsc::UnboundedReceiver<Wish>, others: Vec<Armed>) {
        let context = self.context.clone();
        let own = context.room.own_user_id().to_owned();
        let events = context.sticky.events().of_type(&*context.place.event_type).from(own);
        let Subscription { mut changes, .. } = events.subscribe();
        let mut news = readers_change(&context.room).await;
        let retiring = context.clone();
        let retired = async move {
            let beating = retiring.sticky.client().beating();
            beating.retire(&*retiring.timer, &retiring.store, &retiring.events, others).await;
        };
        let mut retired = Some(retired.boxed());
        let mut doing: Option<BoxFuture<'static, (Step, Outcome)>> = None;
        let mut preparing = FuturesUnordered::<BoxFuture<'static, _>>::new();
        let mut looking: Option<BoxFuture<'static, Option<Readers>>> = None;
        let mut offering: Option<BoxFuture<'static, Option<Readers>>> = None;
        let mut look_again = None;
        let mut owned_at = context.timer.now();

        loop {
            let now = context.timer.now();
            if now.since(owned_at) >= OWN_AGAIN {
                owned_at = now;
                match context.store.own(now).await {
                    Ok(true) => {}
                    Ok(false) => warn!("another client has heartbeats on the same store by now"),
                    Err(error) => warn!(%error, "the store does not take that a heartbeat beats"),
                }
            }
            let now = context.timer.now();
            self.machine.handle_pace(lock(&context.sticky.client().beating().turns).is_slow(now));
            while let Some(action) = self.machine.poll_action(now) {
                if !context.is_ready(action.step) {
                    self.machine.handle_outcome(now, Outcome::Preparing);
                    if self.machine.awaits(action.step) {
                        preparing.push(context.clone().prepare(action.step).boxed());
                    }
                    continue;
                }
                if let Err(until) = self.ask_turn(now, action.step) {
                    self.machine.handle_outcome(now, Outcome::NotYet { until });
                    continue;
                }
                // From the moment that the machine counts from.
                let deadline = now.deadline(action.timeout);
                doing = Some(context.clone().perform(action.step, deadline).boxed());
            }
            {
                let mut kept = context.kept();
                kept.held = self.machine.held();
                kept.armed_until = self.machine.armed_until();
                kept.outranked_until = self.machine.outranked_until();
            }
            if self.machine.is_over() && doing.is_none() {
                break;
            }
            self.state.set_if_not_eq(self.machine.state(now));
            if looking.is_none()
                && let Some(news) = look_again.take()
            {
                let context = context.clone();
                looking = Some(async move { context.readers(&news).await }.boxed());
            }
            if offering.is_none() && context.kept().reach.poll_offer(now) {
                let context = context.clone();
                offering = Some(async move { context.offer().await }.boxed());
            }
            let offer_at = context.kept().reach.deadline();
            let own_again = owned_at.deadline(OWN_AGAIN);
            let dues = [self.machine.deadline(now), offer_at.filter(|_| offering.is_none())];
            let due = dues.into_iter().flatten().fold(own_again, Deadline::min);
            let event = tokio::select! {
                biased;
                wish = wished.recv() => Event::Wish(wish),
                (step, outcome) = optional(&mut doing) => Event::Done(step, outcome),
                Some((step, ready)) = preparing.next() => Event::Prepared(step, ready),
                Some(change) = changes.next() => Event::Change(change),
                () = optional(&mut retired) => Event::Retired,
                readers = optional(&mut looking) => Event::Readers(readers),
                holders = optional(&mut offering) => Event::Offered(holders),
                Some(news) = news.next() => Event::News(news),
                () = context.timer.sleep_until(due) => Event::Due,
            };
            let now = context.timer.now();
            match event {
                Event::Done(step, outcome) => {
                    doing = None;
                    if let Outcome::RateLimited { retry_after } = outcome {
                        let beating = context.sticky.client().beating();
                        lock(&beating.turns).handle_limit(now, step, retry_after);
                    }
                    self.machine.handle_outcome(now, outcome);
                    if matches!((step, outcome), (Step::Join { .. }, Outcome::Done)) {
                        // It may have come back before it was answered.
                        events.snapshot().iter().for_each(|entry| self.look_for_join(&entry));
                    }
                    self.forget_leases().await;
                    if matches!((step, outcome), (Step::Arm { .. }, Outcome::Done)) {
                        // Somebody may have come while it was on its way.
                        add(&mut look_again, News { members: true, ..News::default() });
                    }
                }
                Event::Prepared(step, ready) => self.handle_prepared(now, step, ready),
                Event::Due => {}
                Event::Wish(Some(wish)) => self.handle_wish(wish),
                // The handle is gone without having left: as after a crash, the leave fires.
                Event::Wish(None) => return,
                Event::Change(change) => self.handle_change(&change),
                Event::News(news) => add(&mut look_again, news),
                Event::Readers(readers) => {
                    looking = None;
                    if let Some(readers) = readers {
                        self.handle_readers(now, readers);
                    }
                }
                Event::Offered(holders) => {
                    offering = None;
                    self.handle_offered(now, holders.as_ref());
                }
                Event::Retired => retired = None,
            }
        }
        let state = self.machine.state(context.timer.now());
        let why = match state {
            State::Failed(Failure::LeaveFired) => Some("the armed leave has fired"),
            State::Failed(Failure::Removed) => Some("the member was removed, or its join ran out"),
            State::Failed(Failure::NotInRoom) => Some(NOT_IN_ROOM),
            State::Failed(Failure::Redacted) => Some(REDACTED),
            _ => None,
        };
        if let Some(why) = why {
            context.kept().last_error = Some(why.to_owned());
        }
        // The key is free, and the store nobody's, before anybody hears that it is over.
        self.forget_leases().await;
        lock(&self.live).take();
        context.store.disown(|| context.sticky.client().beating().is_idle()).await;
        self.state.set_if_not_eq(state);
    }

    fn handle_wish(&mut self, wish: Wish) {
        let now = self.context.timer.now();
        match wish {
            Wish::Update(mut content) => {
                insert_sticky_key(&mut content, &self.context.place.sticky_key);
                self.context.kept().content = content;
                self.machine.handle_update();
            }
            Wish::Leave => {
                let last_words = self.context.kept().last_words.take();
                match last_words {
                    Some(content) => self.leave_with(content),
                    None => self.machine.handle_leave(),
                }
            }
            Wish::LeaveWith(content) => self.leave_with(content),
            Wish::Suspend { keep } => self.machine.handle_suspend(keep),
            Wish::Resume => self.machine.handle_resume(now),
            Wish::Delegate(lease) => self.machine.handle_delegated(lease),
            Wish::TakeBack => self.machine.handle_taken_back(now),
        }
    }

    fn leave_with(&mut self, mut content: Map<String, Value>) {
        insert_sticky_key(&mut content, &self.context.place.sticky_key);
        {
            let mut kept = self.context.kept();
            kept.leave_content = content;
            // These are the last.
            kept.last_words = None;
        }
        self.machine.handle_leave_with();
    }

    /// Our own leave comes back, with its delay id; or all that is known is that the entry is gone,
    /// and then it is asked what became of the lease.
    fn handle_change(&mut self, change: &Change) {
        let key = self.context.place.sticky_key.clone();
        for change in &change.entries {
            let entry = change.entry();
            if entry.sticky_key() != Some(&key) {
                continue;
            }
            let now = self.context.timer.now();
            match change {
                EntryChange::Removed { reason: RemovalReason::Removed, .. } => {
                    self.machine.handle_doubt(now);
                }
                EntryChange::Removed { reason: RemovalReason::Expired, .. } => {
                    self.machine.handle_expired(now);
                }
                EntryChange::Removed { reason: RemovalReason::Redacted, .. } => {
                    self.machine.handle_ended(Failure::Redacted);
                }
                EntryChange::Removed { reason: RemovalReason::RoomLeft, .. } => {
                    self.machine.handle_ended(Failure::NotInRoom);
                }
                EntryChange::Removed { .. } => {}
                EntryChange::Updated { entry, previous } if is_lost_refresh(entry, previous) => {
                    self.machine.handle_ended(Failure::Redacted);
                }
                _ => {
                    self.look_for_join(entry);
                    let Some(delay_id) = DelayId::of_event(entry.raw()) else { continue };
                    let fired = {
                        let kept = self.context.kept();
                        let mut leases = kept.leases.iter();
                        leases
                            .find(|(_, lease)| lease.delay_id.as_ref() == Some(&delay_id))
                            .map(|(lease, _)| *lease)
                    };
                    match fired {
                        Some(lease) => self.machine.handle_fired(now, lease),
                        // One that is not known any more.
                        None => self.machine.handle_doubt(now),
                    }
                }
            }
        }
    }

    fn look_for_join(&mut self, entry: &Entry) {
        if self.context.kept().joined.as_deref() == Some(entry.event_id()) {
            self.machine.handle_shown();
        }
    }

    /// Whether it is this heartbeat's turn among those of the client.
    fn ask_turn(&self, now: Moment, step: Step) -> Result<(), Deadline> {
        let kept = self.context.kept();
        let ends_at = match step {
            // Everybody waits to see it.
            Step::Fire(_) | Step::Leave { .. } => now.deadline(Duration::ZERO),
            _ => kept.armed_until.unwrap_or(now.deadline(self.context.delay)),
        };
        lock(&self.context.sticky.client().beating().turns).ask(now, self.id, step, ends_at)
    }

    fn handle_prepared(&mut self, now: Moment, step: Step, ready: Result<Ready, Outcome>) {
        if !self.machine.awaits(step) {
            return;
        }
        let outcome = match ready {
            Err(outcome) => outcome,
            Ok(ready) => {
                let mut kept = self.context.kept();
                let kept = &mut *kept;
                match ready {
                    Ready::Leave(lease, leave, reached) => {
                        kept.reach.handle_leave(now, reached, kept.readers.clone());
                        kept.leases.insert(lease, Lease::new(leave));
                    }
                    Ready::Event(send, event, reached) => {
                        if matches!(step, Step::Join { .. }) {
                            kept.reach.handle_join(now, reached, &kept.readers);
                        }
                        kept.sending = Some((send, event));
                    }
                }
                Outcome::Done
            }
        };
        self.machine.handle_prepared(now, step, outcome);
    }

    /// Who is there, compared with who could read the leave that is armed.
    fn handle_readers(&mut self, now: Moment, readers: Readers) {
        let mut kept = self.context.kept();
        let has_come = kept.reach.handle_readers(&readers);
        let count = readers.len();
        kept.readers = readers;
        drop(kept);
        if has_come {
            self.machine.handle_newcomers(now, count);
        }
    }

    /// Another try to reach those who could not be is over.
    fn handle_offered(&mut self, now: Moment, holders: Option<&Readers>) {
        let mut kept = self.context.kept();
        let kept = &mut *kept;
        let has_gained = kept.reach.handle_offered(now, holders, &kept.readers);
        if has_gained {
            self.machine.handle_newcomers(now, kept.readers.len());
        }
    }

    /// What cannot fire any more need not be found by the next process.
    async fn forget_leases(&mut self) {
        let gone: Vec<_> = {
            let mut kept = self.context.kept();
            let gone: Vec<_> =
                kept.leases.keys().copied().filter(|lease| !self.machine.needs(*lease)).collect();
            gone.iter().filter_map(|lease| kept.leases.remove(lease)).collect()
        };
        for lease in gone {
            if let Some(delay_id) = &lease.delay_id {
                lock(&self.context.sticky.client().beating().delay_ids).remove(delay_id);
            }
            if let Err(error) = self.context.store.remove(lease.leave.transaction_id()).await {
                warn!(%error, "a leave that is over could not be removed from the store");
            }
        }
    }
}

impl Context {
    async fn perform(self: Arc<Self>, step: Step, deadline: Deadline) -> (Step, Outcome) {
        let outcome = match step {
            Step::Arm { lease, .. } => self.arm(step, lease, deadline).await,
            Step::Restart(lease) | Step::Fire(lease) | Step::Cancel(lease) => {
                self.manage(step, lease, deadline).await
            }
            Step::Join { send, .. } => match self.send(step, send, deadline).await {
                Ok(event_id) => {
                    self.kept().joined = Some(event_id);
                    Outcome::Done
                }
                Err(outcome) => outcome,
            },
            Step::Leave { send, .. } => {
                let sent = self.send(step, send, deadline).await;
                sent.map_or_else(|outcome| outcome, |_| Outcome::Done)
            }
        };
        (step, outcome)
    }

    /// Whether the event of a step can go out as it is: it is encrypted, or the room is not.
    fn is_ready(&self, step: Step) -> bool {
        let kept = self.kept();
        match step {
            Step::Arm { lease, .. } => kept.leases.contains_key(&lease),
            Step::Join { send, .. } | Step::Leave { send, .. } => {
                let event = kept.sending.as_ref().filter(|(ready, _)| *ready == send);
                let is_plain = !self.room.encryption_state().is_encrypted();
                event.is_some_and(|(_, event)| is_plain || event.is_encrypted())
            }
            Step::Restart(_) | Step::Fire(_) | Step::Cancel(_) => true,
        }
    }

    /// Makes the event of a step ready to go out. That takes as long as it takes: in a large room it is
    /// many requests, and a lease is restarted meanwhile.
    async fn prepare(self: Arc<Self>, step: Step) -> (Step, Result<Ready, Outcome>) {
        let ready = match step {
            Step::Arm { lease, delay } => self.prepare_leave(lease, delay).await,
            Step::Join { send, sticky } => {
                let content = {
                    let mut kept = self.kept();
                    kept.joined = None;
                    kept.content.clone()
                };
                self.prepare_event(step, send, sticky, &content).await
            }
            Step::Leave { send, sticky } => {
                let content = self.kept().leave_content.clone();
                self.prepare_event(step, send, sticky, &content).await
            }
            Step::Restart(_) | Step::Fire(_) | Step::Cancel(_) => Err(Outcome::Unknown),
        };
        (step, ready)
    }

    async fn prepare_leave(&self, lease: LeaseId, delay: Duration) -> Result<Ready, Outcome> {
        // Before it is encrypted: whoever comes meanwhile is looked for once it is armed.
        let news = News { members: true, ..News::default() };
        if let Some(readers) = self.readers(&news).await {
            self.kept().readers = readers;
        }
        let content = self.kept().leave_content.clone();
        let prepared = self
            .sticky
            .schedule_raw(&self.place.event_type, content, delay)
            .with_sticky_duration(self.sticky_for)
            .prepare_for()
            .await;
        match prepared {
            Ok((leave, reached)) => Ok(Ready::Leave(lease, leave, reached)),
            Err(error) => Err(self.failed(Step::Arm { lease, delay }, &error)),
        }
    }

    async fn prepare_event(
        &self,
        step: Step,
        send: SendId,
        sticky: Duration,
        content: &Map<String, Value>,
    ) -> Result<Ready, Outcome> {
        match Outgoing::of(&self.room, &self.place.event_type, content).await {
            Ok(event) => {
                let reached = event.reached.clone();
                let event = ReadyEvent::new(self.place.room_id.clone(), event, sticky);
                Ok(Ready::Event(send, event, reached))
            }
            Err(error) => Err(self.failed(step, &DelayedError::Prepare(error))),
        }
    }

    async fn manage(&self, step: Step, lease: LeaseId, deadline: Deadline) -> Outcome {
        let Some(id) = self.delay_id(lease) else { return Outcome::Gone };
        let request = match step {
            Step::Restart(_) => self.events.restart(&id),
            Step::Fire(_) => self.events.send(&id),
            _ => self.events.cancel(&id),
        };
        self.outcome(step, request.with_timeout(self.left(deadline)).await)
    }

    async fn arm(&self, step: Step, lease: LeaseId, deadline: Deadline) -> Outcome {
        let known = {
            let kept = self.kept();
            let known = kept.leases.get(&lease);
            known.map(|it| (it.leave.clone(), it.is_unsure, it.is_stored, it.is_over))
        };
        let Some((leave, is_unsure, is_stored, is_over)) = known else { return Outcome::Unknown };
        if is_unsure {
            return self.find(step, lease, &leave, is_over, deadline).await;
        }
        if !is_stored {
            // Before the request goes out, so that whatever becomes of it can be found again.
            let armed = Armed::new(self.place.clone(), leave.clone(), self.timer.now());
            if let Err(error) = self.store.add(armed).await {
                self.note(&error);
                return Outcome::Unknown;
            }
            if let Some(lease) = self.kept().leases.get_mut(&lease) {
                lease.is_stored = true;
            }
        }
        let scheduled = self.events.schedule(&leave).with_timeout(self.left(deadline)).await;
        if let Err(DelayedError::BecameEncrypted) = scheduled {
            // The next try makes another ready. This one was not armed.
            self.kept().leases.remove(&lease);
            if let Err(error) = self.store.remove(leave.transaction_id()).await {
                self.note(&error);
            }
        }
        let outcome = self.learn(step, lease, scheduled);
        if outcome == Outcome::Unknown
            && let Some(lease) = self.kept().leases.get_mut(&lease)
        {
            lease.is_unsure = true;
        }
        outcome
    }

    /// Finds out what an earlier process's leave is called.
    async fn find(
        &self,
        step: Step,
        lease: LeaseId,
        leave: &PreparedEvent,
        is_over: bool,
        deadline: Deadline,
    ) -> Outcome {
        let find = async {
            let mut listed = listed(&self.events, self.sticky.client().beating()).await?;
            scheduled_as(&self.events, leave, is_over, &mut listed).await
        };
        match self.before(deadline, find).await {
            None => Outcome::Unknown,
            Some(found) => self.learn(step, lease, found),
        }
    }

    fn learn(
        &self,
        step: Step,
        lease: LeaseId,
        scheduled: Result<DelayId, DelayedError>,
    ) -> Outcome {
        match scheduled {
            Ok(delay_id) => {
                lock(&self.sticky.client().beating().delay_ids)
                    .insert(delay_id.clone(), self.place.clone());
                if let Some(lease) = self.kept().leases.get_mut(&lease) {
                    lease.delay_id = Some(delay_id);
                }
                Outcome::Done
            }
            Err(error) => self.failed(step, &error),
        }
    }

    /// One event, the same at each try.
    async fn send(
        &self,
        step: Step,
        send: SendId,
        deadline: Deadline,
    ) -> Result<OwnedEventId, Outcome> {
        let ready = self.kept().sending.as_ref().filter(|(ready, _)| *ready == send).cloned();
        let Some((_, event)) = ready else { return Err(Outcome::Unknown) };
        let sent = self.events.send_now(&event, self.left(deadline)).await;
        sent.map_err(|error| self.failed(step, &error))
    }

    /// Who could read a leave that is armed now; nobody while the room is not encrypted, so that all
    /// are new when encryption is switched on.
    async fn readers(&self, news: &News) -> Option<Readers> {
        if !self.room.encryption_state().is_encrypted() {
            return Some(Readers::default());
        }
        #[cfg(feature = "e2e-encryption")]
        if let Some(encryptor) = Encryptor::of(&self.room.client()) {
            let known = self.kept().readers.clone();
            // Where encryption was just switched on, all are new.
            let is_anew = news.missed || known.is_empty();
            let (all, nobody) = (News { members: true, ..News::default() }, Readers::default());
            let (known, news) = if is_anew { (&nobody, &all) } else { (&known, news) };
            return encryptor.readers_since(&self.room, known, news).await.ok();
        }
        let _ = news;
        None
    }

    /// Tries again to reach those who have not got the room key. Returns who holds it now.
    async fn offer(&self) -> Option<Readers> {
        #[cfg(feature = "e2e-encryption")]
        if let Some(encryptor) = Encryptor::of(&self.room.client()) {
            let holders = encryptor.offer(&self.room).await;
            return holders.inspect_err(|error| self.note(error)).ok();
        }
        None
    }

    fn outcome(&self, step: Step, result: Result<(), DelayedError>) -> Outcome {
        result.map_or_else(|error| self.failed(step, &error), |()| Outcome::Done)
    }

    fn failed(&self, step: Step, error: &DelayedError) -> Outcome {
        self.note(error);
        outcome(step, error)
    }

    fn note(&self, error: &dyn fmt::Display) {
        let error = error.to_string();
        debug!(room_id = %self.place.room_id, "a heartbeat's request failed: {error}");
        self.kept().last_error = Some(error);
    }

    fn delay_id(&self, lease: LeaseId) -> Option<DelayId> {
        self.kept().leases.get(&lease)?.delay_id.clone()
    }

    async fn before<T>(&self, deadline: Deadline, future: impl Future<Output = T>) -> Option<T> {
        before(&*self.timer, deadline, future).await
    }

    fn left(&self, deadline: Deadline) -> Duration {
        deadline.left(self.timer.now())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

/// Whether the map shows an earlier join of ours again, as somebody has redacted the later one. Of a
/// leave that is redacted all that is to be known is that it was sent.
fn is_lost_refresh(entry: &Entry, previous: &StickyEvent) -> bool {
    previous.is_redacted()
        && entry.event().rank() < previous.rank()
        && DelayId::of_event(previous.raw()).is_none()
}

/// What the server has scheduled, but for what live heartbeats have armed. Nothing where it keeps no
/// list.
async fn listed(
    events: &DelayedEvents,
    beating: &Beating,
) -> Result<Vec<ScheduledEvent>, DelayedError> {
    let mut listed = match events.list().await {
        Err(DelayedError::NotSupported { .. }) => Vec::new(),
        listed => listed?,
    };
    let live = lock(&beating.delay_ids);
    listed.retain(|scheduled| !live.contains_key(&scheduled.delay_id));
    Ok(listed)
}

/// The delay id of a leave that may be armed already; it is taken out of what the server has listed.
///
/// Why not simply repeat the request? A server that has restarted since knows no transaction ids of
/// before, and would schedule a second one. Where it is not listed it has fired, or never was armed:
/// while its arming may still be on its way the same request tells, and at worst makes one that is then
/// retired. After that it is gone.
async fn scheduled_as(
    events: &DelayedEvents,
    leave: &PreparedEvent,
    is_over: bool,
    listed: &mut Vec<ScheduledEvent>,
) -> Result<DelayId, DelayedError> {
    match listed.iter().position(|scheduled| leave.matches(scheduled)) {
        Some(at) => Ok(listed.swap_remove(at).delay_id),
        None if is_over => Err(DelayedError::Gone),
        None => match events.schedule(leave).await {
            // What was made ready in plaintext is not scheduled any more.
            Err(DelayedError::BecameEncrypted) => Err(DelayedError::Gone),
            scheduled => scheduled,
        },
    }
}

/// News of somebody's devices, of who is in the room, or of its encryption.
async fn readers_change(room: &Room) -> impl Stream<Item = News> + Unpin + use<> {
    let updates = room.subscribe_to_updates();
    let updates = futures_util::stream::unfold(updates, async |mut updates| {
        loop {
            match updates.recv().await {
                Err(RecvError::Closed) => return pending().await,
                Ok(update) if !concerns_readers(&update) => {}
                _ => return Some((News { members: true, ..News::default() }, updates)),
            }
        }
    });
    Box::pin(futures_util::stream::select(updates, devices_change(room)))
}

/// News of somebody's devices.
#[cfg(feature = "e2e-encryption")]
fn devices_change(room: &Room) -> impl Stream<Item = News> + Unpin + use<> {
    let client = room.client();
    let encryption = client.encryption();
    let told = listening(&client, move || {
        let encryption = encryption.clone();
        async move {
            let devices = encryption.devices_stream().await;
            let devices = devices.inspect_err(|error| debug!(%error, "devices are not watched"));
            Some(devices.ok()?.boxed())
        }
    });
    told.map(|told| match told {
        Told::News(devices) => {
            let users = devices.new.into_keys().chain(devices.changed.into_keys()).collect();
            News { users, ..News::default() }
        }
        Told::Missed => News { members: true, missed: true, ..News::default() },
    })
}

#[cfg(not(feature = "e2e-encryption"))]
fn devices_change(_: &Room) -> impl Stream<Item = News> + Unpin + use<> {
    futures_util::stream::pending()
}

/// Adds to what is not looked at yet.
fn add(news: &mut Option<News>, more: News) {
    let news = news.get_or_insert_default();
    news.members |= more.members;
    news.missed |= more.missed;
    news.users.extend(more.users);
}

/// The state that decides who gets a room key.
const OF_READERS: [&str; 3] = ["m.room.member", "m.room.encryption", "m.room.history_visibility"];

/// Whether somebody came or left, encryption was switched on, or invited users became readers.
/// Messages come by here by the hundreds, so nothing is parsed.
fn concerns_readers(update: &RoomUpdate) -> bool {
    let RoomUpdate::Joined { updates, .. } = update else { return false };
    let (RoomState::Before(state) | RoomState::After(state)) = &updates.state;
    let state = state.iter().map(Cleartext::of_state);
    let timeline = updates.timeline.events.iter().filter_map(Cleartext::of_timeline);
    let mut texts = state.chain(timeline).map(Cleartext::text);
    updates.timeline.limited || texts.any(|text| OF_READERS.iter().any(|name| text.contains(name)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
