//! What is asked of a GPU: for each operation the kernel's name, its parameters as kernels/cuda has them, and how many
//! threads run it. Pure: addresses are numbers here, whoever runs a job says where they lie.

/// An address in the device's memory; zero for what is not there.
pub(crate) type Address = u64;

/// How values are stored on the device; sums are f32 or wider in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    F32,
    Bf16,
}

/// A kernel to be run, and over how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) kernel: String,
    /// Blocks along x, y and z.
    pub(crate) blocks: [u32; 3],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Shared memory a block gets at launch, beside what the kernel declares.
    pub(crate) shared_bytes: u32,
}

/// Parameters of a kernel: a plain struct laid out as C does it.
pub(crate) trait Parameters {
    /// The job over these parameters.
    fn job(&self, number: Number) -> Job;
}

/// More outputs than any picture has pixels would be needed to pass this.
const MAX_BLOCKS: i64 = i32::MAX as i64;

fn job(name: &str, number: Number, [x, y, z]: [i64; 3], threads: u32, shared_bytes: usize) -> Job {
    let suffix = if number == Number::F32 { "f32" } else { "bf16" };
    let blocks = [x, y, z].map(|n| n.clamp(1, MAX_BLOCKS) as u32);
    Job { kernel: format!("{name}_{suffix}"), blocks, threads, shared_bytes: shared_bytes as u32 }
}

fn div_up(n: i64, by: i64) -> i64 {
    (n + by - 1) / by
}

/// What is done to a sum of products before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Finish {
    Plain = 0,
    Gelu = 1,
    Silu = 2,
    Onto = 3,
}

/// `Product` of product.cu: linear layers and convolutions.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Product {
    pub(crate) x: Address,
    pub(crate) above: Address,
    pub(crate) below: Address,
    pub(crate) scale: Address,
    pub(crate) shift: Address,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) residual: Address,
    pub(crate) gate: Address,
    pub(crate) out: Address,
    pub(crate) rows: i64,
    pub(crate) cols: i32,
    pub(crate) channels: i32,
    pub(crate) outputs: i32,
    pub(crate) taps: i32,
    pub(crate) finish: Finish,
}

impl Parameters for Product {
    fn job(&self, number: Number) -> Job {
        let tile = if number == Number::F32 { 64 } else { 128 };
        let phases = if self.taps == 4 { 4 } else { 1 };
        let pixels = self.rows * i64::from(self.cols);
        job("product", number, [div_up(pixels, tile), div_up(self.outputs.into(), tile), phases], 256, 0)
    }
}

/// `Modulation` of rows.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Modulation {
    pub(crate) x: Address,
    pub(crate) shift: Address,
    pub(crate) scale: Address,
    pub(crate) out: Address,
    pub(crate) rows: i64,
    pub(crate) width: i32,
    pub(crate) eps: f32,
}

/// Rows a block of [`ROW_THREADS`] takes, a warp each.
const BLOCK_ROWS: i64 = 4;
const ROW_THREADS: u32 = 128;

impl Parameters for Modulation {
    fn job(&self, number: Number) -> Job {
        job("modulate", number, [div_up(self.rows, BLOCK_ROWS), 1, 1], ROW_THREADS, 0)
    }
}

/// `Compression` of rows.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Compression {
    pub(crate) x: Address,
    pub(crate) taps: Address,
    pub(crate) bias: Address,
    pub(crate) norm_weight: Address,
    pub(crate) norm_bias: Address,
    pub(crate) out: Address,
    pub(crate) tokens: i64,
    pub(crate) cols: i32,
    pub(crate) width: i32,
    pub(crate) ratio: i32,
    pub(crate) eps: f32,
}

impl Parameters for Compression {
    fn job(&self, number: Number) -> Job {
        let shared_bytes = BLOCK_ROWS as usize * self.width as usize * size_of::<f32>();
        job("compress", number, [div_up(self.tokens, BLOCK_ROWS), 1, 1], ROW_THREADS, shared_bytes)
    }
}

/// `MomentsOf` of group_norm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct MomentsOf {
    pub(crate) x: Address,
    pub(crate) out: Address,
    pub(crate) pixels: i64,
    pub(crate) channels: i32,
    pub(crate) groups: i32,
    /// Not read by the kernel: how many blocks of rows there are.
    pub(crate) n_blocks: i64,
}

impl Parameters for MomentsOf {
    fn job(&self, number: Number) -> Job {
        job("moments", number, [self.n_blocks, self.groups.into(), 1], 256, 0)
    }
}

/// `Affine` of group_norm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Affine {
    pub(crate) x: Address,
    pub(crate) scale: Address,
    pub(crate) shift: Address,
    pub(crate) out: Address,
    pub(crate) n: i64,
    pub(crate) channels: i32,
}

/// Blocks that walk over all values together.
fn striding(n: i64) -> [i64; 3] {
    [div_up(n, 256).min(65_536), 1, 1]
}

impl Parameters for Affine {
    fn job(&self, number: Number) -> Job {
        job("affine", number, striding(self.n), 256, 0)
    }
}

/// `Finite` of group_norm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Finite {
    pub(crate) x: Address,
    pub(crate) fault: Address,
    pub(crate) n: i64,
}

impl Parameters for Finite {
    fn job(&self, number: Number) -> Job {
        job("finite", number, striding(self.n), 256, 0)
    }
}

/// `Attention` of attention.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Attention {
    pub(crate) q: Address,
    pub(crate) k: Address,
    pub(crate) v: Address,
    pub(crate) out: Address,
    pub(crate) n_queries: i64,
    pub(crate) n_keys: i64,
    pub(crate) width: i32,
    pub(crate) head_width: i32,
}

/// Widest head of the plain kernel.
#[cfg(feature = "cuda")]
pub(crate) const MAX_HEAD_WIDTH: usize = 512;

impl Parameters for Attention {
    fn job(&self, number: Number) -> Job {
        let heads = i64::from(self.width / self.head_width);
        let blocks = |queries: i64| [div_up(self.n_queries, queries), heads, 1];
        let named = |mut job: Job| {
            job.kernel = format!("attention_{}", self.head_width);
            job
        };
        match (number, self.head_width) {
            (Number::Bf16, 16 | 40 | 64 | 72 | 128) => named(job("attention", number, blocks(64), 128, 0)),
            (Number::Bf16, 512) => {
                // Queries and keys [32][512 + 8] and weights [32][40] in bf16; scores [32][36] and two vectors in f32.
                let shared_bytes = 2 * (2 * 32 * 520 + 32 * 40) + 4 * (32 * 36 + 2 * 32);
                named(job("attention", number, blocks(32), 256, shared_bytes))
            }
            _ => job("attention", number, blocks(4), 128, 0),
        }
    }
}
