//! Heartbeats: members that are there for as long as their owner calls.

use std::{path::Path, process::Stdio, time::Duration};

use matrix_sdk::{SqliteStoreConfig, authentication::matrix::MatrixSession, ruma::RoomId};
use matrix_sdk_sticky::{
    BaseClientBuilder, EntryChange, RemovalReason,
    heartbeat::{
        Heartbeat, HeartbeatFailure, HeartbeatState, InBackground, Rejoin, StartHeartbeatError,
    },
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
    time::Instant,
};
use xtask::homeserver::Options;

use crate::{
    proxy::Proxy,
    support::{
        self, DEADLINE, Person, TYPE, Watcher, devices_are_there, eventually, example, presence,
        start, status,
    },
};

const DELAY: Duration = Duration::from_secs(4);

async fn until(heartbeat: &Heartbeat, wanted: HeartbeatState) {
    until_state(heartbeat, |state| state == wanted).await;
}

async fn until_state(heartbeat: &Heartbeat, is: impl Fn(HeartbeatState) -> bool) {
    let mut states = heartbeat.subscribe_state();
    let wait = async {
        while !is(states.get()) {
            states.next().await.expect("the state goes on");
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
    waited.unwrap_or_else(|_| panic!("{:?}: {:?}", heartbeat.state(), heartbeat.last_error()));
}

/// Two who watch a room: the one whose heartbeat it is, and one who looks on.
async fn two_in(person: &Person, other: &Person, encrypted: bool) -> (Watcher, Watcher) {
    let room = match encrypted {
        true => person.encrypted_room_with(&[other]),
        false => person.room_with(&[other]),
    };
    let own = Watcher::encrypting(person, &[&room]).await;
    let looking = Watcher::encrypting(other, &[&room]).await;
    if encrypted {
        devices_are_there(person, &[person, other]).await;
    }
    (own, looking)
}

fn room_of(watcher: &Watcher) -> matrix_sdk_sticky::RoomSticky {
    let joined = watcher.client.joined_rooms();
    watcher.room(joined[0].room_id())
}

async fn joins_updates_and_leaves(encrypted: bool) {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, encrypted).await;
    let room = room_of(&own);
    let heartbeat = room
        .heartbeat("k")
        .with_content(&presence("here"))
        .with_delay(DELAY)
        .start()
        .await
        .unwrap();
    let entry = looking.added("k").await;
    assert_eq!((status(&entry), entry.is_encrypted()), ("here".into(), encrypted));
    until(&heartbeat, HeartbeatState::Joined).await;
    let again = room.heartbeat("k").with_content(&presence("twice")).start().await;
    assert!(matches!(again, Err(StartHeartbeatError::InUse)));

    // Through several delays.
    tokio::time::sleep(DELAY * 3).await;
    looking.assert_silent();
    heartbeat.update(&presence("away")).unwrap();
    assert_eq!(status(&looking.updated("k").await), "away");

    assert_eq!(heartbeat.leave().await, HeartbeatState::Left);
    let left = Instant::now();
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    assert!(left.elapsed() < Duration::from_secs(4));
    assert!(own.sticky.delayed_events().list().await.unwrap().is_empty());
    tokio::time::sleep(DELAY * 2).await;
    looking.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_joins_stays_through_many_delays_updates_and_leaves() {
    joins_updates_and_leaves(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_encrypted_room_join_and_leave_are_encrypted() {
    joins_updates_and_leaves(true).await;
}

fn object(content: Value) -> Map<String, Value> {
    content.as_object().expect("an object").clone()
}

async fn leaves_with_words_of_its_own(encrypted: bool) {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, encrypted).await;
    let heartbeat = room_of(&own).heartbeat("k").with_content(&presence("here"));
    let heartbeat =
        heartbeat.with_leave_content(&presence("lost")).with_delay(DELAY).start().await.unwrap();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;

    let left = heartbeat.leave_with(object(json!({ "status": "bye" }))).await;
    assert_eq!(left, HeartbeatState::Left);
    let entry = looking.updated("k").await;
    assert_eq!((status(&entry), entry.is_encrypted()), ("bye".into(), encrypted));
    assert!(own.sticky.delayed_events().list().await.unwrap().is_empty());
    tokio::time::sleep(DELAY * 2).await;
    looking.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_with_words_of_ones_own_shows_them_and_cancels_what_is_armed() {
    leaves_with_words_of_its_own(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_encrypted_room_the_last_words_are_encrypted() {
    leaves_with_words_of_its_own(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_later_can_read_the_leave_that_fires() {
    let (alice, bob, carol) = (Person::new("alice"), Person::new("bob"), Person::new("carol"));
    let (own, mut looking) = two_in(&alice, &bob, true).await;
    let room = room_of(&own);
    let heartbeat = room
        .heartbeat("k")
        .with_content(&presence("here"))
        .with_delay(DELAY * 2)
        .start()
        .await
        .unwrap();
    looking.added("k").await;
    alice.api.invite(room.room_id().as_str(), carol.id().as_str()).unwrap();
    carol.join(room.room_id());
    let mut later = Watcher::encrypting(&carol, &[room.room_id()]).await;
    devices_are_there(&alice, &[&carol]).await;
    // It hands over to a leave and a join that she can read.
    later.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;
    drop(heartbeat);
    for watcher in [&mut looking, &mut later] {
        while watcher.keys() != Vec::<String>::new() {
            watcher.next("the leave").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_of_somebody_who_is_there_can_read_the_leave_that_fires() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, true).await;
    let room = room_of(&own);
    let heartbeat = room
        .heartbeat("k")
        .with_content(&presence("here"))
        .with_delay(DELAY * 2)
        .start()
        .await
        .unwrap();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;
    let bobs_other = bob.on_another_device();
    let mut other = Watcher::encrypting(&bobs_other, &[room.room_id()]).await;
    other.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;
    drop(heartbeat);
    other.until_keys(&[]).await;
    looking.until_keys(&[]).await;
}

/// The SDK's stream of devices says nothing of the machine that was made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_is_noticed_after_the_machine_is_remade() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let (client, base) = alice.remakeable_client().await;
    let own = Watcher::with(client, &[&room]).await;
    let mut looking = Watcher::encrypting(&bob, &[&room]).await;
    devices_are_there(&alice, &[&alice, &bob]).await;
    let heartbeat =
        own.room(&room).heartbeat("k").with_content(&presence("here")).with_delay(DELAY * 2);
    let heartbeat = heartbeat.start().await.unwrap();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;

    base.regenerate_olm(None).await.unwrap();
    let bobs_other = bob.on_another_device();
    let mut other = Watcher::encrypting(&bobs_other, &[&room]).await;
    assert!(other.added("k").await.is_encrypted());
    until(&heartbeat, HeartbeatState::Joined).await;
    drop(heartbeat);
    other.until_keys(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_encryption_is_switched_on_join_and_leave_become_encrypted() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, false).await;
    let room = room_of(&own);
    let heartbeat = room
        .heartbeat("k")
        .with_content(&presence("here"))
        .with_delay(DELAY * 2)
        .start()
        .await
        .unwrap();
    assert!(!looking.added("k").await.is_encrypted());
    devices_are_there(&alice, &[&alice, &bob]).await;
    let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    alice.api.set_state(room.room_id().as_str(), "m.room.encryption", "", &algorithm).unwrap();
    while !looking.updated("k").await.is_encrypted() {}
    until(&heartbeat, HeartbeatState::Joined).await;
    let armed = own.sticky.delayed_events().list().await.unwrap();
    let types: Vec<_> = armed.iter().map(|scheduled| scheduled.event_type.as_str()).collect();
    assert_eq!(types, ["m.room.encrypted"]);
    drop(heartbeat);
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_background_it_leaves_or_holds_and_is_back_when_the_application_is() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, false).await;
    let heartbeat = room_of(&own)
        .heartbeat("k")
        .with_content(&presence("here"))
        .with_delay(DELAY)
        .start()
        .await
        .unwrap();
    looking.added("k").await;
    heartbeat.suspend(InBackground::Leave);
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    until(&heartbeat, HeartbeatState::Suspended { holds_until: None }).await;
    heartbeat.resume();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;

    // Kept, it is there for as long as the leave holds.
    heartbeat.suspend(InBackground::Hold);
    let kept = |state| matches!(state, HeartbeatState::Suspended { holds_until: Some(_) });
    until_state(&heartbeat, kept).await;
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    heartbeat.resume();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegated_leave_that_is_fired_is_noticed() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, false).await;
    let room = room_of(&own);
    let heartbeat = room.heartbeat("k").with_content(&presence("here"));
    let heartbeat = heartbeat.with_delay(Duration::from_secs(600)).start().await.unwrap();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;
    let delay_id = heartbeat.delegate().expect("it holds a lease");
    // As an SFU would, which has no token of ours.
    own.sticky.delayed_events().restart(&delay_id).await.unwrap();
    own.sticky.delayed_events().send(&delay_id).await.unwrap();
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;
    assert_ne!(heartbeat.delegate().expect("another one"), delay_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_is_redacted_is_not_sent_again_and_who_is_kicked_is_told_so() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let own = Watcher::of(&alice, &[&room]).await;
    let mut looking = Watcher::of(&bob, &[&room]).await;
    let beat = async |key: &str| {
        let heartbeat = own.room(&room).heartbeat(key).with_content(&presence("here"));
        heartbeat.with_delay(DELAY).start().await.unwrap()
    };
    let redacted = beat("redacted").await;
    let entry = looking.added("redacted").await;
    until(&redacted, HeartbeatState::Joined).await;
    bob.redact(&room, entry.event_id().as_str());
    until(&redacted, HeartbeatState::Failed(HeartbeatFailure::Redacted)).await;
    looking.until_keys(&[]).await;

    // A later one of it is redacted, and the map shows the earlier one again: that is no less clear.
    let refreshed = beat("refreshed").await;
    looking.added("refreshed").await;
    until(&refreshed, HeartbeatState::Joined).await;
    refreshed.update(&presence("still here")).unwrap();
    let entry = looking.updated("refreshed").await;
    until(&refreshed, HeartbeatState::Joined).await;
    bob.redact(&room, entry.event_id().as_str());
    until(&refreshed, HeartbeatState::Failed(HeartbeatFailure::Redacted)).await;
    looking.until_keys(&[]).await;

    let kicked = beat("kicked").await;
    looking.added("kicked").await;
    until(&kicked, HeartbeatState::Joined).await;
    bob.api.kick(room.as_str(), alice.id().as_str()).unwrap();
    until(&kicked, HeartbeatState::Failed(HeartbeatFailure::NotInRoom)).await;
    assert!(kicked.last_error().is_some_and(|error| !error.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_logout_all_leave() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, false).await;
    let room = room_of(&own);
    let mut beating = Vec::new();
    for key in ["k", "l"] {
        let heartbeat = room.heartbeat(key).with_content(&presence("here")).start().await.unwrap();
        looking.added(key).await;
        beating.push(heartbeat);
    }
    own.sticky.leave_heartbeats().await;
    own.client.logout().await.unwrap();
    looking.until_keys(&[]).await;
    assert!(beating.iter().all(|heartbeat| heartbeat.state() == HeartbeatState::Left));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_everybody_sees_it_gone_within_the_delay() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, false).await;
    let heartbeat = room_of(&own)
        .heartbeat("k")
        .with_content(&presence("here"))
        .with_delay(DELAY)
        .start()
        .await
        .unwrap();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;
    // What a crash does: nothing is said, and no request goes out any more.
    drop(heartbeat);
    let crashed = Instant::now();
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    assert!(crashed.elapsed() < DELAY + Duration::from_secs(4), "{:?}", crashed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_start_retires_what_was_armed_and_joins_again() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room_id = alice.room_with(&[&bob]);
    let mut looking = Watcher::of(&bob, &[&room_id]).await;
    let store = TempDir::new().unwrap();
    let delay = Duration::from_secs(6);
    let launch = async || {
        let base = BaseClientBuilder::sqlite(store.path(), None);
        let client = alice.encrypting_client_of(base, alice.url()).await;
        Watcher::with(client, &[&room_id]).await
    };
    let first = launch().await;
    let mut beating = Vec::new();
    for key in ["k", "other"] {
        let heartbeat = first.room(&room_id).heartbeat(key).with_content(&presence("first"));
        let heartbeat = heartbeat.with_delay(delay).start().await.unwrap();
        looking.added(key).await;
        until(&heartbeat, HeartbeatState::Joined).await;
        beating.push(heartbeat);
    }
    drop(beating);
    drop(first);

    let second = launch().await;
    let heartbeat = second.room(&room_id).heartbeat("k").with_content(&presence("second"));
    let heartbeat = heartbeat.with_delay(delay).start().await.unwrap();
    // The other key's ghost leaves as soon as nothing of it can be under way, and this one's never does.
    let mut changes = looking.until_keys(&["k"]).await;
    until(&heartbeat, HeartbeatState::Joined).await;
    eventually("the second life is seen", async || {
        match looking.sticky.events().snapshot().iter().next() {
            Some(entry) if status(&entry) == "second" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let end = Instant::now() + delay * 2;
    while let Ok(change) = tokio::time::timeout_at(end, looking.next("a change")).await {
        changes.push(change);
    }
    assert_eq!(looking.keys(), ["k"]);
    let removed = changes.iter().filter(|change| matches!(change, EntryChange::Removed { .. }));
    let removed: Vec<_> = removed.filter_map(|change| change.entry().sticky_key()).collect();
    assert_eq!(removed, ["other"], "its old leave never ends the new join");
    assert_eq!(second.sticky.delayed_events().list().await.unwrap().len(), 1);
    heartbeat.leave().await;
    looking.until_keys(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_off_it_says_so_and_is_back_soon_after_the_network_is() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room_id = alice.room_with(&[&bob]);
    let mut looking = Watcher::of(&bob, &[&room_id]).await;
    let proxy = Proxy::before(alice.url()).await;
    let own = Watcher::with(alice.client_through(&proxy).await, &[&room_id]).await;
    let heartbeat = own
        .room(&room_id)
        .heartbeat("k")
        .with_content(&presence("here"))
        .with_delay(DELAY)
        .start()
        .await;
    let heartbeat = heartbeat.unwrap();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;

    proxy.cut();
    until_state(&heartbeat, |state| matches!(state, HeartbeatState::ProbablyLeft { .. })).await;
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    proxy.mend();
    let restored = Instant::now();
    until(&heartbeat, HeartbeatState::Joined).await;
    looking.added("k").await;
    assert!(restored.elapsed() < Duration::from_secs(30), "{:?}", restored.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_to_join_again_by_itself_ends_once_the_leave_is_known_to_have_fired() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room_id = alice.room_with(&[&bob]);
    let mut looking = Watcher::of(&bob, &[&room_id]).await;
    let proxy = Proxy::before(alice.url()).await;
    let own = Watcher::with(alice.client_through(&proxy).await, &[&room_id]).await;
    let start = own.room(&room_id).heartbeat("k").with_content(&presence("here")).with_delay(DELAY);
    let heartbeat = start.with_rejoin(Rejoin::Never).start().await.unwrap();
    looking.added("k").await;
    until(&heartbeat, HeartbeatState::Joined).await;

    proxy.cut();
    until_state(&heartbeat, |state| matches!(state, HeartbeatState::ProbablyLeft { .. })).await;
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    proxy.mend();
    until(&heartbeat, HeartbeatState::Failed(HeartbeatFailure::LeaveFired)).await;
    tokio::time::sleep(DELAY).await;
    looking.assert_silent();
    assert!(own.sticky.delayed_events().list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_to_join_again_by_itself_ends_when_somebody_removes_it_or_fires_its_leave() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (own, mut looking) = two_in(&alice, &bob, false).await;
    let room = room_of(&own);
    let beat = async |key: &str| {
        let start = room.heartbeat(key).with_content(&presence("here")).with_rejoin(Rejoin::Never);
        let heartbeat = start.with_delay(Duration::from_secs(60)).start().await.unwrap();
        until(&heartbeat, HeartbeatState::Joined).await;
        heartbeat
    };
    let removed = beat("removed").await;
    looking.added("removed").await;
    eventually("it has come back", async || match own.sticky.events().snapshot().is_empty() {
        false => Ok(()),
        true => Err("not yet"),
    })
    .await;
    room.remove(TYPE, "removed").await.unwrap();
    until(&removed, HeartbeatState::Failed(HeartbeatFailure::Removed)).await;
    assert_eq!(looking.removed("removed").await, RemovalReason::Removed);

    let fired = beat("fired").await;
    looking.added("fired").await;
    let delay_id = fired.delegate().expect("it holds a lease");
    own.sticky.delayed_events().send(&delay_id).await.unwrap();
    until(&fired, HeartbeatState::Failed(HeartbeatFailure::LeaveFired)).await;
    assert_eq!(looking.removed("fired").await, RemovalReason::Removed);

    assert!(own.sticky.delayed_events().list().await.unwrap().is_empty());
    tokio::time::sleep(DELAY).await;
    looking.assert_silent();
}

/// What the server looks like is a proxy's work; what is fired, and whether it is sticky, is Synapse's.
#[tokio::test(flavor = "multi_thread")]
async fn the_dedicated_endpoint_is_relied_on_once_it_is_proved() {
    for (keeps_sticky, encrypted) in [(true, false), (true, true), (false, false), (false, true)] {
        let (alice, bob) = (Person::new("alice"), Person::new("bob"));
        let room = match encrypted {
            true => alice.encrypted_room_with(&[&bob]),
            false => alice.room_with(&[&bob]),
        };
        let proxy = Proxy::before(alice.url()).await;
        proxy.have_only_the_dedicated_endpoint(keeps_sticky);
        let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
        let own = Watcher::with(client, &[&room]).await;
        let mut looking = Watcher::encrypting(&bob, &[&room]).await;
        devices_are_there(&alice, &[&alice, &bob]).await;
        // Long enough for encryption and proof on a machine that is busy.
        let heartbeat = own.room(&room).heartbeat("k").with_content(&presence("here"));
        let heartbeat = heartbeat.with_delay(DELAY * 3).start().await.unwrap();
        let entry = looking.added("k").await;
        assert_eq!(entry.is_encrypted(), encrypted);
        until(
            &heartbeat,
            if keeps_sticky { HeartbeatState::Joined } else { HeartbeatState::Degraded },
        )
        .await;
        if !keeps_sticky {
            assert_eq!(
                entry.sticky_duration(),
                Duration::from_secs(600),
                "no ghost is there for longer"
            );
            assert_eq!(heartbeat.leave().await, HeartbeatState::Left);
        }
        drop(heartbeat);
        assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_it_is_no_ghost_beyond_what_degraded_allows() {
    for keeps_sticky in [true, false] {
        let (alice, bob) = (Person::new("alice"), Person::new("bob"));
        let room = alice.room_with(&[&bob]);
        let mut looking = Watcher::of(&bob, &[&room]).await;
        let proxy = Proxy::before(alice.url()).await;
        proxy.have_only_the_dedicated_endpoint(keeps_sticky);
        let state = if keeps_sticky { "joined" } else { "degraded" };
        let example = Example::run(proxy.url(), &alice, &room, &["--delay", "9"], state).await;
        let entry = looking.added("k").await;
        example.kill().await;
        match keeps_sticky {
            true => assert_eq!(looking.removed("k").await, RemovalReason::Removed),
            false => assert_eq!(entry.sticky_duration(), Duration::from_secs(600)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_is_survived() {
    let mut server = start(&Options::default());
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let watcher = Watcher::of(&alice, &[&room]).await;
    let heartbeat = watcher.room(&room).heartbeat("k").with_content(&presence("here"));
    let heartbeat = heartbeat.with_delay(DELAY).start().await.unwrap();
    until(&heartbeat, HeartbeatState::Joined).await;
    server.stop().unwrap();
    until_state(&heartbeat, |state| matches!(state, HeartbeatState::ProbablyLeft { .. })).await;
    server.restart().unwrap();
    until(&heartbeat, HeartbeatState::Joined).await;
    tokio::time::sleep(DELAY * 2).await;
    assert_eq!(heartbeat.state(), HeartbeatState::Joined);
    assert_eq!(heartbeat.leave().await, HeartbeatState::Left);
    let left = heartbeat.leave().await;
    assert_eq!(left, HeartbeatState::Left, "once more is no harm");
}

/// The example of that name, in a process of its own.
struct Example {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Example {
    /// Started, and joined.
    async fn joined(person: &Person, room: &RoomId, more: &[&str]) -> Self {
        let more: Vec<_> = ["--delay", "4"].iter().chain(more).copied().collect();
        Self::run(person.url(), person, room, &more, "joined").await
    }

    /// Started by this way to the server, and in this state.
    async fn run(url: &str, person: &Person, room: &RoomId, more: &[&str], state: &str) -> Self {
        let mut process = example("heartbeat", url, person, room)
            .args(["--type", TYPE, "--key", "k"])
            .args(["--content", r#"{"status":"here"}"#, "--json"])
            .args(more)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut example = Self { process, lines };
        example.says("joining").await;
        example.says(state).await;
        example
    }

    async fn says(&mut self, state: &str) {
        let next = tokio::time::timeout(DEADLINE, self.lines.next_line());
        let line = next.await.expect("it says something").unwrap().unwrap_or_default();
        assert_eq!(line, json!({ "kind": "own", "state": state }).to_string());
    }

    async fn signal(&self, signal: &str) {
        support::signal(&self.process, signal).await;
    }

    /// Kills it as the system does, and returns once it is dead.
    async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_it_is_seen_to_be_gone_within_the_delay_and_the_next_start_finds_its_device() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let mut looking = Watcher::of(&bob, &[&room]).await;
    let folder = TempDir::new().unwrap();
    let store = ["--store", folder.path().to_str().unwrap()];
    let example = Example::joined(&alice, &room, &store).await;
    looking.added("k").await;
    example.signal("-KILL").await;
    let killed = Instant::now();
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    assert!(killed.elapsed() < DELAY + Duration::from_secs(4), "{:?}", killed.elapsed());

    let mut example = Example::joined(&alice, &room, &store).await;
    looking.added("k").await;
    tokio::time::sleep(DELAY * 2).await;
    looking.assert_silent();
    // Politely, this time.
    example.signal("-INT").await;
    let told = Instant::now();
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    assert!(told.elapsed() < Duration::from_secs(4), "{:?}", told.elapsed());
    example.says("left").await;
    assert!(example.process.wait().await.unwrap().success());
}

/// By the lock on the store's folder, and by what stands in the store where the folder is not known.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_has_one_process_until_that_is_killed() {
    let alice = Person::new("alice");
    let room = alice.room();
    let folder = TempDir::new().unwrap();
    let store = ["--store", folder.path().to_str().unwrap()];
    let first = Example::joined(&alice, &room, &store).await;
    let session = std::fs::read(folder.path().join("session.json")).unwrap();
    let session: MatrixSession = serde_json::from_slice(&session).unwrap();
    let config = SqliteStoreConfig::new(folder.path());
    let bases = [
        BaseClientBuilder::sqlite(folder.path(), None),
        BaseClientBuilder::sqlite_with_config(config, None::<&Path>),
    ];
    let mut watchers = Vec::new();
    for base in bases {
        let builder = matrix_sdk::Client::builder().homeserver_url(alice.url());
        let client = base.build_client(builder).await.unwrap();
        client.restore_session(session.clone()).await.unwrap();
        watchers.push(Watcher::with(client, &[&room]).await);
    }
    let beat = async |watcher: &Watcher| {
        watcher.room(&room).heartbeat("other").with_content(&presence("here")).start().await
    };
    for watcher in &watchers {
        let error = beat(watcher).await.unwrap_err();
        assert!(matches!(error, StartHeartbeatError::OtherProcess), "{error:?}");
    }
    first.kill().await;
    // At once.
    for watcher in &watchers {
        drop(beat(watcher).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_for_three_delays_and_continued_it_notices_and_joins_again() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let mut looking = Watcher::of(&bob, &[&room]).await;
    let mut example = Example::joined(&alice, &room, &[]).await;
    looking.added("k").await;
    example.signal("-STOP").await;
    assert_eq!(looking.removed("k").await, RemovalReason::Removed);
    tokio::time::sleep(DELAY * 2).await;
    example.signal("-CONT").await;
    looking.added("k").await;
    let until_joined = async {
        while let Ok(Some(line)) = example.lines.next_line().await {
            if line.contains(r#""joined""#) {
                return;
            }
        }
        panic!("it ended");
    };
    tokio::time::timeout(DEADLINE, until_joined).await.expect("it joins again");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_server_has_no_delayed_events_it_is_degraded_and_short() {
    let server = start(&Options { delayed_events: false, ..Options::default() });
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let watcher = Watcher::of(&alice, &[&room]).await;
    let heartbeat = watcher.room(&room).heartbeat("k").with_content(&presence("here"));
    let heartbeat = heartbeat.start().await.unwrap();
    until(&heartbeat, HeartbeatState::Degraded).await;
    eventually("it is there", async || match watcher.sticky.events().snapshot().iter().next() {
        Some(entry) => {
            assert_eq!(entry.sticky_duration(), Duration::from_secs(600));
            Ok(())
        }
        None => Err("nobody"),
    })
    .await;
    assert_eq!(heartbeat.leave().await, HeartbeatState::Left);
    eventually("it is gone", async || match watcher.keys().is_empty() {
        true => Ok(()),
        false => Err("still there"),
    })
    .await;
}

/// The devices of the other server get no room key while the link is cut, and are offered it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_during_a_cut_is_seen_within_a_minute() {
    let options = Options { federates: true, ..Options::default() };
    let [here, there] = [start(&options), start(&options)];
    let (alice, bob) = (Person::on(&here, "alice"), Person::on(&there, "bob"));
    let room = alice.encrypted_room_with(&[]);
    bob.api.join_via(room.as_str(), here.name()).unwrap();
    let own = Watcher::encrypting(&alice, &[&room]).await;
    let mut looking = Watcher::encrypting(&bob, &[&room]).await;
    devices_are_there(&alice, &[&bob]).await;
    let links = [&here, &there].map(|server| server.link().expect("it federates"));
    links.iter().for_each(|link| link.cut());
    let heartbeat = own.room(&room).heartbeat("k").with_content(&presence("here")).start().await;
    let heartbeat = heartbeat.unwrap();
    until(&heartbeat, HeartbeatState::Joined).await;
    looking.assert_silent();
    links.iter().for_each(|link| link.mend());
    let mended = Instant::now();
    let seen = async {
        while looking.keys() != ["k"] {
            let next = tokio::time::timeout(Duration::from_secs(1), looking.next("the member"));
            let _ = next.await;
        }
    };
    // As long as Synapse may take after a cut, and the pauses between two offers.
    let seen = tokio::time::timeout(Duration::from_secs(60), seen).await;
    assert!(seen.is_ok(), "not after {:?}: {:?}", mended.elapsed(), looking.watch);
    assert_eq!(heartbeat.leave().await, HeartbeatState::Left);
    looking.until_keys(&[]).await;
}
