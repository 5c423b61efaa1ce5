//! Secrets: where they are not, and what happens when the key of the cluster's user
//! changes.

use super::bench::Bench;
use super::sector::LINE;
use super::spill::{self, Secret};
use super::support::api::force;
use super::support::ceph::{Cluster, USER};
use super::support::{PATIENCE, until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kvmlet::proto::v1::*;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

/// The key that a text of Ceph's has in it.
fn key_in(text: &str) -> String {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("key = "));
    line.expect("a key").trim().to_owned()
}

/// The key of the cluster's user, as text and decoded.
fn key(cluster: &Cluster) -> Secret {
    let text = key_in(&fs::read_to_string(cluster.keyring()).unwrap());
    let whole = STANDARD.decode(&text).unwrap();
    // What is before the secret itself is a header, and alike in many keys.
    Secret::new("the key", &whole[12..]).or(&text)
}

/// Fresh passwords of a guest's display; the last one holds.
async fn passwords(bench: &Bench, vm_id: &str, count: usize) -> Vec<String> {
    let mut passwords = Vec::new();
    for _ in 0..count {
        let request = GetVncConsoleRequest {
            vm_id: vm_id.to_owned(),
        };
        let answer = bench.daemon.api().consoles().get_vnc_console(request).await;
        passwords.push(answer.unwrap().into_inner().password);
    }
    passwords
}

pub async fn no_secret_is_in_what_is_written_told_or_started(bench: &Bench) {
    let guest = bench
        .guest("idle", |request| {
            request.vnc = Some(NewVnc { enabled: true });
        })
        .await;
    guest.has_said(LINE, 1).await;
    let (libvirtd, api) = (&bench.libvirtd, bench.daemon.api());
    bench.receivers.are_reached(&api).await;
    bench.receivers.have_heard_of(&guest.id).await;
    let passwords = passwords(bench, &guest.id, 5).await;
    let mut secrets = vec![key(&bench.cluster)];
    secrets.extend(passwords.iter().map(|p| Secret::new("a VNC password", p)));
    secrets.extend(bench.receivers.secrets());
    let key = &secrets[0];

    // libvirt writes down what it needs to find the guest again: the password that
    // holds, for root alone, in memory (/run) as long as the guest runs. Nothing else.
    let state = libvirtd
        .folder()
        .join(format!("run/qemu/kvmlet-{}.xml", guest.id));
    let allowed = state.display().to_string();
    let kept = fs::metadata(&state).unwrap();
    assert_eq!((kept.permissions().mode() & 0o777, kept.uid()), (0o600, 0));
    let content = fs::read(&state).unwrap();
    let (last, others) = secrets[1..6].split_last().unwrap();
    assert!(last.is_in(&content), "else there is no need to allow it");
    for secret in others.iter().chain([key]).chain(&secrets[6..]) {
        secret.is_not_in(&allowed, &content);
    }

    // In no file of the daemon's (its log, its journal, its configuration) and in
    // none of libvirt's (definitions, states, logs, secrets).
    let mut places = spill::files(bench.daemon.home());
    places.extend(spill::files(libvirtd.folder()));
    let written = |path: &str| places.iter().any(|(place, _)| place == path);
    for needed in ["journal.db", "journal.db-wal", "log"] {
        let needed = bench.daemon.home().join(needed).display().to_string();
        assert!(written(&needed), "no {needed}");
    }
    for needed in [
        format!("log/qemu/kvmlet-{}.log", guest.id),
        format!("etc/qemu/kvmlet-{}.xml", guest.id),
    ] {
        let needed = libvirtd.folder().join(needed).display().to_string();
        assert!(written(&needed), "no {needed}");
    }
    assert!(written(&allowed));
    places.retain(|(place, _)| *place != allowed);
    assert!(bench.daemon.log().contains(" TRACE h2::"), "it says all");

    // In nothing that the daemon tells its callers and receivers.
    places.extend(bench.receivers.stored());
    places.extend(spill::told(&bench.daemon).await);
    for (what, told) in [
        ("VMs", format!("{:?}", api.all_vms().await)),
        ("operations", format!("{:?}", api.all_operations().await)),
        ("the node", format!("{:?}", api.node().await)),
        ("errors", format!("{:?}", bench.refusals(&guest.id).await)),
    ] {
        places.push((what.to_owned(), told.into_bytes()));
    }

    // In nothing that libvirt tells whoever may not see secrets.
    for inactive in [&[][..], &["--inactive"]] {
        let command = [&["dumpxml", &guest.id], inactive].concat();
        let xml = libvirtd.virsh(&command);
        assert!(xml.contains("<secret type='ceph'") && xml.contains("type='vnc'"));
        places.push((command.join(" "), xml.into_bytes()));
    }

    // In no command line and no environment.
    let processes = spill::processes();
    let qemu = format!("/proc/{}/cmdline", guest.qemu());
    let (_, line) = processes.iter().find(|(place, _)| *place == qemu).unwrap();
    assert!(String::from_utf8_lossy(line).contains("rbd"));
    places.extend(processes);

    assert!(places.len() > 50, "{}", places.len());
    for (place, content) in &places {
        for secret in &secrets {
            secret.is_not_in(place, content);
        }
    }

    // The key is not told either to those who may see secrets: libvirt keeps it in
    // memory and gives it to nobody.
    let xml = libvirtd.virsh(&["dumpxml", &guest.id, "--security-info"]);
    assert!(last.is_in(xml.as_bytes()));
    key.is_not_in("the XML with secrets", xml.as_bytes());
    let listed = libvirtd.virsh(&["secret-list"]);
    let lines: Vec<_> = listed.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "{listed}");
    assert!(lines[0].contains("ceph"), "{listed}");
    let kept = libvirtd.virsh(&["secret-list", "--ephemeral", "--private"]);
    assert_eq!(kept, listed);
    let secret = lines[0].split_whitespace().next().unwrap();
    let value = libvirtd.virsh_output(&["secret-get-value", secret]);
    assert!(!value.status.success(), "{value:?}");
    key.is_not_in("an answer of virsh", &[value.stdout, value.stderr].concat());
    let secrets = libvirtd.folder().join("etc/secrets");
    assert!(!secrets.exists() || spill::files(&secrets).is_empty());
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

    // Meanwhile it may have looked with the old key, and been refused.
    until("the pool to be let in", PATIENCE, async || {
        let conditions = bench.daemon.api().node().await.conditions;
        let ready = conditions.iter().find(|it| it.r#type == "PoolReady/ceph");
        ready.is_some_and(|it| it.status).then_some(())
    })
    .await;
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
