//! Takes a pool's folder for this process, and finds out what it can do.

use super::super::durable::temporary;
use super::super::error::{StorageError, StorageErrorKind};
use super::super::folder::direct_io;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How much is written to prove it.
const BLOCK: usize = 4096;

/// Takes the lock file of a pool, and writes our process id into it; the lock
/// ends with the process, however that ends.
pub(super) fn lock(path: &Path) -> Result<Flock<File>, StorageError> {
    let failed = |e| StorageError::io(format!("locking {}", path.display()), e);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    let mut lock = lock.map_err(|(file, errno)| match errno {
        Errno::EWOULDBLOCK => {
            let mut holder = String::new();
            // Who holds it is only for the words.
            let _ = file.take(32).read_to_string(&mut holder);
            StorageError::new(
                StorageErrorKind::InUse,
                format!(
                    "{} is held by another kvmlet, process {}",
                    path.display(),
                    holder.trim()
                ),
            )
        }
        errno => failed(errno.into()),
    })?;
    let holder = std::process::id().to_string();
    lock.set_len(0)
        .and_then(|()| lock.write_all(holder.as_bytes()))
        .map_err(failed)?;
    Ok(lock)
}

/// Proves that files can be written in a folder, and tells whether that works
/// past the page cache too.
pub(super) fn probe(folder: &Path) -> Result<bool, StorageError> {
    let failed = |e| StorageError::io(format!("writing in {}", folder.display()), e);
    let file = temporary(folder, "probe-")?;
    let mut plain = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .map_err(failed)?;
    plain
        .write_all(&[1; BLOCK])
        .and_then(|()| plain.sync_all())
        .map_err(failed)?;
    Ok(direct_io(&plain))
}
