//! A raw disk that begins with the header of a qcow2 file, as QEMU has it open.

use super::bench::{Bench, image_of};
use super::planted::{headers, write};
use super::support::api::force;
use kvmlet::proto::v1::*;
use std::fs;

pub async fn a_qcow2_header_that_a_guest_wrote_opens_no_other_file(bench: &Bench) {
    let secret = bench.daemon.home().join("secret");
    fs::write(&secret, "of the host").unwrap();
    let secret = secret.canonicalize().unwrap();
    for header in headers(bench.daemon.home(), &secret) {
        let guest = bench
            .guest("idle", |request| {
                request.start = false;
                request.data_volumes = vec![NewVolume {
                    pool: "ceph".to_owned(),
                    // Smaller than the header says.
                    size_bytes: 1 << 20,
                    ..Default::default()
                }];
            })
            .await;
        let vm = guest.vm().await;
        let root = format!("vms/{}", image_of(&vm.volumes[0].id));
        let more = format!("data/{}", image_of(&vm.volumes[1].id));
        for volume in [&root, &more] {
            write(&bench.cluster, volume, &header);
        }
        guest.start().await;
        guest.is(VmState::Running, StateReason::Operation).await;
        let virsh = |arguments: &[&str]| bench.libvirtd.virsh(arguments);
        let running = virsh(&["dumpxml", &guest.id]);
        assert!(!running.contains("secret'"), "{running}");
        assert_eq!(running.matches("type='raw'").count(), 2, "{running}");
        for (target, volume) in [("vda", &vm.volumes[0]), ("vdb", &vm.volumes[1])] {
            let found = virsh(&["domblkinfo", &guest.id, target]);
            let capacity = found.lines().find(|line| line.starts_with("Capacity:"));
            let capacity = capacity.and_then(|line| line.split_whitespace().last());
            assert_eq!(capacity, Some(&*volume.size_bytes.to_string()), "{found}");
        }
        let open = fs::read_dir(format!("/proc/{}/fd", guest.qemu())).unwrap();
        for file in open {
            let target = fs::read_link(file.unwrap().path()).unwrap_or_default();
            assert_ne!(target, secret);
        }
        guest.stop(force()).await;
        guest.remove().await;
    }
}
