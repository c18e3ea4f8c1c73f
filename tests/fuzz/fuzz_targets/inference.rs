//! Bodies of the Open Inference Protocol, JSON with binary tensors behind it: what is read is within
//! bounds, and what is written of it is read as the same.
#![no_main]
use forebay_protocol::oip::{InferRequest, InferResponse, SchedulingParameters, Tensor};
use libfuzzer_sys::fuzz_target;

fn tensors_hold(tensors: &[Tensor]) {
    for tensor in tensors {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(elements, tensor.data.len(), "{}", tensor.name);
    }
}

fuzz_target!(|input: (u16, &[u8])| {
    let (json_len, bytes) = input;
    let json_len = (json_len > 0).then_some(usize::from(json_len));
    let _ = SchedulingParameters::in_json(bytes);
    if let Ok(request) = InferRequest::parse(bytes, json_len) {
        tensors_hold(&request.inputs);
        let written = request.encode(|_| true).expect("bytes have a form always");
        let again = InferRequest::parse(&written.body, written.json_len).expect("is read again");
        assert_eq!(again.encode(|_| true).expect("as before"), written);
        // Numbers that JSON has no form for are refused; all others come back as they were.
        if let Ok(text) = request.encode(|_| false) {
            let again = InferRequest::parse(&text.body, text.json_len).expect("is read again");
            assert_eq!(again.inputs, request.inputs);
        }
    }
    if let Ok(response) = InferResponse::parse(bytes, json_len) {
        tensors_hold(&response.outputs);
        let written = response.encode(|_| true).expect("bytes have a form always");
        let again = InferResponse::parse(&written.body, written.json_len).expect("is read again");
        assert_eq!(again.encode(|_| true).expect("as before"), written);
    }
});
