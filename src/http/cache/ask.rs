//! The question that a request asks.

use super::answers::Cache;
use super::message::{Wire, control, off_io};
use super::outcome::Bypass;
use super::rows::Rows;
use crate::config::{CacheScope, RouteCache};
use crate::http::get_infer;
use crate::http::identify;
use crate::http::receive::Received;
use crate::http::request::Request;
use crate::http::variant::Target;
use forebay_cache::flight::Leader;
use forebay_cache::{Asked, CacheControl, Entry, Question};
use forebay_protocol::oip::InferRequest;
use http::HeaderMap;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::Instant;

/// A question that the model may have to be asked.
pub struct Ask {
    pub(super) question: Question,
    /// The request; its inputs only while they are needed.
    pub(super) request: InferRequest,
    /// The form of its bytes.
    pub(super) wire: Wire,
    /// Its client's wishes about caching.
    pub(super) control: CacheControl,
    /// The model and the version that is asked for, as a number.
    pub(super) model: u64,
    /// The rows of a batch that may be taken apart.
    pub(super) rows: Option<Rows>,
    /// A kept answer whose time is up, which is better than none.
    pub(super) stale: Option<Arc<Entry>>,
    /// Has to answer for the equal ones that wait.
    pub leader: Option<Leader<Arc<Entry>>>,
    pub(super) began: Instant,
}

/// The question that a request asks.
///
/// # Errors
/// It is none that the cache could answer.
pub(super) async fn ask(
    cache: &Cache,
    session: &Session,
    request: &Request,
    (target, settings): (&Target, &RouteCache),
    received: &Received,
) -> Result<Ask, Bypass> {
    let head = &*get_infer::forwarded(session.req_header(), &request.identity)
        .map_err(|_| Bypass::Unread)?;
    let Received::Whole(body) = received else { return Err(Bypass::Long) };
    if head.uri.query().is_some() {
        return Err(Bypass::Query);
    }
    let has_own = settings.scope == CacheScope::Client
        || settings.vary.contains(&http::header::AUTHORIZATION);
    if head.headers.contains_key(http::header::AUTHORIZATION) && !has_own {
        return Err(Bypass::Authorization);
    }
    let limits = &request.snapshot.config.limits;
    let wire = Wire::of(&head.headers, request.identity.grpc.is_some(), limits.body)?;
    let bytes = body.clone();
    let read = off_io(body.len(), move || wire.request(&bytes)).await;
    let message = read.unwrap_or(Err(Bypass::Unread))?;
    let (model, version) = request.model();
    let client = (settings.scope == CacheScope::Client)
        .then(|| identify::client_name(session, &head.headers, limits.client_header.as_ref()));
    let vary: Vec<_> = settings.vary.iter().map(|name| values(&head.headers, name)).collect();
    let asked = Asked {
        route: &target.route.name,
        variant: &target.variant.name,
        model: model.ok_or(Bypass::Unread)?,
        version,
        epoch: &settings.epoch,
        client: client.as_deref(),
        vary: &vary,
    };
    let question = cache.hasher.question(&asked, &message).map_err(|_| Bypass::Stateful)?;
    let of_row = |row: &InferRequest| cache.hasher.question(&asked, row).ok();
    let rows = if settings.rows { Rows::of(&message, of_row) } else { None };
    let inputs = if rows.is_some() { message.inputs } else { Vec::new() };
    Ok(Ask {
        question,
        request: InferRequest { inputs, ..message },
        wire,
        control: control(&head.headers),
        model: identify::model(model, version),
        rows,
        stale: None,
        leader: None,
        began: Instant::now(),
    })
}

/// All values of a header, told apart by their lengths.
fn values(headers: &HeaderMap, name: &http::HeaderName) -> Option<Vec<u8>> {
    let mut joined = Vec::new();
    for value in headers.get_all(name) {
        joined.extend_from_slice(&(value.len() as u64).to_le_bytes());
        joined.extend_from_slice(value.as_bytes());
    }
    (!joined.is_empty()).then_some(joined)
}
