//! Reading one table of a TOML document, key by key.
//!
//! A reader never stops at a fault: it notes it and goes on with the default,
//! so that one pass finds them all. Each key that is asked for counts as
//! known; [`Section::finish`] reports the others.

use super::faults::Fault;
use crate::model::bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The text being read and what was found wrong with it so far.
pub(super) struct Document<'d> {
    text: &'d str,
    faults: RefCell<Vec<Fault>>,
}

impl<'d> Document<'d> {
    pub(super) fn new(text: &'d str) -> Self {
        Self {
            text,
            faults: RefCell::default(),
        }
    }

    /// Notes a fault; `at` is a position in the text.
    pub(super) fn fault(&self, key: &str, problem: impl Display, at: Option<usize>) {
        let line = at.and_then(|at| self.text.get(..at));
        self.faults.borrow_mut().push(Fault {
            key: key.to_owned(),
            problem: problem.to_string(),
            line: line.map(|before| before.matches('\n').count() + 1),
        });
    }

    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults.into_inner()
    }
}

type Value<'d> = Spanned<DeValue<'d>>;

/// One table, or the absence of it, and the path that leads there.
pub(super) struct Section<'d> {
    document: &'d Document<'d>,
    path: String,
    table: Option<&'d DeTable<'d>>,
    /// Where the table starts in the text.
    at: Option<usize>,
    known: RefCell<Vec<&'static str>>,
}

impl<'d> Section<'d> {
    pub(super) fn root(document: &'d Document<'d>, table: &'d DeTable<'d>) -> Self {
        Self::new(document, String::new(), Some(table), None)
    }

    fn new(
        document: &'d Document<'d>,
        path: String,
        table: Option<&'d DeTable<'d>>,
        at: Option<usize>,
    ) -> Self {
        Self {
            document,
            path,
            table,
            at,
            known: RefCell::default(),
        }
    }

    /// The path of `key`, or of the section itself if it is empty.
    fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", _) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, _) => format!("{path}.{key}"),
        }
    }

    /// The value of `key`, which counts as known from now on.
    fn value(&self, key: &'static str) -> Option<&'d Value<'d>> {
        self.known.borrow_mut().push(key);
        self.table?.get(key)
    }

    /// Notes that the value of `key` is wrong (or that the key is missing).
    pub(super) fn fault(&self, key: &str, problem: impl Display) {
        let at = self
            .table
            .and_then(|table| table.get(key))
            .map(|value| value.span().start)
            .or(self.at);
        self.document.fault(&self.path_of(key), problem, at);
    }

    /// Whether the file sets `key`.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let mut names = known.clone();
                names.sort_unstable();
                names.dedup();
                self.document.fault(
                    &self.path_of(name),
                    format_args!("unknown key (known here: {})", names.join(", ")),
                    Some(key.span().start),
                );
            }
        }
    }

    /// The table under `key`.
    pub(super) fn section(&self, key: &'static str) -> Section<'d> {
        let value = self.value(key);
        let table = value.and_then(|value| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                self.fault(key, "must be a table");
            }
            table
        });
        let at = value.map(|value| value.span().start);
        Section::new(self.document, self.path_of(key), table, at)
    }

    /// The array of tables under `key`; empty if there is none.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'d>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.fault(key, "must be an array of tables");
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let (path, at) = (
                format!("{}[{index}]", self.path_of(key)),
                element.span().start,
            );
            match element.get_ref().as_table() {
                Some(table) => {
                    sections.push(Section::new(self.document, path, Some(table), Some(at)));
                }
                None => self.document.fault(&path, "must be a table", Some(at)),
            }
        }
        sections
    }

    /// A string.
    pub(super) fn text(&self, key: &'static str) -> Option<&'d str> {
        let text = self.value(key)?.get_ref().as_str();
        if text.is_none() {
            self.fault(key, "must be a string");
        }
        text
    }

    /// A string that `parse` makes a value of; what it refuses is a fault.
    pub(super) fn parsed<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        parse(self.text(key)?)
            .map_err(|error| self.fault(key, error))
            .ok()
    }

    /// A string that must be one of `choices`.
    pub(super) fn choice<T: Clone>(
        &self,
        key: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> T {
        self.parsed(key, |text| {
            let found = choices.iter().find(|(name, _)| *name == text);
            found.map(|(_, choice)| choice.clone()).ok_or_else(|| {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                format!("must be one of {}", names.join(", "))
            })
        })
        .unwrap_or(default)
    }

    /// A whole number within `range`.
    pub(super) fn number<T>(&self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<u64> + PartialOrd + Display,
    {
        let value = self.value(key)?.get_ref().as_integer();
        let number = value
            .and_then(|value| u64::from_str_radix(value.as_str(), value.radix()).ok())
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.fault(
                key,
                format_args!("must be a whole number from {least} to {most}"),
            );
        }
        number
    }

    /// A number, with or without a fraction, within `range`.
    pub(super) fn ratio(&self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let ratio = match self.value(key)?.get_ref() {
            DeValue::Float(value) => value.as_str().parse().ok(),
            DeValue::Integer(value) if value.radix() == 10 => value.as_str().parse().ok(),
            _ => None,
        };
        let ratio = ratio.filter(|ratio| range.contains(ratio));
        if ratio.is_none() {
            let (least, most) = (range.start(), range.end());
            self.fault(key, format_args!("must be a number from {least} to {most}"));
        }
        ratio
    }

    /// True or false.
    pub(super) fn flag(&self, key: &'static str) -> Option<bool> {
        let flag = self.value(key)?.get_ref().as_bool();
        if flag.is_none() {
            self.fault(key, "must be true or false");
        }
        flag
    }

    /// A duration such as `"90s"` or `"1h 30m"`, within `range`.
    pub(super) fn duration(
        &self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.parsed(key, |text| {
            let duration = humantime::parse_duration(text)
                .map_err(|error| format!("is not a duration such as \"90s\" or \"7d\": {error}"))?;
            if range.contains(&duration) {
                return Ok(duration);
            }
            let (least, most) = (
                humantime::format_duration(*range.start()),
                humantime::format_duration(*range.end()),
            );
            Err(format!("must be from {least} to {most}"))
        })
    }

    /// A size such as `"20 GiB"`, within `range`.
    pub(super) fn size(&self, key: &'static str, range: RangeInclusive<Bytes>) -> Option<Bytes> {
        self.parsed(key, |text| {
            let size = parse_size(text)
                .ok_or_else(|| "is not a size such as \"512 MiB\" or \"20 GiB\"".to_owned())?;
            if range.contains(&size) {
                return Ok(size);
            }
            Err(format!("must be from {} to {}", range.start(), range.end()))
        })
    }

    /// An absolute path without `..`.
    pub(super) fn absolute_path(&self, key: &'static str) -> Option<PathBuf> {
        self.parsed(key, check_path)
    }

    /// An array of strings, each made into a value by `parse`.
    pub(super) fn list<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let Some(array) = self.value(key)?.get_ref().as_array() else {
            self.fault(key, "must be an array of strings");
            return None;
        };
        let mut list = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let parsed = match element.get_ref().as_str() {
                Some(text) => parse(text).map_err(|error| error.to_string()),
                None => Err("must be a string".to_owned()),
            };
            match parsed {
                Ok(value) => list.push(value),
                Err(problem) => self.document.fault(
                    &format!("{}[{index}]", self.path_of(key)),
                    problem,
                    Some(element.span().start),
                ),
            }
        }
        Some(list)
    }

    /// A table of strings with keys of the administrator's choice.
    pub(super) fn strings(&self, key: &'static str) -> BTreeMap<String, String> {
        let section = self.section(key);
        let mut strings = BTreeMap::new();
        for (name, value) in section.table.into_iter().flatten() {
            let name = name.get_ref().as_ref();
            match value.get_ref().as_str() {
                Some(text) => {
                    strings.insert(name.to_owned(), text.to_owned());
                }
                None => section.fault(name, "must be a string"),
            }
        }
        strings
    }
}

/// Makes a path of `text` if it is absolute and means what it says.
pub(super) fn check_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("must be absolute");
    }
    if text.contains('\0') {
        return Err("must not hold a NUL");
    }
    if path
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return Err("must not hold \"..\"");
    }
    // Without doubled and trailing slashes, so that equal paths compare equal.
    Ok(path.components().collect())
}

/// Reads a size: a whole number and a binary unit (`B`, `KiB` … `PiB`).
///
/// Decimal units and bare letters are refused: nobody knows what `20G` means.
fn parse_size(text: &str) -> Option<Bytes> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        "PiB" => 50,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(1 << shift).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_binary_unit() {
        assert_eq!(parse_size("20 GiB"), Some(Bytes::gib(20)));
        assert_eq!(parse_size(" 512MiB "), Some(Bytes::mib(512)));
        assert_eq!(parse_size("0 B"), Some(Bytes::ZERO));
        for bad in [
            "",
            "20",
            "20G",
            "20 GB",
            "-1 GiB",
            "1.5 GiB",
            "GiB",
            "99999999 PiB",
        ] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn paths_are_absolute_and_lead_straight_down() {
        assert_eq!(check_path("/a//b/"), Ok(PathBuf::from("/a/b")));
        assert!(check_path("a").is_err());
        assert!(check_path("/a/../b").is_err());
    }
}
