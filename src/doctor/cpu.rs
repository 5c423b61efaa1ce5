//! The processor, and whether guests run on it or in a translator.

use super::{Check, Host, Notes, kernel};
use crate::model::hardware::Accelerator;
use crate::service::node::{Kvm, find_kvm};
use std::io::ErrorKind;
use std::path::Path;

const SLOW: &str = "Guests run in QEMU's translator (TCG): everything works, at a tenth of the \
                    speed or less.";

/// Looks at KVM, at nesting, and at what follows from both.
pub(super) fn look(host: &Host, notes: &Notes) {
    let kvm = find_kvm();
    let cpuinfo = kernel::text("/proc/cpuinfo");
    let virtual_ = is_guest(&cpuinfo);
    tell_kvm(host, &kvm, virtual_, notes);
    nested(virtual_, notes);
    let works = matches!(kvm, Kvm::Works);
    accelerator(host, works, notes);
}

fn tell_kvm(host: &Host, kvm: &Kvm, is_guest: bool, notes: &Notes) {
    let check = Check::CpuKvm;
    let firmware = if is_guest {
        "Turn nesting on for this guest on its own host (CPU mode host-passthrough)."
    } else {
        "Turn virtualisation (VT-x, AMD-V, SVM) on in the firmware's settings; see: dmesg | grep -i kvm"
    };
    let modules = kernel::text("/proc/modules");
    let loaded: Vec<&str> = modules
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| *name == "kvm" || name.starts_with("kvm_"))
        .collect();
    match kvm {
        Kvm::Works => {
            let modules = match loaded.is_empty() {
                true => String::new(),
                false => format!(" (modules {})", loaded.join(", ")),
            };
            notes.ok(check, "", format!("/dev/kvm opens{modules}"));
        }
        Kvm::NoDevice(error) if error.kind() == ErrorKind::PermissionDenied => {
            let found = "/dev/kvm may not be opened by this user";
            if host.root {
                let advice = "ls -l /dev/kvm; then: chown root:kvm /dev/kvm && chmod 0660 /dev/kvm";
                notes.warning(check, "", found, SLOW, advice);
            } else {
                notes.needs_root(check, "", found);
            }
        }
        Kvm::NoDevice(error) if error.kind() == ErrorKind::NotFound => {
            let advice = if loaded.is_empty() {
                format!("modprobe kvm_intel || modprobe kvm_amd. If both fail: {firmware}")
            } else {
                firmware.to_owned()
            };
            notes.warning(check, "", "there is no /dev/kvm", SLOW, advice);
        }
        Kvm::NoDevice(error) => {
            notes.warning(check, "", format!("/dev/kvm: {error}"), SLOW, firmware);
        }
        Kvm::NoFlags => notes.warning(
            check,
            "",
            "/dev/kvm opens, and the processor has neither vmx nor svm",
            format!("Guests would hang at their first unusual instruction. {SLOW}"),
            firmware,
        ),
    }
}

/// Whether the processor says that a hypervisor is below.
fn is_guest(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.any(|line| line.split_whitespace().any(|flag| flag == "hypervisor"))
}

fn nested(is_guest: bool, notes: &Notes) {
    let maker = ["sys_vendor", "product_name"]
        .map(|name| kernel::line(Path::new("/sys/class/dmi/id").join(name)))
        .join(" ");
    let itself = match (is_guest, maker.trim()) {
        (false, _) => "this host is a machine of its own".to_owned(),
        (true, "") => "this host is a guest itself".to_owned(),
        (true, maker) => format!("this host is a guest itself ({maker})"),
    };
    let offers = ["kvm_intel", "kvm_amd"].into_iter().find_map(|module| {
        let value = kernel::line(format!("/sys/module/{module}/parameters/nested"));
        match value.as_str() {
            "Y" | "1" => Some("its guests can have guests"),
            "N" | "0" => Some("its guests can't have guests"),
            _ => None,
        }
    });
    let offers = offers.map_or(String::new(), |offers| format!("; {offers}"));
    notes.ok(Check::CpuNested, "", format!("{itself}{offers}"));
}

/// As the agent decides: what is configured, and KVM only if it truly works.
fn accelerator(host: &Host, works: bool, notes: &Notes) {
    let check = Check::CpuAccelerator;
    match (host.config.hypervisor.accelerator, works) {
        (Accelerator::Auto, true) => notes.ok(check, "", "auto means KVM here"),
        (Accelerator::Kvm, true) => notes.ok(check, "", "KVM"),
        (Accelerator::Tcg, _) => notes.warning(
            check,
            "",
            "TCG, as configured",
            SLOW,
            "Unless that is meant: set accelerator = \"auto\" under [hypervisor].",
        ),
        // What can't be opened by this user may work for the agent.
        (Accelerator::Auto | Accelerator::Kvm, false)
            if !host.root && Path::new("/dev/kvm").exists() =>
        {
            notes.needs_root(check, "", "what auto means depends on /dev/kvm");
        }
        (Accelerator::Auto, false) => {
            notes.warning(check, "", "auto means TCG here", SLOW, "See cpu.kvm above.")
        }
        (Accelerator::Kvm, false) => notes.error(
            check,
            "",
            "KVM is configured, and does not work",
            "Every guest that asks for nothing else is refused.",
            "See cpu.kvm above; or set accelerator = \"auto\" under [hypervisor].",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_by_its_flag() {
        assert!(is_guest("processor : 0\nflags\t\t: fpu hypervisor sse\n"));
        assert!(!is_guest("flags\t\t: fpu vmx\nmodel name : hypervisor\n"));
    }
}
