//! Events as they come, change and end.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use matrix_sdk_sticky::{
    RemovalReason, StickyClientExt as _, StickyKey, StickyRoomExt as _, SyncState,
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    proxy::Proxy,
    support::{
        LONG, Person, TYPE, Watch, Watcher, build_client, eventually, keys, server, status, sync,
        until_state,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn another_users_events_come_change_and_go() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let mut alice = Watcher::of(&alice, &[&room]).await;

    let first = bob.send(&room, "k", "here", LONG);
    let entry = alice.added("k").await;
    assert_eq!(entry.room_id(), &*room);
    assert_eq!(entry.sender(), bob.id());
    assert_eq!(entry.event_type(), TYPE);
    assert_eq!(entry.event_id(), &*first);
    assert_eq!(entry.sticky_duration(), LONG);
    assert_eq!(status(&entry), "here");
    assert!(!entry.is_encrypted());
    let left = entry.expires_in(alice.sticky.now());
    assert!(left <= LONG && left > LONG - Duration::from_secs(30), "{left:?}");

    bob.send(&room, "k", "away", LONG);
    assert_eq!(status(&alice.updated("k").await), "away");
    let key = StickyKey::new(bob.id(), TYPE, "k");
    let shown = alice.room(&room).get(&key).unwrap();
    assert_eq!(status(&shown), "away");

    bob.send(&room, "another", "", LONG);
    alice.added("another").await;

    bob.remove(&room, "k", LONG);
    assert_eq!(alice.removed("k").await, RemovalReason::Removed);
    assert_eq!(alice.room(&room).get(&key), None);

    // Nothing is over for a key that was removed.
    bob.send(&room, "k", "back", LONG);
    assert_eq!(status(&alice.added("k").await), "back");
    alice.assert_silent();
}

/// The rest of the key decides then.
#[tokio::test(flavor = "multi_thread")]
async fn a_redaction_removes_the_event() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let mut alice = Watcher::of(&alice, &[&room]).await;

    let first = bob.send(&room, "k", "first", LONG);
    alice.added("k").await;
    let refresh = bob.send(&room, "k", "refresh", LONG);
    alice.updated("k").await;

    bob.redact(&room, &refresh);
    let entry = alice.updated("k").await;
    assert_eq!((status(&entry), entry.event_id().as_str()), ("first".into(), &*first));

    bob.redact(&room, &first);
    assert_eq!(alice.removed("k").await, RemovalReason::Redacted);
    assert!(alice.sticky.events().snapshot().is_empty());
    alice.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_client_never_sees_a_redacted_refresh() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    bob.send(&room, "k", "first", LONG);
    let refresh = bob.send(&room, "k", "refresh", LONG);
    bob.redact(&room, &refresh);
    let gone = bob.send(&room, "gone", "", LONG);
    bob.redact(&room, &gone);

    let alice = Watcher::of(&alice, &[&room]).await;
    let snapshot = alice.sticky.events().snapshot();
    assert_eq!(keys(&snapshot), ["k"]);
    assert_eq!(status(&snapshot.iter().next().unwrap()), "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_events_are_in_the_map() {
    let alice = Person::new("alice");
    let room = alice.room();
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    alice.send(&room, "mine", "", LONG);
    assert_eq!(watcher.added("mine").await.sender(), alice.id());
}

/// What Synapse takes from anybody and hands on: none of it harms what comes with it.
#[tokio::test(flavor = "multi_thread")]
async fn odd_events_are_taken_for_what_they_are() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let not_a_string = bob.send_content(&room, &json!({ "msc4354_sticky_key": 5, "n": 1 }), LONG);
    let no_key = bob.send_content(&room, &json!({ "status": "unkeyed" }), LONG);
    bob.send(&room, "", "the empty key is a key", LONG);
    bob.send(&room, "over at once", "", Duration::ZERO);
    bob.send(&room, "too long", "", Duration::from_secs(2 * 3600));
    bob.send_content(
        &room,
        &json!({ "msc4354_sticky_key": "unstable", "sticky_key": "stable", "status": "" }),
        LONG,
    );
    bob.send_content(&room, &json!({ "sticky_key": "only stable", "status": "" }), LONG);

    let alice = Watcher::of(&alice, &[&room]).await;
    let snapshot = alice.sticky.events().snapshot();
    let mut wanted = vec!["", "only stable", "too long", "unstable", &no_key];
    let mut shown = keys(&snapshot);
    // Law 5 and law 7 each have a word on a key that is no string; that it does no harm is what is
    // said here.
    shown.retain(|key| *key != not_a_string);
    shown.sort();
    wanted.sort_unstable();
    assert_eq!(shown, wanted);
    let too_long = alice.room(&room).get(&StickyKey::new(bob.id(), TYPE, "too long")).unwrap();
    assert_eq!(too_long.sticky_duration(), Duration::from_secs(2 * 3600));
    assert!(too_long.expires_in(snapshot.taken_at()) <= Duration::from_secs(3600));
}

/// Live is not said before the last page.
#[tokio::test(flavor = "multi_thread")]
async fn earlier_events_come_in_pages() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let rooms = [(); 3].map(|()| bob.room_with(&[&alice]));
    let wanted: Vec<_> = (0..350).map(|n| (n % 3, format!("{n:03}"))).collect();
    thread::scope(|scope| {
        for (number, room) in rooms.iter().enumerate() {
            let (bob, keys) = (&bob, wanted.iter().filter(move |(n, _)| *n == number));
            scope.spawn(move || keys.for_each(|(_, key)| drop(bob.send(room, key, "", LONG))));
        }
    });

    let proxy = Proxy::before(server().url()).await;
    proxy.let_pass_only(0);
    let client = alice.client_through(&proxy).await;
    let sticky = client.sticky();
    let mut watch = Watch::new(sticky.events());
    assert_eq!(sticky.state(), SyncState::Connecting);
    eventually("the first page is asked for", async || match proxy.sticky_requests() {
        0 => Err(0),
        requests => Ok(requests),
    })
    .await;
    assert_eq!(sticky.state(), SyncState::Connecting);
    assert!(sticky.events().snapshot().is_empty());

    for (page, events) in [(1, 100), (2, 200), (3, 300)] {
        proxy.let_pass(1);
        eventually("the next page is there, and more are to come", async || {
            match (sticky.state(), sticky.events().snapshot().len()) {
                (SyncState::CatchingUp, len) if len == events => Ok(()),
                other => Err((page, other)),
            }
        })
        .await;
    }
    proxy.let_pass(1);
    until_state(&sticky, "live", |state| *state == SyncState::Live).await;
    let snapshot = sticky.events().snapshot();
    let mut shown: Vec<_> = snapshot
        .iter()
        .map(|entry| {
            let room = rooms.iter().position(|room| room == entry.room_id());
            (room.unwrap(), entry.sticky_key().unwrap().to_owned())
        })
        .collect();
    shown.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(shown, wanted);
    assert_eq!(sticky.events().in_room(rooms[1].clone()).snapshot().len(), 117);
    assert_eq!(proxy.sticky_connections().len(), 1);

    // It was told once each, in as many changes as there were pages at most, and goes on from here.
    proxy.let_pass(1000);
    let all: Vec<_> = wanted.iter().map(|(_, key)| key.as_str()).collect();
    assert_eq!(watch.until_keys(&all).await.len(), 350);
    bob.send(&rooms[0], "live", "", LONG);
    watch.added("live").await;
    watch.assert_silent();
}

/// Subscribers are notified within a second.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_gone_when_it_ends() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let mut alice = Watcher::of(&alice, &[&room]).await;

    bob.send(&room, "longer", "", Duration::from_secs(6));
    bob.send(&room, "short", "", Duration::from_secs(4));
    bob.send(&room, "stays", "", LONG);
    let mut ends = Vec::new();
    for key in ["longer", "short"] {
        let entry = alice.added(key).await;
        // The server's clock is this machine's.
        ends.push((key, entry.origin_server_ts_ms() + millis(entry.sticky_duration())));
    }
    alice.added("stays").await;

    ends.reverse();
    for (key, end) in ends {
        let view = alice.sticky.events();
        let key_of_bob = StickyKey::new(bob.id(), TYPE, key);
        let last_shown = async {
            let mut last_shown = unix_ms();
            while view.get(&key_of_bob).is_some() {
                last_shown = unix_ms();
                sleep(Duration::from_millis(2)).await;
            }
            last_shown
        };
        let told = async {
            let reason = alice.watch.removed(key).await;
            (reason, unix_ms())
        };
        let (last_shown, (reason, told)) = tokio::join!(last_shown, told);
        assert_eq!(reason, RemovalReason::Expired);
        // Never before its end, but for what two clocks and whole milliseconds may differ by.
        assert!(
            (end - 5..end + 1000).contains(&told),
            "`{key}` ends at {end}, told {} ms after",
            told.cast_signed() - end.cast_signed()
        );
        // The server says what is left when it answers, so our end comes later than its own by the
        // answer's way to us.
        assert!(
            last_shown < end + 1000,
            "`{key}` is still shown {} ms after its end",
            last_shown.cast_signed() - end.cast_signed()
        );
    }
    assert_eq!(alice.keys(), ["stays"]);
    alice.assert_silent();
}

/// The older event ends in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_keeps_the_entry() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let mut alice = Watcher::of(&alice, &[&room]).await;
    bob.send(&room, "k", "first", Duration::from_secs(3));
    alice.added("k").await;
    bob.send(&room, "k", "refresh", Duration::from_secs(4));
    let refresh = alice.updated("k").await;
    assert_eq!(alice.removed("k").await, RemovalReason::Expired);
    assert!(unix_ms() + 5 >= refresh.origin_server_ts_ms() + 4000);
    alice.assert_silent();
}

/// A stream alone keeps the map.
#[tokio::test(flavor = "multi_thread")]
async fn all_handles_share_one_map() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let proxy = Proxy::before(server().url()).await;
    let client = alice.client_through(&proxy).await;
    let _main_loop = sync(&client);
    let (first, second) = (client.sticky(), client.clone().sticky());
    until_state(&first, "live", |state| *state == SyncState::Live).await;
    assert_eq!(second.state(), SyncState::Live);
    bob.send(&room, "k", "", LONG);
    eventually("both show it", async || {
        let of_room = client.get_room(&room).ok_or_else(|| vec!["no room".into()])?;
        let snapshots = [&first.events(), &second.events(), &of_room.sticky().events()];
        let shown = snapshots.map(|view| keys(&view.snapshot())).concat();
        if shown == ["k"; 3] { Ok(()) } else { Err(shown) }
    })
    .await;

    let mut watch = Watch::new(first.events());
    drop((first, second));
    bob.send(&room, "kept by the stream", "", LONG);
    watch.added("kept by the stream").await;
    assert_eq!(proxy.sticky_connections().len(), 1, "{proxy:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_handle_goes_live_after_the_login() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    bob.send(&room, "k", "", LONG);
    let client = build_client(server().url()).await;
    let sticky = client.sticky();
    let mut watch = Watch::new(sticky.events());
    assert_eq!(sticky.state(), SyncState::Connecting);
    client.restore_session(alice.session()).await.unwrap();
    watch.added("k").await;
    until_state(&sticky, "live", |state| *state == SyncState::Live).await;
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

fn unix_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

/// The number of events fills the last page.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_last_page_is_live_at_once() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    for count in [100, 200] {
        for n in count - 100..count {
            bob.send(&room, &format!("{n:03}"), "", LONG);
        }
        let client = alice.client().await;
        let _main_loop = sync(&client);
        let sticky = client.sticky();
        // Much less than the server would hold a request.
        let soon = Duration::from_secs(15);
        let is_live = |state: &SyncState| *state == SyncState::Live;
        crate::support::until_state_within(soon, &sticky, "live", is_live).await;
        assert_eq!(sticky.events().snapshot().len(), count);
    }
}
