// Steps of few layers that are small and square, of sizes that the compiler knows: what is a loop
// through memory in chain.h becomes straight code on registers. The operations are the same, in
// the same order, and so are their results, to the last bit.
#pragma once

#include "chain.h"

namespace alignjax {
namespace {

template <class P, long K, long D>
struct Small {
  using V = typename P::V;
  using Mask = typename P::Mask;
  static constexpr long kSize = K * K;

  // As many calls of `chain.template step<false>()`.
  static Mask steps(const Chain<P>& chain, std::int64_t count) {
    V w[D][kSize];
    ALIGNJAX_UNROLL for (long i = 0; i < D; ++i) {
      ALIGNJAX_UNROLL for (long e = 0; e < kSize; ++e) w[i][e] = chain.weights[i + 1][e];
    }
    Mask fine = ~Mask{};
    for (; count > 0; --count) fine &= step(chain, w);
    ALIGNJAX_UNROLL for (long i = 0; i < D; ++i) {
      ALIGNJAX_UNROLL for (long e = 0; e < kSize; ++e) chain.weights[i + 1][e] = w[i][e];
    }
    return fine;
  }

 private:
  static ALIGNJAX_INLINE Mask step(const Chain<P>& chain, V (&w)[D][kSize]) {
    V left[D][kSize];  // left[i] = W_D...W_{i+1}; the last one is not used
    V signal[kSize], next[kSize];
    ALIGNJAX_UNROLL for (long i = D - 2; i >= 0; --i) {
      multiply<K, 1, K, 1>(i == D - 2 ? w[D - 1] : left[i + 1], w[i],
                           [&](long e, V x) { left[i][e] = x; });
    }
    V squares{};
    ALIGNJAX_UNROLL for (long e = 0; e < kSize; ++e) squares += left[0][e] * left[0][e];
    multiply<K, 1, K, 1>(left[0], chain.input_moment,
                         [&](long e, V x) { signal[e] = x - chain.cross_moment[e]; });
    ALIGNJAX_UNROLL for (long i = 0; i < D - 1; ++i) {
      multiply<K, 1, 1, K>(signal, w[i], [&](long e, V x) { next[e] = x; });
      const V rate = chain.rates[i + 1];
      multiply<1, K, K, 1>(i == D - 2 ? w[D - 1] : left[i + 1], signal,
                           [&](long e, V x) { w[i][e] = w[i][e] - rate * x; });
      ALIGNJAX_UNROLL for (long e = 0; e < kSize; ++e) signal[e] = next[e];
    }
    const V rate = chain.rates[D];
    ALIGNJAX_UNROLL for (long e = 0; e < kSize; ++e) {
      w[D - 1][e] = w[D - 1][e] - rate * signal[e];
    }
    return squares <= chain.bound;
  }

  // Entries of a lie at `a[i * R + p * C]`, those of b at `b[p * S + j * T]`.
  template <long R, long C, long S, long T, class F>
  static ALIGNJAX_INLINE void multiply(const V* a, const V* b, F result) {
    ALIGNJAX_UNROLL for (long i = 0; i < K; ++i) {
      ALIGNJAX_UNROLL for (long j = 0; j < K; ++j) {
        V sum{};
        ALIGNJAX_UNROLL for (long p = 0; p < K; ++p) sum += a[i * R + p * C] * b[p * S + j * T];
        result(i * K + j, sum);
      }
    }
  }
};

}  // namespace
}  // namespace alignjax
