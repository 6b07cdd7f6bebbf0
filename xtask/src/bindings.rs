//! The bindings, packaged for each language, in `target/bindings`: sources that UniFFI generates from the
//! library, beside what stands in `uniffi/<language>`. In go the library and UniFFI's program; out come a
//! JAR, a wheel, a Swift package.

use std::{
    env::consts::{ARCH, DLL_PREFIX, DLL_SUFFIX, EXE_SUFFIX, OS},
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::{
    folders::{target_dir, workspace},
    tools::{run, runs},
};

/// The library's name, without what the system puts around it.
const LIBRARY: &str = "matrix_sdk_sticky_ffi";

/// A language that there are bindings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// A JAR with the library inside, in a folder that is laid out for Maven and for Android's Gradle
    Kotlin,
    /// A package around a module map
    Swift,
    /// A wheel with the library inside
    Python,
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kotlin => "kotlin",
            Self::Swift => "swift",
            Self::Python => "python",
        })
    }
}

impl Language {
    /// What the machine lacks to package it, and what to do about that; `None` where nothing.
    pub fn lacks(self) -> Option<String> {
        let lacks = |program: &str, option: &str, what: &str| {
            (!runs(program, option)).then(|| format!("`{program}` does not run: {what}"))
        };
        match self {
            Self::Kotlin => lacks("java", "-version", "install a JDK, 17 or newer").or_else(|| {
                lacks("mvn", "--version", "install Maven (Debian, Ubuntu: `apt-get install maven`)")
            }),
            Self::Python => {
                lacks("python3", "--version", "install Python, 3.10 or newer, with venv")
            }
            Self::Swift => None,
        }
    }
}

/// What cargo has built, in one of its profiles' folders.
#[derive(Clone, Debug)]
pub struct Built {
    /// The library.
    pub library: PathBuf,
    /// UniFFI's program.
    pub bindgen: PathBuf,
}

impl Built {
    /// What is in a folder such as `target/debug`.
    ///
    /// # Errors
    /// If it is not there, with what builds it.
    pub fn in_dir(dir: &Path, bindgen_dir: &Path) -> anyhow::Result<Self> {
        let library = dir.join(library_name());
        let bindgen = bindgen_dir.join(format!("uniffi-bindgen{EXE_SUFFIX}"));
        for path in [&library, &bindgen] {
            if !path.exists() {
                bail!(
                    "{} is not there: build it with `cargo build -p matrix-sdk-sticky-ffi -p \
                     uniffi-bindgen`",
                    path.display()
                );
            }
        }
        Ok(Self { library, bindgen })
    }
}

/// What the system calls the library.
fn library_name() -> String {
    format!("{DLL_PREFIX}{LIBRARY}{DLL_SUFFIX}")
}

/// Makes the package of a language anew; says where it is: a JAR, a wheel, or a folder.
///
/// # Errors
/// If a tool is missing or fails, with what it said.
pub fn package(language: Language, built: &Built) -> anyhow::Result<PathBuf> {
    if let Some(lacks) = language.lacks() {
        bail!("{lacks}");
    }
    let dir = target_dir().join("bindings").join(language.to_string());
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
        }
        _ => {}
    }
    copy_all(&workspace().join("uniffi").join(language.to_string()), &dir)?;
    match language {
        Language::Kotlin => kotlin(built, &dir),
        Language::Swift => swift(built, &dir),
        Language::Python => python(built, &dir),
    }
}

fn kotlin(built: &Built, dir: &Path) -> anyhow::Result<PathBuf> {
    generate(Language::Kotlin, built, &dir.join("src/main/kotlin"))?;
    copy_library(built, &dir.join("src/main/resources").join(jna_platform()))?;
    let mut maven = Command::new("mvn");
    maven.args(["--batch-mode", "--quiet", "package"]).current_dir(dir);
    run(maven)?;
    let jar = dir.join("target/matrix-sticky-0.1.0.jar");
    if !jar.exists() {
        bail!("Maven made no {}", jar.display());
    }
    Ok(jar)
}

fn python(built: &Built, dir: &Path) -> anyhow::Result<PathBuf> {
    let package = dir.join("matrix_sticky");
    generate(Language::Python, built, &package)?;
    copy_library(built, &package)?;
    let venv = dir.join("build-venv");
    make_venv(&venv)?;
    let mut pip = Command::new(venv_python(&venv));
    pip.args(["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."]);
    pip.current_dir(dir);
    run(pip)?;
    let dist = dir.join("dist");
    let wheels = fs::read_dir(&dist).with_context(|| format!("pip made no {}", dist.display()))?;
    let mut wheels = wheels.flatten().map(|entry| entry.path());
    wheels
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip made no wheel in {}", dist.display()))
}

fn swift(built: &Built, dir: &Path) -> anyhow::Result<PathBuf> {
    let sources = dir.join("Sources");
    generate(Language::Swift, built, &sources.join("MatrixSticky"))?;
    // The C side is a module of its own.
    let include = sources.join("MatrixStickyFFI").join("include");
    fs::create_dir_all(&include)?;
    for (from, to) in [
        ("MatrixStickyFFI.h", "MatrixStickyFFI.h"),
        ("MatrixStickyFFI.modulemap", "module.modulemap"),
    ] {
        let from = sources.join("MatrixSticky").join(from);
        fs::rename(&from, include.join(to)).with_context(|| format!("no {}", from.display()))?;
    }
    Ok(dir.to_owned())
}

/// Generates the sources of a language alone.
///
/// # Errors
/// If UniFFI's program fails, with what it said.
pub fn generate(language: Language, built: &Built, out: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut bindgen = Command::new(&built.bindgen);
    bindgen.arg("generate").arg(&built.library);
    bindgen.args(["--metadata-no-deps", "--no-format", "--language", &language.to_string()]);
    // Where it finds the settings, in the crate's uniffi.toml.
    bindgen.arg("--out-dir").arg(out).current_dir(workspace());
    run(bindgen)
}

/// The library as it ships: without what only a debugger reads, which is most of a debug build.
fn copy_library(built: &Built, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let to = to.join(library_name());
    fs::copy(&built.library, &to).with_context(|| format!("cannot write {}", to.display()))?;
    if cfg!(target_os = "linux") && runs("strip", "--version") {
        let mut strip = Command::new("strip");
        strip.arg("--strip-unneeded").arg(&to);
        run(strip)?;
    }
    Ok(())
}

/// A Python environment of its own, with pip.
///
/// # Errors
/// If Python cannot make one, with what it said.
pub fn make_venv(venv: &Path) -> anyhow::Result<()> {
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(venv);
    run(make)
}

/// The Python of an environment.
pub fn venv_python(venv: &Path) -> PathBuf {
    venv.join("bin").join("python")
}

/// Where JNA looks for a library in a JAR.
fn jna_platform() -> String {
    let system = match OS {
        "macos" => "darwin",
        "windows" => "win32",
        other => other,
    };
    let machine = if ARCH == "x86_64" { "x86-64" } else { ARCH };
    format!("{system}-{machine}")
}

/// Copies a folder with all that is in it.
fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to)
                .with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    Ok(())
}
