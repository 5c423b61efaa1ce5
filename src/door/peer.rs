//! The other side of a connection: who it is, and how much it asks for at once.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The longest name that is taken out of a certificate, in bytes.
const LONGEST: usize = 512;
/// Calls that are refused on a connection before it is closed: at once, and for each
/// second that goes by. Refusing is work, too.
const REFUSALS: f64 = 1000.0;
const REFUSALS_A_SECOND: f64 = 100.0;

/// Who is on the other side, as far as the connection itself proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// A process on this host: its effective user, and that user's groups.
    Local {
        /// The user.
        uid: u32,
        /// The user's groups.
        groups: Vec<u32>,
    },
    /// Who has the key of a certificate.
    Certificate(Box<Certificate>),
    /// Anyone on this host.
    Plaintext(IpAddr),
    /// Nobody can say.
    Unknown,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Certificate {
    /// Its URIs.
    pub(super) uris: Vec<String>,
    /// Its DNS names.
    pub(super) dns: Vec<String>,
    /// SHA-256 of it, in hexadecimal.
    pub(super) fingerprint: String,
    /// From then on it is nobody's.
    pub(super) expires: Option<SystemTime>,
    /// Itself, and those that came with it.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

impl Certificate {
    /// Reads a chain that was verified. What can't be read is not there.
    pub(super) fn read(chain: &[CertificateDer<'_>]) -> Self {
        let chain: Vec<_> = chain.iter().map(|der| der.clone().into_owned()).collect();
        let mut certificate = Self::default();
        if let Some(own) = chain.first() {
            certificate.fingerprint = fingerprint(own);
            certificate.expires = expires(own);
            if let Ok((_, parsed)) = X509Certificate::from_der(own) {
                certificate.read_names(&parsed);
            }
        }
        Self {
            chain,
            ..certificate
        }
    }

    fn read_names(&mut self, parsed: &X509Certificate<'_>) {
        let Ok(Some(names)) = parsed.subject_alternative_name() else {
            return;
        };
        let plain = |name: &str| {
            (1..=LONGEST).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
        };
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) if plain(uri) => self.uris.push((*uri).to_owned()),
                GeneralName::DNSName(dns) if plain(dns) => self.dns.push((*dns).to_owned()),
                _ => {}
            }
        }
    }
}

/// When a certificate expires; `None` if it can't be read.
pub(super) fn expires(der: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn fingerprint(der: &CertificateDer<'_>) -> String {
    Sha256::digest(der)
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The other side of one connection.
#[derive(Debug)]
pub struct Peer {
    pub(super) identity: Identity,
    /// Where it is; `None` on the Unix socket.
    pub(super) address: Option<SocketAddr>,
    /// Cancelled when the connection is to end.
    pub(super) cut: CancellationToken,
    /// The trust that its certificate was last verified with.
    pub(super) verified: AtomicU64,
    /// The policy that it was last judged by, and what came of it.
    pub(super) judged: Mutex<Option<(u64, super::Verdict)>>,
    /// Calls that may be refused before it is cut off, as of when.
    refusals: Mutex<(f64, Instant)>,
}

impl Peer {
    pub(super) fn new(identity: Identity, address: Option<SocketAddr>, trust: u64) -> Self {
        Self {
            identity,
            address,
            cut: CancellationToken::new(),
            verified: AtomicU64::new(trust),
            judged: Mutex::new(None),
            refusals: Mutex::new((REFUSALS, Instant::now())),
        }
    }

    /// Ends the connection; false if it was to end already.
    pub fn cut_off(&self) -> bool {
        let first = !self.cut.is_cancelled();
        self.cut.cancel();
        first
    }

    /// Counts a call that is refused; false: too many are.
    pub(super) fn may_be_refused(&self) -> bool {
        let refusals = self.refusals.lock();
        let mut refusals = refusals.unwrap_or_else(PoisonError::into_inner);
        let (left, counted) = *refusals;
        let more = counted.elapsed().as_secs_f64() * REFUSALS_A_SECOND;
        let left = (left + more).min(REFUSALS) - 1.0;
        *refusals = (left, Instant::now());
        left >= 0.0
    }

    /// Where it is: an address and port, or `unix`.
    pub fn place(&self) -> String {
        self.address
            .map_or_else(|| "unix".to_owned(), |address| address.to_string())
    }
}
