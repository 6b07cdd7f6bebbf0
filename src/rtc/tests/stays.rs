//! Who was out of the room after their membership, as far as the room's state says so.

use super::*;
use crate::rtc::stay::Undecided;

/// A user's `m.room.member` event, so many seconds after the start.
struct StayEvent(Value);

fn stay(event_id: &str, membership: &str, at: u64) -> StayEvent {
    let content = json!({ "membership": membership });
    let text = state_event(event_id, "m.room.member", ALICE, ALICE, &content);
    let mut event: Value = serde_json::from_str(&text).unwrap();
    event["origin_server_ts"] = json!(START_MS + at * 1_000);
    StayEvent(event)
}

impl StayEvent {
    fn by(mut self, sender: &str) -> Self {
        self.0["sender"] = json!(sender);
        self
    }

    /// With what was there before, as a server tells it.
    fn after(mut self, membership: &str) -> Self {
        self.0["unsigned"]["prev_content"] = json!({ "membership": membership });
        self
    }

    /// With the id of what was there before, as a server tells it.
    fn replaces(mut self, event_id: &str) -> Self {
        self.0["unsigned"]["replaces_state"] = json!(event_id);
        self
    }

    fn text(&self) -> String {
        self.0.to_string()
    }
}

impl World {
    fn stays(&mut self, event: &StayEvent) -> Vec<String> {
        self.state_again(&event.text())
    }

    fn undecided(&self) -> Option<Undecided> {
        self.roster.undecided(&UserId::parse(ALICE).unwrap())
    }

    /// Alice was out of the room for the last time until this second, or never.
    fn decided(&mut self, out_until: Option<u64>) -> Vec<String> {
        let out_until_ms = out_until.map(|at| START_MS + at * 1_000);
        self.roster.handle_decided(&UserId::parse(ALICE).unwrap(), out_until_ms);
        self.poll()
    }
}

/// Alice is in the call since second 10.
fn joined() -> World {
    let mut world = World::new();
    world.receive(&[join("$join", "a").at(10)]);
    world.stays(&stay("$in", "join", 0).after("invite"));
    assert_eq!(world.members(), ["alice/a"]);
    world
}

#[test]
fn coming_back_to_the_room_revives_no_membership() {
    for (kicker, left) in
        [(ALICE, "leave"), (BOB, "leave"), (BOB, "ban"), ("@mod:elsewhere", "ban")]
    {
        let mut world = joined();
        let out = stay("$out", left, 20).by(kicker);
        assert_eq!(world.stays(&out), ["-alice/a: not in room"]);
        assert_eq!(world.stays(&stay("$back", "join", 30).after(left)), [""; 0]);
        assert_eq!(world.candidates(), ["alice/a: not in room"], "{kicker} {left}");
        // A membership that she sends from now on counts, under the same key too.
        assert_eq!(world.receive(&[join("$again", "a").at(31)]), ["+alice/a"]);
    }
}

#[test]
fn a_fresh_observer_sees_the_same() {
    let mut world = World::new();
    world.stays(&stay("$in", "join", 0));
    world.receive(&[join("$join", "a").at(10), join("$later", "b").at(40)]);
    assert_eq!(world.stays(&stay("$back", "join", 30).after("ban")), ["-alice/a: not in room"]);
    assert_eq!(world.members(), ["alice/b"]);
    // An earlier event of hers that comes late does not count either.
    assert_eq!(world.receive(&[join("$late", "c").at(20)]), ["?alice/c: not in room"]);
}

#[test]
fn a_change_of_name_is_no_joining() {
    let mut world = joined();
    assert_eq!(world.stays(&stay("$renamed", "join", 20).after("join")), [""; 0]);
    assert_eq!(world.members(), ["alice/a"]);
    // It makes no joining undone either.
    world.stays(&stay("$back", "join", 30).after("leave"));
    assert_eq!(world.stays(&stay("$renamed-again", "join", 40).after("join")), [""; 0]);
    assert_eq!(world.candidates(), ["alice/a: not in room"]);
}

#[test]
fn where_the_state_cannot_tell_a_membership_counts() {
    let mut world = joined();
    for (event_id, at) in [("$1", 20), ("$2", 30)] {
        assert_eq!(world.stays(&stay(event_id, "join", at)), [""; 0]);
    }
    // Nor is it a joining to the roster that the two servers' clocks differ.
    assert_eq!(world.stays(&stay("$kick", "leave", 1_000).by("@mod:elsewhere")).len(), 1);
    assert_eq!(world.stays(&stay("$back", "join", 40)), ["+alice/a"]);
    assert_eq!(world.undecided(), None);
}

#[test]
fn a_leave_by_their_server_is_enough() {
    let mut world = joined();
    world.stays(&stay("$out", "leave", 20));
    // A gap swallowed the joining, and this change of name alone came through.
    world.stays(&stay("$renamed", "join", 40).after("join"));
    assert_eq!(world.candidates(), ["alice/a: not in room"]);
    assert_eq!(world.receive(&[join("$again", "a").at(31)]), ["+alice/a"]);
}

#[test]
fn a_membership_right_after_the_joining_counts() {
    let mut world = World::new();
    world.stays(&stay("$in", "join", 10).after("leave"));
    // Two workers of one server, whose clocks differ a little.
    assert_eq!(world.receive(&[join("$join", "a").at(9)]), ["+alice/a"]);
    world.stays(&stay("$in", "join", 10).after("leave"));
    assert_eq!(world.members(), ["alice/a"]);
}

#[test]
fn only_a_deciding_event_is_asked_for() {
    let mut world = joined();
    assert_eq!(world.roster.poll_unknown(), [ALICE; 0]);
    assert_eq!(world.stays(&stay("$back", "join", 30).replaces("$before")), [""; 0]);
    let undecided = world.undecided().unwrap();
    assert_eq!(undecided.before, "$before");
    assert_eq!(world.decided(None), [""; 0]);
    assert_eq!(world.undecided(), None);
    // The same event says nothing new.
    world.stays(&stay("$back", "join", 30).replaces("$before"));
    assert_eq!(world.undecided(), None);

    let mut world = World::new();
    world.receive(&[join("$join", "a").at(31)]);
    world.stays(&stay("$back", "join", 30).replaces("$before"));
    assert_eq!(world.undecided(), None, "the membership is later");
    world.roster.poll_unknown();
    // An earlier one that comes late is a reason to ask.
    world.receive(&[join("$late", "b").at(10)]);
    assert_eq!(world.roster.poll_unknown(), [ALICE]);
    assert_eq!(world.undecided().unwrap().before, "$before");
    assert_eq!(world.decided(Some(30)), ["-alice/b: not in room"]);
    assert_eq!(world.members(), ["alice/a"]);
}

/// If its predecessor is known.
#[test]
fn a_change_of_name_decides_nothing() {
    let mut world = joined();
    world.stays(&stay("$renamed", "join", 30).after("join").replaces("$in"));
    assert_eq!(world.undecided(), None);
    // Something between the two was missed: it may have been a leave.
    world.stays(&stay("$again", "join", 50).after("join").replaces("$missed"));
    assert_eq!(world.undecided().unwrap().before, "$missed");
    // What is open stays open with the next change of name.
    world.stays(&stay("$once-more", "join", 60).after("join").replaces("$again"));
    assert_eq!(world.undecided().unwrap().before, "$missed");
    assert_eq!(world.decided(Some(40)), ["-alice/a: not in room"]);
}

#[test]
fn a_doubted_joining_keeps_its_time() {
    let mut world = joined();
    world.stays(&stay("$out", "leave", 20).by("@mod:elsewhere"));
    let back = stay("$back", "join", 30).after("leave").text();
    let now = world.clock.now();
    assert_eq!(world.roster.handle_late_state_event(now, &back).unwrap(), ALICE);
    assert_eq!(world.poll(), [""; 0]);
    // The server has a change of name by then, and says no more of it.
    assert_eq!(world.stays(&stay("$renamed", "join", 40).after("join")), [""; 0]);
    assert_eq!(world.candidates(), ["alice/a: not in room"]);
}

#[test]
fn the_predecessor_decides_or_names_another() {
    let mut world = joined();
    world.stays(&stay("$back", "join", 30).replaces("$before"));
    let undecided = world.undecided().unwrap();
    let decide = |before: StayEvent| {
        let alice = UserId::parse(ALICE).unwrap();
        undecided.decide(&Roster::told_of(&alice, &before.text()).unwrap())
    };
    let at = |seconds: u64| Ok(Some(START_MS + seconds * 1_000));
    assert_eq!(decide(stay("$before", "leave", 20)), at(30));
    assert_eq!(decide(stay("$before", "invite", 20).by(BOB)), at(30));
    assert_eq!(decide(stay("$before", "join", 20).after("ban")), at(20));
    assert_eq!(decide(stay("$before", "join", 20).after("join")), Ok(None));
    let renamed = stay("$before", "join", 20).after("join").replaces("$earlier");
    assert_eq!(decide(renamed).unwrap_err().before, "$earlier");
    assert_eq!(decide(stay("$before", "join", 20)), Ok(None));
    let earlier = decide(stay("$before", "join", 20).replaces("$earlier")).unwrap_err();
    assert_eq!(earlier.before, "$earlier");
    // It says nothing of another user.
    let bob = UserId::parse(BOB).unwrap();
    assert!(Roster::told_of(&bob, &stay("$before", "leave", 20).text()).is_none());
}

#[test]
fn state_memberships_end_with_the_stay() {
    let mut world = World::new();
    world.state(CALL_MEMBER, "_@alice:hs_PHONE", ALICE, &call_member("PHONE"));
    assert_eq!(world.members(), ["alice/@alice:hs:PHONE"]);
    world.stays(&stay("$back", "join", 30).after("leave"));
    assert_eq!(world.candidates(), ["alice/@alice:hs:PHONE: not in room"]);
}

#[test]
fn only_those_who_are_held_back_wait() {
    let mut world = World::new();
    world.receive(&[join("$bob", "b").by(BOB)]);
    let alice = UserId::parse(ALICE).unwrap();
    world.roster.hold_back(alice.clone());
    assert_eq!(world.receive(&[join("$alice", "a")]), [""; 0]);
    assert_eq!(world.receive(&[leave("$left", "b").by(BOB)]), ["-bob/b: left"]);
    assert_eq!(world.slot(&open_slot()), ["open"]);
    assert_eq!(world.members(), [""; 0]);
    world.in_room(ALICE, "join");
    world.roster.release(&alice);
    assert_eq!(world.poll(), ["+alice/a"]);
}

#[test]
fn leftovers_of_this_device_are_known() {
    let mut world = World::encrypted();
    let [alice, bob] = [ALICE, BOB].map(|it| UserId::parse(it).unwrap());
    let of = |member_id: &str, device_id: &str| {
        join(&format!("${member_id}"), member_id).at(10).encrypted_by(device_id)
    };
    world.receive(&[of("ours", "PHONE"), of("laptops", "LAPTOP"), of("bobs", "PHONE").by(BOB)]);
    world.receive(&[of("left", "PHONE"), leave("$left-by", "left").at(11).encrypted_by("PHONE")]);
    let leftovers = |world: &World, user_id: &UserId| {
        let leftovers = world.roster.leftovers(user_id, "PHONE".into());
        leftovers.map(|it| it.member_id).collect::<Vec<_>>()
    };
    world.stays(&stay("$in", "join", 0).after("invite"));
    assert_eq!(leftovers(&world, &alice), [""; 0]);
    world.stays(&stay("$out", "leave", 20));
    assert_eq!(leftovers(&world, &alice), [""; 0], "nobody may send while out of the room");
    world.stays(&stay("$back", "join", 30).after("leave"));
    assert_eq!(leftovers(&world, &alice), ["ours"]);
    assert_eq!(leftovers(&world, &bob), [""; 0]);
    // What it has sent since is no leftover.
    world.receive(&[join("$again", "ours").at(40).encrypted_by("PHONE")]);
    assert_eq!(leftovers(&world, &alice), [""; 0]);
}
