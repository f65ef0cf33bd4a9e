//! Reading sysfs(5), where things come and go while they are read.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// A block device's number: the driver, and the device among the driver's.
pub(crate) type Number = (u32, u32);

/// The major number of file systems without a block device, such as tmpfs: never gone.
pub(crate) const UNNAMED_MAJOR: u32 = 0;

/// Whether there is a block device of this number.
pub(crate) fn has_device(sysfs: &Path, number: Number) -> io::Result<bool> {
    let (major, minor) = number;
    if major == UNNAMED_MAJOR {
        return Ok(true);
    }
    let devices = sysfs.join("dev/block");
    // Without sysfs everything would look gone.
    fs::metadata(&devices).map_err(at(&devices))?;
    let device = devices.join(format!("{major}:{minor}"));
    device.try_exists().map_err(at(&device))
}

/// The names in a directory, in order; none if it is not there.
pub(crate) fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(at(directory))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether the directory `parent` has this entry; what is no directory has none.
pub(crate) fn has(parent: &Path, entry: &str) -> io::Result<bool> {
    match fs::symlink_metadata(parent.join(entry)) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(at(parent)(error)),
    }
}

/// An attribute without the newline at its end; `None` if it is not there, or what it belongs to has just gone.
pub(crate) fn read_if_there(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if Errno::from_io_error(&error).is_some_and(is_gone) => Ok(None),
        Err(error) => Err(at(file)(error)),
    }
}

/// What the kernel says of an attribute that was removed before it was opened, or after.
pub(crate) fn is_gone(errno: Errno) -> bool {
    [Errno::NOENT, Errno::NODEV].contains(&errno)
}

/// Adds the path to an error.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A file does not say what it should.
pub(crate) fn unreadable(file: &Path, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} reads {text:?}", file.display()))
}

/// `<major>:<minor>`
pub(crate) fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
