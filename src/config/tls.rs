//! `[api.tls]`: the certificates that callers over TCP are let in with.

use super::check::check_name;
use super::section::Section;
use std::path::PathBuf;

/// Where a file in PEM form is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pem {
    /// In this file.
    File(PathBuf),
    /// In the systemd credential of this name (`LoadCredential=`).
    Credential(String),
}

/// What TLS on the API needs. All of it is read again when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// The agent's certificate, and those between it and its authority.
    pub cert: Pem,
    /// Its private key.
    pub key: Pem,
    /// Certificates of the authorities that vouch for callers.
    pub client_ca: Pem,
    /// What those authorities have revoked; `None`: nothing is looked at.
    pub client_crl: Option<Pem>,
}

/// Reads the table; `None` if it is absent or has a fault.
pub(super) fn server_tls(section: Section<'_>, given: bool) -> Option<ServerTls> {
    if !given {
        return None;
    }
    let cert = needed(&section, "cert_file", "cert_credential");
    let key = needed(&section, "key_file", "key_credential");
    let client_ca = needed(&section, "client_ca_file", "client_ca_credential");
    let client_crl = pem(&section, "client_crl_file", "client_crl_credential");
    section.finish();
    Some(ServerTls {
        cert: cert?,
        key: key?,
        client_ca: client_ca?,
        client_crl,
    })
}

fn needed(section: &Section<'_>, file: &'static str, credential: &'static str) -> Option<Pem> {
    if !section.has(file) && !section.has(credential) {
        section.fault(file, format_args!("is missing (or {credential})"));
    }
    pem(section, file, credential)
}

fn pem(section: &Section<'_>, file: &'static str, credential: &'static str) -> Option<Pem> {
    let path = section.absolute_path(file);
    let name = section.parsed(credential, check_name);
    if section.has(file) && section.has(credential) {
        section.fault(credential, format_args!("can't be given besides {file}"));
    }
    path.map(Pem::File).or(name.map(Pem::Credential))
}
