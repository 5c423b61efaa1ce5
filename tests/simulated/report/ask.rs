//! What the tests ask of a daemon: changes, and how far its receivers are.

use crate::report::receiver::Book;
use crate::support::api::{Api, Start};
use crate::support::daemon::Daemon;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{Condition, ResumePoint, UpdateVmRequest, Vm};
use std::collections::BTreeMap;
use std::path::Path;

/// A VM that does not run.
pub(crate) async fn vm(daemon: &Daemon) -> String {
    let image = daemon.image().await;
    daemon.api().create(&image, Start::No).await
}

/// Gives a VM another description, which is a few events.
pub(crate) async fn describe(api: &Api, vm_id: &str, words: &str) {
    let request = UpdateVmRequest {
        vm: Some(Vm {
            id: vm_id.to_owned(),
            description: words.to_owned(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["description".to_owned()],
        }),
        ..Default::default()
    };
    let answer = api.vms().update_vm(request).await;
    api.done(answer).await;
}

/// Waits until a receiver knows of the only host what the API shows: the same VMs,
/// each the same but for what is measured, which is not told.
pub(crate) async fn same_picture(book: &Book, api: &Api) {
    let unmeasured = |mut vm: Vm| {
        for volume in &mut vm.volumes {
            volume.actual_size_bytes = 0;
        }
        (vm.id.clone(), vm)
    };
    let told = || -> BTreeMap<String, Vm> {
        let known = book.known();
        let host = known.fleet.hosts.values().next().unwrap();
        host.vms.values().cloned().map(unmeasured).collect()
    };
    until("the same picture on both sides", PATIENCE, async || {
        let shown: BTreeMap<String, Vm> = api.all_vms().await.into_iter().map(unmeasured).collect();
        (told() == shown).then_some(())
    })
    .await;
}

/// What the journal has of the sink `cp`, read from the file.
pub(crate) fn cursor(home: &Path, sink: &str) -> Option<ResumePoint> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let journal = rusqlite::Connection::open_with_flags(home.join("journal.db"), flags).unwrap();
    journal
        .query_row(
            "SELECT epoch, revision FROM cursors WHERE sink = ?1",
            [sink],
            |row| {
                Ok(ResumePoint {
                    epoch: row.get(0)?,
                    revision: row.get::<_, i64>(1)?.try_into().unwrap(),
                })
            },
        )
        .ok()
}

/// The oldest and the newest revision that the journal has.
pub(crate) fn kept(home: &Path) -> (u64, u64) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let journal = rusqlite::Connection::open_with_flags(home.join("journal.db"), flags).unwrap();
    let number = |row: &rusqlite::Row<'_>, at| {
        let number: Option<i64> = row.get(at)?;
        Ok::<u64, rusqlite::Error>(number.unwrap_or_default().try_into().unwrap())
    };
    journal
        .query_row(
            "SELECT min(revision), max(revision) FROM events",
            [],
            |row| Ok((number(row, 0)?, number(row, 1)?)),
        )
        .unwrap()
}

/// Waits until the receiver of `cp` has acknowledged everything that is in the
/// journal, durably; returns up to where.
pub(crate) async fn settled(daemon: &Daemon) -> ResumePoint {
    until("everything to be acknowledged", PATIENCE, async || {
        let (_, newest) = kept(daemon.home());
        cursor(daemon.home(), "cp").filter(|cursor| cursor.revision == newest)
    })
    .await
}

/// The condition of a sink.
pub(crate) async fn condition(api: &Api, sink: &str) -> Condition {
    let kind = format!("SinkReady/{sink}");
    let node = api.node().await;
    let found = node.conditions.into_iter().find(|c| c.r#type == kind);
    found.expect("each sink has its condition")
}
