//! Classifiers made of decision trees.
//!
//! With two classes a file may hold the votes for one of them only. The engine takes the label before
//! it makes up the other's, so here the votes of that class are read alone, and label and scores are
//! made of them by nodes of their own, as ONNX Runtime does. The mode BRANCH_GTE, which the engine
//! reads as a leaf, becomes BRANCH_LT with its ways exchanged.

use super::{Forms, Nodes, attribute, constant_integers, find, ints, plain, refused, text, texts};
use crate::LoadError;
use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;

impl Forms {
    pub(super) fn tree_classifier(&mut self, mut node: pb::NodeProto) -> Result<Nodes, LoadError> {
        exchange(&mut node);
        let labels = ints(&node, "classlabels_int64s").map(<[i64]>::to_vec);
        let count = labels.as_ref().map_or_else(
            || texts(&node, "classlabels_strings").map_or(0, |labels| labels.len()),
            Vec::len,
        );
        let voted = ints(&node, "class_ids").unwrap_or_default();
        let first = voted.first().copied().unwrap_or(0);
        if count != 2 {
            return Ok(vec![node]);
        }
        let Some(labels) = labels else {
            return Err(refused(&node, "classlabels_strings", "two classes"));
        };
        let [low, high] = labels[..] else { return Ok(vec![node]) };
        if voted.iter().any(|&class| class != first) {
            // ONNX Runtime looks at the score of the second class alone.
            return Err(refused(&node, "class_ids", "votes for both of two classes"));
        }
        if find(&node, "base_values").is_some_and(|base| base.floats.iter().any(|&f| f != 0.0)) {
            return Err(refused(&node, "base_values", "two classes"));
        }
        if find(&node, "class_weights_as_tensor").is_some() {
            return Err(refused(&node, "class_weights_as_tensor", "two classes"));
        }
        let weights = find(&node, "class_weights").map(|weights| weights.floats.as_slice());
        let all_positive = weights.unwrap_or_default().iter().all(|&weight| weight >= 0.0);
        let transform = text(&node, "post_transform").unwrap_or_else(|| "NONE".to_owned());
        let is_logistic = match transform.as_str() {
            "NONE" => false,
            "LOGISTIC" => true,
            other => return Err(refused(&node, "post_transform", other)),
        };
        Ok(self.two_classes(node, [low, high], first, all_positive, is_logistic))
    }

    fn two_classes(
        &mut self,
        mut node: pb::NodeProto,
        labels: [i64; 2],
        voted: i64,
        all_positive: bool,
        is_logistic: bool,
    ) -> Nodes {
        let names = ["unused", "votes", "class", "axes", "score", "flat", "line", "low", "high"]
            .map(|what| self.fresh(&node, what));
        let [unused, votes, class, axes, score, flat, line, low, high] = names;
        let [above, other, this, one, second] =
            ["above", "other", "this", "one", "second"].map(|what| self.fresh(&node, what));
        let label = node.output.first().cloned().unwrap_or_default();
        let scores = node.output.get(1).cloned().unwrap_or_default();
        // A third class keeps the engine from making up the second.
        set_integers(&mut node, "classlabels_int64s", vec![0, 1, 2]);
        node.attribute.retain(|attribute| {
            attribute.name != "post_transform" && attribute.name != "base_values"
        });
        node.output = vec![unused, votes.clone()];
        let mut gather = plain("Gather", &[&votes, &class], &score);
        gather.attribute.push(super::with_integer("axis", 1));
        let threshold = if all_positive { 0.5 } else { 0.0 };
        let mut nodes = vec![
            node,
            constant_integers(&class, &[voted]),
            gather,
            constant_integers(&axes, &[-1]),
            plain("Reshape", &[&score, &axes], &flat),
            super::constant(&line, threshold),
            plain("Greater", &[&flat, &line], &above),
            constant_integers(&low, &labels[..1]),
            constant_integers(&high, &labels[1..]),
        ];
        if !label.is_empty() {
            nodes.push(plain("Where", &[&above, &high, &low], &label));
        }
        if scores.is_empty() {
            return nodes;
        }
        if is_logistic && !all_positive {
            nodes.push(plain("Neg", &[&score], &second));
            nodes.push(plain("Sigmoid", &[&second], &other));
            nodes.push(plain("Sigmoid", &[&score], &this));
        } else {
            let from = if all_positive { 1.0 } else { 0.0 };
            nodes.push(super::constant(&one, from));
            nodes.push(plain("Sub", &[&one, &score], &other));
            nodes.push(plain("Identity", &[&score], &this));
        }
        let mut concat = plain("Concat", &[&other, &this], &scores);
        concat.attribute.push(super::with_integer("axis", 1));
        nodes.push(concat);
        nodes
    }
}

fn set_integers(node: &mut pb::NodeProto, name: &str, values: Vec<i64>) {
    node.attribute.retain(|attribute| attribute.name != name);
    node.attribute
        .push(pb::AttributeProto { ints: values, ..attribute(name, AttributeType::Ints) });
}

/// x >= y is not x < y: the way of the one is the other's.
fn exchange(node: &mut pb::NodeProto) {
    let Some(modes) = texts(node, "nodes_modes") else { return };
    let found: Vec<usize> =
        (0..modes.len()).filter(|&place| modes[place] == "BRANCH_GTE").collect();
    if found.is_empty() {
        return;
    }
    let ways = ["nodes_truenodeids", "nodes_falsenodeids"];
    let [mut yes, mut no] = ways.map(|name| ints(node, name).unwrap_or_default().to_vec());
    let missing = "nodes_missing_value_tracks_true";
    let mut tracks = ints(node, missing).unwrap_or_default().to_vec();
    tracks.resize(modes.len(), 0);
    if yes.len() != modes.len() || no.len() != modes.len() {
        return;
    }
    for &place in &found {
        std::mem::swap(&mut yes[place], &mut no[place]);
        // A missing value goes the same way as before, which has the other name now.
        tracks[place] = 1 - tracks[place].clamp(0, 1);
    }
    set_integers(node, ways[0], yes);
    set_integers(node, ways[1], no);
    set_integers(node, missing, tracks);
    for attribute in node.attribute.iter_mut().filter(|a| a.name == "nodes_modes") {
        for &place in &found {
            attribute.strings[place] = b"BRANCH_LT".to_vec();
        }
    }
}
