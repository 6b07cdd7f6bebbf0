//! How long something has to be so. In goes what is found at each moment of a calm; out comes whether
//! the calm passed, or broke a law. No clock, no I/O.

use std::time::Duration;

use super::judge::Finding;

/// What has to hold for so long to count: a right picture, or a wrong one. Not all see a change at
/// the same moment.
pub(crate) const HOLDS: Duration = Duration::from_secs(3);

/// Watches a calm: until all has become right, and then for a while whether it stays so.
#[derive(Debug)]
pub(crate) struct Watch {
    goes_on: Duration,
    right_since: Option<Duration>,
    wrong_since: Option<Duration>,
    /// Since when all was right, once that has held.
    settled: Option<Duration>,
}

/// What is to be said of a calm at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    GoOn,
    /// It passed. All has been right since then.
    Passed(Duration),
    /// These broke a law.
    Violated(Vec<Finding>),
}

impl Watch {
    /// A watch that goes on for so long after all has become right.
    pub(crate) fn new(goes_on: Duration) -> Self {
        Self { goes_on, right_since: None, wrong_since: None, settled: None }
    }

    /// Takes what is found now, and whether all members run that are to be there.
    pub(crate) fn look(&mut self, now: Duration, findings: Vec<Finding>, is_whole: bool) -> Ruling {
        if findings.is_empty() && is_whole {
            let since = *self.right_since.get_or_insert(now);
            if now.saturating_sub(since) >= HOLDS {
                self.settled.get_or_insert(since);
            }
        } else {
            self.right_since = None;
        }
        let is_settled = self.settled.is_some();
        // In a calm nothing becomes wrong again.
        let broken: Vec<_> = findings.into_iter().filter(|it| is_settled || it.by < now).collect();
        if broken.is_empty() {
            self.wrong_since = None;
        } else if now.saturating_sub(*self.wrong_since.get_or_insert(now)) >= HOLDS {
            return Ruling::Violated(broken);
        }
        match (self.settled, self.right_since) {
            (Some(settled), Some(_)) if now >= settled + HOLDS + self.goes_on => {
                Ruling::Passed(settled)
            }
            _ => Ruling::GoOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Ruling, Watch};
    use crate::chaos::judge::{Finding, Wrong};

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wrong_by(seconds: u64) -> Vec<Finding> {
        vec![Finding { wrong: Wrong::Blind, by: at(seconds) }]
    }

    /// What a watch said at last, and when: one look a second, from 1 s on.
    fn last(mut watch: Watch, looks: impl Iterator<Item = Vec<Finding>>) -> (u64, Ruling) {
        for (now, findings) in (1..).zip(looks) {
            let ruling = watch.look(at(now), findings, true);
            if ruling != Ruling::GoOn {
                return (now, ruling);
            }
        }
        (0, Ruling::GoOn)
    }

    #[test]
    fn what_becomes_right_in_time_passes() {
        let looks = (1..).map(|now| if now < 30 { wrong_by(30) } else { vec![] });
        assert_eq!(last(Watch::new(at(0)), looks.take(99)), (33, Ruling::Passed(at(30))));
    }

    #[test]
    fn what_stays_wrong_breaks_the_law() {
        let looks = std::iter::repeat_n(wrong_by(30), 99);
        assert_eq!(last(Watch::new(at(0)), looks), (34, Ruling::Violated(wrong_by(30))));
    }

    #[test]
    fn a_moment_of_right_is_not_enough() {
        let looks = (1..).map(|now| if now == 20 { vec![] } else { wrong_by(30) });
        let (when, ruling) = last(Watch::new(at(0)), looks.take(99));
        assert_eq!((when, ruling), (34, Ruling::Violated(wrong_by(30))));
    }

    #[test]
    fn what_becomes_wrong_again_breaks_the_law() {
        let looks = (1..).map(|now| if now < 10 { vec![] } else { wrong_by(30) });
        assert_eq!(last(Watch::new(at(20)), looks.take(99)).0, 13);
    }

    #[test]
    fn a_moment_of_wrong_is_forgiven() {
        let looks = (1..).map(|now| if now == 10 { wrong_by(0) } else { vec![] });
        assert_eq!(last(Watch::new(at(20)), looks.take(99)), (24, Ruling::Passed(at(1))));
    }

    #[test]
    fn who_does_not_run_yet_is_waited_for() {
        let mut watch = Watch::new(at(0));
        for now in 1..10 {
            assert_eq!(watch.look(at(now), vec![], false), Ruling::GoOn);
        }
        assert_eq!(watch.look(at(10), vec![], true), Ruling::GoOn);
        assert_eq!(watch.look(at(13), vec![], true), Ruling::Passed(at(10)));
    }
}
