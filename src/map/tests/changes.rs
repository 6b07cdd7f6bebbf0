//! The changes that a poll gives.

use super::*;

#[test]
fn one_key_is_one_change_however_much_came() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.changes();
    room.section(&event("$b").sent(1));
    room.section(&event("$c").sent(2));
    room.redact("$c");
    room.section(&event("$gone").sent(3).removal());
    room.redact("$gone");
    assert_eq!(room.changes(), ["$a>$b"]);
    assert_eq!(room.changes(), [""; 0]);
}

#[test]
fn an_unpolled_visit_is_no_change() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.redact("$a");
    assert_eq!(room.changes(), [""; 0]);
    room.section(&event("$b").key("b").ttl(1_000));
    room.pass(secs(1));
    assert_eq!(room.changes(), [""; 0]);
}

#[test]
fn an_unpolled_return_is_one_change() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(1_000));
    room.section(&event("$z").key("z").ttl(1_000));
    assert_eq!(room.changes(), ["+$a", "+$z"]);
    room.pass(secs(1));
    room.section(&event("$b"));
    room.section(&event("$other").key("other"));
    let mut changes = room.changes();
    changes.sort();
    assert_eq!(changes, ["$a>$b", "+$other", "-$z expired"]);
    assert_eq!(room.live(), ["$b", "$other"]);
}

#[test]
fn cell_numbers_are_dense_and_stable() {
    // A number stays while its key has a value.
    fn numbers(room: &mut Room) -> Vec<u32> {
        room.map.poll_changes(room.now).iter().map(|delta| delta.cell).collect()
    }
    let mut room = Room::new();
    for n in 0..100 {
        room.section(&event(&format!("$a{n}")).key(&n.to_string()));
    }
    let all: Vec<_> = (0..100).collect();
    assert_eq!(numbers(&mut room), all);
    room.section(&event("$stays").key("50").sent(1).lasting(90_000));
    assert_eq!(numbers(&mut room), [50], "an update");
    assert_eq!(room.map.cells.len(), 100);
    room.pass(secs(60));
    let mut ended = numbers(&mut room);
    ended.sort_unstable();
    let free: Vec<_> = (0..100).filter(|number| *number != 50).collect();
    assert_eq!(ended, free);
    for n in 0..100 {
        room.section(&event(&format!("$b{n}")).key(&format!("other {n}")));
    }
    let mut again = numbers(&mut room);
    again.sort_unstable();
    assert_eq!(again, [free, vec![100]].concat());
}

/// What was sent, in the plainest bookkeeping.
struct Sent {
    id: String,
    key: u64,
    rank: u64,
    ends: u64,
    removal: bool,
    redacted: bool,
}

#[test]
fn many_changing_keys_match_the_live_entries() {
    for seed in 1..=4 {
        let mut state: u64 = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed);
            (state >> 33) % below
        };
        let mut room = Room::new();
        let (mut sent, mut shown) = (Vec::<Sent>::new(), BTreeSet::new());
        let mut now = 0;
        for round in 0..60 {
            // The room is full and empty in turn.
            let keys = [3, 60, 200][round / 5 % 3];
            for _ in 0..random(keys) {
                let id = format!("${}", sent.len());
                let (key, rank, ttl) = (random(keys), random(600), 1 + random(40));
                let removal = random(5) == 0;
                let new = event(&id).key(&key.to_string()).sent(rank).ttl(ttl * 1_000);
                room.section(&if removal { new.removal() } else { new });
                sent.push(Sent { id, key, rank, ends: now + ttl, removal, redacted: false });
            }
            let count = sent.len() as u64;
            for at in (0..random(5)).map(|_| random(count.max(1)) as usize) {
                let Some(redacted) = sent.get_mut(at) else { continue };
                redacted.redacted = true;
                room.redact(&redacted.id);
            }
            let pass = random(30);
            room.pass(secs(pass));
            now += pass;

            let mut values = BTreeMap::new();
            for sent in sent.iter().filter(|sent| sent.ends > now && !sent.redacted) {
                let highest = values.entry(sent.key).or_insert(sent);
                if (sent.rank, &sent.id) > (highest.rank, &highest.id) {
                    *highest = sent;
                }
            }
            let values = values.into_values().filter(|value| !value.removal);
            let values: BTreeSet<_> = values.map(|value| value.id.clone()).collect();
            assert_eq!(BTreeSet::from_iter(room.live()), values, "seed {seed}, round {round}");
            if random(3) == 0 {
                continue;
            }
            for delta in room.map.poll_changes(room.now) {
                if let Some(gone) = &delta.before {
                    assert!(shown.remove(gone.event_id_str()), "seed {seed}: {}", told(&delta));
                }
                if let Ok(new) = &delta.after {
                    assert!(shown.insert(new.event_id_str().to_owned()), "{}", told(&delta));
                }
            }
            assert_eq!(shown, values, "seed {seed}, round {round}");
        }
        room.pass(secs(40));
        room.changes();
        assert_eq!((room.live().len(), room.map.known()), (0, 0));
        room.pass(secs(3_600));
        room.changes();
        assert!(room.map.is_empty());
    }
}

#[test]
fn metadata_survives_escapes() {
    let text = event("$a")
        .text()
        .replace("$a", "\\u0024a")
        .replace(r#""msc4354_sticky_key":"k""#, r#""msc4354_sticky_\u006bey":"\u006b\n""#);
    let mut map = EphemeralMap::new(Limits::default());
    map.handle_event(start(), ReceivedVia::Section, raw(text)).unwrap();
    let entries = map.entries(start());
    assert_eq!((entries[0].event_id().as_str(), entries[0].sticky_key()), ("$a", Some("k\n")));
    assert_eq!(entries[0].key().unwrap().sticky_key, "k\n");
}

#[test]
fn debug_shows_no_event_text() {
    let mut room = Room::new();
    let secret = "syd_secret";
    let own = event("$a")
        .with("/unsigned/org.matrix.msc4140.delay_id", secret)
        .with("/content/body", "private words");
    room.section(&own);
    let entry = room.map.entries(room.now)[0].clone();
    let deltas = room.map.poll_changes(room.now);
    for shown in [debug(&room.map), debug(&entry), debug(&deltas)] {
        assert!(!shown.contains(secret) && !shown.contains("private"), "{shown}");
    }
    let malformed =
        room.map.handle_event(room.now, ReceivedVia::Section, own.with("/sender", 1).raw());
    let malformed = malformed.unwrap_err();
    assert!(!debug(&malformed).contains(secret) && !malformed.to_string().contains(secret));
}

#[test]
fn debug_shows_how_much_a_map_holds() {
    let mut room = Room::keeping(2);
    room.section(&event("$a"));
    room.section(&event("$e").encrypted("s"));
    room.section(&event("$b").key("b"));
    let shown = debug(&room.map);
    for part in ["known: 2", "pending: 1", "dropped: 1"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn the_last_content_counts() {
    let text = event("$a").text().replacen('{', r#"{"content":{"old":1},"#, 1);
    let mut map = EphemeralMap::new(Limits::default());
    map.handle_event(start(), ReceivedVia::Section, raw(text)).unwrap();
    let entries = map.entries(start());
    assert!(entries[0].content_raw().unwrap().get().contains("body"));
    let content: serde_json::Value = entries[0].content().unwrap();
    assert_eq!(content["body"], "$a");
}
