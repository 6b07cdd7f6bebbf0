#![allow(clippy::unwrap_used, clippy::panic)]

use ruma::exports::http::{HeaderMap, HeaderValue, StatusCode, header};

use serde_json::{json, value::RawValue};

use super::*;
use crate::outbox::{Target, request};

const MINUTE: Duration = Duration::from_secs(60);

fn answer(status: u16, body: Value) -> Answer {
    text_answer(status, &body.to_string())
}

fn text_answer(status: u16, body: &str) -> Answer {
    let status = StatusCode::from_u16(status).unwrap();
    Answer::new(status, &HeaderMap::new(), body.as_bytes().to_vec())
}

fn refusal(status: u16, errcode: &str) -> Answer {
    answer(status, json!({ "errcode": errcode, "error": "Whatever" }))
}

fn schedule_error(answer: &Answer) -> DelayedError {
    schedule_error_with(answer, None)
}

fn schedule_error_with(answer: &Answer, limits: Option<DelayedLimits>) -> DelayedError {
    answer.schedule_error(MINUTE, limits, UNIX_EPOCH)
}

fn limits(max_delay: Option<Duration>, max_scheduled: Option<u64>) -> Option<DelayedLimits> {
    Some(DelayedLimits { max_delay, max_scheduled })
}

fn prepared(sticky_ms: Option<u64>) -> PreparedEvent {
    prepared_as("com.example.t", json!({ "text": "secret" }), sticky_ms)
}

fn prepared_as(event_type: &str, content: Value, sticky_ms: Option<u64>) -> PreparedEvent {
    let event = json!({
        "room_id": "!room:hs", "transaction_id": "txn", "event_type": event_type,
        "content": content, "sticky_ms": sticky_ms,
    });
    let stored = json!({ "event": event, "delay_ms": 15_000 }).to_string();
    serde_json::from_str(&stored).unwrap()
}

#[test]
fn the_new_form_comes_first_unless_the_old_one_is_known_and_neither_is_ever_alone() {
    assert_eq!(EndpointForm::order(None), [EndpointForm::New, EndpointForm::Old]);
    assert_eq!(
        EndpointForm::order(Some(EndpointForm::New)),
        [EndpointForm::New, EndpointForm::Old]
    );
    assert_eq!(
        EndpointForm::order(Some(EndpointForm::Old)),
        [EndpointForm::Old, EndpointForm::New]
    );
}

#[test]
fn only_an_endpoint_that_is_not_known_has_the_other_form_tried() {
    for unrecognized in [
        refusal(404, "M_UNRECOGNIZED"),
        refusal(405, "M_UNRECOGNIZED"),
        refusal(400, "M_UNRECOGNIZED"),
        text_answer(404, "<html>no such page</html>"),
        text_answer(405, ""),
    ] {
        assert!(unrecognized.is_unrecognized());
    }
    for other in [
        refusal(404, "M_NOT_FOUND"),
        refusal(403, "M_FORBIDDEN"),
        refusal(500, "M_UNKNOWN"),
        text_answer(502, "<html>bad gateway</html>"),
        text_answer(403, ""),
        answer(200, json!({})),
    ] {
        assert!(!other.is_unrecognized());
    }
}

#[test]
fn a_prepared_event_is_the_same_request_after_a_store() {
    for sticky in [None, Some(600_000)] {
        let event = prepared(sticky);
        let stored = serde_json::to_string(&event).unwrap();
        let found: PreparedEvent = serde_json::from_str(&stored).unwrap();
        for target in [Target::DelayedByEndpoint(15_000), Target::DelayedByQuery(15_000)] {
            let (before, after) = (request(&event.event, target), request(&found.event, target));
            assert_eq!(before.path, after.path);
            assert_eq!(before.query, after.query);
            assert_eq!(before.body, after.body);
        }
    }
}

#[test]
fn the_session_that_a_prepared_event_is_encrypted_with_is_known() {
    let event = prepared(None);
    assert_eq!((event.is_encrypted(), event.session_id()), (false, None));
    let content = json!({ "algorithm": "m.megolm.v1.aes-sha2", "session_id": "S" });
    let event = prepared_as("com.example.t", content.clone(), None);
    assert_eq!(event.session_id(), None, "anybody can write that");
    let event = prepared_as("m.room.encrypted", content, None);
    assert_eq!((event.is_encrypted(), event.session_id().as_deref()), (true, Some("S")));
}

#[test]
fn a_prepared_event_is_found_in_a_list() {
    let event = prepared(None);
    let listed = |change: Value| {
        let mut listed = json!({
            "delay_id": "id", "room_id": "!room:hs", "type": "com.example.t",
            "content": { "text": "secret" }, "delay_ms": 15_000, "scheduled_at": 5_000,
        });
        listed.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        answer(200, json!({ "delayed_events": [listed] })).scheduled().unwrap().remove(0)
    };
    assert!(event.matches(&listed(json!({}))));
    for other in [
        json!({ "room_id": "!other:hs" }),
        json!({ "type": "com.example.other" }),
        json!({ "state_key": "" }),
        json!({ "content": {} }),
        json!({ "delay_ms": 15_001 }),
    ] {
        assert!(!event.matches(&listed(other)));
    }
}

#[test]
fn one_that_is_not_sticky_has_no_such_parameter() {
    let event = prepared(None);
    let [old, new] = [EndpointForm::Old, EndpointForm::New].map(|form| form.target(&event));
    assert_eq!(request(&event.event, old).query, [(names::DELAY, "15000".to_owned())]);
    assert!(request(&event.event, new).query.is_empty());
}

#[test]
fn a_delay_that_is_too_long_is_told_in_each_of_its_spellings() {
    let day = Duration::from_secs(86_400);
    for (answer, max) in [
        (refusal(400, "ORG.MATRIX.MSC4140_DELAY_TOO_LARGE"), None),
        (refusal(400, "M_DELAY_TOO_LARGE"), None),
        (
            answer(
                400,
                json!({
                    "errcode": "M_UNKNOWN",
                    "org.matrix.msc4140.errcode": "M_MAX_DELAY_EXCEEDED",
                    "org.matrix.msc4140.max_delay": 86_400_000,
                }),
            ),
            Some(day),
        ),
        (
            answer(403, json!({ "errcode": "M_MAX_DELAY_EXCEEDED", "max_delay": 86_400_000 })),
            Some(day),
        ),
        (
            answer(
                400,
                json!({
                    "errcode": "ORG.MATRIX.MSC4140_DELAY_TOO_LARGE",
                    "org.matrix.msc4140.max_delay_ms": 86_400_000,
                }),
            ),
            Some(day),
        ),
    ] {
        assert_eq!(answer.asks_for_limits(), max.is_none());
        let error = schedule_error(&answer);
        let DelayedError::TooLong { max: told } = error else { panic!("{error:?}") };
        assert_eq!(told, max);
        let error = schedule_error_with(&answer, limits(Some(day), None));
        assert!(matches!(error, DelayedError::TooLong { max } if max == Some(day)), "{error:?}");
    }
}

#[test]
fn what_a_403_means_the_limits_tell() {
    let forbidden = refusal(403, "M_FORBIDDEN");
    assert!(forbidden.asks_for_limits());
    let refused = |error: &DelayedError| {
        matches!(error, DelayedError::Refused { status: 403, errcode: Some(code) }
            if code == "M_FORBIDDEN")
    };
    for disabled in [
        limits(Some(Duration::ZERO), Some(100)),
        limits(Some(MINUTE), Some(0)),
        limits(None, Some(0)),
    ] {
        let error = schedule_error_with(&forbidden, disabled);
        assert!(matches!(error, DelayedError::Disabled), "{error:?}");
    }
    let error = schedule_error_with(&forbidden, limits(Some(MINUTE / 2), Some(100)));
    assert!(
        matches!(error, DelayedError::TooLong { max: Some(max) } if max == MINUTE / 2),
        "{error:?}"
    );
    for allowed in [limits(Some(MINUTE), Some(100)), limits(None, None), None] {
        let error = schedule_error_with(&forbidden, allowed);
        assert!(refused(&error), "{error:?}");
    }
    // A server that tells no limits may say it in words.
    let words = json!({
        "errcode": "M_FORBIDDEN", "error": "Sending delayed events has been disallowed",
    });
    let error = schedule_error(&answer(403, words));
    assert!(matches!(error, DelayedError::Disabled), "{error:?}");
}

#[test]
fn a_full_quota_and_a_rate_limit_are_told_apart_by_words_and_wait() {
    let limited = |text: &str, ms: Option<u64>| {
        let mut body = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": text });
        if let Some(ms) = ms {
            body["retry_after_ms"] = ms.into();
        }
        schedule_error(&answer(429, body))
    };
    let words = "The maximum number of delayed events has been reached.";
    for full in [
        limited(words, Some(1_000)),
        limited(words, None),
        limited("Too Many Requests", Some(60_001)),
        schedule_error(&refusal(400, "ORG.MATRIX.MSC4140_MAX_DELAYED_EVENTS_EXCEEDED")),
    ] {
        assert!(matches!(full, DelayedError::QuotaFull { .. }), "{full:?}");
        assert!(full.worth_another_try().is_none());
    }
    for rate in [
        limited("Too Many Requests", Some(60_000)),
        limited("Too Many Requests", None),
        schedule_error(&text_answer(429, "<html>slow down</html>")),
    ] {
        assert!(matches!(rate, DelayedError::RateLimited { .. }), "{rate:?}");
    }
}

#[test]
fn the_wait_is_the_bodys_else_the_headers_in_seconds_or_as_a_date() {
    let now = UNIX_EPOCH + Duration::from_secs(1_431_704_061);
    let wait = |header: &str, body: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_str(header).unwrap());
        let answer = Answer::new(StatusCode::TOO_MANY_REQUESTS, &headers, body.as_bytes().to_vec());
        let error = DelayedError::from(answer.error(now));
        let DelayedError::RateLimited { retry_after } = error else { panic!("{error:?}") };
        retry_after
    };
    let secs = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(wait("7", "slow down"), secs(7));
    assert_eq!(wait("7", r#"{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":2000}"#), secs(2));
    assert_eq!(wait("Fri, 15 May 2015 15:34:21 GMT", "{}"), secs(0), "just now");
    assert_eq!(wait("Fri, 15 May 2015 15:34:31 GMT", "{}"), secs(10));
    assert_eq!(wait("Fri, 15 May 2015 15:34:11 GMT", "{}"), secs(0), "it is over");
    assert_eq!(wait("soon", "{}"), None);
}

#[test]
fn what_became_of_an_event_is_told_as_far_as_the_server_says() {
    let delay_id = DelayId::from("id".to_owned());
    let of = |answer: Answer, action| answer.manage_error(action, UNIX_EPOCH, &delay_id);
    for action in [Action::Restart, Action::Send, Action::Cancel] {
        let gone = of(refusal(404, "M_NOT_FOUND"), action);
        assert!(matches!(gone, DelayedError::Gone), "{gone:?}");
        let error = of(refusal(403, "M_FORBIDDEN"), action);
        assert!(matches!(error, DelayedError::Refused { status: 403, .. }), "{error:?}");
        let error = of(refusal(401, "M_UNKNOWN_TOKEN"), action);
        assert!(matches!(error, DelayedError::NotLoggedIn), "{error:?}");
        for answer in [refusal(500, "M_UNKNOWN"), text_answer(504, ""), text_answer(408, "")] {
            let error = of(answer, action);
            assert!(matches!(error, DelayedError::Unreachable { may_have_happened: true, .. }));
        }
    }
    let conflict = |action| of(refusal(409, "M_UNKNOWN"), action);
    assert!(matches!(conflict(Action::Restart), DelayedError::Gone));
    assert!(matches!(conflict(Action::Send), DelayedError::AlreadyCancelled));
    assert!(matches!(conflict(Action::Cancel), DelayedError::AlreadySent));
}

#[test]
fn an_errcode_that_is_none_or_has_the_delay_id_is_not_told() {
    let delay_id = DelayId::from("SYD_ID".to_owned());
    for errcode in ["about syd_id", "M_ABOUT_SYD_ID", &"M".repeat(65)] {
        let error = refusal(400, errcode).manage_error(Action::Send, UNIX_EPOCH, &delay_id);
        assert!(matches!(error, DelayedError::Refused { status: 400, errcode: None }), "{error:?}");
    }
}

#[test]
fn limits_are_read_under_both_names_and_may_be_missing() {
    let read = |capabilities: Value| {
        answer(200, json!({ "capabilities": capabilities })).limits().unwrap()
    };
    let day = Some(Duration::from_secs(86_400));
    for name in names::DELAYED_CAPABILITY {
        let told = read(json!({ name: { "max_delay_ms": 86_400_000, "max_scheduled": 10 } }));
        assert_eq!(told, limits(day, Some(10)));
        assert!(!told.unwrap().is_disabled());
    }
    assert_eq!(read(json!({ names::DELAYED_CAPABILITY[0]: {} })), limits(None, None));
    assert_eq!(read(json!({ "m.change_password": { "enabled": true } })), None);
    assert_eq!(answer(200, json!({})).limits(), Some(None));
    assert_eq!(text_answer(200, "<html>").limits(), None);
}

#[test]
fn a_list_is_read_in_each_iterations_names_and_without_what_cannot_be_read() {
    let event = |names: Value| {
        let mut event = json!({
            "delay_id": "id", "room_id": "!room:hs", "type": "t", "content": { "a": 1 },
        });
        event.as_object_mut().unwrap().extend(names.as_object().unwrap().clone());
        event
    };
    let list = answer(
        200,
        json!({ "delayed_events": [
            event(json!({ "delay_ms": 1_000, "scheduled_at": 5_000 })),
            event(json!({ "delay": 1_000, "running_since": 5_000, "state_key": "" })),
            event(json!({
                "delay": 1_000, "delay_ms": 1_000, "running_since": 5_000, "delayed_since_ts": 5_000,
            })),
            event(json!({ "delay_ms": 1_000 })),
            event(json!({ "delay_ms": -1, "scheduled_at": 5_000 })),
            { "delay_id": "id" },
            "id",
        ] }),
    );
    let list = list.scheduled().unwrap();
    assert_eq!(list.len(), 3);
    for event in &list {
        assert_eq!(event.delay_id.as_secret_str(), "id");
        assert_eq!(event.delay, Duration::from_secs(1));
        assert_eq!(event.waits_since, UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!(event.content.get(), r#"{"a":1}"#);
    }
    assert_eq!(list[1].state_key.as_deref(), Some(""));
    assert!(text_answer(200, "[]").scheduled().is_none());
}

#[test]
fn ones_own_delayed_event_is_known_by_its_id() {
    let read = |unsigned: Value| {
        let event = json!({ "type": "t", "unsigned": unsigned }).to_string();
        DelayId::of_event(&RawValue::from_string(event).unwrap())
    };
    let id = |text: &str| Some(DelayId::from(text.to_owned()));
    assert_eq!(read(json!({ "org.matrix.msc4140.delay_id": "a" })), id("a"));
    assert_eq!(read(json!({ "delay_id": "b" })), id("b"));
    assert_eq!(read(json!({ "delay_id": "b", "org.matrix.msc4140.delay_id": "a" })), id("a"));
    assert_eq!(read(json!({ "age": 5 })), None);
    assert_eq!(read(json!({ "delay_id": 5 })), None);
    assert_eq!(DelayId::of_event(&RawValue::from_string("[]".to_owned()).unwrap()), None);
}

#[test]
fn nothing_shows_a_delay_id_or_a_content() {
    let secret = "syd_secret";
    let delay_id = DelayId::from(secret.to_owned());
    assert_eq!(format!("{delay_id:?} {delay_id:#?}"), "DelayId(..) DelayId(..)");
    assert!(!format!("{:?}", prepared(None)).contains("secret"));
    let list = json!({ "delayed_events": [{
        "delay_id": secret, "room_id": "!room:hs", "type": "t", "content": { "text": secret },
        "delay_ms": 1, "scheduled_at": 1,
    }] });
    let list = answer(200, list).scheduled().unwrap();
    assert_eq!(list.len(), 1);
    assert!(!format!("{list:?} {list:#?}").contains(secret));
}

#[test]
fn after_several_tries_one_that_may_have_arrived_counts() {
    let refused = || DelayedError::from(RequestError::not_sent("refused"));
    assert!(refused().after_tries(true).may_have_happened());
    assert!(!refused().after_tries(false).may_have_happened());
    assert_eq!(refused().worth_another_try(), Some(Duration::ZERO));
    let limited =
        |seconds| DelayedError::RateLimited { retry_after: Some(Duration::from_secs(seconds)) };
    assert_eq!(limited(30).worth_another_try(), Some(Duration::from_secs(30)));
    assert_eq!(limited(31).worth_another_try(), None);
    assert_eq!(DelayedError::Gone.worth_another_try(), None);
}
