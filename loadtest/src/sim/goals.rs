//! The project's goals, as far as they can be simulated: each beside its bound and its peers.
//!
//! A claim without a command is forgotten when the code changes. `forebay-load sim --goals DIRECTORY`
//! simulates the shipped scenarios, prints what was found, and ends with status 1 if a goal is missed.

use super::engine::{self, SimResult};
use super::impact::{Impact, Summary};
use super::table::PolicyRow;
use super::{SimError, SimPlan, table};
use crate::scenario::{Scenario, Sim};
use crate::units;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// The policies to beat where proxies are many: P2C, least request, least time, Prequal.
const RIVALS: [&str; 4] =
    ["nginx_random_two", "envoy_least_request", "traefik_least_time", "prequal"];
const NGINX: &str = "nginx_least_conn";
const ORACLE: &str = "oracle";
const INFORMED: &str = "informed";
const FOREBAY: &str = "adaptive";
/// A policy that knows nothing of load.
const ROUND_ROBIN: &str = "round_robin";

/// One goal and what was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    /// The scenario's file.
    pub scenario: &'static str,
    /// The quantity.
    pub what: &'static str,
    /// The proxy's own figure, in words.
    pub found: String,
    /// The bound that it must keep.
    pub bound: String,
    /// The peers' figures, in words.
    pub peers: String,
    /// Whether it keeps the bound.
    pub met: bool,
}

/// A scenario's file, the peers to simulate it with, and its goals.
type Suite = (&'static str, &'static [&'static str], fn(&ScenarioResults<'_>) -> Vec<Goal>);

const ALL: [Suite; 22] = [
    (
        "tail75.toml",
        &[NGINX, "haproxy_maxconn", "envoy_least_request", "traefik_least_time"],
        |runs| vec![runs.p50_to_nginx(1.10), runs.p99_to_nginx(0.67)],
    ),
    (
        "tail90.toml",
        &[NGINX, "haproxy_maxconn", "envoy_least_request", "traefik_least_time"],
        |runs| vec![runs.p99_to_nginx(0.72)],
    ),
    ("proxies16.toml", &RIVALS, |runs| vec![runs.p99_to_oracle(1.3), runs.p99_to_rivals()]),
    ("large.toml", &["envoy_least_request", "prequal"], |runs| vec![runs.p99_to_rivals()]),
    ("antagonist.toml", &[NGINX, "traefik_least_time"], |runs| {
        vec![
            runs.fault("traffic leaves after", "<= 250 ms", after(|it| it.left_after, 0.25)),
            runs.fault("comes back after", "<= 2 s", after(|it| it.back_after, 2.0)),
            runs.fault("p99 / that before", "< 1.5", |it| {
                let ratio = it.p99_during / it.p99_before;
                (format!("{ratio:.2}"), ratio < 1.5)
            }),
        ]
    }),
    ("sinkhole.toml", &[NGINX, "traefik_least_time"], |runs| {
        vec![
            runs.fault("share in the first second", "< 2 %", |it| {
                (units::percent(it.share_first), it.share_first < 0.02)
            }),
            runs.fault("errors", "< 0.5 %", |it| {
                (units::percent(it.errors_during), it.errors_during < 0.005)
            }),
        ]
    }),
    ("kill.toml", &[NGINX], |runs| vec![runs.errors()]),
    ("standstill.toml", &[NGINX, "traefik_least_time"], |runs| {
        vec![runs.errors(), runs.longest(3.0)]
    }),
    ("fallback.toml", &[NGINX], |runs| runs.fallback()),
    ("overload2x.toml", &[NGINX, ORACLE], |runs| runs.overload()),
    ("overload10x.toml", &[NGINX, ORACLE], |runs| runs.overload()),
    ("priorities.toml", &[NGINX], |runs| runs.priorities()),
    ("lengths.toml", &[NGINX], |runs| vec![runs.p99_to_nginx(1.02), runs.errors()]),
    ("hedge.toml", &[NGINX], |runs| runs.hedges()),
    ("restart.toml", &[NGINX, ROUND_ROBIN], |runs| runs.cold()),
    ("silent2x.toml", &[NGINX, ORACLE], |runs| runs.overload()),
    ("silent10x.toml", &[NGINX, ORACLE], |runs| runs.overload()),
    ("tight15few.toml", &[NGINX, INFORMED], |runs| vec![runs.goodput_to_informed(0.95)]),
    ("tight12.toml", &[NGINX, ORACLE], |runs| vec![runs.goodput(0.8)]),
    ("tight15.toml", &[NGINX, ORACLE], |runs| vec![runs.goodput(0.95)]),
    // Of exponential services 70 % end within 1.2 means, 78 % within 1.5.
    ("tight12random.toml", &[NGINX, ORACLE], |runs| vec![runs.goodput(0.8 * 0.7)]),
    ("greedy.toml", &[NGINX, ORACLE], |runs| runs.fairness()),
];

/// Simulates the scenarios in `directory`; goals in the order of the list above.
///
/// # Errors
/// A scenario is not there, or is wrong.
pub fn all(directory: &Path) -> Result<Vec<Goal>, SimError> {
    let mut goals = Vec::new();
    for (scenario, peers, ask) in ALL {
        let mut scenario_file = Scenario::read(&directory.join(scenario))?;
        let mut names = vec![FOREBAY.to_owned()];
        names.extend(peers.iter().map(|name| (*name).to_owned()));
        if !peers.contains(&ORACLE) && scenario != "large.toml" {
            names.push(ORACLE.to_owned());
        }
        scenario_file.simulated.sim.policies = names;
        let plan = SimPlan::new(scenario_file)?;
        let rows = table::rows(&plan);
        goals.extend(ask(&ScenarioResults { scenario, plan: &plan, rows: &rows }));
    }
    Ok(goals)
}

/// The goals as Markdown.
pub fn render(goals: &[Goal]) -> String {
    let mut out = "Simulated; the same requests for all. Times in ms where no unit stands.\n\n\
        | scenario | what | found | goal | beside it | met |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for goal in goals {
        let met = if goal.met { "yes" } else { "**no**" };
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {met} |",
            goal.scenario, goal.what, goal.found, goal.bound, goal.peers
        );
    }
    out
}

fn after(of: fn(&Summary) -> Option<f64>, max: f64) -> impl Fn(&Summary) -> (String, bool) + Copy {
    move |it| match of(it) {
        Some(after) => (units::seconds(after), after <= max),
        None => ("never".to_owned(), false),
    }
}

/// A scenario and what came of it.
struct ScenarioResults<'a> {
    scenario: &'static str,
    plan: &'a SimPlan,
    rows: &'a [PolicyRow],
}

impl ScenarioResults<'_> {
    fn row(&self, name: &str) -> Option<&PolicyRow> {
        self.rows.iter().find(|row| row.policy.name() == name)
    }

    fn ms(&self, name: &str, quantile: f64) -> f64 {
        self.row(name).map_or(f64::NAN, |row| row.found.record.latency.quantile(quantile) * 1e3)
    }

    fn goal(
        &self,
        what: &'static str,
        found: String,
        bound: String,
        peers: String,
        met: bool,
    ) -> Goal {
        Goal { scenario: self.scenario, what, found, bound, peers, met }
    }

    /// The peers' figures: words for each row but the proxy's own.
    fn beside(&self, say: impl Fn(&PolicyRow) -> String) -> String {
        let others = self.rows.iter().filter(|row| row.policy.name() != FOREBAY);
        let words: Vec<String> =
            others.map(|row| format!("{} {}", row.policy.name(), say(row))).collect();
        words.join(", ")
    }

    fn quantile(&self, what: &'static str, quantile: f64, base: &str, max: f64) -> Goal {
        let (forebay, base_ms) = (self.ms(FOREBAY, quantile), self.ms(base, quantile));
        let ratio = forebay / base_ms;
        let peers =
            self.beside(|row| format!("{:.1}", row.found.record.latency.quantile(quantile) * 1e3));
        let bound = format!("<= {max:.2} of {base}");
        self.goal(what, format!("{forebay:.1} = {ratio:.2}"), bound, peers, ratio <= max)
    }

    fn p50_to_nginx(&self, max: f64) -> Goal {
        self.quantile("p50", 0.5, NGINX, max)
    }

    fn p99_to_nginx(&self, max: f64) -> Goal {
        self.quantile("p99", 0.99, NGINX, max)
    }

    fn p99_to_oracle(&self, max: f64) -> Goal {
        self.quantile("p99", 0.99, ORACLE, max)
    }

    fn p99_to_rivals(&self) -> Goal {
        let p99 = |row: &PolicyRow| row.found.record.latency.quantile(0.99) * 1e3;
        let rivals = self.rows.iter().filter(|row| RIVALS.contains(&row.policy.name()));
        let least = rivals.map(p99).fold(f64::INFINITY, f64::min);
        let forebay = self.ms(FOREBAY, 0.99);
        let peers = self.beside(|row| format!("{:.1}", p99(row)));
        self.goal(
            "p99",
            format!("{forebay:.1}"),
            format!("< {least:.1}, the best rival"),
            peers,
            forebay < least,
        )
    }

    fn errors(&self) -> Goal {
        let share = |row: &PolicyRow| row.found.record.error_share();
        let forebay = self.row(FOREBAY).map_or(f64::NAN, share);
        let peers = self.beside(|row| units::percent(share(row)));
        self.goal("errors", units::percent(forebay), "none".to_owned(), peers, forebay == 0.0)
    }

    /// The longest of all answers, in seconds.
    fn longest(&self, max: f64) -> Goal {
        let longest = |row: &PolicyRow| row.found.record.latency.max();
        let forebay = self.row(FOREBAY).map_or(f64::NAN, longest);
        self.goal(
            "longest answer",
            units::seconds(forebay),
            format!("<= {}", units::seconds(max)),
            self.beside(|row| units::seconds(longest(row))),
            forebay <= max,
        )
    }

    /// Of what the route's own endpoints can't answer in time, where another variant may.
    fn fallback(&self) -> Vec<Goal> {
        let Some(forebay) = self.row(FOREBAY).map(|row| &row.found) else { return Vec::new() };
        let errors = |found: &SimResult| {
            found.overload.as_ref().map_or(f64::NAN, |it| it.summary().errors_during)
        };
        let seconds =
            self.plan.overload.map_or(0.0, |(begin, end)| units::float(end - begin) / 1e9);
        let own = forebay.overload.as_ref().map_or(0.0, |it| it.summary().goodput)
            - units::float(forebay.degraded) / seconds;
        let own = own / self.plan.capacity();
        let mut plan = self.plan.clone();
        plan.pools.fallbacks.clear();
        let without = errors(&engine::run(&plan, plan.policy));
        vec![
            self.goal(
                "errors",
                units::percent(errors(forebay)),
                "< 1 %".to_owned(),
                format!(
                    "without fallback {}, {}",
                    units::percent(without),
                    self.beside(|row| units::percent(errors(&row.found)))
                ),
                errors(forebay) < 0.01,
            ),
            self.goal(
                "goodput of the model that was asked for",
                units::percent(own),
                ">= 95 % of its capacity".to_owned(),
                "none".to_owned(),
                own >= 0.95,
            ),
        ]
    }

    fn fault(
        &self,
        what: &'static str,
        bound: &str,
        say: impl Fn(&Summary) -> (String, bool),
    ) -> Goal {
        let summary = |row: &PolicyRow| row.found.faults.first().map(Impact::summary);
        let forebay = self.row(FOREBAY).and_then(summary);
        let (found, met) = forebay.map_or_else(|| ("nothing".to_owned(), false), |it| say(&it));
        let peers = self.beside(|row| summary(row).map_or_else(String::new, |it| say(&it).0));
        self.goal(what, found, bound.to_owned(), peers, met)
    }

    /// Of what is refused under overload, and of what is late.
    fn priorities(&self) -> Vec<Goal> {
        let of = |row: &PolicyRow, class: usize| row.found.classes.get(class).map(Impact::summary);
        let deadline = units::float(self.plan.timeouts.iter().map(|it| it.0).max().unwrap_or(0));
        let goal = |what, class, bound: &str, say: &dyn Fn(&Summary) -> (String, bool)| {
            let forebay = self.row(FOREBAY).and_then(|row| of(row, class));
            let (found, met) = forebay.map_or_else(|| ("nothing".to_owned(), false), |it| say(&it));
            let peers = self.beside(|row| of(row, class).map_or_else(String::new, |it| say(&it).0));
            self.goal(what, found, bound.to_owned(), peers, met)
        };
        let errors = |max: f64| {
            move |it: &Summary| (units::percent(it.errors_during), it.errors_during <= max)
        };
        vec![
            goal("high: errors", 0, "none", &errors(0.0)),
            goal("high: p99", 0, "<= half of its deadline", &|it| {
                (format!("{:.1}", it.p99_during * 1e3), it.p99_during <= deadline / 2e9)
            }),
            goal("normal: errors", 1, "< 1 %", &errors(0.01)),
            goal("batch: errors", 2, "what must be: > 60 %", &|it| {
                (units::percent(it.errors_during), it.errors_during > 0.6)
            }),
        ]
    }

    /// Of a client that asks for little beside one that asks for twice what there is.
    fn fairness(&self) -> Vec<Goal> {
        let of = |row: &PolicyRow| row.found.kinds.first().map(Impact::summary);
        let ratio = |it: &Summary| it.p99_during / it.p99_before;
        let goal = |what, bound: &str, say: &dyn Fn(&Summary) -> (String, bool)| {
            let forebay = self.row(FOREBAY).and_then(of);
            let (found, met) = forebay.map_or_else(|| ("nothing".to_owned(), false), |it| say(&it));
            let peers = self.beside(|row| of(row).map_or_else(String::new, |it| say(&it).0));
            self.goal(what, found, bound.to_owned(), peers, met)
        };
        vec![
            goal("the modest one's p99 / that before", "<= 1.20", &|it| {
                (format!("{:.2}", ratio(it)), ratio(it) <= 1.2)
            }),
            goal("its errors", "none", &|it| {
                (units::percent(it.errors_during), it.errors_during == 0.0)
            }),
        ]
    }

    /// Of what the fleet can do, where little time is left beside the service itself.
    fn goodput(&self, least: f64) -> Goal {
        let capacity = self.plan.capacity();
        let share = |row: &PolicyRow| {
            let overload = row.found.overload.as_ref().map(Impact::summary);
            overload.map_or(f64::NAN, |it| it.goodput / capacity)
        };
        let forebay = self.row(FOREBAY).map_or(f64::NAN, share);
        self.goal(
            "goodput",
            units::percent(forebay),
            format!(">= {} of the capacity", units::percent(least)),
            self.beside(|row| units::percent(share(row))),
            forebay >= least,
        )
    }

    /// The same as a share of the result of a policy that knows everything but the future: few slots stand
    /// idle at times under any policy.
    fn goodput_to_informed(&self, least: f64) -> Goal {
        let share = |row: &PolicyRow| {
            let overload = row.found.overload.as_ref().map(Impact::summary);
            overload.map_or(f64::NAN, |it| it.goodput / self.plan.capacity())
        };
        let of = |name| self.row(name).map_or(f64::NAN, share);
        let (forebay, informed) = (of(FOREBAY), of(INFORMED));
        self.goal(
            "goodput",
            format!("{} = {:.2}", units::percent(forebay), forebay / informed),
            format!(">= {least:.2} of {INFORMED}"),
            self.beside(|row| units::percent(share(row))),
            forebay >= least * informed,
        )
    }

    /// The tail with and without second attempts, and what they add.
    fn hedges(&self) -> Vec<Goal> {
        let tail = |found: &SimResult| found.record.latency.quantile(0.999) * 1e3;
        let Some(forebay) = self.row(FOREBAY).map(|row| &row.found) else { return Vec::new() };
        let without = tail(&self.changed(FOREBAY, |sim| sim.hedge = None));
        let with = tail(forebay);
        let added =
            units::float(forebay.hedges) / units::float(forebay.served.iter().sum::<u64>().max(1));
        let others = self.beside(|row| format!("{:.1}", tail(&row.found)));
        vec![
            self.goal(
                "p99.9",
                format!("{with:.1} = {:.2}", with / without),
                "<= 0.50 of that without hedges".to_owned(),
                format!("without {without:.1}, {others}"),
                with <= 0.5 * without,
            ),
            self.goal(
                "second attempts",
                units::percent(added),
                "<= 5 %, their budget".to_owned(),
                "none".to_owned(),
                added > 0.0 && added <= 0.05,
            ),
        ]
    }

    /// Latency while an endpoint is back and cold. A policy that looks at costs notices by itself; for one
    /// that does not, there is slow start.
    fn cold(&self) -> Vec<Goal> {
        let p99 = |found: &SimResult| {
            found.faults.first().map_or(f64::NAN, |impact| impact.summary().p99_during * 1e3)
        };
        let with = |name| self.row(name).map_or(f64::NAN, |row| p99(&row.found));
        // Ejection keeps the killed endpoint out for a part of the time in which it is cold, so that less is
        // left to slow start. Its own effect is what is held to a bound.
        let ramped = p99(&self.changed(ROUND_ROBIN, |sim| sim.ejection.max_share = 0.0));
        let blind = p99(&self.changed(ROUND_ROBIN, |sim| {
            sim.ejection.max_share = 0.0;
            sim.slow_start = Duration::ZERO;
        }));
        let before = self.row(FOREBAY).and_then(|row| row.found.faults.first());
        let before = before.map_or(f64::NAN, |impact| impact.summary().p99_before * 1e3);
        let forebay = with(FOREBAY);
        vec![
            self.goal(
                "p99 while one is cold",
                format!("{forebay:.1} = {:.2}", forebay / before),
                "<= 1.10 of that before".to_owned(),
                self.beside(|row| format!("{:.1}", p99(&row.found))),
                forebay <= 1.1 * before,
            ),
            self.goal(
                "the same by round_robin, without ejection",
                format!("{ramped:.1} = {:.2}", ramped / blind),
                "<= 0.90 of that without slow start".to_owned(),
                format!("without {blind:.1}"),
                ramped <= 0.9 * blind,
            ),
        ]
    }

    /// The result of this policy with `change` made to the proxies.
    fn changed(&self, policy: &str, change: fn(&mut Sim)) -> SimResult {
        let mut plan = self.plan.clone();
        change(&mut plan.sim);
        engine::run(&plan, self.row(policy).map_or(plan.policy, |row| row.policy))
    }

    fn overload(&self) -> Vec<Goal> {
        let summary = |row: &PolicyRow| row.found.overload.as_ref().map(Impact::summary);
        let Some(forebay) = self.row(FOREBAY).and_then(summary) else { return Vec::new() };
        let capacity = self.plan.capacity();
        let beside = |say: &dyn Fn(&Summary) -> String| {
            self.beside(|row| summary(row).map_or_else(String::new, |it| say(&it)))
        };
        let goodput = forebay.goodput / capacity;
        let deadline = self.plan.timeouts.iter().map(|(after, _)| *after).min().unwrap_or(0);
        let deadline = units::float(deadline) / 1e9;
        vec![
            self.goal(
                "goodput",
                units::percent(goodput),
                ">= 95 % of the capacity".to_owned(),
                beside(&|it| units::percent(it.goodput / capacity)),
                goodput >= 0.95,
            ),
            self.goal(
                "p99 of what was answered",
                format!("{:.1}", forebay.p99_during * 1e3),
                format!("<= {:.0}, its deadline", deadline * 1e3),
                beside(&|it| format!("{:.1}", it.p99_during * 1e3)),
                forebay.p99_during <= deadline,
            ),
            self.goal(
                "recovered after",
                units::seconds(forebay.recovered_after),
                "< 1 s".to_owned(),
                beside(&|it| units::seconds(it.recovered_after)),
                forebay.recovered_after < 1.0,
            ),
        ]
    }
}
