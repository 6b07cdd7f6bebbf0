//! The examples on a server whose access tokens run out after a few seconds.

use std::{path::Path, process::Stdio, time::Duration};

use matrix_sdk::ruma::RoomId;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};
use xtask::homeserver::{Options, Synapse};

use crate::support::{DEADLINE, LONG, Person, example, start};

/// For how long an access token is good. On a busy machine a shorter one may be over before it is used.
const LIFETIME: Duration = Duration::from_secs(10);

/// For longer than any token of the start is good, and the one that replaces it.
const TWO_LIVES: Duration = Duration::from_secs(21);

fn server() -> Synapse {
    start(&Options { token_lifetime: Some(LIFETIME), ..Options::default() })
}

/// An example in a process of its own, which says one JSON object a line.
struct Example {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Example {
    fn start(mut command: Command) -> Self {
        command.arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    async fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) {
        let mut said = Vec::new();
        let found = timeout(DEADLINE, async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                let line = serde_json::from_str(&line).unwrap();
                if is(&line) {
                    return;
                }
                said.push(line);
            }
            sleep(DEADLINE).await;
        });
        assert!(found.await.is_ok(), "not said: {what}; {said:?}; {:?}", self.process.try_wait());
    }

    async fn until_own(&mut self, state: &str) {
        let wanted = json!({ "kind": "own", "state": state });
        self.until(state, |line| *line == wanted).await;
    }

    async fn until_members(&mut self, count: usize) {
        let is = |line: &Value| line["members"].as_array().is_some_and(|it| it.len() == count);
        self.until(&format!("{count} members"), is).await;
    }
}

/// `heartbeat` with what it keeps in a folder.
fn heartbeat(person: &Person, room: &RoomId, store: &Path) -> Example {
    let mut command = example("heartbeat", person.url(), person, room);
    command.args(["--type", crate::support::TYPE, "--key", "k", "--content", "{}"]);
    command.args(["--delay", "4", "--store"]).arg(store);
    Example::start(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_outlives_its_access_tokens() {
    let server = server();
    let (alice, bob) = (Person::on(&server, "alice"), Person::on(&server, "bob"));
    let room = alice.room_with(&[&bob]);
    let presence = |person: &Person| {
        let mut command = example("presence", person.url(), person, &room);
        command.args(["--join", "--delay", "4"]);
        Example::start(command)
    };
    let mut first = presence(&alice);
    first.until_own("joined").await;
    sleep(TWO_LIVES).await;
    let mut second = presence(&bob);
    second.until_members(2).await;
    first.until_members(2).await;
    second.process.kill().await.unwrap();
    first.until_members(1).await;
    assert_eq!(first.process.try_wait().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_outlives_its_access_tokens() {
    let server = server();
    let (alice, bob) = (Person::on(&server, "alice"), Person::on(&server, "bob"));
    let room = alice.room_with(&[&bob]);
    let mut watch = Example::start(example("watch", alice.url(), &alice, &room));
    watch.until("ready", |line| line["kind"] == "ready").await;
    sleep(TWO_LIVES).await;
    // Synapse still answers a request that it has held since before the token ran out, and refuses
    // the next one.
    for key in ["first", "second"] {
        bob.send(&room, key, "", LONG);
        watch.until(key, |line| line["sticky_key"] == key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_heartbeat_has_its_latest_tokens() {
    let server = server();
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let store = tempfile::tempdir().unwrap();
    let mut first = heartbeat(&alice, &room, store.path());
    first.until_own("joined").await;
    sleep(TWO_LIVES).await;
    assert_eq!(first.process.try_wait().unwrap(), None);
    first.process.kill().await.unwrap();
    let devices = || alice.api.get("devices").unwrap()["devices"].as_array().unwrap().len();
    let before = devices();

    let mut second = heartbeat(&alice, &room, store.path());
    second.until_own("joined").await;
    sleep(TWO_LIVES).await;
    assert_eq!(second.process.try_wait().unwrap(), None);
    assert_eq!(devices(), before, "it did not log in again");
}
