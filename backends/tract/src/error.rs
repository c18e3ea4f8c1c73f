//! Why a model is not loaded, and the words of errors and panics.

/// Why a model was not loaded. All but a cancellation are final for this file and these options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The bytes are no ONNX model, or only the beginning of one.
    #[error("expected an ONNX model, found bytes that are not one or are cut short: {0}")]
    NotOnnx(String),
    /// Weights in other files are not read: a path in a model could lead anywhere.
    #[error("expected all weights inside the model file, found \"{0}\" in another file")]
    ExternalData(String),
    /// A quantised graph, which the engine may fold wrongly.
    #[error(
        "expected a graph without {0} nodes, which may give wrong results here; \
         set allow_quantized = true after comparing outputs"
    )]
    Quantized(String),
    /// Operators that the engine lacks.
    #[error(
        "this engine lacks {count} of the operators: {operators}; export the model without them, \
         with another opset or before an optimiser fuses nodes"
    )]
    Missing {
        /// How many.
        count: usize,
        /// Each with its domain and its first node.
        operators: String,
    },
    /// An operator that the engine would compute wrongly.
    #[error(
        "expected operators that this engine computes rightly, found {operator} \"{node}\" \
         with {attribute}: {value}"
    )]
    Operator {
        /// Its type.
        operator: String,
        /// Its name in the graph.
        node: String,
        /// The attribute that makes it so.
        attribute: String,
        /// The value of the attribute.
        value: String,
    },
    /// The build answers otherwise than the graph of the file.
    #[error(
        "expected the compiled graph to compute what the file's graph does, found {operator} \
         \"{node}\" to differ (outputs off by {off} for inputs of the kind {inputs})"
    )]
    Disagrees {
        /// The first node that differs.
        node: String,
        /// Its operator.
        operator: String,
        /// Largest difference of the outputs, as a share of their largest value.
        off: String,
        /// The inputs.
        inputs: String,
    },
    /// The build gives no answer where the graph of the file has one.
    #[error(
        "expected the compiled graph to run where the file's graph does, in the shapes {shapes} with \
         inputs of the kind {inputs}: {why}"
    )]
    Fails {
        /// Shapes of the inputs.
        shapes: String,
        /// The inputs.
        inputs: String,
        /// The error.
        why: String,
    },
    /// An input or output of a kind that is not served.
    #[error("expected a tensor of a known datatype, found {found} for \"{name}\"")]
    Unsupported {
        /// Name of the input or output.
        name: String,
        /// Its type.
        found: String,
    },
    /// An override names a tensor that the model lacks, or contradicts the model.
    #[error("override of \"{name}\": expected {expected}, found {found}")]
    Override {
        /// Name in the override.
        name: String,
        /// The model's value.
        expected: String,
        /// The override's value.
        found: String,
    },
    /// The engine can't compile the graph.
    #[error("the engine can't compile the graph: {0}")]
    Compile(String),
    /// Compiled, but the warm-up failed.
    #[error("warm-up failed (give inputs a warm_up shape if these do not fit): {0}")]
    WarmUp(String),
    /// The engine panicked.
    #[error("the engine panicked: {0}")]
    Panic(String),
    /// The watch stopped it.
    #[error("cancelled")]
    Cancelled,
}

/// Text of an engine's error, causes included, short enough for a header or a log line.
pub(crate) fn text(error: &(impl std::fmt::Display + ?Sized)) -> String {
    const MAX_MESSAGE: usize = 600;
    let mut text = format!("{error:#}").replace('\n', " ");
    if let Some((cut, _)) = text.char_indices().nth(MAX_MESSAGE) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// Text of a caught panic.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let known = payload.downcast_ref::<String>().map(String::as_str);
    let known = known.or_else(|| payload.downcast_ref::<&str>().copied());
    text(known.unwrap_or("no message"))
}
