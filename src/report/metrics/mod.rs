//! Metrics of this host and its VMs, in Prometheus' text format.
//!
//! Invariant: a scrape waits for libvirt no longer than for one call with a short
//! deadline; all else comes from memory. What libvirt does not tell in time is left
//! out, and that it is, is said.
//!
//! All of them stand in the [`catalogue`].

pub mod catalogue;
mod host;
mod page;
mod server;
mod vms;

pub use page::Page;
pub use server::{Listeners, serve};

use crate::service::Core;
use crate::service::stats::StatsReader;
use std::sync::Arc;
use std::time::Instant;

/// All metrics.
pub struct Metrics {
    core: Arc<Core>,
    stats: StatsReader,
}

impl Metrics {
    /// The metrics of the service.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            stats: StatsReader::default(),
        }
    }

    /// Reads all of them and writes them as text.
    ///
    /// # Errors
    /// A metric that is named twice in different ways.
    pub async fn scrape(&self) -> prometheus::Result<String> {
        let begin = Instant::now();
        let stats = self.stats.read(&self.core.hypervisor).await;
        let mut page = Page::default();
        page.gauge(&catalogue::LIBVIRT_STATS_UP, &[], stats.is_some());
        vms::fill(&mut page, &self.core, stats.as_deref());
        host::fill(&mut page, &self.core)?;
        let took = begin.elapsed().as_secs_f64();
        page.gauge(&catalogue::SCRAPE_DURATION, &[], took);
        page.text()
    }
}
