//! Errors of messages, in words for the author of the client.

use super::{Datatype, MAX_RANK};
use crate::Reason;
use crate::grpc::ProtobufError;

/// Why a message was not understood.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not JSON, or JSON of another form.
    #[error("invalid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Not protobuf.
    #[error("invalid protobuf: {0}")]
    Wire(#[from] ProtobufError),
    /// More entries of a list than are read.
    #[error("expected at most {most} {what}, found more")]
    TooMany {
        /// Entries of what.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// Raw contents for some of the tensors only, or for more than there are.
    #[error("expected raw contents for {expected} tensors, found {found}")]
    RawContents {
        /// Tensors.
        expected: usize,
        /// Raw contents.
        found: usize,
    },
    /// The header `inference-header-content-length` promises more JSON than there is body.
    #[error("expected {expected} bytes of JSON before the binary data, found a body of {found}")]
    JsonLength {
        /// Bytes of JSON that the header promised.
        expected: usize,
        /// Bytes of the whole body.
        found: usize,
    },
    /// More (or fewer) bytes after the JSON than the tensors account for.
    #[error("expected {expected} bytes of binary data after the JSON, found {found}")]
    BinaryLength {
        /// Sum of the tensors' `binary_data_size`.
        expected: usize,
        /// Bytes after the JSON.
        found: usize,
    },
    /// One tensor does not hold together.
    #[error("tensor \"{}\": {problem}", .name.escape_debug())]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// The problem with it.
        problem: TensorProblem,
    },
    /// The message is well-formed, but has a part that its type here does not hold.
    #[error("{place} say more than is read")]
    SaysMore {
        /// Where it is.
        place: &'static str,
    },
    /// A parameter of the request or of a tensor has the wrong type or range.
    #[error("parameter \"{name}\": expected {expected}")]
    Parameter {
        /// Name of the parameter.
        name: &'static str,
        /// The expected type.
        expected: &'static str,
    },
}

impl ParseError {
    /// The reason code that goes with it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Json(_)
            | Self::JsonLength { .. }
            | Self::Wire(_)
            | Self::TooMany { .. }
            | Self::SaysMore { .. } => Reason::InvalidRequest,
            Self::BinaryLength { .. }
            | Self::RawContents { .. }
            | Self::Tensor { .. }
            | Self::Parameter { .. } => Reason::InvalidInput,
        }
    }
}

/// A problem of one tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TensorProblem {
    /// A part of the tensor is not protobuf.
    #[error("invalid protobuf: {0}")]
    Wire(#[from] ProtobufError),
    /// A name that is no datatype; the words say which there are.
    #[error("{0}")]
    UnknownDatatype(String),
    /// Typed contents in a list of another datatype.
    #[error("expected data in {0}, found it in another list")]
    Contents(&'static str),
    /// Typed contents and raw ones.
    #[error("expected either typed or raw contents, found both")]
    TwoContents,
    /// More dimensions than [`MAX_RANK`].
    #[error("expected at most {MAX_RANK} dimensions, found {0}")]
    Rank(usize),
    /// A negative dimension.
    #[error("expected dimensions of 0 or more, found {0}")]
    NegativeDimension(i64),
    /// The product of the dimensions does not fit a machine word.
    #[error("expected a shape whose size fits the address space, found {0:?}")]
    ShapeOverflow(Vec<i64>),
    /// Another number of elements than the shape has.
    #[error("expected {expected} elements for its shape, found {found}")]
    Count {
        /// Product of the dimensions.
        expected: usize,
        /// Elements in the data; at least so many if reading stopped there.
        found: Found,
    },
    /// A nested array that does not follow the shape.
    #[error(
        "expected {expected} entries in dimension {dimension} of the nested data, found {found}"
    )]
    Nesting {
        /// Index of the dimension.
        dimension: usize,
        /// Its size in the shape.
        expected: usize,
        /// Entries that were found.
        found: Found,
    },
    /// Numbers and arrays mixed, or more levels than dimensions.
    #[error("expected data that is flat or nested as its shape, found another nesting")]
    Depth,
    /// An element that is not of the datatype.
    #[error("expected {datatype} data, found {found} at element {index}")]
    Element {
        /// The tensor's datatype.
        datatype: Datatype,
        /// Description of the value found.
        found: String,
        /// Its position in row-major order.
        index: usize,
    },
    /// JSON that is broken inside the data.
    #[error("expected an array of {0} data, found something else")]
    Data(Datatype),
    /// FP16 has no JSON form.
    #[error("expected FP16 data in binary form, found JSON")]
    NoJsonForm,
    /// Neither `data` nor `binary_data_size`.
    #[error("expected data or the parameter binary_data_size, found neither")]
    NoData,
    /// Both `data` and `binary_data_size`.
    #[error("expected either data or the parameter binary_data_size, found both")]
    TwoData,
    /// `binary_data_size` is not a count of bytes.
    #[error("expected a binary_data_size of 0 or more bytes, found {0}")]
    BinarySize(String),
    /// The binary part ends before the tensor does.
    #[error("expected {expected} bytes of binary data, found {found}")]
    BinaryLength {
        /// Bytes that shape and datatype (or `binary_data_size`) call for.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// A BYTES element whose length prefix lies.
    #[error(
        "expected BYTES element {index} to have its length in 4 bytes and then as many bytes, found {left} left"
    )]
    BytesElement {
        /// Position of the element.
        index: usize,
        /// Bytes that were left at its start.
        left: usize,
    },
}

/// A count that may have been cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Exactly so many.
    Exactly(usize),
    /// Reading stopped here.
    MoreThan(usize),
    /// An upper bound, not a count: the text is too short for more.
    AtMost(usize),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(n) => write!(f, "{n}"),
            Self::MoreThan(n) => write!(f, "more than {n}"),
            Self::AtMost(n) => write!(f, "{n} at most"),
        }
    }
}

/// Why a tensor can't be written as JSON; the binary form takes everything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor \"{}\" holds {found}, which JSON can't carry: ask for binary_data", .name.escape_debug())]
pub struct EncodeError {
    /// Name of the tensor.
    pub name: String,
    /// The value that JSON can't carry.
    pub found: &'static str,
}
