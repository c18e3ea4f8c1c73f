//! Faults on schedule: programs that a scenario starts, and kills, stops, slows down or exchanges under load.
//!
//! That a fleet survives the loss of a worker is a claim about the requests around that moment. The
//! run does the damage itself, at a known time, so that the figures before, during and after it are
//! those of the same run, and the report can say which request belongs where.

mod process;

use crate::connection::ask;
use crate::plan::target::Target;
use crate::report::FaultRecord;
use crate::scenario::{Fault, FaultKind, Protocol, Slow, Trust, Upgrade};
use process::Process;
use rustix::process::Signal;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A program that is slowed by signals runs and stands still in turn, so long together.
const PULSE: Duration = Duration::from_millis(20);

/// Time by which a drain may exceed its plan.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The programs of a run.
#[derive(Debug, Default)]
pub(crate) struct Processes(Vec<Rc<RefCell<Option<Process>>>>);

impl Processes {
    /// Starts all, one after the other, and waits for each to be ready.
    pub(crate) async fn start(
        specs: &[crate::scenario::Process],
        base: &Path,
    ) -> Result<Self, String> {
        let mut started = Self::default();
        for spec in specs {
            let process = Process::start(spec, base).await?;
            started.0.push(Rc::new(RefCell::new(Some(process))));
        }
        Ok(started)
    }

    /// Applies the planned faults, each at its time after `start`.
    pub(crate) async fn run_faults(&self, faults: &[Fault], start: Instant) -> Vec<FaultRecord> {
        let mut all = Vec::with_capacity(faults.len());
        for fault in faults {
            let end = fault.at + fault.length;
            tokio::time::sleep_until((start + fault.at).into()).await;
            let began = start.elapsed();
            let problem = self.inject(fault, start + end).await.err();
            all.push(FaultRecord {
                fault: fault.to_string(),
                planned: (fault.at.as_secs_f64(), end.as_secs_f64()),
                actual: (began.as_secs_f64(), start.elapsed().as_secs_f64()),
                problem,
            });
        }
        all
    }

    async fn inject(&self, fault: &Fault, end: Instant) -> Result<(), String> {
        let is_it = |slot: &&Rc<RefCell<Option<Process>>>| {
            slot.borrow().as_ref().is_some_and(|process| process.name() == fault.process)
        };
        let slot = self.0.iter().find(is_it);
        let slot = slot.ok_or_else(|| format!("no process \"{}\"", fault.process))?;
        // It is put back at the end; no other fault needs it meanwhile, since faults don't overlap.
        let process = slot.take().ok_or_else(|| format!("{} is busy", fault.process))?;
        let mut process = Borrowed { slot: Rc::clone(slot), process: Some(process) };
        inject(process.get()?, &fault.kind, end).await
    }

    /// Ends all.
    pub(crate) async fn end(self) {
        // The last one first: it may need the others.
        for slot in self.0.into_iter().rev() {
            let process = slot.take();
            if let Some(process) = process {
                process.end().await;
            }
        }
    }
}

/// A program that a fault has taken out of its slot; it is put back on every path.
struct Borrowed {
    slot: Rc<RefCell<Option<Process>>>,
    process: Option<Process>,
}

impl Borrowed {
    fn get(&mut self) -> Result<&mut Process, String> {
        self.process.as_mut().ok_or_else(|| "it is gone".to_owned())
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.slot.replace(self.process.take());
    }
}

async fn inject(process: &mut Process, kind: &FaultKind, end: Instant) -> Result<(), String> {
    let until = |end: Instant| tokio::time::sleep_until(end.into());
    match kind {
        FaultKind::Kill | FaultKind::Drain => {
            let signal = if *kind == FaultKind::Kill { Signal::KILL } else { Signal::TERM };
            process.signal(signal)?;
            process.wait_for_exit(end + DRAIN_TIMEOUT).await;
            until(end).await;
            process.spawn(&process.command())?;
            process.wait_until_ready().await
        }
        FaultKind::Stop => {
            process.signal(Signal::STOP)?;
            until(end).await;
            process.signal(Signal::CONT)
        }
        FaultKind::Slow(Slow { factor }) => match process.slow() {
            Some(url) => {
                set_slowdown(url, *factor).await?;
                until(end).await;
                set_slowdown(url, 1.0).await
            }
            None => throttle(process, *factor, end).await,
        },
        FaultKind::Reload => {
            process.signal(Signal::HUP)?;
            until(end).await;
            Ok(())
        }
        FaultKind::Upgrade(Upgrade { command, overlap, ready }) => {
            let command = if command.is_empty() { &process.command() } else { command };
            let old = process.spawn(command)?;
            tokio::time::sleep(*overlap).await;
            process.wait_until_ready_at(ready.as_deref()).await?;
            if let Some(old) = old {
                process::end(old).await;
            }
            until(end).await;
            Ok(())
        }
    }
}

/// Lets the program run for one part in `factor` of the time.
async fn throttle(process: &mut Process, factor: f64, end: Instant) -> Result<(), String> {
    let runs = PULSE.div_f64(factor.max(1.0));
    while Instant::now() < end {
        process.signal(Signal::STOP)?;
        tokio::time::sleep(PULSE.saturating_sub(runs)).await;
        process.signal(Signal::CONT)?;
        tokio::time::sleep(runs).await;
    }
    Ok(())
}

async fn set_slowdown(url: &str, factor: f64) -> Result<(), String> {
    let trust = Trust { insecure: true, ca: None };
    let target = Target::parse(url, Protocol::Http1, &trust).map_err(|error| error.to_string())?;
    let answer = ask::post(&target, factor.to_string().into()).await?;
    if answer.status == 200 { Ok(()) } else { Err(format!("{url}: status {}", answer.status)) }
}
