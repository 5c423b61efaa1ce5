//! The agent is killed at a point of an operation, and an administrator is at the VM
//! before it is started again. Which points there are, an undisturbed run shows; with
//! `KVMLET_THOROUGH=1` each is taken with each deed, else a few, others each time.

use super::admin::{define, domain, source, try_qemu_img, try_virsh, virsh};
use super::ask::Ask;
use super::deeds::{Deed, overlay};
use super::host::{LINE, World, image};
use super::subject::{Subject, administrator, ended, present, volume};
use crate::sector::BootSector;
use crate::support::api::id;
use crate::support::{PATIENCE, seed, thorough, until};
use kvmlet::proto::v1::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// How many cases of each row are taken.
const DRAWN: usize = 1;

/// How long a point may be on its way.
const REACH: Duration = Duration::from_secs(10);

/// What is there before the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Running,
    Off,
    Saved,
    /// With a former root.
    Replaced,
    Deleted,
}

/// One operation, with what is done in the middle of it.
#[derive(Debug, Clone, Copy)]
struct Row {
    found: Found,
    ask: Ask,
    /// The step that fails once it has done its work, so that all is undone.
    fails: Option<&'static str>,
    deeds: &'static [Deed],
}

const fn row(found: Found, ask: Ask, deeds: &'static [Deed]) -> Row {
    Row {
        found,
        ask,
        fails: None,
        deeds,
    }
}

impl Row {
    const fn failing(self, step: &'static str) -> Self {
        Self {
            fails: Some(step),
            ..self
        }
    }
}

/// What a request came to.
type Sent = Result<tonic::Response<Operation>, tonic::Status>;

/// A row, killed at one point, with one deed.
#[derive(Debug, Clone)]
struct Case {
    row: Row,
    point: String,
    deed: Deed,
    /// The image of a guest that counts on its disk.
    counter: String,
}

/// What is left of a case: the VM, and what the administrator has made.
struct Left {
    subject: Subject,
    operation: Option<Operation>,
    /// Whether there was something to do it to.
    done: bool,
    step: String,
}

pub async fn a_domain_that_has_a_vms_uuid_meanwhile_stays_as_it_is(mut world: World) {
    const DEEDS: &[Deed] = &[Deed::TakeUuid];
    let rows = [
        row(Found::Nothing, Ask::Create, DEEDS),
        row(Found::Nothing, Ask::Create, DEEDS).failing("create-vm.start-guest"),
        row(Found::Off, Ask::Start, DEEDS),
        row(Found::Off, Ask::Redefine, DEEDS),
        row(Found::Deleted, Ask::Recover, DEEDS),
        row(Found::Running, Ask::Replace, DEEDS),
        row(Found::Off, Ask::Delete, DEEDS),
        row(Found::Off, Ask::DeleteForGood, DEEDS),
    ];
    for case in cases(&mut world, &rows).await {
        let foreign = |world: &World, id: &str| virsh(world, &["dumpxml", id]);
        let left = case.run(&mut world).await;
        let (vm_id, step) = (left.subject.guest.id.clone(), &left.step);
        let is = || foreign(&world, &vm_id);
        let was = is();
        assert!(was.contains("<name>theirs-"), "{step}: {was}");
        let goes = matches!(case.row.ask, Ask::Create | Ask::DeleteForGood);
        if goes {
            gone(&world, &vm_id).await;
        }
        assert_eq!(is(), was, "{step}");
        let name = virsh(&world, &["domname", &vm_id]);
        try_virsh(&world, &["destroy", name.trim()]).ok();
        virsh(&world, &["undefine", name.trim()]);
        if goes {
            let files = world.host.files();
            let left = files.iter().filter(|file| file.starts_with("pool/volumes"));
            assert_eq!(left.count(), 0, "{step}: {files:?}");
        } else {
            left.subject.comes_back(&world, &left.step).await;
        }
    }
}

pub async fn what_a_guest_writes_in_a_snapshot_meanwhile_is_kept(mut world: World) {
    const DEEDS: &[Deed] = &[Deed::WriteInSnapshot];
    let rows = [
        row(Found::Off, Ask::Redefine, DEEDS),
        row(Found::Off, Ask::Start, DEEDS),
        row(Found::Saved, Ask::Describe, DEEDS),
        row(Found::Running, Ask::Replace, DEEDS),
        row(Found::Running, Ask::Replace, DEEDS).failing("replace-root-volume.switch-root"),
        row(Found::Replaced, Ask::Revert, DEEDS),
        row(Found::Off, Ask::Delete, DEEDS),
        row(Found::Off, Ask::DeleteForGood, DEEDS),
        row(Found::Nothing, Ask::Create, DEEDS).failing("create-vm.start-guest"),
    ];
    for case in cases(&mut world, &rows).await {
        let mut left = case.run(&mut world).await;
        let goes = matches!(case.row.ask, Ask::Create | Ask::DeleteForGood);
        let api = world.api();
        let id = left.subject.guest.id.clone();
        if goes && !left.done {
            gone(&world, &id).await;
            continue;
        }
        let vm = api.vm(&id).await;
        let vm = vm.unwrap_or_else(|_| panic!("{}: the snapshot's base is gone", left.step));
        left.subject.hold(&world, &left.step).await;
        // Its disk is its volume or stands on it, or it says that it is not.
        let disk = present(&world, &vm).unwrap();
        let chain = try_qemu_img(&["check", "-q", disk.to_str().unwrap(), "-U"]);
        assert!(chain, "{}: {}", left.step, disk.display());
        if goes {
            // It has no way back, and goes on once the snapshot is merged.
            administrator(&world, &vm.id, 1000).make_good();
            gone(&world, &vm.id).await;
            continue;
        }
        left.subject.comes_back(&world, &left.step).await;
    }
}

pub async fn a_definition_that_is_put_back_meanwhile_keeps_its_disk(mut world: World) {
    const DEEDS: &[Deed] = &[Deed::PutBack];
    let rows = [
        row(Found::Running, Ask::ReplaceBriefly, DEEDS),
        row(Found::Running, Ask::Replace, DEEDS).failing("replace-root-volume.switch-root"),
        row(Found::Replaced, Ask::Revert, DEEDS),
    ];
    for case in cases(&mut world, &rows).await {
        let mut left = case.run(&mut world).await;
        let step = left.step.clone();
        left.subject.hold(&world, &step).await;
        let vm = left.subject.guest.vm().await;
        let name = domain(&vm.id);
        let (disk, root) = (source(&world, &name), volume(&world, &vm));
        if disk != root {
            // It says so, and the domain's disk outlives its window.
            let drifted = |vm: &Vm| {
                let mut conditions = vm.conditions.iter();
                conditions.any(|one| one.r#type() == VmConditionType::Drifted)
            };
            until(&format!("{step}: DRIFTED"), PATIENCE, async || {
                drifted(&left.subject.guest.vm().await).then_some(())
            })
            .await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert!(disk.exists(), "{step}: {}", disk.display());
            left.subject.force_off(&world).await;
            let xml = virsh(&world, &["dumpxml", "--inactive", "--security-info", &name]);
            let (is, to) = (disk.to_str().unwrap(), root.to_str().unwrap());
            define(&world, &xml.replace(is, to));
            left.subject.settles(&world).await;
            left.subject.held.clear();
            left.subject.hold(&world, &step).await;
        }
        left.subject.comes_back(&world, &step).await;
    }
}

pub async fn a_volume_that_somebody_stands_on_meanwhile_stays(mut world: World) {
    const DEEDS: &[Deed] = &[Deed::StandOnIt];
    let rows = [
        row(Found::Off, Ask::DeleteForGood, DEEDS),
        row(Found::Deleted, Ask::Expunge, DEEDS),
        row(Found::Running, Ask::ReplaceBriefly, DEEDS),
        row(Found::Running, Ask::Replace, DEEDS).failing("replace-root-volume.switch-root"),
    ];
    for case in cases(&mut world, &rows).await {
        let left = case.run(&mut world).await;
        let (id, step) = (left.subject.guest.id.clone(), &left.step);
        if left.done {
            // A former root's window is over by then.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let over = overlay(&world, &id);
            let read = try_qemu_img(&["check", "-q", "-U", over.to_str().unwrap()]);
            assert!(read, "{step}: what it stands on is gone");
            virsh(&world, &["undefine", &format!("over-{id}")]);
            fs::remove_file(over).unwrap();
        }
        gone(&world, &id).await;
    }
}

pub async fn memory_that_is_spoilt_meanwhile_is_not_told_as_saved_or_restored(mut world: World) {
    const DEEDS: &[Deed] = &[
        Deed::Unfinish,
        Deed::Cut,
        Deed::RemoveFile,
        Deed::RemoveMemory,
    ];
    let rows = [
        row(Found::Running, Ask::Save, DEEDS),
        row(Found::Saved, Ask::Start, DEEDS),
        row(Found::Saved, Ask::Start, &[Deed::BootAfresh]),
    ];
    for case in cases(&mut world, &rows).await {
        let left = case.run(&mut world).await;
        let (subject, step) = (left.subject, &left.step);
        let succeeded = left
            .operation
            .as_ref()
            .is_some_and(|it| it.state() == OperationState::Succeeded);
        // The end of one that had ended before is what it was.
        let is_over = case.point.contains(".end.after");
        if left.done && !is_over {
            assert!(!succeeded, "{step}: {:?}", left.operation);
        }
        let booted = usize::from(left.done && case.deed == Deed::BootAfresh);
        subject.guest.has_said(LINE, 1 + booted).await;
        let lines = subject.guest.says(LINE);
        assert_eq!(lines, 1 + booted, "{step}: it has booted");
        let api = world.api();
        let start = Ask::Start.send(&api, &subject.guest.id, "").await;
        let started = api.outcome(start).await;
        match (subject.guest.state().await, started) {
            (VmState::Running, _) => {
                let moves = subject.guest.says(LINE) == 1;
                let was = left.operation.as_ref().map(Operation::state);
                assert!(
                    moves || booted == 1 || was == Some(OperationState::Failed),
                    "{step}: {was:?}"
                );
            }
            (_, Err(refusal)) => {
                assert_eq!(refusal.reason, "SAVED_MEMORY_UNREADABLE", "{step}");
                assert!(left.done, "{step}: {refusal:?}");
                assert_eq!(subject.guest.says(LINE), 1, "{step}");
            }
            (state, Ok(started)) => panic!("{step}: {state:?} after {started:?}"),
        }
        subject.comes_back(&world, step).await;
    }
}

pub async fn memory_that_is_saved_meanwhile_is_restored_on_its_own_root(mut world: World) {
    const DEEDS: &[Deed] = &[Deed::SaveMemory];
    let rows = [
        row(Found::Running, Ask::Replace, DEEDS),
        row(Found::Running, Ask::Replace, DEEDS).failing("replace-root-volume.switch-root"),
        row(Found::Replaced, Ask::Revert, DEEDS),
        row(Found::Running, Ask::StopForce, DEEDS),
    ];
    for case in cases(&mut world, &rows).await {
        let mut left = case.run(&mut world).await;
        let step = left.step.clone();
        left.subject.hold(&world, &step).await;
        // A guest that runs has the root that its record names, live and by its definition.
        let vm = left.subject.guest.vm().await;
        let root = volume(&world, &vm);
        assert_eq!(source(&world, &domain(&vm.id)), root, "{step}");
        let live = administrator(&world, &vm.id, 0).disk();
        assert_eq!(live, Some(root), "{step}: {vm:?}");
        left.subject.comes_back(&world, &step).await;
    }
}

pub async fn a_stop_tells_what_has_ended_the_guest_meanwhile(mut world: World) {
    let rows = [row(
        Found::Running,
        Ask::StopGently,
        &[Deed::Destroy, Deed::KillQemu],
    )];
    for case in cases(&mut world, &rows).await {
        let left = case.run(&mut world).await;
        let (step, wanted) = (
            &left.step,
            match case.deed {
                Deed::KillQemu => (PowerMethod::Crashed, VmState::Crashed),
                _ => (PowerMethod::Destroyed, VmState::Stopped),
            },
        );
        // It was killed before it had taken the request, or the guest was off.
        if let (true, Some(operation)) = (left.done, left.operation) {
            assert_eq!(operation.state(), OperationState::Succeeded, "{step}");
            let outcome = operation.power_outcome.expect("it says what ended it");
            let was = (outcome.method(), left.subject.guest.state().await);
            assert_eq!((was, outcome.forced), (wanted, false), "{step}");
        }
        left.subject.comes_back(&world, step).await;
    }
}

/// Finds the points of each row, and draws its cases.
async fn cases(world: &mut World, rows: &[Row]) -> Vec<Case> {
    let seed = seed();
    println!("KVMLET_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let trace = world.points().with_file_name("trace");
    let setup = world.host.daemon.setup_mut();
    setup
        .environment
        .push(("FAILPOINTS_TRACE".to_owned(), trace.display().to_string()));
    world.host.daemon.kill9();
    world.host.daemon.restart().await;
    let counter = image(&world.host, BootSector::Counter).await;
    let mut drawn = Vec::new();
    for row in rows {
        let subject = row.found.make(world, &counter).await;
        let id = subject.guest.id.clone();
        drop(fs::remove_file(&trace));
        fs::write(world.points(), row.failure()).unwrap();
        let sent = row.ask.send(&world.api(), &id, &counter).await;
        if row.ask == Ask::StopGently {
            virsh(world, &["destroy", &domain(&id)]);
        }
        row.ended(world, sent).await;
        fs::write(world.points(), "").unwrap();
        let text = fs::read_to_string(&trace).unwrap();
        let mut begins = text.lines().filter_map(|point| point.split_once(".begin."));
        let (own, _) = begins.next().expect("it has begun");
        let mut points: Vec<&str> = Vec::new();
        for point in text.lines() {
            let inside = point.starts_with(&format!("{own}.")) || point.starts_with("pool.");
            if inside && !points.contains(&point) {
                points.push(point);
            }
        }
        assert!(points.len() >= 6, "{row:?}: {points:?}");
        let mut all = Vec::new();
        for point in points {
            for deed in row.deeds {
                all.push(Case {
                    row: *row,
                    point: point.to_owned(),
                    deed: *deed,
                    counter: counter.clone(),
                });
            }
        }
        println!("{row:?}: {} cases", all.len());
        if thorough() {
            drawn.extend(all);
        } else {
            drawn.extend(all.choose_multiple(&mut random, DRAWN).cloned());
        }
        gone(world, &id).await;
    }
    drawn
}

/// Removes a VM and all of it, if it is known.
async fn gone(world: &World, id: &str) {
    let api = world.api();
    if let Ok(vm) = api.vm(id).await {
        let ask = match vm.state() {
            VmState::Deleted => Ask::Expunge,
            _ => Ask::DeleteForGood,
        };
        api.done(ask.send(&api, id, "").await).await;
    }
}

impl Case {
    /// Kills the agent at the point, does the deed, and starts it again.
    async fn run(&self, world: &mut World) -> Left {
        let Self {
            row,
            point,
            deed,
            counter,
        } = self;

        let step = format!("{row:?} killed at {point}, then {deed:?}");
        let mut subject = row.found.make(world, counter).await;
        let id = subject.guest.id.clone();
        let is_there = row.found != Found::Nothing;
        if is_there {
            subject.hold(world, &step).await;
        }
        let words = ["dumpxml", "--inactive", "--security-info", &domain(&id)];
        let before = try_virsh(world, &words).unwrap_or_default();
        let root = match is_there {
            true => Some(volume(world, &subject.guest.vm().await)),
            false => None,
        };
        let armed = format!("{}{point}=1*return(kill)\n", row.failure());
        fs::write(world.points(), armed).unwrap();
        let sent = row.ask.send(&world.api(), &id, counter).await;
        let died = world.host.daemon.dies(REACH).await;
        fs::write(world.points(), "").unwrap();
        if !died {
            // What a guest that hears nothing does not come to.
            assert_eq!(row.ask, Ask::StopGently, "{step}: it was not reached");
            world.host.daemon.kill9();
        }
        let done = deed.act(world, &mut subject, &before, root).await;
        println!("{step}: {}", if done { "done" } else { "nothing to do" });
        world.host.daemon.restart().await;
        subject.guest = world.host.guest(id);
        let operation = row.ended(world, sent).await;
        let left = Left {
            subject,
            operation,
            done,
            step,
        };
        // It may have been killed before it had answered.
        until("nothing to be at work", PATIENCE, async || {
            match world.api().vm(&left.subject.guest.id).await {
                Ok(vm) => vm.current_operation_id.is_empty().then_some(()),
                Err(_) => Some(()),
            }
        })
        .await;
        if *deed != Deed::TakeUuid && left.api_knows(world).await {
            left.subject.settles(world).await;
        }
        left
    }
}

impl Left {
    async fn api_knows(&self, world: &World) -> bool {
        world.api().vm(&self.subject.guest.id).await.is_ok()
    }
}

impl Row {
    /// The operation once it has ended; `None` if it was killed before it had answered.
    async fn ended(&self, world: &World, sent: Sent) -> Option<Operation> {
        if self.fails.is_none() {
            return ended(world, sent).await;
        }
        // What was made to fail is INTERNAL.
        let id = sent.ok()?.into_inner().id;
        Some(world.api().ended(&id).await)
    }

    /// Arms the step that fails.
    fn failure(&self) -> String {
        self.fails.map_or(String::new(), |step| {
            format!("{step}.after=1*return(fail)\n")
        })
    }
}

impl Found {
    async fn make(self, world: &World, counter: &str) -> Subject {
        if self == Self::Nothing {
            return Subject {
                guest: world.host.guest(id()),
                held: HashMap::new(),
                made: 0,
            };
        }
        let mut subject = Subject::start(world, counter).await;
        let id = subject.guest.id.clone();
        let (ask, lines) = match self {
            Self::Nothing | Self::Running => return subject,
            Self::Off => (Ask::StopForce, 1),
            Self::Saved => (Ask::Save, 1),
            Self::Replaced => (Ask::Replace, 2),
            Self::Deleted => (Ask::Delete, 1),
        };
        subject.hold(world, "before").await;
        let api = world.api();
        api.done(ask.send(&api, &id, counter).await).await;
        subject.guest.has_said(LINE, lines).await;
        subject
    }
}
