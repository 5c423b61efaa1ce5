//! Collects the QEMU processes that the daemons leave behind.
//!
//! QEMU detaches itself, and libvirt waits until its process is gone for good.
//! The first process of a container may take seconds for that, so the tests
//! take its place.

use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::time::Duration;

/// Collects from now on, until the process ends.
pub fn start() {
    set_child_subreaper(true).unwrap();
    std::thread::spawn(|| {
        loop {
            for process in dead_qemus() {
                let _ = waitpid(process, None);
            }
            // Nothing tells of children that were adopted, but for a signal
            // that is not ours to take.
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

/// Children of this process that are QEMU and have ended. Others have someone
/// who waits for them.
fn dead_qemus() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let mut dead = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // "pid (name) state parent …", and a name may hold anything.
        let Some((before, after)) = stat.rsplit_once(") ") else {
            continue;
        };
        let Some((pid, name)) = before.split_once(" (") else {
            continue;
        };
        let mut fields = after.split(' ');
        if name.starts_with("qemu-system")
            && fields.next() == Some("Z")
            && fields.next() == Some(own.as_str())
        {
            dead.extend(pid.parse().map(Pid::from_raw));
        }
    }
    dead
}
