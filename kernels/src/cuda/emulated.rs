//! The GPU's kernels on a CPU: compiled by the C++ compiler with `kernels/cuda/host` in place of the device, given the
//! jobs a device would get, and compared with this crate's own operations.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{Device, Tensor};
use half::bf16;

use super::job::{
    Address, Affine, Attention, Compression, Finish, Finite, Modulation, MomentsOf, Number, Parameters, Product,
};
use crate::{
    Compress, Conv3x3, Epilogue, Halo, Linear, Moments, UpConv, affine_of, apply, attention, layer_norm_modulate,
    moments,
};

#[path = "../../tests/suite/random.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the integration tests, which use more of it")]
mod random;
use random::Random;

const BOTH: [Number; 2] = [Number::F32, Number::Bf16];

type Launch = unsafe extern "C" fn(*const c_char, *const c_uint, c_uint, usize, *const c_void) -> c_int;

/// Compiles the emulator and finds its one function.
fn launcher() -> Launch {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let library = dir.path().join("emulate.so");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let status = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O2",
            "-U_FORTIFY_SOURCE",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-Wno-unknown-pragmas",
        ])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/host/emulate.cpp"))
        .arg("-o")
        .arg(&library)
        .status();
    let status =
        status.unwrap_or_else(|error| panic!("{compiler}: {error}: install a C++ compiler or name one in CXX"));
    assert!(status.success(), "{compiler} refused the emulator");
    let path = CString::new(library.to_str().expect("is UTF-8")).expect("holds no zero");
    // SAFETY: the library was just made from our own source; it runs nothing when loaded and is never unloaded.
    let found = unsafe { libc::dlsym(libc::dlopen(path.as_ptr(), libc::RTLD_NOW), c"launch".as_ptr()) };
    assert!(!found.is_null(), "the emulator has no `launch`");
    // SAFETY: `launch` has this signature: host/emulate.cpp.
    unsafe { std::mem::transmute::<*mut c_void, Launch>(found) }
}

impl Number {
    fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// Runs a job to its end. The emulator has one device: jobs wait for each other.
fn run<P: Parameters>(number: Number, parameters: &P) {
    static LAUNCH: OnceLock<Mutex<Launch>> = OnceLock::new();
    let launch = LAUNCH.get_or_init(|| Mutex::new(launcher())).lock().unwrap_or_else(PoisonError::into_inner);
    let job = parameters.job(number);
    let name = CString::new(job.kernel.clone()).expect("holds no zero");
    // SAFETY: the parameters are the struct the kernel takes, and their addresses are of buffers the test keeps.
    let status = unsafe {
        launch(
            name.as_ptr(),
            job.blocks.as_ptr(),
            job.threads,
            job.shared_bytes as usize,
            std::ptr::from_ref(parameters).cast(),
        )
    };
    assert_eq!(status, 0, "no kernel {}", job.kernel);
}

/// Memory of the device, aligned as its own is.
struct Buffer {
    number: Number,
    len: usize,
    values: Vec<u128>,
}

impl Buffer {
    /// Room for `len` values, none of them a number yet.
    fn room(number: Number, len: usize) -> Self {
        Self { number, len, values: vec![u128::MAX; (len * number.bytes()).div_ceil(16)] }
    }

    fn of(number: Number, values: &[f32]) -> Self {
        let mut buffer = Self::room(number, values.len());
        let bytes: Vec<u8> = match number {
            Number::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Number::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        };
        for (to, from) in buffer.values.iter_mut().zip(bytes.chunks(16)) {
            let mut line = [0; 16];
            line[..from.len()].copy_from_slice(from);
            *to = u128::from_le_bytes(line);
        }
        buffer
    }

    fn of_tensor(number: Number, tensor: &Tensor) -> Self {
        Self::of(number, &values(tensor))
    }

    fn f32(values: &[f32]) -> Self {
        Self::of(Number::F32, values)
    }

    fn address(&self) -> Address {
        self.values.as_ptr() as Address
    }

    fn bytes(&self) -> Vec<u8> {
        let all = self.values.iter().flat_map(|line| line.to_le_bytes());
        all.take(self.len * self.number.bytes()).collect()
    }

    fn read(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.number {
            Number::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Number::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|tensor| tensor.to_vec1()).expect("f32 on the cpu")
}

/// `tensor` as the device stores it.
fn stored(number: Number, tensor: &Tensor) -> Tensor {
    let values = Buffer::of_tensor(number, tensor).read();
    Tensor::from_vec(values, tensor.dims(), &Device::Cpu).expect("has its shape")
}

/// Fails if the largest difference is over what the type's roundings explain, in parts of the largest value.
fn near(number: Number, what: &str, ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let most = expected.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
    let error = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(ours.iter().all(|value| value.is_finite()), "{what}: not all values are finite");
    let limit = if number == Number::F32 { 2e-6 } else { 6e-3 };
    assert!(error <= limit * most, "{what}, {number:?}: error {error:e} on values up to {most}");
}

/// A linear layer's or convolution's parameters with nothing before or behind it.
fn product(x: &Buffer, weight: &Buffer, bias: &Buffer, out: &Buffer, axes: [usize; 5]) -> Product {
    let [rows, cols, channels, outputs, taps] = axes;
    Product {
        x: x.address(),
        above: 0,
        below: 0,
        scale: 0,
        shift: 0,
        weight: weight.address(),
        bias: bias.address(),
        residual: 0,
        gate: 0,
        out: out.address(),
        rows: rows as i64,
        cols: cols as i32,
        channels: channels as i32,
        outputs: outputs as i32,
        taps: taps as i32,
        finish: Finish::Plain,
    }
}

#[test]
fn a_linear_layer_on_a_gpu_is_that_of_the_cpu_under_every_epilogue() {
    let random = &mut Random(11);
    for number in BOTH {
        for (rows, inputs, outputs) in [(70, 100, 70), (1, 72, 130), (150, 64, 3)] {
            let [x, weight] = [&[rows, inputs], &[outputs, inputs]].map(|axes| stored(number, &random.tensor(axes)));
            let residual = stored(number, &random.tensor(&[rows, outputs]));
            let (bias, gate) = (random.vector(outputs), random.vector(outputs));
            let bias_tensor = Tensor::new(bias.as_slice(), &Device::Cpu).expect("fits");
            let layer = Linear::new(&weight, Some(&bias_tensor)).expect("fits");
            let [x_there, weight_there, onto] = [&x, &weight, &residual].map(|t| Buffer::of_tensor(number, t));
            let (bias, gate_there) = (Buffer::f32(&bias), Buffer::f32(&gate));
            let gated = Epilogue::Onto { residual: &residual, gate: Some(&gate) };
            let added = Epilogue::Onto { residual: &residual, gate: None };
            for (finish, gate_at, epilogue) in [
                (Finish::Plain, 0, Epilogue::None),
                (Finish::Gelu, 0, Epilogue::Gelu),
                (Finish::Silu, 0, Epilogue::Silu),
                (Finish::Onto, gate_there.address(), gated),
                (Finish::Onto, 0, added),
            ] {
                let out = Buffer::room(number, rows * outputs);
                let plain = product(&x_there, &weight_there, &bias, &out, [rows, 1, inputs, outputs, 1]);
                run(number, &Product { finish, gate: gate_at, residual: onto.address(), ..plain });
                let expected = values(&layer.forward(&x, epilogue).expect("fits"));
                near(number, &format!("{rows}x{inputs} to {outputs}, {finish:?}"), &out.read(), &expected);
            }
        }
    }
}

/// Weights `[outputs, inputs, 3, 3]` in the order of the kernel: `[outputs][tap][inputs]`.
fn by_tap(weight: &Tensor) -> Vec<f32> {
    values(&weight.permute((0, 2, 3, 1)).and_then(|weight| weight.contiguous()).expect("has four axes"))
}

#[test]
fn a_convolution_on_a_gpu_is_that_of_the_cpu_with_norm_halo_and_shortcut() {
    let random = &mut Random(12);
    for number in BOTH {
        for (rows, cols, inputs, outputs) in [(5, 9, 16, 24), (3, 31, 4, 8), (6, 5, 12, 130)] {
            let x = stored(number, &random.tensor(&[rows, cols, inputs]));
            let weight = stored(number, &random.tensor(&[outputs, inputs, 3, 3]));
            let shortcut = stored(number, &random.tensor(&[rows, cols, outputs]));
            let [above, below] = [0, 1].map(|_| stored(number, &random.tensor(&[1, cols, inputs])));
            let bias = random.vector(outputs);
            let (norm_weight, norm_bias) = (random.vector(inputs), random.vector(inputs));
            let moments = moments(std::slice::from_ref(&x), 2, rows).expect("fits");
            let affine = affine_of(&moments, 2, &norm_weight, &norm_bias, 1e-6);
            let bias_tensor = Tensor::new(bias.as_slice(), &Device::Cpu).expect("fits");
            let conv = Conv3x3::new(&weight, &bias_tensor).expect("fits");

            let out = Buffer::room(number, rows * cols * outputs);
            let [x_there, above_there, below_there, onto] =
                [&x, &above, &below, &shortcut].map(|t| Buffer::of_tensor(number, t));
            let weight_there = Buffer::of(number, &by_tap(&weight));
            let (scale, shift) = (Buffer::f32(&affine.scale), Buffer::f32(&affine.shift));
            let bias = Buffer::f32(&bias);
            let bare = product(&x_there, &weight_there, &bias, &out, [rows, cols, inputs, outputs, 9]);
            let check = |what: &str, expected: candle_core::Result<Tensor>, op: Product| {
                run(number, &op);
                let expected = values(&expected.expect("fits"));
                near(number, &format!("{rows}x{cols}, {inputs} to {outputs}, {what}"), &out.read(), &expected);
            };
            check("bare", conv.forward(&x, &Halo::default(), None), bare);
            let all = Product {
                above: above_there.address(),
                below: below_there.address(),
                scale: scale.address(),
                shift: shift.address(),
                residual: onto.address(),
                finish: Finish::Onto,
                ..bare
            };
            let halo = Halo { above: Some(above), below: Some(below) };
            check("with all", conv.forward_onto(&x, &halo, Some(&affine), shortcut.clone()), all);
        }
    }
}

#[test]
fn an_enlarging_convolution_on_a_gpu_is_that_of_the_cpu() {
    let random = &mut Random(13);
    for number in BOTH {
        for (rows, cols, inputs, outputs) in [(3, 5, 8, 16), (4, 7, 12, 9)] {
            let x = stored(number, &random.tensor(&[rows, cols, inputs]));
            let weight = random.tensor(&[outputs, inputs, 3, 3]);
            let below = stored(number, &random.tensor(&[1, cols, inputs]));
            let bias = random.vector(outputs);
            let conv = UpConv::new(&weight, &Tensor::new(bias.as_slice(), &Device::Cpu).expect("fits")).expect("fits");
            let out = Buffer::room(number, 4 * rows * cols * outputs);
            let weight_there = Buffer::of(number, &UpConv::phase_weights(&weight).expect("fits"));
            let [x_there, below_there] = [&x, &below].map(|t| Buffer::of_tensor(number, t));
            let op = product(&x_there, &weight_there, &Buffer::f32(&bias), &out, [rows, cols, inputs, outputs, 4]);
            let bias = Buffer::f32(&bias);
            run(number, &Product { below: below_there.address(), bias: bias.address(), ..op });
            let halo = Halo { above: None, below: Some(below) };
            let expected = values(&conv.forward(&x, &halo).expect("fits"));
            near(number, &format!("{rows}x{cols}, {inputs} to {outputs}"), &out.read(), &expected);
        }
    }
}

#[test]
fn layer_norm_on_a_gpu_is_that_of_the_cpu() {
    let random = &mut Random(14);
    for number in BOTH {
        for (rows, width) in [(9, 144), (4, 70), (1, 1152)] {
            let x = stored(number, &random.tensor(&[rows, width]));
            let (shift, scale) = (random.vector(width), random.vector(width));
            let out = Buffer::room(number, rows * width);
            let x_there = Buffer::of_tensor(number, &x);
            let (shift_there, scale_there) = (Buffer::f32(&shift), Buffer::f32(&scale));
            run(
                number,
                &Modulation {
                    x: x_there.address(),
                    shift: shift_there.address(),
                    scale: scale_there.address(),
                    out: out.address(),
                    rows: rows as i64,
                    width: width as i32,
                    eps: 1e-6,
                },
            );
            let expected = values(&layer_norm_modulate(&x, &shift, &scale, 1e-6).expect("fits"));
            near(number, &format!("{rows} rows of {width}"), &out.read(), &expected);
        }
    }
}

#[test]
fn compressed_keys_on_a_gpu_are_those_of_the_cpu() {
    let random = &mut Random(15);
    for number in BOTH {
        for (rows, cols, width, ratio) in [(4, 6, 144, 2), (7, 9, 40, 3), (4, 9, 72, 4)] {
            let x = stored(number, &random.tensor(&[rows * cols, width]));
            let weight = random.tensor(&[width, 1, ratio, ratio]);
            let [bias, norm_weight, norm_bias] = [0, 1, 2].map(|_| random.tensor(&[width]));
            let op = Compress::new(&weight, &bias, &norm_weight, &norm_bias).expect("fits");
            let tokens = (rows / ratio) * (cols / ratio);
            let out = Buffer::room(number, tokens * width);
            let x_there = Buffer::of_tensor(number, &x);
            let taps = Buffer::f32(&op.taps);
            let [bias, norm_weight, norm_bias] = [&op.bias, &op.norm_weight, &op.norm_bias].map(|v| Buffer::f32(v));
            run(
                number,
                &Compression {
                    x: x_there.address(),
                    taps: taps.address(),
                    bias: bias.address(),
                    norm_weight: norm_weight.address(),
                    norm_bias: norm_bias.address(),
                    out: out.address(),
                    tokens: tokens as i64,
                    cols: cols as i32,
                    width: width as i32,
                    ratio: ratio as i32,
                    eps: 1e-5,
                },
            );
            let expected = values(&op.forward(&x, cols).expect("fits"));
            near(number, &format!("{rows}x{cols} tokens of {width}, ratio {ratio}"), &out.read(), &expected);
        }
    }
}

#[test]
fn group_norm_on_a_gpu_is_that_of_the_cpu() {
    let random = &mut Random(16);
    for number in BOTH {
        for (rows, cols, channels, groups, block_rows) in [(6, 11, 24, 8, 2), (4, 33, 32, 4, 4)] {
            // A picture with a strong gradient from top to bottom, as a sky over ground has.
            let slope = (0..rows).map(|row| row as f32 * 20.0).collect::<Vec<_>>();
            let slope = Tensor::from_vec(slope, (rows, 1, 1), &Device::Cpu).expect("fits");
            let x = random.tensor(&[rows, cols, channels]).broadcast_add(&slope).expect("fits");
            let x = stored(number, &x);
            let (x_there, n_blocks) = (Buffer::of_tensor(number, &x), rows / block_rows);
            let partials = vec![f64::NAN; n_blocks * groups * 3];
            run(
                number,
                &MomentsOf {
                    x: x_there.address(),
                    out: partials.as_ptr() as Address,
                    pixels: (block_rows * cols) as i64,
                    channels: channels as i32,
                    groups: groups as i32,
                    n_blocks: n_blocks as i64,
                },
            );
            let ours: Vec<_> =
                partials.chunks_exact(3).map(|p| Moments { count: p[0], mean: p[1], m2: p[2] }).collect();
            let expected = moments(std::slice::from_ref(&x), groups, block_rows).expect("fits");
            for (ours, expected) in ours.iter().zip(&expected) {
                assert_eq!(ours.count, expected.count);
                assert!(
                    (ours.mean - expected.mean).abs() <= 1e-6 * (1.0 + expected.mean.abs()),
                    "{ours:?} {expected:?}"
                );
                assert!((ours.m2 / expected.m2 - 1.0).abs() <= 1e-5, "{ours:?} {expected:?}");
            }

            let affine = affine_of(&ours, groups, &random.vector(channels), &random.vector(channels), 1e-6);
            let (scale, shift) = (Buffer::f32(&affine.scale), Buffer::f32(&affine.shift));
            let out = Buffer::room(number, rows * cols * channels);
            run(
                number,
                &Affine {
                    x: x_there.address(),
                    scale: scale.address(),
                    shift: shift.address(),
                    out: out.address(),
                    n: (rows * cols * channels) as i64,
                    channels: channels as i32,
                },
            );
            near(number, "affine", &out.read(), &values(&apply(&x, &affine).expect("fits")));
        }
    }
}

#[test]
fn a_value_that_is_no_number_is_found_on_a_gpu() {
    for number in BOTH {
        for (fault, expected) in [(None, 0), (Some(f32::NAN), 1), (Some(f32::NEG_INFINITY), 1)] {
            let mut values = vec![f32::MAX / 2.0; 700];
            values.extend(fault);
            let (x, found) = (Buffer::of(number, &values), [0_u32]);
            let fault = found.as_ptr() as Address;
            run(number, &Finite { x: x.address(), fault, n: values.len() as i64 });
            // SAFETY: the array is alive; the kernel may have written to it behind the compiler's back.
            assert_eq!(unsafe { std::ptr::read_volatile(found.as_ptr()) }, expected, "{number:?}, {values:?}");
        }
    }
}

/// `queries` rows of attention on the device, as stored bytes.
fn attend(number: Number, [q, k, v]: [&Tensor; 3], heads: usize) -> Buffer {
    let (n_queries, width) = q.dims2().expect("has two axes");
    let out = Buffer::room(number, n_queries * width);
    let there = [q, k, v].map(|tensor| Buffer::of_tensor(number, tensor));
    run(
        number,
        &Attention {
            q: there[0].address(),
            k: there[1].address(),
            v: there[2].address(),
            out: out.address(),
            n_queries: n_queries as i64,
            n_keys: k.dim(0).expect("has rows") as i64,
            width: width as i32,
            head_width: (width / heads) as i32,
        },
    );
    out
}

#[test]
fn attention_on_a_gpu_is_that_of_the_cpu_and_its_rows_do_not_see_each_other() {
    let random = &mut Random(17);
    let widths = [(72, 2), (16, 4), (40, 3), (64, 1), (128, 1), (512, 1), (24, 2)];
    let cases = widths.iter().map(|of| (Number::Bf16, *of)).chain([(Number::F32, (72, 2)), (Number::F32, (512, 1))]);
    for (number, (d, heads)) in cases {
        for (n_queries, n_keys) in [(70, 200), (9, 5)] {
            let what = format!("{n_queries} queries, {n_keys} keys, {heads} heads of {d}");
            // Scores that differ enough for the running maximum to move.
            let q = (random.tensor(&[n_queries, heads * d]) * 3.0).expect("scales");
            let q = stored(number, &q);
            let [k, v] = [0, 1].map(|_| stored(number, &random.tensor(&[n_keys, heads * d])));
            let all = attend(number, [&q, &k, &v], heads);
            near(number, &what, &all.read(), &values(&attention(&q, &k, &v, heads).expect("fits")));

            let (first, len) = (n_queries / 3, n_queries / 2);
            let some = attend(number, [&q.narrow(0, first, len).expect("inside"), &k, &v], heads);
            let line = heads * d * number.bytes();
            assert_eq!(some.bytes(), all.bytes()[first * line..][..len * line], "{what}: rows apart have other bits");
        }
    }
}
