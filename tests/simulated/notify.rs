//! What systemd is told by the real daemon: when it is up, that it lives, what it does,
//! what became of a reload, that it ends.
//!
//! The other side is a socket such as systemd's; what it decides on what it hears is in
//! its own documentation.

use crate::support::api::{Start, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{Condition, NewNic, VmState};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Systemd's side of the socket.
struct Systemd {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Systemd {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { socket, folder }
    }

    /// A daemon that tells it, and is to give a sign of life each half second.
    fn setup(&self) -> Setup {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut setup = Setup::default();
        for (name, value) in [
            ("NOTIFY_SOCKET", path("notify")),
            ("WATCHDOG_USEC", "1000000".to_owned()),
            ("FAILPOINTS_FILE", path("armed")),
            // A runtime with one thread hangs when that does.
            ("TOKIO_WORKER_THREADS", "1".to_owned()),
        ] {
            setup.environment.push((name.to_owned(), value));
        }
        setup
    }

    /// Holds the daemon at a fault point; it goes on when the file is removed.
    fn hold(&self, point: &str) -> std::path::PathBuf {
        let held = self.folder.path().join("held");
        let action = format!("{point}=1*return(hold:{})\n", held.display());
        fs::write(self.folder.path().join("armed"), action).unwrap();
        held
    }

    /// The next message, if one comes in time.
    fn next(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// All messages up to the first one that is as wanted, that one included.
    fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard: Vec<String> = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let told: Vec<&String> = heard.iter().filter(|m| *m != "WATCHDOG=1").collect();
            let signs = heard.len() - told.len();
            assert!(
                !left.is_zero(),
                "never heard {what}: {told:#?}, and {signs} signs"
            );
            let Some(message) = self.next(left) else {
                continue;
            };
            heard.push(message);
            if heard.last().is_some_and(|last| wanted(last)) {
                return heard;
            }
        }
    }

    fn until_line(&self, line: &str) -> Vec<String> {
        self.until(line, |message| message.lines().any(|l| l == line))
    }

    /// Leaves aside what was told before.
    fn drain(&self) {
        while self.next(Duration::from_millis(1)).is_some() {}
    }
}

fn says(messages: &[String], line: &str) -> bool {
    messages
        .iter()
        .flat_map(|message| message.lines())
        .any(|l| l == line)
}

fn rewrite(daemon: &Daemon, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(daemon.config()).unwrap();
    fs::write(daemon.config(), change(text)).unwrap();
}

fn on_network(id: &str) -> NewNic {
    NewNic {
        network_id: id.to_owned(),
        ..Default::default()
    }
}

fn hang_up(daemon: &Daemon) {
    kill(daemon.pid(), Signal::SIGHUP).unwrap();
}

async fn condition(daemon: &Daemon) -> Condition {
    let node = daemon.api().node().await;
    let mut conditions = node.conditions.into_iter();
    let found = conditions.find(|condition| condition.r#type == "ConfigurationRead");
    found.expect("it is told")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_up_after_its_first_look_at_the_host_whatever_it_is_asked_before() {
    let systemd = Systemd::new();
    let mut libvirtd = Libvirtd::start();
    let mut setup = systemd.setup();
    setup.uri = libvirtd.uri();
    libvirtd.kill9();
    let mut daemon = Daemon::launch(setup);
    let mut heard = systemd.until("what is waited for", |message| {
        message.starts_with("STATUS=waiting for libvirt since ")
    });
    assert!(says(&heard, "STATUS=reading the journal"), "{heard:#?}");
    // To read the configuration again is no reason to be ready.
    hang_up(&daemon);
    until("the reload", PATIENCE, async || {
        daemon.log().contains("were read again").then_some(())
    })
    .await;
    heard.extend(systemd.until("more time to start", |message| {
        message.starts_with("EXTEND_TIMEOUT_USEC=")
    }));
    libvirtd.restart();
    heard.extend(systemd.until_line("READY=1"));
    let ready = heard.pop().unwrap();
    assert_eq!(ready, "READY=1\nSTATUS=0 VMs, 0 running");
    // Once it serves, its sign of life may be quicker than the word that it is up.
    let serves = heard
        .iter()
        .position(|message| message.starts_with("STATUS=0 VMs"));
    let waited = &heard[..serves.unwrap_or(heard.len())];
    for (word, before) in [
        ("READY=", &heard[..]),
        ("RELOADING=", &heard[..]),
        ("WATCHDOG=", waited),
    ] {
        let early = before.iter().any(|message| message.contains(word));
        assert!(!early, "{heard:#?}");
    }
    systemd.until_line("WATCHDOG=1");
    // Its absence does not restart the agent.
    libvirtd.kill9();
    systemd.until_line("STATUS=0 VMs, 0 running; libvirt is away");
    for _ in 0..4 {
        systemd.until_line("WATCHDOG=1");
    }
    daemon.stop().await;
    let end = systemd.until_line("STOPPING=1");
    assert!(!says(&end, "READY=1"), "{end:#?}");
    libvirtd.restart();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_work_is_told_while_it_serves_and_while_it_stops() {
    let systemd = Systemd::new();
    let setup = systemd.setup().with("shutdown", "grace = \"3s\"");
    let mut daemon = Daemon::start(setup).await;
    let image = daemon.image().await;
    let held = systemd.hold("create-vm.make-volume.before");
    let mut request = small(&image);
    request.name = "web1".to_owned();
    daemon.api().vms().create_vm(request).await.unwrap();
    systemd.until_line("STATUS=1 VM, 0 running; creating web1");
    kill(daemon.pid(), Signal::SIGTERM).unwrap();
    let told = systemd.until_line("STOPPING=1").pop().unwrap();
    let line = "STATUS=stopping; 1 operation to halt; guests go on";
    assert!(told.lines().any(|l| l == line), "{told}");
    systemd.until_line("EXTEND_TIMEOUT_USEC=13000000");
    // It is watched to the end.
    systemd.until_line("WATCHDOG=1");
    assert_eq!(daemon.end().await.code(), Some(0));
    fs::remove_file(held).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_hangs_gives_no_sign_of_life() {
    let systemd = Systemd::new();
    let daemon = Daemon::start(systemd.setup()).await;
    systemd.until_line("WATCHDOG=1");
    let held = systemd.hold("runtime.turn");
    until("the runtime to hang", PATIENCE, async || {
        held.exists().then_some(())
    })
    .await;
    systemd.drain();
    // Three times as long as systemd would wait.
    let heard = systemd.next(Duration::from_secs(3));
    assert_eq!(heard, None);
    fs::remove_file(&held).unwrap();
    systemd.until_line("WATCHDOG=1");
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_networks_profiles_and_the_level_together() {
    let systemd = Systemd::new();
    let mut setup = systemd.setup();
    setup.log_level = "info";
    let daemon = Daemon::start(setup).await;
    let image = daemon.image().await;
    systemd.until_line("READY=1");
    systemd.drain();
    assert!(!daemon.log().contains("DEBUG"), "the level is info");

    let before = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    rewrite(&daemon, |text| {
        text.replace("level = \"info\"", "level = \"info,kvmlet=debug\"")
            + "\n[[networks]]\nid = \"new\"\nuser = true\n\
               [[hardware_profiles]]\nid = \"new\"\nvcpus = 1\nmemory = \"32 MiB\"\n"
    });
    hang_up(&daemon);
    let reloading = systemd.until_line("RELOADING=1").pop().unwrap();
    let time = reloading
        .lines()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="))
        .expect("with the time, in the same message");
    let time = Duration::from_micros(time.parse().unwrap());
    let after = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    assert!(
        before <= time && time <= after,
        "{before:?} {time:?} {after:?}"
    );
    let ready = systemd.until_line("READY=1").pop().unwrap();
    assert_eq!(ready, "READY=1\nSTATUS=0 VMs, 0 running");

    let node = daemon.api().node().await;
    assert!(node.networks.iter().any(|network| network.id == "new"));
    let mut request = small(&image);
    request.hardware = None;
    request.hardware_profile_id = "new".to_owned();
    request.nics.push(on_network("new"));
    request.start = true;
    let vm = request.vm_id.clone();
    let ended = daemon.api().vms().create_vm(request).await;
    daemon.api().done(ended).await;
    assert_eq!(daemon.api().state(&vm).await, VmState::Running);
    assert!(daemon.log().contains("DEBUG"), "the level is debug");
    systemd.until_line("STATUS=1 VM, 1 running");

    // What is gone from the file is asked for in vain; who has it keeps it.
    rewrite(&daemon, |text| {
        text.replace("id = \"new\"", "id = \"newer\"")
    });
    hang_up(&daemon);
    systemd.until_line("READY=1");
    let mut request = small(&image);
    request.nics.push(on_network("new"));
    let refused = daemon.api().vms().create_vm(request).await;
    let refused = crate::support::refusal::refused(refused);
    assert_eq!(refused.reason, "NETWORK_NOT_FOUND");
    assert_eq!(daemon.api().state(&vm).await, VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_faults_changes_nothing_and_is_told_until_a_good_one_is_read() {
    let systemd = Systemd::new();
    let daemon = Daemon::start(systemd.setup()).await;
    systemd.until_line("READY=1");
    let good = fs::read_to_string(daemon.config()).unwrap();
    let told = condition(&daemon).await;
    assert_eq!((told.status, told.reason.as_str()), (true, "InUse"));

    let more = "\n[[networks]]\nid = \"new\"\nuser = true\n[nodes]\n";
    let bad = good.replace("[vnc]", "[vnc]\npassword_ttl = 7") + more;
    fs::write(daemon.config(), bad).unwrap();
    hang_up(&daemon);
    systemd.until_line("RELOADING=1");
    let ready = systemd.until_line("READY=1").pop().unwrap();
    assert_eq!(
        ready,
        "READY=1\nSTATUS=0 VMs, 0 running; \
         configuration not read again: 2 faults, see the journal"
    );
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("was not read again"));
    let line = line.expect("it is logged");
    assert!(line.contains("ERROR"), "{line}");
    for fault in ["vnc.password_ttl", "nodes: unknown key"] {
        assert!(line.contains(fault), "{fault}: {line}");
    }
    let told = condition(&daemon).await;
    assert_eq!((told.status, told.reason.as_str()), (false, "Refused"));
    let networks = daemon.api().node().await.networks;
    assert!(!networks.iter().any(|network| network.id == "new"));

    let other = good
        .replace("[vnc]", "[vnc]\npassword_ttl = \"7s\"")
        .replace("[hypervisor]", "[hypervisor]\nconnections = 2");
    fs::write(daemon.config(), other).unwrap();
    hang_up(&daemon);
    systemd.until_line("RELOADING=1");
    let ready = systemd.until_line("READY=1").pop().unwrap();
    let keys = "needs a restart: hypervisor.connections, vnc.password_ttl";
    assert_eq!(ready, format!("READY=1\nSTATUS=0 VMs, 0 running; {keys}"));
    let told = condition(&daemon).await;
    assert_eq!((told.status, told.reason.as_str()), (true, "RestartNeeded"));
    assert_eq!(told.message, keys);

    fs::write(daemon.config(), good).unwrap();
    hang_up(&daemon);
    systemd.until_line("READY=1");
    assert_eq!(condition(&daemon).await.reason, "InUse");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_starts_is_told_at_once() {
    let systemd = Systemd::new();
    let daemon = Daemon::start(systemd.setup()).await;
    let image = daemon.image().await;
    daemon.api().create(&image, Start::Yes).await;
    systemd.until_line("STATUS=1 VM, 1 running");
}
