//! Images: from a checked source to a base that volumes share.

use crate::storage::support::{MIB, Place, facts, failure, names, path_of, run, task};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::{ImageId, VolumeId};
use kvmlet::model::image::ImageFormat;
use kvmlet::storage::{EntryKind, Pool, Qcow2Pool, StorageErrorKind, Task};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn a_raw_disk_becomes_a_read_only_qcow2_image_with_the_same_bytes() {
    let place = Place::new();
    let path = place.incoming("disk.raw");
    let mut bytes = vec![0; 3 << 20];
    bytes[1 << 20..][..5].copy_from_slice(b"hello");
    std::fs::write(&path, &bytes).expect("a disk");
    let source = place
        .fetch_file(&path, ImageFormat::Raw)
        .expect("a good source");
    let digest = run("sha256sum", &[&path]);
    assert_eq!(source.sha256(), digest.split(' ').next().expect("a digest"));
    assert_eq!(source.data_size(), Bytes::kib(64), "zeroes need no space");

    let id = ImageId::random();
    let made = place
        .pool
        .put_image(id, &source, &task())
        .expect("an image");
    assert_eq!(made.virtual_size, Bytes::mib(3));
    assert!(made.actual_size < MIB, "{}", made.actual_size);
    let image = path_of(place.pool.image_source(id));
    let mode = image.metadata().expect("the image").permissions().mode();
    assert_eq!(mode & 0o777, 0o444);
    assert_eq!(facts(&image)["format"], "qcow2");
    run(
        "qemu-img",
        &[&"compare", &"-f", &"raw", &"-F", &"qcow2", &path, &image],
    );
    drop(source);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn an_image_that_is_there_is_measured_and_not_made_again() {
    let place = Place::new();
    let id = place.image(2, 1);
    let before = path_of(place.pool.image_source(id))
        .metadata()
        .expect("it")
        .modified();
    std::fs::write(place.incoming("other.raw"), vec![9; 4096]).expect("a disk");
    let other = place
        .fetch_file(&place.incoming("other.raw"), ImageFormat::Raw)
        .expect("a source");
    let again = place
        .pool
        .put_image(id, &other, &task())
        .expect("the same image");
    assert_eq!(again.virtual_size, Bytes::mib(2));
    let after = path_of(place.pool.image_source(id))
        .metadata()
        .expect("it")
        .modified();
    assert_eq!(before.expect("a time"), after.expect("a time"));
}

#[test]
fn qcow2_sources_of_every_usual_make_are_accepted() {
    let place = Place::new();
    let raw = place.incoming("disk.raw");
    let mut bytes = vec![0; 4 << 20];
    bytes[..1 << 20].fill(3);
    std::fs::write(&raw, bytes).expect("a disk");
    for (number, options) in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,extended_l2=on,cluster_size=128k",
        "compat=1.1,refcount_bits=1",
        "compat=1.1,lazy_refcounts=on",
        "compat=1.1,preallocation=metadata",
        "compat=1.1,compression_type=zstd",
    ]
    .into_iter()
    .enumerate()
    {
        for compress in [false, true] {
            if compress && options.contains("preallocation") {
                continue;
            }
            let path = place.incoming(&format!("{number}-{compress}.qcow2"));
            let mut words: Vec<&dyn AsRef<std::ffi::OsStr>> =
                vec![&"convert", &"-f", &"raw", &"-O", &"qcow2", &"-o", &options];
            if compress {
                words.push(&"-c");
            }
            words.extend([&raw as &dyn AsRef<_>, &path]);
            run("qemu-img", &words);
            let source = place
                .fetch_file(&path, ImageFormat::Qcow2)
                .unwrap_or_else(|e| panic!("{options}, compressed {compress}: {e}"));
            let id = ImageId::random();
            let made = place.pool.put_image(id, &source, &task());
            let made = made.unwrap_or_else(|e| panic!("{options}, compressed {compress}: {e}"));
            assert_eq!(made.virtual_size, Bytes::mib(4));
            let image = path_of(place.pool.image_source(id));
            run(
                "qemu-img",
                &[&"compare", &"-f", &"raw", &"-F", &"qcow2", &raw, &image],
            );
        }
    }
}

#[test]
fn a_conversion_tells_how_far_it_is() {
    let place = Place::new();
    let path = place.incoming("disk.raw");
    std::fs::write(&path, vec![5; 8 << 20]).expect("a disk");
    let source = place.fetch_file(&path, ImageFormat::Raw).expect("a source");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let task = Task::new(Arc::default(), Some(deadline), move |done, total| {
        log.lock().expect("no panic").push((done, total));
    });
    place
        .pool
        .put_image(ImageId::random(), &source, &task)
        .expect("an image");
    let seen = seen.lock().expect("no panic");
    assert_eq!(seen.last(), Some(&(8 << 20, 8 << 20)));
    assert!(seen.is_sorted(), "{seen:?}");
}

#[test]
fn an_image_is_cached_in_a_second_pool() {
    let place = Place::new();
    let id = place.image(2, 1);
    let second = Qcow2Pool::new("second", place.folder.path().join("second"));
    second.prepare().expect("a pool");
    for _ in 0..2 {
        let made = second.copy_image_from(id, &place.pool.image_source(id), &task());
        assert_eq!(made.expect("a copy").virtual_size, Bytes::mib(2));
    }
    let copy = path_of(second.image_source(id));
    let original = path_of(place.pool.image_source(id));
    assert_eq!(
        std::fs::read(copy).expect("it"),
        std::fs::read(original).expect("it")
    );
    assert_eq!(names(second.scratch()), Vec::<String>::new());
}

#[test]
fn an_image_goes_only_when_no_volume_needs_it() {
    let place = Place::new();
    let id = place.image(1, 1);
    let volume = VolumeId::random();
    place
        .pool
        .create_overlay(&volume.into(), id, Bytes::mib(2), &task())
        .expect("a volume");
    place
        .pool
        .create_empty(&VolumeId::random().into(), MIB, &task())
        .expect("another");
    assert_eq!(place.pool.volumes_on(id).expect("a list"), vec![volume]);
    assert_eq!(
        failure(place.pool.delete_image(id)),
        StorageErrorKind::InUse
    );
    assert!(place.pool.image(id).expect("a look").is_some());
    place.pool.delete_volume(&volume.into()).expect("gone");
    place.pool.delete_image(id).expect("gone");
    place.pool.delete_image(id).expect("absent is success");
    assert_eq!(place.pool.image(id).expect("a look"), None);
}

#[test]
fn a_pool_lists_what_is_ours_and_what_is_not() {
    let place = Place::new();
    let image = place.image(1, 1);
    let volume = VolumeId::random();
    place
        .pool
        .create_overlay(&volume.into(), image, MIB, &task())
        .expect("a volume");
    let root = place.folder.path().join("pool");
    std::fs::write(root.join("volumes/notes.txt"), "x").expect("a file");
    std::fs::write(root.join("tmp/half"), "x").expect("a file");
    std::fs::create_dir(root.join("extra")).expect("a folder");
    let entries = place.pool.entries().expect("a list");
    let mut kinds: Vec<_> = entries.into_iter().map(|e| (e.name, e.kind)).collect();
    kinds.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        kinds,
        [
            ("extra".to_owned(), EntryKind::Unknown),
            (format!("images/{image}.qcow2"), EntryKind::Image(image)),
            ("tmp/half".to_owned(), EntryKind::Temporary),
            (format!("volumes/{volume}.qcow2"), EntryKind::Volume(volume)),
            ("volumes/notes.txt".to_owned(), EntryKind::Unknown),
        ]
    );
    assert_eq!(place.pool.sweep_temporary(&[]).expect("swept"), ["half"]);
    assert!(
        root.join("volumes/notes.txt").exists(),
        "what isn't ours stays"
    );
}
