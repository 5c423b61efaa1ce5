//! `kvmlet doctor`: prints what [`doctor`](crate::doctor) found on the host and, of the
//! daemon, what it says itself.
//!
//! Invariant: it ends, whatever hangs, and changes nothing.

use crate::cli::connect::{self, DEFAULT_SERVER, Server, TlsArgs};
use crate::cli::fault::{Exit, Fault};
use crate::cli::output::{Output, clean};
use crate::config::Config;
use crate::doctor::{self, Condition, DaemonAnswer, Finding, Level};
use crate::proto::v1::GetNodeRequest;
use clap::Args;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use unicode_width::UnicodeWidthStr;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to hold the host against.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo kvmlet doctor
  kvmlet doctor --config /etc/kvmlet/kvmlet.toml -o json

Looks at the processor, libvirt, networks, pools, Ceph, the journal, memory, the clock,
ports, certificates, tools, limits, units and the daemon, and changes nothing. Each
finding is ok, a warning, an error, or was skipped; what is not ok says what it means
and what to do. With -q, only those are printed.

Ends with 0 if there is no error (there may be warnings), with 1 if there is one, with 70
for a fault of this command itself. It may be run while the daemon runs or not, by root or
not; what only root may look at is skipped. docs/doctor.md has every check.")]
pub(crate) struct DoctorArgs {
    /// The daemon's configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/kvmlet/kvmlet.toml")]
    config: PathBuf,
}

/// Looks at everything and prints it.
pub(crate) fn run(
    out: &Output,
    server: Server,
    tls: &TlsArgs,
    args: &DoctorArgs,
    version: &'static str,
) -> Result<(), Fault> {
    let read = doctor::read(&args.config);
    let answer = ask(out, whom(server, read.config()), tls, version)?;
    let findings = doctor::examine(read, answer, version);
    if out.is_json() {
        let config = args.config.display().to_string();
        out.json(&as_json(&config, &findings, version))?;
    } else {
        out.line(as_text(&findings, out.quiet))?;
    }
    match count(&findings, Level::Error) {
        0 => Ok(()),
        errors => Err(Fault::new(Exit::Failed, plural(errors, "error"))),
    }
}

/// The daemon of this configuration, unless another is asked for.
fn whom(server: Server, config: Option<&Config>) -> Server {
    match (&server, config) {
        (Server::Unix(_), Some(config)) if server.to_string() == DEFAULT_SERVER => {
            Server::Unix(config.api.socket.display().to_string())
        }
        _ => server,
    }
}

/// Asks the daemon what it says of the host.
fn ask(out: &Output, server: Server, tls: &TlsArgs, version: &str) -> Result<DaemonAnswer, Fault> {
    let shown = server.to_string();
    if let Server::Unix(path) = &server
        && let Err(error) = UnixStream::connect(path)
    {
        return Ok(DaemonAnswer::Unreachable {
            server: shown,
            why: error.to_string(),
            denied: error.kind() == ErrorKind::PermissionDenied,
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::internal(format!("can't start: {error}")))?;
    let asked = runtime.block_on(async {
        let asked = async {
            let session = connect::open(server, tls, out.clone(), version).await?;
            let answer = session.node().get_node(GetNodeRequest {}).await?;
            Ok(answer.into_inner())
        };
        tokio::time::timeout(PATIENCE, asked).await
    });
    Ok(match asked {
        Ok(Ok(node)) => DaemonAnswer::Node {
            version: node.kvmlet_version,
            conditions: node
                .conditions
                .into_iter()
                .map(|condition| Condition {
                    name: condition.r#type,
                    well: condition.status,
                    reason: condition.reason,
                    message: condition.message,
                })
                .collect(),
        },
        Ok(Err::<_, Fault>(fault)) if fault.exit == Exit::Unavailable => {
            DaemonAnswer::Unreachable {
                server: shown,
                why: fault.message().to_owned(),
                denied: false,
            }
        }
        Ok(Err(fault)) => DaemonAnswer::Refused {
            server: shown,
            why: fault.message().to_owned(),
        },
        Err(_) => DaemonAnswer::Unreachable {
            server: shown,
            why: format!("no answer within {} s", PATIENCE.as_secs()),
            denied: false,
        },
    })
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|it| it.level == level).count()
}

fn plural(count: usize, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        count => format!("{count} {word}s"),
    }
}

/// The names are a contract: scripts read them.
fn as_json(config: &str, findings: &[Finding], version: &str) -> Value {
    let one = |finding: &Finding| {
        json!({
            "subject": finding.check.subject(),
            "check": finding.check.id(),
            "about": finding.about,
            "level": finding.level.as_str(),
            "found": finding.found,
            "meaning": finding.meaning,
            "advice": finding.advice,
        })
    };
    json!({
        "version": version,
        "config": config,
        "errors": count(findings, Level::Error),
        "warnings": count(findings, Level::Warning),
        "skipped": count(findings, Level::Skipped),
        "ok": count(findings, Level::Ok),
        "findings": findings.iter().map(one).collect::<Vec<_>>(),
    })
}

/// A line for each finding, below it what it means and what to do, and the sum.
fn as_text(findings: &[Finding], only_bad: bool) -> String {
    let shown = findings
        .iter()
        .filter(|finding| !only_bad || finding.level != Level::Ok);
    let rows: Vec<(String, &Finding)> = shown
        .map(|finding| {
            let name = format!("{} {}", finding.check, clean(&finding.about));
            (name.trim_end().to_owned(), finding)
        })
        .collect();
    let levels = [Level::Ok, Level::Skipped, Level::Warning, Level::Error];
    let indent = levels.map(|level| level.as_str().len()).into_iter().max();
    let indent = indent.unwrap_or(0) + 2;
    let width = rows.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, finding) in rows {
        text.push_str(&format!("{:indent$}", finding.level.as_str()));
        text.push_str(&name);
        text.extend(std::iter::repeat_n(' ', width + 2 - name.width()));
        text.push_str(&clean(&finding.found));
        text.push('\n');
        for line in [&finding.meaning, &finding.advice] {
            if !line.is_empty() {
                text.extend(std::iter::repeat_n(' ', indent));
                text.push_str(&clean(line));
                text.push('\n');
            }
        }
    }
    text.push_str(&format!(
        "{}, {}, {} skipped, {} ok",
        plural(count(findings, Level::Error), "error"),
        plural(count(findings, Level::Warning), "warning"),
        count(findings, Level::Skipped),
        count(findings, Level::Ok)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Check;

    fn finding(about: &str, level: Level, meaning: &str, advice: &str) -> Finding {
        Finding {
            check: Check::PoolFolder,
            about: about.to_owned(),
            level,
            found: "found\u{1b}[1m".to_owned(),
            meaning: meaning.to_owned(),
            advice: advice.to_owned(),
        }
    }

    #[test]
    fn what_is_not_well_is_told_with_what_to_do() {
        let findings = [
            finding("a", Level::Ok, "", ""),
            finding("longer", Level::Error, "Bad.", "mend it"),
        ];
        assert_eq!(
            as_text(&findings, false),
            "ok       pool.folder a       found[1m\n\
             error    pool.folder longer  found[1m\n\
             \x20        Bad.\n\
             \x20        mend it\n\
             1 error, 0 warnings, 0 skipped, 1 ok"
        );
        assert!(as_text(&findings, true).starts_with("error    pool.folder longer"));
    }
}
