//! No row depends on the rows beside it: random cuts of every operation, on one thread and on two, against the
//! whole, bit by bit.

use candle_core::Tensor;
use kernels::{
    Compress, Conv3x3, Epilogue, Halo, Linear, Mlp, UpConv, affine_of, attention, layer_norm_modulate, moments,
};

use crate::random::{Random, bits};

/// Runs `check` on one and on two threads with a few seeds, which are printed.
fn on_threads(check: impl Fn(&mut Random) + Sync) {
    for n_threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("a pool");
        for seed in 0..6 {
            println!("seed {seed}, {n_threads} threads");
            pool.install(|| check(&mut Random(seed)));
        }
    }
}

/// Bits of the whole on this test's other thread count.
fn elsewhere(run: impl Fn() -> Tensor + Sync) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
    pool.install(|| bits(&run()))
}

/// Rows `first..first + len` of each tensor through `run`, part by part, against all rows at once.
fn check_rows(random: &mut Random, inputs: &[&Tensor], unit: usize, run: impl Fn(&[Tensor]) -> Tensor + Sync) {
    let whole: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
    let expected = elsewhere(|| run(&whole));
    let n = inputs[0].dim(0).expect("rows");
    let mut parts = Vec::new();
    for (first, len) in random.cuts(n, unit) {
        let rows = |input: &&Tensor| input.narrow(0, first, len).and_then(|rows| rows.contiguous()).expect("rows");
        parts.extend(bits(&run(&inputs.iter().map(rows).collect::<Vec<_>>())));
    }
    assert_eq!(parts, expected);
}

#[test]
fn linear_rows_are_independent() {
    on_threads(|random| {
        for (inputs, outputs) in [(1152, 1152), (300, 70), (17, 3), (1152, 33)] {
            let layer =
                Linear::new(&random.tensor(&[outputs, inputs]), Some(&random.tensor(&[outputs]))).expect("fits");
            let (x, residual) = (random.tensor(&[211, inputs]), random.tensor(&[211, outputs]));
            let gate = random.vector(outputs);
            check_rows(random, &[&x, &residual], 1, |rows| {
                let onto = Epilogue::Onto { residual: &rows[1], gate: Some(&gate) };
                layer.forward(&rows[0], onto).expect("fits")
            });
        }
    });
}

#[test]
fn mlp_rows_are_independent() {
    on_threads(|random| {
        let widen = Linear::new(&random.tensor(&[400, 100]), Some(&random.tensor(&[400]))).expect("fits");
        let narrow = Linear::new(&random.tensor(&[100, 400]), Some(&random.tensor(&[100]))).expect("fits");
        let (mlp, x) = (Mlp { widen, narrow }, random.tensor(&[450, 100]));
        check_rows(random, &[&x], 1, |rows| {
            mlp.forward(&rows[0], Epilogue::Onto { residual: &rows[0], gate: None }).expect("fits")
        });
    });
}

#[test]
fn normalised_rows_are_independent() {
    on_threads(|random| {
        let (x, shift, scale) = (random.tensor(&[75, 90]), random.vector(90), random.vector(90));
        check_rows(random, &[&x], 1, |rows| layer_norm_modulate(&rows[0], &shift, &scale, 1e-6).expect("fits"));
    });
}

#[test]
fn queries_are_independent() {
    on_threads(|random| {
        for (heads, d, n_keys) in [(2, 72, 400), (3, 40, 168), (1, 512, 37), (2, 5, 1)] {
            let (q, k, v) = (
                random.tensor(&[150, heads * d]),
                random.tensor(&[n_keys, heads * d]),
                random.tensor(&[n_keys, heads * d]),
            );
            check_rows(random, &[&q], 1, |rows| attention(&rows[0], &k, &v, heads).expect("fits"));
        }
    });
}

#[test]
fn compression_of_whole_kernels_is_independent() {
    on_threads(|random| {
        for (ratio, cols) in [(2, 11), (3, 9), (4, 13)] {
            let width = 90;
            let compress = Compress::new(
                &random.tensor(&[width, 1, ratio, ratio]),
                &random.tensor(&[width]),
                &random.tensor(&[width]),
                &random.tensor(&[width]),
            )
            .expect("fits");
            let x = random.tensor(&[(7 * ratio + 1) * cols, width]);
            check_rows(random, &[&x], ratio * cols, |rows| compress.forward(&rows[0], cols).expect("fits"));
        }
    });
}

/// The row of `x` just outside a band, if the picture has one.
fn halo(x: &Tensor, first: usize, len: usize) -> Halo {
    let row = |row: usize| x.narrow(0, row, 1).and_then(|row| row.contiguous()).expect("a row");
    let n = x.dim(0).expect("rows");
    Halo { above: (first > 0).then(|| row(first - 1)), below: (first + len < n).then(|| row(first + len)) }
}

fn check_bands(random: &mut Random, x: &Tensor, run: impl Fn(Tensor, &Halo, (usize, usize)) -> Tensor + Sync) {
    let n = x.dim(0).expect("rows");
    let expected = elsewhere(|| run(x.force_contiguous().expect("a copy"), &Halo::default(), (0, n)));
    let mut parts = Vec::new();
    for (first, len) in random.cuts(n, 1) {
        let band = x.narrow(0, first, len).and_then(|band| band.force_contiguous()).expect("a band");
        parts.extend(bits(&run(band, &halo(x, first, len), (first, len))));
    }
    assert_eq!(parts, expected);
}

#[test]
fn bands_of_a_convolution_are_independent() {
    on_threads(|random| {
        for (cols, channels, groups) in [(13, 24, 4), (300, 16, 8), (8, 300, 10)] {
            let x = random.tensor(&[21, cols, channels]);
            let conv =
                Conv3x3::new(&random.tensor(&[channels, channels, 3, 3]), &random.tensor(&[channels])).expect("fits");
            let shortcut = random.tensor(&[21, cols, channels]);
            let (weight, bias) = (random.vector(channels), random.vector(channels));
            let partials = moments(std::slice::from_ref(&x), groups, 1).expect("fits");
            let norm = affine_of(&partials, groups, &weight, &bias, 1e-6);
            let rows = |(first, len): (usize, usize)| {
                shortcut.narrow(0, first, len).and_then(|rows| rows.force_contiguous()).expect("rows")
            };
            check_bands(random, &x, |band, halo, _| conv.forward(&band, halo, None).expect("fits"));
            check_bands(random, &x, |band, halo, at| {
                conv.forward_onto(&band, halo, Some(&norm), rows(at)).expect("fits")
            });
        }
    });
}

#[test]
fn bands_of_an_enlarging_convolution_are_independent() {
    on_threads(|random| {
        for (cols, channels) in [(9, 40), (220, 8)] {
            let x = random.tensor(&[17, cols, channels]);
            let conv = UpConv::new(&random.tensor(&[channels + 3, channels, 3, 3]), &random.tensor(&[channels + 3]))
                .expect("fits");
            check_bands(random, &x, |band, halo, _| conv.forward(&band, halo).expect("fits"));
        }
    });
}

#[test]
fn partial_moments_of_bands_are_those_of_the_whole() {
    on_threads(|random| {
        let x = random.tensor(&[12, 130, 24]);
        let whole = moments(std::slice::from_ref(&x), 4, 2).expect("fits");
        let band = |(first, len)| x.narrow(0, first, len).and_then(|band| band.contiguous()).expect("a band");
        let bands: Vec<_> = random.cuts(12, 2).into_iter().map(band).collect();
        let one_by_one: Vec<_> =
            bands.iter().flat_map(|band| moments(std::slice::from_ref(band), 4, 2).expect("fits")).collect();
        assert_eq!(one_by_one, whole);
        assert_eq!(moments(&bands, 4, 2).expect("fits"), whole);
    });
}
