//! One model on the CPU engine, driven line by line: what `backends/tract/compare.py` times beside
//! ONNX Runtime. One thread runs everything, so that a caller decides whose turn it is.
//!
//! `engine MODEL.onnx [--kernels own|tract|channels-last] [--shape NAME=-1,3,48,192]...`
//!
//! Commands on standard input, each answered with one line:
//! - an Open Inference Protocol request, which is loaded and run once: its response
//! - `time N`: seconds of N runs of that request, as a JSON array
//! - `nodes N`: a table of least microseconds by operation and by node, ended by an empty line

use anyhow::{Context, Result, bail};
use forebay_protocol::oip::{InferRequest, InferResponse, Tensor};
use forebay_tract::{Build, LoadOptions, Model};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let (path, mut options) = arguments()?;
    let onnx = std::fs::read(&path).with_context(|| path.clone())?;
    let mut lines = std::io::stdin().lock().lines();
    let mut loaded: Option<(Model, Vec<Tensor>)> = None;
    let mut out = std::io::stdout().lock();
    while let Some(line) = lines.next().transpose()? {
        let count = |text: &str| text.parse::<usize>().context("expected a number of runs");
        match (line.split_once(' '), &loaded) {
            (Some(("time", runs)), Some((model, inputs))) => {
                let seconds =
                    (0..count(runs)?).map(|_| time(model, inputs)).collect::<Result<Vec<_>>>()?;
                writeln!(out, "{seconds:?}")?;
            }
            (Some(("nodes", runs)), Some((model, inputs))) => {
                table(model, inputs, count(runs)?, &mut out)?;
            }
            _ => {
                let request = InferRequest::parse(line.as_bytes(), None)?;
                let shape = |input: &Tensor| (input.name.clone(), input.shape.clone());
                options.warm_up = request.inputs.iter().map(shape).collect();
                let started = Instant::now();
                let model = Model::load(&onnx, &options)?;
                eprintln!(
                    "{path}: loaded in {:.0} ms, {:?}",
                    started.elapsed().as_secs_f64() * 1e3,
                    model.build()
                );
                let outputs = run(&model, &request.inputs)?;
                let response = InferResponse { outputs, ..InferResponse::default() };
                out.write_all(&response.encode(|_| false)?.body)?;
                writeln!(out)?;
                loaded = Some((model, request.inputs));
            }
        }
        out.flush()?;
    }
    Ok(())
}

fn arguments() -> Result<(String, LoadOptions)> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("expected the path of a model")?;
    let mut options = LoadOptions::default();
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("expected a value of {flag}"))?;
        match flag.as_str() {
            "--kernels" => {
                let build = match value.as_str() {
                    "own" => Build::Own,
                    "tract" => Build::Plain,
                    "channels-last" => Build::ChannelsLast,
                    other => bail!("expected own, tract or channels-last, found {other}"),
                };
                options.build = Some(build);
            }
            "--shape" => {
                let (name, dims) = value.split_once('=').context("expected NAME=DIMENSIONS")?;
                let dims = dims.split(',').map(str::parse).collect::<Result<Vec<i64>, _>>()?;
                options.shapes.insert(name.to_owned(), dims);
            }
            other => bail!("expected --kernels or --shape, found {other}"),
        }
    }
    Ok((path, options))
}

fn run(model: &Model, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    model.run(&[inputs], 32, &|| false)?.pop().context("expected an answer")
}

fn time(model: &Model, inputs: &[Tensor]) -> Result<f64> {
    let started = Instant::now();
    run(model, inputs)?;
    Ok(started.elapsed().as_secs_f64())
}

fn table(model: &Model, inputs: &[Tensor], runs: usize, out: &mut impl Write) -> Result<()> {
    let nodes = model.nodes(inputs, runs)?;
    let mut by_op: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for node in &nodes {
        let sum = by_op.entry(&node.op).or_default();
        *sum = (sum.0 + node.seconds, sum.1 + 1);
    }
    let mut by_op: Vec<_> = by_op.into_iter().collect();
    by_op.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for (op, (seconds, count)) in by_op {
        writeln!(out, "{:10.1} us {count:4} x {op}", seconds * 1e6)?;
    }
    let mut nodes: Vec<_> = nodes.iter().collect();
    nodes.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for node in nodes.iter().take(40) {
        writeln!(out, "{:10.1} us {} {}", node.seconds * 1e6, node.op, node.name)?;
    }
    writeln!(out)?;
    Ok(())
}
