//! What is done by the clock: expunging what was kept long enough, forgetting
//! old operations, measuring pools, keeping console logs short.

use super::clock::proven_now;
use super::core::{Core, Readiness};
use super::domains::console_log;
use super::fault::chain;
use super::{host, image_cache, node, secrets, vms};
use crate::model::ids::VmId;
use crate::model::lifecycle::Resting;
use crate::model::request::{Caller, Envelope, VmRequest};
use crate::model::time::Timestamp;
use crate::model::vm::{Life, Vm};
use crate::model::volume::{Volume, VolumeAttachment};
use crate::pace;
use std::collections::HashSet;
use std::io::{self, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::fs::{self, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// Every how many sweeps it looks at every VM.
const ROUNDS: u64 = 10;
/// How often it looks at the host's conditions.
const LOOK: Duration = Duration::from_secs(1);
/// Every how many times it measures the host.
const MEASURE: u64 = 10;
/// Who the operations of the sweeper are by.
const CALLER: &str = "kvmlet";

/// Sweeps until the agent stops.
pub async fn run(core: Arc<Core>) {
    // VMs that could not be expunged are tried again only now and then.
    let mut tried = HashSet::new();
    // From here on jumps of the clock are seen.
    proven_now();
    for round in 1u64.. {
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep(pace::sweep()) => {}
        }
        sweep(&core, round.is_multiple_of(ROUNDS), &mut tried).await;
    }
}

/// Notes what has changed of the host, until the agent stops: its conditions each
/// second, so that since when is right however rarely somebody asks; its memory and
/// huge pages every ten.
pub async fn watch_host(core: Arc<Core>) {
    for round in 0u64.. {
        if round.is_multiple_of(MEASURE) {
            host::refresh(&core).await;
        }
        node::refresh_conditions(&core);
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Looks for the clusters that are away, until the agent stops.
pub async fn await_pools(core: Arc<Core>) {
    core.pools.await_return(&core.stopping).await;
}

/// Empties the pools' trash now and then, until the agent stops: removing data takes
/// its time, and nothing waits for it.
pub async fn empty_trash(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep(pace::trash()) => {}
        }
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = core.pools.empty_trash() => {}
        }
    }
}

async fn sweep(core: &Arc<Core>, all: bool, tried: &mut HashSet<VmId>) {
    core.pools.measure().await;
    if core.hypervisor.is_up() {
        secrets::give_all(core).await;
    }
    trim_console_logs(core).await;
    image_cache::record_uses(core).await;
    node::refresh_conditions(core);
    if *core.ready.borrow() != Readiness::Ready {
        return;
    }
    if all {
        tried.clear();
    }
    expunge_expired(core, tried).await;
    tidy(core, all);
    forget_events(core).await;
    if let Some(before) = proven_now()
        .0
        .checked_sub(micros(core.config.operations.keep))
    {
        // A repeat of an import is told by its operation.
        let keep = core
            .images
            .list()
            .iter()
            .map(|image| image.imported_by)
            .collect();
        match core.ledger.prune(Timestamp(before), keep).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "old operations were forgotten"),
            Err(fault) => tracing::warn!(error = chain(&fault), "old operations stay"),
        }
    }
}

/// Forgets events that have been kept as long, and as many, as is configured.
pub(super) async fn forget_events(core: &Core) {
    let settings = &core.config.events;
    let before = proven_now().0.saturating_sub(micros(settings.keep));
    let pruned = core
        .ledger
        .prune_events(Timestamp(before), settings.keep_count)
        .await;
    match pruned {
        Ok(count) => tracing::debug!(count, "old events were forgotten"),
        Err(fault) => tracing::warn!(error = chain(&fault), "old events stay"),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Expunges VMs whose retention has passed.
async fn expunge_expired(core: &Arc<Core>, tried: &mut HashSet<VmId>) {
    for view in core.vms.list() {
        let Some(vm) = &view.vm else { continue };
        let due = match vm.life {
            Life::Deleted { expunge_time, .. } => expunge_time <= proven_now(),
            // Expunging it failed half-way: it is tried again.
            Life::Expunging => true,
            Life::Making | Life::Present | Life::Failed => false,
        };
        if view.current.is_some() || !due || !tried.insert(vm.id) {
            continue;
        }
        tracing::info!(vm_id = %vm.id, "the retention has passed");
        let envelope = Envelope {
            request_id: None,
            expected_generation: Some(vm.generation),
            caller: Caller::own(CALLER),
            validate_only: false,
        };
        if let Err(fault) = vms::request(core, Some(vm.id), envelope, VmRequest::ExpungeVm).await {
            tracing::warn!(vm_id = %vm.id, error = chain(&fault), "a VM is not expunged");
        }
    }
}

/// Has the workers look at their VMs: all of them now and then, for what no
/// event told of; those with a former root whose time has passed at once, and those
/// with saved memory, whose removal libvirt tells nobody of.
fn tidy(core: &Arc<Core>, all: bool) {
    for view in core.vms.list() {
        let Some(vm) = &view.vm else { continue };
        if all || vm.kept_roots().into_iter().any(expired) {
            core.vms.tidy(vm.id);
        } else if vm.seen.resting == Resting::Saved
            && let Some(cell) = core.vms.cell(vm.id)
        {
            cell.touch();
        }
    }
}

/// Whether a volume is a former root whose time has passed.
pub fn expired(volume: &Volume) -> bool {
    matches!(volume.attachment, VolumeAttachment::Kept { until } if until <= proven_now())
}

/// Cuts console logs that have grown too long. QEMU appends to them, so they can
/// be cut under it; with a libvirt daemon, virtlogd keeps them short already.
async fn trim_console_logs(core: &Arc<Core>) {
    let most = core.config.vms.console_max.get();
    for view in core.vms.list() {
        let Some(Vm { id, .. }) = &view.vm else {
            continue;
        };
        let path = console_log(core, *id);
        if let Err(error) = trim(&path, most).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(vm_id = %id, %error, "a console log can't be cut");
        }
    }
}

/// Keeps the last half of a file that is longer than `most` bytes.
async fn trim(path: &Path, most: u64) -> io::Result<()> {
    if fs::metadata(path).await?.len() <= most {
        return Ok(());
    }
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .open(path)
        .await?;
    let keep = most / 2;
    file.seek(SeekFrom::End(-i64::try_from(keep).unwrap_or(0)))
        .await?;
    let mut tail = Vec::new();
    file.take(keep).read_to_end(&mut tail).await?;
    let mut file = OpenOptions::new().append(true).open(path).await?;
    file.set_len(0).await?;
    file.write_all(&tail).await?;
    file.flush().await
}
