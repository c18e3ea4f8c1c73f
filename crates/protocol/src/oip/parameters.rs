//! The `parameters` objects: small, flat and bounded.

use super::MAX_PARAMETERS;
use serde::de::{Error, MapAccess, Visitor};
use std::fmt;

/// A parameter's value; the protocol knows no others.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Parameter {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, or a whole one beyond `i64`.
    Float(f64),
    /// Text.
    String(String),
}

/// Parameters of a request, response, input or output, in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters(Vec<(String, Parameter)>);

impl Parameters {
    /// The value of `name`; the last one wins if it stands there twice.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Adds a parameter; more than [`MAX_PARAMETERS`] will not be read by the other side.
    pub fn insert(&mut self, name: impl Into<String>, value: Parameter) {
        self.0.push((name.into(), value));
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Parameter)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A switch such as `binary_data`.
    ///
    /// # Errors
    /// It is there, but neither true nor false.
    pub fn bool(&self, name: &'static str) -> Result<Option<bool>, super::ParseError> {
        match self.get(name) {
            None => Ok(None),
            Some(Parameter::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(super::ParseError::Parameter { name, expected: "true or false" }),
        }
    }

    /// A count such as `timeout`; some clients send it as text.
    ///
    /// # Errors
    /// It is there, but not a whole number of 0 or more.
    pub fn count(&self, name: &'static str) -> Result<Option<u64>, super::ParseError> {
        let value = match self.get(name) {
            None => return Ok(None),
            Some(Parameter::Int(value)) => u64::try_from(*value).ok(),
            Some(Parameter::String(value)) => value.parse().ok(),
            Some(_) => None,
        };
        let expected = "a whole number of 0 or more";
        value.map(Some).ok_or(super::ParseError::Parameter { name, expected })
    }
}

impl FromIterator<(String, Parameter)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (String, Parameter)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl serde::Serialize for Parameters {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de> serde::Deserialize<'de> for Parameters {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Parameters;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of parameters")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if entries.len() == MAX_PARAMETERS {
                        return Err(A::Error::custom(format_args!(
                            "expected at most {MAX_PARAMETERS} parameters, found more"
                        )));
                    }
                    entries.push(entry);
                }
                Ok(Parameters(entries))
            }
            fn visit_unit<E: Error>(self) -> Result<Parameters, E> {
                Ok(Parameters::default())
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

impl<'de> serde::Deserialize<'de> for Parameter {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;
        impl Visitor<'_> for Value {
            type Value = Parameter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number, true or false")
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter::Bool(value))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Parameter, E> {
                Ok(Parameter::Int(value))
            }
            #[allow(clippy::cast_precision_loss, reason = "beyond i64 nothing counts in units")]
            fn visit_u64<E: Error>(self, value: u64) -> Result<Parameter, E> {
                Ok(i64::try_from(value).map_or(Parameter::Float(value as f64), Parameter::Int))
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Parameter, E> {
                Ok(Parameter::Float(value))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Parameter, E> {
                Ok(Parameter::String(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn scalars_are_taken_and_anything_nested_or_endless_is_refused() {
        let parsed: Parameters =
            serde_json::from_str(r#"{"a": true, "b": -1, "c": 0.5, "d": "x", "e": 1e30}"#).unwrap();
        assert_eq!(parsed.get("a"), Some(&Parameter::Bool(true)));
        assert_eq!(parsed.get("b"), Some(&Parameter::Int(-1)));
        assert_eq!(parsed.get("d"), Some(&Parameter::String("x".into())));
        assert!(parsed.count("b").is_err() && parsed.count("c").is_err());
        assert!(serde_json::from_str::<Parameters>(r#"{"a": [1]}"#).is_err());
        assert!(serde_json::from_str::<Parameters>(r#"{"a": {"b": 1}}"#).is_err());
        let many: Vec<_> = (0..=MAX_PARAMETERS).map(|i| format!("\"{i}\":0")).collect();
        assert!(serde_json::from_str::<Parameters>(&format!("{{{}}}", many.join(","))).is_err());
    }
}
