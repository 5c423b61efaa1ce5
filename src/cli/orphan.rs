//! `kvmlet orphan`.
//!
//! Invariant: nothing is removed without a yes, on a terminal or by `--yes`.

use crate::cli::connect::Session;
use crate::cli::fault::{Exit, Fault};
use crate::cli::output;
use crate::cli::resolve::{self, PAGE};
use crate::cli::table::Table;
use crate::cli::wait::{self, WaitArgs};
use crate::proto::v1::{DeleteOrphanRequest, ListOrphansRequest, Orphan};
use clap::Subcommand;
use std::io::{IsTerminal, stdin};

/// Commands on orphans.
#[derive(Debug, Subcommand)]
pub(crate) enum OrphanCommand {
    /// List what no VM or image accounts for, oldest first
    #[command(after_help = "Example:\n  kvmlet orphan list")]
    List {
        /// Also what is not kvmlet's: it is shown, and never touched
        #[arg(short, long)]
        all: bool,
    },
    /// Remove one orphan for good, if nothing uses it
    #[command(after_help = "Example:\n  kvmlet orphan delete 6f1d2c30")]
    Delete {
        /// The orphan's id, or the beginning of it
        orphan: String,
        /// Refuse if it has changed since it was listed with this generation
        #[arg(long, value_name = "NUMBER")]
        if_generation: Option<u64>,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// Carries out a command.
pub(crate) async fn run(session: &Session, command: OrphanCommand) -> Result<(), Fault> {
    match command {
        OrphanCommand::List { all } => list(session, all).await,
        OrphanCommand::Delete {
            orphan,
            if_generation,
            yes,
            wait,
        } => {
            if !yes && !stdin().is_terminal() {
                return Err(Fault::usage(
                    "this removes the orphan for good, and there is no terminal to ask on: say --yes",
                ));
            }
            let orphan = find(session, &orphan).await?;
            if !yes {
                confirm(&orphan)?;
            }
            let request = DeleteOrphanRequest {
                request_id: String::new(),
                generation: if_generation.unwrap_or(orphan.generation),
                orphan_id: orphan.id,
            };
            wait::carry_out(session, &wait, |request_id| {
                let mut client = session.node();
                let request = DeleteOrphanRequest {
                    request_id,
                    ..request.clone()
                };
                async move { client.delete_orphan(request).await }
            })
            .await
        }
    }
}

async fn all(session: &Session) -> Result<Vec<Orphan>, Fault> {
    resolve::pages(|page_token| {
        let mut client = session.node();
        let request = ListOrphansRequest {
            page_size: PAGE,
            page_token,
        };
        async move {
            let page = client.list_orphans(request).await?.into_inner();
            Ok((page.orphans, page.next_page_token))
        }
    })
    .await
}

async fn list(session: &Session, foreign_too: bool) -> Result<(), Fault> {
    let mut orphans = all(session).await?;
    orphans.retain(|orphan| foreign_too || !orphan.foreign);
    session.out.many(&orphans, || {
        let mut table = Table::new(&["ID", "KIND", "AGE", "SIZE", "POOL", "NAME", "WHY"]);
        for orphan in &orphans {
            table.row([
                orphan.id.clone(),
                kind(orphan),
                session.out.relative(orphan.modify_time),
                output::size(orphan.size_bytes),
                orphan.pool.clone(),
                orphan.name.clone(),
                orphan.evidence.clone(),
            ]);
        }
        table
    })
}

/// The one orphan whose id is this or begins with it.
async fn find(session: &Session, wanted: &str) -> Result<Orphan, Fault> {
    let plain = |text: &str| text.replace('-', "").to_ascii_lowercase();
    let wanted_plain = plain(wanted);
    let mut found: Vec<Orphan> = all(session)
        .await?
        .into_iter()
        .filter(|orphan| !wanted_plain.is_empty() && plain(&orphan.id).starts_with(&wanted_plain))
        .collect();
    match (found.pop(), found.len()) {
        (Some(orphan), 0) => Ok(orphan),
        (Some(_), _) => Err(Fault::usage(format!(
            "{wanted:?} is the beginning of several orphans' ids"
        ))),
        (None, _) => Err(Fault::new(
            Exit::NotFound,
            format!("no orphan's id begins with {wanted:?}"),
        )
        .with("to see them: kvmlet orphan list --all")),
    }
}

/// Shows what will be removed and asks.
fn confirm(orphan: &Orphan) -> Result<(), Fault> {
    eprintln!(
        "{} {}: {}",
        kind(orphan),
        output::clean(&orphan.name),
        output::clean(&orphan.evidence)
    );
    eprint!("Remove it for good? [y/N] ");
    let mut answer = String::new();
    stdin()
        .read_line(&mut answer)
        .map_err(|error| Fault::usage(format!("no answer: {error}")))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Fault::usage("nothing was removed")),
    }
}

fn kind(orphan: &Orphan) -> String {
    output::word(orphan.kind().as_str_name(), "ORPHAN_KIND_")
}
