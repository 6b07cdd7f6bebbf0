//! A program that only does what the crate's front page says, on a server that restarts under it.

use std::process::Stdio;

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};
use xtask::homeserver::Options;

use crate::support::{DEADLINE, Person, TYPE, example_of, start};

/// The smallest example says what comes before and after the restart, and its main loop goes on too:
/// the room that a redaction comes from has no other way.
#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_program_survives_a_restart() {
    let mut server = start(&Options::default());
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let send = |key: &str| {
        let content = json!({ "sticky_key": key, "msc4354_sticky_key": key, "status": "here" });
        alice.api.send(room.as_str(), TYPE, key, &content, Some(600_000)).unwrap()
    };
    let mut process = example_of("smallest", server.url(), &alice)
        .arg(room.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut until = async |sign: &str, key: &str| loop {
        let line = timeout(DEADLINE, lines.next_line()).await.expect("a line").unwrap().unwrap();
        if line.starts_with(sign) && line.contains(&format!(r#""sticky_key":"{key}""#)) {
            return;
        }
    };
    let event_id = send("before");
    until("+ @", "before").await;
    server.restart().unwrap();
    send("after");
    until("+ @", "after").await;
    alice.api.redact(room.as_str(), &event_id, "redact").unwrap();
    until("- @", "before").await;
    assert!(process.try_wait().unwrap().is_none(), "it goes on");
}
