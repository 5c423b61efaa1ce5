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
use crate::libvirt::{Definition, Differences, FormerPaths, SavedMemory};
use crate::model::fault::Fault;
use crate::model::lifecycle::Resting;
use crate::model::reason::Reason;
use crate::model::view::Condition;
use crate::model::vm::{Life, Vm};

/// What a VM's domain is defined as.
pub(super) struct Found {
    /// The definition.
    pub(super) definition: Definition,
    /// The paths in it that stand for volumes which their pool has elsewhere now.
    pub(super) former: FormerPaths,
}

/// Reads what a VM's domain is defined as; `None` if there is no such domain. Volumes are
/// looked for by `records`.
///
/// # Errors
/// As any call; nothing is changed.
pub(super) async fn read(core: &Core, records: &[&Vm]) -> Result<Option<Found>, Fault> {
    let Some(id) = records.first().map(|vm| vm.id) else {
        return Ok(None);
    };
    let found = core
        .hypervisor
        .call(Lane::Read, move |host| host.definition(id))
        .await?;
    let Some(definition) = found else {
        return Ok(None);
    };
    let mut former = FormerPaths::default();
    for vm in records {
        let disks = vm.disks();
        for (at, path) in definition.elsewhere(&domains::spec(core, vm)?) {
            let (place, asked) = (disks[at].reference(), path.clone());
            let was_there = core
                .pools
                .call(&disks[at].pool, move |pool, _| pool.was_at(&place, &asked));
            if was_there.await? {
                former.0.insert(path);
            }
        }
    }
    Ok(Some(Found { definition, former }))
}

/// How a VM's domain differs from its record; `None` if there is no such domain.
///
/// # Errors
/// As any call; nothing is changed.
pub(super) async fn find(core: &Core, vm: &Vm) -> Result<Option<Differences>, Fault> {
    let expected = domains::spec(core, vm)?;
    let found = read(core, &[vm]).await?;
    Ok(found.map(|found| found.definition.differences(&expected, &found.former)))
}

/// Brings the host's own settings up to date in a VM's definition, which its next start
/// uses. Returns the paths that stand for its volumes; `None` for a domain that somebody
/// has given other disks, which is left as it is: it starts with these.
///
/// # Errors
/// `DOMAIN_DRIFTED` if a volume is in its pool, and the domain names another file that
/// has its name in another folder: which of them is meant is not known. As any call.
pub(super) async fn bring_up_to_date(core: &Core, vm: &Vm) -> Result<Option<FormerPaths>, Fault> {
    let Some(found) = read(core, &[vm]).await? else {
        return Ok(None);
    };
    let expected = domains::spec(core, vm)?;
    let Found { definition, former } = found;
    let differences = definition.differences(&expected, &former);
    let mut elsewhere = definition.elsewhere(&expected).into_iter();
    if elsewhere.any(|(_, path)| !former.0.contains(&path)) {
        return Err(refusal(&differences));
    }
    if !differences.of_data.is_empty() {
        return Ok(None);
    }
    let paths = former.clone();
    let changed = core
        .hypervisor
        .call(Lane::Control, move |host| {
            host.update_places(&definition, &paths, &expected)
        })
        .await?;
    if changed {
        tracing::info!(vm_id = %vm.id, "the VM's definition has the host's present settings now");
    }
    Ok(Some(former))
}

/// Does the same in the definition that a VM's memory was saved with.
///
/// # Errors
/// As any call; nothing is changed.
pub(super) async fn bring_saved_up_to_date(
    core: &Core,
    vm: &Vm,
    former: FormerPaths,
) -> Result<(), Fault> {
    let expected = domains::spec(core, vm)?;
    let changed = core
        .hypervisor
        .call(Lane::Control, move |host| {
            host.update_saved(&former, &expected)
        })
        .await?;
    if changed {
        tracing::info!(vm_id = %vm.id, "the VM's saved definition has the host's present settings now");
    }
    Ok(())
}

/// Looks for what is not as it should be with a VM, and notes it.
pub(super) async fn examine(core: &Core, cell: &Cell) {
    let Some(vm) = cell.record() else { return };
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

/// Refuses what would give the guest other data than it has now. Returns whether there
/// is a domain.
///
/// # Errors
/// `DOMAIN_DRIFTED` with the differences; as any call.
pub(super) async fn check(core: &Core, cell: &Cell, vm: &Vm) -> Result<bool, Fault> {
    let Some(differences) = find(core, vm).await? else {
        return Ok(false);
    };
    cell.note(Condition::Drifted, differences.all().cloned().collect());
    if differences.of_data.is_empty() {
        Ok(true)
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
