//! One scenario, killed, failed and cancelled at every point that it reaches.
//!
//! The points are not listed anywhere: an undisturbed run traces them. So a step
//! that is added is in the matrix from then on.

use super::marked::can_be_cancelled;
use super::scenario::{Prepared, Scenario};
use super::shape::{shape, without_cluster};
use super::stage::Stage;
use crate::support::PATIENCE;
use crate::support::invariants::{violations, violations_between};
use crate::support::refusal::Refusal;
use crate::support::world::World;
use kvmlet::proto::v1::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use tonic::Code;

/// How often a case is tried whose cluster does not answer in time.
const TRIES: u32 = 5;

/// The steps that make or remove something in a cluster.
const IN_CLUSTER: [&str; 4] = [
    "make-volume",
    "remove-volume",
    "convert-image",
    "remove-image",
];

/// What came of a matrix.
#[derive(Debug, Default)]
pub struct Tally {
    pub points: usize,
    /// Of them: ended as an undisturbed run.
    pub finished: usize,
    /// Of them: undone, completely.
    pub undone: usize,
    /// Of them: ended with an outcome that nobody can know.
    pub unknown: usize,
    /// What was wrong, each with where it was.
    pub wrong: Vec<String>,
    /// The steps that were gone through, by name.
    pub steps: BTreeSet<String>,
}

/// Which points are gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All, and all of undoing.
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

/// A scenario on a stage, with what its undisturbed run has shown.
pub struct Matrix<'a> {
    stage: &'a mut Stage,
    scenario: Scenario,
    depth: Depth,
    /// What a run leaves that nothing disturbs.
    finished: String,
    pub tally: Tally,
}

/// How a case ended.
struct Outcome {
    operation: Operation,
    before: World,
    before_shape: String,
    after: World,
    after_shape: String,
}

impl<'a> Matrix<'a> {
    /// Goes through all of it.
    pub async fn run(stage: &'a mut Stage, scenario: Scenario, depth: Depth) -> Tally {
        let mut matrix = Self {
            stage,
            scenario,
            depth,
            finished: String::new(),
            tally: Tally::default(),
        };
        let points = matrix.undisturbed().await;
        for (point, nth) in occurrences(&points) {
            if matrix.counts(&point) {
                let armed = vec![arm(&point, nth, "kill")];
                matrix
                    .killed(&format!("killed at {point}#{nth}"), armed)
                    .await;
            }
        }
        let steps = matrix.steps(&points);
        matrix.tally.steps.extend(points.iter().filter_map(|point| {
            let step = point.strip_suffix(".before")?;
            Some(step.split_once('.')?.1.to_owned())
        }));
        for (nth, step) in steps.iter().enumerate() {
            let throughout = depth != Depth::Cluster || nth + 1 == steps.len();
            matrix.undone(step, throughout).await;
        }
        if depth == Depth::Every {
            for step in &steps {
                for place in ["before", "after"] {
                    matrix.uncertain(step, place, "unknown").await;
                    matrix.uncertain(step, place, "away").await;
                    let point = format!("{}.{step}.{place}", scenario.operation());
                    matrix.cancelled(&steps, step, &point).await;
                }
            }
        }
        if depth == Depth::Cluster {
            for step in steps
                .iter()
                .filter(|step| IN_CLUSTER.contains(&step.as_str()))
            {
                matrix.uncertain(step, "after", "unknown").await;
            }
            for (step, point) in inside(&points) {
                matrix.cancelled(&steps, &step, &point).await;
            }
        }
        matrix.tally
    }

    /// Runs it with nothing armed; returns the points that it reached.
    async fn undisturbed(&mut self) -> Vec<String> {
        self.stage.arm(&[]);
        let prepared = self.scenario.prepare(self.stage).await;
        let before = self.stage.see().await;
        self.stage.forget();
        let operation = self.stage.succeeds(&prepared.ask).await;
        let points = self.stage.trace();
        let after = self.stage.see().await;
        self.finished = shape(&after, &prepared);
        let wrong = self.common(&prepared, &before, &after);
        assert_eq!(wrong, Vec::<String>::new(), "{operation:?}");
        self.tidy(&prepared).await;
        let own = format!("{}.", self.scenario.operation());
        let ours = |point: &String| point.starts_with(&own) || point.starts_with("pool.");
        let points: Vec<String> = points.into_iter().filter(ours).collect();
        assert!(points.len() >= 6, "{points:?}");
        points
    }

    /// The steps that have reached their end, in order.
    fn steps(&self, points: &[String]) -> Vec<String> {
        let own = format!("{}.", self.scenario.operation());
        let mut steps: Vec<String> = Vec::new();
        for point in points {
            if let Some(point) = point.strip_prefix(&own)
                && let Some(step) = point.strip_suffix(".after")
                && step != "begin"
                && step != "end"
                && !steps.iter().any(|known| known == step)
            {
                steps.push(step.to_owned());
            }
        }
        steps
    }

    fn counts(&self, point: &str) -> bool {
        self.depth == Depth::Every || !(point.ends_with(".before") || point.ends_with(".undo"))
    }

    /// What holds after every case.
    fn common(&self, prepared: &Prepared, before: &World, after: &World) -> Vec<String> {
        let mut about: Vec<&str> = prepared.vm.iter().map(String::as_str).collect();
        if self.scenario.is_of_host() {
            about.push(&self.stage.bystander);
        }
        let mut wrong = violations(after);
        wrong.extend(violations_between(before, after, &about));
        wrong
    }

    /// Arms, asks, and sees it through: where it kills the agent, that is started
    /// again and asked again with the same words.
    async fn case(&mut self, prepared: &Prepared, armed: &[String]) -> Result<Outcome, String> {
        let before = self.stage.see().await;
        let before_shape = shape(&before, prepared);
        self.stage.arm(armed);
        let kills = armed.iter().any(|point| point.ends_with("return(kill)"));
        let api = self.stage.api();
        let mut answered = None;
        let answer = prepared.ask.send(&api).await;
        if let Ok(answer) = answer {
            answered = Some(answer.into_inner().id);
        } else if !kills {
            return Err(format!("refused: {:?}", answer.err()));
        }
        if kills {
            if !self.stage.daemon.dies(PATIENCE).await {
                self.stage.arm(&[]);
                return Err("the point was not reached".to_owned());
            }
            self.stage.arm(&[]);
            self.stage.daemon.restart().await;
        }
        let api = self.stage.api();
        let again = prepared
            .ask
            .send(&api)
            .await
            .map(tonic::Response::into_inner);
        let again = again.map_err(|status| format!("a repeat is refused: {status:?}"))?;
        if answered.as_ref().is_some_and(|id| *id != again.id) {
            return Err(format!(
                "{answered:?} was answered, a repeat is {}",
                again.id
            ));
        }
        let operation = api.ended(&again.id).await;
        self.stage.arm(&[]);
        let by_id = api
            .operations()
            .get_operation(GetOperationRequest {
                operation_id: operation.id.clone(),
            })
            .await;
        if by_id.map(tonic::Response::into_inner).ok().as_ref() != Some(&operation) {
            return Err("the operation is not found by its id".to_owned());
        }
        let after = self.stage.see().await;
        let after_shape = shape(&after, prepared);
        Ok(Outcome {
            operation,
            before,
            before_shape,
            after,
            after_shape,
        })
    }

    /// Notes what came of a case, and removes what it was about.
    async fn note(&mut self, what: &str, prepared: &Prepared, outcome: Result<Outcome, String>) {
        self.tally.points += 1;
        let wrong = match &outcome {
            Err(wrong) => vec![wrong.clone()],
            Ok(outcome) => {
                let mut wrong = self.common(prepared, &outcome.before, &outcome.after);
                wrong.extend(self.truth(outcome));
                wrong
            }
        };
        let name = format!("{:?} {what}", self.scenario);
        for wrong in wrong {
            eprintln!("{name}: {wrong}");
            self.tally.wrong.push(format!("{name}: {wrong}"));
        }
        self.tidy(prepared).await;
    }

    /// Whether the end state is the one that the operation tells.
    fn truth(&mut self, outcome: &Outcome) -> Vec<String> {
        let operation = &outcome.operation;
        let told = format!(
            "{:?}, rollback {:?}, {:?}",
            operation.state(),
            operation.rollback_state(),
            operation.error.as_ref().map(Refusal::from)
        );
        if operation.state() == OperationState::Succeeded {
            self.tally.finished += 1;
            if outcome.after_shape == self.finished {
                return Vec::new();
            }
            return vec![format!(
                "{told}, but an undisturbed run leaves\n{}and this one\n{}",
                self.finished, outcome.after_shape
            )];
        }
        let reason = operation
            .error
            .as_ref()
            .map(Refusal::from)
            .map(|r| r.reason);
        let repeatable = !matches!(self.scenario, Scenario::Reboot | Scenario::Reset);
        if reason.as_deref() == Some("OUTCOME_UNKNOWN") {
            self.tally.unknown += 1;
            if repeatable {
                return vec![format!("{told}, but it can be read back")];
            }
        } else {
            self.tally.undone += 1;
        }
        // What could not be made stays as a record that says so.
        let undone = if self.scenario == Scenario::Create {
            outcome.after_shape.contains("vm Failed") && outcome.after_shape.contains("domain None")
        } else if self.stage.ceph.is_some() && self.scenario == Scenario::Import {
            // A whole image stays: another host that imported it too may use it.
            without_cluster(&outcome.after_shape) == without_cluster(&outcome.before_shape)
        } else {
            outcome.after_shape == outcome.before_shape
        };
        if undone {
            return Vec::new();
        }
        vec![format!(
            "{told}, but before it was\n{}and now it is\n{}",
            outcome.before_shape, outcome.after_shape
        )]
    }

    async fn killed(&mut self, what: &str, armed: Vec<String>) {
        for again in (0..TRIES).rev() {
            let prepared = self.scenario.prepare(self.stage).await;
            let outcome = self.case(&prepared, &armed).await;
            if again > 0 && is_away(&outcome) {
                println!(
                    "{:?} {what}: once more, the cluster was slow",
                    self.scenario
                );
                self.start_over().await;
                self.tidy(&prepared).await;
                continue;
            }
            return self.note(what, &prepared, outcome).await;
        }
    }

    /// Starts the agent until it has found the cluster, and swept it, before it went
    /// on: within 5 s of its start, which a host that is busy may not give it.
    async fn start_over(&mut self) {
        for _ in 0..TRIES {
            self.stage.daemon.kill9();
            self.stage.daemon.restart().await;
            self.stage.cluster_answers().await;
            if violations(&self.stage.see().await).is_empty() {
                return;
            }
        }
    }

    /// Lets a step fail once it has done its work; `throughout`: and kills the agent
    /// at each point of the undoing.
    async fn undone(&mut self, step: &str, throughout: bool) {
        let operation = self.scenario.operation();
        let fails = arm(&format!("{operation}.{step}.after"), 0, "fail");
        let prepared = self.scenario.prepare(self.stage).await;
        self.stage.forget();
        let outcome = self.case(&prepared, std::slice::from_ref(&fails)).await;
        let points: Vec<String> = self
            .stage
            .trace()
            .into_iter()
            .skip_while(|point| *point != format!("{operation}.{step}.after"))
            .skip(1)
            .filter(|point| point.ends_with(".undo") || point.ends_with(".undone"))
            .collect();
        if points.is_empty() {
            self.gone_on(step, prepared, outcome).await;
            return;
        }
        self.note(&format!("failed after {step}"), &prepared, outcome)
            .await;
        for (point, nth) in occurrences(&points) {
            if throughout && self.counts(&point) {
                let armed = vec![fails.clone(), arm(&point, nth, "kill")];
                let what = format!("failed after {step}, killed at {point}#{nth}");
                self.killed(&what, armed).await;
            }
        }
    }

    /// Past its point of no return it only fails, and goes on where it was when it
    /// is asked for once more.
    async fn gone_on(&mut self, step: &str, prepared: Prepared, failed: Result<Outcome, String>) {
        let what = format!("failed after {step}, asked once more");
        let once_more = Prepared {
            ask: prepared.ask.anew(),
            ..prepared
        };
        let outcome = match failed {
            Ok(failed) if failed.operation.state() != OperationState::Failed => {
                Err(format!("it ended {:?}", failed.operation.state()))
            }
            // What is gone can't be asked for once more: its removal must be all of it.
            Ok(failed) if self.scenario == Scenario::DeleteOrphan => Ok(Outcome {
                before_shape: self.finished.clone(),
                ..failed
            }),
            Ok(_) => self.case(&once_more, &[]).await,
            Err(wrong) => Err(wrong),
        };
        self.note(&what, &once_more, outcome).await;
    }

    /// Lets a step end without an answer, or find libvirt away, once.
    async fn uncertain(&mut self, step: &str, place: &str, how: &str) {
        let point = format!("{}.{step}.{place}", self.scenario.operation());
        let prepared = self.scenario.prepare(self.stage).await;
        let armed = vec![arm(&point, 0, how)];
        let outcome = self.case(&prepared, &armed).await;
        self.note(&format!("{how} at {point}"), &prepared, outcome)
            .await;
    }

    /// Cancels it where it stands at a point: it is undone, or the cancellation is
    /// refused and it goes on.
    async fn cancelled(&mut self, steps: &[String], step: &str, point: &str) {
        let what = format!("cancelled at {point}");
        let prepared = self.scenario.prepare(self.stage).await;
        let hold = self.stage.hold();
        let before = self.stage.see().await;
        let before_shape = shape(&before, &prepared);
        self.stage
            .arm(&[format!("{point}=1*return(hold:{})", hold.display())]);
        let api = self.stage.api();
        let asked = prepared.ask.send(&api).await.expect("it may be asked");
        let operation_id = asked.into_inner().id;
        let deadline = Instant::now() + PATIENCE;
        while !hold.exists() {
            assert!(Instant::now() < deadline, "{what}: not reached");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let cancelled = api
            .operations()
            .cancel_operation(CancelOperationRequest {
                operation_id: operation_id.clone(),
            })
            .await;
        std::fs::remove_file(&hold).unwrap();
        let operation = api.ended(&operation_id).await;
        self.stage.arm(&[]);
        let after = self.stage.see().await;
        let after_shape = shape(&after, &prepared);
        // A graceful stop passes it where the guest is off.
        let can = match self.scenario {
            Scenario::StopGracefully => point.ends_with(".before"),
            scenario => can_be_cancelled(scenario, steps, step),
        };
        let refusal = cancelled.err().map(|status| Refusal::from(&status));
        let (wanted, wrong) = match (&refusal, &operation.error) {
            (None, Some(why)) => (
                OperationState::Cancelled,
                brief(&Refusal::from(why)) != (Code::Cancelled, "CANCELLED_BY_CALLER"),
            ),
            (None, None) => (OperationState::Cancelled, true),
            (Some(refusal), _) => (
                OperationState::Succeeded,
                brief(refusal) != (Code::FailedPrecondition, "NOT_CANCELLABLE")
                    || refusal.metadata.get("operation_id") != Some(&operation_id),
            ),
        };
        let outcome = if can != refusal.is_none() {
            Err(format!("{refusal:?}, which the runbook says otherwise"))
        } else if operation.state() != wanted || wrong {
            Err(format!("{refusal:?}, and it ended {operation:?}"))
        } else {
            Ok(Outcome {
                operation,
                before,
                before_shape,
                after,
                after_shape,
            })
        };
        self.note(&what, &prepared, outcome).await;
    }

    /// Removes what a case was about; what is left then is what the stage has.
    async fn tidy(&mut self, prepared: &Prepared) {
        self.stage.cluster_answers().await;
        if self.scenario.is_of_host() {
            self.stage.end_maintenance().await;
        }
        if let Some(vm) = &prepared.vm {
            self.stage.remove(vm).await;
        }
        if let Some(image) = &prepared.image {
            self.stage.remove_image(image).await;
        }
        let world = self.stage.see().await;
        let left: BTreeSet<&String> = world.vms.keys().collect();
        assert_eq!(left, BTreeSet::from([&self.stage.bystander]));
        // A copy in the other pool's cache would hide a step.
        for (file, _) in world
            .files
            .iter()
            .filter(|(file, _)| file.starts_with("other/images"))
        {
            std::fs::remove_file(self.stage.daemon.home().join(file)).unwrap();
        }
    }
}

fn brief(refusal: &Refusal) -> (Code, &str) {
    (refusal.code, &refusal.reason)
}

/// Each point with which time it is reached, from 0.
fn occurrences(points: &[String]) -> Vec<(String, usize)> {
    let mut seen: BTreeMap<&String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for point in points {
        let count = seen.entry(point).or_default();
        found.push((point.clone(), *count));
        *count += 1;
    }
    found
}

/// Each point of the storage once, with the step that it is reached in.
fn inside(points: &[String]) -> Vec<(String, String)> {
    let mut step = "";
    let mut found: Vec<(String, String)> = Vec::new();
    for point in points {
        if let Some((_, name)) = point
            .strip_suffix(".before")
            .and_then(|point| point.split_once('.'))
        {
            step = name;
        }
        if point.starts_with("pool.") && !found.iter().any(|(_, known)| known == point) {
            found.push((step.to_owned(), point.clone()));
        }
    }
    found
}

/// Whether the cluster had not answered yet when the agent went on: the operation was
/// given up for that, and nothing is learnt of the point.
fn is_away(outcome: &Result<Outcome, String>) -> bool {
    let error = outcome
        .as_ref()
        .ok()
        .and_then(|outcome| outcome.operation.error.as_ref());
    error.is_some_and(|error| Refusal::from(error).reason == "POOL_AWAY")
}

/// Arms a point for one time, after having let it pass so often.
fn arm(point: &str, passes: usize, how: &str) -> String {
    if passes == 0 {
        format!("{point}=1*return({how})")
    } else {
        format!("{point}={passes}*off->1*return({how})")
    }
}
