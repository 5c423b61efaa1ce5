//! kvmlet's units and libvirt's, as systemd knows them.

use super::sandbox::Sandbox;
use super::{Check, Host, Notes, packages};
use crate::storage::{Task, ask};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const SERVICE: &str = "kvmlet.service";
const SOCKET: &str = "kvmlet.socket";
/// How long systemd may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// There only where systemd is the init.
const RUNS: &str = "/run/systemd/system";

/// The properties of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Properties(BTreeMap<String, String>);

impl Properties {
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn is_there(&self) -> bool {
        self.get("LoadState") == "loaded"
    }

    fn is_active(&self) -> bool {
        self.get("ActiveState") == "active"
    }

    fn is_enabled(&self) -> bool {
        self.get("UnitFileState").starts_with("enabled")
    }
}

/// kvmlet's units.
#[derive(Debug)]
pub(super) struct Unit {
    service: Properties,
    socket: Properties,
    /// What the service may write.
    pub(super) sandbox: Sandbox,
}

impl Unit {
    /// Asks systemd; `None` if the service is not installed, or there is no systemd.
    pub(super) fn read() -> Option<Self> {
        let mut found = show(&[SERVICE, SOCKET]).ok()?.into_iter();
        let (service, socket) = (found.next()?, found.next()?);
        service.is_there().then(|| Self {
            sandbox: Sandbox::of(&service),
            service,
            socket,
        })
    }

    /// How many files the service may have open.
    pub(super) fn open_files(&self) -> Option<u64> {
        self.service.get("LimitNOFILE").parse().ok()
    }
}

/// Whether systemd is this host's init.
pub(super) fn systemd_runs() -> bool {
    Path::new(RUNS).exists()
}

/// Asks systemd for what is looked at of some units, in their order.
fn show(units: &[&str]) -> Result<Vec<Properties>, String> {
    if !systemd_runs() {
        return Err("systemd does not run here".to_owned());
    }
    let properties = "LoadState,ActiveState,SubState,Result,UnitFileState,User,LimitNOFILE,\
        ProtectSystem,ProtectHome,PrivateTmp,ReadWritePaths,ReadOnlyPaths,InaccessiblePaths,\
        StateDirectory,RuntimeDirectory,LogsDirectory,CacheDirectory,Id";
    let mut words = vec!["show", "--no-pager", "-p", properties];
    words.extend(units);
    let answer =
        ask("systemctl", &words, &Task::within(PATIENCE)).map_err(|error| error.to_string())?;
    if !answer.success {
        return Err(answer.complaint);
    }
    Ok(blocks(&answer.printed))
}

/// One block of lines for each unit, with an empty line between.
fn blocks(printed: &str) -> Vec<Properties> {
    let block = |text: &str| {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Properties(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    };
    printed.split("\n\n").map(block).collect()
}

/// Looks at kvmlet's own units.
pub(super) fn look(host: &Host, notes: &Notes) {
    if !systemd_runs() {
        let found = "systemd does not run here";
        let advice = "Start the agent by hand: kvmlet serve --config /etc/kvmlet/kvmlet.toml";
        notes.skipped(Check::UnitService, "", found, advice);
        return;
    }
    let Some(unit) = host.unit() else {
        notes.warning(
            Check::UnitService,
            "",
            format!("{SERVICE} is not installed"),
            "The agent does not start with the host.",
            "Install the package, or put the unit into /etc/systemd/system and: systemctl \
             daemon-reload",
        );
        return;
    };
    tell(Check::UnitService, SERVICE, &unit.service, notes);
    if unit.socket.is_there() {
        tell(Check::UnitSocket, SOCKET, &unit.socket, notes);
    }
}

fn tell(check: Check, name: &str, unit: &Properties, notes: &Notes) {
    let state = format!(
        "{name} is {}, {}",
        unit.get("UnitFileState"),
        unit.get("ActiveState")
    );
    match (unit.is_enabled(), unit.is_active()) {
        (true, true) => notes.ok(check, "", state),
        (_, false) if unit.get("ActiveState") == "failed" => notes.error(
            check,
            "",
            format!("{state} ({})", unit.get("Result")),
            "It ended with a fault, which is in its log.",
            format!("journalctl -u {name} -n 50; then: systemctl restart {name}"),
        ),
        (_, false) => notes.warning(
            check,
            "",
            state,
            "The agent does not run; guests that run go on.",
            format!("systemctl enable --now {name}"),
        ),
        (false, true) => notes.warning(
            check,
            "",
            state,
            "After the next boot of the host it does not run.",
            format!("systemctl enable {name}"),
        ),
    }
}

/// Looks at which of its two forms libvirt has, and whether it starts with the host.
pub(super) fn look_at_libvirt(host: &Host, notes: &Notes) {
    let check = Check::LibvirtDaemons;
    if !host.config.hypervisor.uri.contains(":///system") {
        return;
    }
    let units = [
        "libvirtd.service",
        "libvirtd.socket",
        "virtqemud.service",
        "virtqemud.socket",
    ];
    match show(&units) {
        Ok(found) => match &found[..] {
            [a, b, c, d] => tell_libvirt([a, b], [c, d], notes),
            _ => notes.skipped(
                check,
                "",
                "systemctl answers in another form",
                "systemctl status libvirtd virtqemud",
            ),
        },
        Err(why) => notes.skipped(
            check,
            "",
            why,
            "See by hand that libvirt starts with the host.",
        ),
    }
}

fn tell_libvirt(monolithic: [&Properties; 2], modular: [&Properties; 2], notes: &Notes) {
    let check = Check::LibvirtDaemons;
    let any = |units: [&Properties; 2], test: fn(&Properties) -> bool| units.into_iter().any(test);
    let enabled = |units| any(units, Properties::is_enabled);
    let active = |units| any(units, Properties::is_active);
    let there = |units| any(units, Properties::is_there);
    match (active(monolithic), active(modular)) {
        (true, true) => notes.warning(
            check,
            "",
            "libvirtd and virtqemud both run",
            "Two daemons keep the same guests, and may get in each other's way.",
            "Keep one: systemctl disable --now virtqemud.service virtqemud.socket \
             virtqemud-ro.socket virtqemud-admin.socket",
        ),
        _ if !there(monolithic) && !there(modular) => notes.error(
            check,
            "",
            "neither libvirtd nor virtqemud is installed",
            "kvmlet reaches QEMU through libvirt only.",
            packages::install("libvirt-daemon-system", "libvirt-daemon-kvm"),
        ),
        (false, false) => notes.error(
            check,
            "",
            "no libvirt daemon and no socket of one is active",
            "kvmlet waits for it, and can do nothing meanwhile.",
            if there(modular) && !there(monolithic) {
                "systemctl enable --now virtqemud.socket virtnetworkd.socket virtlogd.socket"
            } else {
                "systemctl enable --now libvirtd.socket virtlogd.socket"
            },
        ),
        (one, _) => {
            let (name, units) = match one {
                true => ("libvirtd", monolithic),
                false => ("virtqemud", modular),
            };
            if enabled(units) {
                notes.ok(
                    check,
                    "",
                    format!("{name} is active and starts with the host"),
                );
            } else {
                notes.warning(
                    check,
                    "",
                    format!("{name} is active and not enabled"),
                    "After the next boot of the host it does not run.",
                    format!("systemctl enable {name}.socket"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use std::sync::mpsc::channel;

    fn unit(text: &str) -> Properties {
        blocks(text).remove(0)
    }

    fn told(tell: impl FnOnce(&Notes)) -> Vec<(Level, String)> {
        let (sender, found) = channel();
        let notes = Notes(sender);
        tell(&notes);
        drop(notes);
        found
            .iter()
            .map(|finding| (finding.level, finding.found))
            .collect()
    }

    #[test]
    fn units_are_read_in_their_order() {
        let printed = "LoadState=loaded\nReadWritePaths=/srv/a /srv/b\n\nLoadState=not-found\n";
        let units = blocks(printed);
        assert_eq!(units.len(), 2);
        assert!(units[0].is_there() && !units[1].is_there());
        assert_eq!(units[0].get("ReadWritePaths"), "/srv/a /srv/b");
        assert_eq!(units[0].get("User"), "");
    }

    #[test]
    fn a_unit_is_well_when_it_is_enabled_and_active() {
        for (text, level) in [
            ("UnitFileState=enabled\nActiveState=active", Level::Ok),
            (
                "UnitFileState=enabled-runtime\nActiveState=active",
                Level::Ok,
            ),
            ("UnitFileState=disabled\nActiveState=active", Level::Warning),
            (
                "UnitFileState=enabled\nActiveState=inactive",
                Level::Warning,
            ),
            (
                "UnitFileState=enabled\nActiveState=failed\nResult=exit-code",
                Level::Error,
            ),
        ] {
            let found = told(|notes| tell(Check::UnitService, SERVICE, &unit(text), notes));
            assert_eq!(found[0].0, level, "{text}");
        }
    }

    #[test]
    fn one_libvirt_is_enough_and_two_are_too_many() {
        let on = unit("LoadState=loaded\nUnitFileState=enabled\nActiveState=active");
        let off = unit("LoadState=loaded\nUnitFileState=disabled\nActiveState=inactive");
        let none = unit("LoadState=not-found");
        let by_hand = unit("LoadState=loaded\nUnitFileState=disabled\nActiveState=active");
        for (monolithic, modular, level, word) in [
            ([&off, &on], [&none, &none], Level::Ok, "libvirtd"),
            ([&none, &none], [&off, &on], Level::Ok, "virtqemud"),
            ([&on, &on], [&on, &off], Level::Warning, "both"),
            (
                [&by_hand, &off],
                [&off, &off],
                Level::Warning,
                "not enabled",
            ),
            ([&off, &off], [&off, &off], Level::Error, "active"),
            ([&none, &none], [&none, &none], Level::Error, "installed"),
        ] {
            let found = told(|notes| tell_libvirt(monolithic, modular, notes));
            assert_eq!(found[0].0, level, "{found:?}");
            assert!(found[0].1.contains(word), "{found:?}");
        }
    }
}
