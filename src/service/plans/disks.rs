//! What a guest's disks need before it gets power: nobody else writes to them, and
//! libvirt can open them.

use super::power::domain;
use crate::libvirt::{OffReason, Power};
use crate::model::fault::Fault;
use crate::model::operation::{Intent, RollbackState};
use crate::model::reason::Reason;
use crate::model::vm::Vm;
use crate::pace;
use crate::service::cell::Cell;
use crate::service::plan::Run;
use crate::service::secrets;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// How long a QEMU that ends by itself keeps its disks open.
const ENDING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Refuses to give a guest power while another client has a disk of its open that is
/// not to be shared: two that write to one disk destroy it. Files have locks of
/// QEMU's; a cluster has watchers.
///
/// A holder that is known to be ending is waited for.
///
/// # Errors
/// `VOLUME_IN_USE`, naming the holder; as any call to a pool.
pub(super) async fn get_ready(run: &Run, cell: &Cell) -> Result<(), Fault> {
    let vm = cell.vm()?;
    let mut until = None;
    let mut pools = BTreeSet::new();
    for volume in vm
        .disks()
        .into_iter()
        .filter(|volume| volume.ceph_pool.is_some())
    {
        pools.insert(volume.pool.clone());
        if volume.shareable {
            continue;
        }
        loop {
            let place = volume.reference();
            let holders = run
                .core
                .pools
                .call(&volume.pool, move |pool, _| pool.holders(&place))
                .await?;
            if holders.is_empty() {
                break;
            }
            let until = match until {
                Some(known) => known,
                None => *until.insert(Instant::now() + patience(run, cell, &vm).await?),
            };
            if Instant::now() >= until || run.operation.cancelled().is_some() {
                return Err(Fault::new(
                    Reason::VolumeInUse,
                    format!(
                        "the guest is not started while another client has its volume {} open: {}",
                        volume.id,
                        holders.join(", ")
                    ),
                )
                .with("volume_id", volume.id)
                .with("used_by", holders.join(", ")));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = run.core.stopping.cancelled() => {
                    return Err(Fault::new(Reason::Stopping, "the agent is stopping"));
                }
            }
        }
    }
    for pool in pools {
        secrets::give(&run.core, &pool).await?;
    }
    Ok(())
}

/// How long a holder may be the guest's own last QEMU.
async fn patience(run: &Run, cell: &Cell, vm: &Vm) -> Result<Duration, Fault> {
    let operation = run.operation.get();
    let stopped_first = matches!(
        operation.intent,
        Intent::ReplaceRootVolume { stop: Some(_), .. }
            | Intent::RevertRootVolume { stop: Some(_), .. }
    );
    let undoing = operation.rollback == RollbackState::RollingBack;
    if stopped_first || undoing || run.operation.is_resumed() {
        return Ok(pace::dead_client());
    }
    if vm.last_host_id.is_none() {
        // It has never had one.
        return Ok(ENDING);
    }
    // Else libvirt may have killed it: it does so when its power is cut and it does
    // not end by itself, which it can't while its storage hangs.
    let ended_by_itself = matches!(
        domain(run, cell).await?.power,
        Power::Off(OffReason::Shutdown | OffReason::Saved)
    );
    Ok(if ended_by_itself {
        ENDING
    } else {
        pace::dead_client()
    })
}
