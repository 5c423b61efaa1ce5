//! Reads what people write on the command line: sizes, durations, key=value
//! lists. It only reads; whether a value makes sense is the daemon's business.

use clap_complete::Shell;
use std::collections::HashMap;
use std::time::Duration;

/// Reads a size: `20GiB`, `512M`, `1.5G`, `4096` (bytes). K, M, G and T are
/// powers of 1024, with or without `iB`; `GB` and the like are refused, because
/// half of the world means 1000.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "kb" | "mb" | "gb" | "tb" => {
            let letter = unit.trim().to_ascii_uppercase();
            return Err(format!(
                "{} can mean 1000 or 1024: write {}iB",
                unit.trim(),
                &letter[..1]
            ));
        }
        _ => return Err("expected a size such as 20GiB or 512MiB".into()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 6 || number.ends_with('.') {
        return Err("expected a size such as 20GiB or 512MiB".into());
    }
    let digits: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| "too large".to_owned())?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let scaled = digits
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())?;
    if scaled % scale != 0 && shift == 0 {
        return Err("bytes come whole".into());
    }
    u64::try_from(scaled / scale).map_err(|_| "too large".into())
}

/// Reads a duration: `90s`, `1m30s`, `2h`, `7d`, `500ms`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let fault = || "expected a duration such as 30s, 5m, 1h30m or 7d".to_owned();
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(fault());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(fault)?;
        let number: u64 = rest[..digits].parse().map_err(|_| fault())?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(fault()),
        };
        rest = &rest[unit..];
        let part = number.checked_mul(millis).ok_or("too long")?;
        total = total
            .checked_add(Duration::from_millis(part))
            .ok_or("too long")?;
    }
    // What the wire's duration can hold: 10,000 years.
    if total.as_secs() > 315_576_000_000 {
        return Err("too long".into());
    }
    Ok(total)
}

/// Turns a duration into the wire's.
pub(crate) fn wire_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).expect("below 10^9"),
    }
}

/// Reads `key=value`; the value may be empty and may hold more `=`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected key=value".into()),
    }
}

/// Collects pairs; of one key the last stays.
pub(crate) fn map(pairs: &[(String, String)]) -> HashMap<String, String> {
    pairs.iter().cloned().collect()
}

/// Reads `key=value,word,key=value`: words have no value.
pub(crate) fn words(text: &str) -> Result<Vec<(&str, Option<&str>)>, String> {
    text.split(',')
        .map(|part| match part.trim() {
            "" => Err("an empty part between commas".to_owned()),
            part => Ok(match part.split_once('=') {
                Some((key, value)) => (key.trim(), Some(value.trim())),
                None => (part, None),
            }),
        })
        .collect()
}

/// The value of a key that needs one.
pub(crate) fn needed<'a>(key: &str, value: Option<&'a str>) -> Result<&'a str, String> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("{key} needs a value: {key}=…"))
}

/// The shells that completions are made for.
pub(crate) fn shell(text: &str) -> Result<Shell, String> {
    match text {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err("expected bash, zsh or fish".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("512MiB", 512 << 20),
            ("2g", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("1 TiB", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_size_that_can_be_misread_is_refused() {
        for text in [
            "",
            "GiB",
            "-1",
            "1.5",
            "1.",
            ".5G",
            "1.2.3G",
            "20GB",
            "5X",
            "99999999999T",
            "1e3",
            "340282366920938463463374607431768211456",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(
            size("20GB"),
            Err("GB can mean 1000 or 1024: write GiB".into())
        );
    }

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "60", "s", "-5s", "5 s", "1.5h", "5w", "99999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pair_has_a_key() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err());
        assert!(pair("=b").is_err());
    }

    #[test]
    fn words_may_have_values() {
        assert_eq!(
            words("size=10GiB,keep"),
            Ok(vec![("size", Some("10GiB")), ("keep", None)])
        );
        assert!(words("a,,b").is_err());
    }
}
