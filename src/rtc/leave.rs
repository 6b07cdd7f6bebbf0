//! Leave reasons: what a membership says about why its member left.

/// How somebody left ([MSC4143], `leave_reason`).
///
/// [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaveReason {
    /// What kind of leave it was, e.g. `leave` for hanging up, [`LeaveReason::DELAYED`] where the server sent
    /// it as the member was gone. `None` where it was not said, as by Element Call.
    pub code: Option<String>,
    /// In words, for people.
    pub reason: Option<String>,
}

impl LeaveReason {
    /// The code of one who left on purpose.
    pub const ON_PURPOSE: &str = "leave";
    /// The code of a leave that the server sent, as nobody told it not to.
    pub const DELAYED: &str = "delayed_leave";
    /// The code of one who left as the slot was closed.
    pub const SLOT_CLOSED: &str = "slot_closed";

    /// A leave with this code.
    pub fn with_code(code: impl Into<String>) -> Self {
        Self { code: Some(code.into()), reason: None }
    }

    /// The same, in words too.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}
