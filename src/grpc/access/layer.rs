//! Stands before all services.

use super::body::{Answer, Broken, Made, Request as Reading};
use super::stream::Stream;
use super::table::{self, Kind, Rule};
use super::{Admitted, stranger, unless_allowed};
use crate::door::{AtWork, Door, Peer, Stranger};
use crate::grpc::audit::Entry;
use crate::grpc::status;
use crate::model::fault::Fault;
use crate::model::reason::Reason;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Stands before all services.
#[derive(Clone)]
pub(in crate::grpc) struct Guard(pub(in crate::grpc) Arc<Door>);

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            door: self.0.clone(),
            inner,
        }
    }
}

/// The services, guarded.
#[derive(Clone)]
pub(in crate::grpc) struct Guarded<S> {
    door: Arc<Door>,
    inner: S,
}

/// A call that may go on.
struct Pass {
    rule: Rule,
    peer: Arc<Peer>,
    admitted: Admitted,
    work: AtWork,
    watch: Option<AtWork>,
}

/// A call that may not, and what is recorded of it.
struct Refused {
    fault: Fault,
    entry: Option<Arc<Entry>>,
}

type Answers = Pin<Box<dyn Future<Output = Result<Response<Body>, StdError>> + Send>>;
type StdError = tonic::codegen::StdError;

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<StdError>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = StdError;
    type Future = Answers;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answers {
        let pass = match admit(&self.door, &request) {
            Ok(pass) => pass,
            Err(refused) => return Box::pin(async move { Ok(refuse(&refused)) }),
        };
        let limits = self.door.limits();
        let broken = Arc::new(Broken::default());
        let streams = pass.rule.kind == Kind::Stream;
        request.extensions_mut().insert(pass.admitted.clone());
        let request = request.map(|body| {
            let within = (!streams).then_some(limits.request_time);
            let most = limits.request_memory.get();
            let all = self.door.reading();
            Body::new(Reading::new(body, all, most, within, broken.clone()))
        });
        let answer = self.inner.call(request);
        let door = self.door.clone();
        let name = pass.admitted.name.clone();
        Box::pin(self.door.in_turn(&name, async move {
            let answer = answer.await.map_err(Into::into)?;
            let answer = with_reason(answer, &pass, &broken, &door);
            if let Some(entry) = &pass.admitted.entry {
                entry.answered(&answer);
            }
            if streams {
                let Pass {
                    rule,
                    peer,
                    work,
                    watch,
                    ..
                } = pass;
                return Ok(answer.map(|body| {
                    let judged = Stream::new(body, door, peer, rule);
                    Body::new(Answer::stream(Body::new(judged), work, watch))
                }));
            }
            let (head, body) = answer.into_parts();
            let made = match Made::of(body).await {
                Ok(made) => made,
                Err(status) => return Ok(status.into_http()),
            };
            let unread = door.answer(&pass.admitted.name, made.bytes());
            // What was done is told in any case.
            if unread.is_none() && pass.rule.kind == Kind::Read {
                return Ok(too_much_unread(&door, pass.rule.rpc));
            }
            let within = limits.answer_time;
            let answer = Answer::whole(made, unread, pass.work, within, door, pass.peer);
            Ok(Response::from_parts(head, Body::new(answer)))
        }))
    }
}

/// Looks at who asks for what.
fn admit(door: &Door, request: &Request<Body>) -> Result<Pass, Refused> {
    let path = request.uri().path();
    let peer = request.extensions().get::<Arc<Peer>>();
    let refused = |fault: Fault, entry| {
        count(door, fault.reason);
        if let Some(peer) = peer {
            door.is_refused(peer);
        }
        Refused { fault, entry }
    };
    let judged = peer.map_or(Err(Stranger::Nameless), |peer| door.judge(peer));
    let (Some(peer), Ok(known)) = (peer, &judged) else {
        let why = judged.err().unwrap_or(Stranger::Nameless);
        let audited = table::rule(path).filter(|rule| rule.kind.is_audited());
        let entry = audited.map(|rule| Arc::new(Entry::by_stranger(rule.rpc, peer)));
        return Err(refused(stranger(why), entry));
    };
    let Some(rule) = table::rule(path) else {
        let path: String = path.chars().take(128).collect();
        if door.calls_told.is_due() {
            tracing::info!(?path, caller = &*known.name, "call refused: there is none");
        } else {
            tracing::debug!(?path, caller = &*known.name, "call refused: there is none");
        }
        let words = "this version of kvmlet does not have the call";
        return Err(refused(Fault::new(Reason::NotYet, words), None));
    };
    let audited = rule.kind.is_audited();
    let entry = audited.then(|| Arc::new(Entry::open(rule.rpc, known, peer)));
    let role = match unless_allowed(&rule, known.role) {
        Ok(role) => role,
        Err(fault) => return Err(refused(fault, entry)),
    };
    let Some(work) = door.begin(known) else {
        let fault = Fault::new(Reason::TooManyCalls, "too many calls are at work already");
        return Err(refused(fault, entry));
    };
    let watch = match rule.kind {
        Kind::Stream => match door.watch(&known.name) {
            Some(watch) => Some(watch),
            None => {
                let fault = Fault::new(
                    Reason::TooManyWatchers,
                    "the caller has too many streams open already",
                );
                return Err(refused(fault, entry));
            }
        },
        Kind::Read | Kind::Change | Kind::Console => None,
    };
    Ok(Pass {
        rule,
        peer: peer.clone(),
        admitted: Admitted {
            name: known.name.clone(),
            role,
            entry,
        },
        work,
        watch,
    })
}

fn refuse(refused: &Refused) -> Response<Body> {
    let fault = &refused.fault;
    match &refused.entry {
        Some(entry) => entry.refused(fault.reason),
        None => tracing::debug!(reason = fault.reason.as_str(), "call refused at the door"),
    }
    status::refusal(fault).into_http()
}

/// What the transport refused gets its reason; only calls of `kvmlet.v1` are looked
/// at, as health and reflection have words of their own. An answer that has details
/// has been given by us and is left alone.
fn with_reason(
    answer: Response<Body>,
    pass: &Pass,
    broken: &Broken,
    door: &Door,
) -> Response<Body> {
    // A refusal without any message has its status in the headers.
    let headers = answer.headers();
    let Some(code) = headers.get("grpc-status") else {
        return answer;
    };
    if headers.contains_key("grpc-status-details-bin") {
        return answer;
    }
    let code = tonic::Code::from_bytes(code.as_bytes());
    let status = if broken.memory.load(Ordering::Relaxed) {
        let fault = Fault::new(
            Reason::TooManyCalls,
            "there is no memory for the request now",
        );
        count(door, fault.reason);
        Some(status::refusal(&fault))
    } else if broken.time.load(Ordering::Relaxed) {
        let fault = Fault::new(Reason::DeadlinePassed, "reading the request took too long");
        count(door, fault.reason);
        Some(status::refusal(&fault))
    } else if pass.rule.ours && code != tonic::Code::Ok {
        status::refused_by_transport(code, door.limits().request_size)
    } else {
        None
    };
    match status {
        Some(status) => {
            told(door, pass.rule.rpc, status.message());
            status.into_http()
        }
        None => answer,
    }
}

/// There is no memory for one more answer that may not be read.
fn too_much_unread(door: &Door, rpc: &str) -> Response<Body> {
    let fault = Fault::new(
        Reason::TooManyCalls,
        "too many answers to the caller are not read yet",
    );
    count(door, fault.reason);
    told(door, rpc, &fault.message);
    status::refusal(&fault).into_http()
}

fn count(door: &Door, reason: Reason) {
    let figures = &door.figures.calls_refused;
    figures.with_label_values(&[reason.as_str()]).inc();
}

/// Says in the log that a call was refused by the transport, now and then.
fn told(door: &Door, rpc: &str, why: &str) {
    if door.calls_told.is_due() {
        tracing::info!(rpc, why, "call refused");
    } else {
        tracing::debug!(rpc, why, "call refused");
    }
}
