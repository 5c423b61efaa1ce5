//! Runs the storage tools as child processes: the only place that does.
//!
//! A child has an empty environment but for the C locale and a fixed path, no
//! input, bounded output, a leash ([`Task`]) that kills it, and dies with the
//! thread that started it (the thread waits for it, so: with this process). It has
//! few open files, leaves no core dump, gains no privileges, and inherits no
//! descriptor that this process opened: all of them close when it becomes another
//! program. Limits on memory, CPU time and written bytes are set where it reads
//! what others made.
//!
//! Its death, privileges and limits are set by util-linux's `setpriv` and `prlimit`, which set
//! them and then become the tool: the same process id, and no code of ours
//! between fork and exec.

use super::error::{StorageError, StorageErrorKind};
use super::task::Task;
use crate::model::bytes::Bytes;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// How often the leash is looked at while a child is silent.
const LOOK: Duration = Duration::from_millis(50);
/// What is kept of an output; the rest is read and dropped.
const MAX_OUTPUT: usize = 1 << 20;
/// Open files: what a client of a large Ceph cluster needs.
const FILES: u64 = 4096;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a child that reads what others made may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Address space.
    pub(crate) memory: Bytes,
    /// CPU time.
    pub(crate) cpu: Duration,
    /// The largest file that it may write.
    pub(crate) file: Bytes,
}

/// What a tool printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// The beginning of its standard output.
    pub(crate) stdout: Vec<u8>,
    /// The beginning of its standard error, trimmed.
    pub(crate) stderr: String,
}

impl Finished {
    /// Turns an end other than success into an error; `what` says what was
    /// tried.
    pub(crate) fn success(self, what: &str) -> Result<Vec<u8>, StorageError> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        // qemu-img has one exit code for everything: the words of the C locale
        // are all that tells a full disk from the rest.
        let says = |errno: Errno| self.stderr.contains(errno.desc());
        let kind = if says(Errno::ENOSPC) || says(Errno::EDQUOT) {
            StorageErrorKind::Full
        } else {
            StorageErrorKind::ToolFailed
        };
        Err(StorageError::new(
            kind,
            format!("{what}: {}: {}", self.status, self.stderr),
        ))
    }
}

enum Event {
    Out(Vec<u8>),
    Err(Vec<u8>),
}

/// Runs a tool to its end, or kills it when the task should end.
///
/// `on_stdout` sees the standard output as it comes.
pub(crate) fn run(
    tool: &str,
    arguments: &[OsString],
    limits: Option<Limits>,
    task: &Task,
    mut on_stdout: impl FnMut(&[u8]),
) -> Result<Finished, StorageError> {
    task.check()?;
    let mut child = Running(start(tool, arguments, limits)?);
    let (sender, events) = sync_channel(16);
    let stdout = child.0.stdout.take().expect("piped in start");
    let stderr = child.0.stderr.take().expect("piped in start");
    let errors = sender.clone();
    let readers = [
        thread::spawn(move || forward(stdout, &sender, Event::Out)),
        thread::spawn(move || forward(stderr, &errors, Event::Err)),
    ];
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match events.recv_timeout(LOOK) {
            Ok(Event::Out(bytes)) => {
                on_stdout(&bytes);
                keep(&mut out, &bytes);
            }
            Ok(Event::Err(bytes)) => keep(&mut err, &bytes),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        // Dropping the child kills it and waits for it.
        task.check()?;
    }
    for reader in readers {
        reader.join().expect("the readers don't panic");
    }
    let status = child.wait(tool, task)?;
    let stderr = String::from_utf8_lossy(&err).trim().to_owned();
    Ok(Finished {
        status,
        stdout: out,
        stderr,
    })
}

fn start(
    tool: &str,
    arguments: &[OsString],
    limits: Option<Limits>,
) -> Result<Child, StorageError> {
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the place that runs children"
    )]
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--no-new-privs", "--"]);
    // Nobody may raise what this process itself is held to.
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(FILES, |(_, hard)| hard.min(FILES));
    command
        .args(["prlimit", "--core=0"])
        .arg(format!("--nofile={files}"));
    if let Some(limits) = limits {
        command
            .arg(format!("--as={}", limits.memory.get()))
            .arg(format!("--cpu={}", limits.cpu.as_secs().max(1)))
            .arg(format!("--fsize={}", limits.file.get()));
    }
    command
        .arg("--")
        .arg(tool)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C at a terminal is for the agent, which decides what it means.
        .process_group(0);
    command.spawn().map_err(|e| {
        StorageError::caused(StorageErrorKind::ToolFailed, format!("starting {tool}"), e)
    })
}

/// Sends what a pipe gives until it closes or nobody listens.
fn forward(mut pipe: impl Read, sender: &SyncSender<Event>, event: fn(Vec<u8>) -> Event) {
    let mut buffer = [0; 8192];
    while let Ok(count) = pipe.read(&mut buffer) {
        if count == 0 || sender.send(event(buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = MAX_OUTPUT.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(&bytes[..room]);
}

/// A child that is killed and collected if it isn't waited for.
struct Running(Child);

impl Running {
    /// Waits for the end of a child that closed its outputs, which is near.
    fn wait(&mut self, tool: &str, task: &Task) -> Result<ExitStatus, StorageError> {
        let failed = |e| StorageError::io(format!("waiting for {tool}"), e);
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(status) = self.0.try_wait().map_err(failed)? {
                return Ok(status);
            }
            task.check()?;
            thread::sleep(pause);
            pause = (pause * 2).min(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has been collected, which is no harm.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::net::UnixStream;

    fn told(tool: &str, arguments: &[&str], limits: Option<Limits>) -> String {
        let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        let task = Task::within(Duration::from_secs(60));
        let finished = run(tool, &arguments, limits, &task, |_| ()).expect("it runs");
        let printed = finished.success(tool).expect("it succeeds");
        String::from_utf8(printed).expect("text")
    }

    const OUTSIDE: Limits = Limits {
        memory: Bytes::gib(1),
        cpu: Duration::from_secs(7),
        file: Bytes::mib(3),
    };

    #[test]
    fn a_child_inherits_none_of_our_descriptors() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = File::create(folder.path().join("file")).expect("a file");
        let opened = File::open(folder.path()).expect("it opens");
        let database = rusqlite::Connection::open(folder.path().join("db")).expect("a database");
        database
            .execute_batch("CREATE TABLE t (n)")
            .expect("it is written");
        let (one, other) = UnixStream::pair().expect("a pair");
        let (from, to) = std::io::pipe().expect("a pipe");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let ours: [RawFd; 8] = [
            file.as_raw_fd(),
            opened.as_raw_fd(),
            one.as_raw_fd(),
            other.as_raw_fd(),
            from.as_raw_fd(),
            to.as_raw_fd(),
            tcp.as_raw_fd(),
            udp.as_raw_fd(),
        ];
        let targets = ours.map(|fd| {
            let link = fs::read_link(format!("/proc/self/fd/{fd}")).expect("it is open");
            link.display().to_string()
        });
        for limits in [None, Some(OUTSIDE)] {
            let seen = told("ls", &["-l", "/proc/self/fd"], limits);
            assert!(seen.contains(" 0 -> /dev/null"), "{seen}");
            for target in &targets {
                assert!(!seen.contains(target), "{target} in {seen}");
            }
            let folder = folder.path().display().to_string();
            assert!(!seen.contains(&folder), "the database in {seen}");
        }
    }

    #[test]
    fn every_child_has_limits_and_no_way_to_more_privileges() {
        for (limits, outside) in [(None, false), (Some(OUTSIDE), true)] {
            let status = told("cat", &["/proc/self/status"], limits);
            assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
            let seen = told("cat", &["/proc/self/limits"], limits);
            let limit = |name: &str| {
                let line = seen.lines().find_map(|line| line.strip_prefix(name));
                let words: Vec<_> = line.expect(name).split_whitespace().collect();
                (words[0].to_owned(), words[1].to_owned())
            };
            let both = |n: u64| (n.to_string(), n.to_string());
            assert_eq!(limit("Max core file size"), both(0));
            let (_, files) = limit("Max open files");
            assert!(files.parse::<u64>().expect("a number") <= FILES, "{files}");
            if outside {
                assert_eq!(limit("Max address space"), both(1 << 30));
                assert_eq!(limit("Max cpu time"), both(7));
                assert_eq!(limit("Max file size"), both(3 << 20));
            }
        }
    }
}
