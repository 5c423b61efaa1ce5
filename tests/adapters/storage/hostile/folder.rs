//! A folder of hostile images, made byte by byte and imported as any other: each is
//! refused for what it is, and leaves nothing in the pool.

use crate::storage::support::{Place, failure, run, task};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::ImageId;
use kvmlet::model::image::ImageFormat;
use kvmlet::storage::BadImageKind::{self, *};
use kvmlet::storage::inspect::DEFAULT_MAX_VIRTUAL_SIZE;
use kvmlet::storage::{Pool, StorageError, StorageErrorKind};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const CLUSTER: usize = 4096;
/// What one L2 table covers.
const SIZE: u64 = (CLUSTER / 8 * CLUSTER) as u64;

// One cluster each, in this order.
const REFCOUNT_TABLE: u64 = CLUSTER as u64;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER as u64;
const L1: u64 = 3 * CLUSTER as u64;
const L2: u64 = 4 * CLUSTER as u64;
const DATA: u64 = 5 * CLUSTER as u64;
const END: u64 = 6 * CLUSTER as u64;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// An image of one cluster of data.
#[derive(Debug, Clone)]
struct Disk(Vec<u8>);

impl Disk {
    fn good(version: u32) -> Self {
        let mut disk = Self(vec![0; 6 * CLUSTER]);
        disk.bytes(0, b"QFI\xfb");
        disk.u32(4, version);
        disk.u32(20, 12);
        disk.u64(24, SIZE);
        disk.u32(36, 1);
        disk.u64(40, L1);
        disk.u64(48, REFCOUNT_TABLE);
        disk.u32(56, 1);
        if version == 3 {
            disk.u32(96, 4);
            disk.u32(100, 104);
        }
        disk.u64(REFCOUNT_TABLE, REFCOUNT_BLOCK);
        for cluster in 0..6 {
            disk.bytes(REFCOUNT_BLOCK + 2 * cluster, &[0, 1]);
        }
        disk.u64(L1, L2 | COPIED);
        disk.u64(L2, DATA | COPIED);
        disk.bytes(DATA, &[7; CLUSTER]);
        disk
    }

    fn bytes(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).expect("small");
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(&mut self, at: u64, value: u32) {
        self.bytes(at, &value.to_be_bytes());
    }

    fn u64(&mut self, at: u64, value: u64) {
        self.bytes(at, &value.to_be_bytes());
    }

    /// An extension of the header, which is the first behind it.
    fn extension(&mut self, kind: u32, length: u32) {
        let at = if self.0[7] == 3 { 104 } else { 72 };
        self.u32(at, kind);
        self.u32(at + 4, length);
    }

    fn backing(&mut self, name: &str) {
        self.u64(8, 1024);
        self.u32(16, u32::try_from(name.len()).expect("short"));
        self.bytes(1024, name.as_bytes());
    }
}

/// Which versions of the format have it.
#[derive(Clone, Copy, PartialEq)]
enum In {
    Both,
    V3,
}

type Change = fn(&mut Disk);

/// What is wrong, where, and why it must be refused.
const HOSTILE: &[(&str, In, BadImageKind, Change)] = &[
    // Backing files.
    ("absolute", In::Both, BackingFile, |d| {
        d.backing("/etc/shadow")
    }),
    ("relative", In::Both, BackingFile, |d| {
        d.backing("base.qcow2")
    }),
    ("upwards", In::Both, BackingFile, |d| {
        d.backing("../../../etc/shadow")
    }),
    ("file:", In::Both, BackingFile, |d| {
        d.backing("file:///etc/shadow")
    }),
    ("nbd://", In::Both, BackingFile, |d| {
        d.backing("nbd://127.0.0.1:10809/x")
    }),
    ("nbd+unix", In::Both, BackingFile, |d| {
        d.backing("nbd+unix:///x?socket=/run/x")
    }),
    ("https", In::Both, BackingFile, |d| {
        d.backing("https://127.0.0.1/x")
    }),
    ("ssh", In::Both, BackingFile, |d| {
        d.backing("ssh://root@127.0.0.1/x")
    }),
    ("rbd", In::Both, BackingFile, |d| {
        d.backing("rbd:vms/other:id=admin")
    }),
    ("a device", In::Both, BackingFile, |d| d.backing("/dev/sda")),
    ("json:", In::Both, BackingFile, |d| {
        d.backing(r#"json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}"#);
    }),
    ("json: of nbd", In::Both, BackingFile, |d| {
        d.backing(r#"json:{"driver":"nbd","server":{"type":"unix","path":"/run/x"}}"#);
    }),
    ("fat:", In::Both, BackingFile, |d| d.backing("fat:rw:/etc")),
    ("no text", In::Both, BackingFile, |d| d.backing("\0")),
    ("no name, but a place", In::Both, BackingFile, |d| {
        d.u64(8, 1024)
    }),
    ("a place in the header", In::Both, BackingFile, |d| {
        d.u64(8, 8);
        d.u32(16, 4);
    }),
    ("a name that overruns", In::Both, BackingFile, |d| {
        d.u64(8, 4090);
        d.u32(16, 7);
    }),
    ("a name of 4 GiB", In::Both, BackingFile, |d| {
        d.u64(8, 1024);
        d.u32(16, u32::MAX);
    }),
    ("a name at the end of all", In::Both, BackingFile, |d| {
        d.u64(8, u64::MAX);
        d.u32(16, 1);
    }),
    // Data that is elsewhere.
    ("a data file", In::V3, DataFile, |d| d.u64(72, 1 << 2)),
    ("a data file's name", In::V3, DataFile, |d| {
        d.extension(0x4441_5441, 11);
        d.bytes(112, b"/etc/shadow");
    }),
    ("a data file's name in v2", In::Both, DataFile, |d| {
        d.extension(0x4441_5441, 8)
    }),
    ("a raw data file", In::V3, DataFile, |d| d.u64(88, 1 << 1)),
    // Features.
    ("dirty", In::V3, Dirty, |d| d.u64(72, 1 << 0)),
    ("corrupt", In::V3, Corrupt, |d| d.u64(72, 1 << 1)),
    ("the first unknown bit", In::V3, UnknownFeature, |d| {
        d.u64(72, 1 << 5)
    }),
    ("the last unknown bit", In::V3, UnknownFeature, |d| {
        d.u64(72, 1 << 63)
    }),
    ("every bit", In::V3, UnknownFeature, |d| d.u64(72, u64::MAX)),
    ("bitmaps", In::V3, UnknownFeature, |d| d.u64(88, 1 << 0)),
    (
        "a compression without a type",
        In::V3,
        UnknownFeature,
        |d| d.u64(72, 1 << 3),
    ),
    ("an unknown compression", In::V3, UnknownFeature, |d| {
        d.u64(72, 1 << 3);
        d.u32(100, 112);
        d.bytes(104, &[2]);
    }),
    ("subclusters of 128 bytes", In::V3, Header, |d| {
        d.u64(72, 1 << 4)
    }),
    ("refcounts of 2^7 bits", In::V3, Header, |d| d.u32(96, 7)),
    ("refcounts of 2^4294967295 bits", In::V3, Header, |d| {
        d.u32(96, u32::MAX)
    }),
    // Versions and sizes of the header.
    ("version 0", In::Both, Version, |d| d.u32(4, 0)),
    ("version 1", In::Both, Version, |d| d.u32(4, 1)),
    ("version 4", In::Both, Version, |d| d.u32(4, 4)),
    ("a header of no bytes", In::V3, Header, |d| d.u32(100, 0)),
    ("a header of 103 bytes", In::V3, Header, |d| d.u32(100, 103)),
    ("a header of 4 GiB", In::V3, Header, |d| {
        d.u32(100, u32::MAX)
    }),
    ("an extension of 4 GiB", In::Both, Header, |d| {
        d.extension(1, u32::MAX)
    }),
    ("an extension up to past its area", In::Both, Header, |d| {
        d.extension(1, 4096)
    }),
    (
        "an extension over the backing file",
        In::Both,
        Header,
        |d| {
            d.backing("x");
            d.extension(1, 1000);
        },
    ),
    ("extensions without an end", In::V3, Header, |d| {
        d.u32(100, 4092);
    }),
    // Clusters.
    ("clusters of 2^0", In::Both, Header, |d| d.u32(20, 0)),
    ("clusters of 2^8", In::Both, Header, |d| d.u32(20, 8)),
    ("clusters of 2^22", In::Both, Header, |d| d.u32(20, 22)),
    ("clusters of 2^31", In::Both, Header, |d| d.u32(20, 31)),
    ("clusters of 2^64", In::Both, Header, |d| d.u32(20, 64)),
    ("clusters of 2^4294967295", In::Both, Header, |d| {
        d.u32(20, u32::MAX)
    }),
    // The guest's disk.
    ("no disk", In::Both, VirtualSize, |d| d.u64(24, 0)),
    (
        "a disk of 16 TiB and a sector",
        In::Both,
        VirtualSize,
        |d| {
            d.u64(24, DEFAULT_MAX_VIRTUAL_SIZE.get() + 512);
        },
    ),
    ("a disk of 2^63", In::Both, VirtualSize, |d| {
        d.u64(24, 1 << 63)
    }),
    ("a disk of 2^64", In::Both, VirtualSize, |d| {
        d.u64(24, u64::MAX)
    }),
    (
        "a disk that is larger than its table",
        In::Both,
        Tables,
        |d| d.u64(24, SIZE + 1),
    ),
    // What needs a key, or has a past.
    ("AES", In::Both, Encrypted, |d| d.u32(32, 1)),
    ("LUKS", In::Both, Encrypted, |d| d.u32(32, 2)),
    ("an unknown encryption", In::Both, Encrypted, |d| {
        d.u32(32, 77)
    }),
    ("a place for keys", In::V3, Encrypted, |d| {
        d.extension(0x0537_be77, 16)
    }),
    ("a snapshot", In::Both, Snapshots, |d| {
        d.u32(60, 1);
        d.u64(64, DATA);
    }),
    ("4294967295 snapshots", In::Both, Snapshots, |d| {
        d.u32(60, u32::MAX)
    }),
    // Tables that are too large.
    ("an L1 table of 32 GiB", In::Both, Tables, |d| {
        d.u32(36, u32::MAX)
    }),
    ("an L1 table of 32 MiB and 8", In::Both, Tables, |d| {
        d.u32(36, (32 << 17) + 1)
    }),
    ("an L1 table of 32 MiB", In::Both, Truncated, |d| {
        d.u32(36, 32 << 17)
    }),
    ("no L1 table", In::Both, Tables, |d| d.u32(36, 0)),
    ("no refcount table", In::Both, Tables, |d| d.u32(56, 0)),
    ("a refcount table of 16 TiB", In::Both, Tables, |d| {
        d.u32(56, u32::MAX)
    }),
    // Tables outside of the file.
    ("L1 at the end", In::Both, Truncated, |d| d.u64(40, END)),
    ("L1 past all ends", In::Both, Truncated, |d| {
        d.u64(40, 0xffff_ffff_ffff_e000)
    }),
    ("L1 around the end of all", In::Both, Tables, |d| {
        d.u64(40, 0xffff_ffff_ffff_f000);
        d.u32(36, 1024);
    }),
    ("refcounts at the end", In::Both, Truncated, |d| {
        d.u64(48, END)
    }),
    ("refcounts past all ends", In::Both, Tables, |d| {
        d.u64(48, 0xffff_ffff_ffff_f000)
    }),
    ("a refcount block at the end", In::Both, Truncated, |d| {
        d.u64(REFCOUNT_TABLE, END)
    }),
    (
        "a second refcount block far away",
        In::Both,
        Truncated,
        |d| {
            d.u64(REFCOUNT_TABLE + 8, 1 << 55);
        },
    ),
    ("L2 at the end", In::Both, Truncated, |d| d.u64(L1, END)),
    ("L2 far away", In::Both, Truncated, |d| d.u64(L1, 1 << 55)),
    ("data at the end", In::Both, Truncated, |d| d.u64(L2, END)),
    ("data far away", In::Both, Truncated, |d| {
        d.u64(L2 + 4088, 1 << 55)
    }),
    ("compressed data at the end", In::Both, Truncated, |d| {
        d.u64(L2, COMPRESSED | END)
    }),
    ("compressed data over the end", In::Both, Truncated, |d| {
        d.u64(L2, COMPRESSED | 8 << 58 | DATA);
    }),
    // Tables that are not aligned.
    ("L1 not aligned", In::Both, Tables, |d| d.u64(40, L1 + 512)),
    ("refcounts not aligned", In::Both, Tables, |d| {
        d.u64(48, REFCOUNT_TABLE + 8)
    }),
    ("a refcount block not aligned", In::Both, Tables, |d| {
        d.u64(REFCOUNT_TABLE, REFCOUNT_BLOCK + 512);
    }),
    ("L2 not aligned", In::Both, Tables, |d| d.u64(L1, L2 + 512)),
    ("data not aligned", In::Both, Tables, |d| {
        d.u64(L2, DATA + 512)
    }),
    // Tables over one another.
    ("L1 over the header", In::Both, Tables, |d| d.u64(40, 0)),
    ("L1 over the refcount table", In::Both, Tables, |d| {
        d.u64(40, REFCOUNT_TABLE)
    }),
    ("L1 over a refcount block", In::Both, Tables, |d| {
        d.u64(40, REFCOUNT_BLOCK);
        d.u64(REFCOUNT_BLOCK, L2);
    }),
    ("L1 over L2", In::Both, Tables, |d| {
        d.u64(40, L2);
        d.u64(L2, L2);
    }),
    ("L1 from before L2 into it", In::Both, Tables, |d| {
        d.u32(36, 513)
    }),
    (
        "the refcount table over the header",
        In::Both,
        Tables,
        |d| d.u64(48, 0),
    ),
    ("the refcount table over L1", In::Both, Tables, |d| {
        d.u64(48, L1)
    }),
    ("the refcount table over data", In::Both, Tables, |d| {
        d.u64(48, DATA)
    }),
    (
        "a refcount block over the refcount table",
        In::Both,
        Tables,
        |d| {
            d.u64(REFCOUNT_TABLE, REFCOUNT_TABLE);
        },
    ),
    ("a refcount block over L1", In::Both, Tables, |d| {
        d.u64(REFCOUNT_TABLE, L1)
    }),
    ("a refcount block over L2", In::Both, Tables, |d| {
        d.u64(REFCOUNT_TABLE, L2)
    }),
    ("a refcount block over data", In::Both, Tables, |d| {
        d.u64(REFCOUNT_TABLE, DATA)
    }),
    ("a refcount block twice", In::Both, Tables, |d| {
        d.u64(REFCOUNT_TABLE + 8, REFCOUNT_BLOCK);
    }),
    ("L2 over the refcount table", In::Both, Tables, |d| {
        d.u64(L1, REFCOUNT_TABLE)
    }),
    ("L2 over L1", In::Both, Tables, |d| d.u64(L1, L1)),
    ("L2 twice", In::Both, Tables, |d| {
        d.u32(36, 2);
        d.u64(24, 2 * SIZE);
        d.u64(L1 + 8, L2);
    }),
    ("data over the refcount table", In::Both, Tables, |d| {
        d.u64(L2, REFCOUNT_TABLE)
    }),
    ("data over L1", In::Both, Tables, |d| d.u64(L2, L1)),
    ("data over L2", In::Both, Tables, |d| d.u64(L2, L2)),
    ("compressed data over the header", In::Both, Tables, |d| {
        d.u64(L2, COMPRESSED)
    }),
    ("compressed data over L1", In::Both, Tables, |d| {
        d.u64(L2, COMPRESSED | (L1 + 9))
    }),
    ("compressed data up into L1", In::Both, Tables, |d| {
        d.u64(REFCOUNT_TABLE, 0);
        d.u64(L2, COMPRESSED | 1 << 58 | (L1 - 100));
    }),
    // One cluster for all of the disk.
    ("one cluster of data everywhere", In::Both, Tables, |d| {
        (0..512).for_each(|entry| d.u64(L2 + 8 * entry, DATA));
    }),
];

/// What may be there, and is no harm.
const HARMLESS: &[(&str, In, Change)] = &[
    ("nothing", In::Both, |_| ()),
    ("lazy refcounts", In::V3, |d| d.u64(80, 1)),
    ("unknown bits that may be ignored", In::V3, |d| {
        d.u64(80, u64::MAX)
    }),
    ("unknown bits to be cleared", In::V3, |d| {
        d.u64(88, u64::MAX << 2)
    }),
    ("an unknown extension", In::Both, |d| {
        d.extension(0x1234_5678, 16)
    }),
    ("bitmaps that are out of date", In::V3, |d| {
        d.extension(0x2385_2875, 24);
        d.u32(112, 1);
        d.u64(120, 32);
        d.u64(128, END);
    }),
    ("an area of extensions that is full", In::V3, |d| {
        d.extension(1, 4096 - 112);
    }),
    ("no data at all", In::Both, |d| d.u64(L1, 0)),
    ("a refcount block that was never made", In::Both, |d| {
        d.u64(REFCOUNT_TABLE, 0)
    }),
    ("entries past the disk's end", In::Both, |d| d.u64(24, 512)),
];

/// Imports a file as ImportImage does.
fn import(place: &Place, path: &Path, format: ImageFormat) -> Result<Bytes, StorageError> {
    let source = place.fetch_file(path, format)?;
    let id = ImageId::random();
    let image = place.pool.put_image(id, &source, &task())?;
    place.pool.delete_image(id)?;
    Ok(image.virtual_size)
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut all: Vec<_> = paths
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect();
    all.sort();
    all
}

fn each<T: Copy>(table: &[(&str, In, T, Change)]) -> impl Iterator<Item = (String, T, Disk)> {
    table.iter().flat_map(|&(what, there, kind, change)| {
        [2, 3]
            .into_iter()
            .filter(move |version| *version == 3 || there == In::Both)
            .map(move |version| {
                let mut disk = Disk::good(version);
                change(&mut disk);
                (format!("{what}, version {version}"), kind, disk)
            })
    })
}

#[test]
fn every_hostile_image_is_refused_for_what_it_is_and_leaves_nothing() {
    let place = Place::new();
    let pool = place.folder.path().join("pool");
    let before = files(&pool);
    for (number, (what, kind, disk)) in each(HOSTILE).enumerate() {
        let path = place.incoming(&format!("{number}.qcow2"));
        fs::write(&path, &disk.0).expect("an image");
        let refused = failure(import(&place, &path, ImageFormat::Qcow2));
        assert_eq!(refused, StorageErrorKind::BadImage(kind), "{what}");
        // Nor is it a raw disk, whatever it is declared to be.
        let refused = failure(import(&place, &path, ImageFormat::Raw));
        assert_eq!(refused, StorageErrorKind::BadImage(NotRaw), "{what}");
        assert_eq!(files(&pool), before, "{what}");
    }
}

#[test]
fn what_is_unusual_and_no_harm_is_imported() {
    let place = Place::new();
    let pool = place.folder.path().join("pool");
    let before = files(&pool);
    let table: Vec<_> = HARMLESS
        .iter()
        .map(|&(what, there, change)| (what, there, (), change))
        .collect();
    for (number, (what, (), disk)) in each(&table).enumerate() {
        let path = place.incoming(&format!("{number}.qcow2"));
        fs::write(&path, &disk.0).expect("an image");
        let size = import(&place, &path, ImageFormat::Qcow2);
        let size = size.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(size == Bytes(SIZE) || size == Bytes(512), "{what}: {size}");
        assert_eq!(files(&pool), before, "{what}");
    }
    let path = place.incoming("0.qcow2");
    run("qemu-img", &[&"check", &"-q", &"-f", &"qcow2", &path]);
}

#[test]
fn a_compressed_bomb_is_measured_before_it_is_unpacked() {
    const MIB2: u64 = 2 << 20;
    const TABLES: u64 = 32;
    let place = Place::new();
    let pool = place.folder.path().join("pool");
    let before = files(&pool);
    let path = place.incoming("bomb.qcow2");
    let file = File::create(&path).expect("a file");
    let mut header = Disk::good(3);
    header.0.truncate(CLUSTER);
    header.u32(20, 21);
    header.u64(24, DEFAULT_MAX_VIRTUAL_SIZE.get());
    header.u32(36, u32::try_from(TABLES).expect("few"));
    header.u64(40, 2 * MIB2);
    header.u64(48, MIB2);
    let write = |bytes: &[u8], at| file.write_all_at(bytes, at).expect("it is written");
    write(&header.0, 0);
    // The one cluster that all of the disk is unpacked from.
    let data = (3 + TABLES) * MIB2;
    let entry = (COMPRESSED | data).to_be_bytes();
    for table in 0..TABLES {
        let at = (3 + table) * MIB2;
        write(&at.to_be_bytes(), 2 * MIB2 + 8 * table);
        write(&entry.repeat(1 << 18), at);
    }
    write(&[0; 512], data);
    let source = place.fetch_file(&path, ImageFormat::Qcow2);
    let source = source.expect("the tables are in order");
    assert_eq!(source.data_size(), DEFAULT_MAX_VIRTUAL_SIZE);
    drop(source);
    let refused = failure(import(&place, &path, ImageFormat::Qcow2));
    assert_eq!(refused, StorageErrorKind::Full);
    assert_eq!(files(&pool), before);
}

#[test]
fn data_that_can_not_be_unpacked_fails_and_leaves_nothing() {
    let place = Place::new();
    let pool = place.folder.path().join("pool");
    let before = files(&pool);
    for version in [2, 3] {
        let mut disk = Disk::good(version);
        disk.u64(L2, COMPRESSED | 7 << 58 | DATA);
        let path = place.incoming("disk.qcow2");
        fs::write(&path, &disk.0).expect("an image");
        let failed = failure(import(&place, &path, ImageFormat::Qcow2));
        assert_eq!(failed, StorageErrorKind::ToolFailed);
        assert_eq!(files(&pool), before);
    }
}
