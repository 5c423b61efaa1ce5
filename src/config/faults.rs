//! What is wrong with a configuration, all of it at once.

use std::fmt;
use std::path::Path;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Path of the key, such as `pools[1].path`; empty where no key is to blame.
    pub key: String,
    /// What is wrong, in words that follow the key.
    pub problem: String,
    /// Line of the file, from 1, where one is to blame.
    pub line: Option<usize>,
}

impl fmt::Display for Fault {
    /// `pools[1].path: must be absolute (line 12)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        match self.line {
            Some(line) => write!(f, " (line {line})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFaults {
    faults: Vec<Fault>,
}

impl ConfigFaults {
    /// In the order of the file, faults without a line first.
    pub(super) fn new(mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| fault.line);
        Self { faults }
    }

    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        Self {
            faults: vec![Fault {
                key: path.display().to_string(),
                problem: format!("can't be read: {error}"),
                line: None,
            }],
        }
    }

    /// The single faults, in the order of the file.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for ConfigFaults {
    /// One fault per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}
