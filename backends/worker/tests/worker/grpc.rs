//! The same worker over gRPC.

use crate::grpc_client::*;
use crate::harness::*;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use forebay_protocol::grpc::pb::health::health_check_response::ServingStatus;
use forebay_protocol::grpc::pb::health::{HealthCheckRequest, HealthCheckResponse};
use forebay_protocol::grpc::pb::orca::OrcaLoadReportRequest;
use forebay_protocol::grpc::pb::orca::orca_load_report_request::Interval;
use forebay_protocol::grpc::{Code, frame, infer as wire, pb};
use forebay_protocol::oip::{InferRequest, Parameter, Tensor};
use forebay_protocol::{LoadReport, header};
use forebay_worker::{Options, Phase};
use prost::Message;
use std::io::Write;
use std::time::{Duration, Instant};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

fn arith(a: f32, b: f32) -> pb::ModelInferRequest {
    let inputs = vec![tensor("a", &[1, 4], vec![a; 4]), tensor("b", &[1, 4], vec![b; 4])];
    let id = Some(format!("{a} and {b}"));
    wire::write_request("arith", None, &InferRequest { id, inputs, ..InferRequest::default() })
}

fn slow() -> pb::ModelInferRequest {
    let inputs = vec![tensor("x", &[1024], vec![0.03; 1024])];
    wire::write_request("slow", None, &InferRequest { inputs, ..InferRequest::default() })
}

fn report(ended: &Ended) -> LoadReport {
    let value = ended.trailers[header::LOAD_REPORT_BIN].to_str().unwrap();
    LoadReport::parse_base64(value).unwrap()
}

fn sums(message: &[u8]) -> Vec<Tensor> {
    wire::read_response(message).unwrap().outputs
}

fn expected(a: f32, b: f32) -> Vec<Tensor> {
    vec![tensor("sum", &[1, 4], vec![a + b; 4]), tensor("difference", &[1, 4], vec![a - b; 4])]
}

#[tokio::test]
async fn an_inference_is_answered_as_over_rest() {
    let worker = start_fixtures().await;
    let rest = infer(&worker, "arith", arith_body(3.0, 1.0)).await.outputs();
    let ended = call(worker.address(), INFER, &arith(3.0, 1.0)).await;
    let answer: pb::ModelInferResponse = ended.message();
    assert_eq!((answer.model_name.as_str(), answer.model_version.as_str()), ("arith", "1"));
    assert_eq!(answer.id, "3 and 1");
    assert_eq!(answer.raw_output_contents.len(), 2);
    assert_eq!(sums(&ended.messages[0]), rest);
    // Typed contents, one output, a version.
    let mut request = arith(5.0, 2.0);
    request.model_version = "1".to_owned();
    request.raw_input_contents.clear();
    for (input, value) in request.inputs.iter_mut().zip([5.0, 2.0]) {
        let fp32_contents = vec![value; 4];
        input.contents = Some(pb::InferTensorContents { fp32_contents, ..Default::default() });
    }
    request.outputs = vec![pb::model_infer_request::InferRequestedOutputTensor {
        name: "difference".to_owned(),
        ..Default::default()
    }];
    let ended = call(worker.address(), INFER, &request).await;
    assert_eq!(sums(&ended.messages[0]), [tensor("difference", &[1, 4], vec![3.0; 4])]);
}

#[tokio::test]
async fn every_call_of_the_service_answers() {
    let worker = start_fixtures().await;
    let path = |method: &str| format!("{SERVICE}/{method}");
    let (name, version) = ("arith".to_owned(), "1".to_owned());
    let ended = call(worker.address(), &path("ServerLive"), &pb::ServerLiveRequest {}).await;
    assert!(ended.message::<pb::ServerLiveResponse>().live);
    let ended = call(worker.address(), &path("ServerReady"), &pb::ServerReadyRequest {}).await;
    assert!(ended.message::<pb::ServerReadyResponse>().ready);
    let ended =
        call(worker.address(), &path("ServerMetadata"), &pb::ServerMetadataRequest {}).await;
    assert_eq!(ended.message::<pb::ServerMetadataResponse>().name, "forebay-worker");
    for (name, expected) in [("arith", true), ("nobody", false)] {
        let request = pb::ModelReadyRequest { name: name.to_owned(), ..Default::default() };
        let ended = call(worker.address(), &path("ModelReady"), &request).await;
        assert_eq!(ended.message::<pb::ModelReadyResponse>().ready, expected, "{name}");
    }
    let request = pb::ModelMetadataRequest { name: name.clone(), version: version.clone() };
    let ended = call(worker.address(), &path("ModelMetadata"), &request).await;
    let metadata: pb::ModelMetadataResponse = ended.message();
    assert_eq!((metadata.inputs.len(), metadata.outputs.len()), (2, 2));
    assert_eq!(
        (metadata.inputs[0].datatype.as_str(), metadata.versions[0].as_str()),
        ("FP32", "1")
    );
    let request = pb::ModelConfigRequest { name, version };
    let config: pb::ModelConfigResponse =
        call(worker.address(), &path("ModelConfig"), &request).await.message();
    let config = config.config.unwrap();
    assert_eq!((config.name.as_str(), config.input.len()), ("arith", 2));
    assert_eq!(config.input[0].data_type(), pb::DataType::TypeFp32);
    let ended =
        call(worker.address(), &path("RepositoryIndex"), &pb::RepositoryIndexRequest::default())
            .await;
    let index: pb::RepositoryIndexResponse = ended.message();
    assert!(index.models.iter().any(|model| model.name == "arith" && model.state == "READY"));
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_where_that_is_allowed() {
    let load = |name: &str| pb::RepositoryModelLoadRequest {
        model_name: name.to_owned(),
        ..Default::default()
    };
    let path = |method: &str| format!("{SERVICE}/{method}");
    let worker = start_fixtures().await;
    let ended = call(worker.address(), &path("RepositoryModelLoad"), &load("arith")).await;
    ended.refused(Code::PermissionDenied, "forbidden", "models_control");
    let worker = start(Options { models_control: true, ..options(fixtures()) }).await;
    let unload =
        pb::RepositoryModelUnloadRequest { model_name: "arith".to_owned(), ..Default::default() };
    let ended = call(worker.address(), &path("RepositoryModelUnload"), &unload).await;
    ended.message::<pb::RepositoryModelUnloadResponse>();
    let ended = call(worker.address(), INFER, &arith(1.0, 1.0)).await;
    ended.refused(Code::Unavailable, "model_not_ready", "arith");
    let ended = call(worker.address(), &path("RepositoryModelLoad"), &load("arith")).await;
    ended.message::<pb::RepositoryModelLoadResponse>();
    call(worker.address(), INFER, &arith(1.0, 1.0)).await.message::<pb::ModelInferResponse>();
    let ended = call(worker.address(), &path("RepositoryModelLoad"), &load("nobody")).await;
    ended.refused(Code::NotFound, "model_not_found", "nobody");
}

#[tokio::test]
async fn refusals_have_the_status_and_the_words_of_their_reason() {
    let worker = start(Options { max_body: 4096, ..options(fixtures()) }).await;
    let mut unknown = arith(1.0, 1.0);
    unknown.model_name = "nobody".to_owned();
    call(worker.address(), INFER, &unknown).await.refused(
        Code::NotFound,
        "model_not_found",
        "nobody",
    );
    let mut misshapen = arith(1.0, 1.0);
    misshapen.inputs[0].shape = vec![1, 3];
    let ended = call(worker.address(), INFER, &misshapen).await;
    ended.refused(Code::InvalidArgument, "invalid_input", "expected 12 bytes");
    let large = pb::ModelInferRequest { id: "x".repeat(5000), ..arith(1.0, 1.0) };
    let ended = call(worker.address(), INFER, &large).await;
    ended.refused(Code::ResourceExhausted, "body_too_large", "4101");
    for path in ["/inference.GRPCInferenceService/ModelDream", "/nobody.Service/Call"] {
        call_with(worker.address(), path, &[], "").await.refused(
            Code::Unimplemented,
            "not_found",
            "no",
        );
    }
    let whole = framed(&arith(1.0, 1.0));
    let compressed = [&[1][..], &whole[1..]].concat();
    for (headers, body, code, part) in [
        (&[][..], Bytes::new(), Code::InvalidArgument, "found none"),
        (&[], whole.slice(..20), Code::InvalidArgument, "found 15"),
        (&[], [&whole[..], &whole].concat().into(), Code::InvalidArgument, "found more"),
        (&[], Bytes::from_static(b"{\"inputs\":[]}"), Code::InvalidArgument, "found 123"),
        (&[], Bytes::from_static(b"\0\0\0\0\x03\x0a\x09x"), Code::InvalidArgument, "protobuf"),
        (&[], compressed.into(), Code::InvalidArgument, "grpc-encoding"),
        (&[("grpc-encoding", "zstd")], whole.clone(), Code::Unimplemented, "zstd"),
        (&[("grpc-timeout", "soon")], whole.clone(), Code::InvalidArgument, "grpc-timeout"),
    ] {
        let ended = call_with(worker.address(), INFER, headers, body).await;
        assert_eq!(ended.code(), code, "{part}: {}", ended.words());
        assert!(ended.words().contains(part), "{part}: {}", ended.words());
    }
    let metrics = get(&worker, "/metrics").await.text();
    let line = r#"forebay_worker_inferences_total{model="",version="",reason="invalid_request"} 7"#;
    assert!(metrics.contains(line), "{metrics}");
    // Nothing that could read trailers.
    let answer = post(&worker, INFER, whole.clone()).await;
    answer.refused(400, "invalid_request", "expected gRPC over HTTP/2");
    let uri = format!("http://{}{INFER}", worker.address());
    let json = http::Request::post(uri).version(http::Version::HTTP_2);
    let json = json.header("content-type", "application/json").body(whole).unwrap();
    let answer = send(worker.address(), json).await;
    answer.refused(415, "unsupported_encoding", "expected content-type application/grpc");
}

#[tokio::test]
async fn compressed_messages_are_read_and_bombs_refused() {
    let worker = start(Options { max_body: 1 << 20, ..options(fixtures()) }).await;
    let message = arith(2.0, 1.0).encode_to_vec();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&message).unwrap();
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(&message).unwrap();
    let mut bomb = GzEncoder::new(Vec::new(), Compression::fast());
    bomb.write_all(&vec![0; 2 << 20]).unwrap();
    let compressed = |bytes: Vec<u8>| {
        let framed = frame(bytes.len(), |out| out.extend_from_slice(&bytes));
        Bytes::from([&[1][..], &framed[1..]].concat())
    };
    for (name, bytes) in [("gzip", gzip.finish().unwrap()), ("deflate", deflate.finish().unwrap())]
    {
        let body = compressed(bytes);
        let ended = call_with(worker.address(), INFER, &[("grpc-encoding", name)], body).await;
        assert_eq!(sums(&ended.messages[0]), expected(2.0, 1.0), "{name}");
    }
    let body = compressed(bomb.finish().unwrap());
    let ended = call_with(worker.address(), INFER, &[("grpc-encoding", "gzip")], body).await;
    ended.refused(Code::ResourceExhausted, "body_too_large", "more after inflating");
}

#[tokio::test]
async fn a_timeout_ends_a_call_in_time_and_stops_its_work() {
    let worker = start(Options { executors: 1, ..options(fixtures()) }).await;
    let sent = Instant::now();
    let headers = [("grpc-timeout", "60m")];
    let ended = call_with(worker.address(), INFER, &headers, framed(&slow())).await;
    ended.refused(Code::DeadlineExceeded, "deadline_exceeded", "deadline");
    assert!(sent.elapsed() >= Duration::from_millis(60));
    until_busy(&worker, 0, 0).await;
    // The smallest of all deadlines wins.
    let headers = [("grpc-timeout", "1H"), ("x-request-deadline", "60")];
    let ended = call_with(worker.address(), INFER, &headers, framed(&slow())).await;
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    let timeout = Parameter::Int(60_000);
    let request = InferRequest {
        inputs: vec![tensor("x", &[1024], vec![0.03; 1024])],
        parameters: [("timeout".to_owned(), timeout)].into_iter().collect(),
        ..InferRequest::default()
    };
    let ended = call(worker.address(), INFER, &wire::write_request("slow", None, &request)).await;
    assert_eq!(ended.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn load_reports_come_in_trailers_and_out_of_band() {
    let worker = start(Options { executors: 1, ..options(fixtures()) }).await;
    let headers = [("x-request-id", "abc-1")];
    let ended = call_with(worker.address(), INFER, &headers, framed(&arith(1.0, 1.0))).await;
    assert_eq!(ended.headers["x-request-id"], "abc-1");
    assert!(!ended.headers.contains_key(header::LOAD_REPORT), "one report is enough");
    let first = report(&ended);
    assert_eq!(first.rif, Some(0));
    assert!(first.slots >= Some(1), "as many rows as are worth joining: {first}");
    let refused = call(worker.address(), INFER, &pb::ModelInferRequest::default()).await;
    assert!(report(&refused).seq > first.seq);
    let watch = OrcaLoadReportRequest {
        report_interval: Some(Interval { seconds: 0, nanos: 10_000_000 }),
        ..Default::default()
    };
    let path = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
    let mut reports = Call::start(worker.address(), path, &[], framed(&watch)).await;
    let (sender, mut busy) = Call::stream(worker.address(), STREAM, &[]).await;
    // However fast this machine is, a report comes while one of them is under way.
    let feeding = async {
        loop {
            sender.send(framed(&slow())).await.unwrap();
            busy.next().await.unwrap();
        }
    };
    tokio::select! {
        () = until_reported(&mut reports, |rif| rif > 0) => {}
        () = feeding => {}
    }
    drop((sender, busy));
    until_reported(&mut reports, |rif| rif == 0).await;
}

async fn until_reported(reports: &mut Call, wanted: impl Fn(u32) -> bool) {
    let started = Instant::now();
    loop {
        let report = LoadReport::parse_binary(&reports.next().await.unwrap()).unwrap();
        if report.rif.is_some_and(&wanted) {
            return;
        }
        assert!(started.elapsed() < MAX_WAIT, "no such report, but {report}");
    }
}

#[tokio::test]
async fn a_stream_answers_in_order_and_goes_on_after_a_refusal() {
    let worker = start_fixtures().await;
    let (sender, mut call) = Call::stream(worker.address(), STREAM, &[]).await;
    let mut wrong = arith(1.0, 1.0);
    wrong.inputs.pop();
    wrong.raw_input_contents.pop();
    wrong.id = "wrong".to_owned();
    // In pieces, and several in one piece.
    let first = framed(&arith(1.0, 2.0));
    for byte in first.chunks(7) {
        sender.send(Bytes::copy_from_slice(byte)).await.unwrap();
    }
    let rest = [framed(&wrong), framed(&arith(3.0, 4.0)), framed(&arith(5.0, 6.0))].concat();
    sender.send(rest.into()).await.unwrap();
    let answered = |answer: pb::ModelStreamInferResponse| {
        assert_eq!(answer.error_message, "");
        sums(&answer.infer_response.unwrap().encode_to_vec())
    };
    assert_eq!(answered(call.expect().await), expected(1.0, 2.0));
    let refused: pb::ModelStreamInferResponse = call.expect().await;
    assert!(refused.error_message.contains("found no \"b\""), "{}", refused.error_message);
    let response = refused.infer_response.unwrap();
    assert_eq!(response.id, "wrong");
    let reason = response.parameters["x-forebay-reason"].parameter_choice.clone();
    let expected_reason = "invalid_input".to_owned();
    assert_eq!(reason, Some(pb::infer_parameter::ParameterChoice::StringParam(expected_reason)));
    assert_eq!(answered(call.expect().await), expected(3.0, 4.0));
    assert_eq!(answered(call.expect().await), expected(5.0, 6.0));
    drop(sender);
    let ended = call.end().await;
    assert_eq!((ended.code(), ended.messages.len()), (Code::Ok, 0));
    assert_eq!(report(&ended).rif, Some(0));
}

#[tokio::test]
async fn a_stream_that_is_damaged_ends_with_the_reason() {
    let worker = start(Options { max_body: 4096, ..options(fixtures()) }).await;
    for (bytes, code, reason) in [
        (&b"\x02\0\0\0\0"[..], Code::InvalidArgument, "invalid_request"),
        (b"\0\0\0\0\x09abc", Code::InvalidArgument, "invalid_request"),
        (b"\0\0\x01\0\0abc", Code::ResourceExhausted, "body_too_large"),
    ] {
        let (sender, mut call) = Call::stream(worker.address(), STREAM, &[]).await;
        sender.send(framed(&arith(1.0, 2.0))).await.unwrap();
        call.expect::<pb::ModelStreamInferResponse>().await;
        sender.send(Bytes::from_static(bytes)).await.unwrap();
        drop(sender);
        call.end().await.refused(code, reason, "expected");
    }
}

#[tokio::test]
async fn a_message_that_is_only_announced_takes_no_memory() {
    // Room for one body; a hundred clients promise one each and send its first bytes.
    let memory = Options { max_body: 1 << 20, max_body_memory: 1 << 20, ..options(fixtures()) };
    let worker = start(memory).await;
    let mut promises = Vec::new();
    for _ in 0..100 {
        let (sender, call) = Call::stream(worker.address(), STREAM, &[]).await;
        sender.send(Bytes::from_static(b"\0\0\x0f\xff\xffab")).await.unwrap();
        promises.push((sender, call));
    }
    let ended = call(worker.address(), INFER, &arith(1.0, 1.0)).await;
    assert_eq!(sums(&ended.messages[0]), expected(1.0, 1.0));
}

#[tokio::test]
async fn a_message_that_stops_half_way_is_given_up() {
    let patience = Duration::from_millis(100);
    let worker = start(Options { body_timeout: patience, ..options(fixtures()) }).await;
    let (sender, call) = Call::stream(worker.address(), STREAM, &[]).await;
    sender.send(framed(&arith(1.0, 1.0)).slice(..20)).await.unwrap();
    let ended = call.end().await;
    ended.refused(Code::DeadlineExceeded, "request_timeout", "complete body in time");
    let (_sender, call) = Call::stream(worker.address(), STREAM, &[("grpc-timeout", "50m")]).await;
    call.end().await.refused(Code::DeadlineExceeded, "deadline_exceeded", "deadline");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_stops_its_work() {
    let worker = start(Options { executors: 1, ..options(fixtures()) }).await;
    let (sender, call) = Call::stream(worker.address(), STREAM, &[]).await;
    for _ in 0..3 {
        sender.send(framed(&slow())).await.unwrap();
    }
    until_busy(&worker, 1, 2).await;
    drop((sender, call));
    until_busy(&worker, 0, 0).await;
}

#[tokio::test]
async fn health_is_told_and_watched_until_the_worker_closes() {
    let delay = Duration::from_secs(20);
    let worker = start(Options { drain_delay: delay, ..options(fixtures()) }).await;
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let path = "/grpc.health.v1.Health/Check";
    for service in ["", "inference.GRPCInferenceService"] {
        let ended = call(worker.address(), path, &check(service)).await;
        assert_eq!(ended.message::<HealthCheckResponse>().status(), ServingStatus::Serving);
    }
    call(worker.address(), path, &check("nobody")).await.refused(
        Code::NotFound,
        "model_not_found",
        "nobody",
    );
    let watch = "/grpc.health.v1.Health/Watch";
    let mut watched = Call::start(worker.address(), watch, &[], framed(&check(""))).await;
    let mut unknown = Call::start(worker.address(), watch, &[], framed(&check("nobody"))).await;
    let status = |answer: HealthCheckResponse| answer.status();
    assert_eq!(status(watched.expect().await), ServingStatus::Serving);
    assert_eq!(status(unknown.expect().await), ServingStatus::ServiceUnknown);
    let (sender, mut stream) = Call::stream(worker.address(), STREAM, &[]).await;
    sender.send(framed(&arith(1.0, 2.0))).await.unwrap();
    stream.expect::<pb::ModelStreamInferResponse>().await;
    worker.lifecycle().advance(Phase::Draining);
    assert_eq!(status(watched.expect().await), ServingStatus::NotServing);
    // Still served: not everybody has heard of it.
    sender.send(framed(&arith(1.0, 2.0))).await.unwrap();
    stream.expect::<pb::ModelStreamInferResponse>().await;
    worker.lifecycle().advance(Phase::Closing);
    for call in [watched, unknown, stream] {
        call.end().await.refused(Code::Unavailable, "draining", "shutting down");
    }
    worker.finished().await;
}
