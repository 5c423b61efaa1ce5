//! Files that are there whole or not at all, also after the power fails.

use super::error::StorageError;
use crate::faultpoint;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use tempfile::TempPath;

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| StorageError::io(format!("syncing the folder {}", folder.display()), e))
}

/// Makes a folder with this mode, whatever the umask; one that is there is left
/// as it is, because its mode may be the administrator's choice.
pub(crate) fn make_folder(folder: &Path, mode: u32) -> Result<(), StorageError> {
    let failed = |e| StorageError::io(format!("making the folder {}", folder.display()), e);
    match DirBuilder::new().mode(mode).create(folder) {
        Ok(()) => {
            std::fs::set_permissions(folder, Permissions::from_mode(mode)).map_err(failed)?;
            match folder.parent() {
                Some(parent) => sync_folder(parent),
                None => Ok(()),
            }
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// The same, with the folders above it that are missing, which others can pass through.
pub(crate) fn make_folders(folder: &Path, mode: u32) -> Result<(), StorageError> {
    let above: Vec<_> = folder.ancestors().skip(1).collect();
    for missing in above.into_iter().rev().filter(|folder| !folder.exists()) {
        make_folder(missing, 0o711)?;
    }
    make_folder(folder, mode)
}

/// Makes an empty file in `folder` that is removed unless it is published.
pub(crate) fn temporary(folder: &Path, prefix: &str) -> Result<TempPath, StorageError> {
    tempfile::Builder::new()
        .prefix(prefix)
        .suffix(".qcow2")
        .tempfile_in(folder)
        .map(tempfile::NamedTempFile::into_temp_path)
        .map_err(|e| StorageError::io(format!("making a file in {}", folder.display()), e))
}

/// Gives a finished file its mode and its name, durably, without replacing
/// another: that is `Exists`, and the file is removed.
pub(crate) fn publish(file: TempPath, mode: u32, name: &Path) -> Result<(), StorageError> {
    let failed = |e| StorageError::io(format!("publishing {}", name.display()), e);
    // A write error of the page cache surfaces here at the latest.
    let open = File::open(&file).map_err(failed)?;
    open.set_permissions(Permissions::from_mode(mode))
        .map_err(failed)?;
    open.sync_all().map_err(failed)?;
    drop(open);
    file.persist_noclobber(name).map_err(|e| failed(e.error))?;
    faultpoint::reach_blocking("pool.publish.named");
    sync_folder(name.parent().unwrap_or(Path::new("/")))
}

/// Removes a file durably; absent is success.
pub(crate) fn remove(name: &Path) -> Result<(), StorageError> {
    match std::fs::remove_file(name) {
        Ok(()) => {
            faultpoint::reach_blocking("pool.remove.removed");
            sync_folder(name.parent().unwrap_or(Path::new("/")))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(StorageError::io(format!("removing {}", name.display()), e)),
    }
}
