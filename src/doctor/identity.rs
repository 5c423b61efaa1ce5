//! Who the host is, and whether those exist whom the configuration names.

use super::{Check, Host, Notes};
use nix::unistd::{Group, User};
use std::collections::BTreeSet;

/// The group that the packages make.
const GROUP: &str = "kvmlet";

/// Looks at the host's id, and at groups and users.
pub(super) fn look(host: &Host, notes: &Notes) {
    machine(host, notes);
    names(host, notes);
}

fn machine(host: &Host, notes: &Notes) {
    let check = Check::IdentityMachine;
    match host.config.node.resolve_id() {
        Ok(id) => {
            let from = match host.config.node.id {
                Some(_) => "the configuration",
                None => "/etc/machine-id",
            };
            notes.ok(check, "", format!("node {id}, from {from}"));
        }
        Err(error) => notes.error(
            check,
            "",
            format!("/etc/machine-id: {error}"),
            "A host without an id can't be told from others: the agent does not start.",
            "systemd-machine-id-setup; or set id under [node].",
        ),
    }
}

fn names(host: &Host, notes: &Notes) {
    let check = Check::IdentityGroup;
    let config = &host.config;
    // Without these groups a socket can't be made.
    let sockets = [&config.api.socket_group, &config.metrics.socket_group];
    let needed: BTreeSet<&str> = sockets.into_iter().flatten().map(String::as_str).collect();
    let mut named: BTreeSet<&str> = needed.clone();
    for granted in config.access.roles.values() {
        named.extend(granted.groups.iter().map(String::as_str));
    }
    for name in named {
        let found = match name.parse::<u32>() {
            Ok(id) => Group::from_gid(id.into()),
            Err(_) => Group::from_name(name),
        };
        match found {
            Ok(Some(group)) => {
                let members = match group.mem.len() {
                    0 => "no members".to_owned(),
                    _ => format!("members {}", group.mem.join(", ")),
                };
                notes.ok(check, "", format!("the group {name} has {members}"));
            }
            Ok(None) if needed.contains(name) => notes.error(
                check,
                "",
                format!("there is no group {name}"),
                "A socket is to be its own: the agent does not start.",
                format!("groupadd --system {name}"),
            ),
            Ok(None) => notes.warning(
                check,
                "",
                format!("there is no group {name}"),
                if name == GROUP {
                    "Its members could use kvmlet without being root; only root can now."
                } else {
                    "The role that it is given is nobody's."
                },
                format!("groupadd --system {name} && usermod -aG {name} USER"),
            ),
            Err(error) => unknown(name, &error.to_string(), notes),
        }
    }
    for name in config.access.roles.values().flat_map(|it| &it.users) {
        let found = match name.parse::<u32>() {
            Ok(id) => User::from_uid(id.into()),
            Err(_) => User::from_name(name),
        };
        match found {
            Ok(Some(_)) => {}
            Ok(None) => notes.warning(
                check,
                "",
                format!("there is no user {name}"),
                "The role that he is given is nobody's.",
                "Mend [access], then: systemctl reload kvmlet",
            ),
            Err(error) => unknown(name, &error.to_string(), notes),
        }
    }
}

fn unknown(name: &str, error: &str, notes: &Notes) {
    let advice = format!("getent group {name}; getent passwd {name}");
    notes.skipped(Check::IdentityGroup, "", format!("{name}: {error}"), advice);
}
