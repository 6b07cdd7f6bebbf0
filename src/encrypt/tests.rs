mod reach;

use matrix_sdk::{
    SessionMeta, SessionTokens, authentication::matrix::MatrixSession,
    cross_process_lock::CrossProcessLockConfig, ruma::api::MatrixVersion, store::StoreConfig,
};
use matrix_sdk_base::crypto::types::requests::AnyOutgoingRequest;
use matrix_sdk_base::{DmRoomDefinition, ThreadingSupport};
use ruma::{
    DeviceId, UserId,
    api::client::sync::sync_events::{
        self,
        v3::{JoinedRoom, State, StateEvents},
    },
    device_id, room_id, user_id,
};
use serde_json::{json, value::to_raw_value};

use super::*;

fn room_id() -> &'static RoomId {
    room_id!("!room:hs")
}

fn base_client() -> BaseClient {
    let store = StoreConfig::new(CrossProcessLockConfig::SingleProcess);
    BaseClient::new(store, ThreadingSupport::Disabled, DmRoomDefinition::default())
}

/// A client on this base client, of a server that nobody asks.
async fn client_on(base: BaseClient) -> Client {
    client_at("http://127.0.0.1:1", base).await
}

async fn client_at(url: &str, base: BaseClient) -> Client {
    Client::builder()
        .homeserver_url(url)
        .disable_built_in_root_certificates()
        .handle_refresh_tokens()
        .server_versions([MatrixVersion::V1_14])
        .base_client(base)
        .build()
        .await
        .unwrap()
}

async fn log_in(client: &Client) {
    let session = MatrixSession {
        meta: SessionMeta {
            user_id: user_id!("@me:hs").to_owned(),
            device_id: device_id!("DEVICE").to_owned(),
        },
        tokens: SessionTokens {
            access_token: "token-0".to_owned(),
            refresh_token: Some("refresh-0".to_owned()),
        },
    };
    client.restore_session(session).await.unwrap();
}

/// A machine that has shared a session for the room, with nobody.
async fn machine_with_session(rotation_period_msgs: u64) -> (Client, BaseClient, OlmMachine) {
    let base = base_client();
    let client = client_on(base.clone()).await;
    log_in(&client).await;
    let machine = base.olm_machine().await.clone().unwrap();
    share(&machine, rotation_period_msgs).await;
    (client, base, machine)
}

async fn share(machine: &OlmMachine, rotation_period_msgs: u64) {
    let settings = EncryptionSettings { rotation_period_msgs, ..EncryptionSettings::default() };
    let requests = machine.share_room_key(room_id(), std::iter::empty(), settings).await.unwrap();
    assert!(requests.is_empty());
}

async fn encrypt(machine: &OlmMachine) {
    let content = Raw::from_json(to_raw_value(&serde_json::json!({})).unwrap());
    machine.encrypt_room_event_raw(room_id(), "com.example.t", &content).await.unwrap();
}

async fn session(machine: &OlmMachine) -> OutboundGroupSession {
    machine.store().get_outbound_group_session(room_id()).await.unwrap().unwrap()
}

/// How many messages are encrypted with a session of so many before we leave it.
async fn used(rotation_period_msgs: u64) -> u32 {
    let (_client, _base, machine) = machine_with_session(rotation_period_msgs).await;
    let mut used = 0;
    while !is_worn(&session(&machine).await).await {
        assert!(!session(&machine).await.expired());
        encrypt(&machine).await;
        used += 1;
    }
    used
}

#[tokio::test]
async fn the_last_messages_of_a_session_are_left_to_the_sdk_and_each_is_good_for_one() {
    assert_eq!(used(100).await, 95);
    assert_eq!(used(12).await, 7);
    assert_eq!(used(3).await, 2);
    assert_eq!(used(2).await, 1);
    assert_eq!(used(1).await, 1);
    // The SDK takes it for 1.
    assert_eq!(used(0).await, 1);
}

#[tokio::test]
async fn a_session_that_was_discarded_is_not_used() {
    let (_client, _base, machine) = machine_with_session(100).await;
    assert!(!is_worn(&session(&machine).await).await);
    machine.discard_room_key(room_id()).await.unwrap();
    assert!(is_worn(&session(&machine).await).await);
}

/// What `Encryptor::encrypt` catches. Should this fail with another matrix-sdk, it need not any more.
#[tokio::test]
async fn the_machine_panics_with_a_session_that_is_used_up_and_goes_on_with_a_new_one() {
    let (_client, _base, machine) = machine_with_session(1).await;
    encrypt(&machine).await;
    assert!(AssertUnwindSafe(encrypt(&machine)).catch_unwind().await.is_err());
    let before = session(&machine).await.session_id().to_owned();
    share(&machine, 1).await;
    encrypt(&machine).await;
    assert_ne!(session(&machine).await.session_id(), before);
}

fn membership(user_id: &UserId, membership: &str, room_id: Option<&RoomId>) -> serde_json::Value {
    json!({
        "type": "m.room.member",
        "state_key": user_id,
        "sender": user_id,
        "event_id": format!("${membership}-{}", user_id.localpart()),
        "origin_server_ts": 1,
        "room_id": room_id,
        "content": { "membership": membership },
    })
}

/// The room is encrypted and has these members, as a sync says.
async fn members(base: &BaseClient, memberships: &[(&UserId, &str)]) {
    let encryption = json!({
        "type": "m.room.encryption",
        "state_key": "",
        "sender": "@me:hs",
        "event_id": "$encryption",
        "origin_server_ts": 1,
        "content": { "algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": 12 },
    });
    let events = memberships.iter().map(|(user_id, is)| membership(user_id, is, None));
    let events = events.chain([encryption]);
    let events = events.map(|event| Raw::from_json(to_raw_value(&event).unwrap()));
    let mut joined = JoinedRoom::new();
    let mut state = StateEvents::new();
    state.events = events.collect();
    joined.state = State::Before(state);
    // A token that was there before would say that this one is known.
    let mut response = sync_events::v3::Response::new(format!("{memberships:?}"));
    response.rooms.join.insert(room_id().to_owned(), joined);
    base.receive_sync_response(response).await.unwrap();
}

/// The server says that a user has just this device.
async fn device(machine: &OlmMachine, user_id: &UserId, device_id: &DeviceId) {
    let theirs = OlmMachine::new(user_id, device_id).await;
    let requests = theirs.outgoing_requests().await.unwrap();
    let keys = requests.iter().find_map(|request| match request.request() {
        AnyOutgoingRequest::KeysUpload(request) => request.device_keys.clone(),
        _ => None,
    });
    let mut answer = get_keys::v3::Response::new();
    let devices = [(device_id.to_owned(), keys.unwrap())];
    answer.device_keys.insert(user_id.to_owned(), devices.into());
    let (id, _) = machine.query_keys_for_users([user_id]);
    machine.mark_request_as_sent(&id, &answer).await.unwrap();
}

/// A room of ours, with these members.
async fn room_of(
    memberships: &[(&UserId, &str)],
) -> (Room, BaseClient, OlmMachine, Arc<Encryptor>) {
    let (client, base, machine) = machine_with_session(100).await;
    Encryptor::attach(&client, base.clone()).unwrap();
    let encryptor = Encryptor::of(&client).unwrap();
    members(&base, memberships).await;
    (client.get_room(room_id()).unwrap(), base, machine, encryptor)
}

#[tokio::test]
async fn only_newcomers_are_not_covered() {
    let (bob, carol) = (user_id!("@bob:hs"), user_id!("@carol:hs"));
    let (room, base, machine, encryptor) = room_of(&[(bob, "join")]).await;
    let mut known = encryptor.readers(&room).await.unwrap();
    let mut news = async |comes: bool, what: &str| {
        let now = encryptor.readers(&room).await.unwrap();
        assert_eq!(known.covers(&now), !comes, "{what}");
        known = now;
    };
    news(false, "nothing").await;
    device(&machine, bob, device_id!("FIRST")).await;
    news(true, "bob has a device").await;
    members(&base, &[(carol, "invite")]).await;
    news(false, "carol has no device").await;
    device(&machine, carol, device_id!("CAROLS")).await;
    news(true, "carol is invited, and will be able to read it").await;
    device(&machine, bob, device_id!("SECOND")).await;
    news(true, "bob has another device instead").await;
    members(&base, &[(carol, "leave")]).await;
    news(false, "carol is gone").await;
    encrypt(&machine).await;
    share(&machine, 100).await;
    news(false, "the room key was used, and shared again").await;
}

#[tokio::test]
async fn news_of_devices_cost_a_read_for_each_member_they_name() {
    let (bob, carol, dave) = (user_id!("@bob:hs"), user_id!("@carol:hs"), user_id!("@dave:hs"));
    let (room, base, machine, encryptor) = room_of(&[(bob, "join"), (carol, "join")]).await;
    let known = encryptor.readers(&room).await.unwrap();
    // All of them have news. What was not read is not seen.
    for user in [bob, carol, dave] {
        device(&machine, user, device_id!("FIRST")).await;
    }
    let of = |users: &[&UserId]| News {
        users: users.iter().map(|user| (*user).to_owned()).collect(),
        ..News::default()
    };
    let since = async |news: News| encryptor.readers_since(&room, &known, &news).await.unwrap();
    assert_eq!(since(of(&[dave])).await.len(), 0);
    let bobs = since(of(&[bob, dave])).await;
    assert_eq!(bobs.len(), 1);
    let both = encryptor.readers_since(&room, &bobs, &of(&[carol])).await.unwrap();
    assert_eq!(both.len(), 2);

    // With news of members, only the devices of the new one are read.
    members(&base, &[(dave, "join")]).await;
    let daves = since(News { members: true, ..News::default() }).await;
    assert_eq!(daves.len(), 1);
    assert!(!both.covers(&daves));
    let all = encryptor.readers(&room).await.unwrap();
    assert_eq!(all.len(), 3);
    assert!(all.covers(&both) && all.covers(&daves));
}

#[tokio::test]
async fn a_device_that_gets_no_keys_is_no_reader() {
    let bob = user_id!("@bob:hs");
    let (room, base, machine, encryptor) = room_of(&[(bob, "join")]).await;
    device(&machine, bob, device_id!("FIRST")).await;
    assert_eq!(encryptor.readers(&room).await.unwrap().len(), 1);
    for strategy in [CollectStrategy::IdentityBasedStrategy, CollectStrategy::OnlyTrustedDevices] {
        let mut base = base.clone();
        base.room_key_recipient_strategy = strategy;
        let encryptor = Encryptor::new(base);
        assert_eq!(encryptor.readers(&room).await.unwrap().len(), 0);
    }
    let his = machine.get_device(bob, device_id!("FIRST"), None).await.unwrap().unwrap();
    his.set_local_trust(LocalTrust::BlackListed).await.unwrap();
    assert_eq!(encryptor.readers(&room).await.unwrap().len(), 0);
}

#[tokio::test]
async fn what_encrypts_is_the_clients_own_is_kept_and_goes_with_it() {
    let base = base_client();
    let client = client_on(base.clone()).await;
    assert!(Encryptor::of(&client).is_none());
    assert_eq!(Encryptor::attach(&client, base_client()), Err(OtherBaseClient));
    assert!(Encryptor::of(&client).is_none());

    Encryptor::attach(&client, base.clone()).unwrap();
    let first = Encryptor::of(&client).unwrap();
    Encryptor::attach(&client, base).unwrap();
    assert!(Arc::ptr_eq(&first, &Encryptor::of(&client.clone()).unwrap()));

    let other = client_on(base_client()).await;
    assert!(Encryptor::of(&other).is_none());

    let kept = Arc::downgrade(&first);
    drop(first);
    assert!(kept.upgrade().is_some());
    drop(client);
    // The SDK's own tasks end at their next turn.
    while kept.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn each_room_has_a_turn_of_its_own_as_long_as_somebody_takes_it() {
    let base = base_client();
    let client = client_on(base.clone()).await;
    Encryptor::attach(&client, base).unwrap();
    let encryptor = Encryptor::of(&client).unwrap();
    let elsewhere = room_id!("!elsewhere:hs");
    let turn = encryptor.turn(room_id());
    assert!(Arc::ptr_eq(&turn, &encryptor.turn(room_id())));
    assert!(!Arc::ptr_eq(&turn, &encryptor.turn(elsewhere)));
    drop(turn);
    let _turn = encryptor.turn(elsewhere);
    assert_eq!(encryptor.turns.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn who_is_not_logged_in_is_told_so() {
    let base = base_client();
    let client = client_on(base.clone()).await;
    Encryptor::attach(&client, base).unwrap();
    let encryptor = Encryptor::of(&client).unwrap();
    let error = encryptor.machine().await.unwrap_err();
    assert!(matches!(error, EncryptError::NotLoggedIn), "{error:?}");
}

#[test]
fn what_is_printed_says_nothing_of_stores_and_passphrases() {
    let builder = BaseClientBuilder::in_memory();
    assert!(format!("{builder:?}").contains("BaseClientBuilder"));
    #[cfg(feature = "sqlite")]
    {
        let builder = BaseClientBuilder::sqlite("folder", Some("a passphrase"));
        assert!(!format!("{builder:?}").contains("passphrase"));
    }
}
