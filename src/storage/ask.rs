//! Asks the host's own tools what they know: which version they are, which state a
//! unit has.
//!
//! Nothing is changed by what is asked; who asks sees to that by the words that he
//! gives, which are his own and never a caller's.

use super::command::run;
use super::error::StorageError;
use super::task::Task;
use std::ffi::OsString;

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it ended well.
    pub success: bool,
    /// What it printed, as text.
    pub printed: String,
    /// What it complained of.
    pub complaint: String,
}

/// Runs a tool that only tells something, until `task` ends it. Blocks.
///
/// # Errors
/// It can't be started, or the task ended it. That it failed is an answer.
pub fn ask(tool: &str, words: &[&str], task: &Task) -> Result<Answer, StorageError> {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let finished = run(tool, &words, None, task, |_| ())?;
    Ok(Answer {
        success: finished.status.success(),
        printed: String::from_utf8_lossy(&finished.stdout).into_owned(),
        complaint: finished.stderr,
    })
}
