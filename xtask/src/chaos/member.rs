//! A process in a seat: one of ours, or one of matrix-js-sdk. It writes what it says into a log, and
//! keeps what it said last.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{clock, judge::Entry};
use crate::process::{Nudge, nudge};

/// A running member. Dropping it kills it.
pub(crate) struct Member {
    child: Child,
    said: Arc<Mutex<Said>>,
    errors: PathBuf,
}

/// What a member said last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    /// Whether it has started: it is logged in and shows the call.
    pub(crate) ready: bool,
    /// How it stands.
    pub(crate) own: Option<String>,
    pub(crate) roster: Vec<Entry>,
    /// The candidates that it names as not there, and why.
    pub(crate) candidates: Vec<String>,
    /// What did not work; matrix-js-sdk's alone.
    pub(crate) error: Option<String>,
}

/// What a member is told at its start, line by line: the next one when the last one is done.
type Commands = std::vec::IntoIter<Value>;

impl Member {
    /// Starts a member whose logs have this path but for their extension.
    pub(crate) fn ours(command: Command, log: &Path) -> anyhow::Result<Self> {
        Self::start(command, log, Vec::new())
    }

    /// Starts a member that is told to do these things.
    pub(crate) fn js(command: Command, log: &Path, tasks: Vec<Value>) -> anyhow::Result<Self> {
        Self::start(command, log, tasks)
    }

    fn start(mut command: Command, log: &Path, tasks: Vec<Value>) -> anyhow::Result<Self> {
        let errors = log.with_extension("err");
        let stdin = if tasks.is_empty() { Stdio::null() } else { Stdio::piped() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(File::create(&errors)?);
        // Ctrl-C is for us. We then end all members.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        let said = Arc::new(Mutex::new(Said::default()));
        let stdout = child.stdout.take().context("it has no stdout")?;
        let listener = Listener {
            said: said.clone(),
            log: File::create(log.with_extension("out"))?,
            stdin: child.stdin.take(),
            tasks: tasks.into_iter(),
        };
        // It ends with the child.
        thread::spawn(move || listener.listen(stdout));
        Ok(Self { child, said, errors })
    }

    pub(crate) fn said(&self) -> Said {
        lock(&self.said).clone()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The last line of its stderr.
    pub(crate) fn last_words(&self) -> String {
        let errors = fs::read(&self.errors).unwrap_or_default();
        let errors = String::from_utf8_lossy(&errors);
        errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("(no word)").to_owned()
    }

    /// Asks it to leave, stops it, or lets it go on.
    pub(crate) fn nudge(&self, how: Nudge) {
        nudge(&self.child, how);
    }

    /// Ends it by force.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Listener {
    said: Arc<Mutex<Said>>,
    log: File,
    stdin: Option<ChildStdin>,
    tasks: Commands,
}

impl Listener {
    fn listen(mut self, stdout: ChildStdout) {
        self.next_task();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = writeln!(self.log, "{} {line}", clock());
            let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
            lock(&self.said).hear(&line);
            if line["kind"] == "done" {
                self.next_task();
            }
        }
    }

    fn next_task(&mut self) {
        if let (Some(stdin), Some(task)) = (&mut self.stdin, self.tasks.next()) {
            let _ = writeln!(stdin, "{task}");
        }
    }
}

impl Said {
    /// A line of `presence --json`, or of `peer.mjs`.
    fn hear(&mut self, line: &Value) {
        match line["kind"].as_str() {
            Some("ready") => self.ready = true,
            Some("own") => self.own = line["state"].as_str().map(str::to_owned),
            Some("members") => {
                self.roster = entries(&line["members"]);
                let candidates = line["candidates"].as_array().into_iter().flatten();
                self.candidates = candidates.map(Value::to_string).collect();
            }
            Some("memberships") => self.roster = entries(&line["members"]),
            // matrix-js-sdk shows the call from its start on.
            Some("done") if line["do"] == "start" => self.ready = true,
            Some("joined") => {
                let own = if line["joined"] == true { "joined" } else { "left" };
                self.own = Some(own.to_owned());
            }
            Some("probably_left") => {
                let own = if line["probably_left"] == true { "probably_left" } else { "joined" };
                self.own = Some(own.to_owned());
            }
            Some("error") => self.error = Some(line["error"].to_string()),
            _ => {}
        }
    }
}

fn entries(members: &Value) -> Vec<Entry> {
    let text = |member: &Value, name: &str| member[name].as_str().unwrap_or_default().to_owned();
    let members = members.as_array().into_iter().flatten();
    members
        .map(|member| Entry {
            intent: text(member, "intent"),
            user_id: text(member, "user_id"),
            device_id: text(member, "device_id"),
            member_id: text(member, "member_id"),
        })
        .collect()
}

/// What a matrix-js-sdk member is told: to start, and to join.
pub(crate) fn js_tasks(start: Value, name: &str, delay_ms: u128) -> Vec<Value> {
    let restart_ms = delay_ms / 3;
    let join = json!({
        "do": "join",
        "delay_ms": delay_ms,
        "restart_ms": restart_ms,
        "intent": name,
    });
    vec![start, join]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Said;

    #[test]
    fn a_member_is_known_by_its_last_lines() {
        let mut said = Said::default();
        said.hear(&json!({ "kind": "ready", "sync": "sliding" }));
        said.hear(&json!({ "kind": "own", "state": "joining" }));
        said.hear(&json!({ "kind": "own", "state": "joined" }));
        let member =
            json!({ "user_id": "@a:b", "device_id": "D", "member_id": "M", "intent": "a.1" });
        said.hear(&json!({ "kind": "members", "members": [], "candidates": [{ "reason": "?" }] }));
        said.hear(&json!({ "kind": "members", "members": [member], "candidates": [] }));
        assert!(said.ready);
        assert_eq!(said.own.as_deref(), Some("joined"));
        assert_eq!(said.roster[0].intent, "a.1");
        assert_eq!(said.roster[0].member_id, "M");
        assert!(said.candidates.is_empty());
    }

    #[test]
    fn last_lines_describe_a_js_member() {
        let mut said = Said::default();
        said.hear(&json!({ "kind": "done", "do": "start", "device_id": "D" }));
        said.hear(&json!({ "kind": "joined", "joined": true }));
        said.hear(&json!({ "kind": "probably_left", "probably_left": true }));
        said.hear(&json!({ "kind": "error", "do": "join", "error": "no" }));
        assert!(said.ready);
        assert_eq!(said.own.as_deref(), Some("probably_left"));
        assert_eq!(said.error.as_deref(), Some("\"no\""));
    }
}
