//! Discovery: which transports our homeserver offers ([MSC4143], "Discovery of transport
//! infrastructure").
//!
//! In: a client. Out: transports as the server names them, those that nobody here knows included.
//!
//! Why not what matrix-sdk reads? It reads them into types, and such a type keeps of a LiveKit transport
//! only what it knows.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

use std::{error::Error, fmt, iter::successors, sync::Arc, time::Duration};

use matrix_sdk::{Client, reqwest};
use ruma::exports::http::StatusCode;
use serde_json::{Map, Value};
use tracing::debug;

use super::transport::Transport;
use crate::{
    driver::{Timer, before},
    time::Deadline,
    wire::names,
};

/// When to give up on all answers together.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// When to give up on one answer.
const ONE_ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// The longest answer that is read, in bytes: 1 MiB.
const LONGEST: usize = 1 << 20;

/// What a homeserver offers.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Discovered {
    /// The transports, the preferred ones first. None where the server offers none.
    pub transports: Vec<Transport>,
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
    /// The server refuses the access token: log in again, or refresh it.
    TokenRefused,
    /// The server wants fewer requests: try again later.
    RateLimited,
    /// The server answers with an error, or with what is no such answer.
    NoSuchAnswer {
        /// Its status, e.g. 500.
        status: u16,
    },
    /// The server cannot be reached: try again.
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
            Self::RateLimited => f.write_str("the server wants fewer requests: try again later"),
            Self::NoSuchAnswer { status } => {
                write!(f, "the server's answer ({status}) does not tell its transports")
            }
            Self::Unreachable { error } => {
                write!(f, "the server cannot be reached; try again: {error}")
            }
        }
    }
}

impl Error for TransportsError {}

pub(crate) async fn discover(
    client: &Client,
    timer: &Arc<dyn Timer>,
) -> Result<Discovered, TransportsError> {
    let token = client.access_token().ok_or(TransportsError::NotLoggedIn)?;
    let ask = Ask { client, timer, deadline: timer.now().deadline(ANSWER_WITHIN) };
    // Servers of today speak the unstable one.
    for path in ["unstable/org.matrix.msc4143", "v1"] {
        let url =
            join(client.homeserver().as_str(), &format!("_matrix/client/{path}/rtc/transports"));
        match ask.get(url, Some(&token)).await? {
            Answer::Object(answer) => {
                let transports = read(answer.get("rtc_transports")).ok_or(NO_LIST)?;
                return Ok(Discovered { transports, from: DiscoveredFrom::Homeserver });
            }
            Answer::NotThere => {}
            Answer::Nonsense(status) => return Err(TransportsError::NoSuchAnswer { status }),
        }
    }
    // None of these has to be there, or to be reached: a server's name need not be a host's.
    for server in well_known_servers(client) {
        let url = join(&server, ".well-known/matrix/client");
        match ask.get(url, None).await {
            Ok(Answer::Object(answer)) => {
                let named = names::RTC_FOCI.iter().rev().find_map(|name| answer.get(*name));
                if let Some(transports) = read(named) {
                    return Ok(Discovered { transports, from: DiscoveredFrom::WellKnown });
                }
            }
            Ok(_) => {}
            Err(error) => debug!("no .well-known there: {error}"),
        }
    }
    Ok(Discovered::default())
}

const NO_LIST: TransportsError = TransportsError::NoSuchAnswer { status: 200 };

/// The transports in a list; one that is malformed is dropped alone.
fn read(list: Option<&Value>) -> Option<Vec<Transport>> {
    let list = list?.as_array()?;
    let transports = list.iter().filter_map(|transport| {
        let read = Transport::from_json(transport.clone());
        if read.is_none() {
            debug!("a transport without a type is left out");
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
    named.into_iter().chain([homeserver.to_string()]).collect()
}

fn join(server: &str, path: &str) -> String {
    format!("{}/{path}", server.trim_end_matches('/'))
}

struct Ask<'a> {
    client: &'a Client,
    timer: &'a Arc<dyn Timer>,
    deadline: Deadline,
}

enum Answer {
    Object(Map<String, Value>),
    /// The server does not know the endpoint, or has nothing there.
    NotThere,
    /// Something else, with this status.
    Nonsense(u16),
}

impl Ask<'_> {
    async fn get(&self, url: String, token: Option<&str>) -> Result<Answer, TransportsError> {
        let now = self.timer.now();
        let timeout = self.deadline.left(now).min(ONE_ANSWER_WITHIN);
        let mut request = self.client.http_client().get(url).timeout(timeout);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answered = async {
            let response = request.send().await?;
            let status = response.status();
            Ok((status, response.bytes().await?))
        };
        let unreachable = |error: String| TransportsError::Unreachable { error };
        let (status, body) = before(&**self.timer, now.deadline(timeout), answered)
            .await
            .ok_or_else(|| unreachable("no answer in time".to_owned()))?
            .map_err(|error: reqwest::Error| unreachable(words(&error)))?;
        match status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(Answer::NotThere),
            StatusCode::UNAUTHORIZED => Err(TransportsError::TokenRefused),
            StatusCode::TOO_MANY_REQUESTS => Err(TransportsError::RateLimited),
            status if status.is_success() && body.len() <= LONGEST => {
                let object = serde_json::from_slice(&body).ok();
                Ok(object.map_or(Answer::Nonsense(status.as_u16()), Answer::Object))
            }
            status => Ok(Answer::Nonsense(status.as_u16())),
        }
    }
}

/// Why there is no answer, without the URL.
fn words(error: &reqwest::Error) -> String {
    let causes = successors(error.source(), |&error| error.source());
    let words = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    if words.is_empty() { "the request failed".to_owned() } else { words }
}
