//! What was found: data, to be printed by others.
//!
//! Invariant: what is not well says what it means and what to do.

use super::checks::Check;
use std::sync::mpsc::Sender;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// As it should be, or only told.
    Ok,
    /// It could not be looked at.
    Skipped,
    /// kvmlet works, with less than it could or not for ever.
    Warning,
    /// kvmlet, or a part of it, does not work.
    Error,
}

impl Level {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// Of what, where there can be many: a pool, a network, a file; else empty.
    pub about: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What that means; empty where all is well.
    pub meaning: String,
    /// What to do: often a command to copy; empty where all is well.
    pub advice: String,
}

/// Takes down what is found, as it is found.
#[derive(Debug, Clone)]
pub(super) struct Notes(pub(super) Sender<Finding>);

impl Notes {
    fn note(&self, check: Check, about: &str, level: Level, words: [String; 3]) {
        let [found, meaning, advice] = words;
        // Nobody waits any more: it took too long, which is told already.
        drop(self.0.send(Finding {
            check,
            about: about.to_owned(),
            level,
            found,
            meaning,
            advice,
        }));
    }

    /// All is well.
    pub(super) fn ok(&self, check: Check, about: &str, found: impl Into<String>) {
        let words = [found.into(), String::new(), String::new()];
        self.note(check, about, Level::Ok, words);
    }

    /// It works, but.
    pub(super) fn warning(
        &self,
        check: Check,
        about: &str,
        found: impl Into<String>,
        meaning: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let words = [found.into(), meaning.into(), advice.into()];
        self.note(check, about, Level::Warning, words);
    }

    /// It does not work.
    pub(super) fn error(
        &self,
        check: Check,
        about: &str,
        found: impl Into<String>,
        meaning: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let words = [found.into(), meaning.into(), advice.into()];
        self.note(check, about, Level::Error, words);
    }

    /// It could not be looked at, for this reason.
    pub(super) fn skipped(
        &self,
        check: Check,
        about: &str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let meaning = "It was not looked at.".to_owned();
        let words = [found.into(), meaning, advice.into()];
        self.note(check, about, Level::Skipped, words);
    }

    /// Only root may look.
    pub(super) fn needs_root(&self, check: Check, about: &str, what: impl Into<String>) {
        self.skipped(check, about, what, AS_ROOT);
    }
}

/// What to do where only root may look.
pub(super) const AS_ROOT: &str = "sudo kvmlet doctor";
