//! Sources that are files: what may be read, and what is left behind.

use crate::storage::support::{Place, command, failure, request, run, task};
use kvmlet::model::image::ImageFormat;
use kvmlet::storage::{ImageSource, Pool, StorageErrorKind};
use std::os::unix::fs::symlink;

#[test]
fn a_file_is_read_only_below_an_allowed_folder_whatever_its_path_says() {
    let place = Place::new();
    let secret = place.folder.path().join("secret.raw");
    std::fs::write(&secret, vec![1; 4096]).expect("a file");
    std::fs::create_dir(place.incoming("sub")).expect("a folder");
    symlink(&secret, place.incoming("absolute")).expect("a link");
    symlink("../secret.raw", place.incoming("relative")).expect("a link");
    symlink(place.folder.path(), place.incoming("folder")).expect("a link");
    symlink("loop", place.incoming("loop")).expect("a link");
    symlink("/proc/self/fd", place.incoming("magic")).expect("a link");
    let beside = place.folder.path().join("incoming-not/x.raw");
    for path in [
        secret,
        place.incoming("../secret.raw"),
        place.incoming("sub/../../secret.raw"),
        place.incoming("absolute"),
        place.incoming("relative"),
        place.incoming("folder/secret.raw"),
        place.incoming("loop"),
        place.incoming("magic/0"),
        place.incoming(""),
        beside,
        "incoming/x.raw".into(),
        "/etc/shadow".into(),
    ] {
        let result = place.fetch_file(&path, ImageFormat::Raw);
        assert_eq!(
            failure(result),
            StorageErrorKind::SourceRefused,
            "{}",
            path.display()
        );
    }
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn links_and_dots_that_stay_below_the_folder_are_followed() {
    let place = Place::new();
    std::fs::create_dir(place.incoming("sub")).expect("a folder");
    std::fs::write(place.incoming("disk.raw"), vec![1; 4096]).expect("a file");
    symlink("../disk.raw", place.incoming("sub/latest")).expect("a link");
    for name in ["disk.raw", "sub/../disk.raw", "sub/latest"] {
        place
            .fetch_file(&place.incoming(name), ImageFormat::Raw)
            .expect(name);
    }
}

#[test]
fn only_regular_files_are_read() {
    let place = Place::new();
    std::fs::create_dir(place.incoming("folder")).expect("a folder");
    run("mkfifo", &[&place.incoming("fifo")]);
    let socket = std::os::unix::net::UnixListener::bind(place.incoming("socket"));
    symlink("/dev/null", place.incoming("device")).expect("a link");
    for name in ["folder", "fifo", "socket", "device"] {
        let result = place.fetch_file(&place.incoming(name), ImageFormat::Raw);
        assert_eq!(failure(result), StorageErrorKind::SourceRefused, "{name}");
    }
    drop(socket);
    let absent = place.fetch_file(&place.incoming("absent"), ImageFormat::Raw);
    assert_eq!(failure(absent), StorageErrorKind::NotFound);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn the_named_sha256_is_checked_in_either_case() {
    let place = Place::new();
    let path = place.incoming("disk.raw");
    std::fs::write(&path, vec![1; 4096]).expect("a file");
    let output = command("sha256sum")
        .arg(&path)
        .output()
        .expect("it runs")
        .stdout;
    let digest = String::from_utf8(output).expect("text")[..64].to_owned();
    let mut request = request(&path, ImageFormat::Raw);
    for good in [digest.clone(), digest.to_uppercase()] {
        request.sha256 = Some(good);
        let source = place.policy.fetch(&request, place.pool.scratch(), &task());
        assert_eq!(source.expect("the right bytes").sha256(), digest);
    }
    for bad in [
        "0".repeat(64),
        digest[1..].to_owned(),
        "no digest".to_owned(),
    ] {
        request.sha256 = Some(bad);
        let result = place.policy.fetch(&request, place.pool.scratch(), &task());
        assert_eq!(failure(result), StorageErrorKind::ChecksumMismatch);
    }
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn a_file_that_is_too_large_is_refused() {
    let mut place = Place::new();
    place.policy.max_source_size = kvmlet::model::bytes::Bytes(4096);
    let path = place.incoming("disk.raw");
    std::fs::write(&path, vec![1; 4097]).expect("a file");
    let result = place.fetch_file(&path, ImageFormat::Raw);
    assert_eq!(failure(result), StorageErrorKind::TooLarge);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn an_image_is_fetched_by_one_caller_at_a_time() {
    let place = Place::new();
    let path = place.incoming("disk.raw");
    std::fs::write(&path, vec![1; 4096]).expect("a file");
    let request = request(&path, ImageFormat::Raw);
    let first = place
        .policy
        .fetch(&request, place.pool.scratch(), &task())
        .expect("a source");
    let second = place.policy.fetch(&request, place.pool.scratch(), &task());
    assert_eq!(failure(second), StorageErrorKind::InUse);
    assert!(first.path().exists(), "the first one's copy is untouched");
}

#[test]
fn sources_are_paths_or_web_addresses_and_nothing_else() {
    assert_eq!(
        ImageSource::parse("file:///a/b").expect("a file"),
        ImageSource::File("/a/b".into())
    );
    assert!(matches!(
        ImageSource::parse("HTTPS://a.example/b"),
        Ok(ImageSource::Url(_))
    ));
    for text in [
        "",
        "a",
        "ftp://a/b",
        "file://host/a",
        "nbd://a",
        "json:{}",
        "/a\0b",
        "é",
    ] {
        let result = ImageSource::parse(text);
        assert_eq!(failure(result), StorageErrorKind::SourceRefused, "{text}");
    }
}
