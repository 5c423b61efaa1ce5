//! What the file system of a folder can do, tried with files that have no name.

use super::error::StorageError;
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The unit of direct I/O that every disk can do.
const BLOCK: usize = 4096;

/// What a folder's file system can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderTrial {
    /// Files can be written past the page cache.
    pub direct_io: bool,
    /// Files can share their data until one of them is changed.
    pub reflink: bool,
}

/// Writes a little in a folder, and leaves nothing in it, however this ends. Blocks.
///
/// # Errors
/// What the kernel says where files can't be made or written there.
pub fn try_folder(folder: &Path) -> Result<FolderTrial, StorageError> {
    let failed = |e| StorageError::io(format!("writing in {}", folder.display()), e);
    let mut file = tempfile::tempfile_in(folder).map_err(failed)?;
    file.write_all(&[1; BLOCK])
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    let other = tempfile::tempfile_in(folder).map_err(failed)?;
    Ok(FolderTrial {
        direct_io: direct_io(&file),
        reflink: rustix::fs::ioctl_ficlone(&other, &file).is_ok(),
    })
}

/// Whether a file can be written and read past the page cache; its first block is
/// overwritten.
pub(super) fn direct_io(file: &File) -> bool {
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(itself);
    let Ok(direct) = direct else {
        return false;
    };
    // Direct I/O needs aligned memory: take the aligned part of a larger piece.
    let mut memory = vec![2_u8; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let block = &mut memory[start..start + BLOCK];
    direct
        .write_all_at(block, 0)
        .and_then(|()| direct.read_exact_at(block, 0))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        try_folder(folder.path()).expect("it can be written");
        let left = std::fs::read_dir(folder.path()).expect("it is there");
        assert_eq!(left.count(), 0);
        assert!(try_folder(&folder.path().join("absent")).is_err());
    }
}
