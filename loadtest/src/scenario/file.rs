//! Reading a scenario file: all that is wrong with it at once, with line and column.

use super::{
    Batch, Closed, EndpointFault, EndpointFaultKind, Fallback, Fault, FaultKind, General, Group,
    Live, Load, Open, Phase, Process, Reports, Request, RequestKind, Scenario, Sim, Simulated,
    Trust,
};
use forebay_config::file;
use forebay_config::pool::{Ejection, Hedge, ProbeSchedule, Queue, Retry};
use forebay_config::{Diagnostics, Document, Kinds as _, Section as _, Table};
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
        if scenario.general.name.is_none() {
            scenario.general.name =
                path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
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
        general: General::read(table),
        load: load(table),
        requests,
        base: PathBuf::new(),
        live: live(table),
        simulated: simulated(table),
    }
}

fn live(table: &Table<'_, '_>) -> Live {
    Live {
        tls: Trust::read(&table.table_or_empty("tls")),
        processes: table.tables("process").iter().map(Process::read).collect(),
        faults: table.tables("fault").iter().map(fault).collect(),
        ..Live::read(table)
    }
}

fn load(top: &Table<'_, '_>) -> Load {
    let Some(table) = top.table("load") else {
        top.note(top.span(), "load", "expected a table ([load]), found none");
        return Load::Closed(Closed::default());
    };
    match Load::read(&table) {
        Load::Open(open) => {
            let phases: Vec<Phase> = table.tables("phase").iter().map(Phase::read).collect();
            if phases.is_empty() {
                let message = "expected at least one [[load.phase]], found none";
                table.note(table.span(), "phase", message);
            }
            Load::Open(Open { phases, ..open })
        }
        other => other,
    }
}

fn request(table: &Table<'_, '_>) -> Request {
    Request { kind: RequestKind::read(table), ..Request::read(table) }
}

fn fault(table: &Table<'_, '_>) -> Fault {
    Fault { kind: FaultKind::read(table), ..Fault::read(table) }
}

/// The fleet that a scenario describes, if it describes one.
fn simulated(top: &Table<'_, '_>) -> Simulated {
    let sim = sim(&top.table_or_empty("sim"));
    let Some(table) = top.table("fleet") else { return Simulated { sim, ..Simulated::default() } };
    let groups = table.tables("endpoint");
    if groups.is_empty() {
        let message = "expected at least one [[fleet.endpoint]], found none";
        table.note(table.span(), "endpoint", message);
    }
    let fleet = groups.iter().map(group).collect();
    let faults = table.tables("fault").iter().map(endpoint_fault).collect();
    Simulated { fleet, faults, sim }
}

fn group(table: &Table<'_, '_>) -> Group {
    let batch = table.table("batch").map(|table| Batch::read(&table));
    Group { batch, ..Group::read(table) }
}

fn endpoint_fault(table: &Table<'_, '_>) -> EndpointFault {
    EndpointFault { kind: EndpointFaultKind::read(table), ..EndpointFault::read(table) }
}

fn sim(table: &Table<'_, '_>) -> Sim {
    Sim {
        fallbacks: table.tables("fallback").iter().map(Fallback::read).collect(),
        queue: Queue::read(&table.table_or_empty("queue")),
        reports: Reports::read(&table.table_or_empty("reports")),
        retry: Retry::read(&table.table_or_empty("retry")),
        hedge: table.table("hedge").map(|table| Hedge::read(&table)),
        ejection: Ejection::read(&table.table_or_empty("ejection")),
        probe: ProbeSchedule::checked(&table.table_or_empty("probe")),
        ..Sim::read(table)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;
    use crate::scenario::{Ramp, Spacing, reference};
    use crate::units::Rate;
    use forebay_protocol::Priority;

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
        assert_eq!((scenario.general.objectives.len(), scenario.requests.len()), (2, 2));
        let Load::Open(Open { spacing: Spacing::Poisson, phases }) = &scenario.load else {
            unreachable!("the text says open and poisson")
        };
        assert!(
            matches!(phases.as_slice(), [Phase::Ramp(Ramp { to: Rate(to), .. })] if *to == 1000.0)
        );
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
            (2, "objectives: expected an objective such as"),
            (4, "load.kind: expected \"open\" or \"closed\" or \"replay\", found \"opn\""),
            (7, "load.phase.*.rate: expected a rate"),
            (5, "load.phase.*.for: expected a duration"),
            (8, "request.*.model: expected a string, found nothing"),
            (10, "request.*.modle: unknown key, did you mean \"model\"?"),
            (11, "request.*.demand: expected constant:TIME"),
        ] {
            let is_there = |(at, text): &(usize, &str)| *at == line && text.contains(part);
            assert!(found.iter().any(is_there), "{line}: {part}\n{found:#?}");
        }
    }

    #[test]
    fn the_reference_file_is_what_the_keys_say_and_has_all_of_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/reference.toml");
        let text = reference::text();
        assert_eq!(std::fs::read_to_string(path).unwrap(), text, "run .ci/generate");
        let document = Document::parse(&text);
        top(&document.root());
        let (asked, present) = (document.keys_asked(), document.keys_present());
        document.finish().unwrap();
        let missing: Vec<_> = asked.difference(&present).collect();
        assert!(missing.is_empty(), "not in the reference: {missing:?}");
    }

    #[test]
    fn the_other_kinds_of_load_are_in_the_reference_too() {
        let text = reference::text();
        for kind in Load::all().into_iter().skip(1) {
            let keys = kind.keys.iter().map(|key| format!("{} = {}", key.name, key.shown));
            let lines: Vec<String> =
                [format!("kind = {:?}", kind.name)].into_iter().chain(keys).collect();
            for line in &lines {
                assert!(text.contains(&format!("#   {line}\n")), "{line}");
            }
            let request = "[[request]]\nkind = \"http\"\npath = \"/\"";
            parse(&format!("[load]\n{}\n{request}", lines.join("\n"))).unwrap();
        }
    }
}
