//! How the certificates of the API fare.

use crate::door::Certificates;
use std::time::{Duration, SystemTime};

/// The reason where all is well.
pub const VALID: &str = "Valid";
/// How long before it expires a certificate is worth a word: what renews itself has
/// done so by then.
const SOON: Duration = Duration::from_secs(7 * 86_400);
const DAY: u64 = 86_400;

/// One word, and in words; the first that holds.
pub fn judge(certificates: &Certificates, now: SystemTime) -> (&'static str, String) {
    let left = |expires: Option<SystemTime>| {
        expires.map(|expires| expires.duration_since(now).unwrap_or_default())
    };
    let both = [
        (left(certificates.own), "the agent's certificate"),
        (
            left(certificates.authority),
            "a certificate of the callers' authorities",
        ),
    ];
    if let Some((_, what)) = both.iter().find(|(left, _)| *left == Some(Duration::ZERO)) {
        return ("Expired", format!("{what} has expired"));
    }
    if let Some(trouble) = &certificates.trouble {
        return (
            "NotUsable",
            format!("what is in the files is not in use: {trouble}"),
        );
    }
    let soon = both
        .iter()
        .find_map(|(left, what)| left.filter(|left| *left < SOON).map(|left| (left, what)));
    match soon {
        Some((left, what)) => {
            let days = left.as_secs() / DAY;
            ("ExpiresSoon", format!("{what} expires in {days} days"))
        }
        None => (VALID, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn what_has_expired_comes_before_what_is_not_in_use_and_what_will_expire() {
        let now = UNIX_EPOCH + 100 * SOON;
        let all = |own: SystemTime, authority: SystemTime, trouble: Option<&str>| {
            let certificates = Certificates {
                own: Some(own),
                authority: Some(authority),
                trouble: trouble.map(str::to_owned),
            };
            judge(&certificates, now)
        };
        let (late, soon) = (now + 2 * SOON, now + SOON - Duration::from_secs(1));
        assert_eq!(all(late, late, None), (VALID, String::new()));
        let (reason, words) = all(soon, late, None);
        assert_eq!(reason, "ExpiresSoon");
        assert_eq!(words, "the agent's certificate expires in 6 days");
        assert_eq!(all(late, soon, None).0, "ExpiresSoon");
        assert_eq!(all(soon, late, Some("no key")).0, "NotUsable");
        assert_eq!(all(now, late, Some("no key")).0, "Expired");
        assert_eq!(all(late, now - SOON, None).0, "Expired");
    }
}
