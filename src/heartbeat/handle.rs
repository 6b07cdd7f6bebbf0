//! The handle on a heartbeat.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use eyeball::{SharedObservable, Subscriber};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{
    HeartbeatState, InBackground,
    perform::Context,
    registry::{Live, lock},
    request::Wish,
};
use crate::{
    delayed::DelayId, driver::Task, outbox::as_object, time::Deadline, view::StickyContent,
};

/// A member that is there for as long as this is. Made by [`StartHeartbeat`](super::StartHeartbeat).
///
/// Dropping it without [`leave`](Self::leave) is what a crash is: the armed leave fires within the
/// delay.
pub struct Heartbeat {
    pub(super) context: Arc<Context>,
    pub(super) state: SharedObservable<HeartbeatState>,
    pub(super) wishes: mpsc::UnboundedSender<Wish>,
    pub(super) live: Arc<Mutex<Option<Live>>>,
    pub(super) _task: Option<Task>,
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // At once, and not when the task has ended: the key may be wanted again.
        lock(&self.live).take();
    }
}

impl Heartbeat {
    /// How the member stands.
    pub fn state(&self) -> HeartbeatState {
        self.state.get()
    }

    /// How the member stands, and each change of that.
    pub fn subscribe_state(&self) -> Subscriber<HeartbeatState> {
        self.state.subscribe()
    }

    /// The pulse: until when the leave that is armed does not fire, as far as is known. Each beat moves it
    /// on; once it is over, everybody may see the member gone. `None` where none is armed, as when
    /// [`HeartbeatState::Degraded`], or somebody else restarts it.
    pub fn armed_until(&self) -> Option<Deadline> {
        self.context.kept().armed_until
    }

    /// Until when what it has sent outranks an event of the same key that is sticky for a shorter time.
    pub(crate) fn outranked_until(&self) -> Option<Deadline> {
        self.context.kept().outranked_until
    }

    /// What went wrong last, in words; for [`HeartbeatState::Failed`] and [`HeartbeatState::ProbablyLeft`].
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

    /// Leaves. Returns when the server has the leave, or [`HeartbeatState::Failed`] is reached; until then it
    /// is tried again and again. Giving up waiting is safe: the armed leave fires all the same.
    pub async fn leave(&self) -> HeartbeatState {
        self.wish(Wish::Leave);
        until_left(&self.state).await
    }

    /// As [`leave`](Self::leave), with another content than the armed leave has: such as a reason, where
    /// the armed one says that the connection was lost. It is an event of the same type and key.
    ///
    /// It is sent first, and what is armed is cancelled after it; or fired, where the server refuses it.
    /// Should what is armed fire meanwhile, that is a leave besides another. Nothing is sent where nobody
    /// has seen the member, or where it has left already, as in the background.
    pub async fn leave_with(&self, content: Map<String, Value>) -> HeartbeatState {
        self.wish(Wish::LeaveWith(content));
        until_left(&self.state).await
    }

    /// Takes that the application goes into the background. With [`InBackground::Leave`] the member leaves.
    /// With [`InBackground::Hold`] it stays for as long as the armed leave holds, which
    /// [`HeartbeatState::Suspended`] tells, and no request goes out.
    pub fn suspend(&self, in_background: InBackground) {
        self.wish(Wish::Suspend(in_background));
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
pub(crate) async fn until_left(state: &SharedObservable<HeartbeatState>) -> HeartbeatState {
    let mut states = state.subscribe();
    loop {
        match states.get() {
            state @ (HeartbeatState::Left | HeartbeatState::Failed(_)) => return state,
            state => {
                if states.next().await.is_none() {
                    return state;
                }
            }
        }
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeat")
            .field("key", &self.context.key)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
