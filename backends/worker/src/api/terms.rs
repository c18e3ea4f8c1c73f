//! The terms that the headers of a request state before its tensors are read: deadline and priority.

use crate::inference::Terms;
use crate::refusal::Refusal;
use forebay_protocol::header as names;
use http::{HeaderMap, HeaderName};
use std::time::Duration;

/// The terms that the headers state.
///
/// # Errors
/// A header makes no sense.
pub(crate) fn of(headers: &HeaderMap) -> Result<Terms, Refusal> {
    let mut terms = Terms::new();
    if let Some(ms) = number(headers, &names::REQUEST_DEADLINE, "milliseconds")? {
        terms.within(Duration::from_millis(ms as u64));
    }
    if let Some(value) = headers.get(names::REQUEST_PRIORITY) {
        let word = value.to_str().unwrap_or_default().trim();
        terms.priority = Some(word.parse().map_err(|expected| {
            let name = names::REQUEST_PRIORITY;
            Refusal::request(format!("header {name}: {expected}, found {value:?}"))
        })?);
    }
    Ok(terms)
}

/// A whole number in a header, of these units.
///
/// # Errors
/// It is something else.
pub(crate) fn number(
    headers: &HeaderMap,
    name: &HeaderName,
    unit: &str,
) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| {
        Refusal::request(format!("expected header {name} in whole {unit}, found {value:?}"))
    })
}
