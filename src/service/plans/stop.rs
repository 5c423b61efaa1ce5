//! Stopping a guest: ask, ask again, and what to do when it does not.
//!
//! A busy guest misses the first signal (its agent starts late, its kernel has
//! no button driver yet), so a graceful stop repeats it. The agent is asked once, with
//! the first signal at which it is connected; all others press the ACPI power button,
//! and so does that one if the agent does not take it.
//!
//! An agent that takes the request holds libvirt's call until the guest is off, for up
//! to a minute. So the call is not waited for: the guest's end is, and the call is given
//! up when the stop ends. No time of a stop depends on what the agent does.
//!
//! How far it has come is durable with each signal. A stop that was cut off, by an
//! end of the agent or of libvirt, goes on with the time that is left. Across a
//! restart only the host's clock tells how much that is, and clocks are set: so it
//! is asked once more in any case, and given one interval to obey, before the time
//! is said to be up.

use super::asked::{Asked, what_ended};
use super::memory::Memory;
use super::power::{Disks, domain, has_power, start_guest};
use crate::libvirt::{Begin, ErrorKind, LibvirtError, OffReason, Power, ShutdownMethod};
use crate::model::fault::Fault;
use crate::model::ids::VolumeId;
use crate::model::reason::{Code, Reason};
use crate::model::stop::{OnTimeout, PowerMethod, PowerOutcome, StopPolicy};
use crate::model::view::View;
use crate::service::cell::Cell;
use crate::service::fault::{chain, from_libvirt};
use crate::service::gate::Lane;
use crate::service::hypervisor::Sent;
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
    /// By this policy, if there is a guest to stop; undone, it is paused again
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
    /// The same, paused as it was.
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
        if self.new_root.is_some() && self.cell.root()? == self.new_root {
            return Ok(true);
        }
        if has_power(run, &self.cell).await? {
            return Ok(false);
        }
        // It ended while nobody looked: the agent or libvirt was away.
        match run.operation.get().power_outcome {
            Some(asked) if asked.method != PowerMethod::Force => {
                let method = self.what_ended(run, asked.method, asked.signals_sent).await;
                tell(run, PowerOutcome { method, ..asked });
            }
            None if run.operation.is_resumed() && self.policy != StopPolicy::Force => {
                let method = self.what_ended(run, PowerMethod::Guest, 0).await;
                // One that shut down may have been asked: how it stood is not recorded.
                if method != PowerMethod::Guest {
                    tell(run, Asked::default().outcome(method));
                }
            }
            Some(_) | None => {}
        }
        Ok(true)
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
        start_guest(run, &self.cell, begin, Memory::IfSaved, Disks::AsDefined).await?;
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
            Ok(()) => {
                let method = match self.policy {
                    StopPolicy::Force => PowerMethod::Force,
                    StopPolicy::Graceful { .. } => self.what_cut(run, asked).await,
                };
                tell(run, asked.outcome(method));
            }
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
        let mut agent = None;
        loop {
            // Who cancels before a signal spares the guest that signal.
            if let Some(why) = run.operation.cancelled() {
                return Err(why);
            }
            match self.ask_agent(run, &mut asked, until).await? {
                Some(sent) => agent = Some(sent),
                None => self.press_button(run, &mut asked, until).await?,
            }
            let again = (Instant::now() + resend).min(until);
            match self.wait(run, &asked, &mut agent, again, until).await? {
                Waited::Off => {
                    if self.undo == UndoStop::Nothing {
                        // It has stopped: there is nothing left to cancel.
                        run.operation.outrun_cancellation();
                    }
                    let method = self.what_ended(run, asked.method, asked.signals).await;
                    tell(run, asked.outcome(method));
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

    /// Counts a signal, and makes it durable.
    async fn count(&self, run: &Run, asked: &mut Asked, method: PowerMethod) {
        self.cell.forget_restart_press();
        asked.count(method);
        tell(run, asked.outcome(method));
        self.keep(run).await;
    }

    /// Asks the agent, if it is there, was not asked before, and can be asked now.
    async fn ask_agent<'a>(
        &self,
        run: &'a Run,
        asked: &mut Asked,
        until: Instant,
    ) -> Result<Option<Sent<'a, ()>>, Fault> {
        if asked.agent {
            return Ok(None);
        }
        let (id, hypervisor) = (self.cell.id, &run.core.hypervisor);
        let connected = hypervisor.try_call(Lane::Read, move |host| host.agent_connected(id));
        match in_time(run, until, connected).await? {
            Some(Ok(true)) => {}
            // The button's call tells what is wrong.
            Some(Ok(false) | Err(_)) | None => return Ok(None),
        }
        let sent =
            hypervisor.signal_agent(id, move |host| host.shutdown(id, ShutdownMethod::Agent))?;
        if sent.is_some() {
            self.count(run, asked, PowerMethod::GuestAgent).await;
        }
        Ok(sent)
    }

    /// Presses the power button, if there is still somebody to press it for.
    async fn press_button(
        &self,
        run: &Run,
        asked: &mut Asked,
        until: Instant,
    ) -> Result<(), Fault> {
        let id = self.cell.id;
        let pressed = run.core.hypervisor.try_call(Lane::Control, move |host| {
            host.shutdown(id, ShutdownMethod::Acpi)
        });
        let answer = in_time(run, until, pressed).await;
        let pressed = match &answer {
            Ok(Some(Ok(()))) => true,
            Ok(Some(Err(error))) => error.is_connection_lost(),
            // It may have heard this one, and may be ending because of it.
            Ok(None) => true,
            Err(fault) => fault.code() == Code::Unknown,
        };
        if pressed {
            self.count(run, asked, PowerMethod::Acpi).await;
        }
        match answer? {
            Some(Err(error)) => self.not_heard(run, &error).await,
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// What is to be said of a signal that failed: nothing, if it failed because the
    /// guest ends.
    async fn not_heard(&self, run: &Run, error: &LibvirtError) -> Result<(), Fault> {
        let over = match error.kind {
            // It has ended meanwhile, or libvirt is busy with it: the wait tells.
            ErrorKind::InvalidState | ErrorKind::Busy => true,
            // A QEMU that dies while it is asked fails the call, and only then is
            // shown as off.
            ErrorKind::Other => self.ends(run).await,
            ErrorKind::NotFound
            | ErrorKind::Foreign
            | ErrorKind::WouldLose
            | ErrorKind::AlreadyExists
            | ErrorKind::Unreachable
            | ErrorKind::Interrupted
            | ErrorKind::Unsupported
            | ErrorKind::Invalid
            | ErrorKind::NoResources
            | ErrorKind::Denied
            | ErrorKind::AgentUnavailable => false,
        };
        if over {
            tracing::info!(error = chain(error), "the guest could not be asked");
            self.cell.touch();
            return Ok(());
        }
        tracing::warn!(error = chain(error), "libvirt call failed");
        Err(from_libvirt(error))
    }

    /// What ended a guest that was asked so often, last by this method.
    async fn what_ended(&self, run: &Run, last: PowerMethod, signals: u32) -> PowerMethod {
        let asked = if signals > 0 {
            last
        } else {
            PowerMethod::Guest
        };
        match domain(run, &self.cell).await.map(|domain| domain.power) {
            Ok(Power::Off(why)) => what_ended(why, asked, self.cell.has_ended_with_host()),
            // It was started again, or libvirt is away.
            Ok(_) | Err(_) => asked,
        }
    }

    /// What ended a guest whose power was to be cut: it may have ended before.
    async fn what_cut(&self, run: &Run, asked: &Asked) -> PowerMethod {
        match domain(run, &self.cell).await.map(|domain| domain.power) {
            Ok(Power::Off(OffReason::Shutdown)) if asked.signals > 0 => asked.method,
            Ok(_) | Err(_) => PowerMethod::Force,
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

    /// Waits for the guest's end until it is to be asked again, whatever becomes of the
    /// call on its agent meanwhile.
    async fn wait(
        &self,
        run: &Run,
        asked: &Asked,
        agent: &mut Option<Sent<'_, ()>>,
        again: Instant,
        until: Instant,
    ) -> Result<Waited, Fault> {
        let mut view = self.cell.watch();
        loop {
            let off = async { drop(view.wait_for(|view| !is_on(view)).await) };
            tokio::select! {
                biased;
                () = off => return Ok(Waited::Off),
                () = run.operation.cancellation() => break,
                () = run.core.stopping.cancelled() => return Err(stopping()),
                answer = answer(agent) => {
                    *agent = None;
                    let refused = match answer? {
                        Ok(()) => false,
                        Err(error) => self.is_refusal(run, &error).await?,
                    };
                    // The button may have been pressed since.
                    if refused && asked.method == PowerMethod::GuestAgent {
                        return Ok(Waited::AskAgain);
                    }
                }
                () = tokio::time::sleep_until(again) => {
                    let up = Instant::now() >= until;
                    return Ok(if up { Waited::TimeIsUp } else { Waited::AskAgain });
                }
            }
        }
        // It may have stopped already, and the word of it be on its way.
        if !has_power(run, &self.cell).await? {
            return Ok(Waited::Off);
        }
        Err(cancelled(run))
    }

    /// Whether the agent does not do it, by its own word or without one.
    async fn is_refusal(&self, run: &Run, error: &LibvirtError) -> Result<bool, Fault> {
        match error.kind {
            ErrorKind::AgentUnavailable | ErrorKind::Busy | ErrorKind::Unsupported => {
                tracing::info!(error = chain(error), "the guest agent did not obey");
                Ok(true)
            }
            _ => self.not_heard(run, error).await.map(|()| false),
        }
    }
}

/// The answer of an agent that was asked; never comes if none is awaited.
async fn answer(agent: &mut Option<Sent<'_, ()>>) -> Result<Result<(), LibvirtError>, Fault> {
    match agent {
        Some(sent) => sent.answer().await,
        None => std::future::pending().await,
    }
}

/// Waits for a call, but no longer than the stop may last; `None` if its time is up.
async fn in_time<T>(
    run: &Run,
    until: Instant,
    call: impl Future<Output = Result<T, Fault>>,
) -> Result<Option<T>, Fault> {
    tokio::select! {
        biased;
        answer = call => answer.map(Some),
        () = run.operation.cancellation() => Err(cancelled(run)),
        () = run.core.stopping.cancelled() => Err(stopping()),
        () = tokio::time::sleep_until(until) => Ok(None),
    }
}

fn cancelled(run: &Run) -> Fault {
    let why = run.operation.cancelled();
    why.unwrap_or_else(|| Fault::new(Reason::CancelledByCaller, "the stop was cancelled"))
}

fn stopping() -> Fault {
    Fault::new(Reason::Stopping, "the agent is stopping")
}

fn is_on(view: &View) -> bool {
    view.away
        || view
            .vm
            .as_ref()
            .is_some_and(|vm| vm.seen.resting.has_power())
}

/// Shows how it stands.
fn tell(run: &Run, outcome: PowerOutcome) {
    run.operation
        .change(|operation| operation.power_outcome = Some(outcome));
}
