//! Walks the tables of a qcow2 file from outside.
//!
//! QEMU reads zeroes where a file ends early, so a truncated image would become
//! a guest with holes; one cluster may be named by many entries, so a small file
//! could unpack to terabytes; and where tables overlap, one reader's data is
//! another's table. All show in the tables. Nothing may be in two tables, which
//! also bounds what is read here by the file's length.

use super::header::u64_at;
use super::{Qcow2Header, bad, read_at};
use crate::model::bytes::Bytes;
use crate::storage::error::{BadImageKind, StorageError};
use std::io::{Read, Seek};

/// QEMU's own limits on the two tables that the header names.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const REFCOUNT_BLOCK_MASK: u64 = 0xffff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const SECTOR: u64 = 512;

/// Checks that every table and cluster lies inside the file and over no other
/// table, and returns the most that the guest's data can take once unpacked.
pub(super) fn check<R: Read + Seek>(
    file: &mut R,
    header: &Qcow2Header,
    length: u64,
) -> Result<Bytes, StorageError> {
    let cluster = 1_u64 << header.cluster_bits;
    let mut map = Map {
        cluster,
        length,
        taken: vec![Region {
            start: 0,
            end: cluster,
            what: "header",
        }],
    };
    let refcounts = u64::from(header.refcount_table_clusters) * cluster;
    if refcounts == 0 || refcounts > MAX_REFCOUNT_TABLE_BYTES {
        return Err(bad(
            BadImageKind::Tables,
            format!("a refcount table of {refcounts} bytes"),
        ));
    }
    map.take("refcount table", header.refcount_table_offset, refcounts)?;

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
    map.take("L1 table", header.l1_offset, l1_bytes)?;
    // Before they are read: one of them would be nonsense.
    map.refuse_overlaps()?;

    let blocks = read_entries(
        file,
        header.refcount_table_offset,
        refcounts,
        REFCOUNT_BLOCK_MASK,
    )?;
    for offset in blocks {
        map.take("refcount block", offset, cluster)?;
    }
    let tables = read_entries(file, header.l1_offset, needed * 8, OFFSET_MASK)?;
    for &offset in &tables {
        map.take("L2 table", offset, cluster)?;
    }
    map.refuse_overlaps()?;

    let mut sum = Clusters::default();
    let mut table = vec![0; usize::try_from(cluster).expect("clusters are at most 2 MiB")];
    let step = usize::try_from(entry).expect("8 or 16");
    for offset in tables {
        read_at(file, offset, &mut table)?;
        for at in (0..table.len()).step_by(step) {
            sum.count(u64_at(&table, at), header.cluster_bits, &map)?;
        }
    }
    // Without snapshots each plain cluster belongs to one place of the disk.
    if sum.plain > length.div_ceil(cluster) {
        return Err(bad(
            BadImageKind::Tables,
            "more clusters in use than the file has",
        ));
    }
    let absurd = || bad(BadImageKind::Tables, "an absurd number of clusters");
    let unpacked = (sum.plain + sum.compressed)
        .checked_mul(cluster)
        .ok_or_else(absurd)?;
    // The last table may have entries past the disk's end, which nobody reads.
    let whole = header
        .virtual_size
        .get()
        .checked_next_multiple_of(cluster)
        .ok_or_else(absurd)?;
    Ok(Bytes(unpacked.min(whole)))
}

/// Returns the places that a table of this many bytes names.
fn read_entries<R: Read + Seek>(
    file: &mut R,
    mut at: u64,
    bytes: u64,
    mask: u64,
) -> Result<Vec<u64>, StorageError> {
    let mut places = Vec::new();
    let mut chunk = [0; 4096];
    let mut left = usize::try_from(bytes).expect("at most a table's limit");
    while left > 0 {
        let part = left.min(chunk.len());
        read_at(file, at, &mut chunk[..part])?;
        let entries = (0..part)
            .step_by(8)
            .map(|place| u64_at(&chunk, place) & mask);
        places.extend(entries.filter(|&offset| offset != 0));
        at += part as u64;
        left -= part;
    }
    Ok(places)
}

/// A part of the file that is no data of the guest.
struct Region {
    start: u64,
    end: u64,
    what: &'static str,
}

/// What of the file is taken.
struct Map {
    cluster: u64,
    length: u64,
    /// In order after [`Map::refuse_overlaps`].
    taken: Vec<Region>,
}

impl Map {
    /// Notes a table; refuses one that is not aligned, or leaves the file.
    fn take(&mut self, what: &'static str, offset: u64, bytes: u64) -> Result<(), StorageError> {
        let misplaced = || bad(BadImageKind::Tables, format!("the {what} is at {offset}"));
        if offset == 0 || !offset.is_multiple_of(self.cluster) {
            return Err(misplaced());
        }
        let end = offset.checked_add(bytes).ok_or_else(misplaced)?;
        if end > self.length {
            return Err(bad(
                BadImageKind::Truncated,
                format!("the {what} ends at {end}, the file at {}", self.length),
            ));
        }
        // Each begins in a cluster of its own, or they overlap.
        if self.taken.len() as u64 > self.length / self.cluster {
            return Err(bad(
                BadImageKind::Tables,
                "more tables than the file has clusters",
            ));
        }
        // What is left of its last cluster is nobody else's.
        let end = end
            .checked_next_multiple_of(self.cluster)
            .ok_or_else(misplaced)?;
        self.taken.push(Region {
            start: offset,
            end,
            what,
        });
        Ok(())
    }

    /// Refuses two tables that share bytes, or one that is named twice.
    fn refuse_overlaps(&mut self) -> Result<(), StorageError> {
        self.taken.sort_unstable_by_key(|region| region.start);
        match self.taken.windows(2).find(|two| two[0].end > two[1].start) {
            None => Ok(()),
            Some(two) => Err(bad(
                BadImageKind::Tables,
                format!(
                    "the {} at {} overlaps the {} at {}",
                    two[1].what, two[1].start, two[0].what, two[0].start
                ),
            )),
        }
    }

    /// Refuses data from `first` to `last` that is in a table or past the file's end.
    fn refuse_data(&self, first: u64, last: u64) -> Result<(), StorageError> {
        if last >= self.length {
            return Err(bad(
                BadImageKind::Truncated,
                format!("a cluster at {last}, the file ends at {}", self.length),
            ));
        }
        let after = self.taken.partition_point(|region| region.start <= last);
        match self.taken[..after].last() {
            Some(region) if region.end > first => Err(bad(
                BadImageKind::Tables,
                format!("a cluster at {first} in the {}", region.what),
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// The clusters in use.
#[derive(Default)]
struct Clusters {
    plain: u64,
    compressed: u64,
}

impl Clusters {
    fn count(&mut self, entry: u64, cluster_bits: u32, map: &Map) -> Result<(), StorageError> {
        if entry & COMPRESSED != 0 {
            self.compressed += 1;
            return compressed(entry, cluster_bits, map);
        }
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(());
        }
        if !offset.is_multiple_of(1 << cluster_bits) {
            return Err(bad(BadImageKind::Tables, format!("a cluster at {offset}")));
        }
        self.plain += 1;
        // The last cluster of a file may be shorter than the others.
        map.refuse_data(offset, offset)
    }
}

/// Checks where a compressed cluster is. Several may share a cluster of the file,
/// and one may begin in one and end in the next.
fn compressed(entry: u64, cluster_bits: u32, map: &Map) -> Result<(), StorageError> {
    // The number of further sectors stands above the place.
    let place_bits = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << place_bits) - 1);
    let further = (entry & (COMPRESSED - 1)) >> place_bits;
    // At most 2^54 + 2^13 * 2^9.
    let last = (offset / SECTOR + further) * SECTOR;
    map.refuse_data(offset, last.max(offset))
}
