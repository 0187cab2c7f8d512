//! Sends that wait, and rows in pieces.

use std::sync::mpsc;
use std::time::Duration;

use candle_core::Device;
use fabric::grpc::PortConfig;
use fabric::local::Group;
use model::seam::RowExchange as _;
use plan::Epoch;

use super::*;
use crate::pixels::BandOfPixels;
use crate::turn::Turn;

/// A way to other ranks that has credit when it is told so.
struct Slow(Mutex<mpsc::Receiver<()>>);

impl Fabric for Slow {
    fn rank(&self) -> Rank {
        Rank(0)
    }

    fn n_ranks(&self) -> usize {
        2
    }

    fn epoch(&self) -> Epoch {
        Epoch(1)
    }

    fn send(&self, _to: Rank, _tag: fabric::Tag, _payload: Payload) -> std::result::Result<(), FabricError> {
        let credit = self.0.lock().expect("no thread died").recv_timeout(Duration::from_secs(20));
        credit.map_err(|_| FabricError::Aborted { epoch: Epoch(1) })
    }

    fn try_send(&self, _to: Rank, _tag: fabric::Tag, _payload: &Payload) -> std::result::Result<bool, FabricError> {
        Ok(false)
    }

    fn recv(&self, _from: Rank, _tag: fabric::Tag) -> std::result::Result<Payload, FabricError> {
        Err(FabricError::Aborted { epoch: Epoch(1) })
    }
}

#[test]
fn a_send_that_waits_for_credit_leaves_the_device_to_the_other_branch() {
    let (credit, granted) = mpsc::channel();
    let (slow, turn) = (Slow(Mutex::new(granted)), Turn::default());
    let link = Link::new(&slow);
    let mut held = turn.take();
    std::thread::scope(|scope| {
        let turn = &turn;
        scope.spawn(move || {
            // Credit comes back when the other branch has computed.
            drop(turn.take());
            credit.send(()).expect("the send waits");
        });
        let values = Payload::F32(Arc::new(vec![1.0; 8]));
        link.send(&[Rank(1)], Tag::Pixels, &values, Some(&mut held)).expect("the device was free meanwhile");
    });
}

#[test]
fn rows_arrive_whole_and_in_order_however_they_are_cut() {
    const CHANNELS: usize = 3;
    let bands = [1_usize, 7, 0, 4];
    let order: Vec<_> = (0..).map(Rank).zip(bands).collect();
    let n_cells = bands.iter().sum::<usize>();
    let expected: Vec<f32> = (0..n_cells * CHANNELS).map(|idx| idx as f32 * 0.5).collect();
    for piece_bytes in [1, 24, 36, 1 << 20] {
        let group = Group::new(Epoch(1), bands.len(), Duration::from_secs(20));
        std::thread::scope(|scope| {
            let mut start = 0;
            for (fabric, n) in group.fabrics().into_iter().zip(bands) {
                let own = expected[start * CHANNELS..(start + n) * CHANNELS].to_vec();
                start += n;
                let (order, expected) = (order.clone(), &expected);
                scope.spawn(move || {
                    let (link, turn) = (Link::new(&*fabric).with_pieces_of(piece_bytes), Turn::default());
                    let mut band = BandOfPixels::new(&link, order, turn.take());
                    let own = Tensor::from_vec(own, (n, CHANNELS), &Device::Cpu).expect("its shape fits");
                    for _ in 0..2 {
                        let all = band.gather(own.clone()).expect("all are there");
                        let all = all.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("f32 values");
                        assert_eq!(all, *expected, "pieces of {piece_bytes} bytes");
                    }
                });
            }
        });
    }
}

#[test]
fn no_rows_of_the_largest_picture_make_a_message_over_the_limit() {
    let (_credit, granted) = mpsc::channel();
    let slow = Slow(Mutex::new(granted));
    let link = Link::new(&slow);
    let limit_bytes = PortConfig::default().message_limit_bytes as usize;
    // All but one row of 8192x8192: latent cells of 512 channels; tokens as wide as XL's.
    for (n_rows, row_bytes) in [(1023 * 1024, 512 * 4), (511 * 512, 1152 * 4)] {
        let n_pieces = link.n_pieces(n_rows, row_bytes);
        assert!(n_rows * row_bytes > limit_bytes, "they would not fit in one");
        assert!(link.piece_rows(row_bytes) * row_bytes <= limit_bytes && n_pieces <= 256, "{n_pieces} pieces");
    }
}
