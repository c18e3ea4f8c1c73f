//! Pages of metrics as other servers write them: which numbers are taken for load.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops at the first surprise")]

use forebay_protocol::prometheus::{Gauge, PrometheusError, QueueMetrics, Running};
use forebay_protocol::{LoadReport, metric::worker};

#[test]
fn each_servers_page_gives_what_waits_and_what_runs() {
    for (name, metrics, page, waiting, in_flight) in [
        ("vllm", QueueMetrics::VLLM, include_str!("pages/vllm.txt"), 5, Some(26)),
        ("sglang", QueueMetrics::SGLANG, include_str!("pages/sglang.txt"), 2826, Some(2987)),
        ("tgi", QueueMetrics::TGI, include_str!("pages/tgi.txt"), 3, Some(17)),
        ("triton", QueueMetrics::TRITON, include_str!("pages/triton.txt"), 11, None),
        (
            "tensorrt_llm",
            QueueMetrics::TENSORRT_LLM,
            include_str!("pages/tensorrt_llm.txt"),
            6,
            Some(38),
        ),
    ] {
        let expected = LoadReport { queue: Some(waiting), rif: in_flight, ..LoadReport::default() };
        assert_eq!(metrics.read(page.as_bytes()), Ok(expected), "{name}");
        let windows = page.replace('\n', "\r\n");
        assert_eq!(metrics.read(windows.as_bytes()), Ok(expected), "{name}, lines end in CR LF");
    }
}

#[test]
fn our_own_workers_page_gives_slots_too() {
    let page = format!(
        "# TYPE {0} gauge\n{0} 5\n# TYPE {1} gauge\n{1}{{model=\"a\"}} 1\n{1}{{model=\"b\"}} 2\n\
         # TYPE {2} gauge\n{2} 4\n",
        worker::IN_FLIGHT.name,
        worker::QUEUE_DEPTH.name,
        worker::SLOTS.name
    );
    let expected =
        LoadReport { rif: Some(5), queue: Some(3), slots: Some(4), ..LoadReport::default() };
    assert_eq!(QueueMetrics::FOREBAY.read(page.as_bytes()), Ok(expected));
}

#[test]
fn one_servers_page_is_not_taken_for_anothers() {
    let page = include_str!("pages/triton.txt");
    assert_eq!(QueueMetrics::VLLM.read(page.as_bytes()), Err(PrometheusError::Missing));
}

#[test]
fn a_counter_is_never_taken_for_a_load() {
    let page = include_str!("pages/triton.txt");
    for counter in ["nv_inference_exec_count", "nv_inference_count"] {
        let metrics =
            QueueMetrics { running: Running::Apart(Gauge::named(counter)), ..QueueMetrics::TRITON };
        assert_eq!(metrics.read(page.as_bytes()), Err(PrometheusError::NotAGauge), "{counter}");
    }
}

#[test]
fn a_gauge_that_is_not_there_before_the_first_request_is_zero() {
    let page = "# TYPE tgi_queue_size gauge\ntgi_queue_size 2\n";
    let expected = LoadReport { rif: Some(2), queue: Some(2), ..LoadReport::default() };
    assert_eq!(QueueMetrics::TGI.read(page.as_bytes()), Ok(expected));
}
