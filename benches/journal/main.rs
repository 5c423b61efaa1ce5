//! How many operations a second the journal lets through, and how often each waits
//! for the disk.
//!
//! - the whole path: PauseVm and ResumeVm over gRPC on libvirt's simulated driver,
//!   each waited for, with 1, 8 and 64 VMs at once; what was made durable and by how
//!   many commits is what the daemon itself counts, and what the kernel saw of it;
//! - the journal alone, with the records that those operations left: batches that
//!   wait together share a commit (as in the daemon), against one commit for each.
//!
//! The two sides of the second part take turns, so that what else the machine does
//! hits them alike: only the ratios mean something. Needs qemu-img and setpriv.
//!
//! | variable | default | what |
//! |---|---|---|
//! | `KVMLET_BENCH_SECONDS` | 5 | how long each number of VMs is at it |
//! | `KVMLET_BENCH_DAEMON` | the one built with the bench | another kvmlet |
//! | `KVMLET_BENCH_DIR` | `/var/tmp` | where the journal is; its disk counts |

mod host;

use host::{Failure, Host, Vm};
use kvmlet::journal::{Batch, Journal, JournalError, export};
use kvmlet::model::operation::{Intent, Operation};
use kvmlet::model::vm::Vm as Record;
use serde::de::DeserializeOwned;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How many VMs are at it at once.
const AT_ONCE: [usize; 3] = [1, 8, 64];
/// Rounds in which the two sides of the second part take turns.
const TURNS: u32 = 5;

fn main() -> ExitCode {
    // `cargo test --all-targets` runs it without this.
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("journal: measures only under `cargo bench --bench journal`");
        return ExitCode::SUCCESS;
    }
    match measured() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("journal: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measured() -> Result<(), Failure> {
    let seconds = setting("KVMLET_BENCH_SECONDS", 5)?;
    let parent =
        std::env::var_os("KVMLET_BENCH_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let runtime = tokio::runtime::Runtime::new()?;
    let time = Duration::from_secs(seconds);
    let host = runtime.block_on(Host::start(&parent))?;
    let measured = runtime.block_on(whole_path(&host, time));
    measured.map_err(|failure| format!("{failure}\n{}", host.log()))?;
    let records = Records::read(&host.path("journal.db"))?;
    drop(host);
    journal_alone(&parent, &records, time)
}

async fn whole_path(host: &Host, time: Duration) -> Result<(), Failure> {
    println!(
        "one fsync of 4 KiB in {}: median {:.2} ms",
        host.path("").display(),
        fsync(&host.path("fsync"))?.as_secs_f64() * 1e3,
    );
    let vms = host.create(AT_ONCE[AT_ONCE.len() - 1]).await?;
    println!(
        "\noperations through the whole path, {} s each",
        time.as_secs()
    );
    for count in AT_ONCE {
        at_once(&vms[..count], Duration::from_millis(200)).await?;
        let before = host.node().await?;
        let written = written(host.pid());
        let begin = Instant::now();
        let operations = at_once(&vms[..count], time).await?;
        let took = begin.elapsed();
        let after = host.node().await?;
        let commits = after.journal_commits - before.journal_commits;
        let batches = after.journal_batches - before.journal_batches;
        println!(
            "  {count:>2} VMs: {:>8.0} ops/s  {:>5.2} fsyncs/op  {:>5.2} batches/op  {:>5.1} batches/fsync  {}",
            rate(operations, took),
            ratio(commits, operations),
            ratio(batches, operations),
            ratio(batches, commits),
            written
                .and_then(|before| crate::written(host.pid()).map(|now| now - before))
                .map_or_else(String::new, |bytes| format!(
                    "{:>5.1} KiB/op written",
                    ratio(bytes, operations) / 1024.0
                )),
        );
    }
    Ok(())
}

/// Has every VM paused and resumed for some time, and returns how many operations
/// that were.
async fn at_once(vms: &[Vm], time: Duration) -> Result<u64, Failure> {
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for vm in vms {
        let vm = vm.clone();
        tasks.spawn(async move {
            let mut operations = 0;
            while Instant::now() < until {
                vm.pause_and_resume().await?;
                operations += 2;
            }
            Ok::<u64, Failure>(operations)
        });
    }
    let mut operations = 0;
    while let Some(ended) = tasks.join_next().await {
        operations += ended??;
    }
    Ok(operations)
}

/// Bytes that a process had written to disk so far, as the kernel counts them.
fn written(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))?;
    line.parse().ok()
}

/// A VM and an operation on it, as the first part left them in the journal.
struct Records {
    vm: Record,
    operation: Operation,
}

impl Records {
    fn read(path: &Path) -> Result<Self, Failure> {
        let (mut vm, mut operation) = (None, None);
        let mut problem = None;
        export(path, |object| {
            let record = object["record"].clone();
            match object["kind"].as_str() {
                Some("vm") if vm.is_none() => vm = parsed(record, &mut problem),
                Some("operation") if operation.is_none() => {
                    operation = parsed::<Operation>(record, &mut problem)
                        .filter(|operation| operation.intent == Intent::PauseVm);
                }
                _ => {}
            }
            Ok::<(), JournalError>(())
        })?;
        match (vm, operation, problem) {
            (Some(vm), Some(operation), None) => Ok(Self { vm, operation }),
            (.., problem) => Err(format!("the journal has no such records: {problem:?}").into()),
        }
    }

    /// What an operation writes when it begins, and when it ends.
    fn batches(&self) -> [Batch; 2] {
        let ended = Operation {
            id: kvmlet::model::ids::OperationId::random(),
            request_id: None,
            ..self.operation.clone()
        };
        let begun = Operation {
            state: kvmlet::model::operation::OperationState::Pending,
            end_time: None,
            result: None,
            ..ended.clone()
        };
        [
            Batch::new().put_operation(&begun),
            Batch::new().put_vm(&self.vm).put_operation(&ended),
        ]
    }
}

fn parsed<T: DeserializeOwned>(
    record: serde_json::Value,
    problem: &mut Option<serde_json::Error>,
) -> Option<T> {
    serde_json::from_value(record)
        .map_err(|error| *problem = Some(error))
        .ok()
}

fn journal_alone(parent: &Path, records: &Records, time: Duration) -> Result<(), Failure> {
    let folder = tempfile::Builder::new()
        .prefix("kvmlet-bench-")
        .tempdir_in(parent)?;
    let (journal, _) = Journal::open(&folder.path().join("journal.db"))?;
    println!("\nthe journal alone, with the same records");
    for count in AT_ONCE {
        let (mut shared, mut single) = (Side::default(), Side::default());
        let one_by_one = Mutex::new(());
        for _ in 0..TURNS {
            shared.turn(&journal, records, count, time / TURNS / 2, None)?;
            single.turn(
                &journal,
                records,
                count,
                time / TURNS / 2,
                Some(&one_by_one),
            )?;
        }
        println!(
            "  {count:>2} at once: shared commits {:>8.0} ops/s, {:.2} fsyncs/op; one for each batch {:>8.0} ops/s, {:.2} fsyncs/op; ratio {:.2}",
            shared.rate(),
            shared.fsyncs(),
            single.rate(),
            single.fsyncs(),
            shared.rate() / single.rate(),
        );
    }
    Ok(())
}

#[derive(Default)]
struct Side {
    operations: u64,
    commits: u64,
    time: Duration,
}

impl Side {
    /// Writes operations from some threads at once; with `one_by_one`, no batch
    /// ever waits beside another.
    fn turn(
        &mut self,
        journal: &Journal,
        records: &Records,
        threads: usize,
        time: Duration,
        one_by_one: Option<&Mutex<()>>,
    ) -> Result<(), Failure> {
        let commits = journal.commits();
        let start = Barrier::new(threads);
        let begin = Instant::now();
        let write = || -> Result<u64, JournalError> {
            start.wait();
            let until = Instant::now() + time;
            let mut operations = 0;
            while Instant::now() < until {
                for batch in records.batches() {
                    let _alone = one_by_one.map(|lock| lock.lock());
                    journal.commit(batch)?;
                }
                operations += 1;
            }
            Ok(operations)
        };
        let written: Result<Vec<u64>, JournalError> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(write)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or(Err(JournalError::Closed)))
                .collect()
        });
        self.operations += written?.iter().sum::<u64>();
        self.commits += journal.commits() - commits;
        self.time += begin.elapsed();
        Ok(())
    }

    fn rate(&self) -> f64 {
        rate(self.operations, self.time)
    }

    fn fsyncs(&self) -> f64 {
        ratio(self.commits, self.operations)
    }
}

#[allow(clippy::cast_precision_loss)] // counts of a few seconds
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[allow(clippy::cast_precision_loss)] // counts of a few seconds
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn setting(name: &str, default: u64) -> Result<u64, Failure> {
    let Ok(text) = std::env::var(name) else {
        return Ok(default);
    };
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name} must be a number above 0, not {text:?}").into()),
    }
}

/// What this disk takes to make 4 KiB durable at the end of a file: the median of
/// many times.
fn fsync(path: &Path) -> Result<Duration, Failure> {
    let mut file = std::fs::File::create(path)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
