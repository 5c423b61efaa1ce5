//! Two hosts, a cable between them, and a receiver on one of them.

use crate::chapter;
use crate::first_steps;
use crate::guest;
use crate::host::Host;
use crate::receiver::{Book, serve_on};
use crate::remote::{made, put};
use crate::support::api::small;
use crate::support::pki::Authority;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{Condition, Vm, VmState};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::{Identity, ServerTlsConfig};

/// The longest that it may take until a sink is connected again and its receiver knows all:
/// it waits up to half a minute between two attempts, and on a busy host an attempt may
/// fail.
const AGAIN: Duration = Duration::from_secs(180);

/// What is told while a link is down comes when it is up again; the receiver's picture
/// is that of both hosts in the end, and it was never wrong about the other one.
pub async fn lost_for_a_while(one: &Host, two: &Host, since: Instant) {
    let authority = Authority::new("receivers");
    let issued = authority.server();
    let book = Arc::new(Book::default());
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(&issued.cert, &issued.key));
    let listener = one.listen("10.99.0.1:7500".parse().unwrap());
    let _receiver = serve_on(&book, listener, Some(tls));

    let mut running = Vec::new();
    for host in [one, two] {
        put(host, "/etc/kvmlet/receivers.pem", &authority.pem());
        // The certificate is for this name.
        host.run("echo '10.99.0.1 localhost' >/etc/hosts");
        let sink = "[[report]]\nname = \"cp\"\nendpoints = [\"https://localhost:7500\"]\n\
                    heartbeat = \"1s\"\nack_timeout = \"10s\"\n\
                    tls = { ca_file = \"/etc/kvmlet/receivers.pem\" }\n";
        put(host, "/etc/kvmlet/kvmlet.toml", sink);
        host.run("systemctl enable --now kvmlet.socket kvmlet");
        let api = host.api();
        let source = guest::image(host, "acpi", "1");
        let image = api.import(source.as_ref()).await;
        let vm_id = made(&api, &image, None).await;
        running.push((api, image, vm_id));
    }
    chapter(since, "both report");
    same(&book, one, two).await;
    let (api, image, vm_id) = &running[1];
    first_steps::booted(two, vm_id).await;

    chapter(since, "the link is down, and things happen");
    one.run("ip link set kv0 down");
    for _ in 0..3 {
        let request = small(image);
        let answer = api.vms().create_vm(request).await;
        api.done(answer).await;
    }
    // The guest ends by itself, with nobody to tell.
    two.run(&format!("virsh shutdown {}", guest::domain(vm_id)));
    until("the guest to end", PATIENCE, async || {
        (api.state(vm_id).await == VmState::Stopped).then_some(())
    })
    .await;
    // The other host is told of all the time.
    let (here, image, _) = &running[0];
    here.create(image, crate::support::api::Start::No).await;
    until("the loss to be noticed", PATIENCE, async || {
        let conditions = api.node().await.conditions;
        let lost = |it: &Condition| it.r#type == "SinkReady/cp" && !it.status;
        conditions.iter().any(lost).then_some(())
    })
    .await;
    let (of_one, of_two) = (picture(&book, one), picture(&book, two));
    assert_eq!(of_one, shown(one).await, "the host with its link");
    assert_ne!(
        of_two,
        shown(two).await,
        "what could not be told is not known"
    );

    chapter(since, "the link is up again");
    one.run("ip link set kv0 up");
    let back = Instant::now();
    same(&book, one, two).await;
    println!(
        "right again {:.1} s after the link",
        back.elapsed().as_secs_f32()
    );
    let marks = book.known().marks().len();
    println!("{marks} snapshots, {} streams", book.known().hellos.len());
    assert!(
        book.known().hellos.len() > 2,
        "the lost link ended a stream"
    );
}

/// What is known of each VM.
type Picture = BTreeMap<String, (String, VmState, u64)>;

fn of(vm: &Vm) -> (String, (String, VmState, u64)) {
    (vm.id.clone(), (vm.name.clone(), vm.state(), vm.generation))
}

/// What the receiver has of a host.
fn picture(book: &Book, host: &Host) -> Picture {
    let known = book.known();
    let found = known
        .fleet
        .hosts
        .values()
        .find(|of| of.hostname == host.name);
    found.map_or_else(Picture::new, |found| found.vms.values().map(of).collect())
}

/// What a host says itself.
async fn shown(host: &Host) -> Picture {
    host.api().all_vms().await.iter().map(of).collect()
}

/// Waits until the receiver's picture of both is theirs.
async fn same(book: &Book, one: &Host, two: &Host) {
    let deadline = Instant::now() + AGAIN;
    for host in [one, two] {
        loop {
            let (known, shown) = (picture(book, host), shown(host).await);
            if !shown.is_empty() && known == shown {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "of {}, the receiver has\n{known:#?}\nand it shows\n{shown:#?}",
                host.name
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
