//! matrix-js-sdk, as Element Call runs it: the real one from npm, on a Node from npm. A process for
//! each client, `js/peer.mjs`. Where it cannot be installed, whoever needs it fails and says what is
//! missing.

use std::{
    process::Stdio,
    sync::OnceLock,
    time::{Duration, Instant},
};

#[cfg(feature = "media-keys")]
use matrix_sdk::ruma::serde::{Base64, base64::Standard};
use matrix_sdk::ruma::{RoomId, UserId};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use xtask::npm::Js;

use crate::support::{self, DEADLINE, PASSWORD, Person, eventually};

/// How long the leave of a js member waits, if nobody calls; it calls every second.
pub(crate) const DELAY: Duration = Duration::from_secs(4);

/// A member of the session, as matrix-js-sdk shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Member {
    pub(crate) user_id: String,
    pub(crate) device_id: String,
    pub(crate) member_id: String,
    pub(crate) intent: Option<String>,
}

/// A media key, as matrix-js-sdk hands it to whoever encrypts and decrypts: its own, or another's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct MediaKey {
    pub(crate) index: u8,
    pub(crate) key: String,
    pub(crate) user_id: String,
    pub(crate) device_id: String,
    pub(crate) member_id: String,
    /// What the SFU calls the member.
    pub(crate) identity: String,
}

#[cfg(feature = "media-keys")]
impl MediaKey {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        Base64::<Standard>::parse(&self.key).unwrap().into_inner()
    }
}

/// A matrix-js-sdk client in a process of its own. It ends with this, by force.
pub(crate) struct JsPeer {
    process: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) user_id: String,
    pub(crate) device_id: String,
    /// What it last said of the session.
    members: Vec<Member>,
    keys: Vec<MediaKey>,
    /// All that it said, for whoever has to find out what went wrong.
    log: Vec<String>,
}

impl JsPeer {
    /// A new device of the person, once it has synced and knows the room.
    pub(crate) async fn of(person: &Person, room: &RoomId, encrypted: bool) -> Self {
        static JS: OnceLock<Js> = OnceLock::new();
        let js = JS.get_or_init(|| Js::ensure().unwrap_or_else(|error| panic!("{error}")));
        let command = js.node(&[], "tests/server/js/peer.mjs").unwrap();
        let mut process = Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut peer = Self {
            stdin: process.stdin.take().unwrap(),
            lines: BufReader::new(process.stdout.take().unwrap()).lines(),
            process,
            user_id: person.id().to_string(),
            device_id: String::new(),
            members: Vec::new(),
            keys: Vec::new(),
            log: Vec::new(),
        };
        let done = peer
            .tell(json!({
                "do": "start",
                "homeserver": person.url(),
                "user": person.id(),
                "password": PASSWORD,
                "room": room,
                "crypto": encrypted,
            }))
            .await;
        peer.device_id = done["device_id"].as_str().unwrap().to_owned();
        if encrypted {
            let (user_id, device_id) = (&peer.user_id, &peer.device_id);
            let asked = json!({ "device_keys": { user_id: [device_id] } });
            eventually("others can encrypt to js", async || {
                let answer = person.api.post("keys/query", &asked).unwrap();
                match answer["device_keys"][user_id].get(device_id) {
                    Some(_) => Ok(()),
                    None => Err(answer),
                }
            })
            .await;
        }
        peer
    }

    /// Waits until it knows the device, and encrypts to it.
    pub(crate) async fn knows(&mut self, user_id: &UserId, device_id: &str) {
        self.tell(json!({ "do": "know", "user_id": user_id, "device_id": device_id })).await;
    }

    /// Joins, with sticky events, and with media keys if it has been told to encrypt; the member id.
    pub(crate) async fn join(&mut self, intent: &str) -> String {
        self.join_with(json!({ "intent": intent })).await
    }

    pub(crate) async fn join_with(&mut self, mut options: Value) -> String {
        options["do"] = json!("join");
        options["delay_ms"] = json!(DELAY.as_millis());
        options["restart_ms"] = json!(1000);
        let done = self.tell(options).await;
        done["member_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn leave(&mut self) {
        self.tell(json!({ "do": "leave" })).await;
    }

    /// As SIGKILL does: nothing is said any more.
    pub(crate) async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }

    /// Stops it, or lets it go on.
    pub(crate) async fn signal(&self, signal: &str) {
        support::signal(&self.process, signal).await;
    }

    /// Has it do something, and waits until it is done; the answer.
    pub(crate) async fn tell(&mut self, command: Value) -> Value {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let is_answer = |line: &Value| line["kind"] == "done" && line["do"] == command["do"];
        self.until(&format!("it did {}", command["do"]), is_answer).await
    }

    /// Waits until its session is like that.
    pub(crate) async fn until_members(&mut self, what: &str, is: impl Fn(&[Member]) -> bool) {
        while !is(&self.members) {
            self.until(what, |line| line["kind"] == "memberships").await;
        }
    }

    /// Waits until exactly these are in its session, whatever their order.
    pub(crate) async fn until_session_is(&mut self, members: &[&Member]) {
        let is = |seen: &[Member]| {
            seen.len() == members.len() && members.iter().all(|member| seen.contains(member))
        };
        self.until_members(&format!("{members:?} are in the session"), is).await;
    }

    /// Waits until it has a media key of that member, and returns the latest.
    pub(crate) async fn until_key_of(&mut self, member: &Member) -> MediaKey {
        loop {
            let is_of = |key: &&MediaKey| {
                key.user_id == member.user_id
                    && key.device_id == member.device_id
                    && key.member_id == member.member_id
            };
            if let Some(key) = self.keys.iter().rev().find(is_of) {
                return key.clone();
            }
            self.until(&format!("it has a key of {member:?}"), |line| line["kind"] == "key").await;
        }
    }

    /// Reads on until a line is like that.
    async fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let left = DEADLINE.saturating_sub(began.elapsed());
            let line = match timeout(left, self.lines.next_line()).await {
                Ok(Ok(Some(line))) => line,
                end => panic!("js: not within {DEADLINE:?}: {what}; {end:?}; {:#?}", self.log),
            };
            self.log.push(format!("{:?} {line}", began.elapsed()));
            let line: Value = serde_json::from_str(&line).unwrap();
            match line["kind"].as_str() {
                Some("error") => panic!("js: {line}, before {what}; {:#?}", self.log),
                Some("memberships") => {
                    self.members = serde_json::from_value(line["members"].clone()).unwrap();
                }
                Some("key") => self.keys.push(serde_json::from_value(line.clone()).unwrap()),
                _ => {}
            }
            if is(&line) {
                return line;
            }
        }
    }

    /// Its own membership.
    pub(crate) fn member(&self, member_id: &str, intent: &str) -> Member {
        Member {
            user_id: self.user_id.clone(),
            device_id: self.device_id.clone(),
            member_id: member_id.to_owned(),
            intent: Some(intent.to_owned()),
        }
    }
}
