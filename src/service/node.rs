//! The host itself: what it is, what it has promised, how it fares.

use super::capacity::{self, Share};
use super::clock;
use super::core::Core;
use super::current::Reading;
use super::entrance;
use super::host::{self, HostView, Machine};
use super::status_line::counted;
use super::volumes::{PoolView, pools};
use crate::journal::Rebuild;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::hardware::Hardware;
use crate::model::ids::OperationId;
use crate::model::maintenance::Maintenance;
use crate::model::nic::Attachment;
use crate::model::reason::Reason;
use crate::model::time::Timestamp;
use crate::model::view::View;
use crate::service::operations::now;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use uuid::Uuid;

/// What does not change while the agent runs.
pub struct NodeIdentity {
    id: Uuid,
    version: &'static str,
    kvm: bool,
    /// The machine that the agent runs on.
    pub machine: Machine,
    started: Timestamp,
    foreign: AtomicU32,
    /// What became of the records that the journal did not have when it was made.
    rebuild: Mutex<Option<Rebuild>>,
    /// When each condition last changed.
    conditions: Mutex<BTreeMap<String, (bool, Timestamp)>>,
    maintenance: Mutex<Option<Maintenance>>,
    /// The operation that changes it.
    changing: Mutex<Option<OperationId>>,
}

impl NodeIdentity {
    /// Reads what the kernel tells of the host. `version` is the agent's.
    pub fn read(id: Uuid, version: &'static str) -> Self {
        Self {
            id,
            version,
            kvm: kvm_works(),
            machine: Machine::read(),
            started: now(),
            foreign: AtomicU32::new(0),
            rebuild: Mutex::default(),
            conditions: Mutex::default(),
            maintenance: Mutex::default(),
            changing: Mutex::default(),
        }
    }

    /// The host's stable id.
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// The kernel's name for its present run; empty if it has none.
    pub fn boot_id(&self) -> &str {
        &self.machine.boot_id
    }

    /// The agent's version.
    pub const fn version(&self) -> &'static str {
        self.version
    }

    /// Whether guests can really run with KVM.
    pub const fn kvm_works(&self) -> bool {
        self.kvm
    }

    /// Notes how many domains on the host are not kvmlet's.
    pub fn set_foreign(&self, count: u32) {
        self.foreign.store(count, Ordering::Relaxed);
    }

    /// Notes what became of the records that the journal did not have.
    pub fn set_rebuild(&self, rebuild: Option<Rebuild>) {
        *lock(&self.rebuild) = rebuild;
    }

    /// What became of the records that the journal did not have when it was made;
    /// `None` if nothing was missing.
    pub fn rebuild(&self) -> Option<Rebuild> {
        lock(&self.rebuild).clone()
    }

    /// The host's maintenance, if it is in one; what the journal has.
    pub fn maintenance(&self) -> Option<Maintenance> {
        lock(&self.maintenance).clone()
    }

    /// Notes the host's maintenance as the journal has it. While the agent serves,
    /// the caller holds the admission lock.
    pub fn set_maintenance(&self, maintenance: Option<Maintenance>) {
        *lock(&self.maintenance) = maintenance;
    }

    /// Refuses new guests during maintenance.
    ///
    /// # Errors
    /// `NODE_IN_MAINTENANCE`.
    pub fn check_takes_guests(&self) -> Result<(), Fault> {
        match self.maintenance() {
            None => Ok(()),
            Some(Maintenance { message, .. }) => Err(Fault::new(
                Reason::NodeInMaintenance,
                "the host is in maintenance and takes no new guests",
            )
            .with("message", message)),
        }
    }

    /// Has an operation be the only one that changes the maintenance.
    ///
    /// # Errors
    /// `NODE_BUSY` while there is another.
    pub fn hold_maintenance(&self, id: OperationId) -> Result<(), Fault> {
        let mut changing = lock(&self.changing);
        if let Some(holder) = *changing {
            return Err(Fault::new(
                Reason::NodeBusy,
                format!("operation {holder} begins or ends the maintenance"),
            )
            .with("operation_id", holder));
        }
        *changing = Some(id);
        Ok(())
    }

    /// Says that the operation that changed the maintenance has ended.
    pub fn release_maintenance(&self) {
        *lock(&self.changing) = None;
    }

    fn since(&self, kind: &str, status: bool) -> Timestamp {
        let mut conditions = lock(&self.conditions);
        let entry = conditions
            .entry(kind.to_owned())
            .or_insert_with(|| (status, now()));
        if entry.0 != status {
            *entry = (status, now());
        }
        entry.1
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether guests can run with KVM.
#[derive(Debug)]
pub enum Kvm {
    /// They can.
    Works,
    /// Its device can't be opened.
    NoDevice(io::Error),
    /// Its device opens, and the processor says that it can't.
    NoFlags,
}

/// Looks whether KVM's device opens, and the processor says that it can: some nested
/// hosts have a device whose guests hang at their first unusual instruction.
pub fn find_kvm() -> Kvm {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = device {
        return Kvm::NoDevice(error);
    }
    // Other architectures have no such flags.
    if !cfg!(target_arch = "x86_64") {
        return Kvm::Works;
    }
    let capable = fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| {
                line.split_whitespace()
                    .any(|flag| matches!(flag, "vmx" | "svm"))
            })
    });
    if capable { Kvm::Works } else { Kvm::NoFlags }
}

fn kvm_works() -> bool {
    match find_kvm() {
        Kvm::Works => true,
        Kvm::NoDevice(error) => {
            tracing::warn!(%error, "KVM can't be used; auto means TCG, which is slow");
            false
        }
        Kvm::NoFlags => {
            tracing::warn!(
                "/dev/kvm opens, and the processor has no vmx or svm; auto means TCG, which is slow"
            );
            false
        }
    }
}

/// The host as readers see it.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its stable id.
    pub id: Uuid,
    /// Its name.
    pub hostname: String,
    /// Configured labels.
    pub labels: BTreeMap<String, String>,
    /// Version of kvmlet.
    pub kvmlet_version: String,
    /// Version of libvirt; empty while it is away.
    pub libvirt_version: String,
    /// Version of the hypervisor; empty while libvirt is away.
    pub hypervisor_version: String,
    /// Version of the kernel.
    pub kernel_version: String,
    /// Where libvirt is.
    pub hypervisor_uri: String,
    /// What `auto` means here.
    pub accelerator: String,
    /// Architecture of guests.
    pub architecture: String,
    /// Processor threads.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// What is told of the machine itself.
    pub host: HostView,
    /// What the VMs have that have power or are about to get it.
    pub promised: Share,
    /// What VMs may take in all; `None` while libvirt is away.
    pub capacity: Option<Share>,
    /// The configured vCPUs for each thread.
    pub vcpu_overcommit: f64,
    /// The configured guest memory for each byte of the host's.
    pub memory_overcommit: f64,
    /// The configured memory that guests never get.
    pub reserved_memory: Bytes,
    /// The host's maintenance, if it is in one.
    pub maintenance: Option<Maintenance>,
    /// The pools.
    pub pools: Vec<PoolView>,
    /// The VMs.
    pub vms: Vec<Arc<View>>,
    /// What is well and what is not.
    pub conditions: Vec<ConditionView>,
    /// When the agent started.
    pub start_time: Timestamp,
    /// Calls made on libvirt since then.
    pub libvirt_calls: u64,
    /// Commits of the journal since then, each an fsync.
    pub journal_commits: u64,
    /// Batches that they made durable.
    pub journal_batches: u64,
    /// Domains that are not kvmlet's.
    pub foreign_domains: u32,
    /// Configured hardware profiles.
    pub hardware_profiles: Vec<(String, Hardware)>,
    /// Configured networks.
    pub networks: Vec<(String, Attachment)>,
}

/// One aspect of the host's health.
#[derive(Debug, Clone)]
pub struct ConditionView {
    /// Which.
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// One word why.
    pub reason: String,
    /// In words.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// Describes the host, from memory.
pub fn describe(core: &Core) -> NodeView {
    let facts = core.hypervisor.facts().ok();
    let node = &core.node;
    let accelerator = if core.hypervisor.is_simulated() {
        "test"
    } else if host::auto_is_kvm(core) {
        "kvm"
    } else {
        "tcg"
    };
    let pools = pools(core);
    let offered = core.current.offered();
    let (journal_commits, journal_batches) = core.ledger.written();
    NodeView {
        id: node.id,
        hostname: facts.as_ref().map_or_else(
            || node.machine.hostname.clone(),
            |facts| facts.hostname.clone(),
        ),
        labels: core.config.node.labels.clone(),
        kvmlet_version: node.version.to_owned(),
        libvirt_version: facts
            .as_ref()
            .map_or_else(String::new, |facts| facts.libvirt_version.to_string()),
        hypervisor_version: facts
            .as_ref()
            .map_or_else(String::new, |facts| facts.hypervisor_version.to_string()),
        kernel_version: node.machine.kernel.clone(),
        hypervisor_uri: core.hypervisor.uri().as_str().to_owned(),
        accelerator: accelerator.to_owned(),
        architecture: facts
            .as_ref()
            .map_or_else(String::new, |facts| facts.arch.clone()),
        cpus: facts.as_ref().map_or(0, |facts| facts.cpus),
        memory: facts.as_ref().map_or(Bytes::ZERO, |facts| facts.memory),
        host: host::view(core, facts.as_deref()),
        promised: capacity::promised(core, None),
        capacity: facts
            .as_ref()
            .map(|facts| capacity::total(facts, &core.config.vms)),
        vcpu_overcommit: core.config.vms.vcpu_overcommit,
        memory_overcommit: core.config.vms.memory_overcommit,
        reserved_memory: core.config.vms.reserved_memory,
        maintenance: node.maintenance(),
        conditions: conditions(core, &pools),
        pools,
        vms: core.vms.list(),
        start_time: node.started,
        libvirt_calls: core.hypervisor.calls(),
        journal_commits,
        journal_batches,
        foreign_domains: node.foreign.load(Ordering::Relaxed),
        hardware_profiles: offered
            .hardware_profiles
            .iter()
            .map(|profile| (profile.id.clone(), profile.hardware.clone()))
            .collect(),
        networks: offered
            .networks
            .iter()
            .map(|network| (network.id.clone(), network.attachment.clone()))
            .collect(),
    }
}

/// Notes which conditions have changed, so that they tell since when.
pub fn refresh_conditions(core: &Core) {
    conditions(core, &pools(core));
}

/// What is well and what is not, now.
pub fn conditions_now(core: &Core) -> Vec<ConditionView> {
    conditions(core, &pools(core))
}

fn conditions(core: &Core, pools: &[PoolView]) -> Vec<ConditionView> {
    let condition = |kind: String, status: bool, reason: &str, message: String| ConditionView {
        since: core.node.since(&kind, status),
        kind,
        status,
        reason: reason.to_owned(),
        message,
    };
    let up = core.hypervisor.is_up();
    let trouble = core.ledger.trouble();
    let mut conditions = vec![
        condition(
            "LibvirtReady".to_owned(),
            up,
            if up { "Connected" } else { "Away" },
            if up {
                String::new()
            } else {
                "libvirt can't be reached".to_owned()
            },
        ),
        condition(
            "JournalWritable".to_owned(),
            trouble.is_none(),
            if trouble.is_none() {
                "Written"
            } else {
                "WriteFailed"
            },
            trouble.map_or(String::new(), |fault| fault.message),
        ),
    ];
    let lost = lost_records(core);
    conditions.push(condition(
        "JournalComplete".to_owned(),
        lost.is_none(),
        lost.as_ref().map_or("Complete", |(reason, _)| reason),
        lost.as_ref()
            .map_or(String::new(), |(_, message)| message.clone()),
    ));
    let unproven = clock::unproven();
    conditions.push(condition(
        "ClockSane".to_owned(),
        unproven.is_none(),
        if unproven.is_none() {
            "Trusted"
        } else {
            "SetForward"
        },
        unproven.map_or(String::new(), |by| {
            format!(
                "the clock was set forward by {} s; nothing is removed because of that for a day",
                by.as_secs()
            )
        }),
    ));
    if let Some(certificates) = core.door.certificates() {
        let (reason, message) = entrance::judge(&certificates, SystemTime::now());
        conditions.push(condition(
            "CertificatesValid".to_owned(),
            reason == entrance::VALID,
            reason,
            message,
        ));
    }
    let (reason, message) = told_of(&core.current.reading());
    conditions.push(condition(
        "ConfigurationRead".to_owned(),
        reason != REFUSED,
        reason,
        message,
    ));
    let maintenance = core.node.maintenance();
    let schedulable = condition(
        "Schedulable".to_owned(),
        maintenance.is_none(),
        if maintenance.is_none() {
            "TakesGuests"
        } else {
            "Maintenance"
        },
        maintenance
            .as_ref()
            .map_or(String::new(), |maintenance| maintenance.message.clone()),
    );
    conditions.push(ConditionView {
        // Known over a restart.
        since: maintenance.map_or(schedulable.since, |maintenance| maintenance.since),
        ..schedulable
    });
    for pool in pools {
        conditions.push(condition(
            format!("PoolReady/{}", pool.name),
            pool.ready,
            if pool.ready { "Measured" } else { "NotUsable" },
            pool.reason.clone(),
        ));
    }
    for sink in core.sinks.list() {
        conditions.push(condition(
            format!("SinkReady/{}", sink.name),
            sink.connected,
            if sink.connected {
                "Connected"
            } else {
                "NotConnected"
            },
            sink.problem.unwrap_or_default(),
        ));
    }
    conditions
}

/// The reason where the file was refused.
const REFUSED: &str = "Refused";

/// What came of reading the configuration: one word, and in words.
fn told_of(reading: &Reading) -> (&'static str, String) {
    match reading {
        Reading::Read { restart } if restart.is_empty() => ("InUse", String::new()),
        Reading::Read { restart } => (
            "RestartNeeded",
            format!("needs a restart: {}", restart.join(", ")),
        ),
        Reading::Refused { faults } => (
            REFUSED,
            format!(
                "the file has {} and was not read again; the former configuration is in use",
                counted(*faults, "fault", "faults")
            ),
        ),
    }
}

/// What a journal that was made anew does not know, as long as it would matter:
/// one word, and in words.
fn lost_records(core: &Core) -> Option<(&'static str, String)> {
    match core.node.rebuild()? {
        Rebuild::Pending => Some((
            "New",
            "the journal is new, and the host was not looked at yet".to_owned(),
        )),
        Rebuild::Done { unread_pools, .. } if !unread_pools.is_empty() => Some((
            "PoolsUnread",
            format!(
                "the journal was lost and made anew from the host; which images these pools hold is not known yet: {}",
                unread_pools.join(", ")
            ),
        )),
        // By now those that are missing would have been forgotten anyway.
        Rebuild::Done { time, .. } if now().since(time) > core.config.operations.keep => None,
        Rebuild::Done { .. } => Some((
            "Rebuilt",
            "the journal was lost and made anew from the host: earlier operations and request ids, and the names and sources of images, are not known".to_owned(),
        )),
    }
}
