//! The start times of requests.

use crate::units::Rate;
use forebay_config::form::{above_zero, any, called, one_of, positive, required};
use std::path::PathBuf;
use std::time::Duration;

/// Stands for a time that is missing, which has been noted.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// Stands for a rate that is missing, which has been noted.
const NOTHING: Rate = Rate(0.0);

forebay_config::kinds! {
    /// The start times of requests.
    pub enum Load {
        "open" => Open(Open),
        "closed" => Closed(Closed),
        "replay" => Replay(Replay),
    }
}

forebay_config::section! {
    /// Open loop: at planned times, independent of the answers.
    pub struct Open {
        /// Spacing of requests: "constant", evenly, so that nothing is random, or "poisson", like
        /// independent clients.
        spacing: Spacing = Spacing::Constant, called("KIND", one_of(Spacing::NAMES));
    }
    beside {
        /// One after the other.
        phases: Vec<Phase> = Vec::new();
    }
}

forebay_config::section! {
    /// Closed loop: each connection sends its next request when it has the answer to the last one.
    pub struct Closed {
        /// Time to measure.
        length as "for": Duration = SECOND, required(positive()), shown "\"30s\"";
    }
}

forebay_config::section! {
    /// At the times of an access log.
    pub struct Replay {
        /// JSON lines such as forebay's access log: `time` (less `total_us`) is the arrival of a request;
        /// `model`, else `path`, selects the request that stands for it.
        file: PathBuf = PathBuf::new(), required(any()), shown "\"access.log\"";
        /// Speed of the replay: 2.0 is twice as fast.
        speed: f64 = 1.0, above_zero();
    }
}

forebay_config::kinds! {
    /// A stretch of an open loop; see [`crate::plan::arrivals::Shape`].
    pub enum Phase {
        "constant" => Constant(Constant),
        "ramp" => Ramp(Ramp),
        "bursts" => Bursts(Bursts),
        "diurnal" => Diurnal(Diurnal),
    }
}

forebay_config::section! {
    /// The same rate all the time.
    pub struct Constant {
        /// Requests per second, independent of the answers (500/s, 10k/s, 30/m).
        rate: Rate = NOTHING, required(any()), shown "\"500/s\"";
        /// Time to measure.
        length as "for": Duration = SECOND, required(positive()), shown "\"30s\"";
    }
}

forebay_config::section! {
    /// Evenly from one rate to another.
    pub struct Ramp {
        /// The first rate.
        from: Rate = NOTHING, required(any()), shown "\"500/s\"";
        /// The last rate.
        to: Rate = NOTHING, required(any()), shown "\"1000/s\"";
        /// Duration.
        length as "for": Duration = SECOND, required(positive()), shown "\"30s\"";
    }
}

forebay_config::section! {
    /// A burst at the end of every period.
    pub struct Bursts {
        /// The rate between bursts.
        base: Rate = NOTHING, required(any()), shown "\"500/s\"";
        /// The rate of a burst.
        peak: Rate = NOTHING, required(any()), shown "\"2000/s\"";
        /// The period.
        every: Duration = SECOND, required(positive()), shown "\"10s\"";
        /// Duration of a burst; at most the period.
        burst: Duration = SECOND, required(positive()), shown "\"1s\"";
        /// Duration.
        length as "for": Duration = SECOND, required(positive()), shown "\"30s\"";
    }
}

forebay_config::section! {
    /// A sine, from its low point on.
    pub struct Diurnal {
        /// The lowest rate.
        low: Rate = NOTHING, required(any()), shown "\"100/s\"";
        /// The highest rate.
        high: Rate = NOTHING, required(any()), shown "\"1000/s\"";
        /// Time from one low point to the next.
        period: Duration = SECOND, required(positive()), shown "\"1m\"";
        /// Duration.
        length as "for": Duration = SECOND, required(positive()), shown "\"2m\"";
    }
}

/// The spacing of arrivals at a given rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly: nothing is random.
    Constant,
    /// Like independent clients: a Poisson process.
    Poisson,
}

impl Spacing {
    const NAMES: &'static [(&'static str, Self)] =
        &[("constant", Self::Constant), ("poisson", Self::Poisson)];
}
