//! `kvmlet vm console` and `kvmlet vm screenshot`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::output::clean;
use crate::cli::resolve::{self, Gone};
use crate::cli::table::Sheet;
use crate::proto::v1::{CaptureScreenshotRequest, GetVncConsoleRequest, VncConsole};
use std::fs;
use std::io::{IsTerminal, stdout};
use std::path::Path;

/// Sets a fresh password and tells how to connect.
pub(crate) async fn show(session: &Session, vm: &str) -> Result<(), Fault> {
    let vm_id = resolve::vm(session, vm, Gone::Yields).await?;
    let request = GetVncConsoleRequest { vm_id };
    let console = session
        .consoles()
        .get_vnc_console(request)
        .await?
        .into_inner();
    session.out.one(&console, || {
        let mut sheet = Sheet::default();
        sheet.add("address", &console.address);
        sheet.add("port", console.port);
        sheet.add("password", &console.password);
        sheet.add("expires", session.out.local(console.password_expire_time));
        sheet.add("connect", viewer(&console));
        sheet.to_string()
    })
}

/// The command that opens the display. Two colons: a port, not a display number.
fn viewer(console: &VncConsole) -> String {
    let address = clean(&console.address);
    if address.contains(':') {
        format!("vncviewer '[{address}]::{}'", console.port)
    } else {
        format!("vncviewer {address}::{}", console.port)
    }
}

/// Saves a picture of the display; `-` is standard output.
pub(crate) async fn screenshot(session: &Session, vm: &str, file: &Path) -> Result<(), Fault> {
    let to_stdout = file == Path::new("-");
    if to_stdout && stdout().is_terminal() {
        return Err(Fault::usage("a picture is nothing for a terminal: -O FILE"));
    }
    let vm_id = resolve::vm(session, vm, Gone::Yields).await?;
    let request = CaptureScreenshotRequest { vm_id };
    let picture = session
        .consoles()
        .capture_screenshot(request)
        .await?
        .into_inner();
    if to_stdout {
        return session.out.bytes(&picture.png);
    }
    fs::write(file, &picture.png)
        .map_err(|error| Fault::usage(format!("{}: {error}", file.display())))?;
    if session.out.quiet || session.out.is_json() {
        return Ok(());
    }
    session.out.line(format_args!(
        "{}: {} bytes",
        file.display(),
        picture.png.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_viewer_is_given_a_port_and_not_a_display() {
        let mut console = VncConsole {
            address: "127.0.0.1".into(),
            port: 5900,
            ..VncConsole::default()
        };
        assert_eq!(viewer(&console), "vncviewer 127.0.0.1::5900");
        console.address = "::1".into();
        assert_eq!(viewer(&console), "vncviewer '[::1]::5900'");
    }
}
