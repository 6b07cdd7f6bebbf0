//! What is taken out of README, and what is refused.

use super::*;

const README: &str = "# A crate

```toml
[dependencies]
matrix-sdk-sticky = { git = \"https://example.org/repository\" } # or { path = \"..\" }
tokio = { version = \"1\", features = [\"time\"] }
```

```rust,no_run
fn main() {}
```
";

fn main_line(readme: &str) -> String {
    let manifest = manifest(readme, Path::new("/checkout")).unwrap();
    manifest.lines().find(|line| line.starts_with(MAIN)).unwrap().to_owned()
}

#[test]
fn checkout_takes_the_place_of_the_repository() {
    let line = "matrix-sdk-sticky = { path = \"/checkout\" } # or { path = \"..\" }";
    assert_eq!(main_line(README), line);
}

#[test]
fn features_of_the_crate_stay() {
    let readme = README.replace("repository\" }", "repository\", features = [\"media-keys\"] }");
    let line = "matrix-sdk-sticky = { path = \"/checkout\", features = [\"media-keys\"] } # or { path = \"..\" }";
    assert_eq!(main_line(&readme), line);
}

#[test]
fn other_dependencies_stay_as_they_are() {
    let manifest = manifest(README, Path::new("/checkout")).unwrap();
    assert!(manifest.contains("\ntokio = { version = \"1\", features = [\"time\"] }\n"));
}

#[test]
fn block_without_the_crate_is_refused() {
    let readme = README.replace("matrix-sdk-sticky =", "another =");
    assert!(manifest(&readme, Path::new("/checkout")).is_err());
}

#[test]
fn programs_are_taken_as_they_stand() {
    assert_eq!(programs(README).unwrap(), ["fn main() {}\n"]);
}

/// A snippet needs a frame, and a hidden line may name what the reader does not have.
#[test]
fn part_of_a_program_is_refused() {
    assert!(programs(&README.replace("main", "other")).is_err());
    assert!(programs(&README.replace("fn main", "# use hidden::Thing;\nfn main")).is_err());
}

#[test]
fn readme_itself_has_what_is_needed() {
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    manifest(&readme, &workspace()).unwrap();
    programs(&readme).unwrap();
}
