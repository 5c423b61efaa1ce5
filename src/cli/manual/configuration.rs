//! kvmlet.toml(5), made from the configuration file that is shipped: its comments are
//! the descriptions.
//!
//! Comments belong to the section or the keys that follow them without an empty line in
//! between. Keys that follow one another share a comment. A section or a key that is
//! commented out is one like others.

use super::Page;
use std::collections::BTreeSet;

const SHIPPED: &str = include_str!("../../../packaging/kvmlet.toml");

/// One line of the file.
enum Line<'f> {
    Empty,
    Section(&'f str),
    /// A key with its value, and whether it is commented out.
    Key(&'f str, bool),
    /// A comment, without the sign; of an empty one nothing.
    Words(&'f str),
}

impl<'f> Line<'f> {
    fn of(line: &'f str) -> Self {
        if line.is_empty() {
            return Self::Empty;
        }
        let (text, commented) = match line.strip_prefix('#') {
            Some(text) => (text.strip_prefix(' ').unwrap_or(text), true),
            None => (line, false),
        };
        if text.starts_with('[') && text.ends_with(']') {
            Self::Section(text)
        } else if is_key(text) {
            Self::Key(text, commented)
        } else {
            Self::Words(text)
        }
    }
}

fn is_key(text: &str) -> bool {
    text.split_once(" = ").is_some_and(|(key, _)| {
        !key.is_empty()
            && key
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    })
}

/// The page.
pub(super) fn page(source: &str) -> String {
    let mut page = Page::new("kvmlet.toml", "5", "configuration of kvmlet", source);
    page.section("SYNOPSIS").text("/etc/kvmlet/kvmlet.toml");
    page.section("DESCRIPTION");
    let mut words = Vec::new();
    let mut keys = Vec::new();
    let mut sections = BTreeSet::new();
    for line in SHIPPED.lines().map(Line::of).chain([Line::Empty]) {
        if !matches!(line, Line::Key(..)) {
            entry(&mut page, &mut keys, &mut words);
        }
        match line {
            Line::Words(text) => words.push(text),
            Line::Key(text, commented) => keys.push((text, commented)),
            Line::Section(name) => {
                if sections.is_empty() {
                    introduce(&mut page);
                }
                if sections.insert(name) {
                    page.section(name);
                } else {
                    page.part(name);
                }
                described(&mut page, &mut words, Page::paragraph);
            }
            // What is said of nothing in particular stands at the top; what is said of a
            // section, perhaps over an empty line, stays for it.
            Line::Empty if sections.is_empty() => {
                described(&mut page, &mut words, Page::paragraph);
            }
            Line::Empty => {}
        }
    }
    page.section("FILES")
        .entry(["/etc/kvmlet/kvmlet.toml"])
        .text("What the daemon reads. As installed it has every key with its default.");
    page.see_also(&["kvmlet(8)", "kvmlet(1)", "kvmlet-config-check(1)"]);
    page.finish()
}

fn introduce(page: &mut Page) {
    page.paragraph(
        "The sections below are those of the file. A value is the key's default, except \
         where it is marked as an example: by default such a key, or its whole section, is \
         not there. Keys that are not known are refused.",
    );
}

/// Adds the keys that were gathered, with their comment.
fn entry(page: &mut Page, keys: &mut Vec<(&str, bool)>, words: &mut Vec<&str>) {
    if keys.is_empty() {
        return;
    }
    let names: Vec<String> = keys
        .drain(..)
        .map(|(text, commented)| match commented {
            true => format!("{text}    (example)"),
            false => text.to_owned(),
        })
        .collect();
    page.entry(names.iter().map(String::as_str));
    let mut first = true;
    described(page, words, |page, text| {
        if std::mem::take(&mut first) {
            page.text(text)
        } else {
            page.more(text)
        }
    });
}

/// Adds a comment: its paragraphs, and lines that are indented as they are.
fn described(
    page: &mut Page,
    words: &mut Vec<&str>,
    mut add: impl for<'p> FnMut(&'p mut Page, &str) -> &'p mut Page,
) {
    let mut lines = words.drain(..).peekable();
    while let Some(line) = lines.next() {
        if line.starts_with(' ') {
            let mut kept = vec![line.trim()];
            while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
                kept.push(line.trim_end());
            }
            page.lines(kept);
        } else if !line.is_empty() {
            let mut paragraph = line.to_owned();
            while let Some(line) = lines.next_if(|line| !line.is_empty() && !line.starts_with(' '))
            {
                paragraph.push(' ');
                paragraph.push_str(line);
            }
            add(page, &paragraph);
        }
    }
}
