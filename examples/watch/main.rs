//! `watch`: the sticky events of a user's rooms, live. In a terminal as a screen, with `--json` one
//! object a line for scripts, otherwise as plain lines.
//!
//! ```text
//! cargo run --example watch -- --homeserver https://matrix.example.org --username alice
//! ```
#![recursion_limit = "256"]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program's clocks, tasks and output are its own"
)]

#[path = "../common/mod.rs"]
mod common;
mod json;
#[path = "../common/names.rs"]
mod names;
mod only;
mod opened;
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

use clap::Parser;
use futures_util::StreamExt as _;
use matrix_sdk::Client;
use matrix_sdk_sticky::{
    Sticky,
    view::{EntryChange, Subscription, View},
};
use tokio::time::sleep;

use self::{
    common::{By, Result, say, source},
    only::Only,
};

/// Shows the sticky events (MSC4354) of a user's rooms, live.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    account: common::Account,
    /// Only this room, by its id or alias; it has to be joined. Defaults to all joined rooms.
    #[arg(long, value_name = "R")]
    room: Option<String>,
    #[command(flatten)]
    only: Only,
    /// Which sync to receive by.
    #[arg(long, value_enum, default_value_t = By::Auto)]
    sync: By,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// End that many seconds after the map is live. Defaults to ending on Ctrl-C.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let account = options.account.clone();
    common::run("matrix-sdk-sticky watch", account, |client| watch(client, options))
}

async fn watch(client: Client, options: Options) -> Result {
    let room = match &options.room {
        Some(room) => Some(common::joined_room(&client, room).await?),
        None => None,
    };

    let sticky = Sticky::builder(&client).with_source(options.sync.into()).start()?;
    common::live(&sticky).await?;
    let view = match room {
        Some(room) => sticky.events().in_room(room.room_id()),
        None => sticky.events(),
    };
    let over = async {
        match options.seconds {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => future::pending().await,
        }
    };
    let shown = async {
        if options.json {
            print(&view, &options.only, json::ready(source(&sticky)), json::line).await
        } else if io::stdout().is_terminal() && io::stdin().is_terminal() {
            screen::show(&client, &sticky, &view, options.only).await
        } else {
            print(&view, &options.only, plain::ready(source(&sticky)), plain::line).await
        }
    };
    tokio::select! {
        () = over => Ok(()),
        end = common::token_lost(&sticky) => end,
        end = shown => end,
    }
}

/// Prints what is there, then what changes, for ever.
async fn print(
    view: &View,
    only: &Only,
    ready: String,
    line: impl Fn(&EntryChange, Duration) -> serde_json::Result<String>,
) -> Result {
    // Snapshot and stream are one value: nothing is lost or repeated between them.
    let Subscription { snapshot, mut changes, .. } = view.subscribe();
    say(&ready)?;
    common::release();
    for entry in snapshot.iter().filter(|entry| only.lets_through(entry)) {
        let left = entry.expires_in(snapshot.taken_at());
        say(&line(&EntryChange::Added(entry), left)?)?;
    }
    while let Some(change) = changes.next().await {
        for entry in change.entries.iter().filter(|it| only.lets_through(it.entry())) {
            let left = entry.entry().expires_in(change.told_at);
            say(&line(entry, left)?)?;
        }
    }
    Ok(())
}
