//! What the tests share: a room on a real Synapse with people in it, and programs that they use.

use std::{
    collections::VecDeque,
    path::PathBuf,
    process::Stdio,
    sync::{LazyLock, Mutex},
    time::Duration,
};

use matrix_sdk::ruma::OwnedRoomId;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep, timeout, timeout_at},
};
use xtask::{
    bindings::{self, Built, Language},
    folders::workspace,
    homeserver::{Options, Registered, Synapse},
    tools,
};

/// Of everybody here.
pub(crate) const PASSWORD: &str = "secret";

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// People in a room.
pub(crate) struct World {
    synapse: Synapse,
    people: Vec<Registered>,
    pub(crate) room: OwnedRoomId,
}

impl World {
    pub(crate) fn new(names: &[&str], encrypted: bool) -> Self {
        let synapse = Synapse::start(&Options::default()).unwrap();
        let people: Vec<_> =
            names.iter().map(|name| synapse.register(name, PASSWORD).unwrap()).collect();
        let owner = synapse.api(&people[0]);
        let mut room = json!({
            "preset": "public_chat",
            // Whoever is there may open the call.
            "power_level_content_override": { "state_default": 0 },
        });
        if encrypted {
            room["initial_state"] = json!([{
                "type": "m.room.encryption",
                "state_key": "",
                "content": { "algorithm": "m.megolm.v1.aes-sha2" },
            }]);
        }
        let room = owner.create_room(&room).unwrap();
        for person in &people[1..] {
            synapse.api(person).join(&room).unwrap();
        }
        Self { synapse, people, room: room.try_into().unwrap() }
    }

    /// Opens the slot of the room's call.
    pub(crate) fn open_call(&self) {
        let content = json!({
            "status": "open",
            "application": { "type": "m.call" },
            "encryption": { "type": "org.matrix.msc4143.per_member" },
        });
        let owner = self.synapse.api(&self.people[0]);
        let slot = "org.matrix.msc4143.rtc.slot";
        owner.set_state(self.room.as_str(), slot, "m.call#ROOM", &content).unwrap();
    }

    pub(crate) fn url(&self) -> &str {
        self.synapse.url()
    }

    pub(crate) fn people<const N: usize>(&self) -> [&Registered; N] {
        self.people.iter().collect::<Vec<_>>().try_into().unwrap()
    }
}

/// Those of the languages whose tools are here.
pub(crate) fn languages(wanted: &[Language]) -> Vec<Language> {
    let is_there = |language: &Language| match language.lacks() {
        Some(lacks) => {
            eprintln!("the program in {language} is left out: {lacks}");
            false
        }
        None => true,
    };
    wanted.iter().copied().filter(is_there).collect()
}

/// What cargo has built beside this test.
pub(crate) fn built() -> Built {
    let test = std::env::current_exe().unwrap();
    let deps = test.parent().unwrap();
    // What stands above it, `cargo test` does not renew.
    Built::in_dir(deps, deps.parent().unwrap()).unwrap()
}

/// How a program of each language is started: made once.
fn prepared(language: Language) -> Vec<String> {
    static KOTLIN: LazyLock<Vec<String>> = LazyLock::new(kotlin);
    static PYTHON: LazyLock<Vec<String>> = LazyLock::new(python);
    match language {
        Language::Kotlin => KOTLIN.clone(),
        Language::Python => PYTHON.clone(),
        Language::Swift => panic!("Swift does not run here"),
    }
}

/// One at a time, as they use the same folders.
static PREPARING: Mutex<()> = Mutex::new(());

fn kotlin() -> Vec<String> {
    let _turn = PREPARING.lock().unwrap();
    let jar = bindings::package(Language::Kotlin, &built()).unwrap();
    let target = workspace().join("target/bindings/kotlin-program");
    let mut maven = std::process::Command::new("mvn");
    maven.args(["--batch-mode", "--quiet", "package"]);
    maven.arg(format!("-Dsticky.jar={}", jar.display()));
    maven.arg(format!("-DbuildDirectory={}", target.display()));
    maven.current_dir(workspace().join("uniffi/tests/kotlin"));
    tools::run(maven).unwrap();
    let classes = std::fs::read_to_string(target.join("classpath.txt")).unwrap();
    let program = target.join("matrix-sticky-program-0.1.0.jar");
    let classes = format!("{}:{classes}", program.display());
    // A small heap, so that what is kept is seen.
    ["java", "-Xmx64m", "-cp", &classes, "MainKt"].map(str::to_owned).to_vec()
}

fn python() -> Vec<String> {
    let _turn = PREPARING.lock().unwrap();
    let wheel = bindings::package(Language::Python, &built()).unwrap();
    let venv = workspace().join("target/bindings/python-program");
    bindings::make_venv(&venv).unwrap();
    let python = bindings::venv_python(&venv);
    let mut pip = std::process::Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall"]);
    pip.arg(wheel);
    tools::run(pip).unwrap();
    let program = workspace().join("uniffi/tests/python/main.py");
    [python, PathBuf::from("-u"), program].map(|it| it.display().to_string()).to_vec()
}

/// A program that runs, driven a line at a time.
pub(crate) struct Program {
    name: String,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said, and nobody has asked for yet.
    said: VecDeque<Value>,
    /// What it said when it was ready.
    pub(crate) ready: Value,
}

impl Program {
    pub(crate) async fn start(language: Language, world: &World, person: &Registered) -> Self {
        let command = tokio::task::spawn_blocking(move || prepared(language)).await.unwrap();
        let localpart = person.user_id.trim_start_matches('@').split(':').next().unwrap();
        let store = world.synapse.dir().join(format!("store-of-{localpart}"));
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .args([world.url(), localpart, PASSWORD, world.room.as_str()])
            .arg(store)
            // cargo's own, where the build of the library lies that nothing else should find.
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take().unwrap();
        let name = format!("{localpart} in {language}");
        let said = VecDeque::new();
        let mut program = Self { name, child, stdin, lines, said, ready: Value::Null };
        program.ready = program.says("ready").await;
        program
    }

    /// Has it do something.
    pub(crate) async fn tell(&mut self, command: &str) {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        self.stdin.flush().await.unwrap();
    }

    /// The next thing of this kind that it says.
    #[track_caller]
    pub(crate) fn says(&mut self, kind: &str) -> impl Future<Output = Value> {
        self.until(kind, |_| true)
    }

    /// The next thing of this kind that is as wanted; those before it are forgotten.
    #[track_caller]
    pub(crate) fn until(
        &mut self,
        kind: &str,
        is: impl Fn(&Value) -> bool,
    ) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            match self.until_within(DEADLINE, kind, is).await {
                Ok(said) => said,
                Err(passed) => {
                    panic!("{caller}: {} does not say {kind}: {passed:?}", self.name)
                }
            }
        }
    }

    /// As [`until`](Self::until); what else of this kind it said, where it does not within so long.
    async fn until_within(
        &mut self,
        within: Duration,
        kind: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value, Vec<Value>> {
        let mut passed = Vec::new();
        let deadline = Instant::now() + within;
        let mut at = 0;
        loop {
            let Some(said) = self.said.get(at) else {
                let line = timeout_at(deadline, self.lines.next_line()).await;
                let Ok(line) = line else { return Err(passed) };
                let line = line.unwrap();
                let line =
                    line.unwrap_or_else(|| panic!("{} has ended, not saying {kind}", self.name));
                // Shown where the test fails.
                eprintln!("{}: {line}", self.name);
                let said = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "kind": line }));
                self.said.push_back(said);
                continue;
            };
            assert_ne!(said["kind"], "error", "{} failed: {said}", self.name);
            if said["kind"] != kind {
                at += 1;
                continue;
            }
            let said = self.said.remove(at).unwrap();
            if is(&said) {
                return Ok(said);
            }
            passed.push(said);
        }
    }

    /// Waits until it is told of this change of an entry, which may come with others.
    #[track_caller]
    pub(crate) fn entry(
        &mut self,
        how: &str,
        key: &str,
        text: Option<&str>,
    ) -> impl Future<Output = Value> {
        let wanted = json!([how, key, text]);
        self.until("entries", move |it| it["changes"].as_array().unwrap().contains(&wanted))
    }

    /// Whether it is told of an entry within so long.
    pub(crate) async fn is_told(&mut self, key: &str, within: Duration) -> bool {
        let told = self.until_within(within, "entries", |it| {
            it["changes"].as_array().unwrap().iter().any(|change| change[1] == key)
        });
        told.await.is_ok()
    }

    /// Waits until it sees just these members in the call.
    #[track_caller]
    pub(crate) fn call(&mut self, members: &[Value]) -> impl Future<Output = Value> {
        let members = Value::from(members);
        self.until("call", move |it| it["members"] == members)
    }

    /// Logs out, and ends by itself.
    pub(crate) async fn quit(mut self) {
        self.tell("quit").await;
        self.says("bye").await;
        let status = timeout(DEADLINE, self.child.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "{}: {status}", self.name);
    }

    /// Kills it, as a crash does.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Waits for something.
pub(crate) async fn eventually<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}
