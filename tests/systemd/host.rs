//! A Debian 13 of its own, booted with systemd as its first process.
//!
//! It is a container with a network, a process tree and a file system of its own.
//! libvirt runs in it as its unit and starts real QEMUs, without KVM. It ends with
//! the test, and so do its guests.

use crate::support::api::Api;
use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::{ClientTlsConfig, Endpoint, Uri};

/// How long a boot, or any one command, may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The agent's socket, as it is seen inside.
const SOCKET: &str = "run/kvmlet/kvmlet.sock";

/// Where this project is.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command outside of all hosts; its output, if it succeeds.
pub fn outside(program: &str, arguments: &[&str]) -> String {
    #[allow(clippy::disallowed_methods)] // what a person would type
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What a command inside printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A booted system.
pub struct Host {
    pub name: String,
    /// Its first process, seen from outside.
    init: Pid,
    container: Child,
    folder: TempDir,
}

impl Host {
    /// Copies the root that `tests/systemd/root/build` makes, and boots it.
    pub fn boot(name: &str) -> Self {
        assert!(
            geteuid().is_root(),
            "only root can boot a system; run this test as root"
        );
        let base = outside(
            project().join("tests/systemd/root/build").to_str().unwrap(),
            &[],
        );
        let folder = tempfile::Builder::new()
            .prefix(&format!("kvmlet-{name}-"))
            .tempdir_in("/var/tmp")
            .unwrap();
        let root = folder.path().join("root");
        outside(
            "cp",
            &["-a", "--reflink=auto", &base, root.to_str().unwrap()],
        );
        let id = uuid::Uuid::new_v4().simple();
        fs::write(root.join("etc/machine-id"), format!("{id}\n")).unwrap();
        fs::write(root.join("etc/hostname"), format!("{name}\n")).unwrap();
        let container = container(name, folder.path());
        let mut host = Self {
            name: name.to_owned(),
            init: Pid::from_raw(0),
            container,
            folder,
        };
        host.has_come_up();
        host
    }

    /// Shuts it down, and boots it again.
    pub fn reboot(&mut self) {
        // The command ends with the system, and so may fail.
        self.try_run("systemctl --no-block poweroff");
        let deadline = Instant::now() + PATIENCE;
        while self.container.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < deadline,
                "{} does not shut down",
                self.name
            );
            thread::sleep(Duration::from_millis(100));
        }
        self.come_up_again();
    }

    /// Takes its power, and boots it again.
    pub fn lose_power(&mut self) {
        kill(self.init, Signal::SIGKILL).unwrap();
        self.container.wait().unwrap();
        self.come_up_again();
    }

    fn come_up_again(&mut self) {
        self.container = container(&self.name, self.folder.path());
        self.init = Pid::from_raw(0);
        self.has_come_up();
    }

    /// Waits until it has booted, and holds that it has booted well.
    fn has_come_up(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.init.as_raw() == 0 {
            self.must_go_on(deadline);
            self.init = Pid::from_raw(self.first_child());
            thread::sleep(Duration::from_millis(50));
        }
        let state = loop {
            self.must_go_on(deadline);
            let state = self.try_run("systemctl is-system-running --wait").out;
            if !state.is_empty() && state != "offline" {
                break state;
            }
            thread::sleep(Duration::from_millis(100));
        };
        assert_eq!(
            state,
            "running",
            "{} did not boot well:\n{}\n{}",
            self.name,
            self.try_run("systemctl --failed; journalctl -b -p warning --no-pager")
                .out,
            self.boot_log()
        );
    }

    /// The container's process for the system's first process; 0 if there is none yet.
    fn first_child(&self) -> i32 {
        let parent = self.container.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        children
            .unwrap_or_default()
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
            .filter(|pid| {
                // Not before it has become systemd.
                let name = fs::read_to_string(format!("/proc/{pid}/comm"));
                name.is_ok_and(|name| name.trim() == "systemd")
            })
            .unwrap_or(0)
    }

    fn boot_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("boot.log")).unwrap_or_default()
    }

    fn must_go_on(&mut self, deadline: Instant) {
        let ended = self.container.try_wait().unwrap();
        assert!(
            ended.is_none() && Instant::now() < deadline,
            "{} does not boot ({ended:?}):\n{}",
            self.name,
            self.boot_log()
        );
    }

    /// The system's first process, seen from outside.
    pub fn first(&self) -> i32 {
        self.init.as_raw()
    }

    /// A file of the system, seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init)).join(inside.trim_start_matches('/'))
    }

    /// Runs a line of shell inside, as root.
    pub fn try_run(&self, line: &str) -> Said {
        let output = self.start(line, Stdio::piped()).wait_with_output();
        said(output.unwrap())
    }

    /// Runs a line of shell inside, as root; what it printed, if it succeeds.
    pub fn run(&self, line: &str) -> String {
        let said = self.try_run(line);
        assert_eq!(
            said.code,
            Some(0),
            "{}# {line}\n{}\n{}\n{}",
            self.name,
            said.out,
            said.err,
            self.journal()
        );
        said.out
    }

    /// Starts a line of shell inside, as root.
    pub fn start(&self, line: &str, output: Stdio) -> Child {
        #[allow(clippy::disallowed_methods)] // what an administrator types
        Command::new("nsenter")
            .args(["--target", &self.init.to_string(), "--all", "env", "-i"])
            .args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"])
            .args(["LC_ALL=C.UTF-8", "TERM=dumb", "SYSTEMD_PAGER=cat"])
            .args(["timeout", &PATIENCE.as_secs().to_string()])
            .args(["sh", "-c", line])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter starts")
    }

    /// What kvmlet and systemd said of it last.
    pub fn journal(&self) -> String {
        self.try_run("journalctl -u kvmlet -u kvmlet.socket -n 40 --no-pager -o short-monotonic")
            .out
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show {unit} --value --property {name}"))
    }

    /// The agent's process, seen from outside; none if it does not run.
    pub fn agent(&self) -> Option<Pid> {
        let inside: i32 = self.property("kvmlet", "MainPID").parse().unwrap();
        (inside != 0).then(|| self.outside_pid(inside)).flatten()
    }

    /// The process that has this id inside; none if it has just ended.
    fn outside_pid(&self, inside: i32) -> Option<Pid> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(&self.init.to_string());
        let found = fs::read_dir("/proc").unwrap().find_map(|entry| {
            let pid = entry.ok()?.file_name().into_string().ok()?;
            pid.parse::<i32>().ok()?;
            if namespace(&pid) != ours {
                return None;
            }
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let ids = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
            let last: i32 = ids.split_whitespace().last()?.parse().ok()?;
            (last == inside).then(|| pid.parse().unwrap())
        });
        found.map(Pid::from_raw)
    }

    /// The API through the agent's Unix socket, as root.
    pub fn api(&self) -> Api {
        Api::at(&self.path(SOCKET))
    }

    /// Where the agent's socket is, seen from outside.
    pub fn socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// Does something with a thread that is in this system's network.
    pub fn on_its_network<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let namespace = self.network();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a network");
                what()
            });
            inside.join().unwrap()
        })
    }

    fn network(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.init)).unwrap()
    }

    /// Listens on an address of this system.
    pub fn listen(&self, address: SocketAddr) -> TcpListener {
        self.on_its_network(|| TcpListener::bind(address).unwrap())
    }

    /// The API of an agent somewhere, called over TLS from this system's network.
    pub fn api_at(&self, address: SocketAddr, tls: ClientTlsConfig) -> Api {
        let namespace = self.network();
        let connector = tower::service_fn(move |_: Uri| {
            let namespace = namespace.try_clone();
            async move {
                let connect = move || -> io::Result<std::net::TcpStream> {
                    let thread = thread::spawn(move || {
                        setns(namespace?, CloneFlags::CLONE_NEWNET)?;
                        std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))
                    });
                    thread.join().unwrap()
                };
                #[allow(clippy::disallowed_methods)] // one that ends within seconds
                let stream = tokio::task::spawn_blocking(connect).await.unwrap()?;
                stream.set_nonblocking(true)?;
                io::Result::Ok(TokioIo::new(tokio::net::TcpStream::from_std(stream)?))
            }
        });
        Api {
            channel: Endpoint::from_shared(format!("https://{address}"))
                .unwrap()
                .tls_config(tls)
                .unwrap()
                .connect_with_connector_lazy(connector),
        }
    }

    /// Joins this system and another one by a cable, whose ends are called `kv0` and
    /// have these addresses (with prefix lengths).
    pub fn join(&self, own: &str, other: &Host, others: &str) {
        let (init, peer) = (self.init.to_string(), other.init.to_string());
        outside(
            "ip",
            &[
                "link", "add", "kv0", "netns", &init, "type", "veth", "peer", "name", "kv0",
                "netns", &peer,
            ],
        );
        self.run(&format!(
            "ip address add {own} dev kv0 && ip link set kv0 up"
        ));
        other.run(&format!(
            "ip address add {others} dev kv0 && ip link set kv0 up"
        ));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}: journal of kvmlet\n{}", self.name, self.journal());
        }
        // With the first process go all.
        if self.init.as_raw() != 0 {
            let _ = kill(self.init, Signal::SIGKILL);
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
    }
}

/// Boots the root in this folder.
fn container(name: &str, folder: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("boot.log"))
        .unwrap();
    #[allow(clippy::disallowed_methods)] // there is no other way to boot it
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "systemd-nspawn", "--quiet"])
        .args(["--register=no", "--keep-unit", "--console=passive"])
        .args(["--private-network", "--capability=all", "--boot"])
        .arg(format!("--machine={name}"))
        .arg("--directory")
        .arg(folder.join("root"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("systemd-nspawn starts; scripts/setup installs it")
}

fn said(output: Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Said {
        code: output.status.code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}
