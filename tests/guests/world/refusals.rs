//! What can't work on this host is refused by its field, before anything is made.

use super::host::World;
use crate::bench;
use crate::support::api::id;
use crate::support::refusal::refused;
use kvmlet::proto::v1::*;
use std::collections::HashMap;

/// Makes a request into one that can't work, and names the field and the reason.
type Spoilt = (fn(&mut CreateVmRequest), &'static str, &'static str);

fn hardware(request: &mut CreateVmRequest) -> &mut Hardware {
    request.hardware.as_mut().unwrap()
}

fn machine(request: &mut CreateVmRequest, machine: &str) {
    machine.clone_into(&mut hardware(request).machine);
}

fn model(request: &mut CreateVmRequest, model: &str) {
    hardware(request).cpu_mode = CpuMode::Custom as i32;
    model.clone_into(&mut hardware(request).cpu_model);
}

/// As many annotations as are allowed, of what takes the most room on its way.
fn annotations() -> HashMap<String, String> {
    HashMap::from([("note".to_owned(), "\"".repeat((256 << 10) - 4))])
}

const SPOILT: &[Spoilt] = &[
    (
        |it| machine(it, "microvm"),
        "hardware.machine",
        "FIELD_INVALID",
    ),
    (
        |it| machine(it, "isapc"),
        "hardware.machine",
        "FIELD_INVALID",
    ),
    (
        |it| machine(it, "x-remote"),
        "hardware.machine",
        "FIELD_INVALID",
    ),
    (
        |it| model(it, "Nehalem-of-old"),
        "hardware.cpu_model",
        "FIELD_INVALID",
    ),
    (
        |it| {
            it.nics.push(NewNic {
                network_id: "nat".to_owned(),
                ..Default::default()
            });
        },
        "nics[0].network_id",
        "NETWORK_NOT_FOUND",
    ),
    (
        |it| {
            it.annotations = annotations();
            it.data_volumes.push(NewVolume {
                size_bytes: 1 << 20,
                annotations: annotations(),
                ..Default::default()
            });
        },
        "data_volumes",
        "FIELD_INVALID",
    ),
];

pub async fn what_cant_work_here_is_refused_by_its_field(world: World) {
    let api = world.api();
    let files = world.host.files();
    for (spoil, field, reason) in SPOILT {
        for validate_only in [true, false] {
            let mut request = CreateVmRequest {
                validate_only,
                vm_id: id(),
                ..bench::request(&world.deaf)
            };
            spoil(&mut request);
            let refusal = refused(api.vms().create_vm(request).await);
            assert_eq!(refusal.reason, *reason, "{refusal:?}");
            assert!(refusal.fields[0].contains(field), "{refusal:?}");
        }
    }
    assert!(api.all_vms().await.is_empty());
    let mut request = bench::request(&world.deaf);
    request.root_volume = Some(NewVolume {
        annotations: annotations(),
        ..Default::default()
    });
    let refusal = refused(api.vms().create_vm(request).await);
    assert_eq!(refusal.fields, ["root_volume"], "{refusal:?}");
    assert_eq!(world.host.files(), files);
    let offered = api.node().await.capabilities.unwrap().machine_types;
    assert!(offered.contains(&"q35".to_owned()), "{offered:?}");
    let odd = ["microvm", "isapc", "x-remote", "none"];
    assert!(
        !offered.iter().any(|it| odd.contains(&&**it)),
        "{offered:?}"
    );

    // What is within all limits works.
    let mut request = bench::request(&world.deaf);
    // QEMU's translator gives it without some of its features.
    model(&mut request, "Icelake-Server");
    request.annotations = HashMap::from([("note".to_owned(), "a".repeat((256 << 10) - 4))]);
    let guest = world.host.create(request).await;
    guest.has_said(super::host::LINE, 1).await;
    guest.remove().await;
}
