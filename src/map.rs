//! Map: the ephemeral map of one room ([MSC4354], "Implementing an ephemeral map").
//!
//! In (`handle_..`): raw events, redactions, the list of ignored users, that we left the room, each
//! with the moment. Out (`poll_..`): the changes of what is live. Never: a clock, I/O, a log, a room
//! id, or anything about subscribers.
//!
//! At any moment the map is a pure function of the events that are known and sticky then. The order
//! in which they came, repeats, pages and the way by which they came make no difference. An event is
//! *live* until its end comes. Of the live events of a key, the highest-ranked one is the *value*. A
//! *tombstone*, an event with nothing but the key, is a value that makes the key absent.
//!
//! All memory is bounded for each sender, so that nobody can push out another's events: see
//! [`Limits`].
//!
//! [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354

mod admission;
mod cell;
mod decryption;
mod ends;
mod limits;
mod recent;

use std::{collections::BTreeSet, fmt, hash::BuildHasher, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashMap, HashSet, HashTable};
use ruma::{EventId, OwnedUserId, UserId};
use serde_json::value::RawValue;
use smallvec::SmallVec;

pub use self::{
    admission::{Admission, ReceivedVia},
    limits::{Limits, MAX_OTHERS_PER_KEY, MAX_REDACTIONS},
};
use self::{
    cell::{Cell, Cells},
    decryption::PendingDecryption,
    ends::{EndOf, end_of},
    limits::{MAX_CELLS, REMEMBERED_FOR},
    recent::Recent,
};
use crate::{
    event::{
        Encryption, EntryName, EntryOrder, Given, Kind, RemovalReason, SharedSender, SharedType,
        StickyEvent, StickyKey, Unkept,
    },
    time::{Deadline, Moment},
    wire::{self, Malformed, RawContent, RawSticky, Wire},
};

/// A change of the value of one key.
#[derive(Clone, Debug)]
pub(crate) struct Delta {
    /// The number of the key's cell. It stays the same while the key has a value; then another key
    /// may get it. The numbers are dense.
    pub(crate) cell: u32,
    /// The value until now, if there was one.
    pub(crate) before: Option<Arc<StickyEvent>>,
    /// The value from now on, or why the key has no value any more.
    pub(crate) after: Result<Arc<StickyEvent>, RemovalReason>,
}

/// The ephemeral map of one room.
///
/// This is the map alone, for tests and fuzz targets of it: `handle_..` takes what arrives, and
/// [`entries`](Self::entries) and [`get`](Self::get) read what is live. The changes go to
/// [`EphemeralMaps`](crate::EphemeralMaps), which holds one map for each room and notifies
/// subscribers. Use that to drive your own sync.
pub struct EphemeralMap {
    limits: Limits,
    hasher: DefaultHashBuilder,
    /// What is known under each key. An event without a key has a cell of its own.
    cells: Cells,
    /// Every known event, by its id.
    events: HashTable<Arc<StickyEvent>>,
    /// When to drop each known event: at its end. There is exactly one for each end that a cell has.
    ends: BTreeSet<EndOf>,
    /// The moment from which the ends are counted. It is before all of them.
    epoch: Deadline,
    /// The events that miss their room key, by event id.
    pending: HashMap<Box<str>, PendingDecryption>,
    /// The sessions of events that were decrypted before it was known whose the session is, by event
    /// id.
    unproven: HashMap<Box<str>, Box<str>>,
    /// The senders of known events. A sender's uses are cells with a known event.
    senders: HashSet<SharedSender>,
    /// The senders whose full quota dropped something, each with the dropped events that had been
    /// decrypted. Those are not decrypted again while the quota is full.
    full: HashMap<SharedSender, Recent>,
    /// The types of known events. A type's uses are known events.
    types: HashSet<SharedType>,
    ignored: Arc<std::collections::HashSet<OwnedUserId>>,
    /// Redacted events that are not known. They may still come.
    redacted: Recent,
    /// Events whose end has come. A cached response may deliver one again with more time left, and the
    /// earliest end counts.
    ended: Recent,
    /// The senders with a malformed event that the log has a warning about.
    warned: Recent,
    /// Whether the last malformed event is the first of its sender.
    warns: bool,
    /// The numbers of the cells whose value may have changed since the last `poll_changes`.
    touched: SmallVec<[u32; 4]>,
    dropped: u64,
}

/// An event that the map takes, and where it belongs.
struct Admitted {
    id_hash: u64,
    order_hash: u64,
    /// The number of its cell, if its key has one.
    cell: Option<u32>,
}

impl EphemeralMap {
    /// Makes an empty map.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            hasher: DefaultHashBuilder::default(),
            cells: Cells::default(),
            events: HashTable::new(),
            ends: BTreeSet::new(),
            epoch: Deadline::from_bits(0),
            pending: HashMap::new(),
            unproven: HashMap::new(),
            senders: HashSet::new(),
            full: HashMap::new(),
            types: HashSet::new(),
            ignored: Arc::default(),
            redacted: Recent::new(MAX_REDACTIONS),
            ended: Recent::new(MAX_REDACTIONS),
            warned: Recent::new(MAX_REDACTIONS),
            warns: false,
            touched: SmallVec::new(),
            dropped: 0,
        }
    }

    /// Takes an event as the server sent it, at the moment at which it was received.
    ///
    /// The map keeps an encrypted event until [`handle_decrypted`](Self::handle_decrypted) brings its
    /// content. An event that says that it has been redacted is redacted, and a redaction redacts the
    /// event that it names.
    ///
    /// # Errors
    ///
    /// Returns [`Malformed`] if the event lacks what a sticky event must have. It was dropped, and
    /// nothing else was lost: log it and go on.
    pub fn handle_event(
        &mut self,
        received: Moment,
        via: ReceivedVia,
        text: Box<RawValue>,
    ) -> Result<Admission, Malformed> {
        let Some(raw) = self.read(received, &text)? else {
            return Ok(Admission::NotSticky);
        };
        let end = end_of(received, via, &raw);
        let admitted = match self.admit(received, &raw, end) {
            Ok(admitted) => admitted,
            Err(admission) => return Ok(admission),
        };
        let session_id = match &raw.content {
            RawContent::Encrypted { session_id } => Some(session_id.as_deref().map(Box::from)),
            RawContent::Clear { .. } => None,
        };
        let unkept = self.share(&admitted, &raw, text.get(), end, Encryption::Plaintext);
        let event = unkept.keep(text);
        if let Some(session_id) = session_id {
            let pending = PendingDecryption { session_id, event: event.clone() };
            self.pending.insert(event.event_id_str().into(), pending);
        }
        Ok(self.insert(received, &admitted, event))
    }

    /// Takes the news that an event has been redacted. It is not sticky any more.
    pub fn handle_redaction(&mut self, now: Moment, event_id: &EventId) {
        let Some(event) = self.find_event(event_id.as_str()).cloned() else {
            let id = self.hash_id(event_id.as_str());
            self.redacted.remember(id, now.deadline(REMEMBERED_FOR));
            return;
        };
        // The event stays known until its end, so that a late copy of it does not count.
        event.redact();
        self.pending.remove(event.event_id_str());
        self.touched.push(event.cell());
    }

    /// Takes the whole list of ignored users. Their entries are hidden, not forgotten. When a user is
    /// not ignored any more, those of their entries that are still live show again.
    pub fn handle_ignored(&mut self, ignored: Arc<std::collections::HashSet<OwnedUserId>>) {
        let before = std::mem::replace(&mut self.ignored, ignored);
        for (number, cell) in self.cells.iter() {
            let Some(sender) = cell.sample().map(|event| event.sender()) else { continue };
            if before.contains(sender) != self.ignored.contains(sender) {
                self.touched.push(number);
            }
        }
    }

    /// Takes the news that we are not in the room any more, and forgets all that was known.
    pub(crate) fn handle_left(&mut self) -> Vec<Delta> {
        let left = std::mem::replace(self, Self::new(self.limits));
        self.ignored = left.ignored;
        let mut gone: Vec<_> = left
            .cells
            .iter()
            .filter_map(|(cell, Cell { shown, .. })| {
                let before = Some(shown.clone()?);
                Some(Delta { cell, before, after: Err(RemovalReason::RoomLeft) })
            })
            .collect();
        gone.sort_unstable_by(|a, b| match (&a.before, &b.before) {
            (Some(a), Some(b)) => a.cmp_order(b),
            (a, b) => a.is_some().cmp(&b.is_some()),
        });
        gone
    }

    /// Drops what has ended by now, and returns what changed since the last poll, with at most one
    /// change for each key.
    pub(crate) fn poll_changes(&mut self, now: Moment) -> SmallVec<[Delta; 1]> {
        self.expire(now);
        let mut changes = SmallVec::new();
        for number in std::mem::take(&mut self.touched) {
            if let Some(delta) = self.settle(now, number) {
                changes.push(delta);
            }
        }
        changes
    }

    /// Drops what has ended by now. The changes stay for a later [`poll_changes`](Self::poll_changes).
    pub(crate) fn advance(&mut self, now: Moment) {
        self.expire(now);
    }

    /// Returns when [`poll_changes`](Self::poll_changes) has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Deadline> {
        let mut next = self.ends.first().map(|end| end.deadline(self.epoch));
        for recent in [&self.redacted, &self.ended, &self.warned] {
            let last = recent.last_deadline();
            next = match (next, last) {
                (Some(next), Some(last)) => Some(next.min(last)),
                (next, last) => next.or(last),
            };
        }
        next
    }

    /// Returns the live entries in their order: by type, sender, keyed before unkeyed, and sticky key
    /// or event id. The entries of ignored senders are not among them.
    ///
    /// This collects and sorts.
    pub fn entries(&mut self, now: Moment) -> Vec<Arc<StickyEvent>> {
        self.expire(now);
        let mut entries: Vec<_> =
            self.cells.iter().filter_map(|(_, cell)| cell.value(&self.ignored)).cloned().collect();
        entries.sort_unstable_by(|a, b| a.cmp_order(b));
        entries
    }

    /// Returns the live entry of a key.
    pub fn get(&mut self, now: Moment, key: &StickyKey) -> Option<&Arc<StickyEvent>> {
        self.expire(now);
        let order = EntryOrder {
            event_type: &key.event_type,
            sender: key.sender.as_str(),
            name: EntryName::Keyed(&key.sticky_key),
        };
        let number = self.cells.find(self.hasher.hash_one(order), &order)?;
        self.cells.get(number)?.value(&self.ignored)
    }

    /// Returns whether the last malformed event is the first of its sender within an hour, and so is
    /// worth a warning.
    pub(crate) fn poll_warning(&mut self) -> bool {
        std::mem::take(&mut self.warns)
    }

    /// Returns the number of events that were dropped because their sender's quota was full. See
    /// [`Limits::max_events_per_sender`].
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns the number of known events: values, others of their keys, removals, redacted events,
    /// and events that miss their room key.
    pub fn known(&self) -> usize {
        self.events.len()
    }

    /// Returns the number of events that miss their room key.
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Returns whether this map remembers nothing.
    pub fn is_empty(&self) -> bool {
        let recent = [&self.redacted, &self.ended, &self.warned];
        self.cells.is_empty() && recent.iter().all(|recent| recent.is_empty())
    }

    fn read<'a>(
        &mut self,
        now: Moment,
        event: &'a RawValue,
    ) -> Result<Option<RawSticky<'a>>, Malformed> {
        let wire = match wire::read(event) {
            Ok(wire) => wire,
            Err(malformed) => {
                self.note_malformed(now, event);
                return Err(malformed);
            }
        };
        let (raw, redacts) = match wire {
            Wire::Sticky(mut raw) => {
                let redacts = raw.redacts.take();
                (Some(raw), redacts)
            }
            Wire::Redacted { event_id } => (None, Some(event_id)),
            Wire::NotSticky { redacts } => (None, redacts),
        };
        if let Some(redacted) = redacts {
            self.handle_redaction(now, &redacted);
        }
        Ok(raw)
    }

    /// Decides whether the map takes an event.
    fn admit(
        &mut self,
        now: Moment,
        raw: &RawSticky<'_>,
        end: Deadline,
    ) -> Result<Admitted, Admission> {
        // First drop what has ended, so that it takes no quota from what comes, even before a timer
        // has run.
        self.expire(now);
        let event_id = raw.event_id.as_str();
        let id_hash = self.hash_id(event_id);
        if let Some(known) = self.events.find(id_hash, |event| event.event_id_str() == event_id) {
            let known = known.clone();
            self.bring_forward(&known, end);
            return Err(Admission::Repeated);
        }
        if self.redacted.contains(id_hash) {
            return Err(Admission::NotSticky);
        }
        if end.is_over(now) || self.ended.contains(id_hash) {
            self.ended.remember(id_hash, now.deadline(REMEMBERED_FOR));
            return Err(Admission::NotSticky);
        }

        let order = order_of(raw);
        let order_hash = self.hasher.hash_one(order);
        let cell = self.cells.find(order_hash, &order);
        if cell.is_none() && self.cells.next() >= MAX_CELLS {
            self.dropped += 1;
            return Err(Admission::Full { first: false });
        }
        if cell.is_none_or(|number| self.cells.is_vacant(number))
            && !self.has_room(&raw.sender)
            && let Some(sender) = self.senders.get(raw.sender.as_ref())
        {
            self.dropped += 1;
            let first = !self.full.contains_key(sender);
            if first {
                self.full.insert(sender.clone(), Recent::new(self.limits.max_events_per_sender));
            }
            return Err(Admission::Full { first });
        }
        Ok(Admitted { id_hash, order_hash, cell })
    }

    /// Returns whether a sender's quota is not full.
    fn has_room(&self, sender: &UserId) -> bool {
        let sender = self.senders.get(sender);
        sender.is_none_or(|sender| (sender.uses() as usize) < self.limits.max_events_per_sender)
    }

    fn note_malformed(&mut self, now: Moment, event: &RawValue) {
        let sender = self.hasher.hash_one(wire::sender_of(event));
        self.warns = self.warned.remember(sender, now.deadline(REMEMBERED_FOR));
    }

    /// Makes the event, which shares the texts of its sender and type with the others of the room.
    /// Its use of them counts once it is inserted.
    fn share(
        &mut self,
        admitted: &Admitted,
        raw: &RawSticky<'_>,
        text: &str,
        end: Deadline,
        encryption: Encryption,
    ) -> Unkept {
        // Not from an event that is only shown still: its sender's uses may have ended, and begun
        // anew with another text.
        let known = admitted.cell.and_then(|number| self.cells.get(number)?.known().next());
        let (sender, event_type) = match known {
            Some(event) => (event.shared_sender().clone(), event.shared_type().clone()),
            None => {
                let sender = self.senders.get(raw.sender.as_ref()).cloned();
                let event_type = self.types.get(raw.event_type.as_ref()).cloned();
                (
                    sender.unwrap_or_else(|| raw.sender.as_ref().to_owned().into()),
                    event_type.unwrap_or_else(|| Box::<str>::from(raw.event_type.as_ref()).into()),
                )
            }
        };
        let encryption = encryption.of_sender(&sender);
        let cell = admitted.cell.unwrap_or_else(|| self.cells.next());
        let given = Given { sender, event_type, id_hash: admitted.id_hash, cell };
        Unkept::read(raw, text, given, end, encryption)
    }

    fn insert(&mut self, now: Moment, admitted: &Admitted, event: Arc<StickyEvent>) -> Admission {
        if self.ends.is_empty() {
            self.epoch = now.deadline_ms(0);
        }
        self.ends.insert(EndOf::new(self.epoch, event.ends(), event.cell()));
        self.events.insert_unique(event.id_hash(), event.clone(), |event| event.id_hash());
        if event.shared_type().uses() == 0 {
            self.types.insert(event.shared_type().clone());
        }
        event.shared_type().add_use();

        let cell = admitted.cell.and_then(|number| self.cells.get_mut(number));
        let was_vacant = cell.as_ref().is_none_or(|cell| cell.is_vacant());
        let (is_value, excess) = match cell {
            Some(cell) => {
                let is_value = cell.insert(event.clone());
                (is_value, cell.excess(MAX_OTHERS_PER_KEY + 1))
            }
            None => {
                self.cells.add(admitted.order_hash, event.clone());
                (true, None)
            }
        };
        if was_vacant {
            if event.shared_sender().uses() == 0 {
                self.senders.insert(event.shared_sender().clone());
            }
            event.shared_sender().add_use();
        }
        if is_value {
            self.touched.push(event.cell());
        }
        let Some(excess) = excess else {
            return Admission::Kept;
        };
        let outranked = Arc::ptr_eq(&excess, &event);
        if excess.is_redacted() {
            // The event is not known any more, but its redaction still holds.
            self.redacted.remember(excess.id_hash(), now.deadline(REMEMBERED_FOR));
        }
        self.forget(&excess);
        if outranked { Admission::Outranked } else { Admission::Kept }
    }

    /// Takes the end that another delivery of an event gave. The earliest one counts.
    fn bring_forward(&mut self, event: &StickyEvent, end: Deadline) {
        if end < event.ends() {
            self.forget_end(event);
            event.set_ends(end);
            self.ends.insert(EndOf::new(self.epoch, end, event.cell()));
        }
    }

    /// Drops what has ended.
    fn expire(&mut self, now: Moment) {
        while let Some(end) = self.ends.first().copied()
            && end.deadline(self.epoch).is_over(now)
        {
            self.ends.pop_first();
            let (number, end) = (end.cell(), end.deadline(self.epoch));
            while let Some((event, changes)) = self.cells.take_ended(number, end) {
                self.ended.remember(event.id_hash(), now.deadline(REMEMBERED_FOR));
                self.forget_taken(&event, changes);
            }
        }
        for recent in [&mut self.redacted, &mut self.ended, &mut self.warned] {
            if !recent.is_empty() {
                recent.purge(now);
            }
        }
        if self.touched.len() > 2 * self.cells.len() + 64 {
            self.tidy_touched();
        }
    }

    /// Removes repeats from what is touched, so that a map that is read and never polled does not
    /// grow.
    fn tidy_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched.retain(|number| self.cells.get(*number).is_some());
        self.touched = touched;
    }

    /// Forgets an event.
    fn forget(&mut self, event: &Arc<StickyEvent>) {
        self.forget_end(event);
        let changes = self.cells.take(event);
        self.forget_taken(event, changes);
    }

    /// Removes the end of an event that is still in its cell.
    fn forget_end(&mut self, event: &StickyEvent) {
        let end_of = |event: &StickyEvent| EndOf::new(self.epoch, event.ends(), event.cell());
        let end = end_of(event);
        let mut known = self.cells.get(event.cell()).into_iter().flat_map(Cell::known);
        // Another event of the cell may have the same end, and then the end stays.
        if !known.any(|other| !std::ptr::eq(&**other, event) && end_of(other) == end) {
            self.ends.remove(&end);
        }
    }

    /// Forgets an event that was taken out of its cell. `changes` says whether that may have changed
    /// the cell's value.
    fn forget_taken(&mut self, event: &Arc<StickyEvent>, changes: bool) {
        let known = self.events.find_entry(event.id_hash(), |known| Arc::ptr_eq(known, event));
        if let Ok(entry) = known {
            entry.remove();
        }
        if event.kind() == Kind::Unreadable {
            self.pending.remove(event.event_id_str());
        }
        if !self.unproven.is_empty() {
            self.unproven.remove(event.event_id_str());
        }
        if event.shared_type().end_use() {
            self.types.remove(event.event_type());
        }
        if changes {
            self.touched.push(event.cell());
        }
        if self.cells.is_vacant(event.cell()) {
            self.cells.remove_unless_shown(event.cell());
            if event.shared_sender().end_use() {
                self.senders.remove(event.sender());
                if !self.full.is_empty() {
                    self.full.remove(event.sender());
                }
            }
        }
    }

    /// Compares what a cell showed last with its value, and has it show the value.
    fn settle(&mut self, now: Moment, number: u32) -> Option<Delta> {
        let cell = self.cells.get_mut(number)?;
        let after = cell.value(&self.ignored).cloned();
        let before = std::mem::replace(&mut cell.shown, after.clone());
        let delta = match (&before, after) {
            (None, None) => None,
            (Some(before), Some(after)) if Arc::ptr_eq(before, &after) => None,
            (_, Some(after)) => Some(Delta { cell: number, before, after: Ok(after) }),
            (Some(gone), None) => {
                let fell_out = || {
                    if gone.ends().is_over(now) {
                        RemovalReason::Expired
                    } else if self.redacted.contains(gone.id_hash()) {
                        RemovalReason::Redacted
                    } else {
                        RemovalReason::Removed
                    }
                };
                let reason = cell.reason(gone, &self.ignored).unwrap_or_else(fell_out);
                Some(Delta { cell: number, before, after: Err(reason) })
            }
        };
        if cell.is_vacant() {
            self.cells.remove_unless_shown(number);
        }
        delta
    }

    fn find_event(&self, event_id: &str) -> Option<&Arc<StickyEvent>> {
        self.events.find(self.hash_id(event_id), |event| event.event_id_str() == event_id)
    }

    fn hash_id(&self, event_id: &str) -> u64 {
        self.hasher.hash_one(event_id)
    }
}

impl fmt::Debug for EphemeralMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EphemeralMap")
            .field("known", &self.known())
            .field("pending", &self.pending_len())
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

fn order_of<'a>(raw: &'a RawSticky<'_>) -> EntryOrder<'a> {
    EntryOrder {
        event_type: &raw.event_type,
        sender: raw.sender.as_str(),
        name: match &raw.content {
            RawContent::Clear { sticky_key: Some(key), .. } => EntryName::Keyed(key),
            _ => EntryName::Unkeyed(raw.event_id.as_str()),
        },
    }
}

#[cfg(test)]
mod tests;
