//! Parts that a file must not have when the library sees it.
//!
//! The library reads weights in other files itself, from a path that the model gives. Those that a model
//! may leave to files beside it have been put into it by then; whatever is left, in functions or sparse weights, is refused.
//! So are inputs and outputs of types that no request can hold: the binding knows the types of one version.

use prost::Message;

/// The place of a tensor's values if they are in another file.
const EXTERNAL: i32 = 1;
/// Names of the standard's element types by number, and whether the protocol has them.
const TYPES: [(&str, bool); 27] = [
    ("UNDEFINED", false),
    ("FLOAT", true),
    ("UINT8", true),
    ("INT8", true),
    ("UINT16", true),
    ("INT16", true),
    ("INT32", true),
    ("INT64", true),
    ("STRING", true),
    ("BOOL", true),
    ("FLOAT16", true),
    ("DOUBLE", true),
    ("UINT32", true),
    ("UINT64", true),
    ("COMPLEX64", false),
    ("COMPLEX128", false),
    ("BFLOAT16", false),
    ("FLOAT8E4M3FN", false),
    ("FLOAT8E4M3FNUZ", false),
    ("FLOAT8E5M2", false),
    ("FLOAT8E5M2FNUZ", false),
    ("UINT4", false),
    ("INT4", false),
    ("FLOAT4E2M1", false),
    ("FLOAT8E8M0", false),
    ("UINT2", false),
    ("INT2", false),
];
/// Deepest nesting of graphs that is followed.
const MAX_DEPTH: usize = 16;

// The parts of the format that hold tensors, with the numbers that the standard gives to their fields.

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "20")]
    training: Vec<Training>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

#[derive(Clone, PartialEq, Message)]
struct Training {
    #[prost(message, optional, tag = "1")]
    initialization: Option<Graph>,
    #[prost(message, optional, tag = "2")]
    algorithm: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(message, repeated, tag = "7")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "11")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializer: Vec<Sparse>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<Kind>,
}

/// Of several kinds, of which only tensors are served.
#[derive(Clone, PartialEq, Message)]
struct Kind {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorKind>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorKind {
    #[prost(int32, tag = "1")]
    element: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(message, optional, tag = "5")]
    t: Option<Tensor>,
    #[prost(message, optional, tag = "6")]
    g: Option<Graph>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<Graph>,
    #[prost(message, optional, tag = "22")]
    sparse_tensor: Option<Sparse>,
    #[prost(message, repeated, tag = "23")]
    sparse_tensors: Vec<Sparse>,
}

#[derive(Clone, PartialEq, Message)]
struct Sparse {
    #[prost(message, optional, tag = "1")]
    values: Option<Tensor>,
    #[prost(message, optional, tag = "2")]
    indices: Option<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<Entry>,
    #[prost(int32, optional, tag = "14")]
    data_location: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
}

/// Refuses a model with inputs or outputs that no request or answer can hold.
///
/// # Errors
/// It has some, or is no ONNX file.
pub(crate) fn check_types(onnx: &[u8]) -> Result<(), String> {
    let graph = read(onnx)?.graph.unwrap_or_default();
    graph.input.iter().chain(&graph.output).try_for_each(|value| {
        let element = value.kind.as_ref().and_then(|kind| kind.tensor.as_ref());
        let Some(element) = element.map(|tensor| tensor.element) else {
            let name = value.name.escape_debug();
            return Err(format!("expected a tensor, found another kind of value for \"{name}\""));
        };
        let known = usize::try_from(element).ok().and_then(|element| TYPES.get(element));
        match known {
            Some((_, true)) => Ok(()),
            other => {
                let number = element.to_string();
                let found = other.map_or(number.as_str(), |known| known.0);
                let name = value.name.escape_debug();
                Err(format!("expected a type that requests can hold, found {found} for \"{name}\""))
            }
        }
    })
}

fn read(onnx: &[u8]) -> Result<Model, String> {
    Model::decode(onnx).map_err(|error| {
        format!("expected an ONNX model, found bytes that are not one or are cut short: {error}")
    })
}

/// Refuses a model with weights in another file.
///
/// # Errors
/// It has some, is no ONNX file, or is nested too deeply to tell.
pub(crate) fn check_weights(onnx: &[u8]) -> Result<(), String> {
    let model = read(onnx)?;
    let training = model.training.iter();
    let training = training.flat_map(|t| t.initialization.iter().chain(&t.algorithm));
    model.graph.iter().chain(training).try_for_each(|graph| of_graph(graph, 0))?;
    model.functions.iter().try_for_each(|function| {
        of_nodes(&function.node, 0)?;
        function.attribute.iter().try_for_each(|attribute| of_attribute(attribute, 0))
    })
}

fn of_graph(graph: &Graph, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("expected at most {MAX_DEPTH} nested subgraphs"));
    }
    graph.initializer.iter().try_for_each(of_tensor)?;
    graph.sparse_initializer.iter().try_for_each(of_sparse)?;
    of_nodes(&graph.node, depth)
}

fn of_nodes(nodes: &[Node], depth: usize) -> Result<(), String> {
    let mut attributes = nodes.iter().flat_map(|node| &node.attribute);
    attributes.try_for_each(|attribute| of_attribute(attribute, depth))
}

fn of_attribute(attribute: &Attribute, depth: usize) -> Result<(), String> {
    attribute.t.iter().chain(&attribute.tensors).try_for_each(of_tensor)?;
    attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors).try_for_each(of_sparse)?;
    let mut graphs = attribute.g.iter().chain(&attribute.graphs);
    graphs.try_for_each(|graph| of_graph(graph, depth + 1))
}

fn of_sparse(sparse: &Sparse) -> Result<(), String> {
    sparse.values.iter().chain(&sparse.indices).try_for_each(of_tensor)
}

fn of_tensor(tensor: &Tensor) -> Result<(), String> {
    if tensor.data_location == Some(EXTERNAL) || !tensor.external_data.is_empty() {
        let name = tensor.name.escape_debug();
        return Err(format!(
            "expected all weights inside the model file, found \"{name}\" in another file; \
             onnx.save_model(model, path) writes all weights into one file"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn elsewhere() -> Tensor {
        Tensor { name: "w".to_owned(), data_location: Some(EXTERNAL), ..Tensor::default() }
    }

    fn refuses(model: &Model) -> bool {
        check_weights(&model.encode_to_vec()).is_err_and(|error| error.contains("in another file"))
    }

    #[test]
    fn weights_elsewhere_are_found_wherever_a_model_may_have_them() {
        let of_graph = |graph: Graph| Model { graph: Some(graph), ..Model::default() };
        let of_attribute = |attribute: Attribute| Node { attribute: vec![attribute] };
        let graph = Graph { initializer: vec![elsewhere()], ..Graph::default() };
        assert!(refuses(&of_graph(graph.clone())));
        let sparse = Sparse { values: None, indices: Some(elsewhere()) };
        let sparse_graph = Graph { sparse_initializer: vec![sparse.clone()], ..Graph::default() };
        assert!(refuses(&of_graph(sparse_graph)));
        for attribute in [
            Attribute { t: Some(elsewhere()), ..Attribute::default() },
            Attribute { tensors: vec![elsewhere()], ..Attribute::default() },
            Attribute { g: Some(graph.clone()), ..Attribute::default() },
            Attribute { graphs: vec![graph.clone()], ..Attribute::default() },
            Attribute { sparse_tensor: Some(sparse.clone()), ..Attribute::default() },
            Attribute { sparse_tensors: vec![sparse], ..Attribute::default() },
        ] {
            let node = vec![of_attribute(attribute.clone())];
            let inner = Graph { node: node.clone(), ..Graph::default() };
            assert!(refuses(&of_graph(inner)));
            let function = Function { node, attribute: Vec::new() };
            assert!(refuses(&Model { functions: vec![function], ..Model::default() }));
            let function = Function { node: Vec::new(), attribute: vec![attribute] };
            assert!(refuses(&Model { functions: vec![function], ..Model::default() }));
        }
        let training = Training { initialization: None, algorithm: Some(graph) };
        assert!(refuses(&Model { training: vec![training], ..Model::default() }));
    }

    #[test]
    fn inputs_of_types_that_no_request_holds_are_named() {
        let value = |element| {
            let kind = Some(Kind { tensor: Some(TensorKind { element }) });
            ValueInfo { name: "x".to_owned(), kind }
        };
        let of = |value: ValueInfo| {
            let graph = Graph { input: vec![value], ..Graph::default() };
            check_types(&Model { graph: Some(graph), ..Model::default() }.encode_to_vec())
        };
        assert_eq!(of(value(1)), Ok(()));
        for (element, name) in [(16, "BFLOAT16"), (22, "INT4"), (99, "99"), (-1, "-1")] {
            let error = of(value(element)).unwrap_err();
            assert!(error.contains(&format!("found {name} for \"x\"")), "{error}");
        }
        let error = of(ValueInfo { name: "x".to_owned(), kind: None }).unwrap_err();
        assert!(error.starts_with("expected a tensor, found another kind"), "{error}");
    }

    #[test]
    fn a_model_without_any_passes_and_bytes_that_are_none_do_not() {
        let weight = Tensor { name: "w".to_owned(), ..Tensor::default() };
        let graph = Graph { initializer: vec![weight], ..Graph::default() };
        let model = Model { graph: Some(graph), ..Model::default() };
        assert_eq!(check_weights(&model.encode_to_vec()), Ok(()));
        assert!(check_weights(b"no model").is_err());
        let mut graph = Graph::default();
        for _ in 0..40 {
            let attribute = Attribute { g: Some(graph), ..Attribute::default() };
            let node = vec![Node { attribute: vec![attribute] }];
            graph = Graph { node, ..Graph::default() };
        }
        let deep = Model { graph: Some(graph), ..Model::default() };
        assert!(check_weights(&deep.encode_to_vec()).is_err());
    }
}
