//! Displays: who may see them, and what they show.

use super::bench::Bench;
use super::rfb::{self, Login};
use super::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::net::IpAddr;

/// Asks for a console.
async fn console(bench: &Bench, vm_id: &str) -> VncConsole {
    let request = GetVncConsoleRequest {
        vm_id: vm_id.to_owned(),
    };
    let mut consoles = bench.host.daemon.api().consoles();
    let answer = consoles.get_vnc_console(request).await;
    answer.unwrap().into_inner()
}

/// Logs in with a password.
async fn login(console: &VncConsole, password: &str) -> Login {
    let address: IpAddr = console.address.parse().unwrap();
    assert!(address.is_loopback());
    let port = u16::try_from(console.port).unwrap();
    let password = password.to_owned();
    let viewer = std::thread::spawn(move || rfb::login((address, port), &password));
    until("the display to answer", PATIENCE, async || {
        viewer.is_finished().then_some(())
    })
    .await;
    viewer.join().unwrap()
}

pub async fn each_console_has_a_fresh_password_that_expires(bench: &Bench) {
    let guest = bench
        .guest_with("idle", |request| {
            request.vnc = Some(NewVnc { enabled: true });
        })
        .await;
    let first = console(bench, &guest.id).await;
    assert!(first.enabled);
    assert_eq!(first.password.len(), 8);
    assert_eq!(login(&first, &first.password).await, Login::Accepted);
    assert_eq!(login(&first, "not this").await, Login::Refused);
    assert_eq!(login(&first, "").await, Login::Refused);

    let second = console(bench, &guest.id).await;
    assert_ne!(second.password, first.password);
    assert_eq!(login(&second, &first.password).await, Login::Refused);
    assert_eq!(login(&second, &second.password).await, Login::Accepted);
    until("the password to expire", PATIENCE, async || {
        (login(&second, &second.password).await == Login::Refused).then_some(())
    })
    .await;

    let log = bench.host.daemon.log();
    for password in [&first.password, &second.password] {
        assert!(!log.contains(password), "a password in the log");
    }
    guest.remove().await;
}

pub async fn a_screenshot_is_a_png_of_the_display(bench: &Bench) {
    let guest = bench
        .guest_with("idle", |request| {
            request.vnc = Some(NewVnc { enabled: true });
        })
        .await;
    guest.has_said("kvmlet test guest", 1).await;
    let request = CaptureScreenshotRequest {
        vm_id: guest.id.clone(),
    };
    let mut consoles = bench.host.daemon.api().consoles();
    let answer = consoles.capture_screenshot(request).await.unwrap();
    let png = answer.into_inner().png;
    let decoder = png::Decoder::new(std::io::Cursor::new(&png));
    let mut picture = decoder.read_info().unwrap();
    let mut pixels = vec![0; picture.output_buffer_size().unwrap()];
    picture.next_frame(&mut pixels).unwrap();
    let (width, height) = picture.info().size();
    assert!((640..=1920).contains(&width) && (350..=1200).contains(&height));
    assert!(
        pixels.iter().any(|byte| *byte != pixels[0]),
        "the firmware's text is on it"
    );
    guest.remove().await;
}
