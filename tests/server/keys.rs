//! Media keys, exchanged by real devices over a real server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt as _;
use matrix_sdk::{
    Client,
    deserialized_responses::{AlgorithmInfo, EncryptionInfo, VerificationState},
    event_handler::RawEvent,
    ruma::{RoomId, events::AnyToDeviceEvent, serde::Raw},
};
use matrix_sdk_sticky::{
    BaseClientBuilder,
    heartbeat::HeartbeatState,
    matrix_sdk_base::crypto::{CollectStrategy, LocalTrust},
    rtc::{
        InBackground, OwnMembership, ROOM_CALL, Transports,
        keys::{
            DevicePolicy, DiscardReason, KeyChange, KeyChanges, KeyConfig, MediaKeys,
            MediaKeysError, Participant,
        },
    },
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    proxy::Proxy,
    rtc::{Call, open_slot, until},
    support::{DEADLINE, Person, Watcher, eventually, in_room, sync},
};

const KEY: &str = "org.matrix.msc4143.rtc.encryption_key";
const ELEMENT_CALL_KEY: &str = "io.element.call.encryption_keys";

/// A media key's index, and the key.
pub(crate) type Keys = BTreeMap<u8, Vec<u8>>;

/// One who is about to call.
struct Guest {
    person: Person,
    watch: Watcher,
    membership: OwnMembership,
}

/// A device in a call: its membership, and a frame cryptor that remembers what it is told.
pub(crate) struct Caller {
    pub(crate) person: Person,
    pub(crate) watch: Watcher,
    membership: OwnMembership,
    keys: MediaKeys,
    changes: KeyChanges,
    pub(crate) own: Option<(u8, Vec<u8>)>,
    pub(crate) peers: BTreeMap<Participant, Keys>,
    /// Whose keys it was told to forget.
    pub(crate) gone: Vec<Participant>,
}

impl Guest {
    async fn new(person: Person, watch: Watcher, room: &RoomId) -> Self {
        let session = watch.room(room).rtc().session(ROOM_CALL);
        let membership = session.join(Transports::default()).await.unwrap();
        Self { person, watch, membership }
    }

    async fn exchanges(self, config: KeyConfig) -> Caller {
        let Self { person, watch, membership } = self;
        let keys = membership.media_keys(config).await.unwrap();
        let changes = keys.changes();
        let peers = BTreeMap::new();
        Caller { person, watch, membership, keys, changes, own: None, peers, gone: Vec::new() }
    }
}

impl Caller {
    pub(crate) async fn new(
        person: Person,
        watch: Watcher,
        room: &RoomId,
        config: KeyConfig,
    ) -> Self {
        Guest::new(person, watch, room).await.exchanges(config).await
    }

    pub(crate) fn participant(&self) -> Participant {
        Participant::new(self.person.id(), self.membership.member_id(), self.person.device_id())
    }

    /// Takes what the cryptor is told, until it is as wanted.
    pub(crate) async fn until(&mut self, what: &str, mut is_wanted: impl FnMut(&Self) -> bool) {
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
            KeyChange::Own { participant, index, key } => {
                assert_eq!(participant.device_id, self.person.device_id());
                self.own = Some((index, key.as_bytes().to_vec()));
            }
            KeyChange::Peer { participant, index, key } => {
                let keys = self.peers.entry(participant).or_default();
                keys.insert(index, key.as_bytes().to_vec());
            }
            KeyChange::Gone { participant } => {
                self.peers.remove(&participant).unwrap();
                self.gone.push(participant);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Takes what it is told by now.
    async fn apply_all(&mut self) {
        while let Ok(Some(change)) = timeout(Duration::ZERO, self.changes.next()).await {
            self.apply(change);
        }
    }

    fn indices(&self) -> BTreeMap<String, Vec<u8>> {
        let indices = |(who, keys): (&Participant, &Keys)| {
            (who.user_id.localpart().to_owned(), keys.keys().copied().collect())
        };
        self.peers.iter().map(indices).collect()
    }

    /// Takes what it is told until it can decrypt what the other encrypts now.
    pub(crate) async fn hears(&mut self, other: &Self) {
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

pub(crate) fn any_device() -> KeyConfig {
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

/// The people's clients, once they know each other's devices, so that who joins is read by all at once.
async fn acquainted<const N: usize>(people: [&Person; N], room: &RoomId) -> [Watcher; N] {
    let mut watchers = Vec::new();
    for person in people {
        watchers.push(Watcher::encrypting(person, &[room]).await);
    }
    know_each_other(&people, &watchers.iter().collect::<Vec<_>>()).await;
    watchers.try_into().ok().unwrap()
}

pub(crate) async fn know_each_other(people: &[&Person], watchers: &[&Watcher]) {
    for watcher in watchers {
        for other in people {
            let encryption = watcher.client.encryption();
            eventually("the other's device is known", async || {
                let device = encryption.get_device(other.id(), other.device_id().into()).await;
                device.unwrap().map(drop).ok_or("not yet")
            })
            .await;
        }
    }
}

/// Three members exchange keys, and one leaves.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaver_gets_no_further_key() {
    let (alice, bob, carol) = (Person::new("alice"), Person::new("bob"), Person::new("carol"));
    let room = alice.encrypted_room_with(&[&bob, &carol]);
    open_slot(&alice, &room, true);
    let [ours, bobs, carols] = acquainted([&alice, &bob, &carol], &room).await;
    let seen = Seen::by(&bobs.client);

    let (mut alice, mut bob, mut carol) = tokio::join!(
        Caller::new(alice, ours, &room, any_device()),
        Caller::new(bob, bobs, &room, any_device()),
        Caller::new(carol, carols, &room, any_device()),
    );
    for caller in [&mut alice, &mut bob, &mut carol] {
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
    carol.membership.leave().await;
    alice.until("another key", |it| it.own.as_ref().is_some_and(|(it, _)| *it != first)).await;
    bob.hears(&alice).await;
    // To carol nothing has gone: what alice sends her now is the next that she gets.
    let marker = key_content(&room, "marker", 1);
    send_to_device(&alice.watch.client, &carol.person, KEY, &marker).await;
    assert_eq!(carol.discarded(1).await, [DiscardReason::Malformed("format")]);
    let (second, _) = alice.own.clone().unwrap();
    carol.apply_all().await;
    assert!(!carol.peers[&alice.participant()].contains_key(&second), "{:?}", carol.indices());

    // What the SDK tells of a decrypted to-device message: the device is there.
    for (event_type, content, info) in seen.all() {
        assert_eq!(event_type, KEY);
        assert_eq!(content["format"], 0);
        let info = info.unwrap();
        let caller = if info.sender == alice.person.id() { &alice } else { &carol };
        assert_eq!(info.sender, caller.person.id());
        assert_eq!(info.sender_device.unwrap().as_str(), caller.person.device_id());
        assert_eq!(content["member_id"], caller.membership.member_id());
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
async fn a_rejoined_member_hears_and_is_heard() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    open_slot(&alice, &room, true);
    let [ours, bobs] = acquainted([&alice, &bob], &room).await;
    let (mut alice, mut bob) = tokio::join!(
        Caller::new(alice, ours, &room, any_device()),
        Caller::new(bob, bobs, &room, any_device()),
    );
    for caller in [&mut alice, &mut bob] {
        caller.until("its own key", |it| it.own.is_some()).await;
    }
    bob.hears(&alice).await;
    alice.hears(&bob).await;

    let before = alice.participant();
    alice.membership.suspend(InBackground::Leave);
    bob.until("alice is gone", |it| !it.peers.contains_key(&before)).await;
    alice.membership.resume();
    until(&alice.membership, HeartbeatState::Joined).await;
    assert_ne!(alice.participant(), before);
    let first = alice.own.clone();
    alice.until("another key", |it| it.own != first).await;
    bob.hears(&alice).await;
    bob.apply_all().await;
    alice.hears(&bob).await;
}

/// Another device of the same user sends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_anothers_name_is_rejected() {
    let (alice, bob, mallory) = (Person::new("alice"), Person::new("bob"), Person::new("mallory"));
    let room = alice.encrypted_room_with(&[&bob, &mallory]);
    open_slot(&alice, &room, true);
    let second = alice.on_another_device();
    let second_client = second.encrypting_client().await;
    let [ours, bobs, mallorys] = acquainted([&alice, &bob, &mallory], &room).await;
    let _main_loop = sync(&second_client);
    in_room(&second_client, &room).await;
    let (mut alice, mut bob) = tokio::join!(
        Caller::new(alice, ours, &room, any_device()),
        Caller::new(bob, bobs, &room, any_device()),
    );
    alice.until("its own key", |it| it.own.is_some()).await;
    bob.hears(&alice).await;

    // Another device of hers, by whatever name.
    let alices = alice.membership.member_id();
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

    // Somebody else: she may yet become a member of that id, so that it waits. It is not taken.
    let forged = key_content(&room, &alices, 0);
    send_to_device(&mallorys.client, &bob.person, KEY, &forged).await;
    let marker = key_content(&room, &alices, 1);
    send_to_device(&mallorys.client, &bob.person, KEY, &marker).await;
    assert_eq!(bob.discarded(4).await[3..], [DiscardReason::Malformed("format")]);
    bob.apply_all().await;
    assert!(!bob.peers[&alice.participant()].contains_key(&7), "{:?}", bob.indices());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_slot_element_calls_messages_go() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let [ours, bobs] = acquainted([&alice, &bob], &room).await;
    let seen = Seen::by(&bobs.client);
    let (mut alice, mut bob) = tokio::join!(
        Caller::new(alice, ours, &room, any_device()),
        Caller::new(bob, bobs, &room, any_device()),
    );
    alice.until("its own key", |it| it.own.is_some()).await;
    bob.hears(&alice).await;
    // Who sees them and who takes them are told in any order.
    let first =
        eventually("the message was seen", async || seen.all().into_iter().next().ok_or("not yet"));
    let (event_type, content, _) = first.await;
    assert_eq!(event_type, ELEMENT_CALL_KEY);
    assert_eq!(content["member"]["claimed_device_id"], alice.person.device_id());
    assert_eq!(content["member"]["id"], alice.membership.member_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_sent_again() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    open_slot(&alice, &room, true);
    let proxy = Proxy::before(alice.url()).await;
    let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
    let ours = Watcher::with(client, &[&room]).await;
    let bobs = Watcher::encrypting(&bob, &[&room]).await;
    know_each_other(&[&alice, &bob], &[&ours, &bobs]).await;
    let mut alice = Caller::new(alice, ours, &room, any_device()).await;
    until(&alice.membership, HeartbeatState::Joined).await;
    proxy.refuse_to_device(true);
    let mut bob = Caller::new(bob, bobs, &room, any_device()).await;
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

/// Also if a first exchange came to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn keys_from_before_the_exchange_are_taken() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    open_slot(&alice, &room, true);
    let [ours, bobs] = acquainted([&alice, &bob], &room).await;
    let seen = Seen::by(&ours.client);
    let alice = Guest::new(alice, ours, &room).await;
    let mut bob = Caller::new(bob, bobs, &room, any_device()).await;
    bob.until("its own key", |it| it.own.is_some()).await;
    eventually("bob's key has come", async || match seen.all().len() {
        0 => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    // Given up before it comes to its end.
    let given_up = timeout(Duration::ZERO, alice.membership.media_keys(any_device())).await;
    assert!(given_up.is_err());
    let mut alice = alice.exchanges(any_device()).await;
    alice.hears(&bob).await;
}

/// The default: devices that are not cross-signed are given nothing, and nothing of theirs is taken.
/// Once they are, what was held back is made up for.
#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_device_is_left_out() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    open_slot(&alice, &room, true);
    let [ours, bobs] = acquainted([&alice, &bob], &room).await;
    ours.client.encryption().bootstrap_cross_signing(None).await.unwrap();
    let seen = (Seen::by(&ours.client), Seen::by(&bobs.client));
    let strict = KeyConfig::default().with_use_after(Duration::from_secs(1));
    let mut bob = Caller::new(bob, bobs, &room, strict).await;
    Call::of(&ours.room(&room).rtc()).await.len(1).await;
    let mut alice = Caller::new(alice, ours, &room, strict).await;
    // Bob trusts alice, and gives her his key; she does not take it.
    eventually("bob's key has come", async || match seen.0.all().len() {
        0 => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    bob.until("its own key", |it| it.own.is_some()).await;
    // Bob was there when alice began: she uses her key once she has tried to send it to him.
    alice.until("its own key", |it| it.own.is_some()).await;
    assert_eq!(alice.peers, BTreeMap::new());
    // What she sends him now comes after whatever she has sent before.
    let marker = key_content(&room, "marker", 1);
    send_to_device(&alice.watch.client, &bob.person, KEY, &marker).await;
    let first = eventually("the marker has come", async || {
        seen.1.all().into_iter().next().ok_or("not yet")
    });
    assert_eq!(first.await.1["member_id"], "marker");

    bob.watch.client.encryption().bootstrap_cross_signing(None).await.unwrap();
    alice.hears(&bob).await;
    alice.until("its own key", |it| it.own.is_some()).await;
    bob.hears(&alice).await;
}

/// Alice has blocked bob's device: it is sent nothing, and nothing of it is taken, until she changes her mind.
#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_device_is_left_out() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    open_slot(&alice, &room, true);
    let [ours, bobs] = acquainted([&alice, &bob], &room).await;
    let seen = Seen::by(&bobs.client);
    let mut bob = Caller::new(bob, bobs, &room, any_device()).await;
    // As alice cannot be read by whom she blocks, she joins first.
    let guest = Guest::new(alice, ours, &room).await;
    until(&guest.membership, HeartbeatState::Joined).await;
    Call::of(&guest.watch.room(&room).rtc()).await.len(2).await;
    Call::of(&bob.watch.room(&room).rtc()).await.len(2).await;
    let encryption = guest.watch.client.encryption();
    let device = encryption.get_device(bob.person.id(), bob.person.device_id().into()).await;
    let device = device.unwrap().unwrap();
    device.set_local_trust(LocalTrust::BlackListed).await.unwrap();
    let mut alice = guest.exchanges(any_device()).await;
    alice.until("its own key", |it| it.own.is_some()).await;
    bob.until("its own key", |it| it.own.is_some()).await;
    // Bob's key comes before what he sends now.
    let marker = key_content(&room, "marker", 1);
    send_to_device(&bob.watch.client, &alice.person, KEY, &marker).await;
    assert_eq!(alice.discarded(1).await, [DiscardReason::Malformed("format")]);
    alice.apply_all().await;
    assert_eq!(alice.peers, BTreeMap::new());
    assert!(seen.all().is_empty(), "the SDK leaves out a blocked device");

    device.set_local_trust(LocalTrust::Unset).await.unwrap();
    alice.hears(&bob).await;
    bob.hears(&alice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unencrypted_rooms_have_no_keys() {
    let alice = Person::new("alice");
    let room = alice.room();
    open_slot(&alice, &room, false);
    let watch = Watcher::encrypting(&alice, &[&room]).await;
    let alice = Guest::new(alice, watch, &room).await;
    let keys = alice.membership.media_keys(any_device()).await;
    assert!(matches!(keys, Err(MediaKeysError::NotEncrypted)), "{keys:?}");
}
