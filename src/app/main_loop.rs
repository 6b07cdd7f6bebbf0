//! The application's main loop, kept up over restarts of the server and outages of the network.
//!
//! In: a client that is logged in. Out: why it makes no sense to go on. Never: an end because the
//! server is away.

use std::{
    fmt,
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use matrix_sdk::{Client, HttpError, LoopCtrl, config::SyncSettings};
use ruma::api::error::ErrorKind;
use tracing::debug;

use crate::{
    driver::{BoxFuture, SystemClock, Timer, jittered},
    request::{Verdict, is_refresh_refused},
};

/// The middle of the wait after the first failure. The waits double from there.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The middle of the longest wait. Jitter makes 5 to 15 s of it.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// The longest wait that a server can ask for.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Runs matrix-sdk's v3 main loop ([`Client::sync`]) for as long as the session is good.
///
/// [`Client::sync`] ends with an error when the server restarts or the network is gone. This loop
/// starts it again after 0.5 to 1.5 s. The pauses double up to 15 s while nothing goes well, and
/// start over after the next response. If the server asks for a longer pause (429), the loop
/// respects it, for up to five minutes.
///
/// Use it beside whatever the application does, for example by `tokio::select!`, or on a task of its
/// own by `tokio::spawn`. An application that runs another main loop, such as matrix-sdk-ui's
/// `SyncService`, needs no second one.
///
/// Why a future in a box, and not simply an `async fn`? The compiler would look through all of
/// matrix-sdk's futures to see whether a task may run it, and that takes more than its recursion
/// limit. In a box the answer is known, so the caller needs no `#![recursion_limit = "256"]`.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: matrix_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use matrix_sdk_sticky::app::keep_syncing;
///
/// let work = async { /* what the application is for */ };
/// tokio::select! {
///     why = keep_syncing(&client) => return Err(why.into()),
///     () = work => {}
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// The loop only ever ends with a [`MainLoopError`]. So it returns one, rather than a `Result`.
///
/// # Cancel safety
///
/// Dropping the future stops the loop. The next one goes on from the last response that the client
/// has stored.
pub fn keep_syncing(client: &Client) -> KeepSyncing {
    KeepSyncing {
        client: client.clone(),
        settings: SyncSettings::default(),
        clock: Arc::new(SystemClock),
    }
}

/// A main loop that has not started yet. [`keep_syncing`] makes it; awaiting it runs it.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: matrix_sdk::Client) {
/// use std::time::Duration;
///
/// use matrix_sdk::config::SyncSettings;
/// use matrix_sdk_sticky::app::keep_syncing;
///
/// let settings = SyncSettings::new().timeout(Duration::from_secs(60));
/// let why = keep_syncing(&client).with_settings(settings).await;
/// eprintln!("{why}");
/// # }
/// ```
#[must_use = "awaiting it runs the main loop"]
pub struct KeepSyncing {
    client: Client,
    settings: SyncSettings,
    clock: Arc<dyn Timer>,
}

impl KeepSyncing {
    /// Sets the filter, the timeout and whatever else each request has. Defaults to
    /// [`SyncSettings::default`].
    pub fn with_settings(mut self, settings: SyncSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets the clock that the pauses are counted on, for tests and simulations. Defaults to
    /// [`SystemClock`].
    pub fn with_clock(mut self, clock: Arc<dyn Timer>) -> Self {
        self.clock = clock;
        self
    }

    async fn run(self) -> MainLoopError {
        let Self { client, settings, clock } = self;
        if client.session_meta().is_none() {
            return MainLoopError::NotLoggedIn;
        }
        let mut pause = FIRST_RETRY_INTERVAL;
        loop {
            let has_succeeded = AtomicBool::new(false);
            let succeeded = &has_succeeded;
            let sync =
                client.sync_with_result_callback(settings.clone(), move |result| async move {
                    result?;
                    succeeded.store(true, Ordering::Relaxed);
                    Ok(LoopCtrl::Continue)
                });
            let result = sync.await;
            if has_succeeded.into_inner() {
                pause = FIRST_RETRY_INTERVAL;
            }
            let mut wait = jittered(pause);
            if let Err(error) = result {
                if is_logged_out(&error) {
                    return MainLoopError::LoggedOut { source: Box::new(error) };
                }
                debug!("the main loop starts again in {wait:?}, because it has failed");
                wait = wait.max(retry_after(&error));
            }
            pause = (pause * 2).min(MAX_RETRY_INTERVAL);
            clock.sleep_until(clock.now().deadline(wait)).await;
        }
    }
}

impl IntoFuture for KeepSyncing {
    type Output = MainLoopError;
    type IntoFuture = BoxFuture<'static, MainLoopError>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for KeepSyncing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepSyncing").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Why a main loop makes no sense any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MainLoopError {
    /// The client has no session. Log in, or restore one, before the main loop starts.
    #[error(
        "the client is not logged in: log in, or restore a session, before the main loop starts"
    )]
    NotLoggedIn,
    /// The server does not accept the access token any more, and gives no other one for the refresh
    /// token. Log in again: a lost token means that somebody logged this device out, or that the
    /// account is gone.
    #[error("the server does not accept our access token any more: log in again")]
    LoggedOut {
        /// The server's refusal.
        source: Box<matrix_sdk::Error>,
    },
}

/// Whether the server refuses our access token, and gives us no other one for our refresh token.
fn is_logged_out(error: &matrix_sdk::Error) -> bool {
    let matrix_sdk::Error::Http(error) = error else { return false };
    is_token_refused(error)
}

/// As [`is_logged_out`], for one request.
pub(super) fn is_token_refused(error: &HttpError) -> bool {
    match error {
        HttpError::RefreshToken(error) => is_refresh_refused(error),
        error => matches!(
            error.client_api_error_kind(),
            Some(ErrorKind::UnknownToken(_) | ErrorKind::MissingToken)
        ),
    }
}

/// For how long the server wants to be left alone, if it says so.
fn retry_after(error: &matrix_sdk::Error) -> Duration {
    let matrix_sdk::Error::Http(error) = error else { return Duration::ZERO };
    match Verdict::of(error) {
        Verdict::RateLimited(wait) => wait.unwrap_or_default().min(MAX_RETRY_AFTER),
        _ => Duration::ZERO,
    }
}
