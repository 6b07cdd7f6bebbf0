//! A proxy between one client and the server, in which a test sees and bends the requests: counts
//! them, holds them back, cuts the line, loses answers, and makes what a matrix-sdk client encrypts
//! sticky.
//!
//! Why the last? matrix-sdk has no public way to send an event with the sticky parameter. The
//! sticky object stands outside the encryption, so adding the parameter on the way is exactly what
//! a client would do that could.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, watch},
    task::AbortHandle,
};
use xtask::api::STICKY_DURATION;

/// More requests than any test makes.
const ALL: usize = 1_000_000;

/// A running proxy. Dropping it cuts all its connections.
pub(crate) struct Proxy {
    url: String,
    shared: Arc<Shared>,
    accepts: AbortHandle,
}

struct Shared {
    server: String,
    state: Mutex<State>,
    /// One permit for each request of a sticky connection that may pass.
    gate: Semaphore,
    frozen: watch::Sender<bool>,
    connections: AtomicU64,
}

/// What becomes of a claim of one-time keys.
pub(crate) enum Claim {
    /// It reaches the server, and so is answered, only after so long.
    Late(Duration),
    /// The answer has no keys. The server does not hear of it.
    Empty,
    /// The answer says that this server could not be reached. No server hears of it.
    Fails(String),
}

#[derive(Default)]
struct State {
    cut: bool,
    /// What becomes of the next claims; those after them pass.
    claims: VecDeque<Claim>,
    /// How many claims there were.
    claimed: usize,
    sticky_ms: Option<u64>,
    /// Delayed events are taken by the dedicated endpoint alone; whether it keeps them sticky.
    dedicated: Option<bool>,
    keeps_to_device: bool,
    /// To-device messages are refused; how many were.
    refuses_to_device: Option<usize>,
    loses_position: bool,
    /// How many more answers to events that are sent are lost.
    loses_answers: usize,
    /// The connections that wait for an answer that will be lost.
    losing: HashSet<u64>,
    /// The paths of events that were sent, and the bodies.
    sends: Vec<(String, Vec<u8>)>,
    kept: Vec<Vec<u8>>,
    /// The names of the sticky connections, and what each request was for.
    sticky_requests: Vec<(String, Asks)>,
    /// The connections that wait for the answer to a sticky request.
    open: HashSet<u64>,
    tasks: Vec<AbortHandle>,
}

impl Proxy {
    /// Starts a proxy before this server, given as `http://127.0.0.1:PORT`.
    pub(crate) async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            server: server.trim_start_matches("http://").to_owned(),
            state: Mutex::default(),
            gate: Semaphore::new(ALL),
            frozen: watch::Sender::new(false),
            connections: AtomicU64::new(0),
        });
        let accepts = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Self { url, shared, accepts }
    }

    /// What a client is given as its homeserver's URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Cuts all connections, and each new one at once.
    pub(crate) fn cut(&self) {
        let mut state = self.state();
        state.cut = true;
        state.tasks.drain(..).for_each(|task| task.abort());
        state.open.clear();
    }

    /// Lets connections pass again.
    pub(crate) fn mend(&self) {
        self.state().cut = false;
    }

    /// Connections stay open and new ones are taken, but nothing passes in either direction.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.shared.frozen.send_replace(frozen);
    }

    /// From now on only so many requests of sticky connections pass; the others wait.
    pub(crate) fn let_pass_only(&self, requests: usize) {
        self.shared.gate.forget_permits(ALL);
        self.let_pass(requests);
    }

    /// So many more requests of sticky connections pass.
    pub(crate) fn let_pass(&self, requests: usize) {
        self.shared.gate.add_permits(requests);
    }

    /// From now on each encrypted event that is sent is sticky for so long, or none is.
    pub(crate) fn make_sticky(&self, duration: Option<Duration>) {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
        self.state().sticky_ms = duration.map(millis);
    }

    /// From now on delayed events are taken by the dedicated endpoint alone, as on a server that has given
    /// up the query form; and the endpoint keeps them sticky, or ignores that they are to be.
    pub(crate) fn have_only_the_dedicated_endpoint(&self, keeps_sticky: bool) {
        self.state().dedicated = Some(keeps_sticky);
    }

    /// Gives the next request of a sticky connection a position that the server never gave.
    pub(crate) fn lose_position(&self) {
        self.state().loses_position = true;
    }

    /// Of the next events that are sent, so many reach the server and lose their answer: the line is
    /// cut when it comes.
    pub(crate) fn lose_answers(&self, answers: usize) {
        self.state().loses_answers = answers;
    }

    /// The paths and bodies of the events that were sent, each as often as it was tried.
    pub(crate) fn sends(&self) -> Vec<(String, Vec<u8>)> {
        self.state().sends.clone()
    }

    /// From now on to-device messages (room keys for one) are answered, and kept here.
    pub(crate) fn keep_to_device(&self) {
        self.state().keeps_to_device = true;
    }

    /// Sends the to-device messages that were kept, and keeps no more. Returns how many.
    pub(crate) async fn release_to_device(&self) -> usize {
        let kept = {
            let mut state = self.state();
            state.keeps_to_device = false;
            std::mem::take(&mut state.kept)
        };
        for request in &kept {
            let mut server = TcpStream::connect(&self.shared.server).await.unwrap();
            server.write_all(request).await.unwrap();
            let mut answer = [0; 12];
            server.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
        kept.len()
    }

    /// From now on to-device messages are refused, or not any more.
    #[cfg(feature = "media-keys")]
    pub(crate) fn refuse_to_device(&self, refused: bool) {
        self.state().refuses_to_device = refused.then_some(0);
    }

    /// How many to-device messages were refused since.
    #[cfg(feature = "media-keys")]
    pub(crate) fn refused_to_device(&self) -> usize {
        self.state().refuses_to_device.unwrap_or_default()
    }

    /// The next claims of one-time keys are answered so, one each.
    pub(crate) fn answer_claims(&self, claims: impl IntoIterator<Item = Claim>) {
        self.state().claims.extend(claims);
    }

    /// How many claims of one-time keys came.
    pub(crate) fn claims(&self) -> usize {
        self.state().claimed
    }

    /// How many requests of sticky connections came.
    pub(crate) fn sticky_requests(&self) -> usize {
        self.state().sticky_requests.len()
    }

    /// The names of the sticky connections that asked for all rooms, each once.
    pub(crate) fn sticky_connections(&self) -> Vec<String> {
        let requests = self.state().sticky_requests.clone();
        let requests = requests.into_iter().filter(|(_, asks)| *asks != Asks::Rooms);
        let mut names: Vec<_> = requests.map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        names
    }

    /// How many requests of sticky connections asked for all there is, in all rooms.
    pub(crate) fn requests_anew(&self) -> usize {
        let state = self.state();
        state.sticky_requests.iter().filter(|(_, asks)| *asks == Asks::Anew).count()
    }

    /// How many requests of sticky connections wait for their answer, on a connection that is open.
    pub(crate) fn open_sticky(&self) -> usize {
        self.state().open.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Proxy")
            .field("cut", &state.cut)
            .field("sticky_requests", &state.sticky_requests)
            .field("open", &state.open)
            .finish_non_exhaustive()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepts.abort();
        self.cut();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn thawed(&self) {
        let mut frozen = self.frozen.subscribe();
        frozen.wait_for(|frozen| !frozen).await.unwrap();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let mut state = shared.state();
        if !state.cut {
            let task = tokio::spawn(serve(client, shared.clone()));
            state.tasks.push(task.abort_handle());
        }
    }
}

/// One connection of the client's, until either side closes it.
async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let number = shared.connections.fetch_add(1, Relaxed);
    let Ok(server) = TcpStream::connect(&shared.server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let to_client = tokio::sync::Mutex::new(to_client);
    tokio::select! {
        _ = requests(number, from_client, to_server, &to_client, &shared) => {}
        _ = answers(number, from_server, &to_client, &shared) => {}
    }
    shared.state().open.remove(&number);
}

async fn answers(
    number: u64,
    mut from_server: OwnedReadHalf,
    to_client: &tokio::sync::Mutex<OwnedWriteHalf>,
    shared: &Shared,
) -> Option<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = from_server.read(&mut buffer).await.ok()?;
        shared.thawed().await;
        let is_lost = {
            let mut state = shared.state();
            state.open.remove(&number);
            state.losing.remove(&number)
        };
        if is_lost {
            return None;
        }
        to_client
            .lock()
            .await
            .write_all(buffer.get(..len).filter(|part| !part.is_empty())?)
            .await
            .ok()?;
    }
}

async fn requests(
    number: u64,
    mut from_client: OwnedReadHalf,
    mut to_server: OwnedWriteHalf,
    to_client: &tokio::sync::Mutex<OwnedWriteHalf>,
    shared: &Shared,
) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let mut request = read_request(&mut from_client, &mut buffer).await?;
        shared.thawed().await;
        let dedicated = shared.state().dedicated;
        if let Some(keeps_sticky) = dedicated {
            if request.is_in_query_form() {
                let body = r#"{"errcode":"M_UNRECOGNIZED","error":"as the test wants it"}"#;
                answer(to_client, "404 Not Found", body).await?;
                continue;
            }
            request.put_into_query_form(keeps_sticky);
        }
        if request.head.contains("/keys/claim") {
            let claim = {
                let mut state = shared.state();
                state.claimed += 1;
                state.claims.pop_front()
            };
            let failures = match claim {
                Some(Claim::Empty) => Some("{}".to_owned()),
                Some(Claim::Fails(server)) => Some(format!(r#"{{"{server}":{{"status":503}}}}"#)),
                Some(Claim::Late(by)) => {
                    tokio::time::sleep(by).await;
                    None
                }
                None => None,
            };
            if let Some(failures) = failures {
                let body = format!(r#"{{"one_time_keys":{{}},"failures":{failures}}}"#);
                answer(to_client, "200 OK", &body).await?;
                continue;
            }
        }
        let (is_sticky, is_kept, is_refused) = {
            let mut state = shared.state();
            let name = request.sticky_connection();
            if name.is_some() {
                state.open.insert(number);
            }
            let is_sticky = name.is_some();
            if is_sticky && state.loses_position {
                request.lose_position();
                state.loses_position = false;
            }
            state.sticky_requests.extend(name);
            if let Some(path) = request.sent_event() {
                state.sends.push((path.to_owned(), request.body.clone()));
                if let Some(left) = state.loses_answers.checked_sub(1) {
                    state.loses_answers = left;
                    state.losing.insert(number);
                }
            }
            let is_to_device = request.head.contains("/sendToDevice/");
            let is_kept = state.keeps_to_device && is_to_device;
            let is_refused = is_to_device && state.refuses_to_device.is_some();
            if let Some(refused) = &mut state.refuses_to_device
                && is_to_device
            {
                *refused += 1;
            }
            if let Some(milliseconds) = state.sticky_ms
                && !is_kept
            {
                request.make_sticky(milliseconds);
            }
            if is_kept {
                state.kept.push(request.bytes());
            }
            (is_sticky, is_kept, is_refused)
        };
        if is_refused {
            let body = r#"{"errcode":"M_FORBIDDEN","error":"as the test wants it"}"#;
            answer(to_client, "403 Forbidden", body).await?;
            continue;
        }
        if is_kept {
            answer(to_client, "200 OK", "{}").await?;
            continue;
        }
        if is_sticky {
            shared.gate.acquire().await.ok()?.forget();
        }
        to_server.write_all(&request.bytes()).await.ok()?;
    }
}

/// Answers in the server's place.
async fn answer(
    to_client: &tokio::sync::Mutex<OwnedWriteHalf>,
    status: &str,
    body: &str,
) -> Option<()> {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    to_client.lock().await.write_all(answer.as_bytes()).await.ok()
}

/// What a sticky connection asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Asks {
    /// All there is, in all rooms.
    Anew,
    /// What is new in all rooms.
    New,
    /// All of single rooms.
    Rooms,
}

struct Request {
    /// The request line and the headers, with the empty line after them.
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), &self.body].concat()
    }

    /// The name of the sticky connection whose request it is, and what it asks for.
    fn sticky_connection(&self) -> Option<(String, Asks)> {
        let line = self.head.lines().next()?;
        if !line.contains("/org.matrix.simplified_msc3575/sync") {
            return None;
        }
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let name = body.get("conn_id")?.as_str()?;
        let asks = match body.get("lists") {
            Some(_) if line.contains("pos=") => Asks::New,
            Some(_) => Asks::Anew,
            None => Asks::Rooms,
        };
        name.starts_with("sticky-").then(|| (name.to_owned(), asks))
    }

    /// The path of an event that is sent.
    fn sent_event(&self) -> Option<&str> {
        let target = self.head.strip_prefix("PUT ")?.split(' ').next()?;
        target.contains("/send/").then_some(target)
    }

    /// A position begins with its number in the connection.
    fn lose_position(&mut self) {
        let number = self.head.find("pos=").expect("it has a position") + "pos=".len();
        let rest = self.head.split_off(number);
        self.head.push_str("99999");
        self.head.push_str(rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    }

    /// Whether it schedules an event as today's Synapse has it.
    fn is_in_query_form(&self) -> bool {
        let line = self.head.lines().next().unwrap_or_default();
        line.starts_with("PUT ") && line.contains("org.matrix.msc4140.delay=")
    }

    /// Makes of a request to the dedicated endpoint one that today's Synapse takes.
    fn put_into_query_form(&mut self, keeps_sticky: bool) -> Option<()> {
        let (line, headers) = self.head.split_once("\r\n")?;
        let target = line.strip_prefix("PUT ")?.strip_suffix(" HTTP/1.1")?;
        let (path, query) = target.split_once('?')?;
        let (start, rest) = path.split_once("/unstable/org.matrix.msc4140/rooms/")?;
        let path = rest.replacen("/delayed_event/", "/send/", 1);
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let delay = body["delay_ms"].as_u64()?;
        let sticky = if keeps_sticky { format!("&{query}") } else { String::new() };
        let content = body["content"].to_string().into_bytes();
        let is_length = |line: &&str| line.to_ascii_lowercase().starts_with("content-length:");
        let headers = headers.split("\r\n").filter(|line| !is_length(line));
        let headers = headers.collect::<Vec<_>>().join("\r\n");
        let length = content.len();
        self.head = format!(
            "PUT {start}/v3/rooms/{path}?org.matrix.msc4140.delay={delay}{sticky} HTTP/1.1\r\n\
             content-length: {length}\r\n{headers}"
        );
        self.body = content;
        Some(())
    }

    fn make_sticky(&mut self, milliseconds: u64) {
        let line = self.head.lines().next().unwrap_or_default();
        if line.starts_with("PUT ") && line.contains("/send/m.room.encrypted/") {
            let sticky = format!("?{STICKY_DURATION}={milliseconds} HTTP/1.1\r\n");
            self.head = self.head.replacen(" HTTP/1.1\r\n", &sticky, 1);
        }
    }
}

/// The next request; what follows it stays in `buffer`.
async fn read_request(from: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> Option<Request> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|part| part == b"\r\n\r\n") {
            break at + 4;
        }
        read_more(from, buffer).await?;
    };
    let head = String::from_utf8(buffer.drain(..head_end).collect()).ok()?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, length)| length.trim().parse().unwrap());
    while buffer.len() < length {
        read_more(from, buffer).await?;
    }
    let body = buffer.drain(..length).collect();
    Some(Request { head, body })
}

async fn read_more(from: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> Option<()> {
    match from.read_buf(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}
