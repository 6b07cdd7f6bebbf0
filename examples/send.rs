//! `send`: sends one sticky event, removes a key, or redacts a sticky event.
//!
//! ```text
//! cargo run --example send -- --homeserver https://matrix.example.org --username alice \
//!     --room '#room:example.org' --type com.example.presence --key laptop \
//!     --content '{"status":"busy"}' --sticky 600
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

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use matrix_sdk::{Client, ruma::EventId};
use matrix_sdk_sticky::{Sent, StickyRoomExt as _};
use serde_json::{Map, Value};

use self::common::Result;

/// Sends a sticky event (MSC4354), removes what was sent for a key, or redacts one.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    account: common::Account,
    /// The room, by its id or alias; it has to be joined.
    #[arg(long, value_name = "R")]
    room: String,
    /// The event's type, e.g. com.example.presence.
    #[arg(long = "type", value_name = "T", required_unless_present = "redact")]
    event_type: Option<String>,
    /// The sticky key. Without it the event is an entry of its own.
    #[arg(long, value_name = "K")]
    key: Option<String>,
    /// The content, a JSON object.
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = object)]
    content: Map<String, Value>,
    /// For how many seconds it is sticky, at most 3600. Defaults to the duration of the last event of
    /// the key, else to an hour.
    #[arg(long, value_name = "SECONDS")]
    sticky: Option<u64>,
    /// Remove what was sent for the key.
    #[arg(long, requires = "key")]
    remove: bool,
    /// Redact this event, with a redaction that is itself sticky.
    #[arg(long, value_name = "EVENT_ID", conflicts_with = "remove")]
    redact: Option<String>,
}

fn object(text: &str) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_str(text)
}

fn main() -> ExitCode {
    let options = Options::parse();
    let account = options.account.clone();
    common::run("matrix-sdk-sticky send", account, |client| send(client, options))
}

async fn send(client: Client, options: Options) -> Result {
    let sticky = common::joined_room(&client, &options.room).await?.sticky();
    // An event is sticky for as long as the last one of its key, so the map has to be there.
    common::live(sticky.sticky_client()).await?;
    let duration = options.sticky.map(Duration::from_secs);

    let Sent { event_id, sticky_duration, .. } = if let Some(event_id) = &options.redact {
        let mut redaction = sticky.redact(EventId::parse(event_id)?);
        if let Some(duration) = duration {
            redaction = redaction.with_sticky_duration(duration);
        }
        redaction.await?
    } else {
        let content = if options.remove { Map::new() } else { options.content };
        let mut event = sticky.send_raw(&options.event_type.unwrap_or_default(), content);
        if let Some(key) = options.key {
            event = event.with_sticky_key(key);
        }
        if let Some(duration) = duration {
            event = event.with_sticky_duration(duration);
        }
        event.await?
    };
    match sticky_duration {
        Some(duration) => println!("{event_id} is sticky for {} s", duration.as_secs_f64()),
        None => println!("{event_id} is not sticky: the room's version has no sticky redactions"),
    }
    Ok(())
}
