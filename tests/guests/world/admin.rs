//! What an administrator does on the host with virsh and qemu-img, and what a VM shows
//! of it.

use super::host::World;
use crate::bench::Guest;
use crate::support::api::id;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs virsh, as an administrator does; it must succeed.
pub fn virsh(world: &World, arguments: &[&str]) -> String {
    try_virsh(world, arguments).unwrap_or_else(|trouble| panic!("virsh {arguments:?}: {trouble}"))
}

/// Runs virsh; what it printed, or what it complained of.
pub fn try_virsh(world: &World, arguments: &[&str]) -> Result<String, String> {
    #[allow(clippy::disallowed_methods)] // what administrators use
    let output = Command::new("virsh")
        .args(["--connect", &world.libvirtd.uri()])
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// Runs qemu-img, as an administrator does; it must succeed.
pub fn qemu_img(arguments: &[&str]) {
    assert!(try_qemu_img(arguments), "qemu-img {arguments:?}");
}

/// Runs qemu-img; whether it succeeded.
pub fn try_qemu_img(arguments: &[&str]) -> bool {
    #[allow(clippy::disallowed_methods)] // what administrators use
    let status = Command::new("qemu-img").args(arguments).status().unwrap();
    status.success()
}

/// Defines a domain that is not kvmlet's.
pub fn define_foreign(world: &World, uuid: &str, name: &str, disk: Option<&Path>) {
    let disk = disk.map_or(String::new(), |path| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk>",
            path.display()
        )
    });
    let xml = format!(
        "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>\
         <memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>\
         <devices>{disk}</devices></domain>"
    );
    define(world, &xml);
}

/// Defines a domain by its XML.
pub fn define(world: &World, xml: &str) {
    let file = world.host.daemon.home().join(format!("{}.xml", id()));
    fs::write(&file, xml).unwrap();
    virsh(world, &["define", file.to_str().unwrap()]);
}

/// The name of a VM's domain.
pub fn domain(vm_id: &str) -> String {
    format!("kvmlet-{vm_id}")
}

/// What a domain's first disk is on, by its definition.
pub fn source(world: &World, domain: &str) -> PathBuf {
    let list = virsh(world, &["domblklist", domain, "--inactive"]);
    let line = list.lines().find(|line| line.trim().starts_with("vda"));
    let source = line.and_then(|line| line.split_whitespace().nth(1));
    PathBuf::from(source.unwrap_or_else(|| panic!("{domain} has no vda: {list}")))
}

/// Waits until a VM has a condition, or none.
pub async fn shows(guest: &Guest, condition: Option<VmConditionType>) -> Vec<String> {
    until(&format!("{condition:?}"), PATIENCE, async || {
        let conditions = guest.vm().await.conditions;
        match (condition, conditions.first()) {
            (None, None) => Some(Vec::new()),
            (Some(wanted), Some(found)) if found.r#type() == wanted => Some(found.details.clone()),
            _ => None,
        }
    })
    .await
}
