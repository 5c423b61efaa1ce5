//! A picture of a guest's display, always as PNG.
//!
//! QEMU's driver sends a PPM (newer ones can send PNG), the simulated driver a
//! PNG. The size is bounded: the bytes come from outside.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};
use crate::model::ids::VmId;
use virt::error::Error as VirtError;
use virt::stream::Stream;

/// The most that is read of a picture: more than 8K at three bytes a pixel.
const LARGEST: usize = 128 << 20;

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

impl Host {
    /// Takes a picture of the guest's first display, as PNG.
    ///
    /// # Errors
    /// `InvalidState` when the domain is off; `Unsupported` when it has no
    /// display.
    pub fn screenshot(&self, id: VmId) -> Result<Vec<u8>, LibvirtError> {
        const WHAT: &str = "take screenshot";
        let picture = self.on_domain(WHAT, id, |domain| {
            let stream = Stream::new(&domain.connect()?, 0)?;
            domain.screenshot(&stream, 0, 0)?;
            receive(stream)
        })?;
        let refuse = |message| LibvirtError::refused(WHAT, ErrorKind::Other, message);
        let picture = picture.ok_or_else(|| refuse("the picture is too large"))?;
        if picture.starts_with(PNG_SIGNATURE) {
            return Ok(picture);
        }
        to_png(&picture).ok_or_else(|| refuse("the picture is neither PNG nor PPM"))
    }
}

/// Reads a stream to its end; `None` past the largest picture.
fn receive(stream: Stream) -> Result<Option<Vec<u8>>, VirtError> {
    let mut picture = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        // Negative only for streams that don't block, which this is not.
        let length = match stream.recv(&mut buffer) {
            Ok(length) => usize::try_from(length).unwrap_or(0),
            Err(error) => {
                let _ = stream.abort();
                return Err(error);
            }
        };
        if length == 0 {
            stream.finish()?;
            return Ok(Some(picture));
        }
        if picture.len() + length > LARGEST {
            stream.abort()?;
            return Ok(None);
        }
        picture.extend_from_slice(&buffer[..length]);
    }
}

/// Encodes a binary PPM with 8 bits a channel, which is what QEMU writes.
fn to_png(ppm: &[u8]) -> Option<Vec<u8>> {
    let (width, height, pixels) = parse_ppm(ppm)?;
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().ok()?;
    writer.write_image_data(pixels).ok()?;
    writer.finish().ok()?;
    Some(png)
}

fn parse_ppm(ppm: &[u8]) -> Option<(u32, u32, &[u8])> {
    let mut rest = ppm.strip_prefix(b"P6")?;
    let mut number = || -> Option<u32> {
        let start = rest.iter().position(|b| !b.is_ascii_whitespace())?;
        let digits = &rest[start..];
        let end = digits.iter().position(|b| !b.is_ascii_digit())?;
        let value = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
        rest = &digits[end..];
        Some(value)
    };
    let (width, height, depth) = (number()?, number()?, number()?);
    let length = usize::try_from(u64::from(width).checked_mul(u64::from(height))?)
        .ok()?
        .checked_mul(3)?;
    // One white-space byte ends the header.
    let pixels = rest.get(1..)?.get(..length)?;
    (depth == 255 && length > 0).then_some((width, height, pixels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ppm_becomes_a_png_with_the_same_pixels() {
        let png = to_png(b"P6\n2 1\n255\n\x01\x02\x03\x0a\x20\x0d").unwrap();
        assert!(png.starts_with(PNG_SIGNATURE));
        let mut reader = png::Decoder::new(std::io::Cursor::new(png))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((frame.width, frame.height), (2, 1));
        assert_eq!(pixels, [1, 2, 3, 10, 32, 13]);
    }

    #[test]
    fn what_is_no_whole_ppm_is_refused() {
        for bad in [
            &b""[..],
            b"P6",
            b"P6 2 1 255",
            b"P6 2 1 255\n12345",
            b"P6 0 0 255\n",
            b"P6 2 1 65535\n123456123456",
            b"P6 4294967295 4294967295 255\n",
            b"P5 1 1 255\n123",
        ] {
            assert_eq!(to_png(bad), None, "{bad:?}");
        }
    }
}
