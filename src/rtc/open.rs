//! Opening and closing slots ([MSC4143], "Slot lifecycle").
//!
//! In: the slot's id, and the application that is to run there. Out: one state event, or none where the
//! slot is that way already.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

use std::{fmt, future::IntoFuture, time::Duration};

use futures_util::FutureExt as _;
use matrix_sdk::{HttpError, Room, config::RequestConfig};
use ruma::{
    api::client::state::{get_state_event_for_key, send_state_event},
    events::StateEventType,
    exports::http::StatusCode,
    serde::Raw,
};
use serde_json::{Map, Value, json, value::to_raw_value};

use super::{
    session::Session,
    slot::{Application, session_of},
};
use crate::{driver::BoxFuture, wire::names};

/// When to give up on the server's answer to one request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A slot that is to be opened; by [`Session::open`]. Awaiting it opens it.
#[must_use = "it is opened when it is awaited"]
#[derive(Debug)]
pub struct OpenSlot {
    session: Session,
    application: Option<Application>,
}

/// Why a slot was not opened or closed. Unless it says so, nothing was sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum SlotError {
    /// We have no right to change the room's slots: somebody with the power level for state events of
    /// the type `org.matrix.msc4143.rtc.slot` has to do it, or give us that.
    NotAllowed,
    /// The slot's id is not the application's type, a `#`, and what tells its slots apart.
    SlotId,
    /// Whether the room is encrypted is not known, and the slot has to say the same.
    EncryptionUnknown(Box<matrix_sdk::Error>),
    /// The server refuses it, and will again.
    Refused(Box<HttpError>),
    /// The server cannot be reached, or answers with errors. It may have been sent; doing it again does
    /// no harm.
    Unreachable(Box<HttpError>),
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed => f.write_str(
                "we have no right to change the room's slots: somebody with a higher power level has \
                 to, or to give us that",
            ),
            Self::SlotId => f.write_str(
                "the slot's id has to be the application's type, a `#`, and the slot's own name, with \
                 no other `#`, e.g. m.call#ROOM",
            ),
            Self::EncryptionUnknown(error) => {
                write!(f, "whether the room is encrypted is not known; try again: {error}")
            }
            Self::Refused(error) => write!(f, "the server refuses the slot: {error}"),
            Self::Unreachable(error) => {
                write!(f, "the server cannot be reached; try again: {error}")
            }
        }
    }
}

impl std::error::Error for SlotError {}

impl OpenSlot {
    pub(super) fn new(session: Session) -> Self {
        Self { session, application: None }
    }

    /// The application that is to run there, with what it has to say; of the type that the slot's id
    /// begins with, and saying nothing, unless told.
    pub fn application(mut self, application: Application) -> Self {
        self.application = Some(application);
        self
    }

    async fn open(self) -> Result<(), SlotError> {
        let slot_id = session_of(self.session.slot_id());
        let (application_type, own_name) = slot_id.split_once('#').ok_or(SlotError::SlotId)?;
        let application = self.application.unwrap_or_else(|| Application::new(application_type));
        let is_of_it = application.application_type == application_type;
        if !is_of_it || application_type.is_empty() || own_name.is_empty() || own_name.contains('#')
        {
            return Err(SlotError::SlotId);
        }
        let room = self.session.rtc().room();
        let encryption = room.latest_encryption_state().await;
        let encryption = encryption.map_err(|error| SlotError::EncryptionUnknown(error.into()))?;
        let before = read(room, slot_id).await?;
        write(
            room,
            slot_id,
            opened(before.as_ref(), &application, encryption.is_encrypted()),
            before,
        )
        .await
    }
}

impl IntoFuture for OpenSlot {
    type Output = Result<(), SlotError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.open().boxed()
    }
}

pub(super) async fn close(session: &Session) -> Result<(), SlotError> {
    let slot_id = session_of(session.slot_id());
    let room = session.rtc().room();
    // What is missing is closed.
    let Some(before) = read(room, slot_id).await? else { return Ok(()) };
    write(room, slot_id, closed(&before), Some(before)).await
}

/// The content that opens a slot. What else it says stays.
fn opened(
    before: Option<&Map<String, Value>>,
    application: &Application,
    is_encrypted: bool,
) -> Map<String, Value> {
    let mut content = before.cloned().unwrap_or_default();
    content.insert("status".to_owned(), "open".into());
    content.insert("application".to_owned(), application.to_json());
    if is_encrypted {
        let [_, per_member] = names::PER_MEMBER;
        content.insert("encryption".to_owned(), json!({ "type": per_member }));
    } else {
        // The proposal forbids it there.
        content.remove("encryption");
    }
    content
}

/// The content that closes it, and keeps what it takes to open it again.
fn closed(before: &Map<String, Value>) -> Map<String, Value> {
    let mut content = before.clone();
    content.insert("status".to_owned(), "closed".into());
    content
}

/// The slot as the server has it now.
async fn read(room: &Room, slot_id: &str) -> Result<Option<Map<String, Value>>, SlotError> {
    let request = get_state_event_for_key::v3::Request::new(
        room.room_id().to_owned(),
        event_type(),
        slot_id.to_owned(),
    );
    match room.client().send(request).with_request_config(config()).await {
        Ok(answer) => Ok(serde_json::from_str(answer.event_or_content.get()).ok()),
        Err(error) if status(&error) == Some(StatusCode::NOT_FOUND) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

async fn write(
    room: &Room,
    slot_id: &str,
    content: Map<String, Value>,
    before: Option<Map<String, Value>>,
) -> Result<(), SlotError> {
    if before.as_ref() == Some(&content) {
        return Ok(());
    }
    // A map of strings to JSON is always JSON.
    let Ok(content) = to_raw_value(&content) else { return Ok(()) };
    let request = send_state_event::v3::Request::new_raw(
        room.room_id().to_owned(),
        event_type(),
        slot_id.to_owned(),
        Raw::from_json(content),
    );
    match room.client().send(request).with_request_config(config()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn event_type() -> StateEventType {
    let [_, unstable] = names::RTC_SLOT;
    unstable.into()
}

fn config() -> RequestConfig {
    RequestConfig::new().timeout(ANSWER_WITHIN).retry_limit(2)
}

fn status(error: &HttpError) -> Option<StatusCode> {
    error.as_client_api_error().map(|error| error.status_code)
}

fn failed(error: HttpError) -> SlotError {
    match status(&error) {
        Some(StatusCode::FORBIDDEN) => SlotError::NotAllowed,
        Some(status)
            if status.is_client_error()
                && status != StatusCode::TOO_MANY_REQUESTS
                && status != StatusCode::REQUEST_TIMEOUT =>
        {
            SlotError::Refused(error.into())
        }
        _ => SlotError::Unreachable(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtc::slot::{ClosedBy, ROOM_CALL, Slot};

    #[test]
    fn what_opens_a_slot_reads_as_open_and_what_closes_it_as_closed() {
        for is_encrypted in [false, true] {
            let content = opened(None, &Application::new("m.call"), is_encrypted);
            assert_eq!(Slot::read(ROOM_CALL, &content).closed_by(is_encrypted), None);
            assert_eq!(content.contains_key("encryption"), is_encrypted);
            let content = closed(&content);
            let slot = Slot::read(ROOM_CALL, &content);
            assert_eq!(slot.closed_by(is_encrypted), Some(ClosedBy::Status));
            assert_eq!(slot.application, Some(Application::new("m.call")));
        }
    }

    #[test]
    fn opening_keeps_what_else_a_slot_says() {
        let mut before = opened(None, &Application::new("m.call"), true);
        before.insert("com.example.topic".to_owned(), "x".into());
        let again = opened(Some(&closed(&before)), &Application::new("m.call"), true);
        assert_eq!(again, before);
        assert!(
            !opened(Some(&before), &Application::new("m.call"), false).contains_key("encryption")
        );
    }
}
