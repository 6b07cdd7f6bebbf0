//! The documents: every link leads somewhere, on a registry's page too, and the indexes are whole.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use xtask::folders::workspace;

/// The most lines that README may have.
const MAX_README_LINES: usize = 160;

/// Where documents stand. `uniffi` has none of its own.
const FOLDERS: &[&str] = &["", "benches", "benches/js", "docs", "examples", "fuzz"];

/// Every document of the repository, by its path in it.
fn documents() -> Vec<PathBuf> {
    let mut documents = Vec::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(workspace().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path.strip_prefix(workspace()).unwrap().to_owned());
            }
        }
    }
    documents.sort();
    documents
}

fn text_of(document: impl AsRef<Path>) -> String {
    let document = document.as_ref();
    fs::read_to_string(workspace().join(document))
        .unwrap_or_else(|error| panic!("{}: {error}", document.display()))
}

/// The text without what stands between fences, and without code spans.
fn prose(text: &str) -> String {
    let outside = text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n");
    outside.split('`').step_by(2).collect::<Vec<_>>().join("code")
}

/// The targets of `[text](target)` and of `[text]: target`.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let definitions = text
        .lines()
        .filter(|line| line.starts_with('['))
        .filter_map(|line| line.split_once("]: "))
        .map(|(_, target)| target.trim());
    inline.chain(definitions).map(str::to_owned).collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(document: &Path) -> BTreeSet<String> {
    let text = text_of(document);
    let outside = text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n");
    outside
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect()
}

/// The repository's address, as Cargo.toml has it.
fn repository() -> String {
    let manifest = text_of("Cargo.toml");
    let line = manifest.lines().find_map(|line| line.strip_prefix("repository = \"")).unwrap();
    line.trim_end_matches('"').to_owned()
}

/// The file that an absolute link into the repository means; `None` for a link to elsewhere.
fn in_repository(target: &str) -> Option<String> {
    let repository = repository();
    let raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/");
    let page = target.strip_prefix(&format!("{repository}/blob/main/"));
    page.or_else(|| target.strip_prefix(&format!("{raw}/main/"))).map(str::to_owned)
}

/// The file and the anchor that a link in a document means; `None` for a link to elsewhere.
fn destination(document: &Path, target: &str) -> Option<(PathBuf, Option<String>)> {
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor.to_owned())),
        None => (target, None),
    };
    if let Some(path) = in_repository(path) {
        return Some((path.into(), anchor));
    }
    if path.contains("://") {
        return None;
    }
    if path.is_empty() {
        return Some((document.to_owned(), anchor));
    }
    let mut destination = document.parent().unwrap().to_owned();
    for part in path.split('/') {
        match part {
            ".." => assert!(destination.pop(), "{}: {target}", document.display()),
            "." => {}
            part => destination.push(part),
        }
    }
    Some((destination, anchor))
}

#[test]
fn every_link_leads_somewhere() {
    let mut lost = Vec::new();
    for document in documents() {
        for target in links(&text_of(&document)) {
            let Some((path, anchor)) = destination(&document, &target) else { continue };
            let is_there = workspace().join(&path).exists()
                && anchor.is_none_or(|anchor| anchors(&path).contains(&anchor));
            if !is_there {
                lost.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(lost.is_empty(), "{lost:#?}");
}

/// A registry's page and docs.rs show README without the files beside it.
#[test]
fn readme_has_no_relative_link() {
    for target in links(&text_of("README.md")) {
        assert!(target.starts_with("https://"), "{target}");
    }
}

/// Including the address of the dependency. The owner sets the repository in Cargo.toml and in README at
/// once.
#[test]
fn readme_names_the_repository_of_the_manifest() {
    let readme = text_of("README.md");
    assert!(readme.contains(&format!("git = \"{}\"", repository())));
    let links = links(&readme);
    let ours = links.iter().filter(|target| in_repository(target).is_some()).count();
    assert!(ours > 10, "{links:#?}");
}

#[test]
fn package_has_what_readme_links() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["package", "--list", "--allow-dirty", "--package", "matrix-sdk-sticky"])
        .output()
        .unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let listed: BTreeSet<_> = listed.lines().map(|line| line.replace('\\', "/")).collect();
    for target in links(&text_of("README.md")) {
        let Some(path) = in_repository(&target) else { continue };
        let path = path.split('#').next().unwrap();
        assert!(listed.contains(path), "{path} is not in the package");
    }
}

#[test]
fn readme_is_short() {
    let lines = text_of("README.md").lines().count();
    assert!(lines <= MAX_README_LINES, "{lines} lines");
}

#[test]
fn every_page_is_in_the_index() {
    let index = text_of("docs/README.md");
    for document in documents() {
        let Ok(name) = document.strip_prefix("docs") else { continue };
        let name = name.display().to_string();
        assert!(name == "README.md" || index.contains(&format!("]({name})")), "{name}");
    }
}

#[test]
fn every_example_is_in_the_index() {
    let index = anchors(Path::new("examples/README.md"));
    for entry in fs::read_dir(workspace().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(name == "README" || index.contains(name), "{name} is not in examples/README.md");
    }
}

/// On docs.rs there are no files beside the guide: each of its links is defined anew there.
#[test]
fn guide_defines_every_relative_link() {
    let guide = text_of("src/guide.rs");
    let mut defined = BTreeSet::new();
    let mut pages = 0;
    for line in guide.lines() {
        if let Some(label) = line.strip_prefix("#[doc = \"[") {
            defined.insert(label.split(']').next().unwrap().to_lowercase());
        } else if let Some(path) = line.strip_prefix("#[doc = include_str!(\"../") {
            let page = path.split('"').next().unwrap();
            let text = prose(&text_of(page));
            let relative =
                text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
            for (label, target) in relative.filter(|(_, target)| !target.starts_with("https://")) {
                assert!(defined.contains(&label.to_lowercase()), "{page}: [{label}]: {target}");
            }
            let inline = text.split("](").skip(1).filter(|target| !target.starts_with("https://"));
            assert_eq!(inline.count(), 0, "{page}: define its links at its end");
            defined.clear();
            pages += 1;
        }
    }
    assert!(pages > 5, "{guide}");
}
