//! The show itself: a server, rooms, people, and the rounds that they live through.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::{Value, json};
use xtask::{
    api::{Api, encode},
    homeserver::{Options, Registered, Synapse},
    npm::Js,
};

use super::{
    Teller,
    chair::{Chair, Program},
    judge::{Finding, Observer, Scene},
    schedule::{Back, Fault, Line, Process, Room, Round, Server, Stage, What, Who},
    watch::{Ruling, Watch},
};
use crate::{process::Interrupt, serve::password};

/// For how long an access token is good.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30);

/// When to look again.
const TICK: Duration = Duration::from_millis(50);

/// How long matrix-js-sdk may take longer than we do.
const JS_LATER: Duration = Duration::from_secs(10);

/// How long a polite leave may take in the calm.
const POLITE: Duration = Duration::from_secs(20);

/// What everything stands on.
pub(crate) struct Ground {
    pub(crate) seed: u64,
    pub(crate) presence: PathBuf,
    pub(crate) js: Js,
    /// Where the logs go.
    pub(crate) logs: PathBuf,
    /// When every process ends by itself, whatever becomes of us.
    pub(crate) lives: Duration,
}

pub(crate) struct Show<'a> {
    pub(crate) ground: Ground,
    pub(crate) stage: Stage,
    pub(crate) teller: Teller,
    interrupt: &'a Interrupt,
    server: Hand,
    /// The ids of the stage's rooms.
    rooms: Vec<String>,
    host: Api,
    pub(crate) chairs: Vec<Chair>,
    /// What matrix-js-sdk showed otherwise.
    pub(crate) notes: Vec<String>,
}

/// How a round, or the whole, went.
pub(crate) enum Outcome {
    /// All is well; after the calm had lasted so long.
    Passed(Duration),
    /// What broke a law, a line each.
    Violated(Vec<String>),
    Interrupted,
}

/// What a round's faults begin or end.
enum Step {
    Begin(Fault),
    End(Fault),
}

impl<'a> Show<'a> {
    pub(crate) fn open(
        ground: Ground,
        teller: Teller,
        interrupt: &'a Interrupt,
    ) -> anyhow::Result<Option<Self>> {
        let stage = Stage::of(ground.seed);
        let options = Options { token_lifetime: Some(TOKEN_LIFETIME), ..Options::default() };
        let Some(server) = crate::serve::start(options, interrupt)? else { return Ok(None) };
        let register = |name: &str| server.register(name, &password(name));
        let host = server.api(&register("host")?);
        let mut rooms = Vec::new();
        for room in &stage.rooms {
            rooms.push(host.create_room(&super::room_body(room))?);
        }
        let mut chairs = Vec::new();
        for seat in &stage.seats {
            let user: Registered = register(seat.name)?;
            let room = rooms.get(seat.room).context("a seat has a room")?;
            server.api(&user).join(room)?;
            let log = ground.logs.join(format!("{}.proxy", seat.name));
            chairs.push(Chair::new(*seat, server.url(), user, &log)?);
        }
        let server = Hand::of(server);
        let notes = Vec::new();
        Ok(Some(Self { ground, stage, teller, interrupt, server, rooms, host, chairs, notes }))
    }

    fn now(&self) -> Duration {
        self.teller.now()
    }

    /// Waits a tick, in which members start that have to. Returns what breaks a law at once.
    fn tick(&mut self) -> anyhow::Result<Vec<String>> {
        thread::sleep(TICK);
        let now = self.now();
        let mut broken = Vec::new();
        for chair in &mut self.chairs {
            if let Some(how) = chair.look(now) {
                match chair.seat.who {
                    Who::Ours => broken.push(how),
                    Who::Js => self.notes.push(how),
                }
            }
            if chair.is_due(now) {
                let ground = &self.ground;
                let room = self.rooms.get(chair.seat.room).context("a seat has a room")?;
                let program = Program {
                    presence: &ground.presence,
                    js: &ground.js,
                    logs: &ground.logs,
                    lives: ground.lives,
                    room,
                    is: *self.stage.rooms.get(chair.seat.room).context("a seat has a room")?,
                };
                chair.start(&program, now)?;
            }
        }
        Ok(broken)
    }

    /// Has all come, before anything goes wrong.
    pub(crate) fn begin(&mut self) -> anyhow::Result<Outcome> {
        self.chairs.iter_mut().for_each(Chair::begin_faults);
        self.calm(Duration::ZERO)
    }

    /// Lives through a round: its faults, then the calm.
    pub(crate) fn round(&mut self, round: &Round) -> anyhow::Result<Outcome> {
        self.chairs.iter_mut().for_each(Chair::begin_faults);
        let began = Instant::now();
        let mut steps: Vec<(Duration, Step)> = Vec::new();
        for fault in &round.faults {
            steps.push((fault.at, Step::Begin(*fault)));
            steps.push((fault.until, Step::End(*fault)));
        }
        // Stable: what begins and ends at one moment begins first.
        steps.sort_by_key(|(at, _)| *at);
        let mut steps = steps.into_iter().peekable();
        while began.elapsed() < round.lasts || steps.peek().is_some() {
            while let Some((_, step)) = steps.next_if(|(at, _)| *at <= began.elapsed()) {
                self.take(&step);
            }
            let broken = self.tick()?;
            if !broken.is_empty() {
                return Ok(Outcome::Violated(broken));
            }
            if self.interrupt.came() {
                return Ok(Outcome::Interrupted);
            }
        }
        self.calm(round.watched)
    }

    fn take(&mut self, step: &Step) {
        let now = self.now();
        match step {
            Step::Begin(fault) => {
                self.teller.say("fault", &fault.describe(&self.stage));
                match fault.what {
                    What::Line(whose, line) => self.set_line(whose, line),
                    What::Process(seat, process) => {
                        if let Some(chair) = self.chairs.get_mut(seat) {
                            chair.suffer(process, now);
                        }
                    }
                    What::Server(server) => {
                        self.server.start(server, fault.until.saturating_sub(fault.at));
                    }
                }
            }
            Step::End(fault) => match fault.what {
                What::Line(whose, _) => self.set_line(whose, Line::Up),
                What::Process(seat, process) => {
                    if let Some(chair) = self.chairs.get_mut(seat) {
                        match process {
                            Process::Kill(Back::ThisRound) | Process::Leave(Back::ThisRound) => {
                                chair.wanted = true;
                            }
                            Process::Kill(Back::NextRound) | Process::Leave(Back::NextRound) => {}
                            Process::Stop => chair.go_on(),
                        }
                    }
                }
                // It comes back by itself.
                What::Server(_) => {}
            },
        }
    }

    fn set_line(&mut self, whose: Option<usize>, line: Line) {
        for (index, chair) in self.chairs.iter().enumerate() {
            if whose.is_none_or(|seat| seat == index) {
                chair.proxy.set(line);
            }
        }
    }

    /// Mends everything, and waits until all show the same, or until somebody breaks a law. Looks on
    /// for a while afterwards.
    fn calm(&mut self, goes_on: Duration) -> anyhow::Result<Outcome> {
        for chair in &mut self.chairs {
            chair.proxy.set(Line::Up);
            chair.go_on();
        }
        while !self.server.is_done()? {
            let broken = self.tick()?;
            if !broken.is_empty() {
                return Ok(Outcome::Violated(broken));
            }
            if self.interrupt.came() {
                return Ok(Outcome::Interrupted);
            }
        }
        let calm = self.now();
        self.chairs.iter_mut().for_each(|chair| chair.begin_calm(calm));
        self.teller.say("calm", "the calm begins");
        let mut watch = Watch::new(goes_on);
        let mut last = String::new();
        loop {
            let broken = self.tick()?;
            if !broken.is_empty() {
                return Ok(Outcome::Violated(broken));
            }
            if self.interrupt.came() {
                return Ok(Outcome::Interrupted);
            }
            let is_whole = self.chairs.iter().all(|chair| !chair.wanted || chair.is_running());
            let findings = self.findings(calm);
            if let Some(finding) = findings.first() {
                last = format!("; before, {}", finding.wrong);
            }
            match watch.look(self.now(), findings, is_whole) {
                Ruling::GoOn => {}
                Ruling::Violated(broken) => {
                    return Ok(Outcome::Violated(self.in_words(&broken, calm)));
                }
                Ruling::Passed(since) => {
                    let took = since.saturating_sub(calm);
                    let seconds = took.as_secs_f64();
                    let text = format!("all was right {seconds:.1} s into the calm{last}");
                    self.teller.say("passed", &text);
                    let broken = self.look_at_js(calm)?;
                    return Ok(match broken.is_empty() {
                        true => Outcome::Passed(took),
                        false => Outcome::Violated(broken),
                    });
                }
            }
        }
    }

    fn in_words(&self, broken: &[Finding], calm: Duration) -> Vec<String> {
        let late = self.now().saturating_sub(calm).as_secs();
        let words = |finding: &Finding| {
            let allowed = finding.by.saturating_sub(calm).as_secs();
            let until = match allowed < late {
                true => format!("allowed until {allowed} s"),
                false => "after all had been right".to_owned(),
            };
            format!("{}, {late} s into the calm; {until}", finding.wrong)
        };
        broken.iter().map(words).collect()
    }

    /// What is not as it has to be in the end.
    fn findings(&self, calm: Duration) -> Vec<Finding> {
        let rooms = self.stage.rooms.iter().enumerate();
        let scenes = rooms.map(|(index, room)| self.scene(index, room, calm));
        scenes.flat_map(|scene| scene.judge()).collect()
    }

    /// A room, as ours see it.
    fn scene(&self, index: usize, room: &Room, calm: Duration) -> Scene {
        let here = || self.chairs.iter().filter(|chair| chair.seat.room == index);
        // matrix-js-sdk does not encrypt its membership again, so a member that comes to an
        // encrypted room later cannot read it. So not even all of ours can show the same of it.
        let js: Vec<_> = here()
            .filter(|chair| chair.seat.who == Who::Js)
            .map(|chair| format!("{}.", chair.seat.name))
            .collect();
        let mut observers: Vec<Observer> = here()
            .filter(|chair| chair.seat.who == Who::Ours)
            .filter_map(|chair| chair.observer(room, calm))
            .collect();
        if room.encrypted {
            for observer in &mut observers {
                observer.roster.retain(|entry| !js.iter().any(|it| entry.intent.starts_with(it)));
            }
        }
        let runs = here().flat_map(|chair| chair.runs(calm, true)).collect();
        Scene { runs, observers, by: super::back_by(calm) }
    }

    /// Notes what matrix-js-sdk shows otherwise. It may take longer than we do. What of ours breaks a
    /// law meanwhile.
    fn look_at_js(&mut self, calm: Duration) -> anyhow::Result<Vec<String>> {
        let began = self.now();
        loop {
            let mut notes = Vec::new();
            for chair in self.chairs.iter().filter(|chair| chair.seat.who == Who::Js) {
                let room = self.stage.rooms.get(chair.seat.room);
                let observer = room.and_then(|room| chair.observer(room, calm));
                let Some(observer) = observer else { continue };
                let here = self.chairs.iter().filter(|it| it.seat.room == chair.seat.room);
                let runs = here.flat_map(|chair| chair.runs(calm, false)).collect();
                let scene = Scene { runs, observers: vec![observer], by: calm };
                let why = chair.reason();
                notes.extend(scene.judge().iter().map(|it| format!("{} ({why})", it.wrong)));
            }
            if notes.is_empty() || self.interrupt.came() {
                return Ok(Vec::new());
            }
            if self.now().saturating_sub(began) >= JS_LATER {
                for note in &notes {
                    self.teller.say("js", &format!("matrix-js-sdk: {note}"));
                }
                self.notes.extend(notes);
                // As a person does after being put outside.
                let lost = |chair: &&mut Chair| chair.seat.who == Who::Js && !chair.is_in();
                self.chairs.iter_mut().filter(lost).for_each(|chair| chair.crash(began));
                return Ok(Vec::new());
            }
            let broken = self.tick()?;
            if !broken.is_empty() {
                return Ok(broken);
            }
        }
    }

    /// All leave politely, and each says so.
    pub(crate) fn close(&mut self) -> anyhow::Result<Outcome> {
        self.teller.say("end", "all leave");
        let began = self.now();
        for chair in &mut self.chairs {
            chair.leave(began);
        }
        loop {
            self.tick()?;
            if self.interrupt.came() {
                return Ok(Outcome::Interrupted);
            }
            let took = self.now().saturating_sub(began);
            let ours = || self.chairs.iter().filter(|chair| chair.seat.who == Who::Ours);
            if ours().all(|chair| !chair.is_leaving()) {
                let rude: Vec<_> = ours().filter_map(Chair::was_rude).collect();
                return Ok(match rude.is_empty() {
                    true => Outcome::Passed(took),
                    false => Outcome::Violated(rude),
                });
            }
            if took >= POLITE {
                let late = ours().filter(|chair| chair.is_leaving()).map(|chair| {
                    format!("{} has not left after {} s", chair.seat.name, POLITE.as_secs())
                });
                return Ok(Outcome::Violated(late.collect()));
            }
        }
    }

    /// Writes what the server has, for a person who has to find out why.
    pub(crate) fn write_evidence(&self) -> anyhow::Result<()> {
        let ask =
            |api: &Api, path: &str| api.get(path).unwrap_or_else(|error| json!(error.to_string()));
        // Only of the last events, but of all that are sticky.
        let filter =
            json!({ "room": { "timeline": { "limit": 100 } }, "presence": { "types": [] } });
        let sync = ask(&self.host, &format!("sync?filter={}", encode(&filter.to_string())));
        let scheduled = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
        let scheduled: serde_json::Map<String, Value> = self
            .chairs
            .iter()
            .map(|chair| (chair.seat.name.to_owned(), ask(&chair.api, scheduled)))
            .collect();
        let evidence = json!({ "rooms": sync["rooms"]["join"], "scheduled": scheduled });
        let file = self.ground.logs.join("server.json");
        fs::write(&file, serde_json::to_vec_pretty(&evidence)?)?;
        fs::copy(self.server.log(), self.ground.logs.join("server.log"))?;
        Ok(())
    }
}

/// Whose hand is on the server. What takes a while is done in a thread: others go on meanwhile.
struct Hand {
    server: Arc<Mutex<Synapse>>,
    log: PathBuf,
    work: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Hand {
    fn of(server: Synapse) -> Self {
        Self { log: server.log(), server: Arc::new(Mutex::new(server)), work: None }
    }

    fn log(&self) -> &Path {
        &self.log
    }

    fn start(&mut self, what: Server, lasts: Duration) {
        let server = self.server.clone();
        self.work = Some(thread::spawn(move || {
            let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
            match what {
                Server::Restart => server.stop()?,
                Server::Crash => server.kill()?,
                Server::Pause => server.pause()?,
            }
            thread::sleep(lasts);
            match what {
                Server::Restart | Server::Crash => server.restart()?,
                Server::Pause => server.resume()?,
            }
            Ok(())
        }));
    }

    /// Whether the server is back.
    fn is_done(&mut self) -> anyhow::Result<bool> {
        match self.work.take_if(|work| work.is_finished()) {
            Some(work) => match work.join() {
                Ok(done) => done.map(|()| true),
                Err(_) => anyhow::bail!("the thread that holds the server has panicked"),
            },
            None => Ok(self.work.is_none()),
        }
    }
}

/// A command that runs `presence` in a seat.
pub(crate) fn presence(chair: &Chair, program: &Program<'_>, name: &str) -> Command {
    let seat = chair.seat;
    let mut command = Command::new(program.presence);
    command
        .args(["--homeserver", chair.proxy.url(), "--username", seat.name])
        .args(["--room", program.room, "--join", "--json", "--intent", name])
        .args(["--delay", &seat.delay.as_secs().to_string()])
        .args(["--dialect", if program.is.with_js { "element-call" } else { "msc4143" }])
        .args(["--sync", if seat.by_v3 { "v3" } else { "sliding" }])
        .args(["--for", &program.lives.as_secs().to_string()])
        .env("MATRIX_PASSWORD", password(seat.name))
        .env("RUST_LOG", "matrix_sdk_sticky=debug,warn");
    command
}

/// The first line for a matrix-js-sdk member.
pub(crate) fn js_start(chair: &Chair, program: &Program<'_>) -> Value {
    json!({
        "do": "start",
        "homeserver": chair.proxy.url(),
        "user": chair.user_id,
        "password": password(chair.seat.name),
        "room": program.room,
        "crypto": program.is.encrypted,
    })
}
