//! Looking at the host for what no record accounts for.

use super::records::Records;
use crate::libvirt::DomainState;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, OrphanId, VmId};
use crate::model::image::ImageState;
use crate::model::orphan::{Orphan, OrphanKind, fingerprint};
use crate::model::time::Timestamp;
use crate::model::volume::VolumeAttachment;
use crate::service::core::Core;
use crate::service::fault::chain;
use crate::service::gate::Lane;
use crate::storage::{Backing, Entry, EntryKind};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tokio::fs;
use uuid::Uuid;

/// What the ids of orphans are made under.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d0b_6f0e_8a52_4c63_9d0e_1f6b_7a3c_2e94);
/// Characters of a name of somebody else's that are shown.
const SHOWN: usize = 255;

/// Lists the orphans of the host, oldest first, those of unknown age last.
///
/// # Errors
/// `HYPERVISOR_AWAY`; `POOL_AWAY` for a pool that was there a moment ago. Those
/// that can't be used are left out.
pub async fn list(core: &Core) -> Result<Vec<Orphan>, Fault> {
    let before = Records::read(core);
    let domains = core.hypervisor.call(Lane::Read, |host| host.list()).await?;
    let mut pools = Vec::new();
    for entry in core.pools.all() {
        let measured = entry.measured();
        if measured.trouble.is_some() || measured.usage.is_none() {
            continue;
        }
        pools.push(look_into(core, entry.pool.name()).await?);
    }
    let logs = console_logs(&core.config.vms.console_dir).await;
    let records = before.or(Records::read(core));

    let mut orphans = Vec::new();
    for domain in &domains {
        orphans.extend(domain_orphan(&records, domain));
    }
    for pool in &pools {
        for found in &pool.entries {
            orphans.extend(file_orphan(&records, pool, found));
        }
    }
    orphans.extend(recorded(&records));
    for (vm_id, orphan) in logs {
        if !records.has_vm(vm_id) {
            orphans.push(orphan);
        }
    }
    orphans.sort_by_key(|orphan| (age(orphan), orphan.id));
    Ok(orphans)
}

/// Where an orphan stands in the list.
pub fn age(orphan: &Orphan) -> Timestamp {
    orphan.modify_time.unwrap_or(Timestamp(u64::MAX))
}

/// What was found in a pool.
struct Contents {
    name: String,
    entries: Vec<(Entry, Option<Backing>)>,
    overlays: HashMap<ImageId, usize>,
}

async fn look_into(core: &Core, name: &str) -> Result<Contents, Fault> {
    let entries = core
        .pools
        .call(name, |pool, _| {
            let mut found = Vec::new();
            for entry in pool.entries()? {
                if pool.is_shared() && entry.kind != EntryKind::Temporary {
                    // It may be another host's.
                    continue;
                }
                let backing = match entry.kind {
                    // A header that can't be read says nothing about it.
                    EntryKind::Volume(id) => pool
                        .volume(&id.into())
                        .ok()
                        .flatten()
                        .map(|file| file.backing),
                    EntryKind::Image(_) | EntryKind::Temporary | EntryKind::Unknown => None,
                };
                found.push((entry, backing));
            }
            Ok(found)
        })
        .await?;
    let mut overlays = HashMap::new();
    for (_, backing) in &entries {
        if let Some(Backing::Image(image)) = backing {
            *overlays.entry(*image).or_insert(0) += 1;
        }
    }
    Ok(Contents {
        name: name.to_owned(),
        entries,
        overlays,
    })
}

/// What a file in a pool is, if no record accounts for it.
fn file_orphan(
    records: &Records,
    pool: &Contents,
    (entry, backing): &(Entry, Option<Backing>),
) -> Option<Orphan> {
    let orphan = |kind, evidence: String, image_id| Orphan {
        id: id(kind, &pool.name, &entry.name),
        generation: entry.generation,
        kind,
        pool: pool.name.clone(),
        name: entry.name.clone(),
        size: entry.actual_size,
        modify_time: entry.modified.map(Timestamp::from_system),
        evidence,
        image_id,
        vm_id: None,
        expire_time: None,
    };
    match entry.kind {
        EntryKind::Volume(id) if records.has_volume(&pool.name, id) => None,
        EntryKind::Volume(_) => {
            let (what, image) = match backing {
                Some(Backing::Image(image)) => {
                    (format!("an overlay on the image {image}"), Some(*image))
                }
                Some(Backing::Nothing) => ("a disk of its own".to_owned(), None),
                Some(Backing::Foreign(_)) => (
                    "an overlay on a file that kvmlet did not make".to_owned(),
                    None,
                ),
                None => ("not a readable qcow2 file".to_owned(), None),
            };
            let evidence =
                format!("its name is that of a volume, and no VM has it in this pool; {what}");
            Some(orphan(OrphanKind::Volume, evidence, image))
        }
        EntryKind::Image(id) => {
            let overlays = pool.overlays.get(&id).copied().unwrap_or(0);
            match records.image(id) {
                None => {
                    let evidence = format!(
                        "its name is that of an image, and none of this id is recorded; {overlays} volumes of the pool are overlays on it"
                    );
                    Some(orphan(OrphanKind::Image, evidence, Some(id)))
                }
                Some(image)
                    if image.pool != pool.name
                        && image.state == ImageState::Ready
                        && overlays == 0
                        && !records.needs(&pool.name, id)
                        && !records.makes(&entry.name) =>
                {
                    let evidence = format!(
                        "a copy of an image that is in pool {}; no volume of this pool is an overlay on it",
                        image.pool
                    );
                    Some(orphan(OrphanKind::CachedImage, evidence, Some(id)))
                }
                Some(_) => None,
            }
        }
        EntryKind::Temporary if records.makes(&entry.name) => None,
        EntryKind::Temporary => Some(orphan(
            OrphanKind::Temporary,
            "in the pool's folder of what is being made, and no operation makes it".to_owned(),
            None,
        )),
        EntryKind::Unknown => Some(orphan(
            OrphanKind::ForeignFile,
            "its name is none that kvmlet gives".to_owned(),
            None,
        )),
    }
}

/// What a domain is, if it is no VM's.
pub(in super::super) fn domain_orphan(records: &Records, domain: &DomainState) -> Option<Orphan> {
    // What is foreign under a VM's id is none of the VM's.
    if domain.is_ours() && records.has_vm(domain.id) {
        return None;
    }
    let name: String = domain.name.chars().take(SHOWN).collect();
    let state = format!("{:?} {:?}", domain.power.is_active(), domain.managed_save);
    let (kind, number, time, evidence) = match &domain.metadata {
        Ok(metadata) => (
            OrphanKind::Domain,
            metadata.generation,
            made(&metadata.record),
            format!(
                "it carries the metadata of the VM {}, which is in no record{}",
                metadata.id,
                if domain.power.is_active() {
                    "; it has power"
                } else {
                    ""
                }
            ),
        ),
        Err(foreign) => (OrphanKind::ForeignDomain, 0, None, foreign.to_string()),
    };
    Some(Orphan {
        id: id(kind, "", &domain.id.to_string()),
        generation: fingerprint(&[
            domain.name.as_bytes(),
            &number.to_le_bytes(),
            state.as_bytes(),
        ]),
        kind,
        pool: String::new(),
        name,
        size: Bytes::ZERO,
        modify_time: time,
        evidence,
        image_id: None,
        vm_id: Some(domain.id),
        expire_time: None,
    })
}

/// When the VM of a domain was asked for, by the record that it carries.
fn made(record: &str) -> Option<Timestamp> {
    let record: serde_json::Value = serde_json::from_str(record).ok()?;
    record["create_time"].as_u64().map(Timestamp)
}

/// What is recorded, and could go.
fn recorded(records: &Records) -> Vec<Orphan> {
    let images = records.unused_images().map(|image| Orphan {
        id: id(OrphanKind::UnusedImage, &image.pool, &image.id.to_string()),
        generation: fingerprint(&[image.imported_by.0.as_bytes()]),
        kind: OrphanKind::UnusedImage,
        pool: image.pool.clone(),
        name: image.name.clone(),
        size: image.actual_size,
        modify_time: Some(image.create_time),
        evidence: "it is recorded, and no volume is made from it".to_owned(),
        image_id: Some(image.id),
        vm_id: None,
        expire_time: None,
    });
    let roots = records.expired_roots().map(|(vm_id, volume)| {
        let until = match volume.attachment {
            VolumeAttachment::Kept { until } => Some(until),
            VolumeAttachment::Attached { .. } => None,
        };
        Orphan {
            id: id(OrphanKind::ExpiredRoot, &volume.pool, &volume.id.to_string()),
            generation: fingerprint(&[&until.map_or(0, |until| until.0).to_le_bytes()]),
            kind: OrphanKind::ExpiredRoot,
            pool: volume.pool.clone(),
            name: format!("{}", volume.id),
            size: volume.actual_size,
            modify_time: Some(volume.create_time),
            evidence: "a former root volume that was to be kept until then; removing it is tried again every 30 s".to_owned(),
            image_id: volume.image_id,
            vm_id: Some(*vm_id),
            expire_time: until,
        }
    });
    images.chain(roots).collect()
}

/// The logs in the folder of consoles, with the VMs that they are named after.
async fn console_logs(folder: &Path) -> Vec<(VmId, Orphan)> {
    let mut logs = Vec::new();
    let mut entries = match fs::read_dir(folder).await {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(error = chain(&error), "the console logs can't be listed");
            return logs;
        }
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(vm_id) = log_of(&name) else { continue };
        let Some(generation) = log_generation(&entry.path()).await else {
            continue;
        };
        let Ok(found) = entry.metadata().await else {
            continue;
        };
        logs.push((
            vm_id,
            Orphan {
                id: id(OrphanKind::ConsoleLog, "", &name),
                generation,
                kind: OrphanKind::ConsoleLog,
                pool: String::new(),
                name,
                size: Bytes(found.blocks().saturating_mul(512)),
                modify_time: found.modified().ok().map(Timestamp::from_system),
                evidence: "its name is that of the console's log of a VM that is not recorded"
                    .to_owned(),
                image_id: None,
                vm_id: Some(vm_id),
                expire_time: None,
            },
        ));
    }
    logs
}

/// The VM in the name of a console's log; virtlogd adds numbers to older ones.
fn log_of(name: &str) -> Option<VmId> {
    let (id, rest) = name.split_once(".log")?;
    let number = rest.strip_prefix('.').unwrap_or(rest);
    let known: VmId = id.parse().ok()?;
    (known.to_string() == id && number.bytes().all(|b| b.is_ascii_digit())).then_some(known)
}

/// A console's log as it is now; `None` if it is gone or no file.
pub(in super::super) async fn log_generation(path: &Path) -> Option<u64> {
    let found = fs::symlink_metadata(path).await.ok()?;
    found.is_file().then(|| {
        fingerprint(&[
            &found.ino().to_le_bytes(),
            &found.len().to_le_bytes(),
            &found.mtime().to_le_bytes(),
            &found.mtime_nsec().to_le_bytes(),
        ])
    })
}

/// The folder of consoles' logs.
pub(in super::super) fn console_folder(core: &Core) -> &Path {
    &core.config.vms.console_dir
}

/// The same for the same thing, always.
fn id(kind: OrphanKind, pool: &str, name: &str) -> OrphanId {
    let text = format!("{}\n{pool}\n{name}", kind.as_str());
    OrphanId(Uuid::new_v5(&NAMESPACE, text.as_bytes()))
}
