//! Values that leave the place the tests compute on and are gathered there again, beside what it computes.

use candle_core::Tensor;
use kernels::attention;
use model::Place;
use model::place::{Gathering, Leaving, Values, bring_back, leave};

use super::{noise, place};

const WIDTH: usize = 144;

fn there(place: &Place, n_rows: usize, seed: u64) -> Tensor {
    place.take(&noise(&[n_rows, WIDTH], seed)).expect("there is room")
}

fn bits(x: &Tensor) -> Vec<u32> {
    let values = bring_back(x).and_then(|x| x.flatten_all()?.to_vec1::<f32>()).expect("comes back");
    values.into_iter().map(f32::to_bits).collect()
}

fn add(all: &mut Gathering, leaving: Leaving) {
    match leaving.wait().expect("leaves") {
        Values::F32(values) => all.add_f32(&values),
        Values::Bf16(values) => all.add_bf16((*values).as_ref()),
    }
    .expect("fits");
}

#[test]
fn values_that_travel_keep_their_bits_while_the_place_computes() {
    let place = place();
    let busy = || {
        let x = there(&place, 300, 1);
        attention(&x, &x, &x, 2).expect("attends")
    };
    // Sizes that grow and shrink: memory that is used again must be neither too short nor copied beyond its end.
    for (round, rows) in [40, 20, 40, 0, 7, 20].into_iter().enumerate() {
        let seed = 10 * round as u64;
        let [first, own, last] = [rows, 13, rows + 3].map(|n| {
            let some = there(&place, n.max(1), seed + n as u64);
            some.narrow(0, 0, n).expect("as many rows")
        });
        let expected = Tensor::cat(&[&first, &own, &last], 0).map(|all| bits(&all)).expect("one after the other");
        let mut results = Vec::new();
        // Two of one size, as keys and values are.
        for _ in 0..2 {
            let before = busy();
            let leaving = [&first, &last].map(|x| leave(x).expect("leaves"));
            let mut all = place.gather(2 * rows + 16, WIDTH).expect("there is room");
            let beside = busy();
            let [leaving_first, leaving_last] = leaving;
            add(&mut all, leaving_first);
            all.add_own(&own).expect("fits");
            add(&mut all, leaving_last);
            results.push(all.whole().expect("all came"));
            drop((before, beside));
        }
        for all in results {
            assert!(bits(&all) == expected, "round {round}: other bits came");
        }
    }
}

#[test]
fn rows_that_are_missing_too_many_or_no_rows_are_errors() {
    let place = place();
    let x = there(&place, 4, 2);
    let gather = || place.gather(6, WIDTH).expect("there is room");
    let mut all = gather();
    all.add_own(&x).expect("fits");
    assert!(all.add_own(&x).is_err(), "two too many");
    assert!(all.whole().is_err(), "two are missing");
    let mut all = gather();
    let other = if all.takes_bf16() { all.add_f32(&[0.0; WIDTH]) } else { all.add_bf16(&[half::bf16::ONE; WIDTH]) };
    assert!(other.is_err(), "of another type");
}
