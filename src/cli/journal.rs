//! `kvmlet journal`: looks at the daemon's file itself, for administrators of the
//! host. It only reads, so it may be used while the daemon runs.

use crate::cli::fault::{Exit, Fault};
use crate::cli::output::{Output, clean};
use crate::config::Config;
use crate::journal::{Audit, JournalError, audit, export};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Commands on the journal's file.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Tell everything that is wrong with the journal; changes nothing
    #[command(after_help = "\
Example:
  kvmlet journal check --path /backup/journal.db

Ends with 0 if nothing is wrong, with 1 if something is, each told on a line of its
own. The daemon may run meanwhile.")]
    Check(Place),
    /// Write everything in the journal, one JSON object to a line; changes nothing
    #[command(after_help = "\
Example:
  kvmlet journal export > journal.jsonl

Each object has a kind (journal, vm, image, operation); VMs and images come by id,
operations by their time. The daemon may run meanwhile.")]
    Export(Place),
}

/// Which journal.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The configuration file that names the journal
    #[arg(long, value_name = "FILE", default_value = "/etc/kvmlet/kvmlet.toml")]
    config: PathBuf,
    /// The journal itself
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    path: Option<PathBuf>,
}

impl Place {
    fn path(&self) -> Result<PathBuf, Fault> {
        if let Some(path) = &self.path {
            return Ok(path.clone());
        }
        let config = Config::load(&self.config).map_err(|faults| {
            let fault = Fault::usage(format!(
                "{} does not say where the journal is; see kvmlet config check, or use --path",
                self.config.display()
            ));
            faults
                .faults()
                .iter()
                .fold(fault, |fault, one| fault.with(one.to_string()))
        })?;
        Ok(config.journal.path)
    }
}

/// Carries out a command.
pub(crate) fn run(out: &Output, command: &JournalCommand) -> Result<(), Fault> {
    match command {
        JournalCommand::Check(place) => check(out, &place.path()?),
        JournalCommand::Export(place) => {
            let path = place.path()?;
            let each = |record: &serde_json::Value| out.json_line(record).map_err(Stopped::Output);
            export(&path, each).map_err(|stopped| match stopped {
                Stopped::Journal(error) => told(&path, &error),
                Stopped::Output(fault) => fault,
            })
        }
    }
}

/// Why an export ended early.
enum Stopped {
    Journal(JournalError),
    Output(Fault),
}

impl From<JournalError> for Stopped {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

fn check(out: &Output, path: &Path) -> Result<(), Fault> {
    let audit = audit(path).map_err(|error| told(path, &error))?;
    if out.is_json() {
        out.json(&json!({
            "path": path.display().to_string(),
            "schema": audit.schema,
            "newest_schema": audit.newest_schema,
            "epoch": audit.epoch,
            "vms": audit.vms,
            "images": audit.images,
            "operations": audit.operations,
            "unfinished_operations": audit.unfinished,
            "problems": audit.problems,
        }))?;
    } else {
        for problem in &audit.problems {
            out.line(clean(problem))?;
        }
        if !out.quiet {
            out.line(counts(&audit))?;
        }
    }
    match audit.problems.len() {
        0 => Ok(()),
        1 => Err(Fault::new(
            Exit::Failed,
            format!("{}: 1 problem", path.display()),
        )),
        count => Err(Fault::new(
            Exit::Failed,
            format!("{}: {count} problems", path.display()),
        )),
    }
}

fn counts(audit: &Audit) -> String {
    let older = if audit.schema < audit.newest_schema {
        format!(
            " (the daemon brings it to {} when it starts)",
            audit.newest_schema
        )
    } else {
        String::new()
    };
    format!(
        "schema {}{older}, {} VMs, {} images, {} operations, {} of them unfinished",
        audit.schema, audit.vms, audit.images, audit.operations, audit.unfinished
    )
}

/// Why the journal can't be looked at.
fn told(path: &Path, error: &JournalError) -> Fault {
    let mut words = format!("{}: {error}", path.display());
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    let exit = match error {
        JournalError::Io(error) if error.kind() == ErrorKind::NotFound => Exit::NotFound,
        JournalError::Io(error) if error.kind() == ErrorKind::PermissionDenied => Exit::Refused,
        JournalError::Busy(_) => Exit::Unavailable,
        JournalError::Newer { .. }
        | JournalError::Foreign(_)
        | JournalError::Corrupt(_)
        | JournalError::Conflict(_) => Exit::Failed,
        JournalError::Overloaded
        | JournalError::Full(_)
        | JournalError::InUse(_)
        | JournalError::Io(_)
        | JournalError::Database(_)
        | JournalError::Closed => Exit::Internal,
    };
    Fault::new(exit, words)
}
