//! Heartbeats of somebody whom the server limits, mutes or removes, and of somebody who could not
//! reach a device at first.

use std::{env, time::Duration};

use futures_util::future::join_all;
use matrix_sdk::ruma::{OwnedRoomId, RoomId};
use matrix_sdk_sticky::{
    BaseClientBuilder, EntryChange,
    heartbeat::{Heartbeat, HeartbeatFailure, HeartbeatState},
};
use serde_json::json;
use tokio::time::{Instant, sleep};
use xtask::homeserver::Options;

use crate::{
    proxy::{Claim, Proxy},
    support::{Person, Watcher, devices_are_there, eventually, presence, start},
};

/// How long they are watched once all have joined. Ten minutes by hand: `STICKY_CROWD_SECONDS=600`.
fn watched_for() -> Duration {
    let seconds = env::var("STICKY_CROWD_SECONDS").ok().and_then(|it| it.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

async fn beat(watcher: &Watcher, room: &RoomId, key: usize) -> Heartbeat {
    let door = watcher.room(room);
    door.heartbeat(key.to_string()).with_content(&presence("here")).start().await.unwrap()
}

/// Eight heartbeats live on a server that nobody configured: they join within a minute and a half,
/// nobody is seen to leave, and after a crash of all nobody is left.
async fn eight_live(clients: usize) {
    let server = start(&Options { rate_limits: true, ..Options::default() });
    let (alice, bob) = (Person::on(&server, "alice"), Person::on(&server, "bob"));
    let room = alice.room_with(&[&bob]);
    let mut looking = Watcher::of(&bob, &[&room]).await;
    let mut own = vec![Watcher::of(&alice, &[&room]).await];
    for _ in 1..clients {
        own.push(Watcher::of(&alice.on_another_device(), &[&room]).await);
    }
    let beating = join_all((0..8).map(|key| beat(&own[key % clients], &room, key))).await;
    let joined = Instant::now();
    while !beating.iter().all(|heartbeat| heartbeat.state() == HeartbeatState::Joined) {
        let states: Vec<_> = beating.iter().map(Heartbeat::state).collect();
        assert!(joined.elapsed() < Duration::from_secs(90), "{states:?}");
        sleep(Duration::from_millis(200)).await;
    }
    let all = ["0", "1", "2", "3", "4", "5", "6", "7"];
    looking.until_keys(&all).await;
    looking.assert_silent();

    let watched = Instant::now();
    while watched.elapsed() < watched_for() {
        sleep(Duration::from_millis(200)).await;
        let states: Vec<_> = beating.iter().map(Heartbeat::state).collect();
        let changes = looking.taken();
        let is_gone = |change: &EntryChange| matches!(change, EntryChange::Removed { .. });
        assert!(!changes.iter().any(is_gone), "{states:?}");
        assert_eq!(looking.keys(), all, "{states:?}");
    }

    drop(beating);
    let crashed = Instant::now();
    looking.until_keys(&[]).await;
    assert!(crashed.elapsed() < Duration::from_secs(30), "{:?}", crashed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_heartbeats_of_a_client_live_on_default_limits() {
    eight_live(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_clients_of_a_user_live_on_default_limits() {
    eight_live(8).await;
}

async fn at_last(heartbeat: &Heartbeat) -> HeartbeatState {
    let end = || async move {
        let state = heartbeat.state();
        matches!(state, HeartbeatState::Failed(_)).then_some(state).ok_or(state)
    };
    eventually("the heartbeat to end", end).await
}

/// Everybody goes on seeing them, and the state says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_muted_member_has_not_left() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let own = Watcher::of(&bob, &[&room]).await;
    let mut looking = Watcher::of(&alice, &[&room]).await;
    let heartbeat = beat(&own, &room, 1).await;
    looking.added("1").await;
    // The room's creator may do all.
    let levels = json!({ "events_default": 50 });
    alice.api.set_state(room.as_str(), "m.room.power_levels", "", &levels).unwrap();
    assert_eq!(heartbeat.leave().await, HeartbeatState::Failed(HeartbeatFailure::LeaveRefused));
    looking.assert_silent();
    let why = heartbeat.last_error().unwrap();
    assert!(why.contains("refuses") && why.contains("403"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_who_is_kicked_or_banned_is_told_so() {
    for action in ["kick", "ban"] {
        let (alice, bob) = (Person::new("alice"), Person::new("bob"));
        let room = alice.room_with(&[&bob]);
        let own = Watcher::of(&bob, &[&room]).await;
        let mut looking = Watcher::of(&alice, &[&room]).await;
        let heartbeat = beat(&own, &room, 1).await;
        looking.added("1").await;
        let path = format!("rooms/{room}/{action}");
        alice.api.post(&path, &json!({ "user_id": bob.id() })).unwrap();
        assert_eq!(
            at_last(&heartbeat).await,
            HeartbeatState::Failed(HeartbeatFailure::NotInRoom),
            "{action}"
        );
        let why = heartbeat.last_error().unwrap();
        assert!(why.contains("not in the room any more"), "{action}: {why}");
    }
}

/// Two in an encrypted room, one of them behind a proxy that answers its first claim of one-time keys.
async fn with_first_claim(claim: Claim) -> (OwnedRoomId, Proxy, Watcher, Watcher) {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let proxy = Proxy::before(alice.url()).await;
    let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
    let own = Watcher::with(client, &[&room]).await;
    let looking = Watcher::encrypting(&bob, &[&room]).await;
    devices_are_there(&alice, &[&alice, &bob]).await;
    proxy.answer_claims([claim]);
    (room, proxy, own, looking)
}

/// One claim of one-time keys fails, as with a server that is restarted. An ordinary chat heals with
/// the next message, and a heartbeat has none for minutes.
async fn is_offered_the_key_again(claim: Claim) {
    let (room, _proxy, own, mut looking) = with_first_claim(claim).await;
    let heartbeat = beat(&own, &room, 1).await;
    assert!(looking.added("1").await.is_encrypted());
    // It can read the leave as well.
    drop(heartbeat);
    looking.removed("1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_offered_the_key_again_after_a_failed_claim() {
    is_offered_the_key_again(Claim::Fails("sticky.test".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_offered_the_key_again_after_an_empty_claim() {
    is_offered_the_key_again(Claim::Empty).await;
}

/// A homeserver in the room is slow, or the room is large.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_longer_than_the_delay_costs_no_second_one() {
    let late = Claim::Late(Duration::from_secs(6));
    let (room, proxy, own, mut looking) = with_first_claim(late).await;
    let door = own.room(&room);
    let start =
        door.heartbeat("1").with_content(&presence("here")).with_delay(Duration::from_secs(3));
    let heartbeat = start.start().await.unwrap();
    assert!(looking.added("1").await.is_encrypted());
    assert_eq!(proxy.claims(), 1);
    assert_eq!(heartbeat.leave().await, HeartbeatState::Left);
    looking.removed("1").await;
}
