//! A guest that must not notice anything.

use crate::host::{Host, outside, project};
use std::fs;

/// A running guest, and by what it is known to be the same.
#[derive(Debug, Clone)]
pub struct Guest {
    pub vm_id: String,
    identity: String,
}

impl Guest {
    /// Remembers a VM that has power.
    pub fn remember(host: &Host, vm_id: &str) -> Self {
        Self {
            vm_id: vm_id.to_owned(),
            identity: identity(host, vm_id),
        }
    }

    /// Panics unless the same QEMU runs the same boot of the guest.
    pub fn is_untouched(&self, host: &Host) {
        assert_eq!(identity(host, &self.vm_id), self.identity);
        let state = host.run(&format!("virsh domstate {}", domain(&self.vm_id)));
        assert_eq!(state.trim(), "running");
        assert_eq!(self.boots(host), 1, "the guest was booted again");
    }

    /// How often it came up, as it says itself.
    fn boots(&self, host: &Host) -> usize {
        console(host, &self.vm_id).matches(" up").count()
    }
}

/// The name of a VM's domain.
pub fn domain(vm_id: &str) -> String {
    format!("kvmlet-{vm_id}")
}

/// QEMU's process, with the time of its start.
fn identity(host: &Host, vm_id: &str) -> String {
    host.run(&format!(
        "awk '{{print $1, $2, $22}}' /proc/$(cat /run/libvirt/qemu/{}.pid)/stat",
        domain(vm_id)
    ))
}

/// What the guest wrote on its serial console.
pub fn console(host: &Host, vm_id: &str) -> String {
    host.try_run(&format!("cat /var/lib/kvmlet/console/{vm_id}.log"))
        .out
}

/// Builds a guest's image and puts it where it may be imported from; its path inside.
pub fn image(host: &Host, kind: &str, version: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.qcow2");
    let script = project().join("tests/guest/build");
    let arguments = ["--kind", kind, "--version", version, "--out"];
    let mut arguments = arguments.to_vec();
    arguments.push(file.to_str().unwrap());
    outside(script.to_str().unwrap(), &arguments);
    let inside = format!("/var/lib/kvmlet/import/{kind}-{version}.qcow2");
    fs::copy(&file, host.path(&inside)).unwrap();
    inside
}
