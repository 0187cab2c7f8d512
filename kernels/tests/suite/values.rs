//! Each kernel against the plain formula in f64, or against candle's own slow operation.

use candle_core::{DType, Device, Tensor};
use kernels::{
    Compress, Conv3x3, Epilogue, Halo, Linear, Mlp, UpConv, affine_of, apply, attention, layer_norm_modulate, moments,
};

use crate::random::Random;

fn to_f64(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all());
    tensor.and_then(|tensor| tensor.to_vec1()).expect("f64 values")
}

/// Fails if the largest difference is over `limit` of the largest expected value.
fn near(ours: &Tensor, expected: &[f64], limit: f64) {
    let ours = to_f64(ours);
    assert_eq!(ours.len(), expected.len());
    let most = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    let error = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(error <= limit * most, "error {error:e} on values up to {most}");
}

fn product(x: &[f64], w: &[f64], inputs: usize, bias: &[f64]) -> Vec<f64> {
    let rows = x.chunks_exact(inputs);
    rows.flat_map(|x| {
        w.chunks_exact(inputs).zip(bias).map(|(w, bias)| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + bias)
    })
    .collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

#[test]
fn a_linear_layer_is_its_formula_under_every_epilogue() {
    let random = &mut Random(1);
    for (rows, inputs, outputs) in [(37, 100, 70), (1, 1152, 64), (200, 300, 3)] {
        let (x, w, b) = (random.tensor(&[rows, inputs]), random.tensor(&[outputs, inputs]), random.tensor(&[outputs]));
        let residual = random.tensor(&[rows, outputs]);
        let gate = random.vector(outputs);
        let layer = Linear::new(&w, Some(&b)).expect("fits");
        let plain = product(&to_f64(&x), &to_f64(&w), inputs, &to_f64(&b));
        let check = |epilogue, expected: Vec<f64>| near(&layer.forward(&x, epilogue).expect("fits"), &expected, 1e-6);
        check(Epilogue::None, plain.clone());
        check(Epilogue::Gelu, plain.iter().map(|&y| gelu(y)).collect());
        check(Epilogue::Silu, plain.iter().map(|&y| silu(y)).collect());
        let gated = plain.iter().zip(to_f64(&residual)).enumerate();
        let gated = gated.map(|(idx, (y, onto))| onto + y * f64::from(gate[idx % outputs])).collect();
        check(Epilogue::Onto { residual: &residual, gate: Some(&gate) }, gated);
    }
}

#[test]
fn an_mlp_is_two_linear_layers_with_gelu_between() {
    let random = &mut Random(2);
    let layer = |random: &mut Random, outputs, inputs| {
        Linear::new(&random.tensor(&[outputs, inputs]), Some(&random.tensor(&[outputs]))).expect("fits")
    };
    let mlp = Mlp { widen: layer(random, 200, 50), narrow: layer(random, 50, 200) };
    let x = random.tensor(&[301, 50]);
    let hidden = mlp.widen.forward(&x, Epilogue::Gelu).expect("fits");
    let expected = mlp.narrow.forward(&hidden, Epilogue::None).expect("fits");
    near(&mlp.forward(&x, Epilogue::None).expect("fits"), &to_f64(&expected), 1e-7);
}

#[test]
fn layer_norm_is_its_formula_with_rows_far_from_zero() {
    let random = &mut Random(3);
    let width = 90;
    let x = (random.tensor(&[9, width]) + 40.0).expect("a sum");
    let (shift, scale) = (random.vector(width), random.vector(width));
    let mut expected = Vec::new();
    for row in to_f64(&x).chunks_exact(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        expected.extend(
            row.iter().enumerate().map(|(i, x)| {
                (x - mean) / (variance + 1e-6).sqrt() * (1.0 + f64::from(scale[i])) + f64::from(shift[i])
            }),
        );
    }
    near(&layer_norm_modulate(&x, &shift, &scale, 1e-6).expect("fits"), &expected, 1e-5);
}

fn naive_attention(q: &[f64], k: &[f64], v: &[f64], heads: usize, d: usize) -> Vec<f64> {
    let width = heads * d;
    let mut out = vec![0.0; q.len()];
    for (query, q) in q.chunks_exact(width).enumerate() {
        for head in 0..heads {
            let of = |row: &[f64], channel: usize| row[head * d + channel];
            let scores: Vec<f64> = k
                .chunks_exact(width)
                .map(|k| (0..d).map(|c| of(q, c) * of(k, c)).sum::<f64>() / (d as f64).sqrt())
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (weight, v) in weights.iter().zip(v.chunks_exact(width)) {
                for channel in 0..d {
                    out[query * width + head * d + channel] += weight / total * of(v, channel);
                }
            }
        }
    }
    out
}

#[test]
fn attention_is_softmax_over_all_keys_for_any_head_width() {
    let random = &mut Random(4);
    for (heads, d, n_keys) in [(2, 72, 400), (3, 40, 168), (1, 512, 169), (2, 24, 1), (1, 7, 1000)] {
        // Scores of ±20 and more, so that maxima move from block to block.
        let q = (random.tensor(&[41, heads * d]) * 8.0).expect("a product");
        let (k, v) = (random.tensor(&[n_keys, heads * d]), random.tensor(&[n_keys, heads * d]));
        let expected = naive_attention(&to_f64(&q), &to_f64(&k), &to_f64(&v), heads, d);
        near(&attention(&q, &k, &v, heads).expect("fits"), &expected, 5e-6);
    }
}

#[test]
fn a_value_that_is_no_number_comes_through_attention() {
    let random = &mut Random(5);
    let (q, v) = (random.tensor(&[3, 72]), random.tensor(&[200, 72]));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut k = random.vector(200 * 72);
        k[77 * 72] = bad;
        let k = Tensor::from_vec(k, (200, 72), &Device::Cpu).expect("fits");
        let out = attention(&q, &k, &v, 1).and_then(|out| out.flatten_all()?.to_vec1::<f32>()).expect("fits");
        assert!(out.iter().any(|value| !value.is_finite()), "a key of {bad} vanished");
    }
}

/// `[rows, cols, channels]` to candle's `[1, channels, rows, cols]`.
fn planes(x: &Tensor) -> Tensor {
    x.permute((2, 0, 1)).and_then(|x| x.unsqueeze(0)?.contiguous()).expect("planes")
}

fn from_planes(x: &Tensor) -> Vec<f64> {
    to_f64(&x.squeeze(0).and_then(|x| x.permute((1, 2, 0))?.contiguous()).expect("pixels"))
}

fn candle_conv(x: &Tensor, w: &Tensor, b: &Tensor) -> Tensor {
    let out = x.conv2d(w, 1, 1, 1, 1).expect("a convolution");
    out.broadcast_add(&b.reshape((1, (), 1, 1)).expect("a bias")).expect("a sum")
}

#[test]
fn a_convolution_is_candle_s() {
    let random = &mut Random(6);
    for (rows, cols, inputs, outputs) in [(9, 13, 24, 40), (5, 300, 16, 3), (1, 1, 4, 8), (7, 5, 300, 33)] {
        let x = random.tensor(&[rows, cols, inputs]);
        let (w, b) = (random.tensor(&[outputs, inputs, 3, 3]), random.tensor(&[outputs]));
        let conv = Conv3x3::new(&w, &b).expect("fits");
        let ours = conv.forward(&x, &Halo::default(), None).expect("fits");
        near(&ours, &from_planes(&candle_conv(&planes(&x), &w, &b)), 3e-6);
    }
}

#[test]
fn a_convolution_normalises_first_and_is_added_onto_a_shortcut() {
    let random = &mut Random(7);
    let (rows, cols, channels, groups) = (70, 30, 32, 8);
    let x = ((random.tensor(&[rows, cols, channels]) * 3.0).and_then(|x| x + 5.0)).expect("values off zero");
    let (w, b) = (random.tensor(&[channels, channels, 3, 3]), random.tensor(&[channels]));
    let (weight, bias) = (random.vector(channels), random.vector(channels));
    let affine = affine_of(&moments(std::slice::from_ref(&x), groups, 2).expect("fits"), groups, &weight, &bias, 1e-6);

    let per_group = channels / groups;
    let values = to_f64(&x);
    let mut normal = vec![0.0; values.len()];
    for group in 0..groups {
        let of_group = |idx: usize| idx % channels / per_group == group;
        let members: Vec<f64> = (0..values.len()).filter(|&idx| of_group(idx)).map(|idx| values[idx]).collect();
        let mean = members.iter().sum::<f64>() / members.len() as f64;
        let variance = members.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / members.len() as f64;
        for idx in (0..values.len()).filter(|&idx| of_group(idx)) {
            let (weight, bias) = (f64::from(weight[idx % channels]), f64::from(bias[idx % channels]));
            normal[idx] = (values[idx] - mean) / (variance + 1e-6).sqrt() * weight + bias;
        }
    }
    near(&apply(&x, &affine).expect("fits"), &normal, 2e-6);

    let active: Vec<f32> = normal.iter().map(|&x| silu(x) as f32).collect();
    let active = Tensor::from_vec(active, (rows, cols, channels), x.device()).expect("fits");
    let expected = from_planes(&candle_conv(&planes(&active), &w, &b).add(&planes(&x)).expect("a sum"));
    let conv = Conv3x3::new(&w, &b).expect("fits");
    let shortcut = x.force_contiguous().expect("a copy");
    near(&conv.forward_onto(&x, &Halo::default(), Some(&affine), shortcut).expect("fits"), &expected, 1e-5);
}

#[test]
fn an_enlarging_convolution_is_nearest_neighbour_then_convolution() {
    let random = &mut Random(8);
    let x = random.tensor(&[6, 11, 24]);
    let (w, b) = (random.tensor(&[40, 24, 3, 3]), random.tensor(&[40]));
    let large = planes(&x).upsample_nearest2d(12, 22).expect("an enlargement");
    let ours = UpConv::new(&w, &b).expect("fits").forward(&x, &Halo::default()).expect("fits");
    near(&ours, &from_planes(&candle_conv(&large, &w, &b)), 3e-6);
}

#[test]
fn compression_drops_what_does_not_fill_a_kernel() {
    let random = &mut Random(9);
    let (rows, cols, width, ratio) = (7, 5, 20, 2);
    let x = random.tensor(&[rows * cols, width]);
    let (w, b) = (random.tensor(&[width, 1, ratio, ratio]), random.tensor(&[width]));
    let (nw, nb) = (random.tensor(&[width]), random.tensor(&[width]));
    let grid = planes(&x.reshape((rows, cols, width)).expect("a grid"));
    let grid = grid.narrow(2, 0, 6).and_then(|grid| grid.narrow(3, 0, 4)?.contiguous()).expect("whole kernels");
    let conv = grid.conv2d(&w, 0, ratio, 1, width).expect("a convolution");
    let conv = conv.broadcast_add(&b.reshape((1, (), 1, 1)).expect("a bias")).expect("a sum");
    let mut expected = from_planes(&conv);
    for row in expected.chunks_exact_mut(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        for (x, (w, b)) in row.iter_mut().zip(to_f64(&nw).into_iter().zip(to_f64(&nb))) {
            *x = (*x - mean) / (variance + 1e-5).sqrt() * w + b;
        }
    }
    let ours = Compress::new(&w, &b, &nw, &nb).expect("fits").forward(&x, cols).expect("fits");
    assert_eq!(ours.dims(), [6, width]);
    near(&ours, &expected, 1e-5);
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let random = &mut Random(10);
    let layer = Linear::new(&random.tensor(&[8, 4]), None).expect("fits");
    assert!(layer.forward(&random.tensor(&[3, 5]), Epilogue::None).is_err());
    let residual = random.tensor(&[2, 8]);
    assert!(layer.forward(&random.tensor(&[3, 4]), Epilogue::Onto { residual: &residual, gate: None }).is_err());
    let (q, k) = (random.tensor(&[3, 8]), random.tensor(&[0, 8]));
    assert!(attention(&q, &k, &k, 2).is_err());
    assert!(attention(&q, &q, &q, 3).is_err());
    let conv = Conv3x3::new(&random.tensor(&[4, 4, 3, 3]), &random.tensor(&[4])).expect("fits");
    let halo = Halo { above: Some(random.tensor(&[1, 2, 4])), below: None };
    assert!(conv.forward(&random.tensor(&[2, 3, 4]), &halo, None).is_err());
}

/// Vector loads do not check lengths: what is too short must be refused before.
#[test]
fn weights_that_do_not_fit_each_other_are_errors() {
    let random = &mut Random(11);
    let layer = Linear::new(&random.tensor(&[8, 4]), None).expect("fits");
    let (x, residual) = (random.tensor(&[3, 4]), random.tensor(&[3, 8]));
    for len in [0, 7, 9] {
        let gate = random.vector(len);
        let gated = Epilogue::Onto { residual: &residual, gate: Some(&gate) };
        assert!(layer.forward(&x, gated).is_err(), "a gate of {len}");
    }
    assert!(Linear::new(&random.tensor(&[8, 4]), Some(&random.tensor(&[7]))).is_err());
    for (weight, bias) in
        [([4, 4, 3, 3], 3), ([4, 4, 3, 3], 5), ([4, 4, 5, 5], 4), ([4, 4, 1, 1], 4), ([4, 4, 3, 2], 4)]
    {
        let (weight, bias) = (random.tensor(&weight), random.tensor(&[bias]));
        assert!(Conv3x3::new(&weight, &bias).is_err(), "{:?} and {:?}", weight.dims(), bias.dims());
        assert!(UpConv::new(&weight, &bias).is_err(), "{:?} and {:?}", weight.dims(), bias.dims());
    }
    let vector = random.tensor(&[6]);
    for weight in [[6, 1, 2, 3], [6, 2, 2, 2], [6, 1, 0, 0], [5, 1, 2, 2]] {
        assert!(Compress::new(&random.tensor(&weight), &vector, &vector, &vector).is_err(), "{weight:?}");
    }
}

#[test]
fn nothing_at_all_is_an_error_and_no_panic() {
    let random = &mut Random(12);
    let empty = |axes: &[usize]| Tensor::zeros(axes, DType::F32, &Device::Cpu).expect("an empty tensor");
    assert!(Linear::new(&empty(&[8, 0]), None).is_err());
    assert!(Linear::new(&empty(&[0, 8]), None).is_err());
    assert!(attention(&empty(&[3, 0]), &empty(&[3, 0]), &empty(&[3, 0]), 2).is_err());
    assert!(layer_norm_modulate(&empty(&[3, 0]), &[], &[], 1e-6).is_err());
    assert!(Conv3x3::new(&empty(&[4, 0, 3, 3]), &random.tensor(&[4])).is_err());
    assert!(UpConv::new(&empty(&[0, 4, 3, 3]), &empty(&[0])).is_err());
    let (w, b) = (random.tensor(&[4, 4, 3, 3]), random.tensor(&[4]));
    let no_pixels = empty(&[3, 0, 4]);
    let conv = Conv3x3::new(&w, &b).expect("fits");
    assert!(conv.forward(&no_pixels, &Halo::default(), None).is_err());
    assert!(UpConv::new(&w, &b).expect("fits").forward(&no_pixels, &Halo::default()).is_err());
    assert!(moments(std::slice::from_ref(&no_pixels), 2, 1).is_err());
    assert!(moments(&[random.tensor(&[2, 2, 4])], 0, 1).is_err());
    assert!(moments(&[random.tensor(&[2, 2, 4])], 2, 0).is_err());
    let affine = affine_of(&moments(&[random.tensor(&[2, 2, 4])], 2, 1).expect("fits"), 2, &[1.0; 4], &[0.0; 4], 1e-6);
    assert!(apply(&no_pixels, &affine).is_err());
    let compress = Compress::new(&random.tensor(&[4, 1, 2, 2]), &b, &b, &b).expect("fits");
    assert!(compress.forward(&random.tensor(&[6, 4]), 0).is_err());
}

#[test]
fn a_convolution_is_added_onto_what_has_its_shape_and_is_not_its_input() {
    let random = &mut Random(13);
    let conv = Conv3x3::new(&random.tensor(&[4, 4, 3, 3]), &random.tensor(&[4])).expect("fits");
    let x = random.tensor(&[2, 3, 4]);
    let refused = |onto: Tensor| conv.forward_onto(&x, &Halo::default(), None, onto).is_err();
    assert!(refused(x.clone()));
    assert!(refused(random.tensor(&[3, 2, 4])));
    assert!(!refused(random.tensor(&[2, 3, 4])));
    let onto = random.tensor(&[2, 3, 4]);
    let halo = Halo { above: None, below: Some(onto.narrow(0, 0, 1).expect("a row")) };
    assert!(conv.forward_onto(&x, &halo, None, onto).is_err());
}
