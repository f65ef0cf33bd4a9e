//! Migrations past their time, as the program's own scenarios tell them; each takes the least timeout, or three times
//! that, which nothing can shorten.

use anyhow::Result;

use crate::program::play;

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_side_is_reaped_once_across_two_leaders_deaths() -> Result<()> {
    play("stale-migration", 70).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_migration_is_reported_and_left_alone() -> Result<()> {
    play("slow-migration", 50).await
}
