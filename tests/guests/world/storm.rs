//! A control plane and an administrator work on the same VMs at once, at random, and the
//! agent is killed now and then. What a guest was told to be on its disk stays readable
//! there, nothing goes that somebody names, and what is told is what happened.

use super::acts::{Act, Administrator};
use super::ask::Ask;
use super::host::{LINE, World, image};
use crate::bench::{self, Guest};
use crate::sector::BootSector;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, seed, thorough, until};
use kvmlet::proto::v1::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const GUESTS: usize = 3;

/// How long the agent may take to come to a fault point that is on its way.
const REACH: Duration = Duration::from_millis(1500);

/// What a control plane asks.
const ASKS: [Ask; 14] = [
    Ask::Start,
    Ask::Start,
    Ask::StopForce,
    Ask::Pause,
    Ask::Resume,
    Ask::Save,
    Ask::Discard,
    Ask::Reset,
    Ask::Describe,
    Ask::Redefine,
    Ask::Replace,
    Ask::Revert,
    Ask::Delete,
    Ask::Recover,
];

/// When the administrator acts.
#[derive(Debug, Clone, Copy)]
enum When {
    Before,
    Beside,
    /// While the agent is dead: killed in the middle of the operation, at a random point.
    Between,
}

/// What the guest counts, and the mark of the disk that it does it on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    number: u32,
    mark: u32,
}

/// What is known of one VM.
struct Subject {
    guest: Guest,
    /// What each root volume holds at least: what its guest had been told.
    held: HashMap<String, Count>,
    made: u32,
}

pub async fn whatever_an_administrator_does_meanwhile_nothing_is_lost(mut world: World) {
    let seed = seed();
    println!("KVMLET_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let trace = trace(&world).display().to_string();
    let setup = world.host.daemon.setup_mut();
    setup
        .environment
        .push(("FAILPOINTS_TRACE".to_owned(), trace));
    world.host.daemon.kill9();
    world.host.daemon.restart().await;
    let counter = image(&world.host, BootSector::Counter).await;
    let mut subjects = Vec::new();
    for _ in 0..GUESTS {
        let guest = world.host.create(bench::request(&counter)).await;
        guest.has_said(LINE, 1).await;
        subjects.push(Subject {
            guest,
            held: HashMap::new(),
            made: 0,
        });
    }
    let length = Duration::from_secs(if thorough() { 600 } else { 60 });
    let (begun, mut rounds, mut done, mut refused) = (Instant::now(), 0, 0, 0);
    while begun.elapsed() < length {
        let subject = &mut subjects[random.random_range(0..GUESTS)];
        let ask = subject.ask(&mut random).await;
        let act = Act::ALL[random.random_range(0..Act::ALL.len())];
        let when = match random.random_range(0..10) {
            0..5 => When::Before,
            5..8 => When::Beside,
            _ => When::Between,
        };
        if random.random_ratio(1, 6) {
            let since = Instant::now();
            administrator(&world, &subject.guest.id, 0).make_good();
            subject.settles(&world).await;
            println!("made good in {:.1} s", since.elapsed().as_secs_f32());
        }
        let step = format!("round {rounds} of seed {seed}: {ask:?}, {act:?} {when:?}");
        let since = Instant::now();
        let succeeded = subject
            .round(&mut world, &mut random, &counter, (ask, act, when), &step)
            .await;
        let took = since.elapsed().as_secs_f32();
        println!(
            "{step}: {} after {took:.1} s",
            if succeeded { "done" } else { "not done" }
        );
        rounds += 1;
        done += u32::from(succeeded);
        refused += u32::from(!succeeded);
        if let When::Between = when {
            for subject in &mut subjects {
                let id = subject.guest.id.clone();
                subject.guest = world.host.guest(id);
            }
        }
    }
    println!("{rounds} rounds: {done} operations succeeded, {refused} did not");
    assert!(done > rounds / 10, "hardly anything was done");
    for subject in subjects {
        subject.comes_back(&world, seed).await;
    }
}

impl Subject {
    /// Something to ask: what brings it back, more often than not, if it is away.
    async fn ask(&self, random: &mut StdRng) -> Ask {
        let ask = ASKS[random.random_range(0..ASKS.len())];
        match (self.guest.state().await, ask) {
            (VmState::Lost | VmState::Deleted, _) if random.random_ratio(2, 3) => Ask::Recover,
            // Of what is not saved it would ask the guest to shut down.
            (state, Ask::Discard) if state != VmState::Saved => Ask::StopForce,
            (_, ask) => ask,
        }
    }

    async fn round(
        &mut self,
        world: &mut World,
        random: &mut StdRng,
        image: &str,
        (ask, act, when): (Ask, Act, When),
        step: &str,
    ) -> bool {
        let id = self.guest.id.clone();
        self.hold(world, step).await;
        let disk = administrator(world, &id, 0).disk();
        let made = self.made;
        let acts = |world: &World| administrator(world, &id, made).act(act);
        let operation = match when {
            When::Before => {
                acts(world);
                self.settles(world).await;
                let sent = ask.send(&world.api(), &id, image).await;
                ended(world, sent).await
            }
            When::Beside => {
                let api = world.api();
                let sent = ask.send(&api, &id, image).await;
                tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
                acts(world);
                ended(world, sent).await
            }
            When::Between => {
                let point = point(world, random);
                if let Some(point) = &point {
                    fs::write(world.points(), format!("{point}=1*return(kill)\n")).unwrap();
                }
                let sent = ask.send(&world.api(), &id, image).await;
                // It may be on another way.
                let died = point.is_some() && world.host.daemon.dies(REACH).await;
                fs::write(world.points(), "").unwrap();
                if !died {
                    world.host.daemon.kill9();
                }
                println!("killed at {point:?}: {died}");
                acts(world);
                world.host.daemon.restart().await;
                self.guest = world.host.guest(id.clone());
                ended(world, sent).await
            }
        };
        self.made += 1;
        self.settles(world).await;
        let succeeded = operation
            .as_ref()
            .is_some_and(|it| it.state() == OperationState::Succeeded);
        if let (When::Before, true) = (when, succeeded) {
            self.is_so(world, ask, disk.as_deref(), step).await;
        }
        self.hold(world, step).await;
        succeeded
    }

    /// Waits until nothing is at work, and kvmlet and libvirt say the same.
    async fn settles(&self, world: &World) {
        until("the VM to rest", PATIENCE, async || {
            let vm = self.guest.vm().await;
            let truth = world.truth(&self.guest.id);
            let agrees = match vm.state() {
                VmState::Lost => truth.is_none(),
                VmState::Deleted => true,
                VmState::Crashed => truth == Some(VmState::Stopped),
                state => truth == Some(state),
            };
            (vm.current_operation_id.is_empty() && agrees).then_some(())
        })
        .await;
    }

    /// What was told to have been done, with nobody beside, is so.
    async fn is_so(&self, world: &World, ask: Ask, disk: Option<&Path>, step: &str) {
        let vm = self.guest.vm().await;
        let truth = world.truth(&self.guest.id);
        let now = administrator(world, &self.guest.id, 0).disk();
        let wanted: &[Option<VmState>] = match ask {
            Ask::Start | Ask::Resume => &[Some(VmState::Running)],
            Ask::StopForce => &[Some(VmState::Stopped), Some(VmState::Saved)],
            Ask::Discard => &[Some(VmState::Stopped)],
            Ask::Pause => &[Some(VmState::Paused)],
            Ask::Save => &[Some(VmState::Saved)],
            _ => &[truth],
        };
        assert!(wanted.contains(&truth), "{step}: {truth:?}, {vm:?}");
        match ask {
            Ask::Replace | Ask::Revert => {
                let root = now.expect("it has a disk");
                assert_eq!(root, volume(world, &vm), "{step}: {vm:?}");
            }
            // The act itself may have put another one there.
            _ if now.is_some() && disk.is_some() => {
                let (is, was) = (now.unwrap(), disk.unwrap());
                let over = |path: &Path| path.to_string_lossy().contains("-over");
                let by_act = over(&is) != over(was);
                assert!(
                    is == was || by_act || over(&is),
                    "{step}: on {}, was on {}",
                    is.display(),
                    was.display()
                );
            }
            _ => {}
        }
    }

    /// What the guest was told to be on its disk can be read there.
    async fn hold(&mut self, world: &World, step: &str) {
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

    /// With what the administrator did taken back, the VM runs on with its data, and can be
    /// removed.
    async fn comes_back(mut self, world: &World, seed: u64) {
        let step = format!("the end of seed {seed}");
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
        self.hold(world, &step).await;
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

/// A fault point that some operation has come by.
fn point(world: &World, random: &mut StdRng) -> Option<String> {
    let trace = fs::read_to_string(trace(world)).unwrap_or_default();
    let mut points: Vec<&str> = trace.lines().filter(|point| point.contains('.')).collect();
    points.sort_unstable();
    points.dedup();
    let at = random.random_range(0..points.len().max(1));
    points.get(at).map(|point| (*point).to_owned())
}

/// Where the agent writes down which fault points it comes by.
fn trace(world: &World) -> PathBuf {
    world.host.daemon.home().join("trace")
}

fn administrator<'a>(world: &'a World, vm_id: &str, made: u32) -> Administrator<'a> {
    Administrator {
        world,
        vm_id: vm_id.to_owned(),
        made,
    }
}

/// The operation once it has ended; `None` for a refusal, which must say why.
async fn ended(
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
fn volume(world: &World, vm: &Vm) -> PathBuf {
    let home = world.host.daemon.home();
    home.join(format!("pool/volumes/{}.qcow2", vm.root_volume_id))
}

/// The file that a VM's guest has or would have as its root: by its domain, or where there
/// is none, by its record; where somebody has moved it.
fn present(world: &World, vm: &Vm) -> Option<PathBuf> {
    let administrator = administrator(world, &vm.id, 0);
    let disk = administrator.disk().or_else(|| administrator.newest_over());
    let disk = disk.unwrap_or_else(|| volume(world, vm));
    let aside = Administrator::aside(&disk);
    [disk, aside].into_iter().find(|path| path.exists())
}

/// The count on a disk, through all that is under it.
fn count(disk: &Path) -> Result<Count, String> {
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
