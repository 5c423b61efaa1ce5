//! Certificates of the API and of those whom the agent reports to.

use super::{Check, Host, Notes};
use crate::config::{NatsLogin, Pem, ServerTls, TlsFiles};
use crate::door::{Validity, look_at_client, look_at_server};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);
/// With less than this left, a new one should be on its way.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// Where systemd puts the credentials of the unit while it runs.
const CREDENTIALS: &str = "/run/credentials/kvmlet.service";

/// Looks at all of them.
pub(super) fn look(host: &Host, notes: &Notes) {
    if let Some(tls) = &host.config.api.tls {
        api(host, tls, notes);
    }
    let sinks = &host.config;
    let report = sinks.report.iter().map(|it| (&it.name, &it.tls));
    let nats = sinks.nats.iter().map(|it| (&it.name, &it.tls));
    for (name, tls) in report.chain(nats) {
        if let Some(files) = tls {
            sink(host, name, files, notes);
        }
    }
    for nats in &sinks.nats {
        let file = match &nats.login {
            NatsLogin::None => continue,
            NatsLogin::Credentials(file) => file,
            NatsLogin::User { password_file, .. } => password_file,
        };
        let check = Check::CertificateSinks;
        match std::fs::File::open(file) {
            Ok(_) => notes.ok(check, &nats.name, format!("{} can be read", file.display())),
            Err(error) if host.may_not(error.kind()) => {
                let found = format!("{} may not be read by this user", file.display());
                notes.needs_root(check, &nats.name, found);
            }
            Err(error) => notes.error(
                check,
                &nats.name,
                format!("{}: {error}", file.display()),
                "The server is not told who the agent is; nothing is reported to it.",
                format!("ls -l {}", file.display()),
            ),
        }
    }
}

/// The file of a certificate or key; `None` for a credential that this process can't
/// see.
fn in_file(pem: &Pem) -> Option<PathBuf> {
    match pem {
        Pem::File(path) => Some(path.clone()),
        Pem::Credential(name) => {
            let path = Path::new(CREDENTIALS).join(name);
            path.exists().then_some(path)
        }
    }
}

/// The first of some files that this user may not read, where that says nothing of
/// the agent.
fn closed<'a>(host: &Host, files: impl IntoIterator<Item = &'a Path>) -> Option<&'a Path> {
    files.into_iter().find(|file| {
        let opened = std::fs::File::open(file);
        opened.is_err_and(|error: std::io::Error| {
            !host.root && error.kind() == ErrorKind::PermissionDenied
        })
    })
}

fn api(host: &Host, tls: &ServerTls, notes: &Notes) {
    let check = Check::CertificateApi;
    let found = [&tls.cert, &tls.key, &tls.client_ca].map(in_file);
    let [Some(cert), Some(key), Some(client_ca)] = found else {
        notes.skipped(
            check,
            "",
            "they are credentials that systemd gives to the unit while it runs",
            "systemctl show kvmlet.service -p LoadCredential; once it runs: sudo kvmlet doctor",
        );
        return;
    };
    let crl = tls.client_crl.as_ref().and_then(in_file);
    let all = [&cert, &key, &client_ca].into_iter().chain(&crl);
    if let Some(file) = closed(host, all.map(PathBuf::as_path)) {
        let found = format!("{} may not be read by this user", file.display());
        notes.needs_root(check, "", found);
        return;
    }
    let files = ServerTls {
        cert: Pem::File(cert),
        key: Pem::File(key),
        client_ca: Pem::File(client_ca),
        client_crl: crl.map(Pem::File),
    };
    let advice = "See docs/access.md for what is needed; once mended: systemctl reload kvmlet";
    match look_at_server(&files) {
        Ok(validity) => dates(check, "", validity, notes),
        Err(trouble) => notes.error(
            check,
            "",
            trouble,
            "Nobody is let in over TCP until it is mended; the Unix socket is served.",
            advice,
        ),
    }
}

fn sink(host: &Host, name: &str, files: &TlsFiles, notes: &Notes) {
    let check = Check::CertificateSinks;
    let own = files.own.iter().flat_map(|(cert, key)| [cert, key]);
    let all = own.chain([&files.ca_file]).map(PathBuf::as_path);
    if let Some(file) = closed(host, all) {
        let found = format!("{} may not be read by this user", file.display());
        notes.needs_root(check, name, found);
        return;
    }
    match look_at_client(files) {
        Ok(validity) => dates(check, name, validity, notes),
        Err(trouble) => notes.error(
            check,
            name,
            trouble,
            "Nothing is reported there until it is mended; it is sent then.",
            "See docs/report.md for what is needed. The files are read at each connection.",
        ),
    }
}

fn dates(check: Check, about: &str, validity: Validity, notes: &Notes) {
    let now = SystemTime::now();
    let dates = [
        ("the agent's certificate", validity.own),
        ("an authority's certificate", validity.authority),
    ];
    let mut well = Vec::new();
    for (what, expires) in dates {
        let Some(expires) = expires else {
            continue;
        };
        match expires.duration_since(now) {
            Err(ago) => {
                let days = ago.duration().as_secs() / DAY.as_secs();
                notes.error(
                    check,
                    about,
                    format!("{what} expired {days} days ago"),
                    "Nobody trusts it any more: no connection comes about.",
                    "Put a new one in its place, then: systemctl reload kvmlet",
                );
            }
            Ok(left) => {
                let days = left.as_secs() / DAY.as_secs();
                if left < SOON {
                    notes.warning(
                        check,
                        about,
                        format!("{what} expires in {days} days"),
                        "After that no connection comes about.",
                        "Put a new one in its place; it is used without a restart.",
                    );
                } else {
                    well.push(format!("{what} is good for {days} days"));
                }
            }
        }
    }
    if !well.is_empty() {
        notes.ok(check, about, well.join(", "));
    }
}
