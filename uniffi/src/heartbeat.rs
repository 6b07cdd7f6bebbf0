//! Heartbeats: a member that is there for as long as its handle is.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use eyeball::Subscriber;
use futures_util::{FutureExt as _, StreamExt as _, future::ready, stream};
use matrix_sdk_sticky::{
    RoomSticky, SystemClock,
    heartbeat::{
        Heartbeat as SdkHeartbeat, HeartbeatFailure, HeartbeatState as SdkState, HeartbeatTiming,
        InBackground, Rejoin, StartHeartbeat, StartHeartbeatError,
    },
    time::{Clock as _, Deadline},
};
use tokio::runtime::Handle;

use crate::{
    listen::{ListenerError, Listening},
    runtime::{self, Held, Stage, Started, in_words},
    sticky::object,
};

/// How a heartbeat beats.
#[derive(Clone, Debug, uniffi::Record)]
pub struct HeartbeatConfig {
    /// The type of its events.
    pub event_type: String,
    /// What everybody sees while it is there, a JSON object.
    pub content: String,
    /// What everybody sees after it has left, a JSON object. Nothing unless told: then the entry is
    /// gone.
    #[uniffi(default = None)]
    pub leave_content: Option<String>,
    /// How long after a crash everybody sees it gone; 15 s unless told.
    #[uniffi(default = None)]
    pub delay: Option<Duration>,
    /// For how long its events are sticky. Defaults to 10 minutes.
    #[uniffi(default = None)]
    pub sticky: Option<Duration>,
    /// Whether it joins again by itself after it has left unwanted, as after an outage.
    #[uniffi(default = true)]
    pub rejoin: bool,
}

impl HeartbeatConfig {
    pub(crate) fn apply(self, start: StartHeartbeat) -> Result<StartHeartbeat, HeartbeatError> {
        let object = |text: &str| object(text).map_err(|reason| HeartbeatError::Content { reason });
        let mut start = start.with_raw_content(&self.event_type, object(&self.content)?);
        if let Some(leave_content) = self.leave_content {
            start = start.with_leave_content(&object(&leave_content)?);
        }
        if let Some(delay) = self.delay {
            start = start.with_delay(delay);
        }
        if let Some(sticky) = self.sticky {
            start = start.with_sticky_duration(sticky);
        }
        Ok(start.with_rejoin(match self.rejoin {
            true => Rejoin::Automatic,
            false => Rejoin::Never,
        }))
    }
}

/// Why a heartbeat was not started. Nothing was sent.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum HeartbeatError {
    /// A content is no JSON object.
    #[error("{reason}")]
    Content {
        /// What is wrong with it.
        reason: String,
    },
    /// The delay or the stickiness is out of range.
    #[error("{reason}")]
    HeartbeatTiming {
        /// Which, and what it may be.
        reason: String,
    },
    /// This key has a heartbeat already: leave with that one first, or update it.
    #[error("{reason}")]
    InUse {
        /// The same in words.
        reason: String,
    },
    /// Another client has heartbeats on the same store, in another process or in this one.
    #[error("{reason}")]
    OtherProcess {
        /// The same in words.
        reason: String,
    },
    /// It has been started, or left, before: make another one.
    #[error("{reason}")]
    Again {
        /// Which.
        reason: String,
    },
    /// The client's store failed.
    #[error("{reason}")]
    Store {
        /// How.
        reason: String,
    },
    /// The library has been shut down.
    #[error("{reason}")]
    Stopped {
        /// How that is.
        reason: String,
    },
}

in_words!(Stopped as Stopped: HeartbeatError);
in_words!(NotAgain as Again: HeartbeatError);

impl From<StartHeartbeatError> for HeartbeatError {
    fn from(error: StartHeartbeatError) -> Self {
        let reason = error.to_string();
        match error {
            StartHeartbeatError::Timing(_) => Self::HeartbeatTiming { reason },
            StartHeartbeatError::InUse => Self::InUse { reason },
            StartHeartbeatError::OtherProcess => Self::OtherProcess { reason },
            StartHeartbeatError::Store(_) => Self::Store { reason },
            _ => Self::Content { reason },
        }
    }
}

/// How a member stands.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum MemberState {
    /// It has not been started.
    NotStarted,
    /// The leave is being armed, or the join is on its way.
    Joining,
    /// Everybody can see the member, and the leave is armed.
    Joined,
    /// Everybody can see the member, and no leave is armed, as the server takes none: a crash is seen
    /// after 10 minutes at most.
    Degraded,
    /// The leave may have fired, as the server could not be reached in time.
    ProbablyLeft {
        /// Since when.
        since: SystemTime,
    },
    /// The leave has fired, and the member is about to be there again.
    Rejoining,
    /// Left for as long as the application is in the background, or about to.
    Suspended {
        /// Until when everybody sees the member, where that was to be kept.
        holds_until: Option<SystemTime>,
    },
    /// The server is being told that the member leaves.
    Leaving,
    /// Left. Nothing follows.
    Left,
    /// It cannot go on.
    Failed {
        /// Why.
        failure: MemberFailure,
    },
}

/// Why a member cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum MemberFailure {
    /// The server refuses the leave: we may not send it. Everybody sees the member until its join ends.
    LeaveRefused,
    /// The server did not take the leave in time.
    LeaveUnanswered,
    /// The server refuses the join: we may not send it.
    JoinRefused,
    /// The join was redacted.
    Redacted,
    /// We are not in the room any more.
    NotInRoom,
    /// The leave has fired, and it was not to join again by itself.
    LeaveFired,
    /// Somebody has removed the member, and it was not to join again by itself.
    Removed,
    /// For a reason that this version does not know.
    Other,
}

impl From<SdkState> for MemberState {
    fn from(state: SdkState) -> Self {
        match state {
            SdkState::Joined => Self::Joined,
            SdkState::Degraded => Self::Degraded,
            SdkState::ProbablyLeft { since } => Self::ProbablyLeft { since: wall_time(since) },
            SdkState::Rejoining => Self::Rejoining,
            SdkState::Suspended { holds_until } => {
                Self::Suspended { holds_until: holds_until.map(wall_time) }
            }
            SdkState::Leaving => Self::Leaving,
            SdkState::Left => Self::Left,
            SdkState::Failed(failure) => Self::Failed { failure: failure.into() },
            _ => Self::Joining,
        }
    }
}

impl From<HeartbeatFailure> for MemberFailure {
    fn from(failure: HeartbeatFailure) -> Self {
        match failure {
            HeartbeatFailure::LeaveRefused => Self::LeaveRefused,
            HeartbeatFailure::JoinRefused => Self::JoinRefused,
            HeartbeatFailure::LeaveUnanswered => Self::LeaveUnanswered,
            HeartbeatFailure::Redacted => Self::Redacted,
            HeartbeatFailure::NotInRoom => Self::NotInRoom,
            HeartbeatFailure::LeaveFired => Self::LeaveFired,
            HeartbeatFailure::Removed => Self::Removed,
            _ => Self::Other,
        }
    }
}

/// Is told how a member stands: now, and each time that it changes.
#[uniffi::export(with_foreign)]
pub trait MemberStateListener: Send + Sync {
    /// The state from now on. The first call tells the state as it is.
    fn on_state(&self, state: MemberState) -> Result<(), ListenerError>;
}

/// How it stands: not started, or as it says.
pub(crate) fn state_of<T: Send + Sync + 'static>(
    started: &Started<T>,
    state: fn(&T) -> SdkState,
) -> MemberState {
    match started.stage() {
        Stage::There(value) => state(&value).into(),
        Stage::Before => MemberState::NotStarted,
        Stage::Left | Stage::Gone => MemberState::Left,
    }
}

/// Tells the states: that it is not started, and once it is, how it stands.
pub(crate) fn listen_to_states<T: Send + Sync + 'static>(
    runtime: &Handle,
    started: &Started<T>,
    subscribe: fn(&T) -> Subscriber<SdkState>,
    listener: Arc<dyn MemberStateListener>,
) -> Arc<Listening> {
    let first = matches!(started.stage(), Stage::Before).then_some(MemberState::NotStarted);
    let later = started.wait().map(move |stage| match stage {
        Stage::There(value) => {
            let mut states = subscribe(&value);
            let now = states.next_now();
            stream::once(ready(now)).chain(states).map(MemberState::from).boxed()
        }
        Stage::Left => stream::once(ready(MemberState::Left)).boxed(),
        Stage::Before | Stage::Gone => stream::empty().boxed(),
    });
    let states = stream::iter(first).chain(stream::once(later).flatten());
    Listening::to(runtime, states, listener, |listener, state| listener.on_state(state))
}

/// A moment on the clock that goes on while the machine sleeps, as one of this machine's wall clock.
pub(crate) fn wall_time(deadline: Deadline) -> SystemTime {
    let now = SystemClock::default().now();
    let unix = Duration::from_millis(now.unix_ms());
    SystemTime::UNIX_EPOCH + (unix + deadline.left(now)).saturating_sub(deadline.passed(now))
}

/// A member, under a key of its own, that is there for as long as this is: from [`start`](Self::start)
/// until [`leave`](Self::leave).
///
/// Dropping it without leaving is what a crash is: everybody sees it gone within the delay.
#[derive(Debug, uniffi::Object)]
pub struct Heartbeat {
    heartbeat: Held<Arc<Beating>>,
}

#[derive(Debug)]
struct Beating {
    room: RoomSticky,
    sticky_key: String,
    config: HeartbeatConfig,
    handle: Started<SdkHeartbeat>,
}

impl Heartbeat {
    pub(crate) fn new(
        runtime: &Handle,
        room: RoomSticky,
        sticky_key: String,
        config: HeartbeatConfig,
    ) -> Result<Self, HeartbeatError> {
        // What is wrong with it is told at once.
        drop(config.clone().apply(room.heartbeat(&*sticky_key))?);
        let pace = HeartbeatTiming::default();
        let pace = pace.with_delay(config.delay.unwrap_or(pace.delay()));
        pace.and_then(|pace| config.sticky.map_or(Ok(pace), |sticky| pace.with_sticky(sticky)))
            .map_err(|error| HeartbeatError::HeartbeatTiming { reason: error.to_string() })?;
        let beating = Beating { room, sticky_key, config, handle: Started::default() };
        Ok(Self { heartbeat: Held::new(runtime, Arc::new(beating)) })
    }

    fn handle(&self) -> Option<Arc<SdkHeartbeat>> {
        self.heartbeat.handle.get()
    }
}

#[uniffi::export]
impl Heartbeat {
    /// Starts: the member joins as soon as the server lets it. Its state tells when everybody can see it. A
    /// call that is given up may have started it all the same: leave, or let go of this.
    pub async fn start(&self) -> Result<(), HeartbeatError> {
        let it = self.heartbeat.clone();
        let start = async move {
            let Beating { room, sticky_key, config, handle } = &*it;
            let start = config.clone().apply(room.heartbeat(&**sticky_key))?;
            handle.start(async { Ok::<_, HeartbeatError>(start.start().await?) }).await
        };
        runtime::on(self.heartbeat.runtime(), start).await?
    }

    /// How it stands.
    pub fn state(&self) -> MemberState {
        state_of(&self.heartbeat.handle, SdkHeartbeat::state)
    }

    /// Tells a listener how it stands.
    pub fn listen_to_state(&self, listener: Arc<dyn MemberStateListener>) -> Arc<Listening> {
        let handle = &self.heartbeat.handle;
        listen_to_states(self.heartbeat.runtime(), handle, SdkHeartbeat::subscribe_state, listener)
    }

    /// The pulse: until when the leave that is armed does not fire. Each beat moves it on. None where
    /// none is armed.
    pub fn armed_until(&self) -> Option<SystemTime> {
        self.handle()?.armed_until().map(wall_time)
    }

    /// What went wrong last, in words.
    pub fn last_error(&self) -> Option<String> {
        self.handle()?.last_error()
    }

    /// What everybody sees from now on, a JSON object. What is called before it has started is done as soon as
    /// it has: this, and the calls below.
    pub fn update(&self, content: String) -> Result<(), HeartbeatError> {
        let content = object(&content).map_err(|reason| HeartbeatError::Content { reason })?;
        self.heartbeat.handle.act(|handle| handle.update_raw(content));
        Ok(())
    }

    /// Leaves; with this content, a JSON object, if one is given, and else with the one that the armed
    /// leave has. Returns when the server has it, or it has failed; until then it is tried again and
    /// again. Giving up waiting is safe. One that has not started will not.
    #[uniffi::method(default(content = None))]
    pub async fn leave(&self, content: Option<String>) -> Result<MemberState, HeartbeatError> {
        let content = content.map(|content| object(&content)).transpose();
        let content = content.map_err(|reason| HeartbeatError::Content { reason })?;
        let Some(handle) = self.heartbeat.handle.end() else { return Ok(MemberState::Left) };
        let leave = async move {
            match content {
                Some(content) => handle.leave_with(content).await,
                None => handle.leave().await,
            }
        };
        Ok(runtime::on(self.heartbeat.runtime(), leave).await?.into())
    }

    /// The application goes into the background. The member leaves; or, if it is to be kept, stays for as
    /// long as the armed leave holds, which its state tells, and no request goes out.
    #[uniffi::method(default(keep = false))]
    pub fn suspend(&self, keep: bool) {
        self.heartbeat.handle.act(move |handle| handle.suspend(in_background(keep)));
    }

    /// The application is back.
    pub fn resume(&self) {
        self.heartbeat.handle.act(|handle| handle.resume());
    }

    /// Hands the armed leave to somebody who restarts it from now on, such as an SFU's authorization
    /// service (MSC4195): its delay id. Whoever has that can end the member: handle it as you would an
    /// access token. None while none is armed.
    pub fn delegate(&self) -> Option<String> {
        Some(self.handle()?.delegate()?.as_secret_str().to_owned())
    }

    /// Takes the armed leave back from whom it was delegated to.
    pub fn take_back(&self) {
        self.heartbeat.handle.act(|handle| handle.take_back());
    }
}

/// Returns what a member does in the background.
pub(crate) fn in_background(keep: bool) -> InBackground {
    if keep { InBackground::Hold } else { InBackground::Leave }
}
