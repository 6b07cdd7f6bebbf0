//! Contents that lie, and too many of them: each has its reason, and none hides another member.

use super::*;

const MALLORY: &str = "@mallory:hs";

/// Bob is there, in a room whose slot is open.
fn bob_is_there() -> World {
    let mut world = World::encrypted();
    world.receive(&[join("$bob", "b").by(BOB).encrypted_by("TABLET")]);
    assert_eq!(world.members(), ["bob/b"]);
    world
}

/// Whatever it holds, and bob stays a member.
#[test]
fn any_field_makes_a_member_or_reason() {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1.5),
        json!(""),
        json!("x"),
        json!([]),
        json!([1]),
        json!([{}]),
        json!({}),
        json!({ "type": 1 }),
        json!([[]]),
        json!("\u{0}"),
        json!("m.call#ROOM"),
    ];
    let contents = [
        msc4143("a"),
        both(MALLORY, "a"),
        element_call(MALLORY, "a"),
        rtc_transports(MALLORY, "a"),
    ];
    let mut joined = 0;
    let mut number = 0;
    for content in contents {
        for pointer in pointers(&content) {
            for value in odd.iter().cloned().map(Some).chain([None]) {
                number += 1;
                let mut content = content.clone();
                set(&mut content, &pointer, value);
                let sent = sent(&format!("${number}"), content)
                    .by_as_it_is(MALLORY)
                    .encrypted_by_as_it_is("PHONE");
                let mut world = bob_is_there();
                world.receive(&[sent]);
                let members = world.members();
                assert_eq!(members.iter().filter(|it| *it == "bob/b").count(), 1, "{pointer}");
                joined += members.len() - 1;
                let snapshot = world.snapshot();
                let elsewhere: usize =
                    snapshot.sessions().map(|it| it.len() + it.candidates().count()).sum();
                // Nothing but a removal of what was not there is no membership at all.
                assert!(elsewhere + snapshot.strays().count() >= 1);
            }
        }
    }
    assert!(number > 500 && joined > 20, "{joined} of {number}");
}

/// Every place of an object and of the objects in it.
fn pointers(content: &Value) -> Vec<String> {
    let mut pointers = Vec::new();
    for (name, value) in content.as_object().into_iter().flatten() {
        pointers.push(format!("/{name}"));
        pointers.extend(pointers_of(value).map(|below| format!("/{name}{below}")));
    }
    pointers
}

fn pointers_of(value: &Value) -> impl Iterator<Item = String> + '_ {
    value.as_object().into_iter().flatten().map(|(name, _)| format!("/{name}"))
}

/// It hides nobody either.
#[test]
fn another_users_id_makes_no_member() {
    for id in ["/member/user_id", "/member/claimed_user_id"] {
        let mut world = bob_is_there();
        let lie = join("$lie", "b").by(MALLORY).with(id, BOB).encrypted_by("PHONE");
        assert_eq!(world.receive(&[lie]), ["?mallory/b: malformed: `member.user_id`"]);
        assert_eq!(world.members(), ["bob/b"]);
    }
}

/// The membership was encrypted by a device that it does not name.
#[test]
fn another_devices_id_makes_no_member() {
    let mut world = bob_is_there();
    let lie = join("$lie", "c").by(BOB).encrypted_by("PHONE").with("/member/device_id", "TABLET");
    assert_eq!(world.receive(&[lie]), ["?bob/c: malformed: `member.device_id`"]);
    assert_eq!(world.members(), ["bob/b"]);
}

#[test]
fn a_claimed_device_hides_nobody_whoever_claims_it() {
    let mut world = World::new();
    world.slot(&open_slot());
    world.receive(&[join("$1", "a"), join("$2", "b").at(1), join("$3", "c").by(MALLORY)]);
    assert_eq!(world.members(), ["alice/a", "alice/b", "mallory/c"]);
}

#[test]
fn a_device_that_proves_nothing_hides_nobody() {
    let mut world = World::encrypted();
    let unproven = |event_id: &str, member_id: &str| {
        join(event_id, member_id).encrypted_by("PHONE").verification(Verification::Unproven)
    };
    world.receive(&[unproven("$1", "a"), unproven("$2", "b").at(1)]);
    assert_eq!(world.members(), ["alice/a", "alice/b"]);
}

/// The later membership counts.
#[test]
fn devices_with_one_member_id_share_a_key() {
    let mut world = World::encrypted();
    world.receive(&[join("$1", "a").encrypted_by("PHONE")]);
    world.receive(&[join("$2", "a").at(1).encrypted_by("TABLET")]);
    let devices: Vec<_> =
        world.call().members().map(|it| it.device().unwrap().device_id.to_string()).collect();
    assert_eq!(devices, ["TABLET"]);
}

#[test]
fn two_users_with_one_member_id_are_two() {
    let mut world = World::new();
    world.receive(&[join("$1", "a"), join("$2", "a").by(BOB)]);
    assert_eq!(world.members(), ["alice/a", "bob/a"]);
}

/// However many they send, they hide nobody.
#[test]
fn a_user_has_the_maps_quota_of_members() {
    let mut world = World::new();
    let flood: Vec<_> =
        (0..1_500).map(|n| join(&format!("${n}"), &n.to_string()).by(MALLORY)).collect();
    world.receive(&flood);
    world.receive(&[join("$bob", "b").by(BOB)]);
    let members = world.members();
    assert_eq!(members.len(), 1_001);
    assert!(members.contains(&"bob/b".to_owned()));
}

#[test]
fn transports_are_read_up_to_4_kb() {
    let transports = |count: usize| -> Vec<_> {
        (0..count).map(|n| json!({ "type": "x".repeat(20), "n": n })).collect()
    };
    let mut world = World::new();
    world.receive(&[join("$1", "a").with("/transports/published", transports(90))]);
    let call = world.call();
    let member = call.members().next().unwrap();
    assert_eq!(member.transports().published.len(), 90);
    assert_eq!(member.transports().published[89].fields()["n"], 89);
    let more = join("$2", "b").with("/transports/published", transports(120));
    assert_eq!(world.receive(&[more]), ["?alice/b: malformed: `transports`"]);
}

#[test]
fn long_fields_are_malformed() {
    let long = "x".repeat(256);
    for (pointer, field) in [
        ("/slot_id", "slot_id"),
        ("/member/device_id", "member.device_id"),
        ("/application/type", "application.type"),
    ] {
        let mut world = World::new();
        let told = world.receive(&[join("$1", "a").with(pointer, &*long)]);
        let told = told.join(" ");
        assert!(told.ends_with(&format!("?alice/a: malformed: `{field}`")), "{told}");
    }
    let mut world = World::new();
    let told = world.receive(&[join("$1", &long)]);
    assert_eq!(told, ["?alice/?: malformed: `member.id`"]);
    let application = json!({ "type": "m.call", "x": "y".repeat(4_096) });
    let told = world.receive(&[join("$2", "b").with("/application", application)]);
    assert_eq!(told, ["?alice/b: malformed: `application`"]);
    // What means nothing here may be as long as it likes.
    let told = world.receive(&[join("$3", "c").with("/x", "y".repeat(10_000))]);
    assert_eq!(told, ["+alice/c"]);

    let mut content = call_member("X");
    content["x"] = json!("y".repeat(4_096));
    let told = world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &content);
    assert_eq!(told, ["?bob/@bob:hs:X: malformed: `content`"]);
}

#[test]
fn another_application_than_the_slots_is_refused() {
    let mut world = World::new();
    world.slot(&open_slot());
    let other = join("$1", "a").with("/application/type", "m.game");
    assert_eq!(world.receive(&[other]), ["?alice/a: other application"]);
    let element_call = sent("$2", element_call(ALICE, "b")).with("/application/type", "m.game");
    assert_eq!(world.receive(&[element_call]), ["?alice/b: other application"]);
}

/// If it takes over their state key, their membership ends.
#[test]
fn a_state_event_in_anothers_name_is_refused() {
    let mut world = World::new();
    world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    assert_eq!(world.members(), ["bob/@bob:hs:X"]);
    // The server let it: then the owner's event is there no more.
    let told = world.state(CALL_MEMBER, "_@bob:hs_X", MALLORY, &call_member("X"));
    assert_eq!(told, ["-bob/@bob:hs:X: left", "?mallory/@mallory:hs:X: malformed: `state_key`"]);
    assert_eq!(world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X")).len(), 2);
    assert_eq!(world.members(), ["bob/@bob:hs:X"]);
}

/// The stable spelling of the key is enough.
#[test]
fn an_event_without_a_key_is_refused() {
    let mut world = World::new();
    let unkeyed = join("$1", "a").without("/sticky_key").without("/msc4354_sticky_key");
    assert_eq!(world.receive(&[unkeyed]), ["?alice/a: malformed: `sticky_key`"]);
    assert_eq!(world.receive(&[join("$2", "b").without("/msc4354_sticky_key")]), ["+alice/b"]);
    let other_key = join("$3", "c").with("/msc4354_sticky_key", "d");
    assert_eq!(world.receive(&[other_key]), ["?alice/c: malformed: `member.id`"]);
}

/// Who is a member again.
#[test]
fn a_state_key_falls_back_to_its_owner() {
    let mut world = World::new();
    let bobs = state_event("$bob", CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    world.state_again(&bobs);
    world.state(CALL_MEMBER, "_@bob:hs_X", MALLORY, &call_member("X"));
    assert_eq!(world.members(), [""; 0]);
    // Servers resolve the room's state anew: the very same event counts again.
    world.state_again(&bobs);
    assert_eq!(world.members(), ["bob/@bob:hs:X"]);
    assert_eq!(world.candidates(), [""; 0], "of mallory nothing is left to tell");
}

/// Another event had ended the membership in between.
#[test]
fn a_repeated_state_event_brings_back_its_member() {
    let mut world = World::new();
    let bobs = state_event("$bob", CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    world.state_again(&bobs);
    let left = state_event("$left", CALL_MEMBER, "_@bob:hs_X", BOB, &json!({}));
    assert_eq!(world.state_again(&left), ["-bob/@bob:hs:X: left"]);
    assert_eq!(world.state_again(&left), [""; 0]);
    assert_eq!(world.state_again(&bobs), ["+bob/@bob:hs:X"]);
    assert_eq!(world.state_again(&bobs), [""; 0]);
}

#[test]
fn a_redacted_state_membership_has_left() {
    let mut world = World::new();
    let of = |content| state_event("$bob", CALL_MEMBER, "_@bob:hs_X", BOB, &content);
    world.state_again(&of(call_member("X")));
    // A server gives what is left of it, under the same id.
    assert_eq!(world.state_again(&of(json!({}))), ["-bob/@bob:hs:X: redacted"]);
    assert_eq!(world.state_again(&of(json!({}))), [""; 0]);
    assert_eq!(world.candidates(), ["bob/@bob:hs:X: redacted"]);
    world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    assert_eq!(world.members(), ["bob/@bob:hs:X"]);
}

#[test]
fn a_state_event_needs_no_valid_time() {
    for odd in [json!(-1), json!(1.5), json!("x"), json!(null)] {
        let mut world = World::new();
        world.slot(&open_slot());
        world.receive(&[join("$1", "a")]);
        let closed = json!({ "status": "closed" });
        let text = state_event("$s", "org.matrix.msc4143.rtc.slot", ROOM_CALL, ALICE, &closed);
        let mut event: Value = serde_json::from_str(&text).unwrap();
        event["origin_server_ts"] = odd;
        world.state_again(&event.to_string());
        assert_eq!(world.candidates(), ["alice/a: slot closed"]);
    }
}

/// As many as the map keeps of a sender.
#[test]
fn a_user_has_1000_memberships_in_the_state() {
    let mut world = World::new();
    let now = world.clock.now();
    for n in 0..1_500 {
        let (event_id, key) = (format!("$m{n}"), format!("_{MALLORY}_{n}"));
        let text = state_event(&event_id, CALL_MEMBER, &key, MALLORY, &call_member("X"));
        world.roster.handle_state_event(now, &text);
    }
    world.poll();
    world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    assert_eq!(world.members().len(), 1_001);
    assert!(world.members().contains(&"bob/@bob:hs:X".to_owned()));
    // One that is given up makes room for another.
    let key = format!("_{MALLORY}_0");
    world.state(CALL_MEMBER, &key, MALLORY, &json!({}));
    let another = format!("_{MALLORY}_another");
    world.state(CALL_MEMBER, &another, MALLORY, &call_member("X"));
    world.state(CALL_MEMBER, &key, MALLORY, &call_member("X"));
    assert_eq!(world.members().len(), 1_001);
}

/// However many there are, one of them counts.
#[test]
fn one_more_member_of_a_device_changes_two() {
    let mut world = World::new();
    let join = |n: u64| {
        let sent = join(&format!("${n}"), &format!("{n:04}")).by(MALLORY);
        sent.at(n).encrypted_by("PHONE")
    };
    let flood: Vec<_> = (0..998).map(join).collect();
    world.receive(&flood);
    assert_eq!(world.members(), ["mallory/0997"]);
    assert_eq!(world.receive(&[join(998)]), ["-mallory/0997: superseded by 0998", "+mallory/0998"]);
    let gone = leave("$leave", "0500").by(MALLORY).at(999);
    assert_eq!(
        world.receive(&[gone]),
        ["?mallory/0499: superseded by 0501", "?mallory/0500: left"]
    );
}
