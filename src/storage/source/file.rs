//! Sources that are files of this host.
//!
//! Only regular files below a folder that the configuration allows. The kernel
//! resolves the path and refuses to leave the folder while it does so, because
//! a path that was checked first could be another one when it is opened.

use super::super::error::{StorageError, StorageErrorKind};
use super::super::task::Task;
use super::part::Part;
use super::refused;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How often an open is tried again when a rename elsewhere confused it.
const TRIES: usize = 16;

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
    let root = File::open(folder)
        .map_err(|e| StorageError::io(format!("opening {}", folder.display()), e))?;
    let how = OpenHow::new()
        // Opening a FIFO must not wait for its other end.
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut result = Err(Errno::EAGAIN);
    for _ in 0..TRIES {
        result = openat2(&root, rest, how);
        if !matches!(result, Err(Errno::EAGAIN | Errno::EINTR)) {
            break;
        }
    }
    let path = || folder.join(rest).display().to_string();
    match result {
        Ok(file) => Ok(File::from(file)),
        Err(Errno::EXDEV | Errno::ELOOP) => Err(refused(format!(
            "{} leads out of {}",
            path(),
            folder.display()
        ))),
        Err(Errno::ENXIO) => Err(refused(format!("{} is not a regular file", path()))),
        Err(Errno::ENOTDIR) => Err(StorageError::new(
            StorageErrorKind::NotFound,
            format!("no file {}", path()),
        )),
        Err(errno) => Err(StorageError::io(
            format!("opening {}", path()),
            errno.into(),
        )),
    }
}
