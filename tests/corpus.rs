//! The corpora of the fuzz targets (`fuzz/`), replayed: each file through the same function as the
//! fuzzer runs, on any compiler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../fuzz/bodies/map.rs"]
mod map;
#[path = "../fuzz/bodies/rtc.rs"]
mod rtc;
#[path = "../fuzz/bodies/wire.rs"]
mod wire;

use std::{fs, panic, path::Path};

#[test]
fn wire_matches_the_plain_reading() {
    replay("wire", wire::run);
}

#[test]
fn the_map_matches_its_model() {
    replay("map", map::run);
}

#[test]
fn mallory_changes_nobody_on_the_corpus() {
    replay("rtc", rtc::run);
}

/// Plays random inputs, as many as the variable `RTC_CASES` says.
#[test]
fn mallory_changes_nobody_at_random() {
    let cases = std::env::var("RTC_CASES").ok().and_then(|it| it.parse().ok()).unwrap_or(300);
    // An xorshift will do.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for _ in 0..cases {
        let data: Vec<u8> = (0..128).flat_map(|_| next()).collect();
        let replayed = panic::catch_unwind(|| rtc::run(&data));
        assert!(replayed.is_ok(), "see above; the input is {data:?}");
    }
}

fn replay(target: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(&corpus).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "a corpus of {} files is too small", files.len());
    for file in files {
        let data = fs::read(&file).unwrap();
        let replayed = panic::catch_unwind(|| body(&data));
        assert!(replayed.is_ok(), "fuzz/corpus/{target}/{:?}, see above", file.file_name());
    }
}
