//! The bindings used for real: a small program in Kotlin and one in Python, each with the package that its
//! developers would get, against a real Synapse. Which of them is left out where its tools are missing,
//! `cargo xtask test` says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test may fail, and the real time that it waits at most is real"
)]
#![recursion_limit = "256"]

mod support;
mod swift;

use std::time::Duration;

use matrix_sdk::ruma::UserId;
use matrix_sdk_sticky::{
    BaseClientBuilder, StickyClientExt as _, StickyRoomExt as _,
    heartbeat::HeartbeatState,
    rtc::{ROOM_CALL, RtcTransport},
};
use serde_json::{Value, json};
use xtask::bindings::Language;

use crate::support::{Program, World, languages};

/// What one who uses the bindings does in an hour, in a minute.
async fn lives(language: Language) {
    let Some(language) = languages(&[language]).pop() else { return };
    let world = World::new(&["alice", "bob"], true);
    let [alice, bob] = world.people();
    let mut program = Program::start(language, &world, alice).await;
    assert_eq!(program.ready["user_id"], alice.user_id);
    assert_eq!(program.ready["can_encrypt"], true);
    assert_eq!(program.ready["rooms"], json!([world.room]));
    let mut other = Program::start(language, &world, bob).await;

    // Entries: first all that there is, then what changes. The one who looks on can read what is sent once
    // the sender's server has told of their device.
    other.tell("watch").await;
    assert_eq!(other.says("reset").await["keys"], json!([]));
    let early = loop {
        program.tell("send early bird").await;
        let sent = program.says("sent").await["event_id"].as_str().unwrap().to_owned();
        if other.is_told("early", Duration::from_secs(2)).await {
            break sent;
        }
    };
    // Who listens from now on gets that first.
    other.tell("watch").await;
    assert_eq!(other.says("reset").await["keys"], json!(["early"]));
    program.tell("send k one").await;
    other.entry("added", "k", Some("one")).await;
    program.tell("send k two").await;
    other.entry("updated", "k", Some("two")).await;
    program.tell("remove k").await;
    other.entry("removed", "k", Some("two")).await;
    program.tell(&format!("redact {early}")).await;
    other.entry("removed", "early", Some("bird")).await;

    // A heartbeat: it is there, says something else, leaves, and is there again until it dies.
    program.tell("beat heart first").await;
    assert_eq!(program.says("beat").await["state"], "NotStarted");
    program.until("beat", |it| it["state"] == "Joined").await;
    other.entry("added", "heart", Some("first")).await;
    program.tell("beat-update second").await;
    other.entry("updated", "heart", Some("second")).await;
    program.tell("beat-leave").await;
    program.until("beat", |it| it["state"] == "Left").await;
    other.entry("removed", "heart", Some("second")).await;

    // What is bad is said, and does no harm.
    program.tell("errors").await;
    let found = program.says("errors").await["found"].clone();
    for (name, error) in found.as_object().unwrap() {
        let [error, reason] = [0, 1].map(|it| error[it].as_str().unwrap_or_default());
        assert!(!error.is_empty() && reason.len() > 10, "{name}: {error} {reason}");
    }
    assert_eq!(found.as_object().unwrap().len(), 8);
    assert_eq!(found["no JSON"][0], "Content");
    assert_eq!(found["unknown room"][0], "Unknown");
    assert_eq!(found["too long"][0], "HeartbeatTiming");
    assert_eq!(found["member id"][0], "MemberId");

    program.tell("listeners").await;
    let told = program.says("listeners").await;
    assert_eq!((&told["reset_first"], &told["all_back"]), (&json!(true), &json!(true)), "{told}");
    assert_eq!((&told["at_a_time"], &told["after_stop"]), (&json!(1), &json!(0)), "{told}");
    assert_eq!(told["is_stopped"], true);
    assert!(told["calls"].as_u64() >= Some(21), "{told}");

    // Started again, it is the same device, and sends what the others can read.
    program.tell("again").await;
    assert_eq!(program.says("again").await["second_login"], "Store");
    let ready = program.says("ready").await;
    assert_eq!(ready, program.ready);
    program.tell("send again here").await;
    other.entry("added", "again", Some("here")).await;

    // What is given up, or let go of, is not there any more.
    world.open_call();
    other.tell("call").await;
    other.call(&[]).await;
    program.tell("early-leave").await;
    let told = program.says("early-leave").await;
    // It may have joined before it was left; then it has left as any other.
    let errors = [json!("Again"), Value::Null];
    assert!(told["state"] == "Left" && errors.contains(&told["error"]), "{told}");
    program.tell("join").await;
    program.until("own", |it| it["state"] == "Joined").await;
    other.call(&[json!([alice.user_id, "audio", true])]).await;
    program.tell("drop").await;
    let gone = other.call(&[]).await;
    assert_eq!(gone["left"], json!([[alice.user_id, "delayed_leave"]]));
    program.tell(&format!("cancel-logins {} alice {}", world.url(), support::PASSWORD)).await;
    program.says("cancel-logins").await;

    program.quit().await;
    other.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_kotlin_lives() {
    lives(Language::Kotlin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_python_lives() {
    lives(Language::Python).await;
}

/// Ten thousand listeners that come and go, and a thousand times twenty entries that are read.
async fn does_not_leak(language: Language) {
    let Some(language) = languages(&[language]).pop() else { return };
    let world = World::new(&["alice"], false);
    let [alice] = world.people();
    let mut program = Program::start(language, &world, alice).await;
    for key in 0..20 {
        program.tell(&format!("send {key} {}", "x".repeat(1_000))).await;
        program.says("sent").await;
    }
    program.tell("leak 10000").await;
    let told = program.says("leak").await;
    let [warm, after] = ["warm_kb", "after_kb"].map(|it| told[it].as_i64().unwrap());
    eprintln!("{language}: {told}");
    // 10,000 tasks of some 600 bytes at the least, and 1,000 times 20 entries of 1,300 bytes, read twice,
    // would be 58 MB. What the JVM's heap of 64 MB does by itself is more than a byte.
    let most = if language == Language::Kotlin { 20_000 } else { 3_000 };
    assert!(after - warm < most, "{told}");
    program.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kotlin_does_not_leak() {
    does_not_leak(Language::Kotlin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_does_not_leak() {
    does_not_leak(Language::Python).await;
}

/// One in each language, in an encrypted room: each sees the others come, go, and die.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_in_kotlin_one_in_python_and_one_in_rust_see_one_another() {
    let languages = languages(&[Language::Kotlin, Language::Python]);
    let world = World::new(&["alice", "bob", "carol"], true);
    let [alice, bob, carol] = world.people();
    let builder = matrix_sdk::Client::builder().homeserver_url(world.url());
    let client = BaseClientBuilder::in_memory().build_client(builder).await.unwrap();
    client.matrix_auth().login_username("carol", support::PASSWORD).send().await.unwrap();
    let syncing = client.clone();
    let main_loop = tokio::spawn(async move { syncing.sync(Default::default()).await });
    let room = support::eventually("the room", || client.get_room(&world.room)).await;
    let call = room.sticky().rtc().session(ROOM_CALL);
    call.open().await.unwrap();

    let mut programs = Vec::new();
    for (language, person) in languages.iter().zip([alice, bob]) {
        programs.push((Program::start(*language, &world, person).await, person));
    }
    // Everybody's devices are known, so that each can read the others from the first event on.
    for (_, person) in &programs {
        client
            .encryption()
            .request_user_identity(<&UserId>::try_from(person.user_id.as_str()).unwrap())
            .await
            .unwrap();
    }
    let ours =
        call.join([RtcTransport::livekit("https://livekit.example.org")]).with_intent("video");
    let ours = ours.with_delay(Duration::from_secs(4)).await.unwrap();
    let mut there = vec![json!([carol.user_id, "video", true])];
    for (program, _) in &mut programs {
        program.tell("call").await;
        program.call(&there).await;
    }

    // They come.
    for at in 0..programs.len() {
        programs[at].0.tell("join").await;
        programs[at].0.until("own", |it| it["state"] == "Joined").await;
        there.push(json!([programs[at].1.user_id, "audio", true]));
        there.sort_by_key(Value::to_string);
        for (program, _) in &mut programs {
            program.call(&there).await;
        }
        support::eventually("we see it too", || {
            (client.sticky().events().snapshot().iter().count() > at + 1).then_some(())
        })
        .await;
    }
    // One says something else, exchanges keys, goes into the background, and comes back.
    if let Some(person) = programs.first().map(|(_, person)| (*person).clone()) {
        programs[0].0.tell("intent screen").await;
        let place = there.iter().position(|it| it[0] == person.user_id).unwrap();
        there[place][1] = json!("screen");
        for (program, _) in &mut programs {
            program.call(&there).await;
        }
        programs[0].0.tell("suspend").await;
        programs[0].0.until("own", |it| it["state"] == "Suspended").await;
        let gone = there.remove(place);
        for (program, _) in &mut programs {
            program.call(&there).await;
        }
        programs[0].0.tell("resume").await;
        programs[0].0.until("own", |it| it["state"] == "Joined").await;
        there.insert(place, gone);
        for (program, _) in &mut programs {
            program.call(&there).await;
        }
    }
    if programs.len() == 2 {
        for (program, _) in &mut programs {
            program.tell("keys").await;
        }
        let others = [programs[1].1.user_id.clone(), programs[0].1.user_id.clone()];
        for ((program, person), other) in programs.iter_mut().zip(others) {
            let own = person.user_id.clone();
            program.until("key", |it| it["change"] == "Own" && it["user_id"] == own).await;
            program.until("key", |it| it["change"] == "Peer" && it["user_id"] == other).await;
        }
    }

    // One dies, the other goes, and both are seen to.
    if programs.len() == 2 {
        let (killed, person) = programs.remove(0);
        killed.kill().await;
        there.retain(|it| it[0] != person.user_id);
        let left = programs[0].0.call(&there).await;
        assert_eq!(left["left"], json!([[person.user_id, "delayed_leave"]]));
    }
    ours.leave().await;
    assert_eq!(ours.state(), HeartbeatState::Left);
    there.retain(|it| it[0] != carol.user_id);
    for (program, _) in &mut programs {
        let left = program.call(&there).await;
        assert_eq!(left["left"], json!([[carol.user_id, "leave"]]));
    }
    for (mut program, person) in programs {
        program.tell("leave").await;
        assert_eq!(program.says("left").await["state"], "Left");
        there.retain(|it| it[0] != person.user_id);
        program.call(&there).await;
        program.quit().await;
    }
    main_loop.abort();
}
