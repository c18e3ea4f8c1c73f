//! The command line.

mod admin;
mod cache;
mod drain;
mod rollout;

use crate::config::Config;
use crate::pool::fleet::WorkerLog;
use crate::server::{self, Options};
use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use forebay_cli::Parsed;
use forebay_process::log;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// A load-balancing proxy for model inference.
///
/// Without a command, a demo runs: the proxy on 127.0.0.1:8080 in front of three workers with the
/// bundled models.
#[derive(Parser)]
#[command(name = "forebay", after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    /// Log messages to show: error, warn, info, debug, trace, or a filter such as
    /// `info,forebay::pool=debug`.
    #[arg(long, global = true, value_name = "FILTER", env = "FOREBAY_LOG", default_value = "info")]
    log_level: String,
    /// Format of log messages, which go to standard error.
    #[arg(long, global = true, value_name = "FORM", default_value = "auto")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; after SIGTERM or Ctrl-C: every request in flight was finished
  1  failed, or the configuration is wrong; the reason is on standard error
  2  the command line can't be understood";

#[derive(Subcommand)]
enum Command {
    /// Serve with a configuration file.
    ///
    /// SIGHUP or `POST /reload` on the admin listener reads the file again. SIGTERM and SIGINT drain:
    /// the proxy becomes not ready, closes its listeners, and finishes the requests in flight; a second
    /// signal stops at once.
    Serve {
        /// The configuration file; conf/reference.toml explains every key.
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration file, and report every error in it.
    Check {
        /// The configuration file.
        #[arg(value_name = "FILE", required_unless_present = "reference")]
        config: Option<PathBuf>,
        /// Write all keys that there are, with their documentation and their defaults, in place of a check.
        #[arg(
            long,
            value_name = "FORM",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "toml",
            conflicts_with = "config"
        )]
        reference: Option<ReferenceForm>,
    },
    /// Drain an endpoint: it gets no new requests, and finishes those that it has.
    Drain {
        #[command(flatten)]
        endpoint: drain::Endpoint,
        /// Return only when nothing is in flight there any more; fail after this many seconds.
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u32>,
    },
    /// Put a drained endpoint back into use.
    Undrain {
        #[command(flatten)]
        endpoint: drain::Endpoint,
    },
    /// Look at the response cache of a running proxy, or empty it.
    Cache {
        #[command(subcommand)]
        command: cache::Command,
    },
    /// Move the requests of a route from one variant to another.
    Rollout {
        #[command(subcommand)]
        command: rollout::Command,
    },
    /// Run a worker: the same as `forebay-worker`, in this program.
    #[cfg(feature = "demo")]
    #[command(disable_help_flag = true)]
    Worker {
        /// Its arguments; see `forebay worker --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<std::ffi::OsString>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Plain text.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReferenceForm {
    /// A configuration file: conf/reference.toml.
    Toml,
    /// A page for reading: docs/reference/configuration.md.
    Markdown,
}

/// Runs the command line; returns the exit code.
pub fn main() -> ExitCode {
    let status = match forebay_cli::parse(std::env::args_os()) {
        Ok(Parsed::Arguments(cli)) => run(cli),
        Ok(Parsed::Generated) => ExitCode::SUCCESS,
        // Also `--help` and `--version`, which end with 0.
        Err(error) => error.exit(),
    };
    log::finish();
    status
}

fn run(cli: Cli) -> ExitCode {
    // A worker sets up its own logging.
    #[cfg(feature = "demo")]
    if let Some(Command::Worker { arguments }) = cli.command {
        forebay_process::memory::with_huge_pages();
        let name = std::ffi::OsString::from("forebay worker");
        return forebay_worker::main(std::iter::once(name).chain(arguments));
    }
    if let Err(error) = start_logging(&cli) {
        log::say(&format!("forebay: --log-level: {error}"));
        return ExitCode::from(2);
    }
    let worker_log = WorkerLog { json: logs_json(&cli), level: cli.log_level.clone() };
    let result = match cli.command {
        Some(Command::Check { config: Some(config), .. }) => return check(&config),
        Some(Command::Check { reference, .. }) => {
            print_reference(reference.unwrap_or(ReferenceForm::Toml));
            Ok(())
        }
        Some(Command::Serve { config }) => serve(&config, worker_log),
        Some(Command::Drain { endpoint, wait }) => {
            let wait = wait.map(|seconds| Duration::from_secs(seconds.into()));
            drain::drain(&endpoint, wait).map(|told| tell(&told))
        }
        Some(Command::Cache { command }) => cache::run(&command).map(|told| tell(&told)),
        Some(Command::Rollout { command }) => rollout::run(&command).map(|told| tell(&told)),
        Some(Command::Undrain { endpoint }) => drain::undrain(&endpoint).map(|told| tell(&told)),
        #[cfg(feature = "demo")]
        _ => crate::demo::run(),
        #[cfg(not(feature = "demo"))]
        None => {
            complain("a command is needed (this build has no demo): see forebay --help");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(file: &Path, worker_log: WorkerLog) -> Result<()> {
    let config = Config::load(file).map_err(|error| anyhow::anyhow!(error.render()))?;
    config.log_warnings();
    let started = |started: &server::Started| {
        let listeners: Vec<_> = started.listeners.iter().map(ToString::to_string).collect();
        let admin = started.admin.map(|address| address.to_string());
        tracing::info!(listeners = listeners.join(","), admin, "serving");
    };
    let file = Some(file.to_owned());
    server::run(Options { config, file, worker_log, started: Box::new(started) })
}

fn check(file: &Path) -> ExitCode {
    match Config::load(file) {
        Ok(config) => {
            let counts = [
                counted(config.listeners.len(), "listener"),
                counted(config.pools.len(), "pool"),
                counted(config.routes.len(), "route"),
            ];
            for warning in config.warnings(SystemTime::now()) {
                complain(&format!("warning: {warning}"));
            }
            tell(&format!("{}: fine ({})", file.display(), counts.join(", ")));
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = std::io::stderr().write_all(error.render().as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn print_reference(form: ReferenceForm) {
    let text = match form {
        ReferenceForm::Toml => Config::reference_file(),
        ReferenceForm::Markdown => Config::reference_page(),
    };
    tell(text.trim_end());
}

fn tell(line: &str) {
    // If standard output is closed, the line is not wanted.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn complain(message: &str) {
    log::say(&format!("forebay: {}", message.trim_end()));
}

fn start_logging(cli: &Cli) -> Result<()> {
    use tracing_subscriber::EnvFilter;
    // Pingora reports every client that leaves as an error; the access log has it as what it is.
    let base = if cli.command.is_none() { "warn" } else { cli.log_level.as_str() };
    let filter = EnvFilter::try_new(format!("warn,pingora_proxy=off,pingora_core=error,{base}"))?;
    // A command that is not a server logs nothing, and waits for its reader as any other does.
    if matches!(cli.command, None | Some(Command::Serve { .. })) {
        log::init(log::Form { json: logs_json(cli), target: false, spans: false }, filter)?;
    }
    Ok(())
}

fn logs_json(cli: &Cli) -> bool {
    match cli.log_format {
        LogFormat::Auto => !std::io::stderr().is_terminal() && cli.command.is_some(),
        form => form == LogFormat::Json,
    }
}
