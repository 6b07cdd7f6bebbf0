//! Models in which exactly those who are there ever get a key, whatever gets lost on the way.

use super::*;

/// Joins, leaves and broken sends at random. At every moment a send goes to members alone, which `pump` checks. A
/// member who has left never has a key that is in use 31 s later, and never gets a key that was made afterwards.
/// Once all is quiet, all members, and nobody else, have the key in use.
#[test]
fn exactly_those_who_are_there_ever_get_keys() {
    for seed in 0..300 {
        model(seed);
    }
}

fn model(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut story = Story::with(&[]);
    story.is_slow = true;
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut left_at: BTreeMap<Participant, Moment> = BTreeMap::new();
    let mut in_use = 0;
    let mut seconds = 0;
    for step in 0..200 {
        let is_quiet = step >= 150;
        let name = names[rng.usize(..names.len())];
        let who = participant(name);
        match rng.u8(..6) {
            0 | 1 if !is_quiet && !story.peers.contains_key(&who) => {
                left_at.remove(&who);
                story.joins(name);
            }
            2 if !is_quiet && story.peers.contains_key(&who) => {
                left_at.insert(who, story.now);
                story.leaves(name);
            }
            3 if !is_quiet => {
                let failure =
                    if rng.bool() { KeySendFailure::NotSent } else { KeySendFailure::Unknown };
                story.broken.insert(who, failure);
            }
            _ => {
                story.broken.remove(&who);
            }
        }
        if is_quiet {
            story.broken.clear();
        }
        if is_quiet || rng.bool() {
            story.answer();
        }
        seconds += rng.u64(..4);
        story.at(seconds);
        for told in story.told.drain(..) {
            in_use = told.strip_prefix("use ").unwrap().parse().unwrap();
        }
        // Indices do not come round in so few steps.
        for (who, left_at) in &left_at {
            if story.now.since(*left_at) > secs(31) {
                let having = story.may_have.get(&in_use).is_some_and(|having| having.contains(who));
                assert!(!having, "seed {seed}: {who:?} can decrypt with {in_use}");
            }
        }
    }
    story.is_slow = false;
    story.answer();
    story.at(seconds + 100);
    let having = story.has.remove(&in_use).unwrap_or_default();
    let there: BTreeSet<_> = story.peers.keys().cloned().collect();
    assert!(having.is_superset(&there), "seed {seed}: {having:?} are not all of {there:?}");
    let may_have = story.may_have.remove(&in_use).unwrap_or_default();
    assert!(may_have.is_subset(&there), "seed {seed}: {may_have:?} are more than {there:?}");
}

/// Several members join and leave. Each has its own view of that, over a network that takes its time, in
/// whichever order. In the end all members hear each other, and nobody who has left hears anybody.
#[test]
fn in_the_end_exactly_the_members_hear_another() {
    for seed in 0..200 {
        let mut call = Call::new(seed);
        for step in 0..600 {
            if step < 120 && step % 3 == 0 {
                call.comes_or_goes();
            }
            call.now = call.now.advanced(secs(1));
            call.deliver();
            // The last sends all arrive.
            call.send(step < 400);
        }
        call.check();
    }
}

enum InFlight {
    /// Who is in the session, as a member sees it.
    View(Vec<Peer>),
    Key(Sender, KeyMessage),
}

struct Call {
    seed: u64,
    rng: fastrand::Rng,
    now: Moment,
    there: BTreeMap<String, (Peer, KeyExchange)>,
    gone: Vec<(Peer, KeyExchange)>,
    in_flight: Vec<(Deadline, Participant, InFlight)>,
    joins: u64,
}

impl Call {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            now: start(),
            there: BTreeMap::new(),
            gone: Vec::new(),
            in_flight: Vec::new(),
            joins: 0,
        }
    }

    /// Somebody joins or leaves, and everybody else will see it.
    fn comes_or_goes(&mut self) {
        let name = ["a", "b", "c", "d", "e"][self.rng.usize(..5)];
        if let Some(member) = self.there.remove(name) {
            self.gone.push(member);
        } else {
            self.joins += 1;
            let own = participant_as(name, &format!("m-{}", self.joins));
            let mut bytes = fastrand::Rng::with_seed(self.rng.u64(..));
            let random_bytes: RandomBytes = Box::new(move |key| bytes.fill(key));
            let (config, room_id) = (KeyConfig::default(), owned_room_id!("!room:hs"));
            let exchange = KeyExchange::new(room_id, own.clone(), config, random_bytes, self.joins);
            let peer = Peer::new(own, self.joins, Dialect::Msc4143);
            self.there.insert(name.to_owned(), (peer, exchange));
        }
        let view: Vec<_> = self.there.values().map(|(peer, _)| peer.clone()).collect();
        for (peer, _) in self.there.values() {
            // The views of one client come in their order, and a late one is as good as any other.
            let at = self.now.deadline(Duration::from_millis(self.rng.u64(..900)));
            self.in_flight.push((at, peer.participant.clone(), InFlight::View(view.clone())));
        }
    }

    /// Delivers what is due, also to members who have left: it may have been on its way.
    fn deliver(&mut self) {
        let now = self.now;
        self.in_flight.sort_by_key(|(at, ..)| *at);
        let (due, later): (Vec<_>, Vec<_>) =
            self.in_flight.drain(..).partition(|(at, ..)| at.is_over(now));
        self.in_flight = later;
        for (_, to, arrives) in due {
            let all = self.there.values_mut().chain(&mut self.gone);
            let Some((_, exchange)) = all.into_iter().find(|(peer, _)| peer.participant == to)
            else {
                continue;
            };
            match arrives {
                InFlight::View(view) => {
                    let own = view.iter().find(|peer| peer.participant == *exchange.own());
                    exchange.handle_peers(now, own.map(|own| own.since_ms), view.clone());
                }
                InFlight::Key(sender, message) => exchange.handle_message(now, sender, message),
            }
        }
    }

    /// Sends the keys that are due. Some sends may be lost.
    fn send(&mut self, may_lose: bool) {
        for (peer, exchange) in self.there.values_mut() {
            while let Some(Sending { id, index, key, to, .. }) = exchange.poll_send(self.now) {
                let mut failures = BTreeMap::new();
                for (to, _) in to {
                    if may_lose && self.rng.u8(..4) == 0 {
                        failures.insert(to, KeySendFailure::Unknown);
                        continue;
                    }
                    let Participant { user_id, member_id, device_id } = peer.participant.clone();
                    let sender =
                        Sender::new(user_id, device_id, "", Verification::UnverifiedIdentity);
                    let message =
                        KeyMessage { index, key: key.clone(), ..message(&member_id, index, 0) };
                    let at = self.now.deadline(Duration::from_millis(self.rng.u64(..4_000)));
                    self.in_flight.push((at, to, InFlight::Key(sender, message)));
                }
                exchange.handle_sent(self.now, id, &failures);
            }
            while exchange.poll_change(self.now).is_some() {}
        }
    }

    fn check(&self) {
        for (peer, exchange) in self.there.values() {
            let (index, key) = exchange.outbound.in_use().unwrap();
            let is_in_use = |change: KeyChange| match change {
                KeyChange::Peer { participant, index: of, key: it } => {
                    participant == peer.participant && of == index && it.is_same(&key)
                }
                _ => false,
            };
            for (other, listener) in self.there.values().filter(|(other, _)| other != peer) {
                let hears = listener.all().into_iter().any(is_in_use);
                assert!(hears, "seed {}: {other:?} does not hear {peer:?}", self.seed);
            }
            for (other, listener) in &self.gone {
                let has_it =
                    |change| matches!(change, KeyChange::Peer { key: it, .. } if it.is_same(&key));
                let hears = listener.inbound.all().any(has_it);
                assert!(!hears, "seed {}: {other:?} still hears {peer:?}", self.seed);
            }
        }
    }
}
