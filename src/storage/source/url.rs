//! Which URLs may be fetched.
//!
//! URLs are compared by their parts: as texts, `https://images.example` would
//! also allow `https://images.example.evil.net` and
//! `https://images.example@evil.net`.

use super::super::error::StorageError;
use super::refused;
use std::fmt;
use std::str::FromStr;
use ureq::http::Uri;

/// A beginning of URLs that the configuration allows.
///
/// `https://images.example/linux/` allows what is below that folder;
/// `https://` alone allows every server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPrefix {
    text: String,
    scheme: String,
    /// Host in lower case and port; none is every server.
    server: Option<(String, u16)>,
    path: String,
}

impl FromStr for UrlPrefix {
    type Err = StorageError;

    /// Reads a prefix; `SourceRefused` says what is wrong with it.
    fn from_str(text: &str) -> Result<Self, StorageError> {
        if let scheme @ ("http" | "https") = text.strip_suffix("://").unwrap_or("") {
            let (scheme, path) = (scheme.to_owned(), "/".to_owned());
            return Ok(Self {
                text: text.to_owned(),
                scheme,
                server: None,
                path,
            });
        }
        let parts = Parts::read(text)?;
        if parts.uri.query().is_some() {
            return Err(refused(format!("the allowed URL {text:?} has a query")));
        }
        Ok(Self {
            text: text.to_owned(),
            scheme: parts.scheme.to_owned(),
            path: parts.uri.path().to_owned(),
            server: Some(parts.server),
        })
    }
}

impl fmt::Display for UrlPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl UrlPrefix {
    fn covers(&self, url: &Parts) -> bool {
        let path = url.uri.path();
        self.scheme == url.scheme
            && self
                .server
                .as_ref()
                .is_none_or(|server| *server == url.server)
            && path.strip_prefix(self.path.as_str()).is_some_and(|rest| {
                self.path.ends_with('/') || rest.is_empty() || rest.starts_with('/')
            })
    }
}

/// A URL taken apart.
struct Parts {
    uri: Uri,
    scheme: &'static str,
    server: (String, u16),
}

impl Parts {
    fn read(text: &str) -> Result<Self, StorageError> {
        let wrong = |why: &str| refused(format!("the URL {text:?} {why}"));
        let uri: Uri = text.parse().map_err(|_| wrong("is malformed"))?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => ("http", 80),
            Some("https") => ("https", 443),
            _ => return Err(wrong("is neither http nor https")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("names no server"))?;
        // Passwords in URLs end in logs.
        if authority.as_str().contains('@') {
            return Err(wrong("has a user name"));
        }
        if authority.host().is_empty() {
            return Err(wrong("names no server"));
        }
        let server = (
            authority.host().to_ascii_lowercase(),
            authority.port_u16().unwrap_or(default_port),
        );
        // Servers resolve these, so the path would not be below its prefix.
        let climbs = uri.path().split('/').any(|segment| {
            let plain = segment.to_ascii_lowercase().replace("%2e", ".");
            plain == ".." || plain.contains("%2f") || plain.contains("%5c") || plain.contains('\\')
        });
        if climbs {
            return Err(wrong("climbs out of its folder"));
        }
        Ok(Self {
            uri,
            scheme,
            server,
        })
    }
}

/// Returns a URL, taken apart, if one of the prefixes covers it.
pub(super) fn allowed(prefixes: &[UrlPrefix], text: &str) -> Result<Uri, StorageError> {
    let parts = Parts::read(text)?;
    if prefixes.iter().any(|prefix| prefix.covers(&parts)) {
        Ok(parts.uri)
    } else {
        Err(refused(format!(
            "the URL {text:?} is not below an allowed one"
        )))
    }
}

/// Returns the URL that a redirect leads to.
pub(super) fn redirected(from: &Uri, location: &str) -> String {
    let scheme = from.scheme_str().unwrap_or("http");
    let server = from.authority().map_or("", |authority| authority.as_str());
    if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{server}{location}")
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{server}{folder}/{location}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(prefix: &str, url: &str) -> bool {
        allowed(&[prefix.parse().expect("prefix")], url).is_ok()
    }

    #[test]
    fn a_prefix_covers_what_is_below_it() {
        assert!(covers(
            "https://images.example/linux/",
            "https://images.example/linux/a.qcow2"
        ));
        assert!(covers(
            "https://images.example/linux",
            "https://IMAGES.example:443/linux/a?x=1"
        ));
        assert!(covers("https://images.example", "https://images.example/a"));
        assert!(covers("http://", "http://anything.example:8080/a"));
    }

    #[test]
    fn a_prefix_does_not_cover_what_only_looks_alike() {
        for url in [
            "http://images.example/linux/a",
            "https://images.example.evil.net/linux/a",
            "https://images.example@evil.net/linux/a",
            "https://user:password@images.example/linux/a",
            "https://images.example:444/linux/a",
            "https://images.example/linuxes/a",
            "https://images.example/linux/../a",
            "https://images.example/linux/%2E./a",
            "https://images.example/linux/..%2fa",
            "ftp://images.example/linux/a",
            "https:///linux/a",
            "https://images.example/linux/\u{0}",
        ] {
            assert!(!covers("https://images.example/linux", url), "{url}");
        }
    }

    #[test]
    fn a_redirect_is_taken_relative_to_where_it_came_from() {
        let from: Uri = "http://a.example:81/x/y?z".parse().expect("URL");
        for (location, whole) in [
            ("https://b.example/q", "https://b.example/q"),
            ("//b.example/q", "http://b.example/q"),
            ("/q", "http://a.example:81/q"),
            ("q", "http://a.example:81/x/q"),
        ] {
            assert_eq!(redirected(&from, location), whole);
        }
    }
}
