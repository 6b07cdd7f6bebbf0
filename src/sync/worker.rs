//! Worker: the one task that receives. It performs the steps of the machine.
//!
//! In: answers of the server, the application's main loop, the ignore list, room keys, and the timer.
//! Out: requests, deliveries to the maps, and the [`SyncState`]. Never: a decision on what to ask, when
//! to ask, or what to show; [`SyncMachine`] makes them.

use std::{
    collections::HashSet,
    fmt,
    future::{pending, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eyeball::SharedObservable;
use futures_core::Stream;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{Either, select},
};
use matrix_sdk::{Client, RoomState, SessionChange, store::StateStoreDataKey, sync::RoomUpdates};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::{discovery::get_supported_versions, membership::joined_rooms},
    events::ignored_user_list::IgnoredUserListEventContent,
};
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, warn};

use super::{
    deliver::KeyOf,
    error::ConnectionError,
    machine::{FetchBy, Fetched, OurRooms, Step, SyncMachine},
    main_loop::MainLoop,
    sliding,
    source::{Ask, Features},
    state::{SyncSource, SyncState},
    v3,
};
use crate::{
    driver::{BoxFuture, Timer, optional, random_name, random_seed},
    map::ReceivedVia,
    request::{REQUEST_TIMEOUT, describe, one_try},
    time::Deadline,
    view::{Arrival, Delivery, EphemeralMaps},
    wire::names,
};

/// How often a client that is not logged in yet is looked at.
const LOGIN_INTERVAL: Duration = Duration::from_millis(200);

/// How often a client whose token was refused is looked at.
const TOKEN_INTERVAL: Duration = Duration::from_secs(2);

/// What the task works on. It holds no handle of the application's, so dropping the last handle ends
/// the task.
pub(crate) struct Worker {
    pub(crate) client: Client,
    pub(crate) maps: EphemeralMaps,
    pub(crate) timer: Arc<dyn Timer>,
    pub(crate) state: SharedObservable<SyncState>,
    /// The source that the application wants.
    pub(crate) wanted_source: SyncSource,
    /// The source that is used, once the server has been asked.
    pub(crate) source: SharedObservable<SyncSource>,
    /// The rooms that we are in by the server's own list, as of its last answer.
    pub(crate) listed: Mutex<HashSet<OwnedRoomId>>,
}

/// What the task waits for.
enum WorkerEvent {
    /// What `/versions` says.
    Versions(Features),
    /// A page of our connection, and how long it took.
    Page(sliding::Response, Duration),
    /// The answer to a question of the follower's.
    Followed(v3::Question, v3::Response),
    /// A request of the source failed.
    Failed(ConnectionError),
    /// The client has another access token than the one that was refused.
    OtherToken,
    /// The sticky events of single rooms were fetched, or could not be.
    Fetched(Fetched),
    /// The server's list of the rooms that we are in, if it gave one.
    Listed(Option<Vec<OwnedRoomId>>),
    /// The main loop had a response.
    Rooms(Result<RoomUpdates, RecvError>),
    /// The whole list of ignored users.
    Ignored(Vec<String>),
    /// The client's session changed.
    Session(Result<SessionChange, RecvError>),
    /// Room keys came. `None`: some were missed.
    Keys(Option<Vec<KeyOf>>),
    /// The machine's deadline has come.
    Due,
}

type KeyStream = Pin<Box<dyn Stream<Item = Option<Vec<KeyOf>>> + Send>>;

/// What is under way: at most one of each kind. A new one takes the place of the one before.
#[derive(Default)]
struct InFlight<'a> {
    source: Option<BoxFuture<'a, WorkerEvent>>,
    fetch: Option<BoxFuture<'a, WorkerEvent>>,
    list: Option<BoxFuture<'a, WorkerEvent>>,
    /// The sleep until the machine's deadline. It is kept while the deadline stays.
    sleep: Option<(Deadline, BoxFuture<'a, WorkerEvent>)>,
}

impl Worker {
    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        // One task for both: whichever has something to do is polled.
        futures_util::future::join(self.expire(), self.sync()).await;
    }

    /// Notifies the subscribers of what ends when it ends.
    async fn expire(&self) {
        let mut known = None;
        loop {
            let changed = poll_fn(|cx| self.maps.poll_next_deadline(cx, known));
            known = match known {
                None => changed.await,
                Some(deadline) => {
                    let sleep = self.timer.sleep_until(deadline);
                    match select(pin!(changed), sleep).await {
                        Either::Left((next, _)) => next,
                        Either::Right(_) => {
                            self.maps.advance();
                            self.maps.next_deadline()
                        }
                    }
                }
            };
        }
    }

    async fn sync(&self) {
        let own_id = self.login().await;
        // Subscribed before anything is asked for, so that nothing falls between.
        let mut rooms = self.client.subscribe_to_all_room_updates();
        let mut session = self.client.subscribe_to_session_changes();
        let mut ignored = self.client.subscribe_to_ignore_user_list_changes();
        let mut keys: Option<KeyStream> = None;
        let mut crypto_machine = None;
        let mut main_loop = MainLoop::new(own_id, self.joined());
        let (now, state, name) = (self.maps.now(), self.state.get(), random_name());
        let mut machine = SyncMachine::new(now, self.wanted_source, state, name, random_seed());
        self.handle_ignored(&mut machine, self.ignored_users().await);
        let mut in_flight = InFlight::default();

        loop {
            if keys.is_none() {
                crypto_machine = self.crypto_machine().await;
                keys = self.key_stream().await;
                if keys.is_some() {
                    self.retry(None).await;
                    self.prove().await;
                }
            }
            self.perform(&mut machine, &mut in_flight).await;
            let event = tokio::select! {
                event = optional(&mut in_flight.source) => { in_flight.source = None; event }
                event = optional(&mut in_flight.fetch) => { in_flight.fetch = None; event }
                event = optional(&mut in_flight.list) => { in_flight.list = None; event }
                event = slept(&mut in_flight.sleep) => { in_flight.sleep = None; event }
                update = rooms.recv() => WorkerEvent::Rooms(update),
                Some(users) = ignored.next() => WorkerEvent::Ignored(users),
                change = session.recv() => WorkerEvent::Session(change),
                news = next_keys(&mut keys) => match news {
                    Some(sessions) => WorkerEvent::Keys(sessions),
                    // The stream ends when matrix-sdk makes its machine anew, because another process
                    // wrote the store. The next turn listens again, and looks at all that waits.
                    None => {
                        keys = None;
                        continue;
                    }
                },
            };
            let is_update = matches!(event, WorkerEvent::Rooms(_));
            self.handle(&mut machine, &mut main_loop, event).await;
            // A stream of devices that somebody holds keeps the old machine, and so our old stream does
            // not end. The main loop gives its keys to the new machine.
            if is_update && self.crypto_machine().await != crypto_machine {
                keys = None;
            }
        }
    }

    /// Performs what the machine says, until nothing is left to do now.
    async fn perform<'a>(&'a self, machine: &mut SyncMachine, in_flight: &mut InFlight<'a>) {
        self.look_at_maps(machine);
        while let Some(step) = machine.poll_step(self.maps.now()) {
            match step {
                Step::Show(state) => self.show(state),
                Step::Ask(ask) => in_flight.source = Some(self.ask(ask)),
                Step::AwaitToken => in_flight.source = Some(self.other_token()),
                Step::Fetch { rooms, by } => {
                    in_flight.fetch = Some(match by {
                        FetchBy::Sliding => Box::pin(self.fetch(rooms).map(WorkerEvent::Fetched)),
                        FetchBy::V3 { number } => {
                            Box::pin(self.fetch_v3(rooms, number).map(WorkerEvent::Fetched))
                        }
                    });
                }
                Step::ListRooms => in_flight.list = Some(self.ask_list()),
                Step::Prove => {
                    self.prove().await;
                    self.look_at_maps(machine);
                }
            }
        }
        let deadline = machine.next_deadline();
        if in_flight.sleep.as_ref().map(|(until, _)| *until) != deadline {
            in_flight.sleep = deadline.map(|deadline| {
                let sleep = self.timer.sleep_until(deadline).map(|()| WorkerEvent::Due);
                (deadline, Box::pin(sleep) as BoxFuture<'_, WorkerEvent>)
            });
        }
    }

    /// Hands what came to the maps and to the machine.
    async fn handle(
        &self,
        machine: &mut SyncMachine,
        main_loop: &mut MainLoop,
        event: WorkerEvent,
    ) {
        let now = self.maps.now();
        match event {
            WorkerEvent::Versions(features) => {
                let token = self.main_token().await;
                if let Some(source) = machine.handle_versions(now, features, token) {
                    self.source.set_if_not_eq(source);
                }
            }
            WorkerEvent::Page(sliding::Response { page, rooms }, took) => {
                let kept = self.deliver(now, rooms).await;
                machine.handle_page(now, &page, took, kept);
            }
            WorkerEvent::Followed(question, v3::Response { rooms }) => {
                let (len, in_page) = (rooms.len(), rooms.rooms());
                self.deliver(now, rooms).await;
                machine.handle_followed(now, &question, len, in_page, self);
            }
            WorkerEvent::Failed(error) => {
                debug!(%error, "the sticky connection failed");
                machine.handle_failure(now, error);
            }
            WorkerEvent::OtherToken => machine.handle_other_token(),
            WorkerEvent::Fetched(fetched) => {
                if let Some((_, error)) = &fetched.failed {
                    debug!(%error, "could not fetch the sticky events of single rooms");
                }
                machine.handle_fetched(now, fetched, self);
            }
            WorkerEvent::Listed(rooms) => {
                if let Some(rooms) = rooms {
                    *self.listed() = rooms.into_iter().collect();
                }
                machine.handle_listed();
            }
            WorkerEvent::Rooms(Ok(updates)) => {
                self.handle_rooms(machine, main_loop, &updates).await;
            }
            WorkerEvent::Rooms(Err(RecvError::Lagged(missed))) => {
                debug!(missed, "missed updates of the main loop: starting over");
                main_loop.start_over(self.joined());
                for room_id in self.maps.rooms().iter().filter(|room_id| self.is_not_ours(room_id))
                {
                    self.maps.handle_left(room_id);
                }
                machine.handle_missed_news();
                self.retry(None).await;
            }
            WorkerEvent::Ignored(users) => {
                let users = users.into_iter().filter_map(|user| UserId::parse(user).ok());
                self.handle_ignored(machine, users.collect());
            }
            WorkerEvent::Session(Ok(SessionChange::TokensRefreshed)) => machine.handle_refresh(),
            WorkerEvent::Keys(keys) => self.retry(keys).await,
            // The next `poll_step` sees what is due. An unknown token is noticed by our own next
            // request. The senders live as long as the client, which we hold.
            WorkerEvent::Due
            | WorkerEvent::Session(_)
            | WorkerEvent::Rooms(Err(RecvError::Closed)) => {}
        }
    }

    /// Hands what the main loop brought to the maps, and the rest of it to the machine.
    async fn handle_rooms(
        &self,
        machine: &mut SyncMachine,
        main_loop: &mut MainLoop,
        updates: &RoomUpdates,
    ) {
        let now = self.maps.now();
        let mut news = main_loop.handle_update(updates, machine.connected_for(now));
        let redactions = std::mem::take(&mut news.redactions);
        self.maps.handle(redactions.into_iter().map(|(room_id, event_id)| Delivery {
            room_id,
            received: now,
            via: ReceivedVia::Timeline,
            arrivals: vec![Arrival::Redaction(event_id)],
        }));
        for room_id in &news.left {
            self.maps.handle_left(room_id);
        }
        if !news.new.is_empty() {
            // Until now the room's keys could not be asked for.
            let new = std::mem::take(&mut news.new);
            self.retry(Some(new.into_iter().map(|room_id| (room_id, None)).collect())).await;
        }
        news.gaps.retain(|room_id| self.maps.stats(room_id).events > 0);
        machine.handle_news(now, news);
        if machine.is_following() {
            let token = self.main_token().await;
            machine.handle_main_token(now, token, !updates.joined.is_empty());
        }
    }

    fn handle_ignored(&self, machine: &mut SyncMachine, users: HashSet<OwnedUserId>) {
        self.maps.handle_ignored(users.clone());
        machine.handle_ignored(users);
    }

    fn look_at_maps(&self, machine: &mut SyncMachine) {
        machine.handle_maps(self.maps.now(), self.settle_hidden(), self.unproven());
    }

    /// Shows what was hidden in rooms that turn out to be ours, and drops it in those that turn out not
    /// to be. Returns the rooms of which nobody has said it yet.
    fn settle_hidden(&self) -> Vec<OwnedRoomId> {
        let mut hidden = self.maps.hidden();
        hidden.retain(|room_id| {
            match self.is_ours(room_id) {
                Some(true) => self.maps.reveal(room_id),
                Some(false) => self.maps.handle_left(room_id),
                None => return true,
            }
            false
        });
        hidden
    }

    /// Performs a request of the source.
    fn ask(&self, ask: Ask) -> BoxFuture<'_, WorkerEvent> {
        match ask {
            Ask::Versions => Box::pin(self.ask_versions()),
            Ask::Sliding(request) => {
                let (asked, config) = (self.maps.now(), one_try(request.timeout()));
                Box::pin(async move {
                    let token = self.client.access_token();
                    match self.client.send(*request).with_request_config(config).await {
                        Ok(response) => WorkerEvent::Page(response, self.maps.now().since(asked)),
                        Err(error) => self.failed(token, error.into()),
                    }
                })
            }
            Ask::V3 { question, request, patience } => Box::pin(async move {
                let token = self.client.access_token();
                let config = one_try(patience);
                match self.client.send(*request).with_request_config(config).await {
                    Ok(response) => WorkerEvent::Followed(question, response),
                    Err(error) => self.failed(token, error.into()),
                }
            }),
        }
    }

    /// Asks for the server's features. Never a cached answer: one from before an update of the server
    /// would say no for days.
    async fn ask_versions(&self) -> WorkerEvent {
        let token = self.client.access_token();
        let request = self.client.send(get_supported_versions::Request::new());
        match request.with_request_config(one_try(REQUEST_TIMEOUT)).await {
            Ok(response) => {
                let features = response.unstable_features;
                let has = |feature| features.get(feature).copied().unwrap_or_default();
                WorkerEvent::Versions(Features {
                    sticky_events: has(names::FEATURE),
                    sliding_sync: has(names::SLIDING_SYNC),
                })
            }
            Err(error) => self.failed(token, ConnectionError::of_versions(error)),
        }
    }

    /// Asks the server for the rooms that we are in.
    fn ask_list(&self) -> BoxFuture<'_, WorkerEvent> {
        Box::pin(async move {
            let request = self.client.send(joined_rooms::v3::Request::new());
            match request.with_request_config(one_try(REQUEST_TIMEOUT)).await {
                Ok(response) => WorkerEvent::Listed(Some(response.joined_rooms)),
                Err(error) => {
                    debug!(error = describe(&error), "the server does not list our rooms");
                    WorkerEvent::Listed(None)
                }
            }
        })
    }

    /// Waits until the client has another access token than the one that was refused. Until then
    /// nothing is asked.
    fn other_token(&self) -> BoxFuture<'_, WorkerEvent> {
        let refused = self.client.access_token();
        Box::pin(async move {
            // A refresh is announced as a change of the session. A session that is reloaded is not.
            while self.client.access_token() == refused {
                self.timer.sleep_until(self.maps.now().deadline(TOKEN_INTERVAL)).await;
            }
            WorkerEvent::OtherToken
        })
    }

    /// Says that a request failed that was sent with this token.
    fn failed(&self, token: Option<String>, error: ConnectionError) -> WorkerEvent {
        WorkerEvent::Failed(self.with_token(token, error))
    }

    /// Returns what a failure means for a request that was sent with this token.
    pub(super) fn with_token(
        &self,
        token: Option<String>,
        error: ConnectionError,
    ) -> ConnectionError {
        match error {
            ConnectionError::LoggedOut if self.client.access_token() != token => {
                ConnectionError::TokenChanged
            }
            error => error,
        }
    }

    /// Waits until the client has a session, and returns whose it is.
    async fn login(&self) -> OwnedUserId {
        loop {
            if let Some(session) = self.client.session_meta() {
                return session.user_id.clone();
            }
            // matrix-sdk tells nobody when a session is there.
            self.timer.sleep_until(self.maps.now().deadline(LOGIN_INTERVAL)).await;
        }
    }

    /// Returns the token that the application's main loop has stored last.
    async fn main_token(&self) -> Option<String> {
        let token = self.client.state_store().get_kv_data(StateStoreDataKey::SyncToken).await;
        match token {
            Ok(token) => token?.into_sync_token(),
            Err(error) => {
                debug!(%error, "could not read the main loop's token");
                None
            }
        }
    }

    async fn ignored_users(&self) -> HashSet<OwnedUserId> {
        let content = self.client.account().account_data::<IgnoredUserListEventContent>().await;
        match content.map(|content| content.map(|content| content.deserialize())) {
            Ok(Some(Ok(content))) => content.ignored_users.into_keys().collect(),
            Ok(None) => HashSet::new(),
            // The server keeps their events from us in any case.
            Ok(Some(Err(error))) => unreadable_ignore_list(&error),
            Err(error) => unreadable_ignore_list(&error),
        }
    }

    /// Whether we are in a room, by the word of the main loop, and if that does not know the room, of
    /// the server's list. `None` if nobody has said so yet.
    pub(super) fn is_ours(&self, room_id: &RoomId) -> Option<bool> {
        match self.client.get_room(room_id) {
            Some(room) => Some(room.state() == RoomState::Joined),
            None => self.listed().contains(room_id).then_some(true),
        }
    }

    fn listed(&self) -> MutexGuard<'_, HashSet<OwnedRoomId>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns which machine decrypts, where that can be told.
    #[cfg(feature = "e2e-encryption")]
    async fn crypto_machine(&self) -> Option<usize> {
        crate::encrypt::Encryptor::of(&self.client)?.machine_number().await
    }

    #[cfg(not(feature = "e2e-encryption"))]
    async fn crypto_machine(&self) -> Option<usize> {
        None
    }

    #[cfg(feature = "e2e-encryption")]
    async fn key_stream(&self) -> Option<KeyStream> {
        let keys = self.client.encryption().room_keys_received_stream().await?;
        Some(Box::pin(keys.map(|keys| {
            let keys = keys.ok()?;
            Some(keys.into_iter().map(|key| (key.room_id, Some(key.session_id))).collect())
        })))
    }

    #[cfg(not(feature = "e2e-encryption"))]
    async fn key_stream(&self) -> Option<KeyStream> {
        None
    }

    fn show(&self, state: SyncState) {
        if let SyncState::Unsupported(what) = &state {
            // Each time that it comes to be so, it is said once.
            if self.state.get() != state {
                warn!("{what}");
            }
        }
        self.state.set_if_not_eq(state);
    }
}

impl OurRooms for Worker {
    fn joined(&self) -> Vec<OwnedRoomId> {
        self.client.joined_rooms().iter().map(|room| room.room_id().to_owned()).collect()
    }

    fn is_not_ours(&self, room_id: &RoomId) -> bool {
        self.is_ours(room_id) == Some(false)
    }
}

/// Returns what the stream of keys gives next. Without a stream it never returns.
async fn next_keys(keys: &mut Option<KeyStream>) -> Option<Option<Vec<KeyOf>>> {
    match keys {
        Some(keys) => keys.next().await,
        None => pending().await,
    }
}

/// Sleeps until the deadline has come. Without a deadline it never returns.
async fn slept(sleep: &mut Option<(Deadline, BoxFuture<'_, WorkerEvent>)>) -> WorkerEvent {
    match sleep {
        Some((_, sleep)) => sleep.await,
        None => pending().await,
    }
}

fn unreadable_ignore_list(error: &dyn fmt::Display) -> HashSet<OwnedUserId> {
    debug!(%error, "could not read the list of ignored users");
    HashSet::new()
}
