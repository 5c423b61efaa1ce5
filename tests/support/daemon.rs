//! The real daemon, started in a directory of its own and watched until it
//! serves.
//!
//! It dies with the test, whatever the test does; if the test fails, the end of
//! its log is printed.

use super::api::Api;
use super::{PATIENCE, images, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The daemon's own driver that simulates a host; it dies with the daemon.
pub const SIMULATED: &str = "test:///default";

/// How much sooner a daemon does what it does by itself (`src/pace.rs`): it sweeps every
/// 3 s.
const PACE: f64 = 0.1;

/// How a daemon is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `[hypervisor] uri`.
    pub uri: String,
    /// Further lines for sections, and for the pool `other`, such as `("vms", "retention = \"1s\"")`.
    pub lines: Vec<(&'static str, String)>,
    /// What is logged.
    pub log_level: &'static str,
    /// Further whole sections at the end.
    pub more: String,
    /// The folder of the default pool, in its directory.
    pub pool: &'static str,
    /// The folder of consoles, in its directory.
    pub console: &'static str,
    /// The pool for what names none.
    pub default_pool: &'static str,
    /// Environment of the process, such as `FAILPOINTS`.
    pub environment: Vec<(String, String)>,
    /// A command that becomes the daemon, such as one that changes what it sees.
    pub launcher: Vec<String>,
    /// Where the journal is, if not in its directory.
    pub journal: Option<PathBuf>,
    /// A factor for how often it looks by itself; `None` is as others have it.
    pub pace: Option<f64>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            uri: SIMULATED.to_owned(),
            lines: Vec::new(),
            log_level: "info,kvmlet=debug",
            more: String::new(),
            pool: "pool",
            console: "console",
            default_pool: "default",
            environment: Vec::new(),
            launcher: Vec::new(),
            journal: None,
            pace: Some(PACE),
        }
    }
}

impl Setup {
    /// On another hypervisor.
    pub fn on(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            ..Self::default()
        }
    }

    /// With another line in a section.
    #[must_use]
    pub fn with(mut self, section: &'static str, line: impl Into<String>) -> Self {
        self.lines.push((section, line.into()));
        self
    }

    /// That looks by itself as often as it does for everybody else.
    #[must_use]
    pub fn at_real_pace(mut self) -> Self {
        self.pace = None;
        self
    }

    fn text(&self, home: &Path) -> String {
        let own = home.join("journal.db");
        let journal = self.journal.as_ref().unwrap_or(&own);
        let home = home.display();
        let (uri, pool, console) = (&self.uri, self.pool, self.console);
        let sections = [
            ("node", "labels = { rack = \"7\" }".to_owned()),
            ("hypervisor", format!("uri = \"{uri}\"")),
            ("api", format!("socket = \"{home}/kvmlet.sock\"")),
            ("metrics", format!("socket = \"{home}/metrics.sock\"")),
            ("journal", format!("path = \"{}\"", journal.display())),
            (
                "log",
                format!("level = \"{}\"\ntarget = \"stderr\"", self.log_level),
            ),
            ("images", format!("allowed_dirs = [\"{home}/import\"]")),
            (
                "vms",
                format!(
                    "console_dir = \"{home}/{console}\"\nvcpu_overcommit = 100.0\nreserved_memory = \"0 B\""
                ),
            ),
            ("operations", String::new()),
            ("events", String::new()),
            ("vnc", String::new()),
            ("shutdown", String::new()),
        ];
        let mut text = String::new();
        for (name, own) in sections {
            text.push_str(&format!("[{name}]\n{own}\n"));
            for (section, line) in &self.lines {
                if *section == name {
                    text.push_str(&format!("{line}\n"));
                }
            }
        }
        // In another, `more` says it.
        let default = self.default_pool == "default";
        let other: String = self
            .lines
            .iter()
            .filter(|(section, _)| *section == "other")
            .map(|(_, line)| format!("{line}\n"))
            .collect();
        text.push_str(&format!(
            r#"
[[pools]]
name = "default"
kind = "qcow2"
path = "{home}/{pool}"
default = {default}

[[pools]]
name = "other"
kind = "qcow2"
path = "{home}/other"
{other}

[[networks]]
id = "default"
user = true

[[networks]]
id = "lan"
bridge = "br0"
vlan = 7
mtu = 1400

[[networks]]
id = "nat"
libvirt_network = "default"

[[hardware_profiles]]
id = "small"
vcpus = 1
memory = "16 MiB"

[[hardware_profiles]]
id = "larger"
vcpus = 2
memory = "32 MiB"
"#
        ));
        text.push_str(&self.more);
        text
    }
}

/// A daemon that serves, or was killed.
#[derive(Debug)]
pub struct Daemon {
    home: TempDir,
    setup: Setup,
    process: Option<Child>,
    api: Api,
}

impl Daemon {
    /// Starts one on a simulated host of its own.
    pub async fn simulated() -> Self {
        Self::start(Setup::default()).await
    }

    /// Starts one and waits until it serves.
    pub async fn start(setup: Setup) -> Self {
        let daemon = Self::launch(setup);
        daemon.wait_until_serving().await;
        daemon
    }

    /// Starts one and does not wait.
    pub fn launch(setup: Setup) -> Self {
        // Short: a socket's path ends at 107 bytes.
        let home = tempfile::Builder::new()
            .prefix("kvmlet-t")
            .tempdir_in("/tmp")
            .unwrap();
        fs::create_dir(home.path().join("import")).unwrap();
        let api = Api::at(&home.path().join("kvmlet.sock"));
        let mut daemon = Self {
            home,
            setup,
            process: None,
            api,
        };
        daemon.spawn();
        daemon
    }

    fn spawn(&mut self) {
        assert!(self.process.is_none(), "one process at a time");
        fs::write(self.config(), self.setup.text(self.home.path())).unwrap();
        self.process = Some(self.command().spawn().unwrap());
        // The former one's connection would fail its first call.
        self.api = Api::at(&self.socket());
    }

    /// The command that starts it, logging to the end of the log.
    fn command(&self) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        #[allow(clippy::disallowed_methods)] // a test starts its own daemon
        let mut command = match self.setup.launcher.split_first() {
            None => Command::new(env!("CARGO_BIN_EXE_kvmlet")),
            Some((launcher, arguments)) => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(env!("CARGO_BIN_EXE_kvmlet"));
                command
            }
        };
        match self.setup.pace {
            Some(factor) => command.env("KVMLET_PACE", factor.to_string()),
            None => command.env_remove("KVMLET_PACE"),
        };
        command
            .args(["serve", "--config"])
            .arg(self.config())
            .envs(self.setup.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    /// Waits until health says SERVING; a daemon that ends instead fails the
    /// test.
    pub async fn wait_until_serving(&self) {
        until("the daemon to serve", PATIENCE, async || {
            assert!(self.is_running(), "the daemon ended:\n{}", self.log());
            matches!(self.api.serving("").await, Ok(true)).then_some(())
        })
        .await;
    }

    fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            // Not waited for, so that its id stays its own.
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()));
            stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
        })
    }

    /// The connection; a new one after each restart.
    pub fn api(&self) -> Api {
        self.api.clone()
    }

    /// Its directory: pool, other, import, console, journal.db, kvmlet.sock,
    /// metrics.sock.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("kvmlet.sock")
    }

    pub fn metrics_socket(&self) -> PathBuf {
        self.home.path().join("metrics.sock")
    }

    pub fn config(&self) -> PathBuf {
        self.home.path().join("kvmlet.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// What it logged up to now, also before restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn pid(&self) -> Pid {
        let process = self.process.as_ref().expect("it runs");
        Pid::from_raw(i32::try_from(process.id()).unwrap())
    }

    /// Changes its set-up for the next start.
    pub fn setup_mut(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// The path of a file to import.
    pub fn import_path(&self, name: &str) -> PathBuf {
        self.home.path().join("import").join(name)
    }

    /// Makes a blank qcow2 image of `mib` MiB to import.
    pub fn blank(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.import_path(name);
        images::blank(&path, mib);
        path
    }

    /// Imports a blank image of 1 MiB and returns its id.
    pub async fn image(&self) -> String {
        let path = self.blank(&format!("{}.qcow2", super::api::id()), 1);
        self.api.import(&path).await
    }

    /// Every file of its pools, by path below its directory, in order.
    pub fn pool_files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for pool in ["pool", "other"] {
            walk(&self.home.path().join(pool), &mut files);
        }
        let home = format!("{}/", self.home.path().display());
        let mut files: Vec<String> = files
            .iter()
            .map(|path| path.display().to_string().replacen(&home, "", 1))
            .collect();
        files.sort();
        files
    }

    /// Removes every file of its journal; it must not run.
    pub fn lose_journal(&self) {
        assert!(self.process.is_none(), "the daemon has its journal open");
        let mut lost = 0;
        for entry in fs::read_dir(self.home.path()).unwrap() {
            let path = entry.unwrap().path();
            if path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("journal.db")
            {
                fs::remove_file(path).unwrap();
                lost += 1;
            }
        }
        assert!(lost > 0, "there was a journal");
    }

    /// Kills it with no chance to say a word.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts it again, in the same directory, and does not wait.
    pub fn launch_again(&mut self) {
        self.spawn();
    }

    /// Starts it again, in the same directory, and waits until it serves.
    pub async fn restart(&mut self) {
        self.spawn();
        self.wait_until_serving().await;
    }

    /// Starts it again, in the same directory, and does not wait.
    pub fn start_again(&mut self) {
        self.spawn();
    }

    /// Starts it again and waits until it answers, which it does also while libvirt
    /// is away.
    pub async fn restart_away(&mut self) {
        self.spawn();
        until("the daemon to answer", PATIENCE, async || {
            assert!(self.is_running(), "the daemon ended:\n{}", self.log());
            self.api.serving("").await.ok()
        })
        .await;
    }

    /// Asks it to stop (SIGTERM); it must end with 0. Returns how long it took.
    pub async fn stop(&mut self) -> Duration {
        let begin = Instant::now();
        let status = self.terminate().await;
        assert_eq!(status.code(), Some(0), "{status}");
        begin.elapsed()
    }

    /// Asks it to stop and returns how it ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        self.end().await
    }

    /// Waits until it has ended by itself.
    pub async fn end(&mut self) -> ExitStatus {
        until("the daemon to end", PATIENCE, async || {
            (!self.is_running()).then_some(())
        })
        .await;
        self.process.take().expect("it ran").wait().unwrap()
    }

    /// Whether its process runs.
    pub fn is_alive(&self) -> bool {
        self.is_running()
    }

    /// Kills it and does not wait; [`Daemon::dies`] does.
    pub fn signal_kill(&self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
    }

    /// Waits until it was killed; false if it still runs after `patience`.
    pub async fn dies(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let status = self.process.take().expect("it ran").wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{status}");
        true
    }

    /// Starts a second daemon with the same configuration, but for what `change`
    /// does to its text, and returns its exit code and its last words.
    pub fn second(&self, change: impl Fn(String) -> String) -> (Option<i32>, String) {
        let config = self.home.path().join("second.toml");
        fs::write(&config, change(self.setup.text(self.home.path()))).unwrap();
        #[allow(clippy::disallowed_methods)] // a test starts its own daemon
        let output = Command::new(env!("CARGO_BIN_EXE_kvmlet"))
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(60)..];
            eprintln!(
                "--- the end of the daemon's log ---\n{}\n---",
                end.join("\n")
            );
        }
    }
}
