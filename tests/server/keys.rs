//! Media keys, exchanged by real devices over a real server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use matrix_sdk::{
    Client,
    deserialized_responses::{AlgorithmInfo, EncryptionInfo, VerificationState},
    event_handler::RawEvent,
    ruma::{RoomId, events::AnyToDeviceEvent, serde::Raw},
};
use matrix_sdk_sticky::{
    BaseClientBuilder, RoomSticky, Subscription, SystemClock,
    matrix_sdk_base::crypto::CollectStrategy,
    rtc::{
        ROOM_CALL, Roster, SessionSnapshot,
        keys::{
            DevicePolicy, DiscardReason, KeyChange, KeyChanges, KeyConfig, KeyInbox, MediaKeys,
            MediaKeysError, Participant,
        },
    },
};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::{
    proxy::Proxy,
    support::{DEADLINE, LONG, Person, Watcher, devices_are_there, eventually, in_room, sync},
};

const MEMBER: &str = "org.matrix.msc4143.rtc.member";
const KEY: &str = "org.matrix.msc4143.rtc.encryption_key";
const ELEMENT_CALL_KEY: &str = "io.element.call.encryption_keys";

/// A media key's index, and the key.
type Keys = BTreeMap<u8, Vec<u8>>;

/// A device in a call: its membership, and a frame cryptor that remembers what it is told.
struct Caller {
    person: Person,
    watch: Watcher,
    door: RoomSticky,
    keys: MediaKeys,
    changes: KeyChanges,
    own: Option<(u8, Vec<u8>)>,
    peers: BTreeMap<Participant, Keys>,
}

/// Whether the room has a slot that is open.
#[derive(Clone, Copy)]
enum Slot {
    Open,
    Missing,
}

impl Caller {
    async fn new(person: Person, room: &RoomId, slot: Slot, config: KeyConfig) -> Self {
        let watch = Watcher::encrypting(&person, &[room]).await;
        Self::with(person, watch, room, slot, config).await
    }

    async fn with(
        person: Person,
        watch: Watcher,
        room: &RoomId,
        slot: Slot,
        config: KeyConfig,
    ) -> Self {
        let door = watch.room(room);
        let sdk_room = watch.client.get_room(room).unwrap();
        let sessions = sessions(&door, slot);
        let member_id = member_id(&person);
        let timer = Arc::new(SystemClock::default());
        let inbox = KeyInbox::open(&watch.client);
        let keys = MediaKeys::start(sdk_room, member_id, inbox, sessions, config, timer);
        let keys = keys.await.unwrap();
        let changes = keys.changes();
        Self { person, watch, door, keys, changes, own: None, peers: BTreeMap::new() }
    }

    async fn join(&self) {
        let content = json!({
            "slot_id": ROOM_CALL,
            "member": {
                "id": member_id(&self.person),
                "membership": "join",
                "user_id": self.person.id(),
                "device_id": self.person.device_id(),
            },
            "application": { "type": "m.call" },
            "transports": { "published": [], "can_subscribe": [] },
            "versions": [],
        });
        self.send(content).await;
    }

    async fn leave(&self) {
        let member = json!({ "id": member_id(&self.person), "membership": "leave" });
        self.send(json!({ "slot_id": ROOM_CALL, "member": member })).await;
    }

    async fn send(&self, content: Value) {
        let send = self.door.send_raw(MEMBER, object(content));
        send.with_sticky_key(member_id(&self.person)).with_sticky_duration(LONG).await.unwrap();
    }

    fn participant(&self) -> Participant {
        Participant::new(self.person.id(), member_id(&self.person), self.person.device_id())
    }

    /// Takes what the cryptor is told, until it is as wanted.
    async fn until(&mut self, what: &str, mut is_wanted: impl FnMut(&Self) -> bool) {
        while !is_wanted(self) {
            match timeout(DEADLINE, self.changes.next()).await {
                Ok(change) => self.apply(change.expect("the exchange goes on")),
                Err(_) => panic!(
                    "{} not within {DEADLINE:?}: {what}; instead: use {:?}, {:?}, {:?}",
                    self.person.id(),
                    self.own.as_ref().map(|(index, _)| index),
                    self.indices(),
                    self.keys.discards()
                ),
            }
        }
    }

    fn apply(&mut self, change: KeyChange) {
        match change {
            KeyChange::Reset => {
                self.own = None;
                self.peers.clear();
            }
            KeyChange::Own { index, key } => self.own = Some((index, key.as_bytes().to_vec())),
            KeyChange::Peer { participant, index, key } => {
                let keys = self.peers.entry(participant).or_default();
                keys.insert(index, key.as_bytes().to_vec());
            }
            KeyChange::Gone { participant } => {
                self.peers.remove(&participant).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }

    fn indices(&self) -> BTreeMap<String, Vec<u8>> {
        let indices = |(who, keys): (&Participant, &Keys)| {
            (who.user_id.localpart().to_owned(), keys.keys().copied().collect())
        };
        self.peers.iter().map(indices).collect()
    }

    /// Takes what it is told until it can decrypt what the other encrypts now.
    async fn hears(&mut self, other: &Self) {
        let (index, key) = other.own.as_ref().unwrap();
        let who = other.participant();
        let what = format!("the key {index} of {}", other.person.id());
        self.until(&what, |it| it.peers.get(&who).and_then(|keys| keys.get(index)) == Some(key))
            .await;
    }

    /// Waits until so many messages were not taken; why.
    async fn discarded(&self, total: usize) -> Vec<DiscardReason> {
        eventually("so many are discarded", async || {
            let discards = self.keys.discards();
            match discards.last.len() {
                found if found == total => Ok(discards.last.iter().map(|it| it.reason).collect()),
                _ => Err(discards),
            }
        })
        .await
    }
}

fn member_id(person: &Person) -> String {
    format!("m-{}", person.device_id())
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("{other}"),
    }
}

/// The room's call, as its members come and go.
fn sessions(door: &RoomSticky, slot: Slot) -> impl Stream<Item = SessionSnapshot> + use<> {
    let sticky = door.client().clone();
    let Subscription { snapshot, changes, .. } = door.events().subscribe();
    let mut roster = Roster::new();
    roster.handle_encryption(true);
    if let Slot::Open = slot {
        let slot = json!({
            "type": "org.matrix.msc4143.rtc.slot",
            "state_key": ROOM_CALL,
            "sender": "@admin:hs",
            "event_id": "$slot",
            "content": {
                "status": "open",
                "application": { "type": "m.call" },
                "encryption": { "type": "org.matrix.msc4143.per_member" },
            },
        });
        roster.handle_state_event(sticky.now(), &slot.to_string());
    }
    roster.handle_snapshot(&snapshot);
    roster.poll_changes(sticky.now());
    let first = roster.snapshot(sticky.now()).session(ROOM_CALL);
    let rest = stream::unfold((roster, changes), move |(mut roster, mut changes)| {
        let sticky = sticky.clone();
        async move {
            let change = changes.next().await?;
            roster.handle_change(&change);
            roster.poll_changes(sticky.now());
            let session = roster.snapshot(sticky.now()).session(ROOM_CALL);
            Some((session, (roster, changes)))
        }
    });
    stream::once(async move { first }).chain(rest)
}

fn any_device() -> KeyConfig {
    KeyConfig::default().with_devices(DevicePolicy::Any).with_use_after(Duration::from_secs(1))
}

/// A to-device message: type, content, and what the SDK says of its encryption.
type Message = (String, Value, Option<EncryptionInfo>);

/// The to-device messages with keys that a client gets.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Message>>>);

impl Seen {
    fn by(client: &Client) -> Self {
        let seen = Self::default();
        let all = seen.clone();
        client.add_event_handler(
            move |_: AnyToDeviceEvent, raw: RawEvent, info: Option<EncryptionInfo>| {
                let event: Value = serde_json::from_str(raw.get()).unwrap();
                let event_type = event["type"].as_str().unwrap().to_owned();
                if event_type.contains("encryption_key") {
                    all.0.lock().unwrap().push((event_type, event["content"].clone(), info));
                }
                std::future::ready(())
            },
        );
        seen
    }

    fn all(&self) -> Vec<Message> {
        self.0.lock().unwrap().clone()
    }
}

/// Sends a to-device message, Olm-encrypted, as whoever has this client.
async fn send_to_device(client: &Client, to: &Person, event_type: &str, content: &Value) {
    let encryption = client.encryption();
    encryption.request_user_identity(to.id()).await.unwrap();
    let device = encryption.get_device(to.id(), to.device_id().into()).await.unwrap().unwrap();
    let content = Raw::from_json(serde_json::value::to_raw_value(content).unwrap());
    let strategy = CollectStrategy::AllDevices;
    let failed = encryption
        .encrypt_and_send_raw_to_device(vec![&device], event_type, content, strategy)
        .await
        .unwrap();
    assert_eq!(failed, []);
}

fn key_content(room: &RoomId, member_id: &str, format: u64) -> Value {
    let media_key = json!({ "index": 7, "key": "A".repeat(43) });
    json!({ "room_id": room, "member_id": member_id, "media_key": media_key, "format": format })
}

/// Waits until the clients know each other's devices, so that who joins is read by all at once.
async fn acquainted(callers: &[&Caller]) {
    for caller in callers {
        for other in callers {
            let what = format!("{} knows the device of {}", caller.person.id(), other.person.id());
            let encryption = caller.watch.client.encryption();
            let device_id = other.person.device_id();
            eventually(&what, async || {
                let device = encryption.get_device(other.person.id(), device_id.into()).await;
                device.unwrap().map(drop).ok_or("not yet")
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_exchange_keys_and_who_leaves_does_not_get_the_next_one() {
    let (alice, bob, carol) = (Person::new("alice"), Person::new("bob"), Person::new("carol"));
    let room = alice.encrypted_room_with(&[&bob, &carol]);
    let mut alice = Caller::new(alice, &room, Slot::Open, any_device()).await;
    let mut bob = Caller::new(bob, &room, Slot::Open, any_device()).await;
    let mut carol = Caller::new(carol, &room, Slot::Open, any_device()).await;
    acquainted(&[&alice, &bob, &carol]).await;
    let seen = Seen::by(&bob.watch.client);

    tokio::join!(alice.join(), bob.join(), carol.join());
    let all = [&mut alice, &mut bob, &mut carol];
    for caller in all {
        caller.until("its own key", |it| it.own.is_some()).await;
    }
    alice.hears(&bob).await;
    alice.hears(&carol).await;
    bob.hears(&alice).await;
    bob.hears(&carol).await;
    carol.hears(&alice).await;
    carol.hears(&bob).await;
    assert_ne!(alice.own, bob.own);

    let (first, _) = alice.own.clone().unwrap();
    carol.leave().await;
    alice.until("another key", |it| it.own.as_ref().is_some_and(|(it, _)| *it != first)).await;
    bob.hears(&alice).await;
    // To carol nothing has gone: what alice sends her now is the next that she gets.
    let marker = key_content(&room, "marker", 1);
    send_to_device(&alice.watch.client, &carol.person, KEY, &marker).await;
    assert_eq!(carol.discarded(1).await, [DiscardReason::Malformed("format")]);
    let (second, _) = alice.own.clone().unwrap();
    while let Ok(Some(change)) = timeout(Duration::ZERO, carol.changes.next()).await {
        carol.apply(change);
    }
    assert!(!carol.peers[&alice.participant()].contains_key(&second), "{:?}", carol.indices());

    // What the SDK tells of a decrypted to-device message: the device is there.
    for (event_type, content, info) in seen.all() {
        assert_eq!(event_type, KEY);
        assert_eq!(content["format"], 0);
        let info = info.unwrap();
        let caller = if info.sender == alice.person.id() { &alice } else { &carol };
        assert_eq!(info.sender, caller.person.id());
        assert_eq!(info.sender_device.unwrap().as_str(), caller.person.device_id());
        assert_eq!(content["member_id"], member_id(&caller.person));
        assert!(matches!(info.verification_state, VerificationState::Unverified(_)));
        assert!(matches!(info.algorithm_info, AlgorithmInfo::OlmV1Curve25519AesSha2 { .. }));
    }
    assert_eq!(bob.keys.discards().total, 0);

    // The end of the exchange is the end of the stream.
    drop(bob.keys);
    while let Some(change) = timeout(DEADLINE, bob.changes.next()).await.unwrap() {
        assert!(!matches!(change, KeyChange::Reset), "nothing was slow");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_another_device_sends_in_a_members_name_is_not_taken() {
    let (alice, bob, mallory) = (Person::new("alice"), Person::new("bob"), Person::new("mallory"));
    let room = alice.encrypted_room_with(&[&bob, &mallory]);
    let second = alice.on_another_device();
    let second_client = second.encrypting_client().await;
    let mut alice = Caller::new(alice, &room, Slot::Open, any_device()).await;
    let mut bob = Caller::new(bob, &room, Slot::Open, any_device()).await;
    let mallory_watch = Watcher::encrypting(&mallory, &[&room]).await;
    let _main_loop = sync(&second_client);
    in_room(&second_client, &room).await;
    devices_are_there(&bob.person, &[&mallory]).await;
    acquainted(&[&alice, &bob]).await;
    tokio::join!(alice.join(), bob.join());
    alice.until("its own key", |it| it.own.is_some()).await;
    bob.hears(&alice).await;

    // Another device of hers, by whatever name.
    let alices = member_id(&alice.person);
    let forged = key_content(&room, &alices, 0);
    send_to_device(&second_client, &bob.person, KEY, &forged).await;
    assert_eq!(bob.discarded(1).await, [DiscardReason::OtherDevice]);
    let forged = json!({
        "keys": { "index": 7, "key": "AAAAAAAAAAAAAAAAAAAAAA==" },
        "member": { "id": alices, "claimed_device_id": alice.person.device_id() },
        "room_id": room,
    });
    send_to_device(&second_client, &bob.person, ELEMENT_CALL_KEY, &forged).await;
    assert_eq!(bob.discarded(2).await[1..], [DiscardReason::OtherDevice]);

    // In plaintext, as any server could.
    let plain = key_content(&room, &alices, 0);
    let messages = json!({ bob.person.id().as_str(): { bob.person.device_id(): plain } });
    let path = format!("sendToDevice/{KEY}/plain");
    alice.person.api.put(&path, &json!({ "messages": messages })).unwrap();
    assert_eq!(bob.discarded(3).await[2..], [DiscardReason::NotEncrypted]);

    // Somebody else: hers may yet become a member of that id, so that it waits. It is not taken.
    let forged = key_content(&room, &alices, 0);
    send_to_device(&mallory_watch.client, &bob.person, KEY, &forged).await;
    let marker = key_content(&room, &alices, 1);
    send_to_device(&mallory_watch.client, &bob.person, KEY, &marker).await;
    assert_eq!(bob.discarded(4).await[3..], [DiscardReason::Malformed("format")]);
    while let Ok(Some(change)) = timeout(Duration::ZERO, bob.changes.next()).await {
        bob.apply(change);
    }
    assert!(!bob.peers[&alice.participant()].contains_key(&7), "{:?}", bob.indices());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_room_has_no_slot_keys_go_in_element_calls_messages() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let mut alice = Caller::new(alice, &room, Slot::Missing, any_device()).await;
    let mut bob = Caller::new(bob, &room, Slot::Missing, any_device()).await;
    acquainted(&[&alice, &bob]).await;
    let seen = Seen::by(&bob.watch.client);
    alice.join().await;
    bob.join().await;
    alice.until("its own key", |it| it.own.is_some()).await;
    bob.hears(&alice).await;
    // Who sees them and who takes them are told in any order.
    let first =
        eventually("the message was seen", async || seen.all().into_iter().next().ok_or("not yet"));
    let (event_type, content, _) = first.await;
    assert_eq!(event_type, ELEMENT_CALL_KEY);
    assert_eq!(content["member"]["claimed_device_id"], alice.person.device_id());
    assert_eq!(content["member"]["id"], member_id(&alice.person));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_server_did_not_take_is_sent_again() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let proxy = Proxy::before(alice.url()).await;
    let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
    let watch = Watcher::with(client, &[&room]).await;
    let mut alice = Caller::with(alice, watch, &room, Slot::Open, any_device()).await;
    let mut bob = Caller::new(bob, &room, Slot::Open, any_device()).await;
    acquainted(&[&alice, &bob]).await;
    alice.join().await;
    proxy.refuse_to_device(true);
    bob.join().await;
    bob.until("its own key", |it| it.own.is_some()).await;
    alice.hears(&bob).await;
    eventually("alice has tried twice", async || match proxy.refused_to_device() {
        2.. => Ok(()),
        less => Err(less),
    })
    .await;
    assert!(bob.peers.is_empty());
    proxy.refuse_to_device(false);
    alice.until("its own key", |it| it.own.is_some()).await;
    bob.hears(&alice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_came_before_the_exchange_has_begun_is_taken_from_the_inbox() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let watch = Watcher::encrypting(&alice, &[&room]).await;
    let mut bob = Caller::new(bob, &room, Slot::Open, any_device()).await;
    let inbox = KeyInbox::open(&watch.client);
    let seen = Seen::by(&watch.client);
    // Somebody who is there without an exchange: bob knows no better, and sends his key.
    let alice = Caller::with(alice, watch, &room, Slot::Open, any_device()).await;
    acquainted(&[&alice, &bob]).await;
    tokio::join!(alice.join(), bob.join());
    bob.until("its own key", |it| it.own.is_some()).await;
    eventually("bob's key has come", async || match seen.all().len() {
        0 => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    let Caller { person, watch, door, keys, .. } = alice;
    drop(keys);
    let sdk_room = watch.client.get_room(&room).unwrap();
    let (member_id, sessions) = (member_id(&person), sessions(&door, Slot::Open));
    let timer = Arc::new(SystemClock::default());
    let keys = MediaKeys::start(sdk_room, member_id, inbox, sessions, any_device(), timer);
    let keys = keys.await.unwrap();
    let changes = keys.changes();
    let (own, peers) = Default::default();
    let mut alice = Caller { person, watch, door, keys, changes, own, peers };
    alice.hears(&bob).await;
}

/// The default: devices that are not cross-signed are given nothing, and nothing of theirs is taken.
/// Once they are, what was held back is made up for.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_cross_signed_is_left_out_until_it_is() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let watch = Watcher::encrypting(&alice, &[&room]).await;
    watch.client.encryption().bootstrap_cross_signing(None).await.unwrap();
    let strict = KeyConfig::default().with_use_after(Duration::from_secs(1));
    let mut alice = Caller::with(alice, watch, &room, Slot::Open, strict).await;
    let mut bob = Caller::new(bob, &room, Slot::Open, strict).await;
    acquainted(&[&alice, &bob]).await;
    let seen = (Seen::by(&alice.watch.client), Seen::by(&bob.watch.client));
    tokio::join!(alice.join(), bob.join());
    // Bob trusts alice, and gives her his key; she does not take it.
    eventually("bob's key has come", async || match seen.0.all().len() {
        0 => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    bob.until("its own key", |it| it.own.is_some()).await;
    assert!(seen.1.all().is_empty());
    assert!(alice.keys.discards().last.is_empty());

    bob.watch.client.encryption().bootstrap_cross_signing(None).await.unwrap();
    alice.hears(&bob).await;
    alice.until("its own key", |it| it.own.is_some()).await;
    bob.hears(&alice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_room_that_is_not_encrypted_there_are_no_keys() {
    let alice = Person::new("alice");
    let room = alice.room();
    let watch = Watcher::encrypting(&alice, &[&room]).await;
    let sdk_room = watch.client.get_room(&room).unwrap();
    let sessions = sessions(&watch.room(&room), Slot::Open);
    let timer = Arc::new(SystemClock::default());
    let inbox = KeyInbox::open(&watch.client);
    let keys = MediaKeys::start(sdk_room, "m", inbox, sessions, any_device(), timer).await;
    assert!(matches!(keys, Err(MediaKeysError::NotEncrypted)), "{keys:?}");
}
