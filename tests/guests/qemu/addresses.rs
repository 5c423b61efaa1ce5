//! What addresses guests have: asked of their agents, which may hang, and shown to
//! those who read.

use crate::bench::{BOOT, Bench};
use crate::support::until;
use kvmlet::proto::v1::*;
use std::net::IpAddr;

fn nats(count: usize) -> Vec<NewNic> {
    let nat = || NewNic {
        attachment: Some(new_nic::Attachment::User(UserAttachment {})),
        ..Default::default()
    };
    (0..count).map(|_| nat()).collect()
}

pub async fn a_guests_agent_tells_the_addresses_of_each_interface(bench: &Bench) {
    let api = bench.host.daemon.api();
    // Asked at the same time, and silent.
    let mute = bench
        .guest_with("mute-1", |request| request.nics = nats(1))
        .await;
    mute.has_said("kind mute up", 1).await;
    let guest = bench
        .guest_with("agent-1", |request| request.nics = nats(2))
        .await;
    guest.has_said("kind agent up", 1).await;
    let vm = until("addresses", BOOT, async || {
        let vm = api.vm(&guest.id).await.unwrap();
        let told = |nic: &Nic| !nic.guest_ip_addresses.is_empty();
        vm.nics.iter().all(told).then_some(vm)
    })
    .await;
    let mut first: Vec<&str> = vm
        .nics
        .iter()
        .map(|nic| nic.guest_ip_addresses[0].as_str())
        .collect();
    // Which of them the kernel has found first is its own business.
    first.sort_unstable();
    assert_eq!(first, ["10.0.2.15", "10.0.2.16"]);
    for address in vm.nics.iter().flat_map(|nic| &nic.guest_ip_addresses) {
        let address: IpAddr = address.parse().unwrap();
        assert!(!address.is_loopback());
    }
    let silent = api.vm(&mute.id).await.unwrap();
    assert!(silent.nics[0].guest_ip_addresses.is_empty());

    // Without power there are none, at once.
    guest.force_off().await;
    let vm = api.vm(&guest.id).await.unwrap();
    assert!(vm.nics.iter().all(|nic| nic.guest_ip_addresses.is_empty()));
    guest.remove().await;
    mute.remove().await;
}
