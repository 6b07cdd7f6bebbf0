//! `presence`: who is in a room's call, live, and with `--join` ourselves. In a terminal as a screen,
//! with `--json` one object a line for scripts, otherwise as plain lines.
//!
//! ```text
//! cargo run --example presence -- --homeserver https://matrix.example.org --username alice \
//!     --room '#room:example.org' --join
//! ```
#![recursion_limit = "256"]
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program's clocks, tasks and output are its own; what the examples share is not all \
              needed here"
)]

#[path = "../common/mod.rs"]
mod common;
mod json;
mod plain;
mod screen;
#[path = "../common/terminal.rs"]
mod terminal;

use std::{
    future,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use eyeball::Subscriber;
use futures_util::StreamExt as _;
use matrix_sdk::Client;
use matrix_sdk_sticky::{
    Sticky, SyncSource,
    heartbeat::State,
    rtc::{
        self, Membership, ROOM_CALL, Session, SessionSnapshot, SessionSubscription, SessionUpdate,
        Transport,
    },
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use self::common::Result;

/// Shows who is in a room's call (MatrixRTC, MSC4143), live; joins it if told.
#[derive(Clone, Parser)]
struct Options {
    #[command(flatten)]
    account: common::Account,
    /// The room, by its id or alias; it has to be joined.
    #[arg(long, value_name = "R")]
    room: String,
    /// The slot whose session is shown.
    #[arg(long, value_name = "ID", default_value = ROOM_CALL)]
    slot: String,
    /// Which sync to receive by.
    #[arg(long, value_enum, default_value_t = Sync::Auto)]
    sync: Sync,
    /// Join the session.
    #[arg(long)]
    join: bool,
    /// Leave it after that many seconds, and go on looking.
    #[arg(long, value_name = "SECONDS")]
    leave_after: Option<u64>,
    /// How many seconds after a crash everybody sees us gone: 3 to 86400.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    delay: u64,
    /// The dialect to join in. Without it: what the room already speaks.
    #[arg(long, value_enum)]
    dialect: Option<Dialect>,
    /// Open the slot first, for the dialect of MSC4143. Takes the right to do so.
    #[arg(long)]
    open: bool,
    /// What we are there for, as others see it.
    #[arg(long, value_name = "WORD", default_value = "video")]
    intent: String,
    /// The transport that we say we publish by: a LiveKit service. No media are sent.
    #[arg(long, value_name = "URL", default_value = "https://livekit.example.org")]
    livekit: String,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// End that many seconds after the map is live. Without it: on Ctrl-C.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sync {
    Sliding,
    V3,
    Auto,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dialect {
    Msc4143,
    ElementCall,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let account = options.account.clone();
    common::run_politely("matrix-sdk-sticky presence", account, None, |client, stop| {
        presence(client, options, stop)
    })
}

async fn presence(client: Client, options: Options, stop: oneshot::Receiver<()>) -> Result {
    common::first_sync(&client).await?;
    let room = common::joined_room(&client, &options.room).await?;
    let source = match options.sync {
        Sync::Sliding => SyncSource::Sliding,
        Sync::V3 => SyncSource::V3,
        Sync::Auto => SyncSource::Auto,
    };
    let sticky = Sticky::builder(&client).source(source).start()?;
    let show = async {
        common::live(&sticky).await?;
        let room = sticky.room(room.room_id()).ok_or("the room is gone")?;
        let session = room.rtc().session(&*options.slot);
        let SessionSubscription { snapshot, changes, .. } = session.subscribe().await;
        let ui = Ui::open(&client, &sticky, &options, snapshot)?;
        let mut show = Show { own: Own::new(session, options.clone()), ui, sticky: sticky.clone() };
        show.run(changes, stop).await
    };
    tokio::select! {
        end = common::keep_syncing(&client) => end,
        end = common::token_lost(&sticky) => end,
        end = show => end,
    }
}

/// Ourselves in the session.
struct Own {
    session: Session,
    options: Options,
    membership: Option<Membership>,
    states: Option<Subscriber<State>>,
}

impl Own {
    fn new(session: Session, options: Options) -> Self {
        Self { session, options, membership: None, states: None }
    }

    async fn join(&mut self) -> Result {
        if self.is_in() {
            return Ok(());
        }
        let options = &self.options;
        if options.open {
            self.session.open().await?;
        }
        let mut join = self
            .session
            .join([Transport::livekit(&options.livekit)])
            .intent(&options.intent)
            .delay(Duration::from_secs(options.delay));
        if let Some(dialect) = options.dialect {
            join = join.dialect(match dialect {
                Dialect::Msc4143 => rtc::Dialect::Msc4143,
                Dialect::ElementCall => rtc::Dialect::ElementCall,
            });
        }
        let membership = join.await?;
        let mut states = membership.subscribe_state();
        // How it stands already is to be said too.
        states.reset();
        self.states = Some(states);
        self.membership = Some(membership);
        Ok(())
    }

    fn is_in(&self) -> bool {
        let over = |state| matches!(state, State::Left | State::Failed(_));
        self.membership.as_ref().is_some_and(|membership| !over(membership.state()))
    }
}

/// How it is shown.
enum Ui {
    Json(json::Json),
    Plain(plain::Plain),
    Screen(Box<screen::View>),
}

impl Ui {
    fn open(
        client: &Client,
        sticky: &Sticky,
        options: &Options,
        snapshot: SessionSnapshot,
    ) -> Result<Self> {
        let sync = match sticky.source() {
            SyncSource::V3 => "v3",
            _ => "sliding",
        };
        if options.json {
            say(&json::ready(sync))?;
            common::release();
            let mut json = json::Json::default();
            say(&json.members(&snapshot).unwrap_or_default())?;
            Ok(Self::Json(json))
        } else if io::stdout().is_terminal() && io::stdin().is_terminal() {
            Ok(Self::Screen(Box::new(screen::View::open(client, &options.room, snapshot)?)))
        } else {
            say(&format!("live, by {sync} sync"))?;
            common::release();
            for line in plain::at_first(&snapshot) {
                say(&line)?;
            }
            Ok(Self::Plain(plain::Plain::default()))
        }
    }

    fn update(&mut self, update: SessionUpdate) -> Result {
        match self {
            Self::Json(json) => {
                if let Some(line) = json.members(&update.snapshot) {
                    say(&line)?;
                }
            }
            Self::Plain(_) => {
                for line in update.changes.iter().filter_map(plain::line) {
                    say(&line)?;
                }
            }
            Self::Screen(view) => view.update(update),
        }
        Ok(())
    }

    fn own(&mut self, state: State) -> Result {
        match self {
            Self::Json(json) => {
                if let Some(line) = json.own(state) {
                    say(&line)?;
                }
            }
            Self::Plain(plain) => {
                if let Some(line) = plain.own(state) {
                    say(&line)?;
                }
            }
            Self::Screen(view) => view.own(state),
        }
        Ok(())
    }

    fn draw(&mut self, sticky: &Sticky, own: &Own) -> Result {
        if let Self::Screen(view) = self {
            view.draw(sticky, own.membership.as_ref())?;
        }
        Ok(())
    }

    /// The next key, or that it is time to draw again; never, where there is no screen.
    async fn next(&mut self) -> screen::Key {
        match self {
            Self::Screen(view) => view.next().await,
            _ => future::pending().await,
        }
    }
}

struct Show {
    own: Own,
    ui: Ui,
    sticky: Sticky,
}

impl Show {
    async fn run(
        &mut self,
        mut changes: rtc::SessionChanges,
        mut stop: oneshot::Receiver<()>,
    ) -> Result {
        let after = |seconds: Option<u64>| {
            seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds))
        };
        let over = after(self.own.options.seconds);
        let mut leave_at = after(self.own.options.leave_after);
        if self.own.options.join {
            self.own.join().await?;
        }
        let mut is_leaving = false;
        loop {
            self.ui.draw(&self.sticky, &self.own)?;
            tokio::select! {
                _ = &mut stop => return self.leave_for_good().await,
                () = until(over) => return self.leave_for_good().await,
                () = until(leave_at) => {
                    leave_at = None;
                    is_leaving = true;
                }
                Some(update) = changes.next() => self.ui.update(update)?,
                state = next_own(&mut self.own.states) => {
                    self.ui.own(state)?;
                    if let State::Failed(_) = state
                        && self.own.options.join
                    {
                        let why = self.own.membership.as_ref().and_then(Membership::last_error);
                        return Err(why.unwrap_or_else(|| state.as_str().to_owned()).into());
                    }
                }
                key = self.ui.next() => match key {
                    screen::Key::Join => {
                        if let Err(error) = self.own.join().await
                            && let Ui::Screen(view) = &mut self.ui
                        {
                            view.note(&error.to_string());
                        }
                    }
                    screen::Key::Leave => is_leaving = true,
                    screen::Key::Quit => return self.leave_for_good().await,
                    screen::Key::Redraw => {}
                },
            }
            if std::mem::take(&mut is_leaving)
                && let Some(membership) = &self.own.membership
            {
                // What follows is told by its states.
                let mut leave = std::pin::pin!(membership.leave());
                let _ = futures_util::poll!(&mut leave);
            }
        }
    }

    /// Says goodbye, and shows what comes of it.
    async fn leave_for_good(&mut self) -> Result {
        if let Some(membership) = &self.own.membership {
            let state = membership.leave().await;
            self.ui.own(state)?;
        }
        Ok(())
    }
}

/// How we stand next.
async fn next_own(states: &mut Option<Subscriber<State>>) -> State {
    if let Some(states) = states
        && let Some(state) = states.next().await
    {
        return state;
    }
    future::pending().await
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
