//! Heartbeat: a member that is there for as long as its owner calls, and gone soon after.
//!
//! In (`handle_..`): what the owner wants, and what became of each action, each with the moment.
//! Out (`poll_action`): the next action, one at a time; when to ask again; the state to show. No
//! clock, no I/O, no contents and no delay ids: whoever drives this keeps those, under the numbers
//! that the actions carry.
//!
//! The laws (`arm` is scheduling the leave with the server, MSC4140; a *lease* is a leave that is
//! armed):
//! - A join is sent only while a lease is known to be held, and only if the request's timeout ends
//!   before the lease would fire. So a crash at any moment leaves no ghost for longer than the delay.
//! - What is not known is asked: an unanswered arming or sending is repeated under its number, a
//!   lease that may have fired is restarted, and the answer tells.
//! - A lease that another one has taken over from is cancelled until its fate is known, before the
//!   join is sent again: an old leave never ends a new join.
//! - After leaving nothing is sent that could bring the member back.
//!
//! What this relies on: a request lands within its timeout or never. What a network delivers later
//! is outside of the promise.

mod pace;
#[cfg(feature = "client")]
mod run;
#[cfg(feature = "client")]
mod store;

use std::time::Duration;

pub use self::pace::{Pace, PaceError};
#[cfg(feature = "client")]
pub(crate) use self::run::Beating;
#[cfg(feature = "client")]
pub use self::run::{HeartbeatHandle, StartHeartbeat, StartHeartbeatError};
use crate::time::{Deadline, Moment};

/// The number of a lease, of this heartbeat's. Every try to arm it carries the same transaction id
/// and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(u64);

/// The number of an event to be sent. Every try carries the same transaction id and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(u64);

/// What to do next. It is over within its timeout, everything that belongs to it included, and its
/// [`Outcome`] is handed to [`Heartbeat::handle_outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// What to do.
    pub step: Step,
    /// For how long to wait for the answer.
    pub timeout: Duration,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Schedule the leave with this delay. What is to be scheduled is stored first, so that a later
    /// process can find it.
    Arm {
        /// Which.
        lease: LeaseId,
        /// After how long it fires.
        delay: Duration,
    },
    /// Restart a lease's delay.
    Restart(LeaseId),
    /// Send a lease's leave now.
    Fire(LeaseId),
    /// Cancel a lease.
    Cancel(LeaseId),
    /// Send the join, with the newest content at the first try.
    Join {
        /// Which.
        send: SendId,
        /// For how long it is sticky.
        sticky: Duration,
    },
    /// Send the leave as an ordinary event.
    Leave {
        /// Which.
        send: SendId,
        /// For how long it is sticky.
        sticky: Duration,
    },
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The server has done it.
    Done,
    /// The server does not have that lease any more: it was sent or cancelled before.
    Gone,
    /// Nobody knows: no answer came in time, or an error that says nothing.
    Unknown,
    /// The server has not done it, as it wants fewer requests.
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server has not done it, as too many events are scheduled.
    QuotaFull {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server has not done it, as it has no delayed events, or they are disabled.
    NoDelayedEvents,
    /// The server has not done it, as the delay is too long.
    TooLong {
        /// The longest that it takes, if it said so.
        max: Option<Duration>,
    },
    /// The server has not done it, and will not.
    Refused,
}

/// How the member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// The leave is being armed, or the join is on its way.
    Joining,
    /// Everybody can see the member, and the leave is armed.
    Joined,
    /// Everybody can see the member, and no leave is armed, as the server takes none: after a crash
    /// everybody sees it for as long as the last event is sticky, [`Pace::degraded_sticky`] at most.
    Degraded,
    /// The leave may have fired, as the server could not be reached in time.
    ProbablyLeft {
        /// Since when: [`Deadline::passed`] tells how long ago that is.
        since: Deadline,
    },
    /// The leave has fired, and the member is about to be there again.
    Rejoining,
    /// Left for as long as the application is in the background, or about to.
    Suspended {
        /// Until when everybody sees the member, where that was to be kept: [`Deadline::left`] tells
        /// for how long.
        holds_until: Option<Deadline>,
    },
    /// The server is being told that the member leaves.
    Leaving,
    /// The server has the leave, or there was nothing to leave. Nothing follows.
    Left,
    /// It cannot go on, and the member has left.
    Failed(Failure),
}

impl State {
    /// The state in one word, as the examples print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Joined => "joined",
            Self::Degraded => "degraded",
            Self::ProbablyLeft { .. } => "probably_left",
            Self::Rejoining => "rejoining",
            Self::Suspended { .. } => "suspended",
            Self::Leaving => "leaving",
            Self::Left => "left",
            Self::Failed(_) => "failed",
        }
    }
}

/// Why a heartbeat cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The server refuses the leave, as one who has no right to send it.
    LeaveRefused,
    /// The server refuses the join, as one who has no right to send it.
    JoinRefused,
    /// The server refuses the delay as too long.
    DelayTooLong {
        /// The longest that it takes, if it said so.
        max: Option<Duration>,
    },
}

/// What the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    In,
    /// To be left alone with the lease that is held.
    Kept,
    /// To be out, and to come back when told.
    Away,
    Out,
    /// To be out, as it cannot go on.
    Dead(Failure),
}

/// A leave that is armed, as far as is known.
#[derive(Clone, Copy, Debug)]
struct Lease {
    id: LeaseId,
    /// Before this it does not fire.
    holds_until: Deadline,
}

/// A leave whose arming has not been answered.
#[derive(Clone, Copy, Debug)]
struct Arming {
    id: LeaseId,
    /// When it was first tried: from then on it may be armed.
    since: Option<Moment>,
}

/// A leave that another one took over from.
#[derive(Clone, Copy, Debug)]
struct Retiring {
    id: LeaseId,
    /// Whether its delay id is known; else arming it once more tells.
    is_known: bool,
}

/// An event whose sending has not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sending {
    id: SendId,
    version: u64,
    sticky: Duration,
}

/// What the others see of the member, as far as we know.
#[derive(Clone, Copy, Debug)]
struct Seen {
    version: u64,
    sticky: Duration,
    /// When to send it again, well ahead of its end.
    refresh_at: Deadline,
}

/// The pure machine of one heartbeat.
///
/// Name by direction: `handle_..` takes what happened, `poll_..` gives what to do. After each
/// `handle_..` and at each [`deadline`](Self::deadline), poll until nothing comes.
#[derive(Debug)]
pub struct Heartbeat {
    pace: Pace,
    delay: Duration,
    /// For how long join and leave are sticky.
    sticky: Duration,
    wanted: Wanted,
    rng: fastrand::Rng,
    next_number: u64,
    /// The version of the content that is wanted.
    version: u64,
    held: Option<Lease>,
    arming: Option<Arming>,
    retiring: Vec<Retiring>,
    /// The last join that was answered, unless a leave has fired since.
    seen: Option<Seen>,
    /// The last join that was not.
    sending: Option<Sending>,
    leaving: Option<SendId>,
    /// Firing the lease has failed in a way that repeating does not mend: the leave is sent.
    must_send_leave: bool,
    /// Others may see the member: some join may have landed and no leave after it.
    is_exposed: bool,
    has_fired: bool,
    is_degraded: bool,
    is_delegated: bool,
    /// Our latest event of the full stickiness is over at this: until then a shorter one loses.
    outranked_until: Option<Deadline>,
    /// To restart the held lease.
    restart_at: Option<Deadline>,
    /// To arm where the server would not.
    arm_at: Option<Deadline>,
    /// To hand over to a fresh lease, as the room's key has changed hands.
    hand_over_at: Option<Deadline>,
    /// To try again after a failure.
    again_at: Option<Deadline>,
    failures: u32,
    doing: Option<(Step, Moment)>,
    is_done: bool,
}

impl Heartbeat {
    /// A member that is wanted from now on. `seed` is for the jitter.
    pub fn new(pace: Pace, seed: u64) -> Self {
        Self {
            delay: pace.delay(),
            sticky: pace.sticky(),
            pace,
            wanted: Wanted::In,
            rng: fastrand::Rng::with_seed(seed),
            next_number: 0,
            version: 0,
            held: None,
            arming: None,
            retiring: Vec::new(),
            seen: None,
            sending: None,
            leaving: None,
            must_send_leave: false,
            is_exposed: false,
            has_fired: false,
            is_degraded: false,
            is_delegated: false,
            outranked_until: None,
            restart_at: None,
            arm_at: None,
            hand_over_at: None,
            again_at: None,
            failures: 0,
            doing: None,
            is_done: false,
        }
    }

    /// Takes a leave that an earlier process has armed, or was about to, with the stickiness that it
    /// and its join had: a fresh one takes over from it before the join is sent. Its number is for
    /// [`Step::Arm`], which repeats the request word by word and so tells the delay id, and for the
    /// steps after that.
    pub fn handle_found(&mut self, now: Moment, sticky: Duration) -> LeaseId {
        let id = LeaseId(self.number());
        self.retiring.push(Retiring { id, is_known: false });
        // That process's join may still be there. What is shorter would lose to it.
        self.is_exposed = true;
        self.sticky = self.sticky.max(sticky);
        self.outranked_until = Some(now.deadline(self.sticky));
        id
    }

    /// The content has changed: it is sent as soon as may be.
    pub fn handle_update(&mut self) {
        self.version += 1;
    }

    /// The room's key has changed hands, so that somebody may not be able to read the leave that is
    /// armed: after a while, in which more such news may come, a fresh one takes over.
    pub fn handle_key_change(&mut self, now: Moment) {
        if self.held.is_some() || self.arming.is_some() {
            self.hand_over_at.get_or_insert(now.deadline(self.pace.gather()));
        }
    }

    /// The owner leaves. What follows is over when [`state`](Self::state) says so.
    pub fn handle_leave(&mut self) {
        if !matches!(self.wanted, Wanted::Dead(_)) {
            self.wanted = Wanted::Out;
        }
        self.again_at = None;
    }

    /// The application goes into the background: the member leaves, unless it is to be kept there
    /// for as long as the lease holds.
    pub fn handle_suspend(&mut self, keep: bool) {
        if self.wanted == Wanted::In {
            self.wanted = if keep { Wanted::Kept } else { Wanted::Away };
            self.again_at = None;
        }
    }

    /// The application is back: what became of the lease is asked first.
    pub fn handle_resume(&mut self, now: Moment) {
        if matches!(self.wanted, Wanted::Kept | Wanted::Away) {
            if self.wanted == Wanted::Away {
                // A leave may be out there: the next join is another event, and so is the next leave.
                self.must_join_anew();
                self.leaving = None;
                self.must_send_leave = false;
            }
            self.wanted = Wanted::In;
            self.is_done = false;
            self.again_at = None;
            self.restart_at = Some(now.deadline(Duration::ZERO));
        }
    }

    /// Somebody else restarts the lease from now on, and fires it (MSC4195).
    pub fn handle_delegated(&mut self) {
        self.is_delegated = true;
    }

    /// The lease is ours again: what became of it is asked first.
    pub fn handle_taken_back(&mut self, now: Moment) {
        self.is_delegated = false;
        self.restart_at = Some(now.deadline(Duration::ZERO));
    }

    /// A leave of ours has come back from the server, with its delay id: the lease has fired.
    pub fn handle_fired(&mut self, lease: LeaseId) {
        self.retiring.retain(|retiring| retiring.id != lease);
        if self.held.is_some_and(|held| held.id == lease) {
            self.held_is_gone();
            // The leave came after the last join: none is sent that could land later than that.
            self.is_exposed = false;
        }
    }

    /// The member may be gone without our having left: what became of the lease is asked next.
    pub fn handle_doubt(&mut self, now: Moment) {
        self.restart_at = Some(now.deadline(Duration::ZERO));
    }

    /// Takes what became of the last action.
    pub fn handle_outcome(&mut self, now: Moment, outcome: Outcome) {
        let Some((step, started)) = self.doing.take() else {
            return;
        };
        match outcome {
            Outcome::Unknown => self.back_off(now, None),
            Outcome::RateLimited { retry_after } => self.back_off(now, retry_after),
            _ => {
                self.failures = 0;
                self.again_at = None;
            }
        }
        match step {
            Step::Arm { lease, .. } => self.handle_armed(now, lease, outcome),
            Step::Restart(lease) => self.handle_restarted(now, started, lease, outcome),
            Step::Fire(lease) => self.handle_fire(now, lease, outcome),
            Step::Cancel(lease) => match outcome {
                Outcome::Done | Outcome::Gone => {
                    self.retiring.retain(|retiring| retiring.id != lease);
                }
                Outcome::Unknown | Outcome::RateLimited { .. } => {}
                _ => self.back_off(now, None),
            },
            Step::Join { send, .. } => self.handle_joined(started, send, outcome),
            Step::Leave { .. } => match outcome {
                Outcome::Done => self.handle_left(),
                Outcome::Unknown | Outcome::RateLimited { .. } => {}
                // We may not send there any more. The lease, where there is one, may.
                _ => {
                    self.must_send_leave = false;
                    if self.held.is_none() {
                        self.handle_left();
                    } else {
                        self.back_off(now, None);
                    }
                }
            },
        }
    }

    /// What to do next; nothing while something is being done.
    pub fn poll_action(&mut self, now: Moment) -> Option<Action> {
        if self.doing.is_some() || self.is_done {
            return None;
        }
        if self.again_at.is_some_and(|again_at| !again_at.is_over(now)) {
            return None;
        }
        self.again_at = None;
        let step = match self.wanted {
            Wanted::In => self.next_to_be_in(now),
            Wanted::Kept => None,
            Wanted::Away | Wanted::Out | Wanted::Dead(_) => {
                let next = self.next_to_be_out(now);
                self.is_done = next.is_none();
                next
            }
        }?;
        self.doing = Some((step, now));
        Some(Action { step, timeout: self.timeout() })
    }

    /// When to poll again, if nothing happens before. Also when [`state`](Self::state) changes by
    /// itself.
    pub fn deadline(&self, now: Moment) -> Option<Deadline> {
        let holds_until = self.held.map(|held| held.holds_until);
        let state_changes = holds_until.filter(|until| !until.is_over(now));
        let acts = match self.wanted {
            _ if self.doing.is_some() || self.is_done => None,
            Wanted::Kept => None,
            Wanted::In => {
                let may_join = self.held.is_some() || self.is_degraded;
                let refresh_at = self.seen.filter(|_| may_join).map(|seen| seen.refresh_at);
                let dues = [refresh_at, self.restart_due(), self.arm_at, self.hand_over_at];
                // While it waits to try again nothing else is done.
                self.again_at.or(dues.into_iter().flatten().min())
            }
            Wanted::Away | Wanted::Out | Wanted::Dead(_) => self.again_at,
        };
        state_changes.into_iter().chain(acts).min()
    }

    /// How the member stands.
    pub fn state(&self, now: Moment) -> State {
        let is_seen = self.seen.is_some();
        match self.wanted {
            Wanted::Dead(failure) if self.is_done => State::Failed(failure),
            Wanted::Out if self.is_done => State::Left,
            Wanted::Dead(_) | Wanted::Out => State::Leaving,
            Wanted::Away => State::Suspended { holds_until: None },
            Wanted::Kept => State::Suspended {
                holds_until: self.held.filter(|_| is_seen).map(|held| held.holds_until),
            },
            Wanted::In => match self.held {
                _ if self.has_fired => State::Rejoining,
                Some(held) if held.holds_until.is_over(now) && self.is_exposed => {
                    if self.is_delegated && is_seen {
                        return State::Joined;
                    }
                    State::ProbablyLeft { since: held.holds_until }
                }
                Some(_) if is_seen && !self.is_degraded => State::Joined,
                _ if is_seen => State::Degraded,
                _ => State::Joining,
            },
        }
    }

    /// Whether nothing follows any more, whatever happens.
    pub fn is_over(&self) -> bool {
        self.is_done && matches!(self.wanted, Wanted::Out | Wanted::Dead(_))
    }

    /// Whether this lease may still be armed, so that what is stored of it must stay.
    pub fn needs(&self, lease: LeaseId) -> bool {
        self.held.is_some_and(|held| held.id == lease)
            || self.arming.is_some_and(|arming| arming.id == lease)
            || self.retiring.iter().any(|retiring| retiring.id == lease)
    }

    /// For how long join and leave are sticky: as long as those of an earlier process, if that was
    /// longer, as a shorter one would lose to them.
    pub fn sticky(&self) -> Duration {
        self.sticky
    }

    /// The lease that is held, to hand it to somebody else.
    pub fn held(&self) -> Option<LeaseId> {
        self.held.map(|held| held.id)
    }

    fn next_to_be_in(&mut self, now: Moment) -> Option<Step> {
        let is_due = |deadline: Option<Deadline>| deadline.is_some_and(|it| it.is_over(now));
        // Before all else, and also if it may have fired: then the answer tells.
        if let Some(held) = self.held
            && is_due(self.restart_due())
        {
            return Some(Step::Restart(held.id));
        }
        if is_due(self.hand_over_at) {
            self.hand_over_at = None;
            if self.arming.is_none() {
                self.arming = Some(Arming { id: LeaseId(self.number()), since: None });
            }
        }
        if is_due(self.arm_at) {
            self.arm_at = None;
        }
        if self.held.is_none() && self.arming.is_none() {
            self.arming = Some(Arming { id: LeaseId(self.number()), since: None });
        }
        if self.arm_at.is_none()
            && let Some(arming) = &mut self.arming
        {
            arming.since.get_or_insert(now);
            return Some(Step::Arm { lease: arming.id, delay: self.delay });
        }
        if self.held.is_none()
            && let Some(at) = self.retiring.iter().position(|retiring| retiring.is_known)
        {
            // The server takes no fresh one, and an earlier process's is better than none.
            let Retiring { id, .. } = self.retiring.remove(at);
            self.held = Some(Lease { id, holds_until: now.deadline(Duration::ZERO) });
            self.restart_at = Some(now.deadline(Duration::ZERO));
            return Some(Step::Restart(id));
        }
        if let Some(step) = self.retire() {
            return Some(step);
        }
        self.next_join(now)
    }

    fn next_join(&mut self, now: Moment) -> Option<Step> {
        let sticky = if self.held.is_some() {
            self.sticky
        } else if self.is_degraded && self.may_be_short(now) {
            self.pace.degraded_sticky()
        } else {
            return None;
        };
        let is_due = self.seen.is_none_or(|seen| {
            seen.version != self.version || seen.sticky != sticky || seen.refresh_at.is_over(now)
        });
        if !is_due {
            return None;
        }
        if let Some(held) = self.held {
            // Whoever it was delegated to may have fired it at any time: asked right before.
            let since_armed =
                if self.is_delegated { self.delay - self.timeout() } else { self.timeout() };
            if held.holds_until <= now.deadline(since_armed) {
                return Some(Step::Restart(held.id));
            }
        }
        let fresh = Sending { id: SendId(self.next_number), version: self.version, sticky };
        let sending = match self.sending {
            Some(sending) if Sending { id: fresh.id, ..sending } == fresh => sending,
            _ => {
                self.number();
                fresh
            }
        };
        self.sending = Some(sending);
        self.is_exposed = true;
        if sticky == self.sticky {
            self.outranked_until = Some(now.deadline(sticky + self.timeout()));
        }
        Some(Step::Join { send: sending.id, sticky })
    }

    fn next_to_be_out(&mut self, now: Moment) -> Option<Step> {
        self.hand_over_at = None;
        if let Some(arming) = self.arming.take()
            && arming.since.is_some()
        {
            self.retiring.push(Retiring { id: arming.id, is_known: false });
        }
        if !self.is_exposed {
            // Nobody has seen anything: the leave need not be seen either.
            if let Some(held) = self.held.take() {
                self.retiring.push(Retiring { id: held.id, is_known: true });
            }
            return self.retire();
        }
        let Some(held) = self.held.filter(|_| !self.must_send_leave) else {
            return Some(self.leave());
        };
        // A join that may not have landed yet is repeated until it is answered, where the lease holds
        // for as long as that takes. Else it has landed by now, or never will.
        if let Some(sending) = self.sending
            && held.holds_until > now.deadline(self.timeout())
        {
            return Some(Step::Join { send: sending.id, sticky: sending.sticky });
        }
        Some(Step::Fire(held.id))
    }

    fn leave(&mut self) -> Step {
        let send = match self.leaving {
            Some(send) => send,
            None => SendId(self.number()),
        };
        self.leaving = Some(send);
        // One that is shorter than what it ends would lose to it.
        Step::Leave { send, sticky: self.sticky }
    }

    fn retire(&self) -> Option<Step> {
        let Retiring { id, is_known } = *self.retiring.first()?;
        Some(if is_known { Step::Cancel(id) } else { Step::Arm { lease: id, delay: self.delay } })
    }

    fn handle_armed(&mut self, now: Moment, lease: LeaseId, outcome: Outcome) {
        if let Some(retiring) = self.retiring.iter_mut().find(|retiring| retiring.id == lease) {
            match outcome {
                Outcome::Done => retiring.is_known = true,
                Outcome::Unknown | Outcome::RateLimited { .. } => {}
                // It was never armed.
                _ => self.retiring.retain(|retiring| retiring.id != lease),
            }
            return;
        }
        let Some(Arming { id, since: Some(since) }) = self.arming else { return };
        match outcome {
            Outcome::Done => {
                self.arming = None;
                if let Some(held) = self.held.take() {
                    self.retiring.push(Retiring { id: held.id, is_known: true });
                    // The join is sent again, last, for those who can read only the new leave.
                    self.must_join_anew();
                }
                // An earlier try may have been the one that landed.
                self.hold(id, since);
                self.is_degraded = false;
                self.arm_at = None;
            }
            Outcome::Unknown | Outcome::RateLimited { .. } => {}
            Outcome::NoDelayedEvents => {
                self.arming = None;
                self.is_degraded = self.held.is_none();
                self.arm_at = Some(now.deadline(self.pace.degraded_sticky() / 2));
            }
            Outcome::QuotaFull { retry_after } => {
                self.arming = None;
                self.is_degraded = self.held.is_none();
                let wait = retry_after.unwrap_or(self.pace.longest_wait());
                self.arm_at = Some(now.deadline(wait.max(self.pace.longest_wait())));
            }
            Outcome::TooLong { max } => {
                self.arming = None;
                match max.filter(|max| *max < self.delay && self.pace.takes_delay(*max)) {
                    Some(max) => self.delay = max,
                    None => self.fail(Failure::DelayTooLong { max }),
                }
            }
            Outcome::Gone | Outcome::Refused => {
                self.arming = None;
                self.fail(Failure::LeaveRefused);
            }
        }
    }

    fn handle_restarted(&mut self, now: Moment, started: Moment, lease: LeaseId, outcome: Outcome) {
        if self.held.is_none_or(|held| held.id != lease) {
            return;
        }
        match outcome {
            Outcome::Done => {
                self.hold(lease, started);
                self.is_degraded = false;
            }
            Outcome::Gone => self.held_is_gone(),
            Outcome::Unknown | Outcome::RateLimited { .. } => {}
            _ => self.back_off(now, None),
        }
    }

    fn handle_fire(&mut self, now: Moment, lease: LeaseId, outcome: Outcome) {
        if self.held.is_none_or(|held| held.id != lease) {
            return;
        }
        match outcome {
            Outcome::Done => {
                self.held = None;
                self.handle_left();
            }
            // It has fired, most likely. Should the server have lost it, the leave is sent.
            Outcome::Gone => self.held_is_gone(),
            Outcome::Unknown => {}
            _ => {
                self.must_send_leave = true;
                self.back_off(now, None);
            }
        }
    }

    fn handle_joined(&mut self, started: Moment, send: SendId, outcome: Outcome) {
        let Some(sending) = self.sending.filter(|sending| sending.id == send) else { return };
        match outcome {
            Outcome::Done => {
                self.sending = None;
                self.has_fired = false;
                let after = self.pace.refresh_after(sending.sticky);
                let refresh_at = started.deadline(self.jittered(after));
                let Sending { version, sticky, .. } = sending;
                self.seen = Some(Seen { version, sticky, refresh_at });
            }
            Outcome::Unknown | Outcome::RateLimited { .. } => {}
            _ => {
                self.sending = None;
                if self.seen.is_none() {
                    self.is_exposed = false;
                }
                if !matches!(self.wanted, Wanted::Out | Wanted::Dead(_)) {
                    self.fail(Failure::JoinRefused);
                }
            }
        }
    }

    /// The server has the leave.
    fn handle_left(&mut self) {
        self.is_exposed = false;
        self.seen = None;
        self.sending = None;
        self.leaving = None;
        self.must_send_leave = false;
        self.has_fired = false;
        if let Some(held) = self.held.take() {
            self.retiring.push(Retiring { id: held.id, is_known: true });
        }
    }

    fn held_is_gone(&mut self) {
        self.held = None;
        self.restart_at = None;
        self.must_join_anew();
        self.has_fired |= self.seen.take().is_some();
    }

    fn hold(&mut self, id: LeaseId, armed: Moment) {
        self.held = Some(Lease { id, holds_until: armed.deadline(self.delay) });
        let every = self.jittered(self.pace.restart_every(self.delay));
        self.restart_at = Some(armed.deadline(every));
    }

    fn restart_due(&self) -> Option<Deadline> {
        self.held.and(self.restart_at).filter(|_| !self.is_delegated)
    }

    /// The next join is another event, and not a repetition of one that is not answered.
    fn must_join_anew(&mut self) {
        self.sending = None;
        if let Some(seen) = &mut self.seen {
            seen.version = u64::MAX;
        }
    }

    fn may_be_short(&self, now: Moment) -> bool {
        let end = now.deadline(self.pace.degraded_sticky());
        self.outranked_until.is_none_or(|until| until < end)
    }

    fn fail(&mut self, failure: Failure) {
        self.wanted = Wanted::Dead(failure);
    }

    fn back_off(&mut self, now: Moment, retry_after: Option<Duration>) {
        let wait = self.pace.backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        let wait = self.jittered(wait).min(self.pace.longest_wait());
        self.again_at = Some(now.deadline(wait.max(retry_after.unwrap_or_default())));
    }

    fn timeout(&self) -> Duration {
        self.pace.timeout(self.delay)
    }

    /// Between 0.8 and 1 times as long, so that many who lost the same server do not come back at
    /// the same instant, and never later than they should.
    fn jittered(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(0.8 + 0.2 * self.rng.f64())
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod simulation;
#[cfg(test)]
mod tests;
