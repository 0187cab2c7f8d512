// Group norm in two parts: partial moments of blocks of rows, and the affine map their fold gives.
//
// A partial is of the same block of rows wherever a picture is cut, and sums run in f64 in an order that depends on the
// block alone; folding partials is the host's work (kernels/src/group_norm.rs). And the search for values that are none.
#include "device.cuh"

const int MOMENT_THREADS = 256;

// Sum over a block, in a fixed tree, the same in all threads.
__device__ inline double block_sum(double x) {
    __shared__ double sums[MOMENT_THREADS];
    __syncthreads();
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = MOMENT_THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

// Laid out as kernels/src/cuda/job.rs has it.
template <class T> struct MomentsOf {
    const T* x;   // [blocks, pixels, channels]
    double* out;  // [blocks, groups, 3]: count, mean, sum of squared deviations
    i64 pixels;
    int channels;
    int groups;
};

// A block of threads for each block of rows (x) and group (y).
template <class T> __device__ inline void moments(const MomentsOf<T>& op) {
    const int width = op.channels / op.groups, group = blockIdx.y;
    const T* from = op.x + (i64)blockIdx.x * op.pixels * op.channels + (i64)group * width;
    const i64 n = op.pixels * width;
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < n; i += MOMENT_THREADS) sum += (double)to_f32(from[i / width * op.channels + i % width]);
    const double mean = block_sum(sum) / (double)n;
    double squares = 0.0;
    for (i64 i = threadIdx.x; i < n; i += MOMENT_THREADS) {
        const double d = (double)to_f32(from[i / width * op.channels + i % width]) - mean;
        squares += d * d;
    }
    const double m2 = block_sum(squares);
    if (threadIdx.x == 0) {
        double* to = op.out + ((i64)blockIdx.x * op.groups + group) * 3;
        to[0] = (double)n, to[1] = mean, to[2] = m2;
    }
}

extern "C" __global__ void __launch_bounds__(MOMENT_THREADS) moments_f32(MomentsOf<float> op) { moments(op); }
extern "C" __global__ void __launch_bounds__(MOMENT_THREADS) moments_bf16(MomentsOf<bf16> op) { moments(op); }

// Laid out as kernels/src/cuda/job.rs has it.
template <class T> struct Affine {
    const T* x;
    const float* scale;  // [channels]
    const float* shift;  // [channels]
    T* out;
    i64 n;               // values of x
    int channels;
};

// out = x·scale + shift, channel by channel.
template <class T> __device__ inline void affine(const Affine<T>& op) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < op.n; i += (i64)gridDim.x * blockDim.x) {
        const int c = (int)(i % op.channels);
        op.out[i] = from_f32<T>(fmaf(to_f32(op.x[i]), op.scale[c], op.shift[c]));
    }
}

extern "C" __global__ void __launch_bounds__(256) affine_f32(Affine<float> op) { affine(op); }
extern "C" __global__ void __launch_bounds__(256) affine_bf16(Affine<bf16> op) { affine(op); }

// Laid out as kernels/src/cuda/job.rs has it.
template <class T> struct Finite {
    const T* x;
    u32* fault;  // set to 1 if a value is a NaN or an infinity
    i64 n;       // values of x
};

template <class T> __device__ inline void finite(const Finite<T>& op) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < op.n; i += (i64)gridDim.x * blockDim.x)
        if ((__float_as_uint(to_f32(op.x[i])) & 0x7f800000u) == 0x7f800000u) *op.fault = 1;
}

extern "C" __global__ void __launch_bounds__(256) finite_f32(Finite<float> op) { finite(op); }
extern "C" __global__ void __launch_bounds__(256) finite_bf16(Finite<bf16> op) { finite(op); }
