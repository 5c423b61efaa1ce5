//! Random sequences of operations on many VMs at once, and the agent killed at
//! random moments and at random points.
//!
//! ```text
//!   epoch:  every lane a sequence  ──▶  all at rest  ──▶  every invariant holds
//!                 ▲  SIGKILL, start again, callers ask again
//! ```
//!
//! The seed is printed; `KVMLET_SEED` runs one again. What each lane asks comes of
//! the seed alone, which of them is when does not.

use super::lane::Lane;
use super::matrix::Tally;
use super::rest::{self, Ending};
use super::stage::Stage;
use crate::support::PATIENCE;
use crate::support::api::Api;
use crate::support::invariants::{violations, violations_between};
use futures_util::future::join_all;
use kvmlet::model::lifecycle::Resting;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Every so many sequences it is told how far it has come.
const PROGRESS: usize = 1000;

/// Lines of the daemon's log that are shown with a violation.
const LOG: usize = 150;

/// How much there is of it.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub sequences: usize,
    pub lanes: usize,
    /// Of so many epochs, one has a kill.
    pub kill_one_in: u32,
}

/// When the agent is killed.
enum Kill {
    Never,
    After(Duration),
    At(String),
}

/// Runs sequences until there were enough of them; the first violation ends it.
pub async fn run(stage: &mut Stage, size: Size, seed: u64) -> Tally {
    let mut random = StdRng::seed_from_u64(seed);
    let (publish, line) = watch::channel(stage.api());
    let mut lanes: Vec<Lane> = (0..size.lanes)
        .map(|_| Lane::new(stage, line.clone(), random.random()))
        .collect();
    let mut points = BTreeSet::new();
    let mut before = stage.see().await;
    let mut tally = Tally::default();
    let (mut kills, begun) = (0, Instant::now());
    while tally.cases < size.sequences {
        points.extend(stage.trace());
        stage.forget();
        let kill = choose(&mut random, &points, size);
        if let Kill::At(point) = &kill {
            stage.arm(&[format!("{point}=1*return(kill)")]);
        }
        let (outcomes, killed) = epoch(stage, &mut lanes, &kill, &publish).await;
        kills += usize::from(killed);
        tally.cases += outcomes.len();
        let mut wrong: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
        let world = stage.see().await;
        wrong.extend(violations(&world));
        let about: Vec<&str> = world.vms.keys().map(String::as_str).collect();
        let about: Vec<&str> = about
            .into_iter()
            .filter(|id| *id != stage.bystander)
            .collect();
        let gone: Vec<&str> = before
            .vms
            .keys()
            .map(String::as_str)
            .filter(|id| *id != stage.bystander)
            .collect();
        wrong.extend(violations_between(&before, &world, &[about, gone].concat()));
        let due: BTreeSet<&str> = lanes
            .iter()
            .filter(|lane| lane.state.is_some())
            .map(|lane| lane.vm_id.as_str())
            .chain([stage.bystander.as_str()])
            .collect();
        let there: BTreeSet<&str> = world.vms.keys().map(String::as_str).collect();
        if due != there {
            wrong.push(format!("there are {there:?}, and not {due:?}"));
        }
        before = world;
        if !wrong.is_empty() {
            let log = stage.daemon.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(LOG)..];
            eprintln!("--- the end of the daemon's log ---\n{}", end.join("\n"));
            tally.wrong = wrong;
            break;
        }
        tally.finished += size.lanes;
        if tally.cases % PROGRESS < size.lanes {
            println!(
                "sequences, seed {seed}: {} of {} so far, {kills} kills",
                tally.cases, size.sequences
            );
        }
    }
    if tally.wrong.is_empty() {
        let ending = if random.random() {
            Ending::Asked
        } else {
            Ending::Killed
        };
        tally.wrong = rest::started_again(stage, ending).await;
    }
    let powered = lanes
        .iter()
        .filter(|lane| lane.state == Some(Resting::Running));
    println!(
        "sequences, seed {seed}: {} sequences, {kills} kills, {} violations, {} s; {} of {} VMs run at the end",
        tally.cases,
        tally.wrong.len(),
        begun.elapsed().as_secs(),
        powered.count(),
        size.lanes,
    );
    for wrong in &mut tally.wrong {
        *wrong = format!("seed {seed}: {wrong}");
    }
    tally
}

/// Lets every lane go through a sequence, and the agent die meanwhile. Returns what
/// came of each, and whether it died.
async fn epoch(
    stage: &mut Stage,
    lanes: &mut [Lane],
    kill: &Kill,
    publish: &watch::Sender<Api>,
) -> (Vec<Result<(), String>>, bool) {
    let all = join_all(lanes.iter_mut().map(Lane::sequence));
    tokio::pin!(all);
    let told = tokio::select! {
        outcomes = &mut all => Some(outcomes),
        () = death(stage, kill) => None,
    };
    stage.arm(&[]);
    // It may have died of the last answer, or of nothing that anyone waits for.
    let killed = told.is_none() || !stage.daemon.is_alive();
    if killed {
        stage.daemon.dies(PATIENCE).await;
        stage.daemon.restart().await;
        publish.send_replace(stage.api());
    }
    let outcomes = match told {
        Some(outcomes) => outcomes,
        None => all.await,
    };
    (outcomes, killed)
}

fn choose(random: &mut StdRng, points: &BTreeSet<String>, size: Size) -> Kill {
    if !random.random_ratio(1, size.kill_one_in) {
        return Kill::Never;
    }
    if points.is_empty() || random.random() {
        return Kill::After(Duration::from_millis(random.random_range(0..300)));
    }
    let nth = random.random_range(0..points.len());
    Kill::At(points.iter().nth(nth).expect("within").clone())
}

/// Resolves when the agent is dead; never, if it is not to be killed.
async fn death(stage: &Stage, kill: &Kill) {
    match kill {
        Kill::Never => std::future::pending().await,
        Kill::After(time) => {
            tokio::time::sleep(*time).await;
            stage.daemon.signal_kill();
        }
        Kill::At(_) => loop {
            if !stage.daemon.is_alive() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        },
    }
}
