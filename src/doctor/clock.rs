//! The host's clock: kept right by somebody, and not before what was written.

use super::{Check, Host, Notes, packages, units};
use crate::storage::{Task, ask};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How long who knows may take to say.
const PATIENCE: Duration = Duration::from_secs(3);
/// What clocks that are kept right may differ by.
const STEP: Duration = Duration::from_secs(60);

/// Looks at the clock.
pub(super) fn look(host: &Host, notes: &Notes) {
    plausible(host, notes);
    synchronised(notes);
}

fn synchronised(notes: &Notes) {
    let check = Check::ClockSynchronised;
    let by_hand = "chronyc tracking, or: ntpq -p";
    if !units::systemd_runs() {
        notes.skipped(check, "", "systemd does not run here", by_hand);
        return;
    }
    let words = ["show", "-p", "NTPSynchronized", "-p", "NTP"];
    match ask("timedatectl", &words, &Task::within(PATIENCE)) {
        Ok(answer) if answer.printed.contains("NTPSynchronized=yes") => {
            notes.ok(check, "", "the clock is synchronised");
        }
        Ok(answer) if answer.printed.contains("NTPSynchronized=no") => notes.warning(
            check,
            "",
            "the clock is not synchronised",
            "Certificates, retention and the times of events go by it.",
            format!(
                "{} && systemctl enable --now chrony (or chronyd); then: timedatectl",
                packages::install("chrony", "chrony")
            ),
        ),
        Ok(answer) => notes.skipped(
            check,
            "",
            format!("timedatectl: {}", answer.complaint),
            by_hand,
        ),
        Err(error) => notes.skipped(check, "", format!("timedatectl: {error}"), by_hand),
    }
}

fn plausible(host: &Host, notes: &Notes) {
    let check = Check::ClockPlausible;
    let now = SystemTime::now();
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/kvmlet"));
    let journal = host.config.journal.path.clone();
    let latest = [program, journal]
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max();
    match latest {
        Some((written, path)) if written > now + STEP => notes.error(
            check,
            "",
            format!(
                "the time is before that at which {} was written",
                path.display()
            ),
            "The clock was set back, or has lost the time: certificates may count as not valid \
             yet, and nothing that is due is removed.",
            "timedatectl; then: timedatectl set-ntp true",
        ),
        _ => notes.ok(check, "", "not before what was written already"),
    }
}
