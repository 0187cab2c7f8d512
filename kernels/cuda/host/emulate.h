// A GPU for tests, on one thread of a CPU: the threads of a block are fibers that take turns at barriers and wherever a
// warp exchanges registers. Slow, and with no notion of what a memory access costs; but indices, barriers, sums and the
// layout of tensor-core operands are those of the device. Threads run in a shuffled order, so that a missing barrier shows.
// Compile without _FORTIFY_SOURCE, which takes a jump between stacks for a fault.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
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

// A thread of a block. It is begun as a context and switched by jumps from then on, which cost no call of the system; it
// serves one block after the other.
struct Fiber {
    std::vector<char> stack;
    jmp_buf at;
    bool begun = false;
    bool done = true;
};

// Threads that wait for each other.
struct Barrier {
    int n = 0;        // that have not ended
    int arrived = 0;
    unsigned passed = 0;  // how often all have come

    void pass_if_all_came() {
        if (n > 0 && arrived == n) arrived = 0, passed++;
    }
};

inline Dim3 grid, block, thread, block_at;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline jmp_buf scheduler;
inline int current = 0;
inline std::vector<double> shared_memory;
inline char* dynamic_shared() { return (char*)shared_memory.data(); }
struct Exchange {
    float value[WARP];
    unsigned a[WARP][4], b[WARP][2];
};
inline std::vector<Exchange> exchanges;
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;

inline void yield() {
    if (!_setjmp(fibers[current]->at)) _longjmp(scheduler, 1);
}

inline void meet(Barrier& barrier) {
    const unsigned passed = barrier.passed;
    barrier.arrived++;
    barrier.pass_if_all_came();
    while (barrier.passed == passed) yield();
}
inline void meet_block() { meet(block_barrier); }
inline void meet_warp() { meet(warp_barriers[current / WARP]); }

inline std::function<void()> kernel;
inline void live() {
    for (;;) {
        kernel();
        for (Barrier* barrier : {&block_barrier, &warp_barriers[current / WARP]}) barrier->n--, barrier->pass_if_all_came();
        fibers[current]->done = true;
        yield();
    }
}

// Lets thread `i` run until it waits.
inline void resume(int i) {
    current = i;
    Fiber& fiber = *fibers[i];
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    fiber.stack.resize(STACK);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.data();
    context.uc_stack.ss_size = fiber.stack.size();
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    setcontext(&context);
}

inline void launch(Dim3 grid_size, Dim3 block_size, size_t shared_bytes, std::function<void()> run) {
    grid = grid_size, block = block_size, kernel = std::move(run);
    const int n = (int)(block.x * block.y * block.z), n_warps = (n + WARP - 1) / WARP;
    while ((int)fibers.size() < n) fibers.push_back(std::make_unique<Fiber>());
    std::mt19937 random(7);
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    for (block_at.z = 0; block_at.z < grid.z; block_at.z++)
        for (block_at.y = 0; block_at.y < grid.y; block_at.y++)
            for (block_at.x = 0; block_at.x < grid.x; block_at.x++) {
                // What was not written must not be counted on.
                shared_memory.assign(shared_bytes / 8 + 1, NAN);
                exchanges.assign(n_warps, {});
                block_barrier = {n, 0, 0};
                warp_barriers.assign(n_warps, {WARP, 0, 0});
                if (n % WARP) warp_barriers.back().n = n % WARP;
                for (int i = 0; i < n; i++) fibers[i]->done = false;
                std::shuffle(order.begin(), order.end(), random);
                for (bool left = true; left;) {
                    left = false;
                    for (int i : order) {
                        if (fibers[i]->done) continue;
                        thread = {(unsigned)i % block.x, (unsigned)i / block.x % block.y, (unsigned)i / block.x / block.y};
                        resume(i);
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
