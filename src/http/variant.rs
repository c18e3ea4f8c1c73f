//! Picks one of a route's variants, and writes its model into the request.
//!
//! A route may be split: each request is answered by one variant, drawn by weight. The weights are those of now
//! ([`crate::split`]), loaded once for the request, which keeps the one that it was drawn with. A variant is a pool, and
//! may be another model or version there, which has to be written into the request. That can't be done
//! with every request, as the body of a stream or of a protocol that the proxy does not read stays as it
//! is: such a request must not be counted for a variant that did not answer it, so those variants are
//! not drawn for it.

use crate::config::{Route, Variant};
use crate::http::identify::Identity;
use crate::pool::{Pool, Snapshot};
use crate::refusal::Refusal;
use crate::split::Assignment;
use bytes::Bytes;
use forebay_protocol::{Reason, grpc, oip};
use forebay_routing::attempt::fallback::Passed;
use forebay_routing::split;
use pingora::http::RequestHeader;
use std::sync::Arc;

/// The destination of a request.
#[derive(Debug, Clone)]
pub struct Target {
    /// The route that matched.
    pub route: Arc<Route>,
    /// The variant that answers.
    pub variant: Arc<Variant>,
    /// Its pool, as it was when the request came.
    pub pool: Arc<Pool>,
    /// How the request came to the variant that was chosen first.
    pub assignment: Assignment,
    /// The place of its client among [`Variant::WHOLE`], if its client stays with a variant.
    pub client_place: Option<u32>,
    /// The variant that was drawn first, if its pool has no endpoint.
    pub instead_of: Option<Arc<Variant>>,
    /// The route's fallbacks that were tried or passed over, including the current one.
    passed: Passed,
    /// Whether none is to be tried: there is something better.
    is_last: bool,
}

impl Target {
    /// The next of the route's fallbacks that the request can be sent to.
    pub fn fallback(&self, snapshot: &Snapshot, identity: &Identity) -> Option<Self> {
        if self.is_last {
            return None;
        }
        let (next, passed) =
            self.passed.next(&self.route.fallback, |it| may_answer(it, identity))?;
        let pool = Arc::clone(snapshot.pools.get(next.pool)?);
        let (route, variant) = (Arc::clone(&self.route), Arc::clone(next));
        let (assignment, client_place) = (self.assignment, self.client_place);
        let instead_of = None;
        Some(Self {
            route,
            variant,
            pool,
            assignment,
            client_place,
            instead_of,
            passed,
            is_last: false,
        })
    }

    /// The same, at another pool.
    pub fn at(self, pool: Arc<Pool>) -> Self {
        Self { pool, ..self }
    }

    /// The same, with no fallback behind it.
    pub fn without_fallback(self) -> Self {
        Self { is_last: true, ..self }
    }
}

/// The way in which a request's variant is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// By this number, which is any, evenly distributed.
    Drawn(u32),
    /// By the place of its client among [`Variant::WHOLE`].
    Sticky(u32),
    /// By its name.
    Asked(String),
}

impl Wish {
    /// The variant's position. `None`: the weights add up to nothing.
    fn draw(&self, weights: &[u32]) -> Option<usize> {
        let sum: u32 = weights.iter().sum();
        let place = match self {
            Self::Drawn(number) => number.checked_rem(sum)?,
            // Where some variants are left out, the others take their places in proportion.
            Self::Sticky(place) => {
                let scaled = u64::from(*place) * u64::from(sum) / u64::from(Variant::WHOLE);
                u32::try_from(scaled).ok()?
            }
            Self::Asked(_) => return None,
        };
        split::at(weights, place)
    }
}

/// Finds the variant of a request by its wish and the weights of now. If the pool of that one has no endpoint,
/// nor that of any that would stand in for it, one of the others is drawn: a canary that is gone must not cost
/// its share of the requests. A variant that the request asked for stays, whether it is there or not.
///
/// # Errors
/// None of the route's variants can answer this request, or there is none of the name that it asks for.
pub fn choose(
    snapshot: &Snapshot,
    route: &Arc<Route>,
    identity: &Identity,
    wish: &Wish,
) -> Result<Target, Refusal> {
    if let Wish::Asked(name) = wish {
        return asked(snapshot, route, identity, name);
    }
    let split = snapshot.splits.of(route).map(|split| split.weights());
    let weights: &[u32] = split.as_ref().map_or(&[Variant::WHOLE], |weights| weights.as_slice());
    let there = |variant: &Variant| may_answer(variant, identity) && is_there(snapshot, variant);
    let first = drawn(&route.variants, weights, |it| may_answer(it, identity), wish);
    let is_answered = |it: &Variant| there(it) || route.fallback.iter().any(|it| there(it));
    let place = match first {
        Some(first) if !is_answered(&route.variants[first]) => {
            let others = masked(&route.variants, weights, there);
            wish.draw(&others).or(Some(first))
        }
        first => first,
    };
    let (Some(first), Some(place)) = (first, place) else { return Err(unsupported(route)) };
    let weight = weights.get(first).copied().unwrap_or_default();
    let is_left_out =
        |(it, weight): (&Arc<Variant>, &u32)| *weight > 0 && !may_answer(it, identity);
    let assignment = match wish {
        _ if route.variants.iter().zip(weights).any(is_left_out) => Assignment::Restricted,
        _ if place != first => Assignment::Moved(weight),
        Wish::Sticky(_) => Assignment::Sticky(weight),
        _ => Assignment::Drawn(weight),
    };
    let instead_of = (place != first).then(|| Arc::clone(&route.variants[first]));
    let client_place = match wish {
        Wish::Sticky(place) => Some(*place),
        Wish::Drawn(_) | Wish::Asked(_) => None,
    };
    let target = target(snapshot, route, place, assignment)?;
    Ok(Target { instead_of, client_place, ..target })
}

/// The variant of this name, with nothing to stand in for it.
///
/// # Errors
/// There is none of this name, or it can't answer a request of this form.
pub(in crate::http) fn asked(
    snapshot: &Snapshot,
    route: &Arc<Route>,
    identity: &Identity,
    name: &str,
) -> Result<Target, Refusal> {
    let Some(place) = route.variants.iter().position(|variant| variant.name == name) else {
        let message = format!("{}: no such variant", forebay_protocol::header::VARIANT);
        return Err(Refusal::new(Reason::InvalidRequest, message));
    };
    if !may_answer(&route.variants[place], identity) {
        return Err(unsupported(route));
    }
    target(snapshot, route, place, Assignment::Asked).map(Target::without_fallback)
}

fn target(
    snapshot: &Snapshot,
    route: &Arc<Route>,
    place: usize,
    assignment: Assignment,
) -> Result<Target, Refusal> {
    let variant = &route.variants[place];
    let pool = snapshot.pools.get(variant.pool).ok_or_else(|| unsupported(route))?;
    let (route, variant, pool) = (Arc::clone(route), Arc::clone(variant), Arc::clone(pool));
    let passed = Passed::default();
    let (client_place, instead_of) = (None, None);
    Ok(Target {
        route,
        variant,
        pool,
        assignment,
        client_place,
        instead_of,
        passed,
        is_last: false,
    })
}

fn unsupported(route: &Route) -> Refusal {
    let name = &route.name;
    let message = format!("no variant of route {name} supports a request of this form");
    Refusal::new(Reason::NoRoute, message)
}

/// Whether its pool has an endpoint.
fn is_there(snapshot: &Snapshot, variant: &Variant) -> bool {
    snapshot.pools.get(variant.pool).is_some_and(|pool| !pool.rotation.ready.is_empty())
}

/// The position of the variant that the wish and the weights lead to, among those that are eligible.
fn drawn(
    variants: &[Arc<Variant>],
    weights: &[u32],
    is_eligible: impl Fn(&Variant) -> bool,
    wish: &Wish,
) -> Option<usize> {
    let by_weight = match variants.iter().all(|variant| is_eligible(variant)) {
        true => wish.draw(weights),
        false => wish.draw(&masked(variants, weights, &is_eligible)),
    };
    // Where all weights are zero, the first is as good as any.
    by_weight.or_else(|| variants.iter().position(|variant| is_eligible(variant)))
}

/// The weights, without those of variants that are not eligible.
fn masked(
    variants: &[Arc<Variant>],
    weights: &[u32],
    is_eligible: impl Fn(&Variant) -> bool,
) -> Vec<u32> {
    let pairs = variants.iter().zip(weights);
    pairs.map(|(variant, weight)| if is_eligible(variant) { *weight } else { 0 }).collect()
}

/// Whether the request can be sent to this variant. The name of its model must stand where it can be
/// exchanged.
fn may_answer(variant: &Variant, identity: &Identity) -> bool {
    !variant.renames() || identity.model.is_some()
}

/// Asks for the variant's model in the path, where the path names one.
///
/// # Errors
/// A path that can't be written; it was read before.
pub fn rename_path(head: &mut RequestHeader, variant: &Variant) -> pingora::Result<()> {
    let (model, version) = (variant.model.as_deref(), variant.version.as_deref());
    if !variant.renames() {
        return Ok(());
    }
    let Some(mut path) = oip::with_model(head.uri.path(), model, version) else { return Ok(()) };
    if let Some(query) = head.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    head.set_raw_path(path.as_bytes())
}

/// Asks for the variant's model in a message of gRPC. `None`: it is compressed, so its content is
/// between the client and the endpoint.
pub fn rename_message(body: &Bytes, variant: &Variant) -> Option<Bytes> {
    let (compressed, message) = grpc::only_message(body).ok()?;
    if compressed {
        return None;
    }
    let (model, version) = (variant.model.as_deref(), variant.version.as_deref());
    let renamed = grpc::with_model(&message, model, version);
    Some(grpc::frame(renamed.len(), |frame| frame.extend_from_slice(&renamed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variant(name: &str, weight: u32, model: Option<&str>) -> Arc<Variant> {
        let (name, model) = (name.to_owned(), model.map(str::to_owned));
        Arc::new(Variant { name, pool: 0, model, version: None, weight })
    }

    fn count(variants: &[Arc<Variant>], model: Option<&str>) -> Vec<usize> {
        let identity = Identity { model: model.map(str::to_owned), ..Identity::default() };
        let may_answer = |it: &Variant| may_answer(it, &identity);
        let weights: Vec<_> = variants.iter().map(|variant| variant.weight).collect();
        let counts = |wish: fn(u32) -> Wish| {
            let mut counts = vec![0; variants.len()];
            for place in 0..Variant::WHOLE {
                if let Some(found) = drawn(variants, &weights, may_answer, &wish(place)) {
                    counts[found] += 1;
                }
            }
            counts
        };
        assert_eq!(counts(Wish::Drawn), counts(Wish::Sticky));
        counts(Wish::Drawn)
    }

    #[test]
    fn each_variant_gets_its_weight_of_the_draws() {
        let variants =
            [variant("a", 900, None), variant("b", 0, None), variant("c", 100, Some("small"))];
        assert_eq!(count(&variants, Some("large")), [900, 0, 100]);
        assert_eq!(count(&variants[..1], None), [1000]);
    }

    #[test]
    fn a_request_that_can_not_be_renamed_goes_to_variants_that_need_not() {
        let variants = [variant("a", 10, None), variant("b", 990, Some("small"))];
        assert_eq!(count(&variants, None), [1000, 0]);
        assert_eq!(count(&variants[1..], None), [0], "nothing can answer");
        let off = [variant("a", 0, None), variant("b", 1000, Some("small"))];
        assert_eq!(count(&off, None), [1000, 0], "better than no answer");
    }
}
