//! Pools in a Ceph cluster: what this host needs to reach it, and whether it does.

use super::{Check, Host, Notes, packages, tools};
use crate::config::{Keyring, PoolBackend, PoolSettings, RbdSettings};
use crate::model::volume::CephMonitor;
use crate::service::pools::rbd_pool;
use crate::storage::{RbdPool, StorageErrorKind};
use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a monitor may take to take a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// The ports of monitors that name none, the newer protocol's first.
const PORTS: [u16; 2] = [3300, 6789];
const TOOLS: [&str; 4] = ["rbd", "ceph", "ceph-conf", "ceph-authtool"];
/// QEMU's driver where it is built as a module.
const MODULES: &str = "/usr/lib*/**/block-rbd.so";

/// Looks at a pool of Ceph pools; does nothing for others.
pub(super) fn look(host: &Host, pool: &PoolSettings, notes: &Notes) {
    let PoolBackend::Rbd(rbd) = &pool.backend else {
        return;
    };
    let name = pool.name.as_str();
    qemu_driver(host, name, notes);
    let missing: Vec<&str> = TOOLS
        .into_iter()
        .filter(|tool| tools::find(tool).is_none())
        .collect();
    if !missing.is_empty() {
        notes.error(
            Check::CephTools,
            name,
            format!("not installed: {}", missing.join(", ")),
            "Everything that kvmlet does in a cluster is done with them.",
            packages::install("ceph-common", "ceph-common"),
        );
        return;
    }
    notes.ok(Check::CephTools, name, "rbd and ceph are installed");
    let readable = conf(host, name, rbd, notes) & keyring(host, name, rbd, notes);
    // Its id only names what it is making, and it makes nothing.
    let cluster = rbd_pool(pool, rbd, Uuid::nil());
    if readable && monitors(name, rbd, &cluster, notes) {
        // Outside of the unit a credential can't be used as such.
        match rbd.keyring {
            Keyring::File(_) => pools(name, &cluster, notes),
            Keyring::Credential(_) => notes.skipped(
                Check::CephPools,
                name,
                "the key is a credential of the unit's",
                "kvmlet pool list",
            ),
        }
    }
}

fn conf(host: &Host, name: &str, rbd: &RbdSettings, notes: &Notes) -> bool {
    let check = Check::CephConf;
    let shown = rbd.conf.display();
    match std::fs::read(&rbd.conf) {
        Ok(_) => {
            notes.ok(check, name, format!("{shown} can be read"));
            true
        }
        Err(error) if host.may_not(error.kind()) => {
            notes.needs_root(check, name, format!("{shown} may not be read by this user"));
            false
        }
        Err(error) => {
            notes.error(
                check,
                name,
                format!("{shown}: {error}"),
                "It says where the monitors are.",
                format!("On a host of the cluster: ceph config generate-minimal-conf; put that into {shown}"),
            );
            false
        }
    }
}

/// The file of a key; `None` for a credential that this process can't see.
fn key_file(keyring: &Keyring) -> Option<PathBuf> {
    match keyring {
        Keyring::File(path) => Some(path.clone()),
        Keyring::Credential(name) => {
            let path = Path::new("/run/credentials/kvmlet.service").join(name);
            path.exists().then_some(path)
        }
    }
}

fn keyring(host: &Host, name: &str, rbd: &RbdSettings, notes: &Notes) -> bool {
    let check = Check::CephKeyring;
    let Some(path) = key_file(&rbd.keyring) else {
        notes.skipped(
            check,
            name,
            "the key is a credential that systemd gives to the unit while it runs",
            "systemctl show kvmlet.service -p LoadCredential -p LoadCredentialEncrypted",
        );
        return true;
    };
    let shown = path.display();
    match std::fs::read_to_string(&path).map(zeroize::Zeroizing::new) {
        Ok(text) if text.contains(&format!("[client.{}]", rbd.user)) => {
            notes.ok(check, name, format!("{shown} has client.{}", rbd.user));
            true
        }
        Ok(_) => {
            notes.error(
                check,
                name,
                format!("{shown} has no client.{}", rbd.user),
                "Without its key the cluster lets nobody in.",
                format!(
                    "On a host of the cluster: ceph auth get client.{}; put that into {shown}",
                    rbd.user
                ),
            );
            false
        }
        Err(error) if host.may_not(error.kind()) => {
            notes.needs_root(check, name, format!("{shown} may not be read by this user"));
            false
        }
        Err(error) => {
            let advice = format!(
                "On a host of the cluster: ceph auth get client.{}; put that into {shown}, with mode 0600",
                rbd.user
            );
            let meaning = "Without its key the cluster lets nobody in.";
            notes.error(check, name, format!("{shown}: {error}"), meaning, advice);
            false
        }
    }
}

/// Tells which monitors take a connection; whether any does.
fn monitors(name: &str, rbd: &RbdSettings, cluster: &RbdPool, notes: &Notes) -> bool {
    let monitors = match cluster.monitors() {
        Ok(monitors) => monitors,
        Err(error) => {
            notes.error(
                Check::CephConf,
                name,
                error.to_string(),
                "Nobody knows where the cluster is.",
                format!("Set mon_host under [global] in {}.", rbd.conf.display()),
            );
            return false;
        }
    };
    let (sender, answers) = channel();
    for (index, monitor) in monitors.iter().cloned().enumerate() {
        let sender = sender.clone();
        // Looking a name up may take longer than anyone waits.
        drop(thread::Builder::new().spawn(move || {
            drop(sender.send((index, reach(&monitor))));
        }));
    }
    drop(sender);
    let deadline = Instant::now() + CONNECT * 2;
    let mut silent: Vec<Option<String>> = vec![Some("does not answer".to_owned()); monitors.len()];
    while let Ok((index, answer)) =
        answers.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        silent[index] = answer.err();
    }
    let named = |monitor: &CephMonitor| match monitor.port {
        Some(port) => format!("{}:{port}", monitor.host),
        None => monitor.host.clone(),
    };
    let trouble: Vec<String> = monitors
        .iter()
        .zip(&silent)
        .filter_map(|(monitor, silent)| Some(format!("{}: {}", named(monitor), silent.as_ref()?)))
        .collect();
    let check = Check::CephMonitors;
    let advice = "See that they run (ceph -s, on a host of the cluster) and that no firewall is \
                  between: ports 3300 and 6789, and 6800-7568 of the OSDs";
    if trouble.is_empty() {
        notes.ok(check, name, format!("{} can be reached", monitors.len()));
    } else if trouble.len() < monitors.len() {
        notes.warning(
            check,
            name,
            trouble.join("; "),
            format!(
                "{} of {} can be reached.",
                monitors.len() - trouble.len(),
                monitors.len()
            ),
            advice,
        );
    } else {
        let meaning = "None can be reached: volumes in the cluster can't be used.";
        notes.error(check, name, trouble.join("; "), meaning, advice);
    }
    trouble.len() < monitors.len()
}

fn reach(monitor: &CephMonitor) -> Result<(), String> {
    let ports = monitor.port.map_or(PORTS.to_vec(), |port| vec![port]);
    let mut trouble = "has no address".to_owned();
    for port in ports {
        let addresses = (monitor.host.as_str(), port)
            .to_socket_addrs()
            .map_err(|error| error.to_string())?;
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    return Err("does not answer".to_owned());
                }
                Err(error) => trouble = error.to_string(),
            }
        }
    }
    Err(trouble)
}

/// Asks the cluster as the agent does.
fn pools(name: &str, cluster: &RbdPool, notes: &Notes) {
    let check = Check::CephPools;
    let Err(error) = cluster.examine() else {
        notes.ok(
            check,
            name,
            "the cluster lets the user in, and its pools answer",
        );
        return;
    };
    let (meaning, advice) = match error.kind() {
        StorageErrorKind::Forbidden | StorageErrorKind::Denied => (
            "The cluster does not let the user do what is needed.",
            "On a host of the cluster: ceph auth caps client.USER mon 'profile rbd' osd 'profile \
             rbd pool=POOL' mgr 'profile rbd'",
        ),
        StorageErrorKind::CephPoolMissing => (
            "Volumes or images were to be in it.",
            "On a host of the cluster: ceph osd pool create POOL && rbd pool init POOL",
        ),
        _ => (
            "Monitors take connections, and the cluster can't be used.",
            "On a host of the cluster: ceph -s; ceph health detail",
        ),
    };
    notes.error(check, name, error.to_string(), meaning, advice);
}

/// QEMU is asked for its driver by looking for its module.
fn qemu_driver(host: &Host, name: &str, notes: &Notes) {
    if host.is_simulated() {
        return;
    }
    let check = Check::CephQemu;
    let module = glob::glob(MODULES)
        .ok()
        .and_then(|mut found| found.find_map(Result::ok));
    match module {
        Some(path) => notes.ok(check, name, format!("{} is there", path.display())),
        None => notes.warning(
            check,
            name,
            "no module block-rbd.so of QEMU's was found",
            "Unless it is built into QEMU, guests with volumes in the cluster can't start.",
            packages::install("qemu-block-extra", "qemu-block-rbd"),
        ),
    }
}
