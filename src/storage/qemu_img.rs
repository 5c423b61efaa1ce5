//! The calls of `qemu-img` that kvmlet makes.
//!
//! Formats are always named, never guessed; only files of our own pools are
//! passed, never a path or a name that a caller chose.

use super::command::{Limits, run};
use super::error::{BadImageKind, StorageError, StorageErrorKind};
use super::task::Task;
use crate::model::bytes::Bytes;
use crate::model::image::ImageFormat;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

/// What every file of ours is made with: the version that all supported QEMUs
/// know, and nothing that needs repair after a crash or is allocated ahead.
const OPTIONS: &str = "compat=1.1,cluster_size=65536,lazy_refcounts=off,preallocation=off";

/// More than any conversion was seen to use, with room for threads' stacks.
const MEMORY: Bytes = Bytes::gib(4);

/// What it prints of its version; no file is looked at. Blocks.
///
/// # Errors
/// It is not installed, or can't be run.
pub fn qemu_img_version(task: &Task) -> Result<String, StorageError> {
    let printed = run("qemu-img", &words(&["--version"]), None, task, |_| ())?
        .success("qemu-img --version")?;
    Ok(String::from_utf8_lossy(&printed).into_owned())
}

/// Makes an empty qcow2 file at `path`, over whatever file is there.
///
/// `backing` is stored as it is given and not opened; it is taken as relative
/// to the file's folder.
pub(crate) fn create(
    path: &Path,
    size: Bytes,
    backing: Option<&str>,
    task: &Task,
) -> Result<(), StorageError> {
    run(
        "qemu-img",
        &creating(path, size, backing),
        None,
        task,
        |_| (),
    )?
    .success("qemu-img create")
    .map(drop)
}

fn creating(path: &Path, size: Bytes, backing: Option<&str>) -> Vec<OsString> {
    let mut arguments = words(&["create", "-q", "-f", "qcow2", "-o", OPTIONS]);
    if let Some(backing) = backing {
        arguments.extend(words(&["-u", "-F", "qcow2", "-b", backing]));
    }
    arguments.push(path.into());
    arguments.push(size.get().to_string().into());
    arguments
}

/// Converts a checked image into a qcow2 file of our own, under limits.
///
/// `data_size` is what the guest's data can take at most; the limits follow
/// from it. Progress counts bytes of `virtual_size`.
pub(crate) fn convert(
    from: &OsStr,
    format: ImageFormat,
    to: &Path,
    virtual_size: Bytes,
    data_size: Bytes,
    task: &Task,
) -> Result<(), StorageError> {
    let limits = limits(virtual_size, data_size);
    run_convert(&converting(from, format, to), limits, virtual_size, task)
}

fn converting(from: &OsStr, format: ImageFormat, to: &Path) -> Vec<OsString> {
    let mut arguments = words(&["convert", "-p", "-f", format.as_str(), "-O", "qcow2"]);
    arguments.extend(words(&["-o", OPTIONS]));
    arguments.push(from.into());
    arguments.push(to.into());
    arguments
}

/// What reading an image from outside may use.
fn limits(virtual_size: Bytes, data_size: Bytes) -> Limits {
    Limits {
        memory: MEMORY,
        // Unpacking runs at well over 10 MiB in a second of CPU time.
        cpu: Duration::from_secs(
            120 + virtual_size.get() / (1 << 30) + data_size.get() / (10 << 20),
        ),
        file: file_bound(virtual_size, data_size),
    }
}

fn run_convert(
    arguments: &[OsString],
    limits: Limits,
    virtual_size: Bytes,
    task: &Task,
) -> Result<(), StorageError> {
    let mut percent = Percent::default();
    let total = virtual_size.get();
    let finished = run("qemu-img", arguments, Some(limits), task, |bytes| {
        if let Some(basis_points) = percent.read(bytes) {
            let done = u128::from(total) * u128::from(basis_points.min(10_000)) / 10_000;
            task.report(u64::try_from(done).unwrap_or(total), total);
        }
    })?;
    finished.success("qemu-img convert").map(drop)
}

/// Copies a checked image into an RBD image that is there and empty, under limits;
/// see [`convert`]. `to` names it as QEMU does.
pub(crate) fn fill(
    from: &OsStr,
    format: ImageFormat,
    to: &OsStr,
    virtual_size: Bytes,
    data_size: Bytes,
    task: &Task,
) -> Result<(), StorageError> {
    let limits = limits(virtual_size, data_size);
    run_convert(&filling(from, format, to), limits, virtual_size, task)
}

fn filling(from: &OsStr, format: ImageFormat, to: &OsStr) -> Vec<OsString> {
    let mut arguments = words(&["convert", "-p", "-n", "--target-is-zero"]);
    arguments.extend(words(&["-f", format.as_str(), "-O", "raw"]));
    arguments.push(from.into());
    arguments.push(to.into());
    arguments
}

/// Checks the tables of a file of ours; leaks and errors both fail.
pub(crate) fn check(path: &Path, task: &Task) -> Result<(), StorageError> {
    let finished = run("qemu-img", &checking(path), None, task, |_| ())?;
    let report: serde_json::Value = match serde_json::from_slice(&finished.stdout) {
        Ok(report) => report,
        // It prints no report when it can't open the file.
        Err(_) => return finished.success("qemu-img check").map(drop),
    };
    let count = |key| {
        report
            .get(key)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0)
    };
    let (corruptions, errors) = (count("corruptions"), count("check-errors"));
    if corruptions > 0 || errors > 0 {
        return Err(StorageError::new(
            StorageErrorKind::BadImage(BadImageKind::Corrupt),
            format!("qemu-img check: {corruptions} corruptions, {errors} errors"),
        ));
    }
    finished.success("qemu-img check").map(drop)
}

fn checking(path: &Path) -> Vec<OsString> {
    let mut arguments = words(&["check", "-q", "-f", "qcow2", "--output=json"]);
    arguments.push(path.into());
    arguments
}

/// The most that a converted file can take: the data, its tables (an entry of 8
/// bytes and a count of 2 for each cluster of 64 KiB, a table for each 512 MiB),
/// and room for the tables' own clusters.
pub(crate) fn file_bound(virtual_size: Bytes, data_size: Bytes) -> Bytes {
    data_size
        .saturating_add(Bytes(data_size.get() / 64))
        .saturating_add(Bytes(virtual_size.get() / 4096))
        .saturating_add(Bytes::mib(16))
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Reads the progress that `qemu-img -p` prints: `    (12.34/100%)` and a
/// carriage return, in pieces of any length.
#[derive(Default)]
struct Percent {
    tail: Vec<u8>,
}

impl Percent {
    /// Returns the newest progress in hundredths of a percent, if the bytes
    /// complete one.
    fn read(&mut self, bytes: &[u8]) -> Option<u64> {
        self.tail.extend_from_slice(bytes);
        let mut newest = None;
        while let Some(end) = self.tail.iter().position(|&byte| byte == b')') {
            let text: Vec<u8> = self.tail.drain(..=end).collect();
            newest = parse(&text).or(newest);
        }
        // A progress is short; anything longer isn't one.
        if self.tail.len() > 64 {
            self.tail.clear();
        }
        newest
    }
}

fn parse(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let number = text.rsplit('(').next()?.strip_suffix("/100%)")?;
    let (whole, hundredths) = number.split_once('.')?;
    let hundredths: u64 = hundredths.get(..2)?.parse().ok()?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(hundredths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What follows an option.
    fn after(arguments: &[OsString], option: &str) -> String {
        let at = arguments.iter().position(|argument| argument == option);
        let at = at.unwrap_or_else(|| panic!("no {option} in {arguments:?}"));
        arguments[at + 1].to_str().expect("text").to_owned()
    }

    #[test]
    fn every_command_line_names_every_format() {
        // Names that another reader would take for options or protocols.
        let (from, to) = (OsStr::new("/p/json:{}"), Path::new("/p/nbd:x"));
        for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
            let line = converting(from, format, to);
            assert_eq!(after(&line, "-f"), format.as_str());
            assert_eq!(after(&line, "-O"), "qcow2");
            let line = filling(from, format, OsStr::new("rbd:p/i"));
            assert_eq!(after(&line, "-f"), format.as_str());
            assert_eq!(after(&line, "-O"), "raw");
        }
        assert_eq!(after(&checking(to), "-f"), "qcow2");
        let line = creating(to, Bytes(512), None);
        assert_eq!(after(&line, "-f"), "qcow2");
        assert!(!line.contains(&OsString::from("-b")));
        let line = creating(to, Bytes(512), Some("base"));
        assert_eq!(after(&line, "-f"), "qcow2");
        assert_eq!(after(&line, "-F"), "qcow2");
        assert_eq!(after(&line, "-b"), "base");
    }

    #[test]
    fn no_command_line_is_made_elsewhere() {
        fn walk(folder: &Path, met: &mut Vec<(String, usize)>) {
            for entry in fs::read_dir(folder).expect("the sources") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    walk(&path, met);
                    continue;
                }
                let text = fs::read_to_string(&path).expect("a source");
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                let tools = ["\"qemu-img\"", "\"qemu-io\"", "\"qemu-nbd\""];
                let uses = tools.map(|tool| code.matches(tool).count()).iter().sum();
                if uses > 0 {
                    let name = path.file_name().unwrap_or_default();
                    met.push((name.to_string_lossy().into_owned(), uses));
                }
            }
        }
        let mut met = Vec::new();
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut met);
        // Its version, making, checking, and the two that convert.
        assert_eq!(met, [("qemu_img.rs".to_owned(), 4)]);
    }

    #[test]
    fn progress_is_read_from_pieces_of_any_length() {
        let mut percent = Percent::default();
        assert_eq!(percent.read(b"    (0.00/100%)\r    (1"), Some(0));
        assert_eq!(percent.read(b"2.34/10"), None);
        assert_eq!(percent.read(b"0%)\r    (100.00/100%)\r"), Some(10_000));
        assert_eq!(percent.read(b"(x.yy/100%)"), None);
    }
}
