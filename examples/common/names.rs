//! The names by which a screen shows users: the display name if that is clear, else the user id.
//!
//! Users choose their names freely, so a name proves nothing. Two users with the same name are
//! shown with their ids, and so is a name that looks like an id. What a terminal would obey is gone.

use std::collections::{BTreeMap, BTreeSet};

use matrix_sdk::{
    Room,
    ruma::{OwnedUserId, UserId},
};

use crate::terminal::harmless;

/// How many users' names are remembered for a room. Others are shown by their ids.
const MAX_NAMES: usize = 1_000;

/// The display names of one room.
#[derive(Default)]
pub(crate) struct Names {
    names: BTreeMap<OwnedUserId, String>,
    /// Names that more than one user has, as [`compared`].
    shared: BTreeSet<String>,
}

impl Names {
    /// Reads the names of these users anew, from the client's store.
    pub(crate) async fn read(&mut self, room: &Room, users: BTreeSet<OwnedUserId>) {
        let mut names = BTreeMap::new();
        for user in users.into_iter().take(MAX_NAMES) {
            if let Ok(Some(member)) = room.get_member_no_sync(&user).await
                && let Some(name) = member.display_name()
            {
                names.insert(user, name.to_owned());
            }
        }
        self.set(names);
    }

    pub(crate) fn set(&mut self, names: impl IntoIterator<Item = (OwnedUserId, String)>) {
        let cleaned = names.into_iter().map(|(user, name)| (user, harmless(name.trim())));
        self.names = cleaned.filter(|(_, name)| !name.is_empty()).collect();
        let mut seen = BTreeSet::new();
        let compared = self.names.values().map(|name| compared(name));
        self.shared = compared.filter(|name| !seen.insert(name.clone())).collect();
    }

    /// How a user is shown.
    pub(crate) fn of(&self, user: &UserId) -> String {
        let id = harmless(user.as_str());
        match self.names.get(user) {
            None => id,
            Some(name) if name.starts_with('@') || self.shared.contains(&compared(name)) => {
                format!("{name} ({id})")
            }
            Some(name) => name.clone(),
        }
    }
}

/// A name as it is compared with others: what people hardly tell apart is the same.
fn compared(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use matrix_sdk::ruma::user_id;

    use super::*;

    #[test]
    fn equal_names_are_shown_with_ids() {
        let [a, b, c] = [user_id!("@a:hs"), user_id!("@b:hs"), user_id!("@c:hs")];
        let mut names = Names::default();
        assert_eq!(names.of(a), "@a:hs");
        names.set([(a.to_owned(), "Ann".to_owned()), (b.to_owned(), "Bob".to_owned())]);
        assert_eq!((&*names.of(a), &*names.of(b), &*names.of(c)), ("Ann", "Bob", "@c:hs"));
        names.set([(a.to_owned(), "Ann  Lee".to_owned()), (b.to_owned(), " ann lee".to_owned())]);
        assert_eq!((&*names.of(a), &*names.of(b)), ("Ann  Lee (@a:hs)", "ann lee (@b:hs)"));
    }

    #[test]
    fn hostile_names_are_neutralised() {
        let mallory = user_id!("@mallory:hs");
        let mut names = Names::default();
        names.set([(mallory.to_owned(), "@a:hs".to_owned())]);
        assert_eq!(names.of(mallory), "@a:hs (@mallory:hs)");
        names.set([(mallory.to_owned(), "\u{1b}[2J\u{202e}".to_owned())]);
        assert_eq!(names.of(mallory), "\u{fffd}[2J\u{fffd}");
        names.set([(mallory.to_owned(), "  ".to_owned())]);
        assert_eq!(names.of(mallory), "@mallory:hs");
    }
}
