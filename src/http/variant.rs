//! Picks one of a route's variants, and writes its model into the request.
//!
//! A route may be split: each request is answered by one variant, drawn by weight. A variant is a pool, and
//! may be another model or version there, which has to be written into the request. That can't be done
//! with every request, as the body of a stream or of a protocol that the proxy does not read stays as it
//! is: such a request must not be counted for a variant that did not answer it, so those variants are
//! not drawn for it.

use crate::config::{Route, Variant};
use crate::http::identify::Identity;
use crate::pool::{Pool, Snapshot};
use crate::refusal::Refusal;
use bytes::Bytes;
use forebay_protocol::{Reason, grpc, oip};
use forebay_routing::attempt::fallback::Passed;
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
        Some(Self { route, variant, pool, instead_of: None, passed, is_last: false })
    }

    /// The same, with no fallback behind it.
    pub fn without_fallback(self) -> Self {
        Self { is_last: true, ..self }
    }
}

/// Draws a variant by weight; `draw` is any number, evenly distributed. If the pool of that one has no
/// endpoint, nor that of any that would stand in for it, one of the others is drawn: a canary that is gone
/// must not cost its share of the requests.
///
/// # Errors
/// None of the route's variants can answer this request.
pub fn choose(
    snapshot: &Snapshot,
    route: &Arc<Route>,
    identity: &Identity,
    draw: u32,
) -> Result<Target, Refusal> {
    let all = |variant: &Variant| may_answer(variant, identity);
    let there = |variant: &Variant| all(variant) && is_there(snapshot, variant);
    let first = drawn(&route.variants, all, draw);
    let is_answered = |it: &Variant| there(it) || route.fallback.iter().any(|it| there(it));
    let other = || drawn(&route.variants, |it| it.weight > 0 && there(it), draw);
    let variant = match first {
        Some(first) if !is_answered(first) => other().or(Some(first)),
        first => first,
    };
    let found = variant.and_then(|variant| Some((variant, snapshot.pools.get(variant.pool)?)));
    let Some((variant, pool)) = found else {
        let name = &route.name;
        let message = format!("no variant of route {name} supports a request of this form");
        return Err(Refusal::new(Reason::NoRoute, message));
    };
    let instead_of = first.filter(|first| !Arc::ptr_eq(first, variant)).map(Arc::clone);
    let (route, variant, pool) = (Arc::clone(route), Arc::clone(variant), Arc::clone(pool));
    Ok(Target { route, variant, pool, instead_of, passed: Passed::default(), is_last: false })
}

/// Whether its pool has an endpoint.
fn is_there(snapshot: &Snapshot, variant: &Variant) -> bool {
    snapshot.pools.get(variant.pool).is_some_and(|pool| !pool.rotation.ready.is_empty())
}

fn drawn(
    variants: &[Arc<Variant>],
    is_eligible: impl Fn(&Variant) -> bool,
    draw: u32,
) -> Option<&Arc<Variant>> {
    let eligible = || variants.iter().filter(|variant| is_eligible(variant));
    let sum: u32 = eligible().map(|variant| variant.weight).sum();
    let mut left = draw.checked_rem(sum).unwrap_or_default();
    let by_weight = eligible().find(|variant| {
        let is_drawn = left < variant.weight;
        left = left.saturating_sub(variant.weight);
        is_drawn
    });
    // Where all weights are zero, the first is as good as any.
    by_weight.or_else(|| eligible().next())
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
        let drawn = |draw| drawn(variants, may_answer, draw).map(|it| it.name.clone());
        let all: Vec<_> = (0..Variant::WHOLE).map(drawn).collect();
        let of = |name: &str| all.iter().filter(|it| it.as_deref() == Some(name)).count();
        variants.iter().map(|variant| of(&variant.name)).collect()
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
