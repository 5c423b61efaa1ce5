//! Images.

use super::time::timestamp;
use super::{envelope, invalid, text, unknown_value};
use crate::model::fault::Fault;
use crate::model::ids::ImageId;
use crate::model::image::{Image, ImageFormat, ImageState};
use crate::model::request::{Caller, Envelope, ImportImage};
use crate::proto::v1 as wire;

/// Characters of a path or URL.
const SOURCE: usize = 4096;

/// Reads an ImportImage request.
pub(in super::super) fn import_image(
    given: wire::ImportImageRequest,
    caller: Caller,
) -> Result<(Envelope, ImportImage), Fault> {
    let envelope = envelope(&given.request_id, None, false, caller)?;
    let import = ImportImage {
        image_id: text::id("image_id", &given.image_id)?,
        name: text::line("name", given.name, text::LINE)?,
        description: text::prose("description", given.description)?,
        labels: text::labels("labels", given.labels)?,
        source: text::required_line("source", given.source, SOURCE)?,
        format: match wire::ImageFormat::try_from(given.format)
            .map_err(|_| unknown_value("format", given.format))?
        {
            wire::ImageFormat::Unspecified | wire::ImageFormat::Qcow2 => ImageFormat::Qcow2,
            wire::ImageFormat::Raw => ImageFormat::Raw,
        },
        sha256: sha256(given.sha256)?,
        pool: text::optional_line("pool", given.pool)?,
        os: text::line("os", given.os, text::LINE)?,
        platform: text::line("platform", given.platform, text::LINE)?,
    };
    Ok((envelope, import))
}

/// Reads a DeleteImage request.
pub(in super::super) fn delete_image(
    given: &wire::DeleteImageRequest,
    caller: Caller,
) -> Result<(Envelope, ImageId), Fault> {
    let envelope = envelope(&given.request_id, None, given.validate_only, caller)?;
    Ok((envelope, text::required_id("image_id", &given.image_id)?))
}

fn sha256(given: String) -> Result<Option<String>, Fault> {
    if given.is_empty() {
        return Ok(None);
    }
    if given.len() != 64 || !given.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(invalid("sha256", "must be 64 hexadecimal digits"));
    }
    Ok(Some(given.to_ascii_lowercase()))
}

/// An image, with the number of volumes that are made from it.
pub(in super::super) fn shown(image: &Image, volumes: usize) -> wire::Image {
    wire::Image {
        id: image.id.to_string(),
        name: image.name.clone(),
        description: image.description.clone(),
        labels: image.labels.clone().into_iter().collect(),
        os: image.os.clone(),
        platform: image.platform.clone(),
        state: match image.state {
            ImageState::Importing => wire::ImageState::Importing,
            ImageState::Ready => wire::ImageState::Ready,
            ImageState::Deleting => wire::ImageState::Deleting,
            ImageState::Lost => wire::ImageState::Lost,
        }
        .into(),
        pool: image.pool.clone(),
        source: image.source.clone(),
        source_format: match image.source_format {
            // Where it came from was lost with the journal.
            _ if image.source.is_empty() => wire::ImageFormat::Unspecified,
            ImageFormat::Raw => wire::ImageFormat::Raw,
            ImageFormat::Qcow2 => wire::ImageFormat::Qcow2,
        }
        .into(),
        source_sha256: image.source_sha256.clone(),
        virtual_size_bytes: image.virtual_size.get(),
        actual_size_bytes: image.actual_size.get(),
        create_time: Some(timestamp(image.create_time)),
        volume_count: u32::try_from(volumes).unwrap_or(u32::MAX),
        last_use_time: image.last_use_time.map(timestamp),
    }
}
