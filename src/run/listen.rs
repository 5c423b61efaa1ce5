//! The doors: a Unix socket, from systemd or made here, and maybe a TCP port; for
//! metrics the same, if they are configured.

use crate::config::{ApiSettings, Config, MetricsSettings};
use crate::report::metrics;
use crate::systemd;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Group, chown};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};

/// Metrics are for the owner and the group of their socket.
const METRICS_MODE: u32 = 0o660;

/// How often it is looked whether a daemon answers on a socket that is there, and after
/// which pause.
const LOOKS: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The doors that are open.
pub(super) struct Doors {
    pub(super) listeners: Listeners,
    pub(super) metrics: metrics::Listeners,
    /// Removed when the daemon ends, unless systemd made it.
    _sockets: [Option<SocketFile>; 2],
}

pub(super) use crate::door::Listeners;

/// A socket's file, removed when dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// Opens the configured doors. Says in words why it can't.
pub(super) async fn open(config: &Config) -> Result<Doors, String> {
    let (listeners, api) = open_api(&config.api).await?;
    let (metrics, figures) = open_metrics(&config.metrics).await?;
    Ok(Doors {
        listeners,
        metrics,
        _sockets: [api, figures],
    })
}

async fn open_api(settings: &ApiSettings) -> Result<(Listeners, Option<SocketFile>), String> {
    let passed = systemd::passed_listener().map_err(|error| error.to_string())?;
    let (unix, file) = match passed {
        Some(listener) => (listener, None),
        None => {
            let group = settings.socket_group.as_deref();
            let (listener, file) = bind_unix(&settings.socket, settings.socket_mode, group)?;
            (listener, Some(file))
        }
    };
    let unix = on_runtime(unix)?;
    let tcp = bind_tcp(settings.listen).await?;
    Ok((Listeners { unix, tcp }, file))
}

async fn open_metrics(
    settings: &MetricsSettings,
) -> Result<(metrics::Listeners, Option<SocketFile>), String> {
    let tcp = bind_tcp(settings.listen).await?;
    let Some(path) = &settings.socket else {
        return Ok((metrics::Listeners { tcp, unix: None }, None));
    };
    let (unix, file) = bind_unix(path, METRICS_MODE, settings.socket_group.as_deref())?;
    let unix = Some(on_runtime(unix)?);
    Ok((metrics::Listeners { tcp, unix }, Some(file)))
}

async fn bind_tcp(address: Option<SocketAddr>) -> Result<Option<TcpListener>, String> {
    match address {
        None => Ok(None),
        Some(address) => TcpListener::bind(address)
            .await
            .map(Some)
            .map_err(|error| format!("{address}: {error}")),
    }
}

fn on_runtime(listener: StdUnixListener) -> Result<UnixListener, String> {
    listener
        .set_nonblocking(true)
        .map_err(|error| error.to_string())?;
    UnixListener::from_std(listener).map_err(|error| error.to_string())
}

fn bind_unix(
    path: &Path,
    mode: u32,
    group: Option<&str>,
) -> Result<(StdUnixListener, SocketFile), String> {
    let listener =
        bind(path, mode, group).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((listener, SocketFile(path.to_owned())))
}

fn bind(path: &Path, mode: u32, group: Option<&str>) -> io::Result<StdUnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    remove_stale(path)?;
    // Closed to all until it has its owner and mode.
    let former = umask(Mode::from_bits_truncate(0o177));
    let listener = StdUnixListener::bind(path);
    umask(former);
    let listener = listener?;
    if let Some(name) = group {
        let group = Group::from_name(name)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no group {name}"))
        })?;
        chown(path, None, Some(group.gid))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
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
    // A tool that a killed daemon was about to start has its socket for a moment more.
    for _ in 0..LOOKS {
        if UnixStream::connect(path).is_err() {
            return fs::remove_file(path);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "another daemon answers there",
    ))
}

/// Makes a folder that QEMU's user can pass through, whatever the umask; one that is
/// there keeps its mode.
pub(super) fn make_folder(path: &Path) -> Result<(), String> {
    let made = || {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o711))
    };
    made().map_err(|error: io::Error| format!("{}: {error}", path.display()))
}
