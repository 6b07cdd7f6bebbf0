//! When to try again: pure.

use std::time::Duration;

/// How long one try of a send may take.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);

/// How often a send is tried.
const MAX_ATTEMPTS: u32 = 6;

/// The average pause after the first try without an answer. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause that a server may ask for before a send is tried again. A caller who would have
/// to wait longer gets an error that says so.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The tries of one send.
#[derive(Debug)]
pub(crate) struct Attempts {
    failed: u32,
    pause: Duration,
}

impl Attempts {
    pub(crate) fn new() -> Self {
        Self { failed: 0, pause: FIRST_PAUSE }
    }

    /// Counts a try that failed. Returns the average pause before the next one, or `None` if it was
    /// the last, or the server asks for more than [`MAX_RETRY_AFTER`]. The caller jitters the pause,
    /// and waits for no less than the server asks for.
    pub(crate) fn handle_failure(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        self.failed += 1;
        if self.failed >= MAX_ATTEMPTS || retry_after > Some(MAX_RETRY_AFTER) {
            return None;
        }
        let pause = self.pause;
        self.pause = pause.saturating_mul(2);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end() {
        let mut attempts = Attempts::new();
        let pauses: Vec<_> = std::iter::from_fn(|| attempts.handle_failure(None)).collect();
        let millis: Vec<_> = pauses.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [250, 500, 1_000, 2_000, 4_000]);
    }

    #[test]
    fn a_long_wait_is_not_waited() {
        assert!(Attempts::new().handle_failure(Some(MAX_RETRY_AFTER)).is_some());
        let longer = MAX_RETRY_AFTER + Duration::from_millis(1);
        assert!(Attempts::new().handle_failure(Some(longer)).is_none());
    }
}
