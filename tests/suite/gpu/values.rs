//! Single operations where the tests compute, up to the sizes of a picture of 4096²: the values are the CPU's, and the last
//! rows of many are those rows alone, as they are not where an index runs over. The large ones are for a GPU.

use candle_core::{DType, Tensor};
use kernels::{Conv3x3, Halo, attention};
use model::Place;
use model::place::bring_back;
use model::seam::WholePicture;
use model::vae::{self, Decoder};
use model::weights::{Weights, random};
use plan::VaeSpec;

use super::{noise, place};

/// Fails if `ours` differs from `expected` by more than the type's roundings explain, in parts of the largest value.
fn near(what: &str, place: &Place, ours: &Tensor, expected: &Tensor) {
    let [ours, expected] = [ours, expected].map(values);
    assert_eq!(ours.len(), expected.len(), "{what}");
    assert!(ours.iter().all(|value| value.is_finite()), "{what}: not all values are finite");
    let most = expected.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
    let error = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / most;
    let limit = if there(place, &[1], 0).dtype() == DType::BF16 { 6e-3 } else { 2e-6 };
    println!("{what}: error {error:.2e} of {limit:.0e}");
    assert!(error <= limit, "{what}: error {error:e} of the largest value is over {limit:e}");
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let here = bring_back(tensor).and_then(|tensor| tensor.flatten_all()?.to_vec1());
    here.expect("comes back")
}

fn there(place: &Place, shape: &[usize], seed: u64) -> Tensor {
    place.take(&noise(shape, seed)).expect("there is room")
}

/// The same values on the CPU, rounded as they are there.
fn here(tensor: &Tensor) -> Tensor {
    bring_back(tensor).expect("comes back")
}

fn rows(x: &Tensor, first: usize, n: usize) -> Tensor {
    x.narrow(0, first, n).and_then(|rows| rows.force_contiguous()).expect("has those rows")
}

fn attends_as_the_cpu(place: &Place, queries: usize, keys: usize, (heads, head_width): (usize, usize)) {
    let width = heads * head_width;
    // Scores that differ enough for the running maximum to move.
    let q = place.take(&(noise(&[queries, width], 1) * 3.0).expect("scales")).expect("there is room");
    let [k, v] = [2, 3].map(|seed| there(place, &[keys, width], seed));
    let ours = attention(&q, &k, &v, heads).expect("attends");
    let expected = attention(&here(&q), &here(&k), &here(&v), heads).expect("attends");
    near(&format!("{queries} queries, {keys} keys, {heads} heads of {head_width}"), place, &ours, &expected);
}

fn last_queries_are_themselves(place: &Place, queries: usize, keys: usize, (heads, head_width): (usize, usize)) {
    let n_last = 64.min(queries / 2);
    let q = there(place, &[queries, heads * head_width], 4);
    let [k, v] = [5, 6].map(|seed| there(place, &[keys, heads * head_width], seed));
    let all = attention(&q, &k, &v, heads).expect("attends");
    let alone = attention(&rows(&q, queries - n_last, n_last), &k, &v, heads).expect("attends");
    let last = rows(&all, queries - n_last, n_last);
    assert!(
        values(&last) == values(&alone),
        "the last of {queries} queries of width {head_width} have other bits alone"
    );
}

fn last_pixels_are_themselves_and_the_cpu_s(place: &Place, (n_rows, cols, channels): (usize, usize, usize)) {
    const N_LAST: usize = 5;
    // So many rows over and over that no power of two falls on the same ones.
    const PERIOD: usize = 33;
    let outputs = 8;
    let tile = there(place, &[PERIOD, cols, channels], 7);
    let pieces: Vec<_> = (0..n_rows).step_by(PERIOD).map(|first| rows(&tile, 0, PERIOD.min(n_rows - first))).collect();
    let x = Tensor::cat(&pieces, 0).expect("there is room");
    drop(pieces);
    let (weight, bias) = (there(place, &[outputs, channels, 3, 3], 8), noise(&[outputs], 9));
    let conv = Conv3x3::new(&weight, &bias).expect("is a convolution");
    let first = n_rows - N_LAST;
    let (band, above) = (rows(&x, first, N_LAST), rows(&x, first - 1, 1));
    let all = conv.forward(&x, &Halo::default(), None).expect("convolves");
    drop(x);
    let halo = Halo { above: Some(above.clone()), below: None };
    let alone = conv.forward(&band, &halo, None).expect("convolves");
    let last = rows(&all, first, N_LAST);
    assert!(values(&last) == values(&alone), "the last rows of {n_rows}x{cols}x{channels} have other bits alone");
    let on_cpu = Conv3x3::new(&here(&weight), &bias).expect("is a convolution");
    let halo = Halo { above: Some(here(&above)), below: None };
    let expected = on_cpu.forward(&here(&band), &halo, None).expect("convolves");
    near(&format!("last rows of a convolution of {n_rows}x{cols}x{channels}"), place, &alone, &expected);
}

#[test]
fn small_operations_are_the_cpu_s_and_last_rows_are_themselves() {
    let place = place();
    for heads in [(2, 72), (1, 512)] {
        attends_as_the_cpu(&place, 40, 200, heads);
        last_queries_are_themselves(&place, 130, 70, heads);
    }
    last_pixels_are_themselves_and_the_cpu_s(&place, (70, 9, 16));
}

#[test]
fn small_decodes_in_slabs_give_the_bits_of_one() {
    let place = place();
    let spec = VaeSpec::sdxl_family(&[8, 8, 16, 16], 1, 4);
    let manifest: Vec<_> = vae::manifest(&spec).into_iter().map(|(names, shape)| (names[0].clone(), shape)).collect();
    let dir = tempfile::tempdir().expect("a folder");
    random::write(dir.path(), &manifest, 4).expect("weights can be written");
    let weights = Weights::open(dir.path(), "test").expect("weights can be read").on(place);
    let load = || Decoder::load(&spec, &weights).expect("the decoder loads");
    let decode = |decoder: Decoder| {
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        values(&decoder.decode(&noise(&[4, 5, 3], 6), &mut WholePicture, go_on).expect("decodes"))
    };
    let whole = decode(load());
    for slab_values in [1, 3000] {
        assert!(decode(load().with_slabs_of(slab_values)) == whole, "slabs of {slab_values} give other bits");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn attention_over_65536_keys_is_that_of_the_cpu() {
    for heads in [(2, 72), (1, 512)] {
        attends_as_the_cpu(&place(), 40, 65_536, heads);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn the_last_of_65536_queries_are_those_alone() {
    for heads in [(2, 72), (1, 512)] {
        last_queries_are_themselves(&place(), 65_536, 4096, heads);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn the_last_rows_of_a_convolution_of_2_to_the_32_values_are_those_alone() {
    last_pixels_are_themselves_and_the_cpu_s(&place(), (4096, 4096, 256));
}
