//! The command line of a worker with `--synthetic`.

use crate::distribution::Distribution;
use crate::{Backend, Options, Service};
use clap::Parser;
use forebay_config::units::TimeSpan;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Settings of a synthetic backend.
#[derive(Debug, clap::Args)]
struct Args {
    /// Address to listen on. With port 0, the operating system chooses a free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Number of requests that are served at once. Further requests are queued, first come first served
    #[arg(long, value_name = "N", default_value_t = 1)]
    slots: u32,

    /// Distribution of service times: constant:TIME, exponential:TIME, lognormal:TIME:SIGMA or
    /// bimodal:TIME:TIME:SHARE. The header x-service-demand of a request (in microseconds) overrides it
    #[arg(long, value_name = "DISTRIBUTION", default_value = "constant:0ms")]
    service: Distribution,

    /// Factor by which every service time is multiplied. A number sent to POST /slow multiplies it again
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    slow: f64,

    /// Maximum number of queued requests. Further requests are refused with 503
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    queue: usize,

    /// Name of the served model
    #[arg(long, value_name = "NAME", default_value = "synthetic")]
    model: String,

    /// Seed of the service times. The same seed gives the same times
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Answer 300 bytes at once, without a queue, service times and load reports, to measure a proxy's
    /// overhead
    #[arg(long, conflicts_with_all = ["slots", "service", "slow", "queue"])]
    fast: bool,

    /// On SIGTERM: time between becoming not ready and closing the listener. The process exits after the
    /// last request
    #[arg(long, value_name = "TIME", default_value = "0s")]
    drain_delay: TimeSpan,
}

/// Run a backend with known service times, to measure proxies and load balancers
#[derive(Debug, Parser)]
#[command(name = "forebay-worker --synthetic", version = forebay_cli::VERSION)]
struct Cli {
    /// The flag that selects this command
    #[arg(long, hide = true)]
    synthetic: bool,
    #[command(flatten)]
    args: Args,
}

/// The reason why a backend does not serve.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    /// The address can't be listened on.
    #[error("{address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// Out of descriptors, or standard output is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Longest time that the last requests may take after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `forebay-worker --synthetic …`; `args` begin with the program's name. Exit status: 0 after a
/// drain, 1 if it could not serve, 2 for a mistake in the flags.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // To standard output for --help, otherwise to standard error; if that is closed, the text is
            // lost.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match serve(&cli.args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "forebay-worker: {error}"));
            ExitCode::from(1)
        }
    }
}

/// Serves until SIGTERM or SIGINT, then until what is there has been answered; a second signal ends
/// it at once.
///
/// # Errors
/// The address can't be listened on, or there is no timer or signal handler to be had.
fn serve(args: &Args) -> Result<(), ServeError> {
    let service = (!args.fast).then_some(Service {
        slots: args.slots,
        queue: args.queue,
        time: args.service,
        slow: args.slow,
        seed: args.seed,
    });
    let options = Options { model: args.model.clone(), service };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async {
        let fail = |error| ServeError::Listen { address: args.listen, error };
        let listener = TcpListener::bind(args.listen).await.map_err(fail)?;
        announce(listener.local_addr()?, &options);
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let backend = Rc::new(Backend::new(options));
        let accept = Rc::clone(&backend).accept(listener);
        let end = async {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tokio::select! {
                () = backend.drain(args.drain_delay.0) => {}
                () = tokio::time::sleep(args.drain_delay.0 + DRAIN_TIMEOUT) => {}
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        tokio::select! {
            result = accept => Ok(result?),
            () = end => Ok(()),
        }
    })
}

fn announce(address: SocketAddr, options: &Options) {
    let serves = match &options.service {
        None => "answers at once".to_owned(),
        Some(service) => {
            let slow =
                if service.slow == 1.0 { String::new() } else { format!(", x {}", service.slow) };
            format!("{} slots, service time {}{slow}", service.slots, service.time)
        }
    };
    // In one write: a reader that takes the address alone may be gone before a second write.
    let words = format!("listening on http://{address}\nmodel {}: {serves}\n", options.model);
    // A missing reader or a full disk does not stop the backend.
    let mut out = io::stdout().lock();
    let _ = out.write_all(words.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
