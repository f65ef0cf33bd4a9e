//! The human form of `print detail`: flags header, grouped digits, rounded sizes, wrapped records, CRLF.

use crate::appliance::{Item, Property};
use crate::config::{PrintStyle, Wrap};
use crate::script::ast::Menu;

/// The header over disks; it prints even over an empty list.
const DISK_FLAGS: &str = "Flags: X - disabled, E - empty; B - block-device; M - mounted, F - formatting; \
                          t - nvme-tcp-export";

/// Prints `items` of `menu`.
pub(crate) fn human(menu: Menu, items: &[Item], style: &PrintStyle) -> String {
    let mut lines = Vec::new();
    if menu == Menu::Disk {
        wrap_between(DISK_FLAGS.split(' ').map(str::to_owned), "", style, &mut lines);
    }
    for item in items {
        let head = match menu {
            Menu::SystemIdentity | Menu::SystemResource => String::new(),
            Menu::File => format!("{:>2}   ", item.index),
            Menu::Disk | Menu::SystemScript if style.shows_flags => {
                format!("{:>2} {:<2} ", item.index, item.flags)
            }
            Menu::Disk | Menu::SystemScript => format!("{:>2}  ", item.index),
        };
        let fields = item.properties.iter().map(|(key, property)| format!("{key}={}", printed(property)));
        match style.wrap {
            Wrap::BetweenProperties => wrap_between(fields, &head, style, &mut lines),
            Wrap::Anywhere => {
                let record = head + &fields.collect::<Vec<_>>().join(" ");
                wrap_anywhere(&record, style, &mut lines);
            }
        }
        if style.blank_lines {
            lines.push(String::new());
        }
    }
    lines.iter().map(|line| format!("{line}\r\n")).collect()
}

fn printed(property: &Property) -> String {
    match property {
        Property::Text(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        Property::Word(text) => text.clone(),
        Property::Flag(true) => "yes".to_owned(),
        Property::Flag(false) => "no".to_owned(),
        Property::Grouped(number) => grouped(*number),
        Property::Number(number) => number.to_string(),
        Property::Rounded(bytes) => rounded(*bytes),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// One decimal and a unit; the unit changes above 1024 of it, so that 1 TiB is `1024.0GiB`.
fn rounded(bytes: u64) -> String {
    let (mut unit, mut scale) = ("B", 1_u64);
    for (next, next_scale) in [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)] {
        if bytes > next_scale {
            (unit, scale) = (next, next_scale);
        }
    }
    if scale == 1 {
        return bytes.to_string();
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(scale) / 2) / u128::from(scale);
    format!("{}.{}{unit}", tenths / 10, tenths % 10)
}

fn wrap_between(
    words: impl Iterator<Item = String>,
    head: &str,
    style: &PrintStyle,
    lines: &mut Vec<String>,
) {
    let mut line = head.to_owned();
    let mut is_fresh = true;
    for word in words {
        if !is_fresh && line.chars().count() + 1 + word.chars().count() > style.width {
            lines.push(std::mem::replace(&mut line, " ".repeat(style.indent)));
            is_fresh = true;
        }
        if !is_fresh {
            line.push(' ');
        }
        line.push_str(&word);
        is_fresh = false;
    }
    lines.push(line);
}

fn wrap_anywhere(record: &str, style: &PrintStyle, lines: &mut Vec<String>) {
    let mut line = String::new();
    for character in record.chars() {
        if line.chars().count() >= style.width.max(style.indent + 1) {
            lines.push(line.trim_end().to_owned());
            line = " ".repeat(style.indent);
            if character == ' ' {
                continue;
            }
        }
        line.push(character);
    }
    lines.push(line);
}

#[cfg(test)]
mod tests {
    use super::{grouped, rounded};

    #[test]
    fn sizes_print_as_on_hardware() {
        assert_eq!(grouped(53_687_091_200), "53 687 091 200");
        assert_eq!(grouped(7), "7");
        assert_eq!(rounded(53_687_091_200), "50.0GiB");
        assert_eq!(rounded(1 << 40), "1024.0GiB");
        assert_eq!(rounded(1 << 30), "1024.0MiB");
        assert_eq!(rounded(1_395_864_371), "1.3GiB");
    }
}
