//! Leave reasons: what a membership says about why its member left.

/// Why a member left, as its membership says ([MSC4143], `leave_reason`).
///
/// [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaveReason {
    /// The kind of leave, e.g. [`LeaveReason::ON_PURPOSE`] for hanging up, or [`LeaveReason::DELAYED`] if the
    /// server sent it. `None` if the membership does not say, as Element Call's does not.
    pub code: Option<String>,
    /// The reason in words, for people.
    pub reason: Option<String>,
}

impl LeaveReason {
    /// The code of a leave on purpose.
    pub const ON_PURPOSE: &str = "leave";
    /// The code of an armed leave, which the server sent because nobody restarted it.
    pub const DELAYED: &str = "delayed_leave";
    /// The code of a leave because the slot was closed.
    pub const SLOT_CLOSED: &str = "slot_closed";

    /// Creates a reason with this code, and without words.
    pub fn with_code(code: impl Into<String>) -> Self {
        Self { code: Some(code.into()), reason: None }
    }

    /// Sets the reason in words.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}
