//! A domain's saved memory: whether its file is what it should be.
//!
//! libvirt writes the file's own header last, as the proof that all of it is there. A
//! file without it libvirt throws away at the next start, and boots the guest afresh.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};
use super::ffi;
use super::power;
use crate::model::ids::VmId;

/// What a domain has of saved memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavedMemory {
    /// None, or it is active.
    None,
    /// A file whose header says that it is whole.
    Whole,
    /// A file that is missing, was not finished, or is damaged: what libvirt said.
    Unreadable(String),
}

impl Host {
    /// Looks at a domain's saved memory. Four or five calls.
    ///
    /// # Errors
    /// `NotFound`, `Foreign`, and those of any call; nothing is changed.
    pub fn saved_memory(&self, id: VmId) -> Result<SavedMemory, LibvirtError> {
        const WHAT: &str = "look at saved memory";
        self.with_domain(WHAT, id, |domain| {
            if self.on_found(WHAT, domain, power::read)?.is_active()
                || !self.on_found(WHAT, domain, |d| d.has_managed_save(0))?
            {
                return Ok(SavedMemory::None);
            }
            match self.on_found(WHAT, domain, ffi::managed_save_definition) {
                // The simulated driver keeps no such definition.
                Ok(_) => Ok(SavedMemory::Whole),
                Err(error) if error.kind == ErrorKind::Unsupported => Ok(SavedMemory::Whole),
                Err(error) if error.is_connection_lost() || error.kind == ErrorKind::Busy => {
                    Err(error)
                }
                Err(error) => Ok(SavedMemory::Unreadable(error.to_string())),
            }
        })
    }

    /// Gives up the domain's saved memory; none is success.
    ///
    /// # Errors
    /// `NotFound`, `Foreign`, and those of any call. A file that somebody else has
    /// removed libvirt can't forget but by a start without it.
    pub fn discard_managed_save(&self, id: VmId) -> Result<(), LibvirtError> {
        const WHAT: &str = "discard domain's saved memory";
        self.with_domain(WHAT, id, |domain| {
            if self.on_found(WHAT, domain, |d| d.has_managed_save(0))? {
                self.on_found(WHAT, domain, |d| d.managed_save_remove(0))?;
            }
            Ok(())
        })
    }
}
