//! Delayed events on servers of each iteration of MSC4140, that refuse, lose answers, or tell what
//! nobody may read.

use std::time::{Duration, UNIX_EPOCH};

use matrix_sdk::ruma::api::client::delayed_events::update_delayed_event::{self, UpdateAction};
use matrix_sdk_sticky::{
    DelayId, DelayedError, PrepareError, RoomSticky, StickyContent, SyncState, Unsupported,
    delayed::{PreparedEvent, ScheduleDelayed},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    Ask, Homeserver, ME, NEW_TOKEN, REFRESH_TOKEN, ROOM, TOKEN, World, all_logs, client,
    client_builder, log_in, millis, secs, within,
};

#[derive(Serialize, Deserialize)]
struct Presence {
    status: String,
}

impl StickyContent for Presence {
    const TYPE: &str = "com.example.t";
}

fn gone() -> Presence {
    Presence { status: "gone".to_owned() }
}

const SECRET: &str = "syd_the_delay_id";

const BASE: &str = "/_matrix/client/unstable/org.matrix.msc4140";

const FEATURES: [&str; 3] =
    ["org.matrix.msc4354", "org.matrix.simplified_msc3575", "org.matrix.msc4140"];

const CAPABILITIES: &str = "/v3/capabilities";

/// Returns a world whose server has delayed events, the door to a room, and the long poll that is held.
async fn at_the_door() -> (World, RoomSticky, Ask) {
    let (world, poll) = World::live(vec![]).await;
    world.server.has(&FEATURES);
    let door = world.is_in(ROOM).await;
    (world, door, poll)
}

type Doing<T> = JoinHandle<Result<T, DelayedError>>;

fn start(schedule: ScheduleDelayed) -> Doing<DelayId> {
    tokio::spawn(schedule.into_future())
}

fn schedule(door: &RoomSticky) -> Doing<DelayId> {
    start(door.schedule(&gone(), secs(15)).with_sticky_key("k"))
}

async fn outcome<T>(doing: Doing<T>) -> Result<T, DelayedError> {
    within("it to be done", doing).await.unwrap()
}

async fn prepared(door: &RoomSticky) -> PreparedEvent {
    let schedule = door.schedule(&gone(), secs(15)).with_sticky_key("k");
    within("it to be prepared", schedule.prepare()).await.unwrap()
}

/// One try to schedule it.
fn put(world: &World, event: &PreparedEvent) -> Doing<DelayId> {
    let (events, event) = (world.sticky.delayed_events(), event.clone());
    tokio::spawn(async move { events.schedule(&event).with_timeout(secs(5)).await })
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Restart,
    Send,
    Cancel,
}

const ACTS: [(Act, &str); 3] =
    [(Act::Restart, "restart"), (Act::Send, "send"), (Act::Cancel, "cancel")];

fn act(world: &World, act: Act) -> Doing<()> {
    let events = world.sticky.delayed_events();
    tokio::spawn(async move {
        let id = DelayId::from(SECRET.to_owned());
        let done = match act {
            Act::Restart => events.restart(&id),
            Act::Send => events.send(&id),
            Act::Cancel => events.cancel(&id),
        };
        done.with_timeout(secs(5)).await
    })
}

async fn scheduled(ask: Ask) {
    ask.answer(200, json!({ "delay_id": SECRET }).to_string()).await;
}

fn assert_no_more(world: &mut World) {
    assert!(!world.server.is_sent_more());
}

/// What is asked under the old form.
fn old_form(ask: &Ask) -> &str {
    let path = format!("/_matrix/client/v3/rooms/{ROOM}/send/com.example.t/");
    assert_eq!(ask.method, "PUT");
    assert_eq!(ask.param("org.matrix.msc4140.delay"), Some("15000"));
    assert_eq!(ask.param("org.matrix.msc4354.sticky_duration_ms"), Some("3600000"));
    assert_eq!(ask.body, content());
    ask.path.strip_prefix(&path).unwrap()
}

/// What is asked under the new form.
fn new_form(ask: &Ask) -> &str {
    let path = format!("{BASE}/rooms/{ROOM}/delayed_event/com.example.t/");
    assert_eq!(ask.method, "PUT");
    assert_eq!(ask.query.len(), 1);
    assert_eq!(ask.param("org.matrix.msc4354.sticky_duration_ms"), Some("3600000"));
    assert_eq!(ask.body, json!({ "delay": 15_000, "delay_ms": 15_000, "content": content() }));
    ask.path.strip_prefix(&path).unwrap()
}

fn content() -> Value {
    json!({ "status": "gone", "sticky_key": "k", "msc4354_sticky_key": "k" })
}

/// The dedicated endpoint may forget that the event is to be sticky.
#[tokio::test]
async fn a_sticky_event_uses_the_query_form() {
    let (mut world, door, _poll) = at_the_door().await;
    let mut transactions = Vec::new();
    for _ in 0..2 {
        let doing = schedule(&door);
        let ask = world.server.sent().await;
        transactions.push(old_form(&ask).to_owned());
        assert_eq!(ask.authorization.as_deref(), Some(&*format!("Bearer {TOKEN}")));
        scheduled(ask).await;
        assert_eq!(outcome(doing).await.unwrap().as_secret_str(), SECRET);
        assert_no_more(&mut world);
    }
    assert_ne!(transactions[0], transactions[1]);
    assert_eq!(world.server.count("/client/versions"), VERSIONS_OF_THE_SYNC + 1);
}

#[tokio::test]
async fn an_ordinary_event_uses_the_known_form() {
    let (mut world, door, _poll) = at_the_door().await;
    let ordinary = || start(door.schedule(&gone(), secs(15)).not_sticky());
    for is_new in [true, false, true] {
        // The form that was known is not, any more.
        let doing = ordinary();
        let ask = world.server.sent().await;
        assert_eq!(ask.path.contains("/delayed_event/"), is_new, "{}", ask.path);
        ask.refuse(404, "M_UNRECOGNIZED").await;
        let ask = world.server.sent().await;
        assert_eq!(ask.path.contains("/delayed_event/"), !is_new, "{}", ask.path);
        scheduled(ask).await;
        outcome(doing).await.unwrap();

        let doing = ordinary();
        let ask = world.server.sent().await;
        assert_eq!(ask.path.contains("/delayed_event/"), !is_new, "{}", ask.path);
        scheduled(ask).await;
        outcome(doing).await.unwrap();
        assert_no_more(&mut world);
    }
}

const PROBE: &str = "syd_the_probe";

/// Lets the server refuse the query form, and take the probe of the dedicated endpoint. Returns the
/// request that looks for the probe.
async fn probed(world: &mut World) -> Ask {
    let ask = world.server.sent().await;
    old_form(&ask);
    ask.refuse(404, "M_UNRECOGNIZED").await;
    let ask = world.server.sent().await;
    assert!(ask.path.contains("/delayed_event/com.example.t/"), "{}", ask.path);
    assert_eq!(ask.param("org.matrix.msc4354.sticky_duration_ms"), Some("3600000"));
    let content = ask.body["content"].as_object().unwrap();
    assert_eq!(content.len(), 2, "nothing but a key: {content:?}");
    assert!(content["sticky_key"].as_str().unwrap().len() >= 32, "{content:?}");
    assert_eq!(content["sticky_key"], content["msc4354_sticky_key"]);
    ask.answer(200, json!({ "delay_id": PROBE }).to_string()).await;
    fired(world).await
}

/// Lets the server send the probe. Returns the request that looks for it.
async fn fired(world: &mut World) -> Ask {
    let ask = world.server.sent().await;
    assert_eq!(ask.path, format!("{BASE}/delayed_events/{PROBE}/send"));
    ask.answer(200, "{}").await;
    looked_for(world).await
}

async fn looked_for(world: &mut World) -> Ask {
    let ask = world.server.ask().await;
    assert_eq!(ask.path, format!("/_matrix/client/v3/rooms/{ROOM}/messages"));
    assert_eq!((ask.param("dir"), ask.param("limit")), (Some("b"), Some("20")));
    assert_eq!(ask.filter(), Some(json!({ "types": ["com.example.t"], "senders": [ME] })));
    ask
}

/// The room's history has the probe, sticky or not, behind another event.
async fn show_probe(ask: Ask, is_sticky: bool) {
    let event = |delay_id: &str, is_sticky: bool| {
        let mut event = json!({
            "event_id": "$probe", "sender": ME, "type": "com.example.t", "origin_server_ts": 1,
            "content": {}, "unsigned": { "org.matrix.msc4140.delay_id": delay_id },
        });
        if is_sticky {
            event["msc4354_sticky"] = json!({ "duration_ms": 3_600_000 });
        }
        event
    };
    let chunk = [event("syd_other", !is_sticky), event(PROBE, is_sticky)];
    ask.answer(200, json!({ "start": "s", "end": "e", "chunk": chunk }).to_string()).await;
}

async fn show_nothing(ask: Ask) {
    ask.answer(200, json!({ "start": "s", "end": "e", "chunk": [] }).to_string()).await;
}

/// The proof shows that the endpoint keeps stickiness.
#[tokio::test]
async fn the_dedicated_endpoint_is_proved_once() {
    let (mut world, door, _poll) = at_the_door().await;
    // Both at once.
    let both = [schedule(&door), schedule(&door)];
    let ask = world.server.sent().await;
    let other = world.server.sent().await;
    old_form(&other);
    other.refuse(404, "M_UNRECOGNIZED").await;
    old_form(&ask);
    ask.refuse(404, "M_UNRECOGNIZED").await;
    let ask = world.server.sent().await;
    assert!(ask.path.contains("/delayed_event/com.example.t/"), "{}", ask.path);
    ask.answer(200, json!({ "delay_id": PROBE }).to_string()).await;
    let ask = fired(&mut world).await;
    world.settle().await;
    assert_no_more(&mut world);
    show_probe(ask, true).await;
    for _ in 0..2 {
        let ask = world.server.sent().await;
        new_form(&ask);
        scheduled(ask).await;
    }
    for doing in both {
        outcome(doing).await.unwrap();
    }
    // From now on it comes first.
    let doing = schedule(&door);
    let ask = world.server.sent().await;
    new_form(&ask);
    scheduled(ask).await;
    outcome(doing).await.unwrap();
    assert_no_more(&mut world);
}

#[tokio::test]
async fn an_unsticky_endpoint_gets_no_sticky_event() {
    let (mut world, door, _poll) = at_the_door().await;
    let doing = schedule(&door);
    let ask = probed(&mut world).await;
    show_probe(ask, false).await;
    let error = outcome(doing).await.unwrap_err();
    assert!(matches!(error, DelayedError::ForgetsStickiness), "{error:?}");
    assert!(!error.may_have_happened() && error.to_string().contains("sticky"), "{error}");

    // It is not tried each time,
    let doing = schedule(&door);
    world.server.sent().await.refuse(404, "M_UNRECOGNIZED").await;
    let error = outcome(doing).await.unwrap_err();
    assert!(matches!(error, DelayedError::ForgetsStickiness), "{error:?}");
    assert_no_more(&mut world);
    // an ordinary event may have it,
    let doing = start(door.schedule(&gone(), secs(15)).not_sticky());
    let ask = world.server.sent().await;
    assert!(ask.path.contains("/delayed_event/"), "{}", ask.path);
    scheduled(ask).await;
    outcome(doing).await.unwrap();
    // and an hour later it may be a newer one.
    world.clock.advance(secs(3_600));
    let doing = schedule(&door);
    let ask = probed(&mut world).await;
    show_probe(ask, true).await;
    let ask = world.server.sent().await;
    new_form(&ask);
    scheduled(ask).await;
    outcome(doing).await.unwrap();
}

/// The server is asked for its fate.
#[tokio::test]
async fn a_lost_probe_is_not_repeated() {
    let (mut world, door, _poll) = at_the_door().await;
    let event = prepared(&door).await;
    // The answer to its sending is lost.
    let doing = put(&world, &event);
    world.server.sent().await.refuse(404, "M_UNRECOGNIZED").await;
    let ask = world.server.sent().await;
    ask.answer(200, json!({ "delay_id": PROBE }).to_string()).await;
    drop(world.server.sent().await);
    let error = outcome(doing).await.unwrap_err();
    assert!(matches!(error, DelayedError::Unreachable { .. }), "{error:?}");
    // It is not there in time.
    let doing = put(&world, &event);
    world.server.sent().await.refuse(404, "M_UNRECOGNIZED").await;
    let mut ask = fired(&mut world).await;
    let error = loop {
        show_nothing(ask).await;
        world.settle().await;
        if doing.is_finished() {
            break outcome(doing).await.unwrap_err();
        }
        world.sleep_over().await;
        ask = looked_for(&mut world).await;
    };
    assert!(matches!(error, DelayedError::ForgetsStickiness), "{error:?}");
    // It is there now, and was sent before.
    let doing = put(&world, &event);
    world.server.sent().await.refuse(404, "M_UNRECOGNIZED").await;
    world.server.sent().await.refuse(404, "M_NOT_FOUND").await;
    let ask = looked_for(&mut world).await;
    show_probe(ask, true).await;
    let ask = world.server.sent().await;
    assert_eq!(new_form(&ask), event.transaction_id().as_str());
    scheduled(ask).await;
    outcome(doing).await.unwrap();
}

/// MSC4140 has a server reject the query form once it has given it up, and not with which words.
#[tokio::test]
async fn a_rejected_query_form_leads_to_the_proof() {
    for (status, errcode) in [
        (404, "M_UNRECOGNIZED"),
        (400, "M_UNRECOGNIZED"),
        (400, "M_INVALID_PARAM"),
        (410, "M_UNKNOWN"),
    ] {
        let (mut world, door, _poll) = at_the_door().await;
        let doing = schedule(&door);
        world.server.sent().await.refuse(status, errcode).await;
        let ask = world.server.sent().await;
        assert!(ask.path.contains("/delayed_event/"), "{status} {errcode}: {}", ask.path);
        // A server that has no such endpoint has meant the event.
        ask.refuse(404, "M_UNRECOGNIZED").await;
        let error = outcome(doing).await.unwrap_err();
        let is_right = match errcode {
            "M_UNRECOGNIZED" => matches!(error, DelayedError::NotSupported { .. }),
            _ => matches!(&error, DelayedError::Refused { status: said, .. } if *said == status),
        };
        assert!(is_right, "{status} {errcode}: {error:?}");
    }
}

/// How often the sync asks for `/versions` until it is live.
const VERSIONS_OF_THE_SYNC: usize = 1;

/// Which form a server knows is remembered.
#[tokio::test]
async fn old_servers_are_asked_in_the_old_form() {
    for (first, name) in ACTS {
        let (mut world, _door, _poll) = at_the_door().await;
        let doing = act(&world, first);
        let ask = world.server.sent().await;
        assert_eq!(ask.method, "POST");
        assert_eq!(ask.path, format!("{BASE}/delayed_events/{SECRET}/{name}"));
        assert_eq!(ask.body, json!({}));
        assert_eq!(ask.authorization.as_deref(), Some(&*format!("Bearer {TOKEN}")));
        ask.refuse(404, "M_UNRECOGNIZED").await;
        let ask = world.server.sent().await;
        assert_eq!(ask.path, format!("{BASE}/delayed_events/{SECRET}"));
        assert_eq!(ask.body, json!({ "action": name }));
        ask.answer(200, "{}").await;
        outcome(doing).await.unwrap();

        for (next, name) in ACTS {
            let doing = act(&world, next);
            let ask = world.server.sent().await;
            assert_eq!(ask.body, json!({ "action": name }), "one request");
            ask.answer(200, "{}").await;
            outcome(doing).await.unwrap();
        }
        assert_no_more(&mut world);
    }
    let (mut world, _door, _poll) = at_the_door().await;
    for (next, name) in ACTS {
        let doing = act(&world, next);
        let ask = world.server.sent().await;
        assert!(ask.path.ends_with(name), "the new form is known");
        ask.answer(200, "{}").await;
        outcome(doing).await.unwrap();
    }
    assert_no_more(&mut world);
}

/// `/versions` is asked again.
#[tokio::test]
async fn without_the_feature_nothing_is_scheduled() {
    let (mut world, door, _poll) = at_the_door().await;
    world.server.has(&FEATURES[..2]);
    for asked in 1..=2 {
        let error = outcome(schedule(&door)).await.unwrap_err();
        assert!(
            matches!(error, DelayedError::NotSupported { may_have_been_sent: false }),
            "{error:?}"
        );
        assert!(error.to_string().contains("MSC4140"));
        assert_eq!(world.server.count("/client/versions"), VERSIONS_OF_THE_SYNC + asked);
    }
    // A server whose administrator has not allowed them does not list them, and tells limits.
    allow(&world, json!({ "max_delay_ms": 0, "max_scheduled": 100 }));
    let error = outcome(schedule(&door)).await.unwrap_err();
    assert!(matches!(error, DelayedError::Disabled), "{error:?}");
    // Delayed events without sticky ones: only for what is not sticky.
    world.server.has(&FEATURES[1..]);
    let error = outcome(schedule(&door)).await.unwrap_err();
    assert!(
        matches!(
            error,
            DelayedError::Prepare(PrepareError::Unsupported(Unsupported::StickyEvents))
        ),
        "{error:?}"
    );
    assert_no_more(&mut world);
    let doing = start(door.schedule(&gone(), secs(15)).not_sticky());
    let ask = world.server.sent().await;
    assert!(ask.query.is_empty());
    scheduled(ask).await;
    outcome(doing).await.unwrap();

    // Nor where it cannot be asked.
    let (mut world, door, _poll) = at_the_door().await;
    world.server.answers_to("/versions", 502, json!({}));
    let error = outcome(schedule(&door)).await.unwrap_err();
    assert!(
        matches!(error, DelayedError::Unreachable { may_have_happened: false, .. }),
        "{error:?}"
    );
    assert_no_more(&mut world);
}

/// The error says that it may.
#[tokio::test]
async fn without_a_delay_id_it_may_be_sent() {
    for answer in [json!({ "event_id": "$sent" }), json!({}), json!({ "delay_id": "" })] {
        let (mut world, door, _poll) = at_the_door().await;
        let doing = schedule(&door);
        world.server.sent().await.answer(200, answer.to_string()).await;
        let error = outcome(doing).await.unwrap_err();
        assert!(
            matches!(error, DelayedError::NotSupported { may_have_been_sent: true }),
            "{error:?}"
        );
        assert!(error.to_string().contains("may have sent"), "{error}");
        assert_no_more(&mut world);

        world.server.has(&FEATURES[..2]);
        let error = outcome(schedule(&door)).await.unwrap_err();
        assert!(!error.may_have_happened(), "it is asked before the next one: {error:?}");
        assert_no_more(&mut world);
    }
}

/// The error comes after one attempt.
#[tokio::test]
async fn each_refusal_to_schedule_is_an_error() {
    type Is = fn(&DelayedError) -> bool;
    let body = |errcode: &str, more: Value| {
        let mut body = json!({ "errcode": errcode, "error": "as the test wants it" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let cases: [(u16, Value, Is); 9] = [
        (400, body("ORG.MATRIX.MSC4140_DELAY_TOO_LARGE", json!({})), |error| {
            // The server's capabilities tell it.
            matches!(error, DelayedError::TooLong { max: Some(max) } if *max == secs(86_400))
        }),
        (
            403,
            body("M_MAX_DELAY_EXCEEDED", json!({ "max_delay": 10_000 })),
            |error| matches!(error, DelayedError::TooLong { max: Some(max) } if *max == secs(10)),
        ),
        (
            400,
            body(
                "M_UNKNOWN",
                json!({
                    "org.matrix.msc4140.errcode": "M_MAX_DELAY_EXCEEDED",
                    "org.matrix.msc4140.max_delay": 10_000,
                }),
            ),
            |error| matches!(error, DelayedError::TooLong { max: Some(max) } if *max == secs(10)),
        ),
        (403, body("M_FORBIDDEN", json!({})), |error| {
            matches!(error, DelayedError::Refused { status: 403, errcode: Some(errcode) }
                if errcode == "M_FORBIDDEN")
        }),
        (429, body("M_LIMIT_EXCEEDED", json!({ "retry_after_ms": 1_200_000 })), |error| {
            matches!(error, DelayedError::QuotaFull { retry_after: Some(wait) }
                if *wait == secs(1_200))
        }),
        (429, body("M_LIMIT_EXCEEDED", json!({ "retry_after_ms": 31_000 })), |error| {
            matches!(error, DelayedError::RateLimited { retry_after: Some(wait) }
                if *wait == secs(31))
        }),
        (404, body("M_NOT_FOUND", json!({})), |error| {
            matches!(error, DelayedError::Refused { status: 404, .. })
        }),
        (413, body("M_TOO_LARGE", json!({})), |error| {
            matches!(error, DelayedError::Refused { status: 413, .. })
        }),
        (401, body("M_UNKNOWN_TOKEN", json!({})), |error| {
            matches!(error, DelayedError::NotLoggedIn)
        }),
    ];
    for (status, answer, is) in cases {
        let (mut world, door, _poll) = at_the_door().await;
        allow(&world, json!({ "max_delay_ms": 86_400_000, "max_scheduled": 100 }));
        let doing = schedule(&door);
        world.server.sent().await.answer(status, answer.to_string()).await;
        let error = outcome(doing).await.unwrap_err();
        assert!(is(&error), "{answer}: {error:?}");
        assert!(!error.may_have_happened(), "{error:?}");
        assert_no_more(&mut world);
    }
}

/// From now on the server tells these limits.
fn allow(world: &World, limits: Value) {
    let capabilities = json!({ "org.matrix.msc4140.delayed_events": limits });
    world.server.answers_to(CAPABILITIES, 200, json!({ "capabilities": capabilities }));
}

/// The server allows no delayed events, or a delay is too long.
#[tokio::test]
async fn a_403_is_read_by_the_limits() {
    let (mut world, door, _poll) = at_the_door().await;
    let refused = async |world: &mut World| {
        let doing = schedule(&door);
        world.server.sent().await.refuse(403, "M_FORBIDDEN").await;
        outcome(doing).await.unwrap_err()
    };
    allow(&world, json!({ "max_delay_ms": 0, "max_scheduled": 100 }));
    let error = refused(&mut world).await;
    assert!(matches!(error, DelayedError::Disabled), "{error:?}");
    allow(&world, json!({ "max_delay_ms": 14_999 }));
    let error = refused(&mut world).await;
    assert!(
        matches!(error, DelayedError::TooLong { max: Some(max) } if max == millis(14_999)),
        "{error:?}"
    );
    allow(&world, json!({ "max_delay_ms": 15_000 }));
    let error = refused(&mut world).await;
    assert!(matches!(error, DelayedError::Refused { status: 403, .. }), "{error:?}");
    world.server.answers_to(CAPABILITIES, 500, json!({}));
    let error = refused(&mut world).await;
    assert!(matches!(error, DelayedError::Refused { status: 403, .. }), "{error:?}");
    assert_no_more(&mut world);
}

#[tokio::test]
async fn the_limits_are_those_of_the_server() {
    let (world, _door, _poll) = at_the_door().await;
    let events = world.sticky.delayed_events();
    allow(&world, json!({ "max_delay_ms": 86_400_000, "max_scheduled": 100 }));
    let limits = within("limits", events.limits()).await.unwrap().unwrap();
    assert_eq!((limits.max_delay, limits.max_scheduled), (Some(secs(86_400)), Some(100)));
    assert!(!limits.is_disabled());
    world.server.answers_to(CAPABILITIES, 200, json!({ "capabilities": {} }));
    assert_eq!(within("limits", events.limits()).await.unwrap(), None);
}

/// These are refusals to restart, send or cancel. The error comes after one request.
#[tokio::test]
async fn each_refusal_to_manage_is_an_error() {
    let (mut world, _door, _poll) = at_the_door().await;
    for (first, _) in ACTS {
        let mut refused = async |status: u16, errcode: &str| {
            let doing = act(&world, first);
            world.server.sent().await.refuse(status, errcode).await;
            let error = outcome(doing).await.unwrap_err();
            assert!(!world.server.is_sent_more(), "{first:?}: {error:?}");
            error
        };
        let error = refused(404, "M_NOT_FOUND").await;
        assert!(matches!(error, DelayedError::Gone), "{first:?}: {error:?}");
        let error = refused(409, "M_UNKNOWN").await;
        let right = match first {
            Act::Restart => matches!(error, DelayedError::Gone),
            Act::Send => matches!(error, DelayedError::AlreadyCancelled),
            Act::Cancel => matches!(error, DelayedError::AlreadySent),
        };
        assert!(right, "{first:?}: {error:?}");
        let error = refused(403, "M_FORBIDDEN").await;
        assert!(matches!(error, DelayedError::Refused { status: 403, .. }), "{error:?}");
        for status in [500, 502, 504] {
            let error = refused(status, "M_UNKNOWN").await;
            assert!(
                matches!(error, DelayedError::Unreachable { may_have_happened: true, .. }),
                "{error:?}"
            );
        }
        let doing = act(&world, first);
        let ask = world.server.sent().await;
        ask.answer_with(429, "Retry-After: 7\r\n", "<html>slow down</html>").await;
        let error = outcome(doing).await.unwrap_err();
        assert!(
            matches!(error, DelayedError::RateLimited { retry_after: Some(wait) } if wait == secs(7)),
            "{error:?}"
        );
        // A portal in the way is no homeserver that has done it.
        let doing = act(&world, first);
        world.server.sent().await.answer(200, "<html>log in to this wifi</html>").await;
        let error = outcome(doing).await.unwrap_err();
        assert!(matches!(error, DelayedError::Unreachable { .. }), "{error:?}");
    }
    for (first, _) in ACTS {
        let doing = act(&world, first);
        for _ in 0..2 {
            world.server.sent().await.answer(404, "<html>not here</html>").await;
        }
        let error = outcome(doing).await.unwrap_err();
        assert!(matches!(error, DelayedError::NotSupported { .. }), "{first:?}: {error:?}");
    }
}

/// It is asked for again under the same transaction id.
#[tokio::test]
async fn a_lost_answer_still_brings_the_delay_id() {
    for lost in ["hung up", "half of it", "a gateway's error", "a portal's page"] {
        let (mut world, door, _poll) = at_the_door().await;
        let doing = schedule(&door);
        let first = world.server.sent().await;
        let what = (first.path.clone(), first.query.clone(), first.body.clone());
        let answer = json!({ "delay_id": SECRET }).to_string();
        match lost {
            "hung up" => drop(first),
            "half of it" => first.answer_half(&answer).await,
            "a portal's page" => first.answer(200, "<html>log in to this wifi</html>").await,
            _ => first.refuse(502, "M_UNKNOWN").await,
        }
        world.settle().await;
        let wait = world.sleep_over().await;
        assert!(wait <= millis(375), "{lost}: {wait:?}");
        let again = world.server.sent().await;
        assert_eq!((again.path.clone(), again.query.clone(), again.body.clone()), what, "{lost}");
        again.answer(200, answer).await;
        assert_eq!(outcome(doing).await.unwrap().as_secret_str(), SECRET);
        assert_no_more(&mut world);
    }
}

/// The error says that it may.
#[tokio::test]
async fn after_six_attempts_one_may_have_arrived() {
    let (mut world, door, _poll) = at_the_door().await;
    let doing = schedule(&door);
    for tried in 1..=6 {
        drop(world.server.sent().await);
        if tried == 5 {
            // Nobody takes the last one.
            world.settle().await;
            world.server.shut_down().await;
            world.sleep_over().await;
            break;
        }
        world.settle().await;
        world.sleep_over().await;
    }
    let error = outcome(doing).await.unwrap_err();
    assert!(error.may_have_happened(), "{error:?}");
    assert!(error.to_string().contains("not known"), "{error}");
}

/// Each time is one attempt. After a restart of the process the request is the same.
#[tokio::test]
async fn a_prepared_event_repeats_the_same_request() {
    let (mut world, door, _poll) = at_the_door().await;
    let event = prepared(&door).await;
    assert_no_more(&mut world);
    let stored = serde_json::to_string(&event).unwrap();
    let doing = put(&world, &event);
    let first = world.server.sent().await;
    let what = (first.path.clone(), first.query.clone(), first.body.clone());
    assert_eq!(old_form(&first), event.transaction_id().as_str());
    drop(first);
    let error = outcome(doing).await.unwrap_err();
    assert!(
        matches!(error, DelayedError::Unreachable { may_have_happened: true, .. }),
        "{error:?}"
    );
    assert_no_more(&mut world);

    // The application has died, and finds it in its store.
    let found: PreparedEvent = serde_json::from_str(&stored).unwrap();
    let (mut world, _door, _poll) = at_the_door().await;
    let doing = put(&world, &found);
    let again = world.server.sent().await;
    assert_eq!((again.path.clone(), again.query.clone(), again.body.clone()), what);
    scheduled(again).await;
    assert_eq!(outcome(doing).await.unwrap().as_secret_str(), SECRET);

    let named = door.schedule(&gone(), secs(15)).with_transaction_id("mine");
    let event = within("it to be prepared", named.prepare()).await.unwrap();
    assert_eq!(event.transaction_id().as_str(), "mine");
}

/// And no caller waits longer.
#[tokio::test]
async fn nothing_is_asked_after_its_time() {
    let (mut world, door, _poll) = at_the_door().await;
    let event = prepared(&door).await;
    let doing = put(&world, &event);
    let ask = world.server.sent().await;
    world.clock.advance(millis(4_999));
    world.settle().await;
    assert!(!doing.is_finished());
    world.clock.advance(millis(1));
    let error = outcome(doing).await.unwrap_err();
    assert!(
        matches!(error, DelayedError::Unreachable { may_have_happened: true, .. }),
        "{error:?}"
    );
    ask.given_up().await;

    // The other form, but not after its time.
    let doing = put(&world, &event);
    let ask = world.server.sent().await;
    world.clock.jump_unnoticed(secs(5));
    ask.refuse(404, "M_UNRECOGNIZED").await;
    outcome(doing).await.unwrap_err();
    assert_no_more(&mut world);

    for (first, _) in ACTS {
        let doing = act(&world, first);
        let ask = world.server.sent().await;
        world.clock.advance(secs(5));
        assert!(outcome(doing).await.unwrap_err().may_have_happened());
        ask.given_up().await;
    }
}

#[tokio::test]
async fn where_connections_are_refused_nothing_was_done() {
    let (mut world, door, _poll) = at_the_door().await;
    let event = prepared(&door).await;
    world.server.shut_down().await;
    let error = outcome(put(&world, &event)).await.unwrap_err();
    assert!(
        matches!(error, DelayedError::Unreachable { may_have_happened: false, .. }),
        "{error:?}"
    );
    for (first, _) in ACTS {
        let error = outcome(act(&world, first)).await.unwrap_err();
        assert!(!error.may_have_happened(), "{error:?}");
        assert!(error.to_string().contains("nothing was done"), "{error}");
    }
}

/// Then the same request goes out once more.
#[tokio::test]
async fn an_expired_token_is_refreshed() {
    let server = Homeserver::start().await;
    server.has(&FEATURES);
    server.answers_to("/refresh", 200, json!({ "access_token": NEW_TOKEN }));
    let client = client_builder(&server).handle_refresh_tokens().build().await.unwrap();
    log_in(&client, Some(REFRESH_TOKEN)).await;
    let mut world = World::of(server, client);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![]).await;
    let _poll = world.server.ask().await;
    world.until(&SyncState::Live).await;

    let whoami = json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "expired", "soft_logout": true });
    world.server.answers_to("/account/whoami", 401, whoami);
    let doing = act(&world, Act::Restart);
    let ask = world.server.sent().await;
    assert_eq!(ask.authorization.as_deref(), Some(&*format!("Bearer {TOKEN}")));
    ask.refuse(401, "M_UNKNOWN_TOKEN").await;
    let ask = world.server.sent().await;
    assert_eq!(ask.authorization.as_deref(), Some(&*format!("Bearer {NEW_TOKEN}")));
    assert_eq!(ask.path, format!("{BASE}/delayed_events/{SECRET}/restart"));
    ask.answer(200, "{}").await;
    outcome(doing).await.unwrap();
    assert_no_more(&mut world);
}

/// The server asks for no token here.
#[tokio::test]
async fn after_a_logout_an_event_can_be_sent() {
    let (mut world, _door, _poll) = at_the_door().await;
    let doing = act(&world, Act::Send);
    world.server.sent().await.refuse(401, "M_UNKNOWN_TOKEN").await;
    let ask = world.server.sent().await;
    assert_eq!(ask.authorization, None);
    ask.answer(200, "{}").await;
    outcome(doing).await.unwrap();

    let doing = act(&world, Act::Send);
    world.server.sent().await.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.server.sent().await.refuse(401, "M_MISSING_TOKEN").await;
    let error = outcome(doing).await.unwrap_err();
    assert!(matches!(error, DelayedError::NotLoggedIn), "{error:?}");
    assert_no_more(&mut world);
}

#[tokio::test]
async fn what_is_scheduled_is_listed() {
    let (mut world, _door, _poll) = at_the_door().await;
    let events = world.sticky.delayed_events();
    let list = tokio::spawn(async move { events.list().await });
    let ask = world.server.sent().await;
    assert_eq!((&*ask.method, &*ask.path), ("GET", &*format!("{BASE}/delayed_events")));
    // As Synapse answers.
    let event = json!({
        "delay_id": SECRET, "room_id": ROOM, "type": "com.example.t", "content": content(),
        "delay": 15_000, "delay_ms": 15_000, "running_since": 5_000, "delayed_since_ts": 5_000,
    });
    ask.answer(200, json!({ "delayed_events": [event] }).to_string()).await;
    let list = outcome(list).await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].delay_id.as_secret_str(), SECRET);
    assert_eq!((list[0].room_id.as_str(), &*list[0].event_type), (ROOM, "com.example.t"));
    assert_eq!((list[0].delay, list[0].waits_since), (secs(15), UNIX_EPOCH + secs(5)));

    let events = world.sticky.delayed_events();
    let list = tokio::spawn(async move { events.list().await });
    world.server.sent().await.refuse(404, "M_UNRECOGNIZED").await;
    let error = outcome(list).await.unwrap_err();
    assert!(matches!(error, DelayedError::NotSupported { .. }), "{error:?}");
}

/// It was prepared before the room became encrypted.
#[tokio::test]
async fn plaintext_is_not_scheduled_into_encrypted_rooms() {
    let (mut world, door, _poll) = at_the_door().await;
    let event = prepared(&door).await;
    let doing = schedule(&door);
    drop(world.server.sent().await);
    world.settle().await;
    let encryption = json!({
        "event_id": "$encryption", "sender": ME, "type": "m.room.encryption", "state_key": "",
        "origin_server_ts": 1, "content": { "algorithm": "m.megolm.v1.aes-sha2" },
    });
    let room = json!({ "state": { "events": [encryption] } });
    world.main_loop(json!({ "join": { ROOM: room } })).await;
    // Neither by the next attempt,
    world.sleep_over().await;
    let error = outcome(doing).await.unwrap_err();
    assert!(matches!(error, DelayedError::BecameEncrypted), "{error:?}");
    // nor by an application that has kept it.
    let error = outcome(put(&world, &event)).await.unwrap_err();
    assert!(matches!(error, DelayedError::BecameEncrypted), "{error:?}");
    assert_no_more(&mut world);
}

#[tokio::test]
async fn content_that_is_no_object_is_not_scheduled() {
    #[derive(Serialize, Deserialize)]
    struct Bare(String);
    impl StickyContent for Bare {
        const TYPE: &str = "com.example.t";
    }
    let (mut world, door, _poll) = at_the_door().await;
    let bare = Bare("text".to_owned());
    let error = outcome(start(door.schedule(&bare, secs(15)))).await.unwrap_err();
    assert!(matches!(error, DelayedError::Prepare(PrepareError::Content(_))), "{error:?}");
    assert_no_more(&mut world);
}

#[tokio::test]
async fn delays_and_durations_are_clamped() {
    let (_world, door, _poll) = at_the_door().await;
    let at_least = door.schedule(&gone(), Duration::ZERO).with_sticky_duration(Duration::ZERO);
    let event = at_least.prepare().await.unwrap();
    assert_eq!((event.delay(), event.sticky_duration()), (millis(1), Some(millis(1))));
    let at_most = door.schedule(&gone(), Duration::MAX).with_sticky_duration(Duration::MAX);
    let event = at_most.prepare().await.unwrap();
    assert_eq!(
        (event.delay(), event.sticky_duration()),
        (millis((1 << 53) - 1), Some(secs(3_600)))
    );
}

/// Not in an error, and not in the log of anybody, matrix-sdk's and reqwest's included, at whatever
/// level.
#[tokio::test]
async fn no_error_or_log_has_a_delay_id() {
    let logs = all_logs("trace");
    let (mut world, door, _poll) = at_the_door().await;
    let mut errors: Vec<DelayedError> = Vec::new();
    let said = json!({
        "errcode": SECRET, "error": format!("no {SECRET}"), "delay_id": SECRET, SECRET: SECRET,
    });
    for (first, _) in ACTS {
        // It hangs up.
        let doing = act(&world, first);
        drop(world.server.sent().await);
        errors.push(outcome(doing).await.unwrap_err());
        // In the middle of an answer.
        let doing = act(&world, first);
        world.server.sent().await.answer_half(&said.to_string()).await;
        errors.push(outcome(doing).await.unwrap_err());
        // It says it.
        for status in [400, 401, 403, 404, 409, 413, 418, 429, 500, 502, 300] {
            let doing = act(&world, first);
            world.server.sent().await.answer(status, said.to_string()).await;
            if status == 401 {
                // Without a token.
                world.server.sent().await.answer(status, said.to_string()).await;
            }
            errors.push(outcome(doing).await.unwrap_err());
        }
        for status in [404, 405] {
            let doing = act(&world, first);
            for _ in 0..2 {
                world.server.sent().await.answer(status, SECRET).await;
            }
            errors.push(outcome(doing).await.unwrap_err());
        }
        // It sends elsewhere: where nobody is, and in circles.
        for to in [
            format!("http://127.0.0.1:1/{SECRET}"),
            format!("http://[{SECRET}"),
            format!("mxc://{SECRET}/{SECRET}"),
        ] {
            let doing = act(&world, first);
            let header = format!("Location: {to}\r\n");
            world.server.sent().await.answer_with(307, &header, SECRET).await;
            errors.push(outcome(doing).await.unwrap_err());
        }
        let doing = act(&world, first);
        let around = format!("Location: {BASE}/delayed_events/{SECRET}/x\r\n");
        while !doing.is_finished() {
            tokio::select! {
                ask = world.server.sent() => ask.answer_with(308, &around, SECRET).await,
                () = async { while !doing.is_finished() { tokio::task::yield_now().await } } => {}
            }
        }
        errors.push(outcome(doing).await.unwrap_err());
        // It does not answer.
        let doing = act(&world, first);
        let ask = world.server.sent().await;
        world.clock.advance(secs(5));
        errors.push(outcome(doing).await.unwrap_err());
        drop(ask);
    }
    // It is said where something is scheduled, or listed, too.
    let event = prepared(&door).await;
    for status in [400, 403, 404, 409, 429, 500] {
        let doing = put(&world, &event);
        world.server.sent().await.answer(status, said.to_string()).await;
        if status == 400 {
            // It may be the form that is refused.
            world.server.sent().await.answer(status, said.to_string()).await;
        }
        errors.push(outcome(doing).await.unwrap_err());
    }
    let events = world.sticky.delayed_events();
    let list = tokio::spawn(async move { events.list().await });
    let broken = json!({ "delayed_events": [{ "delay_id": SECRET }, SECRET] });
    world.server.sent().await.answer(200, broken.to_string()).await;
    assert!(outcome(list).await.unwrap().is_empty());
    // It is gone.
    world.server.shut_down().await;
    for (first, _) in ACTS {
        errors.push(outcome(act(&world, first)).await.unwrap_err());
    }

    for error in &errors {
        let text = format!("{error} {error:?} {error:#?}");
        assert!(!text.contains(SECRET), "{text}");
        assert!(!text.contains("delayed_events/"), "not the URL either: {text}");
    }
    let text = format!("{:?} {:?}", world.sticky.delayed_events(), event);
    assert!(!text.contains(SECRET), "{text}");
    let log = logs.text();
    assert!(log.contains("matrix_sdk::http_client") && log.contains("TRACE"), "all is logged");
    assert!(!log.contains(SECRET), "{}", line_with(&log, SECRET));
}

fn line_with<'a>(log: &'a str, text: &str) -> &'a str {
    log.lines().find(|line| line.contains(text)).unwrap_or_default()
}

/// matrix-sdk logs the path.
///
/// What `lib.rs` says to those who make such requests by matrix-sdk itself.
#[tokio::test]
async fn the_documented_filter_hides_the_path() {
    let mut server = Homeserver::start().await;
    let client = client(&server).await;
    let request =
        || update_delayed_event::unstable_v2::Request::new(SECRET.into(), UpdateAction::Restart);
    for (filter, shows) in
        [("info", true), ("error", true), ("trace,matrix_sdk::http_client=off", false)]
    {
        let logs = all_logs(filter);
        let sending = tokio::spawn(client.send(request()).into_future());
        drop(server.sent().await);
        within("an error", sending).await.unwrap().unwrap_err();
        let log = logs.text();
        assert_eq!(log.contains(SECRET), shows, "{filter}: {}", line_with(&log, SECRET));
    }
}
