//! Which Ceph tools this host has.

use super::cluster::words;
use crate::storage::command::run;
use crate::storage::error::{StorageError, StorageErrorKind};
use crate::storage::task::Task;

/// The version of Ceph's tools on this host, such as `16.2.15`; no cluster is asked.
///
/// # Errors
/// They can't be run, or say no version.
pub fn ceph_version(task: &Task) -> Result<String, StorageError> {
    let finished = run("rbd", &words(&["--version"]), None, task, |_| ())?;
    let printed = finished.success("rbd --version")?;
    read(&String::from_utf8_lossy(&printed)).ok_or_else(|| {
        StorageError::new(
            StorageErrorKind::ToolFailed,
            "rbd --version says no version",
        )
    })
}

/// Reads `ceph version 16.2.15 (<commit>) pacific (stable)`.
fn read(printed: &str) -> Option<String> {
    let version = printed.trim().strip_prefix("ceph version ")?;
    version.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_word_after_it() {
        let printed =
            "ceph version 16.2.15 (618f440892089921c3e944a991122ddc44e60516) pacific (stable)\n";
        assert_eq!(read(printed).as_deref(), Some("16.2.15"));
        assert_eq!(read("rbd: not found"), None);
    }
}
