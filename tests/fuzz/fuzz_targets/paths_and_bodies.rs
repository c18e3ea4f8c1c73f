//! Paths of the Open Inference Protocol, and bodies of the OpenAI API.
#![no_main]
use forebay_protocol::oip::{self, Path};
use forebay_protocol::openai::EmbeddingsRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<EmbeddingsRequest>(bytes);
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    let Some(parsed) = Path::parse(path) else { return };
    if let Some(renamed) = oip::with_model(path, Some("o/t"), Some("2")) {
        let again = Path::parse(&renamed).expect("a path with another model is one");
        assert_eq!(again.model, Some("o%2Ft"));
        assert_eq!(again.version, Some("2"));
        assert_eq!(again.call, parsed.call);
    }
});
