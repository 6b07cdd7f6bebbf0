//! What the application's main loop brings: joins, leaves, redactions, gaps, ignored users.

use matrix_sdk_sticky::{EntryChange, RemovalReason, SyncState};
use serde_json::{Value, json};
#[cfg(feature = "e2e-encryption")]
use {
    crate::support::{Homeserver, client_builder, log_in},
    matrix_sdk::{cross_process_lock::CrossProcessLockConfig, ruma::RoomId, store::StoreConfig},
    matrix_sdk_sticky::matrix_sdk_base::{
        BaseClient, DmRoomDefinition, RoomInfo, RoomInfoNotableUpdateReasons, ThreadingSupport,
    },
};

use crate::support::{
    ALICE, Ask, OTHER_ROOM, ROOM, World, event, events, membership, millis, next_change, secs,
};

/// The rooms that a request asks for by name.
fn subscriptions(ask: &Ask) -> Vec<&str> {
    let subscriptions = ask.body["room_subscriptions"].as_object();
    subscriptions.map(|rooms| rooms.keys().map(String::as_str).collect()).unwrap_or_default()
}

fn joined(room: &str, age_ms: u64) -> Value {
    json!({ "join": { room: { "timeline": { "events": [membership("join", age_ms)] } } } })
}

fn left(room: &str) -> Value {
    json!({ "leave": { room: { "timeline": { "events": [membership("leave", 10)] } } } })
}

/// A timeline in which something is missing.
fn gap(room: &str) -> Value {
    let timeline = json!({ "limited": true, "prev_batch": "t", "events": [] });
    json!({ "join": { room: { "timeline": timeline } } })
}

fn ignoring(users: &[&str]) -> Value {
    let users: Value = users.iter().map(|user| ((*user).to_owned(), json!({}))).collect();
    let list = json!({ "type": "m.ignored_user_list", "content": { "ignored_users": users } });
    json!({ "account_data": { "events": [list] } })
}

fn reason(change: &EntryChange) -> Option<RemovalReason> {
    match change {
        EntryChange::Removed { reason, .. } => Some(*reason),
        _ => None,
    }
}

/// The fetch has a connection just for that.
#[tokio::test]
async fn a_joined_room_is_asked_for_at_once() {
    let (mut world, poll) = World::live(vec![event("a")]).await;
    world.main_loop(joined(OTHER_ROOM, 10)).await;

    let ask = world.server.ask().await;
    assert_eq!(subscriptions(&ask), [OTHER_ROOM]);
    assert_eq!((ask.pos(), ask.since(), ask.param("timeout")), (None, None, Some("0")));
    assert_eq!(ask.body.get("lists"), None);
    assert_ne!(ask.body["conn_id"], poll.body["conn_id"]);
    ask.page("own-1", "own-batch", OTHER_ROOM, vec![event("before")]).await;
    world.until_event_ids(&["$before", "$a"]).await;

    // The long poll goes on where it stood.
    poll.page("pos-2", "batch-2", ROOM, vec![event("b")]).await;
    let poll = world.server.ask().await;
    assert_eq!((poll.pos(), poll.since()), (Some("pos-2"), Some("batch-2")));
    world.until_event_ids(&["$before", "$a", "$b"]).await;
}

/// We were in it before we asked for anything.
#[tokio::test]
async fn an_old_room_is_not_asked_for_again() {
    let (mut world, _poll) = World::live(vec![event("a")]).await;
    world.main_loop(joined(ROOM, 86_400_000)).await;
    world.settle().await;
    world.clock.advance(secs(10));
    world.settle().await;
    assert!(!world.server.is_asked());
    assert_eq!(world.event_ids(), ["$a"]);
}

/// What was sticky there has come with the fresh start.
#[tokio::test]
async fn a_fresh_start_covers_rooms_from_before_it() {
    let (mut world, poll) = World::live(vec![]).await;
    world.clock.advance(secs(1_000));
    poll.refuse(400, "M_UNKNOWN_POS").await;
    world.server.ask().await.page("pos-2", "batch-2", ROOM, vec![event("a")]).await;
    world.until_event_ids(&["$a"]).await;
    let _poll = world.server.ask().await;
    world.main_loop(joined(OTHER_ROOM, 500_000)).await;
    world.settle().await;
    world.clock.advance(secs(10));
    world.settle().await;
    assert!(!world.server.is_asked());
}

/// The fetch goes on until all is there.
#[tokio::test]
async fn a_joined_room_is_fetched_page_by_page() {
    let (mut world, _poll) = World::live(vec![]).await;
    world.main_loop(joined(ROOM, 10)).await;
    let page = events("a", 100);
    world.server.ask().await.page("own-1", "own-batch-1", ROOM, page).await;
    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (Some("own-1"), Some("own-batch-1")));
    assert_eq!(subscriptions(&ask), [ROOM]);
    ask.page("own-2", "own-batch-2", ROOM, vec![event("b")]).await;
    world.settle().await;
    assert_eq!(world.event_ids().len(), 101);
    assert!(!world.server.is_asked());
}

/// Its entries leave for that reason, and stay away.
#[tokio::test]
async fn a_room_that_is_left_is_cleared() {
    let (mut world, poll) = World::live(vec![event("a")]).await;
    world.is_in(ROOM).await;
    let mut changes = world.sticky.events().subscribe().changes;
    world.main_loop(left(ROOM)).await;
    let change = next_change(&mut changes).await;
    assert_eq!(reason(&change.entries[0]), Some(RemovalReason::RoomLeft));
    assert!(world.event_ids().is_empty());

    // An answer that was on its way.
    poll.page("pos-2", "batch-2", ROOM, vec![event("late")]).await;
    let _poll = world.server.ask().await;
    world.settle().await;
    assert!(world.event_ids().is_empty());
}

#[cfg(feature = "e2e-encryption")]
#[tokio::test]
async fn a_room_left_during_decryption_stays_empty() {
    let server = Homeserver::start().await;
    let store = StoreConfig::new(CrossProcessLockConfig::SingleProcess);
    let base = BaseClient::new(store, ThreadingSupport::Disabled, DmRoomDefinition::default());
    let client = client_builder(&server).base_client(base.clone()).build().await.unwrap();
    log_in(&client, None).await;
    let mut world = World::of(server, client);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
    world.is_in(ROOM).await;
    world.until_event_ids(&["$a"]).await;

    // A reader of the machine queues behind the writer that wants to replace it, and so behind us.
    let reading = base.olm_machine().await;
    let replacing = tokio::spawn({
        let base = base.clone();
        async move { base.regenerate_olm(None).await }
    });
    let mut encrypted = event("encrypted");
    encrypted["type"] = json!("m.room.encrypted");
    encrypted["content"] = json!({
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": "AwgAEnACgAkLmt6qF84IK++J7UDH2Za1YVchHyprqTqsg2yyOwAtHaZHwhj",
        "session_id": "of nobody",
    });
    let page = vec![event("late"), encrypted];
    world.server.ask().await.page("pos-2", "batch-2", ROOM, page).await;
    world.settle().await;
    assert_eq!(world.event_ids(), ["$a"], "it decrypts");
    let room = world.client.get_room(<&RoomId>::try_from(ROOM).unwrap()).unwrap();
    let leave = |mut info: RoomInfo| {
        info.mark_as_left();
        (info, RoomInfoNotableUpdateReasons::MEMBERSHIP)
    };
    room.update_and_save_room_info(leave).await.unwrap();
    drop(reading);
    replacing.await.unwrap().unwrap();
    // It has delivered when it asks again.
    let _poll = world.server.ask().await;
    assert!(!world.event_ids().contains(&"$late".to_owned()), "{:?}", world.event_ids());
}

#[tokio::test]
async fn a_redaction_in_a_timeline_removes_the_entry() {
    let (world, _poll) = World::live(vec![event("a"), event("b")]).await;
    world.is_in(ROOM).await;
    let mut changes = world.sticky.events().subscribe().changes;
    let redaction = json!({
        "event_id": "$redaction",
        "sender": ALICE,
        "type": "m.room.redaction",
        "origin_server_ts": 1_700_000_000_001_u64,
        "redacts": "$a",
        "content": {},
    });
    let timeline = json!({ "events": [redaction] });
    world.main_loop(json!({ "join": { ROOM: { "timeline": timeline } } })).await;
    let change = next_change(&mut changes).await;
    assert_eq!(change.entries.len(), 1);
    assert_eq!(reason(&change.entries[0]), Some(RemovalReason::Redacted));
    assert_eq!(world.event_ids(), ["$b"]);
}

/// All is asked for when the sender is not ignored any more.
#[tokio::test]
async fn an_ignored_senders_entries_hide_at_once() {
    let (mut world, _poll) = World::live(vec![event("a")]).await;
    let mut changes = world.sticky.events().subscribe().changes;
    world.main_loop_with(ignoring(&[ALICE])).await;
    let change = next_change(&mut changes).await;
    assert_eq!(reason(&change.entries[0]), Some(RemovalReason::Ignored));
    assert!(world.event_ids().is_empty());

    world.main_loop_with(ignoring(&[])).await;
    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (None, None));
    world.until_event_ids(&["$a"]).await;
    ask.page("pos-9", "batch-9", ROOM, vec![event("a"), event("meanwhile")]).await;
    world.until_event_ids(&["$a", "$meanwhile"]).await;
}

/// The server tells of rooms that we are only invited to as well.
#[tokio::test]
async fn a_room_is_hidden_until_it_is_listed() {
    let mut world = World::start().await;
    world.server.lists(&[ROOM]);
    let rooms = json!({ ROOM: { "events": [event("a")] }, OTHER_ROOM: { "events": [event("b")] } });
    let page = crate::support::body("pos-1", Some("batch-1"), rooms);
    world.server.ask().await.answer(200, page.to_string()).await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.event_ids(), ["$a"], "what is ours is there when it is live");
    let mut changes = world.sticky.events().subscribe().changes;
    let _poll = world.server.ask().await;

    world.server.lists(&[ROOM, OTHER_ROOM]);
    world.clock.advance(secs(50));
    world.settle().await;
    assert_eq!(world.server.count("/joined_rooms"), 1, "it is asked for again later");
    world.clock.advance(secs(600));
    let change = next_change(&mut changes).await;
    assert!(matches!(&*change.entries, [EntryChange::Added(_)]), "{change:?}");
    assert_eq!(world.event_ids(), ["$b", "$a"]);
    world.clock.advance(secs(1_200));
    world.settle().await;
    assert_eq!(world.server.count("/joined_rooms"), 2);
}

#[tokio::test]
async fn the_main_loop_shows_a_hidden_room() {
    let mut world = World::start().await;
    world.server.lists(&[]);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
    world.until(&SyncState::Live).await;
    let _poll = world.server.ask().await;
    assert!(world.event_ids().is_empty());
    world.is_in(ROOM).await;
    world.until_event_ids(&["$a"]).await;
    assert_eq!(world.server.count("/joined_rooms"), 1);
}

#[tokio::test]
async fn a_list_that_fails_holds_nothing_up() {
    let mut world = World::start().await;
    world.server.answers_to("/joined_rooms", 500, json!({ "errcode": "M_UNKNOWN" }));
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
    world.until(&SyncState::Live).await;
    assert!(world.event_ids().is_empty());
    world.server.lists(&[ROOM]);
    world.clock.advance(secs(120));
    world.until_event_ids(&["$a"]).await;
}

#[tokio::test]
async fn gaps_are_gathered_before_a_fetch() {
    let (mut world, _poll) = World::live(vec![event("a")]).await;
    world.is_in(ROOM).await;
    // Nothing is known there, so there is nothing to lose.
    world.is_in(OTHER_ROOM).await;
    for room in [ROOM, OTHER_ROOM, ROOM, ROOM] {
        world.main_loop(gap(room)).await;
    }
    world.settle().await;
    assert!(!world.server.is_asked());
    let wait = world.sleep_over().await;
    assert!((millis(900)..=secs(3)).contains(&wait), "{wait:?}");
    let ask = world.server.ask().await;
    assert_eq!(subscriptions(&ask), [ROOM]);
    let mut redacted = event("a");
    redacted["content"] = json!({});
    redacted.as_object_mut().unwrap().remove("msc4354_sticky");
    redacted["unsigned"] = json!({ "redacted_because": { "type": "m.room.redaction" } });
    ask.page("own-1", "own-batch", ROOM, vec![redacted]).await;
    world.until_event_ids(&[]).await;
    world.settle().await;
    assert!(!world.server.is_asked(), "once for all of them");
}

/// The requests make no hot loop.
#[tokio::test]
async fn a_joined_room_is_fetched_until_it_comes() {
    let (mut world, _poll) = World::live(vec![]).await;
    world.main_loop(joined(ROOM, 10)).await;
    let polls = world
        .polls_within(secs(600), async |ask| {
            assert_eq!(subscriptions(&ask), [ROOM]);
            ask.refuse(500, "M_UNKNOWN").await;
        })
        .await;
    assert!((10..=60).contains(&polls), "{polls}");
    assert_eq!(world.sticky.state(), SyncState::Live, "the long poll is well");

    let ask = world.ask_sometime().await;
    ask.page("own-1", "own-batch", ROOM, vec![event("before")]).await;
    world.until_event_ids(&["$before"]).await;
}

/// The fetch comes after the outage, and not before.
#[tokio::test]
async fn a_room_joined_during_outage_is_fetched_later() {
    let (mut world, poll) = World::live(vec![]).await;
    poll.refuse(500, "M_UNKNOWN").await;
    world.until_offline().await;
    world.main_loop(joined(ROOM, 10)).await;
    world.settle().await;
    assert!(!world.server.is_asked());

    let mut asks = [world.ask_sometime().await, world.ask_sometime().await];
    asks.sort_by_key(|ask| subscriptions(ask).len());
    let [poll, fetch] = asks;
    assert_eq!(poll.pos(), Some("pos-1"));
    assert_eq!(subscriptions(&fetch), [ROOM]);
    fetch.page("own-1", "own-batch", ROOM, vec![event("before")]).await;
    world.until_event_ids(&["$before"]).await;
    poll.nothing("pos-2").await;
    world.until(&SyncState::Live).await;
}

#[tokio::test]
async fn a_room_joined_while_logged_out_waits() {
    let (mut world, poll) = World::live(vec![]).await;
    poll.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.until(&SyncState::LoggedOut).await;
    world.main_loop(joined(ROOM, 10)).await;
    for _ in 0..10 {
        world.clock.advance(secs(60));
        world.settle().await;
    }
    assert!(!world.server.is_asked());
}
