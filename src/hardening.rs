//! What keeps the process to itself: its memory, and what it was given open.
//!
//! It holds keys and passwords for moments, so that nothing may write it to a file:
//! neither the kernel, when the process dies of a signal, nor another process of the
//! same user, with a debugger. Root can; against root nothing here helps. Children
//! begin anew when they become another program: they can be dumped, but for the limit
//! on core files, which they inherit.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::close;
use std::fs;
use std::io;

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

/// Closes what whoever started the process left open in it, but for the sockets that
/// systemd passes: its children would have it, too. To be called before anything is
/// opened, and before there are threads.
///
/// # Errors
/// If what is open can't be listed.
pub fn close_strangers() -> io::Result<()> {
    let number = |name: &str| -> Option<i32> { std::env::var(name).ok()?.parse().ok() };
    let passed = match number("LISTEN_PID") {
        Some(pid) if u32::try_from(pid) == Ok(std::process::id()) => {
            number("LISTEN_FDS").unwrap_or(0).max(0)
        }
        Some(_) | None => 0,
    };
    let mut open: Vec<i32> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        open.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    for descriptor in open {
        if descriptor >= FIRST_PASSED.saturating_add(passed) {
            // That of the list itself is closed already.
            let _ = close(descriptor);
        }
    }
    Ok(())
}

/// Makes the process one that leaves no core file and that no other process of its
/// user can look into. To be called before any secret is read; a repeat changes
/// nothing.
///
/// # Errors
/// The kernel's; a process that may do less than any other is refused nothing.
pub fn keep_memory_private() -> nix::Result<()> {
    // The hard limit stays: libvirt's driver, where it runs in this process
    // (qemu:///embed), sets that of its guests, and may not always go above it.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)?;
    // Also where a core file would go to a program: that is not held by the limit.
    set_dumpable(false)
}
