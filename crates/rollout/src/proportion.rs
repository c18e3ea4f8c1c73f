//! Bounds of the share of bad requests of one variant that hold at all times.
//!
//! The bounds of a variant without a single bad request are what tells a thousand good answers from ten.

/// Parameters of the beta prior of the mixture: Jeffreys'. Any is valid; this is tight for small shares.
const PRIOR: f64 = 0.5;

/// Bounds below and above the share, of `requests` of which `bad` were bad: the beta-binomial confidence
/// sequence (Howard et al., section 3). Both hold at all times with probability `1 - alpha`.
pub fn bounds(bad: f64, requests: f64, alpha: f64) -> (f64, f64) {
    if requests < 1.0 || bad > requests {
        return (0.0, 1.0);
    }
    let good = requests - bad;
    let mixture = log_beta(PRIOR + bad, PRIOR + good) - log_beta(PRIOR, PRIOR);
    let floor = alpha.ln() + mixture;
    let is_within = |share: f64| term(bad, share) + term(good, 1.0 - share) >= floor;
    let mean = bad / requests;
    (edge(&is_within, mean, 0.0), edge(&is_within, mean, 1.0))
}

/// `n ln p`, where nothing of nothing is certain.
fn term(n: f64, p: f64) -> f64 {
    if n == 0.0 { 0.0 } else { n * p.ln() }
}

/// The last share within, on the way from `mean` to `end`.
fn edge(is_within: &impl Fn(f64) -> bool, mean: f64, end: f64) -> f64 {
    if is_within(end) {
        return end;
    }
    let (mut inside, mut outside) = (mean, end);
    for _ in 0..60 {
        let middle = f64::midpoint(inside, outside);
        if is_within(middle) { inside = middle } else { outside = middle }
    }
    outside
}

fn log_beta(a: f64, b: f64) -> f64 {
    libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b)
}

/// An upper bound on the canary's share minus the stable's that holds at all times with probability
/// `1 - alpha`. Each is `(bad, requests)`. `dispersion` is the mean size of a burst, by which the requests are
/// counted less.
pub fn upper_difference(
    canary: (f64, f64),
    stable: (f64, f64),
    dispersion: f64,
    alpha: f64,
) -> f64 {
    let scaled = |(bad, requests): (f64, f64)| (bad / dispersion, requests / dispersion);
    let ((bad, requests), stable) = (scaled(canary), scaled(stable));
    // Each of the two bounds is one side of an interval of level alpha.
    let (_, most) = bounds(bad, requests, alpha);
    let (least, _) = bounds(stable.0, stable.1, alpha);
    most - least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_the_share_and_narrow_with_evidence() {
        for (bad, requests) in [(0.0, 10.0), (3.0, 100.0), (10.0, 1000.0), (1000.0, 100_000.0)] {
            let (low, high) = bounds(bad, requests, 0.05);
            let mean = bad / requests;
            assert!(low <= mean && mean <= high, "{low} {mean} {high}");
        }
        let width = |requests: f64| {
            let (low, high) = bounds(requests / 100.0, requests, 0.05);
            high - low
        };
        assert!(width(1e3) < 0.05 && width(1e5) < 0.005, "{} {}", width(1e3), width(1e5));
        let (_, high) = bounds(0.0, 1200.0, 0.05);
        assert!(high < 0.006, "{high}");
    }

    #[test]
    fn nothing_seen_bounds_nothing() {
        assert_eq!(bounds(0.0, 0.0, 0.05), (0.0, 1.0));
        let (low, high) = bounds(5.0, 5.0, 0.05);
        assert!(low > 0.1 && high >= 1.0);
    }
}
