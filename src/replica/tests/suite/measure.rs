use std::time::{Duration, Instant};
use crate::harness::{Cluster, deadline};
#[tokio::test]
async fn failover() {
    let mut c = Cluster::new(); c.fast = true; c.start_all().await;
    let mut took = vec![]; let mut n = 0;
    for _ in 0..12 {
        let leader = c.leader().await; let s = c.follower().await;
        for _ in 0..5 { n += 1; c.propose(s, n).await.unwrap(); }
        let begun = Instant::now();
        c.crash(leader).await;
        let crash = begun.elapsed();
        n += 1; c.propose_until(s, n, deadline()).await.unwrap();
        took.push((begun.elapsed().as_millis(), crash.as_millis()));
        c.start(leader).await;
        c.until("x", || c.replica(leader).status().leader.is_some()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    took.sort(); println!("FAILOVER {took:?}");
    // latency
    let l = c.leader().await; let f = c.follower().await;
    for (who, i) in [("leader", l), ("follower", f)] {
        let mut v = vec![]; for _ in 0..300 { n += 1; let b = Instant::now(); c.propose(i, n).await.unwrap(); v.push(b.elapsed().as_micros()); } v.sort();
        println!("PROPOSE {who} p50 {} p99 {}", v[150], v[297]);
        let mut v = vec![]; for _ in 0..300 { let b = Instant::now(); c.count(i).await.unwrap(); v.push(b.elapsed().as_micros()); } v.sort();
        println!("READ {who} p50 {} p99 {}", v[150], v[297]);
    }
    for (who, i) in [("leader", l), ("follower", f)] {
        let r = c.replica(i).clone(); let b = Instant::now();
        c.running(i).run(move |_| async move { let mut hs = vec![]; for w in 0..64 { let r = r.clone(); hs.push(tokio::spawn(async move { for k in 0..50 { r.propose(crate::harness::register(w * 50 + k), deadline()).await.unwrap(); } })); } for h in hs { h.await.unwrap(); } }).await;
        println!("64 CLIENTS {who}: {:.0}/s", 3200.0 / b.elapsed().as_secs_f64());
    }
}
