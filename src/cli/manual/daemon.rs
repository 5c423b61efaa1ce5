//! kvmlet(8): the daemon as an administrator meets it.

use super::Page;
use crate::cli::connect;
use clap::Command;

/// The page; what the daemon's arguments are comes from the command.
pub(super) fn page(command: &Command, source: &str) -> String {
    let mut page = Page::new("kvmlet", "8", "the node agent for KVM hosts", source);
    page.section("SYNOPSIS");
    page.entry(["kvmlet serve --config FILE"])
        .entry(["kvmlet serve --simulate"]);
    page.section("DESCRIPTION")
        .paragraph(
            "One daemon for each host. It serves a gRPC API, by which a control plane \
             provisions VMs, changes their power, gets VNC access and replaces root volumes, \
             and does it with libvirt and QEMU on qcow2 files or Ceph RBD. `kvmlet` with \
             other commands is its client: kvmlet(1).",
        )
        .paragraph(
            "Guests do not depend on it: whether it is stopped, killed, upgraded or removed, \
             they run on.",
        );
    page.section("OPTIONS");
    for argument in command
        .find_subcommand("serve")
        .into_iter()
        .flat_map(Command::get_arguments)
    {
        let Some(long) = argument.get_long() else {
            continue;
        };
        let value = argument
            .get_value_names()
            .filter(|_| argument.get_action().takes_values())
            .map(|names| format!(" {}", names.join(" ")))
            .unwrap_or_default();
        page.entry([format!("--{long}{value}").as_str()]);
        if let Some(help) = argument.get_help() {
            page.text(&format!("{help}."));
        }
    }
    units(&mut page);
    signals(&mut page);
    ends(&mut page);
    files(&mut page);
    page.see_also(&[
        "kvmlet(1)",
        "kvmlet.toml(5)",
        "systemctl(1)",
        "journalctl(1)",
        "virsh(1)",
        "sd_notify(3)",
    ]);
    page.finish()
}

fn units(page: &mut Page) {
    page.section("UNITS")
        .entry(["kvmlet.service"])
        .text(
            "The daemon. It is ready when it has seen every VM of the host. Stopping or \
             restarting it stops no guest.",
        )
        .entry(["kvmlet.socket"])
        .text(
            "The Unix socket of the API. While it is up, a restart of the service refuses no \
             connection.",
        );
    page.paragraph("A package enables neither:").lines([
        "systemctl enable --now kvmlet.socket kvmlet",
        "systemctl status kvmlet",
        "journalctl -u kvmlet",
        "kvmlet node",
    ]);
}

fn signals(page: &mut Page) {
    page.section("SIGNALS")
        .entry(["SIGTERM", "SIGINT"])
        .text(
            "Ends: no more calls are accepted, steps that run are finished as far as \
             `[shutdown] grace` allows, what is unfinished goes on at the next start. A second \
             one ends at once.",
        )
        .entry(["SIGHUP"])
        .text(
            "Reads the configuration again (systemctl reload kvmlet). kvmlet.toml(5) says \
             what takes effect then; the rest waits for the next start. A file with faults \
             is refused, and what held before goes on to hold.",
        );
}

fn ends(page: &mut Page) {
    page.section("EXIT STATUS");
    for (code, meaning) in [
        ("0", "It ended as it was told to."),
        (
            "1",
            "It could not start, or could not go on; the log says why. The unit starts it \
             again.",
        ),
        ("2", "The arguments are wrong."),
        (
            "78",
            "The configuration is wrong: kvmlet config check tells every fault. The unit does \
             not start it again.",
        ),
        ("143, 130", "A second SIGTERM or SIGINT ended it at once."),
    ] {
        page.entry([code]).text(meaning);
    }
}

fn files(page: &mut Page) {
    page.section("ENVIRONMENT");
    for (name, meaning) in [
        (
            "CREDENTIALS_DIRECTORY",
            "Where systemd puts credentials (LoadCredential=), which the configuration names.",
        ),
        (
            "JOURNAL_STREAM",
            "By this `[log] target` = auto knows that the system's journal reads its output.",
        ),
        (
            "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS",
            "What systemd and the daemon tell each other: sd_notify(3), sd_listen_fds(3).",
        ),
    ] {
        page.entry([name]).text(meaning);
    }
    page.section("FILES");
    let socket = connect::DEFAULT_SERVER.trim_start_matches("unix://");
    for (name, meaning) in [
        (
            "/etc/kvmlet/kvmlet.toml",
            "The configuration: kvmlet.toml(5).",
        ),
        (
            socket,
            "The socket of the API, for root and the group kvmlet.",
        ),
        (
            "/var/lib/kvmlet/journal.db",
            "What VMs, images and operations there are.",
        ),
        (
            "/var/lib/kvmlet/pool",
            "The default pool: volumes and images. They are never removed with a package.",
        ),
        (
            "/var/lib/kvmlet/import",
            "Where images may be imported from.",
        ),
        ("/var/lib/kvmlet/console", "What serial consoles wrote."),
        (
            "/usr/share/doc/kvmlet/docs",
            "The runbook (operations.md) and the other documents.",
        ),
        (
            "/usr/share/kvmlet/proto",
            "The API as protocol buffers, for those who write clients.",
        ),
        (
            "/usr/share/kvmlet/prometheus, /usr/share/kvmlet/grafana",
            "Alert rules and a dashboard.",
        ),
    ] {
        page.entry([name]).text(meaning);
    }
}
