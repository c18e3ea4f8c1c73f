//! Calls that load and unload models go to every endpoint of the pool.
//!
//! Endpoints of a pool are interchangeable. A model that is loaded at one of them answers every second request, and
//! fails the others. So such a call is sent to all endpoints in rotation, of every pool that the route may choose for
//! the next request, and succeeds only if all of them have done it. Calls that only read are answered by one.

use crate::body_memory::Account;
use crate::http::cache::is_success;
use crate::http::forward::send::{NotAnswered, send_once};
use crate::http::receive::Received;
use crate::http::request::Request;
use crate::http::response::BufferedResponse;
use crate::http::services::Services;
use crate::http::variant::Target;
use crate::pool::queue::Bound;
use crate::pool::{Endpoint, Pool};
use crate::refusal::Refusal;
use crate::split::Assignment;
use bytes::Bytes;
use forebay_protocol::grpc::INFERENCE_SERVICE;
use forebay_protocol::{Reason, header};
use futures_util::future::join_all;
use http::Method;
use pingora::http::RequestHeader;
use std::sync::Arc;

/// Endpoints that are asked at once.
const MAX_AT_ONCE: usize = 16;

/// Whether the request loads or unloads a model.
pub fn is_change(head: &RequestHeader, request: &Request) -> bool {
    let path = head.uri.path();
    if request.identity.grpc.is_some() {
        let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(INFERENCE_SERVICE));
        return matches!(method, Some("/RepositoryModelLoad" | "/RepositoryModelUnload"));
    }
    let of_model = path.strip_prefix("/v2/repository/models/");
    head.method == Method::POST
        && of_model.is_some_and(|rest| rest.ends_with("/load") || rest.ends_with("/unload"))
}

/// Sends it to all endpoints; the answer of one of them if all have done it.
///
/// # Errors
/// The reason of the first that has not, with the number of those that have.
pub async fn to_all(
    services: &Services,
    head: &RequestHeader,
    request: &Request,
    (received, account): (Received, &Account),
) -> Result<BufferedResponse, Refusal> {
    let Received::Whole(body) = received else {
        let words =
            "a call to the repository goes to several endpoints: expected a body that can be held";
        return Err(Refusal::new(Reason::BodyTooLarge, words));
    };
    let Some(target) = request.target.clone() else {
        return Err(Refusal::new(Reason::Internal, "a request without a route"));
    };
    let pools = pools(request, &target);
    let places = pools.iter().flat_map(|pool| pool.rotation.ready.iter().map(move |it| (pool, it)));
    let places: Vec<_> = places.collect();
    if places.is_empty() || pools.iter().any(|pool| pool.ready_count() == 0) {
        let words = "expected every pool of the route to have an endpoint that is ready";
        return Err(Refusal::new(Reason::NoEndpoint, words));
    }
    let (mut done, mut first, mut failed) = (0, None, None);
    for some in places.chunks(MAX_AT_ONCE) {
        let ask = |(pool, endpoint): &(&Arc<Pool>, &Arc<Endpoint>)| {
            let target = target.clone().at(Arc::clone(pool));
            one(services, (head, &body), (request, target), Arc::clone(endpoint), account)
        };
        for (place, answer) in join_all(some.iter().map(ask)).await.into_iter().enumerate() {
            match answer {
                Ok(response) => {
                    done += 1;
                    first.get_or_insert(response);
                }
                Err(refusal) => {
                    failed.get_or_insert((Arc::clone(&some[place].1.state.name), refusal));
                }
            }
        }
    }
    let Some((endpoint, refusal)) = failed else {
        return first.ok_or_else(|| Refusal::new(Reason::Internal, "no endpoint was asked"));
    };
    let whose = match target.route.expose_endpoint {
        true => format!("endpoint {endpoint}"),
        false => "an endpoint".to_owned(),
    };
    let message =
        format!("done at {done} of {} endpoints; {whose}: {}", places.len(), refusal.message);
    Err(Refusal::new(refusal.reason, message))
}

/// The pools that the route may choose, each once; of a request that asked for a variant, that one's.
fn pools(request: &Request, target: &Target) -> Vec<Arc<Pool>> {
    if target.assignment == Assignment::Asked {
        return vec![Arc::clone(&target.pool)];
    }
    let mut places: Vec<_> = target.route.variants.iter().map(|variant| variant.pool).collect();
    places.sort_unstable();
    places.dedup();
    let pool = |place| request.snapshot.pools.get(place).map(Arc::clone);
    places.into_iter().filter_map(pool).collect()
}

/// Sends it to one endpoint; once more if the connection broke, since doing it twice does no harm.
async fn one(
    services: &Services,
    (head, body): (&RequestHeader, &Bytes),
    (request, target): (&Request, Target),
    endpoint: Arc<Endpoint>,
    account: &Account,
) -> Result<BufferedResponse, Refusal> {
    let is_grpc = request.identity.grpc.is_some();
    let copy = Request {
        identity: request.identity.clone(),
        priority: request.priority,
        deadline: request.deadline,
        holds_answer: true,
        target: Some(target),
        ..Request::new(Arc::clone(&request.snapshot))
    };
    let mut again = true;
    loop {
        let bound = Bound::long_lived(&endpoint);
        let to = (&*services.connector, account);
        match send_once((head, body.clone()), &copy, bound, to).await {
            Ok(response) if is_success(&response, is_grpc) => return Ok(response),
            Ok(response) => return Err(refusal(&response)),
            Err(NotAnswered::Failed(refusal))
                if again && refusal.reason == Reason::EndpointReset =>
            {
                again = false;
            }
            Err(NotAnswered::Failed(refusal)) => return Err(refusal),
            Err(NotAnswered::Long) => {
                let words = "the answer is longer than is held";
                return Err(Refusal::new(Reason::InvalidResponse, words));
            }
        }
    }
}

/// The refusal that an endpoint's answer means.
fn refusal(response: &BufferedResponse) -> Refusal {
    /// Most characters of an endpoint's message.
    const MAX_WORDS: usize = 500;
    let last = response.trailers.as_deref().unwrap_or(&response.head.headers);
    let reason = last.get(header::REASON).and_then(|value| value.to_str().ok());
    let reason = reason.and_then(Reason::from_code).unwrap_or(Reason::LoadFailed);
    let body = response.body.concat();
    let said = serde_json::from_slice::<serde_json::Value>(&body).ok();
    let said = said.and_then(|said| said["error"].as_str().map(str::to_owned));
    let message = last.get(header::GRPC_MESSAGE).map(forebay_protocol::grpc::decode_message);
    let message = said.or(message).unwrap_or_else(|| format!("status {}", response.head.status));
    Refusal::new(reason, message.chars().take(MAX_WORDS).collect::<String>())
}
