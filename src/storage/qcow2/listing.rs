//! What lies in a pool's folders, told by names.

use super::super::error::StorageError;
use super::super::{Entry, EntryKind};
use crate::model::bytes::Bytes;
use crate::model::orphan::fingerprint;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The ending of every disk file of ours.
pub(super) const SUFFIX: &str = ".qcow2";

/// Lists one folder of a pool; `kind` tells what a name means, or that it is to
/// be left out.
pub(super) fn list(
    pool: &Path,
    folder: &Path,
    entries: &mut Vec<Entry>,
    kind: impl Fn(&str) -> Option<EntryKind>,
) -> Result<(), StorageError> {
    for (entry, found) in read_folder(folder)? {
        let path = entry.path();
        let file_name = entry.file_name();
        // A name that isn't text is not one of ours.
        let known = match file_name.to_str() {
            Some(name) => kind(name),
            None => Some(EntryKind::Unknown),
        };
        let Some(kind) = known else {
            continue;
        };
        entries.push(Entry {
            kind: if found.is_file() {
                kind
            } else {
                EntryKind::Unknown
            },
            name: path
                .strip_prefix(pool)
                .unwrap_or(&path)
                .display()
                .to_string(),
            actual_size: on_disk(&found),
            modified: Some(
                found
                    .modified()
                    .map_err(|e| StorageError::io(format!("reading {}", path.display()), e))?,
            ),
            generation: generation(&found),
        });
    }
    Ok(())
}

/// Reads a folder; what vanishes meanwhile is left out.
pub(super) fn read_folder(folder: &Path) -> Result<Vec<(DirEntry, Metadata)>, StorageError> {
    let failed = |e| StorageError::io(format!("listing {}", folder.display()), e);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.metadata() {
            Ok(found) => entries.push((entry, found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(entries)
}

/// Reads the id in a file name of ours, in its one spelling.
pub(super) fn id_in<Id: std::str::FromStr + ToString>(name: &str) -> Option<Id> {
    let text = name.strip_suffix(SUFFIX)?;
    text.parse::<Id>().ok().filter(|id| id.to_string() == text)
}

/// A number for this file as it is now: another file, or the same one written to
/// or given to another user, has another.
pub(super) fn generation(found: &Metadata) -> u64 {
    let number = |n: i64| n.to_le_bytes();
    fingerprint(&[
        &found.dev().to_le_bytes(),
        &found.ino().to_le_bytes(),
        &found.len().to_le_bytes(),
        &number(found.mtime()),
        &number(found.mtime_nsec()),
        &number(found.ctime()),
        &number(found.ctime_nsec()),
    ])
}

/// The space that a file takes; the kernel counts it in units of 512 bytes.
pub(super) fn on_disk(found: &Metadata) -> Bytes {
    Bytes(found.blocks().saturating_mul(512))
}
