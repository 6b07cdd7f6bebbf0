//! Outcome: what an answer of the server means for the step that asked.
//!
//! In: the step, and the error that the answer was read as ([`DelayedError`] names what each status
//! and code is). Out: what the machine is told. Pure.

use super::{Outcome, Step};
use crate::delayed::DelayedError;

/// What an error means for a step.
pub(super) fn outcome(step: Step, error: &DelayedError) -> Outcome {
    let is_event = matches!(step, Step::Join { .. } | Step::Leave { .. });
    match error {
        // Every server can send events. A worker that is just starting cannot.
        DelayedError::NotSupported { .. } if is_event => Outcome::Blocked,
        DelayedError::NotSupported { .. }
        | DelayedError::Disabled
        | DelayedError::ForgetsStickiness => Outcome::NoDelayedEvents,
        DelayedError::TooLong { max } => Outcome::TooLong { max: *max },
        DelayedError::QuotaFull { retry_after } => Outcome::QuotaFull { retry_after: *retry_after },
        DelayedError::RateLimited { retry_after } => {
            Outcome::RateLimited { retry_after: *retry_after }
        }
        DelayedError::Gone
        | DelayedError::AlreadySent
        | DelayedError::AlreadyCancelled
        // It is void, and another one is armed in its place.
        | DelayedError::BecameEncrypted => Outcome::Gone,
        DelayedError::Blocked { .. } => Outcome::Blocked,
        DelayedError::Refused { .. } => Outcome::Refused,
        DelayedError::Prepare(error) if error.is_final() => Outcome::Refused,
        DelayedError::Prepare(_)
        // The session's tokens may be refreshed, or the user may log in again.
        | DelayedError::NotLoggedIn
        | DelayedError::Unreachable { .. } => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::{
        super::{LeaseId, SendId},
        *,
    };
    use crate::{delayed::answered, testing::secs};

    const DELAY: Duration = Duration::from_secs(15);
    const HOUR: Duration = Duration::from_secs(3_600);

    /// What a step is answered with, and what the machine is told then: when it arms, restarts, fires
    /// or cancels, joins or leaves.
    #[test]
    fn each_answer_to_each_step_has_its_outcome() {
        use Outcome::{Blocked, Gone, NoDelayedEvents, Refused, Unknown};
        let limited = Outcome::RateLimited { retry_after: Some(HOUR) };
        let full = Outcome::QuotaFull { retry_after: Some(HOUR) };
        let page = "<html>Who are you?</html>";
        let wait = r#"{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":3600000}"#;
        let table = [
            (401, r#"{"errcode":"M_UNKNOWN_TOKEN"}"#, [Unknown; 4]),
            (401, page, [Unknown; 4]),
            (403, r#"{"errcode":"M_FORBIDDEN"}"#, [Refused; 4]),
            (403, page, [Blocked; 4]),
            (404, r#"{"errcode":"M_NOT_FOUND"}"#, [Refused, Gone, Gone, Refused]),
            (
                404,
                r#"{"errcode":"M_UNRECOGNIZED"}"#,
                [NoDelayedEvents, NoDelayedEvents, NoDelayedEvents, Blocked],
            ),
            (404, page, [NoDelayedEvents, NoDelayedEvents, NoDelayedEvents, Blocked]),
            (405, page, [NoDelayedEvents, NoDelayedEvents, NoDelayedEvents, Blocked]),
            (407, page, [Blocked; 4]),
            (408, page, [Unknown; 4]),
            (409, r#"{"errcode":"M_UNKNOWN"}"#, [Refused, Gone, Gone, Refused]),
            (413, r#"{"errcode":"M_TOO_LARGE"}"#, [Refused; 4]),
            (413, page, [Blocked; 4]),
            (429, wait, [full, limited, limited, limited]),
            (451, r#"{"errcode":"M_UNKNOWN"}"#, [Refused; 4]),
            (451, page, [Blocked; 4]),
            (500, r#"{"errcode":"M_UNKNOWN"}"#, [Unknown; 4]),
            (501, page, [Blocked; 4]),
            (
                501,
                r#"{"errcode":"M_UNRECOGNIZED"}"#,
                [NoDelayedEvents, NoDelayedEvents, NoDelayedEvents, Blocked],
            ),
            (502, page, [Unknown; 4]),
            (503, page, [Unknown; 4]),
            (504, page, [Unknown; 4]),
            // A portal's page in the place of the answer.
            (200, page, [Unknown; 4]),
            // The event was sent at once.
            (
                200,
                r#"{"event_id":"$sent"}"#,
                [NoDelayedEvents, Outcome::Done, Outcome::Done, Outcome::Done],
            ),
        ];
        let lease = LeaseId(1);
        let send = SendId(1);
        let steps = [
            vec![Step::Arm { lease, delay: DELAY }],
            vec![Step::Restart(lease)],
            vec![Step::Fire(lease), Step::Cancel(lease)],
            vec![Step::Join { send, sticky: HOUR }, Step::Leave { send, sticky: HOUR }],
        ];
        for (status, body, outcomes) in table {
            for (steps, expected) in steps.iter().zip(outcomes) {
                for step in steps {
                    let answer = answered(kind(*step), status, body);
                    let found =
                        answer.map_or_else(|error| outcome(*step, &error), |()| Outcome::Done);
                    assert_eq!(found, expected, "{status} {body} to {step:?}");
                }
            }
        }
    }

    fn kind(step: Step) -> crate::delayed::Asked {
        use crate::delayed::Asked;
        match step {
            Step::Arm { delay, .. } => Asked::Schedule(delay),
            Step::Restart(_) => Asked::Restart,
            Step::Fire(_) => Asked::Send,
            Step::Cancel(_) => Asked::Cancel,
            Step::Join { .. } | Step::Leave { .. } => Asked::Event,
        }
    }

    #[test]
    fn no_answer_is_unknown() {
        let cut = DelayedError::Unreachable { error: "cut".to_owned(), may_have_happened: true };
        let lease = LeaseId(1);
        assert_eq!(outcome(Step::Arm { lease, delay: secs(15) }, &cut), Outcome::Unknown);
        assert_eq!(outcome(Step::Restart(lease), &cut), Outcome::Unknown);
    }
}
