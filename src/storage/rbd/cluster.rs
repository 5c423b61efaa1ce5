//! One Ceph cluster, through Ceph's own command-line tools.
//!
//! The tools are children that can be killed, so a cluster that hangs costs a
//! bounded time and no thread; they exit with the errno of what went wrong, so no
//! text of theirs has to be understood. The user's key is never on a command line:
//! they read it from its file.

use super::answers::{Df, PoolFlags};
use crate::model::bytes::Bytes;
use crate::model::volume::{CephAccess, CephMonitor};
use crate::storage::command::{Finished, run};
use crate::storage::error::{StorageError, StorageErrorKind};
use crate::storage::task::Task;
use crate::storage::{CephPoolState, PoolUsage};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::errno::Errno;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Within this a tool has reached the cluster or gives up, in seconds.
const CONNECT: &str = "10";
/// Within this a request to an OSD is answered or the tool gives up, in seconds.
const ANSWER: &str = "15";
/// How long a tool that moves no data may take in all.
pub(super) const QUICK: Duration = Duration::from_secs(45);
/// Namespace of the ids that users' keys have in libvirt.
const SECRETS: Uuid = Uuid::from_u128(0x4c0a_9d5e_31f2_4a8b_8e67_b0a4_6b6a_11c3);

/// Where a Ceph user's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keyring {
    /// In this file.
    File(PathBuf),
    /// In the systemd credential of this name.
    Credential(String),
}

/// A user's key, for libvirt.
pub struct CephSecret {
    /// The id that domains name it by.
    pub id: Uuid,
    /// What it is, for whoever lists libvirt's secrets.
    pub usage: String,
    /// The key itself, decoded.
    pub value: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for CephSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CephSecret")
            .field("id", &self.id)
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
}

/// What the monitors tell of the cluster's pools.
#[derive(Debug, Default)]
pub(super) struct PoolsState(pub(super) BTreeMap<String, (PoolUsage, CephPoolState)>);

/// One cluster, as one user.
#[derive(Debug)]
pub(super) struct Cluster {
    conf: PathBuf,
    user: String,
    keyring: Keyring,
    monitors: Mutex<Option<Vec<CephMonitor>>>,
    pools: Mutex<Option<(Instant, Arc<PoolsState>)>>,
}

impl Cluster {
    pub(super) fn new(conf: PathBuf, user: String, keyring: Keyring) -> Self {
        Self {
            conf,
            user,
            keyring,
            monitors: Mutex::new(None),
            pools: Mutex::new(None),
        }
    }

    /// The file that holds the key.
    fn keyring(&self) -> Result<PathBuf, StorageError> {
        match &self.keyring {
            Keyring::File(path) => Ok(path.clone()),
            Keyring::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
                Some(folder) => Ok(Path::new(&folder).join(name)),
                None => Err(StorageError::new(
                    StorageErrorKind::Denied,
                    format!("systemd gave no credentials; {name} was to be one"),
                )),
            },
        }
    }

    /// How QEMU and libvirt reach it. The monitors are empty until [`Self::prepare`].
    pub(super) fn access(&self) -> CephAccess {
        let monitors = self.monitors.lock();
        CephAccess {
            conf: self.conf.clone(),
            user: self.user.clone(),
            keyring: self.keyring().unwrap_or_default(),
            monitors: monitors
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
                .unwrap_or_default(),
            secret: self.secret_id(),
        }
    }

    /// The same on each host that is configured alike, and after each restart.
    fn secret_id(&self) -> Uuid {
        let name = format!("{}\0{}", self.conf.display(), self.user);
        Uuid::new_v5(&SECRETS, name.as_bytes())
    }

    /// Reads the user's key.
    pub(super) fn secret(&self) -> Result<CephSecret, StorageError> {
        let keyring = self.keyring()?;
        let mut arguments = words(&["--print-key", "--name"]);
        arguments.push(format!("client.{}", self.user).into());
        arguments.push(keyring.clone().into());
        let printed = run(
            "ceph-authtool",
            &arguments,
            None,
            &Task::within(QUICK),
            |_| (),
        )?;
        let bad = |why: &str| {
            let message = format!("{}: {why}", keyring.display());
            StorageError::new(StorageErrorKind::Denied, message)
        };
        if !printed.status.success() {
            return Err(bad("can't be read, or has no key of the user"));
        }
        let printed = Zeroizing::new(printed.stdout);
        let value = BASE64_STANDARD
            .decode(printed.trim_ascii())
            .map_err(|_| bad("has a key that is not base64"))?;
        Ok(CephSecret {
            id: self.secret_id(),
            usage: format!("kvmlet client.{} of {}", self.user, self.conf.display()),
            value: Zeroizing::new(value),
        })
    }

    /// Reads where the monitors are.
    pub(super) fn read_monitors(&self) -> Result<Vec<CephMonitor>, StorageError> {
        let mut arguments = words(&["--lookup", "mon_host", "--name"]);
        arguments.push(format!("client.{}", self.user).into());
        arguments.push("--conf".into());
        arguments.push(self.conf.clone().into());
        let printed = run("ceph-conf", &arguments, None, &Task::within(QUICK), |_| ())?;
        let monitors = match printed.status.success() {
            true => read_monitors(&String::from_utf8_lossy(&printed.stdout)),
            false => Vec::new(),
        };
        if monitors.is_empty() {
            return Err(StorageError::new(
                StorageErrorKind::Denied,
                format!(
                    "{} can't be read, or names no mon_host",
                    self.conf.display()
                ),
            ));
        }
        Ok(monitors)
    }

    /// Reads where the monitors are, and proves that the cluster lets the user in.
    pub(super) fn prepare(&self) -> Result<(), StorageError> {
        let monitors = self.read_monitors()?;
        let mut known = self.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(monitors);
        drop(known);
        self.secret()?;
        self.pools(Duration::ZERO).map(drop)
    }

    /// What the monitors told of the pools, at most this long ago.
    pub(super) fn pools(&self, age: Duration) -> Result<Arc<PoolsState>, StorageError> {
        if let Some(known) = self.known_pools(age) {
            return Ok(known);
        }
        let task = Task::within(QUICK);
        let ceph = |command: &[&str]| {
            let mut arguments = words(&["--connect-timeout", CONNECT, "--format", "json"]);
            arguments.extend(self.identity()?);
            arguments.extend(words(command));
            let finished = run("ceph", &arguments, None, &task, |_| ())?;
            match finished.status.code() {
                // A user who is refused is told with an errno.
                Some(1) => Err(StorageError::new(
                    StorageErrorKind::Away,
                    format!("ceph {}: {}", command.join(" "), finished.stderr),
                )),
                _ => done(finished, "ceph"),
            }
        };
        let df: Df = read("ceph df", &ceph(&["df", "detail"])?)?;
        let flags: Vec<PoolFlags> =
            read("ceph osd pool ls", &ceph(&["osd", "pool", "ls", "detail"])?)?;
        let state = Arc::new(PoolsState(figures(&df, &flags)?));
        let mut known = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((Instant::now(), state.clone()));
        Ok(state)
    }

    /// What the monitors told of the pools when they were last asked, unless that is
    /// too long ago.
    pub(super) fn known_pools(&self, age: Duration) -> Option<Arc<PoolsState>> {
        let known = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .as_ref()
            .filter(|(at, _)| at.elapsed() < age)
            .map(|(_, state)| state.clone())
    }

    /// Tells whether the cluster has a pool of this name, asking it and the pool's OSDs:
    /// by one object, in which its namespaces are. (Not with `rados`, which ends with 1
    /// whatever has happened, as if the user were refused.)
    pub(super) fn has_pool(&self, name: &str) -> Result<bool, StorageError> {
        let list = ["namespace", "ls", "--pool", name];
        match self.rbd(&list, &Task::within(QUICK)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == StorageErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Runs `rbd` and reads what it prints as JSON; `None` if what was asked about
    /// is not there, though its Ceph pool is.
    pub(super) fn rbd_json<T: DeserializeOwned>(
        &self,
        pool: &str,
        arguments: &[&str],
    ) -> Result<Option<T>, StorageError> {
        let arguments = [arguments, &["--format", "json"]].concat();
        match self.rbd(&arguments, &Task::within(QUICK)) {
            Ok(printed) => read("rbd", &printed).map(Some),
            Err(error) if error.kind() == StorageErrorKind::NotFound => {
                self.needs_pool(pool)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Fails with `CephPoolMissing` unless the cluster has the pool.
    pub(super) fn needs_pool(&self, pool: &str) -> Result<(), StorageError> {
        if self.has_pool(pool)? {
            return Ok(());
        }
        Err(StorageError::new(
            StorageErrorKind::CephPoolMissing,
            format!("the cluster has no pool {pool}"),
        ))
    }

    /// Runs `rbd` with these words.
    pub(super) fn rbd(&self, words_: &[&str], task: &Task) -> Result<Vec<u8>, StorageError> {
        let mut arguments = self.identity()?;
        arguments.extend(words(&[
            "--client-mount-timeout",
            CONNECT,
            "--rados-mon-op-timeout",
            ANSWER,
            "--rados-osd-op-timeout",
            ANSWER,
        ]));
        arguments.extend(words(words_));
        let finished = run("rbd", &arguments, None, task, |_| ())?;
        done(finished, &format!("rbd {}", words_.join(" ")))
    }

    /// Who asks, and whom.
    fn identity(&self) -> Result<Vec<OsString>, StorageError> {
        let mut arguments = words(&["--id", self.user.as_str(), "--conf"]);
        arguments.push(self.conf.clone().into());
        arguments.push("--keyring".into());
        arguments.push(self.keyring()?.into());
        Ok(arguments)
    }
}

/// The figures of each pool. Which there are, the monitors know at once; what is in a
/// new one, the manager counts a moment later.
fn figures(
    df: &Df,
    flags: &[PoolFlags],
) -> Result<BTreeMap<String, (PoolUsage, CephPoolState)>, StorageError> {
    // Of one that is not counted yet: all have the same disks, as a rule.
    let uncounted = df.pools.iter().map(|pool| pool.stats.max_avail).max();
    let figure = |pool: &PoolFlags| {
        let counted = df.pools.iter().find(|df| df.name == pool.pool_name);
        let (stored, max_avail) = match counted {
            Some(df) => (df.stats.stored, df.stats.max_avail),
            None => (0, uncounted?),
        };
        let quota = Some(pool.quota_max_bytes).filter(|&quota| quota > 0);
        let left = quota.map_or(u64::MAX, |quota| quota.saturating_sub(stored));
        let full = pool.has("full") || pool.has("full_quota") || pool.has("full_no_quota");
        let state = if full || left == 0 {
            CephPoolState::Full
        } else if pool.has("nearfull") || pool.has("backfillfull") {
            CephPoolState::NearFull
        } else {
            CephPoolState::Ready
        };
        let capacity = stored.saturating_add(max_avail);
        let usage = PoolUsage {
            capacity: Bytes(quota.map_or(capacity, |quota| quota.min(capacity))),
            free: match state {
                CephPoolState::Full => Bytes::ZERO,
                _ => Bytes(max_avail.min(left)),
            },
            near_full: state == CephPoolState::NearFull,
        };
        Some((pool.pool_name.clone(), (usage, state)))
    };
    let figures: Option<BTreeMap<_, _>> = flags.iter().map(figure).collect();
    figures.ok_or_else(|| {
        let message = "the cluster has not counted its space yet";
        StorageError::new(StorageErrorKind::Away, message)
    })
}

pub(super) fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// What a tool printed, if it succeeded. Ceph's tools exit with an errno.
fn done(finished: Finished, what: &str) -> Result<Vec<u8>, StorageError> {
    if finished.status.success() {
        return Ok(finished.stdout);
    }
    let errno = finished.status.code().map(Errno::from_raw);
    let kind = match errno {
        Some(Errno::ENOENT) => StorageErrorKind::NotFound,
        Some(Errno::EEXIST) => StorageErrorKind::Exists,
        Some(Errno::EBUSY | Errno::ENOTEMPTY) => StorageErrorKind::InUse,
        Some(Errno::ENOSPC | Errno::EDQUOT) => StorageErrorKind::Full,
        Some(Errno::EPERM | Errno::EACCES) => StorageErrorKind::Forbidden,
        // The last is what a client is told that the cluster has shut out.
        Some(
            Errno::ETIMEDOUT
            | Errno::ENOTCONN
            | Errno::ECONNREFUSED
            | Errno::ECONNRESET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::ESHUTDOWN,
        ) => StorageErrorKind::Away,
        _ => StorageErrorKind::ToolFailed,
    };
    let message = format!("{what}: {}: {}", finished.status, finished.stderr);
    Err(StorageError::new(kind, message))
}

/// Reads the JSON that a tool printed.
fn read<T: DeserializeOwned>(tool: &str, printed: &[u8]) -> Result<T, StorageError> {
    serde_json::from_slice(printed).map_err(|e| {
        let message = format!("{tool} printed what is not understood");
        StorageError::caused(StorageErrorKind::ToolFailed, message, e)
    })
}

/// Reads `mon_host`: addresses with commas or spaces between; of those that a
/// monitor has for both versions of the protocol, in brackets, one is enough.
fn read_monitors(text: &str) -> Vec<CephMonitor> {
    let mut monitors: Vec<CephMonitor> = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        // `[v2:…,v1:…]` is one monitor, `[::1]:6789` an address.
        let (one, after) = match group(rest) {
            Some((inside, after)) => {
                let addresses: Vec<_> = inside.split(',').filter_map(read_monitor).collect();
                let old = addresses.iter().find(|(version, _)| *version == "v1");
                let one = old.or(addresses.first()).map(|(_, one)| one.clone());
                (one, after)
            }
            None => {
                let end = rest.find([',', ' ', ';', '\t', '\n']).unwrap_or(rest.len());
                (read_monitor(&rest[..end]).map(|(_, one)| one), &rest[end..])
            }
        };
        monitors.extend(one);
        rest = after.trim_start_matches([',', ' ', ';', '\t', '\n']);
    }
    monitors
}

/// The inside of a bracket with addresses of one monitor, and what comes after it.
fn group(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('[')?;
    if !inner.starts_with("v1:") && !inner.starts_with("v2:") {
        return None;
    }
    let mut depth = 1;
    let end = inner.find(|c| {
        depth += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        depth == 0
    })?;
    Some((&inner[..end], &inner[end + 1..]))
}

/// Reads `v1:10.0.0.1:6789/0`, of which the version, the port and the nonce may be
/// missing.
fn read_monitor(text: &str) -> Option<(&'static str, CephMonitor)> {
    let (version, text) = match (text.strip_prefix("v1:"), text.strip_prefix("v2:")) {
        (Some(rest), _) => ("v1", rest),
        (None, Some(rest)) => ("v2", rest),
        (None, None) => ("", text),
    };
    let text = text.split('/').next().unwrap_or_default();
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match text.rsplit_once(':') {
            // More than one colon is an IPv6 address without a port.
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            _ => (text, None),
        },
    };
    if host.is_empty() {
        return None;
    }
    let port = match port {
        Some(port) => Some(port.parse().ok()?),
        None => None,
    };
    let host = host.to_owned();
    Some((version, CephMonitor { host, port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitors_are_read_in_every_spelling() {
        let one = |host: &str, port| CephMonitor {
            host: host.to_owned(),
            port,
        };
        for (text, expected) in [
            ("10.0.0.1", vec![one("10.0.0.1", None)]),
            (
                "10.0.0.1:6789, mon2.example",
                vec![one("10.0.0.1", Some(6789)), one("mon2.example", None)],
            ),
            (
                "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0] [v2:10.0.0.2:3300/0,v1:10.0.0.2:6789/0]",
                vec![one("10.0.0.1", Some(6789)), one("10.0.0.2", Some(6789))],
            ),
            ("v2:10.0.0.1:3300/0", vec![one("10.0.0.1", Some(3300))]),
            ("[fd00::1]:6789", vec![one("fd00::1", Some(6789))]),
            ("[v2:[fd00::1]:3300/0]", vec![one("fd00::1", Some(3300))]),
            ("fd00::1", vec![one("fd00::1", None)]),
            (" ", vec![]),
        ] {
            assert_eq!(read_monitors(text), expected, "{text}");
        }
    }

    #[test]
    fn a_pool_that_is_not_counted_yet_is_there() {
        let df = r#"{"pools": [{"name": "a", "stats": {"stored": 5, "max_avail": 90}}]}"#;
        let flags = r#"[
            {"pool_name": "a", "flags_names": "hashpspool,nearfull", "quota_max_bytes": 0},
            {"pool_name": "new", "flags_names": "hashpspool", "quota_max_bytes": 40}
        ]"#;
        let flags: Vec<PoolFlags> = serde_json::from_str(flags).expect("as Ceph prints it");
        let found = figures(&serde_json::from_str(df).expect("so too"), &flags).expect("counted");
        let (a, state) = found["a"];
        assert_eq!(
            (a.capacity, a.free, state),
            (Bytes(95), Bytes(90), CephPoolState::NearFull)
        );
        let (new, state) = found["new"];
        assert_eq!(
            (new.capacity, new.free, state),
            (Bytes(40), Bytes(40), CephPoolState::Ready)
        );
        let none = figures(&Df { pools: Vec::new() }, &flags).expect_err("not counted");
        assert_eq!(none.kind(), StorageErrorKind::Away);
    }

    #[test]
    fn a_secret_does_not_show_its_value() {
        let secret = CephSecret {
            id: Uuid::nil(),
            usage: "x".to_owned(),
            value: Zeroizing::new(b"hidden".to_vec()),
        };
        assert!(!format!("{secret:?}").contains("value"));
    }
}
