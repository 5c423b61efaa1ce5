//! What has to be installed, in the words of the host's distribution.

use std::sync::OnceLock;

/// The command that installs something, by the name of its package in Debian's family
/// and in Fedora's.
pub(super) fn install(debian: &str, fedora: &str) -> String {
    static FEDORA: OnceLock<bool> = OnceLock::new();
    let like_fedora = FEDORA.get_or_init(|| {
        let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        is_like_fedora(&text)
    });
    if *like_fedora {
        format!("dnf install {fedora}")
    } else {
        format!("apt install {debian}")
    }
}

fn is_like_fedora(os_release: &str) -> bool {
    os_release.lines().any(|line| {
        let value = line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE="));
        value.is_some_and(|value| {
            let words = value.trim_matches(['"', '\'']).split_whitespace();
            words
                .into_iter()
                .any(|word| matches!(word, "fedora" | "rhel"))
        })
    })
}

/// A version as `major.minor`, out of what a tool prints; the first number with a dot.
pub(super) fn version_in(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches(['v', '(']).split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor: String = numbers
            .next()?
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        Some((major, minor.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_told_apart_by_their_family() {
        assert!(is_like_fedora("NAME=\"Fedora Linux\"\nID=fedora\n"));
        assert!(is_like_fedora(
            "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"
        ));
        assert!(!is_like_fedora("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(!is_like_fedora(""));
    }

    #[test]
    fn a_version_is_found_in_what_a_tool_prints() {
        let printed = "qemu-img version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)\nCopyright (c)";
        assert_eq!(version_in(printed), Some((10, 0)));
        assert_eq!(version_in("qemu-img version 7.2.17"), Some((7, 2)));
        assert_eq!(version_in("no version"), None);
    }
}
