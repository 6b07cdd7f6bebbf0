//! A homeserver whose answers the test itself gives.
//!
//! `/versions` and `/refresh` it answers as it was told before; anything else that the SDK may ask
//! for is not found; each request of sliding sync it hands to the test, which answers when and how
//! it likes: [`Homeserver::ask`].

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use matrix_sdk::ruma::exports::http::Uri;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::{body, within};

/// Where sliding sync lives.
const SYNC: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

pub(crate) struct Homeserver {
    address: SocketAddr,
    shared: Arc<Shared>,
    asks: mpsc::UnboundedReceiver<Ask>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    sender: mpsc::UnboundedSender<Ask>,
    answers: Mutex<HashMap<&'static str, (u16, Value)>>,
    /// The paths that were asked for.
    requests: Mutex<Vec<String>>,
}

impl Homeserver {
    /// One with all that we need.
    pub(crate) async fn start() -> Self {
        let (sender, asks) = mpsc::unbounded_channel();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut server = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Shared {
                sender,
                answers: Mutex::default(),
                requests: Mutex::default(),
            }),
            asks,
            listening: None,
        };
        server.has(&["org.matrix.msc4354", "org.matrix.simplified_msc3575"]);
        server.listen(listener);
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on `/versions` has these features.
    pub(crate) fn has(&self, features: &[&str]) {
        let features: Value =
            features.iter().map(|name| ((*name).to_owned(), json!(true))).collect();
        let versions = json!({ "versions": ["v1.14"], "unstable_features": features });
        self.answers_to("/versions", 200, versions);
    }

    /// From now on requests whose path ends so are answered so.
    pub(crate) fn answers_to(&self, path: &'static str, status: u16, answer: Value) {
        self.answers().set(path, status, answer);
    }

    /// What it answers, to be changed while the server itself is in use.
    pub(crate) fn answers(&self) -> Answers {
        Answers(self.shared.clone())
    }

    /// The next request of sliding sync.
    #[track_caller]
    pub(crate) fn ask(&mut self) -> impl Future<Output = Ask> {
        within("a request", async { self.asks.recv().await.unwrap() })
    }

    /// Whether a request of sliding sync is there that nobody has looked at.
    pub(crate) fn is_asked(&mut self) -> bool {
        !self.asks.is_empty()
    }

    /// How many requests had a path that ends so.
    pub(crate) fn count(&self, path: &str) -> usize {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|asked| asked.ends_with(path)).count()
    }

    /// How many requests of sliding sync there were.
    pub(crate) fn polls(&self) -> usize {
        self.count(SYNC)
    }

    /// From now on connections are refused.
    pub(crate) async fn shut_down(&mut self) {
        let listening = self.listening.take().expect("it is up");
        listening.abort();
        // With the task the listener is gone.
        let _ = listening.await;
    }

    /// Is there again, at the same address.
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

    /// A request of the test's own, which is answered after all that were there before.
    pub(crate) async fn round_trip(&self) {
        if self.listening.is_none() {
            tokio::task::yield_now().await;
            return;
        }
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(b"GET /round-trip HTTP/1.1\r\n\r\n").await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
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

/// What a server answers, apart from sliding sync.
pub(crate) struct Answers(Arc<Shared>);

impl Answers {
    /// See [`Homeserver::answers_to`].
    pub(crate) fn set(&self, path: &'static str, status: u16, answer: Value) {
        self.0.answers.lock().unwrap().insert(path, (status, answer));
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let Some(ask) = Ask::read(stream).await else {
            return;
        };
        self.requests.lock().unwrap().push(ask.path.clone());
        if ask.path == SYNC {
            // The test may be over.
            let _ = self.sender.send(ask);
            return;
        }
        let canned = {
            let answers = self.answers.lock().unwrap();
            let found = answers.iter().find(|(path, _)| ask.path.ends_with(**path));
            found.map(|(_, answer)| answer.clone())
        };
        let (status, answer) =
            canned.unwrap_or_else(|| (404, json!({ "errcode": "M_NOT_FOUND", "error": "no" })));
        ask.answer(status, answer.to_string()).await;
    }
}

/// A request, and the way to answer it. Dropping it hangs up.
pub(crate) struct Ask {
    pub(crate) path: String,
    pub(crate) query: HashMap<String, String>,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
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
        let target = lines.next()?.split(' ').nth(1)?.to_owned();
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
            path: target.path().to_owned(),
            query: query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            authorization: headers.get("authorization").cloned(),
            body: serde_json::from_slice(&bytes[head_end..]).unwrap_or_default(),
            stream,
        })
    }

    /// A parameter of the query.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    pub(crate) fn pos(&self) -> Option<&str> {
        self.param("pos")
    }

    /// What it asks of the sticky extension.
    pub(crate) fn extension(&self) -> &Value {
        &self.body["extensions"]["org.matrix.msc4354.sticky_events"]
    }

    pub(crate) fn since(&self) -> Option<&str> {
        self.extension()["since"].as_str()
    }

    pub(crate) async fn answer(mut self, status: u16, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let head = format!(
            "HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        self.write(&[head.as_bytes(), body].concat()).await;
    }

    /// Answers that it will not, with a code of Matrix.
    pub(crate) async fn refuse(self, status: u16, errcode: &str) {
        let error = json!({ "errcode": errcode, "error": "as the test wants it" });
        self.answer(status, error.to_string()).await;
    }

    /// Answers with the events of one room.
    pub(crate) async fn page(self, pos: &str, next_batch: &str, room: &str, events: Vec<Value>) {
        let rooms = json!({ room: { "events": events } });
        self.answer(200, body(pos, Some(next_batch), rooms).to_string()).await;
    }

    /// Answers that nothing is new.
    pub(crate) async fn nothing(self, pos: &str) {
        self.answer(200, body(pos, None, json!({})).to_string()).await;
    }

    /// Says how long the answer is, and hangs up after half of it.
    pub(crate) async fn answer_half(mut self, body: &str) {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let half = &body.as_bytes()[..body.len() / 2];
        self.write(&[head.as_bytes(), half].concat()).await;
    }

    /// Waits until whoever asked has given up.
    pub(crate) async fn given_up(mut self) {
        within("it to be given up", async {
            let mut byte = [0];
            while let Ok(1..) = self.stream.read(&mut byte).await {}
        })
        .await;
    }

    /// Whoever asked may have given up; then nobody hears the answer.
    async fn write(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
    }
}
