//! Client table: what this crate keeps for each matrix-sdk client.
//!
//! In: a client. Out: the value that belongs to it and to all its clones. Never: keeping a value, or
//! a client, alive.
//!
//! Why a table of the process, and not a place in the client? matrix-sdk's `Client` has no place
//! for values of others.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use matrix_sdk::Client;

/// One value for each client, found as long as somebody else holds the value.
///
/// A value must hold its client, or must not outlive it. Otherwise another client could be
/// allocated at the same address, and would find the value.
pub(crate) struct ClientTable<T>(HashMap<usize, Weak<T>>);

impl<T> Default for ClientTable<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ClientTable<T> {
    /// Returns the client's value, if somebody still holds it.
    pub(crate) fn find(&self, client: &Client) -> Option<Arc<T>> {
        self.0.get(&identity(client))?.upgrade()
    }

    /// Adds a value for a client, and forgets the values that nobody holds.
    pub(crate) fn insert(&mut self, client: &Client, value: &Arc<T>) {
        self.0.retain(|_, value| value.strong_count() > 0);
        self.0.insert(identity(client), Arc::downgrade(value));
    }
}

/// Returns what all clones of a client share, and no other client of this process has: the address
/// of a part of it.
fn identity(client: &Client) -> usize {
    std::ptr::from_ref(client.event_cache()).addr()
}
