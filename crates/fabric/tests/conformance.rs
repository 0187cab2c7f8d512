//! What every fabric owes its ranks, asked of ranks in one process and of ranks behind ports, with and without
//! faults between them.
#![forbid(unsafe_code)]

#[path = "conformance/suite.rs"]
mod suite;

use std::sync::Arc;
use std::time::Duration;

use fabric::Fabric;
use fabric::fault::Faults;
use fabric::grpc::{Counters, Port, PortConfig, Secret};
use fabric::local::Group;
use plan::{Epoch, Rank};

const EPOCH: Epoch = Epoch(7);
const IMAGE: u64 = 0xabcd;

/// Ranks of one epoch, and what keeps them going.
struct Ranks {
    fabrics: Vec<Arc<dyn Fabric>>,
    abort: Box<dyn Fn()>,
}

fn local(n_ranks: usize, silence: Duration) -> Ranks {
    let group = Group::new(EPOCH, n_ranks, silence);
    Ranks { fabrics: group.fabrics(), abort: Box::new(move || group.abort()) }
}

/// One port a rank.
fn ports(n_ranks: usize, address: &dyn Fn(usize) -> String, config: &PortConfig) -> (Ranks, Arc<[Port]>) {
    let port = |rank_idx| Port::bind(&address(rank_idx), config.clone()).expect("a free address");
    let ports: Arc<[Port]> = (0..n_ranks).map(port).collect();
    let peers: Vec<String> = ports.iter().map(|port| port.address().to_owned()).collect();
    let secret = Secret::new([7; Secret::N_BYTES]);
    let open = |(rank, port): (u16, &Port)| port.open_with(secret, (EPOCH, IMAGE), Rank(rank), peers.clone());
    let fabrics = (0..).zip(ports.iter()).map(open).collect();
    let kept = ports.clone();
    (Ranks { fabrics, abort: Box::new(move || kept.iter().for_each(|port| port.abort(EPOCH))) }, ports)
}

fn loopback(_: usize) -> String {
    "http://127.0.0.1:0".to_owned()
}

fn tcp(n_ranks: usize, silence: Duration) -> Ranks {
    ports(n_ranks, &loopback, &PortConfig { silence, ..PortConfig::default() }).0
}

#[test]
fn ranks_of_one_process_conform() {
    suite::run(&local);
}

#[test]
fn ranks_behind_tcp_ports_conform() {
    suite::run(&tcp);
}

#[test]
fn ranks_behind_unix_sockets_conform() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let count = std::cell::Cell::new(0);
    let address = |_| {
        count.set(count.get() + 1);
        format!("unix://{}/{}", folder.path().display(), count.get())
    };
    suite::run(&|n_ranks, silence| ports(n_ranks, &address, &PortConfig { silence, ..PortConfig::default() }).0);
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder is there").count(), 0, "sockets go with ports");
}

#[test]
fn ranks_that_share_a_port_conform() {
    suite::run(&|n_ranks, silence| {
        let config = PortConfig { silence, ..PortConfig::default() };
        let port = |_| Port::bind("http://127.0.0.1:0", config.clone()).expect("a free port");
        let ports: [Port; 2] = std::array::from_fn(port);
        // Two ranks a port, so that some are in the same process and some are not.
        let of_rank = |rank_idx: usize| &ports[rank_idx / 2 % 2];
        let peers: Vec<String> = (0..n_ranks).map(|rank_idx| of_rank(rank_idx).address().to_owned()).collect();
        let open = |rank_idx| of_rank(rank_idx).open(EPOCH, IMAGE, Rank(rank_idx as u16), peers.clone());
        let fabrics = (0..n_ranks).map(open).collect();
        Ranks { fabrics, abort: Box::new(move || ports.iter().for_each(|port| port.abort(EPOCH))) }
    });
}

/// Sends many tensors among four ranks with `faults` on every way, and returns what was counted, added up.
fn with_faults(faults: Faults) -> Vec<Counters> {
    println!("seed {}", faults.seed);
    let config = PortConfig {
        faults: Some(faults),
        // Short, so that a lost last message is asked after without holding up the test.
        probe: Duration::from_millis(10),
        silence: Duration::from_secs(20),
        ..PortConfig::default()
    };
    let (ranks, ports) = ports(3, &loopback, &config);
    suite::everything_comes(&ranks.fabrics, 60, 300_000);
    drop(ranks);
    ports.iter().map(Port::counters).collect()
}

fn total(counters: &[Counters], count: fn(&Counters) -> u64) -> u64 {
    counters.iter().map(count).sum()
}

#[test]
fn dropped_messages_come_again() {
    let counted = with_faults(Faults { seed: 1, dropped_of_1000: 100, ..Faults::default() });
    assert!(total(&counted, |c| c.resent) > 0 && total(&counted, |c| c.out_of_order) > 0, "{counted:?}");
}

#[test]
fn duplicated_messages_are_taken_once() {
    let counted = with_faults(Faults { seed: 2, duplicated_of_1000: 200, ..Faults::default() });
    assert!(total(&counted, |c| c.repeated) > 0, "{counted:?}");
}

#[test]
fn reordered_messages_come_in_order() {
    let counted = with_faults(Faults { seed: 3, reordered_of_1000: 200, ..Faults::default() });
    assert!(total(&counted, |c| c.out_of_order) > 0, "{counted:?}");
}

#[test]
fn a_flipped_bit_is_seen_and_the_message_comes_again() {
    let counted = with_faults(Faults { seed: 4, flipped_of_1000: 100, ..Faults::default() });
    assert!(total(&counted, |c| c.corrupt) > 0 && total(&counted, |c| c.resent) > 0, "{counted:?}");
}

#[test]
fn a_connection_that_breaks_in_the_midst_of_a_message_is_made_again() {
    let counted = with_faults(Faults { seed: 5, truncated_of_1000: 50, ..Faults::default() });
    // Six ways between three ranks are connected once without faults.
    assert!(total(&counted, |c| c.connected) > 6, "{counted:?}");
}

#[test]
fn delayed_messages_come() {
    let delay = Duration::from_millis(3);
    with_faults(Faults { seed: 6, delayed_of_1000: 200, delay, ..Faults::default() });
}

#[test]
fn all_faults_together_change_no_bytes() {
    for seed in 10..14 {
        let counted = with_faults(Faults {
            seed,
            delayed_of_1000: 20,
            delay: Duration::from_millis(1),
            dropped_of_1000: 30,
            duplicated_of_1000: 30,
            reordered_of_1000: 30,
            truncated_of_1000: 20,
            flipped_of_1000: 30,
            ..Faults::default()
        });
        assert!(total(&counted, |c| c.resent) > 0, "{counted:?}");
    }
}
