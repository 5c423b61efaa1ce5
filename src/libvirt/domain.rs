//! What can be asked of a domain, and what is known about it.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};
use super::ffi;
use super::owner::{self, Foreign, constant, text};
use super::power::{self, Power};
use super::uri::HypervisorKind;
use super::xml::{self, AttachedDisk, DomainSpec, Metadata, read, write};
use crate::model::ids::VmId;
use crate::model::time::Timestamp;
use crate::model::view::VncEndpoint;
use std::collections::HashSet;
use virt::domain::Domain;
use virt_sys as sys;
use zeroize::Zeroizing;

/// What libvirt knows about one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainState {
    /// Its UUID.
    pub id: VmId,
    /// Its name in libvirt.
    pub name: String,
    /// What it does now.
    pub power: Power,
    /// What we wrote into it, if it is ours; else why it is not.
    pub metadata: Result<Metadata, Foreign>,
    /// It has our mark. One of ours that a version before the mark made has none.
    pub marked: bool,
    /// Its memory is saved; the next start restores it.
    pub managed_save: bool,
    /// It has a definition. One without ceases to exist when it stops.
    pub persistent: bool,
}

/// What is seen of a domain: all that its VM's state follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// What it does now.
    pub power: Power,
    /// Its memory is saved; one that is active has none saved.
    pub managed_save: bool,
}

impl DomainState {
    /// Whether it is ours.
    pub const fn is_ours(&self) -> bool {
        self.metadata.is_ok()
    }

    /// The part that its VM's state follows from.
    pub const fn sighting(&self) -> Sighting {
        Sighting {
            power: self.power,
            managed_save: self.managed_save,
        }
    }
}

/// How a guest begins once it has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Begin {
    /// It runs.
    Running,
    /// Its vCPUs are paused until it is resumed.
    Paused,
}

/// What a start does with saved memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Restore {
    /// It is restored, if there is any.
    IfSaved,
    /// It is given up, if there is any.
    Never,
}

/// How a guest is asked to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShutdownMethod {
    /// Through its agent.
    Agent,
    /// By its power button.
    Acpi,
}

/// How a guest is asked to restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RebootMethod {
    /// Through its agent.
    Agent,
    /// By its power button; libvirt starts it again when it has shut down.
    Acpi,
}

impl Host {
    /// Lists every domain, active or not, ours or not.
    ///
    /// Three calls for all and two for each domain. A domain that goes away
    /// meanwhile is left out.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn list(&self) -> Result<Vec<DomainState>, LibvirtError> {
        const WHAT: &str = "list domains";
        let ids = |flags| -> Result<HashSet<VmId>, LibvirtError> {
            self.call(WHAT, |c| {
                let domains = c.list_all_domains(flags)?;
                domains.iter().map(|d| d.uuid().map(VmId)).collect()
            })
        };
        let saved = ids(sys::VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)?;
        let transient = ids(sys::VIR_CONNECT_LIST_DOMAINS_TRANSIENT)?;
        let domains = self.call(WHAT, |c| c.list_all_domains(0))?;
        let mut states = Vec::with_capacity(domains.len());
        for domain in &domains {
            // Asked on what was listed: a lookup each would double the time.
            let state = || {
                let id = self.on_found(WHAT, domain, |d| d.uuid().map(VmId))?;
                let whose = self.whose(WHAT, id, domain)?;
                Ok(DomainState {
                    id,
                    name: self.on_found(WHAT, domain, Domain::name)?,
                    power: self.on_found(WHAT, domain, power::read)?,
                    marked: whose.as_ref().is_ok_and(|ours| ours.marked),
                    metadata: whose.map(|ours| ours.metadata),
                    managed_save: saved.contains(&id),
                    persistent: !transient.contains(&id),
                })
            };
            states.extend(present(state())?);
        }
        Ok(states)
    }

    /// Reads one domain, ours or not; `None` when there is no such domain. Six calls,
    /// one of which does not leave the process.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn get(&self, id: VmId) -> Result<Option<DomainState>, LibvirtError> {
        const WHAT: &str = "read domain";
        present(self.with_any_domain(WHAT, id, |domain| {
            let whose = self.whose(WHAT, id, domain)?;
            Ok(DomainState {
                id,
                name: self.on_found(WHAT, domain, Domain::name)?,
                power: self.on_found(WHAT, domain, power::read)?,
                marked: whose.as_ref().is_ok_and(|ours| ours.marked),
                metadata: whose.map(|ours| ours.metadata),
                managed_save: self.on_found(WHAT, domain, |d| d.has_managed_save(0))?,
                persistent: self.on_found(WHAT, domain, Domain::is_persistent)?,
            })
        }))
    }

    /// Looks at one domain of ours; `None` when there is no such domain, or only a
    /// foreign one. Three calls for one that is active, else four.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn look(&self, id: VmId) -> Result<Option<Sighting>, LibvirtError> {
        const WHAT: &str = "look at domain";
        present(self.with_domain(WHAT, id, |domain| {
            let power = self.on_found(WHAT, domain, power::read)?;
            let managed_save =
                !power.is_active() && self.on_found(WHAT, domain, |d| d.has_managed_save(0))?;
            Ok(Sighting {
                power,
                managed_save,
            })
        }))
    }

    /// Reads what a domain does now: three calls.
    ///
    /// # Errors
    /// `NotFound`, and those of any call.
    pub fn power(&self, id: VmId) -> Result<Power, LibvirtError> {
        self.on_domain("read domain's state", id, power::read)
    }

    /// Reads the disks of a domain's definition, which the next start uses.
    ///
    /// # Errors
    /// `NotFound`, and those of any call; nothing is changed.
    pub fn disks(&self, id: VmId) -> Result<Vec<AttachedDisk>, LibvirtError> {
        const WHAT: &str = "read domain's disks";
        let definition = self.on_domain(WHAT, id, |d| d.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE))?;
        read::disks(&definition).map_err(|e| unreadable(WHAT, e))
    }

    /// Defines a domain, or replaces its definition. What runs is not touched:
    /// a new definition counts from the next start on. A repeat does nothing.
    ///
    /// # Errors
    /// `Invalid` when the spec can't be written or libvirt refuses it;
    /// `Unsupported`; `Foreign`; `AlreadyExists` or `Other` when another domain has
    /// the name. Nothing was changed then.
    pub fn define(&self, spec: &DomainSpec) -> Result<(), LibvirtError> {
        const WHAT: &str = "define domain";
        let definition = write::domain(spec, self.owner())
            .map_err(|e| LibvirtError::refused(WHAT, ErrorKind::Invalid, e))?;
        match self.with_domain(WHAT, spec.id, |_| Ok(())) {
            Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.call(WHAT, |c| c.define_domain_xml_flags(&definition, 0))
            .map(drop)
    }

    /// Removes a domain's definition with its saved memory, its UEFI variables
    /// and libvirt's records of snapshots; never a disk. No such domain is
    /// success.
    ///
    /// # Errors
    /// `InvalidState` when the domain is active: nothing was changed.
    pub fn undefine(&self, id: VmId) -> Result<(), LibvirtError> {
        const WHAT: &str = "undefine domain";
        // The simulated driver knows neither UEFI variables nor checkpoints.
        let flags = match self.kind() {
            HypervisorKind::Test => {
                sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            }
            HypervisorKind::System | HypervisorKind::Session | HypervisorKind::Embed { .. } => {
                sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                    | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                    | sys::VIR_DOMAIN_UNDEFINE_NVRAM
            }
        };
        let Some(power) = present(self.power(id))? else {
            return Ok(());
        };
        if power.is_active() {
            // libvirt would agree, and forget the domain once it stops.
            return Err(LibvirtError::refused(
                WHAT,
                ErrorKind::InvalidState,
                "the domain is active",
            ));
        }
        present(self.on_domain(WHAT, id, |d| d.undefine_flags(flags))).map(drop)
    }

    /// Has libvirt no longer start a domain by itself when the host comes up. Returns
    /// whether it would have. Two calls, or three.
    ///
    /// # Errors
    /// `NotFound`, `Foreign`, and those of any call.
    pub fn clear_autostart(&self, id: VmId) -> Result<bool, LibvirtError> {
        const WHAT: &str = "clear domain's autostart";
        self.with_domain(WHAT, id, |domain| {
            let set = self.on_found(WHAT, domain, Domain::autostart)?;
            if set {
                self.on_found(WHAT, domain, |d| d.set_autostart(false))?;
            }
            Ok(set)
        })
    }

    /// Starts a domain, or restores it if its memory is saved. One that is restored
    /// paused is shown as `Paused(Migration)`, one that is booted paused as
    /// `Paused(Request)`.
    ///
    /// # Errors
    /// `InvalidState` when it is active; `Other` when QEMU does not come up.
    pub fn start(&self, id: VmId, begin: Begin, restore: Restore) -> Result<(), LibvirtError> {
        let mut flags = 0;
        if begin == Begin::Paused {
            flags |= sys::VIR_DOMAIN_START_PAUSED;
        }
        if restore == Restore::Never {
            flags |= sys::VIR_DOMAIN_START_FORCE_BOOT;
        }
        self.on_domain("start domain", id, |domain| {
            match (self.kind(), begin) {
                // The simulated driver refuses flags.
                (HypervisorKind::Test, Begin::Running) => domain.create(),
                (HypervisorKind::Test, Begin::Paused) => {
                    domain.create()?;
                    domain.suspend()
                }
                _ => domain.create_with_flags(flags),
            }
        })
    }

    /// Asks the guest to shut down, once; it may not.
    ///
    /// # Errors
    /// `InvalidState` when it is off; `AgentUnavailable`; `Unsupported` when it
    /// has no channel for an agent.
    pub fn shutdown(&self, id: VmId, method: ShutdownMethod) -> Result<(), LibvirtError> {
        self.on_domain("shut domain down", id, |domain| {
            match (self.kind(), method) {
                // The simulated driver refuses flags.
                (HypervisorKind::Test, _) => domain.shutdown(),
                (_, ShutdownMethod::Agent) => {
                    domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
                }
                (_, ShutdownMethod::Acpi) => {
                    domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
                }
            }
        })
    }

    /// Asks the guest to restart, once; it may not.
    ///
    /// # Errors
    /// As for [`Host::shutdown`].
    pub fn reboot(&self, id: VmId, method: RebootMethod) -> Result<(), LibvirtError> {
        self.on_domain("reboot domain", id, |domain| match (self.kind(), method) {
            (HypervisorKind::Test, _) => domain.reboot(sys::VIR_DOMAIN_REBOOT_DEFAULT),
            (_, RebootMethod::Agent) => domain.reboot(sys::VIR_DOMAIN_REBOOT_GUEST_AGENT),
            (_, RebootMethod::Acpi) => domain.reboot(sys::VIR_DOMAIN_REBOOT_ACPI_POWER_BTN),
        })
    }

    /// Ends a domain's QEMU at once. Already off is success. Saved memory
    /// stays.
    ///
    /// # Errors
    /// `NotFound`; `Other` when QEMU can't be ended, because its storage hangs.
    pub fn destroy(&self, id: VmId) -> Result<(), LibvirtError> {
        if !self.power(id)?.is_active() {
            return Ok(());
        }
        let done = self.on_domain("force domain off", id, Domain::destroy);
        match done {
            // It may have ended by itself since; drivers differ in their codes.
            Err(error) if !error.is_connection_lost() => match self.power(id) {
                Ok(power) if power.is_active() => Err(error),
                Ok(_) => Ok(()),
                Err(_) => Err(error),
            },
            done => done,
        }
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// `InvalidState` when the domain is off.
    pub fn reset(&self, id: VmId) -> Result<(), LibvirtError> {
        self.on_domain("reset domain", id, Domain::reset)
    }

    /// Stops the domain's processors. Already paused is success with QEMU, not
    /// with the simulated driver.
    ///
    /// # Errors
    /// `InvalidState` when the domain is off.
    pub fn suspend(&self, id: VmId) -> Result<(), LibvirtError> {
        self.on_domain("suspend domain", id, Domain::suspend)
    }

    /// Lets the domain's processors run.
    ///
    /// # Errors
    /// `InvalidState` when the domain is off.
    pub fn resume(&self, id: VmId) -> Result<(), LibvirtError> {
        self.on_domain("resume domain", id, Domain::resume)
    }

    /// Saves the domain's memory and ends it. The next start restores it and
    /// lets it run, also if it was paused. Takes as long as the memory takes to
    /// write.
    ///
    /// # Errors
    /// `InvalidState` when the domain is off. It runs on after a failure.
    pub fn managed_save(&self, id: VmId) -> Result<(), LibvirtError> {
        self.on_domain("save domain", id, |d| {
            d.managed_save(sys::VIR_DOMAIN_SAVE_RUNNING)
        })
        .map(drop)
    }

    /// Writes title, description and our metadata, into the definition and
    /// into what runs. A repeat does nothing.
    ///
    /// Three calls: after a failure some may have been written.
    ///
    /// # Errors
    /// `Invalid` for text that XML can't carry: nothing was changed then.
    pub fn set_metadata(
        &self,
        id: VmId,
        metadata: &Metadata,
        title: &str,
        description: &str,
    ) -> Result<(), LibvirtError> {
        const WHAT: &str = "write domain's metadata";
        let element = write::metadata(metadata, Some(self.owner()))
            .and_then(|element| {
                xml::check_title(title)?;
                xml::check_text(description)?;
                Ok(element)
            })
            .map_err(|e| LibvirtError::refused(WHAT, ErrorKind::Invalid, e))?;
        let mut flags = sys::VIR_DOMAIN_AFFECT_CURRENT;
        if self.power(id)?.is_active() {
            flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
        }
        if self.on_domain(WHAT, id, Domain::is_persistent)? {
            flags |= sys::VIR_DOMAIN_AFFECT_CONFIG;
        }
        let some = |text| Some(text).filter(|text: &&str| !text.is_empty());
        for (kind, text) in [
            (sys::VIR_DOMAIN_METADATA_TITLE, some(title)),
            (sys::VIR_DOMAIN_METADATA_DESCRIPTION, some(description)),
        ] {
            self.on_domain(WHAT, id, |d| {
                d.set_metadata(constant(kind), text, None, None, flags)
            })?;
        }
        self.on_domain(WHAT, id, |d| {
            d.set_metadata(
                constant(sys::VIR_DOMAIN_METADATA_ELEMENT),
                Some(&element),
                Some(xml::METADATA_PREFIX),
                Some(xml::METADATA_NAMESPACE),
                flags,
            )
        })
    }

    /// Whether the domain carries exactly this title, description and metadata, in
    /// its definition and in what runs; false when there is no such domain. Two to
    /// eight calls.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn has_metadata(
        &self,
        id: VmId,
        metadata: &Metadata,
        title: &str,
        description: &str,
    ) -> Result<bool, LibvirtError> {
        const WHAT: &str = "read domain's metadata";
        let found = present(self.with_domain(WHAT, id, |domain| {
            let mut places = vec![sys::VIR_DOMAIN_AFFECT_CURRENT];
            // Writing is not one act: what runs is first, the definition second.
            if self.on_found(WHAT, domain, power::read)?.is_active()
                && self.on_found(WHAT, domain, Domain::is_persistent)?
            {
                places.push(sys::VIR_DOMAIN_AFFECT_CONFIG);
            }
            for place in places {
                let found = self.on_found(WHAT, domain, |d| owner::element(d, place))?;
                let found = self.owner().judge(id, found.as_deref());
                if found.map(|ours| ours.metadata).as_ref() != Ok(metadata) {
                    return Ok(false);
                }
                for (kind, wanted) in [
                    (sys::VIR_DOMAIN_METADATA_TITLE, title),
                    (sys::VIR_DOMAIN_METADATA_DESCRIPTION, description),
                ] {
                    let found = self.on_found(WHAT, domain, |d| text(d, kind, None, place))?;
                    if found.unwrap_or_default() != wanted {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        }))?;
        Ok(found.unwrap_or(false))
    }

    /// Where the domain's display can be reached now; `None` when it has none,
    /// or is off.
    ///
    /// # Errors
    /// `NotFound`, and those of any call; nothing is changed.
    pub fn vnc(&self, id: VmId) -> Result<Option<VncEndpoint>, LibvirtError> {
        const WHAT: &str = "read domain's display";
        let live = self.on_domain(WHAT, id, |d| d.xml_desc(0))?;
        read::vnc(&live).map_err(|e| unreadable(WHAT, e))
    }

    /// Sets the password of the running domain's display, until `valid_until`
    /// or, without it, until the domain ends. It replaces the one before, and
    /// is not written into the definition.
    ///
    /// # Errors
    /// `Invalid` for a password that RFB can't carry (1 to 8 printable ASCII
    /// characters); `InvalidState` when there is no display now. The password
    /// is never in the error.
    pub fn set_vnc_password(
        &self,
        id: VmId,
        password: &str,
        valid_until: Option<Timestamp>,
    ) -> Result<(), LibvirtError> {
        const WHAT: &str = "set display's password";
        let live = self.on_domain(WHAT, id, |d| d.xml_desc(0))?;
        let endpoint = read::vnc(&live)
            .map_err(|e| unreadable(WHAT, e))?
            .ok_or_else(|| {
                LibvirtError::refused(WHAT, ErrorKind::InvalidState, "no display is open")
            })?;
        let device = write::vnc_password(&endpoint, password, valid_until)
            .map_err(|e| LibvirtError::refused(WHAT, ErrorKind::Invalid, e))?;
        self.on_domain(WHAT, id, |d| ffi::update_device_secretly(d, &device))
            .map_err(|error| LibvirtError {
                // libvirt quotes what it can't parse.
                message: Zeroizing::new(error.message).replace(password, "***"),
                ..error
            })
    }
}

pub(super) fn unreadable(operation: &'static str, error: read::Unreadable) -> LibvirtError {
    LibvirtError::refused(operation, ErrorKind::Other, error)
}

/// Turns "no such domain" and "not ours" into `None`.
pub(super) fn present<T>(answer: Result<T, LibvirtError>) -> Result<Option<T>, LibvirtError> {
    match answer {
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Foreign) => Ok(None),
        answer => answer.map(Some),
    }
}
