//! What QEMU's driver needs when it runs inside this process.
//!
//! It reads the same `qemu.conf` as a libvirt daemon, below its own root.
//! Nothing that is there already is changed.
//!
//! Where control groups are mounted read-only, as in most containers, no guest
//! could be started for trying to make one; QEMU is then told to go without.
//!
//! A trap that this can't remove: where `/dev/kvm` exists but QEMU's user
//! (`libvirt-qemu`, when root runs this) can't open it, libvirt takes what it
//! knows about QEMU for stale and probes anew in almost every call, seconds
//! each time.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use tempfile::NamedTempFile;

/// Run by root, the driver would otherwise hand each guest's console to the
/// host's virtlogd, which need not be there.
const SETTINGS: &str = "# Written by kvmlet when there was none.\n\
    # QEMU writes console logs itself; there may be no virtlogd.\n\
    stdio_handler = \"file\"\n";

/// Where guests can't have a control group of their own, none is looked for.
const NO_GROUPS: &str = "# Control groups can't be made here.\n\
    cgroup_controllers = [ ]\n";

/// Where the kernel tells what is mounted, and how.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Whether a table of mounts shows that libvirt can't make a control group.
///
/// It makes one in each controller of the first version and fails with any of
/// them; the second version counts where the first has none. An option of the
/// mount or of the file system is enough to forbid it.
fn groups_are_frozen(mounts: &str) -> bool {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for line in mounts.lines() {
        // "id parent device root path OPTIONS tags… - KIND source OPTIONS"
        let Some((mount, system)) = line.split_once(" - ") else {
            continue;
        };
        let option = mount.split(' ').nth(5).unwrap_or_default();
        let mut system = system.split(' ');
        let kind = system.next();
        let options = system.nth(1).unwrap_or_default();
        let read_only = [option, options]
            .iter()
            .any(|options| options.split(',').any(|option| option == "ro"));
        match kind {
            // A named one has no controllers.
            Some("cgroup") if !options.contains("name=") => first.push(read_only),
            Some("cgroup2") => second.push(read_only),
            _ => {}
        }
    }
    if first.is_empty() {
        !second.is_empty() && second.iter().all(|frozen| *frozen)
    } else {
        first.contains(&true)
    }
}

/// What is written where there are no settings.
fn settings(mounts: &str) -> String {
    if groups_are_frozen(mounts) {
        format!("{SETTINGS}{NO_GROUPS}")
    } else {
        SETTINGS.to_owned()
    }
}

/// Makes the root and its `etc/qemu.conf`, unless they exist.
pub(super) fn prepare(root: &Path) -> io::Result<()> {
    let etc = root.join("etc");
    // QEMU runs as a user of its own and must get through.
    DirBuilder::new().recursive(true).mode(0o755).create(&etc)?;
    // Whole or not at all: an empty file would never be written again.
    let mut file = NamedTempFile::new_in(&etc)?;
    // A host that doesn't say is taken for a usual one.
    let mounts = std::fs::read_to_string(MOUNTS).unwrap_or_default();
    file.write_all(settings(&mounts).as_bytes())?;
    match file.persist_noclobber(etc.join("qemu.conf")) {
        Err(error) if error.error.kind() != ErrorKind::AlreadyExists => Err(error.error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_written_once_and_an_administrators_own_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("not/yet");
        let settings = root.join("etc/qemu.conf");
        prepare(&root).unwrap();
        let written = std::fs::read_to_string(&settings).unwrap();
        assert!(written.starts_with(SETTINGS), "{written}");
        std::fs::write(&settings, "user = \"me\"\n").unwrap();
        prepare(&root).unwrap();
        assert_eq!(
            std::fs::read_to_string(&settings).unwrap(),
            "user = \"me\"\n"
        );
        assert_eq!(std::fs::read_dir(root.join("etc")).unwrap().count(), 1);
    }

    const PLAIN: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda1 ro\n";

    const FIRST: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    const FIRST_FROZEN: &str = "33 31 0:30 / /sys/fs/cgroup/pids ro,nosuid - cgroup cgroup rw\n";
    const NAMED: &str = "34 31 0:31 / /sys/fs/cgroup/systemd ro - cgroup cgroup rw,name=systemd\n";
    const SECOND: &str = "35 31 0:32 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
    const SECOND_FROZEN: &str = "36 31 0:33 / /sys/fs/cgroup rw - cgroup2 cgroup2 ro\n";

    #[test]
    fn qemu_goes_without_control_groups_where_none_can_be_made() {
        for mounts in [
            [PLAIN, FIRST, FIRST_FROZEN].concat(),
            [PLAIN, FIRST_FROZEN, SECOND].concat(),
            [PLAIN, SECOND_FROZEN].concat(),
        ] {
            let written = settings(&mounts);
            assert_eq!(written, format!("{SETTINGS}{NO_GROUPS}"), "{mounts}");
            assert!(written.ends_with("\ncgroup_controllers = [ ]\n"));
        }
    }

    #[test]
    fn control_groups_are_left_to_libvirt_where_they_can_be_made_or_are_not_known() {
        for mounts in [
            [PLAIN, FIRST, NAMED, SECOND_FROZEN].concat(),
            [PLAIN, SECOND_FROZEN, SECOND].concat(),
            [PLAIN, NAMED].concat(),
            String::new(),
        ] {
            assert_eq!(settings(&mounts), SETTINGS, "{mounts}");
        }
    }
}
