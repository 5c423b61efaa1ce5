//! A control plane in another language.

use crate::support::daemon::Daemon;
use std::path::Path;
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_in_python_drives_a_vms_whole_life() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/tools/python/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run scripts/setup once",
        python.display()
    );
    let daemon = Daemon::simulated().await;
    let image = daemon.blank("python.qcow2", 1);
    #[allow(clippy::disallowed_methods)] // a test runs its own client
    let output = Command::new(python)
        .arg(root.join("tests/python/client.py"))
        .arg(format!("unix:{}", daemon.socket().display()))
        .arg(image)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
