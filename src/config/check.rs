//! The keys of the configuration: what each may be, alone and together.

use super::access::access;
use super::audit::audit;
use super::events;
use super::faults::ConfigFaults;
use super::features::Features;
use super::limits::limits;
use super::metrics::metrics;
use super::pools::{PoolSettings, pools};
use super::report::{nats, report};
use super::section::{Document, Section, check_path};
use super::settings::{
    ApiSettings, Config, HardwareProfile, HypervisorSettings, ImageSettings, JournalSettings,
    LogSettings, LogTarget, Network, NodeSettings, OperationSettings, ShutdownSettings, VmSettings,
    VncSettings,
};
use super::tls::server_tls;
use super::traces::traces;
use crate::model::access::Role;
use crate::model::bytes::Bytes;
use crate::model::hardware::{Accelerator, Cpu, Firmware, Hardware};
use crate::model::nic::Attachment;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeTable;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86400);
/// No wish of anyone, and still far from where times overflow.
const DECADE: Duration = Duration::from_secs(3650 * 86400);
/// Longest path of a Unix socket that Linux takes, without its final NUL.
const SOCKET_PATH_MAX: usize = 107;

/// Reads a configuration's text.
pub(super) fn read(text: &str) -> Result<Config, ConfigFaults> {
    read_with(text, Features::BUILT)
}

/// Reads a configuration's text for a program that was built with these features.
pub(super) fn read_with(text: &str, built: Features) -> Result<Config, ConfigFaults> {
    let document = Document::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        document.fault("", error.message(), error.span().map(|span| span.start));
    }
    // A table with holes in it would only be blamed for the holes.
    let config = errors
        .is_empty()
        .then(|| root(Section::root(&document, table.get_ref()), built));
    let faults = document.into_faults();
    match config {
        Some(config) if faults.is_empty() => Ok(config),
        _ => Err(ConfigFaults::new(faults)),
    }
}

fn root(file: Section<'_>, built: Features) -> Config {
    let node = node(file.section("node"));
    let hypervisor = hypervisor(file.section("hypervisor"));
    let vms = vms(file.section("vms"));
    let pools = pools(&file, &hypervisor);
    let mut sinks = Vec::new();
    let config = Config {
        report: report(&file, &mut sinks),
        nats: nats(&file, &mut sinks, built),
        images: images(file.section("images"), &pools),
        networks: networks(&file),
        hardware_profiles: hardware_profiles(&file, &hypervisor, &vms),
        api: api(file.section("api")),
        access: access(file.section("access")),
        limits: limits(file.section("limits")),
        audit: audit(file.section("audit")),
        journal: journal(file.section("journal")),
        log: log(file.section("log")),
        metrics: metrics(file.section("metrics")),
        traces: traces(file.section("traces"), built),
        vnc: vnc(file.section("vnc")),
        operations: operations(file.section("operations")),
        events: events::read(file.section("events")),
        shutdown: shutdown(file.section("shutdown")),
        node,
        hypervisor,
        vms,
        pools,
    };
    file.finish();
    config
}

fn node(section: Section<'_>) -> NodeSettings {
    let id = section.parsed("id", |text| match Uuid::try_parse(text) {
        Ok(id) if !id.is_nil() => Ok(id),
        _ => Err("is not a UUID"),
    });
    let labels = section.strings("labels");
    section.finish();
    NodeSettings { id, labels }
}

const ACCELERATORS: [(&str, Accelerator); 3] = [
    ("auto", Accelerator::Auto),
    ("kvm", Accelerator::Kvm),
    ("tcg", Accelerator::Tcg),
];

fn hypervisor(section: Section<'_>) -> HypervisorSettings {
    let default = HypervisorSettings::default();
    let settings = HypervisorSettings {
        uri: section.parsed("uri", check_uri).unwrap_or(default.uri),
        connections: section
            .number("connections", 1..=32)
            .unwrap_or(default.connections),
        call_timeout: section
            .duration("call_timeout", SECOND..=HOUR)
            .unwrap_or(default.call_timeout),
        accelerator: section.choice("accelerator", default.accelerator, &ACCELERATORS),
    };
    section.finish();
    settings
}

/// Takes the drivers that kvmlet is made for, on this host only: it reads and
/// writes the disks' files itself, so the hypervisor must see the same ones.
/// Parameters are looked at closely where the URI is used.
fn check_uri(text: &str) -> Result<String, &'static str> {
    const KINDS: &str = "must be qemu:///system, qemu:///session, qemu:///embed?root=DIR or \
         test:///default, the daemons' also as qemu+unix or test+unix with ?socket=PATH";
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("must not hold control characters or spaces");
    }
    let (scheme, rest) = text.split_once("://").ok_or(KINDS)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !matches!(scheme, "qemu" | "qemu+unix" | "test" | "test+unix") {
        return Err(KINDS);
    }
    if !path.starts_with('/') {
        return Err("must not name a host: kvmlet runs on the host that it serves");
    }
    match (scheme, path) {
        ("qemu" | "qemu+unix", "/system" | "/session") => {}
        ("qemu", "/embed") if query.starts_with("root=/") => {}
        ("qemu", "/embed") => return Err("must name an absolute directory after root="),
        ("test" | "test+unix", path) if path != "/" => {}
        _ => return Err(KINDS),
    }
    Ok(text.to_owned())
}

fn api(section: Section<'_>) -> ApiSettings {
    let default = ApiSettings::default();
    let settings = ApiSettings {
        socket: section
            .parsed("socket", check_socket_path)
            .unwrap_or(default.socket),
        socket_mode: section
            .parsed("socket_mode", check_socket_mode)
            .unwrap_or(default.socket_mode),
        socket_group: section.parsed("socket_group", check_group),
        listen: section.parsed("listen", |text| {
            text.parse()
                .map_err(|_| "is not an address and port such as \"192.0.2.7:7443\"")
        }),
        tls: server_tls(section.section("tls"), section.has("tls")),
        plaintext_role: section.has("plaintext_role").then(|| {
            let roles = Role::ALL.map(|role| (role.as_str(), role));
            section.choice("plaintext_role", Role::Viewer, &roles)
        }),
    };
    check_listener(&section, &settings);
    section.finish();
    settings
}

/// What is not encrypted stays on this host, and only where that is asked for.
fn check_listener(section: &Section<'_>, settings: &ApiSettings) {
    let (tls, plaintext) = (section.has("tls"), section.has("plaintext_role"));
    match settings.listen {
        None => {
            for key in ["tls", "plaintext_role"] {
                if section.has(key) && !section.has("listen") {
                    section.fault(key, "needs listen");
                }
            }
        }
        Some(_) if tls && plaintext => {
            section.fault("plaintext_role", "can't be given besides tls");
        }
        Some(_) if tls => {}
        Some(_) if !plaintext => section.fault(
            "listen",
            "needs tls; or, on a loopback address, plaintext_role, which says what everyone \
             on this host may do",
        ),
        Some(address) if !address.ip().is_loopback() => section.fault(
            "listen",
            "must be a loopback address with plaintext_role: without tls the API must not \
             leave the host",
        ),
        Some(_) => {}
    }
}

pub(super) fn check_socket_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = check_path(text)?;
    if text.len() > SOCKET_PATH_MAX {
        return Err("is longer than a socket's path may be (107 bytes)");
    }
    Ok(path)
}

pub(super) fn check_group(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.contains([':', '\0', '\n']) {
        return Err("is not the name of a group");
    }
    Ok(text.to_owned())
}

/// Who may do what is for `[access]` to say, whoever can open the socket.
fn check_socket_mode(text: &str) -> Result<u32, &'static str> {
    let mode = (text.len() == 4 && text.starts_with('0'))
        .then(|| u32::from_str_radix(text, 8).ok())
        .flatten()
        .ok_or("is not a file mode such as \"0660\"")?;
    if mode & 0o600 != 0o600 {
        return Err("must let the owner in");
    }
    Ok(mode)
}

fn journal(section: Section<'_>) -> JournalSettings {
    let path = section
        .absolute_path("path")
        .unwrap_or_else(|| JournalSettings::default().path);
    section.finish();
    JournalSettings { path }
}

fn log(section: Section<'_>) -> LogSettings {
    let default = LogSettings::default();
    let settings = LogSettings {
        level: section
            .parsed("level", check_level)
            .unwrap_or(default.level),
        target: section.choice(
            "target",
            default.target,
            &[
                ("auto", LogTarget::Auto),
                ("journald", LogTarget::Journald),
                ("stderr", LogTarget::Stderr),
            ],
        ),
    };
    section.finish();
    settings
}

/// The filter's own parser takes a lone word that is no level as the name of a
/// target, and then a mistyped level silences everything: refuse that.
fn check_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in text.split(',') {
        let directive = directive.trim();
        if !directive.contains(['=', '[']) && !LEVELS.contains(&directive) {
            return Err(format!(
                "{directive:?} must be one of {}",
                LEVELS.join(", ")
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|error| format!("is not a filter: {error}"))?;
    Ok(text.to_owned())
}

/// Checks a name that callers use: of pools, networks, profiles.
pub(super) fn check_name(text: &str) -> Result<String, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 letters, digits, dots, underscores or hyphens")
    }
}

/// A string that must be there.
pub(super) fn required<T>(
    section: &Section<'_>,
    key: &'static str,
    parse: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Option<T> {
    if !section.has(key) {
        section.fault(key, "is missing");
        return None;
    }
    section.parsed(key, parse)
}

fn images(section: Section<'_>, pools: &[PoolSettings]) -> ImageSettings {
    let default = ImageSettings::default();
    let settings = ImageSettings {
        allowed_dirs: section
            .list("allowed_dirs", |text| check_import_dir(text, pools))
            .unwrap_or(default.allowed_dirs),
        allowed_url_prefixes: section
            .list("allowed_url_prefixes", |text| {
                if text.starts_with("https://") || text.starts_with("http://") {
                    Ok(text.to_owned())
                } else {
                    Err("must begin with https:// or http://")
                }
            })
            .unwrap_or(default.allowed_url_prefixes),
        max_virtual_size: section
            .size("max_virtual_size", Bytes::mib(1)..=Bytes::gib(1 << 20))
            .unwrap_or(default.max_virtual_size),
        max_source_size: section
            .size("max_source_size", Bytes::mib(1)..=Bytes::gib(1 << 20))
            .unwrap_or(default.max_source_size),
        download_stall: section
            .duration("download_stall", SECOND..=HOUR)
            .unwrap_or(default.download_stall),
    };
    section.finish();
    settings
}

/// A directory to import from must not reach a pool: one tenant's volume could
/// then be imported as another's image.
fn check_import_dir(text: &str, pools: &[PoolSettings]) -> Result<PathBuf, String> {
    let dir = check_path(text)?;
    match pools
        .iter()
        .find(|pool| pool.path.starts_with(&dir) || dir.starts_with(&pool.path))
    {
        Some(pool) => Err(format!(
            "overlaps with the pool {:?}, whose volumes could then be read as images",
            pool.name
        )),
        None => Ok(dir),
    }
}

fn networks(file: &Section<'_>) -> Vec<Network> {
    let mut networks: Vec<Network> = Vec::new();
    for section in file.sections("networks") {
        let id = required(&section, "id", check_name);
        if let Some(id) = &id
            && networks.iter().any(|other| &other.id == id)
        {
            section.fault("id", format_args!("{id:?} is taken by another network"));
        }
        let attachment = attachment(&section);
        let mtu = section.number("mtu", 68..=65_535);
        if let (Some(id), Some(attachment)) = (id, attachment) {
            networks.push(Network {
                id,
                attachment,
                mtu,
            });
        }
        section.finish();
    }
    networks
}

fn attachment(section: &Section<'_>) -> Option<Attachment> {
    let bridge = section.parsed("bridge", |text| {
        // IFNAMSIZ with its final NUL, and what the kernel refuses in a name.
        if (1..=15).contains(&text.len()) && !text.contains(['/', ':', ' ', '\0', '\n']) {
            Ok(text.to_owned())
        } else {
            Err("is not the name of an interface")
        }
    });
    let libvirt_network = section.parsed("libvirt_network", check_name);
    let user = section.flag("user");
    let vlan = section.number("vlan", 1..=4094);
    if section.has("vlan") && !section.has("bridge") {
        section.fault("vlan", "needs a bridge");
    }
    let named = ["bridge", "libvirt_network"];
    let count =
        named.iter().filter(|key| section.has(key)).count() + usize::from(user == Some(true));
    if count != 1 {
        section.fault(
            "",
            "needs exactly one of bridge, libvirt_network and user = true",
        );
        return None;
    }
    if user == Some(true) {
        return Some(Attachment::User);
    }
    bridge
        .map(|name| Attachment::Bridge { name, vlan })
        .or(libvirt_network.map(|name| Attachment::LibvirtNetwork { name }))
}

fn hardware_profiles(
    file: &Section<'_>,
    hypervisor: &HypervisorSettings,
    vms: &VmSettings,
) -> Vec<HardwareProfile> {
    let mut profiles: Vec<HardwareProfile> = Vec::new();
    for section in file.sections("hardware_profiles") {
        let id = required(&section, "id", check_name);
        if let Some(id) = &id
            && profiles.iter().any(|other| &other.id == id)
        {
            section.fault("id", format_args!("{id:?} is taken by another profile"));
        }
        for key in ["vcpus", "memory"] {
            if !section.has(key) {
                section.fault(key, "is missing");
            }
        }
        let vcpus = section.number("vcpus", 1..=vms.max_vcpus_per_vm);
        let memory = section.size("memory", Bytes::mib(1)..=Bytes::gib(1 << 14));
        let hardware = Hardware {
            vcpus: vcpus.unwrap_or(1),
            memory: memory.unwrap_or(Bytes::mib(1)),
            cpu: cpu(&section),
            machine: section
                .parsed("machine", check_name)
                .unwrap_or_else(|| "q35".to_owned()),
            firmware: section.choice(
                "firmware",
                Firmware::default(),
                &[("bios", Firmware::Bios), ("uefi", Firmware::Uefi)],
            ),
            accelerator: section.choice("accelerator", hypervisor.accelerator, &ACCELERATORS),
        };
        if let Some(id) = id {
            profiles.push(HardwareProfile { id, hardware });
        }
        section.finish();
    }
    profiles
}

fn cpu(section: &Section<'_>) -> Cpu {
    let model = section.parsed("cpu_model", check_name);
    let custom = section.text("cpu_mode") == Some("custom");
    if custom && !section.has("cpu_model") {
        section.fault("cpu_model", "is missing; cpu_mode = \"custom\" needs it");
    }
    if !custom && section.has("cpu_model") {
        section.fault("cpu_model", "needs cpu_mode = \"custom\"");
    }
    section.choice(
        "cpu_mode",
        Cpu::default(),
        &[
            ("auto", Cpu::Auto),
            ("host-passthrough", Cpu::HostPassthrough),
            ("host-model", Cpu::HostModel),
            ("maximum", Cpu::Maximum),
            ("custom", Cpu::Custom(model.unwrap_or_default())),
        ],
    )
}

fn vms(section: Section<'_>) -> VmSettings {
    let default = VmSettings::default();
    let settings = VmSettings {
        retention: section
            .duration("retention", Duration::ZERO..=DECADE)
            .unwrap_or(default.retention),
        keep_old_root: section
            .duration("keep_old_root", Duration::ZERO..=DECADE)
            .unwrap_or(default.keep_old_root),
        stop_timeout: section
            .duration("stop_timeout", SECOND..=DAY)
            .unwrap_or(default.stop_timeout),
        stop_resend: section
            .duration("stop_resend", SECOND..=HOUR)
            .unwrap_or(default.stop_resend),
        console_dir: section
            .absolute_path("console_dir")
            .unwrap_or(default.console_dir),
        console_max: section
            .size("console_max", Bytes::kib(64)..=Bytes::gib(1))
            .unwrap_or(default.console_max),
        vcpu_overcommit: section
            .ratio("vcpu_overcommit", 0.1..=1000.0)
            .unwrap_or(default.vcpu_overcommit),
        memory_overcommit: section
            .ratio("memory_overcommit", 0.1..=100.0)
            .unwrap_or(default.memory_overcommit),
        reserved_memory: section
            .size("reserved_memory", Bytes::ZERO..=Bytes::gib(1 << 14))
            .unwrap_or(default.reserved_memory),
        max_vcpus_per_vm: section
            .number("max_vcpus_per_vm", 1..=4096)
            .unwrap_or(default.max_vcpus_per_vm),
        address_refresh: section
            .duration("address_refresh", SECOND..=DAY)
            .unwrap_or(default.address_refresh),
    };
    section.finish();
    settings
}

fn vnc(section: Section<'_>) -> VncSettings {
    let default = VncSettings::default();
    let settings = VncSettings {
        listen: section
            .parsed("listen", |text| {
                text.parse().map_err(|_| "is not an IP address")
            })
            .unwrap_or(default.listen),
        password_ttl: section
            .duration("password_ttl", 5 * SECOND..=HOUR)
            .unwrap_or(default.password_ttl),
    };
    section.finish();
    settings
}

fn operations(section: Section<'_>) -> OperationSettings {
    let default = OperationSettings::default();
    let settings = OperationSettings {
        keep: section
            .duration("keep", HOUR..=DECADE)
            .unwrap_or(default.keep),
        queue: section
            .number("queue", 1..=100_000)
            .unwrap_or(default.queue),
        queue_per_vm: section
            .number("queue_per_vm", 1..=10_000)
            .unwrap_or(default.queue_per_vm),
    };
    section.finish();
    settings
}

fn shutdown(section: Section<'_>) -> ShutdownSettings {
    let grace = section
        .duration("grace", SECOND..=HOUR)
        .unwrap_or_else(|| ShutdownSettings::default().grace);
    section.finish();
    ShutdownSettings { grace }
}
