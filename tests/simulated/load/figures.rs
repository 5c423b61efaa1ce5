//! What a daemon tells of itself, and what the kernel tells of it.

use crate::support::daemon::Daemon;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Its metrics: each line's value by its name and labels.
#[derive(Debug)]
pub(crate) struct Page(BTreeMap<String, f64>);

impl Page {
    pub(crate) async fn of(daemon: &Daemon) -> Self {
        let mut stream = UnixStream::connect(daemon.metrics_socket()).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: kvmlet\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let values = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Self(values.collect())
    }

    #[track_caller]
    pub(crate) fn value(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub(crate) fn connections(&self) -> f64 {
        self.value("kvmlet_connections")
    }

    pub(crate) fn at_work(&self) -> f64 {
        self.value("kvmlet_calls_at_work")
    }

    /// Connections that were closed, by why.
    pub(crate) fn closed(&self, reason: &str) -> f64 {
        self.value(&format!(
            "kvmlet_connections_refused_total{{reason=\"{reason}\"}}"
        ))
    }

    /// Calls that were refused, by reason.
    pub(crate) fn refused(&self, reason: &str) -> f64 {
        let name = format!("kvmlet_calls_refused_total{{reason=\"{reason}\"}}");
        self.0.get(&name).copied().unwrap_or(0.0)
    }

    /// All that were refused.
    pub(crate) fn refusals(&self) -> Vec<(&str, f64)> {
        let names = ["kvmlet_connections_refused", "kvmlet_calls_refused"];
        let of_them = |name: &&String| names.iter().any(|begin| name.starts_with(begin));
        let told = self.0.iter().filter(|(name, _)| of_them(name));
        told.filter(|(_, value)| **value > 0.0)
            .map(|(name, value)| (name.as_str(), *value))
            .collect()
    }
}

/// What a process has of memory, in MiB: now, and at most since its start.
pub(crate) fn memory(daemon: &Daemon) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse::<u64>().unwrap() >> 10
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// How many descriptors a process has open.
pub(crate) fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count()
}

/// How long calls took: how many, the middle one, and 99 of 100.
pub(crate) fn latency(mut took: Vec<Duration>) -> (usize, Duration, Duration) {
    took.sort_unstable();
    let at = |share: usize| {
        took.get(took.len() * share / 100)
            .copied()
            .unwrap_or_default()
    };
    (took.len(), at(50), at(99))
}
