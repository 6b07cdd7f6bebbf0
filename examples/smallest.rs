//! `smallest`: logs in, goes on through restarts of the server, and prints each change of one room's
//! map. It needs nothing but matrix-sdk-sticky, matrix-sdk, tokio and futures-util.
//!
//! ```text
//! cargo xtask homeserver --port 8008
//! cargo run --example smallest -- http://127.0.0.1:8008 alice alice-password '#play:sticky.test'
//! ```
#![allow(clippy::print_stdout, reason = "a program's output is its own")]

use futures_util::StreamExt as _;
use matrix_sdk::{Client, ruma::RoomOrAliasId};
use matrix_sdk_sticky::{
    BaseClientBuilder, EntryChange, StickyRoomExt as _,
    app::{keep_syncing, wait_for_room},
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [homeserver, user, password, room] = &args[..] else {
        return Err("usage: smallest HOMESERVER USER PASSWORD ROOM".into());
    };
    let builder = Client::builder().homeserver_url(homeserver);
    let client = BaseClientBuilder::in_memory().build_client(builder).await?;
    client.matrix_auth().login_username(user, password).send().await?;
    tokio::select! {
        why = keep_syncing(&client) => Err(why.into()),
        end = show(&client, room) => end,
    }
}

async fn show(client: &Client, room: &str) -> Result {
    let room = wait_for_room(client, <&RoomOrAliasId>::try_from(room)?).await?.sticky();
    let mut changes = room.events().subscribe().changes;
    println!("waiting for sticky events in {}", room.room_id());
    while let Some(change) = changes.next().await {
        for change in change.entries {
            let sign = match &change {
                EntryChange::Added(_) => '+',
                EntryChange::Removed { .. } => '-',
                _ => '~',
            };
            let entry = change.entry();
            println!("{sign} {} {} {}", entry.sender(), entry.event_type(), entry.content_raw()?);
        }
    }
    Ok(())
}
