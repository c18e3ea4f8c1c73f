//! The cost of a batch: t(b), the seconds that b rows take together, for b = 1, 2, 4 and so on.
//!
//! Whether batching pays is a property of this model on this machine: eight rows of a perceptron cost a
//! quarter of eight runs, eight rows of a convolution may cost more than eight. So the curve is measured
//! when the model is loaded and goes on learning from every run, and no more rows are joined than it shows
//! to be worth the wait.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets of 1, 2, 4, 8, 16 and 32 rows.
pub const BUCKETS: usize = 6;
/// A larger batch pays if it cuts the cost of a row by at least this share.
const WORTH: f64 = 0.1;
/// Weight of a new run in the moving means: about the last ten count.
const NEWEST: f64 = 0.1;
/// Mean deviations above the mean that nearly all runs stay below.
const CAREFUL: f64 = 2.0;
/// Where a doubling seems not to pay any more though it did at load, one batch in this many tries it again:
/// a measurement under another load must not hold forever.
const TRY_AGAIN: u32 = 64;

/// One run within a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Rows of the batch that it takes.
    pub rows: usize,
    /// Rows that it runs with; more than `rows` if it is padded.
    pub bucket: usize,
}

/// Cost by bucket, shared by all who run the model.
#[derive(Debug, Default)]
pub struct Curve {
    cells: [Cell; BUCKETS],
    /// Rows of the largest bucket that paid when it was measured; 0 counts as 1.
    bound: AtomicU32,
    batches: AtomicU32,
    /// Least seconds of a run of one row, as bits of an `f64`; 0: none yet.
    least: AtomicU64,
}

/// Seconds, as bits of an `f64`; 0: not known.
#[derive(Debug, Default)]
struct Cell {
    mean: AtomicU64,
    deviation: AtomicU64,
}

impl Curve {
    /// The most rows that are worth joining now; at times a bucket more, to try it again.
    pub fn limit(&self) -> usize {
        let best = self.best();
        let again = self.batches.fetch_add(1, Relaxed) % TRY_AGAIN == TRY_AGAIN - 1;
        if again && best < self.bound() { best * 2 } else { best }
    }

    /// Rows of the last bucket that makes a row cheaper than every smaller one does, by enough.
    pub fn best(&self) -> usize {
        let mut best = 1;
        let mut rows = 2;
        while rows <= self.bound() {
            if self.pays(rows, best) {
                best = rows;
            }
            rows *= 2;
        }
        best
    }

    /// Mean seconds of a bucket, if it was ever run.
    pub fn seconds(&self, bucket: usize) -> Option<f64> {
        let mean = f64::from_bits(self.cells.get(index(bucket)?)?.mean.load(Relaxed));
        (mean > 0.0).then_some(mean)
    }

    /// Time that no run was ever below.
    pub fn least(&self) -> Duration {
        Duration::try_from_secs_f64(f64::from_bits(self.least.load(Relaxed))).unwrap_or_default()
    }

    /// Buckets that were run, with their mean seconds.
    pub fn known(&self) -> impl Iterator<Item = (usize, f64)> {
        let buckets = (0..BUCKETS).map(|index| 1_usize << index);
        buckets.filter_map(|bucket| Some((bucket, self.seconds(bucket)?)))
    }

    /// Mean seconds that so many rows take, in pieces of at most `most`; 0 if nothing is known.
    pub fn expected(&self, rows: usize, most: usize) -> f64 {
        let pieces = self.cover(rows, most).into_iter();
        pieces.map(|piece| self.seconds(piece.bucket).unwrap_or(0.0)).sum()
    }

    /// Seconds within which nearly all runs of so many rows end.
    pub fn careful(&self, rows: usize, most: usize) -> f64 {
        let deviation = |piece: &Piece| {
            let cell = index(piece.bucket).and_then(|index| self.cells.get(index));
            cell.map_or(0.0, |cell| f64::from_bits(cell.deviation.load(Relaxed)))
        };
        let pieces = self.cover(rows, most);
        self.expected(rows, most) + CAREFUL * pieces.iter().map(deviation).sum::<f64>()
    }

    /// Cuts a batch into the pieces that cost least, none of more than `most` rows: the largest
    /// first, and at the end either smaller ones or one that is padded, whichever is cheaper.
    pub fn cover(&self, rows: usize, most: usize) -> Vec<Piece> {
        let most = 1 << most.clamp(1, 1 << (BUCKETS - 1)).ilog2();
        let mut pieces = vec![Piece { rows: most, bucket: most }; rows / most];
        let mut rest = rows % most;
        while rest > 0 {
            let fits = 1 << rest.ilog2();
            let padded = fits * 2;
            if rest > fits && self.costs(padded) < self.split(rest) {
                pieces.push(Piece { rows: rest, bucket: padded });
                break;
            }
            pieces.push(Piece { rows: fits, bucket: fits });
            rest -= fits;
        }
        pieces
    }

    /// Takes in that a run of a whole bucket took so many seconds.
    pub fn learn(&self, bucket: usize, seconds: f64) {
        let Some(cell) = index(bucket).and_then(|index| self.cells.get(index)) else { return };
        let least = f64::from_bits(self.least.load(Relaxed));
        if least == 0.0 || seconds < least {
            self.least.store(seconds.to_bits(), Relaxed);
        }
        let mean = f64::from_bits(cell.mean.load(Relaxed));
        // Concurrent runs may overwrite each other's sample; one of many, lost.
        if mean == 0.0 {
            cell.mean.store(seconds.to_bits(), Relaxed);
            return;
        }
        let off = seconds - mean;
        let deviation = f64::from_bits(cell.deviation.load(Relaxed));
        cell.mean.store((mean + NEWEST * off).to_bits(), Relaxed);
        cell.deviation.store((deviation + NEWEST * (off.abs() - deviation)).to_bits(), Relaxed);
    }

    /// The measurement is over: what has not paid by now is never tried again.
    pub fn settle(&self) {
        self.bound.store(1 << (BUCKETS - 1), Relaxed);
        let best = u32::try_from(self.best()).unwrap_or(1);
        self.bound.store(best, Relaxed);
    }

    fn bound(&self) -> usize {
        self.bound.load(Relaxed).max(1) as usize
    }

    /// Whether a row of this bucket is cheaper by enough than one of the smaller bucket `best`.
    #[allow(clippy::cast_precision_loss, reason = "at most 32 rows")]
    pub fn pays(&self, rows: usize, best: usize) -> bool {
        let per_row = |rows: usize| Some(self.seconds(rows)? / rows as f64);
        match (per_row(rows), per_row(best)) {
            (Some(cost), Some(best)) => cost <= (1.0 - WORTH) * best,
            _ => false,
        }
    }

    fn costs(&self, bucket: usize) -> f64 {
        self.seconds(bucket).unwrap_or(f64::INFINITY)
    }

    fn split(&self, rows: usize) -> f64 {
        let buckets = (0..BUCKETS).map(|index| 1_usize << index);
        buckets.filter(|bucket| rows & bucket != 0).map(|bucket| self.costs(bucket)).sum()
    }
}

/// The position of a bucket; `None` if it is not one.
fn index(bucket: usize) -> Option<usize> {
    bucket.is_power_of_two().then(|| bucket.ilog2() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(seconds: &[f64]) -> Curve {
        let curve = Curve::default();
        for (index, &seconds) in seconds.iter().enumerate() {
            curve.learn(1 << index, seconds);
        }
        curve.settle();
        curve
    }

    fn pieces(curve: &Curve, rows: usize) -> Vec<(usize, usize)> {
        let pieces = curve.cover(rows, curve.best());
        pieces.into_iter().map(|piece| (piece.rows, piece.bucket)).collect()
    }

    #[test]
    fn the_best_batch_is_the_last_that_makes_rows_cheaper() {
        assert_eq!(curve(&[1.0, 2.0, 4.0, 8.0]).best(), 1, "rows cost the same");
        assert_eq!(curve(&[1.0, 2.4, 5.6]).best(), 1, "rows get dearer");
        assert_eq!(curve(&[1.0, 1.2, 1.8, 3.0, 5.8]).best(), 8);
        assert_eq!(curve(&[1.0, 3.0, 2.4]).best(), 4, "one dear bucket between cheap ones");
        assert_eq!(curve(&[1.0, 3.0, 5.0]).best(), 1, "cheaper than the last, not than one");
        assert_eq!(curve(&[]).best(), 1, "nothing was measured");
    }

    #[test]
    fn a_batch_is_cut_where_that_is_cheaper_and_padded_where_that_is() {
        let flat = curve(&[1.0, 1.1, 1.2, 1.3]);
        assert_eq!(pieces(&flat, 3), [(3, 4)], "2 + 1 costs 2.1, padding 1.2");
        assert_eq!(pieces(&flat, 21), [(8, 8), (8, 8), (5, 8)]);
        let steep = curve(&[1.0, 1.7, 3.0, 5.3]);
        assert_eq!(pieces(&steep, 3), [(2, 2), (1, 1)], "2.7 beside 3.0");
        assert_eq!(pieces(&steep, 7), [(7, 8)], "5.3 beside 5.7");
        assert_eq!(pieces(&curve(&[1.0, 2.0]), 3), [(1, 1); 3]);
        assert_eq!(pieces(&steep, 0), []);
        assert!((steep.expected(11, 8) - (5.3 + 2.7)).abs() < 1e-9);
    }

    #[test]
    fn what_is_learnt_moves_the_best_and_what_paid_at_load_is_tried_again() {
        let curve = curve(&[1.0, 1.2]);
        assert_eq!(curve.best(), 2);
        for _ in 0..100 {
            curve.learn(2, 2.5);
        }
        assert_eq!(curve.best(), 1);
        let tried = (0..TRY_AGAIN).filter(|_| curve.limit() == 2).count();
        assert_eq!(tried, 1);
        for _ in 0..100 {
            curve.learn(2, 1.2);
        }
        assert_eq!(curve.limit(), 2);
    }

    #[test]
    fn what_never_paid_is_never_tried() {
        let curve = curve(&[1.0, 2.0, 4.0]);
        assert!((0..3 * TRY_AGAIN).all(|_| curve.limit() == 1));
    }

    #[test]
    fn runs_that_vary_are_given_more_time() {
        let curve = curve(&[1.0]);
        assert!((curve.careful(1, 1) - 1.0).abs() < 1e-9);
        for run in 0..200 {
            curve.learn(1, if run % 2 == 0 { 0.5 } else { 1.5 });
        }
        let careful = curve.careful(1, 1);
        assert!((1.5..2.5).contains(&careful), "{careful}");
    }
}
