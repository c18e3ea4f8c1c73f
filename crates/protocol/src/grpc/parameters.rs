//! The `parameters` of a message.

use super::protobuf::{Fields, ProtobufError, Value};
use crate::oip::{MAX_PARAMETERS, Parameter, Parameters, ParseError, SchedulingParameters};

/// The scheduling parameters of a `ModelInferRequest`. Malformed ones count as absent: the server that runs
/// the request reports them.
pub fn scheduling_parameters(message: &[u8]) -> SchedulingParameters {
    let mut parameters = Vec::new();
    for field in Fields::of(message) {
        let read = match field {
            Ok((4, value)) => push_parameter(&mut parameters, value),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if read.is_err() {
            return SchedulingParameters::default();
        }
    }
    SchedulingParameters::of(&parameters.into_iter().collect::<Parameters>()).unwrap_or_default()
}

/// Fails if there is no room for one more.
pub(super) fn bounded<T>(list: &[T], most: usize, what: &'static str) -> Result<(), ParseError> {
    if list.len() < most { Ok(()) } else { Err(ParseError::TooMany { what, most }) }
}

/// Adds the parameter that stands in one entry.
pub(super) fn push_parameter(
    parameters: &mut Vec<(String, Parameter)>,
    entry: Value<'_>,
) -> Result<(), ParseError> {
    bounded(parameters, MAX_PARAMETERS, "parameters")?;
    let (mut key, mut parameter) = (String::new(), None);
    for field in Fields::of(entry.bytes()?) {
        match field? {
            (1, value) => key = value.text()?.to_owned(),
            (2, value) => parameter = read_parameter(value.bytes()?)?,
            _ => {}
        }
    }
    parameters.extend(parameter.map(|parameter| (key, parameter)));
    Ok(())
}

/// `None`: none of the choices, or one of a later version.
fn read_parameter(message: &[u8]) -> Result<Option<Parameter>, ProtobufError> {
    let mut parameter = None;
    for field in Fields::of(message) {
        parameter = match field? {
            (1, value) => Some(Parameter::Bool(value.varint()? != 0)),
            (2, value) => Some(Parameter::Int(value.varint()?.cast_signed())),
            (3, value) => Some(Parameter::String(value.text()?.to_owned())),
            (4, value) => Some(Parameter::Float(value.double()?)),
            #[allow(clippy::cast_precision_loss, reason = "beyond i64 nothing counts in units")]
            (5, value) => {
                let number = value.varint()?;
                Some(i64::try_from(number).map_or(Parameter::Float(number as f64), Parameter::Int))
            }
            _ => parameter,
        };
    }
    Ok(parameter)
}

#[cfg(test)]
mod tests {
    use super::super::protobuf::{put_bytes, put_varint};
    use super::*;
    use crate::Priority;
    use std::time::Duration;

    /// An entry whose value is the field `field` of a parameter.
    fn entry(name: &str, field: u64, number: u64) -> Vec<u8> {
        let mut value = Vec::new();
        put_varint(&mut value, field << 3);
        put_varint(&mut value, number);
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, name.as_bytes());
        put_bytes(&mut entry, 2, &value);
        entry
    }

    #[test]
    fn a_message_says_how_urgent_it_is() {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, b"model");
        put_bytes(&mut message, 4, &entry("priority", 5, 1));
        put_bytes(&mut message, 5, b"not looked at");
        put_bytes(&mut message, 4, &entry("timeout", 2, 2500));
        let timeout = Some(Duration::from_micros(2500));
        assert_eq!(
            scheduling_parameters(&message),
            SchedulingParameters { priority: Some(Priority::High), timeout }
        );
        for cut in 0..message.len() {
            let _ = scheduling_parameters(&message[..cut]);
        }
        put_bytes(&mut message, 4, &entry("priority", 2, u64::MAX));
        assert_eq!(
            scheduling_parameters(&message),
            SchedulingParameters::default(),
            "-1 is no priority"
        );
        assert_eq!(scheduling_parameters(b""), SchedulingParameters::default());
    }
}
