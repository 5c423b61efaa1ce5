//! Our own copy of a source while it grows.
//!
//! `<image id>.part` has the bytes, sparse where they are zero, and
//! `<image id>.part.json` says of which version of which URL they are. The lock
//! on the first keeps two fetches of one image apart.

use super::super::durable;
use super::super::error::{StorageError, StorageErrorKind};
use super::super::task::Task;
use crate::model::bytes::Bytes;
use crate::model::ids::ImageId;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Zeroes are left out in blocks of this size, the clusters of our own files.
const BLOCK: usize = 64 << 10;

/// Which version of which URL a part is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The URL as it was asked for.
    pub(super) url: String,
    /// The server's name for these bytes: a strong ETag, or Last-Modified.
    pub(super) validator: String,
    /// How many bytes there are in all, if the server said.
    pub(super) total: Option<u64>,
    /// The kernel's run in which it was written. What wasn't synced before a
    /// crash of the host may be zeroes, so a part doesn't outlive that.
    pub(super) boot: String,
}

/// A copy of a source that grows.
#[derive(Debug)]
pub(super) struct Part {
    file: Flock<File>,
    path: PathBuf,
    max: u64,
    hash: Sha256,
    /// Bytes taken, in the file or pending.
    length: u64,
    /// What is in blocks that aren't all zero.
    data: u64,
    /// The last block while it isn't full.
    pending: Vec<u8>,
}

impl Part {
    /// Opens the part of an image, makes it if it isn't there, and locks it.
    pub(super) fn open(scratch: &Path, id: ImageId, max: Bytes) -> Result<Self, StorageError> {
        let path = path_in(scratch, id);
        let file = options().create(true).open(&path);
        let file = file.map_err(|e| StorageError::io(format!("making {}", path.display()), e))?;
        Self::lock(file, path, max)
    }

    /// Opens the part of an image if it is there.
    pub(super) fn existing(scratch: &Path, id: ImageId) -> Result<Option<Self>, StorageError> {
        let path = path_in(scratch, id);
        match options().open(&path) {
            Ok(file) => Self::lock(file, path, Bytes(u64::MAX)).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StorageError::io(format!("opening {}", path.display()), e)),
        }
    }

    fn lock(file: File, path: PathBuf, max: Bytes) -> Result<Self, StorageError> {
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            let message = format!("locking {}", path.display());
            match errno {
                Errno::EWOULDBLOCK => StorageError::new(StorageErrorKind::InUse, message),
                errno => StorageError::io(message, errno.into()),
            }
        })?;
        let max = max.get();
        let hash = Sha256::new();
        Ok(Self {
            file,
            path,
            max,
            hash,
            length: 0,
            data: 0,
            pending: Vec::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Returns how many bytes were taken.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Returns how much of that isn't zero, in whole blocks.
    pub(super) fn data_size(&self) -> Bytes {
        Bytes(self.data)
    }

    /// Forgets all bytes.
    pub(super) fn restart(&mut self) -> Result<(), StorageError> {
        self.hash = Sha256::new();
        (self.length, self.data) = (0, 0);
        self.pending.clear();
        self.file.set_len(0).map_err(|e| self.failed(e))?;
        self.file.rewind().map_err(|e| self.failed(e))
    }

    /// Takes up what a former fetch left: reads and hashes it.
    pub(super) fn resume(&mut self, task: &Task) -> Result<(), StorageError> {
        let there = self.file.metadata().map_err(|e| self.failed(e))?.len();
        let whole = there - there % BLOCK as u64;
        self.file.set_len(whole).map_err(|e| self.failed(e))?;
        self.file.rewind().map_err(|e| self.failed(e))?;
        let mut block = vec![0; BLOCK];
        while self.length < whole {
            task.check()?;
            (&*self.file)
                .read_exact(&mut block)
                .map_err(|e| self.failed(e))?;
            self.hash.update(&block);
            self.length += BLOCK as u64;
            if !is_zero(&block) {
                self.data += BLOCK as u64;
            }
            task.report(self.length, 0);
        }
        Ok(())
    }

    /// Takes more bytes; past the limit is `TooLarge`.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        self.refuse_larger(self.length.saturating_add(bytes.len() as u64))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == BLOCK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        if is_zero(&self.pending) {
            let step = i64::try_from(self.pending.len()).expect("at most a block");
            self.file
                .seek(SeekFrom::Current(step))
                .map_err(|e| self.failed(e))?;
        } else {
            (&*self.file)
                .write_all(&self.pending)
                .map_err(|e| self.failed(e))?;
            self.data += BLOCK as u64;
        }
        self.pending.clear();
        Ok(())
    }

    /// Brings all bytes into the file and returns their SHA-256, in lower case.
    pub(super) fn finish(&mut self) -> Result<String, StorageError> {
        self.flush()?;
        self.file.set_len(self.length).map_err(|e| self.failed(e))?;
        let digest = self.hash.clone().finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Refuses a source of this length, by the limit and by the free space.
    pub(super) fn refuse_length(&self, total: u64) -> Result<(), StorageError> {
        self.refuse_larger(total)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let usage = statvfs(folder).map_err(|e| self.failed(e.into()))?;
        let free = usage
            .blocks_available()
            .saturating_mul(usage.fragment_size());
        if total.saturating_sub(self.length) > free {
            let message = format!("a source of {total} bytes, and {free} are free");
            return Err(StorageError::new(StorageErrorKind::Full, message));
        }
        Ok(())
    }

    fn refuse_larger(&self, length: u64) -> Result<(), StorageError> {
        if length > self.max {
            let message = format!(
                "the source has {length} bytes or more, {} are allowed",
                self.max
            );
            return Err(StorageError::new(StorageErrorKind::TooLarge, message));
        }
        Ok(())
    }

    /// Returns of what the part is, if that is known and still holds.
    pub(super) fn origin(&self) -> Option<Origin> {
        let text = std::fs::read(self.origin_path()).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Notes of what the part is; `None` says that it can't be resumed.
    pub(super) fn set_origin(&self, origin: Option<&Origin>) -> Result<(), StorageError> {
        let path = self.origin_path();
        match origin {
            Some(origin) => {
                let text = serde_json::to_vec(origin).expect("strings and numbers are JSON");
                std::fs::write(&path, text)
                    .map_err(|e| StorageError::io(format!("writing {}", path.display()), e))
            }
            None => durable::remove(&path),
        }
    }

    /// Removes the part. What fails here is found by the sweep of the scratch
    /// folder, so it isn't reported.
    pub(super) fn remove(&self) {
        let _ = durable::remove(&self.origin_path());
        let _ = durable::remove(&self.path);
    }

    fn origin_path(&self) -> PathBuf {
        self.path.with_extension("part.json")
    }

    fn failed(&self, error: io::Error) -> StorageError {
        StorageError::io(format!("writing {}", self.path.display()), error)
    }
}

fn path_in(scratch: &Path, id: ImageId) -> PathBuf {
    scratch.join(format!("{id}.part"))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits());
    options
}

/// Compares the bytes with themselves, one place on: the first is zero, and
/// each is like the one before it.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && *rest == bytes[..rest.len()],
    }
}
