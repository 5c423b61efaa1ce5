//! The machine: what its kernel and libvirt tell of it, and what is measured.
//!
//! Invariant: readers get what was noted; only [`refresh`] looks anew. What nobody
//! tells is empty or absent: of libvirt's simulated host the kernel knows nothing.

use super::core::Core;
use super::gate::Lane;
use crate::config::NodeSettings;
use crate::libvirt::{CpuMode, HostFacts, NumaCell, Processor};
use crate::model::bytes::Bytes;
use crate::model::hardware::{Accelerator, Firmware};
use crate::model::volume::PoolKind;
use crate::storage;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How long the kernel's files and a tool that tells its version may take.
const QUICK: Duration = Duration::from_secs(5);

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePages {
    /// The size of one.
    pub size: Bytes,
    /// How many there are.
    pub total: u64,
    /// How many of them nobody has; `None` if it is not known.
    pub free: Option<u64>,
}

/// What changes while the machine runs, as last measured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Figures {
    /// Memory that new processes could have.
    available: Option<Bytes>,
    huge_pages: Vec<HugePages>,
    /// Those of each NUMA node, by its number.
    of_nodes: BTreeMap<u32, Vec<HugePages>>,
}

/// The machine that the agent runs on.
pub struct Machine {
    /// What is derived from its machine id.
    pub id: Option<Uuid>,
    /// This run of the kernel.
    pub boot_id: String,
    /// Version of the kernel.
    pub kernel: String,
    /// The name that the kernel had for it when the agent started. libvirt's is used once
    /// it is known: that may have the domain.
    pub hostname: String,
    /// The name that the maker gave its processors.
    processor: String,
    figures: Mutex<Figures>,
    ceph_version: Mutex<String>,
}

impl Machine {
    /// Reads what stays while it runs. Blocks: for the agent's start.
    pub fn read() -> Self {
        let line = |path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().to_owned()
        };
        Self {
            id: NodeSettings::machine_id().ok(),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            hostname: line("/proc/sys/kernel/hostname"),
            processor: value(&line("/proc/cpuinfo"), "model name")
                .unwrap_or_default()
                .to_owned(),
            figures: Mutex::default(),
            ceph_version: Mutex::default(),
        }
    }
}

/// Measures anew what changes, and asks for what is not known yet.
pub async fn refresh(core: &Core) {
    let machine = &core.node.machine;
    if !core.hypervisor.is_simulated() {
        let measured = core
            .gate
            .run(Lane::Storage, QUICK, || measure(Path::new("/")));
        if let Ok(figures) = measured.await {
            *lock(&machine.figures) = figures;
        }
    }
    let uses_ceph = || {
        core.pools
            .all()
            .iter()
            .any(|it| it.pool.kind() == PoolKind::Rbd)
    };
    if lock(&machine.ceph_version).is_empty() && uses_ceph() {
        let task = storage::Task::within(QUICK);
        let asked = core
            .gate
            .run(Lane::Ceph, QUICK, move || storage::ceph_version(&task));
        if let Ok(Ok(version)) = asked.await {
            *lock(&machine.ceph_version) = version;
        }
    }
}

/// Looks at the files of the kernel's below `root`; what is not there is not known.
fn measure(root: &Path) -> Figures {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let available = value(&meminfo, "MemAvailable")
        .and_then(|text| text.strip_suffix("kB")?.trim().parse().ok())
        .map(Bytes::kib);
    let mut of_nodes = BTreeMap::new();
    for (name, path) in entries(&root.join("sys/devices/system/node")) {
        let number = name.strip_prefix("node").and_then(|id| id.parse().ok());
        if let Some(number) = number {
            of_nodes.insert(number, huge_pages(&path.join("hugepages")));
        }
    }
    Figures {
        available,
        huge_pages: huge_pages(&root.join("sys/kernel/mm/hugepages")),
        of_nodes,
    }
}

/// The host's huge pages of each size, as the kernel tells now. Blocks.
pub fn count_huge_pages() -> Vec<HugePages> {
    huge_pages(Path::new("/sys/kernel/mm/hugepages"))
}

/// What a folder with an entry for each size of huge pages tells, by size.
fn huge_pages(folder: &Path) -> Vec<HugePages> {
    let mut found: Vec<HugePages> = entries(folder)
        .into_iter()
        .filter_map(|(name, path)| {
            let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            let number = |name| {
                let text = fs::read_to_string(path.join(name)).ok()?;
                text.trim().parse().ok()
            };
            Some(HugePages {
                size: Bytes::kib(size.parse().ok()?),
                total: number("nr_hugepages")?,
                free: number("free_hugepages"),
            })
        })
        .collect();
    found.sort_unstable_by_key(|pages| pages.size);
    found
}

fn entries(folder: &Path) -> Vec<(String, std::path::PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().into_string().ok()?, entry.path()))
        })
        .collect()
}

/// The value of the first line `key: value`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

/// The machine as readers see it.
#[derive(Debug, Clone)]
pub struct HostView {
    /// What is derived from its machine id.
    pub machine_id: Option<Uuid>,
    /// This run of the kernel.
    pub boot_id: String,
    /// Version of the Ceph tools; empty if no pool needs them.
    pub ceph_version: String,
    /// The name that the maker gave its processors.
    pub processor_name: String,
    /// The processors, as libvirt tells of them.
    pub processor: Processor,
    /// The NUMA nodes, each with its huge pages.
    pub numa: Vec<(NumaCell, Vec<HugePages>)>,
    /// Memory that new processes could have.
    pub available_memory: Option<Bytes>,
    /// Huge pages of all nodes.
    pub huge_pages: Vec<HugePages>,
    /// Machine types of guests.
    pub machine_types: Vec<String>,
    /// What guests can start from.
    pub firmware: Vec<Firmware>,
    /// How guests can choose their processor.
    pub cpu_modes: Vec<CpuSupport>,
}

/// Whether guests can choose their processor in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSupport {
    /// Which way.
    pub choice: CpuChoice,
    /// Whether they can.
    pub usable: bool,
    /// The models that it can give.
    pub models: Vec<String>,
}

/// A way to choose a guest's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuChoice {
    /// The host's own.
    HostPassthrough,
    /// The nearest model that QEMU knows.
    HostModel,
    /// All that the accelerator can offer.
    Maximum,
    /// A model by name.
    Custom,
}

/// Whether guests that ask for nothing run with KVM.
pub fn auto_is_kvm(core: &Core) -> bool {
    core.node.kvm_works() && core.config.hypervisor.accelerator != Accelerator::Tcg
}

/// The machine as last seen; without `facts`, libvirt is away.
pub fn view(core: &Core, facts: Option<&HostFacts>) -> HostView {
    let machine = &core.node.machine;
    let simulated = core.hypervisor.is_simulated();
    let figures = lock(&machine.figures).clone();
    let numa: Vec<_> = facts
        .map(|facts| facts.numa.clone())
        .unwrap_or_default()
        .into_iter()
        .map(|cell| {
            let measured = figures.of_nodes.get(&cell.id).cloned();
            let pages = measured.unwrap_or_else(|| unmeasured(&cell));
            (cell, pages)
        })
        .collect();
    let mut huge_pages = figures.huge_pages;
    if huge_pages.is_empty() {
        huge_pages = sum(numa.iter().flat_map(|(_, pages)| pages));
    }
    HostView {
        machine_id: machine.id,
        boot_id: machine.boot_id.clone(),
        ceph_version: lock(&machine.ceph_version).clone(),
        processor_name: if simulated {
            String::new()
        } else {
            machine.processor.clone()
        },
        processor: facts
            .map(|facts| facts.processor.clone())
            .unwrap_or_default(),
        numa,
        available_memory: figures.available,
        huge_pages,
        machine_types: facts
            .map(|facts| facts.machines.clone())
            .unwrap_or_default(),
        firmware: facts
            .filter(|_| !simulated)
            .map(firmware)
            .unwrap_or_default(),
        cpu_modes: facts
            .map(|facts| cpu_modes(facts, auto_is_kvm(core)))
            .unwrap_or_default(),
    }
}

/// The huge pages of a node, as libvirt told when it was connected.
fn unmeasured(cell: &NumaCell) -> Vec<HugePages> {
    let pages = cell.huge_pages.iter();
    pages
        .map(|(size, total)| HugePages {
            size: *size,
            total: *total,
            free: None,
        })
        .collect()
}

fn sum<'a>(pages: impl Iterator<Item = &'a HugePages>) -> Vec<HugePages> {
    let mut by_size: BTreeMap<Bytes, HugePages> = BTreeMap::new();
    for pages in pages {
        by_size
            .entry(pages.size)
            .and_modify(|sum| {
                sum.total = sum.total.saturating_add(pages.total);
                sum.free = sum.free.zip(pages.free).map(|(a, b)| a.saturating_add(b));
            })
            .or_insert(*pages);
    }
    by_size.into_values().collect()
}

/// QEMU brings a BIOS for PCs; UEFI is what libvirt finds.
fn firmware(facts: &HostFacts) -> Vec<Firmware> {
    let bios = matches!(facts.arch.as_str(), "x86_64" | "i686");
    let found = [(bios, Firmware::Bios), (facts.uefi, Firmware::Uefi)];
    found
        .into_iter()
        .filter_map(|(there, firmware)| there.then_some(firmware))
        .collect()
}

/// As libvirt tells; but what imitates the host is refused without KVM.
fn cpu_modes(facts: &HostFacts, kvm: bool) -> Vec<CpuSupport> {
    let modes = if kvm {
        &facts.kvm_cpu_modes
    } else {
        &facts.cpu_modes
    };
    let support = |mode: &CpuMode| {
        let (choice, needs_kvm) = match mode.name.as_str() {
            "host-passthrough" => (CpuChoice::HostPassthrough, true),
            "host-model" => (CpuChoice::HostModel, true),
            "maximum" => (CpuChoice::Maximum, false),
            "custom" => (CpuChoice::Custom, false),
            _ => return None,
        };
        Some(CpuSupport {
            choice,
            usable: mode.usable && (kvm || !needs_kvm),
            models: mode.models.clone(),
        })
    };
    modes.iter().filter_map(support).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn pages(mib: u64, total: u64, free: u64) -> HugePages {
        HugePages {
            size: Bytes::mib(mib),
            total,
            free: Some(free),
        }
    }

    #[test]
    fn what_the_kernel_tells_is_measured_by_size_and_node() {
        let root = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:       24684096 kB\nMemAvailable:   1024 kB\n";
        write(root.path(), "proc/meminfo", meminfo);
        let host = "sys/kernel/mm/hugepages";
        let node = "sys/devices/system/node/node1/hugepages";
        for (folder, size, total, free) in [
            (host, 1_048_576, "2", "1"),
            (host, 2048, "12", "7"),
            (node, 2048, "5", "0"),
        ] {
            let folder = format!("{folder}/hugepages-{size}kB");
            write(root.path(), &format!("{folder}/nr_hugepages"), total);
            write(root.path(), &format!("{folder}/free_hugepages"), free);
        }
        write(root.path(), "sys/devices/system/node/online", "0-1");
        let figures = Figures {
            available: Some(Bytes::mib(1)),
            huge_pages: vec![pages(2, 12, 7), pages(1024, 2, 1)],
            of_nodes: BTreeMap::from([(1, vec![pages(2, 5, 0)])]),
        };
        assert_eq!(measure(root.path()), figures);
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_known() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(measure(root.path()), Figures::default());
        write(root.path(), "proc/meminfo", "MemAvailable: many\n");
        assert_eq!(measure(root.path()).available, None);
    }

    #[test]
    fn pages_of_all_nodes_are_summed_and_what_one_does_not_know_nobody_does() {
        let unknown = HugePages {
            free: None,
            ..pages(2, 1, 0)
        };
        let all = [pages(2, 3, 1), pages(1024, 4, 4), unknown];
        let summed = HugePages {
            total: 4,
            ..unknown
        };
        assert_eq!(sum(all.iter()), [summed, pages(1024, 4, 4)]);
    }
}
