//! The journal is lost under guests that run.

use crate::bench::{Bench, request};
use crate::support::api::force;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;

const LINE: &str = "kvmlet test guest";

pub async fn guests_do_not_notice_that_the_journal_is_lost(bench: &Bench) {
    let mut host = bench.another().await;
    let chatter = bench.import(&host, "chatter").await;
    let image = bench.import(&host, "idle").await;
    let only_the_images = host.files();
    let talking = host.create(request(&chatter)).await;
    let idle = host.create(request(&image)).await;
    idle.has_said(LINE, 1).await;
    let saved = host.create(request(&image)).await;
    saved.has_said(LINE, 1).await;
    let api = host.daemon.api();
    let save = SaveVmRequest {
        vm_id: saved.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().save_vm(save).await).await;
    let (process, quiet) = (talking.qemu(), idle.qemu());
    let lines = [talking.command_line(), idle.command_line()];
    let volumes = idle.vm().await.volumes;

    host.daemon.stop().await;
    host.daemon.lose_journal();
    host.daemon.restart().await;

    let [talking, idle, saved] = [talking.id, idle.id, saved.id].map(|id| host.guest(id));
    talking.is(VmState::Running, StateReason::JournalLost).await;
    idle.is(VmState::Running, StateReason::JournalLost).await;
    saved.is(VmState::Saved, StateReason::JournalLost).await;
    assert_eq!((talking.qemu(), idle.qemu()), (process, quiet));
    assert_eq!([talking.command_line(), idle.command_line()], lines);
    assert_eq!(idle.says(LINE), 1, "it was not started again");
    let said = talking.console_bytes();
    until("the guest to go on talking", PATIENCE, async || {
        (talking.console_bytes() != said).then_some(())
    })
    .await;
    let known = idle.vm().await.volumes;
    assert_eq!(known.len(), 1);
    assert_eq!(
        (&known[0].id, &known[0].pool),
        (&volumes[0].id, &volumes[0].pool)
    );

    // Its saved memory is restored: it goes on after its line.
    saved.start().await;
    saved.is(VmState::Running, StateReason::Operation).await;
    assert_eq!(saved.says(LINE), 1, "it was not booted");
    let replace = ReplaceRootVolumeRequest {
        vm_id: idle.id.clone(),
        image_id: image,
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    let api = host.daemon.api();
    api.done(api.vms().replace_root_volume(replace).await).await;
    idle.has_said(LINE, 2).await;
    for guest in [talking, idle, saved] {
        guest.remove().await;
    }
    assert!(host.qemus().is_empty());
    assert_eq!(host.files(), only_the_images);
}
