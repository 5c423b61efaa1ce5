//! Metrics of this host and its VMs, in Prometheus' text format.
//!
//! Invariant: a scrape waits for libvirt no longer than for one call with a short
//! deadline; all else comes from memory. What libvirt does not tell in time is left
//! out, and that it is, is said.
//!
//! What is counted elsewhere is added by a [`Source`] of its own; its metrics stand
//! in the [`catalogue`].

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

/// A part that has metrics of its own.
pub trait Source: Send + Sync {
    /// Writes them, from memory: it is called in each scrape and must not block.
    fn fill(&self, page: &mut Page);
}

/// All metrics.
pub struct Metrics {
    core: Arc<Core>,
    stats: StatsReader,
    sources: Vec<Arc<dyn Source>>,
}

impl Metrics {
    /// The metrics of the service, and those of further sources.
    pub fn new(core: Arc<Core>, sources: Vec<Arc<dyn Source>>) -> Self {
        Self {
            core,
            stats: StatsReader::default(),
            sources,
        }
    }

    /// Reads all of them and writes them as text.
    ///
    /// # Errors
    /// Two sources that name the same metric in different ways.
    pub async fn scrape(&self) -> prometheus::Result<String> {
        let begin = Instant::now();
        let stats = self.stats.read(&self.core.hypervisor).await;
        let mut page = Page::default();
        page.gauge(&catalogue::LIBVIRT_STATS_UP, &[], stats.is_some());
        vms::fill(&mut page, &self.core, stats.as_deref());
        host::fill(&mut page, &self.core)?;
        for source in &self.sources {
            source.fill(&mut page);
        }
        let took = begin.elapsed().as_secs_f64();
        page.gauge(&catalogue::SCRAPE_DURATION, &[], took);
        page.text()
    }
}
