//! Flags that say what a request is: what a scenario file says in `[[request]]`.

use crate::distribution::Distribution;
use crate::scenario::Range;
use crate::scenario::{Encoding, Header, Infer, Request, RequestKind, Shape};
use crate::units::TimeSpan;
use clap::Args;
use forebay_protocol::Priority;
use std::path::PathBuf;

/// The one kind of request that flags describe.
#[derive(Debug, Args)]
#[command(next_help_heading = "Requests")]
pub(super) struct RequestArgs {
    /// Infer with this model; inputs are random tensors after the model's own metadata
    #[arg(long, short, value_name = "NAME", conflicts_with_all = ["path", "method", "body"])]
    pub(super) model: Option<String>,

    /// Version of the model [default: the server's choice]
    #[arg(long, value_name = "VERSION", requires = "model")]
    model_version: Option<String>,

    /// How tensors are written [default: json]
    #[arg(long, value_name = "ENCODING", requires = "model")]
    encoding: Option<Encoding>,

    /// Batch sizes, chosen at random (1,1,8: two thirds have one item) [default: 1]
    #[arg(long, value_name = "N,…", value_delimiter = ',', requires = "model")]
    batch: Vec<u64>,

    /// Number of different inputs [default: 16]
    #[arg(long, value_name = "N", requires = "model")]
    distinct: Option<usize>,

    /// Popularity of the inputs: 0 all alike, 1 Zipf's law [default: 0]
    #[arg(long, value_name = "EXPONENT", requires = "model")]
    zipf: Option<f64>,

    /// Shape of an input whose dimensions are not all fixed (ids:1,128)
    #[arg(long, value_name = "INPUT:N,…", requires = "model")]
    shape: Vec<Shape>,

    /// Random values lie from LOW up to, not including, HIGH [default: 0..1, integers 0..100]
    #[arg(long, value_name = "LOW..HIGH", requires = "model")]
    range: Option<Range>,

    /// Send these files, JSON inference requests, instead of random tensors
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "model")]
    input: Vec<PathBuf>,

    /// Any other request: path and query [default: the URL's]
    #[arg(long)]
    path: Option<String>,

    /// Any other request: method [default: GET, with a body POST]
    #[arg(long)]
    method: Option<String>,

    /// Any other request: file with the body
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,

    /// A header of every request
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    header: Vec<Header>,

    /// Send x-request-deadline
    #[arg(long, value_name = "TIME")]
    deadline: Option<TimeSpan>,

    /// Send x-request-priority: high, normal or batch
    #[arg(long, value_name = "PRIORITY")]
    priority: Option<Priority>,

    /// Ask a synthetic backend for service times, drawn for every request (exponential:20ms)
    #[arg(long, value_name = "DISTRIBUTION")]
    demand: Option<Distribution>,
}

impl RequestArgs {
    pub(super) fn given(&self) -> [(&'static str, bool); 8] {
        [
            ("--model", self.model.is_some()),
            ("--path", self.path.is_some()),
            ("--method", self.method.is_some()),
            ("--body", self.body.is_some()),
            ("--header", !self.header.is_empty()),
            ("--deadline", self.deadline.is_some()),
            ("--priority", self.priority.is_some()),
            ("--demand", self.demand.is_some()),
        ]
    }

    /// The one request that the flags describe, for the target `url`.
    pub(super) fn described(&self, url: &str) -> Request {
        let kind = match (&self.model, &self.path) {
            (Some(model), _) => RequestKind::Infer(Infer {
                model: model.clone(),
                version: self.model_version.clone(),
                encoding: self.encoding.unwrap_or_default(),
                batch: self.batch.clone(),
                distinct: self.distinct,
                zipf: self.zipf.unwrap_or(0.0),
                shape: self.shape.clone(),
                range: self.range,
                input: self.input.clone(),
            }),
            (None, path) => RequestKind::Http {
                method: self.method.clone(),
                path: match path {
                    Some(path) => path.clone(),
                    None => path_of(url),
                },
                body: self.body.clone(),
            },
        };
        Request {
            weight: 1.0,
            deadline: self.deadline,
            priority: self.priority,
            demand: self.demand,
            headers: self.header.clone(),
            kind,
        }
    }
}

/// Path and query of a URL; what is no URL is refused later, with what was expected.
fn path_of(url: &str) -> String {
    let uri = url.parse::<http::Uri>().unwrap_or_default();
    uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)
}
