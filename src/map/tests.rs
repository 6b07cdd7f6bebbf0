#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use ruma::{EventId, UserId};
use serde_json::json;

use super::*;
use crate::{
    event::{EncryptionDetails, Verification},
    testing::{ALICE, BOB, EventJson, debug, event, raw, secs, start},
};

/// A map, and the moment at which the test is.
struct Room {
    map: EphemeralMap,
    now: Moment,
}

impl Room {
    fn new() -> Self {
        Self::keeping(Limits::default().per_sender)
    }

    fn keeping(per_sender: usize) -> Self {
        Self { map: EphemeralMap::new(Limits { per_sender }), now: start() }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.advanced(time);
    }

    fn section(&mut self, event: &EventJson) -> Admission {
        self.map.handle_event(self.now, ReceivedVia::Section, event.raw()).unwrap()
    }

    fn timeline(&mut self, event: &EventJson) -> Admission {
        self.map.handle_event(self.now, ReceivedVia::Timeline, event.raw()).unwrap()
    }

    /// `outer` as the server sent it, and what decryption made of it.
    fn decrypted(&mut self, outer: &EventJson, clear: &EventJson) -> Admission {
        self.decrypted_with(outer, clear, Encryption::Plaintext)
    }

    fn decrypted_with(
        &mut self,
        outer: &EventJson,
        clear: &EventJson,
        encryption: Encryption,
    ) -> Admission {
        let clear = clear.clone().without("/msc4354_sticky").raw();
        self.map
            .handle_decrypted(self.now, ReceivedVia::Section, &outer.raw(), clear, encryption)
            .unwrap()
    }

    fn redact(&mut self, event_id: &str) {
        self.map.handle_redaction(self.now, <&EventId>::try_from(event_id).unwrap());
    }

    fn ignore(&mut self, senders: &[&str]) {
        let ignored: HashSet<_> =
            senders.iter().map(|sender| UserId::parse(sender).unwrap()).collect();
        self.map.handle_ignored(Arc::new(ignored));
    }

    /// The ids of the live entries, in their order.
    fn live(&mut self) -> Vec<String> {
        self.map.entries(self.now).iter().map(|event| event.event_id_str().to_owned()).collect()
    }

    /// What changed: `+$new`, `$old>$new`, `-$old reason`.
    fn changes(&mut self) -> Vec<String> {
        self.map.poll_changes(self.now).iter().map(told).collect()
    }
}

fn told(delta: &Delta) -> String {
    match (&delta.before, &delta.after) {
        (None, Ok(after)) => format!("+{}", after.event_id()),
        (Some(before), Ok(after)) => format!("{}>{}", before.event_id(), after.event_id()),
        (Some(before), Err(reason)) => format!("-{} {}", before.event_id(), reason.as_str()),
        (None, Err(_)) => "nothing".to_owned(),
    }
}

/// Every order of `items`.
fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for at in 0..items.len() {
        let mut rest = items.to_vec();
        let first = rest.remove(at);
        for mut order in orders(&rest) {
            order.insert(0, first.clone());
            all.push(order);
        }
    }
    all
}

// Law 1: the value of a key.

#[test]
fn the_highest_intended_end_is_the_value_whatever_the_order() {
    let events = [
        event("$a").sent(0).lasting(60_000),
        event("$b").sent(30).lasting(60_000),
        event("$c").sent(50).lasting(20_000),
    ];
    for order in orders(&events) {
        let mut room = Room::new();
        for event in &order {
            room.section(event);
            room.section(event);
        }
        assert_eq!(room.live(), ["$b"]);
    }
}

#[test]
fn equal_intended_ends_are_decided_by_event_id() {
    let events = [event("$a"), event("$c"), event("$b").sent(10).lasting(50_000)];
    for order in orders(&events) {
        let mut room = Room::new();
        for event in &order {
            room.section(event);
        }
        assert_eq!(room.live(), ["$c"]);
    }
}

#[test]
fn rank_counts_the_duration_unclamped() {
    let mut room = Room::new();
    room.section(&event("$two_hours").lasting(7_200_000));
    room.section(&event("$later").sent(1_800).lasting(3_600_000));
    assert_eq!(room.live(), ["$two_hours"]);
}

#[test]
fn rank_saturates_and_then_the_event_id_decides() {
    let mut room = Room::new();
    room.section(&event("$b").lasting(u64::MAX));
    room.section(&event("$a").sent(100).lasting(u64::MAX - 1));
    assert_eq!(room.live(), ["$b"]);
}

#[test]
fn keys_differ_by_sender_type_and_sticky_key() {
    let mut room = Room::new();
    room.section(&event("$1"));
    room.section(&event("$2").by(BOB));
    room.section(&event("$3").of_type("com.example.other"));
    room.section(&event("$4").key(""));
    room.section(&event("$5").key("K"));
    assert_eq!(room.live(), ["$3", "$4", "$5", "$1", "$2"]);
}

#[test]
fn the_unstable_key_counts_where_both_are_there_and_differ() {
    let mut room = Room::new();
    room.section(&event("$a").with("/content/sticky_key", "other"));
    let key = StickyKey::new(UserId::parse(ALICE).unwrap(), "com.example.t", "k");
    assert!(room.map.get(room.now, &key).is_some());
}

#[test]
fn an_event_that_is_not_sticky_is_not_kept() {
    let mut room = Room::new();
    assert_eq!(room.section(&event("$a").without("/msc4354_sticky")), Admission::NotSticky);
    let negative = event("$b").with("/msc4354_sticky/duration_ms", -1);
    assert_eq!(room.section(&negative), Admission::NotSticky);
    assert!(room.map.is_empty());
}

#[test]
fn section_and_timeline_make_no_difference() {
    let mut room = Room::new();
    assert_eq!(room.timeline(&event("$a")), Admission::Kept);
    assert_eq!(room.section(&event("$a")), Admission::Repeated);
    assert_eq!(room.live(), ["$a"]);
}

#[test]
fn a_superseded_event_is_no_change() {
    let mut room = Room::new();
    room.section(&event("$b").sent(10));
    assert_eq!(room.changes(), ["+$b"]);
    room.section(&event("$a"));
    assert_eq!(room.changes(), [""; 0]);
}

// Law 2: expiry.

#[test]
fn an_event_ends_by_the_servers_remaining_time_from_receipt() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(10_000));
    room.pass(Duration::from_millis(9_999));
    assert_eq!(room.live(), ["$a"]);
    room.pass(Duration::from_millis(1));
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.changes(), [""; 0], "it was never told");
}

#[test]
fn an_expiry_is_told_with_its_reason() {
    let mut room = Room::new();
    room.section(&event("$a"));
    assert_eq!(room.changes(), ["+$a"]);
    room.pass(secs(3_600));
    assert_eq!(room.changes(), ["-$a expired"]);
}

#[test]
fn a_remaining_time_over_an_hour_is_an_hour() {
    for ttl in [json!(3_600_001), json!(u64::MAX)] {
        let mut room = Room::new();
        room.section(&event("$a").ttl(ttl));
        room.pass(Duration::from_millis(3_599_999));
        assert_eq!(room.live(), ["$a"]);
        room.pass(Duration::from_millis(1));
        assert_eq!(room.live(), [""; 0]);
    }
}

#[test]
fn a_remaining_time_that_is_no_natural_number_is_as_none() {
    for ttl in
        [json!(-1), json!(1.5), json!("60000"), json!(null), json!(true), json!({}), json!([1])]
    {
        let odd = event("$a").sent(0).lasting(60_000).ttl(ttl.clone());
        let mut room = Room::new();
        room.pass(secs(20));
        room.section(&odd);
        room.pass(secs(39));
        assert_eq!(room.live(), ["$a"], "{ttl}");
        room.pass(secs(1));
        assert_eq!(room.live(), [""; 0], "{ttl}");

        let mut room = Room::new();
        assert_eq!(room.timeline(&odd), Admission::NotSticky, "{ttl}");
    }
}

#[test]
fn without_a_remaining_time_a_section_counts_from_origin_or_receipt_whichever_is_earlier() {
    let mut room = Room::new();
    room.section(&event("$future").key("f").sent(1_000).without_ttl());
    room.section(&event("$now").key("n").without_ttl());
    room.pass(secs(59));
    assert_eq!(room.live(), ["$future", "$now"]);
    room.pass(secs(1));
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn without_a_remaining_time_a_timeline_event_is_over() {
    let mut room = Room::new();
    assert_eq!(room.timeline(&event("$a").without_ttl()), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn nothing_remaining_is_over() {
    let mut room = Room::new();
    assert_eq!(room.section(&event("$a").ttl(0)), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn the_earliest_end_of_any_delivery_counts() {
    for (first, second) in [(30_000, 50_000), (50_000, 30_000)] {
        let mut room = Room::new();
        room.section(&event("$a").ttl(first));
        room.section(&event("$a").ttl(second));
        room.pass(Duration::from_millis(29_999));
        assert_eq!(room.live(), ["$a"]);
        room.pass(Duration::from_millis(1));
        assert_eq!(room.live(), [""; 0]);
    }
}

#[test]
fn a_repeat_with_a_jittered_end_is_no_change() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.changes();
    for ttl in [59_990, 60_010, 59_980] {
        assert_eq!(room.section(&event("$a").ttl(ttl)), Admission::Repeated);
    }
    assert_eq!(room.changes(), [""; 0]);
    assert_eq!(room.map.next_deadline().unwrap().left(room.now).as_millis(), 59_980);
}

#[test]
fn an_ended_event_that_a_cache_delivers_again_with_more_time_stays_ended() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(10_000));
    room.pass(secs(11));
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.section(&event("$a").ttl(50_000)), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn an_event_that_was_over_at_receipt_does_not_come_back_either() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(0));
    assert_eq!(room.section(&event("$a").ttl(50_000)), Admission::NotSticky);
}

#[test]
fn when_the_value_ends_first_the_other_becomes_the_value() {
    let mut room = Room::new();
    // Its clock is in the future: it outranks, and the server ends it first all the same.
    room.section(&event("$ahead").sent(1_000).lasting(10_000));
    room.section(&event("$b").lasting(60_000));
    assert_eq!(room.changes(), ["+$ahead"]);
    room.pass(secs(10));
    assert_eq!(room.changes(), ["$ahead>$b"]);
    room.pass(secs(50));
    assert_eq!(room.changes(), ["-$b expired"]);
}

#[test]
fn a_wall_clock_that_jumps_moves_no_end() {
    let mut room = Room::new();
    room.section(&event("$a"));
    let set_back = Moment::new(secs(1_059), secs(0));
    assert_eq!(room.map.entries(set_back).len(), 1);
    let set_forward = Moment::new(secs(1_059), secs(u32::MAX.into()));
    assert_eq!(room.map.entries(set_forward).len(), 1);
}

// Law 3: removals.

#[test]
fn a_removal_makes_the_key_absent_in_either_spelling() {
    for content in [
        json!({ "sticky_key": "k" }),
        json!({ "msc4354_sticky_key": "k" }),
        json!({ "sticky_key": "k", "msc4354_sticky_key": "k" }),
        json!({ "sticky_key": "other", "msc4354_sticky_key": "k" }),
    ] {
        let mut room = Room::new();
        room.section(&event("$a"));
        assert_eq!(room.changes(), ["+$a"]);
        room.section(&event("$gone").sent(1).with("/content", content));
        assert_eq!(room.changes(), ["-$a removed"]);
        assert_eq!(room.live(), [""; 0]);
    }
}

#[test]
fn a_removal_that_is_outranked_removes_nothing() {
    let mut room = Room::new();
    room.section(&event("$a").sent(10));
    room.section(&event("$gone").removal());
    assert_eq!(room.live(), ["$a"]);
}

#[test]
fn late_superseded_event_does_not_resurrect_a_removed_key() {
    let mut room = Room::new();
    room.section(&event("$gone").sent(10).removal());
    room.section(&event("$a"));
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.changes(), [""; 0]);
}

#[test]
fn when_a_removal_ends_first_what_it_hid_is_back() {
    let mut room = Room::new();
    room.section(&event("$a").lasting(60_000));
    room.section(&event("$gone").sent(100).lasting(10_000).removal());
    assert_eq!(room.changes(), [""; 0]);
    room.pass(secs(10));
    assert_eq!(room.changes(), ["+$a"]);
}

#[test]
fn a_redacted_removal_brings_back_what_it_hid() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$gone").sent(1).removal());
    assert_eq!(room.changes(), [""; 0]);
    room.redact("$gone");
    assert_eq!(room.changes(), ["+$a"]);
}

// Law 4: redactions.

#[test]
fn a_redaction_lets_what_is_left_of_the_key_decide() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$b").sent(1));
    assert_eq!(room.changes(), ["+$b"]);
    room.redact("$b");
    assert_eq!(room.changes(), ["$b>$a"]);
    room.redact("$a");
    assert_eq!(room.changes(), ["-$a redacted"]);
}

#[test]
fn a_redaction_that_comes_first_counts() {
    let mut room = Room::new();
    room.redact("$a");
    assert_eq!(room.section(&event("$a")), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_late_copy_of_a_redacted_event_does_not_count() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.redact("$a");
    room.changes();
    assert_eq!(room.section(&event("$a")), Admission::Repeated);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_late_copy_of_a_redacted_event_does_not_count_after_its_end_either() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(1_000));
    room.redact("$a");
    room.pass(secs(2));
    room.changes();
    assert_eq!(room.section(&event("$a")), Admission::NotSticky);
}

#[test]
fn a_redaction_of_a_superseded_event_is_no_change() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$b").sent(1));
    room.changes();
    room.redact("$a");
    assert_eq!(room.changes(), [""; 0]);
    room.redact("$b");
    assert_eq!(room.changes(), ["-$b redacted"]);
}

#[test]
fn what_comes_below_a_redacted_event_is_told() {
    let mut room = Room::new();
    room.section(&event("$high").sent(10));
    room.redact("$high");
    room.changes();
    room.section(&event("$a"));
    assert_eq!(room.changes(), ["+$a"]);
}

#[test]
fn what_ends_below_a_redacted_event_is_told() {
    let mut room = Room::new();
    room.section(&event("$high").sent(10).lasting(90_000));
    room.redact("$high");
    room.section(&event("$a").sent(5).lasting(40_000));
    room.section(&event("$b").lasting(44_000).ttl(50_000));
    assert_eq!(room.changes(), ["+$a"]);
    room.pass(secs(40));
    assert_eq!(room.changes(), ["$a>$b"]);
    room.pass(secs(10));
    assert_eq!(room.changes(), ["-$b expired"]);
}

#[test]
fn a_redaction_event_redacts_from_the_top_level_and_from_the_content() {
    let redaction = event("$r").by(BOB).of_type("m.room.redaction").without("/msc4354_sticky");
    for redaction in
        [redaction.clone().with("/redacts", "$a"), redaction.with("/content/redacts", "$a")]
    {
        let mut room = Room::new();
        room.section(&event("$a"));
        assert_eq!(room.timeline(&redaction), Admission::NotSticky);
        assert_eq!(room.live(), [""; 0]);
    }
}

#[test]
fn a_redaction_event_that_is_itself_sticky_redacts_and_is_kept() {
    let mut room = Room::new();
    room.section(&event("$a"));
    let redaction = event("$r").of_type("m.room.redaction").unkeyed().with("/redacts", "$a");
    assert_eq!(room.section(&redaction), Admission::Kept);
    assert_eq!(room.live(), ["$r"]);
}

#[test]
fn another_type_with_a_redacts_field_redacts_nothing() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$b").key("b").with("/redacts", "$a").with("/content/redacts", "$a"));
    assert_eq!(room.live(), ["$b", "$a"]);
}

#[test]
fn redacted_because_redacts_the_known_event() {
    let mut room = Room::new();
    room.section(&event("$a"));
    assert_eq!(room.changes(), ["+$a"]);
    let redacted = event("$a")
        .without("/msc4354_sticky")
        .with("/content", json!({}))
        .with("/unsigned/redacted_because", json!({ "event_id": "$r" }));
    assert_eq!(room.section(&redacted), Admission::NotSticky);
    assert_eq!(room.changes(), ["-$a redacted"]);
}

#[test]
fn a_redaction_is_forgotten_after_an_hour() {
    let mut room = Room::new();
    room.redact("$a");
    room.pass(Duration::from_millis(3_599_999));
    assert_eq!(room.section(&event("$a")), Admission::NotSticky);
    room.pass(Duration::from_millis(1));
    assert_eq!(room.section(&event("$a")), Admission::Kept);
}

#[test]
fn the_newest_thousand_redactions_of_unknown_events_are_kept() {
    let mut room = Room::new();
    for n in 0..=MAX_REDACTIONS {
        room.redact(&format!("$r{n}"));
    }
    assert_eq!(room.section(&event("$r0").key("0")), Admission::Kept, "the oldest fell out");
    assert_eq!(room.section(&event("$r1").key("1")), Admission::NotSticky);
    assert_eq!(room.section(&event(&format!("$r{MAX_REDACTIONS}")).key("2")), Admission::NotSticky);
}

#[test]
fn a_map_that_only_remembers_redactions_forgets_all_of_itself_after_an_hour() {
    let mut room = Room::new();
    room.redact("$a");
    assert!(!room.map.is_empty());
    let deadline = room.map.next_deadline().unwrap();
    assert_eq!(deadline.left(room.now), secs(3_600));
    room.pass(secs(3_600));
    room.changes();
    assert!(room.map.is_empty());
    assert_eq!(room.map.next_deadline(), None);
}

#[test]
fn after_a_poll_no_deadline_is_over_even_where_moments_came_out_of_order() {
    // A response that was received first can be handed over second.
    let mut room = Room::new();
    let earlier = room.now;
    room.pass(secs(10));
    room.redact("$a");
    room.map.handle_redaction(earlier, <&EventId>::try_from("$b").unwrap());
    room.pass(secs(3_595));
    room.changes();
    assert!(!room.map.next_deadline().unwrap().is_over(room.now));
}

// Law 5: events without a key.

#[test]
fn an_unkeyed_event_is_an_entry_of_its_own() {
    let mut room = Room::new();
    room.section(&event("$b").unkeyed());
    room.section(&event("$a").unkeyed());
    room.section(&event("$keyed").key("zzz"));
    assert_eq!(room.live(), ["$keyed", "$a", "$b"], "keyed before unkeyed");
    room.redact("$a");
    assert_eq!(room.live(), ["$keyed", "$b"]);
    room.pass(secs(60));
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_key_that_is_no_string_is_none() {
    for key in [json!(5), json!(null), json!({ "a": 1 }), json!(["k"]), json!(true)] {
        let mut room = Room::new();
        room.section(&event("$a").with("/content", json!({ "msc4354_sticky_key": key })));
        let entries = room.map.entries(room.now);
        assert_eq!(entries.len(), 1, "unkeyed, so not a removal: {key}");
        assert_eq!(entries[0].sticky_key(), None);
    }
}

#[test]
fn an_unkeyed_event_does_not_meet_a_key_that_is_spelled_as_its_id() {
    let mut room = Room::new();
    room.section(&event("$a").unkeyed());
    room.section(&event("$b").key("$a"));
    room.section(&event("$c").key("$a").sent(1).removal());
    assert_eq!(room.live(), ["$a"]);
}

// Law 6: bounds.

#[test]
fn a_full_sender_keeps_what_was_there_first_and_others_are_not_affected() {
    let mut room = Room::keeping(3);
    for n in 0..3 {
        assert_eq!(room.section(&event(&format!("$a{n}")).key(&n.to_string())), Admission::Kept);
    }
    assert_eq!(room.section(&event("$late").key("9").sent(9)), Admission::Full { first: true });
    assert_eq!(room.section(&event("$later").unkeyed()), Admission::Full { first: false });
    assert_eq!(room.section(&event("$bob").by(BOB)), Admission::Kept);
    assert_eq!(room.live(), ["$a0", "$a1", "$a2", "$bob"]);
    assert_eq!(room.map.dropped(), 2);
}

#[test]
fn a_full_sender_can_still_refresh_and_remove() {
    let mut room = Room::keeping(1);
    room.section(&event("$a"));
    assert_eq!(room.section(&event("$b").sent(1)), Admission::Kept);
    assert_eq!(room.live(), ["$b"]);
    assert_eq!(room.section(&event("$gone").sent(2).removal()), Admission::Kept);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn removals_unkeyed_and_waiting_events_count_into_the_quota() {
    let mut room = Room::keeping(3);
    room.section(&event("$gone").key("1").removal());
    room.section(&event("$unkeyed").unkeyed());
    room.section(&event("$waiting").encrypted("s"));
    assert_eq!(room.section(&event("$a").key("2")), Admission::Full { first: true });
    assert_eq!(room.section(&event("$e").encrypted("s")), Admission::Full { first: false });
}

#[test]
fn what_ends_makes_room_again() {
    let mut room = Room::keeping(1);
    room.section(&event("$a").key("1").ttl(1_000));
    room.pass(secs(1));
    // No timer ran: what is over does not count all the same.
    assert_eq!(room.section(&event("$b").key("2")), Admission::Kept);
    assert_eq!(room.live(), ["$b"]);
}

#[test]
fn a_full_sender_is_warned_of_once_until_nothing_of_them_is_left() {
    let mut room = Room::keeping(2);
    room.section(&event("$a").key("1").ttl(1_000));
    room.section(&event("$b").key("2"));
    assert_eq!(room.section(&event("$c").key("3")), Admission::Full { first: true });
    room.pass(secs(1));
    assert_eq!(room.section(&event("$c").key("3").ttl(3_600_000)), Admission::Kept);
    assert_eq!(room.section(&event("$d").key("4")), Admission::Full { first: false });
    room.pass(secs(3_600));
    room.section(&event("$e").key("1"));
    room.section(&event("$f").key("2"));
    assert_eq!(room.section(&event("$g").key("3")), Admission::Full { first: true });
}

#[test]
fn the_value_and_the_32_highest_others_are_kept() {
    let mut room = Room::new();
    // The lowest first: the 33 above it push it out.
    for n in 0..=MAX_OTHERS_PER_KEY as u64 + 1 {
        assert_eq!(room.section(&event(&format!("$e{n:02}")).sent(n)), Admission::Kept);
    }
    assert_eq!(room.map.known(), MAX_OTHERS_PER_KEY + 1);
    assert_eq!(room.section(&event("$e00").sent(0)), Admission::Outranked);
    for n in (2..=MAX_OTHERS_PER_KEY + 1).rev() {
        assert_eq!(room.live(), [format!("$e{n:02}")]);
        room.redact(&format!("$e{n:02}"));
    }
    assert_eq!(room.live(), ["$e01"], "the 32nd other is there");
    room.redact("$e01");
    assert_eq!(room.live(), [""; 0], "the 33rd is not");
}

#[test]
fn a_redacted_event_that_falls_out_of_its_key_stays_redacted() {
    let mut room = Room::new();
    room.section(&event("$old"));
    room.redact("$old");
    for n in 0..=MAX_OTHERS_PER_KEY as u64 {
        room.section(&event(&format!("$e{n:02}")).sent(n + 1));
    }
    assert_eq!(room.map.known(), MAX_OTHERS_PER_KEY + 1);
    assert_eq!(room.section(&event("$old")), Admission::NotSticky);
}

#[test]
fn redacted_events_take_no_place_from_others_that_count() {
    let mut room = Room::new();
    for n in 0..=MAX_OTHERS_PER_KEY as u64 {
        room.section(&event(&format!("$r{n:02}")).sent(100 + n));
        room.redact(&format!("$r{n:02}"));
    }
    assert_eq!(room.section(&event("$a")), Admission::Kept);
    assert_eq!(room.live(), ["$a"]);
}

#[test]
fn an_entry_that_falls_out_below_removals_was_removed_not_expired() {
    let mut room = Room::new();
    room.section(&event("$a"));
    assert_eq!(room.changes(), ["+$a"]);
    for n in 0..=MAX_OTHERS_PER_KEY as u64 {
        room.section(&event(&format!("$gone{n:02}")).sent(n + 1).removal());
    }
    assert_eq!(room.changes(), ["-$a removed"]);
}

#[test]
fn there_is_one_deadline_for_each_known_event() {
    let mut room = Room::new();
    for n in 0..1_000 {
        room.section(&event("$a").ttl(60_000 - n));
    }
    assert_eq!(room.map.ends.len(), 1);
    room.section(&event("$b").sent(1));
    room.section(&event("$c").unkeyed());
    assert_eq!(room.map.ends.len(), 3);
    room.pass(secs(60));
    room.changes();
    assert_eq!(room.map.ends.len(), 0);
    assert_eq!((room.map.cells.len(), room.map.senders.len(), room.map.types.len()), (0, 0, 0));
}

#[test]
fn a_map_that_is_read_and_never_polled_does_not_grow() {
    let mut room = Room::new();
    for n in 0..10_000_u64 {
        room.section(&event("$e").with("/event_id", format!("$e{n}")).sent(n).ttl(10));
        room.pass(Duration::from_millis(10));
        room.live();
    }
    assert!(room.map.touched.len() < 100, "{}", room.map.touched.len());
}

#[test]
fn what_changed_often_while_it_was_only_read_is_told_once() {
    let mut room = Room::new();
    for n in 0..1_000 {
        let key = (n % 10).to_string();
        room.section(&event(&format!("$e{n}")).key(&key).sent(n));
        room.live();
    }
    assert!(room.map.touched.len() < 100, "{}", room.map.touched.len());
    let mut changes = room.changes();
    changes.sort();
    let last: Vec<_> = (990..1_000).map(|n| format!("+$e{n}")).collect();
    assert_eq!(changes, last);
}

#[test]
fn many_places_that_are_gone_leave_nothing_to_look_at() {
    let mut room = Room::new();
    for n in 0..100 {
        room.section(&event(&format!("$e{n}")).key(&n.to_string()).ttl(10));
    }
    room.pass(Duration::from_millis(10));
    room.live();
    assert!(room.map.touched.is_empty(), "{}", room.map.touched.len());
}

#[test]
fn what_changes_nothing_gives_nothing_to_look_at() {
    let mut room = Room::new();
    room.section(&event("$value").sent(10).lasting(90_000));
    room.changes();
    // What comes and ends below the value ..
    room.section(&event("$below").ttl(1_000));
    assert!(room.map.touched.is_empty());
    room.pass(secs(1));
    room.live();
    assert!(room.map.touched.is_empty());
    // .. and a redacted event that ends above it.
    room.section(&event("$above").sent(60).ttl(1_000));
    room.redact("$above");
    room.changes();
    room.pass(secs(1));
    assert_eq!(room.live(), ["$value"]);
    assert!(room.map.touched.is_empty());
}

#[test]
fn a_key_whose_end_is_yet_to_be_told_counts_into_the_quota_as_any_other() {
    let mut room = Room::keeping(1);
    room.section(&event("$a").key("1").ttl(1_000));
    assert_eq!(room.changes(), ["+$a"]);
    room.pass(secs(1));
    assert_eq!(room.section(&event("$b").key("2")), Admission::Kept);
    assert_eq!(room.section(&event("$c").key("1")), Admission::Full { first: true });
    assert_eq!(room.changes(), ["-$a expired", "+$b"]);
}

#[test]
fn a_key_that_came_back_before_its_end_was_told_counts_into_the_quota_once() {
    let mut room = Room::keeping(2);
    room.section(&event("$a").key("1").ttl(1_000));
    room.changes();
    room.pass(secs(1));
    assert_eq!(room.section(&event("$b").key("2").ttl(9_000)), Admission::Kept);
    assert_eq!(room.section(&event("$c").key("1").ttl(1_000)), Admission::Kept);
    assert_eq!(room.section(&event("$d").key("3")), Admission::Full { first: true });
    // When it ends again, what else there is of its sender still counts.
    room.pass(secs(1));
    assert_eq!(room.section(&event("$e").key("4")), Admission::Kept);
    assert_eq!(room.section(&event("$f").key("5")), Admission::Full { first: false });
    assert_eq!(room.live(), ["$b", "$e"]);
}

#[test]
fn a_room_that_has_all_the_places_it_can_have_takes_no_more_keys() {
    let mut room = Room::new();
    room.section(&event("$a").key("1"));
    room.map.cells.give_out(MAX_CELLS);
    for dropped in 1..3 {
        assert_eq!(room.section(&event("$b").by(BOB)), Admission::Full { first: false });
        assert_eq!(room.map.dropped(), dropped);
    }
    assert_eq!(room.section(&event("$c").key("1").sent(1)), Admission::Kept);
    assert_eq!(room.live(), ["$c"]);
}

#[test]
fn a_sender_and_a_type_are_one_text_for_as_long_as_an_event_of_theirs_is_known() {
    let mut room = Room::new();
    room.section(&event("$a").key("1").ttl(1_000));
    room.section(&event("$b").key("2"));
    room.pass(secs(1));
    assert_eq!(room.live(), ["$b"]);
    room.section(&event("$c").key("3"));
    let entries = room.map.entries(room.now);
    let texts =
        |event: &StickyEvent| (event.sender().as_str().as_ptr(), event.event_type().as_ptr());
    assert_eq!(texts(&entries[0]), texts(&entries[1]));
}

#[test]
fn a_map_is_empty_when_it_remembers_nothing() {
    let mut room = Room::new();
    assert!(room.map.is_empty());
    room.section(&event("$a").ttl(1_000));
    assert!(!room.map.is_empty(), "an event");
    room.pass(secs(1));
    room.live();
    assert!(!room.map.is_empty(), "an event that has ended");
    room.pass(secs(3_600));
    room.live();
    assert!(room.map.is_empty());
}

#[test]
fn events_of_one_key_that_end_together_leave_together() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(5_000));
    room.section(&event("$b").sent(1).ttl(5_000));
    assert_eq!(room.map.ends.len(), 1);
    assert_eq!(room.changes(), ["+$b"]);
    room.pass(secs(5));
    assert_eq!(room.changes(), ["-$b expired"]);
    assert_eq!((room.map.known(), room.map.ends.len()), (0, 0));
}

#[test]
fn an_event_ends_in_time_when_another_that_ended_with_it_is_brought_forward() {
    let mut room = Room::new();
    let (value, other) = (event("$b").sent(1), event("$a"));
    room.section(&value.clone().ttl(5_000));
    room.section(&other.ttl(5_000));
    room.section(&value.ttl(2_000));
    assert_eq!(room.changes(), ["+$b"]);
    room.pass(secs(2));
    assert_eq!(room.changes(), ["$b>$a"]);
    room.pass(secs(3));
    assert_eq!(room.changes(), ["-$a expired"]);
    assert_eq!(room.map.ends.len(), 0);
}

#[test]
fn what_was_received_before_all_that_is_known_ends_in_time() {
    let mut room = Room::new();
    let earlier = room.now;
    room.pass(secs(30));
    room.section(&event("$a").key("1").ttl(60_000));
    // Handed over late: all three are over.
    for (id, ttl) in [("$c", 1_000), ("$d", 2_000), ("$d", 1_500)] {
        let text = event(id).key("2").ttl(ttl).raw();
        room.map.handle_event(earlier, ReceivedVia::Section, text).unwrap();
    }
    assert_eq!(room.changes(), ["+$a"]);
    assert_eq!((room.map.known(), room.map.ends.len()), (1, 1));
}

// Law 7: malformed events.

#[test]
fn a_malformed_event_says_which_one_it_was_and_costs_nothing_else() {
    let mut room = Room::new();
    room.section(&event("$a"));
    for (odd, field) in [
        (event("$x").without("/sender"), "sender"),
        (event("$x").with("/sender", "nobody"), "sender"),
        (event("$x").with("/type", 5), "type"),
        (event("$x").with("/origin_server_ts", -5), "origin_server_ts"),
        (event("$x").with("/origin_server_ts", "now"), "origin_server_ts"),
        (event("$x").with("/content", json!([])), "content"),
        (event("$x").without("/content"), "content"),
    ] {
        let malformed =
            room.map.handle_event(room.now, ReceivedVia::Section, odd.raw()).expect_err(field);
        assert_eq!(malformed.event_id.as_deref(), Some("$x"));
        assert_eq!(malformed.fault, wire::Fault::Field(field));
    }
    assert_eq!(room.live(), ["$a"]);
    assert_eq!(room.map.known(), 1);
}

// Events that wait for their room key.

#[test]
fn an_encrypted_event_waits_and_shows_nothing() {
    let mut room = Room::new();
    assert_eq!(room.section(&event("$e").encrypted("s1")), Admission::Kept);
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.changes(), [""; 0]);
    assert_eq!(room.map.pending_len(), 1);
}

fn needs(room: &Room, event_id: &str, sender: &str) -> bool {
    let sender = <&UserId>::try_from(sender).unwrap();
    room.map.needs_decryption(<&EventId>::try_from(event_id).unwrap(), sender)
}

#[test]
fn what_is_known_wants_no_decryption() {
    let mut room = Room::new();
    assert!(needs(&room, "$e", ALICE));
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    assert!(needs(&room, "$e", ALICE), "it waits");
    room.decrypted(&outer, &event("$e"));
    assert!(!needs(&room, "$e", ALICE));
    room.redact("$early");
    assert!(!needs(&room, "$early", ALICE));
    room.pass(secs(60));
    assert_eq!(room.live(), [""; 0]);
    assert!(!needs(&room, "$e", ALICE), "it is over");
}

/// Each time somebody's cache delivers it again it would be decrypted, and logged.
#[test]
fn a_malformed_inside_is_decrypted_once() {
    for waits_first in [false, true] {
        let mut room = Room::keeping(2);
        for (n, inside) in [r#"{"content":{}}"#, r#"{"type":"t","content":[]}"#].iter().enumerate()
        {
            let id = format!("$e{n}");
            let outer = event(&id).encrypted("s");
            if waits_first {
                room.section(&outer);
            }
            let mut decrypt = || {
                let (outer, clear) = (outer.raw(), raw(*inside));
                let encryption = Encryption::Plaintext;
                room.map.handle_decrypted(room.now, ReceivedVia::Section, &outer, clear, encryption)
            };
            assert_eq!(decrypt().unwrap_err().event_id.as_deref(), Some(&*id));
            assert_eq!(decrypt(), Ok(Admission::Repeated));
            assert_eq!(room.map.poll_warning(), n == 0, "once of a sender");
            assert!(!needs(&room, &id, ALICE));
            assert_eq!(room.section(&outer), Admission::Repeated);
        }
        assert_eq!((room.map.pending_len(), room.live().len(), room.map.known()), (0, 0, 2));
        // They count for the quota, and end like any other.
        assert_eq!(room.section(&event("$c")), Admission::Full { first: true });
        room.pass(secs(60));
        assert_eq!((room.live().len(), room.map.known()), (0, 0));
        assert_eq!(room.section(&event("$d")), Admission::Kept);
    }
}

#[test]
fn what_a_full_quota_dropped_is_decrypted_once() {
    let mut room = Room::keeping(10);
    let outer = |n: usize| {
        event(&format!("$e{n}")).encrypted("s").lasting(if n < 5 { 1_000 } else { 60_000 })
    };
    let clear = |n: usize| event(&format!("$e{n}")).key(&n.to_string());
    for n in 0..20 {
        assert!(needs(&room, &format!("$e{n}"), ALICE));
        room.decrypted(&outer(n), &clear(n));
    }
    assert_eq!(room.map.dropped(), 10);
    for n in 0..20 {
        assert!(!needs(&room, &format!("$e{n}"), ALICE), "{n}");
        room.section(&outer(n));
    }
    // Another one could refresh a key, unless too many were dropped to remember them.
    assert!(!needs(&room, "$refresh", ALICE));
    assert!(needs(&room, "$e11", BOB), "another's");
    // As soon as there is room, what was dropped may come in.
    room.pass(secs(1));
    assert_eq!(room.live().len(), 5);
    assert!(needs(&room, "$e11", ALICE));

    let mut room = Room::keeping(10);
    for n in 0..19 {
        room.decrypted(&outer(n), &clear(n));
    }
    assert!(needs(&room, "$refresh", ALICE));
    let refresh = event("$refresh").encrypted("s").sent(1);
    assert_eq!(room.decrypted(&refresh, &event("$refresh").key("7")), Admission::Kept);
}

#[test]
fn malformed_events_warn_once_a_sender_and_hour() {
    let mut room = Room::new();
    let warns = |room: &mut Room, sender: &str| {
        let odd = event("$x").by(sender).with("/content", json!([]));
        room.map.handle_event(room.now, ReceivedVia::Section, odd.raw()).unwrap_err();
        room.map.poll_warning()
    };
    assert!(warns(&mut room, ALICE));
    assert!(!warns(&mut room, ALICE) && warns(&mut room, BOB) && !warns(&mut room, BOB));
    assert!(!room.map.is_empty(), "it is remembered");
    room.pass(secs(3_600));
    room.changes();
    assert!(room.map.is_empty());
    assert!(warns(&mut room, ALICE));
}

#[test]
fn waiting_events_are_found_by_their_session() {
    let mut room = Room::new();
    room.section(&event("$1").encrypted("s1"));
    room.section(&event("$2").encrypted("s2"));
    room.section(&event("$3").encrypted("s2").without("/content/session_id"));
    assert_eq!(room.map.pending(Some("s2")).len(), 1);
    assert_eq!(room.map.pending(Some("s2"))[0].event_id(), "$2");
    assert_eq!(room.map.pending(None).len(), 3);
    assert_eq!(room.map.pending(Some("s3")).len(), 0);
}

#[test]
fn a_decrypted_event_takes_its_rank_from_the_outer_event() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s").sent(10);
    room.section(&outer);
    room.section(&event("$plain").sent(5));
    // What is inside says otherwise, and does not count.
    room.decrypted(&outer, &event("$other_id").by(BOB).sent(0).lasting(1));
    assert_eq!(room.live(), ["$e"]);
    let entry = &room.map.entries(room.now)[0];
    assert_eq!((entry.sender().as_str(), entry.event_type()), (ALICE, "com.example.t"));
    assert!(entry.content_raw().unwrap().get().contains("$other_id"));
    assert_eq!(room.map.pending_len(), 0);
}

#[test]
fn an_event_that_is_decrypted_at_receipt_never_waits() {
    let mut room = Room::new();
    room.decrypted(&event("$e").encrypted("s"), &event("$e"));
    assert_eq!(room.live(), ["$e"]);
    assert_eq!(room.section(&event("$e").encrypted("s")), Admission::Repeated);
    assert_eq!(room.live(), ["$e"]);
}

#[test]
fn a_waiting_event_keeps_its_earliest_end_when_it_is_decrypted() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s");
    room.section(&outer.clone().ttl(60_000));
    room.section(&outer.clone().ttl(20_000));
    room.pass(secs(10));
    room.decrypted(&outer.ttl(60_000), &event("$e"));
    room.pass(secs(9));
    assert_eq!(room.live(), ["$e"]);
    room.pass(secs(1));
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn an_event_that_ended_while_waiting_does_not_appear() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    room.pass(secs(60));
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.map.pending_len(), 0);
    assert_eq!(room.map.known(), 0);
}

#[test]
fn an_event_that_was_redacted_while_waiting_does_not_appear() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    room.redact("$e");
    assert_eq!(room.map.pending_len(), 0, "nobody needs to decrypt it");
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::NotSticky);
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn an_encrypted_event_that_was_redacted_before_it_came_does_not_appear() {
    let mut room = Room::new();
    room.redact("$e");
    let outer = event("$e").encrypted("s");
    assert_eq!(room.section(&outer), Admission::NotSticky);
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::NotSticky);
}

#[test]
fn decrypting_gives_the_place_that_waiting_took() {
    let mut room = Room::keeping(1);
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::Kept);
    assert_eq!(room.live(), ["$e"]);
}

#[test]
fn a_decrypted_removal_removes() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.changes();
    let outer = event("$e").encrypted("s").sent(1);
    room.section(&outer);
    room.decrypted(&outer, &event("$e").removal());
    assert_eq!(room.changes(), ["-$a removed"]);
}

#[test]
fn an_event_that_is_malformed_inside_waits_no_more() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    let clear = event("$e").without("/content").raw();
    let clear = raw(clear.get().replace("$e", "$inside"));
    let malformed = room
        .map
        .handle_decrypted(
            room.now,
            ReceivedVia::Section,
            &outer.raw(),
            clear,
            Encryption::Plaintext,
        )
        .expect_err("no content");
    assert_eq!(malformed.event_id.as_deref(), Some("$e"), "not what stands inside");
    assert_eq!(room.map.pending_len(), 0);
}

#[test]
fn a_decrypted_redaction_redacts_nothing() {
    let mut room = Room::new();
    room.section(&event("$a"));
    let inside = event("$e").of_type("m.room.redaction").with("/content/redacts", "$a");
    room.decrypted(&event("$e").encrypted("s").by(BOB), &inside.with("/redacts", "$a"));
    assert!(room.live().contains(&"$a".to_owned()));
}

#[test]
fn an_event_is_updated_when_its_session_is_proven() {
    let details = |owner: &str, verification| {
        let owner = UserId::parse(owner).unwrap();
        Arc::new(EncryptionDetails::new(owner, None, verification))
    };
    let proven = |owner| Encryption::Encrypted(details(owner, Verification::UnsignedDevice));
    let unproven = Encryption::ForeignSession(details(ALICE, Verification::Unproven));
    let id = |id| <&EventId>::try_from(id).unwrap();
    let mut room = Room::new();
    for n in ["$a", "$b"] {
        let outer = event(n).encrypted("s");
        room.decrypted_with(&outer, &event(n).key(n), unproven.clone());
    }
    room.decrypted_with(&event("$c").encrypted("s"), &event("$c").key("c"), proven(ALICE));
    room.changes();
    let mut events = room.map.unproven();
    events.sort_by_key(|(event, _)| event.event_id().to_owned());
    let found: Vec<_> = events.iter().map(|(it, id)| (it.event_id_str(), &**id)).collect();
    assert_eq!(found, [("$a", "s"), ("$b", "s")]);

    // No news, nothing that is known, and another's session.
    room.map.handle_encryption(id("$a"), unproven);
    room.map.handle_encryption(id("$other"), proven(ALICE));
    assert_eq!(room.changes(), [""; 0]);
    room.map.handle_encryption(id("$a"), proven(ALICE));
    room.map.handle_encryption(id("$b"), proven(BOB));
    assert_eq!(room.changes(), ["$a>$a", "$b>$b"]);
    let is_encrypted = |room: &mut Room| {
        let entries = room.map.entries(room.now);
        entries.iter().map(|event| event.is_encrypted()).collect::<Vec<_>>()
    };
    assert_eq!(is_encrypted(&mut room), [true, false, true]);
    assert_eq!(room.map.unproven_len(), 0);
    // The rest is as it was.
    assert_eq!(room.section(&event("$a").encrypted("s")), Admission::Repeated);
    room.redact("$a");
    assert_eq!(room.changes(), ["-$a redacted"]);
    room.pass(secs(60));
    assert_eq!(room.changes(), ["-$b expired", "-$c expired"]);
    assert_eq!(room.map.known(), 0);
}

#[test]
fn only_the_senders_own_session_counts_as_encrypted() {
    let details = |owner: &str| {
        Arc::new(EncryptionDetails::new(
            UserId::parse(owner).unwrap(),
            None,
            Verification::Unproven,
        ))
    };
    let outer = event("$e").encrypted("s");
    for (said, read) in [
        (Encryption::Plaintext, Encryption::Plaintext),
        (Encryption::Encrypted(details(ALICE)), Encryption::Encrypted(details(ALICE))),
        (Encryption::Encrypted(details(BOB)), Encryption::ForeignSession(details(BOB))),
        (Encryption::ForeignSession(details(BOB)), Encryption::ForeignSession(details(BOB))),
        (Encryption::ForeignSession(details(ALICE)), Encryption::ForeignSession(details(ALICE))),
    ] {
        let mut room = Room::new();
        room.decrypted_with(&outer, &event("$e"), said);
        let entry = &room.map.entries(room.now)[0];
        assert_eq!(entry.encryption(), read);
        let is_encrypted = matches!(read, Encryption::Encrypted(_));
        assert_eq!((entry.is_encrypted(), read.is_encrypted()), (is_encrypted, is_encrypted));
    }
}

#[test]
fn a_plaintext_event_competes_with_encrypted_ones_and_is_marked() {
    let mut room = Room::new();
    room.decrypted(&event("$e").encrypted("s"), &event("$e"));
    room.section(&event("$plain").sent(1));
    assert_eq!(room.live(), ["$plain"]);
    assert_eq!(room.map.entries(room.now)[0].encryption(), Encryption::Plaintext);
}

// Ignored senders, and rooms that were left.

#[test]
fn an_ignored_senders_entries_hide_and_come_back() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$b").by(BOB));
    room.changes();
    room.ignore(&[ALICE]);
    assert_eq!(room.changes(), ["-$a ignored"]);
    assert_eq!(room.live(), ["$b"]);
    let key = StickyKey::new(UserId::parse(ALICE).unwrap(), "com.example.t", "k");
    assert!(room.map.get(room.now, &key).is_none());
    // Meanwhile the value becomes another.
    room.section(&event("$a2").sent(1));
    assert_eq!(room.changes(), [""; 0]);
    room.ignore(&[]);
    assert_eq!(room.changes(), ["+$a2"]);
}

#[test]
fn an_ignored_senders_entries_end_silently() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.changes();
    room.ignore(&[ALICE]);
    room.changes();
    room.pass(secs(60));
    assert_eq!(room.changes(), [""; 0]);
    room.ignore(&[]);
    assert_eq!(room.changes(), [""; 0]);
}

#[test]
fn a_left_room_is_forgotten_and_says_so() {
    let mut room = Room::new();
    room.section(&event("$b").key("b"));
    room.section(&event("$a").key("a"));
    room.section(&event("$e").encrypted("s"));
    room.redact("$unknown");
    room.changes();
    let gone: Vec<_> = room.map.handle_left().iter().map(told).collect();
    assert_eq!(gone, ["-$a left", "-$b left"]);
    assert!(room.map.is_empty());
    assert_eq!(room.map.next_deadline(), None);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_left_room_still_knows_who_is_ignored() {
    let mut room = Room::new();
    room.ignore(&[ALICE]);
    room.map.handle_left();
    room.section(&event("$a"));
    assert_eq!(room.live(), [""; 0]);
}

// What is told.

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
fn what_came_and_went_between_two_polls_is_nothing() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.redact("$a");
    assert_eq!(room.changes(), [""; 0]);
    room.section(&event("$b").key("b").ttl(1_000));
    room.pass(secs(1));
    assert_eq!(room.changes(), [""; 0]);
}

#[test]
fn a_key_that_ended_and_came_again_before_that_was_told_is_one_change() {
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
fn the_numbers_of_what_is_told_are_dense_and_stay_while_there_is_a_value() {
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

/// What was sent, by the plainest book-keeping.
struct Sent {
    id: String,
    key: u64,
    rank: u64,
    ends: u64,
    removal: bool,
    redacted: bool,
}

#[test]
fn many_keys_that_come_and_go_are_told_as_they_are() {
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
            // Full rooms and empty ones by turns.
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
fn a_known_events_metadata_survives_escapes_in_its_text() {
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
fn a_map_and_its_events_show_no_text_in_debug() {
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
fn content_is_found_where_a_name_is_there_twice() {
    let text = event("$a").text().replacen('{', r#"{"content":{"old":1},"#, 1);
    let mut map = EphemeralMap::new(Limits::default());
    map.handle_event(start(), ReceivedVia::Section, raw(text)).unwrap();
    let entries = map.entries(start());
    assert!(entries[0].content_raw().unwrap().get().contains("body"));
    let content: serde_json::Value = entries[0].content().unwrap();
    assert_eq!(content["body"], "$a");
}
