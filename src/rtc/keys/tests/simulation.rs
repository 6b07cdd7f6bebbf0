//! Models in which exactly those who are there ever get a key, whatever gets lost on the way.

use super::*;

/// Joins, leaves and broken sends at random. At every moment each send goes only to who is there
/// (checked in `pump`); who has left never has a key that is in use 15 s later, and never gets one that
/// was made afterwards; and when all is quiet, all who are there, and nobody else, have the key in use.
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

/// Several who join and leave, each with its own view of that, over a network that takes its time, in
/// whichever order. In the end all who are there hear each other, and nobody who has left hears anybody.
#[test]
fn in_the_end_exactly_the_members_hear_another() {
    for seed in 0..200 {
        simulate(seed);
    }
}

enum InFlight {
    /// What somebody is shown of who is there.
    View(Vec<Peer>),
    Key(Sender, KeyMessage),
}

fn simulate(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut now = start();
    let mut there: BTreeMap<String, (Peer, KeyExchange)> = BTreeMap::new();
    let mut gone: Vec<(Peer, KeyExchange)> = Vec::new();
    let mut in_flight: Vec<(Deadline, Participant, InFlight)> = Vec::new();
    let mut joins = 0;
    for step in 0..600 {
        if step < 120 && step % 3 == 0 {
            let name = ["a", "b", "c", "d", "e"][rng.usize(..5)];
            if let Some((peer, exchange)) = there.remove(name) {
                gone.push((peer, exchange));
            } else {
                joins += 1;
                let own = participant_as(name, &format!("m-{joins}"));
                let mut bytes = fastrand::Rng::with_seed(rng.u64(..));
                let dice: RandomBytes = Box::new(move |key| bytes.fill(key));
                let config = KeyConfig::default();
                let room_id = owned_room_id!("!room:hs");
                let exchange = KeyExchange::new(room_id, own.clone(), config, dice, joins);
                let peer = Peer::new(own, joins, Dialect::Msc4143);
                there.insert(name.to_owned(), (peer, exchange));
            }
            let view: Vec<_> = there.values().map(|(peer, _)| peer.clone()).collect();
            for (peer, _) in there.values() {
                // Views of one client come in their order; what is late is as good as one that is not.
                let at = now.deadline(Duration::from_millis(rng.u64(..900)));
                in_flight.push((at, peer.participant.clone(), InFlight::View(view.clone())));
            }
        }
        now = now.advanced(Duration::from_millis(1_000));
        in_flight.sort_by_key(|(at, ..)| *at);
        let (due, later): (Vec<_>, Vec<_>) =
            in_flight.drain(..).partition(|(at, ..)| at.is_over(now));
        in_flight = later;
        for (_, to, what) in due {
            // Also to who has left: it may have been on its way.
            let all = there.values_mut().chain(&mut gone);
            let Some((_, exchange)) = all.into_iter().find(|(peer, _)| peer.participant == to)
            else {
                continue;
            };
            match what {
                InFlight::View(view) => {
                    let own = view.iter().find(|peer| peer.participant == *exchange.own());
                    exchange.handle_peers(now, own.map(|own| own.since_ms), view.clone());
                }
                InFlight::Key(sender, message) => exchange.handle_message(now, sender, message),
            }
        }
        for (peer, exchange) in there.values_mut() {
            while let Some(Sending { id, index, key, to, .. }) = exchange.poll_send(now) {
                let mut failures = BTreeMap::new();
                for (to, _) in to {
                    if step < 400 && rng.u8(..4) == 0 {
                        failures.insert(to, KeySendFailure::Unknown);
                        continue;
                    }
                    let Participant { user_id, member_id, device_id } = peer.participant.clone();
                    let sender =
                        Sender::new(user_id, device_id, "", Verification::UnverifiedIdentity);
                    let message =
                        KeyMessage { index, key: key.clone(), ..message(&member_id, index, 0) };
                    let at = now.deadline(Duration::from_millis(rng.u64(..4_000)));
                    in_flight.push((at, to, InFlight::Key(sender, message)));
                }
                exchange.handle_sent(now, id, &failures);
            }
            while exchange.poll_change(now).is_some() {}
        }
    }
    for (peer, exchange) in there.values() {
        let (index, key) = exchange.outbound.in_use().unwrap();
        let hears = |other: &KeyExchange| {
            other.all().iter().any(|change| match change {
                KeyChange::Peer { participant, index: of, key: it } => {
                    *participant == peer.participant && *of == index && it.is_same(&key)
                }
                _ => false,
            })
        };
        let has = |other: &KeyExchange| {
            other
                .inbound
                .all()
                .any(|change| matches!(change, KeyChange::Peer { key: it, .. } if it.is_same(&key)))
        };
        for (other, listener) in there.values() {
            if other != peer {
                assert!(hears(listener), "seed {seed}: {other:?} does not hear {peer:?}");
            }
        }
        for (other, listener) in &gone {
            assert!(!has(listener), "seed {seed}: {other:?} still hears {peer:?}");
        }
    }
}
