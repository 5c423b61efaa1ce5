//! What every kind of pool does alike: one list of cases, run against each backend
//! by the test target that has one.
//!
//! A case gets a pool that may hold things of other cases, and looks at what it made
//! from outside, with the backend's own tools.

use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::{ImageId, VolumeId};
use kvmlet::model::image::ImageFormat;
use kvmlet::model::volume::{DiskSource, VolumeKind, VolumeRef};
use kvmlet::storage::{
    Backing, CheckedSource, EntryKind, ImageSource, Pool, Qcow2Pool, SourcePolicy, SourceRequest,
    StorageError, StorageErrorKind, Task,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const MIB: Bytes = Bytes::mib(1);

/// A pool, and a way around it.
pub(crate) trait Backend: Sync {
    /// The pool.
    fn pool(&self) -> &dyn Pool;
    /// A folder of this host for the case's own files.
    fn folder(&self) -> PathBuf;
    /// All that a guest would read from a disk.
    fn read(&self, source: &DiskSource) -> Vec<u8>;
    /// Writes what a guest would write, at an offset.
    fn write(&self, source: &DiskSource, offset: usize, bytes: &[u8]);
    /// Has a disk open as a guest would, until it is dropped.
    fn open(&self, source: &DiskSource) -> Box<dyn std::any::Any>;
}

/// What a pool must do, and its name.
pub(crate) type Case = (&'static str, fn(&dyn Backend));

/// The cases.
pub(crate) const CASES: [Case; 11] = [
    ("an_image_is_made_once_and_read_by_its_volumes", images),
    (
        "a_volume_is_as_large_as_asked_for_and_zero_beyond_its_image",
        sizes,
    ),
    (
        "making_a_volume_again_is_free_and_another_is_refused",
        repeats,
    ),
    ("sizes_and_images_that_can_not_be_are_refused", refusals),
    ("volumes_of_one_image_do_not_see_each_other", apart),
    (
        "what_is_gone_is_gone_and_removing_it_again_is_free",
        removal,
    ),
    (
        "an_image_with_volumes_is_not_removed_and_they_are_named",
        image_in_use,
    ),
    ("a_disk_that_someone_has_open_is_not_removed", open_disk),
    ("many_that_make_one_volume_make_one", race),
    ("work_that_is_cancelled_leaves_nothing", cancelled),
    ("an_image_of_another_pool_comes_with_all_its_bytes", copies),
];

fn task() -> Task {
    Task::within(Duration::from_secs(120))
}

fn kind<T: std::fmt::Debug>(result: Result<T, StorageError>) -> StorageErrorKind {
    result.expect_err("this must fail").kind()
}

/// A new volume's reference, where the pool puts root volumes.
fn volume(pool: &dyn Pool) -> VolumeRef {
    VolumeRef {
        id: VolumeId::random(),
        ceph_pool: pool.place(VolumeKind::Root, None).expect("a place"),
    }
}

/// A source of so many bytes: a pattern, and none twice alike.
fn source(backend: &dyn Backend, bytes: &[u8]) -> CheckedSource {
    let folder = backend.folder();
    let path = folder.join(format!("{}.raw", ImageId::random()));
    std::fs::write(&path, bytes).expect("a raw disk");
    let policy = SourcePolicy {
        allowed_directories: vec![folder],
        ..Default::default()
    };
    let request = SourceRequest {
        id: ImageId::random(),
        source: ImageSource::File(path),
        format: ImageFormat::Raw,
        sha256: None,
    };
    policy
        .fetch(&request, backend.pool().scratch(), &task())
        .expect("a good source")
}

fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| seed.wrapping_add(u8::try_from(at / 4096 % 251).expect("small")))
        .collect()
}

/// An image of so many bytes, and these.
fn image(backend: &dyn Backend, seed: u8, bytes: usize) -> (ImageId, Vec<u8>) {
    let content = pattern(seed, bytes);
    let id = ImageId::random();
    let made = backend
        .pool()
        .put_image(id, &source(backend, &content), &task())
        .expect("an image");
    assert_eq!(made.virtual_size, Bytes(bytes as u64));
    (id, content)
}

fn images(backend: &dyn Backend) {
    let pool = backend.pool();
    let absent = ImageId::random();
    assert_eq!(pool.image(absent).expect("looked"), None);
    pool.delete_image(absent).expect("absent is a success");
    let (id, content) = image(backend, 3, 3 << 20);
    let again = source(backend, &pattern(99, 1 << 20));
    let found = pool.put_image(id, &again, &task()).expect("it is there");
    assert_eq!(found.virtual_size, Bytes::mib(3), "it is left as it is");
    drop(again);
    assert_eq!(Some(found), pool.image(id).expect("looked"));
    assert_eq!(backend.read(&pool.image_source(id)), content);
    let listed = pool.entries().expect("listed");
    assert!(
        listed
            .iter()
            .any(|entry| entry.kind == EntryKind::Image(id))
    );
    assert!(
        listed
            .iter()
            .all(|entry| entry.kind != EntryKind::Temporary)
    );
}

fn sizes(backend: &dyn Backend) {
    let pool = backend.pool();
    let (id, content) = image(backend, 5, 1 << 20);
    for (asked, seen) in [(MIB, MIB), (Bytes(5_000_000), Bytes(5_000_192))] {
        let place = volume(pool);
        let made = pool
            .create_overlay(&place, id, asked, &task())
            .expect("a volume");
        assert_eq!(
            (made.virtual_size, &made.backing),
            (seen, &Backing::Image(id))
        );
        assert_eq!(pool.volume(&place).expect("looked"), Some(made));
        let takes = pool.actual_size(&place).expect("measured").expect("there");
        assert!(takes <= MIB, "a new one costs next to nothing: {takes}");
        let read = backend.read(&pool.volume_source(&place));
        assert_eq!(read.len() as u64, seen.get());
        assert!(read[..content.len()] == content, "the image's bytes");
        assert!(read[content.len()..].iter().all(|&byte| byte == 0));
    }
    let empty = volume(pool);
    let made = pool.create_empty(&empty, Bytes::mib(2), &task());
    assert_eq!(made.expect("a volume").backing, Backing::Nothing);
    let read = backend.read(&pool.volume_source(&empty));
    assert!(read.len() == 2 << 20 && read.iter().all(|&byte| byte == 0));
    let usage = pool.usage(empty.ceph_pool.as_deref()).expect("measured");
    assert!(Bytes::ZERO < usage.free && usage.free <= usage.capacity);
}

fn repeats(backend: &dyn Backend) {
    let pool = backend.pool();
    let (one, _) = image(backend, 7, 1 << 20);
    let (other, _) = image(backend, 8, 1 << 20);
    let place = volume(pool);
    let size = Bytes::mib(4);
    let first = pool
        .create_overlay(&place, one, size, &task())
        .expect("made");
    let source = pool.volume_source(&place);
    backend.write(&source, 1 << 20, b"written");
    let again = pool.create_overlay(&place, one, size, &task());
    assert_eq!(again.expect("it is there"), first);
    for differs in [
        pool.create_overlay(&place, one, Bytes::mib(5), &task()),
        pool.create_overlay(&place, other, size, &task()),
        pool.create_empty(&place, size, &task()),
    ] {
        assert_eq!(kind(differs), StorageErrorKind::Exists);
    }
    assert_eq!(pool.volume(&place).expect("looked"), Some(first));
    assert_eq!(&backend.read(&source)[1 << 20..][..7], b"written");
}

fn refusals(backend: &dyn Backend) {
    let pool = backend.pool();
    let (id, _) = image(backend, 9, 2 << 20);
    let place = volume(pool);
    for (bad, expected) in [
        (
            pool.create_overlay(&place, id, MIB, &task()),
            StorageErrorKind::BadSize,
        ),
        (
            pool.create_empty(&place, Bytes::ZERO, &task()),
            StorageErrorKind::BadSize,
        ),
        (
            pool.create_empty(&place, Bytes(u64::MAX), &task()),
            StorageErrorKind::BadSize,
        ),
        (
            pool.create_overlay(&place, ImageId::random(), MIB, &task()),
            StorageErrorKind::NotFound,
        ),
    ] {
        assert_eq!(kind(bad), expected);
    }
    assert_eq!(pool.volume(&place).expect("looked"), None);
}

fn apart(backend: &dyn Backend) {
    let pool = backend.pool();
    let (id, content) = image(backend, 11, 1 << 20);
    let (one, other) = (volume(pool), volume(pool));
    for place in [&one, &other] {
        pool.create_overlay(place, id, MIB, &task()).expect("made");
    }
    backend.write(&pool.volume_source(&one), 4096, b"only here");
    let read = backend.read(&pool.volume_source(&one));
    assert_eq!(&read[4096..][..9], b"only here");
    assert!(backend.read(&pool.volume_source(&other)) == content);
    assert!(backend.read(&pool.image_source(id)) == content);
}

fn removal(backend: &dyn Backend) {
    let pool = backend.pool();
    let (id, _) = image(backend, 13, 1 << 20);
    let place = volume(pool);
    pool.delete_volume(&place).expect("absent is a success");
    pool.create_overlay(&place, id, MIB, &task()).expect("made");
    assert_eq!(pool.volumes_on(id).expect("listed"), [place.id]);
    pool.delete_volume(&place).expect("removed");
    pool.delete_volume(&place).expect("again is a success");
    assert_eq!(pool.volume(&place).expect("looked"), None);
    assert_eq!(pool.actual_size(&place).expect("looked"), None);
    assert_eq!(pool.holders(&place).expect("looked"), [""; 0]);
    assert_eq!(pool.volumes_on(id).expect("listed"), []);
    // Its id is free again.
    pool.create_empty(&place, MIB, &task()).expect("made");
    pool.delete_volume(&place).expect("removed");
    assert_eq!(pool.sweep_temporary(&[]).expect("swept"), [""; 0]);
    pool.empty_trash().expect("emptied");
}

fn image_in_use(backend: &dyn Backend) {
    let pool = backend.pool();
    let (id, content) = image(backend, 15, 1 << 20);
    let place = volume(pool);
    pool.create_overlay(&place, id, MIB, &task()).expect("made");
    let refused = pool.delete_image(id).expect_err("it is in use");
    assert_eq!(refused.kind(), StorageErrorKind::InUse);
    let users = refused.users().join(" ");
    assert!(users.contains(&place.id.to_string()), "{users}");
    assert!(backend.read(&pool.volume_source(&place)) == content);
    pool.delete_volume(&place).expect("removed");
    pool.delete_image(id).expect("nothing uses it any more");
    assert_eq!(pool.image(id).expect("looked"), None);
    let gone = pool.create_overlay(&place, id, MIB, &task());
    assert_eq!(kind(gone), StorageErrorKind::NotFound);
}

fn open_disk(backend: &dyn Backend) {
    let pool = backend.pool();
    let (id, _) = image(backend, 17, 1 << 20);
    let place = volume(pool);
    pool.create_overlay(&place, id, MIB, &task()).expect("made");
    assert_eq!(pool.holders(&place).expect("looked"), [""; 0]);
    let open = backend.open(&pool.volume_source(&place));
    let holders = pool.holders(&place).expect("looked");
    assert_eq!(holders.len(), 1, "{holders:?}");
    let refused = pool.delete_volume(&place).expect_err("it is open");
    assert_eq!(refused.kind(), StorageErrorKind::InUse);
    assert_eq!(refused.users(), holders);
    assert!(pool.volume(&place).expect("looked").is_some());
    drop(open);
    assert_eq!(pool.holders(&place).expect("looked"), [""; 0]);
    pool.delete_volume(&place).expect("removed");
}

fn race(backend: &dyn Backend) {
    let pool = backend.pool();
    let (id, content) = image(backend, 19, 1 << 20);
    let place = volume(pool);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| pool.create_overlay(&place, id, Bytes::mib(3), &task())))
            .collect();
        for one in all {
            let made = one.join().expect("no panic").expect("the same volume");
            assert_eq!(made.virtual_size, Bytes::mib(3));
        }
    });
    let read = backend.read(&pool.volume_source(&place));
    assert!(read[..1 << 20] == content && read.len() == 3 << 20);
    assert_eq!(pool.volumes_on(id).expect("listed"), [place.id]);
}

fn cancelled(backend: &dyn Backend) {
    let pool = backend.pool();
    let (id, _) = image(backend, 21, 1 << 20);
    let cancelled = Task::new(Arc::new(AtomicBool::new(true)), None, |_, _| ());
    let place = volume(pool);
    let made = pool.create_overlay(&place, id, MIB, &cancelled);
    assert_eq!(kind(made), StorageErrorKind::Cancelled);
    assert_eq!(pool.volume(&place).expect("looked"), None);
    let another = ImageId::random();
    let made = pool.put_image(another, &source(backend, &pattern(1, 1 << 20)), &cancelled);
    assert_eq!(kind(made), StorageErrorKind::Cancelled);
    assert_eq!(pool.image(another).expect("looked"), None);
    let listed = pool.entries().expect("listed");
    assert!(
        listed
            .iter()
            .all(|entry| entry.kind != EntryKind::Temporary)
    );
}

fn copies(backend: &dyn Backend) {
    let pool = backend.pool();
    let home = backend
        .folder()
        .join(format!("other-{}", ImageId::random()));
    let other = Qcow2Pool::new("other", home);
    other.prepare().expect("a pool");
    let content = pattern(23, 2 << 20);
    let id = ImageId::random();
    other
        .put_image(id, &source(backend, &content), &task())
        .expect("an image");
    let from = other.image_source(id);
    let made = pool.copy_image_from(id, &from, &task()).expect("a copy");
    assert_eq!(made.virtual_size, Bytes::mib(2));
    let again = pool.copy_image_from(id, &from, &task());
    assert_eq!(again.expect("it is there"), made);
    assert!(backend.read(&pool.image_source(id)) == content);
    // And back again, into a pool of files.
    let home = backend
        .folder()
        .join(format!("third-{}", ImageId::random()));
    let third = Qcow2Pool::new("third", home);
    third.prepare().expect("a pool");
    let back = third.copy_image_from(id, &pool.image_source(id), &task());
    assert_eq!(back.expect("a copy").virtual_size, Bytes::mib(2));
    let place = VolumeRef::from(VolumeId::random());
    third
        .create_overlay(&place, id, Bytes::mib(2), &task())
        .expect("a volume");
}
