//! The programs that kvmlet runs.

use super::packages::{install, version_in};
use super::{Check, Host, Notes, libvirt};
use crate::storage::{Task, qemu_img_version};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the agent looks for them, whatever its surroundings say.
const FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];
const PATIENCE: Duration = Duration::from_secs(4);

/// The path of a program.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let paths = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
    paths.into_iter().find(|path| {
        let found = std::fs::metadata(path);
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

/// Looks at the programs that every host needs.
pub(super) fn look(_: &Host, notes: &Notes) {
    let launch: Vec<&str> = ["setpriv", "prlimit"]
        .into_iter()
        .filter(|tool| find(tool).is_none())
        .collect();
    if launch.is_empty() {
        notes.ok(Check::ToolLaunch, "", "setpriv and prlimit are installed");
    } else {
        notes.error(
            Check::ToolLaunch,
            "",
            format!("not installed: {}", launch.join(", ")),
            "Every tool is started through them, under limits: no volume can be made.",
            install("util-linux", "util-linux"),
        );
    }
    qemu_img(launch.is_empty(), notes);
}

fn qemu_img(can_launch: bool, notes: &Notes) {
    let check = Check::ToolQemuImg;
    let advice = install("qemu-utils", "/usr/bin/qemu-img");
    if !can_launch {
        let found = "it can't be started without setpriv and prlimit";
        notes.skipped(check, "", found, advice);
        return;
    }
    let version = match qemu_img_version(&Task::within(PATIENCE)) {
        Ok(printed) => version_in(&printed),
        Err(error) => {
            let meaning = "Volumes and images are made with it.";
            notes.error(check, "", error.to_string(), meaning, advice);
            return;
        }
    };
    match version {
        Some((major, minor)) if (major, minor) >= libvirt::QEMU => {
            notes.ok(check, "", format!("qemu-img {major}.{minor}"));
        }
        Some((major, minor)) => notes.warning(
            check,
            "",
            format!("qemu-img {major}.{minor}"),
            format!(
                "kvmlet is tested with {}.{} and later.",
                libvirt::QEMU.0,
                libvirt::QEMU.1
            ),
            advice,
        ),
        None => notes.warning(
            check,
            "",
            "qemu-img does not say its version",
            "It may be broken.",
            "qemu-img --version",
        ),
    }
}
