//! The doors that metrics are read through: HTTP, and nothing but `GET /metrics`.

use super::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::io;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

/// Where those who scrape come in: sockets that are bound and listen already.
#[derive(Debug, Default)]
pub struct Listeners {
    /// A TCP socket, if one is configured.
    pub tcp: Option<TcpListener>,
    /// A Unix socket, if one is configured.
    pub unix: Option<UnixListener>,
}

/// Serves until `stop` is cancelled, then lets the scrapes at work finish.
///
/// # Errors
/// A listener that failed for good.
pub async fn serve(
    metrics: Arc<Metrics>,
    listeners: Listeners,
    stop: CancellationToken,
) -> io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(scrape))
        .with_state(metrics);
    let tcp = async {
        match listeners.tcp {
            Some(tcp) => {
                axum::serve(tcp, routes.clone())
                    .with_graceful_shutdown(stop.clone().cancelled_owned())
                    .await
            }
            None => Ok(()),
        }
    };
    let unix = async {
        match listeners.unix {
            Some(unix) => {
                axum::serve(unix, routes.clone())
                    .with_graceful_shutdown(stop.clone().cancelled_owned())
                    .await
            }
            None => Ok(()),
        }
    };
    tokio::try_join!(tcp, unix)?;
    Ok(())
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.scrape().await {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
