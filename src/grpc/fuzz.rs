//! For fuzzing: any bytes as any call's request, read as its handler reads it.
//!
//! A refusal of the form must be one that callers are promised: bad input, with
//! paths that begin with a field of the request. What is taken is dropped: nothing
//! is asked of the service.

use super::convert::{
    Asked, create, event, host, image, operation, orphan, page, power, root, text, time, update, vm,
};
use super::status;
use crate::model::event::Position;
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, OperationId, VmId, VolumeId};
use crate::model::request::Caller;
use crate::proto::v1 as wire;
use prost::Message;
use prost_types::FileDescriptorSet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;
use uuid::Uuid;

/// How a request is read; `None`: the bytes are not one.
type Read = fn(&[u8]) -> Option<Result<(), Fault>>;

/// Every call, by its service and name. New ones come last, because the corpus
/// names them by their place.
const CALLS: &[(&str, Read)] = &[
    ("VmService/CreateVm", |b| asked(b, create::create_vm)),
    ("VmService/GetVm", |b| {
        read(b, |r: wire::GetVmRequest| vm_id(&r.vm_id))
    }),
    ("VmService/ListVms", |b| read(b, list_vms)),
    ("VmService/UpdateVm", |b| asked(b, update::update_vm)),
    ("VmService/DeleteVm", |b| asked(b, power::delete_vm)),
    ("VmService/RecoverVm", |b| asked(b, power::recover_vm)),
    ("VmService/ExpungeVm", |b| asked(b, power::expunge_vm)),
    ("VmService/StartVm", |b| asked(b, power::start_vm)),
    ("VmService/StopVm", |b| asked(b, power::stop_vm)),
    ("VmService/RebootVm", |b| asked(b, power::reboot_vm)),
    ("VmService/ResetVm", |b| asked(b, power::reset_vm)),
    ("VmService/PauseVm", |b| asked(b, power::pause_vm)),
    ("VmService/ResumeVm", |b| asked(b, power::resume_vm)),
    ("VmService/SaveVm", |b| asked(b, power::save_vm)),
    ("VmService/SetVmPowerState", |b| {
        asked(b, power::set_vm_power_state)
    }),
    ("VmService/ReplaceRootVolume", |b| {
        asked(b, root::replace_root)
    }),
    ("VmService/RevertRootVolume", |b| {
        asked(b, root::revert_root)
    }),
    ("ImageService/ImportImage", |b| {
        read(b, |r| image::import_image(r, caller()).map(drop))
    }),
    ("ImageService/GetImage", |b| {
        read(b, |r: wire::GetImageRequest| {
            text::required_id::<ImageId>("image_id", &r.image_id).map(drop)
        })
    }),
    ("ImageService/ListImages", |b| {
        read(b, |r: wire::ListImagesRequest| {
            cut(r.page_size, &r.page_token)
        })
    }),
    ("ImageService/DeleteImage", |b| {
        read(b, |r| image::delete_image(&r, caller()).map(drop))
    }),
    ("VolumeService/GetVolume", |b| {
        read(b, |r: wire::GetVolumeRequest| {
            text::required_id::<VolumeId>("volume_id", &r.volume_id).map(drop)
        })
    }),
    ("VolumeService/ListVolumes", |b| read(b, list_volumes)),
    ("VolumeService/ListPools", |b| {
        read(b, |wire::ListPoolsRequest {}| Ok(()))
    }),
    ("ConsoleService/GetVncConsole", |b| {
        read(b, |r: wire::GetVncConsoleRequest| vm_id(&r.vm_id))
    }),
    ("ConsoleService/CaptureScreenshot", |b| {
        read(b, |r: wire::CaptureScreenshotRequest| vm_id(&r.vm_id))
    }),
    ("OperationService/GetOperation", |b| {
        read(b, |r: wire::GetOperationRequest| {
            operation_id(&r.operation_id)
        })
    }),
    ("OperationService/ListOperations", |b| {
        read(b, |r| operation::query(&r).map(drop))
    }),
    ("OperationService/WaitOperation", |b| {
        read(b, |r: wire::WaitOperationRequest| {
            operation_id(&r.operation_id)?;
            let allowed = Duration::ZERO..=Duration::from_secs(600);
            time::duration("timeout", r.timeout, &allowed).map(drop)
        })
    }),
    ("OperationService/CancelOperation", |b| {
        read(b, |r: wire::CancelOperationRequest| {
            operation_id(&r.operation_id)
        })
    }),
    ("NodeService/GetNode", |b| {
        read(b, |wire::GetNodeRequest {}| Ok(()))
    }),
    ("NodeService/WatchEvents", |b| {
        read(b, |r| event::start(r).map(drop))
    }),
    ("NodeService/ListOrphans", |b| {
        read(b, |r| orphan::list(&r).map(drop))
    }),
    ("NodeService/DeleteOrphan", |b| {
        read(b, |r| orphan::delete(&r, caller()).map(drop))
    }),
    ("NodeService/SetMaintenance", |b| {
        read(b, |r| host::set_maintenance(r, caller()).map(drop))
    }),
];

/// The fields of each call's request, by the call.
static FIELDS: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(wire::DESCRIPTORS).expect("build.rs wrote them");
    let files: Vec<_> = files
        .file
        .iter()
        .filter(|file| file.package() == "kvmlet.v1")
        .collect();
    let messages: BTreeMap<_, BTreeSet<_>> = files
        .iter()
        .flat_map(|file| &file.message_type)
        .map(|message| {
            let fields = message.field.iter().map(|field| field.name().to_owned());
            (format!(".kvmlet.v1.{}", message.name()), fields.collect())
        })
        .collect();
    let services = files.iter().flat_map(|file| &file.service);
    services
        .flat_map(|service| service.method.iter().map(move |call| (service, call)))
        .map(|(service, call)| {
            let name = format!("{}/{}", service.name(), call.name());
            (name, messages[call.input_type()].clone())
        })
        .collect()
});

/// Reads bytes of which the first says which call the others ask.
///
/// # Panics
/// When a request is refused in a way that callers are not promised.
pub fn convert(bytes: &[u8]) {
    let Some((&first, request)) = bytes.split_first() else {
        return;
    };
    let (name, read) = CALLS[usize::from(first) % CALLS.len()];
    let Some(Err(fault)) = read(request) else {
        return;
    };
    let status = status::refusal(&fault);
    assert_eq!(
        status.code(),
        tonic::Code::InvalidArgument,
        "{name}: {fault:?}"
    );
    assert!(!fault.fields.is_empty(), "{name}: {fault:?}");
    for field in &fault.fields {
        let first = field.field.split(['.', '[']).next().unwrap_or_default();
        assert!(FIELDS[name].contains(first), "{name}: {fault:?}");
    }
    assert!(!fault.message.contains(['\0', '\n']), "{name}: {fault:?}");
}

fn read<M: Message + Default>(
    bytes: &[u8],
    convert: impl FnOnce(M) -> Result<(), Fault>,
) -> Option<Result<(), Fault>> {
    M::decode(bytes).ok().map(convert)
}

fn asked<M: Message + Default>(
    bytes: &[u8],
    convert: fn(M, Caller) -> Result<Asked, Fault>,
) -> Option<Result<(), Fault>> {
    read(bytes, |request| convert(request, caller()).map(drop))
}

fn caller() -> Caller {
    Caller::own("uid:0")
}

fn vm_id(given: &str) -> Result<(), Fault> {
    text::required_id::<VmId>("vm_id", given).map(drop)
}

fn operation_id(given: &str) -> Result<(), Fault> {
    text::required_id::<OperationId>("operation_id", given).map(drop)
}

/// A page of a list of two things.
fn cut(size: u32, token: &str) -> Result<(), Fault> {
    let all = [1, u128::MAX].map(Uuid::from_u128);
    page::cut(&all, |id| *id, size, token, |_| wire::Screenshot::default()).map(drop)
}

fn list_vms(given: wire::ListVmsRequest) -> Result<(), Fault> {
    let at = Position {
        epoch: Uuid::nil(),
        revision: 1,
    };
    let (token, _) = page::list_token(&given.page_token, at)?;
    vm::States::read(&given.states, given.show_deleted)?;
    cut(given.page_size, token)
}

fn list_volumes(given: wire::ListVolumesRequest) -> Result<(), Fault> {
    text::id::<VmId>("vm_id", &given.vm_id)?;
    text::id::<ImageId>("image_id", &given.image_id)?;
    cut(given.page_size, &given.page_token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_call_is_read_once() {
        let named: Vec<_> = CALLS.iter().map(|&(name, _)| name.to_owned()).collect();
        let once: BTreeSet<_> = named.iter().cloned().collect();
        assert_eq!(named.len(), once.len());
        assert_eq!(once, FIELDS.keys().cloned().collect());
    }

    #[test]
    fn the_corpus_is_read_and_asks_every_call() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/request");
        let mut met = BTreeSet::new();
        for entry in std::fs::read_dir(folder).expect("the corpus") {
            let bytes = std::fs::read(entry.expect("an entry").path()).expect("a request");
            convert(&bytes);
            met.extend(bytes.first().map(|first| usize::from(*first) % CALLS.len()));
        }
        assert_eq!(met.len(), CALLS.len());
    }
}
