//! Writes a domain as libvirt's XML.
//!
//! The devices nobody asked for are here too: entropy, balloon, serial console
//! to a file, the agent's channel, a display adapter, a pointer that follows
//! the VNC client's.

use super::element::{Element, check_title};

use super::spec::{
    DiskCache, DiskSpec, DomainAccelerator, DomainSpec, Metadata, NicSpec, PanicDevice, VncSpec,
    XmlError,
};
use super::{AGENT_CHANNEL, METADATA_NAMESPACE};
use crate::libvirt::owner::Owner;
use crate::model::hardware::{Cpu, Firmware};
use crate::model::nic::Attachment;
use crate::model::time::Timestamp;
use crate::model::view::VncEndpoint;
use crate::model::volume::{DiskSource, RbdSource, VolumeFormat};
use quick_xml::escape::escape;
use rand::Rng;
use rand::distr::Alphanumeric;
use std::borrow::Cow;
use std::path::Path;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Date, OffsetDateTime, Time, UtcOffset};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The place of a display's password.
const NO_PASSWORD: &str = "passwd=\"\"";

fn el(name: &'static str) -> Element {
    Element::new(name)
}

/// The path as text; libvirt's XML is UTF-8.
fn path_text(path: &Path) -> Result<String, XmlError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| XmlError::Path(path.to_owned()))
}

/// Our element for a domain's metadata as `virDomainSetMetadata` wants it:
/// without its namespace, which libvirt adds.
pub(in super::super) fn metadata(
    metadata: &Metadata,
    owner: Option<Owner>,
) -> Result<String, XmlError> {
    metadata_content(el("vm"), metadata, owner).to_xml()
}

fn metadata_element(metadata: &Metadata, owner: Owner) -> Element {
    let element = el("kvmlet:vm").with("xmlns:kvmlet", METADATA_NAMESPACE);
    metadata_content(element, metadata, Some(owner))
}

fn metadata_content(element: Element, metadata: &Metadata, owner: Option<Owner>) -> Element {
    let mut element = element.with("id", metadata.id.to_string());
    if let Some(owner) = owner {
        element = element
            .with("node", owner.node.to_string())
            .with("agent", owner.agent.to_string());
    }
    element
        .with("generation", metadata.generation.to_string())
        .text(metadata.record.as_str())
}

/// The whole definition of a domain.
pub(in super::super) fn domain(spec: &DomainSpec, owner: Owner) -> Result<String, XmlError> {
    check_title(&spec.title)?;
    let x86 = matches!(spec.arch.as_str(), "x86_64" | "i686");
    let simulated = spec.accelerator == DomainAccelerator::Test;
    let kind = match spec.accelerator {
        DomainAccelerator::Kvm => "kvm",
        DomainAccelerator::Tcg => "qemu",
        DomainAccelerator::Test => "test",
    };
    let optional = |name, text: &str| (!text.is_empty()).then(|| el(name).text(text));
    let domain = el("domain")
        .with("type", kind)
        .child(el("name").text(spec.name.as_str()))
        .child(el("uuid").text(spec.id.to_string()))
        .children(optional("title", &spec.title))
        .children(optional("description", &spec.description))
        .child(el("metadata").child(metadata_element(&spec.metadata, owner)))
        .child(
            el("memory")
                .with("unit", "b")
                .text(spec.memory.get().to_string()),
        )
        .child(el("vcpu").text(spec.vcpus.to_string()))
        .child(os(spec))
        .children((!simulated).then(|| features(x86)))
        .children((!simulated).then(|| cpu(spec)))
        .child(clock(x86))
        .child(el("on_poweroff").text("destroy"))
        .child(el("on_reboot").text("restart"))
        // A guest that panicked must not look as if it ran. That it did, its panic
        // device tells.
        .child(el("on_crash").text("destroy"))
        .children((x86 && !simulated).then(|| {
            // A guest that sleeps can't be told from one that hangs.
            el("pm")
                .child(el("suspend-to-mem").with("enabled", "no"))
                .child(el("suspend-to-disk").with("enabled", "no"))
        }))
        .child(devices(spec, x86, simulated)?);
    domain.to_xml()
}

/// How many bytes the definition of a domain takes on its way to libvirt, whoever its
/// owner is.
///
/// # Errors
/// As [`domain`].
pub fn size(spec: &DomainSpec) -> Result<usize, XmlError> {
    let owner = Owner {
        node: Uuid::nil(),
        agent: Uuid::nil(),
    };
    domain(spec, owner).map(|xml| xml.len())
}

fn os(spec: &DomainSpec) -> Element {
    if spec.accelerator == DomainAccelerator::Test {
        return el("os").child(el("type").text("hvm"));
    }
    let kind = el("type")
        .with("arch", spec.arch.as_str())
        .with("machine", spec.machine.as_str())
        .text("hvm");
    match spec.firmware {
        Firmware::Bios => el("os").child(kind),
        // Images are not expected to be signed by keys that a firmware knows.
        Firmware::Uefi => el("os").with("firmware", "efi").child(kind).child(
            el("firmware").child(
                el("feature")
                    .with("enabled", "no")
                    .with("name", "secure-boot"),
            ),
        ),
    }
}

fn features(x86: bool) -> Element {
    el("features")
        .child(el("acpi"))
        .children(x86.then(|| el("apic")))
}

fn cpu(spec: &DomainSpec) -> Element {
    let mode = |mode| el("cpu").with("mode", mode);
    match (&spec.cpu, spec.accelerator) {
        (Cpu::Auto, DomainAccelerator::Kvm) | (Cpu::HostPassthrough, _) => mode("host-passthrough")
            .with("check", "none")
            .with("migratable", "on"),
        (Cpu::HostModel, _) => mode("host-model").with("check", "partial"),
        (Cpu::Auto | Cpu::Maximum, _) => mode("maximum").with("check", "none"),
        (Cpu::Custom(name), _) => mode("custom")
            .with("match", "exact")
            .with("check", "none")
            .child(el("model").with("fallback", "forbid").text(name.as_str())),
    }
}

fn clock(x86: bool) -> Element {
    let timer = |name, attribute, value| el("timer").with("name", name).with(attribute, value);
    let timers = x86.then(|| {
        [
            timer("rtc", "tickpolicy", "catchup"),
            timer("pit", "tickpolicy", "delay"),
            timer("hpet", "present", "no"),
        ]
    });
    el("clock")
        .with("offset", "utc")
        .children(timers.into_iter().flatten())
}

fn devices(spec: &DomainSpec, x86: bool, simulated: bool) -> Result<Element, XmlError> {
    let mut devices = el("devices");
    if let Some(emulator) = spec.emulator.as_deref().filter(|_| !simulated) {
        devices = devices.child(el("emulator").text(path_text(emulator)?));
    }
    for spec in &spec.disks {
        devices = devices.child(disk(spec)?);
    }
    for spec in &spec.nics {
        devices = devices.child(nic(spec)?);
    }
    devices =
        devices.child(console("serial", &spec.console_log)?.child(el("target").with("port", "0")));
    if simulated {
        // The rest would be refused, or stand for nothing.
        return Ok(devices.children(spec.vnc.as_ref().map(vnc)));
    }
    Ok(devices
        .child(
            console("console", &spec.console_log)?
                .child(el("target").with("type", "serial").with("port", "0")),
        )
        .child(
            el("channel").with("type", "unix").child(
                el("target")
                    .with("type", "virtio")
                    .with("name", AGENT_CHANNEL),
            ),
        )
        .child(
            el("controller")
                .with("type", "usb")
                .with("model", "qemu-xhci"),
        )
        .child(el("input").with("type", "tablet").with("bus", "usb"))
        .children(spec.vnc.as_ref().map(vnc))
        // The plain VGA needs no driver, neither in firmware nor in guest.
        .child(el("video").child(el("model").with("type", if x86 { "vga" } else { "virtio" })))
        .child(
            el("memballoon")
                .with("model", "virtio")
                .with("autodeflate", "on")
                .with("freePageReporting", "on")
                .child(el("stats").with("period", "10")),
        )
        .child(
            el("rng")
                .with("model", "virtio")
                .child(el("backend").with("model", "random").text("/dev/urandom")),
        )
        .children(spec.panic.map(|device| {
            let model = match device {
                PanicDevice::Isa => "isa",
                PanicDevice::Pci => "pvpanic",
            };
            el("panic").with("model", model)
        })))
}

/// A terminal whose output also goes to a file. QEMU must append: the file is
/// cut from outside.
fn console(name: &'static str, log: &Path) -> Result<Element, XmlError> {
    Ok(el(name)
        .with("type", "pty")
        .child(el("log").with("file", path_text(log)?).with("append", "on")))
}

/// `vda`, ..., `vdz`, `vdaa`: the numbering has no zero.
pub(in super::super) fn target_name(index: u32) -> String {
    let mut letters = Vec::new();
    let mut rest = u64::from(index) + 1;
    while rest > 0 {
        let digit = u8::try_from((rest - 1) % 26).expect("a remainder by 26 fits");
        letters.push(char::from(b'a' + digit));
        rest = (rest - 1) / 26;
    }
    letters.extend("dv".chars());
    letters.iter().rev().collect()
}

const fn format_name(format: VolumeFormat) -> &'static str {
    match format {
        VolumeFormat::Qcow2 => "qcow2",
        VolumeFormat::Raw => "raw",
    }
}

const fn source_kind(source: &DiskSource) -> &'static str {
    match source {
        DiskSource::File(_) => "file",
        DiskSource::Rbd(_) => "network",
    }
}

fn source(source: &DiskSource) -> Result<Element, XmlError> {
    match source {
        DiskSource::File(path) => Ok(el("source").with("file", path_text(path)?)),
        DiskSource::Rbd(image) => Ok(rbd_source(image)),
    }
}

/// An RBD image, by its cluster's monitors and the secret that libvirt has for it.
fn rbd_source(image: &RbdSource) -> Element {
    let access = &image.access;
    let hosts = access.monitors.iter().map(|monitor| {
        let host = el("host").with("name", monitor.host.as_str());
        match monitor.port {
            Some(port) => host.with("port", port.to_string()),
            None => host,
        }
    });
    el("source")
        .with("protocol", "rbd")
        .with("name", format!("{}/{}", image.pool, image.image))
        .children(hosts)
        .children(
            image
                .snapshot
                .iter()
                .map(|name| el("snapshot").with("name", name.as_str())),
        )
        .child(
            el("auth").with("username", access.user.as_str()).child(
                el("secret")
                    .with("type", "ceph")
                    .with("uuid", access.secret.to_string()),
            ),
        )
}

/// A Ceph user's key, without its value.
pub(in super::super) fn ceph_secret(id: Uuid, usage: &str) -> Result<String, XmlError> {
    el("secret")
        .with("ephemeral", "yes")
        .with("private", "yes")
        .child(el("uuid").text(id.to_string()))
        .child(el("description").text("the key of a Ceph user, given by kvmlet"))
        .child(
            el("usage")
                .with("type", "ceph")
                .child(el("name").text(usage)),
        )
        .to_xml()
}

fn disk(spec: &DiskSpec) -> Result<Element, XmlError> {
    // The chain is written out to its end: what is not written, libvirt would
    // find by reading the guest's own bytes.
    let end = || el("backingStore");
    let backing = match &spec.backing {
        None => end(),
        Some((below, format)) => el("backingStore")
            .with("type", source_kind(below))
            .child(el("format").with("type", format_name(*format)))
            // libvirt would give the image to QEMU's user, and a guest that breaks
            // out could then write to the base of every other VM.
            .child(source(below)?.child(el("seclabel").with("model", "dac").with("relabel", "no")))
            .child(end()),
    };
    let limits = [
        ("total_bytes_sec", spec.qos.bytes_per_second),
        ("read_bytes_sec", spec.qos.read_bytes_per_second),
        ("write_bytes_sec", spec.qos.write_bytes_per_second),
        ("total_iops_sec", spec.qos.iops),
        ("read_iops_sec", spec.qos.read_iops),
        ("write_iops_sec", spec.qos.write_iops),
    ];
    let limits: Vec<_> = limits
        .into_iter()
        .filter(|(_, limit)| *limit > 0)
        .map(|(name, limit)| el(name).text(limit.to_string()))
        .collect();
    let cache = match spec.cache {
        DiskCache::None => "none",
        DiskCache::Writeback => "writeback",
    };
    Ok(el("disk")
        .with("type", source_kind(&spec.source))
        .with("device", "disk")
        .child(
            el("driver")
                .with("name", "qemu")
                .with("type", format_name(spec.format))
                .with("cache", cache)
                // A full disk pauses the guest, which loses nothing.
                .with("error_policy", "stop")
                .with("rerror_policy", "stop")
                .with("discard", "unmap"),
        )
        .child(source(&spec.source)?)
        .child(backing)
        .child(
            el("target")
                .with("dev", target_name(spec.index))
                .with("bus", "virtio"),
        )
        .children((!limits.is_empty()).then(|| el("iotune").children(limits)))
        .children(spec.read_only.then(|| el("readonly")))
        .children(spec.shareable.then(|| el("shareable")))
        .child(el("serial").text(spec.serial.as_str()))
        .children((spec.index == 0).then(|| el("boot").with("order", "1"))))
}

fn nic(spec: &NicSpec) -> Result<Element, XmlError> {
    let (kind, source, vlan) = match &spec.attachment {
        Attachment::Bridge { name, vlan } => (
            "bridge",
            Some(el("source").with("bridge", name.as_str())),
            *vlan,
        ),
        Attachment::LibvirtNetwork { name } => (
            "network",
            Some(el("source").with("network", name.as_str())),
            None,
        ),
        Attachment::User if spec.mtu.is_some() => return Err(XmlError::UserMtu),
        Attachment::User => ("user", None, None),
    };
    let vlan = vlan.map(|tag| el("vlan").child(el("tag").with("id", tag.to_string())));
    let mtu = spec.mtu.map(|mtu| el("mtu").with("size", mtu.to_string()));
    Ok(el("interface")
        .with("type", kind)
        .child(el("mac").with("address", spec.mac.to_string()))
        .children(source)
        .children(vlan)
        .child(el("model").with("type", spec.model.as_str()))
        .children(mtu))
}

fn listen(address: impl Into<String>) -> Element {
    el("listen")
        .with("type", "address")
        .with("address", address)
}

/// A display that no one can log in to: QEMU would let everyone in who finds
/// no password, so it has one, which nobody knows and which is out of date.
fn vnc(spec: &VncSpec) -> Element {
    let password: String = rand::rng()
        .sample_iter(Alphanumeric)
        .take(8)
        .map(char::from)
        .collect();
    el("graphics")
        .with("type", "vnc")
        .with("port", "-1")
        .with("autoport", "yes")
        .with("passwd", password)
        .with("passwdValidTo", valid_to(Timestamp(0)))
        .child(listen(spec.listen.to_string()))
}

/// The display's device as it is, but for its password. That is put into the
/// finished text, so that nothing that is not erased has seen it.
pub(in super::super) fn vnc_password(
    display: &VncEndpoint,
    password: &str,
    valid_until: Option<Timestamp>,
) -> Result<Zeroizing<String>, XmlError> {
    if !matches!(password.len(), 1..=8) || !password.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(XmlError::Password);
    }
    let mut device = el("graphics")
        .with("type", "vnc")
        .with("port", display.port.to_string())
        .with("autoport", "yes")
        .with("passwd", "");
    if let Some(time) = valid_until {
        device = device.with("passwdValidTo", valid_to(time));
    }
    let text = device.child(listen(display.address.to_string())).to_xml()?;
    let at = text.find(NO_PASSWORD).expect("it was written") + NO_PASSWORD.len() - 1;
    let (before, after) = text.split_at(at);
    let escaped = match escape(password) {
        Cow::Borrowed(password) => Zeroizing::new(password.to_owned()),
        Cow::Owned(password) => Zeroizing::new(password),
    };
    let mut whole = Zeroizing::new(String::with_capacity(text.len() + escaped.len()));
    for part in [before, &escaped, after] {
        whole.push_str(part);
    }
    Ok(whole)
}

/// A time as libvirt reads it: UTC, whole seconds, no zone.
fn valid_to(time: Timestamp) -> String {
    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
    // The crate counts up to the year 9999; nobody waits for it.
    let last = Date::MAX.with_time(Time::MIDNIGHT).assume_utc();
    let seconds = i64::try_from(time.seconds()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(last)
        .to_offset(UtcOffset::UTC)
        .format(FORMAT)
        .expect("every part of the format is there")
}
