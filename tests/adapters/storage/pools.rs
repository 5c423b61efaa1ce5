//! Pools: who holds one, what is free, what a crash leaves.

use crate::storage::support::{
    MIB, Place, compressed, failure, names, request, run, stop_conversion, task,
};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::{ImageId, VolumeId};
use kvmlet::model::image::ImageFormat;
use kvmlet::storage::{Pool, Qcow2Pool, Removal, SourcePolicy, StorageErrorKind};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[test]
fn a_pool_belongs_to_one_holder_at_a_time() {
    let place = Place::new();
    let other = Qcow2Pool::new("other", place.folder.path().join("pool"));
    let result = other.prepare().expect_err("it is held");
    assert_eq!(result.kind(), StorageErrorKind::InUse);
    let holder = format!("process {}", std::process::id());
    assert!(result.to_string().contains(&holder), "{result}");
    place.pool.prepare().expect("a repeat is free");

    // It changes nothing of what the holder makes, and promises no space there.
    let making = place.pool.scratch().join("image-being-made");
    File::create(&making).expect("a file");
    let volume = VolumeId::random();
    place
        .pool
        .create_empty(&volume.into(), Bytes::mib(1), &task())
        .expect("a volume");
    let denied = |error| assert_eq!(failure(error), StorageErrorKind::Denied);
    denied(other.sweep_temporary(&[]).map(drop));
    denied(other.usage(None).map(drop));
    denied(other.delete_volume(&volume.into()));
    let another = other.create_empty(&VolumeId::random().into(), Bytes::mib(1), &task());
    denied(another.map(drop));
    assert!(making.exists());
    assert!(place.pool.volume(&volume.into()).expect("a pool").is_some());

    let Place { folder, pool, .. } = place;
    drop(pool);
    other.prepare().expect("now it is free");
    drop(folder);
}

#[test]
fn nothing_is_gone_from_a_pool_that_was_moved_away() {
    let place = Place::new();
    let root = place.folder.path().join("pool");
    let volume = VolumeId::random();
    place
        .pool
        .create_empty(&volume.into(), Bytes::mib(1), &task())
        .expect("a volume");
    for other_folder in [false, true] {
        let away = place.folder.path().join("away");
        std::fs::rename(&root, &away).expect("it is moved");
        if other_folder {
            let other = Qcow2Pool::new("other", root.clone());
            other.prepare().expect("an empty pool");
        }
        let moved = |result| assert_eq!(failure(result), StorageErrorKind::Io);
        moved(place.pool.volume(&volume.into()).map(drop));
        moved(place.pool.image(ImageId::random()).map(drop));
        moved(place.pool.delete_volume(&volume.into()));
        moved(place.pool.usage(None).map(drop));
        if other_folder {
            std::fs::remove_dir_all(&root).expect("the other one");
        }
        std::fs::rename(&away, &root).expect("it is back");
        assert!(place.pool.volume(&volume.into()).expect("a pool").is_some());
    }
}

#[test]
fn qemu_may_enter_a_pool_but_not_list_it() {
    let place = Place::new();
    let root = place.folder.path().join("pool");
    for (folder, wanted) in [
        ("", 0o711),
        ("images", 0o755),
        ("volumes", 0o711),
        ("tmp", 0o700),
    ] {
        let mode = root
            .join(folder)
            .metadata()
            .expect("a folder")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, wanted, "{folder}");
    }
    let usage = place.pool.usage(None).expect("a measure");
    assert!(
        usage.free > Bytes::ZERO && usage.free <= usage.capacity,
        "{usage:?}"
    );
    assert_eq!(
        names(place.pool.scratch()),
        Vec::<String>::new(),
        "the probe is gone"
    );
}

#[test]
fn folders_above_a_new_pool_can_be_entered_by_qemu() {
    let folder = tempfile::tempdir().expect("a folder");
    let pool = Qcow2Pool::new("deep", folder.path().join("a/b/pool"));
    pool.prepare().expect("a pool");
    for above in ["a", "a/b", "a/b/pool"] {
        let mode = folder
            .path()
            .join(above)
            .metadata()
            .expect("a folder")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o711, "{above}");
    }
}

#[test]
fn the_sweep_keeps_only_the_downloads_that_go_on() {
    let place = Place::new();
    let (kept, given_up) = (ImageId::random(), ImageId::random());
    for id in [kept, given_up] {
        for ending in ["part", "part.json"] {
            std::fs::write(place.pool.scratch().join(format!("{id}.{ending}")), "x").expect("it");
        }
    }
    let mut removed = place.pool.sweep_temporary(&[kept]).expect("swept");
    removed.sort();
    assert_eq!(
        removed,
        [format!("{given_up}.part"), format!("{given_up}.part.json")]
    );
    assert_eq!(place.leftovers().len(), 2);
}

/// A file system in memory of a given size; needs root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u64) -> Self {
        std::fs::create_dir_all(at).expect("a folder");
        run(
            "mount",
            &[
                &"-t",
                &"tmpfs",
                &"-o",
                &format!("size={mib}m"),
                &"kvmlet-test",
                &at,
            ],
        );
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a failed test may still have files open.
        run("umount", &[&"-l", &self.0]);
    }
}

/// Takes all free space of a folder's file system, also from a process that
/// writes to it meanwhile.
fn fill(folder: &Path) {
    let file = File::create(folder.join("filler")).expect("a file");
    let mut taken = 0;
    for piece in [64 << 20, 8 << 20, 1 << 20, 64 << 10, 4 << 10] {
        while fallocate(&file, FallocateFlags::empty(), taken, piece).is_ok() {
            taken += piece;
        }
    }
}

struct SmallPlace {
    pool: Qcow2Pool,
    policy: SourcePolicy,
    disk: SmallDisk,
    folder: tempfile::TempDir,
}

fn small_place(mib: u64) -> SmallPlace {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(&folder.path().join("disk"), mib);
    let pool = Qcow2Pool::new("small", disk.0.join("pool"));
    pool.prepare().expect("a pool");
    let allowed_directories = vec![folder.path().to_owned()];
    let policy = SourcePolicy {
        allowed_directories,
        ..Default::default()
    };
    SmallPlace {
        pool,
        policy,
        disk,
        folder,
    }
}

#[test]
fn a_source_or_image_that_does_not_fit_is_refused_before_anything_is_written() {
    let place = small_place(64);
    let large = place.folder.path().join("large.raw");
    std::fs::write(&large, vec![1; 70 << 20]).expect("a disk");
    let scratch = place.pool.scratch();
    let result = place
        .policy
        .fetch(&request(&large, ImageFormat::Raw), scratch, &task());
    assert_eq!(failure(result), StorageErrorKind::Full);

    let small = place.folder.path().join("small.qcow2");
    compressed(&small, 70);
    let request = request(&small, ImageFormat::Qcow2);
    let source = place
        .policy
        .fetch(&request, scratch, &task())
        .expect("it is small");
    let id = ImageId::random();
    assert_eq!(
        failure(place.pool.put_image(id, &source, &task())),
        StorageErrorKind::Full
    );
    drop(source);
    assert_eq!(place.pool.image(id).expect("a look"), None);
    assert_eq!(names(scratch), Vec::<String>::new());
}

#[test]
fn a_pool_that_fills_up_during_a_conversion_keeps_nothing_of_it() {
    let place = small_place(256);
    let path = place.folder.path().join("disk.qcow2");
    compressed(&path, 128);
    let request = request(&path, ImageFormat::Qcow2);
    let scratch = place.pool.scratch();
    let source = place
        .policy
        .fetch(&request, scratch, &task())
        .expect("a source");
    let id = ImageId::random();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let conversion = stop_conversion(place.folder.path());
            fill(&place.disk.0);
            kill(conversion, Signal::SIGCONT).expect("it waits");
        });
        place.pool.put_image(id, &source, &task())
    });
    assert_eq!(failure(result), StorageErrorKind::Full);
    drop(source);
    assert_eq!(place.pool.image(id).expect("a look"), None);
    assert_eq!(names(scratch), Vec::<String>::new());
}

#[test]
fn a_volume_in_a_full_pool_is_refused_and_leaves_nothing() {
    let place = small_place(16);
    fill(&place.disk.0);
    let id = VolumeId::random();
    let result = place.pool.create_empty(&id.into(), MIB, &task());
    assert_eq!(failure(result), StorageErrorKind::Full);
    assert_eq!(place.pool.volume(&id.into()).expect("a look"), None);
    assert_eq!(names(place.pool.scratch()), Vec::<String>::new());
}

#[test]
fn an_entry_is_removed_only_as_it_was_listed_and_only_from_the_pools_own_folders() {
    let place = Place::new();
    let id = VolumeId::random();
    let make = || {
        place
            .pool
            .create_empty(&id.into(), MIB, &task())
            .expect("a volume")
    };
    let listed = || {
        let entries = place.pool.entries().expect("a list");
        entries.into_iter().next().expect("one entry")
    };
    make();
    let first = listed();
    assert_eq!(listed().generation, first.generation, "nothing has changed");
    let path = place.folder.path().join("pool").join(&first.name);
    std::fs::copy(&path, path.with_extension("new")).expect("a copy");
    std::fs::rename(path.with_extension("new"), &path).expect("another file");
    let remove = |name: &str, generation| place.pool.remove_entry(name, generation);
    assert_eq!(
        remove(&first.name, first.generation).expect("a look"),
        Removal::Changed
    );
    assert!(path.exists());
    let second = listed();
    assert_eq!(
        remove(&second.name, second.generation).expect("gone"),
        Removal::Removed
    );
    assert_eq!(
        remove(&second.name, second.generation).expect("a look"),
        Removal::Absent
    );
    for name in [
        "",
        ".kvmlet.lock",
        "volumes",
        "volumes/",
        "volumes/..",
        "volumes/../../x",
        "other/x.qcow2",
        "/etc/passwd",
    ] {
        assert_eq!(failure(remove(name, 1)), StorageErrorKind::Denied, "{name}");
    }
}

#[test]
fn what_stands_on_an_entry_is_found_through_links_and_chains_that_go_round() {
    let place = Place::new();
    let image = place.image(1, 1);
    let volume = VolumeId::random();
    place
        .pool
        .create_overlay(&volume.into(), image, MIB, &task())
        .expect("an overlay");
    let name = format!("images/{image}.qcow2");
    let text = |path: &Path| path.display().to_string();
    let overlay = place
        .folder
        .path()
        .join(format!("pool/volumes/{volume}.qcow2"));
    let outside = place.folder.path().join("outside.qcow2");
    std::os::unix::fs::symlink(&overlay, &outside).expect("a link");
    let what = place
        .pool
        .entry_source(&name)
        .expect("a name of the pool's");
    let what = what.expect("a file");
    let on = |disks: &[String]| place.pool.stands_on(&what, disks).expect("a look");
    assert_eq!(on(&[]), None);
    assert_eq!(on(&[text(&overlay)]), Some(text(&overlay)));
    assert_eq!(on(&[text(&outside)]), Some(text(&outside)));
    // Backing files that name one another, and disks that are not there.
    let round = place.folder.path().join("round.qcow2");
    let back = place.folder.path().join("back.qcow2");
    for (file, below) in [(&round, &back), (&back, &round)] {
        let below = text(below);
        run(
            "qemu-img",
            &[
                &"create", &"-q", &"-u", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &below, file,
                &"1M",
            ],
        );
    }
    assert_eq!(on(&[text(&round), "/no/such/disk".to_owned()]), None);
}
