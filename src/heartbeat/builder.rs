//! Starting a heartbeat, as a sentence.

use std::{
    fmt,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use eyeball::SharedObservable;
use matrix_sdk::StoreError;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{
    Heartbeat, HeartbeatHandle, Pace, PaceError,
    perform::{Context, Kept, Lease},
    registry::Registry,
    run::Run,
    store::{HeartbeatKey, Store},
};
use crate::{
    context::RoomContext,
    driver::{Task, random_seed},
    outbox::as_object,
    time::Deadline,
    view::StickyContent,
    wire::insert_sticky_key,
};

/// A heartbeat to be started; made by [`RoomSticky::heartbeat`].
#[must_use = "it is started by `start`"]
pub struct StartHeartbeat {
    room: RoomContext,
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
    pub(crate) fn new(room: RoomContext, sticky_key: String) -> Self {
        Self {
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
        let key = HeartbeatKey { room_id: room.room_id().to_owned(), event_type, sticky_key };
        let registry = room.client().extension::<Registry>();
        let (wishes, wished) = mpsc::unbounded_channel();
        let live = registry.live(&key, &wishes, pace.delay()).ok_or(StartHeartbeatError::InUse)?;

        let timer = room.timer().clone();
        let store = Store::new(room.room().client(), registry.ours.clone());
        if !store.own(timer.now()).await.map_err(StartHeartbeatError::Store)? {
            return Err(StartHeartbeatError::OtherProcess);
        }
        let armed = store.armed().await.map_err(StartHeartbeatError::Store)?;
        let (own, others): (Vec<_>, Vec<_>) = armed.into_iter().partition(|armed| armed.key == key);
        let others = others.into_iter().filter(|armed| !registry.is_live(&armed.key)).collect();

        let mut machine = Heartbeat::new(pace, random_seed()).rejoin(rejoin);
        machine.handle_outranked(outranked_until);
        let mut kept = Kept { content, leave_content, last_words, ..Kept::default() };
        for armed in own {
            let is_over = armed.is_over(timer.now());
            let leave = armed.leave;
            let sticky = leave.sticky_duration().unwrap_or_default();
            let lease = machine.handle_found(timer.now(), sticky, leave.delay());
            let lease_of_then =
                Lease { is_unsure: true, is_stored: true, is_over, ..Lease::new(leave) };
            kept.leases.insert(lease, lease_of_then);
        }
        let state = SharedObservable::new(machine.state(timer.now()));
        let context = Arc::new(Context {
            events: room.delayed_events(),
            room,
            store,
            key,
            sticky_duration: machine.sticky(),
            delay: pace.delay(),
            kept: Mutex::new(kept),
        });
        let live = Arc::new(Mutex::new(Some(live)));
        let id = context.room.client().extension::<Registry>().next.fetch_add(1, Relaxed);
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
