//! Orphans whose QEMU is real: what runs is not stopped, and what it uses stays.

use crate::bench::{Bench, Host, request};
use crate::libvirtd::Libvirtd;
use crate::support::api::{Api, id};
use crate::support::refusal::Refusal;
use kvmlet::proto::v1::*;
use std::fs;
use virt::connect::Connect;

async fn one(api: &Api, kind: OrphanKind, name: &str) -> Orphan {
    let request = ListOrphansRequest::default();
    let all = api.nodes().list_orphans(request).await.unwrap();
    let all = all.into_inner().orphans;
    let mut found = all
        .iter()
        .filter(|orphan| orphan.kind() == kind && orphan.name == name);
    found
        .next()
        .unwrap_or_else(|| panic!("no {kind:?} {name}: {all:#?}"))
        .clone()
}

async fn delete(api: &Api, orphan: &Orphan) -> Result<Operation, Refusal> {
    let request = DeleteOrphanRequest {
        orphan_id: orphan.id.clone(),
        generation: orphan.generation,
        ..Default::default()
    };
    api.outcome(api.nodes().delete_orphan(request).await).await
}

pub async fn an_orphan_that_runs_behind_kvmlets_back_keeps_its_power_and_its_disk(bench: &Bench) {
    let libvirtd = Libvirtd::start(&bench.host.known());
    let host = Host::on(&libvirtd).await;
    let api = host.daemon.api();
    let image = bench.import(&host, "idle").await;
    let guest = host
        .create(CreateVmRequest {
            start: false,
            ..request(&image)
        })
        .await;
    // A copy of the VM under other ids, which no record knows.
    let root = guest.vm().await.root_volume_id;
    let (other, volume) = (id(), id());
    let volumes = host.daemon.home().join("pool/volumes");
    let file = volumes.join(format!("{volume}.qcow2"));
    fs::copy(volumes.join(format!("{root}.qcow2")), &file).unwrap();
    let mut xml = String::new();
    libvirtd.by_hand(&guest.id, |domain| {
        xml = domain.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE).unwrap();
    });
    // Addresses of cards are the hypervisor's to choose anew.
    let xml = xml.replace(&guest.id, &other).replace(&root, &volume);
    let connection = Connect::open(Some(&libvirtd.uri())).unwrap();
    let domain = connection.define_domain_xml(&xml).unwrap();
    domain.create().unwrap();
    let running = host.qemus();
    assert_eq!(running.len(), 1, "{running:?}");

    let name = format!("volumes/{volume}.qcow2");
    let domain_name = format!("kvmlet-{other}");
    for (kind, name) in [
        (OrphanKind::Domain, &domain_name),
        (OrphanKind::Volume, &name),
    ] {
        let refusal = delete(&api, &one(&api, kind, name).await).await;
        let refusal = refusal.unwrap_err();
        // A guest that writes to its disk changes it.
        let expected = ["ORPHAN_IN_USE", "STALE_GENERATION"];
        assert!(expected.contains(&refusal.reason.as_str()), "{refusal:?}");
    }
    assert_eq!(host.qemus(), running, "it is the same QEMU");
    assert!(file.exists());

    domain.destroy().unwrap();
    let refusal = delete(&api, &one(&api, OrphanKind::Volume, &name).await).await;
    assert_eq!(
        refusal.unwrap_err().reason,
        "ORPHAN_IN_USE",
        "it is defined"
    );
    let orphan = one(&api, OrphanKind::Domain, &domain_name).await;
    delete(&api, &orphan).await.expect("it has no power");
    assert!(connection.lookup_domain_by_uuid_string(&other).is_err());
    let orphan = one(&api, OrphanKind::Volume, &name).await;
    delete(&api, &orphan).await.expect("nothing uses it");
    assert!(!file.exists());
    assert_eq!(guest.state().await, VmState::Stopped);
    guest.remove().await;
}
