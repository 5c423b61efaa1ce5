//! A control plane and an administrator work on the same VMs at once, at random, and the
//! agent is killed now and then. What a guest was told to be on its disk stays readable
//! there, nothing goes that somebody names, and what is told is what happened.

use super::acts::Act;
use super::ask::Ask;
use super::host::{World, image};
use super::subject::{Subject, administrator, ended, volume};
use crate::sector::BootSector;
use crate::support::{seed, thorough};
use kvmlet::proto::v1::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::path::{Path, PathBuf};
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
        subjects.push(Subject::start(&world, &counter).await);
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
        let step = format!("the end of seed {seed}");
        subject.comes_back(&world, &step).await;
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
