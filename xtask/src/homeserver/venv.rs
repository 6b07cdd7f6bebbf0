//! The Python environment that Synapse runs from. It is installed once into the workspace's target
//! directory, by one process at a time; an install that was killed leaves nothing that counts.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{StartError, io, last_lines};

/// The release of Synapse that the tests run against.
pub const SYNAPSE_VERSION: &str = "1.163.2";

/// What Synapse asks for; see its `Requires-Python`.
const PYTHON_AT_LEAST: (u32, u32) = (3, 10);

/// Makes sure that the environment is there, below `root`, and returns its `python`.
pub(super) fn ensure(root: &Path) -> Result<PathBuf, StartError> {
    fs::create_dir_all(root).map_err(io("create", root))?;
    let venv = root.join(format!("venv-{SYNAPSE_VERSION}"));
    let python = venv.join("bin").join("python");

    // Held until `lock` falls out of scope. The system lets go of a killed process's lock.
    let lock_path = root.join("install.lock");
    let lock = File::create(&lock_path).map_err(io("create", &lock_path))?;
    lock.lock().map_err(io("lock", &lock_path))?;

    // It has its name only since it is complete. Its Python is a link, and may be gone by now.
    if python.exists() {
        return Ok(python);
    }
    check_python()?;
    remove_leftovers(root)?;
    eprintln!("installing Synapse {SYNAPSE_VERSION} into {} (once, ~40 s) ..", venv.display());
    let unfinished = root.join(format!("{UNFINISHED}{}", std::process::id()));
    install(&unfinished)?;
    if venv.exists() {
        fs::remove_dir_all(&venv).map_err(io("remove", &venv))?;
    }
    fs::rename(&unfinished, &venv).map_err(io("rename", &unfinished))?;
    Ok(python)
}

/// What the name of an install begins with until it is complete. Each process has its own, so that
/// the pip of a killed one cannot write into another's.
const UNFINISHED: &str = "unfinished-venv-";

fn remove_leftovers(root: &Path) -> Result<(), StartError> {
    for entry in fs::read_dir(root).map_err(io("read", root))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

/// That there is a `python3`, new enough, and able to make environments.
fn check_python() -> Result<(), StartError> {
    let ask = "import sys; print('%d.%d' % sys.version_info[:2])";
    let answer = Command::new("python3")
        .args(["-c", ask])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| StartError::NoPython(error.to_string()))?;
    if !answer.status.success() {
        return Err(StartError::NoPython(last_lines(&String::from_utf8_lossy(&answer.stderr), 3)));
    }
    let found = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    let version = found
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    if version.is_none_or(|version| version < PYTHON_AT_LEAST) {
        return Err(StartError::OldPython { found });
    }
    let able = Command::new("python3")
        .args(["-c", "import venv, ensurepip"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| StartError::NoPython(error.to_string()))?;
    if able.status.success() { Ok(()) } else { Err(StartError::NoVenv { found }) }
}

fn install(into: &Path) -> Result<(), StartError> {
    let package = format!("matrix-synapse=={SYNAPSE_VERSION}");
    let failed = |step: &str, said: String| StartError::Install { step: step.to_owned(), said };
    let could_not_run = |error: std::io::Error| failed("python3", error.to_string());

    let mut command = Command::new("python3");
    command.args(["-c", include_str!("install.py")]).arg(into).arg(&package);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut installer = command.spawn().map_err(could_not_run)?;
    // Taken out, as waiting would close it; its end is what tells the installer that we are gone.
    let alive = installer.stdin.take();
    let output = installer.wait_with_output().map_err(could_not_run)?;
    drop(alive);
    if output.status.success() {
        return Ok(());
    }
    let step = String::from_utf8_lossy(&output.stdout);
    let step = if step.trim().is_empty() { package.as_str() } else { step.trim() };
    Err(failed(step, last_lines(&String::from_utf8_lossy(&output.stderr), 15)))
}
