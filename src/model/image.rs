//! Images: what volumes are made from.

use super::bytes::Bytes;
use super::ids::{ImageId, OperationId};
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An image that has been imported, or is being imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// A name for people.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Values to select by.
    pub labels: BTreeMap<String, String>,
    /// The operating system inside, as the caller named it.
    pub os: String,
    /// The platform, as the caller named it.
    pub platform: String,
    /// Where the import stands.
    pub state: ImageState,
    /// The pool that holds the image; other pools cache copies of it.
    pub pool: String,
    /// Where it came from, as given.
    pub source: String,
    /// The format that the source was declared to be in.
    pub source_format: ImageFormat,
    /// SHA-256 of the source's bytes, lower-case hexadecimal.
    pub source_sha256: String,
    /// What a guest sees; the least size of a volume made from it.
    pub virtual_size: Bytes,
    /// Space that it takes in its pool.
    pub actual_size: Bytes,
    /// When the import was asked for.
    pub create_time: Timestamp,
    /// The operation that imports it, or did.
    pub imported_by: OperationId,
    /// When a volume was last made from it; `None` if none was yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_use_time: Option<Timestamp>,
}

/// Where an image's import stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// Being imported; can't be used yet.
    Importing,
    /// In its pool, verified, read-only.
    Ready,
    /// Being deleted.
    Deleting,
    /// Its file is gone from its pool.
    Lost,
}

/// The format of a source that an image is imported from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl ImageFormat {
    /// The name that `qemu-img -f` knows it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Whether a URL carries a user name or password.
pub fn has_credentials(source: &str) -> bool {
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
