//! Callers who mean well: many connections, on each now and then one call.

use crate::support::api::{Api, force};
use kvmlet::proto::v1::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tonic::{Request, Response, Status};

/// Each call is answered within it. Long, for a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(30);

/// What all of them know.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) vms: Arc<Vec<String>>,
    /// Operations that have begun, at least one.
    pub(crate) operations: Arc<Mutex<Vec<String>>>,
}

/// One connection.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) api: Api,
    /// The VM whose power it changes, if it does.
    pub(crate) vm: Option<String>,
    pub(crate) seed: u64,
}

/// What became of calls.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) took: Vec<Duration>,
    pub(crate) errors: Vec<String>,
}

/// Has them make so many calls a second all together, until the end.
pub(crate) async fn all_call(
    members: &[Member],
    known: &Known,
    a_second: u32,
    lasts: Duration,
) -> Outcome {
    let every = Duration::from_secs(1) * u32::try_from(members.len()).unwrap() / a_second;
    let begin = tokio::time::Instant::now();
    let mut calling = JoinSet::new();
    for (index, member) in members.iter().enumerate() {
        let (member, known) = (member.clone(), known.clone());
        let index = u32::try_from(index).unwrap();
        let first = begin + every * index / u32::try_from(members.len()).unwrap();
        calling.spawn(async move {
            let mut ticks = interval_at(first, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut turn = Turn::new(member, known);
            let mut outcome = Outcome::default();
            loop {
                ticks.tick().await;
                if begin.elapsed() >= lasts {
                    turn.rest(&mut outcome).await;
                    return outcome;
                }
                turn.call(&mut outcome).await;
            }
        });
    }
    let mut all = Outcome::default();
    while let Some(one) = calling.join_next().await {
        let one = one.unwrap();
        all.took.extend(one.took);
        all.errors.extend(one.errors);
    }
    all
}

/// Whose turn it is, and what comes next.
struct Turn {
    member: Member,
    known: Known,
    random: StdRng,
    step: usize,
    operation: Option<String>,
    /// What was called last.
    called: &'static str,
}

impl Turn {
    fn new(member: Member, known: Known) -> Self {
        Self {
            random: StdRng::seed_from_u64(member.seed),
            member,
            known,
            step: 0,
            operation: None,
            called: "",
        }
    }

    async fn call(&mut self, outcome: &mut Outcome) {
        let begin = Instant::now();
        let called = timeout(DEADLINE, async {
            match self.member.vm.clone() {
                Some(vm_id) => self.change(vm_id).await,
                None => self.read().await,
            }
        });
        match called.await {
            Ok(Ok(())) => outcome.took.push(begin.elapsed()),
            Ok(Err(status)) => outcome.errors.push(format!("{}: {status:?}", self.called)),
            Err(_) => outcome
                .errors
                .push(format!("{}: no answer in time", self.called)),
        }
    }

    /// Leaves its VM without power.
    async fn rest(&mut self, outcome: &mut Outcome) {
        while self.member.vm.is_some() && self.step != 0 {
            self.call(outcome).await;
        }
    }

    /// Start, pause, resume and stop, and after each a wait for its end.
    async fn change(&mut self, vm_id: String) -> Result<(), Status> {
        let mut vms = self.member.api.vms();
        if let Some(operation_id) = self.operation.clone() {
            let ended = self.wait(operation_id).await?;
            if ended.end_time.is_none() {
                return Ok(());
            }
            self.operation = None;
            self.step = (self.step + 1) % 4;
            return match ended.state() {
                OperationState::Succeeded => Ok(()),
                _ => Err(Status::internal(format!("{ended:?}"))),
            };
        }
        macro_rules! power {
            ($call:ident, $request:ident $(, $field:ident: $value:expr)*) => {
                vms.$call($request { vm_id, $($field: $value,)* ..Default::default() }).await
            };
        }
        self.called = ["StartVm", "PauseVm", "ResumeVm", "StopVm"][self.step];
        let answer: Result<Response<Operation>, Status> = match self.step {
            0 => power!(start_vm, StartVmRequest),
            1 => power!(pause_vm, PauseVmRequest),
            2 => power!(resume_vm, ResumeVmRequest),
            _ => power!(stop_vm, StopVmRequest, stop_policy: Some(force())),
        };
        let id = answer?.into_inner().id;
        self.known.operations.lock().unwrap().push(id.clone());
        self.operation = Some(id);
        Ok(())
    }

    async fn wait(&mut self, operation_id: String) -> Result<Operation, Status> {
        let request = WaitOperationRequest {
            operation_id,
            timeout: Some(prost_types::Duration {
                seconds: 5,
                nanos: 0,
            }),
        };
        self.called = "WaitOperation";
        let mut operations = self.member.api.operations();
        Ok(operations.wait_operation(request).await?.into_inner())
    }

    async fn read(&mut self) -> Result<(), Status> {
        let api = self.member.api.clone();
        let vm_id = self.known.vms[self.random.random_range(0..self.known.vms.len())].clone();
        let operation_id = {
            let operations = self.known.operations.lock().unwrap();
            operations[self.random.random_range(0..operations.len())].clone()
        };
        match self.random.random_range(0..10) {
            0..4 => {
                self.called = "GetVm";
                drop(api.vms().get_vm(GetVmRequest { vm_id }).await?);
            }
            4..6 => {
                self.called = "ListVms";
                let request = ListVmsRequest {
                    page_size: 20,
                    ..Default::default()
                };
                drop(api.vms().list_vms(request).await?);
            }
            6 => {
                self.called = "GetNode";
                drop(api.nodes().get_node(GetNodeRequest {}).await?);
            }
            7 | 8 => {
                self.called = "GetOperation";
                let request = GetOperationRequest { operation_id };
                drop(api.operations().get_operation(request).await?);
            }
            _ => drop(self.wait(operation_id).await?),
        }
        Ok(())
    }
}

/// Watches events until it is given up; returns why the stream ended before.
pub(crate) async fn watch(api: Api) -> Status {
    let request = Request::new(WatchEventsRequest::default());
    let stream = api.nodes().watch_events(request).await;
    let mut stream = match stream {
        Ok(stream) => stream.into_inner(),
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::unavailable("the stream has ended"),
            Err(status) => return status,
        }
    }
}
