//! A wire between kvmlet and libvirtd that can be cut in the middle of a call.
//!
//! It passes libvirt's protocol through, looks at the head of each message, and
//! when the awaited call comes by it kills libvirtd: before the call has reached
//! it, with the call just sent, or with the call done and its answer withheld.
//!
//! A message is its length, program, version, procedure, type, serial number and
//! status, 4 bytes each, and then what belongs to the procedure.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// The program that domains are part of.
const REMOTE: u32 = 0x2000_8086;
const REPLY: u32 = 1;

/// Calls that change something, by their numbers in libvirt's protocol. Some
/// have an older and a newer form.
pub mod calls {
    pub const CREATE: &[u32] = &[9, 196];
    pub const DEFINE: &[u32] = &[11, 350];
    pub const DESTROY: &[u32] = &[12, 234];
    pub const REBOOT: &[u32] = &[27];
    pub const RESUME: &[u32] = &[28];
    pub const SUSPEND: &[u32] = &[34];
    pub const SAVE: &[u32] = &[182];
    pub const DISCARD: &[u32] = &[184];
    pub const UNDEFINE: &[u32] = &[35, 231];
    pub const RESET: &[u32] = &[245];
    pub const SHUTDOWN: &[u32] = &[33, 258];
    pub const METADATA: &[u32] = &[264];
}

/// When libvirtd is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The call has not reached it.
    NotSent,
    /// The call has reached it a moment ago.
    Sent(Duration),
    /// It hangs: the call has reached it, and it does not get on.
    Hanging,
    /// It has done what it was asked, and its answer is lost.
    Done,
    /// Nothing is cut; only tells that the call came by.
    Never,
}

struct Trap {
    procedures: &'static [u32],
    cut: Cut,
    victim: Pid,
    told: Sender<()>,
}

impl Trap {
    fn spring(&self) {
        if self.cut != Cut::Never {
            kill(self.victim, Signal::SIGKILL).unwrap();
        }
        // A test that has ended does not listen.
        let _ = self.told.send(());
    }
}

/// The wire; it ends with the process.
pub struct Wire {
    folder: TempDir,
    trap: Arc<Mutex<Option<Trap>>>,
}

impl Wire {
    /// Lays one to the socket of a libvirt daemon, which need not be there.
    pub fn to(upstream: PathBuf) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kvmlet-w")
            .tempdir_in("/tmp")
            .unwrap();
        let listener = UnixListener::bind(folder.path().join("sock")).unwrap();
        let trap = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&trap);
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                // If nobody is there, the near end is closed at once.
                if let Ok(far) = UnixStream::connect(&upstream) {
                    join(near, far, &shared);
                }
            }
        });
        Self { folder, trap }
    }

    /// A folder of this test's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn uri(&self) -> String {
        let socket = self.folder.path().join("sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// Kills `victim` at the next of these calls; the receiver is told when.
    pub fn cut(&self, procedures: &'static [u32], cut: Cut, victim: Pid) -> Receiver<()> {
        let (told, sprung) = channel();
        *self.trap.lock().unwrap() = Some(Trap {
            procedures,
            cut,
            victim,
            told,
        });
        sprung
    }
}

/// Joins the two ends of a connection.
fn join(near: UnixStream, far: UnixStream, trap: &Arc<Mutex<Option<Trap>>>) {
    let withheld = Arc::new(Mutex::new(None));
    let (from, to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let (trap, kept) = (Arc::clone(trap), Arc::clone(&withheld));
    thread::spawn(move || {
        let passed = pass(&from, &to, |message| asked(message, &to, &trap, &kept));
        hang_up(&from, &to, passed);
    });
    thread::spawn(move || {
        let passed = pass(&far, &near, |message| answered(message, &withheld));
        hang_up(&far, &near, passed);
    });
}

fn hang_up(from: &UnixStream, to: &UnixStream, _how: io::Result<()>) {
    // The other direction may have done it.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Passes messages on until an end closes or `look` says that this was the last.
fn pass(
    mut from: &UnixStream,
    mut to: &UnixStream,
    mut look: impl FnMut(&[u8]) -> Option<()>,
) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let size = u32::from_be_bytes(length) as usize;
        let mut message = length.to_vec();
        message.resize(size, 0);
        from.read_exact(&mut message[4..])?;
        if look(&message).is_none() {
            return Ok(());
        }
        to.write_all(&message)?;
    }
}

fn word(message: &[u8], index: usize) -> u32 {
    let bytes = message[4 * index..][..4].try_into().unwrap();
    u32::from_be_bytes(bytes)
}

type Withheld = Mutex<Option<(u32, Trap)>>;

/// Looks at a call. `None` if it is not passed on.
fn asked(
    message: &[u8],
    mut far: &UnixStream,
    trap: &Mutex<Option<Trap>>,
    withheld: &Withheld,
) -> Option<()> {
    if word(message, 1) != REMOTE {
        return Some(());
    }
    let mut trap = trap.lock().unwrap();
    let awaited = |trap: &mut Trap| trap.procedures.contains(&word(message, 3));
    let Some(trap) = trap.take_if(awaited) else {
        return Some(());
    };
    match trap.cut {
        Cut::NotSent => trap.spring(),
        Cut::Sent(after) => {
            let _ = far.write_all(message);
            thread::sleep(after);
            trap.spring();
        }
        Cut::Hanging => {
            kill(trap.victim, Signal::SIGSTOP).unwrap();
            let _ = far.write_all(message);
            thread::sleep(Duration::from_secs(1));
            trap.spring();
        }
        Cut::Done => {
            *withheld.lock().unwrap() = Some((word(message, 5), trap));
            return Some(());
        }
        Cut::Never => {
            trap.spring();
            return Some(());
        }
    }
    None
}

/// Looks at an answer. `None` if it is not passed on.
fn answered(message: &[u8], withheld: &Withheld) -> Option<()> {
    let mut withheld = withheld.lock().unwrap();
    let awaited = |(serial, _): &mut (u32, Trap)| {
        word(message, 1) == REMOTE && word(message, 4) == REPLY && word(message, 5) == *serial
    };
    let Some((_, trap)) = withheld.take_if(awaited) else {
        return Some(());
    };
    trap.spring();
    None
}
