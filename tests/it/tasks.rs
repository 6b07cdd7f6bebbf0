//! What runs while many rooms are live.

use matrix_sdk_sticky::SyncState;
use serde_json::{Map, json};
use tokio::runtime::Handle;

use crate::support::{Homeserver, ROOM, World, body, client, event_lasting, within};

const ROOMS: usize = 10_000;
const ENTRIES: usize = 10;

#[tokio::test]
#[allow(clippy::print_stdout, reason = "what `cargo xtask bench` reads")]
async fn one_task_and_one_timer_serve_10_000_rooms() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let server = Homeserver::start().await;
    let client = client(&server).await;
    let before = tasks();
    let mut world = World::of(server, client);
    let started = tasks() - before;

    let names: Vec<_> = (1..=10)
        .flat_map(|page| (0..ROOMS / 10).map(move |room| format!("!room-{page}-{room}:hs")))
        .chain([ROOM.to_owned()])
        .collect();
    world.server.lists(&names.iter().map(String::as_str).collect::<Vec<_>>());
    world.server.ask().await.page("pos-0", "batch-0", ROOM, vec![event_lasting("a", 1)]).await;
    let mut poll = world.server.ask().await;
    world.until(&SyncState::Live).await;
    let (tasks_of_one, timers_of_one) = (tasks(), world.clock.sleepers());
    for page in 1..=10 {
        let rooms: Map<_, _> = (0..ROOMS / 10)
            .map(|room| (format!("!room-{page}-{room}:hs"), room))
            .map(|(room_id, room)| {
                // No two of all end at once.
                let first = 1_800_000 + (page * ROOMS / 10 + room) * ENTRIES;
                let events: Vec<_> = (first..first + ENTRIES)
                    .map(|ms| event_lasting(&ms.to_string(), ms as u64))
                    .collect();
                (room_id, json!({ "events": events }))
            })
            .collect();
        let (pos, batch) = (format!("pos-{page}"), format!("batch-{page}"));
        poll.answer(200, body(&pos, Some(&batch), rooms.into()).to_string()).await;
        poll = world.server.ask().await;
    }
    let mut changes = world.sticky.events().subscribe().changes;
    within("all entries", async {
        while world.sticky.events().snapshot().len() < ROOMS * ENTRIES {
            futures_util::StreamExt::next(&mut changes).await;
        }
    })
    .await;

    let tasks = started + tasks() - tasks_of_one;
    // The other one is of the request that is held.
    let timers = 1 + world.clock.sleepers() - timers_of_one;
    println!(r#"{{"tasks":{tasks},"timers":{timers}}}"#);
    assert_eq!((tasks, timers), (1, 1));
    drop(poll);
}
