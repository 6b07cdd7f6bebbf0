//! The homeserver that all the other tests stand on.
#![allow(clippy::disallowed_methods, reason = "a real server, on a real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use xtask::{
    api::Api,
    homeserver::{Options, StartError, Synapse},
};

const TYPE: &str = "com.example.presence";

fn start(options: &Options) -> Synapse {
    Synapse::start(options).unwrap_or_else(|error| panic!("{error}"))
}

fn unstable_features(api: &Api) -> Value {
    api.get("/_matrix/client/versions").unwrap()["unstable_features"].clone()
}

/// Waits until nobody answers; the system tells a supervisor of its owner's end in its own time.
fn goes_silent(api: &Api) -> bool {
    (0..100).any(|_| {
        thread::sleep(Duration::from_millis(50));
        api.get("/_matrix/client/versions").is_err()
    })
}

#[test]
fn a_sticky_event_survives_a_restart() {
    let mut server = start(&Options::default());
    let alice = server.register("alice", "secret").unwrap();
    assert_eq!(alice.user_id, "@alice:sticky.test");
    assert_eq!(server.register("alice", "secret").unwrap_err().code().unwrap(), "M_USER_IN_USE");
    let api = server.api(&alice);
    let features = unstable_features(&api);
    assert_eq!(features["org.matrix.msc4354"], true);
    assert_eq!(features["org.matrix.msc4140"], true);

    assert_eq!(server.name(), "sticky.test");
    assert!(server.link().is_none());
    let room = api.create_room(&json!({ "name": "Sticky" })).unwrap();
    let content = json!({ "msc4354_sticky_key": "k", "sticky_key": "k", "status": "here" });
    let send = |txn: &str| api.send(&room, TYPE, txn, &content, Some(60_000)).unwrap();
    let event = send("1");
    assert_eq!(send("1"), event);
    assert_eq!(api.event(&room, &event).unwrap()["msc4354_sticky"]["duration_ms"], 60_000);

    server.restart().unwrap();
    assert_eq!(api.event(&room, &event).unwrap()["content"], content);
    api.redact(&room, &event, "2").unwrap();
    assert_eq!(api.event(&room, &event).unwrap()["content"], json!({}));

    // Past what the default rate limits let through.
    for number in 0..30 {
        send(&format!("many {number}"));
    }
}

#[test]
fn options_switch_features_off() {
    let server = start(&Options {
        sticky: false,
        delayed_events: false,
        rate_limits: true,
        ..Options::default()
    });
    let api = server.api(&server.register("alice", "secret").unwrap());
    let features = unstable_features(&api);
    assert_ne!(features["org.matrix.msc4354"], true);
    assert_ne!(features["org.matrix.msc4140"], true);
    let room = api.create_room(&json!({})).unwrap();
    let refused = (0..40)
        .find_map(|n| api.send(&room, TYPE, &n.to_string(), &json!({}), None).err())
        .expect("the rate limit bites");
    assert_eq!(refused.status(), Some(429));
}

#[test]
fn a_dropped_server_leaves_nothing() {
    let mut server = start(&Options::default());
    let api = Api::anonymous(server.url());
    server.pause().unwrap();
    assert!(server.is_running());
    server.resume().unwrap();
    unstable_features(&api);

    server.pause().unwrap();
    server.restart().unwrap();
    unstable_features(&api);

    server.kill().unwrap();
    assert!(!server.is_running());
    server.pause().unwrap_err();
    server.restart().unwrap();

    server.pause().unwrap();
    let dir = server.dir().to_owned();
    drop(server);
    assert!(goes_silent(&api));
    assert!(!dir.exists());
}

#[test]
fn the_server_does_not_outlive_a_killed_owner() {
    let (mut owner, said) = homeserver(&["--users", "alice"]);
    let api = Api::anonymous(said[0].rsplit(' ').next().unwrap());
    unstable_features(&api);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(goes_silent(&api));
}

/// What it prints can be pasted, and is about rooms and users that are there.
#[test]
fn a_homeserver_to_play_with_has_rooms() {
    let (mut owner, said) = homeserver(&["--users", "alice,bob"]);
    let url = said[0].rsplit(' ').next().unwrap();
    let login = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "bob" },
        "password": "bob-password",
    });
    let session = Api::anonymous(url).post("login", &login).unwrap();
    let bob = Api::new(url, session["access_token"].as_str().unwrap());
    let rooms = bob.get("joined_rooms").unwrap()["joined_rooms"].as_array().unwrap().len();
    assert_eq!(rooms, 2);
    let secret = bob.get("directory/room/%23secret:sticky.test").unwrap()["room_id"].clone();
    let state = format!("rooms/{}/state/m.room.encryption", secret.as_str().unwrap());
    assert_eq!(bob.get(&state).unwrap()["algorithm"], "m.megolm.v1.aes-sha2");
    for (example, user) in [("watch", "alice"), ("send", "bob")] {
        let account = format!(
            "--example {example} -- --homeserver {url} --username {user} \
             --password {user}-password --room '#play:sticky.test'"
        );
        assert!(said.iter().any(|line| line.contains(&account)), "{account} in {said:#?}");
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
}

/// `cargo xtask homeserver`, and what it says until it is ready.
fn homeserver(args: &[&str]) -> (Child, Vec<String>) {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("homeserver")
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    while !said.last().is_some_and(|line: &String| line.starts_with("Ctrl-C")) {
        said.push(lines.next().expect("the owner says where the server is").unwrap());
    }
    (owner, said)
}

#[test]
fn a_taken_port_is_named() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let error = Synapse::start(&Options { port: Some(port), ..Options::default() }).unwrap_err();
    assert!(matches!(error, StartError::PortTaken { port: named } if named == port), "{error}");
}

#[test]
fn a_port_taken_before_the_start_is_named() {
    let mut server = start(&Options::default());
    let port: u16 = server.url().rsplit(':').next().unwrap().parse().unwrap();
    server.stop().unwrap();
    let _holder = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = server.restart().unwrap_err();
    assert!(matches!(error, StartError::PortTaken { port: named } if named == port), "{error}");
}

#[test]
fn two_servers_federate_until_cut() {
    let options = Options { federates: true, ..Options::default() };
    let [here, there] = [start(&options), start(&options)];
    let alice = here.api(&here.register("alice", "secret").unwrap());
    let bob = there.api(&there.register("bob", "secret").unwrap());
    let room = alice.create_room(&json!({ "preset": "public_chat" })).unwrap();
    bob.join_via(&room, here.name()).unwrap();
    let send = |text: &str| {
        let content = json!({ "msgtype": "m.text", "body": text });
        alice.send(&room, "m.room.message", text, &content, None).unwrap()
    };
    let comes = |event: &str, tries: usize| {
        (0..tries).any(|_| {
            thread::sleep(Duration::from_millis(200));
            bob.event(&room, event).is_ok()
        })
    };
    assert!(comes(&send("before"), 100));
    for server in [&here, &there] {
        server.link().unwrap().cut();
    }
    let event = send("meanwhile");
    assert!(!comes(&event, 10));
    for server in [&here, &there] {
        server.link().unwrap().mend();
    }
    assert!(comes(&event, 300));
}
