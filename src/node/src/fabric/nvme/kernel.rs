//! The two writes by which the kernel is told to make, and to end, NVMe connections.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Room for `instance=<N>,cntlid=<M>`, in bytes.
const MAX_ANSWER_BYTES: usize = 128;

/// The kernel's NVMe host. Both calls block for as long as the kernel likes.
pub(super) trait Kernel: Send + Sync + 'static {
    /// Connects as these options say, and answers what the kernel calls the new NVMe controller. After an error
    /// there is none.
    fn establish(&self, options: &str) -> io::Result<String>;

    /// Writes 1 to an attribute of an NVMe controller, opened before; `path` is its name for people.
    fn tell(&self, path: &Path, attribute: File) -> io::Result<()>;
}

/// The kernel.
#[derive(Debug, Clone)]
pub(super) struct LinuxKernel {
    fabrics: PathBuf,
}

impl LinuxKernel {
    /// The kernel that has its device nodes under `dev`.
    pub(super) fn new(dev: &Path) -> Self {
        Self { fabrics: dev.join("nvme-fabrics") }
    }
}

impl Kernel for LinuxKernel {
    fn establish(&self, options: &str) -> io::Result<String> {
        let opened = OpenOptions::new().read(true).write(true).open(&self.fabrics);
        let mut fabrics = opened.map_err(|error| {
            let what = format!("{}: {error}; is the kernel module nvme-tcp loaded?", self.fabrics.display());
            io::Error::new(error.kind(), what)
        })?;
        // In one piece: each write is a request of its own.
        if fabrics.write(options.as_bytes())? != options.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the kernel took only some of the options"));
        }
        let mut answer = [0; MAX_ANSWER_BYTES];
        // It is connected from here on, under whatever name.
        Ok(match fabrics.read(&mut answer) {
            Ok(bytes) => String::from_utf8_lossy(answer.get(..bytes).unwrap_or_default()).trim().to_owned(),
            Err(error) => format!("not told: {error}"),
        })
    }

    fn tell(&self, _path: &Path, mut attribute: File) -> io::Result<()> {
        attribute.write_all(b"1")
    }
}
