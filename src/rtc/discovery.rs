//! Discovery: which transports our homeserver offers ([MSC4143], "Discovery of transport
//! infrastructure").
//!
//! In: a client. Out: transports as the server names them, those that nobody here knows included.
//!
//! Why not what matrix-sdk reads? It reads them into types, and such a type keeps of a LiveKit transport
//! only what it knows.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

use std::{error::Error, fmt, time::Duration};

use matrix_sdk::{Client, HttpError, reqwest};
use ruma::{
    api::{
        EmptyBody, IncomingResponse, Metadata, OutgoingRequest,
        auth_scheme::AccessToken,
        error::{DeserializationError, ErrorKind, IntoHttpError},
        path_builder::SinglePath,
    },
    exports::http::{self, StatusCode},
};
use serde_json::{Map, Value};
use tracing::debug;

use super::transport::RtcTransport;
use crate::{
    driver::{Timer, before},
    request::{Verdict, describe, describe_network, is_refresh_refused, one_try},
    time::Deadline,
    wire::names,
};

/// When to give up on all answers together.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// When to give up on one answer.
const ONE_ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// The longest `.well-known` that is read, in bytes: 1 MiB. It may be anybody's.
const LONGEST: usize = 1 << 20;

/// What a homeserver offers.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Discovered {
    /// The transports, the preferred ones first. None where the server offers none.
    pub transports: Vec<RtcTransport>,
    /// Who said so.
    pub from: DiscoveredFrom,
}

/// Where transports were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiscoveredFrom {
    /// The homeserver, at `rtc/transports`.
    Homeserver,
    /// The `.well-known/matrix/client` of the server's name, as before there was that endpoint.
    WellKnown,
    /// Nobody offers any.
    #[default]
    Nowhere,
}

/// Why it is not known which transports there are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportsError {
    /// The client is not logged in.
    NotLoggedIn,
    /// The server refuses the access token, and it could not be refreshed: log in again.
    TokenRefused,
    /// The server wants fewer requests.
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server answers with an error, or with what is no such answer. From 500 on it may do better
    /// later; else its operator has to look.
    NoSuchAnswer {
        /// Its status, e.g. 500.
        status: u16,
    },
    /// The server cannot be reached, or the `.well-known` where it has no endpoint: try again.
    Unreachable {
        /// Why, in words.
        error: String,
    },
}

impl fmt::Display for TransportsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoggedIn => f.write_str("the client is not logged in: log in first"),
            Self::TokenRefused => f.write_str("the server refuses the access token: log in again"),
            Self::RateLimited { retry_after: Some(wait) } => {
                write!(f, "the server wants fewer requests: try again in {wait:?}")
            }
            Self::RateLimited { retry_after: None } => {
                f.write_str("the server wants fewer requests: try again later")
            }
            Self::NoSuchAnswer { status: status @ 500.. } => {
                write!(f, "the server answers with status {status}: try again later")
            }
            Self::NoSuchAnswer { status } => write!(
                f,
                "the server's answer, with status {status}, does not tell its transports: its operator \
                 has to look"
            ),
            Self::Unreachable { error } => {
                write!(f, "the server cannot be reached; try again: {error}")
            }
        }
    }
}

impl Error for TransportsError {}

pub(crate) async fn discover(
    client: &Client,
    timer: &dyn Timer,
) -> Result<Discovered, TransportsError> {
    if client.access_token().is_none() {
        return Err(TransportsError::NotLoggedIn);
    }
    let ask = Ask { client, timer, deadline: timer.now().deadline(ANSWER_WITHIN) };
    // Servers of today speak the unstable one, and none of them says so in `/versions`.
    let answer = match ask.endpoint::<UNSTABLE>().await? {
        None => ask.endpoint::<STABLE>().await?,
        answer => answer,
    };
    let says_none = answer.is_some();
    if let Some(transports) = answer.filter(|transports| !transports.is_empty()) {
        return Ok(Discovered { transports, from: DiscoveredFrom::Homeserver });
    }
    // Also where there is an endpoint that knows of none: it may be on without having been set up,
    // and peers look there too.
    let mut failed = None;
    for server in well_known_servers(client) {
        match ask.well_known(&server).await {
            Ok(transports) if transports.is_empty() => {}
            Ok(transports) => {
                return Ok(Discovered { transports, from: DiscoveredFrom::WellKnown });
            }
            Err(error) => {
                debug!(%server, "could not get the .well-known: {error}");
                failed =
                    Some(TransportsError::Unreachable { error: format!(".well-known: {error}") });
            }
        }
    }
    match failed {
        // It may have some.
        Some(error) if !says_none => Err(error),
        _ => Ok(Discovered::default()),
    }
}

/// The transports in a list; one that is malformed is dropped alone.
fn read(list: &Value) -> Option<Vec<RtcTransport>> {
    let transports = list.as_array()?.iter().enumerate().filter_map(|(place, transport)| {
        let read = RtcTransport::from_json(transport.clone());
        if read.is_none() {
            debug!(place, "a transport without a type is left out");
        }
        read
    });
    Some(transports.collect())
}

/// Where a `.well-known` may be: under the name of the user's server, and on the homeserver itself.
fn well_known_servers(client: &Client) -> Vec<String> {
    let homeserver = client.homeserver();
    let named = client.server().map(|server| server.to_string());
    let named = named.or_else(|| {
        client.user_id().map(|id| format!("{}://{}", homeserver.scheme(), id.server_name()))
    });
    let servers = named.into_iter().chain([homeserver.to_string()]);
    let mut servers: Vec<_> =
        servers.map(|server| server.trim_end_matches('/').to_owned()).collect();
    servers.dedup();
    servers
}

struct Ask<'a> {
    client: &'a Client,
    timer: &'a dyn Timer,
    deadline: Deadline,
}

impl Ask<'_> {
    fn timeout(&self) -> Duration {
        self.deadline.left(self.timer.now()).min(ONE_ANSWER_WITHIN)
    }

    /// What the homeserver's endpoint says; `None` where there is none of this spelling.
    ///
    /// It is never dropped halfway: that could break off a refresh of the access token.
    async fn endpoint<const SPELLING: usize>(
        &self,
    ) -> Result<Option<Vec<RtcTransport>>, TransportsError> {
        let config = RequestConfig::new().timeout(self.timeout()).disable_retry();
        let answer = self.client.send(Request::<SPELLING>).with_request_config(config).await;
        match answer {
            // Synapse leaves the list out where it would be empty.
            Ok(Response(Some(answer))) => match answer.get("rtc_transports") {
                None => Ok(Some(Vec::new())),
                Some(list) => read(list).ok_or(NO_LIST).map(Some),
            },
            Ok(Response(None)) => Err(NO_LIST),
            Err(error) if is_not_there(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What a server's `.well-known` says. It need not be there, nor be any of Matrix's: a server's
    /// name need not be a host's, and a web server may answer everything with a page.
    ///
    /// # Errors
    ///
    /// In words, when it may be there all the same.
    async fn well_known(&self, server: &str) -> Result<Vec<RtcTransport>, String> {
        let (now, timeout) = (self.timer.now(), self.timeout());
        let url = format!("{server}/.well-known/matrix/client");
        let answered = async {
            let mut response = self.client.http_client().get(url).timeout(timeout).send().await?;
            let (status, mut body) = (response.status(), Vec::new());
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > LONGEST {
                    body.clear();
                    break;
                }
                body.extend_from_slice(&chunk);
            }
            Ok::<_, reqwest::Error>((status, body))
        };
        let answer = before(self.timer, now.deadline(timeout), answered).await;
        let (status, body) = match answer.ok_or("no answer in time")? {
            Ok(answer) => answer,
            // The homeserver answered just now, so it is not the network.
            Err(error) if error.is_connect() && !error.is_timeout() => {
                debug!(server, "nobody is there: {}", describe_network(&error));
                return Ok(Vec::new());
            }
            Err(error) => return Err(describe_network(&error)),
        };
        if status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        {
            return Err(format!("the server answers with status {}", status.as_u16()));
        }
        let answer = status.is_success().then(|| serde_json::from_slice(&body).ok()).flatten();
        let answer: Map<String, Value> = answer.unwrap_or_default();
        // The unstable name is the last, and counts where both are there.
        let list = names::RTC_FOCI.iter().rev().find_map(|name| answer.get(*name));
        Ok(list.and_then(read).unwrap_or_default())
    }
}

const NO_LIST: TransportsError = TransportsError::NoSuchAnswer { status: 200 };

/// Whether the server does not know the endpoint. It has nothing in its path that could be unknown
/// otherwise.
fn is_not_there(error: &HttpError) -> bool {
    error.as_client_api_error().is_some_and(|error| {
        matches!(error.status_code, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
            || error.error_kind() == Some(&ErrorKind::Unrecognized)
    })
}

impl From<HttpError> for TransportsError {
    fn from(error: HttpError) -> Self {
        let status = error.as_client_api_error().map(|error| error.status_code);
        match (Verdict::of(&error), status, &error) {
            (Verdict::RateLimited(retry_after), ..) => Self::RateLimited { retry_after },
            (_, Some(StatusCode::UNAUTHORIZED), _) => Self::TokenRefused,
            (_, Some(status), _) => Self::NoSuchAnswer { status: status.as_u16() },
            (.., HttpError::RefreshToken(error)) if is_refresh_refused(error) => Self::TokenRefused,
            _ => Self::Unreachable { error: describe(&error) },
        }
    }
}

/// Which of [`names::RTC_TRANSPORTS`].
const STABLE: usize = 0;
const UNSTABLE: usize = 1;

/// The question, in one of its spellings. ruma has only the unstable one.
#[derive(Clone, Debug)]
struct Request<const SPELLING: usize>;

impl<const SPELLING: usize> Metadata for Request<SPELLING> {
    const METHOD: http::Method = http::Method::GET;
    const RATE_LIMITED: bool = false;
    type Authentication = AccessToken;
    type PathBuilder = SinglePath;
    const PATH_BUILDER: SinglePath = SinglePath::new(names::RTC_TRANSPORTS[SPELLING]);
}

impl<const SPELLING: usize> OutgoingRequest for Request<SPELLING> {
    type Body = EmptyBody;
    type EndpointError = ruma::api::error::Error;
    type IncomingResponse = Response;

    fn try_into_http_request_inner(
        self,
        base_url: &str,
        (): (),
    ) -> Result<http::Request<EmptyBody>, IntoHttpError> {
        let url = Self::make_endpoint_url((), base_url, &[], "")?;
        Ok(http::Request::builder().method(Self::METHOD).uri(url).body(EmptyBody)?)
    }
}

/// The answer as it came; `None` where it is no object: a portal in the way answers with a page.
struct Response(Option<Map<String, Value>>);

impl IncomingResponse for Response {
    type EndpointError = ruma::api::error::Error;

    fn try_from_http_response_inner(
        response: http::Response<&[u8]>,
    ) -> Result<Self, DeserializationError> {
        Ok(Self(serde_json::from_slice(response.body()).ok()))
    }
}
