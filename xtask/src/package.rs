//! `cargo xtask bindings`: builds the library, and packages it for a language.

use std::process::ExitCode;

use xtask::{
    bindings::{self, Built},
    folders::target_dir,
};

use crate::{BindingsArgs, cargo::Cargo, ci::INTERRUPTED, process::Interrupt};

pub(crate) fn run(
    args: &BindingsArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let language = args.language;
    // Before minutes of building.
    if let Some(lacks) = language.lacks() {
        anyhow::bail!("{lacks}");
    }
    let profile = if args.debug { "dev" } else { "ffi" };
    eprintln!("building the library ({profile} profile) ..");
    let builds = [("matrix-sdk-sticky-ffi", profile), ("uniffi-bindgen", "dev")];
    for (package, profile) in builds {
        let options = ["--package", package, "--profile", profile];
        if !cargo.build(&options, package, interrupt)? {
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
    let target = target_dir();
    let dir = if args.debug { "debug" } else { "ffi" };
    let built = Built::in_dir(&target.join(dir), &target.join("debug"))?;
    eprintln!("packaging for {language} ..");
    let Some(package) = interrupt.or(move || bindings::package(language, &built)) else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    println!("{}", package?.display());
    Ok(ExitCode::SUCCESS)
}
