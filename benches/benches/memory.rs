//! Measures the bytes of an entry beyond its text: one JSON object on stdout.

#![allow(clippy::print_stdout, reason = "a program's output is its own")]

use std::sync::Arc;

use serde_json::json;
use sticky_benches::{
    SetClock, Watched,
    corpus::{self, HOUR_MS, Ids},
    memory::{Counted, live_bytes},
    watched::NOW_MS,
};

#[global_allocator]
static COUNTED: Counted = Counted;

const ENTRIES: usize = 100_000;

fn main() {
    let clock = Arc::new(SetClock::new(NOW_MS));
    let mut watched = Watched::new(clock);
    let mut ids = Ids::new(0);
    let mut text = 0;
    let before = live_bytes();
    for number in 0..ENTRIES {
        // People do not join in the order of their names.
        let key = number * 61_803 % ENTRIES;
        let event = corpus::raw(&corpus::event(&mut ids, key, NOW_MS, HOUR_MS));
        text += event.get().len();
        watched.arrives(watched.delivery(event));
    }
    let all = usize::try_from(live_bytes() - before).unwrap_or_default();
    println!("{}", json!({ "entries": ENTRIES, "text": text, "all": all }));
}
