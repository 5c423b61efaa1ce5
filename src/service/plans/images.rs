//! ImportImage and DeleteImage: fetch and check, then convert; or remove from
//! every pool.

use crate::journal::Batch;
use crate::model::bytes::Bytes;
use crate::model::event::Cause;
use crate::model::fault::Fault;
use crate::model::ids::ImageId;
use crate::model::image::Image;
use crate::model::reason::Reason;
use crate::model::request::ImportImage;
use crate::service::core::Core;
use crate::service::fault::{chain, from_gate_storage, from_source, from_storage, internal};
use crate::service::gate::Lane;
use crate::service::image_cache;
use crate::service::plan::{self, Plan, Run, Step, Undone};
use crate::service::pools::Work;
use crate::service::usage;
use crate::storage::EntryKind;
use crate::storage::{
    CheckedSource, ImageFile, ImageSource, SourcePolicy, SourceRequest, StorageErrorKind, Task,
    source,
};
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Disks are whole sectors.
const SECTOR: Bytes = Bytes(512);
/// How long removing a copy of a source may take.
const DISCARD: Duration = Duration::from_secs(60);
/// How long an import may take in all.
const IMPORT: Duration = Duration::from_secs(24 * 3600);

/// What an import leaves for the record.
pub(in super::super) type Made = Arc<Mutex<Option<(ImageFile, Option<String>)>>>;

pub(in super::super) fn import(
    policy: &SourcePolicy,
    image: &Image,
    import: &ImportImage,
    made: &Made,
) -> Plan {
    let fetched = Arc::new(Mutex::new(None));
    vec![
        Box::new(FetchSource {
            policy: policy.clone(),
            image: image.clone(),
            import: import.clone(),
            fetched: fetched.clone(),
        }),
        Box::new(ConvertImage {
            image: image.clone(),
            fetched,
            made: made.clone(),
        }),
        Box::new(DropSource {
            image: image.clone(),
        }),
    ]
}

pub(in super::super) fn delete(core: &Core, image: &Image) -> Plan {
    core.pools
        .all()
        .iter()
        .map(|entry| -> Box<dyn Step> {
            Box::new(RemoveImage {
                id: image.id,
                pool: entry.pool.name().to_owned(),
            })
        })
        .collect()
}

/// Brings the source's bytes here and checks them.
struct FetchSource {
    policy: SourcePolicy,
    image: Image,
    import: ImportImage,
    fetched: Arc<Mutex<Option<CheckedSource>>>,
}

impl FetchSource {
    fn let_go(&self) {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        drop(fetched.take());
    }
}

#[async_trait]
impl Step for FetchSource {
    fn name(&self) -> &'static str {
        "fetch-source"
    }

    /// The fetched copy lives with the process; the image itself is what lasts.
    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let id = self.image.id;
        let (found, shared) = run
            .core
            .pools
            .call(&self.image.pool, move |pool, _| {
                Ok((pool.image(id)?.is_some(), pool.is_shared()))
            })
            .await?;
        if !found || !self.image.source_sha256.is_empty() {
            return Ok(found);
        }
        if shared {
            // Another host made it. The source is checked all the same, and compared.
            return Ok(false);
        }
        // This import has not come so far as to make it, so what is in it is not
        // known.
        Err(Fault::new(
            Reason::ImageExists,
            "the pool has a file of this image that is in no record",
        )
        .with("image_id", id)
        .with("field", "image_id"))
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let request = SourceRequest {
            id: self.image.id,
            source: ImageSource::parse(&self.import.source).map_err(|error| from_source(&error))?,
            format: self.import.format,
            sha256: self.import.sha256.clone(),
        };
        let policy = self.policy.clone();
        // What a try before this one has fetched is locked, and would be in its way.
        self.let_go();
        // A pool that another process holds is not downloaded into.
        run.core
            .pools
            .call(&self.image.pool, |pool, _| pool.usage(None))
            .await?;
        let entry = run.core.pools.named(&self.image.pool, "pool")?;
        let pool = entry.pool.clone();
        let task = leash(run, 0);
        let answer = run
            .core
            .gate
            .run(Lane::Import, IMPORT, move || {
                policy.fetch(&request, pool.scratch(), &task)
            })
            .await
            .map_err(|error| from_gate_storage(error, &self.image.pool))?;
        match answer {
            Ok(source) => {
                *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(image_id = %self.image.id, error = chain(&error), "an image can't be fetched");
                Err(from_source(&error))
            }
        }
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        self.let_go();
        drop_source(run, &self.image).await?;
        Ok(Undone::Nothing)
    }
}

/// Removes the copy of an image's source. It is on this host: a cluster that is away
/// is no obstacle.
async fn drop_source(run: &Run, image: &Image) -> Result<(), Fault> {
    let (id, name) = (image.id, &image.pool);
    let pool = run.core.pools.named(name, "pool")?.pool.clone();
    let discarded = run.core.gate.run(Lane::Storage, DISCARD, move || {
        source::discard(pool.scratch(), id)
    });
    discarded
        .await
        .map_err(|error| from_gate_storage(error, name))?
        .map_err(|error| {
            tracing::warn!(image_id = %id, error = chain(&error), "a copy can't be removed");
            from_storage(&error, name)
        })
}

/// Removes what this host was making of an image in a shared pool, if a run that was
/// cut off has left it.
async fn drop_unfinished(run: &Run, image: &Image) -> Result<Undone, Fault> {
    let id = image.id.to_string();
    run.core
        .pools
        .call(&image.pool, move |pool, _| {
            let mut undone = Undone::Nothing;
            for entry in pool.entries()? {
                if entry.kind == EntryKind::Temporary && entry.name.ends_with(&id) {
                    pool.remove_entry(&entry.name, entry.generation)?;
                    undone = Undone::Something;
                }
            }
            Ok(undone)
        })
        .await
}

/// Makes the pool's own image of the checked source.
struct ConvertImage {
    image: Image,
    fetched: Arc<Mutex<Option<CheckedSource>>>,
    made: Made,
}

impl ConvertImage {
    /// Compares what another host has made under the image's id with the source that
    /// was fetched for it, whose checksum it returns: as far as can be told without
    /// reading both.
    fn compare(&self, there: ImageFile) -> Result<Option<String>, Fault> {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        // It is not needed after this.
        let Some(source) = fetched.take() else {
            return Ok(None);
        };
        if source.virtual_size().round_up(SECTOR) != Some(there.virtual_size) {
            return Err(Fault::new(
                Reason::ImageExists,
                "the pool has another image under this id: it is not as large as the source",
            )
            .with("image_id", self.image.id)
            .with("field", "source"));
        }
        Ok(Some(source.sha256().to_owned()))
    }
}

#[async_trait]
impl Step for ConvertImage {
    fn name(&self) -> &'static str {
        "convert-image"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let id = self.image.id;
        let found = run
            .core
            .pools
            .call(&self.image.pool, move |pool, _| pool.image(id))
            .await?;
        let Some(file) = found else {
            return Ok(false);
        };
        let sha256 = self.compare(file)?;
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some((file, sha256));
        Ok(true)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let source = self
            .fetched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let source = source.ok_or_else(|| internal("an import has no source"))?;
        image_cache::make_room(&run.core, &self.image.pool, source.data_size()).await?;
        let sha256 = source.sha256().to_owned();
        // What the source takes is known now; nothing was written for it yet.
        let id = self.image.id;
        let recorded = Image {
            source_sha256: sha256.clone(),
            ..self.image.clone()
        };
        run.core
            .ledger
            .commit(Batch::new().put_image(&recorded))
            .await?;
        run.core
            .images
            .set(&recorded, Cause::operation(run.operation.id()));
        run.reach("convert-image.recorded").await?;
        let entry = run.core.pools.named(&self.image.pool, "pool")?;
        let pool = entry.pool.clone();
        let task = leash(run, 1);
        let lane = entry.lane(Work::Long);
        let answer = run
            .core
            .gate
            .run(lane, IMPORT, move || pool.put_image(id, &source, &task))
            .await
            .map_err(|error| from_gate_storage(error, &self.image.pool))?;
        match answer {
            Ok(file) => {
                *self.made.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((file, Some(sha256)));
                Ok(())
            }
            Err(error) => {
                tracing::warn!(image_id = %id, error = chain(&error), "an image can't be converted");
                Err(match error.kind() {
                    StorageErrorKind::ToolFailed | StorageErrorKind::BadImage(_) => {
                        from_source(&error)
                    }
                    _ => from_storage(&error, &self.image.pool),
                })
            }
        }
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        let id = self.image.id;
        if run.core.images.get(id)?.source_sha256.is_empty() {
            // It was not begun: a file that is there is not this import's.
            return Ok(Undone::Nothing);
        }
        if (run.core.pools.named(&self.image.pool, "pool")?.pool).is_shared() {
            // What is whole may be in use by another host that imported it too.
            return drop_unfinished(run, &self.image).await;
        }
        let pools = &run.core.pools;
        let there = pools.call(&self.image.pool, move |pool, _| {
            Ok(pool.image(id)?.is_some())
        });
        if !there.await? {
            return Ok(Undone::Nothing);
        }
        usage::check_image(&run.core, &self.image.pool, id).await?;
        pools
            .call(&self.image.pool, move |pool, _| pool.delete_image(id))
            .await?;
        Ok(Undone::Something)
    }
}

/// Removes the copy of the source, if a run that was cut off has left it.
struct DropSource {
    image: Image,
}

#[async_trait]
impl Step for DropSource {
    fn name(&self) -> &'static str {
        "drop-source"
    }

    async fn is_done(&self, _: &Run) -> Result<bool, Fault> {
        Ok(false)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        drop_source(run, &self.image).await
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Removes an image from one pool.
struct RemoveImage {
    id: ImageId,
    pool: String,
}

#[async_trait]
impl Step for RemoveImage {
    fn name(&self) -> &'static str {
        "remove-image"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let id = self.id;
        Ok(run
            .core
            .pools
            .call(&self.pool, move |pool, _| pool.image(id))
            .await?
            .is_none())
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let id = self.id;
        usage::check_image(&run.core, &self.pool, id).await?;
        run.reach("remove-image.unused").await?;
        run.core
            .pools
            .call(&self.pool, move |pool, _| pool.delete_image(id))
            .await
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }
}

/// A leash that shows how far the running step has come.
fn leash(run: &Run, step: usize) -> Task {
    let run = Run {
        core: run.core.clone(),
        operation: run.operation.clone(),
    };
    Task::new(
        run.operation.cancel_flag(),
        Some(Instant::now() + IMPORT),
        move |done, total| {
            if total > 0 {
                #[allow(clippy::cast_precision_loss)] // a share, shown in percent
                plan::progress(&run, step, done as f64 / total as f64);
            }
        },
    )
}
