//! Walks the tables of a qcow2 file from outside.
//!
//! QEMU reads zeroes where a file ends early, so a truncated image would become
//! a guest with holes; and one cluster may be named by many entries, so a small
//! file could unpack to terabytes. Both show in the tables. No table may be
//! named twice, which bounds what is read here by the file's length.

use super::header::u64_at;
use super::{Qcow2Header, bad, read_at};
use crate::model::bytes::Bytes;
use crate::storage::error::{BadImageKind, StorageError};
use std::io::{Read, Seek};

/// QEMU's own limits on the two tables that the header names.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// Checks that every table and cluster lies inside the file, and returns the
/// most that the guest's data can take once unpacked.
pub(super) fn check<R: Read + Seek>(
    file: &mut R,
    header: &Qcow2Header,
    length: u64,
) -> Result<Bytes, StorageError> {
    let cluster = 1_u64 << header.cluster_bits;
    let refcounts = u64::from(header.refcount_table_clusters) * cluster;
    if refcounts == 0 || refcounts > MAX_REFCOUNT_TABLE_BYTES {
        return Err(bad(
            BadImageKind::Tables,
            format!("a refcount table of {refcounts} bytes"),
        ));
    }
    inside(
        "refcount table",
        header.refcount_table_offset,
        refcounts,
        cluster,
        length,
    )?;

    let entry = if header.extended_l2() { 16 } else { 8 };
    let per_table = cluster / entry;
    // At most 2^21 * 2^18 bytes: one L1 entry's share of the disk.
    let covered = per_table * cluster;
    let needed = header.virtual_size.get().div_ceil(covered);
    let entries = u64::from(header.l1_entries);
    let l1_bytes = entries * 8;
    if entries < needed || l1_bytes > MAX_L1_BYTES {
        return Err(bad(
            BadImageKind::Tables,
            format!("{entries} L1 entries, {needed} needed"),
        ));
    }
    inside("L1 table", header.l1_offset, l1_bytes, cluster, length)?;

    let mut tables = read_l1(file, header, needed)?;
    tables.sort_unstable();
    let mut sum = Clusters::default();
    let mut table = vec![0; usize::try_from(cluster).expect("clusters are at most 2 MiB")];
    let mut previous = None;
    for offset in tables {
        if previous == Some(offset) {
            return Err(bad(
                BadImageKind::Tables,
                format!("two uses of the table at {offset}"),
            ));
        }
        previous = Some(offset);
        inside("L2 table", offset, cluster, cluster, length)?;
        read_at(file, offset, &mut table)?;
        let step = usize::try_from(entry).expect("8 or 16");
        for at in (0..table.len()).step_by(step) {
            sum.count(u64_at(&table, at), header.cluster_bits, length)?;
        }
    }
    // Without snapshots each plain cluster belongs to one place of the disk.
    if sum.plain > length.div_ceil(cluster) {
        return Err(bad(
            BadImageKind::Tables,
            "more clusters in use than the file has",
        ));
    }
    let unpacked = (sum.plain + sum.compressed).checked_mul(cluster);
    unpacked
        .map(Bytes)
        .ok_or_else(|| bad(BadImageKind::Tables, "an absurd number of clusters"))
}

/// Returns the places of the L2 tables that the disk's size needs.
fn read_l1<R: Read + Seek>(
    file: &mut R,
    header: &Qcow2Header,
    needed: u64,
) -> Result<Vec<u64>, StorageError> {
    let mut tables = Vec::new();
    let mut chunk = [0; 4096];
    let mut at = header.l1_offset;
    let mut left = usize::try_from(needed * 8).expect("at most the L1 limit");
    while left > 0 {
        let part = left.min(chunk.len());
        read_at(file, at, &mut chunk[..part])?;
        let entries = (0..part)
            .step_by(8)
            .map(|place| u64_at(&chunk, place) & OFFSET_MASK);
        tables.extend(entries.filter(|&offset| offset != 0));
        at += part as u64;
        left -= part;
    }
    Ok(tables)
}

/// Refuses a table that is not aligned, covers the header, or leaves the file.
fn inside(
    what: &str,
    offset: u64,
    bytes: u64,
    cluster: u64,
    length: u64,
) -> Result<(), StorageError> {
    if offset == 0 || !offset.is_multiple_of(cluster) {
        return Err(bad(
            BadImageKind::Tables,
            format!("the {what} is at {offset}"),
        ));
    }
    match offset.checked_add(bytes) {
        None => Err(bad(
            BadImageKind::Tables,
            format!("the {what} is at {offset}"),
        )),
        Some(end) if end > length => Err(bad(
            BadImageKind::Truncated,
            format!("the {what} ends at {end}, the file at {length}"),
        )),
        Some(_) => Ok(()),
    }
}

/// The clusters in use.
#[derive(Default)]
struct Clusters {
    plain: u64,
    compressed: u64,
}

impl Clusters {
    fn count(&mut self, entry: u64, cluster_bits: u32, length: u64) -> Result<(), StorageError> {
        let compressed = entry & COMPRESSED != 0;
        let offset = if compressed {
            // The number of sectors stands above the place.
            entry & ((1 << (62 - (cluster_bits - 8))) - 1)
        } else {
            entry & OFFSET_MASK
        };
        if !compressed && offset == 0 {
            return Ok(());
        }
        if !compressed && !offset.is_multiple_of(1 << cluster_bits) {
            return Err(bad(BadImageKind::Tables, format!("a cluster at {offset}")));
        }
        // The last cluster of a file may be shorter than the others.
        if offset >= length {
            return Err(bad(
                BadImageKind::Truncated,
                format!("a cluster at {offset}, the file ends at {length}"),
            ));
        }
        if compressed {
            self.compressed += 1;
        } else {
            self.plain += 1;
        }
        Ok(())
    }
}
