//! What must hold on a host at every moment at which nothing is at work, whatever
//! died before: in words, and as code.
//!
//! This is the one list. The crash matrix, the kills under load and the random
//! sequences all check all of it.

use super::holdings::{Holdings, RbdImage};
use super::world::{Power, World};
use kvmlet::proto::v1::{
    Image, ImageState, OperationState, OperationType, RollbackState, Vm, VmState, Volume,
    VolumeState,
};
use std::collections::{BTreeMap, BTreeSet};

/// The pool that is made of Ceph pools.
const CEPH: &str = "ceph";

/// Something that must hold.
pub struct Invariant {
    /// In words.
    pub words: &'static str,
    /// As code: each violation.
    pub violations: fn(&World) -> Vec<String>,
}

/// What must hold whenever nothing is at work.
pub const INVARIANTS: &[Invariant] = &[
    Invariant {
        words: "every operation has ended, with a time, and an error if it did not succeed",
        violations: operations_have_ended,
    },
    Invariant {
        words: "no request id belongs to two operations",
        violations: request_ids_are_unique,
    },
    Invariant {
        words: "no undoing has failed",
        violations: undoing_has_not_failed,
    },
    Invariant {
        words: "no operation holds a VM",
        violations: no_vm_is_held,
    },
    Invariant {
        words: "the state of each VM is what libvirt shows of its domain",
        violations: states_are_libvirts,
    },
    Invariant {
        words: "each domain has a record, and each VM that should have a domain has it",
        violations: domains_are_recorded,
    },
    Invariant {
        words: "a domain carries its record's generation and has its record's disks",
        violations: domains_are_as_recorded,
    },
    Invariant {
        words: "the files of the pools are those of the recorded volumes and images, all and no others",
        violations: files_are_as_recorded,
    },
    Invariant {
        words: "the RBD images in the Ceph pools are those of the recorded volumes and images, whole, each in the Ceph pool that its record says, and no others; one that an import made which was undone may stay, because another host may use it",
        violations: rbd_images_are_as_recorded,
    },
    Invariant {
        words: "what is in Ceph's trash is of no record, and goes when its time is over",
        violations: trash_is_of_no_record,
    },
    Invariant {
        words: "nobody has an RBD image open on a simulated host, and nothing is left where imports are fetched",
        violations: nothing_is_open_or_fetched,
    },
    Invariant {
        words: "a VM's tag for its root's Ceph pool names the one that its root is in",
        violations: tags_name_the_roots_pool,
    },
    Invariant {
        words: "no volume belongs to two VMs, and each VM has one root",
        violations: volumes_have_one_owner,
    },
    Invariant {
        words: "a console log belongs to a VM",
        violations: console_logs_are_of_vms,
    },
];

/// Every violation, with the words of what is violated.
pub fn violations(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for invariant in INVARIANTS {
        for violation in (invariant.violations)(world) {
            found.push(format!("violated: {}: {violation}", invariant.words));
        }
    }
    found
}

/// What must hold between two moments: "a VM that no operation was about is as it
/// was, never having lost its power, and no byte of a volume that both moments
/// have was changed".
pub fn violations_between(before: &World, after: &World, about: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (id, domain) in &before.domains {
        if about.contains(&id.as_str()) {
            continue;
        }
        if after.domains.get(id) != Some(domain) {
            found.push(format!(
                "a bystander's domain {id} was {domain:?} and is {:?}",
                after.domains.get(id)
            ));
        }
        let rests = |world: &World| {
            let vm = world.vms.get(id);
            vm.map(|vm| {
                (
                    vm.state(),
                    vm.state_reason(),
                    vm.generation,
                    vm.root_volume_id.clone(),
                )
            })
        };
        if rests(before) != rests(after) {
            found.push(format!(
                "a bystander {id} was {:?} and is {:?}",
                rests(before),
                rests(after)
            ));
        }
    }
    for (file, digest) in &before.files {
        if after.files.get(file).is_some_and(|now| now != digest) {
            found.push(format!("{file} was changed"));
        }
    }
    if let (Some(before), Some(after)) = (&before.ceph, &after.ceph) {
        for (name, was) in &before.images {
            if let Some(is) = after.images.get(name).filter(|is| *is != was) {
                found.push(format!("{name} was {was:?} and is {is:?}"));
            }
        }
    }
    found
}

fn operations_have_ended(world: &World) -> Vec<String> {
    let wrong = world.operations.iter().filter(|operation| {
        let ended = operation.state() >= OperationState::Succeeded;
        let failed = operation.state() > OperationState::Succeeded;
        !ended || operation.end_time.is_none() || failed != operation.error.is_some()
    });
    wrong.map(|operation| format!("{operation:?}")).collect()
}

fn request_ids_are_unique(world: &World) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let asked = world.operations.iter();
    asked
        .filter(|operation| !operation.request_id.is_empty())
        .filter(|operation| !seen.insert(operation.request_id.clone()))
        .map(|operation| operation.id.clone())
        .collect()
}

fn undoing_has_not_failed(world: &World) -> Vec<String> {
    let wrong = world.operations.iter().filter(|operation| {
        matches!(
            operation.rollback_state(),
            RollbackState::Failed | RollbackState::RollingBack
        )
    });
    wrong.map(|operation| format!("{operation:?}")).collect()
}

fn no_vm_is_held(world: &World) -> Vec<String> {
    let held = world.vms.values();
    held.filter(|vm| !vm.current_operation_id.is_empty())
        .map(|vm| format!("{} by {}", vm.id, vm.current_operation_id))
        .collect()
}

fn states_are_libvirts(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for vm in world.vms.values() {
        let domain = world.domains.get(&vm.id);
        let shown = domain.map(|domain| (domain.power, domain.saved));
        let fits = match vm.state() {
            VmState::Running => matches!(shown, Some((Power::Running, _))),
            VmState::Paused => matches!(shown, Some((Power::Paused, _))),
            VmState::Stopped | VmState::Crashed => shown == Some((Power::Off, false)),
            VmState::Saved => shown == Some((Power::Off, true)),
            VmState::Deleted => shown.is_none_or(|(power, _)| power == Power::Off),
            VmState::Failed | VmState::Lost => shown.is_none(),
            _ => false,
        };
        if !fits {
            wrong.push(format!(
                "{} is {:?}, and its domain {shown:?}",
                vm.id,
                vm.state()
            ));
        }
    }
    wrong
}

fn domains_are_recorded(world: &World) -> Vec<String> {
    let unknown = world
        .domains
        .iter()
        .filter(|(id, domain)| domain.generation.is_some() && !world.vms.contains_key(id.as_str()));
    unknown
        .map(|(id, _)| format!("{id} has no record"))
        .collect()
}

fn domains_are_as_recorded(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, domain) in &world.domains {
        let Some(vm) = world.vms.get(id) else {
            continue;
        };
        if domain.generation != Some(vm.generation) {
            wrong.push(format!(
                "{id} has generation {}, its domain {:?}",
                vm.generation, domain.generation
            ));
        }
        let mut disks: Vec<_> = vm
            .volumes
            .iter()
            .filter(|volume| is_attached(volume))
            .collect();
        disks.sort_by_key(|volume| volume.device_index);
        let disks: Vec<_> = disks.iter().map(|volume| disk_of(volume)).collect();
        if disks != domain.disks {
            wrong.push(format!("{id} has {disks:?}, its domain {:?}", domain.disks));
        }
    }
    wrong
}

fn is_attached(volume: &Volume) -> bool {
    volume.state() != VolumeState::Kept
}

/// How a domain names it.
fn disk_of(volume: &Volume) -> String {
    if volume.pool == CEPH {
        format!("rbd:{}", rbd_volume(volume))
    } else {
        format!("{}.qcow2", volume.id)
    }
}

fn rbd_volume(volume: &Volume) -> String {
    format!("{}/vol-{}", volume.ceph_pool, volume.id)
}

fn rbd_image(holdings: &Holdings, image_id: &str) -> String {
    format!("{}/img-{image_id}", holdings.pools.images)
}

fn files_are_as_recorded(world: &World) -> Vec<String> {
    let folder = |pool: &str| if pool == "default" { "pool" } else { "other" }.to_owned();
    let on_ceph = |volume: &&Volume| volume.pool == CEPH;
    let mut wanted = BTreeMap::new();
    for vm in world.vms.values().filter(|vm| has_volumes(vm)) {
        for volume in vm.volumes.iter().filter(|volume| !on_ceph(volume)) {
            let path = format!("{}/volumes/{}.qcow2", folder(&volume.pool), volume.id);
            wanted.insert(path, format!("volume of {}", vm.id));
        }
    }
    let mut allowed = BTreeSet::new();
    for image in world.images.values() {
        let path = |pool: &str| format!("{pool}/images/{}.qcow2", image.id);
        if image.state() == ImageState::Ready && image.pool != CEPH {
            wanted.insert(path(&folder(&image.pool)), "image".to_owned());
        }
        // Copies are a cache.
        allowed.extend([path("pool"), path("other")]);
    }
    let missing = wanted
        .iter()
        .filter(|(path, _)| !world.files.contains_key(*path));
    let missing = missing.map(|(path, what)| format!("{path} ({what}) is missing"));
    let left = world.files.keys().filter(|path| {
        // A data volume that was to stay is kept by design, and told by its name.
        !wanted.contains_key(*path) && !allowed.contains(*path)
    });
    missing
        .chain(left.map(|path| format!("{path} is left over")))
        .collect()
}

fn rbd_images_are_as_recorded(world: &World) -> Vec<String> {
    let volumes = recorded_volumes(world);
    let Some(holdings) = &world.ceph else {
        return volumes
            .map(|volume| format!("{volume:?}, and no Ceph"))
            .collect();
    };
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for volume in volumes {
        let name = rbd_volume(volume);
        let parent = rbd_image(holdings, &volume.image_id);
        let parent = (!volume.image_id.is_empty()).then(|| format!("{parent}@base"));
        let found = holdings.images.get(&name);
        if !found.is_some_and(|found| found.size == volume.size_bytes && found.parent == parent) {
            wrong.push(format!("{volume:?} is {found:?}"));
        }
        known.insert(name);
    }
    for image in recorded_images(world) {
        let name = rbd_image(holdings, &image.id);
        let found = holdings.images.get(&name);
        if !found.is_some_and(|found| found.size == image.virtual_size_bytes && is_whole(found)) {
            wrong.push(format!("{image:?} is {found:?}"));
        }
        known.insert(name);
    }
    let undone = world.operations.iter().filter(|operation| {
        operation.r#type() == OperationType::ImportImage
            && operation.state() > OperationState::Succeeded
    });
    let mut may_stay: BTreeSet<String> = undone
        .map(|operation| rbd_image(holdings, &operation.image_id))
        .collect();
    may_stay.retain(|name| holdings.images.get(name).is_some_and(is_whole));
    let left = holdings.images.keys();
    let left = left.filter(|name| !known.contains(*name) && !may_stay.contains(*name));
    wrong.extend(left.map(|name| format!("{name} is left over")));
    wrong
}

/// The volumes that are in Ceph.
fn recorded_volumes(world: &World) -> impl Iterator<Item = &Volume> {
    let vms = world.vms.values().filter(|vm| has_volumes(vm));
    vms.flat_map(|vm| &vm.volumes)
        .filter(|volume| volume.pool == CEPH)
}

/// The images that are in Ceph.
fn recorded_images(world: &World) -> impl Iterator<Item = &Image> {
    let images = world.images.values();
    images.filter(|image| image.state() == ImageState::Ready && image.pool == CEPH)
}

/// An image is what volumes can be cloned from.
fn is_whole(image: &RbdImage) -> bool {
    image.protected == ["base"] && image.snapshots == 1 && image.parent.is_none()
}

fn trash_is_of_no_record(world: &World) -> Vec<String> {
    let Some(holdings) = &world.ceph else {
        return Vec::new();
    };
    let recorded: BTreeSet<String> = recorded_volumes(world)
        .map(rbd_volume)
        .chain(recorded_images(world).map(|image| rbd_image(holdings, &image.id)))
        .collect();
    let wrong = holdings.trash.iter().filter(|entry| {
        let name = entry.name.rsplit('/').next().unwrap_or_default();
        let ours = name.starts_with("vol-") || name.starts_with("img-");
        !ours || !entry.expires || recorded.contains(&entry.name)
    });
    wrong.map(|entry| format!("{entry:?}")).collect()
}

fn nothing_is_open_or_fetched(world: &World) -> Vec<String> {
    let Some(holdings) = &world.ceph else {
        return Vec::new();
    };
    let images = holdings.images.iter();
    let open = images.filter(|(_, image)| !image.watchers.is_empty());
    open.map(|(name, image)| format!("{name} by {:?}", image.watchers))
        .chain(holdings.scratch.iter().cloned())
        .collect()
}

fn tags_name_the_roots_pool(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for vm in world.vms.values() {
        let root = vm
            .volumes
            .iter()
            .find(|volume| volume.id == vm.root_volume_id);
        let real = root.map(|root| root.ceph_pool.as_str()).unwrap_or_default();
        let tags = vm.system_tags.iter();
        for named in tags.filter_map(|tag| tag.strip_prefix("ceph::rootPoolName::")) {
            if named != real {
                wrong.push(format!(
                    "{} is tagged {named}, its root is in {real:?}",
                    vm.id
                ));
            }
        }
    }
    wrong
}

/// Of a VM that could not be made nothing is left.
fn has_volumes(vm: &Vm) -> bool {
    vm.state() != VmState::Failed
}

fn volumes_have_one_owner(world: &World) -> Vec<String> {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    let mut wrong = Vec::new();
    for vm in world.vms.values() {
        for volume in &vm.volumes {
            if let Some(other) = owners.insert(&volume.id, &vm.id) {
                wrong.push(format!("{} belongs to {other} and to {}", volume.id, vm.id));
            }
        }
        let mut roots = vm.volumes.iter().filter(|volume| {
            is_attached(volume) && volume.device_index == 0 && volume.id == vm.root_volume_id
        });
        if roots.next().is_none() || roots.next().is_some() {
            wrong.push(format!("{} has not one root: {:?}", vm.id, vm.volumes));
        }
    }
    wrong
}

fn console_logs_are_of_vms(world: &World) -> Vec<String> {
    let left = world.consoles.iter();
    left.filter(|id| !world.vms.contains_key(*id))
        .cloned()
        .collect()
}
