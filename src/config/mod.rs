//! Configuration: from TOML text to values that the rest can rely on.
//!
//! Invariant: a [`Config`] exists only if every value in it was checked, by
//! itself and against the others. All faults of a file are reported at once,
//! each with its key's path and line, so that one look repairs the file.
//!
//! It looks at nothing but the file: whether a pool's directory exists or a
//! bridge is up is for the parts that use them.

mod access;
mod audit;
mod check;
mod events;
mod faults;
mod features;
mod limits;
mod metrics;
mod pools;
mod report;
mod restart;
mod section;
mod settings;
mod tls;
mod traces;

pub use access::{AccessSettings, Granted};
pub use audit::AuditSettings;
pub use events::EventSettings;
pub use faults::{ConfigFaults, Fault};
pub use limits::LimitSettings;
pub use metrics::MetricsSettings;
pub use pools::{Keyring, PoolBackend, PoolSettings, RbdSettings};
pub use report::{Encoding, NatsLogin, NatsSettings, Pace, ReportSettings, TlsFiles};
pub use settings::{
    ApiSettings, Config, HardwareProfile, HypervisorSettings, ImageSettings, JournalSettings,
    LogSettings, LogTarget, Network, NodeSettings, OperationSettings, ShutdownSettings, VmSettings,
    VncSettings,
};
pub use tls::{Pem, ServerTls};
pub use traces::TraceSettings;

use std::path::Path;

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// Every fault that was found; one that names the file if it can't be read.
    pub fn load(path: &Path) -> Result<Self, ConfigFaults> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigFaults::unreadable(path, &error))?;
        Self::from_toml(&text)
    }

    /// Reads and checks a configuration's text. An empty one is valid.
    ///
    /// # Errors
    /// Every fault that was found.
    pub fn from_toml(text: &str) -> Result<Self, ConfigFaults> {
        check::read(text)
    }
}
