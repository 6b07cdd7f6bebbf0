//! `cargo xtask chaos`: a call that lives through faults. Members of this crate and of matrix-js-sdk
//! are in it, each in a process of its own and behind a proxy of its own, on a real Synapse.
//!
//! A round is some faults, drawn from the seed, and then a calm. In the calm everybody of ours has to
//! come to show the same: each living member, and nobody else. What the laws allow is in `judge`.

mod chair;
mod judge;
mod member;
mod proxy;
mod schedule;
mod show;
mod watch;

use std::{
    fs,
    hash::BuildHasher as _,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use serde_json::{Value, json};
use xtask::{folders::target_dir, npm::Js};

use self::{
    schedule::{Room, Round},
    show::{Ground, Outcome, Show},
};
use crate::{
    ChaosArgs,
    cargo::Cargo,
    ci::{ALL, INTERRUPTED},
    process::Interrupt,
};

/// When a member is back after the network is.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// What a busy machine may add to that.
const MACHINE: Duration = Duration::from_secs(5);

/// How much longer a member needs that was just starting: it may give up first, and is started again.
const START_TAKES: Duration = Duration::from_secs(30);

pub(crate) fn run(
    args: &ChaosArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    if !cfg!(unix) {
        anyhow::bail!("chaos stops processes by signals, which only Unix has");
    }
    let seed = args.seed.unwrap_or_else(random_seed);
    let teller = Teller { json: args.json, began: Instant::now() };
    teller
        .say("seed", &format!("the seed is {seed}; to repeat it: cargo xtask chaos --seed {seed}"));
    let interrupted = Ok(ExitCode::from(INTERRUPTED));
    // With the features that the tests have, so that CI has compiled it already.
    let example = ["--workspace", "--features", ALL, "--example", "presence"];
    let presence = cargo.executable(&example, "presence", interrupt)?;
    let Some(presence) = presence else { return interrupted };
    let Some(js) = interrupt.or(Js::ensure).transpose()? else { return interrupted };
    let logs = target_dir().join("chaos").join(seed.to_string());
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;

    let time = Duration::from_secs(args.minutes.saturating_mul(60));
    // The last round may go on for a while after the time is over.
    let lives = time.saturating_add(Duration::from_secs(600));
    eprintln!("starting a Synapse of its own ..");
    let ground = Ground { seed, presence, js, logs, lives };
    let Some(mut show) = Show::open(ground, teller, interrupt)? else { return interrupted };
    let outcome = play(&mut show, time)?;
    match outcome {
        End::Interrupted => interrupted,
        End::Passed => Ok(ExitCode::SUCCESS),
        End::Violated => Ok(ExitCode::FAILURE),
    }
}

enum End {
    Passed,
    Violated,
    Interrupted,
}

/// One round after the other, until the time is over or a law is broken.
fn play(show: &mut Show<'_>, time: Duration) -> anyhow::Result<End> {
    let seed = show.ground.seed;
    show.teller.say("stage", &show.stage.describe());
    let began = Instant::now();
    let (mut longest, mut faults, mut number) = (Duration::ZERO, 0, 0);
    let mut outcome = show.begin()?;
    loop {
        match outcome {
            Outcome::Interrupted => return Ok(End::Interrupted),
            Outcome::Violated(what) => return violated(show, number, &what),
            Outcome::Passed(took) => {
                // Before the first round all have to start.
                longest = longest.max(if number == 0 { Duration::ZERO } else { took });
            }
        }
        let round = Round::of(seed, number + 1, &show.stage);
        let is_late = began.elapsed() + round.lasts + round.watched > time;
        // One at least, however long the start took.
        if is_late && number > 0 {
            break;
        }
        number += 1;
        faults += round.faults.len();
        let text =
            format!("round {number}: {} faults in {} s", round.faults.len(), round.lasts.as_secs());
        show.teller.say("round", &text);
        outcome = show.round(&round)?;
    }
    match show.close()? {
        Outcome::Interrupted => return Ok(End::Interrupted),
        Outcome::Violated(what) => return violated(show, number, &what),
        Outcome::Passed(_) => {}
    }
    let text = format!(
        "{number} rounds with {faults} faults, no law broken; the longest way back took {:.1} s",
        longest.as_secs_f64()
    );
    show.teller.say("end", &text);
    tell_notes(show);
    Ok(End::Passed)
}

fn tell_notes(show: &Show<'_>) {
    let count = show.notes.len();
    show.teller.say("js", &format!("matrix-js-sdk showed something else {count} times"));
    for note in &show.notes {
        show.teller.say("js", &format!("  {note}"));
    }
}

/// Says what broke a law, and all that helps to find out why.
fn violated(show: &Show<'_>, round: u64, what: &[String]) -> anyhow::Result<End> {
    let seed = show.ground.seed;
    let mut report = format!("seed {seed}, round {round}, at {}\n\n", clock());
    for line in what {
        report.push_str(&format!("VIOLATION: {line}\n"));
    }
    report.push_str(&format!("\n{}\n\n", show.stage.describe()));
    for number in 1..=round {
        report.push_str(&Round::of(seed, number, &show.stage).describe(&show.stage));
    }
    report.push('\n');
    for chair in &show.chairs {
        report.push_str(&chair.describe());
    }
    report.push_str(&format!(
        "\nIn {}: what each member said (.out), its log (.err), its requests (.proxy), what the \
         server has (server.json), its log. Times are in UTC.\n\
         To repeat the schedule: cargo xtask chaos --seed {seed}\n",
        show.ground.logs.display()
    ));
    show.write_evidence()?;
    fs::write(show.ground.logs.join("report.txt"), &report)?;
    show.teller.say("violation", &report);
    tell_notes(show);
    Ok(End::Violated)
}

/// The body of `createRoom`. The call's slot is open where all speak MSC4143; without matrix-js-sdk's
/// dialect none is needed.
fn room_body(room: &Room) -> Value {
    let mut state = Vec::new();
    if room.encrypted {
        state.push(json!({
            "type": "m.room.encryption",
            "state_key": "",
            "content": { "algorithm": "m.megolm.v1.aes-sha2" },
        }));
    }
    if !room.with_js {
        let mut content = json!({ "status": "open", "application": { "type": "m.call" } });
        if room.encrypted {
            content["encryption"] = json!({ "type": "org.matrix.msc4143.per_member" });
        }
        state.push(json!({
            "type": "org.matrix.msc4143.rtc.slot",
            "state_key": "m.call#ROOM",
            "content": content,
        }));
    }
    json!({ "preset": "public_chat", "initial_state": state })
}

/// When somebody has to be back, after the network is.
fn back_by(mended: Duration) -> Duration {
    mended.saturating_add(BACK_WITHIN).saturating_add(MACHINE)
}

/// Short enough to be typed.
fn random_seed() -> u64 {
    std::hash::RandomState::new().hash_one(()) % 1_000_000
}

/// The time of day in UTC, as the members' logs have it.
fn clock() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (now.as_secs() % 86_400, now.subsec_millis());
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// Says how it goes.
#[derive(Clone, Copy)]
struct Teller {
    json: bool,
    began: Instant,
}

impl Teller {
    /// How long the show has gone on.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    #[allow(clippy::print_stdout, reason = "it is what the chore is for")]
    fn say(&self, kind: &str, text: &str) {
        let at = self.now().as_secs_f64();
        if self.json {
            println!("{}", json!({ "kind": kind, "at": at, "text": text }));
        } else {
            println!("{at:>7.1} s  {text}");
        }
    }
}
