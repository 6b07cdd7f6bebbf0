//! Why an entry left.

use std::fmt;

/// Why an entry left the map, or a view of it.
///
/// `Display` writes the reason in words, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemovalReason {
    /// The entry's time was over.
    Expired,
    /// The sender removed the entry: an event with nothing but the key outranks it.
    Removed,
    /// The event was redacted.
    Redacted,
    /// The sender is ignored. When the user stops ignoring them, the entry is added again if it is
    /// still live.
    Ignored,
    /// We are not in the room any more.
    RoomLeft,
}

impl RemovalReason {
    /// Returns the reason as a stable, machine-readable name: `expired`, `removed`, `redacted`,
    /// `ignored` or `left`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Removed => "removed",
            Self::Redacted => "redacted",
            Self::Ignored => "ignored",
            Self::RoomLeft => "left",
        }
    }
}

impl fmt::Display for RemovalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its time was over",
            Self::Removed => "its sender removed it",
            Self::Redacted => "it was redacted",
            Self::Ignored => "its sender is ignored",
            Self::RoomLeft => "we left the room",
        })
    }
}
