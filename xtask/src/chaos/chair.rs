//! A seat with the member in it: one process after another, and what the laws ask for each.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use xtask::{api::Api, homeserver::Registered, npm::Js};

use super::{
    START_TAKES, back_by,
    judge::{Fate, Observer, Run},
    member::{Member, Said, js_tasks},
    proxy::Proxy,
    schedule::{Process, Room, Seat, Who},
    show,
};
use crate::process::Nudge;

/// When a member that did not start is started again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// When a process that leaves has ended at the latest: it gives up its goodbye by then.
const LEAVES_WITHIN: Duration = Duration::from_secs(17);

/// What may be added to a delay by the server.
const SERVER_ADDS: Duration = Duration::from_secs(30);

/// How long the others gather newcomers at most, before they encrypt anew for them: the pauses grow
/// while somebody comes again and again.
const GATHERED_WITHIN: Duration = Duration::from_secs(60);

/// How a member is started.
pub(crate) struct Program<'a> {
    pub(crate) presence: &'a Path,
    pub(crate) js: &'a Js,
    pub(crate) logs: &'a Path,
    pub(crate) lives: Duration,
    /// The room's id.
    pub(crate) room: &'a str,
    pub(crate) is: Room,
}

pub(crate) struct Chair {
    pub(crate) seat: Seat,
    pub(crate) proxy: Proxy,
    pub(crate) user_id: String,
    /// The user's own, past the proxy.
    pub(crate) api: Api,
    /// Whether somebody is to sit here.
    pub(crate) wanted: bool,
    sits: Option<Sitting>,
    /// How many have been started.
    runs: u32,
    again_at: Duration,
    /// When the calm began, if there is one.
    calm: Option<Duration>,
    /// The names of the members that ended, and when.
    past: Vec<(String, Duration)>,
    /// How the last one ended that was asked to leave, if not well.
    rude: Option<String>,
}

/// The member that sits there now.
struct Sitting {
    name: String,
    member: Member,
    started: Duration,
    stopped: bool,
    /// When it was asked to leave.
    leaving: Option<Duration>,
    /// Whether it was not ready yet when the calm began.
    was_starting: bool,
}

impl Chair {
    pub(crate) fn new(
        seat: Seat,
        server: &str,
        user: Registered,
        log: &Path,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            seat,
            proxy: Proxy::before(server, log)?,
            api: Api::new(server, &user.access_token),
            user_id: user.user_id,
            wanted: false,
            sits: None,
            runs: 0,
            again_at: Duration::ZERO,
            calm: None,
            past: Vec::new(),
            rude: None,
        })
    }

    /// Whether somebody has to be started.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        self.wanted && self.sits.is_none() && now >= self.again_at
    }

    /// Whether somebody is there, and stays.
    pub(crate) fn is_running(&self) -> bool {
        self.sits.as_ref().is_some_and(|sits| sits.leaving.is_none())
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.sits.is_some()
    }

    pub(crate) fn start(&mut self, program: &Program<'_>, now: Duration) -> anyhow::Result<()> {
        self.runs = self.runs.saturating_add(1);
        let name = format!("{}.{}", self.seat.name, self.runs);
        let log: PathBuf = program.logs.join(format!("{}-{}.out", self.seat.name, self.runs));
        let member = match self.seat.who {
            Who::Ours => Member::ours(show::presence(self, program, &name), &log)?,
            Who::Js => {
                let mut command = program.js.node(&[], "tests/server/js/peer.mjs")?;
                command.env("JS_LOG", "1");
                let start = show::js_start(self, program);
                Member::js(command, &log, js_tasks(start, &name, self.seat.delay.as_millis()))?
            }
        };
        self.sits = Some(Sitting {
            name,
            member,
            started: now,
            stopped: false,
            leaving: None,
            was_starting: false,
        });
        Ok(())
    }

    /// Looks whether the process is still there. Returns how it broke a law, if it ended by itself. A
    /// process that could not start while things went wrong broke none.
    pub(crate) fn look(&mut self, now: Duration) -> Option<String> {
        let sits = self.sits.as_mut()?;
        let said = sits.member.said();
        let Some(status) = sits.member.ended() else {
            // It would wait for ever for what it is not told.
            let is_stuck = self.seat.who == Who::Js && !said.ready && said.error.is_some();
            if is_stuck {
                self.crash(now);
            }
            return None;
        };
        let words = sits.member.last_words();
        let (name, leaving) = (sits.name.clone(), sits.leaving.is_some());
        let started = sits.started;
        let ended = format!("{name} ended ({status}): {words}");
        self.sits = None;
        self.past.push((name.clone(), now));
        self.again_at = now.saturating_add(AGAIN_AFTER);
        let has_left = status.success() && said.own.as_deref() == Some("left");
        self.rude = (leaving && !has_left)
            .then(|| format!("{name} was asked to leave and is {:?}; {ended}", said.own));
        let was_well = self.calm.is_some_and(|calm| started >= calm);
        (!leaving && (said.ready || was_well)).then(|| format!("by itself {ended}"))
    }

    pub(crate) fn suffer(&mut self, process: Process, now: Duration) {
        match process {
            Process::Kill(_) => {
                self.wanted = false;
                self.crash(now);
            }
            Process::Leave(_) => self.leave(now),
            Process::Stop => {
                if let Some(sits) = &mut self.sits {
                    sits.member.nudge(Nudge::Stop);
                    sits.stopped = true;
                }
            }
        }
    }

    /// Ends the process from one moment to the next.
    pub(crate) fn crash(&mut self, now: Duration) {
        if let Some(mut sits) = self.sits.take() {
            sits.member.kill();
            self.past.push((sits.name, now));
            self.again_at = now.saturating_add(AGAIN_AFTER);
        }
    }

    /// Asks the process to leave. Nobody is to sit here afterwards.
    pub(crate) fn leave(&mut self, now: Duration) {
        self.wanted = false;
        self.rude = None;
        if let Some(sits) = &mut self.sits {
            sits.member.nudge(Nudge::Interrupt);
            sits.leaving = Some(now);
        }
    }

    /// How the process ended that was asked to leave, if it has not left.
    pub(crate) fn was_rude(&self) -> Option<String> {
        self.rude.clone()
    }

    pub(crate) fn go_on(&mut self) {
        if let Some(sits) = &mut self.sits
            && std::mem::take(&mut sits.stopped)
        {
            sits.member.nudge(Nudge::GoOn);
        }
    }

    /// From now on things go wrong, and a member that is away comes back.
    pub(crate) fn begin_faults(&mut self) {
        self.calm = None;
        self.wanted = true;
    }

    /// From now on all is well.
    pub(crate) fn begin_calm(&mut self, calm: Duration) {
        self.calm = Some(calm);
        if let Some(sits) = &mut self.sits {
            sits.was_starting = !sits.member.said().ready;
        }
    }

    /// What it shows of that room; nothing if no member that stays looks.
    pub(crate) fn observer(&self, room: &Room, calm: Duration) -> Option<Observer> {
        let sits = self.sits.as_ref().filter(|sits| sits.leaving.is_none())?;
        let Said { own, roster, .. } = sits.member.said();
        let mut by = sits.back_by(calm);
        if room.encrypted {
            // A new member reads another one only once that one has encrypted for it.
            by = by.max(back_by(sits.started.saturating_add(GATHERED_WITHIN)));
        }
        Some(Observer { name: sits.name.clone(), own, roster, by })
    }

    /// All members that ever sat here, and what the laws ask for each. They may ask nothing of
    /// somebody else's code.
    pub(crate) fn runs(&self, calm: Duration, spares_js: bool) -> Vec<Run> {
        let gone = |ended: Duration| {
            let sent = ended.saturating_add(self.seat.delay).max(calm);
            Fate::Gone { by: sent.saturating_add(SERVER_ADDS).saturating_add(super::MACHINE) }
        };
        let mut runs: Vec<_> = self
            .past
            .iter()
            .map(|(name, ended)| Run { name: name.clone(), fate: gone(*ended) })
            .collect();
        if let Some(sits) = &self.sits {
            let fate = match sits.leaving {
                Some(asked) => gone(asked.saturating_add(LEAVES_WITHIN)),
                None => Fate::There { by: sits.back_by(calm) },
            };
            runs.push(Run { name: sits.name.clone(), fate });
        }
        if spares_js && self.seat.who == Who::Js {
            runs.iter_mut().for_each(|run| run.fate = Fate::Unjudged);
        }
        runs
    }

    /// Whether it says that it is in the call.
    pub(crate) fn is_in(&self) -> bool {
        let Some(sits) = &self.sits else { return false };
        let Said { own, error, .. } = sits.member.said();
        own.as_deref() == Some("joined") && error.is_none()
    }

    /// Why it may show something else.
    pub(crate) fn reason(&self) -> String {
        let Some(sits) = &self.sits else { return "it does not run".to_owned() };
        let Said { own, error, .. } = sits.member.said();
        let own = own.unwrap_or_else(|| "nothing".to_owned());
        match error {
            Some(error) => format!("it says that it is {own}, and had the error {error}"),
            None => format!("it says that it is {own}"),
        }
    }

    /// What it shows and how it stands, for a person who has to find out why.
    pub(crate) fn describe(&self) -> String {
        let Some(sits) = &self.sits else {
            return format!("{}: nobody sits there\n", self.seat.name);
        };
        let Said { ready, own, roster, candidates, error } = sits.member.said();
        let mut text = format!(
            "{} (delay {} s): {}, {}{}\n",
            sits.name,
            self.seat.delay.as_secs(),
            if ready { "ready" } else { "not ready" },
            own.as_deref().unwrap_or("says nothing of itself"),
            if sits.leaving.is_some() { ", leaving" } else { "" },
        );
        for entry in roster {
            text.push_str(&format!("    shows {entry}\n"));
        }
        for candidate in candidates {
            text.push_str(&format!("    does not show {candidate}\n"));
        }
        if let Some(error) = error {
            text.push_str(&format!("    had the error {error}\n"));
        }
        text
    }
}

impl Sitting {
    /// When it has to be there.
    fn back_by(&self, calm: Duration) -> Duration {
        let by = back_by(calm.max(self.started));
        if self.was_starting { by.saturating_add(START_TAKES) } else { by }
    }
}
