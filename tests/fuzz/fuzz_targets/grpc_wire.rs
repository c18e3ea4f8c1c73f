//! gRPC: frames, messages and what is read of them without decoding.
#![no_main]
use bytes::Bytes;
use forebay_protocol::grpc::{self, infer};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((_, message)) = grpc::only_message(&Bytes::copy_from_slice(bytes)) {
        assert_eq!(message.len() + grpc::PREFIX_BYTES, bytes.len());
    }
    let _ = grpc::scheduling_parameters(bytes);
    let model = grpc::text_field(bytes, 1).ok().flatten();
    let renamed = grpc::with_model(bytes, Some("other"), Some("2"));
    if model.is_some() {
        assert_eq!(grpc::text_field(&renamed, 1).ok().flatten(), Some("other"));
    }
    if let Ok(request) = infer::read_request(bytes) {
        let written = infer::write_request("m", None, &request).encode_to_vec();
        let again = infer::read_request(&written).expect("what was written is read");
        assert_eq!(infer::write_request("m", None, &again).encode_to_vec(), written);
    }
    if let Ok(response) = infer::read_response(bytes) {
        let written = infer::write_response(&response).encode_to_vec();
        let again = infer::read_response(&written).expect("what was written is read");
        assert_eq!(infer::write_response(&again).encode_to_vec(), written);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = grpc::parse_timeout(text);
    }
});
