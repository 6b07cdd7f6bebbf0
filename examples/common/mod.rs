//! What every example does around the part that is about sticky events: read the account from the
//! command line, log in, keep the application's own sync running, say in one line why it ended, and
//! log out.

mod log;

use std::{
    error::Error,
    fmt::Display,
    future::Future,
    io::{self, Write as _},
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    time::Duration,
};

use futures_util::StreamExt as _;
use matrix_sdk::{
    Client, HttpError, RefreshTokenError, Room, RoomState,
    authentication::matrix::MatrixSession,
    config::{RequestConfig, SyncSettings},
    ruma::{RoomId, RoomOrAliasId, api::error::ErrorKind},
};
use matrix_sdk_sticky::{BaseClientBuilder, Sticky, SyncSource, SyncState};
use tokio::{
    runtime::Runtime,
    sync::oneshot,
    time::{sleep, timeout},
};

pub(crate) use self::log::{hold, release};

/// An error is its text: what to print, and nothing that anybody would match on.
pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// When to give up on a server that does not answer `/versions`, or the login.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// When to give up on a server that let us in and then does not answer.
const LIVE_WITHIN: Duration = Duration::from_secs(25);

/// When to sync again after the main loop ended with an error.
const SYNC_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// When to leave without having said goodbye.
const BYE_WITHIN: Duration = Duration::from_secs(2);

/// When to give up on saying goodbye.
const POLITE_WITHIN: Duration = Duration::from_secs(15);

/// Whose eyes we look through.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Account {
    /// The homeserver's URL, e.g. https://matrix.example.org
    #[arg(long, value_name = "URL")]
    homeserver: String,
    /// The user's name, or full id.
    #[arg(long, value_name = "U")]
    username: String,
    /// The password; without it, the environment's MATRIX_PASSWORD.
    #[arg(long, value_name = "P")]
    password: Option<String>,
}

/// Which sync to receive by.
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

/// Logs in, does `work` until it ends or somebody ends it (Ctrl-C, SIGTERM), and logs out.
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
/// As [`run`], but whoever ends it lets `work` say goodbye: it is told, and has a while for that.
/// With a folder the device stays, and is the same the next time.
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
        client = log_in(device_name, &account, store.as_deref()) => client?,
        () = &mut stopped => return Ok(()),
    };
    // A task of its own, so that one that blocks on a full stdout can still be ended.
    let mut work = tokio::spawn(work(client.clone()));
    let result = tokio::select! {
        result = &mut work => result?,
        () = &mut stopped => match stop {
            Some(stop) => {
                let _ = stop.send(());
                // A second Ctrl-C is for who has no more patience.
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

async fn log_in(device_name: &str, account: &Account, store: Option<&Path>) -> Result<Client> {
    let Account { homeserver: url, username, password } = account;
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return fail(format!("{url} is no homeserver's URL: it begins with https:// or http://"));
    }
    let password = match password {
        Some(password) => password.clone(),
        None => std::env::var("MATRIX_PASSWORD").map_err(
            |_| "a password is needed: --password, or MATRIX_PASSWORD in the environment",
        )?,
    };

    let builder = Client::builder()
        .homeserver_url(url)
        // The one that was asked for, whatever the answer to the login recommends.
        .respect_login_well_known(false)
        // Where access tokens run out, the client gets new ones by itself.
        .handle_refresh_tokens()
        // Who starts a program wants to hear what is wrong, rather than wait while it tries again.
        .request_config(RequestConfig::new().disable_retry());
    // On a base client that is shared with this crate, so that it can encrypt what it sends.
    let base = match store {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .map_err(|error| format!("{} is no folder: {error}", folder.display()))?;
            BaseClientBuilder::sqlite(folder, None)
        }
        None => BaseClientBuilder::in_memory(),
    };
    let client = base
        .build_client(builder)
        .await
        .map_err(|error| format!("{url} is no homeserver's URL: {}", with_causes(&error)))?;

    let config = RequestConfig::new().disable_retry().timeout(ANSWER_WITHIN);
    client
        .fetch_server_versions(Some(config))
        .await
        .map_err(|error| why_no_homeserver(url, &error))?;

    let session_file = store.map(|folder| folder.join("session.json"));
    if let Some(file) = &session_file {
        store_new_tokens(&client, file)?;
    }
    if let Some(file) = session_file.as_ref().filter(|file| file.exists()) {
        client.restore_session(read_session(file)?).await?;
        return Ok(client);
    }
    let login = client
        .matrix_auth()
        .login_username(username, &password)
        .initial_device_display_name(device_name)
        // A server that has none gives us an access token that does not run out.
        .request_refresh_token()
        .send();
    timeout(ANSWER_WITHIN, login)
        .await
        .map_err(|_| format!("{url} cannot be reached: no answer to the login"))?
        .map_err(|error| match error.as_client_api_error() {
            Some(refusal) => format!("{url} refused to log {username} in: {refusal}"),
            None => format!("logging in on {url} failed: {}", with_causes(&error)),
        })?;
    if let Some(file) = session_file {
        write_session(&client, &file)?;
    }
    Ok(client)
}

/// Has each new pair of tokens written to the file before the client uses it.
///
/// Why not subscribe to the changes of the session? The first use of a new token makes the server
/// forget the old pair. A process that is killed between that use and the subscriber's write could
/// never log in again.
fn store_new_tokens(client: &Client, file: &Path) -> Result {
    let (reload, save) = (file.to_owned(), file.to_owned());
    client.set_session_callbacks(
        Box::new(move |_| Ok(read_session(&reload)?.tokens)),
        Box::new(move |client| write_session(&client, &save)),
    )?;
    Ok(())
}

fn read_session(file: &Path) -> Result<MatrixSession> {
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
}

fn write_session(client: &Client, file: &Path) -> Result {
    match client.matrix_auth().session() {
        Some(session) => Ok(write_secret(file, &serde_json::to_vec(&session)?)?),
        None => Ok(()),
    }
}

/// Writes a file that nobody else may read: the session has the tokens. The file is complete at
/// every moment, also if the process is killed meanwhile.
fn write_secret(file: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    io::Write::write_all(&mut options.open(&unfinished)?, content)?;
    std::fs::rename(unfinished, file)
}

fn why_no_homeserver(url: &str, error: &HttpError) -> String {
    match error {
        HttpError::Reqwest(error) if error.is_timeout() => {
            format!("{url} cannot be reached: no answer within {} s", ANSWER_WITHIN.as_secs())
        }
        HttpError::Reqwest(error) if error.is_connect() => {
            format!("{url} cannot be reached: {}", with_causes(error))
        }
        _ => match error.as_client_api_error() {
            Some(answer) if answer.status_code.is_server_error() => {
                format!("{url} is out of order: {answer}")
            }
            _ => format!("{url} is no Matrix homeserver: {}", with_causes(error)),
        },
    }
}

/// The main loop's first round: after it the client knows its rooms.
pub(crate) async fn first_sync(client: &Client) -> Result {
    let at_once = SyncSettings::default().timeout(Duration::ZERO);
    match timeout(LIVE_WITHIN, client.sync_once(at_once)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => fail(format!("the first sync failed: {}", with_causes(&error))),
        Err(_) => {
            fail(format!("the first sync failed: no answer within {} s", LIVE_WITHIN.as_secs()))
        }
    }
}

/// The main loop: whatever else an application does with Matrix. It brings room keys, redactions
/// and who is ignored. Ends, with the reason, when it makes no sense to go on.
pub(crate) async fn keep_syncing(client: &Client) -> Result {
    loop {
        // It ends with an error when the server restarts, or the network is gone.
        if let Err(error) = client.sync(SyncSettings::default()).await
            && is_token_lost(&error)
        {
            return fail(TOKEN_LOST);
        }
        sleep(SYNC_AGAIN_AFTER).await;
    }
}

/// Whether the server refuses our access token, and gives us no other one for our refresh token.
fn is_token_lost(error: &matrix_sdk::Error) -> bool {
    let matrix_sdk::Error::Http(error) = error else { return false };
    match &**error {
        HttpError::RefreshToken(RefreshTokenError::RefreshTokenRequired) => true,
        // Other reasons for not getting one pass, such as a network that is down.
        HttpError::RefreshToken(RefreshTokenError::MatrixAuth(error)) => matches!(
            error.client_api_error_kind(),
            Some(ErrorKind::UnknownToken(_) | ErrorKind::Forbidden)
        ),
        error => matches!(error.client_api_error_kind(), Some(ErrorKind::UnknownToken(_))),
    }
}

/// The room of that id or alias, which has to be joined. Asks the client, so comes after the
/// [`first_sync`].
pub(crate) async fn joined_room(client: &Client, room: &str) -> Result<Room> {
    let id_or_alias = <&RoomOrAliasId>::try_from(room)
        .map_err(|error| format!("{room} is neither a room's id nor its alias: {error}"))?;
    let room_id = match <&RoomId>::try_from(id_or_alias) {
        Ok(room_id) => room_id.to_owned(),
        Err(alias) => {
            let resolved = client.resolve_room_alias(alias).await;
            resolved
                .map_err(|error| format!("no room has the alias {room}: {}", with_causes(&error)))?
                .room_id
        }
    };
    match client.get_room(&room_id) {
        None => fail(format!("the room {room} is unknown to this user: join it first")),
        Some(found) if found.state() != RoomState::Joined => {
            fail(format!("the room {room} is not joined ({:?}): join it first", found.state()))
        }
        Some(found) => Ok(found),
    }
}

/// Waits until the map is live.
pub(crate) async fn live(sticky: &Sticky) -> Result {
    let mut states = pin!(sticky.subscribe_state());
    let mut state = sticky.state();
    let mut patience = pin!(sleep(LIVE_WITHIN));
    loop {
        match &state {
            SyncState::Live | SyncState::Incomplete { .. } => return Ok(()),
            SyncState::Unsupported(why) => return fail(why),
            SyncState::LoggedOut => return fail(TOKEN_LOST),
            // Pages come, as many as there are.
            SyncState::CatchingUp => patience.set(sleep(LIVE_WITHIN)),
            _ => {}
        }
        tokio::select! {
            next = states.next() => match next {
                Some(next) => state = next,
                None => return fail("the sync of sticky events ended"),
            },
            () = &mut patience => return match state {
                SyncState::Offline { error, .. } => {
                    fail(format!("the server cannot be reached: {error}"))
                }
                _ => fail("the server cannot be reached: no answer"),
            },
        }
    }
}

#[allow(dead_code, reason = "not all examples tell it")]
/// Which sync it is, once the map is live.
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
    fail(TOKEN_LOST)
}

#[allow(dead_code, reason = "not all examples go on when something does not work")]
/// Says on stderr what did not work, though the program goes on.
pub(crate) fn warn(why: &str) {
    log::warn(why);
}

const TOKEN_LOST: &str = "the server does not accept our access token any more: logged out";

fn fail<T>(why: impl Display) -> Result<T> {
    Err(why.to_string().into())
}

/// An error and what it came from, as reqwest's say little by themselves.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
