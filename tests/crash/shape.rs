//! What an operation leaves of what it is about, in a form that two runs can be
//! compared in: without times, and with ids by what they are.

use super::scenario::Prepared;
use crate::support::world::World;
use std::fmt::Write;

/// The VM, the image and the stray volume that an operation is about, as they are now.
pub fn shape(world: &World, prepared: &Prepared) -> String {
    let mut text = String::new();
    if let Some(id) = &prepared.vm {
        vm(&mut text, world, id);
    }
    if let Some(id) = &prepared.image {
        let image = world.images.get(id);
        let image = image.map(|image| (image.state(), image.virtual_size_bytes, &image.pool));
        writeln!(text, "image {image:?}, files {:?}", files(world, id)).unwrap();
        writeln!(text, "{CLUSTER} {:?}", rbd_images(world, id)).unwrap();
    }
    writeln!(text, "maintenance {:?}", world.maintenance).unwrap();
    if let Some(id) = &prepared.stray {
        writeln!(text, "files {:?}", files(world, id)).unwrap();
    }
    for (id, name) in &prepared.names {
        text = text.replace(id.as_str(), name);
    }
    let text = without_ids(&text);
    // Those of volumes are in the order of their ids, which means nothing.
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n") + "\n"
}

/// How the line begins that tells what the cluster has of an image.
const CLUSTER: &str = "in the cluster";

/// The same, without what the cluster has of an image.
pub fn without_cluster(shape: &str) -> Vec<&str> {
    let lines = shape.lines();
    lines.filter(|line| !line.starts_with(CLUSTER)).collect()
}

/// The RBD images that have an id in their names, and whether they are in the trash.
fn rbd_images<'a>(world: &'a World, id: &str) -> Vec<(&'a str, &'static str)> {
    let Some(holdings) = &world.ceph else {
        return Vec::new();
    };
    let images = holdings.images.keys().map(|name| (name.as_str(), "image"));
    let trash = holdings.trash.iter();
    let trash = trash.map(|entry| (entry.name.as_str(), "trash"));
    images
        .chain(trash)
        .filter(|(name, _)| name.contains(id))
        .collect()
}

/// The files that have an id in their names.
fn files<'a>(world: &'a World, id: &str) -> Vec<&'a String> {
    let files = world.files.keys();
    files.filter(|file| file.contains(id)).collect()
}

fn vm(text: &mut String, world: &World, id: &str) {
    let domain = world.domains.get(id);
    let domain = domain.map(|domain| (domain.power, domain.saved, &domain.disks));
    writeln!(text, "domain {domain:?}").unwrap();
    let Some(vm) = world.vms.get(id) else {
        writeln!(text, "no VM").unwrap();
        return;
    };
    writeln!(
        text,
        "vm {:?} {:?} {:?} generation {} image {} root {}",
        vm.state(),
        vm.state_reason(),
        vm.name,
        vm.generation,
        vm.image_id,
        vm.root_volume_id
    )
    .unwrap();
    writeln!(text, "hardware {:?}", vm.hardware).unwrap();
    writeln!(text, "tags {:?}", vm.system_tags).unwrap();
    writeln!(text, "nics {:?} vnc {:?}", vm.nics, vm.vnc).unwrap();
    for volume in &vm.volumes {
        writeln!(
            text,
            "volume {} {:?} {:?} at {} in {} {:?} of {} bytes from {}",
            volume.id,
            volume.kind(),
            volume.state(),
            volume.device_index,
            volume.pool,
            volume.ceph_pool,
            volume.size_bytes,
            volume.image_id
        )
        .unwrap();
    }
    let deleted = vm.delete_time.is_some();
    let expunged = vm.expunge_time.is_some();
    writeln!(text, "deleted {deleted}, will be expunged {expunged}").unwrap();
}

/// Replaces each UUID, which differs in each run.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let word = rest
            .get(..36)
            .filter(|word| uuid::Uuid::try_parse(word).is_ok());
        match word {
            Some(_) => {
                out.push_str("<new>");
                rest = &rest[36..];
            }
            None => {
                out.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    out
}
