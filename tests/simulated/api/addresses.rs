//! The addresses that guests have, on a simulated host, which makes some up for
//! each interface.

use crate::support::api::{Api, Start, force, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::sys::signal::Signal;

fn with_nics(image: &str) -> CreateVmRequest {
    let nic = |ip_addresses: &[&str]| NewNic {
        network_id: "default".to_owned(),
        ip_addresses: ip_addresses.iter().map(|ip| (*ip).to_owned()).collect(),
        ..Default::default()
    };
    CreateVmRequest {
        nics: vec![nic(&["10.9.8.7"]), nic(&[])],
        start: true,
        ..small(image)
    }
}

/// Waits until each interface of a VM shows an address.
async fn addresses(api: &Api, vm_id: &str) -> Vec<Vec<String>> {
    until("addresses", PATIENCE, async || {
        let told = shown(api, vm_id).await;
        told.iter().all(|nic| !nic.is_empty()).then_some(told)
    })
    .await
}

async fn shown(api: &Api, vm_id: &str) -> Vec<Vec<String>> {
    let nics = api.vm(vm_id).await.unwrap().nics;
    nics.into_iter().map(|nic| nic.guest_ip_addresses).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_shows_its_addresses_while_it_has_power_and_what_it_was_given_besides() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let request = with_nics(&daemon.image().await);
    let vm = api.done(api.vms().create_vm(request).await).await.vm_id;
    let told = addresses(&api, &vm).await;
    assert_eq!(told.len(), 2);
    assert_ne!(told[0], told[1]);
    let nics = api.vm(&vm).await.unwrap().nics;
    assert_eq!(nics[0].ip_addresses, ["10.9.8.7"], "as given");
    assert!(nics[1].ip_addresses.is_empty());

    let stop = StopVmRequest {
        vm_id: vm.clone(),
        stop_policy: Some(force()),
        ..Default::default()
    };
    api.done(api.vms().stop_vm(stop).await).await;
    assert_eq!(shown(&api, &vm).await, [[""; 0], []]);
    let start = StartVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    api.done(api.vms().start_vm(start).await).await;
    assert_eq!(addresses(&api, &vm).await, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_known_again_after_a_restart_and_kept_while_libvirt_hangs() {
    let libvirtd = Libvirtd::start();
    // The simulated host lives as long as someone is connected.
    let _held = libvirtd.connect();
    let mut daemon = Daemon::start(Setup::on(libvirtd.uri())).await;
    let request = with_nics(&daemon.image().await);
    let api = daemon.api();
    let vm = api.done(api.vms().create_vm(request).await).await.vm_id;
    let told = addresses(&api, &vm).await;
    daemon.kill9();
    daemon.restart().await;
    let api = daemon.api();
    assert_eq!(addresses(&api, &vm).await, told);
    // Whoever reads does not ask libvirt.
    libvirtd.signal(Signal::SIGSTOP);
    assert_eq!(shown(&api, &vm).await, told);
    libvirtd.signal(Signal::SIGCONT);
    let other = api.create(&daemon.image().await, Start::Yes).await;
    assert!(shown(&api, &other).await.is_empty(), "it has no interface");
}
