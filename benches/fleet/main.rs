//! What one receiver of a fleet's reports sees of many agents, and what both cost.
//!
//! ```text
//! cargo bench --features failpoints --bench fleet -- [--agents 1000] [--rate 10] [--seconds 20]
//! ```
//!
//! Each agent is the real runner with the real gRPC sink, over a Unix socket, and
//! the receiver is built on the example's account of a fleet. Not real is where the
//! events come from: a made-up source of one VM for each agent, instead of a feed
//! with libvirt and a journal behind it. All of it is one process, so the memory is
//! that of the receiver and all agents together.
//!
//! The lag is the time from when a change is made to when the receiver has used it.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../../examples/control_plane/fleet.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod fleet;
mod receiver;
mod source;

use clap::Parser;
use kvmlet::config::{Pace, ReportSettings};
use kvmlet::report::sinks::grpc::GrpcSink;
use kvmlet::report::sinks::runner::Runner;
use kvmlet::service::sinks::Board;
use source::Synthetic;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Parser)]
struct Arguments {
    /// How many agents.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Changes a second, of all agents together.
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// For how long.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Resident memory of this process.
fn resident_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}

/// Processor time of this process.
fn processor() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = |time: nix::sys::time::TimeVal| {
        Duration::new(
            time.tv_sec().try_into().unwrap(),
            u32::try_from(time.tv_usec()).unwrap() * 1000,
        )
    };
    time(usage.user_time()) + time(usage.system_time())
}

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs it without this.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing to do without --bench");
        return;
    }
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cp.sock");
    let receiver = receiver::serve(&socket);
    let settings = ReportSettings {
        name: "cp".to_owned(),
        endpoints: vec![format!("unix://{}", socket.display())],
        pace: Pace::default(),
        tls: None,
    };
    let empty = resident_mib();
    let (stop, tasks, board) = (
        CancellationToken::new(),
        TaskTracker::new(),
        Board::default(),
    );
    let begin = Instant::now();
    let sources: Vec<Arc<Synthetic>> = (0..arguments.agents)
        .map(|number| Arc::new(Synthetic::new(number)))
        .collect();
    for source in &sources {
        let runner = Runner {
            name: settings.name.clone(),
            sink: Arc::new(GrpcSink::new(&settings, env!("CARGO_PKG_VERSION"))),
            source: source.clone(),
            slot: board.add("cp".to_owned(), "grpc", String::new(), None),
            cursor: None,
            pace: settings.pace,
        };
        tasks.spawn(runner.run(stop.clone()));
    }
    receiver.wait_for_snapshots(arguments.agents).await;
    println!(
        "{} agents connected and told their state in {:.1} s",
        arguments.agents,
        begin.elapsed().as_secs_f64()
    );

    let before = processor();
    let total = u64::from(arguments.rate) * arguments.seconds;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / arguments.rate);
    for number in 0..total {
        tick.tick().await;
        let number = usize::try_from(number).unwrap();
        // Far apart, so that each agent is as if it were alone.
        sources[number * 7919 % sources.len()].change();
    }
    receiver.wait_for_changes(total).await;
    let used = processor() - before;
    let mut lags = receiver.lags();
    lags.sort_unstable();
    let part = |percent: usize| lags[(lags.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "{} changes: lag median {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        lags.len(),
        part(50),
        part(99),
        part(100)
    );
    println!(
        "memory {} MiB ({empty} MiB before the first agent), processor {:.1} % of one, {} heartbeats",
        resident_mib(),
        used.as_secs_f64() * 100.0 / arguments.seconds as f64,
        receiver.heartbeats()
    );
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}
