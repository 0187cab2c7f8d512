// A GPU for tests, on one thread of a CPU: the threads of a block are fibers that take turns at barriers and wherever a
// warp exchanges registers. Slow, and with no notion of what a memory access costs; but indices, barriers, sums and the
// layout of tensor-core operands are those of the device. Threads run in a shuffled order, so that a missing barrier shows.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
// Blocks run one after the other, so a block's memory may lie in one place.
#define __shared__ static
#define DYNAMIC_SHARED(name) char* name = emulator::dynamic_shared()

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulator {
const int WARP = 32;
const size_t STACK = 256 << 10;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    int waits = 0;  // barriers entered
};

inline Dim3 grid, block, thread, block_at;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline int current = 0;
inline std::vector<double> shared_memory;
inline char* dynamic_shared() { return (char*)shared_memory.data(); }
struct Exchange {
    float value[WARP];
    unsigned a[WARP][4], b[WARP][2];
};
inline std::vector<Exchange> exchanges;

inline void yield() { swapcontext(&fibers[current].context, &scheduler); }

// Waits until all of `first..last` have come as often as this thread.
inline void meet(int first, int last, std::vector<int>& counts) {
    const int own = ++counts[current];
    for (;;) {
        bool all = true;
        for (int i = first; i < last; i++) all = all && (counts[i] >= own || fibers[i].done);
        if (all) return;
        yield();
    }
}
inline std::vector<int> block_counts, warp_counts;
inline void meet_block() { meet(0, (int)fibers.size(), block_counts); }
inline void meet_warp() {
    const int warp = current / WARP;
    meet(warp * WARP, std::min((warp + 1) * WARP, (int)fibers.size()), warp_counts);
}

inline std::function<void()> kernel;
inline void enter() {
    kernel();
    fibers[current].done = true;
    yield();
}

inline void launch(Dim3 grid_size, Dim3 block_size, size_t shared_bytes, std::function<void()> run) {
    grid = grid_size, block = block_size, kernel = std::move(run);
    const int n = (int)(block.x * block.y * block.z);
    std::mt19937 random(7);
    for (block_at.z = 0; block_at.z < grid.z; block_at.z++)
        for (block_at.y = 0; block_at.y < grid.y; block_at.y++)
            for (block_at.x = 0; block_at.x < grid.x; block_at.x++) {
                // What was not written must not be counted on.
                shared_memory.assign(shared_bytes / 8 + 1, NAN);
                fibers.resize(n);
                exchanges.assign((n + WARP - 1) / WARP, {});
                block_counts.assign(n, 0), warp_counts.assign(n, 0);
                for (auto& fiber : fibers) {
                    fiber.stack.resize(STACK);
                    fiber.done = false;
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = fiber.stack.data();
                    fiber.context.uc_stack.ss_size = fiber.stack.size();
                    fiber.context.uc_link = nullptr;
                    makecontext(&fiber.context, enter, 0);
                }
                std::vector<int> order(n);
                std::iota(order.begin(), order.end(), 0);
                for (bool left = true; left;) {
                    left = false;
                    std::shuffle(order.begin(), order.end(), random);
                    for (int i : order) {
                        if (fibers[i].done) continue;
                        current = i;
                        thread = {(unsigned)i % block.x, (unsigned)i / block.x % block.y, (unsigned)i / block.x / block.y};
                        swapcontext(&scheduler, &fibers[i].context);
                        left = true;
                    }
                }
            }
}
}  // namespace emulator

#define threadIdx emulator::thread
#define blockIdx emulator::block_at
#define blockDim emulator::block
#define gridDim emulator::grid

inline void __syncthreads() { emulator::meet_block(); }
inline void __syncwarp() { emulator::meet_warp(); }

inline float __shfl_xor_sync(unsigned, float x, int offset) {
    auto& exchange = emulator::exchanges[emulator::current / emulator::WARP];
    const int lane = emulator::current % emulator::WARP;
    emulator::meet_warp();
    exchange.value[lane] = x;
    emulator::meet_warp();
    return exchange.value[lane ^ offset];
}

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

// As PTX describes mma.m16n8k16, from what each lane's registers hold.
inline void emulated_mma(float c[4], const unsigned a[4], const unsigned b[2]) {
    auto& exchange = emulator::exchanges[emulator::current / emulator::WARP];
    const int lane = emulator::current % emulator::WARP;
    emulator::meet_warp();
    memcpy(exchange.a[lane], a, 16);
    memcpy(exchange.b[lane], b, 8);
    emulator::meet_warp();
    const auto half = [](unsigned pair, int high) { return __uint_as_float(high ? pair & 0xffff0000u : pair << 16); };
    const auto element_a = [&](int row, int k) {
        return half(exchange.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
    };
    const auto element_b = [&](int k, int col) { return half(exchange.b[col * 4 + k % 8 / 2][k / 8], k % 2); };
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
        double sum = c[i];
        for (int k = 0; k < 16; k++) sum += (double)element_a(row, k) * element_b(k, col);
        c[i] = (float)sum;
    }
    emulator::meet_warp();
}
