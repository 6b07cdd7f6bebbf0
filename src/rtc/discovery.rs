//! Discovery: which transports our homeserver offers ([MSC4143], "Discovery of transport
//! infrastructure").
//!
//! In: a client. Out: transports as the server names them, unknown ones included. Never: a choice among them.
//!
//! Why not simply what matrix-sdk reads? It reads transports into types, and such a type keeps of a LiveKit
//! transport only the fields that it knows.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

use std::time::Duration;

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
    request::{Verdict, describe, describe_network, is_refresh_refused, one_try, rate_limited},
    time::Deadline,
    wire::names,
};

/// How long to wait for all answers together.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait for the answer to one request.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(8);

/// The longest `.well-known` that is read, in bytes: 1 MiB. Anybody may have written it.
const MAX_WELL_KNOWN_BYTES: usize = 1 << 20;

/// What a homeserver offers.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Discovered {
    /// The transports, the preferred ones first. Empty if the server offers none.
    pub transports: Vec<RtcTransport>,
    /// Where they were found.
    pub from: DiscoveredFrom,
}

/// Where transports were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiscoveredFrom {
    /// The homeserver, at `rtc/transports`.
    Homeserver,
    /// The `.well-known/matrix/client` of the server's name, as before that endpoint existed.
    WellKnown,
    /// Neither of them offers any.
    #[default]
    Nowhere,
}

/// Why nobody knows which transports there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportsError {
    /// The client is not logged in. Log in first.
    #[error("the client is not logged in: log in first")]
    NotLoggedIn,
    /// The server refuses the access token, and it could not be refreshed. Log in again.
    #[error("the server refuses the access token: log in again")]
    TokenRefused,
    /// The server wants fewer requests. Try again later.
    #[error("{}", rate_limited(*.retry_after))]
    RateLimited {
        /// When the server takes another request, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server answers with an error, or with an unusable body. If the status is 500 or more, try again later.
    /// Otherwise the homeserver is misconfigured, and its operator has to look.
    #[error(
        "the server answers with status {status}, and not with its transports: {}",
        advice(.status)
    )]
    NoSuchAnswer {
        /// The answer's status, e.g. 500.
        status: u16,
    },
    /// The server cannot be reached, or the `.well-known` of a server that has no endpoint. Try again.
    #[error("the server cannot be reached; try again: {error}")]
    Unreachable {
        /// What went wrong, in words.
        error: String,
    },
}

/// What to do about an answer that is not one.
fn advice(status: &u16) -> &'static str {
    if *status >= 500 { "try again later" } else { "its operator has to look" }
}

pub(crate) async fn discover(
    client: &Client,
    timer: &dyn Timer,
) -> Result<Discovered, TransportsError> {
    if client.access_token().is_none() {
        return Err(TransportsError::NotLoggedIn);
    }
    let ask = Ask { client, timer, deadline: timer.now().deadline(DISCOVERY_TIMEOUT) };
    // Today's servers have the unstable endpoint, and none of them says so in `/versions`.
    let answer = match ask.endpoint::<UNSTABLE>().await? {
        None => ask.endpoint::<STABLE>().await?,
        answer => answer,
    };
    let says_none = answer.is_some();
    if let Some(transports) = answer.filter(|transports| !transports.is_empty()) {
        return Ok(Discovered { transports, from: DiscoveredFrom::Homeserver });
    }
    // Also if the endpoint offers none: it may be on without having been set up, and peers look here too.
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

/// The addresses where a `.well-known` may be: the name of the user's server, and the homeserver itself.
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
        self.deadline.left(self.timer.now()).min(ENDPOINT_TIMEOUT)
    }

    /// What the homeserver's endpoint says. `None` if the server has none of this spelling.
    ///
    /// Why no timeout around it? Dropping it halfway could break off a refresh of the access token.
    async fn endpoint<const SPELLING: usize>(
        &self,
    ) -> Result<Option<Vec<RtcTransport>>, TransportsError> {
        let config = one_try(self.timeout());
        let answer = self.client.send(Request::<SPELLING>).with_request_config(config).await;
        match answer {
            // Synapse leaves out an empty list.
            Ok(Response(Some(answer))) => match answer.get("rtc_transports") {
                None => Ok(Some(Vec::new())),
                Some(list) => read(list).ok_or(NO_LIST).map(Some),
            },
            Ok(Response(None)) => Err(NO_LIST),
            Err(error) if is_not_there(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What a server's `.well-known` says. It need not be there, nor be Matrix's: a server's name need not be a
    /// host's, and a web server may answer everything with a page.
    ///
    /// # Errors
    ///
    /// In words, if it may be there all the same.
    async fn well_known(&self, server: &str) -> Result<Vec<RtcTransport>, String> {
        let (now, timeout) = (self.timer.now(), self.timeout());
        let url = format!("{server}/.well-known/matrix/client");
        let answered = async {
            let mut response = self.client.http_client().get(url).timeout(timeout).send().await?;
            let (status, mut body) = (response.status(), Vec::new());
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MAX_WELL_KNOWN_BYTES {
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
            // The homeserver has just answered, so the network works.
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
        // The unstable name is the last one, and counts if both are there.
        let list = names::RTC_FOCI.iter().rev().find_map(|name| answer.get(*name));
        Ok(list.and_then(read).unwrap_or_default())
    }
}

const NO_LIST: TransportsError = TransportsError::NoSuchAnswer { status: 200 };

/// Whether the server does not know the endpoint. Its path has nothing else that could be unknown.
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

/// The request, in one of its spellings. ruma has only the unstable one.
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

/// The answer as it came. `None` if it is not an object: a portal in the way answers with a page.
struct Response(Option<Map<String, Value>>);

impl IncomingResponse for Response {
    type EndpointError = ruma::api::error::Error;

    fn try_from_http_response_inner(
        response: http::Response<&[u8]>,
    ) -> Result<Self, DeserializationError> {
        Ok(Self(serde_json::from_slice(response.body()).ok()))
    }
}
