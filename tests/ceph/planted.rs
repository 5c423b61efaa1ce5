//! Headers of qcow2 files, and how a guest's bytes come onto a volume without it.

use super::support::api::id;
use super::support::ceph::Cluster;
use super::support::images::qemu_img;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Makes headers of qcow2 files whose backing file is `secret`, as a path and as
/// JSON.
pub fn headers(folder: &Path, secret: &Path) -> Vec<Vec<u8>> {
    let json = serde_json::json!({
        "driver": "raw",
        "file": { "driver": "file", "filename": secret.to_str().unwrap() },
    });
    [secret.display().to_string(), format!("json:{json}")]
        .iter()
        .map(|backing| {
            let made = folder.join(format!("{}.header", id()));
            let path = made.to_str().unwrap();
            qemu_img(&[
                "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, path, "2M",
            ]);
            let mut header = fs::read(made).unwrap();
            // Guests write whole sectors.
            header.resize(header.len().next_multiple_of(512), 0);
            header
        })
        .collect()
}

/// Writes bytes over the beginning of a volume, as its guest could.
pub fn write(cluster: &Cluster, image: &str, bytes: &[u8]) {
    let file = cluster.folder().join(id());
    fs::write(&file, bytes).unwrap();
    #[allow(clippy::disallowed_methods)] // a test writes what a guest would
    let output = Command::new("qemu-io")
        .args(["-f", "raw", "-c"])
        .arg(format!("write -s {} 0 {}", file.display(), bytes.len()))
        .arg(format!("rbd:{image}:conf={}", cluster.conf().display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
