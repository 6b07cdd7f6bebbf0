//! Time, on a clock that jumps: as a laptop does that was asleep.

use futures_util::{FutureExt as _, StreamExt as _};
use matrix_sdk_sticky::{EntryChange, RemovalReason, StickyKey, SyncState};

use crate::support::{ALICE, ROOM, World, event, event_lasting, millis, next_change, secs, within};

/// The entries are gone even before a timer has run.
#[tokio::test]
async fn after_a_suspend_no_ghost_is_shown() {
    let events = vec![event_lasting("a", 60_000), event_lasting("b", 3_599_000)];
    let (world, _poll) = World::live(events).await;
    assert_eq!(world.event_ids(), ["$a", "$b"]);
    let sticky = world.sticky.clone();
    let room = world.is_in(ROOM).await;
    let key = StickyKey::new(matrix_sdk::ruma::UserId::parse(ALICE).unwrap(), "com.example.t", "b");
    assert!(room.get(&key).is_some());
    let list = sticky.events().subscribe_list();
    assert_eq!(list.entries.len(), 2);

    world.clock.jump_unnoticed(secs(3_600));
    // Nobody has been woken, and nothing is awaited.
    assert!(world.event_ids().is_empty());
    assert_eq!(room.get(&key), None);
    assert!(room.events().snapshot().is_empty());
    assert!(sticky.events().subscribe().snapshot.is_empty());
}

#[tokio::test]
async fn after_a_suspend_expiries_are_one_change() {
    let events = vec![event_lasting("a", 60_000), event_lasting("b", 1_800_000), event("c")];
    let (world, _poll) = World::live(events).await;
    let mut changes = world.sticky.events().subscribe().changes;
    // Somebody waits for it, as an application does.
    assert!(changes.next().now_or_never().is_none());

    world.clock.advance(secs(1_801));
    let change = next_change(&mut changes).await;
    let told: Vec<_> = change
        .entries
        .iter()
        .map(|change| match change {
            EntryChange::Removed { entry, reason } => (entry.event_id().to_string(), *reason),
            other => panic!("{other:?}"),
        })
        .collect();
    let expired = |id: &str| (id.to_owned(), RemovalReason::Expired);
    assert_eq!(told, [expired("$a"), expired("$b")]);
    assert_eq!(world.event_ids(), ["$c"]);
    assert!(changes.next().now_or_never().is_none());
}

/// Nobody else polls the stream.
#[tokio::test]
async fn the_timer_wakes_a_waiting_stream() {
    let (world, _poll) = World::live(vec![event_lasting("a", 60_000)]).await;
    let mut changes = world.sticky.events().subscribe().changes;
    let told = tokio::spawn(async move { changes.next().await.unwrap() });
    world.settle().await;
    world.clock.advance(millis(59_999));
    world.settle().await;
    assert!(!told.is_finished(), "not a millisecond too early");
    world.clock.advance(millis(1));
    let change = within("a change", told).await.unwrap();
    assert_eq!(change.entries.len(), 1);
}

/// No timer runs while there are no entries.
#[tokio::test]
async fn one_timer_serves_all_entries() {
    let (mut world, poll) = World::live(vec![]).await;
    assert_eq!(world.clock.sleepers(), 0);
    let events = (1..=50).map(|i| event_lasting(&format!("e-{i:02}"), i * 60_000)).collect();
    poll.page("pos-2", "batch-2", ROOM, events).await;
    let _poll = world.server.ask().await;
    world.settle().await;
    assert_eq!(world.event_ids().len(), 50);
    assert_eq!(world.clock.sleepers(), 1);

    for left in (0..50).rev() {
        world.clock.advance(secs(60));
        world.settle().await;
        assert_eq!(world.event_ids().len(), left);
    }
    assert_eq!(world.sticky.state(), SyncState::Live);
}

/// The entry comes later than the one that the timer was set for.
#[tokio::test]
async fn an_entry_that_ends_sooner_moves_the_timer() {
    let (mut world, poll) = World::live(vec![event_lasting("long", 600_000)]).await;
    let mut changes = world.sticky.events().subscribe().changes;
    poll.page("pos-2", "batch-2", ROOM, vec![event_lasting("short", 1_000)]).await;
    let _poll = world.server.ask().await;
    assert_eq!(next_change(&mut changes).await.entries[0].entry().event_id(), "$short");
    assert!(changes.next().now_or_never().is_none());
    world.settle().await;

    world.clock.advance(secs(1));
    let change = next_change(&mut changes).await;
    assert_eq!(change.entries[0].entry().event_id(), "$short");
    assert_eq!(world.event_ids(), ["$long"]);
}
