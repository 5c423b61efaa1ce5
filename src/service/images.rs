//! Images: imported once, immutable, deleted when nothing is made from them.
//!
//! An import is an operation of its own, with steps like a VM's; one task per
//! image runs it. Invariant: an image is READY only when its file is in its
//! pool, verified and durable.

use super::core::Core;
use super::fault::{from_source, internal};
use super::gate::Lane;
use super::operations::{Claim, LiveOperation, fingerprint, new_operation, now};
use super::plan::{self, Ended, Plan, Run, Step, Undone};
use super::preview;
use crate::config::ImageSettings;
use crate::journal::Batch;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::ImageId;
use crate::model::image::{Image, ImageState};
use crate::model::operation::{Intent, Operation, OperationResult, OperationState};
use crate::model::reason::Reason;
use crate::model::request::{Envelope, ImportImage};
use crate::service::fault::chain;
use crate::storage::{
    CheckedSource, ImageFile, ImageSource, SourcePolicy, SourceRequest, StorageErrorKind, Task,
    UrlPrefix, source,
};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an import may take in all.
const IMPORT: Duration = Duration::from_secs(24 * 3600);

/// All images.
pub struct Images {
    known: Mutex<BTreeMap<ImageId, Known>>,
    policy: SourcePolicy,
}

#[derive(Clone)]
struct Known {
    image: Image,
    /// The operation that holds it.
    current: Option<Arc<LiveOperation>>,
}

impl Images {
    /// The images that the journal knows.
    ///
    /// # Errors
    /// A configured URL prefix that is no URL.
    pub fn new(images: Vec<Image>, settings: &ImageSettings) -> Result<Self, Fault> {
        let known = images
            .into_iter()
            .map(|image| {
                (
                    image.id,
                    Known {
                        image,
                        current: None,
                    },
                )
            })
            .collect();
        let prefixes = settings
            .allowed_url_prefixes
            .iter()
            .map(|prefix| prefix.parse::<UrlPrefix>())
            .collect::<Result<_, _>>()
            .map_err(|error| Fault::new(Reason::FieldInvalid, chain(&error)))?;
        let policy = SourcePolicy {
            allowed_directories: settings.allowed_dirs.clone(),
            allowed_url_prefixes: prefixes,
            max_source_size: settings.max_source_size,
            max_virtual_size: settings.max_virtual_size,
            stall_timeout: settings.download_stall,
        };
        Ok(Self {
            known: Mutex::new(known),
            policy,
        })
    }

    /// Returns one image.
    ///
    /// # Errors
    /// `IMAGE_NOT_FOUND`.
    pub fn get(&self, id: ImageId) -> Result<Image, Fault> {
        self.lock()
            .get(&id)
            .map(|known| known.image.clone())
            .ok_or_else(|| {
                Fault::new(Reason::ImageNotFound, format!("no image has the id {id}"))
                    .with("image_id", id)
            })
    }

    /// Lists all images, by id.
    pub fn list(&self) -> Vec<Image> {
        self.lock()
            .values()
            .map(|known| known.image.clone())
            .collect()
    }

    /// Returns an image that volumes can be made from; `field` named it.
    ///
    /// # Errors
    /// `IMAGE_NOT_FOUND`, `IMAGE_NOT_READY`.
    pub fn ready(&self, id: ImageId, field: &str) -> Result<Image, Fault> {
        let image = self
            .lock()
            .get(&id)
            .map(|known| known.image.clone())
            .ok_or_else(|| {
                Fault::field(Reason::ImageNotFound, field, "names no image").with("image_id", id)
            })?;
        let problem = match image.state {
            ImageState::Ready => return Ok(image),
            ImageState::Importing => "names an image that is still being imported",
            ImageState::Deleting => "names an image that is being deleted",
            ImageState::Lost => "names an image whose file is gone from its pool",
        };
        Err(Fault::field(Reason::ImageNotReady, field, problem).with("image_id", id))
    }

    /// Replaces what is known of an image.
    pub fn set(&self, image: &Image) {
        if let Some(known) = self.lock().get_mut(&image.id) {
            known.image = image.clone();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ImageId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Imports an image.
///
/// # Errors
/// See ImportImage in the API.
pub async fn import(
    core: &Arc<Core>,
    envelope: Envelope,
    wish: ImportImage,
) -> Result<Arc<Operation>, Fault> {
    core.check_takes_requests()?;
    let core = core.clone();
    let decided = tokio::spawn(async move { decide_import(&core, envelope, wish).await });
    decided
        .await
        .map_err(|_| internal("a request's task has ended"))?
}

async fn decide_import(
    core: &Arc<Core>,
    envelope: Envelope,
    wish: ImportImage,
) -> Result<Arc<Operation>, Fault> {
    let recorded = fingerprint(&json!({ "request": { "call": "import_image", "import": &wish } }))?;
    let guard = match core
        .operations
        .claim(envelope.request_id, &recorded)
        .await?
    {
        Claim::Repeat(known) => return Ok(known),
        Claim::Fresh(guard) => guard,
    };
    if has_credentials(&wish.source) {
        // It would be recorded, and shown to everyone who may list images.
        return Err(Fault::field(
            Reason::FieldInvalid,
            "source",
            "must not carry a user name or password",
        ));
    }
    let source = ImageSource::parse(&wish.source).map_err(|error| from_source(&error))?;
    core.images
        .policy
        .check(&source)
        .map_err(|error| from_source(&error))?;
    let pool = match &wish.pool {
        Some(name) => core.pools.named(name, "pool")?,
        None => core.pools.default_pool(),
    };
    let id = wish.image_id.unwrap_or_else(ImageId::random);
    let as_asked = fingerprint(&ImportImage {
        image_id: None,
        ..wish.clone()
    })?;
    let intent = Intent::ImportImage {
        import: Box::new(wish.clone()),
    };
    let mut operation = new_operation(intent, recorded, envelope.request_id, envelope.caller);
    operation.image_id = Some(id);
    let image = Image {
        id,
        name: if wish.name.is_empty() {
            id.to_string()
        } else {
            wish.name.clone()
        },
        description: wish.description.clone(),
        labels: wish.labels.clone(),
        os: wish.os.clone(),
        platform: wish.platform.clone(),
        state: ImageState::Importing,
        pool: pool.pool.name().to_owned(),
        source: wish.source.clone(),
        source_format: wish.format,
        source_sha256: String::new(),
        virtual_size: Bytes::ZERO,
        actual_size: Bytes::ZERO,
        create_time: operation.create_time,
    };
    // One lock decides who imports this id.
    let known = {
        let mut known = core.images.lock();
        match known.get(&id) {
            Some(known) => Some(known.clone()),
            None => {
                known.insert(
                    id,
                    Known {
                        image: image.clone(),
                        current: None,
                    },
                );
                None
            }
        }
    };
    if let Some(known) = known {
        return repeat(core, &known, as_asked).await;
    }
    let begun = core
        .operations
        .begin(operation, Batch::new().put_image(&image))
        .await;
    drop(guard);
    match begun {
        Ok(live) => {
            let answer = live.get();
            begin(core, id, live);
            Ok(answer)
        }
        Err(fault) => {
            core.images.lock().remove(&id);
            Err(fault)
        }
    }
}

/// The same image asked for again: its operation, if that is still known.
async fn repeat(core: &Core, known: &Known, as_asked: Value) -> Result<Arc<Operation>, Fault> {
    let exists = |field: &str| {
        Fault::new(
            Reason::ImageExists,
            format!(
                "image {} exists and was imported with another {field}",
                known.image.id
            ),
        )
        .with("image_id", known.image.id)
        .with("field", field)
    };
    let listed = core
        .operations
        .list(super::operations::OperationQuery {
            image_id: Some(known.image.id),
            limit: 100,
            ..Default::default()
        })
        .await?;
    let import = listed
        .operations
        .into_iter()
        .find_map(|operation| match &operation.intent {
            Intent::ImportImage { import } => Some((operation.clone(), (**import).clone())),
            _ => None,
        });
    let Some((operation, import)) = import else {
        return Err(exists("source"));
    };
    let before = fingerprint(&ImportImage {
        image_id: None,
        ..import
    })?;
    match super::operations::first_difference(&before, &as_asked) {
        Some(field) => Err(exists(&field)),
        None => Ok(operation),
    }
}

/// Deletes an image.
///
/// # Errors
/// See DeleteImage in the API.
pub async fn delete(
    core: &Arc<Core>,
    envelope: Envelope,
    id: ImageId,
) -> Result<Arc<Operation>, Fault> {
    core.check_takes_requests()?;
    let core = core.clone();
    let decided = tokio::spawn(async move { decide_delete(&core, envelope, id).await });
    decided
        .await
        .map_err(|_| internal("a request's task has ended"))?
}

async fn decide_delete(
    core: &Arc<Core>,
    envelope: Envelope,
    id: ImageId,
) -> Result<Arc<Operation>, Fault> {
    let recorded = fingerprint(&json!({ "request": { "call": "delete_image", "image_id": id } }))?;
    let request_id = if envelope.validate_only {
        None
    } else {
        envelope.request_id
    };
    let _guard = match core.operations.claim(request_id, &recorded).await? {
        Claim::Repeat(known) => return Ok(known),
        Claim::Fresh(guard) => guard,
    };
    let image = core.images.get(id)?;
    if let Some(holder) = core
        .images
        .lock()
        .get(&id)
        .and_then(|known| known.current.clone())
    {
        return Err(
            Fault::new(Reason::ImageBusy, "another operation holds the image")
                .with("operation_id", holder.id()),
        );
    }
    let mut operation = new_operation(
        Intent::DeleteImage,
        recorded,
        envelope.request_id,
        envelope.caller,
    );
    operation.image_id = Some(id);
    // No VM is admitted while the image is looked at and marked.
    let admission = core.vms.admission.lock().await;
    let users: Vec<String> = core
        .vms
        .list()
        .iter()
        .filter_map(|view| view.vm.as_ref())
        .flat_map(|vm| &vm.volumes)
        .filter(|volume| volume.image_id == Some(id))
        .map(|volume| volume.id.to_string())
        .collect();
    if !users.is_empty() {
        return Err(Fault::new(
            Reason::ImageInUse,
            format!(
                "{} volumes are made from the image: {}",
                users.len(),
                users.join(", ")
            ),
        )
        .with("volumes", users.join(",")));
    }
    if envelope.validate_only {
        let pools: Vec<String> = core
            .pools
            .all()
            .iter()
            .map(|entry| entry.pool.name().to_owned())
            .collect();
        return Ok(Arc::new(preview::operation(
            operation,
            preview::delete_image(&image, &pools),
        )));
    }
    let marked = Image {
        state: ImageState::Deleting,
        ..image.clone()
    };
    core.images.set(&marked);
    drop(admission);
    match core
        .operations
        .begin(operation, Batch::new().put_image(&marked))
        .await
    {
        Ok(live) => {
            let answer = live.get();
            begin(core, id, live);
            Ok(answer)
        }
        Err(fault) => {
            core.images.set(&image);
            Err(fault)
        }
    }
}

/// Runs the plan of an image's operation on a task of its own.
pub fn begin(core: &Arc<Core>, id: ImageId, live: Arc<LiveOperation>) {
    if let Some(known) = core.images.lock().get_mut(&id) {
        known.current = Some(live.clone());
    }
    let task = core.clone();
    core.tasks.spawn(async move { work(&task, id, live).await });
}

async fn work(core: &Arc<Core>, id: ImageId, live: Arc<LiveOperation>) {
    let run = Run {
        core: core.clone(),
        operation: live.clone(),
    };
    let made = Arc::new(Mutex::new(None));
    let plan = match (&live.get().intent, core.images.get(id)) {
        (Intent::ImportImage { import }, Ok(image)) => import_plan(core, &image, import, &made),
        (Intent::DeleteImage, Ok(image)) => delete_plan(core, &image),
        _ => Plan::new(),
    };
    let ended = plan::execute(&run, &plan).await;
    let (state, error) = match ended {
        Ended::Halted => return,
        Ended::Succeeded => (OperationState::Succeeded, None),
        Ended::Failed(fault) => (OperationState::Failed, Some(fault)),
        Ended::Cancelled(fault) => (OperationState::Cancelled, Some(fault)),
    };
    let mut operation = Operation::clone(&live.get());
    operation.state = state;
    operation.end_time = Some(now());
    let succeeded = state == OperationState::Succeeded;
    if succeeded {
        operation.progress_percent = 100;
    }
    let image = match (&operation.intent, core.images.get(id)) {
        (Intent::ImportImage { .. }, Ok(image)) if succeeded => {
            let made = made.lock().unwrap_or_else(PoisonError::into_inner).take();
            made.map(|(file, sha256): (ImageFile, Option<String>)| Image {
                state: ImageState::Ready,
                source_sha256: sha256.unwrap_or(image.source_sha256.clone()),
                virtual_size: file.virtual_size,
                actual_size: file.actual_size,
                ..image
            })
        }
        // Deleting it failed half-way: what is left can be deleted again.
        (Intent::DeleteImage, Ok(image)) if !succeeded => Some(Image {
            state: ImageState::Lost,
            ..image
        }),
        _ => None,
    };
    match &error {
        None => tracing::info!(operation = %operation.id, image = %id, "operation succeeded"),
        Some(fault) => tracing::warn!(
            operation = %operation.id,
            image = %id,
            reason = fault.reason.as_str(),
            "operation did not succeed"
        ),
    }
    operation.error = error;
    operation.result = image
        .clone()
        .map(|image| OperationResult::Image(Box::new(image)));
    let changes = || match &image {
        Some(image) => Batch::new().put_image(image),
        None => Batch::new().delete_image(id),
    };
    let publish = || {
        let mut known = core.images.lock();
        match (&image, known.get_mut(&id)) {
            (Some(image), Some(known)) => {
                known.image = image.clone();
                known.current = None;
            }
            _ => drop(known.remove(&id)),
        }
    };
    core.operations
        .end(&live, operation, changes, publish)
        .await;
}

/// What an import leaves for the record.
type Made = Arc<Mutex<Option<(ImageFile, Option<String>)>>>;

fn import_plan(core: &Core, image: &Image, import: &ImportImage, made: &Made) -> Plan {
    let fetched = Arc::new(Mutex::new(None));
    vec![
        Box::new(FetchSource {
            policy: core.images.policy.clone(),
            image: image.clone(),
            import: import.clone(),
            fetched: fetched.clone(),
        }),
        Box::new(ConvertImage {
            image: image.clone(),
            fetched,
            made: made.clone(),
        }),
    ]
}

fn delete_plan(core: &Core, image: &Image) -> Plan {
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
            .map_err(|error| super::fault::from_gate_storage(error, &self.image.pool))?;
        match answer {
            Ok(source) => {
                *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(image = %self.image.id, error = chain(&error), "an image can't be fetched");
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
        let entry = run.core.pools.named(&self.image.pool, "pool")?;
        let pool = entry.pool.clone();
        let task = leash(run, 1);
        let answer = run
            .core
            .gate
            .run(Lane::Import, IMPORT, move || {
                pool.put_image(id, &source, &task)
            })
            .await
            .map_err(|error| super::fault::from_gate_storage(error, &self.image.pool))?;
        match answer {
            Ok(file) => {
                *self.made.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((file, Some(sha256)));
                Ok(())
            }
            Err(error) => {
                tracing::warn!(image = %id, error = chain(&error), "an image can't be converted");
                Err(match error.kind() {
                    StorageErrorKind::ToolFailed | StorageErrorKind::BadImage(_) => {
                        from_source(&error)
                    }
                    _ => super::fault::from_storage(&error, &self.image.pool),
                })
            }
        }
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        let id = self.image.id;
        run.core
            .pools
            .call(&self.image.pool, move |pool, _| {
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

/// Whether a URL carries a user name or password.
fn has_credentials(source: &str) -> bool {
    source.split_once("://").is_some_and(|(_, rest)| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        rest[..end].contains('@')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_a_password_is_told_from_one_with_an_at_sign_in_its_path() {
        assert!(has_credentials("https://u:p@host/a@b"));
        assert!(!has_credentials("https://host/a@b"));
        assert!(!has_credentials("/srv/a@b.img"));
    }
}
