//! The protocols that clients speak: Open Inference Protocol over REST and gRPC, and OpenAI's.
//!
//! Each transport reads a request, hands it to what all of them share (`inference`, `repository_api`,
//! `metadata`), and writes the answer in its own form.

mod ambiguous_framing;
pub(crate) mod body;
mod compress;
mod cross_site;
pub(crate) mod grpc;
mod metadata;
mod model_path;
mod openai;
mod pieces;
mod repository_api;
mod rest;
pub(crate) mod router;
mod terms;
