//! The same rows in time, by criterion: what the counted instructions leave out (caches, branches).

use std::{cell::RefCell, hint::black_box};

use criterion::{BatchSize, Criterion, Throughput};
use matrix_sdk_sticky::wire;
use serde::de::IgnoredAny;
use sticky_benches::{
    Watched,
    cases::{crowd, join, joins, redelivered, refreshed, superseded},
    corpus::{self, HOUR_MS, Ids},
    watched::NOW_MS,
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
    let event = join();
    group.throughput(Throughput::Bytes(event.get().len() as u64));
    group.bench_function("scan", |bencher| {
        bencher.iter(|| serde_json::from_str::<IgnoredAny>(black_box(event.get())).is_ok());
    });
    group.bench_function("wire", |bencher| {
        bencher.iter(|| wire::read(black_box(event.get())).is_ok());
    });
    group.finish();
}

fn arriving(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("arrives");
    for (row, begin) in [
        ("raw-to-map", joins as fn() -> _),
        ("superseded", superseded),
        ("redelivered", redelivered),
        ("refresh-in-10", || refreshed(10)),
    ] {
        group.bench_function(row, |bencher| {
            let arrives = |(mut watched, delivery): (Watched, _)| {
                let change = watched.arrives(delivery);
                (watched, change)
            };
            bencher.iter_batched(begin, arrives, BatchSize::SmallInput);
        });
    }
    // A room of 10,000 is too large to be made anew each time: its keys are refreshed in turns, and
    // each refresh is followed by the end of none.
    group.bench_function("refresh-in-10k", |bencher| {
        let watched = RefCell::new(Watched::room(10_000).0);
        let mut ids = Ids::new(1);
        let mut turn = 0;
        bencher.iter_batched(
            || {
                turn += 1;
                let sent = NOW_MS + turn;
                let key = turn as usize % 10_000;
                let event = corpus::raw(&corpus::event(&mut ids, key, sent, HOUR_MS));
                watched.borrow().delivery(event)
            },
            |delivery| watched.borrow_mut().arrives(delivery),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn living(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("room");
    group.sample_size(10);
    group.bench_function("expiry-of-100k", |bencher| {
        bencher.iter_batched(
            || crowd(100_000, 1),
            |(mut watched, clock)| {
                let change = watched.advance();
                (watched, clock, change)
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("snapshot-of-10k", |bencher| {
        let (watched, _clock) = Watched::room(10_000);
        bencher.iter(|| watched.maps.view().snapshot());
    });
    group.finish();
}
