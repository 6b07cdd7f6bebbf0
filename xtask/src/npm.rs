//! matrix-js-sdk and a Node for it, from npm, in `target/js`: installed once, by one process at a
//! time. In goes the path of a program; out comes a command that runs it, or an [`InstallError`]
//! that says what to do. An install that was killed leaves nothing that counts.

use std::{
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    folders::{target_dir, workspace},
    tools::runs,
};

/// What is installed, in exact versions. There is no lock file: it would name the registry of
/// the person who made it.
const PACKAGE: &str = include_str!("npm/package.json");

/// What the name of an install begins with until it is complete. Each process has its own, so that
/// the npm of a killed one cannot write into another's.
const UNFINISHED: &str = "unfinished-";

/// Where Node's packages are, by Node's own rules.
const MODULES: &str = "node_modules";

/// matrix-js-sdk and its Node, installed.
#[derive(Debug, Clone)]
pub struct Js {
    dir: PathBuf,
}

impl Js {
    /// Installs what is not there yet, which takes some 20 s the first time.
    ///
    /// # Errors
    /// An [`InstallError`], which names what is missing and what to do about it.
    pub fn ensure() -> Result<Self, InstallError> {
        let dir = target_dir().join("js");
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        let _lock = lock(&dir)?;
        // Written last, and so the sign of an install that was not cut short.
        let installed = dir.join("installed.json");
        let is_installed = fs::read(&installed).is_ok_and(|found| found == PACKAGE.as_bytes());
        if !is_installed || !runs(node(&dir), "--version") {
            eprintln!("installing matrix-js-sdk and Node into {} (once, ~20 s) ..", dir.display());
            let _ = fs::remove_file(&installed);
            install(&dir)?;
            fs::write(&installed, PACKAGE).map_err(failed("write", &installed))?;
        }
        Ok(Self { dir })
    }

    /// A command that runs a program, given by its path in the workspace. Not by the Node of the
    /// machine: matrix-js-sdk asks for one that is newer than many have.
    ///
    /// # Errors
    /// If the program is not there.
    pub fn node(&self, options: &[&str], program: &str) -> Result<Command, InstallError> {
        let source = workspace().join(program);
        let content = fs::read(&source).map_err(failed("read", &source))?;
        // Node finds packages from where a program lies, so it goes to where the packages are.
        let copy = self.dir.join(program);
        let _lock = lock(&self.dir)?;
        if fs::read(&copy).ok().as_ref() != Some(&content) {
            // In one step, as somebody may be starting the same program.
            let unfinished = copy.with_extension(format!("{UNFINISHED}{}", std::process::id()));
            let parent = copy.parent().unwrap_or(&self.dir);
            fs::create_dir_all(parent).map_err(failed("create", parent))?;
            fs::write(&unfinished, content).map_err(failed("write", &unfinished))?;
            fs::rename(&unfinished, &copy).map_err(failed("rename", &unfinished))?;
        }
        let mut command = Command::new(node(&self.dir));
        command.args(options).arg(copy).env_remove("NODE_OPTIONS");
        Ok(command)
    }
}

/// One at a time, until what this gives falls out of scope. The system lets go of a killed process's
/// lock.
fn lock(dir: &Path) -> Result<File, InstallError> {
    let path = dir.join("install.lock");
    let lock = File::create(&path).map_err(failed("create", &path))?;
    lock.lock().map_err(failed("lock", &path))?;
    Ok(lock)
}

fn node(dir: &Path) -> PathBuf {
    dir.join(MODULES).join(".bin").join("node")
}

fn install(dir: &Path) -> Result<(), InstallError> {
    let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
    if !runs(npm, "--version") {
        return Err(InstallError::NoNpm);
    }
    remove_leftovers(dir);
    let unfinished = dir.join(format!("{UNFINISHED}{}", std::process::id()));
    fs::create_dir_all(&unfinished).map_err(failed("create", &unfinished))?;
    let package = unfinished.join("package.json");
    fs::write(&package, PACKAGE).map_err(failed("write", &package))?;
    let output = Command::new(npm)
        .args(["install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(&unfinished)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| InstallError::Npm(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(InstallError::Npm(format!("{} ({})", said.trim(), output.status)));
    }
    if !runs(node(&unfinished), "--version") {
        return Err(InstallError::NoNode);
    }
    let modules = dir.join(MODULES);
    if modules.exists() {
        fs::remove_dir_all(&modules).map_err(failed("remove", &modules))?;
    }
    let complete = unfinished.join(MODULES);
    fs::rename(&complete, &modules).map_err(failed("rename", &complete))?;
    fs::copy(&package, dir.join("package.json")).map_err(failed("copy", &package))?;
    remove_leftovers(dir);
    Ok(())
}

/// What cannot be removed is in nobody's way.
fn remove_leftovers(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Why there is no matrix-js-sdk. Each text says what to do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum InstallError {
    /// There is no `npm`, or it does not run.
    NoNpm,
    /// `npm install` failed. With what it said.
    Npm(String),
    /// The npm package `node` brought no Node that runs here.
    NoNode,
    /// A file.
    Io {
        /// What was tried: "create /some/where".
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNpm => f.write_str(
                "npm is needed for what is done together with matrix-js-sdk, and `npm` does not \
                 run: install Node.js with npm (Debian, Ubuntu: `apt-get install npm`), any version",
            ),
            Self::Npm(said) => write!(
                f,
                "`npm install` of matrix-js-sdk failed: is the registry reachable? Try again once \
                 the cause is mended. It said:\n{said}"
            ),
            Self::NoNode => f.write_str(
                "the npm package `node` has no Node that runs on this machine: does npm run the \
                 install scripts of packages (`npm config get ignore-scripts`)?",
            ),
            Self::Io { what, source } => write!(f, "cannot {what}: {source}"),
        }
    }
}

impl std::error::Error for InstallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn failed<'a>(verb: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> InstallError + 'a {
    move |source| InstallError::Io { what: format!("{verb} {}", path.display()), source }
}
