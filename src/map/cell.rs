//! The cells of the map. Each holds the known events of a key, the highest rank first.
//!
//! In: events of that key, and which of them are redacted. Out: which one is the value, and why one
//! that was shown is not any more. Never: a deadline. The map, which owns the cells, removes what has
//! ended.

use std::{collections::HashSet, sync::Arc};

use hashbrown::HashTable;
use ruma::OwnedUserId;
use smallvec::SmallVec;

use crate::{
    event::{EntryOrder, Kind, RemovalReason, StickyEvent},
    time::Deadline,
};

/// All cells.
///
/// Each cell has a number, by which its events know it and by which it is shown. So a cell is looked
/// up only once, when an event comes. Numbers are reused, so the largest one is bounded by the most
/// cells that ever existed at once, since there were none.
#[derive(Default)]
pub(super) struct Cells {
    /// The cells, in pieces. Why not one list? It would move all cells when it grows, and up to half of
    /// it would be empty.
    #[expect(clippy::vec_box, reason = "pieces do not move when the list of them grows")]
    pieces: Vec<Box<[Cell; PIECE]>>,
    /// The number of numbers that were given out.
    given: u32,
    /// The numbers that are not in use any more.
    free: Vec<u32>,
    /// The numbers that are in use, by the hash of their entry order.
    by_order: HashTable<u32>,
}

const PIECE: usize = 8;

#[derive(Default)]
pub(super) struct Cell {
    /// The known events, redacted ones too, the highest rank first. There is nearly always one, or two
    /// after a refresh. Two take no more room here than a pointer to a list elsewhere would.
    known: SmallVec<[Arc<StickyEvent>; 2]>,
    /// The value as of the last change.
    pub(super) shown: Option<Arc<StickyEvent>>,
    /// One half of the hash of its entry order. Half of a keyed hash is enough to find a cell by.
    order_hash: u32,
}

fn at(pieces: &[Box<[Cell; PIECE]>], number: u32) -> Option<&Cell> {
    pieces.get(number as usize / PIECE)?.get(number as usize % PIECE)
}

fn half(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Makes a whole hash of half a one, as the table looks at both the lowest and the highest bits.
fn whole(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

impl Cells {
    /// Returns the number of cells in use.
    pub(super) fn len(&self) -> usize {
        self.by_order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_order.is_empty()
    }

    /// Returns the cell of this number, if it is in use.
    pub(super) fn get(&self, number: u32) -> Option<&Cell> {
        at(&self.pieces, number).filter(|cell| cell.sample().is_some())
    }

    /// Returns the cell of this number, if it is in use.
    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Cell> {
        self.at_mut(number).filter(|cell| cell.sample().is_some())
    }

    fn at_mut(&mut self, number: u32) -> Option<&mut Cell> {
        self.pieces.get_mut(number as usize / PIECE)?.get_mut(number as usize % PIECE)
    }

    /// Returns the number of the cell of an entry order, given the order's hash.
    pub(super) fn find(&self, order_hash: u64, order: &EntryOrder<'_>) -> Option<u32> {
        let is_it = |number: &u32| self.get(*number).is_some_and(|cell| cell.order() == *order);
        self.by_order.find(whole(half(order_hash)), is_it).copied()
    }

    /// Returns the number that the next cell will have.
    pub(super) fn next(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.given)
    }

    /// Acts as if this many numbers had been given out. A test has no time to do it.
    #[cfg(test)]
    pub(super) fn give_out(&mut self, numbers: u32) {
        self.given = numbers;
    }

    /// Makes a cell for an entry order that has none. Its number is the one that
    /// [`next`](Self::next) returned.
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

    /// Takes an event out of its cell. Returns whether the cell's value may be another now.
    pub(super) fn take(&mut self, event: &Arc<StickyEvent>) -> bool {
        let Some(cell) = self.at_mut(event.cell()) else { return false };
        let at = cell.known.iter().position(|known| Arc::ptr_eq(known, event));
        at.is_some_and(|at| cell.take(at).1)
    }

    /// Takes an event that has ended by `deadline` out of a cell, if there is one. Returns the event,
    /// and whether the cell's value may be another now.
    pub(super) fn take_ended(
        &mut self,
        number: u32,
        deadline: Deadline,
    ) -> Option<(Arc<StickyEvent>, bool)> {
        let cell = self.at_mut(number)?;
        let at = cell.known.iter().position(|known| known.ends() <= deadline)?;
        Some(cell.take(at))
    }

    /// Replaces an event by another copy of it.
    pub(super) fn replace(&mut self, event: &Arc<StickyEvent>, copy: Arc<StickyEvent>) {
        let Some(cell) = self.at_mut(event.cell()) else { return };
        if let Some(known) = cell.known.iter_mut().find(|known| Arc::ptr_eq(known, event)) {
            *known = copy;
        }
    }

    /// Returns whether no event of a cell is known any more.
    pub(super) fn is_vacant(&self, number: u32) -> bool {
        at(&self.pieces, number).is_none_or(Cell::is_vacant)
    }

    /// Gives up a cell that has no events, unless it shows one, whose end must still be told.
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

    /// Returns the cells in use, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Cell)> {
        let cells = self.pieces.iter().flat_map(|piece| piece.iter());
        (0..).zip(cells).filter(|(_, cell)| cell.sample().is_some())
    }
}

impl Cell {
    fn order(&self) -> EntryOrder<'_> {
        self.sample().map_or(EntryOrder::NOWHERE, |event| event.order())
    }

    /// Returns any event of this cell. A cell in use knows an event, or shows one whose end must still
    /// be told.
    pub(super) fn sample(&self) -> Option<&Arc<StickyEvent>> {
        self.known.first().or(self.shown.as_ref())
    }

    /// Returns whether no event of this cell is known any more.
    pub(super) fn is_vacant(&self) -> bool {
        self.known.is_empty()
    }

    /// Adds an event that is not there yet. Returns whether it ranks highest among those that are not
    /// redacted.
    pub(super) fn insert(&mut self, event: Arc<StickyEvent>) -> bool {
        let rank = event.rank();
        let at = self.known.partition_point(|known| known.rank() > rank);
        let counts = self.known.iter().take(at).all(|known| known.is_redacted());
        self.known.insert(at, event);
        counts
    }

    /// Takes an event out. Returns it, and whether the value may be another now.
    fn take(&mut self, at: usize) -> (Arc<StickyEvent>, bool) {
        let event = self.known.remove(at);
        let changes =
            !event.is_redacted() && self.known.iter().take(at).all(|known| known.is_redacted());
        (event, changes)
    }

    /// Returns the known events, the highest rank first.
    pub(super) fn known(&self) -> impl Iterator<Item = &Arc<StickyEvent>> {
        self.known.iter()
    }

    /// Returns the event to give up if there are more than `most`: the lowest redacted one, because it
    /// only guards against late copies, else the lowest one.
    pub(super) fn excess(&self, most: usize) -> Option<Arc<StickyEvent>> {
        if self.known.len() <= most {
            return None;
        }
        let redacted = self.known.iter().rev().find(|known| known.is_redacted());
        redacted.or(self.known.last()).cloned()
    }

    /// Returns the value that this cell shows. The cell shows nothing if the highest-ranked event is
    /// a tombstone or not decrypted, or if its sender is ignored.
    pub(super) fn value(&self, ignored: &HashSet<OwnedUserId>) -> Option<&Arc<StickyEvent>> {
        let event = self.highest()?;
        (event.kind() == Kind::Value && !ignored.contains(event.sender())).then_some(event)
    }

    /// Returns why `gone`, which was the value, left without a successor; `None` if the event is not
    /// known any more.
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
    fn a_piece_follows_a_full_piece() {
        let mut map = EphemeralMap::new(Limits::default());
        for n in 0..3 * PIECE {
            assert_eq!(map.cells.pieces.len(), n.div_ceil(PIECE));
            let event = event(&format!("${n}")).key(&n.to_string());
            map.handle_event(start(), ReceivedVia::Section, event.raw()).unwrap();
        }
    }

    #[test]
    fn half_a_hash_stands_at_both_ends() {
        assert_eq!(half(0x1234_5678_9abc_def0), 0x1234_5678);
        assert_eq!(whole(0x1234_5678), 0x1234_5678_1234_5678);
    }
}
