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
extern "C" XLA_FFI_Error* alignjax_recursion(XLA_FFI_CallFrame*);
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

constexpr auto kF32 = XLA_FFI_DataType_F32, kS32 = XLA_FFI_DataType_S32;

// Calls a kernel, which has `count` threads, and returns when it does.
void call(XLA_FFI_Error* (*kernel)(XLA_FFI_CallFrame*), Threads& threads, std::int64_t count,
          Buffers& given, Buffers& results, XLA_FFI_Attrs attributes) {
  XLA_FFI_Api api{};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.XLA_FFI_ThreadPool_Schedule = schedule;
  api.XLA_FFI_ThreadPool_NumThreads = count_threads;
  api.XLA_FFI_Error_Create = complain;
  Context ctx{&threads, count};
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
  frame.attrs = attributes;
  if (kernel(&frame) != nullptr) std::abort();
}

constexpr std::int64_t kRuns = 150, kWidth = 9;

// Of two layers a run; every seventh one diverges.
std::vector<float> make_rates() {
  std::vector<float> rates(2 * kRuns);
  for (std::int64_t i = 0; i < 2 * kRuns; ++i) rates[i] = i % 14 < 2 ? 1e3f : 0.02f;
  return rates;
}

std::vector<float> make_layer(std::int64_t size, std::uint32_t state) {
  std::vector<float> layer(size);
  for (auto& weight : layer) {
    state = state * 1664525u + 1013904223u;
    weight = static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
  }
  return layer;
}

// The steps taken, and the layers after them.
std::vector<float> all_of(const std::vector<std::int32_t>& taken,
                          const std::vector<float> (&layers)[2]) {
  std::vector<float> out(taken.begin(), taken.end());
  for (const auto& layer : layers) out.insert(out.end(), layer.begin(), layer.end());
  return out;
}

// Two layers, shared moments.
std::vector<float> descend(Threads& threads, std::int64_t count, bool columns) {
  constexpr std::int64_t size = kWidth * kWidth;
  std::vector<std::int32_t> steps = {70}, taken(kRuns);
  std::vector<float> rates = make_rates(), eye(size), none(size), zero(1);
  for (std::int64_t i = 0; i < kWidth; ++i) eye[i * kWidth + i] = 1;
  std::vector<float> layers[] = {make_layer(kRuns * size, 1), make_layer(kRuns * size, 2)};
  std::vector<float> moved[] = {layers[0], layers[1]};
  Buffers given, results;
  given.add(kS32, steps, {});
  given.add(kF32, rates, {kRuns, 2});
  given.add(kF32, eye, {1, kWidth, kWidth});
  for (auto* matrix : {&eye, &eye, &none}) given.add(kF32, *matrix, {1, kWidth, kWidth});
  for (int i = 0; i < 2; ++i) given.add(kF32, zero, {1});
  results.add(kS32, taken, {kRuns});
  for (auto& layer : layers) given.add(kF32, layer, {kRuns, kWidth, kWidth});
  for (auto& layer : moved) results.add(kF32, layer, {kRuns, kWidth, kWidth});

  std::int64_t vertex = 2;
  std::int64_t layout = columns ? 2 : 1;
  XLA_FFI_Scalar scalars[] = {{XLA_FFI_DataType_S64, &layout}, {XLA_FFI_DataType_S64, &vertex}};
  void* attributes[] = {&scalars[0], &scalars[1]};
  XLA_FFI_ByteSpan names[] = {{"layout", 6}, {"vertex", 6}};
  XLA_FFI_ByteSpan* each_name[] = {&names[0], &names[1]};
  XLA_FFI_AttrType scalar[] = {XLA_FFI_AttrType_SCALAR, XLA_FFI_AttrType_SCALAR};
  call(alignjax_advance, threads, count, given, results,
       {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, 2, scalar, each_name, attributes});
  return all_of(taken, moved);
}

// The recursion of two layers, whose runs share their spectra or do not.
std::vector<float> recur(Threads& threads, std::int64_t count, bool shared) {
  constexpr std::int64_t rank = 33;
  const std::int64_t problems = shared ? 1 : kRuns;
  std::vector<std::int32_t> steps = {300}, taken(kRuns);  // 70 are not worth four threads
  std::vector<float> rates = make_rates(), ones(problems * rank, 1), zeros(problems);
  std::vector<float> layers[] = {make_layer(kRuns * rank, 1), make_layer(kRuns * rank, 2)};
  std::vector<float> moved[] = {layers[0], layers[1]};
  Buffers given, results;
  given.add(kS32, steps, {});
  given.add(kF32, rates, {kRuns, 2});
  for (int i = 0; i < 3; ++i) given.add(kF32, ones, {problems, rank});
  given.add(kF32, zeros, {problems});
  results.add(kS32, taken, {kRuns});
  for (auto& layer : layers) given.add(kF32, layer, {kRuns, rank});
  for (auto& layer : moved) results.add(kF32, layer, {kRuns, rank});
  call(alignjax_recursion, threads, count, given, results, {XLA_FFI_Attrs_STRUCT_SIZE});
  return all_of(taken, moved);
}

// Whether callers on four threads each, all at once, get what one on a single thread gets.
template <class Kernel>
bool agrees(Kernel kernel) {
  Threads threads;
  const auto alone = kernel(threads, 1);
  std::vector<std::vector<float>> found(12);
  std::vector<std::thread> callers;
  for (auto& each : found) callers.emplace_back([&] { each = kernel(threads, 4); });
  for (auto& caller : callers) caller.join();
  for (const auto& each : found) {
    if (std::memcmp(each.data(), alone.data(), alone.size() * sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace

int main() {
  if (!alignjax_select("sse2") && !alignjax_select("generic")) return 2;
  for (const bool yes : {false, true}) {
    const auto networks = [yes](Threads& threads, std::int64_t count) {
      return descend(threads, count, yes);
    };
    const auto recursion = [yes](Threads& threads, std::int64_t count) {
      return recur(threads, count, yes);
    };
    if (!agrees(networks) || !agrees(recursion)) {
      std::fprintf(stderr, "threads change a result\n");
      return 1;
    }
  }
  std::puts("no race seen");
  return 0;
}
