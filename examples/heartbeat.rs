//! `heartbeat`: keeps a key alive until Ctrl-C. All users in the room see it, and see it gone soon after
//! this program has ended, however it ends.
//!
//! ```text
//! cargo run --example heartbeat -- --homeserver https://matrix.example.org --username alice \
//!     --room '#room:example.org' --type com.example.looking --key laptop --content '{"page":1}'
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

use std::{future, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use futures_util::StreamExt as _;
use matrix_sdk::Client;
use matrix_sdk_sticky::{
    StickyRoomExt as _,
    heartbeat::{Heartbeat, HeartbeatState},
};
use serde_json::{Map, Value, json};
use tokio::{sync::oneshot, time::sleep};

use self::common::Result;

/// Keeps a sticky key (MSC4354) alive, with a leave that the server sends after a crash (MSC4140).
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    account: common::Account,
    /// The room, by its id or alias; it has to be joined.
    #[arg(long, value_name = "R")]
    room: String,
    /// The event's type, e.g. com.example.looking.
    #[arg(long = "type", value_name = "T")]
    event_type: String,
    /// The sticky key.
    #[arg(long, value_name = "K")]
    key: String,
    /// What others see meanwhile, a JSON object.
    #[arg(long, value_name = "JSON", value_parser = object)]
    content: Map<String, Value>,
    /// What others see afterwards, a JSON object. Defaults to removing the key.
    #[arg(long, value_name = "JSON", value_parser = object)]
    leave_content: Option<Map<String, Value>>,
    /// How many seconds after a crash all others see it gone: 3 to 86400.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    delay: u64,
    /// For how many seconds its events are sticky, at most 3600 and at least twice the delay.
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600)]
    sticky: u64,
    /// A folder that keeps the device and the armed leave for the next start. Without it each run is a
    /// new device.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Leave after that many seconds. Defaults to leaving on Ctrl-C.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

fn object(text: &str) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_str(text)
}

fn main() -> ExitCode {
    let options = Options::parse();
    let (account, store) = (options.account.clone(), options.store.clone());
    common::run_politely("matrix-sdk-sticky heartbeat", account, store, |client, stop| {
        beat(client, options, stop)
    })
}

async fn beat(client: Client, options: Options, stop: oneshot::Receiver<()>) -> Result {
    let room = common::joined_room(&client, &options.room).await?.sticky();
    common::live(room.sticky_client()).await?;
    common::release();
    let mut start = room
        .heartbeat(&options.key)
        .with_raw_content(&options.event_type, options.content)
        .with_sticky_duration(Duration::from_secs(options.sticky))
        .with_delay(Duration::from_secs(options.delay));
    if let Some(content) = &options.leave_content {
        start = start.with_leave_content(content);
    }
    let heartbeat = start.start().await?;
    let over = async {
        match options.seconds {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => future::pending().await,
        }
    };
    let leave = async {
        tokio::select! {
            _ = stop => {}
            () = over => {}
        }
        heartbeat.leave().await;
        future::pending::<Result>().await
    };
    tokio::select! {
        end = show(&heartbeat, options.json) => end,
        end = leave => end,
    }
}

/// Prints each state, until the last.
async fn show(heartbeat: &Heartbeat, json: bool) -> Result {
    let mut states = heartbeat.subscribe_state();
    let mut state = heartbeat.state();
    let mut said = "";
    loop {
        let name = state.as_str();
        // Leaving is over in no time, and nothing here suspends.
        if name != said
            && !matches!(state, HeartbeatState::Leaving | HeartbeatState::Suspended { .. })
        {
            said = name;
            if let HeartbeatState::Failed(_) = state {
                return Err(heartbeat.last_error().unwrap_or_else(|| name.to_owned()).into());
            }
            match json {
                true => println!("{}", json!({ "kind": "own", "state": name })),
                false => println!("{}", name.replace('_', " ")),
            }
        }
        if state == HeartbeatState::Left {
            return Ok(());
        }
        match states.next().await {
            Some(next) => state = next,
            None => return Ok(()),
        }
    }
}
