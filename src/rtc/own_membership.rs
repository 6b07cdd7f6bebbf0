//! Our own membership in a session: the handle that the application holds.
//!
//! In: what the owner asks for. Out: how the member stands, and one heartbeat after another, each under the
//! member id that it is given. Never: deciding whether the member is to be in; the attendance does that.

mod run;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eyeball::{SharedObservable, Subscriber};
#[cfg(feature = "media-keys")]
use futures_util::{StreamExt as _, stream};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use self::run::Run;
#[cfg(feature = "media-keys")]
use super::keys::{KeyConfig, KeyInbox, MediaKeys, MediaKeysError};
use super::{
    attendance::Request,
    dialect::Dialect,
    leave::LeaveReason,
    own::Own,
    session::{Session, SessionSubscription},
    slot::RtcApplication,
    transport::Transports,
};
use crate::{
    delayed::DelayId,
    driver::{Task, unique_name},
    heartbeat::{
        Heartbeat, HeartbeatState, InBackground, Rejoin, StartHeartbeat, StartHeartbeatError,
        until_left,
    },
    time::Deadline,
    wire::names,
};

/// Our member of a session, which is there for as long as this handle is. [`Session::join`] makes it.
///
/// Dropping it without [`leave`](Self::leave) is what a crash is: everybody sees the member gone within the
/// delay. If the server says that the member left although it did not want to, as after an outage longer
/// than the delay, the member joins again under another [`member_id`](Self::member_id). If the slot is
/// closed, the member leaves.
///
/// # Examples
///
/// ```no_run
/// # use matrix_sdk_sticky::{StickyRoomExt as _, rtc::{JoinError, ROOM_CALL, RtcTransport}};
/// use matrix_sdk_sticky::rtc::LeaveReason;
///
/// # async fn example(room: matrix_sdk::Room) -> Result<(), JoinError> {
/// # let call = room.sticky().rtc().session(ROOM_CALL);
/// # let transports = [RtcTransport::livekit("https://livekit.example.org")];
/// let membership = call.join(transports).with_intent("video").await?;
/// let mut states = membership.subscribe_state();
/// while let Some(state) = states.next().await {
///     println!("our member is {}", state.as_str());
/// #   break;
/// }
/// let reason = LeaveReason::with_code(LeaveReason::ON_PURPOSE).with_reason("dinner");
/// membership.leave_with(reason).await;
/// # Ok(()) }
/// ```
pub struct OwnMembership {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
    _task: Option<Task>,
    /// Until [`media_keys`](Self::media_keys) is called.
    #[cfg(feature = "media-keys")]
    inbox: Arc<Mutex<Option<KeyInbox>>>,
}

impl OwnMembership {
    /// Starts the first heartbeat, and the task that follows it.
    pub(super) async fn start(
        config: MemberConfig,
        session: Session,
        SessionSubscription { snapshot, changes }: SessionSubscription,
    ) -> Result<Self, StartHeartbeatError> {
        // Before anybody can see us, and send us their keys.
        #[cfg(feature = "media-keys")]
        let inbox = {
            // A room that is not encrypted has no keys, also should it become encrypted later on.
            let room = session.rtc().room();
            Arc::new(Mutex::new(snapshot.is_encrypted().then(|| KeyInbox::open(room))))
        };
        // The attendance hears of the slot from the changes: it is open now.
        drop(snapshot);
        let MemberConfig { application, transports, .. } = &config;
        let now = Now {
            member_id: String::new(),
            application: application.clone(),
            transports: transports.clone(),
            heartbeat: None,
            outranked_until: None,
            left_as: None,
            last_error: None,
            is_dropped: false,
        };
        let state = SharedObservable::new(HeartbeatState::Joining);
        let shared = Arc::new(Shared { session, config, state, now: Mutex::new(now) });
        shared.start_heartbeat().await?;
        let (requests, requested) = mpsc::unbounded_channel();
        let task = Task::spawn(Run::new(shared.clone()).run(requested, changes));
        Ok(Self {
            shared,
            requests,
            _task: task,
            #[cfg(feature = "media-keys")]
            inbox,
        })
    }

    /// Returns how the member stands; see [`HeartbeatState`].
    pub fn state(&self) -> HeartbeatState {
        self.shared.state.get()
    }

    /// Returns a subscriber to how the member stands. It is notified of each change, and a slow one of the
    /// latest state.
    pub fn subscribe_state(&self) -> Subscriber<HeartbeatState> {
        self.shared.state.subscribe()
    }

    /// Returns the pulse: until when the armed leave does not fire; see [`Heartbeat::armed_until`].
    pub fn armed_until(&self) -> Option<Deadline> {
        self.shared.heartbeat()?.armed_until()
    }

    /// Returns the id of the member. It is another one after the member had to join again.
    pub fn member_id(&self) -> String {
        self.shared.now().member_id.clone()
    }

    /// Returns the session that the member is in.
    pub fn session(&self) -> &Session {
        &self.shared.session
    }

    /// Returns the dialect of the membership.
    pub fn dialect(&self) -> Dialect {
        self.shared.config.dialect
    }

    /// Returns what went wrong last, in words. It explains [`HeartbeatState::Failed`] and [`HeartbeatState::ProbablyLeft`].
    pub fn last_error(&self) -> Option<String> {
        let now = self.shared.now();
        let of_heartbeat = now.heartbeat.as_ref().and_then(|heartbeat| heartbeat.last_error());
        of_heartbeat.or_else(|| now.last_error.clone())
    }

    /// Returns how the member left, or is about to: as the owner asked, or with
    /// [`LeaveReason::SLOT_CLOSED`]. `None` before that.
    pub fn left_as(&self) -> Option<LeaveReason> {
        self.shared.now().left_as.clone()
    }

    /// Changes what the member says of the application. The application's type stays.
    pub fn update_application(&self, application: RtcApplication) {
        {
            let mut now = self.shared.now();
            now.application = RtcApplication {
                application_type: now.application.application_type.clone(),
                ..application
            };
        }
        self.request(Request::Update);
    }

    /// Changes what the member is there for; see [`RtcApplication::intent`].
    pub fn update_intent(&self, intent: impl Into<String>) {
        let intent = Value::String(intent.into());
        self.shared.now().application.fields.insert(names::CALL_INTENT.to_owned(), intent);
        self.request(Request::Update);
    }

    /// Changes where the member's media can be had.
    pub fn update_transports(&self, transports: impl Into<Transports>) {
        self.shared.now().transports = transports.into();
        self.request(Request::Update);
    }

    /// Leaves with [`LeaveReason::ON_PURPOSE`]. Returns [`HeartbeatState::Left`] when the server has the leave, or
    /// [`HeartbeatState::Failed`]. Until then the leave is sent again and again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is safe: the member leaves all the same.
    pub async fn leave(&self) -> HeartbeatState {
        self.leave_with(LeaveReason::with_code(LeaveReason::ON_PURPOSE)).await
    }

    /// Leaves as [`leave`](Self::leave) does, with another reason.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is safe once it has been polled: the member leaves all the same.
    pub async fn leave_with(&self, reason: LeaveReason) -> HeartbeatState {
        self.request(Request::Leave(reason));
        until_left(&self.shared.state).await
    }

    /// Takes the application into the background. With [`InBackground::Leave`] the member leaves. With
    /// [`InBackground::Hold`] it stays for as long as the armed leave holds, which [`HeartbeatState::Suspended`] says,
    /// and no request goes out.
    pub fn suspend(&self, in_background: InBackground) {
        self.request(Request::Suspend(in_background));
    }

    /// Takes the application back from the background: the member goes on. If it has left, it joins again
    /// under another [`member_id`](Self::member_id).
    pub fn resume(&self) {
        self.request(Request::Resume);
    }

    /// Exchanges media keys with the others, for as long as the value that it returns is there. The exchange
    /// goes on when the member joins again under another id. Drop it after leaving.
    ///
    /// The first call gets the keys that others sent since the join: the last 32 of each sender.
    ///
    /// # Errors
    ///
    /// [`MediaKeysError::NotEncrypted`] in a room that is not encrypted, where no member has a key.
    /// [`MediaKeysError::EncryptionUnknown`] while nobody can tell: try again. The others say that the client
    /// is not logged in, or that there is no tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is safe, and loses no key: call it again.
    #[cfg(feature = "media-keys")]
    pub fn media_keys(
        &self,
        config: KeyConfig,
    ) -> impl Future<Output = Result<MediaKeys, MediaKeysError>> + Send + use<> {
        // Without this handle: the member is there for as long as the handle is, and no longer.
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        async move {
            let room = shared.session.rtc().room().clone();
            let timer = shared.session.rtc().sticky().timer().clone();
            MediaKeys::ensure(&room, &config).await?;
            let SessionSubscription { snapshot, changes } = shared.session.subscribe().await;
            let sessions = stream::once(std::future::ready(snapshot))
                .chain(changes.map(|update| update.snapshot));
            let sessions = sessions.map(move |session| (shared.now().member_id.clone(), session));
            // Last, so that nothing is lost if an error comes first.
            let inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
            let inbox = inbox.unwrap_or_else(|| KeyInbox::open(&room));
            MediaKeys::start(room, inbox, sessions, config, timer)
        }
    }

    /// Hands the armed leave to somebody who restarts it from now on; see [`Heartbeat::delegate`].
    pub fn delegate(&self) -> Option<DelayId> {
        self.shared.heartbeat()?.delegate()
    }

    /// Takes the armed leave back from whom it was delegated to, as when they fail.
    pub fn take_back(&self) {
        if let Some(heartbeat) = self.shared.heartbeat() {
            heartbeat.take_back();
        }
    }

    fn request(&self, request: Request) {
        // Nobody listens any more once all is over.
        let _ = self.requests.send(request);
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
            .field("slot_id", &self.shared.config.slot_id)
            .field("member_id", &self.member_id())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// How a member joins, the first time and again.
pub(super) struct MemberConfig {
    pub(super) dialect: Dialect,
    pub(super) slot_id: String,
    pub(super) user_id: String,
    pub(super) device_id: String,
    /// The id that the owner gave, if they did.
    pub(super) given_id: Option<String>,
    /// What the member says to begin with.
    pub(super) application: RtcApplication,
    pub(super) transports: Transports,
    pub(super) delay: Duration,
    pub(super) sticky_duration: Duration,
}

/// What the handle and the task both see.
struct Shared {
    session: Session,
    config: MemberConfig,
    state: SharedObservable<HeartbeatState>,
    now: Mutex<Now>,
}

struct Now {
    member_id: String,
    application: RtcApplication,
    transports: Transports,
    heartbeat: Option<Arc<Heartbeat>>,
    /// Until when an event that was sent under a given id outranks one that is sticky for a shorter time.
    outranked_until: Option<Deadline>,
    left_as: Option<LeaveReason>,
    last_error: Option<String>,
    is_dropped: bool,
}

impl Shared {
    /// Starts a heartbeat, under a new member id unless the owner gave one.
    async fn start_heartbeat(&self) -> Result<(), StartHeartbeatError> {
        let MemberConfig { given_id, delay, sticky_duration, .. } = &self.config;
        let member_id = given_id.clone().unwrap_or_else(unique_name);
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
            .with_raw_content(event_type, content)
            .with_leave_content(&armed)
            .last_words(last_words)
            .outranked_until(outranked_until)
            .with_delay(*delay)
            .with_sticky_duration(*sticky_duration)
            // Another join is another member.
            .with_rejoin(if given_id.is_some() { Rejoin::Automatic } else { Rejoin::Never })
            .start()
            .await?;
        let mut now = self.now();
        if !now.is_dropped {
            now.heartbeat = Some(Arc::new(heartbeat));
        }
        Ok(())
    }

    /// Lets go of a heartbeat that has ended.
    fn forget_heartbeat(&self) {
        let mut now = self.now();
        let Some(heartbeat) = now.heartbeat.take() else { return };
        // The next heartbeat with the same key does not know.
        let is_same_key = self.config.given_id.is_some();
        now.outranked_until = heartbeat.outranked_until().filter(|_| is_same_key);
        now.last_error = heartbeat.last_error().or(now.last_error.take());
    }

    /// The content of a join, as it is now.
    fn join_content(&self) -> Map<String, Value> {
        let now = self.now();
        self.own(&now).join(&now.application, &now.transports)
    }

    fn leave_content(&self, reason: &LeaveReason) -> Map<String, Value> {
        self.own(&self.now()).leave(reason)
    }

    fn own(&self, now: &Now) -> Own {
        let MemberConfig { slot_id, user_id, device_id, .. } = &self.config;
        Own {
            slot_id: slot_id.clone(),
            user_id: user_id.clone(),
            device_id: device_id.clone(),
            member_id: now.member_id.clone(),
        }
    }

    fn heartbeat(&self) -> Option<Arc<Heartbeat>> {
        self.now().heartbeat.clone()
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
