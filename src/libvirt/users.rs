//! Which files and images the domains of the host name as disks, whoever's they are.

use super::connection::Host;
use super::domain::{present, unreadable};
use super::error::{ErrorKind, LibvirtError};
use super::xml::read;
use crate::model::ids::VmId;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt_sys as sys;

/// The disks of one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDisks {
    /// Its UUID.
    pub id: VmId,
    /// Its name in libvirt.
    pub name: String,
    /// It is ours.
    pub ours: bool,
    /// The files, devices or names behind its disks, backing files included.
    pub sources: Vec<String>,
}

impl Host {
    /// Reads which disks each domain of the host has, ours or not: in its
    /// definition, while it is active as it runs, and in its snapshots, each with the
    /// backing files that libvirt names. One call for all, six for each domain, and one
    /// for each snapshot; what goes away meanwhile is left out.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn all_disks(&self) -> Result<Vec<DomainDisks>, LibvirtError> {
        const WHAT: &str = "read all domains' disks";
        let domains = self.call(WHAT, |c| c.list_all_domains(0))?;
        let mut all = Vec::with_capacity(domains.len());
        for domain in &domains {
            let read = || {
                let mut sources = Vec::new();
                // Of one that is off, both are its definition.
                for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
                    let text = self.on_found(WHAT, domain, |d| d.xml_desc(flags))?;
                    sources.extend(read::sources(&text).map_err(|e| unreadable(WHAT, e))?);
                }
                let snapshots = self.on_found(WHAT, domain, |d| d.list_all_snapshots(0));
                for snapshot in snapshots.or_else(none_of_that)? {
                    // A domain that is put back to it has these disks again.
                    let text = present(self.on_found(WHAT, domain, |_| snapshot.xml_desc(0)))?;
                    let found = text.map(|text| read::sources(&text)).transpose();
                    sources.extend(
                        found
                            .map_err(|e| unreadable(WHAT, e))?
                            .into_iter()
                            .flatten(),
                    );
                }
                sources.sort();
                sources.dedup();
                let id = self.on_found(WHAT, domain, |d| d.uuid().map(VmId))?;
                Ok(DomainDisks {
                    id,
                    ours: self.whose(WHAT, id, domain)?.is_ok(),
                    name: self.on_found(WHAT, domain, Domain::name)?,
                    sources,
                })
            };
            all.extend(present(read())?);
        }
        Ok(all)
    }
}

/// A driver that knows no snapshots has none.
fn none_of_that(error: LibvirtError) -> Result<Vec<DomainSnapshot>, LibvirtError> {
    if error.kind == ErrorKind::Unsupported {
        Ok(Vec::new())
    } else {
        Err(error)
    }
}
