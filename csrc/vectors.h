// Vectors by the extension that GCC and Clang share, with internal linkage as all of basics.h.
#pragma once

#include "basics.h"

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

}  // namespace
}  // namespace alignjax
