// What code for CPUs and for GPUs shares: limits, widths, scratch memory. Everything has internal
// linkage: the same names are compiled for several instruction sets, and a linker must never merge
// them.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define ALIGNJAX_ANYWHERE __device__
#define ALIGNJAX_UNROLL _Pragma("unroll")
#else
#define ALIGNJAX_ANYWHERE
#ifdef __clang__
#define ALIGNJAX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ALIGNJAX_UNROLL _Pragma("GCC unroll 16")
#endif
#endif
#define ALIGNJAX_INLINE ALIGNJAX_ANYWHERE inline __attribute__((always_inline))

namespace alignjax {
namespace {

// What a state may reach.
template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr double largest = 1.8446743523953730e19;  // risk: sqrt of the largest float
  static constexpr double norm = 1e18;                      // its square is finite
  static constexpr double finite = 3.4028234663852886e38;
};
template <>
struct Limits<double> {
  static constexpr double largest = 1.3407807929942596e154;
  static constexpr double norm = 1e150;
  static constexpr double finite = 1.7976931348623157e308;
};

// A width that is known to the compiler, beside `long` for one that is not.
template <long N>
struct Constant {
  static constexpr long value = N;
  constexpr operator long() const { return N; }
};

template <long K>
struct Square {
  static constexpr bool square = true;
  static constexpr long width = K;
  ALIGNJAX_INLINE Constant<K> operator()(int) const { return {}; }
};

struct Ragged {
  static constexpr bool square = false;
  static constexpr long width = 0;
  const std::int64_t* widths;
  ALIGNJAX_INLINE long operator()(int i) const { return widths[i]; }
};

// Scratch memory handed out in order, the first `room` bytes of it at `base`, the rest at `beyond`;
// where they are null it only counts.
struct Arena {
  char* base;
  std::size_t room = ~std::size_t{0};
  char* beyond = nullptr;
  std::size_t used = 0, used_beyond = 0;

  template <class T>
  ALIGNJAX_ANYWHERE T* take(std::size_t count) {
    const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    const bool fits = used + bytes <= room;
    char* from = fits ? base : beyond;
    std::size_t& at = fits ? used : used_beyond;
    T* out = from ? reinterpret_cast<T*>(from + at) : nullptr;
    at += bytes;
    return out;
  }
};

}  // namespace
}  // namespace alignjax
