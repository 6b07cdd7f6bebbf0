//! Why somebody is not there: each reason comes and goes.

use super::*;
use crate::rtc::{ClosedBy, LeaveReason};

/// A world with this member, and what it was told then.
fn joined() -> World {
    let mut world = World::new();
    assert_eq!(world.receive(&[join("$join", "a")]), ["+alice/a"]);
    world
}

/// As MSC4143 has it, in an encrypted room.
fn joined_encrypted() -> World {
    let mut world = World::encrypted();
    let join = sent("$join", msc4143("a")).encrypted_by("PHONE");
    assert_eq!(world.receive(&[join]), ["+alice/a"]);
    world
}

/// Opening it again brings the members back.
#[test]
fn a_closed_slot_ends_the_session() {
    let mut world = joined();
    let closed = json!({ "status": "closed" });
    assert_eq!(world.slot(&open_slot()), ["open"]);
    assert_eq!(
        world.slot(&closed),
        ["closed: Status", "-alice/a: slot closed"],
        "who has left is not refused as well"
    );
    assert_eq!(world.candidates(), ["alice/a: slot closed"]);
    assert_eq!(world.slot(&open_slot()), ["open", "+alice/a"]);
    assert_eq!(world.candidates(), [""; 0]);
}

/// It is open to Element Call.
#[test]
fn a_missing_slot_is_closed_to_msc4143() {
    let mut world = World::new();
    let sent = [
        sent("$1", msc4143("msc")),
        sent("$2", element_call(ALICE, "js")),
        sent("$3", both(ALICE, "both")),
        sent("$4", rtc_transports(ALICE, "old")),
    ];
    world.receive(&sent);
    world.state(CALL_MEMBER, "_@alice:hs_PHONE", ALICE, &call_member("PHONE"));
    assert_eq!(world.members(), ["alice/both", "alice/js", "alice/old", "alice/@alice:hs:PHONE"]);
    assert_eq!(world.candidates(), ["alice/msc: slot missing"]);
    assert_eq!(world.call().closed_by(), Some(ClosedBy::Missing));
    assert_eq!(world.slot(&open_slot()), ["open", "+alice/msc"]);
    assert_eq!(world.members().len(), 5);
}

/// It is closed.
#[test]
fn a_malformed_slot_names_its_field() {
    let mut world = joined();
    for (content, field) in [
        (json!({}), "status"),
        (json!({ "status": "ajar" }), "status"),
        (json!({ "status": 1, "application": { "type": "m.call" } }), "status"),
        (json!({ "status": "open" }), "application"),
        (json!({ "status": "open", "application": "m.call" }), "application"),
        (json!({ "status": "open", "application": { "type": 1 } }), "application"),
        (json!({ "status": "open", "application": { "type": "m.cal" } }), "application.type"),
        (
            json!({ "status": "open", "application": { "type": "m.whiteboard" } }),
            "application.type",
        ),
    ] {
        world.slot(&content);
        assert_eq!(world.candidates(), [format!("alice/a: slot malformed: `{field}`")]);
        assert_eq!(world.call().closed_by(), Some(ClosedBy::Malformed(field)));
        world.slot(&open_slot());
        assert_eq!(world.members(), ["alice/a"]);
    }
}

/// Element Call does not look at it.
#[test]
fn encryption_without_type_closes_to_msc4143() {
    let mut world = World::new();
    let mut slot = open_slot();
    slot["encryption"] = json!({});
    world.slot(&slot);
    world.receive(&[sent("$1", msc4143("msc")), sent("$2", both(ALICE, "both"))]);
    assert_eq!(world.members(), ["alice/both"]);
    assert_eq!(world.candidates(), ["alice/msc: slot malformed: `encryption.type`"]);
}

/// By the rules of MSC4143 alone.
#[test]
fn slots_in_encrypted_rooms_need_encryption() {
    let mut world = joined_encrypted();
    let js = sent("$js", element_call(BOB, "b")).by(BOB).encrypted_by("LAPTOP");
    assert_eq!(world.receive(&[js]), ["+bob/b"]);
    let mut slot = open_slot();
    slot.as_object_mut().unwrap().remove("encryption");
    assert_eq!(world.slot(&slot), ["open", "-alice/a: slot closed"]);
    assert_eq!(world.call().closed_by(), Some(ClosedBy::NotEncrypted));
    assert_eq!(world.members(), ["bob/b"]);
    assert_eq!(world.slot(&open_slot()), ["open", "+alice/a"]);
}

/// A test's server says nothing of when.
#[test]
fn a_member_leaves_and_returns_with_the_room() {
    let mut world = joined();
    assert_eq!(world.in_room(ALICE, "join"), [""; 0]);
    for membership in ["leave", "ban", "invite", "knock"] {
        assert_eq!(world.in_room(ALICE, membership), ["-alice/a: not in room"]);
        assert_eq!(world.in_room(ALICE, "join"), ["+alice/a"]);
    }
}

#[test]
fn a_kick_counts_for_whom_it_names() {
    let mut world = joined();
    world.receive(&[join("$bob", "b").by(BOB)]);
    let kick = json!({ "membership": "leave" });
    assert_eq!(world.state("m.room.member", ALICE, BOB, &kick), ["-alice/a: not in room"]);
    assert_eq!(world.members(), ["bob/b"]);
}

/// Until then they count as if they were in the room.
#[test]
fn an_unknown_sender_is_asked_about_once() {
    let mut world = joined();
    assert_eq!(world.roster.poll_unknown(), [ALICE]);
    assert!(world.roster.poll_unknown().is_empty());
    world.receive(&[join("$refresh", "a").at(5)]);
    assert!(world.roster.poll_unknown().is_empty());
    assert_eq!(world.members(), ["alice/a"]);
    assert_eq!(world.in_room(ALICE, "leave"), ["-alice/a: not in room"]);
    // Who is known to be away when they join another time is not asked for again.
    assert_eq!(world.receive(&[join("$other", "b")]), ["?alice/b: not in room"]);
    assert!(world.roster.poll_unknown().is_empty());
}

/// A user without a membership costs nothing.
#[test]
fn stays_are_kept_of_senders_alone() {
    let mut world = World::new();
    world.in_room(ALICE, "leave");
    assert_eq!(world.receive(&[join("$a", "a").lasting(10)]), ["+alice/a"]);
    assert_eq!(world.roster.poll_unknown(), [ALICE]);
    world.in_room(ALICE, "join");
    world.pass(10);
    world.pass(3_600);
    assert_eq!(world.receive(&[join("$b", "a").at(3_610)]), ["+alice/a"]);
    assert_eq!(world.roster.poll_unknown(), [ALICE], "it may not hold any more");
}

#[test]
fn switching_on_encryption_ends_plaintext_members() {
    let mut world = World::new();
    world.slot(&open_slot());
    let encrypted = join("$2", "b").by(BOB).encrypted_by("LAPTOP");
    world.receive(&[join("$1", "a"), encrypted]);
    let on = world.state("m.room.encryption", "", ALICE, &json!({ "algorithm": "x" }));
    assert_eq!(on, ["-alice/a: not encrypted"]);
    assert_eq!(world.members(), ["bob/b"]);
    assert_eq!(world.encryption(false), [""; 0], "it never ceases to be");
    let again = join("$3", "a").at(1).encrypted_by("PHONE");
    assert_eq!(world.receive(&[again]), ["+alice/a"]);
}

#[test]
fn encryption_has_an_empty_state_key() {
    let mut world = World::new();
    world.receive(&[join("$1", "a")]);
    let content = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    assert_eq!(world.state("m.room.encryption", "x", ALICE, &content), [""; 0]);
    assert_eq!(world.members(), ["alice/a"]);
    let told = world.state("m.room.encryption", "", ALICE, &content);
    assert_eq!(told, ["-alice/a: not encrypted"]);
}

#[test]
fn an_unknown_room_counts_as_encrypted() {
    let mut world = World::not_known_to_be_encrypted();
    assert_eq!(world.receive(&[join("$join", "a")]), ["?alice/a: not encrypted"]);
    assert!(world.call().is_encrypted());
    assert_eq!(world.encryption(false), ["+alice/a"]);
    assert!(!world.call().is_encrypted());
}

#[test]
fn encryption_that_closes_a_slot_is_reported() {
    let mut world = World::new();
    let mut plain = open_slot();
    plain.as_object_mut().unwrap().remove("encryption");
    world.slot(&plain);
    world.slot_of("m.other#1", &json!({ "status": "closed" }));
    assert_eq!(world.call().closed_by(), None);
    assert_eq!(world.encryption(true), ["open"], "told anew, as it is closed in this room now");
    assert_eq!(world.call().closed_by(), Some(ClosedBy::NotEncrypted));
}

/// In an encrypted room it only ends one.
#[test]
fn plaintext_never_makes_a_member() {
    let mut world = joined_encrypted();
    let bare = json!({ "slot_id": ROOM_CALL, "msc4354_sticky_key": "a" });
    for (event_id, content, told) in [
        ("$p1", both(ALICE, "a"), "-alice/a: not encrypted"),
        ("$p2", bare, "-alice/a: left"),
        ("$p3", leave("$", "a").content, "-alice/a: left"),
        ("$p4", json!({ "msc4354_sticky_key": "a" }), "-alice/a: left"),
        (
            "$p5",
            json!({ "msc4354_sticky_key": "a", "slot_id": ROOM_CALL, "x": 1 }),
            "-alice/a: malformed: `member`",
        ),
    ] {
        world.pass(2);
        let now = (world.clock.now().unix_ms() - START_MS) / 1_000;
        assert_eq!(world.receive(&[sent(event_id, content).at(now)]), [told]);
        world.pass(2);
        let again = sent(&format!("{event_id}-again"), msc4143("a")).encrypted_by("PHONE");
        assert_eq!(world.receive(&[again.at(now + 2)]), ["+alice/a"]);
    }
    let new = join("$new", "b").by(BOB);
    assert_eq!(world.receive(&[new]), ["?bob/b: not encrypted"]);
    world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    assert_eq!(world.members(), ["alice/a"]);
}

#[test]
fn anothers_megolm_session_proves_nothing() {
    let mut world = World::encrypted();
    let mut join = join("$join", "a").encrypted_by("PHONE");
    join.owner = Some(BOB.to_owned());
    assert_eq!(world.receive(&[join]), ["?alice/a: not encrypted"]);
}

/// The next one brings it back.
#[test]
fn a_malformed_refresh_ends_the_member() {
    let mut world = joined();
    let malformed = join("$2", "a").at(1).with("/member/id", "b");
    assert_eq!(world.receive(&[malformed]), ["-alice/a: malformed: `member.id`"]);
    assert_eq!(world.receive(&[join("$3", "a").at(2)]), ["+alice/a"]);
}

#[test]
fn an_expired_member_is_listed_for_an_hour() {
    let mut world = World::new();
    world.receive(&[join("$join", "a").lasting(60)]);
    assert_eq!(world.pass(59), [""; 0]);
    assert_eq!(world.pass(1), ["-alice/a: expired"]);
    assert_eq!(world.candidates(), ["alice/a: expired"]);
    assert_eq!(world.pass(3_599), [""; 0]);
    assert_eq!(world.pass(1), ["!alice/a: expired"]);
    assert_eq!(world.snapshot().sessions().count(), 0);
    assert_eq!(world.roster.next_deadline(), None);
}

#[test]
fn a_refresh_brings_back_an_expired_member() {
    let mut world = World::new();
    world.receive(&[join("$join", "a").lasting(60)]);
    world.pass(60);
    assert_eq!(world.receive(&[join("$2", "a").at(60)]), ["+alice/a"]);
    assert_eq!(world.roster.next_deadline(), None, "the old one is not waited for");
}

#[test]
fn a_redacted_join_has_left() {
    let mut world = joined();
    assert_eq!(world.redact("$join"), ["-alice/a: redacted"]);
    assert_eq!(world.candidates(), ["alice/a: redacted"]);
    assert_eq!(world.receive(&[join("$2", "a").at(1)]), ["+alice/a"]);
}

/// Although the map falls back to the older join.
#[test]
fn a_redacted_refresh_is_a_leave() {
    let mut world = joined();
    world.receive(&[join("$2", "a").at(1)]);
    assert_eq!(world.redact("$2"), ["-alice/a: redacted"]);
    assert_eq!(world.maps.view().snapshot().len(), 1, "the map has the older one");
    // The older one again, and one in between: still redacted.
    assert_eq!(world.receive(&[join("$join", "a")]), [""; 0]);
    world.receive(&[join("$between", "a").at(1).lasting(3_599)]);
    assert_eq!(world.members(), [""; 0]);
    assert_eq!(world.receive(&[join("$3", "a").at(2)]), ["+alice/a"]);
}

#[test]
fn a_late_older_join_undoes_no_redaction() {
    let mut world = World::new();
    world.receive(&[join("$2", "a").at(1)]);
    assert_eq!(world.redact("$2"), ["-alice/a: redacted"]);
    world.receive(&[join("$1", "a")]);
    assert_eq!(world.members(), [""; 0]);
    assert_eq!(world.candidates(), ["alice/a: redacted"]);
    assert_eq!(world.receive(&[join("$3", "a").at(2)]), ["+alice/a"]);
}

#[test]
fn an_expiry_after_redaction_stays_a_redaction() {
    let mut world = World::new();
    world.receive(&[join("$1", "a").lasting(60)]);
    world.receive(&[join("$2", "a").at(1)]);
    assert_eq!(world.redact("$2"), ["-alice/a: redacted"]);
    assert_eq!(world.pass(60), [""; 0]);
    assert_eq!(world.candidates(), ["alice/a: redacted"]);
}

#[test]
fn a_redacted_leave_brings_back_who_had_left() {
    let mut world = joined();
    assert_eq!(world.receive(&[leave("$leave", "a").at(1)]), ["-alice/a: left"]);
    assert_eq!(world.redact("$leave"), ["?alice/a: redacted"], "as the map falls back");
    assert_eq!(world.receive(&[join("$2", "a").at(2)]), ["+alice/a"]);
}

#[test]
fn one_who_leaves_says_how() {
    let mut world = joined();
    let reason = json!({ "code": "leave", "reason": "tired" });
    let leave = leave("$leave", "a").at(1).with("/leave_reason", reason);
    assert_eq!(world.receive(&[leave]), ["-alice/a: left (leave: tired)"]);
    let reasons: Vec<_> = world.call().candidates().map(|it| it.reason.clone()).collect();
    let how = LeaveReason::with_code(LeaveReason::ON_PURPOSE).with_reason("tired");
    assert_eq!(reasons, [NotJoined::Left(how)]);
    // It is told for as long as the leave is sticky.
    assert_eq!(world.pass(3_600), ["!alice/a: left (leave: tired)"]);
}

#[test]
fn an_earlier_versions_disconnect_reason_is_read_too() {
    let mut world = joined();
    let leave = json!({
        "slot_id": ROOM_CALL,
        "disconnect_reason": { "class": "client_error", "reason": "ice", "description": "lost" },
        "m.relates_to": { "rel_type": "m.reference", "event_id": "$join" },
        "msc4354_sticky_key": "a",
    });
    assert_eq!(world.receive(&[sent("$2", leave).at(1)]), ["-alice/a: left (ice: lost)"]);
}

#[test]
fn a_leave_of_matrix_js_sdk_is_one() {
    let mut world = joined();
    let leave = json!({ "slot_id": ROOM_CALL, "msc4354_sticky_key": "a" });
    assert_eq!(world.receive(&[sent("$leave", leave).at(1)]), ["-alice/a: left"]);
    assert_eq!(world.candidates(), ["alice/a: left"]);
}

/// A leave of somebody who was not a member is reported as no member's.
#[test]
fn a_removal_is_a_leave() {
    let mut world = joined();
    let removal = json!({ "msc4354_sticky_key": "a" });
    assert_eq!(world.receive(&[sent("$removal", removal).at(1)]), ["-alice/a: left"]);
    assert_eq!(world.receive(&[leave("$leave", "b")]), ["?alice/b: left"]);
    assert_eq!(world.pass(3_600), ["!alice/a: left", "!alice/b: left"]);
}

#[test]
fn a_late_join_does_not_undo_a_leave() {
    let mut world = World::new();
    world.receive(&[leave("$leave", "a").at(5)]);
    assert_eq!(world.receive(&[join("$join", "a")]), [""; 0]);
    assert_eq!(world.members(), [""; 0]);
}

/// The earlier membership is back when the later one leaves.
#[test]
fn one_device_counts_once() {
    let mut world = World::new();
    let join = |event_id: &str, member_id: &str| join(event_id, member_id).encrypted_by("PHONE");
    world.receive(&[join("$1", "a")]);
    assert_eq!(world.receive(&[join("$2", "b").at(1)]), ["-alice/a: superseded by b", "+alice/b"]);
    assert_eq!(world.receive(&[leave("$3", "b").at(2)]), ["+alice/a", "-alice/b: left"]);
    // Whoever was refreshed last counts.
    world.receive(&[join("$4", "b").at(3)]);
    assert_eq!(world.receive(&[join("$5", "a").at(4)]), ["+alice/a", "-alice/b: superseded by a"]);
}

#[test]
fn one_who_does_not_count_supersedes_nobody() {
    let mut world = World::new();
    let join = |event_id: &str, member_id: &str| join(event_id, member_id).encrypted_by("PHONE");
    world.slot(&open_slot());
    world.receive(&[join("$1", "a")]);
    let elsewhere = join("$2", "b").at(1).in_slot("m.call#other");
    let malformed = join("$3", "c").at(1).with("/application", 1);
    world.receive(&[elsewhere, malformed]);
    assert_eq!(world.members(), ["alice/a"]);
    let msc4143 = sent("$4", msc4143("d")).at(2).encrypted_by("PHONE");
    world.receive(&[msc4143]);
    assert_eq!(world.members(), ["alice/d"]);
    world.slot(&json!({ "status": "closed" }));
    assert_eq!(world.candidates().iter().filter(|it| it.contains("slot closed")).count(), 2);
}

/// So a third changes nothing for the first.
#[test]
fn each_membership_gives_way_to_the_next() {
    let mut world = World::new();
    let join = |event_id: &str, member_id: &str| join(event_id, member_id).encrypted_by("PHONE");
    world.receive(&[join("$1", "a"), join("$2", "b").at(1)]);
    assert_eq!(world.receive(&[join("$3", "c").at(2)]), ["-alice/b: superseded by c", "+alice/c"]);
    assert_eq!(world.candidates(), ["alice/a: superseded by b", "alice/b: superseded by c"]);
    assert_eq!(
        world.receive(&[leave("$4", "b").at(3)]),
        ["?alice/a: superseded by c", "?alice/b: left"]
    );
}

#[test]
fn equal_device_ids_of_two_users_differ() {
    let mut world = World::new();
    let alice = join("$1", "a").encrypted_by("PHONE");
    let bob = join("$2", "a").by(BOB).encrypted_by("PHONE");
    world.receive(&[alice, bob]);
    assert_eq!(world.members(), ["alice/a", "bob/a"]);
}

/// And back when they are not ignored any more.
#[test]
fn an_ignored_user_is_gone_at_once() {
    let mut world = joined();
    world.receive(&[leave("$2", "b")]);
    assert_eq!(world.ignore(&[ALICE]), ["-alice/a: ignored", "!alice/b: left"]);
    assert_eq!(world.candidates(), [""; 0], "nothing more is told of them");
    assert_eq!(world.ignore(&[]), ["+alice/a", "?alice/b: left"]);
}

/// Coming back fills them again.
#[test]
fn leaving_the_room_empties_its_sessions() {
    let mut world = joined();
    let key = "_@bob:hs_X";
    let text = state_event("$state", CALL_MEMBER, key, BOB, &call_member("X"));
    world.state_again(&text);
    assert_eq!(world.leave_room(), ["-alice/a: room left", "-bob/@bob:hs:X: room left"]);
    assert_eq!(world.snapshot().sessions().count(), 0);
    assert_eq!(world.state_again(&text), ["+bob/@bob:hs:X"], "the same event");
    assert_eq!(world.receive(&[join("$join", "a")]), ["+alice/a"]);
}

#[test]
fn leaving_the_room_forgets_former_members() {
    let mut world = World::new();
    world.receive(&[join("$1", "a").lasting(10)]);
    world.in_room(ALICE, "leave");
    world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &json!({}));
    world.pass(10);
    assert_eq!(world.candidates(), ["alice/a: expired", "bob/@bob:hs:X: left"]);
    assert_eq!(world.leave_room(), ["!alice/a: expired", "!bob/@bob:hs:X: left"]);
    assert_eq!(world.snapshot().sessions().count(), 0);
    world.roster.poll_unknown();
    // Alice may have come back while we were away: that is asked anew.
    assert_eq!(world.receive(&[join("$2", "b").at(20)]), ["+alice/b"]);
    assert_eq!(world.roster.poll_unknown(), [ALICE]);
}

#[test]
fn leaving_and_returning_unseen_changes_nothing() {
    let mut world = World::new();
    let text = state_event("$state", CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    world.state_again(&text);
    let now = world.clock.now();
    world.roster.handle_room_left(now);
    assert_eq!(world.state_again(&text), [""; 0]);
    assert_eq!(world.members(), ["bob/@bob:hs:X"]);
}

#[test]
fn one_who_goes_to_another_slot_has_moved() {
    let mut world = joined();
    let elsewhere = join("$2", "a").at(1).in_slot("m.call#stage");
    assert_eq!(world.receive(&[elsewhere]), ["-alice/a: moved", "m.call#stage +alice/a"]);
    assert_eq!(world.candidates(), [""; 0]);
    let closed = join("$3", "a").at(2);
    world.slot(&json!({ "status": "closed" }));
    assert_eq!(world.receive(&[closed]), ["m.call#stage -alice/a: moved", "?alice/a: slot closed"]);
    let nowhere = join("$4", "a").at(3).without("/slot_id");
    assert_eq!(
        world.receive(&[nowhere]),
        ["!alice/a: slot closed", "nowhere ?alice/a: malformed: `slot_id`"]
    );
    assert_eq!(
        world.snapshot().strays().map(candidate).collect::<Vec<_>>(),
        ["alice/a: malformed: `slot_id`"]
    );
    assert_eq!(
        world.receive(&[join("$5", "a").at(4).in_slot("m.call#stage")]),
        ["nowhere !alice/a: malformed: `slot_id`", "m.call#stage +alice/a"]
    );
    assert_eq!(world.snapshot().strays().count(), 0);
}

#[test]
fn a_user_has_sixteen_former_members() {
    let mut world = World::new();
    for n in 0..20 {
        world.receive(&[join(&format!("${n}"), &format!("{n:02}")).lasting(10 + n)]);
    }
    world.receive(&[join("$bob", "b").by(BOB).lasting(10)]);
    for _ in 0..20 {
        world.pass(1);
    }
    world.pass(20);
    assert_eq!(world.candidates().len(), 17);
    assert_eq!(world.candidates()[0], "alice/04: expired");
}

/// If many end at once.
#[test]
fn members_beyond_the_quota_are_reported_forgotten() {
    let mut world = World::new();
    let joins: Vec<_> =
        (0..20).map(|n| join(&format!("${n}"), &format!("{n:02}")).lasting(10)).collect();
    world.receive(&joins);
    let told = world.pass(10);
    assert_eq!(told.iter().filter(|it| it.starts_with('-')).count(), 20);
    assert_eq!(told.iter().filter(|it| it.starts_with('!')).count(), 4);
    assert_eq!(world.candidates().len(), 16);
}

#[test]
fn reasons_say_themselves_in_few_words() {
    let closed = |by| NotJoined::Slot(by);
    for (reason, word, words) in [
        (NotJoined::Malformed("member.id"), "malformed", "malformed: `member.id`"),
        (NotJoined::OtherApplication, "other_application", "other application"),
        (NotJoined::Left(LeaveReason::default()), "left", "left"),
        (NotJoined::Left(LeaveReason::with_code("x")), "left", "left (x)"),
        (NotJoined::Left(LeaveReason::default().with_reason("x")), "left", "left"),
        (NotJoined::NotEncrypted, "not_encrypted", "not encrypted"),
        (NotJoined::NotInRoom, "not_in_room", "not in room"),
        (closed(ClosedBy::Missing), "slot_missing", "slot missing"),
        (closed(ClosedBy::Status), "slot_closed", "slot closed"),
        (closed(ClosedBy::NotEncrypted), "slot_closed", "slot closed"),
        (closed(ClosedBy::Malformed("status")), "slot_closed", "slot malformed: `status`"),
        (NotJoined::Superseded { by: "b".to_owned() }, "superseded", "superseded by b"),
        (NotJoined::Expired, "expired", "expired"),
        (NotJoined::Redacted, "redacted", "redacted"),
        (NotJoined::Ignored, "ignored", "ignored"),
        (NotJoined::RoomLeft, "room_left", "room left"),
        (NotJoined::Moved, "moved", "moved"),
    ] {
        assert_eq!((reason.as_str(), reason.to_string().as_str()), (word, words));
    }
}
