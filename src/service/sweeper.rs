//! What is done by the clock: expunging what was kept long enough, forgetting
//! old operations, measuring pools, keeping console logs short.

use super::core::{Core, Readiness};
use super::domains::console_log;
use super::fault::chain;
use super::operations::now;
use super::vms;
use crate::model::request::{Envelope, VmRequest};
use crate::model::vm::{Life, Vm};
use crate::model::volume::{Volume, VolumeAttachment};
use std::collections::HashSet;
use std::io::{self, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::fs::{self, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(30);
/// Who the operations of the sweeper are by.
const CALLER: &str = "kvmlet";

/// Sweeps until the agent stops.
pub async fn run(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        sweep(&core).await;
    }
}

/// Sweeps once.
pub async fn sweep(core: &Arc<Core>) {
    core.pools.measure().await;
    trim_console_logs(core).await;
    if *core.ready.borrow() != Readiness::Ready {
        return;
    }
    expunge_expired(core).await;
    drop_expired_roots(core);
    if let Some(before) = now().0.checked_sub(micros(core.config.operations.keep)) {
        let keep = HashSet::new();
        match core
            .ledger
            .prune(crate::model::time::Timestamp(before), keep)
            .await
        {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "old operations were forgotten"),
            Err(fault) => tracing::warn!(error = chain(&fault), "old operations stay"),
        }
    }
    // Also what no event told of.
    for cell in core.vms.cells() {
        cell.touch();
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Expunges VMs whose retention has passed.
async fn expunge_expired(core: &Arc<Core>) {
    for view in core.vms.list() {
        let Some(vm) = &view.vm else { continue };
        let Life::Deleted { expunge_time, .. } = vm.life else {
            continue;
        };
        if view.current.is_some() || expunge_time > now() {
            continue;
        }
        tracing::info!(vm = %vm.id, "the retention has passed");
        let envelope = Envelope {
            request_id: None,
            expected_generation: Some(vm.generation),
            caller: CALLER.to_owned(),
            validate_only: false,
        };
        if let Err(fault) = vms::request(core, Some(vm.id), envelope, VmRequest::ExpungeVm).await {
            tracing::warn!(vm = %vm.id, error = chain(&fault), "a VM is not expunged");
        }
    }
}

/// Has the workers remove former roots whose time has passed.
fn drop_expired_roots(core: &Arc<Core>) {
    for view in core.vms.list() {
        let Some(vm) = &view.vm else { continue };
        if vm.life == Life::Present && vm.kept_roots().iter().any(|volume| expired(volume)) {
            core.vms.drop_expired_roots(vm.id);
        }
    }
}

/// Whether a volume is a former root whose time has passed.
pub fn expired(volume: &Volume) -> bool {
    matches!(volume.attachment, VolumeAttachment::Kept { until } if until <= now())
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
            tracing::warn!(vm = %id, %error, "a console log can't be cut");
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
