//! Addresses and ports that are configured: this host's, and not taken by others.

use super::kernel::{self, Listener};
use super::{Check, Host, Notes};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Looks at what the API, metrics and displays listen on. `answers`: a daemon does.
pub(super) fn look(host: &Host, answers: bool, notes: &Notes) {
    let listeners = kernel::listeners();
    let config = &host.config;
    for (check, listen, key) in [
        (Check::PortApi, config.api.listen, "listen under [api]"),
        (
            Check::PortMetrics,
            config.metrics.listen,
            "listen under [metrics]",
        ),
    ] {
        if let Some(address) = listen {
            tell(check, address, key, &listeners, answers, notes);
        }
    }
    displays(host, &listeners, notes);
}

/// Whether an address is this host's; a UDP socket that sends nothing shows it.
fn is_ours(ip: IpAddr) -> Result<(), std::io::Error> {
    UdpSocket::bind((ip, 0)).map(drop)
}

fn not_ours(check: Check, ip: IpAddr, key: &str, error: &std::io::Error, notes: &Notes) {
    let found = match error.kind() {
        ErrorKind::AddrNotAvailable => format!("{ip} is no address of this host"),
        _ => format!("{ip}: {error}"),
    };
    notes.error(
        check,
        "",
        found,
        "Nothing can listen there.",
        format!("See which there are: ip -brief address; name one as {key}."),
    );
}

fn tell(
    check: Check,
    address: SocketAddr,
    key: &str,
    listeners: &[Listener],
    answers: bool,
    notes: &Notes,
) {
    if let Err(error) = is_ours(address.ip()) {
        not_ours(check, address.ip(), key, &error, notes);
        return;
    }
    let Some(listener) = listeners.iter().find(|it| it.is_in_the_way_of(address)) else {
        notes.ok(check, "", format!("{address} is free"));
        return;
    };
    match kernel::holder(listener.inode) {
        Some((process, name)) if name == "kvmlet" => {
            let found = format!("{address} is held by kvmlet, process {process}");
            notes.ok(check, "", found);
        }
        Some((process, name)) => notes.error(
            check,
            "",
            format!("{address} is taken by {name}, process {process}"),
            "The agent does not start while it is.",
            format!("End that process, or name another port as {key}."),
        ),
        // Whose sockets others have, only root is told.
        None if answers => {
            let found = format!("{address} is taken, by the daemon that answers as it seems");
            notes.ok(check, "", found);
        }
        None => notes.warning(
            check,
            "",
            format!("{address} is taken, and this user is not told by whom"),
            "Unless that is kvmlet, the agent does not start.",
            format!("sudo ss -ltnp 'sport = :{}'", address.port()),
        ),
    }
}

/// QEMU's displays have the ports from 5900 on.
fn displays(host: &Host, listeners: &[Listener], notes: &Notes) {
    let check = Check::PortVnc;
    let listen = host.config.vnc.listen;
    if let Err(error) = is_ours(listen) {
        not_ours(check, listen, "listen under [vnc]", &error, notes);
        return;
    }
    let taken = listeners
        .iter()
        .filter(|it| (5900..6000).contains(&it.address.port()))
        .count();
    let found = format!("displays listen on {listen}, ports from 5900; {taken} of them are in use");
    if listen.is_loopback() {
        notes.ok(check, "", found);
    } else {
        notes.warning(
            check,
            "",
            found,
            "VNC is not encrypted, and its passwords have 8 characters: who can reach these ports \
             can listen and guess.",
            "Set listen = \"127.0.0.1\" under [vnc] and use a tunnel, or let a firewall pass only \
             your proxy to ports 5900-65535 of it.",
        );
    }
}
