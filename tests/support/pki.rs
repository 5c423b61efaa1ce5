//! Authorities and certificates that exist for one test.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use time::OffsetDateTime;

const DAY: Duration = Duration::from_secs(86_400);

/// Serial numbers that no other certificate of this process has.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, in PEM form.
#[derive(Debug, Clone)]
pub struct Issued {
    pub cert: String,
    pub key: String,
    pub serial: u64,
}

/// What a certificate shall say.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    /// How long ago it expired; `None`: tomorrow.
    pub expired: Option<Duration>,
    /// When it expires instead, from now.
    pub lasts: Option<Duration>,
}

impl Wish {
    /// A certificate with this URI.
    pub fn uri(uri: &str) -> Self {
        Self {
            uris: vec![uri.to_owned()],
            ..Self::default()
        }
    }

    /// A certificate with this DNS name.
    pub fn dns(name: &str) -> Self {
        Self {
            dns: vec![name.to_owned()],
            ..Self::default()
        }
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Its own certificate, in PEM form.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, wish: &Wish) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(wish.dns.clone()).unwrap();
        for uri in &wish.uris {
            let uri = uri.as_str().try_into().unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(serial));
        let now = OffsetDateTime::now_utc();
        params.not_before = now - 30 * DAY;
        params.not_after = match (wish.expired, wish.lasts) {
            (Some(ago), _) => now - ago,
            (None, Some(lasts)) => now + lasts,
            (None, None) => now + DAY,
        };
        let cert = params.signed_by(&key, &self.0).unwrap();
        Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
            serial,
        }
    }

    /// For a server on this host.
    pub fn server(&self) -> Issued {
        self.issue(&Wish {
            dns: vec!["localhost".to_owned()],
            ..Wish::default()
        })
    }

    /// The list of what it has revoked.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - DAY,
            next_update: now + 30 * DAY,
            crl_number: SerialNumber::from(NEXT.fetch_add(1, Ordering::Relaxed)),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

/// The files of a server's `[api.tls]`, in a folder.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    folder: PathBuf,
}

impl ServerFiles {
    /// Writes them.
    pub fn write(folder: &Path, own: &Issued, client_ca: &str) -> Self {
        let files = Self {
            folder: folder.to_owned(),
        };
        files.put("client-ca.pem", client_ca);
        files.put("cert.pem", &own.cert);
        files.put("key.pem", &own.key);
        files
    }

    /// Replaces one, as a whole and at once.
    pub fn put(&self, name: &str, text: &str) {
        let beside = self.folder.join(format!("{name}.new"));
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.folder.join(name)).unwrap();
    }

    /// Lines for the section `[api]`, without the list of what was revoked.
    pub fn lines(&self, port: u16) -> String {
        let folder = self.folder.display();
        format!(
            "listen = \"127.0.0.1:{port}\"\ntls = {{ cert_file = \"{folder}/cert.pem\", \
             key_file = \"{folder}/key.pem\", client_ca_file = \"{folder}/client-ca.pem\" }}"
        )
    }
}
