//! What every example does around the part that is about sticky events: read the account from the
//! command line, log in, run the main loop, say in one line why it ended, and log out. What every
//! *application* needs of that is in [`matrix_sdk_sticky::app`].

mod account;
mod log;

use std::{
    error::Error,
    fmt::Display,
    future::Future,
    io::{self, Write as _},
    path::PathBuf,
    pin::pin,
    process::ExitCode,
    time::Duration,
};

use futures_util::StreamExt as _;
use matrix_sdk::{Client, Room, ruma::RoomOrAliasId};
use matrix_sdk_sticky::{
    Sticky, SyncSource, SyncState,
    app::{NotLiveError, keep_syncing, wait_for_room},
};
use tokio::{
    runtime::Runtime,
    sync::oneshot,
    time::{sleep, timeout},
};

pub(crate) use self::account::Account;
pub(crate) use self::log::{hold, release};

/// An error is its text: what to print, and nothing that anybody would match on.
pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// When to give up on a server that let us in and then does not answer.
const LIVE_WITHIN: Duration = Duration::from_secs(25);

/// How long the end waits for `work` and for the logout.
const BYE_WITHIN: Duration = Duration::from_secs(2);

/// How long a polite end may take.
const POLITE_WITHIN: Duration = Duration::from_secs(15);

/// The sync to receive by.
#[allow(dead_code, reason = "not all examples let choose it")]
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum By {
    Sliding,
    V3,
    Auto,
}

impl From<By> for SyncSource {
    fn from(by: By) -> Self {
        match by {
            By::Sliding => Self::Sliding,
            By::V3 => Self::V3,
            By::Auto => Self::Auto,
        }
    }
}

/// Logs in, does `work` beside the main loop until it ends or somebody ends it (Ctrl-C, SIGTERM), and
/// logs out.
pub(crate) fn run<F>(
    device_name: &'static str,
    account: Account,
    work: impl FnOnce(Client) -> F,
) -> ExitCode
where
    F: Future<Output = Result> + Send + 'static,
{
    end(|| session(device_name, account, None, None, work))
}

#[allow(dead_code, reason = "not all examples have somebody to say goodbye to")]
/// As [`run`], but `work` is told when it is to end, and has a while to say goodbye. With a folder the
/// device stays, and is the same the next time.
pub(crate) fn run_politely<F>(
    device_name: &'static str,
    account: Account,
    store: Option<PathBuf>,
    work: impl FnOnce(Client, oneshot::Receiver<()>) -> F,
) -> ExitCode
where
    F: Future<Output = Result> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel();
    end(|| session(device_name, account, store, Some(stop), |client| work(client, stopped)))
}

fn end<F: Future<Output = Result>>(session: impl FnOnce() -> F) -> ExitCode {
    log::start();
    let result = Runtime::new().map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(session());
        // Do not wait for a task that is stuck: stdout may be a pipe that nobody reads.
        runtime.shutdown_background();
        result
    });
    let Err(error) = result else {
        release();
        return ExitCode::SUCCESS;
    };
    let closed_stdout = error
        .downcast_ref()
        .is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe);
    if closed_stdout {
        return ExitCode::SUCCESS;
    }
    log::last_line(&format!("error: {error}"));
    ExitCode::FAILURE
}

async fn session<F>(
    device_name: &str,
    account: Account,
    store: Option<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    work: impl FnOnce(Client) -> F,
) -> Result
where
    F: Future<Output = Result> + Send + 'static,
{
    let mut stopped = pin!(stopped()?);
    let client = tokio::select! {
        client = account.log_in(device_name, store.as_deref()) => client?,
        () = &mut stopped => return Ok(()),
    };
    // A task of its own, so that one that blocks on a full stdout can still be ended.
    let (main_loop, work) = (keep_syncing(&client), work(client.clone()));
    let mut work = tokio::spawn(async move {
        tokio::select! {
            why = main_loop => Err(why.into()),
            end = work => end,
        }
    });
    let result = tokio::select! {
        result = &mut work => result?,
        () = &mut stopped => match stop {
            Some(stop) => {
                let _ = stop.send(());
                // A second Ctrl-C ends the goodbye, too.
                tokio::select! {
                    result = timeout(POLITE_WITHIN, &mut work) => match result {
                        Ok(result) => result?,
                        Err(_) => fail("the server did not answer the goodbye in time"),
                    },
                    _ = tokio::signal::ctrl_c() => Ok(()),
                }
            }
            None => {
                work.abort();
                let _ = timeout(BYE_WITHIN, work).await;
                Ok(())
            }
        },
    };
    if store.is_some() {
        return result;
    }
    // Best effort: otherwise the account fills with devices that nobody uses any more.
    let _ = timeout(BYE_WITHIN, client.logout()).await;
    result
}

/// Resolves when Ctrl-C is pressed or the process is asked to end.
fn stopped() -> io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate())?
    };
    Ok(async move {
        let interrupt = tokio::signal::ctrl_c();
        #[cfg(unix)]
        tokio::select! {
            _ = interrupt => {}
            _ = terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = interrupt.await;
    })
}

/// Waits for the room of that id or alias, which has to be joined.
pub(crate) async fn joined_room(client: &Client, room: &str) -> Result<Room> {
    let id_or_alias = <&RoomOrAliasId>::try_from(room)
        .map_err(|error| format!("{room} is neither a room's id nor its alias: {error}"))?;
    match timeout(LIVE_WITHIN, wait_for_room(client, id_or_alias)).await {
        Ok(found) => Ok(found?),
        Err(_) => fail(NO_ANSWER),
    }
}

/// Waits until the map is live. Gives up on a server that does not answer.
pub(crate) async fn live(sticky: &Sticky) -> Result {
    let mut states = pin!(sticky.subscribe_state());
    let mut live = pin!(sticky.until_live());
    let mut patience = pin!(sleep(LIVE_WITHIN));
    loop {
        tokio::select! {
            end = &mut live => return Ok(end?),
            // Pages come, as many as there are.
            Some(SyncState::CatchingUp) = states.next() => patience.set(sleep(LIVE_WITHIN)),
            () = &mut patience => return match sticky.state() {
                SyncState::Offline { error, .. } => {
                    fail(format!("the server cannot be reached: {error}"))
                }
                _ => fail(NO_ANSWER),
            },
        }
    }
}

#[allow(dead_code, reason = "not all examples tell it")]
/// The sync that is used, once the map is live.
pub(crate) fn source(sticky: &Sticky) -> &'static str {
    match sticky.source() {
        SyncSource::V3 => "v3",
        _ => "sliding",
    }
}

#[allow(dead_code, reason = "not all examples print lines")]
/// Prints a line, at once.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Resolves, with an error, when the access token is no longer good.
pub(crate) async fn token_lost(sticky: &Sticky) -> Result {
    let mut states = pin!(sticky.subscribe_state());
    let mut state = Some(sticky.state());
    while let Some(now) = state {
        if matches!(now, SyncState::LoggedOut) {
            break;
        }
        state = states.next().await;
    }
    fail(NotLiveError::LoggedOut)
}

#[allow(dead_code, reason = "not all examples go on when something does not work")]
/// Says on stderr what did not work. The program goes on.
pub(crate) fn warn(why: &str) {
    log::warn(why);
}

/// What is said of a server that let us in, and then did not answer for [`LIVE_WITHIN`].
const NO_ANSWER: &str = "the server cannot be reached: no answer";

fn fail<T>(why: impl Display) -> Result<T> {
    Err(why.to_string().into())
}
