//! Rooms that are joined and left, and gaps in the main loop.

use std::time::Duration;

use matrix_sdk::{
    RoomState,
    config::SyncSettings,
    ruma::{
        api::client::filter::{FilterDefinition, RoomEventFilter, RoomFilter},
        uint,
    },
};
use matrix_sdk_sticky::{EntryChange, RemovalReason, StickyKey};
use serde_json::json;

use crate::support::{LONG, Person, TYPE, Watch, Watcher, eventually, in_room, keys, live, status};

/// There is more than a page of them.
#[tokio::test(flavor = "multi_thread")]
async fn joining_brings_earlier_events() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let home = bob.room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&home]).await;

    let room = bob.room();
    let mut wanted: Vec<_> = (0..105).map(|n| format!("{n:03}")).collect();
    for key in &wanted {
        bob.send(&room, key, "", LONG);
    }
    bob.send(&room, "removed", "", LONG);
    bob.remove(&room, "removed", LONG);
    let redacted = bob.send(&room, "redacted", "", LONG);
    bob.redact(&room, &redacted);
    watcher.assert_silent();

    alice.join(&room);
    watcher.until_keys(&as_strs(&wanted)).await;
    bob.send(&room, "after", "", LONG);
    wanted.push("after".to_owned());
    watcher.until_keys(&as_strs(&wanted)).await;
    watcher.assert_silent();
}

/// After that, the room's sticky events are shown.
#[tokio::test(flavor = "multi_thread")]
async fn an_invite_shows_nothing_until_accepted() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let home = bob.room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&home]).await;

    let room = bob.room_of(&json!({ "preset": "private_chat" }));
    bob.send(&room, "before", "", LONG);
    bob.api.invite(room.as_str(), alice.id().as_str()).unwrap();
    eventually("the invite is there", async || {
        match watcher.client.get_room(&room).map(|room| room.state()) {
            Some(RoomState::Invited) => Ok(()),
            state => Err(state),
        }
    })
    .await;
    bob.send(&room, "invited", "", LONG);
    bob.send(&home, "home", "", LONG);
    // The server tells of the room already; it is not ours yet.
    watcher.until_keys(&["home"]).await;
    watcher.assert_silent();

    // As an application does; the main loop hears of it afterwards.
    watcher.client.join_room_by_id(&room).await.unwrap();
    watcher.until_keys(&["before", "home", "invited"]).await;
    bob.send(&room, "joined", "", LONG);
    watcher.added("joined").await;
    watcher.assert_silent();
}

/// The server tells of the room at once, and the main loop has not heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_unheard_invite_shows_nothing() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let home = bob.room_with(&[&alice]);
    let client = alice.client().await;
    client.sync_once(SyncSettings::new()).await.unwrap();
    let sticky = live(&client, &[&home]).await;
    let mut watch = Watch::new(sticky.events());

    let room = bob.room_of(&json!({ "preset": "private_chat" }));
    bob.send(&room, "before", "", LONG);
    bob.api.invite(room.as_str(), alice.id().as_str()).unwrap();
    for n in 0..3 {
        bob.send(&room, "invited", "", LONG);
        let key = format!("home {n}");
        bob.send(&home, &key, "", LONG);
        // What came before it from the other room is not shown.
        watch.added(&key).await;
    }
    watch.assert_silent();

    alice.join(&room);
    bob.send(&room, "joined", "", LONG);
    client.sync_once(SyncSettings::new()).await.unwrap();
    watch.until_keys(&["before", "home 0", "home 1", "home 2", "invited", "joined"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_leave_and_return_with_their_room() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let [home, left, kicked, banned] = [(); 4].map(|()| bob.room_with(&[&alice]));
    let rooms = [&*home, &left, &kicked, &banned];
    let mut watcher = Watcher::of(&alice, &rooms).await;
    let names = ["home", "left", "kicked", "banned"];
    for (room, name) in rooms.into_iter().zip(names) {
        bob.send(room, name, "", LONG);
    }
    watcher.until_keys(&["banned", "home", "kicked", "left"]).await;

    alice.leave(&left);
    assert_eq!(watcher.removed("left").await, RemovalReason::RoomLeft);
    bob.api.kick(kicked.as_str(), alice.id().as_str()).unwrap();
    assert_eq!(watcher.removed("kicked").await, RemovalReason::RoomLeft);
    let ban = format!("rooms/{banned}/ban");
    bob.api.post(&ban, &json!({ "user_id": alice.id() })).unwrap();
    assert_eq!(watcher.removed("banned").await, RemovalReason::RoomLeft);

    // Nothing of them comes any more: what was sent later elsewhere is the next that is told.
    for room in [&left, &kicked, &banned] {
        bob.send(room, "meanwhile", "", LONG);
    }
    bob.send(&home, "home", "later", LONG);
    assert_eq!(status(&watcher.updated("home").await), "later");
    watcher.assert_silent();
    assert_eq!(keys(&watcher.sticky.events().snapshot()), ["home"]);

    alice.join(&left);
    watcher.until_keys(&["home", "left", "meanwhile"]).await;
    watcher.client.join_room_by_id(&kicked).await.unwrap();
    let changes = watcher.until_keys(&["home", "kicked", "left", "meanwhile", "meanwhile"]).await;
    assert!(changes.iter().all(|change| matches!(change, EntryChange::Added(_))));
    bob.send(&left, "after", "", LONG);
    watcher.added("after").await;
    watcher.assert_silent();
}

/// The SDK leaves the room.
#[tokio::test(flavor = "multi_thread")]
async fn a_left_or_forgotten_room_is_gone() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let rooms = [(); 2].map(|()| bob.room_with(&[&alice]));
    let mut watcher = Watcher::of(&alice, &[&rooms[0], &rooms[1]]).await;
    bob.send(&rooms[0], "left", "", LONG);
    watcher.added("left").await;
    bob.send(&rooms[1], "stays", "", LONG);
    watcher.added("stays").await;

    let room = watcher.client.get_room(&rooms[0]).unwrap();
    room.leave().await.unwrap();
    room.forget().await.unwrap();
    assert_eq!(watcher.removed("left").await, RemovalReason::RoomLeft);
    bob.send(&rooms[0], "meanwhile", "", LONG);
    bob.send(&rooms[1], "stays", "later", LONG);
    watcher.updated("stays").await;
    watcher.assert_silent();
}

/// The gap is one of the main loop's timeline.
///
/// The redaction itself never comes: it is in the gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_redaction_in_a_gap_counts() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let client = alice.client().await;
    let mut timeline = RoomEventFilter::default();
    timeline.limit = Some(uint!(2));
    let mut rooms = RoomFilter::default();
    rooms.timeline = timeline;
    let mut filter = FilterDefinition::default();
    filter.room = rooms;
    let settings = SyncSettings::new().filter(filter.into()).timeout(Duration::ZERO);
    client.sync_once(settings.clone()).await.unwrap();
    in_room(&client, &room).await;
    let sticky = live(&client, &[&room]).await;
    let mut watch = Watch::new(sticky.events());
    bob.send(&room, "k", "first", LONG);
    watch.added("k").await;
    let refresh = bob.send(&room, "k", "refresh", LONG);
    watch.updated("k").await;
    let single = bob.send(&room, "single", "", LONG);
    watch.added("single").await;
    client.sync_once(settings.clone()).await.unwrap();

    bob.redact(&room, &refresh);
    bob.redact(&room, &single);
    for n in 0..10 {
        bob.say(&room, &format!("so that they are long gone, {n}"));
    }
    let response = client.sync_once(settings).await.unwrap();
    let update = response.rooms.joined.get(&room).unwrap();
    assert!(update.timeline.limited, "there is a gap: {update:?}");
    let changes = watch.until_keys(&["k"]).await;
    assert_eq!(changes.len(), 2, "{changes:?}");
    let first = sticky.room(&room).unwrap().get(&StickyKey::new(bob.id(), TYPE, "k"));
    assert_eq!(status(&first.unwrap()), "first");
    watch.assert_silent();
}

fn as_strs(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}
