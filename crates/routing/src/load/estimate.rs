//! An estimate of the load at one endpoint, and what a request takes beside it.

/// The cost of waiting beside its time: a request that waits keeps later ones waiting.
const QUEUE_COST_FACTOR: f32 = 1.3;
/// The cost of a full endpoint, as a share of the service time: the fuller one of two endpoints is not
/// preferred because it seems a little faster, which may be noise.
const IN_FLIGHT_COST_SHARE: f32 = 0.3;
/// Our own requests stand for so many of each of the others': who sees what we see acts as we do.
const OTHERS_COST_SHARE: f32 = 0.5;

/// An endpoint at one moment, in requests and seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LoadEstimate {
    pub(super) ours: f32,
    pub(super) others: f32,
    pub(super) variance: f32,
    pub(super) slots: f32,
    pub(super) service: f32,
}

impl LoadEstimate {
    /// The same endpoint without the requests of others.
    pub(super) fn of_ours_alone(self) -> Self {
        Self { others: 0.0, variance: 0.0, ..self }
    }

    /// Number of requests that wait before a new one, where others' requests are not a number but an
    /// estimate: the mean of the part above zero of a normal distribution, within 10%.
    #[inline]
    pub(super) fn queue(&self) -> f32 {
        let queue = self.ours + self.others + 1.0 - self.slots;
        if self.variance == 0.0 {
            return queue.max(0.0);
        }
        let doubt = std::f32::consts::FRAC_2_PI * self.variance;
        0.5 * (queue + (queue * queue + doubt).sqrt())
    }

    /// Seconds until a request is expected to be done.
    pub(super) fn completion(&self) -> f32 {
        self.service * (1.0 + self.queue() / self.slots)
    }

    #[inline]
    pub(super) fn cost(&self) -> f32 {
        let crowd = self.ours * (1.0 + OTHERS_COST_SHARE * self.others);
        self.service
            * (1.0 + (QUEUE_COST_FACTOR * self.queue() + IN_FLIGHT_COST_SHARE * crowd) / self.slots)
    }
}
