//! Killed anywhere: every operation, at every point of its plan, and what is left
//! of it then.
//!
//! The agent is killed with SIGKILL where a fault point is reached, started again,
//! and asked again. Then the host must be as after an undisturbed run, or as
//! before, and the operation must say which; everything in
//! `tests/support/invariants.rs` must hold. On libvirt's simulated host all points
//! of all operations, on real QEMU a representative part; and on a real Ceph cluster
//! those operations that make, move or remove what is in it.

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../qemu_libvirt/guest.rs"]
mod sector;

mod ask;
mod lane;
mod marked;
mod matrix;
mod scenario;
mod sequences;
mod shape;
mod stage;
mod writers;

use libtest_mimic::{Arguments, Trial};
use matrix::{Depth, Matrix, Tally};
use scenario::Scenario;
use sequences::Size;
use stage::Stage;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use support::ceph::Cluster;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Random sequences on the simulated host, in so many parts, each on one of its own.
const SEQUENCES: usize = 10_000;
const PARTS: usize = 10;

/// What came of all matrices.
type Total = Arc<Mutex<Tally>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each waits for processes most of the time.
    arguments.test_threads.get_or_insert(4);
    support::reaper::start();
    let total = Total::default();
    let mut trials = Vec::new();
    let seed = seed();
    for part in 0..PARTS {
        trials.push(Trial::test(
            format!("sequences::simulated_{part}"),
            move || {
                let tally = Runtime::new().unwrap().block_on(async {
                    let mut stage = Stage::simulated().await;
                    let size = Size {
                        sequences: SEQUENCES / PARTS,
                        lanes: 16,
                        kill_one_in: 2,
                    };
                    sequences::run(&mut stage, size, seed + part as u64).await
                });
                assert!(tally.wrong.is_empty(), "{}", tally.wrong.join("\n\n"));
                Ok(())
            },
        ));
    }
    for scenario in Scenario::ALL {
        let total = Arc::clone(&total);
        trials.push(Trial::test(format!("simulated::{scenario:?}"), move || {
            let tally = Runtime::new().unwrap().block_on(async {
                let mut stage = Stage::simulated().await;
                Matrix::run(&mut stage, *scenario, Depth::Every).await
            });
            add(&total, &format!("{scenario:?}, simulated"), tally);
            Ok(())
        }));
    }
    let cluster = Arc::new(OnceLock::new());
    for (number, scenario) in Scenario::ON_CEPH.iter().enumerate() {
        let (total, cluster) = (Arc::clone(&total), Arc::clone(&cluster));
        trials.push(Trial::test(format!("ceph::{scenario:?}"), move || {
            let tally = Runtime::new().unwrap().block_on(async {
                let cluster = cluster.get_or_init(Cluster::start);
                let mut stage = Stage::ceph(cluster, number).await;
                Matrix::run(&mut stage, *scenario, Depth::Cluster).await
            });
            add(&total, &format!("{scenario:?}, Ceph"), tally);
            Ok(())
        }));
    }
    for (number, work) in writers::Work::ALL.into_iter().enumerate() {
        let cluster = Arc::clone(&cluster);
        let name = format!("ceph::writer_killed_with_the_agent::{work:?}");
        trials.push(Trial::test(name, move || {
            Runtime::new().unwrap().block_on(async {
                let cluster = cluster.get_or_init(Cluster::start);
                let number = Scenario::ON_CEPH.len() + number;
                let mut stage = Stage::ceph(cluster, number).await;
                writers::killed_with_the_agent(&mut stage, cluster, work).await;
            });
            Ok(())
        }));
    }
    let learnt = Arc::new(OnceLock::new());
    for scenario in Scenario::ON_QEMU {
        let (total, learnt) = (Arc::clone(&total), Arc::clone(&learnt));
        trials.push(Trial::test(format!("qemu::{scenario:?}"), move || {
            let runtime = Runtime::new().unwrap();
            let known = learnt.get_or_init(|| runtime.block_on(learn()));
            let tally = runtime.block_on(async {
                let mut stage = Stage::qemu(Some(known.path())).await;
                Matrix::run(&mut stage, *scenario, Depth::Representative).await
            });
            add(&total, &format!("{scenario:?}, QEMU"), tally);
            Ok(())
        }));
    }
    let known = Arc::clone(&learnt);
    trials.push(Trial::test("load::qemu", move || {
        let runtime = Runtime::new().unwrap();
        let known = known.get_or_init(|| runtime.block_on(learn()));
        let tally = runtime.block_on(async {
            let mut stage = Stage::qemu(Some(known.path())).await;
            let size = Size {
                sequences: 60,
                lanes: 4,
                kill_one_in: 1,
            };
            sequences::run(&mut stage, size, seed).await
        });
        assert!(tally.wrong.is_empty(), "{}", tally.wrong.join("\n\n"));
        Ok(())
    }));
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

/// The seed of what is random: another one each time, unless it is given.
fn seed() -> u64 {
    match std::env::var("KVMLET_SEED") {
        Ok(text) => text.parse().expect("KVMLET_SEED is a number"),
        Err(_) => rand::random_range(0..1_000_000),
    }
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

/// Tells of a matrix and adds it to all; fails if anything was wrong.
fn add(total: &Total, name: &str, tally: Tally) {
    println!("{}", line(name, &tally));
    let wrong = tally.wrong.clone();
    let mut total = total.lock().unwrap();
    total.points += tally.points;
    total.finished += tally.finished;
    total.undone += tally.undone;
    total.unknown += tally.unknown;
    total.wrong.extend(tally.wrong);
    total.steps.extend(tally.steps);
    drop(total);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn line(name: &str, tally: &Tally) -> String {
    let cases: std::collections::BTreeSet<_> = tally
        .wrong
        .iter()
        .map(|wrong| wrong.split(": ").next().unwrap_or_default())
        .collect();
    format!(
        "{name}: {} points, {} ok ({} finished, {} undone, {} of unknown outcome)",
        tally.points,
        tally.points - cases.len(),
        tally.finished,
        tally.undone,
        tally.unknown
    )
}
