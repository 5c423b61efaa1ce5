//! Texts of requests: ids, names, prose, labels, tags.
//!
//! All texts end up in XML sooner or later, which has no way to write control
//! characters (but tab and line ends) nor U+FFFE and U+FFFF, escaped or not. So
//! they are refused here, by their field, and not at the hypervisor. Lengths are
//! in characters, as the protos say.

use super::{invalid, required};
use crate::model::fault::Fault;
use crate::model::ids::MalformedId;
use crate::model::reason::Reason;
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

/// Characters of a name and of other texts of one line.
pub(super) const LINE: usize = 255;
/// Characters of a description.
const PROSE: usize = 4096;
/// Labels of one thing.
const LABELS: usize = 64;
/// Characters of a label's key.
const LABEL_KEY: usize = 63;
/// Bytes of all annotations of one thing, keys and values.
pub(super) const ANNOTATIONS: usize = 256 << 10;
/// Bytes of all metadata of one network interface, keys and values.
pub(super) const NIC_METADATA: usize = 16 << 10;
/// Tags of one kind, and addresses of one interface.
const LIST: usize = 64;

/// An id that may be absent.
pub(in super::super) fn id<T>(field: &str, text: &str) -> Result<Option<T>, Fault>
where
    T: FromStr<Err = MalformedId>,
{
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|malformed: MalformedId| {
        Fault::field(Reason::MalformedId, field, malformed.to_string())
    })
}

/// An id that is needed.
pub(in super::super) fn required_id<T>(field: &str, text: &str) -> Result<T, Fault>
where
    T: FromStr<Err = MalformedId>,
{
    id(field, text)?.ok_or_else(|| required(field))
}

/// A text of one line, which may be empty.
pub(super) fn line(field: &str, text: String, most: usize) -> Result<String, Fault> {
    length(field, &text, most)?;
    match text.chars().find(|c| c.is_control() || is_noncharacter(*c)) {
        Some(c) => Err(forbidden(field, c)),
        None => Ok(text),
    }
}

/// A text of one line that is needed.
pub(super) fn required_line(field: &str, text: String, most: usize) -> Result<String, Fault> {
    if text.is_empty() {
        return Err(required(field));
    }
    line(field, text, most)
}

/// A text of one line whose absence says something.
pub(super) fn optional_line(field: &str, text: String) -> Result<Option<String>, Fault> {
    line(field, text, LINE).map(|text| (!text.is_empty()).then_some(text))
}

/// A text of several lines.
pub(super) fn prose(field: &str, text: String) -> Result<String, Fault> {
    length(field, &text, PROSE)?;
    let bad = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || is_noncharacter(c);
    match text.chars().find(|c| bad(*c)) {
        Some(c) => Err(forbidden(field, c)),
        None => Ok(text),
    }
}

/// A word for the hypervisor, such as a machine type: `[A-Za-z0-9._-]{1,64}`.
pub(super) fn word(field: &str, text: String) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text)
    } else {
        Err(invalid(
            field,
            "must be 1 to 64 letters, digits, '.', '_' or '-'",
        ))
    }
}

/// Values to select by.
pub(super) fn labels(
    field: &str,
    map: HashMap<String, String>,
) -> Result<BTreeMap<String, String>, Fault> {
    if map.len() > LABELS {
        return Err(invalid(field, format!("has more than {LABELS} entries")));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-');
    sorted(map)
        .map(|(key, value)| {
            let path = entry(field, &key);
            if !(1..=LABEL_KEY).contains(&key.len()) || !key.bytes().all(plain) {
                return Err(invalid(
                    &path,
                    "has a key that is not 1 to 63 letters, digits, '.', '_', '/' or '-'",
                ));
            }
            Ok((key, line(&path, value, LINE)?))
        })
        .collect()
}

/// Values that are only carried. They may have control characters: they are kept
/// and recorded in an encoding that escapes them.
pub(super) fn carried(
    field: &str,
    map: HashMap<String, String>,
    most: usize,
) -> Result<BTreeMap<String, String>, Fault> {
    let all: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if all > most {
        return Err(invalid(
            field,
            format!("has more than {} KiB in all", most >> 10),
        ));
    }
    sorted(map)
        .map(|(key, value)| {
            let path = entry(field, &key);
            if key.is_empty() {
                return Err(invalid(&path, "has an empty key"));
            }
            match key
                .chars()
                .chain(value.chars())
                .find(|c| is_noncharacter(*c))
            {
                Some(c) => Err(forbidden(&path, c)),
                None => Ok((key, value)),
            }
        })
        .collect()
}

/// Tags, addresses and other short texts in a list.
pub(super) fn list(field: &str, texts: Vec<String>) -> Result<Vec<String>, Fault> {
    if texts.len() > LIST {
        return Err(invalid(field, format!("has more than {LIST} entries")));
    }
    texts
        .into_iter()
        .enumerate()
        .map(|(index, text)| required_line(&format!("{field}[{index}]"), text, LINE))
        .collect()
}

/// The path of an entry of a map. The key is the caller's: it is shown escaped,
/// and not in full when it is long.
fn entry(field: &str, key: &str) -> String {
    let shown: String = key.chars().take(LABEL_KEY).collect();
    format!("{field}[{shown:?}]")
}

/// In the order of the keys, so that of several faults always the same is told.
fn sorted(map: HashMap<String, String>) -> impl Iterator<Item = (String, String)> {
    map.into_iter().collect::<BTreeMap<_, _>>().into_iter()
}

fn length(field: &str, text: &str, most: usize) -> Result<(), Fault> {
    // As many bytes can't be more characters: spares counting.
    if text.len() > most && text.chars().count() > most {
        return Err(invalid(field, format!("has more than {most} characters")));
    }
    Ok(())
}

const fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fffe}' | '\u{ffff}')
}

fn forbidden(field: &str, c: char) -> Fault {
    invalid(
        field,
        format!(
            "has the character U+{:04X}, which is not allowed",
            u32::from(c)
        ),
    )
}
