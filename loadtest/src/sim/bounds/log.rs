//! The bounds of a real fleet, over the requests of its proxy's access log.
//!
//! The log has for each request its arrival, its endpoint and the time that this one took, but neither what the service
//! alone took nor how much work a request is that was refused. Both are inferred, and each report says from how
//! much.

mod requests;
mod services;

use super::{Ask, Server};
use crate::plan::replay::{self, ReplayError};
use crate::report::fleet::{Advice, FleetReport, Level};
use crate::report::times::Times;
use crate::units;
use requests::{End, Line, Pool, Recorded, pools};
use std::path::Path;
use std::time::Duration;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log can't be read.
    #[error("{path}: {error}")]
    Read {
        /// The log.
        path: String,
        /// Why.
        error: ReplayError,
    },
    /// No line is of a request that an endpoint answered.
    #[error(
        "{0}: expected lines of forebay's access log with endpoint, total_us and forward_us, found none of a \
         request that an endpoint answered"
    )]
    NothingAnswered(String),
}

/// Reads the access log at `path`: a report for each pool. Endpoints whose slots the log does not have get `slots`.
///
/// # Errors
/// The log can't be read, or has nothing to compare.
pub fn reports(path: &Path, slots: Option<u32>) -> Result<Vec<FleetReport>, LogError> {
    let name = path.display().to_string();
    let lines = replay::each_line(path, |text| serde_json::from_str::<Line>(text).ok())
        .map_err(|error| LogError::Read { path: name.clone(), error })?;
    let pools = pools(&lines);
    let answered = |pool: &Pool| !pool.endpoints.is_empty();
    let several = pools.values().filter(|pool| answered(pool)).count() > 1;
    let report = |(pool, it): (String, Pool)| {
        answered(&it).then(|| report(&it, several.then_some(pool), slots))
    };
    let reports: Vec<FleetReport> = pools.into_iter().filter_map(report).collect();
    if reports.is_empty() { Err(LogError::NothingAnswered(name)) } else { Ok(reports) }
}

fn report(pool: &Pool, name: Option<String>, stated: Option<u32>) -> FleetReport {
    let found = services::infer(pool, stated);
    let longest = pool.longest();
    let ask = |(request, work): (&Recorded, &u64)| Ask {
        at: request.at,
        alone: *work,
        work: *work,
        patience: request.patience.unwrap_or(longest),
        is_measured: true,
    };
    let asks: Vec<Ask> = pool.requests.iter().zip(&found.work).map(ask).collect();
    let (mut took, mut lost) = (Times::default(), 0);
    for request in &pool.requests {
        match request.end {
            End::Answered { .. } => took.add(Duration::from_nanos(request.took)),
            End::Refused => lost += 1,
        }
    }
    let servers: &[Server] = &found.servers;
    FleetReport {
        pool: name,
        endpoints: servers.len(),
        requests: asks.len() as u64,
        load: super::load(&asks, servers),
        ideal: super::ideal(&asks, servers, 0),
        capacity: super::capacity(&asks, servers, 0),
        perfect: Some(super::perfect(&asks, servers, 0)),
        actual: Level::new(&took, lost),
        advice: Advice::Nothing,
        missing: missing(pool, &found),
    }
    .advised()
}

/// Says what the log lacks, with numbers where there are some.
fn missing(pool: &Pool, found: &services::Services) -> Vec<String> {
    let requests = |n: u64| match n {
        1 => "1 request".to_owned(),
        n => format!("{} requests", units::count(n)),
    };
    let mut missing = vec![
        "the time on the wire, which counts as service; arrivals to less than a millisecond; what other \
         proxies sent to these endpoints, which makes services look longer"
            .to_owned(),
    ];
    let mut note = |n: u64, fact: &str| {
        if n > 0 {
            missing.push(format!("{} {fact}", requests(n)));
        }
    };
    note(
        found.behind,
        "found all slots of the endpoint taken: the service is counted from the end of the one before",
    );
    note(found.guessed, "were retried, hedged or refused: they count as the mean of their model");
    note(
        pool.others,
        "were answered without an endpoint, as from the cache, or failed for other reasons than load: they count nowhere",
    );
    let undated = pool.requests.iter().filter(|it| it.patience.is_none()).count();
    note(undated as u64, "have no deadline_us: they count as lost after the longest time of any");
    if found.unstated > 0 {
        missing.push(format!(
            "the slots of {} endpoints: the most requests that were there at once stand for them; --slots N \
             states them",
            units::count(found.unstated)
        ));
    }
    missing
}

#[cfg(test)]
mod tests;
