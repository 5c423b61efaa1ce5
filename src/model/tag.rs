//! System tags: strings from a control plane, some with a meaning here.
//!
//! The only one so far is `ceph::rootPoolName::<pool>`: the root volume goes
//! into that Ceph pool. A tag that kvmlet does not know is refused, because a
//! placement wish that is silently dropped puts data in the wrong place.

use super::fault::Fault;
use super::reason::Reason;
use super::volume::Volume;

/// What the system tags of a request ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tags {
    /// The Ceph pool that the root volume shall be in.
    pub ceph_root_pool: Option<String>,
}

/// Reads the system tags of a request.
///
/// # Errors
/// `TAG_MALFORMED`, `TAG_UNKNOWN` or `TAG_DUPLICATE`, with the tag's index.
pub fn parse(tags: &[String]) -> Result<Tags, Fault> {
    let mut found = Tags::default();
    for (index, tag) in tags.iter().enumerate() {
        let fault =
            |reason, problem: &str| Fault::field(reason, format!("system_tags[{index}]"), problem);
        let parts: Vec<&str> = tag.split("::").collect();
        match parts.as_slice() {
            ["ceph", "rootPoolName", pool] => {
                if !is_pool_name(pool) {
                    return Err(fault(
                        Reason::TagMalformed,
                        "must name a pool: ceph::rootPoolName::<pool>",
                    ));
                }
                if found.ceph_root_pool.is_some() {
                    return Err(fault(
                        Reason::TagDuplicate,
                        "names the root pool a second time",
                    ));
                }
                found.ceph_root_pool = Some((*pool).to_owned());
            }
            ["ceph", "rootPoolName", ..] => {
                return Err(fault(
                    Reason::TagMalformed,
                    "must have the form ceph::rootPoolName::<pool>",
                ));
            }
            [_, _, ..] => return Err(fault(Reason::TagUnknown, "is not a tag that kvmlet knows")),
            [_] | [] => {
                return Err(fault(
                    Reason::TagMalformed,
                    "must have the form namespace::key::value",
                ));
            }
        }
    }
    Ok(found)
}

/// A VM's system tags once `root` is its root volume: a tag for the root's pool
/// says the pool that it is in, and is gone if that is not in Ceph.
pub fn of_root_in(tags: &[String], root: &Volume) -> Vec<String> {
    const ROOT_POOL: &str = "ceph::rootPoolName::";
    tags.iter()
        .filter_map(|tag| match &root.ceph_pool {
            _ if !tag.starts_with(ROOT_POOL) => Some(tag.clone()),
            Some(pool) => Some(format!("{ROOT_POOL}{pool}")),
            None => None,
        })
        .collect()
}

/// Whether a Ceph pool may have this name here. Ceph allows more, but a name with
/// other characters can't be told from options.
pub fn is_pool_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with(['-', '.'])
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(tags: &[&str]) -> Reason {
        let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
        parse(&tags).unwrap_err().reason
    }

    #[test]
    fn the_root_pool_tag_is_read() {
        let tags = parse(&["ceph::rootPoolName::vms-ssd".to_owned()]).unwrap();
        assert_eq!(tags.ceph_root_pool.as_deref(), Some("vms-ssd"));
        assert_eq!(parse(&[]).unwrap(), Tags::default());
    }

    #[test]
    fn each_way_of_getting_it_wrong_has_its_reason() {
        assert_eq!(reason(&["ceph::rootPoolName::"]), Reason::TagMalformed);
        assert_eq!(reason(&["ceph::rootPoolName"]), Reason::TagMalformed);
        assert_eq!(reason(&["ceph::rootPoolName::a::b"]), Reason::TagMalformed);
        assert_eq!(reason(&["ceph::rootPoolName::a/b"]), Reason::TagMalformed);
        assert_eq!(reason(&["hello"]), Reason::TagMalformed);
        assert_eq!(reason(&[""]), Reason::TagMalformed);
        assert_eq!(reason(&["ceph::dataPoolName::a"]), Reason::TagUnknown);
        assert_eq!(reason(&["ephemeral::x::y"]), Reason::TagUnknown);
        assert_eq!(
            reason(&["ceph::rootPoolName::a", "ceph::rootPoolName::a"]),
            Reason::TagDuplicate
        );
    }

    #[test]
    fn the_tag_follows_the_root_to_another_pool_and_is_gone_outside_of_ceph() {
        let root = |ceph_pool: Option<&str>| -> Volume {
            serde_json::from_value(serde_json::json!({
                "id": "10030000-0000-4000-8000-000000000001", "name": "root",
                "pool": "p", "ceph_pool": ceph_pool, "kind": "root", "format": "raw",
                "image_id": null,
                "size": 1, "actual_size": 0,
                "attachment": {"attached": {"device_index": 0}}, "shareable": false,
                "qos": {}, "delete_with_vm": true, "create_time": 1,
            }))
            .expect("a volume")
        };
        let tagged = ["ceph::rootPoolName::slow".to_owned()];
        assert_eq!(
            of_root_in(&tagged, &root(Some("fast"))),
            ["ceph::rootPoolName::fast"]
        );
        assert_eq!(of_root_in(&tagged, &root(None)), [""; 0]);
        assert_eq!(of_root_in(&[], &root(Some("fast"))), [""; 0]);
    }
}
