//! v3 `/sync` as the source: a follower of the application's main loop.
//!
//! That it never asks with a token which the main loop still stands at, nor with one of its own, is
//! looked at in each of its requests, in all these tests: see `Homeserver::ask`.

use matrix_sdk_sticky::{EntryChange, SyncSource, SyncState, Unsupported};
use serde_json::{Value, json};

use crate::support::{
    Ask, Homeserver, NEW_TOKEN, OTHER_ROOM, ROOM, START_MS, TOKEN, V3_SYNC, World, client, event,
    event_lasting, events, log, membership, millis, next_change, refreshable, secs,
};

const STICKY: &str = "org.matrix.msc4354";
const SLIDING: &str = "org.matrix.simplified_msc3575";

/// Just started: nothing has been answered yet but `/versions`.
async fn started() -> World {
    let server = Homeserver::start().await;
    let client = client(&server).await;
    World::over(SyncSource::V3, server, client)
}

/// In these rooms for long, by the main loop's word. Whatever the follower asks for, nothing is there.
async fn in_rooms(rooms: &[&str]) -> World {
    in_rooms_with(started().await, rooms).await
}

async fn in_rooms_with(mut world: World, rooms: &[&str]) -> World {
    // Before there is a token to follow all is asked for once, and once more when there is one.
    world.server.ask().await.sections(&[]).await;
    world.until(&SyncState::Live).await;
    let state = json!({ "state": { "events": [membership("join", 86_400_000)] } });
    let join: Value = rooms.iter().map(|room| ((*room).to_owned(), state.clone())).collect();
    world.main_loop(json!({ "join": join })).await;
    world
}

/// In a room, live with these events, and where the main loop is.
async fn following(events: Vec<Value>) -> World {
    caught_up(in_rooms(&[ROOM]).await, events).await
}

async fn caught_up(mut world: World, events: Vec<Value>) -> World {
    let ids: Vec<_> = events.iter().map(id).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    all(&mut world).await.sections(&[(ROOM, events)]).await;
    world.until_event_ids(&ids).await;
    world.settle().await;
    world.until(&SyncState::Live).await;
    world
}

fn id(event: &Value) -> String {
    event["event_id"].as_str().unwrap().to_owned()
}

/// The main loop has an answer in which nothing is; its token.
async fn moved(world: &World) -> String {
    world.main_loop_with(json!({})).await
}

/// The next question, which is for all that is live in all rooms.
async fn all(world: &mut World) -> Ask {
    let ask = world.server.ask().await;
    assert_eq!((&*ask.path, ask.param("since"), rooms(&ask)), (V3_SYNC, None, None));
    ask
}

/// The next question, which is for all that is live in this room.
async fn all_of(world: &mut World, room: &str) -> Ask {
    let ask = world.ask_sometime().await;
    assert_eq!((&*ask.path, ask.param("since")), (V3_SYNC, None));
    assert_eq!(rooms(&ask), Some(json!([room])));
    ask
}

/// The next question, which is for what came after this token.
async fn after(world: &mut World, token: &str) -> Ask {
    let ask = world.server.ask().await;
    assert_eq!((ask.param("since"), rooms(&ask)), (Some(token), None));
    ask
}

/// The rooms that a question is limited to.
fn rooms(ask: &Ask) -> Option<Value> {
    ask.filter()?["room"].get("rooms").cloned()
}

/// The next question, which is for a page of the room's history.
async fn history(world: &mut World, from: Option<&str>) -> Ask {
    let ask = world.server.ask().await;
    assert!(ask.path.ends_with("/messages"), "{}", ask.path);
    assert_eq!((ask.param("dir"), ask.param("limit")), (Some("b"), Some("100")));
    assert_eq!(ask.param("from"), from);
    ask
}

async fn messages(ask: Ask, events: Vec<Value>, end: Option<&str>) {
    let mut answer = json!({ "start": "t", "chunk": events });
    if let Some(end) = end {
        answer["end"] = json!(end);
    }
    ask.answer(200, answer.to_string()).await;
}

/// A message of this age.
fn message(age_ms: u64) -> Value {
    json!({
        "event_id": format!("$message-{age_ms}"),
        "sender": "@alice:hs",
        "type": "m.room.message",
        "origin_server_ts": START_MS - age_ms,
        "content": { "msgtype": "m.text", "body": "hello" },
        "unsigned": { "age": age_ms },
    })
}

/// The follower finds more in this room than the server gives at once, in a history that is longer
/// than it searches.
async fn too_long(world: &mut World, room: &str) {
    all_of(world, room).await.sections(&[(room, events("a", 100))]).await;
    let mut from = None;
    for page in 0..30 {
        let ask = history(world, from.as_deref()).await;
        let end = format!("t-{page}");
        messages(ask, vec![message(page)], Some(&end)).await;
        from = Some(end);
    }
}

/// In two rooms, in one of which something may be missing.
async fn incomplete() -> World {
    let mut world = in_rooms(&[ROOM, OTHER_ROOM]).await;
    let page = [(OTHER_ROOM, events("a", 99)), (ROOM, vec![event("r")])];
    all(&mut world).await.sections(&page).await;
    too_long(&mut world, OTHER_ROOM).await;
    all_of(&mut world, ROOM).await.sections(&[]).await;
    world.until(&incomplete_in(&[OTHER_ROOM])).await;
    world
}

fn incomplete_in(rooms: &[&str]) -> SyncState {
    SyncState::Incomplete { rooms: rooms.iter().map(|room| (*room).try_into().unwrap()).collect() }
}

/// The request asks for sticky events only.
#[tokio::test]
async fn the_first_question_has_no_token() {
    let mut world = started().await;
    let ask = world.server.ask().await;
    assert_eq!(ask.path, V3_SYNC);
    assert_eq!(ask.authorization.as_deref(), Some(&*format!("Bearer {TOKEN}")));
    assert_eq!(ask.param("since"), None);
    assert_eq!(ask.param("set_presence"), Some("offline"));
    let timeout: u64 = ask.param("timeout").unwrap().parse().unwrap();
    assert!(timeout < 100, "not held");
    let nothing = json!({ "types": [] });
    assert_eq!(
        ask.filter().unwrap(),
        json!({
            "presence": nothing,
            "account_data": nothing,
            "room": {
                "account_data": nothing,
                "ephemeral": nothing,
                "state": nothing,
                // Before what stands in it is taken out of the sticky section.
                "timeline": { "not_types": ["*"] },
            },
        })
    );
    assert_eq!(world.sticky.state(), SyncState::Connecting);
    ask.sections(&[(ROOM, vec![event("a")])]).await;
    world.until(&SyncState::Live).await;
    world.until_event_ids(&["$a"]).await;
    assert_eq!(world.sticky.source(), SyncSource::V3);
}

/// These are the tokens that the main loop has moved on from, each of them, and no other.
#[tokio::test]
async fn it_asks_with_passed_tokens_only() {
    let mut world = following(vec![event("a")]).await;
    let at_first = "s1".to_owned();
    world.clock.advance(secs(60));
    world.settle().await;
    assert!(!world.server.is_asked(), "it is where the main loop is");

    let first = moved(&world).await;
    let ask = after(&mut world, &at_first).await;
    // While that is on its way the main loop goes on.
    let second = moved(&world).await;
    let third = moved(&world).await;
    ask.sections(&[(ROOM, vec![event("b")])]).await;
    after(&mut world, &first).await.sections(&[]).await;
    after(&mut world, &second).await.sections(&[(ROOM, vec![event("b"), event("c")])]).await;
    world.until_event_ids(&["$a", "$b", "$c"]).await;

    world.settle().await;
    world.clock.advance(secs(60));
    world.settle().await;
    assert!(!world.server.is_asked(), "it is at {third}, where the main loop is");
    assert_eq!(world.sticky.state(), SyncState::Live);
}

#[tokio::test]
async fn what_a_section_repeats_is_told_once() {
    let mut world = following(vec![event("a")]).await;
    let mut changes = world.sticky.events().subscribe().changes;
    for repeated in [vec![event("a")], vec![event("a"), event("b")], vec![event("b"), event("a")]] {
        moved(&world).await;
        world.server.ask().await.sections(&[(ROOM, repeated)]).await;
    }
    let change = next_change(&mut changes).await;
    let [EntryChange::Added(entry)] = &*change.entries else { panic!("{change:?}") };
    assert_eq!(entry.event_id(), "$b");
    world.settle().await;
    let next = std::pin::pin!(futures_util::StreamExt::next(&mut changes));
    assert!(futures_util::poll!(next).is_pending());
}

/// All is asked for once more.
///
/// The server may have answered the first question before it had what the main loop's first answer
/// has seen.
#[tokio::test]
async fn a_token_during_the_first_question_starts_over() {
    let mut world = started().await;
    let first = all(&mut world).await;
    let token = moved(&world).await;
    first.sections(&[(ROOM, vec![event("a")])]).await;
    let again = all(&mut world).await;
    world.until_event_ids(&["$a"]).await;
    assert_eq!(world.sticky.state(), SyncState::Connecting, "something may be missing");
    again.sections(&[(ROOM, vec![event("a"), event("between")])]).await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.event_ids(), ["$a", "$between"]);
    moved(&world).await;
    after(&mut world, &token).await.sections(&[]).await;
}

#[tokio::test]
async fn after_a_full_page_each_room_is_asked() {
    let mut world = in_rooms(&[ROOM, OTHER_ROOM]).await;
    let page = [(ROOM, events("a", 60)), (OTHER_ROOM, events("a", 40))];
    all(&mut world).await.sections(&page).await;
    let other = all_of(&mut world, OTHER_ROOM).await;
    world.until(&SyncState::CatchingUp).await;
    assert_eq!(world.event_ids().len(), 100, "the first page is visible");
    // With what is just not a page there is no more.
    other.sections(&[(OTHER_ROOM, events("a", 99))]).await;
    let last = all_of(&mut world, ROOM).await;
    world.settle().await;
    assert_eq!(world.sticky.state(), SyncState::CatchingUp);
    last.sections(&[(ROOM, events("a", 70))]).await;
    world.until(&SyncState::Live).await;
    assert_eq!(world.event_ids().len(), 169);
}

/// Only the last hour of the history is searched.
#[tokio::test]
async fn a_full_room_has_its_history_searched() {
    // What ends it: a page in which all is too old, or the beginning of the room.
    for has_beginning in [false, true] {
        let mut world = in_rooms(&[ROOM]).await;
        all(&mut world).await.sections(&[(ROOM, events("a", 100))]).await;
        all_of(&mut world, ROOM).await.sections(&[(ROOM, events("a", 100))]).await;
        let ask = history(&mut world, None).await;
        assert_eq!(world.sticky.state(), SyncState::CatchingUp);
        messages(ask, vec![message(0), event("b"), message(3_600_000)], Some("t-1")).await;
        let ask = history(&mut world, Some("t-1")).await;
        // Somebody's server says that an event of now is old.
        let page = vec![event("c"), json!(5), message(3_600_001), event("d")];
        messages(ask, page, (!has_beginning).then_some("t-2")).await;
        if !has_beginning {
            let ask = history(&mut world, Some("t-2")).await;
            messages(ask, vec![], Some("t-3")).await;
            let ask = history(&mut world, Some("t-3")).await;
            messages(ask, vec![message(3_600_001), message(9_000_000)], Some("t-4")).await;
        }
        world.until(&SyncState::Live).await;
        assert_eq!(world.event_ids().len(), 103);
        world.settle().await;
        assert!(!world.server.is_asked());
    }
}

#[tokio::test]
async fn a_long_history_is_incomplete_for_an_hour() {
    let mut world = incomplete().await;
    assert_eq!(world.event_ids().len(), 101, "what is shown is right");

    // What comes comes, and it stays incomplete.
    let token = moved(&world).await;
    world.server.ask().await.sections(&[(ROOM, vec![event("b")])]).await;
    moved(&world).await;
    after(&mut world, &token).await.sections(&[]).await;
    world.settle().await;
    assert_eq!(world.event_ids().len(), 102);
    assert_eq!(world.sticky.state(), incomplete_in(&[OTHER_ROOM]));
    world.clock.advance(secs(3_599));
    world.settle().await;
    assert_eq!(world.sticky.state(), incomplete_in(&[OTHER_ROOM]));

    // Nothing is asked, and the main loop has nothing to say.
    world.clock.advance(secs(1));
    world.until(&SyncState::Live).await;
    assert!(!world.server.is_asked());
}

#[tokio::test]
async fn a_whole_or_left_room_is_not_incomplete() {
    let world = incomplete().await;
    let left = json!({ "timeline": { "events": [membership("leave", 10)] } });
    world.main_loop(json!({ "leave": { OTHER_ROOM: left } })).await;
    world.until(&SyncState::Live).await;

    let mut world = incomplete().await;
    let gap = json!({ "timeline": { "limited": true, "prev_batch": "t", "events": [] } });
    world.main_loop(json!({ "join": { OTHER_ROOM: gap } })).await;
    world.server.ask().await.sections(&[]).await;
    all_of(&mut world, OTHER_ROOM).await.sections(&[(OTHER_ROOM, events("a", 99))]).await;
    world.until(&SyncState::Live).await;
}

/// The room stays incomplete when the next room cannot be fetched.
#[tokio::test]
async fn an_incomplete_room_outlasts_a_failed_fetch() {
    let mut world = in_rooms(&[ROOM, OTHER_ROOM]).await;
    let page = [(OTHER_ROOM, events("a", 99)), (ROOM, vec![event("r")])];
    all(&mut world).await.sections(&page).await;
    too_long(&mut world, OTHER_ROOM).await;
    all_of(&mut world, ROOM).await.refuse(500, "M_UNKNOWN").await;
    world.until_offline().await;
    // It goes on where it was.
    all_of(&mut world, ROOM).await.sections(&[(ROOM, vec![event("b")])]).await;
    world.until(&incomplete_in(&[OTHER_ROOM])).await;
    assert_eq!(world.event_ids().len(), 102);
}

/// One hostile member can fill a page, and the account has thousands of rooms.
#[tokio::test]
async fn a_full_page_asks_rooms_with_reason() {
    let names: Vec<_> = (0..3_000).map(|n| format!("!{n:04}:hs")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut world = in_rooms(&names).await;
    // The main loop has shown something sticky in one more.
    let first = all(&mut world).await;
    let timeline = json!({ "events": [event("shown")] });
    world.main_loop(json!({ "join": { "!0007:hs": { "timeline": timeline } } })).await;
    first.sections(&[("!0003:hs", events("a", 100))]).await;
    let others: Vec<_> =
        names.iter().copied().filter(|name| !["!0003:hs", "!0007:hs"].contains(name)).collect();
    let mut asked = Vec::new();
    while world.sticky.state() != incomplete_in(&others) {
        let ask = world.ask_sometime().await;
        asked.push(rooms(&ask).map_or_else(|| ask.path.clone(), |rooms| rooms[0].to_string()));
        match ask.path.ends_with("/messages") {
            true => messages(ask, vec![event("b")], None).await,
            // As Synapse, which does not look at the room.
            false if ask.param("since").is_none() => {
                ask.sections(&[("!0003:hs", events("a", 100))]).await;
            }
            false => ask.sections(&[]).await,
        }
        world.settle().await;
        assert!(asked.len() < 10, "{asked:?}");
    }
    let histories = asked.iter().filter(|path| path.ends_with("/messages")).count();
    // What came after the first token, and each of the two rooms twice: the page and its history.
    assert_eq!((asked.len(), histories), (5, 2), "{asked:?}");
}

#[tokio::test]
async fn an_unreadable_history_is_incomplete() {
    let mut world = in_rooms(&[ROOM]).await;
    all(&mut world).await.sections(&[(ROOM, events("a", 100))]).await;
    all_of(&mut world, ROOM).await.sections(&[(ROOM, events("a", 100))]).await;
    history(&mut world, None).await.refuse(403, "M_FORBIDDEN").await;
    world.until(&incomplete_in(&[ROOM])).await;
}

#[tokio::test]
async fn a_joined_room_is_asked_for_alone() {
    let mut world = following(vec![event("a")]).await;
    let joined = json!({ "timeline": { "events": [membership("join", 10)] } });
    world.main_loop(json!({ "join": { OTHER_ROOM: joined } })).await;
    let mut asks = [world.server.ask().await, world.server.ask().await];
    asks.sort_by_key(|ask| ask.param("since").is_some());
    let [own, news] = asks;
    assert_eq!(rooms(&own), Some(json!([OTHER_ROOM])));
    own.sections(&[(OTHER_ROOM, vec![event("before")])]).await;
    news.sections(&[(OTHER_ROOM, vec![event("after")])]).await;
    world.until_event_ids(&["$after", "$before", "$a"]).await;
}

#[tokio::test]
async fn an_outage_ends_with_the_same_question() {
    for outage in ["an error", "hung up", "half an answer"] {
        let mut world = following(vec![event("a")]).await;
        world.clock.advance(secs(7));
        let first = moved(&world).await;
        let mut ask = after(&mut world, "s1").await;
        for failure in 0..8 {
            match outage {
                "an error" => ask.refuse(500, "M_UNKNOWN").await,
                "hung up" => drop(ask),
                _ => ask.answer_half(r#"{"next_batch":"ours","rooms":{}}"#).await,
            }
            let (since, error) = world.until_offline().await;
            assert_eq!(since, millis(START_MS) + secs(7), "{outage}");
            assert!(!error.is_empty() && !error.contains("since="), "{error}");
            assert_eq!(world.event_ids(), ["$a"], "what is there stays");
            let wait = world.sleep_over().await;
            let middle = millis(250 << failure).min(secs(20));
            assert!((middle / 2 - millis(1)..=middle * 3 / 2).contains(&wait), "{wait:?}");
            ask = after(&mut world, "s1").await;
        }
        // The main loop was not away.
        moved(&world).await;
        ask.sections(&[(ROOM, vec![event("b")])]).await;
        after(&mut world, &first).await.sections(&[(ROOM, vec![event("c")])]).await;
        world.until(&SyncState::Live).await;
        world.until_event_ids(&["$a", "$b", "$c"]).await;
    }
}

#[tokio::test]
async fn a_server_that_returns_is_found_again() {
    let mut world = following(vec![event("a")]).await;
    moved(&world).await;
    let ask = after(&mut world, "s1").await;
    world.server.shut_down().await;
    drop(ask);
    for _ in 0..4 {
        world.until_offline().await;
        world.sleep_over().await;
    }
    world.server.come_back().await;
    let ask = world.ask_sometime().await;
    assert_eq!(ask.param("since"), Some("s1"));
    ask.sections(&[(ROOM, vec![event("b")])]).await;
    world.until(&SyncState::Live).await;
    world.until_event_ids(&["$a", "$b"]).await;
}

#[tokio::test]
async fn a_refused_first_question_makes_no_hot_loop() {
    for (status, errcode) in [
        (500, "M_UNKNOWN"),
        (400, "M_INVALID_PARAM"),
        (403, "M_FORBIDDEN"),
        (404, "M_UNRECOGNIZED"),
    ] {
        let mut world = started().await;
        let polls = world
            .polls_within(secs(600), async |ask| {
                assert_eq!(ask.param("since"), None);
                ask.refuse(status, errcode).await;
            })
            .await;
        assert!((10..=60).contains(&polls), "{errcode}: {polls}");
        world.until_offline().await;
        world.ask_sometime().await.sections(&[(ROOM, vec![event("a")])]).await;
        world.until(&SyncState::Live).await;
        world.until_event_ids(&["$a"]).await;
    }
}

#[tokio::test]
async fn an_unreadable_token_is_not_used_again() {
    let mut world = following(vec![event("a")]).await;
    moved(&world).await;
    after(&mut world, "s1").await.refuse(400, "M_INVALID_PARAM").await;
    let ask = world.ask_sometime().await;
    assert_eq!(ask.param("since"), None);
    ask.sections(&[(ROOM, vec![event("a"), event("b")])]).await;
    world.until_event_ids(&["$a", "$b"]).await;
    world.until(&SyncState::Live).await;
}

/// The requests make no hot loop.
#[tokio::test]
async fn a_room_that_fails_is_an_outage() {
    let mut world = in_rooms(&[ROOM]).await;
    all(&mut world).await.sections(&[(ROOM, events("a", 100))]).await;
    let polls = world
        .polls_within(secs(600), async |ask| {
            assert_eq!(rooms(&ask), Some(json!([ROOM])));
            ask.refuse(500, "M_UNKNOWN").await;
        })
        .await;
    assert!((10..=60).contains(&polls), "{polls}");
    world.until_offline().await;
    all_of(&mut world, ROOM).await.sections(&[(ROOM, events("a", 99))]).await;
    world.until(&SyncState::Live).await;
}

/// The room could not be fetched before we left it.
#[tokio::test]
async fn a_left_room_is_not_fetched_again() {
    let mut world = in_rooms(&[ROOM]).await;
    all(&mut world).await.sections(&[(ROOM, events("a", 100))]).await;
    let ask = all_of(&mut world, ROOM).await;
    let left = json!({ "timeline": { "events": [membership("leave", 10)] } });
    world.main_loop(json!({ "leave": { ROOM: left } })).await;
    after(&mut world, "s1").await.sections(&[]).await;
    world.settle().await;
    ask.refuse(500, "M_UNKNOWN").await;
    world.until_offline().await;
    world.sleep_over().await;
    world.until(&SyncState::Live).await;
    world.clock.advance(secs(600));
    world.settle().await;
    assert!(!world.server.is_asked());
    assert!(world.event_ids().is_empty());
}

#[tokio::test]
async fn retry_after_is_respected_and_the_entries_stay() {
    let mut world = following(vec![event("a")]).await;
    let first = moved(&world).await;
    let mut ask = after(&mut world, "s1").await;
    for ms in [1, 900, 20_000, 3_000] {
        ask.limit(ms).await;
        let wait = world.sleep_over().await;
        assert!(wait >= millis(ms), "asked to wait {ms} ms, waits {wait:?}");
        assert!(wait <= millis(ms) * 2 + secs(5), "{ms} ms, waits {wait:?}");
        ask = after(&mut world, "s1").await;
    }
    // Nor does an answer of the main loop cut the wait short.
    ask.limit(20_000).await;
    world.settle().await;
    moved(&world).await;
    world.settle().await;
    assert!(!world.server.is_asked());
    assert_eq!(world.sticky.state(), SyncState::Live, "that is no outage");
    assert!(world.sleep_over().await >= secs(20));
    after(&mut world, "s1").await.sections(&[(ROOM, vec![event("b")])]).await;
    after(&mut world, &first).await.sections(&[]).await;
    world.until_event_ids(&["$a", "$b"]).await;
}

#[tokio::test]
async fn retry_after_holds_for_fetches_too() {
    let mut world = in_rooms(&[ROOM]).await;
    all(&mut world).await.sections(&[(ROOM, events("a", 100))]).await;
    all_of(&mut world, ROOM).await.limit(100_000).await;
    world.settle().await;
    world.clock.advance(secs(99));
    world.settle().await;
    assert!(!world.server.is_asked());
    assert_eq!(world.sticky.state(), SyncState::CatchingUp);
    all_of(&mut world, ROOM).await.sections(&[(ROOM, events("a", 99))]).await;
    world.until(&SyncState::Live).await;
}

/// The state stays so until there is another token.
#[tokio::test]
async fn a_refused_token_is_logged_out() {
    let server = Homeserver::start().await;
    let client = refreshable(&server).await;
    let world = World::over(SyncSource::V3, server, client);
    let world = in_rooms_with(world, &[ROOM]).await;
    let mut world = caught_up(world, vec![event("a")]).await;
    moved(&world).await;
    after(&mut world, "s1").await.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.until(&SyncState::LoggedOut).await;
    for _ in 0..10 {
        world.clock.advance(secs(60));
        world.settle().await;
    }
    assert!(!world.server.is_asked());
    assert_eq!(
        (world.sticky.state(), world.event_ids()),
        (SyncState::LoggedOut, vec!["$a".into()])
    );

    world.client.refresh_access_token().await.unwrap();
    let ask = after(&mut world, "s1").await;
    assert_eq!(ask.authorization.as_deref(), Some(&*format!("Bearer {NEW_TOKEN}")));
    ask.sections(&[(ROOM, vec![event("b")])]).await;
    world.until(&SyncState::Live).await;
    world.until_event_ids(&["$a", "$b"]).await;
}

#[tokio::test]
async fn a_fetch_with_refused_token_logs_out() {
    let mut world = in_rooms(&[ROOM]).await;
    all(&mut world).await.sections(&[(ROOM, events("a", 100))]).await;
    all_of(&mut world, ROOM).await.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.until(&SyncState::LoggedOut).await;
    for _ in 0..10 {
        world.clock.advance(secs(60));
        world.settle().await;
    }
    assert!(!world.server.is_asked());
    assert_eq!(world.sticky.state(), SyncState::LoggedOut);
}

#[tokio::test]
async fn a_fetched_room_does_not_end_an_outage() {
    let mut world = in_rooms(&[ROOM]).await;
    all(&mut world).await.sections(&[(ROOM, events("a", 100))]).await;
    let ask = all_of(&mut world, ROOM).await;
    moved(&world).await;
    after(&mut world, "s1").await.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.until(&SyncState::LoggedOut).await;
    ask.sections(&[]).await;
    world.settle().await;
    assert_eq!(world.sticky.state(), SyncState::LoggedOut);
}

/// The log has its event id.
#[tokio::test]
async fn a_malformed_event_is_dropped_alone() {
    let mut world = following(vec![]).await;
    let mut no_sender = event("no-sender");
    no_sender["sender"] = json!(5);
    let mut no_content = event("no-content");
    no_content["content"] = json!("secret");
    let page =
        vec![event("a"), json!(5), no_sender, event("b"), json!(null), no_content, event("c")];
    let rooms = [
        ("!", vec![event("lost")]),
        ("not a room", vec![event("lost-too")]),
        (OTHER_ROOM, vec![json!({}), event("d")]),
        (ROOM, page),
    ];
    let first = moved(&world).await;
    after(&mut world, "s1").await.sections(&rooms).await;
    moved(&world).await;
    after(&mut world, &first).await.sections(&[(ROOM, vec![event("e")])]).await;
    world.settle().await;
    let mut live = world.event_ids();
    live.retain(|id| !id.starts_with("$lost"));
    live.sort();
    assert_eq!(live, ["$a", "$b", "$c", "$d", "$e"]);
    assert_eq!(world.sticky.state(), SyncState::Live);
    for id in ["$no-sender", "$no-content"] {
        let log = log();
        let mut lines = log.lines().filter(|line| line.contains(id));
        let line = lines.next().unwrap_or_else(|| panic!("{id} is not in\n{log}"));
        assert!(line.contains("dropped a"), "{line}");
        assert_eq!(lines.next(), None, "said once");
    }
    // One of alice, and one of those that name no sender.
    let log = log();
    let warned = log.lines().filter(|line| line.contains("WARN") && line.contains("dropped a"));
    assert_eq!(warned.count(), 2, "{log}");
}

#[tokio::test]
async fn a_malformed_section_does_not_stop_the_next() {
    let mut world = following(vec![]).await;
    let mut before = "s1".to_owned();
    for (i, section) in [json!(5), json!([]), json!({}), json!({ "events": 5 }), json!(null)]
        .into_iter()
        .enumerate()
    {
        let room = json!({ "msc4354_sticky": section });
        let rest = json!({ "msc4354_sticky": { "events": [event("rest")] } });
        let rooms = json!({ "join": { OTHER_ROOM: room, ROOM: rest } });
        let token = moved(&world).await;
        let answer = json!({ "next_batch": "ours", "rooms": rooms });
        after(&mut world, &before).await.answer(200, answer.to_string()).await;
        let next = moved(&world).await;
        let id = format!("after-{i}");
        after(&mut world, &token).await.sections(&[(ROOM, vec![event(&id)])]).await;
        world.settle().await;
        assert!(world.event_ids().contains(&format!("${id}")), "{i}: {:?}", world.event_ids());
        assert!(world.event_ids().contains(&"$rest".to_owned()), "{i}: {:?}", world.event_ids());
        before = next;
    }
}

#[tokio::test]
async fn what_expires_while_offline_leaves() {
    let mut world = following(vec![event_lasting("a", 60_000)]).await;
    moved(&world).await;
    after(&mut world, "s1").await.refuse(500, "M_UNKNOWN").await;
    world.until_offline().await;
    let mut changes = world.sticky.events().subscribe().changes;
    assert_eq!(world.event_ids(), ["$a"], "it stays until it ends");
    world.clock.advance(secs(60));
    assert!(world.event_ids().is_empty());
    let change = next_change(&mut changes).await;
    assert!(matches!(&*change.entries, [EntryChange::Removed { .. }]), "{change:?}");
    let _ask = after(&mut world, "s1").await;
}

/// The state stays so until the server has them.
#[tokio::test]
async fn without_sticky_events_v3_is_unsupported() {
    for source in [SyncSource::V3, SyncSource::Auto] {
        let server = Homeserver::start().await;
        server.has(&[]);
        let client = client(&server).await;
        let mut world = World::over(source, server, client);
        moved(&world).await;
        world.until(&SyncState::Unsupported(Unsupported::StickyEvents)).await;
        world.settle().await;
        assert!(!world.server.is_asked(), "it is not even asked");

        world.server.has(&[STICKY]);
        let wait = world.sleep_over().await;
        assert!((secs(300)..=secs(900)).contains(&wait), "{wait:?}");
        all(&mut world).await.sections(&[(ROOM, vec![event("a")])]).await;
        world.until(&SyncState::Live).await;
        assert_eq!(world.sticky.source(), SyncSource::V3, "where nothing else is there");
    }
}

/// With sliding sync, `Auto` uses it.
#[tokio::test]
async fn auto_is_v3_without_sliding_sync() {
    for (features, is_v3) in [(&[STICKY][..], true), (&[STICKY, SLIDING], false)] {
        let server = Homeserver::start().await;
        server.has(features);
        let client = client(&server).await;
        let mut world = World::over(SyncSource::Auto, server, client);
        let ask = world.server.ask().await;
        assert_eq!(ask.path == V3_SYNC, is_v3, "{features:?}");
    }
}
