//! Any bytes as an image from outside: what passes is what it says it is.

#![no_main]

use kvmlet::model::bytes::Bytes;
use kvmlet::model::image::ImageFormat;
use kvmlet::storage::inspect::{Qcow2Header, inspect};
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

const MAX: Bytes = Bytes::gib(1 << 10);

fuzz_target!(|bytes: &[u8]| {
    let length = bytes.len() as u64;
    if let Ok(raw) = inspect(&mut Cursor::new(bytes), ImageFormat::Raw, MAX) {
        assert_eq!(raw.virtual_size.get(), length.next_multiple_of(512));
        assert_eq!(raw.data_size, raw.virtual_size);
        assert!(!bytes.starts_with(b"QFI\xfb"));
    }
    let header = Qcow2Header::read(&mut Cursor::new(bytes));
    let found = inspect(&mut Cursor::new(bytes), ImageFormat::Qcow2, MAX);
    if let Ok(found) = found {
        let header = header.expect("what is inspected has a header");
        assert!(header.backing_file.is_none(), "{header:?}");
        let size = header.virtual_size.get();
        assert!(size > 0 && found.virtual_size <= MAX, "{header:?}");
        assert_eq!(found.virtual_size.get(), size.next_multiple_of(512));
        // The guest's data is in whole clusters, the last of them may reach further.
        let largest = found.virtual_size.get() + (2 << 20);
        assert!(found.data_size.get() < largest, "{found:?} {header:?}");
    }
});
