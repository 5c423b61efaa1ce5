//! `[[report]]` and `[[nats]]`: whom the agent tells of what changes.

use super::check::{check_name, required};
use super::features::{Features, missing};
use super::section::{Section, check_path};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A control plane that the agent calls and reports to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportSettings {
    /// Its name, unique among all sinks.
    pub name: String,
    /// Where it can be reached: `http://`, `https://` or `unix://`, at least one.
    pub endpoints: Vec<String>,
    /// How long to wait, and how often to say that the agent lives.
    pub pace: Pace,
    /// With what `https` is checked and proved.
    pub tls: Option<TlsFiles>,
}

/// A NATS server whose JetStream gets the events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsSettings {
    /// Its name, unique among all sinks.
    pub name: String,
    /// Where it can be reached: `nats://` or `tls://`, at least one.
    pub servers: Vec<String>,
    /// The stream that must store the events.
    pub stream: String,
    /// Makes the stream if it is missing.
    pub create_stream: bool,
    /// What every subject begins with.
    pub subject_prefix: String,
    /// How the data is written.
    pub encoding: Encoding,
    /// Who the agent is.
    pub login: NatsLogin,
    /// How long to wait, and how often to say that the agent lives.
    pub pace: Pace,
    /// With what `tls` is checked and proved.
    pub tls: Option<TlsFiles>,
}

/// How data is written on a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// The JSON mapping of proto3.
    #[default]
    Json,
    /// The protobuf message.
    Protobuf,
}

/// Who the agent is for a NATS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatsLogin {
    /// Nobody in particular.
    None,
    /// Who this file of credentials (a JWT and its seed) says.
    Credentials(PathBuf),
    /// A user whose password is in this file.
    User {
        /// The user.
        name: String,
        /// The file; a final newline does not count.
        password_file: PathBuf,
    },
}

/// How long a sink waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// How long an acknowledgement may take before the connection counts as dead.
    pub ack_timeout: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            heartbeat: 10 * SECOND,
            ack_timeout: 30 * SECOND,
        }
    }
}

/// Files in PEM form for TLS. They are read at each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of those who may vouch for the server.
    pub ca_file: PathBuf,
    /// The agent's own certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

pub(super) fn report(file: &Section<'_>, names: &mut Vec<String>) -> Vec<ReportSettings> {
    let mut sinks = Vec::new();
    for section in file.sections("report") {
        let name = unique_name(&section, names);
        let tls = tls(&section);
        let insecure = section.flag("insecure").unwrap_or(false);
        let check = |text: &str| check_endpoint(text, tls.is_some(), insecure);
        let endpoints = some(&section, "endpoints", check);
        let pace = pace(&section);
        section.finish();
        if let (Some(name), Some(endpoints)) = (name, endpoints) {
            sinks.push(ReportSettings {
                name,
                endpoints,
                pace,
                tls,
            });
        }
    }
    sinks
}

pub(super) fn nats(
    file: &Section<'_>,
    names: &mut Vec<String>,
    built: Features,
) -> Vec<NatsSettings> {
    let mut sinks = Vec::new();
    for section in file.sections("nats") {
        if !built.nats {
            missing(&section, "", "nats");
        }
        let name = unique_name(&section, names);
        let tls = tls(&section);
        let insecure = section.flag("insecure").unwrap_or(false);
        let servers = some(&section, "servers", |text| check_server(text, insecure));
        let stream = section.parsed("stream", check_token);
        let create_stream = section.flag("create_stream").unwrap_or(false);
        let prefix = section.parsed("subject_prefix", |text| {
            text.split('.')
                .try_for_each(|token| check_token(token).map(drop))?;
            Ok::<_, &str>(text.to_owned())
        });
        let encodings = [("json", Encoding::Json), ("protobuf", Encoding::Protobuf)];
        let encoding = section.choice("encoding", Encoding::default(), &encodings);
        let login = login(&section);
        let pace = pace(&section);
        section.finish();
        if let (Some(name), Some(servers)) = (name, servers) {
            sinks.push(NatsSettings {
                name,
                servers,
                stream: stream.unwrap_or_else(|| "KVMLET".to_owned()),
                create_stream,
                subject_prefix: prefix.unwrap_or_else(|| "kvmlet".to_owned()),
                encoding,
                login,
                pace,
                tls,
            });
        }
    }
    sinks
}

/// A name that no other sink has: what the journal knows the receiver by.
fn unique_name(section: &Section<'_>, names: &mut Vec<String>) -> Option<String> {
    let name = required(section, "name", check_name)?;
    if names.contains(&name) {
        section.fault("name", format_args!("{name:?} is taken by another sink"));
    }
    names.push(name.clone());
    Some(name)
}

/// A list that must have something in it.
fn some(
    section: &Section<'_>,
    key: &'static str,
    check: impl Fn(&str) -> Result<String, &'static str>,
) -> Option<Vec<String>> {
    if !section.has(key) {
        section.fault(key, "is missing");
        return None;
    }
    let list = section.list(key, check)?;
    if list.is_empty() {
        section.fault(key, "must name at least one");
    }
    Some(list)
}

fn pace(section: &Section<'_>) -> Pace {
    let default = Pace::default();
    Pace {
        heartbeat: section
            .duration("heartbeat", SECOND..=HOUR)
            .unwrap_or(default.heartbeat),
        ack_timeout: section
            .duration("ack_timeout", SECOND..=HOUR)
            .unwrap_or(default.ack_timeout),
    }
}

fn tls(section: &Section<'_>) -> Option<TlsFiles> {
    if !section.has("tls") {
        return None;
    }
    let section = section.section("tls");
    let ca_file = required(&section, "ca_file", check_path);
    let cert = section.absolute_path("cert_file");
    let key = section.absolute_path("key_file");
    if section.has("cert_file") != section.has("key_file") {
        section.fault("", "needs both of cert_file and key_file, or none");
    }
    section.finish();
    Some(TlsFiles {
        ca_file: ca_file?,
        own: cert.zip(key),
    })
}

fn login(section: &Section<'_>) -> NatsLogin {
    let credentials = section.absolute_path("credentials_file");
    let user = section.parsed("user", |text| {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err("is not the name of a user");
        }
        Ok(text.to_owned())
    });
    let password_file = section.absolute_path("password_file");
    if section.has("user") != section.has("password_file") {
        section.fault("", "needs both of user and password_file, or none");
    }
    if section.has("credentials_file") && section.has("user") {
        section.fault("", "needs one of credentials_file and user, not both");
    }
    match (credentials, user.zip(password_file)) {
        (Some(file), _) => NatsLogin::Credentials(file),
        (None, Some((name, password_file))) => NatsLogin::User {
            name,
            password_file,
        },
        (None, None) => NatsLogin::None,
    }
}

/// Takes where a ReportService may be, and in clear only what stays on the host.
fn check_endpoint(text: &str, tls: bool, insecure: bool) -> Result<String, &'static str> {
    const KINDS: &str =
        "must be http://HOST:PORT, https://HOST:PORT or unix:// and an absolute path";
    if let Some(path) = text.strip_prefix("unix://") {
        check_path(path)?;
        return Ok(text.to_owned());
    }
    let (scheme, authority) = text.split_once("://").ok_or(KINDS)?;
    let host = host(authority).ok_or(KINDS)?;
    match scheme {
        "https" if !tls => Err("needs tls = { ca_file = … }"),
        "https" => Ok(text.to_owned()),
        "http" if insecure || is_loopback(host) => Ok(text.to_owned()),
        "http" => Err("must be https:// beyond this host, or insecure = true"),
        _ => Err(KINDS),
    }
}

/// Takes where a NATS server may be, and in clear only what stays on the host.
fn check_server(text: &str, insecure: bool) -> Result<String, &'static str> {
    const KINDS: &str = "must be nats://HOST:PORT or tls://HOST:PORT";
    let (scheme, authority) = text.split_once("://").ok_or(KINDS)?;
    let host = host(authority).ok_or(KINDS)?;
    match scheme {
        "tls" => Ok(text.to_owned()),
        "nats" if insecure || is_loopback(host) => Ok(text.to_owned()),
        "nats" => Err("must be tls:// beyond this host, or insecure = true"),
        _ => Err(KINDS),
    }
}

/// The host of `HOST:PORT`; nothing else may stand there, least of all a password.
pub(super) fn host(authority: &str) -> Option<&str> {
    let (host, port) = authority.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let name = host
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match inner {
        Some(inner) => inner.parse::<IpAddr>().is_ok().then_some(inner),
        None => (name && !host.is_empty()).then_some(host),
    }
}

/// Whether a host is this one, by its name or address.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Takes what may be a stream's name and a part of a subject.
fn check_token(text: &str) -> Result<String, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("must be made of letters, digits, underscores and hyphens")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_reached_in_clear_unless_that_is_asked_for() {
        for text in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
            assert!(check_endpoint(text, false, false).is_ok(), "{text}");
        }
        assert!(check_endpoint("http://10.0.0.1:1", false, false).is_err());
        assert!(check_endpoint("http://10.0.0.1:1", false, true).is_ok());
        assert!(check_endpoint("https://cp.example:1", false, true).is_err());
        assert!(check_endpoint("https://cp.example:1", true, false).is_ok());
        assert!(check_server("nats://cp.example:1", false).is_err());
        assert!(check_server("nats://cp.example:1", true).is_ok());
        assert!(check_server("tls://cp.example:1", false).is_ok());
    }

    #[test]
    fn an_address_has_a_host_and_a_port_and_no_password() {
        for text in [
            "http://a",
            "http://:1",
            "http://u:p@a:1",
            "http://a:1/x",
            "a:1",
            "ftp://a:1",
        ] {
            assert!(check_endpoint(text, true, true).is_err(), "{text}");
        }
        assert!(check_server("nats://u:p@127.0.0.1:1", true).is_err());
        assert!(check_endpoint("unix://relative", false, false).is_err());
        assert!(check_endpoint("unix:///run/cp.sock", false, false).is_ok());
    }
}
