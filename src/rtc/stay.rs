//! Stays: whether a user is in the room, and whether they were out of it since they sent something.
//!
//! In: the user's `m.room.member` events, as the homeserver gives them. Out: whether a membership of theirs
//! still counts. Never: a look at what a member says in a session, or a guess.
//!
//! How does it know that somebody was out? Two moments end what was sent before them:
//!
//! - a *joining*: a `join` whose predecessor was something else, by `unsigned.prev_content`. A `join` after a
//!   `join` is a change of name. If the server names the predecessor alone (`unsigned.replaces_state`), that
//!   event decides, and has to be asked for. So does the one before a change of name, unless it is known;
//! - a leave, a kick or a ban by somebody of the user's own homeserver.
//!
//! Only timestamps of one homeserver are compared: the membership, the joining and such a leave all come from
//! the user's own. Why not those of a kick from elsewhere? The clocks of two servers differ, and a kicker's
//! server would decide for how long after the kick nobody counts.

use std::time::Duration;

use ruma::OwnedEventId;

/// How much earlier than a joining a membership has to be. Two workers of one server share no clock, and a
/// bot sends its membership right after it has joined the room.
const SLACK_MS: u64 = Duration::from_secs(1).as_millis() as u64;

/// What the room's state says about one user.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stay {
    is_in: bool,
    /// The user was out of the room after everything that they sent before this moment.
    out_until_ms: Option<u64>,
    /// The latest event.
    event_id: Option<OwnedEventId>,
    undecided: Option<Undecided>,
}

/// One `m.room.member` event of a user.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) event_id: OwnedEventId,
    pub(super) is_in: bool,
    pub(super) at_ms: Option<u64>,
    /// Whether the sender is of the user's own homeserver.
    pub(super) is_of_own_server: bool,
    /// Whether the user was in the room just before, if the server says.
    pub(super) was_in: Option<bool>,
    /// The event before it in the room's state, if the server says.
    pub(super) replaced: Option<OwnedEventId>,
}

/// A `join` that is a joining, or a change of name that may follow one. The event before it decides.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Undecided {
    /// The event before it.
    pub(super) before: OwnedEventId,
    joined_ms: u64,
}

impl Stay {
    #[cfg(feature = "client")]
    pub(super) fn is_in(&self) -> bool {
        self.is_in
    }

    /// Whether what the user sent at this moment counts.
    pub(super) fn counts(&self, sent_ms: u64) -> bool {
        self.is_in && !self.was_out_after(sent_ms)
    }

    /// Whether the user is known to have been out of the room since.
    pub(super) fn was_out_after(&self, sent_ms: u64) -> bool {
        self.out_until_ms.is_some_and(|out_until_ms| is_well_before(sent_ms, out_until_ms))
    }

    /// Whether it takes another event to decide that.
    pub(super) fn is_undecided_about(&self, sent_ms: u64) -> bool {
        self.undecided.as_ref().is_some_and(|undecided| undecided.is_about(sent_ms))
    }

    #[cfg(feature = "client")]
    pub(super) fn undecided(&self) -> Option<&Undecided> {
        self.undecided.as_ref()
    }

    pub(super) fn handle_in_room(&mut self, is_in: bool) {
        self.is_in = is_in;
    }

    pub(super) fn handle(&mut self, told: Told) {
        let was_in = std::mem::replace(&mut self.is_in, told.is_in);
        // The same event again, which says no more than before.
        if self.event_id.as_ref() == Some(&told.event_id) && told.was_in.is_none() {
            return;
        }
        self.note(&told);
        let goes_on =
            was_in && told.is_in && self.event_id.is_some() && self.event_id == told.replaced;
        self.event_id = Some(told.event_id.clone());
        if !goes_on {
            self.undecided = told.undecided();
        }
    }

    /// Takes from an event what holds whichever events followed it.
    pub(super) fn note(&mut self, told: &Told) {
        self.out_until_ms = self.out_until_ms.max(told.out_until_ms());
    }

    #[cfg(feature = "client")]
    pub(super) fn handle_decided(&mut self, out_until_ms: Option<u64>) {
        self.out_until_ms = self.out_until_ms.max(out_until_ms);
        self.undecided = None;
    }
}

impl Told {
    fn out_until_ms(&self) -> Option<u64> {
        let is_joining = self.is_in && self.was_in == Some(false);
        let is_out = !self.is_in && self.is_of_own_server;
        self.at_ms.filter(|_| is_joining || is_out)
    }

    fn undecided(&self) -> Option<Undecided> {
        let (before, joined_ms) = self.replaced.clone().zip(self.at_ms)?;
        (self.is_in && self.was_in != Some(false)).then_some(Undecided { before, joined_ms })
    }
}

impl Undecided {
    /// Whether the decision matters for what the user sent at this moment.
    pub(super) fn is_about(&self, sent_ms: u64) -> bool {
        is_well_before(sent_ms, self.joined_ms)
    }

    /// Takes the event before. Returns until when the user was out of the room, if they were. If the event
    /// before that one decides, returns that as the error.
    #[cfg(feature = "client")]
    pub(super) fn decide(&self, before: &Told) -> Result<Option<u64>, Self> {
        match before.undecided() {
            _ if !before.is_in => Ok(Some(self.joined_ms)),
            None => Ok(before.out_until_ms()),
            Some(earlier) => Err(earlier),
        }
    }
}

fn is_well_before(earlier_ms: u64, later_ms: u64) -> bool {
    earlier_ms.saturating_add(SLACK_MS) < later_ms
}
