//! TLS and gRPC, against the synthetic backend.

use crate::harness::{self, Backend, Canned, Secret, count, report};
use forebay_loadtest::generate::run::{self, Options};

const FEW: &str = "--requests 60 -c 2 --for 20s --warm-up 0s --timeout 5s";

#[test]
fn requests_over_tls_are_answered_with_every_protocol() {
    let backend = Backend::slots(8);
    let secret = Secret::before(&backend);
    for (protocol, wire) in
        [("http/1.1", "http/1.1 over TLS"), ("h2", "h2 over TLS"), ("grpc", "gRPC over TLS")]
    {
        for trust in [format!("--ca {}", secret.ca), "--insecure".to_owned()] {
            let flags = format!("--model synthetic --protocol {protocol} {trust} {FEW}");
            let report = report(&format!("{} {flags}", secret.url));
            assert_eq!(
                (report.results.ok, report.results.requests),
                (60, 60),
                "{flags}: {:?}",
                report.results.outcomes
            );
            assert_eq!(report.run.protocol, wire);
        }
    }
}

#[test]
fn a_certificate_without_a_trusted_issuer_is_refused_before_the_run() {
    let backend = Backend::slots(1);
    let secret = Secret::before(&backend);
    let plan = harness::plan(&format!("{} --model synthetic {FEW}", secret.url));
    let error = run::run(plan, Options::default()).unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    // And what speaks no TLS at all.
    let plain = backend.url.replace("http:", "https:");
    let plan = harness::plan(&format!("{plain} --insecure --model synthetic {FEW}"));
    let error = run::run(plan, Options::default()).unwrap_err().to_string();
    assert!(error.starts_with("no connection to https://"), "{error}");
}

#[test]
fn grpc_reads_the_metadata_of_the_model_and_shares_connections() {
    let backend = Backend::slots(32);
    for load in ["", "--rate 2k/s"] {
        let report = report(&format!(
            "{} --model synthetic --batch 1,4 --zipf 1 --protocol grpc --streams 16 \
             --requests 500 -c 2 --for 20s --warm-up 0s {load}",
            backend.url
        ));
        assert_eq!(
            (report.results.ok, report.results.requests),
            (500, 500),
            "{load}: {:?}",
            report.results.outcomes
        );
        assert!(report.generator.connections <= 2, "{load}: {:?}", report.generator);
    }
    let unknown = harness::plan(&format!("{} --model nobody --protocol grpc {FEW}", backend.url));
    let error = run::run(unknown, Options::default()).unwrap_err().to_string();
    assert!(error.contains("expected the gRPC status Ok, found Some(NotFound)"), "{error}");
}

#[test]
fn deadlines_and_demands_travel_with_a_call_and_refusals_have_names() {
    let backend = Backend::slots(1);
    let report = report(&format!(
        "{} --model synthetic --protocol grpc --demand constant:400ms --deadline 50ms --streams 4 \
         --requests 4 -c 1 --for 20s --warm-up 0s --timeout 5s",
        backend.url
    ));
    // The first is in service at once; the others' deadline passes in the queue.
    assert_eq!(report.results.ok, 1, "{:?}", report.results.outcomes);
    assert_eq!(count(&report, "grpc DeadlineExceeded deadline_exceeded"), 3);
    assert!(report.results.latency.min >= 0.4, "{:?}", report.results.latency);
}

#[test]
fn a_file_with_a_request_is_sent_in_the_form_that_is_asked_for() {
    let backend = Backend::slots(4);
    for flags in ["", "--encoding binary", "--protocol grpc"] {
        let report = report(&format!(
            "{} --model synthetic --input {} {flags} {FEW}",
            backend.url,
            harness::input()
        ));
        assert_eq!(
            (report.results.ok, report.results.requests),
            (60, 60),
            "{flags}: {:?}",
            report.results.outcomes
        );
    }
}

#[test]
fn an_answer_to_somebody_elses_request_is_wrong() {
    let named = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tool/harness/named.json");
    for (id, class) in [("mine", "200"), ("another", "200 wrong_answer_of_another_request")] {
        let body = format!(r#"{{"id":"{id}","outputs":[{{"name":"o","shape":[1],"data":[1]}}]}}"#);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        let server = Canned::new(&(head + &body), false);
        let report = report(&format!("{} --model m --input {named} {FEW}", server.url));
        assert_eq!(count(&report, class), 60, "{id}: {:?}", report.results.outcomes);
    }
}

#[test]
fn grpc_takes_no_other_requests() {
    let line = "http://127.0.0.1:9 --protocol grpc --path /x -c 1";
    let error = harness::refused(line);
    assert!(error.contains("expected inferences alone"), "{error}");
}
