//! The bootstrap: seconds of runs, drawn again in blocks.

use crate::report::buckets::Buckets;
use crate::report::times::SERIES_DIGITS;
use crate::report::{Point, Report};
use crate::units::float;

/// Maximum number of cells that a run is cut into; longer runs have longer cells. The cost of a resample.
const MAX_CELLS: usize = 240;

/// All buckets that occur in any run, so that counts can be added by index.
#[derive(Debug)]
pub(super) struct Grid {
    /// Lowest value of each bucket and of what follows it, in nanoseconds; ascending.
    edges: Vec<(u64, u64)>,
}

/// The runs on one side.
#[derive(Debug)]
pub(super) struct Side {
    runs: Vec<RunSample>,
}

#[derive(Debug)]
struct RunSample {
    cells: Vec<Cell>,
}

/// Some neighbouring intervals of a run's series.
#[derive(Debug, Default)]
struct Cell {
    /// Index into the grid, and count.
    latency: Vec<(usize, u64)>,
    ok: u64,
    errors: u64,
    /// Its length: the last one of a run may be short.
    seconds: f64,
}

/// Cells added up. The counts come from files and may be anything, so that no sum may overflow.
#[derive(Debug)]
pub(super) struct Totals {
    latency: Vec<u64>,
    ok: u64,
    errors: u64,
    seconds: f64,
}

impl Grid {
    pub(super) fn new<'a>(reports: impl Iterator<Item = &'a Report>) -> Self {
        let points = reports.flat_map(|report| &report.series);
        let mut lows: Vec<u64> =
            points.flat_map(|point| point.buckets.iter().map(|(low, _)| low)).collect();
        lows.sort_unstable();
        lows.dedup();
        // Only for its rounding.
        let ruler = Buckets::default().histogram(SERIES_DIGITS);
        Self { edges: lows.into_iter().map(|low| (low, ruler.next_non_equivalent(low))).collect() }
    }

    fn index(&self, low: u64) -> Option<usize> {
        self.edges.binary_search_by_key(&low, |(low, _)| *low).ok()
    }
}

impl Side {
    pub(super) fn new(reports: &[Report], grid: &Grid) -> Self {
        let runs = reports.iter().filter(|report| !report.series.is_empty());
        Self { runs: runs.map(|report| RunSample::new(report, grid)).collect() }
    }

    /// Everything once: what was measured.
    pub(super) fn whole(&self, totals: &mut Totals) {
        totals.clear();
        for run in &self.runs {
            run.cells.iter().for_each(|cell| totals.add(cell));
        }
    }

    /// Draws the same number of runs, each with the same number of cells, with replacement.
    pub(super) fn resample(&self, rng: &mut fastrand::Rng, totals: &mut Totals) {
        totals.clear();
        for _ in 0..self.runs.len() {
            let run = &self.runs[rng.usize(..self.runs.len())];
            run.resample(rng, totals);
        }
    }
}

impl RunSample {
    fn new(report: &Report, grid: &Grid) -> Self {
        let together = report.series.len().div_ceil(MAX_CELLS);
        let cell = |points: &[Point]| {
            let mut cell = Cell::default();
            for point in points {
                let left = (report.run.measured_seconds - point.at).max(0.0);
                cell.seconds += report.interval_seconds.min(left);
                cell.ok = cell.ok.saturating_add(point.ok);
                cell.errors = cell.errors.saturating_add(point.errors);
                let at = |(low, count)| grid.index(low).map(|index| (index, count));
                cell.latency.extend(point.buckets.iter().filter_map(at));
            }
            cell
        };
        let cells = report.series.chunks(together).map(cell).collect();
        Self { cells }
    }

    /// Blocks whose length is the cube root of the number of cells: the usual compromise between
    /// few blocks and blocks that cut what belongs together. The run is bent to a ring, so that no
    /// cell is drawn less often than others.
    fn resample(&self, rng: &mut fastrand::Rng, totals: &mut Totals) {
        let count = self.cells.len();
        let block = (1..count).find(|n| n * n * n >= count).unwrap_or(1);
        let mut left = count;
        while left > 0 {
            let start = rng.usize(..count);
            for offset in 0..block.min(left) {
                totals.add(&self.cells[(start + offset) % count]);
            }
            left -= block.min(left);
        }
    }
}

impl Totals {
    pub(super) fn new(grid: &Grid) -> Self {
        Self { latency: vec![0; grid.edges.len()], ok: 0, errors: 0, seconds: 0.0 }
    }

    fn clear(&mut self) {
        self.latency.fill(0);
        (self.ok, self.errors, self.seconds) = (0, 0, 0.0);
    }

    fn add(&mut self, cell: &Cell) {
        for (index, count) in &cell.latency {
            self.latency[*index] = self.latency[*index].saturating_add(*count);
        }
        self.seconds += cell.seconds;
        self.ok = self.ok.saturating_add(cell.ok);
        self.errors = self.errors.saturating_add(cell.errors);
    }

    /// Latency in seconds at a quantile, interpolated within its bucket: otherwise a difference of
    /// nothing could look like one of a whole bucket.
    pub(super) fn quantile(&self, grid: &Grid, quantile: f64) -> Option<f64> {
        let total: f64 = self.latency.iter().map(|count| float(*count)).sum();
        let rank = quantile * total;
        let mut below = 0.0;
        for (count, (low, next)) in self.latency.iter().zip(&grid.edges) {
            let count = float(*count);
            if count > 0.0 && below + count >= rank {
                let within = (rank - below) / count;
                return Some((float(*low) + within * float(next - low)) / 1e9);
            }
            below += count;
        }
        None
    }

    pub(super) fn error_share(&self) -> Option<f64> {
        let total = float(self.ok) + float(self.errors);
        (total > 0.0).then(|| float(self.errors) / total)
    }

    pub(super) fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| float(self.ok) / self.seconds)
    }
}

/// The middle part of `values` (at least one), without `doubt` (0 to 1) of them at the ends.
pub(super) fn interval(mut values: Vec<f64>, doubt: f64) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let cut = crate::units::whole((doubt / 2.0 * float(values.len() as u64)).floor());
    let cut = usize::try_from(cut).unwrap_or(last).min(last / 2);
    (values[cut], values[last - cut])
}
