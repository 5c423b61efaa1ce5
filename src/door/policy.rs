//! Which role a caller has, by what the configuration grants.
//!
//! Names of users and groups are looked up when the policy is made. What is granted
//! to a name that this host does not know is granted to nobody.

use super::peer::Identity;
use crate::config::{AccessSettings, Granted};
use crate::model::access::Role;
use nix::unistd::{Group, User, getuid};
use std::collections::HashMap;

const ROOT: u32 = 0;

/// Which role a caller has.
#[derive(Debug, Default)]
pub(super) struct Policy {
    users: HashMap<u32, Role>,
    groups: HashMap<u32, Role>,
    uris: Vec<(String, Role)>,
    dns: Vec<(String, Role)>,
    plaintext: Option<Role>,
}

impl Policy {
    /// Looks names up, which may block.
    pub(super) fn new(settings: &AccessSettings, plaintext: Option<Role>) -> Self {
        let mut policy = Self {
            plaintext,
            ..Self::default()
        };
        // The greatest role last: it is the one that counts.
        for (role, granted) in &settings.roles {
            policy.grant(*role, granted);
        }
        // Who can end the daemon and write its journal is not to be held off here.
        policy.users.insert(ROOT, Role::Admin);
        policy.users.insert(getuid().as_raw(), Role::Admin);
        policy
    }

    fn grant(&mut self, role: Role, granted: &Granted) {
        for name in &granted.users {
            match user(name) {
                Some(uid) => drop(self.users.insert(uid, role)),
                None => unknown("user", name, role),
            }
        }
        for name in &granted.groups {
            match group(name) {
                Some(gid) => drop(self.groups.insert(gid, role)),
                None => unknown("group", name, role),
            }
        }
        let with_role = |names: &[String]| names.iter().map(|name| (name.clone(), role)).collect();
        self.uris.extend::<Vec<_>>(with_role(&granted.uris));
        self.dns.extend::<Vec<_>>(with_role(&granted.dns));
    }

    /// The caller's role, and the name that it was granted to, or else his first;
    /// `None`: he may do nothing.
    pub(super) fn role(&self, identity: &Identity) -> (Option<Role>, String) {
        match identity {
            Identity::Local { uid, groups } => {
                let by_group = groups.iter().filter_map(|gid| self.groups.get(gid));
                let role = self.users.get(uid).into_iter().chain(by_group).max();
                (role.copied(), format!("uid:{uid}"))
            }
            Identity::Certificate(certificate) => {
                let uris = certificate.uris.iter().map(|name| {
                    let role = best(&self.uris, |grant| uri_matches(grant, name));
                    (role, format!("uri:{name}"))
                });
                let dns = certificate.dns.iter().map(|name| {
                    let role = best(&self.dns, |grant| dns_matches(grant, name));
                    (role, format!("dns:{name}"))
                });
                // Of equal ones the first.
                let found = uris.chain(dns).reduce(|a, b| if b.0 > a.0 { b } else { a });
                found.unwrap_or_else(|| (None, format!("sha256:{}", certificate.fingerprint)))
            }
            Identity::Plaintext(address) => (self.plaintext, format!("plaintext:{address}")),
            Identity::Unknown => (None, "unknown".to_owned()),
        }
    }
}

fn best(grants: &[(String, Role)], matches: impl Fn(&str) -> bool) -> Option<Role> {
    let matching = grants.iter().filter(|(grant, _)| matches(grant));
    matching.map(|(_, role)| *role).max()
}

fn uri_matches(grant: &str, name: &str) -> bool {
    match grant.strip_suffix('*') {
        // With the slash before it: there must be something below.
        Some(above) => name.len() > above.len() && name.starts_with(above),
        None => grant == name,
    }
}

/// A name with a star in a certificate is no host, and matches nothing.
fn dns_matches(grant: &str, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    if name.contains('*') {
        return false;
    }
    match grant.strip_prefix("*.") {
        Some(domain) => name
            .split_once('.')
            .is_some_and(|(first, rest)| !first.is_empty() && rest == domain),
        None => grant == name,
    }
}

fn user(name: &str) -> Option<u32> {
    let number = name.parse().ok();
    number.or_else(|| Some(User::from_name(name).ok()??.uid.as_raw()))
}

fn group(name: &str) -> Option<u32> {
    let number = name.parse().ok();
    number.or_else(|| Some(Group::from_name(name).ok()??.gid.as_raw()))
}

fn unknown(kind: &str, name: &str, role: Role) {
    let role = role.as_str();
    tracing::info!(kind, name, role, "this host does not know who has a role");
}

#[cfg(test)]
mod tests {
    use super::super::peer::Certificate;
    use super::*;
    use std::collections::BTreeMap;

    fn policy() -> Policy {
        let granted = |users: &[&str], groups: &[&str], uris: &[&str], dns: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Granted {
                users: owned(users),
                groups: owned(groups),
                uris: owned(uris),
                dns: owned(dns),
            }
        };
        let roles = BTreeMap::from([
            (
                Role::Viewer,
                granted(
                    &["4711", "nobody-knows-him"],
                    &["70"],
                    &["spiffe://a/*"],
                    &[],
                ),
            ),
            (
                Role::Operator,
                granted(&["4712"], &["71"], &["spiffe://a/cp"], &["*.cp.example"]),
            ),
            (Role::Admin, granted(&["4711"], &[], &[], &["ops.example"])),
        ]);
        Policy::new(&AccessSettings { roles }, None)
    }

    fn certificate(uris: &[&str], dns: &[&str]) -> Identity {
        Identity::Certificate(Box::new(Certificate {
            uris: uris.iter().map(|name| (*name).to_owned()).collect(),
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            fingerprint: "00ff".to_owned(),
            ..Certificate::default()
        }))
    }

    fn local(uid: u32, groups: &[u32]) -> Identity {
        let groups = groups.to_vec();
        Identity::Local { uid, groups }
    }

    #[test]
    fn the_greatest_of_a_callers_roles_counts_and_nobody_else_has_one() {
        let policy = policy();
        let role = |identity: &Identity| policy.role(identity).0;
        assert_eq!(role(&local(0, &[])), Some(Role::Admin));
        assert_eq!(role(&local(getuid().as_raw(), &[])), Some(Role::Admin));
        assert_eq!(role(&local(4711, &[])), Some(Role::Admin));
        assert_eq!(role(&local(4712, &[70])), Some(Role::Operator));
        assert_eq!(role(&local(4713, &[1, 70])), Some(Role::Viewer));
        assert_eq!(role(&local(4713, &[70, 71])), Some(Role::Operator));
        assert_eq!(role(&local(4713, &[1, 2])), None);
        assert_eq!(role(&Identity::Plaintext([127, 0, 0, 1].into())), None);
        assert_eq!(role(&Identity::Unknown), None);
    }

    #[test]
    fn a_certificate_has_the_role_of_its_names() {
        let policy = policy();
        let told = |uris: &[&str], dns: &[&str]| policy.role(&certificate(uris, dns));
        let is = |role, name: &str| (role, name.to_owned());
        assert_eq!(
            told(&["spiffe://a/x"], &[]),
            is(Some(Role::Viewer), "uri:spiffe://a/x")
        );
        assert_eq!(
            told(&["spiffe://a/x", "spiffe://a/cp"], &["ops.example"]),
            is(Some(Role::Admin), "dns:ops.example")
        );
        assert_eq!(
            told(&[], &["1.CP.example"]),
            is(Some(Role::Operator), "dns:1.CP.example")
        );
        for nobody in [
            "cp.example",
            "a.b.cp.example",
            "*.cp.example",
            ".cp.example",
        ] {
            assert_eq!(told(&[], &[nobody]).0, None, "{nobody}");
        }
        for nobody in [
            "spiffe://a",
            "spiffe://a/",
            "spiffe://a.b/cp",
            "SPIFFE://a/cp",
        ] {
            assert_eq!(told(&[nobody], &[]).0, None, "{nobody}");
        }
        assert_eq!(told(&[], &[]), is(None, "sha256:00ff"));
    }
}
