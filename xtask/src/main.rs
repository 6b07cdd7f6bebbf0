//! `cargo xtask`: the chores of matrix-sdk-sticky. `cargo xtask help` lists them.
//!
//! Here is the command line alone; each chore has its module. What a chore starts it ends, Ctrl-C
//! included.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::disallowed_methods,
    reason = "the walls of clippy.toml are the main crate's; here the clock and the threads are real"
)]

mod bench;
mod cargo;
mod chaos;
mod ci;
mod demo;
mod package;
mod process;
mod prose;
mod readme;
mod serve;
mod side_by_side;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use xtask::bindings::Language;

use crate::{cargo::Cargo, process::Interrupt};

/// The chores of matrix-sdk-sticky.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Shows a call live: a Synapse of its own, users who come, go and crash, and `presence`
    Demo(DemoArgs),
    /// Runs a Synapse on loopback to play with, with users in two rooms, until Ctrl-C
    Homeserver(HomeserverArgs),
    /// Runs every test, those against a real Synapse included
    Test(TestArgs),
    /// Runs a call through faults on a Synapse of its own, and checks that all see the same after each calm
    Chaos(ChaosArgs),
    /// Runs all that must pass before a commit: formatting, lints, docs, feature sets, tests
    Ci(CiArgs),
    /// Refuses phrases that readers stumble over, in comments, documents and error texts
    Prose(ProseArgs),
    /// Compiles README's programs with the dependencies that README names, and no others
    Readme,
    /// Makes a package of the bindings for a language, in target/bindings: a JAR, a Swift package, a wheel
    Bindings(BindingsArgs),
    /// Prints the speed table: counted instructions, bytes and tasks, with their goals
    Bench(BenchArgs),
    /// Compares speed with matrix-js-sdk: both fed with the same responses, and both on one server
    SideBySide(SideBySideArgs),
}

#[derive(Args)]
struct DemoArgs {
    /// One JSON object a line, for scripts, instead of the view for people
    #[arg(long)]
    json: bool,
    /// End by itself, so many seconds after the map is live
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

#[derive(Args)]
struct HomeserverArgs {
    /// The port on 127.0.0.1; defaults to a free one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Without sticky events (MSC4354)
    #[arg(long)]
    no_sticky: bool,
    /// Without delayed events (MSC4140)
    #[arg(long)]
    no_delayed_events: bool,
    /// With the rate limits that a Synapse has by default
    #[arg(long)]
    rate_limits: bool,
    /// The users to make. All of them are in both rooms
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "alice,bob")]
    users: Vec<String>,
}

#[derive(Args)]
struct TestArgs {
    /// For `cargo test`, after a `--`; what is for the tests themselves stands after a second one
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Args)]
struct CiArgs {
    /// All but the tests
    #[arg(long)]
    no_test: bool,
}

#[derive(Args)]
struct ProseArgs {
    /// First takes the files that are clean by now out of the list of unfinished ones
    #[arg(long)]
    shrink: bool,
}

#[derive(Args)]
struct ChaosArgs {
    /// For how many minutes, from the moment at which all have started
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// What the schedule of faults is drawn from; defaults to a random seed, which is printed first
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// One JSON object a line, for scripts: {"kind","at","text"}
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct BindingsArgs {
    /// The language
    language: Language,
    /// With the debug build of the library, which is there sooner and ten times as large
    #[arg(long)]
    debug: bool,
}

#[derive(Args)]
struct BenchArgs {
    /// One JSON object a row
    #[arg(long)]
    json: bool,
    /// Measures time too, with criterion (some minutes; its report goes to target/criterion)
    #[arg(long)]
    time: bool,
}

#[derive(Args)]
struct SideBySideArgs {
    /// One JSON object a row
    #[arg(long)]
    json: bool,
    /// One of the two tables
    #[arg(long)]
    only: Option<Side>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    /// The stores, fed with the same responses
    Store,
    /// From send to callback, on a real Synapse
    Server,
}

fn main() -> ExitCode {
    match run(Cli::parse().chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    match chore {
        Chore::Demo(args) => demo::run(&args, &Cargo::find()?, &interrupt),
        Chore::Homeserver(args) => serve::run(&args, &Cargo::find()?, &interrupt),
        Chore::Test(args) => ci::test(&args.args, &Cargo::find()?, &interrupt),
        Chore::Ci(args) => ci::run(args.no_test, &Cargo::find()?, &interrupt),
        Chore::Readme => readme::run(&Cargo::find()?, &interrupt),
        Chore::Prose(args) => prose::run(args.shrink),
        Chore::Chaos(args) => chaos::run(&args, &Cargo::find()?, &interrupt),
        Chore::Bindings(args) => package::run(&args, &Cargo::find()?, &interrupt),
        Chore::Bench(args) => bench::run(&args, &Cargo::find()?, &interrupt),
        Chore::SideBySide(args) => side_by_side::run(&args, &Cargo::find()?, &interrupt),
    }
}
