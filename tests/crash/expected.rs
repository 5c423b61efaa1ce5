//! How each case must end. Nothing here is measured: it is what ARCHITECTURE.md
//! ("What a plan does") and the runbook say, whose marks are read from there.
//!
//! | done to an operation | ends |
//! |---|---|
//! | killed anywhere | finished: its plan is made again, and what is done is skipped |
//! | killed while a reset or reboot may have been sent | of unknown outcome: it is not sent twice |
//! | fails before its point of no return | undone, whatever happens meanwhile |
//! | fails from there on | failed, and finished when it is asked for once more |
//! | in doubt at a step's end, once | finished: it measures and tries again |
//! | in doubt about a reset or reboot | of unknown outcome |
//! | cancelled before its point of no return | undone |
//! | cancelled from there on | refused, and finished |

use super::case::{Case, Doubt};
use super::marked::marked;
use super::scenario::Scenario;
use super::walk::{Place, Walk};

/// How a case ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SUCCEEDED, and the host is as after an undisturbed run.
    Finished,
    /// FAILED or CANCELLED, and the host is as it was before.
    Undone,
    /// FAILED with `OUTCOME_UNKNOWN`.
    Unknown,
    /// FAILED; asked for once more, it is finished.
    FinishedWhenAskedAgain,
}

/// How a case must end.
pub fn end(scenario: Scenario, walk: &Walk, case: &Case) -> End {
    match case {
        Case::Killed(at) => killed(scenario, walk, at),
        Case::Failed { step, .. } if is_undone(scenario, walk, *step) => End::Undone,
        Case::Failed { .. } => End::FinishedWhenAskedAgain,
        Case::FailedAndKilled { .. } | Case::FailedAndStopped { .. } => End::Undone,
        // "Away" says that nothing was sent, so that is tried again in any case.
        Case::Doubted {
            doubt: Doubt::Unknown,
            ..
        } if !is_repeatable(scenario) => End::Unknown,
        Case::Doubted { .. } => End::Finished,
        Case::Cancelled { step, at } if can_be_cancelled(scenario, walk, *step, at) => End::Undone,
        Case::Cancelled { .. } => End::Finished,
    }
}

/// How an operation ends whose agent was killed there, once or after other kills.
pub fn killed(scenario: Scenario, walk: &Walk, at: &Place) -> End {
    if is_repeatable(scenario) {
        return End::Finished;
    }
    // From its record on, until its end is in the journal.
    let position = |wanted: &dyn Fn(&str) -> bool| {
        let found = walk.stops.iter().position(|stop| wanted(&stop.place.point));
        found.expect("it is recorded before it acts, and its end, too")
    };
    let recorded = position(&|point| point.ends_with(".recorded"));
    let ended = position(&|point| point.ends_with(".end.after"));
    let here = walk.stops.iter().position(|stop| stop.place == *at);
    let here = here.expect("a point of the way");
    if (recorded..ended).contains(&here) {
        End::Unknown
    } else {
        End::Finished
    }
}

/// Whether a step that fails once it has done its work is undone, with those before
/// it.
pub fn is_undone(scenario: Scenario, walk: &Walk, step: usize) -> bool {
    // The guest is off, whoever wanted that taken back; see the runbook. So is the
    // point of no return of a graceful stop, which the table has at its step.
    !walk
        .names(step)
        .iter()
        .any(|name| marked(scenario.row(), name))
}

/// Whether an operation that stands there can be cancelled.
fn can_be_cancelled(scenario: Scenario, walk: &Walk, step: usize, at: &Place) -> bool {
    // A graceful stop passes its point of no return where the guest is off.
    let asks = scenario == Scenario::StopGracefully && *at == walk.steps[step].before;
    asks || is_undone(scenario, walk, step)
}

/// Whether what it does may be done twice.
const fn is_repeatable(scenario: Scenario) -> bool {
    !matches!(scenario, Scenario::Reboot | Scenario::Reset)
}
