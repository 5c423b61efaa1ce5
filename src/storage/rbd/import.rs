//! Bringing an image into a cluster, and out of it.

use super::super::error::{StorageError, StorageErrorKind};
use super::super::inspect::Qcow2Header;
use super::super::qemu_img;
use super::super::task::Task;
use super::super::{ImageFile, Pool};
use super::answers::{Du, Info};
use super::cluster::{Cluster, Keyring};
use super::volume::whole;
use super::{BASE, RbdPool};
use crate::faultpoint;
use crate::model::bytes::Bytes;
use crate::model::ids::ImageId;
use crate::model::image::ImageFormat;
use crate::model::volume::RbdSource;
use crate::pace;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often what it had open is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl RbdPool {
    /// Makes an image from a file or another image, under a name of this host's own
    /// until it is whole.
    pub(super) fn import(
        &self,
        id: ImageId,
        (from, format): (&OsStr, ImageFormat),
        size: Bytes,
        data: Bytes,
        task: &Task,
    ) -> Result<ImageFile, StorageError> {
        let pool = &self.spec.image_pool;
        let free = self.usage(Some(pool))?.free;
        if data > free {
            let message = format!("the image may take {data}, {free} are free in {pool}");
            return Err(StorageError::new(StorageErrorKind::Full, message));
        }
        let temporary = self.temporary_spec(id);
        self.discard_former(&temporary, task)?;
        let filled = self
            .fill(&temporary, (from, format), size, data, task)
            .map_err(|error| self.explain(pool, error));
        let published = filled.and_then(|()| {
            faultpoint::reach_blocking("pool.put-image.written");
            self.publish(&temporary, id)
        });
        if let Err(error) = published {
            // A writer that was killed has it open for half a minute; the cluster may be
            // away. What can't be removed now, undoing the import removes.
            drop(self.discard(&temporary));
            return Err(error);
        }
        let made = self.image(id)?.ok_or_else(|| self.no_image(id))?;
        if made.virtual_size != whole(size)? {
            let message = format!("an image of {size} came out as {}", made.virtual_size);
            return Err(StorageError::new(StorageErrorKind::ToolFailed, message));
        }
        Ok(made)
    }

    fn fill(
        &self,
        temporary: &str,
        (from, format): (&OsStr, ImageFormat),
        size: Bytes,
        data: Bytes,
        task: &Task,
    ) -> Result<(), StorageError> {
        let bytes = format!("{}B", whole(size)?.get());
        self.cluster
            .rbd(&["create", "--size", &bytes, temporary], task)?;
        let (pool, image) = temporary.split_once('/').unwrap_or_default();
        let to = file_name(&RbdSource {
            pool: pool.to_owned(),
            image: image.to_owned(),
            snapshot: None,
            access: self.cluster.access(),
        });
        qemu_img::fill(from, format, &to, size, data, task)
    }

    /// Gives a finished image its name.
    fn publish(&self, temporary: &str, id: ImageId) -> Result<(), StorageError> {
        let base = format!("{temporary}@{BASE}");
        self.rbd(&["snap", "create", "--no-progress", &base])?;
        self.rbd(&["snap", "protect", &base])?;
        faultpoint::reach_blocking("pool.publish.protected");
        match self.rbd(&["rename", temporary, &self.image_spec(id)]) {
            // Another host was faster: it is the same image.
            Err(error) if error.kind() == StorageErrorKind::Exists => {
                self.discard(temporary).map(drop)
            }
            renamed => renamed.map(drop),
        }
    }

    /// Removes what a former process has left of an import. If that was killed while
    /// it wrote, the cluster takes its writer for there a while longer.
    pub(super) fn discard_former(
        &self,
        temporary: &str,
        task: &Task,
    ) -> Result<bool, StorageError> {
        let until = Instant::now() + pace::dead_client();
        loop {
            match self.discard(temporary) {
                Err(error) if error.kind() == StorageErrorKind::InUse && Instant::now() < until => {
                    task.check()?;
                    std::thread::sleep(LOOK_AGAIN);
                }
                discarded => return discarded,
            }
        }
    }

    /// Removes an import that was not finished, unless its writer was killed a moment
    /// ago: that is left to the import that goes on. False if nothing was removed.
    pub(super) fn sweep_one(&self, temporary: &str) -> Result<bool, StorageError> {
        match self.discard(temporary) {
            Err(error) if error.kind() == StorageErrorKind::InUse => Ok(false),
            discarded => discarded,
        }
    }

    /// Removes an import that was not finished; false if there is none.
    pub(super) fn discard(&self, temporary: &str) -> Result<bool, StorageError> {
        let pool = &self.spec.image_pool;
        let Some(info) = self.cluster.rbd_json::<Info>(pool, &["info", temporary])? else {
            return Ok(false);
        };
        if info.snapshot_count > 0 {
            let base = format!("{temporary}@{BASE}");
            match self.rbd(&["snap", "unprotect", &base]) {
                // It was not protected yet: EINVAL.
                Err(error) if error.kind() != StorageErrorKind::ToolFailed => return Err(error),
                _ => {}
            }
            self.rbd(&["snap", "rm", "--no-progress", &base])?;
        }
        self.rbd(&["rm", "--no-progress", temporary])?;
        Ok(true)
    }
}

/// What the header of one of our own files says.
pub(super) fn look_at_file(path: &Path) -> Result<ImageFile, StorageError> {
    let reading = |e| StorageError::io(format!("reading {}", path.display()), e);
    let mut file = File::open(path).map_err(reading)?;
    let length = file.metadata().map_err(reading)?.len();
    Ok(ImageFile {
        virtual_size: Qcow2Header::read(&mut file)?.virtual_size,
        actual_size: Bytes(length),
    })
}

/// What an image of some cluster shows, and the space that it takes there.
pub(crate) fn size_of(image: &RbdSource, task: &Task) -> Result<(Bytes, Bytes), StorageError> {
    task.check()?;
    let access = &image.access;
    let cluster = Cluster::new(
        access.conf.clone(),
        access.user.clone(),
        Keyring::File(access.keyring.clone()),
    );
    let mut spec = format!("{}/{}", image.pool, image.image);
    if let Some(snapshot) = &image.snapshot {
        spec = format!("{spec}@{snapshot}");
    }
    let gone = || StorageError::new(StorageErrorKind::NotFound, format!("{spec} is gone"));
    let info: Info = cluster
        .rbd_json(&image.pool, &["info", &spec])?
        .ok_or_else(gone)?;
    let du: Du = cluster
        .rbd_json(&image.pool, &["du", &spec])?
        .ok_or_else(gone)?;
    Ok((info.size, du.used()))
}

/// How `qemu-img` names an RBD image: values have a backslash before what would end
/// them. (`block/rbd.c`, qemu_rbd_parse_filename.)
pub(crate) fn file_name(image: &RbdSource) -> OsString {
    let mut name = b"rbd:".to_vec();
    let value = |name: &mut Vec<u8>, value: &OsStr| {
        for &byte in value.as_bytes() {
            if matches!(byte, b'\\' | b':' | b'@' | b'=' | b'/') {
                name.push(b'\\');
            }
            name.push(byte);
        }
    };
    value(&mut name, OsStr::new(&image.pool));
    name.push(b'/');
    value(&mut name, OsStr::new(&image.image));
    if let Some(snapshot) = &image.snapshot {
        name.push(b'@');
        value(&mut name, OsStr::new(snapshot));
    }
    for (key, text) in [
        (":id=", OsStr::new(&image.access.user)),
        (":conf=", image.access.conf.as_os_str()),
        (":keyring=", image.access.keyring.as_os_str()),
        (":client_mount_timeout=", OsStr::new("10")),
        (":rados_osd_op_timeout=", OsStr::new("60")),
    ] {
        name.extend_from_slice(key.as_bytes());
        value(&mut name, text);
    }
    OsString::from_vec(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::volume::CephAccess;
    use uuid::Uuid;

    #[test]
    fn what_would_end_a_value_is_escaped() {
        let name = file_name(&RbdSource {
            pool: "a".to_owned(),
            image: "b".to_owned(),
            snapshot: Some("c".to_owned()),
            access: CephAccess {
                conf: "/x:y/z=1@2\\".into(),
                user: "u".to_owned(),
                keyring: "/k".into(),
                monitors: Vec::new(),
                secret: Uuid::nil(),
            },
        });
        let expected = r"rbd:a/b@c:id=u:conf=\/x\:y\/z\=1\@2\\:keyring=\/k:";
        assert!(name.to_str().unwrap().starts_with(expected), "{name:?}");
    }
}
