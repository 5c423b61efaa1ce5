//! `[audit]`: where it is recorded who changed what, besides the log.

use super::section::Section;
use std::path::PathBuf;

/// Where it is recorded who changed what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditSettings {
    /// A file that gets each record as a line of JSON, besides the log.
    pub file: Option<PathBuf>,
}

pub(super) fn audit(section: Section<'_>) -> AuditSettings {
    let settings = AuditSettings {
        file: section.absolute_path("file"),
    };
    section.finish();
    settings
}
