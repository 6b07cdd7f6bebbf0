//! A model server, a network that loses, delays and repeats, and a heartbeat on it, in simulated
//! time. The laws are checked at every step.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::testing::start;

pub(super) const MINUTE: u64 = 60_000;

/// What the network and the server make of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It lands and is answered at once.
    Fine,
    /// As late as its timeout allows, in parts of 256: when it lands, when the answer comes.
    Slow(u8, u8),
    /// It never lands.
    Lost,
    /// It lands, and nobody hears of it.
    AnswerLost(u8),
    /// It lands twice.
    Twice,
    /// The server is overloaded: before it has done anything, or after.
    ServerError {
        has_landed: bool,
    },
    RateLimited {
        seconds: u8,
    },
    /// It never lands, and this is the answer.
    Refused(Outcome),
}

/// A leave that was scheduled, as the server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delayed {
    Scheduled { fires_at: u64 },
    Sent,
    Cancelled,
}

#[derive(Clone, Copy, Debug)]
struct Event {
    at: u64,
    sticky: u64,
    is_join: bool,
    /// Whether it is a leave that was armed.
    was_armed: bool,
    process: u32,
}

/// A server, as the proposals have it. Time is in milliseconds since the start.
#[derive(Default)]
pub(super) struct Server {
    now: u64,
    /// By process and lease, which stand for the transaction id.
    delayed: BTreeMap<(u32, LeaseId), (Delayed, u64)>,
    sent: BTreeMap<(u32, SendId), ()>,
    events: Vec<Event>,
    down_until: u64,
    pub(super) has_no_delayed_events: bool,
    pub(super) quota_is_full: bool,
    pub(super) refuses_joins: bool,
    /// What is armed it sends all the same.
    pub(super) refuses_leaves: bool,
    /// What each arming is answered with, if it is not taken.
    pub(super) arming_is: Option<Outcome>,
    /// The longest delay, if there is one.
    pub(super) longest_delay: Option<Duration>,
    pub(super) requests: u64,
    sticky: u64,
}

impl Server {
    /// Whether everybody sees the member now.
    pub(super) fn shows_member(&self) -> bool {
        self.value().is_some_and(|event| event.is_join)
    }

    /// Whether what everybody sees is a leave that was sent, and not one that was armed.
    pub(super) fn shows_last_words(&self) -> bool {
        self.value().is_some_and(|event| !event.is_join && !event.was_armed)
    }

    /// How many joins it has.
    pub(super) fn joins(&self) -> usize {
        self.events.iter().filter(|event| event.is_join).count()
    }

    /// How many leaves are armed.
    pub(super) fn armed(&self) -> usize {
        let is_armed = |delayed: &&(Delayed, u64)| matches!(delayed.0, Delayed::Scheduled { .. });
        self.delayed.values().filter(is_armed).count()
    }

    /// The event that counts, MSC4354's way.
    fn value(&self) -> Option<Event> {
        let live =
            self.events.iter().filter(|event| event.at + event.sticky.min(60 * MINUTE) > self.now);
        live.max_by_key(|event| (event.at + event.sticky, event.at)).copied()
    }

    pub(super) fn is_down_for(&self) -> u64 {
        self.down_until.saturating_sub(self.now)
    }

    fn next_firing(&self) -> Option<u64> {
        let due = self.delayed.values().filter_map(|(delayed, _)| match delayed {
            Delayed::Scheduled { fires_at } => Some((*fires_at).max(self.down_until)),
            _ => None,
        });
        due.min()
    }

    fn advance(&mut self, to: u64) {
        while let Some(at) = self.next_firing().filter(|at| *at <= to) {
            self.now = self.now.max(at);
            let sticky = self.sticky;
            for (delayed, _) in self.delayed.values_mut() {
                if matches!(delayed, Delayed::Scheduled { fires_at } if *fires_at <= at) {
                    *delayed = Delayed::Sent;
                    self.events.push(Event {
                        at,
                        sticky,
                        is_join: false,
                        was_armed: true,
                        process: 0,
                    });
                }
            }
        }
        self.now = to;
    }

    /// Does what a request asks for.
    fn handle(&mut self, process: u32, step: Step) -> Outcome {
        self.requests += 1;
        let now = self.now;
        match step {
            Step::Arm { lease, delay } => {
                if self.has_no_delayed_events {
                    return Outcome::NoDelayedEvents;
                }
                if let Some(refusal) = self.arming_is {
                    return refusal;
                }
                if self.delayed.contains_key(&(process, lease)) {
                    return Outcome::Done;
                }
                if self.quota_is_full {
                    return Outcome::QuotaFull { retry_after: Some(Duration::from_secs(60)) };
                }
                if let Some(max) = self.longest_delay.filter(|max| *max < delay) {
                    return Outcome::TooLong { max: Some(max) };
                }
                let delay = millis(delay);
                let scheduled = Delayed::Scheduled { fires_at: now + delay };
                self.delayed.insert((process, lease), (scheduled, delay));
                Outcome::Done
            }
            Step::Restart(lease) => match self.delayed.get_mut(&(process, lease)) {
                Some((Delayed::Scheduled { fires_at }, delay)) => {
                    *fires_at = now + *delay;
                    Outcome::Done
                }
                _ => Outcome::Gone,
            },
            Step::Fire(lease) => match self.delayed.get_mut(&(process, lease)) {
                Some((delayed @ Delayed::Scheduled { .. }, _)) => {
                    *delayed = Delayed::Sent;
                    let sticky = self.sticky;
                    self.events.push(Event {
                        at: now,
                        sticky,
                        is_join: false,
                        was_armed: true,
                        process,
                    });
                    Outcome::Done
                }
                _ => Outcome::Gone,
            },
            Step::Cancel(lease) => match self.delayed.get_mut(&(process, lease)) {
                Some((delayed @ Delayed::Scheduled { .. }, _)) => {
                    *delayed = Delayed::Cancelled;
                    Outcome::Done
                }
                _ => Outcome::Gone,
            },
            Step::Join { send, sticky } => {
                // What was taken once is answered as then.
                if self.refuses_joins && !self.sent.contains_key(&(process, send)) {
                    return Outcome::Refused;
                }
                self.send(process, send, sticky, true)
            }
            Step::Leave { send, .. }
                if self.refuses_leaves && !self.sent.contains_key(&(process, send)) =>
            {
                Outcome::Refused
            }
            Step::Leave { send, sticky } => self.send(process, send, sticky, false),
        }
    }

    fn send(&mut self, process: u32, send: SendId, sticky: Duration, is_join: bool) -> Outcome {
        if self.sent.insert((process, send), ()).is_none() {
            // What is over counts for nothing any more.
            self.events.retain(|event| event.at + event.sticky.min(60 * MINUTE) > self.now);
            let (at, sticky) = (self.now, millis(sticky));
            self.events.push(Event { at, sticky, is_join, was_armed: false, process });
        }
        Outcome::Done
    }

    /// When the last leave that is armed fires.
    fn armed_until(&self) -> Option<u64> {
        self.delayed
            .values()
            .filter_map(|(delayed, _)| match delayed {
                Delayed::Scheduled { fires_at } => Some(*fires_at),
                _ => None,
            })
            .min()
    }
}

/// A request that is under way.
struct UnderWay {
    step: Step,
    lands_at: Vec<u64>,
    answered_at: u64,
    is_answered: bool,
    refusal: Option<Outcome>,
    outcome: Outcome,
}

/// A heartbeat and what it stands on.
pub(super) struct World {
    pub(super) server: Server,
    pub(super) heartbeat: HeartbeatMachine,
    pub(super) pace: HeartbeatTiming,
    fates: Box<dyn Iterator<Item = Fate>>,
    under_way: Option<UnderWay>,
    /// How long it takes to encrypt an event.
    pub(super) encrypts_for: u64,
    /// How many of the next events cannot be encrypted at once.
    pub(super) unprepared: u8,
    /// What is being encrypted, and until when.
    encrypting: Vec<(Step, u64)>,
    encrypted: Vec<Step>,
    /// The process that the heartbeat is in; a crash starts the next one.
    process: u32,
    /// What stands in the store: leases, with the process that armed them.
    stored: Vec<(u32, LeaseId)>,
    /// Leases that another process armed, by their numbers in this one.
    found: BTreeMap<LeaseId, (u32, LeaseId)>,
    /// Leases whose delay id is known.
    known: Vec<(u32, LeaseId)>,
    asleep_until: u64,
    no_network_until: u64,
    pub(super) tells_of_fired: bool,
    told: Vec<(u32, LeaseId)>,
    pub(super) states: Vec<HeartbeatState>,
    seed: u64,
    /// Until when an event that nobody could know of may show.
    forgiven_until: u64,
    longest_delay: Duration,
    pub(super) rejoins: bool,
    /// Where it does not join again by itself: whether this process's join is gone.
    was_gone: bool,
    was_there: bool,
    /// With which delay each lease was armed, as the store has it.
    delays: BTreeMap<(u32, LeaseId), Duration>,
    was_shown: bool,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

impl World {
    pub(super) fn new(
        pace: HeartbeatTiming,
        seed: u64,
        fates: impl IntoIterator<Item = Fate> + 'static,
    ) -> Self {
        let heartbeat = HeartbeatMachine::new(pace, seed);
        let server = Server { sticky: millis(pace.sticky()), ..Server::default() };
        Self {
            server,
            heartbeat,
            pace,
            fates: Box::new(fates.into_iter().collect::<Vec<_>>().into_iter()),
            under_way: None,
            encrypts_for: 0,
            unprepared: 0,
            encrypting: Vec::new(),
            encrypted: Vec::new(),
            process: 0,
            stored: Vec::new(),
            found: BTreeMap::new(),
            known: Vec::new(),
            asleep_until: 0,
            no_network_until: 0,
            tells_of_fired: false,
            told: Vec::new(),
            states: Vec::new(),
            seed,
            forgiven_until: 0,
            longest_delay: pace.delay(),
            rejoins: true,
            was_gone: false,
            was_there: false,
            delays: BTreeMap::new(),
            was_shown: false,
        }
    }

    pub(super) fn moment(&self) -> Moment {
        start().advanced(Duration::from_millis(self.server.now))
    }

    pub(super) fn state(&self) -> HeartbeatState {
        self.heartbeat.state(self.moment())
    }

    /// The network and the server are fine from now on.
    pub(super) fn mend(&mut self) {
        self.fates = Box::new(std::iter::empty());
        self.no_network_until = 0;
        self.server.quota_is_full = false;
        self.server.down_until = 0;
        self.unprepared = 0;
    }

    /// What becomes of the next requests.
    pub(super) fn fates(&mut self, fates: impl IntoIterator<Item = Fate>) {
        self.fates = Box::new(fates.into_iter().collect::<Vec<_>>().into_iter());
    }

    /// The server does not take the leave, so everybody may go on seeing the member.
    pub(super) fn forgive_a_ghost(&mut self) {
        self.forgiven_until = u64::MAX;
    }

    pub(super) fn cut_network(&mut self, ms: u64) {
        self.no_network_until = self.server.now + ms;
    }

    /// The machine sleeps: nothing of ours runs, and the server goes on.
    pub(super) fn sleep(&mut self, ms: u64) {
        self.asleep_until = self.server.now + ms;
        self.pass(ms);
    }

    pub(super) fn take_server_down(&mut self, ms: u64) {
        self.server.down_until = self.server.now + ms;
    }

    /// The process dies: what is under way goes on its way.
    pub(super) fn crash(&mut self) {
        self.heartbeat = HeartbeatMachine::new(self.pace, self.seed);
        self.heartbeat.handle_leave();
        self.heartbeat.is_done = true;
        self.asleep_until = u64::MAX;
    }

    /// Another process starts on the same store.
    /// As [`start_again`](Self::start_again), at another pace. Not with a shorter stickiness: what the
    /// one before has sent would outrank it, and nobody tells.
    pub(super) fn start_again_with(&mut self, pace: HeartbeatTiming) {
        let pace =
            HeartbeatTiming::new(pace.delay(), pace.sticky().max(self.pace.sticky())).unwrap();
        self.server.sticky = self.server.sticky.max(millis(pace.sticky()));
        self.pace = pace;
        self.longest_delay = self.longest_delay.max(pace.delay());
        self.start_again();
    }

    pub(super) fn start_again(&mut self) {
        self.asleep_until = 0;
        self.process += 1;
        self.seed += 1;
        self.under_way = None;
        self.encrypting.clear();
        self.encrypted.clear();
        self.heartbeat =
            HeartbeatMachine::new(self.pace, self.seed).with_rejoin(rejoin(self.rejoins));
        self.found.clear();
        for stored in self.stored.clone() {
            let now = self.moment();
            let sticky = Duration::from_millis(self.server.sticky);
            let id = self.heartbeat.handle_found(now, sticky, self.delays[&stored]);
            self.found.insert(id, stored);
        }
        self.poll();
    }

    /// It is not to join again by itself.
    pub(super) fn not_rejoining(self) -> Self {
        self.rejoining(false)
    }

    /// Whether it is to join again by itself.
    pub(super) fn rejoining(mut self, rejoins: bool) -> Self {
        self.rejoins = rejoins;
        self.heartbeat = HeartbeatMachine::new(self.pace, self.seed).with_rejoin(rejoin(rejoins));
        self
    }

    /// Whether no join is under way, and none can follow right after a restart: one that lands just
    /// after somebody else has fired the leave is outside of the promise.
    pub(super) fn is_quiet(&self) -> bool {
        let timeout = self.heartbeat.timeout();
        let was_just_asked = self.heartbeat.held.is_some_and(|held| {
            held.holds_until > self.moment().deadline(held.delay.saturating_sub(timeout))
        });
        self.under_way.is_none() && !was_just_asked
    }

    /// Whether what is held is delegated. Of another lease nobody else knows, so that nobody fires it.
    pub(super) fn is_delegated(&self) -> bool {
        self.heartbeat.is_delegated()
    }

    /// Somebody else fires what is held, as one to whom it was delegated may.
    pub(super) fn fire_from_outside(&mut self) {
        if let Some(held) = self.heartbeat.held() {
            let (process, lease) = self.origin(held);
            self.server.handle(process, Step::Fire(lease));
            // A join that is under way may land after it, and the next restart tells.
            self.forgiven_until = self.server.now + millis(self.longest_delay) + 30_000;
        }
    }

    /// Tells the heartbeat something, and lets it act.
    pub(super) fn tell(&mut self, tell: impl FnOnce(&mut HeartbeatMachine, Moment)) {
        let now = self.moment();
        tell(&mut self.heartbeat, now);
        self.check_that_it_stays_away();
        if self.asleep_until <= self.server.now {
            self.poll();
        }
        self.check();
    }

    /// So much time passes.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.server.now + ms;
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(turns < 50_000, "a hot loop: {:?}", self.heartbeat);
            if self.asleep_until <= self.server.now {
                self.poll();
            }
            let next = self.next().filter(|next| *next < end);
            self.server.advance(next.unwrap_or(end));
            self.land();
            if self.asleep_until <= self.server.now {
                self.finish_encrypting();
                self.answer();
                self.tell_of_fired();
                self.poll();
            }
            self.check();
            if next.is_none() {
                break;
            }
        }
    }

    fn next(&self) -> Option<u64> {
        let now = self.server.now;
        let mut next: Vec<_> = self.server.next_firing().into_iter().collect();
        if let Some(under_way) = &self.under_way {
            next.extend(under_way.lands_at.iter().copied());
            next.push(under_way.answered_at.max(self.asleep_until.max(now)));
        }
        let asleep_until = self.asleep_until;
        next.extend(self.encrypting.iter().map(|(_, until)| (*until).max(asleep_until)));
        let deadline = self.heartbeat.next_deadline(self.moment());
        if let Some(deadline) = deadline.filter(|_| self.asleep_until != u64::MAX) {
            let left = millis(deadline.left(self.moment()));
            // A deadline that has come and brought nothing is a wait of a millisecond, and many of
            // them a hot loop.
            next.push((now + left.max(1)).max(self.asleep_until));
        }
        next.into_iter().filter(|next| *next > now).min()
    }

    /// The longest delay that is or was in use: a lease of an earlier process may be the one held.
    pub(super) fn longest_delay(&self) -> Duration {
        self.longest_delay
    }

    /// What a lease of the heartbeat's is called in the store.
    fn origin(&self, lease: LeaseId) -> (u32, LeaseId) {
        self.found.get(&lease).copied().unwrap_or((self.process, lease))
    }

    fn as_stored(&self, lease: LeaseId, step: impl Fn(LeaseId) -> Step) -> (u32, Step) {
        let (process, lease) = self.origin(lease);
        (process, step(lease))
    }

    /// Whether the event of a step has to be encrypted first; then that begins.
    fn is_encrypting(&mut self, step: Step) -> bool {
        let carries = match step {
            Step::Arm { lease, .. } => !self.found.contains_key(&lease),
            Step::Join { .. } | Step::Leave { .. } => true,
            _ => false,
        };
        if !carries || self.encrypts_for == 0 || self.encrypted.contains(&step) {
            return false;
        }
        self.encrypting.push((step, self.server.now + self.encrypts_for));
        true
    }

    fn finish_encrypting(&mut self) {
        let now = self.server.now;
        let moment = self.moment();
        for (step, _) in self.encrypting.extract_if(.., |(_, until)| *until <= now) {
            let mut outcome = Outcome::Done;
            if self.heartbeat.awaits(step) {
                if self.unprepared > 0 {
                    self.unprepared -= 1;
                    outcome = Outcome::Unknown;
                } else {
                    self.encrypted.push(step);
                }
            }
            self.heartbeat.handle_prepared(moment, step, outcome);
        }
    }

    fn poll(&mut self) {
        let now = self.server.now;
        let moment = self.moment();
        let mut turns = 0;
        let (step, timeout) = loop {
            turns += 1;
            assert!(turns < 100, "a hot loop: {:?}", self.heartbeat);
            let Some(action) = self.heartbeat.poll_action(moment) else { return };
            if !self.is_encrypting(action.step) {
                break (action.step, action.timeout);
            }
            self.heartbeat.handle_outcome(moment, Outcome::Preparing);
        };
        self.check_step(step, timeout);
        if let Step::Arm { lease, delay } = step {
            let origin = self.origin(lease);
            self.delays.entry(origin).or_insert(delay);
            if !self.stored.contains(&origin) {
                self.stored.push(origin);
            }
        }
        let timeout = millis(timeout);
        let part = |part: u8| 1 + (timeout - 2) * u64::from(part) / 256;
        let fate = self.fates.next().unwrap_or(Fate::Fine);
        let (lands, answer) = match fate {
            Fate::Fine | Fate::ServerError { has_landed: true } => (vec![20], Some(40)),
            Fate::Twice => (vec![20, 35], Some(40)),
            Fate::Slow(land, answer) => {
                let land = part(land);
                (vec![land], Some(land.max(part(answer)) + 1))
            }
            Fate::Lost => (vec![], None),
            Fate::AnswerLost(land) => (vec![part(land)], None),
            Fate::ServerError { has_landed: false }
            | Fate::RateLimited { .. }
            | Fate::Refused(_) => (vec![], Some(40)),
        };
        let refusal = match fate {
            Fate::RateLimited { seconds } => {
                let retry_after = Some(Duration::from_secs(u64::from(seconds)));
                Some(Outcome::RateLimited { retry_after })
            }
            Fate::ServerError { .. } => Some(Outcome::Unknown),
            Fate::Refused(outcome) => Some(outcome),
            _ => None,
        };
        let is_cut = now < self.no_network_until;
        self.under_way = Some(UnderWay {
            step,
            lands_at: if is_cut { vec![] } else { lands.iter().map(|land| now + land).collect() },
            answered_at: now + answer.filter(|_| !is_cut).unwrap_or(timeout),
            is_answered: answer.is_some() && !is_cut,
            refusal,
            outcome: Outcome::Unknown,
        });
    }

    fn land(&mut self) {
        let now = self.server.now;
        let Some(under_way) = &mut self.under_way else { return };
        let Some(at) = under_way.lands_at.iter().position(|at| *at <= now) else { return };
        under_way.lands_at.remove(at);
        if now < self.server.down_until {
            return;
        }
        let step = under_way.step;
        let (process, step) = match step {
            Step::Arm { lease, delay } => self.as_stored(lease, |lease| Step::Arm { lease, delay }),
            Step::Restart(lease) => self.as_stored(lease, Step::Restart),
            Step::Fire(lease) => self.as_stored(lease, Step::Fire),
            Step::Cancel(lease) => self.as_stored(lease, Step::Cancel),
            step => (self.process, step),
        };
        let outcome = self.server.handle(process, step);
        if let Some(under_way) = &mut self.under_way {
            under_way.outcome = outcome;
        }
    }

    fn answer(&mut self) {
        let now = self.server.now;
        let Some(under_way) = self.under_way.take_if(|under_way| under_way.answered_at <= now)
        else {
            return;
        };
        let UnderWay { step, is_answered, refusal, outcome, .. } = under_way;
        let outcome = if is_answered { refusal.unwrap_or(outcome) } else { Outcome::Unknown };
        if let (Step::Arm { lease, .. }, Outcome::Done) = (step, outcome) {
            self.known.push(self.origin(lease));
        }
        let moment = self.moment();
        self.heartbeat.handle_outcome(moment, outcome);
        let needed = |(process, lease): &(u32, LeaseId)| {
            let found = self.found.iter().find(|(_, origin)| **origin == (*process, *lease));
            match found {
                Some((id, _)) => self.heartbeat.needs(*id),
                None => *process == self.process && self.heartbeat.needs(*lease),
            }
        };
        self.stored = self.stored.iter().copied().filter(needed).collect();
    }

    /// The sync brings our own leave back.
    fn tell_of_fired(&mut self) {
        let is_shown = self.server.shows_member();
        let was_shown = std::mem::replace(&mut self.was_shown, is_shown);
        if !self.tells_of_fired {
            return;
        }
        let now = self.moment();
        if was_shown && !is_shown {
            self.heartbeat.handle_doubt(now);
        } else if is_shown && self.under_way.is_none() {
            self.heartbeat.handle_shown();
        }
        let fired =
            self.server.delayed.iter().filter(|(_, (delayed, _))| *delayed == Delayed::Sent);
        for origin in fired.map(|(origin, _)| *origin).collect::<Vec<_>>() {
            if origin.0 == self.process
                && self.known.contains(&origin)
                && !self.told.contains(&origin)
            {
                self.told.push(origin);
                let now = self.moment();
                self.heartbeat.handle_fired(now, origin.1);
            }
        }
    }

    /// Nothing is asked of the driver that it cannot do, or may not.
    fn check_step(&self, step: Step, timeout: Duration) {
        let knows = |lease| self.known.contains(&self.origin(lease));
        match step {
            Step::Restart(lease) | Step::Fire(lease) | Step::Cancel(lease) => {
                assert!(knows(lease), "{step:?} without its delay id");
            }
            Step::Join { sticky, .. } if sticky > self.pace.degraded_sticky() => {
                let held = self.heartbeat.held.expect("a join without a lease");
                assert!(self.moment().deadline(timeout) < held.holds_until);
            }
            _ => {}
        }
        let timeouts = timeout <= Duration::from_secs(5) && timeout <= self.pace.delay() / 3;
        assert!(timeouts && !timeout.is_zero());
    }

    /// Who does not join again by itself is not seen again.
    fn check_that_it_stays_away(&mut self) {
        let is_there =
            self.server.value().is_some_and(|it| it.is_join && it.process == self.process);
        if !self.heartbeat.has_joined {
            // What is to come is by the owner's wish.
            (self.was_there, self.was_gone) = (false, false);
            return;
        }
        self.was_gone |= self.was_there && !is_there;
        self.was_there |= is_there;
        let is_back = is_there && self.was_gone && !self.rejoins;
        // Of a leave that somebody else has fired nobody may have known, before the sync told.
        let is_told = self.tells_of_fired && self.server.now >= self.forgiven_until;
        let may_be = self.forgiven_until > 0 && !is_told;
        assert!(!is_back || may_be, "it is back: {:?}", self.heartbeat);
    }

    /// The laws, at every moment.
    fn check(&mut self) {
        let state = self.state();
        if self.states.last() != Some(&state) {
            self.states.push(state);
        }
        let now = self.server.now;
        self.check_that_it_stays_away();
        let Some(value) = self.server.value().filter(|event| event.is_join) else {
            // Whoever it is delegated to does nothing here.
            let is_delegated = self.heartbeat.is_delegated();
            let may_be =
                state != HeartbeatState::Joined || is_delegated || now < self.forgiven_until;
            assert!(may_be, "joined, and nobody sees the member");
            return;
        };
        // While the server is down nothing fires, and nobody sees anything either.
        if now < self.server.down_until || now < self.forgiven_until {
            return;
        }
        // An earlier process may have had another pace.
        let short = self.server.sticky.min(10 * MINUTE);
        let by_end = value.at + value.sticky;
        let armed = self.server.armed_until();
        let is_bounded = armed.is_some_and(|until| until <= now + millis(self.longest_delay))
            || by_end - now <= short;
        assert!(is_bounded, "a crash now would leave a ghost: {value:?}, armed until {armed:?}");
        // What a process before this one sent in the degraded state, this one cannot know of.
        let is_ours = value.process == self.process || value.sticky > short;
        // Nobody can leave whom the server does not answer.
        let is_told = !matches!(state, HeartbeatState::Failed(HeartbeatFailure::LeaveUnanswered));
        let is_left = matches!(state, HeartbeatState::Left | HeartbeatState::Failed(_))
            && is_told
            && self.asleep_until != u64::MAX;
        assert!(!is_left || !is_ours, "{state:?}, and everybody sees the member");
    }
}

pub(super) fn rejoin(rejoins: bool) -> Rejoin {
    if rejoins { Rejoin::Automatic } else { Rejoin::Never }
}
