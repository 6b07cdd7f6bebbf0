//! Our sessions and those of Element Call: both in one room, each with its own client.
//!
//! Theirs is the real matrix-js-sdk ([`JsPeer`]).

use std::time::{Duration, Instant};

use matrix_sdk::ruma::{OwnedRoomId, RoomId};
#[cfg(feature = "media-keys")]
use matrix_sdk_sticky::rtc::keys::{DevicePolicy, KeyChange, KeyConfig};
use matrix_sdk_sticky::rtc::{
    self, ClosedBy, Dialect, MembershipForm, NotJoined, OwnMembership, ROOM_CALL, RtcTransport,
    SessionSnapshot,
};
use serde_json::json;
#[cfg(feature = "media-keys")]
use {crate::support::DEADLINE, futures_util::StreamExt as _, tokio::time::timeout};

use crate::{
    js::{DELAY, JsPeer, Member},
    rtc::Call,
    support::{Person, Watcher, devices_are_there},
};

/// How long after a crash everybody has to see it.
const GONE_WITHIN: Duration = Duration::from_secs(8);

/// Our side of the call: a client, and what its session shows.
struct Ours {
    watcher: Watcher,
    room: OwnedRoomId,
    call: Call,
}

impl Ours {
    async fn of(person: &Person, room: &RoomId) -> Self {
        let watcher = Watcher::encrypting(person, &[room]).await;
        let call = Call::of(&watcher.room(room).rtc()).await;
        Self { watcher, room: room.to_owned(), call }
    }

    /// Joins the call, as a client does that wants to be seen by Element Call.
    async fn join(&self, intent: &str) -> (OwnMembership, Member) {
        let session = self.watcher.room(&self.room).rtc().session(ROOM_CALL);
        let membership = session
            .join([RtcTransport::livekit("https://sfu.example.org")])
            .with_dialect(Dialect::ElementCall)
            .with_intent(intent)
            .with_delay(DELAY)
            .await
            .unwrap();
        let member = Member {
            user_id: self.watcher.client.user_id().unwrap().to_string(),
            device_id: self.watcher.client.device_id().unwrap().to_string(),
            member_id: membership.member_id(),
            intent: Some(intent.to_owned()),
        };
        (membership, member)
    }

    /// Waits until exactly these are in the session, whatever their order.
    async fn until_session_is(&mut self, members: &[&Member]) {
        let is = |snapshot: &SessionSnapshot| {
            let seen: Vec<_> = snapshot.members().map(seen).collect();
            seen.len() == members.len() && members.iter().all(|member| seen.contains(member))
        };
        self.call.until(&format!("{members:?} are in the session"), is).await;
    }
}

/// A member of ours, as matrix-js-sdk would show it.
fn seen(member: &rtc::Member) -> Member {
    Member {
        user_id: member.user_id().to_string(),
        device_id: member.device().map(|device| device.device_id.to_string()).unwrap_or_default(),
        member_id: member.member_id().to_owned(),
        intent: member.intent().map(str::to_owned),
    }
}

/// Ours and js in one room. They know one another's devices, as people do who have met before.
async fn both(encrypted: bool) -> (Ours, JsPeer, OwnedRoomId) {
    // The room is of who is on js, as state may be needed there.
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = match encrypted {
        true => bob.encrypted_room_with(&[&alice]),
        false => bob.room_with(&[&alice]),
    };
    let mut js = JsPeer::of(&bob, &room, encrypted).await;
    let ours = Ours::of(&alice, &room).await;
    if encrypted {
        devices_are_there(&alice, &[&alice]).await;
        js.knows(alice.id(), alice.device_id()).await;
    }
    (ours, js, room)
}

async fn js_sees_ours(encrypted: bool) {
    let (mut ours, mut js, _) = both(encrypted).await;
    let (membership, member) = ours.join("audio").await;
    js.until_session_is(&[&member]).await;
    ours.until_session_is(&[&member]).await;
    membership.update_intent("video");
    let member = Member { intent: Some("video".to_owned()), ..member };
    js.until_session_is(&[&member]).await;
    membership.leave().await;
    js.until_session_is(&[]).await;

    let (membership, again) = ours.join("audio").await;
    assert_ne!(again.member_id, member.member_id);
    js.until_session_is(&[&again]).await;
    ours.until_session_is(&[&again]).await;
    // As a crash: no request goes out any more.
    drop(membership);
    let crashed = Instant::now();
    js.until_session_is(&[]).await;
    assert!(crashed.elapsed() < GONE_WITHIN, "{:?}", crashed.elapsed());
    ours.until_session_is(&[]).await;
}

/// It joins, changes, leaves and crashes.
#[tokio::test(flavor = "multi_thread")]
async fn element_call_sees_our_member() {
    js_sees_ours(false).await;
}

/// It joins, changes, leaves and crashes.
#[tokio::test(flavor = "multi_thread")]
async fn element_call_sees_our_encrypted_member() {
    js_sees_ours(true).await;
}

async fn ours_sees_js(encrypted: bool, sticky: bool) {
    let (mut ours, mut js, _) = both(encrypted).await;
    let id = js.join_with(json!({ "intent": "audio", "sticky": sticky })).await;
    let member = js.member(&id, "audio");
    ours.until_session_is(&[&member]).await;
    js.until_session_is(&[&member]).await;
    {
        let member = ours.call.now.members().next().unwrap();
        let form = if sticky { MembershipForm::ElementCall } else { MembershipForm::CallMember };
        assert_eq!(member.form(), form);
        assert_eq!(member.device().unwrap().is_proven(), encrypted);
        assert!(member.transports().published[0].as_livekit().is_some());
    }
    js.tell(json!({ "do": "intent", "intent": "video" })).await;
    let member = Member { intent: Some("video".to_owned()), ..member };
    ours.until_session_is(&[&member]).await;
    js.tell(json!({ "do": "application", "application": { "com.example.hand": true } })).await;
    ours.call
        .until("the hand is up", |snapshot| {
            snapshot.members().any(|it| it.application().fields.contains_key("com.example.hand"))
        })
        .await;
    js.leave().await;
    ours.until_session_is(&[]).await;
    assert!(matches!(ours.call.left(&id).await, NotJoined::Left(_)));

    // Under the same member id: it is of the user and the device.
    js.join_with(json!({ "intent": "video", "sticky": sticky })).await;
    ours.until_session_is(&[&member]).await;
    js.until_session_is(&[&member]).await;
    js.kill().await;
    let killed = Instant::now();
    ours.until_session_is(&[]).await;
    assert!(killed.elapsed() < GONE_WITHIN, "{:?}", killed.elapsed());
    assert!(matches!(ours.call.left(&id).await, NotJoined::Left(_)));
}

/// It joins, changes, leaves and dies.
#[tokio::test(flavor = "multi_thread")]
async fn we_see_element_calls_member() {
    ours_sees_js(false, true).await;
}

/// It joins, changes, leaves and dies.
#[tokio::test(flavor = "multi_thread")]
async fn we_see_element_calls_encrypted_member() {
    ours_sees_js(true, true).await;
}

/// They join, change, leave and die.
#[tokio::test(flavor = "multi_thread")]
async fn we_see_members_in_the_state() {
    ours_sees_js(false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_sees_the_same_session() {
    let people = ["alice", "bob", "carol", "dave"].map(Person::new);
    let [alice, bob, carol, dave] = &people;
    let room = alice.encrypted_room_with(&[bob, carol, dave]);
    let mut js = [JsPeer::of(alice, &room, true).await, JsPeer::of(bob, &room, true).await];
    let mut ours = [Ours::of(carol, &room).await, Ours::of(dave, &room).await];
    devices_are_there(alice, &[carol, dave]).await;
    let devices: Vec<_> = js.iter().map(|js| (js.user_id.clone(), js.device_id.clone())).collect();
    for js in &mut js {
        for (user_id, device_id) in &devices {
            js.knows(user_id.as_str().try_into().unwrap(), device_id).await;
        }
        for person in [carol, dave] {
            js.knows(person.id(), person.device_id()).await;
        }
    }
    let mut members = Vec::new();
    for js in &mut js {
        let id = js.join("audio").await;
        members.push(js.member(&id, "audio"));
    }
    let mut memberships = Vec::new();
    for ours in &ours {
        let (membership, member) = ours.join("video").await;
        memberships.push(membership);
        members.push(member);
    }
    let all: Vec<_> = members.iter().collect();
    for js in &mut js {
        js.until_session_is(&all).await;
    }
    for ours in &mut ours {
        ours.until_session_is(&all).await;
    }
    js[0].leave().await;
    memberships.pop().unwrap().leave().await;
    for js in &mut js {
        js.until_session_is(&all[1..3]).await;
    }
    for ours in &mut ours {
        ours.until_session_is(&all[1..3]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_slot_is_closed_to_both() {
    let (mut ours, mut js, _) = both(false).await;
    let id = js.join("audio").await;
    let theirs = js.member(&id, "audio");
    let (_membership, own) = ours.join("video").await;
    js.until_session_is(&[&theirs, &own]).await;
    ours.until_session_is(&[&theirs, &own]).await;
    // Nothing was there, which counts as open; and now it is.
    js.tell(json!({ "do": "slot", "open": true })).await;
    ours.call.until("the slot is open", |snapshot| snapshot.closed_by().is_none()).await;
    ours.until_session_is(&[&theirs, &own]).await;
    js.tell(json!({ "do": "slot", "open": false })).await;
    js.until_session_is(&[]).await;
    ours.until_session_is(&[]).await;
    assert_eq!(ours.call.left(&id).await, NotJoined::Slot(ClosedBy::Status));
}

/// The membership and the leave.
#[tokio::test(flavor = "multi_thread")]
async fn element_calls_later_device_can_read_us() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let ours = Ours::of(&alice, &room).await;
    devices_are_there(&bob, &[&alice]).await;
    let (membership, member) = ours.join("audio").await;
    let mut js = JsPeer::of(&bob, &room, true).await;
    js.until_session_is(&[&member]).await;
    drop(membership);
    js.until_session_is(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_element_call_keeps_its_id() {
    let (mut ours, mut js, _) = both(false).await;
    let id = js.join("audio").await;
    let member = js.member(&id, "audio");
    ours.until_session_is(&[&member]).await;
    js.signal("-STOP").await;
    ours.until_session_is(&[]).await;
    js.signal("-CONT").await;
    ours.until_session_is(&[&member]).await;
}

#[cfg(feature = "media-keys")]
#[tokio::test(flavor = "multi_thread")]
async fn element_call_and_we_exchange_keys() {
    let (mut ours, mut js, _) = both(true).await;
    let id = js.join("audio").await;
    let theirs = js.member(&id, "audio");
    ours.until_session_is(&[&theirs]).await;
    let (membership, own) = ours.join("audio").await;
    let config = KeyConfig::default().with_devices(DevicePolicy::Any);
    let keys = membership.media_keys(config).await.unwrap();
    let mut changes = keys.changes();
    js.until_session_is(&[&theirs, &own]).await;
    let [sent, received] = [js.until_key_of(&theirs).await, js.until_key_of(&own).await];
    let (mut has_own, mut has_theirs) = (false, false);
    while !(has_own && has_theirs) {
        let change = timeout(DEADLINE, changes.next()).await.expect("keys come");
        match change.expect("the exchange goes on") {
            KeyChange::Own { participant, index, key } => {
                assert_eq!(participant.livekit_identity(), received.identity);
                assert_eq!((index, key.as_bytes()), (received.index, &*received.bytes()));
                has_own = true;
            }
            KeyChange::Peer { participant, index, key } => {
                assert_eq!(participant.member_id, id);
                assert_eq!(participant.livekit_identity(), sent.identity);
                assert_eq!((index, key.as_bytes()), (sent.index, &*sent.bytes()));
                has_theirs = true;
            }
            other => assert!(matches!(other, KeyChange::Reset), "{other:?}"),
        }
    }
    js.leave().await;
    loop {
        let change = timeout(DEADLINE, changes.next()).await.expect("theirs is forgotten");
        if let Some(KeyChange::Gone { participant }) = change {
            assert_eq!(participant.member_id, id);
            return;
        }
    }
}

/// With matrix-js-sdk alone, so that what fails above is known to be ours.
#[tokio::test(flavor = "multi_thread")]
async fn two_element_calls_see_each_other() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let mut one = JsPeer::of(&alice, &room, true).await;
    let mut other = JsPeer::of(&bob, &room, true).await;
    one.knows(bob.id(), &other.device_id).await;
    other.knows(alice.id(), &one.device_id).await;
    let id = one.join("audio").await;
    let first = one.member(&id, "audio");
    other.until_session_is(&[&first]).await;
    one.until_session_is(&[&first]).await;
    let id = other.join("video").await;
    let second = other.member(&id, "video");
    one.until_session_is(&[&first, &second]).await;
    for member in [&first, &second] {
        assert_eq!(one.until_key_of(member).await, other.until_key_of(member).await);
    }
    one.leave().await;
    other.until_session_is(&[&second]).await;
    other.kill().await;
    one.until_session_is(&[]).await;
}
