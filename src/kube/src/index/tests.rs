//! The tables themselves; answers are tested from recorded objects.

use super::*;

fn node(name: &str) -> NodeFact {
    NodeFact { name: name.to_owned(), uid: format!("uid-{name}"), out_of_service: false, deleting: false }
}

fn key(name: &str) -> Key {
    node(name).key()
}

fn has(table: &Table<NodeFact>, name: &str) -> Result<bool, Why> {
    table.current().map(|facts| facts.contains_key(&key(name)))
}

#[test]
fn a_listing_replaces_everything_once_it_is_complete() {
    let mut table = Table::new(Kind::Node);
    let began = Instant::now();
    assert!(!table.apply(Change::ListingBegins(began)));
    assert!(!table.apply(Change::Listed(node("a"))));
    assert_eq!(has(&table, "a"), Err(Why::NotListed(Kind::Node)), "half a listing is none");
    assert!(table.apply(Change::ListingEnds));
    assert_eq!((has(&table, "a"), has(&table, "b")), (Ok(true), Ok(false)));
    assert_eq!(table.health, Health::Current { as_of: began });

    table.apply(Change::Is(node("b")));
    table.apply(Change::Gone(key("a")));
    assert_eq!((has(&table, "a"), has(&table, "b")), (Ok(false), Ok(true)));

    table.apply(Change::ListingBegins(began));
    table.apply(Change::Listed(node("c")));
    assert_eq!((has(&table, "b"), has(&table, "c")), (Ok(true), Ok(false)));
    table.apply(Change::ListingEnds);
    assert_eq!((has(&table, "b"), has(&table, "c")), (Ok(false), Ok(true)));
}

#[test]
fn a_listing_that_breaks_leaves_nothing_behind() {
    let mut table = Table::new(Kind::Node);
    let at = Instant::now();
    table.apply(Change::ListingBegins(at));
    table.apply(Change::Listed(node("a")));
    table.apply(Change::Broke(at, "first".to_owned()));
    table.apply(Change::ListingEnds);
    assert!(has(&table, "a").is_err());
    table.apply(Change::Broke(at + std::time::Duration::from_secs(1), "second".to_owned()));
    let expect = Health::Broken { since: at, reason: "second".to_owned() };
    assert_eq!(table.health, expect, "since the first failure, for the last reason");
    // An event on a broken watch does not make it whole.
    table.apply(Change::Is(node("a")));
    assert!(has(&table, "a").is_err());
}

#[test]
fn a_kind_that_was_there_is_not_believed_to_be_gone() {
    let at = Instant::now();
    let mut table: Table<NodeFact> = Table::new(Kind::Vmi);
    table.apply(Change::NotInstalled(at));
    assert_eq!(table.health, Health::NotInstalled { as_of: at });
    table.apply(Change::ListingBegins(at));
    table.apply(Change::ListingEnds);
    table.apply(Change::NotInstalled(at));
    assert!(matches!(table.health, Health::Broken { .. }));
}

#[test]
fn a_kind_with_too_many_objects_is_unknown() {
    let mut table = Table::new(Kind::Node);
    let at = Instant::now();
    table.apply(Change::ListingBegins(at));
    for number in 0..MAX_FACTS_OF_A_KIND {
        table.apply(Change::Listed(node(&number.to_string())));
    }
    table.apply(Change::ListingEnds);
    assert_eq!(has(&table, "0"), Ok(true));
    table.apply(Change::Is(node("one more")));
    assert!(has(&table, "0").is_err());
    assert!(table.last_known().is_err() && table.facts.is_empty());
}
