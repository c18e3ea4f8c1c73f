//! Resources that the system grants a process, and failures that come from a lack of them.
//!
//! When descriptors, ports or memory run out, connecting fails although the other side is well. Such a
//! failure must not be held against an endpoint, or one exhausted process declares its whole fleet
//! dead. And a process that has given its last descriptor to a client can neither probe nor be
//! administered. So a part of the descriptors is kept back: clients get none beyond one bound,
//! requests none beyond another.
//!
//! The kernel gives each new descriptor the lowest free number. A number is therefore a lower bound of
//! how many are open, which needs no count.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// A resource that ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// File descriptors, of the process or of the machine.
    Descriptors,
    /// Local ports for connections to one address.
    Ports,
    /// Memory of the kernel.
    Memory,
}

impl Exhausted {
    /// The word in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::Ports => "ports",
            Self::Memory => "memory",
        }
    }

    /// The resource whose lack an error of the system states, if it does.
    pub fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::EMFILE | libc::ENFILE => Some(Self::Descriptors),
            libc::EADDRNOTAVAIL => Some(Self::Ports),
            libc::ENOBUFS | libc::ENOMEM => Some(Self::Memory),
            _ => None,
        }
    }

    /// The same for an error whose cause may be one of the system.
    pub fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let Some(of_system) = error.downcast_ref::<io::Error>() else {
                next = error.source();
                continue;
            };
            if let Some(found) = Self::of(of_system) {
                return Some(found);
            }
            // Its source is that of the error within, which would be left out.
            next = of_system.get_ref().map(|within| within as &(dyn Error + 'static));
        }
        None
    }
}

/// Whether an error of `accept` concerns a single connection. Linux passes network errors of a new
/// connection to `accept` (accept(2)); the next connection may be fine.
pub fn is_about_one_connection(error: &io::Error) -> bool {
    const ERRORS: [i32; 11] = [
        libc::ECONNABORTED,
        libc::ECONNRESET,
        libc::EINTR,
        libc::EPERM,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
    ];
    error.raw_os_error().is_some_and(|number| ERRORS.contains(&number))
}

/// The division of a process's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// All that the process may have open.
    pub limit: u64,
    /// Connections of clients get none from this number on.
    pub for_clients: u64,
    /// Connections that requests need get none from this number on. The others are for probes, the
    /// admin listener, and files.
    pub for_requests: u64,
}

impl Descriptors {
    /// Shares out `limit` descriptors.
    pub fn of(limit: u64) -> Self {
        let reserve = (limit / 20).clamp(16, 256);
        let for_requests = limit.saturating_sub(reserve);
        // Requests of the last clients need connections to endpoints.
        Self { limit, for_clients: for_requests - for_requests / 4, for_requests }
    }

    /// Those of this process. The first call raises its soft limit to the hard one: the usual soft
    /// limit of 1,024 is for programs that use `select`.
    pub fn of_this_process() -> Self {
        static LIMIT: OnceLock<Descriptors> = OnceLock::new();
        *LIMIT.get_or_init(|| {
            let hard = getrlimit(Resource::Nofile).maximum;
            // If a sandbox forbids it, the soft limit stays.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard });
            let soft = getrlimit(Resource::Nofile).current;
            // No kernel allows more for one process.
            Self::of(soft.unwrap_or(1 << 30))
        })
    }

    /// Number of client connections beyond the limit that may be open at once, just long enough to tell them
    /// why they are refused.
    pub const fn for_last_words(self) -> u64 {
        let room = (self.for_requests - self.for_clients) / 4;
        if room > 256 { 256 } else { room }
    }

    /// Whether a client may have this descriptor.
    pub fn allow_client(self, socket: BorrowedFd<'_>) -> bool {
        below(socket, self.for_clients)
    }

    /// Whether a request may have this descriptor.
    pub fn allow_request(self, socket: BorrowedFd<'_>) -> bool {
        below(socket, self.for_requests)
    }
}

fn below(socket: BorrowedFd<'_>, bound: u64) -> bool {
    u64::try_from(socket.as_raw_fd()).is_ok_and(|number| number < bound)
}

/// A descriptor that is given up where none is left, so that one more connection can be accepted and told
/// why it is refused. Without it the connection would wait in the kernel until its client gives up.
#[derive(Debug, Default)]
pub struct Spare(Option<File>);

impl Spare {
    /// Takes one, unless it is there.
    pub fn take(&mut self) {
        if self.0.is_none() {
            // If there is none, there will be.
            self.0 = File::open("/dev/null").ok();
        }
    }

    /// Gives it up. `false`: there is none.
    pub fn give_up(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_is_given_up_once_and_taken_again() {
        let mut spare = Spare::default();
        assert!(!spare.give_up());
        spare.take();
        spare.take();
        assert_eq!((spare.give_up(), spare.give_up()), (true, false));
        spare.take();
        assert!(spare.give_up());
    }

    #[test]
    fn a_lack_of_resources_is_found_behind_other_errors() {
        let of = |number| Exhausted::of(&io::Error::from_raw_os_error(number));
        assert_eq!(of(libc::EMFILE), Some(Exhausted::Descriptors));
        assert_eq!(of(libc::ENFILE), Some(Exhausted::Descriptors));
        assert_eq!(of(libc::EADDRNOTAVAIL), Some(Exhausted::Ports));
        assert_eq!(of(libc::ENOBUFS), Some(Exhausted::Memory));
        for other in [libc::ECONNREFUSED, libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ECONNRESET] {
            assert_eq!(of(other), None);
        }
        let inner = io::Error::from_raw_os_error(libc::EMFILE);
        let outer = io::Error::other(io::Error::other(inner));
        assert_eq!(Exhausted::behind(&outer), Some(Exhausted::Descriptors));
        assert_eq!(Exhausted::behind(&io::Error::other("words")), None);
    }

    #[test]
    fn every_limit_leaves_something_to_everybody() {
        for limit in [64, 256, 1024, 20_000, 1 << 20, 1 << 30] {
            let Descriptors { for_clients, for_requests, .. } = Descriptors::of(limit);
            assert!(30 < for_clients && for_clients + 11 < for_requests, "{limit}");
            assert!(for_requests + 16 <= limit, "{limit}");
            assert!(Descriptors::of(limit).for_last_words() > 1, "{limit}");
        }
    }
}
