//! Volumes: overlays on images, and empty ones.

use crate::storage::support::{MIB, Place, command, facts, failure, path_of, run, task};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::{ImageId, VolumeId};
use kvmlet::storage::{Backing, Pool, Qcow2Pool, StorageErrorKind};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

#[test]
fn an_overlay_reads_the_images_bytes_and_names_its_format() {
    let place = Place::new();
    let image = place.image(2, 42);
    let id = VolumeId::random();
    let made = place
        .pool
        .create_overlay(&id.into(), image, Bytes::mib(10), &task())
        .expect("a volume");
    assert_eq!(made.virtual_size, Bytes::mib(10));
    assert_eq!(made.backing, Backing::Image(image));
    let takes = place.pool.actual_size(&id.into()).expect("measured");
    assert!(takes < Some(MIB), "an overlay costs nothing: {takes:?}");
    let path = path_of(place.pool.volume_source(&id.into()));
    let facts = facts(&path);
    assert_eq!(facts["virtual-size"], 10 << 20);
    assert_eq!(facts["backing-filename-format"], "qcow2");
    let base = facts["full-backing-filename"]
        .as_str()
        .expect("a backing file");
    let base = std::fs::canonicalize(base).expect("it is there");
    assert_eq!(base, path_of(place.pool.image_source(image)));
    // Any mismatch makes qemu-io fail.
    run(
        "qemu-io",
        &[
            &"-f",
            &"qcow2",
            &"-c",
            &"read -P 42 0 2M",
            &"-c",
            &"read -P 0 2M 8M",
            &path,
        ],
    );
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn a_pool_that_was_moved_still_works() {
    let place = Place::new();
    let image = place.image(1, 42);
    let id = VolumeId::random();
    place
        .pool
        .create_overlay(&id.into(), image, MIB, &task())
        .expect("a volume");
    let moved = place.folder.path().join("moved");
    std::fs::rename(place.folder.path().join("pool"), &moved).expect("moved");
    let pool = Qcow2Pool::new("main", &moved);
    let path = path_of(pool.volume_source(&id.into()));
    run(
        "qemu-io",
        &[&"-f", &"qcow2", &"-c", &"read -P 42 0 1M", &path],
    );
    let found = pool
        .volume(&id.into())
        .expect("a look")
        .expect("it is there");
    assert_eq!(found.backing, Backing::Image(image));
}

#[test]
fn the_same_volume_again_is_success_and_another_is_refused() {
    let place = Place::new();
    let (image, other) = (place.image(1, 1), place.image(1, 2));
    let id = VolumeId::random();
    let first = place
        .pool
        .create_overlay(&id.into(), image, Bytes::mib(4), &task())
        .expect("a volume");
    let again = place
        .pool
        .create_overlay(&id.into(), image, Bytes::mib(4), &task())
        .expect("the same");
    assert_eq!(first, again);
    let exists = StorageErrorKind::Exists;
    let pool = &place.pool;
    assert_eq!(
        failure(pool.create_overlay(&id.into(), image, Bytes::mib(5), &task())),
        exists
    );
    assert_eq!(
        failure(pool.create_overlay(&id.into(), other, Bytes::mib(4), &task())),
        exists
    );
    assert_eq!(
        failure(pool.create_empty(&id.into(), Bytes::mib(4), &task())),
        exists
    );
}

#[test]
fn sizes_are_whole_sectors_and_never_less_than_the_image() {
    let place = Place::new();
    let image = place.image(2, 1);
    let pool = &place.pool;
    let id = VolumeId::random();
    let small = pool.create_overlay(&id.into(), image, Bytes::mib(1), &task());
    assert_eq!(failure(small), StorageErrorKind::BadSize);
    let nothing = pool.create_empty(&id.into(), Bytes::ZERO, &task());
    assert_eq!(failure(nothing), StorageErrorKind::BadSize);
    let huge = pool.create_empty(&id.into(), Bytes(u64::MAX), &task());
    assert_eq!(failure(huge), StorageErrorKind::BadSize);
    let odd = pool
        .create_empty(&id.into(), Bytes(1_000_001), &task())
        .expect("a volume");
    assert_eq!(odd.virtual_size, Bytes(1_000_448));
    pool.create_empty(&id.into(), Bytes(1_000_001), &task())
        .expect("the same");
}

#[test]
fn an_overlay_on_an_absent_image_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let id = VolumeId::random();
    let result = place
        .pool
        .create_overlay(&id.into(), ImageId::random(), MIB, &task());
    assert_eq!(failure(result), StorageErrorKind::NotFound);
    assert_eq!(place.pool.volume(&id.into()).expect("a look"), None);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn a_volume_that_a_process_uses_is_measured_but_not_removed() {
    let place = Place::new();
    let id = VolumeId::random();
    place
        .pool
        .create_empty(&id.into(), MIB, &task())
        .expect("a volume");
    let path = path_of(place.pool.volume_source(&id.into()));
    let mut user = command("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io starts");
    let mut input = user.stdin.take().expect("piped");
    let mut output = BufReader::new(user.stdout.take().expect("piped"));
    input.write_all(b"length\n").expect("it listens");
    let mut line = String::new();
    // It answers once it has opened the file.
    output.read_line(&mut line).expect("it answers");
    assert_eq!(
        failure(place.pool.delete_volume(&id.into())),
        StorageErrorKind::InUse
    );
    assert!(place.pool.volume(&id.into()).expect("a look").is_some());
    input.write_all(b"quit\n").expect("it listens");
    user.wait().expect("it ends");
    place.pool.delete_volume(&id.into()).expect("gone");
    place
        .pool
        .delete_volume(&id.into())
        .expect("absent is success");
    assert_eq!(place.pool.volume(&id.into()).expect("a look"), None);
}

#[test]
fn twenty_callers_who_make_one_volume_make_it_once() {
    let place = Place::new();
    let image = place.image(1, 1);
    let id = VolumeId::random();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                place
                    .pool
                    .create_overlay(&id.into(), image, MIB, &task())
                    .expect("the volume");
            });
        }
    });
    assert_eq!(place.pool.volumes_on(image).expect("a list"), vec![id]);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}
