//! Endpoints in a circle, for what is to go to the same one again.
//!
//! Hashing a key to a number modulo the number of endpoints moves almost every key when one endpoint
//! comes or goes, and with it every cache. In a circle on which each endpoint has many points, only
//! the keys of that endpoint move.

/// Maximum number of points of one endpoint: shares are then within some 10% of each other. In large pools
/// it has fewer, so that the circle stays small enough to be rebuilt whenever an endpoint comes or goes; the
/// bound on loads evens out the rest.
const MAX_POINTS: usize = 128;
const MIN_POINTS: usize = 8;
const MAX_RING_POINTS: usize = 65_536;
/// Points that are looked at for one key: who finds no room by then takes what there is.
const MAX_POINTS_SCANNED: usize = 64;

/// See above. Made once for a set of endpoints.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// Point and index in the pool, ordered.
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// Of endpoints by their identities, which should be the same in every proxy, in the order in which
    /// they are picked from.
    pub fn new(identities: impl IntoIterator<Item = u64>) -> Self {
        let identities: Vec<u64> = identities.into_iter().collect();
        let each = (MAX_RING_POINTS / identities.len().max(1)).clamp(MIN_POINTS, MAX_POINTS);
        let mut points = Vec::with_capacity(each * identities.len());
        for (index, identity) in identities.into_iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            points.extend((0..each as u64).map(|number| (mix(identity ^ mix(number)), index)));
        }
        points.sort_unstable();
        Self { points }
    }

    /// Indices in the order in which a key prefers them, some more than once.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let key = mix(key);
        let first = self.points.partition_point(|(point, _)| *point < key);
        let (before, after) = self.points.split_at(first);
        after.iter().chain(before).take(MAX_POINTS_SCANNED).map(|(_, index)| *index as usize)
    }
}

/// Spreads a number over all 64 bits: the finisher of `SplitMix64`, as in [`Rng`](crate::Rng).
const fn mix(number: u64) -> u64 {
    let mut rng = crate::Rng::new(number);
    rng.next_u64()
}

/// A number for a text, such as an address or a key (FNV-1a: <http://www.isthe.com/chongo/tech/comp/fnv/>).
pub fn identity(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
