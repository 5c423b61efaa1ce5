//! Signals that end the daemon.
//!
//! The first SIGTERM or SIGINT asks for a clean end, the second one ends the
//! process at once; guests go on either way. SIGHUP asks to read the configuration
//! again. What a clean end is, and what can be read again, others know.

use std::io;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What signals ask for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// To end: cancelled by the first SIGTERM or SIGINT.
    pub end: CancellationToken,
    /// To read the configuration again: notified by each SIGHUP.
    pub reload: Arc<Notify>,
}

/// Listens to signals from now on. To be called once, inside the runtime.
///
/// # Errors
/// If a signal can't be listened to.
pub fn on_signals() -> io::Result<Asked> {
    let asked = Asked::default();
    let signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        hangup: signal(SignalKind::hangup())?,
    };
    tokio::spawn(signals.serve(asked.clone()));
    Ok(asked)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    async fn serve(mut self, asked: Asked) {
        loop {
            let (name, number) = tokio::select! {
                Some(()) = self.terminate.recv() => ("SIGTERM", 15),
                Some(()) = self.interrupt.recv() => ("SIGINT", 2),
                Some(()) = self.hangup.recv() => {
                    asked.reload.notify_one();
                    continue;
                }
                else => return,
            };
            if asked.end.is_cancelled() {
                tracing::warn!(signal = name, "ending at once");
                // As a shell shows the death by this signal.
                std::process::exit(128 + number);
            }
            tracing::info!(signal = name, "ending; once more ends at once");
            asked.end.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    /// Makes the next test the daemon instead of the one that signals it.
    const DAEMON: &str = "KVMLET_TEST_SHUTDOWN";

    fn say(word: &str) {
        writeln!(io::stdout(), "\nsays {word}").unwrap();
    }

    #[tokio::main(flavor = "current_thread")]
    async fn daemon() {
        let asked = on_signals().unwrap();
        say("up");
        asked.reload.notified().await;
        say("reload");
        asked.end.cancelled().await;
        say("ending");
        // A clean end that takes for ever.
        std::future::pending::<()>().await;
    }

    #[test]
    fn the_first_signal_asks_and_the_second_ends_and_a_hangup_does_neither() {
        if std::env::var_os(DAEMON).is_some() {
            return daemon();
        }
        for (first, second, code) in [
            (Signal::SIGTERM, Signal::SIGINT, 130),
            (Signal::SIGINT, Signal::SIGTERM, 143),
        ] {
            #[allow(clippy::disallowed_methods)] // this very test program, to be signalled
            let mut child = Command::new(std::env::current_exe().unwrap())
                .arg("shutdown::tests::the_first_signal_asks_and_the_second_ends_and_a_hangup_does_neither")
                .args(["--exact", "--nocapture"])
                .env(DAEMON, "1")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let pid = Pid::from_raw(child.id().try_into().unwrap());
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut wait_for = |word: &str| {
                let said = format!("says {word}");
                assert!(lines.any(|line| line.unwrap() == said), "never {said}");
            };
            wait_for("up");
            kill(pid, Signal::SIGHUP).unwrap();
            wait_for("reload");
            kill(pid, first).unwrap();
            wait_for("ending");
            kill(pid, second).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(code));
        }
    }
}
