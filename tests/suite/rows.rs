//! A picture cut into bands of rows gives the bytes of the whole: an XL/2 block through [`AttentionContext`], a
//! decode through [`RowExchange`]. Bands run on threads of their own and meet at a board, as ranks will.

use std::collections::BTreeMap;
use std::sync::{Barrier, Mutex};

use candle_core::{Device, Result, Tensor};
use kernels::{Halo, Moments};
use model::dit::{self, block::Block};
use model::seam::{AttentionContext, RowExchange, SelfAttention, WholePicture, WholeSequence};
use model::vae::{self, Decoder};
use model::weights::{Weights, random};
use plan::{DitSpec, KvCompress, LayerIdx, VaeSpec};

/// Where bands lay down what others need and pick up what others laid down.
struct Board<T> {
    n_bands: usize,
    posts: Mutex<BTreeMap<usize, T>>,
    barrier: Barrier,
}

impl<T: Clone> Board<T> {
    fn new(n_bands: usize) -> Self {
        Self { n_bands, posts: Mutex::default(), barrier: Barrier::new(n_bands) }
    }

    /// Every band's post, in order of bands.
    fn exchange(&self, band: usize, post: T) -> Vec<T> {
        self.posts.lock().expect("no band panicked").insert(band, post);
        self.barrier.wait();
        let all: Vec<T> = self.posts.lock().expect("no band panicked").values().cloned().collect();
        assert_eq!(all.len(), self.n_bands);
        self.barrier.wait();
        all
    }
}

struct BandOfTokens<'a> {
    band: usize,
    board: &'a Board<(Tensor, Tensor)>,
}

impl AttentionContext for BandOfTokens<'_> {
    fn attend(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let all = self.board.exchange(self.band, rows.keys_and_values(rows.rows())?);
        let (keys, values): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        kernels::attention(&rows.queries()?, &Tensor::cat(&keys, 0)?, &Tensor::cat(&values, 0)?, rows.heads())
    }
}

#[derive(Clone)]
enum Post {
    Edges(Tensor, Tensor),
    Moments(Vec<Moments>),
    Rows(Tensor),
}

struct BandOfPixels<'a> {
    band: usize,
    board: &'a Board<Post>,
}

impl RowExchange for BandOfPixels<'_> {
    fn halo(&mut self, first: &Tensor, last: &Tensor) -> Result<Halo> {
        let post = Post::Edges(first.force_contiguous()?, last.force_contiguous()?);
        let all = self.board.exchange(self.band, post);
        let edges = |band: usize| match all.get(band) {
            Some(Post::Edges(first, last)) => Some((first.clone(), last.clone())),
            _ => None,
        };
        let above = self.band.checked_sub(1).and_then(edges).map(|(_, last)| last);
        Ok(Halo { above, below: edges(self.band + 1).map(|(first, _)| first) })
    }

    fn gather_moments(&mut self, partials: Vec<Moments>) -> Result<Vec<Moments>> {
        let all = self.board.exchange(self.band, Post::Moments(partials)).into_iter();
        Ok(all.flat_map(|post| if let Post::Moments(partials) = post { partials } else { Vec::new() }).collect())
    }

    fn gather(&mut self, x: Tensor) -> Result<Tensor> {
        let all = self.board.exchange(self.band, Post::Rows(x)).into_iter();
        let rows: Vec<Tensor> = all.filter_map(|post| if let Post::Rows(x) = post { Some(x) } else { None }).collect();
        Tensor::cat(&rows, 0)
    }
}

fn weights(manifest: &[(String, Vec<usize>)], seed: u64) -> (tempfile::TempDir, Weights) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    random::write(dir.path(), manifest, seed).expect("weights are written");
    let weights = Weights::open(dir.path(), "test").expect("weights open");
    (dir, weights)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1::<f32>()).expect("f32 on the cpu");
    values.into_iter().map(f32::to_bits).collect()
}

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let len: usize = shape.iter().product();
    let latent = plan::LatentSize { rows: 1, cols: len.div_ceil(4) };
    let values = model::noise::initial(seed, latent).and_then(|noise| noise.flatten_all()?.narrow(0, 0, len));
    values.and_then(|values| values.reshape(shape)).expect("noise of that shape")
}

/// Runs each band on a thread of its own and joins their bits.
fn in_bands<F: FnOnce() -> Tensor + Send>(bands: Vec<F>) -> Vec<u32> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = bands.into_iter().map(|band| scope.spawn(band)).collect();
        threads.into_iter().flat_map(|thread| bits(&thread.join().expect("no band panicked"))).collect()
    })
}

fn check_block(ratio: usize, rows: usize, cols: usize, cuts: &[usize]) {
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
    let (_dir, weights) = weights(&dit::manifest(&spec), 3);
    let block = Block::load(&spec, LayerIdx(0), &weights).expect("the block loads");
    let width = spec.width();
    let x = noise(&[rows * cols, width], 5);
    let modulation = bits(&noise(&[6 * width], 7)).into_iter().map(f32::from_bits).collect::<Vec<_>>();
    let caption = block.caption_keys(&noise(&[19, width], 9)).expect("the caption fits");
    let expected = bits(&block.forward(&x, cols, &modulation, &caption, &mut WholeSequence).expect("the block runs"));

    let board = Board::new(cuts.len());
    let mut first = 0;
    let mut bands = Vec::new();
    for (band, &n_rows) in cuts.iter().enumerate() {
        let part = x.narrow(0, first * cols, n_rows * cols).and_then(|part| part.force_contiguous()).expect("rows");
        let (block, board, modulation, caption) = (&block, &board, &modulation, &caption);
        let mut ctx = BandOfTokens { band, board };
        bands.push(move || block.forward(&part, cols, modulation, caption, &mut ctx).expect("the band runs"));
        first += n_rows;
    }
    assert_eq!(first, rows, "the cuts cover all rows");
    assert!(in_bands(bands) == expected, "R = {ratio}, {rows}x{cols} tokens cut {cuts:?} give other bits");
}

#[test]
fn an_xl_block_cut_into_bands_gives_the_whole_s_bytes() {
    for cuts in [vec![1, 14], vec![5, 5, 5], vec![2, 1, 7, 5], vec![14, 1]] {
        check_block(1, 15, 11, &cuts);
    }
}

#[test]
fn an_xl_block_with_compressed_keys_cut_into_bands_gives_the_whole_s_bytes() {
    for (ratio, cuts) in [(2, vec![4, 11]), (2, vec![2, 2, 10, 1]), (3, vec![3, 12]), (4, vec![8, 7])] {
        check_block(ratio, 15, 11, &cuts);
    }
}

#[test]
fn a_decode_cut_into_bands_gives_the_whole_s_bytes() {
    let spec = VaeSpec::sdxl_family(&[16, 32, 48, 48], 2, 8);
    let manifest: Vec<_> = vae::manifest(&spec).into_iter().map(|(names, shape)| (names[0].clone(), shape)).collect();
    let (_dir, weights) = weights(&manifest, 4);
    let decoder = Decoder::load(&spec, &weights).expect("the decoder loads");
    let (rows, cols) = (13, 9);
    // A strong gradient from top to bottom: bands whose statistics differ are where averages go wrong.
    let slope = Tensor::arange(0f32, rows as f32, &Device::Cpu).and_then(|slope| slope.reshape((1, rows, 1)));
    let slope = slope.and_then(|slope| slope.affine(0.3, -2.0)).expect("a slope");
    let latents = noise(&[4, rows, cols], 6).broadcast_add(&slope).expect("latents");
    let mut go_on = |_| std::ops::ControlFlow::Continue(());
    let expected = bits(&decoder.decode(&latents, &mut WholePicture, &mut go_on).expect("the decode runs"));

    // Slabs of a latent row, of several with fewer in the last, and one of all.
    for (cuts, slab_values) in [
        (vec![13], 1),
        (vec![13], 100_000),
        (vec![1, 12], 1),
        (vec![6, 7], 60_000),
        (vec![3, 1, 9], 30_000),
        (vec![1; 13], usize::MAX),
    ] {
        let decoder = Decoder::load(&spec, &weights).expect("the decoder loads").with_slabs_of(slab_values);
        let board = Board::new(cuts.len());
        let mut first = 0;
        let mut bands = Vec::new();
        for (band, &n_rows) in cuts.iter().enumerate() {
            let part = latents.narrow(1, first, n_rows).and_then(|part| part.force_contiguous()).expect("rows");
            let (decoder, board) = (&decoder, &board);
            let mut go_on = |_| std::ops::ControlFlow::Continue(());
            bands.push(move || {
                decoder.decode(&part, &mut BandOfPixels { band, board }, &mut go_on).expect("the band runs")
            });
            first += n_rows;
        }
        assert_eq!(first, rows, "the cuts cover all rows");
        assert!(in_bands(bands) == expected, "{rows} rows cut {cuts:?}, slabs of {slab_values} give other bits");
    }
}
