//! When to ask the server, and about what: the room's state, and whether users are in the room.
//!
//! In: who is new, and that what we know may be old. Out: one question at a time. Never: a clock, I/O, an
//! answer.

use std::{collections::BTreeSet, time::Duration};

use ruma::OwnedUserId;

use crate::time::{Deadline, Moment};

/// How long after an unanswered question the server is asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(15);

/// The shortest pause between two requests for the whole state. Some main loops leave a gap with each response
/// in a busy room, and in some rooms everybody may send memberships as state events. While that goes on, the
/// pause doubles up to [`MAX_FETCH_INTERVAL`].
const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(5);

/// The longest pause between two requests for the whole state: a kick that a gap swallowed is found by then.
const MAX_FETCH_INTERVAL: Duration = Duration::from_secs(30);

/// How long nobody may have needed the whole state for the pauses to start over.
const QUIET_INTERVAL: Duration = Duration::from_secs(120);

/// The shortest pause between two questions about users: a crowd is asked about together.
const LOOK_UP_INTERVAL: Duration = Duration::from_secs(1);

/// What to ask the server.
#[derive(Debug, PartialEq)]
pub(super) struct Question {
    /// The users whose place in the room is asked for.
    pub(super) about: BTreeSet<OwnedUserId>,
    /// Whether the whole state is asked for.
    pub(super) is_whole: bool,
}

/// The questions that are due, and when.
#[derive(Debug)]
pub(super) struct Schedule {
    /// The users to ask about.
    strangers: BTreeSet<OwnedUserId>,
    /// To ask about the strangers.
    look_up_at: Option<Deadline>,
    looked_up_at: Option<Moment>,
    /// To ask for the whole state.
    fetch_at: Option<Deadline>,
    fetched_at: Option<Moment>,
    fetch_interval: Duration,
}

impl Schedule {
    pub(super) fn new() -> Self {
        Self {
            strangers: BTreeSet::new(),
            look_up_at: None,
            looked_up_at: None,
            fetch_at: None,
            fetched_at: None,
            fetch_interval: MIN_FETCH_INTERVAL,
        }
    }

    /// Takes users to ask about soon.
    pub(super) fn handle_strangers(
        &mut self,
        now: Moment,
        users: impl IntoIterator<Item = OwnedUserId>,
    ) {
        self.strangers.extend(users);
        let soon = at_earliest(now, self.looked_up_at, LOOK_UP_INTERVAL);
        self.look_up_at.get_or_insert(soon);
    }

    /// Takes that the state may have changed, and these users with it.
    pub(super) fn handle_doubt(
        &mut self,
        now: Moment,
        users: impl IntoIterator<Item = OwnedUserId>,
    ) {
        self.strangers.extend(users);
        self.fetch_by(at_earliest(now, self.fetched_at, self.fetch_interval));
    }

    /// Takes the users about whom the server has not answered.
    pub(super) fn handle_no_answer(
        &mut self,
        now: Moment,
        users: impl IntoIterator<Item = OwnedUserId>,
    ) {
        self.strangers.extend(users);
        self.fetch_by(now.deadline(RETRY_INTERVAL));
    }

    /// Returns the question that is due, if one is. It is not due any more.
    pub(super) fn poll_question(&mut self, now: Moment) -> Option<Question> {
        let is_due = |at: Option<Deadline>| at.is_some_and(|at| at.is_over(now));
        let is_fetch_due = is_due(self.fetch_at);
        (is_fetch_due || is_due(self.look_up_at)).then(|| self.question(now, is_fetch_due))
    }

    /// Returns a question about all strangers, these users and the whole state, which somebody asks for. The pauses
    /// between other questions stay.
    pub(super) fn whole_question(
        &mut self,
        now: Moment,
        users: impl IntoIterator<Item = OwnedUserId>,
    ) -> Question {
        self.strangers.extend(users);
        self.fetched_at = Some(now);
        self.fetch_at = None;
        self.look_up_at = None;
        Question { about: std::mem::take(&mut self.strangers), is_whole: true }
    }

    fn question(&mut self, now: Moment, is_whole: bool) -> Question {
        if is_whole {
            let was_quiet =
                self.fetched_at.is_none_or(|at| at.deadline(QUIET_INTERVAL).is_over(now));
            self.fetch_interval = match was_quiet {
                true => MIN_FETCH_INTERVAL,
                false => (self.fetch_interval * 2).min(MAX_FETCH_INTERVAL),
            };
            self.fetched_at = Some(now);
            self.fetch_at = None;
        } else {
            self.looked_up_at = Some(now);
        }
        self.look_up_at = None;
        Question { about: std::mem::take(&mut self.strangers), is_whole }
    }

    /// Returns when the next question is due.
    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        [self.fetch_at, self.look_up_at].into_iter().flatten().min()
    }

    fn fetch_by(&mut self, at: Deadline) {
        self.fetch_at = Some(self.fetch_at.map_or(at, |before| before.min(at)));
    }
}

/// From now on, and not before so much time has gone by since the last time.
fn at_earliest(now: Moment, last: Option<Moment>, interval: Duration) -> Deadline {
    let at_once = now.deadline(Duration::ZERO);
    last.map_or(at_once, |last| last.deadline(interval).max(at_once))
}

#[cfg(test)]
mod tests {
    use ruma::owned_user_id;

    use super::*;
    use crate::testing::{secs, start};

    fn asked_after(schedule: &mut Schedule, since: Moment) -> (Duration, Question) {
        let at = schedule.next_deadline().unwrap();
        let after = at.left(since);
        (after, schedule.poll_question(since.advanced(after)).unwrap())
    }

    #[test]
    fn a_crowd_is_asked_about_together() {
        let (mut schedule, now) = (Schedule::new(), start());
        let (alice, bob) = (owned_user_id!("@alice:hs"), owned_user_id!("@bob:hs"));
        schedule.handle_strangers(now, [alice.clone()]);
        let (after, first) = asked_after(&mut schedule, now);
        assert_eq!((after, first.about.len(), first.is_whole), (Duration::ZERO, 1, false));
        schedule.handle_strangers(now, [bob]);
        schedule.handle_strangers(now, [alice]);
        let (after, second) = asked_after(&mut schedule, now);
        assert_eq!((after, second.about.len()), (LOOK_UP_INTERVAL, 2));
        assert_eq!(schedule.next_deadline(), None);
    }

    #[test]
    fn pauses_double_and_start_over_after_quiet() {
        let (mut schedule, mut now) = (Schedule::new(), start());
        let mut pauses = Vec::new();
        for quiet in [0, 0, 0, 0, 0, 200] {
            schedule.handle_doubt(now.advanced(secs(quiet)), []);
            let (after, question) = asked_after(&mut schedule, now);
            assert!(question.is_whole);
            pauses.push(after.as_secs());
            now = now.advanced(after);
        }
        assert_eq!(pauses, [0, 5, 10, 20, 30, 200]);
        schedule.handle_doubt(now, []);
        assert_eq!(asked_after(&mut schedule, now).0, MIN_FETCH_INTERVAL);
    }

    /// Also while the whole state is due anyway, which has the users as well.
    #[test]
    fn an_unanswered_question_is_repeated() {
        let (mut schedule, now) = (Schedule::new(), start());
        let alice = owned_user_id!("@alice:hs");
        schedule.handle_no_answer(now, [alice.clone()]);
        schedule.handle_no_answer(now.advanced(secs(1)), [alice.clone()]);
        let (after, question) = asked_after(&mut schedule, now);
        assert_eq!(after, RETRY_INTERVAL);
        assert_eq!(question, Question { about: [alice].into(), is_whole: true });
    }
}
