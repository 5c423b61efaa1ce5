//! The end of an installation, which is not the end of its guests.

use crate::first_steps;
use crate::guest::{Guest, domain};
use crate::host::Host;
use crate::package::Packages;
use crate::support::{PATIENCE, until};

/// Stopped, removed, purged, and installed again, with a guest that goes on; then all
/// that it made is removed, and a purge leaves nothing.
pub async fn of_everything_but_the_guest(host: &Host, packages: &Packages, guest: &Guest) {
    host.run("systemctl stop kvmlet.socket kvmlet");
    guest.is_untouched(host);
    host.run("systemctl start kvmlet.socket kvmlet");

    let removed = host.run("apt-get remove -y kvmlet 2>&1");
    println!("# apt-get remove\n{removed}");
    assert_eq!(
        host.try_run("systemctl is-active kvmlet.socket").out,
        "inactive"
    );
    host.run("test ! -e /usr/bin/kvmlet && test -e /etc/kvmlet/kvmlet.toml");
    guest.is_untouched(host);
    let purged = host.run("apt-get purge -y kvmlet 2>&1");
    println!("# apt-get purge\n{purged}");
    assert!(purged.contains("/var/lib/kvmlet"), "{purged}");
    host.run("test ! -e /etc/kvmlet/kvmlet.toml && test ! -e /run/kvmlet");
    host.run("test -d /var/lib/kvmlet/pool/volumes && test -e /var/lib/kvmlet/journal.db");
    guest.is_untouched(host);

    // Installed again, it knows what it left.
    first_steps::install(host, &packages.now);
    host.run("systemctl enable --now kvmlet.socket kvmlet");
    guest.is_untouched(host);
    let vm = host.api().vm(&guest.vm_id).await.unwrap();
    assert_eq!(vm.name, "web1");
    // It was awake all the time: it obeys its power button.
    let stop = format!("kvmlet vm stop {} --timeout 60s", guest.vm_id);
    println!("{}", host.run(&stop));
    assert!(
        !host
            .run("virsh list --name")
            .contains(&domain(&guest.vm_id)),
        "the guest is off"
    );

    // With nothing of anyone's left, nothing is left.
    for id in host.run("kvmlet --quiet vm list --all").lines() {
        // One that was deleted before is expunged, the others are gone with the first.
        host.run(&format!(
            "kvmlet vm delete {id} --retention 0 --yes && {{ kvmlet vm expunge {id} --yes || true; }}"
        ));
    }
    for id in host.run("kvmlet --quiet image list").lines() {
        host.run(&format!("kvmlet image delete {id}"));
    }
    // What this test brought, and no package.
    host.run("rm -rf /var/lib/kvmlet/import/* /etc/kvmlet/tls /etc/kvmlet/credentials/tls.key");
    until("kept roots to be removed", PATIENCE, async || {
        let left =
            host.run("find /var/lib/kvmlet/pool/volumes /var/lib/kvmlet/pool/images -type f");
        left.is_empty().then_some(())
    })
    .await;
    let purged = host.run("apt-get purge -y kvmlet 2>&1");
    println!("# apt-get purge, with nothing left\n{purged}");
    let left = host.try_run("find /var/lib/kvmlet /etc/kvmlet /run/kvmlet /var/log/kvmlet");
    assert_eq!(left.out, "", "{purged}");
}
