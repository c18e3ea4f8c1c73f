//! Recorded decisions of a proxy, explained and made again.
//!
//! An access log of a pool with `decisions` has what each sampled decision knew. The routing core that the proxy runs is
//! linked here as well, so a decision can be made again from the record: it must come to the same choice. If
//! it does not, then either the record lacks something that the policy looks at, or this program has
//! another version of the policy; both are worth knowing before the record is used to explain anything.

use crate::plan::replay::{self, ReplayError};
use crate::report::style::Style;
use crate::units::{self, seconds};
use forebay_routing::decision::{Comparison, Decision, Why};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// Maximum number of decisions that are named because they are not the same again.
const MAX_NAMED: usize = 20;

/// Why there is nothing to explain.
#[derive(Debug, thiserror::Error)]
pub enum DecisionsError {
    /// The log can't be read.
    #[error("{path}: {error}")]
    Read {
        /// The log.
        path: String,
        /// Why.
        error: ReplayError,
    },
    /// No line has decisions.
    #[error("{0}: expected lines with \"decisions\" (decisions = \"1%\" of the pool), found none")]
    None(String),
    /// No line is of this request.
    #[error("{0}: expected a line with decisions and request_id \"{1}\", found none")]
    NoRequest(String, String),
}

/// The outcome of making recorded decisions again.
#[derive(Debug, Default, Serialize)]
pub struct Replayed {
    /// Requests with decisions.
    pub requests: u64,
    /// Their decisions that can be made again.
    pub decisions: u64,
    /// Those that come to the same choice.
    pub same: u64,
    /// Decisions of policies that do not compare costs, which can't be made again.
    pub others: u64,
    /// Lines whose decisions are of another form, as those of another version are.
    pub unread: u64,
    /// Requests with a decision that comes to another choice, the first few.
    pub different: Vec<String>,
    /// Decisions by their reason.
    pub reasons: BTreeMap<String, u64>,
}

/// The decisions on a request.
#[derive(Debug)]
pub struct Recorded {
    /// The request's id.
    pub id: String,
    /// Microseconds since the request came, and the decision.
    pub steps: Vec<(u64, Decision)>,
}

#[derive(Deserialize)]
struct Line {
    request_id: Option<String>,
    decisions: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Step {
    after_us: u64,
    #[serde(flatten)]
    decision: Decision,
}

/// Reads the decisions in the access log at `path`, and the number of lines whose decisions can't be read.
///
/// # Errors
/// The log can't be read, or has no decision.
pub fn read(path: &Path) -> Result<(Vec<Recorded>, u64), DecisionsError> {
    let name = path.display().to_string();
    let lines = replay::each_line(path, |text| serde_json::from_str::<Line>(text).ok())
        .map_err(|error| DecisionsError::Read { path: name.clone(), error })?;
    let (mut found, mut unread) = (Vec::new(), 0);
    for line in lines {
        let Some(decisions) = line.decisions else { continue };
        match serde_json::from_value::<Vec<Step>>(decisions) {
            Ok(steps) => found.push(Recorded {
                id: line.request_id.unwrap_or_default(),
                steps: steps.into_iter().map(|it| (it.after_us, it.decision)).collect(),
            }),
            Err(_) => unread += 1,
        }
    }
    if found.is_empty() && unread == 0 {
        Err(DecisionsError::None(name))
    } else {
        Ok((found, unread))
    }
}

/// Makes all decisions again.
pub fn replay(recorded: &[Recorded], unread: u64) -> Replayed {
    let mut found = Replayed { requests: recorded.len() as u64, unread, ..Replayed::default() };
    for request in recorded {
        let mut is_same = true;
        for (_, decision) in &request.steps {
            *found.reasons.entry(reason(decision).to_owned()).or_default() += 1;
            let Some(again) = decision.replay() else {
                found.others += 1;
                continue;
            };
            found.decisions += 1;
            if again == decision.recorded() {
                found.same += 1;
            } else {
                is_same = false;
            }
        }
        if !is_same && found.different.len() < MAX_NAMED {
            found.different.push(request.id.clone());
        }
    }
    found
}

fn reason(decision: &Decision) -> &'static str {
    match decision {
        Decision::Bind(it) => match it.why {
            Why::LeastCost => "it cost least of those that were free",
            Why::Explored => "it had been avoided, and was explored",
            Why::FindsOut => "hardly anything was known of it",
            Why::BetterIsBusy => "waited: a busy endpoint was worth waiting for",
            Why::NoneFree => "waited: none was free",
        },
        Decision::Ahead(_) => "sent ahead, so that the endpoint need not idle",
        Decision::Pick(_) => "picked by another policy",
    }
}

impl Replayed {
    /// Whether every decision came to the same choice again.
    pub fn is_same(&self) -> bool {
        self.same == self.decisions && self.unread == 0
    }

    /// As text, with a line break at the end.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out, style);
        out
    }

    fn write(&self, out: &mut String, style: Style) -> std::fmt::Result {
        let verdict = match self.same == self.decisions {
            true => style.good("all come to the same choice again"),
            false => style.bad(&format!(
                "{} come to another choice",
                units::count(self.decisions - self.same)
            )),
        };
        let [decisions, requests] = [self.decisions, self.requests].map(units::count);
        writeln!(out, "{decisions} decisions on {requests} requests: {verdict}")?;
        if self.others > 0 {
            let others = units::count(self.others);
            writeln!(out, "{others} more are of policies that do not compare costs")?;
        }
        if self.unread > 0 {
            let unread = units::count(self.unread);
            writeln!(out, "{}", style.bad(&format!("{unread} lines have another form")))?;
        }
        for (reason, count) in &self.reasons {
            writeln!(out, "  {:>9}  {reason}", units::count(*count))?;
        }
        for id in &self.different {
            writeln!(out, "  another choice: request {id}")?;
        }
        Ok(())
    }
}

/// The decisions on one request, as text.
///
/// # Errors
/// There is none with this id in what was read from `path`.
pub fn explain(recorded: &[Recorded], id: &str, path: &Path) -> Result<String, DecisionsError> {
    let found = recorded
        .iter()
        .find(|request| request.id == id)
        .ok_or_else(|| DecisionsError::NoRequest(path.display().to_string(), id.to_owned()))?;
    let mut out = format!("request {id}\n");
    for (after_us, decision) in &found.steps {
        // Writing to a string does not fail.
        let _ = step(&mut out, *after_us, decision);
    }
    Ok(out)
}

fn step(out: &mut String, after_us: u64, decision: &Decision) -> std::fmt::Result {
    let after = seconds(units::float(after_us) / 1e6);
    let chosen = decision.endpoint().unwrap_or("none");
    writeln!(out, "\nafter {after}: {chosen}, {}", reason(decision))?;
    match decision {
        Decision::Bind(it) => candidates(out, it),
        Decision::Ahead(it) => {
            writeln!(
                out,
                "  {:.1} waited, {} of the time was asked for, a gap is {}",
                it.waiting,
                units::percent(it.utilisation),
                seconds(it.handoff_delay)
            )?;
            for gap in &it.candidates {
                let facts = gap.facts;
                writeln!(
                    out,
                    "  {:<22} {} slots, {} ahead, service {}, a slot frees in {} ± {}",
                    gap.endpoint,
                    facts.slots,
                    facts.ahead,
                    seconds(facts.service),
                    seconds(facts.frees),
                    seconds(facts.deviation)
                )?;
            }
            Ok(())
        }
        Decision::Pick(it) => writeln!(out, "  by {}, of {} endpoints", it.policy, it.endpoints),
    }
}

fn candidates(out: &mut String, it: &Comparison) -> std::fmt::Result {
    writeln!(
        out,
        "  {} requests before it; {} of {} endpoints in rotation were looked at\n  {:<22}{:>10}{:>7}{:>7}{:>7}\
         {:>10}{:>10}{:>10}{:>10}  free",
        it.before,
        it.candidates.len(),
        it.endpoints,
        "endpoint",
        "in flight",
        "there",
        "slots",
        "limit",
        "report",
        "service",
        "frees in",
        "cost",
    )?;
    for (at, known) in it.candidates.iter().enumerate() {
        let limit = known.limit.map_or("-".to_owned(), |limit| limit.to_string());
        let report = known.report_age.map_or("-".to_owned(), seconds);
        let free = match (known.has_room, known.suits) {
            (true, true) => "yes",
            (false, _) => "no",
            (true, false) => "too late",
        };
        let mark = if it.chosen == Some(at) { "  <-" } else { "" };
        writeln!(
            out,
            "  {:<22}{:>10}{:>7}{:>7}{limit:>7}{report:>10}{:>10}{:>10}{:>10}  {free}{mark}",
            known.endpoint,
            known.in_flight,
            known.there,
            known.slots,
            seconds(known.service),
            seconds(known.frees),
            seconds(known.cost),
        )?;
    }
    Ok(())
}
