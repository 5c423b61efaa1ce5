//! The hypervisor's URI, checked before libvirt sees it.
//!
//! libvirt accepts far more than kvmlet can run on (other hypervisors, remote
//! hosts over ssh). What is let through here is what kvmlet is tested with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest root of an embedded driver, in bytes: libvirt puts the agents'
/// sockets 67 bytes below it, and a socket's path ends at 107.
const LONGEST_ROOT: usize = 40;

/// A libvirt URI of a kind that kvmlet runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HypervisorUri {
    text: String,
    kind: HypervisorKind,
}

/// How a hypervisor is reached, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HypervisorKind {
    /// The host's own libvirt daemon, privileged.
    System,
    /// The user's own libvirt daemon.
    Session,
    /// QEMU's driver inside this process, with all its files below `root`.
    /// Guests outlive the process; the next one with the same root finds them.
    Embed {
        /// Absolute and short.
        root: PathBuf,
    },
    /// libvirt's own simulated host: no guest is real.
    Test,
}

/// Why a text is not a URI that kvmlet runs on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not of the form `driver[+transport]:///path[?query]`.
    #[error("is not a libvirt URI of the form driver:///path")]
    Malformed,
    /// Names a host: only this host is served.
    #[error("names a remote host; kvmlet runs on the host that it serves")]
    Remote,
    /// A hypervisor or transport other than QEMU's and the simulated one.
    #[error("has the scheme {0:?}; qemu, qemu+unix, test and test+unix are supported")]
    Scheme(String),
    /// A path that means nothing to the driver.
    #[error("has the path {0:?}; qemu has /system, /session and /embed")]
    Path(String),
    /// A parameter that is unknown or must not be there.
    #[error("has the parameter {0:?}, which is not supported there")]
    Parameter(String),
    /// The embedded driver's root is missing or unusable.
    #[error(
        "needs root=DIR for /embed: absolute, at most {LONGEST_ROOT} bytes, of letters, digits and /._-"
    )]
    Root,
}

impl HypervisorUri {
    /// The URI as libvirt takes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Which hypervisor it names.
    pub const fn kind(&self) -> &HypervisorKind {
        &self.kind
    }

    /// Whether guests are simulated.
    pub const fn is_simulated(&self) -> bool {
        matches!(self.kind, HypervisorKind::Test)
    }
}

fn plain(path: &str) -> bool {
    path.starts_with('/')
        && path
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
        && !path.split('/').any(|part| part == "..")
}

fn root(value: &str) -> Result<PathBuf, UriError> {
    let usable = plain(value) && value.len() <= LONGEST_ROOT && Path::new(value).parent().is_some();
    usable.then(|| PathBuf::from(value)).ok_or(UriError::Root)
}

impl FromStr for HypervisorUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(UriError::Malformed);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Malformed)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !matches!(scheme, "qemu" | "qemu+unix" | "test" | "test+unix") {
            return Err(UriError::Scheme(scheme.to_owned()));
        }
        if !path.starts_with('/') {
            return Err(if path.is_empty() {
                UriError::Malformed
            } else {
                UriError::Remote
            });
        }
        let by_socket = scheme.ends_with("+unix");
        let mut embed_root = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("root", value)) if scheme == "qemu" && path == "/embed" => {
                    embed_root = Some(root(value)?);
                }
                Some(("socket", value)) if by_socket && plain(value) => {}
                Some(("mode", "auto" | "direct" | "legacy")) if by_socket => {}
                _ => return Err(UriError::Parameter(pair.to_owned())),
            }
        }
        let kind = match (scheme, path) {
            ("qemu" | "qemu+unix", "/system") => HypervisorKind::System,
            ("qemu" | "qemu+unix", "/session") => HypervisorKind::Session,
            ("qemu", "/embed") => HypervisorKind::Embed {
                root: embed_root.ok_or(UriError::Root)?,
            },
            ("test" | "test+unix", path) if plain(path) && path != "/" => HypervisorKind::Test,
            (_, path) => return Err(UriError::Path(path.to_owned())),
        };
        Ok(Self {
            text: text.to_owned(),
            kind,
        })
    }
}

impl fmt::Display for HypervisorUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Result<HypervisorKind, UriError> {
        text.parse::<HypervisorUri>().map(|uri| uri.kind)
    }

    #[test]
    fn the_supported_hypervisors_are_told_apart() {
        assert_eq!(kind("qemu:///system"), Ok(HypervisorKind::System));
        assert_eq!(
            kind("qemu+unix:///system?socket=/run/x/libvirt-sock"),
            Ok(HypervisorKind::System)
        );
        assert_eq!(kind("qemu:///session"), Ok(HypervisorKind::Session));
        assert_eq!(
            kind("qemu:///embed?root=/tmp/k"),
            Ok(HypervisorKind::Embed {
                root: PathBuf::from("/tmp/k")
            })
        );
        assert_eq!(kind("test:///default"), Ok(HypervisorKind::Test));
        assert_eq!(
            kind("test+unix:///default?socket=/tmp/s"),
            Ok(HypervisorKind::Test)
        );
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        assert_eq!(kind(""), Err(UriError::Malformed));
        assert_eq!(kind("qemu:///sys\0tem"), Err(UriError::Malformed));
        assert_eq!(kind("qemu://host/system"), Err(UriError::Remote));
        assert_eq!(
            kind("qemu+ssh://root@host/system"),
            Err(UriError::Scheme("qemu+ssh".to_owned()))
        );
        assert_eq!(kind("xen:///system"), Err(UriError::Scheme("xen".into())));
        assert_eq!(kind("qemu:///other"), Err(UriError::Path("/other".into())));
        assert_eq!(
            kind("qemu:///system?root=/tmp/k"),
            Err(UriError::Parameter("root=/tmp/k".into()))
        );
        for bad in [
            "qemu:///embed",
            "qemu:///embed?root=",
            "qemu:///embed?root=relative",
            "qemu:///embed?root=/",
            "qemu:///embed?root=/tmp/../etc",
            "qemu:///embed?root=/a%20b",
            "qemu:///embed?root=/0123456789/0123456789/0123456789/0123456789/x",
        ] {
            assert_eq!(kind(bad), Err(UriError::Root), "{bad}");
        }
    }
}
