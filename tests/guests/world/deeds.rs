//! What an administrator does to a VM in the middle of an operation, while the agent is
//! dead.

use super::acts::Act;
use super::admin::{define, define_foreign, domain, qemu_img, try_virsh, virsh};
use super::host::World;
use super::subject::{Subject, administrator, count};
use crate::support::api::id;
use crate::support::{PATIENCE, until};
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::path::PathBuf;

/// What is done while the agent is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// The VM's domain goes, and another one has its UUID.
    TakeUuid,
    /// The guest goes on in a snapshot, and writes there.
    WriteInSnapshot,
    /// The definition from before the operation is put back.
    PutBack,
    /// A domain of somebody's gets an overlay on the root volume.
    StandOnIt,
    /// Of what was saved the header says that it is not all there.
    Unfinish,
    Cut,
    RemoveFile,
    RemoveMemory,
    /// The guest's memory is saved.
    SaveMemory,
    /// The guest is booted without its saved memory.
    BootAfresh,
    Destroy,
    KillQemu,
}

impl Deed {
    /// Does it; whether there was something to do it to.
    pub async fn act(
        self,
        world: &World,
        subject: &mut Subject,
        before: &str,
        root: Option<PathBuf>,
    ) -> bool {
        subject.made += 1;
        let vm_id = subject.guest.id.clone();
        let name = domain(&vm_id);
        let file = world.libvirtd.home.path();
        let file = file.join(format!("lib/qemu/save/{name}.save"));
        match self {
            Self::TakeUuid => {
                try_virsh(world, &["destroy", &name]).ok();
                try_virsh(world, &["undefine", &name, "--managed-save", "--nvram"]).ok();
                let foreign = format!("theirs-{}", &vm_id[..8]);
                define_foreign(world, &vm_id, &foreign, None);
                true
            }
            Self::WriteInSnapshot => write_in_snapshot(world, subject).await,
            Self::PutBack => {
                define(world, before);
                true
            }
            Self::StandOnIt => {
                let Some(base) = root.filter(|base| base.exists()) else {
                    return false;
                };
                // Of what runs it is cut from a moment, which is as good here.
                let over = overlay(world, &vm_id);
                let texts = [base.to_str().unwrap(), over.to_str().unwrap()];
                qemu_img(&[
                    "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", texts[0], texts[1],
                    "64M",
                ]);
                define_foreign(world, &id(), &format!("over-{vm_id}"), Some(&over));
                true
            }
            Self::Unfinish | Self::Cut => fs::read(&file).is_ok_and(|mut bytes| {
                if self == Self::Cut {
                    bytes.truncate(300);
                } else {
                    bytes[..16].copy_from_slice(b"LibvirtQemudPart");
                }
                fs::write(&file, bytes).is_ok()
            }),
            Self::RemoveFile => fs::remove_file(&file).is_ok(),
            Self::RemoveMemory => {
                file.exists() && try_virsh(world, &["managedsave-remove", &name]).is_ok()
            }
            Self::SaveMemory => try_virsh(world, &["managedsave", &name]).is_ok(),
            Self::BootAfresh => {
                file.exists()
                    && try_virsh(world, &["managedsave-remove", &name]).is_ok()
                    && try_virsh(world, &["start", &name]).is_ok()
            }
            Self::Destroy => try_virsh(world, &["destroy", &name]).is_ok(),
            Self::KillQemu => world
                .qemu(&vm_id)
                .is_some_and(|process| kill(process, Signal::SIGKILL).is_ok()),
        }
    }
}

/// Has the guest go on in a snapshot and count there.
async fn write_in_snapshot(world: &World, subject: &mut Subject) -> bool {
    let id = subject.guest.id.clone();
    let mut administrator = administrator(world, &id, subject.made);
    if !administrator.act(Act::SnapshotOutside) {
        return false;
    }
    let name = domain(&id);
    let state = || virsh(world, &["domstate", &name]);
    let was_off = state().trim() == "shut off";
    if was_off {
        virsh(world, &["start", &name]);
    }
    if state().trim() != "running" {
        return true;
    }
    let disk = administrator.disk().unwrap();
    let so_far = count(&disk).map_or(0, |count| count.number);
    until("the guest to count in its snapshot", PATIENCE, async || {
        let now = count(&disk).ok()?;
        (now.number > so_far).then_some(())
    })
    .await;
    if was_off {
        virsh(world, &["destroy", &name]);
    }
    true
}

/// Somebody's disk that stands on a VM's.
pub fn overlay(world: &World, vm_id: &str) -> PathBuf {
    let folder = world.host.daemon.home().join("theirs");
    fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{vm_id}-foreign"))
}
