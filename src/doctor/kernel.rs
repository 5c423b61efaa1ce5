//! What the kernel tells in its files: mounts, and sockets that listen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The text of a file; empty if it is not there.
pub(super) fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The first line of a file, trimmed.
pub(super) fn line(path: impl AsRef<Path>) -> String {
    text(path)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The number that a file holds.
pub(super) fn number(path: impl AsRef<Path>) -> Option<u64> {
    line(path).parse().ok()
}

/// The value of `key: N kB` of `/proc/meminfo`, in KiB.
pub(super) fn meminfo(key: &str) -> Option<u64> {
    let text = text("/proc/meminfo");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) point: PathBuf,
    pub(super) kind: String,
    /// Nothing may be written.
    pub(super) read_only: bool,
}

/// The file system that a path is on.
pub(super) fn mount_of(path: &Path) -> Option<Mount> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    innermost(mounts(&text("/proc/self/mountinfo")), &real)
}

/// Of mounts one above the other, the last is seen.
fn innermost(mounts: Vec<Mount>, path: &Path) -> Option<Mount> {
    mounts
        .into_iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    let read = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(4);
        let (point, options) = (mount.next()?, mount.next()?);
        let mut system = system.split(' ');
        let kind = system.next()?.to_owned();
        let of_system = system.nth(1).unwrap_or_default();
        let is_ro = |options: &str| options.split(',').any(|option| option == "ro");
        Some(Mount {
            point: PathBuf::from(unescaped(point)),
            kind,
            read_only: is_ro(options) || is_ro(of_system),
        })
    };
    mountinfo.lines().filter_map(read).collect()
}

/// Where `/etc/fstab` says that a path, or a folder that it is in, is to be mounted,
/// but for `/`.
pub(super) fn fstab_point(path: &Path) -> Option<PathBuf> {
    deepest_point(&text("/etc/fstab"), path)
}

fn deepest_point(fstab: &str, path: &Path) -> Option<PathBuf> {
    let points = fstab.lines().filter_map(|line| {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let point = PathBuf::from(unescaped(line.split_whitespace().nth(1)?));
        (point.is_absolute() && point != Path::new("/") && path.starts_with(&point))
            .then_some(point)
    });
    points.max_by_key(|point| point.components().count())
}

/// Spaces and the like are written as octal numbers.
fn unescaped(text: &str) -> String {
    let pairs = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    pairs
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A TCP socket that listens, and its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) inode: u64,
}

impl Listener {
    /// Whether nobody else can listen at this address meanwhile.
    pub(super) fn is_in_the_way_of(&self, address: SocketAddr) -> bool {
        let (own, other) = (self.address.ip(), address.ip());
        // One on all IPv6 addresses has those of IPv4, too, as a rule.
        let same = own == other
            || (own.is_unspecified() && (own.is_ipv6() || other.is_ipv4()))
            || (other.is_unspecified() && (other.is_ipv6() || own.is_ipv4()));
        self.address.port() == address.port() && same
    }
}

/// All TCP sockets that listen, in this process's network.
pub(super) fn listeners() -> Vec<Listener> {
    let mut found = parse_listeners(&text("/proc/self/net/tcp"));
    found.extend(parse_listeners(&text("/proc/self/net/tcp6")));
    found
}

fn parse_listeners(table: &str) -> Vec<Listener> {
    let read = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // 0A is TCP_LISTEN.
        if *words.get(3)? != "0A" {
            return None;
        }
        let (ip, port) = words.get(1)?.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Listener {
            address: SocketAddr::new(address(ip)?, port),
            inode: words.get(9)?.parse().ok()?,
        })
    };
    table.lines().skip(1).filter_map(read).collect()
}

/// The kernel writes addresses as words of 32 bits in the host's own order.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let word = u32::from_str_radix(hex.get(index * 8..index * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for index in 0..4 {
                bytes[index * 4..index * 4 + 4].copy_from_slice(&word(index)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

/// The process that has a socket open: its id and name. Of others' processes only
/// root is told.
pub(super) fn holder(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Ok(id) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let has = files.flatten().any(|file| {
            let target = std::fs::read_link(file.path());
            target.is_ok_and(|target| target.as_os_str() == wanted.as_str())
        });
        if has {
            return Some((id, line(process.path().join("comm"))));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_path_is_on_the_innermost_mount() {
        let table = "1 0 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
            2 1 0:30 / /srv rw shared:1 - nfs4 nas:/srv rw,vers=4.2\n\
            3 2 8:2 / /srv/my\\040pool ro,noatime - xfs /dev/sdb1 rw\n";
        let found = |path| innermost(mounts(table), Path::new(path)).expect("/ has all");
        assert_eq!(found("/srv2").kind, "ext4");
        assert_eq!(found("/srv/x").kind, "nfs4");
        let pool = found("/srv/my pool/a");
        assert_eq!((pool.kind.as_str(), pool.read_only), ("xfs", true));
    }

    #[test]
    fn fstab_says_what_should_be_mounted() {
        let fstab = "# /dev/x /srv/pool ext4\n/dev/sda1 / ext4 defaults 0 1\n\
            UUID=1 none swap sw\n/dev/sdb1\t/srv\txfs\n";
        let point = |path| deepest_point(fstab, Path::new(path));
        assert_eq!(point("/srv/pool"), Some(PathBuf::from("/srv")));
        assert_eq!(point("/var/lib/kvmlet/pool"), None);
    }

    #[test]
    fn a_listener_of_this_process_is_found_with_its_holder() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = TcpListener::bind(address) else {
                // This machine has no IPv6.
                continue;
            };
            let address = socket.local_addr().expect("it is bound");
            let found = listeners().into_iter().find(|it| it.address == address);
            let (process, _) = holder(found.expect("it listens").inode).expect("it is ours");
            assert_eq!(process, std::process::id());
        }
    }

    #[test]
    fn an_address_is_taken_by_one_that_covers_it() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let taken = |by, wanted| {
            let listener = Listener {
                address: at(by),
                inode: 1,
            };
            listener.is_in_the_way_of(at(wanted))
        };
        assert!(taken("127.0.0.1:80", "127.0.0.1:80"));
        assert!(taken("0.0.0.0:80", "10.0.0.1:80"));
        assert!(taken("[::]:80", "10.0.0.1:80"));
        assert!(taken("10.0.0.1:80", "0.0.0.0:80"));
        assert!(!taken("10.0.0.2:80", "10.0.0.1:80"));
        assert!(!taken("0.0.0.0:80", "[::1]:80"));
        assert!(!taken("127.0.0.1:81", "127.0.0.1:80"));
    }
}
