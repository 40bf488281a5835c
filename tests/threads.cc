// Looks for data races: calls of the kernels, several at once, each shared among threads as XLA
// shares them. Made for the thread sanitizer, see fuzz_engine.py. A stand-in for XLA hands over
// buffers and lends threads; a call on many threads must agree with one on a single thread bit by
// bit.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "kernel.h"
#include "xla/ffi/api/c_api.h"

extern "C" XLA_FFI_Error* alignjax_advance(XLA_FFI_CallFrame*);
extern "C" int alignjax_select(const char*);

namespace alignjax {
// Only the baseline is compiled here: the others differ in instructions, not in threads.
extern const InstructionSet avx512, avx2;
const InstructionSet avx512{"not compiled", {}, {}}, avx2{"not compiled", {}, {}};
}  // namespace alignjax

namespace {

// Every task gets a thread of its own, and may come after the call that scheduled it is over.
class Threads {
 public:
  ~Threads() {
    for (auto& thread : threads_) thread.join();
  }
  void start(XLA_FFI_Task* task, void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    threads_.emplace_back(task, data);
  }

 private:
  std::mutex mutex_;
  std::vector<std::thread> threads_;
};

struct Context {
  Threads* threads;
  std::int64_t count;
};

Context* context(XLA_FFI_ExecutionContext* ctx) { return reinterpret_cast<Context*>(ctx); }

XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args* args) {
  context(args->ctx)->threads->start(args->task, args->data);
  return nullptr;
}

XLA_FFI_Error* count_threads(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  *args->num_threads = context(args->ctx)->count;
  return nullptr;
}

XLA_FFI_Error* complain(XLA_FFI_Error_Create_Args* args) {
  std::fprintf(stderr, "%s\n", args->message);
  std::abort();
}

// Buffers, side by side as a call wants them.
class Buffers {
 public:
  template <class T>
  void add(XLA_FFI_DataType dtype, std::vector<T>& numbers, std::vector<std::int64_t> dims) {
    dims_.push_back(std::move(dims));
    auto& kept = dims_.back();
    buffers_.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, dtype, numbers.data(),
                        static_cast<std::int64_t>(kept.size()), kept.data()});
    pointers.push_back(&buffers_.back());
  }
  std::vector<void*> pointers;

 private:
  std::deque<std::vector<std::int64_t>> dims_;  // a deque moves nothing
  std::deque<XLA_FFI_Buffer> buffers_;
};

constexpr std::int64_t kNetworks = 150, kWidth = 9;

// Two layers, shared moments. The weights after some steps, and the steps taken.
std::vector<float> descend(Threads& threads, std::int64_t count, bool columns, float rate) {
  XLA_FFI_Api api{};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.XLA_FFI_ThreadPool_Schedule = schedule;
  api.XLA_FFI_ThreadPool_NumThreads = count_threads;
  api.XLA_FFI_Error_Create = complain;
  Context ctx{&threads, count};

  std::vector<std::int32_t> steps = {70}, taken(kNetworks);
  std::vector<float> rates(2 * kNetworks), eye(kWidth * kWidth), none(kWidth * kWidth), zero(1);
  for (std::int64_t i = 0; i < kWidth; ++i) eye[i * kWidth + i] = 1;
  for (std::int64_t i = 0; i < 2 * kNetworks; ++i) {
    rates[i] = i % 14 < 2 ? 1e3f : rate;  // every seventh network diverges
  }
  std::vector<float> layers[2], moved[2];
  for (int layer = 0; layer < 2; ++layer) {
    layers[layer].resize(kNetworks * kWidth * kWidth);
    moved[layer].resize(layers[layer].size());
    std::uint32_t state = 1 + layer;
    for (auto& weight : layers[layer]) {
      state = state * 1664525u + 1013904223u;
      weight = static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
    }
  }
  Buffers given, results;
  const auto f32 = XLA_FFI_DataType_F32, s32 = XLA_FFI_DataType_S32;
  given.add(s32, steps, {});
  given.add(f32, rates, {kNetworks, 2});
  given.add(f32, eye, {1, kWidth, kWidth});
  for (auto* matrix : {&eye, &eye, &none}) given.add(f32, *matrix, {1, kWidth, kWidth});
  for (int i = 0; i < 2; ++i) given.add(f32, zero, {1});
  results.add(s32, taken, {kNetworks});
  for (auto& layer : layers) given.add(f32, layer, {kNetworks, kWidth, kWidth});
  for (auto& layer : moved) results.add(f32, layer, {kNetworks, kWidth, kWidth});

  std::int64_t vertex = 2;
  XLA_FFI_Scalar scalars[] = {{XLA_FFI_DataType_PRED, &columns}, {XLA_FFI_DataType_S64, &vertex}};
  void* attributes[] = {&scalars[0], &scalars[1]};
  XLA_FFI_ByteSpan names[] = {{"columns", 7}, {"vertex", 6}};
  XLA_FFI_ByteSpan* each_name[] = {&names[0], &names[1]};
  XLA_FFI_AttrType scalar[] = {XLA_FFI_AttrType_SCALAR, XLA_FFI_AttrType_SCALAR};
  std::vector<XLA_FFI_ArgType> args(given.pointers.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> rets(results.pointers.size(), XLA_FFI_RetType_BUFFER);
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api;
  frame.ctx = reinterpret_cast<XLA_FFI_ExecutionContext*>(&ctx);
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<std::int64_t>(args.size()),
                args.data(), given.pointers.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<std::int64_t>(rets.size()),
                rets.data(), results.pointers.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, 2, scalar, each_name, attributes};
  if (alignjax_advance(&frame) != nullptr) std::abort();
  std::vector<float> out(taken.begin(), taken.end());
  for (const auto& layer : moved) out.insert(out.end(), layer.begin(), layer.end());
  return out;
}

}  // namespace

int main() {
  if (!alignjax_select("sse2") && !alignjax_select("generic")) return 2;
  Threads threads;
  for (const bool columns : {false, true}) {
    const auto alone = descend(threads, 1, columns, 0.02f);
    std::vector<std::vector<float>> found(12);
    std::vector<std::thread> callers;
    for (auto& each : found) {
      callers.emplace_back([&] { each = descend(threads, 4, columns, 0.02f); });
    }
    for (auto& caller : callers) caller.join();
    for (const auto& each : found) {
      if (std::memcmp(each.data(), alone.data(), alone.size() * sizeof(float)) != 0) {
        std::fprintf(stderr, "threads change a result\n");
        return 1;
      }
    }
  }
  std::puts("no race seen");
  return 0;
}
