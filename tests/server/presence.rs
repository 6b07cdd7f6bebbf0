//! The example `presence`, as a script runs it.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use matrix_sdk::ruma::RoomId;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout},
};

use crate::{
    proxy::Proxy,
    support::{DEADLINE, Person, example, signal},
};

/// In seconds.
const DELAY: u64 = 4;

/// What runs the example.
fn command(url: &str, person: &Person, room: &RoomId, more: &[&str]) -> Command {
    let mut command = example("presence", url, person, room);
    command.args(["--delay", &DELAY.to_string()]).args(more);
    command
}

/// The example, in a process of its own.
struct Example {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Example {
    fn start(person: &Person, room: &RoomId, more: &[&str]) -> Self {
        Self::start_on(person.url(), person, room, more)
    }

    fn start_on(url: &str, person: &Person, room: &RoomId, more: &[&str]) -> Self {
        let mut process = command(url, person, room, more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// Started, with `--json`, and live.
    async fn live(person: &Person, room: &RoomId, more: &[&str]) -> Self {
        let mut example = Self::start(person, room, &[more, &["--json"]].concat());
        assert_eq!(example.line().await, r#"{"kind":"ready","sync":"sliding"}"#);
        example
    }

    async fn line(&mut self) -> String {
        let next = timeout(DEADLINE, self.lines.next_line());
        next.await.expect("it says something").unwrap().unwrap_or_default()
    }

    /// Waits until exactly these users are there; what it said of them.
    async fn until_users(&mut self, users: &[&Person]) -> Vec<Value> {
        let mut wanted: Vec<_> = users.iter().map(|person| person.id().as_str()).collect();
        wanted.sort_unstable();
        loop {
            let line: Value = serde_json::from_str(&self.line().await).unwrap();
            if line["kind"] != "members" {
                continue;
            }
            let members = line["members"].as_array().unwrap().clone();
            let there: Vec<_> = members.iter().map(|it| it["user_id"].as_str().unwrap()).collect();
            if there == wanted {
                return members;
            }
        }
    }

    async fn until_own(&mut self, state: &str) {
        let wanted = json!({ "kind": "own", "state": state }).to_string();
        while self.line().await != wanted {}
    }

    async fn ends(mut self) -> ExitStatus {
        timeout(DEADLINE, self.process.wait()).await.expect("it ends").unwrap()
    }

    async fn ends_well(self) {
        let status = self.ends().await;
        assert!(status.success(), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_see_a_crash_and_a_leave() {
    let (alice, bob, carol) = (Person::new("alice"), Person::new("bob"), Person::new("carol"));
    let room = alice.room_with(&[&bob, &carol]);
    let mut looking = Example::live(&carol, &room, &[]).await;
    assert!(looking.until_users(&[]).await.is_empty());
    let mut first = Example::live(&alice, &room, &["--join"]).await;
    first.until_own("joining").await;
    first.until_own("joined").await;
    let members = looking.until_users(&[&alice]).await;
    assert!(members[0]["device_id"].is_string() && members[0]["member_id"].is_string());
    let told = ["form", "proven", "intent"].map(|name| &members[0][name]);
    assert_eq!(told, [&json!("both"), &json!(false), &json!("video")]);

    let mut second = Example::live(&bob, &room, &["--join"]).await;
    second.until_own("joined").await;
    looking.until_users(&[&alice, &bob]).await;
    second.process.kill().await.unwrap();
    let killed = Instant::now();
    looking.until_users(&[&alice]).await;
    assert!(killed.elapsed() < Duration::from_secs(DELAY + 4), "{:?}", killed.elapsed());

    signal(&first.process, "-INT").await;
    let left = Instant::now();
    looking.until_users(&[]).await;
    assert!(left.elapsed() < Duration::from_secs(4), "{:?}", left.elapsed());
    first.until_own("left").await;
    first.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leave_after_leaves_and_goes_on_watching() {
    let alice = Person::new("alice");
    let room = alice.room();
    let dialect = ["--dialect", "msc4143", "--open", "--join"];
    let times = ["--leave-after", "4", "--for", "8"];
    let mut example = Example::live(&alice, &room, &[&dialect[..], &times].concat()).await;
    example.until_own("joined").await;
    example.until_own("left").await;
    example.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_lines_say_why_a_member_left() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let mut looking = Example::start(&alice, &room, &[]);
    assert_eq!(looking.line().await, "live, by sliding sync");
    let mut other = Example::live(&bob, &room, &["--join"]).await;
    other.until_own("joined").await;
    let joined = looking.line().await;
    assert!(joined.starts_with(bob.id().as_str()) && joined.ends_with("? joined"), "{joined}");
    other.process.kill().await.unwrap();
    let gone = looking.line().await;
    assert!(gone.ends_with("is gone: crashed or cut off: its server said so"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_slot_ends_with_the_reason() {
    let alice = Person::new("alice");
    let room = alice.room();
    let run =
        command(alice.url(), &alice, &room, &["--dialect", "msc4143", "--join", "--json"]).output();
    let output = timeout(DEADLINE, run).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is said before it is clear");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(why.starts_with("error: the room has no such slot: open it"), "{why}");
    assert_eq!(why.lines().count(), 1, "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_member_rejoins_as_another() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let proxy = Proxy::before(bob.url()).await;
    let mut looking = Example::live(&alice, &room, &[]).await;
    let mut example = Example::start_on(proxy.url(), &bob, &room, &["--join", "--json"]);
    example.until_own("joined").await;
    let before = looking.until_users(&[&bob]).await;
    proxy.cut();
    example.until_own("probably_left").await;
    looking.until_users(&[]).await;
    proxy.mend();
    example.until_own("rejoining").await;
    example.until_own("joined").await;
    let after = looking.until_users(&[&bob]).await;
    assert_eq!(before[0]["device_id"], after[0]["device_id"]);
    assert_ne!(before[0]["member_id"], after[0]["member_id"]);
    // A goodbye that nobody answers is given up.
    proxy.freeze(true);
    signal(&example.process, "-INT").await;
    let status = timeout(DEADLINE, example.process.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_the_room_ends_the_membership_alone() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let mut example = Example::live(&bob, &room, &["--join"]).await;
    example.until_own("joined").await;
    bob.leave(&room);
    example.until_own("left").await;
    assert_eq!(example.process.try_wait().unwrap(), None);
    signal(&example.process, "-INT").await;
    example.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_signal_ends_it_at_once() {
    let alice = Person::new("alice");
    let room = alice.room();
    for ms in [50, 400, 1_000] {
        let example = Example::start(&alice, &room, &["--json", "--join"]);
        tokio::time::sleep(Duration::from_millis(ms)).await;
        signal(&example.process, "-INT").await;
        let asked = Instant::now();
        let status = example.ends().await;
        // On a busy machine the signal may come before anybody listens, and then it is the end.
        assert!(status.success() || status.signal() == Some(2), "after {ms} ms: {status}");
        assert!(asked.elapsed() < Duration::from_secs(10), "after {ms} ms: {:?}", asked.elapsed());
    }
}
