//! What can be said of any folder: its file system, its room, who gets to it.

use super::kernel::{self, Mount};
use super::sandbox::{Access, drop_in};
use super::{Check, Host, Notes};
use crate::model::bytes::Bytes;
use nix::sys::statvfs::statvfs;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::ffi::CString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Less than this is soon nothing.
const LITTLE: Bytes = Bytes::gib(5);
/// With less than this nothing can be done.
const NOTHING: Bytes = Bytes::mib(64);

/// Whether files of this kind of file system are on another machine.
pub(super) fn is_remote(mount: &Mount) -> bool {
    let kind = mount.kind.as_str();
    [
        "nfs", "cifs", "smb", "ceph", "gluster", "9p", "afs", "lustre", "beegfs",
    ]
    .iter()
    .any(|remote| kind.starts_with(remote))
        || matches!(
            kind,
            "fuse.glusterfs" | "fuse.sshfs" | "fuse.ceph" | "gfs2" | "ocfs2"
        )
}

/// A folder, or the first one around it that is there.
pub(super) fn nearest(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// The room on a folder's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) capacity: Bytes,
    pub(super) free: Bytes,
    /// Names for files that are left; `None` where there is no limit.
    pub(super) names: Option<u64>,
}

/// How much room is left, in words of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Enough,
    Little,
    Nothing,
}

impl Room {
    pub(super) fn of(folder: &Path) -> nix::Result<Self> {
        let found = statvfs(folder)?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(found.fragment_size()));
        Ok(Self {
            capacity: bytes(found.blocks()),
            free: bytes(found.blocks_available()),
            names: (found.files() > 0).then_some(found.files_available()),
        })
    }

    /// Little is less than a tenth, and less than some GiB in any case.
    pub(super) fn left(&self) -> Left {
        if self.free < NOTHING || self.names.is_some_and(|names| names < 16) {
            Left::Nothing
        } else if self.free < LITTLE || self.free.get() < self.capacity.get() / 10 {
            Left::Little
        } else {
            Left::Enough
        }
    }
}

/// Tells how much room a folder has.
pub(super) fn tell_room(check: Check, about: &str, folder: &Path, notes: &Notes) {
    let room = match Room::of(folder) {
        Ok(room) => room,
        Err(error) => {
            let found = format!("{} can't be measured: {error}", folder.display());
            let advice = format!("df {}", folder.display());
            notes.error(check, about, found, "Its file system may be gone.", advice);
            return;
        }
    };
    let names = match room.names {
        Some(names) if names < 1000 => format!(", {names} names for files left"),
        _ => String::new(),
    };
    let found = format!(
        "{} free of {} in {}{names}",
        room.free,
        room.capacity,
        folder.display()
    );
    let advice = format!(
        "Make room: df -h {0}; du -xh -d2 {0} | sort -h | tail; kvmlet orphan list",
        folder.display()
    );
    match room.left() {
        Left::Enough => notes.ok(check, about, found),
        Left::Little => notes.warning(
            check,
            about,
            found,
            "When it is full, guests that write are paused.",
            advice,
        ),
        Left::Nothing => notes.error(
            check,
            about,
            found,
            "It is full: nothing can be made, and guests that write are paused.",
            advice,
        ),
    }
}

/// Tells whether the unit's sandbox leaves a path to the agent, where that is needed.
pub(super) fn tell_sandbox(host: &Host, about: &str, path: &Path, notes: &Notes) {
    let Some(unit) = host.unit() else {
        return;
    };
    let check = Check::PoolSandbox;
    match unit.sandbox.access(path) {
        Access::Write => notes.ok(
            check,
            about,
            format!("kvmlet.service may write {}", path.display()),
        ),
        Access::Read => notes.error(
            check,
            about,
            format!("kvmlet.service may not write {}", path.display()),
            "The unit runs in a sandbox in which only its own folders can be written.",
            drop_in(path),
        ),
        Access::Nothing => notes.error(
            check,
            about,
            format!("kvmlet.service does not see {}", path.display()),
            "The unit's sandbox hides homes and temporary files (ProtectHome=, PrivateTmp=).",
            format!(
                "Choose a folder such as /srv/{about}, or: {}",
                drop_in(path)
            ),
        ),
    }
}

/// A user, with the groups that he is in.
#[derive(Debug, Clone)]
pub(super) struct Person {
    pub(super) name: String,
    uid: u32,
    groups: Vec<u32>,
}

impl Person {
    /// The user that libvirt runs QEMU as.
    pub(super) fn qemu() -> Option<Self> {
        // Only root may read it; what it says goes before what is usual.
        let conf = kernel::text("/etc/libvirt/qemu.conf");
        let named = setting(&conf, "user").map(|name| name.trim_start_matches('+').to_owned());
        let group = setting(&conf, "group").map(|name| name.trim_start_matches('+').to_owned());
        let usual = ["libvirt-qemu", "qemu"].map(str::to_owned);
        let user = named
            .into_iter()
            .chain(usual)
            .find_map(|name| match name.parse::<u32>() {
                Ok(uid) => User::from_uid(Uid::from_raw(uid)).ok().flatten(),
                Err(_) => User::from_name(&name).ok().flatten(),
            })?;
        let group = group.and_then(|name| match name.parse::<u32>() {
            Ok(gid) => Some(Gid::from_raw(gid)),
            Err(_) => Some(Group::from_name(&name).ok().flatten()?.gid),
        });
        let gid = group.unwrap_or(user.gid);
        let name = CString::new(user.name.clone()).ok()?;
        let groups = getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid]);
        Some(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
        })
    }

    /// Whether the mode of a folder lets the user pass. Lists of access beside the
    /// mode are not looked at.
    fn passes(&self, folder: &Metadata) -> bool {
        let bit = if self.uid == 0 {
            return true;
        } else if folder.uid() == self.uid {
            0o100
        } else if self.groups.contains(&folder.gid()) {
            0o010
        } else {
            0o001
        };
        folder.mode() & bit != 0
    }

    /// The outermost folder, of those that lead to `path` and itself, that the user
    /// can't pass.
    pub(super) fn barrier(&self, path: &Path) -> Option<PathBuf> {
        let mut folders: Vec<_> = path.ancestors().collect();
        folders.reverse();
        folders
            .into_iter()
            .find(|folder| {
                let found = std::fs::metadata(folder);
                found.is_ok_and(|found| found.is_dir() && !self.passes(&found))
            })
            .map(Path::to_owned)
    }
}

/// A value of libvirt's configuration: `name = "value"`.
fn setting<'a>(conf: &'a str, name: &str) -> Option<&'a str> {
    let lines = conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix(name));
    let mut values = lines.filter_map(|rest| {
        let value = rest.trim_start().strip_prefix('=')?.trim();
        Some(value.trim_matches('"')).filter(|value| !value.is_empty())
    });
    values.next_back()
}

/// Looks at the folders that images may be imported from.
pub(super) fn look_at_imports(host: &Host, notes: &Notes) {
    let check = Check::ImageFolders;
    for folder in &host.config.images.allowed_dirs {
        let about = folder.display().to_string();
        match std::fs::metadata(folder) {
            Ok(found) if found.is_dir() => {
                let hidden = host
                    .unit()
                    .is_some_and(|unit| unit.sandbox.access(folder) == Access::Nothing);
                if hidden {
                    notes.warning(
                        check,
                        "",
                        format!("kvmlet.service does not see {about}"),
                        "The unit's sandbox hides it: no image can be imported from there.",
                        "Name another folder under [images] allowed_dirs, such as \
                         /var/lib/kvmlet/import.",
                    );
                } else {
                    notes.ok(check, "", format!("{about} is there"));
                }
            }
            Ok(_) => notes.warning(
                check,
                "",
                format!("{about} is no folder"),
                "No image can be imported from there.",
                "Name a folder under [images] allowed_dirs.",
            ),
            Err(error) if host.may_not(error.kind()) => {
                notes.needs_root(check, "", format!("{about} may not be looked at"));
            }
            Err(error) => notes.warning(
                check,
                "",
                format!("{about}: {error}"),
                "No image can be imported from there; URLs are not touched by this.",
                format!("install -d -m 0750 -g kvmlet {about}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_setting_is_the_last_one_and_not_a_comment() {
        let conf = "#user = \"root\"\nuser = \"libvirt-qemu\"\ngroup=\"kvm\"\nuser = \"qemu\"\n\
            user_namespaces = 1\n";
        assert_eq!(setting(conf, "user"), Some("qemu"));
        assert_eq!(setting(conf, "group"), Some("kvm"));
        assert_eq!(setting("", "user"), None);
    }

    #[test]
    fn a_folder_that_is_closed_to_a_user_is_named() {
        let home = tempfile::tempdir().expect("a folder");
        let (closed, inner) = (home.path().join("closed"), home.path().join("closed/inner"));
        std::fs::create_dir_all(&inner).expect("they are made");
        let set = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("it is ours");
        };
        set(home.path(), 0o711);
        set(&closed, 0o700);
        let stranger = |uid| Person {
            name: "stranger".to_owned(),
            uid,
            groups: vec![u32::MAX - 1],
        };
        assert_eq!(stranger(u32::MAX - 1).barrier(&inner), Some(closed.clone()));
        assert_eq!(stranger(0).barrier(&inner), None);
        set(&closed, 0o701);
        assert_eq!(stranger(u32::MAX - 1).barrier(&inner), None);
    }

    #[test]
    fn little_room_is_a_tenth_or_some_gigabytes() {
        let room = |capacity, free, names| Room {
            capacity: Bytes::gib(capacity),
            free,
            names,
        };
        assert_eq!(room(1000, Bytes::gib(200), Some(9000)).left(), Left::Enough);
        assert_eq!(room(1000, Bytes::gib(99), None).left(), Left::Little);
        assert_eq!(room(10, Bytes::gib(4), None).left(), Left::Little);
        assert_eq!(room(10, Bytes::mib(10), None).left(), Left::Nothing);
        assert_eq!(room(1000, Bytes::gib(500), Some(3)).left(), Left::Nothing);
    }

    #[test]
    fn file_systems_of_other_machines_are_known() {
        let of = |kind: &str| Mount {
            point: "/x".into(),
            kind: kind.to_owned(),
            read_only: false,
        };
        for kind in ["nfs", "nfs4", "cifs", "ceph", "fuse.sshfs", "9p"] {
            assert!(is_remote(&of(kind)), "{kind}");
        }
        for kind in ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay"] {
            assert!(!is_remote(&of(kind)), "{kind}");
        }
    }
}
