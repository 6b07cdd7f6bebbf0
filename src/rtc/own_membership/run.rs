//! The task of a membership: it feeds the attendance, and performs what that says.

use std::{future::pending, sync::Arc};

use eyeball::Subscriber;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tracing::warn;

use super::{MemberConfig, Shared};
use crate::{
    driver::{BoxFuture, Timer, optional, until},
    heartbeat::{HeartbeatState, InBackground},
    rtc::{
        attendance::{Action, Attendance, Request, SlotAnswer},
        session::SessionChanges,
        snapshot::SessionSnapshot,
    },
    time::Moment,
};

pub(super) struct Run {
    shared: Arc<Shared>,
    timer: Arc<dyn Timer>,
    attendance: Attendance,
    states: Option<Subscriber<HeartbeatState>>,
    /// The heartbeat is being told to leave.
    leaving: Option<BoxFuture<'static, HeartbeatState>>,
    /// The server is being asked whether the slot is closed.
    asking: Option<BoxFuture<'static, SessionSnapshot>>,
}

impl Run {
    /// Takes over from where the first heartbeat has been started.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let timer = shared.session.rtc().sticky().timer().clone();
        let attendance = Attendance::new();
        Self { shared, timer, attendance, states: None, leaving: None, asking: None }
    }

    /// Runs until the member is out for good, or its handle is dropped.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut changes: SessionChanges,
    ) {
        self.follow_heartbeat();
        loop {
            self.perform().await;
            if self.attendance.is_over() {
                return;
            }
            tokio::select! {
                // Requests first: nothing that the owner no longer wants is started.
                biased;
                request = requests.recv() => match request {
                    Some(request) => self.attendance.handle_request(request),
                    // The handle is gone without having left: as after a crash, the leave fires.
                    None => return,
                },
                state = next_state(&mut self.states) => {
                    self.attendance.handle_heartbeat_state(state);
                }
                _ = optional(&mut self.leaving) => self.leaving = None,
                Some(update) = changes.next() => {
                    let is_closed = self.is_closed(&update.snapshot);
                    self.attendance.handle_slot(is_closed);
                }
                session = optional(&mut self.asking) => {
                    self.asking = None;
                    let answer = self.slot_answer(&session);
                    self.attendance.handle_slot_answer(self.now(), answer);
                }
                () = until(&*self.timer, self.attendance.next_deadline()) => {}
            }
        }
    }

    /// Does what the attendance says, and shows how the member stands.
    async fn perform(&mut self) {
        while let Some(action) = self.attendance.poll_action(self.now()) {
            let heartbeat = self.shared.heartbeat();
            match action {
                Action::Start => {
                    self.show();
                    self.start().await;
                }
                Action::Forget => {
                    self.shared.forget_heartbeat();
                    self.states = None;
                    self.leaving = None;
                }
                Action::AskAboutSlot => {
                    let session = self.shared.session.clone();
                    self.asking = Some(async move { session.snapshot().await }.boxed());
                }
                Action::Update => {
                    if let Some(heartbeat) = heartbeat {
                        heartbeat.update_raw(self.shared.join_content());
                    }
                }
                Action::Leave(reason) => {
                    let content = self.shared.leave_content(&reason);
                    self.leaving = heartbeat.map(|heartbeat| {
                        async move { heartbeat.leave_with(content).await }.boxed()
                    });
                }
                Action::Hold => {
                    if let Some(heartbeat) = heartbeat {
                        heartbeat.suspend(InBackground::Hold);
                    }
                }
                Action::Resume => {
                    if let Some(heartbeat) = heartbeat {
                        heartbeat.resume();
                    }
                }
            }
        }
        if !self.attendance.is_asking() {
            self.asking = None;
        }
        self.show();
    }

    async fn start(&mut self) {
        let started = self.shared.start_heartbeat().await;
        if let Err(error) = &started {
            warn!("a membership could not join again: {error}");
            self.shared.now().last_error = Some(error.to_string());
        }
        self.attendance.handle_started(self.now(), started.is_ok());
        self.follow_heartbeat();
    }

    /// Listens to the heartbeat that is there, from its state at this moment on.
    fn follow_heartbeat(&mut self) {
        let Some(heartbeat) = self.shared.heartbeat() else { return };
        self.states = Some(heartbeat.subscribe_state());
        self.attendance.handle_heartbeat_state(heartbeat.state());
    }

    fn show(&self) {
        self.shared.now().left_as = self.attendance.left_as().cloned();
        self.shared.state.set_if_not_eq(self.attendance.state());
    }

    fn slot_answer(&self, session: &SessionSnapshot) -> SlotAnswer {
        match session.is_state_known() {
            false => SlotAnswer::Unknown,
            true if self.is_closed(session) => SlotAnswer::Closed,
            true => SlotAnswer::Open,
        }
    }

    /// Whether others would not count our member in this session.
    fn is_closed(&self, session: &SessionSnapshot) -> bool {
        let MemberConfig { slot_id, dialect, .. } = &self.shared.config;
        let application = &self.shared.now().application;
        session.obstacle(slot_id, *dialect, application).is_some()
    }

    fn now(&self) -> Moment {
        self.timer.now()
    }
}

async fn next_state(states: &mut Option<Subscriber<HeartbeatState>>) -> HeartbeatState {
    if let Some(states) = states
        && let Some(state) = states.next().await
    {
        return state;
    }
    pending().await
}
