//! `cargo xtask demo`: `watch` on a server of our own, and people in the room who give it something
//! to show. They send, refresh, remove, redact and let expire, each kind within twelve seconds.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::{Map, Value, json};
use xtask::{
    api::{Api, ApiError},
    homeserver::{Options, Synapse},
};

use crate::{
    DemoArgs,
    cargo::Cargo,
    process::{End, Interrupt, run_in_terminal},
    serve::{password, start},
};

/// Who looks on.
const WATCHER: &str = "alice";

/// Who is simulated.
const PEOPLE: [&str; 3] = ["bob", "carol", "dave"];

/// When the next thing of a person's round happens.
const BEAT: Duration = Duration::from_millis(1_200);

/// Each person begins that much after the one before.
const STAGGER: Duration = Duration::from_millis(400);

pub(crate) fn run(
    args: &DemoArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let Some(watch) = build_watch(cargo, interrupt)? else {
        return Ok(ExitCode::SUCCESS);
    };
    eprintln!("starting a Synapse of its own ..");
    let Some(server) = start(Options::default(), interrupt)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let stage = Stage::set(&server).context("cannot set up the demo's room")?;

    let mut command = Command::new(watch);
    command.args(["--homeserver", server.url(), "--username", WATCHER]);
    command.args(["--password", &password(WATCHER), "--room", &stage.room]);
    if args.json {
        command.arg("--json");
    }
    if let Some(seconds) = args.seconds {
        command.args(["--for", &seconds.to_string()]);
    }

    let over = AtomicBool::new(false);
    let end = thread::scope(|scope| {
        for (number, (name, api)) in (0_u32..).zip(&stage.people) {
            let person = Person { name, api, room: &stage.room, over: &over, sent: 0 };
            scope.spawn(move || person.live(STAGGER.saturating_mul(number)));
        }
        let end = run_in_terminal(command, interrupt);
        over.store(true, Ordering::SeqCst);
        end
    });
    match end? {
        End::Interrupted => Ok(ExitCode::SUCCESS),
        End::Exited(status) => {
            // Ended by a signal, it has no code of its own.
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

/// Builds the example and says where it is; `None` if Ctrl-C came first.
pub(crate) fn build_watch(cargo: &Cargo, interrupt: &Interrupt) -> anyhow::Result<Option<PathBuf>> {
    eprintln!("building the example `watch` (some minutes the first time) ..");
    cargo.executable(&["--example", "watch"], "watch", interrupt)
}

/// The room and who is in it.
struct Stage {
    room: String,
    people: Vec<(&'static str, Api)>,
}

impl Stage {
    fn set(server: &Synapse) -> Result<Self, ApiError> {
        let join =
            |name: &str| server.register(name, &password(name)).map(|user| server.api(&user));
        let watcher = join(WATCHER)?;
        let room =
            watcher.create_room(&json!({ "name": "Sticky demo", "preset": "public_chat" }))?;
        let mut people = Vec::new();
        for name in PEOPLE {
            let person = join(name)?;
            person.join(&room)?;
            people.push((name, person));
        }
        Ok(Self { room, people })
    }
}

/// A simulated user: a round of ten beats, again and again.
struct Person<'a> {
    name: &'a str,
    api: &'a Api,
    room: &'a str,
    over: &'a AtomicBool,
    sent: u32,
}

const PRESENCE: &str = "com.example.presence";
const HAND: &str = "com.example.hand";
const NOTE: &str = "com.example.note";

impl Person<'_> {
    fn live(mut self, first: Duration) {
        self.pause(first);
        let mut complained = false;
        while !self.is_over() {
            match self.round() {
                Err(error) if !self.is_over() && !complained => {
                    // Once: it goes on trying, and a screen full of the same helps nobody.
                    complained = true;
                    eprintln!("the simulated user {} could not act: {error}", self.name);
                    self.pause(BEAT);
                }
                Err(_) => self.pause(BEAT),
                Ok(()) => {}
            }
        }
    }

    fn round(&mut self) -> Result<(), ApiError> {
        self.send(PRESENCE, "laptop", json!({ "status": "available" }), 60)?;
        self.beat();
        // Nobody lowers it: it expires.
        self.send(HAND, "hand", json!({ "raised": true }), 6)?;
        self.beat();
        self.send(PRESENCE, "phone", json!({ "status": "away" }), 15)?;
        self.beat();
        self.send(PRESENCE, "laptop", json!({ "status": "busy" }), 60)?;
        self.beat();
        let note = self.send(NOTE, "board", json!({ "text": "wrong room, sorry" }), 30)?;
        self.beat();
        self.send(PRESENCE, "laptop", json!({ "status": "in a call" }), 60)?;
        self.beat();
        if !self.is_over() {
            let txn = self.next_txn();
            self.api.redact(self.room, &note, &txn)?;
        }
        self.beat();
        // A removal is content with nothing but the key, sticky for as long as what it removes.
        self.send(PRESENCE, "phone", json!({}), 15)?;
        self.beat();
        self.send(PRESENCE, "laptop", json!({}), 60)?;
        self.beat();
        self.beat();
        Ok(())
    }

    fn send(
        &mut self,
        event_type: &str,
        key: &str,
        content: Value,
        seconds: u64,
    ) -> Result<String, ApiError> {
        if self.is_over() {
            return Ok(String::new());
        }
        let mut keyed = Map::new();
        keyed.insert("msc4354_sticky_key".to_owned(), json!(key));
        keyed.insert("sticky_key".to_owned(), json!(key));
        if let Value::Object(content) = content {
            keyed.extend(content);
        }
        let txn = self.next_txn();
        let milliseconds = seconds.saturating_mul(1_000);
        self.api.send(self.room, event_type, &txn, &keyed.into(), Some(milliseconds))
    }

    fn next_txn(&mut self) -> String {
        self.sent = self.sent.wrapping_add(1);
        format!("demo-{}", self.sent)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn beat(&self) {
        self.pause(BEAT);
    }

    /// Waits, but not beyond the end of the demo.
    fn pause(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while !self.is_over() && Instant::now() < until {
            thread::sleep(Duration::from_millis(50));
        }
    }
}
