//! The host's memory, and what may be promised of it.

use super::{Check, Host, Notes, kernel};
use crate::model::bytes::Bytes;
use crate::service::host::count_huge_pages;

/// Looks at memory, swap and huge pages.
pub(super) fn look(host: &Host, notes: &Notes) {
    let total = kernel::meminfo("MemTotal").map(Bytes::kib);
    let swap = kernel::meminfo("SwapTotal").map_or(Bytes::ZERO, Bytes::kib);
    if host.is_simulated() {
        let found = "guests are simulated and take no memory";
        notes.ok(Check::MemoryReserved, "", found);
    } else if let Some(total) = total {
        reserved(host, total, notes);
        overcommit(host, swap, notes);
    }
    huge_pages(notes);
}

fn reserved(host: &Host, total: Bytes, notes: &Notes) {
    let check = Check::MemoryReserved;
    let reserved = host.config.vms.reserved_memory;
    let found = format!("{reserved} of {total} are kept for the host");
    if reserved >= total {
        notes.error(
            check,
            "",
            found,
            "Nothing is left: no guest can be started.",
            "Set less as reserved_memory under [vms].",
        );
    } else if reserved < Bytes::mib(256) {
        notes.warning(
            check,
            "",
            found,
            "When guests take the rest, the kernel may end one of them, or the agent.",
            "Set reserved_memory = \"512 MiB\" or more under [vms].",
        );
    } else {
        notes.ok(check, "", found);
    }
}

fn overcommit(host: &Host, swap: Bytes, notes: &Notes) {
    let check = Check::MemorySwap;
    let factor = host.config.vms.memory_overcommit;
    if factor > 1.0 && swap == Bytes::ZERO {
        notes.warning(
            check,
            "",
            format!("no swap, and memory is promised {factor} times"),
            "When guests use what they were promised, the kernel ends one of them.",
            "Add swap: fallocate -l 8G /swapfile && chmod 0600 /swapfile && mkswap /swapfile && \
             swapon /swapfile; or set memory_overcommit = 1.0 under [vms].",
        );
    } else {
        notes.ok(
            check,
            "",
            match swap {
                Bytes::ZERO => "no swap; memory is promised once".to_owned(),
                swap => format!("{swap} of swap; memory is promised {factor} times"),
            },
        );
    }
}

fn huge_pages(notes: &Notes) {
    let mut words: Vec<String> = count_huge_pages()
        .iter()
        .filter(|pages| pages.total > 0)
        .map(|pages| {
            let free = pages
                .free
                .map_or(String::new(), |free| format!(", {free} free"));
            format!("{} of {}{free}", pages.total, pages.size)
        })
        .collect();
    if words.is_empty() {
        words.push("none are set aside".to_owned());
    }
    let transparent = kernel::line("/sys/kernel/mm/transparent_hugepage/enabled");
    if let Some(chosen) = chosen(&transparent) {
        words.push(format!("transparent ones: {chosen}"));
    }
    notes.ok(Check::MemoryHugePages, "", words.join("; "));
}

/// The kernel marks what is chosen: `always [madvise] never`.
fn chosen(line: &str) -> Option<&str> {
    line.split_once('[')?
        .1
        .split_once(']')
        .map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_has_chosen_is_in_brackets() {
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen(""), None);
    }
}
