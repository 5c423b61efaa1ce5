//! What a domain is defined as now, held against what it should be, and changed.

use super::connection::Host;
use super::domain::{present, unreadable};
use super::error::{ErrorKind, LibvirtError};
use super::owner;
use super::power;
use super::xml::edit::{self, Merged};
use super::xml::{AttachedDisk, DomainSpec, read, write};
use crate::model::ids::VmId;
use crate::model::nic::MacAddress;
use std::collections::{BTreeMap, HashSet};
use virt::domain::Domain;
use virt_sys as sys;
use zeroize::Zeroizing;

/// What a domain is defined as now.
pub struct Definition {
    /// Its XML, which the next start uses, with the display's password.
    xml: Zeroizing<String>,
    /// The generation that its metadata names.
    pub generation: Option<u64>,
    /// The disks that the next start uses.
    disks: Vec<AttachedDisk>,
    /// The disks that the guest has now, if it is active.
    live: Option<Vec<AttachedDisk>>,
    /// Without a definition of its own it ends with its guest.
    persistent: bool,
}

impl std::fmt::Debug for Definition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Definition")
            .field("generation", &self.generation)
            .field("disks", &self.disks)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

/// How a domain differs from what it should be. Names no folders of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// What stands in the way of a new definition: with it, the guest would have
    /// other data.
    pub of_data: Vec<String>,
    /// What a change of the definition leaves as it is.
    pub kept: Vec<String>,
}

impl Differences {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.of_data.iter().chain(&self.kept)
    }
}

impl Definition {
    /// How it differs from what it should be.
    pub fn differences(&self, expected: &DomainSpec) -> Differences {
        let mut differences = Differences::default();
        if !self.persistent {
            let gone = "its definition was removed: it is gone when its guest ends";
            differences.kept.push(gone.to_owned());
        }
        compare("", &self.disks, expected, &mut differences);
        if let Some(live) = &self.live {
            compare("of the running guest ", live, expected, &mut differences);
        }
        match self.generation {
            Some(found) if found != expected.metadata.generation => {
                differences.kept.push(format!(
                    "its definition is of generation {found}, not {}",
                    expected.metadata.generation
                ));
            }
            Some(_) | None => {}
        }
        differences
    }
}

/// Compares disks with those that should be.
fn compare(whose: &str, found: &[AttachedDisk], expected: &DomainSpec, to: &mut Differences) {
    let mut found: BTreeMap<&str, &AttachedDisk> = found
        .iter()
        .map(|disk| (disk.target.as_str(), disk))
        .collect();
    for spec in &expected.disks {
        let target = write::target_name(spec.index);
        let Some(disk) = found.remove(target.as_str()) else {
            to.of_data.push(format!("disk {target} {whose}is missing"));
            continue;
        };
        if disk.source.as_deref() != Some(spec.source.name().as_str()) {
            let now = disk.source.as_deref().unwrap_or("nothing");
            let now = now.rsplit('/').next().unwrap_or(now);
            to.of_data.push(format!(
                "disk {target} {whose}is on {now}, not on its volume"
            ));
        }
        if disk.is_copied {
            to.of_data
                .push(format!("disk {target} {whose}is being copied or merged"));
        }
    }
    for added in found.keys() {
        to.kept.push(format!("disk {added} {whose}was added"));
    }
}

impl Host {
    /// Reads what a domain is defined as, and what it has now; `None` when there is no
    /// such domain of ours. Five calls, six for one that is active.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn definition(&self, id: VmId) -> Result<Option<Definition>, LibvirtError> {
        const WHAT: &str = "read domain's definition";
        present(self.with_domain(WHAT, id, |domain| self.read_definition(WHAT, id, domain)))
    }

    fn read_definition(
        &self,
        operation: &'static str,
        id: VmId,
        domain: &Domain,
    ) -> Result<Definition, LibvirtError> {
        let not_read = |e| unreadable(operation, e);
        let active = self.on_found(operation, domain, power::read)?.is_active();
        let persistent = self.on_found(operation, domain, Domain::is_persistent)?;
        let flags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
        let xml = Zeroizing::new(self.on_found(operation, domain, |d| d.xml_desc(flags))?);
        let live = if active {
            let live = self.on_found(operation, domain, |d| d.xml_desc(0))?;
            Some(read::disks(&live).map_err(not_read)?)
        } else {
            None
        };
        let place = if persistent {
            sys::VIR_DOMAIN_AFFECT_CONFIG
        } else {
            sys::VIR_DOMAIN_AFFECT_CURRENT
        };
        let element = self.on_found(operation, domain, |d| owner::element(d, place))?;
        let ours = self.owner().judge(id, element.as_deref());
        Ok(Definition {
            generation: ours.ok().map(|ours| ours.metadata.generation),
            disks: read::disks(&xml).map_err(not_read)?,
            live,
            persistent,
            xml,
        })
    }

    /// Reads the names of all domains but those of `known`, with the hardware addresses
    /// of their interfaces, as they run and as they are defined. One call for all and two
    /// for each; one that goes away meanwhile is left out.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn addresses_but(
        &self,
        known: &HashSet<VmId>,
    ) -> Result<Vec<(String, Vec<MacAddress>)>, LibvirtError> {
        const WHAT: &str = "read other domains' addresses";
        let domains = self.call(WHAT, |c| c.list_all_domains(0))?;
        let mut found = Vec::new();
        for domain in &domains {
            let read = || {
                if known.contains(&self.on_found(WHAT, domain, |d| d.uuid().map(VmId))?) {
                    return Ok(None);
                }
                let mut macs = Vec::new();
                for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
                    let text = self.on_found(WHAT, domain, |d| d.xml_desc(flags))?;
                    macs.extend(read::macs(&text).map_err(|e| unreadable(WHAT, e))?);
                }
                let name = self.on_found(WHAT, domain, Domain::name)?;
                Ok(Some((name, macs)))
            };
            found.extend(present(read())?.flatten());
        }
        Ok(found)
    }

    /// Changes a domain's definition from what `base` says to what `next` says, and
    /// leaves the rest of it as it is. `of` is as it was read just now. What runs is
    /// not touched.
    ///
    /// # Errors
    /// As [`Host::define`]; `WouldLose` when devices would be lost that somebody has
    /// added, which the message names. Nothing was changed then.
    pub fn redefine(
        &self,
        of: &Definition,
        base: &DomainSpec,
        next: &DomainSpec,
    ) -> Result<(), LibvirtError> {
        const WHAT: &str = "change domain's definition";
        let written = |spec| {
            write::domain(spec, self.owner())
                .map(Zeroizing::new)
                .map_err(|e| LibvirtError::refused(WHAT, ErrorKind::Invalid, e))
        };
        let (base, new) = (written(base)?, written(next)?);
        let merged = edit::merge(&of.xml, &base, &new).map_err(|e| unreadable(WHAT, e))?;
        let xml = match merged {
            Merged::Changed(xml) => Zeroizing::new(xml),
            Merged::WouldLose(devices) => {
                let message = devices.join(", ");
                return Err(LibvirtError::refused(WHAT, ErrorKind::WouldLose, message));
            }
        };
        self.with_domain(WHAT, next.id, |_| Ok(()))?;
        self.call(WHAT, |c| c.define_domain_xml_flags(&xml, 0))
            .map(drop)
    }
}
