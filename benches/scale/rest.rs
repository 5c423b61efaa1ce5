//! The daemon by itself: how soon it is ready, what memory it takes, what it does
//! while nothing is to be done.

use crate::host::{Failure, Host};
use crate::{Api, MORE, Sizes, ms, status};
use kvmlet::proto::v1::WatchEventsRequest;
use std::time::{Duration, Instant};

/// What the start has left behind is over by then.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) async fn measure(
    host: &mut Host,
    uri: &str,
    count: usize,
    sizes: &Sizes,
) -> Result<(), Failure> {
    let begin = Instant::now();
    host.start_kvmlet_on(uri, MORE)?;
    let api = Api::connect(host).await?;
    println!(
        "  from start to ready with {count} VMs    {:>8.0} ms",
        ms(begin.elapsed())
    );
    let process = host.kvmlet_id()?;
    let (before, own) = (status(process, "VmRSS")?, status(process, "RssAnon")?);
    let mut watchers = Vec::new();
    for _ in 0..sizes.watchers {
        // Each on a connection of its own, as clients are.
        let api = Api::connect(host).await?;
        let request = WatchEventsRequest {
            snapshot: true,
            ..Default::default()
        };
        let mut stream = api.nodes().watch_events(request).await?.into_inner();
        watchers.push(tokio::spawn(async move {
            let mut events = 0u64;
            while let Ok(Some(_)) = stream.message().await {
                events += 1;
            }
            (api, events)
        }));
    }
    tokio::time::sleep(SETTLE).await;
    println!(
        "  resident memory                        {:>8.1} MB; {:.1} MB with {} watchers",
        megabytes(before),
        megabytes(status(process, "VmRSS")?),
        sizes.watchers,
    );
    println!(
        "    of it not of files (RssAnon)         {:>8.1} MB; {:.1} MB with watchers",
        megabytes(own),
        megabytes(status(process, "RssAnon")?),
    );
    let before = processor_time(process)?;
    tokio::time::sleep(sizes.rest).await;
    let used = processor_time(process)? - before;
    println!(
        "  processor time in {} s of rest           {:>6.0} ms ({:.2} %)",
        sizes.rest.as_secs(),
        ms(used),
        100.0 * used.as_secs_f64() / sizes.rest.as_secs_f64()
    );
    for watcher in watchers {
        watcher.abort();
    }
    drop(api);
    Ok(())
}

/// From what the kernel counts in KiB.
fn megabytes(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) * 1024.0 / 1e6
}

/// What a process has used so far, by itself and by its children that have ended.
fn processor_time(process: u32) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").ok_or("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let mut ticks = 0u64;
    // utime, stime, cutime, cstime: the 14th to 17th field of all.
    for field in fields.get(11..15).ok_or("a short stat")? {
        ticks += field.parse::<u64>()?;
    }
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(Duration::from_secs(ticks) / u32::try_from(per_second)?)
}
