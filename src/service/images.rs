//! Images: imported once, immutable, deleted when nothing is made from them.
//!
//! An import is an operation of its own, with steps like a VM's; one task per
//! image runs it. Invariant: an image is READY only when its file is in its
//! pool, verified and durable.

use super::core::Core;
use super::ending;
use super::fault::{chain, from_source, internal};
use super::feed::Feed;
use super::operations::{Claim, LiveOperation, new_operation};
use super::plan::{self, Plan, Run};
use super::repeat::{fingerprint, first_difference};
use super::usage;
use super::{image_cache, plans, preview};
use crate::config::ImageSettings;
use crate::journal::Batch;
use crate::model::bytes::Bytes;
use crate::model::event::Cause;
use crate::model::fault::Fault;
use crate::model::ids::ImageId;
use crate::model::image::{Image, ImageState, has_credentials};
use crate::model::operation::{Intent, Operation, OperationResult, OperationState};
use crate::model::reason::Reason;
use crate::model::request::{Envelope, ImportImage};
use crate::spans;
use crate::storage::{ImageFile, ImageSource, SourcePolicy, UrlPrefix};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::Instrument;

/// All images.
pub struct Images {
    known: Mutex<BTreeMap<ImageId, Known>>,
    feed: Arc<Feed>,
    /// Held from the look at what is known until an operation holds the image, so
    /// that whoever comes next with the same id finds it. Taken before the VMs'.
    admission: tokio::sync::Mutex<()>,
    /// Held while room is made in a pool's cache.
    pub(super) eviction: tokio::sync::Mutex<()>,
    /// Those whose last use is not recorded yet.
    used: Mutex<HashSet<ImageId>>,
    policy: SourcePolicy,
}

#[derive(Clone)]
struct Known {
    image: Image,
    /// The operation that holds it.
    current: Option<Arc<LiveOperation>>,
}

impl Images {
    /// The images that the journal knows. `version` is the agent's, which web servers
    /// are told.
    ///
    /// # Errors
    /// A configured URL prefix that is no URL.
    pub fn new(
        images: Vec<Image>,
        settings: &ImageSettings,
        feed: Arc<Feed>,
        version: &str,
    ) -> Result<Self, Fault> {
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
            user_agent: format!("kvmlet/{version}"),
        };
        Ok(Self {
            feed,
            known: Mutex::new(known),
            admission: tokio::sync::Mutex::default(),
            eviction: tokio::sync::Mutex::default(),
            used: Mutex::default(),
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

    /// Replaces what is known of an image, and tells of it.
    pub fn set(&self, image: &Image, cause: Cause) {
        let mut all = self.lock();
        if let Some(known) = all.get_mut(&image.id) {
            known.image = image.clone();
            self.feed.tell_image(image.id, Some(image), cause);
        }
    }

    /// Tells of an image as it is, if what was told differs.
    pub fn tell(&self, id: ImageId, cause: Cause) {
        let all = self.lock();
        let image = all.get(&id).map(|known| &known.image);
        self.feed.tell_image(id, image, cause);
    }

    pub(super) fn used(&self) -> MutexGuard<'_, HashSet<ImageId>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ImageId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes in images that are in a pool and in no record, each with the operation
/// that stands in for its import, and records them together with `batch`. Those
/// that are known already are left as they are.
///
/// # Errors
/// `JOURNAL_UNAVAILABLE`; then nothing has changed.
pub async fn take_in(
    core: &Core,
    found: Vec<(Image, Operation)>,
    batch: Batch,
) -> Result<(), Fault> {
    let _admission = core.images.admission.lock().await;
    let unknown: Vec<(Image, Operation)> = found
        .into_iter()
        .filter(|(image, _)| core.images.get(image.id).is_err())
        .collect();
    let batch = unknown.iter().fold(batch, |batch, (image, operation)| {
        batch.put_image(image).put_operation(operation)
    });
    core.ledger.commit(batch).await?;
    let mut known = core.images.lock();
    for (image, _) in unknown {
        let current = None;
        core.feed.tell_image(image.id, Some(&image), Cause::AGENT);
        known.insert(image.id, Known { image, current });
    }
    Ok(())
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
    core.feed.note_caller(&operation);
    let mut image = Image {
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
        imported_by: operation.id,
        last_use_time: None,
    };
    let mut before = None;
    // One lock decides who imports this id.
    let admission = core.images.admission.lock().await;
    let known = {
        let mut known = core.images.lock();
        match known.get(&id) {
            // Its file is gone: it is imported anew, and must be what it was.
            Some(lost) if lost.image.state == ImageState::Lost && lost.current.is_none() => {
                let lost = lost.image.clone();
                image.source_sha256.clone_from(&lost.source_sha256);
                image.virtual_size = lost.virtual_size;
                known.insert(
                    id,
                    Known {
                        image: image.clone(),
                        current: None,
                    },
                );
                before = Some(lost);
                None
            }
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
    if let Intent::ImportImage { import } = &mut operation.intent
        && !image.source_sha256.is_empty()
    {
        import
            .sha256
            .get_or_insert_with(|| image.source_sha256.clone());
    }
    let begun = core
        .operations
        .begin(operation, Batch::new().put_image(&image))
        .await;
    let answer = match begun {
        Ok(live) => {
            let answer = live.get();
            begin(core, id, live);
            Ok(answer)
        }
        Err(fault) => {
            let mut known = core.images.lock();
            match before {
                Some(lost) => drop(known.insert(
                    id,
                    Known {
                        image: lost,
                        current: None,
                    },
                )),
                None => drop(known.remove(&id)),
            }
            Err(fault)
        }
    };
    drop(admission);
    drop(guard);
    answer
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
    let operation = core.operations.get(known.image.imported_by).await?;
    let mut before = operation.request["request"]["import"].clone();
    before["image_id"] = Value::Null;
    match first_difference(&before, &as_asked) {
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
    core.images.get(id)?;
    // Asked before anything is locked: a cluster that hangs holds up nobody else.
    let clones = image_cache::clones(core, id).await;
    let place = core.images.get(id)?.pool;
    let unused = usage::check_image(core, &place, id).await;
    // No other operation on an image begins while this one is decided on.
    let _images = core.images.admission.lock().await;
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
    core.feed.note_caller(&operation);
    // No VM is admitted while the image is looked at and marked.
    let admission = core.vms.admission.lock().await;
    let mut users: Vec<String> = core
        .vms
        .list()
        .iter()
        .filter_map(|view| view.vm.as_ref())
        .flat_map(|vm| &vm.volumes)
        .filter(|volume| volume.image_id == Some(id))
        .map(|volume| volume.id.to_string())
        .collect();
    if users.is_empty() {
        users = clones?;
    }
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
    if let Err(fault) = unused
        // What can't be known now, the operation looks at again.
        && fault.reason == Reason::ImageInUse
    {
        return Err(fault);
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
    core.images.set(&marked, Cause::operation(operation.id));
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
            core.images.set(&image, Cause::AGENT);
            Err(fault)
        }
    }
}

/// Runs the plan of an image's operation on a task of its own.
pub fn begin(core: &Arc<Core>, id: ImageId, live: Arc<LiveOperation>) {
    if let Some(known) = core.images.lock().get_mut(&id) {
        known.current = Some(live.clone());
    }
    core.images.tell(id, Cause::operation(live.id()));
    let span = spans::operation(&live.get());
    let task = core.clone();
    core.tasks
        .spawn(async move { work(&task, id, live).await }.instrument(span));
}

async fn work(core: &Arc<Core>, id: ImageId, live: Arc<LiveOperation>) {
    let run = Run {
        core: core.clone(),
        operation: live.clone(),
    };
    let made = Arc::new(Mutex::new(None));
    let plan = match (&live.get().intent, core.images.get(id)) {
        (Intent::ImportImage { import }, Ok(image)) => {
            plans::images::import(&core.images.policy, &image, import, &made)
        }
        (Intent::DeleteImage, Ok(image)) => plans::images::delete(core, &image),
        _ => Plan::new(),
    };
    let ended = plan::execute(&run, &plan).await;
    let Some(mut operation) = ending::ended(&live, &ended) else {
        return;
    };
    let succeeded = operation.state == OperationState::Succeeded;
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
        // It was lost before, and volumes are made from it.
        (Intent::ImportImage { .. }, Ok(image)) if core.vms.volumes_of_image(id) > 0 => {
            Some(Image {
                state: ImageState::Lost,
                ..image
            })
        }
        // Deleting it failed: what is left can be used, or deleted again.
        (Intent::DeleteImage, Ok(image)) if !succeeded => {
            let there = core
                .pools
                .call(&image.pool, move |pool, _| pool.image(id))
                .await;
            let state = match there {
                Ok(Some(_)) => ImageState::Ready,
                Ok(None) | Err(_) => ImageState::Lost,
            };
            Some(Image { state, ..image })
        }
        _ => None,
    };
    match &operation.error {
        None => tracing::info!(operation_id = %operation.id, image_id = %id, "operation succeeded"),
        Some(fault) => tracing::warn!(
            operation_id = %operation.id,
            image_id = %id,
            reason = fault.reason.as_str(),
            "operation did not succeed"
        ),
    }
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
        let cause = Cause::operation(operation.id);
        core.feed.tell_image(id, image.as_ref(), cause);
    };
    ending::record(core, &live, &operation, changes, publish).await;
}
