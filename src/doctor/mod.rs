//! Looks at the host for an administrator: does it have what kvmlet needs, and if
//! not, what is to be done?
//!
//! Invariant: it changes nothing on the host, and it ends: each part has a thread and
//! a time of its own, and what takes longer is a finding, not a wait. What is tried by
//! writing is tried with files that have no name.
//!
//! It does not ask the daemon (who runs it does, and says what came of it), decides
//! nothing, and mends nothing.

mod ceph;
mod certificates;
mod checks;
mod clock;
mod cpu;
mod daemon;
mod finding;
mod folders;
mod identity;
mod journal;
mod kernel;
mod libvirt;
mod limits;
mod memory;
mod networks;
mod packages;
mod pools;
mod ports;
mod sandbox;
mod tools;
mod units;

pub use checks::Check;
pub use daemon::{Condition, DaemonAnswer};
pub use finding::{Finding, Level};

use crate::config::{Config, PoolBackend};
use finding::Notes;
use nix::unistd::Uid;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long a part may take.
const QUICK: Duration = Duration::from_secs(5);
/// How long a part may take that starts a daemon, which probes QEMU.
const LIBVIRT: Duration = Duration::from_secs(15);
/// How long a part may take that asks a cluster: longer than its tools wait for it.
const CEPH: Duration = Duration::from_secs(20);

/// What all parts know.
struct Host {
    config: Config,
    /// That of the program that looks.
    version: &'static str,
    /// Who looks may look at everything.
    root: bool,
    /// kvmlet's unit, as systemd knows it; read once, by whoever needs it first.
    unit: OnceLock<Option<units::Unit>>,
}

impl Host {
    /// kvmlet's unit; `None` if systemd does not know it, or is not there.
    fn unit(&self) -> Option<&units::Unit> {
        self.unit.get_or_init(units::Unit::read).as_ref()
    }

    /// Whether nothing of this host is used.
    fn is_simulated(&self) -> bool {
        self.config.hypervisor.uri.starts_with("test")
    }

    /// Whether an error only says that who looks may not.
    fn may_not(&self, kind: ErrorKind) -> bool {
        !self.root && kind == ErrorKind::PermissionDenied
    }
}

/// What a part does.
type Body = Box<dyn FnOnce(&Host, &Notes) + Send>;

/// One part, on a thread of its own.
struct Part {
    /// What is told to have taken too long, or to be skipped.
    check: Check,
    about: String,
    limit: Duration,
    needs_config: bool,
    body: Body,
}

/// A configuration file, as it was found.
#[derive(Debug)]
pub struct Read {
    path: PathBuf,
    config: Option<Config>,
    findings: Vec<Finding>,
}

impl Read {
    /// The configuration, if it has no faults.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }
}

/// Reads the configuration file, which everything else is held against.
pub fn read(path: &Path) -> Read {
    let (sender, found) = channel();
    let notes = Notes(sender);
    let config = match Config::load(path) {
        Ok(config) => {
            notes.ok(
                Check::ConfigFile,
                "",
                format!("{}: no faults", path.display()),
            );
            Some(config)
        }
        Err(faults) => {
            // What is readable and wrong has a fault for each key.
            let denied = std::fs::File::open(path).err().map(|error| error.kind());
            if denied == Some(ErrorKind::PermissionDenied) && !Uid::effective().is_root() {
                let what = format!("{} may not be read by this user", path.display());
                notes.needs_root(Check::ConfigFile, "", what);
            } else {
                for fault in faults.faults() {
                    notes.error(
                        Check::ConfigFile,
                        "",
                        fault.to_string(),
                        "kvmlet does not start with it.",
                        match denied {
                            Some(_) => {
                                format!("Name the file: kvmlet doctor --config {}", path.display())
                            }
                            None => format!(
                                "Mend {}, then: kvmlet config check --config {}",
                                path.display(),
                                path.display()
                            ),
                        },
                    );
                }
            }
            None
        }
    };
    drop(notes);
    Read {
        path: path.to_owned(),
        config,
        findings: found.iter().collect(),
    }
}

/// Looks at everything, in at most half a minute, and tells what was found in the order
/// of [`Check::ALL`]. `daemon` is what came of asking the daemon, `version` that of this
/// program.
///
/// Without a configuration, only what needs none is looked at.
pub fn examine(read: Read, daemon: DaemonAnswer, version: &'static str) -> Vec<Finding> {
    let mut findings = read.findings;
    let configured = read.config.is_some();
    let host = Arc::new(Host {
        config: read.config.unwrap_or_default(),
        version,
        root: Uid::effective().is_root(),
        unit: OnceLock::new(),
    });
    let begun = Instant::now();
    let mut running = Vec::new();
    for part in parts(&host, daemon) {
        let (sender, found) = channel();
        let notes = Notes(sender);
        let (check, limit, body) = (part.check, part.limit, part.body);
        if part.needs_config && !configured {
            let advice = format!("Mend {} first.", read.path.display());
            notes.skipped(check, "", "needs the configuration", advice);
        } else {
            let (host, notes_) = (host.clone(), notes.clone());
            let thread = thread::Builder::new().spawn(move || body(&host, &notes_));
            if let Err(error) = thread {
                let found = format!("there is no thread for it: {error}");
                notes.skipped(check, &part.about, found, "ulimit -u; cat /proc/loadavg");
            }
        }
        running.push((check, part.about, limit, found));
    }
    for (check, about, limit, found) in running {
        findings.extend(gather(check, &about, begun + limit, limit, &found));
    }
    findings.sort_by_key(|finding| finding.check);
    findings
}

/// What a part finds until its time is over.
fn gather(
    check: Check,
    about: &str,
    deadline: Instant,
    limit: Duration,
    found: &Receiver<Finding>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match found.recv_timeout(left) {
            Ok(finding) => findings.push(finding),
            Err(RecvTimeoutError::Disconnected) => return findings,
            Err(RecvTimeoutError::Timeout) => {
                findings.push(Finding {
                    check,
                    about: about.to_owned(),
                    level: Level::Error,
                    found: format!("took longer than {} s", limit.as_secs()),
                    meaning: "Something hangs: a daemon, a file system or the network. What \
                              comes after it was not looked at."
                        .to_owned(),
                    advice: "Look for what waits: ps -eo pid,stat,wchan:30,args | grep ' D'"
                        .to_owned(),
                });
                return findings;
            }
        }
    }
}

/// All parts.
fn parts(host: &Host, daemon: DaemonAnswer) -> Vec<Part> {
    let part = |check, limit, needs_config, body: Body| Part {
        check,
        about: String::new(),
        limit,
        needs_config,
        body,
    };
    let answers = daemon.answers();
    let mut parts = vec![
        part(Check::CpuKvm, QUICK, false, Box::new(cpu::look)),
        part(Check::LibvirtReach, LIBVIRT, true, Box::new(libvirt::look)),
        part(
            Check::LibvirtDaemons,
            QUICK,
            true,
            Box::new(units::look_at_libvirt),
        ),
        part(
            Check::NetworkConfigured,
            QUICK,
            true,
            Box::new(networks::look),
        ),
        part(
            Check::ImageFolders,
            QUICK,
            true,
            Box::new(folders::look_at_imports),
        ),
        part(Check::JournalFile, QUICK, true, Box::new(journal::look)),
        part(Check::MemoryReserved, QUICK, true, Box::new(memory::look)),
        part(
            Check::ClockSynchronised,
            QUICK,
            false,
            Box::new(clock::look),
        ),
        part(
            Check::PortApi,
            QUICK,
            true,
            Box::new(move |host, notes| ports::look(host, answers, notes)),
        ),
        part(
            Check::CertificateApi,
            QUICK,
            true,
            Box::new(certificates::look),
        ),
        part(Check::ToolQemuImg, QUICK, false, Box::new(tools::look)),
        part(Check::LimitAio, QUICK, false, Box::new(limits::look)),
        part(
            Check::IdentityMachine,
            QUICK,
            true,
            Box::new(identity::look),
        ),
        part(Check::UnitService, QUICK, false, Box::new(units::look)),
        part(
            Check::DaemonAnswers,
            QUICK,
            false,
            Box::new(move |host, notes| daemon::tell(host, &daemon, notes)),
        ),
    ];
    for (index, pool) in host.config.pools.iter().enumerate() {
        let of_pool = |check, limit, body| Part {
            about: pool.name.clone(),
            ..part(check, limit, true, body)
        };
        parts.push(of_pool(
            Check::PoolFolder,
            QUICK,
            Box::new(move |host, notes| pools::look(host, &host.config.pools[index], notes)),
        ));
        if matches!(pool.backend, PoolBackend::Rbd(_)) {
            parts.push(of_pool(
                Check::CephPools,
                CEPH,
                Box::new(move |host, notes| ceph::look(host, &host.config.pools[index], notes)),
            ));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_told_and_what_came_before_it_too() {
        let (sender, found) = channel();
        let notes = Notes(sender);
        notes.ok(Check::PoolFolder, "p", "there");
        let limit = Duration::from_millis(20);
        let findings = gather(
            Check::PoolFolder,
            "p",
            Instant::now() + limit,
            limit,
            &found,
        );
        // The part still holds its notes, as one that hangs does.
        notes.ok(Check::PoolWrite, "p", "late");
        let levels: Vec<_> = findings.iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Error]);
        assert!(!findings[1].advice.is_empty());
    }
}
