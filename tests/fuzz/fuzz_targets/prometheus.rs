//! Pages of metrics that endpoints serve.
#![no_main]
use forebay_protocol::prometheus::QueueMetrics;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|page: &[u8]| {
    for metrics in [
        QueueMetrics::VLLM,
        QueueMetrics::SGLANG,
        QueueMetrics::TGI,
        QueueMetrics::TRITON,
        QueueMetrics::TENSORRT_LLM,
        QueueMetrics::FOREBAY,
    ] {
        let _ = metrics.read(page);
    }
});
