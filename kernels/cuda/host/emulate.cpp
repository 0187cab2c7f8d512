// Every kernel, compiled for this CPU as a library: launch() runs one by name.
#include "emulate.h"

struct uint4 {
    unsigned x, y, z, w;
};
#define __align__(n) __attribute__((aligned(n)))

#include "../attention.cu"
#include "../group_norm.cu"
#include "../product.cu"
#include "../rows.cu"

// Runs `kernel` over `blocks` (three counts) of `threads` threads. `parameters` points to the struct it takes. Gives 1 if
// there is no such kernel.
extern "C" int launch(const char* kernel, const unsigned* blocks, unsigned threads, size_t shared_bytes, const void* parameters) {
#define KERNEL(NAME, PARAMETERS)                                                         \
    if (!strcmp(kernel, #NAME)) {                                                        \
        const auto op = *(const PARAMETERS*)parameters;                                  \
        emulator::launch({blocks[0], blocks[1], blocks[2]}, {threads, 1, 1}, shared_bytes, [op] { NAME(op); }); \
        return 0;                                                                        \
    }
#define BOTH(NAME, PARAMETERS) KERNEL(NAME##_f32, PARAMETERS<float>) KERNEL(NAME##_bf16, PARAMETERS<bf16>)
    BOTH(product, Product)
    BOTH(modulate, Modulation)
    BOTH(compress, Compression)
    BOTH(moments, MomentsOf)
    BOTH(affine, Affine)
    BOTH(finite, Finite)
    BOTH(attention, Attention)
    KERNEL(attention_16, Attention<bf16>)
    KERNEL(attention_40, Attention<bf16>)
    KERNEL(attention_64, Attention<bf16>)
    KERNEL(attention_72, Attention<bf16>)
    KERNEL(attention_128, Attention<bf16>)
    KERNEL(attention_512, Attention<bf16>)
    return 1;
}
