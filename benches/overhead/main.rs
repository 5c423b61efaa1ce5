//! What kvmlet costs on top of libvirt, in one run on real QEMU.
//!
//! - pause and resume: PauseVm, ResumeVm and a wait for each, against the two
//!   calls made on libvirt;
//! - create and start: CreateVm and a wait, against `qemu-img create`, define
//!   and start on libvirt, and against `qemu-img create` and `virt-install`.
//!
//! All sides use one private libvirtd and take turns, so that what else the
//! machine does hits them alike: only the ratios mean something. Needs root,
//! libvirtd, QEMU, tini and virt-install.
//!
//! | variable | default | what |
//! |---|---|---|
//! | `KVMLET_BENCH_PAIRS` | 30 | times that each side pauses and resumes |
//! | `KVMLET_BENCH_CREATES` | 10 | VMs that each side creates |
//! | `KVMLET_BENCH_DAEMON` | the one built with the bench | another kvmlet |
//! | `KVMLET_BENCH_DIR` | `/var/tmp` | where journal and volumes are; its disk counts |

mod host;
mod sides;

use host::{Failure, Host};
use sides::{Direct, Kvmlet, Phases};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Rounds before those that count.
const WARM_UP: usize = 2;

fn main() -> ExitCode {
    // `cargo test --all-targets` runs it without this.
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("overhead: measures only under `cargo bench --bench overhead`");
        return ExitCode::SUCCESS;
    }
    match measured() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("overhead: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measured() -> Result<(), Failure> {
    let pairs = setting("KVMLET_BENCH_PAIRS", 30)?;
    let creates = setting("KVMLET_BENCH_CREATES", 10)?;
    let parent =
        std::env::var_os("KVMLET_BENCH_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let mut host = Host::start(&parent)?;
    let outcome = compare(&mut host, pairs, creates);
    outcome.map_err(|failure| format!("{failure}\n{}", host.last_words()).into())
}

fn compare(host: &mut Host, pairs: usize, creates: usize) -> Result<(), Failure> {
    host.start_kvmlet("")?;
    let mut kvmlet = Kvmlet::connect(host)?;
    let (vm, root) = kvmlet.create()?;
    let direct = Direct::like(host, &vm, &root)?;
    println!(
        "guests on {}; one fsync of 4 KiB in {}: median {}",
        if direct.is_kvm() { "KVM" } else { "TCG" },
        host.path("").display(),
        shown(Times(fsyncs(&host.path("fsync"))?).median()),
    );

    let twin = direct.create()?;
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    let mut calls = 0;
    for round in 0..WARM_UP + pairs {
        if round == WARM_UP {
            calls = kvmlet.libvirt_calls()?;
            kvmlet.phases();
        }
        let counts = round >= WARM_UP;
        theirs.time(counts, || direct.pause_and_resume(&twin))?;
        ours.time(counts, || kvmlet.pause_and_resume(&vm))?;
    }
    let calls = kvmlet.libvirt_calls()? - calls;
    println!("\npause and resume, {pairs} times each");
    row("libvirt directly", &theirs, &theirs);
    row("kvmlet", &ours, &theirs);
    println!(
        "  libvirt calls that kvmlet made for one: {}",
        per(calls, pairs)
    );
    show_phases(kvmlet.phases());
    direct.remove(twin)?;
    kvmlet.remove(&vm)?;

    let (mut ours, mut theirs, mut tool) = (Times::default(), Times::default(), Times::default());
    let mut calls = 0;
    let mut phases = Phases::new();
    for round in 0..1 + creates {
        let counts = round >= 1;
        let made = theirs.time(counts, || direct.create())?;
        direct.remove(made)?;
        let before = kvmlet.libvirt_calls()?;
        kvmlet.phases();
        let (vm, _) = ours.time(counts, || kvmlet.create())?;
        if counts {
            calls += kvmlet.libvirt_calls()? - before;
            for (phase, took) in kvmlet.phases() {
                match phases.iter_mut().find(|(known, _)| *known == phase) {
                    Some((_, times)) => times.extend(took),
                    None => phases.push((phase, took)),
                }
            }
        }
        kvmlet.remove(&vm)?;
        let made = tool.time(counts, || direct.virt_install(&host.uri()))?;
        direct.remove(made)?;
    }
    println!("\ncreate and start, {creates} times each");
    row("qemu-img and libvirt directly", &theirs, &theirs);
    row("kvmlet", &ours, &theirs);
    row("qemu-img and virt-install", &tool, &theirs);
    println!(
        "  libvirt calls that kvmlet made for one: {}",
        per(calls, creates)
    );
    show_phases(phases);
    Ok(())
}

fn setting(name: &str, default: usize) -> Result<usize, Failure> {
    let Ok(text) = std::env::var(name) else {
        return Ok(default);
    };
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name} must be a number above 0, not {text:?}").into()),
    }
}

/// How long something took, each time.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn time<T>(
        &mut self,
        counts: bool,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        let done = work()?;
        if counts {
            self.0.push(start.elapsed());
        }
        Ok(done)
    }

    fn median(&self) -> Duration {
        self.at(50)
    }

    /// The time that so many percent of all were not above.
    fn at(&self, percent: usize) -> Duration {
        let mut times = self.0.clone();
        times.sort_unstable();
        times[(times.len() - 1) * percent / 100]
    }
}

fn row(side: &str, times: &Times, direct: &Times) {
    println!(
        "  {side:<30} median {:>10}  p90 {:>10}  ratio {:>6.2}",
        shown(times.median()),
        shown(times.at(90)),
        times.median().as_secs_f64() / direct.median().as_secs_f64(),
    );
}

/// Where kvmlet's time goes, by what its operations say themselves.
fn show_phases(phases: Phases) {
    for (phase, times) in phases {
        println!(
            "    {phase:<50} median {:>10}",
            shown(Times(times).median())
        );
    }
}

fn shown(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[allow(clippy::cast_precision_loss)] // counts of calls
fn per(calls: u64, times: usize) -> String {
    format!("{:.1}", calls as f64 / times as f64)
}

/// What this disk takes to make 4 KiB durable at the end of a file.
fn fsyncs(path: &Path) -> Result<Vec<Duration>, Failure> {
    let mut file = std::fs::File::create(path)?;
    let mut times = Times::default();
    for _ in 0..50 {
        times.time(true, || {
            file.write_all(&[0; 4096])?;
            Ok(file.sync_data()?)
        })?;
    }
    Ok(times.0)
}
