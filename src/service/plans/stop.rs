//! Stopping a guest: ask, ask again, and what to do when it does not.
//!
//! A busy guest misses the first signal (its agent starts late, its kernel has
//! no button driver yet), so a graceful stop repeats it. The agent is asked
//! where it is connected, else the ACPI power button is pressed; which of them
//! is looked at anew for each signal.

use super::power::{has_power, start_guest};
use crate::libvirt::{ErrorKind, ShutdownMethod};
use crate::model::fault::Fault;
use crate::model::ids::VolumeId;
use crate::model::reason::Reason;
use crate::model::stop::{OnTimeout, PowerMethod, PowerOutcome, StopPolicy};
use crate::service::cell::{Cell, View};
use crate::service::fault::{chain, from_libvirt};
use crate::service::gate::Lane;
use crate::service::plan::{Plan, Run, Step, Undone};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub(super) fn plan(cell: Arc<Cell>, policy: StopPolicy) -> Plan {
    vec![Box::new(StopGuest {
        cell,
        policy,
        undo_starts: false,
        new_root: None,
    })]
}

/// Stops a guest as its policy says, and records how it went.
pub(super) struct StopGuest {
    pub(super) cell: Arc<Cell>,
    pub(super) policy: StopPolicy,
    /// Undoing gives power again: the stop was only a means.
    pub(super) undo_starts: bool,
    /// The root volume that the operation switches to. Once the VM has it, the
    /// guest was stopped: one that runs then was started again on it.
    pub(super) new_root: Option<VolumeId>,
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
        !self.undo_starts && self.policy == StopPolicy::Force
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let switched = self.new_root.is_some() && self.cell.root()? == self.new_root;
        Ok(switched || !has_power(run, &self.cell).await?)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        match self.policy {
            StopPolicy::Force => {
                let begun = Instant::now();
                self.cut_power(run).await?;
                record(run, PowerMethod::Force, 0, begun.elapsed(), true);
                Ok(())
            }
            StopPolicy::Graceful {
                timeout,
                resend_interval,
                on_timeout,
            } => self.ask(run, timeout, resend_interval, on_timeout).await,
        }
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        if !self.undo_starts || has_power(run, &self.cell).await? {
            return Ok(Undone::Nothing);
        }
        start_guest(run, &self.cell).await?;
        Ok(Undone::Something)
    }
}

impl StopGuest {
    async fn cut_power(&self, run: &Run) -> Result<(), Fault> {
        let id = self.cell.id;
        run.core
            .hypervisor
            .call(Lane::PowerOff, move |host| host.destroy(id))
            .await
    }

    async fn ask(
        &self,
        run: &Run,
        timeout: Duration,
        resend: Duration,
        on_timeout: OnTimeout,
    ) -> Result<(), Fault> {
        let begun = Instant::now();
        let until = begun + timeout;
        let mut signals = 0;
        let mut method = PowerMethod::Acpi;
        loop {
            if let Some(used) = self.signal(run).await? {
                signals += 1;
                method = used;
                record(run, method, signals, begun.elapsed(), false);
            }
            let again = (Instant::now() + resend).min(until);
            match self.wait(run, again, until).await? {
                Waited::Off => {
                    if !self.undo_starts {
                        // It has stopped: there is nothing left to cancel.
                        run.operation.outrun_cancellation();
                    }
                    record(run, method, signals, begun.elapsed(), false);
                    return Ok(());
                }
                Waited::AskAgain => {}
                Waited::TimeIsUp => break,
            }
        }
        match on_timeout {
            OnTimeout::Force => {
                if !self.undo_starts {
                    run.operation.pass_point_of_no_return()?;
                }
                self.cut_power(run).await?;
                record(run, PowerMethod::Force, signals, begun.elapsed(), true);
                Ok(())
            }
            OnTimeout::Fail => Err(Fault::new(
                Reason::GuestDidNotStop,
                format!(
                    "the guest was asked {signals} times in {} s and did not stop; it is left running",
                    begun.elapsed().as_secs()
                ),
            )
            .with("signals_sent", signals)),
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
            Err(error) => {
                tracing::warn!(error = chain(&error), "libvirt call failed");
                Err(from_libvirt(&error))
            }
        }
    }

    async fn wait(&self, run: &Run, again: Instant, until: Instant) -> Result<Waited, Fault> {
        let mut view = self.cell.watch();
        let off = view.wait_for(|view| !is_on(view));
        tokio::select! {
            biased;
            _ = off => Ok(Waited::Off),
            () = run.operation.cancellation() => Err(run.operation.cancelled().unwrap_or_else(|| {
                Fault::new(Reason::CancelledByCaller, "the stop was cancelled")
            })),
            () = run.core.stopping.cancelled() => {
                Err(Fault::new(Reason::Stopping, "the agent is stopping"))
            }
            () = tokio::time::sleep_until(again) => {
                Ok(if Instant::now() >= until { Waited::TimeIsUp } else { Waited::AskAgain })
            }
        }
    }
}

fn is_on(view: &View) -> bool {
    view.away
        || view
            .vm
            .as_ref()
            .is_some_and(|vm| vm.seen.resting.has_power())
}

fn record(run: &Run, method: PowerMethod, signals_sent: u32, waited: Duration, forced: bool) {
    run.operation.change(|operation| {
        operation.power_outcome = Some(PowerOutcome {
            method,
            signals_sent,
            waited,
            forced,
        });
    });
}
