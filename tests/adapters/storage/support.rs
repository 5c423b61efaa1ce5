//! A pool in a folder of its own, and the tools to look at it from outside.

use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::ImageId;
use kvmlet::model::image::ImageFormat;
use kvmlet::model::volume::DiskSource;
use kvmlet::storage::{
    CheckedSource, ImageSource, Pool, Qcow2Pool, SourcePolicy, SourceRequest, StorageError,
    StorageErrorKind, Task,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A prepared pool, and a folder from which files may be imported.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) pool: Qcow2Pool,
    pub(crate) policy: SourcePolicy,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let incoming = folder.path().join("incoming");
        std::fs::create_dir(&incoming).expect("the folder of sources");
        let pool = Qcow2Pool::new("main", folder.path().join("pool"));
        pool.prepare().expect("a pool");
        let policy = SourcePolicy {
            allowed_directories: vec![incoming],
            ..Default::default()
        };
        Self {
            folder,
            pool,
            policy,
        }
    }

    pub(crate) fn incoming(&self, name: &str) -> PathBuf {
        self.folder.path().join("incoming").join(name)
    }

    pub(crate) fn fetch_file(
        &self,
        path: &Path,
        format: ImageFormat,
    ) -> Result<CheckedSource, StorageError> {
        self.policy
            .fetch(&request(path, format), self.pool.scratch(), &task())
    }

    /// Imports an image of this many MiB whose bytes are all `pattern`.
    pub(crate) fn image(&self, mib: u64, pattern: u8) -> ImageId {
        let path = self.incoming("made.raw");
        std::fs::write(
            &path,
            vec![pattern; usize::try_from(mib << 20).expect("small")],
        )
        .expect("a raw disk");
        let source = self
            .fetch_file(&path, ImageFormat::Raw)
            .expect("a good source");
        let id = ImageId::random();
        self.pool.put_image(id, &source, &task()).expect("an image");
        id
    }

    /// Names what lies in the pool's folder of unfinished things.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        names(self.pool.scratch())
    }
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

pub(crate) fn request(path: &Path, format: ImageFormat) -> SourceRequest {
    let source = ImageSource::File(path.to_owned());
    SourceRequest {
        id: ImageId::random(),
        source,
        format,
        sha256: None,
    }
}

pub(crate) fn task() -> Task {
    Task::within(Duration::from_secs(120))
}

pub(crate) fn path_of(source: DiskSource) -> PathBuf {
    match source {
        DiskSource::File(path) => path,
        DiskSource::Rbd(image) => panic!("{} is no file", image.image),
    }
}

/// The kind of the failure that a call must end with.
pub(crate) fn failure<T>(result: Result<T, StorageError>) -> StorageErrorKind {
    match result {
        Ok(_) => panic!("this must fail"),
        Err(error) => error.kind(),
    }
}

/// Starts a tool of the test's own, not through the code under test.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    #[allow(
        clippy::disallowed_methods,
        reason = "a test looks at files by other means"
    )]
    Command::new(program)
}

pub(crate) fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let mut command = command(program);
    for argument in arguments {
        command.arg(argument.as_ref());
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("the tool starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// What QEMU itself says of a file.
pub(crate) fn facts(path: &Path) -> serde_json::Value {
    let text = run(
        "qemu-img",
        &[&"info", &"--output=json", &"-f", &"qcow2", &"-U", &path],
    );
    serde_json::from_str(&text).expect("JSON")
}

/// Makes a compressed qcow2 file: small to read, long to convert.
pub(crate) fn compressed(path: &Path, mib: u64) {
    let raw = path.with_extension("raw");
    std::fs::write(&raw, vec![7; usize::try_from(mib << 20).expect("small")]).expect("a raw disk");
    let options = "compression_type=zstd";
    run(
        "qemu-img",
        &[
            &"convert", &"-c", &"-f", &"raw", &"-O", &"qcow2", &"-o", &options, &raw, &path,
        ],
    );
    std::fs::remove_file(raw).expect("the raw disk");
}

/// Waits until a condition gives something; the limit is for a broken test.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Finds the conversion that works in this folder, and stops it, so that it can't
/// end by itself.
pub(crate) fn stop_conversion(folder: &Path) -> Pid {
    let pid = until("a conversion", || conversion(folder));
    kill(pid, Signal::SIGSTOP).expect("it runs");
    pid
}

fn conversion(folder: &Path) -> Option<Pid> {
    let folder = folder.to_str().expect("text");
    std::fs::read_dir("/proc").expect("proc").find_map(|entry| {
        let entry = entry.ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (line.starts_with("qemu-img convert ") && line.contains(folder)).then(|| Pid::from_raw(pid))
    })
}

pub(crate) const MIB: Bytes = Bytes::mib(1);
