// Vectors by the extension that GCC and Clang share. Everything has internal linkage: the same
// names are compiled for several instruction sets, and a linker must never merge them.
#pragma once

#include <cstddef>
#include <cstdint>

#define ALIGNJAX_INLINE inline __attribute__((always_inline))
#ifdef __clang__
#define ALIGNJAX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ALIGNJAX_UNROLL _Pragma("GCC unroll 16")
#endif

// GCC has Clang's name since version 12, and its own, which Clang lacks, since long ago.
#ifdef __has_builtin
#define ALIGNJAX_HAS_SHUFFLEVECTOR __has_builtin(__builtin_shufflevector)
#else
#define ALIGNJAX_HAS_SHUFFLEVECTOR 0
#endif

namespace alignjax {
namespace {

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = std::int32_t;
};
template <>
struct IntegerOf<double> {
  using type = std::int64_t;
};

// `Bytes` of `T` side by side.
template <class T, int Bytes>
struct Vector {
  using Number = T;
  using Integer = typename IntegerOf<T>::type;
  typedef T type __attribute__((vector_size(Bytes)));
  typedef Integer mask __attribute__((vector_size(Bytes)));
  static constexpr int lanes = Bytes / static_cast<int>(sizeof(T));

  // A subtracted zero, unlike an added one, leaves every number as it is, so it costs nothing.
  static ALIGNJAX_INLINE type splat(T x) { return x - type{}; }
  // Each lane's bit is set where its mask is.
  static ALIGNJAX_INLINE unsigned bits(mask m) {
    unsigned out = 0;
    for (int l = 0; l < lanes; ++l) out |= static_cast<unsigned>(m[l] != 0) << l;
    return out;
  }
  static ALIGNJAX_INLINE T sum(type v) {
    T out = 0;
    for (int l = 0; l < lanes; ++l) out += v[l];
    return out;
  }
};

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

// Entries `I` of two vectors side by side.
template <int... I, class V>
ALIGNJAX_INLINE V shuffle(V a, V b) {
#if ALIGNJAX_HAS_SHUFFLEVECTOR
  return __builtin_shufflevector(a, b, I...);
#else
  using Indices = decltype(a < b);
  return __builtin_shuffle(a, b, Indices{I...});
#endif
}

// A width that is known to the compiler, beside `long` for one that is not.
template <long N>
struct Constant {
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

// Scratch memory handed out in order; with a null base it only counts.
struct Arena {
  char* base;
  std::size_t used = 0;

  template <class T>
  T* take(std::size_t count) {
    T* out = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return out;
  }
};

}  // namespace
}  // namespace alignjax
