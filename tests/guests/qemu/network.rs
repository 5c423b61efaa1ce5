//! Guests on Linux bridges of the test's own, which needs root.

use crate::bench::{Bench, request};
use crate::support::api::id;
use crate::support::refusal::refused;
use kvmlet::proto::v1::*;
use std::fs;
use std::process::{Command, Output, Stdio};

/// Runs one of iproute2's commands.
fn iproute2(command: &str, arguments: &[&str]) -> Output {
    #[allow(clippy::disallowed_methods)] // a test makes its own bridges
    Command::new(command)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("iproute2 is installed (scripts/setup)")
}

/// A bridge that ends with the test, however that ends.
pub struct Bridge {
    name: String,
}

impl Bridge {
    /// Makes one, unless this kernel has none of this kind.
    pub fn make(letter: char, options: &[&str]) -> Option<Self> {
        let name = format!("kvt{}{letter}", std::process::id());
        let mut arguments = vec!["link", "add", &name, "type", "bridge"];
        arguments.extend(options);
        let made = iproute2("ip", &arguments);
        made.status.success().then_some(Self { name })
    }

    /// The only interface that is plugged in.
    pub fn tap(&self) -> String {
        let taps = self.taps();
        let [tap] = &taps[..] else {
            panic!("one guest, one tap: {taps:?}");
        };
        tap.clone()
    }

    fn taps(&self) -> Vec<String> {
        let folder = format!("/sys/class/net/{}/brif", self.name);
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    pub fn nic(&self, vlan: u32) -> NewNic {
        nic(&self.name, vlan)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        iproute2("ip", &["link", "delete", &self.name]);
    }
}

fn nic(bridge: &str, vlan: u32) -> NewNic {
    NewNic {
        attachment: Some(new_nic::Attachment::Bridge(BridgeAttachment {
            name: bridge.to_owned(),
            vlan,
        })),
        ..Default::default()
    }
}

/// Whether this kernel has bridges that know VLANs; not all are built so.
pub fn kernel_filters_vlans() -> bool {
    Bridge::make('p', &["vlan_filtering", "1"]).is_some()
}

/// Whether the host's libvirt sets VLANs on bridges.
async fn libvirt_sets_vlans(bench: &Bench) -> bool {
    let version = bench.host.daemon.api().node().await.libvirt_version;
    let major: u32 = version.split('.').next().unwrap().parse().unwrap();
    major >= 11
}

pub async fn a_guest_on_a_bridge_with_a_vlan_has_its_port_in_that_vlan_only(bench: &Bench) {
    let bridge = Bridge::make('v', &["vlan_filtering", "1"]).unwrap();
    if !libvirt_sets_vlans(bench).await {
        refuses_the_vlan(bench, &bridge).await;
        return;
    }
    let guest = bench
        .guest_with("idle", |request| request.nics = vec![bridge.nic(7)])
        .await;
    let told = iproute2("bridge", &["-j", "vlan", "show", "dev", &bridge.tap()]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    let vlans = told[0]["vlans"].as_array().unwrap();
    let tagged: Vec<_> = vlans.iter().map(|vlan| &vlan["vlan"]).collect();
    assert_eq!(tagged, [7], "in no other: {told}");
    let flags = vlans[0]["flags"].as_array().unwrap();
    assert!(flags.contains(&"PVID".into()), "{told}");
    guest.remove().await;
    assert!(bridge.taps().is_empty());
}

/// A libvirt of before then would ignore the tag, or fail after all was made.
async fn refuses_the_vlan(bench: &Bench, bridge: &Bridge) {
    let image = bench.import(&bench.host, "idle").await;
    let mut wanted = request(&image);
    wanted.nics = vec![bridge.nic(7)];
    let refusal = refused(bench.host.daemon.api().vms().create_vm(wanted).await);
    assert_eq!(refusal.reason, "FIELD_INVALID");
    assert_eq!(refusal.fields, ["nics[0].bridge.vlan"]);
}

pub async fn a_guest_that_cannot_have_its_vlan_is_not_started_without_it(bench: &Bench) {
    let bridge = Bridge::make('n', &[]).unwrap();
    if !libvirt_sets_vlans(bench).await {
        refuses_the_vlan(bench, &bridge).await;
        return;
    }
    is_undone(bench, bridge.nic(7)).await;
    assert!(bridge.taps().is_empty());
}

pub async fn a_guest_on_a_bridge_has_its_mtu_on_both_sides(bench: &Bench) {
    let bridge = Bridge::make('m', &[]).unwrap();
    let guest = bench
        .guest_with("idle", |request| {
            request.nics = vec![NewNic {
                mtu: 1300,
                mac: "52:54:00:ab:cd:77".to_owned(),
                ..bridge.nic(0)
            }];
        })
        .await;
    let mtu = fs::read_to_string(format!("/sys/class/net/{}/mtu", bridge.tap())).unwrap();
    assert_eq!(mtu.trim(), "1300");
    let command = guest.command_line().join(" ");
    assert!(command.contains("\"host_mtu\":1300"), "{command}");
    assert!(command.contains("\"mac\":\"52:54:00:ab:cd:77\""));
    guest.remove().await;
    assert!(bridge.taps().is_empty());
}

pub async fn a_vm_on_a_bridge_that_is_not_there_is_not_made(bench: &Bench) {
    is_undone(bench, nic("kvt-not-there", 0)).await;
}

/// A VM whose start fails for its interface is unmade, down to its files.
async fn is_undone(bench: &Bench, nic: NewNic) {
    let api = bench.host.daemon.api();
    let image = bench.import(&bench.host, "idle").await;
    let root = id();
    let mut wanted = request(&image);
    wanted.nics = vec![nic];
    wanted.root_volume = Some(NewVolume {
        volume_id: root.clone(),
        ..Default::default()
    });
    let guest = bench.host.guest(wanted.vm_id.clone());
    let operation = api.vms().create_vm(wanted).await.unwrap().into_inner();
    let operation = api.ended(&operation.id).await;
    assert_eq!(operation.state(), OperationState::Failed, "{operation:?}");
    assert_eq!(operation.rollback_state(), RollbackState::Done);
    let error = operation.error.as_ref().unwrap();
    assert_eq!(
        crate::support::refusal::Refusal::from(error).reason,
        "START_FAILED"
    );
    guest.is(VmState::Failed, StateReason::CreateFailed).await;
    assert!(!guest.is_defined());
    let files = bench.host.files();
    assert!(!files.iter().any(|file| file.contains(&root)), "{files:?}");
    guest.remove().await;
    assert_eq!(refused(api.vm(&guest.id).await).reason, "VM_NOT_FOUND");
}
