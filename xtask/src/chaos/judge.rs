//! Judges whether all participants show the members that are there. In go the rosters, and what has to
//! be true by when; out comes what is not. No clock, no I/O. Moments count from the start of the whole show.

use std::{collections::BTreeSet, fmt, time::Duration};

/// One start of one seat's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its name, which is also its intent in the call: so every entry of a roster tells whose it is.
    pub(crate) name: String,
    pub(crate) fate: Fate,
}

/// What the laws ask for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It lives: from this moment on everybody shows it, once.
    There { by: Duration },
    /// It has ended: from this moment on nobody shows it.
    Gone { by: Duration },
    /// Of somebody else's code: its entries only have to be the same everywhere.
    Unjudged,
}

/// A member, as an observer shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// The name of a run.
    pub(crate) intent: String,
    pub(crate) user_id: String,
    pub(crate) device_id: String,
    pub(crate) member_id: String,
}

/// The participant that shows something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observer {
    pub(crate) name: String,
    /// What it says of itself; nothing if it is not a member.
    pub(crate) own: Option<String>,
    pub(crate) roster: Vec<Entry>,
    /// From this moment on its roster has to be right.
    pub(crate) by: Duration,
}

/// One room at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scene {
    pub(crate) runs: Vec<Run>,
    pub(crate) observers: Vec<Observer>,
    /// From this moment on somebody has to look at it.
    pub(crate) by: Duration,
}

/// Something that is not as it has to be in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) wrong: Wrong,
    /// It breaks a law from this moment on.
    pub(crate) by: Duration,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Nobody of a room looks: no law can be seen to hold.
    Blind,
    Missing {
        observer: String,
        run: String,
    },
    Ghost {
        observer: String,
        entry: Entry,
    },
    Twice {
        observer: String,
        run: String,
        members: Vec<String>,
    },
    Stranger {
        observer: String,
        entry: Entry,
    },
    /// A living member does not say that it is there.
    NotJoined {
        run: String,
        own: Option<String>,
    },
    Differ {
        one: String,
        other: String,
        entries: Vec<Entry>,
    },
}

impl Scene {
    /// All that is not as it has to be in the end, whether its time is up or not.
    pub(crate) fn judge(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.observers.is_empty() {
            findings.push(Finding { wrong: Wrong::Blind, by: self.by });
        }
        for observer in &self.observers {
            self.look_at_runs(observer, &mut findings);
            self.look_at_strangers(observer, &mut findings);
            self.look_at_own(observer, &mut findings);
        }
        for pair in self.observers.windows(2) {
            if let [one, other] = pair {
                let (mine, theirs) = (set(&one.roster), set(&other.roster));
                let entries: Vec<_> =
                    mine.symmetric_difference(&theirs).map(|entry| (*entry).clone()).collect();
                if !entries.is_empty() {
                    let by = one.by.max(other.by);
                    let (one, other) = (one.name.clone(), other.name.clone());
                    let wrong = Wrong::Differ { one, other, entries };
                    findings.push(Finding { wrong, by });
                }
            }
        }
        findings
    }

    fn look_at_runs(&self, observer: &Observer, findings: &mut Vec<Finding>) {
        let name = || observer.name.clone();
        for run in &self.runs {
            let entries: Vec<_> =
                observer.roster.iter().filter(|entry| entry.intent == run.name).collect();
            let mut find = |wrong, by: Duration| {
                findings.push(Finding { wrong, by: by.max(observer.by) });
            };
            match (run.fate, &*entries) {
                (Fate::There { by }, []) => {
                    find(Wrong::Missing { observer: name(), run: run.name.clone() }, by);
                }
                (Fate::There { by }, [_, _, ..]) => {
                    let members = entries.iter().map(|entry| entry.member_id.clone()).collect();
                    find(Wrong::Twice { observer: name(), run: run.name.clone(), members }, by);
                }
                (Fate::Gone { by }, ghosts) => {
                    for ghost in ghosts {
                        find(Wrong::Ghost { observer: name(), entry: (*ghost).clone() }, by);
                    }
                }
                (Fate::There { .. } | Fate::Unjudged, _) => {}
            }
        }
    }

    fn look_at_strangers(&self, observer: &Observer, findings: &mut Vec<Finding>) {
        let is_known = |entry: &&Entry| self.runs.iter().any(|run| run.name == entry.intent);
        for entry in observer.roster.iter().filter(|entry| !is_known(entry)) {
            let wrong = Wrong::Stranger { observer: observer.name.clone(), entry: entry.clone() };
            findings.push(Finding { wrong, by: observer.by });
        }
    }

    fn look_at_own(&self, observer: &Observer, findings: &mut Vec<Finding>) {
        let run = self.runs.iter().find(|run| run.name == observer.name);
        if let Some(Run { name, fate: Fate::There { by } }) = run
            && observer.own.as_deref() != Some("joined")
        {
            let wrong = Wrong::NotJoined { run: name.clone(), own: observer.own.clone() };
            findings.push(Finding { wrong, by: *by });
        }
    }
}

fn set(roster: &[Entry]) -> BTreeSet<&Entry> {
    roster.iter().collect()
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { intent, user_id, device_id, member_id } = self;
        write!(f, "{intent} ({user_id}, device {device_id}, member {member_id})")
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blind => f.write_str("nobody looks at the room"),
            Self::Missing { observer, run } => {
                write!(f, "{observer} does not show {run}, although it is there")
            }
            Self::Ghost { observer, entry } => {
                write!(f, "{observer} shows {entry}, although it has ended")
            }
            Self::Twice { observer, run, members } => {
                write!(
                    f,
                    "{observer} shows {run} as {} members: {}",
                    members.len(),
                    members.join(", ")
                )
            }
            Self::Stranger { observer, entry } => {
                write!(f, "{observer} shows {entry}, although it was never there")
            }
            Self::NotJoined { run, own } => {
                write!(f, "{run} says that it is {}", own.as_deref().unwrap_or("nothing"))
            }
            Self::Differ { one, other, entries } => {
                let entries: Vec<_> = entries.iter().map(Entry::to_string).collect();
                write!(f, "of {one} and {other} only one shows {}", entries.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Entry, Fate, Finding, Observer, Run, Scene, Wrong};

    const LAW: Duration = Duration::from_secs(30);
    const LATER: Duration = Duration::from_secs(45);

    fn run(name: &str, fate: Fate) -> Run {
        Run { name: name.to_owned(), fate }
    }

    fn there(name: &str) -> Run {
        run(name, Fate::There { by: LAW })
    }

    fn member(name: &str, member_id: &str) -> Entry {
        Entry {
            intent: name.to_owned(),
            user_id: format!("@{name}"),
            device_id: name.to_owned(),
            member_id: member_id.to_owned(),
        }
    }

    fn entry(name: &str) -> Entry {
        member(name, name)
    }

    fn observer(name: &str, roster: &[Entry]) -> Observer {
        let own = Some("joined".to_owned());
        Observer { name: name.to_owned(), own, roster: roster.to_vec(), by: LAW }
    }

    /// Two members that are there, see each other, and saw a third one end.
    fn calm() -> Scene {
        let roster = [entry("a"), entry("b")];
        Scene {
            runs: vec![there("a"), there("b"), run("c", Fate::Gone { by: LATER })],
            observers: vec![observer("a", &roster), observer("b", &roster)],
            by: LAW,
        }
    }

    fn finding(wrong: Wrong, by: Duration) -> Finding {
        Finding { wrong, by }
    }

    #[test]
    fn a_calm_room_has_no_findings() {
        assert_eq!(calm().judge(), []);
    }

    #[test]
    fn the_order_of_a_roster_makes_no_difference() {
        let mut scene = calm();
        scene.observers[1].roster.reverse();
        assert_eq!(scene.judge(), []);
    }

    #[test]
    fn a_ghost_that_all_show_is_found() {
        let mut scene = calm();
        for observer in &mut scene.observers {
            observer.roster.push(entry("c"));
        }
        let ghost = |observer: &str| {
            finding(Wrong::Ghost { observer: observer.to_owned(), entry: entry("c") }, LATER)
        };
        assert_eq!(scene.judge(), [ghost("a"), ghost("b")]);
    }

    #[test]
    fn a_member_whom_nobody_shows_is_found() {
        let mut scene = calm();
        scene.runs.push(there("d"));
        let missing = |observer: &str| {
            let wrong = Wrong::Missing { observer: observer.to_owned(), run: "d".to_owned() };
            finding(wrong, LAW)
        };
        assert_eq!(scene.judge(), [missing("a"), missing("b")]);
    }

    #[test]
    fn an_empty_roster_misses_everybody() {
        let mut scene = calm();
        scene.observers = vec![observer("a", &[])];
        let missing: Vec<_> = scene.judge().into_iter().map(|it| it.wrong).collect();
        let wrong = |run: &str| Wrong::Missing { observer: "a".to_owned(), run: run.to_owned() };
        assert_eq!(missing, [wrong("a"), wrong("b")]);
    }

    #[test]
    fn an_old_membership_beside_the_new_is_found() {
        let mut scene = calm();
        scene.observers[0].roster.push(member("b", "older"));
        let twice = Wrong::Twice {
            observer: "a".to_owned(),
            run: "b".to_owned(),
            members: vec!["b".to_owned(), "older".to_owned()],
        };
        let differ = Wrong::Differ {
            one: "a".to_owned(),
            other: "b".to_owned(),
            entries: vec![member("b", "older")],
        };
        assert_eq!(scene.judge(), [finding(twice, LAW), finding(differ, LAW)]);
    }

    #[test]
    fn rosters_differ_by_member_id_alone() {
        let mut scene = calm();
        scene.observers[1].roster[0] = member("a", "older");
        let differ = Wrong::Differ {
            one: "a".to_owned(),
            other: "b".to_owned(),
            entries: vec![entry("a"), member("a", "older")],
        };
        assert_eq!(scene.judge(), [finding(differ, LAW)]);
    }

    #[test]
    fn the_last_of_three_observers_may_differ() {
        let mut scene = calm();
        scene.runs.push(run("j", Fate::Unjudged));
        scene.observers.push(observer("x", &[entry("a"), entry("b"), entry("j")]));
        let differ =
            Wrong::Differ { one: "b".to_owned(), other: "x".to_owned(), entries: vec![entry("j")] };
        assert_eq!(scene.judge(), [finding(differ, LAW)]);
    }

    #[test]
    fn who_is_unjudged_may_be_there_or_not() {
        let mut scene = calm();
        scene.runs.push(run("j", Fate::Unjudged));
        assert_eq!(scene.judge(), []);
        for observer in &mut scene.observers {
            observer.roster.push(entry("j"));
        }
        assert_eq!(scene.judge(), []);
    }

    #[test]
    fn a_late_observer_has_more_time() {
        let mut scene = calm();
        scene.observers = vec![observer("a", &[])];
        scene.observers[0].by = LATER;
        assert!(scene.judge().iter().all(|finding| finding.by == LATER));
        assert_eq!(scene.judge().len(), 2);
    }

    #[test]
    fn a_stranger_is_found() {
        let mut scene = calm();
        for observer in &mut scene.observers {
            observer.roster.push(entry("z"));
        }
        let found = scene.judge();
        assert_eq!(found.len(), 2);
        assert!(matches!(&found[0].wrong, Wrong::Stranger { observer, .. } if observer == "a"));
    }

    #[test]
    fn a_member_who_says_otherwise_is_found() {
        let mut scene = calm();
        for own in [None, Some("degraded"), Some("probably_left"), Some("left")] {
            scene.observers[1].own = own.map(str::to_owned);
            let own = scene.observers[1].own.clone();
            let wrong = Wrong::NotJoined { run: "b".to_owned(), own };
            assert_eq!(scene.judge(), [finding(wrong, LAW)]);
        }
    }

    #[test]
    fn a_room_that_nobody_looks_at_is_found() {
        let mut scene = calm();
        scene.observers.clear();
        assert_eq!(scene.judge(), [finding(Wrong::Blind, LAW)]);
    }
}
