//! Events: what a watcher asks for, and what it gets.

use super::time::timestamp;
use super::{image, invalid, operation, text, unknown_value, vm};
use crate::model::event::{Cause, Change, Detail, Filter, Kind, Position, Source, What};
use crate::model::fault::Fault;
use crate::proto::v1 as wire;
use crate::proto::v1::watch_events_response::Event as Shown;
use crate::service::Core;
use crate::service::feed::{Item, Start};

/// VMs that a filter may name.
const VMS: usize = 1000;

/// Where a watcher begins, and what it wants.
pub(in super::super) fn start(given: wire::WatchEventsRequest) -> Result<Start, Fault> {
    Ok(Start {
        resume: given.resume.map(position).transpose()?,
        snapshot: given.snapshot,
        filter: given.filter.map(filter).transpose()?.unwrap_or_default(),
    })
}

fn position(given: wire::ResumePoint) -> Result<Position, Fault> {
    Ok(Position {
        epoch: text::required_id::<crate::model::ids::EpochId>("resume.epoch", &given.epoch)?.0,
        revision: given.revision,
    })
}

fn filter(given: wire::EventFilter) -> Result<Filter, Fault> {
    if given.vm_ids.len() > VMS {
        return Err(invalid("filter.vm_ids", format!("has more than {VMS}")));
    }
    let mut filter = Filter {
        labels: given.labels.into_iter().collect(),
        ..Filter::default()
    };
    for (index, id) in given.vm_ids.iter().enumerate() {
        let field = format!("filter.vm_ids[{index}]");
        filter.vm_ids.insert(text::required_id(&field, id)?);
    }
    for (index, kind) in given.kinds.iter().enumerate() {
        let field = format!("filter.kinds[{index}]");
        filter.kinds.insert(match wire::EventKind::try_from(*kind) {
            Ok(wire::EventKind::Vm) => Kind::Vm,
            Ok(wire::EventKind::Operation) => Kind::Operation,
            Ok(wire::EventKind::Image) => Kind::Image,
            Ok(wire::EventKind::Unspecified) => {
                return Err(invalid(&field, "must not be unspecified"));
            }
            Err(_) => return Err(unknown_value(&field, *kind)),
        });
    }
    Ok(filter)
}

/// A point in the sequence of events.
pub(crate) fn resume_point(at: Position) -> wire::ResumePoint {
    wire::ResumePoint {
        epoch: at.epoch.to_string(),
        revision: at.revision,
    }
}

/// What a watcher gets.
pub(crate) fn shown(item: &Item, core: &Core) -> wire::WatchEventsResponse {
    let at = |at: Position, event: Shown| wire::WatchEventsResponse {
        epoch: at.epoch.to_string(),
        revision: at.revision,
        time: None,
        cause: None,
        event: Some(event),
    };
    match item {
        Item::SnapshotBegin { at: begin, forced } => at(
            *begin,
            Shown::Snapshot(wire::SnapshotMark {
                end: false,
                forced: *forced,
            }),
        ),
        Item::SnapshotEnd(end) => at(
            *end,
            Shown::Snapshot(wire::SnapshotMark {
                end: true,
                forced: false,
            }),
        ),
        Item::Bookmark(mark) => at(*mark, Shown::Bookmark(wire::Bookmark {})),
        Item::Event(event) => wire::WatchEventsResponse {
            time: Some(timestamp(event.change.time)),
            cause: event.change.cause.map(|of| cause(of, &event.change)),
            event: what(&event.change, core),
            epoch: core.feed.position().epoch.to_string(),
            revision: event.revision,
        },
    }
}

fn what(change: &Change, core: &Core) -> Option<Shown> {
    let host = core.node.id();
    Some(match &change.what {
        What::Vm(view) => Shown::Vm(vm::shown(view, host)?),
        What::VmExpunged(id) => Shown::VmExpunged(id.to_string()),
        What::Operation(operation) => {
            Shown::Operation(operation::shown(operation, host, |image| {
                core.vms.volumes_of_image(image)
            }))
        }
        What::Image(image) => {
            Shown::Image(image::shown(image, core.vms.volumes_of_image(image.id)))
        }
        What::ImageDeleted(id) => Shown::ImageDeleted(id.to_string()),
    })
}

fn cause(cause: Cause, change: &Change) -> wire::Cause {
    wire::Cause {
        kind: match cause.source {
            Source::Operation => wire::CauseKind::Operation,
            Source::Guest => wire::CauseKind::Guest,
            Source::Host => wire::CauseKind::Host,
            Source::Agent => wire::CauseKind::Agent,
        }
        .into(),
        operation_id: cause.operation.map(|id| id.to_string()).unwrap_or_default(),
        detail: detail(cause.detail).into(),
        caller: change.caller.as_deref().unwrap_or_default().to_owned(),
    }
}

const fn detail(detail: Option<Detail>) -> wire::CauseDetail {
    match detail {
        None => wire::CauseDetail::Unspecified,
        Some(Detail::PowerOff) => wire::CauseDetail::PowerOff,
        Some(Detail::Reboot) => wire::CauseDetail::Reboot,
        Some(Detail::Crash) => wire::CauseDetail::Crash,
        Some(Detail::Start) => wire::CauseDetail::Start,
        Some(Detail::StartFailed) => wire::CauseDetail::StartFailed,
        Some(Detail::Destroy) => wire::CauseDetail::Destroy,
        Some(Detail::Pause) => wire::CauseDetail::Pause,
        Some(Detail::Resume) => wire::CauseDetail::Resume,
        Some(Detail::Save) => wire::CauseDetail::Save,
        Some(Detail::Undefine) => wire::CauseDetail::Undefine,
        Some(Detail::IoError) => wire::CauseDetail::IoError,
        Some(Detail::NoSpace) => wire::CauseDetail::NoSpace,
        Some(Detail::HypervisorAway) => wire::CauseDetail::HypervisorAway,
        Some(Detail::HypervisorBack) => wire::CauseDetail::HypervisorBack,
        Some(Detail::Drift) => wire::CauseDetail::Drift,
        Some(Detail::HostShutdown) => wire::CauseDetail::HostShutdown,
        Some(Detail::HostPowerLoss) => wire::CauseDetail::HostPowerLoss,
        Some(Detail::HostRestarted) => wire::CauseDetail::HostRestarted,
    }
}
