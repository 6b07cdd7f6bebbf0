//! Support: what the tests share. A homeserver whose answers the test itself gives, a clock that jumps,
//! and the log.
//!
//! Why not a mock with canned answers? A long poll is held until the test lets go of it, so each
//! test reads as the story that it is, and none of them waits for real time to pass.

mod clock;
mod homeserver;
mod life;
mod log;

use std::{future::Future, sync::Arc, time::Duration};

use eyeball::Subscriber;
use futures_util::StreamExt as _;
use matrix_sdk::{
    Client, ClientBuilder, SessionMeta, SessionTokens,
    authentication::matrix::MatrixSession,
    config::{RequestConfig, SyncSettings},
    ruma::{RoomId, api::MatrixVersion, device_id},
};
use matrix_sdk_sticky::{
    BaseClientBuilder, Change, Changes, RoomSticky, Sticky, SyncSource, SyncState,
};
use serde_json::{Value, json};

pub(crate) use self::{
    clock::{ManualClock, START_MS},
    homeserver::{Ask, Homeserver, V3_SYNC},
    life::{DELAY, KEY, Kind, Life, Reply},
    log::{all_logs, log},
};

pub(crate) const ROOM: &str = "!room:hs";
pub(crate) const OTHER_ROOM: &str = "!other:hs";
pub(crate) const ME: &str = "@me:hs";
pub(crate) const ALICE: &str = "@alice:hs";

/// A token that must not be in a log.
pub(crate) const TOKEN: &str = "syt_the_access_token";
pub(crate) const REFRESH_TOKEN: &str = "syr_the_refresh_token";

/// The access token that a refresh brings: see [`refreshable`].
pub(crate) const NEW_TOKEN: &str = "syt_another_access_token";

/// How long anything may take in real time.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for something, and fails if it does not come.
#[track_caller]
pub(crate) fn within<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(DEADLINE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{caller}: waited in vain for {what}\n{}", log()),
        }
    }
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Returns a client that has no session yet.
pub(crate) async fn anonymous_client(server: &Homeserver) -> Client {
    client_builder(server).build().await.unwrap()
}

pub(crate) fn client_builder(server: &Homeserver) -> ClientBuilder {
    log::start();
    Client::builder()
        .homeserver_url(server.url())
        // Nobody speaks TLS here, and reading the system's certificates takes its time.
        .disable_built_in_root_certificates()
        // The client need not ask for `/versions`: each such request is then ours.
        .server_versions([MatrixVersion::V1_14])
        .request_config(RequestConfig::new().disable_retry())
}

pub(crate) async fn log_in(client: &Client, refresh_token: Option<&str>) {
    log_in_as(client, ME, refresh_token).await;
}

pub(crate) async fn log_in_as(client: &Client, user_id: &str, refresh_token: Option<&str>) {
    client
        .restore_session(MatrixSession {
            meta: SessionMeta {
                user_id: user_id.try_into().unwrap(),
                device_id: device_id!("DEVICE").to_owned(),
            },
            tokens: SessionTokens {
                access_token: TOKEN.to_owned(),
                refresh_token: refresh_token.map(ToOwned::to_owned),
            },
        })
        .await
        .unwrap();
}

pub(crate) async fn client(server: &Homeserver) -> Client {
    let client = anonymous_client(server).await;
    log_in(&client, None).await;
    client
}

/// Returns a client that is logged in with a refresh token. The application refreshes by itself.
pub(crate) async fn refreshable(server: &Homeserver) -> Client {
    server.answers_to("/refresh", 200, json!({ "access_token": NEW_TOKEN }));
    let client = client_builder(server).build().await.unwrap();
    log_in(&client, Some(REFRESH_TOKEN)).await;
    client
}

/// A homeserver, a clock, and the sticky events of a client.
pub(crate) struct World {
    pub(crate) server: Homeserver,
    pub(crate) clock: ManualClock,
    pub(crate) client: Client,
    pub(crate) sticky: Sticky,
}

impl World {
    /// Starts. Only `/versions` has been answered.
    pub(crate) async fn start() -> Self {
        let server = Homeserver::start().await;
        let client = client(&server).await;
        Self::of(server, client)
    }

    /// As [`start`](Self::start), with a client that can encrypt.
    pub(crate) async fn encrypting() -> Self {
        let server = Homeserver::start().await;
        let base = BaseClientBuilder::in_memory();
        let client = base.build_client(client_builder(&server)).await.unwrap();
        log_in(&client, None).await;
        Self::of(server, client)
    }

    pub(crate) fn of(server: Homeserver, client: Client) -> Self {
        Self::over(SyncSource::Auto, server, client)
    }

    /// Starts with a source that the application wants.
    pub(crate) fn over(source: SyncSource, server: Homeserver, client: Client) -> Self {
        let clock = ManualClock::new();
        let builder =
            Sticky::builder(&client).with_clock(Arc::new(clock.clone())).with_source(source);
        let sticky = builder.start().unwrap();
        Self { server, clock, client, sticky }
    }

    /// Starts and goes live. Returns the long poll that is held.
    pub(crate) async fn live(events: Vec<Value>) -> (Self, Ask) {
        let mut world = Self::start().await;
        world.server.ask().await.page("pos-1", "batch-1", ROOM, events).await;
        let poll = world.server.ask().await;
        world.until(&SyncState::Live).await;
        (world, poll)
    }

    pub(crate) async fn until(&self, state: &SyncState) {
        until_state(&self.sticky, &format!("{state:?}"), |now| now == state).await;
    }

    /// Waits until the state is offline, and returns since when.
    pub(crate) async fn until_offline(&self) -> (Duration, String) {
        let offline = |state: &SyncState| matches!(state, SyncState::Offline { .. });
        match until_state(&self.sticky, "Offline", offline).await {
            SyncState::Offline { since, error } => {
                (since.duration_since(std::time::UNIX_EPOCH).unwrap(), error)
            }
            state => panic!("{state:?}"),
        }
    }

    /// Waits until the task sleeps before its next attempt, and lets that time pass. Returns how long it
    /// was.
    pub(crate) async fn sleep_over(&self) -> Duration {
        let wait = within("a sleep", self.clock.next_sleep()).await;
        self.clock.advance(wait);
        wait
    }

    /// Returns the next request, after all sleeps before it.
    pub(crate) async fn ask_sometime(&mut self) -> Ask {
        loop {
            tokio::select! {
                biased;
                ask = self.server.ask() => return ask,
                wait = self.clock.next_sleep() => self.clock.advance(wait),
            }
        }
    }

    /// Returns how many requests there are in so much simulated time. `answer` answers each.
    pub(crate) async fn polls_within(
        &mut self,
        time: Duration,
        mut answer: impl AsyncFnMut(Ask),
    ) -> usize {
        let (mut passed, mut polls) = (Duration::ZERO, 0);
        while passed <= time {
            tokio::select! {
                biased;
                ask = self.server.ask() => {
                    polls += 1;
                    assert!(polls <= 500, "a hot loop: 500 requests within {passed:?}");
                    answer(ask).await;
                }
                wait = self.clock.next_sleep() => {
                    passed += wait;
                    self.clock.advance(wait);
                }
            }
        }
        polls
    }

    /// Returns the ids of the live events, in their order.
    pub(crate) fn event_ids(&self) -> Vec<String> {
        ids(self.sticky.events().snapshot().iter())
    }

    /// Waits until just these events are live.
    pub(crate) async fn until_event_ids(&self, ids: &[&str]) {
        let mut changes = self.sticky.events().subscribe().changes;
        within(&format!("the events {ids:?}"), async {
            while self.event_ids() != ids {
                changes.next().await;
            }
        })
        .await;
    }

    /// Runs the application's main loop once. v3 `/sync` answers with these rooms.
    pub(crate) async fn main_loop(&self, rooms: Value) {
        self.main_loop_with(json!({ "rooms": rooms })).await;
    }

    /// Runs the main loop once, with a whole answer except its token. Returns the token.
    pub(crate) async fn main_loop_with(&self, mut answer: Value) -> String {
        let token = format!("s{}", self.server.count(V3_SYNC));
        answer["next_batch"] = json!(token);
        self.server.answers_to(V3_SYNC, 200, answer);
        let sync = self.client.sync_once(SyncSettings::new().timeout(Duration::ZERO));
        within("the main loop", sync).await.unwrap();
        token
    }

    /// Puts us in this room, since long ago.
    pub(crate) async fn is_in(&self, room: &str) -> RoomSticky {
        let joined = json!({ "join": { room: { "state": { "events": [membership("join", 86_400_000)] } } } });
        self.main_loop(joined).await;
        self.sticky.room(<&RoomId>::try_from(room).unwrap()).unwrap()
    }

    /// Gives the task more than enough turns to do what it is about to do.
    ///
    /// It is for claims that something does not happen. No time has to pass: each request of the test's
    /// own goes through the same runtime, after what is ready already.
    pub(crate) async fn settle(&self) {
        for _ in 0..5 {
            within("the server", self.server.round_trip()).await;
        }
    }
}

pub(crate) fn ids(entries: impl Iterator<Item = matrix_sdk_sticky::Entry>) -> Vec<String> {
    entries.map(|entry| entry.event_id().to_string()).collect()
}

pub(crate) async fn until_state(
    sticky: &Sticky,
    what: &str,
    is: impl Fn(&SyncState) -> bool,
) -> SyncState {
    let mut states: Subscriber<SyncState> = sticky.subscribe_state();
    within(&format!("the state {what}; it was {:?}", sticky.state()), async {
        loop {
            let state = states.get();
            if is(&state) {
                return state;
            }
            states.next().await.expect("the state goes on");
        }
    })
    .await
}

pub(crate) async fn next_change(changes: &mut Changes) -> Change {
    within("a change", changes.next()).await.unwrap()
}

/// Returns an event as a server writes it: from alice, with its id as the key, sticky for an hour from
/// now on.
pub(crate) fn event(id: &str) -> Value {
    event_lasting(id, 3_600_000)
}

/// Returns an event like [`event`], sticky for `ms` milliseconds.
pub(crate) fn event_lasting(id: &str, ms: u64) -> Value {
    json!({
        "event_id": format!("${id}"),
        "sender": ALICE,
        "type": "com.example.t",
        "origin_server_ts": START_MS,
        "msc4354_sticky": { "duration_ms": ms },
        "content": { "msc4354_sticky_key": id, "body": format!("text of {id}") },
        "unsigned": { "msc4354_sticky_duration_ttl_ms": ms },
    })
}

/// Returns our own membership event, of this age.
pub(crate) fn membership(membership: &str, age_ms: u64) -> Value {
    json!({
        "event_id": format!("${membership}-{age_ms}"),
        "sender": ME,
        "type": "m.room.member",
        "state_key": ME,
        "origin_server_ts": START_MS,
        "content": { "membership": membership },
        "unsigned": { "age": age_ms },
    })
}

/// Returns `count` events, named `{prefix}-000` and so on.
pub(crate) fn events(prefix: &str, count: usize) -> Vec<Value> {
    (0..count).map(|i| event(&format!("{prefix}-{i:03}"))).collect()
}

/// Returns the body of a response of sliding sync.
pub(crate) fn body(pos: &str, next_batch: Option<&str>, rooms: Value) -> Value {
    let mut extension = json!({ "rooms": rooms });
    if let Some(next_batch) = next_batch {
        extension["next_batch"] = next_batch.into();
    }
    json!({
        "pos": pos,
        "lists": { "all": { "count": 1 } },
        "rooms": {},
        "extensions": { "org.matrix.msc4354.sticky_events": extension },
    })
}
