// out = x·Wᵀ + bias with what follows it, where a row of x is a token, or the taps of a convolution around a pixel.
//
// Linear layers (one tap), 3x3 convolutions (nine) and convolutions of a picture enlarged by two (four taps for each of
// four phases) are one kernel: they differ in where a row's values lie. Group norm and SiLU before a convolution are
// applied as values are read. Every element is summed over taps and channels in index order, whatever the cut of rows,
// so equal rows give equal bits. Products of bf16 run on tensor cores with f32 sums; f32 runs without TF32.
#include "device.cuh"

enum Epilogue { PLAIN = 0, GELU = 1, SILU = 2, ONTO = 3 };

// Laid out as kernels/src/cuda/job.rs has it.
template <class T> struct Product {
    const T* x;            // [rows, cols, channels]
    const T* above;        // [cols, channels], or none: zeros
    const T* below;        // the same
    const float* scale;    // [channels], or none: x·scale + shift, then SiLU, before the product
    const float* shift;    // [channels]
    const T* weight;       // [phases, outputs, taps·channels]
    const float* bias;     // [outputs], or none
    const T* residual;     // of the output's shape; for ONTO; may be `out` itself
    const float* gate;     // [outputs], or none; for ONTO
    T* out;                // [rows, cols, outputs], or twice as many rows and columns
    i64 rows;
    int cols;
    int channels;
    int outputs;
    int taps;              // 1, 4 or 9
    int epilogue;
};

// Where the channels of `tap` around pixel (y, x) of the small picture lie; none for zeros.
template <class T> __device__ inline const T* tap_at(const Product<T>& op, int phase, i64 y, int x, int tap) {
    if (op.taps > 1) {
        const int side = op.taps == 9 ? 3 : 2;
        y += tap / side - 1;
        x += tap % side - 1;
        if (op.taps == 4) y += phase / 2, x += phase % 2;
        if (x < 0 || x >= op.cols) return nullptr;
    }
    const T* row = op.x + (y * op.cols) * op.channels;
    if (y < 0) row = op.above;
    if (y >= op.rows) row = op.below;
    return row ? row + (i64)x * op.channels : nullptr;
}

template <class T> __device__ inline float normed(const Product<T>& op, T x, int channel) {
    const float value = to_f32(x);
    return op.scale ? silu(fmaf(value, op.scale[channel], op.shift[channel])) : value;
}

// The value of tap·channels + channel `k` for pixel (y, x) of the small picture.
template <class T> __device__ inline float tap_value(const Product<T>& op, int phase, i64 y, int x, int k) {
    const int tap = op.taps > 1 ? k / op.channels : 0, channel = k - tap * op.channels;
    const T* at = tap_at(op, phase, y, x, tap);
    return at ? normed(op, at[channel], channel) : 0.0f;
}

// The eight values from `k` on, which lie in one tap and are aligned: where they lie is worked out once.
__device__ inline void copy_eight(const Product<bf16>& op, int phase, i64 y, int x, int k, bf16* to) {
    const int tap = op.taps > 1 ? k / op.channels : 0, channel = k - tap * op.channels;
    const bf16* at = tap_at(op, phase, y, x, tap);
    const uint4 zeros = {0, 0, 0, 0}, read = at ? *(const uint4*)(at + channel) : zeros;
    u32 pairs[4] = {read.x, read.y, read.z, read.w};
    if (at && op.scale)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const bf16 low = {(unsigned short)pairs[i]}, high = {(unsigned short)(pairs[i] >> 16)};
            pairs[i] = pack(normed(op, low, channel + 2 * i), normed(op, high, channel + 2 * i + 1));
        }
    *(uint4*)to = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}

template <class T> __device__ inline void finish(const Product<T>& op, int phase, i64 pixel, int col, float sum) {
    i64 place = pixel;
    if (op.taps == 4) {
        const i64 y = pixel / op.cols;
        const int x = (int)(pixel - y * op.cols);
        place = (2 * y + phase / 2) * 2 * op.cols + 2 * x + phase % 2;
    }
    const i64 at = place * op.outputs + col;
    if (op.bias) sum += op.bias[col];
    if (op.epilogue == GELU) sum = gelu(sum);
    if (op.epilogue == SILU) sum = silu(sum);
    if (op.epilogue == ONTO) {
        const float onto = to_f32(op.residual[at]);
        sum = op.gate ? fmaf(op.gate[col], sum, onto) : sum + onto;
    }
    op.out[at] = from_f32<T>(sum);
}

// f32: 64 pixels by 64 outputs a block, 4x4 of them a thread of 256, 16 terms at a time.
const int F32_TILE = 64, F32_TERMS = 16;

extern "C" __global__ void __launch_bounds__(256) product_f32(Product<float> op) {
    __shared__ float a[F32_TERMS][F32_TILE + 4];
    __shared__ float b[F32_TERMS][F32_TILE + 4];
    const int phase = blockIdx.z, k_all = op.taps * op.channels;
    const i64 n_pixels = op.rows * op.cols, first = (i64)blockIdx.x * F32_TILE;
    const int first_col = blockIdx.y * F32_TILE;
    const int row_at = threadIdx.x / 16 * 4, col_at = threadIdx.x % 16 * 4;
    float sums[4][4] = {};
    for (int k = 0; k < k_all; k += F32_TERMS) {
        for (int i = threadIdx.x; i < F32_TILE * F32_TERMS; i += 256) {
            const int line = i / F32_TERMS, term = i % F32_TERMS;
            const i64 pixel = first + line, y = pixel / op.cols;
            const bool inside = k + term < k_all;
            a[term][line] =
                inside && pixel < n_pixels ? tap_value(op, phase, y, (int)(pixel - y * op.cols), k + term) : 0.0f;
            const int col = first_col + line;
            b[term][line] =
                inside && col < op.outputs ? op.weight[((i64)phase * op.outputs + col) * k_all + k + term] : 0.0f;
        }
        __syncthreads();
        for (int term = 0; term < F32_TERMS; term++)
            #pragma unroll
            for (int i = 0; i < 4; i++)
                #pragma unroll
                for (int j = 0; j < 4; j++)
                    sums[i][j] = fmaf(a[term][row_at + i], b[term][col_at + j], sums[i][j]);
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < 4; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++)
            if (first + row_at + i < n_pixels && first_col + col_at + j < op.outputs)
                finish(op, phase, first + row_at + i, first_col + col_at + j, sums[i][j]);
}

// bf16: 128 pixels by 128 outputs a block of eight warps, 64x32 of them a warp, 32 terms at a time.
const int TILE = 128, TERMS = 32;
// Lines of 80 bytes: the eight lines a fragment is read from begin in different banks.
const int LINE = TERMS + 8;

extern "C" __global__ void __launch_bounds__(256) product_bf16(Product<bf16> op) {
    __shared__ __align__(16) bf16 a[TILE * LINE];
    __shared__ __align__(16) bf16 b[TILE * LINE];
    const int phase = blockIdx.z, k_all = op.taps * op.channels;
    const i64 n_pixels = op.rows * op.cols, first = (i64)blockIdx.x * TILE;
    const int first_col = blockIdx.y * TILE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row_at = warp / 4 * 64, col_at = warp % 4 * 32;
    // Eight values in a row lie in one tap and are aligned.
    const bool by_eight = op.channels % 8 == 0;
    float sums[4][4][4] = {};
    for (int k = 0; k < k_all; k += TERMS) {
        // A thread fills eight terms of two lines of each operand.
        for (int part = threadIdx.x; part < TILE * TERMS / 8; part += 256) {
            const int line = part / (TERMS / 8), term = part % (TERMS / 8) * 8, from = k + term;
            const i64 pixel = first + line, y = pixel / op.cols;
            const int x = (int)(pixel - y * op.cols), col = first_col + line;
            bf16* to_a = a + line * LINE + term;
            bf16* to_b = b + line * LINE + term;
            const bf16* weight = op.weight + ((i64)phase * op.outputs + col) * k_all + from;
            if (by_eight && pixel < n_pixels && from < k_all)
                copy_eight(op, phase, y, x, from, to_a);
            else
                #pragma unroll
                for (int i = 0; i < 8; i++) {
                    const bool inside = pixel < n_pixels && from + i < k_all;
                    to_a[i] = from_f32<bf16>(inside ? tap_value(op, phase, y, x, from + i) : 0.0f);
                }
            if (by_eight && col < op.outputs && from < k_all)
                *(uint4*)to_b = *(const uint4*)weight;
            else
                #pragma unroll
                for (int i = 0; i < 8; i++) to_b[i] = col < op.outputs && from + i < k_all ? weight[i] : bf16{0};
        }
        __syncthreads();
        #pragma unroll
        for (int step = 0; step < TERMS; step += 16) {
            u32 left[4][4], right[4][2];
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                const bf16* at = a + (row_at + i * 16 + g) * LINE + step + 2 * t;
                left[i][0] = *(const u32*)at;
                left[i][1] = *(const u32*)(at + 8 * LINE);
                left[i][2] = *(const u32*)(at + 8);
                left[i][3] = *(const u32*)(at + 8 * LINE + 8);
            }
            #pragma unroll
            for (int j = 0; j < 4; j++) {
                const bf16* at = b + (col_at + j * 8 + g) * LINE + step + 2 * t;
                right[j][0] = *(const u32*)at;
                right[j][1] = *(const u32*)(at + 8);
            }
            #pragma unroll
            for (int i = 0; i < 4; i++)
                #pragma unroll
                for (int j = 0; j < 4; j++) mma(sums[i][j], left[i], right[j]);
        }
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < 4; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                const i64 pixel = first + row_at + i * 16 + g + e / 2 * 8;
                const int col = first_col + col_at + j * 8 + 2 * t + e % 2;
                if (pixel < n_pixels && col < op.outputs) finish(op, phase, pixel, col, sums[i][j][e]);
            }
}
