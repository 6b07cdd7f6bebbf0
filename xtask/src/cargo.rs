//! The cargo that runs us, told to ignore `rust-version` if the compiler is older.

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use xtask::folders::{target_dir, workspace};

use crate::process::{End, Interrupt, run as run_child};

/// The package that all this is about.
pub(crate) const MAIN: &str = "matrix-sdk-sticky";

/// Builds `cargo` commands that run at the root of the workspace.
pub(crate) struct Cargo {
    program: OsString,
    ignore_rust_version: bool,
}

impl Cargo {
    /// Finds cargo, and compares its compiler to what the main package asks for.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut cargo = Self { program, ignore_rust_version: false };
        let wanted = cargo.wanted_rust_version()?;
        let found = found_rust_version()?;
        if is_older(&found, &wanted) {
            cargo.ignore_rust_version = true;
            eprintln!(
                "note: rustc {found} is older than the {wanted} that matrix-sdk asks for; adding \
                 --ignore-rust-version"
            );
        }
        Ok(cargo)
    }

    /// A subcommand that compiles: `build`, `check`, `clippy`, `doc`, `test`.
    pub(crate) fn compile(&self, subcommand: &str) -> Command {
        let mut command = self.plain(subcommand);
        if self.ignore_rust_version {
            command.arg("--ignore-rust-version");
        }
        command
    }

    /// A subcommand that does not: `fmt`, `metadata`, `deny`.
    pub(crate) fn plain(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(workspace()).arg(subcommand);
        if env::var_os("CARGO_TARGET_DIR").is_some_and(|name| !name.is_empty()) {
            // A relative one is meant from where we were called.
            command.env("CARGO_TARGET_DIR", target_dir());
        }
        command
    }

    /// Builds something; `false` if Ctrl-C came first.
    pub(crate) fn build(
        &self,
        options: &[&str],
        name: &str,
        interrupt: &Interrupt,
    ) -> anyhow::Result<bool> {
        let mut build = self.compile("build");
        build.args(options);
        match run_child(build, interrupt)? {
            End::Interrupted => Ok(false),
            End::Exited(status) if !status.success() => {
                bail!("`{name}` does not build ({status}): see cargo's message above")
            }
            End::Exited(_) => Ok(true),
        }
    }

    /// Builds an example or a binary and says where it is; `None` if Ctrl-C came first.
    ///
    /// Why not simply `cargo run`? It would hold cargo's lock while it builds and runs, and the
    /// first seconds of what runs would be the compiler's.
    pub(crate) fn executable(
        &self,
        options: &[&str],
        name: &str,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<PathBuf>> {
        eprintln!("building `{name}` (some minutes the first time) ..");
        let quietly = [&["--quiet"], options].concat();
        if !self.build(&quietly, name, interrupt)? {
            return Ok(None);
        }
        // It is built; asked once more, cargo tells at once where.
        let mut ask = self.compile("build");
        ask.args(quietly).args(["--message-format", "json"]);
        let path = said(ask)?
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == name)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from));
        path.map(Some).with_context(|| format!("cargo does not say where it put `{name}`"))
    }

    /// How a person types `cargo run` here.
    pub(crate) fn run_words(&self) -> &'static str {
        if self.ignore_rust_version { "cargo run --ignore-rust-version" } else { "cargo run" }
    }

    /// `rust-version` of the main package; nothing if it names none.
    fn wanted_rust_version(&self) -> anyhow::Result<String> {
        let mut command = self.plain("metadata");
        command.args(["--no-deps", "--format-version", "1"]);
        let metadata: Value =
            serde_json::from_str(&said(command)?).context("`cargo metadata` printed no JSON")?;
        let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let main = packages.iter().find(|package| package["name"] == MAIN);
        Ok(main.and_then(|main| main["rust_version"].as_str()).unwrap_or_default().to_owned())
    }
}

/// `1.95.0`, of the `rustc` that cargo calls.
fn found_rust_version() -> anyhow::Result<String> {
    let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(workspace()).arg("--version");
    let said = said(command)?;
    Ok(said.split_whitespace().nth(1).context("`rustc --version` names no version")?.to_owned())
}

/// What a short command prints.
pub(crate) fn said(mut command: Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}): see above", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Compares versions by their numbers; what is missing counts as 0, and `-nightly` not at all.
fn is_older(found: &str, wanted: &str) -> bool {
    let numbers = |version: &str| -> [u32; 3] {
        let version = version.split('-').next().unwrap_or_default();
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
        [(); 3].map(|()| parts.next().unwrap_or(0))
    };
    numbers(found) < numbers(wanted)
}

#[cfg(test)]
mod tests {
    use super::is_older;

    #[test]
    fn versions_compare_by_number_and_not_by_text() {
        assert!(is_older("1.95.0", "1.96"));
        assert!(is_older("1.9.3", "1.10"));
        assert!(!is_older("1.96.0", "1.96"));
        assert!(!is_older("1.96.0-nightly", "1.96"));
        assert!(!is_older("1.100.0", "1.96.1"));
        assert!(!is_older("1.95.0", ""));
    }
}
