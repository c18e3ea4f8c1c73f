//! Whether a canary is worse than the stable variant, and what to do about it.
//!
//! A canary gets a small share of the requests of a route. Most delivery tools compare an error rate with a
//! threshold once a minute, which rolls back good releases whose ordinary errors cross the threshold, and
//! promotes bad ones that stay below it. Here the two variants are compared with each other, by tests that may be
//! looked at after every request: at a level of 5 %, at most 5 % of the rollouts of a canary that is no worse are
//! rolled back, however long they last.
//!
//! | module | does |
//! |---|---|
//! | [`count`] | how the bad events divide among the variants: exact and fast, where events are single |
//! | [`blocks`] | differences of blocks of time: slower, right for bursts and common drift |
//! | [`groups`] | differences of groups of clients, for splits that keep a client at its variant |
//! | [`proportion`] | bounds of the share of bad requests of one variant |
//! | [`slow`] | which answers are slow |
//! | [`pairs`] | differences between two answers to the same request |
//! | [`evidence`] | all of them together, for errors and slowness |
//! | [`controller`] | the steps of a rollout: advance, hold, promote, roll back |
//!
//! Nothing here has a clock, a random number, a socket or a file: the proxy and the simulator run the same code.
//!
//! Sources: Lindon and Malek, [2011.03567](https://arxiv.org/abs/2011.03567) (counts); Waudby-Smith et al.,
//! [2103.06476](https://arxiv.org/abs/2103.06476) (blocks); Howard et al.,
//! [1810.08240](https://arxiv.org/abs/1810.08240) (proportions); Waudby-Smith and Ramdas,
//! [2010.09686](https://arxiv.org/abs/2010.09686) (pairs).

pub mod blocks;
pub mod controller;
pub mod count;
pub mod evidence;
pub mod groups;
pub mod pairs;
pub mod proportion;
pub mod slow;

/// One of the two variants that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// The variant that serves most requests.
    Stable,
    /// The variant under trial.
    Canary,
}
