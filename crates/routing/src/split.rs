//! Splits of a route's requests over its variants, and changes of their weights.
//!
//! A split that draws all clients again when a weight changes moves clients without need, and one that
//! remembers in a cookie where a client was drifts until all of them are on the variant under trial. Here a
//! client has a fixed place among a thousand, and the weights say which places belong to which variant. So a
//! weight that is raised moves clients to that variant only, and lowering it again moves the same ones back.

use crate::pick;

/// Sum of the weights of a route: they are in thousandths.
pub const WHOLE: u32 = 1000;

/// The place of a client among [`WHOLE`], which every proxy computes alike. Splits with another `salt` spread
/// the same clients in another way, so that one rollout does not always meet the clients of another.
pub fn place(salt: &str, key: &[u8]) -> u32 {
    // The length keeps "ab" and "c" apart from "a" and "bc".
    let text = [&(salt.len() as u64).to_be_bytes(), salt.as_bytes(), key].concat();
    let spread = crate::Rng::new(pick::identity(&text)).next_u64();
    let place = (u128::from(spread) * u128::from(WHOLE)) >> 64;
    u32::try_from(place).unwrap_or_default()
}

/// The variant that a place belongs to, by its position; `place` is below the sum of the `weights`. `None`: the
/// sum is zero.
///
/// The first variant has all places that no other takes. The second, the fourth and so on take theirs from the
/// lowest place upwards, the third, the fifth and so on from the highest downwards. So with two or three
/// variants a client moves only if it has to. Of four and more, a change also shifts those that lie further
/// inside, by as much as it is large.
pub fn at(weights: &[u32], place: u32) -> Option<usize> {
    let sum: u32 = weights.iter().sum();
    let (mut low, mut high) = (0, sum);
    for (position, weight) in weights.iter().enumerate().skip(1) {
        let is_taken = if position % 2 == 1 {
            low += weight;
            (low - weight..low).contains(&place)
        } else {
            high -= weight;
            (high..high + weight).contains(&place)
        };
        if is_taken {
            return Some(position);
        }
    }
    (sum > 0).then_some(0)
}

/// Why weights can't be changed in this way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightError {
    /// No weight was given.
    Nothing,
    /// The route has no such variant.
    Unknown(String),
    /// A variant was given two weights.
    Twice(String),
    /// The weights that result add up to another sum than [`WHOLE`].
    Sum(u64),
}

impl std::fmt::Display for WeightError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("expected the weight of a variant, found none"),
            Self::Unknown(name) => write!(f, "there is no variant {name:?}"),
            Self::Twice(name) => write!(f, "expected each variant once, found {name:?} again"),
            Self::Sum(found) => {
                write!(f, "expected weights that add up to {WHOLE} thousandths, found {found}")
            }
        }
    }
}

impl std::error::Error for WeightError {}

/// The weights of the variants `names`, in their order, once those of `given` are set. A single variant that
/// was not given gets the rest; of several, each keeps its `present` weight.
///
/// # Errors
/// A name is unknown or given twice, or the weights don't add up.
pub fn revised(
    names: &[String],
    present: &[u32],
    given: &[(String, u32)],
) -> Result<Vec<u32>, WeightError> {
    if given.is_empty() {
        return Err(WeightError::Nothing);
    }
    let mut found = vec![None; names.len()];
    for (name, weight) in given {
        let place = names.iter().position(|known| known == name);
        let place = place.ok_or_else(|| WeightError::Unknown(name.clone()))?;
        if found[place].replace(*weight).is_some() {
            return Err(WeightError::Twice(name.clone()));
        }
    }
    let of_given: u64 = given.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let rest = u64::from(WHOLE).checked_sub(of_given).and_then(|rest| u32::try_from(rest).ok());
    let is_only_one = found.iter().filter(|weight| weight.is_none()).count() == 1;
    let weights = found.iter().enumerate().map(|(place, weight)| {
        let kept = || present.get(place).copied().unwrap_or_default();
        weight.unwrap_or_else(|| if is_only_one { rest.unwrap_or_default() } else { kept() })
    });
    let weights: Vec<u32> = weights.collect();
    let sum = weights.iter().map(|weight| u64::from(*weight)).sum();
    if sum == u64::from(WHOLE) { Ok(weights) } else { Err(WeightError::Sum(sum)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variant of each of some clients.
    fn variants(clients: usize, weights: &[u32]) -> Vec<usize> {
        let of = |client: usize| {
            at(weights, place("route", client.to_string().as_bytes())).unwrap_or(usize::MAX)
        };
        (0..clients).map(of).collect()
    }

    fn moved(before: &[usize], after: &[usize]) -> Vec<(usize, usize)> {
        let pairs = before.iter().copied().zip(after.iter().copied());
        pairs.filter(|(before, after)| before != after).collect()
    }

    #[test]
    fn raising_a_weight_in_steps_moves_each_client_once_and_lowering_it_moves_it_back() {
        const CLIENTS: usize = 10_000;
        let steps: Vec<u32> =
            std::iter::once(10).chain((1..=20).map(|step| step * WHOLE / 20)).collect();
        let mut moves = vec![0; CLIENTS];
        let mut before = variants(CLIENTS, &[WHOLE, 0]);
        let mut seen = vec![before.clone()];
        for canary in &steps {
            let after = variants(CLIENTS, &[WHOLE - canary, *canary]);
            for (client, (old, new)) in before.iter().zip(&after).enumerate() {
                assert!(new >= old, "client {client} went back at {canary}");
                moves[client] += usize::from(new != old);
            }
            let share = after.iter().filter(|variant| **variant == 1).count() * 1000 / CLIENTS;
            assert!(share.abs_diff(*canary as usize) <= 15, "{share} of {canary}");
            seen.push(after.clone());
            before = after;
        }
        assert!(moves.iter().all(|moves| *moves == 1), "each client moves exactly once");
        for (canary, expected) in steps.iter().zip(&seen[1..]).rev() {
            assert_eq!(variants(CLIENTS, &[WHOLE - canary, *canary]), *expected);
        }
    }

    #[test]
    fn with_three_variants_only_those_clients_move_that_have_to() {
        let before = variants(10_000, &[600, 300, 100]);
        for (weights, from, to) in [
            ([500, 400, 100], 0, 1),
            ([500, 300, 200], 0, 2),
            ([700, 200, 100], 1, 0),
            ([0, 900, 100], 0, 1),
        ] {
            let moved = moved(&before, &variants(10_000, &weights));
            assert!(!moved.is_empty());
            assert!(moved.iter().all(|it| *it == (from, to)), "{weights:?}: {moved:?}");
        }
    }

    #[test]
    fn every_weight_gets_exactly_its_places() {
        for weights in [
            vec![1000],
            vec![0, 1000],
            vec![950, 0, 50],
            vec![100, 200, 300, 400],
            vec![1, 2, 3, 4, 5, 985],
            vec![0, 3, 0, 7],
        ] {
            let sum = weights.iter().sum();
            for (position, weight) in weights.iter().enumerate() {
                let places = (0..sum).filter(|place| at(&weights, *place) == Some(position));
                assert_eq!(places.count(), *weight as usize, "{weights:?} at {position}");
            }
        }
        assert_eq!(at(&[0, 0], 0), None);
        assert_eq!(at(&[], 0), None);
    }

    #[test]
    fn splits_of_other_routes_spread_the_same_clients_in_another_way() {
        let place = |salt: &str, client: u32| place(salt, &client.to_be_bytes());
        let both = (0..10_000).filter(|it| place("a", *it) < 100 && place("b", *it) < 100).count();
        assert!((50..200).contains(&both), "{both}, a hundred if they are independent");
        assert_ne!(super::place("ab", b"c"), super::place("a", b"bc"));
    }

    #[test]
    fn weights_are_changed_together_or_not_at_all() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let changed = |given: &[(&str, u32)]| {
            let given: Vec<_> = given.iter().map(|(name, it)| ((*name).to_owned(), *it)).collect();
            revised(&names, &[900, 100, 0], &given)
        };
        assert_eq!(changed(&[("b", 200), ("c", 0)]), Ok(vec![800, 200, 0]));
        assert_eq!(changed(&[("a", 850), ("b", 150)]), Ok(vec![850, 150, 0]));
        assert_eq!(changed(&[("c", 1), ("b", 2), ("a", 997)]), Ok(vec![997, 2, 1]));
        assert_eq!(changed(&[("b", 100)]), Ok(vec![900, 100, 0]));
        assert_eq!(changed(&[("b", 200)]), Err(WeightError::Sum(1100)));
        assert_eq!(changed(&[("b", 700), ("a", 400)]), Err(WeightError::Sum(1100)));
        assert_eq!(changed(&[("b", u32::MAX), ("a", 400)]), Err(WeightError::Sum(4_294_967_695)));
        assert_eq!(changed(&[]), Err(WeightError::Nothing));
        assert_eq!(changed(&[("b", 100), ("b", 1)]), Err(WeightError::Twice("b".to_owned())));
        let error = changed(&[("x", 100)]).map_err(|error| error.to_string());
        assert_eq!(error, Err("there is no variant \"x\"".to_owned()));
    }
}
