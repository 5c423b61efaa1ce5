//! What systemd is told about the daemon, and the socket it passes in.
//!
//! Everything here is harmless without systemd: nobody is told, no socket is
//! there, no watchdog asks. Telling never fails the daemon; a message that
//! can't be sent is logged.

use listenfd::ListenFd;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;
use systemd::daemon::{self, Listening, SocketType};
use tokio::time::MissedTickBehavior;

/// Says that the daemon is up: `systemctl start` returns now.
pub fn ready(status: &str) {
    notify(&[
        (daemon::STATE_READY, "1"),
        (daemon::STATE_STATUS, &one_line(status)),
    ]);
}

/// Says that the daemon reads its configuration again. [`ready`] must follow,
/// whatever comes of it: systemd waits for that.
pub fn reloading(status: &str) {
    let Some(micros) = monotonic_micros() else {
        return;
    };
    notify(&[
        ("RELOADING", "1"),
        // Tells systemd which of its requests this answers.
        ("MONOTONIC_USEC", &micros),
        (daemon::STATE_STATUS, &one_line(status)),
    ]);
}

/// The kernel's monotonic clock, in microseconds.
fn monotonic_micros() -> Option<String> {
    match clock_gettime(ClockId::CLOCK_MONOTONIC) {
        Ok(time) => Some(Duration::from(time).as_micros().to_string()),
        Err(error) => {
            tracing::warn!(%error, "the monotonic clock could not be read");
            None
        }
    }
}

/// Shows a line in `systemctl status`.
pub fn status(status: &str) {
    notify(&[(daemon::STATE_STATUS, &one_line(status))]);
}

/// Says that the daemon is on its way out.
pub fn stopping(status: &str) {
    notify(&[
        (daemon::STATE_STOPPING, "1"),
        (daemon::STATE_STATUS, &one_line(status)),
    ]);
}

/// Asks for more time to start or stop: this much from now on.
pub fn extend_timeout(by: Duration) {
    notify(&[(
        daemon::STATE_EXTEND_TIMEOUT_USEC,
        by.as_micros().to_string().as_str(),
    )]);
}

fn notify(state: &[(&str, &str)]) {
    if let Err(error) = daemon::notify(state.iter()) {
        tracing::warn!(%error, "systemd could not be told about the daemon's state");
    }
}

/// A newline would begin another message, and a NUL end all of them.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

/// How long systemd waits for a sign of life before it restarts the daemon;
/// `None` if it doesn't watch.
pub fn watchdog_timeout() -> Option<Duration> {
    match daemon::watchdog_enabled() {
        Ok(0) => None,
        Ok(micros) => Some(Duration::from_micros(micros)),
        Err(error) => {
            tracing::warn!(%error, "systemd's watchdog setting could not be read");
            None
        }
    }
}

/// Gives systemd a sign of life twice per `timeout`, as long as `alive` says
/// that there is life; to be dropped at the end of the daemon. While `alive`
/// answers false, or does not answer, none is given, and systemd acts.
pub async fn feed_watchdog<F>(timeout: Duration, mut alive: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    // Of zero length the interval would panic.
    let period = (timeout / 2).max(Duration::from_millis(1));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_alive = true;
    loop {
        ticks.tick().await;
        let is_alive = tokio::time::timeout(period, alive()).await == Ok(true);
        if is_alive {
            notify(&[(daemon::STATE_WATCHDOG, "1")]);
        }
        match (was_alive, is_alive) {
            (true, false) => tracing::error!("no sign of life for systemd's watchdog"),
            (false, true) => tracing::warn!("signs of life for systemd's watchdog again"),
            (true, true) | (false, false) => {}
        }
        was_alive = is_alive;
    }
}

/// Takes the Unix socket that systemd listens on for the daemon; `None` without
/// socket activation. To be called once.
///
/// It is descriptor 3, not standard input (`StandardInput=socket`): that one systemd
/// makes blocking, for all who have it, whenever it runs a command of the unit.
///
/// # Errors
/// Something else was passed than one listening Unix stream socket.
pub fn passed_listener() -> io::Result<Option<UnixListener>> {
    let mut passed = ListenFd::from_env();
    let listener = match passed.len() {
        0 => return Ok(None),
        1 => passed.take_unix_listener(0)?,
        _ => None,
    };
    let refused = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "systemd passed something else than one listening Unix socket",
        )
    };
    let listener = listener.ok_or_else(refused)?;
    let listens = daemon::is_socket_unix(
        listener.as_raw_fd(),
        Some(SocketType::Stream),
        Listening::IsListening,
        None::<&str>,
    )?;
    if !listens {
        return Err(refused());
    }
    // Not for children.
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(Some(listener))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::process::{Child, Command};

    /// Which daemon a test shall be, instead of the one that watches it.
    const DAEMON: &str = "KVMLET_TEST_SYSTEMD";

    /// Runs a test of this program again, as the child of a shell that does
    /// what systemd does between fork and exec.
    fn daemon(test: &str, shell: &str, stdin: OwnedFd, env: &[(&str, &str)]) -> Child {
        #[allow(clippy::disallowed_methods)] // this very test program, with another environment
        Command::new("sh")
            .args(["-c", &format!("{shell} exec \"$@\""), "sh"])
            .arg(std::env::current_exe().unwrap())
            .args([&format!("systemd::tests::{test}"), "--exact"])
            .env(DAEMON, "1")
            .envs(env.iter().copied())
            .stdin(stdin)
            .spawn()
            .unwrap()
    }

    fn is_daemon() -> bool {
        std::env::var_os(DAEMON).is_some()
    }

    #[tokio::main(flavor = "current_thread")]
    async fn live_and_die() {
        ready("up\nMAINPID=1");
        let timeout = watchdog_timeout().unwrap();
        assert_eq!(timeout, Duration::from_millis(200));
        // Alive three times, dead twice, alive again, then silent.
        let mut answers = VecDeque::from([true, true, true, false, false, true]);
        let (exhausted, silent) = tokio::sync::oneshot::channel();
        let mut exhausted = Some(exhausted);
        let feeding = feed_watchdog(timeout, || {
            let answer = answers.pop_front();
            if answer.is_none() {
                exhausted.take().map(|exhausted| exhausted.send(()));
            }
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
        });
        tokio::select! {
            () = feeding => unreachable!("it never ends by itself"),
            _ = silent => {}
        }
        stopping("bye");
    }

    #[test]
    fn systemd_hears_of_start_life_and_end_in_this_order() {
        if is_daemon() {
            return live_and_die();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut child = daemon(
            "systemd_hears_of_start_life_and_end_in_this_order",
            "WATCHDOG_PID=$$; export WATCHDOG_PID;",
            null.into(),
            &[
                ("NOTIFY_SOCKET", path.to_str().unwrap()),
                ("WATCHDOG_USEC", "200000"),
            ],
        );
        let hear = || {
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        assert_eq!(hear(), "READY=1\nSTATUS=up MAINPID=1");
        for _ in 0..4 {
            assert_eq!(hear(), "WATCHDOG=1");
        }
        assert_eq!(hear(), "STOPPING=1\nSTATUS=bye");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_socket_that_systemd_listens_on_is_taken_over() {
        if is_daemon() {
            let listener = passed_listener().unwrap().unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut child = daemon(
            "a_socket_that_systemd_listens_on_is_taken_over",
            "exec 3<&0 </dev/null; LISTEN_PID=$$; LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS;",
            listener.into(),
            &[],
        );
        let mut heard = String::new();
        UnixStream::connect(&path)
            .unwrap()
            .read_to_string(&mut heard)
            .unwrap();
        assert_eq!(heard, "hello");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn what_is_no_listening_unix_socket_is_refused() {
        if is_daemon() {
            let error = passed_listener().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let two = UnixListener::bind(dir.path().join("socket")).unwrap();
        let (connected, _peer) = UnixStream::pair().unwrap();
        for (given, count) in [(OwnedFd::from(two), 2), (connected.into(), 1)] {
            let mut child = daemon(
                "what_is_no_listening_unix_socket_is_refused",
                &format!(
                    "exec 3<&0 4<&0 </dev/null; LISTEN_PID=$$; LISTEN_FDS={count}; \
                     export LISTEN_PID LISTEN_FDS;"
                ),
                given,
                &[],
            );
            assert!(child.wait().unwrap().success());
        }
    }

    #[test]
    fn without_systemd_nobody_is_told_and_nothing_is_passed() {
        ready("up");
        assert_eq!(watchdog_timeout(), None);
        assert!(passed_listener().unwrap().is_none());
    }
}
