//! The quick reading of an event: one pass over its bytes, eight at a time where a string is long.
//!
//! In: an event's text, which is JSON because a `RawValue` holds it. Out: the fields of the event, or
//! `None` as soon as the text has something that servers rarely send: an escape in a name or in a
//! value that counts, or a number that is not natural. `None` says nothing about the event: the
//! careful reading, with serde_json, has the last word. Both agree wherever this one has a result.
//!
//! Why not simply serde_json alone? Its quickest way takes 1.3 times its own scan, most of it for what
//! is skipped. With what the map does, that is over 2, and our goal is 1.5 (`benches/README.md`). Why
//! not a faster library? Those that skip quickly are SIMD code with much `unsafe`. They would face
//! hostile input, in a part of the crate that has no `unsafe`.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{
    fields::{Content, Event, Unsigned},
    names,
};

/// Reads an ordinary event. If it is not an ordinary one, `event` keeps what was read until then.
pub(super) fn read<'a>(raw: &'a RawValue, event: &mut Event<'a>) -> Option<()> {
    let text = raw.get();
    let mut reader = Reader { text, rest: text.as_bytes() };
    reader.object(|reader, name| {
        match name {
            b"event_id" => event.event_id = reader.text()?,
            b"sender" => event.sender = reader.text()?,
            b"type" => event.event_type = reader.text()?,
            b"origin_server_ts" => event.origin_server_ts = Some(reader.natural()?),
            b"redacts" => event.redacts = reader.text()?,
            b"content" => event.content = reader.content()?,
            b"unsigned" => event.unsigned = reader.unsigned()?,
            name if is(name, names::STICKY[0]) => event.sticky.stable = reader.sticky()?,
            name if is(name, names::STICKY[1]) => event.sticky.unstable = Some(reader.sticky()?),
            _ => reader.skip()?,
        }
        Some(())
    })
}

fn is(name: &[u8], known: &str) -> bool {
    name == known.as_bytes()
}

struct Reader<'a> {
    text: &'a str,
    /// The bytes that have not been read.
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn content(&mut self) -> Option<Content<'a>> {
        let mut content = Content::default();
        content.is_object = self.if_object(|reader, name| {
            if is(name, names::STICKY_KEY[0]) {
                content.sticky_key.stable = reader.text()?;
                return Some(());
            }
            if is(name, names::STICKY_KEY[1]) {
                content.sticky_key.unstable = Some(reader.text()?);
                return Some(());
            }
            content.has_more = true;
            match name {
                b"session_id" => content.session_id = reader.text()?,
                b"redacts" => content.redacts = reader.text()?,
                _ => reader.skip()?,
            }
            Some(())
        })?;
        Some(content)
    }

    fn unsigned(&mut self) -> Option<Unsigned> {
        let mut unsigned = Unsigned::default();
        self.if_object(|reader, name| {
            if is(name, names::REMAINING[0]) {
                unsigned.remaining.stable = Some(reader.natural()?);
            } else if is(name, names::REMAINING[1]) {
                unsigned.remaining.unstable = Some(Some(reader.natural()?));
            } else if name == b"redacted_because" {
                unsigned.redacted = reader.peek()? == b'{';
                reader.skip_odd()?;
            } else {
                reader.skip()?;
            }
            Some(())
        })?;
        Some(unsigned)
    }

    fn sticky(&mut self) -> Option<Option<u64>> {
        let mut duration_ms = None;
        self.if_object(|reader, name| {
            match name {
                b"duration_ms" => duration_ms = Some(reader.natural()?),
                _ => reader.skip()?,
            }
            Some(())
        })?;
        Some(duration_ms)
    }

    /// Reads a string. A value of another kind gives `Some(None)`.
    fn text(&mut self) -> Option<Option<Cow<'a, str>>> {
        if self.peek()? != b'"' {
            self.skip_odd()?;
            return Some(None);
        }
        self.take(b'"')?;
        let start = self.text.len() - self.rest.len();
        let length = self.plain()?.len();
        let text = self.text.get(start..start + length)?;
        Some(Some(Cow::Borrowed(text)))
    }

    /// Reads a natural number of 1 to 19 digits. If a fraction or an exponent follows, the object gives
    /// up, because it finds no end of the member there.
    fn natural(&mut self) -> Option<u64> {
        self.peek()?;
        let before = self.rest.len();
        let mut number = 0_u64;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.rest {
            number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.rest = rest;
        }
        matches!(before - self.rest.len(), 1..=19).then_some(number)
    }

    /// Reads the members of an object, or passes over a value of another kind. Returns whether it was
    /// an object.
    fn if_object(&mut self, member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<bool> {
        if self.peek()? == b'{' {
            self.object(member)?;
            return Some(true);
        }
        self.skip_odd()?;
        Some(false)
    }

    fn object(&mut self, mut member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.peek()? == b'}' {
            return self.take(b'}');
        }
        loop {
            let name = self.name()?;
            member(self, name)?;
            match self.next()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Reads the name of a member, and the colon.
    #[inline]
    fn name(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let name = self.plain()?;
        self.take(b':')?;
        Some(name)
    }

    /// Passes over a value of an unexpected kind. It leaves numbers, and strings with escapes, to the
    /// careful reading: there it matters how large the former are, and whether the latter are Unicode.
    fn skip_odd(&mut self) -> Option<()> {
        match self.peek()? {
            b'-' | b'0'..=b'9' => None,
            b'"' => {
                self.take(b'"')?;
                self.plain().map(drop)
            }
            _ => self.skip(),
        }
    }

    /// Passes over a value. It is JSON, so only strings and brackets matter.
    fn skip(&mut self) -> Option<()> {
        let mut rest = self.rest;
        let mut open = 0_usize;
        loop {
            let [byte, after @ ..] = rest else {
                return None;
            };
            rest = after;
            match byte {
                b'"' => rest = behind_string(rest)?,
                b'{' | b'[' => open += 1,
                b'}' | b']' => open = open.checked_sub(1)?,
                b',' | b':' | ..=b' ' => continue,
                _ => rest = behind_word(rest),
            }
            if open == 0 {
                self.rest = rest;
                return Some(());
            }
        }
    }

    /// Reads from behind the quote that begins a string to behind the one that ends it. Returns `None`
    /// at an escape, and at a byte that a string may not contain.
    fn plain(&mut self) -> Option<&'a [u8]> {
        let (plain, rest) = self.rest.split_at_checked(ordinary(self.rest))?;
        self.rest = rest;
        self.rest = rest.strip_prefix(b"\"")?;
        Some(plain)
    }

    /// Returns the next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        match self.rest {
            [byte @ b'!'..=u8::MAX, ..] => Some(*byte),
            _ => self.peek_on(),
        }
    }

    /// Skips white space first. Servers send none.
    #[cold]
    fn peek_on(&mut self) -> Option<u8> {
        while let [b' ' | b'\n' | b'\t' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
        self.rest.first().copied()
    }

    /// Takes the next byte that is not white space.
    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.rest = self.rest.get(1..)?;
        Some(byte)
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }
}

/// Returns what comes after a string, given what comes after the quote that begins it.
fn behind_string(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        match rest.get(ordinary(rest)..)? {
            [b'"', rest @ ..] => return Some(rest),
            // The escaped byte may be a quote.
            [b'\\', _, after @ ..] => rest = after,
            _ => return None,
        }
    }
}

/// Returns what comes after a number, `true`, `false` or `null`, given what comes after its first byte.
fn behind_word(mut rest: &[u8]) -> &[u8] {
    while let [b'a'..=b'z' | b'0'..=b'9' | b'.' | b'+' | b'-' | b'E', after @ ..] = rest {
        rest = after;
    }
    rest
}

/// Returns the number of bytes before the first quote, backslash or control character.
fn ordinary(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const TOPS: u64 = ONES << 7;
    let mut rest = bytes;
    while let Some((eight, after)) = rest.split_first_chunk() {
        let eight = u64::from_le_bytes(*eight);
        // The lowest byte whose top bit is set here is one of them. The bytes above it may be
        // anything. With its second bit turned over, a quote comes right after the control
        // characters, and nothing else comes between.
        let quote_or_control = (eight ^ (ONES * 2)).wrapping_sub(ONES * 0x21);
        let backslash = (eight ^ (ONES * b'\\' as u64)).wrapping_sub(ONES);
        let found = (quote_or_control | backslash) & !eight & TOPS;
        if found != 0 {
            return bytes.len() - rest.len() + found.trailing_zeros() as usize / 8;
        }
        rest = after;
    }
    let tail = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20));
    bytes.len() - rest.len() + tail.unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::{
        testing::{event, raw},
        wire::careful,
    };

    /// Returns whether the quick reading has a result. It must be that of the careful reading.
    fn answers(text: &str) -> bool {
        let raw = raw(text);
        let mut event = Event::default();
        if read(&raw, &mut event).is_none() {
            return false;
        }
        assert_eq!(event, careful::read(raw.get()).expect("an answer for both"), "{text}");
        true
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Plain,
        Escaped,
        Natural,
        OtherNumber,
        Word,
        Nested,
        NestedEscapedName,
    }

    const VALUES: &[(Kind, &[&str])] = &[
        (
            Kind::Plain,
            &[r#""""#, r#""a""#, r#""a text {[ of, more:than ]} eight bytes""#, r#""ü€😀""#],
        ),
        (Kind::Escaped, &[r#""\"""#, r#""a\\""#, r#""more than eight \u0062ytes""#, r#""\ud800""#]),
        (Kind::Natural, &["0", "7", "1700000000000", "9999999999999999999"]),
        (
            Kind::OtherNumber,
            &[
                "-1",
                "-0",
                "0.0",
                "1.5",
                "1e3",
                "1E+3",
                "1e999",
                "10000000000000000000",
                "18446744073709551616",
            ],
        ),
        (Kind::Word, &["true", "false", "null"]),
        (
            Kind::Nested,
            &[
                "{}",
                "[]",
                "[1e999,-1.5E+7]",
                r#"["]",["}"],{"\"]}":[{}]}]"#,
                r#"{"a":{"b":"\\"},"c":1}"#,
                r#"[{"\ud800":"\udfff"}]"#,
            ],
        ),
        (Kind::NestedEscapedName, &[r#"{"\u0061":{}}"#, r#"{"a":1,"\ud800":[]}"#]),
    ];

    /// Where a value stands (`@`), and the kinds of values at which the quick reading gives up.
    const PLACES: &[(&[&str], &[Kind])] = &[
        (
            &[
                r#"{"event_id":@}"#,
                r#"{"sender":@}"#,
                r#"{"type":@}"#,
                r#"{"redacts":@}"#,
                r#"{"content":{"sticky_key":@}}"#,
                r#"{"content":{"msc4354_sticky_key":@}}"#,
                r#"{"content":{"session_id":@}}"#,
                r#"{"content":{"redacts":@}}"#,
                r#"{"unsigned":{"redacted_because":@}}"#,
            ],
            &[Kind::Escaped, Kind::Natural, Kind::OtherNumber],
        ),
        (
            &[
                r#"{"origin_server_ts":@}"#,
                r#"{"sticky":{"duration_ms":@}}"#,
                r#"{"msc4354_sticky":{"duration_ms":@}}"#,
                r#"{"unsigned":{"sticky_duration_remaining_ms":@}}"#,
                r#"{"unsigned":{"msc4354_sticky_duration_ttl_ms":@}}"#,
            ],
            &[
                Kind::Plain,
                Kind::Escaped,
                Kind::OtherNumber,
                Kind::Word,
                Kind::Nested,
                Kind::NestedEscapedName,
            ],
        ),
        (
            &[
                r#"{"content":@}"#,
                r#"{"unsigned":@}"#,
                r#"{"sticky":@}"#,
                r#"{"msc4354_sticky":@}"#,
            ],
            &[Kind::Escaped, Kind::Natural, Kind::OtherNumber, Kind::NestedEscapedName],
        ),
        (
            &[
                r#"{"room_id":@}"#,
                r#"{"":@}"#,
                r#"{"content":{"body":@}}"#,
                r#"{"sticky":{"more":@}}"#,
                r#"{"unsigned":{"age":@}}"#,
            ],
            &[],
        ),
    ];

    #[test]
    fn both_readings_agree_wherever_a_value_stands() {
        for (templates, refused) in PLACES {
            for (kind, values) in VALUES {
                for (template, value) in templates
                    .iter()
                    .flat_map(|template| values.iter().map(move |value| (template, value)))
                {
                    // Spaces, and a member behind it: reading must go on at the right place.
                    for (value, behind) in [
                        ((*value).to_owned(), ""),
                        (format!(" {value}\n"), ""),
                        ((*value).to_owned(), r#","event_id":"$behind""#),
                        ((*value).to_owned(), r#","content":{"sticky_key":"behind"}"#),
                    ] {
                        let text = template.replace('@', &value);
                        let text = format!("{}{behind}}}", &text[..text.len() - 1]);
                        assert_eq!(answers(&text), !refused.contains(kind), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn both_readings_agree_however_an_event_is_spelled() {
        for (text, quickly) in [
            (event("$a").text().as_str(), true),
            ("{}", true),
            (" { } ", true),
            (
                "\t{\r\n \"type\" : \"t\" , \"content\" : { \"sticky_key\" : \"k\" , \"a\" : 1 } }\n",
                true,
            ),
            // Texts that are not an event.
            ("5", false),
            ("[]", false),
            (r#""type""#, false),
            (r#"[{"type":"t"}]"#, false),
            // Names with an escape: of the event, of an object that is read, of one that is not.
            (r#"{"t\u0079pe":"t"}"#, false),
            (r#"{"\"":1}"#, false),
            (r#"{"type":"t","\ud800":1}"#, false),
            (r#"{"content":{"sticky\u005fkey":"k"}}"#, false),
            (r#"{"sticky":{"\\":1}}"#, false),
            (r#"{"unsigned":{"\n":1}}"#, false),
            (r#"{"prev_content":{"\n":1},"type":"t"}"#, true),
            // The last of a name counts, whatever it is.
            (r#"{"type":"a","type":"b"}"#, true),
            (r#"{"type":"a","type":null}"#, true),
            (r#"{"content":{"sticky_key":"k"},"content":[]}"#, true),
            (r#"{"content":{"msc4354_sticky_key":"k","msc4354_sticky_key":{}}}"#, true),
            (r#"{"sticky":{"duration_ms":1,"duration_ms":2}}"#, true),
            (r#"{"msc4354_sticky":{"duration_ms":1},"msc4354_sticky":{}}"#, true),
            (r#"{"unsigned":{"redacted_because":{}},"unsigned":{}}"#, true),
            (r#"{"unsigned":{"redacted_because":{},"redacted_because":[]}}"#, true),
            // Names that are nearly ours.
            (r#"{"Type":"t","types":"t","typ":"t","":"t"}"#, true),
            (r#"{"content":{"STICKY_KEY":"k","sticky_key ":"k"}}"#, true),
        ] {
            assert_eq!(answers(text), quickly, "{text}");
        }
    }

    #[test]
    fn both_readings_agree_on_strings_of_any_length() {
        for length in 0..40 {
            let text = "x".repeat(length);
            assert!(answers(&format!(r#"{{"{text}":1,"body":"{text}","type":"{text}"}}"#)));
            assert!(answers(&format!(r#"{{"body":"{text}\"{text}\\","type":"{text}"}}"#)));
            assert!(!answers(&format!(r#"{{"type":"{text}\"{text}"}}"#)));
        }
    }

    #[test]
    fn what_is_ordinary_is_told_byte_by_byte() {
        let is_special = |byte| matches!(byte, b'"' | b'\\' | ..0x20);
        // At the edges of what is special, with the top bit set too: what the sums carry or borrow.
        let edges =
            [0, 1, 0x1f, b' ', b'!', b'"', b'#', b'[', b'\\', b']', 0x7f, 0x80, 0xa2, 0xdc, 0xff];
        for length in [0, 1, 7, 8, 9, 15, 16, 20] {
            for filler in edges {
                for at in 0..length {
                    for byte in 0..=u8::MAX {
                        let mut bytes = vec![filler; length];
                        bytes[at] = byte;
                        let plain = bytes.iter().position(|byte| is_special(*byte));
                        assert_eq!(ordinary(&bytes), plain.unwrap_or(length), "{bytes:x?}");
                    }
                }
            }
        }
    }
}
