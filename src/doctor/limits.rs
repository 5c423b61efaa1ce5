//! Limits of the kernel and of the unit that many guests reach.

use super::{Check, Host, Notes, kernel};

/// Open files that an agent with many callers and pools needs.
const FILES: u64 = 8192;
/// Of the requests that there may be, the share at which more should be allowed.
const TENTHS: u64 = 8;

/// Looks at them.
pub(super) fn look(host: &Host, notes: &Notes) {
    open_files(host, notes);
    let numbers = ["/proc/sys/fs/aio-nr", "/proc/sys/fs/aio-max-nr"].map(kernel::number);
    if let [Some(used), Some(most)] = numbers {
        requests(used, most, notes);
    }
}

fn open_files(host: &Host, notes: &Notes) {
    let check = Check::LimitFiles;
    let Some(limit) = host.unit().and_then(super::units::Unit::open_files) else {
        return;
    };
    let found = format!("kvmlet.service may have {limit} files open");
    if limit < FILES {
        notes.warning(
            check,
            "",
            found,
            "With many callers at once, connections are refused.",
            "systemctl edit kvmlet.service, and write: [Service] and below it LimitNOFILE=65536",
        );
    } else {
        notes.ok(check, "", found);
    }
}

fn requests(used: u64, most: u64, notes: &Notes) {
    let check = Check::LimitAio;
    let found = format!("{used} of {most} requests to disks are taken (fs.aio-max-nr)");
    if used.saturating_mul(10) >= most.saturating_mul(TENTHS) {
        notes.warning(
            check,
            "",
            found,
            "When all are taken, guests with direct I/O can't be started.",
            format!(
                "sysctl -w fs.aio-max-nr={0}; to keep it: echo fs.aio-max-nr={0} > \
                 /etc/sysctl.d/60-kvmlet.conf",
                most.saturating_mul(4).max(1_048_576)
            ),
        );
    } else {
        notes.ok(check, "", found);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn requests_are_scarce_from_four_fifths_on() {
        for (used, level) in [(0, Level::Ok), (79, Level::Ok), (80, Level::Warning)] {
            let (sender, found) = channel();
            requests(used, 100, &Notes(sender));
            assert_eq!(found.recv().expect("it is told").level, level);
        }
    }
}
