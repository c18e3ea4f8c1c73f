//! Sessions of the library: opened, described, run.
//!
//! The binding lets one thread at a time run a session, though the library lets any number; so runs go to the
//! library's own interface. All calls that the compiler can't check are here and in `value`.
#![allow(unsafe_code, reason = "calls of a library of C")]

use crate::stop::{End, Stopper};
use crate::text::shortened;
use crate::value::{CpuMemory, Value, place};
use forebay_engine::batch::Input;
use forebay_engine::{Remote, RunError};
use forebay_protocol::oip::{Datatype, Tensor, TensorMetadata};
use ort::AsPointer;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, SharedSessionInner};
use ort::value::{Outlet, TensorElementType, ValueType};
use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The setting that gives memory back behind a run, and its value.
const SHRINK: (&str, &str) = ("memory.enable_memory_arena_shrinkage", "cpu:0");

/// An input or output.
#[derive(Debug)]
pub(crate) struct Slot {
    name: String,
    /// `None`: of a type that no request holds, in words.
    datatype: Result<Datatype, String>,
    shape: Vec<i64>,
    /// Names of its sizes; empty where there is none.
    pub(crate) names: Vec<String>,
    /// Whether a shape is known, or it has no dimensions.
    pub(crate) has_shape: bool,
}

impl Slot {
    fn new(outlet: &Outlet) -> Self {
        let name = outlet.name().to_owned();
        match outlet.dtype() {
            ValueType::Tensor { ty, shape, dimension_symbols } => Self {
                name,
                datatype: datatype(*ty),
                shape: shape.iter().map(|&dim| dim.max(-1)).collect(),
                names: dimension_symbols.iter().cloned().collect(),
                has_shape: !shape.is_empty(),
            },
            other => Self {
                name,
                datatype: Err(format!("{other}")),
                shape: Vec::new(),
                names: Vec::new(),
                has_shape: true,
            },
        }
    }

    /// It as a client is told of it.
    ///
    /// # Errors
    /// No request can hold it.
    pub(crate) fn metadata(&self) -> Result<TensorMetadata, String> {
        let name = self.name.clone();
        let datatype = self.datatype.clone().map_err(|found| {
            format!("expected a tensor of a known datatype, found {found} for \"{name}\"")
        })?;
        Ok(TensorMetadata { name, datatype, shape: self.shape.clone() })
    }
}

fn datatype(kind: TensorElementType) -> Result<Datatype, String> {
    Ok(match kind {
        TensorElementType::Bool => Datatype::Bool,
        TensorElementType::Uint8 => Datatype::Uint8,
        TensorElementType::Uint16 => Datatype::Uint16,
        TensorElementType::Uint32 => Datatype::Uint32,
        TensorElementType::Uint64 => Datatype::Uint64,
        TensorElementType::Int8 => Datatype::Int8,
        TensorElementType::Int16 => Datatype::Int16,
        TensorElementType::Int32 => Datatype::Int32,
        TensorElementType::Int64 => Datatype::Int64,
        TensorElementType::Float16 => Datatype::Fp16,
        TensorElementType::Float32 => Datatype::Fp32,
        TensorElementType::Float64 => Datatype::Fp64,
        TensorElementType::String => Datatype::Bytes,
        other => return Err(format!("{other}")),
    })
}

/// A model in the library. All threads may run it at once.
#[derive(Debug)]
pub(crate) struct Session {
    inner: Arc<SharedSessionInner>,
    inputs: Vec<Slot>,
    outputs: Vec<Slot>,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    memory: CpuMemory,
}

impl Session {
    /// Compiles a model, to be run on the calling thread alone.
    ///
    /// # Errors
    /// The library does not take it.
    pub(crate) fn new(onnx: &[u8]) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| shortened(&error.to_string());
        let builder = ort::session::Session::builder().map_err(|e| text(&e))?;
        let builder = builder.with_intra_threads(1).map_err(|e| text(&e))?;
        let builder = builder.with_inter_threads(1).map_err(|e| text(&e))?;
        let builder = builder.with_parallel_execution(false).map_err(|e| text(&e))?;
        // Plans of memory are kept for each shape that comes.
        let builder = builder.with_memory_pattern(false).map_err(|e| text(&e))?;
        let builder = builder.with_log_level(LogLevel::Fatal).map_err(|e| text(&e))?;
        let all = GraphOptimizationLevel::All;
        let mut builder = builder.with_optimization_level(all).map_err(|e| text(&e))?;
        let session = builder.commit_from_memory(onnx).map_err(|e| text(&e))?;
        let name = |outlet: &Outlet| {
            CString::new(outlet.name()).map_err(|_| "expected names without NUL".to_owned())
        };
        Ok(Self {
            inner: session.inner(),
            inputs: session.inputs().iter().map(Slot::new).collect(),
            outputs: session.outputs().iter().map(Slot::new).collect(),
            input_names: session.inputs().iter().map(name).collect::<Result<_, _>>()?,
            output_names: session.outputs().iter().map(name).collect::<Result<_, _>>()?,
            memory: CpuMemory::new().map_err(|error| text(&error))?,
        })
    }

    /// In the model's order.
    pub(crate) fn inputs(&self) -> &[Slot] {
        &self.inputs
    }

    /// In the model's order.
    pub(crate) fn outputs(&self) -> &[Slot] {
        &self.outputs
    }

    /// Runs inputs in the model's order on the calling thread; `outputs` tells of the outputs. `remote` ends the
    /// run from another thread, `shrinks` gives memory back behind it.
    ///
    /// # Errors
    /// The inputs do not fit, the run was ended, or it failed.
    pub(crate) fn run(
        &self,
        inputs: &[Input<'_>],
        outputs: &[TensorMetadata],
        (stopper, remote): (&Arc<Stopper>, Option<Remote>),
        shrinks: bool,
    ) -> Result<Vec<Tensor>, RunError> {
        let engine = |error: ort::Error| RunError::Engine(shortened(&error.to_string()));
        let mut options = RunOptions::new().map_err(engine)?;
        if shrinks {
            options.set(SHRINK.0, SHRINK.1).map_err(engine)?;
        }
        let (options, is_ended) = (Arc::new(options), Arc::new(AtomicBool::new(false)));
        let end = || -> End {
            let (options, is_ended) = (Arc::clone(&options), Arc::clone(&is_ended));
            Arc::new(move || {
                is_ended.store(true, Relaxed);
                // It fails for a run that is over.
                drop(options.terminate());
            })
        };
        let _watched = remote.and_then(|remote| stopper.watch(remote, end()));
        let values = inputs.iter().map(|input| Value::new(&self.memory, input));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        let found = self.call(&options, &values);
        if is_ended.load(Relaxed) {
            return Err(RunError::Cancelled);
        }
        let found = found.map_err(|error| failure(&error))?;
        // The inputs live until all outputs have been read: some may lie in them.
        let lent: Vec<_> = inputs.iter().map(place).collect();
        let read = |(value, output): (Value<'static>, &TensorMetadata)| {
            value.into_tensor((&output.name, output.datatype), &self.inner, &lent)
        };
        found.into_iter().zip(outputs).map(read).collect()
    }

    fn call(
        &self,
        options: &RunOptions,
        inputs: &[Value<'_>],
    ) -> Result<Vec<Value<'static>>, ort::Error> {
        let pointers = |names: &[CString]| -> Vec<*const c_char> {
            names.iter().map(|name| name.as_ptr()).collect()
        };
        let (input_names, output_names) =
            (pointers(&self.input_names), pointers(&self.output_names));
        let inputs: Vec<*const ort::sys::OrtValue> = inputs.iter().map(Value::as_ptr).collect();
        let mut outputs = vec![ptr::null_mut(); output_names.len()];
        // SAFETY: all pointers live until it returns, and the counts are those of the lists. The library lets
        // any number of threads run a session at once.
        let status = unsafe {
            (ort::api().Run)(
                self.inner.ptr().cast_mut(),
                options.ptr(),
                input_names.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                output_names.as_ptr(),
                output_names.len(),
                outputs.as_mut_ptr(),
            )
        };
        // SAFETY: the values are this call's own; those that are there have to be freed.
        let outputs: Vec<Option<Value<'static>>> =
            outputs.into_iter().map(|value| unsafe { Value::owned(value) }).collect();
        // SAFETY: the status is the library's.
        unsafe { ort::Error::result_from_status(status) }?;
        let all: Option<Vec<_>> = outputs.into_iter().collect();
        all.ok_or_else(|| ort::Error::new("expected all outputs, found fewer"))
    }
}

/// Shapes that a graph does not take are a mistake of the caller.
fn failure(error: &ort::Error) -> RunError {
    let text = shortened(&error.to_string());
    match error.code() {
        ort::ErrorCode::InvalidArgument => RunError::Shape(text),
        _ => RunError::Engine(text),
    }
}
