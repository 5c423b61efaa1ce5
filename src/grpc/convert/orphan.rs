//! Orphans.

use super::page;
use super::time::timestamp;
use super::{envelope, required, text};
use crate::model::fault::Fault;
use crate::model::ids::{OperationId, OrphanId};
use crate::model::orphan::{Orphan, OrphanKind};
use crate::model::request::{Caller, Envelope};
use crate::model::time::Timestamp;
use crate::proto::v1 as wire;
use crate::service::orphans::age;

/// Which page of orphans.
#[derive(Debug)]
pub(in super::super) struct Asked {
    size: usize,
    after: Option<(Timestamp, OrphanId)>,
}

/// Reads which orphans to list.
pub(in super::super) fn list(given: &wire::ListOrphansRequest) -> Result<Asked, Fault> {
    // A place in a list by time and id, as that of operations is.
    let after = page::operations_after(&given.page_token)?;
    Ok(Asked {
        size: page::size(given.page_size)?,
        after: after.map(|(time, id)| (time, OrphanId(id.0))),
    })
}

/// Cuts a page out of all orphans, which are sorted by age and id.
pub(in super::super) fn page(all: &[Orphan], asked: &Asked) -> wire::ListOrphansResponse {
    let place = |orphan: &Orphan| (age(orphan), orphan.id);
    let rest = &all
        [all.partition_point(|orphan| asked.after.is_some_and(|after| place(orphan) <= after))..];
    let orphans = page::fitting(rest.iter().take(asked.size).map(shown));
    let more = orphans.len() < rest.len();
    let last = orphans.len().checked_sub(1).map(|last| place(&rest[last]));
    let next = last
        .filter(|_| more)
        .map(|(time, id)| (time, OperationId(id.0)));
    wire::ListOrphansResponse {
        orphans,
        next_page_token: page::operations_token(next),
    }
}

/// Reads a DeleteOrphan request.
pub(in super::super) fn delete(
    given: &wire::DeleteOrphanRequest,
    caller: Caller,
) -> Result<(Envelope, OrphanId, u64), Fault> {
    let envelope = envelope(&given.request_id, None, false, caller)?;
    let id = text::required_id("orphan_id", &given.orphan_id)?;
    match given.generation {
        0 => Err(required("generation")),
        generation => Ok((envelope, id, generation)),
    }
}

fn shown(orphan: &Orphan) -> wire::Orphan {
    wire::Orphan {
        id: orphan.id.to_string(),
        generation: orphan.generation,
        kind: kind(orphan.kind).into(),
        pool: orphan.pool.clone(),
        size_bytes: orphan.size.get(),
        modify_time: orphan.modify_time.map(timestamp),
        evidence: orphan.evidence.clone(),
        name: orphan.name.clone(),
        foreign: orphan.kind.is_foreign(),
        image_id: orphan.image_id.map(|id| id.to_string()).unwrap_or_default(),
        vm_id: orphan.vm_id.map(|id| id.to_string()).unwrap_or_default(),
        expire_time: orphan.expire_time.map(timestamp),
    }
}

const fn kind(kind: OrphanKind) -> wire::OrphanKind {
    match kind {
        OrphanKind::Volume => wire::OrphanKind::Volume,
        OrphanKind::Image => wire::OrphanKind::Image,
        OrphanKind::CachedImage => wire::OrphanKind::CachedImage,
        OrphanKind::UnusedImage => wire::OrphanKind::UnusedImage,
        OrphanKind::Temporary => wire::OrphanKind::Temporary,
        OrphanKind::Domain => wire::OrphanKind::Domain,
        OrphanKind::ExpiredRoot => wire::OrphanKind::ExpiredRoot,
        OrphanKind::ConsoleLog => wire::OrphanKind::ConsoleLog,
        OrphanKind::ForeignDomain => wire::OrphanKind::ForeignDomain,
        OrphanKind::ForeignFile => wire::OrphanKind::ForeignFile,
    }
}
