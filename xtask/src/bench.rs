//! `cargo xtask bench`: measures each row of the speed table, and prints it with its goals.
//!
//! In: the counts of `benches` (callgrind's instructions, an allocator's bytes) and of one test.
//! Out: the table. Time is not in it: what else runs on a machine moves it, and counts stay.

use std::{
    collections::HashMap,
    env,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use xtask::{folders::target_dir, tools::runs};

use crate::{
    BenchArgs,
    cargo::{Cargo, MAIN, said},
    ci::INTERRUPTED,
    process::{End, Interrupt, run as run_child},
};

/// How many events each case of the benchmark `instructions` has: `EVENTS` of its `cases`.
const EVENTS: f64 = 10.0;

const PACKAGE: &str = "sticky-benches";

/// A row of the table: what was measured, in what, and what it may be at most.
struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    goal: f64,
}

pub(crate) fn run(
    args: &BenchArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    match measure(args, cargo, interrupt)? {
        Some(rows) => {
            print(&rows, args.json);
            Ok(ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// All rows; `None` if Ctrl-C came first.
fn measure(
    args: &BenchArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<Vec<Row>>> {
    let Some(()) = valgrind(interrupt)? else { return Ok(None) };
    let Some(runner) = runner(cargo, interrupt)? else { return Ok(None) };

    eprintln!(
        "counting instructions (some minutes: a room of 100,000 is made, under callgrind) .."
    );
    let mut instructions = bench(cargo, "instructions");
    instructions.args(["--", "--output-format=json"]).env("GUNGRAUN_RUNNER", runner);
    let Some(said) = output(interrupt, instructions)? else { return Ok(None) };
    let counts = counts(&said)?;
    let count = |name: &str| {
        counts.get(name).copied().with_context(|| format!("callgrind does not count `{name}`"))
    };
    let scan = count("scan.joins")?;
    let in_scans = |name| Ok::<_, anyhow::Error>(count(name)? / scan);

    eprintln!("counting bytes ..");
    let Some(said) = output(interrupt, bench(cargo, "memory"))? else { return Ok(None) };
    let memory = line_with(&said, "entries")?;
    let bytes = |what: &str| memory[what].as_f64().with_context(|| format!("no {what}: {memory}"));

    eprintln!("counting tasks (the first time matrix-sdk is built for it, some minutes) ..");
    let mut tasks = cargo.compile("test");
    tasks.args(["--quiet", "--package", MAIN, "--test", "it", "--", "--exact", "--nocapture"]);
    tasks.arg("tasks::one_task_and_one_timer_serve_10_000_rooms");
    let Some(said) = output(interrupt, tasks)? else { return Ok(None) };
    let tasks = line_with(&said, "tasks")?;
    let most = tasks["tasks"].as_f64().into_iter().chain(tasks["timers"].as_f64());

    let in_10k = count("arrive.refresh_in_10k")?;
    // A session's update is to cost what changes, and not what is there.
    let of_10 = count("roster.refresh_of_10")?;
    let rows = vec![
        row("raw-to-map", in_scans("arrive.raw_to_map")?, SCANS, 1.5),
        row("superseded", in_scans("arrive.superseded")?, SCANS, 1.5),
        row("redelivered", in_scans("arrive.redelivered")?, SCANS, 1.5),
        row("refresh-in-10k", in_10k / scan, SCANS, 1.5),
        row("refresh-in-10k-to-10", in_10k / count("arrive.refresh_in_10")?, "times", 1.1),
        row("expiry-of-100k", count("advance.expiry_of_100k")? / EVENTS, INSTRUCTIONS, 1_000.0),
        row("snapshot-of-10k", count("snapshot.of_10k")?, INSTRUCTIONS, 1_000.0),
        row(
            "bytes-per-entry",
            (bytes("all")? - bytes("text")?) / bytes("entries")?,
            "bytes",
            250.0,
        ),
        row("tasks-for-10k-rooms", most.fold(0.0, f64::max), "tasks", 1.0),
        row("roster-refresh-of-500-to-10", count("roster.refresh_of_500")? / of_10, "times", 1.5),
        row("roster-refresh-of-5k-to-10", count("roster.refresh_of_5k")? / of_10, "times", 1.5),
        row(
            "roster-join-to-500-to-10",
            count("roster.join_to_500")? / count("roster.join_to_10")?,
            "times",
            1.5,
        ),
        row(
            "roster-leave-of-500-to-10",
            count("roster.leave_of_500")? / count("roster.leave_of_10")?,
            "times",
            1.5,
        ),
    ];
    eprintln!(
        "a scan of an event takes {:.0} instructions; looking when nothing ends, {:.0}",
        scan / EVENTS,
        count("advance.nothing_of_100k")? / EVENTS
    );
    eprintln!("a refresh in a MatrixRTC session of 10 takes {:.0}", of_10 / EVENTS);
    if args.time {
        eprintln!("measuring time, with criterion ..");
        match run_child(bench(cargo, "time"), interrupt)? {
            End::Interrupted => return Ok(None),
            End::Exited(status) if !status.success() => bail!("the benchmark failed: see above"),
            End::Exited(_) => {}
        }
    }
    Ok(Some(rows))
}

const SCANS: &str = "scans";
const INSTRUCTIONS: &str = "instructions";

fn row(name: &'static str, value: f64, unit: &'static str, goal: f64) -> Row {
    Row { name, value, unit, goal }
}

#[allow(clippy::print_stdout, reason = "it is what the chore is for")]
fn print(rows: &[Row], json: bool) {
    if json {
        for Row { name, value, unit, goal } in rows {
            println!("{}", json!({ "row": name, "value": value, "unit": unit, "goal": goal }));
        }
        return;
    }
    println!("| row | measured | at most | |");
    println!("|---|---|---|---|");
    for Row { name, value, unit, goal } in rows {
        let decimals = if *goal < 10.0 { 3 } else { 0 };
        let met = if value <= goal {
            "met".to_owned()
        } else {
            format!("{:.0} % over", (value / goal - 1.0) * 100.0)
        };
        println!("| `{name}` | {value:.decimals$} {unit} | {goal} | {met} |");
    }
}

/// The instructions of each case, as `function.case`, by what gungraun prints.
fn counts(said: &str) -> anyhow::Result<HashMap<String, f64>> {
    let mut counts = HashMap::new();
    for summary in said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(function), Some(case)) =
            (summary["function_name"].as_str(), summary["id"].as_str())
        else {
            continue;
        };
        let parts = &summary["profiles"][0]["data"]["parts"];
        let values = &parts[0]["metrics"]["Ir"]["values"];
        let count = values["new"].as_f64().with_context(|| {
            format!("gungraun says otherwise than expected how much `{function}` took")
        })?;
        counts.insert(format!("{function}.{case}"), count);
    }
    Ok(counts)
}

/// The line that is a JSON object with this member.
fn line_with(said: &str, member: &str) -> anyhow::Result<Value> {
    said.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|value| value.get(member).is_some())
        .with_context(|| format!("no line with `{member}` in what was printed: {said}"))
}

/// A command that runs one of the benchmarks, built without matrix-sdk.
fn bench(cargo: &Cargo, name: &str) -> Command {
    let mut command = cargo.compile("bench");
    command.args(["--quiet", "--package", PACKAGE, "--bench", name]);
    command
}

/// What a command prints; `None` if Ctrl-C came first.
fn output(interrupt: &Interrupt, command: Command) -> anyhow::Result<Option<String>> {
    interrupt.or(move || said(command)).transpose()
}

/// Sees to it that there is a valgrind; `None` if Ctrl-C came first.
fn valgrind(interrupt: &Interrupt) -> anyhow::Result<Option<()>> {
    if runs("valgrind", "--version") {
        return Ok(Some(()));
    }
    eprintln!("installing valgrind with apt-get ..");
    for args in [&["update", "--quiet=2"][..], &["install", "--yes", "--quiet=2", "valgrind"]] {
        let mut apt = Command::new("apt-get");
        apt.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        match run_child(apt, interrupt) {
            Ok(End::Interrupted) => return Ok(None),
            Ok(End::Exited(status)) if status.success() => {}
            _ => break,
        }
    }
    if !runs("valgrind", "--version") {
        bail!(
            "valgrind is needed to count instructions, and could not be installed: install it \
             (Debian, Ubuntu: `apt-get install valgrind`)"
        );
    }
    Ok(Some(()))
}

/// Where gungraun's runner is, of the version of its library; `None` if Ctrl-C came first.
fn runner(cargo: &Cargo, interrupt: &Interrupt) -> anyhow::Result<Option<PathBuf>> {
    let mut ask = cargo.plain("pkgid");
    ask.arg("gungraun");
    let package = said(ask)?;
    let (_, version) = package
        .trim()
        .rsplit_once('@')
        .with_context(|| format!("cargo names no version of gungraun: {package}"))?;

    let root = target_dir().join(format!("gungraun-runner-{version}"));
    let name = format!("gungraun-runner{}", env::consts::EXE_SUFFIX);
    let runner = root.join("bin").join(name);
    // Cargo puts it there as the last thing that it does.
    if !runner.exists() {
        eprintln!("installing gungraun-runner {version} (once, about a minute) ..");
        let mut install = cargo.plain("install");
        install.args(["--quiet", "--locked", "gungraun-runner", "--version", version, "--root"]);
        install.arg(&root);
        match run_child(install, interrupt)? {
            End::Interrupted => return Ok(None),
            End::Exited(status) if !status.success() => {
                bail!(
                    "gungraun-runner could not be installed ({status}): see cargo's message above"
                )
            }
            End::Exited(_) => {}
        }
    }
    Ok(Some(runner))
}
