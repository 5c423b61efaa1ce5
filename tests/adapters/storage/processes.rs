//! Child processes: that they end when they should.

use crate::storage::support::{
    Place, command, compressed, failure, request, stop_conversion, task, until,
};
use kvmlet::model::ids::ImageId;
use kvmlet::model::image::ImageFormat;
use kvmlet::storage::{Pool, Qcow2Pool, SourcePolicy, StorageErrorKind, Task};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A dead process that nobody has collected yet is gone too.
fn is_gone(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z")),
        Err(_) => true,
    }
}

#[test]
fn a_cancelled_conversion_is_killed_and_leaves_nothing() {
    let place = Place::new();
    let path = place.incoming("disk.qcow2");
    compressed(&path, 192);
    let source = place
        .fetch_file(&path, ImageFormat::Qcow2)
        .expect("a source");
    let cancelled = Arc::new(AtomicBool::new(false));
    let task = Task::new(Arc::clone(&cancelled), None, |_, _| ());
    let id = ImageId::random();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| place.pool.put_image(id, &source, &task));
        let pid = stop_conversion(place.folder.path());
        cancelled.store(true, Ordering::Relaxed);
        let result = call.join().expect("no panic");
        assert_eq!(failure(result), StorageErrorKind::Cancelled);
        assert!(is_gone(pid));
    });
    drop(source);
    assert_eq!(place.pool.image(id).expect("a look"), None);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn a_conversion_runs_under_limits_and_knows_nothing_of_our_environment() {
    let place = Place::new();
    let path = place.incoming("disk.qcow2");
    compressed(&path, 192);
    let source = place
        .fetch_file(&path, ImageFormat::Qcow2)
        .expect("a source");
    let cancelled = Arc::new(AtomicBool::new(false));
    let task = Task::new(Arc::clone(&cancelled), None, |_, _| ());
    let look = |pid, name: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("it is stopped")
    };
    let (limits, status, environment) = std::thread::scope(|scope| {
        let call = scope.spawn(|| place.pool.put_image(ImageId::random(), &source, &task));
        let pid = stop_conversion(place.folder.path());
        let seen = (
            look(pid, "limits"),
            look(pid, "status"),
            look(pid, "environ"),
        );
        cancelled.store(true, Ordering::Relaxed);
        assert_eq!(
            failure(call.join().expect("no panic")),
            StorageErrorKind::Cancelled
        );
        seen
    });
    for limit in [
        "Max cpu time",
        "Max file size",
        "Max address space",
        "Max core file size",
    ] {
        let line = limits
            .lines()
            .find(|line| line.starts_with(limit))
            .expect(limit);
        assert!(!line.contains("unlimited"), "{line}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let names: Vec<_> = environment
        .split_terminator('\0')
        .filter_map(|variable| variable.split('=').next())
        .collect();
    assert_eq!(names, ["LC_ALL", "PATH"]);
}

#[test]
fn a_conversion_past_its_deadline_is_killed() {
    let place = Place::new();
    let path = place.incoming("disk.qcow2");
    compressed(&path, 192);
    let source = place
        .fetch_file(&path, ImageFormat::Qcow2)
        .expect("a source");
    let deadline = Instant::now() + Duration::from_secs(3);
    let task = Task::new(Arc::default(), Some(deadline), |_, _| ());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| place.pool.put_image(ImageId::random(), &source, &task));
        let pid = stop_conversion(place.folder.path());
        let result = call.join().expect("no panic");
        assert_eq!(failure(result), StorageErrorKind::DeadlinePassed);
        assert!(is_gone(pid));
    });
}

/// Set for the process that is the agent and is killed.
const FOLDER: &str = "KVMLET_TEST_FOLDER";

#[test]
fn a_conversion_dies_with_the_agent_and_its_rest_is_swept() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return be_the_agent(&PathBuf::from(folder));
    }
    let folder = tempfile::tempdir().expect("a folder");
    compressed(&folder.path().join("disk.qcow2"), 192);
    let mut agent = command(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "storage::processes::a_conversion_dies_with_the_agent_and_its_rest_is_swept",
        ])
        .env(FOLDER, folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let pid = stop_conversion(folder.path());
    agent.kill().expect("it runs");
    agent.wait().expect("it is ours");
    until("the end of qemu-img", || is_gone(pid).then_some(()));

    let pool = Qcow2Pool::new("main", folder.path().join("pool"));
    pool.prepare().expect("the dead one's lock is gone");
    let swept = pool.sweep_temporary(&[]).expect("swept");
    assert_eq!(
        swept.len(),
        2,
        "the copy of the source and half an image: {swept:?}"
    );
    let left: Vec<_> = pool
        .entries()
        .expect("a list")
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

/// The agent's part of the test above, in a process of its own, which is killed.
fn be_the_agent(folder: &Path) {
    let pool = Qcow2Pool::new("main", folder.join("pool"));
    pool.prepare().expect("a pool");
    let policy = SourcePolicy {
        allowed_directories: vec![folder.to_owned()],
        ..SourcePolicy::default()
    };
    let request = request(&folder.join("disk.qcow2"), ImageFormat::Qcow2);
    let source = policy
        .fetch(&request, pool.scratch(), &task())
        .expect("a source");
    pool.put_image(ImageId::random(), &source, &task())
        .expect("an image");
}
