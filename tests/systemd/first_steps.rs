//! What an administrator does first.

use crate::guest::{self, Guest};
use crate::host::Host;
use crate::support::{PATIENCE, until};
use std::fs;
use std::path::Path;

/// Installs a package the way a person does; nothing may run afterwards.
pub fn install(host: &Host, package: &Path) {
    copy(host, package, "/root/kvmlet.deb");
    host.run("apt-get install -y /root/kvmlet.deb");
    for unit in ["kvmlet.service", "kvmlet.socket"] {
        let state = host.try_run(&format!("systemctl is-active {unit}")).out;
        assert_eq!(state, "inactive", "{unit} was started by its installation");
        let enabled = host.try_run(&format!("systemctl is-enabled {unit}")).out;
        assert_eq!(
            enabled, "disabled",
            "{unit} was enabled by its installation"
        );
    }
    host.run("getent group kvmlet");
    assert_eq!(
        host.run("stat -c '%U:%G %a' /etc/kvmlet/credentials"),
        "root:root 700"
    );
    host.run("man -w kvmlet && man -w 8 kvmlet && man -w 5 kvmlet.toml");
}

/// Puts a file into the system.
pub fn copy(host: &Host, file: &Path, inside: &str) {
    fs::copy(file, host.path(inside)).unwrap();
}

/// Enables the agent, looks at what it tells, and makes a guest with the default pool
/// and libvirt's default network, all with the commands of the README.
pub async fn enable_and_provision(host: &Host) -> Guest {
    host.run("systemctl enable --now kvmlet.socket kvmlet");
    let status = host.run("systemctl status kvmlet kvmlet.socket");
    println!("{status}");
    assert!(status.contains("active (running)"), "{status}");
    // READY came with the first comparison of the host: nothing is to be waited for.
    let api = host.api();
    assert!(api.serving("").await.unwrap());
    let text = host.property("kvmlet", "StatusText");
    assert!(text.contains("VM"), "{text}");

    let node = host.run("kvmlet node");
    assert!(node.contains("LibvirtReady"), "{node}");
    let doctor = host.try_run("kvmlet doctor");
    println!("# kvmlet doctor\n{}", doctor.out);
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    // A user of the group may call, another one may not even connect.
    host.run("useradd --no-create-home --groups kvmlet ann && useradd --no-create-home bob");
    host.run("setpriv --reuid ann --regid ann --init-groups kvmlet vm list");
    let refused = host.try_run("setpriv --reuid bob --regid bob --init-groups kvmlet vm list");
    assert_ne!(refused.code, Some(0), "{refused:?}");

    // As Debian leaves it: defined, and not started.
    let network = host.run("virsh net-info default");
    assert!(network.contains("Active:         no"), "{network}");
    let image = guest::image(host, "acpi", "1");
    host.run(&format!("kvmlet image import {image} --name debian"));
    let vm_id = host.run(
        "kvmlet --quiet vm create web1 --image debian --vcpus 1 --memory 192MiB \
         --nic libvirt=default --start",
    );
    booted(host, &vm_id).await;
    let list = host.run("kvmlet vm list");
    assert!(list.contains("RUNNING"), "{list}");
    // In a control group of its own, out of reach of the agent's unit.
    let scopes = host.run("systemctl list-units --no-legend 'machine-qemu*.scope'");
    assert_eq!(scopes.lines().count(), 1, "{scopes}");
    Guest::remember(host, &vm_id)
}

/// Waits until a guest has come up, as it says itself.
pub async fn booted(host: &Host, vm_id: &str) {
    until("a guest that has booted", PATIENCE, async || {
        guest::console(host, vm_id).contains(" up").then_some(())
    })
    .await;
}
