//! One call, from its arrival to its answer: its span, its log line, and what
//! becomes of a panic.
//!
//! Invariant: every refusal is logged exactly once, here. Refusals are the
//! caller's matter and logged at info; our own faults at error.

use super::access::Admitted;
use super::audit::Entry;
use super::{status, trace};
use crate::model::access::Role;
use crate::model::fault::Fault;
use crate::model::ids::VmId;
use crate::model::reason::Reason;
use crate::model::request::Caller;
use crate::proto::v1 as wire;
use crate::spans;
use futures_util::FutureExt;
use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span, field};
use uuid::Uuid;

/// One call.
#[derive(Debug)]
pub(super) struct Call {
    span: Span,
    caller: Caller,
    /// What is recorded of it, if something is.
    entry: Option<Arc<Entry>>,
}

/// What a change is answered with.
pub(super) trait Outcome: Send + 'static {
    /// Notes for the record what it has become.
    fn note(&self, entry: &Entry);
}

impl Outcome for wire::Operation {
    fn note(&self, entry: &Entry) {
        entry.became(self);
    }
}

impl Outcome for wire::VncConsole {
    fn note(&self, _: &Entry) {}
}

impl Call {
    /// Takes a request in: notes who calls what.
    pub(super) fn open<T>(rpc: &'static str, mut request: Request<T>) -> (Self, T) {
        let admitted = request.extensions_mut().remove::<Admitted>();
        // Only a test of this part gets here without.
        let admitted = admitted.unwrap_or_else(|| Admitted {
            name: "unknown".into(),
            role: Role::Viewer,
            entry: None,
        });
        let name = admitted.name.to_string();
        let (span, trace) = spans::call(rpc, &name, trace::parent(request.metadata()));
        if let (Some(entry), Some(trace)) = (&admitted.entry, &trace) {
            entry.traced(trace.trace_id_text());
        }
        let caller = Caller {
            name,
            role: admitted.role,
            trace,
        };
        let call = Self {
            span,
            caller,
            entry: admitted.entry,
        };
        (call, request.into_inner())
    }

    /// Who calls.
    pub(super) fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// Notes which VM the call is about. What is no id is not noted: it would be
    /// the caller's text in our log.
    pub(super) fn about(&self, vm_id: &str) {
        if let Ok(id) = vm_id.parse::<VmId>() {
            self.span.record("vm_id", field::display(id));
            if let Some(entry) = &self.entry {
                entry.about(&id.to_string());
            }
        }
    }

    /// Notes what else the call is about, for the record. What is no id is not noted.
    pub(super) fn on(&self, id: &str) {
        if let (Some(entry), Ok(id)) = (&self.entry, Uuid::try_parse(id)) {
            entry.on(&id.to_string());
        }
    }

    /// Answers with what `work` comes to; given up when the caller goes away.
    pub(super) async fn read<T>(
        self,
        work: impl Future<Output = Result<T, Fault>> + Send,
    ) -> Result<Response<T>, Status> {
        let worked = AssertUnwindSafe(work)
            .catch_unwind()
            .instrument(self.span.clone())
            .await;
        self.answer(worked.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))))
    }

    /// Answers with what `work` comes to, and records it. The work goes on when the caller goes
    /// away, so that no change is left half begun.
    pub(super) async fn change<T: Outcome>(
        self,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let entry = self.entry.clone();
        let recorded = async move {
            let worked = work.await;
            if let Some(entry) = entry {
                match &worked {
                    Ok(outcome) => {
                        outcome.note(&entry);
                        entry.done();
                    }
                    Err(fault) => entry.refused(fault.reason),
                }
            }
            worked
        };
        let worked = tokio::spawn(recorded.instrument(self.span.clone())).await;
        self.answer(worked.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => Err(panicked(panic.as_ref())),
            // Only when the runtime shuts down.
            Err(_) => Err(Fault::new(Reason::Stopping, "the agent is stopping")),
        }))
    }

    fn answer<T>(self, worked: Result<T, Fault>) -> Result<Response<T>, Status> {
        worked.map(Response::new).map_err(|fault| {
            self.span.in_scope(|| log(&fault));
            if let Some(entry) = &self.entry {
                entry.refused(fault.reason);
            }
            spans::failed(&self.span, fault.reason.as_str());
            status::refusal(&fault)
        })
    }
}

fn log(fault: &Fault) {
    let reason = fault.reason.as_str();
    // Texts of requests are shown escaped: a line of the log stays one line.
    let why: String = fault.message.chars().take(512).collect();
    match fault.reason {
        Reason::Internal => tracing::error!(reason, ?why, "call failed"),
        _ => tracing::info!(reason, ?why, "call refused"),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Fault {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    // The answer must not have it, so the log line of the answer does not either.
    tracing::error!(panic = text, "a call panicked");
    Fault::new(Reason::Internal, "kvmlet failed while it answered the call")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;
    use tonic_types::StatusExt;

    fn call() -> Call {
        Call::open("Test", Request::new(())).0
    }

    #[tokio::test]
    async fn a_panic_is_answered_as_internal_without_its_text() {
        let read = call()
            .read::<()>(async { panic!("secret") })
            .await
            .unwrap_err();
        let change = call()
            .change::<wire::Operation>(async { panic!("secret") })
            .await
            .unwrap_err();
        for status in [read, change] {
            assert_eq!(status.code(), Code::Internal);
            assert!(!status.message().contains("secret"));
            let details = status.get_error_details();
            assert_eq!(
                details.error_info().expect("an ErrorInfo").reason,
                "INTERNAL"
            );
        }
    }

    #[tokio::test]
    async fn a_change_goes_on_when_its_caller_goes_away() {
        let (begin, begun) = tokio::sync::oneshot::channel::<()>();
        let (done, end) = tokio::sync::oneshot::channel();
        let mut answer = Box::pin(call().change(async move {
            begun.await.expect("sent below");
            done.send(()).expect("awaited below");
            Ok(wire::Operation::default())
        }));
        assert!(answer.as_mut().now_or_never().is_none());
        drop(answer);
        begin.send(()).expect("the work still waits for it");
        end.await.expect("the work has gone on");
    }
}
