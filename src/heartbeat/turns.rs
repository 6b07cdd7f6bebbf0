//! Turns: the pace that all heartbeats of a client share.
//!
//! In: which heartbeat wants to make a request, and when its lease ends; what the server answered,
//! each with the moment. Out: whether the request may go out now, or when to ask again; whether to
//! restart less often. No clock, no I/O.
//!
//! A server counts the requests of a *user*: all rooms and all devices together. Synapse's defaults
//! allow one restart a second and a message every five seconds. So after a 429 the heartbeats of a
//! client queue up, and the one whose lease ends first goes first.

use std::{collections::HashMap, time::Duration};

use super::Step;
use crate::time::{Deadline, Moment};

/// How long restarts stay rare after a 429. When that is over the heartbeats try their usual pace.
const SLOW_FOR: Duration = Duration::from_secs(300);

/// How long the heartbeats keep the gap that a 429 asked for.
const GAP_FOR: Duration = Duration::from_secs(20);

/// The gaps between two requests, where a server asks for shorter or longer ones.
const GAPS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(10)];

/// The number of a heartbeat, of this client's.
pub(super) type HeartbeatId = u64;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Restarts, firings and cancellations, which a server counts apart.
    manage: Lane,
    /// Events. Arming counts as one.
    send: Lane,
    /// Until when restarts are rare.
    slow_until: Option<Deadline>,
}

/// The requests that one limit of the server is about.
#[derive(Debug, Default)]
struct Lane {
    limit: Option<Limit>,
    /// Who waits, and when its lease ends.
    waiting: HashMap<HeartbeatId, Deadline>,
}

/// What a 429 has asked for.
#[derive(Clone, Copy, Debug)]
struct Limit {
    gap: Duration,
    /// When the next request may go out.
    open_at: Deadline,
    /// When the limit is forgotten.
    until: Deadline,
}

impl Turns {
    /// Whether this request may go out now; otherwise when to ask again. `ends_at` is when it is too
    /// late for it.
    pub(super) fn ask(
        &mut self,
        now: Moment,
        who: HeartbeatId,
        step: Step,
        ends_at: Deadline,
    ) -> Result<(), Deadline> {
        self.forget(who);
        self.lane(step).ask(now, who, ends_at)
    }

    /// The server wants fewer requests of this kind.
    pub(super) fn handle_limit(&mut self, now: Moment, step: Step, retry_after: Option<Duration>) {
        if is_managing(step) {
            self.slow_until = Some(now.deadline(SLOW_FOR));
        }
        let gap = retry_after.unwrap_or_default().clamp(GAPS[0], GAPS[1]);
        let (open_at, until) = (now.deadline(gap), now.deadline(gap + GAP_FOR));
        self.lane(step).limit = Some(Limit { gap, open_at, until });
    }

    /// This heartbeat waits for nothing any more.
    pub(super) fn forget(&mut self, who: HeartbeatId) {
        self.manage.waiting.remove(&who);
        self.send.waiting.remove(&who);
    }

    /// Whether restarts are to be rare.
    pub(super) fn is_slow(&self, now: Moment) -> bool {
        self.slow_until.is_some_and(|until| !until.is_over(now))
    }

    fn lane(&mut self, step: Step) -> &mut Lane {
        if is_managing(step) { &mut self.manage } else { &mut self.send }
    }
}

impl Lane {
    fn ask(&mut self, now: Moment, who: HeartbeatId, ends_at: Deadline) -> Result<(), Deadline> {
        let Some(limit) = self.limit.filter(|limit| !limit.until.is_over(now)) else {
            self.limit = None;
            self.waiting.clear();
            return Ok(());
        };
        let is_before = |(id, end): (&HeartbeatId, &Deadline)| (*end, *id) < (ends_at, who);
        let before = self.waiting.iter().filter(|waiting| is_before(*waiting)).count();
        let before = u32::try_from(before).unwrap_or(u32::MAX);
        // Once the limit is forgotten nobody waits.
        let at = limit.open_at.after(limit.gap.saturating_mul(before)).min(limit.until);
        if !at.is_over(now) {
            self.waiting.insert(who, ends_at);
            return Err(at);
        }
        self.limit = Some(Limit { open_at: now.deadline(limit.gap), ..limit });
        Ok(())
    }
}

fn is_managing(step: Step) -> bool {
    matches!(step, Step::Restart(_) | Step::Fire(_) | Step::Cancel(_))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        heartbeat::LeaseId,
        testing::{secs, start},
    };

    const RESTART: Step = Step::Restart(LeaseId(0));

    #[test]
    fn without_a_limit_nobody_waits() {
        let (mut turns, now) = (Turns::default(), start());
        for who in 0..100 {
            assert_eq!(turns.ask(now, who, RESTART, now.deadline(secs(5))), Ok(()));
        }
        assert!(!turns.is_slow(now));
    }

    #[test]
    fn the_lease_that_ends_first_goes_first() {
        let (mut turns, now) = (Turns::default(), start());
        turns.handle_limit(now, RESTART, Some(secs(1)));
        let end = |seconds| now.deadline(secs(seconds));
        let at = |seconds| Err(now.deadline(secs(seconds)));
        assert_eq!(turns.ask(now, 1, RESTART, end(9)), at(1));
        assert_eq!(turns.ask(now, 2, RESTART, end(7)), at(1));
        assert_eq!(turns.ask(now, 3, RESTART, end(8)), at(2));
        assert_eq!(turns.ask(now, 1, RESTART, end(9)), at(3));
        let later = now.advanced(secs(1));
        assert_eq!(turns.ask(later, 2, RESTART, end(7)), Ok(()));
        assert_eq!(turns.ask(later, 1, RESTART, end(9)), at(3));
        // Another limit of the server's is not concerned.
        let join = Step::Arm { lease: LeaseId(0), delay: secs(15) };
        assert_eq!(turns.ask(later, 1, join, end(9)), Ok(()));
    }

    #[test]
    fn a_limit_of_events_makes_no_restart_rare() {
        let (mut turns, now) = (Turns::default(), start());
        let arm = Step::Arm { lease: LeaseId(0), delay: secs(15) };
        turns.handle_limit(now, arm, Some(secs(1)));
        assert!(!turns.is_slow(now));
        assert!(turns.ask(now, 1, arm, now.deadline(secs(5))).is_err());
        assert_eq!(turns.ask(now, 2, RESTART, now.deadline(secs(5))), Ok(()));
    }

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        let (mut turns, now) = (Turns::default(), start());
        turns.handle_limit(now, RESTART, Some(secs(10)));
        let waits = |who| turns.ask(now, who, RESTART, now.deadline(secs(5 + who)));
        let waits: Vec<_> = (0..5).map(waits).collect();
        let expected = [10, 20, 30, 30, 30].map(|seconds| Err(now.deadline(secs(seconds))));
        assert_eq!(waits, expected);
    }

    #[test]
    fn a_limit_is_forgotten_after_a_while() {
        let (mut turns, now) = (Turns::default(), start());
        turns.handle_limit(now, RESTART, None);
        assert!(turns.ask(now, 1, RESTART, now.deadline(secs(5))).is_err());
        assert!(turns.is_slow(now));
        let later = now.advanced(secs(21));
        for who in 0..9 {
            assert_eq!(turns.ask(later, who, RESTART, later.deadline(secs(5))), Ok(()));
        }
        assert!(turns.is_slow(now.advanced(secs(299))));
        assert!(!turns.is_slow(now.advanced(secs(301))));
    }
}
