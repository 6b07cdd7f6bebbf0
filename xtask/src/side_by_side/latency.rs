//! From send to callback, on a real Synapse: two users in one room, one with each client, and a
//! third user that sends.
//!
//! Both clients print a line from their callback. One process reads both pipes and stamps each
//! line, so that both are on one clock and pay the same for the pipe.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use xtask::{api::Api, homeserver::Options, npm::Js};

use super::{Row, Table, median, percentile};
use crate::{
    cargo::Cargo,
    demo::build_watch,
    process::Interrupt,
    serve::{password, start},
};

/// The users that look on. Each has our client in one half of the rounds and theirs in the other,
/// because the server answers one user before the other.
const WATCHERS: [&str; 2] = ["alice", "bob"];

const SENDER: &str = "carol";

/// How often both clients are started anew, with the users swapped.
const ROUNDS: usize = 4;

/// How many events a round sends that count, after those that warm up connections and compilers.
const EVENTS: usize = 40;
const WARM_UP: usize = 8;

/// How many keys the sender has: an event adds an entry or refreshes one.
const KEYS: usize = 10;

/// When to give up on a client that does not start, or an event that does not come.
const START_WITHIN: Duration = Duration::from_secs(60);
const COME_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn measure(
    js: &Js,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<Table>> {
    let Some(watch) = build_watch(cargo, interrupt)? else { return Ok(None) };
    eprintln!("starting a Synapse of its own ..");
    let Some(server) = start(Options::default(), interrupt)? else { return Ok(None) };
    let sender = server.api(&server.register(SENDER, &password(SENDER))?);
    let room = sender.create_room(&json!({ "preset": "public_chat" }))?;
    for name in WATCHERS {
        server.api(&server.register(name, &password(name))?).join(&room)?;
    }

    let ours = |user: &str| {
        let mut command = Command::new(&watch);
        command
            .args(["--homeserver", server.url(), "--username", user])
            .args(["--password", &password(user), "--room", &room])
            .args(["--sync", "sliding", "--json"]);
        command
    };
    let theirs = |user: &str| -> anyhow::Result<Command> {
        let mut command = js.node(&[], "benches/js/watch.mjs")?;
        command.args([server.url(), user, &password(user), &room]);
        Ok(command)
    };
    let mut numbers = Numbers(0);
    let mut round = |watchers: &mut [Watcher]| -> anyhow::Result<Option<Vec<Sample>>> {
        Round { api: &sender, room: &room, numbers: &mut numbers }.run(watchers, interrupt)
    };
    let mut rounds = Vec::new();
    for number in 0..ROUNDS {
        eprintln!("both clients in one room, then each alone: round {} of {ROUNDS} ..", number + 1);
        let [one, other] = match number % 2 {
            0 => WATCHERS,
            _ => [WATCHERS[1], WATCHERS[0]],
        };
        let mut both = [Watcher::start(ours(one))?, Watcher::start(theirs(other)?)?];
        let Some(both) = round(&mut both)? else { return Ok(None) };
        let Some(ours) = round(&mut [Watcher::start(ours(one))?])? else { return Ok(None) };
        let Some(theirs) = round(&mut [Watcher::start(theirs(other)?)?])? else { return Ok(None) };
        let came = |samples: &[Sample], watcher: usize| -> Vec<f64> {
            samples.iter().filter_map(|sample| sample.came.get(watcher).copied()).collect()
        };
        rounds.push(Figures {
            together: Pair { ours: came(&both, 0), theirs: came(&both, 1) },
            alone: Pair { ours: came(&ours, 0), theirs: came(&theirs, 0) },
            answered: both.iter().map(|sample| sample.answered).collect(),
        });
    }
    Ok(Some(table(&rounds)))
}

/// What a round measured, in milliseconds.
struct Figures {
    /// Both at the same time, event by event.
    together: Pair,
    /// One after the other.
    alone: Pair,
    /// How long the sender waited for its answers while both looked on.
    answered: Vec<f64>,
}

impl Figures {
    fn together(&self) -> &Pair {
        &self.together
    }

    fn alone(&self) -> &Pair {
        &self.alone
    }
}

struct Pair {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

fn table(rounds: &[Figures]) -> Table {
    let row = |name: &str, pair: fn(&Figures) -> &Pair, figure: fn(&[f64]) -> f64| {
        let all = |of: fn(&Pair) -> &Vec<f64>| -> Vec<f64> {
            rounds.iter().flat_map(|round| of(pair(round))).copied().collect()
        };
        let ratio = |round: &Figures| figure(&pair(round).theirs) / figure(&pair(round).ours);
        Row {
            name: name.to_owned(),
            unit: "ms",
            ours: figure(&all(|pair| &pair.ours)),
            theirs: figure(&all(|pair| &pair.theirs)),
            scans: None,
            ratios: rounds.iter().map(ratio).collect(),
        }
    };

    let later: Vec<f64> = rounds
        .iter()
        .flat_map(|Figures { together: Pair { ours, theirs }, .. }| ours.iter().zip(theirs))
        .map(|(ours, theirs)| ours - theirs)
        .collect();
    let first = later.iter().filter(|later| **later <= 0.0).count();
    let answered: Vec<f64> = rounds.iter().flat_map(|round| &round.answered).copied().collect();
    Table {
        title: format!(
            "Send to callback on a real Synapse: ours over sliding sync beside the main loop, \
             matrix-js-sdk over v3 /sync; {} events",
            later.len()
        ),
        rows: vec![
            row("both at the same time, median", Figures::together, median),
            row("both at the same time, p90", Figures::together, p90),
            row("each alone, median", Figures::alone, median),
            row("each alone, p90", Figures::alone, p90),
        ],
        notes: vec![
            format!("With both there, ours had {first} of {} events first.", later.len()),
            format!(
                "Ours less theirs, event by event: median {:.1} ms, p10 {:.1}, p90 {:.1}.",
                median(&later),
                percentile(&later, 0.1),
                p90(&later)
            ),
            format!("The sender had its answer after {:.1} ms (median).", median(&answered)),
        ],
    }
}

fn p90(values: &[f64]) -> f64 {
    percentile(values, 0.9)
}

/// One event, in milliseconds since it was sent.
#[derive(Clone)]
struct Sample {
    /// When the sender had the answer.
    answered: f64,
    /// When each watcher had it.
    came: Vec<f64>,
}

struct Round<'a> {
    api: &'a Api,
    room: &'a str,
    numbers: &'a mut Numbers,
}

impl Round<'_> {
    /// Sends the events and waits until each watcher has each of them; `None` if Ctrl-C came first.
    fn run(
        self,
        watchers: &mut [Watcher],
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<Vec<Sample>>> {
        for watcher in watchers.iter_mut() {
            if !watcher.wait_until_ready(interrupt)? {
                return Ok(None);
            }
        }
        let mut sent = Vec::new();
        for number in 0..WARM_UP + EVENTS {
            // Not in step with anything.
            if interrupt.came_within(Duration::from_millis(150 + self.numbers.next() % 200)) {
                return Ok(None);
            }
            let txn = format!("side-{}", self.numbers.next());
            let content = membership(number % KEYS, number);
            let began = Instant::now();
            let event_id = self.api.send(
                self.room,
                "org.matrix.msc4143.rtc.member",
                &txn,
                &content,
                Some(3_600_000),
            )?;
            sent.push((event_id, began, Instant::now()));
        }
        let deadline = Instant::now() + COME_WITHIN;
        let has_all = |watcher: &Watcher| sent.iter().all(|(id, ..)| watcher.saw(id).is_some());
        while !watchers.iter().all(has_all) && Instant::now() < deadline {
            if interrupt.came_within(Duration::from_millis(30)) {
                return Ok(None);
            }
        }
        let ms =
            |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        let samples = sent.iter().skip(WARM_UP).map(|(event_id, began, answered)| {
            let came = watchers
                .iter()
                .map(|watcher| {
                    let saw = watcher.saw(event_id);
                    let saw = saw.with_context(|| format!("{} missed {event_id}", watcher.name))?;
                    Ok(ms(*began, saw))
                })
                .collect::<anyhow::Result<Vec<_>>>()?;
            Ok(Sample { answered: ms(*began, *answered), came })
        });
        samples.collect::<anyhow::Result<Vec<_>>>().map(Some)
    }
}

/// A membership of MatrixRTC that differs each time.
fn membership(key: usize, number: usize) -> Value {
    let key = format!("key-{key}");
    json!({
        "slot_id": "m.call#ROOM",
        "application": { "type": "m.call" },
        "member": { "id": key, "membership": "join", "device_id": "DEVICE" },
        "transports": { "published": [], "can_subscribe": ["livekit"] },
        "versions": [],
        "com.example.number": number,
        "msc4354_sticky_key": key,
        "sticky_key": key,
    })
}

/// Numbers that look random: a linear congruential generator.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

/// A client that prints a line for each event, killed when it is dropped.
struct Watcher {
    name: String,
    process: Child,
    ready: Receiver<()>,
    saw: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Watcher {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let stdout = process.stdout.take().context("it has no stdout")?;
        let (tell, ready) = channel();
        let saw = Arc::<Mutex<HashMap<_, _>>>::default();
        let seen = saw.clone();
        thread::spawn(move || read(BufReader::new(stdout), &tell, &seen));
        Ok(Self { name, process, ready, saw })
    }

    /// `false` if Ctrl-C came first.
    fn wait_until_ready(&mut self, interrupt: &Interrupt) -> anyhow::Result<bool> {
        let deadline = Instant::now() + START_WITHIN;
        while !interrupt.came() {
            match self.ready.recv_timeout(Duration::from_millis(30)) {
                Ok(()) => return Ok(true),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} was not ready within {} s", self.name, START_WITHIN.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} ended before it was ready: see above", self.name)
                }
            }
        }
        Ok(false)
    }

    /// When it saw this event first.
    fn saw(&self, event_id: &str) -> Option<Instant> {
        self.saw.lock().unwrap_or_else(PoisonError::into_inner).get(event_id).copied()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(mut stdout: impl BufRead, ready: &Sender<()>, saw: &Mutex<HashMap<String, Instant>>) {
    let mut line = String::new();
    while stdout.read_line(&mut line).is_ok_and(|read| read > 0) {
        let now = Instant::now();
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        if said["kind"] == "ready" {
            let _ = ready.send(());
        } else if let Some(event_id) = said["event_id"].as_str() {
            saw.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(event_id.to_owned())
                .or_insert(now);
        }
        line.clear();
    }
}
