//! Reads what libvirt says of the host and of the guests that it can have. What it
//! does not say stays empty.

use super::read::{Unreadable, at, child};
use crate::model::bytes::Bytes;
use roxmltree::{Document, Node};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The host's processors. What libvirt does not say is empty or 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Processor {
    /// Who made them, such as `AMD`.
    pub vendor: String,
    /// The nearest CPU model that libvirt knows.
    pub model: String,
    /// Sockets of the whole host.
    pub sockets: u32,
    /// Cores of the whole host.
    pub cores: u32,
    /// Threads of the whole host that are online.
    pub threads: u32,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaCell {
    /// Its number on the host.
    pub id: u32,
    /// The numbers of its threads.
    pub cpus: Vec<u32>,
    /// Its memory.
    pub memory: Bytes,
    /// Its huge pages: their size, and how many there were.
    pub huge_pages: Vec<(Bytes, u64)>,
}

/// One way to choose a guest's processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuMode {
    /// libvirt's name of it, such as `host-model`.
    pub name: String,
    /// Guests can have it.
    pub usable: bool,
    /// The models that it can give.
    pub models: Vec<String>,
    /// Models that guests would have without some of their features, of which only
    /// QEMU's log tells.
    pub lacking: Vec<String>,
}

pub(in super::super) struct Capabilities {
    pub(in super::super) arch: String,
    pub(in super::super) machines: Vec<String>,
    pub(in super::super) processor: Processor,
    pub(in super::super) numa: Vec<NumaCell>,
}

pub(in super::super) struct DomainCapabilities {
    pub(in super::super) emulator: Option<PathBuf>,
    pub(in super::super) uefi: bool,
    pub(in super::super) cpu_modes: Vec<CpuMode>,
}

pub(in super::super) fn capabilities(xml: &str) -> Result<Capabilities, Unreadable> {
    let document = Document::parse(xml)?;
    let root = document.root_element();
    let arch = at(root, &["host", "cpu", "arch"])
        .and_then(|a| a.text())
        .ok_or(Unreadable::Missing("host architecture"))?
        .to_owned();
    let mut machines = Vec::new();
    for guest in named(root, "guest") {
        let for_host = child(guest, "arch").filter(|a| a.attribute("name") == Some(&*arch));
        for machine in for_host.iter().flat_map(|a| a.descendants()) {
            let name = machine.text().filter(|_| machine.has_tag_name("machine"));
            let name = name.filter(|name| is_for_us(&arch, name));
            // The same board can be listed once for each accelerator.
            if let Some(name) = name.filter(|name| !machines.iter().any(|known| known == name)) {
                machines.push(name.to_owned());
            }
        }
    }
    let cells = at(root, &["host", "topology", "cells"]);
    let cells: Vec<Node<'_, '_>> = cells.into_iter().flat_map(|c| named(c, "cell")).collect();
    Ok(Capabilities {
        arch,
        machines,
        processor: processor(root, &cells),
        numa: cells.iter().filter_map(|cell| numa_cell(*cell)).collect(),
    })
}

/// Whether a board can have what our domains have: a PCI or PCIe bus for virtio and USB,
/// a serial port, a disk to boot from. QEMU has boards beside that for other purposes
/// (`microvm`, `isapc`, `x-remote`, those of Xen, of phones and of evaluation kits), and
/// nothing in what libvirt says tells them apart.
fn is_for_us(arch: &str, machine: &str) -> bool {
    let family = |name: &str| {
        let rest = machine.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    match arch {
        // Ubuntu has names of its own for them.
        "x86_64" | "i686" => family("pc") || family("q35") || family("ubuntu"),
        "aarch64" | "armv7l" | "riscv64" | "loongarch64" => family("virt"),
        "ppc64" | "ppc64le" => family("pseries"),
        "s390x" => family("s390-ccw-virtio"),
        _ => true,
    }
}

/// What is told of each thread is counted: the topology that libvirt tells in one
/// line is that of a NUMA node, and all of them are taken to be alike.
fn processor(root: Node<'_, '_>, cells: &[Node<'_, '_>]) -> Processor {
    let text = |name| {
        at(root, &["host", "cpu", name])
            .and_then(|n| n.text())
            .unwrap_or_default()
            .to_owned()
    };
    let mut sockets = BTreeSet::new();
    let mut cores = BTreeSet::new();
    let mut threads = 0;
    for cpu in cells.iter().flat_map(|cell| cpus(*cell)) {
        // One that is offline is in no socket.
        let Some(socket) = cpu.attribute("socket_id") else {
            continue;
        };
        let part = |name| cpu.attribute(name).unwrap_or_default();
        sockets.insert(socket);
        cores.insert([socket, part("die_id"), part("cluster_id"), part("core_id")]);
        threads += 1;
    }
    Processor {
        vendor: text("vendor"),
        model: text("model"),
        sockets: count(sockets.len()),
        cores: count(cores.len()),
        threads,
    }
}

fn numa_cell(cell: Node<'_, '_>) -> Option<NumaCell> {
    // Each size once; the smallest is the one of ordinary pages.
    let mut pages: Vec<(Bytes, u64)> = named(cell, "pages")
        .filter_map(|pages| {
            let size = pages.attribute("size")?.parse().ok()?;
            Some((Bytes::kib(size), pages.text()?.trim().parse().ok()?))
        })
        .collect();
    pages.sort_unstable();
    Some(NumaCell {
        id: cell.attribute("id")?.parse().ok()?,
        cpus: cpus(cell)
            .filter_map(|cpu| cpu.attribute("id")?.parse().ok())
            .collect(),
        memory: child(cell, "memory")
            .and_then(|memory| memory.text()?.trim().parse().ok())
            .map_or(Bytes::ZERO, Bytes::kib),
        huge_pages: pages.into_iter().skip(1).collect(),
    })
}

pub(in super::super) fn domain_capabilities(xml: &str) -> Result<DomainCapabilities, Unreadable> {
    let document = Document::parse(xml)?;
    let root = document.root_element();
    let emulator = child(root, "path").and_then(|p| p.text());
    let uefi = child(root, "os").is_some_and(|os| {
        named(os, "enum")
            .filter(|n| n.attribute("name") == Some("firmware"))
            .flat_map(|n| n.children())
            .any(|value| value.text() == Some("efi"))
    });
    let cpu = child(root, "cpu");
    Ok(DomainCapabilities {
        emulator: emulator.map(PathBuf::from),
        uefi,
        cpu_modes: cpu
            .into_iter()
            .flat_map(|cpu| named(cpu, "mode"))
            .filter_map(cpu_mode)
            .collect(),
    })
}

fn cpu_mode(mode: Node<'_, '_>) -> Option<CpuMode> {
    let (models, lacking): (Vec<_>, Vec<_>) = named(mode, "model")
        // Only those of one's own choice say whether they can be used.
        .partition(|model| {
            model
                .attribute("usable")
                .is_none_or(|usable| usable == "yes")
        });
    let names = |models: Vec<Node<'_, '_>>| {
        let names = models.into_iter().filter_map(|model| model.text());
        names.map(str::to_owned).collect()
    };
    Some(CpuMode {
        name: mode.attribute("name")?.to_owned(),
        usable: mode.attribute("supported") == Some("yes"),
        models: names(models),
        lacking: names(lacking),
    })
}

fn named<'a, 'i>(node: Node<'a, 'i>, name: &'a str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |n| n.has_tag_name(name))
}

fn cpus<'a, 'i>(cell: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    child(cell, "cpus")
        .into_iter()
        .flat_map(|cpus| named(cpus, "cpu"))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What libvirt 11.3 said of a host with one processor of two cores, shortened.
    const HOST: &str = include_str!("fixtures/capabilities.xml");
    /// What it said of KVM guests there, shortened.
    const GUESTS: &str = include_str!("fixtures/domcapabilities.xml");
    /// A part of what its test driver says.
    const SIMULATED: &str = "<capabilities><host><cpu><arch>i686</arch></cpu><topology><cells num='2'>\
        <cell id='0'><memory unit='KiB'>2097152</memory>\
        <pages unit='KiB' size='4'>524288</pages><pages unit='KiB' size='2048'>3</pages>\
        <cpus num='3'><cpu id='0' socket_id='0' die_id='0' core_id='0' siblings='0,1'/>\
        <cpu id='1' socket_id='0' die_id='0' core_id='0' siblings='0,1'/><cpu id='2'/></cpus></cell>\
        <cell id='1'><cpus num='1'><cpu id='8' socket_id='1' die_id='0' core_id='0' siblings='8'/></cpus>\
        </cell></cells></topology></host></capabilities>";

    #[test]
    fn a_host_tells_its_processors_and_nodes() {
        let capabilities = capabilities(HOST).unwrap();
        assert_eq!(capabilities.arch, "x86_64");
        let processor = Processor {
            vendor: "AMD".to_owned(),
            model: "kvm64-v1".to_owned(),
            sockets: 1,
            cores: 2,
            threads: 2,
        };
        assert_eq!(capabilities.processor, processor);
        let cell = NumaCell {
            id: 0,
            cpus: vec![0, 1],
            memory: Bytes::kib(24_684_096),
            huge_pages: vec![(Bytes::mib(2), 0), (Bytes::gib(1), 0)],
        };
        assert_eq!(capabilities.numa, [cell]);
        assert_eq!(
            capabilities.machines,
            ["pc-i440fx-10.0", "pc", "pc-q35-10.0", "q35"]
        );
    }

    #[test]
    fn threads_of_one_core_and_nodes_of_one_host_are_counted_once() {
        let capabilities = capabilities(SIMULATED).unwrap();
        let processor = Processor {
            sockets: 2,
            cores: 2,
            threads: 3,
            ..Processor::default()
        };
        assert_eq!(capabilities.processor, processor);
        assert_eq!(capabilities.numa[0].huge_pages, [(Bytes::mib(2), 3)]);
        assert_eq!(capabilities.numa[0].cpus, [0, 1, 2]);
        assert_eq!(capabilities.numa[1].memory, Bytes::ZERO);
    }

    #[test]
    fn guests_have_the_modes_and_models_that_can_be_used() {
        let guests = domain_capabilities(GUESTS).unwrap();
        assert!(guests.uefi);
        assert_eq!(
            guests.emulator,
            Some(PathBuf::from("/usr/bin/qemu-system-x86_64"))
        );
        let modes: Vec<_> = guests
            .cpu_modes
            .iter()
            .map(|mode| (mode.name.as_str(), mode.usable, mode.models.join(" ")))
            .collect();
        assert_eq!(
            modes,
            [
                ("host-passthrough", true, String::new()),
                ("maximum", true, String::new()),
                ("host-model", true, "EPYC-Genoa".to_owned()),
                ("custom", true, "486 qemu64".to_owned()),
            ]
        );
    }

    #[test]
    fn what_is_not_said_is_empty() {
        let guests = domain_capabilities("<domainCapabilities/>").unwrap();
        assert!(!guests.uefi && guests.cpu_modes.is_empty() && guests.emulator.is_none());
        let bare = "<capabilities><host><cpu><arch>riscv64</arch></cpu></host></capabilities>";
        let host = capabilities(bare).unwrap();
        assert_eq!(host.processor, Processor::default());
        assert!(host.numa.is_empty() && host.machines.is_empty());
        assert!(capabilities("<capabilities/>").is_err());
    }

    #[test]
    fn capabilities_name_the_boards_of_the_hosts_architecture() {
        let xml = "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>\
            <guest><arch name='i686'><machine>isapc</machine></arch></guest>\
            <guest><arch name='x86_64'><machine>q35</machine><machine>pc</machine>\
            <machine>x-remote</machine><machine>isapc</machine><machine>xenfv</machine>\
            <domain type='kvm'><machine>q35</machine></domain></arch></guest></capabilities>";
        assert_eq!(capabilities(xml).unwrap().machines, ["q35", "pc"]);
    }
}
