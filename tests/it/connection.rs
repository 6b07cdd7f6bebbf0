//! The connection of our own: what it asks for, how it pages, what it carries.

use matrix_sdk_sticky::SyncState;
use serde_json::json;

use crate::support::{ALICE, OTHER_ROOM, ROOM, START_MS, TOKEN, World, body, event, events};

/// It names no room, and so asks for all of them.
#[tokio::test]
async fn the_request_asks_for_sticky_events_only() {
    let mut world = World::start().await;
    let ask = world.server.ask().await;

    assert_eq!(ask.authorization.as_deref(), Some(&*format!("Bearer {TOKEN}")));
    assert_eq!(ask.param("set_presence"), Some("offline"));
    assert_eq!(ask.param("timeout"), Some("0"), "not held before it has caught up");
    let name = ask.body["conn_id"].as_str().unwrap();
    assert!(!name.is_empty() && name.len() <= 16, "{name}");
    assert_eq!(
        ask.body,
        json!({
            "conn_id": name,
            "lists": {
                "all": {
                    "ranges": [],
                    "timeline_limit": 0,
                    "required_state": [["m.room.create", ""]],
                },
            },
            "extensions": {
                "org.matrix.msc4354.sticky_events": { "enabled": true, "limit": 100 },
            },
        })
    );

    ask.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
    assert_eq!(world.server.ask().await.param("timeout"), Some("30000"), "held from then on");
}

/// An absent `next_batch` keeps the old `since`.
#[tokio::test]
async fn pos_and_since_are_carried() {
    let mut world = World::start().await;
    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (None, None));
    let name = ask.body["conn_id"].clone();
    ask.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;

    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (Some("pos-1"), Some("batch-1")));
    assert_eq!(ask.body["conn_id"], name);
    ask.nothing("pos-2").await;

    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (Some("pos-2"), Some("batch-1")));
    ask.page("pos-3", "batch-3", ROOM, vec![event("b")]).await;

    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (Some("pos-3"), Some("batch-3")));
}

#[tokio::test]
async fn two_clients_have_connections_of_different_names() {
    let mut one = World::start().await;
    let mut other = World::start().await;
    let one = one.server.ask().await;
    let other = other.server.ask().await;
    assert_ne!(one.body["conn_id"], other.body["conn_id"]);
}

/// The state is live at the first page that is not full.
#[tokio::test]
async fn it_is_catching_up_while_pages_are_full() {
    let mut world = World::start().await;
    assert_eq!(world.sticky.state(), SyncState::Connecting);
    let ask = world.server.ask().await;
    assert_eq!(world.sticky.state(), SyncState::Connecting);
    ask.page("pos-1", "batch-1", ROOM, events("a", 100)).await;

    let ask = world.server.ask().await;
    world.until(&SyncState::CatchingUp).await;
    assert_eq!(world.event_ids().len(), 100, "the first page is visible");
    // Full is a page that is full over all its rooms.
    let rooms = json!({
        ROOM: { "events": events("b", 60) },
        OTHER_ROOM: { "events": events("b", 40) },
    });
    ask.answer(200, body("pos-2", Some("batch-2"), rooms).to_string()).await;

    let ask = world.server.ask().await;
    world.settle().await;
    assert_eq!(world.sticky.state(), SyncState::CatchingUp);
    assert_eq!(world.event_ids().len(), 200);
    ask.page("pos-3", "batch-3", ROOM, events("c", 99)).await;

    world.until(&SyncState::Live).await;
    assert_eq!(world.event_ids().len(), 299);
}

#[tokio::test]
async fn once_live_a_full_page_changes_nothing() {
    let (mut world, poll) = World::live(vec![]).await;
    poll.page("pos-2", "batch-2", ROOM, events("a", 100)).await;
    let _poll = world.server.ask().await;
    world.settle().await;
    assert_eq!(world.event_ids().len(), 100);
    assert_eq!(world.sticky.state(), SyncState::Live);
}

#[tokio::test]
async fn stable_names_are_read_as_well() {
    let mut world = World::start().await;
    let event = json!({
        "event_id": "$stable",
        "sender": ALICE,
        "type": "com.example.t",
        "origin_server_ts": START_MS,
        "sticky": { "duration_ms": 60_000 },
        "content": { "sticky_key": "k", "body": "hello" },
        "unsigned": { "sticky_duration_remaining_ms": 10_000 },
    });
    let answer = json!({
        "pos": "pos-1",
        "lists": {},
        "rooms": {},
        "extensions": {
            "sticky_events": { "next_batch": "batch-1", "rooms": { ROOM: { "events": [event] } } },
        },
    });
    world.server.ask().await.answer(200, answer.to_string()).await;

    let ask = world.server.ask().await;
    assert_eq!(ask.since(), Some("batch-1"));
    world.until(&SyncState::Live).await;
    let snapshot = world.sticky.events().snapshot();
    let entry = snapshot.iter().next().unwrap();
    assert_eq!(entry.event_id(), "$stable");
    assert_eq!(entry.sticky_key(), Some("k"));
    assert_eq!(entry.expires_in(snapshot.taken_at()), crate::support::secs(10));
}

/// Subscribers are notified as soon as the long poll is answered.
#[tokio::test]
async fn an_event_is_visible_with_the_answer() {
    let (mut world, poll) = World::live(vec![event("a")]).await;
    let mut changes = world.sticky.events().subscribe().changes;
    poll.page("pos-2", "batch-2", ROOM, vec![event("b")]).await;

    let change = crate::support::next_change(&mut changes).await;
    assert_eq!(change.entries.len(), 1);
    assert_eq!(change.entries[0].entry().event_id(), "$b");
    assert_eq!(world.event_ids(), ["$a", "$b"]);
    let _poll = world.server.ask().await;
}
