//! The cells of the map, and in each the known events of a key, highest rank first.
//!
//! In: events of that key, and which of them are redacted. Out: which one is the value, and why
//! one that was shown is not any more. No deadlines: whoever owns the cells removes what has ended.

use std::{collections::HashSet, sync::Arc};

use hashbrown::HashTable;
use ruma::OwnedUserId;
use smallvec::SmallVec;

use crate::{
    event::{EntryOrder, Kind, RemovalReason, StickyEvent},
    time::Deadline,
};

/// All cells. Each has a number, by which its events know it and by which it is shown, so that it
/// is looked for once, when an event of its order comes. The numbers are dense: a new one is at most
/// as many as there were at once since there was none.
#[derive(Default)]
pub(super) struct Cells {
    /// In pieces: one list would move them all when it grows, and have up to half of it empty.
    #[expect(clippy::vec_box, reason = "that is what the pieces are for")]
    pieces: Vec<Box<[Cell; PIECE]>>,
    /// How many numbers were given out.
    given: u32,
    /// Those of them that are not in use any more.
    free: Vec<u32>,
    /// Those that are, by the hash of their order.
    by_order: HashTable<u32>,
}

const PIECE: usize = 8;

#[derive(Default)]
pub(super) struct Cell {
    /// What is known, redacted events too, highest rank first. Nearly always one, or that and what
    /// it refreshed; so many take no more room here than the place of a list elsewhere does.
    known: SmallVec<[Arc<StickyEvent>; 2]>,
    /// The value as the last change told it.
    pub(super) shown: Option<Arc<StickyEvent>>,
    /// The hash of its order, half of it: so much of a keyed hash is enough to find it by.
    order_hash: u32,
}

fn at(pieces: &[Box<[Cell; PIECE]>], number: u32) -> Option<&Cell> {
    pieces.get(number as usize / PIECE)?.get(number as usize % PIECE)
}

fn half(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// What the table makes of half a hash: it looks at the lowest and at the highest bits.
fn whole(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

impl Cells {
    /// How many are in use.
    pub(super) fn len(&self) -> usize {
        self.by_order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_order.is_empty()
    }

    /// The cell of this number, if it is in use.
    pub(super) fn get(&self, number: u32) -> Option<&Cell> {
        at(&self.pieces, number).filter(|cell| cell.sample().is_some())
    }

    /// The cell of this number, if it is in use.
    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Cell> {
        self.at_mut(number).filter(|cell| cell.sample().is_some())
    }

    fn at_mut(&mut self, number: u32) -> Option<&mut Cell> {
        self.pieces.get_mut(number as usize / PIECE)?.get_mut(number as usize % PIECE)
    }

    /// The number of the cell of an order, given its hash.
    pub(super) fn find(&self, order_hash: u64, order: &EntryOrder<'_>) -> Option<u32> {
        let is_it = |number: &u32| self.get(*number).is_some_and(|cell| cell.order() == *order);
        self.by_order.find(whole(half(order_hash)), is_it).copied()
    }

    /// The number that the next cell will have.
    pub(super) fn next(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.given)
    }

    /// As if so many numbers had been given out: there is not the time for it.
    #[cfg(test)]
    pub(super) fn give_out(&mut self, numbers: u32) {
        self.given = numbers;
    }

    /// Makes a cell for an order that has none, which has the number that was [`next`](Self::next).
    pub(super) fn add(&mut self, order_hash: u64, event: Arc<StickyEvent>) {
        let order_hash = half(order_hash);
        let number = self.next();
        if self.free.pop().is_none() {
            self.given += 1;
            if self.pieces.len() * PIECE < self.given as usize {
                self.pieces.push(Box::default());
            }
        }
        if let Some(cell) = self.at_mut(number) {
            cell.order_hash = order_hash;
            cell.known.push(event);
        }
        let pieces = &self.pieces;
        let hash = |number: &u32| at(pieces, *number).map_or(0, |cell| whole(cell.order_hash));
        self.by_order.insert_unique(whole(order_hash), number, hash);
    }

    /// Takes an event out of its cell. Whether the value there may be another now.
    pub(super) fn take(&mut self, event: &Arc<StickyEvent>) -> bool {
        let Some(cell) = self.at_mut(event.cell()) else { return false };
        let at = cell.known.iter().position(|known| Arc::ptr_eq(known, event));
        at.is_some_and(|at| cell.take(at).1)
    }

    /// Takes an event out of a cell that has ended by `deadline`, if there is one, and says whether
    /// the value there may be another now.
    pub(super) fn take_ended(
        &mut self,
        number: u32,
        deadline: Deadline,
    ) -> Option<(Arc<StickyEvent>, bool)> {
        let cell = self.at_mut(number)?;
        let at = cell.known.iter().position(|known| known.ends() <= deadline)?;
        Some(cell.take(at))
    }

    /// Puts an event in the place of the one that it is another copy of.
    pub(super) fn replace(&mut self, event: &Arc<StickyEvent>, copy: Arc<StickyEvent>) {
        let Some(cell) = self.at_mut(event.cell()) else { return };
        if let Some(known) = cell.known.iter_mut().find(|known| Arc::ptr_eq(known, event)) {
            *known = copy;
        }
    }

    /// Whether no event of a cell is known any more.
    pub(super) fn is_vacant(&self, number: u32) -> bool {
        at(&self.pieces, number).is_none_or(Cell::is_vacant)
    }

    /// Gives up a cell that has no events, unless it has something shown, whose end must be told.
    pub(super) fn remove_unless_shown(&mut self, number: u32) {
        let Some(cell) = at(&self.pieces, number).filter(|cell| cell.shown.is_none()) else {
            return;
        };
        let Ok(entry) = self.by_order.find_entry(whole(cell.order_hash), |used| *used == number)
        else {
            return;
        };
        entry.remove();
        self.free.push(number);
        if self.by_order.is_empty() {
            *self = Self::default();
        }
    }

    /// Those in use, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Cell)> {
        let cells = self.pieces.iter().flat_map(|piece| piece.iter());
        (0..).zip(cells).filter(|(_, cell)| cell.sample().is_some())
    }
}

impl Cell {
    fn order(&self) -> EntryOrder<'_> {
        self.sample().map_or(EntryOrder::NOWHERE, |event| event.order())
    }

    /// Any event of this cell. A cell has a record, or something shown whose end must still be told;
    /// without either it is not in use.
    pub(super) fn sample(&self) -> Option<&Arc<StickyEvent>> {
        self.known.first().or(self.shown.as_ref())
    }

    /// Whether no event of this cell is known any more.
    pub(super) fn is_vacant(&self) -> bool {
        self.known.is_empty()
    }

    /// Adds an event that is not there yet. Whether it is the highest of those that count.
    pub(super) fn insert(&mut self, event: Arc<StickyEvent>) -> bool {
        let rank = event.rank();
        let at = self.known.partition_point(|known| known.rank() > rank);
        let counts = self.known.iter().take(at).all(|known| known.is_redacted());
        self.known.insert(at, event);
        counts
    }

    /// Takes an event out. Whether the value may be another now.
    fn take(&mut self, at: usize) -> (Arc<StickyEvent>, bool) {
        let event = self.known.remove(at);
        let changes =
            !event.is_redacted() && self.known.iter().take(at).all(|known| known.is_redacted());
        (event, changes)
    }

    /// What is known, highest rank first.
    pub(super) fn known(&self) -> impl Iterator<Item = &Arc<StickyEvent>> {
        self.known.iter()
    }

    /// The event to give up where there are more than `most`: the lowest redacted one, as it only
    /// guards against late copies, else the lowest.
    pub(super) fn excess(&self, most: usize) -> Option<Arc<StickyEvent>> {
        if self.known.len() <= most {
            return None;
        }
        let redacted = self.known.iter().rev().find(|known| known.is_redacted());
        redacted.or(self.known.last()).cloned()
    }

    /// The event that is live under this cell's key, unless that is a tombstone, or nobody knows
    /// yet what it is, or its sender is ignored.
    pub(super) fn value(&self, ignored: &HashSet<OwnedUserId>) -> Option<&Arc<StickyEvent>> {
        let event = self.highest()?;
        (event.kind() == Kind::Value && !ignored.contains(event.sender())).then_some(event)
    }

    /// Why `gone`, which was the value, left and nothing took its place; `None` if it is not known
    /// any more.
    pub(super) fn reason(
        &self,
        gone: &Arc<StickyEvent>,
        ignored: &HashSet<OwnedUserId>,
    ) -> Option<RemovalReason> {
        if ignored.contains(gone.sender()) {
            return Some(RemovalReason::Ignored);
        }
        let known = self.known.iter().find(|known| Arc::ptr_eq(known, gone))?;
        Some(if known.is_redacted() { RemovalReason::Redacted } else { RemovalReason::Removed })
    }

    fn highest(&self) -> Option<&Arc<StickyEvent>> {
        self.known.iter().find(|known| !known.is_redacted())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        map::{EphemeralMap, Limits, ReceivedVia},
        testing::{event, start},
    };

    #[test]
    fn a_piece_is_made_when_all_others_are_full() {
        let mut map = EphemeralMap::new(Limits::default());
        for n in 0..3 * PIECE {
            assert_eq!(map.cells.pieces.len(), n.div_ceil(PIECE));
            let event = event(&format!("${n}")).key(&n.to_string());
            map.handle_event(start(), ReceivedVia::Section, event.raw()).unwrap();
        }
    }

    #[test]
    fn a_table_sees_half_a_hash_at_both_ends() {
        assert_eq!(half(0x1234_5678_9abc_def0), 0x1234_5678);
        assert_eq!(whole(0x1234_5678), 0x1234_5678_1234_5678);
    }
}
