//! The journal's file and the file system that it is on.

use super::folders::{Left, Room, is_remote, tell_sandbox};
use super::{Check, Host, Notes, kernel};
use crate::journal::{JournalError, schema_of};
use std::io::ErrorKind;
use std::path::Path;

/// Looks at the journal, and changes nothing in it.
pub(super) fn look(host: &Host, notes: &Notes) {
    let path = host.config.journal.path.as_path();
    file(host, path, notes);
    let folder = path.parent().unwrap_or(path);
    tell_sandbox(host, "journal", folder, notes);
    tell_sandbox(host, "console", &host.config.vms.console_dir, notes);
    if let Some(folder) = host.config.audit.file.as_deref().and_then(Path::parent) {
        tell_sandbox(host, "audit", folder, notes);
    }
    let there = super::folders::nearest(folder);
    file_system(&there, notes);
}

fn file(host: &Host, path: &Path, notes: &Notes) {
    let check = Check::JournalFile;
    let shown = path.display();
    match schema_of(path) {
        Ok((found, newest)) if found < newest => notes.ok(
            check,
            "",
            format!("{shown}: schema {found}; the daemon brings it to {newest} when it starts"),
        ),
        Ok((found, _)) => notes.ok(check, "", format!("{shown}: schema {found}")),
        Err(JournalError::Io(error)) if error.kind() == ErrorKind::NotFound => {
            let found = format!("{shown} is not there yet; kvmlet makes it when it starts");
            notes.ok(check, "", found);
        }
        Err(JournalError::Io(error)) if host.may_not(error.kind()) => {
            notes.needs_root(check, "", format!("{shown} may not be read by this user"));
        }
        // What SQLite can't open may be what only root may read.
        Err(JournalError::Database(_)) if !host.root => {
            notes.needs_root(check, "", format!("{shown} may not be read by this user"));
        }
        Err(JournalError::Newer { found, known }) => notes.error(
            check,
            "",
            format!("{shown} has schema {found}, this kvmlet knows up to {known}"),
            "A newer version wrote it. This one does not start with it, and leaves it as it is.",
            "Install the newer version again, or put the backup from before the upgrade back.",
        ),
        Err(JournalError::Foreign(_)) => notes.error(
            check,
            "",
            format!("{shown} is not a journal of kvmlet's"),
            "Something else is in its place; the agent does not start with it.",
            format!(
                "Move it away (mv {shown} {shown}.other), or name another under [journal] path."
            ),
        ),
        Err(error) => notes.error(
            check,
            "",
            format!("{shown}: {error}"),
            "The agent may not start with it.",
            format!("kvmlet journal check --path {shown}"),
        ),
    }
}

fn file_system(folder: &Path, notes: &Notes) {
    let check = Check::JournalFilesystem;
    let Some(mount) = kernel::mount_of(folder) else {
        return;
    };
    let room = Room::of(folder).ok();
    let free = room.map_or(String::new(), |room| format!(", {} free", room.free));
    let found = format!("{} on {}{free}", mount.kind, mount.point.display());
    if is_remote(&mount) {
        notes.error(
            check,
            "",
            found,
            "The journal's locks and its log need a file system of this host: elsewhere records \
             can be lost.",
            "Name a path on a disk of this host under [journal] path.",
        );
    } else if mount.read_only {
        notes.error(
            check,
            "",
            format!("{found}, read-only"),
            "Nothing can be recorded: no operation is taken.",
            format!(
                "dmesg | tail -n 50; then: mount -o remount,rw {}",
                mount.point.display()
            ),
        );
    } else if matches!(mount.kind.as_str(), "tmpfs" | "ramfs") {
        notes.warning(
            check,
            "",
            found,
            "It is memory: after the next boot no operation, image or deleted VM is known.",
            "Name a path on a disk of this host under [journal] path.",
        );
    } else if room.is_some_and(|room| room.left() == Left::Nothing) {
        notes.error(
            check,
            "",
            found,
            "It is full: no operation is taken.",
            format!("Make room: df -h {}", mount.point.display()),
        );
    } else {
        notes.ok(check, "", found);
    }
}
