//! Reach: who can read what a heartbeat has sent, and who is to be offered the key again.
//!
//! In: who holds the room keys of the leave and of the join, who is in the room now, each with the
//! moment. Out: whether somebody came who cannot read them, and when to try again to reach a device
//! that could not get a key. No clock, no I/O, no store.
//!
//! A device that could not be reached would not see the member before the next refresh, and could not
//! read the leave. So it is offered the key again, while the join lives. A device that goes away
//! changes nothing.

use std::time::Duration;

use crate::{
    readers::Readers,
    time::{Deadline, Moment},
};

/// The first pause before a device that could not be reached is offered the key again. The pauses
/// double.
const FIRST_PAUSE: Duration = Duration::from_secs(15);

/// The longest pause: a device that is gone for good costs four claims an hour.
const LONGEST_PAUSE: Duration = Duration::from_secs(900);

/// Who could be reached, and who could not.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Who holds the key of the leave that was armed last; `None` before there is one.
    leave: Option<Readers>,
    /// Who holds the key of the last join.
    join: Option<Readers>,
    /// Who was there when the leave was armed.
    expected: Readers,
    pauses: u32,
    offer_at: Option<Deadline>,
}

impl Reach {
    /// A leave is encrypted for these. `expected` are those who were there.
    pub(super) fn handle_leave(&mut self, now: Moment, reached: Readers, expected: Readers) {
        // To encrypt it is to ask who is there: some may not have been known before.
        self.expected = expected.with(&reached);
        self.leave = Some(reached);
        self.look_for_missing(now);
    }

    /// A join is encrypted for these. `there` are those who are in the room.
    pub(super) fn handle_join(&mut self, now: Moment, reached: Readers, there: &Readers) {
        if self.leave.is_none() {
            // No leave could be armed, and the join is all that there is to read.
            self.expected = self.expected.with(there).with(&reached);
        }
        self.join = Some(reached);
        self.look_for_missing(now);
    }

    /// Who is there now. Returns whether somebody is new who cannot read the leave.
    pub(super) fn handle_readers(&mut self, readers: &Readers) -> bool {
        if self.leave.is_none() && self.join.is_none() {
            return false;
        }
        // Somebody who was there is a newcomer no more: it is offered the key, or holds it.
        let is_new = !self.expected.covers(readers);
        self.expected = self.expected.with(readers);
        is_new
    }

    /// Whether to try now to reach those who could not be.
    pub(super) fn poll_offer(&mut self, now: Moment) -> bool {
        let is_due = self.offer_at.is_some_and(|at| at.is_over(now));
        if is_due {
            self.offer_at = None;
        }
        is_due
    }

    /// Who holds the room key after another try, as far as that is known; `there` is who is in the
    /// room. Returns whether somebody was gained, who now needs a leave and a join to read.
    pub(super) fn handle_offered(
        &mut self,
        now: Moment,
        holders: Option<&Readers>,
        there: &Readers,
    ) -> bool {
        let missing = self.missing();
        self.expected = self.expected.within(there);
        if holders.is_some_and(|holders| missing.has_any_of(holders)) {
            return true;
        }
        self.look_for_missing(now);
        false
    }

    /// When to call [`poll_offer`](Self::poll_offer).
    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        self.offer_at
    }

    /// Who was there and could not be reached.
    fn missing(&self) -> Readers {
        let leave = self.leave.as_ref().map(|leave| self.expected.without(leave));
        let join = self.join.as_ref().map(|join| self.expected.without(join));
        leave.unwrap_or_default().with(&join.unwrap_or_default())
    }

    fn look_for_missing(&mut self, now: Moment) {
        if Readers::default().covers(&self.missing()) {
            self.pauses = 0;
            self.offer_at = None;
        } else if self.offer_at.is_none() {
            let pause = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(6)).min(LONGEST_PAUSE);
            self.pauses = self.pauses.saturating_add(1);
            self.offer_at = Some(now.deadline(pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{secs, start};

    fn readers(numbers: impl IntoIterator<Item = u64>) -> Readers {
        numbers.into_iter().map(|number| (number, number)).collect()
    }

    #[test]
    fn who_goes_away_changes_nothing() {
        let (mut reach, now) = (Reach::default(), start());
        reach.handle_leave(now, readers([1, 2, 3]), readers([1, 2, 3]));
        reach.handle_join(now, readers([1, 2, 3]), &readers([]));
        assert!(!reach.handle_readers(&readers([1, 2])));
        // A member who flaps is known.
        assert!(!reach.handle_readers(&readers([1, 2, 3])));
        assert_eq!(reach.next_deadline(), None);
    }

    #[test]
    fn who_comes_is_new_once() {
        let (mut reach, now) = (Reach::default(), start());
        assert!(!reach.handle_readers(&readers([1])), "nothing is armed yet");
        reach.handle_leave(now, readers([1]), readers([1]));
        assert!(reach.handle_readers(&readers([1, 2])));
        assert!(!reach.handle_readers(&readers([1, 2])));
    }

    #[test]
    fn who_was_not_reached_is_tried_again_ever_more_rarely() {
        let (mut reach, mut now) = (Reach::default(), start());
        reach.handle_leave(now, readers([1]), readers([1, 2]));
        reach.handle_join(now, readers([1]), &readers([]));
        for pause in [15, 30, 60, 120, 240, 480, 900, 900] {
            assert_eq!(reach.next_deadline(), Some(now.deadline(secs(pause))));
            assert!(!reach.poll_offer(now));
            now = now.advanced(secs(pause));
            assert!(reach.poll_offer(now));
            assert!(!reach.handle_offered(now, Some(&readers([1])), &readers([1, 2])));
        }
        now = now.advanced(secs(900));
        assert!(reach.poll_offer(now));
        assert!(reach.handle_offered(now, Some(&readers([1, 2])), &readers([1, 2])), "gained");
        reach.handle_leave(now, readers([1, 2]), readers([1, 2]));
        reach.handle_join(now, readers([1, 2]), &readers([]));
        assert_eq!(reach.next_deadline(), None);
    }

    /// Each time costs everybody a hand-over.
    #[test]
    fn who_is_gained_and_lost_again_is_tried_ever_more_rarely() {
        let (mut reach, mut now) = (Reach::default(), start());
        for pause in [15, 30, 60, 120] {
            reach.handle_leave(now, readers([1]), readers([1, 2]));
            reach.handle_join(now, readers([1]), &readers([]));
            assert_eq!(reach.next_deadline(), Some(now.deadline(secs(pause))));
            now = now.advanced(secs(pause));
            assert!(reach.poll_offer(now));
            assert!(reach.handle_offered(now, Some(&readers([1, 2])), &readers([1, 2])));
        }
    }

    #[test]
    fn who_is_gone_is_not_offered_anything() {
        let (mut reach, now) = (Reach::default(), start());
        reach.handle_leave(now, readers([1]), readers([1, 2]));
        let later = now.advanced(secs(15));
        assert!(reach.poll_offer(later));
        assert!(!reach.handle_offered(later, Some(&readers([1])), &readers([1])));
        assert_eq!(reach.next_deadline(), None);
    }

    /// The server takes no delayed event.
    #[test]
    fn who_comes_to_a_join_without_a_leave_is_new() {
        let (mut reach, now) = (Reach::default(), start());
        reach.handle_join(now, readers([1]), &readers([1]));
        assert!(!reach.handle_readers(&readers([1])));
        assert!(reach.handle_readers(&readers([1, 2])));
        reach.handle_join(now, readers([1]), &readers([1, 2]));
        assert_eq!(reach.next_deadline(), Some(now.deadline(secs(15))), "it could not be reached");
    }

    #[test]
    fn who_could_not_get_the_join_is_offered_it() {
        let (mut reach, now) = (Reach::default(), start());
        reach.handle_leave(now, readers([1, 2]), readers([1, 2]));
        reach.handle_join(now, readers([1]), &readers([]));
        assert_eq!(reach.next_deadline(), Some(now.deadline(secs(15))));
    }
}
