//! From what people type to the id: a UUID, the beginning of one, or a name.
//!
//! Invariant: what fits more than one thing is refused with the candidates,
//! never guessed. A full id is passed on as it is, without asking for a list.

use crate::cli::connect::Session;
use crate::cli::fault::{Exit, Fault};
use crate::cli::output;
use crate::proto::v1::{
    ListImagesRequest, ListOperationsRequest, ListVmsRequest, ListVolumesRequest, VmState,
};
use std::future::Future;
use tonic::Status;
use uuid::Uuid;

/// How many digits of an id are enough to mean one.
const SHORTEST_PREFIX: usize = 4;
/// Small enough that a page of VMs with full annotations fits an answer.
pub(crate) const PAGE: u32 = 200;

/// Something that could be meant.
#[derive(Debug)]
struct Candidate {
    id: String,
    name: String,
    note: String,
    /// Deleted, but still there.
    gone: bool,
}

/// Whether something deleted can be meant by a name that something living has
/// as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// No: the living one is meant.
    Yields,
    /// Yes: such a name is refused.
    Counts,
}

/// The id of the VM that is meant.
pub(crate) async fn vm(session: &Session, wanted: &str, gone: Gone) -> Result<String, Fault> {
    if let Some(id) = full_id(wanted) {
        return Ok(id);
    }
    let vms = pages(|page_token| {
        let mut client = session.vms();
        async move {
            let request = ListVmsRequest {
                page_size: PAGE,
                page_token,
                show_deleted: true,
                ..ListVmsRequest::default()
            };
            let page = client.list_vms(request).await?.into_inner();
            Ok((page.vms, page.next_page_token))
        }
    })
    .await?;
    let candidates: Vec<_> = vms
        .into_iter()
        .map(|vm| Candidate {
            note: output::name(vm.state().as_str_name(), "VM_STATE_").to_owned(),
            gone: vm.state() == VmState::Deleted,
            id: vm.id,
            name: vm.name,
        })
        .collect();
    choose("VM", wanted, candidates, gone)
}

/// The id of the image that is meant.
pub(crate) async fn image(session: &Session, wanted: &str) -> Result<String, Fault> {
    if let Some(id) = full_id(wanted) {
        return Ok(id);
    }
    let images = pages(|page_token| {
        let mut client = session.images();
        async move {
            let request = ListImagesRequest {
                page_size: PAGE,
                page_token,
                ..ListImagesRequest::default()
            };
            let page = client.list_images(request).await?.into_inner();
            Ok((page.images, page.next_page_token))
        }
    })
    .await?;
    let candidates: Vec<_> = images
        .into_iter()
        .map(|image| Candidate {
            note: output::name(image.state().as_str_name(), "IMAGE_STATE_").to_owned(),
            gone: false,
            id: image.id,
            name: image.name,
        })
        .collect();
    choose("image", wanted, candidates, Gone::Counts)
}

/// The id of the volume that is meant.
pub(crate) async fn volume(session: &Session, wanted: &str) -> Result<String, Fault> {
    if let Some(id) = full_id(wanted) {
        return Ok(id);
    }
    let volumes = pages(|page_token| {
        let mut client = session.volumes();
        async move {
            let request = ListVolumesRequest {
                page_size: PAGE,
                page_token,
                ..ListVolumesRequest::default()
            };
            let page = client.list_volumes(request).await?.into_inner();
            Ok((page.volumes, page.next_page_token))
        }
    })
    .await?;
    let candidates: Vec<_> = volumes
        .into_iter()
        .map(|volume| Candidate {
            note: format!("of VM {}", volume.vm_id),
            gone: false,
            id: volume.id,
            name: volume.name,
        })
        .collect();
    choose("volume", wanted, candidates, Gone::Counts)
}

/// The id of the operation that is meant; operations have no names.
pub(crate) async fn operation(session: &Session, wanted: &str) -> Result<String, Fault> {
    if let Some(id) = full_id(wanted) {
        return Ok(id);
    }
    let operations = pages(|page_token| {
        let mut client = session.operations();
        async move {
            let request = ListOperationsRequest {
                page_size: PAGE,
                page_token,
                ..ListOperationsRequest::default()
            };
            let page = client.list_operations(request).await?.into_inner();
            Ok((page.operations, page.next_page_token))
        }
    })
    .await?;
    let candidates: Vec<_> = operations
        .into_iter()
        .map(|operation| Candidate {
            note: output::name(operation.state().as_str_name(), "OPERATION_STATE_").to_owned(),
            gone: false,
            name: output::word(operation.r#type().as_str_name(), "OPERATION_TYPE_"),
            id: operation.id,
        })
        .map(|candidate| Candidate {
            note: format!("{} {}", candidate.name, candidate.note),
            name: String::new(),
            ..candidate
        })
        .collect();
    choose("operation", wanted, candidates, Gone::Counts)
}

/// Reads all pages of a list.
pub(crate) async fn pages<T, F, Page>(mut fetch: F) -> Result<Vec<T>, Fault>
where
    F: FnMut(String) -> Page,
    Page: Future<Output = Result<(Vec<T>, String), Status>>,
{
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = fetch(token).await?;
        all.extend(page);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

/// A whole UUID, with or without hyphens, in its hyphenated form.
fn full_id(wanted: &str) -> Option<String> {
    // The crate also reads braces and urn: forms, which the API does not.
    matches!(wanted.len(), 32 | 36)
        .then(|| Uuid::try_parse(wanted).ok())
        .flatten()
        .map(|id| id.to_string())
}

fn choose(
    kind: &str,
    wanted: &str,
    candidates: Vec<Candidate>,
    gone: Gone,
) -> Result<String, Fault> {
    let prefix = wanted.replace('-', "").to_ascii_lowercase();
    let is_hex = prefix.chars().all(|c| c.is_ascii_hexdigit());
    let is_prefix = is_hex && prefix.len() >= SHORTEST_PREFIX;
    let mut meant: Vec<_> = candidates
        .into_iter()
        .filter(|candidate| {
            candidate.name == wanted && !wanted.is_empty()
                || is_prefix && candidate.id.replace('-', "").starts_with(&prefix)
        })
        .collect();
    if gone == Gone::Yields && meant.iter().any(|candidate| !candidate.gone) {
        meant.retain(|candidate| !candidate.gone);
    }
    match meant.as_slice() {
        [one] => Ok(one.id.clone()),
        [] => {
            let fault = Fault::new(Exit::NotFound, format!("no {kind} is called {wanted:?}"));
            Err(if is_hex && prefix.len() < SHORTEST_PREFIX {
                fault.with(format!(
                    "the beginning of an id needs at least {SHORTEST_PREFIX} digits"
                ))
            } else {
                fault
            })
        }
        several => {
            let fault = Fault::usage(format!(
                "{wanted:?} can mean {} {kind}s: give the id",
                several.len()
            ));
            Err(several.iter().fold(fault, |fault, candidate| {
                fault.with(format!(
                    "{}  {}  {}",
                    candidate.id, candidate.name, candidate.note
                ))
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Candidate> {
        [
            (
                "0b0e1111-0000-4000-8000-000000000001",
                "web",
                "RUNNING",
                false,
            ),
            (
                "0b0e2222-0000-4000-8000-000000000002",
                "db",
                "STOPPED",
                false,
            ),
            (
                "77770000-0000-4000-8000-000000000003",
                "db",
                "DELETED",
                true,
            ),
            (
                "88880000-0000-4000-8000-000000000004",
                "0b0e1",
                "STOPPED",
                false,
            ),
        ]
        .into_iter()
        .map(|(id, name, note, gone)| Candidate {
            id: id.into(),
            name: name.into(),
            note: note.into(),
            gone,
        })
        .collect()
    }

    #[test]
    fn a_name_or_the_beginning_of_an_id_is_enough() {
        for (wanted, last) in [
            ("web", '1'),
            ("0B0E2", '2'),
            ("0b0e1111-00", '1'),
            ("7777", '3'),
        ] {
            let id = choose("VM", wanted, all(), Gone::Yields).expect(wanted);
            assert!(id.ends_with(last), "{wanted}");
        }
    }

    #[test]
    fn what_can_mean_several_is_refused_with_the_candidates() {
        // Two beginnings; a beginning that is also a name.
        for wanted in ["0b0e", "0b0e1"] {
            let fault = choose("VM", wanted, all(), Gone::Yields).expect_err(wanted);
            assert_eq!(fault.exit, Exit::Usage);
            assert!(fault.to_string().contains("0b0e1111-"), "{fault}");
        }
    }

    #[test]
    fn a_deleted_one_yields_its_name_unless_it_counts() {
        let id = choose("VM", "db", all(), Gone::Yields).expect("one lives");
        assert!(id.ends_with('2'));
        assert!(choose("VM", "db", all(), Gone::Counts).is_err());
    }

    #[test]
    fn nothing_means_nothing() {
        for wanted in ["", "0b0", "zzzz", "WEB"] {
            let fault = choose("VM", wanted, all(), Gone::Yields).expect_err(wanted);
            assert_eq!(fault.exit, Exit::NotFound, "{wanted}");
        }
    }

    #[test]
    fn a_whole_id_may_lack_its_hyphens() {
        let id = "0b0e1111-0000-4000-8000-000000000001";
        assert_eq!(full_id(&id.replace('-', "")).as_deref(), Some(id));
        assert_eq!(full_id(id).as_deref(), Some(id));
        assert_eq!(full_id("0b0e1111"), None);
        assert_eq!(full_id("a name of thirty-two characters!"), None);
    }
}
