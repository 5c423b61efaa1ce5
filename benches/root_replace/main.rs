//! What replacing the root volume of a stopped VM takes, by the size of the
//! image, in one run and on libvirt's real QEMU driver:
//!
//! - kvmlet: ReplaceRootVolume and a wait for its end;
//! - by hand: `qemu-img create -b` or `rbd clone`, then `virsh dumpxml`, the new
//!   volume written into the definition, `virsh define`;
//! - full copy: `qemu-img convert` instead of the overlay or clone, then the same.
//!
//! The sides take turns, so that what else the machine does hits them alike: only
//! the ratios mean something. Images are sparse, with a part of random data.
//! Needs root, libvirtd, QEMU and tini; for RBD also Ceph (scripts/setup --ceph),
//! of which it starts a cluster in memory.
//!
//! | variable | default | what |
//! |---|---|---|
//! | `KVMLET_BENCH_POOLS` | `qcow2,rbd` | kinds of pools, or one of them |
//! | `KVMLET_BENCH_ROUNDS` | 10 | times that each side replaces a root |
//! | `KVMLET_BENCH_DAEMON` | the one built with the bench | another kvmlet |
//! | `KVMLET_BENCH_DIR` | `/var/tmp` | where journal and volumes are; its disk counts |

#[allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]
#[path = "../../tests/support/ceph.rs"]
mod ceph;
#[path = "../overhead/host.rs"]
mod host;
mod sides;

use ceph::Cluster;
use host::{Failure, Host};
use sides::{Disks, Hand, Kvmlet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the cluster may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sizes of images and of the data in them, in MiB.
const IMAGES: [(u64, u64); 3] = [(64, 16), (1024, 64), (10 * 1024, 256)];

/// Rounds before those that count.
const WARM_UP: usize = 1;

fn main() -> ExitCode {
    // `cargo test --all-targets` runs it without this.
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("root_replace: measures only under `cargo bench --bench root_replace`");
        return ExitCode::SUCCESS;
    }
    match measured() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("root_replace: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measured() -> Result<(), Failure> {
    let rounds: usize = setting("KVMLET_BENCH_ROUNDS", "10").parse()?;
    if rounds == 0 {
        return Err("KVMLET_BENCH_ROUNDS must be above 0".into());
    }
    let parent = PathBuf::from(setting("KVMLET_BENCH_DIR", "/var/tmp"));
    let pools = setting("KVMLET_BENCH_POOLS", "qcow2,rbd");
    let kinds: Vec<&str> = pools.split(',').collect();
    if let Some(unknown) = kinds.iter().find(|kind| !["qcow2", "rbd"].contains(kind)) {
        return Err(format!("KVMLET_BENCH_POOLS: no kind of pool is called {unknown:?}").into());
    }
    // Each root may come to hold as much as the largest image.
    let cluster = kinds
        .contains(&"rbd")
        .then(|| Cluster::start_with_room(256 << 30));
    let mut host = Host::start(&parent)?;
    let outcome = compare(&mut host, cluster.as_ref(), &kinds, rounds);
    outcome.map_err(|failure| format!("{failure}\n{}", host.last_words()).into())
}

fn compare(
    host: &mut Host,
    cluster: Option<&Cluster>,
    kinds: &[&str],
    rounds: usize,
) -> Result<(), Failure> {
    let more = match cluster {
        Some(cluster) => {
            let scratch = host.path("scratch");
            std::fs::create_dir(&scratch)?;
            format!("{}default = true\n", cluster.pool_section(&scratch))
        }
        None => String::new(),
    };
    host.start_kvmlet(&more)?;
    let kvmlet = Kvmlet::connect(host)?;
    println!(
        "replacing the root volume of a stopped VM, {rounds} times each, in {}",
        host.path("").display()
    );
    for kind in kinds {
        for (size, data) in IMAGES {
            println!("\n{kind}, an image of {size} MiB with {data} MiB of data");
            let disks = match (*kind, cluster) {
                ("rbd", Some(cluster)) => Disks::Rbd(cluster),
                _ => Disks::Qcow2(host.path("pool/by-hand")),
            };
            measure(host, &kvmlet, &disks, (size, data), rounds)?;
        }
    }
    Ok(())
}

fn measure(
    host: &Host,
    kvmlet: &Kvmlet,
    disks: &Disks<'_>,
    (size, data): (u64, u64),
    rounds: usize,
) -> Result<(), Failure> {
    let name = format!("{}-{size}", disks.pool());
    let image = kvmlet.import(host, disks.pool(), &name, size, data)?;
    let vm = kvmlet.create(disks.pool(), &image)?;
    // Twins of that VM, made before there is anything to replace.
    let mut by_hand = Hand::like(host, disks, &vm)?;
    let mut copied = Hand::like(host, disks, &vm)?;

    let (mut ours, mut theirs, mut copies) = (Times::default(), Times::default(), Times::default());
    for round in 0..WARM_UP + rounds {
        let counts = round >= WARM_UP;
        ours.time(counts, || kvmlet.replace_root(&vm, &image))?;
        theirs.time(counts, || by_hand.replace_root(Hand::overlay))?;
        copies.time(counts, || copied.replace_root(Hand::copy))?;
        // Only the present one stays; that costs neither side.
        by_hand.remove_old()?;
        copied.remove_old()?;
    }
    row("by hand", &theirs, &theirs);
    row("kvmlet", &ours, &theirs);
    row("by hand, full copy", &copies, &theirs);
    by_hand.remove()?;
    copied.remove()?;
    kvmlet.remove(&vm)
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// How long something took, each time.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn time(
        &mut self,
        counts: bool,
        work: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        work()?;
        if counts {
            self.0.push(start.elapsed());
        }
        Ok(())
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
        "  {side:<20} median {:>10.1} ms  p90 {:>10.1} ms  ratio {:>6.2}",
        times.at(50).as_secs_f64() * 1e3,
        times.at(90).as_secs_f64() * 1e3,
        times.at(50).as_secs_f64() / direct.at(50).as_secs_f64(),
    );
}
