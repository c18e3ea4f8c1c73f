//! The binary form: `xds.data.orca.v3.OrcaLoadReport`, which gRPC servers send in their trailers.
//!
//! Source: <https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto>.

use super::{Builder, LoadReport, MAX_REPORT_BYTES, ReportError, once};
use crate::grpc::ProtobufError;
use crate::grpc::protobuf::{Fields, Value, put_bytes, put_double};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// gRPC sends no padding, and both must be read.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Fields that hold one number, by the key of the text form.
const NUMBERS: [(u32, &str); 5] = [
    (1, "cpu_utilization"),
    (2, "mem_utilization"),
    (6, "rps_fractional"),
    (7, "eps"),
    (9, "application_utilization"),
];
/// Fields that hold numbers by name.
const MAPS: [(u32, &str); 3] = [(4, "request_cost"), (5, "utilization"), (8, "named_metrics")];

impl LoadReport {
    /// Reads the value of `endpoint-load-metrics-bin`: the binary form in base64.
    ///
    /// # Errors
    /// As of [`LoadReport::parse`].
    pub fn parse_base64(text: &str) -> Result<Self, ReportError> {
        if text.len() > MAX_REPORT_BYTES {
            return Err(ReportError::TooLong);
        }
        let bytes = BASE64.decode(text.trim()).map_err(|_| ReportError::Malformed)?;
        Self::parse_binary(&bytes)
    }

    /// Reads the binary form. A field that this version does not know is passed over, as everywhere
    /// in protobuf.
    ///
    /// # Errors
    /// As of [`LoadReport::parse`].
    pub fn parse_binary(bytes: &[u8]) -> Result<Self, ReportError> {
        if bytes.len() > MAX_REPORT_BYTES {
            return Err(ReportError::TooLong);
        }
        let mut builder = Builder::default();
        for field in Fields::of(bytes) {
            let (number, value) = field?;
            if let Some((_, key)) = NUMBERS.iter().find(|(field, _)| *field == number) {
                builder.entry(key, value.double()?)?;
            } else if let Some((_, map)) = MAPS.iter().find(|(field, _)| *field == number) {
                let (key, value) = map_entry(value)?;
                builder.nested(map, key, value)?;
            }
        }
        Ok(builder.report)
    }

    /// The binary form.
    pub fn to_binary(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        self.for_each(|key, value| match key.split_once('.') {
            Some((_, name)) => {
                let mut entry = Vec::with_capacity(name.len() + 12);
                put_bytes(&mut entry, 1, name.as_bytes());
                put_double(&mut entry, 2, value);
                put_bytes(&mut out, 8, &entry);
            }
            None => {
                let field = NUMBERS.iter().find(|(_, known)| *known == key);
                if let Some((field, _)) = field {
                    put_double(&mut out, *field, value);
                }
            }
        });
        out
    }

    /// The value of `endpoint-load-metrics-bin`.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.to_binary())
    }
}

/// Key and value; what is empty or zero may be left out.
fn map_entry(entry: Value<'_>) -> Result<(&str, f64), ReportError> {
    let (mut key, mut number) = (None, None);
    for field in Fields::of(entry.bytes()?) {
        match field? {
            (1, value) => once(&mut key, value.text()?)?,
            (2, value) => once(&mut number, value.double()?)?,
            _ => {}
        }
    }
    Ok((key.unwrap_or_default(), number.unwrap_or_default()))
}

impl From<ProtobufError> for ReportError {
    fn from(_: ProtobufError) -> Self {
        Self::Malformed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::grpc::protobuf::put_varint;

    fn sample() -> LoadReport {
        LoadReport {
            rif: Some(4),
            slots: Some(2),
            lat_at_rif_ms: Some(12.5),
            seq: Some(9),
            cpu_utilization: Some(0.25),
            ..LoadReport::default()
        }
    }

    fn named(key: &str, number: f64) -> Vec<u8> {
        let (mut entry, mut out) = (Vec::new(), Vec::new());
        put_bytes(&mut entry, 1, key.as_bytes());
        put_double(&mut entry, 2, number);
        put_bytes(&mut out, 8, &entry);
        out
    }

    #[test]
    fn what_is_written_is_read_back_in_every_wrapping() {
        let report = sample();
        let text = report.to_base64();
        assert!(!text.contains('='));
        assert_eq!(LoadReport::parse_base64(&text), Ok(report));
        assert_eq!(LoadReport::parse(&format!("BIN {text}")), Ok(report));
        let padded = format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
        assert_eq!(LoadReport::parse_base64(&padded), Ok(report));
    }

    #[test]
    fn the_public_encoding_is_read_and_written() {
        let bytes = [
            0x09, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0xd3, 0x3f, // 1: 0.3
            0x42, 0x0e, 0x0a, 0x03, b'r', b'i', b'f', // 8: {1: "rif"
            0x11, 0, 0, 0, 0, 0, 0, 0x10, 0x40, // 2: 4.0}
        ];
        let report =
            LoadReport { cpu_utilization: Some(0.3), rif: Some(4), ..LoadReport::default() };
        assert_eq!(LoadReport::parse_binary(&bytes), Ok(report));
        assert_eq!(report.to_binary(), bytes);
        for length in (1..bytes.len()).filter(|length| *length != 9) {
            let cut = LoadReport::parse_binary(&bytes[..length]);
            assert_eq!(cut, Err(ReportError::Malformed), "{length}");
        }
    }

    #[test]
    fn fields_of_other_servers_and_of_later_versions_are_passed_over() {
        let mut bytes = sample().to_binary();
        put_varint(&mut bytes, 3 << 3);
        put_varint(&mut bytes, 70);
        put_double(&mut bytes, 6, 12.5);
        put_double(&mut bytes, 77, -1.0);
        bytes.extend(named("kv_cache", 0.5));
        assert_eq!(LoadReport::parse_binary(&bytes), Ok(sample()));
    }

    #[test]
    fn a_doubtful_report_is_dropped_whole() {
        use ReportError::{BadValue, Duplicate, Malformed, TooLong};
        let twice = [named("rif", 1.0), named("rif", 1.0)].concat();
        let many: Vec<u8> = (0..65).flat_map(|n| named(&n.to_string(), 1.0)).collect();
        let key_twice = [&[0x42, 0x06][..], &[0x0a, 0x01, b'a'].repeat(2)].concat();
        let mut as_text = Vec::new();
        put_bytes(&mut as_text, 1, b"0.5");
        for (bytes, error) in [
            (named("rif", f64::NAN), BadValue),
            (named("rif", -1.0), BadValue),
            (named("rif", f64::INFINITY), BadValue),
            (twice, Duplicate),
            (key_twice, Duplicate),
            (many, TooLong),
            (vec![0; MAX_REPORT_BYTES + 1], TooLong),
            (sample().to_binary()[..20].to_vec(), Malformed),
            (as_text, Malformed),
        ] {
            assert_eq!(LoadReport::parse_binary(&bytes), Err(error), "{bytes:?}");
        }
        assert_eq!(LoadReport::parse_base64("not base64!"), Err(Malformed));
        assert_eq!(LoadReport::parse_base64(&"A".repeat(5000)), Err(TooLong));
    }
}
