//! Images that must not get in, by what they are or where they are.

use super::*;
use crate::support::images::{blank, qemu_img};
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

async fn import(api: &Api, source: &str, format: ImageFormat, sha256: &str) -> Refusal {
    let request = ImportImageRequest {
        source: source.to_owned(),
        format: format as i32,
        sha256: sha256.to_owned(),
        ..Default::default()
    };
    let answer = api.images().import_image(request).await;
    api.outcome(answer).await.expect_err(source)
}

/// Makes a blank qcow2 image with other bytes at `at`.
fn patched(path: &Path, at: u64, bytes: &[u8]) {
    blank(path, 1);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_image_is_refused_by_its_problem_and_leaves_nothing_behind() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let good = daemon.blank("good.qcow2", 1);
    let good = good.to_str().unwrap();
    let at = |name: &str| daemon.import_path(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    fs::write(at("raw"), vec![7; 1 << 20]).unwrap();
    let backed = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", good];
    qemu_img(&[&backed[..], &[&text("backing")]].concat());
    let option = format!("data_file={}", text("data"));
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &option,
        &text("outside"),
        "1M",
    ]);
    // Byte 72: the features that must be known; bit 40 is no one's.
    patched(&at("feature"), 72, &(1u64 << 40).to_be_bytes());
    // Byte 24: the size that the guest sees.
    patched(&at("exbibyte"), 24, &(1u64 << 60).to_be_bytes());
    blank(&at("truncated"), 1);
    let file = fs::File::options().write(true).open(at("truncated"));
    file.unwrap().set_len(70_000).unwrap();
    let before = Everything::of(&daemon).await;
    let cases: [(&str, ImageFormat, &[&str]); 8] = [
        ("backing", ImageFormat::Qcow2, &["backing_file"]),
        ("outside", ImageFormat::Qcow2, &["data_file"]),
        ("feature", ImageFormat::Qcow2, &["unknown_feature"]),
        (
            "exbibyte",
            ImageFormat::Qcow2,
            &["virtual_size", "header", "tables"],
        ),
        ("truncated", ImageFormat::Qcow2, &["truncated", "tables"]),
        ("raw", ImageFormat::Qcow2, &["not_qcow2"]),
        ("good.qcow2", ImageFormat::Raw, &["not_raw"]),
        ("backing", ImageFormat::Raw, &["not_raw"]),
    ];
    for (name, format, problems) in cases {
        let refusal = import(&api, &text(name), format, "").await;
        assert_eq!(
            refusal.brief(),
            (Code::InvalidArgument, "IMAGE_REFUSED", vec!["source"]),
            "{name}: {refusal:?}"
        );
        let problem = refusal.metadata["problem"].as_str();
        assert!(problems.contains(&problem), "{name}: {refusal:?}");
    }
    let refusal = import(&api, good, ImageFormat::Qcow2, &"0".repeat(64)).await;
    assert_eq!(
        refusal.brief(),
        (Code::InvalidArgument, "CHECKSUM_MISMATCH", vec!["sha256"])
    );
    let refusal = import(&api, good, ImageFormat::Qcow2, "abc").await;
    assert_eq!(
        refusal.brief(),
        (Code::InvalidArgument, "FIELD_INVALID", vec!["sha256"])
    );
    let after = Everything::of(&daemon).await;
    assert_eq!(after.files, before.files);
    assert_eq!(after.images, before.images);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_outside_what_is_allowed_is_refused_however_it_is_spelled() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let secret = daemon.home().join("secret.qcow2");
    blank(&secret, 1);
    symlink(&secret, daemon.import_path("link")).unwrap();
    symlink(daemon.home(), daemon.import_path("up")).unwrap();
    fs::create_dir(daemon.import_path("folder")).unwrap();
    let before = Everything::of(&daemon).await;
    let import_dir = daemon.home().join("import");
    let inside = |name: &str| format!("{}/{name}", import_dir.display());
    for source in [
        secret.display().to_string(),
        format!("file://{}", secret.display()),
        "/etc/passwd".to_owned(),
        inside("../secret.qcow2"),
        inside("./../secret.qcow2"),
        inside("link"),
        inside("up/secret.qcow2"),
        inside("folder"),
        "relative.qcow2".to_owned(),
        "http://127.0.0.1/image".to_owned(),
        "nbd://127.0.0.1/image".to_owned(),
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}".to_owned(),
    ] {
        let refusal = import(&api, &source, ImageFormat::Qcow2, "").await;
        assert_eq!(refusal.code, Code::InvalidArgument, "{source}: {refusal:?}");
        assert_eq!(refusal.fields, ["source"], "{source}: {refusal:?}");
        assert!(
            ["SOURCE_NOT_ALLOWED", "FIELD_INVALID"].contains(&refusal.reason.as_str()),
            "{source}: {refusal:?}"
        );
    }
    let missing = import(&api, &inside("missing"), ImageFormat::Qcow2, "").await;
    assert_eq!(
        missing.brief(),
        (Code::InvalidArgument, "SOURCE_UNREADABLE", vec!["source"])
    );
    let after = Everything::of(&daemon).await;
    assert_eq!(after.files, before.files);
    assert_eq!(after.images, before.images);
}
