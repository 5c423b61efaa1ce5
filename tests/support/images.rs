//! Small images, made by the real qemu-img.

use std::path::Path;
use std::process::Command;

/// Runs qemu-img; it must succeed.
pub fn qemu_img(args: &[&str]) -> String {
    #[allow(clippy::disallowed_methods)] // a test makes its own images
    let output = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img is installed (scripts/setup)");
    assert!(
        output.status.success(),
        "qemu-img {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Makes an empty qcow2 image of `mib` MiB.
pub fn blank(path: &Path, mib: u64) {
    let (path, size) = (path.to_str().unwrap(), format!("{mib}M"));
    qemu_img(&["create", "-q", "-f", "qcow2", path, &size]);
}

/// Makes a qcow2 image of `mib` MiB of random bytes.
pub fn random(path: &Path, mib: u64) {
    let bytes: Vec<u8> = (0..mib << 20).map(|_| rand::random::<u8>()).collect();
    let raw = path.with_extension("raw");
    std::fs::write(&raw, bytes).unwrap();
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    qemu_img(&["convert", "-q", "-f", "raw", "-O", "qcow2", from, to]);
    std::fs::remove_file(raw).unwrap();
}
