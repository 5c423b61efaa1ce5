//! One caller that asks one VM for one thing after another, at random, and knows
//! what must come of each.
//!
//! What is right is not said here a second time: `lifecycle::decide` says what is
//! done, already there or refused, and the lane holds the daemon to it, also over
//! the daemon's death. A caller whose connection breaks asks again with the same
//! request id, as the API says that callers may.

use super::ask::Ask;
use super::stage::Stage;
use crate::support::PATIENCE;
use crate::support::api::{Api, force, graceful, id};
use crate::support::refusal::Refusal;
use kvmlet::model::lifecycle::{self, Decision, Resting};
use kvmlet::proto::v1::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tonic::Status;
use tonic_types::StatusExt;

/// How often the end of an operation is waited for, a minute each.
const WAITS: u32 = 3;

/// The daemon as it is now: a new connection after each restart.
pub type Line = watch::Receiver<Api>;

/// One caller and its VM.
pub struct Lane {
    random: StdRng,
    line: Line,
    images: [String; 2],
    pub vm_id: String,
    /// What the VM must be; `None` while there is none.
    pub state: Option<Resting>,
    /// How many former roots are kept.
    kept: usize,
    /// Whether it was SAVED when it was deleted.
    saved: bool,
    /// Whether its guest was asked to reboot since it has power. libvirt keeps that
    /// in mind, and a libvirt that is started again while such a guest is paused
    /// takes the pause for a part of the reboot, and lets it go on.
    rebooting: bool,
    /// How it was asked for.
    created: Option<CreateVmRequest>,
    /// How often the daemon was started again since this lane began.
    restarts: u32,
    /// What has been done, for the telling.
    pub story: Vec<String>,
}

/// What is asked, with the row of the lifecycle table that it is.
struct Wish {
    row: lifecycle::Ask,
    ask: Ask,
    start: bool,
    reverts: bool,
}

impl Lane {
    pub fn new(stage: &Stage, line: Line, seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            line,
            images: stage.images.clone(),
            vm_id: id(),
            state: None,
            kept: 0,
            saved: false,
            rebooting: false,
            created: None,
            restarts: 0,
            story: Vec::new(),
        }
    }

    /// Asks for some things, one after the other.
    pub async fn sequence(&mut self) -> Result<(), String> {
        for _ in 0..self.random.random_range(2..=4) {
            let wish = self.wish();
            self.story
                .push(format!("{:?} of {:?}", wish.row, self.state));
            self.try_one(wish)
                .await
                .map_err(|wrong| format!("{}: {wrong}", self.story.join(", ")))?;
            if self.story.len() > 20 {
                self.story.remove(0);
            }
        }
        Ok(())
    }

    /// Chooses something; more often something that is done than not.
    fn wish(&mut self) -> Wish {
        let Some(state) = self.state else {
            return self.wish_for(lifecycle::Ask::CreateAgain);
        };
        let tries = if self.random.random_ratio(1, 5) { 1 } else { 8 };
        let mut row = lifecycle::Ask::CreateAgain;
        for _ in 0..tries {
            row = lifecycle::Ask::ALL[self.random.random_range(0..lifecycle::Ask::ALL.len())];
            if lifecycle::decide(state, row) == Decision::Go {
                break;
            }
        }
        self.wish_for(row)
    }

    fn wish_for(&mut self, row: lifecycle::Ask) -> Wish {
        // Giving up saved memory by name says nothing of a guest that has power.
        let row = match (row, self.state) {
            (lifecycle::Ask::DiscardSaved, Some(Resting::Running | Resting::Paused)) => {
                lifecycle::Ask::StopGraceful
            }
            (lifecycle::Ask::Pause, Some(Resting::Running)) if self.rebooting => {
                lifecycle::Ask::StopForce
            }
            (row, _) => row,
        };
        let (vm_id, request_id) = (self.vm_id.clone(), id());
        let start = self.random.random();
        let mut reverts = false;
        macro_rules! plain {
            ($kind:ident, $request:ident) => {
                Ask::$kind($request {
                    vm_id,
                    request_id,
                    ..Default::default()
                })
            };
        }
        let policy =
            |with: bool, forced: bool| with.then(|| if forced { force() } else { asked() });
        // A paused guest hears nothing.
        let forced = self.state == Some(Resting::Paused) || self.random.random();
        use lifecycle::Ask as Row;
        let ask = match row {
            Row::Start => plain!(Start, StartVmRequest),
            Row::StopGraceful | Row::StopForce => Ask::Stop(StopVmRequest {
                vm_id,
                request_id,
                stop_policy: policy(true, row == Row::StopForce),
                ..Default::default()
            }),
            Row::DiscardSaved => Ask::Stop(StopVmRequest {
                vm_id,
                request_id,
                discard_saved_memory: true,
                ..Default::default()
            }),
            Row::Reboot => plain!(Reboot, RebootVmRequest),
            Row::Reset => plain!(Reset, ResetVmRequest),
            Row::Pause => plain!(Pause, PauseVmRequest),
            Row::Resume => plain!(Resume, ResumeVmRequest),
            Row::Save => plain!(Save, SaveVmRequest),
            Row::ReplaceRoot { stop_policy } => {
                reverts = self.kept > 2 || (self.kept > 0 && self.random.random());
                if reverts {
                    Ask::Revert(RevertRootVolumeRequest {
                        vm_id,
                        request_id,
                        stop_policy: policy(stop_policy, forced),
                        start_after: start,
                        ..Default::default()
                    })
                } else {
                    Ask::Replace(Box::new(ReplaceRootVolumeRequest {
                        vm_id,
                        request_id,
                        image_id: self.images[self.random.random_range(0..2)].clone(),
                        stop_policy: policy(stop_policy, forced),
                        start_after: start,
                        ..Default::default()
                    }))
                }
            }
            Row::Delete { stop_policy } => Ask::Delete(DeleteVmRequest {
                vm_id,
                request_id,
                stop_policy: policy(stop_policy, forced),
                ..Default::default()
            }),
            Row::Recover => plain!(Recover, RecoverVmRequest),
            Row::Expunge => plain!(Expunge, ExpungeVmRequest),
            Row::Describe => self.update(request_id, None),
            Row::ChangeHardware => {
                let hardware = Hardware {
                    vcpus: self.random.random_range(1..=2),
                    memory_bytes: 16 << 20,
                    ..Default::default()
                };
                self.update(request_id, Some(hardware))
            }
            Row::CreateAgain => self.create(start),
        };
        Wish {
            row,
            ask,
            start,
            reverts,
        }
    }

    /// The request that it was made by, or a new one.
    fn create(&mut self, start: bool) -> Ask {
        if let (Some(created), Some(_)) = (&self.created, self.state) {
            return Ask::Create(Box::new(CreateVmRequest {
                request_id: id(),
                ..created.clone()
            }));
        }
        let mut request = crate::support::api::small(&self.images[0]);
        request.request_id = id();
        request.start = start;
        request.vnc = Some(NewVnc { enabled: false });
        if self.random.random() {
            request.data_volumes.push(NewVolume {
                size_bytes: 1 << 20,
                ..Default::default()
            });
        }
        self.vm_id = request.vm_id.clone();
        self.created = Some(request.clone());
        Ask::Create(Box::new(request))
    }

    fn update(&mut self, request_id: String, hardware: Option<Hardware>) -> Ask {
        let name = format!("named {}", self.random.random_range(0..100));
        Ask::update(self.vm_id.clone(), request_id, name, hardware)
    }

    /// Asks, sees it through, and holds what came of it against what had to.
    async fn try_one(&mut self, wish: Wish) -> Result<(), String> {
        let due = match self.state {
            None => Decision::Go,
            Some(state) => lifecycle::decide(state, wish.row),
        };
        let restarts = self.restarts;
        let answer = self.send(&wish.ask).await;
        let refused = answer
            .as_ref()
            .err()
            .map(|status| Refusal::from(status).reason);
        let operation = match (due, answer) {
            (Decision::Refuse(instead), Err(status)) => {
                let state = self.state.ok_or("refused, without a VM")?;
                let due = instead.fault(wish.row, state).reason.as_str();
                let reason = Refusal::from(&status).reason;
                return if reason == due {
                    Ok(())
                } else {
                    Err(format!("refused with {reason}, and not {due}: {status:?}"))
                };
            }
            (Decision::Refuse(_), Ok(operation)) => {
                return Err(format!("not refused: {operation:?}"));
            }
            (_, Err(_)) => return Err(format!("refused: {refused:?}")),
            (_, Ok(operation)) => operation,
        };
        let cancels = due == Decision::Go && self.random.random_ratio(1, 8);
        let cancelled = cancels && self.cancel(&operation.id).await;
        if !cancels && self.random.random_ratio(1, 8) {
            let again = self.send(&wish.ask).await;
            if again.as_ref().map(|again| &again.id).ok() != Some(&operation.id) {
                return Err(format!("{} again is {again:?}", operation.id));
            }
        }
        let ended = self.ended(&operation.id).await;
        // Of a guest that has been asked to stop, what it does is its own.
        if cancelled
            && ended.state() != OperationState::Cancelled
            && wish.row != lifecycle::Ask::StopGraceful
        {
            return Err(format!("cancelled, and it ended as {ended:?}"));
        }
        match ended.state() {
            OperationState::Succeeded if due == Decision::Go => self.arrive(&wish),
            OperationState::Succeeded => {}
            OperationState::Cancelled if cancels => self.stay(&wish).await,
            // It is not sent twice, if the agent was killed since it was asked for.
            OperationState::Failed
                if self.restarts > restarts
                    && matches!(wish.row, lifecycle::Ask::Reboot | lifecycle::Ask::Reset)
                    && ended
                        .error
                        .as_ref()
                        .is_some_and(|error| Refusal::from(error).reason == "OUTCOME_UNKNOWN") => {}
            _ => return Err(format!("ended as {ended:?}")),
        }
        self.rebooting |= due == Decision::Go && wish.row == lifecycle::Ask::Reboot;
        self.rebooting &= self.state == Some(Resting::Running);
        self.check().await
    }

    /// What was asked for is done.
    fn arrive(&mut self, wish: &Wish) {
        use lifecycle::Ask as Row;
        let before = self.state;
        let powered = if wish.start {
            Resting::Running
        } else {
            Resting::Stopped
        };
        self.state = match wish.row {
            Row::Start | Row::Resume => Some(Resting::Running),
            Row::StopGraceful | Row::StopForce | Row::DiscardSaved => Some(Resting::Stopped),
            Row::Pause => Some(Resting::Paused),
            Row::Save => Some(Resting::Saved),
            Row::ReplaceRoot { .. } => {
                self.kept += usize::from(!wish.reverts);
                Some(powered)
            }
            Row::Delete { .. } if before == Some(Resting::Failed) => None,
            Row::Delete { .. } => {
                self.saved = before == Some(Resting::Saved);
                Some(Resting::Deleted)
            }
            Row::Recover if self.saved => Some(Resting::Saved),
            Row::Recover => Some(Resting::Stopped),
            Row::Expunge => None,
            Row::CreateAgain => {
                let started = self.created.as_ref().is_some_and(|created| created.start);
                self.kept = 0;
                Some(if started {
                    Resting::Running
                } else {
                    Resting::Stopped
                })
            }
            Row::Reboot | Row::Reset | Row::Describe | Row::ChangeHardware => before,
        };
    }

    /// What was asked for was taken back.
    async fn stay(&mut self, wish: &Wish) {
        if wish.row == lifecycle::Ask::CreateAgain {
            self.state = Some(Resting::Failed);
        }
        if wish.row == lifecycle::Ask::StopGraceful && self.see().await == Some(VmState::Stopped) {
            // It had heard the signal, which nobody can take back.
            self.state = Some(Resting::Stopped);
        }
    }

    /// Whether the VM is what it must be.
    async fn check(&mut self) -> Result<(), String> {
        let found = self.see().await;
        let due = self
            .state
            .map(|state| VmState::from_str_name(&format!("VM_STATE_{}", state.as_str())).unwrap());
        if found == due {
            Ok(())
        } else {
            Err(format!("the VM is {found:?}, and not {due:?}"))
        }
    }

    /// The state that the VM is shown in.
    async fn see(&mut self) -> Option<VmState> {
        let vm_id = self.vm_id.clone();
        let found = self
            .call(async |api| {
                let request = GetVmRequest {
                    vm_id: vm_id.clone(),
                };
                api.vms().get_vm(request).await
            })
            .await;
        found.ok().map(|vm| vm.into_inner().state())
    }

    async fn send(&mut self, ask: &Ask) -> Result<Operation, Status> {
        self.call(async |api| ask.send(&api).await)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Cancels an operation; whether that was taken before its end.
    async fn cancel(&mut self, operation_id: &str) -> bool {
        let request = CancelOperationRequest {
            operation_id: operation_id.to_owned(),
        };
        let answer = self
            .call(async |api| api.operations().cancel_operation(request.clone()).await)
            .await;
        answer.is_ok_and(|operation| operation.get_ref().end_time.is_none())
    }

    async fn ended(&mut self, operation_id: &str) -> Operation {
        let request = WaitOperationRequest {
            operation_id: operation_id.to_owned(),
            timeout: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
        };
        // A libvirt that died in the start of a guest waits for its QEMU for long.
        let mut waits = 0;
        loop {
            let answer = self
                .call(async |api| api.operations().wait_operation(request.clone()).await)
                .await;
            let operation = answer.expect("an answered operation is known").into_inner();
            waits += 1;
            if waits == WAITS || operation.end_time.is_some() {
                return operation;
            }
        }
    }

    /// Makes a call, and makes it again over each death of the daemon.
    async fn call<T>(&mut self, call: impl AsyncFn(Api) -> Result<T, Status>) -> Result<T, Status> {
        loop {
            self.restarts += u32::from(self.line.has_changed().unwrap());
            let api = self.line.borrow_and_update().clone();
            let answer = call(api).await;
            match &answer {
                Err(status) if is_broken(status) => {}
                _ => return answer,
            }
            tokio::time::timeout(PATIENCE, self.line.changed())
                .await
                .expect("the daemon comes back")
                .unwrap();
            self.restarts += 1;
        }
    }
}

/// Asks the guest, and cuts its power if it does not hear.
fn asked() -> StopPolicy {
    StopPolicy {
        timeout: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        on_timeout: OnTimeout::Force as i32,
        ..graceful()
    }
}

/// Whether a call has no answer of the daemon's, because that died.
fn is_broken(status: &Status) -> bool {
    status.get_error_details().error_info().is_none()
}
