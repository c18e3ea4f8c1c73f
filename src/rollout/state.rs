//! The state file of a rollout.
//!
//! A restart in the middle of a rollout must neither forget the evidence nor give the canary another weight than it
//! had. The file is replaced as a whole, so a crash leaves the state before or after, and one that can't be read
//! is never taken for an empty one: no rollout begins until the operator has looked at it.

use forebay_rollout::controller::Rollout;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;

/// Version of the form of the file.
const VERSION: u32 = 1;
/// Longest file that is read, in bytes: many times a full state.
const MAX_LENGTH: u64 = 4 * 1024 * 1024;

/// The content of a file.
#[derive(Deserialize)]
pub(super) struct Kept {
    version: u32,
    route: String,
    identity: String,
    pub(super) rollout: Rollout,
}

impl Kept {
    /// The route whose state it is.
    pub(super) fn route(&self) -> &str {
        &self.route
    }

    /// Whether it is about these variants and no others.
    pub(super) fn is_about(&self, identity: &str) -> bool {
        self.identity == identity
    }
}

/// The same, to be written.
#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    route: &'a str,
    identity: &'a str,
    rollout: &'a Rollout,
}

/// The version alone, which decides whether the rest can be understood.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Reads a file; `None`: there is none.
pub(super) fn read(path: &Path) -> Result<Option<Kept>, String> {
    let shown = path.display();
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{shown}: {error}")),
    };
    let mut text = Vec::new();
    let read = file.take(MAX_LENGTH + 1).read_to_end(&mut text);
    read.map_err(|error| format!("{shown}: {error}"))?;
    if text.len() as u64 > MAX_LENGTH {
        return Err(format!("{shown}: expected at most {MAX_LENGTH} bytes, found more"));
    }
    let damaged = |error| {
        format!("{shown}: expected the state of a rollout: {error}; remove the file to begin again")
    };
    let Version { version } = serde_json::from_slice(&text).map_err(damaged)?;
    if version != VERSION {
        return Err(format!("{shown}: expected a file of version {VERSION}, found {version}"));
    }
    let kept: Kept = serde_json::from_slice(&text).map_err(damaged)?;
    debug_assert_eq!(kept.version, VERSION);
    Ok(Some(kept))
}

/// The content of the file of a rollout.
pub(super) fn text(route: &str, identity: &str, rollout: &Rollout) -> Vec<u8> {
    let kept = Written { version: VERSION, route, identity, rollout };
    // Numbers that are none become null; there are only numbers and names.
    serde_json::to_vec(&kept).unwrap_or_default()
}

/// Replaces the file.
pub(super) fn write(path: &Path, text: &[u8]) -> Result<(), String> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use forebay_rollout::Arm;
    use forebay_rollout::controller::{OnInconclusive, Plan};
    use forebay_rollout::evidence::{Observation, Terms};

    fn rollout() -> Rollout {
        let plan = Plan {
            steps: vec![10, 100],
            step_min: 1.0,
            max_duration: 10.0,
            watch: 1.0,
            on_inconclusive: OnInconclusive::Hold,
        };
        let mut rollout = Rollout::new(plan, Terms::default());
        for number in 0..1000_u32 {
            let arm = if number % 100 == 0 { Arm::Canary } else { Arm::Stable };
            let seen = Observation {
                arm,
                weight: 0.01,
                group: None,
                failed: number % 7 == 0,
                took: Some(0.01),
            };
            rollout.add(0.0, &seen);
        }
        rollout
    }

    #[test]
    fn a_state_comes_back_as_it_was_and_a_damaged_one_not_at_all() {
        let folder = std::env::temp_dir().join(format!("forebay-rollout-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state.json");
        assert!(read(&path).unwrap().is_none());
        let before = rollout();
        let whole = text("r", "a / b", &before);
        write(&path, &whole).unwrap();
        let kept = read(&path).unwrap().unwrap();
        assert!(kept.route() == "r" && kept.is_about("a / b") && !kept.is_about("a / c"));
        assert_eq!(text("r", "a / b", &kept.rollout), whole);
        for end in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..end]).unwrap();
            let error = read(&path).err().unwrap();
            assert!(error.contains("expected the state of a rollout"), "{end}: {error}");
        }
        let future = String::from_utf8(whole).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(&path, future).unwrap();
        assert!(read(&path).err().unwrap().contains("version 1, found 2"));
        assert!(write(Path::new("/proc/forebay/state.json"), b"x").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
