//! Starting: once for a client, with settings, and again when the first is gone.

use std::sync::Arc;

use matrix_sdk_sticky::{StartError, Sticky, StickyClientExt as _, SyncState};
use serde_json::json;

use crate::support::{
    Homeserver, ManualClock, ROOM, World, client, event, log, until_state, within,
};

/// Another one can start when the first is gone.
#[tokio::test]
async fn a_client_is_started_once() {
    let server = Homeserver::start().await;
    let client = client(&server).await;
    let first = Sticky::builder(&client).start().unwrap();
    assert_eq!(Sticky::builder(&client).start().unwrap_err(), StartError::AlreadyRunning);
    assert_eq!(Sticky::builder(&client.clone()).start().unwrap_err(), StartError::AlreadyRunning);
    // What that returns is the one that runs.
    let same = client.sticky();
    drop(first);
    assert_eq!(Sticky::builder(&client).start().unwrap_err(), StartError::AlreadyRunning);
    let view = same.events();
    drop(same);
    assert_eq!(Sticky::builder(&client).start().unwrap_err(), StartError::AlreadyRunning);
    drop(view);

    let mut server = server;
    let again = Sticky::builder(&client).start().unwrap();
    let live = async {
        // The first may still have got its request out.
        loop {
            server.ask().await.page("pos", "batch", ROOM, vec![event("a")]).await;
        }
    };
    tokio::select! {
        () = live => {}
        _ = until_state(&again, "Live", |state| *state == SyncState::Live) => {}
    }
    assert_eq!(again.events().snapshot().len(), 1);
}

#[tokio::test]
async fn all_handles_of_a_client_share_one_connection() {
    let (mut world, _poll) = World::live(vec![event("a")]).await;
    for _ in 0..3 {
        assert_eq!(world.client.clone().sticky().events().snapshot().len(), 1);
    }
    world.settle().await;
    assert!(!world.server.is_asked());
    assert_eq!(world.server.count("/versions"), 1);
}

#[tokio::test]
async fn two_clients_of_one_process_are_apart() {
    let (one, _one_poll) = World::live(vec![event("a")]).await;
    let (other, _other_poll) = World::live(vec![event("b")]).await;
    assert_eq!(one.event_ids(), ["$a"]);
    assert_eq!(other.event_ids(), ["$b"]);
}

#[tokio::test]
async fn a_quota_takes_effect_and_warns_once() {
    let server = Homeserver::start().await;
    let client = client(&server).await;
    let clock = ManualClock::new();
    let sticky = Sticky::builder(&client)
        .with_clock(Arc::new(clock.clone()))
        .with_max_events_per_sender(2)
        .start()
        .unwrap();
    let mut world = World { server, clock, client, sticky };
    let room = world.is_in(ROOM).await;
    let mut other = event("other");
    other["sender"] = json!("@bob:hs");
    let mut page: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(event).collect();
    page.push(other);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, page).await;
    let poll = world.server.ask().await;
    world.until(&SyncState::Live).await;
    poll.page("pos-2", "batch-2", ROOM, vec![event("f")]).await;
    let _poll = world.server.ask().await;
    within("the last one to be dropped", async {
        while room.stats().dropped < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let ids = world.event_ids();
    assert_eq!(ids, ["$a", "$b", "$other"], "who was there first stays, and others are not hurt");
    let log = log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(ROOM), "{}", warnings[0]);
}
