//! The record of who changed what, and who looked at a console.
//!
//! Invariant: each such call is recorded once, with its answer, also if it was
//! refused, and also if its caller did not wait for the answer. A record names ids
//! and has nothing else of the request: no secret, and no text of the caller's.

use crate::door::{Known, Peer};
use crate::model::access::Role;
use crate::model::reason::Reason;
use crate::proto::v1 as wire;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tonic::body::Body;
use tonic::codegen::http::Response;

/// What the log's records of this kind are marked with.
const TARGET: &str = "kvmlet::audit";

/// A call that is to be recorded.
#[derive(Debug)]
pub(super) struct Entry {
    rpc: &'static str,
    caller: Arc<str>,
    role: Option<Role>,
    from: String,
    begun: Instant,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    vm_id: String,
    /// What else it is about, by its id.
    on: String,
    operation_id: String,
    trace_id: Option<String>,
    recorded: bool,
}

impl Entry {
    /// A call comes in.
    pub(super) fn open(rpc: &'static str, caller: &Known, peer: &Peer) -> Self {
        Self {
            rpc,
            caller: caller.name.clone(),
            role: caller.role,
            from: peer.place(),
            begun: Instant::now(),
            noted: Mutex::default(),
        }
    }

    /// A call comes in, and nobody knows whose.
    pub(super) fn by_stranger(rpc: &'static str, peer: Option<&Arc<Peer>>) -> Self {
        Self {
            rpc,
            caller: "unknown".into(),
            role: None,
            from: peer.map_or_else(|| "unknown".to_owned(), |peer| peer.place()),
            begun: Instant::now(),
            noted: Mutex::default(),
        }
    }

    /// Notes which VM it is about.
    pub(super) fn about(&self, vm_id: &str) {
        vm_id.clone_into(&mut self.lock().vm_id);
    }

    /// Notes what else it is about: an image, an orphan.
    pub(super) fn on(&self, id: &str) {
        id.clone_into(&mut self.lock().on);
    }

    /// Notes the trace that it is in.
    pub(super) fn traced(&self, trace_id: String) {
        self.lock().trace_id = Some(trace_id);
    }

    /// Notes the operation that it has become.
    pub(super) fn became(&self, operation: &wire::Operation) {
        let mut noted = self.lock();
        operation.id.clone_into(&mut noted.operation_id);
        if noted.vm_id.is_empty() {
            operation.vm_id.clone_into(&mut noted.vm_id);
        }
        if noted.on.is_empty() {
            operation.image_id.clone_into(&mut noted.on);
        }
    }

    /// Records that it was answered with what was asked for.
    pub(super) fn done(&self) {
        self.record("OK");
    }

    /// Records why it was refused.
    pub(super) fn refused(&self, reason: Reason) {
        self.record(reason.as_str());
    }

    /// Records what the answer tells, if nothing was recorded before.
    pub(super) fn answered(&self, answer: &Response<Body>) {
        let status = answer.headers().get("grpc-status");
        match status.map(|code| tonic::Code::from_bytes(code.as_bytes())) {
            None | Some(tonic::Code::Ok) => self.record("OK"),
            Some(_) => self.record("NOT_READ"),
        }
    }

    fn record(&self, answer: &str) {
        let mut noted = self.lock();
        if std::mem::replace(&mut noted.recorded, true) {
            return;
        }
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        tracing::info!(
            target: TARGET,
            rpc = self.rpc,
            caller = &*self.caller,
            role = self.role.map_or("none", Role::as_str),
            from = self.from,
            vm_id = given(&noted.vm_id),
            on = given(&noted.on),
            answer,
            operation_id = given(&noted.operation_id),
            trace_id = noted.trace_id,
            took_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            "audit"
        );
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    /// Nobody waited for the answer, and no service was asked.
    fn drop(&mut self) {
        self.record("GONE");
    }
}
