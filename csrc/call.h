// What all ways in from XLA share: batch axes, instruction sets, threads, errors.
#pragma once

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

#define ALIGNJAX_EXPORT extern "C" __attribute__((visibility("default")))

namespace alignjax {

namespace ffi = xla::ffi;

// The instruction set in use. A job asks once, whatever is selected meanwhile.
const InstructionSet* selected_set();

template <class T>
const Kernels<T>& kernels(const InstructionSet& set);
template <>
inline const Kernels<float>& kernels(const InstructionSet& set) {
  return set.single;
}
template <>
inline const Kernels<double>& kernels(const InstructionSet& set) {
  return set.twice;
}

using Sizes = std::vector<std::int64_t>;

// An operand or a result with leading batch axes, each as long as that of the batch or 1.
struct Batched {
  char* data = nullptr;
  Sizes strides;  // bytes along each batch axis, 0 where it is broadcast

  char* at(std::int64_t index, const Sizes& batch) const {
    char* out = data;
    for (std::size_t axis = batch.size(); axis-- > 1;) {
      out += index % batch[axis] * strides[axis];
      index /= batch[axis];
    }
    return batch.empty() ? out : out + index * strides[0];
  }

  bool shared() const {
    return std::all_of(strides.begin(), strides.end(), [](std::int64_t s) { return s == 0; });
  }
};

// Whether `dims` are batch axes followed by `shape`; `out` then says where they lie.
inline bool place(ffi::AnyBuffer::Dimensions dims, void* data, std::size_t item, const Sizes& batch,
                  const Sizes& shape, Batched& out) {
  const std::size_t axes = batch.size();
  if (dims.size() != axes + shape.size()) return false;
  auto stride = static_cast<std::int64_t>(item);
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (dims[axes + i] != shape[i]) return false;
    stride *= shape[i];
  }
  out.data = static_cast<char*>(data);
  out.strides.assign(axes, 0);
  for (std::size_t axis = axes; axis-- > 0;) {
    if (dims[axis] != 1 && dims[axis] != batch[axis]) return false;
    if (dims[axis] != 1) out.strides[axis] = stride;
    stride *= dims[axis];
  }
  return true;
}

inline ffi::Error no_memory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "alignjax: no memory for a network");
}

inline ffi::Error invalid(const std::string& what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "alignjax: " + what);
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

// Memory for vectors, all zero.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) {
    const std::size_t whole = (bytes + 63) / 64 * 64;
    at_.reset(std::aligned_alloc(64, whole));
    if (!at_) throw std::bad_alloc();
    std::memset(at_.get(), 0, whole);
  }
  void* get() const { return at_.get(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> at_;
};

// Work in packs, which threads take one by one.
struct Packs {
  std::int64_t packs = 0;
  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::int64_t done = 0;

  bool taken() const { return next.load() >= packs; }

  // Takes packs until none is left.
  template <class F>
  void take(F work) {
    std::int64_t finished_here = 0;
    for (std::int64_t pack; (pack = next.fetch_add(1)) < packs; ++finished_here) work(pack);
    count(finished_here);
  }

  // Packs that nobody has taken are nobody's any more.
  void abandon() { count(packs - std::min(next.exchange(packs), packs)); }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [&] { return done == packs; });
  }

 private:
  void count(std::int64_t more) {
    const std::lock_guard<std::mutex> lock(mutex);
    done += more;
    if (done == packs) finished.notify_all();
  }
};

// Below this many multiplications a thread is not worth waking.
constexpr double kWorthAThread = 3e5;

// Has threads do `work(job)`, which takes packs until none is left and throws, if at all, before it
// takes one. The job outlives the call, for a thread may come too late to help.
template <class Job, class Work>
ffi::Error share(ffi::ThreadPool& pool, const std::shared_ptr<Job>& job, double multiplications,
                 Work work) {
  const auto useful = static_cast<std::int64_t>(std::min(multiplications / kWorthAThread, 1e9));
  const std::int64_t helpers = std::min({pool.num_threads(), job->packs, useful + 1}) - 1;
  bool exhausted = false;
  try {
    for (std::int64_t i = 0; i < helpers; ++i) {
      pool.Schedule([job, work]() noexcept {
        try {
          work(*job);
        } catch (const std::bad_alloc&) {
          // A thread that finds no memory leaves its share to the others.
        }
      });
    }
    work(*job);
  } catch (const std::bad_alloc&) {
    exhausted = true;
    job->abandon();
  }
  job->wait();
  if (exhausted) return no_memory();
  return ffi::Error::Success();
}

}  // namespace alignjax
