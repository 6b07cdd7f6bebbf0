//! Opening and closing slots ([MSC4143], "Slot lifecycle").
//!
//! In: the slot's id, and the application that is to run there. Out: a state event, or none where the
//! slot is that way already.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

use std::{fmt, future::IntoFuture, time::Duration};

use futures_util::FutureExt as _;
use matrix_sdk::{HttpError, Room, RoomState, config::RequestConfig};
use ruma::{
    api::client::state::{get_state_event_for_key, send_state_event},
    exports::http::StatusCode,
    serde::Raw,
};
use serde_json::{Map, Value, json, value::to_raw_value};

use super::{
    session::Session,
    slot::{RtcApplication, session_of, slots_of},
};
use crate::{
    driver::BoxFuture,
    request::{Verdict, rate_limited, with_retries},
    wire::names,
};

/// When to give up on the server's answer to one request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The longest state key, in bytes ("Size limits" of the specification).
const LONGEST_STATE_KEY: usize = 255;

/// A slot that is to be opened; by [`Session::open`]. Awaiting it opens it.
#[must_use = "it is opened when it is awaited"]
#[derive(Debug)]
pub struct OpenSlot {
    session: Session,
    application: Option<RtcApplication>,
}

/// Why a slot was not opened or closed. Unless it says so, nothing was sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum SlotError {
    /// We have no right to change the room's slots: somebody with the power level for state events of
    /// the type `org.matrix.msc4143.rtc.slot` has to do it, or give us that.
    NotAllowed,
    /// We are not in the room, as far as is known here or by the server: join it first.
    NotInRoom,
    /// The slot's id is not the application's type, a `#`, and what tells its slots apart; or one of
    /// these has other characters than a name may have: letters (of the type: small ones, one at its
    /// start), digits, `.`, `_` and `-`; or it is longer than 255.
    SlotId,
    /// Whether the room is encrypted is not known, and the slot has to say the same.
    EncryptionUnknown(Box<matrix_sdk::Error>),
    /// The server wants fewer requests.
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
    },
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
            Self::NotInRoom => f.write_str("we are not in the room: join it first"),
            Self::SlotId => f.write_str(
                "the slot's id has to be the application's type, a `#`, and the slot's own name, e.g. \
                 m.call#ROOM, of letters (small ones in the type), digits, `.`, `_` and `-`, 255 in all",
            ),
            Self::RateLimited { retry_after } => f.write_str(&rate_limited(*retry_after)),
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

impl Session {
    /// Opens its slot, for who follows MSC4143. In an encrypted room it says that each member has a media
    /// key of its own (`m.per_member`), as the proposal requires. Nothing is sent where it is open so
    /// already. Takes the right to send such state events.
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{RoomExt as _, rtc::{ROOM_CALL, SlotError}};
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), SlotError> {
    /// room.sticky().rtc().session(ROOM_CALL).open().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SlotError`].
    pub fn open(&self) -> OpenSlot {
        OpenSlot::new(self.clone())
    }

    /// Closes its slot: nobody is there any more, and members who follow the proposal leave.
    ///
    /// # Errors
    ///
    /// [`SlotError`].
    pub async fn close(&self) -> Result<(), SlotError> {
        close(self).await
    }
}

impl OpenSlot {
    fn new(session: Session) -> Self {
        Self { session, application: None }
    }

    /// The application that is to run there, with what it has to say; of the type that the slot's id
    /// begins with. Unless told, the one that the slot has, as a closed one may keep it, and else one
    /// that says nothing.
    pub fn with_application(mut self, application: RtcApplication) -> Self {
        self.application = Some(application);
        self
    }

    async fn open(self) -> Result<(), SlotError> {
        let slot_id = session_of(self.session.slot_id());
        if self.application.as_ref().is_some_and(|it| !names_a_slot(it, slot_id)) {
            return Err(SlotError::SlotId);
        }
        // The proposal does not want it taken apart, so this is only where nobody says what it is.
        let (application_type, _) = slot_id.split_once('#').ok_or(SlotError::SlotId)?;
        let plain = RtcApplication::new(application_type);
        if self.application.is_none() && !names_a_slot(&plain, slot_id) {
            return Err(SlotError::SlotId);
        }
        let room = self.session.rtc().room();
        ensure_in(room)?;
        let is_encrypted = is_encrypted(room).await?;
        let before = read(room, slot_id).await?.unwrap_or_default();
        let application = self.application.or_else(|| {
            let application = RtcApplication::from_json(before.get("application")?)?;
            names_a_slot(&application, slot_id).then_some(application)
        });
        let application = application.unwrap_or(plain);
        let content = opened(&before, &application, is_encrypted);
        if content == before {
            return Ok(());
        }
        write(room, slot_id, content).await
    }
}

impl IntoFuture for OpenSlot {
    type Output = Result<(), SlotError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.open().boxed()
    }
}

async fn close(session: &Session) -> Result<(), SlotError> {
    let room = session.rtc().room();
    ensure_in(room)?;
    for slot_id in slots_of(session_of(session.slot_id())) {
        // What is missing is closed, and what makes no sense as well.
        if let Some(before) = read(room, slot_id).await?
            && before.get("status").and_then(Value::as_str) == Some("open")
        {
            write(room, slot_id, closed(&before)).await?;
        }
    }
    Ok(())
}

fn ensure_in(room: &Room) -> Result<(), SlotError> {
    if room.state() == RoomState::Joined { Ok(()) } else { Err(SlotError::NotInRoom) }
}

/// Whether a slot of this application can have this id ([MSC4143], "Slots"). The proposal asks for the
/// same grammar in both parts, and itself has a `ROOM` in the second.
///
/// [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
fn names_a_slot(application: &RtcApplication, slot_id: &str) -> bool {
    let application_type = &*application.application_type;
    let own_name = slot_id.strip_prefix(application_type).and_then(|rest| rest.strip_prefix('#'));
    let is_of_a_name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    own_name.is_some_and(|name| !name.is_empty() && name.bytes().all(is_of_a_name))
        && application_type.starts_with(|first: char| first.is_ascii_lowercase())
        && application_type.bytes().all(|b| is_of_a_name(b) && !b.is_ascii_uppercase())
        && slot_id.len() <= LONGEST_STATE_KEY
}

/// The content that opens a slot. What else it says stays.
fn opened(
    before: &Map<String, Value>,
    application: &RtcApplication,
    is_encrypted: bool,
) -> Map<String, Value> {
    let mut content = before.clone();
    content.insert("status".to_owned(), "open".into());
    content.insert("application".to_owned(), application.to_json());
    // In an unencrypted room the proposal forbids it.
    let encryption = content.remove("encryption");
    if is_encrypted {
        let is_ours = |encryption: &Value| {
            let named = encryption.get("type").and_then(Value::as_str);
            named.is_some_and(|named| names::PER_MEMBER.contains(&named))
        };
        let [_, per_member] = names::PER_MEMBER;
        let encryption = encryption.filter(is_ours);
        content.insert(
            "encryption".to_owned(),
            encryption.unwrap_or_else(|| json!({ "type": per_member })),
        );
    }
    content
}

/// The content that closes it, and keeps what it takes to open it again.
fn closed(before: &Map<String, Value>) -> Map<String, Value> {
    let mut content = before.clone();
    content.insert("status".to_owned(), "closed".into());
    content
}

/// Whether the room is encrypted now. What matrix-sdk calls the latest is what its last sync told, once
/// it has told anything. Encryption may have come on since; it never goes off.
async fn is_encrypted(room: &Room) -> Result<bool, SlotError> {
    let known = room.latest_encryption_state().await;
    let known = known.map_err(|error| SlotError::EncryptionUnknown(error.into()))?;
    Ok(known.is_encrypted() || state(room, names::ROOM_ENCRYPTION, "").await?.is_some())
}

/// The slot as the server has it now. Where both spellings of its type are there, the unstable one
/// counts, as it does in the [`roster`](super::roster).
async fn read(room: &Room, slot_id: &str) -> Result<Option<Map<String, Value>>, SlotError> {
    for event_type in names::RTC_SLOT.into_iter().rev() {
        if let Some(content) = state(room, event_type, slot_id).await? {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// The content of a state event, as the server has it now.
async fn state(
    room: &Room,
    event_type: &str,
    state_key: &str,
) -> Result<Option<Map<String, Value>>, SlotError> {
    let request = get_state_event_for_key::v3::Request::new(
        room.room_id().to_owned(),
        event_type.into(),
        state_key.to_owned(),
    );
    match room.client().send(request).with_request_config(config()).await {
        Ok(answer) => {
            let content = serde_json::from_str(answer.event_or_content.get());
            Ok(Some(content.unwrap_or_default()))
        }
        Err(error) => match status(&error) {
            Some(StatusCode::NOT_FOUND) => Ok(None),
            // Who is in a room may read its state.
            Some(StatusCode::FORBIDDEN) => Err(SlotError::NotInRoom),
            _ => Err(failed(error)),
        },
    }
}

async fn write(room: &Room, slot_id: &str, content: Map<String, Value>) -> Result<(), SlotError> {
    // A map of strings to JSON is always JSON.
    let Ok(content) = to_raw_value(&content) else { return Ok(()) };
    let [_, event_type] = names::RTC_SLOT;
    let request = send_state_event::v3::Request::new_raw(
        room.room_id().to_owned(),
        event_type.into(),
        slot_id.to_owned(),
        Raw::from_json(content),
    );
    match room.client().send(request).with_request_config(config()).await {
        Ok(_) => Ok(()),
        Err(error) if status(&error) == Some(StatusCode::FORBIDDEN) => Err(SlotError::NotAllowed),
        Err(error) => Err(failed(error)),
    }
}

fn config() -> RequestConfig {
    with_retries(ANSWER_WITHIN, 2)
}

fn status(error: &HttpError) -> Option<StatusCode> {
    error.as_client_api_error().map(|error| error.status_code)
}

fn failed(error: HttpError) -> SlotError {
    match Verdict::of(&error) {
        Verdict::RateLimited(retry_after) => SlotError::RateLimited { retry_after },
        Verdict::Hopeless => SlotError::Refused(error.into()),
        Verdict::Again => SlotError::Unreachable(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtc::slot::{ClosedBy, ROOM_CALL, Slot};

    fn object(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_opens_a_slot_reads_as_open_and_what_closes_it_as_closed() {
        for is_encrypted in [false, true] {
            let content = opened(&Map::new(), &RtcApplication::new("m.call"), is_encrypted);
            assert_eq!(Slot::read(ROOM_CALL, &content).closed_by(is_encrypted), None);
            assert_eq!(content.contains_key("encryption"), is_encrypted);
            let content = closed(&content);
            let slot = Slot::read(ROOM_CALL, &content);
            assert_eq!(slot.closed_by(is_encrypted), Some(ClosedBy::Status));
            assert_eq!(slot.application, Some(RtcApplication::new("m.call")));
        }
    }

    #[test]
    fn opening_keeps_what_else_a_slot_says() {
        let mut before = opened(&Map::new(), &RtcApplication::new("m.call"), true);
        before.insert("com.example.topic".to_owned(), "x".into());
        let again = opened(&closed(&before), &RtcApplication::new("m.call"), true);
        assert_eq!(again, before);
        assert!(!opened(&before, &RtcApplication::new("m.call"), false).contains_key("encryption"));
    }

    #[test]
    fn an_encryption_of_the_same_kind_stays_in_whichever_spelling_and_another_does_not() {
        let call = RtcApplication::new("m.call");
        for name in names::PER_MEMBER {
            let encryption = json!({ "type": name, "com.example.more": 1 });
            let before = object(json!({ "status": "closed", "encryption": encryption }));
            assert_eq!(opened(&before, &call, true)["encryption"], encryption);
        }
        for other in [json!({ "type": "com.example.none" }), json!({}), json!("m.per_member")] {
            let content = opened(&object(json!({ "encryption": other })), &call, true);
            assert_eq!(content["encryption"], json!({ "type": names::PER_MEMBER[1] }));
        }
    }

    #[test]
    fn a_slots_id_is_its_applications_type_and_a_name() {
        let is_one = |kind: &str, slot_id: &str| names_a_slot(&RtcApplication::new(kind), slot_id);
        for slot_id in ["m.call#ROOM", "m.call#room", "m.call#1", "m.call#a.b_c-d"] {
            assert!(is_one("m.call", slot_id), "{slot_id}");
        }
        let long = format!("m.call#{}", "x".repeat(250));
        for slot_id in [
            "m.call",
            "m.call#",
            "m.calls#ROOM",
            "m.call#a#b",
            "m.call#a b",
            "m.call#ä",
            "#x",
            &long,
        ] {
            assert!(!is_one("m.call", slot_id), "{slot_id}");
        }
        for kind in ["", "M.call", "m.Call", "1.call", "m#call", "m call"] {
            assert!(!is_one(kind, &format!("{kind}#ROOM")), "{kind}");
        }
    }
}
