//! How answers are printed: tables for people, JSON for scripts.
//!
//! Invariant: no text of the API reaches the terminal with a control character
//! in it. JSON is proto3's own mapping with the field names of the protos, made
//! from the descriptors: no message needs code here.

use crate::cli::fault::Fault;
use crate::model::bytes::Bytes;
use crate::proto::v1::{self, Operation};
use clap::ValueEnum;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::LazyLock;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use unicode_width::UnicodeWidthStr;

/// How to print an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For scripts
    Json,
}

/// Prints answers as asked for.
#[derive(Debug)]
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
            self.json(&json(message)?)
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
            let values = messages.iter().map(json).collect::<Result<Vec<_>, _>>()?;
            self.json(&values.into())
        } else if self.quiet {
            messages
                .iter()
                .try_for_each(|message| self.line(clean(message.id())))
        } else {
            self.line(table())
        }
    }

    fn json(&self, value: &serde_json::Value) -> Result<(), Fault> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Fault::internal(format!("can't write JSON: {error}")))?;
        let mut escaped = String::with_capacity(text.len());
        for c in text.chars() {
            // JSON escapes what is below a space; terminals obey more than that.
            if c != '\n' && is_unseen(c) {
                write!(escaped, "\\u{:04x}", u32::from(c)).expect("a String takes all");
            } else {
                escaped.push(c);
            }
        }
        self.line(escaped)
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

/// An enum's name as a word: `STATE_REASON_IO_ERROR` is `io error`.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_ascii_lowercase()
        .replace('_', " ")
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

/// Columns as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let head = columns.iter().map(|&name| name.to_owned()).collect();
        Self { rows: vec![head] }
    }

    /// Adds a row; its cells are cleaned.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| clean(&cell)).collect();
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.width()).max().unwrap_or(0)
            })
            .collect();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.width()));
            }
            if number > 0 {
                f.write_char('\n')?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

/// One thing with all that is known about it: a line per value, then tables.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    lines: Vec<(&'static str, String)>,
    tables: Vec<(&'static str, Table)>,
}

impl Sheet {
    /// Adds a value, unless it is empty. Further lines of it are indented.
    pub(crate) fn add(&mut self, label: &'static str, value: impl fmt::Display) {
        let value = value.to_string();
        for (number, line) in value.lines().enumerate() {
            let label = if number == 0 { label } else { "" };
            self.lines.push((label, clean(line)));
        }
    }

    /// Adds a table below, unless it is empty.
    pub(crate) fn table(&mut self, title: &'static str, table: Table) {
        if !table.is_empty() {
            self.tables.push((title, table));
        }
    }
}

impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.lines.iter().map(|(label, _)| label.len());
        let width = labels.max().unwrap_or(0);
        for (label, value) in &self.lines {
            writeln!(f, "{}", format!("{label:width$}  {value}").trim_end())?;
        }
        for (title, table) in &self.tables {
            writeln!(f, "\n{title}:")?;
            for line in table.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

/// A message of the API that can be printed.
pub(crate) trait Named {
    /// Its name in the protos, without the package.
    const NAME: &'static str;
    /// What `--quiet` prints.
    fn id(&self) -> &str;
}

macro_rules! named {
    ($($message:ident by $field:ident),* $(,)?) => {
        $(impl Named for v1::$message {
            const NAME: &'static str = stringify!($message);
            fn id(&self) -> &str {
                &self.$field
            }
        })*
    };
}
named!(Vm by id, Image by id, Volume by id, Pool by name, Node by id, VncConsole by password);

impl Named for Operation {
    const NAME: &'static str = "Operation";
    fn id(&self) -> &str {
        &self.id
    }
}

/// All messages of the API, with those that an error may carry.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool =
        DescriptorPool::decode(v1::DESCRIPTORS).expect("build.rs wrote valid descriptors");
    let details = prost_types::FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .expect("tonic-types ships valid descriptors");
    for file in details.file {
        // Here and there Status and Any come under another file name.
        let known = file.message_type.iter().any(|message| {
            let name = format!("{}.{}", file.package(), message.name());
            pool.get_message_by_name(&name).is_some()
        });
        if !known {
            pool.add_file_descriptor_proto(file)
                .expect("the imports of the details are there");
        }
    }
    pool
});

/// A message in proto3's JSON mapping, with the protos' field names and every
/// field, so that scripts find the same keys each time.
fn json<M: Message + Named>(message: &M) -> Result<serde_json::Value, Fault> {
    let fault = |error: &dyn fmt::Display| Fault::internal(format!("can't write JSON: {error}"));
    let descriptor = POOL
        .get_message_by_name(&format!("kvmlet.v1.{}", M::NAME))
        .ok_or_else(|| fault(&M::NAME))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(|error| fault(&error))?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| fault(&error))
}

/// Drops error details that this build has no descriptor of; JSON can't hold
/// them.
pub(crate) fn drop_unknown_details(operation: &mut Operation) {
    if let Some(error) = &mut operation.error {
        error.details.retain(|detail| {
            let name = detail.type_url.rsplit('/').next().unwrap_or_default();
            POOL.get_message_by_name(name).is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, StatusExt};

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
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["a".into(), "RUNNING".into()]);
        table.row(["日本語の名前".into(), "x".into()]);
        assert_eq!(
            table.to_string(),
            "NAME          STATE\na             RUNNING\n日本語の名前  x"
        );
    }

    #[test]
    fn a_cell_can_not_command_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\x1b[2J\u{9b}b\u{202e}c\nd".into()]);
        assert_eq!(table.to_string(), "NAME\na[2Jbc d");
    }

    #[test]
    fn a_sheet_leaves_out_what_is_empty_and_indents_further_lines() {
        let mut sheet = Sheet::default();
        sheet.add("id", "1");
        sheet.add("none", "");
        sheet.add("description", "one\ntwo");
        assert_eq!(
            sheet.to_string(),
            "id           1\ndescription  one\n             two\n"
        );
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

    #[test]
    fn json_has_the_names_of_the_protos_and_every_field() {
        let vm = v1::Vm {
            id: "x".into(),
            state: v1::VmState::Running.into(),
            create_time: stamp(0),
            generation: 3,
            ..v1::Vm::default()
        };
        let value = json(&vm).expect("it is a message of the API");
        assert_eq!(value["state"], "VM_STATE_RUNNING");
        assert_eq!(value["create_time"], "1970-01-01T00:00:00Z");
        assert_eq!(value["generation"], "3");
        assert_eq!(value["current_operation_id"], "");
        assert_eq!(value["nics"], serde_json::json!([]));
    }

    #[test]
    fn json_of_a_failed_operation_has_its_details() {
        let details = ErrorDetails::with_error_info("VM_BUSY", "kvmlet", []);
        let status = tonic::Status::with_error_details(tonic::Code::Aborted, "busy", details);
        let mut status =
            tonic_types::Status::decode(status.details()).expect("tonic-types wrote them");
        status.details.push(prost_types::Any {
            type_url: "type.googleapis.com/some.Later".into(),
            value: vec![1],
        });
        let mut operation = Operation {
            error: Some(status),
            ..Operation::default()
        };
        drop_unknown_details(&mut operation);
        let value = json(&operation).expect("it is a message of the API");
        assert_eq!(value["error"]["details"][0]["reason"], "VM_BUSY");
    }
}
