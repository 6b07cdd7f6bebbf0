//! A member of a room who seals whatever they like.
//!
//! A device of its own on the vodozemac crate, which does with Olm and Megolm what every client can
//! do: it shares a room key with the others, and encrypts any JSON object with it. The server sees
//! ordinary messages. matrix-sdk would seal nothing but messages.

use matrix_sdk::ruma::{CanonicalJsonValue, OwnedEventId, RoomId};
use serde_json::{Value, json};
use vodozemac::{
    Curve25519PublicKey, base64_encode,
    megolm::{self, GroupSession},
    olm::{Account, SessionConfig},
};

use crate::support::{LONG, Person, devices_are_there, unique};

const OLM: &str = "m.olm.v1.curve25519-aes-sha2";
const MEGOLM: &str = "m.megolm.v1.aes-sha2";

pub(crate) struct Attacker {
    pub(crate) person: Person,
    account: Account,
    device_keys: Value,
    session: GroupSession,
    /// Whether room keys come with the keys of the device that sends them (MSC4147). Without them
    /// the others learn of the device when they ask the server.
    pub(crate) introduces_itself: bool,
}

impl Attacker {
    /// Makes this person's one device the attacker's, with keys that everybody can ask for.
    pub(crate) fn new(person: Person) -> Self {
        let mut attacker = Self::unknown(person);
        attacker.publish();
        attacker.introduces_itself = true;
        attacker
    }

    /// The same, with a device that nobody knows until its keys are published.
    pub(crate) fn unknown(person: Person) -> Self {
        let account = Account::new();
        let device = person.device_id().to_owned();
        let mut device_keys = json!({
            "user_id": person.id(),
            "device_id": device,
            "algorithms": [OLM, MEGOLM],
            "keys": {
                format!("curve25519:{device}"): account.curve25519_key().to_base64(),
                format!("ed25519:{device}"): account.ed25519_key().to_base64(),
            },
        });
        sign(&account, &person, &mut device_keys);
        let session = GroupSession::new(megolm::SessionConfig::version_1());
        Self { person, account, device_keys, session, introduces_itself: false }
    }

    /// Uploads the device's keys, so that everybody can ask for them.
    pub(crate) fn publish(&mut self) {
        let Self { account, person, device_keys, .. } = self;
        account.generate_one_time_keys(10);
        let mut one_time_keys = json!({});
        for (key_id, key) in account.one_time_keys() {
            let mut key = json!({ "key": key.to_base64() });
            sign(account, person, &mut key);
            one_time_keys[format!("signed_curve25519:{}", key_id.to_base64())] = key;
        }
        account.mark_keys_as_published();
        let keys = json!({ "device_keys": device_keys, "one_time_keys": one_time_keys });
        person.api.post("keys/upload", &keys).unwrap();
    }

    /// Gives the room key to all devices of these people.
    pub(crate) async fn share(&self, room: &RoomId, others: &[&Person]) {
        devices_are_there(&self.person, others).await;
        let mut messages = json!({});
        for other in others {
            let user = other.id().as_str();
            let asked = json!({ "device_keys": { user: [] } });
            let answer = self.person.api.post("keys/query", &asked).unwrap();
            let devices = answer["device_keys"][user].as_object().unwrap();
            for (device, keys) in devices {
                messages[user][device] = self.room_key(room, user, device, &keys["keys"]);
            }
        }
        let path = format!("sendToDevice/m.room.encrypted/{}", unique());
        self.person.api.put(&path, &json!({ "messages": messages })).unwrap();
    }

    /// The room key, encrypted for one device.
    fn room_key(&self, room: &RoomId, user: &str, device: &str, keys: &Value) -> Value {
        let claimed = json!({ "one_time_keys": { user: { device: "signed_curve25519" } } });
        let claimed = self.person.api.post("keys/claim", &claimed).unwrap();
        let one_time_key = claimed["one_time_keys"][user][device].as_object().unwrap();
        let one_time_key = curve(&one_time_key.values().next().unwrap()["key"]);
        let to = curve(&keys[format!("curve25519:{device}")]);
        let session = SessionConfig::version_1();
        let mut session = self.account.create_outbound_session(session, to, one_time_key).unwrap();
        let mut message = json!({
            "type": "m.room_key",
            "content": {
                "algorithm": MEGOLM,
                "room_id": room,
                "session_id": self.session.session_id(),
                "session_key": self.session.session_key().to_base64(),
            },
            "sender": self.person.id(),
            "recipient": user,
            "recipient_keys": { "ed25519": keys[format!("ed25519:{device}")] },
            "keys": { "ed25519": self.account.ed25519_key().to_base64() },
        });
        if self.introduces_itself {
            message["sender_device_keys"] = self.device_keys.clone();
        }
        let (kind, body) = session.encrypt(message.to_string()).unwrap().to_parts();
        json!({
            "algorithm": OLM,
            "sender_key": self.account.curve25519_key().to_base64(),
            "ciphertext": { to.to_base64(): { "type": kind, "body": base64_encode(body) } },
        })
    }

    /// Sends this object, whatever it is, as an ordinary encrypted message; as a sticky one, if it
    /// is to be.
    pub(crate) fn seal(&mut self, room: &RoomId, object: &Value, is_sticky: bool) -> OwnedEventId {
        let mut object = object.clone();
        object["room_id"] = json!(room);
        let content = json!({
            "algorithm": MEGOLM,
            "ciphertext": self.session.encrypt(object.to_string()).to_base64(),
            "session_id": self.session.session_id(),
            "sender_key": self.account.curve25519_key().to_base64(),
            "device_id": self.person.device_id(),
        });
        let sticky = is_sticky.then(|| u64::try_from(LONG.as_millis()).unwrap());
        let txn = unique().to_string();
        let api = &self.person.api;
        let event_id = api.send(room.as_str(), "m.room.encrypted", &txn, &content, sticky);
        event_id.unwrap().try_into().unwrap()
    }
}

fn curve(key: &Value) -> Curve25519PublicKey {
    Curve25519PublicKey::from_base64(key.as_str().unwrap()).unwrap()
}

fn sign(account: &Account, person: &Person, object: &mut Value) {
    let canonical = CanonicalJsonValue::try_from(object.clone()).unwrap().to_string();
    let signature = account.sign(canonical).to_base64();
    let name = format!("ed25519:{}", person.device_id());
    object["signatures"] = json!({ person.id().as_str(): { name: signature } });
}
