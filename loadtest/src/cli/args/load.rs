//! Flags that say how load is made: they win over what a scenario file says.

use crate::scenario::{Protocol, Scenario, Spacing, Trust};
use crate::units::{Rate, TimeSpan};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// When requests start.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub(super) struct LoadArgs {
    /// Open loop: requests a second, whatever the answers do (500/s, 10k/s, 30/m)
    #[arg(long)]
    pub(super) rate: Option<Rate>,

    /// How the open loop's requests are spaced [default: constant]
    #[arg(long, value_name = "KIND", requires = "rate")]
    pub(super) arrivals: Option<ArrivalsArg>,

    /// How long to measure [default: 10s]
    #[arg(long = "for", value_name = "TIME")]
    pub(super) length: Option<TimeSpan>,

    /// Stop after so many requests, those of the warm-up included
    #[arg(long, value_name = "N")]
    pub(super) requests: Option<u64>,
}

/// Flags on how load is made at any rate.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub(super) struct GeneratorArgs {
    /// Open loop: most connections [default: 1000, with HTTP/2 10]. Without --rate: so many that send
    /// as soon as they have their answer
    #[arg(long, short, value_name = "N")]
    pub(super) connections: Option<usize>,

    /// Requests at a time on one HTTP/2 connection [default: 100]
    #[arg(long, value_name = "N")]
    streams: Option<usize>,

    /// How requests are put on the wire [default: http/1.1]
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<Protocol>,

    /// https: believe certificates of the authorities in this PEM file [default: the system's]
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,

    /// https: believe any certificate
    #[arg(long)]
    insecure: bool,

    /// Time before anything is measured [default: 1s]
    #[arg(long, value_name = "TIME")]
    warm_up: Option<TimeSpan>,

    /// Give a request up so long after it was meant to start [default: 30s]
    #[arg(long, value_name = "TIME")]
    timeout: Option<TimeSpan>,

    /// Threads that generate load [default: 1]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Open loop: never sleep between requests. The generator's own lag falls to a few microseconds
    /// and a core of the machine is kept busy
    #[arg(long)]
    busy: bool,

    /// Requests name one of so many clients, chosen at random
    #[arg(long, value_name = "N")]
    clients: Option<u32>,

    /// The header that names the client [default: x-client]
    #[arg(long, value_name = "NAME")]
    client_header: Option<String>,

    /// Everything random follows from it [default: 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Before the start, wait so long for the target to answer, and to know the model
    #[arg(long, value_name = "TIME")]
    wait: Option<TimeSpan>,

    /// With a scenario: send to this URL instead of the scenario's target
    #[arg(long = "target", id = "instead", value_name = "URL")]
    to: Option<String>,
}

/// How arrivals are spaced, as a flag.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ArrivalsArg {
    /// Evenly
    Constant,
    /// As independent clients come
    Poisson,
}

impl GeneratorArgs {
    /// How long to wait for the target before the start.
    pub(super) fn wait(&self) -> Option<std::time::Duration> {
        self.wait.map(|span| span.0)
    }

    /// Whether the generator never sleeps, which a scenario can't say.
    pub(super) fn busy(&self) -> bool {
        self.busy
    }

    /// Flags win over what a file says.
    pub(super) fn override_in(&self, scenario: &mut Scenario) {
        scenario.live.target = self.to.clone().or(scenario.live.target.take());
        scenario.seed = self.seed.unwrap_or(scenario.seed);
        scenario.live.protocol = self.protocol.unwrap_or(scenario.live.protocol);
        if self.insecure || self.ca.is_some() {
            // The flag's path is relative to where the program was called, not to the scenario.
            let ca = self.ca.as_ref().map(|file| std::path::absolute(file).unwrap_or(file.clone()));
            scenario.live.tls = Trust { insecure: self.insecure, ca };
        }
        scenario.clients = self.clients.or(scenario.clients);
        scenario.client_header = self.client_header.clone().or(scenario.client_header.take());
        scenario.live.connections = self.connections.or(scenario.live.connections);
        scenario.live.streams = self.streams.or(scenario.live.streams);
        scenario.live.threads = self.threads.or(scenario.live.threads);
        scenario.warm_up = self.warm_up.or(scenario.warm_up);
        scenario.timeout = self.timeout.or(scenario.timeout);
    }
}

impl ArrivalsArg {
    pub(super) fn spacing(self) -> Spacing {
        match self {
            Self::Constant => Spacing::Constant,
            Self::Poisson => Spacing::Poisson,
        }
    }
}
