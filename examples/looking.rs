//! `looking`: the users that look at a document right now, and their pages. Type the number of a page
//! to turn to it. A user who closes the program, or loses the network, is gone from all lists.
//!
//! ```text
//! cargo run --example looking -- --homeserver https://matrix.example.org --username alice \
//!     --room '#room:example.org'
//! ```
#![recursion_limit = "256"]
#![allow(
    dead_code,
    unused_imports,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program's clocks, tasks and output are its own; what the examples share is not all \
              needed here"
)]

mod common;

use std::{future, process::ExitCode};

use clap::Parser;
use futures_util::StreamExt as _;
use matrix_sdk::Client;
use matrix_sdk_sticky::{
    RoomSticky, StickyContent, StickyRoomExt as _,
    heartbeat::Heartbeat,
    view::{TypedEntry, TypedSubscription},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use self::common::Result;

/// Shows the pages that users look at, and shows others yours.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    account: common::Account,
    /// The room, by its id or alias; it has to be joined.
    #[arg(long, value_name = "R")]
    room: String,
}

/// The page that a user looks at.
#[derive(Serialize, Deserialize)]
struct Looking {
    page: String,
}

impl StickyContent for Looking {
    const TYPE: &str = "com.example.looking";
}

fn main() -> ExitCode {
    let options = Options::parse();
    let account = options.account.clone();
    common::run_politely("matrix-sdk-sticky looking", account, None, |client, stop| {
        look(client, options, stop)
    })
}

async fn look(client: Client, options: Options, stop: oneshot::Receiver<()>) -> Result {
    let room = common::joined_room(&client, &options.room).await?.sticky();
    common::live(room.sticky_client()).await?;
    common::release();
    // A key for each device, so that a user may look from two.
    let device = client.device_id().map_or_else(Default::default, ToString::to_string);
    let first = Looking { page: "1".to_owned() };
    let heartbeat = room.heartbeat(device).with_content(&first).start().await?;
    tokio::select! {
        end = show(&room) => end,
        end = turn_pages(&heartbeat) => end,
        _ = stop => {
            heartbeat.leave().await;
            Ok(())
        }
    }
}

/// Prints the users and their pages at each change.
async fn show(room: &RoomSticky) -> Result {
    let view = room.view::<Looking>();
    let TypedSubscription { mut changes, .. } = view.subscribe();
    loop {
        let snapshot = view.snapshot();
        let looking: Vec<_> = snapshot.iter().filter_map(line).collect();
        println!("{}", if looking.is_empty() { "nobody".to_owned() } else { looking.join(", ") });
        if changes.next().await.is_none() {
            return Ok(());
        }
    }
}

/// The line of an entry; `None` if its content names no page.
fn line(entry: &TypedEntry<Looking>) -> Option<String> {
    let Looking { page } = entry.content().ok()?;
    Some(format!("{} is on page {page}", entry.sender()))
}

/// Turns to each page that is typed.
async fn turn_pages(heartbeat: &Heartbeat) -> Result {
    let (typed, mut lines) = mpsc::unbounded_channel();
    // A thread of its own: there is no other way to wait for a line.
    std::thread::spawn(move || {
        let lines = std::io::stdin().lines().map_while(std::result::Result::ok);
        lines.for_each(|line| drop(typed.send(line)));
    });
    while let Some(page) = lines.recv().await {
        heartbeat.update(&Looking { page })?;
    }
    // The input has ended. That is no reason to leave.
    future::pending().await
}
