//! Start, pause, resume, reset, reboot: one step each.

use super::disks;
use super::memory::{self, DiscardSaved, Memory};
use crate::libvirt::{
    Begin, ErrorKind, Host, LibvirtError, PauseReason, Power, RebootMethod, Restore, Sighting,
};
use crate::model::fault::Fault;
use crate::model::ids::VolumeId;
use crate::model::nic::Attachment;
use crate::model::reason::{Code, Reason};
use crate::service::cell::Cell;
use crate::service::drift;
use crate::service::fault::{chain, from_libvirt};
use crate::service::gate::Lane;
use crate::service::hypervisor::AGENT_CALL;
use crate::service::plan::{Plan, Run, Step, Undone};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How often a start that is half done is looked at.
const HALF_DONE: Duration = Duration::from_millis(100);

pub(super) fn start(cell: Arc<Cell>, discard_saved: bool, was_saved: bool) -> Plan {
    let mut plan = Plan::new();
    let memory = if discard_saved {
        plan.push(Box::new(DiscardSaved {
            cell: cell.clone(),
            starts: true,
        }));
        Memory::Discard
    } else if was_saved {
        Memory::Required
    } else {
        Memory::IfSaved
    };
    plan.push(Box::new(StartGuest {
        cell,
        undo_stops: false,
        new_root: None,
        memory,
    }));
    plan
}

pub(super) fn reboot(cell: Arc<Cell>) -> Plan {
    vec![Box::new(Reboot { cell })]
}

pub(super) fn reset(cell: Arc<Cell>) -> Plan {
    vec![Box::new(Reset { cell })]
}

pub(super) fn pause(cell: Arc<Cell>) -> Plan {
    vec![Box::new(Pause { cell })]
}

pub(super) fn resume(cell: Arc<Cell>) -> Plan {
    vec![Box::new(Resume { cell })]
}

/// Looks at the VM's domain.
///
/// # Errors
/// As any call; a domain that is gone is `HYPERVISOR_REFUSED`.
pub(super) async fn domain(run: &Run, cell: &Cell) -> Result<Sighting, Fault> {
    let id = cell.id;
    let found = run
        .core
        .hypervisor
        .call(Lane::Read, move |host| host.look(id))
        .await?;
    found.ok_or_else(|| {
        Fault::new(
            Reason::HypervisorRefused,
            "the VM's domain is not on the host",
        )
    })
}

/// Whether QEMU runs for the VM. A start that is seen half-way is waited for:
/// libvirt ends one that it finds half done when it comes up, so that what it
/// comes to is not known before.
///
/// # Errors
/// As any call; `OUTCOME_UNKNOWN` if the start stays half done.
pub(super) async fn has_power(run: &Run, cell: &Cell) -> Result<bool, Fault> {
    settled(run, cell, |power| {
        power != Power::Paused(PauseReason::StartingUp)
    })
    .await
}

/// Whether a start is done. A QEMU that is ending, as one does whose start libvirt
/// has found half done, is none.
async fn has_started(run: &Run, cell: &Cell) -> Result<bool, Fault> {
    settled(run, cell, |power| {
        power != Power::Paused(PauseReason::StartingUp) && power != Power::ShuttingDown
    })
    .await
}

/// Whether QEMU runs, once the domain is in a state that lasts.
async fn settled(run: &Run, cell: &Cell, lasts: fn(Power) -> bool) -> Result<bool, Fault> {
    let id = cell.id;
    let until = Instant::now() + run.core.config.hypervisor.call_timeout;
    loop {
        let found = run
            .core
            .hypervisor
            .call(Lane::Read, move |host| host.look(id))
            .await?;
        let Some(domain) = found else {
            return Ok(false);
        };
        if lasts(domain.power) {
            return Ok(domain.power.is_active());
        }
        if Instant::now() >= until {
            return Err(Fault::new(
                Reason::OutcomeUnknown,
                "the VM's start or end is half done; whether it will run is not known",
            ));
        }
        tokio::select! {
            // No event tells of the end of a start that fails.
            () = tokio::time::sleep(HALF_DONE) => {}
            () = run.core.stopping.cancelled() => {
                return Err(Fault::new(Reason::Stopping, "the agent is stopping"));
            }
        }
    }
}

/// Starts a guest; one whose memory is saved is restored by libvirt.
pub(super) struct StartGuest {
    pub(super) cell: Arc<Cell>,
    /// Undoing takes the power again: the operation made or switched the disk
    /// that runs.
    pub(super) undo_stops: bool,
    /// The root volume that the operation switches to. A guest that runs on
    /// another was not started by it, and undoing leaves it alone.
    pub(super) new_root: Option<VolumeId>,
    /// What happens to saved memory.
    pub(super) memory: Memory,
}

#[async_trait]
impl Step for StartGuest {
    fn name(&self) -> &'static str {
        "start-guest"
    }

    fn is_point_of_no_return(&self) -> bool {
        !self.undo_stops
    }

    fn holds_earlier(&self) -> bool {
        true
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        if !has_started(run, &self.cell).await? {
            return Ok(false);
        }
        let power = domain(run, &self.cell).await?.power;
        // The simulated driver tells of no restored guest.
        if self.memory == Memory::Required && !run.core.hypervisor.is_simulated() {
            memory::check_was_restored(power)?;
        }
        // A guest that was restored and not yet let go on is not up.
        Ok(!memory::is_held(power))
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let disks = if self.undo_stops {
            Disks::AsRecorded
        } else {
            Disks::AsDefined
        };
        start_guest(run, &self.cell, Begin::Running, self.memory, disks).await
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        if !self.undo_stops || !has_power(run, &self.cell).await? {
            return Ok(Undone::Nothing);
        }
        if self.new_root.is_some() && self.cell.root()? != self.new_root {
            return Ok(Undone::Nothing);
        }
        let id = self.cell.id;
        run.core
            .hypervisor
            .call(Lane::PowerOff, move |host| host.destroy(id))
            .await?;
        Ok(Undone::Something)
    }
}

/// Which disks a guest that is started may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disks {
    /// Those that its domain has, whoever gave them to it.
    AsDefined,
    /// Those of its record, and no others: the operation made or switched one, and
    /// somebody may have put the domain back since.
    AsRecorded,
}

/// Starts the domain.
///
/// # Errors
/// `DOMAIN_DRIFTED` if it has other disks than it may have; as any call.
pub(super) async fn start_guest(
    run: &Run,
    cell: &Cell,
    begin: Begin,
    memory: Memory,
    disks: Disks,
) -> Result<(), Fault> {
    let host = run.core.node.id();
    let seen = domain(run, cell).await?;
    if !memory::is_held(seen.power) {
        let vm = cell.vm()?;
        if disks == Disks::AsRecorded {
            drift::check(&run.core, cell, &vm).await?;
        }
        let former = drift::bring_up_to_date(&run.core, &vm).await?;
        disks::get_ready(run, cell).await?;
        start_networks(run, cell).await?;
        memory::check_is_there(cell, seen, memory)?;
        if !seen.managed_save || memory == Memory::Discard {
            let restore = match memory {
                Memory::Discard => Restore::Never,
                Memory::IfSaved | Memory::Required => Restore::IfSaved,
            };
            begin_guest(run, cell, begin, restore, Lane::Control).await?;
            cell.edit(|vm| vm.last_host_id = Some(host));
            if disks == Disks::AsRecorded {
                // It may have been put back until libvirt read it.
                drift::check(&run.core, cell, &vm).await?;
            }
            return Ok(());
        }
        memory::restore(run, cell, former).await?;
    }
    cell.edit(|vm| vm.last_host_id = Some(host));
    if begin == Begin::Running {
        memory::let_go_on(run, cell).await?;
    }
    Ok(())
}

/// Makes libvirt start the domain.
pub(super) async fn begin_guest(
    run: &Run,
    cell: &Cell,
    begin: Begin,
    restore: Restore,
    lane: Lane,
) -> Result<(), Fault> {
    let id = cell.id;
    let answer = run
        .core
        .hypervisor
        .try_call(lane, move |host| host.start(id, begin, restore))
        .await?;
    answer.map_err(|error| {
        refused(
            &error,
            Reason::StartFailed,
            "the hypervisor could not start the VM",
        )
    })
}

/// Starts libvirt's networks that the guest plugs into: distributions define one and
/// leave it off. What else stands in the way of one, the start of the guest will say.
///
/// # Errors
/// `NETWORK_NOT_FOUND`, naming one that is not on the host; as any call.
async fn start_networks(run: &Run, cell: &Cell) -> Result<(), Fault> {
    let vm = cell.vm()?;
    for nic in &vm.nics {
        let Attachment::LibvirtNetwork { name } = &nic.attachment else {
            continue;
        };
        let network = name.clone();
        let answer = run
            .core
            .hypervisor
            .try_call(Lane::Control, move |host| host.start_network(&network))
            .await?;
        match answer {
            Ok(true) => tracing::info!(network = name, "started libvirt's network for a guest"),
            Ok(false) => {}
            Err(error) if error.kind == ErrorKind::NotFound => {
                let words = format!(
                    "the VM's interface {} is in libvirt's network {name}, which this host does not have",
                    nic.mac
                );
                return Err(Fault::new(Reason::NetworkNotFound, words).with("network", name));
            }
            Err(error) => tracing::debug!(network = name, error = chain(&error), "not started"),
        }
    }
    Ok(())
}

/// An error that has a reason of its own here, unless it is about the link.
pub(super) fn refused(error: &LibvirtError, reason: Reason, words: &str) -> Fault {
    tracing::warn!(error = chain(error), "libvirt call failed");
    let fault = from_libvirt(error);
    match error.kind {
        ErrorKind::Unreachable | ErrorKind::Interrupted | ErrorKind::Busy => fault,
        ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::Foreign
        | ErrorKind::WouldLose
        | ErrorKind::InvalidState
        | ErrorKind::Unsupported
        | ErrorKind::Invalid
        | ErrorKind::NoResources
        | ErrorKind::Denied
        | ErrorKind::AgentUnavailable
        | ErrorKind::Other => Fault::new(reason, format!("{words}: {}", fault.message)),
    }
}

/// Asks the guest to restart itself.
struct Reboot {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for Reboot {
    fn name(&self) -> &'static str {
        "ask-guest-to-reboot"
    }

    async fn is_done(&self, _: &Run) -> Result<bool, Fault> {
        Ok(false)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        if self.agent_takes_it(run).await? {
            return Ok(());
        }
        // An agent that is connected but does not answer is a guest that may still
        // hear its power button.
        self.cell.note_restart_press(run.operation.id());
        let id = self.cell.id;
        let pressed = run
            .core
            .hypervisor
            .call(Lane::Control, move |host| {
                host.reboot(id, RebootMethod::Acpi)
            })
            .await;
        if pressed
            .as_ref()
            .is_err_and(|fault| fault.code() != Code::Unknown)
        {
            self.cell.forget_restart_press();
        }
        pressed
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }

    fn is_repeatable(&self) -> bool {
        false
    }
}

impl Reboot {
    /// Asks the guest's agent, if it is there. libvirt's call lasts until the guest
    /// restarts: an agent that has not refused after a while has been asked.
    async fn agent_takes_it(&self, run: &Run) -> Result<bool, Fault> {
        let (id, hypervisor) = (self.cell.id, &run.core.hypervisor);
        let connected = hypervisor.call(Lane::Read, move |host| host.agent_connected(id));
        if !connected.await? {
            return Ok(false);
        }
        let reboot = move |host: &Host| host.reboot(id, RebootMethod::Agent);
        let Some(mut sent) = hypervisor.signal_agent(id, reboot)? else {
            return Ok(false);
        };
        let Ok(answer) = timeout(AGENT_CALL, sent.answer()).await else {
            tracing::info!("the guest agent was asked to restart the guest, and has not yet");
            return Ok(true);
        };
        match answer? {
            Ok(()) => Ok(true),
            Err(error) if error.kind == ErrorKind::AgentUnavailable => Ok(false),
            Err(error) => {
                tracing::warn!(error = chain(&error), "libvirt call failed");
                Err(from_libvirt(&error))
            }
        }
    }
}

/// Presses the reset button.
struct Reset {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for Reset {
    fn name(&self) -> &'static str {
        "reset-guest"
    }

    async fn is_done(&self, _: &Run) -> Result<bool, Fault> {
        Ok(false)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let id = self.cell.id;
        run.core
            .hypervisor
            .call(Lane::Control, move |host| host.reset(id))
            .await?;
        self.cell.forget_restart_press();
        Ok(())
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }

    fn is_repeatable(&self) -> bool {
        false
    }
}

/// Pauses the guest's vCPUs.
struct Pause {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for Pause {
    fn name(&self) -> &'static str {
        "pause-guest"
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(matches!(
            domain(run, &self.cell).await?.power,
            Power::Paused(_)
        ))
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let id = self.cell.id;
        run.core
            .hypervisor
            .call(Lane::Control, move |host| host.suspend(id))
            .await
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Lets the guest's processors go on.
struct Resume {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for Resume {
    fn name(&self) -> &'static str {
        "resume-guest"
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(matches!(
            domain(run, &self.cell).await?.power,
            Power::Running(_)
        ))
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let id = self.cell.id;
        let answer = run
            .core
            .hypervisor
            .try_call(Lane::Control, move |host| host.resume(id))
            .await?;
        answer.map_err(|error| refused(&error, Reason::ResumeFailed, "the guest did not go on"))?;
        // A disk that is still full stops it again at its next write.
        if matches!(domain(run, &self.cell).await?.power, Power::Paused(_)) {
            return Err(Fault::new(
                Reason::ResumeFailed,
                "the guest went on and was paused again at once",
            ));
        }
        Ok(())
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}
