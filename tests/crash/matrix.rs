//! One scenario, killed, failed, stopped and cancelled at the points that it reaches.
//!
//! What is done comes from one list (`case.rs`), how it must end from
//! `expected.rs`. Beside the list, every run goes through two chains (`chain.rs`).

use super::case::{self, Case, Depth, Doubt};
use super::expected::{self, End};
use super::rest::{self, Ending};
use super::scenario::{Prepared, Scenario};
use super::shape::{shape, without_cluster};
use super::stage::Stage;
use super::walk::{Place, Walk};
use crate::support::invariants::{violations, violations_between};
use crate::support::refusal::Refusal;
use crate::support::world::World;
use crate::support::{PATIENCE, thorough};
use kvmlet::proto::v1::*;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::time::Instant;
use tonic::Code;

/// What came of a matrix.
#[derive(Debug, Default)]
pub struct Tally {
    /// The cases in the list.
    pub listed: usize,
    /// Those that were gone through, the chains among them.
    pub cases: usize,
    /// Of them: ended as an undisturbed run.
    pub finished: usize,
    /// Of them: undone, completely.
    pub undone: usize,
    /// Of them: ended with an outcome that nobody can know.
    pub unknown: usize,
    /// How often the agent was killed in chains.
    pub chained: usize,
    /// How often it was started again at rest, and showed the same.
    pub rests: usize,
    /// What was wrong, each with where it was.
    pub wrong: Vec<String>,
    /// The steps that were gone through, by name.
    pub steps: BTreeSet<String>,
}

/// A scenario on a stage, with what its undisturbed run has shown.
pub struct Matrix<'a> {
    pub(super) stage: &'a mut Stage,
    pub(super) scenario: Scenario,
    pub(super) depth: Depth,
    pub(super) walk: Walk,
    /// What a run leaves that nothing disturbs.
    finished: String,
    pub(super) tally: Tally,
}

/// The host before an operation.
pub(super) struct Before {
    pub(super) world: World,
    shape: String,
}

impl<'a> Matrix<'a> {
    /// Goes through an undisturbed run, the chains, and as much of the list as this
    /// run is about.
    pub async fn run(
        stage: &'a mut Stage,
        scenario: Scenario,
        depth: Depth,
        random: &mut StdRng,
    ) -> Tally {
        let mut matrix = Self::open(stage, scenario, depth).await;
        matrix.chain_of_kills().await;
        matrix.chain_of_undoing().await;
        let list = case::all(scenario, depth, &matrix.walk);
        matrix.tally.listed = list.len();
        for case in case::drawn(&list, random) {
            matrix.go_through(&case).await;
        }
        if matrix.rests_often() {
            matrix.rest("at the end").await;
        }
        matrix.tally
    }

    /// Goes through those of the list in which the agent is asked to stop.
    pub async fn run_stops(stage: &'a mut Stage, scenario: Scenario) -> Tally {
        let mut matrix = Self::open(stage, scenario, Depth::Every).await;
        let mut list = case::all(scenario, Depth::Every, &matrix.walk);
        list.retain(|case| matches!(case, Case::FailedAndStopped { .. }));
        assert!(list.len() >= 6, "{list:?}");
        matrix.tally.listed = list.len();
        for case in &list {
            matrix.go_through(case).await;
        }
        matrix.tally
    }

    /// Runs it with nothing armed, which shows its way.
    async fn open(stage: &'a mut Stage, scenario: Scenario, depth: Depth) -> Self {
        stage.arm(&[]);
        let prepared = scenario.prepare(stage).await;
        let before = stage.see().await;
        stage.forget();
        let operation = stage.succeeds(&prepared.ask).await;
        let walk = Walk::new(scenario.operation(), &stage.trace());
        assert!(walk.stops.len() >= 6, "{walk:?}");
        let after = stage.see().await;
        let mut matrix = Self {
            stage,
            scenario,
            depth,
            walk,
            finished: shape(&after, &prepared),
            tally: Tally::default(),
        };
        let steps = matrix.walk.steps.iter().map(|step| step.name.clone());
        matrix.tally.steps = steps.collect();
        let wrong = matrix.common(&prepared, &before, &after);
        assert_eq!(wrong, Vec::<String>::new(), "{operation:?}");
        matrix.rest("undisturbed").await;
        matrix.tidy(&prepared).await;
        matrix
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

    pub(super) async fn before(&self, prepared: &Prepared) -> Before {
        let world = self.stage.see().await;
        Before {
            shape: shape(&world, prepared),
            world,
        }
    }

    async fn go_through(&mut self, case: &Case) {
        let mut prepared = self.scenario.prepare(self.stage).await;
        let before = self.before(&prepared).await;
        let mut end = expected::end(self.scenario, &self.walk, case);
        let mut ran = match case {
            Case::Killed(at) => self.killed(&prepared, &[at.arm("kill")]).await,
            Case::Failed { at, .. } => self.in_one(&prepared, Some((at, "fail"))).await,
            Case::FailedAndKilled { at, undoing, .. } => {
                let armed = [at.arm("fail"), undoing.arm("kill")];
                self.killed(&prepared, &armed).await
            }
            Case::FailedAndStopped { at, undoing, .. } => {
                self.stopped(&prepared, at, undoing).await
            }
            Case::Doubted { at, doubt, .. } => {
                let how = match doubt {
                    Doubt::Unknown => "unknown",
                    Doubt::Away => "away",
                };
                self.in_one(&prepared, Some((at, how))).await
            }
            Case::Cancelled { at, .. } => self.cancelled(&prepared, at, end).await,
        };
        if end == End::FinishedWhenAskedAgain
            && let Ok(failed) = ran
        {
            (ran, end) = self.ask_again(&mut prepared, failed).await;
        }
        let name = case.to_string();
        let wrong = self.judge(end, &prepared, &before, ran).await;
        self.tell(&name, wrong);
        if case.is_of_one_run() && self.rests_often() {
            self.rest(&name).await;
        }
        self.tidy(&prepared).await;
    }

    /// What is wrong with what came of a case.
    pub(super) async fn judge(
        &mut self,
        end: End,
        prepared: &Prepared,
        before: &Before,
        ran: Result<Operation, String>,
    ) -> Vec<String> {
        self.tally.cases += 1;
        match ran {
            Err(wrong) => vec![wrong],
            Ok(operation) => {
                let after = self.stage.see().await;
                let mut wrong = self.common(prepared, &before.world, &after);
                let after = shape(&after, prepared);
                wrong.extend(self.truth(end, &operation, &before.shape, &after));
                wrong
            }
        }
    }

    /// Notes what is wrong, with where it was.
    pub(super) fn tell(&mut self, name: &str, wrong: Vec<String>) {
        for wrong in wrong {
            let wrong = format!("{:?} {name}: {wrong}", self.scenario);
            eprintln!("{wrong}");
            self.tally.wrong.push(wrong);
        }
    }

    /// Whether an operation has ended as it had to, and the host is so.
    fn truth(
        &mut self,
        end: End,
        operation: &Operation,
        before: &str,
        after: &str,
    ) -> Option<String> {
        let error = operation.error.as_ref().map(Refusal::from);
        let told = format!(
            "{:?}, rollback {:?}, {error:?}",
            operation.state(),
            operation.rollback_state(),
        );
        let reason = error.as_ref().map(|error| error.reason.as_str());
        let nothing_undone = operation.rollback_state() == RollbackState::None;
        let as_told = match end {
            End::Finished => {
                self.tally.finished += 1;
                operation.state() == OperationState::Succeeded && nothing_undone
            }
            End::Undone => {
                self.tally.undone += 1;
                let why = match operation.state() {
                    OperationState::Failed => reason == Some("INTERNAL"),
                    OperationState::Cancelled => reason == Some("CANCELLED_BY_CALLER"),
                    _ => false,
                };
                why && (nothing_undone || operation.rollback_state() == RollbackState::Done)
            }
            End::Unknown => {
                self.tally.unknown += 1;
                operation.state() == OperationState::Failed
                    && reason == Some("OUTCOME_UNKNOWN")
                    && nothing_undone
            }
            End::FinishedWhenAskedAgain => unreachable!("it was asked again"),
        };
        if !as_told {
            return Some(format!("had to be {end:?}, and is {told}"));
        }
        let (as_it_had_to_be, wanted) = match end {
            End::Finished => (after == self.finished, self.finished.as_str()),
            // What could not be made stays as a record that says so.
            End::Undone if self.scenario == Scenario::Create => (
                after.contains("vm Failed") && after.contains("domain None"),
                "vm Failed, domain None\n",
            ),
            // A whole image stays: another host that imported it too may use it.
            End::Undone if self.stage.ceph.is_some() && self.scenario == Scenario::Import => {
                (without_cluster(after) == without_cluster(before), before)
            }
            End::Undone | End::Unknown | End::FinishedWhenAskedAgain => (after == before, before),
        };
        (!as_it_had_to_be)
            .then(|| format!("{end:?}, {told}, but the host had to be\n{wanted}and is\n{after}"))
    }

    /// Arms one point, or none, and asks.
    async fn in_one(
        &mut self,
        prepared: &Prepared,
        armed: Option<(&Place, &str)>,
    ) -> Result<Operation, String> {
        let points: Vec<String> = armed.iter().map(|(place, how)| place.arm(how)).collect();
        self.stage.arm(&points);
        self.stage.forget();
        let api = self.stage.api();
        let answer = prepared.ask.send(&api).await;
        let answer = answer.map_err(|status| format!("refused: {status:?}"))?;
        let operation = self.ended(prepared, Some(answer.into_inner().id)).await?;
        self.stage.arm(&[]);
        if let Some((place, _)) = armed {
            let trace = self.stage.trace();
            let reached = trace.iter().filter(|point| **point == place.point);
            if reached.count() <= place.nth {
                return Err("the point was not reached".to_owned());
            }
        }
        Ok(operation)
    }

    /// Arms, asks, and starts the agent again where it was killed.
    async fn killed(&mut self, prepared: &Prepared, armed: &[String]) -> Result<Operation, String> {
        self.stage.arm(armed);
        let api = self.stage.api();
        let answered = prepared.ask.send(&api).await.ok();
        if !self.stage.daemon.dies(PATIENCE).await {
            self.stage.arm(&[]);
            return Err("the point was not reached".to_owned());
        }
        self.start_again().await;
        self.ended(prepared, answered.map(|answer| answer.into_inner().id))
            .await
    }

    async fn start_again(&mut self) {
        self.stage.arm(&[]);
        self.stage.daemon.restart().await;
        // What was not begun is refused as long as its cluster has not answered.
        self.stage.cluster_answers().await;
    }

    /// Asks again with the same words, and waits for the end.
    async fn ended(
        &self,
        prepared: &Prepared,
        answered: Option<String>,
    ) -> Result<Operation, String> {
        let api = self.stage.api();
        let again = prepared.ask.send(&api).await;
        let again = again.map_err(|status| format!("a repeat is refused: {status:?}"))?;
        let again = again.into_inner().id;
        if answered.as_ref().is_some_and(|id| *id != again) {
            return Err(format!("{answered:?} was answered, a repeat is {again}"));
        }
        let operation = api.ended(&again).await;
        let request = GetOperationRequest {
            operation_id: again,
        };
        let by_id = api.operations().get_operation(request).await;
        if by_id.map(tonic::Response::into_inner).ok().as_ref() != Some(&operation) {
            return Err("the operation is not found by its id".to_owned());
        }
        Ok(operation)
    }

    /// Past its point of no return it only fails, and goes on where it was when it
    /// is asked for once more.
    async fn ask_again(
        &mut self,
        prepared: &mut Prepared,
        failed: Operation,
    ) -> (Result<Operation, String>, End) {
        let end = End::Finished;
        if failed.state() != OperationState::Failed
            || failed.rollback_state() != RollbackState::None
        {
            return (Err(format!("had to fail, and is {failed:?}")), end);
        }
        if self.scenario == Scenario::DeleteOrphan {
            // What is gone can't be asked for once more: its removal must be all of
            // it, which the shape tells.
            let succeeded = Operation {
                state: OperationState::Succeeded as i32,
                error: None,
                ..failed
            };
            return (Ok(succeeded), end);
        }
        prepared.ask = prepared.ask.anew();
        (self.in_one(prepared, None).await, end)
    }

    /// Arms a point so that what reaches it is held, asks, and waits until it is.
    async fn held(
        &mut self,
        prepared: &Prepared,
        others: &[String],
        at: &Place,
    ) -> Result<String, String> {
        let hold = self.stage.hold();
        let mut armed = others.to_vec();
        armed.push(at.arm(&format!("hold:{}", hold.display())));
        self.stage.arm(&armed);
        let api = self.stage.api();
        let asked = prepared.ask.send(&api).await;
        let asked = asked.map_err(|status| format!("refused: {status:?}"))?;
        let deadline = Instant::now() + PATIENCE;
        while !hold.exists() {
            if Instant::now() >= deadline {
                self.stage.arm(&[]);
                return Err("the point was not reached".to_owned());
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        Ok(asked.into_inner().id)
    }

    /// Asks the agent to stop where it stands while a step that failed is undone, and
    /// starts it again.
    async fn stopped(
        &mut self,
        prepared: &Prepared,
        fails: &Place,
        at: &Place,
    ) -> Result<Operation, String> {
        let id = self.held(prepared, &[fails.arm("fail")], at).await?;
        self.stage.ask_to_stop().await;
        std::fs::remove_file(self.stage.hold()).unwrap();
        let status = self.stage.daemon.end().await;
        if status.code() != Some(0) {
            return Err(format!("asked to stop, the agent ended with {status}"));
        }
        self.start_again().await;
        self.ended(prepared, Some(id)).await
    }

    /// Cancels it where it stands at a point: it is undone, or the cancellation is
    /// refused and it goes on.
    async fn cancelled(
        &mut self,
        prepared: &Prepared,
        at: &Place,
        end: End,
    ) -> Result<Operation, String> {
        let operation_id = self.held(prepared, &[], at).await?;
        let request = CancelOperationRequest {
            operation_id: operation_id.clone(),
        };
        let api = self.stage.api();
        let cancelled = api.operations().cancel_operation(request).await;
        std::fs::remove_file(self.stage.hold()).unwrap();
        let operation = api.ended(&operation_id).await;
        self.stage.arm(&[]);
        let refusal = cancelled.err().map(|status| Refusal::from(&status));
        let as_marked = match &refusal {
            None => end == End::Undone && operation.state() == OperationState::Cancelled,
            Some(refusal) => {
                let brief = (refusal.code, refusal.reason.as_str());
                end == End::Finished
                    && brief == (Code::FailedPrecondition, "NOT_CANCELLABLE")
                    && refusal.metadata.get("operation_id") == Some(&operation_id)
            }
        };
        if as_marked {
            Ok(operation)
        } else {
            Err(format!(
                "by the runbook, cancelled it had to be {end:?}: {refusal:?}, and it ended {operation:?}"
            ))
        }
    }

    /// Whether the agent is started again after more than the undisturbed run: each start
    /// asks a cluster for much.
    fn rests_often(&self) -> bool {
        self.depth != Depth::Cluster || thorough()
    }

    /// Starts the agent again at rest, by turns after it was killed and after it was
    /// asked to stop.
    pub(super) async fn rest(&mut self, name: &str) {
        let ending = if self.tally.rests.is_multiple_of(2) {
            Ending::Asked
        } else {
            Ending::Killed
        };
        self.tally.rests += 1;
        let wrong = rest::started_again(self.stage, ending).await;
        self.tell(name, wrong);
    }

    /// Removes what a case was about; what is left then is what the stage has.
    pub(super) async fn tidy(&mut self, prepared: &Prepared) {
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
        let left = self.stage.api().all_vms().await;
        let left: Vec<&String> = left.iter().map(|vm| &vm.id).collect();
        assert_eq!(left, [&self.stage.bystander]);
        // A copy in the other pool's cache would hide a step.
        for file in self.stage.daemon.pool_files() {
            if file.starts_with("other/images") {
                std::fs::remove_file(self.stage.daemon.home().join(file)).unwrap();
            }
        }
    }
}
