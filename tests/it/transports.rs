//! Discovering transports, on servers that answer in odd ways.

use matrix_sdk_sticky::{
    StickyClientExt as _,
    rtc::{Discovered, DiscoveredFrom, TransportsError},
};
use serde_json::{Value, json};

use crate::support::{
    Homeserver, NEW_TOKEN, REFRESH_TOKEN, TOKEN, anonymous_client, client, client_builder, log_in,
    log_in_as, millis,
};

const UNSTABLE: &str = "/unstable/org.matrix.msc4143/rtc/transports";
const STABLE: &str = "/v1/rtc/transports";
const WELL_KNOWN: &str = "/.well-known/matrix/client";

async fn discover(answers: &[(&'static str, u16, Value)]) -> Result<Discovered, TransportsError> {
    let server = Homeserver::start().await;
    for (path, status, answer) in answers {
        server.answers_to(path, *status, answer.clone());
    }
    client(&server).await.sticky().rtc_transports().await
}

fn unrecognized() -> Value {
    json!({ "errcode": "M_UNRECOGNIZED", "error": "no" })
}

fn types(discovered: &Discovered) -> Vec<&str> {
    discovered.transports.iter().map(|it| it.transport_type()).collect()
}

/// It is asked only if there is no unstable endpoint.
#[tokio::test]
async fn the_stable_endpoint_is_asked_second() {
    let answers = [
        (UNSTABLE, 404, unrecognized()),
        (STABLE, 200, json!({ "rtc_transports": [{ "type": "livekit" }] })),
    ];
    let discovered = discover(&answers).await.unwrap();
    assert_eq!(discovered.from, DiscoveredFrom::Homeserver);
    assert_eq!(types(&discovered), ["livekit"]);
    assert_eq!(discovered.transports[0].as_livekit().unwrap().service_url, None);
}

/// The order of the others stays.
#[tokio::test]
async fn a_malformed_transport_is_left_out_alone() {
    let list = json!([{ "type": "b" }, 1, { "type": 5 }, {}, "x", { "type": "a", "type2": null }]);
    let discovered = discover(&[(UNSTABLE, 200, json!({ "rtc_transports": list }))]).await.unwrap();
    assert_eq!(types(&discovered), ["b", "a"]);
}

/// The unstable spelling counts.
#[tokio::test]
async fn the_well_known_is_read_in_both_spellings() {
    let nowhere = [(UNSTABLE, 404, unrecognized()), (STABLE, 404, unrecognized())];
    for (content, wanted) in [
        (json!({ "m.rtc_foci": [{ "type": "a" }] }), "a"),
        (
            json!({ "m.rtc_foci": [{ "type": "a" }], "org.matrix.msc4143.rtc_foci": [{ "type": "b" }] }),
            "b",
        ),
    ] {
        let mut answers = nowhere.to_vec();
        answers.push((WELL_KNOWN, 200, content));
        let discovered = discover(&answers).await.unwrap();
        assert_eq!(discovered.from, DiscoveredFrom::WellKnown);
        assert_eq!(types(&discovered), [wanted]);
    }
}

#[tokio::test]
async fn a_server_that_offers_none_is_no_error() {
    let none = Ok(Discovered::default());
    for well_known in
        [json!({}), json!([]), json!({ "m.rtc_foci": 5 }), json!({ "m.rtc_foci": [1] })]
    {
        let answers = [
            (UNSTABLE, 404, unrecognized()),
            (STABLE, 404, unrecognized()),
            (WELL_KNOWN, 200, well_known),
        ];
        assert_eq!(discover(&answers).await, none);
    }
    // No answer at all to anything but 404; and what Synapse says where none is set up.
    assert_eq!(discover(&[]).await, none);
    for answer in [json!({}), json!({ "rtc_transports": [] })] {
        assert_eq!(discover(&[(UNSTABLE, 200, answer)]).await, none);
    }
}

#[tokio::test]
async fn an_empty_endpoint_hides_no_well_known() {
    for answer in [json!({}), json!({ "rtc_transports": [] })] {
        let well_known = json!({ "m.rtc_foci": [{ "type": "a" }] });
        let answers = [(UNSTABLE, 200, answer), (WELL_KNOWN, 200, well_known)];
        let discovered = discover(&answers).await.unwrap();
        assert_eq!(discovered.from, DiscoveredFrom::WellKnown);
        assert_eq!(types(&discovered), ["a"]);
    }
}

/// The document may be there all the same.
#[tokio::test]
async fn a_well_known_that_fails_is_an_error() {
    for status in [500, 502, 429] {
        let away = (WELL_KNOWN, status, json!({}));
        let discovered = discover(std::slice::from_ref(&away)).await;
        assert!(matches!(discovered, Err(TransportsError::Unreachable { .. })), "{discovered:?}");
        // A server with an endpoint has said all there is.
        let discovered = discover(&[(UNSTABLE, 200, json!({})), away]).await;
        assert_eq!(discovered, Ok(Discovered::default()));
    }
}

/// It counts before the one under the homeserver's own URL.
#[tokio::test]
async fn the_users_own_well_known_counts_first() {
    let (homeserver, named) = (Homeserver::start().await, Homeserver::start().await);
    homeserver.answers_to(WELL_KNOWN, 200, json!({ "m.rtc_foci": [{ "type": "homeserver" }] }));
    let client = anonymous_client(&homeserver).await;
    let name = named.url().replace("http://", "");
    log_in_as(&client, &format!("@me:{name}"), None).await;
    let sticky = client.sticky();
    assert_eq!(types(&sticky.rtc_transports().await.unwrap()), ["homeserver"]);

    named.answers_to(WELL_KNOWN, 200, json!({ "m.rtc_foci": [{ "type": "named", "odd": [1] }] }));
    let discovered = sticky.rtc_transports().await.unwrap();
    assert_eq!(types(&discovered), ["named"]);
    assert_eq!(discovered.transports[0].fields()["odd"], json!([1]));
    assert_eq!(homeserver.count(WELL_KNOWN), 1, "it was not asked a second time");
}

#[tokio::test]
async fn a_hostless_name_has_no_well_known() {
    let homeserver = Homeserver::start().await;
    let client = anonymous_client(&homeserver).await;
    let mut gone = Homeserver::start().await;
    gone.shut_down().await;
    log_in_as(&client, &format!("@me:{}", gone.url().replace("http://", "")), None).await;
    assert_eq!(client.sticky().rtc_transports().await, Ok(Discovered::default()));
}

#[tokio::test]
async fn a_token_that_has_run_out_is_refreshed() {
    let server = Homeserver::start().await;
    let expired = json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "", "soft_logout": true });
    server.answers_to(UNSTABLE, 401, expired);
    server.answers_to("/refresh", 200, json!({ "access_token": NEW_TOKEN }));
    let client = client_builder(&server).handle_refresh_tokens().build().await.unwrap();
    log_in(&client, Some(REFRESH_TOKEN)).await;
    // It is refused all the same, but after a refresh.
    let discovered = client.sticky().rtc_transports().await;
    assert_eq!(discovered, Err(TransportsError::TokenRefused));
    assert_eq!(client.access_token().as_deref(), Some(NEW_TOKEN));
}

#[tokio::test]
async fn without_a_login_nobody_is_asked() {
    let server = Homeserver::start().await;
    let client = anonymous_client(&server).await;
    let discovered = client.sticky().rtc_transports().await;
    assert_eq!(discovered, Err(TransportsError::NotLoggedIn));
    assert_eq!(server.count(UNSTABLE), 0);
}

#[tokio::test]
async fn a_homeserver_that_is_away_is_unreachable() {
    let mut server = Homeserver::start().await;
    let client = client(&server).await;
    let sticky = client.sticky();
    server.shut_down().await;
    let discovered = sticky.rtc_transports().await;
    assert!(matches!(discovered, Err(TransportsError::Unreachable { .. })), "{discovered:?}");
    assert!(!discovered.unwrap_err().to_string().contains("http://"));
}

#[tokio::test]
async fn an_error_says_what_failed_without_a_token() {
    let no_such = |status| Err(TransportsError::NoSuchAnswer { status });
    for (status, answer, wanted) in [
        (
            401,
            json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "" }),
            Err(TransportsError::TokenRefused),
        ),
        (
            429,
            json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "", "retry_after_ms": 1_500 }),
            Err(TransportsError::RateLimited { retry_after: Some(millis(1_500)) }),
        ),
        (403, json!({ "errcode": "M_FORBIDDEN", "error": "" }), no_such(403)),
        (500, json!({}), no_such(500)),
        (200, json!([]), no_such(200)),
        (200, json!({ "rtc_transports": {} }), no_such(200)),
    ] {
        let discovered = discover(&[(UNSTABLE, status, answer)]).await;
        assert!(!format!("{discovered:?}").contains(TOKEN));
        assert_eq!(discovered, wanted);
    }
}
