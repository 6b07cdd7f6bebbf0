//! Where things are: the workspace, and cargo's target folder. What the chores install, such as Synapse
//! and matrix-js-sdk, goes into the target folder, beside what cargo builds.

use std::{
    env,
    path::{Path, PathBuf},
};

/// By this file cargo marks its target folder, for programs that make backups.
const TAG: &str = "CACHEDIR.TAG";

/// How far above a program cargo's target folder is at most: `target/<triple>/<profile>/deps/<program>`.
const MAX_DEPTH: usize = 5;

/// The root of the workspace that this crate was built in.
pub fn workspace() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, else the one that this program was built into, else
/// `target` in the workspace. Absolute.
///
/// Why not ask `cargo metadata`? The tests need it too, hundreds of times, and a program that cargo
/// built lies in the folder already, also if `build.target-dir` or `--target-dir` chose it.
pub fn target_dir() -> PathBuf {
    let named = env::var_os("CARGO_TARGET_DIR").filter(|name| !name.is_empty()).map(PathBuf::from);
    let program = env::current_exe().unwrap_or_default();
    choose(named, &program, &workspace(), Path::exists)
}

fn choose(
    named: Option<PathBuf>,
    program: &Path,
    workspace: &Path,
    exists: impl Fn(&Path) -> bool,
) -> PathBuf {
    if let Some(named) = named {
        // Cargo takes a relative one from where it is called.
        return env::current_dir().unwrap_or_default().join(named);
    }
    let above = program.ancestors().skip(1).take(MAX_DEPTH);
    let tagged = above.into_iter().find(|folder| exists(&folder.join(TAG)));
    tagged.map_or_else(|| workspace.join("target"), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(named: Option<&str>, tagged: &str) -> PathBuf {
        let tag = Path::new(tagged).join(TAG);
        let program = Path::new("/built/debug/deps/xtask-1");
        choose(named.map(PathBuf::from), program, Path::new("/work"), |path| path == tag)
    }

    #[test]
    fn the_named_folder_counts_first() {
        assert_eq!(chosen(Some("/elsewhere"), "/built"), Path::new("/elsewhere"));
        assert!(chosen(Some("elsewhere"), "/built").is_absolute());
    }

    #[test]
    fn a_program_knows_where_it_was_built() {
        assert_eq!(chosen(None, "/built"), Path::new("/built"));
        assert_eq!(chosen(None, "/none"), Path::new("/work/target"));
    }
}
