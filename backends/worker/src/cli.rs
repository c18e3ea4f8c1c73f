//! The command line. The proxy's demo runs workers by calling [`main`] in a child of its own.

use crate::config::{LogForm, Options};
use crate::lifecycle;
use crate::repository::sandbox;
use crate::server::Worker;
use crate::{allocator, check};
use clap::Parser;
use forebay_cli::Parsed;
use forebay_config::flags::Flags;
use forebay_process::{log, memory};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Ended as it should, after a drain.
const OK: u8 = 0;
/// The worker could not start or go on.
const FAILED: u8 = 1;
/// A flag or the file makes no sense.
const USAGE: u8 = 2;

/// Time that an idle thread for long work is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Serve ONNX models over the Open Inference Protocol v2.
#[derive(Debug, Parser)]
#[command(
    name = "forebay-worker",
    after_help = "\
Times and sizes have a unit: 250ms, 5s, 2m; 64KiB, 64MiB.
FOREBAY_LOG sets the log level (error, warn, info, debug, trace) [default: info].

Example:
  forebay-worker --models backends/models --listen 127.0.0.1:8000
  curl localhost:8000/v2/models/magika

Signals:
  SIGHUP           load the models that have changed in the repository
  SIGTERM, SIGINT  drain: become not ready, close the listener, finish the requests in flight;
                   a second signal exits at once

Exit codes:
  0  drained: every request in flight was finished
  1  the worker could not start, or could not continue
  2  the command line or the configuration is wrong"
)]
struct Cli {
    /// TOML file with the same keys as these flags (max_body = "64MiB"). A flag overrides the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run no models, but a backend with known service times; see --synthetic --help
    #[arg(long)]
    synthetic: bool,
    /// Write all keys of the file with their documentation and their defaults, and exit
    #[arg(long)]
    reference: bool,
    /// Drain and exit when standard input closes, for a child that must not outlive its parent
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
    #[command(flatten)]
    flags: Flags<Options>,
}

/// Runs a worker until a signal (or the end of standard input) ends it. `args` begin with the program's
/// name. Call it from the program's `main`, before there are threads: the process may restart itself in
/// place, with its own arguments, to configure its allocator.
///
/// Prints one line to standard output once it listens, `listening on http://ADDR`; everything else
/// goes to standard error. Exit status: 0 after a drain, 1 if the worker could not start or go on,
/// 2 for a mistake in flags or file.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if args.iter().any(|arg| arg == "--synthetic") {
        return forebay_synthetic::main(args);
    }
    // As the worker starts it, and in no other place: the same word may be a flag's value.
    if args.len() == 2 && args[1] == sandbox::FLAG {
        return sandbox::main();
    }
    if args.len() > 1 && args[1] == check::WORD {
        return check::main(args.into_iter().skip(1).collect());
    }
    let program = program(args.len());
    let cli: Cli = match forebay_cli::parse(args) {
        Ok(Parsed::Arguments(cli)) => cli,
        Ok(Parsed::Generated) => return ExitCode::from(OK),
        Err(error) => {
            // To standard output for --help, otherwise to standard error; if that is closed, the text is
            // lost.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { USAGE } else { OK });
        }
    };
    if cli.reference {
        // If standard output is closed, the text is not wanted.
        drop(std::io::stdout().write_all(Options::reference_file().as_bytes()));
        return ExitCode::from(OK);
    }
    let options = match Options::from_flags(&cli.flags, cli.config.as_deref()) {
        Ok(options) => Options { program, ..options },
        Err(error) => return complain(USAGE, &error),
    };
    allocator::configure();
    init_log(options.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(memory::idle_thread)
        .max_blocking_threads(options.executors.max(2))
        // Memory that such a thread has freed stays with it for as long as it waits for more work.
        .thread_keep_alive(KEEP_ALIVE)
        .on_thread_stop(memory::give_back)
        .build();
    let status = match runtime {
        Ok(runtime) => runtime.block_on(run(options, cli.stop_with_stdin)),
        Err(error) => complain(FAILED, &error),
    };
    log::finish();
    status
}

/// The words that start this program as a worker: all of the process's but the worker's own, which are
/// one less than `count`.
fn program(count: usize) -> Vec<OsString> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let own = words.len().saturating_sub(count.saturating_sub(1)).max(1);
    // The very program that runs, even if its file was replaced or removed since.
    let program = OsString::from("/proc/self/exe");
    std::iter::once(program).chain(words.into_iter().take(own).skip(1)).collect()
}

async fn run(options: Options, stop_with_stdin: bool) -> ExitCode {
    let worker = match Worker::start(options).await {
        Ok(worker) => worker,
        Err(error) => return complain(if error.is_usage() { USAGE } else { FAILED }, &error),
    };
    log::announce(&format!("listening on http://{}\n", worker.address()));
    if let Err(error) =
        lifecycle::watch_signals(worker.lifecycle(), stop_with_stdin, worker.rescan())
    {
        return complain(FAILED, &error);
    }
    if worker.finished().await {
        ExitCode::from(OK)
    } else {
        complain(FAILED, &"a task of the worker kept failing")
    }
}

fn init_log(form: LogForm) {
    let filter = EnvFilter::try_from_env("FOREBAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let form = log::Form { json: form == LogForm::Json, target: true, spans: true };
    // Fails only if a log is there already, which then serves as well, or without a thread for it.
    drop(log::init(form, filter));
}

fn complain(status: u8, error: &dyn std::fmt::Display) -> ExitCode {
    log::say(&format!("forebay-worker: {error}"));
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
