//! What TLS on the API is made of: read from its files, checked, and read again
//! when they change.
//!
//! Invariant: what is in use was read whole and fits together; what can't be used
//! leaves what there was, also if that is nothing yet, and is told. Nothing of a
//! handshake is kept for the next one: a caller that comes back is verified again.

use super::peer::{Certificate, expires};
use crate::config::{Pem, ServerTls};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime,
};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};
use zeroize::Zeroizing;

/// The largest file that is read: a bundle of some hundred authorities.
const LARGEST: u64 = 4 << 20;

/// What is in use.
pub(super) struct Material {
    /// Which it is, from 1 on.
    pub(super) generation: u64,
    /// For new connections.
    pub(super) server: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// When the agent's own certificate expires.
    pub(super) expires: Option<SystemTime>,
    /// When the first of the callers' authorities expires.
    pub(super) authority_expires: Option<SystemTime>,
    /// SHA-256 of all that was read.
    digest: [u8; 32],
}

impl Material {
    /// Whether callers with this certificate would be let in now.
    pub(super) fn trusts(&self, certificate: &Certificate) -> bool {
        let Some((own, rest)) = certificate.chain.split_first() else {
            return false;
        };
        let verified = self.verifier.verify_client_cert(own, rest, UnixTime::now());
        verified.is_ok()
    }
}

/// What came of reading again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reread {
    /// Nothing has changed.
    Same,
    /// It is in use from now on.
    Changed,
    /// It can't be used, for this reason; what there was stays.
    Refused(String),
}

/// The certificates of the API.
pub(super) struct Tls {
    files: RwLock<ServerTls>,
    material: RwLock<Option<Arc<Material>>>,
    trouble: Mutex<Option<String>>,
}

impl Tls {
    /// Certificates from these files, which are not read yet.
    pub(super) fn new(files: &ServerTls) -> Self {
        Self {
            files: RwLock::new(files.clone()),
            material: RwLock::new(None),
            trouble: Mutex::new(None),
        }
    }

    /// What is in use, if anything is.
    pub(super) fn material(&self) -> Option<Arc<Material>> {
        let material = self.material.read();
        material.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why what is in the files is not in use, if it isn't.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on, these are the files.
    pub(super) fn use_files(&self, files: &ServerTls) {
        let mut own = self.files.write().unwrap_or_else(PoisonError::into_inner);
        *own = files.clone();
    }

    /// Reads files, which may block, and does not use them; nothing if what they hold
    /// is in use already.
    pub(super) fn prepare(&self, files: &ServerTls) -> Result<Option<Material>, String> {
        let current = self.material();
        let read = Read::all(files)?;
        let former = current.as_ref().map(|current| current.digest);
        if former == Some(read.digest) {
            return Ok(None);
        }
        let generation = current.map_or(0, |current| current.generation) + 1;
        read.material(generation).map(Some)
    }

    /// Uses what was prepared, as long as nothing else was taken since.
    pub(super) fn take(&self, prepared: Option<Material>) {
        if let Some(material) = prepared {
            let mut own = self.material.write();
            **own.as_mut().unwrap_or_else(|e| e.get_mut()) = Some(Arc::new(material));
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Reads the files again, which may block, and uses what has changed.
    pub(super) fn reread(&self) -> Reread {
        let files = self.files.read();
        let files = files.unwrap_or_else(PoisonError::into_inner).clone();
        match self.prepare(&files) {
            Ok(prepared) => {
                let changed = prepared.is_some();
                self.take(prepared);
                if changed {
                    Reread::Changed
                } else {
                    Reread::Same
                }
            }
            Err(trouble) => {
                let mut own = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                *own = Some(trouble.clone());
                Reread::Refused(trouble)
            }
        }
    }
}

/// What the files hold.
pub(super) struct Read {
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Vec<u8>,
    client_crl: Option<Vec<u8>>,
    digest: [u8; 32],
    names: ServerTls,
}

impl Read {
    pub(super) fn all(files: &ServerTls) -> Result<Self, String> {
        let cert = read(&files.cert)?;
        let key = read(&files.key)?;
        let client_ca = read(&files.client_ca)?;
        let client_crl = files.client_crl.as_ref().map(read).transpose()?;
        let mut digest = Sha256::new();
        for part in [&cert, &key, &client_ca]
            .into_iter()
            .chain(client_crl.as_ref())
        {
            digest.update(Sha256::digest(part.as_slice()));
        }
        Ok(Self {
            cert: cert.to_vec(),
            key,
            client_ca: client_ca.to_vec(),
            client_crl: client_crl.map(|crl| crl.to_vec()),
            digest: digest.finalize().into(),
            names: files.clone(),
        })
    }

    pub(super) fn material(self, generation: u64) -> Result<Material, String> {
        let chain = certificates(&self.cert, &self.names.cert)?;
        let authorities = certificates(&self.client_ca, &self.names.client_ca)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| about(&self.names.key, "holds no private key", error))?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots
                .add(authority.clone())
                .map_err(|error| about(&self.names.client_ca, "can't be used", error))?;
        }
        let provider = Arc::new(ring::default_provider());
        let mut verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        if let (Some(pem), Some(name)) = (&self.client_crl, &self.names.client_crl) {
            let lists = CertificateRevocationListDer::pem_slice_iter(pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| about(name, "can't be read", error))?;
            if lists.is_empty() {
                return Err(about(name, "can't be used", "it holds no revocation list"));
            }
            // Of authorities without a list nothing is revoked.
            verifier = verifier.with_crls(lists).allow_unknown_revocation_status();
        }
        let verifier = verifier
            .build()
            .map_err(|error| about(&self.names.client_ca, "can't be used", error))?;
        let expires_first = expires(&chain[0]);
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain, key)
            .map_err(|error| about(&self.names.cert, "and its key don't fit", error))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Material {
            generation,
            server: Arc::new(server),
            verifier,
            expires: expires_first,
            authority_expires: authorities.iter().filter_map(expires).min(),
            digest: self.digest,
        })
    }
}

/// The certificates of a file, of which there is at least one.
pub(super) fn certificates(pem: &[u8], name: &Pem) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| about(name, "can't be read", error))?;
    if found.is_empty() {
        return Err(about(name, "can't be used", "it holds no certificate"));
    }
    Ok(found)
}

pub(super) fn read(pem: &Pem) -> Result<Zeroizing<Vec<u8>>, String> {
    let path = path(pem)?;
    let length = std::fs::metadata(&path)
        .map_err(|error| about(pem, "can't be read", error))?
        .len();
    if length > LARGEST {
        return Err(about(pem, "can't be read", "it is larger than 4 MiB"));
    }
    std::fs::read(&path)
        .map(Zeroizing::new)
        .map_err(|error| about(pem, "can't be read", error))
}

fn path(pem: &Pem) -> Result<PathBuf, String> {
    match pem {
        Pem::File(path) => Ok(path.clone()),
        Pem::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(folder) => Ok(Path::new(&folder).join(name)),
            None => Err(about(pem, "can't be read", "systemd gave no credentials")),
        },
    }
}

/// Words about a file, without anything that is in it.
fn about(pem: &Pem, what: &str, error: impl std::fmt::Display) -> String {
    match pem {
        Pem::File(path) => format!("{} {what}: {error}", path.display()),
        Pem::Credential(name) => format!("the credential {name} {what}: {error}"),
    }
}
