//! Flags that say what a request is: what a scenario file says in `[[request]]`.

use super::flags::{HttpFlags, InferFlags, RequestFlags};
use crate::scenario::{Http, Infer, Request, RequestKind};
use clap::Args;

/// The one kind of request that flags describe.
#[derive(Debug, Args)]
#[command(next_help_heading = "Requests")]
pub(super) struct RequestArgs {
    #[command(flatten)]
    infer: InferFlags,

    #[command(flatten)]
    http: HttpFlags,

    #[command(flatten)]
    request: RequestFlags,
}

impl RequestArgs {
    /// The flags that were given, as they are written.
    pub(super) fn given(&self) -> impl Iterator<Item = String> {
        self.infer.given().chain(self.http.given()).chain(self.request.given())
    }

    /// The one request that the flags describe, for the target `url`.
    pub(super) fn described(&self, url: &str) -> Request {
        let kind = if self.infer.has("model") {
            RequestKind::Infer(self.infer.over(Infer::default()))
        } else {
            RequestKind::Http(self.http.over(Http { path: path_of(url), ..Http::default() }))
        };
        Request { kind, ..self.request.over(Request::default()) }
    }
}

/// Path and query of a URL; what is no URL is refused later, with what was expected.
fn path_of(url: &str) -> String {
    let uri = url.parse::<http::Uri>().unwrap_or_default();
    uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)
}
