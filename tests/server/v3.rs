//! v3 `/sync` as the source: a follower of the application's main loop.

use std::{collections::BTreeMap, time::Duration};

use matrix_sdk::{
    Client,
    config::SyncSettings,
    deserialized_responses::TimelineEventKind,
    ruma::{RoomId, events::room::message::RoomMessageEventContent},
};
use matrix_sdk_sticky::{EntryChange, RemovalReason, SyncSource, SyncState, Unsupported};
use matrix_sdk_ui::sync_service::SyncService;
use tempfile::TempDir;

use crate::support::{
    Encryptor, LONG, Person, Watch, Watcher, eventually, follow, in_room, keys, status, sync,
    until_state,
};

async fn follower(person: &Person, rooms: &[&RoomId]) -> Watcher {
    let client = person.client().await;
    let sticky = follow(&client);
    let watcher = Watcher::with(client, rooms).await;
    assert_eq!(sticky.source(), SyncSource::V3);
    watcher
}

/// The events are added, updated, removed and redacted.
#[tokio::test(flavor = "multi_thread")]
async fn v3_brings_another_users_events() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    bob.send(&room, "there before", "", LONG);
    let mut alice = follower(&alice, &[&room]).await;
    assert_eq!(alice.keys(), ["there before"]);

    bob.send(&room, "k", "first", LONG);
    alice.added("k").await;
    let refresh = bob.send(&room, "k", "refresh", LONG);
    alice.updated("k").await;
    bob.redact(&room, &refresh);
    assert_eq!(status(&alice.updated("k").await), "first");
    bob.remove(&room, "k", LONG);
    assert_eq!(alice.removed("k").await, RemovalReason::Removed);

    bob.send(&room, "short", "", Duration::from_secs(4));
    alice.added("short").await;
    assert_eq!(alice.removed("short").await, RemovalReason::Expired);
    alice.assert_silent();
}

/// There are many events, in three rooms.
#[tokio::test(flavor = "multi_thread")]
async fn over_v3_live_means_all_is_there() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let rooms = [(); 3].map(|()| bob.room_with(&[&alice]));
    let mut wanted = BTreeMap::new();
    // More than a page in one room, and ordinary messages between.
    for (room, count) in rooms.iter().zip([230, 90, 30]) {
        for n in 0..count {
            bob.send(room, &format!("{n:03}"), "", LONG);
        }
        bob.say(room, "between");
        wanted.insert(room.clone(), count);
    }
    let rooms: Vec<_> = rooms.iter().map(|room| &**room).collect();
    let watcher = follower(&alice, &rooms).await;
    let mut found = BTreeMap::new();
    for entry in watcher.sticky.events().snapshot().iter() {
        *found.entry(entry.room_id().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(found, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_v3_joining_brings_and_leaving_clears() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let home = bob.room_with(&[&alice]);
    let mut watcher = follower(&alice, &[&home]).await;
    let later = bob.room();
    bob.send(&later, "before the join", "", LONG);
    alice.join(&later);
    watcher.added("before the join").await;
    bob.send(&later, "after it", "", LONG);
    watcher.added("after it").await;
    alice.leave(&later);
    let left = watcher.until_keys(&[]).await;
    let by_leaving = |change: &EntryChange| {
        matches!(change, EntryChange::Removed { reason: RemovalReason::RoomLeft, .. })
    };
    assert!(left.iter().all(by_leaving), "{left:?}");
    watcher.assert_silent();
}

/// The client has a stored token.
#[tokio::test(flavor = "multi_thread")]
async fn over_v3_a_relaunch_shows_all() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let wanted: Vec<_> = (0..350).map(|n| format!("{n:03}")).collect();
    for key in &wanted {
        bob.send(&room, key, "", LONG);
    }
    let gone = bob.send(&room, "redacted", "", LONG);

    let store = TempDir::new().unwrap();
    let launch = async || {
        let builder = Client::builder().homeserver_url(bob.url());
        let client = builder.sqlite_store(store.path(), None).build().await.unwrap();
        client.restore_session(alice.session()).await.unwrap();
        client
    };
    let first = launch().await;
    first.sync_once(SyncSettings::new()).await.unwrap();
    drop(first);
    bob.redact(&room, &gone);

    let client = launch().await;
    let _sticky = follow(&client);
    let mut watcher = Watcher::with(client, &[&room]).await;
    assert_eq!(keys(&watcher.sticky.events().snapshot()), wanted);
    bob.send(&room, "after", "", LONG);
    watcher.added("after").await;
    watcher.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn v3_loses_the_main_loop_no_key() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.encrypted_room_with(&[&alice]);
    let mut watcher = follower(&alice, &[&room]).await;
    let sender = Encryptor::of(&bob, &room, &[&alice]).await;
    let room_of_bob = sender.client.get_room(&room).unwrap();
    let room_of_alice = watcher.client.get_room(&room).unwrap();

    let mut messages = Vec::new();
    let wanted: Vec<_> = (0..15).map(|n| format!("{n:02}")).collect();
    for key in &wanted {
        sender.discard_key(&room).await;
        sender.send(&room, key, "").await;
        sender.discard_key(&room).await;
        let message = RoomMessageEventContent::text_plain(key);
        messages.push(room_of_bob.send(message).await.unwrap().response.event_id);
    }
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    watcher.until_keys(&wanted).await;
    for event_id in &messages {
        eventually("the main loop can read every message", async || {
            let event = room_of_alice.event(event_id, None).await.map_err(|e| e.to_string())?;
            match event.kind {
                TimelineEventKind::Decrypted(_) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    watcher.assert_in_step();
}

/// The state says why.
#[tokio::test(flavor = "multi_thread")]
async fn v3_is_unsupported_beside_the_sync_service() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let client = alice.client().await;
    let sticky = follow(&client);
    let service = SyncService::builder(client.clone()).build().await.unwrap();
    service.start().await;
    in_room(&client, &room).await;
    let unsupported = SyncState::Unsupported(Unsupported::V3MainLoop);
    until_state(&sticky, "unsupported", |state| *state == unsupported).await;
    assert!(Unsupported::V3MainLoop.to_string().contains("SyncService"));
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_is_sliding_sync_if_supported() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let watcher = Watcher::of(&alice, &[&room]).await;
    assert_eq!(watcher.sticky.source(), SyncSource::Sliding);
}

/// The main loop was away before.
#[tokio::test(flavor = "multi_thread")]
async fn v3_goes_on_with_the_main_loop() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let client = alice.client().await;
    let sticky = follow(&client);
    let main_loop = sync(&client);
    in_room(&client, &room).await;
    until_state(&sticky, "live", |state| *state == SyncState::Live).await;
    let mut watch = Watch::new(sticky.events());
    bob.send(&room, "first", "", LONG);
    watch.added("first").await;

    drop(main_loop);
    for n in 0..3 {
        bob.send(&room, &format!("meanwhile {n}"), "", LONG);
    }
    let _main_loop = sync(&client);
    watch.until_keys(&["first", "meanwhile 0", "meanwhile 1", "meanwhile 2"]).await;
    watch.assert_silent();
}
