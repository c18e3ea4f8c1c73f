//! Rollouts: the plan by which a route's canary gets its requests.

use forebay_config::form::{any, each, one_of, optional, path_in_file, positive, required, share};
use forebay_config::{Section, Table};
use forebay_rollout::controller::OnInconclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Smallest first step, in thousandths, where clients stay at their variant: so many groups of clients are compared.
const MIN_STICKY_STEP: u16 = 50;
const STEP: &str = "a share from \"0.1%\" to \"100%\"";
const ON_INCONCLUSIVE: &[(&str, OnInconclusive)] =
    &[("hold", OnInconclusive::Hold), ("rollback", OnInconclusive::RollBack)];

forebay_config::section! {
    /// Gives a variant of this route its requests step by step, and takes them away if it is worse than another
    /// one. The rollout begins when the file is read for the first time, and again when the pool, the model
    /// or the version of the canary has changed. Weights of other variants must be 0.
    pub struct RouteRollout {
        /// Required. The name of the variant that is compared with.
        stable: String = String::new(), required(any()), shown "\"stable\"";
        /// Required. The name of the variant under trial.
        canary: String = String::new(), required(any()), shown "\"canary\"";
        /// Shares of the requests that the canary gets, one after the other; after the last one, all.
        steps: Vec<String> = default_steps(), each(STEP, |text: &String| thousandths(text).is_some());
        /// The shortest time of a step.
        step_min: Duration = Duration::from_secs(120), positive();
        /// The longest time until the canary has all requests. A rollout without a verdict is
        /// inconclusive then.
        max_duration: Duration = Duration::from_secs(24 * 3600), positive();
        /// The end of an inconclusive rollout. "hold": the weights stay. "rollback": stable gets all requests.
        on_inconclusive: OnInconclusive = OnInconclusive::RollBack, one_of(ON_INCONCLUSIVE);
        /// Time for which a promoted canary is watched: if its requests fail one after the other, stable
        /// gets them back.
        watch: Duration = Duration::from_secs(600), any();
        /// The share of failed requests may be greater than at stable by this.
        margin_errors: f64 = 0.005, share();
        /// The share of requests that take longer than 99 % of stable's may be greater than 1 % by this.
        margin_slow: f64 = 0.01, share();
        /// The mean difference of the canary's outputs from stable's, from 0 to 1, may be greater than that of
        /// stable from itself by this. Only where [route.shadow] sends copies to the canary.
        margin_outputs: f64 = 0.01, share();
        /// Probability of rolling back a canary that is no worse, and of promoting one beyond the margins.
        false_verdicts: f64 = 0.05, share();
        /// File in which the state is kept (relative to this file's folder). Without it, a restart begins the
        /// rollout at its first step. Default: none.
        state: Option<PathBuf> = None, optional(path_in_file()), shown "\"rollout.json\"";
    }
}

fn default_steps() -> Vec<String> {
    ["1%", "5%", "25%", "50%"].map(str::to_owned).to_vec()
}

/// A share such as `2.5%`, in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let percent: f64 = text.strip_suffix('%')?.trim_end().parse().ok()?;
    let thousandths = (percent * 10.0).round();
    let is_whole = (percent * 10.0 - thousandths).abs() < 1e-6;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
    (is_whole && (1.0..=1000.0).contains(&thousandths)).then_some(thousandths as u16)
}

impl RouteRollout {
    /// Reads the table, and checks its keys together with the route's variants: their names and weights.
    /// `is_sticky`: clients stay at their variant.
    pub(super) fn read_checked(
        table: &Table<'_, '_>,
        variants: &[(&str, u32)],
        is_sticky: bool,
    ) -> Self {
        let keys = Self::read(table);
        let is_known = |name: &str| variants.iter().any(|(known, _)| *known == name);
        for (key, name) in [("stable", &keys.stable), ("canary", &keys.canary)] {
            if let Some(span) = table.place_of(key).filter(|_| !is_known(name)) {
                let message =
                    format!("expected the name of a variant of this route, found {name:?}");
                table.note(span, key, message);
            }
        }
        if let Some(span) = table.place_of("canary").filter(|_| keys.canary == keys.stable) {
            table.note(span, "canary", "expected another variant than stable, found the same");
        }
        let margins = [
            ("margin_errors", keys.margin_errors),
            ("margin_slow", keys.margin_slow),
            ("margin_outputs", keys.margin_outputs),
        ];
        for (key, value) in margins {
            if let Some(span) = table.place_of(key).filter(|_| !(0.0001..=0.5).contains(&value)) {
                table.note(span, key, "expected a share from \"0.01%\" to \"50%\"");
            }
        }
        if let Some(span) = table.place_of("false_verdicts")
            && !(0.0001..=0.2).contains(&keys.false_verdicts)
        {
            table.note(span, "false_verdicts", "expected a share from \"0.01%\" to \"20%\"");
        }
        let steps = keys.thousandths();
        if let Some(span) = table.place_of("steps")
            && (steps.is_empty() || !steps.is_sorted_by(|a, b| a < b))
        {
            table.note(
                span,
                "steps",
                "expected at least one share, each greater than the one before",
            );
        }
        if is_sticky && steps.first().is_some_and(|first| *first < MIN_STICKY_STEP) {
            let expected = "expected a first step of at least 5% beside sticky";
            let message = format!("{expected}: fewer clients are no evidence");
            table.note(table.place_of("steps").unwrap_or(table.span()), "steps", message);
        }
        let is_other = |name: &str| name != keys.stable && name != keys.canary;
        for (name, weight) in variants.iter().filter(|(name, weight)| is_other(name) && *weight > 0)
        {
            let expected = "expected a weight of 0 for every variant but stable and canary";
            let message = format!("{expected}, found {weight} for {name:?}");
            table.note(table.span(), "canary", message);
        }
        keys
    }

    /// The steps in thousandths.
    pub fn thousandths(&self) -> Vec<u16> {
        self.steps.iter().filter_map(|text| thousandths(text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_shares_in_whole_thousandths() {
        for (text, expected) in [
            ("1%", Some(10)),
            ("0.1%", Some(1)),
            ("12.5%", Some(125)),
            ("100%", Some(1000)),
            ("0%", None),
            ("0.05%", None),
            ("101%", None),
            ("5", None),
            ("NaN%", None),
            ("%", None),
            ("-1%", None),
        ] {
            assert_eq!(thousandths(text), expected, "{text}");
        }
    }
}
