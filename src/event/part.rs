//! Where an event's text holds a string, so that the string is not kept twice.

/// Where a string stands in the event's text. Its length is 0 if the string is empty or if the JSON
/// spells it with escapes; then it stands [`Beside`] the text.
#[derive(Clone, Copy)]
pub(super) struct Part {
    start: u32,
    len: u32,
}

/// Strings that the event's text spells with escapes, or that are empty.
pub(super) struct Beside {
    pub(super) event_id: Box<str>,
    pub(super) sticky_key: Box<str>,
}

impl Part {
    const BESIDE: Self = Self { start: 0, len: 0 };

    /// There is no string. No text is so long that an empty string stands there.
    pub(super) const NONE: Self = Self { start: u32::MAX, len: 0 };

    pub(super) fn is_absent(self) -> bool {
        self.start == Self::NONE.start && self.len == Self::NONE.len
    }

    pub(super) fn is_beside(self) -> bool {
        self.len == 0 && !self.is_absent()
    }

    pub(super) fn of(part: &str, text: &str) -> Self {
        // If the part is a slice of the text, the difference of their addresses is its offset.
        let start = (part.as_ptr() as usize).wrapping_sub(text.as_ptr() as usize);
        if text.get(start..).is_some_and(|rest| rest.starts_with(part))
            && let (Ok(start), Ok(len)) = (u32::try_from(start), u32::try_from(part.len()))
        {
            return Self { start, len };
        }
        Self::BESIDE
    }

    pub(super) fn get<'a>(self, text: &'a str, beside: Option<&'a str>) -> &'a str {
        if self.len == 0 {
            return beside.unwrap_or_default();
        }
        let start = self.start as usize;
        text.get(start..start + self.len as usize).unwrap_or_default()
    }
}
