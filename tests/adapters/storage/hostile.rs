//! Images that were made to harm, or by mistake.

mod folder;

use crate::storage::support::{Place, failure, run};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::image::ImageFormat;
use kvmlet::storage::inspect::{DEFAULT_MAX_VIRTUAL_SIZE, Qcow2Header, inspect};
use kvmlet::storage::{BadImageKind, StorageErrorKind};
use proptest::prelude::*;
use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;
use std::sync::OnceLock;

/// A small good image, made by QEMU: 1 MiB of data in a disk of 64 MiB.
fn good() -> Vec<u8> {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("good.qcow2");
        run(
            "qemu-img",
            &[&"create", &"-q", &"-f", &"qcow2", &path, &"64M"],
        );
        run(
            "qemu-io",
            &[&"-f", &"qcow2", &"-c", &"write -P 1 8M 1M", &path],
        );
        std::fs::read(&path).expect("the image")
    })
    .clone()
}

fn verdict(bytes: &[u8], format: ImageFormat) -> Result<(), BadImageKind> {
    match inspect(&mut Cursor::new(bytes), format, DEFAULT_MAX_VIRTUAL_SIZE) {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            StorageErrorKind::BadImage(kind) => Err(kind),
            other => panic!("{other:?}: {error}"),
        },
    }
}

fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = good();
    for (at, new) in changes {
        bytes[*at..at + new.len()].copy_from_slice(new);
    }
    bytes
}

/// Where the image's first L2 table is.
fn l2(bytes: &[u8]) -> usize {
    let number = |at: usize| {
        u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes")) & 0x00ff_ffff_ffff_fe00
    };
    let l1 = usize::try_from(number(40)).expect("small");
    usize::try_from(number(l1)).expect("small")
}

#[test]
fn each_fault_of_a_qcow2_header_is_told_apart() {
    use BadImageKind::*;
    let table = l2(&good());
    let entry = (0..8192)
        .map(|n| table + n * 8)
        .find(|&at| good()[at..at + 8] != [0; 8]);
    let entry = entry.expect("an allocated cluster");
    let far = 0x8000_0000_4000_0000_u64.to_be_bytes();
    let cases: &[(&str, BadImageKind, Vec<u8>)] = &[
        ("no magic", NotQcow2, with(&[(0, b"QFI\0")])),
        ("empty", NotQcow2, Vec::new()),
        ("only a magic", Truncated, b"QFI\xfb".to_vec()),
        ("version 1", Version, with(&[(7, &[1])])),
        ("version 4", Version, with(&[(7, &[4])])),
        (
            "backing file",
            BackingFile,
            with(&[(8, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 11])]),
        ),
        (
            "backing offset past the end",
            BackingFile,
            with(&[(8, &[0xff; 8])]),
        ),
        ("backing length only", BackingFile, with(&[(19, &[5])])),
        ("backing offset only", BackingFile, with(&[(14, &[2])])),
        ("clusters of 256 bytes", Header, with(&[(23, &[8])])),
        ("clusters of 4 MiB", Header, with(&[(23, &[22])])),
        (
            "clusters of 2^4294967295",
            Header,
            with(&[(20, &[0xff; 4])]),
        ),
        ("encrypted with AES", Encrypted, with(&[(35, &[1])])),
        ("encrypted with LUKS", Encrypted, with(&[(35, &[2])])),
        ("a snapshot", Snapshots, with(&[(63, &[1])])),
        ("dirty", Dirty, with(&[(79, &[1])])),
        ("corrupt", Corrupt, with(&[(79, &[2])])),
        ("data file", DataFile, with(&[(79, &[4])])),
        ("an unknown bit", UnknownFeature, with(&[(79, &[0x20])])),
        (
            "the last unknown bit",
            UnknownFeature,
            with(&[(72, &[0x80])]),
        ),
        ("refcounts of 2^7 bits", Header, with(&[(99, &[7])])),
        ("a header too short", Header, with(&[(103, &[64])])),
        ("a header too long", Header, with(&[(100, &[0x7f; 4])])),
        (
            "an extension that overruns",
            Header,
            with(&[(0x74, &[0xff; 4])]),
        ),
        (
            "a data file extension",
            DataFile,
            with(&[(0x70, &0x4441_5441_u32.to_be_bytes())]),
        ),
        (
            "an encryption extension",
            Encrypted,
            with(&[(0x70, &0x0537_be77_u32.to_be_bytes())]),
        ),
        ("size 0", VirtualSize, with(&[(24, &[0; 8])])),
        (
            "1 EiB",
            VirtualSize,
            with(&[(24, &(1_u64 << 60).to_be_bytes())]),
        ),
        ("all there is", VirtualSize, with(&[(24, &[0xff; 8])])),
        (
            "too few L1 entries",
            Tables,
            with(&[(24, &(1_u64 << 40).to_be_bytes())]),
        ),
        ("too many L1 entries", Tables, with(&[(36, &[0xff; 4])])),
        (
            "L1 past the end",
            Truncated,
            with(&[(40, &0x4000_0000_u64.to_be_bytes())]),
        ),
        (
            "L1 past all ends",
            Truncated,
            with(&[(40, &0xffff_ffff_ffff_0000_u64.to_be_bytes())]),
        ),
        ("L1 not aligned", Tables, with(&[(47, &[8])])),
        ("L1 over the header", Tables, with(&[(40, &[0; 8])])),
        ("no refcount table", Tables, with(&[(56, &[0; 4])])),
        ("absurd refcount table", Tables, with(&[(56, &[0xff; 4])])),
        (
            "refcounts past the end",
            Truncated,
            with(&[(48, &0x4000_0000_u64.to_be_bytes())]),
        ),
        ("a cluster past the end", Truncated, with(&[(entry, &far)])),
        ("a cluster not aligned", Tables, with(&[(entry + 6, &[2])])),
    ];
    for (what, kind, bytes) in cases {
        assert_eq!(verdict(bytes, ImageFormat::Qcow2), Err(*kind), "{what}");
    }
    assert_eq!(verdict(&good(), ImageFormat::Qcow2), Ok(()));
}

#[test]
fn a_backing_file_is_refused_in_each_spelling() {
    let place = Place::new();
    let base = place.incoming("base.qcow2");
    run(
        "qemu-img",
        &[&"create", &"-q", &"-f", &"qcow2", &base, &"1M"],
    );
    for (number, backing) in [
        "/etc/shadow",
        "base.qcow2",
        "../../../etc/shadow",
        "file:/etc/shadow",
        "nbd://127.0.0.1:1/x",
        "ssh://host/x",
        "rbd:pool/image",
        r#"json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}"#,
        "fat:/etc",
        "x",
    ]
    .into_iter()
    .enumerate()
    {
        for compat in ["compat=0.10", "compat=1.1"] {
            let path = place.incoming(&format!("{number}.qcow2"));
            run(
                "qemu-img",
                &[
                    &"create", &"-q", &"-u", &"-f", &"qcow2", &"-o", &compat, &"-F", &"raw", &"-b",
                    &backing, &path, &"1M",
                ],
            );
            let result = place.fetch_file(&path, ImageFormat::Qcow2);
            let kind = StorageErrorKind::BadImage(BadImageKind::BackingFile);
            assert_eq!(failure(result), kind, "{backing}, {compat}");
        }
    }
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn images_that_qemu_makes_with_refused_features_are_refused() {
    let place = Place::new();
    let refused = |name: &str, kind| {
        let result = place.fetch_file(&place.incoming(name), ImageFormat::Qcow2);
        assert_eq!(failure(result), StorageErrorKind::BadImage(kind), "{name}");
    };
    let path = place.incoming("data.qcow2");
    let option = format!("data_file={}", place.incoming("outside.raw").display());
    run(
        "qemu-img",
        &[
            &"create", &"-q", &"-f", &"qcow2", &"-o", &option, &path, &"1M",
        ],
    );
    refused("data.qcow2", BadImageKind::DataFile);

    let path = place.incoming("luks.qcow2");
    run(
        "qemu-img",
        &[
            &"create",
            &"-q",
            &"-f",
            &"qcow2",
            &"--object",
            &"secret,id=s,data=x",
            &"-o",
            &"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            &path,
            &"1M",
        ],
    );
    refused("luks.qcow2", BadImageKind::Encrypted);

    let path = place.incoming("snapshot.qcow2");
    run(
        "qemu-img",
        &[&"create", &"-q", &"-f", &"qcow2", &path, &"1M"],
    );
    run("qemu-img", &[&"snapshot", &"-c", &"one", &path]);
    refused("snapshot.qcow2", BadImageKind::Snapshots);

    let path = place.incoming("huge.qcow2");
    run(
        "qemu-img",
        &[
            &"create",
            &"-q",
            &"-f",
            &"qcow2",
            &"-o",
            &"cluster_size=2M",
            &path,
            &"1E",
        ],
    );
    refused("huge.qcow2", BadImageKind::VirtualSize);
}

#[test]
fn one_format_presented_as_the_other_is_refused() {
    let place = Place::new();
    let raw = place.incoming("disk.raw");
    std::fs::write(&raw, vec![0x55; 1 << 20]).expect("a disk");
    let kind = |name: &str, format| failure(place.fetch_file(&place.incoming(name), format));
    let not_qcow2 = StorageErrorKind::BadImage(BadImageKind::NotQcow2);
    assert_eq!(kind("disk.raw", ImageFormat::Qcow2), not_qcow2);
    let not_raw = StorageErrorKind::BadImage(BadImageKind::NotRaw);
    for format in [
        "qcow2",
        "qcow",
        "qed",
        "vmdk",
        "vhdx",
        "vdi",
        "vpc",
        "parallels",
    ] {
        let name = format!("disk.{format}");
        let path = place.incoming(&name);
        run(
            "qemu-img",
            &[&"convert", &"-f", &"raw", &"-O", &format, &raw, &path],
        );
        assert_eq!(kind(&name, ImageFormat::Raw), not_raw, "{format}");
        if format != "qcow2" {
            let result = kind(&name, ImageFormat::Qcow2);
            assert!(
                matches!(result, StorageErrorKind::BadImage(_)),
                "{format}: {result:?}"
            );
        }
    }
    let fixed = place.incoming("fixed.vhd");
    run(
        "qemu-img",
        &[
            &"convert",
            &"-O",
            &"vpc",
            &"-o",
            &"subformat=fixed",
            &raw,
            &fixed,
        ],
    );
    assert_eq!(kind("fixed.vhd", ImageFormat::Raw), not_raw);
    run("gzip", &[&"-k", &raw]);
    assert_eq!(kind("disk.raw.gz", ImageFormat::Raw), not_raw);
}

#[test]
fn a_truncated_image_is_refused_wherever_it_is_cut() {
    let whole = good();
    for length in (4..whole.len()).step_by(4096) {
        let result = verdict(&whole[..length], ImageFormat::Qcow2);
        // QEMU leaves out the end of the last cluster itself.
        if length <= whole.len() - (64 << 10) {
            assert_eq!(result, Err(BadImageKind::Truncated), "cut at {length}");
        }
    }
}

#[test]
fn a_small_file_that_unpacks_to_much_is_refused() {
    let mut bytes = good();
    let table = l2(&bytes);
    let entry = (0..8192)
        .map(|n| table + n * 8)
        .find(|&at| bytes[at..at + 8] != [0; 8]);
    let entry = entry.expect("an allocated cluster");
    let one: [u8; 8] = bytes[entry..entry + 8].try_into().expect("8 bytes");
    for at in (table..table + (64 << 10)).step_by(8) {
        bytes[at..at + 8].copy_from_slice(&one);
    }
    assert_eq!(
        verdict(&bytes, ImageFormat::Qcow2),
        Err(BadImageKind::Tables)
    );

    // Two L1 entries that share one table.
    let mut bytes = with(&[(24, &(1_u64 << 30).to_be_bytes()), (39, &[2])]);
    let l1 = usize::try_from(u64::from_be_bytes(
        bytes[40..48].try_into().expect("8 bytes"),
    ));
    let l1 = l1.expect("small");
    bytes.copy_within(l1..l1 + 8, l1 + 8);
    assert_eq!(
        verdict(&bytes, ImageFormat::Qcow2),
        Err(BadImageKind::Tables)
    );
}

#[test]
fn a_raw_disk_must_be_of_an_allowed_size() {
    let check = |length: usize, max| {
        inspect(&mut Cursor::new(vec![0; length]), ImageFormat::Raw, max).map(|i| i.virtual_size)
    };
    assert_eq!(check(513, Bytes(1024)).expect("allowed"), Bytes(1024));
    let refused = StorageErrorKind::BadImage(BadImageKind::VirtualSize);
    assert_eq!(failure(check(1025, Bytes(1024))), refused);
    assert_eq!(failure(check(0, Bytes(1024))), refused);
}

/// What the fuzzer found to be different from all else.
#[test]
fn the_corpus_of_the_fuzzer_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/image");
    let mut verdicts = HashSet::new();
    for entry in std::fs::read_dir(folder).expect("the corpus") {
        let bytes = std::fs::read(entry.expect("an entry").path()).expect("an image");
        verdicts.insert(verdict(&bytes, ImageFormat::Qcow2));
        verdicts.insert(verdict(&bytes, ImageFormat::Raw));
    }
    // Good ones, and those that are refused for most of the reasons that there are.
    assert!(verdicts.contains(&Ok(())));
    assert!(verdicts.len() > 10, "{verdicts:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = verdict(&bytes, ImageFormat::Raw);
        let _ = verdict(&bytes, ImageFormat::Qcow2);
        let mut headed = b"QFI\xfb\0\0\0\x03".to_vec();
        headed.extend(&bytes);
        let _ = verdict(&headed, ImageFormat::Qcow2);
    }

    #[test]
    fn no_damage_to_a_good_image_makes_the_reader_panic(
        header in prop::collection::vec((0_usize..200, any::<u8>()), 0..6),
        tables in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = good();
        for (at, value) in header {
            bytes[at] = value;
        }
        for (at, value) in tables {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = verdict(&bytes, ImageFormat::Qcow2);
        let _ = Qcow2Header::read(&mut Cursor::new(&bytes));
    }
}
