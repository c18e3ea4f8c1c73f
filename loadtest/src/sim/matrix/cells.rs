//! The fleets of the matrix: a list that was settled once, and as many more as wanted, drawn from a seed.

use super::extras::Extra;
use crate::distribution::Distribution;
use std::iter::repeat_n;
use std::time::Duration;

/// One fleet and what is asked of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Says what it is.
    pub name: String,
    /// Of each endpoint: its services take so many times as long.
    pub slow: Vec<f64>,
    /// Requests that each serves at once.
    pub slots: u32,
    /// The offered load, as a share of the capacity.
    pub load: f64,
    /// Services of an endpoint that is not slow, in seconds.
    pub demand: Distribution,
    /// From the proxy to an endpoint and back.
    pub round_trip: Duration,
    /// Its special part.
    pub extra: Extra,
}

impl Cell {
    /// Are all endpoints alike?
    pub fn is_alike(&self) -> bool {
        self.slow.iter().all(|slow| *slow == self.slow[0])
    }

    /// Requests a second that it can serve.
    pub fn capacity(&self) -> f64 {
        let slots = f64::from(self.slots);
        let all = self.slow.iter().map(|slow| slots / slow).sum::<f64>() / self.demand.mean();
        all * self.extra.throughput() * self.extra.available(self.slow.len())
    }

    /// The same cell with this.
    fn with(self, extra: Extra) -> Self {
        Self { name: extra.name() + &self.name, extra, ..self }
    }
}

/// Kinds of services.
const KINDS: [&str; 4] = ["exponential", "constant", "lognormal", "bimodal"];
/// Endpoints and slots of fleets that are alike.
const ALIKE: [(usize, u32); 4] = [(8, 1), (4, 1), (16, 2), (4, 8)];
/// Slowness and slots of fleets that are not.
const MIXED: [(&[f64], u32); 6] = [
    (&[1.0, 1.0, 1.0, 1.5], 1),
    (&[1.0, 1.0, 1.3, 1.6, 2.0], 2),
    (&[1.0, 2.0, 3.0, 4.0], 1),
    (&[1.0, 1.0, 5.0], 1),
    (&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0], 1),
    (&[1.0, 1.0, 1.0, 3.0], 4),
];
/// Mean services in seconds and round trips in microseconds of fleets that are nearly full.
const HOT: [(f64, u64); 3] = [(0.02, 300), (0.002, 200), (0.2, 500)];

/// A distribution of this kind with this mean in seconds.
fn services(kind: &str, mean: f64) -> Distribution {
    match kind {
        "constant" => Distribution::Constant(mean),
        "lognormal" => Distribution::LogNormal { mean, sigma: 1.0 },
        "bimodal" => Distribution::Bimodal { short: mean * 0.55, long: mean * 5.05, share: 0.1 },
        _ => Distribution::Exponential(mean),
    }
}

/// The cells that were settled once: one slot is what most workers with one accelerator have, and alike is what
/// most fleets are.
pub fn listed() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut add = |what: &str, slow: Vec<f64>, slots, load, (kind, mean), micros| {
        let worst = slow.iter().copied().fold(1.0, f64::max);
        let n = slow.len();
        let name =
            format!("{what} {kind} {n}x{slots} slow {worst} {:.0}% {}ms", load * 100.0, mean * 1e3);
        let round_trip = Duration::from_micros(micros);
        let (demand, extra) = (services(kind, mean), Extra::None);
        cells.push(Cell { name, slow, slots, load, demand, round_trip, extra });
    };
    for kind in KINDS {
        for (n, slots) in ALIKE {
            for load in [0.6, 0.9] {
                add("alike", vec![1.0; n], slots, load, (kind, 0.005), 200);
            }
        }
    }
    for kind in ["exponential", "lognormal"] {
        for (slow, slots) in MIXED {
            for load in [0.6, 0.85] {
                add("mixed", slow.to_vec(), slots, load, (kind, 0.005), 200);
            }
        }
    }
    for (mean, micros) in HOT {
        for slots in [4, 1] {
            add("hot", vec![1.0; 8], slots, 0.95, ("exponential", mean), micros);
        }
    }
    cells
}

/// The cells that have something beside endpoints and a steady load, as settled as those.
pub fn special() -> Vec<Cell> {
    let exponential = |mean: f64| ("exponential", services("exponential", mean));
    let mixed = || vec![1.0, 1.0, 1.0, 3.0];
    let mut cells = Vec::new();
    let mut add =
        |extra: Extra, slow: Vec<f64>, slots, load, (kind, demand): (&str, Distribution)| {
            let (worst, n) = (slow.iter().copied().fold(1.0, f64::max), slow.len());
            let millis = demand.mean() * 1e3;
            let name = format!("{kind} {n}x{slots} slow {worst} {:.0}% {millis}ms", load * 100.0);
            let round_trip = Duration::from_micros(200);
            let cell = Cell { name, slow, slots, load, demand, round_trip, extra: Extra::None };
            cells.push(cell.with(extra));
        };
    for (proxies, n) in [(2, 8), (4, 16)] {
        for slots in [1, 4] {
            for load in [0.6, 0.85] {
                add(Extra::Proxies(proxies), vec![1.0; n], slots, load, exponential(0.005));
            }
        }
    }
    for share in [0.79, 0.1] {
        for load in [0.6, 0.85] {
            add(
                Extra::Batches(share),
                vec![1.0; 4],
                1,
                load,
                ("batch", services("constant", 0.005)),
            );
        }
    }
    add(Extra::NoReports, vec![1.0; 8], 1, 0.85, exponential(0.005));
    add(Extra::NoReports, vec![1.0; 4], 4, 0.85, ("lognormal", services("lognormal", 0.02)));
    add(Extra::NoReports, mixed(), 4, 0.85, exponential(0.02));
    for load in [0.6, 0.85] {
        add(Extra::TwoModels, vec![1.0; 4], 4, load, exponential(0.0155));
        add(Extra::LosesOne, vec![1.0; 3], 4, load, exponential(0.02));
    }
    for slow in [vec![1.0; 8], mixed()] {
        add(Extra::Diurnal, slow.clone(), 2, 0.6, exponential(0.01));
        add(Extra::Bursts, slow.clone(), 2, 0.6, exponential(0.01));
        add(Extra::Streams, slow.clone(), 4, 0.75, exponential(0.01));
        add(Extra::Drift, slow, 4, 0.75, exponential(0.02));
    }
    for (n, slots) in [(8, 1), (4, 4)] {
        add(Extra::Deadlines, vec![1.0; n], slots, 0.9, exponential(0.01));
    }
    cells
}

/// So many cells that follow from `seed`. Every other one has something beside endpoints and a steady load.
pub fn drawn(count: usize, seed: u64) -> Vec<Cell> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut extras = fastrand::Rng::with_seed(!seed);
    let mut draw = |number: usize| {
        let cell = draw(number, &mut rng);
        let extra = Extra::draw(&mut extras);
        match extra {
            _ if number.is_multiple_of(2) => cell,
            // One of one can't be lost, nor can all that is left do the rest's work.
            Extra::LosesOne if cell.slow.len() < 3 => cell,
            extra => cell.with(extra),
        }
    };
    (0..count).map(&mut draw).collect()
}

fn between(rng: &mut fastrand::Rng, least: f64, most: f64) -> f64 {
    least + rng.f64() * (most - least)
}

/// Of two scales both as often.
fn between_log(rng: &mut fastrand::Rng, least: f64, most: f64) -> f64 {
    between(rng, least.ln(), most.ln()).exp()
}

fn draw(number: usize, rng: &mut fastrand::Rng) -> Cell {
    let of = |rng: &mut fastrand::Rng, choice: &[usize]| choice[rng.usize(..choice.len())];
    let n = of(rng, &[2, 3, 4, 4, 5, 6, 8, 8, 12, 16]);
    let slots = u32::try_from(of(rng, &[1, 1, 1, 2, 4, 8])).unwrap_or(1);
    let (what, slow): (_, Vec<f64>) = match rng.usize(..4) {
        0 | 1 => ("alike", vec![1.0; n]),
        2 => {
            let slow = between(rng, 1.3, 5.0);
            ("one slow", repeat_n(1.0, n - 1).chain([slow]).collect())
        }
        _ => {
            ("mixed", (0..n).map(|at| if at == 0 { 1.0 } else { between(rng, 1.0, 4.0) }).collect())
        }
    };
    let load = between(rng, 0.4, 0.95);
    let mean = between_log(rng, 0.002, 0.1);
    let round_trip = between_log(rng, 100e-6, 500e-6).min(mean / 10.0);
    let (kind, demand) = demand(mean, rng);
    let worst = slow.iter().copied().fold(1.0, f64::max);
    Cell {
        name: format!(
            "{number}: {what} {kind} {n}x{slots} slow {worst:.1} {:.0}% {:.1}ms {:.0}us",
            load * 100.0,
            mean * 1e3,
            round_trip * 1e6
        ),
        slow,
        slots,
        load,
        demand,
        round_trip: Duration::from_secs_f64(round_trip),
        extra: Extra::None,
    }
}

fn demand(mean: f64, rng: &mut fastrand::Rng) -> (String, Distribution) {
    match KINDS[rng.usize(..KINDS.len())] {
        "lognormal" => {
            let sigma = between(rng, 0.4, 1.4);
            (format!("lognormal {sigma:.1}"), Distribution::LogNormal { mean, sigma })
        }
        "bimodal" => {
            let (share, factor) = (between(rng, 0.02, 0.25), between(rng, 4.0, 20.0));
            let short = mean / (1.0 - share + share * factor);
            let name = format!("bimodal 1:{factor:.0} {:.0}%", share * 100.0);
            (name, Distribution::Bimodal { short, long: short * factor, share })
        }
        kind => (kind.to_owned(), services(kind, mean)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cells_are_there_and_keep_their_means() {
        let cells = listed();
        assert_eq!(cells.len(), 62);
        assert_eq!(cells.iter().filter(|cell| cell.is_alike()).count(), 38);
        assert!(special().iter().all(|cell| cell.extra != Extra::None));
        for cell in cells.iter().chain(&drawn(100, 1)) {
            let mean = cell.demand.mean();
            assert!((0.0019..=0.2001).contains(&mean), "{}: {mean}", cell.name);
            assert!(cell.round_trip.as_secs_f64() <= mean / 9.9, "{}", cell.name);
        }
    }

    #[test]
    fn what_is_drawn_follows_from_the_seed() {
        assert_eq!(drawn(20, 7), drawn(20, 7));
        assert_ne!(drawn(20, 7), drawn(20, 8));
    }
}
