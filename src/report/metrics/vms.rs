//! What each VM has used up. Only kvmlet's own: other domains of the host are not
//! ours to tell of.

use super::catalogue as c;
use super::page::Page;
use crate::model::ids::VmId;
use crate::model::nic::Nic;
use crate::model::vm::Vm;
use crate::service::Core;
use crate::service::stats::{DiskStats, DomainStats, NicStats};
use std::collections::HashMap;

pub(super) fn fill(page: &mut Page, core: &Core, stats: Option<&HashMap<VmId, DomainStats>>) {
    for view in core.vms.list() {
        let (Some(vm), Some((resting, _))) = (&view.vm, view.resting()) else {
            continue;
        };
        let id = vm.id.to_string();
        let labels = [id.as_str(), vm.name.as_str()];
        let [id, name] = labels;
        page.gauge(&c::VM_STATE, &[id, name, resting.as_str()], true);
        page.gauge(&c::VM_VCPUS, &labels, vm.hardware.vcpus);
        page.gauge(&c::VM_MEMORY, &labels, vm.hardware.memory.get());
        // Without power it uses nothing, and what is told is of no use.
        if let Some(stats) = stats.and_then(|stats| stats.get(&vm.id))
            && vm.seen.resting.has_power()
        {
            used(page, &labels, stats);
            for disk in &stats.disks {
                disk_used(page, labels, disk);
            }
            for nic in &stats.nics {
                nic_used(page, labels, vm, nic);
            }
        }
    }
}

fn used(page: &mut Page, labels: &[&str], stats: &DomainStats) {
    page.known(&c::VM_CPU, labels, stats.cpu);
    page.known(&c::VM_VCPU_WAIT, labels, stats.vcpu_wait);
    page.known(&c::VM_MEMORY_BALLOON, labels, stats.memory.balloon);
    page.known(&c::VM_MEMORY_RESIDENT, labels, stats.memory.resident);
    page.known(&c::VM_MEMORY_USABLE, labels, stats.memory.usable);
}

fn disk_used(page: &mut Page, [id, name]: [&str; 2], disk: &DiskStats) {
    let labels = [id, name, disk.device.as_str()];
    page.known(&c::VM_DISK_READ_BYTES, &labels, disk.read.bytes);
    page.known(&c::VM_DISK_READS, &labels, disk.read.operations);
    page.known(&c::VM_DISK_READ_TIME, &labels, disk.read.time);
    page.known(&c::VM_DISK_WRITTEN_BYTES, &labels, disk.write.bytes);
    page.known(&c::VM_DISK_WRITES, &labels, disk.write.operations);
    page.known(&c::VM_DISK_WRITE_TIME, &labels, disk.write.time);
    page.known(&c::VM_DISK_FLUSHES, &labels, disk.flush.operations);
    page.known(&c::VM_DISK_FLUSH_TIME, &labels, disk.flush.time);
}

fn nic_used(page: &mut Page, [id, name]: [&str; 2], vm: &Vm, nic: &NicStats) {
    // libvirt tells them in the order of the definition, which is ours.
    let mut nics: Vec<&Nic> = vm.nics.iter().collect();
    nics.sort_by_key(|nic| nic.device_index);
    let mac = nics.get(nic.index).map(|nic| nic.mac.to_string());
    let mac = mac.unwrap_or_default();
    let labels = [id, name, mac.as_str(), nic.interface.as_str()];
    page.known(&c::VM_NIC_RECEIVED_BYTES, &labels, nic.received.bytes);
    page.known(&c::VM_NIC_RECEIVED_PACKETS, &labels, nic.received.packets);
    page.known(&c::VM_NIC_RECEIVED_ERRORS, &labels, nic.received.errors);
    page.known(&c::VM_NIC_RECEIVED_DROPS, &labels, nic.received.drops);
    page.known(&c::VM_NIC_SENT_BYTES, &labels, nic.sent.bytes);
    page.known(&c::VM_NIC_SENT_PACKETS, &labels, nic.sent.packets);
    page.known(&c::VM_NIC_SENT_ERRORS, &labels, nic.sent.errors);
    page.known(&c::VM_NIC_SENT_DROPS, &labels, nic.sent.drops);
}
