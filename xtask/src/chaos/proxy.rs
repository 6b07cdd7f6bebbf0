//! The line between one member and the server, which does what a fault asks for. Each request has a
//! connection of its own on both sides, and a thread.
//!
//! Why not the proxy of `tests/server`? That one is of tokio, and bends single requests of
//! matrix-sdk as single tests want it. Nothing in `xtask` is async, and here all requests are alike.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{clock, schedule::Line};

/// When to give up on a side that says nothing: a server holds a request for 30 s.
const SILENCE: Duration = Duration::from_secs(120);

/// More than any head of a request has.
const LONGEST_HEAD: usize = 64 * 1024;

/// A running proxy. Dropping it cuts all its connections.
pub(crate) struct Proxy {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    state: Mutex<State>,
    /// A line was mended, or cut.
    changed: Condvar,
    requests: AtomicU64,
    log: Mutex<File>,
}

struct State {
    line: Line,
    closed: bool,
    /// What is open: both sides of each request.
    open: HashMap<u64, Vec<TcpStream>>,
}

impl Proxy {
    /// Starts a proxy before this server, given as `http://127.0.0.1:PORT`. Its log has a line for
    /// each request.
    pub(crate) fn before(server: &str, log: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        let state = State { line: Line::Up, closed: false, open: HashMap::new() };
        let shared = Arc::new(Shared {
            server: server.trim_start_matches("http://").to_owned(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            requests: AtomicU64::new(0),
            log: Mutex::new(File::create(log)?),
        });
        let accepting = shared.clone();
        thread::spawn(move || accept(&listener, &accepting));
        Ok(Self { url, shared })
    }

    /// What a client is given as its homeserver's URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// From now on the line does this.
    pub(crate) fn set(&self, line: Line) {
        let mut state = self.shared.state();
        // What waits on a frozen line never arrives: late requests are outside every promise.
        if line == Line::Cut || state.line == Line::Frozen {
            state.close_all();
        }
        state.line = line;
        drop(state);
        self.shared.changed.notify_all();
        self.shared.log(&format!("the line {line}"));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.close_all();
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the thread that accepts, which then ends.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

impl State {
    fn close_all(&mut self) {
        for stream in self.open.drain().flat_map(|(_, streams)| streams) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, line: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(log, "{} {line}", clock());
    }

    /// Waits while the line is frozen. What it does then; nothing if the request was cut off.
    fn thawed(&self, request: u64) -> Option<Line> {
        let mut state = self.state();
        while state.line == Line::Frozen && state.open.contains_key(&request) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.open.contains_key(&request).then_some(state.line)
    }

    /// Remembers a side of a request, so that it can be cut; `None` if it is too late.
    fn open(&self, request: u64, stream: &TcpStream, is_new: bool) -> Option<()> {
        let stream = stream.try_clone().ok()?;
        let mut state = self.state();
        if state.closed || state.line == Line::Cut {
            return None;
        }
        match is_new {
            true => state.open.entry(request).or_default().push(stream),
            false => state.open.get_mut(&request)?.push(stream),
        }
        Some(())
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.state().closed {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = shared.clone();
        thread::spawn(move || {
            let number = shared.requests.fetch_add(1, Ordering::Relaxed);
            if shared.open(number, &client, true).is_some() {
                let _ = serve(number, client, &shared);
                if let Some(streams) = shared.state().open.remove(&number) {
                    for stream in streams {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                }
            }
        });
    }
}

/// One request, from its first byte to the last one of its answer.
fn serve(number: u64, mut client: TcpStream, shared: &Shared) -> Option<()> {
    client.set_read_timeout(Some(SILENCE)).ok()?;
    let (head, body) = read_request(&mut client)?;
    let began = Instant::now();
    let told = |what: &str| {
        shared.log(&format!("{} {what} ({} ms)", in_short(&head), began.elapsed().as_millis()));
    };
    let Some(line) = shared.thawed(number) else {
        told("never arrived");
        return None;
    };
    if let Some(answer) = own_answer(line, &head) {
        told(answer.split("\r\n").next().unwrap_or_default());
        return client.write_all(answer.as_bytes()).ok();
    }
    let Ok(mut server) = TcpStream::connect(&shared.server) else {
        told("found no server");
        return None;
    };
    shared.open(number, &server, false)?;
    server.set_read_timeout(Some(SILENCE)).ok()?;
    server.write_all(with_close(&head).as_bytes()).ok()?;
    server.write_all(&body).ok()?;

    let is_lost = line == Line::LosesAnswers && number.is_multiple_of(2);
    let mut buffer = vec![0; 64 * 1024];
    let mut status = None;
    loop {
        let Some(count) = server.read(&mut buffer).ok().filter(|count| *count > 0) else {
            told(status.as_deref().unwrap_or("was cut off"));
            return None;
        };
        let part = buffer.get(..count)?;
        if status.is_none() {
            let line = String::from_utf8_lossy(part);
            status = Some(line.split("\r\n").next().unwrap_or_default().to_owned());
            if is_lost {
                told(&format!("{}, lost", status.unwrap_or_default()));
                return None;
            }
            if let Line::Slow(late) = line_of(shared) {
                thread::sleep(Duration::from_millis(late));
            }
        }
        if shared.thawed(number).is_none() || client.write_all(part).is_err() {
            told(&format!("{}, not delivered", status.unwrap_or_default()));
            return None;
        }
    }
}

fn line_of(shared: &Shared) -> Line {
    shared.state().line
}

/// What the line answers by itself.
fn own_answer(line: Line, head: &str) -> Option<String> {
    let target = head.lines().next().unwrap_or_default();
    let line = match line {
        Line::Lacks(part) if target.contains(part) => Line::Fails(502),
        line => line,
    };
    let (status, kind, body) = match line {
        Line::Fails(500) => {
            let body = r#"{"errcode":"M_UNKNOWN","error":"Internal server error"}"#;
            ("500 Internal Server Error".to_owned(), "application/json", body.to_owned())
        }
        Line::Fails(status) => {
            let body = format!("<html><body><h1>{status}</h1></body></html>");
            (format!("{status} Out Of Order"), "text/html", body)
        }
        Line::Limits(wait) => {
            let body = format!(
                r#"{{"errcode":"M_LIMIT_EXCEEDED","error":"Too Many Requests","retry_after_ms":{wait}}}"#
            );
            ("429 Too Many Requests".to_owned(), "application/json", body)
        }
        _ => return None,
    };
    Some(format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
         access-control-allow-origin: *\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ))
}

/// The head of a request, with the empty line after it, and the body.
fn read_request(from: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut more = |read: &mut Vec<u8>| {
        let count = from.read(&mut buffer).ok().filter(|count| *count > 0)?;
        read.extend_from_slice(buffer.get(..count)?);
        Some(())
    };
    let head_end = loop {
        if let Some(at) = read.windows(4).position(|part| part == b"\r\n\r\n") {
            break at.saturating_add(4);
        }
        if read.len() > LONGEST_HEAD {
            return None;
        }
        more(&mut read)?;
    };
    let mut body = read.split_off(head_end);
    let head = String::from_utf8(read).ok()?;
    let length: usize = headers(&head)
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Some(0), |(_, length)| length.trim().parse().ok())?;
    while body.len() < length {
        more(&mut body)?;
    }
    Some((head, body))
}

fn headers(head: &str) -> impl Iterator<Item = (&str, &str)> {
    head.lines().skip(1).filter_map(|line| line.split_once(':'))
}

/// The same head, which asks the server to close the connection after its answer.
fn with_close(head: &str) -> String {
    let is_connection = |line: &str| {
        line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case("connection"))
    };
    let mut lines: Vec<_> =
        head.lines().filter(|line| !line.is_empty() && !is_connection(line)).collect();
    lines.push("connection: close");
    lines.join("\r\n") + "\r\n\r\n"
}

/// The request line for the log. A delay id is enough to end the member, so it stays out.
fn in_short(head: &str) -> String {
    let line = head.lines().next().unwrap_or_default();
    let line = line.strip_suffix(" HTTP/1.1").unwrap_or(line).replace("/_matrix/client", "");
    match line.split_once("/delayed_events/") {
        Some((before, id)) => {
            let action = id.split_once('/').map_or("", |(_, action)| action);
            format!("{before}/delayed_events/../{action}")
        }
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
        time::Duration,
    };

    use super::{Proxy, in_short, with_close};
    use crate::chaos::schedule::Line;

    /// A server that answers each request with its own body, and counts them.
    struct Echo {
        url: String,
        count: Arc<AtomicUsize>,
    }

    impl Echo {
        fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let count = Arc::new(AtomicUsize::new(0));
            let counted = count.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let (_, body) = super::read_request(&mut stream).unwrap();
                    counted.fetch_add(1, Ordering::SeqCst);
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
                }
            });
            Self { url, count }
        }

        fn proxy(&self) -> Proxy {
            let log = std::env::temp_dir().join(format!("proxy-{}.log", self.url.len()));
            Proxy::before(&self.url, &log).unwrap()
        }

        fn count(&self) -> usize {
            self.count.load(Ordering::SeqCst)
        }
    }

    /// All that a request with this body brings within a second.
    fn ask(proxy: &Proxy, body: &str) -> String {
        let mut stream = TcpStream::connect(proxy.url().trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let head = format!("POST /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn a_line_that_is_up_brings_the_answer() {
        let server = Echo::start();
        let proxy = server.proxy();
        assert!(ask(&proxy, "hello").ends_with("\r\n\r\nhello"));
        proxy.set(Line::Slow(300));
        assert!(ask(&proxy, "late").ends_with("\r\n\r\nlate"));
    }

    #[test]
    fn a_cut_line_is_silent_until_mended() {
        let server = Echo::start();
        let proxy = server.proxy();
        proxy.set(Line::Cut);
        assert_eq!(ask(&proxy, "hello"), "");
        assert_eq!(server.count(), 0);
        proxy.set(Line::Up);
        assert!(ask(&proxy, "again").ends_with("again"));
    }

    #[test]
    fn what_waits_on_a_frozen_line_never_arrives() {
        let server = Echo::start();
        let proxy = server.proxy();
        proxy.set(Line::Frozen);
        assert_eq!(ask(&proxy, "hello"), "");
        proxy.set(Line::Up);
        assert!(ask(&proxy, "again").ends_with("again"));
        assert_eq!(server.count(), 1);
    }

    #[test]
    fn a_lost_answer_had_an_arrived_request() {
        let server = Echo::start();
        let proxy = server.proxy();
        proxy.set(Line::LosesAnswers);
        let answers: Vec<_> = (0..4).map(|_| ask(&proxy, "hello")).collect();
        assert_eq!(answers.iter().filter(|answer| answer.is_empty()).count(), 2);
        assert_eq!(server.count(), 4);
    }

    #[test]
    fn a_line_answers_in_place_of_the_server() {
        let server = Echo::start();
        let proxy = server.proxy();
        proxy.set(Line::Fails(502));
        assert!(ask(&proxy, "hello").starts_with("HTTP/1.1 502 "));
        proxy.set(Line::Limits(2_000));
        let limited = ask(&proxy, "hello");
        assert!(limited.starts_with("HTTP/1.1 429 "), "{limited}");
        assert!(limited.contains(r#""retry_after_ms":2000"#), "{limited}");
        proxy.set(Line::Lacks("/x"));
        assert!(ask(&proxy, "hello").starts_with("HTTP/1.1 502 "));
        assert_eq!(server.count(), 0);
        proxy.set(Line::Lacks("/y"));
        assert!(ask(&proxy, "hello").ends_with("hello"));
    }

    #[test]
    fn the_server_is_asked_to_close() {
        let head = "GET / HTTP/1.1\r\nConnection: keep-alive\r\nA: b\r\n\r\n";
        assert_eq!(with_close(head), "GET / HTTP/1.1\r\nA: b\r\nconnection: close\r\n\r\n");
    }

    #[test]
    fn the_log_has_no_delay_id() {
        let head = "POST /_matrix/client/v1/delayed_events/secret/restart HTTP/1.1\r\n\r\n";
        assert_eq!(in_short(head), "POST /v1/delayed_events/../restart");
    }
}
