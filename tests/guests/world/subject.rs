//! A VM whose guest counts on its disk, and what is known of it: what the guest was told
//! to be there must be readable there, whatever happens.

use super::acts::Administrator;
use super::ask::Ask;
use super::host::{LINE, World};
use crate::bench::{self, Guest};
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the guest counts, and the mark of the disk that it does it on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    pub number: u32,
    pub mark: u32,
}

/// What is known of one VM.
pub struct Subject {
    pub guest: Guest,
    /// What each root volume holds at least: what its guest had been told.
    pub held: HashMap<String, Count>,
    /// How much the administrator has made of it, for the names.
    pub made: u32,
}

impl Subject {
    /// A VM that counts, and has booted.
    pub async fn start(world: &World, counter: &str) -> Self {
        let guest = world.guest(counter).await;
        Self {
            guest,
            held: HashMap::new(),
            made: 0,
        }
    }

    /// Waits until nothing is at work, and kvmlet and libvirt say the same.
    pub async fn settles(&self, world: &World) {
        until("the VM to rest", PATIENCE, async || {
            let vm = self.guest.vm().await;
            let truth = world.truth(&self.guest.id);
            let agrees = match vm.state() {
                VmState::Lost => truth.is_none(),
                VmState::Deleted | VmState::Failed => true,
                VmState::Crashed => truth == Some(VmState::Stopped),
                state => truth == Some(state),
            };
            (vm.current_operation_id.is_empty() && agrees).then_some(())
        })
        .await;
    }

    /// What the guest was told to be on its disk can be read there.
    pub async fn hold(&mut self, world: &World, step: &str) {
        let vm = self.guest.vm().await;
        let told = counts(&self.guest.console()).next_back();
        let Some(disk) = present(world, &vm) else {
            panic!("{step}: the VM's disk is nowhere: {vm:?}");
        };
        let there = count(&disk)
            .unwrap_or_else(|why| panic!("{step}: {} can't be read: {why}", disk.display()));
        let least = self.held.entry(vm.root_volume_id.clone()).or_default();
        // The console goes on with another root, and says so by its mark.
        if let Some(told) = told.filter(|told| told.mark == there.mark) {
            least.number = least.number.max(told.number);
            least.mark = told.mark;
        }
        let same = least.mark == 0 || least.mark == there.mark;
        assert!(
            same && there.number >= least.number,
            "{step}: {} holds {there:?}, and its guest had been told {least:?}: {vm:?}",
            disk.display()
        );
        *least = there;
    }

    /// Cuts its power, if it has any.
    pub async fn force_off(&self, world: &World) {
        let api = world.api();
        if self.guest.state().await == VmState::Running {
            api.done(Ask::StopForce.send(&api, &self.guest.id, "").await)
                .await;
        }
    }

    /// With what the administrator did taken back, the VM runs on with its data, and can be
    /// removed.
    pub async fn comes_back(mut self, world: &World, step: &str) {
        let (id, api) = (self.guest.id.clone(), world.api());
        administrator(world, &id, 1000).make_good();
        self.settles(world).await;
        let state = self.guest.state().await;
        if matches!(state, VmState::Lost | VmState::Deleted) {
            let recovered = ended(world, Ask::Recover.send(&api, &id, "").await).await;
            let succeeded = |it: &Operation| it.state() == OperationState::Succeeded;
            assert!(
                recovered.as_ref().is_some_and(succeeded),
                "{step}: {state:?}, {recovered:?}"
            );
        }
        self.hold(world, step).await;
        let lines = self.guest.says(LINE);
        // What nobody could make good is given up.
        let start = StartVmRequest {
            vm_id: id.clone(),
            discard_saved_memory: true,
            ..Default::default()
        };
        api.done(api.vms().start_vm(start).await).await;
        self.guest.has_said(LINE, lines + 1).await;
        let least = self.held[&self.guest.vm().await.root_volume_id];
        until("the guest to go on from there", bench::BOOT, async || {
            let first = first_of_boot(&self.guest.console())?;
            let goes_on = first.mark == least.mark || least.mark == 0;
            assert!(
                goes_on && first.number > least.number,
                "{step}: began with {first:?} after {least:?}"
            );
            Some(())
        })
        .await;
        self.guest.remove().await;
    }
}

pub fn administrator<'a>(world: &'a World, vm_id: &str, made: u32) -> Administrator<'a> {
    Administrator {
        world,
        vm_id: vm_id.to_owned(),
        made,
    }
}

/// The operation once it has ended; `None` for a refusal, which must say why.
pub async fn ended(
    world: &World,
    sent: Result<tonic::Response<Operation>, tonic::Status>,
) -> Option<Operation> {
    match sent {
        Ok(operation) => {
            let ended = world.api().ended(&operation.get_ref().id).await;
            if let Some(error) = &ended.error {
                let refusal = Refusal::from(error);
                assert_ne!(refusal.reason, "INTERNAL", "{ended:?}");
                println!("failed: {} {}", refusal.reason, refusal.message);
            }
            Some(ended)
        }
        // It was killed before it had answered.
        Err(status) if status.details().is_empty() => None,
        Err(status) => {
            let refusal = Refusal::from(&status);
            assert_ne!(refusal.reason, "INTERNAL", "{refusal:?}");
            println!("refused: {} {}", refusal.reason, refusal.message);
            None
        }
    }
}

/// Where a VM's root volume is, by its record.
pub fn volume(world: &World, vm: &Vm) -> PathBuf {
    let home = world.host.daemon.home();
    home.join(format!("pool/volumes/{}.qcow2", vm.root_volume_id))
}

/// The file that a VM's guest has or would have as its root: by its domain, or where there
/// is none, by its record; where somebody has moved it.
pub fn present(world: &World, vm: &Vm) -> Option<PathBuf> {
    let administrator = administrator(world, &vm.id, 0);
    let disk = administrator.disk().or_else(|| administrator.newest_over());
    let disk = disk.unwrap_or_else(|| volume(world, vm));
    let aside = Administrator::aside(&disk);
    [disk, aside].into_iter().find(|path| path.exists())
}

/// The count on a disk, through all that is under it.
pub fn count(disk: &Path) -> Result<Count, String> {
    #[allow(clippy::disallowed_methods)] // what reads a disk that is in use
    let output = Command::new("qemu-io")
        .args(["-r", "-U", "-f", "qcow2", "-c", "read -v 32768 512"])
        .arg(disk)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("00008000:"));
    let line = line.ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let bytes: Vec<u8> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    Ok(Count {
        number: word(0),
        mark: word(4),
    })
}

/// What a guest was told to be on its disk, in the order in which it was.
fn counts(console: &str) -> impl DoubleEndedIterator<Item = Count> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    whole.lines().filter_map(|line| {
        let digits = line.trim().get(..16)?;
        let word = |digits| u32::from_str_radix(digits, 16).ok();
        Some(Count {
            number: word(&digits[..8])?,
            mark: word(&digits[8..])?,
        })
    })
}

/// The first count of a guest's last boot.
fn first_of_boot(console: &str) -> Option<Count> {
    let (_, boot) = console.rsplit_once(LINE)?;
    counts(boot).next()
}
