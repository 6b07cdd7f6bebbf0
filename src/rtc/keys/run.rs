//! The task of an exchange: it feeds the machine, and has its sends performed.
//!
//! In: snapshots of the session, decrypted to-device messages, news of devices. Out: sends, and changes for
//! the subscribers. Never: a decision that the machine could make.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    task::Waker,
    time::Duration,
};

use futures_core::Stream;
use futures_util::{
    StreamExt as _,
    stream::{self, FuturesUnordered},
};
use matrix_sdk::{
    Client,
    deserialized_responses::{AlgorithmInfo, EncryptionInfo},
};
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value};
use tracing::debug;

use super::{
    DiscardReason, KeyExchange, KeyMessage, KeySendFailure, Participant, SendId, Sender, Sending,
    handle::Shared,
    inbox::{KeyEvent, KeyInbox},
    perform::Performer,
};
use crate::{
    driver::{BoxFuture, Timer, before, optional, until},
    encrypt::{Told, listening},
    event::Verification,
    rtc::{dialect::Dialect, snapshot::SessionSnapshot},
    time::Deadline,
};

/// How long one send may take, with all that it needs first.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long looking up devices may take.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long after a query for the devices of a user the server is not asked for them again.
const DEVICES_QUERY_INTERVAL: Duration = Duration::from_secs(60);

type Sent = (SendId, BTreeMap<Participant, KeySendFailure>);
type Asked = Arc<Mutex<HashMap<OwnedUserId, Deadline>>>;

pub(super) struct Run {
    shared: Arc<Shared>,
    performer: Arc<Performer>,
    /// The users whose devices the server was asked for, each until it may be asked again.
    asked: Asked,
}

impl Run {
    pub(super) fn new(shared: Arc<Shared>, performer: Performer) -> Self {
        Self { shared, performer: Arc::new(performer), asked: Arc::default() }
    }

    /// Runs until the exchange is over.
    pub(super) async fn run<S>(self, mut sessions: S, mut inbox: KeyInbox)
    where
        S: Stream<Item = (String, SessionSnapshot)> + Send + Unpin,
    {
        let mut sessions_are_over = false;
        let mut news = news_of_devices(&self.performer.client());
        let mut sends: FuturesUnordered<BoxFuture<'static, Sent>> = FuturesUnordered::new();
        let mut looking: Option<BoxFuture<'static, Vec<Sender>>> = None;
        let mut must_look_up = false;
        loop {
            let deadline = match &self.shared.state().exchange {
                Some(exchange) => exchange.next_deadline(),
                None => return,
            };
            let timer = &self.shared.timer;
            tokio::select! {
                session = sessions.next(), if !sessions_are_over => match session {
                    Some((member_id, session)) => {
                        self.handle_session(member_id, &session);
                        must_look_up = true;
                    }
                    None => sessions_are_over = true,
                },
                (event, info) = inbox.next() => {
                    self.handle_incoming(event, info).await;
                    must_look_up = true;
                }
                Some((id, failures)) = sends.next() => {
                    self.with(|exchange| exchange.handle_sent(timer.now(), id, &failures));
                }
                Some(devices) = news.next() => {
                    self.handle_devices(devices);
                    must_look_up = true;
                }
                senders = optional(&mut looking) => {
                    looking = None;
                    self.with(|exchange| {
                        senders.iter().for_each(|sender| exchange.handle_verification(sender));
                    });
                }
                () = until(&**timer, deadline) => {}
            }
            for sending in self.pump() {
                sends.push(self.send(sending));
            }
            if must_look_up && looking.is_none() {
                must_look_up = false;
                looking = self.look_up();
            }
        }
    }

    fn handle_session(&self, member_id: String, session: &SessionSnapshot) {
        self.with(|exchange| {
            if exchange.own().member_id != member_id {
                exchange.handle_joined_as(member_id);
            }
            exchange.handle_session(self.shared.timer.now(), session);
        });
    }

    fn handle_devices(&self, devices: Told<BTreeSet<OwnedUserId>>) {
        self.with(|exchange| match devices {
            Told::News(users) => {
                users.iter().for_each(|user_id| exchange.handle_devices_change(user_id));
            }
            Told::Missed => exchange.handle_devices_missed(),
        });
    }

    fn with(&self, handle: impl FnOnce(&mut KeyExchange)) {
        if let Some(exchange) = &mut self.shared.state().exchange {
            handle(exchange);
        }
    }

    /// Notifies the subscribers, and returns the sends that are due.
    fn pump(&self) -> Vec<Sending> {
        let now = self.shared.timer.now();
        let mut sendings = Vec::new();
        let wakers = {
            let mut state = self.shared.state();
            let Some(exchange) = &mut state.exchange else { return Vec::new() };
            while let Some(sending) = exchange.poll_send(now) {
                sendings.push(sending);
            }
            let mut changes = Vec::new();
            while let Some(change) = exchange.poll_change(now) {
                changes.push(change);
            }
            state.publish(&changes)
        };
        wakers.into_iter().for_each(Waker::wake);
        sendings
    }

    async fn handle_incoming(&self, event: KeyEvent, info: Option<EncryptionInfo>) {
        let KeyEvent { dialect, sender, content } = event;
        match self.check(dialect, &content, info).await {
            Ok((sender, message)) => {
                let now = self.shared.timer.now();
                self.with(|exchange| exchange.handle_message(now, sender, message));
            }
            Err(reason) => self.with(|exchange| exchange.handle_discarded(sender, reason)),
        }
    }

    async fn check(
        &self,
        dialect: Dialect,
        content: &str,
        info: Option<EncryptionInfo>,
    ) -> Result<(Sender, KeyMessage), DiscardReason> {
        let info = info.ok_or(DiscardReason::NotEncrypted)?;
        let AlgorithmInfo::OlmV1Curve25519AesSha2 { curve25519_public_key_base64 } =
            info.algorithm_info
        else {
            return Err(DiscardReason::NotEncrypted);
        };
        let device_id = info.sender_device.ok_or(DiscardReason::UnknownDevice)?;
        let content = serde_json::from_str::<Map<String, Value>>(content);
        let content = content.map_err(|_| DiscardReason::Malformed("content"))?;
        let message = KeyMessage::read(dialect, content).map_err(DiscardReason::Malformed)?;
        let mut sender = Sender::new(
            info.sender,
            device_id,
            curve25519_public_key_base64,
            Verification::Unproven,
        );
        sender.verification = self.performer.verification_of(&sender).await;
        Ok((sender, message))
    }

    /// Looks up the devices of senders whose keys wait because the device is not trusted.
    fn look_up(&self) -> Option<BoxFuture<'static, Vec<Sender>>> {
        let doubtful = self.shared.state().exchange.as_ref()?.doubtful();
        if doubtful.is_empty() {
            return None;
        }
        let (performer, timer) = (self.performer.clone(), self.shared.timer.clone());
        let asked = self.asked.clone();
        Some(Box::pin(async move {
            let deadline = timer.now().deadline(LOOK_UP_TIMEOUT);
            let mut senders = Vec::new();
            for mut sender in doubtful {
                sender.verification = performer.verification_of(&sender).await;
                if sender.verification == Verification::Unproven
                    && may_ask(&asked, &*timer, &sender.user_id)
                {
                    before(&*timer, deadline, performer.ask_for_devices(&sender.user_id)).await;
                    sender.verification = performer.verification_of(&sender).await;
                }
                senders.push(sender);
            }
            senders
        }))
    }

    fn send(&self, sending: Sending) -> BoxFuture<'static, Sent> {
        let (performer, timer) = (self.performer.clone(), self.shared.timer.clone());
        let own = self.shared.state().exchange.as_ref().map(|it| it.own().clone());
        Box::pin(async move {
            let id = sending.id;
            let mut failures =
                sending.to.iter().map(|(to, _)| (to.clone(), KeySendFailure::Unknown));
            let mut failures: BTreeMap<_, _> = failures.by_ref().collect();
            if let Some(own) = own {
                let now = timer.now();
                let send = performer.send(&sending, &own, now.unix_ms(), &mut failures);
                if before(&*timer, now.deadline(SEND_TIMEOUT), send).await.is_none() {
                    debug!(room_id = %performer.room_id(), "a media key was not sent in time");
                }
            }
            (id, failures)
        })
    }
}

/// Whether the server may be asked for the devices of this user. If so, it counts as asked.
fn may_ask(asked: &Asked, timer: &dyn Timer, user_id: &UserId) -> bool {
    let now = timer.now();
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.retain(|_, again_at| !again_at.is_over(now));
    asked.insert(user_id.to_owned(), now.deadline(DEVICES_QUERY_INTERVAL)).is_none()
}

/// The users whose devices or identities change.
fn news_of_devices(
    client: &Client,
) -> impl Stream<Item = Told<BTreeSet<OwnedUserId>>> + Send + Unpin + use<> {
    let (of_devices, of_identities) = (client.encryption(), client.encryption());
    let devices = listening(client, move || {
        let encryption = of_devices.clone();
        async move {
            let changes = encryption.devices_stream().await.ok()?;
            Some(
                changes
                    .map(|it| it.new.into_keys().chain(it.changed.into_keys()).collect())
                    .boxed(),
            )
        }
    });
    let identities = listening(client, move || {
        let encryption = of_identities.clone();
        async move {
            let changes = encryption.user_identities_stream().await.ok()?;
            Some(
                changes
                    .map(|it| it.new.into_keys().chain(it.changed.into_keys()).collect())
                    .boxed(),
            )
        }
    });
    stream::select(devices, identities)
}
