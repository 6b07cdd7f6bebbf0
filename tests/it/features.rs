//! Servers that lack what we need, and that come to have it.

use matrix_sdk_sticky::{SyncSource, SyncState, Unsupported};
use serde_json::json;

use crate::support::{Homeserver, ROOM, World, client, event, log, secs};

const STICKY: &str = "org.matrix.msc4354";
const SLIDING: &str = "org.matrix.simplified_msc3575";

async fn start_with(features: &[&str]) -> World {
    let server = Homeserver::start().await;
    server.has(features);
    let client = client(&server).await;
    World::of(server, client)
}

/// The server has it all from now on, and is asked again within 15 minutes, 10 on average.
async fn goes_live_when_it_is_there(mut world: World) {
    world.server.has(&[STICKY, SLIDING]);
    world.settle().await;
    assert!(!world.server.is_asked(), "not before it is time");
    let wait = world.sleep_over().await;
    assert!((secs(300)..=secs(900)).contains(&wait), "{wait:?}");

    let ask = world.server.ask().await;
    assert_eq!((ask.pos(), ask.since()), (None, None));
    ask.page("pos", "batch", ROOM, vec![event("a")]).await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.event_ids(), ["$a"]);
}

/// The state stays so until the server has them.
#[tokio::test]
async fn without_sticky_events_it_is_unsupported() {
    for features in [&[SLIDING][..], &[]] {
        let world = start_with(features).await;
        let state = SyncState::Unsupported(Unsupported::StickyEvents);
        world.until(&state).await;
        assert_eq!(world.server.polls(), 0, "it is not even asked");
        goes_live_when_it_is_there(world).await;
    }
}

/// The state stays so until the server has it.
#[tokio::test]
async fn without_sliding_sync_it_is_unsupported() {
    let server = Homeserver::start().await;
    server.has(&[STICKY]);
    let client = client(&server).await;
    let world = World::over(SyncSource::Sliding, server, client);
    let state = SyncState::Unsupported(Unsupported::SlidingSync);
    world.until(&state).await;
    assert_eq!(world.server.polls(), 0, "it is not even asked");
    goes_live_when_it_is_there(world).await;
}

#[tokio::test]
async fn a_feature_that_is_false_is_absent() {
    let server = Homeserver::start().await;
    let features = json!({ STICKY: false, SLIDING: true });
    let versions = json!({ "versions": ["v1.14"], "unstable_features": features });
    server.answers_to("/versions", 200, versions);
    let client = client(&server).await;
    let world = World::of(server, client);
    let state = SyncState::Unsupported(Unsupported::StickyEvents);
    world.until(&state).await;
}

/// The state stays so until the server has it.
#[tokio::test]
async fn a_missing_endpoint_is_unsupported() {
    let mut world = World::start().await;
    world.server.ask().await.refuse(404, "M_UNRECOGNIZED").await;
    let state = SyncState::Unsupported(Unsupported::SlidingSync);
    world.until(&state).await;
    goes_live_when_it_is_there(world).await;
}

/// The server is asked again and again meanwhile.
#[tokio::test]
async fn unsupported_is_logged_once() {
    let world = start_with(&[]).await;
    let state = SyncState::Unsupported(Unsupported::StickyEvents);
    world.until(&state).await;
    for asked in 2..=5 {
        world.sleep_over().await;
        world.settle().await;
        assert_eq!(world.server.count("/versions"), asked);
    }
    let log = log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("MSC4354"), "{}", said[0]);
}

#[tokio::test]
async fn a_feature_lost_during_an_outage_is_unsupported() {
    let (mut world, poll) = World::live(vec![event("a")]).await;
    world.server.has(&[SLIDING]);
    poll.refuse(503, "M_UNKNOWN").await;
    world.until_offline().await;
    let state = SyncState::Unsupported(Unsupported::StickyEvents);
    let mut waited = secs(0);
    while world.sticky.state() != state {
        waited += world.sleep_over().await;
        world.settle().await;
    }
    assert!((secs(5)..=secs(90)).contains(&waited), "{waited:?}");
    world.settle().await;
    assert!(!world.server.is_asked());
}

/// As from a worker of another version, while a server restarts.
#[tokio::test]
async fn one_denial_after_live_is_an_outage() {
    let (mut world, poll) = World::live(vec![event("a")]).await;
    poll.refuse(404, "M_UNRECOGNIZED").await;
    world.until_offline().await;
    let mut waited = world.sleep_over().await;
    let poll = world.server.ask().await;
    assert_eq!(poll.pos(), Some("pos-1"), "it goes on where it stood");
    poll.nothing("pos-2").await;
    world.until(&SyncState::Live).await;

    let poll = world.server.ask().await;
    world.server.has(&[SLIDING]);
    poll.refuse(503, "M_UNKNOWN").await;
    world.until_offline().await;
    for _ in 0..2 {
        waited += world.sleep_over().await;
        world.settle().await;
    }
    world.server.has(&[STICKY, SLIDING]);
    waited += world.sleep_over().await;
    world.server.ask().await.nothing("pos-3").await;
    world.until(&SyncState::Live).await;
    assert!(waited < secs(60), "{waited:?}");
}

/// As a server answers that does not know the extension; and one that does, while nothing is sticky.
async fn without_extension(ask: crate::support::Ask, pos: &str) {
    ask.answer(200, json!({ "pos": pos, "extensions": {} }).to_string()).await;
}

/// The main loop shows a sticky event, which no answer of ours has.
async fn shows_a_sticky_event(world: &World) {
    let timeline = json!({ "events": [event("shown")] });
    world.main_loop(json!({ "join": { ROOM: { "timeline": timeline } } })).await;
}

async fn live_without_extension(source: SyncSource) -> (World, crate::support::Ask) {
    let server = Homeserver::start().await;
    let client = client(&server).await;
    let mut world = World::over(source, server, client);
    without_extension(world.server.ask().await, "pos-1").await;
    world.until(&SyncState::Live).await;
    let poll = world.server.ask().await;
    world.is_in(ROOM).await;
    shows_a_sticky_event(&world).await;
    world.settle().await;
    // Its room is asked for by itself first.
    world.clock.advance(secs(5));
    (world, poll)
}

#[tokio::test]
async fn auto_goes_to_v3_without_the_extension() {
    let (mut world, poll) = live_without_extension(SyncSource::Auto).await;
    without_extension(world.server.ask().await, "own").await;
    world.settle().await;
    assert_eq!(world.sticky.state(), SyncState::Live);
    world.clock.advance(secs(5));
    let ask = world.server.ask().await;
    assert_eq!(ask.path, crate::support::V3_SYNC);
    ask.sections(&[(ROOM, vec![event("shown")])]).await;
    world.until_event_ids(&["$shown"]).await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.sticky.source(), SyncSource::V3);
    poll.given_up().await;
    assert!(log().contains("MSC4480"));
}

#[tokio::test]
async fn sliding_without_the_extension_is_unsupported() {
    let (mut world, poll) = live_without_extension(SyncSource::Sliding).await;
    without_extension(world.server.ask().await, "own").await;
    world.settle().await;
    world.clock.advance(secs(5));
    let state = SyncState::Unsupported(Unsupported::StickyExtension);
    world.until(&state).await;
    // It stays so while nothing comes, and ends when something does.
    without_extension(poll, "pos-2").await;
    let poll = world.server.ask().await;
    world.settle().await;
    assert_eq!(world.sticky.state(), state);
    poll.page("pos-3", "batch-1", ROOM, vec![event("shown")]).await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.event_ids(), ["$shown"]);
}

#[tokio::test]
async fn an_extension_that_brings_anything_is_present() {
    let (mut world, _poll) = live_without_extension(SyncSource::Auto).await;
    // Only the fetch of the room brings something.
    world.server.ask().await.page("own", "own-batch", ROOM, vec![event("another")]).await;
    world.until_event_ids(&["$another"]).await;
    for _ in 0..10 {
        shows_a_sticky_event(&world).await;
        world.clock.advance(secs(60));
        world.settle().await;
    }
    assert!(!world.server.is_asked());
    assert_eq!(
        (world.sticky.state(), world.sticky.source()),
        (SyncState::Live, SyncSource::Sliding)
    );
}

/// Such an answer does not mean that the server lacks the feature.
#[tokio::test]
async fn nonsense_from_versions_is_an_outage() {
    let answers = [
        (200, json!(5)),
        (200, json!({})),
        (200, json!({ "versions": "all", "unstable_features": [] })),
        (404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" })),
        (404, json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
        (500, json!({ "errcode": "M_UNKNOWN", "error": "no" })),
        (400, json!({ "errcode": "M_UNKNOWN_POS", "error": "no" })),
        (400, json!({ "errcode": "M_BAD_JSON", "error": "no" })),
    ];
    for (status, answer) in answers {
        let server = Homeserver::start().await;
        server.answers_to("/versions", status, answer.clone());
        let client = client(&server).await;
        let mut world = World::of(server, client);
        let _ = world.until_offline().await;
        assert_eq!(world.server.polls(), 0, "{answer}");

        world.server.has(&[STICKY, SLIDING]);
        world.sleep_over().await;
        let ask = world.server.ask().await;
        ask.page("pos", "batch", ROOM, vec![event("a")]).await;
        world.until(&SyncState::Live).await;
    }
}
