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
