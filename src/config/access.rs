//! `[access]`: who may do what.
//!
//! Whoever is not named here may do nothing, but for root and the user that the
//! daemon runs as, who are admins whatever is configured.

use super::section::Section;
use crate::model::access::Role;
use std::collections::BTreeMap;

/// The longest name of a user, a group or in a certificate.
const LONGEST: usize = 512;

/// Who may do what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessSettings {
    /// Those who are given each role.
    pub roles: BTreeMap<Role, Granted>,
}

/// Those who are given a role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Granted {
    /// Local users, by name or number.
    pub users: Vec<String>,
    /// Local groups, by name or number.
    pub groups: Vec<String>,
    /// URIs in certificates; one that ends in `/*` stands for all below it.
    pub uris: Vec<String>,
    /// DNS names in certificates; one that begins with `*.` stands for all names with
    /// one label more.
    pub dns: Vec<String>,
}

impl Default for AccessSettings {
    /// The group that the packages make may work with VMs.
    fn default() -> Self {
        let operators = Granted {
            groups: vec!["kvmlet".to_owned()],
            ..Granted::default()
        };
        Self {
            roles: [
                (Role::Viewer, Granted::default()),
                (Role::Operator, operators),
                (Role::Admin, Granted::default()),
            ]
            .into(),
        }
    }
}

pub(super) fn access(section: Section<'_>) -> AccessSettings {
    let mut default = AccessSettings::default();
    let roles = [
        (Role::Viewer, section.section("viewer")),
        (Role::Operator, section.section("operator")),
        (Role::Admin, section.section("admin")),
    ]
    .map(|(role, section)| {
        let default = default.roles.remove(&role).unwrap_or_default();
        (role, granted(section, default))
    });
    section.finish();
    AccessSettings {
        roles: roles.into(),
    }
}

fn granted(section: Section<'_>, default: Granted) -> Granted {
    let granted = Granted {
        users: section.list("users", local).unwrap_or(default.users),
        groups: section.list("groups", local).unwrap_or(default.groups),
        uris: section.list("uris", uri).unwrap_or(default.uris),
        dns: section.list("dns", dns).unwrap_or(default.dns),
    };
    section.finish();
    granted
}

fn local(text: &str) -> Result<String, &'static str> {
    let bad = |c: char| c == ':' || c.is_control() || c.is_whitespace();
    if text.is_empty() || text.len() > LONGEST || text.contains(bad) {
        return Err("is not a name or a number");
    }
    Ok(text.to_owned())
}

/// A part of a URI that could end in the middle of a name would let in
/// `spiffe://example.org.evil` with `spiffe://example.org*`.
fn uri(text: &str) -> Result<String, &'static str> {
    let whole = text.strip_suffix("/*").unwrap_or(text);
    let plain = |c: char| c.is_ascii_graphic() && c != '*';
    match whole.split_once("://") {
        Some((scheme, rest))
            if !scheme.is_empty()
                && !rest.is_empty()
                && text.len() <= LONGEST
                && whole.chars().all(plain) =>
        {
            Ok(text.to_owned())
        }
        _ => Err(
            "is not a URI such as \"spiffe://example.org/control-plane\", or one that ends in \"/*\"",
        ),
    }
}

fn dns(text: &str) -> Result<String, &'static str> {
    let whole = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text.len() <= LONGEST && whole.split('.').all(label) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("is not a DNS name such as \"cp1.example.org\" or \"*.cp.example.org\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_only_where_a_name_ends() {
        for good in ["spiffe://a.org/cp", "spiffe://a.org/*", "https://a/b/*"] {
            assert_eq!(uri(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "a.org",
            "spiffe://a.org*",
            "spiffe://a/*/b",
            "://x",
            "x:///*",
            "a://b c",
            "*",
        ] {
            assert!(uri(bad).is_err(), "{bad}");
        }
        assert_eq!(dns("*.Cp.example.org").as_deref(), Ok("*.cp.example.org"));
        for bad in ["", "*", "*.", "a..b", "a.*.b", "a b", "*a.org", "a/b"] {
            assert!(dns(bad).is_err(), "{bad}");
        }
        for bad in ["", "a b", "a:b", "a\nb"] {
            assert!(local(bad).is_err(), "{bad}");
        }
    }
}
