//! Homeserver: the test itself gives its answers.
//!
//! It answers `/versions`, `/refresh` and the main loop's v3 `/sync` with what a test has set before.
//! Anything else that the SDK may ask for is not found. It hands these requests to the test, which
//! answers when and how it likes:
//!
//! - requests of our sources: of sliding sync, of v3 `/sync` and of a room's history:
//!   [`Homeserver::ask`];
//! - events that are sent, and requests about delayed events: [`Homeserver::sent`].

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use matrix_sdk::ruma::exports::{http::Uri, serde_html_form};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::{OTHER_ROOM, ROOM, body, within};

/// The path of sliding sync.
const SYNC: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// The path of v3 sync, the main loop's and ours.
pub(crate) const V3_SYNC: &str = "/_matrix/client/v3/sync";

/// The path of the tests' own requests.
const ROUND_TRIP: &str = "/round-trip";

pub(crate) struct Homeserver {
    address: SocketAddr,
    shared: Arc<Shared>,
    asks: mpsc::UnboundedReceiver<Ask>,
    sends: mpsc::UnboundedReceiver<Ask>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    asks: mpsc::UnboundedSender<Ask>,
    sends: mpsc::UnboundedSender<Ask>,
    answers: Mutex<HashMap<&'static str, (u16, Value)>>,
    /// The paths that were asked for.
    requests: Mutex<Vec<String>>,
    /// The tokens that the main loop was given by v3 sync, the oldest first.
    main_tokens: Mutex<Vec<String>>,
}

impl Homeserver {
    /// Starts a server that has all that we need.
    pub(crate) async fn start() -> Self {
        let (ask_sender, asks) = mpsc::unbounded_channel();
        let (send_sender, sends) = mpsc::unbounded_channel();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut server = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Shared {
                asks: ask_sender,
                sends: send_sender,
                answers: Mutex::default(),
                requests: Mutex::default(),
                main_tokens: Mutex::default(),
            }),
            asks,
            sends,
            listening: None,
        };
        server.has(&["org.matrix.msc4354", "org.matrix.simplified_msc3575"]);
        server.lists(&[ROOM, OTHER_ROOM]);
        server.listen(listener);
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the features of `/versions`.
    pub(crate) fn has(&self, features: &[&str]) {
        let features: Value =
            features.iter().map(|name| ((*name).to_owned(), json!(true))).collect();
        let versions = json!({ "versions": ["v1.14"], "unstable_features": features });
        self.answers_to("/versions", 200, versions);
    }

    /// Sets the server's list of the rooms that we are in.
    pub(crate) fn lists(&self, rooms: &[&str]) {
        self.answers_to("/joined_rooms", 200, json!({ "joined_rooms": rooms }));
    }

    /// Sets the answer to requests whose path ends with `path`, or has it as one of its parts.
    pub(crate) fn answers_to(&self, path: &'static str, status: u16, answer: Value) {
        self.answers().set(path, status, answer);
    }

    /// Returns the answers, to be changed while the server itself is in use.
    pub(crate) fn answers(&self) -> Answers {
        Answers(self.shared.clone())
    }

    /// Returns the next request of a source of ours.
    #[track_caller]
    pub(crate) fn ask(&mut self) -> impl Future<Output = Ask> {
        let caller = std::panic::Location::caller();
        let ask = within("a request", async { self.asks.recv().await.unwrap() });
        async move {
            let ask = ask.await;
            // With any other token it would take room keys away from the main loop.
            assert!(ask.is_behind_the_main_loop, "{caller}: {:?}", ask.param("since"));
            ask
        }
    }

    /// Returns the next event that is sent, or request about a delayed event.
    #[track_caller]
    pub(crate) fn sent(&mut self) -> impl Future<Output = Ask> {
        within("an event to be sent", async { self.sends.recv().await.unwrap() })
    }

    /// Returns the next request that the test has to answer, of either kind.
    #[track_caller]
    pub(crate) fn request(&mut self) -> impl Future<Output = Ask> {
        within("a request", async {
            tokio::select! {
                ask = self.asks.recv() => ask.unwrap(),
                sent = self.sends.recv() => sent.unwrap(),
            }
        })
    }

    /// Whether an event was sent that nobody has looked at.
    pub(crate) fn is_sent_more(&mut self) -> bool {
        !self.sends.is_empty()
    }

    /// Whether a request of a source of ours is there that nobody has looked at.
    pub(crate) fn is_asked(&mut self) -> bool {
        !self.asks.is_empty()
    }

    /// Returns how many requests had a path that ends so.
    pub(crate) fn count(&self, path: &str) -> usize {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|asked| asked.ends_with(path)).count()
    }

    /// Returns the paths that had this in them.
    pub(crate) fn asked_for(&self, part: &str) -> Vec<String> {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|asked| asked.contains(part)).cloned().collect()
    }

    /// Returns how many requests of sliding sync there were.
    pub(crate) fn polls(&self) -> usize {
        self.count(SYNC)
    }

    /// Refuses connections from now on.
    pub(crate) async fn shut_down(&mut self) {
        let listening = self.listening.take().expect("it is up");
        listening.abort();
        // With the task the listener is gone.
        let _ = listening.await;
    }

    /// Listens again, at the same address.
    pub(crate) async fn come_back(&mut self) {
        let listener = within("the port", async {
            loop {
                match TcpListener::bind(self.address).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        self.listen(listener);
    }

    /// Makes a request of the test's own, which is answered after all requests before it.
    pub(crate) async fn round_trip(&self) {
        if self.listening.is_none() {
            tokio::task::yield_now().await;
            return;
        }
        round_trip(self.address).await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counts the requests that came, except the test's own.
    pub(crate) fn counter(&self) -> impl Fn() -> usize + use<> {
        let shared = self.shared.clone();
        move || {
            let requests = shared.requests.lock().unwrap();
            requests.iter().filter(|asked| *asked != ROUND_TRIP).count()
        }
    }

    fn listen(&mut self, listener: TcpListener) {
        let shared = self.shared.clone();
        self.listening = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(shared.clone().serve(stream));
            }
        }));
    }
}

/// A request of the test's own to a server that is up.
pub(crate) async fn round_trip(server: SocketAddr) {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let request = format!("GET {ROUND_TRIP} HTTP/1.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
}

/// The answers that the server gives by itself.
pub(crate) struct Answers(Arc<Shared>);

impl Answers {
    /// See [`Homeserver::answers_to`].
    pub(crate) fn set(&self, path: &'static str, status: u16, answer: Value) {
        self.0.answers.lock().unwrap().insert(path, (status, answer));
    }

    /// Returns what was set for this path.
    pub(crate) fn get(&self, path: &str) -> Value {
        self.0.answers.lock().unwrap()[path].1.clone()
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let Some(mut ask) = Ask::read(stream).await else {
            return;
        };
        if let (V3_SYNC, Some(since)) = (&*ask.path, ask.param("since")) {
            let tokens = self.main_tokens.lock().unwrap();
            let passed = tokens.split_last().map_or(&[][..], |(_, passed)| passed);
            ask.is_behind_the_main_loop = passed.iter().any(|token| token == since);
        }
        self.requests.lock().unwrap().push(ask.path.clone());
        let handed_to = if ask.is_of_a_source() {
            Some(&self.asks)
        } else {
            let is_sent =
                ["/send/", "/redact/", "/delayed_event"].iter().any(|part| ask.path.contains(part));
            is_sent.then_some(&self.sends)
        };
        if let Some(test) = handed_to {
            // The test may be over.
            let _ = test.send(ask);
            return;
        }
        let canned = {
            let answers = self.answers.lock().unwrap();
            let is_for = |path: &str| {
                ask.path.ends_with(path) || path.ends_with('/') && ask.path.contains(path)
            };
            let found = answers.iter().find(|(path, _)| is_for(path));
            found.map(|(_, answer)| answer.clone())
        };
        let (status, answer) =
            canned.unwrap_or_else(|| (404, json!({ "errcode": "M_NOT_FOUND", "error": "no" })));
        if let (V3_SYNC, Some(token)) = (&*ask.path, answer["next_batch"].as_str()) {
            self.main_tokens.lock().unwrap().push(token.to_owned());
        }
        ask.answer(status, answer.to_string()).await;
    }
}

/// A request, and the way to answer it. Dropping it hangs up.
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: HashMap<String, String>,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
    /// Whether the request has no token of v3 sync, or one that the main loop had moved on from when the
    /// request came.
    is_behind_the_main_loop: bool,
    stream: TcpStream,
}

impl Ask {
    async fn read(mut stream: TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let head_end = loop {
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
        let mut lines = head.lines();
        let mut request = lines.next()?.split(' ').map(ToOwned::to_owned);
        let (method, target) = (request.next()?, request.next()?);
        let headers: HashMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length: usize =
            headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        while bytes.len() < head_end + length {
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }

        let target: Uri = target.parse().unwrap();
        let query = target.query().unwrap_or_default();
        Some(Self {
            method,
            path: target.path().to_owned(),
            query: serde_html_form::from_str(query).unwrap(),
            authorization: headers.get("authorization").cloned(),
            body: serde_json::from_slice(&bytes[head_end..]).unwrap_or_default(),
            is_behind_the_main_loop: true,
            stream,
        })
    }

    /// Returns a parameter of the query.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    pub(crate) fn pos(&self) -> Option<&str> {
        self.param("pos")
    }

    /// Returns what the request asks of the sticky extension.
    pub(crate) fn extension(&self) -> &Value {
        &self.body["extensions"]["org.matrix.msc4354.sticky_events"]
    }

    pub(crate) fn since(&self) -> Option<&str> {
        self.extension()["since"].as_str()
    }

    /// Returns the filter of a request of v3 sync.
    pub(crate) fn filter(&self) -> Option<Value> {
        serde_json::from_str(self.param("filter")?).ok()
    }

    /// Whether a source of ours asks. The application's main loop asks for v3 sync too, but only our
    /// source wants no timeline at all.
    pub(crate) fn is_of_a_source(&self) -> bool {
        let wants_no_timeline =
            |filter: Value| filter["room"]["timeline"]["not_types"] == json!(["*"]);
        self.path == SYNC
            || self.path == V3_SYNC && self.filter().is_some_and(wants_no_timeline)
            || self.path.ends_with("/messages")
    }

    pub(crate) async fn answer(self, status: u16, body: impl AsRef<[u8]>) {
        self.answer_with(status, "", body).await;
    }

    /// Answers like [`answer`](Self::answer), with further headers, each with its end of line.
    pub(crate) async fn answer_with(mut self, status: u16, headers: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let head = format!(
            "HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\n{headers}\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        self.write(&[head.as_bytes(), body].concat()).await;
    }

    /// Refuses, with a code of Matrix.
    pub(crate) async fn refuse(self, status: u16, errcode: &str) {
        let error = json!({ "errcode": errcode, "error": "as the test wants it" });
        self.answer(status, error.to_string()).await;
    }

    /// Answers with the events of one room.
    pub(crate) async fn page(self, pos: &str, next_batch: &str, room: &str, events: Vec<Value>) {
        let rooms = json!({ room: { "events": events } });
        self.answer(200, body(pos, Some(next_batch), rooms).to_string()).await;
    }

    /// Answers v3 sync with the sticky events of these rooms, and a token that nobody may use.
    pub(crate) async fn sections(self, rooms: &[(&str, Vec<Value>)]) {
        let join: Value = rooms
            .iter()
            .map(|(room, events)| {
                ((*room).to_owned(), json!({ "msc4354_sticky": { "events": events } }))
            })
            .collect();
        let answer = json!({ "next_batch": "ours", "rooms": { "join": join } });
        self.answer(200, answer.to_string()).await;
    }

    /// Answers that the server wants to be left alone for so long.
    pub(crate) async fn limit(self, retry_after_ms: u64) {
        let limited = json!({
            "errcode": "M_LIMIT_EXCEEDED",
            "error": "slow down",
            "retry_after_ms": retry_after_ms,
        });
        self.answer(429, limited.to_string()).await;
    }

    /// Answers that nothing is new.
    pub(crate) async fn nothing(self, pos: &str) {
        self.answer(200, body(pos, None, json!({})).to_string()).await;
    }

    /// Announces the length of the answer, and hangs up after half of it.
    pub(crate) async fn answer_half(mut self, body: &str) {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let half = &body.as_bytes()[..body.len() / 2];
        self.write(&[head.as_bytes(), half].concat()).await;
    }

    /// Waits until the client has given up.
    pub(crate) async fn given_up(mut self) {
        within("it to be given up", async {
            let mut byte = [0];
            while let Ok(1..) = self.stream.read(&mut byte).await {}
        })
        .await;
    }

    /// Writes the answer. If the client has given up, nobody hears it.
    async fn write(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
    }
}
