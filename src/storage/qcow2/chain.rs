//! What a disk reads through its backing files.
//!
//! Headers are read by our own reader and nothing is opened for writing. A chain
//! that can't be followed further ends there: it is used to find users, and what
//! a process has open is found by its lock as well.

use super::super::error::StorageError;
use super::super::inspect::Qcow2Header;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// No chain that anyone makes is longer; one that goes round ends.
const LONGEST: usize = 64;

/// Tells which of the disks is `target` or has it below itself.
pub(super) fn stands_on(target: &Path, disks: &[String]) -> Result<Option<String>, StorageError> {
    let wanted = match target.metadata() {
        Ok(found) => (found.dev(), found.ino()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            return Err(StorageError::io(
                format!("looking at {}", target.display()),
                e,
            ));
        }
    };
    let user = disks.iter().find(|disk| {
        let mut next = Some(PathBuf::from(disk));
        for _ in 0..LONGEST {
            let Some(path) = next else { return false };
            if path == target {
                return true;
            }
            let Ok(file) = open(&path) else { return false };
            if file
                .metadata()
                .is_ok_and(|found| (found.dev(), found.ino()) == wanted)
            {
                return true;
            }
            next = below(&path, file);
        }
        false
    });
    Ok(user.cloned())
}

/// Opens a disk. A guest of others could have written the name, and there are
/// devices for which to be opened is an order.
fn open(path: &Path) -> io::Result<File> {
    let kind = path.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
}

/// The backing file of a qcow2 file, if it has one.
fn below(path: &Path, mut file: File) -> Option<PathBuf> {
    let name = Qcow2Header::read(&mut file).ok()?.backing_file?;
    let name = name.strip_prefix("file:").unwrap_or(&name);
    // A relative one is meant from where the file really is.
    let home = path.canonicalize().ok()?;
    Some(home.parent()?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_names_a_device_or_a_pipe_does_not_get_it_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let file = folder.path().join("file");
        File::create(&file).expect("a file");
        assert!(open(&file).is_ok());
        for path in [pipe.as_path(), Path::new("/dev/null"), folder.path()] {
            assert!(open(path).is_err(), "{}", path.display());
        }
    }
}
