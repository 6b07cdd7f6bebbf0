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
//! - After leaving nothing is sent that could bring the member back. Leaving fires the lease; where the
//!   leave is to have a content of its own that one is sent, and the lease cancelled after it.
//!
//! What this relies on: a request lands within its timeout or never. What a network delivers later
//! is outside of the promise.

#[cfg(feature = "client")]
mod builder;
#[cfg(feature = "client")]
mod handle;
#[cfg(feature = "client")]
mod outcome;
#[cfg(feature = "client")]
mod perform;
#[cfg(feature = "client")]
mod reach;
#[cfg(feature = "client")]
mod readers;
#[cfg(feature = "client")]
mod registry;
#[cfg(feature = "client")]
mod request;
#[cfg(feature = "client")]
mod retire;
#[cfg(feature = "client")]
mod run;
#[cfg(feature = "client")]
mod store;
mod timing;
#[cfg(feature = "client")]
mod turns;

use std::time::Duration;

pub use self::timing::{HeartbeatTiming, HeartbeatTimingError};
#[cfg(feature = "client")]
pub use self::{
    builder::{StartHeartbeat, StartHeartbeatError},
    handle::Heartbeat,
};
#[cfg(feature = "client")]
pub(crate) use self::{handle::until_left, registry::Registry, retire::leave_all};
use crate::time::{Deadline, Moment};

/// The number of a lease, of this heartbeat's. Every try to arm it carries the same transaction id
/// and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(u64);

/// The number of an event to be sent. Every try carries the same transaction id and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(u64);

/// What to do next. It is over within its timeout, everything that belongs to it included, and its
/// [`Outcome`] is handed to [`HeartbeatMachine::handle_outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// What to do.
    pub step: Step,
    /// For how long to wait for the answer.
    pub timeout: Duration,
}

/// What to do.
///
/// [`Arm`](Self::Arm), [`Join`](Self::Join) and [`Leave`](Self::Leave) carry an event. If it is not
/// encrypted yet, the outcome is [`Outcome::Preparing`]: encryption may take longer than a lease holds,
/// so it has a time budget of its own, and restarts go on meanwhile.
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
    /// Something before the server has answered, such as a firewall's page: the server has not done
    /// it, and may do it at the next try.
    Blocked,
    /// The request is not ready yet, and nothing went out: the event is being encrypted.
    /// [`HeartbeatMachine::handle_prepared`] tells when that is done.
    Preparing,
    /// Nothing went out: it is the turn of another heartbeat of the client.
    NotYet {
        /// When to ask again.
        until: Deadline,
    },
}

impl Outcome {
    /// Whether it says nothing of what the server will make of the same request.
    fn is_to_be_repeated(self) -> bool {
        matches!(self, Self::Unknown | Self::Blocked | Self::RateLimited { .. })
    }
}

/// How the member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeartbeatState {
    /// The leave is being armed, or the join is on its way.
    Joining,
    /// Everybody can see the member, and the leave is armed.
    Joined,
    /// Everybody can see the member, and no leave is armed, as the server takes none: after a crash
    /// everybody sees it for as long as the last event is sticky, [`HeartbeatTiming::degraded_sticky`] at most.
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
    /// It cannot go on. Whether everybody sees the member gone, the [`HeartbeatFailure`] tells.
    Failed(HeartbeatFailure),
}

impl HeartbeatState {
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

/// What a heartbeat does after its armed leave has fired, as after an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rejoin {
    /// It joins again by itself.
    #[default]
    Automatic,
    /// It ends with [`HeartbeatFailure::LeaveFired`] or [`HeartbeatFailure::Removed`], and another one is
    /// to be started.
    Never,
}

/// What a member does while the application is in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InBackground {
    /// The member leaves, and joins again when the application is back.
    Leave,
    /// The member stays for as long as the armed leave holds, and leaves when that fires.
    Hold,
}

/// Why a heartbeat cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeartbeatFailure {
    /// The server refuses the leave, because we may not send there any more. Everybody sees the member
    /// until its join ends.
    LeaveRefused,
    /// The server did not take the leave in time. What was armed has fired by now, if the server is
    /// there; otherwise everybody sees the member until its join ends.
    LeaveUnanswered,
    /// The server refuses the join, as one who has no right to send it.
    JoinRefused,
    /// The join was redacted, by us or by somebody who may: that is respected, and not joined over.
    Redacted,
    /// We are not in the room any more.
    NotInRoom,
    /// The armed leave has fired, and it was not to join again by itself; start another.
    LeaveFired,
    /// Somebody has removed the member, or its join has run out, and it was not to join again by
    /// itself; start another. What was armed is fired.
    Removed,
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
    Dead(HeartbeatFailure),
}

/// A leave that is armed, as far as is known.
#[derive(Clone, Copy, Debug)]
struct Lease {
    id: LeaseId,
    delay: Duration,
    /// Before this it does not fire.
    holds_until: Deadline,
}

/// A leave whose arming has not been answered.
#[derive(Clone, Copy, Debug)]
struct Arming {
    id: LeaseId,
    /// When it was first tried: from then on it may be armed.
    since: Option<Moment>,
    /// Whether a try was not answered.
    is_unsure: bool,
}

/// A leave that another one took over from.
#[derive(Clone, Copy, Debug)]
struct Retiring {
    id: LeaseId,
    delay: Duration,
    /// Whether its delay id is known; else arming it once more tells.
    is_known: bool,
    /// From then on it may have fired, where it is not an earlier process's.
    holds_until: Option<Deadline>,
    /// Whether a try to cancel it was not answered.
    is_unsure: bool,
}

impl Retiring {
    fn new(id: LeaseId, delay: Duration, is_known: bool, holds_until: Option<Deadline>) -> Self {
        Self { id, delay, is_known, holds_until, is_unsure: false }
    }
}

/// An event whose sending has not been answered.
#[derive(Clone, Copy, Debug)]
struct Sending {
    id: SendId,
    version: u64,
    sticky: Duration,
    /// When it was first tried: from then on it may be there.
    since: Moment,
    /// Whether the member could be seen before it.
    was_exposed: bool,
    /// Whether a join had gone out before it: [`HeartbeatMachine::has_joined`].
    had_joined: bool,
    /// Whether a try was not answered, so that it may have landed.
    is_unsure: bool,
    /// Whether no try went out yet, as the event is being encrypted.
    is_unsent: bool,
}

/// What the others see of the member, as far as we know.
#[derive(Clone, Copy, Debug)]
struct Seen {
    version: u64,
    sticky: Duration,
    /// When to send it again, well ahead of its end.
    refresh_at: Deadline,
    ends_at: Deadline,
}

/// The pure machine of one heartbeat.
///
/// Name by direction: `handle_..` takes what happened, `poll_..` gives what to do. After each
/// `handle_..` and at each [`next_deadline`](Self::next_deadline), poll until nothing comes.
#[derive(Debug)]
pub struct HeartbeatMachine {
    pace: HeartbeatTiming,
    delay: Duration,
    /// For how long join and leave are sticky.
    sticky: Duration,
    /// Whether it joins again by itself.
    rejoins: bool,
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
    /// The leave has a content that what is armed has not: it is sent, and what is armed cancelled.
    has_last_words: bool,
    /// Others may see the member: some join may have landed and no leave after it.
    is_exposed: bool,
    has_fired: bool,
    /// A join has gone out since the owner last said so: the next one that everybody sees as such
    /// would be another.
    has_joined: bool,
    /// The others have shown a join of those to us.
    is_shown: bool,
    /// Why it is not to join again when it is resumed.
    ended: Option<HeartbeatFailure>,
    is_degraded: bool,
    /// The lease that somebody else restarts.
    delegated: Option<LeaseId>,
    /// The server refuses our leave as an event: what is armed is fired, also where it was to be
    /// cancelled.
    is_muted: bool,
    /// Our latest event of the full stickiness is over at this: until then a shorter one loses.
    outranked_until: Option<Deadline>,
    /// To restart the held lease.
    restart_at: Option<Deadline>,
    /// To ask what became of it, also where somebody else restarts it.
    ask_at: Option<Deadline>,
    /// To try a restart again after it failed. Of its own, as the lease runs out whatever else the
    /// server refuses meanwhile.
    restart_again_at: Option<Deadline>,
    /// To arm where the server would not.
    arm_at: Option<Deadline>,
    /// To hand over to a fresh lease, as somebody came who cannot read the one that is held.
    hand_over_at: Option<Deadline>,
    /// To send the join again for newcomers, where no leave is armed.
    renew_at: Option<Deadline>,
    /// How often that was done since newcomers were rare.
    hand_overs: u32,
    /// When newcomers are rare again.
    quiet_at: Option<Deadline>,
    /// Restarts are to be rare.
    is_slow: bool,
    /// To try again after a failure.
    again_at: Option<Deadline>,
    failures: u32,
    /// How often in a row something before the server has answered an arming.
    blocked: u32,
    /// When to give up leaving.
    out_by: Option<Deadline>,
    /// The step whose event is being encrypted.
    preparing: Option<Step>,
    /// When to fire what is armed, as the last words are still being encrypted.
    words_by: Option<Deadline>,
    doing: Option<(Step, Moment)>,
    is_done: bool,
}

impl HeartbeatMachine {
    /// A member that is wanted from now on. `seed` is for the jitter.
    pub fn new(pace: HeartbeatTiming, seed: u64) -> Self {
        Self {
            delay: pace.delay(),
            sticky: pace.sticky(),
            pace,
            rejoins: true,
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
            has_last_words: false,
            is_exposed: false,
            has_fired: false,
            has_joined: false,
            is_shown: false,
            ended: None,
            is_degraded: false,
            delegated: None,
            is_muted: false,
            outranked_until: None,
            restart_at: None,
            ask_at: None,
            restart_again_at: None,
            arm_at: None,
            hand_over_at: None,
            renew_at: None,
            hand_overs: 0,
            quiet_at: None,
            is_slow: false,
            again_at: None,
            failures: 0,
            blocked: 0,
            out_by: None,
            preparing: None,
            words_by: None,
            doing: None,
            is_done: false,
        }
    }

    /// Sets what follows after the leave has fired. Defaults to [`Rejoin::Automatic`]. With
    /// [`Rejoin::Never`] the machine sends nothing that could show the member again, from the moment at
    /// which a leave may be out there.
    #[must_use]
    pub fn with_rejoin(self, rejoin: Rejoin) -> Self {
        Self { rejoins: rejoin == Rejoin::Automatic, ..self }
    }

    /// Takes a leave that an earlier process has armed, or was about to, with its delay and with the
    /// stickiness that it and its join had: a fresh one takes over from it before the join is sent.
    /// Its number is for [`Step::Arm`], which repeats the request word by word and so tells the delay
    /// id, and for the steps after that.
    pub fn handle_found(&mut self, now: Moment, sticky: Duration, delay: Duration) -> LeaseId {
        let id = LeaseId(self.number());
        self.retiring.push(Retiring::new(id, delay, false, None));
        // That process's join may still be there. What is shorter would lose to it.
        self.is_exposed = true;
        self.sticky = self.sticky.max(sticky);
        self.outranked_until = Some(now.deadline(self.sticky));
        id
    }

    /// Takes until when an event that was sent before under the same key outranks a shorter one.
    pub fn handle_outranked(&mut self, until: Option<Deadline>) {
        self.outranked_until = self.outranked_until.max(until);
    }

    /// Until when what was sent outranks a shorter event of the same key: what the next heartbeat under
    /// that key has to know.
    pub fn outranked_until(&self) -> Option<Deadline> {
        self.outranked_until
    }

    /// The content has changed: it is sent as soon as may be.
    pub fn handle_update(&mut self) {
        self.version += 1;
    }

    /// Somebody came who cannot read the leave that is armed: after a while, in which more may come, a
    /// fresh one takes over. `readers` is how many devices there are. If newcomers keep coming, the
    /// pauses grow.
    pub fn handle_newcomers(&mut self, now: Moment, readers: usize) {
        if self.quiet_at.is_none_or(|quiet_at| quiet_at.is_over(now)) {
            self.hand_overs = 0;
        }
        self.quiet_at = Some(now.deadline(HeartbeatTiming::QUIET));
        let at = now.deadline(self.pace.gather(readers, self.hand_overs));
        if self.held.is_none() && self.is_degraded {
            // There is no leave to hand over to: the join alone is sent again.
            self.renew_at.get_or_insert(at);
        } else if self.held.is_some() || self.arming.is_some() {
            self.hand_over_at.get_or_insert(at);
        }
    }

    /// Whether restarts are to be rare, as the server wants fewer requests of this user.
    pub fn handle_pace(&mut self, is_slow: bool) {
        if self.is_slow == is_slow {
            return;
        }
        self.is_slow = is_slow;
        if let Some(held) = self.held.filter(|_| self.restart_at.is_some()) {
            let every = self.restart_every(held.delay);
            self.restart_at = Some(held.holds_until.earlier(held.delay.saturating_sub(every)));
        }
    }

    /// The owner leaves. What follows is over when [`state`](Self::state) says so.
    pub fn handle_leave(&mut self) {
        if !matches!(self.wanted, Wanted::Dead(_)) {
            self.wanted = Wanted::Out;
        }
        self.again_at = None;
    }

    /// The owner leaves with a content that is not the armed one: that leave is sent, and what is armed
    /// is cancelled after it; or fired, where the server refuses the leave. Nothing is sent where nobody
    /// has seen the member, or where it has left.
    pub fn handle_leave_with(&mut self) {
        self.handle_leave();
        self.has_last_words = true;
        // One that is under way has another content.
        self.leaving = Some(SendId(self.number()));
    }

    /// The application goes into the background: the member leaves, unless it is to be kept there
    /// for as long as the lease holds.
    pub fn handle_suspend(&mut self, in_background: InBackground) {
        let keep = in_background == InBackground::Hold;
        match self.wanted {
            Wanted::In if keep => self.wanted = Wanted::Kept,
            Wanted::In | Wanted::Kept if !keep => self.wanted = Wanted::Away,
            _ => return,
        }
        self.again_at = None;
    }

    /// The application is back: what became of the lease is asked first.
    pub fn handle_resume(&mut self, now: Moment) {
        if matches!(self.wanted, Wanted::Kept | Wanted::Away) {
            if self.wanted == Wanted::Away {
                // A leave may be out there: the next join is another event, and so is the next leave.
                self.has_left();
                self.leaving = None;
                self.must_send_leave = false;
                // We may have the right to send again.
                self.is_muted = false;
                // The owner says so, so that it is not by itself.
                self.has_joined = false;
                self.is_shown = false;
                self.ended = None;
            }
            self.wanted = self.ended.take().map_or(Wanted::In, Wanted::Dead);
            self.is_done = false;
            self.again_at = None;
            self.ask_at = Some(now.deadline(Duration::ZERO));
        }
    }

    /// Somebody else restarts this lease from now on, and fires it (MSC4195). Another one, which may
    /// take over from it, is ours.
    pub fn handle_delegated(&mut self, lease: LeaseId) {
        self.delegated = Some(lease);
    }

    /// The lease is ours again: what became of it is asked first.
    pub fn handle_taken_back(&mut self, now: Moment) {
        self.delegated = None;
        self.ask_at = Some(now.deadline(Duration::ZERO));
    }

    /// A leave of ours has come back from the server, with its delay id: the lease has fired.
    pub fn handle_fired(&mut self, now: Moment, lease: LeaseId) {
        let is_held = self.held.is_some_and(|held| held.id == lease);
        let is_wanted_out = matches!(self.wanted, Wanted::Away | Wanted::Out | Wanted::Dead(_));
        let is_joining = self.sending.is_some_and(|sending| !sending.is_unsent);
        // Who does not join again by itself has left, too.
        let is_over = is_wanted_out || !self.rejoins && self.has_joined;
        if is_held && is_over && !self.has_last_words && !is_joining {
            // The leave is out, whatever becomes of the request that was to fire it.
            self.held = None;
            self.note_sent(now, self.sticky);
            self.handle_left();
            self.end(HeartbeatFailure::LeaveFired);
        } else if is_held {
            self.held_is_gone(now);
        } else if self.retiring.iter().any(|retiring| retiring.id == lease) {
            self.retiring.retain(|retiring| retiring.id != lease);
            self.note_sent(now, self.sticky);
            self.has_left();
            self.end(HeartbeatFailure::LeaveFired);
        }
    }

    /// The last join that was answered has come back from the server. Only from then on does
    /// [`handle_doubt`](Self::handle_doubt) tell of that one, and not of an earlier.
    pub fn handle_shown(&mut self) {
        self.is_shown |= self.has_joined;
    }

    /// The member is gone, without our having left: a leave has fired that is not known any more, or
    /// somebody has removed it. What became of the lease is asked next, and then it joins again.
    pub fn handle_doubt(&mut self, now: Moment) {
        if self.wanted == Wanted::In {
            self.ask_at = Some(now.deadline(Duration::ZERO));
        }
        if self.rejoins && self.wanted == Wanted::In {
            self.has_left();
        }
        if self.is_shown {
            // Or the lease has fired: firing it tells.
            self.end(HeartbeatFailure::Removed);
        }
    }

    /// The join is over, as far as those know who look on.
    pub fn handle_expired(&mut self, now: Moment) {
        // They may only not know yet that it was refreshed. Where that matters it is counted here.
        if self.rejoins {
            self.handle_doubt(now);
        }
    }

    /// The member is gone for a reason that is to be respected: the lease is fired, where it still can
    /// be, and nothing follows.
    pub fn handle_ended(&mut self, failure: HeartbeatFailure) {
        if !matches!(self.wanted, Wanted::Out | Wanted::Dead(_)) {
            self.fail(failure);
            self.is_done = false;
            self.again_at = None;
        }
    }

    /// Takes what became of the last action.
    pub fn handle_outcome(&mut self, now: Moment, outcome: Outcome) {
        let Some((step, started)) = self.doing.take() else {
            return;
        };
        match outcome {
            Outcome::Preparing if self.is_never_to_be_ready(step) => return,
            Outcome::Preparing => {
                self.preparing = Some(step);
                if matches!(step, Step::Leave { .. }) {
                    let by = now.deadline(self.timeout());
                    self.words_by.get_or_insert(by);
                }
                return self.take_back(step);
            }
            Outcome::NotYet { until } => {
                match step {
                    Step::Restart(_) => self.restart_again_at = Some(until),
                    _ => self.again_at = Some(until),
                }
                return self.take_back(step);
            }
            _ => {}
        }
        self.handle_answer(now, step, started, outcome);
    }

    /// The event of a step is encrypted, if the outcome is [`Outcome::Done`]; otherwise it could not
    /// be.
    pub fn handle_prepared(&mut self, now: Moment, step: Step, outcome: Outcome) {
        if !self.awaits(step) {
            return;
        }
        self.preparing = None;
        match outcome {
            Outcome::Done => self.words_by = None,
            // Nothing went out, so that this is no doubt about what became of it.
            Outcome::Unknown => self.back_off(now, step, None),
            _ => self.handle_answer(now, step, now, outcome),
        }
    }

    /// Whether it is no use to encrypt the event of this step: it would be another event than the one
    /// whose fate is to be found out. What was tried has landed by now, or never will.
    fn is_never_to_be_ready(&mut self, step: Step) -> bool {
        let is_to_be_out = !matches!(self.wanted, Wanted::In | Wanted::Kept);
        match step {
            Step::Arm { lease, .. } => {
                let retiring = self.retiring.len();
                self.retiring.retain(|retiring| retiring.id != lease);
                self.retiring.len() < retiring
            }
            Step::Join { .. } if is_to_be_out => {
                self.sending = None;
                true
            }
            _ => false,
        }
    }

    /// Whether the event of this step is waited for.
    pub fn awaits(&self, step: Step) -> bool {
        self.preparing == Some(step)
    }

    /// Nothing has gone out: what was noted for the case that it lands is taken back.
    fn take_back(&mut self, step: Step) {
        match step {
            Step::Arm { lease, .. } => {
                let arming = self.arming.as_mut().filter(|it| it.id == lease && !it.is_unsure);
                if let Some(arming) = arming {
                    arming.since = None;
                }
            }
            Step::Join { .. } => {
                if let Some(sending) = self.sending.as_mut().filter(|sending| !sending.is_unsure) {
                    sending.is_unsent = true;
                    self.is_exposed = sending.was_exposed;
                    self.has_joined = sending.had_joined;
                }
            }
            _ => {}
        }
    }

    fn handle_answer(&mut self, now: Moment, step: Step, started: Moment, outcome: Outcome) {
        match outcome {
            Outcome::Unknown | Outcome::Blocked => self.back_off(now, step, None),
            Outcome::RateLimited { retry_after } => self.back_off(now, step, retry_after),
            // What was refused may be refused again, at once.
            Outcome::Done | Outcome::Gone => self.failures = 0,
            _ => {}
        }
        match step {
            Step::Arm { lease, .. } => self.handle_armed(now, lease, outcome),
            Step::Restart(lease) => self.handle_restarted(now, started, lease, outcome),
            Step::Fire(lease) => self.handle_fire(now, lease, outcome),
            Step::Cancel(lease) => self.handle_cancelled(now, lease, outcome),
            Step::Join { send, .. } => self.handle_joined(send, outcome),
            Step::Leave { send, .. } => match outcome {
                // Another one is to be the last.
                Outcome::Done if self.leaving.is_some_and(|leaving| leaving != send) => {}
                Outcome::Done => self.handle_left(),
                Outcome::Unknown | Outcome::Blocked | Outcome::RateLimited { .. } => {}
                // We may not send there any more. What is armed may.
                _ => {
                    self.must_send_leave = false;
                    self.is_muted = true;
                    if self.held.is_none() {
                        self.give_up(HeartbeatFailure::LeaveRefused);
                    } else {
                        self.back_off(now, step, None);
                    }
                }
            },
        }
    }

    /// What to do next; nothing while something is being done.
    pub fn poll_action(&mut self, now: Moment) -> Option<Action> {
        self.bound_leaving(now);
        if self.doing.is_some() || self.is_done {
            return None;
        }
        if self.has_run_out(now) {
            self.end(HeartbeatFailure::Removed);
        }
        let step = match self.wanted {
            Wanted::In => self.next_to_be_in(now),
            Wanted::Kept => None,
            Wanted::Away | Wanted::Out | Wanted::Dead(_) => {
                self.preparing.take_if(|step| !matches!(step, Step::Leave { .. }));
                if !self.may_try(now) || self.waits_for_words(now) {
                    return None;
                }
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
    pub fn next_deadline(&self, now: Moment) -> Option<Deadline> {
        let held = self.held.map(|held| held.holds_until);
        let ends_at = self.seen.map(|seen| seen.ends_at);
        let state_changes = self.others_hold_until().chain(held).chain(ends_at);
        let state_changes = state_changes.filter(|until| !until.is_over(now)).min();
        let acts = match self.wanted {
            _ if self.doing.is_some() || self.is_done => None,
            Wanted::Kept => None,
            Wanted::In => {
                let may_join = self.held.is_some() || self.is_degraded;
                let refresh_at = self.seen.filter(|_| may_join).map(|seen| seen.refresh_at);
                // It may take a restart before that.
                let refresh_at =
                    refresh_at.map(|at| self.restart_again_at.map_or(at, |it| at.max(it)));
                let short_at = self.short_at().filter(|at| self.is_degraded && !at.is_over(now));
                let dues = [refresh_at, self.arm_at, self.hand_over_at, self.renew_at, short_at];
                // While it waits to try again nothing but restarts is done.
                let others = self.again_at.or(dues.into_iter().flatten().min());
                let others = others.filter(|_| self.preparing.is_none());
                let restart = self.restart_due().map(|due| match self.restart_again_at {
                    Some(again_at) => due.max(again_at),
                    None => due,
                });
                // A join that is due may wait for it, also where somebody else restarts.
                let ask_again = self.restart_again_at.filter(|at| !at.is_over(now));
                others.into_iter().chain(restart).chain(ask_again).min()
            }
            Wanted::Away | Wanted::Out | Wanted::Dead(_) => {
                let words_by = self.words_by.filter(|by| !by.is_over(now));
                self.again_at.into_iter().chain(words_by).min()
            }
        };
        let out_by = self.out_by.filter(|_| !self.is_done);
        state_changes.into_iter().chain(acts).chain(out_by).min()
    }

    /// How the member stands.
    pub fn state(&self, now: Moment) -> HeartbeatState {
        let is_seen = self.seen.is_some_and(|seen| !seen.ends_at.is_over(now));
        match self.wanted {
            Wanted::Dead(failure) if self.is_done => HeartbeatState::Failed(failure),
            Wanted::Out if self.is_done => HeartbeatState::Left,
            Wanted::Dead(_) | Wanted::Out => HeartbeatState::Leaving,
            Wanted::Away => HeartbeatState::Suspended { holds_until: None },
            Wanted::Kept => HeartbeatState::Suspended {
                holds_until: self.held.filter(|_| is_seen).map(|held| held.holds_until),
            },
            Wanted::In => match self.held {
                _ if self.has_fired => HeartbeatState::Rejoining,
                // One that could not be cancelled in time; the join comes once its fate is known.
                Some(_) if is_seen && let Some(since) = self.overdue(now) => {
                    HeartbeatState::ProbablyLeft { since }
                }
                Some(held) if held.holds_until.is_over(now) && self.is_exposed => {
                    if self.is_delegated() && is_seen {
                        return HeartbeatState::Joined;
                    }
                    HeartbeatState::ProbablyLeft { since: held.holds_until }
                }
                Some(_) if is_seen && self.seen.is_some_and(|seen| seen.sticky == self.sticky) => {
                    HeartbeatState::Joined
                }
                _ if is_seen => HeartbeatState::Degraded,
                _ => HeartbeatState::Joining,
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

    /// Until when the leave that is armed does not fire: each restart moves it on. `None` where none is
    /// armed, or somebody else restarts it.
    pub fn armed_until(&self) -> Option<Deadline> {
        self.held.filter(|_| !self.is_delegated()).map(|held| held.holds_until)
    }

    fn next_to_be_in(&mut self, now: Moment) -> Option<Step> {
        let is_due = |deadline: Option<Deadline>| deadline.is_some_and(|it| it.is_over(now));
        // Before all else, and also if it may have fired: then the answer tells.
        if let Some(held) = self.held
            && is_due(self.restart_due())
            && self.may_restart(now)
        {
            return Some(Step::Restart(held.id));
        }
        if self.preparing.is_some() || !self.may_try(now) {
            return None;
        }
        let mut must_arm = self.held.is_none();
        if is_due(self.hand_over_at) {
            // One that is made ready already, and not answered, is not the fresh one that is wanted.
            if self.arming.is_none_or(|arming| arming.since.is_none()) {
                self.hand_over_at = None;
            }
            must_arm = true;
        }
        if is_due(self.renew_at) {
            self.renew_at = None;
            if self.held.is_none() {
                self.hand_overs = self.hand_overs.saturating_add(1);
                self.must_join_anew();
            }
        }
        if is_due(self.arm_at) {
            self.arm_at = None;
        }
        if must_arm && self.arming.is_none() {
            let id = LeaseId(self.number());
            self.arming = Some(Arming { id, since: None, is_unsure: false });
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
            let Retiring { id, delay, .. } = self.retiring.remove(at);
            self.held = Some(Lease { id, delay, holds_until: now.deadline(Duration::ZERO) });
            self.ask_at = Some(now.deadline(Duration::ZERO));
            return Some(Step::Restart(id));
        }
        if let Some(step) = self.retire() {
            // Of all that an earlier process had armed the one that is held may be the one that it has
            // cancelled.
            let must_wait = self.is_asked_for() && matches!(step, Step::Cancel(_));
            return (!must_wait).then_some(step);
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
        if self.is_asked_for() {
            return None;
        }
        if let Some(held) = self.held
            && self.must_ask_before_join(now, held)
        {
            return self.may_restart(now).then_some(Step::Restart(held.id));
        }
        let sending = match self.sending {
            Some(sending) if sending.version == self.version && sending.sticky == sticky => {
                // What was encrypted meanwhile goes out now.
                let since = if sending.is_unsent { now } else { sending.since };
                Sending { since, is_unsent: false, ..sending }
            }
            _ => Sending {
                id: SendId(self.number()),
                version: self.version,
                sticky,
                since: now,
                was_exposed: self.is_exposed,
                had_joined: self.has_joined,
                is_unsure: false,
                is_unsent: false,
            },
        };
        self.sending = Some(sending);
        self.is_exposed = true;
        self.has_joined = true;
        self.note_sent(now, sticky);
        Some(Step::Join { send: sending.id, sticky })
    }

    /// Whether this lease could fire before a join has landed, or may have fired already.
    fn must_ask_before_join(&self, now: Moment, held: Lease) -> bool {
        // Whoever it was delegated to may have fired it at any time: asked right before.
        let ago = match self.is_delegated() {
            true => held.delay.saturating_sub(self.timeout()),
            false => self.timeout(),
        };
        held.holds_until <= now.deadline(ago)
    }

    /// Whether what became of the lease that is held is not known, and is asked next.
    fn is_asked_for(&self) -> bool {
        self.held.is_some() && self.ask_at.is_some()
    }

    fn next_to_be_out(&mut self, now: Moment) -> Option<Step> {
        self.hand_over_at = None;
        self.renew_at = None;
        if let Some(arming) = self.arming.take()
            && arming.since.is_some()
        {
            self.retiring.push(Retiring::new(arming.id, self.delay, false, None));
        }
        if let Some(sending) = self.sending.take_if(|sending| !sending.is_unsure) {
            // The server has taken none of its tries.
            self.is_exposed = sending.was_exposed;
        }
        if !self.is_exposed {
            // Nobody has seen anything: the leave need not be seen either.
            self.retire_held();
            return self.retire();
        }
        let Some(held) = self.held.filter(|_| !self.must_send_leave) else {
            return Some(self.leave(now));
        };
        // A join that may not have landed yet is repeated until it is answered, where the lease is known
        // to hold for as long as that takes. Else it has landed by now, or never will.
        if let Some(sending) = self.sending
            && !self.is_asked_for()
            && !self.must_ask_before_join(now, held)
        {
            return Some(Step::Join { send: sending.id, sticky: sending.sticky });
        }
        // What is armed stays so until the server has the leave, or refuses it; or until the words take
        // too long to encrypt.
        if self.words_by.is_some_and(|by| by.is_over(now)) {
            self.preparing = None;
            self.has_last_words = false;
        }
        if self.has_last_words && !self.is_muted {
            return Some(self.leave(now));
        }
        Some(Step::Fire(held.id))
    }

    /// Whether the leave is still being encrypted, and there is time to wait for it.
    fn waits_for_words(&self, now: Moment) -> bool {
        let may_fire = self.held.is_some() && !self.must_send_leave;
        let is_late = self.words_by.is_some_and(|by| by.is_over(now));
        self.preparing.is_some() && !(may_fire && is_late)
    }

    fn leave(&mut self, now: Moment) -> Step {
        let send = match self.leaving {
            Some(send) => send,
            None => SendId(self.number()),
        };
        self.leaving = Some(send);
        // One that is shorter than what it ends would lose to it; and a longer one would outrank the
        // next short join for no reason.
        let is_short = self.outranked_until.is_none_or(|until| until.is_over(now));
        let sticky = if is_short { self.pace.degraded_sticky() } else { self.sticky };
        self.note_sent(now, sticky);
        Step::Leave { send, sticky }
    }

    fn retire(&self) -> Option<Step> {
        let Retiring { id, delay, is_known, .. } = *self.retiring.first()?;
        Some(match is_known {
            true if self.is_muted && self.wanted != Wanted::In => Step::Fire(id),
            true => Step::Cancel(id),
            false => Step::Arm { lease: id, delay },
        })
    }

    fn handle_armed(&mut self, now: Moment, lease: LeaseId, outcome: Outcome) {
        if let Some(retiring) = self.retiring.iter_mut().find(|retiring| retiring.id == lease) {
            match outcome {
                Outcome::Done => retiring.is_known = true,
                Outcome::Unknown | Outcome::Blocked | Outcome::RateLimited { .. } => {}
                // It was never armed.
                _ => self.retiring.retain(|retiring| retiring.id != lease),
            }
            return;
        }
        let Some(Arming { id, since, is_unsure }) = self.arming.filter(|it| it.id == lease) else {
            return;
        };
        let since = since.unwrap_or(now);
        self.blocked = if outcome == Outcome::Blocked { self.blocked + 1 } else { 0 };
        match outcome {
            Outcome::Done => {
                self.arming = None;
                if self.held.is_some() {
                    self.hand_overs = self.hand_overs.saturating_add(1);
                    self.retire_held();
                    // The join is sent again, last, for those who can read only the new leave.
                    self.must_join_anew();
                }
                // An earlier try may have been the one that landed.
                self.hold(id, self.delay, since);
                self.is_degraded = false;
                self.arm_at = None;
                return;
            }
            Outcome::Unknown => {
                if let Some(arming) = &mut self.arming {
                    arming.is_unsure = true;
                }
                return;
            }
            Outcome::RateLimited { .. } => return,
            Outcome::Blocked if self.blocked < HeartbeatTiming::BLOCKED_TRIES => return,
            _ => {}
        }
        self.arming = None;
        if is_unsure && outcome != Outcome::Gone {
            // An earlier try may have been taken: that is to be found out, and not forgotten.
            let holds_until = Some(since.deadline(self.delay));
            self.retiring.push(Retiring::new(id, self.delay, false, holds_until));
        }
        let wait = match outcome {
            // Another one is armed in its place.
            Outcome::Gone => {
                self.hand_over_at = self.held.map(|_| now.deadline(Duration::ZERO));
                return self.back_off(now, Step::Arm { lease: id, delay: self.delay }, None);
            }
            Outcome::TooLong { max: Some(max) }
                if max < self.delay && self.pace.takes_delay(max) =>
            {
                self.delay = max;
                return;
            }
            Outcome::QuotaFull { retry_after } => retry_after.unwrap_or_default(),
            // It may be willing by then. Whether the join is refused too, the join tells.
            _ => self.pace.degraded_sticky() / 2,
        };
        // No leave is armed, and the member is there all the same.
        self.is_degraded = self.held.is_none();
        let wait = wait.clamp(self.pace.longest_wait(), HeartbeatTiming::LONGEST_RETRY_AFTER);
        self.arm_at = Some(now.deadline(wait));
        // One that was to take over still has to.
        self.hand_over_at = self.arm_at.filter(|_| self.held.is_some());
    }

    fn handle_restarted(&mut self, now: Moment, started: Moment, lease: LeaseId, outcome: Outcome) {
        let Some(held) = self.held.filter(|held| held.id == lease) else { return };
        match outcome {
            Outcome::Done => {
                self.hold(lease, held.delay, started);
                self.is_degraded = false;
            }
            Outcome::Gone => self.held_is_gone(now),
            Outcome::Unknown | Outcome::Blocked | Outcome::RateLimited { .. } => {}
            // Delayed events were switched off, or such: it fires, or never will.
            _ if held.holds_until.is_over(now) => self.held_is_gone(now),
            _ => self.back_off(now, Step::Restart(lease), None),
        }
    }

    fn handle_fire(&mut self, now: Moment, lease: LeaseId, outcome: Outcome) {
        if self.held.is_none_or(|held| held.id != lease) {
            if !outcome.is_to_be_repeated() {
                self.retiring.retain(|retiring| retiring.id != lease);
            }
            return;
        }
        match outcome {
            Outcome::Done => {
                self.held = None;
                self.note_sent(now, self.sticky);
                self.handle_left();
            }
            // It has fired, most likely. Should the server have lost it, the leave is sent.
            Outcome::Gone => self.held_is_gone(now),
            Outcome::Unknown | Outcome::Blocked => {}
            // Where we may not send, what is armed may, when it is due.
            _ if self.is_muted => self.back_off(now, Step::Fire(lease), None),
            _ => self.must_send_leave = true,
        }
    }

    fn handle_cancelled(&mut self, now: Moment, lease: LeaseId, outcome: Outcome) {
        let retiring = self.retiring.iter_mut().find(|retiring| retiring.id == lease);
        let is_unsure = match (outcome, retiring) {
            (Outcome::Unknown, Some(retiring)) => {
                retiring.is_unsure = true;
                return;
            }
            (outcome, _) if outcome.is_to_be_repeated() => return,
            (_, retiring) => retiring.is_some_and(|retiring| retiring.is_unsure),
        };
        if outcome == Outcome::Gone && (!is_unsure || self.overdue(now).is_some()) {
            // It was too late, most likely, or somebody else was before us.
            self.has_left();
            self.end(HeartbeatFailure::LeaveFired);
        }
        // Also where the server refuses: should it fire, that is noticed.
        self.retiring.retain(|retiring| retiring.id != lease);
    }

    fn handle_joined(&mut self, send: SendId, outcome: Outcome) {
        let Some(sending) = self.sending.as_mut().filter(|sending| sending.id == send) else {
            return;
        };
        match outcome {
            Outcome::Done => {
                let Sending { version, sticky, since, .. } = *sending;
                self.sending = None;
                self.has_fired = false;
                // An earlier try may have been the one that landed.
                let after = self.pace.refresh_after(sticky);
                let refresh_at = since.deadline(self.jittered(after));
                let ends_at = since.deadline(sticky);
                self.seen = Some(Seen { version, sticky, refresh_at, ends_at });
            }
            Outcome::Unknown => sending.is_unsure = true,
            Outcome::Blocked | Outcome::RateLimited { .. } => {}
            _ => {
                let Sending { was_exposed, is_unsure, .. } = *sending;
                self.is_exposed = was_exposed || is_unsure;
                self.sending = None;
                if !matches!(self.wanted, Wanted::Out | Wanted::Dead(_)) {
                    self.fail(HeartbeatFailure::JoinRefused);
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
        self.retire_held();
    }

    /// The server does not take the leave. `failure` is the end, unless there is another reason already.
    fn give_up(&mut self, failure: HeartbeatFailure) {
        let is_seen = self.is_exposed;
        self.handle_left();
        if is_seen && self.wanted == Wanted::Out {
            self.fail(failure);
        }
    }

    /// Leaving ends in time, whatever the server answers.
    fn bound_leaving(&mut self, now: Moment) {
        if !matches!(self.wanted, Wanted::Out | Wanted::Dead(_)) {
            self.out_by = None;
            return;
        }
        let delay = self.held.map_or(self.delay, |held| held.delay.max(self.delay));
        let by = *self.out_by.get_or_insert(now.deadline(delay + HeartbeatTiming::LEAVING));
        if by.is_over(now) && !self.is_done {
            self.give_up(HeartbeatFailure::LeaveUnanswered);
            self.is_done = true;
        }
    }

    /// Since when a leave besides the one that is held may have fired: one that was to be cancelled,
    /// or whose arming is not answered.
    fn overdue(&self, now: Moment) -> Option<Deadline> {
        self.others_hold_until().filter(|until| until.is_over(now)).min()
    }

    fn others_hold_until(&self) -> impl Iterator<Item = Deadline> + '_ {
        let retiring = self.retiring.iter().filter_map(|retiring| retiring.holds_until);
        let arming = self.arming.and_then(|arming| Some(arming.since?.deadline(self.delay)));
        retiring.chain(arming)
    }

    fn retire_held(&mut self) {
        if let Some(Lease { id, delay, holds_until }) = self.held.take() {
            self.retiring.push(Retiring::new(id, delay, true, Some(holds_until)));
        }
    }

    fn held_is_gone(&mut self, now: Moment) {
        self.held = None;
        self.restart_at = None;
        self.ask_at = None;
        self.note_sent(now, self.sticky);
        self.has_left();
        self.end(HeartbeatFailure::LeaveFired);
    }

    fn hold(&mut self, id: LeaseId, delay: Duration, armed: Moment) {
        self.held = Some(Lease { id, delay, holds_until: armed.deadline(delay) });
        let every = self.restart_every(delay);
        self.restart_at = Some(armed.deadline(every));
        self.ask_at = None;
        self.restart_again_at = None;
    }

    fn restart_every(&mut self, delay: Duration) -> Duration {
        if !self.is_slow {
            return self.jittered(self.pace.restart_every(delay));
        }
        // Never earlier than half of the delay, and most of the time as late as it may be.
        self.pace.slow_restart_every(delay).mul_f64(0.9 + 0.1 * self.rng.f64())
    }

    fn restart_due(&self) -> Option<Deadline> {
        self.held?;
        let own = self.restart_at.filter(|_| !self.is_delegated());
        own.into_iter().chain(self.ask_at).min()
    }

    fn is_delegated(&self) -> bool {
        self.held.is_some_and(|held| self.delegated == Some(held.id))
    }

    fn may_restart(&self, now: Moment) -> bool {
        self.restart_again_at.is_none_or(|again_at| again_at.is_over(now))
    }

    /// Whether the wait after a failure is over.
    fn may_try(&mut self, now: Moment) -> bool {
        if self.again_at.is_some_and(|again_at| !again_at.is_over(now)) {
            return false;
        }
        self.again_at = None;
        true
    }

    /// An event of ours is out, or may be: until it is over a shorter one loses to it.
    fn note_sent(&mut self, now: Moment, sticky: Duration) {
        if sticky > self.pace.degraded_sticky() {
            let until = now.deadline(sticky + self.timeout());
            self.outranked_until = self.outranked_until.max(Some(until));
        }
    }

    /// A leave is out, or may be: nobody sees the member any more.
    fn has_left(&mut self) {
        self.sending = None;
        self.has_fired |= self.seen.take().is_some();
    }

    /// Nobody sees the member any more, or nobody may: where it is not to join again by itself, that is
    /// the end. What may still show it later is ended by a leave.
    fn end(&mut self, failure: HeartbeatFailure) {
        if self.rejoins || !self.has_joined {
            return;
        }
        match self.wanted {
            Wanted::In => {
                // It is not repeated, as it could show the member again.
                self.has_left();
                self.again_at = None;
                self.fail(failure);
            }
            // No request goes out before it is resumed.
            Wanted::Kept => self.ended = Some(failure),
            // What looked like a removal was the leave.
            Wanted::Dead(HeartbeatFailure::Removed) => self.fail(failure),
            _ => {}
        }
    }

    /// Whether the join is over, or could be before a refresh lands. While nobody knows whether the
    /// lease has fired, that is asked first.
    fn has_run_out(&self, now: Moment) -> bool {
        let is_known = self.held.is_none_or(|held| !held.holds_until.is_over(now));
        let soon = now.deadline(self.timeout());
        // One that was not answered may have been there, and be over.
        let unsure = self.sending.filter(|sending| sending.is_unsure);
        let ends_at = match self.seen {
            Some(seen) => Some(seen.ends_at),
            None => unsure.map(|sending| sending.since.deadline(sending.sticky)),
        };
        self.wanted == Wanted::In && is_known && ends_at.is_some_and(|ends_at| ends_at <= soon)
    }

    /// The next join is another event, and not a repetition of one that is not answered.
    fn must_join_anew(&mut self) {
        self.sending = None;
        if let Some(seen) = &mut self.seen {
            seen.version = u64::MAX;
        }
    }

    /// From when on a short join does not lose to what we sent before.
    fn short_at(&self) -> Option<Deadline> {
        Some(self.outranked_until?.earlier(self.pace.degraded_sticky()))
    }

    fn may_be_short(&self, now: Moment) -> bool {
        self.short_at().is_none_or(|at| at.is_over(now))
    }

    fn fail(&mut self, failure: HeartbeatFailure) {
        self.wanted = Wanted::Dead(failure);
    }

    fn back_off(&mut self, now: Moment, step: Step, retry_after: Option<Duration>) {
        let wait = self.pace.backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        let wait = self.jittered(wait).min(self.pace.longest_wait());
        let asked = retry_after.unwrap_or_default().min(HeartbeatTiming::LONGEST_RETRY_AFTER);
        match step {
            Step::Restart(_) => {
                // A longer wait would be the end of the lease, so there is time for three more tries.
                let left = self.held.map_or(wait, |held| held.holds_until.left(now));
                let wait = wait.min((left / 4).max(self.pace.backoff(0)));
                let asked = asked.min(self.held.map_or(asked, |held| held.delay));
                self.restart_again_at = Some(now.deadline(wait.max(asked)));
            }
            _ => self.again_at = Some(now.deadline(wait.max(asked))),
        }
    }

    fn timeout(&self) -> Duration {
        // An earlier process's lease may be a shorter one.
        let delay = self.held.map_or(self.delay, |held| held.delay.min(self.delay));
        self.pace.timeout(delay)
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

#[cfg(all(test, feature = "client"))]
#[allow(clippy::unwrap_used)]
mod crowd;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod simulation;
#[cfg(test)]
mod tests;
