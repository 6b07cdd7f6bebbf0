//! Joining a session: the builder, and what has to hold before a heartbeat starts.
//!
//! In: what the owner says of the member, and the session as it is. Out: an [`OwnMembership`], or why nothing
//! was sent. Never: what becomes of the member afterwards.

use std::{future::IntoFuture, time::Duration};

use futures_util::FutureExt as _;
use serde_json::Value;

use super::{
    dialect::Dialect,
    own_membership::{MemberConfig, OwnMembership},
    session::Session,
    slot::{ClosedBy, RtcApplication},
    snapshot::{Obstacle, SessionSnapshot},
    transport::Transports,
};
use crate::{
    driver::BoxFuture,
    heartbeat::{HeartbeatTiming, StartHeartbeatError},
    time::MAX_STICKY_DURATION,
    wire::names,
};

/// A join that is to be made. [`Session::join`] returns it, and awaiting it makes it.
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
    sticky_duration: Duration,
}

/// Why a session was not joined. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The slot is not open, so that nobody would see the member. Open it with [`Session::open`], or ask
    /// somebody who may. If it is missing, join in the dialect of Element Call instead.
    #[error("{}", advice(.0))]
    Slot(ClosedBy),
    /// The server did not tell the room's state, so that nobody knows whether the slot is there. Try again
    /// when the server can be reached.
    #[error("the server did not tell whether the slot is open: try again when it can be reached")]
    StateUnknown,
    /// The slot is another application's. Join with that one, or join another slot.
    #[error("the slot is for the application {slot}: join with that, or another slot")]
    OtherApplication {
        /// The type of the application that the slot is for.
        slot: String,
    },
    /// The slot's id has no `#`, and no application was given. Give one with
    /// [`JoinSession::with_application`].
    #[error("the slot's id does not say the application: give one")]
    NoApplication,
    /// MSC4143 wants a new member id for each join. Only the dialect of Element Call takes an id: leave out
    /// [`JoinSession::with_member_id`].
    #[error("MSC4143 wants a new member id for each join: leave the choice of it to the join")]
    MemberId,
    /// The client is not logged in. Log in first.
    #[error("the client is not logged in: log in first")]
    NotLoggedIn,
    /// The heartbeat was not started. The error says what to do.
    #[error(transparent)]
    Heartbeat(#[from] StartHeartbeatError),
}

/// What to do about a slot that is not open.
fn advice(closed: &ClosedBy) -> String {
    match closed {
        ClosedBy::Missing => {
            "the room has no such slot: open it, or join in the dialect of Element Call".to_owned()
        }
        ClosedBy::NotEncrypted => {
            "the slot says nothing of encryption, in an encrypted room: open it \
                                   anew, or join in the dialect of Element Call"
                .to_owned()
        }
        ClosedBy::Malformed(field) => {
            format!("the slot counts as closed, for its `{field}`: open it anew")
        }
        ClosedBy::Status => "the slot is closed: open it first".to_owned(),
    }
}

impl Session {
    /// Joins, as a member that is there for as long as the handle is: a heartbeat. Awaiting it resolves when
    /// the heartbeat has been started. [`OwnMembership::state`] says when everybody can see the member.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{StickyRoomExt as _, rtc::{JoinError, ROOM_CALL, RtcTransport}};
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), JoinError> {
    /// let call = room.sticky().rtc().session(ROOM_CALL);
    /// let membership = call
    ///     .join([RtcTransport::livekit("https://livekit.example.org")])
    ///     .with_intent("video")
    ///     .await?;
    /// membership.leave().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`JoinError`]: the slot is not open, or is another application's; the server did not tell; or the
    /// heartbeat was not started. Nothing was sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a heartbeat that has been started: its armed leave fires, as after a
    /// crash.
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
            delay: HeartbeatTiming::default().delay(),
            // Each event of a membership makes every Element Call in the call rotate its key.
            sticky_duration: MAX_STICKY_DURATION,
        }
    }

    /// Sets the dialect, which decides whether the slot has to be open. Defaults to the one that the room
    /// already speaks: [`SessionSnapshot::dialect`].
    pub fn with_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = Some(dialect);
        self
    }

    /// Sets the application, with what the member says of it. Defaults to one of the slot's type that says
    /// nothing.
    pub fn with_application(mut self, application: RtcApplication) -> Self {
        self.application = Some(application);
        self
    }

    /// Sets what the member is there for, e.g. `audio` or `video`; see [`RtcApplication::intent`]. Defaults to
    /// what the application says.
    pub fn with_intent(mut self, intent: impl Into<String>) -> Self {
        self.intent = Some(intent.into());
        self
    }

    /// Sets the id of the member, in the dialect of Element Call alone. The member keeps it when it joins
    /// again after a leave that it did not want. Defaults to a new one for each join.
    pub fn with_member_id(mut self, member_id: impl Into<String>) -> Self {
        self.member_id = Some(member_id.into());
        self
    }

    /// Sets how long after a crash everybody sees the member gone. Defaults to 15 s; see
    /// [`HeartbeatTiming::with_delay`] for the range.
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets for how long the member's events are sticky. Defaults to 1 h; see [`HeartbeatTiming::with_sticky`] for the
    /// range.
    pub fn with_sticky_duration(mut self, sticky_duration: Duration) -> Self {
        self.sticky_duration = sticky_duration;
        self
    }

    async fn join(self) -> Result<OwnMembership, JoinError> {
        let Self { session, transports, dialect, application, intent, member_id, .. } = self;
        let client = session.rtc().room().client();
        let (user_id, device_id) =
            client.user_id().zip(client.device_id()).ok_or(JoinError::NotLoggedIn)?;

        let subscription = session.subscribe().await;
        let snapshot = &subscription.snapshot;
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
            None => RtcApplication::new(application_of(&slot_id, snapshot)?),
        };
        if let Some(intent) = intent {
            application.fields.insert(names::CALL_INTENT.to_owned(), Value::String(intent));
        }
        match snapshot.obstacle(&slot_id, dialect, &application) {
            None => {}
            Some(Obstacle::Closed(closed)) => return Err(JoinError::Slot(closed)),
            Some(Obstacle::OtherApplication(slot)) => {
                return Err(JoinError::OtherApplication { slot });
            }
        }
        let config = MemberConfig {
            dialect,
            slot_id,
            user_id: user_id.to_string(),
            device_id: device_id.to_string(),
            given_id: member_id,
            application,
            transports,
            delay: self.delay,
            sticky_duration: self.sticky_duration,
        };
        Ok(OwnMembership::start(config, session, subscription).await?)
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
    // Somebody made the id here, by the grammar by which ids are made.
    let (application, _) = slot_id.split_once('#').ok_or(JoinError::NoApplication)?;
    Ok(application.to_owned())
}
