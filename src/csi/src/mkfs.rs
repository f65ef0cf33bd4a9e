//! What a class may tell `mkfs`, beside what the driver tells it (`mkfsOptions`).
//!
//! A text of harmless characters ([`MkfsOptions`]) is checked, before it is used, against the list of the file system's
//! own tool: mke2fs(8), mkfs.xfs(8). The lists have what shapes the file system. What is on neither of them
//! - forces, or only pretends (`-F`, `-f`, `-C` of XFS, `-n`, `-N` of XFS): the tools' own checks stay on;
//! - names a file or another device (`-d`, `-l`, `-z`, `-p`, `-c`, `device=`, `logdev=`, `rtdev=`, `journal_dev`), or
//!   makes a file system that does not begin where the device does, or ends before it (`offset=`, `-d size=`, a size);
//! - would be the same on all volumes of the class, and then one is taken for another (`-U`, `-L`, `uuid=`);
//! - trusts what nobody proves (`assume_storage_prezeroed`), or makes what the kernel is about to forget (`crc=0`).

use std::fmt;

use state_machine::{FsType, MkfsOptions};
use thiserror::Error;

/// How much of a refused word an error shows, in bytes.
const MAX_SHOWN_BYTES: usize = 40;

/// What follows an option's letter, in the same word or as the next one.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// Nothing.
    None,
    /// A number, perhaps with a unit.
    Number,
    /// Names from a list, separated by commas; where it makes sense with `^` before or `=` and a word after them.
    Names(&'static [&'static str]),
}

/// An option that a class may give, as `-` and its letter.
type Allowed = (&'static str, Value);

const EXT4: &[Allowed] = &[
    ("-b", Value::Number),
    ("-C", Value::Number),
    ("-D", Value::None),
    (
        "-E",
        Value::Names(&[
            "discard",
            "lazy_itable_init",
            "lazy_journal_init",
            "mmp_update_interval",
            "nodiscard",
            "num_backup_sb",
            "orphan_file_size",
            "packed_meta_blocks",
            "quotatype",
            "resize",
            "root_owner",
            "stride",
            "stripe_width",
        ]),
    ),
    ("-g", Value::Number),
    ("-G", Value::Number),
    ("-i", Value::Number),
    ("-I", Value::Number),
    ("-J", Value::Names(&["fast_commit_size", "size"])),
    ("-m", Value::Number),
    ("-N", Value::Number),
    (
        "-O",
        Value::Names(&[
            "64bit",
            "bigalloc",
            "dir_index",
            "dir_nlink",
            "ea_inode",
            "encrypt",
            "ext_attr",
            "extent",
            "extra_isize",
            "fast_commit",
            "filetype",
            "flex_bg",
            "has_journal",
            "huge_file",
            "inline_data",
            "large_dir",
            "large_file",
            "meta_bg",
            "metadata_csum",
            "metadata_csum_seed",
            "mmp",
            "orphan_file",
            "project",
            "quota",
            "resize_inode",
            "sparse_super",
            "sparse_super2",
            "stable_inodes",
            "uninit_bg",
            "verity",
        ]),
    ),
    ("-T", Value::Names(&["big", "default", "huge", "largefile", "largefile4", "news", "small"])),
];

const XFS: &[Allowed] = &[
    ("-b", Value::Names(&["size"])),
    (
        "-d",
        Value::Names(&[
            "agcount",
            "agsize",
            "cowextsize",
            "extszinherit",
            "noalign",
            "su",
            "sunit",
            "sw",
            "swidth",
        ]),
    ),
    ("-i", Value::Names(&["maxpct", "nrext64", "perblock", "size", "sparse"])),
    ("-K", Value::None),
    ("-l", Value::Names(&["size", "su", "sunit"])),
    ("-m", Value::Names(&["bigtime", "finobt", "inobtcount", "reflink", "rmapbt"])),
    ("-n", Value::Names(&["size", "version"])),
    ("-s", Value::Names(&["size"])),
];

/// Why a class's options are not given to `mkfs`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum MkfsOptionRefused {
    /// No option, or none that a class may give.
    #[error("{word:?} is not an option that a class may give to mkfs.{fs_type}; those are {allowed}")]
    Unknown {
        /// The word.
        word: String,
        /// The file system.
        fs_type: &'static str,
        /// What a class may give.
        allowed: String,
    },
    /// A fine option with a value that it must not have.
    #[error("{option} of mkfs.{fs_type} must not have the value {value:?}; it takes {takes}")]
    Value {
        /// The option.
        option: &'static str,
        /// The file system.
        fs_type: &'static str,
        /// The value, or the part of it.
        value: String,
        /// What it may have.
        takes: String,
    },
}

/// Whether a class may give all of these to `fs_type`'s tool.
pub(crate) fn check(options: &MkfsOptions, fs_type: FsType) -> Result<(), MkfsOptionRefused> {
    let listed = match fs_type {
        FsType::Ext4 => EXT4,
        FsType::Xfs => XFS,
    };
    let mut words = options.options();
    while let Some(word) = words.next() {
        let known = listed.iter().find_map(|(option, takes)| {
            let attached = word.strip_prefix(option)?;
            Some((*option, *takes, attached))
        });
        let Some((option, takes, attached)) = known else {
            let allowed = listed.iter().map(|(option, _)| *option).collect::<Vec<_>>().join(" ");
            return Err(MkfsOptionRefused::Unknown { word: shown(word), fs_type: fs_type.as_str(), allowed });
        };
        let value = match takes {
            Value::None => attached,
            Value::Number | Value::Names(_) if !attached.is_empty() => attached,
            Value::Number | Value::Names(_) => words.next().unwrap_or_default(),
        };
        takes.check(value).map_err(|part| MkfsOptionRefused::Value {
            option,
            fs_type: fs_type.as_str(),
            value: shown(part),
            takes: takes.to_string(),
        })?;
    }
    Ok(())
}

impl Value {
    /// Whether an option may have `value`, or the part of it that it may not.
    fn check<'a>(&self, value: &'a str) -> Result<(), &'a str> {
        match self {
            Self::None => value.is_empty().then_some(()).ok_or(value),
            Self::Number => {
                let is_number = value.starts_with(|c: char| c.is_ascii_digit())
                    && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
                is_number.then_some(()).ok_or(value)
            }
            Self::Names(names) => {
                let is_listed = |part: &str| {
                    let name = part.split('=').next().unwrap_or_default();
                    names.contains(&name.strip_prefix('^').unwrap_or(name))
                };
                value.split(',').find(|part| !is_listed(part)).map_or(Ok(()), Err)
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Number => f.write_str("a number"),
            Self::Names(names) => f.write_str(&names.join(" ")),
        }
    }
}

/// As much of a word as an error shows; the checked characters are of one byte each.
fn shown(word: &str) -> String {
    word.chars().take(MAX_SHOWN_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use super::{FsType, MkfsOptionRefused, MkfsOptions};

    fn check(fs_type: FsType, text: &str) -> Result<(), MkfsOptionRefused> {
        let options = MkfsOptions::parse(text).unwrap_or_else(|error| panic!("{text:?} {error}"));
        super::check(&options, fs_type)
    }

    #[test]
    fn what_shapes_a_file_system_is_allowed() {
        for text in [
            "-m 0",
            "-m0.5 -i 65536",
            "-b 4096 -I 256 -N 1000000",
            "-E lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            "-E root_owner=1000:1000,stride=32,stripe_width=64",
            "-O ^has_journal,metadata_csum,project -T largefile",
            "-J size=64  -D",
            "-O bigalloc -C 64k -G 16 -g 8192",
        ] {
            assert_eq!(check(FsType::Ext4, text), Ok(()), "{text:?}");
        }
        for text in [
            "-K",
            "-b size=4096 -s size=4k",
            "-m reflink=1,rmapbt=1,bigtime=1 -i size=1024,maxpct=5,sparse=1",
            "-d agcount=4,su=64k,sw=4 -l size=64m,su=64k -n size=8192,version=ci",
            "-d noalign",
        ] {
            assert_eq!(check(FsType::Xfs, text), Ok(()), "{text:?}");
        }
    }

    #[test]
    fn what_endangers_data_is_refused_by_name() {
        let ext4 = [
            ("-F", "-F"),
            ("-FF", "-FF"),
            ("-m 0 -F", "-F"),
            ("-DF", "F"),
            ("-n", "-n"),
            ("-S", "-S"),
            ("-c", "-c"),
            ("-b 4096 100000", "100000"),
            ("-D sdb", "sdb"),
            ("-m 0 sdb 100", "sdb"),
            ("-J device=sdb", "device=sdb"),
            ("-J size=8,device=LABEL=x", "device=LABEL=x"),
            ("-E offset=4096", "offset=4096"),
            ("-Eoffset=4096", "offset=4096"),
            ("-E nodiscard,offset=1", "offset=1"),
            ("-E assume_storage_prezeroed=1", "assume_storage_prezeroed=1"),
            ("-E test_fs", "test_fs"),
            ("-O journal_dev", "journal_dev"),
            ("-O 64bit,JOURNAL_DEV", "JOURNAL_DEV"),
            ("-O FEATURE_I3", "FEATURE_I3"),
            ("-d dir", "-d"),
            ("-l list", "-l"),
            ("-z undo", "-z"),
            ("-U random", "-U"),
            ("-L data", "-L"),
            ("-M mnt", "-M"),
            ("-t ext2", "-t"),
            ("-o hurd", "-o"),
            ("-e panic", "-e"),
            ("-r 0", "-r"),
            ("-q", "-q"),
            ("-v", "-v"),
            ("-V", "-V"),
            ("-R stride=1", "-R"),
            ("-K", "-K"),
            ("-m -F", "-F"),
            ("-m", ""),
            ("-b", ""),
            ("-b x", "x"),
            ("-b 4=5", "4=5"),
            ("-E stride=4,,offset=1", ""),
            ("-O -F", "-F"),
            ("-E ", ""),
            ("--", "--"),
            ("-", "-"),
            ("-T floppy", "floppy"),
            ("-E ^^discard", "^^discard"),
            ("-O ^", "^"),
        ];
        let xfs = [
            ("-f", "-f"),
            ("-Kf", "f"),
            ("-K -f", "-f"),
            ("-C", "-C"),
            ("-N", "-N"),
            ("-p proto", "-p"),
            ("-c options=x", "-c"),
            ("-r rtdev=sdb", "-r"),
            ("-l logdev=sdb", "logdev=sdb"),
            ("-l size=64m,logdev=sdb", "logdev=sdb"),
            ("-l internal=0", "internal=0"),
            ("-d name=sdb", "name=sdb"),
            ("-d file", "file"),
            ("-d size=1g", "size=1g"),
            ("-d agcount=4,size=1g", "size=1g"),
            ("-d rtinherit=1", "rtinherit=1"),
            ("-m uuid=x", "uuid=x"),
            ("-m crc=0", "crc=0"),
            ("-L data", "-L"),
            ("-q", "-q"),
            ("-V", "-V"),
            ("--force", "--force"),
            ("-K sdb", "sdb"),
            ("-b 4096", "4096"),
            ("-b", ""),
            ("-m 0", "0"),
        ];
        let ext4 = ext4.map(|(text, part)| (FsType::Ext4, text, part));
        let xfs = xfs.map(|(text, part)| (FsType::Xfs, text, part));
        for (fs_type, text, part) in ext4.into_iter().chain(xfs) {
            let found = match check(fs_type, text) {
                Err(MkfsOptionRefused::Unknown { word, .. }) => word,
                Err(MkfsOptionRefused::Value { value, .. }) => value,
                Ok(()) => panic!("{text:?} was allowed for {}", fs_type.as_str()),
            };
            assert_eq!(found, part, "{text:?} for {}", fs_type.as_str());
        }
    }

    #[test]
    fn a_refusal_is_short_and_says_what_is_allowed() {
        let word = format!("-Z{}", "x".repeat(400));
        let value = format!("-O {}", "x".repeat(400));
        let unknown = check(FsType::Ext4, &word).unwrap_err().to_string();
        assert!(unknown.len() < 300 && unknown.contains("mkfs.ext4; those are -b -C -D"), "{unknown}");
        let wrong = check(FsType::Ext4, &value).unwrap_err().to_string();
        assert!(wrong.len() < 600 && wrong.contains("64bit bigalloc"), "{wrong}");
    }
}
