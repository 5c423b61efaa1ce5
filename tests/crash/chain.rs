//! One operation whose agent is killed again and again: at each point of its way in
//! turn, started again between; and at each point of its undoing.
//!
//! A plan that was resumed is killed, too, and so is one that was resumed often.

use super::case::last_undone;
use super::expected::{self, End};
use super::matrix::Matrix;
use super::scenario::Prepared;
use super::walk::{Stop, Undo, armed};
use crate::support::PATIENCE;
use kvmlet::proto::v1::*;
use std::collections::{BTreeMap, BTreeSet};

/// What became of an agent that goes on with an operation.
enum Went {
    /// It was killed at a point.
    Died,
    /// The operation has ended.
    Ended(Box<Operation>),
}

impl Matrix<'_> {
    /// Kills the agent at each point of the way in turn. A resumed plan skips what is
    /// done, and with it points that lie in it; all others must have been reached.
    pub(super) async fn chain_of_kills(&mut self) {
        if self.to_come(0, &BTreeMap::new()).is_empty() {
            return;
        }
        let prepared = self.scenario.prepare(self.stage).await;
        let before = self.before(&prepared).await;
        let mut killed_at = BTreeSet::new();
        let ran = self.kills(&prepared, &mut killed_at).await;
        let stops = &self.walk.stops;
        let unknown = killed_at.iter().any(|index| {
            expected::killed(self.scenario, &self.walk, &stops[*index].place) == End::Unknown
        });
        let end = if unknown { End::Unknown } else { End::Finished };
        let missed: Vec<String> = stops
            .iter()
            .enumerate()
            .filter(|(index, stop)| {
                let in_step = stop.step.is_some() && !stop.place.point.ends_with(".before");
                self.depth.chains(&stop.place) && !in_step && !killed_at.contains(index)
            })
            .map(|(_, stop)| format!("the agent was not killed at {}", stop.place))
            .collect();
        let name = "killed at all points in turn";
        if ran.is_ok() {
            self.tell(name, missed);
        }
        let wrong = self.judge(end, &prepared, &before, ran).await;
        self.tell(name, wrong);
        self.tidy(&prepared).await;
    }

    async fn kills(
        &mut self,
        prepared: &Prepared,
        killed_at: &mut BTreeSet<usize>,
    ) -> Result<Operation, String> {
        let mut answered = None;
        // The first point that is still to come.
        let mut next = 0;
        // How often a point that lies in a step is let pass, because it is reached
        // again before the one that is meant.
        let mut passes: BTreeMap<String, usize> = BTreeMap::new();
        for process in 0..3 * self.walk.stops.len() {
            self.stage.arm(&self.to_come(next, &passes));
            self.stage.forget();
            if process > 0 {
                self.stage.daemon.launch_again();
            }
            if let Went::Ended(operation) = self.go_on(prepared, &mut answered).await? {
                self.stage.arm(&[]);
                return Ok(*operation);
            }
            self.tally.chained += 1;
            let trace = self.stage.trace();
            let point = trace.last().ok_or("it died at no point")?;
            match self.walk.last_of(&trace) {
                Some(index) if index >= next => {
                    killed_at.insert(index);
                    next = index + 1;
                    passes.clear();
                }
                // Reached once more on the way to the one that was meant.
                _ => *passes.entry(point.clone()).or_default() += 1,
            }
        }
        Err("it comes to no end".to_owned())
    }

    /// Arms all points that are still to come, each of which kills.
    fn to_come(&self, next: usize, passes: &BTreeMap<String, usize>) -> Vec<String> {
        let stops = &self.walk.stops;
        let chains = |stop: &&Stop| self.depth.chains(&stop.place);
        let mut points: Vec<String> = Vec::new();
        let mut seen = BTreeSet::new();
        for stop in stops[next..].iter().filter(chains) {
            let place = &stop.place;
            if !seen.insert(&place.point) {
                continue;
            }
            // A plan is run from its start, so that each step begins once more.
            let pass = if place.point.ends_with(".before") {
                place.nth
            } else {
                passes.get(&place.point).copied().unwrap_or_default()
            };
            points.push(armed(&place.point, pass, "kill"));
        }
        points
    }

    /// Lets the last step fail that is undone then, and kills the agent at each point
    /// of the undoing in turn.
    pub(super) async fn chain_of_undoing(&mut self) {
        let Some(step) = last_undone(self.scenario, &self.walk) else {
            return;
        };
        let mut points = self.walk.undoing(step);
        points.retain(|undo| self.depth.chains(&undo.place));
        if points.is_empty() {
            return;
        }
        let prepared = self.scenario.prepare(self.stage).await;
        let before = self.before(&prepared).await;
        let ran = self.undoings(&prepared, step, &points).await;
        let name = "failed, and killed at all points of undoing in turn";
        let wrong = self.judge(End::Undone, &prepared, &before, ran).await;
        self.tell(name, wrong);
        self.tidy(&prepared).await;
    }

    async fn undoings(
        &mut self,
        prepared: &Prepared,
        step: usize,
        points: &[Undo],
    ) -> Result<Operation, String> {
        let fails = self.walk.steps[step].after.clone();
        let fails = fails.expect("it has work to do").arm("fail");
        let again = self.walk.undoing_again();
        let mut answered = None;
        for (process, undo) in points.iter().enumerate() {
            if process == 0 {
                self.stage.arm(&[fails.clone(), undo.place.arm("kill")]);
            } else {
                // A process that goes on undoes the whole plan.
                let same = again
                    .iter()
                    .find(|known| known.step == undo.step && known.place.point == undo.place.point);
                self.stage.arm(&[same.expect("a step").place.arm("kill")]);
                self.stage.daemon.launch_again();
            }
            if let Went::Ended(operation) = self.go_on(prepared, &mut answered).await? {
                self.stage.arm(&[]);
                return Err(format!(
                    "{} was not reached, and it ended {operation:?}",
                    undo.place
                ));
            }
            self.tally.chained += 1;
        }
        self.stage.arm(&[]);
        self.stage.daemon.launch_again();
        match self.go_on(prepared, &mut answered).await? {
            Went::Ended(operation) => Ok(*operation),
            Went::Died => Err("it died with nothing armed".to_owned()),
        }
    }

    /// Asks, or asks again, and waits until the operation has ended or the agent is
    /// dead.
    async fn go_on(
        &mut self,
        prepared: &Prepared,
        answered: &mut Option<String>,
    ) -> Result<Went, String> {
        if !self.stage.serves_or_dies().await {
            return Ok(Went::Died);
        }
        let api = self.stage.api();
        let id = match prepared.ask.send(&api).await {
            Ok(operation) => operation.into_inner().id,
            Err(status) if self.stage.is_dying(&status).await => return Ok(Went::Died),
            Err(status) => return Err(format!("refused: {status:?}")),
        };
        if answered.get_or_insert_with(|| id.clone()) != &id {
            return Err(format!("{answered:?} was answered, a repeat is {id}"));
        }
        let request = WaitOperationRequest {
            operation_id: id,
            timeout: Some(prost_types::Duration {
                seconds: i64::try_from(PATIENCE.as_secs()).expect("a minute"),
                nanos: 0,
            }),
        };
        match api.operations().wait_operation(request).await {
            Ok(operation) if operation.get_ref().end_time.is_some() => {
                Ok(Went::Ended(Box::new(operation.into_inner())))
            }
            Ok(operation) => Err(format!("it does not end: {operation:?}")),
            Err(status) if self.stage.is_dying(&status).await => Ok(Went::Died),
            Err(status) => Err(format!("it can't be waited for: {status:?}")),
        }
    }
}
