//! Starting a heartbeat, as a sentence.

use std::{
    fmt,
    future::IntoFuture,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use eyeball::SharedObservable;
use matrix_sdk::StoreError;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{
    Heartbeat, HeartbeatMachine, HeartbeatTiming, HeartbeatTimingError, Rejoin,
    perform::{Context, Kept, Lease},
    registry::Registry,
    run::Run,
    store::{HeartbeatKey, Store},
};
#[cfg(feature = "e2e-encryption")]
use crate::encrypt::Encryptor;
use crate::{
    context::{EnsureError, RoomContext},
    driver::{BoxFuture, Task, before, random_seed},
    outbox::{PrepareError, as_object},
    sync::state::Unsupported,
    time::Deadline,
    view::StickyContent,
    wire::insert_sticky_key,
};

/// How long [`StartHeartbeat`] waits to hear whether the server knows sticky events at all.
const SUPPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// A heartbeat to be started. Awaiting it starts it. Made by
/// [`RoomSticky::heartbeat`](crate::RoomSticky::heartbeat).
///
/// # Examples
///
/// ```no_run
/// # use std::time::Duration;
/// # use matrix_sdk_sticky::{StickyRoomExt as _, heartbeat::StartHeartbeatError};
/// # async fn example(room: matrix_sdk::Room) -> Result<(), StartHeartbeatError> {
/// let heartbeat = room
///     .sticky()
///     .heartbeat("laptop")
///     .with_raw_content("com.example.looking", serde_json::json!({ "page": 1 }))
///     .with_delay(Duration::from_secs(20))
///     .await?;
/// # Ok(()) }
/// ```
///
/// # Cancel safety
///
/// If the future is dropped, nothing was armed or sent.
#[must_use = "it is started when it is awaited"]
pub struct StartHeartbeat {
    room: RoomContext,
    sticky_key: String,
    event_type: Option<String>,
    content: Result<Map<String, Value>, serde_json::Error>,
    leave_content: Result<Map<String, Value>, serde_json::Error>,
    delay: Duration,
    sticky_duration: Option<Duration>,
    rejoin: Rejoin,
    last_words: Option<Map<String, Value>>,
    outranked_until: Option<Deadline>,
}

/// Why a heartbeat was not started. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartHeartbeatError {
    /// No content was given, so that its type is not known either.
    #[error("a heartbeat needs a content: give it one with `with_content`")]
    NoContent,
    /// A content is not a JSON object.
    #[error("the content is not a JSON object: {0}")]
    Content(#[source] serde_json::Error),
    /// The delay or the sticky duration is out of range.
    #[error(transparent)]
    Timing(HeartbeatTimingError),
    /// The server does not know sticky events (MSC4354), so nobody would see the member.
    #[error("the heartbeat was not started: {0}")]
    Unsupported(#[source] Unsupported),
    /// The room is encrypted, and the client's base client, which encrypts, is not known.
    #[error("the heartbeat was not started: {0}")]
    Prepare(#[source] PrepareError),
    /// This key has a heartbeat already, in this process: leave with that one first, or update it.
    #[error("this key has a heartbeat already: leave with that one first, or update it")]
    InUse,
    /// Another client has heartbeats on the same store, in another process or in this one. Two would
    /// retire each other's. End those, or give this client a store of its own.
    #[error("another client has heartbeats on the same store: end them, or use another store")]
    OtherProcess,
    /// The client's store failed. Nothing is armed that a later process could not find.
    #[error("the client's store failed: {0}")]
    Store(#[source] StoreError),
}

impl StartHeartbeat {
    pub(crate) fn new(room: RoomContext, sticky_key: String) -> Self {
        Self {
            room,
            sticky_key,
            event_type: None,
            content: Ok(Map::new()),
            leave_content: Ok(Map::new()),
            delay: HeartbeatTiming::default().delay(),
            sticky_duration: None,
            rejoin: Rejoin::default(),
            last_words: None,
            outranked_until: None,
        }
    }

    /// Sets what everybody sees while the member is there.
    pub fn with_content<C: StickyContent + Serialize>(mut self, content: &C) -> Self {
        self.event_type = Some(C::TYPE.to_owned());
        self.content = as_object(content);
        self
    }

    /// As [`with_content`](Self::with_content), for a type that is only known at run time.
    pub fn with_raw_content(mut self, event_type: &str, content: impl Serialize) -> Self {
        self.event_type = Some(event_type.to_owned());
        self.content = as_object(&content);
        self
    }

    /// Sets what everybody sees after the member has left: an event of the same type and key. Defaults
    /// to nothing, which removes the entry.
    pub fn with_leave_content(mut self, content: &impl Serialize) -> Self {
        self.leave_content = as_object(content);
        self
    }

    /// Sets how long after a crash everybody sees the member gone. Defaults to 15 s; see
    /// [`HeartbeatTiming::with_delay`].
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets for how long the events are sticky. Defaults to 10 minutes; see
    /// [`HeartbeatTiming::with_sticky`].
    pub fn with_sticky_duration(mut self, sticky_duration: Duration) -> Self {
        self.sticky_duration = Some(sticky_duration);
        self
    }

    /// Sets whether the heartbeat joins again by itself after the armed leave has fired, as after an
    /// outage. Defaults to [`Rejoin::Automatic`].
    ///
    /// Choose [`Rejoin::Never`] if each join is to have a key of its own, as in MatrixRTC (MSC4143). Then
    /// the heartbeat ends with [`HeartbeatFailure::LeaveFired`](super::HeartbeatFailure::LeaveFired), and
    /// another one is to be started. While it is cut off it still says
    /// [`HeartbeatState::ProbablyLeft`](super::HeartbeatState::ProbablyLeft), as nobody knows before the
    /// server can be asked. If somebody has removed the member, or the join ran out, it ends with
    /// [`HeartbeatFailure::Removed`](super::HeartbeatFailure::Removed). After
    /// [`resume`](Heartbeat::resume) it does join again if it has left to be in the background: that is
    /// not by itself.
    pub fn with_rejoin(mut self, rejoin: Rejoin) -> Self {
        self.rejoin = rejoin;
        self
    }

    /// Sets the content that `leave()` sends. Defaults to the armed leave's content. See
    /// [`Heartbeat::leave_with`].
    pub(crate) fn last_words(mut self, content: Map<String, Value>) -> Self {
        self.last_words = Some(content);
        self
    }

    /// Until when an event that an earlier heartbeat of ours sent under this key outranks one that is
    /// sticky for a shorter time: [`Heartbeat::outranked_until`].
    pub(crate) fn outranked_until(mut self, until: Option<Deadline>) -> Self {
        self.outranked_until = until;
        self
    }

    /// Starts the heartbeat, as awaiting it does. It joins as soon as the server lets it.
    ///
    /// What an earlier process of the same store has left armed is retired before that: of this key
    /// by handing over to the new heartbeat, of all other keys by leaving.
    ///
    /// # Errors
    ///
    /// [`StartHeartbeatError`], also if the heartbeat could never work: the server has no sticky events,
    /// or the room is encrypted and nothing encrypts. A server that cannot be reached now is not an error.
    pub async fn start(self) -> Result<Heartbeat, StartHeartbeatError> {
        let Self {
            room,
            sticky_key,
            event_type,
            content,
            leave_content,
            delay,
            sticky_duration,
            rejoin,
            last_words,
            outranked_until,
        } = self;
        let pace = HeartbeatTiming::default().with_delay(delay);
        let pace = pace
            .and_then(|pace| sticky_duration.map_or(Ok(pace), |sticky| pace.with_sticky(sticky)))
            .map_err(StartHeartbeatError::Timing)?;
        let event_type = event_type.ok_or(StartHeartbeatError::NoContent)?;
        let mut content = content.map_err(StartHeartbeatError::Content)?;
        let mut leave_content = leave_content.map_err(StartHeartbeatError::Content)?;
        for content in [&mut content, &mut leave_content] {
            insert_sticky_key(content, &sticky_key);
        }
        ensure_it_can_work(&room).await?;
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

        let mut machine = HeartbeatMachine::new(pace, random_seed()).with_rejoin(rejoin);
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
        Ok(Heartbeat { context, state, wishes, live, _task: task })
    }
}

impl IntoFuture for StartHeartbeat {
    type Output = Result<Heartbeat, StartHeartbeatError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.start())
    }
}

/// Makes sure that a heartbeat can work in this room, as far as that is known or can be found out soon.
async fn ensure_it_can_work(room: &RoomContext) -> Result<(), StartHeartbeatError> {
    if room.room().encryption_state().is_encrypted() && !can_encrypt(room) {
        return Err(StartHeartbeatError::Prepare(PrepareError::NoBaseClient));
    }
    let timer = room.timer();
    let deadline = timer.now().deadline(SUPPORT_TIMEOUT);
    match before(&**timer, deadline, room.ensure_sticky_events()).await {
        Some(Err(EnsureError::Unsupported(what))) => Err(StartHeartbeatError::Unsupported(what)),
        // The machine asks again, for as long as it takes.
        Some(Ok(()) | Err(EnsureError::Request(_))) | None => Ok(()),
    }
}

#[cfg(feature = "e2e-encryption")]
fn can_encrypt(room: &RoomContext) -> bool {
    Encryptor::of(&room.client().client).is_some()
}

#[cfg(not(feature = "e2e-encryption"))]
fn can_encrypt(_: &RoomContext) -> bool {
    false
}

impl fmt::Debug for StartHeartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartHeartbeat")
            .field("event_type", &self.event_type)
            .field("sticky_key", &self.sticky_key)
            .field("delay", &self.delay)
            .field("sticky_duration", &self.sticky_duration)
            .field("rejoin", &self.rejoin)
            .finish_non_exhaustive()
    }
}
