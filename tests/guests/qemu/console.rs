//! Displays: who may see them, and what they show.

#[path = "../../ceph/spill.rs"]
mod spill;

use crate::bench::{self, Bench, Host};
use crate::rfb::{self, Login};
use crate::support::daemon::Setup;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use spill::Secret;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

/// A daemon that logs all that it and its libraries say, and libvirt's root. Its
/// displays are on ports that no other daemon looks for.
async fn talkative(bench: &Bench) -> (Host, TempDir) {
    const KNOWN: &str = "cache/qemu/capabilities";
    const SETTINGS: &str = "etc/qemu.conf";
    let root = tempfile::Builder::new()
        .prefix("kvmlet-q")
        .permissions(PermissionsExt::from_mode(0o711))
        .tempdir_in("/tmp")
        .unwrap();
    let known = bench.host.known();
    let first = known.to_str().unwrap().strip_suffix(KNOWN).unwrap();
    bench::copy_known(&known, &root.path().join(KNOWN));
    let settings = fs::read_to_string(format!("{first}{SETTINGS}")).unwrap();
    let ports = "remote_display_port_min = 6100\nremote_display_port_max = 6199\n";
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join(SETTINGS), settings + ports).unwrap();
    let uri = format!("qemu:///embed?root={}", root.path().display());
    let setup = Setup {
        launcher: spill::at_trace(),
        ..Setup::on(uri).with("vnc", "password_ttl = \"6s\"")
    };
    (Host::with(setup).await, root)
}

/// Asks for a console.
async fn console(host: &Host, vm_id: &str) -> VncConsole {
    let request = GetVncConsoleRequest {
        vm_id: vm_id.to_owned(),
    };
    let mut consoles = host.daemon.api().consoles();
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
    let (host, root) = talkative(bench).await;
    let image = bench.import(&host, "idle").await;
    let guest = host
        .create(CreateVmRequest {
            vnc: Some(NewVnc { enabled: true }),
            ..bench::request(&image)
        })
        .await;
    let first = console(&host, &guest.id).await;
    assert!(first.enabled && first.port >= 6100, "{first:?}");
    assert_eq!(first.password.len(), 8);
    assert_eq!(login(&first, &first.password).await, Login::Accepted);
    assert_eq!(login(&first, "not this").await, Login::Refused);
    assert_eq!(login(&first, "").await, Login::Refused);

    let second = console(&host, &guest.id).await;
    assert_ne!(second.password, first.password);
    assert_eq!(login(&second, &first.password).await, Login::Refused);
    assert_eq!(login(&second, &second.password).await, Login::Accepted);
    until("the password to expire", PATIENCE, async || {
        (login(&second, &second.password).await == Login::Refused).then_some(())
    })
    .await;

    // libvirt's state of a guest that runs has the password, for root alone.
    let state = format!("run/qemu/kvmlet-{}.xml", guest.id);
    let state = root.path().join(state).display().to_string();
    let mut places = spill::files(host.daemon.home());
    places.extend(spill::files(root.path()));
    assert!(places.iter().any(|(place, _)| *place == state));
    places.retain(|(place, _)| *place != state);
    places.extend(spill::told(&host.daemon).await);
    places.extend(spill::processes());
    assert!(host.daemon.log().contains(" TRACE h2::"), "it says all");
    for password in [&first.password, &second.password] {
        let secret = Secret::new("a VNC password", password);
        for (place, content) in &places {
            secret.is_not_in(place, content);
        }
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
