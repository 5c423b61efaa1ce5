//! Whether a request is the repeat of another one.

use super::fault::internal;
use crate::model::fault::Fault;
use crate::model::ids::RequestId;
use crate::model::reason::Reason;
use serde_json::Value;

/// Lets a request with the id of another one pass if it is the same.
///
/// # Errors
/// `REQUEST_ID_REUSED`, naming the first field that differs.
pub(super) fn repeat(id: RequestId, known: &Value, request: &Value) -> Result<(), Fault> {
    let call = |value: &Value| value["request"]["call"].clone();
    let field = if call(known) == call(request) {
        first_difference(known, request)
    } else {
        Some("call".to_owned())
    };
    match field {
        None => Ok(()),
        Some(field) => {
            let field = as_asked(&field);
            Err(Fault::new(
                Reason::RequestIdReused,
                format!("request_id {id} was used for a request with another {field}"),
            )
            .with("field", field))
        }
    }
}

/// The path of a field as the caller wrote it: the record wraps the request.
fn as_asked(path: &str) -> &str {
    let path = path.strip_prefix("request.").unwrap_or(path);
    path.strip_prefix("import.").unwrap_or(path)
}

/// The path of the first field, in alphabetical order, in which two requests
/// differ.
pub fn first_difference(a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            keys.into_iter().find_map(|key| {
                let inner = first_difference(
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                )?;
                Some(match inner.as_str() {
                    "" => key.clone(),
                    _ if inner.starts_with('[') => format!("{key}{inner}"),
                    _ => format!("{key}.{inner}"),
                })
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(index, (a, b))| {
                let inner = first_difference(a, b)?;
                Some(match inner.as_str() {
                    "" => format!("[{index}]"),
                    _ => format!("[{index}].{inner}"),
                })
            })
        }
        (a, b) if a == b => None,
        _ => Some(String::new()),
    }
}

/// A request as the value that repeats are compared by.
pub fn fingerprint(request: &impl serde::Serialize) -> Result<Value, Fault> {
    serde_json::to_value(request).map_err(|_| internal("a request can't be recorded"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_field_that_differs_is_named_by_its_path() {
        let a = json!({"name": "a", "nics": [{"mac": "1"}, {"mac": "2"}], "labels": {"x": "1"}});
        assert_eq!(first_difference(&a, &a), None);
        let mut b = a.clone();
        b["nics"][1]["mac"] = json!("3");
        assert_eq!(first_difference(&a, &b).as_deref(), Some("nics[1].mac"));
        b["labels"]["y"] = json!("2");
        assert_eq!(first_difference(&a, &b).as_deref(), Some("labels.y"));
        let c = json!({"name": "a", "nics": [], "labels": {"x": "1"}});
        assert_eq!(first_difference(&a, &c).as_deref(), Some("nics"));
    }
}
