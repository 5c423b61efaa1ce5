//! Health: the agent as a whole, and each service by its name.
//!
//! All are SERVING while the agent is ready, and none is else: a service that
//! reads from memory still answers then, but what it answers may be old.

use crate::service::core::Readiness;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Tells the health of `services` as readiness changes. Ends when `stop` is
/// cancelled; then streams of watchers end too, so that they don't keep their
/// connections open.
pub(super) async fn follow(
    mut reporter: HealthReporter,
    services: &[&str],
    mut readiness: watch::Receiver<Readiness>,
    stop: CancellationToken,
) {
    loop {
        let status = match *readiness.borrow_and_update() {
            Readiness::Ready => ServingStatus::Serving,
            Readiness::Starting | Readiness::HypervisorAway | Readiness::Stopping => {
                ServingStatus::NotServing
            }
        };
        tell(&reporter, services, status).await;
        tokio::select! {
            changed = readiness.changed() => if changed.is_err() { break },
            () = stop.cancelled() => break,
        }
    }
    tell(&reporter, services, ServingStatus::NotServing).await;
    stop.cancelled().await;
    for service in services {
        reporter.clear_service_status(service).await;
    }
}

/// Sets the status of all services.
pub(super) async fn tell(reporter: &HealthReporter, services: &[&str], status: ServingStatus) {
    for service in services {
        reporter.set_service_status(*service, status).await;
    }
}
