//! Ends of QEMU that leave its watch on the volumes behind, and other clients that
//! have one.

use super::bench::{Bench, ended, image_of, why};
use super::sector::LINE;
use super::support::api::force;
use super::support::ceph::Watcher;
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use std::time::{Duration, Instant};

pub async fn a_guest_whose_qemu_is_killed_starts_again_at_once(bench: &Bench) {
    let guest = bench.guest("idle", |_| {}).await;
    guest.has_said(LINE, 1).await;
    let root = format!("vms/{}", image_of(&guest.root().await.id));
    let (first, watchers) = (guest.qemu(), bench.cluster.watchers(&root));
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    kill(first, Signal::SIGKILL).unwrap();
    guest.is(VmState::Crashed, StateReason::Crashed).await;
    let begun = Instant::now();
    guest.start().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    guest.is(VmState::Running, StateReason::Operation).await;
    guest.has_said(LINE, 2).await;
    assert_ne!(guest.qemu(), first);
    let after = bench.cluster.watchers(&root);
    assert_eq!(after.len(), 1, "{after:?}");
    assert_ne!(after, watchers, "the killed one was forgotten first");
    guest.remove().await;
}

pub async fn a_guest_is_not_started_while_another_client_has_its_root_open(bench: &Bench) {
    let guest = bench.guest("idle", |request| request.start = false).await;
    let root = format!("vms/{}", image_of(&guest.root().await.id));
    let refused = async |watcher: &Watcher| {
        let operation = guest.try_start().await.unwrap_err();
        let refusal = why(&operation);
        assert_eq!(refusal.code, tonic::Code::FailedPrecondition);
        assert_eq!(refusal.reason, "VOLUME_IN_USE");
        for words in [&refusal.metadata["used_by"], &refusal.message] {
            assert!(words.contains(watcher.address()), "{refusal:?}");
        }
        assert_eq!(guest.vm().await.state(), VmState::Stopped);
        assert_eq!(guest.console(), "", "it has never run");
    };
    let watcher = bench.cluster.watch(&root);
    refused(&watcher).await;
    drop(watcher);
    guest.start().await;
    guest.has_said(LINE, 1).await;
    guest.stop(force()).await;
    assert_eq!(bench.cluster.watchers(&root), [""; 0]);
    guest.remove().await;
}

/// What was written while the cluster had another monitor: a domain, and saved memory.
pub async fn a_guest_starts_and_is_restored_by_the_monitors_that_there_are_now(bench: &Bench) {
    let guest = bench.guest("idle", |_| {}).await;
    guest.has_said(LINE, 1).await;
    let name = format!("kvmlet-{}", guest.id);
    let monitor = |xml: &str| {
        let document = roxmltree::Document::parse(xml).unwrap();
        let mut hosts = document.descendants().filter(|node| {
            node.has_tag_name("host") && node.parent().unwrap().has_tag_name("source")
        });
        hosts.next().unwrap().attribute("port").unwrap().to_owned()
    };
    let port = monitor(&guest.definition());
    let former = |command: &[&str], define: &str| {
        let xml = bench.libvirtd.virsh(command);
        let xml = xml.replace(&format!("port='{port}'"), "port='1'");
        assert_eq!(monitor(&xml), "1");
        let file = bench.libvirtd.folder().join(format!("{name}.xml"));
        std::fs::write(&file, xml).unwrap();
        let file = file.to_str().unwrap();
        match define {
            "define" => bench.libvirtd.virsh(&[define, file]),
            _ => bench.libvirtd.virsh(&[define, &name, file]),
        };
    };
    let api = bench.daemon.api();
    let save = SaveVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    ended(&api, api.vms().save_vm(save).await).await.unwrap();
    former(&["managedsave-dumpxml", &name], "managedsave-define");
    guest.start().await;
    guest.is(VmState::Running, StateReason::Operation).await;
    assert_eq!(guest.console().matches(LINE).count(), 1, "it has booted");
    let now = bench.libvirtd.virsh(&["dumpxml", &name]);
    assert_eq!(monitor(&now), port);

    guest.stop(force()).await;
    former(&["dumpxml", "--inactive", &name], "define");
    guest.start().await;
    guest.has_said(LINE, 2).await;
    assert_eq!(monitor(&guest.definition()), port);
    guest.remove().await;
}
