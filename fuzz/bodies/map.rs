//! The body of the target `map`: operations, decoded from bytes, against the reference model.
//!
//! Each choice is one byte, counted from the first of its range (a duration drawn at random takes
//! more). Bytes that ran out are zeros. So inputs can be written by hand, and libFuzzer changes one
//! choice at a time.

use arbitrary::{Result, Unstructured};
use matrix_sdk_sticky::map::ReceivedVia;

#[path = "../../tests/model/run.rs"]
mod run;

use self::run::{Arrive, EVENTS, HOUR, MINUTE, Run, Spec, Step, ToldBy, Ttl};

/// The most steps of one input: each compares everything.
const STEPS: usize = 40;

/// Panics if the maps and views differ from the model.
pub(crate) fn run(data: &[u8]) {
    let Ok((specs, steps, seed)) = scenario(&mut Unstructured::new(data)) else {
        return;
    };
    Run::play(specs, &steps, seed);
}

fn scenario(u: &mut Unstructured<'_>) -> Result<(Vec<Spec>, Vec<Step>, u64)> {
    let seed = u.arbitrary::<u8>()?.into();
    let specs = (0..u.int_in_range(1..=EVENTS)?).map(|_| spec(u)).collect::<Result<_>>()?;
    let mut steps = Vec::new();
    while !u.is_empty() && steps.len() < STEPS {
        steps.push(step(u)?);
    }
    Ok((specs, steps, seed))
}

fn spec(u: &mut Unstructured<'_>) -> Result<Spec> {
    let sender = u.int_in_range(0..=1)?;
    let event_type = u.int_in_range(0..=1)?;
    let key = *u.choose(&[Some(0), Some(1), None])?;
    let kind = u.int_in_range(0..=3)?;
    let sent = i64::from(u.int_in_range(0..=119_u8)?);
    let duration_ms = *u.choose(&[
        Some(HOUR),
        Some(0),
        Some(MINUTE),
        Some(10 * MINUTE),
        Some(2 * HOUR),
        Some(u64::MAX),
        None,
    ])?;
    Ok(Spec {
        sender,
        event_type,
        key,
        removal: kind & 1 != 0 && key.is_some(),
        encrypted: kind & 2 != 0,
        sent: if sent < 60 { sent } else { 59 - sent },
        duration_ms,
    })
}

fn step(u: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match u.int_in_range(0..=11)? {
        0..=4 => Step::Response {
            arrivals: (0..u.int_in_range(1..=4)?).map(|_| arrive(u)).collect::<Result<_>>()?,
            lag_ms: *u.choose(&[0, 0, 1, 2_000])?,
        },
        5 => {
            let who = u.int_in_range(0..=3_u8)?;
            Step::Ignore((0..2).filter(|user| who >> user & 1 != 0).collect())
        }
        6 => Step::Leave,
        7 => Step::Pass(match u.int_in_range(0..=4)? {
            0 => MINUTE,
            1 => 1,
            2 => 10 * MINUTE,
            3 => HOUR,
            _ => u.int_in_range(0..=HOUR)?,
        }),
        8 => Step::Timer,
        9 => Step::PollLazy,
        10 => Step::PollList,
        _ => Step::Others(u.arbitrary::<u8>()?.into()),
    })
}

fn arrive(u: &mut Unstructured<'_>) -> Result<Arrive> {
    let event = u.int_in_range(0..=EVENTS - 1)?;
    let told_by = match u.int_in_range(0..=9)? {
        0..=6 => {
            return Ok(Arrive::Event {
                event,
                via: *u.choose(&[
                    ReceivedVia::Section,
                    ReceivedVia::Section,
                    ReceivedVia::Timeline,
                ])?,
                ttl: ttl(u)?,
                decrypted: u.int_in_range(0..=1)? != 0,
            });
        }
        7 => ToldBy::MainLoop,
        8 => ToldBy::RedactionEvent,
        _ => ToldBy::RedactedCopy,
    };
    Ok(Arrive::Redaction { event, told_by })
}

fn ttl(u: &mut Unstructured<'_>) -> Result<Ttl> {
    Ok(match u.int_in_range(0..=8)? {
        0 => Ttl::Ms(HOUR),
        1 => Ttl::Absent,
        2 => Ttl::Odd,
        3 => Ttl::Ms(0),
        4 => Ttl::Ms(1),
        5 => Ttl::Ms(MINUTE),
        6 => Ttl::Ms(10 * MINUTE),
        7 => Ttl::Ms(2 * HOUR),
        _ => Ttl::Ms(u.int_in_range(0..=HOUR)?),
    })
}
