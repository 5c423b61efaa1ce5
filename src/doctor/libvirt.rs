//! libvirt, and QEMU behind it. Looking at it starts its daemon, where systemd starts
//! that by its socket.

use super::networks::{skip_libvirt_networks, tell_libvirt_networks};
use super::{Check, Host, Notes, packages};
use crate::libvirt::{
    Callbacks, ErrorKind, Host as Libvirt, HostFacts, HypervisorKind, HypervisorUri, LibvirtError,
    Owner,
};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// The doctor has no domains.
const NOBODY: Owner = Owner {
    node: Uuid::nil(),
    agent: Uuid::nil(),
};
/// The oldest libvirt that is tested: Debian 12's.
const LIBVIRT: (u32, u32) = (9, 0);
/// The oldest QEMU that is tested: Debian 12's.
pub(super) const QEMU: (u32, u32) = (7, 2);
/// Where libvirt's daemons listen: the one, and the one of the many that has QEMU.
const SOCKETS: [&str; 2] = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];

/// Connects, and looks at what libvirt tells.
pub(super) fn look(host: &Host, notes: &Notes) {
    let check = Check::LibvirtReach;
    let text = &host.config.hypervisor.uri;
    let uri: HypervisorUri = match text.parse() {
        Ok(uri) => uri,
        Err(error) => {
            notes.error(
                check,
                "",
                format!("hypervisor.uri {error}"),
                "kvmlet does not start with it.",
                "Set uri = \"qemu:///system\" under [hypervisor].",
            );
            return;
        }
    };
    if let HypervisorKind::Embed { root } = uri.kind() {
        // Opening it would make it, and start a driver beside the agent's.
        notes.skipped(
            check,
            "",
            format!(
                "libvirt's driver runs inside the agent, below {}",
                root.display()
            ),
            "kvmlet node",
        );
        return;
    }
    let callbacks = Callbacks {
        on_event: Arc::new(|_| ()),
        on_close: Arc::new(|_| ()),
    };
    let libvirt = match Libvirt::open(&uri, NOBODY, 1, callbacks) {
        Ok(libvirt) => libvirt,
        Err(error) => {
            unreachable(host, uri.kind(), &error, notes);
            skip_libvirt_networks(host, notes);
            return;
        }
    };
    match libvirt.facts() {
        Ok(facts) => {
            notes.ok(check, "", format!("{text} answers"));
            tell(host, &facts, notes);
        }
        Err(error) => notes.error(
            check,
            "",
            format!("{text} answers, and fails: {error}"),
            "The agent can't use it.",
            "journalctl -u libvirtd -u virtqemud -n 50",
        ),
    }
    tell_libvirt_networks(host, &libvirt, notes);
    libvirt.close();
}

fn unreachable(host: &Host, kind: &HypervisorKind, error: &LibvirtError, notes: &Notes) {
    let check = Check::LibvirtReach;
    let found = format!("{}: {}", host.config.hypervisor.uri, error.message);
    if *kind != HypervisorKind::System {
        notes.error(
            check,
            "",
            found,
            "kvmlet waits for libvirt, and can do nothing meanwhile.",
            format!("virsh -c '{}' version", host.config.hypervisor.uri),
        );
        return;
    }
    let named = host.config.hypervisor.uri.split_once("socket=");
    let socket = match named {
        Some((_, path)) => Some(path).filter(|path| Path::new(path).exists()),
        None => SOCKETS.into_iter().find(|path| Path::new(path).exists()),
    };
    let socket = socket.map(Path::new);
    let denied = error.kind == ErrorKind::Denied
        || socket.is_some_and(|path| {
            let tried = std::os::unix::net::UnixStream::connect(path);
            tried.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        });
    match socket {
        Some(socket) if denied && !host.root => {
            let group = std::fs::metadata(socket)
                .ok()
                .and_then(|found| nix::unistd::Group::from_gid(found.gid().into()).ok()?)
                .map_or("libvirt".to_owned(), |group| group.name);
            notes.skipped(
                check,
                "",
                format!(
                    "{} lets in root and the group {group} only",
                    socket.display()
                ),
                format!(
                    "sudo kvmlet doctor. For a user of its own for kvmlet: usermod -aG {group} USER"
                ),
            );
        }
        Some(socket) if denied => notes.error(
            check,
            "",
            found,
            format!(
                "{} is there, and does not let this user in.",
                socket.display()
            ),
            "See unix_sock_rw_perms and auth_unix_rw in /etc/libvirt/libvirtd.conf (or \
             virtqemud.conf), and: pkaction --verbose --action-id org.libvirt.unix.manage",
        ),
        Some(socket) => notes.error(
            check,
            "",
            found,
            format!("{} is there, and nobody answers.", socket.display()),
            "systemctl restart libvirtd.service (or virtqemud.service); journalctl -u libvirtd \
             -u virtqemud -n 50",
        ),
        None => notes.error(
            check,
            "",
            found,
            "kvmlet waits for libvirt, and can do nothing meanwhile.",
            format!(
                "{}; then: systemctl enable --now libvirtd.socket (or virtqemud.socket)",
                packages::install(
                    "libvirt-daemon-system qemu-system-x86",
                    "libvirt-daemon-kvm"
                )
            ),
        ),
    }
}

fn tell(host: &Host, facts: &HostFacts, notes: &Notes) {
    if host.is_simulated() {
        notes.warning(
            Check::LibvirtQemu,
            "",
            "guests are simulated by libvirt's test driver",
            "No guest is real: that is for trying a control plane.",
            "For guests: set uri = \"qemu:///system\" under [hypervisor].",
        );
    }
    let version = facts.libvirt_version;
    let found = format!("libvirt {version}");
    if (version.major, version.minor) < LIBVIRT {
        notes.warning(
            Check::LibvirtVersion,
            "",
            found,
            format!(
                "kvmlet is tested with {}.{} and later.",
                LIBVIRT.0, LIBVIRT.1
            ),
            packages::install("libvirt-daemon-system", "libvirt-daemon-kvm"),
        );
    } else {
        notes.ok(Check::LibvirtVersion, "", found);
    }
    if host.is_simulated() {
        return;
    }
    qemu(facts, notes);
    if facts.uefi {
        let found = "libvirt finds a firmware for UEFI";
        notes.ok(Check::LibvirtFirmware, "", found);
    } else {
        notes.warning(
            Check::LibvirtFirmware,
            "",
            "libvirt finds no firmware for UEFI",
            "Guests with firmware = uefi are refused; those with a BIOS run.",
            packages::install("ovmf", "edk2-ovmf"),
        );
    }
}

fn qemu(facts: &HostFacts, notes: &Notes) {
    let check = Check::LibvirtQemu;
    let version = facts.hypervisor_version;
    let Some(emulator) = &facts.emulator else {
        notes.error(
            check,
            "",
            format!("libvirt has no emulator for {}", facts.arch),
            "No guest can run.",
            packages::install("qemu-system-x86", "qemu-kvm"),
        );
        return;
    };
    // There are a hundred; those that stay are the short names.
    let mut machines: Vec<&str> = facts.machines.iter().map(String::as_str).collect();
    machines.retain(|name| !name.contains('.'));
    machines.sort_unstable();
    let found = format!(
        "QEMU {version} for {} ({}); machine types {}",
        facts.arch,
        emulator.display(),
        machines.join(", ")
    );
    if (version.major, version.minor) < QEMU {
        notes.warning(
            check,
            "",
            found,
            format!("kvmlet is tested with {}.{} and later.", QEMU.0, QEMU.1),
            packages::install("qemu-system-x86", "qemu-kvm"),
        );
    } else {
        notes.ok(check, "", found);
    }
}
