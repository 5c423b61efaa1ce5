//! Metrics of guests that run, as those who watch the host read them.

use super::network::Bridge;
use crate::bench::{BOOT, Bench};
use crate::support::until;
use kvmlet::proto::v1::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What is told of one VM: the lines that have its id.
async fn lines_of(bench: &Bench, id: &str) -> Vec<String> {
    let socket = bench.host.daemon.metrics_socket();
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: kvmlet\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let label = format!("vm_id=\"{id}\"");
    let lines = answer.lines().filter(|line| line.contains(&label));
    lines.map(str::to_owned).collect()
}

/// The value of a metric in these lines that has all of these labels.
fn value(lines: &[String], name: &str, labels: &[&str]) -> Option<f64> {
    let line = lines.iter().find(|line| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    })?;
    line.rsplit_once(' ')?.1.parse().ok()
}

pub async fn what_a_guest_uses_is_told_by_its_metrics(bench: &Bench) {
    let guest = bench
        .guest_with("acpi-1", |request| {
            request.data_volumes = vec![NewVolume {
                size_bytes: 1 << 20,
                ..Default::default()
            }];
        })
        .await;
    guest.has_said("kind acpi up", 1).await;
    let lines = until("what the guest uses", BOOT, async || {
        let lines = lines_of(bench, &guest.id).await;
        value(&lines, "kvmlet_vm_cpu_seconds_total", &[]).map(|_| lines)
    })
    .await;
    let of_guest = |name: &str| value(&lines, name, &[]).unwrap_or_else(|| panic!("no {name}"));
    assert!(of_guest("kvmlet_vm_cpu_seconds_total") > 0.1);
    assert!(of_guest("kvmlet_vm_memory_resident_bytes") > 16e6);
    assert!(of_guest("kvmlet_vm_memory_bytes") == f64::from(128 << 20));
    // It has booted from its root, and left the other disk alone.
    for (device, least) in [("vda", 1e6), ("vdb", 0.0)] {
        let device = format!("device=\"{device}\"");
        let of_disk = |name: &str| {
            let told = value(&lines, name, &[&device]);
            told.unwrap_or_else(|| panic!("no {name} of {device}"))
        };
        assert!(of_disk("kvmlet_vm_disk_read_bytes_total") >= least);
        assert!(of_disk("kvmlet_vm_disk_reads_total") >= least / 1e6);
        for name in [
            "kvmlet_vm_disk_read_seconds_total",
            "kvmlet_vm_disk_writes_total",
            "kvmlet_vm_disk_written_bytes_total",
            "kvmlet_vm_disk_write_seconds_total",
            "kvmlet_vm_disk_flushes_total",
            "kvmlet_vm_disk_flush_seconds_total",
        ] {
            of_disk(name);
        }
    }
    guest.force_off().await;
    let lines = lines_of(bench, &guest.id).await;
    assert_eq!(value(&lines, "kvmlet_vm_cpu_seconds_total", &[]), None);
    assert_eq!(
        value(&lines, "kvmlet_vm_state", &["state=\"STOPPED\""]),
        Some(1.0)
    );
    guest.remove().await;
}

pub async fn the_traffic_of_a_guest_on_a_bridge_is_told_by_its_interface(bench: &Bench) {
    let bridge = Bridge::make('t', &[]).unwrap();
    let guest = bench
        .guest_with("idle", |request| {
            let nat = NewNic {
                attachment: Some(new_nic::Attachment::User(UserAttachment {})),
                ..Default::default()
            };
            let bridged = NewNic {
                mac: "52:54:00:ab:cd:78".to_owned(),
                ..bridge.nic(0)
            };
            request.nics = vec![nat, bridged];
        })
        .await;
    let tap = format!("interface=\"{}\"", bridge.tap());
    let labels = ["mac=\"52:54:00:ab:cd:78\"", tap.as_str()];
    let bytes = "kvmlet_vm_network_transmit_bytes_total";
    let lines = until("traffic", BOOT, async || {
        let lines = lines_of(bench, &guest.id).await;
        value(&lines, bytes, &labels).map(|_| lines)
    })
    .await;
    // QEMU's own NAT has no interface on the host.
    let told = lines.iter().filter(|line| line.starts_with(bytes));
    assert_eq!(told.count(), 1, "{lines:?}");
    for way in ["receive", "transmit"] {
        for what in ["bytes", "packets", "errors", "drops"] {
            let name = format!("kvmlet_vm_network_{way}_{what}_total");
            assert!(value(&lines, &name, &labels).is_some(), "no {name}");
        }
    }
    guest.remove().await;
}
