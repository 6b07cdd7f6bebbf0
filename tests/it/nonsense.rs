//! A server that talks nonsense: no panic, nothing else lost, no hot loop.

use matrix_sdk_sticky::SyncState;
use serde_json::{Value, json};

use crate::support::{OTHER_ROOM, ROOM, World, body, event, events, log, millis, secs};

/// Whole answers that make no sense, or only in part.
fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let extension = |value: Value| {
        json!({ "pos": "p", "extensions": { "org.matrix.msc4354.sticky_events": value } })
            .to_string()
            .into_bytes()
    };
    let room = |value: Value| extension(json!({ "rooms": { ROOM: value } }));
    let deep = |inner: &str| inner.repeat(100_000).into_bytes();
    vec![
        ("nothing", vec![]),
        ("a brace", b"{".to_vec()),
        ("half of it", body("p", None, json!({})).to_string().into_bytes()[..20].to_vec()),
        ("HTML", b"<!DOCTYPE html><html><body>Bad gateway</body></html>".to_vec()),
        ("null", b"null".to_vec()),
        ("a number", b"5".to_vec()),
        ("a list", b"[]".to_vec()),
        ("a string", b"\"pos\"".to_vec()),
        ("an empty object", b"{}".to_vec()),
        ("two objects", b"{\"pos\":\"p\"}{\"pos\":\"q\"}".to_vec()),
        ("no UTF-8", b"{\"pos\":\"\xff\xfe\"}".to_vec()),
        ("NULs", vec![0; 1_000]),
        ("endless depth", deep("[")),
        ("endless depth of objects", deep("{\"a\":")),
        ("a pos that is a number", b"{\"pos\":5}".to_vec()),
        ("a pos that is null", b"{\"pos\":null}".to_vec()),
        ("a pos that is no Unicode", b"{\"pos\":\"\\ud800\"}".to_vec()),
        ("extensions that are a number", b"{\"pos\":\"p\",\"extensions\":5}".to_vec()),
        ("extensions that are a list", b"{\"pos\":\"p\",\"extensions\":[]}".to_vec()),
        ("an extension that is a number", extension(json!(5))),
        ("an extension that is null", extension(Value::Null)),
        ("an extension that is a list", extension(json!([1, 2]))),
        ("a next_batch that is a number", extension(json!({ "next_batch": 5 }))),
        ("rooms that are a list", extension(json!({ "rooms": [] }))),
        ("rooms that are a string", extension(json!({ "rooms": "none" }))),
        ("a room that is a number", room(json!(5))),
        ("events that are an object", room(json!({ "events": {} }))),
        ("events that are a number", room(json!({ "events": 5 }))),
        ("events of every type", room(json!({ "events": [5, null, "x", [], {}, true] }))),
        (
            "a malformed room id",
            extension(json!({ "rooms": { "no room": { "events": [event("x")] } } })),
        ),
        (
            "a room id that is no Unicode",
            br#"{"pos":"p","extensions":{"org.matrix.msc4354.sticky_events":{"rooms":{"!\ud800:hs":{"events":[]}}}}}"#
                .to_vec(),
        ),
    ]
}

#[tokio::test]
async fn whatever_nonsense_comes_what_comes_after_it_arrives() {
    let mut world = World::start().await;
    for (i, (name, answer)) in nonsense().into_iter().enumerate() {
        world.ask_sometime().await.answer(200, answer).await;
        let ask = world.ask_sometime().await;
        let id = format!("after-{i}");
        ask.page("pos", &format!("batch-{i}"), ROOM, vec![event(&id)]).await;
        let poll = world.server.ask().await;
        world.until(&SyncState::Live).await;
        assert!(world.event_ids().contains(&format!("${id}")), "after {name}");
        poll.nothing("pos").await;
    }
}

#[tokio::test]
async fn whatever_is_refused_what_comes_after_it_arrives() {
    let mut world = World::start().await;
    let statuses = [400, 403, 404, 405, 408, 413, 418, 429, 500, 501, 502, 503, 504, 520];
    let bodies = [
        "",
        "{}",
        "<html><h1>no</h1></html>",
        r#"{"errcode":5}"#,
        r#"{"errcode":"M_NOT_FOUND","error":"no"}"#,
        r#"{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":"soon"}"#,
        r#"{"errcode":"M_FORBIDDEN","error":"no"}"#,
    ];
    for (i, status) in statuses.into_iter().enumerate() {
        for refusal in bodies {
            world.ask_sometime().await.answer(status, refusal).await;
        }
        let id = format!("after-{i}");
        let ask = world.ask_sometime().await;
        ask.page("pos", &format!("batch-{i}"), ROOM, vec![event(&id)]).await;
        let poll = world.server.ask().await;
        world.until(&SyncState::Live).await;
        assert!(world.event_ids().contains(&format!("${id}")), "{status}");
        poll.nothing("pos").await;
    }
}

#[tokio::test]
async fn unreadable_answers_make_no_hot_loop() {
    for (name, answer) in nonsense() {
        let mut world = World::start().await;
        let polls = world.polls_within(secs(120), async |ask| ask.answer(200, &answer).await).await;
        assert!((5..=30).contains(&polls), "{name}: {polls} requests");
    }
}

/// The log has its event id.
#[tokio::test]
async fn a_malformed_event_is_dropped_alone() {
    let mut world = World::start().await;
    let mut no_sender = event("no-sender");
    no_sender["sender"] = json!(5);
    let mut no_content = event("no-content");
    no_content["content"] = json!("secret");
    let mut no_time = event("no-time");
    no_time["origin_server_ts"] = json!("yesterday");
    let rooms = json!({
        "!": { "events": [event("lost")] },
        "not a room": { "events": [event("lost-too")] },
        ROOM: { "events": [event("a"), 5, no_sender, event("b"), null, no_content, event("c")] },
        OTHER_ROOM: { "events": [no_time, event("d")] },
    });
    let answer = body("pos-1", Some("batch-1"), rooms).to_string();
    world.server.ask().await.answer(200, answer).await;

    let ask = world.server.ask().await;
    assert_eq!(ask.since(), Some("batch-1"));
    world.until(&SyncState::Live).await;
    let mut live = world.event_ids();
    live.retain(|id| !id.starts_with("$lost"));
    live.sort();
    assert_eq!(live, ["$a", "$b", "$c", "$d"]);
    for id in ["$no-sender", "$no-content", "$no-time"] {
        let log = log();
        let mut lines = log.lines().filter(|line| line.contains(id));
        let line = lines.next().unwrap_or_else(|| panic!("{id} is not in\n{log}"));
        assert!(line.contains("dropped a"), "{line}");
        assert_eq!(lines.next(), None, "said once");
    }
    // In one room one of alice, and one of those that name no sender; and one in another.
    let log = log();
    let warned = log.lines().filter(|line| line.contains("WARN") && line.contains("dropped a"));
    assert_eq!(warned.count(), 3, "{log}");
}

#[tokio::test]
async fn hostile_contents_cost_nothing_else() {
    let mut world = World::start().await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let huge = "x".repeat(2 << 20);
    let hostile = [
        format!(r#"{{"event_id":"$deep","sender":"@a:hs","type":"t","origin_server_ts":1700000000000,"sticky":{{"duration_ms":60000}},"content":{{"sticky_key":"d","deep":{deep}}}}}"#),
        format!(r#"{{"event_id":"$huge","sender":"@a:hs","type":"t","origin_server_ts":1700000000000,"sticky":{{"duration_ms":60000}},"content":{{"sticky_key":"h","huge":"{huge}"}}}}"#),
        r#"{"event_id":"$surrogate","sender":"@a:hs","type":"t","origin_server_ts":1700000000000,"sticky":{"duration_ms":60000},"content":{"sticky_key":"s","body":"\ud800"}}"#.to_owned(),
        r#"{"event_id":"$null","sender":"@a:hs","type":"t","origin_server_ts":1700000000000,"sticky":{"duration_ms":60000},"content":{"sticky_key":"n"},"unsigned":null}"#.to_owned(),
        r#"{"event_id":"$escaped","sender":"@a:hs","type":"t","origin_server_ts":1700000000000,"sticky":{"duration_ms":60000},"content":{"sticky\u005fkey":"e","body":"x"}}"#.to_owned(),
    ];
    let answer = format!(
        r#"{{"pos":"pos-1","extensions":{{"org.matrix.msc4354.sticky_events":{{"next_batch":"b","rooms":{{"{ROOM}":{{"events":[{},{},{}]}}}}}}}}}}"#,
        event("before"),
        hostile.join(","),
        event("after"),
    );
    world.server.ask().await.answer(200, answer).await;
    let _poll = world.server.ask().await;
    world.until(&SyncState::Live).await;
    let live = world.event_ids();
    for id in ["$before", "$after", "$escaped"] {
        assert!(live.contains(&id.to_owned()), "{id} in {live:?}");
    }
    assert!(!live.contains(&"$huge".to_owned()));
    assert!(log().contains("$huge"));
}

#[tokio::test]
async fn empty_answers_at_once_make_no_hot_loop() {
    let mut world = World::start().await;
    let polls = world.polls_within(secs(600), async |ask| ask.nothing("pos").await).await;
    assert!((10..=60).contains(&polls), "{polls}");
    assert_eq!(world.sticky.state(), SyncState::Live, "that is no outage");
}

/// Each answer has nothing, and a new `next_batch` for it.
#[tokio::test]
async fn empty_pages_with_tokens_make_no_hot_loop() {
    let mut world = World::start().await;
    let mut batch = 0;
    let polls = world
        .polls_within(secs(600), async |ask| {
            batch += 1;
            ask.page("pos", &format!("batch-{batch}"), ROOM, vec![]).await;
        })
        .await;
    assert!((10..=60).contains(&polls), "{polls}");
}

#[tokio::test]
async fn the_same_full_page_makes_no_hot_loop() {
    let mut world = World::start().await;
    let polls = world
        .polls_within(secs(600), async |ask| {
            ask.page("pos", "the same", ROOM, events("a", 100)).await;
        })
        .await;
    assert!((10..=60).contains(&polls), "{polls}");
    assert_eq!(world.sticky.state(), SyncState::CatchingUp);
}

/// The events arrive, though they have no `next_batch`.
#[tokio::test]
async fn events_without_a_token_make_no_hot_loop() {
    let mut world = World::start().await;
    let answer = body("pos", None, json!({ ROOM: { "events": [event("a")] } })).to_string();
    let polls = world.polls_within(secs(50), async |ask| ask.answer(200, &answer).await).await;
    assert!((4..=30).contains(&polls), "{polls}");
    assert_eq!(world.sticky.state(), SyncState::Live);
}

/// After answers that came at once, the poll that follows a held one is asked at once.
#[tokio::test]
async fn a_held_poll_ends_the_waits() {
    let mut world = World::start().await;
    for _ in 0..6 {
        world.ask_sometime().await.nothing("pos").await;
    }
    // Now it holds the poll, as it should.
    let ask = world.ask_sometime().await;
    world.clock.advance(secs(30));
    ask.nothing("pos").await;
    for _ in 0..2 {
        let ask = world.server.ask().await;
        world.clock.advance(millis(1_500));
        ask.nothing("pos").await;
    }
    let _poll = world.server.ask().await;
}
