//! What the daemon itself said, where it was asked.

use super::{Check, Host, Notes, units};

/// What came of asking the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonAnswer {
    /// It answered.
    Node {
        /// Its version.
        version: String,
        /// What it says of the host.
        conditions: Vec<Condition>,
    },
    /// It refused, or what answered is no daemon of this kind.
    Refused {
        /// Where it was asked.
        server: String,
        /// Its words.
        why: String,
    },
    /// It can't be reached.
    Unreachable {
        /// Where it was looked for.
        server: String,
        /// Why.
        why: String,
        /// It is there, and this user may not open it.
        denied: bool,
    },
}

/// A condition of the host, as the daemon tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which.
    pub name: String,
    /// All is well with it.
    pub well: bool,
    /// Why it is so, in a word.
    pub reason: String,
    /// Why, in words.
    pub message: String,
}

impl DaemonAnswer {
    /// Whether somebody is there.
    pub(super) const fn answers(&self) -> bool {
        match self {
            Self::Node { .. } | Self::Refused { .. } => true,
            Self::Unreachable { denied, .. } => *denied,
        }
    }
}

/// Tells what the daemon said.
pub(super) fn tell(host: &Host, answer: &DaemonAnswer, notes: &Notes) {
    let check = Check::DaemonAnswers;
    match answer {
        DaemonAnswer::Node {
            version,
            conditions,
        } => {
            notes.ok(check, "", "the daemon answers");
            tell_version(version, host.version, notes);
            tell_conditions(conditions, notes);
        }
        DaemonAnswer::Refused { server, why } => notes.skipped(
            check,
            "",
            format!("{server}: {why}"),
            "sudo kvmlet doctor; who may ask, [access] says",
        ),
        DaemonAnswer::Unreachable {
            server,
            why,
            denied: true,
        } => notes.needs_root(check, "", format!("{server}: {why}")),
        DaemonAnswer::Unreachable { server, why, .. } => {
            let start = if host.unit().is_some() {
                "systemctl enable --now kvmlet; journalctl -u kvmlet -n 50"
            } else if units::systemd_runs() {
                "Install the package, then: systemctl enable --now kvmlet"
            } else {
                "kvmlet serve --config /etc/kvmlet/kvmlet.toml"
            };
            notes.warning(
                check,
                "",
                format!("{server}: {why}"),
                "The daemon does not run; guests that run go on.",
                start,
            );
        }
    }
}

fn tell_version(version: &str, own: &str, notes: &Notes) {
    let check = Check::DaemonVersion;
    if version == own {
        notes.ok(check, "", format!("it is {version}, as this program"));
    } else {
        notes.warning(
            check,
            "",
            format!("it is {version}, and this program is {own}"),
            "Another version was installed after it was started.",
            "systemctl restart kvmlet   (guests go on)",
        );
    }
}

fn tell_conditions(conditions: &[Condition], notes: &Notes) {
    let check = Check::DaemonConditions;
    let bad: Vec<_> = conditions.iter().filter(|it| !it.well).collect();
    for condition in &bad {
        notes.warning(
            check,
            &condition.name,
            format!("{}: {}", condition.reason, condition.message),
            "The daemon says so itself.",
            format!("See {} in docs/operations.md; kvmlet node", condition.name),
        );
    }
    if bad.is_empty() {
        notes.ok(check, "", format!("all {} are well", conditions.len()));
    }
}
