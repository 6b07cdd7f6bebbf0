//! `cargo xtask prose`: refuses phrases that readers stumble over, in comments, documents, error texts and
//! test names.
//!
//! In: the text of the repository's files. Out: where a refused phrase stands, with the file and the line.
//! Never: a rewrite of anybody's sentence.
//!
//! The list [`UNFINISHED`] names the files that still have such phrases. A file that is not in it must have
//! none. A file that is in it must have some: the check fails for a clean one, so that the list can only
//! shrink. `cargo xtask prose --shrink` takes the clean ones out.
//!
//! Why not simply `grep`? A phrase breaks over two lines of a comment, and code has the same words.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use xtask::folders::workspace;

/// The list of the files that are not rewritten yet, one path a line.
const UNFINISHED: &str = "xtask/src/prose/unfinished.txt";

/// Folders that hold nothing that a person has written for another one to read.
const SKIPPED: &[&str] = &[".git", "artifacts", "corpus", "node_modules", "target"];

/// What a text file ends with. `run` is `.ci/run`, the only one without an extension.
const EXTENSIONS: &[&str] =
    &["kt", "kts", "md", "mjs", "py", "rs", "sh", "swift", "toml", "txt", "yaml", "yml"];

/// What no sentence may contain, and what to write instead.
const PHRASES: &[(&[&str], &str)] = &[
    (&["of", "whom"], "name the subject, or write \"whose\""),
    (&["such", "a", "one"], "write \"one\", or name it"),
    (&["is", "none"], "write \"is not a ..\" or \"has no ..\""),
    (&["unless", "told"], "write \"defaults to ..\""),
    (&["unless", "set"], "write \"defaults to ..\""),
    (&["where", "that", "is"], "write \"if ..\""),
    (&["whoever"], "name the subject"),
    (&["as", "soon", "as", "may", "be"], "write \"at once\", or a number with its unit"),
];

/// What the subject of "who is .., is .." is followed by, and its main verb.
const VERBS: &[&str] = &["is", "was", "are", "were", "has", "does", "gets"];

/// The verbs that show that a sentence which begins with "Who .." is not a label.
const MAIN_VERBS: &[&str] =
    &["is", "was", "has", "gets", "can", "cannot", "does", "may", "must", "will"];

/// What stands before a verb that belongs to the clause of "Who ..", or to a clause in it.
const CLAUSE_WORDS: &[&str] = &[
    "and", "as", "he", "it", "nobody", "not", "or", "she", "somebody", "than", "that", "there",
    "they", "what", "which", "who",
];

/// The longest "who is .., is .." that is looked for, in words.
const MAX_CLAUSE_WORDS: usize = 10;

/// A phrase that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// From 1.
    line: usize,
    phrase: String,
    advice: &'static str,
}

/// What the check has found out about one file.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The file has refused phrases, and is not in the list.
    Refused(Vec<Finding>),
    /// The file is in the list, and clean: it has to leave the list.
    Finished,
    /// The file is in the list, and is gone: it has to leave the list.
    Gone,
}

/// `cargo xtask prose`.
pub(crate) fn run(shrink: bool) -> anyhow::Result<ExitCode> {
    if shrink {
        shrink_list(&workspace())?;
    }
    check()?;
    Ok(ExitCode::SUCCESS)
}

/// Fails with a list of what is wrong.
pub(crate) fn check() -> anyhow::Result<()> {
    let root = workspace();
    let unfinished = unfinished(&root)?;
    let verdicts = judge(&found(&root)?, &unfinished);
    if verdicts.is_empty() {
        return Ok(());
    }
    let mut lines = Vec::new();
    for (path, verdict) in &verdicts {
        match verdict {
            Verdict::Refused(findings) => lines.extend(findings.iter().map(|finding| {
                format!("{path}:{}: \"{}\": {}", finding.line, finding.phrase, finding.advice)
            })),
            Verdict::Finished => {
                lines.push(format!("{path}: is clean, and stands in {UNFINISHED}"))
            }
            Verdict::Gone => lines.push(format!("{path}: is gone, and stands in {UNFINISHED}")),
        }
    }
    let has_refused = verdicts.iter().any(|(_, verdict)| matches!(verdict, Verdict::Refused(_)));
    let advice = if has_refused {
        "rewrite these sentences: name the subject, one fact in one clause (see CONTRIBUTING.md)"
    } else {
        "take them out of the list with `cargo xtask prose --shrink`"
    };
    bail!("{}\n{advice}", lines.join("\n"))
}

/// Rewrites the list without the files that are clean or gone. It adds no file.
fn shrink_list(root: &Path) -> anyhow::Result<()> {
    let bad: BTreeSet<String> = found(root)?.into_iter().map(|(path, _)| path).collect();
    let left: String = unfinished(root)?
        .into_iter()
        .filter(|path| bad.contains(path))
        .map(|path| path + "\n")
        .collect();
    fs::write(root.join(UNFINISHED), left).with_context(|| format!("cannot write {UNFINISHED}"))
}

fn unfinished(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(root.join(UNFINISHED))
        .with_context(|| format!("cannot read {UNFINISHED}"))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Compares what was found with the list.
fn judge(
    found: &[(String, Vec<Finding>)],
    unfinished: &BTreeSet<String>,
) -> Vec<(String, Verdict)> {
    let mut verdicts: Vec<_> = found
        .iter()
        .filter(|(path, _)| !unfinished.contains(path))
        .map(|(path, findings)| (path.clone(), Verdict::Refused(findings.clone())))
        .collect();
    let bad: BTreeSet<&String> = found.iter().map(|(path, _)| path).collect();
    verdicts.extend(unfinished.iter().filter(|path| !bad.contains(path)).map(|path| {
        let verdict =
            if workspace().join(path).exists() { Verdict::Finished } else { Verdict::Gone };
        (path.clone(), verdict)
    }));
    verdicts
}

/// The files with refused phrases, by path, with `/` on every system.
fn found(root: &Path) -> anyhow::Result<Vec<(String, Vec<Finding>)>> {
    let mut files = Vec::new();
    walk(root, &mut files).context("cannot list the repository's files")?;
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let findings = findings(&text);
        if !findings.is_empty() {
            let path = file.strip_prefix(root).unwrap_or(&file);
            let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
            found.push((parts.join("/"), findings));
        }
    }
    Ok(found)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !SKIPPED.contains(&name.as_ref()) {
                walk(&path, files)?;
            }
        } else if path.ends_with(".ci/run")
            || path
                .extension()
                .is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known))
        {
            files.push(path);
        }
    }
    Ok(())
}

/// One word of a paragraph.
struct Word<'a> {
    line: usize,
    /// Without the punctuation around it.
    text: &'a str,
    /// Whether a mark such as a comma or a bracket stands before it.
    is_after_mark: bool,
    /// The mark behind it, if there is one.
    mark: Option<char>,
}

/// What stands in a text and should not, in order.
fn findings(text: &str) -> Vec<Finding> {
    let mut findings: Vec<_> =
        paragraphs(text).iter().flat_map(|paragraph| in_paragraph(paragraph)).collect();
    findings.sort_by_key(|finding| finding.line);
    findings
}

/// Lines that belong together, each with its number: those of one comment, or of code without a blank line
/// between them.
fn paragraphs(text: &str) -> Vec<Vec<(usize, String)>> {
    let mut paragraphs = vec![Vec::new()];
    let mut was_comment = false;
    for (index, line) in text.lines().enumerate() {
        let (is_comment, prose) = without_marker(line.trim());
        let ends = prose.is_empty() || prose.starts_with("```") || is_comment != was_comment;
        was_comment = is_comment;
        if ends {
            paragraphs.push(Vec::new());
        }
        if let Some(paragraph) = paragraphs.last_mut()
            && !prose.starts_with("```")
        {
            paragraph.push((index + 1, readable(prose)));
        }
    }
    // What stands in backticks is code, or quoted.
    paragraphs.into_iter().map(without_code_spans).collect()
}

/// Cuts off what makes a line a comment. `true` if it was one.
fn without_marker(line: &str) -> (bool, &str) {
    for marker in ["//!", "///", "//", "/**", "/*", "* ", "# "] {
        if let Some(rest) = line.strip_prefix(marker) {
            return (true, rest.trim());
        }
    }
    (matches!(line, "#" | "*"), if matches!(line, "#" | "*") { "" } else { line })
}

/// The name of a function, as of a test, is read as words; a string goes on behind a backslash.
fn readable(line: &str) -> String {
    let line = line.strip_suffix('\\').unwrap_or(line);
    let Some((before, rest)) = line.split_once("fn ") else { return line.to_owned() };
    let name = rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
    let name = name.unwrap_or_default();
    format!("{before}fn {}{}", name.replace('_', " "), rest.get(name.len()..).unwrap_or_default())
}

/// Takes out what stands in backticks; nothing if one of them has no partner.
fn without_code_spans(paragraph: Vec<(usize, String)>) -> Vec<(usize, String)> {
    let ticks: usize = paragraph.iter().map(|(_, line)| line.matches('`').count()).sum();
    if !ticks.is_multiple_of(2) {
        return paragraph;
    }
    let mut is_code = false;
    let cut = |(number, line): (usize, String)| {
        let mut kept = String::new();
        for letter in line.chars() {
            match letter {
                '`' => {
                    is_code = !is_code;
                    // A word in its place, so that what is around it does not become a phrase.
                    kept.push_str(if is_code { " code" } else { "" });
                }
                _ if is_code => {}
                _ => kept.push(letter),
            }
        }
        (number, kept)
    };
    paragraph.into_iter().map(cut).collect()
}

fn in_paragraph(paragraph: &[(usize, String)]) -> Vec<Finding> {
    let words: Vec<_> = paragraph.iter().flat_map(|(line, text)| words(*line, text)).collect();
    let mut findings = Vec::new();
    for start in 0..words.len() {
        let rest = words.get(start..).unwrap_or_default();
        for (phrase, advice) in PHRASES {
            if is_phrase(rest, phrase) {
                findings.push(finding(rest, phrase.len(), advice));
            }
        }
        let begins = start == 0
            || words.get(start - 1).is_some_and(|before| before.mark.is_some_and(ends_sentence));
        if begins && let Some(length) = subject_sentence(rest) {
            findings.push(finding(rest, length, "name the subject: \"A member who ..\""));
            continue;
        }
        let is_own_clause = begins || rest.first().is_some_and(|word| !word.is_after_mark);
        if is_own_clause && let Some(length) = subject_clause(rest) {
            findings.push(finding(
                rest,
                length,
                "name the subject, and say one fact in one clause",
            ));
        }
    }
    findings
}

fn words(line: usize, text: &str) -> impl Iterator<Item = Word<'_>> {
    let mut is_after_mark = false;
    text.split_whitespace().map(move |raw| {
        let is_word = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '\'');
        let begin = raw.find(is_word).unwrap_or(raw.len());
        let end = raw.rfind(is_word).map_or(begin, |last| {
            last + raw.get(last..).and_then(|tail| tail.chars().next()).map_or(1, char::len_utf8)
        });
        let mark = raw.get(end..).and_then(|tail| tail.chars().next());
        let word = Word {
            line,
            text: raw.get(begin..end).unwrap_or_default(),
            is_after_mark: is_after_mark || begin > 0,
            mark,
        };
        is_after_mark = mark.is_some();
        word
    })
}

/// Whether the words begin with the phrase, with no mark in it. Only the first may have a capital: `None`
/// is a value.
fn is_phrase(words: &[Word<'_>], phrase: &[&str]) -> bool {
    words.len() >= phrase.len()
        && words.iter().zip(phrase).enumerate().all(|(index, (word, wanted))| {
            let is_same = if index == 0 {
                word.text.eq_ignore_ascii_case(wanted)
            } else {
                word.text == *wanted
            };
            let is_inside = index + 1 < phrase.len();
            is_same && (index == 0 || !word.is_after_mark) && !(is_inside && word.mark.is_some())
        })
}

fn ends_sentence(mark: char) -> bool {
    matches!(mark, '.' | ':' | ';' | '!' | '?')
}

/// The length of a "Who has left gets" at the beginning of a sentence, in words. A label such as "Who may
/// read it." has one verb, and a question ends as one.
fn subject_sentence(words: &[Word<'_>]) -> Option<usize> {
    if words.first()?.text != "Who" || words.first()?.mark.is_some() {
        return None;
    }
    let end = words.iter().position(|word| word.mark.is_some_and(ends_sentence));
    let sentence = words.get(..=end?)?;
    if sentence.last()?.mark == Some('?') {
        return None;
    }
    // Verbs behind it belong to it.
    let aside = sentence.iter().position(|word| matches!(word.text, "when" | "while" | "if"));
    let sentence = sentence.get(..aside.unwrap_or(sentence.len()))?;
    sentence.windows(2).enumerate().skip(1).find_map(|(index, pair)| {
        let [before, verb] = pair else { return None };
        let is_main = MAIN_VERBS.contains(&verb.text)
            && !CLAUSE_WORDS.contains(&before.text)
            && matches!(before.mark, None | Some(','));
        is_main.then_some(index + 2)
    })
}

/// The length of a "who is .., is" at the beginning, in words.
///
/// Why no commas before it? "Bob, who is away, is told" is plain English.
fn subject_clause(words: &[Word<'_>]) -> Option<usize> {
    let [pronoun, verb, ..] = words else { return None };
    let is_pronoun = ["who", "what"].iter().any(|word| pronoun.text.eq_ignore_ascii_case(word));
    if !is_pronoun || pronoun.mark.is_some() || !VERBS.contains(&verb.text) {
        return None;
    }
    for (index, pair) in words.windows(2).enumerate().take(MAX_CLAUSE_WORDS).skip(1) {
        let [last, next] = pair else { return None };
        match last.mark {
            Some(',') if VERBS.contains(&next.text) => return Some(index + 2),
            None => {}
            Some(_) => return None,
        }
    }
    None
}

fn finding(words: &[Word<'_>], length: usize, advice: &'static str) -> Finding {
    let words = words.get(..length).unwrap_or_default();
    let phrase = words
        .iter()
        .enumerate()
        .map(|(index, word)| {
            let mark = word.mark.filter(|_| index + 1 < words.len());
            format!("{}{}", word.text, mark.map(String::from).unwrap_or_default())
        })
        .collect::<Vec<_>>()
        .join(" ");
    Finding { line: words.first().map_or(0, |word| word.line), phrase, advice }
}
