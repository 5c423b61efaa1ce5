//! The list of all cases of a scenario, each with a name: what is done to its
//! operation, and where.
//!
//! There is this one list. `--thorough` runs all of it; the ordinary run draws from
//! it, with another seed each time, so that over some runs all of it has been gone
//! through.

use super::expected::is_undone;
use super::scenario::Scenario;
use super::walk::{Place, Walk};
use crate::support::thorough;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::fmt;

/// Of so many cases the ordinary run takes one.
const ONE_IN: u32 = 12;

/// The steps that make or remove something in a cluster.
const IN_CLUSTER: &[&str] = &[
    "make-volume",
    "remove-volume",
    "convert-image",
    "remove-image",
];

/// Which cases there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All points, and all of undoing.
    Every,
    /// After each side effect, and inside steps that have two.
    Representative,
    /// What a cluster shows that files don't, because every question to it starts a
    /// program: killed as in the representative part (nothing is done between a
    /// point `after` or `undone` and the next one's `before` or `undo`); undoing once
    /// from each step, and killed at its points from the last one, which goes through
    /// those of all others; no answer from the steps that make or remove something in
    /// the cluster; cancelled inside them. That libvirt is away, or that a step is
    /// cancelled at its ends, has nothing to do with where volumes are.
    Cluster,
}

/// How a step does not come to know what it has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// It has no answer.
    Unknown,
    /// It finds libvirt away.
    Away,
}

/// Something that is done to an operation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// The agent is killed there.
    Killed(Place),
    /// A step fails once it has done its work.
    Failed { step: usize, at: Place },
    /// And the agent is killed while that is undone.
    FailedAndKilled {
        step: usize,
        at: Place,
        undoing: Place,
    },
    /// And the agent is asked to stop while that is undone.
    FailedAndStopped {
        step: usize,
        at: Place,
        undoing: Place,
    },
    /// A step is in doubt at one of its ends, once.
    Doubted {
        step: usize,
        at: Place,
        doubt: Doubt,
    },
    /// The operation is cancelled while it stands there.
    Cancelled { step: usize, at: Place },
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(at) => write!(f, "killed at {at}"),
            Self::Failed { at, .. } => write!(f, "failed at {at}"),
            Self::FailedAndKilled { at, undoing, .. } => {
                write!(f, "failed at {at}, killed at {undoing}")
            }
            Self::FailedAndStopped { at, undoing, .. } => {
                write!(f, "failed at {at}, stopped at {undoing}")
            }
            Self::Doubted { at, doubt, .. } => write!(f, "{doubt:?} at {at}"),
            Self::Cancelled { at, .. } => write!(f, "cancelled at {at}"),
        }
    }
}

impl Case {
    /// Whether the agent runs through it in one.
    pub const fn is_of_one_run(&self) -> bool {
        match self {
            Self::Killed(_) | Self::FailedAndKilled { .. } | Self::FailedAndStopped { .. } => false,
            Self::Failed { .. } | Self::Doubted { .. } | Self::Cancelled { .. } => true,
        }
    }
}

impl Depth {
    /// Whether the agent is killed there.
    pub fn counts(self, place: &Place) -> bool {
        let point = &place.point;
        self == Self::Every || !(point.ends_with(".before") || point.ends_with(".undo"))
    }

    /// Whether it is killed there in a chain, too: on a cluster in the steps that make
    /// or remove something there, because each start asks it for much.
    pub fn chains(self, place: &Place) -> bool {
        let mut parts = place.point.split('.');
        let in_cluster = parts.next() == Some("pool")
            || parts.next().is_some_and(|step| IN_CLUSTER.contains(&step));
        self.counts(place) && (self != Self::Cluster || in_cluster)
    }
}

/// All cases.
pub fn all(scenario: Scenario, depth: Depth, walk: &Walk) -> Vec<Case> {
    let mut cases: Vec<Case> = walk
        .stops
        .iter()
        .map(|stop| stop.place.clone())
        .filter(|place| depth.counts(place))
        .map(Case::Killed)
        .collect();
    cases.extend(failures(scenario, depth, walk));
    for (step, known) in walk.steps.iter().enumerate() {
        let ends = [Some(&known.before), known.after.as_ref()];
        match depth {
            Depth::Every => {
                for at in ends.into_iter().flatten() {
                    for doubt in [Doubt::Unknown, Doubt::Away] {
                        cases.push(Case::Doubted {
                            step,
                            at: at.clone(),
                            doubt,
                        });
                    }
                    cases.push(Case::Cancelled {
                        step,
                        at: at.clone(),
                    });
                }
            }
            Depth::Cluster if IN_CLUSTER.contains(&known.name.as_str()) => {
                cases.extend(known.after.iter().map(|at| Case::Doubted {
                    step,
                    at: at.clone(),
                    doubt: Doubt::Unknown,
                }));
            }
            Depth::Cluster | Depth::Representative => {}
        }
    }
    if depth == Depth::Cluster {
        let inside = walk
            .stops
            .iter()
            .filter(|stop| stop.place.point.starts_with("pool."));
        cases.extend(inside.filter_map(|stop| {
            Some(Case::Cancelled {
                step: stop.step?,
                at: stop.place.clone(),
            })
        }));
    }
    let names: BTreeSet<String> = cases.iter().map(Case::to_string).collect();
    assert_eq!(names.len(), cases.len(), "each case has a name of its own");
    cases
}

/// Steps that fail, and what happens while that is undone.
fn failures(scenario: Scenario, depth: Depth, walk: &Walk) -> Vec<Case> {
    let last = last_undone(scenario, walk);
    let mut cases = Vec::new();
    for (step, known) in walk.steps.iter().enumerate() {
        let Some(at) = &known.after else { continue };
        let at = at.clone();
        cases.push(Case::Failed {
            step,
            at: at.clone(),
        });
        if !is_undone(scenario, walk, step) {
            continue;
        }
        let throughout = depth != Depth::Cluster || Some(step) == last;
        let undoing = walk.undoing(step).into_iter().map(|undo| undo.place);
        for undoing in undoing.filter(|place| throughout && depth.counts(place)) {
            cases.push(Case::FailedAndKilled {
                step,
                at: at.clone(),
                undoing: undoing.clone(),
            });
            if depth == Depth::Every && Some(step) == last {
                cases.push(Case::FailedAndStopped {
                    step,
                    at: at.clone(),
                    undoing,
                });
            }
        }
    }
    cases
}

/// The last step that is undone if it fails after its work.
pub fn last_undone(scenario: Scenario, walk: &Walk) -> Option<usize> {
    let worked = |step: &usize| walk.steps[*step].after.is_some();
    let mut steps = (0..walk.steps.len()).rev().filter(worked);
    steps.find(|step| is_undone(scenario, walk, *step))
}

/// Those of a list that this run goes through: all, or some, but one at least.
pub fn drawn(list: &[Case], random: &mut StdRng) -> Vec<Case> {
    if thorough() {
        return list.to_vec();
    }
    let mut some: Vec<Case> = list
        .iter()
        .filter(|_| random.random_ratio(1, ONE_IN))
        .cloned()
        .collect();
    if some.is_empty() {
        some.push(list[random.random_range(0..list.len())].clone());
    }
    some
}
