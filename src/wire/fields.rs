//! The fields of an event that count, as the quick and the careful reading fill them.
//!
//! In: values from either reading. Out: the same values, with the unstable name before the stable
//! one. Never: which of them an event must have.

use std::borrow::Cow;

use super::RawContent;

/// A value under two names. If the unstable name is there, it counts, valid or not.
#[derive(Debug, PartialEq)]
pub(super) struct Either<T> {
    pub(super) stable: Option<T>,
    pub(super) unstable: Option<Option<T>>,
}

impl<T> Default for Either<T> {
    fn default() -> Self {
        Self { stable: None, unstable: None }
    }
}

impl<T> Either<T> {
    pub(super) fn value(self) -> Option<T> {
        self.unstable.unwrap_or(self.stable)
    }
}

/// The fields of an event.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Event<'a> {
    pub(super) event_id: Option<Cow<'a, str>>,
    pub(super) sender: Option<Cow<'a, str>>,
    pub(super) event_type: Option<Cow<'a, str>>,
    pub(super) origin_server_ts: Option<u64>,
    pub(super) redacts: Option<Cow<'a, str>>,
    pub(super) sticky: Either<u64>,
    pub(super) content: Content<'a>,
    pub(super) unsigned: Unsigned,
}

/// The fields of a content. `has_more` says that there is a field besides the sticky key.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Content<'a> {
    pub(super) is_object: bool,
    pub(super) sticky_key: Either<Cow<'a, str>>,
    pub(super) has_more: bool,
    pub(super) session_id: Option<Cow<'a, str>>,
    pub(super) redacts: Option<Cow<'a, str>>,
}

impl<'a> Content<'a> {
    pub(super) fn into_clear(self) -> RawContent<'a> {
        let sticky_key = self.sticky_key.value();
        let removal = sticky_key.is_some() && !self.has_more;
        RawContent::Clear { sticky_key, removal }
    }
}

/// The fields of `unsigned`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Unsigned {
    pub(super) remaining: Either<u64>,
    pub(super) redacted: bool,
}
