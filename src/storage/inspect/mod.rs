//! Reads the headers of images, hostile ones included.
//!
//! An image from outside is refused unless everything that a reader would
//! follow lies inside the file itself. All arithmetic is checked, all reads are
//! bounded by the file's length (so a small file costs little, whatever it
//! claims), and nothing is mapped. It decides nothing about the guest's data.

mod foreign;
mod header;
mod tables;

pub use header::Qcow2Header;

use super::error::{BadImageKind, StorageError, StorageErrorKind};
use crate::model::bytes::Bytes;
use crate::model::image::ImageFormat;
use std::io::{Read, Seek, SeekFrom};

/// Sectors are what a guest's disk is made of.
pub const SECTOR: Bytes = Bytes(512);

/// The largest virtual disk that is accepted when the configuration says
/// nothing.
pub const DEFAULT_MAX_VIRTUAL_SIZE: Bytes = Bytes::gib(16 << 10);

/// What was learnt of an image that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspected {
    /// The guest's disk, in whole sectors.
    pub virtual_size: Bytes,
    /// The most that the guest's data can take once it is unpacked.
    pub data_size: Bytes,
}

/// Checks an image from outside against the format that it was declared to be
/// in; reads it from the start, and at most once over.
pub fn inspect<R: Read + Seek>(
    file: &mut R,
    declared: ImageFormat,
    max_virtual_size: Bytes,
) -> Result<Inspected, StorageError> {
    let length = file.seek(SeekFrom::End(0)).map_err(reading)?;
    match declared {
        ImageFormat::Raw => {
            if let Some(name) = foreign::recognise(file, length)? {
                return Err(bad(BadImageKind::NotRaw, format!("begins like {name}")));
            }
            let virtual_size = check_size(length, max_virtual_size)?;
            Ok(Inspected {
                virtual_size,
                data_size: virtual_size,
            })
        }
        ImageFormat::Qcow2 => {
            let header = Qcow2Header::read(file)?;
            header.refuse_outside_references()?;
            let virtual_size = check_size(header.virtual_size.get(), max_virtual_size)?;
            let data_size = tables::check(file, &header, length)?;
            Ok(Inspected {
                virtual_size,
                data_size,
            })
        }
    }
}

fn check_size(size: u64, max: Bytes) -> Result<Bytes, StorageError> {
    let refused = |text: &str| bad(BadImageKind::VirtualSize, format!("{size} bytes: {text}"));
    if size == 0 {
        return Err(refused("empty"));
    }
    let size = Bytes(size)
        .round_up(SECTOR)
        .ok_or_else(|| refused("too large"))?;
    if size > max {
        Err(refused("larger than allowed"))
    } else {
        Ok(size)
    }
}

/// A refusal of an image, with what is wrong with it.
fn bad(kind: BadImageKind, detail: impl std::fmt::Display) -> StorageError {
    StorageError::new(
        StorageErrorKind::BadImage(kind),
        format!("the image {kind}: {detail}"),
    )
}

fn reading(error: std::io::Error) -> StorageError {
    StorageError::io("reading an image", error)
}

/// Reads exactly `buffer` at `offset`; an end before that is `Truncated`.
fn read_at<R: Read + Seek>(
    file: &mut R,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), StorageError> {
    file.seek(SeekFrom::Start(offset)).map_err(reading)?;
    file.read_exact(buffer).map_err(|e| {
        if e.kind() == std::io::ErrorKind::UnexpectedEof {
            bad(
                BadImageKind::Truncated,
                format!("ends before byte {offset} + {}", buffer.len()),
            )
        } else {
            reading(e)
        }
    })
}
