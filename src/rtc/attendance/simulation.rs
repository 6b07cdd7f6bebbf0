//! Owners, heartbeats, main loops and servers that do whatever they may, in any order. The laws are checked
//! at every step, and once more after everything has calmed down.

use proptest::prelude::*;

use super::*;
use crate::testing::{secs, start};

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Ask(Request),
    /// The heartbeat goes on, to one of the states that it can reach.
    Beat(u8),
    /// The main loop brings the slot, open or closed.
    MainLoop {
        is_closed: bool,
    },
    /// The slot is opened or closed. The main loop does not know yet.
    Server {
        is_closed: bool,
    },
    /// The server answers what it is asked about the slot, or does not tell.
    Answer {
        is_known: bool,
    },
    /// The start that is under way ends.
    Started {
        has_worked: bool,
    },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let reason = || LeaveReason::with_code(LeaveReason::ON_PURPOSE);
    prop_oneof![
        1 => Just(Step::Ask(Request::Update)),
        1 => Just(Step::Ask(Request::Leave(reason()))),
        3 => Just(Step::Ask(Request::Suspend(InBackground::Leave))),
        3 => Just(Step::Ask(Request::Suspend(InBackground::Hold))),
        4 => Just(Step::Ask(Request::Resume)),
        12 => any::<u8>().prop_map(Step::Beat),
        4 => any::<bool>().prop_map(|is_closed| Step::MainLoop { is_closed }),
        2 => any::<bool>().prop_map(|is_closed| Step::Server { is_closed }),
        4 => any::<bool>().prop_map(|is_known| Step::Answer { is_known }),
        4 => any::<bool>().prop_map(|has_worked| Step::Started { has_worked }),
        4 => (1..12_u64).prop_map(Step::Wait),
    ]
}

/// What the owner asked for last, as the laws see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    In,
    Holding,
    Away,
    Out,
}

/// A heartbeat, as the runner has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Beat {
    id: u32,
    state: HeartbeatState,
    is_leaving: bool,
    is_held: bool,
}

impl Beat {
    /// The states that may follow.
    fn next(self) -> Vec<HeartbeatState> {
        use HeartbeatState::{Degraded, Joined, Joining, Leaving, Left, ProbablyLeft};
        let since = start().deadline(Duration::ZERO);
        match self.state {
            Left | HeartbeatState::Failed(_) => Vec::new(),
            Leaving => vec![
                Left,
                HeartbeatState::Failed(HeartbeatFailure::LeaveRefused),
                HeartbeatState::Failed(HeartbeatFailure::LeaveUnanswered),
            ],
            _ if self.is_leaving => vec![Leaving, Left],
            _ if self.is_held => vec![
                HeartbeatState::Suspended { holds_until: Some(since) },
                HeartbeatState::Failed(HeartbeatFailure::LeaveFired),
                HeartbeatState::Failed(HeartbeatFailure::NotInRoom),
            ],
            _ => vec![
                Joining,
                Joined,
                Joined,
                Joined,
                Degraded,
                ProbablyLeft { since },
                HeartbeatState::Failed(HeartbeatFailure::LeaveFired),
                HeartbeatState::Failed(HeartbeatFailure::Removed),
                HeartbeatState::Failed(HeartbeatFailure::Redacted),
                // All of the client's heartbeats leave.
                Leaving,
            ],
        }
    }
}

struct World {
    now: Moment,
    attendance: Attendance,
    owner: Owner,
    beat: Option<Beat>,
    ids: u32,
    is_starting: bool,
    is_asking: bool,
    is_closed: bool,
    last_failed_start: Option<Moment>,
    last_answer: Option<Moment>,
    has_asked_to_leave: bool,
    /// The state of a heartbeat that ended all: for a reason that no other heartbeat can mend.
    has_failed: bool,
    /// A heartbeat left although nobody asked this member to.
    was_logged_out: bool,
}

impl World {
    fn new() -> Self {
        let beat =
            Beat { id: 0, state: HeartbeatState::Joining, is_leaving: false, is_held: false };
        Self {
            now: start(),
            attendance: Attendance::new(),
            owner: Owner::In,
            beat: Some(beat),
            ids: 1,
            is_starting: false,
            is_asking: false,
            is_closed: false,
            last_failed_start: None,
            last_answer: None,
            has_asked_to_leave: false,
            has_failed: false,
            was_logged_out: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask(request) => self.ask(request),
            Step::Beat(choice) => self.beat(choice),
            Step::MainLoop { is_closed } => {
                // A slot that is closed once more is another question.
                self.last_answer = self.last_answer.filter(|_| is_closed);
                self.attendance.handle_slot(is_closed);
            }
            Step::Server { is_closed } => self.is_closed = is_closed,
            Step::Answer { is_known } => self.answer(is_known),
            Step::Started { has_worked } => self.started(has_worked),
            Step::Wait(seconds) => self.now = self.now.advanced(secs(seconds)),
        }
        self.perform();
        self.check();
    }

    fn ask(&mut self, request: Request) {
        let is_suspended = matches!(self.owner, Owner::Holding | Owner::Away);
        match request {
            _ if self.owner == Owner::Out => {}
            Request::Leave(_) => self.owner = Owner::Out,
            Request::Suspend(InBackground::Leave) => self.owner = Owner::Away,
            Request::Suspend(InBackground::Hold) if !is_suspended => self.owner = Owner::Holding,
            Request::Resume => {
                self.owner = Owner::In;
                // The owner does not wait for a retry.
                self.last_failed_start = None;
                self.last_answer = None;
            }
            Request::Suspend(InBackground::Hold) | Request::Update => {}
        }
        self.has_asked_to_leave |= matches!(request, Request::Leave(_));
        self.attendance.handle_request(request);
    }

    fn beat(&mut self, choice: u8) {
        let Some(beat) = &mut self.beat else { return };
        let next = beat.next();
        if next.is_empty() {
            return;
        }
        let was_asked = beat.is_leaving;
        beat.state = next[usize::from(choice) % next.len()];
        match beat.state {
            HeartbeatState::Failed(HeartbeatFailure::LeaveFired | HeartbeatFailure::Removed) => {}
            HeartbeatState::Failed(_) => self.has_failed = true,
            HeartbeatState::Left if !was_asked => self.was_logged_out = self.owner != Owner::Away,
            _ => {}
        }
        self.attendance.handle_heartbeat_state(beat.state);
    }

    fn answer(&mut self, is_known: bool) {
        if !std::mem::take(&mut self.is_asking) || !self.attendance.is_asking() {
            return;
        }
        let answer = match (is_known, self.is_closed) {
            (false, _) => SlotAnswer::Unknown,
            (true, false) => SlotAnswer::Open,
            (true, true) => SlotAnswer::Closed,
        };
        if answer == SlotAnswer::Closed {
            self.owner = Owner::Out;
        }
        self.last_answer = Some(self.now);
        self.attendance.handle_slot_answer(self.now, answer);
    }

    fn started(&mut self, has_worked: bool) {
        if !std::mem::take(&mut self.is_starting) {
            return;
        }
        match has_worked {
            true => {
                let id = self.ids;
                self.ids += 1;
                self.beat = Some(Beat {
                    id,
                    state: HeartbeatState::Joining,
                    is_leaving: false,
                    is_held: false,
                });
                self.last_failed_start = None;
            }
            false => self.last_failed_start = Some(self.now),
        }
        self.attendance.handle_started(self.now, has_worked);
        if has_worked {
            self.attendance.handle_heartbeat_state(HeartbeatState::Joining);
        }
    }

    /// Does what the machine says, as the runner does.
    fn perform(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.attendance.poll_action(self.now) {
            actions += 1;
            assert!(actions < 6, "a hot loop");
            match action {
                Action::Start => {
                    assert!(self.beat.is_none() && !self.is_starting, "two heartbeats at once");
                    assert!(!self.has_asked_to_leave, "joined after a leave");
                    assert_eq!(self.owner, Owner::In, "joined although nobody wants to be in");
                    let since = self.last_failed_start.map(|at| self.now.since(at));
                    assert!(since.is_none_or(|it| it >= START_RETRY_INTERVAL), "too soon again");
                    self.is_starting = true;
                }
                Action::Forget => {
                    let beat = self.beat.take().unwrap();
                    assert!(
                        matches!(beat.state, HeartbeatState::Left | HeartbeatState::Failed(_)),
                        "{beat:?}"
                    );
                }
                Action::AskAboutSlot => {
                    assert_eq!(self.owner, Owner::In, "asked in the background");
                    self.is_asking = true;
                    let since = self.last_answer.map(|at| self.now.since(at));
                    assert!(self.attendance.is_asking());
                    if let Some(since) = since {
                        assert!(since > Duration::ZERO, "asked again at once");
                    }
                }
                Action::Leave(_) => self.beat.as_mut().unwrap().is_leaving = true,
                Action::Hold => self.beat.as_mut().unwrap().is_held = true,
                Action::Resume => self.beat.as_mut().unwrap().is_held = false,
                Action::Update => assert!(self.beat.is_some()),
            }
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        let state = self.attendance.state();
        let is_final = matches!(state, HeartbeatState::Left | HeartbeatState::Failed(_));
        assert_eq!(self.attendance.is_over(), is_final, "{state:?}");
        assert!(self.attendance.next_deadline().is_none_or(|at| !at.is_over(self.now)));
        match state {
            HeartbeatState::Left => {
                assert!(self.beat.is_none() && !self.is_starting, "left, and still there");
                assert!(self.attendance.left_as().is_some());
            }
            HeartbeatState::Failed(failure) => {
                assert!(self.has_failed);
                assert!(!matches!(
                    failure,
                    HeartbeatFailure::LeaveFired | HeartbeatFailure::Removed
                ));
            }
            HeartbeatState::Suspended { .. } => {
                let is_said = self.beat.is_some_and(|beat| beat.state == state);
                let is_asked = matches!(self.owner, Owner::Away | Owner::Holding);
                assert!(is_asked || is_said, "{:?}", self.owner);
            }
            HeartbeatState::Joined
            | HeartbeatState::Degraded
            | HeartbeatState::ProbablyLeft { .. } => {
                assert_eq!(self.beat.map(|beat| beat.state), Some(state));
            }
            // A first join is a rejoin from the second heartbeat on, once the first has been seen.
            HeartbeatState::Joining => assert!(self.beat.is_some() || self.is_starting),
            HeartbeatState::Rejoining | HeartbeatState::Leaving => {}
        }
        if self.owner == Owner::Away && !is_final {
            assert_eq!(state, HeartbeatState::Suspended { holds_until: None });
        }
    }

    /// Everything works from now on.
    fn calm_down(&mut self) {
        for _ in 0..20 {
            self.step(Step::Started { has_worked: true });
            if let Some(beat) = self.beat {
                let wanted = match beat {
                    Beat { is_leaving: true, state: HeartbeatState::Leaving, .. } => {
                        HeartbeatState::Left
                    }
                    Beat { is_leaving: true, .. } => HeartbeatState::Leaving,
                    Beat { state: HeartbeatState::Leaving, .. } => HeartbeatState::Left,
                    Beat { is_held: true, .. } => HeartbeatState::Suspended { holds_until: None },
                    _ => HeartbeatState::Joined,
                };
                let matches = |it: &HeartbeatState| {
                    std::mem::discriminant(it) == std::mem::discriminant(&wanted)
                };
                if let Some(choice) = beat.next().iter().position(matches) {
                    self.step(Step::Beat(choice.try_into().unwrap()));
                }
            }
            self.step(Step::Answer { is_known: true });
            self.step(Step::Wait(6));
            self.step(Step::MainLoop { is_closed: self.is_closed });
        }
    }
}

/// Everybody gets what they want in the end.
fn check_in_the_end(world: &World) {
    let state = world.attendance.state();
    if world.has_failed {
        assert!(matches!(state, HeartbeatState::Failed(_) | HeartbeatState::Left), "{state:?}");
        return;
    }
    if world.was_logged_out && world.attendance.is_over() {
        assert_eq!(state, HeartbeatState::Left);
        return;
    }
    match world.owner {
        Owner::Out => assert_eq!(state, HeartbeatState::Left),
        Owner::In if world.is_closed => panic!("in a closed slot: {state:?}"),
        Owner::In => {
            assert_eq!(state, HeartbeatState::Joined, "{:?}", world.beat);
        }
        Owner::Away => assert!(world.beat.is_none()),
        Owner::Holding => assert!(matches!(state, HeartbeatState::Suspended { .. }), "{state:?}"),
    }
}

proptest! {
    /// One heartbeat at a time, nothing after a leave, each state as it is documented, no hot loop; and a
    /// closed slot ends in a leave.
    #[test]
    fn the_laws_hold_whatever_happens(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        world.perform();
        for step in steps {
            world.step(step);
        }
        world.calm_down();
        check_in_the_end(&world);
    }

    /// Whatever happened before, and however long the leave takes.
    #[test]
    fn resuming_comes_back_as_another_member(
        steps in prop::collection::vec(step(), 0..30),
        is_left_first: bool,
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.step(Step::Server { is_closed: false });
        world.step(Step::MainLoop { is_closed: false });
        world.step(Step::Ask(Request::Resume));
        world.calm_down();
        prop_assume!(!world.attendance.is_over());
        let before = world.beat.unwrap().id;
        world.step(Step::Ask(Request::Suspend(InBackground::Leave)));
        if is_left_first {
            world.calm_down();
            prop_assert!(world.beat.is_none());
        }
        world.step(Step::Ask(Request::Resume));
        world.calm_down();
        let after = world.beat.map(|beat| beat.id);
        prop_assert!(after.is_some_and(|after| after > before), "{after:?}");
        prop_assert_eq!(world.attendance.state(), HeartbeatState::Joined);
    }
}
