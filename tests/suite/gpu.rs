//! Where the tests of whole renders compute: on the CPU, or on the GPU that `FRESCO_TEST_DEVICE` names (`cuda:0`, or
//! `cuda:0 f32`) when the tests are built with the feature `cuda`. And what is asked of a GPU alone.

use candle_core::Tensor;
use model::Place;

mod travel;
mod values;

/// The place asked for.
pub(crate) fn place() -> Place {
    match std::env::var("FRESCO_TEST_DEVICE") {
        Err(_) => Place::default(),
        Ok(asked) => on_gpu(&asked),
    }
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(asked: &str) -> Place {
    panic!("FRESCO_TEST_DEVICE `{asked}`: these tests were built without the feature `cuda`")
}

#[cfg(feature = "cuda")]
fn on_gpu(asked: &str) -> Place {
    let (device, dtype) = asked.split_once(' ').unwrap_or((asked, "bf16"));
    let ordinal = device.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
    let ordinal = ordinal.unwrap_or_else(|| panic!("FRESCO_TEST_DEVICE `{asked}` is not cuda:N or `cuda:N f32`"));
    let place = Place::new(kernels::gpu(ordinal).expect("the gpu is there"));
    if dtype == "f32" { place.in_f32() } else { place }
}

/// Random values on the CPU.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let len: usize = shape.iter().product();
    let latent = plan::LatentSize { rows: 1, cols: len.div_ceil(4).max(4) };
    let values = model::noise::initial(seed, latent).and_then(|noise| noise.flatten_all()?.narrow(0, 0, len));
    values.and_then(|values| values.reshape(shape)).expect("noise of that shape")
}

#[cfg(feature = "cuda")]
mod blocks {
    use candle_core::{DType, Tensor};
    use model::dit::{self, block::Block};
    use model::place::bring_back;
    use model::seam::WholeSequence;
    use model::weights::{Weights, random};
    use plan::{DitSpec, KvCompress, LayerIdx};

    use super::{noise, place};

    /// A block of XL/2 on `place`, on the same input wherever it is.
    fn run(place: &model::Place, ratio: usize, (rows, cols): (usize, usize)) -> Tensor {
        let compress = KvCompress { ratio, layers: [LayerIdx(0)].into() };
        let spec = DitSpec {
            depth: 1,
            heads: 16,
            head_width: 72,
            caption_width: 64,
            sample_cells: 128,
            interpolation: 2.0,
            kv_compress: (ratio > 1).then_some(compress),
        };
        let dir = tempfile::tempdir().expect("a folder");
        random::write(dir.path(), &dit::manifest(&spec), 3).expect("weights can be written");
        let weights = Weights::open(dir.path(), "test").expect("weights can be read").on(place.clone());
        let block = Block::load(&spec, LayerIdx(0), &weights).expect("the block loads");
        let there = |tensor: Tensor| place.take(&tensor).expect("there is room");
        let modulation = noise(&[6 * spec.width()], 7).to_vec1::<f32>().expect("f32");
        let caption = block.caption_keys(&there(noise(&[120, spec.width()], 9))).expect("the caption fits");
        let x = there(noise(&[rows * cols, spec.width()], 5));
        let out = block.forward(&x, cols, &modulation, &caption, &mut WholeSequence).expect("the block runs");
        bring_back(&out).expect("comes back")
    }

    #[test]
    fn a_block_on_a_gpu_is_that_of_the_cpu_within_the_type_s_roundings() {
        let there = place();
        assert!(!there.device().is_cpu(), "FRESCO_TEST_DEVICE names no GPU");
        let limits = [(there.clone().in_f32(), 1e-4), (there, 2e-2)];
        for ratio in [1, 2, 4] {
            let expected = run(&model::Place::default(), ratio, (40, 52)).to_dtype(DType::F64).expect("f64");
            for (place, limit) in &limits {
                let ours = run(place, ratio, (40, 52)).to_dtype(DType::F64).expect("f64");
                let power = |x: &Tensor| x.sqr().and_then(|x| x.mean_all()?.to_scalar::<f64>()).expect("a mean");
                let error = (power(&(ours - &expected).expect("equal shapes")) / power(&expected)).sqrt();
                println!("R = {ratio}, {place:?}: relative RMS {error:.2e} of {limit:.0e}");
                assert!(error <= *limit, "R = {ratio}: relative RMS {error:e} is over {limit:e}");
            }
        }
    }
}
