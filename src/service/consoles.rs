//! Access to what a guest shows: VNC passwords and pictures.
//!
//! Invariant: a VNC password exists in QEMU and in one answer, nowhere else. A
//! display is locked until one is set, and again when its time has passed.

use super::core::Core;
use super::gate::Lane;
use super::operations::now;
use super::vms::not_found;
use crate::model::fault::Fault;
use crate::model::ids::VmId;
use crate::model::lifecycle::Resting;
use crate::model::reason::Reason;
use crate::model::time::Timestamp;
use crate::model::view::View;
use rand::seq::IndexedRandom;
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// RFB's VNC authentication takes 8 characters and no more (RFC 6143, 7.2.2).
const PASSWORD_LENGTH: usize = 8;
/// Letters and digits, without those that people confuse.
const PASSWORD_LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// A VNC password. Never shown by `Debug`, and erased when dropped.
#[derive(Clone)]
pub struct VncPassword(Zeroizing<String>);

impl VncPassword {
    fn random() -> Self {
        let mut random = rand::rng();
        let letter = |_| {
            let letters = PASSWORD_LETTERS;
            char::from(*letters.choose(&mut random).expect("there are letters"))
        };
        // One that grows would leave its beginnings behind.
        let mut password = Zeroizing::new(String::with_capacity(PASSWORD_LENGTH));
        password.extend((0..PASSWORD_LENGTH).map(letter));
        Self(password)
    }

    /// The password itself, for the one answer that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for VncPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VncPassword(…)")
    }
}

/// Where and how to connect to a VM's display.
#[derive(Debug, Clone)]
pub struct VncAccess {
    /// The address it listens on.
    pub address: String,
    /// The TCP port.
    pub port: u16,
    /// The password that was just set.
    pub password: VncPassword,
    /// From then on the password opens no new session.
    pub expires: Timestamp,
}

/// Sets a fresh password on a VM's display and tells where to connect.
///
/// # Errors
/// See GetVncConsole in the API.
pub async fn vnc(core: &Arc<Core>, id: VmId) -> Result<VncAccess, Fault> {
    let view = with_power(core, id, "GetVncConsole")?;
    if view.vm.as_ref().is_some_and(|vm| !vm.vnc) {
        return Err(
            Fault::new(Reason::VncDisabled, "the VM was made without VNC").with("vm_id", id),
        );
    }
    if core.hypervisor.is_simulated() {
        return Err(Fault::new(
            Reason::ConsoleUnsupported,
            "the simulated host has no VNC server",
        ));
    }
    let password = VncPassword::random();
    // libvirt counts in whole seconds, and so does what is told.
    let seconds = now().plus(core.config.vnc.password_ttl).seconds();
    let expires = Timestamp(seconds * 1_000_000);
    let secret = password.clone();
    let endpoint = core
        .hypervisor
        .call(Lane::Control, move |host| {
            host.set_vnc_password(id, secret.expose(), Some(expires))?;
            host.vnc(id)
        })
        .await?;
    let endpoint = endpoint
        .ok_or_else(|| Fault::new(Reason::VncDisabled, "the VM's domain has no VNC display"))?;
    Ok(VncAccess {
        address: endpoint.address.to_string(),
        port: endpoint.port,
        password,
        expires,
    })
}

/// Takes a picture of a VM's first display, as PNG.
///
/// # Errors
/// See CaptureScreenshot in the API.
pub async fn screenshot(core: &Arc<Core>, id: VmId) -> Result<Vec<u8>, Fault> {
    with_power(core, id, "CaptureScreenshot")?;
    core.hypervisor
        .call(Lane::Control, move |host| host.screenshot(id))
        .await
}

fn with_power(core: &Core, id: VmId, call: &str) -> Result<Arc<View>, Fault> {
    let view = core.vms.get(id)?;
    let (resting, _) = view.resting().ok_or_else(|| not_found(id))?;
    if resting.has_power() {
        return Ok(view);
    }
    let reason = if resting == Resting::Unknown {
        Reason::HypervisorAway
    } else {
        Reason::WrongState
    };
    let fault = Fault::new(
        reason,
        format!(
            "the VM is {}, and {call} needs it RUNNING or PAUSED",
            resting.as_str()
        ),
    )
    .with("state", resting.as_str());
    Err(if reason == Reason::WrongState {
        fault.with("instead", "StartVm")
    } else {
        fault
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_has_eight_letters_and_is_not_shown() {
        let password = VncPassword::random();
        assert_eq!(password.expose().len(), 8);
        assert!(
            password
                .expose()
                .bytes()
                .all(|b| PASSWORD_LETTERS.contains(&b))
        );
        assert!(!format!("{password:?}").contains(password.expose()));
        assert_ne!(password.expose(), VncPassword::random().expose());
    }
}
