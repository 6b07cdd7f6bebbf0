//! The stores: `EphemeralMaps` and `RoomStickyEventsStore`, fed with the same responses.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, bail};
use serde_json::Value;
use xtask::{folders::target_dir, npm::Js};

use super::{Row, Table, median};
use crate::{
    cargo::{Cargo, said},
    process::Interrupt,
};

/// How often each side has its turn.
const TURNS: usize = 3;

pub(super) fn measure(
    js: &Js,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<Table>> {
    let options = ["--release", "--package", "sticky-benches", "--bin", "side-by-side"];
    let Some(program) = cargo.executable(&options, "side-by-side", interrupt)? else {
        return Ok(None);
    };
    let corpus = Corpus(target_dir().join("js").join("corpus"));
    let ours = |verb: &str| {
        let mut command = Command::new(&program);
        command.arg(verb).arg(&corpus.0);
        command
    };
    let listen = |command: Command| interrupt.or(move || said(command)).transpose();

    if listen(ours("corpus"))?.is_none() {
        return Ok(None);
    }
    let about = fs::read_to_string(corpus.0.join("corpus.json")).context("there is no corpus")?;
    let about: Value = serde_json::from_str(&about)?;

    let mut turns = Vec::new();
    for turn in 1..=TURNS {
        eprintln!("feeding both stores, turn {turn} of {TURNS} ..");
        let mut theirs = js.node(&["--expose-gc"], "benches/js/store.mjs")?;
        theirs.arg(&corpus.0);
        let Some(ours) = listen(ours("run"))? else { return Ok(None) };
        let Some(theirs) = listen(theirs)? else { return Ok(None) };
        turns.push((Side::read(&ours)?, Side::read(&theirs)?));
    }
    table(&about, &turns).map(Some)
}

/// The corpus's folder, gone with its owner: it is some 150 MB.
struct Corpus(PathBuf);

impl Drop for Corpus {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What one side printed in one turn.
#[derive(Default)]
struct Side {
    /// By phase and page.
    fed: BTreeMap<(String, u64), Fed>,
    bytes: f64,
    expiries: Vec<f64>,
    /// What its subscriber was told and its store showed: both sides have to agree.
    seen: Vec<String>,
}

#[derive(Default)]
struct Fed {
    ns: Vec<f64>,
    scan_ns: Vec<f64>,
}

impl Side {
    fn read(lines: &str) -> anyhow::Result<Self> {
        let mut side = Self::default();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let number = |name: &str| line[name].as_f64().with_context(|| line.to_string());
            match line["row"].as_str() {
                Some("feed") => {
                    let phase = line["phase"].as_str().unwrap_or_default().to_owned();
                    let page = line["page"].as_u64().unwrap_or_default();
                    side.seen.push(format!("{phase} {page} {} {}", line["told"], line["seen"]));
                    let fed = side.fed.entry((phase, page)).or_default();
                    fed.ns.push(number("ns")?);
                    fed.scan_ns.push(number("scan_ns")?);
                }
                Some("memory") => {
                    side.seen.push(line["seen"].to_string());
                    side.bytes = number("bytes")?;
                }
                Some("expiry") => side.expiries.push(number("ns")?),
                _ => bail!("a side printed {line}"),
            }
        }
        Ok(side)
    }
}

fn table(about: &Value, turns: &[(Side, Side)]) -> anyhow::Result<Table> {
    for (ours, theirs) in turns {
        if let Some((ours, theirs)) =
            ours.seen.iter().zip(&theirs.seen).find(|(ours, theirs)| ours != theirs)
        {
            bail!("the two stores do not show the same: ours {ours}, theirs {theirs}");
        }
        if ours.seen.len() != theirs.seen.len() {
            bail!("one side printed less than the other");
        }
    }
    let count = |name: &str| about["events"][name].as_f64().context("the corpus has no counts");

    let mut rows = Vec::new();
    for page in about["pages"].as_array().into_iter().flatten().filter_map(Value::as_u64) {
        for phase in about["phases"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let key = (phase.to_owned(), page);
            let name = match page {
                1 => format!("{phase}, one event a response"),
                page => format!("{phase}, {page} events a response"),
            };
            let events = count(phase)?;
            let ns = |side: &Side| side.fed.get(&key).map(|fed| median(&fed.ns) / events);
            let scans = |side: &Side| {
                let fed = side.fed.get(&key)?;
                let ratios: Vec<_> =
                    fed.ns.iter().zip(&fed.scan_ns).map(|(ns, scan)| ns / scan).collect();
                Some(median(&ratios))
            };
            rows.push(row(name, "µs", turns, |side| ns(side).map(|ns| ns / 1_000.0), Some(&scans)));
        }
    }
    let entries = count("crowd")?;
    rows.push(row(
        "one expiry among 100,000".to_owned(),
        "µs",
        turns,
        |side| Some(median(&side.expiries) / 1_000.0),
        None,
    ));
    rows.push(row(
        "an entry of 100,000, its text included".to_owned(),
        "bytes",
        turns,
        |side| Some(side.bytes / entries),
        None,
    ));
    let text = count("crowd_bytes")? / entries;
    Ok(Table {
        title: format!(
            "The stores, per event: from the text of a v3 /sync response to a subscriber; {} keys",
            about["events"]["join"]
        ),
        rows,
        notes: vec![
            format!("An entry's text has {text:.0} bytes."),
            "A scan: `JSON.parse` or serde_json's `IgnoredAny`, over the same responses."
                .to_owned(),
            "Time is the main thread's on the processor; V8's other threads do not count."
                .to_owned(),
        ],
    })
}

/// What one side has in one turn, if it does.
type Figure<'a> = &'a dyn Fn(&Side) -> Option<f64>;

fn row(
    name: String,
    unit: &'static str,
    turns: &[(Side, Side)],
    value: impl Fn(&Side) -> Option<f64>,
    scans: Option<Figure<'_>>,
) -> Row {
    let all = |of: Figure<'_>| -> (Vec<f64>, Vec<f64>) {
        turns.iter().filter_map(|(ours, theirs)| Some((of(ours)?, of(theirs)?))).unzip()
    };
    let (ours, theirs) = all(&value);
    Row {
        name,
        unit,
        ours: median(&ours),
        theirs: median(&theirs),
        scans: scans.map(all).map(|(ours, theirs)| (median(&ours), median(&theirs))),
        ratios: theirs.iter().zip(&ours).map(|(theirs, ours)| theirs / ours).collect(),
    }
}
