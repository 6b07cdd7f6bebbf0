//! Sessions: not there yet, refused, refreshed; and runtimes that are not there.

use matrix_sdk::Client;
use matrix_sdk_sticky::{StickyClientExt as _, SyncState};
use serde_json::json;

use crate::support::{
    Homeserver, NEW_TOKEN, REFRESH_TOKEN, ROOM, TOKEN, World, anonymous_client, client,
    client_builder, event, log_in, millis, refreshable, secs, until_state, within,
};

/// Logged in with a refresh token, which the SDK uses as soon as the other one is refused.
async fn refreshing(server: &Homeserver) -> Client {
    let client = client_builder(server).handle_refresh_tokens().build().await.unwrap();
    log_in(&client, Some(REFRESH_TOKEN)).await;
    client
}

fn bearer(token: &str) -> Option<String> {
    Some(format!("Bearer {token}"))
}

/// With a refused token nothing is asked any more.
#[tokio::test]
async fn a_refused_token_is_logged_out() {
    for errcode in ["M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"] {
        let (mut world, poll) = World::live(vec![event("a")]).await;
        poll.refuse(401, errcode).await;
        world.until(&SyncState::LoggedOut).await;
        let asked = (world.server.polls(), world.server.count("/versions"));
        for _ in 0..20 {
            world.clock.advance(secs(1_200));
            world.settle().await;
        }
        assert_eq!((world.server.polls(), world.server.count("/versions")), asked);
        assert!(!world.server.is_asked());
        assert_eq!(world.sticky.state(), SyncState::LoggedOut);
    }
}

/// The application refreshes the token.
#[tokio::test]
async fn a_refreshed_token_goes_on_where_it_stood() {
    let server = Homeserver::start().await;
    let client = refreshable(&server).await;
    let mut world = World::of(server, client);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
    world.server.ask().await.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.until(&SyncState::LoggedOut).await;

    world.client.refresh_access_token().await.unwrap();
    // No time passes until it asks again.
    let ask = world.server.ask().await;
    assert_eq!(ask.authorization, bearer(NEW_TOKEN));
    assert_eq!((ask.pos(), ask.since()), (Some("pos-1"), Some("batch-1")));
    ask.page("pos-2", "batch-2", ROOM, vec![event("b")]).await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.event_ids(), ["$a", "$b"]);
}

/// The held poll fails with the old token, and nobody is logged out.
#[tokio::test]
async fn a_token_refreshed_during_a_poll_is_used() {
    let server = Homeserver::start().await;
    let client = refreshable(&server).await;
    let mut world = World::of(server, client);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![]).await;
    let poll = world.server.ask().await;
    world.until(&SyncState::Live).await;
    world.client.refresh_access_token().await.unwrap();
    world.settle().await;

    assert_eq!(poll.authorization, bearer(TOKEN));
    poll.refuse(401, "M_UNKNOWN_TOKEN").await;
    assert!(world.sleep_over().await <= millis(375));
    let ask = world.server.ask().await;
    assert_eq!(ask.authorization, bearer(NEW_TOKEN));
    assert_eq!(world.sticky.state(), SyncState::Live, "nobody was logged out");
}

#[tokio::test]
async fn a_refresh_by_the_sdk_does_not_interrupt() {
    let server = Homeserver::start().await;
    server.answers_to("/refresh", 200, json!({ "access_token": NEW_TOKEN }));
    let client = refreshing(&server).await;
    let mut world = World::of(server, client);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![]).await;
    let poll = world.server.ask().await;
    world.until(&SyncState::Live).await;

    let soft = json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "expired", "soft_logout": true });
    poll.answer(401, soft.to_string()).await;
    let ask = world.server.ask().await;
    assert_eq!(ask.authorization, bearer(NEW_TOKEN));
    assert_eq!(ask.pos(), Some("pos-1"));
    assert_eq!(world.sticky.state(), SyncState::Live);
    ask.page("pos-2", "batch-2", ROOM, vec![event("a")]).await;
    let _poll = world.server.ask().await;
    world.settle().await;
    assert_eq!(world.event_ids(), ["$a"]);
}

#[tokio::test]
async fn a_refresh_that_is_refused_is_logged_out() {
    for (status, errcode) in [(401, "M_UNKNOWN_TOKEN"), (403, "M_FORBIDDEN")] {
        let server = Homeserver::start().await;
        server.answers_to("/refresh", status, json!({ "errcode": errcode, "error": "no" }));
        let client = refreshing(&server).await;
        let mut world = World::of(server, client);
        world.server.ask().await.refuse(401, "M_UNKNOWN_TOKEN").await;
        world.until(&SyncState::LoggedOut).await;
        world.clock.advance(secs(1_200));
        world.settle().await;
        assert!(!world.server.is_asked());
    }
}

/// The refresh is tried again.
#[tokio::test]
async fn a_failed_refresh_is_an_outage() {
    let server = Homeserver::start().await;
    server.answers_to("/refresh", 502, json!({ "errcode": "M_UNKNOWN", "error": "no" }));
    let client = refreshing(&server).await;
    let mut world = World::of(server, client);
    world.server.ask().await.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.until_offline().await;

    world.server.answers_to("/refresh", 200, json!({ "access_token": NEW_TOKEN }));
    let ask = world.ask_sometime().await;
    assert_eq!(ask.authorization, bearer(TOKEN));
    ask.refuse(401, "M_UNKNOWN_TOKEN").await;
    let ask = world.server.ask().await;
    assert_eq!(ask.authorization, bearer(NEW_TOKEN));
    ask.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
    world.until(&SyncState::Live).await;
}

/// The state is live once the client has a session.
#[tokio::test]
async fn a_client_without_a_session_is_connecting() {
    let server = Homeserver::start().await;
    let client = anonymous_client(&server).await;
    let mut world = World::of(server, client);
    for _ in 0..5 {
        assert!(world.sleep_over().await <= millis(200));
        world.settle().await;
    }
    assert_eq!(world.sticky.state(), SyncState::Connecting);
    assert_eq!((world.server.polls(), world.server.count("/versions")), (0, 0));

    log_in(&world.client, None).await;
    let ask = world.ask_sometime().await;
    assert_eq!(ask.authorization, bearer(TOKEN));
    ask.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.event_ids(), ["$a"]);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The next call inside a runtime starts the task.
#[test]
fn a_call_outside_a_runtime_starts_nothing() {
    let runtime = runtime();
    let (mut server, client) = runtime.block_on(async {
        let server = Homeserver::start().await;
        let client = client(&server).await;
        (server, client)
    });

    let sticky = client.sticky();
    assert_eq!(sticky.state(), SyncState::Connecting);
    assert!(sticky.events().snapshot().is_empty());
    runtime.block_on(async {
        server.round_trip().await;
        assert_eq!(server.count("/versions"), 0);

        let _same = client.sticky();
        server.ask().await.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
        until_state(&sticky, "Live", |state| *state == SyncState::Live).await;
        assert_eq!(sticky.events().snapshot().len(), 1);
    });
}

/// The next call starts the task again.
#[test]
fn a_task_restarts_in_another_runtime() {
    let server_runtime = runtime();
    let (mut server, client) = server_runtime.block_on(async {
        let server = Homeserver::start().await;
        let client = client(&server).await;
        (server, client)
    });
    let first = runtime();
    let sticky = first.block_on(async { client.sticky() });
    drop(first);

    server_runtime.block_on(async {
        let _same = client.sticky();
        server.ask().await.page("pos-1", "batch-1", ROOM, vec![event("a")]).await;
        until_state(&sticky, "Live", |state| *state == SyncState::Live).await;
    });
}

/// A view or a stream keeps the task. Once it has stopped, nothing is asked.
#[tokio::test]
async fn dropping_the_last_handle_stops_the_task() {
    let (world, poll) = World::live(vec![event("a")]).await;
    let World { sticky, server, .. } = world;
    let view = sticky.events();
    drop(sticky);
    let changes = view.subscribe().changes;
    drop(view);
    server.round_trip().await;
    let given_up = poll.given_up();
    let mut given_up = std::pin::pin!(given_up);
    assert!(futures_util::poll!(&mut given_up).is_pending(), "a stream is left");

    drop(changes);
    within("the task to end", given_up).await;
}

/// The server refuses each token that it gives.
#[tokio::test]
async fn refused_new_tokens_make_no_hot_loop() {
    let server = Homeserver::start().await;
    let answers = server.answers();
    let client = refreshing(&server).await;
    let mut world = World::of(server, client);
    let mut tokens = 0;
    let polls = world
        .polls_within(secs(600), async |ask| {
            tokens += 1;
            let token = json!({ "access_token": format!("syt_{tokens}") });
            answers.set("/refresh", 200, token);
            ask.refuse(401, "M_UNKNOWN_TOKEN").await;
        })
        .await;
    assert!((10..=120).contains(&polls), "{polls}");
    world.until_offline().await;
}
