//! The same rows in time, by criterion. It shows what counted instructions leave out: caches, branches.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use matrix_sdk_sticky::wire;
use serde::de::IgnoredAny;
use sticky_benches::{
    Watched,
    cases::{Due, EVENTS, crowd, joins, raw_to_map, redelivered, refreshed, superseded},
};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    reading(&mut criterion);
    arriving(&mut criterion);
    living(&mut criterion);
    criterion.final_summary();
}

fn reading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read");
    let events = joins();
    let bytes = events.iter().map(|event| event.get().len() as u64).sum();
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("scan", |bencher| {
        bencher.iter(|| {
            for event in &events {
                let scanned = serde_json::from_str::<IgnoredAny>(black_box(event.get()));
                black_box(scanned.is_ok());
            }
        });
    });
    group.bench_function("wire", |bencher| {
        bencher.iter(|| {
            for event in &events {
                black_box(wire::read(black_box(event)).is_ok());
            }
        });
    });
    group.finish();
}

fn arriving(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("arrives");
    group.throughput(Throughput::Elements(EVENTS as u64));
    for (row, begin) in [
        ("raw-to-map", raw_to_map as fn() -> _),
        ("superseded", superseded),
        ("redelivered", redelivered),
        ("refresh-in-10", || refreshed(10)),
        ("refresh-in-10k", || refreshed(10_000)),
    ] {
        if row.ends_with("10k") {
            // Making the room takes longer than what is measured.
            group.sample_size(10);
        }
        group.bench_function(row, |bencher| {
            bencher.iter_batched(begin, Due::arrive, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn living(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("room");
    group.sample_size(10);
    group.bench_function("expiry-of-100k", |bencher| {
        bencher.iter_batched(|| crowd(100_000), |crowd| crowd.advance(1), BatchSize::PerIteration);
    });
    group.bench_function("snapshot-of-10k", |bencher| {
        let (watched, _clock) = Watched::room(10_000);
        bencher.iter(|| watched.maps.view().snapshot());
    });
    group.finish();
}
