//! Whose a domain is, by the mark that it carries.
//!
//! Ours is a domain whose metadata names its own UUID and the agent that asks.
//! Everything else is foreign: what carries nothing of kvmlet's, a copy (which has the
//! metadata of the domain that it was copied from), and another agent's. Every call on
//! a VM's domain looks at that first, so that what is foreign is neither read as a VM's
//! nor touched.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};
use super::power;
use super::xml::{self, Metadata, read, write};
use crate::model::ids::VmId;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use uuid::Uuid;
use virt::domain::Domain;
use virt::enumutil::Enum;
use virt::error::{Error as VirtError, ErrorNumber};
use virt_sys as sys;

/// What an agent marks its domains with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The node.
    pub node: Uuid,
    /// The agent on the node: two with journals of their own are two.
    pub agent: Uuid,
}

impl Owner {
    /// Namespace of the marks that are made from places.
    const NAMESPACE: Uuid = Uuid::from_u128(0x2d5c_90d1_6b1e_4c57_8f3a_71c4_0e9b_a6d3);

    /// The agent of a node that has its journal at a place.
    pub fn at(node: Uuid, journal: &Path) -> Self {
        let place = [node.as_bytes(), journal.as_os_str().as_bytes()].concat();
        Self {
            node,
            agent: Uuid::new_v5(&Self::NAMESPACE, &place),
        }
    }
}

/// Why a domain is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Foreign {
    /// It carries no metadata of kvmlet's, or none that can be read.
    Unmarked,
    /// Its metadata is that of another domain, which it was copied from.
    CopyOf(VmId),
    /// Another agent of this or another node has marked it.
    Agent(Owner),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmarked => f.write_str("it carries no metadata of kvmlet's"),
            Self::CopyOf(id) => write!(f, "it carries the metadata of the VM {id}: it is a copy"),
            Self::Agent(owner) => write!(
                f,
                "it carries the mark of another agent, of the node {}",
                owner.node
            ),
        }
    }
}

/// What a domain carries of kvmlet's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ours {
    /// Its metadata.
    pub metadata: Metadata,
    /// Whether it has our mark. One that a version before the mark made has none.
    pub marked: bool,
}

impl Owner {
    /// Whose a domain is, from our element in its metadata.
    pub(super) fn judge(self, id: VmId, element: Option<&str>) -> Result<Ours, Foreign> {
        let Some((metadata, mark)) = element.and_then(|element| read::metadata(element).ok())
        else {
            return Err(Foreign::Unmarked);
        };
        match mark {
            _ if metadata.id != id => Err(Foreign::CopyOf(metadata.id)),
            Some(owner) if owner.agent != self.agent => Err(Foreign::Agent(owner)),
            mark => Ok(Ours {
                metadata,
                marked: mark.is_some(),
            }),
        }
    }
}

impl Host {
    /// Looks a domain up and makes one call on it, if it is ours.
    pub(super) fn on_domain<T>(
        &self,
        operation: &'static str,
        id: VmId,
        body: impl FnOnce(&Domain) -> Result<T, VirtError>,
    ) -> Result<T, LibvirtError> {
        self.with_domain(operation, id, |domain| {
            self.on_found(operation, domain, body)
        })
    }

    /// Looks a domain up once for several calls, which `body` makes with
    /// [`Host::on_found`], if it is ours.
    pub(super) fn with_domain<T>(
        &self,
        operation: &'static str,
        id: VmId,
        body: impl FnOnce(&Domain) -> Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        self.with_any_domain(operation, id, |domain| {
            self.whose(operation, id, domain)?
                .map_err(|foreign| LibvirtError::refused(operation, ErrorKind::Foreign, foreign))?;
            body(domain)
        })
    }

    /// Marks a domain of ours that a version before the mark made, in its definition
    /// and in what runs. One that is marked is left as it is.
    ///
    /// # Errors
    /// `NotFound`, `Foreign`, and those of any call.
    pub fn mark(&self, id: VmId) -> Result<(), LibvirtError> {
        const WHAT: &str = "mark domain";
        self.with_domain(WHAT, id, |domain| {
            let mut places = vec![sys::VIR_DOMAIN_AFFECT_CURRENT];
            if self.on_found(WHAT, domain, power::read)?.is_active()
                && self.on_found(WHAT, domain, Domain::is_persistent)?
            {
                places.push(sys::VIR_DOMAIN_AFFECT_CONFIG);
            }
            for place in places {
                let found = self.on_found(WHAT, domain, |d| element(d, place))?;
                let Ok(ours) = self.owner().judge(id, found.as_deref()) else {
                    continue;
                };
                if ours.marked {
                    continue;
                }
                let marked = write::metadata(&ours.metadata, Some(self.owner()))
                    .map_err(|e| LibvirtError::refused(WHAT, ErrorKind::Invalid, e))?;
                self.on_found(WHAT, domain, |d| {
                    d.set_metadata(
                        constant(sys::VIR_DOMAIN_METADATA_ELEMENT),
                        Some(&marked),
                        Some(xml::METADATA_PREFIX),
                        Some(xml::METADATA_NAMESPACE),
                        place,
                    )
                })?;
            }
            Ok(())
        })
    }

    /// Whose a domain is that was just looked up or listed.
    pub(super) fn whose(
        &self,
        operation: &'static str,
        id: VmId,
        domain: &Domain,
    ) -> Result<Result<Ours, Foreign>, LibvirtError> {
        let element = self
            .on_found(operation, domain, |d| {
                element(d, sys::VIR_DOMAIN_AFFECT_CURRENT)
            })
            .map_err(super::connection::before_the_call)?;
        Ok(self.owner().judge(id, element.as_deref()))
    }
}

/// Our element in a domain's metadata as it is; `None` when there is none.
pub(super) fn element(domain: &Domain, place: u32) -> Result<Option<String>, VirtError> {
    let kind = sys::VIR_DOMAIN_METADATA_ELEMENT;
    text(domain, kind, Some(xml::METADATA_NAMESPACE), place)
}

/// A part of a domain's metadata; `None` when there is none.
pub(super) fn text(
    domain: &Domain,
    kind: u32,
    namespace: Option<&str>,
    place: u32,
) -> Result<Option<String>, VirtError> {
    match domain.metadata(constant(kind), namespace, place) {
        Err(error) if error.code() == Enum::Known(ErrorNumber::NoDomainMetadata) => Ok(None),
        answer => answer.map(Some),
    }
}

/// libvirt's constants are unsigned; some of its arguments are not.
pub(super) fn constant(value: u32) -> i32 {
    i32::try_from(value).expect("libvirt's constants fit")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: VmId = VmId(Uuid::from_u128(1));
    const OURS: Owner = Owner {
        node: Uuid::from_u128(2),
        agent: Uuid::from_u128(3),
    };

    fn element(id: VmId, owner: Option<Owner>) -> String {
        let metadata = Metadata {
            id,
            generation: 4,
            record: "{}".to_owned(),
        };
        write::metadata(&metadata, owner).unwrap()
    }

    #[test]
    fn ours_is_only_what_has_our_mark_and_its_own_id() {
        let other = Owner {
            agent: Uuid::from_u128(9),
            ..OURS
        };
        let judged =
            |element: Option<String>| OURS.judge(ID, element.as_deref()).map(|ours| ours.marked);
        assert_eq!(judged(Some(element(ID, Some(OURS)))), Ok(true));
        // As a version before the mark wrote it.
        assert_eq!(judged(Some(element(ID, None))), Ok(false));
        assert_eq!(judged(None), Err(Foreign::Unmarked));
        assert_eq!(judged(Some("<vm/>".to_owned())), Err(Foreign::Unmarked));
        assert_eq!(
            judged(Some(element(ID, Some(other)))),
            Err(Foreign::Agent(other))
        );
        let copied = VmId(Uuid::from_u128(7));
        for owner in [None, Some(OURS), Some(other)] {
            assert_eq!(
                judged(Some(element(copied, owner))),
                Err(Foreign::CopyOf(copied))
            );
        }
    }
}
