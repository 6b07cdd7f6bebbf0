//! Many heartbeats of one user, on a server with Synapse's default limits, in simulated time.
//!
//! The limits count the user's requests, in all rooms and on all devices: a restart a second with a
//! burst of five, a message every five seconds with a burst of ten, arming included. A leave that is
//! over the limit when it falls due is dropped (synapse#18021).

use std::{collections::BTreeMap, time::Duration};

use super::{turns::Turns, *};
use crate::testing::{secs, start};

/// How finely time passes, in milliseconds.
const STEP: u64 = 50;

/// A limit as Synapse counts it.
struct Bucket {
    count: f64,
    at: u64,
    per_ms: f64,
    burst: f64,
}

impl Bucket {
    fn new(per_second: f64, burst: f64) -> Self {
        Self { count: 0.0, at: 0, per_ms: per_second / 1_000.0, burst }
    }

    fn take(&mut self, now: u64) -> Result<(), Duration> {
        let passed = (now - self.at) as f64;
        self.count = (self.count - passed * self.per_ms).max(0.0);
        self.at = now;
        if self.count + 1.0 > self.burst {
            let wait = (self.count - self.burst + 1.0) / self.per_ms;
            return Err(Duration::from_millis(wait.ceil() as u64));
        }
        self.count += 1.0;
        Ok(())
    }
}

struct Server {
    messages: Bucket,
    management: Bucket,
    /// By heartbeat and lease: when it fires.
    armed: BTreeMap<(usize, LeaseId), (u64, u64)>,
    /// Until when each member is seen.
    seen_until: Vec<u64>,
    dropped: usize,
    limited: usize,
}

impl Server {
    fn handle(&mut self, now: u64, who: usize, step: Step) -> Outcome {
        let bucket = match step {
            Step::Restart(_) | Step::Fire(_) | Step::Cancel(_) => &mut self.management,
            _ => &mut self.messages,
        };
        if let Err(wait) = bucket.take(now) {
            self.limited += 1;
            return Outcome::RateLimited { retry_after: Some(wait) };
        }
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
        match step {
            Step::Arm { lease, delay } => {
                self.armed.entry((who, lease)).or_insert((now + ms(delay), ms(delay)));
                Outcome::Done
            }
            Step::Restart(lease) => match self.armed.get_mut(&(who, lease)) {
                Some((fires_at, delay)) => {
                    *fires_at = now + *delay;
                    Outcome::Done
                }
                None => Outcome::Gone,
            },
            Step::Fire(lease) | Step::Cancel(lease) => match self.armed.remove(&(who, lease)) {
                Some(_) if matches!(step, Step::Cancel(_)) => Outcome::Done,
                Some(_) => {
                    self.seen_until[who] = 0;
                    Outcome::Done
                }
                None => Outcome::Gone,
            },
            Step::Join { sticky, .. } => {
                self.seen_until[who] = now + ms(sticky);
                Outcome::Done
            }
            Step::Leave { .. } => {
                self.seen_until[who] = 0;
                Outcome::Done
            }
        }
    }

    fn fire(&mut self, now: u64) {
        let due: Vec<_> =
            self.armed.iter().filter(|(_, (at, _))| *at <= now).map(|(key, _)| *key).collect();
        for key in due {
            self.armed.remove(&key);
            match self.messages.take(now) {
                Ok(()) => self.seen_until[key.0] = 0,
                Err(_) => self.dropped += 1,
            }
        }
    }

    fn seen(&self, now: u64) -> usize {
        self.seen_until.iter().filter(|until| **until > now).count()
    }
}

struct Crowd {
    server: Server,
    /// One for each client.
    turns: Vec<Turns>,
    heartbeats: Vec<HeartbeatMachine>,
    doing: Vec<Option<(Step, Outcome, u64)>>,
    now: u64,
    /// Who was seen and is not, though alive.
    lost: usize,
}

impl Crowd {
    fn new(count: usize, clients: usize, seed: u64) -> Self {
        Self {
            server: Server {
                messages: Bucket::new(0.2, 10.0),
                management: Bucket::new(1.0, 5.0),
                armed: BTreeMap::new(),
                seen_until: vec![0; count],
                dropped: 0,
                limited: 0,
            },
            turns: (0..clients).map(|_| Turns::default()).collect(),
            heartbeats: (0..count as u64)
                .map(|n| HeartbeatMachine::new(HeartbeatTiming::default(), seed << 8 | n))
                .collect(),
            doing: vec![None; count],
            now: 0,
            lost: 0,
        }
    }

    fn moment(&self) -> Moment {
        start().advanced(Duration::from_millis(self.now))
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + u64::try_from(time.as_millis()).unwrap();
        while self.now < end {
            self.now += STEP;
            let before = self.server.seen_until.clone();
            self.server.fire(self.now);
            for (who, until) in before.into_iter().enumerate().take(self.heartbeats.len()) {
                self.act(who);
                let was_seen = until > self.now - STEP;
                self.lost += usize::from(was_seen && self.server.seen_until[who] <= self.now);
            }
        }
    }

    fn act(&mut self, who: usize) {
        let moment = self.moment();
        let clients = self.turns.len();
        let turns = &mut self.turns[who % clients];
        let heartbeat = &mut self.heartbeats[who];
        if let Some((step, outcome, _)) = self.doing[who].take_if(|(_, _, at)| *at <= self.now) {
            if let Outcome::RateLimited { retry_after } = outcome {
                turns.handle_limit(moment, step, retry_after);
            }
            heartbeat.handle_outcome(moment, outcome);
        }
        heartbeat.handle_pace(turns.is_slow(moment));
        while let Some(Action { step, .. }) = heartbeat.poll_action(moment) {
            let ends_at = heartbeat.armed_until().unwrap_or(moment.deadline(secs(15)));
            if let Err(until) = turns.ask(moment, who as u64, step, ends_at) {
                heartbeat.handle_outcome(moment, Outcome::NotYet { until });
                continue;
            }
            let outcome = self.server.handle(self.now, who, step);
            self.doing[who] = Some((step, outcome, self.now + STEP));
        }
    }

    /// All processes die.
    fn crash(&mut self) {
        self.heartbeats.clear();
    }
}

/// They join within a minute, nobody drops out for a quarter of an hour, and nobody is left after a
/// crash of all.
#[test]
fn eight_heartbeats_of_a_user_live_on_default_limits() {
    for (clients, seed) in [(1, 1), (8, 1), (8, 2)] {
        let mut crowd = Crowd::new(8, clients, seed);
        crowd.pass(secs(60));
        assert_eq!(crowd.server.seen(crowd.now), 8, "{clients} clients");
        crowd.pass(secs(900));
        assert_eq!((crowd.lost, crowd.server.seen(crowd.now)), (0, 8), "{clients} clients");
        crowd.crash();
        crowd.pass(secs(16));
        assert_eq!(crowd.server.seen(crowd.now), 0, "{clients} clients");
        assert_eq!(crowd.server.dropped, 0);
    }
}

/// A crash while the limit is used up: the stickiness bounds the ghosts.
#[test]
fn a_ghost_of_a_dropped_leave_ends_with_the_stickiness() {
    let mut crowd = Crowd::new(8, 1, 1);
    crowd.pass(secs(35));
    assert!(crowd.server.seen(crowd.now) >= 6);
    crowd.crash();
    crowd.pass(secs(600));
    assert_eq!(crowd.server.seen(crowd.now), 0);
}

#[test]
fn four_heartbeats_of_a_user_meet_no_limit() {
    let mut crowd = Crowd::new(4, 4, 1);
    crowd.pass(secs(1_800));
    assert_eq!((crowd.lost, crowd.server.limited, crowd.server.seen(crowd.now)), (0, 0, 4));
}
