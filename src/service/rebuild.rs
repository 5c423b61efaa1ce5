//! A lost journal: its records made anew from the domains and the pools.
//!
//! Every domain of kvmlet's carries its VM's record. When the journal is new, the
//! first look at the host records each of them again, with its real state, and the
//! images that the pools hold. Invariants: no domain, volume or file is changed;
//! all of it is recorded as one, once; what is not certainly a VM's record is told
//! and left alone, for nothing here is guessed. It deliberately does not run on a
//! journal that had records before: a domain that is missing in that one is an
//! orphan.
//!
//! What can't be known stays visible: operations and request ids are gone, a VM's
//! state has the reason JOURNAL_LOST, an image has no name and no source, and the
//! condition JournalComplete is false for a while.

use super::core::Core;
use super::domains::{domain_name, observed};
use super::fault::chain;
use super::images;
use super::operations::now;
use super::repeat::fingerprint;
use super::vms::adopt;
use crate::journal::{Batch, Rebuild};
use crate::libvirt::{DomainState, Foreign};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, OperationId, VmId, VolumeId};
use crate::model::image::{Image, ImageFormat, ImageState};
use crate::model::lifecycle::{Observed, Seen, StateReason, observe};
use crate::model::operation::{Intent, Operation, OperationResult, OperationState, RollbackState};
use crate::model::reason::Reason;
use crate::model::request::ImportImage;
use crate::model::time::Timestamp;
use crate::model::view::View;
use crate::model::vm::{Life, Vm};
use crate::model::volume::VolumeAttachment;
use crate::pace;
use crate::storage::{EntryKind, ImageFile};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;
use uuid::Uuid;

/// Who the operations are by that stand in for those that are lost.
const CALLER: &str = "kvmlet: rebuilt";

/// What was found in a pool.
struct Contents {
    pool: String,
    volumes: HashMap<VolumeId, Bytes>,
    images: Vec<(ImageId, ImageFile, Option<SystemTime>)>,
}

/// Records what the host has of kvmlet's, and takes it in.
///
/// # Errors
/// The journal can't be written: nothing was recorded or taken in, and a repeat
/// begins anew.
pub async fn rebuild(core: &Arc<Core>, domains: &HashMap<VmId, DomainState>) -> Result<(), Fault> {
    let at = now();
    let (mut vms, left_alone) = records(domains, at);
    let used: HashSet<String> = vms
        .iter()
        .flat_map(|vm| &vm.volumes)
        .map(|volume| volume.pool.clone())
        .collect();
    let (pools, unread) = read_pools(core, &used, &bases(&vms)).await;
    for vm in &mut vms {
        compare_volumes(vm, &pools);
    }
    let found = found_images(core, &pools, at);
    let images = found.len();
    let volumes: usize = vms.iter().map(|vm| vm.volumes.len()).sum();
    let any = !vms.is_empty() || images > 0 || left_alone > 0 || !unread.is_empty();
    let state = any.then(|| Rebuild::Done {
        time: at,
        unread_pools: unread.clone(),
    });
    let mut batch = Batch::new().put_rebuild(state.as_ref());
    for vm in &vms {
        batch = batch.put_vm(vm).put_operation(&creation(vm, at));
    }
    let holding: HashSet<String> = used
        .into_iter()
        .chain(found.iter().map(|(image, _)| image.pool.clone()))
        .chain(unread.iter().cloned())
        .collect();
    images::take_in(core, found, batch).await?;
    if any {
        tracing::warn!(
            vms = vms.len(),
            volumes,
            images,
            left_alone,
            unread_pools = ?unread,
            "the journal was lost: its records are made anew from the host"
        );
    }
    for vm in vms {
        let id = vm.id;
        let view = View {
            vm: Some(vm),
            away: true,
            ..View::default()
        };
        adopt(core, view, id, None);
    }
    core.node.set_rebuild(state);
    core.pools.prepare(&holding).await;
    Ok(())
}

/// Takes in the images of the pools that could not be read when the records were
/// made anew, once they can; returns when there are none such, or at the end.
pub async fn read_pools_later(core: Arc<Core>) {
    while let Some(Rebuild::Done { time, unread_pools }) = core.node.rebuild() {
        if unread_pools.is_empty() {
            return;
        }
        let mut still = Vec::new();
        let mut pools = Vec::new();
        let views = core.vms.list();
        let recorded: Vec<Vm> = views.iter().filter_map(|view| view.vm.clone()).collect();
        for name in &unread_pools {
            let usable = core.pools.get(name).map(|entry| entry.measured());
            match usable {
                // It is no longer configured.
                None => {}
                Some(measured) if measured.trouble.is_some() || measured.usage.is_none() => {
                    still.push(name.clone());
                }
                Some(_) => match contents(&core, name, bases(&recorded)).await {
                    Ok(contents) => pools.push(contents),
                    Err(_) => still.push(name.clone()),
                },
            }
        }
        if still.len() < unread_pools.len() {
            let found = found_images(&core, &pools, now());
            let (read, images) = (pools.len(), found.len());
            let state = Rebuild::Done {
                time,
                unread_pools: still,
            };
            let batch = Batch::new().put_rebuild(Some(&state));
            if images::take_in(&core, found, batch).await.is_ok() {
                tracing::info!(pools = read, images, "pools that were away are read now");
                core.node.set_rebuild(Some(state));
                continue;
            }
        }
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep(pace::unread_pools()) => {}
        }
    }
}

/// The records that the domains carry, and how many domains look like kvmlet's
/// and are left alone.
fn records(domains: &HashMap<VmId, DomainState>, at: Timestamp) -> (Vec<Vm>, usize) {
    let mut vms = Vec::new();
    let mut left_alone = 0;
    for domain in domains.values() {
        match record(domain, at) {
            Ok(Some(vm)) => vms.push(vm),
            Ok(None) => {}
            Err(problem) => {
                tracing::warn!(domain = domain.name, id = %domain.id, problem, "a domain is left alone");
                left_alone += 1;
            }
        }
    }
    // A volume of two VMs would be removed under one of them with the other.
    let mut owners: HashMap<VolumeId, usize> = HashMap::new();
    for volume in vms.iter().flat_map(|vm: &Vm| &vm.volumes) {
        *owners.entry(volume.id).or_default() += usize::from(!volume.shareable);
    }
    vms.retain(|vm| {
        let shared = vm.volumes.iter().find(|volume| owners[&volume.id] > 1);
        if let Some(volume) = shared {
            let problem = "another domain's record names the same volume";
            tracing::warn!(vm_id = %vm.id, volume_id = %volume.id, problem, "a domain is left alone");
            left_alone += 1;
        }
        shared.is_none()
    });
    vms.sort_by_key(|vm| vm.id);
    (vms, left_alone)
}

/// The record that a domain carries, with what is seen of it; `None` of a foreign
/// one.
fn record(domain: &DomainState, at: Timestamp) -> Result<Option<Vm>, &'static str> {
    let metadata = match &domain.metadata {
        Ok(metadata) => metadata,
        Err(Foreign::CopyOf(_)) => return Err("its metadata is another VM's: it is a copy"),
        // Its agent knows what it is.
        Err(Foreign::Agent(_)) => return Ok(None),
        Err(Foreign::Unmarked) if domain.name == domain_name(domain.id) => {
            return Err("it has kvmlet's name, and no metadata that can be read");
        }
        Err(Foreign::Unmarked) => return Ok(None),
    };
    let written: Value =
        serde_json::from_str(&metadata.record).map_err(|_| "its record can't be read")?;
    let vm = Vm::deserialize(&written)
        .map_err(|_| "its record can't be understood: damaged, or of another version")?;
    let understood = serde_json::to_value(&vm).map_err(|_| "its record can't be written again")?;
    if !covers(&understood, &written) {
        // Recorded again without them, and written into the domain by the next
        // change, those values would be gone.
        return Err("its record has what this version doesn't know: it is of a newer one");
    }
    if vm.id != domain.id || vm.generation != metadata.generation {
        return Err("its record contradicts the rest of its metadata");
    }
    let seen = first_sight(observed(Some(domain.sighting())));
    let life = match vm.life {
        // Its creation was cut off after the domain was defined. Power is only
        // given to what is whole.
        Life::Making if seen.resting.has_power() => Life::Present,
        Life::Making => Life::Failed,
        // All of it may still be there, and it is the caller's again to say.
        life @ (Life::Present | Life::Failed | Life::Deleted { .. } | Life::Expunging) => life,
    };
    Ok(Some(Vm {
        seen,
        life,
        update_time: at,
        ..vm
    }))
}

/// What is seen of a domain of which nothing was seen before. What libvirt gives
/// as the cause may as well have been one of the lost operations.
fn first_sight(found: Observed) -> Seen {
    let seen = observe(Seen::NOTHING, found);
    let reason = match seen.reason {
        StateReason::None
        | StateReason::Operation
        | StateReason::GuestShutdown
        | StateReason::Destroyed
        | StateReason::PausedOnHost
        | StateReason::StartedOnHost
        | StateReason::HostShutdown
        | StateReason::HostPowerLoss
        | StateReason::HostRestarted
        | StateReason::JournalLost => StateReason::JournalLost,
        // QEMU's own doing, whoever asked for what.
        StateReason::Crashed
        | StateReason::StartFailed
        | StateReason::IoError
        | StateReason::NoSpace
        | StateReason::HypervisorBusy
        | StateReason::DomainMissing
        | StateReason::HypervisorAway
        | StateReason::CreateFailed
        | StateReason::Deleted => seen.reason,
    };
    Seen { reason, ..seen }
}

/// Whether everything that `part` says is in `whole`, too.
fn covers(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().all(|(key, value)| {
            whole
                .get(key)
                .map_or(value.is_null(), |found| covers(found, value))
        }),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len()
                && whole
                    .iter()
                    .zip(part)
                    .all(|(whole, part)| covers(whole, part))
        }
        (whole, part) => whole == part,
    }
}

/// The images that the VMs' volumes are made from.
fn bases(vms: &[Vm]) -> HashSet<ImageId> {
    let volumes = vms.iter().flat_map(|vm| &vm.volumes);
    volumes.filter_map(|volume| volume.image_id).collect()
}

/// What is in each pool that can be read, and the names of those that can't. Of a
/// shared pool only `bases` are looked for: what else is in it, other hosts may have
/// made, and a host that is new has lost nothing.
async fn read_pools(
    core: &Core,
    used: &HashSet<String>,
    bases: &HashSet<ImageId>,
) -> (Vec<Contents>, Vec<String>) {
    let (mut read, mut unread) = (Vec::new(), Vec::new());
    for entry in core.pools.all() {
        let name = entry.pool.name();
        if entry.pool.is_shared() && bases.is_empty() {
            continue;
        }
        let made = core.pools.call(name, |pool, _| Ok(pool.is_made())).await;
        match made {
            // It was never used, and is made when this is over.
            Ok(false) if !used.contains(name) => {}
            Ok(true) => match contents(core, name, bases.clone()).await {
                Ok(contents) => read.push(contents),
                Err(_) => unread.push(name.to_owned()),
            },
            Ok(false) | Err(_) => unread.push(name.to_owned()),
        }
    }
    (read, unread)
}

async fn contents(core: &Core, name: &str, bases: HashSet<ImageId>) -> Result<Contents, Fault> {
    core.pools
        .call(name, move |pool, _| {
            let mut contents = Contents {
                pool: pool.name().to_owned(),
                volumes: HashMap::new(),
                images: Vec::new(),
            };
            if pool.is_shared() {
                for id in bases {
                    let file = pool.image(id)?;
                    contents.images.extend(file.map(|file| (id, file, None)));
                }
                return Ok(contents);
            }
            for entry in pool.entries()? {
                match entry.kind {
                    EntryKind::Volume(id) => {
                        contents.volumes.insert(id, entry.actual_size);
                    }
                    EntryKind::Image(id) => match pool.image(id) {
                        Ok(Some(file)) => contents.images.push((id, file, entry.modified)),
                        Ok(None) => {}
                        Err(error) => {
                            tracing::warn!(image_id = %id, error = chain(&error), "an image is left alone");
                        }
                    },
                    EntryKind::Temporary | EntryKind::Unknown => {}
                }
            }
            Ok(contents)
        })
        .await
}

/// Compares the volumes of a record with the pools that could be read.
fn compare_volumes(vm: &mut Vm, pools: &[Contents]) {
    let id = vm.id;
    vm.volumes.retain_mut(|volume| {
        if volume.ceph_pool.is_some() {
            // Whoever needs it looks for it; the lists of a shared pool are long.
            return true;
        }
        let Some(contents) = pools.iter().find(|found| found.pool == volume.pool) else {
            // Not known, so it is not declared missing.
            return true;
        };
        match (contents.volumes.get(&volume.id), volume.attachment) {
            (Some(actual_size), _) => {
                volume.actual_size = *actual_size;
                true
            }
            (None, VolumeAttachment::Attached { .. }) => {
                tracing::warn!(vm_id = %id, volume_id = %volume.id, pool = volume.pool, "a volume is not in its pool");
                true
            }
            // It has had its time: the domain is not told of that.
            (None, VolumeAttachment::Kept { .. }) => {
                tracing::info!(vm_id = %id, volume_id = %volume.id, "a former root is gone already");
                false
            }
        }
    });
}

/// The images in the pools, each once, with the operation that stands in for the
/// one that imported it.
fn found_images(core: &Core, pools: &[Contents], at: Timestamp) -> Vec<(Image, Operation)> {
    let default = core.pools.default_pool().pool.name();
    let mut found: BTreeMap<ImageId, (Image, Operation)> = BTreeMap::new();
    // Which pool holds it and which has a copy is not known; the default pool is
    // where imports go that name none.
    let (first, others): (Vec<&Contents>, Vec<&Contents>) =
        pools.iter().partition(|contents| contents.pool == default);
    for contents in first.into_iter().chain(others) {
        for (id, file, modified) in &contents.images {
            found
                .entry(*id)
                .or_insert_with(|| found_image(*id, contents, *file, *modified, at));
        }
    }
    found.into_values().collect()
}

fn found_image(
    id: ImageId,
    contents: &Contents,
    file: ImageFile,
    modified: Option<SystemTime>,
    at: Timestamp,
) -> (Image, Operation) {
    let imported_by = OperationId(Uuid::now_v7());
    let pool = &contents.pool;
    let image = Image {
        id,
        name: id.to_string(),
        description: format!(
            "Found in the pool {pool} after the journal was lost. Its name, labels, source, checksum and time of import are not known."
        ),
        labels: BTreeMap::new(),
        os: String::new(),
        platform: String::new(),
        state: ImageState::Ready,
        pool: pool.clone(),
        source: String::new(),
        source_format: ImageFormat::Qcow2,
        source_sha256: String::new(),
        virtual_size: file.virtual_size,
        actual_size: file.actual_size,
        create_time: modified.map_or(at, Timestamp::from_system),
        imported_by,
        last_use_time: None,
    };
    let import = ImportImage {
        image_id: None,
        name: String::new(),
        description: String::new(),
        labels: BTreeMap::new(),
        source: String::new(),
        format: ImageFormat::Qcow2,
        sha256: None,
        pool: None,
        os: String::new(),
        platform: String::new(),
    };
    let request = fingerprint(&json!({
        "rebuilt": true,
        "request": { "call": "import_image", "import": &import },
    }));
    let operation = Operation {
        image_id: Some(id),
        result: Some(OperationResult::Image(Box::new(image.clone()))),
        ..stand_in(
            imported_by,
            Intent::ImportImage {
                import: Box::new(import),
            },
            request.unwrap_or_default(),
            (image.create_time, at),
        )
    };
    (image, operation)
}

/// What stands in for the lost operation that created a VM, so that CreateVm
/// with the same id and spec still finds one.
fn creation(vm: &Vm, at: Timestamp) -> Operation {
    let intent = Intent::CreateVm {
        start: vm.created_as.start,
    };
    let request = json!({
        "rebuilt": true,
        "request": { "call": "create_vm" },
    });
    let operation = Operation {
        vm_id: Some(vm.id),
        result: Some(OperationResult::Vm(Box::new(vm.clone()))),
        ..stand_in(vm.created_by, intent, request, (vm.create_time, at))
    };
    if vm.life != Life::Failed {
        return operation;
    }
    Operation {
        state: OperationState::Failed,
        rollback: RollbackState::Failed,
        progress_percent: 0,
        error: Some(Fault::new(
            Reason::OutcomeUnknown,
            "the journal was lost while the VM was being created",
        )),
        ..operation
    }
}

fn stand_in(
    id: OperationId,
    intent: Intent,
    request: Value,
    (begin, end): (Timestamp, Timestamp),
) -> Operation {
    Operation {
        id,
        vm_id: None,
        image_id: None,
        intent,
        state: OperationState::Succeeded,
        rollback: RollbackState::None,
        steps: Vec::new(),
        progress_percent: 100,
        request_id: None,
        request,
        caller: CALLER.to_owned(),
        create_time: begin,
        start_time: None,
        end_time: Some(end.max(begin)),
        error: None,
        result: None,
        power_outcome: None,
        cancelled: None,
        trace: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_version_adds_is_seen_and_what_an_earlier_one_lacks_is_not() {
        let known = json!({"name": "a", "qos": {"iops": 0}, "nics": [{"mtu": null}], "new": ""});
        assert!(covers(&known, &known));
        let earlier = json!({"name": "a", "nics": [{"mtu": null}]});
        assert!(covers(&known, &earlier));
        assert!(covers(&known, &json!({"name": "a", "gone": null})));
        for later in [
            json!({"name": "a", "later": 1}),
            json!({"name": "b"}),
            json!({"qos": {"iops": 0, "burst": 5}}),
            json!({"nics": [{"mtu": null}, {"mtu": null}]}),
        ] {
            assert!(!covers(&known, &later), "{later}");
        }
    }

    #[test]
    fn no_one_is_said_to_have_done_what_an_operation_may_have_done() {
        for found in Observed::ALL {
            let seen = first_sight(found);
            assert!(
                matches!(
                    seen.reason,
                    StateReason::JournalLost
                        | StateReason::Crashed
                        | StateReason::IoError
                        | StateReason::NoSpace
                        | StateReason::HypervisorBusy
                        | StateReason::DomainMissing
                ),
                "{found:?}: {seen:?}"
            );
            // The look that follows finds nothing new.
            assert_eq!(observe(seen, found), seen, "{found:?}");
        }
    }
}
