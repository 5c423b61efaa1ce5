//! What keeps the memory of the process to itself.
//!
//! It holds keys and passwords for moments, so that nothing may write it to a file:
//! neither the kernel, when the process dies of a signal, nor another process of the
//! same user, with a debugger. Root can; against root nothing here helps. Children
//! begin anew when they become another program: they can be dumped, but for the limit
//! on core files, which they inherit.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

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
