// Operations on single rows: layer norm with adaLN's modulation, and the compression of keys and values.
#include "device.cuh"

// Layer norm of one row by one warp: value(channel) in, write(channel, normal) out.
template <class Value, class Write>
__device__ inline void layer_norm(int width, float eps, Value value, Write write) {
    const int lane = threadIdx.x % 32;
    float sum = 0.0f;
    for (int c = lane; c < width; c += 32) sum += value(c);
    const float mean = warp_sum(sum) / (float)width;
    float squares = 0.0f;
    for (int c = lane; c < width; c += 32) {
        const float d = value(c) - mean;
        squares = fmaf(d, d, squares);
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / (float)width + eps);
    for (int c = lane; c < width; c += 32) write(c, (value(c) - mean) * inverse);
}

// Laid out as kernels/src/cuda/job.rs has it.
template <class T> struct Modulation {
    const T* x;          // [rows, width]
    const float* shift;  // [width]
    const float* scale;  // [width]
    T* out;              // [rows, width]
    i64 rows;
    int width;
    float eps;
};

// out = LN(x)·(1 + scale) + shift; a warp a row, four rows a block of 128.
template <class T> __device__ inline void modulate(const Modulation<T>& op) {
    const i64 row = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= op.rows) return;
    const T* in = op.x + row * op.width;
    T* to = op.out + row * op.width;
    layer_norm(
        op.width, op.eps, [&](int c) { return to_f32(in[c]); },
        [&](int c, float normal) { to[c] = from_f32<T>(fmaf(normal, 1.0f + op.scale[c], op.shift[c])); });
}

extern "C" __global__ void __launch_bounds__(128) modulate_f32(Modulation<float> op) { modulate(op); }
extern "C" __global__ void __launch_bounds__(128) modulate_bf16(Modulation<bf16> op) { modulate(op); }

// Laid out as kernels/src/cuda/job.rs has it.
template <class T> struct Compression {
    const T* x;                // [rows·cols, width]
    const float* taps;         // [ratio·ratio, width]
    const float* bias;         // [width]
    const float* norm_weight;  // [width]
    const float* norm_bias;    // [width]
    T* out;                    // [⌊rows/ratio⌋ · ⌊cols/ratio⌋, width]
    i64 tokens;                // of the output
    int cols;
    int width;
    int ratio;
    float eps;
};

// A depth-wise convolution of kernel and stride `ratio`, then layer norm; a warp a token, four tokens a block of 128, which
// has 4·width f32 of shared memory.
template <class T> __device__ inline void compress(const Compression<T>& op) {
    DYNAMIC_SHARED(memory);
    float* token = (float*)memory + threadIdx.x / 32 * op.width;
    const i64 at = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (at >= op.tokens) return;
    const int out_cols = op.cols / op.ratio;
    const i64 y = at / out_cols * op.ratio;
    const int x = (int)(at % out_cols) * op.ratio;
    for (int c = threadIdx.x % 32; c < op.width; c += 32) {
        float sum = op.bias[c];
        for (int tap = 0; tap < op.ratio * op.ratio; tap++) {
            const i64 from = (y + tap / op.ratio) * op.cols + x + tap % op.ratio;
            sum = fmaf(to_f32(op.x[from * op.width + c]), op.taps[tap * op.width + c], sum);
        }
        token[c] = sum;
    }
    // A lane reads back only what it wrote.
    T* to = op.out + at * op.width;
    layer_norm(
        op.width, op.eps, [&](int c) { return token[c]; },
        [&](int c, float normal) { to[c] = from_f32<T>(fmaf(normal, op.norm_weight[c], op.norm_bias[c])); });
}

extern "C" __global__ void __launch_bounds__(128) compress_f32(Compression<float> op) { compress(op); }
extern "C" __global__ void __launch_bounds__(128) compress_bf16(Compression<bf16> op) { compress(op); }
