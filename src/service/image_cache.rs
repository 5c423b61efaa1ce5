//! The limit of a pool's images: what was used least recently makes room.
//!
//! Invariants: an image that a volume of any VM is made from, deleted ones and
//! former roots included, or that an operation is about, stays; nothing is removed
//! if that would not make room enough. Who needs an image is counted anew each
//! time, from the records and the pool, so that no count can be wrong after a
//! crash. A copy is only removed; an image's own file goes by a DeleteImage that
//! is recorded like any other.

use super::core::{Core, Readiness};
use super::images;
use super::operations::now;
use super::orphans::Records;
use super::usage;
use crate::config::PoolSettings;
use crate::journal::Batch;
use crate::model::bytes::Bytes;
use crate::model::event::Cause;
use crate::model::fault::Fault;
use crate::model::ids::ImageId;
use crate::model::image::{Image, ImageState};
use crate::model::operation::OperationState;
use crate::model::reason::Reason;
use crate::model::request::{Caller, Envelope};
use crate::model::time::Timestamp;
use crate::service::fault::chain;
use crate::storage::{EntryKind, Removal};
use std::sync::Arc;
use std::time::Duration;

/// Who the operations are by that make room.
const CALLER: &str = "kvmlet:image-cache";
/// How long to wait for one of them.
const PATIENCE: Duration = Duration::from_secs(600);

/// An image's file in a pool that has a limit.
struct Held {
    id: ImageId,
    name: String,
    size: Bytes,
    generation: u64,
    overlays: bool,
}

/// Makes room in a pool for the file of an image that is about to come, if the
/// pool has a limit.
///
/// # Errors
/// `IMAGE_CACHE_FULL`, before anything was removed if it can be known then; why
/// the pool can't be read.
pub async fn make_room(core: &Arc<Core>, pool: &str, coming: Bytes) -> Result<(), Fault> {
    let settings = core.config.pools.iter().find(|known| known.name == pool);
    let Some(limit) = settings.and_then(|settings: &PoolSettings| settings.image_cache_max) else {
        return Ok(());
    };
    // One at a time: two would count on the same room.
    let _one = core.images.eviction.lock().await;
    let held = look_into(core, pool).await?;
    let total = sum(held.iter().map(|held| held.size)).saturating_add(coming);
    if total <= limit {
        return Ok(());
    }
    let mut excess = Bytes(total.get() - limit.get());
    let candidates = candidates(core, pool, held);
    let evictable = sum(candidates.iter().map(|(held, _)| held.size));
    let full = |needed: Bytes| {
        Fault::new(
            Reason::ImageCacheFull,
            format!(
                "the images of pool {pool} may take {limit}; {needed} more are needed, and the others are in use by volumes or operations"
            ),
        )
        .with("pool", pool)
        .with("limit_bytes", limit.get())
        .with("needed_bytes", coming.get())
    };
    if evictable < excess {
        return Err(full(Bytes(excess.get() - evictable.get())));
    }
    for (held, image) in candidates {
        if excess == Bytes::ZERO {
            break;
        }
        if evict(core, pool, &held, &image).await? {
            excess = Bytes(excess.get().saturating_sub(held.size.get()));
        }
    }
    if excess > Bytes::ZERO {
        return Err(full(excess));
    }
    Ok(())
}

/// Notes that a volume is made from an image now. It is written to the journal
/// with others, at the next sweep.
pub fn note_use(core: &Core, id: ImageId) {
    if let Ok(image) = core.images.get(id) {
        core.images.set(
            &Image {
                last_use_time: Some(now()),
                ..image
            },
            Cause::AGENT,
        );
        core.images.used().insert(id);
    }
}

/// Writes which images were used since the last time, as one.
pub async fn record_uses(core: &Core) {
    let used: Vec<ImageId> = core.images.used().drain().collect();
    let mut batch = Batch::new();
    for id in &used {
        // One that is held by an operation is written at its end.
        if let Ok(image) = core.images.get(*id)
            && matches!(image.state, ImageState::Ready | ImageState::Lost)
        {
            batch = batch.put_image(&image);
        }
    }
    if batch.is_empty() {
        return;
    }
    if let Err(fault) = core.ledger.commit(batch).await {
        tracing::warn!(error = chain(&fault), "uses of images are not recorded yet");
        core.images.used().extend(used);
    }
}

/// The volumes in shared pools that are made from an image: of other hosts, too.
pub(super) async fn clones(core: &Core, id: ImageId) -> Result<Vec<String>, Fault> {
    let mut clones = Vec::new();
    let shared = core
        .pools
        .all()
        .iter()
        .filter(|entry| entry.pool.is_shared());
    for entry in shared {
        let found = core
            .pools
            .call(entry.pool.name(), move |pool, _| match pool.image(id)? {
                Some(_) => pool.volumes_on(id),
                None => Ok(Vec::new()),
            });
        clones.extend(found.await?.iter().map(ToString::to_string));
    }
    Ok(clones)
}

async fn look_into(core: &Core, pool: &str) -> Result<Vec<Held>, Fault> {
    core.pools
        .call(pool, |pool, _| {
            let mut held = Vec::new();
            for entry in pool.entries()? {
                if let EntryKind::Image(id) = entry.kind {
                    held.push(Held {
                        id,
                        overlays: !pool.volumes_on(id)?.is_empty(),
                        name: entry.name,
                        size: entry.actual_size,
                        generation: entry.generation,
                    });
                }
            }
            Ok(held)
        })
        .await
}

/// What may go, least recently used first.
fn candidates(core: &Core, pool: &str, held: Vec<Held>) -> Vec<(Held, Image)> {
    let records = Records::read(core);
    let mut found: Vec<(Held, Image)> = held
        .into_iter()
        .filter(|held| !held.overlays && may_go(&records, pool, held.id))
        .filter_map(|held| core.images.get(held.id).ok().map(|image| (held, image)))
        .collect();
    found.sort_by_key(|(held, image)| (last_use(image), held.id));
    found
}

fn may_go(records: &Records, pool: &str, id: ImageId) -> bool {
    // What is in no record is an orphan: not removed without being asked for.
    records.image(id).is_some_and(|image| {
        image.state == ImageState::Ready
            && !records.is_at_work(id)
            && if image.pool == pool {
                records.unused_images().any(|unused| unused.id == id)
            } else {
                !records.needs(pool, id)
            }
    })
}

fn last_use(image: &Image) -> Timestamp {
    image.last_use_time.unwrap_or(image.create_time)
}

/// Removes one image from a pool; false if it came into use meanwhile.
async fn evict(core: &Arc<Core>, pool: &str, held: &Held, image: &Image) -> Result<bool, Fault> {
    let gone = if image.pool == pool {
        evict_image(core, held.id).await?
    } else {
        // Who needs it there waits from here on; who was before is in the records.
        let _leaving = core.orphans.leave(pool, held.id);
        if !may_go(&Records::read(core), pool, held.id) {
            return Ok(false);
        }
        match usage::check_image(core, pool, held.id).await {
            Err(fault) if fault.reason == Reason::ImageInUse => return Ok(false),
            checked => checked?,
        }
        let (name, generation) = (held.name.clone(), held.generation);
        let removed = core
            .pools
            .call(pool, move |pool, _| pool.remove_entry(&name, generation));
        removed.await? != Removal::Changed
    };
    if gone {
        tracing::info!(pool, image_id = %held.id, size = %held.size, "an image made room for another");
    }
    Ok(gone)
}

/// Deletes an image as a caller would, so that it can be seen and outlives a
/// crash.
async fn evict_image(core: &Arc<Core>, id: ImageId) -> Result<bool, Fault> {
    let mut ready = core.readiness();
    let takes =
        ready.wait_for(|ready| matches!(ready, Readiness::Ready | Readiness::HypervisorAway));
    tokio::select! {
        _ = takes => {}
        () = core.stopping.cancelled() => {
            return Err(Fault::new(Reason::Stopping, "the agent is stopping"));
        }
    }
    let envelope = Envelope {
        request_id: None,
        expected_generation: None,
        caller: Caller::own(CALLER),
        validate_only: false,
    };
    let operation = match images::delete(core, envelope, id).await {
        Ok(operation) => operation,
        Err(fault)
            if matches!(
                fault.reason,
                Reason::ImageInUse | Reason::ImageBusy | Reason::ImageNotFound
            ) =>
        {
            return Ok(false);
        }
        Err(fault) => return Err(fault),
    };
    let ended = core.operations.wait(operation.id, PATIENCE).await?;
    Ok(ended.state == OperationState::Succeeded)
}

fn sum(sizes: impl Iterator<Item = Bytes>) -> Bytes {
    sizes.fold(Bytes::ZERO, Bytes::saturating_add)
}
