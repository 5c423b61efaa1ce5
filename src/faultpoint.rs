//! Named points at which a test can kill the agent, hold it, or make a step fail.
//!
//! Every side effect of every plan lies between two of them, so that "killed
//! anywhere" is a list that a test goes through. They are armed from outside,
//! by the environment of the process:
//!
//! ```text
//! FAILPOINTS="create-vm.make-volume.after=return(kill);…"   (syntax of the crate `fail`)
//! FAILPOINTS_FILE=/path     the same, one to a line, read again at each point
//! FAILPOINTS_TRACE=/path    the name of each point is appended as it is reached
//!
//! return(kill)         SIGKILL, at once
//! return(hold:/path)   makes /path and waits until it is removed
//! return(fail)         what the point stands in fails
//! return(unknown)      its outcome is not known
//! return(away)         libvirt is away
//! ```
//!
//! The points are named `<operation>.<step>.<where>` in plans (`before`, `after`,
//! `undo`, `undone`, or a place inside), `<operation>.begin.…` and
//! `<operation>.end.…` around what the journal is told, and `pool.<what>.…` in
//! the storage. They exist only in builds with the feature `failpoints`; in all
//! others reaching one is nothing.

/// What a point asks of the code that reached it; killing and holding are done by
/// then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injected {
    /// To fail.
    Fail,
    /// To end without knowing what came of it.
    Unknown,
    /// To find libvirt away.
    Away,
}

/// Keeps the points armed until it is dropped.
#[must_use]
pub struct Armed {
    #[cfg(feature = "failpoints")]
    _scenario: fail::FailScenario<'static>,
}

/// Arms what the environment names.
pub fn arm() -> Armed {
    Armed {
        #[cfg(feature = "failpoints")]
        _scenario: fail::FailScenario::setup(),
    }
}

/// Reaches a point, in a task.
#[cfg(not(feature = "failpoints"))]
#[expect(
    clippy::unused_async,
    reason = "with the feature, it waits where it is held"
)]
pub async fn reach(_: &str) -> Option<Injected> {
    None
}

/// Reaches a point, on a thread that may block.
#[cfg(not(feature = "failpoints"))]
pub const fn reach_blocking(_: &str) -> Option<Injected> {
    None
}

#[cfg(feature = "failpoints")]
pub use armed::{reach, reach_blocking};

#[cfg(feature = "failpoints")]
mod armed {
    use super::Injected;
    use nix::sys::signal::{Signal, raise};
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    /// How often a held point looks whether it is let go.
    const LOOK: Duration = Duration::from_millis(5);

    enum Act {
        Hold(PathBuf),
        Inject(Injected),
    }

    /// Reaches a point, in a task.
    pub async fn reach(point: &str) -> Option<Injected> {
        match look(point)? {
            Act::Inject(injected) => Some(injected),
            Act::Hold(path) => {
                while path.exists() {
                    tokio::time::sleep(LOOK).await;
                }
                None
            }
        }
    }

    /// Reaches a point, on a thread that may block.
    pub fn reach_blocking(point: &str) -> Option<Injected> {
        match look(point)? {
            Act::Inject(injected) => Some(injected),
            Act::Hold(path) => {
                while path.exists() {
                    std::thread::sleep(LOOK);
                }
                None
            }
        }
    }

    /// What the file named last time, so that its points are armed once: they count.
    static NAMED: Mutex<String> = Mutex::new(String::new());

    /// Arms what the file names now, if that has changed.
    fn read(path: &Path) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        if *named == text {
            return;
        }
        let points = |text: &str| -> Vec<(String, String)> {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines.map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
        };
        for (point, _) in points(&named) {
            fail::remove(point);
        }
        for (point, actions) in points(&text) {
            fail::cfg(point, &actions).expect("a point that is armed well");
        }
        *named = text;
    }

    fn look(point: &str) -> Option<Act> {
        if let Some(path) = std::env::var_os("FAILPOINTS_FILE") {
            read(Path::new(&path));
        }
        if let Some(path) = std::env::var_os("FAILPOINTS_TRACE") {
            trace(Path::new(&path), point);
        }
        let word = fail::eval(point, |word| word.unwrap_or_default())?;
        Some(match word.as_str() {
            "kill" => {
                let killed = raise(Signal::SIGKILL);
                unreachable!("a process outlived SIGKILL: {killed:?}");
            }
            "fail" => Act::Inject(Injected::Fail),
            "unknown" => Act::Inject(Injected::Unknown),
            "away" => Act::Inject(Injected::Away),
            word => {
                let path = word
                    .strip_prefix("hold:")
                    .unwrap_or_else(|| panic!("{point} is armed with {word}"));
                File::create(path).expect("a place to hold at");
                Act::Hold(path.into())
            }
        })
    }

    /// Appends the name; one write, so that lines of several threads stay whole.
    fn trace(path: &Path, point: &str) {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("{point}\n").as_bytes()))
            .expect("a file to trace to");
    }
}
