//! State: what an application sees of the sync.
//!
//! In: nothing. Out: [`SyncSource`], [`SyncState`] and [`Unsupported`], and what each says in words.
//! Never: a source by name, a request. Sends and delayed events use [`Unsupported`] too.

use std::{fmt, time::SystemTime};

use ruma::OwnedRoomId;

/// Chooses where sticky events come from.
///
/// Set it with `StickyBuilder`; read back what it came to with `client.sticky().source()`. Defaults to
/// [`Auto`](Self::Auto).
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::SyncSource;
///
/// assert_eq!(SyncSource::default(), SyncSource::Auto);
/// assert_eq!(SyncSource::V3.to_string(), "v3");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncSource {
    /// Uses sliding sync if the server has it, and v3 otherwise.
    #[default]
    Auto,
    /// Uses a sliding-sync connection of this crate's own (MSC4186, MSC4480). It works beside any
    /// main loop. An event arrives as soon as the server has it.
    Sliding,
    /// Uses v3 `/sync`, behind the application's main loop. The main loop has to be a v3 loop too:
    /// `Client::sync` or `sync_once`. An event arrives with the main loop's next answer.
    V3,
}

impl fmt::Display for SyncSource {
    /// Writes a stable, machine-readable name: `auto`, `sliding` or `v3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Sliding => "sliding",
            Self::V3 => "v3",
        })
    }
}

/// Says how current the maps are, for an application to show.
///
/// A subscriber gets each state that differs from the one before it. A slow subscriber gets the newest
/// state only. In every state but [`Live`](Self::Live), entries that are shown are right; some may be
/// missing.
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::{SyncState, Unsupported};
///
/// assert_eq!(SyncState::Live.to_string(), "live");
/// let state = SyncState::Unsupported(Unsupported::SlidingSync);
/// assert!(state.to_string().contains("MSC4186"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncState {
    /// Nothing has come yet: the client is not logged in, or the first answer is on its way.
    Connecting,
    /// Pages come, and more are to come.
    CatchingUp,
    /// All sticky events are there, and changes come at once.
    Live,
    /// Is [`Live`](Self::Live), except for these rooms. When the client came, more events were sticky
    /// there than the server gives at once, and the rooms are not searched for the rest: either their
    /// history is too long, or nothing said that they had a sticky event. A missing event comes when
    /// its owner refreshes it, or ends within the hour. Only a v3 source says this.
    Incomplete {
        /// The rooms in which events may be missing.
        rooms: Vec<OwnedRoomId>,
    },
    /// The server cannot be reached, or answers with errors. Entries stay until they end. Attempts go
    /// on, with a wait that grows to 30 s.
    Offline {
        /// When this began, by this machine's wall clock.
        since: SystemTime,
        /// What went wrong last, in words.
        error: String,
    },
    /// The server lacks something that the crate needs. The server is asked again every 10 minutes.
    Unsupported(Unsupported),
    /// The access token is not valid any more. The sync goes on when the session has another token:
    /// refresh the session's tokens, or log in again.
    LoggedOut,
}

impl fmt::Display for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::CatchingUp => f.write_str("catching up"),
            Self::Live => f.write_str("live"),
            Self::Incomplete { rooms } => match rooms.len() {
                1 => f.write_str("live, but events of 1 room may be missing"),
                rooms => write!(f, "live, but events of {rooms} rooms may be missing"),
            },
            Self::Offline { error, .. } => write!(f, "offline: {error}"),
            Self::Unsupported(what) => what.fmt(f),
            Self::LoggedOut => f.write_str("logged out: the access token is not valid any more"),
        }
    }
}

/// Says what a server or a main loop lacks, and what to do about it.
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::Unsupported;
///
/// assert!(Unsupported::StickyEvents.to_string().contains("org.matrix.msc4354"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// Sticky events: the `unstable_features` of `/versions` do not list `org.matrix.msc4354`. Ask
    /// the server's administrator to turn them on.
    #[error(
        "the homeserver does not support sticky events (MSC4354): `/versions` does not list \
         org.matrix.msc4354"
    )]
    StickyEvents,
    /// Simplified sliding sync (MSC4186), which the sticky extension (MSC4480) is part of. Use
    /// [`SyncSource::Auto`] or [`SyncSource::V3`].
    #[error("the homeserver does not support simplified sliding sync (MSC4186)")]
    SlidingSync,
    /// The extension of sliding sync that brings sticky events (MSC4480). The main loop has shown a
    /// sticky event, and sliding sync has brought neither that one within 10 s nor any before. With
    /// [`SyncSource::Auto`] the crate tries v3 instead.
    #[error(
        "the homeserver's sliding sync has no extension for sticky events (MSC4480): use v3 as the \
         source, with Client::sync as the main loop"
    )]
    StickyExtension,
    /// A main loop over v3. The application's loop stores no token to follow; matrix-sdk-ui's
    /// `SyncService` is such a loop. Only a v3 source says this. Use [`SyncSource::Sliding`], or run
    /// `Client::sync`.
    #[error(
        "the application's main loop stores no v3 sync token that could be followed, as a \
         sliding-sync loop such as SyncService does not: use sliding sync as the source, or run \
         Client::sync"
    )]
    V3MainLoop,
}
