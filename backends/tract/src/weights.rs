//! One copy of each weight, for any number of plans that read it.
//!
//! A plan is compiled for each set of input shapes, and compiling makes new copies of weights: constants that
//! are turned or folded, and their copies in the order in which a kernel reads them. Most come out the
//! same for every shape. Kept with each plan they would make a model of 44 MiB one of 700.
//!
//! So each constant of a compiled graph is looked up here by its content, and the copy that is there already
//! takes its place. Nothing is kept alive here: when the last plan that reads a weight is gone, so is the
//! weight. The remaining weights are counted, and are the model's memory.

use crate::lowering;
use crate::operators::NativeOp;
use forebay_kernels::packed::Packed;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::dyn_clone;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::matmul::optimized::{MatMulOperand, OptMatMul, ProtoFusedSpec};
use tract_onnx::tract_core::ops::scan::{OptScan, Scan};
use tract_onnx::tract_core::tract_linalg::mmm::{
    EagerPackedInput, MMMInputValue, PackedMatrixStorage,
};
use tract_onnx::tract_hir::internal::GenericFactoid;

/// Bytes below which a constant is not worth a place of its own.
const SMALL: usize = 256;
/// Bytes from which on a block lies in slices of its own, and of such a slice.
const LARGE: usize = 512 << 10;
const SLICE: usize = 64 << 10;
/// Bytes that a node of a graph takes, with its facts and its operation, beside constants.
const NODE: usize = 2048;

/// The constants of one model, over all of its plans and builds.
#[derive(Default)]
pub(crate) struct Weights {
    /// In the form in which graphs hold them.
    tensors: Shelf<Tensor>,
    /// Packed for tract's kernels.
    blobs: Shelf<Blob>,
    /// Packed for ours.
    packed: Shelf<Packed>,
    /// The compiled plans, and the bytes that each takes beside these constants.
    plans: Mutex<Vec<(Weak<TypedSimplePlan>, Size)>>,
    /// Bytes of the constants before anything was compiled.
    adopted: AtomicUsize,
    /// Of parameters that operations of ours hold, by where they lie: as long as the model.
    parameters: Mutex<HashMap<usize, usize>>,
}

/// Bytes that a plan takes beside shared constants.
#[derive(Debug, Clone, Copy)]
struct Size {
    plan: usize,
    /// The most that a run of it holds at once, in bytes.
    run: usize,
}

impl Weights {
    /// Lets a graph that nothing was compiled of yet hold shared constants.
    pub(crate) fn adopt(&self, template: &mut InferenceModel) -> TractResult<()> {
        for node in template.nodes_mut() {
            let Some(constant) = node.op_as::<Const>() else { continue };
            let shared = self.tensor(constant.val())?;
            let exotic = constant.exotic_fact().map(dyn_clone::clone_box);
            node.op = Box::new(Const::new_with_opt_exotic_fact(Arc::clone(&shared), exotic)?);
            for output in &mut node.outputs {
                if matches!(output.fact.value, GenericFactoid::Only(_)) {
                    output.fact.value = GenericFactoid::Only(Arc::clone(&shared));
                }
            }
        }
        self.adopted.store(self.constants(), Relaxed);
        Ok(())
    }

    /// Makes a plan of a compiled graph, with shared constants.
    pub(crate) fn plan(&self, mut graph: TypedModel) -> TractResult<Arc<TypedSimplePlan>> {
        let bytes = self.share(&mut graph)?;
        let plan = TypedSimplePlan::new(graph)?;
        let size = Size { plan: bytes, run: of_run(&plan, &SymbolValues::default()) };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|(plan, _)| plan.strong_count() > 0);
        plans.push((Arc::downgrade(&plan), size));
        Ok(plan)
    }

    /// Takes in that a plan for all sizes runs with these.
    pub(crate) fn grew(&self, plan: &Arc<TypedSimplePlan>, sizes: &SymbolValues) {
        let run = of_run(plan, sizes);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let known = plans.iter_mut().find(|(known, _)| known.as_ptr() == Arc::as_ptr(plan));
        if let Some((_, size)) = known {
            size.run = size.run.max(run);
        }
    }

    /// Bytes that the model holds while so many runs are under way: its constants, each counted once,
    /// all plans, and for each run what the largest plan needs.
    pub(crate) fn bytes(&self, runs: usize) -> usize {
        let (plans, run) = self.of_plans();
        (self.constants() + plans).saturating_add(run.saturating_mul(runs))
    }

    /// Bytes that would not be there without the plans, less what is packed for kernels: that is the
    /// same for most of them.
    pub(crate) fn of_plans_alone(&self) -> usize {
        self.of_plans().0 + self.tensors.bytes().saturating_sub(self.adopted())
    }

    /// Bytes of the constants before anything was compiled.
    pub(crate) fn adopted(&self) -> usize {
        self.adopted.load(Relaxed)
    }

    /// Bytes of constants alone.
    pub(crate) fn constants(&self) -> usize {
        let parameters = self.parameters.lock().unwrap_or_else(PoisonError::into_inner);
        let parameters: usize = parameters.values().sum();
        self.tensors.bytes() + self.blobs.bytes() + self.packed.bytes() + parameters
    }

    /// Bytes of all plans together, and the most that a run of one holds.
    fn of_plans(&self) -> (usize, usize) {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = plans.iter().filter(|(plan, _)| plan.strong_count() > 0);
        alive.fold((0, 0), |(sum, most), (_, size)| (sum + size.plan, most.max(size.run)))
    }

    /// Puts shared constants into a graph; gives the bytes that it takes beside them.
    fn share(&self, graph: &mut TypedModel) -> TractResult<usize> {
        let mut bytes = 0;
        for node in graph.nodes_mut() {
            bytes += NODE + 2 * node.name.len() + self.share_node(node)?;
        }
        Ok(bytes)
    }

    fn share_node(&self, node: &mut TypedNode) -> TractResult<usize> {
        if let Some(constant) = node.op_as::<Const>() {
            let shared = self.tensor(constant.val())?;
            let exotic = constant.exotic_fact().map(dyn_clone::clone_box);
            node.op = Box::new(Const::new_with_opt_exotic_fact(Arc::clone(&shared), exotic)?);
            let bytes = if is_small(&shared) { of_tensor(&shared) } else { 0 };
            for output in &mut node.outputs {
                output.fact.konst = output.fact.konst.take().map(|_| Arc::clone(&shared));
            }
            return Ok(bytes);
        }
        for output in &mut node.outputs {
            // Known while it was compiled, read by no run.
            output.fact.konst.take_if(|known| !is_small(known));
        }
        if let Some(op) = node.op_as::<NativeOp>() {
            let (place, bytes) = op.memory();
            let parameters = self.parameters.lock();
            parameters.unwrap_or_else(PoisonError::into_inner).insert(place, bytes);
            return Ok(0);
        }
        if let Some(op) = node.op_as_mut::<OptMatMul>() {
            op.micro_ops.iter_mut().for_each(|part| self.share_operands(part));
        } else if let Some(op) = node.op_as::<OptScan>() {
            let mut parameters = (**op).clone();
            let bytes = self.share_plan(&mut parameters.plan)?;
            node.op = Box::new(OptScan::new(Arc::new(parameters)));
            return Ok(bytes);
        } else if let Some(op) = node.op_as_mut::<Scan>() {
            return self.share(&mut op.body);
        } else if let Some(op) = node.op_as_mut::<IfThenElse>() {
            return Ok(self.share(&mut op.then_body)? + self.share(&mut op.else_body)?);
        }
        lowering::share::share(
            node,
            &mut |packed| *packed = self.packed.one(Arc::clone(packed)),
            &mut |plan| self.share_plan(plan),
        )
    }

    fn share_plan(&self, plan: &mut Arc<TypedSimplePlan>) -> TractResult<usize> {
        let mut graph = plan.model().clone();
        let bytes = self.share(&mut graph)?;
        *plan = TypedSimplePlan::new(graph)?;
        Ok(bytes)
    }

    fn share_operands(&self, part: &mut ProtoFusedSpec) {
        let ProtoFusedSpec::AddMatMul { a, b, .. } = part else { return };
        for operand in [a, b] {
            if let MatMulOperand::Const(value) = operand {
                *value = self.operand(&**value);
            }
        }
    }

    /// The same operand with a shared copy of what it reads.
    fn operand(&self, value: &dyn MMMInputValue) -> Box<dyn MMMInputValue> {
        match value.downcast_ref::<EagerPackedInput>() {
            Some(packed) => Box::new(EagerPackedInput {
                packed: self.blobs.one(Arc::clone(&packed.packed)),
                ..packed.clone()
            }),
            None => dyn_clone::clone_box(value),
        }
    }

    fn tensor(&self, tensor: &Arc<Tensor>) -> TractResult<Arc<Tensor>> {
        if tensor.is_plain_ram() && tensor.datum_type().is_copy() {
            return Ok(self.tensors.one(Arc::clone(tensor)));
        }
        let Some(storage) = tensor.storage_as::<PackedMatrixStorage>() else {
            return Ok(Arc::clone(tensor));
        };
        let values = storage.values().iter().map(|value| self.operand(&**value)).collect();
        let shared = PackedMatrixStorage::new_batched(storage.batch_shape(), values);
        Ok(Arc::new(Tensor::from_storage(tensor.datum_type(), tensor.shape(), shared)))
    }
}

/// Bytes that a run holds at most at once, as far as the graph gives shapes: each value from the node
/// that makes it to the last one that reads it.
fn of_run(plan: &TypedSimplePlan, sizes: &SymbolValues) -> usize {
    let (graph, order) = (plan.model(), plan.order_without_consts());
    let mut last: HashMap<usize, usize> = HashMap::new();
    for (place, &node) in order.iter().enumerate() {
        for input in &graph.node(node).inputs {
            last.insert(input.node, place);
        }
    }
    // Outputs stay until the end.
    for output in graph.output_outlets().unwrap_or_default() {
        last.insert(output.node, usize::MAX);
    }
    let size = |node: usize| -> usize {
        let of = |output: &Outlet<TypedFact>| {
            let shape = output.fact.shape.eval_to_usize(sizes);
            let count = shape.map_or(0, |shape| shape.iter().fold(1, |a, &b| b.saturating_mul(a)));
            count.saturating_mul(output.fact.datum_type.size_of())
        };
        graph.node(node).outputs.iter().map(of).fold(0, usize::saturating_add)
    };
    let mut ends: HashMap<usize, Vec<usize>> = HashMap::new();
    let (mut held, mut most) = (0_usize, 0);
    for (place, &node) in order.iter().enumerate() {
        held = held.saturating_add(size(node));
        most = most.max(held);
        ends.entry(last.get(&node).copied().unwrap_or(place)).or_default().push(node);
        let ended = ends.remove(&place).unwrap_or_default();
        held = ended.into_iter().map(size).fold(held, usize::saturating_sub);
    }
    most
}

fn of_tensor(tensor: &Tensor) -> usize {
    tensor.len() * tensor.datum_type().size_of()
}

fn is_small(tensor: &Tensor) -> bool {
    of_tensor(tensor) < SMALL || !tensor.datum_type().is_copy()
}

/// Something of which equal copies may be one.
trait Content {
    fn size(&self) -> usize;
    /// Of all that makes it what it is.
    fn digest(&self) -> blake3::Hash;
    fn is_same(&self, other: &Self) -> bool;
}

impl Content for Tensor {
    fn size(&self) -> usize {
        self.as_bytes().len()
    }

    fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?} {:?}", self.datum_type(), self.shape()).as_bytes());
        hasher.update(self.as_bytes()).finalize()
    }

    fn is_same(&self, other: &Self) -> bool {
        self.datum_type() == other.datum_type()
            && self.shape() == other.shape()
            && self.as_bytes() == other.as_bytes()
    }
}

impl Content for Blob {
    fn size(&self) -> usize {
        self.len()
    }

    fn digest(&self) -> blake3::Hash {
        blake3::hash(self.as_bytes())
    }

    fn is_same(&self, other: &Self) -> bool {
        // Their alignment too.
        self == other
    }
}

impl Content for Packed {
    fn size(&self) -> usize {
        self.bytes()
    }

    fn digest(&self) -> blake3::Hash {
        blake3::hash(self.as_bytes())
    }

    fn is_same(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

/// Bytes that an allocator takes for so many: large blocks lie in whole slices.
fn taken(size: usize) -> usize {
    if size < LARGE { size } else { size.next_multiple_of(SLICE) }
}

/// Constants of one kind that are in use.
struct Shelf<T>(Mutex<Known<T>>);

struct Known<T> {
    by_content: HashMap<blake3::Hash, Weak<T>>,
    /// The same ones, by where they lie: what is one of them need not be read to be found.
    by_address: HashMap<usize, (Weak<T>, usize)>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::new(Known { by_content: HashMap::new(), by_address: HashMap::new() }))
    }
}

impl<T: Content> Shelf<T> {
    /// The copy that is there already, or this one, which is that copy from now on.
    fn one(&self, value: Arc<T>) -> Arc<T> {
        let size = value.size();
        // While it is known its place is taken, so that nothing else can be at this address.
        let address = Arc::as_ptr(&value).addr();
        if size < SMALL || self.known().by_address.contains_key(&address) {
            return value;
        }
        let digest = value.digest();
        let found = {
            let mut known = self.known();
            let found = known.by_content.get(&digest).and_then(Weak::upgrade);
            if found.is_none() {
                known.by_content.insert(digest, Arc::downgrade(&value));
                known.by_address.insert(address, (Arc::downgrade(&value), size));
            }
            found
        };
        match found {
            Some(found) if found.is_same(&value) => found,
            _ => value,
        }
    }

    /// Of all that are in use; forgets the others.
    fn bytes(&self) -> usize {
        let mut known = self.known();
        known.by_content.retain(|_, held| held.strong_count() > 0);
        known.by_address.retain(|_, (held, _)| held.strong_count() > 0);
        known.by_address.values().map(|&(_, size)| taken(size)).sum()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::build::Build;
    use crate::model::Model;
    use crate::options::LoadOptions;
    use prost::Message;
    use tract_onnx::pb;
    use tract_onnx::pb::tensor_proto::DataType;
    use tract_onnx::pb::tensor_shape_proto::Dimension;
    use tract_onnx::pb::tensor_shape_proto::dimension::Value;

    /// Channels of the values between.
    const WIDE: usize = 512;
    /// Bytes of the weights of [`onnx`].
    const FILE: usize = (64 * WIDE + WIDE * WIDE * 3 + WIDE * WIDE + WIDE * 8) * 4;

    fn tensor(name: &str, shape: &[usize]) -> pb::TensorProto {
        let count: usize = shape.iter().product();
        #[allow(clippy::cast_precision_loss, reason = "any numbers do")]
        let number = |i: usize| ((i * 7919 + count) as f32 * 0.37).sin() * 0.05;
        pb::TensorProto {
            name: name.to_owned(),
            data_type: DataType::Float.into(),
            dims: shape.iter().map(|&dim| i64::try_from(dim).unwrap()).collect(),
            float_data: (0..count).map(number).collect(),
            ..pb::TensorProto::default()
        }
    }

    fn value(name: &str, shape: &[Option<i64>]) -> pb::ValueInfoProto {
        let dim = |dim: &Option<i64>| Dimension {
            value: Some(dim.map_or(Value::DimParam("open".to_owned()), Value::DimValue)),
            ..Dimension::default()
        };
        let shape = pb::TensorShapeProto { dim: shape.iter().map(dim).collect() };
        let of = pb::type_proto::Tensor { elem_type: DataType::Float.into(), shape: Some(shape) };
        pb::ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(pb::TypeProto {
                value: Some(pb::type_proto::Value::TensorType(of)),
                ..pb::TypeProto::default()
            }),
            ..pb::ValueInfoProto::default()
        }
    }

    /// A convolution over time, products, one of them with turned weights, and what stands between.
    fn onnx() -> Vec<u8> {
        let node = |op: &str, inputs: &[&str], output: &str| pb::NodeProto {
            op_type: op.to_owned(),
            name: output.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..pb::NodeProto::default()
        };
        let ints = |name: &str, ints: &[i64]| pb::AttributeProto {
            name: name.to_owned(),
            r#type: pb::attribute_proto::AttributeType::Ints.into(),
            ints: ints.to_vec(),
            ..pb::AttributeProto::default()
        };
        let mut conv = node("Conv", &["b", "w2"], "c");
        conv.attribute = vec![ints("kernel_shape", &[3]), ints("pads", &[1, 1])];
        let turn = |input: &str, output: &str, order: &[i64]| {
            let mut turn = node("Transpose", &[input], output);
            turn.attribute = vec![ints("perm", order)];
            turn
        };
        let nodes = vec![
            node("MatMul", &["x", "w1"], "a"),
            turn("a", "b", &[0, 2, 1]),
            conv,
            node("Relu", &["c"], "d"),
            turn("d", "e", &[0, 2, 1]),
            turn("w3", "w3t", &[1, 0]),
            node("MatMul", &["e", "w3t"], "f"),
            node("Tanh", &["f"], "g"),
            node("MatMul", &["g", "w4"], "y"),
        ];
        let graph = pb::GraphProto {
            node: nodes,
            name: "graph".to_owned(),
            initializer: vec![
                tensor("w1", &[64, WIDE]),
                tensor("w2", &[WIDE, WIDE, 3]),
                tensor("w3", &[WIDE, WIDE]),
                tensor("w4", &[WIDE, 8]),
            ],
            input: vec![value("x", &[None, None, Some(64)])],
            output: vec![value("y", &[None, None, Some(8)])],
            ..pb::GraphProto::default()
        };
        let opset = pb::OperatorSetIdProto { domain: String::new(), version: 13 };
        let model = pb::ModelProto {
            ir_version: 7,
            opset_import: vec![opset],
            graph: Some(graph),
            ..pb::ModelProto::default()
        };
        model.encode_to_vec()
    }

    fn load(build: Build) -> Model {
        let options = LoadOptions { build: Some(build), open: 8, ..LoadOptions::default() };
        let mut model = Model::load(&onnx(), &options).unwrap();
        let open = model.plans.weights().constants();
        model.plans.close();
        let closed = model.plans.weights().constants();
        if build == Build::Own {
            assert!(open <= closed + FILE / 50, "a plan for all sizes: {open} beside {closed}");
        }
        model
    }

    #[test]
    fn plans_of_all_lengths_and_batches_share_one_copy_of_each_weight() {
        for build in [Build::Own, Build::Plain, Build::ChannelsLast] {
            let model = load(build);
            let weights = model.plans.weights();
            let after_one = weights.constants();
            // The file's constants, and their packed copies; the worker's kernels hold both in one.
            let bytes = FILE..if build == Build::Own { FILE * 11 / 10 } else { FILE * 5 / 2 };
            assert!(bytes.contains(&after_one), "{build:?}: {after_one} of {FILE}");
            let mut plans = Vec::new();
            let mut compile = |lengths: std::ops::Range<usize>| {
                for (length, rows) in lengths.flat_map(|l| [1, 2, 4, 8, 16].map(|r| (l, r))) {
                    let chosen = model.plans.closed(&vec![vec![rows, length, 64]]).unwrap();
                    assert_eq!(chosen.build, build);
                    plans.push(chosen);
                }
                weights.constants()
            };
            let (few, many) = (compile(8..14), compile(14..20));
            if build == Build::Own {
                assert!(few <= after_one + FILE / 50, "{few} after {after_one}");
            }
            // Some of tract's kernels for few rows want another order than those for many.
            assert!(few <= after_one * 2, "{build:?}: {few} after {after_one}");
            assert!(many <= few + FILE / 50, "{build:?}: {many} after {few}");
            let each = (weights.bytes(0) - weights.constants()) / plans.len();
            assert!((1..FILE / 20).contains(&each), "{build:?}: {each} bytes of a plan");
        }
    }

    #[test]
    fn a_graph_has_back_what_its_kernels_hold_even_when_their_plans_are_gone() {
        let model = load(Build::Own);
        let shapes = vec![vec![2, 9, 64]];
        let plain = load(Build::Plain);
        let constants = |model: &Model| {
            let graph = model.plans.typed(&shapes).unwrap();
            let of = |node: &TypedNode| node.op_as::<Const>().map(|c| Arc::clone(c.val()));
            graph.nodes().iter().filter_map(of).collect::<Vec<_>>()
        };
        model.plans.keep(|_| false);
        let (found, right) = (constants(&model), constants(&plain));
        assert_eq!(found.len(), right.len());
        assert!(found.iter().any(|constant| constant.as_bytes().len() > FILE / 3));
        for (found, right) in found.iter().zip(&right) {
            assert!(found.is_same(right), "{found:?} for {right:?}");
        }
        drop(found);
        let held = model.plans.weights().constants();
        assert!((FILE..FILE * 11 / 10).contains(&held), "{held} of {FILE}");
        let chosen = model.plans.get(&shapes).unwrap();
        assert_eq!(chosen.build, Build::Own);
        assert!(model.plans.weights().constants() <= held + FILE / 50, "it shares them again");
    }

    #[test]
    fn builds_share_what_they_have_in_common_and_evicted_plans_release_theirs() {
        let model = load(Build::Plain);
        let weights = model.plans.weights();
        let own = model.plans.built(Build::Own).unwrap();
        let before = weights.constants();
        let chosen = own.closed(&vec![vec![1, 8, 64]]).unwrap();
        assert_eq!(chosen.build, Build::Own);
        let both = weights.constants();
        assert!((before + FILE / 2..before + FILE * 11 / 10).contains(&both), "{before} {both}");
        drop((chosen, own));
        assert_eq!(weights.constants(), before);
        model.plans.keep(|_| false);
        let left = weights.constants();
        assert!((FILE..FILE + 1024).contains(&left), "the file's own: {left} of {FILE}");
        assert_eq!(weights.bytes(2), left, "no plan is counted");
    }

    #[test]
    fn only_what_is_the_same_is_shared() {
        let shelf = Shelf::default();
        let of = |shape: &[usize], first: f32| {
            let mut numbers = vec![1_f32; shape.iter().product()];
            numbers[0] = first;
            Arc::new(Tensor::from_shape(shape, &numbers).unwrap())
        };
        let first = shelf.one(of(&[10, 20], 3.0));
        assert!(Arc::ptr_eq(&first, &shelf.one(of(&[10, 20], 3.0))));
        assert!(Arc::ptr_eq(&first, &shelf.one(Arc::clone(&first))));
        for other in [of(&[20, 10], 3.0), of(&[10, 20], -3.0), of(&[200], 3.0)] {
            let shared = shelf.one(Arc::clone(&other));
            assert!(Arc::ptr_eq(&shared, &other));
        }
        let kind = Arc::new(Tensor::from_shape(&[10, 20], &[1_i32; 200]).unwrap());
        assert!(Arc::ptr_eq(&kind, &shelf.one(Arc::clone(&kind))));
        // Zeros of both signs are not the same weight.
        let zero = shelf.one(of(&[10, 20], 0.0));
        assert!(!Arc::ptr_eq(&zero, &shelf.one(of(&[10, 20], -0.0))));
        assert_eq!(shelf.bytes(), 3 * 800, "those that are held");
        drop((first, kind, zero));
        assert_eq!(shelf.bytes(), 0);
    }
}
