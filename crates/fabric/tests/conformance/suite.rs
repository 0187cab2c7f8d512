//! The facts every fabric is asked for.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fabric::collective::all_gather;
use fabric::{Fabric, FabricError, Payload, Tag};
use half::bf16;
use plan::Rank;

use super::{EPOCH, Ranks};

/// Makes ranks of one epoch whose waits end after a silence.
pub(crate) type Make<'a> = &'a dyn Fn(usize, Duration) -> Ranks;

/// Long enough that a wait which is to be ended otherwise is not ended by it.
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn run(make: Make<'_>) {
    every_dtype_and_size_comes_as_it_was_sent(make);
    tensors_may_be_received_in_any_order(make);
    all_ranks_send_to_all(make);
    all_gather_gives_the_order_of_the_group(make);
    a_rank_sends_to_itself(make);
    an_abort_ends_all_waits_at_once(make);
    a_silent_peer_ends_a_wait_by_the_deadline(make);
    a_rank_that_does_not_exist_is_gone(make);
}

/// Numbers that tell apart tags, senders, receivers and positions.
fn payload(from: Rank, to: Rank, tag: Tag, n_bytes: usize) -> Payload {
    let seed = tag.0.wrapping_mul(0x9E37_79B9).wrapping_add(u64::from(from.0) << 20 | u64::from(to.0) << 8);
    let value = |at: usize| (seed.wrapping_add(at as u64).wrapping_mul(0x2545_F491) >> 7) as u32 as f32;
    match tag.0 % 4 {
        0 => Payload::F32(Arc::new((0..n_bytes / 4).map(value).collect())),
        1 => Payload::F64(Arc::new((0..n_bytes / 8).map(|at| f64::from(value(at)) / 3.0).collect())),
        2 => Payload::Bf16(Arc::new((0..n_bytes / 2).map(|at| bf16::from_f32(value(at))).collect::<Vec<_>>())),
        _ => Payload::Bytes((0..n_bytes).map(|at| value(at) as u64 as u8).collect::<Vec<u8>>().into()),
    }
}

fn every_dtype_and_size_comes_as_it_was_sent(make: Make<'_>) {
    let ranks = make(2, LONG);
    let [a, b] = &ranks.fabrics[..] else { panic!("two ranks were asked for") };
    let sizes = [0, 1, 7, 8, 100, 4096, 4097, 65_537, 524_288, 3 << 20, (5 << 20) + 13];
    thread::scope(|scope| {
        scope.spawn(|| {
            for (size_idx, size) in sizes.into_iter().enumerate() {
                for dtype in 0..4 {
                    let tag = Tag(size_idx as u64 * 4 + dtype);
                    a.send(Rank(1), tag, payload(Rank(0), Rank(1), tag, size)).expect("sent");
                }
            }
        });
        for (size_idx, size) in sizes.into_iter().enumerate() {
            for dtype in 0..4 {
                let tag = Tag(size_idx as u64 * 4 + dtype);
                let came = b.recv(Rank(0), tag).expect("received");
                assert!(came == payload(Rank(0), Rank(1), tag, size), "{size} bytes, tag {tag:?}");
            }
        }
    });
    let odd = [f32::NAN.to_bits(), f32::NEG_INFINITY.to_bits(), (-0.0f32).to_bits(), 0x7f80_0001, 1];
    let values = odd.map(f32::from_bits).to_vec();
    a.send(Rank(1), Tag(1000), Payload::F32(Arc::new(values))).expect("sent");
    let Payload::F32(came) = b.recv(Rank(0), Tag(1000)).expect("received") else { panic!("f32 was sent") };
    assert_eq!(came.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), odd, "bits are not touched");
}

fn tensors_may_be_received_in_any_order(make: Make<'_>) {
    let ranks = make(2, LONG);
    let [a, b] = &ranks.fabrics[..] else { panic!("two ranks were asked for") };
    for tag in (0..50).map(Tag) {
        a.send(Rank(1), tag, payload(Rank(0), Rank(1), tag, 1000)).expect("sent");
    }
    for tag in (0..50).rev().map(Tag) {
        assert_eq!(b.recv(Rank(0), tag), Ok(payload(Rank(0), Rank(1), tag, 1000)));
    }
}

fn all_ranks_send_to_all(make: Make<'_>) {
    everything_comes(&make(5, LONG).fabrics, 20, 40_000);
}

/// Every rank sends `n_tags` tensors of up to `n_bytes` to every other and gets theirs.
pub(crate) fn everything_comes(fabrics: &[Arc<dyn Fabric>], n_tags: u64, n_bytes: usize) {
    let size = |tag: Tag| n_bytes * (tag.0 as usize * 7 % 11) / 10;
    thread::scope(|scope| {
        for fabric in fabrics {
            scope.spawn(move || {
                let me = fabric.rank();
                let others = || (0..fabric.n_ranks() as u16).map(Rank).filter(move |&rank| rank != me);
                for tag in (0..n_tags).map(Tag) {
                    for to in others() {
                        fabric.send(to, tag, payload(me, to, tag, size(tag))).expect("sent");
                    }
                }
                for tag in (0..n_tags).map(Tag) {
                    for from in others() {
                        let came = fabric.recv(from, tag).unwrap_or_else(|error| panic!("{me} from {from}: {error}"));
                        assert!(came == payload(from, me, tag, size(tag)), "{me} from {from}, {tag:?}");
                    }
                }
            });
        }
    });
}

fn all_gather_gives_the_order_of_the_group(make: Make<'_>) {
    let ranks = make(4, LONG);
    let group = [Rank(3), Rank(0), Rank(2)];
    let own = |rank: Rank| payload(rank, rank, Tag(5), 9000);
    let expected: Vec<Payload> = group.map(own).to_vec();
    thread::scope(|scope| {
        for rank in group {
            let (fabric, expected) = (&ranks.fabrics[usize::from(rank.0)], &expected);
            scope.spawn(move || assert_eq!(all_gather(&**fabric, Tag(5), &group, own(rank)).as_ref(), Ok(expected)));
        }
    });
    let outside = all_gather(&*ranks.fabrics[1], Tag(6), &group, own(Rank(1)));
    assert!(matches!(outside, Err(FabricError::PeerGone { peer: Rank(1), .. })), "{outside:?}");
}

fn a_rank_sends_to_itself(make: Make<'_>) {
    let ranks = make(2, LONG);
    let own = Payload::Bytes(Bytes::from_static(b"mine"));
    ranks.fabrics[1].send(Rank(1), Tag(1), own.clone()).expect("sent");
    assert_eq!(ranks.fabrics[1].recv(Rank(1), Tag(1)), Ok(own));
}

fn an_abort_ends_all_waits_at_once(make: Make<'_>) {
    let ranks = make(3, LONG);
    let began = Instant::now();
    let aborted = Err(FabricError::Aborted { epoch: EPOCH });
    thread::scope(|scope| {
        let waits: Vec<_> = ranks.fabrics.iter().map(|fabric| scope.spawn(|| fabric.recv(Rank(0), Tag(9)))).collect();
        (ranks.abort)();
        for wait in waits {
            assert_eq!(wait.join().expect("no panic"), aborted);
        }
    });
    assert!(began.elapsed() < LONG / 4, "ended by the abort and not by the deadline");
    let [a, b, ..] = &ranks.fabrics[..] else { panic!("three ranks were asked for") };
    assert_eq!(a.send(Rank(1), Tag(1), Payload::Bytes(Bytes::new())), aborted.clone().map(|_| ()));
    assert_eq!(b.recv(Rank(0), Tag(1)), aborted);
}

fn a_silent_peer_ends_a_wait_by_the_deadline(make: Make<'_>) {
    let ranks = make(2, Duration::from_millis(120));
    let silent = ranks.fabrics[0].recv(Rank(1), Tag(3));
    let Err(FabricError::Silent { peer: Rank(1), waited_ms }) = silent else { panic!("{silent:?}") };
    assert!(waited_ms >= 120, "{waited_ms} ms");
    // The wait is over, the peer is not.
    let late = Payload::Bytes(Bytes::from_static(b"late"));
    ranks.fabrics[1].send(Rank(0), Tag(3), late.clone()).expect("sent");
    assert_eq!(ranks.fabrics[0].recv(Rank(1), Tag(3)), Ok(late));
}

fn a_rank_that_does_not_exist_is_gone(make: Make<'_>) {
    let ranks = make(2, LONG);
    let sent = ranks.fabrics[0].send(Rank(2), Tag(0), Payload::Bytes(Bytes::new()));
    assert!(matches!(sent, Err(FabricError::PeerGone { peer: Rank(2), .. })), "{sent:?}");
    let received = ranks.fabrics[0].recv(Rank(2), Tag(0));
    assert!(matches!(received, Err(FabricError::PeerGone { peer: Rank(2), .. })), "{received:?}");
}
