//! What goes wrong, and when. In goes a seed; out come the stage and its rounds. No clock, no I/O:
//! the same seed gives the same schedule.

use std::{fmt, time::Duration};

/// The seats, and their rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) rooms: [Room; 2],
    pub(crate) seats: Vec<Seat>,
}

/// A room of the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) encrypted: bool,
    /// Whether matrix-js-sdk is in it. Then all speak the dialect of Element Call, else MSC4143's.
    pub(crate) with_js: bool,
}

/// A user with one device in one room's call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) name: &'static str,
    /// An index into the stage's rooms.
    pub(crate) room: usize,
    pub(crate) who: Who,
    /// How long after its last word the server sends the member's leave.
    pub(crate) delay: Duration,
    /// Whether one of ours receives by v3 `/sync`, and not by sliding sync.
    pub(crate) by_v3: bool,
}

/// Whose code runs in a seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Ours,
    Js,
}

/// Some faults, after which there is a calm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) number: u64,
    /// When the calm begins.
    pub(crate) lasts: Duration,
    /// In the order of their beginnings.
    pub(crate) faults: Vec<Fault>,
    /// How long the calm goes on after all has become right.
    pub(crate) watched: Duration,
}

/// One thing that goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    /// When it is over, if it is not over with the calm.
    pub(crate) until: Duration,
    pub(crate) what: What,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The line of a seat to the server, or everybody's.
    Line(Option<usize>, Line),
    /// The process in a seat.
    Process(usize, Process),
    Server(Server),
}

/// What a line to the server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    Up,
    /// Connections are closed at once.
    Cut,
    /// Connections are taken and never answered; no request reaches the server.
    Frozen,
    /// Each second request reaches the server, and its connection is closed instead of an answer.
    LosesAnswers,
    /// Each request is answered with this HTTP status, as by a proxy whose server is away.
    Fails(u16),
    /// Each request is answered with 429, and with how many milliseconds to wait.
    Limits(u64),
    /// Each answer comes so many milliseconds late.
    Slow(u64),
    /// Requests with this in their path are answered with 502, as where one of a server's workers
    /// is away.
    Lacks(&'static str),
}

/// What a line may lack.
const PARTS: [&str; 7] =
    ["/sync", "/send/", "/delayed_events/", "/keys/", "/sendToDevice/", "/state", "/refresh"];

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    /// SIGKILL, and another start.
    Kill(Back),
    /// SIGINT, upon which it leaves politely, and another start.
    Leave(Back),
    /// SIGSTOP, then SIGCONT.
    Stop,
}

/// When a process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Back {
    /// When the fault is over.
    ThisRound,
    /// After the calm.
    NextRound,
}

/// What happens to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    /// SIGTERM, and another start.
    Restart,
    /// SIGKILL, and another start.
    Crash,
    /// SIGSTOP, then SIGCONT.
    Pause,
}

/// The names and rooms of the seats. The room of the first has matrix-js-sdk in it.
const SEATS: [(&str, usize, Who); 6] = [
    ("anna", 0, Who::Ours),
    ("bert", 0, Who::Ours),
    ("carl", 0, Who::Ours),
    ("jill", 0, Who::Js),
    ("dora", 1, Who::Ours),
    ("emil", 1, Who::Ours),
];

/// The shortest and the longest time, in seconds, ..
type Seconds = (u64, u64);
/// .. of the faults of a round.
const ROUND: Seconds = (20, 40);
/// .. until the server sends a member's leave.
const DELAY: Seconds = (6, 15);
/// .. that a line is out of order.
const LINE: Seconds = (2, 18);
/// .. until a process is started again, or goes on.
const AWAY: Seconds = (1, 20);
/// .. until the server is started again.
const DOWN: Seconds = (0, 5);
/// .. that the server does not answer.
const PAUSED: Seconds = (2, 12);

/// When the first fault of a round may begin: a member that was away has started by then.
const FIRST: Duration = Duration::from_secs(3);

/// How long some calms go on: longer than the longest delay, so that a late leave is seen.
const WATCHED: Duration = Duration::from_secs(18);

/// How far the end of a process stays away from a pause of the server. A request may wait in a
/// paused server's socket for longer than its client does. The crate promises nothing of those: a
/// join that is read after its leave was sent makes a ghost.
const AWAY_FROM_PAUSE: Duration = Duration::from_secs(6);

impl Stage {
    pub(crate) fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 0);
        let encrypted = dice.coin();
        let seats = SEATS.map(|(name, room, who)| Seat {
            name,
            room,
            who,
            delay: Duration::from_secs(dice.between(DELAY)),
            by_v3: who == Who::Ours && dice.one_in(3),
        });
        Self {
            rooms: [
                Room { encrypted, with_js: true },
                Room { encrypted: !encrypted, with_js: false },
            ],
            seats: seats.to_vec(),
        }
    }
}

impl Round {
    /// The round of that number, from 1. It depends on the seed and the number alone.
    pub(crate) fn of(seed: u64, number: u64, stage: &Stage) -> Self {
        let mut dice = Dice::new(seed, number);
        let lasts = Duration::from_secs(dice.between(ROUND));
        let mut faults = Vec::new();
        if dice.coin() {
            faults.push(server(&mut dice, lasts));
        }
        let pause = faults.iter().find(|it| it.what == What::Server(Server::Pause)).copied();
        let all = dice.one_in(3).then(|| line(&mut dice, FIRST, lasts, None));
        faults.extend(all);
        let mut stays_away = stage.rooms.map(|_| false);
        for (index, seat) in stage.seats.iter().enumerate() {
            let half = lasts / 2;
            for (from, to) in [(FIRST, half), (half, lasts)] {
                if dice.coin() {
                    let fault = line(&mut dice, from, to, Some(index));
                    // A line does one thing at a time.
                    if !all.is_some_and(|all| fault.at <= all.until && all.at <= fault.until) {
                        faults.push(fault);
                    }
                }
            }
            if dice.coin() {
                let mut fault = process(&mut dice, lasts, index);
                // Somebody of each room sees the calm, and sees which members are not there.
                let away = stays_away.get_mut(seat.room);
                if let (What::Process(_, process), Some(away)) = (&mut fault.what, away) {
                    match process {
                        Process::Kill(back) | Process::Leave(back) if *away => {
                            *back = Back::ThisRound;
                        }
                        Process::Kill(Back::NextRound) | Process::Leave(Back::NextRound) => {
                            *away = true;
                        }
                        _ => {}
                    }
                }
                if !pause.is_some_and(|pause| fault.ends_a_process_near(&pause)) {
                    faults.push(fault);
                }
            }
        }
        faults.sort_by_key(|fault| fault.at);
        let watched = if dice.one_in(3) { WATCHED } else { Duration::ZERO };
        Self { number, lasts, faults, watched }
    }
}

impl Fault {
    fn ends_a_process_near(&self, pause: &Self) -> bool {
        let ends = matches!(self.what, What::Process(_, Process::Kill(_) | Process::Leave(_)));
        ends && self.at + AWAY_FROM_PAUSE > pause.at && self.at < pause.until + AWAY_FROM_PAUSE
    }
}

fn line(dice: &mut Dice, from: Duration, to: Duration, whose: Option<usize>) -> Fault {
    let line = match dice.between((0, 6)) {
        0 => Line::Cut,
        1 => Line::Frozen,
        2 => Line::LosesAnswers,
        3 => Line::Fails(dice.one_of([500, 502, 503, 504])),
        4 => Line::Limits(dice.one_of([500, 2_000, 8_000])),
        5 => Line::Slow(dice.one_of([300, 1_000, 1_800])),
        _ => Line::Lacks(dice.one_of(PARTS)),
    };
    dice.fault(from, to, LINE, What::Line(whose, line))
}

fn process(dice: &mut Dice, lasts: Duration, seat: usize) -> Fault {
    let back = if dice.coin() { Back::ThisRound } else { Back::NextRound };
    let process = match dice.between((0, 2)) {
        0 => Process::Kill(back),
        1 => Process::Leave(back),
        _ => Process::Stop,
    };
    dice.fault(FIRST, lasts, AWAY, What::Process(seat, process))
}

fn server(dice: &mut Dice, lasts: Duration) -> Fault {
    let (server, takes) = match dice.between((0, 2)) {
        0 => (Server::Restart, DOWN),
        1 => (Server::Crash, DOWN),
        _ => (Server::Pause, PAUSED),
    };
    dice.fault(FIRST, lasts, takes, What::Server(server))
}

/// SplitMix64: few lines, and the same numbers on every machine and with every compiler.
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u64) -> Self {
        let mut dice = Self(seed);
        // Seeds that lie side by side are the usual ones.
        let seed = dice.next();
        Self(seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Both ends included.
    fn between(&mut self, (low, high): (u64, u64)) -> u64 {
        let count = high.saturating_sub(low).saturating_add(1);
        low.saturating_add(self.next().checked_rem(count).unwrap_or(0))
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.between((1, count)) == 1
    }

    fn coin(&mut self) -> bool {
        self.one_in(2)
    }

    fn one_of<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        const { assert!(N > 0, "there is a choice") };
        let index = self.between((0, N as u64 - 1));
        choices[usize::try_from(index).unwrap_or(0)]
    }

    /// A fault that begins and ends between these two moments.
    fn fault(&mut self, from: Duration, to: Duration, takes: Seconds, what: What) -> Fault {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(0);
        let (from, to) = (millis(from), millis(to));
        let takes = (self.between(takes) * 1_000).min(to.saturating_sub(from));
        let at = self.between((from, to.saturating_sub(takes)));
        let [at, until] = [at, at + takes].map(Duration::from_millis);
        Fault { at, until, what }
    }
}

impl Round {
    /// The round in words, a line for each fault.
    pub(crate) fn describe(&self, stage: &Stage) -> String {
        let mut text = format!("round {}, {} s of faults:\n", self.number, self.lasts.as_secs());
        for fault in &self.faults {
            text.push_str(&format!("  {:>5.1} s  {}\n", seconds(fault.at), fault.describe(stage)));
        }
        text
    }
}

impl Stage {
    /// The seats, and their rooms.
    pub(crate) fn describe(&self) -> String {
        let rooms = self.rooms.iter().enumerate().map(|(index, room)| {
            let seats = self.seats.iter().filter(|seat| seat.room == index);
            let seats: Vec<_> = seats.map(Seat::describe).collect();
            let kind = if room.encrypted { "an encrypted room" } else { "a plain room" };
            format!("{kind}: {}", seats.join(", "))
        });
        rooms.collect::<Vec<_>>().join("; ")
    }
}

impl Seat {
    fn describe(&self) -> String {
        let by = match (self.who, self.by_v3) {
            (Who::Js, _) => "matrix-js-sdk, ",
            (Who::Ours, true) => "v3 sync, ",
            (Who::Ours, false) => "",
        };
        format!("{} ({by}delay {} s)", self.name, self.delay.as_secs())
    }
}

impl Fault {
    pub(crate) fn describe(&self, stage: &Stage) -> String {
        let lasts = seconds(self.until.saturating_sub(self.at));
        let name = |seat: usize| stage.seats.get(seat).map_or("nobody", |seat| seat.name);
        match self.what {
            What::Line(None, line) => format!("everybody's line {line} for {lasts:.0} s"),
            What::Line(Some(seat), line) => {
                format!("{}'s line {line} for {lasts:.0} s", name(seat))
            }
            What::Process(seat, Process::Stop) => {
                format!("{} is stopped (SIGSTOP) for {lasts:.0} s", name(seat))
            }
            What::Process(seat, Process::Kill(back)) => {
                format!("{} is killed and {}", name(seat), back.describe(lasts))
            }
            What::Process(seat, Process::Leave(back)) => {
                format!("{} leaves politely and {}", name(seat), back.describe(lasts))
            }
            What::Server(Server::Restart) => {
                format!("the server is stopped, and started after {lasts:.0} s")
            }
            What::Server(Server::Crash) => {
                format!("the server is killed, and started after {lasts:.0} s")
            }
            What::Server(Server::Pause) => format!("the server hangs for {lasts:.0} s"),
        }
    }
}

impl Back {
    fn describe(self, lasts: f64) -> String {
        match self {
            Self::ThisRound => format!("starts again after {lasts:.0} s"),
            Self::NextRound => "stays away for this round".to_owned(),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("is mended"),
            Self::Cut => f.write_str("is cut"),
            Self::Frozen => f.write_str("is frozen"),
            Self::LosesAnswers => f.write_str("loses each second answer"),
            Self::Fails(status) => write!(f, "answers {status}"),
            Self::Limits(wait) => write!(f, "answers 429 (wait {wait} ms)"),
            Self::Slow(late) => write!(f, "is slow by {late} ms"),
            Self::Lacks(part) => write!(f, "answers 502 to {part}"),
        }
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{AWAY_FROM_PAUSE, Back, Process, Round, Server, Stage, What};

    /// Many rounds of many seeds.
    fn rounds() -> impl Iterator<Item = (Stage, Round)> {
        (0..50).flat_map(|seed| {
            (1..20).map(move |number| {
                let stage = Stage::of(seed);
                let round = Round::of(seed, number, &stage);
                (stage, round)
            })
        })
    }

    #[test]
    fn a_seed_gives_one_schedule() {
        let stage = Stage::of(7);
        assert_eq!(stage, Stage::of(7));
        assert_eq!(Round::of(7, 3, &stage), Round::of(7, 3, &stage));
        // A fixed one: a person who reports a seed may have another compiler or another machine.
        let described = Round::of(7, 1, &stage).describe(&stage);
        let mut lines = described.lines();
        assert_eq!(lines.next(), Some("round 1, 38 s of faults:"), "{described}");
        assert_eq!(lines.next(), Some("   11.8 s  the server hangs for 10 s"), "{described}");
    }

    #[test]
    fn seeds_and_rounds_differ() {
        let described = rounds().map(|(stage, round)| {
            let lines: Vec<_> = round.faults.iter().map(|fault| fault.describe(&stage)).collect();
            format!("{:?} {lines:?}", round.lasts)
        });
        assert_eq!(described.collect::<HashSet<_>>().len(), 50 * 19);
    }

    #[test]
    fn every_fault_comes_and_ends_in_its_round() {
        let mut kinds = HashSet::new();
        for (stage, round) in rounds() {
            assert!((20..=40).contains(&round.lasts.as_secs()));
            assert!(round.faults.is_sorted_by_key(|fault| fault.at));
            for fault in &round.faults {
                assert!(fault.at <= fault.until && fault.until <= round.lasts, "{fault:?}");
                kinds.insert(match fault.what {
                    What::Line(_, line) => line.to_string(),
                    What::Process(_, process) => format!("{process:?}"),
                    What::Server(server) => format!("{server:?}"),
                });
            }
            assert!(stage.seats.iter().all(|seat| (6..=15).contains(&seat.delay.as_secs())));
        }
        // Lines: cut, frozen, lossy, 5xx in four kinds, 429 in three, slow in three, without a part in
        // seven. Processes: twice two, and one.
        assert_eq!(kinds.len(), 20 + 5 + 3, "{kinds:?}");
    }

    #[test]
    fn a_line_does_one_thing_at_a_time() {
        for (_, round) in rounds() {
            let lines: Vec<_> = round
                .faults
                .iter()
                .filter_map(|fault| match fault.what {
                    What::Line(whose, _) => Some((whose, fault)),
                    _ => None,
                })
                .collect();
            for (index, (whose, fault)) in lines.iter().enumerate() {
                for (other, later) in lines.iter().skip(index + 1) {
                    let is_same = whose.is_none() || other.is_none() || whose == other;
                    assert!(!is_same || later.at >= fault.until, "{round:?}");
                }
            }
        }
    }

    #[test]
    fn each_room_keeps_an_observer() {
        for (stage, round) in rounds() {
            for room in 0..stage.rooms.len() {
                let away = round.faults.iter().filter(|fault| match fault.what {
                    What::Process(
                        seat,
                        Process::Kill(Back::NextRound) | Process::Leave(Back::NextRound),
                    ) => stage.seats[seat].room == room,
                    _ => false,
                });
                assert!(away.count() <= 1, "{round:?}");
            }
        }
    }

    #[test]
    fn nobody_ends_while_the_server_hangs() {
        for (_, round) in rounds() {
            let pauses = |what| what == What::Server(Server::Pause);
            let Some(pause) = round.faults.iter().find(|fault| pauses(fault.what)) else {
                continue;
            };
            let ends = round.faults.iter().filter(|fault| {
                matches!(fault.what, What::Process(_, Process::Kill(_) | Process::Leave(_)))
            });
            for end in ends {
                let apart =
                    end.at >= pause.until + AWAY_FROM_PAUSE || end.at + AWAY_FROM_PAUSE <= pause.at;
                assert!(apart, "{round:?}");
            }
        }
    }
}
