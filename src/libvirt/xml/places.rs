//! The host's own settings in a definition: where displays listen, where consoles are
//! written to, where the files of disks are, and how their clusters are reached.
//!
//! They are the configuration's, and a definition has them as they were when it was
//! written. Read as they are there, they make a spec that differs from the wanted one in
//! nothing else, so that a change of the definition brings them up to date.

use super::read::{Unreadable, child, devices};
use super::spec::{DiskSpec, DomainSpec};
use super::write::target_name;
use crate::model::volume::{CephAccess, CephMonitor, DiskSource};
use roxmltree::{Document, Node};
use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What `expected` would be with the host's settings as they stand in a definition.
/// Files count as the same at the paths in `former`, and nowhere else.
pub(in super::super) fn placed(
    xml: &str,
    expected: &DomainSpec,
    former: &HashSet<PathBuf>,
) -> Result<DomainSpec, Unreadable> {
    let document = Document::parse(xml)?;
    let mut placed = expected.clone();
    if let (Some(vnc), Some(listen)) = (&mut placed.vnc, display(&document).and_then(listen)) {
        vnc.listen = listen;
    }
    if let Some(log) = consoles(&document)
        .filter_map(|console| child(console, "log")?.attribute("file"))
        .map(PathBuf::from)
        .find(|log| log.file_name() == expected.console_log.file_name())
    {
        placed.console_log = log;
    }
    for spec in &mut placed.disks {
        let name = target_name(spec.index);
        let disk = devices(&document, "disk").find(|disk| {
            child(*disk, "target").and_then(|target| target.attribute("dev")) == Some(&name)
        });
        if let Some(disk) = disk {
            place_disk(disk, spec, former);
        }
    }
    Ok(placed)
}

/// Gives a disk the source that it has in the definition, if it is the same one.
fn place_disk(disk: Node<'_, '_>, spec: &mut DiskSpec, former: &HashSet<PathBuf>) {
    let Some(source) = child(disk, "source") else {
        return;
    };
    match &mut spec.source {
        DiskSource::File(path) => {
            let found = source.attribute("file").map(Path::new);
            if let Some(found) = found.filter(|found| former.contains(*found)) {
                found.clone_into(path);
            }
        }
        DiskSource::Rbd(image) => {
            if source.attribute("name") == Some(&format!("{}/{}", image.pool, image.image)) {
                reach(source, &mut image.access);
            }
        }
    }
    let below = child(disk, "backingStore").and_then(|below| child(below, "source"));
    if let (Some((DiskSource::File(path), _)), Some(below)) = (&mut spec.backing, below) {
        // Which file is meant, the overlay says: by its place beside that.
        let found = below.attribute("file").map(Path::new);
        if let Some(found) = found.filter(|found| found.file_name() == path.file_name()) {
            found.clone_into(path);
        }
    }
}

/// Reads how a cluster is reached.
fn reach(source: Node<'_, '_>, access: &mut CephAccess) {
    access.monitors = source
        .children()
        .filter(|node| node.has_tag_name("host"))
        .map(|host| CephMonitor {
            host: host.attribute("name").unwrap_or_default().to_owned(),
            port: host.attribute("port").and_then(|port| port.parse().ok()),
        })
        .collect();
    let Some(auth) = child(source, "auth") else {
        return;
    };
    auth.attribute("username")
        .unwrap_or_default()
        .clone_into(&mut access.user);
    let secret = child(auth, "secret").and_then(|secret| secret.attribute("uuid"));
    access.secret = secret
        .and_then(|uuid| uuid.parse().ok())
        .unwrap_or_default();
}

/// The disks of a definition whose file has the name of the expected one in another
/// folder: by their place in `expected`, with the path.
pub(in super::super) fn elsewhere<'a>(
    disks: &'a [super::AttachedDisk],
    expected: &'a DomainSpec,
) -> impl Iterator<Item = (usize, PathBuf)> + 'a {
    expected.disks.iter().enumerate().filter_map(|(at, spec)| {
        let DiskSource::File(wanted) = &spec.source else {
            return None;
        };
        let name = target_name(spec.index);
        let disk = disks.iter().find(|disk| disk.target == name)?;
        let found = Path::new(disk.source.as_deref()?);
        (found != wanted && found.file_name() == wanted.file_name()).then(|| (at, found.to_owned()))
    })
}

/// Makes the change from `base` to `next` in the display and the consoles of `present`.
pub(super) fn edits(
    present: &Document<'_>,
    base: &Document<'_>,
    next: &Document<'_>,
) -> Vec<(Range<usize>, String)> {
    let mut edits = Vec::new();
    let (old, new) = (
        display(base).and_then(listen),
        display(next).and_then(listen),
    );
    if let (Some(found), Some(new)) = (display(present), new)
        && old != Some(new)
    {
        let child = child(found, "listen").filter(|listen| is_address(*listen));
        let attributes = [
            found.attribute_node("listen"),
            child.and_then(|listen| listen.attribute_node("address")),
        ];
        for attribute in attributes.into_iter().flatten() {
            edits.push((attribute.range_value(), new.to_string()));
        }
    }
    let log =
        |document| consoles(document).find_map(|node| child(node, "log")?.attribute_node("file"));
    if let (Some(old), Some(new)) = (log(base), log(next))
        && old.value() != new.value()
    {
        let written = &next.input_text()[new.range_value()];
        for console in consoles(present) {
            let file = child(console, "log").and_then(|log| log.attribute_node("file"));
            if let Some(file) = file.filter(|file| file.value() == old.value()) {
                edits.push((file.range_value(), written.to_owned()));
            }
        }
    }
    edits
}

fn display<'a, 'i>(document: &'a Document<'i>) -> Option<Node<'a, 'i>> {
    devices(document, "graphics").find(|display| display.attribute("type") == Some("vnc"))
}

/// The address that a display is to listen on, if one is named.
fn listen(display: Node<'_, '_>) -> Option<IpAddr> {
    let child = child(display, "listen");
    if child.is_some_and(|listen| !is_address(listen)) {
        return None;
    }
    child
        .and_then(|listen| listen.attribute("address"))
        .or_else(|| display.attribute("listen"))?
        .parse()
        .ok()
}

fn is_address(listen: Node<'_, '_>) -> bool {
    listen.attribute("type") == Some("address")
}

fn consoles<'a, 'i>(document: &'a Document<'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    devices(document, "serial").chain(devices(document, "console"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: &str = "<domain><devices><disk><source protocol='rbd' name='vms/a'>\
        <host name='10.0.0.1' port='6789'/><host name='::1'/>\
        <auth username='old'><secret type='ceph' uuid='6e6f6465-0000-0000-0000-000000000001'/></auth>\
        </source><target dev='vda'/></disk></devices></domain>";

    #[test]
    fn how_a_cluster_is_reached_is_read_as_it_stands() {
        let document = Document::parse(DISK).unwrap();
        let disk = devices(&document, "disk").next().unwrap();
        let mut access = CephAccess {
            conf: "/etc/ceph/ceph.conf".into(),
            user: "new".to_owned(),
            keyring: "/etc/ceph/keyring".into(),
            monitors: Vec::new(),
            secret: uuid::Uuid::nil(),
        };
        reach(child(disk, "source").unwrap(), &mut access);
        let monitors: Vec<(&str, Option<u16>)> = access
            .monitors
            .iter()
            .map(|monitor| (monitor.host.as_str(), monitor.port))
            .collect();
        assert_eq!(monitors, [("10.0.0.1", Some(6789)), ("::1", None)]);
        assert_eq!(access.user, "old");
        assert_eq!(access.secret.as_u128() & 0xff, 1);
    }

    #[test]
    fn a_display_is_changed_in_both_places_and_one_without_an_address_in_none() {
        let domain = |inside: &str| {
            format!("<domain><devices><graphics type='vnc' {inside}</graphics></devices></domain>")
        };
        let ours =
            |address: &str| domain(&format!("><listen type='address' address='{address}'/>"));
        let (old, new) = (ours("127.0.0.1"), ours("::1"));
        let (old, new) = (
            Document::parse(&old).unwrap(),
            Document::parse(&new).unwrap(),
        );
        let texts = |present: &str| -> Vec<String> {
            let edits = edits(&Document::parse(present).unwrap(), &old, &new);
            edits
                .into_iter()
                .map(|(range, _)| present[range].to_owned())
                .collect()
        };
        let both = domain("listen='127.0.0.1'><listen type='address' address='127.0.0.1'/>");
        assert_eq!(texts(&both), ["127.0.0.1", "127.0.0.1"]);
        assert!(texts(&domain("><listen type='socket' socket='/run/vnc'/>")).is_empty());
    }
}
