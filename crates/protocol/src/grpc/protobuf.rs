//! The fields of a protobuf message, one after the other, without taking memory for them.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

/// Why bytes are not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The bytes end within a field.
    #[error("a field is cut short")]
    Truncated,
    /// A number has more than 64 bits.
    #[error("a number is too long")]
    Varint,
    /// A kind of field that is not in use any more, or never was.
    #[error("a field has an unknown form")]
    WireType,
    /// A field number out of range.
    #[error("a field has an invalid number")]
    Field,
    /// A field of this message has another form than it has to have.
    #[error("a field has another form than its type")]
    Form,
    /// Text that is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
}

/// The value of a field as it stands there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// Whole numbers, booleans and enumerations.
    Varint(u64),
    /// Numbers of 8 bytes.
    Fixed64([u8; 8]),
    /// Numbers of 4 bytes.
    Fixed32([u8; 4]),
    /// Text, bytes, messages and packed lists.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub(crate) fn bytes(self) -> Result<&'a [u8], ProtobufError> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(ProtobufError::Form) }
    }

    pub(crate) fn text(self) -> Result<&'a str, ProtobufError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| ProtobufError::Text)
    }

    pub(crate) fn varint(self) -> Result<u64, ProtobufError> {
        if let Self::Varint(number) = self { Ok(number) } else { Err(ProtobufError::Form) }
    }

    pub(crate) fn double(self) -> Result<f64, ProtobufError> {
        if let Self::Fixed64(bytes) = self {
            Ok(f64::from_le_bytes(bytes))
        } else {
            Err(ProtobufError::Form)
        }
    }
}

/// The fields of a message in their order, each with its number; stops at the first error.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), ProtobufError> {
        let key = varint(&mut self.0)?;
        let number = u32::try_from(key >> 3).map_err(|_| ProtobufError::Field)?;
        if number == 0 || number >= 1 << 29 {
            return Err(ProtobufError::Field);
        }
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut self.0)?),
            1 => Value::Fixed64(*chunk(&mut self.0)?),
            2 => {
                let length = usize::try_from(varint(&mut self.0)?);
                let length = length.map_err(|_| ProtobufError::Truncated)?;
                let (bytes, rest) =
                    self.0.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(*chunk(&mut self.0)?),
            _ => return Err(ProtobufError::WireType),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Takes a number off the beginning.
pub(crate) fn varint(bytes: &mut &[u8]) -> Result<u64, ProtobufError> {
    let mut number = 0_u64;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        // The tenth byte has room for one bit.
        if index == 9 && byte > 1 {
            return Err(ProtobufError::Varint);
        }
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Ok(number);
        }
    }
    Err(if bytes.len() < 10 { ProtobufError::Truncated } else { ProtobufError::Varint })
}

fn chunk<'a, const N: usize>(bytes: &mut &'a [u8]) -> Result<&'a [u8; N], ProtobufError> {
    let (chunk, rest) = bytes.split_first_chunk().ok_or(ProtobufError::Truncated)?;
    *bytes = rest;
    Ok(chunk)
}

/// The text in one field of a message: of a request for an inference, fields 1 and 2 name model and
/// version. Tensors are stepped over by their lengths, so even a large message costs next to nothing.
/// `None`: it is not there.
///
/// # Errors
/// The message is damaged, or the field no text.
pub fn text_field(message: &[u8], number: u32) -> Result<Option<&str>, ProtobufError> {
    let mut found = None;
    for field in Fields::of(message) {
        let (field, value) = field?;
        // The last one counts, as everywhere in protobuf.
        if field == number {
            found = Some(value.text()?);
        }
    }
    Ok(found)
}

/// An inference with another model or version in place of those that it names. Without a `version`, the
/// message's own goes with its model. Of a field that stands there twice the last one counts, so the
/// message need not be taken apart.
pub fn with_model(message: &[u8], model: Option<&str>, version: Option<&str>) -> Vec<u8> {
    let added = model.map_or(0, str::len) + version.map_or(0, str::len);
    let mut renamed = Vec::with_capacity(message.len() + added + 16);
    renamed.extend_from_slice(message);
    if let Some(model) = model {
        put_bytes(&mut renamed, 1, model.as_bytes());
    }
    if let Some(version) = version.or(model.and(Some(""))) {
        put_bytes(&mut renamed, 2, version.as_bytes());
    }
    renamed
}

/// Appends a number.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends a field of bytes, text or a message.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a field of 8 bytes.
pub(crate) fn put_double(out: &mut Vec<u8>, field: u32, number: f64) {
    put_varint(out, u64::from(field) << 3 | 1);
    out.extend_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_are_read_back() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number);
            assert_eq!(varint(&mut bytes.as_slice()), Ok(number));
        }
        assert_eq!(varint(&mut &[0x80, 0x80][..]), Err(ProtobufError::Truncated));
        assert_eq!(varint(&mut &[0xff; 11][..]), Err(ProtobufError::Varint));
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error_and_then_the_end() {
        for (bytes, error) in [
            (&[0x0a, 5, b'a'][..], ProtobufError::Truncated),
            (&[0x09, 1, 2], ProtobufError::Truncated),
            (&[0x0b], ProtobufError::WireType),
            (&[0x02, 0], ProtobufError::Field),
            (
                &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
                ProtobufError::Truncated,
            ),
        ] {
            let mut fields = Fields::of(bytes);
            assert_eq!(fields.next(), Some(Err(error)), "{bytes:?}");
            assert_eq!(fields.next(), None);
        }
    }

    #[test]
    fn a_text_is_found_wherever_it_stands() {
        let mut message = Vec::new();
        put_bytes(&mut message, 7, &[0; 100]);
        put_bytes(&mut message, 1, b"early");
        put_bytes(&mut message, 1, b"late");
        assert_eq!(text_field(&message, 1), Ok(Some("late")));
        assert_eq!(text_field(&message, 2), Ok(None));
        put_bytes(&mut message, 2, &[0xff]);
        assert_eq!(text_field(&message, 2), Err(ProtobufError::Text));
        let renamed = with_model(&message[..message.len() - 3], Some("small"), None);
        assert_eq!(text_field(&renamed, 1), Ok(Some("small")));
        assert_eq!(text_field(&renamed, 2), Ok(Some("")));
        let renamed = with_model(&renamed, None, Some("7"));
        assert_eq!(text_field(&renamed, 1), Ok(Some("small")));
        assert_eq!(text_field(&renamed, 2), Ok(Some("7")));
        let cut_short = &message[..message.len() - 1];
        assert_eq!(text_field(cut_short, 1), Err(ProtobufError::Truncated));
    }
}
