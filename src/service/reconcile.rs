//! Comparing the records with the host: at the start, and whenever libvirt comes
//! back.
//!
//! Each object is one of four: known and present; lost (recorded, and its domain
//! is gone); an orphan (ours by its metadata, but not recorded: told, and left to
//! `service::orphans`); foreign (never touched at all).

use super::core::{Core, Readiness};
use super::domains::observed;
use super::ending;
use super::fault::chain;
use super::gate::Lane;
use super::hypervisor::Observer;
use super::operations::now;
use super::plan::Ended;
use super::secrets;
use super::vms::adopt;
use super::{host_run, images, maintenance, node, orphans, plans, rebuild};
use crate::journal::{Batch, Loaded, Rebuild};
use crate::libvirt::{DomainChange, DomainEvent, DomainState, IoErrorAction};
use crate::model::event::Cause;
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, VmId};
use crate::model::image::{Image, ImageState};
use crate::model::operation::{Intent, Operation};
use crate::model::reason::Reason;
use crate::model::view::View;
use crate::storage::EntryKind;
use async_trait::async_trait;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

/// QEMU's word for a file system or pool that is full.
const NO_SPACE: &str = "enospc";

/// What the journal held, until the first look at the host is done.
pub struct Reconciler {
    core: Arc<Core>,
    loaded: Mutex<Option<Unfinished>>,
}

struct Unfinished {
    vms: Vec<crate::model::vm::Vm>,
    operations: Vec<Operation>,
}

impl Reconciler {
    /// Will compare what the journal held with the host.
    pub fn new(core: Arc<Core>, loaded: Loaded) -> Self {
        core.node.set_rebuild(loaded.rebuild);
        core.node.set_maintenance(loaded.maintenance);
        let unfinished = Unfinished {
            vms: loaded.vms,
            operations: loaded.live_operations,
        };
        Self {
            core,
            loaded: Mutex::new(Some(unfinished)),
        }
    }

    /// Takes in all recorded VMs, so that they can be read; what is unfinished
    /// of them goes on by itself once libvirt is there.
    pub fn adopt_recorded(&self) {
        let Some(loaded) = self
            .loaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            return;
        };
        let core = &self.core;
        let mut unfinished: HashMap<VmId, Operation> = HashMap::new();
        let mut of_images = Vec::new();
        let mut of_orphans = Vec::new();
        let mut of_node = Vec::new();
        for operation in loaded.operations {
            match (operation.vm_id, operation.image_id) {
                (Some(vm), _) => {
                    let goes = match unfinished.remove(&vm) {
                        // Only a forced stop overtakes. Which is the newer, clocks that
                        // are set don't tell.
                        Some(other) if !operation.intent.cuts_power() => {
                            unfinished.insert(vm, other);
                            Some(operation)
                        }
                        other => {
                            unfinished.insert(vm, operation);
                            other
                        }
                    };
                    if let Some(overtaken) = goes {
                        tracing::warn!(operation_id = %overtaken.id, "an overtaken operation is dropped");
                        self.drop_overtaken(overtaken);
                    }
                }
                (None, Some(image)) => of_images.push((image, operation)),
                (None, None) if matches!(operation.intent, Intent::DeleteOrphan { .. }) => {
                    of_orphans.push(operation);
                }
                (None, None) if matches!(operation.intent, Intent::SetMaintenance { .. }) => {
                    of_node.push(operation);
                }
                (None, None) => {
                    tracing::error!(operation_id = %operation.id, "an operation is about nothing");
                }
            }
        }
        for mut vm in loaded.vms {
            let id = vm.id;
            let live = unfinished.remove(&id).map(|operation| {
                plans::claim(&mut vm, &operation);
                core.operations.resume(operation)
            });
            let current = live
                .as_ref()
                .map(|live| (live.id(), live.get().intent.kind()));
            adopt(
                core,
                View {
                    vm: Some(vm),
                    current,
                    away: true,
                    ..View::default()
                },
                id,
                live,
            );
        }
        if matches!(core.node.rebuild(), Some(Rebuild::Done { .. })) {
            core.tasks.spawn(rebuild::read_pools_later(core.clone()));
        }
        for (image, operation) in of_images {
            let live = core.operations.resume(operation);
            images::begin(core, image, live);
        }
        for operation in of_orphans {
            if let Intent::DeleteOrphan { orphan } = operation.intent.clone() {
                orphans::begin(core, &orphan, core.operations.resume(operation));
            }
        }
        for operation in of_node {
            maintenance::resume(core, operation);
        }
    }

    /// Ends what a forced stop had overtaken when the agent ended.
    fn drop_overtaken(&self, overtaken: Operation) {
        let core = self.core.clone();
        tokio::spawn(async move {
            let live = core.operations.resume(overtaken);
            let why = Fault::new(
                Reason::Overtaken,
                "a forced stop took the place of this one",
            );
            if let Some(ended) = ending::ended(&live, &Ended::Cancelled(why)) {
                ending::record(&core, &live, &ended, Batch::new, || ()).await;
            }
        });
    }

    async fn compare(&self) -> Result<(), Fault> {
        let core = &self.core;
        let domains = core.hypervisor.call(Lane::Read, |host| host.list()).await?;
        let domains: HashMap<VmId, DomainState> = domains
            .into_iter()
            .map(|domain| (domain.id, domain))
            .collect();
        if core.node.rebuild() == Some(Rebuild::Pending) {
            rebuild::rebuild(core, &domains).await?;
            if core.node.rebuild().is_some() {
                core.tasks.spawn(rebuild::read_pools_later(core.clone()));
            }
        }
        let mut batch = Batch::new();
        let host_end = host_run::last_end(core);
        if let Some(end) = host_end {
            tracing::warn!(how = ?end.reason, "the host has been started anew");
        }
        let mut known = 0usize;
        for cell in core.vms.cells() {
            // What is foreign under a VM's id is none of the VM's.
            let domain = domains.get(&cell.id).filter(|domain| domain.is_ours());
            known += usize::from(domain.is_some());
            let ended = host_end.is_some_and(|end| cell.end_with_host(end, now()));
            let seen = observed(domain.map(DomainState::sighting));
            if (cell.observe(seen, now()) || ended)
                && let Some(vm) = cell.record()
            {
                let state = vm.seen.resting.as_str();
                tracing::info!(vm_id = %vm.id, state, reason = ?vm.seen.reason, "state changed while away");
                batch = batch.put_vm(&vm);
            }
            // The display's port is read by the worker.
            cell.touch();
            if domain.is_some() {
                core.addresses.want(cell.id);
            }
        }
        let run = host_run::present(core);
        if let Some(run) = &run {
            batch = batch.put_host_run(run);
        }
        if !batch.is_empty() {
            core.ledger.commit(batch).await?;
        }
        if let Some(run) = run {
            host_run::note(core, run);
        }
        let mut foreign = 0u32;
        for (id, domain) in &domains {
            match (&domain.metadata, core.vms.cell(*id)) {
                (Ok(_), Some(_)) if domain.marked => {}
                (Ok(_), Some(_)) => mark(core, *id).await,
                (Ok(_), None) => {
                    tracing::warn!(domain = domain.name, id = %id, "a domain of kvmlet's is in no record");
                }
                (Err(whose), known) => {
                    foreign += 1;
                    if known.is_some() {
                        tracing::warn!(domain = domain.name, vm_id = %id, %whose, "a domain under a VM's id is not kvmlet's");
                    }
                }
            }
        }
        core.node.set_foreign(foreign);
        secrets::give_all(core).await;
        tracing::info!(known, foreign, "every VM was read");
        Ok(())
    }
}

#[async_trait]
impl Observer for Reconciler {
    async fn connected(&self) -> Result<(), Fault> {
        self.compare().await?;
        node::refresh_conditions(&self.core);
        let ready = &self.core.ready;
        ready.send_if_modified(|ready| {
            let takes = *ready != Readiness::Stopping && *ready != Readiness::Ready;
            if takes {
                *ready = Readiness::Ready;
            }
            takes
        });
        Ok(())
    }

    fn away(&self) {
        self.core.ready.send_if_modified(|ready| {
            let falls = *ready == Readiness::Ready;
            if falls {
                *ready = Readiness::HypervisorAway;
            }
            falls
        });
        for cell in self.core.vms.cells() {
            cell.change(|view| view.away = true);
        }
        node::refresh_conditions(&self.core);
    }

    fn event(&self, event: DomainEvent) {
        if let Some(cell) = self.core.vms.cell(event.id) {
            tracing::debug!(vm_id = %event.id, what = ?event.what, "libvirt event");
            if let DomainChange::IoError {
                action: IoErrorAction::Paused,
                reason,
                ..
            } = &event.what
                && reason == NO_SPACE
            {
                cell.note_no_space();
            }
            match &event.what {
                DomainChange::Started(_) => cell.note_start(),
                DomainChange::Panicked => cell.note_panic(),
                DomainChange::Rebooted => cell.tell_restart(),
                _ => {}
            }
            if may_change_definition(&event.what) {
                cell.touch_definition();
            }
            if may_change_addresses(&event.what) {
                self.core.addresses.want(event.id);
            }
            cell.touch();
        }
    }

    fn events_lost(&self) {
        for cell in self.core.vms.cells() {
            cell.touch();
        }
    }
}

/// Whether somebody may have changed the VM's definition or saved its memory.
fn may_change_definition(what: &DomainChange) -> bool {
    matches!(
        what,
        DomainChange::Defined | DomainChange::Undefined | DomainChange::Stopped(_)
    )
}

/// Marks a VM's domain that a version before the mark made. It is ours without, too.
async fn mark(core: &Core, id: VmId) {
    let marked = core
        .hypervisor
        .call(Lane::Control, move |host| host.mark(id))
        .await;
    if let Err(fault) = marked {
        tracing::warn!(vm_id = %id, error = chain(&fault), "a VM's domain is not marked");
    }
}

fn may_change_addresses(what: &DomainChange) -> bool {
    matches!(
        what,
        DomainChange::Started(_)
            | DomainChange::Resumed
            | DomainChange::Rebooted
            | DomainChange::Agent { connected: true }
    )
}

/// Looks whether the files of the recorded images are there, and records those
/// that are gone or back.
pub async fn compare_images(core: &Arc<Core>) {
    // A cluster is asked once for all of them.
    let mut listed: HashMap<String, Option<HashSet<ImageId>>> = HashMap::new();
    for entry in core
        .pools
        .all()
        .iter()
        .filter(|entry| entry.pool.is_shared())
    {
        let name = entry.pool.name();
        let entries = core.pools.call(name, |pool, _| pool.entries()).await;
        let images = entries.ok().map(|entries| {
            let kinds = entries.into_iter().map(|entry| entry.kind);
            kinds
                .filter_map(|kind| match kind {
                    EntryKind::Image(id) => Some(id),
                    EntryKind::Volume(_) | EntryKind::Temporary | EntryKind::Unknown => None,
                })
                .collect()
        });
        listed.insert(name.to_owned(), images);
    }
    for image in core.images.list() {
        let (id, pool) = (image.id, image.pool.clone());
        let state = match image.state {
            ImageState::Ready | ImageState::Lost => {
                let there = match listed.get(&pool) {
                    Some(images) => images.as_ref().map(|images| images.contains(&id)),
                    None => {
                        let found = core.pools.call(&pool, move |pool, _| pool.image(id)).await;
                        found.ok().map(|found| found.is_some())
                    }
                };
                match there {
                    Some(true) => ImageState::Ready,
                    Some(false) => ImageState::Lost,
                    // Not known: left as it is.
                    None => continue,
                }
            }
            ImageState::Importing | ImageState::Deleting => continue,
        };
        if state != image.state {
            tracing::warn!(image_id = %id, ?state, "an image's file is not as recorded");
            let changed = Image { state, ..image };
            core.images.set(&changed, Cause::AGENT);
            if let Err(fault) = core.ledger.commit(Batch::new().put_image(&changed)).await {
                tracing::warn!(error = chain(&fault), "what was seen is not recorded");
            }
        }
    }
}

/// The pools that hold something by the records.
pub fn used_pools(loaded: &Loaded) -> HashSet<String> {
    let volumes = loaded.vms.iter().flat_map(|vm| &vm.volumes);
    let ready = |image: &&Image| image.state == ImageState::Ready;
    volumes
        .map(|volume| volume.pool.clone())
        .chain(
            loaded
                .images
                .iter()
                .filter(ready)
                .map(|image| image.pool.clone()),
        )
        .collect()
}

/// The imports that are unfinished: their downloads are resumed, not swept.
pub fn unfinished_imports(loaded: &Loaded) -> Vec<ImageId> {
    loaded
        .live_operations
        .iter()
        .filter_map(|operation| operation.image_id)
        .collect()
}
