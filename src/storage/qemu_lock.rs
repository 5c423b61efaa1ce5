//! Tells whether a QEMU process uses a disk file.
//!
//! QEMU takes open-file-description locks on bytes from 100 on of each image
//! that it opens (its permissions from byte 100, what it forbids others from
//! byte 200). Looking at them needs no lock of our own, so a guest is never
//! disturbed. It is a last barrier against removing a disk under a guest, not a
//! way to learn which VM has it.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::File;

const FIRST_BYTE: i64 = 100;
const BYTES: i64 = 200;

/// Tells whether some process holds one of QEMU's locks on this file.
pub(crate) fn is_held(file: &File) -> Result<bool, Errno> {
    let mut probe = libc::flock {
        l_type: lock_type(libc::F_WRLCK),
        l_whence: 0,
        l_start: FIRST_BYTE,
        l_len: BYTES,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(probe.l_type != lock_type(libc::F_UNLCK))
}

/// The C constants are `int`, and the field is `short`.
fn lock_type(value: i32) -> i16 {
    i16::try_from(value).expect("lock types are below 4")
}
