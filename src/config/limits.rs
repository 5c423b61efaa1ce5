//! `[limits]`: how much callers may ask for at once, so that none of them can take
//! the agent from the others.

use super::section::Section;
use crate::model::bytes::Bytes;
use std::ops::RangeInclusive;
use std::time::Duration;

const WAIT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// How much callers may ask for at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitSettings {
    /// Connections at once, on the Unix socket and over TCP each; further ones are
    /// closed.
    pub connections: usize,
    /// The same for one caller.
    pub connections_per_caller: usize,
    /// Calls at once, of all callers; of those of viewers, three quarters.
    pub calls: usize,
    /// Calls at once of one caller.
    pub calls_per_caller: usize,
    /// Calls at once on one connection.
    pub calls_per_connection: u32,
    /// The largest request.
    pub request_size: Bytes,
    /// Memory for all requests that are being read.
    pub request_memory: Bytes,
    /// The largest header of a call, all its fields together.
    pub header_size: Bytes,
    /// The longest page of a list.
    pub page_size: u32,
    /// How long a handshake, and reading a request, may take.
    pub request_time: Duration,
    /// How long a caller may take to read an answer.
    pub answer_time: Duration,
    /// How long a connection may bring nothing, not even an answer to a ping.
    pub silence: Duration,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_caller: 256,
            calls: 4096,
            calls_per_caller: 2048,
            calls_per_connection: 256,
            request_size: Bytes::mib(4),
            request_memory: Bytes::mib(64),
            header_size: Bytes(16 << 10),
            page_size: 1000,
            request_time: Duration::from_secs(10),
            answer_time: Duration::from_secs(30),
            silence: Duration::from_secs(60),
        }
    }
}

pub(super) fn limits(section: Section<'_>) -> LimitSettings {
    let default = LimitSettings::default();
    let count = |key, default| section.number(key, 1..=1_000_000).unwrap_or(default);
    let wait = |key, default| section.duration(key, WAIT).unwrap_or(default);
    let size = |key, range, default| section.size(key, range).unwrap_or(default);
    let settings = LimitSettings {
        connections: count("connections", default.connections),
        connections_per_caller: count("connections_per_caller", default.connections_per_caller),
        calls: count("calls", default.calls),
        calls_per_caller: count("calls_per_caller", default.calls_per_caller),
        calls_per_connection: section
            .number("calls_per_connection", 1..=100_000)
            .unwrap_or(default.calls_per_connection),
        request_size: size(
            "request_size",
            Bytes(64 << 10)..=Bytes::mib(64),
            default.request_size,
        ),
        request_memory: size(
            "request_memory",
            Bytes::mib(1)..=Bytes::gib(16),
            default.request_memory,
        ),
        header_size: size(
            "header_size",
            Bytes(4 << 10)..=Bytes::mib(1),
            default.header_size,
        ),
        page_size: section
            .number("page_size", 1..=1000)
            .unwrap_or(default.page_size),
        request_time: wait("request_time", default.request_time),
        answer_time: wait("answer_time", default.answer_time),
        silence: wait("silence", default.silence),
    };
    if settings.request_memory < settings.request_size {
        section.fault("request_memory", "is less than request_size");
    }
    section.finish();
    settings
}
