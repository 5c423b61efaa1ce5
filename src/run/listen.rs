//! The doors: a Unix socket, from systemd or made here, and maybe a TCP port.

use crate::config::ApiSettings;
use crate::systemd;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Group, chown};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener};

/// The doors that are open.
pub(super) struct Doors {
    pub(super) listeners: Listeners,
    /// Removed when the daemon ends, unless systemd made it.
    _socket: Option<SocketFile>,
}

pub(super) use crate::grpc::Listeners;

/// A socket's file, removed when dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// Opens the configured doors. Says in words why it can't.
pub(super) async fn open(settings: &ApiSettings) -> Result<Doors, String> {
    let passed = systemd::passed_listener().map_err(|error| error.to_string())?;
    let (unix, file) = match passed {
        Some(listener) => (listener, None),
        None => {
            let listener = bind(settings)
                .map_err(|error| format!("{}: {error}", settings.socket.display()))?;
            (listener, Some(SocketFile(settings.socket.clone())))
        }
    };
    unix.set_nonblocking(true)
        .map_err(|error| error.to_string())?;
    let unix = UnixListener::from_std(unix).map_err(|error| error.to_string())?;
    let tcp = match settings.listen {
        None => None,
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|error| format!("{address}: {error}"))?,
        ),
    };
    Ok(Doors {
        listeners: Listeners { unix, tcp },
        _socket: file,
    })
}

fn bind(settings: &ApiSettings) -> io::Result<StdUnixListener> {
    let path = &settings.socket;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    remove_stale(path)?;
    // Closed to all until it has its owner and mode.
    let former = umask(Mode::from_bits_truncate(0o177));
    let listener = StdUnixListener::bind(path);
    umask(former);
    let listener = listener?;
    if let Some(name) = &settings.socket_group {
        let group = Group::from_name(name)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no group {name}"))
        })?;
        chown(path, None, Some(group.gid))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(settings.socket_mode))?;
    Ok(listener)
}

/// Removes the socket of a daemon that was killed; never one that answers, and
/// never anything that is no socket.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "is there and is no socket",
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another daemon answers there",
        )),
        Err(_) => fs::remove_file(path),
    }
}

/// Makes a folder that QEMU's user can pass through.
pub(super) fn make_folder(path: &Path) -> Result<(), String> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|error| format!("{}: {error}", path.display()))
}
