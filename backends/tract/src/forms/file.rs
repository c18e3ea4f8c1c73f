//! Forms of a whole file, made before anything is read from it.
//!
//! - Functions that a file defines for itself are put in the place of the nodes that call them.
//! - A `ZipMap` at the end, which would make a list of dictionaries of a tensor, goes; the tensor is served.
//! - A tokenizer becomes a part of the node behind it that counts its tokens.

use super::nodes::{MAX_SUBGRAPHS, plain};
use crate::LoadError;
use crate::operators::TOKENIZER;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb;

/// Nodes that functions may grow to.
const MAX_NODES: usize = 1 << 20;

/// Makes the forms; gives what of the file's interface is served otherwise, in words.
///
/// # Errors
/// Functions that call themselves, or that are written for another operator set.
pub(crate) fn simplify(model: &mut pb::ModelProto) -> Result<Vec<String>, LoadError> {
    inline(model)?;
    let mut notes = Vec::new();
    if let Some(graph) = model.graph.as_mut() {
        join_tokenizers(graph);
        drop_maps(graph, &mut notes);
    }
    Ok(notes)
}

/// Whether two names of a domain are the same.
fn is_same_domain(a: &str, b: &str) -> bool {
    let usual = |domain: &str| ["", "ai.onnx"].contains(&domain);
    a == b || (usual(a) && usual(b))
}

/// Puts functions in the place of calls.
fn inline(model: &mut pb::ModelProto) -> Result<(), LoadError> {
    let functions = std::mem::take(&mut model.functions);
    if functions.is_empty() {
        return Ok(());
    }
    let Some(graph) = model.graph.as_mut() else { return Ok(()) };
    let opsets: HashMap<&str, i64> =
        model.opset_import.iter().map(|set| (set.domain.as_str(), set.version)).collect();
    let mut inliner = Inliner { functions: &functions, opsets, calls: 0, nodes: 0 };
    let nodes = std::mem::take(&mut graph.node);
    graph.node = inliner.nodes(nodes, 0)?;
    Ok(())
}

struct Inliner<'a> {
    functions: &'a [pb::FunctionProto],
    opsets: HashMap<&'a str, i64>,
    calls: usize,
    nodes: usize,
}

impl Inliner<'_> {
    fn nodes(
        &mut self,
        nodes: Vec<pb::NodeProto>,
        depth: usize,
    ) -> Result<Vec<pb::NodeProto>, LoadError> {
        let mut made = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            self.nodes += 1;
            if depth > MAX_SUBGRAPHS || self.nodes > MAX_NODES {
                let why = "functions that call each other too deeply".to_owned();
                return Err(LoadError::Compile(why));
            }
            for attribute in &mut node.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    let inner = std::mem::take(&mut graph.node);
                    graph.node = self.nodes(inner, depth + 1)?;
                }
            }
            let function = self.functions.iter().find(|function| {
                function.name.as_deref() == Some(&node.op_type)
                    && is_same_domain(function.domain.as_deref().unwrap_or(""), &node.domain)
            });
            match function {
                None => made.push(node),
                Some(function) => {
                    let body = self.body(function, &node)?;
                    made.extend(self.nodes(body, depth + 1)?);
                }
            }
        }
        Ok(made)
    }

    /// The nodes of a call.
    fn body(
        &mut self,
        function: &pb::FunctionProto,
        call: &pb::NodeProto,
    ) -> Result<Vec<pb::NodeProto>, LoadError> {
        for set in &function.opset_import {
            let other = self.opsets.iter().find(|(domain, _)| is_same_domain(domain, &set.domain));
            if let Some((_, &version)) = other
                && version != set.version
            {
                return Err(LoadError::Compile(format!(
                    "expected functions for version {version} of the operator set \"{}\", as the \
                     graph is, found {} for version {}",
                    set.domain, call.op_type, set.version
                )));
            }
        }
        self.calls += 1;
        let pairs =
            function.input.iter().zip(call.input.iter().map(Some).chain(std::iter::repeat(None)));
        let mut names: HashMap<String, String> =
            pairs.map(|(own, given)| (own.clone(), given.cloned().unwrap_or_default())).collect();
        for (own, given) in function.output.iter().zip(&call.output) {
            if !given.is_empty() {
                names.insert(own.clone(), given.clone());
            }
        }
        let prefix =
            format!("{}.forebay-call{}", call.output.first().map_or("", |o| o), self.calls);
        let mut body = function.node.clone();
        for node in &mut body {
            // Names of nodes within are those of their values, which are fresh.
            node.name.clear();
            rename(node, &mut names, &prefix, call);
        }
        Ok(body)
    }
}

/// Gives the values of a function's node the names that they have for a call, and its attributes the call's.
fn rename(
    node: &mut pb::NodeProto,
    names: &mut HashMap<String, String>,
    prefix: &str,
    call: &pb::NodeProto,
) {
    let mut named = |name: &mut String| {
        if !name.is_empty() {
            let known = names.entry(name.clone()).or_insert_with(|| format!("{prefix}.{name}"));
            name.clone_from(known);
        }
    };
    node.input.iter_mut().chain(&mut node.output).for_each(&mut named);
    node.attribute.retain_mut(|attribute| {
        if attribute.ref_attr_name.is_empty() {
            return true;
        }
        let given = call.attribute.iter().find(|given| given.name == attribute.ref_attr_name);
        given.is_some_and(|given| {
            let name = attribute.name.clone();
            *attribute = pb::AttributeProto { name, ..given.clone() };
            true
        })
    });
    for attribute in &mut node.attribute {
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            let values = graph.input.iter_mut().chain(&mut graph.output).map(|v| &mut v.name);
            let weights = graph.initializer.iter_mut().map(|weight| &mut weight.name);
            values.chain(weights).for_each(|name| {
                let known = names.entry(name.clone()).or_insert_with(|| format!("{prefix}.{name}"));
                name.clone_from(known);
            });
            graph.node.iter_mut().for_each(|node| rename(node, names, prefix, call));
        }
    }
}

/// Lets the tensors out that a `ZipMap` at the end is given.
pub(crate) fn drop_maps(graph: &mut pb::GraphProto, notes: &mut Vec<String>) {
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let read: HashSet<String> =
        graph.node.iter().flat_map(|node| node.input.iter().cloned()).collect();
    for node in &mut graph.node {
        if node.op_type != "ZipMap" {
            continue;
        }
        let ([input], [output]) = (node.input.as_slice(), node.output.as_slice()) else { continue };
        if !outputs.contains(output) || read.contains(output) {
            continue;
        }
        notes.push(format!(
            "the output \"{output}\" is served as the tensor [rows, classes] that its ZipMap is given"
        ));
        let mut kept = plain("Identity", &[input], output);
        kept.name.clone_from(&node.name);
        for value in graph.output.iter_mut().filter(|value| value.name == *output) {
            let float = pb::tensor_proto::DataType::Float.into();
            let tensor = pb::type_proto::Tensor { elem_type: float, shape: None };
            let value_of = Some(pb::type_proto::Value::TensorType(tensor));
            value.r#type = Some(pb::TypeProto { value: value_of, ..pb::TypeProto::default() });
        }
        *node = kept;
    }
}

/// Nodes that only arrange tokens, between a tokenizer and the node that counts them.
const ARRANGES: [&str; 4] = ["Flatten", "Squeeze", "Identity", "Reshape"];

/// Gives the work of a tokenizer to the node behind it.
fn join_tokenizers(graph: &mut pb::GraphProto) {
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, node) in graph.node.iter().enumerate() {
        node.input.iter().for_each(|input| readers.entry(input).or_default().push(place));
    }
    let is_output = |name: &str| graph.output.iter().any(|output| output.name == name);
    let mut joined = Vec::new();
    for (place, node) in graph.node.iter().enumerate() {
        if node.op_type != "Tokenizer" {
            continue;
        }
        let (mut between, mut at) = (vec![place], place);
        while let [value] = graph.node[at].output.as_slice()
            && !is_output(value)
            && let Some([next]) = readers.get(value.as_str()).map(Vec::as_slice)
        {
            at = *next;
            let next = &graph.node[at];
            if next.op_type == "TfIdfVectorizer" {
                let pad = node.attribute.iter().find(|attribute| attribute.name == "pad_value");
                let mut words = next.attribute.iter().filter(|a| a.name == "pool_strings");
                // Where what fills up is a word, the longest text of a request counts for all.
                if !words.any(|words| pad.is_some_and(|pad| words.strings.contains(&pad.s))) {
                    joined.push((between, at));
                }
                break;
            }
            if !ARRANGES.contains(&next.op_type.as_str()) || next.input.first() != Some(value) {
                break;
            }
            between.push(at);
        }
    }
    let mut gone = HashSet::new();
    for (between, at) in joined {
        let tokenizer = graph.node[between[0]].clone();
        let counts = &mut graph.node[at];
        counts.input.truncate(1);
        counts.input.clone_from(&tokenizer.input);
        counts.attribute.extend(tokenizer.attribute.into_iter().map(|mut attribute| {
            attribute.name.insert_str(0, TOKENIZER);
            attribute
        }));
        gone.extend(between);
    }
    let mut place = 0;
    graph.node.retain(|_| {
        place += 1;
        !gone.contains(&(place - 1))
    });
}
