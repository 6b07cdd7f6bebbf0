//! Our own membership: joining, its state, and leaving.

use std::{future, pin::Pin, time::Duration};

use eyeball::Subscriber;
use futures_util::{FutureExt as _, future::OptionFuture};
use matrix_sdk_sticky::{
    heartbeat::HeartbeatState,
    rtc::{self, OwnMembership, RtcSnapshot, RtcTransport, Session},
};

use crate::{Dialect, Options, common::Result};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Joining = Pin<Box<dyn Future<Output = Result<OwnMembership>> + Send>>;

/// News of our own membership.
pub(crate) enum News {
    State(HeartbeatState),
    /// We did not join. Nothing was sent.
    NotJoined(Error),
}

pub(crate) struct Own {
    session: Session,
    session_slot_id: String,
    options: Options,
    joining: Option<Joining>,
    membership: Option<OwnMembership>,
    states: Option<Subscriber<HeartbeatState>>,
    /// Whether `joining` is still to be said: it is, also if the join is done already.
    is_new: bool,
}

impl Own {
    pub(crate) fn new(session: Session, options: &Options) -> Self {
        Self {
            session_slot_id: session.slot_id().to_owned(),
            session,
            options: options.clone(),
            joining: None,
            membership: None,
            states: None,
            is_new: false,
        }
    }

    /// The slot may have another name than the one that was asked for.
    pub(crate) fn look_at(&mut self, snapshot: &RtcSnapshot) {
        snapshot.session(self.slot_id()).slot_id().clone_into(&mut self.session_slot_id);
    }

    pub(crate) fn slot_id(&self) -> &str {
        self.session.slot_id()
    }

    /// The slot's id as the changes have it.
    pub(crate) fn session_slot_id(&self) -> &str {
        &self.session_slot_id
    }

    pub(crate) fn membership(&self) -> Option<&OwnMembership> {
        self.membership.as_ref()
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.membership.as_ref().and_then(OwnMembership::last_error)
    }

    /// Joins, if we are not there. [`next`](Self::next) tells how that goes.
    pub(crate) fn join(&mut self) {
        if self.joining.is_none() && !self.is_in() {
            self.joining = Some(join(self.session.clone(), self.options.clone()).boxed());
        }
    }

    pub(crate) async fn join_now(&mut self) -> Result {
        let membership = join(self.session.clone(), self.options.clone()).await?;
        self.handle_joined(membership);
        Ok(())
    }

    /// Leaves, if we are there. [`next`](Self::next) tells how that goes.
    pub(crate) fn leave(&mut self) {
        // A join that is under way has sent nothing yet.
        self.joining = None;
        if let Some(membership) = &self.membership {
            // The leave goes on although nobody waits for it.
            let _ = membership.leave().now_or_never();
        }
    }

    pub(crate) async fn next(&mut self) -> News {
        if std::mem::take(&mut self.is_new) {
            return News::State(HeartbeatState::Joining);
        }
        let joined = OptionFuture::from(self.joining.as_mut());
        let state = OptionFuture::from(self.states.as_mut().map(|states| states.next()));
        tokio::select! {
            Some(joined) = joined => {
                self.joining = None;
                match joined {
                    Ok(membership) => {
                        self.handle_joined(membership);
                        self.is_new = false;
                        News::State(HeartbeatState::Joining)
                    }
                    Err(error) => News::NotJoined(error),
                }
            }
            Some(Some(state)) = state => News::State(state),
            else => future::pending().await,
        }
    }

    fn handle_joined(&mut self, membership: OwnMembership) {
        let mut states = membership.subscribe_state();
        // The present state is to be said too.
        states.reset();
        self.states = Some(states);
        self.membership = Some(membership);
        self.is_new = true;
    }

    fn is_in(&self) -> bool {
        let over = |state| matches!(state, HeartbeatState::Left | HeartbeatState::Failed(_));
        self.membership.as_ref().is_some_and(|membership| !over(membership.state()))
    }
}

async fn join(session: Session, options: Options) -> Result<OwnMembership> {
    if options.open {
        session.open().await?;
    }
    let mut join = session
        .join([RtcTransport::livekit(&options.livekit)])
        .with_intent(&options.intent)
        .with_delay(Duration::from_secs(options.delay));
    if let Some(dialect) = options.dialect {
        join = join.with_dialect(match dialect {
            Dialect::Msc4143 => rtc::Dialect::Msc4143,
            Dialect::ElementCall => rtc::Dialect::ElementCall,
        });
    }
    Ok(join.await?)
}
