//! PROXY headers: what is read can be written, and is read again as the same.
#![no_main]
use forebay_framing::proxy_protocol::{Version, parse, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some((length, ends))) = parse(bytes) else { return };
    assert!(length <= bytes.len());
    // Bytes after the header do not matter, and no part of a header is a whole one.
    assert!(matches!(parse(&bytes[..length]), Ok(Some(again)) if again == (length, ends)));
    assert!(matches!(parse(&bytes[..length - 1]), Ok(None) | Err(_)));
    let Some(ends) = ends else { return };
    for version in [Version::V1, Version::V2] {
        let Ok(written) = write(version, ends) else { panic!("addresses always fit") };
        let Ok(Some((taken, again))) = parse(&written) else { panic!("what was written is read") };
        assert_eq!(taken, written.len());
        // Ends of two families have no form.
        let Some(again) = again else { continue };
        assert_eq!(again.source.ip(), ends.source.ip().to_canonical());
        assert_eq!(again.destination.ip(), ends.destination.ip().to_canonical());
        assert_eq!(again.source.port(), ends.source.port());
    }
});
