//! Pools that are folders of this host, and the scratch folders of the others.

use super::folders::{Person, is_remote, nearest, tell_room, tell_sandbox};
use super::kernel::{self, Mount};
use super::{Check, Host, Notes};
use crate::config::{PoolBackend, PoolSettings};
use crate::storage::try_folder;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// Looks at a pool's folder.
pub(super) fn look(host: &Host, pool: &PoolSettings, notes: &Notes) {
    let (name, path) = (pool.name.as_str(), pool.path.as_path());
    let holds_disks = pool.backend == PoolBackend::Qcow2;
    tell_sandbox(host, name, path, notes);
    // What is made later is made on the file system that is there now.
    let Some(there) = folder(host, name, path, notes) else {
        return;
    };
    let there = there.as_path();
    let mount = kernel::mount_of(there);
    if let Some(mount) = &mount {
        file_system(name, mount, holds_disks, notes);
    }
    tell_room(Check::PoolSpace, name, there, notes);
    trial(host, name, there, holds_disks, notes);
    if holds_disks && host.config.hypervisor.uri.contains(":///system") {
        passage(name, there, notes);
    }
}

/// The pool's folder, or the one in which it will be made.
fn folder(host: &Host, name: &str, path: &Path, notes: &Notes) -> Option<PathBuf> {
    let check = Check::PoolFolder;
    let shown = path.display();
    if let Some(point) = kernel::fstab_point(path)
        && kernel::mount_of(&point).is_none_or(|mount| mount.point != point)
    {
        notes.error(
            check,
            name,
            format!(
                "{} is not mounted, and /etc/fstab says that it is to be",
                point.display()
            ),
            "Volumes would be made on another file system, and hidden once it is mounted.",
            format!("mount {}", point.display()),
        );
        return None;
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            notes.ok(check, name, format!("{shown} is there"));
            Some(path.to_owned())
        }
        Ok(_) => {
            notes.error(
                check,
                name,
                format!("{shown} is no folder"),
                "The pool can't be used.",
                "Name a folder as the pool's path.",
            );
            None
        }
        Err(error) if host.may_not(error.kind()) => {
            notes.needs_root(check, name, format!("{shown} may not be looked at"));
            None
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The agent makes it, with all folders around it.
            let around = nearest(path);
            let found = format!("{shown} is not there yet; kvmlet makes it when it starts");
            if path.parent() == Some(&around) || path.starts_with("/var/lib/kvmlet") {
                notes.ok(check, name, found);
            } else {
                notes.warning(
                    check,
                    name,
                    format!("{found}, in {}", around.display()),
                    "Is a file system not mounted? Volumes would be made on another one.",
                    format!(
                        "mount | grep {0}; else make it: mkdir -p {shown} && chmod 0711 {shown}",
                        around.display()
                    ),
                );
            }
            Some(around)
        }
        Err(error) => {
            notes.error(
                check,
                name,
                format!("{shown}: {error}"),
                "The pool can't be used.",
                format!("ls -ld {shown}"),
            );
            None
        }
    }
}

fn file_system(name: &str, mount: &Mount, holds_disks: bool, notes: &Notes) {
    let check = Check::PoolFilesystem;
    let found = format!("{} on {}", mount.kind, mount.point.display());
    if !holds_disks {
        notes.ok(check, name, found);
    } else if is_remote(mount) {
        notes.warning(
            check,
            name,
            found,
            "It is on another machine: guests stop while that is away, and two hosts that \
             share the folder may start one guest twice.",
            "Use a file system of this host, or Ceph RBD (kind = \"rbd\").",
        );
    } else if matches!(mount.kind.as_str(), "tmpfs" | "ramfs") {
        notes.warning(
            check,
            name,
            found,
            "It is memory: every volume is gone after the next boot.",
            "Put the pool on a disk.",
        );
    } else {
        notes.ok(check, name, found);
    }
}

/// Writes a little, and leaves nothing.
fn trial(host: &Host, name: &str, folder: &Path, holds_disks: bool, notes: &Notes) {
    let shown = folder.display();
    let trial = match try_folder(folder) {
        Ok(trial) => trial,
        Err(error) => {
            let cause = error.source().and_then(|it| it.downcast_ref::<io::Error>());
            let kind = cause.map_or(io::ErrorKind::Other, io::Error::kind);
            let words = cause.map_or(error.to_string(), ToString::to_string);
            if host.may_not(kind) {
                let found = format!("{shown} may not be written by this user");
                notes.needs_root(Check::PoolWrite, name, found);
                return;
            }
            let (meaning, advice) = match kind {
                io::ErrorKind::ReadOnlyFilesystem => (
                    "Its file system is read-only, maybe since an error on the disk.",
                    format!(
                        "dmesg | tail -n 50; then: mount -o remount,rw $(findmnt -no TARGET -T {shown})"
                    ),
                ),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
                    "It is full: nothing can be made in it.",
                    format!("Make room: df -h {shown}; kvmlet orphan list"),
                ),
                _ => (
                    "The pool can't be used.",
                    format!("namei -l {shown}; chown root: {shown} && chmod 0711 {shown}"),
                ),
            };
            let found = format!("writing in {shown}: {words}");
            notes.error(Check::PoolWrite, name, found, meaning, advice);
            return;
        }
    };
    notes.ok(
        Check::PoolWrite,
        name,
        format!("files can be written in {shown}"),
    );
    if !holds_disks {
        return;
    }
    if trial.direct_io {
        notes.ok(Check::PoolDirectIo, name, "direct I/O works");
    } else {
        notes.warning(
            Check::PoolDirectIo,
            name,
            "direct I/O does not work",
            "Guests go through the host's page cache, which takes memory and makes their \
             writes slower to be safe.",
            "Use ext4, XFS or btrfs on a disk of this host.",
        );
    }
    // Volumes are overlays on their image: nothing is lost without it.
    let reflink = if trial.reflink {
        "files can share their data"
    } else {
        "files can't share their data; volumes are overlays and don't need it"
    };
    notes.ok(Check::PoolReflink, name, reflink);
}

fn passage(name: &str, folder: &Path, notes: &Notes) {
    let check = Check::PoolPassage;
    let Some(person) = Person::qemu() else {
        notes.skipped(
            check,
            name,
            "the user that QEMU runs as is not known",
            "Install libvirt's QEMU driver first.",
        );
        return;
    };
    match person.barrier(folder) {
        None => notes.ok(
            check,
            name,
            format!("{} can pass to the disks", person.name),
        ),
        Some(barrier) => {
            let (shown, who) = (barrier.display(), &person.name);
            notes.error(
                check,
                name,
                format!("{who} can't pass {shown}"),
                "QEMU can't open the disks of guests there: no guest starts.",
                format!("chmod o+x {shown}   (or: setfacl -m u:{who}:x {shown})"),
            );
        }
    }
}
