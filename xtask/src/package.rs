//! `cargo xtask bindings`: builds the library, and packages it for a language.

use std::process::ExitCode;

use xtask::{
    bindings::{self, Built},
    homeserver::workspace,
};

use crate::{
    BindingsArgs, Language,
    cargo::Cargo,
    ci::INTERRUPTED,
    process::{End, Interrupt, run as run_child},
};

pub(crate) fn run(
    args: &BindingsArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let language = match args.language {
        Language::Kotlin => bindings::Language::Kotlin,
        Language::Swift => bindings::Language::Swift,
        Language::Python => bindings::Language::Python,
    };
    // Before minutes of building.
    if let Some(lacks) = language.lacks() {
        anyhow::bail!("{lacks}");
    }
    let profile = if args.debug { "dev" } else { "ffi" };
    eprintln!("building the library ({profile} profile) ..");
    let builds = [("matrix-sdk-sticky-ffi", profile), ("uniffi-bindgen", "dev")];
    for (package, profile) in builds {
        let mut build = cargo.compile("build");
        build.args(["--package", package, "--profile", profile]);
        match run_child(build, interrupt)? {
            End::Interrupted => return Ok(ExitCode::from(INTERRUPTED)),
            End::Exited(status) if !status.success() => {
                anyhow::bail!("{package} does not build ({status}): see cargo's message above")
            }
            End::Exited(_) => {}
        }
    }
    let target = workspace().join("target");
    let dir = if args.debug { "debug" } else { "ffi" };
    let built = Built::in_dir(&target.join(dir), &target.join("debug"))?;
    eprintln!("packaging for {language} ..");
    let Some(package) = interrupt.or(move || bindings::package(language, &built)) else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    println!("{}", package?.display());
    Ok(ExitCode::SUCCESS)
}
