//! Attendance: whether our member is to be in the session, and which heartbeat keeps it there.
//!
//! In (`handle_..`): what the owner asks for, how the heartbeat stands, whether the slot is closed. Out
//! (`poll_action`): starting, holding and ending heartbeats, asking the server about the slot; and the state
//! to show. Never: a clock, I/O, a membership's content.
//!
//! One heartbeat follows another, because the proposal wants another member id for each join. A heartbeat
//! knows nothing of that: it ends, and the attendance decides whether the next one starts.

use std::{collections::VecDeque, time::Duration};

use super::leave::LeaveReason;
use crate::{
    heartbeat::{HeartbeatFailure, HeartbeatState, InBackground},
    time::{Deadline, Moment},
};

/// How long after a failed start the next one follows.
const START_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How long after the server's answer about the slot it is asked again, while the main loop still says that
/// the slot is closed.
const SLOT_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// What the owner asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// To show what the member says of itself by now.
    Update,
    /// To leave for good.
    Leave(LeaveReason),
    /// To send nothing for as long as the application is in the background.
    Suspend(InBackground),
    /// To be back from the background.
    Resume,
}

/// What the server says about the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotAnswer {
    Open,
    Closed,
    /// The server did not tell the room's state.
    Unknown,
}

/// What the runner does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Starts a heartbeat under the next member id. [`Attendance::handle_started`] takes what became of it.
    Start,
    /// Gives the heartbeat the content that the member has by now.
    Update,
    /// Has the heartbeat leave.
    Leave(LeaveReason),
    /// Has the heartbeat hold its lease, without a request.
    Hold,
    /// Has the heartbeat go on.
    Resume,
    /// Lets go of the heartbeat, which has ended.
    Forget,
    /// Asks the server whether the slot is closed. [`Attendance::handle_slot_answer`] takes the answer.
    AskAboutSlot,
}

/// What the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    In,
    /// To be in for as long as the lease holds. The application is in the background.
    Held,
    /// To be out until the application is back from the background.
    Away,
    Out,
}

/// The heartbeat of today's member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// There is no heartbeat. The next one starts at the deadline, or at once.
    None {
        start_at: Option<Deadline>,
    },
    /// The runner starts a heartbeat.
    Starting,
    Live,
    /// The heartbeat leaves because the application went into the background.
    GoingAway,
}

/// What is known about the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// The slot is open, or the member is not in it.
    None,
    /// The main loop says that the slot is closed. The server is to be asked.
    Unasked,
    Asking,
    /// The server has answered. It is asked again at the deadline, if the main loop still says the same.
    Answered {
        ask_again_at: Deadline,
    },
}

/// The pure machine of one attendance.
///
/// To drive it: call a `handle_..` method for each thing that happens, then [`poll_action`](Self::poll_action)
/// until it returns `None`, then show [`state`](Self::state) and [`left_as`](Self::left_as). Poll again at
/// [`next_deadline`](Self::next_deadline). All is over once [`is_over`](Self::is_over) says so.
#[derive(Debug)]
pub(super) struct Attendance {
    wanted: Wanted,
    member: Member,
    /// Whether the slot is closed to us, as the main loop has it.
    is_closed: bool,
    doubt: Doubt,
    /// Whether a heartbeat has joined before. The next one joins again.
    has_joined: bool,
    state: HeartbeatState,
    left_as: Option<LeaveReason>,
    is_over: bool,
    actions: VecDeque<Action>,
}

impl Attendance {
    /// Creates the attendance of a member whose first heartbeat has been started, in an open slot.
    pub(super) fn new() -> Self {
        Self {
            wanted: Wanted::In,
            member: Member::Live,
            is_closed: false,
            doubt: Doubt::None,
            has_joined: false,
            state: HeartbeatState::Joining,
            left_as: None,
            is_over: false,
            actions: VecDeque::new(),
        }
    }

    /// Takes what the owner asks for.
    pub(super) fn handle_request(&mut self, request: Request) {
        if self.is_over {
            return;
        }
        match request {
            Request::Update => {
                if self.has_heartbeat() {
                    self.actions.push_back(Action::Update);
                }
            }
            Request::Leave(reason) => self.leave(reason),
            Request::Suspend(InBackground::Hold) => self.suspend_holding(),
            Request::Suspend(InBackground::Leave) => self.suspend_away(),
            Request::Resume => self.resume(),
        }
        self.settle();
    }

    /// Takes how the heartbeat stands.
    pub(super) fn handle_heartbeat_state(&mut self, state: HeartbeatState) {
        if self.is_over || !self.has_heartbeat() {
            return;
        }
        match state {
            HeartbeatState::Left
            | HeartbeatState::Failed(HeartbeatFailure::LeaveFired | HeartbeatFailure::Removed) => {
                self.handle_ended(state == HeartbeatState::Left);
            }
            HeartbeatState::Failed(_) => self.end(state),
            _ => {
                self.state = match (self.wanted, state) {
                    (Wanted::Away, _) => HeartbeatState::Suspended { holds_until: None },
                    (Wanted::Out, _) => HeartbeatState::Leaving,
                    (_, HeartbeatState::Joining) if self.has_joined => HeartbeatState::Rejoining,
                    _ => state,
                };
                self.has_joined |=
                    matches!(state, HeartbeatState::Joined | HeartbeatState::Degraded);
            }
        }
        self.settle();
    }

    /// Takes whether the heartbeat of [`Action::Start`] was started.
    pub(super) fn handle_started(&mut self, now: Moment, is_started: bool) {
        if self.member != Member::Starting {
            return;
        }
        if !is_started {
            self.member = Member::None { start_at: Some(now.deadline(START_RETRY_INTERVAL)) };
            return self.settle();
        }
        self.member = Member::Live;
        // What was asked for in between.
        match self.wanted {
            Wanted::In => {}
            Wanted::Held => self.actions.push_back(Action::Hold),
            Wanted::Away => self.go_away(),
            Wanted::Out => self.send_leave(self.left_as.clone().unwrap_or_default()),
        }
    }

    /// Takes whether the slot is closed to our member, as the main loop has it.
    pub(super) fn handle_slot(&mut self, is_closed: bool) {
        if self.is_over {
            return;
        }
        self.is_closed = is_closed;
        self.look_at_slot();
    }

    /// Takes what the server says about the slot.
    pub(super) fn handle_slot_answer(&mut self, now: Moment, answer: SlotAnswer) {
        if self.doubt != Doubt::Asking {
            return;
        }
        self.doubt = Doubt::Answered { ask_again_at: now.deadline(SLOT_RETRY_INTERVAL) };
        match answer {
            // The member stays in, or out, as it is.
            SlotAnswer::Unknown => {}
            SlotAnswer::Closed => self.leave(LeaveReason::with_code(LeaveReason::SLOT_CLOSED)),
            SlotAnswer::Open => self.is_closed = false,
        }
        self.settle();
    }

    /// Returns what to do next, if anything.
    pub(super) fn poll_action(&mut self, now: Moment) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if self.is_over {
            return None;
        }
        if let Doubt::Answered { ask_again_at } = self.doubt
            && ask_again_at.is_over(now)
        {
            self.doubt = Doubt::None;
            self.look_at_slot();
        }
        if self.doubt == Doubt::Unasked {
            self.doubt = Doubt::Asking;
            return Some(Action::AskAboutSlot);
        }
        if let Member::None { start_at } = self.member
            && self.may_start()
            && start_at.is_none_or(|at| at.is_over(now))
        {
            self.member = Member::Starting;
            return Some(Action::Start);
        }
        None
    }

    /// Returns when to poll again, if nothing happens before.
    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        let start_at = match self.member {
            // To start again after a start that failed.
            Member::None { start_at } if self.may_start() => start_at,
            _ => None,
        };
        let ask_at = match self.doubt {
            // To ask again about a slot that the main loop says is closed.
            Doubt::Answered { ask_again_at } => Some(ask_again_at),
            _ => None,
        };
        start_at.into_iter().chain(ask_at).min()
    }

    /// Returns how the member stands.
    pub(super) fn state(&self) -> HeartbeatState {
        self.state
    }

    /// Returns how the member left, or is about to.
    pub(super) fn left_as(&self) -> Option<&LeaveReason> {
        self.left_as.as_ref()
    }

    /// Returns whether the server is being asked about the slot. An answer that comes later is void.
    pub(super) fn is_asking(&self) -> bool {
        self.doubt == Doubt::Asking
    }

    /// Returns whether nothing follows any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    fn has_heartbeat(&self) -> bool {
        matches!(self.member, Member::Live | Member::GoingAway)
    }

    fn may_start(&self) -> bool {
        self.wanted == Wanted::In && !self.is_closed && !self.is_over
    }

    fn leave(&mut self, reason: LeaveReason) {
        if self.wanted == Wanted::Out {
            return;
        }
        self.wanted = Wanted::Out;
        self.doubt = Doubt::None;
        self.state = HeartbeatState::Leaving;
        self.send_leave(reason.clone());
        self.left_as = Some(reason);
    }

    fn suspend_holding(&mut self) {
        if self.wanted != Wanted::In {
            return;
        }
        self.wanted = Wanted::Held;
        self.look_at_slot();
        match self.has_heartbeat() {
            true => self.actions.push_back(Action::Hold),
            false => self.state = HeartbeatState::Suspended { holds_until: None },
        }
    }

    fn suspend_away(&mut self) {
        if !matches!(self.wanted, Wanted::In | Wanted::Held) {
            return;
        }
        self.wanted = Wanted::Away;
        self.look_at_slot();
        self.state = HeartbeatState::Suspended { holds_until: None };
        self.go_away();
    }

    fn resume(&mut self) {
        match self.wanted {
            Wanted::Held if self.has_heartbeat() => self.actions.push_back(Action::Resume),
            Wanted::Held => self.state = HeartbeatState::Rejoining,
            Wanted::Away => {
                self.state = HeartbeatState::Rejoining;
                // The owner does not wait for a retry.
                if let Member::None { start_at } = &mut self.member {
                    *start_at = None;
                }
            }
            Wanted::In | Wanted::Out => return,
        }
        self.wanted = Wanted::In;
        self.look_at_slot();
    }

    fn go_away(&mut self) {
        if self.has_heartbeat() {
            self.member = Member::GoingAway;
            self.send_leave(LeaveReason::with_code(LeaveReason::ON_PURPOSE));
        }
    }

    fn send_leave(&mut self, reason: LeaveReason) {
        if self.has_heartbeat() {
            self.actions.push_back(Action::Leave(reason));
        }
    }

    /// Takes the end of a heartbeat: it has left, or others have ended its member.
    fn handle_ended(&mut self, has_left: bool) {
        let was_going_away = self.member == Member::GoingAway;
        self.member = Member::None { start_at: None };
        self.actions.push_back(Action::Forget);
        match self.wanted {
            Wanted::Away | Wanted::Out => {}
            // All of the client's heartbeats leave, as before a logout.
            _ if has_left && !was_going_away => {
                self.wanted = Wanted::Out;
                self.doubt = Doubt::None;
                let reason = || LeaveReason::with_code(LeaveReason::ON_PURPOSE);
                self.left_as.get_or_insert_with(reason);
            }
            Wanted::In => self.state = HeartbeatState::Rejoining,
            Wanted::Held => self.state = HeartbeatState::Suspended { holds_until: None },
        }
    }

    /// Has the server asked where the main loop says that the slot is closed. Why not leave at once? What a
    /// main loop brings may be old.
    fn look_at_slot(&mut self) {
        // In the background no request goes out.
        if self.wanted != Wanted::In || !self.is_closed {
            self.doubt = Doubt::None;
        } else if self.doubt == Doubt::None {
            self.doubt = Doubt::Unasked;
        }
    }

    /// Ends it, once the member is out for good.
    fn settle(&mut self) {
        if self.wanted == Wanted::Out && matches!(self.member, Member::None { .. }) {
            self.end(HeartbeatState::Left);
        }
    }

    fn end(&mut self, state: HeartbeatState) {
        self.state = state;
        self.doubt = Doubt::None;
        self.is_over = true;
    }
}

#[cfg(test)]
mod simulation;
