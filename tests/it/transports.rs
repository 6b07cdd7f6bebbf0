//! Discovering transports, on servers that answer in odd ways.

use matrix_sdk_sticky::{
    ClientExt as _,
    rtc::{Discovered, DiscoveredFrom, TransportsError},
};
use serde_json::{Value, json};

use crate::support::{Homeserver, TOKEN, client};

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

#[tokio::test]
async fn the_stable_endpoint_is_asked_where_there_is_no_unstable_one() {
    let answers = [
        (UNSTABLE, 404, unrecognized()),
        (STABLE, 200, json!({ "rtc_transports": [{ "type": "livekit" }] })),
    ];
    let discovered = discover(&answers).await.unwrap();
    assert_eq!(discovered.from, DiscoveredFrom::Homeserver);
    assert_eq!(types(&discovered), ["livekit"]);
    assert_eq!(discovered.transports[0].as_livekit().unwrap().service_url, None);
}

#[tokio::test]
async fn a_malformed_transport_is_left_out_alone_and_the_order_stays() {
    let list = json!([{ "type": "b" }, 1, { "type": 5 }, {}, "x", { "type": "a", "type2": null }]);
    let discovered = discover(&[(UNSTABLE, 200, json!({ "rtc_transports": list }))]).await.unwrap();
    assert_eq!(types(&discovered), ["b", "a"]);
}

#[tokio::test]
async fn the_well_known_is_read_in_both_spellings_and_the_unstable_one_counts() {
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
    for well_known in [json!({}), json!([]), json!({ "m.rtc_foci": 5 })] {
        let answers = [
            (UNSTABLE, 404, unrecognized()),
            (STABLE, 404, unrecognized()),
            (WELL_KNOWN, 200, well_known),
        ];
        assert_eq!(discover(&answers).await, Ok(Discovered::default()));
    }
}

#[tokio::test]
async fn what_goes_wrong_is_told_and_an_error_has_no_token() {
    let no_such = |status| Err(TransportsError::NoSuchAnswer { status });
    for (status, answer, wanted) in [
        (
            401,
            json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "" }),
            Err(TransportsError::TokenRefused),
        ),
        (
            429,
            json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "" }),
            Err(TransportsError::RateLimited),
        ),
        (500, json!({}), no_such(500)),
        (200, json!([]), no_such(200)),
        (200, json!({ "rtc_transports": {} }), no_such(200)),
    ] {
        let discovered = discover(&[(UNSTABLE, status, answer)]).await;
        assert!(!format!("{discovered:?}").contains(TOKEN));
        assert_eq!(discovered, wanted);
    }
}
