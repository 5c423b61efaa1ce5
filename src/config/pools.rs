//! `[[pools]]`: where volumes and images are kept.

use super::check::{check_name, required};
use super::section::{Section, check_path};
use super::settings::{Config, HypervisorSettings};
use crate::model::bytes::Bytes;
use glob::Pattern;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where imports into Ceph pools are fetched and checked, each in a folder of its
/// pool's name.
const SCRATCH: &str = "/var/lib/kvmlet/scratch";
const MINUTE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 86400);

/// A place for volumes and images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Its name in the API: 1 to 64 of `[a-zA-Z0-9._-]`.
    pub name: String,
    /// What it is made of.
    pub backend: PoolBackend,
    /// Its directory, absolute; no other pool is in it or around it. Of an RBD pool:
    /// where imports are fetched and checked.
    pub path: PathBuf,
    /// Takes the volumes and images that name no pool.
    pub default: bool,
    /// The most that its images may take; `None`: no limit of their own. Not for RBD,
    /// whose images other hosts use too.
    pub image_cache_max: Option<Bytes>,
}

/// What a pool is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolBackend {
    /// A directory of qcow2 files.
    Qcow2,
    /// Ceph pools of one cluster.
    Rbd(Box<RbdSettings>),
}

/// A Ceph cluster and the pools of it that are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RbdSettings {
    /// The cluster's configuration file, which names its monitors.
    pub conf: PathBuf,
    /// The user, without `client.`.
    pub user: String,
    /// Where the user's key is.
    pub keyring: Keyring,
    /// The Ceph pool of the images.
    pub image_pool: String,
    /// The Ceph pool of root volumes that name none.
    pub default_root_pool: String,
    /// The Ceph pool of data volumes.
    pub default_data_pool: String,
    /// The Ceph pools that a tag may name for a root volume, besides the default.
    pub allowed_root_pools: Vec<Pattern>,
    /// How long what is deleted stays in RBD's trash; zero removes it at once.
    pub trash_expiry: Duration,
}

/// Where a Ceph user's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keyring {
    /// In this file.
    File(PathBuf),
    /// In the systemd credential of this name (`LoadCredential=`).
    Credential(String),
}

impl PoolSettings {
    /// The pool that exists when none is configured.
    pub(super) fn only_default(path: PathBuf) -> Self {
        Self {
            name: "default".to_owned(),
            backend: PoolBackend::Qcow2,
            path,
            default: true,
            image_cache_max: None,
        }
    }
}

pub(super) fn pools(file: &Section<'_>, hypervisor: &HypervisorSettings) -> Vec<PoolSettings> {
    let sections = file.sections("pools");
    if sections.is_empty() {
        return Config::default().pools;
    }
    let alone = sections.len() == 1;
    let mut pools: Vec<PoolSettings> = Vec::new();
    for section in sections {
        let name = required(&section, "name", check_name);
        let rbd = section.choice("kind", false, &[("qcow2", false), ("rbd", true)]);
        let backend = if rbd {
            if hypervisor.uri.starts_with("qemu:///embed") {
                let problem = "can't be rbd with qemu:///embed, which keeps no secrets for Ceph";
                section.fault("kind", problem);
            }
            rbd_settings(&section).map(|settings| PoolBackend::Rbd(Box::new(settings)))
        } else {
            Some(PoolBackend::Qcow2)
        };
        let path = if rbd {
            let usual = || Path::new(SCRATCH).join(name.as_deref().unwrap_or_default());
            Some(section.absolute_path("scratch").unwrap_or_else(usual))
        } else {
            required(&section, "path", check_path)
        };
        let path_key = if rbd { "scratch" } else { "path" };
        let default = section.flag("default").unwrap_or(alone);
        let image_cache_max = if rbd {
            None
        } else {
            section.size("image_cache_max", Bytes::mib(1)..=Bytes::gib(1 << 20))
        };
        if let Some(name) = &name
            && pools.iter().any(|other| &other.name == name)
        {
            section.fault("name", format_args!("{name:?} is taken by another pool"));
        }
        if let Some(path) = &path {
            for other in &pools {
                if path.starts_with(&other.path) || other.path.starts_with(path) {
                    let name = &other.name;
                    section.fault(path_key, format_args!("overlaps with the pool {name:?}"));
                }
            }
        }
        if default && let Some(other) = pools.iter().find(|other| other.default) {
            let name = &other.name;
            section.fault(
                "default",
                format_args!("{name:?} is the default pool already"),
            );
        }
        if let (Some(name), Some(path), Some(backend)) = (name, path, backend) {
            pools.push(PoolSettings {
                name,
                backend,
                path,
                default,
                image_cache_max,
            });
        }
        section.finish();
    }
    if !pools.is_empty() && !pools.iter().any(|pool| pool.default) {
        file.fault("pools", "one of them must have default = true");
    }
    pools
}

/// The keys of an RBD pool; `None` if one that must be there is not.
fn rbd_settings(section: &Section<'_>) -> Option<RbdSettings> {
    let conf = section.absolute_path("conf");
    let user = section.parsed("user", check_user);
    let keyring = section.absolute_path("keyring");
    let credential = section.parsed("keyring_credential", check_name);
    if section.has("keyring") && section.has("keyring_credential") {
        section.fault("keyring_credential", "can't be given besides keyring");
    }
    let user = user.unwrap_or_else(|| "kvmlet".to_owned());
    let keyring = match (keyring, credential) {
        (_, Some(credential)) => Keyring::Credential(credential),
        (Some(file), None) => Keyring::File(file),
        // Where Ceph's own tools look for it.
        (None, None) => Keyring::File(format!("/etc/ceph/ceph.client.{user}.keyring").into()),
    };
    let image_pool = required(section, "image_pool", check_ceph_pool);
    let default_root_pool = required(section, "default_root_pool", check_ceph_pool);
    let default_data_pool = section.parsed("default_data_pool", check_ceph_pool);
    let allowed_root_pools = section
        .list("allowed_root_pools", check_pattern)
        .unwrap_or_default();
    let trash_expiry = section
        .parsed("trash_expiry", |text| {
            match humantime::parse_duration(text) {
                Ok(zero) if zero.is_zero() => Ok(zero),
                Ok(time) if (MINUTE..=YEAR).contains(&time) => Ok(time),
                Ok(_) => Err("must be 0s, or from 1m to 365d"),
                Err(_) => Err("is not a duration such as \"1h\" or \"7d\""),
            }
        })
        .unwrap_or(Duration::from_secs(86400));
    let (image_pool, default_root_pool) = (image_pool?, default_root_pool?);
    Some(RbdSettings {
        conf: conf.unwrap_or_else(|| "/etc/ceph/ceph.conf".into()),
        user,
        keyring,
        default_data_pool: default_data_pool.unwrap_or_else(|| default_root_pool.clone()),
        image_pool,
        default_root_pool,
        allowed_root_pools,
        trash_expiry,
    })
}

fn check_user(text: &str) -> Result<String, &'static str> {
    if text.starts_with("client.") {
        return Err("is named without \"client.\"");
    }
    check_name(text)
}

/// What a tag can name, too: other names can't be told from options of Ceph's tools.
fn check_ceph_pool(text: &str) -> Result<String, &'static str> {
    if crate::model::tag::is_pool_name(text) {
        Ok(text.to_owned())
    } else {
        Err(
            "is not the name of a Ceph pool: 1 to 128 letters, digits, dots, underscores or hyphens, beginning with a letter, a digit or an underscore",
        )
    }
}

fn check_pattern(text: &str) -> Result<Pattern, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'*' | b'?');
    if !(1..=128).contains(&text.len()) || !text.bytes().all(plain) {
        return Err("is not a pattern for the names of Ceph pools, such as \"vms-*\"");
    }
    Pattern::new(text).map_err(|_| "is not a pattern for the names of Ceph pools")
}
