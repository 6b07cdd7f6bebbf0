//! How an event came to the map, and what became of it.

/// How an event came. It decides when the event ends if the server does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceivedVia {
    /// In a sticky section of v3 `/sync` or of sliding sync. By this, the server says that the event
    /// is sticky. Without a remaining time, it ends at `min(receipt, origin_server_ts) +
    /// min(duration, 1 h)`.
    Section,
    /// In a timeline, or from `/event` or `/messages`. Without a remaining time, the event is over.
    Timeline,
}

/// What became of an event that the map was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Admission {
    /// The event is known now.
    Kept,
    /// The event was known before.
    Repeated,
    /// The event is not sticky, or not any more.
    NotSticky,
    /// The event was dropped, because its sender's quota is full. See [`Limits::max_events_per_sender`].
    ///
    /// [`Limits::max_events_per_sender`]: super::Limits::max_events_per_sender
    Full {
        /// Whether this is the first event that the full quota dropped. It is reset when the map
        /// knows nothing of the sender any more.
        first: bool,
    },
    /// The event was dropped, because the value of its key and
    /// [`MAX_OTHERS_PER_KEY`](super::MAX_OTHERS_PER_KEY) others outrank it.
    Outranked,
}
