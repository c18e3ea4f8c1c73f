//! Operators that optimisers and quantisers write, in the operators that they stand for.

use super::nodes::{
    Forms, Nodes, attribute, constant, constant_integers, find, integer, plain, refused, text,
};
use crate::LoadError;
use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;

impl Forms {
    /// The form of an operator of the domain `com.microsoft`; `None` if it has none here.
    pub(super) fn fused(&mut self, node: &pb::NodeProto) -> Result<Option<Nodes>, LoadError> {
        Ok(Some(match node.op_type.as_str() {
            "FusedMatMul" => self.product(node)?,
            "FusedConv" => self.activated(node, "Conv")?,
            "FusedGemm" => self.activated(node, "Gemm")?,
            "QLinearAdd" => self.quantized(node, "Add", &[(0, 1, 2), (3, 4, 5)], (6, 7)),
            "QLinearMul" => self.quantized(node, "Mul", &[(0, 1, 2), (3, 4, 5)], (6, 7)),
            "QLinearSigmoid" => self.quantized(node, "Sigmoid", &[(0, 1, 2)], (3, 4)),
            "QLinearLeakyRelu" => self.quantized(node, "LeakyRelu", &[(0, 1, 2)], (3, 4)),
            "QLinearSoftmax" => self.quantized(node, "Softmax", &[(0, 1, 2)], (3, 4)),
            "QLinearGlobalAveragePool" if integer(node, "channels_last").unwrap_or(0) == 0 => {
                self.quantized(node, "GlobalAveragePool", &[(0, 1, 2)], (3, 4))
            }
            "QLinearConcat" => {
                let slots: Vec<_> =
                    (2..node.input.len()).step_by(3).map(|i| (i, i + 1, i + 2)).collect();
                self.quantized(node, "Concat", &slots, (0, 1))
            }
            "DynamicQuantizeLSTM" => self.lstm(node),
            _ => return Ok(None),
        }))
    }

    fn product(&mut self, node: &pb::NodeProto) -> Result<Nodes, LoadError> {
        let flag = |name: &str| integer(node, name).unwrap_or(0) != 0;
        for name in ["transBatchA", "transBatchB"] {
            if flag(name) {
                return Err(refused(node, name, "1"));
            }
        }
        let input = |slot: usize| node.input.get(slot).map_or("", String::as_str);
        let output = node.output.first().map_or("", String::as_str);
        let alpha = find(node, "alpha").map_or(1.0, |alpha| alpha.f);
        let made = if alpha == 1.0 { output.to_owned() } else { self.fresh(node, "product") };
        let (a, b) = (flag("transA"), flag("transB"));
        let mut product = if a || b {
            let (left, right) =
                (if a { "...km" } else { "...mk" }, if b { "...nk" } else { "...kn" });
            let mut einsum = plain("Einsum", &[input(0), input(1)], &made);
            let mut equation = attribute("equation", AttributeType::String);
            equation.s = format!("{left},{right}->...mn").into_bytes();
            einsum.attribute.push(equation);
            einsum
        } else {
            plain("MatMul", &[input(0), input(1)], &made)
        };
        product.name.clone_from(&node.name);
        let mut nodes = vec![product];
        if alpha != 1.0 {
            let scale = self.fresh(node, "scale");
            nodes.push(constant(&scale, alpha));
            nodes.push(plain("Mul", &[&made, &scale], output));
        }
        Ok(nodes)
    }

    /// An operator, a sum with the fourth input if there is one, and a function of each value.
    fn activated(&mut self, node: &pb::NodeProto, op: &str) -> Result<Nodes, LoadError> {
        let made = self.fresh(node, "made");
        let output = node.output.first().map_or("", String::as_str);
        let mut first = pb::NodeProto { op_type: op.to_owned(), ..node.clone() };
        first.domain.clear();
        first.attribute.retain(|attribute| !attribute.name.starts_with("activation"));
        first.output = vec![made.clone()];
        let sum = (op == "Conv").then(|| first.input.get(3).cloned()).flatten();
        first.input.truncate(3);
        let (mut nodes, mut last) = (vec![first], made);
        if let Some(sum) = sum.filter(|sum| !sum.is_empty()) {
            let added = self.fresh(node, "sum");
            nodes.push(plain("Add", &[&last, &sum], &added));
            last = added;
        }
        let given = find(node, "activation_params").map_or(&[][..], |params| &params.floats);
        let float = |name: &str| find(node, name).map(|found| found.f);
        let (a, b) = (
            given.first().copied().or_else(|| float("activation_alpha")),
            given.get(1).copied().or_else(|| float("activation_beta")),
        );
        let function = text(node, "activation").unwrap_or_default();
        match function.as_str() {
            "" => nodes.push(plain("Identity", &[&last], output)),
            "Relu" | "Sigmoid" | "Tanh" => nodes.push(plain(&function, &[&last], output)),
            "LeakyRelu" | "HardSigmoid" | "Elu" => {
                let mut next = plain(&function, &[&last], output);
                let values = [("alpha", a), ("beta", b)];
                for (name, value) in values.iter().filter_map(|(n, v)| Some((n, (*v)?))) {
                    let float = attribute(name, AttributeType::Float);
                    next.attribute.push(pb::AttributeProto { f: value, ..float });
                }
                nodes.push(next);
            }
            "Clip" => {
                let (least, most) = (self.fresh(node, "least"), self.fresh(node, "most"));
                nodes.push(constant(&least, a.unwrap_or(f32::MIN)));
                nodes.push(constant(&most, b.unwrap_or(f32::MAX)));
                nodes.push(plain("Clip", &[&last, &least, &most], output));
            }
            other => return Err(refused(node, "activation", other)),
        }
        Ok(nodes)
    }

    /// An operator between quantised values: of each input the places of value, scale and zero point.
    fn quantized(
        &mut self,
        node: &pb::NodeProto,
        op: &str,
        inputs: &[(usize, usize, usize)],
        (scale, zero): (usize, usize),
    ) -> Nodes {
        let input = |slot: usize| node.input.get(slot).map_or("", String::as_str);
        let (mut nodes, mut wide) = (Vec::new(), Vec::new());
        for (place, &(value, scale, zero)) in inputs.iter().enumerate() {
            let name = self.fresh(node, &format!("wide{place}"));
            let inputs = [input(value), input(scale), input(zero)];
            nodes.push(plain("DequantizeLinear", &inputs, &name));
            wide.push(name);
        }
        let made = self.fresh(node, "made");
        let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
        let mut between = plain(op, &wide, &made);
        let kept = ["axis", "alpha"];
        let attributes = node.attribute.iter().filter(|a| kept.contains(&a.name.as_str()));
        between.attribute.extend(attributes.cloned());
        between.name.clone_from(&node.name);
        nodes.push(between);
        let output = node.output.first().map_or("", String::as_str);
        nodes.push(plain("QuantizeLinear", &[&made, input(scale), input(zero)], output));
        nodes
    }

    /// A net whose weights are stored in 8 bits, with the weights that these stand for. The values that
    /// ONNX Runtime rounds to 8 bits between the steps keep their precision.
    fn lstm(&mut self, node: &pb::NodeProto) -> Nodes {
        let input = |slot: usize| node.input.get(slot).map_or("", String::as_str);
        let axes = self.fresh(node, "axes");
        let mut nodes = vec![constant_integers(&axes, &[0, 1, -1])];
        let mut weights = Vec::new();
        for (place, (value, scale, zero)) in [(1, 8, 9), (2, 10, 11)].into_iter().enumerate() {
            let mut fresh = |what: &str| self.fresh(node, &format!("{what}{place}"));
            let [wide, point, line, off, factor, scaled, turned] =
                ["wide", "point", "line", "off", "factor", "scaled", "turned"].map(&mut fresh);
            let cast = |from: &str, to: &str| {
                let mut cast = plain("Cast", &[from], to);
                cast.attribute.push(super::nodes::with_integer("to", 1));
                cast
            };
            nodes.push(cast(input(value), &wide));
            nodes.push(cast(input(zero), &point));
            nodes.push(plain("Reshape", &[&point, &axes], &line));
            nodes.push(plain("Sub", &[&wide, &line], &off));
            nodes.push(plain("Reshape", &[input(scale), &axes], &factor));
            nodes.push(plain("Mul", &[&off, &factor], &scaled));
            let mut turn = plain("Transpose", &[&scaled], &turned);
            let mut perm = attribute("perm", AttributeType::Ints);
            perm.ints = vec![0, 2, 1];
            turn.attribute.push(perm);
            nodes.push(turn);
            weights.push(turned);
        }
        let mut net = pb::NodeProto { op_type: "LSTM".to_owned(), ..node.clone() };
        net.domain.clear();
        net.input.truncate(8);
        for (slot, weights) in weights.into_iter().enumerate() {
            net.input[slot + 1] = weights;
        }
        while net.input.last().is_some_and(String::is_empty) {
            net.input.pop();
        }
        nodes.push(net);
        nodes
    }

    /// A product of double precision, which tract multiplies by factors of another precision.
    pub(super) fn double_product(&mut self, node: &pb::NodeProto) -> Nodes {
        let input = |slot: usize| node.input.get(slot).map_or("", String::as_str);
        let output = node.output.first().map_or("", String::as_str);
        let (mut nodes, mut sides) = (Vec::new(), Vec::new());
        for (slot, flag) in ["transA", "transB"].into_iter().enumerate() {
            if integer(node, flag).unwrap_or(0) == 0 {
                sides.push(input(slot).to_owned());
                continue;
            }
            let turned = self.fresh(node, flag);
            nodes.push(plain("Transpose", &[input(slot)], &turned));
            sides.push(turned);
        }
        let mut factor = |name: &str, from: String, nodes: &mut Nodes| {
            let value = find(node, name).map_or(1.0, |found| found.f);
            if value == 1.0 {
                return from;
            }
            let (scale, scaled) = (self.fresh(node, name), self.fresh(node, &format!("{name}ed")));
            let tensor = pb::TensorProto {
                data_type: pb::tensor_proto::DataType::Double as i32,
                double_data: vec![f64::from(value)],
                ..pb::TensorProto::default()
            };
            nodes.push(super::nodes::with_tensor(&scale, tensor));
            nodes.push(plain("Mul", &[&from, &scale], &scaled));
            scaled
        };
        let product = format!("{output}.forebay-matmul");
        nodes.push(plain("MatMul", &[&sides[0], &sides[1]], &product));
        let product = factor("alpha", product, &mut nodes);
        if input(2).is_empty() {
            nodes.push(plain("Identity", &[&product], output));
        } else {
            let added = factor("beta", input(2).to_owned(), &mut nodes);
            nodes.push(plain("Add", &[&product, &added], output));
        }
        nodes
    }
}
