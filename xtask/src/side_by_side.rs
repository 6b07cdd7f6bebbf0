//! `cargo xtask side-by-side`: ours and matrix-js-sdk on one machine in one run. Their side is
//! `benches/js`: JavaScript, and our counterpart of it.
//!
//! What is compared is measured in turns or at the same moment, so that the ratios hold on a
//! machine that others use too; the absolute figures do not.

mod latency;
mod store;

use std::process::ExitCode;

use serde_json::{Value, json};
use xtask::npm::Js;

use crate::{Side, SideBySideArgs, cargo::Cargo, ci::INTERRUPTED, process::Interrupt};

pub(crate) fn run(
    args: &SideBySideArgs,
    cargo: &Cargo,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let interrupted = Ok(ExitCode::from(INTERRUPTED));
    let Some(js) = interrupt.or(Js::ensure).transpose()? else { return interrupted };
    for (side, measure) in
        [(Side::Store, store::measure as Measure), (Side::Server, latency::measure)]
    {
        if args.only.is_none_or(|only| only == side) {
            let Some(table) = measure(&js, cargo, interrupt)? else { return interrupted };
            table.print(args.json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes one of the tables; `None` if Ctrl-C came first.
type Measure = fn(&Js, &Cargo, &Interrupt) -> anyhow::Result<Option<Table>>;

/// What was compared, a row each.
struct Table {
    title: String,
    rows: Vec<Row>,
    /// What the rows do not say.
    notes: Vec<String>,
}

struct Row {
    name: String,
    unit: &'static str,
    ours: f64,
    theirs: f64,
    /// How many times its own scan of the same bytes each side needs.
    scans: Option<(f64, f64)>,
    /// Theirs to ours, of each turn: how far the ratio is to be believed.
    ratios: Vec<f64>,
}

impl Row {
    /// How many times more theirs takes.
    fn ratio(&self) -> f64 {
        median(&self.ratios)
    }

    fn spread(&self) -> (f64, f64) {
        let sorted = sorted(&self.ratios);
        (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN))
    }
}

impl Table {
    #[allow(clippy::print_stdout, reason = "it is what the chore is for")]
    fn print(&self, json: bool) {
        if json {
            for row in &self.rows {
                println!("{}", row.json());
            }
            return;
        }
        println!("\n{}\n", self.title);
        println!(
            "| | ours | matrix-js-sdk | theirs / ours (least .. most) | scans: ours, theirs |"
        );
        println!("|---|---|---|---|---|");
        for row in &self.rows {
            let Row { name, unit, ours, theirs, .. } = row;
            let (least, most) = row.spread();
            let scans = row
                .scans
                .map(|(ours, theirs)| format!("{ours:.1}, {theirs:.1}"))
                .unwrap_or_default();
            println!(
                "| {name} | {} {unit} | {} {unit} | {} ({} .. {}) | {scans} |",
                short(*ours),
                short(*theirs),
                short(row.ratio()),
                short(least),
                short(most),
            );
        }
        println!();
        for note in &self.notes {
            println!("{note}");
        }
    }
}

impl Row {
    fn json(&self) -> Value {
        let Self { name, unit, ours, theirs, scans, .. } = self;
        let (least, most) = self.spread();
        let mut row = json!({
            "row": name,
            "unit": unit,
            "ours": ours,
            "theirs": theirs,
            "ratio": self.ratio(),
            "ratio_least": least,
            "ratio_most": most,
        });
        if let Some((ours, theirs)) = scans {
            row["ours_in_scans"] = json!(ours);
            row["theirs_in_scans"] = json!(theirs);
        }
        row
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0}", (value / 100.0).round() * 100.0),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The value below which that part of the others lies.
fn percentile(values: &[f64], part: f64) -> f64 {
    let sorted = sorted(values);
    let last = sorted.len().saturating_sub(1);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "between 0 and a length"
    )]
    let index = (last as f64 * part).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::{median, percentile, short};

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(median(&values), 3.0);
        assert_eq!(percentile(&values, 0.9), 5.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(short(35_123_456.0), "35123500");
        assert_eq!(short(123.4), "123");
        assert_eq!(short(1.234), "1.23");
    }
}
