//! The host is set up otherwise than when its VMs were made: another address for
//! displays, another folder for consoles, a pool that was moved.

use super::admin::{define, domain, shows, source, virsh};
use super::ask::Ask;
use super::host::{LINE, World};
use crate::bench::{self, Guest};
use crate::support::refusal::Refusal;
use kvmlet::proto::v1::*;
use std::fs;
use std::path::Path;

/// The listening address of a domain's display, by what libvirt has.
fn listens(world: &World, guest: &Guest, how: &[&str]) -> Vec<String> {
    let domain = domain(&guest.id);
    let command = [&["dumpxml", &domain], how].concat();
    let xml = virsh(world, &command);
    let document = roxmltree::Document::parse(&xml).unwrap();
    let display = document
        .descendants()
        .find(|node| node.has_tag_name("graphics"))
        .unwrap();
    let below = display.children().find(|node| node.has_tag_name("listen"));
    [Some(display), below]
        .into_iter()
        .flatten()
        .zip(["listen", "address"])
        .filter_map(|(node, name)| node.attribute(name).map(str::to_owned))
        .collect()
}

async fn guest(world: &World) -> Guest {
    let guest = world
        .host
        .create(CreateVmRequest {
            vnc: Some(NewVnc { enabled: true }),
            ..bench::request(&world.deaf)
        })
        .await;
    guest.has_said(LINE, 1).await;
    guest
}

fn lines(console: &Path) -> usize {
    let log = fs::read_to_string(console).unwrap_or_default();
    log.matches(LINE).count()
}

pub async fn guests_start_with_the_hosts_present_settings_and_saved_ones_go_on(mut world: World) {
    let (off, saved, running) = (
        guest(&world).await,
        guest(&world).await,
        guest(&world).await,
    );
    let doubled = guest(&world).await;
    off.force_off().await;
    doubled.force_off().await;
    let api = world.api();
    api.done(Ask::Save.send(&api, &saved.id, "").await).await;
    assert_eq!(listens(&world, &off, &["--inactive"]), ["127.0.0.1"; 2]);
    // An administrator's own setting, which must survive.
    let xml = virsh(
        &world,
        &["dumpxml", &domain(&off.id), "--inactive", "--security-info"],
    );
    let (before, after) = xml.split_once("<on_reboot>").unwrap();
    let tuned = format!("{before}<cputune><shares>512</shares></cputune><on_reboot>{after}");
    define(&world, &tuned);

    let home = world.host.daemon.home().to_owned();
    world.host.daemon.stop().await;
    fs::create_dir(home.join("moved")).unwrap();
    fs::rename(home.join("pool"), home.join("moved/pool")).unwrap();
    // A copy that somebody left in the old place is another file.
    let volume = |guest: &Guest| {
        let path = source(&world, &domain(&guest.id));
        let name = path.file_name().unwrap().to_owned();
        (path, home.join("moved/pool/volumes").join(name))
    };
    let (old, new) = volume(&doubled);
    fs::create_dir_all(old.parent().unwrap()).unwrap();
    fs::copy(&new, &old).unwrap();
    let setup = world.host.daemon.setup_mut();
    setup.pool = "moved/pool";
    setup.console = "consoles";
    setup
        .lines
        .push(("vnc", "listen = \"127.0.0.2\"".to_owned()));
    world.host.daemon.restart().await;
    let api = world.api();
    let [off, saved, running, doubled] =
        [off, saved, running, doubled].map(|guest| world.host.guest(guest.id));
    let console = |guest: &Guest| home.join(format!("consoles/{}.log", guest.id));

    // One that runs is left alone, and nothing has drifted.
    shows(&running, None).await;
    assert_eq!(running.state().await, VmState::Running);
    shows(&off, None).await;

    // One that is off boots with all of it, and keeps what is not the host's.
    off.start().await;
    assert_eq!(listens(&world, &off, &[]), ["127.0.0.2"; 2]);
    assert_eq!(listens(&world, &off, &["--inactive"]), ["127.0.0.2"; 2]);
    assert!(source(&world, &domain(&off.id)).starts_with(home.join("moved/pool")));
    let xml = virsh(&world, &["dumpxml", &domain(&off.id), "--inactive"]);
    assert!(xml.contains("<shares>512</shares>"), "{xml}");
    assert!(!xml.contains(&format!("{}/pool/", home.display())), "{xml}");
    let booted = async |guest: &Guest| {
        crate::support::until("its line", bench::BOOT, async || {
            (lines(&console(guest)) == 1).then_some(())
        })
        .await;
    };
    booted(&off).await;

    // One whose memory is saved goes on with it.
    shows(&saved, None).await;
    saved.start().await;
    assert_eq!(saved.state().await, VmState::Running);
    assert_eq!(listens(&world, &saved, &[]), ["127.0.0.2"; 2]);
    let xml = virsh(&world, &["dumpxml", &domain(&saved.id)]);
    assert!(xml.contains(console(&saved).to_str().unwrap()), "{xml}");
    assert!(!xml.contains(&format!("{}/pool/", home.display())), "{xml}");
    assert_eq!(lines(&console(&saved)), 0, "it has booted");

    // Where there are two files, it is not for kvmlet to choose.
    let details = shows(&doubled, Some(VmConditionType::Drifted)).await;
    assert!(details[0].contains("another file"), "{details:?}");
    let start = Ask::Start.send(&api, &doubled.id, "").await.unwrap();
    let ended = api.ended(&start.get_ref().id).await;
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "DOMAIN_DRIFTED");
    fs::remove_file(&old).unwrap();
    doubled.start().await;
    booted(&doubled).await;
    for guest in [off, saved, running, doubled] {
        guest.remove().await;
    }
}
