//! Reads what libvirt says in XML. Unknown elements are skipped: libvirt adds
//! some with each release.

use super::AGENT_CHANNEL;
use super::spec::Metadata;
use crate::libvirt::owner::Owner;
use crate::model::nic::MacAddress;
use crate::model::view::VncEndpoint;
use roxmltree::{Document, Node};

/// XML of libvirt's that can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum Unreadable {
    /// Not well-formed.
    #[error("libvirt's XML can't be parsed: {0}")]
    Malformed(#[from] roxmltree::Error),
    /// A part that must be there is not.
    #[error("libvirt's XML has no readable {0}")]
    Missing(&'static str),
}

/// A disk in a domain's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedDisk {
    /// What the guest calls it, such as `vda`.
    pub target: String,
    /// Its file, or the `pool/image` of an RBD disk; `None` for an empty drive.
    pub source: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// It is being copied, merged or moved now.
    pub is_copied: bool,
}

pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|n| n.has_tag_name(name))
}

/// The node at the end of a path of element names.
pub(super) fn at<'a, 'i>(node: Node<'a, 'i>, path: &[&str]) -> Option<Node<'a, 'i>> {
    path.iter().try_fold(node, |node, name| child(node, name))
}

/// Every element called `name` among a domain's devices.
pub(super) fn devices<'a, 'i>(
    document: &'a Document<'i>,
    name: &'a str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    child(document.root_element(), "devices")
        .into_iter()
        .flat_map(move |devices| devices.children().filter(move |n| n.has_tag_name(name)))
}

/// Our metadata element, with the mark in it, if it has one. libvirt returns it with or
/// without its namespace.
pub(in super::super) fn metadata(xml: &str) -> Result<(Metadata, Option<Owner>), Unreadable> {
    let document = Document::parse(xml)?;
    let vm = document.root_element();
    let id = vm.attribute("id").and_then(|id| id.parse().ok());
    let generation = vm.attribute("generation").and_then(|g| g.parse().ok());
    let owner = match (vm.attribute("node"), vm.attribute("agent")) {
        (None, None) => None,
        (node, agent) => {
            let uuid = |text: Option<&str>| text.and_then(|text| text.parse().ok());
            Some(Owner {
                node: uuid(node).ok_or(Unreadable::Missing("node"))?,
                agent: uuid(agent).ok_or(Unreadable::Missing("agent"))?,
            })
        }
    };
    let metadata = Metadata {
        id: id.ok_or(Unreadable::Missing("id"))?,
        generation: generation.ok_or(Unreadable::Missing("generation"))?,
        record: vm
            .children()
            .filter_map(|n| n.is_text().then(|| n.text()).flatten())
            .collect(),
    };
    Ok((metadata, owner))
}

pub(in super::super) fn disks(xml: &str) -> Result<Vec<AttachedDisk>, Unreadable> {
    let document = Document::parse(xml)?;
    devices(&document, "disk")
        .map(|disk| {
            let source = child(disk, "source");
            Ok(AttachedDisk {
                target: child(disk, "target")
                    .and_then(|t| t.attribute("dev"))
                    .ok_or(Unreadable::Missing("disk target"))?
                    .to_owned(),
                source: source
                    .and_then(|s| ["file", "dev", "name"].iter().find_map(|a| s.attribute(*a)))
                    .map(str::to_owned),
                serial: child(disk, "serial")
                    .and_then(|s| s.text())
                    .map(str::to_owned),
                is_copied: child(disk, "mirror").is_some(),
            })
        })
        .collect()
}

/// Every file, device or name that the disks of a domain or of a snapshot read, backing
/// files, mirrors and other places where a source may stand included.
pub(in super::super) fn sources(xml: &str) -> Result<Vec<String>, Unreadable> {
    let document = Document::parse(xml)?;
    let sources = document.descendants().filter(|node| {
        node.has_tag_name("source") && node.ancestors().any(|above| above.has_tag_name("disk"))
    });
    Ok(sources
        .filter_map(|s| ["file", "dev", "name"].iter().find_map(|a| s.attribute(*a)))
        .map(str::to_owned)
        .collect())
}

/// The hardware addresses of a domain's interfaces.
pub(in super::super) fn macs(xml: &str) -> Result<Vec<MacAddress>, Unreadable> {
    let document = Document::parse(xml)?;
    Ok(devices(&document, "interface")
        .filter_map(|nic| child(nic, "mac")?.attribute("address")?.parse().ok())
        .collect())
}

/// The display's address, while one is open: libvirt gives a domain that is
/// off the port -1.
pub(in super::super) fn vnc(xml: &str) -> Result<Option<VncEndpoint>, Unreadable> {
    let document = Document::parse(xml)?;
    let Some(display) = devices(&document, "graphics").find(|g| g.attribute("type") == Some("vnc"))
    else {
        return Ok(None);
    };
    let port = display.attribute("port").and_then(|p| p.parse().ok());
    let Some(port) = port.filter(|port| *port != 0) else {
        return Ok(None);
    };
    let address = child(display, "listen")
        .and_then(|l| l.attribute("address"))
        .or_else(|| display.attribute("listen"))
        .and_then(|a| a.parse().ok())
        .ok_or(Unreadable::Missing("display address"))?;
    Ok(Some(VncEndpoint { address, port }))
}

pub(in super::super) fn agent_connected(xml: &str) -> Result<bool, Unreadable> {
    let document = Document::parse(xml)?;
    Ok(devices(&document, "channel")
        .filter_map(|channel| child(channel, "target"))
        .any(|target| {
            target.attribute("name") == Some(AGENT_CHANNEL)
                && target.attribute("state") == Some("connected")
        }))
}
