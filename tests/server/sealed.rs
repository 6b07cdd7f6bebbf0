//! What a member without any right seals and sends as an ordinary message does nothing to anybody.

use matrix_sdk::ruma::{OwnedEventId, RoomId};
use matrix_sdk_sticky::{
    StickyKey,
    heartbeat::HeartbeatState,
    rtc::{ROOM_CALL, RtcTransport, SessionChange},
};
use serde_json::{Value, json};

use crate::{
    attacker::Attacker,
    rtc::{Call, open_slot, until},
    support::{LONG, Person, TYPE, Watch, Watcher, content, eventually, status},
};

const MEMBER: &str = "org.matrix.msc4143.rtc.member";
const SLOTS: [&str; 2] = ["m.rtc.slot", "org.matrix.msc4143.rtc.slot"];
const CALL_MEMBER: &str = "org.matrix.msc3401.call.member";

/// All that could end, hide or make something of somebody else's if it were not sealed.
fn attacks(victim: &Person, target: &str) -> Vec<Value> {
    let id = victim.id();
    let state = |event_type: &str, state_key: &str, content: Value| json!({ "type": event_type, "state_key": state_key, "content": content });
    let call = json!({
        "application": "m.call",
        "call_id": "",
        "device_id": "FORGED",
        "expires": 14_400_000,
        "foci_preferred": [],
        "focus_active": { "type": "livekit", "focus_selection": "oldest_membership" },
    });
    let mut attacks = vec![
        // As in room versions before 11, and since.
        json!({ "type": "m.room.redaction", "redacts": target, "content": {} }),
        json!({ "type": "m.room.redaction", "content": { "redacts": target } }),
        // The event itself, as if it had been redacted before we saw it.
        json!({
            "type": TYPE,
            "event_id": target,
            "content": {},
            "unsigned": { "redacted_because": { "type": "m.room.redaction" } },
        }),
        state("m.room.member", id.as_str(), json!({ "membership": "leave" })),
        state("m.room.member", id.as_str(), json!({ "membership": "ban" })),
        state("m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" })),
        state(CALL_MEMBER, &format!("_{id}_FORGED_m.call"), call.clone()),
        state(CALL_MEMBER, "_@forged:localhost_FORGED_m.call", call),
        // In the name of the victim, under whichever key they have.
        json!({
            "type": MEMBER,
            "sender": id,
            "content": { "sticky_key": "forged", "member": { "id": "forged", "membership": "leave" } },
        }),
    ];
    for slot in SLOTS {
        attacks.push(state(slot, ROOM_CALL, json!({ "status": "closed" })));
        attacks.push(state(slot, ROOM_CALL, json!({})));
    }
    attacks
}

/// Shares the room key, and sends all of it, sticky and not.
async fn attack(
    mallory: &mut Attacker,
    room: &RoomId,
    victim: &Person,
    others: &[&Person],
    target: &str,
) {
    mallory.share(room, others).await;
    for object in attacks(victim, target) {
        for is_sticky in [false, true] {
            mallory.seal(room, &object, is_sticky);
        }
    }
}

/// Waits until the client has taken all that its main loop has brought until now. Its user sends an
/// entry, and redacts it.
async fn has_taken_all(person: &Person, client: &Watcher, room: &RoomId) {
    let view = client.sticky.events().of_type(TYPE).by_sender(person.id());
    let mut barrier = Watch::new(view.in_room(room));
    let event_id = person.send(room, "barrier", "", LONG);
    barrier.added("barrier").await;
    person.redact(room, &event_id);
    barrier.removed("barrier").await;
}

/// Alice, bob and mallory, who has no rights, in a room.
async fn in_a_room(is_encrypted: bool) -> (Person, Person, Attacker, Watcher, Watcher) {
    let [alice, bob, mallory] = ["alice", "bob", "mallory"].map(Person::new);
    let room = match is_encrypted {
        true => alice.encrypted_room_with(&[&bob, &mallory]),
        false => alice.room_with(&[&bob, &mallory]),
    };
    open_slot(&alice, &room, is_encrypted);
    // The device is there before, so that nobody hands over to it meanwhile.
    let mallory = Attacker::new(mallory);
    let ours = Watcher::encrypting(&alice, &[&room]).await;
    let theirs = Watcher::encrypting(&bob, &[&room]).await;
    (alice, bob, mallory, ours, theirs)
}

fn the_room(watcher: &Watcher) -> matrix_sdk::Room {
    watcher.client.joined_rooms().remove(0)
}

async fn an_entry_stays(is_encrypted: bool) {
    let (alice, bob, mut mallory, _ours, theirs) = in_a_room(is_encrypted).await;
    let room = the_room(&theirs).room_id().to_owned();
    let mut alices = Watch::new(theirs.sticky.events().of_type(TYPE).by_sender(alice.id()));
    let event_id = alice.send(&room, "k", "first", LONG);
    alices.added("k").await;
    attack(&mut mallory, &room, &alice, &[&alice, &bob], &event_id).await;
    // What is no attack arrives, so the rest could be read as well.
    let message = json!({ "type": TYPE, "content": content("k", "sealed") });
    mallory.seal(&room, &message, true);
    let key = StickyKey::new(mallory.person.id(), TYPE, "k");
    let entry = eventually("the ordinary message is there", async || {
        theirs.room(&room).get(&key).ok_or("not yet")
    });
    let entry = entry.await;
    assert_eq!((status(&entry).as_str(), entry.is_encrypted()), ("sealed", true));

    has_taken_all(&bob, &theirs, &room).await;
    alices.assert_silent();
    assert_eq!(alices.keys(), ["k"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_sealed_removes_an_entry() {
    an_entry_stays(false).await;
    an_entry_stays(true).await;
}

async fn a_call_stays(is_encrypted: bool) {
    let (alice, bob, mut mallory, ours, theirs) = in_a_room(is_encrypted).await;
    let room = the_room(&theirs).room_id().to_owned();
    let mut seen = Call::of(&theirs.room(&room).rtc()).await;
    let session = ours.room(&room).rtc().session(ROOM_CALL);
    let membership = session.join([RtcTransport::livekit("https://livekit.example.org")]).await;
    let membership = membership.unwrap();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    let before = seen.now.members().next().unwrap().clone();

    attack(&mut mallory, &room, &alice, &[&alice, &bob], &join_of(&theirs, &alice)).await;
    has_taken_all(&alice, &ours, &room).await;
    has_taken_all(&bob, &theirs, &room).await;
    // A change of the slot that the server allows is seen, after all that was sealed.
    let mut slot = json!({ "status": "open", "application": { "type": "m.call", "after": 1 } });
    if is_encrypted {
        slot["encryption"] = json!({ "type": "org.matrix.msc4143.per_member" });
    }
    alice.api.set_state(room.as_str(), SLOTS[1], ROOM_CALL, &slot).unwrap();
    seen.until("the slot has changed", |now| format!("{:?}", now.slot()).contains("after")).await;

    assert_eq!(seen.now.closed_by(), None);
    let members: Vec<_> = seen.now.members().map(|it| it.member_id()).collect();
    assert_eq!(members, [before.member_id()]);
    let left =
        seen.told().iter().filter(|change| matches!(change, SessionChange::Left { .. })).count();
    assert_eq!((left, seen.reason(&alice)), (0, None), "{:#?}", seen.told());
    assert_eq!(membership.state(), HeartbeatState::Joined);
    assert_eq!(membership.member_id(), before.member_id());
    assert_eq!(membership.leave().await, HeartbeatState::Left);
}

/// The event id of somebody's membership.
fn join_of(watcher: &Watcher, person: &Person) -> String {
    let view = watcher.sticky.events().of_type(MEMBER).by_sender(person.id());
    let ids: Vec<OwnedEventId> =
        view.snapshot().iter().map(|entry| entry.event_id().to_owned()).collect();
    let [event_id] = &*ids else { panic!("{ids:?}") };
    event_id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_sealed_changes_a_call() {
    a_call_stays(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_sealed_changes_an_encrypted_call() {
    a_call_stays(true).await;
}

#[cfg(feature = "media-keys")]
#[tokio::test(flavor = "multi_thread")]
async fn nothing_sealed_changes_media_keys() {
    use crate::keys::{Caller, any_device, know_each_other};

    let (alice, bob, mut mallory, ours, theirs) = in_a_room(true).await;
    let room = the_room(&theirs).room_id().to_owned();
    know_each_other(&[&alice, &bob], &[&ours, &theirs]).await;
    let (mut alice, mut bob) = tokio::join!(
        Caller::new(alice, ours, &room, any_device()),
        Caller::new(bob, theirs, &room, any_device()),
    );
    for caller in [&mut alice, &mut bob] {
        caller.until("its own key", |it| it.own.is_some()).await;
    }
    alice.hears(&bob).await;
    bob.hears(&alice).await;
    let target = join_of(&bob.watch, &alice.person);
    let everybody = [&alice.person, &bob.person];
    attack(&mut mallory, &room, &alice.person, &everybody, &target).await;
    has_taken_all(&alice.person, &alice.watch, &room).await;
    has_taken_all(&bob.person, &bob.watch, &room).await;
    // A key that went to nobody any more would be followed by another. Whoever comes later is seen
    // after all that was sealed, and gets a key from both.
    let carol = Person::new("carol");
    carol.join(&room);
    let carols = Watcher::encrypting(&carol, &[&room]).await;
    let people = [&alice.person, &bob.person, &carol];
    know_each_other(&people, &[&alice.watch, &bob.watch, &carols]).await;
    let mut carol = Caller::new(carol, carols, &room, any_device()).await;
    carol.until("its own key", |it| it.own.is_some()).await;
    alice.hears(&carol).await;
    bob.hears(&carol).await;
    carol.hears(&alice).await;
    carol.hears(&bob).await;
    // Neither has told its cryptor that the other was gone.
    assert!(alice.peers.contains_key(&bob.participant()) && alice.gone.is_empty());
    assert!(bob.peers.contains_key(&alice.participant()) && bob.gone.is_empty());
}
