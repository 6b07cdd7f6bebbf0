//! What the tests share: the server, people on it, their main loops, and ways to wait.

use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
    future::Future,
    ops::{Deref, DerefMut},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use eyeball::Subscriber;
use futures_util::{FutureExt as _, StreamExt as _};
use matrix_sdk::{
    Client, RoomState, SessionMeta, SessionTokens,
    authentication::matrix::MatrixSession,
    config::SyncSettings,
    cross_process_lock::CrossProcessLockConfig,
    ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId},
    store::StoreConfig,
};
use matrix_sdk_sticky::{
    BaseClientBuilder, Changes, Entry, EntryChange, RemovalReason, RoomSticky, Snapshot, Sticky,
    StickyClientExt as _, StickyContent, Subscription, SyncSource, SyncState, View,
    matrix_sdk_base::{BaseClient, DmRoomDefinition, ThreadingSupport},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing_subscriber::EnvFilter;
use xtask::{
    api::Api,
    homeserver::{Options, Registered, Synapse},
};

use crate::proxy::Proxy;

/// The type of the sticky events of these tests.
pub(crate) const TYPE: &str = "com.example.presence";

/// A content of that type.
#[derive(Serialize, Deserialize)]
pub(crate) struct Presence {
    pub(crate) status: String,
}

impl StickyContent for Presence {
    const TYPE: &str = TYPE;
}

pub(crate) fn presence(status: &str) -> Presence {
    Presence { status: status.to_owned() }
}

/// As long as no test takes.
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// When to give up waiting. Much more than anything takes, as the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// When to look again, where nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The server that all tests share. It ends with this process: its supervisor sees to that.
pub(crate) fn server() -> &'static Synapse {
    static SERVER: OnceLock<Synapse> = OnceLock::new();
    SERVER.get_or_init(|| start(&Options::default()))
}

/// A server of the test's own. What is logged is shown as `RUST_LOG` asks for.
pub(crate) fn start(options: &Options) -> Synapse {
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
    let _ = log.with_test_writer().try_init();
    Synapse::start(options).unwrap_or_else(|error| panic!("no test homeserver: {error}"))
}

/// A transaction id, or a part of a name, that was not there before.
pub(crate) fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Relaxed)
}

/// A user of a server, with a raw client. Its calls block, which is well inside a test's own
/// future: the crate's task runs on other threads.
pub(crate) struct Person {
    pub(crate) api: Api,
    url: String,
    registered: Registered,
}

impl Person {
    /// A new user of the server that all tests share.
    pub(crate) fn new(name: &str) -> Self {
        Self::on(server(), name)
    }

    pub(crate) fn on(server: &Synapse, name: &str) -> Self {
        let registered = server.register(&format!("{name}-{}", unique()), PASSWORD).unwrap();
        Self { api: server.api(&registered), url: server.url().to_owned(), registered }
    }

    /// Where the server is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn id(&self) -> &UserId {
        self.registered.user_id.as_str().try_into().unwrap()
    }

    /// A matrix-sdk client of the user's one device. It syncs nothing by itself.
    pub(crate) async fn client(&self) -> Client {
        self.client_at(&self.url).await
    }

    /// The same, through a proxy.
    pub(crate) async fn client_through(&self, proxy: &Proxy) -> Client {
        self.client_at(proxy.url()).await
    }

    /// A client whose sticky events are sent encrypted, where the room is.
    pub(crate) async fn encrypting_client(&self) -> Client {
        self.encrypting_client_of(BaseClientBuilder::in_memory(), &self.url).await
    }

    pub(crate) async fn encrypting_client_of(&self, base: BaseClientBuilder, url: &str) -> Client {
        let client = base.build_client(Client::builder().homeserver_url(url)).await.unwrap();
        client.restore_session(self.session()).await.unwrap();
        client
    }

    /// A client on this base client.
    pub(crate) async fn client_on(&self, base: BaseClient) -> Client {
        let builder = Client::builder().homeserver_url(&self.url).base_client(base);
        let client = builder.build().await.unwrap();
        client.restore_session(self.session()).await.unwrap();
        client
    }

    /// A client whose crypto machine can be made anew, and the base client that does so.
    pub(crate) async fn remakeable_client(&self) -> (Client, BaseClient) {
        let store = StoreConfig::new(CrossProcessLockConfig::SingleProcess);
        let base = BaseClient::new(store, ThreadingSupport::Disabled, DmRoomDefinition::default());
        let client = self.client_on(base.clone()).await;
        let sticky = Sticky::builder(&client).with_base_client(base.clone()).start().unwrap();
        assert!(sticky.can_encrypt());
        (client, base)
    }

    async fn client_at(&self, url: &str) -> Client {
        let client = build_client(url).await;
        client.restore_session(self.session()).await.unwrap();
        client
    }

    pub(crate) fn session(&self) -> MatrixSession {
        MatrixSession {
            meta: SessionMeta {
                user_id: self.id().to_owned(),
                device_id: self.registered.device_id.as_str().into(),
            },
            tokens: SessionTokens {
                access_token: self.registered.access_token.clone(),
                refresh_token: None,
            },
        }
    }

    /// The raw client of another device of the user.
    pub(crate) fn other_device(&self) -> Api {
        self.on_another_device().api
    }

    /// The same user, on another device.
    pub(crate) fn on_another_device(&self) -> Self {
        let answer = Api::anonymous(&self.url)
            .post(
                "login",
                &json!({
                    "type": "m.login.password",
                    "identifier": { "type": "m.id.user", "user": self.id() },
                    "password": PASSWORD,
                }),
            )
            .unwrap();
        let field = |name: &str| answer[name].as_str().unwrap().to_owned();
        let registered = Registered {
            user_id: field("user_id"),
            access_token: field("access_token"),
            device_id: field("device_id"),
        };
        let api = Api::new(&self.url, &registered.access_token);
        Self { api, url: self.url.clone(), registered }
    }

    pub(crate) fn device_id(&self) -> &str {
        &self.registered.device_id
    }

    /// A room that anybody can join.
    pub(crate) fn room(&self) -> OwnedRoomId {
        self.room_of(&json!({ "preset": "public_chat" }))
    }

    pub(crate) fn room_of(&self, options: &Value) -> OwnedRoomId {
        self.api.create_room(options).unwrap().try_into().unwrap()
    }

    /// A room in which everybody is.
    pub(crate) fn room_with(&self, others: &[&Self]) -> OwnedRoomId {
        let room = self.room();
        for other in others {
            other.join(&room);
        }
        room
    }

    pub(crate) fn encrypted_room_with(&self, others: &[&Self]) -> OwnedRoomId {
        self.encrypted_room_of(json!({}), others)
    }

    /// As [`encrypted_room_with`](Self::encrypted_room_with), with more in the event that switches
    /// encryption on.
    pub(crate) fn encrypted_room_of(&self, more: Value, others: &[&Self]) -> OwnedRoomId {
        let mut content = more;
        content["algorithm"] = json!("m.megolm.v1.aes-sha2");
        let room = self.room_of(&json!({
            "preset": "public_chat",
            "initial_state": [{
                "type": "m.room.encryption",
                "state_key": "",
                "content": content,
            }],
        }));
        for other in others {
            other.join(&room);
        }
        room
    }

    pub(crate) fn join(&self, room: &RoomId) {
        self.api.join(room.as_str()).unwrap();
    }

    pub(crate) fn leave(&self, room: &RoomId) {
        self.api.leave(room.as_str()).unwrap();
    }

    /// Sends a sticky event with this key and status; its event id.
    pub(crate) fn send(&self, room: &RoomId, key: &str, status: &str, sticky: Duration) -> String {
        self.send_content(room, &content(key, status), sticky)
    }

    /// Removes a key: a sticky event with nothing but the key.
    pub(crate) fn remove(&self, room: &RoomId, key: &str, sticky: Duration) -> String {
        let content = json!({ "msc4354_sticky_key": key, "sticky_key": key });
        self.send_content(room, &content, sticky)
    }

    pub(crate) fn send_content(&self, room: &RoomId, content: &Value, sticky: Duration) -> String {
        let milliseconds = u64::try_from(sticky.as_millis()).unwrap();
        let txn = unique().to_string();
        self.api.send(room.as_str(), TYPE, &txn, content, Some(milliseconds)).unwrap()
    }

    /// Sends an ordinary message.
    pub(crate) fn say(&self, room: &RoomId, text: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": text });
        let txn = unique().to_string();
        self.api.send(room.as_str(), "m.room.message", &txn, &content, None).unwrap()
    }

    pub(crate) fn redact(&self, room: &RoomId, event_id: &str) {
        let txn = unique().to_string();
        self.api.redact(room.as_str(), event_id, &txn).unwrap();
    }
}

/// Of everybody here.
pub(crate) const PASSWORD: &str = "secret";

/// A client without a session.
pub(crate) async fn build_client(url: &str) -> Client {
    Client::builder().homeserver_url(url).build().await.unwrap()
}

/// The content of a sticky event of these tests.
pub(crate) fn content(key: &str, status: &str) -> Value {
    json!({ "msc4354_sticky_key": key, "sticky_key": key, "status": status })
}

/// A background task that ends when this is dropped.
pub(crate) struct Background(JoinHandle<()>);

impl Background {
    pub(crate) fn run(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `Client::sync`, as an application does: entered again when it ends, as it does when the
/// server is away.
pub(crate) fn sync(client: &Client) -> Background {
    let client = client.clone();
    Background::run(async move {
        loop {
            let _ = client.sync(SyncSettings::new()).await;
            sleep(LOOK_EVERY).await;
        }
    })
}

/// Starts the client's sticky events over v3.
pub(crate) fn follow(client: &Client) -> Sticky {
    Sticky::builder(client).with_source(SyncSource::V3).start().unwrap()
}

/// The client's sticky events, once its main loop knows these rooms and the map is live.
pub(crate) async fn live(client: &Client, rooms: &[&RoomId]) -> Sticky {
    let sticky = client.sticky();
    for room in rooms {
        in_room(client, room).await;
    }
    until_state(&sticky, "live", |state| *state == SyncState::Live).await;
    sticky
}

/// Waits until the client's main loop knows that its user is in the room.
pub(crate) async fn in_room(client: &Client, room: &RoomId) {
    eventually("the main loop knows that we are in the room", async || {
        match client.get_room(room).map(|room| room.state()) {
            Some(RoomState::Joined) => Ok(()),
            state => Err(format!("{room}: {state:?}")),
        }
    })
    .await;
}

/// Waits until `look` is content, and returns what it found. Its last complaint is said when the
/// deadline passes.
pub(crate) async fn eventually<T, E: Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(complaint) if Instant::now() >= deadline => {
                panic!("not within {DEADLINE:?}: {what}; instead: {complaint:?}")
            }
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

/// Waits for a state of the sync.
pub(crate) async fn until_state(
    sticky: &Sticky,
    what: &str,
    wanted: impl FnMut(&SyncState) -> bool,
) -> SyncState {
    until_state_within(DEADLINE, sticky, what, wanted).await
}

pub(crate) async fn until_state_within(
    deadline: Duration,
    sticky: &Sticky,
    what: &str,
    mut wanted: impl FnMut(&SyncState) -> bool,
) -> SyncState {
    let mut states: Subscriber<SyncState> = sticky.subscribe_state();
    states.reset();
    let found = timeout(deadline, async {
        loop {
            let state = states.next().await.expect("the map is there");
            if wanted(&state) {
                return state;
            }
        }
    });
    match found.await {
        Ok(state) => state,
        Err(_) => panic!("not {what} within {deadline:?}: {:?}", sticky.state()),
    }
}

pub(crate) fn is_offline(state: &SyncState) -> bool {
    matches!(state, SyncState::Offline { .. })
}

/// A subscriber, which applies what it is told as it stands and takes no nonsense: nothing is added
/// twice, nothing changes or leaves that was not there. So every test that watches also tests that
/// the stream is sound.
pub(crate) struct Watch {
    view: View,
    changes: Changes,
    entries: BTreeMap<Place, Entry>,
    /// Told, and not taken by the test yet.
    untaken: std::collections::VecDeque<EntryChange>,
    /// All that was told, in words.
    log: Vec<String>,
}

type Place = (OwnedRoomId, String, OwnedUserId, String);

impl Watch {
    pub(crate) fn new(view: View) -> Self {
        let Subscription { snapshot, changes, .. } = view.subscribe();
        Self {
            view,
            changes,
            entries: snapshot.iter().map(|entry| (place(&entry), entry)).collect(),
            untaken: Default::default(),
            log: vec![format!("at first {}", words(&snapshot))],
        }
    }

    /// The next change of one entry.
    pub(crate) async fn next(&mut self, what: &str) -> EntryChange {
        loop {
            if let Some(change) = self.untaken.pop_front() {
                return change;
            }
            match timeout(DEADLINE, self.changes.next()).await {
                Ok(change) => self.take(change.expect("the stream does not end").entries),
                Err(_) => panic!("not told within {DEADLINE:?}: {what}; {self:?}"),
            }
        }
    }

    /// The next change, which is of this key and adds it.
    pub(crate) async fn added(&mut self, key: &str) -> Entry {
        match self.next(&format!("`{key}` is added")).await {
            EntryChange::Added(entry) if key_of(&entry) == key => entry,
            other => panic!("wanted: `{key}` is added; told: {other:?}; {self:?}"),
        }
    }

    /// The next change, which is of this key and updates it.
    pub(crate) async fn updated(&mut self, key: &str) -> Entry {
        match self.next(&format!("`{key}` is updated")).await {
            EntryChange::Updated { entry, .. } if key_of(&entry) == key => entry,
            other => panic!("wanted: `{key}` is updated; told: {other:?}; {self:?}"),
        }
    }

    /// The next change, which is of this key and removes it; why.
    pub(crate) async fn removed(&mut self, key: &str) -> RemovalReason {
        match self.next(&format!("`{key}` is removed")).await {
            EntryChange::Removed { entry, reason, .. } if key_of(&entry) == key => reason,
            other => panic!("wanted: `{key}` is removed; told: {other:?}; {self:?}"),
        }
    }

    /// Takes changes until exactly these keys are there (of any room, with repeats, sorted).
    /// Returns the changes that it took.
    pub(crate) async fn until_keys(&mut self, keys: &[&str]) -> Vec<EntryChange> {
        let mut taken = Vec::new();
        taken.extend(self.untaken.drain(..));
        while self.keys() != keys {
            taken.push(self.next(&format!("{keys:?} are there")).await);
            taken.extend(self.untaken.drain(..));
        }
        taken
    }

    /// What was told and not taken, without waiting.
    pub(crate) fn taken(&mut self) -> Vec<EntryChange> {
        while let Some(change) = self.changes.next().now_or_never() {
            self.take(change.expect("the stream does not end").entries);
        }
        self.untaken.drain(..).collect()
    }

    /// The keys that are there, by what was told.
    pub(crate) fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<_> = self.entries.values().map(key_of).collect();
        keys.sort_unstable();
        keys
    }

    /// Nothing was told that the test has not taken, and the view is as it was told.
    pub(crate) fn assert_silent(&mut self) {
        if let Some(change) = self.changes.next().now_or_never() {
            self.take(change.expect("the stream does not end").entries);
        }
        assert!(self.untaken.is_empty(), "told without need: {self:?}");
        self.assert_in_step();
    }

    /// The view is as it was told.
    pub(crate) fn assert_in_step(&mut self) {
        let snapshot = self.view.snapshot();
        if let Some(change) = self.changes.next().now_or_never() {
            self.take(change.expect("the stream does not end").entries);
        }
        let told = self.entries.values().map(Deref::deref);
        let told: Vec<_> = told.map(|event| event.event_id().to_owned()).collect();
        let mut shown: Vec<_> =
            snapshot.iter().map(|entry| (place(&entry), entry.event_id().to_owned())).collect();
        shown.sort();
        let shown: Vec<_> = shown.into_iter().map(|(_, event_id)| event_id).collect();
        assert_eq!(told, shown, "{self:?}");
    }

    fn take(&mut self, changes: Vec<EntryChange>) {
        assert!(!changes.is_empty(), "an empty change; {self:?}");
        for change in changes {
            let place = place(change.entry());
            self.log.push(match &change {
                EntryChange::Added(entry) => format!("+{}", word(entry)),
                EntryChange::Updated { entry, .. } => format!("~{}", word(entry)),
                EntryChange::Removed { entry, reason, .. } => {
                    format!("-{} {}", word(entry), reason.as_str())
                }
                other => format!("{other:?}"),
            });
            let before = match &change {
                EntryChange::Removed { .. } => self.entries.remove(&place),
                other => self.entries.insert(place, other.entry().clone()),
            };
            let before = before.map(|entry| entry.event_id().to_owned());
            let sound = match &change {
                EntryChange::Added(_) => before.is_none(),
                EntryChange::Updated { entry, previous, .. } => {
                    before.as_deref() == Some(previous.event_id())
                        && entry.event_id() != previous.event_id()
                }
                EntryChange::Removed { entry, .. } => before.as_deref() == Some(entry.event_id()),
                _ => true,
            };
            assert!(sound, "cannot be applied: {change:?}; {self:?}");
            self.untaken.push_back(change);
        }
    }
}

impl Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what was told: {:#?}; what is shown: {}", self.log, words(&self.view.snapshot()))
    }
}

/// A [`Watch`] on all that a client has, with what it belongs to.
pub(crate) struct Watcher {
    pub(crate) client: Client,
    pub(crate) sticky: Sticky,
    pub(crate) watch: Watch,
    _main_loop: Background,
}

impl Watcher {
    /// A person's client that runs `Client::sync`, knows these rooms, and whose map is live.
    pub(crate) async fn of(person: &Person, rooms: &[&RoomId]) -> Self {
        Self::with(person.client().await, rooms).await
    }

    /// As [`of`](Self::of), with a client whose sticky events are sent encrypted.
    pub(crate) async fn encrypting(person: &Person, rooms: &[&RoomId]) -> Self {
        Self::with(person.encrypting_client().await, rooms).await
    }

    pub(crate) async fn with(client: Client, rooms: &[&RoomId]) -> Self {
        let main_loop = sync(&client);
        let sticky = live(&client, rooms).await;
        Self { watch: Watch::new(sticky.events()), client, sticky, _main_loop: main_loop }
    }
}

impl Watcher {
    pub(crate) fn room(&self, room: &RoomId) -> RoomSticky {
        self.sticky.room(room).expect("the main loop knows the room")
    }
}

impl Deref for Watcher {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl DerefMut for Watcher {
    fn deref_mut(&mut self) -> &mut Watch {
        &mut self.watch
    }
}

/// The example of that name, as this person in this room, by this way to the server. `cargo test`
/// builds it.
pub(crate) fn example(name: &str, url: &str, person: &Person, room: &RoomId) -> Command {
    let mut command = program(name);
    command.args(["--homeserver", url, "--username", person.id().as_str()]).args([
        "--password",
        PASSWORD,
        "--room",
        room.as_str(),
    ]);
    command
}

/// An example whose arguments have no names: the server, the user, the password.
pub(crate) fn example_of(name: &str, url: &str, person: &Person) -> Command {
    let mut command = program(name);
    command.args([url, person.id().as_str(), PASSWORD]);
    command
}

fn program(name: &str) -> Command {
    let mut program = std::env::current_exe().unwrap();
    program.pop();
    program.set_file_name("examples");
    program.push(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.exists(), "build it first: cargo build --example {name}");
    Command::new(program)
}

/// Sends a signal to a child process, as `kill` does.
pub(crate) async fn signal(process: &Child, signal: &str) {
    let id = process.id().expect("it runs").to_string();
    let sent = Command::new("kill").args([signal, &id]).status().await.unwrap();
    assert!(sent.success());
}

/// Waits until these others have a device that can be encrypted to.
pub(crate) async fn devices_are_there(person: &Person, others: &[&Person]) {
    for other in others {
        let asked = json!({ "device_keys": { other.id().as_str(): [] } });
        eventually("the other's device is there", async || {
            let answer = person.api.post("keys/query", &asked).unwrap();
            match &answer["device_keys"][other.id().as_str()] {
                Value::Object(devices) if !devices.is_empty() => Ok(()),
                _ => Err(answer),
            }
        })
        .await;
    }
}

/// Somebody whose matrix-sdk client encrypts, and whose encrypted events are sticky.
pub(crate) struct Encryptor {
    pub(crate) client: Client,
    pub(crate) proxy: Proxy,
    _main_loop: Background,
}

impl Encryptor {
    /// Starts a person's client, once the devices of these others are there to be encrypted to.
    pub(crate) async fn of(person: &Person, room: &RoomId, others: &[&Person]) -> Self {
        devices_are_there(person, others).await;
        let proxy = Proxy::before(&person.url).await;
        let client = person.client_through(&proxy).await;
        let main_loop = sync(&client);
        in_room(&client, room).await;
        Self { client, proxy, _main_loop: main_loop }
    }

    /// Sends an encrypted sticky event; its event id.
    pub(crate) async fn send(&self, room: &RoomId, key: &str, status: &str) -> OwnedEventId {
        self.send_content(room, content(key, status)).await
    }

    pub(crate) async fn send_content(&self, room: &RoomId, content: Value) -> OwnedEventId {
        let room = self.client.get_room(room).unwrap();
        self.proxy.make_sticky(Some(LONG));
        let sent = room.send_raw(TYPE, content).await.unwrap();
        self.proxy.make_sticky(None);
        assert!(sent.encryption_info.is_some(), "it was sent encrypted");
        sent.response.event_id
    }

    /// Has the next event be encrypted with a room key that nobody has yet.
    pub(crate) async fn discard_key(&self, room: &RoomId) {
        let room = self.client.get_room(room).unwrap();
        room.discard_room_key().await.unwrap();
    }
}

fn place(entry: &Entry) -> Place {
    (
        entry.room_id().to_owned(),
        entry.event_type().to_owned(),
        entry.sender().to_owned(),
        key_of(entry).to_owned(),
    )
}

/// The sticky key, or the event id.
fn key_of(entry: &Entry) -> &str {
    entry.sticky_key().unwrap_or(entry.event_id().as_str())
}

/// The `status` of an entry's content.
pub(crate) fn status(entry: &Entry) -> String {
    let content: Value = entry.content().unwrap();
    content["status"].as_str().unwrap_or_default().to_owned()
}

fn word(entry: &Entry) -> String {
    format!(
        "{} of {} in {} = {} ({})",
        key_of(entry),
        entry.sender(),
        entry.room_id(),
        status(entry),
        entry.event_id()
    )
}

fn words(snapshot: &Snapshot) -> String {
    let words: Vec<_> = snapshot.iter().map(|entry| word(&entry)).collect();
    format!("{words:#?}")
}

/// The sticky keys of a snapshot.
pub(crate) fn keys(snapshot: &Snapshot) -> Vec<String> {
    snapshot.iter().map(|entry| key_of(&entry).to_owned()).collect()
}
