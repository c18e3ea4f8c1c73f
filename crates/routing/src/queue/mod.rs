//! Requests that wait in the proxy until an endpoint can take them.
//!
//! A request that is sent too early waits at a busy endpoint, where it can neither go elsewhere nor be
//! refused in time; one that is sent too late leaves an endpoint idle. The modules here decide between
//! the two, and in which order requests go:
//!
//! - [`bind`]: bind a request now, or hold it back.
//! - [`compare`]: the comparison of endpoints behind that.
//! - [`ahead`]: bind one to an endpoint that is busy, so that it need not idle in between.
//! - [`capacity`]: how fast a pool works, and what can be promised by that.
//! - [`fair_queue`]: the order of requests that wait.
//! - [`dispatch`]: which request of a whole queue goes next.
//! - [`giving_way`]: when one goes to a variant that stands in instead.

mod ahead;
pub mod bind;
pub mod capacity;
mod compare;
pub mod dispatch;
pub mod fair_queue;
pub mod giving_way;
pub(crate) mod odds;
mod prospects;
