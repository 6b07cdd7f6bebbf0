//! Opening and closing slots ([MSC4143], "Slot lifecycle").
//!
//! In: the slot's id, and the application that is to run there. Out: a state event, or none if the slot is that
//! way already. Never: deciding who counts in it.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

use std::{future::IntoFuture, time::Duration};

use futures_util::FutureExt as _;
use matrix_sdk::{HttpError, Room, RoomState};
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

/// How long to wait for the server's answer to one request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest state key, in bytes ("Size limits" of the specification).
const MAX_STATE_KEY_BYTES: usize = 255;

/// A slot that is to be opened. [`Session::open`] returns it, and awaiting it opens the slot.
#[must_use = "it is opened when it is awaited"]
#[derive(Debug)]
pub struct OpenSlot {
    session: Session,
    application: Option<RtcApplication>,
}

/// Why a slot was not opened or closed. Nothing was sent, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// We have no right to change the room's slots. Somebody with the power level for state events of the type
    /// `org.matrix.msc4143.rtc.slot` has to do it, or to give us that level.
    #[error(
        "we have no right to change the room's slots: somebody with a higher power level has to, or to \
         give us that"
    )]
    NotAllowed,
    /// We are not in the room, as far as the client or the server knows. Join it first.
    #[error("we are not in the room: join it first")]
    NotInRoom,
    /// The slot's id is malformed. It has to be `<type>#<name>`, of at most 255 bytes. The type starts with a
    /// lowercase letter, and goes on with `a-z`, `0-9`, `.`, `_` and `-`. The name has these and `A-Z`.
    #[error(
        "the slot's id has to be the application's type, a `#`, and the slot's own name, e.g. \
         m.call#ROOM, of letters (small ones in the type), digits, `.`, `_` and `-`, 255 in all"
    )]
    SlotId,
    /// Nobody knows whether the room is encrypted, and the slot has to say how media are. Try again.
    #[error("nobody knows whether the room is encrypted: try again")]
    EncryptionUnknown(#[source] Box<matrix_sdk::Error>),
    /// The server wants fewer requests. Try again later.
    #[error("{}", rate_limited(*.retry_after))]
    RateLimited {
        /// When the server takes another request, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server refuses the request, and will refuse it again.
    #[error("the server refuses the slot")]
    Refused(#[source] Box<HttpError>),
    /// The server cannot be reached, or answers with errors. The request may have been sent. Try again: doing it
    /// twice does no harm.
    #[error("the server cannot be reached: try again")]
    Unreachable(#[source] Box<HttpError>),
}

impl Session {
    /// Opens the session's slot, for members who follow MSC4143. In an encrypted room the slot says that each
    /// member has a media key of its own (`m.per_member`), as the proposal requires. If the slot is open like
    /// that already, nothing is sent. It takes the right to send state events of this type.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{StickyRoomExt as _, rtc::{ROOM_CALL, SlotError}};
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), SlotError> {
    /// room.sticky().rtc().session(ROOM_CALL).open().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SlotError::NotAllowed`] without the right to change slots, [`SlotError::NotInRoom`] and
    /// [`SlotError::SlotId`] before anything is sent. The others say whether another try can help.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is safe. The slot may be open all the same, and opening it again does no harm.
    pub fn open(&self) -> OpenSlot {
        OpenSlot::new(self.clone())
    }

    /// Closes the session's slot: its members do not count any more, and those who follow the proposal leave. If
    /// the slot is closed or missing already, nothing is sent.
    ///
    /// # Errors
    ///
    /// [`SlotError::NotAllowed`] without the right to change slots, [`SlotError::NotInRoom`] before anything is
    /// sent. The others say whether another try can help.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is safe. The slot may be closed all the same, and closing it again does no harm.
    pub async fn close(&self) -> Result<(), SlotError> {
        close(self).await
    }
}

impl OpenSlot {
    fn new(session: Session) -> Self {
        Self { session, application: None }
    }

    /// Sets the application that is to run in the slot. Its type is what the slot's id begins with. Defaults to
    /// the application that the slot has, which a closed slot may keep, and else to one that says nothing.
    pub fn with_application(mut self, application: RtcApplication) -> Self {
        self.application = Some(application);
        self
    }

    async fn open(self) -> Result<(), SlotError> {
        let slot_id = session_of(self.session.slot_id());
        if self.application.as_ref().is_some_and(|it| !names_a_slot(it, slot_id)) {
            return Err(SlotError::SlotId);
        }
        // The proposal does not want the id taken apart. This is for when nobody gives the application.
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
        // A missing slot is closed, and a malformed one as well.
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

/// Whether a slot of this application can have this id ([MSC4143], "Slots"). Why are capitals allowed in the
/// second part alone? The proposal asks for the same grammar in both parts, and itself has a `ROOM` there.
///
/// [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
fn names_a_slot(application: &RtcApplication, slot_id: &str) -> bool {
    let application_type = &*application.application_type;
    let own_name = slot_id.strip_prefix(application_type).and_then(|rest| rest.strip_prefix('#'));
    let is_of_a_name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    own_name.is_some_and(|name| !name.is_empty() && name.bytes().all(is_of_a_name))
        && application_type.starts_with(|first: char| first.is_ascii_lowercase())
        && application_type.bytes().all(|b| is_of_a_name(b) && !b.is_ascii_uppercase())
        && slot_id.len() <= MAX_STATE_KEY_BYTES
}

/// The content that opens a slot. Its other fields stay.
fn opened(
    before: &Map<String, Value>,
    application: &RtcApplication,
    is_encrypted: bool,
) -> Map<String, Value> {
    let mut content = before.clone();
    content.insert("status".to_owned(), "open".into());
    content.insert("application".to_owned(), application.to_json());
    // In an unencrypted room the proposal forbids the field.
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

/// The content that closes a slot. It keeps what it takes to open the slot again.
fn closed(before: &Map<String, Value>) -> Map<String, Value> {
    let mut content = before.clone();
    content.insert("status".to_owned(), "closed".into());
    content
}

/// Whether the room is encrypted now. Why not by matrix-sdk's latest state alone? That is what its last sync
/// told. Encryption may have been switched on since, and is never switched off.
async fn is_encrypted(room: &Room) -> Result<bool, SlotError> {
    let known = room.latest_encryption_state().await;
    let known = known.map_err(|error| SlotError::EncryptionUnknown(error.into()))?;
    Ok(known.is_encrypted() || state(room, names::ROOM_ENCRYPTION, "").await?.is_some())
}

/// The slot as the server has it now. If both spellings of its type are there, the unstable one counts, as it
/// does in the [`roster`](super::roster).
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
    match room.client().send(request).with_request_config(with_retries(ANSWER_TIMEOUT, 2)).await {
        Ok(answer) => {
            let content = serde_json::from_str(answer.event_or_content.get());
            Ok(Some(content.unwrap_or_default()))
        }
        Err(error) => match status(&error) {
            Some(StatusCode::NOT_FOUND) => Ok(None),
            // A user in the room may read its state.
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
    match room.client().send(request).with_request_config(with_retries(ANSWER_TIMEOUT, 2)).await {
        Ok(_) => Ok(()),
        Err(error) if status(&error) == Some(StatusCode::FORBIDDEN) => Err(SlotError::NotAllowed),
        Err(error) => Err(failed(error)),
    }
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

    /// Open if it opens the slot, closed if it closes it.
    #[test]
    fn a_written_slot_reads_as_it_should() {
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

    /// In whichever spelling.
    #[test]
    fn opening_keeps_only_our_kind_of_encryption() {
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
    fn a_slot_id_is_a_type_and_name() {
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
