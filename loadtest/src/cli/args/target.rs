//! The scenario that a command's target names or describes: a file, or a URL with flags.

use super::load::GeneratorArgs;
use super::request::RequestArgs;
use crate::scenario::{Live, Load, Scenario, Simulated};
use crate::units::TimeSpan;
use anyhow::bail;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The scenario in the file `target`, or with `load` (or one second of nothing in particular) the
/// one that flags describe for the URL `target`.
pub(super) fn scenario_of(
    target: &str,
    request: &RequestArgs,
    generator: &GeneratorArgs,
    load: Option<Load>,
) -> anyhow::Result<Scenario> {
    let mut scenario = if is_file(target) {
        refuse_what_a_scenario_says(&request.given())?;
        Scenario::read(Path::new(target))?
    } else {
        let load = load.unwrap_or(Load::Closed { length: TimeSpan(Duration::from_secs(1)) });
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
pub(super) fn refuse_what_a_scenario_says(given: &[(&str, bool)]) -> anyhow::Result<()> {
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => bail!("{flag} is what a scenario file says: change it there"),
        None => Ok(()),
    }
}

fn described(target: &str, request: &RequestArgs, load: Load) -> Scenario {
    Scenario {
        name: Some(request.model.clone().unwrap_or_else(|| "run".to_owned())),
        seed: 1,
        warm_up: None,
        timeout: None,
        clients: None,
        client_header: None,
        objectives: Vec::new(),
        load,
        requests: vec![request.described(target)],
        base: PathBuf::new(),
        live: Live { target: Some(target.to_owned()), ..Live::default() },
        simulated: Simulated::default(),
    }
}
