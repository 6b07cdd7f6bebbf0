//! `cargo xtask demo`: `presence` on a server of our own, and people who come to the room's call and go.
//!
//! They are processes of the same program, and what happens to them is real: a user who leaves says
//! goodbye, and one who crashes is killed. Then the server says so, by the leave that was armed.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::json;
use xtask::{
    api::ApiError,
    homeserver::{Options, Synapse},
};

use crate::{
    DemoArgs,
    cargo::Cargo,
    process::{End, Extra, Interrupt, run_in_terminal},
    serve::{password, start},
};

/// The user who looks on.
const WATCHER: &str = "alice";

/// How many seconds after a crash everybody sees it.
const DELAY: &str = "4";

/// A round: the second, the user, and what the user does. The first crash is seen, and the first goodbye said, within
/// 15 seconds of the start.
const ROUND: [(u64, &str, Doing); 9] = [
    (0, "bob", Doing::Join),
    (1, "carol", Doing::Join),
    (3, "dave", Doing::Join),
    (7, "carol", Doing::Crash),
    (13, "bob", Doing::Leave),
    (16, "carol", Doing::Join),
    (20, "bob", Doing::Join),
    (26, "dave", Doing::Crash),
    (32, "carol", Doing::Leave),
];

/// What `presence` prints when everybody can see it.
const JOINED: &str = r#"{"kind":"own","state":"joined"}"#;

/// When to go on although a user has not joined.
const JOINED_WITHIN: Duration = Duration::from_secs(15);

/// How long a user who has joined can be seen at least.
const SEEN_FOR: Duration = Duration::from_secs(1);

/// When to look again whether what is waited for has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// When the next round begins. Users who are still there stay.
const ROUND_TAKES: u64 = 36;

/// What stays on the screen afterwards.
const GOODBYE: &str = "That was the example `presence` in an encrypted call, on a Synapse of its own. \
                       The server is gone, and so are its users.\n\
                       To try it by hand: cargo xtask homeserver. What the examples do: examples/README.md";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Join,
    Leave,
    Crash,
}

pub(crate) fn run(
    args: &DemoArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let presence = cargo.executable(&["--example", "presence"], "presence", interrupt)?;
    let Some(presence) = presence else {
        return Ok(ExitCode::SUCCESS);
    };
    eprintln!("starting a Synapse of its own ..");
    let Some(server) = start(Options::default(), interrupt)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let room = set_stage(&server).context("cannot set up the demo's room")?;

    let mut command = presence_of(&presence, &server, WATCHER, &room);
    // So that there is a heartbeat to be seen, too.
    command.arg("--join");
    if args.json {
        command.arg("--json");
    }
    if let Some(seconds) = args.seconds {
        command.args(["--for", &seconds.to_string()]);
    }

    let over = AtomicBool::new(false);
    let end = thread::scope(|scope| {
        let cast = Cast { presence: &presence, server: &server, room: &room, over: &over };
        scope.spawn(move || cast.live());
        let end = run_in_terminal(command, interrupt);
        over.store(true, Ordering::SeqCst);
        end
    });
    if !args.json {
        println!("{GOODBYE}");
    }
    match end? {
        End::Interrupted => Ok(ExitCode::SUCCESS),
        End::Exited(status) => {
            // Ended by a signal, it has no code of its own.
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

/// Builds the example `watch` and says where it is; `None` if Ctrl-C came first.
pub(crate) fn build_watch(cargo: &Cargo, interrupt: &Interrupt) -> anyhow::Result<Option<PathBuf>> {
    cargo.executable(&["--example", "watch"], "watch", interrupt)
}

/// An encrypted room with everybody in it, whose slot is open. Its alias.
fn set_stage(server: &Synapse) -> Result<String, ApiError> {
    let join = |name: &str| server.register(name, &password(name)).map(|user| server.api(&user));
    let watcher = join(WATCHER)?;
    let room = watcher.create_room(&json!({
        "name": "Demo",
        "preset": "public_chat",
        "initial_state": [
            {
                "type": "m.room.encryption",
                "state_key": "",
                "content": { "algorithm": "m.megolm.v1.aes-sha2" },
            },
            {
                "type": "org.matrix.msc4143.rtc.slot",
                "state_key": "m.call#ROOM",
                "content": {
                    "status": "open",
                    "application": { "type": "m.call" },
                    "encryption": { "type": "org.matrix.msc4143.per_member" },
                },
            },
        ],
    }))?;
    let mut people: Vec<_> = ROUND.iter().map(|(_, name, _)| *name).collect();
    people.sort_unstable();
    people.dedup();
    for name in people {
        join(name)?.join(&room)?;
    }
    Ok(room)
}

/// A command that runs `presence` as this user.
fn presence_of(presence: &Path, server: &Synapse, name: &str, room: &str) -> Command {
    let mut command = Command::new(presence);
    command.args(["--homeserver", server.url(), "--username", name, "--room", room]);
    command.args(["--delay", DELAY]).env("MATRIX_PASSWORD", password(name));
    command
}

/// The users who come and go.
struct Cast<'a> {
    presence: &'a Path,
    server: &'a Synapse,
    room: &'a str,
    over: &'a AtomicBool,
}

impl Cast<'_> {
    fn live(self) {
        let mut there: Vec<(&str, Extra)> = Vec::new();
        // The one that looks on is there first, so what it sees begins with an empty call.
        self.pause(Duration::from_secs(2));
        while !self.over.load(Ordering::SeqCst) {
            let began = Instant::now();
            for (second, name, doing) in ROUND {
                self.pause(Duration::from_secs(second).saturating_sub(began.elapsed()));
                if self.over.load(Ordering::SeqCst) {
                    break;
                }
                let found = there.iter().position(|(who, _)| *who == name);
                let person = found.map(|at| there.remove(at).1);
                if let Some(person) = &person
                    && doing != Doing::Join
                {
                    self.until_seen(person);
                }
                match (doing, person) {
                    // From an earlier round.
                    (Doing::Join, Some(person)) => there.push((name, person)),
                    (Doing::Join, None) => {
                        let mut command = presence_of(self.presence, self.server, name, self.room);
                        // And not for longer than the demo, whatever becomes of us.
                        command.args(["--join", "--json", "--for", "600"]);
                        match Extra::start(command, JOINED) {
                            Ok(person) => there.push((name, person)),
                            Err(error) => eprintln!("the simulated user {name}: {error:#}"),
                        }
                    }
                    (Doing::Leave, Some(person)) => person.leave(),
                    (Doing::Crash, Some(person)) => person.crash(),
                    (Doing::Leave | Doing::Crash, None) => {}
                }
            }
            self.pause(Duration::from_secs(ROUND_TAKES).saturating_sub(began.elapsed()));
        }
        // Nobody looks any more. The remaining users end with the demo.
    }

    /// Waits until a user has been seen: on a slow machine the user may still be on the way.
    fn until_seen(&self, person: &Extra) {
        if person.has_said() {
            return;
        }
        let began = Instant::now();
        while !person.has_said() && began.elapsed() < JOINED_WITHIN {
            self.pause(LOOK_EVERY);
            if self.over.load(Ordering::SeqCst) {
                return;
            }
        }
        self.pause(SEEN_FOR);
    }

    /// Waits, but not beyond the end of the demo.
    fn pause(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while !self.over.load(Ordering::SeqCst) && Instant::now() < until {
            thread::sleep(LOOK_EVERY);
        }
    }
}
