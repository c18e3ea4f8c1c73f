//! Does it pay to run one request on two threads, where another core is idle? For the bundled models:
//!
//! `cargo run --release -p forebay-tract --features threads --example threads [ROUNDS]`
//!
//! Printed are medians of wall time in milliseconds, for 1 and 8 rows (of a model without batches: 1):
//! - `ours`: our kernels, one thread
//! - `kernels`: the share of one row's time that is spent in our kernels; the rest can't be divided
//! - `most`: so many times faster two threads would be, if those kernels were divided without loss
//! - `tract`, `tract 2`: tract's kernels on one thread, and on two by its own executor
//! - `halves`: our kernels, half of the rows (one at least) on each of two threads
//!
//! In every round each has its turn, so that what else goes on in the machine falls on all.

use anyhow::{Context, Result};
use forebay_protocol::oip::{InferRequest, Tensor};
use forebay_tract::{Build, LoadOptions, Model};
use std::path::Path;
use std::time::Instant;
use tract_linalg::multithread::{Executor, multithread_tract_scope};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MODELS: [(&str, &str); 3] =
    [("magika", "python"), ("ppocr-cls", "upright"), ("silero-vad", "speech")];

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(60), |rounds| rounds.parse())?;
    eprintln!("model        rows     ours kernels  most    tract  tract 2   halves");
    for (name, example) in MODELS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name);
        let onnx = std::fs::read(folder.join("1/model.onnx"))?;
        let request = std::fs::read(folder.join(format!("examples/{example}.json")))?;
        let one = InferRequest::parse(&request, None)?.inputs;
        let load = |build| {
            let shapes = one.iter().map(|input| {
                let dims = input.shape.iter().map(|&dim| i64::try_from(dim));
                let mut shape = dims.collect::<Result<Vec<_>, _>>()?;
                if name != "silero-vad" {
                    shape[0] = -1;
                }
                Ok((input.name.clone(), shape))
            });
            let shapes = shapes.collect::<Result<_>>()?;
            let build = Some(build);
            Ok::<_, anyhow::Error>(Model::load(
                &onnx,
                &LoadOptions { max_batch: 8, shapes, build, ..Default::default() },
            )?)
        };
        let (ours, tract) = (load(Build::Own)?, load(Build::Plain)?);
        let rows = if ours.max_batch().is_some() { vec![1, 8] } else { vec![1] };
        for rows in rows {
            report(name, &ours, &tract, &one, rows, rounds)?;
        }
    }
    Ok(())
}

fn report(
    name: &str,
    ours: &Model,
    tract: &Model,
    one: &[Tensor],
    rows: usize,
    rounds: usize,
) -> Result<()> {
    let two = Executor::multithread(2);
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        times[0].push(time(|| run(ours, one, rows))?);
        times[1].push(time(|| run(tract, one, rows))?);
        times[2].push(time(|| multithread_tract_scope(two.clone(), || run(tract, one, rows)))?);
        times[3].push(time(|| {
            let half = rows.div_ceil(2);
            std::thread::scope(|scope| {
                let other = scope.spawn(|| run(ours, one, half));
                run(ours, one, half)?;
                other.join().ok().context("expected no panic")?
            })
        })?);
    }
    let [own, tract_1, tract_2, halves] = times.map(median);
    let nodes = ours.nodes(one, rounds)?;
    let sum = |only: &str| -> f64 {
        nodes.iter().filter(|node| node.op.starts_with(only)).map(|node| node.seconds).sum()
    };
    let share = sum("Forebay") / sum("");
    let (kernels, most) = (100.0 * share, 1.0 / (1.0 - share / 2.0));
    eprintln!(
        "{name:12} {rows:4} {own:8.3} {kernels:7.0}% {most:5.2} {tract_1:8.3} {tract_2:8.3} {halves:8.3}"
    );
    Ok(())
}

/// So many requests as one batch.
fn run(model: &Model, one: &[Tensor], rows: usize) -> Result<()> {
    model.run(&vec![one; rows], rows, &|| false)?.pop().context("expected an answer").map(drop)
}

/// Milliseconds.
fn time(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
