//! The keys of Ceph users, as libvirt needs them to open volumes.
//!
//! libvirt keeps them in memory only and shows them to nobody; so it is given them
//! with each connection, before each start, and when a pool is measured: a key that
//! was changed in its file is known from then on. The value goes from the file to
//! libvirt and nowhere else.

use super::core::Core;
use super::fault::chain;
use super::gate::Lane;
use crate::libvirt::ErrorKind;
use crate::model::fault::Fault;
use crate::model::reason::Reason;

/// Gives libvirt the keys of all pools that have one. What fails is logged: a guest
/// that needs it is refused its start with the reason.
pub async fn give_all(core: &Core) {
    for entry in core.pools.all() {
        if !entry.pool.is_shared() || entry.measured().trouble.is_some() {
            // Without its pool no guest can be started.
            continue;
        }
        if let Err(fault) = give(core, entry.pool.name()).await {
            let pool = entry.pool.name();
            tracing::warn!(pool, error = chain(&fault), "libvirt has no key for a pool");
        }
    }
}

/// Gives libvirt the key of a pool, if it has one.
///
/// # Errors
/// As any call to a pool; `HYPERVISOR_AWAY`, `HYPERVISOR_REFUSED`.
pub async fn give(core: &Core, pool: &str) -> Result<(), Fault> {
    if core.hypervisor.is_simulated() {
        // Its guests open nothing.
        return Ok(());
    }
    let Some(secret) = core.pools.call(pool, |pool, _| pool.secret()).await? else {
        return Ok(());
    };
    let given = core
        .hypervisor
        .try_call(Lane::Control, move |host| {
            host.set_ceph_secret(secret.id, &secret.usage, &secret.value)
        })
        .await?;
    given.map_err(|error| {
        tracing::warn!(pool, error = chain(&error), "libvirt call failed");
        let words = match error.kind {
            ErrorKind::Unsupported => "this libvirt driver keeps no secrets, which Ceph needs",
            _ => "libvirt does not take the key of the pool; the host's log says why",
        };
        Fault::new(Reason::HypervisorRefused, words).with("pool", pool)
    })
}
