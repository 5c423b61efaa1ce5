//! What the daemon holds in its memory stays there: on libvirt's simulated host, with
//! receivers that it proves itself to, at the log's most talkative.

#[path = "../ceph/spill.rs"]
mod spill;

#[path = "../ceph/receivers.rs"]
mod receivers;

use crate::support::api::Start;
use crate::support::daemon::{Daemon, Setup};
use crate::support::{PATIENCE, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Uid;
use receivers::Receivers;
use spill::Secret;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};

/// Starts what follows without the rights to look into every process.
const WITHOUT_RIGHT: [&str; 2] = ["setpriv", "--bounding-set=-sys_ptrace,-perfmon,-sys_admin"];

/// A program without them. Only root has them, so only root is to lose them.
fn without_right(program: &[&str]) -> Command {
    let mut words = program.to_vec();
    if Uid::effective().is_root() {
        words.splice(0..0, WITHOUT_RIGHT);
    }
    #[allow(clippy::disallowed_methods)] // a test has its own tools
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command
}

/// What another process of the same user gets of a process's environment.
fn look_into(process: u32) -> Output {
    without_right(&["cat", &format!("/proc/{process}/environ")])
        .output()
        .unwrap()
}

/// A process like any other.
struct Sleeper(Child);

impl Sleeper {
    async fn start() -> Self {
        let child = without_right(&["sleep", "600"]).spawn().unwrap();
        let name = format!("/proc/{}/comm", child.id());
        let sleeper = Self(child);
        until("the program to run", PATIENCE, async || {
            (fs::read_to_string(&name).ok()? == "sleep\n").then_some(())
        })
        .await;
        sleeper
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_process_of_its_user_looks_into_the_daemon() {
    let mut launcher = vec!["prlimit", "--core=unlimited"];
    if Uid::effective().is_root() {
        launcher.splice(0..0, WITHOUT_RIGHT);
    }
    let daemon = Daemon::start(Setup {
        launcher: launcher.into_iter().map(str::to_owned).collect(),
        ..Setup::default()
    })
    .await;
    let process = u32::try_from(daemon.pid().as_raw()).unwrap();
    let seen = look_into(process);
    assert!(!seen.status.success(), "it shows its environment");
    let words = String::from_utf8_lossy(&seen.stderr);
    assert!(words.contains("Permission denied"), "{words}");

    // One that does not see to it can be looked into.
    let sleeper = Sleeper::start().await;
    let seen = look_into(sleeper.0.id());
    assert!(seen.status.success() && !seen.stdout.is_empty(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_crashes_leaves_no_core_file() {
    let mut daemon = Daemon::start(Setup {
        launcher: ["prlimit", "--core=unlimited"].map(str::to_owned).into(),
        ..Setup::default()
    })
    .await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"));
    let soft = core.unwrap().split_whitespace().next();
    assert_eq!(soft, Some("0"), "{limits}");
    kill(daemon.pid(), Signal::SIGABRT).unwrap();
    let status = daemon.end().await;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    assert!(!status.core_dumped(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_receivers_are_shown_is_in_nothing_that_the_daemon_writes() {
    let receivers = Receivers::start().await;
    let mut daemon = Daemon::start(Setup {
        launcher: spill::at_trace(),
        more: receivers.section().to_owned(),
        ..Setup::default()
    })
    .await;
    let api = daemon.api();
    receivers.are_reached(&api).await;
    let image = daemon.image().await;
    let vm_id = api.create(&image, Start::Yes).await;
    receivers.have_heard_of(&vm_id).await;
    let mut told = spill::told(&daemon).await;
    told.push((
        "a node".to_owned(),
        format!("{:?}", api.node().await).into_bytes(),
    ));
    let processes = spill::processes();
    daemon.stop().await;

    let log = daemon.log();
    for target in ["async_nats", "h2::", "rustls", "tower", "hyper_util"] {
        assert!(log.contains(&format!(" {target}")), "{target} says all");
    }
    assert!(log.contains(" TRACE "), "the log says all that it can");
    let mut files = spill::files(daemon.home());
    files.extend(receivers.stored());
    assert!(files.iter().any(|(name, _)| name.ends_with("journal.db")));
    let secrets: Vec<Secret> = receivers.secrets();
    assert_eq!(secrets.len(), 2);
    for (place, content) in files.iter().chain(&told).chain(&processes) {
        for secret in &secrets {
            secret.is_not_in(place, content);
        }
    }
}

#[test]
fn a_secret_is_found_in_each_form() {
    let secret = Secret::new("a password", "kh3Jx9Qz");
    for content in [
        "user:kh3Jx9Qz",
        "a2gzSng5UXo=",           // base64 of it alone
        "dXNlcjpraDNKeDlReg==",   // of "user:" and it
        "cGFzczprSDNKeDlReiE=no", // of another
        "6b68334a78395-no",
        "6b68334a7839517a",
        "6B68334A7839517A",
        "[7, 107, 104, 51, 74, 120, 57, 81, 122]",
    ] {
        let there = !content.ends_with("no");
        assert_eq!(secret.is_in(content.as_bytes()), there, "{content}");
    }
    let binary = Secret::new("a key", b"\x00\xff\"abcdefgh");
    assert!(binary.is_in(br#"Bytes(b"\x00\xff\"abcdefgh")"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_starter_left_open_is_closed() {
    let setup = Setup {
        launcher: ["sh", "-c", "exec 9</etc/hostname; exec \"$@\"", "sh"]
            .map(str::to_owned)
            .into(),
        ..Setup::default()
    };
    let daemon = Daemon::start(setup).await;
    let folder = format!("/proc/{}/fd", daemon.pid());
    let mut open = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let leads = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert_ne!(leads.to_str(), Some("/etc/hostname"));
        open += 1;
    }
    assert!(open > 5, "what it opened itself is there");
}
