//! What kvmlet's unit may read and write, by its properties.
//!
//! A root that is not in the unit's own folders needs a drop-in: that is the one thing
//! about pools that no look at the file system shows.

use super::units::Properties;
use std::path::{Path, PathBuf};

/// Where a drop-in that opens folders is put.
const DROP_IN: &str = "/etc/systemd/system/kvmlet.service.d/pools.conf";
/// What `ProtectHome=` is about.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// What a service may do with files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sandbox {
    system: String,
    home: String,
    private_tmp: bool,
    writable: Vec<PathBuf>,
    read_only: Vec<PathBuf>,
    inaccessible: Vec<PathBuf>,
}

/// What a service may do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Read and write.
    Write,
    /// Read only.
    Read,
    /// It does not see it, or sees something else.
    Nothing,
}

impl Sandbox {
    pub(super) fn of(unit: &Properties) -> Self {
        let paths = |name: &str| -> Vec<PathBuf> {
            let words = unit.get(name).split_whitespace();
            words
                .map(|word| PathBuf::from(word.trim_start_matches(['-', '+', ':'])))
                .collect()
        };
        let mut writable = paths("ReadWritePaths");
        for (property, root) in [
            ("StateDirectory", "/var/lib"),
            ("RuntimeDirectory", "/run"),
            ("LogsDirectory", "/var/log"),
            ("CacheDirectory", "/var/cache"),
        ] {
            let names = unit.get(property).split_whitespace();
            writable.extend(names.map(|name| Path::new(root).join(name)));
        }
        Self {
            system: unit.get("ProtectSystem").to_owned(),
            home: unit.get("ProtectHome").to_owned(),
            private_tmp: matches!(unit.get("PrivateTmp"), "yes" | "connected" | "disconnected"),
            writable,
            read_only: paths("ReadOnlyPaths"),
            inaccessible: paths("InaccessiblePaths"),
        }
    }

    /// What the service may do with an absolute path.
    ///
    /// Of what is named for a path and for folders around it, the innermost holds.
    pub(super) fn access(&self, path: &Path) -> Access {
        let homes = HOMES.map(PathBuf::from);
        let home = match self.home.as_str() {
            "yes" | "tmpfs" => Some(Access::Nothing),
            "read-only" => Some(Access::Read),
            _ => None,
        };
        let roots = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let system = match self.system.as_str() {
            "yes" => roots(&["/usr", "/boot", "/efi"]),
            "full" => roots(&["/usr", "/boot", "/efi", "/etc"]),
            "strict" => roots(&["/"]),
            _ => Vec::new(),
        };
        let tmp = if self.private_tmp {
            roots(&["/tmp", "/var/tmp"])
        } else {
            Vec::new()
        };
        // The kernel's own stay as they are under `strict`.
        let kernel = roots(&["/dev", "/proc", "/sys"]);
        let rules: [(&[PathBuf], Access); 7] = [
            (&system, Access::Read),
            (&kernel, Access::Write),
            (
                if home.is_some() { &homes } else { &[] },
                home.unwrap_or(Access::Write),
            ),
            (&tmp, Access::Nothing),
            (&self.writable, Access::Write),
            (&self.read_only, Access::Read),
            (&self.inaccessible, Access::Nothing),
        ];
        let mut best = (0, Access::Write);
        for (roots, access) in rules {
            for root in roots.iter().filter(|root| path.starts_with(root)) {
                let depth = root.components().count();
                if depth >= best.0 {
                    best = (depth, access);
                }
            }
        }
        best.1
    }
}

/// The command that lets the unit write to a folder; earlier drop-ins stay.
pub(super) fn drop_in(folder: &Path) -> String {
    let home = Path::new(DROP_IN).parent().unwrap_or(Path::new("/"));
    // The unit would not start for a folder that is not there.
    format!(
        "mkdir -p {0} {1} && printf '[Service]\\nReadWritePaths={0}\\n' >> {DROP_IN} && systemctl \
         daemon-reload && systemctl restart kvmlet",
        folder.display(),
        home.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict() -> Sandbox {
        Sandbox {
            system: "strict".to_owned(),
            home: "yes".to_owned(),
            private_tmp: true,
            writable: vec!["/var/lib/kvmlet".into(), "/srv/pool".into()],
            read_only: vec!["/srv/pool/keep".into()],
            inaccessible: vec!["/mnt/secret".into()],
        }
    }

    #[test]
    fn under_strict_only_what_is_named_can_be_written() {
        let access = |path: &str| strict().access(Path::new(path));
        assert_eq!(access("/var/lib/kvmlet/pool"), Access::Write);
        assert_eq!(access("/srv/pool"), Access::Write);
        assert_eq!(access("/srv/pool/keep/a"), Access::Read);
        assert_eq!(access("/srv/pool2"), Access::Read);
        assert_eq!(access("/home/vms"), Access::Nothing);
        assert_eq!(access("/tmp/pool"), Access::Nothing);
        assert_eq!(access("/mnt/secret/x"), Access::Nothing);
        assert_eq!(access("/dev/kvm"), Access::Write);
    }

    #[test]
    fn without_a_sandbox_everything_can_be_written() {
        let open = Sandbox::default();
        for path in ["/srv/pool", "/home/vms", "/tmp/pool", "/etc"] {
            assert_eq!(open.access(Path::new(path)), Access::Write, "{path}");
        }
        let full = Sandbox {
            system: "full".to_owned(),
            ..Sandbox::default()
        };
        assert_eq!(full.access(Path::new("/etc/kvmlet")), Access::Read);
        assert_eq!(full.access(Path::new("/srv/pool")), Access::Write);
    }

    #[test]
    fn a_drop_in_is_a_command_to_copy() {
        let text = drop_in(Path::new("/srv/pool"));
        assert!(
            text.contains("[Service]\\nReadWritePaths=/srv/pool\\n"),
            "{text}"
        );
        assert!(text.ends_with("systemctl daemon-reload && systemctl restart kvmlet"));
    }
}
