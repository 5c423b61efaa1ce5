//! The adapter against libvirt's own simulated driver.
//!
//! All connections of one process share one simulated host, so each test makes
//! domains of its own and looks at no others.

mod daemon;

use kvmlet::libvirt::{
    Begin, Callbacks, DiskCache, DiskSpec, DomainAccelerator, DomainChange, DomainEvent,
    DomainSpec, ErrorKind, Foreign, Host, HypervisorUri, Metadata, NicSpec, OffReason, Owner,
    PauseReason, Power, RebootMethod, Restore, RunReason, ShutdownMethod, StartedBy, SuspendedBy,
    VncSpec,
};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::hardware::{Cpu, Firmware};
use kvmlet::model::ids::{NicId, VmId};
use kvmlet::model::nic::{Attachment, MacAddress, NicModel};
use kvmlet::model::volume::{DiskSource, VolumeFormat, VolumeQos};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use uuid::Uuid;
use virt::connect::Connect;
use virt::sys;

/// What the tests' domains are marked with.
pub(crate) const OWNER: Owner = Owner {
    node: Uuid::from_u128(0x6e6f_6465),
    agent: Uuid::from_u128(0x0061_6765_6e74),
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Simulated {
    host: Host,
    events: Receiver<DomainEvent>,
}

impl Simulated {
    fn open() -> Self {
        let (sender, events) = channel();
        let uri: HypervisorUri = "test:///default".parse().unwrap();
        let callbacks = Callbacks {
            on_event: Arc::new(move |event| {
                let _ = sender.send(event);
            }),
            on_close: Arc::new(|reason| panic!("the simulated host went away: {reason:?}")),
        };
        Self {
            host: Host::open(&uri, OWNER, 2, callbacks).unwrap(),
            events,
        }
    }

    /// Waits for an event of one domain; those before it are let go.
    fn expect(&self, id: VmId, what: &DomainChange) {
        loop {
            let event = self
                .events
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no event {what:?}"));
            if event.id == id && event.what == *what {
                return;
            }
        }
    }

    fn power(&self, id: VmId) -> Power {
        self.host.get(id).unwrap().unwrap().power
    }
}

fn spec(id: VmId) -> DomainSpec {
    DomainSpec {
        id,
        name: format!("kvmlet-{id}"),
        title: "a <VM> & its \"name\" \u{1f600}".to_owned(),
        description: "two\nlines".to_owned(),
        metadata: Metadata {
            id,
            generation: 1,
            record: r#"{"name":"<&>\"'\u0000 ü"}"#.to_owned(),
        },
        accelerator: DomainAccelerator::Test,
        arch: "x86_64".to_owned(),
        emulator: None,
        machine: "q35".to_owned(),
        firmware: Firmware::Bios,
        vcpus: 1,
        memory: Bytes::mib(64),
        cpu: Cpu::Auto,
        disks: vec![DiskSpec {
            index: 0,
            source: DiskSource::File("/nowhere/root.qcow2".into()),
            format: VolumeFormat::Qcow2,
            backing: Some((
                DiskSource::File("/nowhere/base.qcow2".into()),
                VolumeFormat::Qcow2,
            )),
            serial: "0123456789".to_owned(),
            cache: DiskCache::None,
            shareable: false,
            read_only: false,
            qos: VolumeQos {
                bytes_per_second: 1_000_000,
                read_iops: 100,
                write_iops: 200,
                ..VolumeQos::default()
            },
        }],
        nics: vec![
            NicSpec {
                mac: MacAddress::derived(NicId::random(), id),
                model: NicModel::Virtio,
                mtu: Some(1400),
                attachment: Attachment::Bridge {
                    name: "br0".to_owned(),
                    vlan: Some(12),
                },
            },
            NicSpec {
                mac: MacAddress::derived(NicId::random(), id),
                model: NicModel::E1000,
                mtu: None,
                attachment: Attachment::User,
            },
        ],
        vnc: Some(VncSpec {
            listen: "127.0.0.1".parse().unwrap(),
        }),
        panic: None,
        console_log: "/nowhere/console.log".into(),
    }
}

#[test]
fn a_domain_lives_from_definition_to_removal_and_each_change_is_told() {
    let simulated = Simulated::open();
    let host = &simulated.host;
    let id = VmId::random();
    assert_eq!(host.get(id), Ok(None));

    host.define(&spec(id)).unwrap();
    simulated.expect(id, &DomainChange::Defined);
    let state = host.get(id).unwrap().unwrap();
    assert_eq!(state.name, format!("kvmlet-{id}"));
    assert!(matches!(state.power, Power::Off(_)), "{state:?}");
    assert!(state.persistent && !state.managed_save);

    host.start(id, Begin::Running, Restore::IfSaved).unwrap();
    simulated.expect(id, &DomainChange::Started(StartedBy::Boot));
    assert_eq!(simulated.power(id), Power::Running(RunReason::Booted));
    // The simulated driver's code for it differs from QEMU's.
    host.start(id, Begin::Running, Restore::IfSaved)
        .expect_err("a running domain can't be started");

    host.suspend(id).unwrap();
    simulated.expect(id, &DomainChange::Suspended(SuspendedBy::Request));
    assert_eq!(simulated.power(id), Power::Paused(PauseReason::Request));

    host.resume(id).unwrap();
    simulated.expect(id, &DomainChange::Resumed);
    assert_eq!(simulated.power(id), Power::Running(RunReason::Unpaused));

    host.reset(id).unwrap();
    host.reboot(id, RebootMethod::Acpi).unwrap();
    assert!(simulated.power(id).is_active());

    host.destroy(id).unwrap();
    simulated.expect(id, &DomainChange::Stopped(OffReason::Destroyed));
    assert_eq!(simulated.power(id), Power::Off(OffReason::Destroyed));
    host.destroy(id).expect("already off is success");

    host.undefine(id).unwrap();
    simulated.expect(id, &DomainChange::Undefined);
    assert_eq!(host.get(id), Ok(None));
    host.undefine(id).expect("already gone is success");
}

#[test]
fn a_guest_that_is_asked_to_shut_down_does() {
    let simulated = Simulated::open();
    let host = &simulated.host;
    for method in [ShutdownMethod::Acpi, ShutdownMethod::Agent] {
        let id = VmId::random();
        host.define(&spec(id)).unwrap();
        host.start(id, Begin::Running, Restore::IfSaved).unwrap();
        host.shutdown(id, method).unwrap();
        simulated.expect(id, &DomainChange::Stopped(OffReason::Shutdown));
        assert_eq!(simulated.power(id), Power::Off(OffReason::Shutdown));
        host.undefine(id).unwrap();
    }
}

#[test]
fn saved_memory_is_seen_restored_and_given_up() {
    let simulated = Simulated::open();
    let host = &simulated.host;
    let id = VmId::random();
    host.define(&spec(id)).unwrap();
    host.start(id, Begin::Running, Restore::IfSaved).unwrap();
    host.managed_save(id).unwrap();
    simulated.expect(id, &DomainChange::Stopped(OffReason::Saved));
    let state = host.get(id).unwrap().unwrap();
    assert!(state.managed_save);
    assert_eq!(state.power, Power::Off(OffReason::Saved));
    let listed = host.list().unwrap();
    assert!(listed.contains(&state), "{listed:?}");

    host.start(id, Begin::Running, Restore::IfSaved).unwrap();
    // The simulated driver calls this a boot, too.
    simulated.expect(id, &DomainChange::Started(StartedBy::Boot));
    let state = host.get(id).unwrap().unwrap();
    assert!(!state.managed_save);
    assert!(matches!(state.power, Power::Running(_)), "{state:?}");

    host.managed_save(id).unwrap();
    host.discard_managed_save(id).unwrap();
    assert!(!host.get(id).unwrap().unwrap().managed_save);
    host.discard_managed_save(id)
        .expect("nothing saved is success");

    host.start(id, Begin::Running, Restore::IfSaved).unwrap();
    host.managed_save(id).unwrap();
    host.undefine(id)
        .expect("saved memory goes with the domain");
    assert_eq!(host.get(id), Ok(None));
}

#[test]
fn metadata_comes_back_as_it_was_written() {
    let simulated = Simulated::open();
    let host = &simulated.host;
    let id = VmId::random();
    let spec = spec(id);
    host.define(&spec).unwrap();
    let read = || host.get(id).unwrap().unwrap().metadata;
    assert_eq!(read(), Ok(spec.metadata.clone()));

    let off = Metadata {
        generation: 2,
        ..spec.metadata.clone()
    };
    host.set_metadata(id, &off, "title", "").unwrap();
    assert_eq!(read(), Ok(off));

    host.start(id, Begin::Running, Restore::IfSaved).unwrap();
    let live = Metadata {
        generation: u64::MAX,
        record: "]]> <!-- \r\n\t & 'x'".to_owned(),
        ..spec.metadata.clone()
    };
    assert_eq!(host.has_metadata(id, &live, "", "text"), Ok(false));
    host.set_metadata(id, &live, "", "text").unwrap();
    assert_eq!(read(), Ok(live.clone()), "while it runs");
    assert_eq!(host.has_metadata(id, &live, "", "text"), Ok(true));
    assert_eq!(host.has_metadata(id, &live, "title", "text"), Ok(false));
    assert_eq!(host.has_metadata(id, &live, "", ""), Ok(false));

    // Somebody, or a writer that died half-way, has changed one of the two.
    let beside = Connect::open(Some("test:///default")).unwrap();
    let domain = beside.lookup_domain_by_uuid(id.0).unwrap();
    for place in [sys::VIR_DOMAIN_AFFECT_CONFIG, sys::VIR_DOMAIN_AFFECT_LIVE] {
        let kind = i32::try_from(sys::VIR_DOMAIN_METADATA_TITLE).unwrap();
        let title = |text| domain.set_metadata(kind, text, None, None, place).unwrap();
        title(Some("half"));
        assert_eq!(host.has_metadata(id, &live, "", "text"), Ok(false));
        title(None);
        assert_eq!(host.has_metadata(id, &live, "", "text"), Ok(true));
    }
    host.destroy(id).unwrap();
    assert_eq!(read(), Ok(live), "and in the definition");

    let refused = host.set_metadata(id, &spec.metadata, "nul \0", "");
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Invalid);
    host.undefine(id).unwrap();
}

#[test]
fn a_foreign_domain_is_listed_without_metadata() {
    let simulated = Simulated::open();
    // The simulated host starts with a running domain called "test".
    let listed = simulated.host.list().unwrap();
    let foreign = listed.iter().find(|d| d.name == "test").unwrap();
    assert_eq!(foreign.metadata, Err(Foreign::Unmarked));
    assert!(foreign.persistent);
}

#[test]
fn disks_are_read_back_from_the_definition() {
    let simulated = Simulated::open();
    let id = VmId::random();
    simulated.host.define(&spec(id)).unwrap();
    let disks = simulated.host.disks(id).unwrap();
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0].target, "vda");
    assert_eq!(disks[0].source.as_deref(), Some("/nowhere/root.qcow2"));
    assert_eq!(disks[0].serial.as_deref(), Some("0123456789"));
    simulated.host.undefine(id).unwrap();
}

#[test]
fn a_screenshot_is_a_png() {
    let simulated = Simulated::open();
    let id = VmId::random();
    simulated.host.define(&spec(id)).unwrap();
    simulated
        .host
        .start(id, Begin::Running, Restore::IfSaved)
        .unwrap();
    let picture = simulated.host.screenshot(id).unwrap();
    assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n"));
    simulated.host.destroy(id).unwrap();
    simulated.host.undefine(id).unwrap();
}

#[test]
fn a_domain_that_is_not_there_is_not_found() {
    let simulated = Simulated::open();
    let host = &simulated.host;
    let id = VmId::random();
    for error in [
        host.start(id, Begin::Running, Restore::IfSaved)
            .unwrap_err(),
        host.shutdown(id, ShutdownMethod::Acpi).unwrap_err(),
        host.destroy(id).unwrap_err(),
        host.suspend(id).unwrap_err(),
        host.managed_save(id).unwrap_err(),
        host.discard_managed_save(id).unwrap_err(),
        host.vnc(id).unwrap_err(),
        host.set_vnc_password(id, "secret", None).unwrap_err(),
        host.screenshot(id).unwrap_err(),
        host.disks(id).unwrap_err(),
        host.power(id).unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
        assert_ne!(error.code, 0);
    }
}

#[test]
fn an_active_domain_is_not_undefined() {
    let simulated = Simulated::open();
    let host = &simulated.host;
    let id = VmId::random();
    host.define(&spec(id)).unwrap();
    host.start(id, Begin::Running, Restore::IfSaved).unwrap();
    assert_eq!(host.undefine(id).unwrap_err().kind, ErrorKind::InvalidState);
    assert!(host.get(id).unwrap().unwrap().persistent);
    host.destroy(id).unwrap();
    host.undefine(id).unwrap();
}

#[test]
fn text_that_xml_cannot_carry_is_refused_before_libvirt_sees_it() {
    let simulated = Simulated::open();
    let host = &simulated.host;
    let id = VmId::random();
    for (title, description) in [("a\0b", ""), ("a\nb", ""), ("", "\u{1b}[31m")] {
        let mut spec = spec(id);
        spec.title = title.to_owned();
        spec.description = description.to_owned();
        let calls = host.call_count();
        assert_eq!(host.define(&spec).unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(host.call_count(), calls);
    }
    assert_eq!(host.get(id), Ok(None));
}

#[test]
fn the_facts_of_the_simulated_host_are_read() {
    let simulated = Simulated::open();
    let facts = simulated.host.facts().unwrap();
    assert_eq!(facts.hypervisor.to_ascii_lowercase(), "test");
    assert!(facts.cpus > 0 && facts.memory > Bytes::ZERO, "{facts:?}");
    assert!(facts.libvirt_version.major >= 6, "{facts:?}");
    assert!(!facts.kvm);
}

#[test]
fn calls_are_counted_and_asking_whether_it_lives_is_none() {
    let simulated = Simulated::open();
    let host = &simulated.host;
    let before = host.call_count();
    assert!(host.is_alive());
    assert_eq!(host.call_count(), before);
    let _ = host.get(VmId::random()).unwrap();
    assert_eq!(host.call_count(), before + 1);
}

#[test]
fn a_closed_host_says_no_more() {
    let Simulated { host, events } = Simulated::open();
    host.close();
    // The sender went with the callbacks, at once and not at some later time; what it
    // had said before may be on its way.
    let end = loop {
        if let Err(end) = events.recv_timeout(PATIENCE) {
            break end;
        }
    };
    assert_eq!(end, std::sync::mpsc::RecvTimeoutError::Disconnected);
}
