//! A Synapse of our own, on loopback: installed once, started fresh, gone with its owner.
//!
//! In go [`Options`]; out comes a running server, or a [`StartError`] that says what to do. The
//! server never listens on anything but `127.0.0.1`, and never outlives the process that started
//! it, however that one ends.

mod config;
mod link;
mod venv;

use std::{
    fmt,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

pub use self::{link::Link, venv::SYNAPSE_VERSION};
use crate::{
    api::{Api, ApiError},
    folders::target_dir,
};

/// When to give up on a server that does not answer.
const START_WITHIN: Duration = Duration::from_secs(60);

/// When to look again whether it answers.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often another port is tried, when somebody took ours between the choice and the start.
const PORT_TRIES: usize = 5;

/// What the server is able to do. [`Options::default`] is what most tests want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Sticky events (MSC4354). Without, the server silently ignores the parameter and the
    /// extension. Defaults to on.
    pub sticky: bool,
    /// Delayed events (MSC4140), up to 24 h. Defaults to on.
    pub delayed_events: bool,
    /// The server's default rate limits: seven quick sends, then 429. Defaults to off, which lifts every
    /// limit to 10,000 a second.
    pub rate_limits: bool,
    /// The endpoint of MatrixRTC transports (MSC4143). Defaults to on; without it the
    /// `.well-known/matrix/client` has them.
    pub rtc_endpoint: bool,
    /// Two such transports. Without, none are set up. Defaults to on.
    pub rtc_transports: bool,
    /// For how long an access token is good, if its client asked for a refresh token. Without one,
    /// the server gives out no refresh tokens, and access tokens never run out.
    pub token_lifetime: Option<Duration>,
    /// Federation with other such servers, each through the [`Link`] in front of it. Defaults to off.
    pub federates: bool,
    /// The port on `127.0.0.1`; without one, a free one is chosen.
    pub port: Option<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sticky: true,
            delayed_events: true,
            rate_limits: false,
            rtc_endpoint: true,
            rtc_transports: true,
            token_lifetime: None,
            federates: false,
            port: None,
        }
    }
}

/// A running Synapse. Dropping it kills the server and removes its data; with
/// `STICKY_KEEP_SERVER=1` in the environment the data (and the log) stay.
///
/// Its accounts and rooms are those of one run: each start has a data directory of its own.
#[derive(Debug)]
pub struct Synapse {
    url: String,
    port: u16,
    name: String,
    link: Option<Link>,
    dir: PathBuf,
    supervisor: Supervisor,
}

impl Drop for Synapse {
    fn drop(&mut self) {
        self.supervisor.end();
        // The supervisor has done it, unless it was killed.
        if !keeps_data() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A user that [`Synapse::register`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The full id, `@localpart:sticky.test`.
    pub user_id: String,
    /// The access token of the device that registering made.
    pub access_token: String,
    /// That device.
    pub device_id: String,
}

impl Synapse {
    /// Starts a server with empty data and waits until it answers: about 3 s, and some 40 s more
    /// the first time ever, when Synapse is installed into the target folder.
    ///
    /// # Errors
    /// A [`StartError`], which names what is missing and what to do about it.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        // Before a long install, rather than after.
        options.port.map(check_port).transpose()?;
        let root = target_dir().join("synapse");
        let python = venv::ensure(&root)?;
        let mut tries = PORT_TRIES;
        loop {
            tries = tries.saturating_sub(1);
            let port = match options.port {
                Some(port) => check_port(port)?,
                None => free_port()?,
            };
            let dir = fresh_dir(&root)?;
            let federation = if options.federates { Some(federate(&python, &dir)?) } else { None };
            let (federation, link) = federation.unzip();
            let name = config::write(&dir, port, federation, options);
            let mut synapse = Self {
                url: format!("http://127.0.0.1:{port}"),
                port,
                name: name.map_err(io("write to", &dir))?,
                link,
                supervisor: Supervisor::spawn(&python, &dir)?,
                dir,
            };
            match synapse.boot() {
                Ok(()) => return Ok(synapse),
                Err(StartError::PortTaken { .. }) if options.port.is_none() && tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The base URL, `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name of the server in user and room ids.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The way by which other servers reach this one, if it federates.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Where the server keeps its data. [`Synapse::log`] is in there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The server's log file: warnings and errors, and what it says at its start.
    pub fn log(&self) -> PathBuf {
        self.dir.join(config::LOG)
    }

    /// Makes a user, and a device with a token. A log-in with the password makes further devices.
    ///
    /// # Errors
    /// What the server refused, `M_USER_IN_USE` for one, or that it is not reachable.
    pub fn register(&self, localpart: &str, password: &str) -> Result<Registered, ApiError> {
        let body = json!({
            "username": localpart,
            "password": password,
            "auth": { "type": "m.login.dummy" },
        });
        let path = "/_matrix/client/v3/register";
        let answer = Api::anonymous(&self.url).post(path, &body)?;
        let field = |name: &str| crate::api::string(&answer, name, path);
        Ok(Registered {
            user_id: field("user_id")?,
            access_token: field("access_token")?,
            device_id: field("device_id")?,
        })
    }

    /// The raw client of a user.
    pub fn api(&self, user: &Registered) -> Api {
        Api::new(&self.url, &user.access_token)
    }

    /// Whether the server's process is there. A paused one is.
    pub fn is_running(&mut self) -> bool {
        self.supervisor.ask("status").is_ok_and(|status| status == "running")
    }

    /// Stops the server politely (SIGTERM, and after 8 s SIGKILL) and waits for its end. Its data
    /// stay, for [`Synapse::restart`]. Nothing happens if it does not run.
    ///
    /// # Errors
    /// If its supervisor is gone.
    pub fn stop(&mut self) -> Result<(), StartError> {
        self.supervisor.ask("stop").map(drop)
    }

    /// Kills the server (SIGKILL) and waits for its end. Its data stay, for [`Synapse::restart`].
    ///
    /// # Errors
    /// If its supervisor is gone.
    pub fn kill(&mut self) -> Result<(), StartError> {
        self.supervisor.ask("kill").map(drop)
    }

    /// Stops the server if it runs, and starts it on the same data and the same port.
    ///
    /// # Errors
    /// As [`Synapse::start`].
    pub fn restart(&mut self) -> Result<(), StartError> {
        self.stop()?;
        self.boot()
    }

    /// Freezes the server (SIGSTOP): connections stay open, and nothing is answered.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&mut self) -> Result<(), StartError> {
        self.supervisor.ask("pause").map(drop)
    }

    /// Lets a paused server go on (SIGCONT).
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&mut self) -> Result<(), StartError> {
        self.supervisor.ask("resume").map(drop)
    }

    /// Starts the process and waits until it is *ours* that listens on the port, and answers.
    fn boot(&mut self) -> Result<(), StartError> {
        let log_before = fs::metadata(self.log()).map_or(0, |file| file.len());
        self.supervisor.ask("start")?;
        let deadline = Instant::now() + START_WITHIN;
        let api = Api::anonymous(&self.url);
        loop {
            let said = self.said_since(log_before);
            // The log is asked first: the port alone may be answered by somebody else's server.
            let listening = said.contains(&format!("now listening on TCP port {}", self.port));
            if listening && api.get("/_matrix/client/versions").is_ok() {
                return Ok(());
            }
            let status = self.supervisor.ask("status")?;
            let exited = status != "running";
            if exited && said.contains("Address already in use") {
                return Err(StartError::PortTaken { port: self.port });
            }
            let end = if exited {
                status
            } else if Instant::now() >= deadline {
                format!("no answer after {} s", START_WITHIN.as_secs())
            } else {
                thread::sleep(LOOK_EVERY);
                continue;
            };
            // Read again: it may have said why after the look above.
            let said = last_lines(&self.said_since(log_before), 20);
            let _ = self.supervisor.ask("kill");
            return Err(StartError::NotUp { end, said });
        }
    }

    /// Its log from that byte on, then what it wrote to stderr before it had a log.
    fn said_since(&self, offset: u64) -> String {
        let mut said = Vec::new();
        if let Ok(mut file) = File::open(self.log()) {
            let _ = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_to_end(&mut said));
        }
        if let Ok(mut errors) = fs::read(self.dir.join("stderr.log")) {
            said.append(&mut errors);
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// The process between us and Synapse: see `supervisor.py` for why there is one.
#[derive(Debug)]
struct Supervisor {
    process: Child,
    /// Closing it is what ends everything, and the system closes it if we are killed.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Supervisor {
    fn spawn(python: &Path, dir: &Path) -> Result<Self, StartError> {
        let script = dir.join("supervisor.py");
        fs::write(&script, include_str!("homeserver/supervisor.py"))
            .map_err(io("write", &script))?;
        let mut command = Command::new(python);
        command
            // Isolated and without site-packages: it starts in some 20 ms.
            .args(["-I", "-S"])
            .arg(&script)
            .arg(dir)
            .arg(if keeps_data() { "keep" } else { "remove" })
            .arg(python)
            .args(["-m", "synapse.app.homeserver", "--config-path"])
            .arg(dir.join("homeserver.yaml"))
            // Without its byte code, compiling Synapse takes longer than all the rest of its start.
            .env_remove("PYTHONDONTWRITEBYTECODE")
            .env_remove("PYTHONPATH")
            .env_remove("PYTHONHOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // A group of its own: Ctrl-C is for us, and reaches the server as the end of the pipe.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut process = command.spawn().map_err(io("run", python))?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(commands), Some(answers)) => {
                Ok(Self { process, commands: Some(commands), answers: BufReader::new(answers) })
            }
            _ => Err(StartError::Supervisor("it has no pipes".to_owned())),
        }
    }

    /// Closes the pipe, upon which it kills the server, and waits for it to be done.
    fn end(&mut self) {
        self.commands = None;
        let _ = self.process.wait();
    }

    /// One command; what stands after `ok` in the answer.
    fn ask(&mut self, command: &str) -> Result<String, StartError> {
        let gone = |error: std::io::Error| StartError::Supervisor(error.to_string());
        let Some(commands) = &mut self.commands else {
            return Err(StartError::Supervisor("it was stopped".to_owned()));
        };
        writeln!(commands, "{command}").map_err(gone)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).map_err(gone)?;
        match answer.trim_end().split_once("ok") {
            Some(("", rest)) => Ok(rest.trim().to_owned()),
            _ => Err(StartError::Supervisor(format!("`{command}`: {:?}", answer.trim_end()))),
        }
    }
}

fn keeps_data() -> bool {
    std::env::var_os("STICKY_KEEP_SERVER").is_some_and(|value| value == "1")
}

/// Why there is no server. Each text says what to do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// There is no `python3`, or it does not run. With what was said when it was tried.
    NoPython(String),
    /// The `python3` that was found is too old for Synapse.
    OldPython {
        /// Its version.
        found: String,
    },
    /// That `python3` cannot make virtual environments, as on a Debian without `python3-venv`.
    NoVenv {
        /// Its version.
        found: String,
    },
    /// Making the environment failed, or installing Synapse into it.
    Install {
        /// The command that failed.
        step: String,
        /// The last lines of what it said.
        said: String,
    },
    /// Something else listens on the port.
    PortTaken {
        /// That port.
        port: u16,
    },
    /// The server ended by itself, or did not answer within a minute.
    NotUp {
        /// Which of the two.
        end: String,
        /// The last lines of its log.
        said: String,
    },
    /// The process that holds the server does not obey: it was killed, most likely, or the server
    /// does not run.
    Supervisor(String),
    /// A file, or a program that could not be run.
    Io {
        /// What was tried: "create /some/where".
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPython(why) => write!(
                f,
                "Python 3.10 or newer with venv is needed to run the test homeserver, and `python3` \
                 does not run ({why}): install `python3` and `python3-venv` (Debian, Ubuntu: `apt-get \
                 install python3 python3-venv`), or put a Python's directory into PATH"
            ),
            Self::OldPython { found } => write!(
                f,
                "Python 3.10 or newer is needed to run the test homeserver, and `python3` is \
                 {found}: install a newer one and put its directory first into PATH"
            ),
            Self::NoVenv { found } => write!(
                f,
                "Python {found} is there, but cannot make virtual environments, which the test \
                 homeserver needs: install its venv module (Debian, Ubuntu: `apt-get install \
                 python3-venv`, or `python{found}-venv`)"
            ),
            Self::Install { step, said } => write!(
                f,
                "`{step}` failed while Synapse {SYNAPSE_VERSION} was installed: is PyPI reachable? \
                 Try again once the cause is mended. It said:\n{said}"
            ),
            Self::PortTaken { port } => write!(
                f,
                "port {port} on 127.0.0.1 is taken: end what listens there (`ss -ltnp 'sport = \
                 :{port}'` names it), choose another port, or none for a free one"
            ),
            Self::NotUp { end, said } => write!(
                f,
                "Synapse did not come up ({end}). If its files are damaged, remove `synapse` in the target folder and \
                 try again; to keep its data and log, set STICKY_KEEP_SERVER=1. The last lines of \
                 its log:\n{said}"
            ),
            Self::Supervisor(why) => write!(
                f,
                "Synapse's supervisor did not do as told ({why}): was the server ended from \
                 outside? Start a new one"
            ),
            Self::Io { what, source } => write!(f, "cannot {what}: {source}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn io<'a>(verb: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> StartError + 'a {
    move |source| StartError::Io { what: format!("{verb} {}", path.display()), source }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

fn fresh_dir(root: &Path) -> Result<PathBuf, StartError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = root.join(format!("run-{}-{count}", std::process::id()));
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            // An earlier process of the same id was told to keep its data.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io("create", &dir)(error)),
        }
    }
}

/// The ports by which other servers reach one, and the link between them.
fn federate(python: &Path, dir: &Path) -> Result<(config::Federation, Link), StartError> {
    let script = include_str!("homeserver/certificate.py");
    let mut command = Command::new(python);
    command.args(["-c", script]).arg(dir.join(config::CERTIFICATE)).arg(dir.join(config::TLS_KEY));
    let output = command.output().map_err(io("run", python))?;
    if !output.status.success() {
        let said = last_lines(&String::from_utf8_lossy(&output.stderr), 20);
        return Err(StartError::NotUp { end: "it has no certificate".to_owned(), said });
    }
    let federation = config::Federation { port: free_port()?, reached_by: free_port()? };
    let link = Link::start(federation.reached_by, federation.port);
    let link = link.map_err(|source| {
        let what = format!("listen on port {}", federation.reached_by);
        StartError::Io { what, source }
    })?;
    Ok((federation, link))
}

fn check_port(port: u16) -> Result<u16, StartError> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(port),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(StartError::PortTaken { port })
        }
        Err(source) => Err(StartError::Io { what: format!("listen on port {port}"), source }),
    }
}

/// A port that is free now. Why not simply ask the system for one? It gives one out of the range
/// that outgoing connections use too: while a server on it restarts, a client that tries again and
/// again can be given that very port, connects to itself, and holds it.
fn free_port() -> Result<u16, StartError> {
    use std::hash::BuildHasher as _;
    let (low, count) = (20_000_u16, 12_000_u16);
    for _ in 0..100 {
        let random = std::hash::RandomState::new().hash_one(()) % u64::from(count);
        let port = low.saturating_add(u16::try_from(random).unwrap_or(0));
        if check_port(port).is_ok() {
            return Ok(port);
        }
    }
    check_port(low)
}
