//! Waiting until the maps are complete.
//!
//! In: the states of the sync. Out: that it is live, or why it cannot become live. Never: a request.

use eyeball::Subscriber;

use crate::sync::state::{SyncState, Unsupported};

/// Why [`Sticky::until_live`](crate::Sticky::until_live) gives up.
///
/// A server that is away is not among the reasons: the wait goes on until the server is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotLiveError {
    /// The server lacks what the source needs. The crate looks again every 10 minutes, so an
    /// application that stays may go on waiting by [`Sticky::subscribe_state`](crate::Sticky::subscribe_state).
    #[error(transparent)]
    Unsupported(Unsupported),
    /// The server does not accept the access token any more. Log in again.
    #[error("the server does not accept our access token any more: log in again")]
    LoggedOut,
}

/// Waits until the state is live, or one that does not lead there.
pub(crate) async fn until_live(mut states: Subscriber<SyncState>) -> Result<(), NotLiveError> {
    let mut state = states.get();
    loop {
        match state {
            SyncState::Live | SyncState::Incomplete { .. } => return Ok(()),
            SyncState::Unsupported(why) => return Err(NotLiveError::Unsupported(why)),
            SyncState::LoggedOut => return Err(NotLiveError::LoggedOut),
            SyncState::Connecting | SyncState::CatchingUp | SyncState::Offline { .. } => {}
        }
        match states.next().await {
            Some(next) => state = next,
            // Only without a handle, and the caller has one.
            None => std::future::pending().await,
        }
    }
}
