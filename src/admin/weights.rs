//! `/routes/ROUTE/weights`: the weights of a route that is split, shown and changed.

use super::answer::json_answer;
use crate::http::identify;
use crate::pool::Snapshot;
use crate::pool::control::ControlHandle;
use crate::pool::message::{SetWeights, WeightsError};
use crate::rollout::Rollouts;
use crate::split::Split;
use http::{Method, Response, StatusCode};
use pingora::protocols::http::ServerSession;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use std::fmt;
use std::sync::Arc;

/// Longest body that is read, in bytes: hundreds of variants with long names.
const MAX_BODY: usize = 64 * 1024;
/// Bytes of a longer one that are still read: closing while the client sends would destroy the answer.
const MAX_READ: usize = 4 * 1024 * 1024;

/// Shows the weights, or changes them as the body says.
pub(super) async fn weights(
    (control, rollouts): (&ControlHandle, &Rollouts),
    session: &mut ServerSession,
    (method, path): (&Method, &str),
) -> Response<Vec<u8>> {
    let refused = |status, error: String| json_answer(status, &json!({ "error": error }));
    let route = match route_of(path) {
        Ok(route) => route,
        Err((status, error)) => return refused(status, error),
    };
    let changed = match *method {
        Method::GET => find(&control.snapshot().load(), &route),
        Method::POST if rollouts.moves(&route) => {
            let error = format!("a rollout moves the weights of route {route:?}: abort it first");
            return refused(StatusCode::CONFLICT, error);
        }
        Method::POST => {
            let weights = match wanted(session).await {
                Ok(weights) => weights,
                Err(error) => return refused(StatusCode::BAD_REQUEST, error),
            };
            let by = "operator".to_owned();
            control.set_weights(SetWeights { route, weights, by }).await
        }
        _ => {
            let error = format!("expected GET or POST, found {method}");
            return refused(StatusCode::METHOD_NOT_ALLOWED, error);
        }
    };
    match changed {
        Ok(split) => json_answer(StatusCode::OK, &shown(&split)),
        Err(error) => refused(status_of(&error), error.to_string()),
    }
}

fn status_of(error: &WeightsError) -> StatusCode {
    match error {
        WeightsError::Route(_) => StatusCode::NOT_FOUND,
        WeightsError::NotSplit(_) | WeightsError::Weights(_) => StatusCode::UNPROCESSABLE_ENTITY,
        WeightsError::Stopping | WeightsError::Failed => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn find(snapshot: &Snapshot, route: &str) -> Result<Arc<Split>, WeightsError> {
    if let Some(split) = snapshot.splits.named(route) {
        return Ok(Arc::clone(split));
    }
    let is_known = snapshot.config.routes.iter().any(|known| known.name == route);
    let name = route.to_owned();
    Err(if is_known { WeightsError::NotSplit(name) } else { WeightsError::Route(name) })
}

/// The route that a path names. Its parts are separated before they are decoded, so that a name may contain any
/// character.
fn route_of(path: &str) -> Result<String, (StatusCode, String)> {
    let parts: Vec<_> = path.split('/').collect();
    let ["", "routes", route, "weights"] = parts[..] else {
        let form = "/routes/ROUTE/weights";
        let error = format!("expected {form} with the name percent-encoded, found {path:?}");
        return Err((StatusCode::NOT_FOUND, error));
    };
    identify::decode("route", route).map_err(|error| (StatusCode::BAD_REQUEST, error))
}

/// The weights in the body of a request.
async fn wanted(session: &mut ServerSession) -> Result<Vec<(String, u32)>, String> {
    let (mut body, mut length) = (Vec::new(), 0);
    while let Some(piece) = session
        .read_request_body()
        .await
        .map_err(|_| "the body ended before its stated length".to_owned())?
    {
        length += piece.len();
        if length <= MAX_BODY {
            body.extend_from_slice(&piece);
        } else if length > MAX_READ {
            break;
        }
    }
    if length > MAX_BODY {
        return Err(format!("expected a body of at most {MAX_BODY} bytes, found more"));
    }
    parse(&body)
}

fn parse(body: &[u8]) -> Result<Vec<(String, u32)>, String> {
    let wanted: Wanted = serde_json::from_slice(body).map_err(|error| {
        format!("expected {{\"weights\": {{\"VARIANT\": THOUSANDTHS}}}}: {error}")
    })?;
    Ok(wanted.weights.0)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    weights: Pairs,
}

/// The pairs of an object as they are written: one that stands there twice must not pass for one.
struct Pairs(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of weights in thousandths")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

fn shown(split: &Split) -> Value {
    let object = |weights: &[u32]| {
        let pairs = split.names().iter().zip(weights);
        pairs.map(|(name, weight)| (name.clone(), json!(weight))).collect::<Map<_, _>>()
    };
    json!({
        "route": split.route(),
        "weights": object(&split.weights()),
        "configured": object(&split.configured()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_read_by_the_letter() {
        let pairs = |body: &str| parse(body.as_bytes());
        let pair = |name: &str, weight| (name.to_owned(), weight);
        let two = r#"{"weights": {"a": 1, "b": 2}}"#;
        assert_eq!(pairs(two), Ok(vec![pair("a", 1), pair("b", 2)]));
        let twice = r#"{"weights": {"a": 1, "a": 2}}"#;
        assert_eq!(pairs(twice), Ok(vec![pair("a", 1), pair("a", 2)]));
        assert_eq!(pairs(r#"{"weights": {}}"#), Ok(Vec::new()));
        for wrong in [
            "",
            "{}",
            "[]",
            r#"{"weights": [1]}"#,
            r#"{"weights": {"a": -1}}"#,
            r#"{"weights": {"a": 1.5}}"#,
            r#"{"weights": {"a": "1"}}"#,
            r#"{"weights": {"a": 4294967296}}"#,
            r#"{"weights": {"a": 1}, "more": 2}"#,
            r#"{"weights": {"a": 1}} x"#,
        ] {
            let error = pairs(wrong).err().unwrap_or_default();
            assert!(error.starts_with("expected {\"weights\""), "{wrong}: {error}");
        }
    }
}
