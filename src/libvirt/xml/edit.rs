//! Changes a definition and leaves in it what is not ours to change.
//!
//! A change is the difference between two definitions that we would write, `base` and
//! `next`. It is made in the definition that libvirt has: an element that is the same
//! in both stays as it is there, whatever that is; so do all elements that neither has.
//! So what libvirt chose (addresses, controllers, firmware) and what an administrator
//! added survive. Only another board makes the old addresses void: then the definition
//! is written anew, and refused if something would be lost by that.

use super::METADATA_NAMESPACE;
use super::places;
use super::read::{Unreadable, child, devices};
use roxmltree::{Document, Node};
use std::collections::BTreeSet;
use std::ops::Range;

/// Kinds of devices that libvirt adds by itself, or that come and go with the board.
const BY_LIBVIRT: &[&str] = &[
    "controller",
    "input",
    "audio",
    "hub",
    "watchdog",
    "panic",
    "video",
    "emulator",
];

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Merged {
    /// The definition with the change in it.
    Changed(String),
    /// These devices would be lost.
    WouldLose(Vec<String>),
}

/// Makes the change from `base` to `next` in the definition `present`.
pub(in super::super) fn merge(present: &str, base: &str, next: &str) -> Result<Merged, Unreadable> {
    let here = Document::parse(present)?;
    let (from, to) = (Document::parse(base)?, Document::parse(next)?);
    if board(&from) != board(&to) {
        let lost = added(&here, &from);
        return Ok(if lost.is_empty() {
            Merged::Changed(next.to_owned())
        } else {
            Merged::WouldLose(lost)
        });
    }
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let domain = here.root_element();
    let end = child(domain, "devices").ok_or(Unreadable::Missing("devices"))?;
    let names: BTreeSet<&str> = elements(from.root_element())
        .chain(elements(to.root_element()))
        .map(|node| node.tag_name().name())
        .filter(|name| !matches!(*name, "name" | "uuid" | "metadata" | "devices"))
        .collect();
    for name in names {
        let old = child(from.root_element(), name).map(text);
        let new = child(to.root_element(), name).map(text);
        if old == new {
            continue;
        }
        if name == "memory"
            && let Some(balloon) = child(domain, "currentMemory")
        {
            // libvirt's note of the former size: kept, the guest would have no more.
            edits.push((balloon.range(), String::new()));
        }
        match (child(domain, name), new) {
            (Some(found), new) => edits.push((found.range(), new.unwrap_or_default().to_owned())),
            (None, Some(new)) => edits.push((before(end), new.to_owned())),
            (None, None) => {}
        }
    }
    edits.extend(metadata(domain, &to, before(end))?);
    edits.extend(disks(&here, &from, &to, end)?);
    edits.extend(places::edits(&here, &from, &to));
    // From the end, so that what is before keeps its place.
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let mut changed = present.to_owned();
    for (range, text) in edits.into_iter().rev() {
        changed.replace_range(range, &text);
    }
    Ok(Merged::Changed(changed))
}

/// What the addresses of all devices depend on.
fn board<'a>(document: &'a Document<'_>) -> (Option<&'a str>, Option<&'a str>) {
    let domain = document.root_element();
    (domain.attribute("type"), child(domain, "os").map(text))
}

/// The devices of a definition that one of ours does not have.
fn added(present: &Document<'_>, ours: &Document<'_>) -> Vec<String> {
    let kinds: BTreeSet<&str> = child(ours.root_element(), "devices")
        .into_iter()
        .flat_map(elements)
        .map(|device| device.tag_name().name())
        .collect();
    let named =
        |document: &Document<'_>, kind: &str, part: &str, attribute: &str| -> BTreeSet<String> {
            devices(document, kind)
                .filter_map(|device| child(device, part)?.attribute(attribute).map(str::to_owned))
                .collect()
        };
    let mut lost = Vec::new();
    for (kind, part, attribute) in [("disk", "target", "dev"), ("interface", "mac", "address")] {
        let known = named(ours, kind, part, attribute);
        let found = named(present, kind, part, attribute);
        lost.extend(
            found
                .difference(&known)
                .map(|name| format!("{kind} {name}")),
        );
    }
    for device in child(present.root_element(), "devices")
        .into_iter()
        .flat_map(elements)
    {
        let kind = device.tag_name().name();
        if !kinds.contains(kind) && !BY_LIBVIRT.contains(&kind) {
            lost.push(kind.to_owned());
        }
    }
    lost
}

/// Puts our metadata in the place of what we had there.
fn metadata(
    domain: Node<'_, '_>,
    next: &Document<'_>,
    otherwise: Range<usize>,
) -> Result<Vec<(Range<usize>, String)>, Unreadable> {
    let ours = |node: Node<'_, '_>| {
        child(node, "metadata")?
            .children()
            .find(|node| node.tag_name().namespace() == Some(METADATA_NAMESPACE))
            .map(|node| node.range())
    };
    let new = ours(next.root_element()).ok_or(Unreadable::Missing("metadata"))?;
    let new = &next.input_text()[new];
    Ok(match (ours(domain), child(domain, "metadata")) {
        (Some(range), _) => vec![(range, new.to_owned())],
        (None, Some(other)) => {
            let inside: String = other.children().map(text).collect();
            vec![(other.range(), format!("<metadata>{inside}{new}</metadata>"))]
        }
        (None, None) => vec![(otherwise, format!("<metadata>{new}</metadata>"))],
    })
}

/// Changes, adds and removes disks, which are known by what the guest calls them.
fn disks(
    present: &Document<'_>,
    base: &Document<'_>,
    next: &Document<'_>,
    all: Node<'_, '_>,
) -> Result<Vec<(Range<usize>, String)>, Unreadable> {
    let mut edits = Vec::new();
    let last = all.range().end - "</devices>".len();
    let names: BTreeSet<&str> = devices(base, "disk")
        .chain(devices(next, "disk"))
        .filter_map(target)
        .collect();
    for name in names {
        let find = |document| disk(document, name);
        let (here, old, new) = (disk(present, name), find(base), find(next));
        if old.map(text) == new.map(text) {
            continue;
        }
        match (here, old, new) {
            (Some(here), Some(old), Some(new)) => edits.push((here.range(), one(here, old, new))),
            // Its name is another one's.
            (Some(_), None, Some(_)) => return Err(Unreadable::Missing("free name for a disk")),
            (Some(here), _, None) => edits.push((here.range(), String::new())),
            (None, _, Some(new)) => edits.push((last..last, text(new).to_owned())),
            (None, _, None) => {}
        }
    }
    Ok(edits)
}

/// One disk with the change from `old` to `new` in it.
fn one(here: Node<'_, '_>, old: Node<'_, '_>, new: Node<'_, '_>) -> String {
    let start = &new.document().input_text()[new.range()];
    let start = &start[..=start.find('>').expect("an element has a beginning")];
    let mut disk = start.to_owned();
    let mut known = BTreeSet::new();
    for part in elements(new) {
        let name = part.tag_name().name();
        known.insert(name);
        if child(old, name).map(text) == Some(text(part)) {
            disk.push_str(child(here, name).map(text).unwrap_or_default());
        } else {
            disk.push_str(text(part));
        }
    }
    for part in elements(here) {
        let name = part.tag_name().name();
        if !known.contains(name) && child(old, name).is_none() {
            disk.push_str(text(part));
        }
    }
    disk.push_str("</disk>");
    disk
}

fn disk<'a, 'i>(document: &'a Document<'i>, name: &str) -> Option<Node<'a, 'i>> {
    devices(document, "disk").find(|disk| target(*disk) == Some(name))
}

fn target<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    child(disk, "target")?.attribute("dev")
}

fn elements<'a, 'i>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(Node::is_element)
}

fn text<'a>(node: Node<'a, '_>) -> &'a str {
    &node.document().input_text()[node.range()]
}

fn before(node: Node<'_, '_>) -> Range<usize> {
    node.range().start..node.range().start
}
