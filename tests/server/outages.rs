//! Servers that go away, come back, or are of the wrong kind; and us, who go away.

use std::time::{Duration, SystemTime};

use matrix_sdk::sync::RoomUpdate;
use matrix_sdk_sticky::{RemovalReason, Sticky, SyncSource, SyncState, Unsupported};
use serde_json::json;
use tokio::time::{sleep, timeout};
use xtask::homeserver::Options;

use crate::{
    proxy::Proxy,
    support::{
        DEADLINE, LONG, Person, Watch, Watcher, eventually, is_offline, keys, live, server, start,
        sync, until_state, until_state_within,
    },
};

/// When it has to be back after an outage: the longest wait between two tries is 30 s.
const BACK_WITHIN: Duration = Duration::from_secs(60);

fn is_live(state: &SyncState) -> bool {
    *state == SyncState::Live
}

/// No change comes twice either.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_loses_nothing() {
    let mut server = start(&Options::default());
    let (alice, bob) = (Person::on(&server, "alice"), Person::on(&server, "bob"));
    let room = bob.room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    bob.send(&room, "before", "", LONG);
    watcher.added("before").await;
    let refresh = bob.send(&room, "before", "refresh", LONG);
    watcher.updated("before").await;

    server.stop().unwrap();
    let state = until_state(&watcher.sticky, "offline", is_offline).await;
    let SyncState::Offline { since, error } = state else { unreachable!() };
    assert!(since.elapsed().unwrap() < Duration::from_secs(60));
    assert!(!error.is_empty());
    assert_eq!(keys(&watcher.sticky.events().snapshot()), ["before"]);

    server.restart().unwrap();
    until_state_within(BACK_WITHIN, &watcher.sticky, "live again", is_live).await;
    bob.send(&room, "after", "", LONG);
    watcher.added("after").await;
    bob.redact(&room, &refresh);
    watcher.updated("before").await;
    watcher.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_sticky_events_is_named() {
    let server = start(&Options { sticky: false, ..Options::default() });
    let alice = Person::on(&server, "alice");
    for source in [SyncSource::Auto, SyncSource::Sliding, SyncSource::V3] {
        let client = alice.client().await;
        let sticky = Sticky::builder(&client).with_source(source).start().unwrap();
        let _main_loop = sync(&client);
        let answered = |state: &SyncState| !matches!(state, SyncState::Connecting);
        let state = until_state(&sticky, "unsupported", answered).await;
        assert_eq!(state, SyncState::Unsupported(Unsupported::StickyEvents), "{source:?}");
    }
    let said = Unsupported::StickyEvents.to_string();
    assert!(said.contains("MSC4354"), "{said}");
}

/// Entries stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_is_noticed() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    bob.send(&room, "k", "", LONG);
    watcher.added("k").await;

    alice.other_device().post("logout/all", &json!({})).unwrap();
    // Synapse does not end a request that it holds for a token that is gone, and still answers it:
    // the next one is refused. Without an event that would be up to 30 s later.
    bob.send(&room, "last", "", LONG);
    until_state(&watcher.sticky, "logged out", |state| *state == SyncState::LoggedOut).await;
    assert_eq!(keys(&watcher.sticky.events().snapshot()), ["k", "last"]);
}

/// All is there once the line is mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_line_is_offline_until_mended() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let proxy = Proxy::before(server().url()).await;
    let client = alice.client_through(&proxy).await;
    let mut watcher = Watcher::with(client, &[&room]).await;
    bob.send(&room, "k", "", LONG);
    watcher.added("k").await;
    bob.send(&room, "ends meanwhile", "", Duration::from_secs(4));
    watcher.added("ends meanwhile").await;

    let before = SystemTime::now();
    proxy.cut();
    let state = until_state(&watcher.sticky, "offline", is_offline).await;
    let SyncState::Offline { since, .. } = state else { unreachable!() };
    assert!(since + Duration::from_millis(1) >= before);
    bob.send(&room, "sent meanwhile", "", LONG);
    bob.send(&room, "over before anybody saw it", "", Duration::from_secs(1));
    let refresh = bob.send(&room, "k", "refresh", LONG);
    bob.redact(&room, &refresh);
    // What ends ends, whether or not anybody can be asked.
    assert_eq!(watcher.removed("ends meanwhile").await, RemovalReason::Expired);
    let state = watcher.sticky.state();
    assert!(
        matches!(state, SyncState::Offline { since: still, .. } if still == since),
        "{state:?}, since {since:?}"
    );

    proxy.mend();
    until_state_within(BACK_WITHIN, &watcher.sticky, "live again", is_live).await;
    watcher.until_keys(&["k", "sent meanwhile"]).await;
    bob.send(&room, "k", "again", LONG);
    watcher.updated("k").await;
    watcher.assert_silent();
    assert_eq!(proxy.sticky_connections().len(), 1, "it goes on where it was");
}

/// No change comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_position_asks_for_all() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let proxy = Proxy::before(server().url()).await;
    let client = alice.client_through(&proxy).await;
    let mut watcher = Watcher::with(client, &[&room]).await;
    for key in ["a", "b"] {
        bob.send(&room, key, "", LONG);
        watcher.added(key).await;
    }
    proxy.lose_position();
    // It ends the request that waits; the next one has the wrong position.
    bob.send(&room, "c", "", LONG);
    watcher.added("c").await;
    eventually("it asked for all once more", async || match proxy.requests_anew() {
        2 => Ok(()),
        _ => Err(format!("{proxy:?}")),
    })
    .await;
    bob.send(&room, "a", "refreshed", LONG);
    watcher.updated("a").await;
    until_state(&watcher.sticky, "live again", is_live).await;
    watcher.assert_silent();
}

/// The state says so after the time that a request may take.
///
/// As when the machine moves to another network: connections stay open, and nothing comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_line_is_offline() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let proxy = Proxy::before(server().url()).await;
    let client = alice.client_through(&proxy).await;
    let mut watcher = Watcher::with(client, &[&room]).await;
    bob.send(&room, "k", "", LONG);
    watcher.added("k").await;

    proxy.freeze(true);
    // The server may hold a request for 30 s, and another 15 s are given to the answer's way.
    let within = Duration::from_secs(30 + 15 + 5);
    until_state_within(within, &watcher.sticky, "offline", is_offline).await;
    bob.send(&room, "sent meanwhile", "", LONG);
    watcher.assert_silent();
    proxy.freeze(false);
    until_state_within(BACK_WITHIN, &watcher.sticky, "live again", is_live).await;
    watcher.added("sent meanwhile").await;
    watcher.assert_silent();
}

/// The server goes on later.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_loses_nothing() {
    let mut server = start(&Options::default());
    let (alice, bob) = (Person::on(&server, "alice"), Person::on(&server, "bob"));
    let room = bob.room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    bob.send(&room, "before", "", Duration::from_secs(4));
    watcher.added("before").await;
    server.pause().unwrap();
    assert_eq!(watcher.removed("before").await, RemovalReason::Expired);
    assert_eq!(watcher.sticky.state(), SyncState::Live);
    server.resume().unwrap();
    bob.send(&room, "after", "", LONG);
    watcher.added("after").await;
    watcher.assert_silent();
}

/// The last stream is dropped too.
#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_handle_ends_all_requests() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let proxy = Proxy::before(server().url()).await;
    let client = alice.client_through(&proxy).await;
    let main_loop = sync(&client);
    let sticky = live(&client, &[&room]).await;
    let mut watch = Watch::new(sticky.events());
    let of_room = sticky.room(&room).unwrap();
    drop(sticky);
    bob.send(&room, "k", "", LONG);
    watch.added("k").await;
    drop(watch);
    assert_eq!(keys(&of_room.events().snapshot()), ["k"]);
    eventually("the next request is asked", async || match proxy.open_sticky() {
        0 => Err(format!("{proxy:?}")),
        _ => Ok(()),
    })
    .await;
    drop(of_room);
    // Dropping the request closes the connection that it waits on.
    eventually("no request is open", async || match proxy.open_sticky() {
        0 => Ok(()),
        _ => Err(format!("{proxy:?}")),
    })
    .await;
    let requests = proxy.sticky_requests();

    // An event and a redaction would wake up a task that is still there. The main loop is.
    let mut updates = client.subscribe_to_room_updates(&room);
    let event_id = bob.send(&room, "k", "nobody looks", LONG);
    bob.redact(&room, &event_id);
    let last = bob.say(&room, "done");
    let has_last = |update: &RoomUpdate| match update {
        RoomUpdate::Joined { updates, .. } => {
            let mut events = updates.timeline.events.iter();
            events.any(|event| event.event_id().is_some_and(|event_id| *event_id == *last))
        }
        _ => false,
    };
    let told = async { while !has_last(&updates.recv().await.unwrap()) {} };
    timeout(DEADLINE, told).await.expect("the main loop goes on");
    drop(main_loop);
    assert_eq!(proxy.sticky_requests(), requests, "{proxy:?}");

    // Asked again, it starts again, with all that is there.
    let sticky = live(&client, &[]).await;
    assert_eq!(keys(&sticky.events().snapshot()), ["k"]);
    assert_eq!(proxy.sticky_connections().len(), 2, "{proxy:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_happens_one_request_waits() {
    let alice = Person::new("alice");
    let room = alice.room();
    let proxy = Proxy::before(server().url()).await;
    let client = alice.client_through(&proxy).await;
    let watcher = Watcher::with(client, &[&room]).await;
    let long_poll = async || {
        let before = proxy.sticky_requests();
        sleep(Duration::from_secs(3)).await;
        proxy.sticky_requests() - before
    };
    // The first may see the end of the start.
    long_poll().await;
    assert_eq!(long_poll().await, 0, "{proxy:?}");
    drop(watcher);
}
