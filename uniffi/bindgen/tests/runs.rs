//! It runs. And as it has a test, `cargo test` builds it for those of the bindings, which use it.

#[test]
fn it_is_of_the_release_that_the_library_is_built_with() {
    let program = std::process::Command::new(env!("CARGO_BIN_EXE_uniffi-bindgen"))
        .arg("--version")
        .output()
        .unwrap();
    let version = String::from_utf8(program.stdout).unwrap();
    assert!(program.status.success() && version.contains(" 0.32."), "{version}");
}
