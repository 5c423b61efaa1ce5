//! Pages of lists, and the labels that lists are narrowed by.
//!
//! A token is where the page before ended, in hexadecimal: an id, for operations
//! after their time. It stays good while things come and go.

use super::invalid;
use crate::model::event::Position;
use crate::model::fault::Fault;
use crate::model::ids::OperationId;
use crate::model::time::Timestamp;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// How long a page is of which nothing else was asked for.
pub(in super::super) const DEFAULT: u32 = 100;
/// What a page may have at most, whatever is configured.
const LARGEST: u32 = 1000;
/// Bytes of the things on a page: clients take answers of 4 MiB unless they are
/// told otherwise, and annotations alone may have 256 KiB.
const ANSWER: usize = 3 << 20;

/// How many a page shall have.
pub(in super::super) fn size(given: u32) -> Result<usize, Fault> {
    match given {
        0 => Ok(DEFAULT as usize),
        1..=LARGEST => Ok(given as usize),
        _ => Err(invalid("page_size", format!("must be at most {LARGEST}"))),
    }
}

/// A page of things that are sorted by their ids, as they are shown.
#[derive(Debug)]
pub(in super::super) struct Page<M> {
    /// The page.
    pub(in super::super) items: Vec<M>,
    /// For the next one; empty on the last.
    pub(in super::super) next: String,
    /// How many there are on all pages.
    pub(in super::super) total: u32,
}

/// Cuts a page out of `all`, which is sorted by `id`, and shows what is on it.
pub(in super::super) fn cut<T, M: Message>(
    all: &[T],
    id: impl Fn(&T) -> Uuid,
    page_size: u32,
    token: &str,
    show: impl Fn(&T) -> M,
) -> Result<Page<M>, Fault> {
    let size = size(page_size)?;
    let after = match token {
        "" => None,
        token => Some(uuid(token).ok_or_else(malformed)?),
    };
    let total = u32::try_from(all.len()).unwrap_or(u32::MAX);
    let rest = &all[all.partition_point(|item| after.is_some_and(|after| id(item) <= after))..];
    let items = fitting(rest.iter().take(size).map(show));
    let next = match items.len() {
        0 => String::new(),
        taken if taken == rest.len() => String::new(),
        taken => id(&rest[taken - 1]).simple().to_string(),
    };
    Ok(Page { items, next, total })
}

/// As many of `messages` as an answer takes, and one at least.
pub(in super::super) fn fitting<M: Message>(messages: impl Iterator<Item = M>) -> Vec<M> {
    let mut room = ANSWER;
    let mut taken = Vec::new();
    for message in messages {
        let bytes = message.encoded_len();
        if bytes > room && !taken.is_empty() {
            break;
        }
        room = room.saturating_sub(bytes);
        taken.push(message);
    }
    taken
}

/// The part of a list's token that says where its page ended, and where its first
/// page was true, which is `at` on the first page.
pub(in super::super) fn list_token(token: &str, at: Position) -> Result<(&str, Position), Fault> {
    if token.is_empty() {
        return Ok((token, at));
    }
    let (id, revision) = token.split_at_checked(32).ok_or_else(malformed)?;
    let revision = (revision.len() == 16 && digits(revision))
        .then(|| u64::from_str_radix(revision, 16).ok())
        .flatten()
        .ok_or_else(malformed)?;
    // A newer journal may have fewer.
    let revision = revision.min(at.revision);
    Ok((id, Position { revision, ..at }))
}

/// The token of the page that comes after this one of a list.
pub(in super::super) fn next_list_token(next: String, at: Position) -> String {
    match next.as_str() {
        "" => next,
        _ => format!("{next}{:016x}", at.revision),
    }
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
