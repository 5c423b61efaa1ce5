//! Certificates in files, looked at without using them: whether they can be used,
//! and for how long.

use super::peer::expires;
use super::tls::{Read, certificates};
use crate::config::{Pem, ServerTls, TlsFiles};
use std::path::Path;
use std::time::SystemTime;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

/// For how long certificates are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// When the agent's own expires, if there is one.
    pub own: Option<SystemTime>,
    /// When the first of the authorities expires.
    pub authority: Option<SystemTime>,
}

/// Reads what the API would be served with, as the daemon does. Blocks.
///
/// # Errors
/// What can't be read or used, in words without anything that is in the files.
pub fn look_at_server(files: &ServerTls) -> Result<Validity, String> {
    let material = Read::all(files)?.material(0)?;
    Ok(Validity {
        own: material.expires,
        authority: material.authority_expires,
    })
}

/// Reads what a receiver of reports is checked with, and what the agent proves itself
/// with. Blocks.
///
/// # Errors
/// As for [`look_at_server`].
pub fn look_at_client(files: &TlsFiles) -> Result<Validity, String> {
    let authorities = certificates(&read(&files.ca_file)?, &named(&files.ca_file))?;
    let own = match &files.own {
        None => None,
        Some((cert, key)) => {
            let chain = certificates(&read(cert)?, &named(cert))?;
            let first = expires(&chain[0]);
            let pem = read(key)?;
            let private = PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|error| format!("{} holds no private key: {error}", key.display()))?;
            CertifiedKey::from_der(chain, private, &ring::default_provider())
                .map_err(|error| format!("{} and its key don't fit: {error}", cert.display()))?;
            first
        }
    };
    Ok(Validity {
        own,
        authority: authorities.iter().filter_map(expires).min(),
    })
}

fn named(path: &Path) -> Pem {
    Pem::File(path.to_owned())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    super::tls::read(&named(path))
}
