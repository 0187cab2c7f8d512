//! Who is let in, and who is sent away for being of no use. Time is virtual.

use super::*;

fn is_evicted(usage: &Arc<Usage>) -> bool {
    use futures_util::FutureExt;
    Arc::clone(usage).until_useless().now_or_never().is_some()
}

#[tokio::test(start_paused = true)]
async fn a_full_gate_gives_the_place_of_the_longest_idle_and_never_one_in_use() {
    let gate = Arc::new(Gate::new(2));
    let first = gate.enter().expect("has room");
    tokio::time::advance(Duration::from_secs(1)).await;
    let second = gate.enter().expect("has room");
    let asking = first.usage.open();
    let third = gate.enter().expect("the second is idle");
    assert!(is_evicted(&second.usage) && !is_evicted(&first.usage));
    let _asking_too = third.usage.open();
    assert!(gate.enter().is_none(), "all are in use");
    drop(second);
    assert!(gate.enter().is_none(), "its place was given away before");
    drop(asking);
    let fourth = gate.enter().expect("the first is idle again");
    drop((first, third));
    assert_eq!(gate.inside().1.len(), 1);
    drop(fourth);
    assert!(gate.inside().1.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_is_closed_and_one_with_is_not() {
    let useless_after = |usage: &Arc<Usage>| {
        let (started, usage) = (Instant::now(), Arc::clone(usage));
        async move {
            usage.until_useless().await;
            started.elapsed()
        }
    };
    let usage = Arc::new(Usage::new());
    assert_eq!(useless_after(&usage).await, FIRST_REQUEST_WITHIN);
    let usage = Arc::new(Usage::new());
    let open = usage.open();
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, useless_after(&usage)).await.is_err(), "its request is open");
    drop(open);
    assert_eq!(useless_after(&usage).await, IDLE_FOR);
}
