//! ImportImage and DeleteImage: fetch and check, then convert; or remove from
//! every pool.

use crate::journal::Batch;
use crate::model::fault::Fault;
use crate::model::ids::ImageId;
use crate::model::image::Image;
use crate::model::reason::Reason;
use crate::model::request::ImportImage;
use crate::service::core::Core;
use crate::service::fault::{chain, from_source, internal};
use crate::service::gate::Lane;
use crate::service::image_cache;
use crate::service::plan::{self, Plan, Run, Step, Undone};
use crate::service::pools::Work;
use crate::storage::{
    CheckedSource, ImageFile, ImageSource, SourcePolicy, SourceRequest, StorageErrorKind, Task,
    source,
};
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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

#[async_trait]
impl Step for FetchSource {
    fn name(&self) -> &'static str {
        "fetch-source"
    }

    /// The fetched copy lives with the process; the image itself is what lasts.
    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let id = self.image.id;
        let found = run
            .core
            .pools
            .call(&self.image.pool, move |pool, _| pool.image(id))
            .await?;
        if found.is_some() && self.image.source_sha256.is_empty() {
            // This import has not come so far as to make it, so what is in it is
            // not known.
            return Err(Fault::new(
                Reason::ImageExists,
                "the pool has a file of this image that is in no record",
            )
            .with("image_id", id)
            .with("field", "image_id"));
        }
        Ok(found.is_some())
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let request = SourceRequest {
            id: self.image.id,
            source: ImageSource::parse(&self.import.source).map_err(|error| from_source(&error))?,
            format: self.import.format,
            sha256: self.import.sha256.clone(),
        };
        let policy = self.policy.clone();
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
            .map_err(|error| crate::service::fault::from_gate_storage(error, &self.image.pool))?;
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
        drop(
            self.fetched
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let id = self.image.id;
        run.core
            .pools
            .call(&self.image.pool, move |pool, _| {
                source::discard(pool.scratch(), id)
            })
            .await?;
        Ok(Undone::Nothing)
    }
}

/// Makes the pool's own image of the checked source.
struct ConvertImage {
    image: Image,
    fetched: Arc<Mutex<Option<CheckedSource>>>,
    made: Made,
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
        if let Some(file) = found {
            *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some((file, None));
        }
        Ok(found.is_some())
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
        run.core.images.set(&recorded);
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
            .map_err(|error| crate::service::fault::from_gate_storage(error, &self.image.pool))?;
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
                    _ => crate::service::fault::from_storage(&error, &self.image.pool),
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
        run.core
            .pools
            .call(&self.image.pool, move |pool, _| {
                if pool.is_shared() {
                    // What is whole may be in use by another host that imported it too;
                    // what is not was removed by who made it.
                    return Ok(Undone::Nothing);
                }
                let there = pool.image(id)?.is_some();
                pool.delete_image(id)?;
                Ok(if there {
                    Undone::Something
                } else {
                    Undone::Nothing
                })
            })
            .await
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
        let id = self.image.id;
        run.core
            .pools
            .call(&self.image.pool, move |pool, _| {
                source::discard(pool.scratch(), id)
            })
            .await
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
