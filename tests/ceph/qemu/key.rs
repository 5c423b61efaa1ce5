//! The key of the cluster's user: where it is not, and what happens when it changes.

use super::bench::Bench;
use super::sector::LINE;
use super::support::api::force;
use super::support::ceph::{Cluster, USER};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The key that a text of Ceph's has in it.
fn key_in(text: &str) -> String {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("key = "));
    line.expect("a key").trim().to_owned()
}

/// A key in both forms that it may be found in.
struct Key {
    text: String,
    bytes: Vec<u8>,
}

impl Key {
    fn of(cluster: &Cluster) -> Self {
        let text = key_in(&fs::read_to_string(cluster.keyring()).unwrap());
        let whole = STANDARD.decode(&text).unwrap();
        Self {
            text,
            // What is before the secret itself is a header, and alike in many keys.
            bytes: whole[12..].to_vec(),
        }
    }

    fn is_in(&self, content: &[u8]) -> bool {
        let found = |wanted: &[u8]| content.windows(wanted.len()).any(|part| part == wanted);
        found(self.text.as_bytes()) || found(&self.bytes)
    }
}

/// Every plain file in a folder and those in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        } else {
            assert!(kind.is_symlink() || kind.is_socket() || kind.is_fifo());
        }
    }
    found
}

pub async fn the_key_is_nowhere_but_in_its_file(bench: &Bench) {
    let key = Key::of(&bench.cluster);
    let guest = bench.guest("idle", |_| {}).await;
    guest.has_said(LINE, 1).await;
    let libvirtd = &bench.libvirtd;

    // In no file of the daemon's (its log, its journal, its configuration) and in
    // none of libvirt's (definitions, states, logs, secrets).
    let own = files(bench.daemon.home());
    let libvirts = files(libvirtd.folder());
    for needed in ["journal.db", "log"] {
        assert!(own.contains(&bench.daemon.home().join(needed)), "{own:?}");
    }
    for needed in [
        format!("log/qemu/kvmlet-{}.log", guest.id),
        format!("etc/qemu/kvmlet-{}.xml", guest.id),
        format!("run/qemu/kvmlet-{}.xml", guest.id),
    ] {
        let needed = libvirtd.folder().join(needed);
        assert!(libvirts.contains(&needed), "no {needed:?} in {libvirts:?}");
    }
    let mut places = 0;
    for file in own.iter().chain(&libvirts) {
        // Files come and go.
        if let Ok(content) = fs::read(file) {
            assert!(!key.is_in(&content), "the key is in {}", file.display());
            places += 1;
        }
    }
    assert!(places > 10, "{places}");

    // Neither is it told by libvirt, with all that it tells.
    for security in [&[][..], &["--security-info"]] {
        for inactive in [&[][..], &["--inactive"]] {
            let command = [&["dumpxml", &guest.id], security, inactive].concat();
            let xml = libvirtd.virsh(&command);
            assert!(xml.contains("<secret type='ceph'"), "{xml}");
            assert!(!key.is_in(xml.as_bytes()), "the key is in {command:?}");
        }
    }
    for file in ["cmdline", "environ"] {
        let content = fs::read(format!("/proc/{}/{file}", guest.qemu())).unwrap();
        assert!(file != "cmdline" || String::from_utf8_lossy(&content).contains("rbd"));
        assert!(!key.is_in(&content), "the key is in QEMU's {file}");
    }

    // libvirt keeps it in memory and gives it to nobody.
    let listed = libvirtd.virsh(&["secret-list"]);
    let lines: Vec<_> = listed.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "{listed}");
    assert!(lines[0].contains("ceph"), "{listed}");
    let kept = libvirtd.virsh(&["secret-list", "--ephemeral", "--private"]);
    assert_eq!(kept, listed);
    let secret = lines[0].split_whitespace().next().unwrap();
    let value = libvirtd.virsh_output(&["secret-get-value", secret]);
    assert!(!value.status.success(), "{value:?}");
    assert!(!key.is_in(&value.stdout) && !key.is_in(&value.stderr));
    let secrets = libvirtd.folder().join("etc/secrets");
    assert_eq!(
        if secrets.exists() {
            files(&secrets)
        } else {
            vec![]
        },
        [""; 0].map(PathBuf::from)
    );
    guest.remove().await;
}

pub async fn a_key_that_was_changed_is_what_the_next_start_uses(bench: &Bench) {
    let cluster = &bench.cluster;
    let guest = bench.guest("idle", |_| {}).await;
    guest.has_said(LINE, 1).await;
    let secret = bench.libvirtd.virsh(&["secret-list"]);

    let old = key_in(&fs::read_to_string(cluster.keyring()).unwrap());
    #[allow(clippy::disallowed_methods)] // a test has its own tools
    let new = Command::new("ceph-authtool")
        .arg("--gen-print-key")
        .output()
        .unwrap();
    let new = String::from_utf8(new.stdout).unwrap().trim().to_owned();
    assert_ne!(old, new);
    let rights = cluster.ceph(&["auth", "get", USER]);
    assert!(rights.contains(&old), "the user has the old key so far");
    let changed = cluster.folder().join("changed.keyring");
    fs::write(&changed, rights.replace(&old, &new)).unwrap();
    cluster.ceph(&["auth", "del", USER]);
    cluster.ceph(&["auth", "import", "-i", changed.to_str().unwrap()]);
    let keyring = cluster.keyring();
    let listing = ["--name", USER, "--keyring", keyring.to_str().unwrap()];
    let listing = [&listing[..], &["ls", "vms"]].concat();
    let refused = cluster.rbd_output(&listing);
    assert!(!refused.status.success(), "the old key: {refused:?}");
    // As one does it: the new file takes the place of the old one.
    let next = keyring.with_extension("next");
    let text = fs::read_to_string(&keyring).unwrap();
    fs::write(&next, text.replace(&old, &new)).unwrap();
    fs::rename(&next, &keyring).unwrap();
    cluster.rbd(&listing);

    guest.stop(force()).await;
    guest.start().await;
    guest.has_said(LINE, 2).await;
    assert_eq!(
        bench.libvirtd.virsh(&["secret-list"]),
        secret,
        "the same one"
    );
    guest.remove().await;
}
