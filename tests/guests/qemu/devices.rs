//! What the guest finds in its machine.

use crate::bench::{Bench, Guest, Host, request};
use crate::libvirtd::Libvirtd;
use crate::support::until;
use kvmlet::proto::v1::*;
use nix::libc::O_DIRECT;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
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

/// QEMU's block devices as it was told to make them.
fn block_devices(guest: &Guest) -> Vec<Value> {
    let line = guest.command_line();
    let pairs = line.windows(2).filter(|pair| pair[0] == "-blockdev");
    pairs
        .map(|pair| serde_json::from_str(&pair[1]).unwrap())
        .collect()
}

pub async fn qemu_guesses_no_format_and_caches_as_the_pool_allows(bench: &Bench) {
    let data = bench.import(&bench.host, "idle-too").await;
    let guest = bench
        .guest_with("idle", |request| {
            request.data_volumes = vec![
                NewVolume {
                    size_bytes: 8 << 20,
                    ..Default::default()
                },
                NewVolume {
                    image_id: data.clone(),
                    ..Default::default()
                },
            ];
        })
        .await;
    assert!(guest.is_defined());
    // Measured here as well, with nothing of the daemon's.
    let probe = bench.host.daemon.home().join("pool/direct");
    fs::write(&probe, []).unwrap();
    let direct = File::options()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(&probe)
        .is_ok();
    fs::remove_file(&probe).unwrap();

    let vm = guest.vm().await;
    let devices = block_devices(&guest);
    let with = |key: &str, value: &Value| {
        let mut found = devices.iter().filter(|device| &device[key] == value);
        let device = found.next().unwrap_or_else(|| panic!("{key} {value}"));
        assert!(found.next().is_none(), "twice: {key} {value}");
        device
    };
    let mut formats = 0;
    for volume in &vm.volumes {
        let pool = bench.host.daemon.home().join("pool");
        let path = pool.join(&volume.install_path);
        let file = with("filename", &json!(path.to_str().unwrap()));
        assert_eq!(file["driver"], "file");
        assert_eq!(file["cache"]["direct"], direct, "{file}");
        assert_eq!(file["cache"]["no-flush"], false, "{file}");
        assert_eq!(file["discard"], "unmap");
        let format = with("file", &file["node-name"]);
        assert_eq!(format["driver"], "qcow2");
        assert_eq!(format["discard"], "unmap");
        assert_eq!(format["read-only"], false);
        formats += 1;
        // An end that is not said would be looked for in the guest's own bytes.
        if volume.image_id.is_empty() {
            assert_eq!(format["backing"], Value::Null);
            assert!(format.as_object().unwrap().contains_key("backing"));
            continue;
        }
        let below = with("node-name", &format["backing"]);
        assert_eq!(below["driver"], "qcow2");
        assert_eq!(below["read-only"], true);
        assert_eq!(below["backing"], Value::Null);
        assert!(below.as_object().unwrap().contains_key("backing"));
        let file = with("node-name", &below["file"]);
        assert_eq!(file["driver"], "file");
        // It takes after the one above it.
        assert_eq!(file["auto-read-only"], true);
        let name = file["filename"].as_str().unwrap();
        assert!(name.contains(&volume.image_id), "{name}");
        formats += 1;
    }
    assert_eq!(formats, 5);
    assert_eq!(devices.len(), 2 * formats, "no other: {devices:?}");
    guest.remove().await;
}

pub async fn limits_on_a_volume_are_what_qemu_throttles_by_behind_libvirt(bench: &Bench) {
    let libvirtd = Libvirtd::start(&bench.host.known());
    let host = Host::on(&libvirtd).await;
    let image = bench.import(&host, "idle").await;
    let mut wanted = request(&image);
    wanted.root_volume = Some(NewVolume {
        qos: Some(VolumeQos {
            read_bytes_per_second: 50_000_000,
            write_bytes_per_second: 40_000_000,
            read_iops: 3000,
            write_iops: 2000,
            ..Default::default()
        }),
        ..Default::default()
    });
    wanted.data_volumes = vec![
        NewVolume {
            size_bytes: 1 << 20,
            qos: Some(VolumeQos {
                bytes_per_second: 10_000_000,
                iops: 500,
                ..Default::default()
            }),
            ..Default::default()
        },
        NewVolume {
            size_bytes: 1 << 20,
            ..Default::default()
        },
    ];
    let guest = host.create(wanted).await;
    let told = libvirtd.ask_qemu(&guest.id, "query-block");
    let limits: Vec<Vec<u64>> = told["return"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|device| device["inserted"]["drv"] == "qcow2")
        .map(|device| {
            ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"]
                .map(|name| device["inserted"][name].as_u64().unwrap())
                .to_vec()
        })
        .collect();
    assert_eq!(
        limits,
        [
            [0, 50_000_000, 40_000_000, 0, 3000, 2000],
            [10_000_000, 0, 0, 500, 0, 0],
            [0; 6],
        ],
        "{told}"
    );
    guest.remove().await;
}
