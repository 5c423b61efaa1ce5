//! What the guest finds in its machine.

use super::bench::Bench;
use super::support::until;
use kvmlet::proto::v1::*;
use std::time::Duration;

pub async fn volumes_and_interfaces_are_seen_by_the_guest(bench: &Bench) {
    let data = bench.import(&bench.host, "idle-too").await;
    let guest = bench
        .guest_with("acpi-1", |request| {
            request.root_volume = Some(NewVolume {
                size_bytes: 96 << 20,
                ..Default::default()
            });
            request.data_volumes = vec![
                NewVolume {
                    size_bytes: 32 << 20,
                    ..Default::default()
                },
                NewVolume {
                    image_id: data,
                    size_bytes: 2 << 20,
                    ..Default::default()
                },
            ];
            let plug = |mac: &str| NewNic {
                mac: mac.to_owned(),
                attachment: Some(new_nic::Attachment::User(UserAttachment {})),
                ..Default::default()
            };
            request.nics = vec![plug("52:54:00:ab:cd:01"), plug("52:54:00:ab:cd:02")];
        })
        .await;
    guest.has_said("kind acpi up", 1).await;
    for line in [
        "disk vda 100663296",
        "disk vdb 33554432",
        "disk vdc 2097152",
        "nic eth0 52:54:00:ab:cd:01",
        "nic eth1 52:54:00:ab:cd:02",
    ] {
        assert_eq!(guest.says(line), 1, "{line}: {}", guest.console());
    }
    guest.remove().await;
}

pub async fn a_uefi_guest_starts_and_leaves_no_variables_behind(bench: &Bench) {
    let before = bench.host.nvram_files();
    let guest = bench
        .guest_with("acpi-1", |request| {
            let hardware = request.hardware.as_mut().unwrap();
            hardware.firmware = Firmware::Uefi as i32;
        })
        .await;
    guest.is(VmState::Running, StateReason::Operation).await;
    assert_eq!(bench.host.nvram_files(), before + 1);
    // Its firmware has come to boot what is on the disk; a whole boot this way
    // takes minutes where guests are translated.
    guest.has_said("BdsDxe: loading Boot", 1).await;
    guest.remove().await;
    assert_eq!(bench.host.nvram_files(), before);
}

pub async fn a_console_log_does_not_grow_without_bound(bench: &Bench) {
    let most = 64 << 10;
    let guest = bench.guest("chatter").await;
    let patience = Duration::from_secs(90);
    until("the log to be too long", patience, async || {
        (guest.console_bytes() > most).then_some(())
    })
    .await;
    until("the log to be cut", patience, async || {
        (guest.console_bytes() <= most).then_some(())
    })
    .await;
    assert!(!guest.console().contains('\0'), "no hole where it was cut");
    until("the log to grow on", patience, async || {
        (guest.console_bytes() > most).then_some(())
    })
    .await;
    guest.remove().await;
}
