//! The adapter and a libvirt daemon that dies, hangs, or is not there.
//!
//! The daemon is real, private and unprivileged: it has directories of its own
//! and serves the simulated driver over its socket.

use super::OWNER;
use kvmlet::libvirt::{
    Callbacks, CloseReason, DomainChange, DomainEvent, ErrorKind, Host, HypervisorUri,
};
use kvmlet::model::ids::VmId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    process: Child,
    home: tempfile::TempDir,
}

struct Connected {
    host: Host,
    events: Receiver<DomainEvent>,
    closes: Receiver<CloseReason>,
}

impl Daemon {
    fn start() -> Self {
        // Short: a socket's path ends at 107 bytes.
        let home = tempfile::Builder::new()
            .prefix("kvmlet-d")
            .tempdir_in("/tmp")
            .unwrap();
        // As root it would take the host's own directories.
        #[allow(clippy::disallowed_methods)] // a test starts its own daemon
        let mut command = if Uid::effective().is_root() {
            let nobody = User::from_name("nobody").unwrap().unwrap();
            chown(home.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={}", nobody.uid))
                .arg(format!("--regid={}", nobody.gid))
                .args(["--clear-groups", "--pdeathsig=KILL", "/usr/sbin/libvirtd"]);
            command
        } else {
            Command::new("/usr/sbin/libvirtd")
        };
        command.env("HOME", home.path());
        for variable in [
            "XDG_RUNTIME_DIR",
            "XDG_CONFIG_HOME",
            "XDG_CACHE_HOME",
            "XDG_DATA_HOME",
        ] {
            command.env(variable, home.path());
        }
        let process = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, home }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("libvirt/libvirt-sock")
    }

    /// Connects as soon as the daemon listens.
    fn connect(&self) -> Connected {
        let uri: HypervisorUri = format!("test+unix:///default?socket={}", self.socket().display())
            .parse()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (event, events) = channel();
            let (close, closes) = channel();
            let callbacks = Callbacks {
                on_event: Arc::new(move |what| {
                    let _ = event.send(what);
                }),
                on_close: Arc::new(move |reason| {
                    let _ = close.send(reason);
                }),
            };
            match Host::open(&uri, OWNER, 2, callbacks) {
                Ok(host) => {
                    return Connected {
                        host,
                        events,
                        closes,
                    };
                }
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
                    assert!(Instant::now() < deadline, "{error}");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id()).unwrap();
        kill(Pid::from_raw(id), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn events_arrive_from_a_daemon() {
    let daemon = Daemon::start();
    let Connected { host, events, .. } = daemon.connect();
    let id = VmId::random();
    host.define(&crate::libvirt::spec(id)).unwrap();
    assert_eq!(
        events.recv_timeout(PATIENCE),
        Ok(DomainEvent {
            id,
            what: DomainChange::Defined
        })
    );
    assert_eq!(host.get(id).unwrap().unwrap().id, id);
}

#[test]
fn a_daemon_that_dies_is_told_once_and_then_unreachable() {
    let daemon = Daemon::start();
    let Connected { host, closes, .. } = daemon.connect();
    assert!(host.is_alive());
    daemon.signal(Signal::SIGKILL);
    let reason = closes.recv_timeout(PATIENCE).unwrap();
    assert!(
        matches!(reason, CloseReason::Eof | CloseReason::Error),
        "{reason:?}"
    );
    assert!(!host.is_alive());
    let calls = loop {
        // Each connection is found dead in its own time.
        let calls = host.call_count();
        match host.list().unwrap_err().kind {
            ErrorKind::Interrupted => {}
            kind => {
                assert_eq!(kind, ErrorKind::Unreachable);
                break calls;
            }
        }
    };
    assert_eq!(host.call_count(), calls, "nothing was sent");
    host.close();
    assert_eq!(
        closes.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected),
        "told once"
    );
}

#[test]
fn a_call_that_the_daemon_dies_on_may_have_happened() {
    let daemon = Daemon::start();
    let Connected { host, .. } = daemon.connect();
    daemon.signal(Signal::SIGSTOP);
    let calls = host.call_count();
    let caller = {
        let host = host.clone();
        std::thread::spawn(move || host.list())
    };
    while host.call_count() == calls {
        std::thread::yield_now();
    }
    daemon.signal(Signal::SIGKILL);
    let error = caller.join().unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Interrupted, "{error}");
    assert!(error.is_connection_lost());
}

#[test]
fn a_daemon_that_hangs_is_given_up_after_its_keepalives() {
    let daemon = Daemon::start();
    let Connected { host, closes, .. } = daemon.connect();
    daemon.signal(Signal::SIGSTOP);
    assert_eq!(closes.recv_timeout(PATIENCE), Ok(CloseReason::Keepalive));
    assert!(!host.is_alive());
}

#[test]
fn a_daemon_that_is_not_there_is_unreachable() {
    let uri = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"
        .parse()
        .unwrap();
    let callbacks = Callbacks {
        on_event: Arc::new(|_| {}),
        on_close: Arc::new(|_| {}),
    };
    let error = Host::open(&uri, OWNER, 1, callbacks).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
}
