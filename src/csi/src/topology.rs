//! From where in the cluster volumes can be reached: CSI 1.12, "Topology" in "CreateVolume" and in "NodeGetInfo".
//!
//! There is one appliance, and its place is configured. A plugin without a place says that it is reachable from
//! everywhere, and nothing of this shows. Of requests the places are compared as they come: who runs the cluster
//! may have labels that are no topology of ours.

use std::collections::BTreeMap;

use proto::csi::v1;

use crate::parse::RequestError;

/// Most segments of a place: with all of them as long as they may be, the map stays below the specification's 4 KiB.
const MAX_SEGMENTS: usize = 16;
/// Longest prefix of a key, name of a key and value, in bytes each.
const MAX_PART_BYTES: usize = 63;

/// A place in the cluster, as checked keys and values; without any it is everywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    segments: BTreeMap<String, String>,
}

impl Topology {
    /// The place with these segments, or all mistakes in them, a sentence each.
    pub fn parse(segments: &BTreeMap<String, String>) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        if segments.len() > MAX_SEGMENTS {
            mistakes.push(format!("has {} segments; {MAX_SEGMENTS} are allowed", segments.len()));
        }
        let mut prefixes = Vec::new();
        for (index, (key, value)) in segments.iter().enumerate() {
            let (prefix, name) = match key.split_once('/') {
                Some((prefix, name)) => (Some(prefix), name),
                None => (None, key.as_str()),
            };
            if prefix.is_some_and(|prefix| !is_domain_name(prefix)) {
                mistakes.push(format!(
                    "the key {key:?} has a prefix that is no domain name in small letters of at most {MAX_PART_BYTES} bytes"
                ));
            }
            if !is_part(name) {
                mistakes.push(format!("the key {key:?} {PART_RULE}"));
            }
            if !is_part(value) {
                mistakes.push(format!("the value {value:?} of {key:?} {PART_RULE}"));
            }
            if segments.keys().take(index).any(|other| other.eq_ignore_ascii_case(key)) {
                mistakes.push(format!(
                    "the key {key:?} is there twice; capital and small letters count as the same"
                ));
            }
            prefixes.extend(prefix);
        }
        prefixes.dedup();
        if let [first, second, ..] = prefixes.as_slice() {
            mistakes
                .push(format!("the keys have the prefixes {first:?} and {second:?}; all must have the same"));
        }
        if mistakes.is_empty() { Ok(Self { segments: segments.clone() }) } else { Err(mistakes) }
    }

    /// Whether it says anything: else it is everywhere.
    pub fn is_everywhere(&self) -> bool {
        self.segments.is_empty()
    }

    /// The place as CSI has it; `None` if it is everywhere.
    pub fn to_proto(&self) -> Option<v1::Topology> {
        (!self.is_everywhere()).then(|| v1::Topology { segments: self.segments.clone() })
    }

    /// Whether what is here can be reached from `place`: one of them is within the other. Where each says something
    /// that the other does not, nobody knows, and then it cannot.
    pub fn is_reached_from(&self, place: &v1::Topology) -> bool {
        is_within(&place.segments, &self.segments) || is_within(&self.segments, &place.segments)
    }

    /// Whether a volume here is one that `requirement` asks for: it must be reached from one of the requisite places,
    /// if there are any. What is merely preferred does not matter, as there is no choice.
    pub fn check(&self, requirement: Option<&v1::TopologyRequirement>) -> Result<(), RequestError> {
        let requisite = requirement.map(|requirement| requirement.requisite.as_slice()).unwrap_or_default();
        if requisite.is_empty() || requisite.iter().any(|place| self.is_reached_from(place)) {
            return Ok(());
        }
        let here = self.segments.iter().map(|(key, value)| format!("{key}={value}"));
        Err(RequestError::OutOfReach {
            field: "accessibility_requirements.requisite".to_owned(),
            problem: format!(
                "the appliance is at {}, and none of the places asked for is there",
                here.collect::<Vec<_>>().join(",")
            ),
        })
    }
}

/// What [`is_part`] asks for.
const PART_RULE: &str =
    "must have 1 to 63 letters, digits, '-', '_' or '.', and a letter or digit at both ends";

/// The name of a key, or a value.
fn is_part(text: &str) -> bool {
    (1..=MAX_PART_BYTES).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && has_ends(text)
}

fn is_domain_name(text: &str) -> bool {
    let is_label = |label: &str| {
        has_ends(label) && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    text.len() <= MAX_PART_BYTES && text.split('.').all(is_label)
}

fn has_ends(text: &str) -> bool {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(is_end) && text.ends_with(is_end)
}

/// Whether all that `whole` says `part` says too.
fn is_within(part: &BTreeMap<String, String>, whole: &BTreeMap<String, String>) -> bool {
    let says = |key: &str, value: &str| {
        part.iter().any(|(own_key, own_value)| own_key.eq_ignore_ascii_case(key) && own_value == value)
    };
    whole.iter().all(|(key, value)| says(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn place(pairs: &[(&str, &str)]) -> v1::Topology {
        v1::Topology { segments: map(pairs) }
    }

    const ZONE: &str = "topology.kubernetes.io/zone";
    const REGION: &str = "topology.kubernetes.io/region";

    #[test]
    fn segments_as_the_specification_has_them() {
        let (name, prefix) = ("n".repeat(63), "p".repeat(63));
        for good in [
            map(&[]),
            map(&[(ZONE, "a")]),
            map(&[(ZONE, "rack-1.row_2"), (REGION, "EU")]),
            map(&[("zone", "1"), (REGION, "2")]),
            map(&[("Zone_1.x-y", "a")]),
            map(&[(&format!("{prefix}/{name}"), &name)]),
        ] {
            let topology = Topology::parse(&good).unwrap();
            assert_eq!(topology.to_proto().map(|proto| proto.segments).unwrap_or_default(), good);
            assert_eq!(topology.is_everywhere(), good.is_empty());
        }
        let longer = "x".repeat(64);
        for (key, value) in [
            ("", "a"),
            ("/", "a"),
            ("/zone", "a"),
            ("example.com/", "a"),
            ("example.com/a/b", "a"),
            ("-zone", "a"),
            ("zone-", "a"),
            ("zo ne", "a"),
            ("zöne", "a"),
            ("Example.com/zone", "a"),
            ("example_x.com/zone", "a"),
            ("example..com/zone", "a"),
            (".com/zone", "a"),
            ("-x.com/zone", "a"),
            ("x-.com/zone", "a"),
            ("zone", ""),
            ("zone", "-a"),
            ("zone", "a."),
            ("zone", "a b"),
            ("zone", "a/b"),
            ("zone", "a\n"),
            (&longer, "a"),
            (&format!("{longer}/zone"), "a"),
            ("zone", &longer),
        ] {
            assert!(Topology::parse(&map(&[(key, value)])).is_err(), "{key:?}={value:?}");
        }
    }

    #[test]
    fn all_mistakes_are_told_together() {
        let mistakes = Topology::parse(&map(&[
            ("Zone", ""),
            ("zone", "a"),
            ("a.example/x", "a"),
            ("b.example/y", "a"),
            ("-", "a"),
        ]))
        .unwrap_err();
        for part in
            ["\"\" of \"Zone\"", "\"zone\" is there twice", "\"a.example\" and \"b.example\"", "key \"-\""]
        {
            assert!(mistakes.iter().any(|mistake| mistake.contains(part)), "{part} is not in {mistakes:#?}");
        }
        assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
        let many = (0..=MAX_SEGMENTS).map(|n| (format!("k{n}"), "v".to_owned())).collect();
        assert!(Topology::parse(&many).unwrap_err()[0].contains("17 segments"));
    }

    #[test]
    fn a_place_is_reached_if_one_is_within_the_other() {
        let here = Topology::parse(&map(&[(REGION, "r1"), (ZONE, "z1")])).unwrap();
        for (other, reached) in [
            (place(&[(REGION, "r1"), (ZONE, "z1")]), true),
            (place(&[(REGION, "r1"), (ZONE, "z1"), ("rack", "7")]), true),
            (place(&[(REGION, "r1")]), true),
            (place(&[(&ZONE.to_uppercase(), "z1")]), true),
            (place(&[]), true),
            (place(&[(REGION, "r1"), (ZONE, "z2")]), false),
            (place(&[(REGION, "R1")]), false),
            (place(&[("rack", "7")]), false),
            (place(&[(REGION, "r1"), ("rack", "7")]), false),
        ] {
            assert_eq!(here.is_reached_from(&other), reached, "{other:?}");
            assert!(Topology::default().is_reached_from(&other));
        }
    }

    #[test]
    fn one_requisite_place_is_enough_and_none_is_no_requirement() {
        let here = Topology::parse(&map(&[(ZONE, "z1")])).unwrap();
        let requirement = |requisite: &[&str], preferred: &[&str]| {
            let places = |zones: &[&str]| zones.iter().map(|zone| place(&[(ZONE, zone)])).collect();
            v1::TopologyRequirement { requisite: places(requisite), preferred: places(preferred) }
        };
        assert_eq!(here.check(None), Ok(()));
        assert_eq!(here.check(Some(&requirement(&[], &["z2"]))), Ok(()));
        assert_eq!(here.check(Some(&requirement(&["z2", "z1"], &["z2"]))), Ok(()));
        assert_eq!(Topology::default().check(Some(&requirement(&["z2"], &[]))), Ok(()));
        let refused = here.check(Some(&requirement(&["z2", "z3"], &["z1"]))).unwrap_err();
        let status = tonic::Status::from(refused);
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().contains("the appliance is at topology.kubernetes.io/zone=z1"), "{status}");
    }
}
