//! Events that miss their room key.

use super::*;

#[test]
fn a_late_room_key_brings_what_waited() {
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    let outer = event("$e").encrypted("s");
    world.receive(std::slice::from_ref(&outer));
    assert_eq!(told(changes.next_now()), [""; 0]);
    assert_eq!(
        world.maps.stats(room()),
        RoomStats { events: 1, pending_decryption: 1, dropped: 0 }
    );
    let pending = world.maps.pending_decryption(room(), Some("s"));
    assert_eq!(pending.len(), 1);
    assert_eq!(needs_decryption(&world, &outer), [true]);

    let decrypted = Arrival::Decrypted {
        outer: pending[0].raw().to_owned(),
        clear: event("$e").raw(),
        encryption: Encryption::Plaintext,
    };
    world.maps.handle([world.delivery(room(), vec![decrypted])]);
    assert_eq!(told(changes.next_now()), ["+$e"]);
    assert_eq!(needs_decryption(&world, &outer), [false]);
    assert!(world.maps.pending_decryption(room(), None).is_empty());
}

fn needs_decryption(world: &World, event: &EventJson) -> Vec<bool> {
    let event = event.raw();
    world.maps.needs_decryption([(room(), &*event)])
}

#[test]
fn a_response_is_asked_about_at_once() {
    // Each event has a result of its own, in the order of the events: whether decryption can tell
    // something new about it.
    let world = World::new();
    world.receive(&[event("$known").encrypted("s")]);
    let known = Arrival::Decrypted {
        outer: event("$known").encrypted("s").raw(),
        clear: event("$known").raw(),
        encryption: Encryption::Plaintext,
    };
    world.maps.handle([world.delivery(room(), vec![known])]);
    let clear = event("$clear").raw();
    let known = event("$known").encrypted("s").raw();
    let new = event("$new").encrypted("s").raw();
    let elsewhere = room_id!("!elsewhere:hs");
    let events = [(room(), &*clear), (room(), &*new), (room(), &*known), (elsewhere, &*known)];
    assert_eq!(world.maps.needs_decryption(events), [false, true, false, true]);
    assert_eq!(world.maps.needs_decryption([(room(), &*clear)]), [false]);
    assert_eq!(world.maps.needs_decryption([]), [false; 0]);
}

#[test]
fn a_room_key_undoes_no_redaction() {
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    let outer = event("$e").encrypted("s");
    world.receive(std::slice::from_ref(&outer));
    world.redact("$e");
    world.receive(std::slice::from_ref(&outer));
    let decrypted = Arrival::Decrypted {
        outer: outer.raw(),
        clear: event("$e").raw(),
        encryption: Encryption::Plaintext,
    };
    world.maps.handle([world.delivery(room(), vec![decrypted])]);
    assert_eq!(told(changes.next_now()), [""; 0]);
    assert!(world.seen().is_empty());
}
