//! Stopping a guest: ask, ask again, and what to do when it does not.
//!
//! A busy guest misses the first signal (its agent starts late, its kernel has
//! no button driver yet), so a graceful stop repeats it. The agent is asked
//! where it is connected, else the ACPI power button is pressed; which of them
//! is looked at anew for each signal.
//!
//! How far it has come is durable with each signal. A stop that was cut off, by an
//! end of the agent or of libvirt, goes on with the time that is left. Across a
//! restart only the host's clock tells how much that is, and clocks are set: so it
//! is asked once more in any case, and given one interval to obey, before the time
//! is said to be up.

use super::power::{has_power, start_guest};
use crate::libvirt::{Begin, ErrorKind, Restore, ShutdownMethod};
use crate::model::fault::Fault;
use crate::model::ids::VolumeId;
use crate::model::reason::{Code, Reason};
use crate::model::stop::{OnTimeout, PowerMethod, PowerOutcome, StopPolicy};
use crate::model::time::Timestamp;
use crate::model::view::View;
use crate::service::cell::Cell;
use crate::service::fault::{chain, from_libvirt};
use crate::service::gate::Lane;
use crate::service::operations::now;
use crate::service::plan::{Plan, Run, Step, Undone};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a guest whose QEMU failed a call may take to be shown as off.
const MOMENT: Duration = Duration::from_secs(2);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);

pub(super) fn plan(cell: Arc<Cell>, policy: StopPolicy) -> Plan {
    vec![Box::new(StopGuest {
        cell,
        policy,
        undo: UndoStop::Nothing,
        new_root: None,
    })]
}

/// A stop that is only a means, as the first part of an operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct StopFirst {
    policy: StopPolicy,
    was_paused: bool,
}

impl StopFirst {
    /// By this policy, if there is a guest to stop; undone, it stands still again
    /// if it did.
    pub(super) fn new(policy: Option<StopPolicy>, was_paused: bool) -> Option<Self> {
        policy.map(|policy| Self { policy, was_paused })
    }

    /// Its step.
    pub(super) const fn step(self, cell: Arc<Cell>, new_root: Option<VolumeId>) -> StopGuest {
        StopGuest {
            cell,
            policy: self.policy,
            undo: if self.was_paused {
                UndoStop::StartPaused
            } else {
                UndoStop::Start
            },
            new_root,
        }
    }
}

/// What undoing a stop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UndoStop {
    /// The stop is what was asked for.
    Nothing,
    /// It was only a means: the guest gets power again.
    Start,
    /// The same, and stands still as it did.
    StartPaused,
}

/// Stops a guest as its policy says, and records how it went.
pub(super) struct StopGuest {
    cell: Arc<Cell>,
    policy: StopPolicy,
    /// What undoing does.
    undo: UndoStop,
    /// The root volume that the operation switches to. Once the VM has it, the
    /// guest was stopped: one that runs then was started again on it.
    new_root: Option<VolumeId>,
}

/// What a wait for a guest's end came to.
enum Waited {
    Off,
    AskAgain,
    TimeIsUp,
}

#[async_trait]
impl Step for StopGuest {
    fn name(&self) -> &'static str {
        "stop-guest"
    }

    fn is_point_of_no_return(&self) -> bool {
        self.undo == UndoStop::Nothing && self.policy == StopPolicy::Force
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let switched = self.new_root.is_some() && self.cell.root()? == self.new_root;
        Ok(switched || !has_power(run, &self.cell).await?)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        match self.policy {
            StopPolicy::Force => self.cut_power(run, &Asked::default()).await,
            StopPolicy::Graceful {
                timeout,
                resend_interval,
                on_timeout,
            } => self.ask(run, timeout, resend_interval, on_timeout).await,
        }
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        let begin = match self.undo {
            UndoStop::Nothing => return Ok(Undone::Nothing),
            UndoStop::Start => Begin::Running,
            UndoStop::StartPaused => Begin::Paused,
        };
        if has_power(run, &self.cell).await? {
            return Ok(Undone::Nothing);
        }
        start_guest(run, &self.cell, begin, Restore::IfSaved).await?;
        Ok(Undone::Something)
    }
}

impl StopGuest {
    async fn cut_power(&self, run: &Run, asked: &Asked) -> Result<(), Fault> {
        let before = (asked.signals > 0).then(|| asked.outcome(asked.method));
        // Told before it is known: if its outcome is not, and the guest is then
        // found to be off, this was it.
        tell(run, asked.outcome(PowerMethod::Force));
        if self.policy != StopPolicy::Force {
            // Else the intent says it: whoever looks after the agent's end must know
            // what the guest died of.
            self.keep(run).await;
        }
        let id = self.cell.id;
        let cut = run
            .core
            .hypervisor
            .call(Lane::PowerOff, move |host| host.destroy(id))
            .await;
        match &cut {
            Ok(()) => tell(run, asked.outcome(PowerMethod::Force)),
            Err(fault) if fault.code() == Code::Unknown => {}
            Err(_) => run
                .operation
                .change(|operation| operation.power_outcome = before),
        }
        cut
    }

    async fn ask(
        &self,
        run: &Run,
        timeout: Duration,
        resend: Duration,
        on_timeout: OnTimeout,
    ) -> Result<(), Fault> {
        let mut asked = Asked::so_far(run.operation.get().power_outcome);
        let left = timeout.saturating_sub(asked.before);
        let until = asked.begun + left.max(resend.min(timeout));
        loop {
            // Who cancels before a signal spares the guest that signal.
            if let Some(why) = run.operation.cancelled() {
                return Err(why);
            }
            let answer = self.signal(run).await;
            let sent = match &answer {
                Ok(Some(used)) => Some(*used),
                Ok(None) => None,
                // It may have heard this one, and may be ending because of it.
                Err(fault) if fault.code() == Code::Unknown => Some(asked.method),
                Err(_) => None,
            };
            if let Some(used) = sent {
                asked.signals += 1;
                asked.method = used;
                asked.last = Some(now());
                tell(run, asked.outcome(used));
                self.keep(run).await;
            }
            answer?;
            let again = (Instant::now() + resend).min(until);
            match self.wait(run, again, until).await? {
                Waited::Off => {
                    if self.undo == UndoStop::Nothing {
                        // It has stopped: there is nothing left to cancel.
                        run.operation.outrun_cancellation();
                    }
                    tell(run, asked.outcome(asked.method));
                    return Ok(());
                }
                Waited::AskAgain => {}
                Waited::TimeIsUp => break,
            }
        }
        match on_timeout {
            OnTimeout::Force => {
                if self.undo == UndoStop::Nothing {
                    run.operation.pass_point_of_no_return()?;
                }
                self.cut_power(run, &asked).await
            }
            OnTimeout::Fail => Err(Fault::new(
                Reason::GuestDidNotStop,
                format!(
                    "the guest was asked {} times in {} s and did not stop; it is left running",
                    asked.signals,
                    asked.waited().as_secs()
                ),
            )
            .with("signals_sent", asked.signals)),
        }
    }

    /// Makes durable how often the guest was asked, and whether its power is cut.
    async fn keep(&self, run: &Run) {
        if let Err(fault) = run.core.operations.record(&run.operation).await {
            // The guest was asked all the same; after a restart it is asked again.
            tracing::warn!(error = chain(&fault), "how the stop stands is not recorded");
        }
    }

    /// Sends one signal. `None` if there was nobody to send it to any more.
    async fn signal(&self, run: &Run) -> Result<Option<PowerMethod>, Fault> {
        let id = self.cell.id;
        let answer = run
            .core
            .hypervisor
            .try_call(Lane::Control, move |host| {
                if host.agent_connected(id)? {
                    match host.shutdown(id, ShutdownMethod::Agent) {
                        Ok(()) => return Ok(PowerMethod::GuestAgent),
                        // It is connected and does not answer: press the button.
                        Err(error) if error.kind == ErrorKind::AgentUnavailable => {}
                        Err(error) => return Err(error),
                    }
                }
                host.shutdown(id, ShutdownMethod::Acpi)
                    .map(|()| PowerMethod::Acpi)
            })
            .await?;
        match answer {
            Ok(method) => Ok(Some(method)),
            // It has ended meanwhile, or libvirt is busy with it: the wait tells.
            Err(error) if matches!(error.kind, ErrorKind::InvalidState | ErrorKind::Busy) => {
                tracing::info!(error = chain(&error), "the guest could not be asked");
                self.cell.touch();
                Ok(None)
            }
            // A QEMU that dies while it is asked fails the call, and only then is
            // shown as off.
            Err(error) if error.kind == ErrorKind::Other => {
                if self.ends(run).await {
                    tracing::info!(error = chain(&error), "the guest ended while it was asked");
                    self.cell.touch();
                    return Ok(None);
                }
                tracing::warn!(error = chain(&error), "libvirt call failed");
                Err(from_libvirt(&error))
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "libvirt call failed");
                Err(from_libvirt(&error))
            }
        }
    }

    /// Whether the guest is off within a moment.
    async fn ends(&self, run: &Run) -> bool {
        let mut view = self.cell.watch();
        let off = async {
            loop {
                if matches!(has_power(run, &self.cell).await, Ok(false)) {
                    return;
                }
                tokio::select! {
                    _ = view.wait_for(|view| !is_on(view)) => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        };
        tokio::select! {
            () = off => true,
            () = tokio::time::sleep(MOMENT) => false,
            () = run.core.stopping.cancelled() => false,
        }
    }

    async fn wait(&self, run: &Run, again: Instant, until: Instant) -> Result<Waited, Fault> {
        let mut view = self.cell.watch();
        let off = async { drop(view.wait_for(|view| !is_on(view)).await) };
        tokio::select! {
            biased;
            () = off => return Ok(Waited::Off),
            () = run.operation.cancellation() => {}
            () = run.core.stopping.cancelled() => {
                return Err(Fault::new(Reason::Stopping, "the agent is stopping"));
            }
            () = tokio::time::sleep_until(again) => {
                let up = Instant::now() >= until;
                return Ok(if up { Waited::TimeIsUp } else { Waited::AskAgain });
            }
        }
        // It may have stopped already, and the word of it be on its way.
        if !has_power(run, &self.cell).await? {
            return Ok(Waited::Off);
        }
        Err(run
            .operation
            .cancelled()
            .unwrap_or_else(|| Fault::new(Reason::CancelledByCaller, "the stop was cancelled")))
    }
}

fn is_on(view: &View) -> bool {
    view.away
        || view
            .vm
            .as_ref()
            .is_some_and(|vm| vm.seen.resting.has_power())
}

/// How often a guest was asked, and for how long, also by former runs.
struct Asked {
    signals: u32,
    method: PowerMethod,
    last: Option<Timestamp>,
    /// What had passed when this run began.
    before: Duration,
    begun: Instant,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            signals: 0,
            method: PowerMethod::Acpi,
            last: None,
            before: Duration::ZERO,
            begun: Instant::now(),
        }
    }
}

impl Asked {
    /// What a run that was cut off has left. Between its last signal and now the
    /// host's clock counts; one that was set back adds nothing.
    fn so_far(outcome: Option<PowerOutcome>) -> Self {
        let Some(outcome) = outcome else {
            return Self::default();
        };
        let since = outcome.last_signal.map(|last| now().since(last));
        Self {
            signals: outcome.signals_sent,
            method: outcome.method,
            last: outcome.last_signal,
            before: outcome.waited.saturating_add(since.unwrap_or_default()),
            begun: Instant::now(),
        }
    }

    fn waited(&self) -> Duration {
        self.before.saturating_add(self.begun.elapsed())
    }

    fn outcome(&self, method: PowerMethod) -> PowerOutcome {
        PowerOutcome {
            method,
            signals_sent: self.signals,
            waited: self.waited(),
            forced: method == PowerMethod::Force,
            last_signal: self.last,
        }
    }
}

/// Shows how it stands.
fn tell(run: &Run, outcome: PowerOutcome) {
    run.operation
        .change(|operation| operation.power_outcome = Some(outcome));
}
