//! The reference of all keys of a scenario, made from their declarations.

use super::fault::{Fault, FaultKind, Process};
use super::fleet::{Batch, EndpointFault, EndpointFaultKind, Fallback, Group, Reports, Sim};
use super::load::{Load, Phase};
use super::request::{Request, RequestKind};
use super::run::{General, Live, Trust};
use forebay_config::pool::{Ejection, Hedge, ProbeSchedule, Queue, Retry};
use forebay_config::{Key, Kind, Kinds, Section, comment, listed};

const HEAD: &str = "\
# Every key of a scenario, which forebay-load runs against a target (run, capacity) or on a virtual clock (sim).
# A key with a default has it here; one whose default is to leave it out has an example. Tables with a key
# kind have the keys of that kind; here is one of each kind, and the keys that all of them have stand in the
# first one. Those of a file that are flags too are told by --help. A test holds this file to the code.
";

/// The text of the reference file, which can be read as a scenario.
pub fn text() -> String {
    let sections = [
        vec![HEAD.to_owned(), top()],
        vec![Trust::reference("[tls]")],
        load(),
        each::<Phase>("[[load.phase]]", &[], &[]),
        each::<RequestKind>("[[request]]", Request::ABOUT, &Request::keys()),
        vec![Process::reference("[[process]]")],
        each::<FaultKind>("[[fault]]", Fault::ABOUT, &Fault::keys()),
        vec![Group::reference("[[fleet.endpoint]]"), Batch::reference("[fleet.endpoint.batch]")],
        each::<EndpointFaultKind>("[[fleet.fault]]", EndpointFault::ABOUT, &EndpointFault::keys()),
        vec![
            Sim::reference("[sim]"),
            Fallback::reference("[[sim.fallback]]"),
            Reports::reference("[sim.reports]"),
            Queue::reference("[sim.queue]"),
            Retry::reference("[sim.retry]"),
            Hedge::reference("[sim.hedge]"),
            Ejection::reference("[sim.ejection]"),
            ProbeSchedule::reference("[sim.probe]"),
        ],
    ];
    sections.concat().join("\n")
}

/// The keys before the first table.
fn top() -> String {
    let part = |about: &[&str], keys: &[Key]| format!("{}\n{}", comment(about), listed(keys));
    [part(General::ABOUT, &General::keys()), part(Live::ABOUT, &Live::keys())].join("\n")
}

/// The table of the load, of which a scenario has one: the other kinds are told in comments.
fn load() -> Vec<String> {
    let kinds = Load::all();
    let (first, others) =
        kinds.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
    let written = |kind: &Kind| one("[load]", &[], kind, ("", &[]));
    let told = |kind: &Kind| written(kind).lines().map(commented).collect::<String>();
    first.map(written).into_iter().chain(others.iter().map(told)).collect()
}

fn commented(line: &str) -> String {
    match line {
        "" => "#\n".to_owned(),
        line if line.starts_with('#') => format!("{line}\n"),
        line => format!("#   {line}\n"),
    }
}

/// One table of each kind; `shared`: the keys that all of them have.
fn each<K: Kinds>(header: &str, about: &[&str], shared: &[Key]) -> Vec<String> {
    let all = K::all();
    // Told in the first one, and needed in each.
    let due = |key: &&Key| key.is_required;
    let due: String =
        shared.iter().filter(due).map(|key| format!("{} = {}\n", key.name, key.shown)).collect();
    let text = |(place, kind): (usize, &Kind)| match place {
        0 => one(header, about, kind, ("", shared)),
        _ => one(header, &[], kind, (&due, &[])),
    };
    all.iter().enumerate().map(text).collect()
}

/// A table of this kind, with lines and keys that it has beside those of the kind.
fn one(header: &str, about: &[&str], kind: &Kind, (lines, shared): (&str, &[Key])) -> String {
    let keys = [&kind.keys[..], shared].concat();
    let keys = if keys.is_empty() { String::new() } else { format!("\n{}", listed(&keys)) };
    let (about, of_kind) = (comment(about), comment(&kind.about));
    format!("{about}{of_kind}{header}\nkind = {:?}\n{lines}{keys}", kind.name)
}
