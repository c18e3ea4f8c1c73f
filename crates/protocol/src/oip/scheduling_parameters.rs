//! The urgency that a request states: the parameters `priority` and `timeout`, as Triton defines them.
//!
//! The program that runs the request reads all of it anyway; one that passes it on must not take tensors
//! apart to know whether it is urgent. So [`SchedulingParameters::in_json`] looks at the beginning of a
//! body only, and at that only if one of the two words stands there.

use super::{Parameters, ParseError};
use crate::Priority;
use memchr::memmem;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::time::Duration;

/// Bytes of JSON that are looked at: with tensors in binary all of it, and else more than enough where
/// `parameters` stand before `inputs`.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// See above. Unstated parameters are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedulingParameters {
    /// The stated priority.
    pub priority: Option<Priority>,
    /// The time that its client is willing to wait.
    pub timeout: Option<Duration>,
}

impl SchedulingParameters {
    /// The values of `parameters`: `priority` as a level, `timeout` in microseconds; 0 of either counts as
    /// unstated.
    ///
    /// # Errors
    /// One of them is not a whole number of 0 or more.
    pub fn of(parameters: &Parameters) -> Result<Self, ParseError> {
        let timeout = parameters.count("timeout")?.filter(|micros| *micros > 0);
        let priority = parameters.count("priority")?.and_then(Priority::from_level);
        Ok(Self { priority, timeout: timeout.map(Duration::from_micros) })
    }

    /// The values in a body that begins with this JSON. Malformed ones count as absent: the server that runs
    /// the request reports them.
    pub fn in_json(json: &[u8]) -> Self {
        let head = &json[..json.len().min(MAX_HEAD_BYTES)];
        let has = |word: &[u8]| memmem::find(head, word).is_some();
        if !has(b"\"priority\"") && !has(b"\"timeout\"") {
            return Self::default();
        }
        let mut parameters = Parameters::default();
        let mut deserializer = serde_json::Deserializer::from_slice(head);
        // An error, if only that the head ends in the middle, says nothing of what came before it.
        let _ = serde::Deserializer::deserialize_map(&mut deserializer, Body(&mut parameters));
        Self::of(&parameters).unwrap_or_default()
    }
}

/// Reads `parameters` out of a body, and nothing behind them.
struct Body<'a>(&'a mut Parameters);

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Key {
    Parameters,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            match key {
                Key::Parameters => {
                    *self.0 = map.next_value()?;
                    break;
                }
                Key::Other => map.next_value::<IgnoredAny>().map(|_| ())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(priority: Option<Priority>, micros: Option<u64>) -> SchedulingParameters {
        SchedulingParameters { priority, timeout: micros.map(Duration::from_micros) }
    }

    #[test]
    fn priority_and_timeout_are_read_wherever_they_stand_in_the_head() {
        let inputs =
            r#""inputs":[{"name":"x","parameters":{"priority":3},"data":["\"priority\":3}"]}]"#;
        for (json, expected) in [
            (
                r#"{"id":"1","parameters":{"priority":1,"timeout":2500}}"#.to_owned(),
                parameters(Some(Priority::High), Some(2500)),
            ),
            (
                format!(r#"{{{inputs}, "parameters" : {{"priority":"2"}}}}"#),
                parameters(Some(Priority::Normal), None),
            ),
            (format!(r#"{{"parameters":{{"timeout":7}},{inputs}"#), parameters(None, Some(7))),
            (format!("{{{inputs}}}"), SchedulingParameters::default()),
            (
                r#"{"parameters":{"priority":0,"timeout":0}}"#.to_owned(),
                SchedulingParameters::default(),
            ),
            (
                r#"{"parameters":{"priority":"urgent","timeout":5}}"#.to_owned(),
                SchedulingParameters::default(),
            ),
            (r#"{"parameters":{"priority":-1}}"#.to_owned(), SchedulingParameters::default()),
            (r#"{"parameters":["priority"]}"#.to_owned(), SchedulingParameters::default()),
            (r#"["priority"]"#.to_owned(), SchedulingParameters::default()),
            (r#"{"parameters":{"priority":1"#.to_owned(), SchedulingParameters::default()),
            (r#""priority""#.to_owned(), SchedulingParameters::default()),
        ] {
            assert_eq!(SchedulingParameters::in_json(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn what_stands_far_back_is_not_looked_for() {
        let parameters = r#""parameters":{"priority":1}"#;
        let data = format!(r#""inputs":[{}1]"#, "1,".repeat(MAX_HEAD_BYTES));
        let first = format!("{{{parameters},{data}}}");
        assert_eq!(SchedulingParameters::in_json(first.as_bytes()).priority, Some(Priority::High));
        let last = format!("{{{data},{parameters}}}");
        assert_eq!(SchedulingParameters::in_json(last.as_bytes()), SchedulingParameters::default());
        // Deep nesting in the head neither overflows the stack nor is an error to anybody.
        let deep = format!(r#"{{"a":{}"priority""#, "[".repeat(MAX_HEAD_BYTES - 100));
        assert_eq!(SchedulingParameters::in_json(deep.as_bytes()), SchedulingParameters::default());
    }
}
