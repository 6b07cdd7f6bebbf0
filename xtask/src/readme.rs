//! `cargo xtask readme`: compiles README's programs with the dependencies that README names, and no others.
//!
//! In: `README.md`. Out: a package in the target folder, and the `cargo check` that compiles it. Never: a
//! line that the reader does not see.
//!
//! Why not the doctests alone, which compile README too? They see every dependency of the crate and of its
//! tests, so that README could forget one.

#[cfg(test)]
mod tests;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail};
use xtask::folders::workspace;

use crate::{
    cargo::{Cargo, MAIN},
    process::{End, Interrupt, run as run_child},
};

/// What the package is called.
const NAME: &str = "readme-programs";

/// `cargo xtask readme`.
pub(crate) fn run(cargo: &Cargo, interrupt: &Interrupt) -> anyhow::Result<ExitCode> {
    match run_child(check(cargo)?, interrupt)? {
        End::Exited(status) if status.success() => Ok(ExitCode::SUCCESS),
        End::Exited(status) => {
            bail!(
                "README's programs do not compile with README's dependencies ({status}): see above"
            )
        }
        End::Interrupted => Ok(ExitCode::from(crate::ci::INTERRUPTED)),
    }
}

/// Writes the package, and makes the command that compiles it.
pub(crate) fn check(cargo: &Cargo) -> anyhow::Result<Command> {
    let target = target();
    let folder = target.join(NAME);
    write(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
    let mut command = cargo.compile("check");
    command.arg("--manifest-path").arg(folder.join("Cargo.toml"));
    // What the workspace has compiled with the same features is not compiled again.
    command.arg("--target-dir").arg(target);
    Ok(command)
}

fn target() -> PathBuf {
    let root = workspace();
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}

fn write(folder: &Path) -> anyhow::Result<()> {
    let root = workspace();
    let readme = fs::read_to_string(root.join("README.md"))?;
    let binaries = folder.join("src/bin");
    if binaries.exists() {
        fs::remove_dir_all(&binaries)?;
    }
    fs::create_dir_all(&binaries)?;
    fs::write(folder.join("Cargo.toml"), manifest(&readme, &root)?)?;
    // The same versions as the workspace has.
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    for (index, program) in programs(&readme)?.into_iter().enumerate() {
        fs::write(binaries.join(format!("program-{}.rs", index + 1)), program)?;
    }
    Ok(())
}

/// The manifest of a reader who copied README's block, with this checkout in place of the repository.
fn manifest(readme: &str, root: &Path) -> anyhow::Result<String> {
    let [dependencies] = blocks(readme, "toml")[..] else {
        bail!("README.md has to have one block of TOML, the [dependencies]");
    };
    let path = format!("path = {:?}", root.display().to_string());
    let mut has_main = false;
    let lines: Vec<_> = dependencies
        .lines()
        .map(|line| match line.split_once(&format!("{MAIN} = {{ ")) {
            Some(("", rest)) => {
                has_main = true;
                let (source, rest) = rest.split_at(rest.find([',', '}']).unwrap_or(rest.len()));
                let after = if source.ends_with(' ') { " " } else { "" };
                format!("{MAIN} = {{ {path}{after}{rest}")
            }
            _ => line.to_owned(),
        })
        .collect();
    if !has_main {
        bail!("README.md has no line `{MAIN} = {{ .. }}` in its [dependencies]");
    }
    Ok(format!(
        "[package]\nname = \"{NAME}\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\n\
         {}\n\n[lints.rust]\nwarnings = \"deny\"\n\n\
         # Not a member of the workspace, whose target folder it is in.\n[workspace]\n",
        lines.join("\n")
    ))
}

/// The programs, each as the reader sees it.
fn programs(readme: &str) -> anyhow::Result<Vec<&str>> {
    let mut programs = blocks(readme, "rust,no_run");
    programs.extend(blocks(readme, "rust"));
    if programs.is_empty() {
        bail!("README.md has no program");
    }
    for program in &programs {
        if !program.contains("fn main()") || program.lines().any(|line| line.starts_with("# ")) {
            bail!("each program of README.md is whole, without hidden lines:\n{program}");
        }
    }
    Ok(programs)
}

/// What stands between the fences of this language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(fence.as_str()).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)).collect()
}
