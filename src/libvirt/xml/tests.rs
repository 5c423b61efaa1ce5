//! What is written is what is read back, whatever the text.

use super::super::capabilities::Version;
use super::spec::{
    DiskCache, DiskSpec, DomainAccelerator, DomainSpec, Metadata, NicSpec, PanicDevice, VncSpec,
    XmlError,
};
use super::{METADATA_NAMESPACE, read, write};
use crate::libvirt::owner::Owner;
use crate::model::bytes::Bytes;
use crate::model::hardware::{Cpu, Firmware};
use crate::model::ids::{ImageId, NicId, VmId};
use crate::model::nic::{Attachment, MacAddress, NicModel};
use crate::model::request::{CreateVm, HardwareWish, NewNic, NewVolume};
use crate::model::time::Timestamp;
use crate::model::view::VncEndpoint;
use crate::model::volume::{
    CephAccess, CephMonitor, DiskSource, RbdSource, VolumeFormat, VolumeQos,
};
use proptest::prelude::*;
use roxmltree::{Document, Node};
use std::collections::BTreeMap;
use std::path::PathBuf;
use uuid::Uuid;

const OWNER: Owner = Owner {
    node: Uuid::from_u128(0x6e6f_6465),
    agent: Uuid::from_u128(0x0061_6765_6e74),
};

fn spec() -> DomainSpec {
    let id = VmId::random();
    DomainSpec {
        id,
        name: "kvmlet-1".to_owned(),
        title: "title".to_owned(),
        description: "description".to_owned(),
        metadata: Metadata {
            id,
            generation: 7,
            record: "{}".to_owned(),
        },
        accelerator: DomainAccelerator::Kvm,
        arch: "x86_64".to_owned(),
        emulator: Some("/usr/bin/qemu-system-x86_64".into()),
        machine: "q35".to_owned(),
        firmware: Firmware::Bios,
        vcpus: 2,
        memory: Bytes::gib(1),
        cpu: Cpu::Auto,
        disks: vec![disk(0)],
        nics: vec![nic(Attachment::User, None)],
        vnc: Some(VncSpec {
            listen: "127.0.0.1".parse().unwrap(),
        }),
        panic: None,
        console_log: "/var/log/console".into(),
    }
}

fn disk(index: u32) -> DiskSpec {
    DiskSpec {
        index,
        source: DiskSource::File("/pool/overlay".into()),
        format: VolumeFormat::Qcow2,
        backing: Some((DiskSource::File("/pool/base".into()), VolumeFormat::Raw)),
        serial: "serial".to_owned(),
        cache: DiskCache::None,
        shareable: false,
        read_only: false,
        qos: VolumeQos::default(),
    }
}

fn nic(attachment: Attachment, mtu: Option<u32>) -> NicSpec {
    NicSpec {
        mac: MacAddress::derived(NicId::random(), VmId::random()),
        model: NicModel::Virtio,
        mtu,
        attachment,
    }
}

fn written(spec: &DomainSpec) -> String {
    write::domain(spec, OWNER).expect("a spec that can be written")
}

/// The names of all elements and attributes, without their values.
fn structure(xml: &str) -> Vec<String> {
    fn walk(node: Node<'_, '_>, into: &mut Vec<String>) {
        into.push(node.tag_name().name().to_owned());
        into.extend(node.attributes().map(|a| format!("@{}", a.name())));
        for child in node.children().filter(Node::is_element) {
            walk(child, into);
        }
        into.push("/".to_owned());
    }
    let document = Document::parse(xml).expect("what was written is well-formed");
    let mut names = Vec::new();
    walk(document.root_element(), &mut names);
    names
}

/// The text of the element at a path, or the attribute that ends it.
fn value(xml: &str, path: &str) -> Option<String> {
    let document = Document::parse(xml).expect("what was written is well-formed");
    let mut node = document.root_element();
    for step in path.split('/') {
        if let Some(attribute) = step.strip_prefix('@') {
            return node.attribute(attribute).map(str::to_owned);
        }
        node = node.children().find(|n| n.has_tag_name(step))?;
    }
    Some(node.text().unwrap_or_default().to_owned())
}

/// Any text that XML can carry.
fn legal() -> impl Strategy<Value = String> {
    let tricky = prop_oneof![
        Just('<'),
        Just('>'),
        Just('&'),
        Just('\''),
        Just('"'),
        Just(']'),
        Just('\t'),
        Just(' '),
        Just('\u{85}'),
        Just('\u{2028}'),
        Just('\u{1f600}'),
        any::<char>(),
    ];
    proptest::collection::vec(tricky, 1..40)
        .prop_map(|chars| chars.into_iter().collect::<String>())
        .prop_filter("XML carries it", |text| super::check_text(text).is_ok())
}

/// Any text that a record carries: JSON escapes what XML can't say, but for the two
/// that the API refuses.
fn carried() -> impl Strategy<Value = String> {
    let chars = prop_oneof![
        any::<char>(),
        (0_u8..0x20).prop_map(char::from),
        Just('\u{7f}'),
        Just('"'),
        Just('\\')
    ];
    proptest::collection::vec(chars, 0..40)
        .prop_map(|chars| chars.into_iter().collect::<String>())
        .prop_filter("not a noncharacter", |text| {
            !text.contains(['\u{fffe}', '\u{ffff}'])
        })
}

/// A domain with a name in each place that has one.
fn spec_of_devices(names: &[String]) -> DomainSpec {
    let rbd = RbdSource {
        pool: names[6].clone(),
        image: names[7].clone(),
        snapshot: Some(names[8].clone()),
        access: CephAccess {
            conf: "/conf".into(),
            user: names[10].clone(),
            keyring: "/keyring".into(),
            monitors: vec![CephMonitor {
                host: names[9].clone(),
                port: Some(3300),
            }],
            secret: Uuid::nil(),
        },
    };
    let bridge = Attachment::Bridge {
        name: names[0].clone(),
        vlan: Some(7),
    };
    let network = Attachment::LibvirtNetwork {
        name: names[1].clone(),
    };
    DomainSpec {
        machine: names[2].clone(),
        cpu: Cpu::Custom(names[3].clone()),
        emulator: Some(PathBuf::from(&names[4])),
        disks: vec![DiskSpec {
            serial: names[5].clone(),
            source: DiskSource::Rbd(Box::new(rbd)),
            format: VolumeFormat::Raw,
            backing: Some((
                DiskSource::File(PathBuf::from(&names[11])),
                VolumeFormat::Raw,
            )),
            ..disk(0)
        }],
        nics: vec![nic(bridge, None), nic(network, None)],
        ..spec()
    }
}

/// What was asked for, with a text in each place that has one.
fn wish(texts: &[String]) -> CreateVm {
    let text = |at: usize| texts[at].clone();
    let map = |key: usize, value: usize| BTreeMap::from([(text(key), text(value))]);
    CreateVm {
        vm_id: None,
        name: text(0),
        description: text(1),
        labels: map(2, 3),
        annotations: map(4, 5),
        package: text(6),
        hardware_profile_id: Some(text(7)),
        hardware: HardwareWish::default(),
        image_id: ImageId(Uuid::nil()),
        root_volume: NewVolume {
            name: text(8),
            pool: Some(text(9)),
            description: text(10),
            annotations: map(11, 12),
            ..NewVolume::default()
        },
        data_volumes: Vec::new(),
        nics: vec![NewNic {
            nic_id: None,
            network_id: Some(text(13)),
            mac: None,
            model: NicModel::Virtio,
            mtu: None,
            ip_addresses: vec![text(0)],
            metadata: map(1, 2),
            attachment: Some(Attachment::LibvirtNetwork { name: text(3) }),
        }],
        vnc: true,
        system_tags: vec![text(4)],
        user_tags: vec![text(5), text(6)],
        platform: text(7),
        os: text(8),
        start: true,
    }
}

proptest! {
    #[test]
    fn any_legal_text_comes_back_and_changes_no_structure(
        title in legal(), description in legal(), record in legal(), path in legal(),
    ) {
        prop_assume!(super::check_title(&title).is_ok());
        let plain = spec();
        let mut odd = plain.clone();
        odd.title.clone_from(&title);
        // Line breaks of every kind are content too.
        odd.description = format!("\r{description}\r\n\n");
        odd.metadata.record.clone_from(&record);
        odd.name.clone_from(&path);
        odd.console_log = PathBuf::from(&path);
        odd.disks[0].source = DiskSource::File(PathBuf::from(&path));
        let xml = written(&odd);
        prop_assert_eq!(structure(&xml), structure(&written(&plain)));
        prop_assert_eq!(value(&xml, "title").unwrap(), title);
        prop_assert_eq!(value(&xml, "description").unwrap(), odd.description);
        prop_assert_eq!(value(&xml, "name").unwrap(), path.clone());
        prop_assert_eq!(value(&xml, "devices/disk/source/@file").unwrap(), path.clone());
        prop_assert_eq!(value(&xml, "devices/serial/log/@file").unwrap(), path.clone());
        prop_assert_eq!(read::disks(&xml).unwrap()[0].source.clone(), Some(path));
        let element = write::metadata(&odd.metadata, Some(OWNER)).unwrap();
        prop_assert_eq!(read::metadata(&element).unwrap(), (odd.metadata, Some(OWNER)));
    }

    #[test]
    fn every_name_of_a_device_comes_back_and_changes_no_structure(
        names in proptest::collection::vec(legal(), 12),
    ) {
        let plain = spec_of_devices(&vec!["x".to_owned(); 12]);
        let xml = written(&spec_of_devices(&names));
        prop_assert_eq!(structure(&xml), structure(&written(&plain)));
        let document = Document::parse(&xml).unwrap();
        let attributes = |element: &str, attribute: &str| -> Vec<String> {
            let all = document.descendants().filter(|n| n.has_tag_name(element));
            all.filter_map(|n| n.attribute(attribute).map(str::to_owned)).collect()
        };
        let texts = |element: &str| -> Vec<String> {
            let all = document.descendants().filter(|n| n.has_tag_name(element));
            all.map(|n| n.text().unwrap_or_default().to_owned()).collect()
        };
        prop_assert_eq!(attributes("source", "bridge"), &names[0..1]);
        prop_assert_eq!(attributes("source", "network"), &names[1..2]);
        prop_assert_eq!(attributes("type", "machine"), &names[2..3]);
        prop_assert_eq!(attributes("type", "arch"), ["x86_64"]);
        // That of the video is without text.
        prop_assert_eq!(&texts("model")[0], &names[3]);
        prop_assert_eq!(texts("emulator"), &names[4..5]);
        prop_assert_eq!(texts("serial")[0].clone(), names[5].clone());
        let image = format!("{}/{}", names[6], names[7]);
        prop_assert_eq!(attributes("source", "name"), [image.clone()]);
        prop_assert_eq!(read::disks(&xml).unwrap()[0].source.clone(), Some(image));
        prop_assert_eq!(attributes("snapshot", "name"), &names[8..9]);
        prop_assert_eq!(attributes("host", "name"), &names[9..10]);
        prop_assert_eq!(attributes("auth", "username"), &names[10..11]);
        prop_assert_eq!(attributes("source", "file"), &names[11..12]);
    }

    #[test]
    fn a_record_of_any_text_comes_back_from_the_domain(
        texts in proptest::collection::vec(carried(), 14),
    ) {
        let wish = wish(&texts);
        let plain = spec();
        let mut odd = plain.clone();
        odd.metadata.record = serde_json::to_string(&wish).unwrap();
        let xml = written(&odd);
        prop_assert_eq!(structure(&xml), structure(&written(&plain)));
        let document = Document::parse(&xml).unwrap();
        let ours = document
            .descendants()
            .find(|n| n.tag_name().namespace() == Some(METADATA_NAMESPACE))
            .unwrap();
        let (found, _) = read::metadata(&xml[ours.range()]).unwrap();
        prop_assert_eq!(serde_json::from_str::<CreateVm>(&found.record).unwrap(), wish);
    }

    #[test]
    fn the_name_of_a_ceph_users_key_comes_back(usage in legal()) {
        let id = Uuid::nil();
        let xml = write::ceph_secret(id, &usage).unwrap();
        prop_assert_eq!(structure(&xml), structure(&write::ceph_secret(id, "x").unwrap()));
        prop_assert_eq!(value(&xml, "usage/name").unwrap(), usage);
    }

    #[test]
    fn text_that_is_not_legal_is_refused(
        before in legal(),
        illegal in prop_oneof![0_u32..9, 0xb_u32..0xd, 0xe_u32..0x20, 0xfffe_u32..0x1_0000],
    ) {
        let illegal = char::from_u32(illegal).unwrap();
        let mut spec = spec();
        spec.description = format!("{before}{illegal}");
        prop_assert_eq!(write::domain(&spec, OWNER), Err(XmlError::Character(illegal)));
    }
}

#[test]
fn a_title_has_one_line() {
    for title in ["a\nb", "a\rb"] {
        let mut spec = spec();
        spec.title = title.to_owned();
        assert_eq!(write::domain(&spec, OWNER), Err(XmlError::TitleLines));
    }
}

#[test]
fn the_metadata_has_our_namespace() {
    let spec = spec();
    let xml = written(&spec);
    let document = Document::parse(&xml).unwrap();
    let ours = document
        .descendants()
        .find(|n| n.tag_name().namespace() == Some(METADATA_NAMESPACE))
        .expect("our element");
    assert_eq!(ours.parent().unwrap().tag_name().name(), "metadata");
    assert_eq!(
        read::metadata(&xml[ours.range()]).unwrap(),
        (spec.metadata, Some(OWNER))
    );
}

#[test]
fn metadata_that_is_not_ours_is_unreadable() {
    for xml in [
        "",
        "<vm/>",
        "<vm id='x' generation='1'/>",
        "<vm",
        "<a/><b/>",
    ] {
        assert!(read::metadata(xml).is_err(), "{xml}");
    }
}

#[test]
fn a_chain_of_images_is_written_to_its_end_so_that_nothing_is_probed() {
    let xml = written(&spec());
    let disk = "devices/disk";
    for (path, expected) in [
        ("driver/@type", "qcow2"),
        ("backingStore/format/@type", "raw"),
        ("backingStore/source/@file", "/pool/base"),
        ("backingStore/backingStore", ""),
    ] {
        assert_eq!(
            value(&xml, &format!("{disk}/{path}")).as_deref(),
            Some(expected)
        );
    }
    let mut alone = spec();
    alone.disks[0].backing = None;
    let xml = written(&alone);
    assert_eq!(
        value(&xml, "devices/disk/backingStore").as_deref(),
        Some("")
    );
    assert_eq!(value(&xml, "devices/disk/backingStore/source"), None);
}

#[test]
fn disks_are_named_in_order_and_only_the_first_boots() {
    let mut spec = spec();
    spec.disks = [0, 1, 25, 26, 701, 702].map(disk).to_vec();
    let xml = written(&spec);
    let names: Vec<_> = read::disks(&xml)
        .unwrap()
        .into_iter()
        .map(|disk| disk.target)
        .collect();
    assert_eq!(names, ["vda", "vdb", "vdz", "vdaa", "vdzz", "vdaaa"]);
    assert_eq!(xml.matches("<boot ").count(), 1);
}

#[test]
fn a_display_is_defined_locked() {
    let xml = written(&spec());
    let password = |xml: &str| value(xml, "devices/graphics/@passwd").unwrap();
    assert_eq!(password(&xml).len(), 8);
    assert_ne!(
        password(&xml),
        password(&written(&spec())),
        "nobody knows it"
    );
    assert_eq!(
        value(&xml, "devices/graphics/@passwdValidTo").as_deref(),
        Some("1970-01-01T00:00:00")
    );
}

#[test]
fn a_password_is_written_with_its_time_in_utc() {
    let display = VncEndpoint {
        address: "127.0.0.1".parse().unwrap(),
        port: 5901,
    };
    let until = Timestamp(1_709_164_799_999_999);
    let xml = write::vnc_password(&display, "a<&>'\"b", Some(until)).unwrap();
    assert_eq!(value(&xml, "@passwd").as_deref(), Some("a<&>'\"b"));
    assert_eq!(value(&xml, "@port").as_deref(), Some("5901"));
    assert_eq!(
        value(&xml, "@passwdValidTo").as_deref(),
        Some("2024-02-28T23:59:59")
    );
    let xml = write::vnc_password(&display, "x", Some(Timestamp(u64::MAX))).unwrap();
    assert!(value(&xml, "@passwdValidTo").unwrap().starts_with("9999-"));
    for bad in ["", "123456789", "a b", "a\0", "é"] {
        assert_eq!(
            write::vnc_password(&display, bad, None),
            Err(XmlError::Password)
        );
    }
}

#[test]
fn the_processor_follows_the_accelerator() {
    let mode = |cpu, accelerator| {
        let spec = DomainSpec {
            cpu,
            accelerator,
            ..spec()
        };
        value(&written(&spec), "cpu/@mode")
    };
    let (kvm, tcg) = (DomainAccelerator::Kvm, DomainAccelerator::Tcg);
    assert_eq!(mode(Cpu::Auto, kvm).as_deref(), Some("host-passthrough"));
    assert_eq!(mode(Cpu::Auto, tcg).as_deref(), Some("maximum"));
    assert_eq!(mode(Cpu::HostModel, kvm).as_deref(), Some("host-model"));
    let custom = Cpu::Custom("qemu64".to_owned());
    assert_eq!(mode(custom, tcg).as_deref(), Some("custom"));
}

#[test]
fn interfaces_are_written_by_where_they_plug_in() {
    let mut spec = spec();
    let bridge = |vlan| Attachment::Bridge {
        name: "br0".to_owned(),
        vlan,
    };
    spec.nics = vec![nic(bridge(Some(12)), Some(9000))];
    let xml = written(&spec);
    for (path, expected) in [
        ("@type", "bridge"),
        ("source/@bridge", "br0"),
        ("vlan/tag/@id", "12"),
        ("mtu/@size", "9000"),
        ("model/@type", "virtio"),
    ] {
        let path = format!("devices/interface/{path}");
        assert_eq!(value(&xml, &path).as_deref(), Some(expected));
    }
    spec.nics = vec![nic(bridge(None), None)];
    assert!(!written(&spec).contains("<vlan"));
    spec.nics = vec![nic(
        Attachment::LibvirtNetwork {
            name: "default".to_owned(),
        },
        None,
    )];
    assert!(written(&spec).contains("network=\"default\""));
    spec.nics = vec![nic(Attachment::User, Some(9000))];
    assert_eq!(write::domain(&spec, OWNER), Err(XmlError::UserMtu));
}

#[test]
fn a_display_that_is_closed_has_no_endpoint() {
    let domain = |graphics| format!("<domain><devices>{graphics}</devices></domain>");
    for closed in [
        "",
        "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>",
        "<graphics type='spice' port='5900' listen='127.0.0.1'/>",
    ] {
        assert_eq!(read::vnc(&domain(closed)), Ok(None), "{closed}");
    }
    let open = "<graphics type='vnc' port='5902'><listen type='address' address='::1'/></graphics>";
    assert_eq!(
        read::vnc(&domain(open)),
        Ok(Some(VncEndpoint {
            address: "::1".parse().unwrap(),
            port: 5902
        }))
    );
}

#[test]
fn the_agents_channel_is_connected_only_when_libvirt_says_so() {
    let domain = |target: &str| {
        format!("<domain><devices><channel><target {target}/></channel></devices></domain>")
    };
    let agent = "type='virtio' name='org.qemu.guest_agent.0'";
    assert_eq!(
        read::agent_connected(&domain(&format!("{agent} state='connected'"))),
        Ok(true)
    );
    assert_eq!(
        read::agent_connected(&domain(&format!("{agent} state='disconnected'"))),
        Ok(false)
    );
    assert_eq!(read::agent_connected(&domain(agent)), Ok(false));
    assert_eq!(
        read::agent_connected(&domain("name='other' state='connected'")),
        Ok(false)
    );
}

#[test]
fn a_guest_can_tell_of_its_panic_where_there_is_a_device_for_it() {
    let version = |major, minor| Version {
        major,
        minor,
        patch: 0,
    };
    for (arch, machine, libvirt, device) in [
        ("x86_64", "q35", version(9, 0), Some(PanicDevice::Isa)),
        (
            "x86_64",
            "pc-q35-7.2",
            version(9, 0),
            Some(PanicDevice::Isa),
        ),
        (
            "x86_64",
            "pc-i440fx-7.2",
            version(9, 0),
            Some(PanicDevice::Isa),
        ),
        ("x86_64", "microvm", version(11, 3), None),
        ("aarch64", "virt-9.2", version(9, 1), Some(PanicDevice::Pci)),
        ("aarch64", "virt", version(9, 0), None),
        ("s390x", "s390-ccw-virtio", version(11, 3), None),
    ] {
        let found = PanicDevice::of(arch, machine, libvirt);
        assert_eq!(found, device, "{arch} {machine} {libvirt}");
    }
    let model = |panic, accelerator| {
        let spec = DomainSpec {
            panic,
            accelerator,
            ..spec()
        };
        value(&written(&spec), "devices/panic/@model")
    };
    let (isa, pci) = (Some(PanicDevice::Isa), Some(PanicDevice::Pci));
    assert_eq!(model(isa, DomainAccelerator::Tcg).as_deref(), Some("isa"));
    assert_eq!(
        model(pci, DomainAccelerator::Kvm).as_deref(),
        Some("pvpanic")
    );
    assert_eq!(model(None, DomainAccelerator::Kvm), None);
    assert_eq!(
        model(isa, DomainAccelerator::Test),
        None,
        "none is simulated"
    );
}
