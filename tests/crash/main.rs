//! Killed anywhere: every operation, at every point of its plan, and what is left
//! of it then.
//!
//! The agent is killed with SIGKILL where a fault point is reached, started again,
//! and asked again. Then the host must be as after an undisturbed run, or as
//! before, and the operation must say which; everything in
//! `tests/support/invariants.rs` must hold. On libvirt's simulated host all points
//! of all operations, on real QEMU a representative part.

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../qemu_libvirt/guest.rs"]
mod sector;

#[path = "../qemu/reaper.rs"]
mod reaper;

mod ask;
mod matrix;
mod scenario;
mod shape;
mod stage;

use libtest_mimic::{Arguments, Trial};
use matrix::{Depth, Matrix, Tally};
use scenario::Scenario;
use stage::Stage;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;

/// What came of all matrices.
type Total = Arc<Mutex<Tally>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each waits for processes most of the time.
    arguments.test_threads.get_or_insert(4);
    reaper::start();
    let total = Total::default();
    let mut trials = Vec::new();
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
    let known: Arc<Mutex<Option<PathBuf>>> = Arc::default();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(known);
    let total = total.lock().unwrap();
    println!("{}", line("crash matrix", &total));
    conclusion.exit_code()
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
