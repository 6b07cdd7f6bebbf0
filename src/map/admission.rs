//! How an event came to the map, and what became of it.

/// How an event came, which decides when it ends if the server does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceivedVia {
    /// A sticky section: of v3 `/sync`, or of sliding sync. The server says that it is sticky.
    Section,
    /// A timeline, `/event` or `/messages`: without a remaining time it is over.
    Timeline,
}

/// What became of an event that was handed to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Admission {
    /// It is known now.
    Kept,
    /// It was known before.
    Repeated,
    /// It is not sticky, or not any more.
    NotSticky,
    /// Its sender has used up [`Limits::per_sender`]: it was dropped.
    Full {
        /// Whether it is the first that was dropped since nothing of this sender was known.
        first: bool,
    },
    /// Its key has [`MAX_OTHERS_PER_KEY`] events that outrank it, besides the value: it was dropped.
    Outranked,
}
