//! matrix-js-sdk and a Node for it, from npm, in `target/js`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use xtask::homeserver::workspace;

use crate::process::{End, Interrupt, run as run_child};

/// The programs, and what they are installed by.
const FILES: [&str; 3] = ["package.json", "store.mjs", "watch.mjs"];

/// Where the JavaScript side is, installed.
pub(super) struct Js {
    dir: PathBuf,
}

impl Js {
    /// A command that runs one of the programs. Not by the Node of the machine: matrix-js-sdk asks
    /// for one that is newer than many have, and the figures are those of one version.
    pub(super) fn node(&self, options: &[&str], program: &str) -> Command {
        let mut command = Command::new(node(&self.dir));
        command.args(options).arg(self.dir.join(program)).env_remove("NODE_OPTIONS");
        command
    }
}

/// Installs what is not there yet; `None` if Ctrl-C came first.
pub(super) fn ensure(interrupt: &Interrupt) -> anyhow::Result<Option<Js>> {
    let source = workspace().join("benches").join("js");
    let dir = workspace().join("target").join("js");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let wanted = fs::read(source.join("package.json"))
        .with_context(|| format!("cannot read {}/package.json", source.display()))?;
    // Written last, and so the sign of an install that was not cut short.
    let installed = dir.join("installed.json");
    let is_installed = fs::read(&installed).is_ok_and(|found| found == wanted) && runs(&dir);
    // Node finds packages from where a program lies, so these go to where the packages are.
    for file in FILES {
        fs::copy(source.join(file), dir.join(file))
            .with_context(|| format!("cannot copy {file}"))?;
    }
    if !is_installed {
        eprintln!("installing matrix-js-sdk and Node from npm into target/js ..");
        let _ = fs::remove_file(&installed);
        let mut npm = Command::new(if cfg!(windows) { "npm.cmd" } else { "npm" });
        // Without a lock file: it would name the registry of whoever wrote it.
        npm.args(["install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(&dir);
        // For the version, which says whether there is one at all.
        let mut ask = Command::new(npm.get_program());
        let there = ask.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            bail!(
                "npm is needed for the side-by-side with matrix-js-sdk, and `npm` does not run: \
                 install Node.js with npm (Debian, Ubuntu: `apt-get install npm`), any version"
            );
        }
        match run_child(npm, interrupt)? {
            End::Interrupted => return Ok(None),
            End::Exited(status) if !status.success() => {
                bail!("`npm install` failed in target/js ({status}): is the registry reachable?")
            }
            End::Exited(_) => {}
        }
        if !runs(&dir) {
            bail!(
                "the npm package `node` has no Node that runs on this machine: see its install \
                 script in target/js/node_modules/node"
            );
        }
        fs::write(&installed, &wanted).context("cannot write target/js/installed.json")?;
    }
    Ok(Some(Js { dir }))
}

fn node(dir: &Path) -> PathBuf {
    dir.join("node_modules").join(".bin").join("node")
}

/// Whether the Node that was installed runs.
fn runs(dir: &Path) -> bool {
    let mut command = Command::new(node(dir));
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
