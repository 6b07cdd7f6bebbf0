//! Heartbeats whose server refuses, loses answers, restarts, or becomes encrypted at the wrong moment.

use std::{path::Path, time::Duration};

use matrix_sdk::SqliteStoreConfig;
use matrix_sdk_sticky::{
    BaseClientBuilder, RoomSticky,
    heartbeat::{Heartbeat, HeartbeatFailure, HeartbeatState, StartHeartbeatError},
    time::Clock as _,
};
use serde_json::{Value, json};

use crate::{
    encrypted_send,
    support::{
        ALICE, DELAY, Homeserver, KEY, Kind, Life, ROOM, Reply, World, client_builder, log_in,
        secs, within,
    },
};

/// The main loop says that the room is encrypted.
async fn encryption_is_switched_on(world: &World) {
    let encryption = json!({
        "event_id": "$encryption", "sender": ALICE, "type": "m.room.encryption", "state_key": "",
        "origin_server_ts": 1, "content": { "algorithm": "m.megolm.v1.aes-sha2" },
    });
    world.main_loop(json!({ "join": { ROOM: { "timeline": { "events": [encryption] } } } })).await;
}

/// In a room that is encrypted only once [`encryption_is_switched_on`] has said so, with a client
/// that can encrypt.
async fn before_encryption() -> Life {
    let (world, room, poll) = encrypted_send::at_the_door().await;
    let not_there = json!({ "errcode": "M_NOT_FOUND", "error": "no such state" });
    world.server.answers_to("/state/m.room.encryption/", 404, not_there);
    Life::of(world, room, poll)
}

/// The requests of one kind have one id and one body.
#[track_caller]
fn assert_all_the_same(life: &Life, kind: Kind, count: usize) {
    let seen = life.seen_of(kind);
    assert_eq!(seen.len(), count, "{seen:#?}");
    let what: Vec<_> =
        seen.iter().map(|seen| (&seen.id, &seen.event_type, &seen.content)).collect();
    assert!(what.iter().all(|one| *one == what[0]), "{seen:#?}");
}

#[tokio::test]
async fn a_life_is_arm_join_restarts_and_one_fire() {
    let mut life = Life::new().await;
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    assert_eq!(life.kinds(), [Kind::Arm, Kind::Join]);
    let content = json!({ "status": "here", "sticky_key": KEY, "msc4354_sticky_key": KEY });
    assert_eq!(life.seen_of(Kind::Join)[0].content, content);
    let removal = json!({ "sticky_key": KEY, "msc4354_sticky_key": KEY });
    let arm = life.seen_of(Kind::Arm)[0].clone();
    assert_eq!((arm.content, arm.sticky_ms), (removal, Some(600_000)));

    life.pass(DELAY * 2).await;
    let at: Vec<_> = life.seen[1..].iter().map(|seen| seen.at).collect();
    let apart: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(apart.iter().all(|apart| (secs(4)..=secs(5)).contains(apart)), "{apart:?}");
    let restarts = life.count(Kind::Restart);
    assert_eq!(life.seen.len(), 2 + restarts);
    assert!(life.fired.is_empty());

    assert_eq!(life.leave().await, HeartbeatState::Left);
    assert_eq!(life.seen.len(), 3 + restarts);
    assert_eq!(life.kinds().last(), Some(&Kind::Fire));
    assert!(life.scheduled.is_empty());
    life.pass(secs(600)).await;
    assert_eq!(life.seen.len(), 3 + restarts, "nothing follows: {:#?}", life.seen);
    assert_eq!(life.states, ["joining", "joined", "leaving", "left"]);
}

#[tokio::test]
async fn cut_off_it_has_left_and_joins_again_soon() {
    let mut life = Life::new().await;
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    life.cut(true);
    life.until_state("it to have left", |state| {
        matches!(state, HeartbeatState::ProbablyLeft { .. })
    })
    .await;
    life.pass(secs(600)).await;
    assert_eq!(life.fired.len(), 1);
    life.cut(false);
    let mended = life.world.clock.now();
    life.until(HeartbeatState::Joined).await;
    let passed = life.world.clock.now().since(mended);
    assert!(passed <= secs(30), "{passed:?}");
    assert_eq!(life.count(Kind::Join), 2);
    assert_eq!(life.states, ["joining", "joined", "probably_left", "rejoining", "joined"]);
}

#[tokio::test]
async fn without_delayed_events_it_is_degraded_and_short() {
    let refusals = [
        Reply::Refuse(404, "M_UNRECOGNIZED"),
        Reply::Page(405),
        Reply::Json(200, json!({ "event_id": "$sent" })),
    ];
    for refusal in refusals {
        let mut life = Life::new().await;
        life.always_answers(Kind::Arm, refusal.clone());
        life.start(|start| start).await;
        life.until(HeartbeatState::Degraded).await;
        let join = life.seen_of(Kind::Join)[0];
        assert_eq!(join.sticky_ms, Some(600_000), "{refusal:?}");
        assert_eq!(life.leave().await, HeartbeatState::Left);
        assert_eq!(life.count(Kind::Leave), 1, "{refusal:?}");
    }
}

/// It is degraded where the endpoint forgets that its leave is to be sticky.
#[tokio::test]
async fn the_dedicated_endpoint_is_relied_on_once_it_is_proved() {
    for keeps in [true, false] {
        let mut life = Life::new().await;
        life.has_only_the_dedicated_endpoint(keeps);
        life.start(|start| start).await;
        let state = if keeps { HeartbeatState::Joined } else { HeartbeatState::Degraded };
        life.until(state).await;
        let arms = life.seen_of(Kind::Arm);
        assert_eq!(arms.len(), 1 + usize::from(keeps), "{arms:#?}");
        let key = &arms[0].content["sticky_key"];
        assert_ne!(*key, json!(KEY), "a key of its own");
        assert_eq!(life.count(Kind::Fire), 1);
        assert_eq!(life.leave().await, HeartbeatState::Left);
        assert_eq!(life.count(Kind::Leave), usize::from(!keeps));
        let kinds = life.seen.iter().map(|seen| seen.kind);
        assert_eq!(kinds.filter(|kind| *kind == Kind::Join).count(), 1);
    }
}

/// Whatever becomes of a try, the next one is the same request.
#[tokio::test]
async fn every_try_of_a_step_is_the_same_request() {
    let mut life = Life::new().await;
    let unanswered = || [Reply::Cut, Reply::Lost, Reply::Refuse(502, "M_UNKNOWN")];
    life.answers(Kind::Arm, unanswered());
    life.answers(Kind::Join, unanswered());
    life.answers(Kind::Join, [Reply::Limit(secs(2)), Reply::Done.late(secs(60))]);
    life.start(|start| start.with_delay(secs(60))).await;
    life.until(HeartbeatState::Joined).await;
    assert_eq!(life.scheduled.len(), 1, "armed once");
    assert_all_the_same(&life, Kind::Join, 6);
    let arms = life.count(Kind::Arm);
    assert_all_the_same(&life, Kind::Arm, arms);

    life.answers(Kind::Fire, unanswered());
    assert_eq!(life.leave().await, HeartbeatState::Left);
    let fired = life.seen_of(Kind::Fire);
    assert!(fired.iter().all(|fire| fire.id == fired[0].id), "{fired:#?}");
}

/// Before the request goes out what it arms is in the store, and what cannot fire any more is not.
#[tokio::test]
async fn a_crash_at_any_step_leaves_the_lease_findable() {
    for step in [Kind::Arm, Kind::Join, Kind::Restart] {
        let mut life = Life::new().await;
        life.start(|start| start).await;
        life.until_seen(step, 1).await;
        life.crash();
        let armed = life.scheduled[0].delay_id.clone();
        // It remembers no transaction.
        life.forget_transactions();
        life.seen.clear();
        life.start(|start| start).await;
        life.until(HeartbeatState::Joined).await;
        let cancelled = life.seen_of(Kind::Cancel);
        assert!(cancelled.iter().any(|cancel| cancel.id == armed), "{step:?}: {:#?}", life.seen);
        let last = life.kinds().iter().rposition(|kind| *kind == Kind::Cancel);
        let join = life.kinds().iter().position(|kind| *kind == Kind::Join);
        assert!(last < join, "an old leave never ends a new join: {:#?}", life.seen);
        assert_eq!(life.scheduled.len(), 1, "{step:?}: none is armed twice");
        life.pass(DELAY * 2).await;
        assert!(life.fired.is_empty(), "{step:?}: {:?}", life.fired);

        assert_eq!(life.leave().await, HeartbeatState::Left);
        life.seen.clear();
        life.start(|start| start).await;
        life.until(HeartbeatState::Joined).await;
        assert_eq!(life.kinds(), [Kind::Arm, Kind::Join], "{step:?}: all is forgotten");
    }
}

/// Not at once: a join of the crashed process may still be on its way.
#[tokio::test]
async fn a_dead_members_leave_is_fired_after_its_last_request() {
    let mut life = Life::new().await;
    life.try_start("other", |start| start.with_delay(secs(60))).await.unwrap();
    life.until(HeartbeatState::Joined).await;
    life.crash();
    life.seen.clear();
    let crashed = life.world.clock.now();
    life.start(|start| start).await;
    life.until_seen(Kind::Fire, 1).await;
    let passed = life.world.clock.now().since(crashed);
    assert!(passed >= secs(5), "{passed:?}");
    life.pass(secs(120)).await;
    assert_eq!(life.count(Kind::Fire), 1);
    assert!(life.fired.is_empty());
    life.leave().await;
    life.seen.clear();
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    assert_eq!(life.count(Kind::List), 0, "it is forgotten: {:#?}", life.seen);
}

const ARMED: &[u8] = b"matrix-sdk-sticky.heartbeats.armed";

/// The old leave of the member's own key, and of another.
#[tokio::test]
async fn a_leave_of_yesterday_is_not_armed_again() {
    for (key, has_list) in [(KEY, true), (KEY, false), ("other", true), ("other", false)] {
        for has_time in [true, false] {
            let mut life = Life::new().await;
            if !has_list {
                life.always_answers(Kind::List, Reply::Refuse(404, "M_UNRECOGNIZED"));
            }
            life.try_start(key, |start| start).await.unwrap();
            life.until(HeartbeatState::Joined).await;
            life.crash();
            let old = life.seen_of(Kind::Arm)[0].id.clone();
            life.world.clock.advance(secs(24 * 3_600));
            life.pass(secs(1)).await;
            assert_eq!(life.fired.len(), 1);
            life.forget_transactions();
            let store = life.world.client.state_store();
            if !has_time {
                // As an earlier version of this crate writes it.
                let armed = store.get_custom_value(ARMED).await.unwrap().unwrap();
                let mut armed: Value = serde_json::from_slice(&armed).unwrap();
                armed[0].as_object_mut().unwrap().remove("at_unix_ms").unwrap();
                let armed = serde_json::to_vec(&armed).unwrap();
                store.set_custom_value(ARMED, armed).await.unwrap();
            }
            life.seen.clear();
            life.start(|start| start).await;
            life.until(HeartbeatState::Joined).await;
            life.pass(secs(30)).await;
            let arms = life.seen_of(Kind::Arm);
            assert!(arms.len() == 1 && arms[0].id != old, "{key}: {arms:#?}");
            assert_eq!(life.count(Kind::List), 1, "{key}");
            assert_eq!(life.count(Kind::Fire) + life.count(Kind::Leave), 0, "{key}");
            life.leave().await;
            let armed = life.world.client.state_store().get_custom_value(ARMED).await.unwrap();
            assert_eq!(armed, None, "{key}: it is forgotten");
        }
    }
}

/// Its answer may be on its way, or it may.
#[tokio::test]
async fn a_leave_of_just_now_is_asked_for_until_it_is_known() {
    let mut life = Life::new().await;
    life.answers(Kind::Arm, [Reply::Cut]);
    life.start(|start| start).await;
    life.until_seen(Kind::Arm, 1).await;
    let old = life.seen[0].id.clone();
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    assert_eq!(life.seen_of(Kind::Arm).iter().filter(|arm| arm.id == old).count(), 2);
    assert_eq!((life.count(Kind::Cancel), life.scheduled.len()), (1, 1));
}

/// By the transaction, for as long as the leave may be armed: which is for its delay after the owner
/// was last there, and not after it was first armed.
#[tokio::test]
async fn without_a_list_an_old_lease_is_found() {
    let mut life = Life::new().await;
    life.always_answers(Kind::List, Reply::Refuse(404, "M_UNRECOGNIZED"));
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    life.pass(secs(600)).await;
    life.crash();
    let old = life.scheduled[0].delay_id.clone();
    life.seen.clear();
    life.start(|start| start).await;
    life.until_seen(Kind::Join, 1).await;
    assert_eq!(life.seen_of(Kind::Cancel)[0].id, old);
    life.pass(secs(60)).await;
    assert!(life.fired.is_empty());
}

#[tokio::test]
async fn a_dropped_handle_frees_its_key_at_once() {
    let mut life = Life::new().await;
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    // Drops the one before, and nothing runs in between.
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
}

/// Two wait for their turn when their handles are dropped. A heartbeat that waited behind them would lose
/// its lease each time. A turn that the limited one takes, by its jitter, can cost the lease too: 2 of 60
/// lives were seen to lose it so. That is why there are three lives.
#[tokio::test]
async fn dropped_heartbeats_hold_nobody_up() {
    let mut states = Vec::new();
    for _ in 0..3 {
        states = states_beside_dropped_ones().await;
        if !states.contains(&"rejoining") {
            return;
        }
    }
    panic!("each time: {states:?}");
}

async fn states_beside_dropped_ones() -> Vec<&'static str> {
    let mut life = Life::new().await;
    life.answers(Kind::Restart, [Reply::Limit(secs(10))]);
    life.try_start("limited", |start| start.with_delay(secs(60))).await.unwrap();
    let limited = life.heartbeat();
    life.until_seen(Kind::Restart, 1).await;
    let mut waiting = Vec::new();
    for key in ["first", "second"] {
        life.try_start(key, |start| start.with_delay(secs(12))).await.unwrap();
        life.until(HeartbeatState::Joined).await;
        waiting.push(life.heartbeat());
    }
    life.pass(secs(9)).await;
    assert_eq!(life.count(Kind::Restart), 1);
    drop(waiting);
    life.start(|start| start.with_delay(secs(13))).await;
    life.until(HeartbeatState::Joined).await;
    life.pass(secs(30)).await;
    drop(limited);
    life.states
}

#[tokio::test]
async fn a_token_that_runs_out_ends_no_heartbeat() {
    for step in [Kind::Arm, Kind::Join, Kind::Restart] {
        let mut life = Life::new().await;
        life.answers(step, [Reply::Refuse(401, "M_UNKNOWN_TOKEN")]);
        life.start(|start| start).await;
        life.until_seen(step, 2).await;
        life.until(HeartbeatState::Joined).await;
        assert!(!life.states.contains(&"failed"), "{step:?}: {:?}", life.states);
    }
}

#[tokio::test]
async fn a_join_is_not_repeated_in_plaintext_once_the_room_is_encrypted() {
    let mut life = before_encryption().await;
    life.answers(Kind::Join, [Reply::Cut]);
    life.start(|start| start).await;
    life.until_seen(Kind::Join, 1).await;
    encryption_is_switched_on(&life.world).await;
    life.until(HeartbeatState::Joined).await;
    let joins = life.seen_of(Kind::Join);
    let types: Vec<_> = joins.iter().map(|join| &*join.event_type).collect();
    assert_eq!(types[0], "com.example.t");
    assert!(types[1..].iter().all(|it| *it == "m.room.encrypted") && types.len() > 1, "{types:?}");
    assert_ne!(joins[0].id, joins[1].id);
}

#[tokio::test]
async fn a_leave_is_not_armed_in_plaintext_once_the_room_is_encrypted() {
    let mut life = before_encryption().await;
    life.answers(Kind::Arm, [Reply::Limit(secs(3))]);
    life.start(|start| start).await;
    life.until_seen(Kind::Arm, 1).await;
    encryption_is_switched_on(&life.world).await;
    life.until(HeartbeatState::Joined).await;
    life.pass(secs(20)).await;
    let types: Vec<_> = life.scheduled.iter().map(|it| &*it.armed.event_type).collect();
    assert_eq!(types, ["m.room.encrypted"]);
    let joins = life.seen_of(Kind::Join);
    assert!(joins.iter().all(|join| join.event_type == "m.room.encrypted"), "{joins:#?}");
}

/// It is not repeated in plaintext, nor encrypted instead: the leave is fired.
#[tokio::test]
async fn leaving_ends_where_encryption_overtook_a_join() {
    let mut life = before_encryption().await;
    life.always_answers(Kind::Join, Reply::Cut);
    life.start(|start| start.with_delay(secs(60))).await;
    life.until_seen(Kind::Join, 1).await;
    encryption_is_switched_on(&life.world).await;
    life.leave().await;
    let joins = life.seen_of(Kind::Join);
    assert!(joins.iter().all(|join| join.event_type == "com.example.t"), "{joins:#?}");
    assert!(life.scheduled.is_empty());
}

/// In a room, with a client on this store and a server of its own.
async fn on_store(builder: BaseClientBuilder) -> (World, RoomSticky) {
    let server = Homeserver::start().await;
    let client = builder.build_client(client_builder(&server)).await.unwrap();
    log_in(&client, None).await;
    let world = World::of(server, client);
    world.server.has(&[
        "org.matrix.msc4354",
        "org.matrix.simplified_msc3575",
        "org.matrix.msc4140",
    ]);
    let room = world.is_in(ROOM).await;
    (world, room)
}

async fn start(room: &RoomSticky, key: &str) -> Result<Heartbeat, StartHeartbeatError> {
    let content = json!({ "status": "here" }).as_object().unwrap().clone();
    within("it to start", room.heartbeat(key).with_raw_content("com.example.t", content).start())
        .await
}

/// Where the folder is known the system's lock tells, else what stands in the store.
#[tokio::test]
async fn of_two_clients_on_a_store_one_has_heartbeats() {
    let folder = tempfile::tempdir().unwrap();
    let known = || BaseClientBuilder::sqlite(folder.path(), None);
    let unknown = || {
        let config = SqliteStoreConfig::new(folder.path());
        BaseClientBuilder::sqlite_with_config(config, None::<&Path>)
    };
    let builders: [&dyn Fn() -> BaseClientBuilder; 2] = [&known, &unknown];
    for first in builders {
        for second in builders {
            let (mut one_world, one) = on_store(first()).await;
            let (mut other_world, other) = on_store(second()).await;
            let beating = start(&one, "k").await.unwrap();
            let again = start(&one, "l").await.unwrap();
            let _arming = one_world.server.sent().await;
            let refused = start(&other, "m").await.unwrap_err();
            assert!(matches!(refused, StartHeartbeatError::OtherProcess), "{refused:?}");
            assert!(refused.to_string().contains("another client"), "{refused}");
            // Nor does it retire what the other has armed.
            within("the end", other_world.sticky.leave_heartbeats()).await;
            assert!(!other_world.server.is_sent_more());
            drop(beating);
            start(&other, "m").await.unwrap_err();
            // Without a word, as in a crash.
            drop(again);
            let beating = start(&other, "m").await.unwrap();
            start(&one, "k").await.unwrap_err();
            drop(beating);
        }
    }
}

const OWNER: &[u8] = b"matrix-sdk-sticky.heartbeats.owner";

/// Whoever cannot be looked up counts for as long as it has said that it is there; but not by a clock
/// that was a year ahead.
#[tokio::test]
async fn a_lease_from_before_the_clock_was_set_back_is_void() {
    let (world, room) = on_store(BaseClientBuilder::in_memory()).await;
    let owned_for = async |time: Duration| {
        let until = world.clock.now().advanced(time).unix_ms();
        let owner = json!({ "process": 1, "started": null, "until_unix_ms": until });
        let owner = serde_json::to_vec(&owner).unwrap();
        world.client.state_store().set_custom_value(OWNER, owner).await.unwrap();
        start(&room, "k").await
    };
    let error = owned_for(secs(60)).await.unwrap_err();
    assert!(matches!(error, StartHeartbeatError::OtherProcess), "{error:?}");
    owned_for(secs(365 * 24 * 3_600)).await.unwrap();
    owned_for(Duration::ZERO).await.unwrap();
}

/// The arming is refused, and the member is there.
#[tokio::test]
async fn a_refused_arming_is_degraded() {
    let refusals = [
        Reply::Refuse(403, "M_FORBIDDEN"),
        Reply::Refuse(404, "M_NOT_FOUND"),
        Reply::Refuse(409, "M_UNKNOWN"),
        Reply::Refuse(413, "M_TOO_LARGE"),
        Reply::Refuse(451, "M_UNKNOWN"),
        Reply::Page(403),
        Reply::Page(404),
        Reply::Page(451),
        Reply::Page(501),
        Reply::Limit(secs(3_600)),
    ];
    for refusal in refusals {
        let mut life = Life::new().await;
        life.always_answers(Kind::Arm, refusal.clone());
        life.start(|start| start).await;
        life.until(HeartbeatState::Degraded).await;
        assert_eq!(life.states, ["joining", "degraded"], "{refusal:?}");
        assert_eq!(life.count(Kind::Join), 1, "{refusal:?}");
        // Five minutes later the server is asked again, whatever wait it wanted.
        life.always_answers(Kind::Arm, Reply::Done);
        life.pass(secs(301)).await;
        life.until(HeartbeatState::Joined).await;
    }
}

/// A firewall's page, shown once, is not the end of a membership.
#[tokio::test]
async fn a_page_shown_once_ends_nothing() {
    for status in [403, 404, 405, 407, 413, 451, 501, 503] {
        let mut life = Life::new().await;
        for kind in [Kind::Arm, Kind::Join, Kind::Restart] {
            life.answers(kind, [Reply::Page(status)]);
        }
        life.start(|start| start).await;
        life.until_seen(Kind::Restart, 2).await;
        assert!(!life.states.contains(&"failed"), "{status}: {:?}", life.states);
        life.heartbeat().update_raw([("status".to_owned(), json!("busy"))].into_iter().collect());
        life.answers(Kind::Join, [Reply::Page(status)]);
        let joins = life.count(Kind::Join);
        life.until_seen(Kind::Join, joins + 2).await;
        life.pass(secs(20)).await;
        assert!(!life.states.contains(&"failed"), "{status}: {:?}", life.states);
    }
}

/// Everybody sees the member, so it has not left.
#[tokio::test]
async fn a_leave_that_is_refused_has_failed() {
    let muted = || Reply::Refuse(403, "M_FORBIDDEN");
    for is_armed in [true, false] {
        let mut life = Life::new().await;
        if !is_armed {
            life.always_answers(Kind::Arm, muted());
        }
        life.start(|start| start).await;
        life.until(if is_armed { HeartbeatState::Joined } else { HeartbeatState::Degraded }).await;
        life.always_answers(Kind::Fire, muted());
        life.always_answers(Kind::Leave, muted());
        let began = life.world.clock.now();
        let end = life.leave().await;
        assert!(matches!(end, HeartbeatState::Failed(_)), "armed: {is_armed}: {end:?}");
        assert!(life.world.clock.now().since(began) <= DELAY + secs(20));
    }
}

/// A session that was revoked, a server that wants to be left alone for an hour, a page, no answer.
#[tokio::test]
async fn leaving_ends_within_the_delay_and_20_s() {
    let answers = [
        Reply::Refuse(401, "M_UNKNOWN_TOKEN"),
        Reply::Limit(secs(3_600)),
        Reply::Page(403),
        Reply::Page(502),
        Reply::Cut,
    ];
    for answer in answers {
        for has_words in [false, true] {
            let mut life = Life::new().await;
            life.start(|start| start).await;
            life.until(HeartbeatState::Joined).await;
            for kind in [Kind::Restart, Kind::Fire, Kind::Leave, Kind::Cancel] {
                life.always_answers(kind, answer.clone());
            }
            let began = life.world.clock.now();
            let heartbeat = life.heartbeat();
            let words = [("status".to_owned(), json!("bye"))].into_iter().collect();
            let end = life
                .during("the leave", async move {
                    if has_words {
                        heartbeat.leave_with(words).await
                    } else {
                        heartbeat.leave().await
                    }
                })
                .await;
            let passed = life.world.clock.now().since(began);
            assert!(passed <= DELAY + secs(20), "{answer:?}: {passed:?}");
            // What was armed has fired meanwhile. Where nobody could be asked, nobody knows.
            let is_told = matches!(
                end,
                HeartbeatState::Left | HeartbeatState::Failed(HeartbeatFailure::LeaveUnanswered)
            );
            assert!(is_told, "{answer:?}: {end:?}");
            assert_eq!(life.fired.len(), 1, "{answer:?}");
        }
    }
}

/// The echo of the fired leave comes before the answer to the request.
#[tokio::test]
async fn leaving_sends_one_leave() {
    let mut life = Life::new().await;
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    life.answers(Kind::Fire, [Reply::Done.late(Duration::from_millis(1_500))]);
    assert_eq!(life.leave().await, HeartbeatState::Left);
    life.pass(secs(60)).await;
    assert_eq!((life.count(Kind::Fire), life.count(Kind::Leave)), (1, 0), "{:#?}", life.seen);
}

/// Whoever is there from the start can read the first leave.
#[tokio::test]
async fn an_encrypted_life_hands_over_to_nobody() {
    let (world, room, poll) = encrypted_send::at_the_door().await;
    let mut life = Life::of(world, room, poll);
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    life.pass(secs(60)).await;
    assert_eq!((life.count(Kind::Arm), life.count(Kind::Join)), (1, 1), "{:#?}", life.seen);
}

/// As the earlier join is gone anyway: only a redacted join that was the newest ends the heartbeat.
#[tokio::test]
async fn a_redacted_join_that_was_replaced_ends_nothing() {
    let mut life = Life::new().await;
    life.start(|start| start).await;
    life.until(HeartbeatState::Joined).await;
    life.redact_the_newest();
    let content = json!({ "status": "away" });
    life.heartbeat().update_raw(content.as_object().unwrap().clone());
    life.until_seen(Kind::Join, 2).await;
    life.pass(secs(60)).await;
    assert_eq!(life.heartbeat().state(), HeartbeatState::Joined, "{:#?}", life.seen);
}
