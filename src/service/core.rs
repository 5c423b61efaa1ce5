//! All parts of the service, in one place that can be shared.

use super::addresses::Addresses;
use super::current::Current;
use super::feed::Feed;
use super::gate::Gate;
use super::host_run;
use super::hypervisor::Hypervisor;
use super::images::Images;
use super::ledger::Ledger;
use super::node::NodeIdentity;
use super::operations::Operations;
use super::orphans::Orphans;
use super::pools::Pools;
use super::sinks::Board;
use super::vms::Vms;
use crate::config::Config;
use crate::door::Door;
use crate::model::fault::Fault;
use crate::model::reason::Reason;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Whether the agent takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It has not yet compared its records with the host.
    Starting,
    /// It takes requests.
    Ready,
    /// libvirt is away: reads are answered, changes refused.
    HypervisorAway,
    /// It is stopping.
    Stopping,
}

/// All parts of the service.
pub struct Core {
    /// What was configured at the start; what changes since is in `current`.
    pub config: Config,
    /// What of the configuration can change.
    pub current: Current,
    /// Who may come in.
    pub door: Arc<Door>,
    /// The gate for calls that block.
    pub gate: Arc<Gate>,
    /// The link to libvirt.
    pub hypervisor: Arc<Hypervisor>,
    /// The pools.
    pub pools: Pools,
    /// The journal.
    pub ledger: Arc<Ledger>,
    /// Every change, as an event.
    pub feed: Arc<Feed>,
    /// Operations.
    pub operations: Operations,
    /// VMs.
    pub vms: Vms,
    /// Guests that should be asked for their addresses.
    pub addresses: Addresses,
    /// Images.
    pub images: Images,
    /// Removals of what is in no record.
    pub orphans: Orphans,
    /// Whom the agent reports to, and how they fare.
    pub sinks: Board,
    /// This host.
    pub node: NodeIdentity,
    /// The last known run of the host's kernel.
    pub host_run: host_run::Known,
    /// Cancelled when the agent stops: plans halt between steps.
    pub stopping: CancellationToken,
    /// The tasks that must have ended before the agent does.
    pub tasks: TaskTracker,
    /// Whether requests are taken.
    pub ready: watch::Sender<Readiness>,
}

impl Core {
    /// Whether requests are taken, now and later.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.ready.subscribe()
    }

    /// Refuses what would change something while the agent starts or stops.
    ///
    /// # Errors
    /// `STARTING`, `STOPPING`.
    pub fn check_takes_requests(&self) -> Result<(), Fault> {
        match *self.ready.borrow() {
            // With libvirt away, each VM refuses for itself.
            Readiness::Ready | Readiness::HypervisorAway => Ok(()),
            Readiness::Starting => Err(Fault::new(
                Reason::Starting,
                "the agent has not finished its first look at the host",
            )),
            Readiness::Stopping => Err(Fault::new(Reason::Stopping, "the agent is stopping")),
        }
    }
}
