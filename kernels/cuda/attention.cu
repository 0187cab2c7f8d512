// softmax(q·kᵀ/√d)·v for any number of keys, with no matrix of scores (online softmax, arXiv:2205.14135, Algorithm 1).
//
// Keys are walked in blocks counted from the first key, whatever the queries beside a query, so a query's bits do not
// depend on how queries are shared out. Three bodies: heads up to 128 wide with scores in registers, wider ones (the
// VAE's 512) with a head's channels spread over the warps of a block, and a plain one for f32 and for other widths.
#include "device.cuh"

// Laid out as kernels/src/cuda/job.rs has it.
template <class T> struct Attention {
    const T* q;  // [queries, width]
    const T* k;  // [keys, width]
    const T* v;  // [keys, width]
    T* out;      // [queries, width]
    i64 n_queries;
    i64 n_keys;
    int width;       // heads·d
    int head_width;  // d
};

const u32 MINUS_INFINITY = 0xff800000u;

__device__ inline float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// Over the four lanes that hold one row of a tensor core's result.
__device__ inline float quad_max(float x) {
    for (int offset = 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}
__device__ inline float quad_sum(float x) {
    for (int offset = 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

// Scores are in units of log2, so that weights are powers of two.
__device__ inline float score_scale(int d) { return 1.4426950408889634f / sqrtf((float)d); }

// ---- heads up to 128 wide: 64 queries a block of four warps, 16 of them a warp; keys by 64.
const int QUERIES = 64, KEYS = 64;

template <int D> __device__ inline void attend_narrow(const Attention<bf16>& op) {
    constexpr int STEPS = (D + 15) / 16;         // of 16 channels, the last filled up with zeros: 72 runs as 80
    constexpr int CHANNEL_TILES = D / 8;         // of 8 channels, none filled up: 72 stays 72
    constexpr int KEY_LINE = STEPS * 16 + 8;     // 8 more, so that eight lines begin in different banks
    constexpr int VALUE_LINE = KEYS + 8;
    __shared__ __align__(16) bf16 keys[KEYS * KEY_LINE];   // [key][channel]
    __shared__ __align__(16) bf16 values[D * VALUE_LINE];  // [channel][key]
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const i64 query = (i64)blockIdx.x * QUERIES + warp * 16 + g;
    const int head = blockIdx.y * D;
    const float scale = score_scale(D);

    u32 q[STEPS][4];
    #pragma unroll
    for (int step = 0; step < STEPS; step++)
        #pragma unroll
        for (int part = 0; part < 4; part++) {
            const i64 row = query + part % 2 * 8;
            const int channel = step * 16 + part / 2 * 8 + 2 * t;
            const bool inside = row < op.n_queries && channel < D;
            q[step][part] = inside ? *(const u32*)(op.q + row * op.width + head + channel) : 0;
        }
    float sums[CHANNEL_TILES][4] = {};
    float maximum[2] = {__uint_as_float(MINUS_INFINITY), __uint_as_float(MINUS_INFINITY)}, total[2] = {0.0f, 0.0f};

    for (i64 first = 0; first < op.n_keys; first += KEYS) {
        __syncthreads();
        for (int part = threadIdx.x; part < KEYS * STEPS * 8; part += 128) {
            const int key = part / (STEPS * 8), channel = part % (STEPS * 8) * 2;
            const bool inside = first + key < op.n_keys && channel < D;
            const i64 from = (first + key) * op.width + head + channel;
            *(u32*)(keys + key * KEY_LINE + channel) = inside ? *(const u32*)(op.k + from) : 0;
            if (channel < D) {
                // What is not there must be zero, since zero times anything else may be a NaN.
                const u32 pair = inside ? *(const u32*)(op.v + from) : 0;
                values[channel * VALUE_LINE + key].bits = (unsigned short)pair;
                values[(channel + 1) * VALUE_LINE + key].bits = (unsigned short)(pair >> 16);
            }
        }
        __syncthreads();

        float scores[KEYS / 8][4] = {};
        #pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++)
            #pragma unroll
            for (int step = 0; step < STEPS; step++) {
                const bf16* at = keys + (tile * 8 + g) * KEY_LINE + step * 16 + 2 * t;
                const u32 k[2] = {*(const u32*)at, *(const u32*)(at + 8)};
                mma(scores[tile], q[step], k);
            }
        float largest[2] = {maximum[0], maximum[1]};
        #pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                const i64 key = first + tile * 8 + 2 * t + e % 2;
                scores[tile][e] = key < op.n_keys ? scores[tile][e] * scale : __uint_as_float(MINUS_INFINITY);
                largest[e / 2] = fmaxf(largest[e / 2], scores[tile][e]);
            }
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            largest[half] = quad_max(largest[half]);
            const float shrink = exp2f(maximum[half] - largest[half]);
            maximum[half] = largest[half];
            total[half] *= shrink;
            #pragma unroll
            for (int tile = 0; tile < CHANNEL_TILES; tile++)
                sums[tile][half * 2] *= shrink, sums[tile][half * 2 + 1] *= shrink;
        }
        #pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                scores[tile][e] = exp2f(scores[tile][e] - maximum[e / 2]);
                total[e / 2] += scores[tile][e];
            }
        #pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            const float *low = scores[2 * step], *high = scores[2 * step + 1];
            const u32 weights[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])};
            #pragma unroll
            for (int tile = 0; tile < CHANNEL_TILES; tile++) {
                const bf16* at = values + (tile * 8 + g) * VALUE_LINE + step * 16 + 2 * t;
                const u32 v[2] = {*(const u32*)at, *(const u32*)(at + 8)};
                mma(sums[tile], weights, v);
            }
        }
    }
    #pragma unroll
    for (int half = 0; half < 2; half++) {
        const float inverse = 1.0f / quad_sum(total[half]);
        const i64 row = query + half * 8;
        if (row >= op.n_queries) continue;
        #pragma unroll
        for (int tile = 0; tile < CHANNEL_TILES; tile++)
            *(u32*)(op.out + row * op.width + head + tile * 8 + 2 * t) =
                pack(sums[tile][half * 2] * inverse, sums[tile][half * 2 + 1] * inverse);
    }
}

// ---- wide heads: 32 queries a block of eight warps; keys by 32. A warp scores one 16x8 tile, and sums an eighth of the
// channels. Shared memory: see `attention` in kernels/src/cuda/job.rs.
const int WIDE_QUERIES = 32, WIDE_KEYS = 32;

template <int D> __device__ inline void attend_wide(const Attention<bf16>& op) {
    constexpr int LINE = D + 8, SCORE_LINE = WIDE_KEYS + 4, WEIGHT_LINE = WIDE_KEYS + 8;
    constexpr int TILES = D / 8 / 8;  // of 8 channels, for each warp
    DYNAMIC_SHARED(memory);
    bf16* queries = (bf16*)memory;                    // [query][channel]
    bf16* tokens = queries + WIDE_QUERIES * LINE;     // keys, then values: [key][channel]
    bf16* weights = tokens + WIDE_KEYS * LINE;        // [query][key]
    float* scores = (float*)(weights + WIDE_QUERIES * WEIGHT_LINE);
    float* shrink = scores + WIDE_QUERIES * SCORE_LINE;
    float* totals = shrink + WIDE_QUERIES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const i64 first_query = (i64)blockIdx.x * WIDE_QUERIES;
    const int head = blockIdx.y * D;
    const float scale = score_scale(D);
    const auto load = [&](const bf16* from, i64 first, i64 n, bf16* to) {
        for (int part = threadIdx.x; part < WIDE_KEYS * D / 8; part += 256) {
            const int line = part / (D / 8), channel = part % (D / 8) * 8;
            const bool inside = first + line < n;
            *(uint4*)(to + line * LINE + channel) =
                inside ? *(const uint4*)(from + (first + line) * op.width + head + channel) : uint4{0, 0, 0, 0};
        }
    };
    load(op.q, first_query, op.n_queries, queries);
    float sums[2][TILES][4] = {};
    // Of the four queries whose softmax this warp keeps: 4·warp and on.
    float maximum[4], total[4] = {};
    #pragma unroll
    for (int i = 0; i < 4; i++) maximum[i] = __uint_as_float(MINUS_INFINITY);

    for (i64 first = 0; first < op.n_keys; first += WIDE_KEYS) {
        __syncthreads();
        load(op.k, first, op.n_keys, tokens);
        __syncthreads();
        const int row = warp / 4 * 16, col = warp % 4 * 8;
        float tile[4] = {};
        for (int step = 0; step < D; step += 16) {
            const bf16* left = queries + (row + g) * LINE + step + 2 * t;
            const bf16* right = tokens + (col + g) * LINE + step + 2 * t;
            const u32 a[4] = {*(const u32*)left, *(const u32*)(left + 8 * LINE), *(const u32*)(left + 8),
                              *(const u32*)(left + 8 * LINE + 8)};
            const u32 b[2] = {*(const u32*)right, *(const u32*)(right + 8)};
            mma(tile, a, b);
        }
        #pragma unroll
        for (int e = 0; e < 4; e++) scores[(row + g + e / 2 * 8) * SCORE_LINE + col + 2 * t + e % 2] = tile[e] * scale;
        __syncthreads();
        load(op.v, first, op.n_keys, tokens);
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int query = warp * 4 + i;
            const float score =
                first + lane < op.n_keys ? scores[query * SCORE_LINE + lane] : __uint_as_float(MINUS_INFINITY);
            const float largest = fmaxf(maximum[i], warp_max(score));
            const float weight = exp2f(score - largest), factor = exp2f(maximum[i] - largest);
            maximum[i] = largest;
            total[i] = total[i] * factor + warp_sum(weight);
            weights[query * WEIGHT_LINE + lane] = from_f32<bf16>(weight);
            if (lane == 0) shrink[query] = factor, totals[query] = total[i];
        }
        __syncthreads();
        #pragma unroll
        for (int half = 0; half < 2; half++)
            #pragma unroll
            for (int i = 0; i < TILES; i++)
                #pragma unroll
                for (int e = 0; e < 4; e++) sums[half][i][e] *= shrink[half * 16 + g + e / 2 * 8];
        #pragma unroll
        for (int step = 0; step < WIDE_KEYS; step += 16)
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                const bf16* left = weights + (half * 16 + g) * WEIGHT_LINE + step + 2 * t;
                const u32 a[4] = {*(const u32*)left, *(const u32*)(left + 8 * WEIGHT_LINE), *(const u32*)(left + 8),
                                  *(const u32*)(left + 8 * WEIGHT_LINE + 8)};
                #pragma unroll
                for (int i = 0; i < TILES; i++) {
                    const bf16* right = tokens + (step + 2 * t) * LINE + (warp * TILES + i) * 8 + g;
                    const u32 b[2] = {pack(right[0], right[LINE]), pack(right[8 * LINE], right[9 * LINE])};
                    mma(sums[half][i], a, b);
                }
            }
    }
    #pragma unroll
    for (int half = 0; half < 2; half++)
        #pragma unroll
        for (int part = 0; part < 2; part++) {
            const int query = half * 16 + g + part * 8;
            if (first_query + query >= op.n_queries) continue;
            const float inverse = 1.0f / totals[query];
            bf16* to = op.out + (first_query + query) * op.width + head + warp * TILES * 8 + 2 * t;
            #pragma unroll
            for (int i = 0; i < TILES; i++)
                *(u32*)(to + i * 8) = pack(sums[half][i][part * 2] * inverse, sums[half][i][part * 2 + 1] * inverse);
        }
}

// ---- any width up to 512, any type: a warp a query, four queries a block; keys by 32.
const int PLAIN_CHANNELS = 16;  // of a lane

template <class T> __device__ inline void attend_plain(const Attention<T>& op) {
    __shared__ float queries[4][32 * PLAIN_CHANNELS];
    __shared__ float weights[4][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = op.head_width;
    const i64 query = (i64)blockIdx.x * 4 + warp, head = (i64)blockIdx.y * d;
    if (query >= op.n_queries) return;
    const float scale = score_scale(d);
    for (int c = lane; c < d; c += 32) queries[warp][c] = to_f32(op.q[query * op.width + head + c]) * scale;
    __syncwarp();
    float sums[PLAIN_CHANNELS] = {};
    float maximum = __uint_as_float(MINUS_INFINITY), total = 0.0f;
    for (i64 first = 0; first < op.n_keys; first += 32) {
        const int n = op.n_keys - first < 32 ? (int)(op.n_keys - first) : 32;
        float score = __uint_as_float(MINUS_INFINITY);
        if (lane < n) {
            const T* key = op.k + (first + lane) * op.width + head;
            score = 0.0f;
            for (int c = 0; c < d; c++) score = fmaf(queries[warp][c], to_f32(key[c]), score);
        }
        const float largest = fmaxf(maximum, warp_max(score));
        const float weight = exp2f(score - largest), shrink = exp2f(maximum - largest);
        maximum = largest;
        total = total * shrink + warp_sum(weight);
        weights[warp][lane] = weight;
        __syncwarp();
        #pragma unroll
        for (int i = 0; i < PLAIN_CHANNELS; i++) {
            const int c = lane + 32 * i;
            if (c >= d) break;
            float sum = sums[i] * shrink;
            for (int key = 0; key < n; key++)
                sum = fmaf(weights[warp][key], to_f32(op.v[(first + key) * op.width + head + c]), sum);
            sums[i] = sum;
        }
        __syncwarp();
    }
    #pragma unroll
    for (int i = 0; i < PLAIN_CHANNELS; i++) {
        const int c = lane + 32 * i;
        if (c < d) op.out[query * op.width + head + c] = from_f32<T>(sums[i] / total);
    }
}

#define NARROW(D) \
    extern "C" __global__ void __launch_bounds__(128) attention_##D(Attention<bf16> op) { attend_narrow<D>(op); }
NARROW(16)
NARROW(40)
NARROW(64)
NARROW(72)
NARROW(128)
extern "C" __global__ void __launch_bounds__(256) attention_512(Attention<bf16> op) { attend_wide<512>(op); }
extern "C" __global__ void __launch_bounds__(128) attention_f32(Attention<float> op) { attend_plain(op); }
extern "C" __global__ void __launch_bounds__(128) attention_bf16(Attention<bf16> op) { attend_plain(op); }
