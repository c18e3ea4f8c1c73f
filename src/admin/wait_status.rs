//! How long the requests of a pool wait, beside what perfect routing would do.

use super::format::{round, short};
use forebay_routing::waits::{Advice, WaitEstimate};
use serde::Serialize;
use std::fmt;

/// Mean times of a request over the last half minute, in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct WaitStatus {
    /// Answers in a second.
    rate: f64,
    /// In the proxy's queue.
    in_proxy_ms: f64,
    /// At an endpoint behind others.
    at_endpoints_ms: f64,
    /// In service, the way there and back included.
    service_ms: f64,
    /// Share of the slots that are taken, 0 to 1; null if slots are not known.
    utilization: Option<f64>,
    /// The part of both waits while all slots were taken, which would remain with perfect routing; null if slots are not
    /// known.
    while_full_ms: Option<f64>,
    /// `add_machines`, `look_at_the_proxy` or `nothing`; null if slots are not known.
    advice: Option<&'static str>,
    #[serde(skip)]
    said: Option<Advice>,
}

impl WaitStatus {
    pub(super) fn of(found: WaitEstimate) -> Self {
        let ms = |seconds: f64| round(seconds * 1e3);
        let said = found.advice();
        Self {
            rate: round(found.rate),
            in_proxy_ms: ms(found.in_proxy),
            at_endpoints_ms: ms(found.at_endpoints),
            service_ms: ms(found.service),
            utilization: found.utilisation.map(round),
            while_full_ms: found.while_full.map(ms),
            advice: said.map(Advice::as_str),
            said,
        }
    }
}

impl fmt::Display for WaitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [proxy, endpoints, service] =
            [self.in_proxy_ms, self.at_endpoints_ms, self.service_ms].map(short);
        write!(f, "waits: {proxy} in the proxy, {endpoints} at endpoints, {service} served")?;
        let (Some(used), Some(full), Some(said)) =
            (self.utilization, self.while_full_ms, self.said)
        else {
            return f.write_str("; slots not known");
        };
        let (used, full) = (used * 100.0, short(full));
        let advice = match said {
            Advice::AddMachines => "to wait less, add machines",
            Advice::LookAtTheProxy => "to wait less, look at the proxy",
            Advice::Nothing => "nothing to do",
        };
        write!(f, "; {used:.0}% of slots taken, {full} of the wait while all were: {advice}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_reads_whether_machines_are_missing() {
        let found = WaitEstimate {
            rate: 400.0,
            in_proxy: 0.012,
            at_endpoints: 0.0005,
            service: 0.0201,
            utilisation: Some(0.92),
            while_full: Some(0.0104),
        };
        assert_eq!(
            WaitStatus::of(found).to_string(),
            "waits: 12.0 ms in the proxy, 0.50 ms at endpoints, 20.1 ms served; 92% of slots taken, \
             10.4 ms of the wait while all were: to wait less, add machines"
        );
        let unknown = WaitEstimate { utilisation: None, while_full: None, ..found };
        assert!(WaitStatus::of(unknown).to_string().ends_with("20.1 ms served; slots not known"));
    }
}
