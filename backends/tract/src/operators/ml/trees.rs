//! Ensembles of decision trees: classifiers, regressors, and the operator that replaces both.
//!
//! Where the definition leaves open what a file with two classes means, the answer is ONNX Runtime's: label
//! and scores of such a file depend on how many classes have votes, on whether all votes are positive and on
//! the number of base values.

use super::super::built::Built;
use super::super::native::{Attributes, Function, Kind, RowRule, bad, matrix, native, rows_of};
use super::scores::{Labels, Transform, both};
use forebay_kernels::trees::{Forest, Spec, Test, Value};
use std::collections::HashMap;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// A number that trees of this engine compare.
trait Real: Value + Datum + std::ops::AddAssign + std::ops::Div<Output = Self> {
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
}

impl Real for f32 {
    #[allow(clippy::cast_possible_truncation, reason = "to the precision of the forest")]
    fn of(x: f64) -> Self {
        x as Self
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn wide(self) -> f64 {
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

/// The result that is made from the votes of a row.
#[derive(Debug)]
enum Task {
    Regress {
        /// Of the result, which is FP32 for all but the newest operator.
        datum_type: DatumType,
    },
    Classify {
        labels: Labels,
        /// Of two classes, whether only one has votes.
        is_binary: bool,
        all_positive: bool,
    },
}

#[derive(Debug)]
struct Ensemble<F> {
    name: &'static str,
    forest: Forest<F>,
    /// Targets or classes.
    targets: usize,
    aggregate: Aggregate,
    transform: Transform,
    base: Vec<F>,
    task: Task,
}

pub(super) fn classifier(context: &ParsingContext, node: &NodeProto) -> Built {
    of_precision(context, node, "class", |attributes| {
        let labels = Labels::of(attributes, "classlabels_int64s")?;
        ensure!(labels.len() > 1, "expected two classes or more, found {}", labels.len());
        Ok((labels.len(), Some(labels)))
    })
}

pub(super) fn regressor(context: &ParsingContext, node: &NodeProto) -> Built {
    of_precision(context, node, "target", |attributes| {
        let targets = usize::try_from(attributes.int("n_targets").unwrap_or(1))?;
        ensure!(targets > 0, "expected a target or more, found none");
        Ok((targets, None))
    })
}

type Wanted = fn(&Attributes<'_>) -> TractResult<(usize, Option<Labels>)>;

/// In double precision where the file has its numbers so.
fn of_precision(context: &ParsingContext, node: &NodeProto, of: &str, wanted: Wanted) -> Built {
    let attributes = Attributes(node);
    let double = ["nodes_values_as_tensor", &format!("{of}_weights_as_tensor")]
        .iter()
        .map(|name| attributes.tensor(context, name))
        .collect::<TractResult<Vec<_>>>()?
        .into_iter()
        .flatten()
        .any(|tensor| tensor.datum_type() == f64::datum_type());
    let wanted = wanted(&attributes)?;
    if double {
        native_of(earlier::<f64>(context, node, of, wanted)?)
    } else {
        native_of(earlier::<f32>(context, node, of, wanted)?)
    }
}

fn native_of<F: Real>(ensemble: Ensemble<F>) -> Built {
    let outputs = match ensemble.task {
        Task::Regress { .. } => 1,
        Task::Classify { .. } => 2,
    };
    native(ensemble, outputs)
}

/// Numbers of an attribute, or of the tensor that may stand for it.
fn reals<F: Real>(context: &ParsingContext, node: &NodeProto, name: &str) -> TractResult<Vec<F>> {
    let attributes = Attributes(node);
    match attributes.tensor(context, &format!("{name}_as_tensor"))? {
        Some(tensor) => super::super::native::numbers::<F>(&tensor),
        None => Ok(attributes.floats(name).iter().map(|&x| F::of(f64::from(x))).collect()),
    }
}

/// A classifier or regressor, whose nodes are named by tree and number.
fn earlier<F: Real>(
    context: &ParsingContext,
    node: &NodeProto,
    of: &str,
    (targets, labels): (usize, Option<Labels>),
) -> TractResult<Ensemble<F>> {
    let attributes = Attributes(node);
    let ints = |what: &str| attributes.ints(&format!("{of}_{what}"));
    let weights: Vec<F> = reals(context, node, &format!("{of}_weights"))?;
    let voted = ints("ids");
    let leaves = (ints("treeids"), ints("nodeids"));
    ensure!(
        [voted.len(), leaves.0.len(), leaves.1.len()].iter().all(|&len| len == weights.len()),
        "expected {} ids, tree ids and node ids of leaves, as many as weights",
        weights.len()
    );
    let mut votes: HashMap<(i64, i64), Vec<(u32, F)>> = HashMap::new();
    for (place, &weight) in weights.iter().enumerate() {
        let target = u32::try_from(voted[place]).ok().filter(|&id| (id as usize) < targets);
        let target = target.with_context(|| {
            format!("expected ids of {targets} targets or classes, found {}", voted[place])
        })?;
        let leaf = (leaves.0[place], leaves.1[place]);
        votes.entry(leaf).or_default().push((target, weight));
    }
    let (specs, roots) = nodes(context, node, votes)?;
    let forest = Forest::new(&specs, &roots)?;
    let aggregate = match attributes.text("aggregate_function").as_deref() {
        _ if labels.is_some() => Aggregate::Sum,
        None | Some("SUM") => Aggregate::Sum,
        Some("AVERAGE") => Aggregate::Average,
        Some("MIN") => Aggregate::Min,
        Some("MAX") => Aggregate::Max,
        Some(other) => bail!("expected aggregate_function SUM, AVERAGE, MIN or MAX, found {other}"),
    };
    let name = if labels.is_some() { "TreeEnsembleClassifier" } else { "TreeEnsembleRegressor" };
    let task = match labels {
        None => Task::Regress { datum_type: f32::datum_type() },
        Some(labels) => Task::Classify {
            labels,
            is_binary: targets == 2 && voted.iter().all(|id| Some(id) == voted.first()),
            all_positive: weights.iter().all(|weight| *weight >= F::of(0.0)),
        },
    };
    let base = reals(context, node, "base_values")?;
    ensure!(base.len() <= targets.max(2), "expected {targets} base values, found {}", base.len());
    let transform = Transform::of(&attributes)?;
    Ok(Ensemble { name, forest, targets, aggregate, transform, base, task })
}

/// The nodes of a classifier or regressor, and the places of the trees' roots.
fn nodes<F: Real>(
    context: &ParsingContext,
    node: &NodeProto,
    mut votes: HashMap<(i64, i64), Vec<(u32, F)>>,
) -> TractResult<(Vec<Spec<F>>, Vec<usize>)> {
    let attributes = Attributes(node);
    let ints = |name: &str| attributes.ints(&format!("nodes_{name}"));
    let (trees, ids, features) = (ints("treeids"), ints("nodeids"), ints("featureids"));
    let (yes, no, missing) =
        (ints("truenodeids"), ints("falsenodeids"), ints("missing_value_tracks_true"));
    let modes = attributes.texts("nodes_modes")?;
    let values: Vec<F> = reals(context, node, "nodes_values")?;
    let count = trees.len();
    let lengths = [ids.len(), features.len(), yes.len(), no.len(), modes.len(), values.len()];
    ensure!(lengths.iter().all(|&len| len == count), "expected {count} of all facts about nodes");
    let mut places: HashMap<(i64, i64), usize> = HashMap::with_capacity(count);
    let mut roots = Vec::new();
    for place in 0..count {
        if place == 0 || trees[place] != trees[place - 1] {
            roots.push(place);
        }
        let before = places.insert((trees[place], ids[place]), place);
        ensure!(before.is_none(), "expected node {} of tree {} once", ids[place], trees[place]);
    }
    let spec = |place: usize| -> TractResult<Spec<F>> {
        let (tree, v) = (trees[place], values[place]);
        let test = match modes[place].as_str() {
            "LEAF" => {
                return Ok(Spec::Leaf(votes.remove(&(tree, ids[place])).unwrap_or_default()));
            }
            "BRANCH_LEQ" => Test::AtMost(v),
            "BRANCH_LT" => Test::Below(v),
            "BRANCH_GTE" => Test::AtLeast(v),
            "BRANCH_GT" => Test::Above(v),
            "BRANCH_EQ" => Test::Equal(v),
            "BRANCH_NEQ" => Test::Unequal(v),
            other => bail!("expected a mode of nodes such as BRANCH_LEQ, found {other}"),
        };
        let way = |id: i64| {
            let place = places.get(&(tree, id)).copied();
            place.with_context(|| format!("expected a node {id} in tree {tree}, found none"))
        };
        Ok(Spec::Branch {
            feature: usize::try_from(features[place])?,
            test,
            yes: way(yes[place])?,
            no: way(no[place])?,
            missing: missing.get(place) == Some(&1),
        })
    };
    Ok(((0..count).map(spec).collect::<TractResult<_>>()?, roots))
}

/// The operator of version 5, which both became.
pub(super) fn ensemble(context: &ParsingContext, node: &NodeProto) -> Built {
    let splits = Attributes(node).tensor(context, "nodes_splits")?;
    let splits = splits.context("expected nodes_splits, found none")?;
    if splits.datum_type() == f64::datum_type() {
        native_of(latest::<f64>(context, node)?)
    } else {
        native_of(latest::<f32>(context, node)?)
    }
}

fn latest<F: Real>(context: &ParsingContext, node: &NodeProto) -> TractResult<Ensemble<F>> {
    let attributes = Attributes(node);
    let targets = usize::try_from(attributes.int("n_targets").unwrap_or(1))?;
    ensure!(targets > 0, "expected a target or more, found none");
    let specs = latest_nodes(context, &attributes, targets)?;
    let place = |root: &i64| usize::try_from(*root).context("expected tree_roots that are places");
    let roots: Vec<usize> =
        attributes.ints("tree_roots").iter().map(place).collect::<TractResult<_>>()?;
    let aggregate = match attributes.int("aggregate_function").unwrap_or(1) {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        other => bail!("expected an aggregate_function from 0 to 3, found {other}"),
    };
    let transform = match attributes.int("post_transform").unwrap_or(0) {
        0 => Transform::None,
        1 => Transform::Softmax,
        2 => Transform::Logistic,
        3 => Transform::SoftmaxZero,
        4 => Transform::Probit,
        other => bail!("expected a post_transform from 0 to 4, found {other}"),
    };
    let task = Task::Regress { datum_type: F::datum_type() };
    let forest = Forest::new(&specs, &roots)?;
    let name = "TreeEnsemble";
    Ok(Ensemble { name, forest, targets, aggregate, transform, base: Vec::new(), task })
}

/// Branches first, then leaves.
fn latest_nodes<F: Real>(
    context: &ParsingContext,
    attributes: &Attributes<'_>,
    targets: usize,
) -> TractResult<Vec<Spec<F>>> {
    let tensor = |name: &str| -> TractResult<Vec<F>> {
        let found = attributes.tensor(context, name)?;
        found.map_or(Ok(Vec::new()), |found| super::super::native::numbers(&found))
    };
    let (splits, weights): (Vec<F>, Vec<F>) = (tensor("nodes_splits")?, tensor("leaf_weights")?);
    let modes = attributes.tensor(context, "nodes_modes")?.context("expected nodes_modes")?;
    let modes = super::super::native::numbers::<u8>(&modes)?;
    let ints = |name: &str| attributes.ints(&format!("nodes_{name}"));
    let (features, missing) = (ints("featureids"), ints("missing_value_tracks_true"));
    let ways = [("truenodeids", "trueleafs"), ("falsenodeids", "falseleafs")];
    let ways = ways.map(|(ids, leaves)| (ints(ids), ints(leaves)));
    let count = splits.len();
    let lengths = ways.iter().flat_map(|(ids, leaves)| [ids.len(), leaves.len()]);
    let mut lengths = lengths.chain([features.len(), modes.len()]);
    ensure!(lengths.all(|len| len == count), "expected {count} of all facts about nodes");
    let members: Vec<F> = tensor("membership_values")?;
    let mut sets = members.split(|value| value.is_nan());
    let way = |(ids, leaves): (&[i64], &[i64]), place: usize| -> TractResult<usize> {
        let id = usize::try_from(ids[place]).context("expected places of nodes")?;
        Ok(if leaves[place] == 0 { id } else { count.saturating_add(id) })
    };
    let mut specs = Vec::with_capacity(count + weights.len());
    for (place, &v) in splits.iter().enumerate() {
        let test = match modes[place] {
            0 => Test::AtMost(v),
            1 => Test::Below(v),
            2 => Test::AtLeast(v),
            3 => Test::Above(v),
            4 => Test::Equal(v),
            5 => Test::Unequal(v),
            6 => Test::Member(sets.next().context("expected a set for each membership")?.to_vec()),
            other => bail!("expected a mode of nodes from 0 to 6, found {other}"),
        };
        specs.push(Spec::Branch {
            feature: usize::try_from(features[place])?,
            test,
            yes: way(ways[0], place)?,
            no: way(ways[1], place)?,
            missing: missing.get(place) == Some(&1),
        });
    }
    let ids = attributes.ints("leaf_targetids");
    ensure!(ids.len() == weights.len(), "expected {} leaf_targetids", weights.len());
    for (&id, &weight) in ids.iter().zip(&weights) {
        let target = u32::try_from(id).ok().filter(|&target| (target as usize) < targets);
        let target =
            target.with_context(|| format!("expected ids of {targets} targets, found {id}"))?;
        specs.push(Spec::Leaf(vec![(target, weight)]));
    }
    Ok(specs)
}

/// The votes of a row for one target, if there are any.
#[derive(Debug, Clone, Copy)]
struct Score<F> {
    sum: F,
    has: bool,
}

impl<F: Real> Score<F> {
    fn add(&mut self, weight: F, aggregate: Aggregate) {
        match aggregate {
            Aggregate::Sum | Aggregate::Average => self.sum += weight,
            Aggregate::Min if self.has && self.sum <= weight => {}
            Aggregate::Max if self.has && self.sum >= weight => {}
            Aggregate::Min | Aggregate::Max => self.sum = weight,
        }
        self.has = true;
    }
}

impl<F: Real> Ensemble<F> {
    /// The scores of all rows, target by target.
    fn scores(&self, x: &[F], (rows, columns): (usize, usize)) -> Vec<Score<F>> {
        let none = Score { sum: F::of(0.0), has: false };
        let mut scores = vec![none; rows * self.targets];
        let (targets, aggregate) = (self.targets, self.aggregate);
        if self.forest.is_single() && targets == 1 && aggregate == Aggregate::Sum {
            self.forest.walk(x, columns, |row, weight| scores[row].sum += weight);
            scores.iter_mut().for_each(|score| score.has = true);
        } else if self.forest.is_single() {
            self.forest.walk(x, columns, |row, weight| {
                scores[row * targets].add(weight, aggregate);
            });
        } else {
            self.forest.walk(x, columns, |row, leaf| {
                for &(target, weight) in self.forest.votes(leaf) {
                    scores[row * targets + target as usize].add(weight, aggregate);
                }
            });
        }
        scores
    }

    /// The results of a row.
    fn regress(&self, scores: &[Score<F>], to: &mut Vec<F>) {
        let base = |target: usize| match self.base.len() == self.targets {
            true => self.base[target],
            false => F::of(0.0),
        };
        let mut made: Vec<F> = Vec::with_capacity(scores.len());
        for (target, score) in scores.iter().enumerate() {
            let mut sum = score.sum;
            if self.aggregate == Aggregate::Average {
                #[allow(clippy::cast_precision_loss, reason = "trees are few")]
                let trees = F::of(self.forest.trees() as f64);
                sum = sum / trees;
            }
            sum += base(target);
            // A target without votes in this row is zero, where there are several.
            made.push(if score.has || self.targets == 1 { sum } else { F::of(0.0) });
        }
        let is_done = self.transform == Transform::None
            || (self.targets == 1 && self.transform != Transform::Probit);
        if !is_done {
            #[allow(clippy::cast_possible_truncation, reason = "as ONNX Runtime has it")]
            let mut narrow: Vec<f32> = made.iter().map(|x| x.wide() as f32).collect();
            self.transform.apply(&mut narrow);
            made = narrow.into_iter().map(|x| F::of(f64::from(x))).collect();
        }
        to.append(&mut made);
    }

    /// The class of a row and its scores.
    fn classify(
        &self,
        scores: &[Score<F>],
        (is_binary, all_positive): (bool, bool),
        to: &mut Vec<f32>,
    ) -> usize {
        let based = |class: usize| match (self.base.get(class), scores[class].has) {
            (Some(base), _) => scores[class].sum.wide() + base.wide(),
            (None, _) => scores[class].sum.wide(),
        };
        #[allow(clippy::cast_possible_truncation, reason = "scores are FP32")]
        let narrow = |x: f64| F::of(x).wide() as f32;
        if scores.len() > 2 {
            let mut made: Vec<f32> = (0..scores.len()).map(|class| narrow(based(class))).collect();
            let has = |class: usize| scores[class].has || class < self.base.len();
            let mut best: Option<usize> = None;
            for class in (0..made.len()).filter(|&class| has(class)) {
                if best.is_none_or(|best| made[class] > made[best]) {
                    best = Some(class);
                }
            }
            self.transform.apply(&mut made);
            to.extend(made);
            return best.unwrap_or(0);
        }
        self.two_classes(scores, (is_binary, all_positive), narrow, to)
    }

    /// As ONNX Runtime has it: without votes for the second class, those for the first are its score.
    fn two_classes(
        &self,
        scores: &[Score<F>],
        (is_binary, all_positive): (bool, bool),
        narrow: impl Fn(f64) -> f32,
        to: &mut Vec<f32>,
    ) -> usize {
        let base = |class: usize| self.base[class].wide();
        let [mut first, mut second] = [0, 1].map(|class| scores[class].sum.wide());
        let has_second = scores[1].has;
        let is_one = match self.base.len() {
            2 if has_second => {
                second = base(1) + first;
                first = -second;
                false
            }
            2 => {
                first += base(0);
                second += base(1);
                false
            }
            1 => {
                first += base(0);
                !has_second
            }
            _ => !has_second,
        };
        // A class without votes in this row counts as zero, whatever its base value.
        let first = narrow(if scores[0].has || is_one { first } else { 0.0 });
        let second = narrow(if has_second { second } else { 0.0 });
        let score = if has_second { second } else { first };
        let class = usize::from(score > if is_binary && all_positive { 0.5 } else { 0.0 });
        if is_one && self.transform != Transform::Probit {
            to.extend(both(self.transform, first, is_binary && all_positive));
        } else {
            let mut made = [first, second];
            self.transform.apply(&mut made);
            to.extend(made);
        }
        class
    }
}

impl<F: Real> Function for Ensemble<F>
where
    Ensemble<F>: std::fmt::Debug,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let [input] = inputs else { bail!("expected one input, found {}", inputs.len()) };
        let rows = rows_of(self.name, &input.shape)?;
        let wide = self.targets.to_dim();
        Ok(match &self.task {
            Task::Regress { datum_type } => tvec!(Kind::new(*datum_type, [rows, wide])),
            Task::Classify { labels, .. } => tvec!(
                Kind::new(labels.datum_type(), [rows.clone()]),
                Kind::new(f32::datum_type(), [rows, wide])
            ),
        })
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let size @ (rows, columns) = matrix(self.name, inputs[0].shape())?;
        if columns < self.forest.features() {
            let expected = format!("{} features or more", self.forest.features());
            return Err(bad(self.name, expected, &columns));
        }
        let x = inputs[0].cast_to::<F>()?;
        let plain = x.try_as_plain_ram()?;
        let scores = self.scores(plain.as_slice::<F>()?, size);
        match &self.task {
            Task::Regress { datum_type } => {
                let mut made = Vec::with_capacity(scores.len());
                scores.chunks(self.targets).for_each(|row| self.regress(row, &mut made));
                let made = Tensor::from_shape(&[rows, self.targets], &made)?;
                Ok(tvec!(made.cast_to_dt(*datum_type)?.into_owned()))
            }
            Task::Classify { labels, is_binary, all_positive } => {
                let mut made = Vec::with_capacity(scores.len());
                let kind = (*is_binary, *all_positive);
                let rows_of = scores.chunks(self.targets);
                let classes: Vec<usize> =
                    rows_of.map(|row| self.classify(row, kind, &mut made)).collect();
                let made = Tensor::from_shape(&[rows, self.targets], &made)?;
                Ok(tvec!(labels.tensor(&classes)?, made))
            }
        }
    }

    fn rows(&self) -> RowRule {
        RowRule::First
    }

    fn bytes(&self) -> usize {
        self.forest.bytes()
    }
}
