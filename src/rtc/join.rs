//! Our own membership: a heartbeat that knows its slot.
//!
//! In: the owner's wishes, how the heartbeat stands, and the session's slot. Out: one heartbeat after
//! another, each under a member id of its own, as the proposal wants another one for each join; and the
//! state to show.

use std::{
    fmt,
    future::{IntoFuture, pending},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eyeball::{SharedObservable, Subscriber};
#[cfg(feature = "media-keys")]
use futures_util::stream;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::warn;

#[cfg(feature = "media-keys")]
use super::keys::{KeyConfig, KeyInbox, MediaKeys, MediaKeysError};
use super::{
    dialect::Dialect,
    leave::LeaveReason,
    own::Own,
    session::{Session, SessionChanges, SessionSubscription},
    slot::{ClosedBy, RtcApplication},
    snapshot::{SessionSnapshot, closed_to},
    transport::Transports,
};
use crate::{
    delayed::DelayId,
    driver::{BoxFuture, Task, optional, unique_name, until},
    heartbeat::{
        Failure, HeartbeatHandle, Pace, StartHeartbeat, StartHeartbeatError, State, until_left,
    },
    time::{Deadline, MAX_STICKY_DURATION},
    wire::names,
};

/// When to start a heartbeat again that could not be started.
const START_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// When to ask the server again about a slot that is closed by the main loop's word, and not by its own.
const CONFIRM_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A join that is to be made; by [`Session::join`]. Awaiting it makes it.
#[must_use = "it joins when it is awaited"]
#[derive(Debug)]
pub struct JoinSession {
    session: Session,
    transports: Transports,
    dialect: Option<Dialect>,
    application: Option<RtcApplication>,
    intent: Option<String>,
    member_id: Option<String>,
    delay: Duration,
    sticky_for: Duration,
}

/// Why a session was not joined. Nothing was sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum JoinError {
    /// The slot is not open, so that nobody would see the member. Open it with [`Session::open`], or
    /// ask somebody who may; or, where it is missing, join in the dialect of Element Call.
    Slot(ClosedBy),
    /// Whether the slot is there is not known, as the server did not tell the room's state. Try again when
    /// it can be reached.
    StateUnknown,
    /// The slot is another application's.
    OtherApplication {
        /// Which the slot is for.
        slot: String,
    },
    /// The slot's id has no `#`, and no application was given.
    NoApplication,
    /// MSC4143 wants a new member id for each join: only the dialect of Element Call takes one.
    MemberId,
    /// The client is not logged in.
    NotLoggedIn,
    /// The heartbeat was not started.
    Heartbeat(StartHeartbeatError),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(ClosedBy::Missing) => f.write_str(
                "the room has no such slot: open it, or join in the dialect of Element Call",
            ),
            Self::Slot(ClosedBy::NotEncrypted) => f.write_str(
                "the slot says nothing of encryption, in an encrypted room: open it anew, or join in \
                 the dialect of Element Call",
            ),
            Self::Slot(ClosedBy::Malformed(field)) => {
                write!(f, "the slot counts as closed, for its `{field}`: open it anew")
            }
            Self::Slot(_) => f.write_str("the slot is closed: open it first"),
            Self::StateUnknown => f.write_str(
                "whether the slot is open is not known, as the server did not tell; try again when it \
                 can be reached",
            ),
            Self::OtherApplication { slot } => {
                write!(f, "the slot is for the application {slot}: join with that, or another slot")
            }
            Self::NoApplication => {
                f.write_str("the slot's id does not say the application: give one")
            }
            Self::MemberId => f.write_str(
                "MSC4143 wants a new member id for each join: leave the choice of it to the join",
            ),
            Self::NotLoggedIn => f.write_str("the client is not logged in: log in first"),
            Self::Heartbeat(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for JoinError {}

impl Session {
    /// Joins, as a member that is there for as long as the handle is: a heartbeat. Awaiting it
    /// resolves when the heartbeat has been started; [`OwnMembership::state`]
    /// tells when everybody can see the member.
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{RoomExt as _, rtc::{JoinError, ROOM_CALL, RtcTransport}};
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), JoinError> {
    /// let call = room.sticky().rtc().session(ROOM_CALL);
    /// let membership = call
    ///     .join([RtcTransport::livekit("https://livekit.example.org")])
    ///     .intent("video")
    ///     .await?;
    /// membership.leave().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`JoinError`]. Nothing was sent.
    pub fn join(&self, transports: impl Into<Transports>) -> JoinSession {
        JoinSession::new(self.clone(), transports.into())
    }
}

impl JoinSession {
    fn new(session: Session, transports: Transports) -> Self {
        Self {
            session,
            transports,
            dialect: None,
            application: None,
            intent: None,
            member_id: None,
            delay: Pace::default().delay(),
            // Each event of a membership makes every Element Call in the call rotate its key.
            sticky_for: MAX_STICKY_DURATION,
        }
    }

    /// The dialect, which decides whether the slot has to be open; the one that the room already
    /// speaks unless told: [`SessionSnapshot::dialect`].
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = Some(dialect);
        self
    }

    /// The application, with what the member says of it; of the slot's type and saying nothing unless
    /// told.
    pub fn application(mut self, application: RtcApplication) -> Self {
        self.application = Some(application);
        self
    }

    /// What the member is there for, e.g. `audio` or `video`; see [`RtcApplication::intent`].
    pub fn intent(mut self, intent: impl Into<String>) -> Self {
        self.intent = Some(intent.into());
        self
    }

    /// The id of the member, in the dialect of Element Call: also for when it joins again after a
    /// leave that it did not want. A new one for each join unless told.
    pub fn member_id(mut self, member_id: impl Into<String>) -> Self {
        self.member_id = Some(member_id.into());
        self
    }

    /// How long after a crash everybody sees it gone, 15 s unless told; see [`Pace::with_delay`].
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// For how long its events are sticky. Defaults to 1 h; see [`Pace::with_sticky`].
    pub fn sticky(mut self, sticky: Duration) -> Self {
        self.sticky_for = sticky;
        self
    }

    async fn join(self) -> Result<OwnMembership, JoinError> {
        let Self { session, transports, dialect, application, intent, member_id, .. } = self;
        let client = session.rtc().room().client();
        let (user_id, device_id) =
            client.user_id().zip(client.device_id()).ok_or(JoinError::NotLoggedIn)?;

        let SessionSubscription { snapshot, changes } = session.subscribe().await;
        let dialect = dialect.unwrap_or_else(|| snapshot.dialect());
        if member_id.is_some() && dialect != Dialect::ElementCall {
            return Err(JoinError::MemberId);
        }
        let slot_id = snapshot.slot_for(dialect).to_owned();
        if !snapshot.is_state_known() && snapshot.slot_called(&slot_id).is_none() {
            return Err(JoinError::StateUnknown);
        }
        let mut application = match application {
            Some(application) => application,
            None => RtcApplication::new(application_of(&slot_id, &snapshot)?),
        };
        if let Some(intent) = intent {
            application.fields.insert(names::CALL_INTENT.to_owned(), Value::String(intent));
        }
        check(&snapshot, &slot_id, dialect, &application)?;

        let shared = Arc::new(Shared {
            dialect,
            slot_id,
            user_id: user_id.to_string(),
            device_id: device_id.to_string(),
            given_id: member_id,
            delay: self.delay,
            sticky_for: self.sticky_for,
            state: SharedObservable::new(State::Joining),
            now: Mutex::new(Now {
                member_id: String::new(),
                application,
                transports,
                heartbeat: None,
                outranked_until: None,
                left_as: None,
                last_error: None,
                is_dropped: false,
            }),
            session,
        });
        // Before anybody can see us, and send us their keys.
        #[cfg(feature = "media-keys")]
        let inbox = {
            // There are none in a room that is not encrypted, also should it become so later on.
            let room = shared.session.rtc().room();
            Arc::new(Mutex::new(snapshot.is_encrypted().then(|| KeyInbox::open(room))))
        };
        shared.start().await.map_err(JoinError::Heartbeat)?;
        let (wishes, wished) = mpsc::unbounded_channel();
        let run = Run {
            shared: shared.clone(),
            snapshot,
            wanted: Wanted::In,
            has_joined: false,
            leaving: None,
            is_going_away: false,
            start_at: None,
            confirming: None,
            confirm_at: None,
        };
        let task = Task::spawn(run.run(wished, changes));
        Ok(OwnMembership {
            shared,
            wishes,
            _task: task,
            #[cfg(feature = "media-keys")]
            inbox,
        })
    }
}

impl IntoFuture for JoinSession {
    type Output = Result<OwnMembership, JoinError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.join().boxed()
    }
}

/// The application that the slot is for.
fn application_of(slot_id: &str, snapshot: &SessionSnapshot) -> Result<String, JoinError> {
    let of_slot = snapshot.slot().and_then(|slot| slot.application.as_ref());
    if let Some(application) = of_slot {
        return Ok(application.application_type.clone());
    }
    // An id that somebody here has made, by the grammar that they are made by.
    let (application, _) = slot_id.split_once('#').ok_or(JoinError::NoApplication)?;
    Ok(application.to_owned())
}

/// Whether others would see us in there.
fn check(
    snapshot: &SessionSnapshot,
    slot_id: &str,
    dialect: Dialect,
    application: &RtcApplication,
) -> Result<(), JoinError> {
    let slot = snapshot.slot_called(slot_id);
    if let Some(closed) = closed_to(dialect, slot, snapshot.is_encrypted()) {
        return Err(JoinError::Slot(closed));
    }
    match slot.and_then(|slot| slot.application.as_ref()) {
        Some(slot) if slot.application_type != application.application_type => {
            Err(JoinError::OtherApplication { slot: slot.application_type.clone() })
        }
        _ => Ok(()),
    }
}

/// Our member of a session, which is there for as long as this is. Made by [`Session::join`].
///
/// Dropping it without [`leave`](Self::leave) is what a crash is: everybody sees the member gone within
/// the delay. Where the server has said that it left although it did not want to, as after an outage
/// longer than the delay, it joins again, under another [`member_id`](Self::member_id). Where the slot
/// is closed, it leaves.
pub struct OwnMembership {
    shared: Arc<Shared>,
    wishes: mpsc::UnboundedSender<Wish>,
    _task: Option<Task>,
    /// Until [`media_keys`](Self::media_keys) is called.
    #[cfg(feature = "media-keys")]
    inbox: Arc<Mutex<Option<KeyInbox>>>,
}

impl OwnMembership {
    /// How the member stands; see [`State`].
    pub fn state(&self) -> State {
        self.shared.state.get()
    }

    /// How the member stands, and each change of that.
    pub fn subscribe_state(&self) -> Subscriber<State> {
        self.shared.state.subscribe()
    }

    /// The pulse: until when the leave that is armed does not fire; see
    /// [`HeartbeatHandle::armed_until`].
    pub fn armed_until(&self) -> Option<Deadline> {
        self.shared.heartbeat()?.armed_until()
    }

    /// The id of the member. Another one after it had to join again.
    pub fn member_id(&self) -> String {
        self.shared.now().member_id.clone()
    }

    /// The session that it is in.
    pub fn session(&self) -> &Session {
        &self.shared.session
    }

    /// The dialect that was chosen.
    pub fn dialect(&self) -> Dialect {
        self.shared.dialect
    }

    /// What went wrong last, in words; for [`State::Failed`] and [`State::ProbablyLeft`].
    pub fn last_error(&self) -> Option<String> {
        let now = self.shared.now();
        let of_heartbeat = now.heartbeat.as_ref().and_then(|heartbeat| heartbeat.last_error());
        of_heartbeat.or_else(|| now.last_error.clone())
    }

    /// How it left, once it has: as it was told, or with [`LeaveReason::SLOT_CLOSED`].
    pub fn left_as(&self) -> Option<LeaveReason> {
        self.shared.now().left_as.clone()
    }

    /// What the member says of the application from now on. Its type stays.
    pub fn update_application(&self, application: RtcApplication) {
        {
            let mut now = self.shared.now();
            now.application = RtcApplication {
                application_type: now.application.application_type.clone(),
                ..application
            };
        }
        self.wish(Wish::Update);
    }

    /// What the member is there for from now on; see [`RtcApplication::intent`].
    pub fn update_intent(&self, intent: impl Into<String>) {
        let intent = Value::String(intent.into());
        self.shared.now().application.fields.insert(names::CALL_INTENT.to_owned(), intent);
        self.wish(Wish::Update);
    }

    /// How the member's media can be had from now on.
    pub fn update_transports(&self, transports: impl Into<Transports>) {
        self.shared.now().transports = transports.into();
        self.wish(Wish::Update);
    }

    /// Leaves, on purpose. Returns when the server has the leave, or [`State::Failed`] is reached; until
    /// then it is tried again and again. Giving up waiting is safe: the armed leave fires all the same.
    pub async fn leave(&self) -> State {
        self.leave_with(LeaveReason::with_code(LeaveReason::ON_PURPOSE)).await
    }

    /// As [`leave`](Self::leave), with another code, and a reason for people.
    pub async fn leave_with(&self, leave: LeaveReason) -> State {
        self.wish(Wish::Leave(leave));
        until_left(&self.shared.state).await
    }

    /// The application goes into the background. The member leaves; or, with `keep`, stays for as
    /// long as the armed leave holds, which [`State::Suspended`] tells, and no request goes out.
    pub fn suspend(&self, keep: bool) {
        self.wish(Wish::Suspend { keep });
    }

    /// The application is back: the member goes on, or joins again if it has left.
    pub fn resume(&self) {
        self.wish(Wish::Resume);
    }

    /// Exchanges media keys with the others, for as long as what this gives is there: also across a
    /// rejoin as another member. To be dropped after leaving.
    ///
    /// The keys that others sent since the join are not lost, the last 32 of each, if this is called once.
    ///
    /// # Errors
    ///
    /// [`MediaKeysError`]: in a room that is not encrypted, for one.
    #[cfg(feature = "media-keys")]
    pub fn media_keys(
        &self,
        config: KeyConfig,
    ) -> impl Future<Output = Result<MediaKeys, MediaKeysError>> + Send + use<> {
        // Without this handle: the member is there for as long as that is, and no longer.
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        async move {
            let room = shared.session.rtc().room().clone();
            let timer = shared.session.rtc().sticky().timer().clone();
            MediaKeys::ensure(&room, &config).await?;
            let SessionSubscription { snapshot, changes } = shared.session.subscribe().await;
            let sessions = stream::once(std::future::ready(snapshot))
                .chain(changes.map(|update| update.snapshot));
            let sessions = sessions.map(move |session| (shared.now().member_id.clone(), session));
            // Last, so that nothing is lost where it does not come to it.
            let inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
            let inbox = inbox.unwrap_or_else(|| KeyInbox::open(&room));
            MediaKeys::start(room, inbox, sessions, config, timer)
        }
    }

    /// Hands the armed leave to somebody who restarts it from now on; see
    /// [`HeartbeatHandle::delegate`].
    pub fn delegate(&self) -> Option<DelayId> {
        self.shared.heartbeat()?.delegate()
    }

    /// Takes the armed leave back from whom it was delegated to, as when they fail.
    pub fn take_back(&self) {
        if let Some(heartbeat) = self.shared.heartbeat() {
            heartbeat.take_back();
        }
    }

    fn wish(&self, wish: Wish) {
        // Nobody listens any more where all is over.
        let _ = self.wishes.send(wish);
    }
}

impl Drop for OwnMembership {
    fn drop(&mut self) {
        // At once, and not when the task has ended.
        let mut now = self.shared.now();
        now.is_dropped = true;
        now.heartbeat = None;
    }
}

impl fmt::Debug for OwnMembership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnMembership")
            .field("slot_id", &self.shared.slot_id)
            .field("member_id", &self.member_id())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// What the owner wants.
enum Wish {
    Update,
    Leave(LeaveReason),
    Suspend { keep: bool },
    Resume,
}

/// What the handle and the task both see.
struct Shared {
    session: Session,
    dialect: Dialect,
    slot_id: String,
    user_id: String,
    device_id: String,
    /// The id that the caller gave, if they did.
    given_id: Option<String>,
    delay: Duration,
    sticky_for: Duration,
    state: SharedObservable<State>,
    now: Mutex<Now>,
}

struct Now {
    member_id: String,
    application: RtcApplication,
    transports: Transports,
    heartbeat: Option<Arc<HeartbeatHandle>>,
    /// Until when what went out under a given id outranks what is sticky for a shorter time.
    outranked_until: Option<Deadline>,
    left_as: Option<LeaveReason>,
    last_error: Option<String>,
    is_dropped: bool,
}

impl Shared {
    /// Starts a heartbeat, under a new member id.
    async fn start(&self) -> Result<(), StartHeartbeatError> {
        let member_id = self.given_id.clone().unwrap_or_else(unique_name);
        let (content, [armed, last_words], outranked_until) = {
            let mut now = self.now();
            now.member_id.clone_from(&member_id);
            let own = self.own(&now);
            let leaves =
                [LeaveReason::DELAYED, LeaveReason::ON_PURPOSE].map(LeaveReason::with_code);
            let leaves = leaves.map(|leave| own.leave(&leave));
            (own.join(&now.application, &now.transports), leaves, now.outranked_until)
        };
        let [_, event_type] = names::RTC_MEMBER;
        let sticky = self.session.rtc().sticky();
        let heartbeat = StartHeartbeat::new(sticky.clone(), member_id)
            .raw_content(event_type, content)
            .leave_content(&armed)
            .last_words(last_words)
            .outranked_until(outranked_until)
            .delay(self.delay)
            .sticky(self.sticky_for)
            // Another join is another member.
            .rejoin(self.given_id.is_some())
            .start()
            .await?;
        let mut now = self.now();
        if !now.is_dropped {
            now.heartbeat = Some(Arc::new(heartbeat));
        }
        Ok(())
    }

    fn own(&self, now: &Now) -> Own {
        Own {
            slot_id: self.slot_id.clone(),
            user_id: self.user_id.clone(),
            device_id: self.device_id.clone(),
            member_id: now.member_id.clone(),
        }
    }

    fn heartbeat(&self) -> Option<Arc<HeartbeatHandle>> {
        self.now().heartbeat.clone()
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    In,
    /// In, without a request of ours, for as long as the lease holds.
    Kept,
    /// Out, and back when told.
    Away,
    Out,
}

struct Run {
    shared: Arc<Shared>,
    snapshot: SessionSnapshot,
    wanted: Wanted,
    /// Whether a heartbeat has joined before: the next one joins again.
    has_joined: bool,
    leaving: Option<BoxFuture<'static, State>>,
    /// The heartbeat leaves as the application goes into the background, and not for good.
    is_going_away: bool,
    start_at: Option<Deadline>,
    /// The server is asked whether the slot is closed.
    confirming: Option<BoxFuture<'static, SessionSnapshot>>,
    /// It is to be asked again.
    confirm_at: Option<Deadline>,
}

impl Run {
    async fn run(mut self, mut wished: mpsc::UnboundedReceiver<Wish>, mut changes: SessionChanges) {
        let timer = self.shared.session.rtc().sticky().timer().clone();
        let mut states = self.shared.heartbeat().map(|heartbeat| heartbeat.subscribe_state());
        let mut first = self.shared.heartbeat().map(|heartbeat| heartbeat.state());
        loop {
            if let Some(state) = first.take()
                && self.handle_state(state)
            {
                return;
            }
            if self.shared.heartbeat().is_none() {
                states = None;
                if self.wanted == Wanted::Out {
                    self.shared.state.set_if_not_eq(State::Left);
                    return;
                }
                let is_due = self.start_at.is_none_or(|at| at.is_over(timer.now()));
                if is_due && self.may_start() && self.start().await {
                    let heartbeat = self.shared.heartbeat();
                    states = heartbeat.as_ref().map(|heartbeat| heartbeat.subscribe_state());
                    first = heartbeat.map(|heartbeat| heartbeat.state());
                    continue;
                }
            }
            let start_at = self.start_at.filter(|_| self.may_start());
            tokio::select! {
                biased;
                wish = wished.recv() => match wish {
                    Some(wish) => self.handle_wish(wish),
                    // The handle is gone without having left: as after a crash, the leave fires.
                    None => return,
                },
                state = next_state(&mut states) => {
                    if self.handle_state(state) {
                        return;
                    }
                }
                _ = optional(&mut self.leaving) => self.leaving = None,
                Some(update) = changes.next() => {
                    self.snapshot = update.snapshot;
                    self.leave_if_closed();
                }
                confirmed = optional(&mut self.confirming) => {
                    self.confirming = None;
                    self.handle_confirmed(confirmed);
                }
                () = until(&*timer, start_at) => {}
                () = until(&*timer, self.confirm_at) => {
                    self.confirm_at = None;
                    self.leave_if_closed();
                }
            }
        }
    }

    fn handle_wish(&mut self, wish: Wish) {
        let heartbeat = self.shared.heartbeat();
        match wish {
            Wish::Update => {
                if let Some(heartbeat) = heartbeat {
                    let content = {
                        let now = self.shared.now();
                        self.shared.own(&now).join(&now.application, &now.transports)
                    };
                    heartbeat.update_raw(content);
                }
            }
            Wish::Leave(leave) => self.leave(leave),
            Wish::Suspend { keep: true } => {
                if self.wanted == Wanted::In {
                    self.wanted = Wanted::Kept;
                    self.leave_if_closed();
                    match heartbeat {
                        Some(heartbeat) => heartbeat.suspend(true),
                        None => {
                            let state = State::Suspended { holds_until: None };
                            self.shared.state.set_if_not_eq(state);
                        }
                    }
                }
            }
            Wish::Suspend { keep: false } => {
                if matches!(self.wanted, Wanted::In | Wanted::Kept) {
                    self.wanted = Wanted::Away;
                    self.is_going_away = heartbeat.is_some();
                    self.shared.state.set_if_not_eq(State::Suspended { holds_until: None });
                    self.send_leave(&LeaveReason::with_code(LeaveReason::ON_PURPOSE));
                }
            }
            Wish::Resume => match self.wanted {
                Wanted::Kept => {
                    self.wanted = Wanted::In;
                    match heartbeat {
                        Some(heartbeat) => heartbeat.resume(),
                        None => drop(self.shared.state.set_if_not_eq(State::Rejoining)),
                    }
                    self.leave_if_closed();
                }
                Wanted::Away => {
                    self.wanted = Wanted::In;
                    self.start_at = None;
                    self.shared.state.set_if_not_eq(State::Rejoining);
                    self.leave_if_closed();
                }
                Wanted::In | Wanted::Out => {}
            },
        }
    }

    /// How the heartbeat stands. Whether all is over.
    fn handle_state(&mut self, state: State) -> bool {
        let is_over = match state {
            State::Left | State::Failed(Failure::LeaveFired | Failure::Removed) => {
                if let Some(heartbeat) = self.shared.heartbeat() {
                    let mut now = self.shared.now();
                    now.heartbeat = None;
                    // The next one has the same key, and does not know.
                    let is_same = self.shared.given_id.is_some();
                    now.outranked_until = heartbeat.outranked_until().filter(|_| is_same);
                    now.last_error = heartbeat.last_error().or(now.last_error.take());
                }
                self.leaving = None;
                let is_going_away = std::mem::take(&mut self.is_going_away);
                match self.wanted {
                    Wanted::Away => return false,
                    // All of the client's heartbeats leave, as before a logout.
                    _ if state == State::Left && !is_going_away => {
                        let leave = || LeaveReason::with_code(LeaveReason::ON_PURPOSE);
                        self.shared.now().left_as.get_or_insert_with(leave);
                    }
                    Wanted::In => {
                        self.shared.state.set_if_not_eq(State::Rejoining);
                        return false;
                    }
                    Wanted::Kept => {
                        self.shared.state.set_if_not_eq(State::Suspended { holds_until: None });
                        return false;
                    }
                    Wanted::Out => {}
                }
                self.shared.state.set_if_not_eq(State::Left);
                return true;
            }
            State::Failed(_) => true,
            _ => false,
        };
        let shown = match (&self.wanted, state) {
            (_, State::Failed(_)) => state,
            (Wanted::Away, _) => State::Suspended { holds_until: None },
            (Wanted::Out, _) => State::Leaving,
            (_, State::Joining) if self.has_joined => State::Rejoining,
            _ => state,
        };
        self.has_joined |= matches!(state, State::Joined | State::Degraded);
        self.shared.state.set_if_not_eq(shown);
        is_over
    }

    /// Leaves where others would not count us any more; once the server says the same, as what a main loop
    /// brings may be old.
    fn leave_if_closed(&mut self) {
        // In the background no request goes out.
        if self.wanted != Wanted::In || !self.is_closed(&self.snapshot) {
            self.confirming = None;
            self.confirm_at = None;
        } else if self.confirming.is_none() && self.confirm_at.is_none() {
            let session = self.shared.session.clone();
            self.confirming = Some(async move { session.snapshot().await }.boxed());
        }
    }

    fn handle_confirmed(&mut self, confirmed: SessionSnapshot) {
        let now = self.shared.session.rtc().sticky().timer().now();
        self.confirm_at = Some(now.deadline(CONFIRM_AGAIN_AFTER));
        if !confirmed.is_state_known() {
            // It stays as it is: in, or not to be started.
        } else if self.is_closed(&confirmed) {
            self.leave(LeaveReason::with_code(LeaveReason::SLOT_CLOSED));
        } else {
            self.snapshot = confirmed;
        }
    }

    fn may_start(&self) -> bool {
        self.wanted == Wanted::In && !self.is_closed(&self.snapshot)
    }

    fn is_closed(&self, snapshot: &SessionSnapshot) -> bool {
        let Shared { slot_id, dialect, .. } = &*self.shared;
        check(snapshot, slot_id, *dialect, &self.shared.now().application).is_err()
    }

    fn leave(&mut self, leave: LeaveReason) {
        if self.wanted == Wanted::Out {
            return;
        }
        self.wanted = Wanted::Out;
        self.confirming = None;
        self.confirm_at = None;
        self.send_leave(&leave);
        self.shared.now().left_as = Some(leave);
    }

    fn send_leave(&mut self, leave: &LeaveReason) {
        let Some(heartbeat) = self.shared.heartbeat() else { return };
        let content = {
            let now = self.shared.now();
            self.shared.own(&now).leave(leave)
        };
        self.leaving = Some(async move { heartbeat.leave_with(content).await }.boxed());
    }

    /// Starts the next heartbeat. Whether that worked.
    async fn start(&mut self) -> bool {
        let timer = self.shared.session.rtc().sticky().timer();
        match self.shared.start().await {
            Ok(()) => {
                self.start_at = None;
                true
            }
            Err(error) => {
                warn!("a membership could not join again: {error}");
                self.shared.now().last_error = Some(error.to_string());
                self.start_at = Some(timer.now().deadline(START_AGAIN_AFTER));
                false
            }
        }
    }
}

async fn next_state(states: &mut Option<Subscriber<State>>) -> State {
    if let Some(states) = states
        && let Some(state) = states.next().await
    {
        return state;
    }
    pending().await
}
