//! A proxy's checks for outliers, and their effect on its balancer.

use super::Engine;
use crate::sim::clock::Event;
use crate::units::nanos;
use forebay_routing::Time;
use std::time::Duration;

/// Interval of checks for outliers if no outcome calls for one.
const OUTLIER_CHECK_INTERVAL: Duration = Duration::from_millis(100);

impl Engine<'_> {
    pub(super) fn plan_outlier_checks(&mut self) {
        let every = nanos(OUTLIER_CHECK_INTERVAL);
        for (number, proxy) in self.proxies.iter().enumerate() {
            if proxy.ejects() {
                // Proxies were not started at the same moment.
                let first = self.plan.seed_of(number as u64) % every;
                self.clock.plan(first, Event::Outliers(number));
            }
        }
    }

    /// The time has come to look for outliers.
    pub(super) fn check_outliers(&mut self, proxy: usize) {
        if self.proxies[proxy].is_worth_a_look(time(self.now)) {
            self.detect_outliers(proxy);
        }
        self.clock.plan(self.now + nanos(OUTLIER_CHECK_INTERVAL), Event::Outliers(proxy));
    }

    /// Looks for outliers, and has the balancer do without those that are taken out.
    pub(super) fn detect_outliers(&mut self, proxy: usize) {
        self.proxies[proxy].detect(time(self.now));
        self.refresh_rotation(proxy);
    }

    /// Tells the balancer what has changed.
    pub(super) fn refresh_rotation(&mut self, proxy: usize) {
        let (now, (rejoined, changed)) = (self.now, self.proxies[proxy].refresh());
        for endpoint in rejoined {
            self.call_balancer(proxy, |balancer, _, _| balancer.rejoined(endpoint, now));
        }
        for endpoint in changed {
            let ready = self.proxies[proxy].ready[endpoint];
            self.tally.rotated(ready);
            self.call_balancer(proxy, |balancer, fleet, outbox| {
                balancer.health_changed(endpoint, ready, fleet, outbox);
            });
        }
    }
}

fn time(nanos: u64) -> Time {
    Time::new(Duration::from_nanos(nanos))
}
