//! A real Ceph cluster of one node for a test, and what can go wrong with it.
//!
//! `tests/ceph/cluster` makes and ends it. It watches a pipe from this process:
//! however a test ends, also by a kill, the cluster ends with it.
//!
//! What is asked of the cluster is asked as client.admin, from outside kvmlet.

use super::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The script that makes and ends clusters.
const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ceph/cluster");

/// How long an OSD that goes on may take to answer.
const THAWED: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The pace of daemons on a cluster: each look at one costs eight processes.
pub const PACE: f64 = 0.25;

/// The user that the daemon under test has.
pub const USER: &str = "client.kvmlet";

/// One of the cluster's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// Without it, no new client gets in; those that are in go on.
    Mon,
    /// Without it, space is not counted and expired trash is not purged.
    Mgr,
    /// Without it, every read and write waits.
    Osd,
}

impl Daemon {
    fn name(self) -> &'static str {
        match self {
            Self::Mon => "mon",
            Self::Mgr => "mgr",
            Self::Osd => "osd",
        }
    }
}

/// The Ceph pools that a pool of kvmlet's is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephPools {
    pub images: String,
    /// Of root volumes that name no other.
    pub roots: String,
    /// Of root volumes that name it.
    pub fast: String,
    pub data: String,
}

impl CephPools {
    /// Those that every cluster has.
    pub fn usual() -> Self {
        Self::ending("")
    }

    /// Others, of which the cluster may have any number; see [`Self::make_in`].
    pub fn of_their_own(number: usize) -> Self {
        Self::ending(&format!("-{number:02}"))
    }

    fn ending(end: &str) -> Self {
        Self {
            images: format!("images{end}"),
            roots: format!("vms{end}"),
            fast: format!("vms{end}-fast"),
            data: format!("data{end}"),
        }
    }

    /// Makes them.
    pub fn make_in(&self, cluster: &Cluster) {
        for pool in self.all() {
            cluster.make_pool(pool);
        }
    }

    /// The names of all.
    pub fn all(&self) -> [&str; 4] {
        [&self.images, &self.roots, &self.fast, &self.data]
    }

    /// The tag that places a root volume in [`Self::fast`].
    pub fn fast_tag(&self) -> String {
        format!("ceph::rootPoolName::{}", self.fast)
    }
}

/// The cluster; it ends when dropped.
#[derive(Debug)]
pub struct Cluster {
    keeper: Child,
    folder: PathBuf,
}

impl Cluster {
    /// Starts one of 4 GiB, with the pools images, vms, vms-fast and data.
    pub fn start() -> Self {
        Self::start_by(&[])
    }

    /// Starts one that says it has room for so many bytes; only what is written
    /// takes memory.
    pub fn start_with_room(bytes: u64) -> Self {
        Self::start_by(&[("CEPH_BYTES", &bytes.to_string())])
    }

    /// Starts one that takes a client that was killed for there as long as Ceph does: for
    /// 30 s. All others do for 5 s.
    pub fn start_as_ceph_is() -> Self {
        Self::start_by(&[("CEPH_AS_IT_IS", "1")])
    }

    fn start_by(environment: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Short: a socket's path ends at 107 bytes.
        let folder = PathBuf::from(format!(
            "/tmp/kvmlet-ceph-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        // Of a former process with this id that was killed with its keeper.
        if folder.exists() {
            run(script().arg("stop").arg(&folder));
        }
        // A session of its own: what ends this process's group, and Ctrl-C, must
        // leave it alive to clean up.
        #[allow(clippy::disallowed_methods)] // a test starts its own cluster
        let mut keeper = Command::new("setsid")
            .arg(CLUSTER)
            .arg("run")
            .arg(&folder)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(keeper.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said, "ready\n", "the cluster did not start");
        Self { keeper, folder }
    }

    /// The folder with everything of it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its configuration; used without a user's name, it is the administrator's.
    pub fn conf(&self) -> PathBuf {
        self.folder.join("ceph.conf")
    }

    /// The keyring of [`USER`].
    pub fn keyring(&self) -> PathBuf {
        self.folder.join("kvmlet.keyring")
    }

    /// The section of kvmlet's configuration for a pool `ceph` on it, with its files
    /// on this host in `scratch`; not the default pool.
    pub fn pool_section(&self, scratch: &Path) -> String {
        self.section_of(&CephPools::usual(), scratch)
    }

    /// The same for a pool of other Ceph pools.
    pub fn section_of(&self, pools: &CephPools, scratch: &Path) -> String {
        format!(
            r#"
[[pools]]
name = "ceph"
kind = "rbd"
conf = "{conf}"
user = "kvmlet"
keyring = "{keyring}"
image_pool = "{images}"
default_root_pool = "{roots}"
default_data_pool = "{data}"
allowed_root_pools = ["{roots}*"]
trash_expiry = "1h"
scratch = "{scratch}"
"#,
            conf = self.conf().display(),
            keyring = self.keyring().display(),
            scratch = scratch.display(),
            images = pools.images,
            roots = pools.roots,
            data = pools.data,
        )
    }

    // --- questions ---------------------------------------------------------

    /// What `rbd` prints; it must succeed.
    pub fn rbd(&self, arguments: &[&str]) -> String {
        printed(&self.rbd_output(arguments))
    }

    /// How `rbd` ends.
    pub fn rbd_output(&self, arguments: &[&str]) -> Output {
        output(self.tool("rbd").args(arguments))
    }

    /// What `rbd --format json` prints.
    pub fn rbd_json(&self, arguments: &[&str]) -> Value {
        parsed(&self.rbd(&[arguments, &["--format", "json"]].concat()))
    }

    /// What `ceph` prints; it must succeed.
    pub fn ceph(&self, arguments: &[&str]) -> String {
        printed(&output(self.tool("ceph").args(arguments)))
    }

    /// What `ceph --format json` prints.
    pub fn ceph_json(&self, arguments: &[&str]) -> Value {
        parsed(&self.ceph(&[arguments, &["--format", "json"]].concat()))
    }

    /// What `rados` prints; it must succeed.
    pub fn rados(&self, arguments: &[&str]) -> String {
        printed(&output(self.tool("rados").args(arguments)))
    }

    /// The names of a pool's images, in order, without its trash.
    pub fn images(&self, pool: &str) -> Vec<String> {
        self.listed(&["ls", "--pool", pool], "")
    }

    /// The names that the images in a pool's trash had, in order.
    pub fn trash(&self, pool: &str) -> Vec<String> {
        self.listed(&["trash", "ls", "--pool", pool, "--all"], "name")
    }

    fn listed(&self, arguments: &[&str], key: &str) -> Vec<String> {
        let list = self.rbd_json(arguments);
        let mut names: Vec<_> = list
            .as_array()
            .expect("a list")
            .iter()
            .map(|item| if key.is_empty() { item } else { &item[key] })
            .map(|name| name.as_str().expect("a name").to_owned())
            .collect();
        names.sort();
        names
    }

    /// The addresses of the clients that have an image open for writing.
    pub fn watchers(&self, image: &str) -> Vec<String> {
        self.rbd_json(&["status", image])["watchers"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|watcher| watcher["address"].as_str().expect("text").to_owned())
            .collect()
    }

    // --- outages -----------------------------------------------------------

    /// Ends a daemon. The OSD saves its data first, monitor and manager have
    /// theirs on disk and are killed; nothing is lost.
    pub fn kill(&self, daemon: Daemon) {
        run(script().args([daemon.name(), "down"]).arg(&self.folder));
    }

    /// Starts a daemon that was ended, and waits until it answers.
    pub fn up(&self, daemon: Daemon) {
        run(script().args([daemon.name(), "up"]).arg(&self.folder));
        self.wait_until_it_answers(daemon);
    }

    /// Stops a daemon where it is, as a host that hangs.
    pub fn freeze(&self, daemon: Daemon) {
        self.signal(daemon, Signal::SIGSTOP);
    }

    /// Lets a frozen daemon go on, and waits until it answers.
    pub fn thaw(&self, daemon: Daemon) {
        self.signal(daemon, Signal::SIGCONT);
        // An OSD that stood still has been seen, rarely, not to go on. Its data is saved
        // when it is ended.
        let deadline = Instant::now() + THAWED;
        while daemon == Daemon::Osd && !self.answers_now(daemon) {
            if Instant::now() >= deadline {
                self.kill(daemon);
                return self.up(daemon);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        self.wait_until_it_answers(daemon);
    }

    fn signal(&self, daemon: Daemon, signal: Signal) {
        let file = self.folder.join(format!("{}.pid", daemon.name()));
        let pid = fs::read_to_string(file).expect("the daemon runs");
        kill(Pid::from_raw(pid.trim().parse().unwrap()), signal).unwrap();
    }

    fn wait_until_it_answers(&self, daemon: Daemon) {
        until(&format!("the {} answers", daemon.name()), || {
            self.answers_now(daemon)
        });
    }

    fn answers_now(&self, daemon: Daemon) -> bool {
        match daemon {
            Daemon::Mon => self.answers("ceph", &["quorum_status"]),
            Daemon::Mgr => self.answers("ceph", &["pg", "stat"]),
            // A listing of objects needs every placement group of the pool.
            Daemon::Osd => self
                .ceph(&["osd", "pool", "ls"])
                .lines()
                .all(|pool| self.answers("rados", &["--pool", pool, "ls"])),
        }
    }

    fn answers(&self, tool: &str, arguments: &[&str]) -> bool {
        let mut command = bounded(5, tool);
        command.arg("--conf").arg(self.conf()).args(arguments);
        output(&mut command).status.success()
    }

    // --- space -------------------------------------------------------------

    /// Bounds what a pool may hold; 0 is no bound. The monitor sees within
    /// seconds that a pool has more: [`Cluster::wait_until_full`].
    pub fn quota(&self, pool: &str, bytes: u64) {
        self.set_quota(pool, bytes);
        if bytes == 0 {
            until("the pool has room again", || !self.is_full(pool));
        }
    }

    fn set_quota(&self, pool: &str, bytes: u64) {
        let bytes = bytes.to_string();
        self.ceph(&["osd", "pool", "set-quota", pool, "max_bytes", &bytes]);
    }

    /// Writes so many bytes into a pool, into objects that are no image's. The
    /// pool must have room: a write to a full one waits.
    pub fn fill(&self, pool: &str, bytes: u64) {
        const CHUNK: u64 = 16 << 20;
        let chunk = vec![0x5a; usize::try_from(bytes.min(CHUNK)).unwrap()];
        let mut left = bytes;
        while left > 0 {
            let part = usize::try_from(left.min(CHUNK)).unwrap();
            let name = format!("filler.{}", uuid::Uuid::new_v4());
            let mut put = self.tool("rados");
            put.args(["--pool", pool, "put", &name, "-"]);
            let mut put = put.stdin(Stdio::piped()).spawn().unwrap();
            put.stdin.take().unwrap().write_all(&chunk[..part]).unwrap();
            assert!(put.wait().unwrap().success(), "{pool} is not filled");
            left -= part as u64;
        }
    }

    /// Makes a pool full: every write to it waits until there is room.
    pub fn make_full(&self, pool: &str) {
        self.fill(pool, 1 << 20);
        self.quota(pool, 1 << 19);
        self.wait_until_full(pool);
    }

    /// Waits until the monitor has seen that a pool is over its quota.
    pub fn wait_until_full(&self, pool: &str) {
        until(&format!("{pool} is full"), || self.is_full(pool));
    }

    /// Whether a pool has the flag `full`.
    pub fn is_full(&self, pool: &str) -> bool {
        let pools = self.ceph_json(&["osd", "pool", "ls", "detail"]);
        let pools = pools.as_array().expect("a list");
        let pool = pools.iter().find(|known| known["pool_name"] == pool);
        let flags = pool.expect("a pool")["flags_names"].as_str().expect("text");
        flags.split(',').any(|flag| flag == "full")
    }

    // --- pools, keys, other clients ----------------------------------------

    /// Makes a pool for images.
    pub fn make_pool(&self, pool: &str) {
        self.ceph(&["osd", "pool", "create", pool, "8"]);
        self.rbd(&["pool", "init", pool]);
    }

    /// Removes a pool with everything in it.
    pub fn remove_pool(&self, pool: &str) {
        let sure = "--yes-i-really-really-mean-it";
        self.ceph(&["osd", "pool", "rm", pool, pool, sure]);
    }

    /// Takes a user away from the cluster. Who comes with its key is refused;
    /// who is in already goes on until its ticket expires, after an hour.
    pub fn revoke_key(&self, user: &str) {
        let known = self.ceph(&["auth", "get", user]);
        fs::write(self.folder.join(format!("{user}.revoked")), known).unwrap();
        self.ceph(&["auth", "del", user]);
    }

    /// Gives a user that was taken away its key and its rights again.
    pub fn restore_key(&self, user: &str) {
        let known = self.folder.join(format!("{user}.revoked"));
        self.ceph(&["auth", "import", "-i", known.to_str().unwrap()]);
    }

    /// Opens an image (`pool/name`) for writing, as a QEMU on another host would
    /// have it.
    pub fn watch(&self, image: &str) -> Watcher {
        self.client(image, "watch")
    }

    /// The same, with the lock of who writes to it: as one of the tools that is
    /// writing.
    pub fn lock(&self, image: &str) -> Watcher {
        self.client(image, "lock")
    }

    fn client(&self, image: &str, how: &str) -> Watcher {
        // Not by a wrapper: it is killed itself. Its input ends with this process.
        #[allow(clippy::disallowed_methods)] // a test has its own clients
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", WATCH]);
        python.arg(self.conf()).arg(self.keyring()).arg(USER);
        python.args(image.split('/')).arg(how);
        let mut process = python
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        let address = address.trim().to_owned();
        assert!(!address.is_empty(), "{image} can't be opened");
        Watcher { process, address }
    }

    /// A tool of Ceph's, as the administrator, that is killed in the end.
    fn tool(&self, name: &str) -> Command {
        let mut command = bounded(PATIENCE.as_secs(), name);
        command.arg("--conf").arg(self.conf());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // That is its order to end.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Opens an image, tells its own address, and closes when its input ends.
const WATCH: &str = r#"
import sys, rados, rbd
conf, keyring, user, pool, image, how = sys.argv[1:]
with rados.Rados(conffile=conf, name=user, conf={"keyring": keyring}) as cluster:
    with cluster.open_ioctx(pool) as pool, rbd.Image(pool, image) as image:
        if how == "lock":
            image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        address = [w["addr"] for w in image.watchers_list() if w["id"] == cluster.get_instance_id()]
        print(address[0], flush=True)
        sys.stdin.read()
"#;

/// A client that has an image open; it closes it when dropped.
#[derive(Debug)]
pub struct Watcher {
    process: Child,
    address: String,
}

impl Watcher {
    /// Its address, as `rbd status` shows it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Kills it: its watch stays until the OSD gives it up, after 5 s, or as long as Ceph
    /// itself would take.
    pub fn kill9(mut self) {
        self.process.kill().unwrap();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn script() -> Command {
    bounded(PATIENCE.as_secs(), CLUSTER)
}

/// A command that is killed after so many seconds.
fn bounded(seconds: u64, program: &str) -> Command {
    #[allow(clippy::disallowed_methods)] // a test has its own tools
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", &seconds.to_string(), program])
        .stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command
        .output()
        .expect("the tools of Ceph are installed (scripts/setup --ceph)")
}

fn run(command: &mut Command) {
    printed(&output(command));
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Asks until it is so; Ceph tells nobody.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited too long for: {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}
