//! Which parts of the kernel use a block device: sysfs, swap and loop devices.

use std::fs;
use std::io;
use std::path::Path;

use super::Roots;
use super::kernel::BlockDevices;
use crate::sysfs::{Number, at, has, names_in, parse_number, read_if_there, unreadable};

/// A device with its partitions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// The device's number first.
    pub(super) numbers: Vec<Number>,
    /// What lies over one of them, such as device mapper or md, by name.
    pub(super) holders: Vec<String>,
}

/// The device of this number, as sysfs has it. One that sysfs does not have any more is alone.
pub(super) fn family(roots: &Roots, number: Number) -> io::Result<Family> {
    let devices = roots.sysfs.join("dev/block");
    fs::metadata(&devices).map_err(at(&devices))?;
    let directory = devices.join(format!("{}:{}", number.0, number.1));
    let mut family = Family { numbers: vec![number], holders: names_in(&directory.join("holders"))? };
    for name in names_in(&directory)? {
        let child = directory.join(name);
        // Of all that is in there, only partitions have this attribute.
        if !has(&child, "partition")? {
            continue;
        }
        let file = child.join("dev");
        let Some(text) = read_if_there(&file)? else { continue };
        family.numbers.push(parse_number(&text).ok_or_else(|| unreadable(&file, &text))?);
        family.holders.extend(names_in(&child.join("holders"))?);
    }
    Ok(family)
}

/// Swap on one of the devices. Swap on a device that goes by a name of another mount namespace shows only in that
/// the kernel holds the device.
pub(super) fn swap(
    roots: &Roots,
    numbers: &[Number],
    blocks: &dyn BlockDevices,
) -> io::Result<Vec<(Number, String)>> {
    let file = roots.proc.join("swaps");
    // A kernel without swap has no such file.
    let table = read_if_there(&file)?.unwrap_or_default();
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let mut fields = line.split_whitespace();
        let (Some(path), Some(kind)) = (fields.next(), fields.next()) else {
            return Err(unreadable(&file, line));
        };
        if kind != "partition" {
            continue;
        }
        match blocks.number_of(Path::new(path)) {
            Ok(Some(number)) if numbers.contains(&number) => {
                found.push((number, format!("swap on {path}")));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(Path::new(path))(error)),
        }
    }
    Ok(found)
}

/// Loop devices over one of the devices. They do not hold it exclusively, and no process has it open for them;
/// kubelet makes one for each block volume.
pub(super) fn loop_devices(
    roots: &Roots,
    numbers: &[Number],
    blocks: &dyn BlockDevices,
) -> io::Result<Vec<(Number, String)>> {
    let directory = roots.sysfs.join("block");
    fs::metadata(&directory).map_err(at(&directory))?;
    let mut found = Vec::new();
    for name in names_in(&directory)? {
        if !name.starts_with("loop") || !has(&directory.join(&name), "loop/backing_file")? {
            continue;
        }
        let device = roots.dev.join(&name);
        match blocks.backing_of(&device) {
            Ok(Some(number)) if numbers.contains(&number) => {
                found.push((number, device.display().to_string()));
            }
            Ok(_) => {}
            // Detached since it was listed.
            Err(_) if !has(&directory.join(&name), "loop/backing_file")? => {}
            Err(error) => return Err(at(&device)(error)),
        }
    }
    Ok(found)
}
