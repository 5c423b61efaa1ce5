//! Identifiers: one type per kind of thing, all of them UUIDs.
//!
//! Callers may leave out the hyphens (the seed systems do); kvmlet always
//! returns them. The other spellings that UUID parsers know (braces, `urn:`)
//! are refused, because an id must have few spellings to be compared by people.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a UUID (32 hexadecimal digits, with or without hyphens)")]
pub struct MalformedId;

fn parse(text: &str) -> Result<Uuid, MalformedId> {
    if !matches!(text.len(), 32 | 36) {
        return Err(MalformedId);
    }
    let id = Uuid::try_parse(text).map_err(|_| MalformedId)?;
    if id.is_nil() {
        Err(MalformedId)
    } else {
        Ok(id)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Makes a new random id.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;

            fn from_str(text: &str) -> Result<Self, MalformedId> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

id!(
    /// A VM; also the UUID of its libvirt domain.
    VmId
);
id!(
    /// A volume; also the name of its file or RBD image.
    VolumeId
);
id!(
    /// An image that volumes are made from.
    ImageId
);
id!(
    /// A network interface of a VM.
    NicId
);
id!(
    /// An operation.
    OperationId
);
id!(
    /// Something on the host that is in no record.
    OrphanId
);
id!(
    /// A caller's own id for one request, for safe repeats.
    RequestId
);
id!(
    /// A sequence of events: a journal's life.
    EpochId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_the_hyphenated_one_is_returned() {
        let id: VmId = "0123456789abcdef0123456789ABCDEF"
            .parse()
            .expect("32 digits");
        assert_eq!(id.to_string(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn other_spellings_and_the_nil_id_are_refused() {
        for text in [
            "",
            "x",
            "{01234567-89ab-cdef-0123-456789abcdef}",
            "urn:uuid:01234567-89ab-cdef-0123-456789abcdef",
            "00000000-0000-0000-0000-000000000000",
            "0123456789abcdef0123456789abcdeg",
        ] {
            assert_eq!(text.parse::<VmId>(), Err(MalformedId), "{text:?}");
        }
    }
}
