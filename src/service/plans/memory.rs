//! Saving a guest's memory, restoring it, and giving it up.
//!
//! libvirt calls memory saved as soon as its file is there, and a file that was not
//! finished it throws away at the next start, and boots the guest afresh. So a save is
//! done when the file's own header says so; a file that can't be read is not started
//! from; and a guest that was to be restored is looked at before it is let run.

use super::power::{begin_guest, domain, refused};
use crate::libvirt::{
    Begin, FormerPaths, PauseReason, Power, Restore, RunReason, SavedMemory, Sighting,
};
use crate::model::fault::Fault;
use crate::model::lifecycle::Resting;
use crate::model::reason::Reason;
use crate::service::cell::Cell;
use crate::service::drift;
use crate::service::gate::Lane;
use crate::service::plan::{Plan, Run, Step, Undone};
use async_trait::async_trait;
use std::sync::Arc;

pub(super) fn save(cell: Arc<Cell>) -> Plan {
    vec![Box::new(Save { cell })]
}

pub(super) fn discard(cell: Arc<Cell>) -> Plan {
    vec![Box::new(DiscardSaved {
        cell,
        starts: false,
    })]
}

/// Whether a guest was restored, and waits to be let go on.
pub(super) fn is_held(power: Power) -> bool {
    power == Power::Paused(PauseReason::Migration)
}

/// Looks at the file of a VM's saved memory.
async fn saved(run: &Run, cell: &Cell) -> Result<SavedMemory, Fault> {
    let id = cell.id;
    let found = run
        .core
        .hypervisor
        .call(Lane::Read, move |host| host.saved_memory(id))
        .await?;
    if let SavedMemory::Unreadable(why) = &found {
        tracing::warn!(vm_id = %id, error = why, "saved memory can't be read");
    }
    Ok(found)
}

/// What a start does with a guest's saved memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Gives it up, and boots.
    Discard,
    /// Restores it if there is any.
    IfSaved,
    /// Restores it: there was some when the operation began. Without it the guest is not
    /// booted.
    Required,
}

/// Refuses to boot a guest that is known to have saved memory, and has none any more:
/// libvirt tells nobody that it was removed. The VM is looked at again then.
///
/// # Errors
/// `SAVED_MEMORY_UNREADABLE`: nothing runs.
pub(super) fn check_is_there(cell: &Cell, seen: Sighting, memory: Memory) -> Result<(), Fault> {
    let is_missed = match memory {
        Memory::Discard => false,
        Memory::IfSaved => cell.vm()?.seen.resting == Resting::Saved,
        Memory::Required => true,
    };
    if seen.managed_save || !is_missed {
        return Ok(());
    }
    cell.touch();
    Err(is_gone())
}

/// Refuses to change the definition of a guest whose memory somebody has saved: it would
/// be restored with the former definition, and with the former root.
///
/// # Errors
/// `WRONG_STATE`; as any call.
pub(super) async fn check_none(run: &Run, cell: &Cell) -> Result<(), Fault> {
    if !domain(run, cell).await?.managed_save {
        return Ok(());
    }
    Err(Fault::new(
        Reason::WrongState,
        "something else on the host has saved the guest's memory, which belongs to its present definition; start the VM, or give the memory up, and try again",
    )
    .with("instead", "StartVm"))
}

/// Refuses to report a guest as restored if something else on the host has booted it
/// meanwhile. It is left running.
///
/// # Errors
/// `SAVED_MEMORY_UNREADABLE`.
pub(super) fn check_was_restored(power: Power) -> Result<(), Fault> {
    match power {
        Power::Running(RunReason::Booted) => Err(unreadable(
            "something else on the host has started the guest without its saved memory, which is gone",
        )),
        _ => Ok(()),
    }
}

/// Why a VM that was shown SAVED is not started.
pub(in crate::service) fn is_gone() -> Fault {
    unreadable(
        "the VM's saved memory is gone: something else on the host has removed it, or has started the guest with it; the VM is STOPPED now, and boots if it is started again",
    )
}

/// Restores a guest from its saved memory, held. `former` are paths that stand for its
/// volumes in what was saved; without them that is left as it is.
///
/// # Errors
/// `SAVED_MEMORY_UNREADABLE`: nothing runs, and what was there of the file stays if
/// libvirt has left it.
pub(super) async fn restore(
    run: &Run,
    cell: &Cell,
    former: Option<FormerPaths>,
) -> Result<(), Fault> {
    if let SavedMemory::Unreadable(_) = saved(run, cell).await? {
        return Err(unreadable(
            "the file of the VM's saved memory is missing, incomplete or damaged: the VM is not started without it",
        ));
    }
    run.reach("start-guest.restore").await?;
    if run.core.hypervisor.is_simulated() {
        return begin_guest(run, cell, Begin::Running, Restore::IfSaved, Lane::Memory).await;
    }
    if let Some(former) = former {
        drift::bring_saved_up_to_date(&run.core, &cell.vm()?, former).await?;
    }
    // Restoring reads the guest's whole memory.
    begin_guest(run, cell, Begin::Paused, Restore::IfSaved, Lane::Memory).await?;
    run.reach("start-guest.restored").await?;
    if domain(run, cell).await?.power != Power::Paused(PauseReason::Request) {
        return Ok(());
    }
    let id = cell.id;
    run.core
        .hypervisor
        .call(Lane::PowerOff, move |host| host.destroy(id))
        .await?;
    Err(unreadable(
        "the VM's memory could not be restored, and libvirt booted it afresh; it was ended before it ran, and what was in its memory is lost",
    ))
}

fn unreadable(words: &str) -> Fault {
    Fault::new(Reason::SavedMemoryUnreadable, words)
}

/// Lets a guest that was restored go on.
pub(super) async fn let_go_on(run: &Run, cell: &Cell) -> Result<(), Fault> {
    if !is_held(domain(run, cell).await?.power) {
        return Ok(());
    }
    let id = cell.id;
    let answer = run
        .core
        .hypervisor
        .try_call(Lane::Control, move |host| host.resume(id))
        .await?;
    answer.map_err(|error| {
        let words = "the guest was restored, and did not go on";
        refused(&error, Reason::StartFailed, words)
    })
}

/// Gives up the saved memory of a guest.
pub(super) struct DiscardSaved {
    pub(super) cell: Arc<Cell>,
    /// The guest is then started without it.
    pub(super) starts: bool,
}

#[async_trait]
impl Step for DiscardSaved {
    fn name(&self) -> &'static str {
        "discard-saved-memory"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(!domain(run, &self.cell).await?.managed_save)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let id = self.cell.id;
        let done = run
            .core
            .hypervisor
            .call(Lane::Control, move |host| host.discard_managed_save(id))
            .await;
        match done {
            Err(fault) if fault.reason == Reason::HypervisorRefused => {
                // A file that somebody has removed libvirt forgets with a start.
                match saved(run, &self.cell).await? {
                    SavedMemory::Unreadable(_) if self.starts => Ok(()),
                    SavedMemory::Unreadable(_) => Err(unreadable(
                        "the file of the VM's saved memory is not there to be removed; StartVm with discard_saved_memory gives it up",
                    )),
                    SavedMemory::None | SavedMemory::Whole => Err(fault),
                }
            }
            done => done,
        }
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }
}

/// Writes the guest's memory to a file and takes its power.
struct Save {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for Save {
    fn name(&self) -> &'static str {
        "save-memory"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(saved(run, &self.cell).await? == SavedMemory::Whole)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let before = domain(run, &self.cell).await?.power;
        if !before.is_active()
            && matches!(saved(run, &self.cell).await?, SavedMemory::Unreadable(_))
        {
            return Err(Fault::new(
                Reason::SaveFailed,
                "the host or libvirt ended while the guest's memory was written: it is lost",
            )
            .with("problem", "saved_memory_lost"));
        }
        let Err(fault) = self.save(run).await else {
            return self.prove(run).await;
        };
        // Of a saving that was cut off at its end libvirt forgets that the guest
        // was paused before, and QEMU saves it only once it has gone on.
        let now = domain(run, &self.cell).await;
        let goes_on = now.is_ok_and(|domain| matches!(domain.power, Power::Running(_)));
        if !matches!(before, Power::Paused(_)) || !goes_on {
            return Err(fault);
        }
        let id = self.cell.id;
        run.core
            .hypervisor
            .call(Lane::Control, move |host| host.suspend(id))
            .await?;
        self.save(run).await?;
        self.prove(run).await
    }

    /// libvirt lets the guest go on if saving fails.
    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }
}

impl Save {
    async fn save(&self, run: &Run) -> Result<(), Fault> {
        let id = self.cell.id;
        let answer = run
            .core
            .hypervisor
            .try_call(Lane::Memory, move |host| host.managed_save(id))
            .await?;
        let words = "the guest's memory could not be saved; most often libvirt has no room for it";
        answer.map_err(|error| refused(&error, Reason::SaveFailed, words))
    }

    /// Looks at what was written.
    async fn prove(&self, run: &Run) -> Result<(), Fault> {
        match saved(run, &self.cell).await? {
            SavedMemory::Whole => Ok(()),
            SavedMemory::None | SavedMemory::Unreadable(_) => Err(Fault::new(
                Reason::SaveFailed,
                "libvirt has saved the guest's memory, and its file can't be read",
            )
            .with("problem", "saved_memory_lost")),
        }
    }
}
