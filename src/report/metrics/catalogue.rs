//! Every metric: its name, its labels, and what it means.
//!
//! The one list that the page, `docs/metrics.md`, the dashboard and the alerts are
//! held against. Names have their base unit at the end, counters `_total` after it.

/// What a metric's values do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up, until it begins anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts what fell into each of its buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What its values do.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident $kind:ident $name:literal [$($label:literal)*] $help:literal)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All of them, in the order of `docs/metrics.md`.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    // The agent.
    BUILD_INFO Gauge "kvmlet_build_info" ["version"]
        "Always 1; which kvmlet this is."
    READY Gauge "kvmlet_ready" []
        "Whether requests are taken: the host was compared with the records, and libvirt is there."
    CONDITION Gauge "kvmlet_condition" ["condition"]
        "Whether a condition of the node holds, such as JournalWritable."
    OPERATIONS Counter "kvmlet_operations_total" ["type" "result"]
        "Operations that have ended since the start, by how; already: there was nothing to do."
    OPERATION_DURATION Histogram "kvmlet_operation_duration_seconds" ["type"]
        "How long operations were at work, from their record to their end."
    OPERATIONS_AT_WORK Gauge "kvmlet_operations_at_work" []
        "Operations that have not ended."
    REQUESTS_WAITING Gauge "kvmlet_requests_waiting" []
        "Requests that wait to be decided on."
    REQUESTS_LIMIT Gauge "kvmlet_requests_waiting_limit" []
        "Requests that may wait; further ones are refused."
    GATE_IN_USE Gauge "kvmlet_gate_permits_in_use" ["lane"]
        "Calls to libvirt, pools and the journal that have not returned, also those that were given up."
    GATE_PERMITS Gauge "kvmlet_gate_permits" ["lane"]
        "Calls that may be at work at once."
    GATE_ABANDONED Gauge "kvmlet_gate_abandoned_calls" []
        "Calls that were given up and have not returned yet."
    JOURNAL_COMMITS Counter "kvmlet_journal_commits_total" []
        "Commits of the journal since the start, each with an fsync."
    JOURNAL_BATCHES Counter "kvmlet_journal_batches_total" []
        "Batches that became durable since the start; those that wait together share a commit."
    JOURNAL_COMMIT_DURATION Histogram "kvmlet_journal_commit_duration_seconds" []
        "How long commits of the journal took, each with its fsync."
    LIBVIRT_UP Gauge "kvmlet_libvirt_up" []
        "Whether libvirt is there, and every VM was read since it came."
    LIBVIRT_CALLS Counter "kvmlet_libvirt_calls_total" []
        "Calls made on libvirt since the start."
    LIBVIRT_RECONNECTS Counter "kvmlet_libvirt_reconnects_total" []
        "How often libvirt came back since the start."
    LIBVIRT_STATS_UP Gauge "kvmlet_libvirt_stats_up" []
        "Whether libvirt told in time what the VMs have used; if not, those metrics are missing here."
    SCRAPE_DURATION Gauge "kvmlet_scrape_duration_seconds" []
        "How long it took to gather this page."

    // Events and sinks.
    EVENT_REVISION Gauge "kvmlet_event_revision" []
        "Revision of the last change that was published."
    EVENT_LAG Histogram "kvmlet_event_lag_seconds" []
        "From a change to its event being durable and readable."
    EVENT_WATCHERS Gauge "kvmlet_event_watchers" []
        "Readers of events: callers that watch them, and sinks."
    CONNECTIONS Gauge "kvmlet_connections" []
        "Connections of callers that are open."
    CONNECTIONS_REFUSED Counter "kvmlet_connections_refused_total" ["reason"]
        "Connections that were closed at the door, by why."
    CALLS_AT_WORK Gauge "kvmlet_calls_at_work" []
        "Calls that are not answered yet, streams among them."
    CALLS_REFUSED Counter "kvmlet_calls_refused_total" ["reason"]
        "Calls that were refused before they were looked into, by reason."
    CERTIFICATE_EXPIRY Gauge "kvmlet_certificate_expiry_timestamp_seconds" ["certificate"]
        "When a certificate in use for TLS on the API expires; own, or the first of the callers' authorities."
    SINK_CONNECTED Gauge "kvmlet_sink_connected" ["sink"]
        "Whether a sink's receiver has welcomed the agent and is still there."
    SINK_LAG Gauge "kvmlet_sink_lag_events" ["sink"]
        "How many changes a sink's receiver has not acknowledged yet."

    // The host.
    NODE_INFO Gauge "kvmlet_node_info" ["node_id" "hostname" "libvirt_version" "hypervisor_version" "kernel_version" "accelerator"]
        "Always 1; what this host is."
    HOST_CPUS Gauge "kvmlet_host_cpus" []
        "Processor threads of the host."
    HOST_MEMORY Gauge "kvmlet_host_memory_bytes" []
        "Memory of the host."
    PROMISED_VCPUS Gauge "kvmlet_promised_vcpus" []
        "Virtual processors of the VMs that have power or are about to."
    PROMISED_MEMORY Gauge "kvmlet_promised_memory_bytes" []
        "Memory of the VMs that have power or are about to."
    FOREIGN_DOMAINS Gauge "kvmlet_foreign_domains" []
        "Domains on the host that are not kvmlet's."
    POOL_READY Gauge "kvmlet_pool_ready" ["pool"]
        "Whether a pool can be used."
    POOL_CAPACITY Gauge "kvmlet_pool_capacity_bytes" ["pool"]
        "Whole space of a pool."
    POOL_FREE Gauge "kvmlet_pool_free_bytes" ["pool"]
        "What was free of a pool when it was last measured."
    POOL_PROMISED Gauge "kvmlet_pool_promised_bytes" ["pool"]
        "What the volumes of a pool may grow to, all together."
    CEPH_POOL_CAPACITY Gauge "kvmlet_ceph_pool_capacity_bytes" ["pool" "ceph_pool"]
        "Whole space of a Ceph pool."
    CEPH_POOL_FREE Gauge "kvmlet_ceph_pool_free_bytes" ["pool" "ceph_pool"]
        "What was free of a Ceph pool when it was last measured."

    // The VMs.
    VMS Gauge "kvmlet_vms" ["state"]
        "VMs in each resting state."
    VM_STATE Gauge "kvmlet_vm_state" ["vm_id" "name" "state"]
        "Always 1; the resting state that a VM is in."
    VM_VCPUS Gauge "kvmlet_vm_vcpus" ["vm_id" "name"]
        "Virtual processors that a VM has."
    VM_MEMORY Gauge "kvmlet_vm_memory_bytes" ["vm_id" "name"]
        "Memory that a VM has."
    VM_CPU Counter "kvmlet_vm_cpu_seconds_total" ["vm_id" "name"]
        "Processor time of a VM since it got power, with its QEMU's own."
    VM_VCPU_WAIT Counter "kvmlet_vm_vcpu_wait_seconds_total" ["vm_id" "name"]
        "Time since it got power that a VM's virtual processors waited for one of the host."
    VM_MEMORY_BALLOON Gauge "kvmlet_vm_memory_balloon_bytes" ["vm_id" "name"]
        "Memory that the balloon leaves to the guest."
    VM_MEMORY_RESIDENT Gauge "kvmlet_vm_memory_resident_bytes" ["vm_id" "name"]
        "Memory of the host that the VM's QEMU has."
    VM_MEMORY_USABLE Gauge "kvmlet_vm_memory_usable_bytes" ["vm_id" "name"]
        "Memory that the guest says it could use without swapping."
    VM_DISK_READ_BYTES Counter "kvmlet_vm_disk_read_bytes_total" ["vm_id" "name" "device"]
        "Bytes that a VM has read from a disk since it got power."
    VM_DISK_READS Counter "kvmlet_vm_disk_reads_total" ["vm_id" "name" "device"]
        "Reads of a disk since the VM got power."
    VM_DISK_READ_TIME Counter "kvmlet_vm_disk_read_seconds_total" ["vm_id" "name" "device"]
        "Time that reads of a disk took since the VM got power, all together."
    VM_DISK_WRITTEN_BYTES Counter "kvmlet_vm_disk_written_bytes_total" ["vm_id" "name" "device"]
        "Bytes that a VM has written to a disk since it got power."
    VM_DISK_WRITES Counter "kvmlet_vm_disk_writes_total" ["vm_id" "name" "device"]
        "Writes to a disk since the VM got power."
    VM_DISK_WRITE_TIME Counter "kvmlet_vm_disk_write_seconds_total" ["vm_id" "name" "device"]
        "Time that writes to a disk took since the VM got power, all together."
    VM_DISK_FLUSHES Counter "kvmlet_vm_disk_flushes_total" ["vm_id" "name" "device"]
        "Flushes of a disk since the VM got power."
    VM_DISK_FLUSH_TIME Counter "kvmlet_vm_disk_flush_seconds_total" ["vm_id" "name" "device"]
        "Time that flushes of a disk took since the VM got power, all together."
    VM_NIC_RECEIVED_BYTES Counter "kvmlet_vm_network_receive_bytes_total" ["vm_id" "name" "mac" "interface"]
        "Bytes that came to a VM through an interface since it got power."
    VM_NIC_RECEIVED_PACKETS Counter "kvmlet_vm_network_receive_packets_total" ["vm_id" "name" "mac" "interface"]
        "Packets that came to a VM through an interface since it got power."
    VM_NIC_RECEIVED_ERRORS Counter "kvmlet_vm_network_receive_errors_total" ["vm_id" "name" "mac" "interface"]
        "Broken packets that came to a VM through an interface since it got power."
    VM_NIC_RECEIVED_DROPS Counter "kvmlet_vm_network_receive_drops_total" ["vm_id" "name" "mac" "interface"]
        "Packets for a VM that were thrown away at an interface since it got power."
    VM_NIC_SENT_BYTES Counter "kvmlet_vm_network_transmit_bytes_total" ["vm_id" "name" "mac" "interface"]
        "Bytes that a VM sent through an interface since it got power."
    VM_NIC_SENT_PACKETS Counter "kvmlet_vm_network_transmit_packets_total" ["vm_id" "name" "mac" "interface"]
        "Packets that a VM sent through an interface since it got power."
    VM_NIC_SENT_ERRORS Counter "kvmlet_vm_network_transmit_errors_total" ["vm_id" "name" "mac" "interface"]
        "Packets of a VM that could not be sent through an interface since it got power."
    VM_NIC_SENT_DROPS Counter "kvmlet_vm_network_transmit_drops_total" ["vm_id" "name" "mac" "interface"]
        "Packets of a VM that were thrown away at an interface since it got power."

    // The agent's process.
    PROCESS_CPU Counter "process_cpu_seconds_total" []
        "Total user and system CPU time spent in seconds."
    PROCESS_RESIDENT Gauge "process_resident_memory_bytes" []
        "Resident memory size in bytes."
    PROCESS_VIRTUAL Gauge "process_virtual_memory_bytes" []
        "Virtual memory size in bytes."
    PROCESS_START Gauge "process_start_time_seconds" []
        "Start time of the process since unix epoch in seconds."
    PROCESS_FDS Gauge "process_open_fds" []
        "Number of open file descriptors."
    PROCESS_FDS_LIMIT Gauge "process_max_fds" []
        "Maximum number of open file descriptors."
    PROCESS_THREADS Gauge "process_threads" []
        "Number of OS threads in the process."
}
