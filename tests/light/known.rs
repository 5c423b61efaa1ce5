//! The list of known faults and the tests that show them, held against each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What marks a test, in two parts: this file is read, too.
const MARKS: [&str; 2] = [
    concat!("known::", "fault("),
    concat!("known::", "by_chance("),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names that the module doc lists.
fn listed(text: &str) -> Vec<&str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("//! - `"));
    let entries = lines.map(|line| line.split_once("`: ").expect("a name and what it is"));
    entries.map(|(name, _)| name).collect()
}

/// The names in the marks of a source.
fn marked<'a>(path: &Path, text: &'a str) -> Vec<&'a str> {
    let rests = MARKS.iter().flat_map(|mark| text.split(mark).skip(1));
    let names = rests.map(|rest| {
        let quoted = rest.trim_start().strip_prefix('"');
        let name = quoted.and_then(|rest| rest.split_once('"'));
        let (name, _) = name.unwrap_or_else(|| panic!("{}: a mark without a name", path.display()));
        name
    });
    names.collect()
}

#[test]
fn each_known_fault_is_listed_and_each_listed_one_is_shown_by_a_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let list = fs::read_to_string(tests.join("support/known.rs")).unwrap();
    let names = listed(&list);
    let known: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(known.len(), names.len(), "each once: {names:?}");
    let mut files = Vec::new();
    sources(&tests, &mut files);
    let mut shown = BTreeSet::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        shown.extend(marked(&path, &text).into_iter().map(str::to_owned));
    }
    let unlisted: Vec<_> = shown.difference(&known).collect();
    assert_eq!(unlisted, [""; 0], "to be listed in tests/support/known.rs");
    let mended: Vec<_> = known.difference(&shown).collect();
    assert_eq!(mended, [""; 0], "no test shows it: to be removed there");
}
