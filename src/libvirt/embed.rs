//! What QEMU's driver needs when it runs inside this process.
//!
//! It reads the same `qemu.conf` as a libvirt daemon, below its own root.
//! Nothing that is there already is changed.
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

/// Makes the root and its `etc/qemu.conf`, unless they exist.
pub(super) fn prepare(root: &Path) -> io::Result<()> {
    let etc = root.join("etc");
    // QEMU runs as a user of its own and must get through.
    DirBuilder::new().recursive(true).mode(0o755).create(&etc)?;
    // Whole or not at all: an empty file would never be written again.
    let mut file = NamedTempFile::new_in(&etc)?;
    file.write_all(SETTINGS.as_bytes())?;
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
        assert_eq!(std::fs::read_to_string(&settings).unwrap(), SETTINGS);
        std::fs::write(&settings, "user = \"me\"\n").unwrap();
        prepare(&root).unwrap();
        assert_eq!(
            std::fs::read_to_string(&settings).unwrap(),
            "user = \"me\"\n"
        );
        assert_eq!(std::fs::read_dir(root.join("etc")).unwrap().count(), 1);
    }
}
