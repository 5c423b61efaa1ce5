//! What a domain is defined as now, held against what it should be, and changed.

use super::connection::Host;
use super::domain::{present, unreadable};
use super::error::{ErrorKind, LibvirtError};
use super::ffi;
use super::owner;
use super::power;
use super::xml::edit::{self, Merged};
use super::xml::{AttachedDisk, DomainSpec, places, read, write};
use crate::model::ids::VmId;
use crate::model::nic::MacAddress;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use virt::domain::Domain;
use virt_sys as sys;
use zeroize::Zeroizing;

/// A definition as the next start uses it, with the display's password.
const WHOLE: sys::virDomainXMLFlags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;

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

/// Paths at which a pool had its volumes before, and that stand for these volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FormerPaths(pub HashSet<PathBuf>);

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
    /// The files of its disks, as the next start uses them and as the guest has them,
    /// that have the name of the expected one in another folder: by their place in
    /// `expected.disks`, with the path.
    pub fn elsewhere(&self, expected: &DomainSpec) -> Vec<(usize, PathBuf)> {
        let live = self.live.iter().flatten();
        let live: Vec<AttachedDisk> = live.cloned().collect();
        places::elsewhere(&self.disks, expected)
            .chain(places::elsewhere(&live, expected))
            .collect()
    }

    /// How it differs from what it should be. The host's own settings (where displays
    /// listen, consoles are written to, and how a cluster is reached) are no differences,
    /// and neither are the paths in `former`: they are brought up to date.
    pub fn differences(&self, expected: &DomainSpec, former: &FormerPaths) -> Differences {
        let mut differences = Differences::default();
        if !self.persistent {
            let gone = "its definition was removed: it is gone when its guest ends";
            differences.kept.push(gone.to_owned());
        }
        let mut compare = |whose, disks: &[AttachedDisk]| {
            compare(whose, disks, expected, former, &mut differences);
        };
        compare("", &self.disks);
        if let Some(live) = &self.live {
            compare("of the running guest ", live);
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
fn compare(
    whose: &str,
    found: &[AttachedDisk],
    expected: &DomainSpec,
    former: &FormerPaths,
    to: &mut Differences,
) {
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
        let source = disk.source.as_deref();
        let is_former = source.is_some_and(|path| former.0.contains(Path::new(path)));
        if source != Some(spec.source.name().as_str()) && !is_former {
            let now = source.unwrap_or("nothing");
            let now = now.rsplit('/').next().unwrap_or(now);
            let wanted = spec.source.name();
            let what = if wanted.rsplit('/').next() == Some(now) {
                format!("{now} in another folder, where there is another file than its volume")
            } else {
                format!("{now}, not on its volume")
            };
            to.of_data
                .push(format!("disk {target} {whose}is on {what}"));
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
        let xml = Zeroizing::new(self.on_found(operation, domain, |d| d.xml_desc(WHOLE))?);
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

    /// Changes a domain's definition from what `base` says to what `next` says, brings
    /// the host's own settings up to date, and leaves the rest of it as it is. `of` is as
    /// it was read just now. What runs is not touched. Four calls.
    ///
    /// # Errors
    /// As [`Host::define`]; `WouldLose` when devices would be lost that somebody has
    /// added, which the message names; `Busy` when somebody has changed it since it was
    /// read. Nothing was changed then.
    pub fn redefine(
        &self,
        of: &Definition,
        former: &FormerPaths,
        base: &DomainSpec,
        next: &DomainSpec,
    ) -> Result<(), LibvirtError> {
        const WHAT: &str = "change domain's definition";
        let xml = match self.merged(WHAT, &of.xml, former, base, next)? {
            Merged::Changed(xml) => Zeroizing::new(xml),
            Merged::WouldLose(devices) => {
                let message = devices.join(", ");
                return Err(LibvirtError::refused(WHAT, ErrorKind::WouldLose, message));
            }
        };
        self.with_domain(WHAT, next.id, |domain| {
            let now = self.on_found(WHAT, domain, |d| d.xml_desc(WHOLE))?;
            if *Zeroizing::new(now) == **of.xml {
                return Ok(());
            }
            let message = "the definition was changed while it was read";
            Err(LibvirtError::refused(WHAT, ErrorKind::Busy, message))
        })?;
        self.call(WHAT, |c| c.define_domain_xml_flags(&xml, 0))
            .map(drop)
    }

    /// Brings the host's own settings up to date in a domain's definition, `of`, which was
    /// read just now. Returns whether something was to be changed; no call if not.
    ///
    /// # Errors
    /// As [`Host::redefine`].
    pub fn update_places(
        &self,
        of: &Definition,
        former: &FormerPaths,
        expected: &DomainSpec,
    ) -> Result<bool, LibvirtError> {
        const WHAT: &str = "change domain's definition";
        if self.is_placed(WHAT, &of.xml, former, expected)? {
            return Ok(false);
        }
        self.redefine(of, former, expected, expected)?;
        Ok(true)
    }

    /// Brings the host's own settings up to date in the definition that a domain's saved
    /// memory is restored with. Returns whether something was to be changed. Three calls,
    /// or four.
    ///
    /// # Errors
    /// `NotFound`, `Foreign`, and those of any call; nothing was changed then.
    pub fn update_saved(
        &self,
        former: &FormerPaths,
        expected: &DomainSpec,
    ) -> Result<bool, LibvirtError> {
        const WHAT: &str = "change saved definition";
        self.with_domain(WHAT, expected.id, |domain| {
            let saved = self.on_found(WHAT, domain, ffi::managed_save_definition)?;
            if self.is_placed(WHAT, &saved, former, expected)? {
                return Ok(false);
            }
            let Merged::Changed(xml) = self.merged(WHAT, &saved, former, expected, expected)?
            else {
                return Ok(false);
            };
            let xml = Zeroizing::new(xml);
            self.on_found(WHAT, domain, |d| ffi::define_managed_save(d, &xml))?;
            Ok(true)
        })
    }

    /// Whether a definition has the host's own settings as they are now.
    fn is_placed(
        &self,
        operation: &'static str,
        present: &str,
        former: &FormerPaths,
        expected: &DomainSpec,
    ) -> Result<bool, LibvirtError> {
        places::placed(present, expected, &former.0)
            .map(|placed| placed == *expected)
            .map_err(|e| unreadable(operation, e))
    }

    /// Makes the change from `base`, with the host's settings as they stand in `present`,
    /// to `next`.
    fn merged(
        &self,
        operation: &'static str,
        present: &str,
        former: &FormerPaths,
        base: &DomainSpec,
        next: &DomainSpec,
    ) -> Result<Merged, LibvirtError> {
        let not_read = |e| unreadable(operation, e);
        let written = |spec: &DomainSpec| {
            write::domain(spec, self.owner())
                .map(Zeroizing::new)
                .map_err(|e| LibvirtError::refused(operation, ErrorKind::Invalid, e))
        };
        let base = places::placed(present, base, &former.0).map_err(not_read)?;
        let (base, next) = (written(&base)?, written(next)?);
        edit::merge(present, &base, &next).map_err(not_read)
    }
}
