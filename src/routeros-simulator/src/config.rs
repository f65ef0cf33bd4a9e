//! How a simulated appliance is set up.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::exporter::NvmetTarget;

/// A storage pool of the appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its slot, such as `storage-pool`.
    pub slot: String,
    /// Where it is mounted, without a leading `/`, such as `storage-pool`.
    pub mount_point: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// What is free while no volume exists, in bytes.
    pub free_bytes: u64,
}

/// How long commands take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latencies {
    /// Commands that only read.
    pub print: Duration,
    /// Commands that add a disk.
    pub add: Duration,
    /// Commands that remove a disk.
    pub remove: Duration,
    /// Commands that set something else.
    pub set: Duration,
}

impl Latencies {
    /// None: for tests.
    pub const NONE: Self =
        Self { print: Duration::ZERO, add: Duration::ZERO, remove: Duration::ZERO, set: Duration::ZERO };

    /// What was seen on hardware: print 50 to 100 ms, create 428 ms, delete 560 ms.
    pub const AS_MEASURED: Self = Self {
        print: Duration::from_millis(75),
        add: Duration::from_millis(430),
        remove: Duration::from_millis(560),
        set: Duration::from_millis(100),
    };
}

/// Where long records of the human form wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrap {
    /// Between two properties.
    BetweenProperties,
    /// At the last column, inside a token or a number too. A space that falls there is not printed.
    Anywhere,
}

/// How `print detail` looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrintStyle {
    /// Columns of the terminal.
    pub width: usize,
    /// Where records wrap.
    pub wrap: Wrap,
    /// Columns that continuation lines are indented by.
    pub indent: usize,
    /// Whether flags stand between an item's number and its properties.
    pub shows_flags: bool,
    /// Whether a blank line follows each record.
    pub blank_lines: bool,
}

impl PrintStyle {
    /// The narrow terminal of older captures.
    pub const NARROW: Self =
        Self { width: 80, wrap: Wrap::BetweenProperties, indent: 15, shows_flags: false, blank_lines: true };
    /// As narrow, but tokens are cut in two.
    pub const NARROW_CUTTING: Self =
        Self { width: 80, wrap: Wrap::Anywhere, indent: 15, shows_flags: false, blank_lines: true };
    /// The wide terminal of newer captures.
    pub const WIDE: Self =
        Self { width: 240, wrap: Wrap::BetweenProperties, indent: 6, shows_flags: true, blank_lines: false };
}

/// The stream that error words go to; which one hardware uses is unproven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a simulated appliance is set up.
#[derive(Debug, Clone)]
pub struct SimulatorConfig {
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Public keys that may log in, as OpenSSH lines. With none, nobody may.
    pub authorized_keys: Vec<String>,
    /// Where the host key is kept, so that it outlives a restart; made when missing. `None`: a new one each time.
    pub host_key_file: Option<PathBuf>,
    /// Where each disk's file is a real sparse file. `None`: sizes only.
    pub backing_directory: Option<PathBuf>,
    /// What really exports that which it exports; it needs a backing directory. `None`: nothing does.
    pub exporter: Option<NvmetTarget>,
    /// Where disks, files and scripts are kept, so that they outlive the process.
    pub state_file: Option<PathBuf>,
    /// The storage pools.
    pub pools: Vec<Pool>,
    /// How long commands take.
    pub latencies: Latencies,
    /// Whether `:serialize` is a known command.
    pub knows_serialize: bool,
    /// Whether JSON numbers print as `443.000000`.
    pub fractional_json_numbers: bool,
    /// How `print detail` looks.
    pub print_style: PrintStyle,
    /// Where error words go.
    pub error_stream: ErrorStream,
    /// The exit status of a command that failed.
    pub error_exit_status: u32,
}

impl Default for SimulatorConfig {
    fn default() -> Self {
        const TIB: u64 = 1 << 40;
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authorized_keys: Vec::new(),
            host_key_file: None,
            backing_directory: None,
            exporter: None,
            state_file: None,
            pools: vec![Pool {
                slot: "storage-pool".to_owned(),
                mount_point: "storage-pool".to_owned(),
                size_bytes: 8 * TIB,
                free_bytes: 7 * TIB,
            }],
            latencies: Latencies::NONE,
            knows_serialize: true,
            fractional_json_numbers: false,
            print_style: PrintStyle::NARROW,
            error_stream: ErrorStream::Stdout,
            error_exit_status: 1,
        }
    }
}
