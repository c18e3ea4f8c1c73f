//! The scenario that a command's target names or describes: a file, or a URL with flags.

use super::load::GeneratorArgs;
use super::request::RequestArgs;
use crate::scenario::{Closed, General, Live, Load, RequestKind, Scenario, Simulated};
use anyhow::bail;
use std::path::{Path, PathBuf};

/// The scenario in the file `target`, or with `load` (or one second of nothing in particular) the
/// one that flags describe for the URL `target`.
pub(super) fn scenario_of(
    target: &str,
    request: &RequestArgs,
    generator: &GeneratorArgs,
    load: Option<Load>,
) -> anyhow::Result<Scenario> {
    let mut scenario = if is_file(target) {
        refuse_what_a_scenario_says(request.given())?;
        Scenario::read(Path::new(target))?
    } else {
        let load = load.unwrap_or(Load::Closed(Closed::default()));
        described(target, request, load)
    };
    generator.override_in(&mut scenario);
    Ok(scenario)
}

/// Whether `target` is a scenario file, and not a URL.
pub(super) fn is_file(target: &str) -> bool {
    !target.contains("://") && Path::new(target).extension().is_some_and(|e| e == "toml")
}

/// Refuses flags that a scenario file speaks for.
pub(super) fn refuse_what_a_scenario_says(
    mut given: impl Iterator<Item = String>,
) -> anyhow::Result<()> {
    match given.next() {
        Some(flag) => bail!("{flag} is a key of the scenario file: change it there"),
        None => Ok(()),
    }
}

fn described(target: &str, request: &RequestArgs, load: Load) -> Scenario {
    let request = request.described(target);
    let name = match &request.kind {
        RequestKind::Infer(infer) => infer.model.clone(),
        RequestKind::Http(_) => "run".to_owned(),
    };
    Scenario {
        general: General { name: Some(name), ..General::default() },
        load,
        requests: vec![request],
        base: PathBuf::new(),
        live: Live { target: Some(target.to_owned()), ..Live::default() },
        simulated: Simulated::default(),
    }
}
