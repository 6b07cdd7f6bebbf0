//! The forms that are out there, and what each says.

use super::*;
use crate::rtc::{ClosedBy, Dialect, MembershipForm};

fn form_of(content: Value) -> MembershipForm {
    let mut world = World::new();
    world.slot(&open_slot());
    world.receive(&[sent("$1", content)]);
    let call = world.call();
    let member = call.members().next().expect("a member");
    assert_eq!((member.member_id(), member.slot_id()), ("a", ROOM_CALL));
    assert_eq!(member.application().application_type, "m.call");
    member.form()
}

#[test]
fn each_form_is_told_by_what_it_has() {
    assert_eq!(form_of(msc4143("a")), MembershipForm::Msc4143);
    assert_eq!(form_of(both(ALICE, "a")), MembershipForm::Both);
    assert_eq!(form_of(element_call(ALICE, "a")), MembershipForm::ElementCall);
    assert_eq!(form_of(rtc_transports(ALICE, "a")), MembershipForm::RtcTransports);
}

/// With its device and its transports.
#[test]
fn the_older_sticky_form_is_read() {
    let mut world = World::new();
    world.receive(&[sent("$1", rtc_transports(ALICE, "a"))]);
    let call = world.call();
    let member = call.members().next().unwrap();
    assert_eq!(member.device().unwrap().device_id.as_str(), "PHONE");
    assert!(!member.device().unwrap().is_proven());
    assert_eq!(member.transports().published[0].transport_type(), "livekit_multi_sfu");
}

#[test]
fn a_state_membership_has_its_own_times() {
    let mut world = World::new();
    let mut content = call_member("X");
    content["created_ts"] = json!(START_MS - 1_000_000);
    content["com.example.hand"] = json!(true);
    world.state(CALL_MEMBER, "_@bob:hs_X_m.call", BOB, &content);
    let call = world.call();
    let member = call.members().next().unwrap();
    assert_eq!(
        (member.form(), member.since_ms()),
        (MembershipForm::CallMember, START_MS - 1_000_000)
    );
    assert_eq!(member.intent(), Some("audio"));
    assert_eq!(member.application().fields["com.example.hand"], true);
    assert_eq!(member.expires_in(world.clock.now()), secs(2_600));
    assert_eq!(world.pass(2_599), [""; 0]);
    assert_eq!(world.pass(1), ["-bob/@bob:hs:X: expired"]);
    // It stands there still, and says why.
    world.pass(100_000);
    assert_eq!(world.candidates(), ["bob/@bob:hs:X: expired"]);
    assert_eq!(world.state(CALL_MEMBER, "_@bob:hs_X_m.call", BOB, &json!({})).len(), 1);
}

#[test]
fn encrypted_rooms_have_no_members_in_the_state() {
    let mut world = World::encrypted();
    let told = world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    assert_eq!(told, ["?bob/@bob:hs:X: not encrypted"]);
}

#[test]
fn an_empty_membership_in_the_state_is_nobody() {
    let mut world = World::new();
    assert_eq!(world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &json!({})), [""; 0]);
    world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    assert_eq!(world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &json!({})), ["-bob/@bob:hs:X: left"]);
}

#[test]
fn both_names_of_the_call_are_one_session() {
    let mut world = World::new();
    world.receive(&[join("$1", "a"), join("$2", "b").by(BOB).in_slot("m.call#room")]);
    assert_eq!(world.members(), ["alice/a", "bob/b"]);
    assert_eq!(world.snapshot().session("m.call#room").len(), 2);
    assert_eq!(world.snapshot().sessions().count(), 1);
}

/// Without members, the slot does.
#[test]
fn the_members_decide_the_dialect() {
    let dialect = |contents: &[Value], slot: Option<Value>| {
        let mut world = World::new();
        if let Some(slot) = slot {
            world.slot(&slot);
        }
        let sent: Vec<_> = contents
            .iter()
            .enumerate()
            .map(|(n, content)| sent(&format!("${n}"), content.clone()))
            .collect();
        world.receive(&sent);
        world.call().dialect()
    };
    let open = || Some(open_slot());
    assert_eq!(dialect(&[], None), Dialect::ElementCall);
    assert_eq!(dialect(&[], open()), Dialect::Msc4143);
    assert_eq!(dialect(&[msc4143("a")], open()), Dialect::Msc4143);
    assert_eq!(dialect(&[element_call(ALICE, "a")], open()), Dialect::ElementCall);
    assert_eq!(dialect(&[msc4143("a"), element_call(ALICE, "b")], open()), Dialect::ElementCall);
    assert_eq!(dialect(&[both(ALICE, "a")], open()), Dialect::Msc4143);
    assert_eq!(dialect(&[both(ALICE, "a")], None), Dialect::ElementCall);
}

#[test]
fn each_dialect_has_rules_for_open_slots() {
    let mut world = World::new();
    assert_eq!(world.call().is_open_to(Dialect::Msc4143), Err(ClosedBy::Missing));
    assert_eq!(world.call().is_open_to(Dialect::ElementCall), Ok(()));
    world.slot(&json!({ "status": "closed" }));
    assert_eq!(world.call().is_open_to(Dialect::Msc4143), Err(ClosedBy::Status));
    assert_eq!(world.call().is_open_to(Dialect::ElementCall), Err(ClosedBy::Status));
    world.slot(&open_slot());
    assert_eq!(world.call().is_open_to(Dialect::Msc4143), Ok(()));
}

#[test]
fn the_unstable_spelling_of_a_slot_counts() {
    let mut world = World::new();
    world.state("m.rtc.slot", ROOM_CALL, ALICE, &json!({ "status": "closed" }));
    assert_eq!(world.call().closed_by(), Some(ClosedBy::Status));
    world.slot(&open_slot());
    assert_eq!(world.call().closed_by(), None);
}

#[test]
fn since_is_the_first_join_after_a_leave() {
    let mut world = World::new();
    let since = |world: &World| world.call().members().next().unwrap().since_ms() - START_MS;
    world.receive(&[join("$1", "a").at(5)]);
    world.receive(&[join("$2", "a").at(60)]);
    assert_eq!(since(&world), 5_000);
    world.receive(&[leave("$3", "a").at(70)]);
    world.receive(&[join("$4", "a").at(80)]);
    assert_eq!(since(&world), 80_000);
}

#[test]
fn a_membership_without_a_slot_is_a_stray() {
    let mut world = World::new();
    world.receive(&[join("$1", "a").without("/slot_id")]);
    assert_eq!(world.snapshot().sessions().count(), 0);
    let reasons: Vec<_> = world.snapshot().strays().map(|it| it.reason.clone()).collect();
    assert_eq!(reasons, [NotJoined::Malformed("slot_id")]);
}

#[test]
fn the_stable_type_is_read_too() {
    let mut world = World::new();
    assert_eq!(world.receive(&[join("$1", "a").of_type("m.rtc.member")]), ["+alice/a"]);
}

#[test]
fn what_matrix_js_sdk_refuses_is_msc4143_alone() {
    let refused = |refused: Sent, field: &str| {
        let mut world = World::new();
        world.receive([&refused]);
        assert_eq!(world.members(), [""; 0], "{refused:?}");
        world.slot(&open_slot());
        let mut js = refused;
        set(&mut js.content, "/member/membership", None);
        js.event_id = "$js".to_owned();
        js.at_ms += 1_000;
        world.receive(&[js]);
        let malformed = format!("alice/a: malformed: `{field}`");
        let of_all = world.snapshot();
        let all: Vec<_> = of_all.sessions().collect();
        let seen: Vec<_> =
            all.iter().flat_map(SessionSnapshot::candidates).map(candidate).collect();
        assert_eq!(seen, [malformed]);
    };
    refused(join("$1", "a").in_slot("m.call#a#b"), "slot_id");
    refused(join("$1", "a").with("/sticky_key", "b"), "sticky_key");
    refused(join("$1", "a").with("/sticky_key", 1), "sticky_key");
    for odd in [json!(1), json!({}), json!({ "rel_type": "m.thread", "event_id": "$x" })] {
        refused(join("$1", "a").with("/m.relates_to", odd), "m.relates_to");
    }
    let related = json!({ "rel_type": "m.reference", "event_id": "$x" });
    assert_eq!(
        form_of(join("$1", "a").with("/m.relates_to", related).content),
        MembershipForm::Both
    );
}

/// In each form.
#[test]
fn members_are_found_by_user_and_id() {
    let mut world = World::new();
    world.receive(&[join("$1", "a"), join("$2", "a").by(BOB), join("$3", "").by(BOB)]);
    world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &call_member("X"));
    let call = world.call();
    let found = |user_id: &str, member_id| {
        call.member(&UserId::parse(user_id).unwrap(), member_id).map(who)
    };
    assert_eq!(found(ALICE, "a").as_deref(), Some("alice/a"));
    assert_eq!(found(BOB, "a").as_deref(), Some("bob/a"));
    assert_eq!(found(BOB, "").as_deref(), Some("bob/"));
    assert_eq!(found(BOB, "@bob:hs:X").as_deref(), Some("bob/@bob:hs:X"));
    assert_eq!(
        (found(ALICE, "b"), found("@carol:hs", "a"), found("@aa:hs", "a")),
        (None, None, None)
    );
}

/// If none is open, the slot of the newer name is.
#[test]
fn the_calls_open_slot_is_shown() {
    let mut world = World::new();
    let closed = json!({ "status": "closed" });
    let shown = |world: &World| {
        world.snapshot().session("m.call#room").slot().map(|slot| slot.id().to_owned())
    };
    assert_eq!(world.slot_of("m.call#room", &open_slot()), ["open"]);
    assert_eq!(shown(&world).as_deref(), Some("m.call#room"));
    assert_eq!(world.slot(&closed), ["open"], "there is another one now");
    assert_eq!(shown(&world).as_deref(), Some("m.call#room"));
    assert_eq!(world.slot_of("m.call#room", &closed), ["closed: Status"]);
    assert_eq!(shown(&world).as_deref(), Some(ROOM_CALL));
    assert_eq!(world.slot(&open_slot()), ["open"]);
    assert_eq!(world.slot_of("m.call#room", &open_slot()), ["open"]);
    assert_eq!(shown(&world).as_deref(), Some(ROOM_CALL));
}

/// It takes the older one if that alone is open.
#[test]
fn element_call_prefers_the_newer_name() {
    let closed = json!({ "status": "closed" });
    let (old, new) = ("m.call#room", ROOM_CALL);
    let cases = [
        // The state of the newer, and of the older: where either dialect's membership would be.
        (None, None, new, new),
        (None, Some(open_slot()), old, new),
        (None, Some(closed.clone()), old, new),
        (Some(open_slot()), Some(open_slot()), new, new),
        (Some(closed.clone()), Some(open_slot()), old, old),
        (Some(closed.clone()), Some(closed.clone()), new, new),
        (Some(open_slot()), Some(closed), new, new),
    ];
    for (newer, older, msc4143, element_call) in cases {
        let mut world = World::new();
        for (slot_id, content) in [(new, &newer), (old, &older)] {
            if let Some(content) = content {
                world.slot_of(slot_id, content);
            }
        }
        let session = world.snapshot().session(old);
        let slots = [Dialect::Msc4143, Dialect::ElementCall].map(|it| session.slot_for(it));
        assert_eq!(slots, [msc4143, element_call], "{newer:?} {older:?}");
    }
}

/// Those of slots, and of memberships in the state.
#[test]
fn a_roster_holds_its_state_events() {
    let mut world = World::new();
    let holds = |world: &World, id: &str| world.roster.holds(id.try_into().unwrap());
    let state = |world: &mut World, id: &str, kind: &str, key: &str, content: &Value| {
        world.state_again(&state_event(id, kind, key, ALICE, content));
    };
    state(&mut world, "$slot", "m.rtc.slot", ROOM_CALL, &open_slot());
    state(&mut world, "$other", "m.rtc.slot", "m.call#other", &open_slot());
    state(&mut world, "$call", CALL_MEMBER, "_@alice:hs_PHONE", &call_member("PHONE"));
    assert!(["$slot", "$other", "$call"].iter().all(|id| holds(&world, id)));
    assert!(!holds(&world, "$nobody"));
    // What has taken its place is held, and it is not any more, also where it says the same.
    state(&mut world, "$again", "m.rtc.slot", ROOM_CALL, &open_slot());
    assert!(holds(&world, "$again") && !holds(&world, "$slot"));
    world.roster.handle_room_left(world.clock.now());
    world.poll();
    assert!(!holds(&world, "$call"));
}

/// Whichever join counts.
#[test]
fn since_is_the_earliest_join_in_a_slot() {
    let mut world = World::new();
    let since = |session: SessionSnapshot| session.members().next().unwrap().since_ms() - START_MS;
    world.receive(&[join("$later", "a").at(60).lasting(60)]);
    assert_eq!(since(world.call()), 60_000);
    world.receive(&[join("$longer", "a").at(5)]);
    assert_eq!(since(world.call()), 5_000);
    world.receive(&[join("$moved", "a").at(70).in_slot("m.call#stage")]);
    assert_eq!(since(world.snapshot().session("m.call#stage")), 70_000);
}

/// The older sticky form has to have one.
#[test]
fn a_device_id_has_to_be_text() {
    let mut world = World::new();
    world.slot(&open_slot());
    let odd = sent("$1", msc4143("a")).with("/member/device_id", 5);
    let none = sent("$2", rtc_transports(ALICE, "b")).without("/member/claimed_device_id");
    world.receive(&[odd, none]);
    assert_eq!(
        world.candidates(),
        ["alice/a: malformed: `member.device_id`", "alice/b: malformed: `member.device_id`"]
    );
}

/// And no user whose name is longer.
#[test]
fn a_state_key_names_its_sender() {
    let mut world = World::new();
    for key in ["@bob:hs", "_@bob:hs", "@bob:hs_X", "_@bob:hs_X_m.call"] {
        let told = world.state(CALL_MEMBER, key, BOB, &call_member("X"));
        assert_eq!(told, ["+bob/@bob:hs:X"], "{key}");
    }
    for key in ["@bob:hs.example_X", "_@bob:hs2", "__@bob:hs", "X", ""] {
        let told = world.state(CALL_MEMBER, key, BOB, &call_member("X"));
        assert_eq!(told, ["?bob/@bob:hs:X: malformed: `state_key`"], "{key}");
    }
}

/// If it does not say for how long.
#[test]
fn a_state_membership_counts_for_four_hours() {
    let left = |created: Option<Value>, expires: Option<Value>| {
        let mut world = World::new();
        let mut content = call_member("X");
        set(&mut content, "/created_ts", created);
        set(&mut content, "/expires", expires);
        world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &content);
        let call = world.call();
        call.members().next().map(|member| member.expires_in(world.clock.now()))
    };
    assert_eq!(left(None, None), Some(secs(4 * 3_600)), "from when the server had it");
    assert_eq!(left(None, Some(json!(60_000))), Some(secs(60)));
    assert_eq!(left(Some(json!(START_MS - 60_000)), None), Some(secs(4 * 3_600 - 60)));
    // Some clients write a float.
    assert_eq!(left(None, Some(json!(60_000.5))), Some(secs(60)));
    assert_eq!(left(None, Some(json!(-1))), None);
    assert_eq!(left(None, Some(json!("x"))), None);
}

/// Of a membership in the state.
#[test]
fn the_call_id_names_the_session() {
    let mut world = World::new();
    let mut content = call_member("X");
    content["call_id"] = json!("stage");
    content["membershipID"] = json!("x-1");
    let told = world.state(CALL_MEMBER, "_@bob:hs_X", BOB, &content);
    assert_eq!(told, ["m.call#stage +bob/x-1"]);
}
