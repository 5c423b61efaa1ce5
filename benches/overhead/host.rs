//! A host of the bench's own: libvirtd, kvmlet and all their files.
//!
//! libvirtd runs in namespaces of its own, with every folder that it writes to
//! laid over by one of ours, and with a reaper as their first process. When that
//! ends, for whatever reason, the kernel ends libvirtd and every QEMU with it:
//! nothing is left, also when the bench is killed. Their network is their own,
//! too, so that no other guest of this machine has the port of a display.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use virt::connect::Connect;

/// What any part of the bench fails with.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The first start of libvirtd asks QEMU what it can do, for seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lays our folders over libvirt's, then becomes libvirtd.
const BECOME_LIBVIRTD: &str = r#"
set -eu
for pair in run:/run/libvirt etc:/etc/libvirt lib:/var/lib/libvirt \
    cache:/var/cache/libvirt log:/var/log/libvirt; do
    mkdir -p "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
# systemd-machined would take the process ids of this namespace for its own.
if [ -d /run/dbus ]; then
    mount -t tmpfs -o size=64k,mode=755 none /run/dbus
fi
ip link set lo up
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid
"#;

/// The host; everything of it ends when it is dropped.
pub(crate) struct Host {
    // Dropped in this order: the daemon before libvirtd, the folder last.
    kvmlet: Option<Process>,
    _libvirtd: Process,
    folder: TempDir,
}

/// A child process that is killed and collected when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that ends with the bench.
#[allow(clippy::disallowed_methods)] // a bench starts its own host
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg("--pdeathsig=KILL")
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// Runs a program to its end; its words are in the failure.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let Output { status, stderr, .. } = command(program).args(arguments).output()?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&stderr);
    Err(format!("{program}: {status}: {}", words.trim()).into())
}

impl Host {
    /// Starts libvirtd on a folder below `parent`, and waits until it answers.
    pub(crate) fn start(parent: &Path) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("kvmlet-bench-")
            .tempdir_in(parent)?;
        let at = folder.path();
        for name in ["run", "etc", "lib", "cache", "log", "pool", "import"] {
            fs::create_dir(at.join(name))?;
        }
        fs::write(at.join("etc/libvirtd.conf"), "auth_unix_rw = \"none\"\n")?;
        // What a container or a host without systemd can do; the same for all
        // sides.
        fs::write(
            at.join("etc/qemu.conf"),
            "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
             cgroup_controllers = []\nstdio_handler = \"file\"\n",
        )?;
        let libvirtd = command("unshare")
            .args([
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(["tini", "--", "sh", "-c", BECOME_LIBVIRTD, "libvirtd"])
            .arg(at)
            .stderr(fs::File::create(at.join("libvirtd.log"))?)
            .spawn()?;
        let mut host = Self {
            kvmlet: None,
            _libvirtd: Process(libvirtd),
            folder,
        };
        // That it is not there yet is no news.
        virt::error::clear_error_callback();
        host.wait("libvirtd", |host| Connect::open(Some(&host.uri())).is_ok())?;
        Ok(host)
    }

    /// Starts the daemon on the same libvirtd, with a pool "bench" of files and
    /// `more` sections of configuration, and waits for its socket.
    pub(crate) fn start_kvmlet(&mut self, more: &str) -> Result<(), Failure> {
        let uri = self.uri();
        self.start_kvmlet_on(&uri, more)
    }

    /// As [`Host::start_kvmlet`], on another hypervisor.
    pub(crate) fn start_kvmlet_on(&mut self, uri: &str, more: &str) -> Result<(), Failure> {
        // One at a time: the one before is killed.
        self.kvmlet = None;
        let at = self.folder.path().display();
        let mut text = String::new();
        write!(
            text,
            r#"
[node]
id = "6f1f3f3e-0f0b-4c43-9d0e-5a1f0c1de001"
[hypervisor]
uri = "{uri}"
[api]
socket = "{at}/kvmlet.sock"
[journal]
path = "{at}/journal.db"
[log]
target = "stderr"
[[pools]]
name = "bench"
path = "{at}/pool"
[images]
allowed_dirs = ["{at}/import"]
[vms]
console_dir = "{at}/console"
reserved_memory = "0 MiB"
vcpu_overcommit = 100.0
{more}
"#
        )?;
        let config = self.path("kvmlet.toml");
        fs::write(&config, text)?;
        let program = std::env::var_os("KVMLET_BENCH_DAEMON")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_kvmlet").into());
        let child = command(program)
            .args(["serve", "--config"])
            .arg(&config)
            .stderr(fs::File::create(self.path("kvmlet.log"))?)
            .spawn()?;
        self.kvmlet = Some(Process(child));
        self.wait("kvmlet", |host| {
            std::os::unix::net::UnixStream::connect(host.socket()).is_ok()
        })
    }

    /// The process of the daemon.
    #[allow(dead_code)] // another bench looks at it
    pub(crate) fn kvmlet_id(&self) -> Result<u32, Failure> {
        let kvmlet = self.kvmlet.as_ref().ok_or("kvmlet does not run")?;
        Ok(kvmlet.0.id())
    }

    /// Where libvirtd is, for all sides.
    pub(crate) fn uri(&self) -> String {
        let socket = self.path("run/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// Where the daemon is.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("kvmlet.sock")
    }

    /// A path below the host's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the two said last, for a failure's report.
    pub(crate) fn last_words(&self) -> String {
        let mut words = String::new();
        for name in ["libvirtd.log", "kvmlet.log"] {
            let text = fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(15)..] {
                let _ = writeln!(words, "  {name}: {line}");
            }
        }
        words
    }

    fn wait(&mut self, what: &str, is_there: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while !is_there(self) {
            if Instant::now() > deadline {
                return Err(format!("{what} does not answer:\n{}", self.last_words()).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}
