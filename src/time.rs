//! Time: the moment, and the deadlines that are counted from it.
//!
//! In: a reading of two clocks. Out: deadlines, and how long they are away. Never: a look at a clock;
//! the caller passes the [`Moment`] in. All arithmetic on time is here.
//!
//! Why two clocks? Each is wrong for the other's work. A deadline counts on the *boot clock*, which
//! never jumps and goes on while the machine is suspended. So a laptop that slept for an hour shows no
//! ghosts. The *wall clock* is only compared with an event's `origin_server_ts`, if the server gave no
//! remaining time.

use std::{fmt, sync::Arc, time::Duration};

/// The longest time for which an event is sticky: 1 hour ([MSC4354], "Proposal").
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
pub const MAX_STICKY_DURATION: Duration = Duration::from_millis(MAX_STICKY_DURATION_MS);

/// [`MAX_STICKY_DURATION`] in milliseconds.
pub(crate) const MAX_STICKY_DURATION_MS: u64 = 3_600_000;

/// One reading of both clocks, to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    boot_ms: u64,
    unix_ms: u64,
}

impl Moment {
    /// Makes a moment from what the clocks say: the time since boot, suspended time included, and the
    /// time since the Unix epoch. Parts of a millisecond are cut off. More than `u64::MAX`
    /// milliseconds counts as that many.
    pub fn new(since_boot: Duration, since_epoch: Duration) -> Self {
        Self { boot_ms: millis(since_boot), unix_ms: millis(since_epoch) }
    }

    /// Returns the time since the Unix epoch in milliseconds, by this machine's wall clock.
    pub fn unix_ms(self) -> u64 {
        self.unix_ms
    }

    /// Returns the time since an earlier moment, suspended time included.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.boot_ms.saturating_sub(earlier.boot_ms))
    }

    /// Returns the deadline that lies `after` from this moment.
    pub fn deadline(self, after: Duration) -> Deadline {
        self.deadline_ms(millis(after))
    }

    pub(crate) fn deadline_ms(self, after_ms: u64) -> Deadline {
        Deadline(self.boot_ms.saturating_add(after_ms))
    }

    /// Returns the moment that is `by` later, on both clocks. It is for tests and simulations.
    #[must_use]
    pub fn advanced(self, by: Duration) -> Self {
        Self {
            boot_ms: self.boot_ms.saturating_add(millis(by)),
            unix_ms: self.unix_ms.saturating_add(millis(by)),
        }
    }
}

/// A moment on the boot clock at which something is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(u64);

impl Deadline {
    /// Returns whether this deadline has come. It is over from its own millisecond on.
    pub fn is_over(self, now: Moment) -> bool {
        self.0 <= now.boot_ms
    }

    /// Returns the time left until this deadline, zero once it is over.
    pub fn left(self, now: Moment) -> Duration {
        Duration::from_millis(self.0.saturating_sub(now.boot_ms))
    }

    /// Returns the time since this deadline, zero before it.
    pub fn passed(self, now: Moment) -> Duration {
        Duration::from_millis(now.boot_ms.saturating_sub(self.0))
    }

    /// Returns how many milliseconds this deadline lies after an earlier one.
    pub(crate) fn millis_after(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the deadline `ms` milliseconds after this one.
    pub(crate) fn later(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Returns the deadline that lies `by` after this one.
    #[cfg(feature = "client")]
    pub(crate) fn after(self, by: Duration) -> Self {
        self.later(millis(by))
    }

    /// Returns the deadline that lies `by` before this one.
    pub(crate) fn earlier(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deadline(boot + {} ms)", self.0)
    }
}

/// A pair of clocks. With the feature `client`, the crate brings the system's; a test or a simulation
/// brings its own.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the moment now. The boot clock must never go back.
    fn now(&self) -> Moment;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Moment {
        (**self).now()
    }
}

/// Returns when an event ends that came in a sync section at `received` without a remaining time:
/// `min(receipt, origin_server_ts) + min(duration, 1 h)` on the wall clock ([MSC4354], "Proposal").
/// From then on it is counted down on the boot clock.
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
pub(crate) fn end_by_origin(
    received: Moment,
    origin_server_ts_ms: u64,
    duration_ms: u64,
) -> Deadline {
    let start = received.unix_ms.min(origin_server_ts_ms);
    let end = start.saturating_add(duration_ms.min(MAX_STICKY_DURATION_MS));
    received.deadline_ms(end.saturating_sub(received.unix_ms))
}

/// Returns a duration in milliseconds. Parts of a millisecond are cut off. More than `u64::MAX` counts
/// as that many.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot_s: u64, unix_s: u64) -> Moment {
        Moment::new(Duration::from_secs(boot_s), Duration::from_secs(unix_s))
    }

    #[test]
    fn a_deadline_is_over_in_its_millisecond() {
        let now = at(10, 1_000);
        let deadline = now.deadline(Duration::from_millis(5));
        assert!(!deadline.is_over(now.advanced(Duration::from_millis(4))));
        assert!(deadline.is_over(now.advanced(Duration::from_millis(5))));
        assert_eq!(deadline.left(now.advanced(Duration::from_millis(2))), Duration::from_millis(3));
        assert_eq!(deadline.left(now.advanced(Duration::from_secs(9))), Duration::ZERO);
        assert_eq!(deadline.passed(now), Duration::ZERO);
        assert_eq!(
            deadline.passed(now.advanced(Duration::from_millis(7))),
            Duration::from_millis(2)
        );
    }

    #[test]
    fn a_future_origin_gives_the_duration_only() {
        let now = at(10, 1_000);
        let end = end_by_origin(now, 9_999_000, 60_000);
        assert_eq!(end.left(now), Duration::from_secs(60));
    }

    #[test]
    fn a_past_origin_counts_up_to_an_hour() {
        let now = at(10, 10_000);
        assert_eq!(end_by_origin(now, 9_990_000, 60_000).left(now), Duration::from_secs(50));
        assert_eq!(end_by_origin(now, 9_000_000, 60_000).left(now), Duration::ZERO);
        assert_eq!(end_by_origin(now, 10_000_000, u64::MAX).left(now), MAX_STICKY_DURATION);
    }

    #[test]
    fn moments_far_out_saturate() {
        let last = Moment::new(Duration::MAX, Duration::MAX);
        assert_eq!(last.advanced(Duration::from_secs(1)), last);
        assert_eq!(last.unix_ms(), u64::MAX);
        assert_eq!(last.deadline(Duration::MAX).left(at(0, 0)), Duration::from_millis(u64::MAX));
    }

    #[test]
    fn time_passed_is_counted_on_the_boot_clock() {
        let (earlier, now) = (at(10, 1_000), at(25, 0));
        assert_eq!(now.since(earlier), Duration::from_secs(15));
        assert_eq!(earlier.since(now), Duration::ZERO);
    }

    #[test]
    fn debug_shows_when_a_deadline_is() {
        let deadline = at(10, 0).deadline(Duration::from_millis(5));
        assert_eq!(format!("{deadline:?}"), "Deadline(boot + 10005 ms)");
    }

    #[test]
    fn a_wall_clock_jump_moves_no_deadline() {
        let deadline = at(10, 1_000).deadline(Duration::from_secs(60));
        assert_eq!(deadline.left(at(20, 5_000_000)), Duration::from_secs(50));
        assert_eq!(deadline.left(at(20, 0)), Duration::from_secs(50));
    }
}
