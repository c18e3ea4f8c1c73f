//! Small charts as inline SVG: axes, lines, areas, and nothing that needs a script.

use super::escape::escape;
use std::fmt::Write as _;

/// Size of a chart's drawing, in its own units; a page scales it.
pub(super) const WIDTH: f64 = 720.0;
pub(super) const HEIGHT: f64 = 240.0;
/// Room for the labels.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;
/// Width of a letter, about.
const LETTER: f64 = 7.4;
/// Labels of an axis, about.
const TICKS: f64 = 5.0;

/// The mapping of values to positions on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Differences are distances.
    Linear(f64, f64),
    /// Ratios are distances; both ends are above 0.
    Log(f64, f64),
}

/// A chart in the making.
#[derive(Debug)]
pub(super) struct Chart {
    x: Scale,
    y: Scale,
    out: String,
}

impl Scale {
    /// From 0 to at least the greatest of `values`, with some air.
    pub(super) fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        let max = values.fold(0.0, f64::max);
        Self::Linear(0.0, if max > 0.0 { max * 1.05 } else { 1.0 })
    }

    /// Around the positive ones of `values`, to the next power of ten or half of it.
    pub(super) fn log(values: impl Iterator<Item = f64>) -> Self {
        let positive = values.filter(|value| *value > 0.0);
        let (low, high) = positive
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if high <= 0.0 { Self::Log(1e-3, 1.0) } else { Self::Log(low / 1.3, high * 1.3) }
    }

    /// Position of `value` between the ends, 0 to 1.
    fn at(self, value: f64) -> f64 {
        let share = match self {
            Self::Linear(low, high) => (value - low) / (high - low),
            Self::Log(low, high) => (value.max(low) / low).ln() / (high / low).ln(),
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Round values between the ends.
    pub(super) fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(low, high) => {
                let rough = (high - low) / TICKS;
                let power = 10_f64.powf(rough.log10().floor());
                let round = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
                let step = round.into_iter().find(|step| *step >= rough).unwrap_or(rough);
                let values = (0_u32..20).map(|i| (low / step).ceil() * step + f64::from(i) * step);
                values.take_while(|value| *value <= high).collect()
            }
            Self::Log(low, high) => {
                let decades = (high / low).log10();
                let steps: &[f64] = match decades {
                    d if d < 1.5 => &[1.0, 2.0, 5.0],
                    d if d < 3.0 => &[1.0, 3.0],
                    _ => &[1.0],
                };
                let first = low.log10().floor();
                let powers = (0_u32..24).map(|i| 10_f64.powf(first + f64::from(i)));
                let all = powers.flat_map(|power| steps.iter().map(move |step| step * power));
                all.filter(|value| (low..=high).contains(value)).collect()
            }
        }
    }
}

impl Chart {
    /// Axes with lines and labels; `label` describes the chart for screen readers.
    pub(super) fn new(
        label: &str,
        x: (Scale, &[f64], fn(f64) -> String),
        y: (Scale, fn(f64) -> String),
    ) -> Self {
        let mut chart = Self { x: x.0, y: y.0, out: String::new() };
        let label = escape(label);
        chart.put(&format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">"
        ));
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in chart.y.ticks() {
            let at = chart.y(tick);
            let text = escape(&y.1(tick));
            chart.put(&format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 8.0,
                at + 4.0
            ));
        }
        for tick in x.1 {
            let (at, text) = (chart.x(*tick), escape(&x.2(*tick)));
            chart.put(&format!(
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                HEIGHT - 8.0
            ));
        }
        chart
    }

    /// A line through points; a lone point is a dot.
    pub(super) fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        if let [(x, y)] = points {
            let (x, y) = (self.x(*x), self.y(*y));
            self.put(&format!(
                "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
            ));
            return;
        }
        let mut path = String::new();
        for (x, y) in points {
            // Writing to a string does not fail.
            let _ = write!(path, "{:.1},{:.1} ", self.x(*x), self.y(*y));
        }
        self.put(&format!("<polyline class=\"line {class}\" points=\"{}\"/>", path.trim_end()));
    }

    /// A box from `low` to `high` on the y axis, over a stretch of the x axis.
    pub(super) fn bar(&mut self, class: &str, x: (f64, f64), low: f64, high: f64) {
        let (left, right) = (self.x(x.0), self.x(x.1));
        let (top, bottom) = (self.y(high), self.y(low));
        let (width, height) = ((right - left).max(0.5), bottom - top);
        if height > 0.0 {
            self.put(&format!(
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.2}\" \
                 height=\"{height:.1}\"/>"
            ));
        }
    }

    /// A stretch of the x axis that is different from the rest.
    pub(super) fn band(&mut self, x: (f64, f64), name: &str) {
        let (left, right) = (self.x(x.0), self.x(x.1));
        let (width, height) = ((right - left).max(0.5), HEIGHT - BOTTOM - TOP);
        // The whole name, its first word, or none: what there is room for.
        let fits = |name: &&str| crate::units::float(name.len() as u64) * LETTER <= width;
        let first = name.split(' ').next().unwrap_or_default();
        let name = escape([name, first].into_iter().find(fits).unwrap_or_default());
        self.put(&format!(
            "<rect class=\"band\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.2}\" \
             height=\"{height}\"/><text class=\"band\" x=\"{:.1}\" y=\"{}\">{name}</text>",
            left + 4.0,
            TOP + 12.0
        ));
    }

    /// A text that shows while the pointer is over a stretch of the x axis.
    pub(super) fn hint(&mut self, x: (f64, f64), text: &str) {
        let (left, right) = (self.x(x.0), self.x(x.1));
        let (width, height) = ((right - left).max(0.5), HEIGHT - BOTTOM - TOP);
        let text = escape(text);
        self.put(&format!(
            "<rect class=\"hint\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.2}\" \
             height=\"{height}\"><title>{text}</title></rect>"
        ));
    }

    /// The chart.
    pub(super) fn finish(mut self) -> String {
        self.put("</svg>");
        self.out
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.at(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.at(value) * (HEIGHT - TOP - BOTTOM)
    }

    fn put(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_lie_on_the_axis() {
        let near = |found: &[f64], expected: &[f64]| {
            found.len() == expected.len()
                && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
        };
        for (scale, expected) in [
            (Scale::Linear(0.0, 10.0), &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0][..]),
            (Scale::Linear(0.0, 0.7), &[0.0, 0.2, 0.4, 0.6]),
            (Scale::Log(0.015, 0.2), &[0.02, 0.05, 0.1, 0.2]),
            (Scale::Log(0.001, 100.0), &[0.001, 0.01, 0.1, 1.0, 10.0, 100.0]),
        ] {
            let ticks = scale.ticks();
            assert!(near(&ticks, expected), "{scale:?}: {ticks:?}");
        }
    }

    #[test]
    fn odd_values_stay_within_the_chart() {
        for scale in [
            Scale::from_zero([].into_iter()),
            Scale::log([0.0, -1.0].into_iter()),
            Scale::log([5.0].into_iter()),
            Scale::Linear(0.0, 0.0),
        ] {
            for value in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
                assert!((0.0..=1.0).contains(&scale.at(value)), "{scale:?} {value}");
            }
            assert!(scale.ticks().len() <= 72, "{scale:?}");
        }
    }
}
