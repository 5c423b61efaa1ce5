//! Every reason that kvmlet refuses or fails with.
//!
//! One list, from which the wire's ErrorInfo, `docs/errors.md` and the
//! command-line client take what they say. A reason never changes its code.

use serde::{Deserialize, Serialize};

/// What kind of error a reason is; gRPC's codes by their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request can never succeed as it is.
    InvalidArgument,
    /// The thing it names does not exist.
    NotFound,
    /// The thing it would make exists, and differs.
    AlreadyExists,
    /// The thing's state forbids it.
    FailedPrecondition,
    /// Something else was quicker; try again.
    Aborted,
    /// There is no room.
    ResourceExhausted,
    /// Not now, and nothing was done.
    Unavailable,
    /// It was sent and nobody knows what came of it.
    Unknown,
    /// Time ran out.
    DeadlineExceeded,
    /// The caller took it back.
    Cancelled,
    /// It is not permitted: to the caller, or to kvmlet by someone that it needs.
    PermissionDenied,
    /// Nobody knows who the caller is.
    Unauthenticated,
    /// This version can't.
    Unimplemented,
    /// kvmlet's own fault.
    Internal,
}

impl Code {
    /// The name that the gRPC documentation uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident $name:literal $code:ident: $meaning:literal; $remedy:literal.)*) => {
        /// Why a request was refused or an operation failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $(
                #[doc = $meaning]
                #[serde(rename = $name)]
                $variant,
            )*
        }

        impl Reason {
            /// All of them, in the order of `docs/errors.md`.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The kind of error it is.
            pub const fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code,)* }
            }

            /// What it means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// What the caller does about it, for people.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)* }
            }
        }
    };
}

reasons! {
    MalformedId "MALFORMED_ID" InvalidArgument:
        "An id is not a UUID."; "Send 32 hexadecimal digits, with or without hyphens.".
    FieldRequired "FIELD_REQUIRED" InvalidArgument:
        "A field that is needed is absent."; "Set the named field.".
    FieldInvalid "FIELD_INVALID" InvalidArgument:
        "A field has a value that it can't have."; "Correct the named field.".
    TagMalformed "TAG_MALFORMED" InvalidArgument:
        "A system tag is not of the form that its namespace has.";
        "Write it as ceph::rootPoolName::<pool>.".
    TagUnknown "TAG_UNKNOWN" InvalidArgument:
        "A system tag has no meaning for kvmlet."; "Leave it out, or carry it in user_tags.".
    TagDuplicate "TAG_DUPLICATE" InvalidArgument:
        "A system tag is given twice."; "Give it once.".
    MacInvalid "MAC_INVALID" InvalidArgument:
        "A MAC address is malformed, zero or multicast.";
        "Give a unicast address, or none to have one derived.".
    VolumeTooSmall "VOLUME_TOO_SMALL" InvalidArgument:
        "A volume would be smaller than the image it is made from.";
        "Ask for at least the image's virtual size, or for 0.".
    SourceNotAllowed "SOURCE_NOT_ALLOWED" InvalidArgument:
        "An image source is outside what the configuration allows.";
        "Use an allowed directory or URL prefix, or extend [images].".
    SourceUnreadable "SOURCE_UNREADABLE" InvalidArgument:
        "An image source can't be read or fetched."; "Check that it exists, then import again.".
    ImageRefused "IMAGE_REFUSED" InvalidArgument:
        "An image's header has something that kvmlet does not let in.";
        "See metadata.problem; convert the image into a plain qcow2 or raw first.".
    ImageTooLarge "IMAGE_TOO_LARGE" InvalidArgument:
        "An image is larger than the configured limits."; "Raise the limits in [images], or shrink it.".
    CephPoolNotAllowed "CEPH_POOL_NOT_ALLOWED" InvalidArgument:
        "The tag names a Ceph pool that is not allowed for root volumes.";
        "Name another, or extend allowed_root_pools of the pool.".
    ChecksumMismatch "CHECKSUM_MISMATCH" InvalidArgument:
        "The source's SHA-256 is not the expected one.";
        "Check the source; nothing of it was kept.".

    VmNotFound "VM_NOT_FOUND" NotFound: "No VM has this id."; "List the VMs.".
    ImageNotFound "IMAGE_NOT_FOUND" NotFound: "No image has this id."; "Import it first.".
    VolumeNotFound "VOLUME_NOT_FOUND" NotFound: "No volume has this id."; "List the volumes.".
    OperationNotFound "OPERATION_NOT_FOUND" NotFound:
        "No operation has this id, or it ended too long ago."; "Read the VM instead.".
    PoolNotFound "POOL_NOT_FOUND" NotFound:
        "No pool has this name."; "Use one that ListPools returns.".
    CephPoolNotFound "CEPH_POOL_NOT_FOUND" NotFound:
        "The Ceph cluster has no pool of this name.";
        "Name another, or create it in the cluster.".
    OrphanNotFound "ORPHAN_NOT_FOUND" NotFound:
        "No orphan has this id; it may be gone, or be recorded by now."; "List the orphans.".
    NetworkNotFound "NETWORK_NOT_FOUND" NotFound:
        "No network with this id is configured, or it is one of libvirt's that this host does not have.";
        "Use one that GetNode returns; define one of libvirt's with virsh net-define.".
    ProfileNotFound "PROFILE_NOT_FOUND" NotFound:
        "No hardware profile with this id is configured."; "Use one that GetNode returns.".

    VmExists "VM_EXISTS" AlreadyExists:
        "A VM with this id exists and was asked for differently.";
        "Compare metadata.field; use another id for another VM.".
    ImageExists "IMAGE_EXISTS" AlreadyExists:
        "An image with this id exists and was asked for differently.";
        "Compare metadata.field; use another id for another image.".
    VolumeExists "VOLUME_EXISTS" AlreadyExists:
        "A volume with this id exists."; "Use another id.".
    MacInUse "MAC_IN_USE" AlreadyExists:
        "A VM or another domain on this host has this MAC address."; "Use another; metadata.vm_id has it.".
    RequestIdReused "REQUEST_ID_REUSED" AlreadyExists:
        "This request_id was used for another request.";
        "Compare metadata.field; use a new request_id for a new request.".

    WrongState "WRONG_STATE" FailedPrecondition:
        "The VM's state forbids it."; "Call what metadata.instead names.".
    DomainForeign "DOMAIN_FOREIGN" FailedPrecondition:
        "The domain under the VM's id is not kvmlet's: somebody else's, a copy, or another agent's.";
        "Use another id; or undefine that domain by hand if it is not needed.".
    DomainDrifted "DOMAIN_DRIFTED" FailedPrecondition:
        "The VM's domain is not as kvmlet left it, and going on could lose what was changed.";
        "Take metadata.differences back by hand (docs/operations.md, beside virsh); then try again.".
    SavedMemoryUnreadable "SAVED_MEMORY_UNREADABLE" FailedPrecondition:
        "The file of the VM's saved memory is missing, incomplete or damaged: it can't be restored. Or it was removed just now, by something else on the host: the VM is STOPPED then.";
        "Put the file back; or give the memory up, with StartVm or StopVm and discard_saved_memory. A STOPPED VM boots when it is started again.".
    StopPolicyRequired "STOP_POLICY_REQUIRED" FailedPrecondition:
        "The VM has power, and the request does not say how to stop it.";
        "Send a stop_policy, or stop the VM first.".
    ImageInUse "IMAGE_IN_USE" FailedPrecondition:
        "Volumes are made from the image, or something else on the host uses it."; "Expunge their VMs first, or end that use; metadata.volumes or metadata.used_by names them.".
    ImageNotReady "IMAGE_NOT_READY" FailedPrecondition:
        "The image is still being imported, or is lost."; "Wait for its import, or import it again.".
    OrphanForeign "ORPHAN_FOREIGN" FailedPrecondition:
        "It is not kvmlet's, and is never touched."; "Remove it by hand, if it is yours.".
    OrphanRecorded "ORPHAN_RECORDED" FailedPrecondition:
        "A record names it, and another call removes it.";
        "Call what metadata.instead names.".
    OrphanInUse "ORPHAN_IN_USE" FailedPrecondition:
        "Something on the host uses it."; "Remove what uses it first; the message names it.".
    VncDisabled "VNC_DISABLED" FailedPrecondition:
        "The VM was made without VNC."; "Create it with VNC, or use its serial console.".
    ConsoleUnsupported "CONSOLE_UNSUPPORTED" FailedPrecondition:
        "This hypervisor has no such console (the simulated host has no VNC server).";
        "Use a host with QEMU.".
    NoPreviousRoot "NO_PREVIOUS_ROOT" FailedPrecondition:
        "No former root volume is kept."; "Replace the root from an image instead.".
    VolumesMissing "VOLUMES_MISSING" FailedPrecondition:
        "Volumes that the VM needs are not in their pools.";
        "Bring them back; metadata.volumes names them.".
    PoolNotCeph "POOL_NOT_CEPH" FailedPrecondition:
        "The tag names a Ceph pool, and the VM's root is or shall be in a pool that is not Ceph.";
        "Leave the tag out, or name a pool of kind rbd.".
    VolumeInUse "VOLUME_IN_USE" FailedPrecondition:
        "Someone has the volume open as a disk or defined as one, or something stands on it.";
        "End what uses it, then try again; metadata.used_by names it.".
    KvmUnavailable "KVM_UNAVAILABLE" FailedPrecondition:
        "KVM or a CPU mode that needs it was asked for, and this host does not have it.";
        "Ask for accelerator auto or TCG.".
    NodeInMaintenance "NODE_IN_MAINTENANCE" FailedPrecondition:
        "The host is in maintenance and takes no new guests.";
        "Use another host, or end the maintenance; metadata.message has its message.".
    NotCancellable "NOT_CANCELLABLE" FailedPrecondition:
        "The operation is past its point of no return."; "Wait for its end.".
    GuestDidNotStop "GUEST_DID_NOT_STOP" FailedPrecondition:
        "The guest was asked and did not stop in time; it is left running.";
        "Ask again with more time, or stop it by force.".
    StartFailed "START_FAILED" FailedPrecondition:
        "The VM could not be started, or its guest did not come up on a new root.";
        "See metadata.problem, if it is there, and the host's log for the operation.".
    ResumeFailed "RESUME_FAILED" FailedPrecondition:
        "The guest did not go on, because what QEMU paused it for has not passed.";
        "Make room or repair the storage, then resume again.".
    SaveFailed "SAVE_FAILED" FailedPrecondition:
        "The guest's memory could not be saved; the guest goes on.";
        "Make room where libvirt saves memory (the host's log says what was wrong), then save again.".
    HypervisorRefused "HYPERVISOR_REFUSED" FailedPrecondition:
        "The hypervisor refused a request that should be possible.";
        "See the host's log for the operation.".

    VmBusy "VM_BUSY" Aborted:
        "Another operation holds the VM."; "Wait for metadata.operation_id, then try again.".
    ImageBusy "IMAGE_BUSY" Aborted:
        "Another operation holds the image."; "Wait for metadata.operation_id, then try again.".
    OrphanBusy "ORPHAN_BUSY" Aborted:
        "Another operation removes the orphan."; "Wait for metadata.operation_id.".
    NodeBusy "NODE_BUSY" Aborted:
        "Another operation begins or ends the host's maintenance.";
        "Wait for metadata.operation_id, then try again.".
    StaleGeneration "STALE_GENERATION" Aborted:
        "The VM or orphan has changed since it was read."; "Read it again and decide anew.".
    ReaderTooSlow "READER_TOO_SLOW" Aborted:
        "The reader of a stream took nothing of what was there for it, for too long.";
        "Watch again from the last revision that was read.".

    PoolFull "POOL_FULL" ResourceExhausted:
        "The pool has not enough free space."; "Make room, or use another pool.".
    ImageCacheFull "IMAGE_CACHE_FULL" ResourceExhausted:
        "The pool's images may not take more, and those that are there are in use.";
        "Raise image_cache_max of the pool, or expunge VMs whose images are in it.".
    HostMemory "HOST_MEMORY" ResourceExhausted:
        "The host has not enough memory left."; "Use another host, or stop a VM.".
    HostVcpus "HOST_VCPUS" ResourceExhausted:
        "The host has not enough processors left."; "Use another host, or stop a VM.".
    QueueFull "QUEUE_FULL" ResourceExhausted:
        "Too many requests wait already."; "Try again after the given delay.".
    TooManyCalls "TOO_MANY_CALLS" ResourceExhausted:
        "The caller, or all together, have too many calls at work, or too large ones.";
        "Wait for some of them, then try again; limits are in [limits].".
    RequestTooLarge "REQUEST_TOO_LARGE" ResourceExhausted:
        "The request is larger than requests may be.";
        "Send less, or raise limits.request_size in the configuration.".
    TooManyWatchers "TOO_MANY_WATCHERS" ResourceExhausted:
        "Too many streams of events are open already.";
        "Close one, or raise events.watchers in the configuration.".

    Starting "STARTING" Unavailable:
        "The agent has not finished its first look at the host."; "Try again shortly.".
    Stopping "STOPPING" Unavailable: "The agent is stopping."; "Try again shortly.".
    HypervisorAway "HYPERVISOR_AWAY" Unavailable:
        "libvirt can't be reached; nothing was sent."; "Try again after the given delay.".
    PoolAway "POOL_AWAY" Unavailable:
        "The pool can't be reached; nothing was done."; "Try again after the given delay.".
    JournalUnavailable "JOURNAL_UNAVAILABLE" Unavailable:
        "The journal can't be written (often: its file system is full); nothing was done.";
        "Make room on the host, then try again.".

    NotAllowed "NOT_ALLOWED" PermissionDenied:
        "The caller's role does not do for this.";
        "Have a caller whose role does make the call, or be given that role in [access].".
    PoolDenied "POOL_DENIED" PermissionDenied:
        "The Ceph cluster refuses the configured user: its key is revoked or wrong, or its capabilities don't suffice.";
        "Repair the user's key or capabilities; kvmlet notices by itself.".
    NotAuthenticated "NOT_AUTHENTICATED" Unauthenticated:
        "Nobody knows who the caller is, or its certificate is not good any more.";
        "Connect with a certificate that is valid and not revoked.".

    OutcomeUnknown "OUTCOME_UNKNOWN" Unknown:
        "It was sent, and whether it happened is not known."; "Read the VM before doing anything else.".
    DeadlinePassed "DEADLINE_PASSED" DeadlineExceeded:
        "A step took longer than it may."; "Read the VM, then try again.".
    CancelledByCaller "CANCELLED_BY_CALLER" Cancelled:
        "CancelOperation ended it."; "Nothing; see rollback_state.".
    Overtaken "OVERTAKEN" Cancelled:
        "A forced stop took the place of this graceful one."; "Follow metadata.operation_id.".
    NotYet "NOT_YET" Unimplemented:
        "This version of kvmlet does not have the call."; "Use a later version.".
    Internal "INTERNAL" Internal:
        "kvmlet itself failed."; "Report it with the operation's id and the host's log.".
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_a_name_of_its_own_in_upper_snake_case() {
        let names: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(
                name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'),
                "{name}"
            );
        }
    }

    #[test]
    fn a_reason_is_kept_by_its_wire_name() {
        let text = serde_json::to_string(&Reason::VmBusy).unwrap();
        assert_eq!(text, "\"VM_BUSY\"");
        assert_eq!(
            serde_json::from_str::<Reason>(&text).unwrap(),
            Reason::VmBusy
        );
    }
}
