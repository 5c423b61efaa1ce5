//! Figures of all domains: what each has used up so far.
//!
//! One call for all of them, however many there are, and it waits for none: of a
//! domain that another call holds, libvirt tells what it knows without its QEMU.
//! What a driver does not tell is `None`, never zero.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};
use super::ffi;
use super::uri::HypervisorKind;
use crate::model::ids::VmId;
use std::collections::HashMap;
use std::time::Duration;
use virt_sys as sys;

/// What is asked for. A driver that lacks some of it tells the others.
const GROUPS: sys::virDomainStatsTypes = sys::VIR_DOMAIN_STATS_STATE
    | sys::VIR_DOMAIN_STATS_CPU_TOTAL
    | sys::VIR_DOMAIN_STATS_BALLOON
    | sys::VIR_DOMAIN_STATS_VCPU
    | sys::VIR_DOMAIN_STATS_INTERFACE
    | sys::VIR_DOMAIN_STATS_BLOCK;

/// More disks, interfaces or processors than any domain has.
const MOST: u64 = 4096;

/// What one domain has used up since it was started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainStats {
    /// Processor time, of its QEMU as a whole.
    pub cpu: Option<Duration>,
    /// Virtual processors that are online.
    pub vcpus: Option<u64>,
    /// Time that its virtual processors were held up by others of the host.
    pub vcpu_wait: Option<Duration>,
    /// Its memory.
    pub memory: MemoryStats,
    /// Its disks.
    pub disks: Vec<DiskStats>,
    /// Its network interfaces.
    pub nics: Vec<NicStats>,
}

/// Memory of one domain, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryStats {
    /// What the balloon leaves to the guest.
    pub balloon: Option<u64>,
    /// What its QEMU has in the host's memory.
    pub resident: Option<u64>,
    /// What the guest itself says that it could use without swapping.
    pub usable: Option<u64>,
}

/// One disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskStats {
    /// What the guest calls it, such as `vda`.
    pub device: String,
    /// What was read.
    pub read: DiskUse,
    /// What was written.
    pub write: DiskUse,
    /// What was flushed; without bytes.
    pub flush: DiskUse,
}

/// What was done with a disk in one way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskUse {
    /// How often.
    pub operations: Option<u64>,
    /// How many bytes.
    pub bytes: Option<u64>,
    /// For how long, of all together.
    pub time: Option<Duration>,
}

/// One network interface of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NicStats {
    /// Its place among the interfaces of the domain.
    pub index: usize,
    /// What the host calls it, such as `vnet3`.
    pub interface: String,
    /// What came to the guest.
    pub received: NicUse,
    /// What the guest sent.
    pub sent: NicUse,
}

/// What went through an interface in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NicUse {
    /// How many bytes.
    pub bytes: Option<u64>,
    /// How many packets.
    pub packets: Option<u64>,
    /// How many of them were broken.
    pub errors: Option<u64>,
    /// How many were thrown away.
    pub drops: Option<u64>,
}

/// A value that libvirt tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Figure {
    Number(u64),
    Text(String),
}

/// What libvirt tells of one domain, by libvirt's own names.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) id: VmId,
    pub(super) figures: HashMap<String, Figure>,
}

impl Host {
    /// Reads the figures of every domain, ours or not, with one call.
    ///
    /// Empty where the driver has none at all.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn stats(&self) -> Result<HashMap<VmId, DomainStats>, LibvirtError> {
        // The simulated driver has nothing to wait for, and not always the flag.
        let flags = match self.kind() {
            HypervisorKind::Test => 0,
            HypervisorKind::System | HypervisorKind::Session | HypervisorKind::Embed { .. } => {
                sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
            }
        };
        let told = self.call("read statistics", |c| {
            ffi::all_domain_stats(c, GROUPS, flags)
        });
        match told {
            Ok(told) => Ok(told.iter().map(|told| (told.id, told.stats())).collect()),
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(HashMap::new()),
            Err(error) => Err(error),
        }
    }
}

impl Told {
    fn stats(&self) -> DomainStats {
        let vcpus = self.number("vcpu.maximum").unwrap_or(0).min(MOST);
        let waits = (0..vcpus).filter_map(|index| self.number(&format!("vcpu.{index}.wait")));
        DomainStats {
            cpu: self.time("cpu.time"),
            vcpus: self.number("vcpu.current"),
            vcpu_wait: waits.reduce(u64::saturating_add).map(Duration::from_nanos),
            memory: MemoryStats {
                balloon: self.kib("balloon.current"),
                resident: self.kib("balloon.rss"),
                usable: self.kib("balloon.usable"),
            },
            disks: self.each("block.count", |index| self.disk(index)),
            nics: self.each("net.count", |index| self.nic(index)),
        }
    }

    fn each<T>(&self, count: &str, one: impl Fn(u64) -> Option<T>) -> Vec<T> {
        let count = self.number(count).unwrap_or(0).min(MOST);
        (0..count).filter_map(one).collect()
    }

    fn disk(&self, index: u64) -> Option<DiskStats> {
        let way = |short: &str| DiskUse {
            operations: self.number(&format!("block.{index}.{short}.reqs")),
            bytes: self.number(&format!("block.{index}.{short}.bytes")),
            time: self.time(&format!("block.{index}.{short}.times")),
        };
        Some(DiskStats {
            device: self.text(&format!("block.{index}.name"))?,
            read: way("rd"),
            write: way("wr"),
            flush: way("fl"),
        })
    }

    fn nic(&self, index: u64) -> Option<NicStats> {
        let way = |short: &str| {
            let figure = |what: &str| self.number(&format!("net.{index}.{short}.{what}"));
            NicUse {
                bytes: figure("bytes"),
                packets: figure("pkts"),
                errors: figure("errs"),
                drops: figure("drop"),
            }
        };
        Some(NicStats {
            index: usize::try_from(index).ok()?,
            interface: self.text(&format!("net.{index}.name"))?,
            received: way("rx"),
            sent: way("tx"),
        })
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.figures.get(name)? {
            Figure::Number(number) => Some(*number),
            Figure::Text(_) => None,
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.figures.get(name)? {
            Figure::Text(text) => Some(text.clone()),
            Figure::Number(_) => None,
        }
    }

    fn time(&self, name: &str) -> Option<Duration> {
        self.number(name).map(Duration::from_nanos)
    }

    fn kib(&self, name: &str) -> Option<u64> {
        self.number(name)?.checked_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(figures: &[(&str, Figure)]) -> DomainStats {
        let figures = figures
            .iter()
            .map(|(name, figure)| ((*name).to_owned(), figure.clone()))
            .collect();
        let id = VmId::random();
        Told { id, figures }.stats()
    }

    #[test]
    fn what_is_not_told_is_not_known_instead_of_zero() {
        let state = ("state.state", Figure::Number(1));
        assert_eq!(told(&[state]), DomainStats::default());
    }

    #[test]
    fn libvirts_units_become_bytes_and_durations() {
        let stats = told(&[
            ("cpu.time", Figure::Number(1_500_000_000)),
            ("vcpu.maximum", Figure::Number(2)),
            ("vcpu.0.wait", Figure::Number(3)),
            ("vcpu.1.wait", Figure::Number(4)),
            ("balloon.rss", Figure::Number(2)),
            ("block.count", Figure::Number(2)),
            ("block.1.name", Figure::Text("vdb".to_owned())),
            ("block.1.rd.times", Figure::Number(7)),
            ("net.count", Figure::Number(2)),
            ("net.1.name", Figure::Text("vnet0".to_owned())),
            ("net.1.tx.drop", Figure::Number(9)),
        ]);
        assert_eq!(stats.cpu, Some(Duration::from_millis(1500)));
        assert_eq!(stats.vcpu_wait, Some(Duration::from_nanos(7)));
        assert_eq!(stats.memory.resident, Some(2048));
        assert_eq!(stats.disks[0].device, "vdb");
        assert_eq!(stats.disks[0].read.time, Some(Duration::from_nanos(7)));
        // The first has no name on the host: QEMU's own NAT.
        assert_eq!(stats.nics[0].index, 1);
        assert_eq!(stats.nics[0].sent.drops, Some(9));
    }
}
