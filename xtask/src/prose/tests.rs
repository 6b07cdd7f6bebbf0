//! What the check finds, and what it leaves alone. The examples stand in pieces, as this file is checked too.

use super::*;

/// The phrases that a text is refused for.
fn refused(text: &str) -> Vec<String> {
    findings(text).into_iter().map(|finding| finding.phrase).collect()
}

/// Joins words that must not stand side by side in this file.
fn text(words: &[&str]) -> String {
    words.join(" ")
}

#[test]
fn every_phrase_is_found_with_its_line() {
    for (phrase, _) in PHRASES {
        let comment = format!("let x = 1;\n\n// A member {} here.\n", text(phrase));
        let found = findings(&comment);
        assert_eq!(found.len(), 1, "{comment}");
        assert_eq!(found[0].line, 3);
        assert_eq!(found[0].phrase, phrase.join(" "));
    }
}

#[test]
fn phrase_over_two_comment_lines_is_found() {
    assert_eq!(refused("/// The members of\n/// whom nobody knows.\n"), [text(&["of", "whom"])]);
}

#[test]
fn phrase_in_an_error_text_is_found() {
    let code = format!("let error = \"there {} here\";\n", text(&["is", "none"]));
    assert_eq!(refused(&code), [text(&["is", "none"])]);
}

#[test]
fn phrase_over_a_continued_string_is_found() {
    assert_eq!(refused("bail!(\"a port unless \\\n    told\")"), [text(&["unless", "told"])]);
}

#[test]
fn phrase_in_a_test_name_is_found() {
    let name = ["a", "port", "unless", "told", "otherwise"].join("_");
    assert_eq!(refused(&format!("fn {name}() {{}}")), [text(&["unless", "told"])]);
}

#[test]
fn first_word_may_have_a_capital() {
    let word = ["Who", "ever"].concat();
    assert_eq!(refused(&format!("# {word} leaves\n")), [word]);
}

/// Python's `is None`, and words of code that only a mark keeps apart.
#[test]
fn code_is_not_a_phrase() {
    assert!(refused("if value is None:").is_empty());
    assert!(refused("&[\"of\", \"whom\"]").is_empty());
    assert!(refused("// It is, none of it.").is_empty());
}

#[test]
fn code_span_is_not_prose() {
    assert!(refused(&format!("Do not write `{}` here.", text(&["of", "whom"]))).is_empty());
}

/// What a code span stood between is no phrase either.
#[test]
fn code_span_keeps_its_neighbours_apart() {
    assert!(refused("a list of `names` whom").is_empty());
}

#[test]
fn code_span_without_an_end_hides_nothing() {
    assert_eq!(refused(&format!("A ` and {}", text(&["of", "whom"]))), [text(&["of", "whom"])]);
}

#[test]
fn subject_clause_is_found() {
    let sentence = ["Who", "is slow,", "is told less."].join(" ");
    assert_eq!(refused(&sentence), [text(&["Who", "is", "slow,", "is"])]);
    let sentence = ["Nothing is known. What", "was lost there, is gone."].join(" ");
    assert_eq!(refused(&sentence).len(), 1);
}

#[test]
fn subject_without_a_name_is_found() {
    let sentence = ["Who", "has left gets nothing."].join(" ");
    assert_eq!(
        refused(&format!("// It ends. {sentence}")),
        [text(&["Who", "has", "left", "gets"])]
    );
    let sentence = ["Who", "comes later and never saw that event cannot know."].join(" ");
    assert_eq!(refused(&sentence).len(), 1);
}

#[test]
fn label_is_fine() {
    assert!(refused("/// Who holds the room key, as far as that is known.").is_empty());
    assert!(refused("/// Who was seen and is not.").is_empty());
    assert!(refused("/// Who was there when the leave was armed.").is_empty());
    assert!(refused("# Who is in a call").is_empty());
}

/// A clause between commas says more about a subject that has a name.
#[test]
fn clause_about_a_named_subject_is_fine() {
    assert!(refused("// Bob, who is away, is told later.").is_empty());
}

#[test]
fn question_is_fine() {
    assert!(refused("// Who is there? What is known, in the end?").is_empty());
}

#[test]
fn file_outside_the_list_is_refused() {
    let found = vec![("a.rs".to_owned(), findings(&text(&["of", "whom"])))];
    let verdicts = judge(&found, &BTreeSet::new());
    assert_eq!(verdicts, [("a.rs".to_owned(), Verdict::Refused(found[0].1.clone()))]);
}

#[test]
fn unfinished_file_is_allowed() {
    let found = vec![("a.rs".to_owned(), findings(&text(&["of", "whom"])))];
    assert!(judge(&found, &BTreeSet::from(["a.rs".to_owned()])).is_empty());
}

#[test]
fn clean_file_must_leave_the_list() {
    let list = BTreeSet::from(["Cargo.toml".to_owned(), "nowhere.rs".to_owned()]);
    let verdicts = judge(&[], &list);
    assert_eq!(verdicts[0].1, Verdict::Finished);
    assert_eq!(verdicts[1].1, Verdict::Gone);
}
