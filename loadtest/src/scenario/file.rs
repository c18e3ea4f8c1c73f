//! Reading a scenario file: all that is wrong with it at once, with line and column.

use super::table::{kind_of, required};
use super::{
    Encoding, Header, Infer, Live, Load, Objective, Phase, Protocol, Range, Request, RequestKind,
    Scenario, Shape, Spacing, Trust, fault, fleet,
};
use crate::units::{Rate, TimeSpan};
use forebay_config::file;
use forebay_config::{Diagnostics, Document, Table, from_text};
use forebay_protocol::Priority;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time that reading a scenario may take.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a scenario file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file can't be read, or is not a scenario; the text says where, and what was expected.
    #[error("{0}")]
    Wrong(String),
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// The file is not there, too large, or not a scenario: then everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let name = path.display().to_string();
        let mut scenario = file::load(path, READ_TIMEOUT, parse)
            .map_err(|error| ScenarioError::Wrong(error.render(&name).trim_end().to_owned()))?;
        scenario.base = path.parent().map(Path::to_owned).unwrap_or_default();
        if scenario.name.is_none() {
            scenario.name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        }
        Ok(scenario)
    }
}

/// Reads the text of a scenario.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<Scenario, Diagnostics> {
    let document = Document::parse(text);
    let scenario = top(&document.root());
    document.finish()?;
    Ok(scenario)
}

fn top(table: &Table<'_, '_>) -> Scenario {
    let requests: Vec<Request> = table.tables("request").iter().map(request).collect();
    if requests.is_empty() {
        table.note(table.span(), "request", "expected at least one [[request]], found none");
    }
    Scenario {
        name: table.get("name"),
        seed: table.or("seed", 1),
        warm_up: table.get("warm_up"),
        timeout: table.get("timeout"),
        clients: table.get("clients"),
        client_header: table.get("client_header"),
        objectives: table.get("objectives").unwrap_or_default(),
        load: load(table),
        requests,
        base: PathBuf::new(),
        live: live(table),
        simulated: fleet::simulated(table),
    }
}

fn live(table: &Table<'_, '_>) -> Live {
    let protocols = [
        ("http/1.1", Protocol::Http1),
        ("h2", Protocol::Http2),
        ("h2c", Protocol::Http2),
        ("grpc", Protocol::Grpc),
    ];
    Live {
        target: table.get("target"),
        protocol: table.choice("protocol", &protocols, Protocol::Http1),
        tls: tls(&table.table_or_empty("tls")),
        connections: table.get("connections"),
        streams: table.get("streams"),
        threads: table.get("threads"),
        processes: table.tables("process").iter().map(fault::process).collect(),
        faults: table.tables("fault").iter().map(fault::fault).collect(),
    }
}

fn tls(table: &Table<'_, '_>) -> Trust {
    Trust { insecure: table.or("insecure", false), ca: table.get("ca") }
}

fn load(top: &Table<'_, '_>) -> Load {
    let Some(table) = top.table("load") else {
        top.note(top.span(), "load", "expected a table ([load]), found none");
        return Load::Closed { length: SECOND };
    };
    match kind_of(&table, &["open", "closed", "replay"]) {
        "closed" => Load::Closed { length: required(&table, "for", SECOND) },
        "replay" => Load::Replay {
            file: required(&table, "file", PathBuf::new()),
            speed: table.or("speed", 1.0),
        },
        _ => {
            let spacing = [("constant", Spacing::Constant), ("poisson", Spacing::Poisson)];
            let phases: Vec<Phase> = table.tables("phase").iter().map(phase).collect();
            if phases.is_empty() {
                table.note(
                    table.span(),
                    "phase",
                    "expected at least one [[load.phase]], found none",
                );
            }
            Load::Open { spacing: table.choice("spacing", &spacing, Spacing::Constant), phases }
        }
    }
}

fn phase(table: &Table<'_, '_>) -> Phase {
    let rate = |key| required(table, key, Rate(0.0));
    let span = |key| required(table, key, SECOND);
    match kind_of(table, &["constant", "ramp", "bursts", "diurnal"]) {
        "ramp" => Phase::Ramp { from: rate("from"), to: rate("to"), length: span("for") },
        "bursts" => Phase::Bursts {
            base: rate("base"),
            peak: rate("peak"),
            every: span("every"),
            burst: span("burst"),
            length: span("for"),
        },
        "diurnal" => Phase::Diurnal {
            low: rate("low"),
            high: rate("high"),
            period: span("period"),
            length: span("for"),
        },
        _ => Phase::Constant { rate: rate("rate"), length: span("for") },
    }
}

fn request(table: &Table<'_, '_>) -> Request {
    let kind = match kind_of(table, &["infer", "http"]) {
        "http" => RequestKind::Http {
            method: table.get("method"),
            path: required(table, "path", String::new()),
            body: table.get("body"),
        },
        _ => RequestKind::Infer(infer(table)),
    };
    Request {
        weight: table.or("weight", 1.0),
        deadline: table.get("deadline"),
        priority: table.choice(
            "priority",
            &Priority::ALL.map(|priority| (priority.as_str(), Some(priority))),
            None,
        ),
        demand: table.get("demand"),
        headers: table.get("headers").unwrap_or_default(),
        kind,
    }
}

fn infer(table: &Table<'_, '_>) -> Infer {
    let encodings = [("json", Encoding::Json), ("binary", Encoding::Binary)];
    Infer {
        model: required(table, "model", String::new()),
        version: table.get("version"),
        encoding: table.choice("encoding", &encodings, Encoding::Json),
        batch: table.get("batch").unwrap_or_default(),
        distinct: table.get("distinct"),
        zipf: table.or("zipf", 0.0),
        shape: table.get("shape").unwrap_or_default(),
        range: table.get("range"),
        input: table.get("input").unwrap_or_default(),
    }
}

/// Stands for a span that is missing, which has been noted.
const SECOND: TimeSpan = TimeSpan(Duration::from_secs(1));

from_text! {
    Objective = "an objective such as \"p99<50ms\" or \"errors<0.1%\"";
    Header = Header::EXPECTED;
    Shape = Shape::EXPECTED;
    Range = Range::EXPECTED;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    const GOOD: &str = r#"
        target = "http://127.0.0.1:8080"
        objectives = ["p99<50ms", "errors<0.1%"]
        [load]
        kind = "open"
        spacing = "poisson"
        [[load.phase]]
        kind = "ramp"
        from = "10/s"
        to = "1k/s"
        for = "30s"
        [[request]]
        kind = "infer"
        model = "m"
        batch = [1, 1, 8]
        shape = ["ids:1,128"]
        range = "0..256"
        deadline = "100ms"
        priority = "high"
        demand = "exponential:20ms"
        headers = ["x-client: search"]
        [[request]]
        kind = "http"
        path = "/v2"
        weight = 0.5
    "#;

    #[test]
    fn a_scenario_is_read() {
        let scenario = parse(GOOD).unwrap();
        assert_eq!((scenario.objectives.len(), scenario.requests.len()), (2, 2));
        let Load::Open { spacing: Spacing::Poisson, phases } = &scenario.load else {
            unreachable!("the text says open and poisson")
        };
        assert!(matches!(phases.as_slice(), [Phase::Ramp { to: Rate(to), .. }] if *to == 1000.0));
        let RequestKind::Infer(infer) = &scenario.requests[0].kind else {
            unreachable!("it says infer")
        };
        assert_eq!(infer.batch, [1, 1, 8]);
        assert_eq!(infer.shape[0].sizes, [1, 128]);
        assert_eq!(scenario.requests[0].headers[0].name, "x-client");
        assert_eq!(scenario.requests[0].priority, Some(Priority::High));
        assert_eq!(scenario.requests[1].weight, 0.5);
    }

    #[test]
    fn every_error_is_reported_with_its_line_and_what_was_expected() {
        let text = r#"seed = -1
objectives = ["p99<50"]
[load]
kind = "opn"
[[load.phase]]
kind = "constant"
rate = 500
[[request]]
kind = "infer"
modle = "m"
demand = "sometimes"
"#;
        let errors = parse(text).unwrap_err();
        let found: Vec<(usize, &str)> =
            errors.iter().map(|error| (error.line, error.message.as_str())).collect();
        for (line, part) in [
            (1, "seed: expected a whole number"),
            (2, "objectives: expected an array"),
            (4, "load.kind: expected \"open\" or \"closed\" or \"replay\", found \"opn\""),
            (7, "load.phase.*.rate: expected a rate"),
            (5, "load.phase.*.for: expected a span of time"),
            (8, "request.*.model: expected a string, found nothing"),
            (10, "request.*.modle: unknown key, did you mean \"model\"?"),
            (11, "request.*.demand: expected constant:TIME"),
        ] {
            let is_there = |(at, text): &(usize, &str)| *at == line && text.contains(part);
            assert!(found.iter().any(is_there), "{line}: {part}\n{found:#?}");
        }
    }
}
