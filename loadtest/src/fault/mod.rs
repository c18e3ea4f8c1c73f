//! Faults on schedule: programs that a scenario starts, and what befalls them while requests go on.
//!
//! That a fleet survives the loss of a worker is a claim about the requests around that moment. The
//! run does the damage itself, at a known time, so that the figures before, during and after it are
//! those of the same run, and the report can say which request belongs where.

mod process;

use crate::connection::ask;
use crate::plan::target::Target;
use crate::report::Done;
use crate::scenario::{Damage, Fault, Protocol, Trust};
use process::Process;
use rustix::process::Signal;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A program that is slowed by signals runs and stands still in turn, so long together.
const TURN: Duration = Duration::from_millis(20);

/// How much longer than planned a drain may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The programs of a run.
#[derive(Debug, Default)]
pub(crate) struct Processes(Vec<Rc<RefCell<Option<Process>>>>);

impl Processes {
    /// Starts all, one after the other, and waits for each to be ready.
    pub(crate) async fn start(
        wishes: &[crate::scenario::Process],
        base: &Path,
    ) -> Result<Self, String> {
        let mut started = Self::default();
        for wish in wishes {
            let process = Process::start(wish, base).await?;
            started.0.push(Rc::new(RefCell::new(Some(process))));
        }
        Ok(started)
    }

    /// Does what is planned, each at its time after `start`.
    pub(crate) async fn befall(&self, faults: &[Fault], start: Instant) -> Vec<Done> {
        let mut all = Vec::with_capacity(faults.len());
        for fault in faults {
            let end = fault.at.0 + fault.length.0;
            tokio::time::sleep_until((start + fault.at.0).into()).await;
            let began = start.elapsed();
            let problem = self.one(fault, start + end).await.err();
            all.push(Done {
                what: fault.to_string(),
                planned: (fault.at.0.as_secs_f64(), end.as_secs_f64()),
                actual: (began.as_secs_f64(), start.elapsed().as_secs_f64()),
                problem,
            });
        }
        all
    }

    async fn one(&self, fault: &Fault, end: Instant) -> Result<(), String> {
        let is_it = |slot: &&Rc<RefCell<Option<Process>>>| {
            slot.borrow().as_ref().is_some_and(|process| process.name() == fault.process)
        };
        let slot = self.0.iter().find(is_it);
        let slot = slot.ok_or_else(|| format!("no process \"{}\"", fault.process))?;
        // It is given back at the end; nobody else looks at it meanwhile.
        let process = slot.take().ok_or_else(|| format!("{} is busy", fault.process))?;
        let mut process = Held { slot: Rc::clone(slot), process: Some(process) };
        befall(process.get()?, &fault.what, end).await
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

/// A program that is away from its place, and comes back whatever happens.
struct Held {
    slot: Rc<RefCell<Option<Process>>>,
    process: Option<Process>,
}

impl Held {
    fn get(&mut self) -> Result<&mut Process, String> {
        self.process.as_mut().ok_or_else(|| "it is gone".to_owned())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.slot.replace(self.process.take());
    }
}

async fn befall(process: &mut Process, what: &Damage, end: Instant) -> Result<(), String> {
    let until = |end: Instant| tokio::time::sleep_until(end.into());
    match what {
        Damage::Kill | Damage::Drain => {
            let signal = if *what == Damage::Kill { Signal::KILL } else { Signal::TERM };
            process.signal(signal)?;
            process.gone(end + PATIENCE).await;
            until(end).await;
            process.spawn(&process.command())?;
            process.ready().await
        }
        Damage::Stop => {
            process.signal(Signal::STOP)?;
            until(end).await;
            process.signal(Signal::CONT)
        }
        Damage::Slow(factor) => match process.slow() {
            Some(url) => {
                tell(url, *factor).await?;
                until(end).await;
                tell(url, 1.0).await
            }
            None => in_turns(process, *factor, end).await,
        },
        Damage::Reload => {
            process.signal(Signal::HUP)?;
            until(end).await;
            Ok(())
        }
        Damage::Upgrade { command, overlap, ready } => {
            let command = if command.is_empty() { &process.command() } else { command };
            let old = process.spawn(command)?;
            tokio::time::sleep(overlap.0).await;
            process.ready_at(ready.as_deref()).await?;
            if let Some(old) = old {
                process::end(old).await;
            }
            until(end).await;
            Ok(())
        }
    }
}

/// Lets the program run for one part in `factor` of the time.
async fn in_turns(process: &mut Process, factor: f64, end: Instant) -> Result<(), String> {
    let runs = TURN.div_f64(factor.max(1.0));
    while Instant::now() < end {
        process.signal(Signal::STOP)?;
        tokio::time::sleep(TURN.saturating_sub(runs)).await;
        process.signal(Signal::CONT)?;
        tokio::time::sleep(runs).await;
    }
    Ok(())
}

async fn tell(url: &str, factor: f64) -> Result<(), String> {
    let trust = Trust { insecure: true, ca: None };
    let target = Target::parse(url, Protocol::Http1, &trust).map_err(|error| error.to_string())?;
    let answer = ask::post(&target, factor.to_string().into()).await?;
    if answer.status == 200 { Ok(()) } else { Err(format!("{url}: status {}", answer.status)) }
}
