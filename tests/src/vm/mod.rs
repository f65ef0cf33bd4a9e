//! Virtual machines with stock Debian kernels, and the driver in them: what the test in `tests/vm` stands on.
//!
//! Life cycle: `tests/vm/prepare` has fetched and built what is booted ([`Artifacts`]); [`VmLab::start`] makes an
//! initial RAM disk a kernel, boots three machines under QEMU (software emulation, no root of the host), starts three
//! controllers on the host, the simulated appliance in the target machine and a node plugin in each of the others. The
//! test talks to the agent in a guest ([`Guest`]) over the machine's user-mode network. Dropping the lab kills all; its
//! files stay in `target/vm/lab` until the next one starts.
//!
//! - `artifacts`: what was prepared
//! - `cpio`, `modules`, `initrd`: what a guest finds when it boots
//! - `directory`: where a lab has its files, one lab at a time
//! - `machine`: QEMU
//! - `machines`: the machines of a lab
//! - `protocol`, `guest`: the agent and how it is asked
//! - `alarms`: what must not be seen in any log
//! - `lab`: all of it together

mod alarms;
mod artifacts;
mod cpio;
mod directory;
mod guest;
mod initrd;
mod lab;
mod machine;
mod machines;
mod modules;
pub mod protocol;

pub use artifacts::{Artifacts, Kernel};
pub use guest::{Guest, Output, Relay};
pub use lab::{NODES, NodeOptions, VmLab};
