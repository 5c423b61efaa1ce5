//! What tonic refuses by itself (a message that can't be decoded or is too
//! large, a call that does not exist) gets its reason like everything else.
//!
//! Only calls of `kvmlet.v1` are looked at; health and reflection have words of
//! their own. An answer that has details has been given by us and is left alone.

use super::status;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Wraps all services.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusals;

impl<S> Layer<S> for Refusals {
    type Service = WithReasons<S>;

    fn layer(&self, inner: S) -> WithReasons<S> {
        WithReasons { inner }
    }
}

/// The services, wrapped.
#[derive(Debug, Clone)]
pub(super) struct WithReasons<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for WithReasons<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let rpc = path
            .starts_with("/kvmlet.v1.")
            .then(|| path.chars().take(128).collect());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(match rpc {
                Some(rpc) => with_reason(answer, rpc),
                None => answer,
            })
        })
    }
}

fn with_reason(answer: Response<Body>, rpc: String) -> Response<Body> {
    // A refusal without any message has its status in the headers.
    let headers = answer.headers();
    let Some(code) = headers.get("grpc-status") else {
        return answer;
    };
    if headers.contains_key("grpc-status-details-bin") {
        return answer;
    }
    let code = tonic::Code::from_bytes(code.as_bytes());
    match status::refused_by_transport(code) {
        Some(status) => {
            tracing::info!(?rpc, why = status.message(), "call refused");
            status.into_http()
        }
        None => answer,
    }
}
