//! What the host tells of itself, and that a start is held against what it tells.

use crate::support::api::{Start, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::refused;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::time::Duration;

/// A host of which VMs get a known part.
async fn daemon(lines: &str) -> Daemon {
    // The later line of a key would be a second one; so only these are set here.
    Daemon::start(Setup::default().with("vms", lines)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_as_free_fits_and_no_more() {
    let daemon = daemon("memory_overcommit = 0.5").await;
    let api = daemon.api();
    let image = daemon.image().await;
    let node = api.node().await;
    let room = node.capacity.expect("libvirt is there");
    assert_eq!(room.memory_bytes, node.memory_bytes / 2);
    assert_eq!(room.free_memory_bytes, room.memory_bytes);
    assert_eq!(u64::from(room.vcpus), u64::from(node.cpus) * 100);
    assert_eq!((room.promised_vcpus, room.promised_memory_bytes), (0, 0));
    assert_eq!(room.memory_overcommit, 0.5);
    assert_eq!(
        (room.vcpu_overcommit, room.reserved_memory_bytes),
        (100.0, 0)
    );

    let wanted = |memory_bytes, vcpus| CreateVmRequest {
        start: true,
        hardware: Some(Hardware {
            vcpus,
            memory_bytes,
            ..Default::default()
        }),
        ..small(&image)
    };
    let most = room.free_memory_bytes >> 20 << 20;
    let more = wanted(most + (1 << 20), 1);
    let refusal = refused(api.vms().create_vm(more).await);
    assert_eq!(refusal.reason, "HOST_MEMORY");
    assert_eq!(refusal.code, tonic::Code::ResourceExhausted);
    for (key, value) in [
        ("asked_bytes", most + (1 << 20)),
        ("free_bytes", room.free_memory_bytes),
        ("capacity_bytes", room.memory_bytes),
    ] {
        assert_eq!(refusal.metadata[key], value.to_string(), "{key}");
    }
    api.done(api.vms().create_vm(wanted(most, 3)).await).await;
    let room = api.node().await.capacity.unwrap();
    assert_eq!(room.promised_memory_bytes, most);
    assert_eq!(room.free_memory_bytes, room.memory_bytes - most);
    assert_eq!((room.promised_vcpus, room.free_vcpus), (3, room.vcpus - 3));

    // Without power it takes nothing; with power it would have to fit.
    let vm_id = api.create(&image, Start::No).await;
    assert_eq!(api.node().await.capacity.unwrap(), room);
    let start = StartVmRequest {
        vm_id,
        request_id: id(),
        ..Default::default()
    };
    let refusal = refused(api.vms().start_vm(start).await);
    assert_eq!(refusal.reason, "HOST_MEMORY");
    let free = room.free_memory_bytes.to_string();
    assert_eq!(refusal.metadata["free_bytes"], free);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulated_host_tells_what_its_driver_does_and_nothing_of_this_machine() {
    let daemon = Daemon::simulated().await;
    let node = daemon.api().node().await;
    let processor = node.processor.expect("it is always told");
    assert_eq!((processor.name, processor.vendor), Default::default());
    assert_eq!((processor.sockets, processor.threads), (2, 16));
    let cpus: Vec<_> = node.numa_nodes.iter().map(|it| it.cpus.len()).collect();
    assert_eq!(cpus, [8, 8]);
    assert!(node.numa_nodes.iter().all(|it| it.memory_bytes > 0));
    assert_eq!(node.available_memory_bytes, None);
    let sizes: Vec<_> = node.huge_pages.iter().map(|it| it.page_bytes).collect();
    assert_eq!(sizes, [2 << 20, 1 << 30]);
    assert!(node.huge_pages.iter().all(|it| it.free.is_none()));
    let capabilities = node.capabilities.expect("it is always told");
    assert!(capabilities.firmware.is_empty());
    assert_eq!(node.ceph_version, "");
    // The agent's own machine is none of the driver's.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(node.boot_id, boot.trim());
    assert_eq!(node.machine_id, node.id, "none is configured");
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_the_host_asks_libvirt_nothing_and_counts_vms_as_they_are_shown() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    api.create(&image, Start::Yes).await;
    api.create(&image, Start::No).await;
    // A look at what was made just now is under way.
    let before = until("libvirt to be left alone", PATIENCE, async || {
        let before = api.node().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        (api.node().await.libvirt_calls == before.libvirt_calls).then_some(before)
    })
    .await;
    let counts = [("RUNNING".to_owned(), 1), ("STOPPED".to_owned(), 1)];
    assert_eq!(before.vm_counts, counts.into());
    for _ in 0..10 {
        let after = api.node().await;
        // A look of the link's own is none of the reader's.
        assert!(after.libvirt_calls <= before.libvirt_calls + 2);
    }
    let clock = before.conditions.iter().find(|it| it.r#type == "ClockSane");
    assert!(clock.is_some_and(|clock| clock.status && clock.reason == "Trusted"));
}
