//! Refusals and outages: what is shown, how long we wait, and that it goes on afterwards.

use std::time::Duration;

use matrix_sdk_sticky::SyncState;
use serde_json::json;

use crate::support::{ROOM, START_MS, World, event, event_lasting, millis, secs, until_state};

/// Entries stay.
#[tokio::test]
async fn an_unknown_pos_starts_over_at_once() {
    let (mut world, poll) = World::live(vec![event("a")]).await;
    let name = poll.body["conn_id"].clone();
    poll.refuse(400, "M_UNKNOWN_POS").await;

    // No time passes until it asks again.
    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (None, None));
    assert_eq!(ask.body["conn_id"], name);
    world.until(&SyncState::CatchingUp).await;
    assert_eq!(world.event_ids(), ["$a"]);
    ask.page("pos-9", "batch-9", ROOM, vec![event("a"), event("b")]).await;

    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (Some("pos-9"), Some("batch-9")));
    world.until(&SyncState::Live).await;
    world.until_event_ids(&["$a", "$b"]).await;
}

#[tokio::test]
async fn an_unreadable_since_starts_over() {
    for errcode in ["M_BAD_JSON", "M_INVALID_PARAM"] {
        let (mut world, poll) = World::live(vec![]).await;
        poll.refuse(400, errcode).await;
        let ask = world.server.ask().await;
        assert_eq!((ask.pos(), ask.since()), (None, None), "{errcode}");
        ask.page("pos-9", "batch-9", ROOM, vec![event("a")]).await;
        let _poll = world.server.ask().await;
        world.until(&SyncState::Live).await;
        world.until_event_ids(&["$a"]).await;
    }
}

/// The requests make no hot loop.
#[tokio::test]
async fn a_refused_fresh_start_is_offline() {
    for errcode in ["M_UNKNOWN_POS", "M_BAD_JSON", "M_INVALID_PARAM"] {
        let (mut world, poll) = World::live(vec![]).await;
        poll.refuse(400, errcode).await;
        world.server.ask().await.refuse(400, errcode).await;
        world.until_offline().await;

        let polls = world
            .polls_within(secs(600), async |ask| {
                assert_eq!((ask.pos(), ask.since()), (None, None));
                ask.refuse(400, errcode).await;
            })
            .await;
        assert!((10..=60).contains(&polls), "{errcode}: {polls}");
        world.until_offline().await;

        let ask = world.ask_sometime().await;
        ask.page("pos-9", "batch-9", ROOM, vec![event("a")]).await;
        world.until(&SyncState::Live).await;
        world.until_event_ids(&["$a"]).await;
    }
}

/// The server forgets each position that it gives.
#[tokio::test]
async fn forgotten_positions_make_no_hot_loop() {
    let mut world = World::start().await;
    let mut batch = 0;
    let polls = world
        .polls_within(secs(600), async |ask| match ask.pos() {
            None => {
                batch += 1;
                ask.page("pos", &format!("batch-{batch}"), ROOM, vec![event("a")]).await;
            }
            Some(_) => ask.refuse(400, "M_UNKNOWN_POS").await,
        })
        .await;
    assert!((10..=120).contains(&polls), "{polls}");
}

/// The wait has jitter, and starts over after a success.
#[tokio::test]
async fn the_wait_grows_to_30_seconds() {
    let (mut world, mut poll) = World::live(vec![]).await;
    let mut off_the_middle = 0;
    for failure in 0..12 {
        poll.refuse(500, "M_UNKNOWN").await;
        world.until_offline().await;
        let wait = world.sleep_over().await;
        let middle = millis(250 * (1 << failure)).min(secs(20));
        assert!(wait + millis(1) >= middle / 2, "{failure}: {wait:?}");
        assert!(wait <= middle * 3 / 2, "{failure}: {wait:?}");
        off_the_middle += usize::from(wait.abs_diff(middle) > millis(2));
        poll = world.server.ask().await;
    }
    assert!(off_the_middle > 6, "{off_the_middle} of 12 waits are jittered");

    poll.page("pos-2", "batch-2", ROOM, vec![]).await;
    world.until(&SyncState::Live).await;
    world.server.ask().await.refuse(500, "M_UNKNOWN").await;
    world.until_offline().await;
    assert!(world.sleep_over().await <= millis(375));
}

/// The time stays the same through many failures, and the state is live again on recovery.
#[tokio::test]
async fn offline_says_since_when() {
    let (mut world, mut poll) = World::live(vec![event("a")]).await;
    world.clock.advance(secs(7));
    let asked_before = world.server.count("/versions");
    for _ in 0..5 {
        poll.refuse(502, "M_UNKNOWN").await;
        let (since, _) = world.until_offline().await;
        assert_eq!(since, millis(START_MS) + secs(7));
        world.sleep_over().await;
        poll = world.server.ask().await;
    }
    // It may be another version of the server each time.
    assert_eq!(world.server.count("/versions"), asked_before + 5);

    // The same position: nothing was lost meanwhile.
    assert_eq!((poll.pos(), poll.since()), (Some("pos-1"), Some("batch-1")));
    poll.page("pos-2", "batch-2", ROOM, vec![event("b")]).await;
    world.until(&SyncState::Live).await;
    world.until_event_ids(&["$a", "$b"]).await;

    // The next outage is another one.
    let poll = world.server.ask().await;
    world.clock.advance(secs(5));
    poll.refuse(500, "M_UNKNOWN").await;
    let (since, _) = world.until_offline().await;
    assert!(since >= millis(START_MS) + secs(12));
}

/// The first answer shows it, although nothing is new.
#[tokio::test]
async fn recovery_shows_at_once() {
    let (mut world, poll) = World::live(vec![]).await;
    assert_eq!(poll.param("timeout"), Some("30000"));
    poll.refuse(500, "M_UNKNOWN").await;
    world.until_offline().await;
    world.sleep_over().await;

    // Not held: the answer is wanted, whatever it is.
    let ask = world.server.ask().await;
    assert_eq!(ask.param("timeout"), Some("0"));
    assert_eq!(ask.pos(), Some("pos-1"));
    ask.nothing("pos-2").await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.server.ask().await.param("timeout"), Some("30000"));
}

#[tokio::test]
async fn what_expires_while_offline_leaves() {
    let (mut world, poll) = World::live(vec![event_lasting("a", 60_000)]).await;
    poll.refuse(500, "M_UNKNOWN").await;
    world.until_offline().await;
    assert_eq!(world.event_ids(), ["$a"], "it stays until it ends");
    world.clock.advance(secs(60));
    assert!(world.event_ids().is_empty());
    let _poll = world.server.ask().await;
}

#[tokio::test]
async fn a_server_that_returns_is_found_again() {
    let (mut world, poll) = World::live(vec![event("a")]).await;
    world.server.shut_down().await;
    drop(poll);
    for _ in 0..4 {
        world.until_offline().await;
        world.sleep_over().await;
    }
    let (since, error) = world.until_offline().await;
    assert_eq!(since, millis(START_MS));
    assert!(!error.is_empty());

    world.server.come_back().await;
    let ask = world.ask_sometime().await;
    assert_eq!((ask.pos(), ask.since()), (Some("pos-1"), Some("batch-1")));
    ask.page("pos-2", "batch-2", ROOM, vec![event("b")]).await;
    world.until(&SyncState::Live).await;
    world.until_event_ids(&["$a", "$b"]).await;
}

#[tokio::test]
async fn an_outage_is_described_without_the_request() {
    let (mut world, poll) = World::live(vec![]).await;
    world.server.shut_down().await;
    drop(poll);
    let (_, hung_up) = world.until_offline().await;
    world.sleep_over().await;
    let SyncState::Offline { error: refused, .. } = until_state(
        &world.sticky,
        "refused",
        |state| matches!(state, SyncState::Offline { error, .. } if *error != hung_up),
    )
    .await
    else {
        panic!("it is offline");
    };
    for error in [&hung_up, &refused] {
        for part in ["http", "127.0.0.1", "pos-1", "/_matrix", "timeout="] {
            assert!(!error.contains(part), "{error:?} has {part:?}");
        }
    }
    assert!(refused.contains("refused"), "{refused:?}");
}

/// The state is live when the server is back.
#[tokio::test]
async fn a_start_during_an_outage_goes_live_later() {
    let mut server = crate::support::Homeserver::start().await;
    let client = crate::support::client(&server).await;
    server.shut_down().await;
    let mut world = World::of(server, client);
    world.until_offline().await;

    world.server.come_back().await;
    let ask = world.ask_sometime().await;
    ask.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
    world.until(&SyncState::Live).await;
    world.until_event_ids(&["$a"]).await;
}

#[tokio::test]
async fn half_an_answer_counts_as_none() {
    let (mut world, poll) = World::live(vec![]).await;
    let rooms = json!({ ROOM: { "events": [event("a"), event("b")] } });
    let answer = crate::support::body("pos-2", Some("batch-2"), rooms).to_string();
    poll.answer_half(&answer).await;
    world.until_offline().await;
    assert!(world.event_ids().is_empty());

    world.sleep_over().await;
    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (Some("pos-1"), Some("batch-1")));
    ask.answer(200, &answer).await;
    world.until(&SyncState::Live).await;
    world.until_event_ids(&["$a", "$b"]).await;
}

#[tokio::test]
async fn retry_after_is_respected_and_the_entries_stay() {
    let (mut world, mut poll) = World::live(vec![event("a")]).await;
    for ms in [1, 900, 20_000, 3_000, 3_000] {
        poll.limit(ms).await;
        let wait = world.sleep_over().await;
        assert!(wait >= millis(ms), "asked to wait {ms} ms, waits {wait:?}");
        assert!(wait <= millis(ms) * 2 + secs(5), "{ms} ms, waits {wait:?}");
        poll = world.server.ask().await;
    }
    assert_eq!(world.sticky.state(), SyncState::Live);
    poll.page("pos-2", "batch-2", ROOM, vec![event("b")]).await;
    world.until_event_ids(&["$a", "$b"]).await;
}

/// A limit without a time is backed off from, and an absurd time is cut.
#[tokio::test]
async fn rate_limits_without_a_sane_time_end() {
    let (mut world, poll) = World::live(vec![]).await;
    poll.refuse(429, "M_LIMIT_EXCEEDED").await;
    assert!(world.sleep_over().await <= millis(375));

    world.server.ask().await.limit(9_007_199_254_740_991).await;
    let wait = world.sleep_over().await;
    assert!(wait <= Duration::from_hours(1), "{wait:?}");
    let _poll = world.server.ask().await;
}
