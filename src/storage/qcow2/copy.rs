//! Bringing an image from another pool into a pool of qcow2 files.

use super::super::durable::temporary;
use super::super::error::{StorageError, StorageErrorKind};
use super::super::inspect::{Qcow2Header, inspect};
use super::super::task::Task;
use super::super::{qemu_img, rbd};
use super::Qcow2Pool;
use crate::model::bytes::Bytes;
use crate::model::ids::ImageId;
use crate::model::image::ImageFormat;
use crate::model::volume::RbdSource;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use tempfile::TempPath;

impl Qcow2Pool {
    /// Copies the file of an image that another pool holds.
    pub(super) fn copy_file(
        &self,
        id: ImageId,
        path: &Path,
        task: &Task,
    ) -> Result<(TempPath, Bytes), StorageError> {
        let reading = |e| StorageError::io(format!("reading {}", path.display()), e);
        let mut from = File::open(path).map_err(reading)?;
        let total = from.metadata().map_err(reading)?.len();
        let size = Qcow2Header::read(&mut from)?.virtual_size;
        self.need(Bytes(total), "the copy of the image")?;
        let file = temporary(&self.temporary, &format!("image-{id}-"))?;
        let writing = |e| StorageError::io(format!("copying {}", path.display()), e);
        let to = OpenOptions::new()
            .write(true)
            .open(&file)
            .map_err(writing)?;
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        while done < total {
            task.check()?;
            let count = from.read_at(&mut buffer, done).map_err(reading)?;
            if count == 0 {
                break;
            }
            to.write_all_at(&buffer[..count], done).map_err(writing)?;
            done += count as u64;
            task.report(done, total);
        }
        Ok((file, size))
    }

    /// Makes a file of an image that a Ceph pool holds.
    pub(super) fn copy_rbd(
        &self,
        id: ImageId,
        image: &RbdSource,
        task: &Task,
    ) -> Result<(TempPath, Bytes), StorageError> {
        let (size, data) = rbd::size_of(image, task)?;
        self.need(qemu_img::file_bound(size, data), "the copy of the image")?;
        let file = temporary(&self.temporary, &format!("image-{id}-"))?;
        qemu_img::convert(
            &rbd::file_name(image),
            ImageFormat::Raw,
            &file,
            size,
            data,
            task,
        )?;
        Ok((file, size))
    }
}

/// Checks an image that we made, as strictly as one from outside.
pub(super) fn verify(path: &Path, size: Bytes, task: &Task) -> Result<(), StorageError> {
    let mut file =
        File::open(path).map_err(|e| StorageError::io(format!("reading {}", path.display()), e))?;
    let found = inspect(
        &mut task.watch(&mut file),
        ImageFormat::Qcow2,
        Bytes(u64::MAX),
    )?;
    if found.virtual_size != size {
        let message = format!("an image of {} came out as {}", size, found.virtual_size);
        return Err(StorageError::new(StorageErrorKind::ToolFailed, message));
    }
    qemu_img::check(path, task)
}
