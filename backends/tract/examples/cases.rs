//! Models with inputs and right answers, run by the engine as the worker runs it: what the checks
//! beside ONNX Runtime are made of (`tests/onnx`).
//!
//! `cases [--batch N] [--quantized] [--limit SECONDS] < LIST`
//!
//! Each line of standard input names a folder with a `model.onnx` and one or more
//! `test_data_set_N` of `input_M.pb` and `output_M.pb`, as the package `onnx` has them. Each is
//! answered with one line: `ok`, `wrong`, `refused` (the model does not load) or `failed` (it
//! loads, but gives no answer), the folder, and why, separated by tabs. Where the rows of a model
//! are independent, all data sets are also run as one batch. A data set with a file `refused` in the
//! place of outputs is a mistake of the caller, and has to be refused as one.

use anyhow::{Context, Result, bail};
use forebay_protocol::oip::{Data, Datatype, Tensor};
use forebay_tract::{LoadOptions, Model, RunError};
use prost::Message;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tract_onnx::pb;
use tract_onnx::prelude::DatumType;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Relative where values are larger than 1: other kernels, other order of sums.
const TOLERANCE: f64 = 1e-3;
/// The same for halves, which have three decimal digits.
const HALF_TOLERANCE: f64 = 1e-2;
/// Stack of the threads: graphs are walked recursively.
const STACK: usize = 64 << 20;

fn main() -> Result<()> {
    let (options, limit) = arguments()?;
    std::panic::set_hook(Box::new(|_| ()));
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let folder = line?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let (path, options) = (PathBuf::from(&folder), options.clone());
        let work = move || {
            // The receiver has gone if this took too long.
            drop(sender.send(case(&path, &options)));
        };
        let started = Instant::now();
        std::thread::Builder::new().stack_size(STACK).spawn(work)?;
        let (verdict, why) = match receiver.recv_timeout(limit) {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => ("failed", format!("{error:#}")),
            Err(_) => ("failed", format!("no answer within {:?}", started.elapsed())),
        };
        writeln!(out, "{verdict}\t{folder}\t{}", why.replace(['\t', '\n'], " "))?;
        out.flush()?;
    }
    Ok(())
}

fn arguments() -> Result<(LoadOptions, Duration)> {
    let mut options = LoadOptions::default();
    let mut limit = Duration::from_secs(60);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("expected a value of {flag}"));
        match flag.as_str() {
            "--batch" => options.max_batch = value()?.parse()?,
            "--quantized" => options.allow_quantized = true,
            "--limit" => limit = Duration::from_secs(value()?.parse()?),
            other => bail!("expected --batch, --quantized or --limit, found {other}"),
        }
    }
    Ok((options, limit))
}

type Verdict = (&'static str, String);

pub(crate) fn case(folder: &Path, options: &LoadOptions) -> Result<Verdict> {
    let onnx = std::fs::read(folder.join("model.onnx"))?;
    let proto = pb::ModelProto::decode(onnx.as_slice())?;
    let graph = proto.graph.context("expected a graph")?;
    let weights: Vec<&str> = graph.initializer.iter().map(|weight| weight.name.as_str()).collect();
    let inputs: Vec<String> = graph
        .input
        .iter()
        .map(|input| input.name.clone())
        .filter(|name| !weights.contains(&name.as_str()))
        .collect();
    let outputs: Vec<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let mut sets = Vec::new();
    for set in 0.. {
        let set = folder.join(format!("test_data_set_{set}"));
        if !set.is_dir() {
            break;
        }
        let right = if set.join("refused").exists() {
            None
        } else {
            Some(tensors(&set, "output", &outputs)?)
        };
        sets.push((tensors(&set, "input", &inputs)?, right));
    }
    let mut options = options.clone();
    let first = sets.first().context("expected a data set")?;
    options.warm_up =
        first.0.iter().map(|input| (input.name.clone(), input.shape.clone())).collect();
    let model = match Model::load(&onnx, &options) {
        Ok(model) => model,
        Err(error) => return Ok(("refused", error.to_string())),
    };
    for (set, (inputs, expected)) in sets.iter().enumerate() {
        let found = model.run(&[inputs], usize::MAX, &|| false);
        let Some(expected) = expected else {
            match found {
                Err(RunError::Input(_) | RunError::Shape(_)) => continue,
                Err(other) => return Err(other.into()),
                Ok(found) => return Ok(("wrong", format!("set {set}: {found:?} for a mistake"))),
            }
        };
        if let Some(why) = difference(&found?.pop().unwrap_or_default(), expected) {
            return Ok(("wrong", format!("set {set}: {why}")));
        }
    }
    let right: Option<Vec<_>> = sets.iter().map(|(_, right)| right.as_ref()).collect();
    if let (Some(_), Some(right)) = (model.max_batch(), right)
        && sets.len() > 1
    {
        let requests: Vec<&[Tensor]> = sets.iter().map(|(inputs, _)| inputs.as_slice()).collect();
        let form = |inputs: &[Tensor]| model.form(inputs).map(|(_, form)| form);
        if requests.iter().all(|inputs| form(inputs).ok() == form(requests[0]).ok()) {
            for (set, found) in model.run(&requests, 32, &|| false)?.iter().enumerate() {
                if let Some(why) = difference(found, right[set]) {
                    return Ok(("wrong", format!("set {set} in a batch: {why}")));
                }
            }
        }
    }
    let batch = model.unbatched().unwrap_or_default();
    Ok(("ok", format!("{:?} {:?} {batch}", model.build(), model.max_batch())))
}

fn tensors(set: &Path, kind: &str, names: &[String]) -> Result<Vec<Tensor>> {
    let read = |(index, name): (usize, &String)| {
        let bytes = std::fs::read(set.join(format!("{kind}_{index}.pb")))?;
        let proto = pb::TensorProto::decode(bytes.as_slice())?;
        let provider = tract_onnx::data_resolver::MmapDataResolver;
        let tensor = tract_onnx::tensor::load_tensor(&provider, &proto, None)
            .with_context(|| format!("{kind} {index}"))?;
        if tensor.datum_type() == DatumType::String {
            let plain = tensor.try_as_plain_ram()?;
            let data = Data::Bytes(plain.as_slice::<String>()?.iter().collect());
            return Ok(Tensor { name: name.clone(), shape: tensor.shape().to_vec(), data });
        }
        let datatype = datatype(tensor.datum_type()).context("expected a plain datatype")?;
        let plain = tensor.try_as_plain_ram()?;
        let data = Data::from_binary(datatype, tensor.len(), plain.as_bytes());
        let data = data.ok().context("expected as many bytes as elements")?;
        Ok(Tensor { name: name.clone(), shape: tensor.shape().to_vec(), data })
    };
    names.iter().enumerate().map(read).collect()
}

fn datatype(datum_type: DatumType) -> Option<Datatype> {
    Some(match datum_type {
        DatumType::Bool => Datatype::Bool,
        DatumType::U8 => Datatype::Uint8,
        DatumType::U16 => Datatype::Uint16,
        DatumType::U32 => Datatype::Uint32,
        DatumType::U64 => Datatype::Uint64,
        DatumType::I8 => Datatype::Int8,
        DatumType::I16 => Datatype::Int16,
        DatumType::I32 => Datatype::Int32,
        DatumType::I64 => Datatype::Int64,
        DatumType::F16 => Datatype::Fp16,
        DatumType::F32 => Datatype::Fp32,
        DatumType::F64 => Datatype::Fp64,
        _ => return None,
    })
}

/// The first output that is not as it should be, and where.
fn difference(found: &[Tensor], expected: &[Tensor]) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} outputs for {}", found.len(), expected.len()));
    }
    found.iter().zip(expected).find_map(|(found, right)| {
        let name = &right.name;
        if (found.data.datatype(), &found.shape) != (right.data.datatype(), &right.shape) {
            let (a, b) = (found.data.datatype(), right.data.datatype());
            return Some(format!("{name}: {a} {:?} for {b} {:?}", found.shape, right.shape));
        }
        let off = match (&found.data, &right.data) {
            (Data::Fp16(a), Data::Fp16(b)) => {
                let halves =
                    |data: &[u16]| data.iter().map(|&bits| half(bits)).collect::<Vec<f32>>();
                let off =
                    Data::Fp32(halves(a).into()).max_difference(&Data::Fp32(halves(b).into()));
                off.map(|off| off * TOLERANCE / HALF_TOLERANCE)
            }
            (a, b) => a.max_difference(b),
        };
        off.is_none_or(|off| off > TOLERANCE).then(|| {
            let text = |data: &Data| format!("{data:?}").chars().take(120).collect::<String>();
            format!("{name}: off by {off:?}: {} for {}", text(&found.data), text(&right.data))
        })
    })
}

fn half(bits: u16) -> f32 {
    tract_onnx::prelude::f16::from_bits(bits).to_f32()
}
