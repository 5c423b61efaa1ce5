//! The composition root: the only file that names every part.
//!
//! Reads as a list: configuration, log, journal, parts, first look at the host,
//! doors open, wait, doors shut. Nothing is bound before the configuration has
//! been checked; nothing of a guest is touched on the way out.

mod listen;
mod notices;
mod reload;
mod watch;

use crate::cli::ServeArgs;
use crate::config::Config;
use crate::door::Door;
use crate::faultpoint;
use crate::grpc;
use crate::journal::{Batch, Journal, JournalError, Rebuild};
use crate::libvirt::{HypervisorUri, Owner};
use crate::model::event::Position;
use crate::report::metrics::{self, Metrics};
use crate::service::addresses::{self, Addresses};
use crate::service::core::Readiness;
use crate::service::current::Current;
use crate::service::feed::{Feed, catch_up};
use crate::service::gate::Gate;
use crate::service::hypervisor::{Hypervisor, Link};
use crate::service::images::Images;
use crate::service::ledger::Ledger;
use crate::service::node::NodeIdentity;
use crate::service::operations::Operations;
use crate::service::orphans::Orphans;
use crate::service::pools::Pools;
use crate::service::reconcile::{Reconciler, compare_images, unfinished_imports, used_pools};
use crate::service::sinks::Board;
use crate::service::status_line::status_line;
use crate::service::vms::Vms;
use crate::service::{Core, fault::chain, host_run, sweeper};
use crate::telemetry::{AuditFile, Level};
use crate::{report, shutdown, systemd, telemetry};
use notices::Notices;
use reload::Reload;
use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// `EX_CONFIG` of sysexits: the unit does not start it again.
const BAD_CONFIGURATION: u8 = 78;
/// How long calls may take to end once nothing is at work any more.
const LAST_CALLS: Duration = Duration::from_secs(2);
/// How long the last spans may take to be sent, within what is left of the grace.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// What is left to be done past the grace: spans, threads that hang.
const PAST_GRACE: Duration = Duration::from_secs(10);

/// How serving ended.
type Served = Result<(), Box<dyn Error + Send + Sync>>;

/// How far each sink's receiver is.
type Cursors = HashMap<String, Position>;

/// Why the daemon does not run, with the exit code that says so.
struct Refusal {
    code: u8,
    words: String,
}

fn refusal(code: u8, words: impl Into<String>) -> Refusal {
    Refusal {
        code,
        words: words.into(),
    }
}

/// Runs the daemon until it is told to stop; `version` is what the program says it is.
pub fn serve(args: ServeArgs, version: &'static str) -> ExitCode {
    match prepare(args, version) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprintln!("kvmlet serve: {}", refusal.words);
            ExitCode::from(refusal.code)
        }
    }
}

fn prepare(args: ServeArgs, version: &'static str) -> Result<(), Refusal> {
    crate::hardening::close_strangers().map_err(|error| refusal(1, chain(&error)))?;
    crate::hardening::keep_memory_private().map_err(|error| refusal(1, chain(&error)))?;
    let _armed = faultpoint::arm();
    let path = args.config.clone();
    let (config, _scratch) = configuration(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("kvmlet")
        .build()
        .map_err(|error| refusal(1, chain(&error)))?;
    // Without an id, it does not serve.
    let node = config.node.resolve_id().ok();
    let telemetry = {
        let _entered = runtime.enter();
        telemetry::start(&config.log, &config.audit, &config.traces, node, version)
            .map_err(|error| refusal(1, chain(&error)))?
    };
    let log = Log {
        audit: telemetry.audit.clone(),
        level: telemetry.level.clone(),
    };
    let outcome = runtime.block_on(run(config, path, log, version));
    telemetry.end(match &outcome {
        Ok(left) => LAST_SPANS.min(*left),
        Err(_) => LAST_SPANS,
    });
    // A call that hangs in libvirt or a file system must not hold up the end:
    // the journal says already where it was.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome.map(drop)
}

/// What of the log changes while the daemon runs.
struct Log {
    audit: Option<AuditFile>,
    level: Level,
}

/// The configuration, and the folder of a simulated host, which goes with it.
fn configuration(args: ServeArgs) -> Result<(Config, Option<tempfile::TempDir>), Refusal> {
    if let Some(path) = args.config {
        let config = Config::load(&path).map_err(|faults| {
            refusal(BAD_CONFIGURATION, format!("{}:\n{faults}", path.display()))
        })?;
        return Ok((config, None));
    }
    let scratch = tempfile::Builder::new()
        .prefix("kvmlet-simulated-")
        .tempdir()
        .map_err(|error| refusal(1, chain(&error)))?;
    let config = Config::simulated(scratch.path());
    for folder in &config.images.allowed_dirs {
        std::fs::create_dir_all(folder).map_err(|error| refusal(1, chain(&error)))?;
    }
    println!("A simulated host: no guest runs, and nothing outlives this process.");
    println!("In another terminal:");
    println!(
        "  export KVMLET_SERVER=unix://{}",
        config.api.socket.display()
    );
    println!("  kvmlet node");
    println!(
        "Images are imported from {}",
        scratch.path().join("import").display()
    );
    Ok((config, Some(scratch)))
}

/// Serves until it is told to stop; returns how much of the grace is left.
async fn run(
    config: Config,
    path: Option<PathBuf>,
    log: Log,
    version: &'static str,
) -> Result<Duration, Refusal> {
    let signals = shutdown::on_signals().map_err(|error| refusal(1, chain(&error)))?;
    let door = Arc::new(Door::open(&config));
    if let Some(role) = config.api.plaintext_role {
        tracing::warn!(
            role = role.as_str(),
            "the API is served without encryption: everyone on this host has this role"
        );
    }
    let doors = listen::open(&config)
        .await
        .map_err(|error| refusal(1, error))?;
    let notices = Arc::new(Notices::default());
    notices.status("reading the journal");
    let (core, reconciler, cursors) = compose(config, door, version).await?;
    let reload = Reload {
        core: core.clone(),
        path,
        log,
        notices: notices.clone(),
    };
    reload
        .follow(&signals)
        .map_err(|error| refusal(1, chain(&error)))?;
    let watched = watch::over(&core, &notices);
    reconciler.adopt_recorded();

    let closing = CancellationToken::new();
    let server = tokio::spawn(grpc::serve(core.clone(), doors.listeners, closing.clone()));
    let figures = Arc::new(Metrics::new(core.clone()));
    let scraped = tokio::spawn(metrics::serve(figures, doors.metrics, closing.clone()));
    let link = core
        .hypervisor
        .clone()
        .run(reconciler, core.stopping.clone());
    core.tasks.spawn(link);
    core.tasks.spawn(catch_up(core.clone()));
    report::sinks::start(&core, &cursors);
    compare_images(&core).await;
    core.tasks.spawn(sweeper::run(core.clone()));
    core.tasks.spawn(sweeper::watch_host(core.clone()));
    core.tasks.spawn(sweeper::await_pools(core.clone()));
    core.tasks.spawn(sweeper::empty_trash(core.clone()));
    core.tasks.spawn(addresses::run(core.clone()));

    let (mut readiness, mut link) = (core.readiness(), core.hypervisor.link());
    let up = async {
        drop(readiness.wait_for(|ready| *ready == Readiness::Ready).await);
        // Comes right after: the line shall not say that libvirt is away.
        drop(link.wait_for(|link| *link == Link::Up).await);
    };
    tokio::select! {
        () = up => {
            tracing::info!("ready");
            notices.ready(&status_line(&core, Duration::ZERO));
            signals.end.cancelled().await;
        }
        () = signals.end.cancelled() => {}
    }

    // Nobody misses a last scrape.
    scraped.abort();
    let told = Instant::now();
    stop(&core, &notices, &closing, server).await;
    watched.end();
    Ok(core.config.shutdown.grace.saturating_sub(told.elapsed()))
}

async fn compose(
    config: Config,
    door: Arc<Door>,
    version: &'static str,
) -> Result<(Arc<Core>, Arc<Reconciler>, Cursors), Refusal> {
    let uri: HypervisorUri = config.hypervisor.uri.parse().map_err(|error| {
        refusal(
            BAD_CONFIGURATION,
            format!("hypervisor.uri: {}", chain(&error)),
        )
    })?;
    let node = config.node.resolve_id().map_err(|error| {
        refusal(
            1,
            format!("node.id is not set, and /etc/machine-id gives none: {error}"),
        )
    })?;
    let (journal, loaded) = Journal::open(&config.journal.path).map_err(|error| {
        let path = config.journal.path.display();
        match error {
            // Trying again helps none of these.
            JournalError::Newer { .. } | JournalError::Foreign(_) => {
                refusal(BAD_CONFIGURATION, chain(&error))
            }
            JournalError::Corrupt(_) => refusal(
                BAD_CONFIGURATION,
                format!(
                    "{error}\n\
                     See what is wrong:  kvmlet journal check --path {path}\n\
                     Put a backup in its place; or move {path}, {path}-wal and {path}-shm away:\n\
                     the next start makes a new journal from the domains and pools of this host.\n\
                     Guests are not touched by any of this."
                ),
            ),
            error => refusal(1, chain(&error)),
        }
    })?;
    // An agent whose journal was lost finds its domains again by the place of the new one.
    let agent = loaded
        .agent
        .unwrap_or_else(|| Owner::at(node, &config.journal.path).agent);
    listen::make_folder(&config.vms.console_dir).map_err(|error| refusal(1, error))?;
    let gate = Arc::new(Gate::default());
    let journal = Arc::new(journal);
    let feed = Arc::new(Feed::new(
        journal.clone(),
        loaded.epoch,
        loaded.revision,
        &loaded.told,
    ));
    let ledger = Arc::new(Ledger::new(journal, gate.clone()));
    let stopping = CancellationToken::new();
    let core = Arc::new(Core {
        hypervisor: Arc::new(Hypervisor::new(
            uri,
            Owner { node, agent },
            config.hypervisor.connections,
            config.hypervisor.call_timeout,
            gate.clone(),
        )),
        pools: Pools::new(&config, gate.clone(), node),
        operations: Operations::new(ledger.clone(), feed.clone(), stopping.clone()),
        vms: Vms::new(config.operations.queue),
        images: Images::new(loaded.images.clone(), &config.images, feed.clone(), version)
            .map_err(|fault| refusal(BAD_CONFIGURATION, fault.message))?,
        addresses: Addresses::default(),
        orphans: Orphans::default(),
        sinks: Board::default(),
        node: NodeIdentity::read(node, version),
        host_run: host_run::Known::new(loaded.host_run.clone()),
        tasks: TaskTracker::new(),
        current: Current::new(&config),
        ready: tokio::sync::watch::Sender::new(Readiness::Starting),
        door,
        feed,
        config,
        gate,
        ledger,
        stopping,
    });
    if loaded.rebuild == Some(Rebuild::Pending) {
        // Which pools hold something, and what is unfinished in them, no record says.
        core.pools.prepare_made().await;
    } else {
        core.pools.prepare(&used_pools(&loaded)).await;
        core.pools
            .sweep_temporary(unfinished_imports(&loaded))
            .await;
    }
    tracing::info!(
        version,
        node = %node,
        epoch = %loaded.epoch,
        vms = loaded.vms.len(),
        unfinished = loaded.live_operations.len(),
        "kvmlet starts"
    );
    if loaded.agent.is_none() {
        let batch = Batch::new().put_agent(agent);
        if let Err(fault) = core.ledger.commit(batch).await {
            // From the same place it is made the same again.
            tracing::warn!(error = chain(&fault), "the agent's mark is not recorded");
        }
    }
    let cursors = loaded.cursors.clone();
    let reconciler = Arc::new(Reconciler::new(core.clone(), loaded));
    Ok((core, reconciler, cursors))
}

/// Not ready, no new calls, plans halt between steps, the rest ends; past the
/// deadline it ends anyway.
async fn stop(
    core: &Arc<Core>,
    notices: &Notices,
    closing: &CancellationToken,
    server: tokio::task::JoinHandle<Served>,
) {
    tracing::info!("stopping; guests go on");
    core.ready.send_replace(Readiness::Stopping);
    notices.stopping(&status_line(core, Duration::ZERO));
    host_run::record_end(core).await;
    // The unit may allow less than the configuration.
    systemd::extend_timeout(core.config.shutdown.grace.saturating_add(PAST_GRACE));
    core.stopping.cancel();
    core.operations.halt();
    closing.cancel();
    core.tasks.close();
    let ended = async {
        core.tasks.wait().await;
        // Calls end by now; a stream that somebody only watches need not.
        drop(tokio::time::timeout(LAST_CALLS, server).await);
    };
    match tokio::time::timeout(core.config.shutdown.grace, ended).await {
        Ok(()) => tracing::info!("stopped"),
        Err(_) => {
            tracing::warn!("stopped at the deadline; what was at work goes on at the next start")
        }
    }
}
