//! Pages of lists, and the labels that lists are narrowed by.
//!
//! A token is where the page before ended, in hexadecimal: an id, for operations
//! after their time. It stays good while things come and go.

use super::invalid;
use crate::model::fault::Fault;
use crate::model::ids::OperationId;
use crate::model::time::Timestamp;
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

const DEFAULT: usize = 100;
const LARGEST: u32 = 1000;

/// How many a page shall have.
pub(in super::super) fn size(given: u32) -> Result<usize, Fault> {
    match given {
        0 => Ok(DEFAULT),
        1..=LARGEST => Ok(usize::try_from(given).unwrap_or(DEFAULT)),
        _ => Err(invalid("page_size", format!("must be at most {LARGEST}"))),
    }
}

/// A page of things that are sorted by their ids.
#[derive(Debug)]
pub(in super::super) struct Page<T> {
    /// The page.
    pub(in super::super) items: Vec<T>,
    /// For the next one; empty on the last.
    pub(in super::super) next: String,
    /// How many there are on all pages.
    pub(in super::super) total: u32,
}

/// Cuts a page out of `all`, which is sorted by `id`.
pub(in super::super) fn cut<T>(
    all: Vec<T>,
    id: impl Fn(&T) -> Uuid,
    page_size: u32,
    token: &str,
) -> Result<Page<T>, Fault> {
    let size = size(page_size)?;
    let after = match token {
        "" => None,
        token => Some(uuid(token).ok_or_else(malformed)?),
    };
    let total = u32::try_from(all.len()).unwrap_or(u32::MAX);
    let mut items: Vec<T> = all
        .into_iter()
        .filter(|item| after.is_none_or(|after| id(item) > after))
        .collect();
    let more = items.len() > size;
    items.truncate(size);
    let next = match items.last() {
        Some(last) if more => id(last).simple().to_string(),
        Some(_) | None => String::new(),
    };
    Ok(Page { items, next, total })
}

/// Where a page of operations ended.
pub(in super::super) fn operations_after(
    token: &str,
) -> Result<Option<(Timestamp, OperationId)>, Fault> {
    if token.is_empty() {
        return Ok(None);
    }
    let parts = token.split_at_checked(16).ok_or_else(malformed)?;
    let time = digits(parts.0)
        .then(|| u64::from_str_radix(parts.0, 16).ok())
        .flatten();
    match (time, uuid(parts.1)) {
        (Some(time), Some(id)) => Ok(Some((Timestamp(time), OperationId(id)))),
        (None, _) | (_, None) => Err(malformed()),
    }
}

/// The token of the page of operations that comes after this one.
pub(in super::super) fn operations_token(next: Option<(Timestamp, OperationId)>) -> String {
    next.map(|(time, id)| format!("{:016x}{}", time.0, id.0.simple()))
        .unwrap_or_default()
}

/// Whether all of the wished labels are there.
pub(in super::super) fn has_labels(
    labels: &BTreeMap<String, String>,
    wished: &HashMap<String, String>,
) -> bool {
    wished
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn uuid(text: &str) -> Option<Uuid> {
    (text.len() == 32 && digits(text))
        .then(|| Uuid::try_parse(text).ok())
        .flatten()
}

fn digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn malformed() -> Fault {
    invalid("page_token", "is not one that this list has given out")
}
