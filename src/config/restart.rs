//! What of a changed configuration needs a restart, key by key.
//!
//! Every section is taken apart field by field, so that a new one can't be
//! forgotten here.

use super::access::AccessSettings;
use super::audit::AuditSettings;
use super::events::EventSettings;
use super::limits::LimitSettings;
use super::metrics::MetricsSettings;
use super::settings::{
    ApiSettings, Config, HypervisorSettings, ImageSettings, JournalSettings, LogSettings,
    NodeSettings, OperationSettings, ShutdownSettings, VmSettings, VncSettings,
};
use super::traces::TraceSettings;

/// Adds the path of each field that differs. Those after `but` are in use already.
macro_rules! differing {
    ($found:ident, $section:literal, $old:expr, $new:expr,
     $type:ident { $($field:ident),* $(,)? } $(but $($live:ident),*)?) => {{
        let $type { $($field: _,)* $($($live: _,)*)? } = $new;
        $(if $old.$field != $new.$field {
            $found.push(concat!($section, ".", stringify!($field)).to_owned());
        })*
    }};
}

impl Config {
    /// The keys that have changed in `new` and are in use only after a restart, in
    /// the order of the file: `hypervisor.uri`; of tables that may stand several
    /// times, the table's name: `pools`.
    pub fn needs_restart(&self, new: &Self) -> Vec<String> {
        let Self {
            node,
            hypervisor,
            api,
            access,
            limits,
            audit,
            journal,
            log,
            metrics,
            traces,
            pools,
            images,
            networks: _,
            hardware_profiles: _,
            vms,
            vnc,
            report,
            nats,
            operations,
            events,
            shutdown,
        } = new;
        let mut found = Vec::new();
        differing!(found, "node", self.node, node, NodeSettings { id, labels });
        differing!(
            found,
            "hypervisor",
            self.hypervisor,
            hypervisor,
            HypervisorSettings {
                uri,
                connections,
                call_timeout,
                accelerator
            }
        );
        differing!(found, "api", self.api, api,
            ApiSettings { socket, socket_mode, socket_group, listen } but tls, plaintext_role);
        // Its files may change, and what is in them.
        if self.api.tls.is_some() != api.tls.is_some() {
            found.push("api.tls".to_owned());
        }
        let AccessSettings { roles: _ } = access;
        differing!(found, "limits", self.limits, limits,
            LimitSettings { calls_per_connection, request_size, header_size }
            but connections, connections_per_caller, calls, calls_per_caller, request_memory,
                page_size, request_time, answer_time, silence);
        // Pings are as far apart as was said at the start.
        if limits.silence < self.limits.silence {
            found.push("limits.silence".to_owned());
        }
        differing!(found, "audit", self.audit, audit, AuditSettings { file });
        differing!(
            found,
            "journal",
            self.journal,
            journal,
            JournalSettings { path }
        );
        differing!(found, "log", self.log, log, LogSettings { target } but level);
        differing!(
            found,
            "metrics",
            self.metrics,
            metrics,
            MetricsSettings {
                listen,
                socket,
                socket_group
            }
        );
        differing!(
            found,
            "traces",
            self.traces,
            traces,
            TraceSettings {
                endpoint,
                sample_ratio
            }
        );
        differing!(
            found,
            "images",
            self.images,
            images,
            ImageSettings {
                allowed_dirs,
                allowed_url_prefixes,
                max_virtual_size,
                max_source_size,
                download_stall
            }
        );
        differing!(
            found,
            "vms",
            self.vms,
            vms,
            VmSettings {
                retention,
                keep_old_root,
                stop_timeout,
                stop_resend,
                console_dir,
                console_max,
                vcpu_overcommit,
                memory_overcommit,
                reserved_memory,
                max_vcpus_per_vm,
                address_refresh
            }
        );
        differing!(
            found,
            "vnc",
            self.vnc,
            vnc,
            VncSettings {
                listen,
                password_ttl
            }
        );
        differing!(
            found,
            "operations",
            self.operations,
            operations,
            OperationSettings {
                keep,
                queue,
                queue_per_vm
            }
        );
        differing!(
            found,
            "events",
            self.events,
            events,
            EventSettings {
                keep,
                keep_count,
                watchers,
                slow_reader
            }
        );
        differing!(
            found,
            "shutdown",
            self.shutdown,
            shutdown,
            ShutdownSettings { grace }
        );
        for (name, differs) in [
            ("pools", self.pools != *pools),
            ("report", self.report != *report),
            ("nats", self.nats != *nats),
        ] {
            if differs {
                found.push(name.to_owned());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        Config::from_toml(text).expect("it has no faults")
    }

    #[test]
    fn what_a_reload_reads_needs_no_restart() {
        let old = read("");
        let new = read(
            "[log]\nlevel='debug'\n[limits]\ncalls=7\ncalls_per_caller=3\n\
             [access.viewer]\nusers=['nobody']\n\
             [[networks]]\nid='n'\nuser=true\n\
             [[hardware_profiles]]\nid='p'\nvcpus=1\nmemory='64 MiB'\n",
        );
        assert_ne!(old, new);
        assert_eq!(old.needs_restart(&new), Vec::<String>::new());
    }

    #[test]
    fn what_needs_a_restart_is_named_key_by_key() {
        let new = read(
            "[hypervisor]\nuri='test:///default'\n[log]\nlevel='debug'\ntarget='stderr'\n\
             [limits]\nsilence='20s'\n[vms]\nretention='1h'\n\
             [[pools]]\nname='p'\nkind='qcow2'\npath='/p'\n",
        );
        let found = read("").needs_restart(&new);
        let wanted = [
            "hypervisor.uri",
            "limits.silence",
            "log.target",
            "vms.retention",
            "pools",
        ];
        assert_eq!(found, wanted);
    }
}
