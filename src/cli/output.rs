//! How answers are printed: tables for people, JSON for scripts.
//!
//! Invariant: no text of the API reaches the terminal with a control character
//! in it. How a table is laid out is in [`table`](super::table), how a message
//! becomes JSON in [`json`](super::json).

use crate::cli::fault::Fault;
use crate::cli::json::{self, Named};
use crate::cli::table::Table;
use crate::model::bytes::Bytes;
use clap::ValueEnum;
use prost::Message;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

/// How to print an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For scripts
    Json,
}

/// Prints answers as asked for.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    format: Format,
    /// Ids only.
    pub(crate) quiet: bool,
    now: OffsetDateTime,
}

impl Output {
    /// Reads the clock and the local time zone once. Must be called while the
    /// process has one thread, else times are shown in UTC.
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        let now = OffsetDateTime::now_utc();
        let offset = UtcOffset::local_offset_at(now).unwrap_or(UtcOffset::UTC);
        Self {
            format,
            quiet,
            now: now.to_offset(offset),
        }
    }

    /// Whether a script reads.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints text and a newline.
    pub(crate) fn line(&self, text: impl fmt::Display) -> Result<(), Fault> {
        let text = text.to_string();
        self.bytes(format!("{}\n", text.trim_end_matches('\n')).as_bytes())
    }

    /// Prints bytes as they are. A reader that has gone (`| head`) is no fault.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Fault> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Fault::internal(format!("can't write the answer: {error}")))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Prints one message: as JSON, its id alone, or as `table` says.
    pub(crate) fn one<M: Message + Named>(
        &self,
        message: &M,
        table: impl FnOnce() -> String,
    ) -> Result<(), Fault> {
        if self.is_json() {
            self.json(&json::value(message)?)
        } else if self.quiet {
            self.line(clean(message.id()))
        } else {
            self.line(table())
        }
    }

    /// Prints many messages: as a JSON array, their ids, or as `table` says.
    pub(crate) fn many<M: Message + Named>(
        &self,
        messages: &[M],
        table: impl FnOnce() -> Table,
    ) -> Result<(), Fault> {
        if self.is_json() {
            let values = messages
                .iter()
                .map(json::value)
                .collect::<Result<Vec<_>, _>>()?;
            self.json(&values.into())
        } else if self.quiet {
            messages
                .iter()
                .try_for_each(|message| self.line(clean(message.id())))
        } else {
            self.line(table())
        }
    }

    /// Prints a JSON value, laid out for people.
    pub(crate) fn json(&self, value: &serde_json::Value) -> Result<(), Fault> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Fault::internal(format!("can't write JSON: {error}")))?;
        self.line(harmless(&text))
    }

    /// Prints a JSON value on one line.
    pub(crate) fn json_line(&self, value: &serde_json::Value) -> Result<(), Fault> {
        self.line(harmless(&value.to_string()))
    }

    /// A time as people say it: `3m ago`, `in 6d`.
    pub(crate) fn relative(&self, time: Option<prost_types::Timestamp>) -> String {
        let Some(time) = time else {
            return String::new();
        };
        let seconds = self.now.unix_timestamp().saturating_sub(time.seconds);
        let span = span(seconds.unsigned_abs());
        match seconds {
            0 => "now".into(),
            1.. => format!("{span} ago"),
            _ => format!("in {span}"),
        }
    }

    /// The time of day, in the local time zone; as wide as a time if there is none.
    pub(crate) fn clock(&self, time: Option<prost_types::Timestamp>) -> String {
        let format = format_description!("[hour]:[minute]:[second]");
        time.and_then(|stamp| OffsetDateTime::from_unix_timestamp(stamp.seconds).ok())
            .and_then(|moment| moment.to_offset(self.now.offset()).format(format).ok())
            .unwrap_or_else(|| " ".repeat("00:00:00".len()))
    }

    /// A time in full, in the local time zone, and as people say it.
    pub(crate) fn local(&self, time: Option<prost_types::Timestamp>) -> String {
        let Some(stamp) = time else {
            return String::new();
        };
        let format = format_description!(
            "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory]:[offset_minute]"
        );
        OffsetDateTime::from_unix_timestamp(stamp.seconds)
            .ok()
            .and_then(|moment| moment.to_offset(self.now.offset()).format(format).ok())
            .map(|text| format!("{text} ({})", self.relative(time)))
            .unwrap_or_default()
    }
}

/// JSON with everything escaped that a terminal would obey.
fn harmless(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        // JSON escapes what is below a space; terminals obey more than that.
        if c != '\n' && is_unseen(c) {
            write!(escaped, "\\u{:04x}", u32::from(c)).expect("a String takes all");
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The wire's duration in seconds, with at most one decimal.
pub(crate) fn duration(duration: impl TryInto<std::time::Duration>) -> String {
    let Ok(duration) = duration.try_into() else {
        return "?".into();
    };
    if (1..100).contains(&duration.as_millis()) {
        return format!("{} ms", duration.as_millis());
    }
    let tenths = (duration.as_millis() + 50) / 100;
    match tenths % 10 {
        0 => format!("{} s", tenths / 10),
        tenth => format!("{}.{tenth} s", tenths / 10),
    }
}

/// A size in its largest unit; nothing for 0.
pub(crate) fn size(bytes: u64) -> String {
    if bytes == 0 {
        String::new()
    } else {
        Bytes(bytes).to_string()
    }
}

/// An enum's name as a word: `STATE_REASON_IO_ERROR` is `io error`; nothing
/// for what is not said.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => String::new(),
        name => name.to_ascii_lowercase().replace('_', " "),
    }
}

/// An enum's name without its prefix: `VM_STATE_RUNNING` is `RUNNING`.
pub(crate) fn name<'a>(name: &'a str, prefix: &str) -> &'a str {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => "?",
        name => name,
    }
}

/// Pairs by key, as `key=value`.
pub(crate) fn pairs<'a>(
    pairs: impl IntoIterator<Item = (&'a String, &'a String)>,
    between: &str,
) -> String {
    let mut pairs: Vec<_> = pairs
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.sort();
    pairs.join(between)
}

/// Drops what a terminal would obey instead of showing; line ends and tabs
/// become spaces.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .filter_map(|c| match c {
            '\n' | '\t' => Some(' '),
            c if is_unseen(c) => None,
            c => Some(c),
        })
        .collect()
}

fn is_unseen(c: char) -> bool {
    // Controls, and the marks that turn the direction of writing.
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Output {
        Output {
            format: Format::Table,
            quiet: false,
            now: OffsetDateTime::from_unix_timestamp(seconds).expect("in range"),
        }
    }

    fn stamp(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn an_enum_is_told_in_words_and_not_at_all_when_unsaid() {
        assert_eq!(word("STATE_REASON_IO_ERROR", "STATE_REASON_"), "io error");
        assert_eq!(word("CPU_MODE_UNSPECIFIED", "CPU_MODE_"), "");
        assert_eq!(name("VM_STATE_RUNNING", "VM_STATE_"), "RUNNING");
        assert_eq!(name("VM_STATE_UNSPECIFIED", "VM_STATE_"), "?");
    }

    #[test]
    fn times_are_told_from_now() {
        let out = at(1_000_000);
        assert_eq!(out.relative(None), "");
        assert_eq!(out.relative(stamp(1_000_000)), "now");
        assert_eq!(out.relative(stamp(1_000_000 - 185)), "3m ago");
        assert_eq!(out.relative(stamp(1_000_000 + 7 * 86_400)), "in 7d");
        assert_eq!(
            out.local(stamp(1_000_000 - 59)),
            "1970-01-12 13:45:41 +00:00 (59s ago)"
        );
    }
}
