//! Counted instructions, by callgrind: the rows of the speed table, and the scan that they are
//! compared with. `cargo xtask bench` runs this and makes the table.

#![allow(missing_docs, reason = "what the macros make")]

use std::hint::black_box;

use gungraun::{
    Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use matrix_sdk_sticky::{view::Snapshot, wire};
use serde::de::IgnoredAny;
use sticky_benches::{
    Watched,
    cases::{
        Crowd, Doing, Due, Event, Meeting, crowd, joins, meeting, raw_to_map, redelivered,
        refreshed, superseded,
    },
};

#[library_benchmark]
#[bench::joins(joins())]
fn scan(events: Vec<Event>) -> Vec<Event> {
    for event in &events {
        black_box(serde_json::from_str::<IgnoredAny>(black_box(event.get())).is_ok());
    }
    events
}

#[library_benchmark]
#[bench::joins(joins())]
fn read(events: Vec<Event>) -> Vec<Event> {
    for event in &events {
        black_box(wire::read(black_box(event)).is_ok());
    }
    events
}

#[library_benchmark]
#[bench::raw_to_map(raw_to_map())]
#[bench::superseded(superseded())]
#[bench::redelivered(redelivered())]
#[bench::refresh_in_10(refreshed(10))]
#[bench::refresh_in_10k(refreshed(10_000))]
fn arrive(due: Due) -> Due {
    due.arrive()
}

#[library_benchmark]
#[bench::expiry_of_100k(crowd(100_000), 1)]
#[bench::nothing_of_100k(crowd(100_000), 0)]
fn advance(crowd: Crowd, step_ms: u64) -> Crowd {
    crowd.advance(step_ms)
}

#[library_benchmark]
#[bench::of_10k(Watched::room(10_000).0)]
fn snapshot(watched: Watched) -> (Watched, Snapshot) {
    let snapshot = watched.maps.view().snapshot();
    (watched, snapshot)
}

#[library_benchmark]
#[bench::refresh_of_10(meeting(10, Doing::Refresh))]
#[bench::refresh_of_500(meeting(500, Doing::Refresh))]
#[bench::refresh_of_5k(meeting(5_000, Doing::Refresh))]
#[bench::join_to_10(meeting(10, Doing::Join))]
#[bench::join_to_500(meeting(500, Doing::Join))]
#[bench::leave_of_10(meeting(10, Doing::Leave))]
#[bench::leave_of_500(meeting(500, Doing::Leave))]
fn roster(meeting: Meeting) -> Meeting {
    meeting.goes_on()
}

library_benchmark_group!(name = rows, benchmarks = [scan, read, arrive, advance, snapshot, roster]);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::default()),
    library_benchmark_groups = rows
);
