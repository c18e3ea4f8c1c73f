//! The pools of a simulated fleet, and the variants that stand in for the route's own.

use crate::scenario::{Fallback, Group};

/// Where the requests of a variant go, and how much work they are there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// The number of its pool.
    pub pool: usize,
    /// Its services take so many times as long as a request asks for.
    pub cost: f64,
}

impl Variant {
    /// The variant that a request asks for: the route's own pool.
    pub const OWN: Self = Self { pool: 0, cost: 1.0 };
}

/// Endpoints by pool, and the fallbacks of the route, whose own pool is number 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Pools {
    /// Of each pool, by number of the endpoint: whether it belongs there.
    pub members: Vec<Vec<bool>>,
    /// The variants that stand in, in their order.
    pub fallbacks: Vec<Variant>,
}

/// Why endpoints and fallbacks do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A pool without endpoints.
    #[error("sim.fallback.pool: expected the pool of a [[fleet.endpoint]], found \"{0}\"")]
    NoEndpoint(String),
    /// Endpoints to which no request would go.
    #[error("fleet.endpoint.pool: expected the pool of a [[sim.fallback]], found \"{0}\"")]
    NoFallback(String),
    /// The route itself has none.
    #[error(
        "expected at least one [[fleet.endpoint]] without a pool, that of the route, found none"
    )]
    NoOwn,
}

impl Pools {
    /// Of these groups of endpoints and these fallbacks.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn new(groups: &[Group], fallbacks: &[Fallback]) -> Result<Self, PoolError> {
        let mut names: Vec<Option<&str>> = vec![None];
        for fallback in fallbacks {
            let pool = fallback.pool.as_deref();
            if !names.contains(&pool) {
                names.push(pool);
            }
        }
        let of_pool = |name: Option<&str>| -> Vec<bool> {
            let is_there = |group: &Group| group.pool.as_deref() == name;
            let each = |group: &Group| std::iter::repeat_n(is_there(group), group.count as usize);
            groups.iter().flat_map(each).collect()
        };
        let members: Vec<Vec<bool>> = names.iter().map(|name| of_pool(*name)).collect();
        for (name, members) in names.iter().zip(&members) {
            if !members.contains(&true) {
                return Err(
                    name.map_or(PoolError::NoOwn, |name| PoolError::NoEndpoint(name.to_owned()))
                );
            }
        }
        let unknown = groups.iter().filter_map(|group| group.pool.as_deref());
        if let Some(name) = unknown.into_iter().find(|name| !names.contains(&Some(name))) {
            return Err(PoolError::NoFallback(name.to_owned()));
        }
        let pool_of =
            |name: Option<&str>| names.iter().position(|known| *known == name).unwrap_or_default();
        let variant = |it: &Fallback| Variant { pool: pool_of(it.pool.as_deref()), cost: it.cost };
        Ok(Self { members, fallbacks: fallbacks.iter().map(variant).collect() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    fn group(count: u32, pool: Option<&str>) -> Group {
        Group { count, pool: pool.map(str::to_owned), ..Group::default() }
    }

    fn fallback(pool: Option<&str>, cost: f64) -> Fallback {
        Fallback { pool: pool.map(str::to_owned), cost }
    }

    #[test]
    fn endpoints_belong_to_the_route_unless_they_name_the_pool_of_a_fallback() {
        let groups = [group(2, None), group(1, Some("small"))];
        let pools = Pools::new(&groups, &[fallback(None, 0.5), fallback(Some("small"), 0.1)]);
        let Pools { members, fallbacks } = pools.unwrap();
        assert_eq!(members, [[true, true, false], [false, false, true]]);
        let expected = [Variant { pool: 0, cost: 0.5 }, Variant { pool: 1, cost: 0.1 }];
        assert_eq!(fallbacks, expected);
    }

    #[test]
    fn a_pool_without_endpoints_or_without_requests_is_refused() {
        let small = || PoolError::NoEndpoint("small".to_owned());
        assert_eq!(Pools::new(&[group(2, None)], &[fallback(Some("small"), 1.0)]), Err(small()));
        let unused = Pools::new(&[group(2, None), group(1, Some("small"))], &[]);
        assert_eq!(unused, Err(PoolError::NoFallback("small".to_owned())));
        let groups = [group(1, Some("small"))];
        assert_eq!(Pools::new(&groups, &[fallback(Some("small"), 1.0)]), Err(PoolError::NoOwn));
    }
}
