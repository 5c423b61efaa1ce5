//! Recognises what is not a raw disk.
//!
//! A raw disk has no header, so any bytes are one. But a file that another
//! format's reader would take for its own was either declared wrongly by
//! mistake, or made so that two readers see two different disks.

use super::{read_at, reading};
use crate::storage::error::StorageError;
use std::io::{Read, Seek, SeekFrom};

/// Magic numbers, by their place from the file's start.
const FROM_START: &[(u64, &[u8], &str)] = &[
    (0, b"QFI\xfb", "qcow or qcow2"),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
    (0, b"OOOM", "COW"),
    (0, b"\x1f\x8b", "a gzip archive (unpack it first)"),
    (0, b"\xfd7zXZ\0", "an xz archive (unpack it first)"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive (unpack it first)"),
    (0, b"BZh", "a bzip2 archive (unpack it first)"),
    (0, b"PK\x03\x04", "a zip archive (unpack it first)"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (257, b"ustar", "a tar archive or OVA (unpack it first)"),
];

/// Magic numbers of the last 512 bytes.
const AT_END: &[(&[u8], &str)] = &[(b"conectix", "VHD"), (b"koly", "DMG")];

const HEAD: u64 = 512;

/// Returns the name of the format that the file begins or ends like.
pub(super) fn recognise<R: Read + Seek>(
    file: &mut R,
    length: u64,
) -> Result<Option<&'static str>, StorageError> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(reading)?;
    file.by_ref()
        .take(HEAD)
        .read_to_end(&mut head)
        .map_err(reading)?;
    for &(place, magic, name) in FROM_START {
        let there = usize::try_from(place)
            .ok()
            .and_then(|place| head.get(place..));
        if there.is_some_and(|there| there.starts_with(magic)) {
            return Ok(Some(name));
        }
    }
    let Some(footer) = length.checked_sub(512) else {
        return Ok(None);
    };
    let mut tail = [0; 512];
    read_at(file, footer, &mut tail)?;
    Ok(AT_END
        .iter()
        .find(|(magic, _)| tail.starts_with(magic))
        .map(|&(_, name)| name))
}
