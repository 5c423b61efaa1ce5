//! The span that a caller calls from, as his metadata says it.

use crate::model::trace::TraceParent;
use tonic::metadata::MetadataMap;

/// Reads `traceparent` and `tracestate`. What is malformed, or there twice, is as
/// if it were not there.
pub(super) fn parent(metadata: &MetadataMap) -> Option<TraceParent> {
    let mut parents = metadata.get_all("traceparent").iter();
    let (parent, None) = (parents.next()?, parents.next()) else {
        return None;
    };
    let parent = TraceParent::parse(parent.to_str().ok()?)?;
    // It may be in parts.
    let parts: Result<Vec<&str>, _> = metadata
        .get_all("tracestate")
        .iter()
        .map(|part| part.to_str())
        .collect();
    Some(match parts {
        Ok(parts) => parent.with_state(&parts.join(",")),
        Err(_) => parent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataValue;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn metadata(entries: &[(&'static str, &'static str)]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in entries {
            metadata.append(*key, MetadataValue::from_static(value));
        }
        metadata
    }

    #[test]
    fn a_state_in_parts_is_one() {
        let given = [
            ("traceparent", GIVEN),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
        ];
        let parent = parent(&metadata(&given)).expect("a parent");
        assert_eq!(parent.to_string(), GIVEN);
        assert_eq!(parent.state(), "a=1,b=2");
    }

    #[test]
    fn two_parents_are_none() {
        let given = [("traceparent", GIVEN), ("traceparent", GIVEN)];
        assert_eq!(parent(&metadata(&given)), None);
        assert_eq!(parent(&metadata(&[("tracestate", "a=1")])), None);
        assert_eq!(parent(&metadata(&[("traceparent", "00-0-0-01")])), None);
    }
}
