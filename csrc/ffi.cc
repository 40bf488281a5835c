// The way in from XLA: broadcasts batch axes, chooses kernels, shares networks among threads.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "kernel.h"
#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ffi = xla::ffi;

namespace alignjax {

#define ALIGNJAX_EXPORT extern "C" __attribute__((visibility("default")))

#if defined(__x86_64__)
extern const InstructionSet avx512, avx2, sse2;
#else
extern const InstructionSet generic;
#endif

namespace {

// Those that run on this machine, the fastest first.
std::vector<const InstructionSet*> instruction_sets() {
  std::vector<const InstructionSet*> out;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    out.push_back(&avx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out.push_back(&avx2);
  out.push_back(&sse2);
#else
  out.push_back(&generic);
#endif
  return out;
}

std::atomic<const InstructionSet*> selected{instruction_sets().front()};

template <class T>
const Kernels<T>& kernels(const InstructionSet& set);
template <>
const Kernels<float>& kernels(const InstructionSet& set) {
  return set.single;
}
template <>
const Kernels<double>& kernels(const InstructionSet& set) {
  return set.twice;
}

// An operand or a result with leading batch axes, each as long as that of the batch or 1.
struct Batched {
  char* data = nullptr;
  std::vector<std::int64_t> strides;  // bytes along each batch axis, 0 where it is broadcast

  char* at(std::int64_t network, const std::vector<std::int64_t>& batch) const {
    char* out = data;
    for (std::size_t axis = batch.size(); axis-- > 0;) {
      out += network % batch[axis] * strides[axis];
      network /= batch[axis];
    }
    return out;
  }
};

enum Operand { kRates, kInput, kCross, kMinimizer, kSlope, kEnergy, kFloor, kWeights };

// All networks of one call. It outlives the call, for a thread may come too late to help.
struct Job {
  std::vector<std::int64_t> batch, widths;
  std::int64_t networks = 1, steps = 0, packs = 0, per_pack = 1;
  Shape shape{};
  bool columns = false;
  const InstructionSet* set = nullptr;  // one for the whole job, whatever is selected meanwhile
  std::vector<Batched> operands;  // as in Operand, the layers from kWeights on
  std::vector<Batched> results;   // taken, then the layers
  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::int64_t done = 0;
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <class T>
Network<T> network(const Job& job, std::int64_t index, const T** weights, T** results) {
  const auto at = [&](int operand) {
    return reinterpret_cast<const T*>(job.operands[operand].at(index, job.batch));
  };
  for (std::int64_t i = 0; i < job.shape.depth; ++i) {
    weights[i] = at(kWeights + static_cast<int>(i));
    results[i] = reinterpret_cast<T*>(job.results[1 + i].at(index, job.batch));
  }
  return {weights,        results,    at(kRates),  at(kInput), at(kCross),
          at(kMinimizer), at(kSlope), at(kEnergy), at(kFloor),
          reinterpret_cast<std::int32_t*>(job.results[0].at(index, job.batch))};
}

// Numbers below the smallest normal one count as zero, as they do in XLA's own code, and on every
// thread alike: they are slow, and a bit must not depend on the thread.
class FlushSubnormals {
 public:
  FlushSubnormals() : before_(get()) { set(before_ | kFlush); }
  ~FlushSubnormals() { set(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr std::uint64_t kFlush = 0x8040;  // results and operands
  static std::uint64_t get() { return _mm_getcsr(); }
  static void set(std::uint64_t x) { _mm_setcsr(static_cast<unsigned>(x)); }
#elif defined(__aarch64__)
  static constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;
  static std::uint64_t get() {
    std::uint64_t x;
    asm volatile("mrs %0, fpcr" : "=r"(x));
    return x;
  }
  static void set(std::uint64_t x) { asm volatile("msr fpcr, %0" : : "r"(x)); }
#else
  static constexpr std::uint64_t kFlush = 0;
  static std::uint64_t get() { return 0; }
  static void set(std::uint64_t) {}
#endif
  const std::uint64_t before_;
};

// What a thread needs to take packs.
template <class T>
struct Workspace {
  explicit Workspace(const Job& job) {
    const Kernels<T>& kernel = kernels<T>(*job.set);
    const std::size_t bytes =
        job.columns ? kernel.columns_scratch(job.shape) : kernel.lanes_scratch(job.shape);
    scratch.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (!scratch) throw std::bad_alloc();
    std::memset(scratch.get(), 0, bytes);
    const auto depth = static_cast<std::size_t>(job.shape.depth);
    nets.resize(job.per_pack);
    weights.resize(job.per_pack * depth);
    results.resize(job.per_pack * depth);
  }

  std::unique_ptr<void, Free> scratch;
  std::vector<Network<T>> nets;
  std::vector<const T*> weights;
  std::vector<T*> results;
};

// Takes packs until none is left. Throws, if at all, before it takes one.
template <class T>
void work(Job& job) {
  if (job.next.load() >= job.packs) return;
  Workspace<T> space(job);
  const FlushSubnormals flush;
  const Kernels<T>& kernel = kernels<T>(*job.set);
  const auto depth = static_cast<std::size_t>(job.shape.depth);
  std::int64_t done = 0;
  for (std::int64_t pack; (pack = job.next.fetch_add(1)) < job.packs; ++done) {
    const std::int64_t first = pack * job.per_pack;
    const std::int64_t count = std::min(job.per_pack, job.networks - first);
    for (std::int64_t i = 0; i < count; ++i) {
      space.nets[i] =
          network<T>(job, first + i, &space.weights[i * depth], &space.results[i * depth]);
    }
    if (job.columns) {
      kernel.advance_columns(job.shape, space.nets[0], job.steps, space.scratch.get());
    } else {
      kernel.advance_lanes(job.shape, space.nets.data(), static_cast<int>(count), job.steps,
                           space.scratch.get());
    }
  }
  const std::lock_guard<std::mutex> lock(job.mutex);
  job.done += done;
  if (job.done == job.packs) job.finished.notify_all();
}

// A thread that finds no memory leaves its share to the others.
template <class T>
void help(Job& job) noexcept {
  try {
    work<T>(job);
  } catch (const std::bad_alloc&) {
  }
}

// Below this many multiplications a thread is not worth waking.
constexpr double kWorthAThread = 3e5;

double multiplications(const Job& job) {
  double largest = 1;
  for (const auto width : job.widths) largest = std::max(largest, static_cast<double>(width));
  return 3.0 * largest * largest * largest * static_cast<double>(job.shape.depth) *
         static_cast<double>(job.networks) * static_cast<double>(job.steps + 1);
}

// No steps: the segment before the first save point, say.
void stand_still(const Job& job, std::size_t item) {
  for (std::int64_t index = 0; index < job.networks; ++index) {
    for (std::int64_t i = 0; i < job.shape.depth; ++i) {
      std::memcpy(job.results[1 + i].at(index, job.batch),
                  job.operands[kWeights + i].at(index, job.batch),
                  item * static_cast<std::size_t>(job.widths[i] * job.widths[i + 1]));
    }
    *reinterpret_cast<std::int32_t*>(job.results[0].at(index, job.batch)) = 0;
  }
}

ffi::Error no_memory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "alignjax: no memory for a network");
}

template <class T>
ffi::Error run(ffi::ThreadPool& pool, const std::shared_ptr<Job>& job) {
  job->per_pack = job->columns ? 1 : kernels<T>(*job->set).lanes;
  job->packs = (job->networks + job->per_pack - 1) / job->per_pack;
  const auto useful = static_cast<std::int64_t>(std::min(multiplications(*job) / kWorthAThread, 1e9));
  const std::int64_t helpers =
      std::min({pool.num_threads(), job->packs, useful + 1}) - 1;
  bool exhausted = false;
  try {
    for (std::int64_t i = 0; i < helpers; ++i) pool.Schedule([job] { help<T>(*job); });
    work<T>(*job);
  } catch (const std::bad_alloc&) {
    // Packs that the other threads have not taken are nobody's any more.
    exhausted = true;
    const std::int64_t left = job->packs - std::min(job->next.exchange(job->packs), job->packs);
    const std::lock_guard<std::mutex> lock(job->mutex);
    job->done += left;
  }
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->done == job->packs; });
  if (exhausted) return no_memory();
  return ffi::Error::Success();
}

ffi::Error invalid(const std::string& what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "alignjax: " + what);
}

// Whether `dims` are batch axes followed by `shape`; `out` then says where networks lie.
bool place(ffi::AnyBuffer::Dimensions dims, void* data, std::size_t item, const Job& job,
           const std::vector<std::int64_t>& shape, Batched& out) {
  const std::size_t axes = job.batch.size();
  if (dims.size() != axes + shape.size()) return false;
  auto stride = static_cast<std::int64_t>(item);
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (dims[axes + i] != shape[i]) return false;
    stride *= shape[i];
  }
  out.data = static_cast<char*>(data);
  out.strides.assign(axes, 0);
  for (std::size_t axis = axes; axis-- > 0;) {
    if (dims[axis] != 1 && dims[axis] != job.batch[axis]) return false;
    if (dims[axis] != 1) out.strides[axis] = stride;
    stride *= dims[axis];
  }
  return true;
}

// Operands: steps, rates, Sigma_xx, Sigma_yx, W*, the slope there, energy, floor, W_1, ..., W_d.
// Results: taken, W_1, ..., W_d.
ffi::Error checked_advance(ffi::ThreadPool& pool, ffi::RemainingArgs& args,
                           ffi::RemainingRets& rets, std::int64_t vertex, bool columns) {
  const std::size_t depth = rets.size() - 1;
  if (rets.size() < 2 || args.size() != 1 + kWeights + depth) {
    return invalid("operands are missing");
  }
  auto taken = rets.get<ffi::AnyBuffer>(0);
  auto steps = args.get<ffi::AnyBuffer>(0);
  if (!taken || !steps) return invalid("operands cannot be read");
  if (steps->element_type() != ffi::S32 || steps->element_count() != 1) {
    return invalid("steps must be one int32");
  }
  auto job = std::make_shared<Job>();
  job->columns = columns;
  job->set = selected.load();
  job->steps = *steps->typed_data<std::int32_t>();
  const auto lead = (*taken)->dimensions();
  job->batch.assign(lead.begin(), lead.end());
  for (const auto size : job->batch) job->networks *= size;
  if (job->networks == 0) return ffi::Error::Success();

  std::vector<ffi::AnyBuffer> operands;
  for (std::size_t i = 1; i < args.size(); ++i) {
    auto operand = args.get<ffi::AnyBuffer>(i);
    if (!operand) return invalid("operands cannot be read");
    operands.push_back(*operand);
  }
  const auto dtype = operands[kRates].element_type();
  if (dtype != ffi::F32 && dtype != ffi::F64) return invalid("weights must be float32 or float64");
  const std::size_t item = dtype == ffi::F32 ? 4 : 8;
  for (std::size_t i = 0; i < depth; ++i) {
    const auto dims = operands[kWeights + i].dimensions();
    if (dims.size() != job->batch.size() + 2) return invalid("weights must be matrices");
    if (i == 0) job->widths.push_back(dims.back());
    job->widths.push_back(dims[dims.size() - 2]);
  }
  const auto inputs = job->widths.front(), outputs = job->widths.back();
  std::vector<std::vector<std::int64_t>> shapes = {
      {static_cast<std::int64_t>(depth)}, {inputs, inputs}, {outputs, inputs}, {outputs, inputs},
      {outputs, inputs},                  {},               {}};
  for (std::size_t i = 0; i < depth; ++i) {
    shapes.push_back({job->widths[i + 1], job->widths[i]});
  }
  job->operands.resize(operands.size());
  for (std::size_t i = 0; i < operands.size(); ++i) {
    if (operands[i].element_type() != dtype ||
        !place(operands[i].dimensions(), operands[i].untyped_data(), item, *job, shapes[i],
               job->operands[i])) {
      return invalid("operand " + std::to_string(i + 1) + " does not fit");
    }
  }
  job->results.resize(1 + depth);
  if (!place(lead, (*taken)->untyped_data(), 4, *job, {}, job->results[0])) {
    return invalid("taken does not fit");
  }
  for (std::size_t i = 0; i < depth; ++i) {
    auto result = rets.get<ffi::AnyBuffer>(1 + i);
    if (!result || (*result)->element_type() != dtype ||
        !place((*result)->dimensions(), (*result)->untyped_data(), item, *job, shapes[kWeights + i],
               job->results[1 + i])) {
      return invalid("result " + std::to_string(i + 1) + " does not fit");
    }
  }
  if (vertex < 0 || vertex > static_cast<std::int64_t>(depth)) return invalid("vertex is no index");
  job->shape = {job->widths.data(), static_cast<std::int64_t>(depth), vertex};
  if (job->steps <= 0) {
    stand_still(*job, item);
    return ffi::Error::Success();
  }
  return dtype == ffi::F32 ? run<float>(pool, job) : run<double>(pool, job);
}

// XLA is not prepared for exceptions.
ffi::Error advance(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                   std::int64_t vertex, bool columns) noexcept {
  try {
    return checked_advance(pool, args, rets, vertex, columns);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(advance_handler, advance,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<std::int64_t>("vertex")
                           .Attr<bool>("columns"));

}  // namespace alignjax

ALIGNJAX_EXPORT XLA_FFI_Error* alignjax_advance(XLA_FFI_CallFrame* frame) {
  return alignjax::advance_handler(frame);
}

// The name of the i-th instruction set that runs here, the fastest first, or null.
ALIGNJAX_EXPORT const char* alignjax_instruction_set(int i) {
  const auto sets = alignjax::instruction_sets();
  return i >= 0 && i < static_cast<int>(sets.size()) ? sets[i]->name : nullptr;
}

// The name of the one in use.
ALIGNJAX_EXPORT const char* alignjax_selected() { return alignjax::selected.load()->name; }

// Chooses one of them; whether there is one of that name.
ALIGNJAX_EXPORT int alignjax_select(const char* name) {
  for (const auto* set : alignjax::instruction_sets()) {
    if (std::strcmp(set->name, name) == 0) {
      alignjax::selected = set;
      return 1;
    }
  }
  return 0;
}
