//! Encrypted events: those that miss their room key, and what decryption makes of them.
//!
//! In: an encrypted event with its decrypted text, and later news about who encrypted it. Out: which
//! events need decryption. Never: the decryption itself.

use std::sync::Arc;

use ruma::{EventId, UserId};
use serde_json::value::RawValue;

use super::{Admission, EphemeralMap, REMEMBERED_FOR, ReceivedVia, ends::end_of};
use crate::{
    event::{Encryption, Kind, StickyEvent},
    time::{Deadline, Moment},
    wire::{self, Malformed, RawContent, RawSticky},
};

/// An encrypted event whose room key has not come.
pub(super) struct PendingDecryption {
    pub(super) session_id: Option<Box<str>>,
    pub(super) event: Arc<StickyEvent>,
}

impl EphemeralMap {
    /// Takes an encrypted event together with what decryption made of it: who encrypted it, and the
    /// decrypted event's JSON, of which only type and content count.
    ///
    /// # Errors
    ///
    /// Returns [`Malformed`] if either text lacks what a sticky event must have. Nothing of it shows,
    /// and nothing else was lost: log it and go on.
    pub fn handle_decrypted(
        &mut self,
        received: Moment,
        via: ReceivedVia,
        outer: &RawValue,
        clear: Box<RawValue>,
        encryption: Encryption,
    ) -> Result<Admission, Malformed> {
        let Some(mut raw) = self.read(received, outer)? else {
            return Ok(Admission::NotSticky);
        };
        let mut end = end_of(received, via, &raw);
        let inner = match wire::read_decrypted(&clear) {
            Ok(inner) => inner,
            Err(malformed) => {
                if let Some(admission) = self.keep_malformed(received, &raw, outer, end) {
                    return Ok(admission);
                }
                self.note_malformed(received, outer);
                return Err(Malformed {
                    // The outer event's id: the device that encrypted it could have written any id
                    // inside.
                    event_id: Some(raw.event_id.to_string()),
                    ..malformed
                });
            }
        };
        let session_id = match &raw.content {
            RawContent::Encrypted { session_id } => session_id.as_deref().map(Box::from),
            RawContent::Clear { .. } => None,
        };
        raw.event_type = inner.event_type;
        raw.content = inner.content;
        if let Some(known) = self.find_event(raw.event_id.as_str())
            && known.kind() == Kind::Unreadable
        {
            let known = known.clone();
            end = end.min(known.ends());
            if known.is_redacted() {
                self.bring_forward(&known, end);
                return Ok(Admission::NotSticky);
            }
            self.forget(&known);
        }
        let admitted = match self.admit(received, &raw, end) {
            Ok(admitted) => admitted,
            Err(admission) => {
                self.note_refused(received, &raw, admission);
                return Ok(admission);
            }
        };
        let is_unproven = encryption.is_unproven();
        let event = self.share(&admitted, &raw, clear.get(), end, encryption).keep(clear);
        if let Some(session_id) = session_id.filter(|_| is_unproven) {
            self.unproven.insert(event.event_id_str().into(), session_id);
        }
        Ok(self.insert(received, &admitted, event))
    }

    /// Takes news about who encrypted an event that was decrypted before. If the news differs from
    /// what was known, the entry is updated.
    pub fn handle_encryption(&mut self, event_id: &EventId, encryption: Encryption) {
        let Some(event) = self.find_event(event_id.as_str()).cloned() else { return };
        let encryption = encryption.of_sender(event.sender());
        if event.kind() == Kind::Unreadable || event.encryption() == encryption {
            return;
        }
        if !encryption.is_unproven() {
            self.unproven.remove(event_id.as_str());
        }
        let copy = event.with_encryption(encryption);
        let known = self.events.find_mut(event.id_hash(), |known| Arc::ptr_eq(known, &event));
        if let Some(known) = known {
            *known = copy.clone();
            self.cells.replace(&event, copy);
            self.touched.push(event.cell());
        }
    }

    /// Returns the encrypted events that miss the key of this session; with `None`, those that miss
    /// any key.
    pub(crate) fn pending(&self, session_id: Option<&str>) -> Vec<Arc<StickyEvent>> {
        self.pending
            .values()
            .filter(|pending| session_id.is_none() || pending.session_id.as_deref() == session_id)
            .map(|pending| pending.event.clone())
            .collect()
    }

    /// Returns the events whose encrypting device is not proven yet, with their sessions.
    #[cfg(any(feature = "e2e-encryption", test))]
    pub(crate) fn unproven(&self) -> Vec<(Arc<StickyEvent>, Box<str>)> {
        let events = self.unproven.iter().filter_map(|(event_id, session_id)| {
            Some((self.find_event(event_id)?.clone(), session_id.clone()))
        });
        events.collect()
    }

    pub(crate) fn unproven_len(&self) -> usize {
        self.unproven.len()
    }

    /// Returns whether decryption can tell something new about this encrypted event. It cannot if the
    /// event is known already, is over, or would be dropped.
    pub(crate) fn needs_decryption(&self, event_id: &EventId, sender: &UserId) -> bool {
        if self.find_event(event_id.as_str()).is_some() {
            return self.pending.contains_key(event_id.as_str());
        }
        let id_hash = self.hash_id(event_id.as_str());
        if self.redacted.contains(id_hash) || self.ended.contains(id_hash) {
            return false;
        }
        // While the quota is full, the map takes only what refreshes one of the sender's keys. An
        // event that was decrypted once and dropped is not one of these. If more were dropped than the
        // map remembers, it decrypts none.
        let Some(refused) = self.full.get(sender).filter(|_| !self.has_room(sender)) else {
            return true;
        };
        !refused.contains(id_hash) && !refused.is_full()
    }

    /// Keeps an event whose inside is malformed, as one that nobody sees. So it counts in its sender's
    /// quota, and is not decrypted again. Returns what became of it, or `None` if it was not known to
    /// be malformed.
    fn keep_malformed(
        &mut self,
        now: Moment,
        raw: &RawSticky<'_>,
        outer: &RawValue,
        end: Deadline,
    ) -> Option<Admission> {
        if let Some(known) = self.find_event(raw.event_id.as_str()).cloned() {
            self.bring_forward(&known, end);
            let waited = self.pending.remove(raw.event_id.as_str()).is_some();
            return (!waited).then_some(Admission::Repeated);
        }
        match self.admit(now, raw, end) {
            Ok(admitted) => {
                let unkept = self.share(&admitted, raw, outer.get(), end, Encryption::Plaintext);
                self.insert(now, &admitted, unkept.keep(outer.to_owned()));
                None
            }
            Err(admission) => {
                self.note_refused(now, raw, admission);
                Some(admission)
            }
        }
    }

    /// Notes that the map dropped a decrypted event, if it did so because of a full quota.
    fn note_refused(&mut self, now: Moment, raw: &RawSticky<'_>, admission: Admission) {
        let id_hash = self.hash_id(raw.event_id.as_str());
        if let Admission::Full { .. } = admission
            && let Some(refused) = self.full.get_mut(raw.sender.as_ref())
        {
            refused.remember(id_hash, now.deadline(REMEMBERED_FOR));
        }
    }
}
