//! Figures of all domains, for those who watch the host.
//!
//! Invariant: nobody waits for libvirt longer than for one call with a short
//! deadline, and those who ask at once share it. What is too old is not told as if
//! it were new.

use super::fault::chain;
use super::gate::Lane;
use super::hypervisor::Hypervisor;
pub use crate::libvirt::{DiskStats, DiskUse, DomainStats, MemoryStats, NicStats, NicUse};
use crate::model::ids::VmId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// For how long an answer serves those who ask later.
const FRESH: Duration = Duration::from_millis(250);

/// Figures of all domains.
pub type AllStats = Arc<HashMap<VmId, DomainStats>>;

/// Reads the figures of all domains, at most so often.
#[derive(Debug, Default)]
pub struct StatsReader {
    last: Mutex<Option<Taken>>,
}

#[derive(Debug)]
struct Taken {
    at: Instant,
    /// `None` if libvirt did not answer.
    stats: Option<AllStats>,
}

impl StatsReader {
    /// Reads the figures of all domains with one call to libvirt, or with none if
    /// others have just asked or libvirt is away. `None` if it does not answer in time.
    pub async fn read(&self, hypervisor: &Hypervisor) -> Option<AllStats> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        // What came while this one waited for its turn is new enough, and so is
        // that nothing came.
        if let Some(taken) = &*last
            && (taken.at >= asked || taken.at.elapsed() < FRESH)
        {
            return taken.stats.clone();
        }
        let stats = take(hypervisor).await;
        *last = Some(Taken {
            at: Instant::now(),
            stats: stats.clone(),
        });
        stats
    }
}

async fn take(hypervisor: &Hypervisor) -> Option<AllStats> {
    if !hypervisor.is_up() {
        return None;
    }
    match hypervisor.try_call(Lane::Stats, |host| host.stats()).await {
        Ok(Ok(stats)) => Some(Arc::new(stats)),
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "statistics could not be read");
            None
        }
        Err(fault) => {
            tracing::warn!(error = chain(&fault), "statistics could not be read");
            None
        }
    }
}
