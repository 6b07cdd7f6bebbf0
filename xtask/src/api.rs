//! One user's raw client, for scripts: requests go out as they are written, answers come back as
//! JSON. It tries nothing twice, 429 included.

use std::{fmt, time::Duration};

use serde_json::{Value, json};
use ureq::Agent;

/// When to give up on a request.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);

/// The name under which today's servers take the stickiness of an event that is sent.
pub const STICKY_DURATION: &str = "org.matrix.msc4354.sticky_duration_ms";

/// A homeserver and one access token on it. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Api {
    base: String,
    token: Option<String>,
    agent: Agent,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Api {
    /// The client of the user to whom the token belongs; `base` as `http://127.0.0.1:8008`.
    pub fn new(base: &str, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..Self::anonymous(base) }
    }

    /// A client without a token, for `/versions`, `/register` and `/login`.
    pub fn anonymous(base: &str) -> Self {
        let agent = Agent::config_builder()
            .timeout_global(Some(REQUEST_WITHIN))
            .http_status_as_error(false)
            // A proxy from the environment is not for loopback.
            .proxy(None)
            .build()
            .new_agent();
        Self { base: base.trim_end_matches('/').to_owned(), token: None, agent }
    }

    /// `GET`. The path begins with `/_matrix`, or is one below `/_matrix/client/v3/`.
    ///
    /// # Errors
    /// Whatever is not a 2xx with JSON.
    pub fn get(&self, path: &str) -> Result<Value, ApiError> {
        let mut request = self.agent.get(self.url(path));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        answer("GET", path, request.call())
    }

    /// `PUT`, with the path as for [`Api::get`].
    ///
    /// # Errors
    /// Whatever is not a 2xx with JSON.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.with_body("PUT", self.agent.put(self.url(path)), path, body)
    }

    /// `POST`, with the path as for [`Api::get`].
    ///
    /// # Errors
    /// Whatever is not a 2xx with JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.with_body("POST", self.agent.post(self.url(path)), path, body)
    }

    /// Makes a room from the body of `createRoom` and returns its id.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub fn create_room(&self, body: &Value) -> Result<String, ApiError> {
        string(&self.post("createRoom", body)?, "room_id", "createRoom")
    }

    /// Sends an event and returns its id; with `sticky_ms`, a sticky one. The same `txn` twice
    /// sends once.
    ///
    /// # Errors
    /// As [`Api::put`].
    pub fn send(
        &self,
        room: &str,
        event_type: &str,
        txn: &str,
        content: &Value,
        sticky_ms: Option<u64>,
    ) -> Result<String, ApiError> {
        let mut path =
            format!("rooms/{}/send/{}/{}", encode(room), encode(event_type), encode(txn));
        if let Some(milliseconds) = sticky_ms {
            path.push_str(&format!("?{STICKY_DURATION}={milliseconds}"));
        }
        string(&self.put(&path, content)?, "event_id", &path)
    }

    /// Redacts an event and returns the redaction's id.
    ///
    /// # Errors
    /// As [`Api::put`].
    pub fn redact(&self, room: &str, event_id: &str, txn: &str) -> Result<String, ApiError> {
        let path = format!("rooms/{}/redact/{}/{}", encode(room), encode(event_id), encode(txn));
        string(&self.put(&path, &json!({}))?, "event_id", &path)
    }

    /// One event of a room, as the server has it.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn event(&self, room: &str, event_id: &str) -> Result<Value, ApiError> {
        self.get(&format!("rooms/{}/event/{}", encode(room), encode(event_id)))
    }

    /// Sets a state event and returns its id.
    ///
    /// # Errors
    /// As [`Api::put`].
    pub fn set_state(
        &self,
        room: &str,
        event_type: &str,
        state_key: &str,
        content: &Value,
    ) -> Result<String, ApiError> {
        let path =
            format!("rooms/{}/state/{}/{}", encode(room), encode(event_type), encode(state_key));
        string(&self.put(&path, content)?, "event_id", &path)
    }

    /// Joins a room, by id or alias.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub fn join(&self, room: &str) -> Result<(), ApiError> {
        self.post(&format!("join/{}", encode(room)), &json!({})).map(drop)
    }

    /// Joins a room that another server is in, by way of that server.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub fn join_via(&self, room: &str, server: &str) -> Result<(), ApiError> {
        let server = encode(server);
        let path = format!("join/{}?server_name={server}&via={server}", encode(room));
        self.post(&path, &json!({})).map(drop)
    }

    /// Leaves a room.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub fn leave(&self, room: &str) -> Result<(), ApiError> {
        self.membership(room, "leave", &json!({}))
    }

    /// Invites a user.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub fn invite(&self, room: &str, user_id: &str) -> Result<(), ApiError> {
        self.membership(room, "invite", &json!({ "user_id": user_id }))
    }

    /// Removes a user from a room.
    ///
    /// # Errors
    /// As [`Api::post`].
    pub fn kick(&self, room: &str, user_id: &str) -> Result<(), ApiError> {
        self.membership(room, "kick", &json!({ "user_id": user_id }))
    }

    fn membership(&self, room: &str, action: &str, body: &Value) -> Result<(), ApiError> {
        self.post(&format!("rooms/{}/{action}", encode(room)), body).map(drop)
    }

    fn with_body(
        &self,
        method: &'static str,
        mut request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        path: &str,
        body: &Value,
    ) -> Result<Value, ApiError> {
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        answer(method, path, request.send_json(body))
    }

    fn url(&self, path: &str) -> String {
        if path.starts_with("/_matrix") {
            format!("{}{path}", self.base)
        } else {
            format!("{}/_matrix/client/v3/{path}", self.base)
        }
    }
}

fn answer(
    method: &'static str,
    path: &str,
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Value, ApiError> {
    let unreachable =
        |source| ApiError::Unreachable { method, path: path.to_owned(), source: Box::new(source) };
    let mut answer = answer.map_err(unreachable)?;
    let status = answer.status().as_u16();
    let body = answer.body_mut().read_to_string().map_err(unreachable)?;
    match serde_json::from_str(&body) {
        Ok(value) if (200..300).contains(&status) => Ok(value),
        _ => Err(ApiError::Refused { method, path: path.to_owned(), status, body }),
    }
}

/// Why a request brought no answer to work with.
#[derive(Debug)]
#[non_exhaustive]
pub enum ApiError {
    /// The server answered, but not with a 2xx and JSON.
    Refused {
        /// The HTTP method.
        method: &'static str,
        /// The path as it was given.
        path: String,
        /// The HTTP status.
        status: u16,
        /// The body, whole.
        body: String,
    },
    /// The server did not answer within 30 s, or not at all.
    Unreachable {
        /// The HTTP method.
        method: &'static str,
        /// The path as it was given.
        path: String,
        /// What the connection said.
        source: Box<ureq::Error>,
    },
}

impl ApiError {
    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unreachable { .. } => None,
        }
    }

    /// The Matrix error code of the answer, `M_FORBIDDEN` for one, if there was one.
    pub fn code(&self) -> Option<String> {
        let Self::Refused { body, .. } = self else {
            return None;
        };
        let body: Value = serde_json::from_str(body).ok()?;
        Some(body.get("errcode")?.as_str()?.to_owned())
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { method, path, status, body } => {
                write!(f, "{method} {path}: {status} {body}")
            }
            Self::Unreachable { method, path, source } => write!(f, "{method} {path}: {source}"),
        }
    }
}

impl std::error::Error for ApiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused { .. } => None,
            Self::Unreachable { source, .. } => Some(source),
        }
    }
}

/// A string of a 2xx answer; without it, the answer is as good as a refusal.
pub(crate) fn string(answer: &Value, name: &str, path: &str) -> Result<String, ApiError> {
    answer.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| ApiError::Refused {
        method: "the answer to",
        path: path.to_owned(),
        status: 200,
        body: format!("it has no string `{name}`: {answer}"),
    })
}

/// One segment of a path. Room ids, event ids and types hold what a URL reads otherwise.
pub fn encode(segment: &str) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
