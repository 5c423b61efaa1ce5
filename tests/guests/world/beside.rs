//! An administrator uses virsh on the host beside kvmlet: what is foreign stays
//! untouched, what was changed is neither overwritten nor lost, and what somebody uses
//! is not removed.

use super::admin::{define, define_foreign, domain, qemu_img, shows, source, virsh};
use super::ask::Ask;
use super::host::{LINE, World};
use crate::bench::{self, Guest, Host};
use crate::support::api::{Api, force, graceful, id};
use crate::support::daemon::Setup;
use crate::support::refusal::{Refusal, refused};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::fs;

async fn orphan(api: &Api, vm_id: &str) -> Option<Orphan> {
    let orphans = api
        .nodes()
        .list_orphans(ListOrphansRequest::default())
        .await;
    let mut orphans = orphans.unwrap().into_inner().orphans.into_iter();
    orphans.find(|orphan| orphan.vm_id == vm_id)
}

fn update_memory(guest: &Guest, mib: u64) -> UpdateVmRequest {
    UpdateVmRequest {
        vm: Some(Vm {
            id: guest.id.clone(),
            hardware: Some(Hardware {
                memory_bytes: mib << 20,
                ..Default::default()
            }),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["hardware.memory_bytes".to_owned()],
        }),
        ..Default::default()
    }
}

/// Makes a request for a VM with an interface of this address.
fn with_address(image: &str, mac: &str) -> CreateVmRequest {
    CreateVmRequest {
        nics: vec![NewNic {
            mac: mac.to_owned(),
            attachment: Some(new_nic::Attachment::User(UserAttachment {})),
            ..Default::default()
        }],
        start: false,
        ..bench::request(image)
    }
}

pub async fn what_is_foreign_is_never_taken_and_never_removed(world: World) {
    let api = world.api();
    let mac = "52:54:00:0a:0b:0c";
    define(
        &world,
        &format!(
            "<domain type='qemu'><name>theirs-on-the-net</name><memory unit='MiB'>64</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
             <interface type='user'><mac address='{mac}'/></interface></devices></domain>"
        ),
    );
    let create = api.vms().create_vm(with_address(&world.deaf, mac)).await;
    let refusal = refused(create);
    assert_eq!(refusal.reason, "MAC_IN_USE");
    assert_eq!(refusal.metadata["domain"], "theirs-on-the-net");

    // One that is off, and one that runs.
    for runs in [false, true] {
        let (uuid, name) = (id(), format!("theirs-{runs}"));
        define_foreign(&world, &uuid, &name, None);
        if runs {
            virsh(&world, &["start", &name]);
        }
        for validate_only in [true, false] {
            let request = CreateVmRequest {
                vm_id: uuid.clone(),
                validate_only,
                ..bench::request(&world.deaf)
            };
            let refusal = refused(api.vms().create_vm(request).await);
            assert_eq!(refusal.reason, "DOMAIN_FOREIGN");
            assert_eq!(refusal.metadata["vm_id"], uuid);
            assert_eq!(refusal.metadata["domain"], name);
        }
        api.vm(&uuid).await.unwrap_err();
        let listed = orphan(&api, &uuid).await.expect("it is listed");
        assert_eq!(listed.kind(), OrphanKind::ForeignDomain);
        let delete = DeleteOrphanRequest {
            orphan_id: listed.id,
            generation: listed.generation,
            ..Default::default()
        };
        let refusal = refused(api.nodes().delete_orphan(delete).await);
        assert_eq!(refusal.reason, "ORPHAN_FOREIGN");
        let state = virsh(&world, &["domstate", &name]);
        assert_eq!(state.trim(), if runs { "running" } else { "shut off" });
    }

    // Under the id of a VM that lost its domain.
    let guest = world.guest(&world.deaf).await;
    guest.force_off().await;
    virsh(&world, &["undefine", &domain(&guest.id)]);
    guest.has_state(VmState::Lost).await;
    define_foreign(&world, &guest.id, "theirs-too", None);
    virsh(&world, &["start", "theirs-too"]);
    shows(&guest, Some(VmConditionType::DomainForeign)).await;
    assert_eq!(guest.state().await, VmState::Lost);
    for ask in [Ask::Start, Ask::StopForce, Ask::Pause, Ask::Reset] {
        let _ = ask.send(&api, &guest.id, "").await;
    }
    let recover = Ask::Recover.send(&api, &guest.id, "").await.unwrap();
    let ended = api.ended(&recover.get_ref().id).await;
    let refusal = Refusal::from(ended.error.as_ref().expect("it is refused"));
    assert_eq!(refusal.reason, "DOMAIN_FOREIGN", "{ended:?}");
    guest.remove().await;
    let state = virsh(&world, &["domstate", "theirs-too"]);
    assert_eq!(state.trim(), "running");
    for name in ["theirs-true", "theirs-too"] {
        virsh(&world, &["destroy", name]);
    }
}

pub async fn a_copy_and_a_second_agent_are_told_from_what_is_ours(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let process = world.qemu(&guest.id).unwrap();
    // As virt-clone does: the same metadata under another UUID.
    let copy = id();
    let xml = virsh(&world, &["dumpxml", "--inactive", &domain(&guest.id)]);
    let xml = xml
        .replace(
            &format!("<uuid>{}</uuid>", guest.id),
            &format!("<uuid>{copy}</uuid>"),
        )
        .replace(&domain(&guest.id), "copy");
    define(&world, &xml);
    let listed = orphan(&api, &copy).await.expect("it is listed");
    assert_eq!(listed.kind(), OrphanKind::ForeignDomain, "{listed:?}");
    assert!(listed.evidence.contains(&guest.id), "{}", listed.evidence);

    // A second agent with a journal of its own on the same libvirt.
    let second = Host::with(Setup::on(world.libvirtd.uri())).await;
    let other = second.daemon.api();
    assert_eq!(other.all_vms().await, []);
    for vm_id in [&guest.id, &copy] {
        let listed = orphan(&other, vm_id).await.expect("it is listed");
        assert_eq!(listed.kind(), OrphanKind::ForeignDomain, "{listed:?}");
    }
    let theirs = orphan(&other, &guest.id).await.unwrap();
    assert!(
        theirs.evidence.contains("another agent"),
        "{}",
        theirs.evidence
    );
    drop(second);
    assert_eq!(world.qemu(&guest.id), Some(process));
    // The copy has the guest's disk, too: that stays as long as the copy does.
    guest.force_off().await;
    let refusal = refused(Ask::DeleteForGood.send(&api, &guest.id, "").await);
    assert_eq!(refusal.reason, "VOLUME_IN_USE");
    assert!(refusal.metadata["used_by"].contains("copy"));
    virsh(&world, &["undefine", "copy"]);
    guest.remove().await;
}

pub async fn a_disk_that_was_changed_beside_it_is_never_switched_back(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let name = domain(&guest.id);
    let volume = source(&world, &name);
    virsh(
        &world,
        &[
            "snapshot-create-as",
            &name,
            "s",
            "--disk-only",
            "--atomic",
            "--no-metadata",
        ],
    );
    let overlay = source(&world, &name);
    assert_ne!(overlay, volume);
    let details = shows(&guest, Some(VmConditionType::Drifted)).await;
    assert!(details.iter().any(|one| one.contains("vda")), "{details:?}");
    assert!(!details.join(" ").contains('/'), "no paths: {details:?}");
    guest.force_off().await;

    // Whatever would define it anew is refused, and has done nothing.
    let before = virsh(&world, &["dumpxml", "--inactive", &name]);
    let refusal = refused(api.vms().update_vm(update_memory(&guest, 160)).await);
    assert_eq!(refusal.reason, "DOMAIN_DRIFTED");
    assert!(refusal.metadata["differences"].contains("vda"));
    let files = world.host.files();
    for ask in [Ask::Replace, Ask::DeleteForGood] {
        let refusal = refused(ask.send(&api, &guest.id, &world.obedient).await);
        assert_eq!(refusal.reason, "DOMAIN_DRIFTED", "{ask:?}");
    }
    assert_eq!(world.host.files(), files);
    assert_eq!(virsh(&world, &["dumpxml", "--inactive", &name]), before);

    // It starts with what its guest wrote last, and is as it should be once the
    // overlay is merged down.
    guest.start().await;
    assert_eq!(source(&world, &name), overlay);
    // Without --shallow it would be merged into the image below all VMs' volumes, which
    // QEMU may not write to.
    let merge = [
        "blockcommit",
        &name,
        "vda",
        "--active",
        "--pivot",
        "--wait",
        "--shallow",
    ];
    virsh(&world, &merge);
    assert_eq!(source(&world, &name), volume);
    shows(&guest, None).await;
    guest.force_off().await;
    fs::remove_file(&overlay).unwrap();

    // What was added is kept by what changes something else.
    let disk = overlay.with_extension("added");
    qemu_img(&["create", "-q", "-f", "qcow2", disk.to_str().unwrap(), "1M"]);
    let disk = disk.to_str().unwrap();
    virsh(
        &world,
        &[
            "attach-disk",
            &name,
            disk,
            "vdx",
            "--subdriver",
            "qcow2",
            "--config",
        ],
    );
    virsh(
        &world,
        &[
            "metadata",
            &name,
            "urn:theirs",
            "--key",
            "t",
            "--set",
            "<mine/>",
            "--config",
        ],
    );
    shows(&guest, Some(VmConditionType::Drifted)).await;
    api.done(api.vms().update_vm(update_memory(&guest, 160)).await)
        .await;
    let after = virsh(&world, &["dumpxml", "--inactive", &name]);
    assert!(
        after.contains(disk) && after.contains("urn:theirs"),
        "{after}"
    );
    for size in ["memory", "currentMemory"] {
        let wanted = format!("<{size} unit='KiB'>{}</{size}>", 160 << 10);
        assert!(after.contains(&wanted), "{after}");
    }
    api.done(Ask::Replace.send(&api, &guest.id, &world.obedient).await)
        .await;
    let after = virsh(&world, &["dumpxml", "--inactive", &name]);
    assert!(
        after.contains(disk) && after.contains("urn:theirs"),
        "{after}"
    );
    assert_ne!(source(&world, &name), volume);
    virsh(&world, &["detach-disk", &name, "vdx", "--config"]);
    guest.remove().await;
}

pub async fn a_deleted_vm_does_not_come_back_with_the_host(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let name = domain(&guest.id);
    virsh(&world, &["autostart", &name]);
    api.done(Ask::Delete.send(&api, &guest.id, "").await).await;
    let info = virsh(&world, &["dominfo", &name]);
    let autostart = info.lines().find(|line| line.starts_with("Autostart:"));
    assert!(
        autostart.is_some_and(|line| line.ends_with("disable")),
        "{info}"
    );

    // Somebody starts it nevertheless: that is shown, and can be ended.
    let stop = async |policy| api.vms().stop_vm(guest.stop_request(Some(policy))).await;
    assert_eq!(refused(stop(force()).await).reason, "WRONG_STATE");
    virsh(&world, &["start", &name]);
    shows(&guest, Some(VmConditionType::RunsDeleted)).await;
    assert_eq!(guest.state().await, VmState::Deleted);
    assert_eq!(refused(stop(graceful()).await).reason, "WRONG_STATE");
    let ended = api.done(stop(force()).await).await;
    assert!(ended.power_outcome.unwrap().forced);
    shows(&guest, None).await;
    assert_eq!(guest.state().await, VmState::Deleted);
    assert_eq!(world.truth(&guest.id), Some(VmState::Stopped));
    api.done(Ask::Recover.send(&api, &guest.id, "").await).await;
    guest.start().await;
    guest.remove().await;
}

pub async fn a_file_that_something_uses_is_not_removed(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let name = domain(&guest.id);
    let former = source(&world, &name);
    guest.force_off().await;
    let old = virsh(&world, &["dumpxml", "--inactive", &name]);

    // A former root that an older definition, put back, names again.
    let replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: world.obedient.clone(),
        keep_old_for: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..Default::default()
    };
    api.done(api.vms().replace_root_volume(replace).await).await;
    define(&world, &old);
    assert_eq!(source(&world, &name), former);
    shows(&guest, Some(VmConditionType::Drifted)).await;
    until("the sweeper to have found it due", PATIENCE, async || {
        let log = world.host.daemon.log();
        log.contains("a former root stays").then_some(())
    })
    .await;
    assert!(former.exists(), "the domain's disk is there");
    // A snapshot that names it does as well: the domain may be put back to it.
    virsh(&world, &["snapshot-create-as", &name, "inside"]);
    let now = virsh(&world, &["dumpxml", "--inactive", &name]);
    let root = guest.vm().await.root_volume_id;
    let file = former.with_file_name(format!("{root}.qcow2"));
    define(
        &world,
        &now.replace(former.to_str().unwrap(), file.to_str().unwrap()),
    );
    assert_eq!(source(&world, &name), file);
    let sweeps = || {
        world
            .host
            .daemon
            .log()
            .matches("a former root stays")
            .count()
    };
    let so_far = sweeps();
    until("another sweep", PATIENCE, async || {
        (sweeps() > so_far).then_some(())
    })
    .await;
    assert!(former.exists(), "the snapshot's disk is there");
    virsh(&world, &["snapshot-delete", &name, "inside", "--metadata"]);
    until("it to be removed", PATIENCE, async || {
        (!former.exists()).then_some(())
    })
    .await;

    // A domain of somebody's that stands on a volume.
    let other = world.guest(&world.deaf).await;
    other.force_off().await;
    let base = source(&world, &domain(&other.id));
    let overlay = world.host.daemon.home().join("theirs.qcow2");
    let texts = [base.to_str().unwrap(), overlay.to_str().unwrap()];
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", texts[0], texts[1],
    ]);
    define_foreign(&world, &id(), "theirs", Some(&overlay));
    for validate_only in [true, false] {
        let delete = DeleteVmRequest {
            vm_id: other.id.clone(),
            stop_policy: Some(force()),
            retention: Some(prost_types::Duration::default()),
            validate_only,
            ..Default::default()
        };
        let refusal = refused(api.vms().delete_vm(delete).await);
        assert_eq!(refusal.reason, "VOLUME_IN_USE");
        assert!(refusal.metadata["used_by"].contains("theirs"));
    }
    api.done(Ask::Delete.send(&api, &other.id, "").await).await;
    let refusal = refused(Ask::Expunge.send(&api, &other.id, "").await);
    assert_eq!(refusal.reason, "VOLUME_IN_USE");
    assert!(base.exists());

    // And one that stands on an image.
    let import = world.host.daemon.import_path("base.qcow2");
    qemu_img(&[
        "convert",
        "-O",
        "qcow2",
        base.to_str().unwrap(),
        import.to_str().unwrap(),
    ]);
    let image = api.import(&import).await;
    let file = world
        .host
        .daemon
        .home()
        .join(format!("pool/images/{image}.qcow2"));
    assert!(file.exists(), "{}", file.display());
    let texts = [file.to_str().unwrap(), overlay.to_str().unwrap()];
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", texts[0], texts[1],
    ]);
    let delete = DeleteImageRequest {
        image_id: image.clone(),
        ..Default::default()
    };
    let refusal = refused(api.images().delete_image(delete.clone()).await);
    assert_eq!(refusal.reason, "IMAGE_IN_USE");
    assert!(file.exists());
    virsh(&world, &["undefine", "theirs"]);
    api.done(api.images().delete_image(delete).await).await;
    api.done(Ask::Expunge.send(&api, &other.id, "").await).await;
    assert!(!base.exists() && !file.exists());
}

/// Its guest was put back on it, and then the domain went: only the file has what the
/// guest wrote last.
pub async fn a_former_root_of_a_vm_that_lost_its_domain_stays(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let name = domain(&guest.id);
    let former = source(&world, &name);
    guest.force_off().await;
    let words = ["dumpxml", "--inactive", "--security-info", &name];
    let old = virsh(&world, &words);
    let replaced = Ask::ReplaceBriefly.send(&api, &guest.id, &world.obedient);
    api.done(replaced.await).await;
    let new = source(&world, &name);
    define(&world, &old);
    virsh(&world, &["destroy", &name]);
    virsh(&world, &["undefine", &name]);
    guest.has_state(VmState::Lost).await;
    let stays = || {
        let log = world.host.daemon.log();
        log.matches("a former root stays").count()
    };
    let before = stays();
    until("the sweeper to have found it due", PATIENCE, async || {
        (stays() > before).then_some(())
    })
    .await;
    assert!(former.exists(), "what the guest wrote last is there");
    // Once the VM has its domain again, on its own root, it goes.
    api.done(Ask::Recover.send(&api, &guest.id, "").await).await;
    assert_eq!(source(&world, &name), new);
    until("it to be removed", PATIENCE, async || {
        (!former.exists()).then_some(())
    })
    .await;
    guest.remove().await;
}

pub async fn memory_that_cant_be_restored_is_said_and_not_booted_over(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let name = domain(&guest.id);
    let file = world
        .libvirtd
        .home
        .path()
        .join(format!("lib/qemu/save/{name}.save"));
    let save = async || {
        api.done(Ask::Save.send(&api, &guest.id, "").await).await;
        assert!(file.exists());
    };
    let start = |discard| StartVmRequest {
        vm_id: guest.id.clone(),
        discard_saved_memory: discard,
        ..Default::default()
    };

    // As it should be: it goes on where it was.
    save().await;
    guest.start().await;
    assert_eq!(
        (guest.state().await, guest.says(LINE)),
        (VmState::Running, 1)
    );

    let unfinished = || {
        let mut bytes = fs::read(&file).unwrap();
        bytes[..16].copy_from_slice(b"LibvirtQemudPart");
        fs::write(&file, bytes).unwrap();
    };
    let cut = || {
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..300]).unwrap();
    };
    let gone = || fs::remove_file(&file).unwrap();
    let spoilt: [&dyn Fn(); 3] = [&unfinished, &cut, &gone];
    for (round, spoil) in spoilt.iter().enumerate() {
        save().await;
        spoil();
        let there = file.exists();
        let lines = guest.says(LINE);
        let operation = api.vms().start_vm(start(false)).await.unwrap();
        let ended = api.ended(&operation.get_ref().id).await;
        assert_eq!(ended.state(), OperationState::Failed, "{round}: {ended:?}");
        let refusal = Refusal::from(ended.error.as_ref().unwrap());
        assert_eq!(refusal.reason, "SAVED_MEMORY_UNREADABLE", "{round}");
        assert_eq!(guest.state().await, VmState::Saved, "{round}");
        shows(&guest, Some(VmConditionType::SavedMemoryUnreadable)).await;
        assert_eq!((file.exists(), guest.says(LINE)), (there, lines), "{round}");
        // Given up, it boots.
        api.done(api.vms().start_vm(start(true)).await).await;
        guest.has_said(LINE, lines + 1).await;
        shows(&guest, None).await;
    }

    // What was removed behind kvmlet's back is said once.
    save().await;
    let lines = guest.says(LINE);
    virsh(&world, &["managedsave-remove", &name]);
    let refusal = refused(api.vms().start_vm(start(false)).await);
    assert_eq!(refusal.reason, "SAVED_MEMORY_UNREADABLE");
    guest.has_state(VmState::Stopped).await;
    assert_eq!(guest.says(LINE), lines);
    guest.start().await;
    guest.has_said(LINE, lines + 1).await;
    // And seen before anybody asks.
    save().await;
    virsh(&world, &["managedsave-remove", &name]);
    guest.has_state(VmState::Stopped).await;
    guest.remove().await;
}
