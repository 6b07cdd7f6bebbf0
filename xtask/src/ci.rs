//! What must pass before a commit. Each step is one command that can be run by hand: it is printed
//! before it runs, and its duration after. The first that fails ends it.

use std::{
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::bail;
use xtask::bindings::Language;

use crate::{
    cargo::{Cargo, MAIN},
    process::{End, Interrupt, run as run_child},
    prose, readme,
};

/// What the shell says of a command that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// What is not on by default, so that it is tested too.
pub(crate) const ALL: &str = "matrix-sdk-sticky/media-keys";

/// The feature sets that have to compile, each without a warning.
const FEATURE_SETS: &[(&str, &[&str])] = &[
    ("pure", &["--no-default-features"]),
    ("client", &["--no-default-features", "--features", "client"]),
    ("client, encryption", &["--no-default-features", "--features", "client,e2e-encryption"]),
    ("client, SQLite", &["--no-default-features", "--features", "client,sqlite"]),
    ("default", &[]),
    ("default, media keys", &["--features", "media-keys"]),
];

/// `cargo xtask ci`.
pub(crate) fn run(no_test: bool, cargo: &Cargo, interrupt: &Interrupt) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    eprintln!("== prose: cargo xtask prose");
    prose::check()?;
    for (name, command) in steps(cargo)? {
        if !step(&name, command, interrupt)? {
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
    if has_deny(cargo) {
        let mut deny = cargo.plain("deny");
        deny.arg("check");
        if !step("deny", deny, interrupt)? {
            return Ok(ExitCode::from(INTERRUPTED));
        }
    } else {
        eprintln!("== deny: skipped, as cargo-deny is not installed (`cargo install cargo-deny`)");
    }
    if !no_test {
        say_what_is_left_out();
        if !step("test", tests(&[], cargo), interrupt)? {
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
    eprintln!("== all passed in {:.1} s", began.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask test`.
pub(crate) fn test(
    args: &[String],
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    say_what_is_left_out();
    let passed = step("test", tests(args, cargo), interrupt)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
}

/// The tests of the bindings leave out a language whose tools are missing, and nobody sees what a test that
/// passes prints.
fn say_what_is_left_out() {
    for language in [Language::Kotlin, Language::Python] {
        if let Some(lacks) = language.lacks() {
            eprintln!("== test: the program in {language} is left out: {lacks}");
        }
    }
}

fn tests(args: &[String], cargo: &Cargo) -> Command {
    let mut command = cargo.compile("test");
    command.args(["--workspace", "--features", ALL]).args(args);
    command
}

/// Everything but cargo-deny and the tests, in the order of what fails soonest.
fn steps(cargo: &Cargo) -> anyhow::Result<Vec<(String, Command)>> {
    let mut format = cargo.plain("fmt");
    format.args(["--all", "--check"]);
    let mut clippy = cargo.compile("clippy");
    clippy.args(["--workspace", "--all-targets", "--features", ALL, "--", "-D", "warnings"]);
    let mut docs = cargo.compile("doc");
    docs.args(["--workspace", "--no-deps", "--features", ALL]).env("RUSTDOCFLAGS", "-D warnings");
    let mut steps =
        vec![("fmt".to_owned(), format), ("clippy".to_owned(), clippy), ("docs".to_owned(), docs)];
    for (name, features) in FEATURE_SETS {
        // Clippy is what can turn the warnings of this crate alone into errors.
        let mut check = cargo.compile("clippy");
        check.args(["--package", MAIN, "--lib"]).args(*features).args(["--", "-D", "warnings"]);
        steps.push((format!("features: {name}"), check));
    }
    steps.push(("readme".to_owned(), readme::check(cargo)?));
    Ok(steps)
}

fn has_deny(cargo: &Cargo) -> bool {
    let mut ask = cargo.plain("deny");
    ask.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ask.status().is_ok_and(|status| status.success())
}

/// Runs one step; `false` if Ctrl-C ended it.
fn step(name: &str, command: Command, interrupt: &Interrupt) -> anyhow::Result<bool> {
    let shown = shown(&command);
    eprintln!("== {name}: {shown}");
    let began = Instant::now();
    let end = run_child(command, interrupt)?;
    let seconds = began.elapsed().as_secs_f64();
    match end {
        End::Exited(status) if status.success() => {
            eprintln!("== {name}: passed in {seconds:.1} s");
            Ok(true)
        }
        End::Exited(status) => {
            bail!("{name} failed after {seconds:.1} s ({status}), see above. The command: {shown}")
        }
        End::Interrupted => {
            eprintln!("== {name}: interrupted after {seconds:.1} s");
            Ok(false)
        }
    }
}

/// A command as a person types it.
fn shown(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(name, value)| {
            Some(format!("{}='{}'", name.to_string_lossy(), value?.to_string_lossy()))
        })
        .collect();
    words.push("cargo".to_owned());
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}
