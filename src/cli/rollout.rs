//! `forebay rollout`: the weights of a route's variants and its rollout, while the proxy runs.

use super::admin::{self, Admin};
use anyhow::Result;
use forebay_protocol::oip::encoded;
use http::Method;
use serde_json::{Map, Value};

/// A command about the variants of a route.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Show the weights of a route's variants, or change them.
    ///
    /// Requests that come from then on are split by the new weights, without a reload. They survive reloads until
    /// the configuration says something else of the route's variants, and end with the process.
    Weight {
        #[command(flatten)]
        admin: Admin,
        /// Name of the route.
        route: String,
        /// New weights, in thousandths (`canary=50`) or in per cent (`canary=5%`). A single variant that is left
        /// out gets the rest; several keep theirs. The weights must add up to 1000.
        #[arg(value_name = "VARIANT=WEIGHT", value_parser = pair)]
        weights: Vec<(String, u32)>,
    },
    /// List the rollouts.
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// Show a rollout: its step, and the evidence beside its bounds.
    Status {
        #[command(flatten)]
        on: On,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Begin a rollout at its first step, without the evidence of the one before.
    Start {
        #[command(flatten)]
        on: On,
    },
    /// Keep the weights as they are. Evidence of harm still ends the rollout.
    Pause {
        #[command(flatten)]
        on: On,
    },
    /// Go on with a rollout that was paused.
    Resume {
        #[command(flatten)]
        on: On,
    },
    /// End a rollout, with all requests at the canary.
    Promote {
        #[command(flatten)]
        on: On,
    },
    /// End a rollout, with all requests at the stable variant.
    Abort {
        #[command(flatten)]
        on: On,
    },
}

/// The route that is meant.
#[derive(clap::Args)]
pub(super) struct On {
    #[command(flatten)]
    admin: Admin,
    /// Name of the route.
    route: String,
}

impl On {
    fn ask(&self, command: Option<&str>) -> Result<Value> {
        let path = format!("/routes/{}/rollout", encoded(&self.route));
        admin::run(async {
            match command {
                None => self.admin.ask(Method::GET, &path).await,
                Some(word) => self.admin.ask(Method::POST, &format!("{path}/{word}")).await,
            }
        })
    }
}

/// Carries out the command. Returns the message to print.
///
/// # Errors
/// The proxy does not answer, or refuses the change.
pub(super) fn run(command: &Command) -> Result<String> {
    match command {
        Command::Weight { admin, route, weights } => weigh(admin, route, weights),
        Command::List { admin } => {
            let said = admin::run(admin.ask(Method::GET, "/rollouts"))?;
            let none = Vec::new();
            let lines: Vec<_> =
                said["rollouts"].as_array().unwrap_or(&none).iter().map(line).collect();
            Ok(if lines.is_empty() {
                "no route has a rollout".to_owned()
            } else {
                lines.join("\n")
            })
        }
        Command::Status { on, json: true } => Ok(serde_json::to_string_pretty(&on.ask(None)?)?),
        Command::Status { on, json: false } => Ok(pictured(&on.ask(None)?)),
        Command::Start { on } => Ok(line(&on.ask(Some("start"))?)),
        Command::Pause { on } => Ok(line(&on.ask(Some("pause"))?)),
        Command::Resume { on } => Ok(line(&on.ask(Some("resume"))?)),
        Command::Promote { on } => Ok(line(&on.ask(Some("promote"))?)),
        Command::Abort { on } => Ok(line(&on.ask(Some("abort"))?)),
    }
}

/// A rollout in one line.
fn line(said: &Value) -> String {
    let text = |key: &str| said[key].as_str().unwrap_or_default();
    if let Some(error) = said["error"].as_str() {
        return format!("{}: {error}", text("route"));
    }
    let share = said["weight"].as_f64().unwrap_or_default() / 10.0;
    let (route, canary, state, last) = (text("route"), text("canary"), text("state"), text("last"));
    let last = if last.is_empty() { String::new() } else { format!(", {last}") };
    format!("{route}: {state}, {canary} gets {share:.1} %{last}")
}

/// The same with the evidence, as a table.
fn pictured(said: &Value) -> String {
    let mut out = line(said);
    let none = Vec::new();
    let evidence = said["evidence"].as_array().unwrap_or(&none);
    if evidence.is_empty() {
        return out;
    }
    out += "\n\n  metric    at stable           at the canary       increase           verdict\n";
    for found in evidence {
        let number = |arm: &str, key: &str| found[arm][key].as_f64().unwrap_or_default();
        let part = |arm: &str| format!("{} of {}", number(arm, "bad"), number(arm, "requests"));
        let points = |key: &str| {
            found[key].as_f64().map_or("?".to_owned(), |share| format!("{:+.2} %", share * 100.0))
        };
        let verdict = match (found["is_worse"].as_bool(), found["is_within_margin"].as_bool()) {
            (Some(true), _) => "worse",
            (_, Some(true)) => "within the margin",
            _ => "not certain yet",
        };
        let increase = format!("{} to {}", points("increase_at_least"), points("increase_at_most"));
        let metric = found["metric"].as_str().unwrap_or_default();
        let (stable, canary) = (part("stable"), part("canary"));
        out += &format!("  {metric:<8}  {stable:<18}  {canary:<18}  {increase:<17}  {verdict}\n");
    }
    out.truncate(out.trim_end().len());
    out
}

/// Shows the weights of a route, or changes them.
fn weigh(admin: &Admin, route: &str, weights: &[(String, u32)]) -> Result<String> {
    let path = format!("/routes/{}/weights", encoded(route));
    admin::run(async {
        let said = if weights.is_empty() {
            admin.ask(Method::GET, &path).await?
        } else {
            admin.ask_with(Method::POST, &path, body(weights)?.as_bytes()).await?
        };
        Ok(told(&said))
    })
}

/// The pairs as they were given: the proxy refuses a variant that stands there twice.
fn body(weights: &[(String, u32)]) -> Result<String> {
    let pair =
        |(name, weight): &(String, u32)| Ok(format!("{}:{weight}", serde_json::to_string(name)?));
    let pairs = weights.iter().map(pair).collect::<Result<Vec<_>>>()?;
    Ok(format!("{{\"weights\":{{{}}}}}", pairs.join(",")))
}

/// `VARIANT=WEIGHT`.
fn pair(text: &str) -> Result<(String, u32), String> {
    // A name may have any character, a weight has no "=".
    let (name, weight) = text.rsplit_once('=').ok_or("expected VARIANT=WEIGHT")?;
    let thousandths = match weight.strip_suffix('%') {
        None => weight.parse().ok(),
        Some(percent) => per_cent(percent),
    };
    let expected = "expected a weight such as 50 (thousandths) or 5%";
    let weight = thousandths.ok_or_else(|| format!("{expected}, found {weight:?}"))?;
    Ok((name.to_owned(), weight))
}

/// A number of per cent with at most one decimal, in thousandths.
fn per_cent(text: &str) -> Option<u32> {
    let (whole, tenth) = text.split_once('.').unwrap_or((text, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
    if !is_digits(whole) || !is_digits(tenth) || tenth.len() != 1 {
        return None;
    }
    whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(tenth.parse().ok()?)
}

fn told(said: &Value) -> String {
    let none = Map::new();
    let of = |key: &str| said[key].as_object().unwrap_or(&none).clone();
    let (weights, configured) = (of("weights"), of("configured"));
    let line = |(name, weight): (&String, &Value)| {
        let was = configured.get(name).unwrap_or(&Value::Null);
        let beside = if was == weight { String::new() } else { format!(" ({was} in the file)") };
        format!("{name}={weight}{beside}")
    };
    let lines: Vec<_> = weights.iter().map(line).collect();
    let route = said["route"].as_str().unwrap_or("?");
    format!("{route}: {}", lines.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn weights_are_thousandths_or_per_cent() {
        for (text, expected) in [
            ("canary=50", Some(("canary", 50))),
            ("canary=5%", Some(("canary", 50))),
            ("a=b=0.5%", Some(("a=b", 5))),
            ("canary=100%", Some(("canary", 1000))),
            ("canary=0", Some(("canary", 0))),
            ("canary", None),
            ("canary=", None),
            ("canary=%", None),
            ("canary=-1", None),
            ("canary=0.55%", None),
            ("canary=.5%", None),
            ("canary=+5%", None),
            ("canary=4294967296%", None),
        ] {
            let expected = expected.map(|(name, weight)| (name.to_owned(), weight));
            assert_eq!(pair(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_change_is_told_beside_the_words_of_the_file() {
        let said = json!({
            "route": "r",
            "weights": { "canary": 200, "stable": 800, "x": 0 },
            "configured": { "canary": 50, "stable": 950, "x": 0 },
        });
        assert_eq!(told(&said), "r: canary=200 (50 in the file) stable=800 (950 in the file) x=0");
        let pairs = [("a\"b".to_owned(), 1), ("a\"b".to_owned(), 2)];
        assert_eq!(body(&pairs).ok().as_deref(), Some(r#"{"weights":{"a\"b":1,"a\"b":2}}"#));
    }
}
