//! One answer to one scrape, while it is written.

use super::catalogue::{Kind, Metric};
use prometheus::core::Collector;
use prometheus::{CounterVec, GaugeVec, Opts, Registry, TextEncoder};
use std::collections::BTreeMap;
use std::time::Duration;

/// One answer to one scrape. It begins empty: what is gone is in none of the later
/// ones.
#[derive(Default)]
pub struct Page {
    families: BTreeMap<&'static str, Family>,
    registry: Registry,
}

enum Family {
    Counter(CounterVec),
    Gauge(GaugeVec),
}

/// A value as metrics have it: a number with a fraction, in the base unit.
pub trait Value {
    /// The number.
    fn number(self) -> f64;
}

impl Value for f64 {
    fn number(self) -> f64 {
        self
    }
}

impl Value for bool {
    fn number(self) -> f64 {
        f64::from(u8::from(self))
    }
}

impl Value for u32 {
    fn number(self) -> f64 {
        f64::from(self)
    }
}

impl Value for u64 {
    #[allow(clippy::cast_precision_loss)] // exact up to 8 PiB, and close beyond
    fn number(self) -> f64 {
        self as f64
    }
}

impl Value for usize {
    fn number(self) -> f64 {
        u64::try_from(self).unwrap_or(u64::MAX).number()
    }
}

impl Value for Duration {
    fn number(self) -> f64 {
        self.as_secs_f64()
    }
}

impl Page {
    /// Writes a value that goes up and down.
    ///
    /// # Panics
    /// If there are more or fewer labels than the metric has.
    pub fn gauge(&mut self, metric: &Metric, labels: &[&str], value: impl Value) {
        self.put(metric, labels, value.number());
    }

    /// Writes a value that only goes up until it begins anew.
    ///
    /// # Panics
    /// As [`Page::gauge`].
    pub fn counter(&mut self, metric: &Metric, labels: &[&str], value: impl Value) {
        self.put(metric, labels, value.number());
    }

    /// As [`Page::counter`] and [`Page::gauge`], of a value that may not be known:
    /// then nothing is written, which is not zero.
    ///
    /// # Panics
    /// As [`Page::gauge`].
    pub fn known(&mut self, metric: &Metric, labels: &[&str], value: Option<impl Value>) {
        if let Some(value) = value {
            self.put(metric, labels, value.number());
        }
    }

    /// Adds what has its values by itself, such as a histogram.
    ///
    /// # Errors
    /// If there is another of that name.
    pub fn add(&mut self, collector: impl Collector + 'static) -> prometheus::Result<()> {
        self.registry.register(Box::new(collector))
    }

    fn put(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let family = self
            .families
            .entry(metric.name)
            .or_insert_with(|| family(metric));
        match family {
            Family::Counter(family) => family.with_label_values(labels).inc_by(value),
            Family::Gauge(family) => family.with_label_values(labels).set(value),
        }
    }

    /// The whole page, by name.
    pub(super) fn text(self) -> prometheus::Result<String> {
        for family in self.families.into_values() {
            match family {
                Family::Counter(family) => self.registry.register(Box::new(family))?,
                Family::Gauge(family) => self.registry.register(Box::new(family))?,
            }
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn family(metric: &Metric) -> Family {
    let options = Opts::new(metric.name, metric.help);
    const VALID: &str = "the catalogue's names and labels are valid";
    match metric.kind {
        Kind::Counter => Family::Counter(CounterVec::new(options, metric.labels).expect(VALID)),
        // A histogram has its values by itself, see `Page::add`.
        Kind::Gauge | Kind::Histogram => {
            Family::Gauge(GaugeVec::new(options, metric.labels).expect(VALID))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out_and_labels_are_escaped() {
        let mut page = Page::default();
        page.counter(
            &catalogue::VM_CPU,
            &["1", "a \"b\"\n"],
            Duration::from_millis(1500),
        );
        page.known(&catalogue::VM_MEMORY_RESIDENT, &["1", "a"], None::<u64>);
        let text = page.text().unwrap();
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            r#"kvmlet_vm_cpu_seconds_total{name="a \"b\"\n",vm_id="1"} 1.5"#
        );
        assert!(!text.contains(catalogue::VM_MEMORY_RESIDENT.name));
    }

    #[test]
    fn every_metric_of_the_catalogue_can_be_written() {
        let mut page = Page::default();
        for metric in catalogue::ALL {
            let labels: Vec<&str> = metric.labels.to_vec();
            page.put(metric, &labels, 1.0);
        }
        let text = page.text().unwrap();
        for metric in catalogue::ALL {
            assert!(text.contains(&format!("# HELP {} ", metric.name)));
        }
    }
}
