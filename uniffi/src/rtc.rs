//! MatrixRTC (MSC4143): who is in which call, and a membership of our own.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use matrix_sdk_sticky::{
    rtc::{
        self, Candidate as SdkCandidate, ClosedBy, Discovered, DiscoveredFrom as SdkDiscoveredFrom,
        JoinError as SdkJoinError, KnownBy, LeaveReason as SdkLeave, Member as SdkMember,
        MemberDevice as SdkDevice, NotJoined as SdkNotJoined, OwnMembership as SdkMembership,
        RtcApplication as SdkApplication, RtcChange as SdkRtcChange, RtcSnapshot as SdkRtcSnapshot,
        RtcSubscription, SessionChange as SdkSessionChange, SessionSnapshot as SdkSession,
        SessionSubscription, SlotError as SdkSlotError,
    },
    time::Moment,
};
use serde_json::Value;
use tokio::runtime::Handle;

use crate::{
    entries::Verification,
    heartbeat::{
        HeartbeatError, MemberState, MemberStateListener, in_background, listen_to_states,
        state_of, wall_time,
    },
    keys::{KeyConfig, MediaKeys},
    listen::{ListenerError, Listening, News},
    runtime::{self, Held, Started, in_words, with_causes},
    sticky::object,
};

/// The dialect that a membership of ours is written in, and what is expected of the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Dialect {
    /// MSC4143: the slot has to be open.
    Msc4143,
    /// Element Call's, and matrix-js-sdk 43's: a slot that is missing is open.
    ElementCall,
}

impl From<Dialect> for rtc::Dialect {
    fn from(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Msc4143 => Self::Msc4143,
            Dialect::ElementCall => Self::ElementCall,
        }
    }
}

impl From<rtc::Dialect> for Dialect {
    fn from(dialect: rtc::Dialect) -> Self {
        match dialect {
            rtc::Dialect::Msc4143 => Self::Msc4143,
            _ => Self::ElementCall,
        }
    }
}

/// The form in which a membership was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum MembershipForm {
    /// As MSC4143 has it.
    Msc4143,
    /// As Element Call has it.
    ElementCall,
    /// Right for both.
    Both,
    /// A sticky event of an earlier version of MSC4143.
    RtcTransports,
    /// A state event, as before sticky events.
    CallMember,
}

/// A member's device.
#[derive(Clone, Debug, uniffi::Record)]
pub struct MemberDevice {
    /// Its id.
    pub device_id: String,
    /// How far it is known to be the user's, where the membership was encrypted by it. None where the
    /// membership just says so, which may be a lie.
    pub proven: Option<Verification>,
}

/// An application that runs in a slot, e.g. `m.call`.
#[derive(Clone, Debug, uniffi::Record)]
pub struct RtcApplication {
    /// Its type.
    pub application_type: String,
    /// What else is said of it, a JSON object.
    #[uniffi(default = "{}")]
    pub fields: String,
}

/// A way in which a member's media can be had.
#[derive(Clone, Debug, uniffi::Record)]
pub struct RtcTransport {
    /// Its type, e.g. `livekit`.
    pub transport_type: String,
    /// What belongs to it, a JSON object.
    #[uniffi(default = "{}")]
    pub fields: String,
    /// LiveKit's service that gives tokens, if it is one of LiveKit's.
    #[uniffi(default = None)]
    pub livekit_service_url: Option<String>,
}

/// How somebody left.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Leave {
    /// What kind of leave it was, e.g. `leave` for hanging up, `delayed_leave` where the server said it
    /// for one who was gone.
    #[uniffi(default = None)]
    pub code: Option<String>,
    /// In words, for people.
    #[uniffi(default = None)]
    pub reason: Option<String>,
}

/// One who is in a session.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Member {
    /// The user.
    pub user_id: String,
    /// The id of the member, of its user's own.
    pub member_id: String,
    /// The device, where the membership names one.
    pub device: Option<MemberDevice>,
    /// The slot, as the membership names it.
    pub slot_id: String,
    /// In which form the membership was written.
    pub form: MembershipForm,
    /// The application, with what the member says of it.
    pub application: RtcApplication,
    /// What the member is there for, e.g. `audio`.
    pub intent: Option<String>,
    /// Where its media can be had.
    pub published: Vec<RtcTransport>,
    /// The types of transports that it can receive from.
    pub can_subscribe: Vec<String>,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// How much longer it is there if nothing follows, from the moment at which it was told.
    pub expires_in: Duration,
    /// The event that says so.
    pub event_id: String,
}

/// One who would be in a session, or was, and is not.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Candidate {
    /// The user.
    pub user_id: String,
    /// The id of the member, where it is known.
    pub member_id: Option<String>,
    /// The slot, where the membership names one.
    pub slot_id: Option<String>,
    /// The device, where the membership names one.
    pub device: Option<MemberDevice>,
    /// The event that says so.
    pub event_id: String,
    /// Why it does not count.
    pub reason: NotJoined,
}

/// Why somebody is not in a session.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum NotJoined {
    /// This field of the membership is missing, or not what it has to be.
    Malformed {
        /// The field.
        field: String,
    },
    /// Its application is not the slot's.
    OtherApplication,
    /// Left.
    Left {
        /// How.
        leave: Leave,
    },
    /// In plaintext, in an encrypted room.
    NotEncrypted,
    /// The sender is not in the room.
    NotInRoom,
    /// The slot is not open.
    Slot {
        /// Why not.
        closed: Closed,
    },
    /// The same device has joined anew, as this member.
    Superseded {
        /// The later member's id.
        by: String,
    },
    /// Its time was over.
    Expired,
    /// It was redacted.
    Redacted,
    /// The sender is ignored.
    Ignored,
    /// We are not in the room any more.
    RoomLeft,
    /// The membership is of another slot now.
    Moved,
    /// For a reason that this version does not know.
    Other {
        /// In words.
        reason: String,
    },
}

/// Why a slot is not open.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Closed {
    /// It was closed.
    Status,
    /// The room has no such slot.
    Missing,
    /// This field of it is missing, or not what it has to be.
    Malformed {
        /// The field.
        field: String,
    },
    /// It says nothing of encryption, in an encrypted room.
    NotEncrypted,
}

/// A session at one moment.
#[derive(Clone, Debug, uniffi::Record)]
pub struct SessionSnapshot {
    /// The id of its slot.
    pub slot_id: String,
    /// The application that the slot is for, where the room has it.
    pub application: Option<RtcApplication>,
    /// Why the slot is not open by the rules of MSC4143; none where it is.
    pub closed: Option<Closed>,
    /// The dialect that the room already speaks.
    pub dialect: Dialect,
    /// Whether the room is encrypted, so that members in plaintext do not count.
    pub is_encrypted: bool,
    /// Whether the room's state is known: a slot that is not there is missing, then.
    pub is_state_known: bool,
    /// Who is there, by user, then member id.
    pub members: Vec<Member>,
    /// Who is not, and why.
    pub candidates: Vec<Candidate>,
}

/// The sessions of a room at one moment.
#[derive(Clone, Debug, uniffi::Record)]
pub struct RtcSnapshot {
    /// The sessions, by their slot ids.
    pub sessions: Vec<SessionSnapshot>,
    /// Memberships that name no slot.
    pub strays: Vec<Candidate>,
    /// Whether the room is encrypted.
    pub is_encrypted: bool,
    /// Whether the room's state is known: a slot that is not there is missing, then.
    pub is_state_known: bool,
}

/// What changed in a session.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum SessionChange {
    /// The slot was opened, closed, or is another application's.
    Slot {
        /// The application that it is for, where the room has it.
        application: Option<RtcApplication>,
        /// Why it is not open; none where it is.
        closed: Option<Closed>,
    },
    /// A member has joined.
    Joined {
        /// The member.
        member: Member,
    },
    /// A member has another membership.
    Updated {
        /// The member from now on.
        member: Member,
    },
    /// A member is not there any more.
    Left {
        /// The member as it was.
        member: Member,
        /// Why.
        reason: NotJoined,
    },
    /// Somebody is not there, for this reason.
    Refused {
        /// Who.
        candidate: Candidate,
    },
    /// There is nothing more to tell of somebody who is not there.
    Forgotten {
        /// Who.
        candidate: Candidate,
    },
}

/// A change, and the session that it is in.
#[derive(Clone, Debug, uniffi::Record)]
pub struct RtcChange {
    /// The id of the session's slot; none for memberships that name none.
    pub slot_id: Option<String>,
    /// What changed.
    pub change: SessionChange,
}

/// Is told who is in a session, and what changes. It is never called by two threads at a time.
#[uniffi::export(with_foreign)]
pub trait SessionListener: Send + Sync {
    /// The session now. Comes first.
    fn on_reset(&self, session: SessionSnapshot) -> Result<(), ListenerError>;

    /// What changed, in order. Never empty.
    fn on_changes(&self, changes: Vec<SessionChange>) -> Result<(), ListenerError>;
}

/// Is told of all sessions of a room. It is never called by two threads at a time.
#[uniffi::export(with_foreign)]
pub trait RtcListener: Send + Sync {
    /// The sessions now. Comes first.
    fn on_reset(&self, sessions: RtcSnapshot) -> Result<(), ListenerError>;

    /// What changed, in order. Never empty.
    fn on_changes(&self, changes: Vec<RtcChange>) -> Result<(), ListenerError>;
}

/// The transports that a homeserver offers.
#[derive(Clone, Debug, uniffi::Record)]
pub struct DiscoveredTransports {
    /// The transports, the preferred ones first.
    pub transports: Vec<RtcTransport>,
    /// Who said so.
    pub discovered_from: DiscoveredFrom,
}

/// Where transports were found.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum DiscoveredFrom {
    /// At the homeserver's `rtc/transports`.
    Homeserver,
    /// In its `.well-known`.
    WellKnown,
    /// Nobody offers any.
    Nowhere,
}

/// Why it is not known which transports there are.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum TransportsError {
    /// Not logged in, or the token is refused.
    #[error("{reason}")]
    LoggedOut {
        /// Which.
        reason: String,
    },
    /// The server wants fewer requests.
    #[error("{reason}")]
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
        /// The same in words.
        reason: String,
    },
    /// The server cannot be reached, or gives no such answer.
    #[error("{reason}")]
    Unreachable {
        /// Why, and what to do.
        reason: String,
    },
    /// The library has been shut down.
    #[error("{reason}")]
    Stopped {
        /// How that is.
        reason: String,
    },
}

/// Why there is no snapshot.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum SnapshotError {
    /// The library has been shut down.
    #[error("{reason}")]
    Stopped {
        /// How that is.
        reason: String,
    },
}

/// Why a slot was not opened or closed.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum SlotError {
    /// We have no right to change the room's slots.
    #[error("{reason}")]
    NotAllowed {
        /// Who has to.
        reason: String,
    },
    /// We are not in the room.
    #[error("{reason}")]
    NotInRoom {
        /// What to do.
        reason: String,
    },
    /// The slot's id is none, or the application is not the slot's.
    #[error("{reason}")]
    SlotId {
        /// What it has to be.
        reason: String,
    },
    /// The application's fields are no JSON object.
    #[error("{reason}")]
    Application {
        /// What is wrong with them.
        reason: String,
    },
    /// The server wants fewer requests.
    #[error("{reason}")]
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
        /// The same in words.
        reason: String,
    },
    /// The server refuses it, and will again.
    #[error("{reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// The server cannot be reached: try again.
    #[error("{reason}")]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// The library has been shut down.
    #[error("{reason}")]
    Stopped {
        /// How that is.
        reason: String,
    },
}

/// Why a session was not joined. Nothing was sent.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum JoinError {
    /// The slot is not open: open it, or join in the dialect of Element Call where it is missing.
    #[error("{reason}")]
    Slot {
        /// Why it is not.
        closed: Closed,
        /// What to do.
        reason: String,
    },
    /// Whether the slot is open is not known, as the server did not tell: try again.
    #[error("{reason}")]
    StateUnknown {
        /// The same in words.
        reason: String,
    },
    /// The slot is for another application.
    #[error("{reason}")]
    OtherApplication {
        /// Which it is for.
        slot: String,
        /// What to do.
        reason: String,
    },
    /// No application was given, and the slot does not say it; or its fields are no JSON object.
    #[error("{reason}")]
    Application {
        /// What is missing, or wrong.
        reason: String,
    },
    /// A transport's fields are no JSON object.
    #[error("{reason}")]
    Transport {
        /// What is wrong with them.
        reason: String,
    },
    /// MSC4143 takes no member id.
    #[error("{reason}")]
    MemberId {
        /// What to do.
        reason: String,
    },
    /// The client is not logged in.
    #[error("{reason}")]
    NotLoggedIn {
        /// What to do.
        reason: String,
    },
    /// The heartbeat was not started.
    #[error("{reason}")]
    Heartbeat {
        /// Why not.
        source: HeartbeatError,
        /// The same in words.
        reason: String,
    },
    /// It has been joined, or left, before: make another one.
    #[error("{reason}")]
    Again {
        /// Which.
        reason: String,
    },
    /// The library has been shut down.
    #[error("{reason}")]
    Stopped {
        /// How that is.
        reason: String,
    },
}

in_words!(Stopped as Stopped: TransportsError, SnapshotError, SlotError, JoinError);
in_words!(NotAgain as Again: JoinError);

/// How a session is joined.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct JoinConfig {
    /// Where the member's media can be had.
    #[uniffi(default = [])]
    pub published: Vec<RtcTransport>,
    /// The types of transports that it can receive from; those that it publishes unless told.
    #[uniffi(default = None)]
    pub can_subscribe: Option<Vec<String>>,
    /// The dialect; what the room already speaks unless told.
    #[uniffi(default = None)]
    pub dialect: Option<Dialect>,
    /// The application; the slot's unless told.
    #[uniffi(default = None)]
    pub application: Option<RtcApplication>,
    /// What the member is there for, e.g. `audio` or `video`.
    #[uniffi(default = None)]
    pub intent: Option<String>,
    /// The id of the member, in the dialect of Element Call alone. A new one for each join unless told.
    #[uniffi(default = None)]
    pub member_id: Option<String>,
    /// How long after a crash everybody sees it gone; 15 s unless told.
    #[uniffi(default = None)]
    pub delay: Option<Duration>,
    /// For how long its events are sticky. Defaults to 1 h.
    #[uniffi(default = None)]
    pub sticky: Option<Duration>,
}

/// The MatrixRTC sessions of a room.
#[derive(Debug, uniffi::Object)]
pub struct Rtc {
    rtc: Held<rtc::Rtc>,
}

impl Rtc {
    pub(crate) fn new(runtime: &Handle, rtc: rtc::Rtc) -> Self {
        Self { rtc: Held::new(runtime, rtc) }
    }
}

#[uniffi::export]
impl Rtc {
    /// The sessions now. Asks the server once for the room's state.
    pub async fn snapshot(&self) -> Result<RtcSnapshot, SnapshotError> {
        let rtc = self.rtc.clone();
        let snapshot =
            runtime::on(self.rtc.runtime(), async move { RtcSnapshot::of(&rtc.snapshot().await) });
        Ok(snapshot.await?)
    }

    /// Tells a listener who is in the room's sessions, and what changes.
    pub fn listen(&self, listener: Arc<dyn RtcListener>) -> Arc<Listening> {
        let rtc = self.rtc.clone();
        let subscribe = async move {
            let RtcSubscription { snapshot, changes, .. } = rtc.subscribe().await;
            let changes = changes.map(|change| {
                let of = SessionChange::teller(
                    change.snapshot.taken_at(),
                    change.snapshot.is_encrypted(),
                );
                let of = |SdkRtcChange { slot_id, change, .. }: &SdkRtcChange| RtcChange {
                    slot_id: slot_id.as_deref().map(str::to_owned),
                    change: of(change),
                };
                change.changes.iter().map(of).collect()
            });
            News::all(async move { RtcSnapshot::of(&snapshot) }, changes)
        };
        let news = stream::once(subscribe).flatten();
        Listening::to(self.rtc.runtime(), news, listener, |listener, news| match news {
            News::Reset(sessions) => listener.on_reset(sessions),
            News::Changes(changes) => listener.on_changes(changes),
        })
    }

    /// The session of a slot, e.g. `m.call#ROOM`, whether anybody is in it or not.
    pub fn session(&self, slot_id: String) -> Arc<RtcSession> {
        let session = self.rtc.session(slot_id);
        Arc::new(RtcSession { session: Held::new(self.rtc.runtime(), session) })
    }
}

/// One session of a room.
#[derive(Debug, uniffi::Object)]
pub struct RtcSession {
    session: Held<rtc::Session>,
}

#[uniffi::export]
impl RtcSession {
    /// The id of its slot.
    pub fn slot_id(&self) -> String {
        self.session.slot_id().to_owned()
    }

    /// Who is there now, who is not, and why. Asks the server once for the room's state.
    pub async fn snapshot(&self) -> Result<SessionSnapshot, SnapshotError> {
        let session = self.session.clone();
        let snapshot = async move { SessionSnapshot::of(&session.snapshot().await) };
        Ok(runtime::on(self.session.runtime(), snapshot).await?)
    }

    /// Tells a listener who is there, and what changes.
    pub fn listen(&self, listener: Arc<dyn SessionListener>) -> Arc<Listening> {
        let session = self.session.clone();
        let subscribe = async move {
            let SessionSubscription { snapshot, changes, .. } = session.subscribe().await;
            let changes = changes.map(|update| {
                let of = SessionChange::teller(
                    update.snapshot.taken_at(),
                    update.snapshot.is_encrypted(),
                );
                update.changes.iter().map(of).collect()
            });
            News::all(async move { SessionSnapshot::of(&snapshot) }, changes)
        };
        let news = stream::once(subscribe).flatten();
        Listening::to(self.session.runtime(), news, listener, |listener, news| match news {
            News::Reset(session) => listener.on_reset(session),
            News::Changes(changes) => listener.on_changes(changes),
        })
    }

    /// A membership of our own, that is there for as long as the handle is. It is to be joined.
    pub fn membership(&self, config: JoinConfig) -> Result<Arc<Membership>, JoinError> {
        // What is wrong with it is told at once.
        drop(config.clone().apply(&self.session)?);
        let session = rtc::Session::clone(&self.session);
        let joining = Joining { session, config, membership: Started::default() };
        Ok(Arc::new(Membership { joining: Held::new(self.session.runtime(), Arc::new(joining)) }))
    }

    /// Opens its slot, for the application that is given, or else for the one that it is for by its id.
    #[uniffi::method(default(application = None))]
    pub async fn open(&self, application: Option<RtcApplication>) -> Result<(), SlotError> {
        let mut open = self.session.open();
        if let Some(application) = application {
            let application =
                application.read().map_err(|reason| SlotError::Application { reason })?;
            open = open.with_application(application);
        }
        Ok(runtime::on(self.session.runtime(), open.into_future()).await??)
    }

    /// Closes its slot: members who follow MSC4143 leave.
    pub async fn close_slot(&self) -> Result<(), SlotError> {
        let session = self.session.clone();
        Ok(runtime::on(self.session.runtime(), async move { session.close().await }).await??)
    }
}

impl JoinConfig {
    fn apply(self, session: &rtc::Session) -> Result<rtc::JoinSession, JoinError> {
        let transports = transports(self.published, self.can_subscribe)?;
        let mut join = session.join(transports);
        if let Some(dialect) = self.dialect {
            join = join.with_dialect(dialect.into());
        }
        if let Some(application) = self.application {
            let application =
                application.read().map_err(|reason| JoinError::Application { reason })?;
            join = join.with_application(application);
        }
        if let Some(intent) = self.intent {
            join = join.with_intent(intent);
        }
        if let Some(member_id) = self.member_id {
            join = join.with_member_id(member_id);
        }
        if let Some(delay) = self.delay {
            join = join.with_delay(delay);
        }
        if let Some(sticky) = self.sticky {
            join = join.with_sticky_duration(sticky);
        }
        Ok(join)
    }
}

fn transports(
    published: Vec<RtcTransport>,
    can_subscribe: Option<Vec<String>>,
) -> Result<rtc::Transports, JoinError> {
    let published = published.into_iter().map(RtcTransport::read).collect::<Result<Vec<_>, _>>();
    let published = published.map_err(|reason| JoinError::Transport { reason })?;
    let mut transports = rtc::Transports::publishing(published);
    if let Some(can_subscribe) = can_subscribe {
        transports.can_subscribe = can_subscribe;
    }
    Ok(transports)
}

/// Our member of a session, which is there for as long as this is: from [`join`](Self::join) until
/// [`leave`](Self::leave).
///
/// Dropping it without leaving is what a crash is: everybody sees the member gone within the delay.
#[derive(Debug, uniffi::Object)]
pub struct Membership {
    joining: Held<Arc<Joining>>,
}

#[derive(Debug)]
struct Joining {
    session: rtc::Session,
    config: JoinConfig,
    membership: Started<SdkMembership>,
}

impl Membership {
    fn membership(&self) -> Option<Arc<SdkMembership>> {
        self.joining.membership.get()
    }
}

#[uniffi::export]
impl Membership {
    /// Joins. Returns when it is under way; its state tells when everybody can see the member. After an
    /// error it can be tried again. A call that is given up may have joined all the same: leave, or let go of
    /// this.
    pub async fn join(&self) -> Result<(), JoinError> {
        let it = self.joining.clone();
        let join = async move {
            let Joining { session, config, membership } = &*it;
            let join = config.clone().apply(session)?;
            membership.start(async { Ok::<_, JoinError>(join.await?) }).await
        };
        runtime::on(self.joining.runtime(), join).await?
    }

    /// How the member stands.
    pub fn state(&self) -> MemberState {
        state_of(&self.joining.membership, SdkMembership::state)
    }

    /// Tells a listener how it stands.
    pub fn listen_to_state(&self, listener: Arc<dyn MemberStateListener>) -> Arc<Listening> {
        let it = &self.joining.membership;
        listen_to_states(self.joining.runtime(), it, SdkMembership::subscribe_state, listener)
    }

    /// The pulse: until when the leave that is armed does not fire. None where none is armed.
    pub fn armed_until(&self) -> Option<SystemTime> {
        self.membership()?.armed_until().map(wall_time)
    }

    /// The id of the member, once it has joined. Another one after it had to join again.
    pub fn member_id(&self) -> Option<String> {
        Some(self.membership()?.member_id())
    }

    /// The dialect that was chosen, once it has joined.
    pub fn dialect(&self) -> Option<Dialect> {
        Some(self.membership()?.dialect().into())
    }

    /// What went wrong last, in words.
    pub fn last_error(&self) -> Option<String> {
        self.membership()?.last_error()
    }

    /// How it left, once it has.
    pub fn left_as(&self) -> Option<Leave> {
        self.membership()?.left_as().map(Leave::from)
    }

    /// What the member says of the application from now on, a JSON object. The application's type stays.
    /// What is called before the member has joined is done as soon as it has: this, and the calls below.
    pub fn update_application(&self, fields: String) -> Result<(), JoinError> {
        let fields = object(&fields).map_err(|reason| JoinError::Application { reason })?;
        // The type is the session's.
        let mut application = SdkApplication::new("");
        application.fields = fields;
        self.joining.membership.act(|it| it.update_application(application));
        Ok(())
    }

    /// What the member is there for from now on.
    pub fn update_intent(&self, intent: String) {
        self.joining.membership.act(|it| it.update_intent(intent));
    }

    /// Where the member's media can be had from now on, and which types it can receive from: those that
    /// it publishes unless told.
    #[uniffi::method(default(can_subscribe = None))]
    pub fn update_transports(
        &self,
        published: Vec<RtcTransport>,
        can_subscribe: Option<Vec<String>>,
    ) -> Result<(), JoinError> {
        let transports = transports(published, can_subscribe)?;
        self.joining.membership.act(|it| it.update_transports(transports));
        Ok(())
    }

    /// Leaves, on purpose, or as is told. Returns when the server has the leave, or it has failed; until
    /// then it is tried again and again. Giving up waiting is safe. One that has not joined will not.
    #[uniffi::method(default(leave = None))]
    pub async fn leave(&self, leave: Option<Leave>) -> MemberState {
        let Some(membership) = self.joining.membership.end() else { return MemberState::Left };
        let leave = leave.map_or_else(|| SdkLeave::with_code(SdkLeave::ON_PURPOSE), Leave::read);
        let left = async move { membership.leave_with(leave).await };
        let left = runtime::on(self.joining.runtime(), left).await;
        left.map_or_else(|_| self.state(), MemberState::from)
    }

    /// The application goes into the background. The member leaves; or, if it is to be kept, stays for as
    /// long as the armed leave holds, which its state tells, and no request goes out.
    #[uniffi::method(default(keep = false))]
    pub fn suspend(&self, keep: bool) {
        let in_background = in_background(keep);
        self.joining.membership.act(move |it| it.suspend(in_background));
    }

    /// The application is back: the member goes on, or joins again if it has left.
    pub fn resume(&self) {
        self.joining.membership.act(|it| it.resume());
    }

    /// Hands the armed leave to somebody who restarts it from now on, such as an SFU's authorization
    /// service (MSC4195): its delay id. Whoever has that can end the member: handle it as you would an
    /// access token. None while none is armed.
    pub fn delegate(&self) -> Option<String> {
        Some(self.membership()?.delegate()?.as_secret_str().to_owned())
    }

    /// Takes the armed leave back from whom it was delegated to.
    pub fn take_back(&self) {
        self.joining.membership.act(|it| it.take_back());
    }

    /// The exchange of media keys with the others, in encrypted rooms, for as long as what this gives is
    /// there. It is to be started.
    pub fn media_keys(&self, config: KeyConfig) -> Arc<MediaKeys> {
        // It is the application that holds the member: who lets go of that is gone.
        let joining = Arc::downgrade(&self.joining);
        let membership = move || joining.upgrade()?.membership.get();
        Arc::new(MediaKeys::new(self.joining.runtime(), membership, config.read()))
    }
}

impl RtcSnapshot {
    fn of(snapshot: &SdkRtcSnapshot) -> Self {
        Self {
            sessions: snapshot.sessions().map(|session| SessionSnapshot::of(&session)).collect(),
            strays: snapshot.strays().map(Candidate::of).collect(),
            is_encrypted: snapshot.is_encrypted(),
            is_state_known: snapshot.is_state_known(),
        }
    }
}

impl SessionSnapshot {
    fn of(session: &SdkSession) -> Self {
        let now = session.taken_at();
        let application = session.slot().and_then(|slot| slot.application.as_ref());
        Self {
            slot_id: session.slot_id().to_owned(),
            application: application.map(RtcApplication::of),
            closed: session.closed_by().map(Closed::from),
            dialect: session.dialect().into(),
            is_encrypted: session.is_encrypted(),
            is_state_known: session.is_state_known(),
            members: session.members().map(|member| Member::of(member, now)).collect(),
            candidates: session.candidates().map(Candidate::of).collect(),
        }
    }
}

impl SessionChange {
    /// Tells changes, as of this moment, in a room that is encrypted or not.
    fn teller(now: Moment, is_encrypted: bool) -> impl Fn(&SdkSessionChange) -> Self {
        move |change| match change {
            SdkSessionChange::Slot(slot) => Self::Slot {
                application: slot
                    .as_ref()
                    .and_then(|slot| slot.application.as_ref())
                    .map(RtcApplication::of),
                closed: match slot {
                    Some(slot) => slot.closed_by(is_encrypted).map(Closed::from),
                    None => Some(Closed::Missing),
                },
            },
            SdkSessionChange::Joined(member) => Self::Joined { member: Member::of(member, now) },
            SdkSessionChange::Updated { member, .. } => {
                Self::Updated { member: Member::of(member, now) }
            }
            SdkSessionChange::Left { member, reason } => {
                Self::Left { member: Member::of(member, now), reason: NotJoined::from(reason) }
            }
            SdkSessionChange::Refused(candidate) => {
                Self::Refused { candidate: Candidate::of(candidate) }
            }
            SdkSessionChange::Forgotten(candidate) => {
                Self::Forgotten { candidate: Candidate::of(candidate) }
            }
            // It is the same crate that has them all.
            _ => Self::Slot { application: None, closed: None },
        }
    }
}

impl Member {
    fn of(member: &SdkMember, now: Moment) -> Self {
        let transports = member.transports();
        Self {
            user_id: member.user_id().to_string(),
            member_id: member.member_id().to_owned(),
            device: member.device().map(MemberDevice::of),
            slot_id: member.slot_id().to_owned(),
            form: member.form().into(),
            application: RtcApplication::of(&member.application()),
            intent: member.intent().map(str::to_owned),
            published: transports.published.iter().map(RtcTransport::of).collect(),
            can_subscribe: transports.can_subscribe,
            since_ms: member.since_ms(),
            expires_in: member.expires_in(now),
            event_id: member.event_id().to_string(),
        }
    }
}

impl Candidate {
    fn of(candidate: &SdkCandidate) -> Self {
        Self {
            user_id: candidate.user_id.to_string(),
            member_id: candidate.member_id.clone(),
            slot_id: candidate.slot_id.clone(),
            device: candidate.device.as_ref().map(MemberDevice::of),
            event_id: candidate.event_id.to_string(),
            reason: NotJoined::from(&candidate.reason),
        }
    }
}

impl MemberDevice {
    fn of(device: &SdkDevice) -> Self {
        let proven = match device.known_by {
            KnownBy::Decryption(verification) => Some(verification.into()),
            _ => None,
        };
        Self { device_id: device.device_id.to_string(), proven }
    }
}

impl RtcApplication {
    fn of(application: &SdkApplication) -> Self {
        Self {
            application_type: application.application_type.clone(),
            fields: Value::Object(application.fields.clone()).to_string(),
        }
    }

    fn read(self) -> Result<SdkApplication, String> {
        let mut application = SdkApplication::new(self.application_type);
        application.fields = object(&self.fields)?;
        Ok(application)
    }
}

impl RtcTransport {
    fn of(transport: &rtc::RtcTransport) -> Self {
        let livekit = transport.as_livekit().and_then(|livekit| livekit.service_url);
        Self {
            transport_type: transport.transport_type().to_owned(),
            fields: Value::Object(transport.fields().clone()).to_string(),
            livekit_service_url: livekit.map(str::to_owned),
        }
    }

    /// The URL, where it is given, is what counts.
    fn read(self) -> Result<rtc::RtcTransport, String> {
        let mut fields = object(&self.fields)?;
        if let Some(url) = self.livekit_service_url {
            fields.insert("livekit_service_url".to_owned(), url.into());
        }
        rtc::RtcTransport::new(self.transport_type, &fields).map_err(|error| error.to_string())
    }
}

impl Leave {
    fn read(self) -> SdkLeave {
        let Self { code, reason } = self;
        SdkLeave { code, reason }
    }
}

impl From<SdkLeave> for Leave {
    fn from(SdkLeave { code, reason }: SdkLeave) -> Self {
        Self { code, reason }
    }
}

impl From<rtc::MembershipForm> for MembershipForm {
    fn from(form: rtc::MembershipForm) -> Self {
        match form {
            rtc::MembershipForm::Msc4143 => Self::Msc4143,
            rtc::MembershipForm::ElementCall => Self::ElementCall,
            rtc::MembershipForm::RtcTransports => Self::RtcTransports,
            rtc::MembershipForm::CallMember => Self::CallMember,
            _ => Self::Both,
        }
    }
}

impl From<ClosedBy> for Closed {
    fn from(closed: ClosedBy) -> Self {
        match closed {
            ClosedBy::Missing => Self::Missing,
            ClosedBy::Malformed(field) => Self::Malformed { field: field.to_owned() },
            ClosedBy::NotEncrypted => Self::NotEncrypted,
            _ => Self::Status,
        }
    }
}

impl From<&SdkNotJoined> for NotJoined {
    fn from(reason: &SdkNotJoined) -> Self {
        match reason {
            SdkNotJoined::Malformed(field) => Self::Malformed { field: (*field).to_owned() },
            SdkNotJoined::OtherApplication => Self::OtherApplication,
            SdkNotJoined::Left(leave) => Self::Left { leave: leave.clone().into() },
            SdkNotJoined::NotEncrypted => Self::NotEncrypted,
            SdkNotJoined::NotInRoom => Self::NotInRoom,
            SdkNotJoined::Slot(closed) => Self::Slot { closed: closed.clone().into() },
            SdkNotJoined::Superseded { by } => Self::Superseded { by: by.clone() },
            SdkNotJoined::Expired => Self::Expired,
            SdkNotJoined::Redacted => Self::Redacted,
            SdkNotJoined::Ignored => Self::Ignored,
            SdkNotJoined::RoomLeft => Self::RoomLeft,
            SdkNotJoined::Moved => Self::Moved,
            other => Self::Other { reason: other.to_string() },
        }
    }
}

impl From<Discovered> for DiscoveredTransports {
    fn from(found: Discovered) -> Self {
        Self {
            transports: found.transports.iter().map(RtcTransport::of).collect(),
            discovered_from: match found.from {
                SdkDiscoveredFrom::Homeserver => DiscoveredFrom::Homeserver,
                SdkDiscoveredFrom::WellKnown => DiscoveredFrom::WellKnown,
                _ => DiscoveredFrom::Nowhere,
            },
        }
    }
}

impl From<rtc::TransportsError> for TransportsError {
    fn from(error: rtc::TransportsError) -> Self {
        let reason = error.to_string();
        match error {
            rtc::TransportsError::NotLoggedIn | rtc::TransportsError::TokenRefused => {
                Self::LoggedOut { reason }
            }
            rtc::TransportsError::RateLimited { retry_after } => {
                Self::RateLimited { retry_after, reason }
            }
            _ => Self::Unreachable { reason },
        }
    }
}

impl From<SdkSlotError> for SlotError {
    fn from(error: SdkSlotError) -> Self {
        let reason = with_causes(&error);
        match error {
            SdkSlotError::NotAllowed => Self::NotAllowed { reason },
            SdkSlotError::NotInRoom => Self::NotInRoom { reason },
            SdkSlotError::SlotId => Self::SlotId { reason },
            SdkSlotError::RateLimited { retry_after } => Self::RateLimited { retry_after, reason },
            SdkSlotError::Refused(_) => Self::Refused { reason },
            _ => Self::Unreachable { reason },
        }
    }
}

impl From<SdkJoinError> for JoinError {
    fn from(error: SdkJoinError) -> Self {
        let reason = with_causes(&error);
        match error {
            SdkJoinError::Slot(closed) => Self::Slot { closed: closed.into(), reason },
            SdkJoinError::StateUnknown => Self::StateUnknown { reason },
            SdkJoinError::OtherApplication { slot } => Self::OtherApplication { slot, reason },
            SdkJoinError::MemberId => Self::MemberId { reason },
            SdkJoinError::NotLoggedIn => Self::NotLoggedIn { reason },
            SdkJoinError::Heartbeat(error) => Self::Heartbeat { source: error.into(), reason },
            _ => Self::Application { reason },
        }
    }
}
