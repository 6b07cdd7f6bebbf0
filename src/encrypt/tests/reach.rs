//! Who gets the room key, and who is offered it again: on a server that gives one-time keys as the test
//! wants, with devices that try to read what was encrypted.

use std::{collections::VecDeque, net::Ipv4Addr};

use matrix_sdk_base::crypto::{
    DecryptionSettings, EncryptionSyncChanges, TrustRequirement, store::types::Changes,
    types::requests::AnyOutgoingRequest,
};
use ruma::{OwnedDeviceId, api::client::sync::sync_events::DeviceLists};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::driver::before;

fn alice() -> &'static UserId {
    user_id!("@alice:hs")
}

fn bob() -> &'static UserId {
    user_id!("@bob:elsewhere")
}

/// What becomes of a claim of one-time keys; all are given unless the test says otherwise.
enum Claim {
    Given,
    Empty,
    /// This server cannot be reached.
    Fails(&'static str),
    Late(Duration),
    Refused,
}

#[derive(Default)]
struct Server(Mutex<State>);

/// What a device has uploaded.
struct Uploaded {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    keys: Value,
    one_time_keys: Vec<(String, Value)>,
}

#[derive(Default)]
struct State {
    devices: Vec<Uploaded>,
    claims: VecDeque<Claim>,
    /// Which access token is good, and the refresh token. Each refresh token is good once.
    token: usize,
    /// How long a refresh takes.
    refresh: Duration,
    /// The server whose users' devices cannot be asked for.
    fails: Option<&'static str>,
    /// Whose devices were asked for.
    queried: Vec<String>,
    paths: Vec<String>,
    /// Type and messages of what was sent to devices.
    sent: Vec<(String, Value)>,
}

impl Server {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// How many requests had this in their path.
    fn count(&self, part: &str) -> usize {
        self.state().paths.iter().filter(|path| path.contains(part)).count()
    }

    async fn listen(self: Arc<Self>) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        #[expect(clippy::disallowed_methods, reason = "a server has tasks")]
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(self.clone().serve(stream));
            }
        });
        url
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        let (head, body) = loop {
            if stream.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
                return;
            }
            let text = String::from_utf8_lossy(&bytes).to_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.split("content-length: ").nth(1);
            let length = length.map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
            if body.len() == length {
                break (head.len(), head.len() + 4);
            }
        };
        let head = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let path = head.split(' ').nth(1).unwrap();
        let body = serde_json::from_slice(&bytes[body..]).unwrap_or_default();
        let is_good = head.contains(&format!("Bearer token-{}", self.state().token));
        let (wait, status, answer) = self.answer(path, &body, is_good);
        pause(wait).await;
        let answer = answer.to_string();
        let answer = format!(
            "HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{answer}",
            answer.len()
        );
        // Whoever asked may have gone.
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    fn answer(&self, path: &str, body: &Value, is_good: bool) -> (Duration, u16, Value) {
        let mut state = self.state();
        state.paths.push(path.to_owned());
        let mut wait = Duration::ZERO;
        let unknown = json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "no", "soft_logout": true });
        let answer = if path.ends_with("/refresh") {
            if body["refresh_token"] != format!("refresh-{}", state.token - 1) {
                return (wait, 401, unknown);
            }
            wait = state.refresh;
            json!({
                "access_token": format!("token-{}", state.token),
                "refresh_token": format!("refresh-{}", state.token),
            })
        } else if !is_good {
            return (wait, 401, unknown);
        } else if path.contains("/members") {
            let members = state.devices.iter();
            let members: Vec<_> =
                members.map(|of| membership(&of.user_id, "join", Some(room_id()))).collect();
            json!({ "chunk": members })
        } else if path.contains("/keys/query") {
            let (mut keys, mut failures) = (json!({}), json!({}));
            for user in body["device_keys"].as_object().unwrap().keys() {
                state.queried.push(user.clone());
                if let Some(server) = state.fails.filter(|server| user.ends_with(*server)) {
                    failures[server] = json!({ "status": 503 });
                    continue;
                }
                keys[user] = json!({});
                for device in state.devices.iter().filter(|device| device.user_id == *user) {
                    keys[user][device.device_id.as_str()] = device.keys.clone();
                }
            }
            json!({ "device_keys": keys, "failures": failures })
        } else if path.contains("/keys/claim") {
            let (mut fails, mut given) = (None, json!({}));
            match state.claims.pop_front() {
                Some(Claim::Empty) => return (wait, 200, json!({ "one_time_keys": {} })),
                Some(Claim::Refused) => return (wait, 500, json!({ "errcode": "M_UNKNOWN" })),
                Some(Claim::Fails(server)) => fails = Some(server),
                Some(Claim::Late(by)) => wait = by,
                Some(Claim::Given) | None => {}
            }
            for Uploaded { user_id: user, device_id: device, one_time_keys: keys, .. } in
                &mut state.devices
            {
                let is_wanted = body["one_time_keys"][user.as_str()].get(device.as_str()).is_some();
                if is_wanted && Some(user.server_name().as_str()) != fails {
                    let (id, key) = keys.pop().unwrap();
                    given[user.as_str()][device.as_str()] = json!({ id: key });
                }
            }
            let failures = fails.map(|server| (server.to_owned(), json!({ "status": 503 })));
            let failures: serde_json::Map<_, _> = failures.into_iter().collect();
            json!({ "one_time_keys": given, "failures": failures })
        } else if let Some((_, rest)) = path.split_once("/sendToDevice/") {
            let event_type = rest.split('/').next().unwrap();
            state.sent.push((event_type.to_owned(), body["messages"].clone()));
            json!({})
        } else {
            return (wait, 404, json!({ "errcode": "M_NOT_FOUND", "error": path }));
        };
        (wait, 200, answer)
    }
}

/// Somebody's device.
struct Peer {
    machine: OlmMachine,
    /// How much of what was sent to devices it has looked at.
    looked_at: usize,
}

impl Peer {
    async fn on(server: &Server, user_id: &UserId, device_id: &DeviceId) -> Self {
        let machine = OlmMachine::new(user_id, device_id).await;
        let requests = machine.outgoing_requests().await.unwrap();
        let upload = requests.iter().find_map(|request| match request.request() {
            AnyOutgoingRequest::KeysUpload(upload) => Some(upload),
            _ => None,
        });
        let upload = upload.unwrap();
        let keys = serde_json::to_value(&upload.device_keys).unwrap();
        let one_time_keys = upload.one_time_keys.iter();
        let one_time_keys =
            one_time_keys.map(|(id, key)| (id.to_string(), serde_json::to_value(key).unwrap()));
        let (user_id, device_id) = (user_id.to_owned(), device_id.to_owned());
        let one_time_keys = one_time_keys.collect();
        server.state().devices.push(Uploaded { user_id, device_id, keys, one_time_keys });
        Self { machine, looked_at: 0 }
    }

    /// Whether it can read this, with the keys that it was sent.
    async fn reads(&mut self, server: &Server, encrypted: &Encrypted) -> bool {
        let settings =
            DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };
        let events: Vec<_> = {
            let state = server.state();
            let sent = state.sent[self.looked_at..].iter();
            self.looked_at = state.sent.len();
            sent.filter_map(|(event_type, messages)| {
                let message = messages[self.machine.user_id().as_str()]
                    .get(self.machine.device_id().as_str())?;
                let event =
                    json!({ "type": event_type, "sender": "@me:hs", "content": message.clone() });
                Some(Raw::from_json(to_raw_value(&event).unwrap()))
            })
            .collect()
        };
        let changes = EncryptionSyncChanges {
            to_device_events: events,
            changed_devices: &DeviceLists::new(),
            one_time_keys_counts: &BTreeMap::new(),
            unused_fallback_keys: None,
            next_batch_token: None,
        };
        self.machine.receive_sync_changes(changes, &settings).await.unwrap();
        let event = json!({
            "type": "m.room.encrypted",
            "event_id": "$event",
            "sender": "@me:hs",
            "origin_server_ts": 1,
            "room_id": room_id(),
            "content": encrypted.content,
        });
        let event = Raw::from_json(to_raw_value(&event).unwrap());
        self.machine.decrypt_room_event(&event, room_id(), &settings).await.is_ok()
    }
}

/// We are in an encrypted room with alice of our server and bob of another.
struct World {
    server: Arc<Server>,
    room: Room,
    encryptor: Arc<Encryptor>,
    alice: Peer,
    bob: Peer,
}

impl World {
    async fn new() -> Self {
        let server = Arc::<Server>::default();
        let alices = Peer::on(&server, alice(), device_id!("ALICES")).await;
        let bobs = Peer::on(&server, bob(), device_id!("BOBS")).await;
        let base = base_client();
        let client = client_at(&server.clone().listen().await, base.clone()).await;
        log_in(&client).await;
        members(&base, &[(alice(), "join"), (bob(), "join")]).await;
        Encryptor::attach(&client, base).unwrap();
        let encryptor = Encryptor::of(&client).unwrap();
        let room = client.get_room(room_id()).unwrap();
        Self { server, room, encryptor, alice: alices, bob: bobs }
    }

    fn claims(&self, claims: impl IntoIterator<Item = Claim>) {
        self.server.state().claims.extend(claims);
    }

    async fn encrypt(&self) -> Result<Encrypted, EncryptError> {
        let content = to_raw_value(&json!({})).unwrap();
        self.encryptor.encrypt(&self.room, "com.example.t", content).await
    }

    async fn offer(&self) -> Readers {
        self.encryptor.offer(&self.room).await.unwrap()
    }

    async fn readers(&self) -> Readers {
        self.encryptor.readers(&self.room).await.unwrap()
    }

    /// Who reads it: alice, bob.
    async fn read(&mut self, encrypted: &Encrypted) -> (bool, bool) {
        let alice = self.alice.reads(&self.server, encrypted).await;
        (alice, self.bob.reads(&self.server, encrypted).await)
    }
}

#[tokio::test]
async fn everybody_is_reached_and_nothing_is_offered() {
    let mut world = World::new().await;
    let sent = world.encrypt().await.unwrap();
    assert_eq!(world.read(&sent).await, (true, true));
    let readers = world.readers().await;
    assert_eq!(readers.len(), 2);
    assert!(sent.reached.covers(&readers) && readers.covers(&sent.reached));
    let to_device = world.server.count("/sendToDevice/");
    assert!(world.offer().await.covers(&readers));
    assert_eq!(world.server.count("/keys/claim"), 1);
    assert_eq!(world.server.count("/sendToDevice/"), to_device);
}

#[tokio::test]
async fn a_server_that_failed_is_offered_the_key_again() {
    let mut world = World::new().await;
    world.claims([Claim::Fails("elsewhere"), Claim::Fails("elsewhere")]);
    let sent = world.encrypt().await.unwrap();
    assert_eq!(world.read(&sent).await, (true, false));
    let readers = world.readers().await;
    assert_eq!(readers.len(), 2);
    assert_eq!(sent.reached.len(), 1);
    assert!(readers.covers(&sent.reached));

    // It fails once more: nobody was gained, and nothing was sent to anybody.
    let to_device = world.server.count("/sendToDevice/");
    let offered = world.offer().await;
    assert!(sent.reached.covers(&offered) && offered.covers(&sent.reached));
    assert_eq!(world.server.count("/sendToDevice/"), to_device);

    // The SDK's pause of 15 s is not waited for.
    let offered = world.offer().await;
    assert!(offered.covers(&readers) && !sent.reached.covers(&offered));
    assert_eq!(world.server.count("/keys/claim"), 3);
    let next = world.encrypt().await.unwrap();
    assert_eq!(next.session_id, sent.session_id);
    assert!(next.reached.covers(&readers));
    assert_eq!(world.read(&next).await, (true, true));
    assert_eq!(world.read(&sent).await, (true, false), "it was encrypted before");
}

#[tokio::test]
async fn after_an_empty_claim_all_are_offered_the_key() {
    let mut world = World::new().await;
    world.claims([Claim::Empty]);
    let sent = world.encrypt().await.unwrap();
    assert_eq!(world.read(&sent).await, (false, false));
    assert_eq!(sent.reached.len(), 0);
    let offered = world.offer().await;
    assert!(offered.covers(&world.readers().await));
    assert_eq!(offered.len(), 2);
    let next = world.encrypt().await.unwrap();
    assert_eq!(world.read(&next).await, (true, true));
    assert_eq!(world.server.count("/keys/claim"), 2);
}

#[tokio::test]
async fn an_offer_that_is_refused_says_so() {
    let world = World::new().await;
    world.claims([Claim::Empty, Claim::Refused]);
    world.encrypt().await.unwrap();
    let error = world.encryptor.offer(&world.room).await.unwrap_err();
    assert!(matches!(error, EncryptError::Server(_)), "{error:?}");
}

#[tokio::test]
async fn a_newcomer_is_not_reached_by_what_was_before() {
    let mut world = World::new().await;
    let sent = world.encrypt().await.unwrap();
    let carol = Peer::on(&world.server, user_id!("@carol:hs"), device_id!("CAROLS")).await;
    let carol_id = carol.machine.user_id().to_owned();
    members(&world.encryptor.base, &[(&carol_id, "join")]).await;
    // Her device is not known yet. The offer asks for it.
    assert!(sent.reached.covers(&world.readers().await));
    let offered = world.offer().await;
    assert!(!sent.reached.covers(&offered));
    assert!(offered.covers(&world.readers().await));
    let next = world.encrypt().await.unwrap();
    world.bob = carol;
    assert_eq!(world.read(&next).await, (true, true));
    assert_eq!(world.read(&sent).await, (true, false));
}

/// A claim that takes 6 s, in a shorter time: each caller gives up after a sixth of it.
#[tokio::test]
async fn callers_who_give_up_share_one_claim() {
    let mut world = World::new().await;
    let whole = Duration::from_millis(1_200);
    world.claims([Claim::Late(whole)]);
    let mut given_up = 0;
    let sent = loop {
        let deadline = SystemClock.now().deadline(whole / 6);
        match before(&SystemClock, deadline, world.encrypt()).await {
            Some(sent) => break sent.unwrap(),
            None => given_up += 1,
        }
    };
    assert!(given_up > 2, "{given_up}");
    assert_eq!(world.server.count("/keys/claim"), 1);
    assert_eq!(sent.reached.len(), 2);
    assert_eq!(world.read(&sent).await, (true, true));
}

/// Five of its twelve messages are left to the SDK's own sends, which panic with a session that is used
/// up.
#[tokio::test]
async fn the_room_key_changes_before_it_is_used_up() {
    let world = World::new().await;
    let mut sessions = Vec::new();
    for _ in 0..9 {
        sessions.push(world.encrypt().await.unwrap().session_id);
    }
    assert!(sessions[..7].iter().all(|session| *session == sessions[0]));
    assert_ne!(sessions[7], sessions[0]);
    assert_eq!(sessions[8], sessions[7]);
}

/// As when another process, or a send of the SDK's own, has made a new room key in just that moment: the
/// store has another session than the one that the machine encrypts with.
#[tokio::test]
async fn what_another_session_encrypted_is_encrypted_again() {
    let mut world = World::new().await;
    let first = world.encrypt().await.unwrap();
    let machine = world.encryptor.machine().await.unwrap();
    let (_client, _base, others) = machine_with_session(100).await;
    let changes =
        Changes { outbound_group_sessions: vec![session(&others).await], ..Changes::default() };
    crypto_store(&machine).save_changes(changes).await.unwrap();

    let sent = world.encrypt().await.unwrap();
    assert_eq!(sent.session_id, first.session_id);
    assert!(
        sent.reached.covers(&world.readers().await),
        "the other session was shared with nobody"
    );
    let used = session(&machine).await.message_index().await;
    assert_eq!(used, 3, "the first try was thrown away");
    assert_eq!(world.read(&sent).await, (true, true));
}

#[tokio::test]
async fn keys_from_before_a_refused_claim_are_used() {
    let world = World::new().await;
    let carol = Peer::on(&world.server, user_id!("@carol:hs"), device_id!("CAROLS")).await;
    members(&world.encryptor.base, &[(carol.machine.user_id(), "join")]).await;
    // Two at once, and then hers.
    world.claims([Claim::Given, Claim::Refused]);
    let error = world.encrypt().await.err().unwrap();
    assert!(matches!(error, EncryptError::Server(_)), "{error:?}");
    let sent = world.encrypt().await.unwrap();
    assert_eq!(sent.reached.len(), 3);
    assert_eq!(world.server.count("/keys/claim"), 3);
    // Nobody gave two.
    let state = world.server.state();
    let left: Vec<_> = state.devices.iter().map(|device| device.one_time_keys.len()).collect();
    assert!(left.iter().all(|one| *one == left[0]), "{left:?}");
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_is_left_in_peace() {
    let world = World::new().await;
    world.server.state().fails = Some("elsewhere");
    let queried = || world.server.state().queried.iter().filter(|user| **user == *bob()).count();
    for _ in 0..3 {
        assert_eq!(world.encrypt().await.unwrap().reached.len(), 1);
        assert_eq!(queried(), 1);
    }
    world.offer().await;
    assert_eq!(queried(), 2);
    world.server.state().fails = None;
    assert_eq!(world.offer().await.len(), 2);
    assert!(world.encryptor.unreachable().is_empty());
}

/// The server has taken the old refresh token when its answer is on the way. An answer that nobody waits
/// for would be the end of the session.
#[tokio::test]
async fn a_token_refresh_outlives_callers_who_give_up() {
    let world = World::new().await;
    world.encrypt().await.unwrap();
    let whole = Duration::from_millis(900);
    {
        let mut state = world.server.state();
        state.token = 1;
        state.refresh = whole;
    }
    let mut given_up = 0;
    loop {
        let deadline = SystemClock.now().deadline(whole / 6);
        match before(&SystemClock, deadline, world.encrypt()).await {
            Some(sent) => break assert_eq!(sent.unwrap().reached.len(), 2),
            None => given_up += 1,
        }
    }
    assert!(given_up > 2, "{given_up}");
    assert_eq!(world.server.count("/refresh"), 1);
}
