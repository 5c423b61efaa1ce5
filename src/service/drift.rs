//! Whether a VM's domain is as its record says, before something relies on that.
//!
//! Somebody else is on the host: a snapshot puts a file over a disk, an older definition
//! is put back, a merge is at work. Whatever would give the guest other data than it has
//! now refuses then, before it has begun, and names what differs.

use super::cell::Cell;
use super::core::Core;
use super::domains;
use super::fault::chain;
use super::gate::Lane;
use crate::libvirt::{Differences, SavedMemory};
use crate::model::fault::Fault;
use crate::model::lifecycle::Resting;
use crate::model::reason::Reason;
use crate::model::view::Condition;
use crate::model::vm::{Life, Vm};

/// How a VM's domain differs from its record; `None` if there is no such domain.
///
/// # Errors
/// As any call; nothing is changed.
pub(super) async fn find(core: &Core, vm: &Vm) -> Result<Option<Differences>, Fault> {
    let (id, expected) = (vm.id, domains::spec(core, vm)?);
    let found = core
        .hypervisor
        .call(Lane::Read, move |host| host.definition(id))
        .await?;
    Ok(found.map(|found| found.differences(&expected)))
}

/// Looks for what is not as it should be with a VM, and notes it.
pub(super) async fn examine(core: &Core, cell: &Cell) {
    let Ok(vm) = cell.vm() else { return };
    match conditions(core, &vm).await {
        Ok(conditions) => {
            for (condition, details) in conditions {
                if !details.is_empty() && !cell.view().conditions.contains_key(&condition) {
                    tracing::warn!(vm_id = %vm.id, ?condition, ?details, "a VM is not as it should be");
                }
                cell.note(condition, details);
            }
        }
        Err(fault) => {
            // It is looked at again with the next sweep.
            tracing::debug!(vm_id = %vm.id, error = chain(&fault), "a VM could not be examined");
        }
    }
}

/// Each condition with what it consists in: nothing if it does not hold.
async fn conditions(core: &Core, vm: &Vm) -> Result<[(Condition, Vec<String>); 3], Fault> {
    let id = vm.id;
    let (mut drifted, mut foreign, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    if vm.seen.resting == Resting::Lost || vm.life == Life::Failed {
        let found = core
            .hypervisor
            .call(Lane::Read, move |host| host.get(id))
            .await?;
        foreign.extend(
            found
                .and_then(|domain| domain.metadata.err())
                .map(|whose| whose.to_string()),
        );
    } else if matches!(vm.life, Life::Present | Life::Deleted { .. })
        && let Some(differences) = find(core, vm).await?
    {
        drifted.extend(differences.all().cloned());
    }
    if vm.seen.resting == Resting::Saved {
        let saved = core
            .hypervisor
            .call(Lane::Read, move |host| host.saved_memory(id))
            .await?;
        if let SavedMemory::Unreadable(_) = saved {
            let words = "the file of its saved memory is missing, incomplete or damaged";
            memory.push(words.to_owned());
        }
    }
    Ok([
        (Condition::Drifted, drifted),
        (Condition::DomainForeign, foreign),
        (Condition::SavedMemoryUnreadable, memory),
    ])
}

/// Refuses what would give the guest other data than it has now.
///
/// # Errors
/// `DOMAIN_DRIFTED` with the differences; as any call.
pub(super) async fn check(core: &Core, cell: &Cell, vm: &Vm) -> Result<(), Fault> {
    let Some(differences) = find(core, vm).await? else {
        return Ok(());
    };
    cell.note(Condition::Drifted, differences.all().cloned().collect());
    if differences.of_data.is_empty() {
        Ok(())
    } else {
        Err(refusal(&differences))
    }
}

/// The refusal that names what differs.
pub(super) fn refusal(differences: &Differences) -> Fault {
    let list = differences.of_data.join("; ");
    Fault::new(
        Reason::DomainDrifted,
        format!("the VM's domain is not as kvmlet left it, and is left as it is: {list}"),
    )
    .with("differences", list)
}
