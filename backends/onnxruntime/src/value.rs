//! Tensors of the protocol to the library's and back.
//!
//! Numbers are read where they lie, in both directions: a request's are lent to the library for the run, and an
//! output lives in its memory until the answer has been written.
//!
//! But an output may be an input: a graph may give one back as it is, and a node that changes nothing is left out. Such
//! an output lies in what was lent, which is the request's and ends before the answer does. So it is copied.
#![allow(unsafe_code, reason = "calls of a library of C")]

use crate::text::shortened;
use bytes::Bytes;
use forebay_engine::RunError;
use forebay_engine::batch::Input;
use forebay_protocol::oip::{BytesData, Data, Datatype, Tensor};
use ort::session::SharedSessionInner;
use ort::sys::{ONNXTensorElementDataType as Kind, OrtValue};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Outputs of fewer bytes are copied, which costs less than to share them.
const SMALL: usize = 4 << 10;

/// The library's word for memory of the processor.
#[derive(Debug)]
pub(crate) struct CpuMemory(NonNull<ort::sys::OrtMemoryInfo>);

// SAFETY: it never changes once it is made.
unsafe impl Send for CpuMemory {}
// SAFETY: as above.
unsafe impl Sync for CpuMemory {}

impl CpuMemory {
    pub(crate) fn new() -> Result<Self, ort::Error> {
        let mut info = ptr::null_mut();
        let (kind, memory) = (
            ort::sys::OrtAllocatorType::OrtDeviceAllocator,
            ort::sys::OrtMemType::OrtMemTypeDefault,
        );
        // SAFETY: it writes the pointer, which is this value's own.
        checked(unsafe { (ort::api().CreateCpuMemoryInfo)(kind, memory, &raw mut info) })?;
        NonNull::new(info).map(Self).ok_or_else(|| ort::Error::new("expected memory, found none"))
    }
}

impl Drop for CpuMemory {
    fn drop(&mut self) {
        // SAFETY: it is this value's own, and no other has it.
        unsafe { (ort::api().ReleaseMemoryInfo)(self.0.as_ptr()) }
    }
}

/// A tensor of the library; `'a`: its numbers lie in memory that is lent to it.
#[derive(Debug)]
pub(crate) struct Value<'a>(NonNull<OrtValue>, PhantomData<&'a [u8]>);

// SAFETY: it is only read.
unsafe impl Send for Value<'_> {}
// SAFETY: as above.
unsafe impl Sync for Value<'_> {}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        // SAFETY: it is this value's own, and no other has it.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

fn checked(status: ort::sys::OrtStatusPtr) -> Result<(), ort::Error> {
    // SAFETY: the status is the library's.
    unsafe { ort::Error::result_from_status(status) }
}

fn engine(error: &ort::Error) -> RunError {
    RunError::Engine(shortened(&error.to_string()))
}

impl<'a> Value<'a> {
    /// An input of a run.
    ///
    /// # Errors
    /// A text is not in UTF-8, or the library takes no such tensor.
    pub(crate) fn new(memory: &CpuMemory, input: &'a Input<'_>) -> Result<Self, RunError> {
        let dims = input.shape.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX));
        let dims: Vec<i64> = dims.collect();
        if let Data::Bytes(texts) = &*input.data {
            let texts = texts.iter().enumerate();
            let texts = texts.skip(input.elements.start).take(input.elements.len());
            return Self::of_texts(&dims, texts).map_err(|error| match error {
                Ok(place) => RunError::Input(format!("expected text in UTF-8 in element {place}")),
                Err(error) => engine(&error),
            });
        }
        let (kind, bytes) = lent(&input.data, input.elements.clone());
        let mut value = ptr::null_mut();
        // SAFETY: shape and numbers live as long as the value, which only reads them.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.0.as_ptr(),
                bytes.as_ptr().cast_mut().cast(),
                bytes.len(),
                dims.as_ptr(),
                dims.len(),
                kind,
                &raw mut value,
            )
        };
        checked(status).map_err(|error| engine(&error))?;
        // SAFETY: it was just made for this call.
        let value = unsafe { Self::owned(value) };
        value.ok_or_else(|| RunError::Engine("expected a tensor, found none".to_owned()))
    }

    /// Texts, each copied into the library's memory; the place of one that is none.
    fn of_texts<'t>(
        dims: &[i64],
        texts: impl Iterator<Item = (usize, &'t [u8])>,
    ) -> Result<Self, Result<usize, ort::Error>> {
        let (mut allocator, mut value) = (ptr::null_mut(), ptr::null_mut());
        let api = ort::api();
        // SAFETY: it writes the pointer; the allocator is the library's own, and never freed.
        checked(unsafe { (api.GetAllocatorWithDefaultOptions)(&raw mut allocator) })
            .map_err(Err)?;
        let kind = Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING;
        // SAFETY: the shape lives until it returns; it writes the pointer.
        let status = unsafe {
            (api.CreateTensorAsOrtValue)(allocator, dims.as_ptr(), dims.len(), kind, &raw mut value)
        };
        checked(status).map_err(Err)?;
        // SAFETY: it was just made for this call.
        let value = unsafe { Self::owned(value) };
        let value = value.ok_or_else(|| Err(ort::Error::new("expected a tensor, found none")))?;
        for (place, (element, text)) in texts.enumerate() {
            if std::str::from_utf8(text).is_err() {
                return Err(Ok(element));
            }
            let mut buffer = ptr::null_mut();
            // SAFETY: the library checks the place, and gives memory of at least so many bytes.
            let status = unsafe {
                (api.GetResizedStringTensorElementBuffer)(
                    value.0.as_ptr(),
                    place,
                    text.len(),
                    &raw mut buffer,
                )
            };
            checked(status).map_err(Err)?;
            if !text.is_empty() && !buffer.is_null() {
                // SAFETY: both have so many bytes, and are not the same memory.
                unsafe { ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), text.len()) }
            }
        }
        Ok(value)
    }

    /// Takes a value over; `None` if there is none.
    ///
    /// # Safety
    /// It is the library's, and no other frees it.
    pub(crate) unsafe fn owned(value: *mut OrtValue) -> Option<Self> {
        Some(Self(NonNull::new(value)?, PhantomData))
    }

    pub(crate) fn as_ptr(&self) -> *const OrtValue {
        self.0.as_ptr()
    }

    /// Shape and number of elements of an output of this type.
    fn shape(&self, datatype: Datatype) -> Result<(Vec<usize>, usize), RunError> {
        let api = ort::api();
        let mut is_tensor = 0;
        // SAFETY: it writes the number.
        checked(unsafe { (api.IsTensor)(self.as_ptr(), &raw mut is_tensor) })
            .map_err(|error| engine(&error))?;
        if is_tensor == 0 {
            return Err(RunError::Engine("expected a tensor as output, found none".to_owned()));
        }
        let mut info = ptr::null_mut();
        // SAFETY: it writes the pointer to a description, which is freed below.
        checked(unsafe { (api.GetTensorTypeAndShape)(self.as_ptr(), &raw mut info) })
            .map_err(|error| engine(&error))?;
        let read = || -> Result<(i32, Vec<i64>), ort::Error> {
            let (mut kind, mut rank) = (0_i32, 0);
            // SAFETY: it writes a number of this size, which may be one that the binding has no name for.
            checked(unsafe { (api.GetTensorElementType)(info, (&raw mut kind).cast()) })?;
            // SAFETY: it writes the number.
            checked(unsafe { (api.GetDimensionsCount)(info, &raw mut rank) })?;
            let mut dims = vec![0; rank];
            // SAFETY: it writes as many numbers as it is told that there is room for.
            checked(unsafe { (api.GetDimensions)(info, dims.as_mut_ptr(), rank) })?;
            Ok((kind, dims))
        };
        let found = read();
        // SAFETY: it is this call's own.
        unsafe { (api.ReleaseTensorTypeAndShapeInfo)(info) };
        let (kind, dims) = found.map_err(|error| engine(&error))?;
        if kind != of(datatype) as i32 {
            return Err(RunError::Engine(format!(
                "expected an output of {datatype}, found another"
            )));
        }
        let dims = dims.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>();
        let dims = dims.map_err(|_| RunError::Engine("expected sizes, found others".to_owned()))?;
        let count = forebay_protocol::oip::element_count(&dims);
        let count =
            count.ok_or_else(|| RunError::Engine("expected a smaller output".to_owned()))?;
        Ok((dims, count))
    }
}

impl Value<'static> {
    /// An output; `session` is what its memory belongs to, unless it lies in some of what was `lent`, by addresses.
    ///
    /// # Errors
    /// It is of another type than it should be.
    pub(crate) fn into_tensor(
        self,
        (name, datatype): (&str, Datatype),
        session: &Arc<SharedSessionInner>,
        lent: &[Range<usize>],
    ) -> Result<Tensor, RunError> {
        let (shape, count) = self.shape(datatype)?;
        let data = match datatype.size() {
            None => Data::Bytes(self.texts(count)?),
            Some(size) => {
                let mut start = ptr::null_mut();
                // SAFETY: it writes the pointer.
                let status =
                    unsafe { (ort::api().GetTensorMutableData)(self.0.as_ptr(), &raw mut start) };
                checked(status).map_err(|error| engine(&error))?;
                let start = NonNull::new(start.cast::<u8>()).filter(|_| count > 0);
                let (start, length) = start.map_or((NonNull::dangling(), 0), |s| (s, count * size));
                let held = Held { value: self, start, length, session: Arc::clone(session) };
                numbers(datatype, count, held, lent)?
            }
        };
        Tensor::new(name, shape, data).map_err(|problem| RunError::Engine(problem.to_string()))
    }

    fn texts(&self, count: usize) -> Result<BytesData, RunError> {
        let (api, mut length) = (ort::api(), 0);
        // SAFETY: it writes the number.
        checked(unsafe { (api.GetStringTensorDataLength)(self.as_ptr(), &raw mut length) })
            .map_err(|error| engine(&error))?;
        let (mut bytes, mut starts) = (vec![0_u8; length], vec![0_usize; count]);
        // SAFETY: it writes as many bytes and places as it is told that there is room for.
        let status = unsafe {
            (api.GetStringTensorContent)(
                self.as_ptr(),
                bytes.as_mut_ptr().cast(),
                length,
                starts.as_mut_ptr(),
                count,
            )
        };
        checked(status).map_err(|error| engine(&error))?;
        let ends = starts.iter().skip(1).copied().chain([length]);
        let mut data = BytesData::default();
        for (start, end) in starts.iter().zip(ends) {
            let text = bytes.get(*start..end).unwrap_or_default();
            if !data.push(text) {
                return Err(RunError::Engine("expected less than 4 GiB of text".to_owned()));
            }
        }
        Ok(data)
    }
}

/// An output whose elements are read where they lie.
#[allow(dead_code, reason = "what the memory belongs to is kept")]
struct Held {
    value: Value<'static>,
    start: NonNull<u8>,
    length: usize,
    session: Arc<SharedSessionInner>,
}

// SAFETY: the memory is the value's, which is only read and freed with it.
unsafe impl Send for Held {}

impl Held {
    /// Whether other memory than its own, at these addresses, is any of it.
    fn lies_in(&self, places: &[Range<usize>]) -> bool {
        let own = addresses(self.as_ref());
        places.iter().any(|place| own.start < place.end && place.start < own.end)
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the value has so many bytes there, for as long as it lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

/// The library keeps its elements in the machine's own byte order, the protocol's is little-endian.
fn numbers(
    datatype: Datatype,
    count: usize,
    held: Held,
    lent: &[Range<usize>],
) -> Result<Data, RunError> {
    const { assert!(cfg!(target_endian = "little"), "expected a little-endian machine") };
    let data = if held.length < SMALL || held.lies_in(lent) {
        Data::from_binary(datatype, count, held.as_ref())
    } else {
        Data::from_shared(datatype, count, Bytes::from_owner(held))
    };
    data.map_err(|problem| RunError::Engine(problem.to_string()))
}

/// Where the memory lies that an input lends to the library; empty for texts, which are copied both ways.
pub(crate) fn place(input: &Input<'_>) -> Range<usize> {
    addresses(lent(&input.data, input.elements.clone()).1)
}

fn addresses(bytes: &[u8]) -> Range<usize> {
    let range = bytes.as_ptr_range();
    range.start.addr()..range.end.addr()
}

/// The numbers of a tensor as bytes, and their type.
fn lent(data: &Data, elements: Range<usize>) -> (Kind, &[u8]) {
    let bytes = match data {
        Data::Bool(data) => bytemuck::cast_slice(&data[elements]),
        Data::Uint8(data) => &data[elements],
        Data::Uint16(data) => bytemuck::cast_slice(&data[elements]),
        Data::Uint32(data) => bytemuck::cast_slice(&data[elements]),
        Data::Uint64(data) => bytemuck::cast_slice(&data[elements]),
        Data::Int8(data) => bytemuck::cast_slice(&data[elements]),
        Data::Int16(data) => bytemuck::cast_slice(&data[elements]),
        Data::Int32(data) => bytemuck::cast_slice(&data[elements]),
        Data::Int64(data) => bytemuck::cast_slice(&data[elements]),
        Data::Fp16(data) => bytemuck::cast_slice(&data[elements]),
        Data::Fp32(data) => bytemuck::cast_slice(&data[elements]),
        Data::Fp64(data) => bytemuck::cast_slice(&data[elements]),
        Data::Bytes(_) => &[],
    };
    (of(data.datatype()), bytes)
}

/// The library's number of a type.
fn of(datatype: Datatype) -> Kind {
    match datatype {
        Datatype::Bool => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        Datatype::Uint8 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        Datatype::Uint16 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        Datatype::Uint32 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        Datatype::Uint64 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        Datatype::Int8 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        Datatype::Int16 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        Datatype::Int32 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        Datatype::Int64 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        Datatype::Fp16 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        Datatype::Fp32 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        Datatype::Fp64 => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        Datatype::Bytes => Kind::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}
