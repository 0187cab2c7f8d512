// A driver for tests: libcuda.so.1 with one GPU that is this CPU, in an emulator. With it the program for GPUs runs from end
// to end on any machine, slowly; tests/gpu.sh --emulated does so. Fresh memory holds no numbers; our kernels run as they are,
// and of candle's those that copy, which are all that fresco uses.
//
// Memory of the host that is page-locked is written to as late as a GPU may do it: when somebody waits. All else happens at
// once, so that nothing is seen here of streams that do not wait for each other.
//
// FRESCO_EMULATED_FAULT=N loses the GPU at the Nth launch, as an illegal address does: that one and all behind it fail.
// FRESCO_EMULATED_BYTES=N is how much memory it has (8 GiB).
#include "emulate.cpp"

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {
const int OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700;
const int MAJOR = 75, MINOR = 76, POOLS = 115;
std::mutex one_at_a_time;
std::set<std::string> names;
// Where each piece of memory ends.
std::map<char*, size_t> memory;
size_t used = 0, most_used = 0;

size_t number(const char* variable, size_t otherwise) {
    const char* text = getenv(variable);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}
const size_t ALL = number("FRESCO_EMULATED_BYTES", (size_t)8 << 30);
size_t until_lost = number("FRESCO_EMULATED_FAULT", (size_t)-1);

int allocate(void** to, size_t n) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (n > ALL - used) return OUT_OF_MEMORY;
    used += n, most_used = std::max(most_used, used);
    char* at = (char*)aligned_alloc(256, (n + 511) / 256 * 256);
    memset(at, 0xff, n);
    memory[at] = n;
    *to = at;
    return OK;
}

int release(void* at) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const auto piece = memory.find((char*)at);
    if (piece == memory.end()) return INVALID;
    used -= piece->second;
    memory.erase(piece);
    free(at);
    return OK;
}

// Whether `n` bytes from `at` on lie in one piece of memory.
bool holds(const void* at, size_t n) {
    auto piece = memory.upper_bound((char*)at);
    if (piece == memory.begin()) return false;
    --piece;
    return (char*)at + n <= piece->first + piece->second;
}

int copy(void* to, const void* from, size_t n, bool to_device, bool from_device) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (until_lost == 0) return ILLEGAL_ADDRESS;
    if ((to_device && !holds(to, n)) || (from_device && !holds(from, n))) return INVALID;
    memmove(to, from, n);
    return OK;
}

// Page-locked memory, where each piece ends, and what is still to be written to it.
std::map<char*, size_t> locked_memory;
struct Late {
    void* to;
    const void* from;
    size_t n;
};
std::vector<Late> late;

bool is_locked(const void* at) {
    auto piece = locked_memory.upper_bound((char*)at);
    return piece != locked_memory.begin() && (char*)at < (--piece)->first + piece->second;
}

int leave(void* to, const void* from, size_t n) {
    {
        const std::lock_guard<std::mutex> lock(one_at_a_time);
        if (until_lost == 0) return ILLEGAL_ADDRESS;
        if (is_locked(to)) {
            if (!holds(from, n)) return INVALID;
            // Whoever reads it too early does not find numbers.
            memset(to, 0xff, n);
            return late.push_back({to, from, n}), OK;
        }
    }
    return copy(to, from, n, false, true);
}

int wait_for_all() {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (until_lost == 0) return ILLEGAL_ADDRESS;
    for (const Late& one : late) {
        // What was to be read was let go too early.
        if (!holds(one.from, one.n)) return ILLEGAL_ADDRESS;
        memcpy(one.to, one.from, one.n);
    }
    return late.clear(), OK;
}

int lock_memory(void** at, size_t n) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    char* piece = (char*)aligned_alloc(256, (n + 511) / 256 * 256);
    locked_memory[piece] = n;
    return *at = piece, OK;
}

int unlock_memory(void* at) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    return locked_memory.erase((char*)at) ? (free(at), OK) : INVALID;
}

template <class T> T parameter(void** parameters, int idx) { return *(T*)parameters[idx]; }

template <class T> void strided_copy(void** p) {
    const auto n = parameter<size_t>(p, 0), n_axes = parameter<size_t>(p, 1);
    const auto* info = parameter<const size_t*>(p, 2);
    const T* from = parameter<const T*>(p, 3);
    T* to = parameter<T*>(p, 4);
    for (size_t i = 0; i < n; i++) {
        size_t rest = i, at = info ? 0 : i;
        for (size_t axis = n_axes; info && axis-- > 0;) at += rest % info[axis] * info[n_axes + axis], rest /= info[axis];
        to[i] = from[at];
    }
}

template <class T> void copy_2d(void** p) {
    const T* from = parameter<const T*>(p, 0);
    T* to = parameter<T*>(p, 1);
    const auto rows = parameter<u32>(p, 2), cols = parameter<u32>(p, 3), step = parameter<u32>(p, 4), to_step = parameter<u32>(p, 5);
    for (u32 row = 0; row < rows; row++)
        for (u32 col = 0; col < cols; col++) to[(size_t)row * to_step + col] = from[(size_t)row * step + col];
}
}  // namespace

extern "C" {
int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int* version) { return *version = 13000, OK; }
int cuDeviceGetCount(int* n) { return *n = 1, OK; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : 101; }
int cuDeviceGetName(char* name, int n, int) { return snprintf(name, n, "emulator"), OK; }
int cuDeviceTotalMem_v2(size_t* n, int) { return *n = ALL, OK; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == MAJOR ? 9 : attribute == MINOR ? 0 : attribute == POOLS ? 1 : 0;
    return OK;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)1, OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
int cuCtxGetCurrent(void** context) { return *context = (void*)1, OK; }
int cuCtxSetCurrent(void*) { return OK; }
int cuCtxDestroy_v2(void*) { return OK; }
int cuCtxSynchronize() { return wait_for_all(); }
int cuStreamCreate(void** stream, unsigned) { return *stream = (void*)2, OK; }
int cuStreamDestroy_v2(void*) { return OK; }
int cuStreamSynchronize(void*) { return wait_for_all(); }
int cuStreamWaitEvent(void*, void*, unsigned) { return OK; }
int cuStreamIsCapturing(void*, int* status) { return *status = 0, OK; }
int cuEventCreate(void** event, unsigned) { return *event = (void*)3, OK; }
int cuEventDestroy_v2(void*) { return OK; }
int cuEventRecord(void*, void*) { return OK; }
int cuEventSynchronize(void*) { return wait_for_all(); }
int cuMemHostAlloc(void** at, size_t n, unsigned) { return lock_memory(at, n); }
int cuMemFreeHost(void* at) { return unlock_memory(at); }
int cuMemAllocAsync(void** at, size_t n, void*) { return allocate(at, n); }
int cuMemAlloc_v2(void** at, size_t n) { return allocate(at, n); }
int cuMemFreeAsync(void* at, void*) { return release(at); }
int cuMemFree_v2(void* at) { return release(at); }
int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) { return *total = ALL, *free_bytes = ALL - used, OK; }
int cuDeviceGetMemPool(void** pool, int) { return *pool = (void*)7, OK; }
// 4 is what a pool may keep, 5 what it has, 7 and 8 what of that is in use and was at most.
int cuMemPoolSetAttribute(void*, int attribute, unsigned long long* value) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (attribute == 4) return OK;
    if (attribute != 8 || *value != 0) return INVALID;
    return most_used = used, OK;
}
int cuMemPoolGetAttribute(void*, int attribute, unsigned long long* value) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (attribute != 5 && attribute != 7 && attribute != 8) return INVALID;
    return *value = attribute == 8 ? most_used : used, OK;
}
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t n, void*) { return copy(to, from, n, true, false); }
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t n, void*) { return leave(to, from, n); }
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t n, void*) { return copy(to, from, n, true, true); }
int cuMemcpyPeerAsync(void* to, void*, const void* from, void*, size_t n, void*) { return copy(to, from, n, true, true); }
int cuMemsetD8Async(void* at, unsigned char value, size_t n, void*) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    return holds(at, n) ? (memset(at, value, n), OK) : INVALID;
}
int cuModuleLoad(void** module, const char*) { return *module = (void*)4, OK; }
int cuModuleLoadData(void** module, const void*) { return *module = (void*)4, OK; }
int cuModuleUnload(void*) { return OK; }
int cuModuleGetFunction(void** function, void*, const char* name) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    *function = (void*)names.insert(name).first->c_str();
    return OK;
}
int cuFuncSetAttribute(void*, int, int) { return OK; }
int cuGetErrorString(int, const char** text) { return *text = "the emulated driver refused it", OK; }
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                   unsigned shared_bytes, void*, void** parameters, void**) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (until_lost == 0 || --until_lost == 0) return ILLEGAL_ADDRESS;
    const std::string name = (const char*)function;
    if (name == "ucopy_f32") return strided_copy<u32>(parameters), OK;
    if (name == "ucopy_bf16") return strided_copy<unsigned short>(parameters), OK;
    if (name == "copy2d_f32") return copy_2d<u32>(parameters), OK;
    if (name == "copy2d_bf16") return copy_2d<unsigned short>(parameters), OK;
    const unsigned blocks[3] = {x, y, z};
    if (launch(name.c_str(), blocks, threads, shared_bytes, parameters[0]) == 0) return OK;
    fprintf(stderr, "the emulated driver has no kernel %s\n", name.c_str());
    return NOT_FOUND;
}

// cuBLAS and cuRAND are made and never used.
int cublasCreate_v2(void** handle) { return *handle = (void*)5, OK; }
int cublasDestroy_v2(void*) { return OK; }
int cublasSetStream_v2(void*, void*) { return OK; }
int curandCreateGenerator(void** generator, int) { return *generator = (void*)6, OK; }
int curandDestroyGenerator(void*) { return OK; }
int curandSetStream(void*, void*) { return OK; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return OK; }
int cublasGemmStridedBatchedEx() { return 15; }
int cublasDgemmStridedBatched() { return 15; }
}
