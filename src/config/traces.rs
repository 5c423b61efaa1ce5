//! `[traces]`: where the spans of calls and operations are sent.

use super::features::{Features, missing};
use super::report::{host, is_loopback};
use super::section::Section;

/// Where spans are sent; nowhere unless configured.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// A collector that takes OTLP over gRPC.
    pub endpoint: Option<String>,
    /// Which part of the traces that begin here is sent, 0 to 1. Of those that
    /// began elsewhere, the caller says whether they are.
    pub sample_ratio: f64,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self {
            endpoint: None,
            sample_ratio: 1.0,
        }
    }
}

pub(super) fn traces(section: Section<'_>, built: Features) -> TraceSettings {
    let settings = TraceSettings {
        endpoint: section.parsed("endpoint", check_collector),
        sample_ratio: section
            .ratio("sample_ratio", 0.0..=1.0)
            .unwrap_or(TraceSettings::default().sample_ratio),
    };
    if section.has("endpoint") && !built.traces {
        missing(&section, "endpoint", "traces");
    }
    if section.has("sample_ratio") && !section.has("endpoint") {
        section.fault("sample_ratio", "needs an endpoint");
    }
    section.finish();
    settings
}

/// What is told leaves the host encrypted, or not at all.
fn check_collector(text: &str) -> Result<String, &'static str> {
    const KINDS: &str = "must be http://HOST:PORT or https://HOST:PORT";
    let (scheme, authority) = text.split_once("://").ok_or(KINDS)?;
    let host = host(authority).ok_or(KINDS)?;
    match scheme {
        "https" => Ok(text.to_owned()),
        "http" if is_loopback(host) => Ok(text.to_owned()),
        "http" => Err("must be https:// beyond this host"),
        _ => Err(KINDS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_leave_the_host_only_encrypted() {
        for text in [
            "http://127.0.0.1:4317",
            "http://[::1]:4317",
            "http://localhost:4317",
            "https://collector.example:4317",
        ] {
            assert_eq!(check_collector(text).as_deref(), Ok(text));
        }
        let clear = check_collector("http://10.0.0.1:4317");
        assert_eq!(clear, Err("must be https:// beyond this host"));
        for text in [
            "127.0.0.1:4317",
            "unix:///run/otlp.sock",
            "http://:1",
            "https://a:1/x",
        ] {
            assert!(check_collector(text).is_err(), "{text:?}");
        }
    }
}
