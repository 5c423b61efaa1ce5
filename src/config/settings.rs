//! The checked values, and what they are when nobody sets them.

use super::access::AccessSettings;
use super::audit::AuditSettings;
use super::events::EventSettings;
use super::limits::LimitSettings;
use super::metrics::MetricsSettings;
use super::pools::PoolSettings;
use super::report::{NatsSettings, ReportSettings};
use super::tls::ServerTls;
use super::traces::TraceSettings;
use crate::model::access::Role;
use crate::model::bytes::Bytes;
use crate::model::hardware::{Accelerator, Hardware};
use crate::model::nic::Attachment;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// Everything that an administrator can set, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[node]`.
    pub node: NodeSettings,
    /// `[hypervisor]`.
    pub hypervisor: HypervisorSettings,
    /// `[api]`.
    pub api: ApiSettings,
    /// `[access]`.
    pub access: AccessSettings,
    /// `[limits]`.
    pub limits: LimitSettings,
    /// `[audit]`.
    pub audit: AuditSettings,
    /// `[journal]`.
    pub journal: JournalSettings,
    /// `[log]`.
    pub log: LogSettings,
    /// `[metrics]`.
    pub metrics: MetricsSettings,
    /// `[traces]`.
    pub traces: TraceSettings,
    /// `[[pools]]`: at least one, exactly one of them the default.
    pub pools: Vec<PoolSettings>,
    /// `[images]`.
    pub images: ImageSettings,
    /// `[[networks]]`, with unique ids.
    pub networks: Vec<Network>,
    /// `[[hardware_profiles]]`, with unique ids.
    pub hardware_profiles: Vec<HardwareProfile>,
    /// `[vms]`.
    pub vms: VmSettings,
    /// `[vnc]`.
    pub vnc: VncSettings,
    /// `[[report]]`; its names and those of `[[nats]]` are unique together.
    pub report: Vec<ReportSettings>,
    /// `[[nats]]`.
    pub nats: Vec<NatsSettings>,
    /// `[operations]`.
    pub operations: OperationSettings,
    /// `[events]`.
    pub events: EventSettings,
    /// `[shutdown]`.
    pub shutdown: ShutdownSettings,
}

impl Default for Config {
    /// What an empty file means: the system's QEMU, one pool.
    fn default() -> Self {
        Self {
            node: NodeSettings::default(),
            hypervisor: HypervisorSettings::default(),
            api: ApiSettings::default(),
            access: AccessSettings::default(),
            limits: LimitSettings::default(),
            audit: AuditSettings::default(),
            journal: JournalSettings::default(),
            log: LogSettings::default(),
            metrics: MetricsSettings::default(),
            traces: TraceSettings::default(),
            pools: vec![PoolSettings::only_default(PathBuf::from(
                "/var/lib/kvmlet/pool",
            ))],
            images: ImageSettings::default(),
            networks: Vec::new(),
            hardware_profiles: Vec::new(),
            vms: VmSettings::default(),
            vnc: VncSettings::default(),
            report: Vec::new(),
            nats: Vec::new(),
            operations: OperationSettings::default(),
            events: EventSettings::default(),
            shutdown: ShutdownSettings::default(),
        }
    }
}

impl Config {
    /// The configuration of `kvmlet serve --simulate`: libvirt's test driver
    /// as the host, everything kept under `state_dir` (an absolute path), logs
    /// on stderr, and one unprivileged network called `default`.
    pub fn simulated(state_dir: &Path) -> Self {
        let mut config = Self {
            pools: vec![PoolSettings::only_default(state_dir.join("pool"))],
            networks: vec![Network {
                id: "default".to_owned(),
                attachment: Attachment::User,
                mtu: None,
            }],
            ..Self::default()
        };
        config.hypervisor.uri = "test:///default".to_owned();
        config.api.socket = state_dir.join("kvmlet.sock");
        config.journal.path = state_dir.join("journal.db");
        config.log.target = LogTarget::Stderr;
        config.images.allowed_dirs = vec![state_dir.join("import")];
        config.vms.console_dir = state_dir.join("console");
        config
    }

    /// The pool for volumes and images that name none.
    pub fn default_pool(&self) -> &PoolSettings {
        self.pools
            .iter()
            .find(|pool| pool.default)
            .expect("a checked configuration has a default pool")
    }

    /// The pool called `name`.
    pub fn pool(&self, name: &str) -> Option<&PoolSettings> {
        self.pools.iter().find(|pool| pool.name == name)
    }
}

/// Who this host is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSettings {
    /// The node's id as configured; see [`NodeSettings::resolve_id`].
    pub id: Option<Uuid>,
    /// Values to select nodes by; returned by GetNode as given.
    pub labels: BTreeMap<String, String>,
}

impl NodeSettings {
    /// Namespace of the ids that are derived from machine ids.
    const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_36c5_84e2_4c0b_9a53_0e9d_7a4b_12f8);

    /// The configured id, or one that is derived from `/etc/machine-id` (which
    /// itself must not be shown around, so it is hashed).
    ///
    /// # Errors
    /// No id is configured and the machine id can't be read or is empty.
    pub fn resolve_id(&self) -> std::io::Result<Uuid> {
        match self.id {
            Some(id) => Ok(id),
            None => Self::machine_id(),
        }
    }

    /// The id that is derived from `/etc/machine-id`, whatever is configured.
    ///
    /// # Errors
    /// The machine id can't be read or is empty.
    pub fn machine_id() -> std::io::Result<Uuid> {
        Self::derived(&std::fs::read_to_string("/etc/machine-id")?)
    }

    fn derived(machine_id: &str) -> std::io::Result<Uuid> {
        // systemd writes "uninitialized" there until the first boot is done.
        match machine_id.trim() {
            "" | "uninitialized" => Err(std::io::Error::other(
                "/etc/machine-id holds no id yet; set node.id",
            )),
            id => Ok(Uuid::new_v5(&Self::NAMESPACE, id.as_bytes())),
        }
    }
}

/// How libvirt is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HypervisorSettings {
    /// A URI of a driver on this host.
    pub uri: String,
    /// Connections for calls; libvirt serves 5 calls at a time on each.
    pub connections: usize,
    /// How long a call may take before its outcome counts as unknown.
    pub call_timeout: Duration,
    /// What executes guests whose request names nothing.
    pub accelerator: Accelerator,
}

impl Default for HypervisorSettings {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            connections: 4,
            call_timeout: Duration::from_secs(30),
            accelerator: Accelerator::Auto,
        }
    }
}

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSettings {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The socket's permission bits; never open to others.
    pub socket_mode: u32,
    /// The group that owns the socket, by name; `None` leaves the daemon's own.
    pub socket_group: Option<String>,
    /// A TCP listener besides, with TLS, or without it on a loopback address.
    pub listen: Option<SocketAddr>,
    /// The certificates for it.
    pub tls: Option<ServerTls>,
    /// Without TLS: what everyone on this host may do who connects to it.
    pub plaintext_role: Option<Role>,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/kvmlet/kvmlet.sock"),
            socket_mode: 0o660,
            socket_group: None,
            listen: None,
            tls: None,
            plaintext_role: None,
        }
    }
}

/// Where the journal is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalSettings {
    /// The database file; its directory also gets the lock and the log of it.
    pub path: PathBuf,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self {
            path: PathBuf::from("/var/lib/kvmlet/journal.db"),
        }
    }
}

/// What is logged and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// A level, or `target=level` pairs with commas between.
    pub level: String,
    /// Where to.
    pub target: LogTarget,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            target: LogTarget::Auto,
        }
    }
}

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogTarget {
    /// The system's journal if stderr is connected to it, else stderr.
    #[default]
    Auto,
    /// The system's journal, with fields.
    Journald,
    /// Lines on stderr.
    Stderr,
}

/// What images may be imported and what the import may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSettings {
    /// Directories that files may be imported from, absolute.
    pub allowed_dirs: Vec<PathBuf>,
    /// Beginnings of URLs that images may be downloaded from.
    pub allowed_url_prefixes: Vec<String>,
    /// Largest virtual size of an image.
    pub max_virtual_size: Bytes,
    /// Largest number of bytes of a source.
    pub max_source_size: Bytes,
    /// A download that brings no byte for this long is given up.
    pub download_stall: Duration,
}

impl Default for ImageSettings {
    fn default() -> Self {
        Self {
            allowed_dirs: vec![PathBuf::from("/var/lib/kvmlet/import")],
            allowed_url_prefixes: vec!["https://".to_owned()],
            max_virtual_size: Bytes::gib(2048),
            max_source_size: Bytes::gib(1024),
            download_stall: Duration::from_secs(60),
        }
    }
}

/// A network that interfaces can ask for by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its id in the API.
    pub id: String,
    /// Where its interfaces plug in.
    pub attachment: Attachment,
    /// Largest frame payload in bytes, for interfaces that ask for none.
    pub mtu: Option<u32>,
}

/// Virtual hardware that VMs can ask for by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardwareProfile {
    /// Its id in the API.
    pub id: String,
    /// What it stands for.
    pub hardware: Hardware,
}

/// How VMs are treated.
#[derive(Debug, Clone, PartialEq)]
pub struct VmSettings {
    /// How long a deleted VM can be recovered; zero expunges at once.
    pub retention: Duration,
    /// How long a replaced root is kept where the request says nothing.
    pub keep_old_root: Duration,
    /// How long a graceful stop waits where the request says nothing.
    pub stop_timeout: Duration,
    /// How often a graceful stop asks again.
    pub stop_resend: Duration,
    /// Where guests' serial consoles are written, absolute.
    pub console_dir: PathBuf,
    /// Size at which a console's file is rotated.
    pub console_max: Bytes,
    /// Virtual processors per processor of the host.
    pub vcpu_overcommit: f64,
    /// Guest memory per byte of the host's memory.
    pub memory_overcommit: f64,
    /// Memory of the host that guests never get.
    pub reserved_memory: Bytes,
    /// Most virtual processors of one VM.
    pub max_vcpus_per_vm: u32,
    /// How often guests are asked anew for their IP addresses.
    pub address_refresh: Duration,
}

impl Default for VmSettings {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(7 * 86400),
            keep_old_root: Duration::from_secs(86400),
            stop_timeout: Duration::from_secs(120),
            stop_resend: Duration::from_secs(10),
            console_dir: PathBuf::from("/var/lib/kvmlet/console"),
            console_max: Bytes::mib(2),
            vcpu_overcommit: 4.0,
            memory_overcommit: 1.0,
            reserved_memory: Bytes::mib(512),
            max_vcpus_per_vm: 255,
            address_refresh: Duration::from_secs(60),
        }
    }
}

/// How graphical consoles are offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VncSettings {
    /// Address that QEMU's VNC servers listen on.
    pub listen: IpAddr,
    /// How long a password that was given out is valid.
    pub password_ttl: Duration,
}

impl Default for VncSettings {
    fn default() -> Self {
        Self {
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            password_ttl: Duration::from_secs(120),
        }
    }
}

/// How operations are queued and remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationSettings {
    /// How long an operation (and its request id) is known after it ended.
    pub keep: Duration,
    /// Requests that may wait in all; the next one is refused.
    pub queue: usize,
    /// Requests that may wait for one VM; they only wait while it decides.
    pub queue_per_vm: usize,
}

impl Default for OperationSettings {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(7 * 86400),
            queue: 256,
            queue_per_vm: 64,
        }
    }
}

/// How the daemon ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownSettings {
    /// How long running steps may take before the daemon exits anyway.
    pub grace: Duration,
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_is_derived_from_the_machine_id_and_hides_it() {
        let machine = "0123456789abcdef0123456789abcdef\n";
        let id = NodeSettings::derived(machine).unwrap();
        assert_eq!(id, NodeSettings::derived(machine.trim()).unwrap());
        assert_ne!(id.simple().to_string(), machine.trim());
        assert!(NodeSettings::derived("\n").is_err());
        assert!(NodeSettings::derived("uninitialized\n").is_err());
    }
}
