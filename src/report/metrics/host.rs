//! How the host and the agent itself fare.

use super::catalogue as c;
use super::page::Page;
use crate::model::lifecycle::Resting;
use crate::model::view::View;
use crate::service::Core;
use crate::service::core::Readiness;
use crate::service::node::{self, NodeView};
use crate::service::volumes::PoolView;
use prometheus::process_collector::ProcessCollector;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

pub(super) fn fill(page: &mut Page, core: &Core) -> prometheus::Result<()> {
    let node = node::describe(core);
    host(page, core, &node);
    for condition in &node.conditions {
        page.gauge(&c::CONDITION, &[&condition.kind], condition.status);
    }
    for pool in &node.pools {
        fill_pool(page, pool);
    }
    work(page, core);
    page.add(core.operations.figures.ended.clone())?;
    page.add(core.operations.figures.seconds.clone())?;
    page.counter(&c::JOURNAL_COMMITS, &[], node.journal_commits);
    page.counter(&c::JOURNAL_BATCHES, &[], node.journal_batches);
    page.add(core.ledger.commit_seconds().clone())?;
    page.gauge(&c::EVENT_REVISION, &[], core.feed.position().revision);
    page.add(core.feed.lag().clone())?;
    page.gauge(&c::EVENT_WATCHERS, &[], core.feed.readers());
    entrance(page, core)?;
    let head = core.feed.position();
    for sink in core.sinks.list() {
        let labels = [sink.name.as_str()];
        page.gauge(&c::SINK_CONNECTED, &labels, sink.connected);
        page.gauge(&c::SINK_LAG, &labels, sink.lag(head));
    }
    page.gauge(&c::LIBVIRT_UP, &[], core.hypervisor.is_up());
    page.counter(&c::LIBVIRT_CALLS, &[], node.libvirt_calls);
    page.counter(&c::LIBVIRT_RECONNECTS, &[], core.hypervisor.reconnects());
    page.gauge(&c::FOREIGN_DOMAINS, &[], node.foreign_domains);
    page.add(ProcessCollector::for_self())
}

fn entrance(page: &mut Page, core: &Core) -> prometheus::Result<()> {
    let door = &core.door;
    page.gauge(&c::CONNECTIONS, &[], door.open_connections());
    page.add(door.figures.connections_refused.clone())?;
    page.gauge(&c::CALLS_AT_WORK, &[], door.at_work());
    page.add(door.figures.calls_refused.clone())?;
    let Some(certificates) = door.certificates() else {
        return Ok(());
    };
    for (name, expires) in [
        ("own", certificates.own),
        ("authority", certificates.authority),
    ] {
        let since = expires.and_then(|expires| expires.duration_since(UNIX_EPOCH).ok());
        if let Some(since) = since {
            page.gauge(&c::CERTIFICATE_EXPIRY, &[name], since.as_secs());
        }
    }
    Ok(())
}

fn host(page: &mut Page, core: &Core, node: &NodeView) {
    page.gauge(&c::BUILD_INFO, &[&node.kvmlet_version], true);
    let info = [
        &node.id.to_string(),
        &node.hostname,
        &node.libvirt_version,
        &node.hypervisor_version,
        &node.kernel_version,
        &node.accelerator,
    ];
    page.gauge(&c::NODE_INFO, &info.map(String::as_str), true);
    let ready = *core.readiness().borrow() == Readiness::Ready;
    page.gauge(&c::READY, &[], ready);
    page.gauge(&c::HOST_CPUS, &[], node.cpus);
    page.gauge(&c::HOST_MEMORY, &[], node.memory.get());
    page.gauge(&c::PROMISED_VCPUS, &[], node.promised.vcpus);
    page.gauge(&c::PROMISED_MEMORY, &[], node.promised.memory.get());
    for resting in Resting::ALL {
        let in_it = |view: &&Arc<View>| view.resting().is_some_and(|(state, _)| state == resting);
        let count = node.vms.iter().filter(in_it).count();
        page.gauge(&c::VMS, &[resting.as_str()], count);
    }
}

fn fill_pool(page: &mut Page, pool: &PoolView) {
    let labels = [pool.name.as_str()];
    page.gauge(&c::POOL_READY, &labels, pool.ready);
    page.gauge(&c::POOL_CAPACITY, &labels, pool.capacity.get());
    page.gauge(&c::POOL_FREE, &labels, pool.free.get());
    page.gauge(&c::POOL_PROMISED, &labels, pool.promised.get());
    for ceph in &pool.ceph_pools {
        let labels = [pool.name.as_str(), ceph.name.as_str()];
        page.gauge(&c::CEPH_POOL_CAPACITY, &labels, ceph.capacity.get());
        page.gauge(&c::CEPH_POOL_FREE, &labels, ceph.free.get());
    }
}

fn work(page: &mut Page, core: &Core) {
    page.gauge(&c::OPERATIONS_AT_WORK, &[], core.operations.live_count());
    let (waiting, limit) = core.vms.waiting();
    page.gauge(&c::REQUESTS_WAITING, &[], waiting);
    page.gauge(&c::REQUESTS_LIMIT, &[], limit);
    for lane in core.gate.lanes() {
        let labels = [lane.lane.as_str()];
        page.gauge(&c::GATE_IN_USE, &labels, lane.in_use);
        page.gauge(&c::GATE_PERMITS, &labels, lane.permits);
    }
    page.gauge(&c::GATE_ABANDONED, &[], core.gate.abandoned());
}
