//! Logs in to a VNC display as a viewer does, and says how it was answered.
//!
//! The password comes on standard input: arguments can be read by everyone.
//! Ends with 0 if it was accepted, with 1 if it was refused.
//!
//! ```sh
//! echo secret | cargo run --example rfb_login -- 127.0.0.1:5900
//! ```

// The tests' own client: it gives up loudly, as this program may.
#![allow(clippy::unwrap_used)]

#[path = "../tests/qemu_libvirt/rfb.rs"]
mod rfb;

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(display) = std::env::args().nth(1) else {
        eprintln!("usage: echo PASSWORD | rfb_login ADDRESS:PORT");
        return ExitCode::from(2);
    };
    let mut password = String::new();
    std::io::stdin().read_line(&mut password).unwrap();
    match rfb::login(&display, password.trim_end()) {
        rfb::Login::Accepted => {
            println!("{display} accepted the password");
            ExitCode::SUCCESS
        }
        rfb::Login::Refused => {
            println!("{display} refused the password");
            ExitCode::FAILURE
        }
    }
}
