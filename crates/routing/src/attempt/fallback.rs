//! Chooses the variant that stands in next, where the present one does not answer.
//!
//! A worse answer in time is mostly worth more than none. A route names the variants that may stand in; each is
//! tried once, in that order, and those that can't answer the request are passed over.

/// The place of the variant that stands in next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandIn {
    /// At other endpoints.
    OtherPool,
    /// At the same ones, as another model.
    SamePool,
}

impl StandIn {
    /// Between a variant at this pool and the next one at that pool.
    pub fn between<P: PartialEq>(present: &P, next: &P) -> Self {
        if present == next { Self::SamePool } else { Self::OtherPool }
    }
}

/// How many of a route's fallbacks a request has tried or passed over, the present one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed(usize);

impl Passed {
    /// How many.
    pub fn count(self) -> u64 {
        self.0 as u64
    }

    /// The next of the route's `fallbacks` that may answer, and what is passed when it is tried.
    pub fn next<V>(self, fallbacks: &[V], may_answer: impl Fn(&V) -> bool) -> Option<(&V, Self)> {
        let mut rest = fallbacks.iter().enumerate().skip(self.0);
        let (place, next) = rest.find(|(_, variant)| may_answer(variant))?;
        Some((next, Self(place + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fallback_that_may_answer_is_tried_once_in_its_order() {
        let fallbacks = ["a", "b", "c", "d"];
        let mut passed = Passed::default();
        let mut tried = Vec::new();
        while let Some((variant, next)) = passed.next(&fallbacks, |it| *it != "b") {
            tried.push(*variant);
            passed = next;
        }
        assert_eq!(tried, ["a", "c", "d"]);
    }

    #[test]
    fn another_model_at_the_same_endpoints_is_not_another_pool() {
        assert_eq!(StandIn::between(&1, &1), StandIn::SamePool);
        assert_eq!(StandIn::between(&1, &2), StandIn::OtherPool);
    }
}
