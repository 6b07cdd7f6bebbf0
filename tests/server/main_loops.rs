//! Beside each main loop that an application may run: ours works, and theirs is not disturbed.

use std::{pin::Pin, time::Duration};

use matrix_sdk::{
    Client, config::SyncSettings, deserialized_responses::TimelineEventKind,
    ruma::events::room::message::RoomMessageEventContent,
};
use matrix_sdk_sticky::{EntryChange, RemovalReason, SyncSource, SyncState};
use matrix_sdk_ui::sync_service::SyncService;
use tokio::time::sleep;

use crate::support::{
    Background, Encryptor, LONG, Person, Watch, Watcher, eventually, follow, in_room, live, status,
    sync, until_state,
};

#[tokio::test(flavor = "multi_thread")]
async fn it_works_beside_client_sync() {
    it_works_beside(|client| Box::pin(async move { Box::new(sync(&client)) as Box<dyn Send> }))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_beside_a_loop_of_sync_once() {
    it_works_beside(|client| {
        Box::pin(async move { Box::new(sync_once_again(client)) as Box<dyn Send> })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_v3_it_works_beside_a_loop_of_sync_once() {
    it_works_beside(|client| {
        Box::pin(async move {
            let sticky = follow(&client);
            Box::new((sticky, sync_once_again(client))) as Box<dyn Send>
        })
    })
    .await;
}

/// A loop of the application's own.
fn sync_once_again(client: Client) -> Background {
    Background::run(async move {
        let settings = SyncSettings::new().timeout(Duration::from_secs(10));
        loop {
            client.sync_once(settings.clone()).await.unwrap();
            // So quick a loop the server would not like in the long run.
            sleep(Duration::from_millis(100)).await;
        }
    })
}

/// What is sent between two turns of such a loop, and while one waits, and more of it than a page.
#[tokio::test(flavor = "multi_thread")]
async fn over_v3_a_loop_of_sync_once_loses_nothing() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let client = alice.client().await;
    let sticky = follow(&client);
    let turn =
        async |timeout| client.sync_once(SyncSettings::new().timeout(timeout)).await.unwrap();
    turn(Duration::ZERO).await;
    until_state(&sticky, "live", |state| *state == SyncState::Live).await;
    assert_eq!(sticky.source(), SyncSource::V3);
    let mut watch = Watch::new(sticky.events());
    let send = |n: usize| bob.send(&room, &format!("{n:03}"), "", LONG);

    let mut sent = 0;
    for burst in [1, 0, 7, 130, 2] {
        (sent..sent + burst).for_each(|n| drop(send(n)));
        sent += burst;
        turn(Duration::ZERO).await;
    }
    for _ in 0..5 {
        // The first one ends the turn that waits; the others may be in it, or not.
        let waiting = turn(Duration::from_secs(10));
        tokio::join!(waiting, async { (sent..sent + 3).for_each(|n| drop(send(n))) });
        sent += 3;
    }
    bob.send(&room, "000", "updated", LONG);
    bob.remove(&room, "001", LONG);
    let gone = bob.send(&room, "002", "redacted", LONG);
    turn(Duration::ZERO).await;
    bob.redact(&room, &gone);

    // An event is there when the loop has moved on from it.
    let _main_loop = sync_once_again(client.clone());
    let wanted: Vec<_> = (0..sent).filter(|n| *n != 1).map(|n| format!("{n:03}")).collect();
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    watch.until_keys(&wanted).await;
    bob.send(&room, "last", "", LONG);
    while !watch.keys().contains(&"last") {
        watch.next("the last one").await;
    }
    let snapshot = sticky.events().snapshot();
    let of = |n: usize| status(&snapshot.iter().nth(n).unwrap());
    assert_eq!((of(0), of(1)), ("updated".to_owned(), String::new()));
    watch.assert_in_step();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_beside_the_sync_service() {
    it_works_beside(|client| {
        Box::pin(async move {
            let service = SyncService::builder(client).build().await.unwrap();
            service.start().await;
            Box::new(service) as Box<dyn Send>
        })
    })
    .await;
}

type Started = Pin<Box<dyn Future<Output = Box<dyn Send>>>>;

async fn it_works_beside(start: impl FnOnce(Client) -> Started) {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.room_with(&[&alice]);
    let encrypted = bob.encrypted_room_with(&[&alice]);
    let client = alice.client().await;
    let _main_loop = start(client.clone()).await;
    let sticky = live(&client, &[&room, &encrypted]).await;
    let mut watch = Watch::new(sticky.events());

    // An event, and a redaction, which only the main loop sees.
    bob.send(&room, "k", "first", LONG);
    watch.added("k").await;
    let refresh = bob.send(&room, "k", "refresh", LONG);
    watch.updated("k").await;
    bob.redact(&room, &refresh);
    assert_eq!(status(&watch.updated("k").await), "first");

    // A redaction in a busy room.
    let busy = bob.send(&room, "busy", "", LONG);
    watch.added("busy").await;
    bob.redact(&room, &busy);
    for n in 0..15 {
        bob.say(&room, &format!("{n}"));
    }
    assert_eq!(watch.removed("busy").await, RemovalReason::Redacted);

    // A join that the application makes, one that another device makes, and leaving.
    let later = bob.room();
    bob.send(&later, "before the join", "", LONG);
    client.join_room_by_id(&later).await.unwrap();
    watch.added("before the join").await;
    let elsewhere = bob.room();
    bob.send(&elsewhere, "before the other join", "", LONG);
    alice.join(&elsewhere);
    watch.added("before the other join").await;
    in_room(&client, &elsewhere).await;
    alice.leave(&elsewhere);
    assert_eq!(watch.removed("before the other join").await, RemovalReason::RoomLeft);
    client.get_room(&later).unwrap().leave().await.unwrap();
    assert_eq!(watch.removed("before the join").await, RemovalReason::RoomLeft);

    // Room keys, one for each event: they go through the main loop, and none is lost to ours. Half
    // of the events are sticky and half are not.
    let bob = Encryptor::of(&bob, &encrypted, &[&alice]).await;
    let room_of_bob = bob.client.get_room(&encrypted).unwrap();
    for n in 0..5 {
        bob.discard_key(&encrypted).await;
        bob.send(&encrypted, &format!("encrypted {n}"), "").await;
        bob.discard_key(&encrypted).await;
        let message = RoomMessageEventContent::text_plain(format!("message {n}"));
        let sent = room_of_bob.send(message).await.unwrap();
        let room = client.get_room(&encrypted).unwrap();
        let event_id = &sent.response.event_id;
        eventually("the main loop can read the message", async || {
            let event = room.event(event_id, None).await.map_err(|e| e.to_string())?;
            match event.kind {
                TimelineEventKind::Decrypted(_) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    let mut wanted: Vec<_> = (0..5).map(|n| format!("encrypted {n}")).collect();
    wanted.push("k".to_owned());
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    watch.until_keys(&wanted).await;
    watch.assert_in_step();
}

#[tokio::test(flavor = "multi_thread")]
async fn ignoring_a_sender_hides_their_entries_and_the_end_of_it_brings_back_what_is_live() {
    let (alice, bob, carol) = (Person::new("alice"), Person::new("bob"), Person::new("carol"));
    let room = bob.room_with(&[&alice, &carol]);
    let mut alice = Watcher::of(&alice, &[&room]).await;
    bob.send(&room, "of bob", "", LONG);
    alice.added("of bob").await;
    bob.send(&room, "refreshed meanwhile", "old", LONG);
    alice.added("refreshed meanwhile").await;
    bob.send(&room, "removed meanwhile", "", LONG);
    alice.added("removed meanwhile").await;
    carol.send(&room, "of carol", "", LONG);
    alice.added("of carol").await;
    bob.send(&room, "ends meanwhile", "", Duration::from_secs(3));
    alice.added("ends meanwhile").await;

    alice.client.account().ignore_user(bob.id()).await.unwrap();
    let hidden = alice.until_keys(&["of carol"]).await;
    for change in hidden {
        assert!(
            matches!(
                change,
                EntryChange::Removed {
                    reason: RemovalReason::Ignored | RemovalReason::Expired,
                    ..
                }
            ),
            "{change:?}"
        );
    }
    bob.send(&room, "sent meanwhile", "", LONG);
    bob.send(&room, "refreshed meanwhile", "new", LONG);
    bob.remove(&room, "removed meanwhile", LONG);
    carol.send(&room, "of carol", "later", LONG);
    alice.updated("of carol").await;
    alice.assert_silent();

    alice.client.account().unignore_user(bob.id()).await.unwrap();
    loop {
        alice.until_keys(&["of bob", "of carol", "refreshed meanwhile", "sent meanwhile"]).await;
        let refreshed = alice
            .sticky
            .events()
            .by_sender(bob.id())
            .snapshot()
            .iter()
            .any(|entry| status(&entry) == "new");
        if refreshed {
            break;
        }
        alice.next("the refresh that was sent meanwhile").await;
    }
    alice.assert_silent();
}
