//! MatrixRTC sessions: who is there, who is not and why, and memberships of our own.

use std::time::Duration;

use futures_util::StreamExt as _;
use matrix_sdk::{config::SyncSettings, ruma::RoomId};
use matrix_sdk_sticky::{
    StickyClientExt as _, StickyRoomExt as _,
    heartbeat::HeartbeatState,
    rtc::{
        ClosedBy, Dialect, Discovered, DiscoveredFrom, InBackground, JoinError, LeaveReason,
        MembershipForm, NotJoined, OwnMembership, ROOM_CALL, Rtc, RtcApplication, RtcTransport,
        SessionChange, SessionChanges, SessionSnapshot, SessionSubscription, SlotError,
    },
};
use serde_json::{Value, json};
use tokio::time::timeout;
use xtask::{api::encode, homeserver::Options};

use crate::{
    proxy::Proxy,
    support::{DEADLINE, Person, Watcher, devices_are_there, eventually, in_room, start},
};

const DELAY: Duration = Duration::from_secs(4);
const SLOT: &str = "org.matrix.msc4143.rtc.slot";
const MEMBER: &str = "org.matrix.msc4143.rtc.member";

/// One who looks at a room's call.
pub(crate) struct Call {
    pub(crate) now: SessionSnapshot,
    changes: SessionChanges,
    /// What was told, and not taken by the test yet.
    told: Vec<SessionChange>,
}

impl Call {
    pub(crate) async fn of(rtc: &Rtc) -> Self {
        let SessionSubscription { snapshot, changes, .. } =
            rtc.session(ROOM_CALL).subscribe().await;
        Self { now: snapshot, changes, told: Vec::new() }
    }

    /// Waits until the session is as wanted.
    pub(crate) async fn until(&mut self, what: &str, is: impl Fn(&SessionSnapshot) -> bool) {
        let wait = async {
            while !is(&self.now) {
                let update = self.changes.next().await.expect("the stream does not end");
                self.told.extend(update.changes);
                self.now = update.snapshot;
            }
        };
        if timeout(DEADLINE * 2, wait).await.is_err() {
            panic!("not in time: {what}; there is: {:#?}; told: {:#?}", self.now, self.told);
        }
    }

    /// Waits until so many are there.
    pub(crate) async fn len(&mut self, len: usize) {
        self.until(&format!("{len} are there"), |now| now.len() == len).await;
    }

    /// Waits until this member has left, and why.
    pub(crate) async fn left(&mut self, member_id: &str) -> NotJoined {
        loop {
            let left = self.told.iter().position(
                |change| matches!(change, SessionChange::Left { member, .. } if member.member_id() == member_id),
            );
            if let Some(at) = left {
                match self.told.remove(at) {
                    SessionChange::Left { reason, .. } => return reason,
                    other => panic!("{other:?}"),
                }
            }
            match timeout(DEADLINE * 2, self.changes.next()).await {
                Ok(update) => {
                    let update = update.expect("the stream does not end");
                    self.told.extend(update.changes);
                    self.now = update.snapshot;
                }
                Err(_) => panic!("{member_id} has not left: {:#?}", self.now),
            }
        }
    }

    /// All that was told, and not taken by the test yet.
    pub(crate) fn told(&self) -> &[SessionChange] {
        &self.told
    }

    /// Why somebody is not there.
    pub(crate) fn reason(&self, person: &Person) -> Option<NotJoined> {
        let of_theirs = self.now.candidates().find(|candidate| candidate.user_id == person.id());
        of_theirs.map(|candidate| candidate.reason.clone())
    }
}

fn call() -> [RtcTransport; 1] {
    [RtcTransport::livekit("https://livekit.example.org")]
}

pub(crate) fn open_slot(person: &Person, room: &RoomId, encrypted: bool) {
    let mut content = json!({ "status": "open", "application": { "type": "m.call" } });
    if encrypted {
        content["encryption"] = json!({ "type": "org.matrix.msc4143.per_member" });
    }
    set_slot(person, room, &content);
}

fn set_slot(person: &Person, room: &RoomId, content: &Value) {
    person.api.set_state(room.as_str(), SLOT, ROOM_CALL, content).unwrap();
}

pub(crate) async fn until(membership: &OwnMembership, wanted: HeartbeatState) {
    let mut states = membership.subscribe_state();
    let wait = async {
        while states.get() != wanted {
            states.next().await.expect("the state goes on");
        }
    };
    let waited = timeout(DEADLINE * 2, wait).await;
    waited.unwrap_or_else(|_| panic!("{membership:?}: {:?}", membership.last_error()));
}

/// Two in a room whose slot is open.
async fn two_in(encrypted: bool) -> (Person, Person, Watcher, Watcher, Rtc, Rtc) {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = match encrypted {
        true => alice.encrypted_room_with(&[&bob]),
        false => alice.room_with(&[&bob]),
    };
    open_slot(&alice, &room, encrypted);
    let ours = Watcher::encrypting(&alice, &[&room]).await;
    let theirs = Watcher::encrypting(&bob, &[&room]).await;
    if encrypted {
        devices_are_there(&alice, &[&alice, &bob]).await;
    }
    let (own, looking) = (ours.room(&room).rtc(), theirs.room(&room).rtc());
    (alice, bob, ours, theirs, own, looking)
}

async fn joins_updates_and_leaves(encrypted: bool) {
    let (alice, _bob, _ours, _theirs, own, looking) = two_in(encrypted).await;
    let mut seen = Call::of(&looking).await;
    assert!(seen.now.is_empty());
    let session = own.session(ROOM_CALL);
    let membership = session.join(call()).with_intent("audio").with_delay(DELAY).await.unwrap();
    assert_eq!(membership.dialect(), Dialect::Msc4143);
    seen.len(1).await;
    let member = seen.now.members().next().unwrap().clone();
    assert_eq!(member.user_id(), alice.id());
    assert_eq!(member.member_id(), membership.member_id());
    assert_eq!(member.form(), MembershipForm::Both);
    assert_eq!(member.intent(), Some("audio"));
    assert_eq!(member.transports().published, call());
    let device = member.device().unwrap();
    assert_eq!((device.device_id.as_str(), device.is_proven()), (alice.device_id(), encrypted));
    until(&membership, HeartbeatState::Joined).await;

    membership.update_intent("video");
    seen.until("an update", |now| now.members().all(|it| it.intent() == Some("video"))).await;
    assert_eq!(seen.now.members().next().unwrap().since_ms(), member.since_ms());

    let leave = LeaveReason::with_code("leave").with_reason("bye");
    assert_eq!(membership.leave_with(leave.clone()).await, HeartbeatState::Left);
    assert_eq!(seen.left(&membership.member_id()).await, NotJoined::Left(leave));
    // To us it may come back later than to the others.
    Call::of(&own).await.len(0).await;
}

/// With a code.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_joins_updates_and_leaves() {
    joins_updates_and_leaves(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_proves_a_members_device() {
    joins_updates_and_leaves(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_crashes_has_left_by_the_delayed_leave() {
    let (_alice, _bob, _ours, _theirs, own, looking) = two_in(true).await;
    let mut seen = Call::of(&looking).await;
    let membership = own.session(ROOM_CALL).join(call()).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    let member_id = membership.member_id();
    drop(membership);
    assert_eq!(
        seen.left(&member_id).await,
        NotJoined::Left(LeaveReason::with_code(LeaveReason::DELAYED))
    );
}

/// Coming back from the background is another join.
#[tokio::test(flavor = "multi_thread")]
async fn each_join_has_another_member_id() {
    let (_alice, _bob, _ours, _theirs, own, looking) = two_in(false).await;
    let mut seen = Call::of(&looking).await;
    let membership = own.session(ROOM_CALL).join(call()).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    let first = membership.member_id();
    membership.suspend(InBackground::Leave);
    assert!(matches!(seen.left(&first).await, NotJoined::Left(_)));
    until(&membership, HeartbeatState::Suspended { holds_until: None }).await;
    membership.resume();
    until(&membership, HeartbeatState::Joined).await;
    seen.len(1).await;
    assert_ne!(membership.member_id(), first);
    membership.leave().await;
}

/// It was cut off for longer than the delay.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_cut_off_returns_as_another() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let theirs = Watcher::of(&bob, &[&room]).await;
    let mut seen = Call::of(&theirs.room(&room).rtc()).await;
    let proxy = Proxy::before(alice.url()).await;
    let ours = Watcher::with(alice.client_through(&proxy).await, &[&room]).await;
    let session = ours.room(&room).rtc().session(ROOM_CALL);
    let membership = session.join(call()).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    let first = membership.member_id();

    proxy.cut();
    let delayed = NotJoined::Left(LeaveReason::with_code(LeaveReason::DELAYED));
    assert_eq!(seen.left(&first).await, delayed);
    proxy.mend();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    assert_ne!(membership.member_id(), first);
    assert_eq!(seen.now.members().next().unwrap().member_id(), membership.member_id());
    membership.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_slot_makes_us_leave() {
    let (alice, _bob, _ours, _theirs, own, looking) = two_in(false).await;
    let mut seen = Call::of(&looking).await;
    let membership = own.session(ROOM_CALL).join(call()).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    set_slot(&alice, own.room_id(), &json!({ "status": "closed" }));
    // Whichever is seen first.
    let reason = seen.left(&membership.member_id()).await;
    assert!(matches!(reason, NotJoined::Slot(ClosedBy::Status) | NotJoined::Left(_)), "{reason:?}");
    until(&membership, HeartbeatState::Left).await;
    assert_eq!(membership.left_as(), Some(LeaveReason::with_code(LeaveReason::SLOT_CLOSED)));
    let slot_closed = NotJoined::Left(LeaveReason::with_code(LeaveReason::SLOT_CLOSED));
    seen.until("it says why", |now| now.candidates().any(|it| it.reason == slot_closed)).await;
    let again = own.session(ROOM_CALL).join(call()).await;
    assert!(matches!(again, Err(JoinError::Slot(ClosedBy::Status))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_leaves_on_purpose() {
    let (_alice, _bob, ours, _theirs, own, looking) = two_in(false).await;
    let mut seen = Call::of(&looking).await;
    let membership = own.session(ROOM_CALL).join(call()).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    ours.sticky.leave_heartbeats().await;
    let on_purpose = LeaveReason::with_code(LeaveReason::ON_PURPOSE);
    assert_eq!(seen.left(&membership.member_id()).await, NotJoined::Left(on_purpose.clone()));
    until(&membership, HeartbeatState::Left).await;
    assert_eq!(membership.left_as(), Some(on_purpose));
}

/// If the room has its call under that name alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_uses_the_slots_older_name() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let open = json!({ "status": "open", "application": { "type": "m.call" } });
    alice.api.set_state(room.as_str(), SLOT, "m.call#room", &open).unwrap();
    let ours = Watcher::of(&alice, &[&room]).await;
    let theirs = Watcher::of(&bob, &[&room]).await;
    let mut seen = Call::of(&theirs.room(&room).rtc()).await;
    assert_eq!(seen.now.slot().map(|slot| slot.id()), Some("m.call#room"));
    let session = ours.room(&room).rtc().session(ROOM_CALL);
    let membership =
        session.join(call()).with_dialect(Dialect::Msc4143).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    assert_eq!(seen.now.members().next().unwrap().slot_id(), "m.call#room");
    until(&membership, HeartbeatState::Joined).await;

    // A slot of the newer name beside it is another, which ends nothing.
    open_slot(&alice, &room, false);
    seen.until("the newer one is shown", |now| {
        now.slot().is_some_and(|slot| slot.id() == ROOM_CALL)
    })
    .await;
    assert_eq!((seen.now.len(), membership.state()), (1, HeartbeatState::Joined));
    alice
        .api
        .set_state(room.as_str(), SLOT, "m.call#room", &json!({ "status": "closed" }))
        .unwrap();
    seen.len(0).await;
    until(&membership, HeartbeatState::Left).await;
    assert_eq!(membership.left_as(), Some(LeaveReason::with_code(LeaveReason::SLOT_CLOSED)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_redacted_is_closed() {
    let (alice, _bob, _ours, _theirs, own, looking) = two_in(false).await;
    let mut seen = Call::of(&looking).await;
    let membership = own.session(ROOM_CALL).join(call()).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    let slot = slot_event(&alice, own.room_id());
    alice.redact(own.room_id(), slot.as_str().unwrap());
    let closed = Some(ClosedBy::Malformed("status"));
    seen.until("it is closed", |now| now.closed_by() == closed).await;
    until(&membership, HeartbeatState::Left).await;
    assert_eq!(membership.left_as(), Some(LeaveReason::with_code(LeaveReason::SLOT_CLOSED)));
}

async fn opens_and_closes(encrypted: bool) {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = match encrypted {
        true => alice.encrypted_room_with(&[&bob]),
        false => alice.room_with(&[&bob]),
    };
    let ours = Watcher::encrypting(&alice, &[&room]).await;
    let theirs = Watcher::encrypting(&bob, &[&room]).await;
    let session = ours.room(&room).rtc().session(ROOM_CALL);
    let others = theirs.room(&room).rtc();
    let mut seen = Call::of(&others).await;
    assert_eq!(seen.now.closed_by(), Some(ClosedBy::Missing));
    session.open().await.unwrap();
    seen.until("it is open", |now| now.closed_by().is_none()).await;
    assert_eq!(seen.now.slot().unwrap().encryption.is_some(), encrypted);
    let opened = slot_event(&alice, &room);
    session.open().await.unwrap();
    assert_eq!(slot_event(&alice, &room), opened);
    let refused = others.session(ROOM_CALL).close().await;
    assert!(matches!(refused, Err(SlotError::NotAllowed)), "{refused:?}");
    session.close().await.unwrap();
    seen.until("closed", |now| now.closed_by() == Some(ClosedBy::Status)).await;
    let nameless = ours.room(&room).rtc().session("m.call").open().await;
    assert!(matches!(nameless, Err(SlotError::SlotId)));
}

/// The id of the slot's event.
fn slot_event(person: &Person, room: &RoomId) -> Value {
    let (room, slot_id) = (encode(room.as_str()), encode(ROOM_CALL));
    let event = person.api.get(&format!("rooms/{room}/state/{SLOT}/{slot_id}?format=event"));
    event.unwrap()["event_id"].clone()
}

/// A slot that is open is not opened again.
#[tokio::test(flavor = "multi_thread")]
async fn opening_and_closing_takes_the_right() {
    opens_and_closes(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_rooms_slot_names_media_encryption() {
    opens_and_closes(true).await;
}

/// The content of a slot's event of this type.
fn slot_content(person: &Person, room: &RoomId, kind: &str, slot_id: &str) -> Option<Value> {
    let (room, slot_id) = (encode(room.as_str()), encode(slot_id));
    person.api.get(&format!("rooms/{room}/state/{kind}/{slot_id}")).ok()
}

/// If no others are given.
#[tokio::test(flavor = "multi_thread")]
async fn reopening_keeps_the_slots_settings() {
    let alice = Person::new("alice");
    let room = alice.encrypted_room_with(&[]);
    let ours = Watcher::encrypting(&alice, &[&room]).await;
    let session = ours.room(&room).rtc().session(ROOM_CALL);
    let content = || slot_content(&alice, &room, SLOT, ROOM_CALL).unwrap();

    let mut application = RtcApplication::new("m.call");
    application.fields.insert("com.example.voice_only".to_owned(), json!(true));
    session.open().with_application(application.clone()).await.unwrap();
    let voice_only = json!({
        "status": "open",
        "application": { "type": "m.call", "com.example.voice_only": true },
        "encryption": { "type": "org.matrix.msc4143.per_member" },
    });
    assert_eq!(content(), voice_only);
    session.open().await.unwrap();
    assert_eq!(content(), voice_only, "who opens what is open changes nothing");
    session.close().await.unwrap();
    let mut closed = voice_only.clone();
    closed["status"] = json!("closed");
    assert_eq!(content(), closed);
    let event_id = slot_event(&alice, &room);
    session.close().await.unwrap();
    assert_eq!(slot_event(&alice, &room), event_id, "closed once");
    session.open().await.unwrap();
    assert_eq!(content(), voice_only);
    session.open().with_application(RtcApplication::new("m.call")).await.unwrap();
    assert_eq!(content()["application"], json!({ "type": "m.call" }));

    let other = session.open().with_application(RtcApplication::new("com.example.game")).await;
    assert!(matches!(other, Err(SlotError::SlotId)), "{other:?}");
}

/// Nothing is closed that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn closing_covers_each_of_its_names() {
    const STABLE: &str = "m.rtc.slot";
    let alice = Person::new("alice");
    let room = alice.room_with(&[]);
    let ours = Watcher::of(&alice, &[&room]).await;
    let session = ours.room(&room).rtc().session(ROOM_CALL);
    session.close().await.unwrap();
    assert_eq!(slot_content(&alice, &room, SLOT, ROOM_CALL), None);

    let open = json!({ "status": "open", "application": { "type": "m.call" } });
    let set = |kind: &str, slot_id: &str| {
        alice.api.set_state(room.as_str(), kind, slot_id, &open).unwrap();
    };
    set(STABLE, ROOM_CALL);
    set(SLOT, "m.call#room");
    session.close().await.unwrap();
    for slot_id in [ROOM_CALL, "m.call#room"] {
        let content = slot_content(&alice, &room, SLOT, slot_id).unwrap();
        assert_eq!(content["status"], "closed", "{slot_id}");
        assert_eq!(content["application"], open["application"], "{slot_id}");
    }
    let mut seen = Call::of(&ours.room(&room).rtc()).await;
    seen.until("closed", |now| now.closed_by() == Some(ClosedBy::Status)).await;
}

/// And not that the right is missing.
#[tokio::test(flavor = "multi_thread")]
async fn opening_says_that_we_are_out() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let theirs = Watcher::of(&bob, &[&room]).await;
    let session = theirs.room(&room).rtc().session(ROOM_CALL);
    let refused = session.open().await.unwrap_err();
    assert!(matches!(refused, SlotError::NotAllowed), "{refused:?}");
    assert!(refused.to_string().contains("higher power level"), "{refused}");
    bob.leave(&room);
    eventually("we have left", async || match session.open().await {
        Err(SlotError::NotInRoom) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(matches!(session.close().await, Err(SlotError::NotInRoom)));
}

/// The client has not heard of it yet.
#[tokio::test(flavor = "multi_thread")]
async fn opening_asks_the_server_about_encryption() {
    let alice = Person::new("alice");
    let room = alice.room_with(&[]);
    let client = alice.client().await;
    client.sync_once(SyncSettings::default()).await.unwrap();
    // And no sync from here on.
    let known = client.get_room(&room).unwrap();
    let session = known.sticky().rtc().session(ROOM_CALL);
    session.open().await.unwrap();
    let content = || slot_content(&alice, &room, SLOT, ROOM_CALL).unwrap();
    assert_eq!(content().get("encryption"), None);
    let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    alice.api.set_state(room.as_str(), "m.room.encryption", "", &encryption).unwrap();
    assert!(!known.latest_encryption_state().await.unwrap().is_encrypted(), "as matrix-sdk has it");
    session.open().await.unwrap();
    assert_eq!(content()["encryption"], json!({ "type": "org.matrix.msc4143.per_member" }));
}

/// And no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_slot_has_element_calls_members() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let ours = Watcher::encrypting(&alice, &[&room]).await;
    let theirs = Watcher::encrypting(&bob, &[&room]).await;
    let session = ours.room(&room).rtc().session(ROOM_CALL);
    let refused = session.join(call()).with_dialect(Dialect::Msc4143).await;
    assert!(matches!(refused, Err(JoinError::Slot(ClosedBy::Missing))));
    let mut seen = Call::of(&theirs.room(&room).rtc()).await;
    // What the room speaks.
    let membership = session.join(call()).with_member_id("mine").with_delay(DELAY).await.unwrap();
    assert_eq!(membership.dialect(), Dialect::ElementCall);
    seen.len(1).await;
    assert_eq!(seen.now.members().next().unwrap().member_id(), "mine");

    let content = json!({
        "slot_id": ROOM_CALL,
        "member": { "id": "b", "membership": "join" },
        "application": { "type": "m.call" },
        "sticky_key": "b",
        "msc4354_sticky_key": "b",
    });
    bob.api.send(room.as_str(), MEMBER, "b", &content, Some(600_000)).unwrap();
    let missing = NotJoined::Slot(ClosedBy::Missing);
    seen.until("bob is refused", |now| now.candidates().any(|it| it.reason == missing)).await;
    open_slot(&alice, &room, false);
    seen.len(2).await;
    membership.leave().await;
    seen.len(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kicked_user_has_to_join_again() {
    let (alice, bob, _ours, _theirs, own, looking) = two_in(false).await;
    let mut seen = Call::of(&own).await;
    let membership = looking.session(ROOM_CALL).join(call()).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    alice.api.kick(own.room_id().as_str(), bob.id().as_str()).unwrap();
    assert_eq!(seen.left(&membership.member_id()).await, NotJoined::NotInRoom);
    assert_eq!(seen.reason(&bob), Some(NotJoined::NotInRoom));
    // Who comes later sees the same.
    assert_eq!(Call::of(&own).await.reason(&bob), Some(NotJoined::NotInRoom));
    bob.join(own.room_id());
    let again = looking.session(ROOM_CALL);
    let membership = again.join(call()).with_delay(DELAY).await.unwrap();
    seen.until("bob is back", |now| {
        now.members().any(|it| it.member_id() == membership.member_id())
    })
    .await;
    membership.leave().await;
}

/// Bob is in the call, goes out of the room and comes back, while no client of his runs. Whoever of alice's
/// devices looks at the call, he is not there. Then his client runs again, and removes what is left.
async fn comes_back_to_the_room(encrypted: bool, goes: impl Fn(&Person, &Person, &RoomId)) {
    let (alice, bob, ours, theirs, own, looking) = two_in(encrypted).await;
    let room = own.room_id().to_owned();
    let mut seen = Call::of(&own).await;
    let membership = looking.session(ROOM_CALL).join(call()).with_delay(DELAY).await.unwrap();
    seen.len(1).await;
    until(&membership, HeartbeatState::Joined).await;
    let member_id = membership.member_id();
    goes(&alice, &bob, &room);
    assert_eq!(seen.left(&member_id).await, NotJoined::NotInRoom);
    drop(membership);
    // The server drops the armed leave of somebody who is not in the room, as of Synapse 1.163.
    tokio::time::sleep(DELAY + Duration::from_secs(2)).await;
    bob.join(&room);
    // A change of name comes last.
    let named = json!({ "membership": "join", "displayname": "Robert" });
    bob.api.set_state(room.as_str(), "m.room.member", bob.id().as_str(), &named).unwrap();
    in_room(&theirs.client, &room).await;

    let alices = own.session(ROOM_CALL).join(call()).with_delay(DELAY).await.unwrap();
    seen.until("alice is there", |now| now.members().any(|it| it.user_id() == alice.id())).await;
    assert_eq!((seen.now.len(), seen.reason(&bob)), (1, Some(NotJoined::NotInRoom)));
    // Another stream, with the store of this client; and a client that sees all for the first time.
    let second = Call::of(&ours.room(&room).rtc()).await;
    assert_eq!((second.now.len(), second.reason(&bob)), (1, Some(NotJoined::NotInRoom)));
    if !encrypted {
        // One that is new in an encrypted room cannot read what came before it.
        let fresh = Watcher::of(&alice.on_another_device(), &[&room]).await;
        let mut third = Call::of(&fresh.room(&room).rtc()).await;
        let is_told = |now: &SessionSnapshot| now.candidates().any(|it| it.user_id == bob.id());
        third.until("bob is told of", is_told).await;
        assert_eq!((third.now.len(), third.reason(&bob)), (1, Some(NotJoined::NotInRoom)));
    }

    // Two streams of one client.
    let mut bobs = [Call::of(&looking).await, Call::of(&looking).await];
    let has_removed = NotJoined::Left(LeaveReason::with_code(LeaveReason::DELAYED));
    for bobs in &mut bobs {
        bobs.until("bob has left", |now| now.candidates().any(|it| it.reason == has_removed)).await;
    }
    seen.until("bob has left", |now| now.candidates().any(|it| it.reason == has_removed)).await;
    let page = alice.api.get(&format!("rooms/{}/messages?dir=b&limit=100", encode(room.as_str())));
    let page = page.unwrap();
    let bobs =
        page["chunk"].as_array().unwrap().iter().filter(|it| it["sender"] == bob.id().as_str());
    let sent = bobs.filter(|it| it.get("msc4354_sticky").is_some()).count();
    assert!(encrypted || sent == 2, "a join, and a leave: {page:#}");
    alices.leave().await;
}

fn is_kicked(alice: &Person, bob: &Person, room: &RoomId) {
    alice.api.kick(room.as_str(), bob.id().as_str()).unwrap();
}

/// They were kicked from the room.
#[tokio::test(flavor = "multi_thread")]
async fn a_returning_user_is_no_member() {
    comes_back_to_the_room(false, is_kicked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_comes_back_to_the_room_alone() {
    comes_back_to_the_room(false, |_, bob, room| bob.leave(room)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kick_ends_the_encrypted_call_too() {
    comes_back_to_the_room(true, is_kicked).await;
}

/// In an encrypted room.
#[tokio::test(flavor = "multi_thread")]
async fn plaintext_only_ends_a_member() {
    let (alice, bob, _ours, _theirs, own, looking) = two_in(true).await;
    let room = own.room_id().to_owned();
    let mut seen = Call::of(&looking).await;
    let membership = own.session(ROOM_CALL).join(call()).with_delay(DELAY * 5).await.unwrap();
    seen.len(1).await;
    let content = json!({
        "slot_id": ROOM_CALL,
        "member": { "id": "b", "membership": "join", "user_id": bob.id(), "device_id": "X" },
        "application": { "type": "m.call" },
        "transports": { "published": [], "can_subscribe": [] },
        "versions": [],
        "msc4354_sticky_key": "b",
    });
    bob.api.send(room.as_str(), MEMBER, "b", &content, Some(600_000)).unwrap();
    let plain = NotJoined::NotEncrypted;
    seen.until("bob is refused", |now| now.candidates().any(|it| it.reason == plain)).await;
    assert_eq!(seen.now.len(), 1);
    let id = membership.member_id();
    let leave = json!({ "slot_id": ROOM_CALL, "msc4354_sticky_key": id });
    alice.api.send(room.as_str(), MEMBER, "leave", &leave, Some(3_600_000)).unwrap();
    assert_eq!(seen.left(&id).await, NotJoined::Left(LeaveReason::default()));
    membership.leave().await;
}

/// Encryption is switched on, and so much is said after it before anybody looks.
async fn encryption_is_switched_on(messages: usize) {
    let (alice, bob, _ours, theirs, own, looking) = two_in(false).await;
    let mut seen = Call::of(&looking).await;
    let room = own.room_id().to_owned();
    let content = json!({
        "slot_id": ROOM_CALL,
        "member": { "id": "a", "membership": "join" },
        "application": { "type": "m.call" },
        "msc4354_sticky_key": "a",
    });
    alice.api.send(room.as_str(), MEMBER, "a", &content, Some(600_000)).unwrap();
    seen.len(1).await;
    let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    alice.api.set_state(room.as_str(), "m.room.encryption", "", &encryption).unwrap();
    let mut updates = theirs.client.subscribe_to_room_updates(&room);
    for n in 0..messages {
        bob.say(&room, &format!("{n}"));
        timeout(DEADLINE, updates.recv()).await.unwrap().unwrap();
    }
    assert_eq!(seen.left("a").await, NotJoined::NotEncrypted);
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_on_encryption_ends_plaintext_members() {
    encryption_is_switched_on(0).await;
}

/// The SDK keeps eight updates for who is slow.
#[tokio::test(flavor = "multi_thread")]
async fn encryption_switched_on_unseen_is_found() {
    encryption_is_switched_on(12).await;
}

async fn transports(rtc_endpoint: bool) -> Discovered {
    let server = start(&Options { rtc_endpoint, ..Options::default() });
    let alice = Person::on(&server, "alice");
    let client = alice.client().await;
    client.sticky().rtc_transports().await.unwrap()
}

fn assert_are_there(transports: &[RtcTransport]) {
    let [livekit, pigeon] = transports else { panic!("{transports:?}") };
    let service_url = livekit.as_livekit().unwrap().service_url;
    assert_eq!(service_url, Some("https://livekit.sticky.test"));
    assert_eq!(livekit.fields()["com.example.odd"], json!([1]));
    assert_eq!(pigeon.to_json(), json!({ "type": "com.example.pigeon", "loft": { "height": 3 } }));
    assert!(pigeon.as_livekit().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_homeservers_transports_are_discovered_unknown_ones_unharmed() {
    let discovered = transports(true).await;
    assert_eq!(discovered.from, DiscoveredFrom::Homeserver);
    assert_are_there(&discovered.transports);
}

/// Of a server that has none.
#[tokio::test(flavor = "multi_thread")]
async fn the_well_known_replaces_the_endpoint() {
    let discovered = transports(false).await;
    assert_eq!(discovered.from, DiscoveredFrom::WellKnown);
    assert_are_there(&discovered.transports);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unconfigured_server_offers_no_transports() {
    for rtc_endpoint in [true, false] {
        let server = start(&Options { rtc_endpoint, rtc_transports: false, ..Options::default() });
        let alice = Person::on(&server, "alice");
        let path = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";
        // Where it has the endpoint it says nothing, rather than an empty list.
        assert_eq!(alice.api.get(path).ok(), rtc_endpoint.then(|| json!({})));
        let discovered = alice.client().await.sticky().rtc_transports().await;
        assert_eq!(discovered, Ok(Discovered::default()));
    }
}
