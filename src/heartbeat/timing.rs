//! Timing: how fast a heartbeat beats, and the reason for each default. Checked when it is made.

use std::{fmt, time::Duration};

use crate::time::MAX_STICKY_DURATION;

/// How fast a heartbeat beats.
///
/// ```
/// use std::time::Duration;
/// use matrix_sdk_sticky::heartbeat::HeartbeatTiming;
///
/// let pace = HeartbeatTiming::default().with_delay(Duration::from_secs(9))?;
/// assert_eq!(pace.restart_every(pace.delay()), Duration::from_secs(3));
/// # Ok::<(), matrix_sdk_sticky::heartbeat::HeartbeatTimingError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatTiming {
    delay: Duration,
    /// The default for the delay, if nobody chose.
    sticky: Option<Duration>,
}

/// What is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeartbeatTimingError {
    /// The delay is shorter than [`HeartbeatTiming::SHORTEST_DELAY`] or longer than [`HeartbeatTiming::LONGEST_DELAY`].
    Delay(Duration),
    /// The stickiness is shorter than twice the delay, or longer than 1 h.
    Sticky(Duration),
}

impl fmt::Display for HeartbeatTimingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(delay) => write!(
                f,
                "a delay of {delay:?} is out of range: choose one between {:?} and {:?}",
                HeartbeatTiming::SHORTEST_DELAY,
                HeartbeatTiming::LONGEST_DELAY
            ),
            Self::Sticky(sticky) => write!(
                f,
                "a stickiness of {sticky:?} is out of range: choose one between twice the delay \
                 and {MAX_STICKY_DURATION:?}"
            ),
        }
    }
}

impl std::error::Error for HeartbeatTimingError {}

impl Default for HeartbeatTiming {
    fn default() -> Self {
        Self {
            // Three restarts fit into it, so that one may be lost, and after a crash the others
            // wait no longer than a person would before asking "are you still there?".
            delay: Duration::from_secs(15),
            sticky: None,
        }
    }
}

impl HeartbeatTiming {
    /// The shortest delay. With a shorter one a request would have less than a second.
    pub const SHORTEST_DELAY: Duration = Duration::from_secs(3);

    /// The longest delay; servers may take less. For a lease that somebody else restarts.
    pub const LONGEST_DELAY: Duration = Duration::from_secs(24 * 3_600);

    /// The default stickiness, and the longest where no leave can be armed.
    const STICKY: Duration = Duration::from_secs(600);

    /// The longest wait of a server's that is believed. A server that wants more has a quota that is
    /// full, or is behind a proxy that guesses.
    pub(super) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

    /// How long leaving may take beyond the delay. With the timeout of a request that is under way
    /// then, 5 s at most, that makes 20 s.
    pub(super) const LEAVING: Duration = Duration::from_secs(15);

    /// How often an arming is tried that something before the server answers. A page that shows up
    /// once is no reason to go without a leave.
    pub(super) const BLOCKED_TRIES: u32 = 3;

    /// A delay and a stickiness at once, in whichever order they were chosen.
    ///
    /// # Errors
    ///
    /// [`HeartbeatTimingError`], as of [`with_delay`](Self::with_delay) and [`with_sticky`](Self::with_sticky).
    pub fn new(delay: Duration, sticky: Duration) -> Result<Self, HeartbeatTimingError> {
        Self { delay: Self::SHORTEST_DELAY, sticky: None }.with_delay(delay)?.with_sticky(sticky)
    }

    /// Sets how long after the last restart the leave fires. Defaults to 15 s. Everybody notices a crash
    /// after between two thirds of it and all of it.
    ///
    /// # Errors
    ///
    /// [`HeartbeatTimingError`] when it is out of range, or more than half the stickiness.
    pub fn with_delay(self, delay: Duration) -> Result<Self, HeartbeatTimingError> {
        if !(Self::SHORTEST_DELAY..=Self::LONGEST_DELAY).contains(&delay) {
            return Err(HeartbeatTimingError::Delay(delay));
        }
        Self { delay, ..self }.checked()
    }

    /// For how long join and leave are sticky: from twice the delay to 1 h. Defaults to 10 minutes, or
    /// twice the delay if that is longer.
    ///
    /// It bounds how long everybody sees a ghost if the server drops the leave when it falls due, as
    /// Synapse does with a user who is over the rate limit (synapse#18021). A refresh goes out after
    /// three quarters of it: with 10 minutes 8 to 10 times an hour, with an hour less than twice.
    ///
    /// # Errors
    ///
    /// [`HeartbeatTimingError`] when it is longer than 1 h or shorter than twice the delay.
    pub fn with_sticky(self, sticky: Duration) -> Result<Self, HeartbeatTimingError> {
        Self { sticky: Some(sticky), ..self }.checked()
    }

    fn checked(self) -> Result<Self, HeartbeatTimingError> {
        // A delay of hours is for a lease that somebody else restarts: refreshes go on all the same.
        match self.sticky {
            Some(sticky) if !(self.shortest_sticky()..=MAX_STICKY_DURATION).contains(&sticky) => {
                Err(HeartbeatTimingError::Sticky(sticky))
            }
            _ => Ok(self),
        }
    }

    fn shortest_sticky(&self) -> Duration {
        (2 * self.delay).min(MAX_STICKY_DURATION)
    }

    /// How long after the last restart the leave fires.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// For how long join and leave are sticky.
    pub fn sticky(&self) -> Duration {
        self.sticky.unwrap_or_else(|| Self::STICKY.max(self.shortest_sticky()))
    }

    /// For how long the join is sticky where no leave can be armed: 10 minutes, which is how long
    /// everybody sees a ghost after a crash, at a cost of 12 to 15 refreshes an hour. MSC4354 advises
    /// against less than 5, as servers' clocks differ.
    pub fn degraded_sticky(&self) -> Duration {
        self.sticky().min(Self::STICKY)
    }

    /// How often a delay is restarted: three times, so that one restart may be lost.
    pub fn restart_every(&self, delay: Duration) -> Duration {
        delay / 3
    }

    /// How long a request may take: a third of the delay, so that a second one has time enough when
    /// the first gets no answer; 5 s at most, as a server that is there answers sooner.
    pub fn timeout(&self, delay: Duration) -> Duration {
        (delay / 3).min(Duration::from_secs(5))
    }

    /// When to send again what is sticky for so long: after three quarters, so that with an hour an
    /// outage of a quarter of one is bridged; in the degraded state after half.
    pub(super) fn refresh_after(&self, sticky: Duration) -> Duration {
        if sticky < self.sticky() { sticky / 2 } else { sticky * 3 / 4 }
    }

    /// How often a delay is restarted where the server wants fewer requests: the last third is left for
    /// a second try.
    pub(super) fn slow_restart_every(&self, delay: Duration) -> Duration {
        delay * 2 / 3
    }

    /// How long newcomers are gathered: somebody who joins with three devices makes three. In large
    /// rooms, where a hand-over costs more, it takes up to 15 s; after each hand-over twice as long, up
    /// to 60 s.
    pub(super) fn gather(&self, readers: usize, hand_overs: u32) -> Duration {
        let in_room =
            Duration::from_millis(5_000 + 20 * u64::try_from(readers).unwrap_or(u64::MAX).min(500));
        let again = Duration::from_secs(5 << hand_overs.min(4));
        in_room.max(again).min(Duration::from_secs(60))
    }

    /// After so long without newcomers the pauses between hand-overs start over.
    pub(super) const QUIET: Duration = Duration::from_secs(120);

    /// The wait after so many failures in a row.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        Duration::from_millis(250 << failures.min(6)).min(self.longest_wait())
    }

    /// The longest wait, so that the member is there again soon after the network is.
    pub(super) fn longest_wait(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Whether a delay that the server asks for will do.
    pub(super) fn takes_delay(&self, delay: Duration) -> bool {
        (Self::SHORTEST_DELAY..=Self::LONGEST_DELAY).contains(&delay)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::secs;

    #[test]
    fn what_is_out_of_range_is_refused_when_it_is_set_and_says_what_would_do() {
        let pace = HeartbeatTiming::default();
        for delay in [Duration::ZERO, secs(2), secs(24 * 3_600 + 1)] {
            let error = pace.with_delay(delay).unwrap_err();
            assert_eq!(error, HeartbeatTimingError::Delay(delay));
            assert!(error.to_string().contains("between 3s and 86400s"), "{error}");
        }
        for sticky in [Duration::ZERO, secs(29), secs(3_601)] {
            let error = pace.with_sticky(sticky).unwrap_err();
            assert_eq!(error, HeartbeatTimingError::Sticky(sticky));
            assert!(error.to_string().contains("twice the delay and 3600s"), "{error}");
        }
        let short = pace.with_sticky(secs(60)).unwrap();
        assert_eq!(short.with_delay(secs(31)), Err(HeartbeatTimingError::Sticky(secs(60))));
        let long = pace.with_delay(secs(7_200)).unwrap();
        assert_eq!((long.delay(), long.sticky()), (secs(7_200), secs(3_600)));
        assert_eq!(pace.sticky(), secs(600));
        assert_eq!(pace.with_delay(secs(400)).unwrap().sticky(), secs(800));
    }

    #[test]
    fn two_requests_that_get_no_answer_fit_into_the_delay() {
        for delay in [3, 9, 15, 60, 1_800] {
            let pace = HeartbeatTiming::default().with_delay(secs(delay)).unwrap();
            let (timeout, every) = (pace.timeout(secs(delay)), pace.restart_every(secs(delay)));
            assert!(timeout <= secs(5) && every + 2 * timeout <= secs(delay));
        }
    }

    #[test]
    fn gathering_grows_with_the_room_and_each_hand_over() {
        let pace = HeartbeatTiming::default();
        let gathered = |readers| pace.gather(readers, 0).as_millis();
        assert_eq!([0, 5, 100, 500, 100_000].map(gathered), [5_000, 5_100, 7_000, 15_000, 15_000]);
        let again = |hand_overs| pace.gather(0, hand_overs).as_secs();
        assert_eq!([0, 1, 2, 3, 4, 5, 99].map(again), [5, 10, 20, 40, 60, 60, 60]);
    }

    #[test]
    fn the_wait_doubles_up_to_ten_seconds() {
        let pace = HeartbeatTiming::default();
        let waits: Vec<_> = (0..8).map(|failures| pace.backoff(failures).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(pace.backoff(u32::MAX), secs(10));
    }
}
