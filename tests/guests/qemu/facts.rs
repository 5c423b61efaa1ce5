//! What a host with real QEMU tells of itself, against what the kernel and QEMU say.

use crate::bench::Bench;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::collections::BTreeSet;
use std::fs;

/// The values of the lines `key: value` of a file of the kernel's.
fn values(path: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .filter(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().to_owned())
        .collect()
}

fn kib(path: &str, key: &str) -> u64 {
    let value = &values(path, key)[0];
    value.trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// The memory of the host's NUMA nodes, in bytes.
fn memory() -> u64 {
    let nodes = fs::read_dir("/sys/devices/system/node").unwrap();
    let files = nodes.map(|node| node.unwrap().path().join("meminfo"));
    let texts = files.filter_map(|file| fs::read_to_string(file).ok());
    let totals = texts.map(|text| {
        let line = text.lines().find(|line| line.contains(" MemTotal:"));
        let words: Vec<_> = line.unwrap().split_whitespace().collect();
        words[3].parse::<u64>().unwrap() * 1024
    });
    totals.sum()
}

pub async fn the_host_tells_what_the_kernel_says_of_it(bench: &Bench) {
    // A machine's memory can grow and shrink, so this is one that was just started.
    let before = memory();
    let host = bench.another().await;
    let api = host.daemon.api();
    let node = until("the host to be measured", PATIENCE, async || {
        let node = api.node().await;
        node.available_memory_bytes.is_some().then_some(node)
    })
    .await;
    let processor = node.processor.unwrap_or_default();
    let cpuinfo = "/proc/cpuinfo";
    assert_eq!(processor.name, values(cpuinfo, "model name")[0]);
    let threads = values(cpuinfo, "processor").len();
    assert_eq!(usize::try_from(processor.threads).unwrap(), threads);
    let sockets: BTreeSet<_> = values(cpuinfo, "physical id").into_iter().collect();
    assert_eq!(usize::try_from(processor.sockets).unwrap(), sockets.len());
    let cores: BTreeSet<_> = values(cpuinfo, "physical id")
        .into_iter()
        .zip(values(cpuinfo, "core id"))
        .collect();
    assert_eq!(usize::try_from(processor.cores).unwrap(), cores.len());
    assert!(values(cpuinfo, "vendor_id")[0].contains(&processor.vendor));

    let after = memory();
    let possible = before.min(after)..=before.max(after);
    assert!(
        possible.contains(&node.memory_bytes),
        "{} is not in {possible:?}",
        node.memory_bytes
    );
    let available = node.available_memory_bytes.unwrap_or_default();
    assert!((1..=kib("/proc/meminfo", "MemTotal")).contains(&available));
    let of_nodes: u64 = node.numa_nodes.iter().map(|it| it.memory_bytes).sum();
    assert_eq!(of_nodes, node.memory_bytes);
    for numa in &node.numa_nodes {
        let folder = format!("/sys/devices/system/node/node{}", numa.id);
        for cpu in &numa.cpus {
            assert!(fs::exists(format!("{folder}/cpu{cpu}")).unwrap());
        }
        for pages in &numa.huge_pages {
            let size = pages.page_bytes / 1024;
            let path = format!("{folder}/hugepages/hugepages-{size}kB/nr_hugepages");
            let total = fs::read_to_string(path).unwrap();
            assert_eq!(total.trim(), pages.total.to_string());
            assert!(pages.free.is_some_and(|free| free <= pages.total));
        }
    }
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages").unwrap().count();
    assert_eq!(node.huge_pages.len(), sizes);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(node.kernel_version, release.trim());
}

pub async fn the_host_tells_what_qemu_can_give_to_guests(bench: &Bench) {
    let node = bench.host.daemon.api().node().await;
    let capabilities = node.capabilities.unwrap_or_default();
    let machines = &capabilities.machine_types;
    assert!(machines.iter().any(|machine| machine == "q35"));
    assert!(
        machines
            .iter()
            .any(|machine| machine.starts_with("pc-q35-"))
    );
    assert!(capabilities.firmware().any(|it| it == Firmware::Bios));
    let support = |mode| {
        let mut modes = capabilities.cpu_modes.iter();
        modes.find(|it| it.mode() == mode).expect("each is told")
    };
    let kvm = node.accelerator == "kvm";
    assert_eq!(support(CpuMode::HostPassthrough).usable, kvm);
    assert_eq!(support(CpuMode::HostModel).usable, kvm);
    assert!(support(CpuMode::Maximum).usable);
    let custom = support(CpuMode::Custom);
    assert!(custom.usable && custom.models.iter().any(|model| model == "qemu64"));
}
