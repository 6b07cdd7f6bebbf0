//! The corpora of the fuzz targets (`fuzz/`), replayed: each file through the same function as the
//! fuzzer runs, on any compiler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../fuzz/bodies/map.rs"]
mod map;
#[path = "../fuzz/bodies/wire.rs"]
mod wire;

use std::{fs, panic, path::Path};

#[test]
fn wire_reads_its_corpus_as_the_plain_reading_does() {
    replay("wire", wire::run);
}

#[test]
fn the_map_is_what_the_model_says_on_its_corpus() {
    replay("map", map::run);
}

fn replay(target: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(&corpus).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "a corpus of {} files is none", files.len());
    for file in files {
        let data = fs::read(&file).unwrap();
        let replayed = panic::catch_unwind(|| body(&data));
        assert!(replayed.is_ok(), "fuzz/corpus/{target}/{:?}, see above", file.file_name());
    }
}
