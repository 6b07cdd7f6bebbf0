//! Our side of `cargo xtask side-by-side`, and the corpus for both: what `store.mjs` does with
//! matrix-js-sdk's `RoomStickyEventsStore`, with [`EphemeralMaps`].
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
    alloc::{GlobalAlloc, Layout, System},
    env,
    error::Error,
    fs::{self, File},
    hint::black_box,
    io::{BufWriter, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use matrix_sdk_sticky::{
    map::{Limits, Path as Way},
    time::{Clock, Moment},
    view::{Arrival, Changes, Delivery, EphemeralMaps, Subscription},
    wire,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

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

const ROOM: &str = "!room:example.org";

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
    let mut ids = Ids(0);
    let file = |name: &str| File::create(dir.join(format!("{name}.jsonl"))).map(BufWriter::new);
    let hour = 3_600_000;

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

/// A membership of MatrixRTC as Element Call sends it and Synapse delivers it.
fn event(ids: &mut Ids, key: usize, origin_server_ts: u64, left: u64) -> Value {
    let (sticky_key, user) = key_of(key);
    let user = format!("@user-{user:05}:example.org");
    json!({
        "type": "org.matrix.msc4143.rtc.member",
        "sender": user,
        "content": {
            "slot_id": "m.call#ROOM",
            "application": { "type": "m.call", "m.call.intent": "video" },
            "member": {
                "id": sticky_key,
                "membership": "join",
                "user_id": user,
                "device_id": format!("DEVICE{key:05}"),
            },
            "transports": {
                "published": [{
                    "type": "livekit",
                    "livekit_service_url": "https://matrix-rtc.example.org/livekit/jwt",
                }],
                "can_subscribe": ["livekit"],
            },
            "versions": [],
            "msc4354_sticky_key": sticky_key,
            "sticky_key": sticky_key,
        },
        "origin_server_ts": origin_server_ts,
        "msc4354_sticky": { "duration_ms": 3_600_000 },
        "unsigned": { "age": 3_600_000 - left, "msc4354_sticky_duration_ttl_ms": left },
        "event_id": ids.event_id(),
    })
}

/// The sticky key, a random UUID's look-alike, and the number of the user: two devices each.
fn key_of(key: usize) -> (String, usize) {
    let mut ids = Ids(key as u64 ^ 0xdead_beef);
    let (a, b) = (ids.next(), ids.next());
    let uuid = format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    );
    (uuid, key / 2)
}

/// Numbers that look random, the same in each run: SplitMix64.
struct Ids(u64);

impl Ids {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn event_id(&mut self) -> String {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut id = String::from("$");
        for _ in 0..43 {
            id.push(char::from(ALPHABET[(self.next() % 64) as usize]));
        }
        id
    }
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

/// The maps, with one subscriber who looks at each entry.
struct Watched {
    maps: EphemeralMaps,
    changes: Changes,
    told: usize,
}

impl Watched {
    fn new(clock: impl Clock + 'static) -> Self {
        let maps = EphemeralMaps::new(clock, Limits::default());
        let Subscription { changes, .. } = maps.view().subscribe();
        Self { maps, changes, told: 0 }
    }

    /// What our v3 sync does with a response.
    fn feed(&mut self, body: &str) -> Result {
        let received = self.maps.now();
        let response = wire::read_v3(body.as_bytes())?;
        self.maps.handle(response.sections.into_iter().map(|(room_id, events)| Delivery {
            room_id,
            received,
            path: Way::Section,
            arrivals: events.into_iter().map(|event| Arrival::Event(event.to_owned())).collect(),
        }));
        self.look();
        Ok(())
    }

    fn look(&mut self) {
        if let Some(change) = self.changes.next_now() {
            self.told += change.entries.len();
        }
    }

    /// How many entries there are, and a sum of their event ids: both sides have to agree.
    fn seen(&self) -> (usize, u32) {
        let snapshot = self.maps.view().snapshot();
        snapshot.iter().fold((0, 0), |(count, sum), entry| {
            let sum = sum.wrapping_add(fnv(entry.event_id().as_str()));
            (count + 1, sum)
        })
    }
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
                let told = watched.told;
                let began = CpuTime::now();
                for body in bodies {
                    watched.feed(body)?;
                }
                let fed = began.elapsed_ns();
                if round > 0 {
                    say(&json!({
                        "row": "feed",
                        "page": page,
                        "phase": phase,
                        "ns": fed,
                        "scan_ns": scan,
                        "told": watched.told - told,
                        "seen": watched.seen(),
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
    let clock = Arc::new(SetClock(AtomicU64::new(unix_ms()?)));
    let before = LIVE.load(Ordering::Relaxed);
    let mut watched = Watched::new(clock.clone());
    for event in events.lines() {
        watched.feed(&body(&[event]))?;
    }
    let after = LIVE.load(Ordering::Relaxed);
    say(&json!({ "row": "memory", "bytes": after - before, "seen": watched.seen() }));

    clock.forward(FIRST_END_MS - 1);
    for _ in 0..OUR_EXPIRIES {
        clock.forward(1);
        let told = watched.told;
        let began = CpuTime::now();
        // What its timer calls.
        watched.maps.advance();
        watched.look();
        let took = began.elapsed_ns();
        if watched.told != told + 1 {
            return Err(format!("{} entries ended at once", watched.told - told).into());
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

/// A clock that stands still until it is told.
#[derive(Debug)]
struct SetClock(AtomicU64);

impl SetClock {
    fn forward(&self, milliseconds: u64) {
        self.0.fetch_add(milliseconds, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Moment {
        let now = Duration::from_millis(self.0.load(Ordering::Relaxed));
        Moment::new(now, now)
    }
}

/// Bytes that are allocated and not freed.
static LIVE: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static COUNTED: Counted = Counted;

struct Counted;

impl Counted {
    fn count(size: usize, sign: i64) {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        LIVE.fetch_add(sign * size, Ordering::Relaxed);
    }
}

#[allow(unsafe_code, reason = "an allocator is, and this one hands on what it is given")]
// SAFETY: each call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 1);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count(layout.size(), -1);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count(layout.size(), -1);
        Self::count(size, 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
