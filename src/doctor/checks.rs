//! Every check that there is, by its name.
//!
//! Names are a contract: scripts read them. One is never given to another check.

use std::fmt;

macro_rules! checks {
    ($($name:ident = $id:literal: $title:literal,)*) => {
        /// Something that is looked at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check {
            $(#[doc = $title] $name,)*
        }

        impl Check {
            /// All of them, in the order in which they are told.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name, `subject.check`.
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// What is looked at, in words.
            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)*
                }
            }
        }
    };
}

checks! {
    ConfigFile = "config.file": "the configuration file can be read and has no faults",
    CpuKvm = "cpu.kvm": "KVM's device opens and the processor has what it needs",
    CpuNested = "cpu.nested": "whether this host is a guest itself, and what it offers to its own",
    CpuAccelerator = "cpu.accelerator": "what executes guests that ask for nothing",
    LibvirtReach = "libvirt.reach": "libvirt answers and lets kvmlet in",
    LibvirtVersion = "libvirt.version": "libvirt is new enough",
    LibvirtDaemons = "libvirt.daemons": "one libvirt, and it starts with the host",
    LibvirtQemu = "libvirt.qemu": "QEMU for this host's processor, new enough",
    LibvirtFirmware = "libvirt.firmware": "a firmware for guests with UEFI",
    NetworkDefault = "network.default": "libvirt's own network `default`",
    NetworkConfigured = "network.configured": "each of `[[networks]]` leads somewhere",
    PoolFolder = "pool.folder": "a pool's folder is there, and on the file system that it should be on",
    PoolFilesystem = "pool.filesystem": "its file system is one for disks of guests",
    PoolWrite = "pool.write": "files can be written in it",
    PoolDirectIo = "pool.direct_io": "guests can bypass the host's page cache",
    PoolReflink = "pool.reflink": "files can share their data",
    PoolSpace = "pool.space": "there is room",
    PoolPassage = "pool.passage": "QEMU's user can pass through to the disks",
    PoolSandbox = "pool.sandbox": "the unit's sandbox lets kvmlet write there",
    ImageFolders = "image.folders": "the folders that images may be imported from",
    JournalFile = "journal.file": "the journal is one that this version reads, and may be written",
    JournalFilesystem = "journal.filesystem": "its file system is on this host, with room",
    CephTools = "ceph.tools": "Ceph's tools are installed",
    CephConf = "ceph.conf": "the cluster's configuration names its monitors",
    CephKeyring = "ceph.keyring": "the user's key can be read",
    CephMonitors = "ceph.monitors": "monitors can be reached",
    CephPools = "ceph.pools": "the cluster lets the user in and its pools answer",
    CephQemu = "ceph.qemu": "QEMU can open RBD images",
    MemoryReserved = "memory.reserved": "what is kept for the host, and what may be promised",
    MemorySwap = "memory.swap": "room for memory that is promised more than once",
    MemoryHugePages = "memory.huge_pages": "huge pages, for information",
    ClockSynchronised = "clock.synchronised": "the clock is kept right",
    ClockPlausible = "clock.plausible": "the time is not before what was written already",
    PortApi = "port.api": "`[api] listen` is an address of this host, and free",
    PortMetrics = "port.metrics": "`[metrics] listen` is free",
    PortVnc = "port.vnc": "where displays listen",
    CertificateApi = "certificate.api": "`[api] tls` can be used, and for how long",
    CertificateSinks = "certificate.sinks": "what reports are sent with can be read, and for how long",
    ToolQemuImg = "tool.qemu_img": "qemu-img is there, new enough",
    ToolLaunch = "tool.launch": "setpriv and prlimit, through which tools are started",
    LimitFiles = "limit.files": "how many files the unit may have open",
    LimitAio = "limit.aio": "requests to disks that QEMU can have under way",
    IdentityMachine = "identity.machine": "the host has an id",
    IdentityGroup = "identity.group": "groups and users of the configuration exist",
    UnitService = "unit.service": "kvmlet.service is installed, enabled and active",
    UnitSocket = "unit.socket": "kvmlet.socket is installed, enabled and active",
    DaemonAnswers = "daemon.answers": "the daemon answers",
    DaemonVersion = "daemon.version": "the daemon that runs is the program that is installed",
    DaemonConditions = "daemon.conditions": "what the daemon itself says of the host",
}

impl Check {
    /// What its name has before the dot.
    pub fn subject(self) -> &'static str {
        self.id().split('.').next().unwrap_or_default()
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_check_has_a_name_of_its_own_with_a_subject() {
        let names: BTreeSet<_> = Check::ALL.iter().map(|check| check.id()).collect();
        assert_eq!(names.len(), Check::ALL.len());
        for check in Check::ALL {
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            let (subject, rest) = check.id().split_once('.').expect("a dot");
            assert!(subject.chars().all(plain) && rest.chars().all(plain));
            assert_eq!(check.subject(), subject);
        }
    }
}
