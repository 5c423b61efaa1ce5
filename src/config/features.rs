//! What the program was built with: cargo features that a distributor may leave out.
//!
//! Invariant: a configuration that asks for what is not built in is refused, with the
//! key that asks for it. Nothing that is configured is silently not done.

use super::section::Section;

/// What there is in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    /// `[[nats]]`.
    pub(super) nats: bool,
    /// `[traces] endpoint`.
    pub(super) traces: bool,
}

impl Features {
    /// What there is in this one.
    pub(super) const BUILT: Self = Self {
        nats: cfg!(feature = "nats"),
        traces: cfg!(feature = "traces"),
    };
}

/// Notes that `key` asks for what is not there; an empty key is the whole section.
pub(super) fn missing(section: &Section<'_>, key: &str, feature: &str) {
    section.fault(
        key,
        format_args!(
            "can't be had: this kvmlet was built without it (cargo's feature \"{feature}\")"
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::super::check::read_with;
    use super::*;

    const NONE: Features = Features {
        nats: false,
        traces: false,
    };

    #[test]
    fn what_is_not_built_in_is_refused_with_the_key_that_asks_for_it() {
        let text = "[traces]\nendpoint = 'http://127.0.0.1:4317'\n\
                    [[nats]]\nname = 'bus'\nservers = ['nats://127.0.0.1:4222']\n";
        let faults = read_with(text, NONE).expect_err("neither is built in");
        let told: Vec<String> = faults.faults().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "traces.endpoint: can't be had: this kvmlet was built without it \
                 (cargo's feature \"traces\") (line 2)",
                "nats[0]: can't be had: this kvmlet was built without it \
                 (cargo's feature \"nats\") (line 3)",
            ]
        );
        let all = Features {
            nats: true,
            traces: true,
        };
        assert!(read_with(text, all).is_ok());
        for (one, left) in [
            (Features { nats: true, ..NONE }, "traces.endpoint"),
            (
                Features {
                    traces: true,
                    ..NONE
                },
                "nats[0]",
            ),
        ] {
            let faults = read_with(text, one).expect_err("one is not built in");
            let keys: Vec<&str> = faults.faults().iter().map(|it| it.key.as_str()).collect();
            assert_eq!(keys, [left]);
        }
    }

    #[test]
    fn what_is_not_built_in_is_not_missed_by_who_does_not_ask_for_it() {
        for text in [
            "",
            "nats = []\n[traces]\n",
            include_str!("../../packaging/kvmlet.toml"),
        ] {
            assert_eq!(read_with(text, NONE).err(), None, "{text}");
        }
    }
}
