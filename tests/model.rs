//! The maps and views against the plainest possible model (`model/run.rs`), on cases that proptest
//! draws.
//!
//! Few senders, keys, timestamps and durations, so that collisions are the rule. `PROPTEST_CASES`
//! sets the number of cases. Cases that failed once are in `tests/model.regressions` and come first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "model/run.rs"]
mod run;

use matrix_sdk_sticky::map::ReceivedVia;
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence},
};

use self::run::{Arrive, EVENTS, HOUR, MINUTE, Run, Spec, Step, ToldBy, Ttl};

fn spec() -> impl Strategy<Value = Spec> {
    (
        0..2_u8,
        0..2_u8,
        prop::option::weighted(0.85, 0..2_u8),
        prop::bool::weighted(0.25),
        prop::bool::weighted(0.25),
        prop_oneof![-60..60_i64, Just(0), Just(10)],
        prop::option::weighted(
            0.95,
            prop::sample::select(&[0, MINUTE, 10 * MINUTE, HOUR, 2 * HOUR, u64::MAX][..]),
        ),
    )
        .prop_map(|(sender, event_type, key, removal, encrypted, sent, duration_ms)| Spec {
            sender,
            event_type,
            key,
            removal: removal && key.is_some(),
            encrypted,
            sent,
            duration_ms,
        })
}

fn arrive() -> impl Strategy<Value = Arrive> {
    let ttl = prop_oneof![
        2 => Just(Ttl::Absent),
        1 => Just(Ttl::Odd),
        8 => prop::sample::select(&[0, 1, MINUTE, 10 * MINUTE, HOUR, 2 * HOUR][..]).prop_map(Ttl::Ms),
        4 => (0..HOUR).prop_map(Ttl::Ms),
    ];
    let via = prop_oneof![4 => Just(ReceivedVia::Section), 1 => Just(ReceivedVia::Timeline)];
    let event = (0..EVENTS, via, ttl, any::<bool>())
        .prop_map(|(event, via, ttl, decrypted)| Arrive::Event { event, via, ttl, decrypted });
    let told_by =
        prop::sample::select(&[ToldBy::MainLoop, ToldBy::RedactionEvent, ToldBy::RedactedCopy][..]);
    let redaction =
        (0..EVENTS, told_by).prop_map(|(event, told_by)| Arrive::Redaction { event, told_by });
    prop_oneof![8 => event, 1 => redaction]
}

fn step() -> impl Strategy<Value = Step> {
    let lag = prop_oneof![3 => Just(0), 1 => 0..2_000_u64];
    prop_oneof![
        12 => (prop::collection::vec(arrive(), 1..5), lag)
            .prop_map(|(arrivals, lag_ms)| Step::Response { arrivals, lag_ms }),
        1 => prop::collection::btree_set(0..2_u8, 0..2).prop_map(Step::Ignore),
        1 => Just(Step::Leave),
        4 => prop_oneof![Just(1), Just(MINUTE), Just(10 * MINUTE), 0..HOUR, Just(HOUR)]
            .prop_map(Step::Pass),
        1 => Just(Step::Timer),
        2 => Just(Step::PollLazy),
        2 => Just(Step::PollList),
        1 => any::<u64>().prop_map(Step::Others),
    ]
}

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    Config {
        cases: cases.unwrap_or(1_000),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/model.regressions",
        ))),
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn maps_and_views_are_what_the_plainest_model_says(
        specs in prop::collection::vec(spec(), 1..EVENTS),
        steps in prop::collection::vec(step(), 1..30),
        seed: u64,
    ) {
        Run::play(specs, &steps, seed);
    }
}
