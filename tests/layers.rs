//! Which module of the crate may import which. `ARCHITECTURE.md` says why.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{UseTree, visit::Visit};

/// The modules of `src`, from the ground floor up, and what each imports. A module imports only from
/// above its own line, so there is no circle. `time` is everybody's.
const LAYERS: &[(&str, &[&str])] = &[
    ("time", &[]),
    ("wire", &[]),
    ("event", &["time", "wire"]),
    ("map", &["event", "time", "wire"]),
    ("view", &["event", "map", "time", "wire"]),
    ("responses", &["map", "time", "view"]),
    ("driver", &["time"]),
    ("request", &[]),
    ("client_table", &[]),
    ("cleartext", &["wire"]),
    ("readers", &[]),
    ("encrypt", &["client_table", "driver", "readers", "request", "time"]),
    (
        "sync",
        &["cleartext", "driver", "encrypt", "event", "map", "request", "time", "view", "wire"],
    ),
    ("outbox", &["driver", "encrypt", "event", "readers", "request", "sync", "time", "wire"]),
    ("delayed", &["driver", "outbox", "readers", "request", "sync", "time", "wire"]),
    ("context", &["delayed", "driver", "outbox", "sync", "view", "wire"]),
    ("send", &["context", "driver", "event", "outbox", "request", "time", "wire"]),
    (
        "heartbeat",
        &[
            "cleartext",
            "context",
            "delayed",
            "driver",
            "encrypt",
            "event",
            "outbox",
            "readers",
            "sync",
            "time",
            "view",
            "wire",
        ],
    ),
    (
        "rtc",
        &[
            "cleartext",
            "context",
            "delayed",
            "driver",
            "encrypt",
            "event",
            "heartbeat",
            "request",
            "send",
            "time",
            "view",
            "wire",
        ],
    ),
    ("app", &["driver", "request", "sync", "time"]),
    (
        "sticky",
        &[
            "app",
            "client_table",
            "context",
            "delayed",
            "driver",
            "encrypt",
            "event",
            "heartbeat",
            "map",
            "outbox",
            "rtc",
            "send",
            "sync",
            "time",
            "view",
        ],
    ),
];

#[test]
fn no_module_imports_from_above() {
    let mut below = BTreeSet::new();
    for (module, imports) in LAYERS {
        for import in *imports {
            assert!(below.contains(import), "`{module}` imports `{import}`, which is not below it");
        }
        below.insert(*module);
    }
}

#[test]
fn each_module_imports_what_its_layer_says() {
    let found = imports();
    let known: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    for (module, imports) in &found {
        let Some(allowed) = known.get(&**module) else {
            panic!("`{module}` has no layer: add it to the list")
        };
        for (import, path) in imports {
            assert!(
                allowed.contains(&&**import),
                "`{module}` may not import `{import}`: {}",
                path.display()
            );
        }
        for import in *allowed {
            assert!(
                imports.contains_key(*import),
                "`{module}` does not import `{import}` any more: take it off the list"
            );
        }
    }
    assert_eq!(found.len(), LAYERS.len(), "a module of the list is gone");
}

/// What each module of `src` imports, and a file that does. The tests, which may import anything, and
/// the crate's root are left out.
fn imports() -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    let module_of = |path: &Path| {
        let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    };
    // `guide` has only documents, and `testing` only what tests need.
    let is_left_out = |module: &str| matches!(module, "lib" | "guide" | "testing");
    let modules: BTreeSet<_> = files.iter().map(|path| module_of(path)).collect();
    let mut found = BTreeMap::<String, BTreeMap<String, PathBuf>>::new();
    for path in files {
        let module = module_of(&path);
        if is_left_out(&module) {
            continue;
        }
        let mut names = Names::default();
        names.visit_file(&syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
        let imports = found.entry(module.clone()).or_default();
        for name in names.0 {
            if modules.contains(&name) && name != module && !is_left_out(&name) {
                imports.insert(name, path.clone());
            }
        }
    }
    found
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Files that are tests as a whole.
        if matches!(&*name, "tests" | "simulation" | "crowd") {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// The first names after `crate::`, in imports and in paths.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl Names {
    fn add(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => self.0.insert(path.ident.to_string()),
            UseTree::Name(name) => self.0.insert(name.ident.to_string()),
            UseTree::Rename(rename) => self.0.insert(rename.ident.to_string()),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add(tree));
                false
            }
            UseTree::Glob(_) => false,
        };
    }
}

impl Visit<'_> for Names {
    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
        };
        if !item.attrs.iter().any(is_test) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        if item.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
        }) {
            return;
        }
        if let UseTree::Path(path) = &item.tree
            && path.ident == "crate"
        {
            self.add(&path.tree);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|first| first.ident == "crate")
            && let Some(second) = segments.next()
        {
            self.0.insert(second.ident.to_string());
        }
        syn::visit::visit_path(self, path);
    }
}
