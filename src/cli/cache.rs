//! `forebay cache`: looks at the response cache of a running proxy, and empties it.

use super::admin::{self, Admin};
use anyhow::Result;
use forebay_protocol::oip::encoded;
use http::Method;
use serde_json::Value;
use std::fmt::Write;

/// A command to the cache.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Show how full the cache is and what it has saved since the start.
    Stats {
        #[command(flatten)]
        admin: Admin,
    },
    /// Forget kept answers: all of them, or those that match every option given.
    Purge {
        #[command(flatten)]
        admin: Admin,
        /// Only answers of this route.
        #[arg(long)]
        route: Option<String>,
        /// Only answers of this model.
        #[arg(long)]
        model: Option<String>,
        /// Only answers of this version.
        #[arg(long)]
        version: Option<String>,
    },
}

/// Carries out the command. Returns the message to print.
///
/// # Errors
/// The proxy does not answer.
pub(super) fn run(command: &Command) -> Result<String> {
    admin::run(async {
        match command {
            Command::Stats { admin } => Ok(stats(&admin.ask(Method::GET, "/cache").await?)),
            Command::Purge { admin, route, model, version } => {
                let query = [("route", route), ("model", model), ("version", version)];
                let query = query.iter().filter_map(|(key, value)| {
                    value.as_ref().map(|value| format!("{key}={}", encoded(value)))
                });
                let query = query.collect::<Vec<_>>().join("&");
                let path =
                    format!("/cache/purge{}{query}", if query.is_empty() { "" } else { "?" });
                let said = admin.ask(Method::POST, &path).await?;
                let shared = match said["shared"].as_bool() {
                    Some(true) => ", and all in the shared store",
                    Some(false) => {
                        "; the shared store does not answer: this proxy takes nothing from it until it does"
                    }
                    None => "",
                };
                Ok(format!("{} answers forgotten{shared}", said["purged"]))
            }
        }
    })
}

fn stats(said: &Value) -> String {
    let mut text = String::new();
    let number = |key: &str| said[key].as_u64().unwrap_or(0);
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "{} answers, {} of {} bytes; removed: {} to make room, {} for their age; {} under way, {} waiting",
        number("entries"),
        number("bytes"),
        number("memory"),
        number("removed_for_size"),
        number("removed_for_age"),
        number("under_way"),
        number("waiting"),
    );
    let shared = &said["shared"];
    if shared.is_object() {
        let is_asked = shared["asked"].as_bool() == Some(true);
        let trouble = shared["trouble"].as_str().filter(|_| !is_asked).unwrap_or_default();
        let _ = write!(
            text,
            "\nshared store: {}{}{trouble}; look-ups: {}; writes: {}; {} bytes wait to be written",
            if is_asked { "asked" } else { "given up" },
            if trouble.is_empty() { "" } else { ": " },
            counts(&shared["gets"]),
            counts(&shared["puts"]),
            shared["queued_bytes"].as_u64().unwrap_or(0),
        );
    }
    let file = &said["file"];
    if file.is_object() {
        let (taken, bytes) = (file["taken"].as_u64().unwrap_or(0), file["bytes"].as_u64());
        let written = bytes.map_or("not written yet".to_owned(), |bytes| format!("{bytes} bytes"));
        let trouble = file["trouble"].as_str().map(|why| format!("; {why}")).unwrap_or_default();
        let _ = write!(text, "\nfile: {taken} answers taken at the start; {written}{trouble}");
    }
    text
}

/// The outcomes that there were, such as "3 hit, 1 miss".
fn counts(by_outcome: &Value) -> String {
    let all = by_outcome.as_object().into_iter().flatten();
    let some = all.filter(|(_, count)| count.as_u64() != Some(0));
    let some: Vec<_> = some.map(|(outcome, count)| format!("{count} {outcome}")).collect();
    if some.is_empty() { "none".to_owned() } else { some.join(", ") }
}
