//! The header of a qcow2 file, version 2 or 3.
//!
//! Reading it is the same for our own volumes (which have backing files) and
//! for images from outside (which mustn't): [`Qcow2Header::read`] parses,
//! [`Qcow2Header::refuse_outside_references`] judges.

use super::{bad, read_at};
use crate::model::bytes::Bytes;
use crate::storage::error::{BadImageKind, StorageError};
use std::io::{Read, Seek};

const MAGIC: &[u8] = b"QFI\xfb";
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
/// The longest name that the format allows.
const MAX_BACKING_NAME: u32 = 1023;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;

/// Bits that a reader may ignore, and these two that QEMU does not.
const BITMAPS: u64 = 1 << 0;
const DATA_FILE_RAW: u64 = 1 << 1;

const EXTENSION_END: u32 = 0;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What the header of a qcow2 file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// 2 or 3.
    pub version: u32,
    /// The guest's disk.
    pub virtual_size: Bytes,
    /// The backing file, as it is spelled.
    pub backing_file: Option<String>,
    pub(super) cluster_bits: u32,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    incompatible: u64,
    autoclear: u64,
    crypt_method: u32,
    snapshots: u32,
    extensions: Vec<u32>,
}

impl Qcow2Header {
    /// Reads a header and checks that its fields are within the format's
    /// limits; what it refers to is not looked at.
    pub fn read<R: Read + Seek>(file: &mut R) -> Result<Self, StorageError> {
        let mut magic = [0; 4];
        read_at(file, 0, &mut magic)
            .map_err(|_| bad(BadImageKind::NotQcow2, "shorter than a magic number"))?;
        if magic != MAGIC {
            return Err(bad(BadImageKind::NotQcow2, "the magic number is missing"));
        }
        let mut fields = [0; V3_LENGTH];
        read_at(file, 0, &mut fields[..V2_LENGTH])?;
        let version = u32_at(&fields, 4);
        match version {
            2 => {}
            3 => read_at(file, 0, &mut fields)?,
            other => return Err(bad(BadImageKind::Version, other)),
        }
        let cluster_bits = u32_at(&fields, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(bad(
                BadImageKind::Header,
                format!("clusters of 2^{cluster_bits} bytes"),
            ));
        }
        let cluster = 1_u64 << cluster_bits;

        let (incompatible, autoclear, refcount_order, length) = if version == 2 {
            (0, 0, 4, 72)
        } else {
            (
                u64_at(&fields, 72),
                u64_at(&fields, 88),
                u32_at(&fields, 96),
                u64::from(u32_at(&fields, 100)),
            )
        };
        if refcount_order > 6 {
            return Err(bad(
                BadImageKind::Header,
                format!("refcounts of 2^{refcount_order} bits"),
            ));
        }
        let shortest = if version == 2 {
            V2_LENGTH as u64
        } else {
            V3_LENGTH as u64
        };
        if length < shortest || length > cluster {
            return Err(bad(
                BadImageKind::Header,
                format!("a header of {length} bytes"),
            ));
        }

        let backing_offset = u64_at(&fields, 8);
        let backing_length = u32_at(&fields, 16);
        let backing_file = read_backing(file, backing_offset, backing_length, length, cluster)?;
        let end = if backing_offset == 0 {
            cluster
        } else {
            backing_offset
        };
        let extensions = read_extensions(file, length, end)?;

        let header = Self {
            version,
            virtual_size: Bytes(u64_at(&fields, 24)),
            backing_file,
            cluster_bits,
            l1_entries: u32_at(&fields, 36),
            l1_offset: u64_at(&fields, 40),
            refcount_table_offset: u64_at(&fields, 48),
            refcount_table_clusters: u32_at(&fields, 56),
            incompatible,
            autoclear,
            crypt_method: u32_at(&fields, 32),
            snapshots: u32_at(&fields, 60),
            extensions,
        };
        let unknown = header.incompatible & !KNOWN;
        if unknown != 0 {
            return Err(bad(
                BadImageKind::UnknownFeature,
                format!("bits {unknown:#x}"),
            ));
        }
        if incompatible & COMPRESSION_TYPE != 0 {
            read_compression_type(file, length)?;
        }
        if header.extended_l2() && cluster_bits < 14 {
            return Err(bad(
                BadImageKind::Header,
                "subclusters in clusters that are too small",
            ));
        }
        Ok(header)
    }

    /// Refuses whatever would make a reader look beyond this file, decrypt, or
    /// repair.
    pub(super) fn refuse_outside_references(&self) -> Result<(), StorageError> {
        if let Some(name) = &self.backing_file {
            return Err(bad(BadImageKind::BackingFile, format!("{name:?}")));
        }
        if self.incompatible & DATA_FILE != 0
            || self.autoclear & DATA_FILE_RAW != 0
            || self.extensions.contains(&EXTENSION_DATA_FILE)
        {
            return Err(bad(BadImageKind::DataFile, "an external data file"));
        }
        if self.crypt_method != 0 || self.extensions.contains(&EXTENSION_ENCRYPTION) {
            return Err(bad(
                BadImageKind::Encrypted,
                format!("method {}", self.crypt_method),
            ));
        }
        if self.snapshots != 0 {
            return Err(bad(BadImageKind::Snapshots, self.snapshots));
        }
        // QEMU would follow their tables, which are nowhere else needed.
        if self.autoclear & BITMAPS != 0 {
            return Err(bad(BadImageKind::UnknownFeature, "persistent bitmaps"));
        }
        if self.incompatible & CORRUPT != 0 {
            return Err(bad(BadImageKind::Corrupt, "repair it with qemu-img check"));
        }
        if self.incompatible & DIRTY != 0 {
            return Err(bad(BadImageKind::Dirty, "repair it with qemu-img check"));
        }
        Ok(())
    }

    /// Tells whether a cluster's parts are allocated one by one.
    pub(super) fn extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }
}

/// Refuses a way of compression other than the two that QEMU knows.
fn read_compression_type<R: Read + Seek>(file: &mut R, header: u64) -> Result<(), StorageError> {
    let mut kind = [0];
    if header > V3_LENGTH as u64 {
        read_at(file, V3_LENGTH as u64, &mut kind)?;
    }
    match kind {
        // zlib has no bit.
        [1] => Ok(()),
        [other] => Err(bad(
            BadImageKind::UnknownFeature,
            format!("compression of type {other}"),
        )),
    }
}

fn read_backing<R: Read + Seek>(
    file: &mut R,
    offset: u64,
    length: u32,
    header: u64,
    cluster: u64,
) -> Result<Option<String>, StorageError> {
    if offset == 0 {
        // A length without a place is what no writer makes.
        return if length == 0 {
            Ok(None)
        } else {
            Err(bad(BadImageKind::BackingFile, "a name without a place"))
        };
    }
    let end = offset.checked_add(u64::from(length));
    if length > MAX_BACKING_NAME || offset < header || end.is_none_or(|end| end > cluster) {
        return Err(bad(
            BadImageKind::BackingFile,
            format!("{length} bytes at {offset}"),
        ));
    }
    let mut name = vec![0; length as usize];
    read_at(file, offset, &mut name)?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

/// Returns the types of the header's extensions.
fn read_extensions<R: Read + Seek>(
    file: &mut R,
    start: u64,
    end: u64,
) -> Result<Vec<u32>, StorageError> {
    let overrun = || bad(BadImageKind::Header, "an extension runs past its area");
    let mut types = Vec::new();
    let mut at = start;
    loop {
        let body = at.checked_add(8).ok_or_else(overrun)?;
        if body > end {
            // Nothing marks the end where the area is full.
            return if at == end { Ok(types) } else { Err(overrun()) };
        }
        let mut head = [0; 8];
        read_at(file, at, &mut head)?;
        let kind = u32_at(&head, 0);
        if kind == EXTENSION_END {
            return Ok(types);
        }
        let length = u64::from(u32_at(&head, 4));
        at = length
            .checked_next_multiple_of(8)
            .and_then(|padded| body.checked_add(padded))
            .filter(|&next| next <= end)
            .ok_or_else(overrun)?;
        types.push(kind);
    }
}

/// Reads a big-endian number at a place that the array is known to have.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |n, &byte| n << 8 | u32::from(byte))
}

/// Reads a big-endian number at a place that the array is known to have.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .fold(0, |n, &byte| n << 8 | u64::from(byte))
}
