//! Where images come from: a file of this host, or a web server.
//!
//! What is hashed, inspected and converted is always our own copy, because the
//! owner of the original could change it between one step and the next. The
//! copy lies in a pool's scratch folder as `<image id>.part`, locked while it
//! is in use.
//!
//! It doesn't make images: that is [`Pool::put_image`](super::Pool::put_image).

mod file;
mod http;
mod part;
mod url;

pub use url::UrlPrefix;

use self::part::Part;
use super::durable;
use super::error::{StorageError, StorageErrorKind};
use super::inspect::{self, inspect};
use super::task::Task;
use crate::model::bytes::Bytes;
use crate::model::ids::ImageId;
use crate::model::image::ImageFormat;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A place that an image can come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A file of this host, by its absolute path.
    File(PathBuf),
    /// An `http` or `https` URL.
    Url(String),
}

impl ImageSource {
    /// Reads an absolute path, a `file:///` URL, or an `http(s)` URL.
    ///
    /// Anything else is `SourceRefused`.
    pub fn parse(text: &str) -> Result<Self, StorageError> {
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        if text.contains('\0') {
            Err(refused("a source with a NUL"))
        } else if text.starts_with('/') {
            Ok(Self::File(text.into()))
        } else if lower == "file:///" {
            Ok(Self::File(text[7..].into()))
        } else if lower.starts_with("http://") || lower.starts_with("https://") {
            Ok(Self::Url(text.to_owned()))
        } else {
            Err(refused(format!(
                "{text:?} is neither an absolute path nor an http(s) URL"
            )))
        }
    }
}

/// What to fetch, and what it must turn out to be.
#[derive(Debug, Clone)]
pub struct SourceRequest {
    /// The image that it is for; names the copy.
    pub id: ImageId,
    /// Where it is.
    pub source: ImageSource,
    /// The format that it is declared to be in.
    pub format: ImageFormat,
    /// What its bytes must hash to, in 64 hexadecimal digits of either case.
    pub sha256: Option<String>,
}

/// What may be fetched, as the configuration says.
#[derive(Debug, Clone)]
pub struct SourcePolicy {
    /// Files must lie below one of these, after every `..` and link.
    pub allowed_directories: Vec<PathBuf>,
    /// URLs, redirects included, must be below one of these.
    pub allowed_url_prefixes: Vec<UrlPrefix>,
    /// The most bytes that a source may have.
    pub max_source_size: Bytes,
    /// The largest disk that a guest of it may see.
    pub max_virtual_size: Bytes,
    /// How long a server may be silent.
    pub stall_timeout: Duration,
    /// As what the agent asks web servers.
    pub user_agent: String,
}

impl Default for SourcePolicy {
    /// Nothing is allowed; the limits are 1 TiB for a source,
    /// [`inspect::DEFAULT_MAX_VIRTUAL_SIZE`], and 30 s of silence.
    fn default() -> Self {
        Self {
            allowed_directories: Vec::new(),
            allowed_url_prefixes: Vec::new(),
            max_source_size: Bytes::gib(1 << 10),
            max_virtual_size: inspect::DEFAULT_MAX_VIRTUAL_SIZE,
            stall_timeout: Duration::from_secs(30),
            user_agent: "kvmlet".to_owned(),
        }
    }
}

impl SourcePolicy {
    /// Refuses early what [`SourcePolicy::fetch`] would refuse without reading
    /// a byte of it; touches neither disk nor network.
    pub fn check(&self, source: &ImageSource) -> Result<(), StorageError> {
        match source {
            ImageSource::File(path) => file::below(&self.allowed_directories, path).map(drop),
            ImageSource::Url(text) => url::allowed(&self.allowed_url_prefixes, text).map(drop),
        }
    }

    /// Copies a source into `scratch` and checks the copy: its SHA-256, then
    /// its header.
    ///
    /// A download goes on where an earlier one of the same id and URL stopped,
    /// also one of a former process, if the server says that the bytes are
    /// still the same. For that, what there is stays when this fails with
    /// `Cancelled`, `DeadlinePassed` or `Unreachable`, until
    /// [`discard`] removes it; after any other failure nothing stays.
    /// Progress counts bytes of the source. `InUse` when the same id is being
    /// fetched already.
    pub fn fetch(
        &self,
        request: &SourceRequest,
        scratch: &Path,
        task: &Task,
    ) -> Result<CheckedSource, StorageError> {
        self.check(&request.source)?;
        if let Some(text) = &request.sha256
            && !(text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            let message = format!("{text:?} is not a SHA-256");
            return Err(StorageError::new(
                StorageErrorKind::ChecksumMismatch,
                message,
            ));
        }
        let mut part = Part::open(scratch, request.id, self.max_source_size)?;
        match self.fill_and_check(request, &mut part, task) {
            Ok((sha256, found)) => Ok(CheckedSource {
                format: request.format,
                sha256,
                virtual_size: found.virtual_size,
                data_size: match request.format {
                    // What is zero in a raw disk takes no space in ours.
                    ImageFormat::Raw => part.data_size().min(found.data_size),
                    ImageFormat::Qcow2 => found.data_size,
                },
                part,
            }),
            Err(error) => {
                let resumable = matches!(request.source, ImageSource::Url(_))
                    && matches!(
                        error.kind(),
                        StorageErrorKind::Cancelled
                            | StorageErrorKind::DeadlinePassed
                            | StorageErrorKind::Unreachable
                    );
                if !resumable {
                    part.remove();
                }
                Err(error)
            }
        }
    }

    fn fill_and_check(
        &self,
        request: &SourceRequest,
        part: &mut Part,
        task: &Task,
    ) -> Result<(String, inspect::Inspected), StorageError> {
        match &request.source {
            ImageSource::File(path) => file::copy(&self.allowed_directories, path, part, task)?,
            ImageSource::Url(url) => http::download(self, url, part, task)?,
        }
        let sha256 = part.finish()?;
        if let Some(wanted) = &request.sha256
            && !wanted.eq_ignore_ascii_case(&sha256)
        {
            let message = format!("the SHA-256 is {sha256}, not {wanted}");
            return Err(StorageError::new(
                StorageErrorKind::ChecksumMismatch,
                message,
            ));
        }
        let found = inspect(
            &mut task.watch(part.file()),
            request.format,
            self.max_virtual_size,
        )?;
        Ok((sha256, found))
    }
}

/// Our own copy of a source that passed its checks; removed when dropped.
///
/// It survives the end of the process, so that the next one needn't fetch it
/// again.
#[derive(Debug)]
pub struct CheckedSource {
    format: ImageFormat,
    sha256: String,
    virtual_size: Bytes,
    data_size: Bytes,
    part: Part,
}

impl CheckedSource {
    /// Returns where the copy is.
    pub fn path(&self) -> &Path {
        self.part.path()
    }

    /// Returns the format that it is in.
    pub fn format(&self) -> ImageFormat {
        self.format
    }

    /// Returns the SHA-256 of the source's bytes, in lower case.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Returns what a guest will see, in whole sectors.
    pub fn virtual_size(&self) -> Bytes {
        self.virtual_size
    }

    /// Returns the most that the guest's data can take in a pool.
    pub fn data_size(&self) -> Bytes {
        self.data_size
    }
}

impl Drop for CheckedSource {
    fn drop(&mut self) {
        self.part.remove();
    }
}

/// Removes what a fetch for this image left in `scratch`; nothing there is
/// success. `InUse` while a fetch is running.
pub fn discard(scratch: &Path, id: ImageId) -> Result<(), StorageError> {
    match Part::existing(scratch, id)? {
        Some(part) => {
            part.remove();
            Ok(())
        }
        None => Ok(()),
    }
}

/// Removes what a former process left in a scratch folder, but for the downloads
/// of the imports in `keep`, and returns the names.
pub(crate) fn sweep(scratch: &Path, keep: &[ImageId]) -> Result<Vec<String>, StorageError> {
    let kept: HashSet<String> = keep
        .iter()
        .flat_map(|id| [format!("{id}.part"), format!("{id}.part.json")])
        .collect();
    let failed = |e| StorageError::io(format!("sweeping {}", scratch.display()), e);
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(scratch).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().map_err(failed)?.is_dir() || kept.contains(&name) {
            continue;
        }
        std::fs::remove_file(entry.path())
            .map_err(|e| StorageError::io(format!("removing {}", entry.path().display()), e))?;
        removed.push(name);
    }
    if !removed.is_empty() {
        durable::sync_folder(scratch)?;
    }
    Ok(removed)
}

fn refused(message: impl Into<String>) -> StorageError {
    StorageError::new(StorageErrorKind::SourceRefused, message)
}
