//! In which order things come makes no difference to who is there.

use proptest::prelude::*;

use super::*;

/// One thing that comes.
#[derive(Clone, Debug)]
enum Arrives {
    Membership(Sent),
    Slot(Value),
    InRoom(&'static str, &'static str),
    Encryption,
}

fn memberships() -> Vec<Sent> {
    vec![
        join("$1", "a").encrypted_by("PHONE"),
        join("$2", "a").at(3).encrypted_by("PHONE"),
        join("$3", "c").at(1).encrypted_by("PHONE"),
        join("$4", "b").by(BOB).at(2),
        join("$5", "d").by(BOB).at(4).encrypted_by("TABLET"),
        sent("$6", element_call(BOB, "e")).by(BOB).at(5).encrypted_by("TABLET"),
        leave("$7", "c").at(6),
        sent("$8", msc4143("f")).at(7).encrypted_by("DESK"),
        sent("$9", rtc_transports(ALICE, "g")).at(8).encrypted_by("PHONE"),
        join("$10", "h").at(9).with("/member/id", 5).encrypted_by("DESK"),
        join("$11", "i").at(9).in_slot("m.call#other").encrypted_by("DESK"),
    ]
}

/// Everything that ends the same, whichever comes first: of a kind of state there is one.
fn all() -> Vec<Arrives> {
    let mut all: Vec<_> = memberships().into_iter().map(Arrives::Membership).collect();
    all.extend([
        Arrives::Slot(open_slot()),
        Arrives::InRoom(BOB, "join"),
        Arrives::InRoom(ALICE, "join"),
        Arrives::Encryption,
    ]);
    all
}

fn play(all: &[Arrives]) -> World {
    let mut world = World::new();
    for arrives in all {
        match arrives {
            Arrives::Membership(sent) => _ = world.receive([sent]),
            Arrives::Slot(content) => _ = world.slot(content),
            Arrives::InRoom(user_id, membership) => _ = world.in_room(user_id, membership),
            Arrives::Encryption => _ = world.encryption(true),
        }
    }
    world
}

/// Who is there and who is not, in all sessions.
fn seen(world: &World) -> Vec<String> {
    let snapshot = world.snapshot();
    let mut seen = Vec::new();
    for session in snapshot.sessions() {
        seen.extend(session.members().map(|it| format!("{}: {}", session.slot_id(), who(it))));
        seen.extend(
            session.candidates().map(|it| format!("{}: {}", session.slot_id(), candidate(it))),
        );
    }
    seen
}

proptest! {
    #[test]
    fn the_order_of_arrival_makes_no_difference(
        shuffled in Just(all()).prop_shuffle(),
        repeats in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut arrives = shuffled;
        for repeat in repeats {
            let again = repeat.get(&arrives).clone();
            arrives.push(again);
        }
        let world = play(&arrives);
        prop_assert_eq!(seen(&world), seen(&play(&all())));
    }

    #[test]
    fn changes_and_snapshot_always_agree(
        steps in proptest::collection::vec((any::<prop::sample::Index>(), 0..9_u8), 1..60),
    ) {
        let memberships = memberships();
        // Each step compares what was told with what is shown, and looks for what was left behind.
        let mut world = World::new();
        for (which, kind) in steps {
            let sent = which.get(&memberships);
            match kind {
                0..=2 => _ = world.receive([sent]),
                3 => _ = world.redact(&sent.event_id),
                4 => _ = world.slot(&json!({ "status": which.index(2) })),
                5 => _ = world.slot(&open_slot()),
                6 => _ = world.in_room(&sent.by, if which.index(2) == 0 { "leave" } else { "join" }),
                7 => _ = world.pass(600),
                _ => {
                    let state_key = format!("_{}_X", sent.by);
                    let content = if which.index(2) == 0 { json!({}) } else { call_member("X") };
                    world.state(CALL_MEMBER, &state_key, &sent.by, &content);
                }
            }
        }
    }
}
