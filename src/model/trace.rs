//! The trace that a call belongs to, as its caller says it: W3C trace context.
//!
//! Invariant: a value holds ids that the standard allows. What a caller says
//! wrongly is no value, and never an error: a trace is no reason to refuse a call.
//!
//! <https://www.w3.org/TR/trace-context/>

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Characters of the first version's `traceparent`.
const LENGTH: usize = 55;
/// Members of a `tracestate`.
const MEMBERS: usize = 32;
/// Characters of a `tracestate` that are carried on.
const STATE: usize = 512;
/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// A span of a caller's, which ours are children of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
    state: String,
}

/// The same as its two headers.
#[derive(Serialize, Deserialize)]
struct Written {
    traceparent: String,
    #[serde(default)]
    tracestate: String,
}

impl TraceParent {
    /// A span by its ids, of which none may be 0.
    pub fn new(trace_id: u128, span_id: u64, sampled: bool) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then(|| Self {
            trace_id,
            span_id,
            sampled,
            state: String::new(),
        })
    }

    /// Reads a `traceparent`. Of versions after the first, what the first has.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.as_bytes().get(LENGTH..)?;
        let mut parts = text.get(..LENGTH)?.split('-');
        let mut part = |digits: usize| {
            let part = parts.next()?;
            let plain = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            (part.len() == digits && part.bytes().all(plain)).then_some(part)
        };
        let (version, trace_id, span_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let known = match version {
            "ff" => false,
            "00" => rest.is_empty(),
            _ => matches!(rest.first(), None | Some(b'-')),
        };
        if !known {
            return None;
        }
        Self::new(
            u128::from_str_radix(trace_id, 16).ok()?,
            u64::from_str_radix(span_id, 16).ok()?,
            u8::from_str_radix(flags, 16).ok()? & SAMPLED != 0,
        )
    }

    /// With what the tracing systems on the way have added, a `tracestate`; without,
    /// if it is malformed or longer than 512 characters.
    #[must_use]
    pub fn with_state(mut self, text: &str) -> Self {
        self.state = state(text).unwrap_or_default();
        self
    }

    /// The trace's id.
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The span's id.
    pub const fn span_id(&self) -> u64 {
        self.span_id
    }

    /// Whether the caller records the trace.
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The `tracestate`; empty if there is none.
    pub fn state(&self) -> &str {
        &self.state
    }

    /// The trace's id as it is written: 32 digits.
    pub fn trace_id_text(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace_id, span_id, flags) = (self.trace_id, self.span_id, u8::from(self.sampled));
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    }
}

impl From<TraceParent> for Written {
    fn from(parent: TraceParent) -> Self {
        Self {
            traceparent: parent.to_string(),
            tracestate: parent.state,
        }
    }
}

impl TryFrom<Written> for TraceParent {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        Self::parse(&written.traceparent)
            .map(|parent| parent.with_state(&written.tracestate))
            .ok_or("is no traceparent")
    }
}

/// Reads a `tracestate`: members of different names, without the spaces between.
fn state(text: &str) -> Option<String> {
    let members: Vec<&str> = text
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|member| !member.is_empty())
        .collect();
    let mut names = BTreeSet::new();
    for member in &members {
        let (name, value) = member.split_once('=')?;
        if !is_name(name) || !is_value(value) || !names.insert(name) {
            return None;
        }
    }
    let joined = members.join(",");
    (members.len() <= MEMBERS && joined.len() <= STATE).then_some(joined)
}

/// Whether it is a member's name: a system's, or a tenant's `@` a system's.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
    let is = |part: &str, digit_first: bool, length: usize| {
        (1..=length).contains(&part.len())
            && part.bytes().all(plain)
            && part.starts_with(|first: char| {
                first.is_ascii_lowercase() || (digit_first && first.is_ascii_digit())
            })
    };
    match name.split_once('@') {
        None => is(name, false, 256),
        Some((tenant, system)) => is(tenant, true, 241) && is(system, false, 14),
    }
}

/// Whether it is a member's value: printable, and not ending in a space.
fn is_value(value: &str) -> bool {
    let printable = |b: u8| matches!(b, b' '..=b'~') && b != b',' && b != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(printable) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_read_is_what_is_written() {
        let parent = TraceParent::parse(GIVEN).unwrap().with_state("a=1 , b@c=2");
        assert_eq!(parent.to_string(), GIVEN);
        assert_eq!(parent.trace_id_text(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.span_id(), 0xb7ad_6b71_6920_3331);
        assert_eq!(parent.state(), "a=1,b@c=2");
        assert!(parent.is_sampled());
        let text = serde_json::to_string(&parent).unwrap();
        assert_eq!(serde_json::from_str::<TraceParent>(&text).unwrap(), parent);
    }

    #[test]
    fn a_malformed_traceparent_is_none() {
        let ids = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        for text in [
            String::new(),
            format!("00-{ids}"),
            format!("00-{ids}-1"),
            format!("00-{ids}-0g"),
            format!("00-{ids}-01-more"),
            format!(" 00-{ids}-01"),
            format!("ff-{ids}-01"),
            format!("cc-{ids}-01.more"),
            GIVEN.to_uppercase(),
            GIVEN.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01".to_owned(),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01".to_owned(),
            "00-0af7651916cd43dd8448eb211c80319cb-7ad6b7169203331-01".to_owned(),
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-0".to_owned(),
        ] {
            assert_eq!(TraceParent::parse(&text), None, "{text:?}");
        }
    }

    #[test]
    fn of_a_later_version_the_first_ones_part_is_read() {
        let ids = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        for (text, sampled) in [
            (format!("cc-{ids}-01"), true),
            (format!("cc-{ids}-02-more"), false),
            (format!("00-{ids}-ff"), true),
        ] {
            let parent = TraceParent::parse(&text).unwrap();
            assert_eq!(parent.is_sampled(), sampled, "{text:?}");
        }
    }

    #[test]
    fn a_malformed_state_is_left_out_and_the_parent_kept() {
        let many: Vec<String> = (0..33).map(|n| format!("a{n}=1")).collect();
        let many = many.join(",");
        let long = format!("a={},b={}", "x".repeat(256), "x".repeat(256));
        for text in [
            "a", "a=", "=1", "A=1", "1a=1", "a=1,a=2", "a=b=c", "a@=1", "@a=1", "a@1b=1", "a=é",
            &many, &long,
        ] {
            let parent = TraceParent::parse(GIVEN).unwrap().with_state(text);
            assert_eq!(parent.state(), "", "{text:?}");
        }
        let parent = TraceParent::parse(GIVEN).unwrap();
        assert_eq!(
            parent.with_state("1t@sys=x y,,b=2").state(),
            "1t@sys=x y,b=2"
        );
    }
}
