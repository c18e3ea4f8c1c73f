//! Ensembles of decision trees, many trees at a time.
//!
//! A walk down one tree is a chain of loads that wait for each other, with a branch at each step that no
//! processor predicts. So all nodes of a forest lie in one array, the two children of a node beside each
//! other, and a step is arithmetic: the comparison's result is added to the place of the children, and a
//! leaf adds nothing and leads to itself. Eight trees are walked at once, as many steps as the deepest of
//! them has, so that loads of the one hide behind those of the others. Trees come outside, rows inside: a
//! group of trees stays in the nearest cache while a batch passes.
//!
//! All comparisons become "at most": `x < v` is `x <= w` with the number `w` before `v`, and the other two
//! are those with the ways exchanged.

/// Trees that are walked at once.
const LANES: usize = 8;
/// Bits of [`Node::word`]: whether the node has children, ...
const BRANCH: u32 = 1;
/// ... whether what is no number goes the way of "yes", ...
const MISSING: u32 = 2;
/// ... the test, ...
const TEST: u32 = 0b1100;
const EQUAL: u32 = 0b0100;
const MEMBER: u32 = 0b1000;
/// ... and from here on the feature.
const FEATURE: u32 = 4;

/// A number that forests compare.
pub trait Value: Copy + PartialOrd + PartialEq + Send + Sync + 'static {
    /// Nothing.
    const ZERO: Self;
    /// Whether it is no number.
    fn is_nan(self) -> bool;
    /// The greatest number below it; none below minus infinity.
    fn before(self) -> Self;
    /// A number that only stands for an index.
    fn of_index(index: u32) -> Self;
    /// The index that it stands for.
    fn index(self) -> usize;
}

macro_rules! value {
    ($type:ty, $bits:ty) => {
        impl Value for $type {
            const ZERO: Self = 0.0;
            fn is_nan(self) -> bool {
                <$type>::is_nan(self)
            }
            fn before(self) -> Self {
                // Nothing is at most NaN.
                if self == <$type>::NEG_INFINITY { <$type>::NAN } else { self.next_down() }
            }
            fn of_index(index: u32) -> Self {
                <$type>::from_bits(<$bits>::from(index))
            }
            #[allow(clippy::cast_possible_truncation, reason = "of an index of 32 bits")]
            fn index(self) -> usize {
                self.to_bits() as usize
            }
        }
    };
}

value!(f32, u32);
value!(f64, u64);

/// A node as files have it.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec<F> {
    /// Two ways.
    Branch {
        /// The place of the value that is looked at, in a row.
        feature: usize,
        /// The question.
        test: Test<F>,
        /// Place of the node where the answer is yes.
        yes: usize,
        /// Place of the node where it is no.
        no: usize,
        /// Whether what is no number goes the way of "yes" in any case.
        missing: bool,
    },
    /// An end, with a weight for each of some targets.
    Leaf(Vec<(u32, F)>),
}

/// A question about a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Test<F> {
    /// x <= v
    AtMost(F),
    /// x < v
    Below(F),
    /// x >= v
    AtLeast(F),
    /// x > v
    Above(F),
    /// x == v
    Equal(F),
    /// x != v
    Unequal(F),
    /// Whether it is one of these.
    Member(Vec<F>),
}

#[derive(Debug, Clone, Copy)]
struct Node<F> {
    /// The value to compare with; of a leaf, its weight or the index of its votes.
    value: F,
    word: u32,
    /// Where the way of "yes" leads; that of "no" leads one further.
    next: u32,
}

/// Trees, ready to be walked.
#[derive(Debug, Clone)]
pub struct Forest<F> {
    nodes: Vec<Node<F>>,
    /// Of groups of trees, the last of which is filled up with a leaf.
    roots: Vec<[u32; LANES]>,
    /// The most steps of a tree in each group.
    depths: Vec<usize>,
    trees: usize,
    /// The end of each leaf's votes, where leaves have other than one vote for target 0.
    ends: Vec<u32>,
    votes: Vec<(u32, F)>,
    sets: Vec<Vec<F>>,
    features: usize,
    is_plain: bool,
    has_missing: bool,
}

/// Why nodes are no forest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

struct Builder<'a, F> {
    specs: &'a [Spec<F>],
    is_single: bool,
    forest: Forest<F>,
}

impl<F: Value> Forest<F> {
    /// Lays out trees that begin at these places among `specs`.
    ///
    /// # Errors
    /// A place leads nowhere, or nodes lead to each other in a circle or to one node often.
    pub fn new(specs: &[Spec<F>], roots: &[usize]) -> Result<Self, Malformed> {
        let is_one =
            |spec: &Spec<F>| !matches!(spec, Spec::Leaf(votes) if !matches!(votes[..], [(0, _)]));
        let forest = Self {
            nodes: vec![Node { value: F::ZERO, word: 0, next: 0 }],
            roots: Vec::new(),
            depths: Vec::new(),
            trees: roots.len(),
            ends: Vec::new(),
            votes: Vec::new(),
            sets: Vec::new(),
            features: 0,
            is_plain: true,
            has_missing: false,
        };
        let mut builder = Builder { specs, is_single: specs.iter().all(is_one), forest };
        for group in roots.chunks(LANES) {
            let (mut places, mut depth) = ([0; LANES], 0);
            for (place, &root) in places.iter_mut().zip(group) {
                let (at, steps) = builder.tree(root)?;
                *place = at;
                depth = depth.max(steps);
            }
            builder.forest.roots.push(places);
            builder.forest.depths.push(depth);
        }
        builder.forest.nodes.shrink_to_fit();
        Ok(builder.forest)
    }

    /// Number of trees.
    #[must_use]
    pub fn trees(&self) -> usize {
        self.trees
    }

    /// Values that a row must have at least.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let sets: usize = self.sets.iter().map(Vec::len).sum();
        self.nodes.len() * size_of::<Node<F>>()
            + self.votes.len() * size_of::<(u32, F)>()
            + self.ends.len() * 4
            + self.roots.len() * size_of::<[u32; LANES]>()
            + sets * size_of::<F>()
    }

    /// Whether each leaf has one vote, for target 0: then a leaf is its weight.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.ends.is_empty()
    }

    /// The votes of a leaf of a forest that is not single.
    #[must_use]
    pub fn votes(&self, leaf: F) -> &[(u32, F)] {
        let index = leaf.index();
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.votes[start..self.ends[index] as usize]
    }

    /// Gives for each row, tree by tree in their order, the leaf that it ends at. `rows` are rows of so many
    /// columns, at least [`Forest::features`].
    ///
    /// # Panics
    /// A row has fewer values than that.
    pub fn walk(&self, rows: &[F], columns: usize, mut take: impl FnMut(usize, F)) {
        if columns == 0 {
            return;
        }
        assert!(columns >= self.features, "expected {} features, found {columns}", self.features);
        let is_full = |row: &[F]| {
            !self.is_plain || (self.has_missing && row.iter().any(|value| value.is_nan()))
        };
        let full: Vec<bool> = rows.chunks_exact(columns).map(is_full).collect();
        let mut left = self.trees;
        for (roots, &depth) in self.roots.iter().zip(&self.depths) {
            for (place, row) in rows.chunks_exact(columns).enumerate() {
                let ends = match full[place] {
                    true => self.group::<true>(roots, depth, row),
                    false => self.group::<false>(roots, depth, row),
                };
                ends.iter().take(left).for_each(|&end| take(place, self.nodes[end as usize].value));
            }
            left = left.saturating_sub(LANES);
        }
    }

    #[inline]
    fn group<const FULL: bool>(
        &self,
        roots: &[u32; LANES],
        depth: usize,
        row: &[F],
    ) -> [u32; LANES] {
        let mut at = *roots;
        for _ in 0..depth {
            for at in &mut at {
                let node = &self.nodes[*at as usize];
                let x = row[(node.word >> FEATURE) as usize];
                let is_yes = if FULL { self.answer(node, x) } else { x <= node.value };
                *at = node.next + (u32::from(!is_yes) & node.word & BRANCH);
            }
        }
        at
    }

    fn answer(&self, node: &Node<F>, x: F) -> bool {
        if x.is_nan() && node.word & MISSING != 0 {
            return true;
        }
        match node.word & TEST {
            _ if node.word & BRANCH == 0 => true,
            EQUAL => x == node.value,
            MEMBER => self.sets[node.value.index()].contains(&x),
            _ => x <= node.value,
        }
    }
}

impl<F: Value> Builder<'_, F> {
    /// Lays out a tree; gives its root and the steps to its deepest leaf.
    fn tree(&mut self, root: usize) -> Result<(u32, usize), Malformed> {
        let first = self.room(1)?;
        let (mut level, mut depth) = (vec![(root, first)], 0);
        while !level.is_empty() {
            let mut below = Vec::new();
            for (spec, at) in level {
                self.node(spec, at, &mut below)?;
            }
            depth += usize::from(!below.is_empty());
            level = below;
        }
        Ok((first, depth))
    }

    fn room(&mut self, count: usize) -> Result<u32, Malformed> {
        let nodes = &mut self.forest.nodes;
        let first = u32::try_from(nodes.len()).map_err(|_| malformed("too many nodes"))?;
        nodes.resize(nodes.len() + count, Node { value: F::ZERO, word: 0, next: 0 });
        // Each node stands once, beside the first one; a circle never ends.
        if nodes.len() > 2 * self.specs.len() + 2 {
            return Err(malformed("nodes that lead to each other in a circle"));
        }
        Ok(first)
    }

    fn node(
        &mut self,
        place: usize,
        at: u32,
        below: &mut Vec<(usize, u32)>,
    ) -> Result<(), Malformed> {
        let specs = self.specs;
        let spec = specs.get(place).ok_or_else(|| malformed("a way that leads to no node"))?;
        let node = match spec {
            Spec::Leaf(votes) => {
                let value = match votes[..] {
                    [(_, weight)] if self.is_single => weight,
                    _ => self.leaf(votes)?,
                };
                Node { value, word: 0, next: at }
            }
            Spec::Branch { feature, test, yes, no, missing } => {
                let next = self.room(2)?;
                let (value, kind, is_turned) = self.test(test)?;
                let (first, second) = if is_turned { (*no, *yes) } else { (*yes, *no) };
                // Of no comparison but "unequal" is the answer for what is no number "yes".
                let is_yes = *missing || matches!(test, Test::Unequal(_));
                let bits = u32::try_from(*feature).ok().filter(|&bits| bits < 1 << (32 - FEATURE));
                let bits = bits.ok_or_else(|| malformed("a feature beyond 2^28"))?;
                let missing = if is_yes == is_turned { 0 } else { MISSING };
                self.forest.has_missing |= missing != 0;
                self.forest.features = self.forest.features.max(feature + 1);
                below.extend([(first, next), (second, next + 1)]);
                Node { value, word: bits << FEATURE | kind | missing | BRANCH, next }
            }
        };
        self.forest.nodes[at as usize] = node;
        Ok(())
    }

    fn leaf(&mut self, votes: &[(u32, F)]) -> Result<F, Malformed> {
        let forest = &mut self.forest;
        forest.votes.extend_from_slice(votes);
        let index = u32::try_from(forest.ends.len()).map_err(|_| malformed("too many leaves"))?;
        let end = u32::try_from(forest.votes.len()).map_err(|_| malformed("too many votes"))?;
        forest.ends.push(end);
        Ok(F::of_index(index))
    }

    /// The value and kind of a test, and whether its ways are exchanged.
    fn test(&mut self, test: &Test<F>) -> Result<(F, u32, bool), Malformed> {
        Ok(match test {
            Test::AtMost(v) => (*v, 0, false),
            Test::Below(v) => (v.before(), 0, false),
            Test::AtLeast(v) => (v.before(), 0, true),
            Test::Above(v) => (*v, 0, true),
            Test::Equal(v) => {
                self.forest.is_plain = false;
                (*v, EQUAL, false)
            }
            Test::Unequal(v) => {
                self.forest.is_plain = false;
                (*v, EQUAL, true)
            }
            Test::Member(set) => {
                self.forest.is_plain = false;
                let index = u32::try_from(self.forest.sets.len());
                let index = index.map_err(|_| malformed("too many sets"))?;
                self.forest.sets.push(set.clone());
                (F::of_index(index), MEMBER, false)
            }
        })
    }
}

fn malformed(why: &str) -> Malformed {
    Malformed(why.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// The answer, walked node by node from the definition.
    fn plainly(specs: &[Spec<f32>], root: usize, row: &[f32]) -> Vec<(u32, f32)> {
        let mut at = root;
        loop {
            match &specs[at] {
                Spec::Leaf(votes) => return votes.clone(),
                Spec::Branch { feature, test, yes, no, missing } => {
                    let x = row[*feature];
                    let answer = match test {
                        Test::AtMost(v) => x <= *v,
                        Test::Below(v) => x < *v,
                        Test::AtLeast(v) => x >= *v,
                        Test::Above(v) => x > *v,
                        Test::Equal(v) => x == *v,
                        Test::Unequal(v) => x != *v,
                        Test::Member(set) => set.contains(&x),
                    };
                    at = if answer || (x.is_nan() && *missing) { *yes } else { *no };
                }
            }
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((self.0 >> 33) as usize) % bound
        }

        fn value(&mut self) -> f32 {
            [-2.0, -0.0, 0.0, 0.5, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, 3.0]
                [self.below(9)]
        }
    }

    /// A tree of so many levels at most, its nodes pushed in any order.
    fn grow(random: &mut Random, specs: &mut Vec<Spec<f32>>, levels: usize, tests: usize) -> usize {
        let place = specs.len();
        if levels == 0 || random.below(5) == 0 {
            let weight = random.value();
            specs.push(Spec::Leaf(vec![(0, weight)]));
            return place;
        }
        specs.push(Spec::Leaf(Vec::new()));
        let yes = grow(random, specs, levels - 1, tests);
        let no = grow(random, specs, levels - 1, tests);
        let v = random.value();
        let test = match random.below(tests) {
            0 => Test::AtMost(v),
            1 => Test::Below(v),
            2 => Test::AtLeast(v),
            3 => Test::Above(v),
            4 => Test::Equal(v),
            5 => Test::Unequal(v),
            _ => Test::Member(vec![v, random.value()]),
        };
        let (feature, missing) = (random.below(4), random.below(2) == 0);
        specs[place] = Spec::Branch { feature, test, yes, no, missing };
        place
    }

    #[test]
    fn every_row_ends_where_the_definition_leads() {
        let mut random = Random(7);
        for round in 0..60 {
            let tests = if round % 2 == 0 { 4 } else { 7 };
            let (mut specs, mut roots) = (Vec::new(), Vec::new());
            for _ in 0..random.below(20) + 1 {
                let levels = random.below(7);
                roots.push(grow(&mut random, &mut specs, levels, tests));
            }
            let rows: Vec<f32> = (0..4 * 9)
                .map(|_| if random.below(6) == 0 { f32::NAN } else { random.value() })
                .collect();
            let forest = Forest::new(&specs, &roots).unwrap();
            assert!(forest.is_single() && forest.trees() == roots.len());
            let mut found = vec![Vec::new(); 9];
            forest.walk(&rows, 4, |row, leaf| found[row].push(leaf));
            for (row, found) in rows.chunks(4).zip(found) {
                let right: Vec<f32> =
                    roots.iter().map(|&root| plainly(&specs, root, row)[0].1).collect();
                assert_eq!(found, right, "{row:?} {specs:?}");
            }
        }
    }

    #[test]
    fn leaves_have_any_number_of_votes() {
        let test = Test::AtMost(0.5);
        let specs = [
            Spec::Branch { feature: 0, test, yes: 1, no: 2, missing: false },
            Spec::Leaf(vec![(0, 1.0), (2, 2.0)]),
            Spec::Leaf(vec![]),
        ];
        let forest = Forest::new(&specs, &[0, 1]).unwrap();
        let mut found = Vec::new();
        forest.walk(&[0.0, 1.0], 1, |row, leaf| found.push((row, forest.votes(leaf).to_vec())));
        let both = vec![(0, 1.0), (2, 2.0)];
        let right = [(0, both.clone()), (0, both.clone()), (1, vec![]), (1, both)];
        assert_eq!(found, right);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let branch = |yes, no| Spec::Branch {
            feature: 0,
            test: Test::AtMost(0.0_f64),
            yes,
            no,
            missing: false,
        };
        assert!(Forest::new(&[branch(0, 0)], &[0]).is_err(), "a circle");
        assert!(Forest::new(&[branch(1, 2), Spec::Leaf(vec![])], &[0]).is_err(), "nowhere");
        assert!(Forest::<f64>::new(&[], &[0]).is_err(), "no root");
        let far = Spec::Branch {
            feature: 1 << 28,
            test: Test::AtMost(0.0),
            yes: 1,
            no: 1,
            missing: false,
        };
        assert!(Forest::new(&[far, Spec::Leaf(vec![(0, 1.0)])], &[0]).is_err(), "far");
    }
}
