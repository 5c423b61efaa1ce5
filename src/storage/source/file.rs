//! Sources that are files of this host.
//!
//! Only regular files below a folder that the configuration allows. The path is
//! resolved and opened in one, without ever leaving the folder, because a path that
//! was checked first could be another one when it is opened: by the kernel, or where
//! a filter of system calls hides that (`RestrictSUIDSGID=` of systemd does), one
//! component after the other.

use super::super::error::{StorageError, StorageErrorKind};
use super::super::task::Task;
use super::part::Part;
use super::refused;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Returns the allowed folder that a path begins with, and the rest of it.
pub(super) fn below<'a>(
    allowed: &'a [PathBuf],
    path: &'a Path,
) -> Result<(&'a Path, &'a Path), StorageError> {
    allowed
        .iter()
        .find_map(|folder| Some((folder.as_path(), path.strip_prefix(folder).ok()?)))
        .filter(|(_, rest)| !rest.as_os_str().is_empty())
        .ok_or_else(|| refused(format!("{} is not below an allowed folder", path.display())))
}

/// Copies a file into a part.
pub(super) fn copy(
    allowed: &[PathBuf],
    path: &Path,
    part: &mut Part,
    task: &Task,
) -> Result<(), StorageError> {
    let (folder, rest) = below(allowed, path)?;
    let mut file = open(folder, rest)?;
    let failed = |e| StorageError::io(format!("reading {}", path.display()), e);
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(refused(format!("{} is not a regular file", path.display())));
    }
    let total = found.len();
    part.restart()?;
    part.refuse_length(total)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        task.check()?;
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        part.write(&buffer[..count])?;
        task.report(part.length(), total.max(part.length()));
    }
}

/// Opens a file below a folder; links may lead around in it, but not out.
fn open(folder: &Path, rest: &Path) -> Result<File, StorageError> {
    let root = Dir::open_ambient_dir(folder, ambient_authority())
        .map_err(|e| StorageError::io(format!("opening {}", folder.display()), e))?;
    let path = || folder.join(rest).display().to_string();
    let mut options = OpenOptions::new();
    // Opening a FIFO must not wait for its other end.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    options.read(true).custom_flags(flags.bits());
    root.open_with(rest, &options)
        .map(cap_std::fs::File::into_std)
        .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ELOOP | Errno::EXDEV) => leads_out(&path(), folder),
            // Its own word for a way out of the folder.
            None if error.kind() == ErrorKind::PermissionDenied => leads_out(&path(), folder),
            Some(Errno::ENXIO) => refused(format!("{} is not a regular file", path())),
            Some(Errno::ENOTDIR) => {
                StorageError::new(StorageErrorKind::NotFound, format!("no file {}", path()))
            }
            _ => StorageError::io(format!("opening {}", path()), error),
        })
}

fn leads_out(path: &str, folder: &Path) -> StorageError {
    refused(format!("{path} leads out of {}", folder.display()))
}
