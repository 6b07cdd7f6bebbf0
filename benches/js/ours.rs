//! Our side of `cargo xtask side-by-side`, and the corpus for both: what `store.mjs` does with
//! matrix-js-sdk's `RoomStickyEventsStore`, with `EphemeralMaps`.
//!
//! `side-by-side corpus DIR` writes the corpus, `side-by-side run DIR` prints one JSON object a
//! line. Both sides read the same bytes: bodies of /sync responses whose sticky section has a page
//! of events.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program's clocks and output are its own"
)]

use std::{
    env,
    error::Error,
    fs::{self, File},
    hint::black_box,
    io::{BufWriter, Write as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use matrix_sdk_sticky::{
    map::ReceivedVia,
    time::{Clock, Moment},
    view::{Arrival, Delivery},
    wire,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use sticky_benches::{
    SetClock, Watched,
    corpus::{HOUR_MS, Ids, ROOM, event, key_of},
    memory::{Counted, live_bytes},
};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// In the order in which they are fed.
const PHASES: [&str; 5] = ["join", "refresh", "superseded", "again", "removal"];

/// How many events a response has: one that catches up, and one that is live.
const PAGES: [usize; 2] = [100, 1];

/// How often all is fed, after a first time that does not count.
const ROUNDS: usize = 3;

const KEYS: usize = 10_000;

/// How often each key is refreshed.
const REFRESHES: usize = 3;

/// How many entries there are when one after the other ends.
const CROWD: usize = 100_000;

/// When the first of them ends; the others follow, one each millisecond.
const FIRST_END_MS: u64 = 1_800_000;

/// How many of them end: all of ours, and of theirs as many as one has the patience for.
const OUR_EXPIRIES: usize = 10_000;
const THEIR_EXPIRIES: usize = 30;

fn main() -> Result {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["corpus", dir] => write_corpus(Path::new(dir)),
        ["run", dir] => {
            feeding(Path::new(dir))?;
            living(Path::new(dir))
        }
        _ => Err("usage: side-by-side corpus|run DIR".into()),
    }
}

fn write_corpus(dir: &Path) -> Result {
    fs::create_dir_all(dir)?;
    let now = unix_ms()?;
    let mut ids = Ids::new(0);
    let file = |name: &str| File::create(dir.join(format!("{name}.jsonl"))).map(BufWriter::new);
    let hour = HOUR_MS;

    let mut join = file("join")?;
    for key in 0..KEYS {
        writeln!(join, "{}", event(&mut ids, key, now - 60_000, hour))?;
    }
    // One device's refreshes come in order; those of the room interleave.
    let mut refresh = file("refresh")?;
    let mut last = Vec::with_capacity(KEYS);
    for number in 1..=REFRESHES as u64 {
        last.clear();
        for key in 0..KEYS {
            last.push(event(&mut ids, key, now - 60_000 + number * 10_000, hour));
        }
        for event in &last {
            writeln!(refresh, "{event}")?;
        }
    }
    // Late: what it refreshed is known already.
    let mut superseded = file("superseded")?;
    for key in 0..KEYS {
        writeln!(superseded, "{}", event(&mut ids, key, now - 70_000, hour))?;
    }
    let mut again = file("again")?;
    for event in &last {
        writeln!(again, "{event}")?;
    }
    let mut removal = file("removal")?;
    for key in 0..KEYS {
        let mut event = event(&mut ids, key, now, hour);
        let (sticky_key, _) = key_of(key);
        event["content"] = json!({ "msc4354_sticky_key": sticky_key, "sticky_key": sticky_key });
        writeln!(removal, "{event}")?;
    }
    let mut crowd = file("crowd")?;
    let mut crowd_bytes = 0;
    for key in 0..CROWD {
        let left = FIRST_END_MS + key as u64;
        let event = event(&mut ids, key, now - hour + left, left).to_string();
        crowd_bytes += event.len();
        writeln!(crowd, "{event}")?;
    }
    for mut file in [join, refresh, superseded, again, removal, crowd] {
        file.flush()?;
    }
    let about = json!({
        "room": ROOM,
        "phases": PHASES,
        "pages": PAGES,
        "rounds": ROUNDS,
        "events": {
            "join": KEYS,
            "refresh": KEYS * REFRESHES,
            "superseded": KEYS,
            "again": KEYS,
            "removal": KEYS,
            "crowd": CROWD,
            "crowd_bytes": crowd_bytes,
        },
        "crowd": { "first_end_ms": FIRST_END_MS, "their_expiries": THEIR_EXPIRIES },
    });
    fs::write(dir.join("corpus.json"), about.to_string())?;
    Ok(())
}

/// Responses of so many events each.
fn bodies(dir: &Path, phase: &str, page: usize) -> Result<Vec<String>> {
    let events = fs::read_to_string(dir.join(format!("{phase}.jsonl")))?;
    let events: Vec<&str> = events.lines().collect();
    Ok(events.chunks(page).map(body).collect())
}

fn body(events: &[&str]) -> String {
    let mut body = String::from(r#"{"next_batch":"s1","rooms":{"join":{""#);
    body.push_str(ROOM);
    body.push_str(r#"":{"msc4354_sticky":{"events":["#);
    body.push_str(&events.join(","));
    body.push_str("]}}}}}");
    body
}

/// What our v3 sync does with a response, and a subscriber who looks at each entry.
fn feed(watched: &mut Watched, told: &mut usize, body: &str) -> Result {
    let received = watched.maps.now();
    let response = wire::read_v3(body.as_bytes())?;
    watched.maps.handle(response.sections.into_iter().map(|(room_id, events)| Delivery {
        room_id,
        received,
        via: ReceivedVia::Section,
        arrivals: events.into_iter().map(|event| Arrival::Event(event.to_owned())).collect(),
    }));
    *told += watched.look().map_or(0, |change| change.entries.len());
    Ok(())
}

/// How many entries there are, and a sum of their event ids: both sides have to agree.
fn seen(watched: &Watched) -> (usize, u32) {
    let snapshot = watched.maps.view().snapshot();
    snapshot.iter().fold((0, 0), |(count, sum), entry| {
        (count + 1, sum.wrapping_add(fnv(entry.event_id().as_str())))
    })
}

/// FNV-1a.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn feeding(dir: &Path) -> Result {
    for page in PAGES {
        let phases = PHASES
            .into_iter()
            .map(|phase| Ok((phase, bodies(dir, phase, page)?)))
            .collect::<Result<Vec<_>>>()?;
        for round in 0..=ROUNDS {
            let mut watched = Watched::new(SystemClock::new());
            for (phase, bodies) in &phases {
                let began = CpuTime::now();
                for body in bodies {
                    black_box(serde_json::from_str::<IgnoredAny>(body)?);
                }
                let scan = began.elapsed_ns();
                let mut told = 0;
                let began = CpuTime::now();
                for body in bodies {
                    feed(&mut watched, &mut told, body)?;
                }
                let fed = began.elapsed_ns();
                if round > 0 {
                    say(&json!({
                        "row": "feed",
                        "page": page,
                        "phase": phase,
                        "ns": fed,
                        "scan_ns": scan,
                        "told": told,
                        "seen": seen(&watched),
                    }));
                }
            }
        }
    }
    Ok(())
}

/// 100,000 entries: what each takes, and one after the other ends.
fn living(dir: &Path) -> Result {
    let events = fs::read_to_string(dir.join("crowd.jsonl"))?;
    let clock = Arc::new(SetClock::new(unix_ms()?));
    let before = live_bytes();
    let mut watched = Watched::new(clock.clone());
    for event in events.lines() {
        feed(&mut watched, &mut 0, &body(&[event]))?;
    }
    let after = live_bytes();
    say(&json!({ "row": "memory", "bytes": after - before, "seen": seen(&watched) }));

    clock.forward(FIRST_END_MS - 1);
    for _ in 0..OUR_EXPIRIES {
        clock.forward(1);
        let began = CpuTime::now();
        let change = watched.advance();
        let took = began.elapsed_ns();
        let told = change.map_or(0, |change| change.entries.len());
        if told != 1 {
            return Err(format!("{told} entries ended at once").into());
        }
        say(&json!({ "row": "expiry", "ns": took }));
    }
    Ok(())
}

fn say(line: &Value) {
    println!("{line}");
}

/// The time that this thread had on the processor: what others do on the machine does not count.
/// Where the system does not tell, the time that passed.
struct CpuTime(Duration);

impl CpuTime {
    fn now() -> Self {
        #[cfg(unix)]
        let time = {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::try_from(time).unwrap_or_default()
        };
        #[cfg(not(unix))]
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(time)
    }

    fn elapsed_ns(&self) -> u64 {
        let elapsed = Self::now().0.saturating_sub(self.0);
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }
}

fn unix_ms() -> Result<u64> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since_epoch.as_millis())?)
}

/// The crate's own clock comes with its feature `client`.
#[derive(Debug)]
struct SystemClock {
    began: Instant,
}

impl SystemClock {
    fn new() -> Self {
        Self { began: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Moment::new(self.began.elapsed(), since_epoch.unwrap_or_default())
    }
}

#[global_allocator]
static COUNTED: Counted = Counted;
