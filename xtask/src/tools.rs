//! Programs of the machine: whether they are there, and one that is run to its end.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

/// Whether a program is there and works: it does what it is asked for by this option, such as `--version`.
pub fn runs(program: impl AsRef<OsStr>, option: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(option).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a program to its end, without a word if all is well.
///
/// # Errors
/// If it fails, with what it said.
pub fn run(mut command: Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{name}` does not run: is it installed?"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("`{name}` failed ({}). It said:\n{}", output.status, String::from_utf8_lossy(&said));
    }
    Ok(())
}
