//! Swift, which does not run here: its sources are whole, and parse. That is all that can be said.

use std::{collections::BTreeSet, fs, path::Path};

use xtask::{
    bindings::{self, Language},
    folders::workspace,
    tools,
};

use crate::support::{built, languages};

/// The grammar that checks it, from PyPI.
const GRAMMAR: [&str; 2] = ["tree-sitter==0.26.1", "tree-sitter-swift==0.7.4"];

fn parses(venv: &Path, file: &Path) -> Result<(), String> {
    let mut check = std::process::Command::new(bindings::venv_python(venv));
    check.arg(workspace().join("uniffi/tests/swift/check.py")).arg(file);
    tools::run(check).map_err(|error| error.to_string())
}

/// What follows this word, up to the end of the name.
fn names<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = String> + 'a {
    text.split(word).skip(1).map(|rest| {
        let is_part = |c: char| c.is_alphanumeric() || "`_".contains(c);
        let name = rest.trim_start().split(|c| !is_part(c)).next().unwrap_or_default();
        name.replace('`', "")
    })
}

/// The interfaces of Kotlin's objects and listeners, with their methods, and all that is public besides.
fn kotlin(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut methods = BTreeSet::new();
    for interface in text.split("\npublic interface ").skip(1) {
        let body = interface.split("\n}").next().unwrap();
        if body.starts_with("FfiConverter") {
            // UniFFI's own.
            continue;
        }
        methods.extend(names(body, "fun "));
    }
    let kinds = ["data class ", "sealed class ", "enum class ", "open class "];
    let types = kinds.iter().flat_map(|kind| {
        let at_start: Vec<_> = text.lines().filter(|line| line.starts_with(kind)).collect();
        at_start
            .into_iter()
            .flat_map(|line| names(line, kind).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    });
    (methods, types.collect())
}

#[test]
fn swift_has_all_that_kotlin_has_and_parses() {
    let built = built();
    let dir = bindings::package(Language::Swift, &built).unwrap();
    let source = dir.join("Sources/MatrixSticky/MatrixSticky.swift");
    let include = dir.join("Sources/MatrixStickyFFI/include");
    for file in [&dir.join("Package.swift"), &source, &include.join("MatrixStickyFFI.h")] {
        assert!(file.exists(), "{}", file.display());
    }
    let module = fs::read_to_string(include.join("module.modulemap")).unwrap();
    assert!(module.contains("module MatrixStickyFFI") && module.contains("MatrixStickyFFI.h"));

    let swift = fs::read_to_string(&source).unwrap();
    let kotlin_dir = workspace().join("target/bindings/for-comparison");
    bindings::generate(Language::Kotlin, &built, &kotlin_dir).unwrap();
    let file = kotlin_dir.join("org/matrix/sticky/matrix_sdk_sticky_ffi.kt");
    let (methods, types) = kotlin(&fs::read_to_string(file).unwrap());
    assert!(methods.len() > 50 && types.len() > 40, "{} {}", methods.len(), types.len());
    let theirs: BTreeSet<_> = names(&swift, "func ").collect();
    let missing: Vec<_> = methods.iter().filter(|name| !theirs.contains(*name)).collect();
    assert!(missing.is_empty(), "Swift lacks {missing:?}");
    let kinds = ["public struct ", "enum ", "open class ", "public protocol "];
    let theirs: BTreeSet<_> = kinds.iter().flat_map(|kind| names(&swift, kind)).collect();
    // Kotlin calls an error an exception.
    let called = |name: &String| name.replace("Exception", "Error");
    let uniffis = ["InternalException", "RustBuffer"];
    let is_own = |name: &&String| !name.starts_with("Uniffi") && !uniffis.contains(&name.as_str());
    let missing: Vec<_> =
        types.iter().filter(is_own).map(called).filter(|name| !theirs.contains(name)).collect();
    assert!(missing.is_empty(), "Swift lacks {missing:?}");

    if languages(&[Language::Python]).is_empty() {
        eprintln!("whether Swift's sources parse is left out too, as a Python package tells");
        return;
    }
    let venv = workspace().join("target/bindings/swift-grammar");
    bindings::make_venv(&venv).unwrap();
    let mut pip = std::process::Command::new(bindings::venv_python(&venv));
    pip.args(["-m", "pip", "install", "--quiet"]).args(GRAMMAR);
    tools::run(pip).unwrap();
    for file in [&source, &dir.join("Package.swift")] {
        parses(&venv, file).unwrap();
    }
    // The check sees what is wrong.
    let broken = dir.join("Broken.swift");
    fs::write(&broken, swift.replacen("public struct Member", "public struct struct Member {", 1))
        .unwrap();
    parses(&venv, &broken).unwrap_err();
    fs::remove_file(broken).unwrap();
}
