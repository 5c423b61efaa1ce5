//! Killed anywhere: every operation, at every point of its plan, and what is left
//! of it then.
//!
//! The agent is killed with SIGKILL where a fault point is reached, started again,
//! and asked again. Then the operation must have ended as `expected.rs` says of the
//! point, and the host must be as after an undisturbed run, or as before; everything
//! in `tests/support/invariants.rs` must hold. On libvirt's simulated host all points
//! of all operations, on real QEMU a representative part; and on a real Ceph cluster
//! those operations that make, move or remove what is in it.
//!
//! Each scenario has one list of cases (`case.rs`). `KVMLET_THOROUGH=1` goes through
//! all of it; without, a sample is drawn from it, another one each time. In both an
//! operation is killed at all points of its way in turn, and at all points of its
//! undoing (`chain.rs`).

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../qemu_libvirt/guest.rs"]
mod sector;

mod ask;
mod case;
mod chain;
mod expected;
mod lane;
mod marked;
mod matrix;
mod rest;
mod scenario;
mod sequences;
mod shape;
mod stage;
mod stopped;
mod walk;
mod writers;

use case::Depth;
use libtest_mimic::{Arguments, Trial};
use matrix::{Matrix, Tally};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use scenario::Scenario;
use sequences::Size;
use stage::Stage;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;
use support::ceph::Cluster;
use support::timed::trial;
use support::{known, seed, thorough};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Random sequences on the simulated host, in parts, each on one of its own: how many
/// parts, and what each comes to.
const SEQUENCES: (usize, Size) = (
    2,
    Size {
        sequences: 240,
        lanes: 8,
        kill_one_in: 2,
    },
);
/// The same, at full length.
const ALL_SEQUENCES: (usize, Size) = (
    10,
    Size {
        sequences: 1000,
        lanes: 16,
        kill_one_in: 2,
    },
);

/// The operations whose undoing is stopped at all its points, because it has the most.
const STOPPED: [Scenario; 2] = [Scenario::ReplaceRoot, Scenario::Create];

/// What came of all matrices.
type Total = Arc<Mutex<Tally>>;

/// The cluster of all, and what one libvirt driver has learnt of QEMU, for all others.
type Lazy<T> = Arc<LazyLock<T, fn() -> T>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each waits for processes most of the time.
    arguments.test_threads.get_or_insert(4);
    support::reaper::start();
    let total = Total::default();
    let seed = seed();
    println!("KVMLET_SEED={seed} draws the same cases and sequences");
    let cluster: Lazy<Cluster> = Arc::new(LazyLock::new(Cluster::start));
    let learnt: Lazy<TempDir> = Arc::new(LazyLock::new(|| {
        // Whoever is first asks for it within a runtime of his own.
        let thread = std::thread::spawn(|| block_on(learn()));
        thread.join().expect("QEMU can be looked at")
    }));
    // The longest first: they run side by side. Those with QEMU wait more than they
    // compute, so that they are put between those on Ceph.
    let mut on_ceph = on_ceph(&total, &cluster, seed).into_iter();
    let mut on_qemu = on_qemu(&total, &learnt, seed).into_iter();
    let mut trials = Vec::new();
    loop {
        let pair = [on_ceph.next(), on_qemu.next()];
        if pair.iter().all(Option::is_none) {
            break;
        }
        trials.extend(pair.into_iter().flatten());
    }
    trials.extend(of_sequences(&learnt, seed));
    trials.extend(simulated(&total, seed));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let total = total.lock().unwrap();
    println!("{}", line("crash matrix", &total));
    if arguments.filter.is_none() && !arguments.list {
        let missed: Vec<&str> = marked::described()
            .filter(|step| !total.steps.contains(*step))
            .collect();
        if !missed.is_empty() {
            println!("steps that no scenario goes through: {missed:?}");
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

fn simulated(total: &Total, seed: u64) -> Vec<Trial> {
    let stopped = STOPPED.iter().map(|scenario| {
        let place = "simulated::stopped_while_it_is_undone";
        matrix(total, place, *scenario, seed, async move |_| {
            let mut stage = Stage::simulated().await;
            Matrix::run_stops(&mut stage, *scenario).await
        })
    });
    let all = Scenario::ALL.iter().map(|scenario| {
        matrix(total, "simulated", *scenario, seed, async move |random| {
            let mut stage = Stage::simulated().await;
            Matrix::run(&mut stage, *scenario, Depth::Every, random).await
        })
    });
    stopped.chain(all).collect()
}

fn on_ceph(total: &Total, cluster: &Lazy<Cluster>, seed: u64) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (number, scenario) in Scenario::ON_CEPH.iter().enumerate() {
        let cluster = Arc::clone(cluster);
        let work = async move |random: &mut StdRng| {
            let mut stage = Stage::ceph(&cluster, number).await;
            Matrix::run(&mut stage, *scenario, Depth::Cluster, random).await
        };
        trials.push(matrix(total, "ceph", *scenario, seed, work));
    }
    let mut numbers = Scenario::ON_CEPH.len()..;
    for (work, number) in writers::Work::ALL.into_iter().zip(&mut numbers) {
        let cluster = Arc::clone(cluster);
        let name = format!("ceph::writer_killed_with_the_agent::{work:?}");
        trials.push(trial(name, move || {
            block_on(async {
                let mut stage = Stage::ceph(&cluster, number).await;
                writers::killed_with_the_agent(&mut stage, &cluster, work).await;
            });
        }));
    }
    let (number, cluster) = (numbers.start, Arc::clone(cluster));
    let name = "ceph::stopped_while_a_volume_in_use_is_undone";
    trials.push(trial(name, move || {
        block_on(async {
            let mut stage = Stage::ceph(&cluster, number).await;
            let shows = stopped::while_a_volume_is_in_use(&mut stage, &cluster);
            known::fault("undo-cut-off-by-a-stop", shows).await;
        });
    }));
    trials
}

fn on_qemu(total: &Total, learnt: &Lazy<TempDir>, seed: u64) -> Vec<Trial> {
    let trials = Scenario::ON_QEMU.iter().map(|scenario| {
        let learnt = Arc::clone(learnt);
        matrix(total, "qemu", *scenario, seed, async move |random| {
            let mut stage = Stage::qemu(Some(learnt.path())).await;
            Matrix::run(&mut stage, *scenario, Depth::Representative, random).await
        })
    });
    trials.collect()
}

fn of_sequences(learnt: &Lazy<TempDir>, seed: u64) -> Vec<Trial> {
    let (parts, size) = if thorough() { ALL_SEQUENCES } else { SEQUENCES };
    let mut trials = Vec::new();
    for part in 0..parts {
        trials.push(trial(format!("sequences::simulated_{part}"), move || {
            let tally = block_on(async {
                let mut stage = Stage::simulated().await;
                sequences::run(&mut stage, size, seed + part as u64).await
            });
            assert!(tally.wrong.is_empty(), "{}", tally.wrong.join("\n\n"));
        }));
    }
    let learnt = Arc::clone(learnt);
    trials.push(trial("load::qemu", move || {
        let tally = block_on(async {
            let mut stage = Stage::qemu(Some(learnt.path())).await;
            let size = Size {
                sequences: if thorough() { 60 } else { 20 },
                lanes: 4,
                kill_one_in: 1,
            };
            sequences::run(&mut stage, size, seed).await
        });
        assert!(tally.wrong.is_empty(), "{}", tally.wrong.join("\n\n"));
    }));
    trials
}

/// A matrix as a test, whose random choices are those of the seed and of its name.
fn matrix(
    total: &Total,
    place: &str,
    scenario: Scenario,
    seed: u64,
    work: impl AsyncFnOnce(&mut StdRng) -> Tally + Send + 'static,
) -> Trial {
    let name = format!("{place}::{scenario:?}");
    let total = Arc::clone(total);
    trial(name.clone(), move || {
        let begun = Instant::now();
        let own = name.bytes().fold(seed, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let tally = block_on(work(&mut StdRng::seed_from_u64(own)));
        println!("{}, {} s", line(&name, &tally), begun.elapsed().as_secs());
        add(&total, tally);
    })
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(work)
}

/// Has a libvirt driver look at QEMU once, which takes seconds, for all others.
async fn learn() -> TempDir {
    let stage = Stage::qemu(None).await;
    let known = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(stage.known()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), known.path().join(file.file_name())).unwrap();
    }
    known
}

/// Adds a matrix to all; fails if anything was wrong.
fn add(total: &Total, tally: Tally) {
    let wrong = tally.wrong.clone();
    let mut total = total.lock().unwrap();
    total.listed += tally.listed;
    total.cases += tally.cases;
    total.finished += tally.finished;
    total.undone += tally.undone;
    total.unknown += tally.unknown;
    total.chained += tally.chained;
    total.rests += tally.rests;
    total.wrong.extend(tally.wrong);
    total.steps.extend(tally.steps);
    drop(total);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn line(name: &str, tally: &Tally) -> String {
    format!(
        "{name}: {} cases in the list, {} run ({} finished, {} undone, {} of unknown outcome), {} kills in chains, {} starts at rest, {} wrong",
        tally.listed,
        tally.cases,
        tally.finished,
        tally.undone,
        tally.unknown,
        tally.chained,
        tally.rests,
        tally.wrong.len()
    )
}
