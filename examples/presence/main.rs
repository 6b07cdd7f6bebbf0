//! `presence`: the members of a room's sessions, live, and with `--join` ourselves. In a terminal as a
//! screen, with `--json` one object a line for scripts, otherwise as plain lines.
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
#[path = "../common/names.rs"]
mod names;
mod own;
mod plain;
mod screen;
#[path = "../common/terminal.rs"]
mod terminal;

use std::{
    future,
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use futures_util::StreamExt as _;
use matrix_sdk::{Client, Room};
use matrix_sdk_sticky::{
    Sticky,
    heartbeat::HeartbeatState,
    rtc::{ROOM_CALL, RtcChange, RtcChanges, RtcSnapshot, RtcSubscription, RtcUpdate},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use self::{
    common::{By, Result, say},
    own::{News, Own},
};

/// When to give up on saying goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(12);

/// Shows the members of a room's sessions (MatrixRTC, MSC4143), live; joins one with --join.
#[derive(Clone, Parser)]
struct Options {
    #[command(flatten)]
    account: common::Account,
    /// The room, by its id or alias; it has to be joined.
    #[arg(long, value_name = "R")]
    room: String,
    /// The slot whose session is joined, and printed if there is no screen.
    #[arg(long, value_name = "ID", default_value = ROOM_CALL)]
    slot: String,
    /// Which sync to receive by.
    #[arg(long, value_enum, default_value_t = By::Auto)]
    sync: By,
    /// Join the session.
    #[arg(long)]
    join: bool,
    /// Leave it after that many seconds, and go on watching.
    #[arg(long, value_name = "SECONDS")]
    leave_after: Option<u64>,
    /// How many seconds after a crash all others see us gone: 3 to 86400.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    delay: u64,
    /// The dialect to join in. Defaults to what the room already speaks.
    #[arg(long, value_enum)]
    dialect: Option<Dialect>,
    /// Open the slot first, for the dialect of MSC4143. This needs the right to send state.
    #[arg(long)]
    open: bool,
    /// Our intent, as others see it.
    #[arg(long, value_name = "WORD", default_value = "video")]
    intent: String,
    /// The transport that we say we publish by: a LiveKit service. No media are sent.
    #[arg(long, value_name = "URL", default_value = "https://livekit.example.org")]
    livekit: String,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// End that many seconds after the map is live. Defaults to ending on Ctrl-C.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
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

async fn presence(client: Client, options: Options, mut stop: oneshot::Receiver<()>) -> Result {
    let room = tokio::select! {
        room = common::joined_room(&client, &options.room) => room?,
        _ = &mut stop => return Ok(()),
    };
    let sticky = Sticky::builder(&client).with_source(options.sync.into()).start()?;
    let show = async {
        let (mut show, changes) = tokio::select! {
            begun = Show::begin(&sticky, &room, &options) => begun?,
            _ = &mut stop => return Ok(()),
        };
        show.run(changes, &options, &mut stop).await
    };
    tokio::select! {
        end = common::token_lost(&sticky) => end,
        end = show => end,
    }
}

/// How it is shown.
enum Ui {
    Json(json::Json),
    Plain(plain::Plain),
    Screen(Box<screen::View>),
}

impl Ui {
    /// Says that we are live, and which members are there.
    fn open(
        sticky: &Sticky,
        room: &Room,
        options: &Options,
        own: &Own,
        now: RtcSnapshot,
    ) -> Result<Self> {
        let sync = common::source(sticky);
        if !options.json && io::stdout().is_terminal() && io::stdin().is_terminal() {
            let delay = Duration::from_secs(options.delay);
            return Ok(Self::Screen(Box::new(screen::View::open(room, delay, now)?)));
        }
        let now = now.session(own.slot_id());
        if options.json {
            say(&json::ready(sync))?;
            common::release();
            let mut json = json::Json::default();
            say_if(json.members(&now))?;
            Ok(Self::Json(json))
        } else {
            say(&format!("live, by {sync} sync"))?;
            common::release();
            plain::at_first(&now).iter().try_for_each(|line| say(line))?;
            Ok(Self::Plain(plain::Plain::default()))
        }
    }

    /// Takes the two names of our slot: the one that was asked for, and the one that the changes have.
    async fn update(
        &mut self,
        (slot_id, session_slot_id): (&str, &str),
        change: RtcUpdate,
    ) -> Result {
        let is_here = |change: &&RtcChange| change.slot_id.as_deref() == Some(session_slot_id);
        match self {
            Self::Json(json) => say_if(json.members(&change.snapshot.session(slot_id)))?,
            Self::Plain(_) => {
                let changes = change.changes.iter().filter(is_here);
                // Scripts may read these lines too, so they have the ids.
                let names = names::Names::default();
                let mut lines = changes.filter_map(|change| plain::line(&change.change, &names));
                lines.try_for_each(|line| say(&line))?;
            }
            Self::Screen(view) => view.update(change).await,
        }
        Ok(())
    }

    fn own(&mut self, state: HeartbeatState) -> Result {
        match self {
            Self::Json(json) => say_if(json.own(state))?,
            Self::Plain(plain) => say_if(plain.own(state))?,
            Self::Screen(view) => view.own(state),
        }
        Ok(())
    }

    /// Says what did not work. The program goes on.
    fn complain(&mut self, why: &str) {
        match self {
            Self::Screen(view) => view.note(why),
            _ => common::warn(why),
        }
    }

    fn toggle_help(&mut self) {
        if let Self::Screen(view) = self {
            view.toggle_help();
        }
    }

    fn draw(&mut self, sticky: &Sticky, own: &Own) -> Result {
        if let Self::Screen(view) = self {
            view.draw(sticky, own.membership())?;
        }
        Ok(())
    }

    /// The next key, or that it is time to draw again. Without a screen it never resolves.
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
    /// Waits until the map is live, and joins with `--join`. If that fails, nothing else is said.
    async fn begin(sticky: &Sticky, room: &Room, options: &Options) -> Result<(Self, RtcChanges)> {
        common::live(sticky).await?;
        let rtc = sticky.room(room.room_id()).ok_or("the room is gone")?.rtc();
        let mut own = Own::new(rtc.session(&*options.slot), options);
        // Before we join, so that our own join is shown.
        let RtcSubscription { snapshot, changes, .. } = rtc.subscribe().await;
        own.look_at(&snapshot);
        if options.join {
            own.join_now().await?;
        }
        let ui = Ui::open(sticky, room, options, &own, snapshot)?;
        Ok((Self { own, ui, sticky: sticky.clone() }, changes))
    }

    async fn run(
        &mut self,
        mut changes: RtcChanges,
        options: &Options,
        stop: &mut oneshot::Receiver<()>,
    ) -> Result {
        let after = |seconds: Option<u64>| {
            seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds))
        };
        let over = after(options.seconds);
        let mut leave_at = after(options.leave_after);
        loop {
            self.ui.draw(&self.sticky, &self.own)?;
            tokio::select! {
                _ = &mut *stop => return self.leave_for_good().await,
                () = until(over) => return self.leave_for_good().await,
                () = until(leave_at) => {
                    leave_at = None;
                    self.own.leave();
                }
                Some(change) = changes.next() => {
                    let slots = (self.own.slot_id(), self.own.session_slot_id());
                    self.ui.update(slots, change).await?;
                }
                news = self.own.next() => match news {
                    News::State(state) => {
                        self.ui.own(state)?;
                        if let HeartbeatState::Failed(failure) = state {
                            let why = plain::failed(failure, self.own.last_error());
                            self.ui.complain(&why);
                        }
                    }
                    News::NotJoined(error) => self.ui.complain(&error.to_string()),
                },
                key = self.ui.next() => match key {
                    screen::Key::Join => self.own.join(),
                    screen::Key::Leave => self.own.leave(),
                    screen::Key::Quit => return self.leave_for_good().await,
                    screen::Key::Help => self.ui.toggle_help(),
                    screen::Key::Redraw => {}
                },
            }
        }
    }

    /// Leaves, and shows the last state.
    async fn leave_for_good(&mut self) -> Result {
        if let Some(membership) = self.own.membership() {
            let state = timeout(GOODBYE_WITHIN, membership.leave()).await;
            let state = state.map_err(|_| "the server did not answer the goodbye in time")?;
            self.ui.own(state)?;
        }
        Ok(())
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}

fn say_if(line: Option<String>) -> io::Result<()> {
    line.map_or(Ok(()), |line| say(&line))
}
